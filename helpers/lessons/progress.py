"""What a learner has done, in a text file of theirs that survives the kernel.

`record` and `standing` know the file of the learner's folder where they run in the kernel of a notebook there. Anywhere
else, in a script, a test or a notebook of another folder, there is none: nothing is written, and nothing stands.
"""

import contextlib
import datetime
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from helpers.lessons import files

FILE, KEPT = "progress.txt", ".published"
"""The file, and the folder beside it by which the folder is known to be a learner's."""
LOCK = f"{KEPT}/progress.lock"
SOLUTIONS = "solutions"
"""Who runs a solution has not answered."""
HEAD = "Your progress, as check() and predict() saw it: lesson, exercise or guess, verdict, since when."
VERDICTS = ("not yet", "right")
"""What is kept, the better one last. A later one replaces a worse one only: see `record`."""
_MOVED = {
    ("unfreeze_step_by_step", "adapters"): (
        "low-rank-update",
        "checkpoint-behind-a-frozen-part",
        "low-rank-step",
        "reentrant",
        "bfloat16",
    ),
    ("past_one_machine", "sharded"): ("bytes-of-a-step",),
}
RENAMED: Mapping[str, str] = {
    f"{old} {name}": f"{new} {name}" for (old, new), names in _MOVED.items() for name in names
}
"""What has another name now: ``{"requires_grad who-is-asked": "requires_grad who-gets-one"}``."""
_LINE = re.compile(rf"(\S+)\s+(\S+)\s+({'|'.join(VERDICTS)})\s+(\d{{4}}-\d\d-\d\d)")
_told: set[str] = set()


class Entry(NamedTuple):
    verdict: str
    since: str


Entries = dict[tuple[str, str], Entry]
"""By lesson and exercise or prediction."""


def record(lesson: str, name: str, verdict: str) -> str | None:
    """Keep how an exercise or prediction stands. Gives a word to tell the learner, if there is one.

    What was right once stays right, since the day when it first was: an answer is there to be changed and tried again,
    and a list that forgets would make that cost something. So a worse verdict changes nothing, and neither does "not
    attempted", which is how everything stands that is not in the file. The verdict of the run is told in the cell.
    """
    folder = place()
    if folder is None or verdict not in VERDICTS:
        return None
    new: Entries = {_now_called(lesson, name): Entry(verdict, str(datetime.date.today()))}
    try:
        told = add(folder, new)
    except files.Held:
        told = f"Another notebook has {FILE} in its hands: this verdict is not kept. Run the cell again."
    except OSError as error:
        told = f"Your progress is not kept: {FILE} cannot be written ({error.strerror or error})."
    if told is None or told in _told:
        return None
    _told.add(told)
    return told


def standing(lesson: str) -> dict[str, str]:
    """How the exercises and predictions of a lesson stand in the file; those that are not there were not attempted."""
    folder = place()
    entries = kept(folder) if folder else {}
    return {name: entry.verdict for (of, name), entry in entries.items() if of == lesson}


def place() -> Path | None:
    """The learner's folder, if this process is the kernel of one of their notebooks."""
    shell: Any = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if not hasattr(shell, "kernel"):
        return None
    if named := shell.user_ns.get("__vsc_ipynb_file__"):  # by VS Code
        notebook = Path(str(named))
    else:
        # By Jupyter. A kernel that was started from a cell or a terminal, as by a test, inherits the name, and is at
        # work in another folder.
        begun = Path(getattr(shell, "starting_dir", "")).resolve()
        notebook = Path(begun, os.environ.get("JPY_SESSION_NAME", ""))
        if notebook.parent.resolve() != begun:
            return None
    if notebook.suffix != ".ipynb":
        return None
    folder = next((one for one in notebook.resolve().parents if (one / KEPT).is_dir()), None)
    if folder is None or SOLUTIONS in notebook.resolve().relative_to(folder).parts:
        return None
    return folder


def kept(folder: Path) -> Entries:
    """What the file of a folder says; nothing if it cannot be read."""
    try:
        return _parsed(files.read(folder / FILE))[0]
    except OSError:
        return {}


def add(folder: Path, new: Entries) -> str | None:
    """Merge ``new`` into the file of a folder, and tell if that was damaged."""
    if _better(kept(folder), new):
        with files.locked(folder / LOCK, seconds=3):
            return _add(folder, new)
    return None


def _add(folder: Path, new: Entries) -> str | None:
    path, told = folder / FILE, None
    entries, whole = _parsed(files.read(path))
    if not whole:
        told = f"{FILE} could not be read in full: it is now {files.set_aside(path, 'damaged')}, and was begun anew."
    entries |= _better(entries, new)
    lessons = list(dict.fromkeys(lesson for lesson, _ in entries))
    rows = [(*what, *entry) for what, entry in sorted(entries.items(), key=lambda item: lessons.index(item[0][0]))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    files.write(path, "\n".join([HEAD, *lines, ""]).encode())
    with contextlib.suppress(Exception):  # the page says it once more, and can wait for the next start
        from helpers.lessons import overview

        overview.refresh(folder)
    return told


def _parsed(text: bytes | None) -> tuple[Entries, bool]:
    """What can be read, and whether that is all."""
    entries: Entries = {}
    lines = [line.strip() for line in (text or b"").decode(errors="replace").lstrip("\ufeff").splitlines()]
    whole = not lines or lines[0].startswith(HEAD.partition(",")[0])
    found = [_LINE.fullmatch(line) for line in lines[whole:] if line]
    for one in filter(None, found):
        what, entry = _now_called(one[1], one[2]), Entry(one[3], one[4])
        entries |= _better(entries, {what: entry})
    return entries, whole and None not in found


def _better(entries: Entries, new: Entries) -> Entries:
    """Those of ``new`` that change what there is."""
    rank = {what: VERDICTS.index(entry.verdict) for what, entry in entries.items()}
    return {what: entry for what, entry in new.items() if VERDICTS.index(entry.verdict) > rank.get(what, -1)}


def _now_called(lesson: str, name: str) -> tuple[str, str]:
    lesson, _, name = RENAMED.get(f"{lesson} {name}", f"{lesson} {name}").partition(" ")
    return lesson, name
