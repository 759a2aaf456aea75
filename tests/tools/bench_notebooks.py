"""What it takes to verify the lessons again, beside other tools: ``python -m tests.tools.bench_notebooks [FILE ...]``.

The bound is what cannot be saved: all code cells in one plain process, torch imported before the clock starts. CPU
seconds count every process, on one thread each. The other tools come with the extra ``bench``; none compares outputs.
Linux only.
"""

import contextlib
import ctypes
import io
import os
import resource
import subprocess
import sys
import tempfile
import time
import types
from importlib.util import find_spec
from pathlib import Path

from tests.tools import lessons

ROOT = Path(__file__).parents[2]
CHILD_SUBREAPER = 36  # of <sys/prctl.h>: also kernels that their tool left behind are waited for, and counted
PAPERMILL = """if True:
    import contextlib, sys, papermill
    for number, path in enumerate(sys.argv[2:]):
        with contextlib.suppress(papermill.PapermillExecutionError):  # after the last cell: the errors that are meant
            papermill.execute_notebook(path, f"{sys.argv[1]}/{number}.ipynb", cwd=path[: path.rindex("/")])
"""


def plain(paths):
    """Run every code cell here, each notebook in a namespace of its own; print wall and CPU seconds, then torch's."""
    os.environ["MPLBACKEND"] = "agg"
    notebooks = {path: lessons.read(path)["cells"] for path in paths}
    before = time.perf_counter(), time.process_time()
    import torch

    start = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for path, cells in notebooks.items():
            os.chdir(path.parent)
            torch.set_default_dtype(torch.float32)  # the lesson before may have left another
            # As in a kernel, the lesson is the main module: pickle looks up there what a cell defines.
            sys.modules["__main__"] = types.ModuleType("__main__")
            for cell in cells:
                if cell["cell_type"] == "code":
                    fails = "raises-exception" in cell["metadata"].get("tags", [])
                    with contextlib.suppress(Exception) if fails else contextlib.nullcontext():
                        exec(compile(cell["source"], cell["id"], "exec"), vars(sys.modules["__main__"]))
    print(time.perf_counter() - start[0], time.process_time() - start[1], start[0] - before[0], start[1] - before[1])


def measured(*command, module=None):
    """Wall and CPU seconds of a command and of all that it starts, and what it printed; a sentence if it failed."""
    if module and not find_spec(module):
        return f"not installed: {module}"
    variables = os.environ | {"OMP_NUM_THREADS": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    done = subprocess.run([*map(str, command)], cwd=ROOT, env=variables, capture_output=True, text=True)
    wall = time.perf_counter() - start
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        return f"failed: {(done.stdout + done.stderr).strip().splitlines()[-1]}"
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def bounds(paths):
    """The wall and CPU seconds of the cells alone, and with the import of torch."""
    code = (
        f"from tests.tools.bench_notebooks import Path, plain; plain([Path(name) for name in {list(map(str, paths))}])"
    )
    result = measured(sys.executable, "-c", code)
    if isinstance(result, str):
        sys.exit(f"The cells do not run in one plain process: {result}")
    wall, cpu, *torch = map(float, result[-1].split())
    return (wall, cpu), (wall + torch[0], cpu + torch[1])


def suite(paths):
    """Rows of a tool, its wall and CPU seconds, both over the bound, and whether it compares outputs."""
    pytest = [sys.executable, "-m", "pytest", "-q"]
    nbconvert = [sys.executable, "-m", "nbconvert", "--execute", "--to=notebook"]
    alone, whole = bounds(paths)
    with tempfile.TemporaryDirectory() as folder:
        tools = {
            "the cells, torch already imported": ((*alone, ""), ""),
            "the same, with import torch": ((*whole, ""), ""),
            "make quick": (measured(*pytest, "-p", "tests.tools.fast", *paths), "yes"),
            "make test: nbval -n 2": (measured(*pytest, *paths), "yes"),
            "nbval": (measured(*pytest, "-n", 0, *paths), "yes"),
            "nbmake": (measured(*pytest, "-c", os.devnull, "--nbmake", *paths, module="nbmake"), "no"),
            "nbconvert --execute": (measured(*nbconvert, f"--output-dir={folder}", *paths), "no"),
            "papermill": (measured(sys.executable, "-c", PAPERMILL, folder, *paths, module="papermill"), "no"),
        }
    for name, (result, compares) in tools.items():
        if isinstance(result, str):
            yield name, result
        else:
            wall, cpu, _ = result
            yield name, f"{wall:.1f}", f"{cpu:.1f}", f"{wall / alone[0]:.2f}", f"{cpu / alone[1]:.2f}", compares


def single(path):
    """A row: the wall seconds that one lesson takes by each of two targets, and what it may take by either bound."""
    (alone, _), (whole, _) = bounds([path])
    told = []
    for target in ("quick", "test"):
        result = measured("make", target, f"ARGS={path} -q")
        told.append(result if isinstance(result, str) else f"{result[0]:.1f}")
    return path.stem, f"{alone:.1f}", f"{1.3 * alone + 2:.1f}", f"{1.3 * whole + 2:.1f}", *told


def gates():
    """Rows: the wall seconds of plain nbval for all notebooks, of what a change has to pass, and how often that is.

    Plain nbval runs before and after, and its mean is what counts: no machine is equally fast for half an hour.
    """
    plain = "--noconftest", "-c", os.devnull, "--nbval", "--nbval-current-env", "-n", 2, "--dist", "loadscope"
    nbval = sys.executable, "-m", "pytest", "-q", *plain, *lessons.paths()
    results = {
        "plain nbval -n 2, before": measured(*nbval),
        "make test": measured("make", "test"),
        "make stable": measured("make", "stable"),
        "plain nbval -n 2, after": measured(*nbval),
    }
    if failed := [f"{name}: {result}" for name, result in results.items() if isinstance(result, str)]:
        sys.exit("\n".join(failed))
    seconds = {name: wall for name, (wall, *_) in results.items()}
    mean = (seconds["plain nbval -n 2, before"] + seconds["plain nbval -n 2, after"]) / 2
    seconds["make stable and make test, as .ci/run"] = seconds["make stable"] + seconds["make test"]
    for name, wall in seconds.items():
        yield name, f"{wall:.0f}", f"{wall / mean:.2f}"


def main(names):
    from tests.tools.bench import show  # here, as it imports torch, which the bound times

    ctypes.CDLL(None).prctl(CHILD_SUBREAPER, 1)
    paths = [Path(name).resolve() for name in names] or lessons.paths()
    head = [f"{len(paths)} notebooks", "wall s", "CPU s", "wall / bound", "CPU / bound", "compares outputs"]
    show(head, [*suite(paths)])
    head = ["one lesson, wall s", "bound", "1.3 bound + 2", "with import torch", "make quick", "make test"]
    show(head, [single(path) for path in paths if path.parent == lessons.FOLDER])
    if not names:
        ctypes.CDLL(None).prctl(CHILD_SUBREAPER, 0)  # a test waits until what it left behind is gone
        show(["what a change has to pass", "wall s", "/ plain nbval"], [*gates()])


if __name__ == "__main__":
    main(sys.argv[1:])
