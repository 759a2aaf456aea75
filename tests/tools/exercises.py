"""Right and wrong answers to the exercises: the data of tests/test_exercises.py and of the page for those who teach.

Each lesson has a module in tests/answers with an ``Answers``. A wrong answer carries the belief behind it, as its
docstring, and a part of the sentence that it must be refused with.

``python -m tests.tools.exercises`` writes that page, notebooks/solutions/ANSWERS.md (``make save`` does it too).
"""

import contextlib
import importlib
import inspect
import io
import pkgutil
import re
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import tests.answers
from tests.tools import lessons

PAGE = lessons.FOLDER / "solutions" / "ANSWERS.md"


@dataclass
class Answer:
    """One answer to an exercise: why somebody gives it, and what it must be told (None: that it is right)."""

    exercise: str
    given: Any
    belief: str
    told: str | None

    @property
    def source(self) -> str:
        """The answer as somebody would write it: without the decorator and the docstring."""
        if not _written(self.given):
            return repr(self.given)
        source = textwrap.dedent(inspect.getsource(self.given))
        source = re.sub(r"\A(@.*\n)+", "", source)
        return re.sub(r'^ +""".*?"""\n', "", source, count=1, flags=re.DOTALL | re.MULTILINE).rstrip()


def _written(given: Any) -> bool:
    return inspect.isfunction(given) or inspect.isclass(given)


class Answers(list[Answer]):
    """The answers of one lesson. ``right`` and ``wrong`` decorate functions and classes, or take a value."""

    def right(self, exercise: str):
        return lambda given, belief="": self._add(exercise, given, belief, None)

    def wrong(self, exercise: str, told: str):
        return lambda given, belief="": self._add(exercise, given, belief, told)

    def _add(self, exercise, given, belief, told):
        belief = belief or (_written(given) and inspect.getdoc(given)) or ""
        self.append(Answer(exercise, given, " ".join(belief.split()), told))
        return given


def _rows(table: Any, solution: Any) -> str:
    if not isinstance(table, dict) or not isinstance(solution, dict):
        return ""
    written = {row: value.__name__ if isinstance(value, type) else repr(value) for row, value in table.items()}
    return "\n".join(f"{row!r}: {value}," for row, value in written.items() if solution.get(row) != table[row])


@cache
def every() -> dict[str, Answers]:
    """The answers of all lessons, by the name of the lesson's module."""
    names = [module.name for module in pkgutil.iter_modules(tests.answers.__path__)]
    return {name: importlib.import_module(f"tests.answers.{name}").answers for name in names}


def told(lesson: str, exercise: str, given: Any) -> tuple[str, str]:
    """How the answer stands, and the sentence."""
    with contextlib.redirect_stdout(io.StringIO()):
        return importlib.import_module(f"helpers.lessons.exercises.{lesson}").lesson.judged(exercise, given)


def notebook(lesson: str) -> Path:
    """The notebook of a lesson, ``01_requires_grad.ipynb`` for ``requires_grad``."""
    (path,) = lessons.FOLDER.glob(f"[0-9][0-9]_{lesson}.ipynb")
    return path


def statements(path: Path) -> dict[str, tuple[str, str]]:
    """The exercises of a notebook: their statement, and the cell for the answer (or the solution)."""
    sources = {cell["id"]: cell["source"] for cell in lessons.read(path)["cells"]}
    names = [id.removeprefix("exercise-") for id in sources if id.startswith("exercise-")]
    answer = "solution" if path.parent.name == "solutions" else "answer"
    return {name: (sources[f"exercise-{name}"], sources.get(f"{answer}-{name}", "")) for name in names}


HEAD = """\
# What wrong answers reveal

For those who teach: plausible wrong answers, the belief behind each, and what the check says.
Of a table only the wrong rows are shown. `make save` writes this page from `tests/answers`.
"""


def sections() -> dict[str, str]:
    """What the page says now, by the name of the lesson's module."""
    _, *found = PAGE.read_text("utf-8").split("\n## ")
    return {name: f"\n## {section}" for name, section in zip(_in_order(), found, strict=True)}


def section(lesson: str, told: Callable[[str, int], tuple[str, str]]) -> str:
    """What each wrong answer of a lesson reveals, as Markdown. ``told`` judges the answer of this number."""
    path, answers = notebook(lesson), every()[lesson]
    lines = ["", f"## {lessons.read(path)['cells'][0]['source'].splitlines()[0].removeprefix('# ')}"]
    for exercise, (statement, cell) in statements(path).items():
        facts = re.match(r"# (difficulty .*)", cell)
        lines += ["", statement.splitlines()[0], "", f"{facts[1] if facts else ''}"]
        given = {number: answer for number, answer in enumerate(answers) if answer.exercise == exercise}
        solution = next(answer.given for answer in given.values() if answer.told is None)
        for number, answer in given.items():
            if answer.told is not None:
                _, sentence = told(lesson, number)
                source = _rows(answer.given, solution) or answer.source
                lines += ["", f"**{answer.belief}**", "", "```python", source, "```", "", f"> {sentence}"]
    return "\n".join(lines) + "\n"


def _in_order() -> list[str]:
    return sorted(every(), key=lambda lesson: notebook(lesson).name)


def _told(lesson: str, number: int) -> tuple[str, str]:
    answer = every()[lesson][number]
    return told(lesson, answer.exercise, answer.given)


if __name__ == "__main__":
    try:
        lessons.write(PAGE, HEAD + "".join(section(lesson, _told) for lesson in _in_order()))
    except OSError as error:
        sys.exit(f"{PAGE.name}: left as it is: {error}")
    print(f"saved {PAGE.name}")
