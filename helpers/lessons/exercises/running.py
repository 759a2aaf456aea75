"""Run a learner's answer for a check: what it raises becomes a sentence, and nothing is left behind.

>>> def answer(number):
...     print("looking at", number)
...     torch.set_default_dtype(torch.float64)
...     return number
>>> with listening() as heard:
...     for number in range(3):
...         try:
...             run(answer, number)
...         except NotYet as reason:
...             told = reason
>>> print(told)
Your code leaves torch with another default dtype for all that comes after it. What is set for a while belongs in a \
block, such as with torch.no_grad():
>>> torch.get_default_dtype()
torch.float32
>>> print(heard.told())
Your code was called 3 times. The first time it printed:
  looking at 0
"""

import ast
import contextlib
import dis
import inspect
import io
import os
import re
import sys
import textwrap
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, TracebackType
from typing import Any

import torch

from helpers.lessons import progress
from helpers.lessons.exercises.leftovers import Torch

MOST_LINES, WIDEST = 12, 200
"""How much is shown of what an answer prints."""
DEBUGGERS = {"pdb.py", "cmd.py", "bdb.py", "debugger.py"}
STUB = "raise NotImplementedError"
"""The line with which every answer begins."""


class NotYet(Exception):
    """The answer is not right yet: a sentence on what it shows, and what to look at."""


class NotAttempted(Exception):
    """There is no answer yet."""


def run(answer: Any, *args: Any, **kwargs: Any) -> Any:
    """What the learner's function gives; `NotYet` tells what it raised, and where, or what it leaves behind in torch.

    A bare ``raise NotImplementedError``, with which every answer begins, means that it was not attempted. What the
    learner interrupts is interrupted.
    """
    if answer is ...:
        raise NotAttempted
    if not callable(answer):
        raise NotYet(f"The check takes the function itself, by its name and without parentheses, not {kind(answer)}.")
    heard = _heard[-1] if _heard else None
    before = Torch(*args, *kwargs.values())
    try:
        if heard:
            heard.begin()
        result = answer(*args, **kwargs)
    except BaseException as error:
        before.put_back()
        if heard:
            heard.failed = True
        if isinstance(error, NotYet | NotAttempted) or interrupts(error, answer):
            raise
        raise _refusal(error, answer) from error
    finally:
        if heard:
            heard.end()
    if left := before.put_back():
        raise NotYet(_left_behind(left))
    if inspect.iscoroutine(result):
        result.close()
    if _is_own(answer) and (inspect.iscoroutinefunction(answer) or inspect.isgeneratorfunction(answer)):
        raise NotYet("Your function has not run: with yield or async it waits to be asked. Use return.")
    return result


def attempted(answer: Any) -> None:
    """Raise `NotAttempted` for an answer as the lesson has it, without running it: before something that takes long."""
    values = list(answer.values()) if isinstance(answer, dict) else [answer]
    empty = (value is ... or (isinstance(value, list | tuple) and ... in map(_dots, value)) for value in values)
    if values and all(empty):
        raise NotAttempted
    first = next(iter(_statements(_code(answer))), None)
    if isinstance(first, ast.Raise) and ast.unparse(first) == STUB:
        raise NotAttempted


def _dots(value: Any) -> Any:
    return value if value is ... else None


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
    """Say that the check waits: ``with waiting("Starting two processes")``. Only to who looks on, in their own copy.

    Lessons and solutions are compared as they are published, where nothing of it is printed. Ask `attempted` first: who
    has not answered waits for nothing.
    """
    looks_on = progress.place() is not None
    out = _heard[-1].below if _heard else sys.stdout
    if looks_on:
        print(f"{what}, which takes some seconds ...", end="", file=out, flush=True)
    try:
        yield
    finally:
        if looks_on:
            print(" done.", file=out, flush=True)


class Heard(io.StringIO):
    """What answers print during a check, call by call: the first and the last that printed anything."""

    def __init__(self, below: Any) -> None:
        super().__init__()
        self.below, self.calls, self.failed = below, 0, False
        self.first = self.last = (0, "")

    def write(self, text: str) -> int:
        if Path(sys._getframe(1).f_code.co_filename).name in DEBUGGERS:
            return self.below.write(text)
        return super().write(text)

    def begin(self) -> None:
        self._take(0)
        self.calls += 1

    def end(self) -> None:
        self._take(self.calls)

    def _take(self, call: int) -> None:
        text = self.getvalue()
        if text.strip():
            self.last = call, text
            self.first = self.first if self.first[1] else self.last
        self.seek(0)
        self.truncate()

    def told(self) -> str:
        """What is to be shown of it: of the first call, or of the one that raised an error."""
        self._take(0)
        call, text = self.last if self.failed else self.first
        lines = text.strip("\n").expandtabs().splitlines()
        if not lines:
            return ""
        time = "The first time" if call == 1 else f"In call {call}"
        head = f"Your code was called {self.calls} times. {time} it" if call and self.calls > 1 else "Your code"
        shown = [f"  {textwrap.shorten(line, WIDEST) if len(line) > WIDEST else line}" for line in lines[:MOST_LINES]]
        more = len(lines) - len(shown)
        return "\n".join([f"{head} printed:", *shown, *([f"  ... and {more} lines more"] if more else [])])


_heard: list[Heard] = []


@contextlib.contextmanager
def listening() -> Iterator[Heard]:
    """For the length of a check keep what answers print, to be shown once: ``told()``. A debugger is heard at once."""
    heard = Heard(sys.stdout)
    _heard.append(heard)
    try:
        with contextlib.redirect_stdout(heard):
            yield heard
    finally:
        _heard.remove(heard)


def interrupts(error: BaseException, answer: Any = None) -> bool:
    """Whether the learner stopped the run, and not a line of the answer that raises KeyboardInterrupt itself."""
    if not isinstance(error, KeyboardInterrupt):
        return False
    last, code = _innermost(error), _code(answer)
    if last is None or code is None or last.tb_frame.f_code.co_filename != code.co_filename:
        return True
    return last.tb_frame.f_code.co_code[last.tb_lasti] != dis.opmap["RAISE_VARARGS"]


def outcome(error: BaseException) -> NotYet | NotAttempted:
    """What an error means that came from an answer where no `run` was: in a comparison, a forward, a hook."""
    if isinstance(error, NotImplementedError) and not error.args:
        return NotAttempted()
    return NotYet(f"Looking at your answer raised {short(error)}.")


def _refusal(error: BaseException, answer: Any) -> NotYet | NotAttempted:
    if isinstance(error, NotImplementedError) and not error.args:
        return _stub(error, answer)
    if isinstance(error, RecursionError):
        return NotYet("Your code calls itself, or follows something that contains itself, without an end.")
    if isinstance(error, SystemExit):
        return NotYet(
            f"Your code would end the whole program, by sys.exit() or the like{_line(error, answer)}. Where something "
            "is wrong, raise an error such as ValueError."
        )
    # Raised by the call itself, not in the answer: the arguments do not fit.
    inside = error.__traceback__ and error.__traceback__.tb_next
    hint = "" if inside or not isinstance(error, Exception) else " Keep the arguments that the cell began with."
    return NotYet(f"Your code raised {short(error)}{_line(error, answer)}.{hint}")


def _stub(error: BaseException, answer: Any) -> NotYet | NotAttempted:
    """What a bare NotImplementedError means: nothing yet, unless there is code above it, or torch raised it."""
    last = _innermost(error)
    if last is None:
        return NotAttempted()
    code = last.tb_frame.f_code
    if code.co_filename.startswith(os.path.dirname(torch.__file__)):
        return NotYet(f"Your code raised NotImplementedError{_line(error, answer)}: something there is still to write.")
    first = next(iter(_statements(code)), None)
    if first is None or isinstance(first, ast.Raise):
        return NotAttempted()
    return NotYet(
        f"The line '{STUB}' is still there, line {last.tb_lineno} of your cell, and nothing after it runs. Remove it "
        "when your code is complete."
    )


def _left_behind(left: list[str]) -> str:
    what = ", ".join(left[:3]) + (" and more" if len(left) > 3 else "")
    why = "What is set for a while belongs in a block, such as with torch.no_grad():"
    if left[0].startswith("another ") and "." in left[0]:
        why = "All models share what is changed there. Change the one that you were given, or a copy."
    elif "hook for all" in left[0]:
        why = "A hook that has done its work is taken away by handle.remove()."
    return f"Your code leaves torch with {what} for all that comes after it. {why}"


def _innermost(error: BaseException) -> TracebackType | None:
    last = error.__traceback__
    while last and last.tb_next:
        last = last.tb_next
    return last


def _code(answer: Any) -> CodeType | None:
    """What the learner wrote, below decorators: of a module its forward, of a class its own __init__."""
    is_module = isinstance(answer, torch.nn.Module)
    written = type(answer).forward if is_module else getattr(answer, "__dict__", {}).get("__init__", answer)
    return getattr(inspect.unwrap(written), "__code__", None)


def _statements(code: CodeType | None) -> list[ast.stmt]:
    """What a function does, line by line, but for its docstring and the beginning of every __init__."""
    try:
        function = ast.parse(textwrap.dedent(inspect.getsource(code))).body[0] if code else None
    except (OSError, SyntaxError, TypeError, IndexError):
        return []
    body = function.body if isinstance(function, ast.FunctionDef) else []
    return [one for one in body if not isinstance(one, ast.Pass) and not _says_nothing(one)]


def _says_nothing(statement: ast.stmt) -> bool:
    if not isinstance(statement, ast.Expr):
        return False
    return isinstance(statement.value, ast.Constant) or ast.unparse(statement).startswith("super().__init__(")


def short(error: BaseException) -> str:
    """An error in a sentence."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # torch.load prints in bold
    said = textwrap.shorten(plain.rstrip(". \n"), 150, placeholder=" ...")
    return f"{type(error).__name__}: {said}".rstrip(": ")


def _line(error: BaseException, answer: Any) -> str:
    """Where in the learner's cell: the last line of it on the way to the error."""
    code, frames = _code(answer), traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if code and frame.filename == code.co_filename]
    return f" in line {lines[-1]} of your cell" if lines and _is_own(answer) else ""


def _is_own(answer: Any) -> bool:
    """Whether the learner wrote it: a check may also run a method of torch, or a lambda, on what an answer gave."""
    return (getattr(answer, "__module__", None) or "").partition(".")[0] not in ("torch", "helpers")


def kind(value: Any) -> str:
    """``a list``, ``None``, ``a Linear``, ``the class Net``: how a sentence names what it got."""
    if value is None or value is ...:
        return "None" if value is None else "..."
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
