"""Errors that a lesson means to show: one line in a running notebook, as it is stored; all others as ever."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def install() -> None:
    """From the next cell on, a published cell that is meant to raise shows its error in one line.

    That is a cell with the tag ``raises-exception``, its source unchanged, that raises the kind of error it is stored
    with. Any other error keeps its traceback, and what the kernel replies is the same for all. Does nothing outside
    IPython, and nothing a second time.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    # The one method through which all errors come, and which shells of other front ends have made their own.
    shown: Callable[[type, BaseException, list[str]], None] | None = getattr(shell, "_showtraceback", None)
    if shell is None or shown is None or getattr(shown, "__module__", "") == __name__:
        return
    running = ""

    def begin(info: Any) -> None:
        nonlocal running
        running = info.raw_cell or ""

    def show(kind: type, error: BaseException, traceback: list[str]) -> None:
        from helpers.lessons import lab  # nobody needs it before an error

        meant = (running.strip(), kind.__name__) in _meant(lab.published())
        shown(kind, error, [f"{kind.__name__}: {error}"] if meant else traceback)

    shell.events.register("pre_run_cell", begin)
    shell._showtraceback = show


@functools.cache
def _meant(folder: Path) -> set[tuple[str, str]]:
    """The source of each published cell that is meant to raise, with the kind of error."""
    from helpers.lessons import merging

    notebooks = [merging.parsed(path.read_bytes()) or {"cells": []} for path in folder.rglob("[!.]*.ipynb")]
    return {
        (cell["source"].strip(), output["ename"])
        for notebook in notebooks
        for cell in notebook["cells"]
        if "raises-exception" in cell["metadata"].get("tags", [])
        for output in cell.get("outputs", [])
        if output["output_type"] == "error"
    }
