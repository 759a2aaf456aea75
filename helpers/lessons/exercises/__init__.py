"""What answers to the exercises and predictions of the lessons show: right, or the misconception behind them.

Each lesson has a module of its own here, which gives its notebook ``check``, ``predict`` and ``progress``. What a check
measures is code; what a learner reads is data beside it, in a TOML file of the same name. A check is a function that
looks at an answer's behavior and refuses it with one of those sentences:

>>> sentences = '''
... [exercises.double]
... title = "Twice as much"
... follows = "Every result below follows from it."
... [exercises.double.says]
... square = "That is the square: both agree for 2, not for 3."
... other = "For 3 it gives {got}."
... '''
>>> lesson = Lesson("numbers", tomllib.loads(sentences))
>>> @lesson.exercise("double")
... def double(answer):
...     got = run(answer, 3)
...     if got == 9:
...         raise lesson.not_yet("square")
...     if got != 6:
...         raise lesson.not_yet("other", got=got)
>>> def answer(number):
...     raise NotImplementedError
>>> lesson.check("double", answer)
○ not attempted: Twice as much
>>> lesson.check("double", lambda number: number**2)
✗ not yet: Twice as much
That is the square: both agree for 2, not for 3.
>>> lesson.check("double", lambda number: number + number)
✓ right: Twice as much
Every result below follows from it.
>>> lesson.progress()
1 of 1 right
"""

import difflib
import html
import sys
import textwrap
import tomllib
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from helpers.lessons import errors, progress
from helpers.lessons.exercises.leftovers import Torch
from helpers.lessons.exercises.running import (
    NotAttempted,
    NotYet,
    attempted,
    interrupts,
    kind,
    listening,
    outcome,
    run,
    waiting,
)

__all__ = ["LEAST", "MARKS", "RAISES", "Lesson", "NotAttempted", "NotYet", "Verdict", "attempted", "changed", "facts"]
__all__ += ["kind", "raises", "run", "scalar", "table", "taken", "waiting"]

RAISES = "raises"
"""What a table says of a line that raises an error."""
LEAST = "not attempted"
MARKS = {"right": "✓", "not yet": "✗", LEAST: "○"}
COLORS = {"right": "#2da44e", "not yet": "#e8912d"}


errors.install()


class Verdict(NamedTuple):
    """How an answer stands, one of `MARKS`, and a sentence on why, or on what follows."""

    standing: str
    sentence: str


class Lesson:
    """The exercises and predictions of one lesson, and how they stand in the running kernel.

    ``sentences`` are those of the TOML file of that name here.
    """

    def __init__(self, name: str = "", sentences: Mapping[str, Any] | None = None) -> None:
        if name and sentences is None:
            sentences = tomllib.loads(Path(__file__).with_name(f"{name}.toml").read_text("utf-8"))
        self.name, self.sentences = name, sentences or {}
        self.exercises: dict[str, tuple[Callable[[Any], None], str]] = {}
        self.predictions: dict[str, dict[Any, str]] = {}
        self._otherwise: dict[str, str] = {}
        self._standing: dict[str, str] = {}
        self._examined = ""
        for prediction, told in self.sentences.get("predictions", {}).items():
            beliefs = {_plain(belief["guess"]): belief["says"] for belief in told["beliefs"]}
            self.prediction(prediction, beliefs, told.get("otherwise", ""))

    def exercise(self, name: str, follows: str = "") -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
        """Make a function the check of exercise ``name``, which the sentences know."""

        def register(examine: Callable[[Any], None]) -> Callable[[Any], None]:
            self.exercises[name] = examine, follows or self.sentences["exercises"][name]["follows"]
            return examine

        return register

    def prediction(self, name: str, beliefs: Mapping[Any, str], otherwise: str = "") -> None:
        """Declare prediction ``name``, with a sentence for each wrong guess that shows a belief. Lists as tuples.

        Any other wrong guess gets ``otherwise``: what to look at.
        """
        self.predictions[name] = {_plain(guess): belief for guess, belief in beliefs.items()}
        self._otherwise[name] = otherwise

    def not_yet(self, key: str, /, **values: Any) -> NotYet:
        """The refusal with the sentence ``key`` of the exercise that is being checked, or of the lesson."""
        exercise = self.sentences.get("exercises", {}).get(self._examined, {})
        says = {**self.sentences.get("says", {}), **exercise.get("says", {})}
        return NotYet(says[key].format(**values))

    def beliefs(self, name: str) -> dict[tuple[str, Any], str]:
        """What a wrong value in a row of the table of exercise ``name`` shows."""
        told = self.sentences["exercises"][name].get("beliefs", [])
        return {(belief["row"], _plain(belief["value"])): belief["says"] for belief in told}

    def title(self, name: str) -> str:
        """The heading of an exercise, or what a prediction is about."""
        kinds = ("exercises", "predictions")
        titles = [self.sentences.get(kind, {}).get(name, {}).get("title") for kind in kinds]
        return next(filter(None, titles), name.replace("-", " "))

    def check(self, name: str, answer: Any) -> None:
        """Show how the answer to exercise ``name`` stands, and why, or what follows; and once what it printed.

        Random state and all that is set in torch stay as they are, and an answer that is an object is left as it is.
        Raises ValueError for a name that no exercise has.
        """
        with listening() as heard:
            verdict = self.judged(name, answer)
        self._tell(name, verdict, heard.told())

    def judged(self, name: str, answer: Any) -> Verdict:
        """What `check` shows."""
        examine, follows = _find(self.exercises, name)
        self._examined = name
        return _verdict(lambda: examine(answer), follows)

    def predict(self, name: str, guess: Any, seen: Any) -> None:
        """Show whether ``guess`` is what was ``seen``, and the belief behind it if it is not. Of a dict the values."""
        self._tell(name, self.guessed(name, guess, seen))

    def guessed(self, name: str, guess: Any, seen: Any) -> Verdict:
        """What `predict` shows."""
        beliefs = _find(self.predictions, name)
        seen = _plain(list(seen.values()) if isinstance(seen, dict) else seen)

        def examine() -> None:
            parts = guess if isinstance(guess, list | tuple) else [guess]
            if all(part is ... for part in parts):
                raise NotAttempted
            if any(part is ... for part in parts):
                raise NotYet("A part of it is still to fill in.")
            try:
                given = _as(seen, _plain(guess))
            except TypeError:
                raise NotYet(f"A guess here is {_form(seen)}; yours is {kind(guess)}.") from None
            belief = next((told for wrong, told in beliefs.items() if wrong == given and _alike(wrong, given)), None)
            if not belief and not _alike(given, seen):
                raise NotYet(f"A guess here is {_form(seen)}; yours is {_told(guess)}.")
            if belief or given != seen:
                why = belief or self._otherwise[name]
                raise NotYet(f"You said {_told(guess)}, the run says {_told(seen)}. {why}".strip())

        return _verdict(examine, "")

    def progress(self) -> None:
        """Show how many exercises and predictions of the lesson are right, and which are not.

        In a learner's copy what was right once counts, also before the kernel was started anew.
        """
        before = progress.standing(self.name)
        standing = {
            name: max(self._standing.get(name, LEAST), before.get(name, LEAST), key=list(MARKS)[::-1].index)
            for name in (*self.predictions, *self.exercises)
        }
        right = list(standing.values()).count("right")
        print(f"{right} of {len(standing)} right")
        for how in ("not yet", "not attempted"):
            if names := [self.title(name) for name, stands in standing.items() if stands == how]:
                print(textwrap.fill(f"{MARKS[how]} {how}: {', '.join(names)}", 88))

    def _tell(self, name: str, verdict: Verdict, printed: str = "") -> None:
        self._standing[name] = verdict.standing
        _show(f"{MARKS[verdict.standing]} {verdict.standing}", self.title(name), verdict, printed)
        if told := progress.record(self.name, name, verdict.standing):
            print(told)


def _verdict(examine: Callable[[], None], follows: str) -> Verdict:
    before = Torch()
    try:
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
            torch.default_generator.manual_seed(0)  # of no other device, as no other is put back
            examine()
        return Verdict("right", follows)
    except NotAttempted:
        return Verdict(LEAST, "")
    except NotYet as reason:
        return Verdict("not yet", str(reason))
    except BaseException as error:  # an answer's own __eq__, forward or the like may raise anything
        if interrupts(error):
            raise
        meant = outcome(error)
        return Verdict("not yet" if isinstance(meant, NotYet) else LEAST, str(meant))
    finally:
        before.put_back()


def _show(mark: str, title: str, verdict: Verdict, printed: str = "") -> None:
    """Print the verdict, and what the answer printed; in a notebook, with air around it and a color.

    What was not attempted is text in any case: JupyterLab shows the first line of a folded output as its source.
    """
    text = "\n".join(filter(None, [f"{mark}: {title}", textwrap.fill(verdict.sentence, 88), printed]))
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if verdict.standing == LEAST or not hasattr(shell, "kernel"):
        print(text)
        return
    from IPython.display import display

    style = f"margin:.8em 0;padding:.3em .8em;border-left:.4em solid {COLORS[verdict.standing]};max-width:88ch"
    told = f"<br>{html.escape(verdict.sentence, quote=False)}" if verdict.sentence else ""
    told += f'<pre style="margin:.4em 0 0">{html.escape(printed, quote=False)}</pre>' if printed else ""
    shown = f'<div style="{style}"><strong>{mark}</strong>: {html.escape(title, quote=False)}{told}</div>'
    display({"text/html": shown, "text/plain": text}, raw=True)


def table(answer: Any, seen: Mapping[str, Any], beliefs: Mapping[tuple[str, Any], str]) -> None:
    """Compare a table that was filled in with what was ``seen``; ``beliefs`` has a sentence for (row, value)."""
    if answer is ...:
        raise NotAttempted
    if not isinstance(answer, dict):
        raise NotYet(f"Keep the table the dict that it was, with its rows; yours is {kind(answer)}.")
    missing, unknown = [row for row in seen if row not in answer], [row for row in answer if row not in seen]
    for told, rows in (("without", missing), ("with", unknown)):
        if rows:
            raise NotYet(f"Keep the rows of the table as they were; yours is {told} {', '.join(map(repr, rows))}.")
    answer = {row: scalar(value) for row, value in answer.items()}
    empty = [row for row, value in answer.items() if _empty(value)]
    if len(empty) == len(seen):
        raise NotAttempted
    if empty:
        raise NotYet(f"Still to fill in: {', '.join(map(repr, empty))}.")
    answer = {row: _as(seen[row], value) for row, value in answer.items()}
    for row, value in answer.items():
        if not (_is_verdict(value) if _is_verdict(seen[row]) else _alike(value, seen[row])):
            verdicts = 'True, False or "raises" (quotes only there)' if RAISES in seen.values() else "True or False"
            form = verdicts if _is_verdict(seen[row]) else _form(seen[row])
            raise NotYet(f"Row {row!r} takes {form}; yours is {_shown(value)}.")
    wrong = [row for row in seen if answer[row] != seen[row]]
    if wrong:
        row = next((row for row in wrong if (row, answer[row]) in beliefs), wrong[0])
        sentence = beliefs.get((row, answer[row]), "Look again.")
        raise NotYet(f"Right in {len(seen) - len(wrong)} of {len(seen)} rows. {row!r}: {sentence}")


def taken(values: Any, what: str, most: int = 10_000) -> list[Any]:
    """The items of ``values`` as a list; `NotYet` if there is nothing to go through, or no end to it."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise NotYet(f"Expected {what}, got {kind(values)}.")
    items = list(islice(values, most + 1))
    if len(items) > most:
        raise NotYet(f"Expected {what}, got {kind(values)} that does not end.")
    return items


def changed(module: torch.nn.Module, before: Mapping[str, Any]) -> str:
    """Which of its `facts` a module has otherwise now than ``before``, or nothing."""
    return next((what for what, values in facts(module).items() if values != before[what]), "")


def facts(module: torch.nn.Module) -> dict[str, list[Any]]:
    """What a function that only reads a module leaves as it is, as values that can be compared."""
    parameters = list(module.parameters())
    return {
        "modes": [part.training for part in module.modules()],
        "flags": [parameter.requires_grad for parameter in parameters],
        "gradients": [None if parameter.grad is None else _content(parameter.grad) for parameter in parameters],
        "numbers": [_content(tensor) for tensor in (*parameters, *module.buffers())],
    }


def _content(tensor: torch.Tensor) -> Any:
    flat = tensor.detach().clone(memory_format=torch.contiguous_format).reshape(-1)  # of a view too: dense
    return tensor.dtype, tensor.shape, flat.view(torch.uint8).numpy().tobytes()


def raises(call: Callable[[], Any]) -> Any:
    """What ``call`` gives, or `RAISES`."""
    try:
        return call()
    except Exception:
        return RAISES


def _find(declared: Mapping[str, Any], name: str) -> Any:
    if name not in declared:
        near = difflib.get_close_matches(str(name), declared, cutoff=0)
        raise ValueError(f"there is no {name!r} in this lesson; nearest: {', '.join(near)}")
    return declared[name]


def _empty(value: Any) -> bool:
    return value is ... or (isinstance(value, list | tuple) and any(part is ... for part in value))


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, bool | int | float | str) else kind(value)


def _form(value: Any) -> str:
    """What a guess has to look like, and nothing of what it is."""
    if isinstance(value, tuple):
        forms = list(map(_form, value))
        if len(set(forms)) == 1 and len(forms) > 2:
            return f"a list of {len(forms)}, each {forms[0]}"
        return f"[{', '.join(forms)}]"
    if isinstance(value, bool):
        return "True or False"
    return "a number" if isinstance(value, int | float) else "a word in quotes" if isinstance(value, str) else "None"


def _as(seen: Any, given: Any) -> Any:
    """``given`` with 0 and 1 as False and True where those are meant."""
    if isinstance(seen, tuple) and isinstance(given, tuple) and len(seen) == len(given):
        return tuple(map(_as, seen, given))
    return bool(given) if _is_verdict(seen) and type(given) in (int, float) and given in (0, 1) else given


def _told(value: Any) -> str:
    """A guess, or what was seen, as one writes it."""
    return f"[{', '.join(map(_told, value))}]" if isinstance(value, list | tuple) else repr(scalar(value))


def _is_verdict(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, str) and value == RAISES)


def _plain(value: Any, depth: int = 3) -> Any:
    """A guess as something that can be compared and looked up. Raises TypeError for anything else."""
    if isinstance(value, list | tuple) and depth:
        return tuple(_plain(part, depth - 1) for part in value)
    value = scalar(value)
    if isinstance(value, bool | int | float | str) or value is None:
        return value.strip().lower() if isinstance(value, str) else value
    raise TypeError(type(value).__name__)


def scalar(value: Any) -> Any:
    """Numbers of NumPy and torch as Python's."""
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value


def _alike(one: Any, other: Any) -> bool:
    """Whether two plain values have the same form: True is no 1, and a list of two is none of three."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_alike, one, other))
    numbers = (int, float)
    return type(one) is type(other) or (type(one) in numbers and type(other) in numbers) or None in (one, other)
