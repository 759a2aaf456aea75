"""Would the lessons notice? Delete or flip one statement of a lesson, run it, and see whether any output changes.

``python -m tests.tools.mutate [FILE ...]`` (``make mutate``) tries 100 mutants of each lesson, drawn by a fixed seed,
and prints those that nothing noticed, with the reason that survivors.toml gives. It fails below 95, and for one without
a reason. Each mutant runs in a fork of a process that has run the cells before it, so torch is imported once; that
needs Linux or macOS.
"""

import ast
import contextlib
import copy
import io
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import tomllib
import traceback
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from tests.tools import lessons, predictions

TRIED, NOTICED, SECONDS = 100, 0.95, 120
REASONS = tomllib.loads(Path(__file__).with_name("survivors.toml").read_text("utf-8"))
FLIPPED = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.GtE,
    ast.Gt: ast.LtE,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


def mutants(source: str) -> Iterator[tuple[str, str]]:
    """Every way to delete or flip one statement: what was done, and the source after it."""
    tree = ast.parse(source)
    for position, node in enumerate(ast.walk(tree)):
        for told, change in _changes(node):
            mutant = copy.deepcopy(tree)
            change(list(ast.walk(mutant))[position])
            yield told, ast.unparse(mutant)


def _changes(node: ast.AST) -> Iterator[tuple[str, Callable[[Any], None]]]:
    for field in ("body", "orelse", "finalbody"):
        block = getattr(node, field, None)
        if isinstance(block, list):
            for number, statement in enumerate(block):
                docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
                if not isinstance(statement, ast.Pass) and not docstring:
                    yield f"deleted: {ast.unparse(statement).splitlines()[0]}", _deletion(field, number)
    for field in ("op", "ops"):
        operator = getattr(node, field, None)
        first = operator[0] if isinstance(operator, list) else operator
        if type(first) in FLIPPED:
            yield f"flipped: {ast.unparse(node).splitlines()[0]}", _flip(field, FLIPPED[type(first)])
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield f"flipped: {node.value}", lambda twin: setattr(twin, "value", not twin.value)


def _deletion(field: str, number: int) -> Callable[[Any], None]:
    return lambda twin: getattr(twin, field).__setitem__(number, ast.Pass())


def _flip(field: str, operator: type) -> Callable[[Any], None]:
    def change(twin):
        if isinstance(getattr(twin, field), list):
            getattr(twin, field)[0] = operator()
        else:
            setattr(twin, field, operator())

    return change


def run(source: str, names: dict) -> str:
    """What the cell prints, and the error it ends with: what nbval compares."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            *before, last = ast.parse(source).body
            exec(compile(ast.Module(before, []), "<cell>", "exec"), names)
            if isinstance(last, ast.Expr):
                if (value := eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)) is not None:
                    print(repr(value))
            else:
                exec(compile(ast.Module([last], []), "<cell>", "exec"), names)
        except BaseException as error:
            printed.write("".join(traceback.format_exception_only(error)))
    return printed.getvalue()


def forked(task) -> object:
    """``task()`` in a fork: what it changes stays there. None if it takes too long or kills its process."""
    near, far = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=lambda: far.send(task()))
    with _kept(tempfile.gettempdir()):
        process.start()
        far.close()
        with contextlib.suppress(EOFError):
            if near.poll(SECONDS):
                result = near.recv()
                process.join()
                return result
        process.kill()
        process.join()
    return None


@contextlib.contextmanager
def _kept(folder: str) -> Iterator[None]:
    """The files in it are afterwards as before: what one mutant saves must not be there for the next."""
    with tempfile.TemporaryDirectory(dir=Path(folder).parent) as copied:
        shutil.copytree(folder, copied, dirs_exist_ok=True)
        yield
        shutil.rmtree(folder)
        shutil.copytree(copied, folder)


def survivors(path: Path) -> tuple[int, list[str]]:
    """How many mutants of the lesson were tried, and those that changed no output, by cell."""
    with tempfile.TemporaryDirectory() as tempfile.tempdir:  # of this process, which runs this lesson only
        return _survivors(path)


def _survivors(path: Path) -> tuple[int, list[str]]:
    notebook = lessons.read(path)["cells"]
    cells = [cell for cell in notebook if cell["cell_type"] == "code"]
    os.chdir(path.parent)
    sources = [*(cell["source"] for cell in cells), predictions.cell(f"judge({lessons.said(notebook)}, 1)")]

    def rest(names: dict, start: int) -> Iterator[str]:
        return (run(source, names) for source in sources[start:])

    # As in a kernel, the lesson is the main module: pickle looks up there what a cell defines.
    sys.modules["__main__"] = types.ModuleType("__main__")
    names = vars(sys.modules["__main__"])
    run(predictions.cell("listen()"), names)
    expected = forked(lambda: list(rest(names, 0)))
    if expected is None:
        raise RuntimeError(f"{path.name}: did not run as it is within {SECONDS} seconds, so nothing can be compared")
    # What the learner writes is left alone: tests/test_exercises.py is for that.
    taught = [at for at, cell in enumerate(cells) if not cell["id"].startswith("answer-")]
    every = [(at, *mutant) for at in taught for mutant in mutants(sources[at]) if mutant[0] != "deleted: guess = ..."]
    chosen = random.Random(0).sample(every, min(TRIED, len(every)))
    unnoticed = []
    for at, source in enumerate(sources):
        for _, told, mutant in (one for one in chosen if one[0] == at):

            def same(mutant=mutant, at=at) -> bool:
                outputs = (output for part in ([run(mutant, names)], rest(names, at + 1)) for output in part)
                return all(one == other for one, other in zip(outputs, expected[at:], strict=True))

            if forked(same):
                unnoticed.append(f"{cells[at]['id']}: {told}")
        run(source, names)
    return len(chosen), unnoticed


def main(files: list[str]) -> int:
    import matplotlib

    matplotlib.use("agg")
    bad = False
    for path in [Path(name).resolve() for name in files] or [
        path for path in lessons.paths() if path.parent == lessons.FOLDER
    ]:
        # A process for each: a lesson may leave another default dtype behind, as lesson 06 does.
        with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as own:
            tried, unnoticed = own.submit(survivors, path).result()
        reasons = REASONS.get(path.stem, {})
        print(f"{path.name}: {tried - len(unnoticed)} of {tried} noticed")
        for one in unnoticed:
            print(f"    {one}\n        {reasons.get(one, 'NO REASON in tests/tools/survivors.toml')}", flush=True)
        bad |= tried - len(unnoticed) < NOTICED * tried or not reasons.keys() >= set(unnoticed)
    return bad


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
