"""What only the lessons need: their data, figures and processes, and the checks of their exercises.

It needs the packages of the extra ``lessons``; each module is imported by name.
"""
