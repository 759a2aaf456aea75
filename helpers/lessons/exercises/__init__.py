"""What answers to the exercises and predictions of the lessons show: right, or the misconception behind them.

Each lesson has a module of its own here, which gives its notebook ``check``, ``predict`` and ``progress``. A new check
is a function that looks at an answer's behavior and raises `NotYet` with a sentence for the learner:

>>> lesson = Lesson()
>>> @lesson.exercise("double", follows="Every result below follows from it.")
... def double(answer):
...     got = run(answer, 3)
...     if got == 9:
...         raise NotYet("That is the square: both agree for 2, not for 3.")
...     if got != 6:
...         raise NotYet(f"For 3 it gives {got!r}.")
>>> def answer(number):
...     raise NotImplementedError
>>> lesson.check("double", answer)
double: not attempted
>>> lesson.check("double", lambda number: number**2)
double: not yet
That is the square: both agree for 2, not for 3.
>>> lesson.check("double", lambda number: number + number)
double: right
Every result below follows from it.
>>> lesson.progress()
1 of 1 right
"""

import difflib
import inspect
import textwrap
import traceback
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any

import torch

RAISES = "raises"
"""What a table says of a line that raises an error."""


class NotYet(Exception):
    """The answer is not right yet: a sentence on what it shows, and what to look at."""


class NotAttempted(Exception):
    """There is no answer yet."""


class Lesson:
    """The exercises and predictions of one lesson, and how they stand in the running kernel."""

    def __init__(self) -> None:
        self.exercises: dict[str, tuple[Callable[[Any], None], str]] = {}
        self.predictions: dict[str, dict[Any, str]] = {}
        self._otherwise: dict[str, str] = {}
        self._standing: dict[str, str] = {}

    def exercise(self, name: str, follows: str) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
        """Make a function the check of exercise ``name``; ``follows`` is what a learner with a right answer reads."""

        def register(examine: Callable[[Any], None]) -> Callable[[Any], None]:
            self.exercises[name] = examine, follows
            return examine

        return register

    def prediction(self, name: str, beliefs: Mapping[Any, str], otherwise: str = "") -> None:
        """Declare prediction ``name``, with a sentence for each wrong guess that shows a belief. Lists as tuples.

        Any other wrong guess gets ``otherwise``: what to look at.
        """
        self.predictions[name] = {_plain(guess): belief for guess, belief in beliefs.items()}
        self._otherwise[name] = otherwise

    def check(self, name: str, answer: Any) -> None:
        """Print in a line how the answer to exercise ``name`` stands, and in a sentence why, or what follows.

        Random state and gradient mode stay as they are, and an answer that is an object is left as it is. Raises
        ValueError for a name that no exercise has.
        """
        examine, follows = _find(self.exercises, name)
        self._tell(name, lambda: examine(answer), follows)

    def predict(self, name: str, guess: Any, seen: Any) -> None:
        """Print whether ``guess`` is what was ``seen``, and the belief behind it if it is not. Of a dict the values."""
        beliefs = _find(self.predictions, name)
        seen = list(seen.values()) if isinstance(seen, dict) else seen

        def examine() -> None:
            parts = guess if isinstance(guess, list | tuple) else [guess]
            if all(part is ... for part in parts):
                raise NotAttempted
            if any(part is ... for part in parts):
                raise NotYet("A part of it is still to fill in.")
            try:
                given = _plain(guess)
            except TypeError:
                raise NotYet(f"A guess has the form of {seen!r}; yours is {kind(guess)}.") from None
            belief = next((told for wrong, told in beliefs.items() if wrong == given and _alike(wrong, given)), None)
            if not belief and not _alike(given, _plain(seen)):
                raise NotYet(f"Your guess {guess!r} has not the form of what was seen: {seen!r}.")
            if belief or given != _plain(seen):
                why = belief or self._otherwise[name]
                raise NotYet(f"You said {guess!r}, the run says {seen!r}. {why}".strip())

        self._tell(name, examine, "")

    def progress(self) -> None:
        """Print how many exercises and predictions of the lesson are right. It is kept in this kernel only."""
        names = [*self.predictions, *self.exercises]
        standing = [self._standing.get(name, "not attempted") for name in names]
        others = [f"{n} {how}" for how in ("not yet", "not attempted") if (n := standing.count(how))]
        print(", ".join([f"{standing.count('right')} of {len(names)} right", *others]))

    def _tell(self, name: str, examine: Callable[[], None], follows: str) -> None:
        before = _settings()
        try:
            with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
                torch.manual_seed(0)
                examine()
            standing, sentence = "right", follows
        except NotAttempted:
            standing, sentence = "not attempted", ""
        except NotYet as reason:
            standing, sentence = "not yet", str(reason)
        except Exception as error:  # an answer's own __eq__, forward or the like may raise anything
            unwritten = isinstance(error, NotImplementedError) and not error.args
            standing, sentence = "not yet", f"Looking at your answer raised {_short(error)}."
            if unwritten:
                standing, sentence = "not attempted", ""
        finally:
            _restore(before)
        self._standing[name] = standing
        print(f"{name}: {standing}")
        if sentence:
            print(textwrap.fill(sentence, 88))


def run(answer: Any, *args: Any, **kwargs: Any) -> Any:
    """What the learner's function gives; `NotYet` tells what it raised, and where.

    A bare ``raise NotImplementedError``, with which every answer begins, means that it was not attempted.
    """
    if answer is ...:
        raise NotAttempted
    if not callable(answer):
        raise NotYet(f"The check takes the function itself, by its name and without parentheses, not {kind(answer)}.")
    before = _settings()
    try:
        result = answer(*args, **kwargs)
    except NotImplementedError as error:
        if not error.args:
            raise NotAttempted from None
        raise NotYet(f"Your code raised {_short(error)}{_line(error, answer)}.") from error
    except (NotYet, NotAttempted):
        raise
    except RecursionError as error:
        raise NotYet("Your code calls itself, or follows something that contains itself, without an end.") from error
    except Exception as error:
        # Raised by the call itself, not in the answer: the arguments do not fit.
        hint = (
            ""
            if error.__traceback__ and error.__traceback__.tb_next
            else " Keep the arguments that the cell began with."
        )
        raise NotYet(f"Your code raised {_short(error)}{_line(error, answer)}.{hint}") from error
    left = [name for name, value in _settings().items() if value != before[name]]
    _restore(before)
    if left:
        raise NotYet(
            f"Your code leaves torch with another {left[0]} for all that comes after it. What is set for a while "
            "belongs in a block, such as with torch.no_grad():"
        )
    if inspect.iscoroutine(result):
        result.close()
    if _is_own(answer) and (inspect.iscoroutinefunction(answer) or inspect.isgeneratorfunction(answer)):
        raise NotYet("Your function has not run: with yield or async it waits to be asked. Use return.")
    return result


def _settings() -> dict[str, Any]:
    """What an answer could leave changed for everything after it."""
    return {
        "gradient mode": torch.is_grad_enabled(),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.empty(0).device,  # get_default_device() raises in 2.9 once None was set
        "anomaly mode": torch.is_anomaly_enabled(),
    }


def _restore(settings: dict[str, Any]) -> None:
    torch.set_grad_enabled(settings["gradient mode"])
    torch.set_default_dtype(settings["default dtype"])
    torch.autograd.set_detect_anomaly(settings["anomaly mode"])
    if torch.empty(0).device != settings["default device"]:
        # None is the CPU without the mode that a default device is, which sees every call.
        torch.set_default_device(None if settings["default device"].type == "cpu" else settings["default device"])


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
        "gradients": [None if parameter.grad is None else parameter.grad.tolist() for parameter in parameters],
        "numbers": [tensor.tolist() for tensor in (*parameters, *module.buffers())],
    }


def raises(call: Callable[[], Any]) -> Any:
    """What ``call`` gives, or `RAISES`."""
    try:
        return call()
    except Exception:
        return RAISES


def kind(value: Any) -> str:
    """``a list``, ``None``, ``a Linear``, ``the class Net``: how a sentence names what it got."""
    if value is None or value is ...:
        return "None" if value is None else "..."
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


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
    return "a number" if isinstance(value, int | float) else kind(value)


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


def _short(error: Exception) -> str:
    said = textwrap.shorten(str(error).rstrip(". \n"), 150, placeholder=" ...")
    return f"{type(error).__name__}: {said}".rstrip(": ")


def _line(error: Exception, answer: Any) -> str:
    """Where in the learner's cell: the last line of it on the way to the error."""
    # What the learner wrote: of a module its forward, of a class its own __init__.
    is_module = isinstance(answer, torch.nn.Module)
    written = type(answer).forward if is_module else getattr(answer, "__dict__", {}).get("__init__", answer)
    code = getattr(written, "__code__", None)
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if code and frame.filename == code.co_filename]
    return f" in line {lines[-1]} of your cell" if lines and _is_own(answer) else ""


def _is_own(answer: Any) -> bool:
    """Whether the learner wrote it: a check may also run a method of torch, or a lambda, on what an answer gave."""
    return (getattr(answer, "__module__", None) or "").partition(".")[0] not in ("torch", "helpers")
