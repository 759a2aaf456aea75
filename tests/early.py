"""Loaded before pytest's other plugins (pyproject.toml names it), to keep out what is imported and not needed."""

import sys
from pathlib import Path

# By jsonschema, to check international addresses: it takes longer than pytest and the rest of nbval together.
sys.modules.setdefault("rfc3987_syntax", None)


def pytest_addoption(pluginmanager):
    """For notebooks alone without hypothesis, which its plugin imports at the end: it takes as long as torch."""
    files = [word for word in sys.argv[1:] if Path(word.partition("::")[0]).exists()]
    if files and all(".ipynb" in file for file in files):
        pluginmanager.set_blocked("hypothesispytest")
