"""What pytest needs everywhere, and what nbval lacks.

Broken files, dead kernels, stale pictures and what came on stderr are named, and predictions run again and judged.
"""

import atexit
import base64
import gc
import io
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from queue import Empty

import nbformat
import nbval.kernel
import pytest
from nbval.kernel import RunningKernel
from nbval.plugin import IPyNbCell, IPyNbFile, NbCellError
from PIL import Image, ImageChops
from xdist.scheduler import LoadScopeScheduling

from tests.tools import lessons, predictions

# It lays out every message for a log, read or not: half of nbval's own time.
nbval.kernel.pformat = str


class KernelDied(Exception):
    pass


def get_message(kernel, stream, timeout, wait=RunningKernel.get_message):
    """The next message. nbval waits the whole timeout for a dead kernel; this looks every second whether it lives."""
    end = time.monotonic() + timeout
    while True:
        try:
            return wait(kernel, stream, min(1, max(0, end - time.monotonic())))
        except Empty:
            if not kernel.is_alive():
                raise KernelDied from None
            if time.monotonic() >= end:
                raise


RunningKernel.get_message = get_message


def pytest_configure(config):
    """One folder for what kernels and tests leave, however they end. It goes when pytest does.

    Kernels leave the home folder alone, and run no startup file that is kept there.
    """
    if not hasattr(config, "workerinput"):  # xdist's workers have this process' folder
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())  # tmp_path stays, to be looked at
        folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        atexit.register(folder.cleanup)  # after multiprocessing has taken its own out of it
        os.environ["TMPDIR"] = tempfile.tempdir = folder.name
        os.environ["IPYTHONDIR"] = f"{folder.name}/ipython"
        os.environ["JUPYTER_RUNTIME_DIR"] = f"{folder.name}/runtime"


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """Name a file that is no notebook of format 4 in one line; nbformat mends some, and tells of others at length.

    What a module of tests draws when it is imported, such as the weights of a layer, is the same in each process.
    """
    if isinstance(collector, pytest.Module):
        import numpy.random  # noqa: F401 - here, as a run of notebooks need not wait for them
        import torch  # noqa: F401

        seed()
    report = yield
    if isinstance(collector, IPyNbFile):
        try:
            lessons.read(collector.path)
        except ValueError as error:
            report.outcome, report.longrepr, report.result = "failed", str(error), []
        else:
            report.result = list(with_predictions(report.result))
    return report


def with_predictions(items):
    """The cells of a notebook, its predictions run again at once and after the end, and then judged."""
    again = [item for item in items if lessons.PREDICTS.search(item.cell.source)]

    def more(item, when, cell):
        name = f"{item.name}, {when}"
        return IPyNbCell.from_parent(item.parent, name=name, cell_num=item.cell_num, cell=cell, options=item.options)

    def silent(call):
        return nbformat.v4.new_code_cell(predictions.cell(call), execution_count=1)

    for item in items:
        if item in again[:1]:
            yield more(item, "before it", silent("listen()"))
        yield item
        if item in again:
            yield more(item, "again", item.cell)
    for item in again:
        yield more(item, "after the end", item.cell)
    for item in again[:1]:
        yield more(item, "judged with those that follow", silent(f"judge({lessons.said(item.parent.nb.cells)}, 3)"))


def pytest_collection_finish():
    """What is imported stays to the end, so that the garbage collector need not look through all of it again."""
    gc.freeze()


def pytest_xdist_auto_num_workers(config):
    """None for a single file, whose tests stay on one worker anyway: starting it would take longer than a lesson."""
    return 0 if len(config.args) == 1 and Path(config.args[0].partition("::")[0]).is_file() else 2


class ByLesson(LoadScopeScheduling):
    """A notebook, or a module of tests, stays on one worker; that of the exercises, the longest, is split by lesson."""

    def _split_scope(self, nodeid):
        lesson = re.match(r"(?:\S*/)?test_exercises\.py::.*\[([a-z_]+)", nodeid)
        return f"exercises of {lesson[1]}" if lesson else super()._split_scope(nodeid)


def pytest_xdist_make_scheduler(config, log):
    return ByLesson(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """The same random numbers for a test in whatever order the workers take them, so that none fails by luck."""
    seed()


def seed():
    random.seed(0)
    for module, function in (("numpy.random", "seed"), ("torch", "manual_seed")):
        if module in sys.modules:
            getattr(sys.modules[module], function)(0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Name the cell in which the kernel died (those below it are expected to fail), and notice a stale picture.

    A picture is compared wherever the matplotlib and FreeType at work are those that drew the stored one.
    """
    try:
        result = yield
    except KernelDied:
        item.parent.timed_out = True
        item.raise_cell_error("The kernel died in this cell.")
    except NbCellError as error:
        # Of an output that should not be there nbval says only that it is called stderr.
        told = "".join(output.text for output in item.test_outputs or () if output.get("name") == "stderr")
        error.inner_traceback = "\nstderr:\n".join(filter(None, [error.inner_traceback, told]))
        raise
    if isinstance(item, IPyNbCell):
        stored, drawn = pictures(item.cell.outputs), pictures(item.test_outputs)
        # How many there are is compared by nbval, through their words.
        for old, new in zip(stored, drawn, strict=False):
            if old.info.get("Software") == new.info.get("Software") and differ(old, new):
                item.raise_cell_error("The stored picture is stale: it is not the one drawn now. Run 'make save'.")
    return result


def differ(old, new):
    """Numbers that differ in the last digit, as between processors, shade a pixel by one level of 255: allow a few."""
    levels = ImageChops.difference(old.convert("RGB"), new.convert("RGB")).getextrema()
    return old.size != new.size or max(high for _, high in levels) > 4


def pictures(outputs):
    found = [output.get("data", {}).get("image/png") for output in outputs]
    return [Image.open(io.BytesIO(base64.b64decode(png))) for png in found if png]


@pytest.fixture
def full_disk():
    """No file can grow beyond 100 kB. As on a full disk, what was written before the error stays."""
    resource = pytest.importorskip("resource", reason="this system cannot limit the size of files")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture
def killed():
    """Run code in a process that is killed when it has written a new file and would put it in the old one's place."""

    def run(code, imports):
        kill = "import os, signal; os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)"
        done = subprocess.run([sys.executable, "-c", f"{imports}\n{kill}\n{code}"], capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr

    return run
