"""A learner's own copy of the lessons, in a folder of theirs, and JupyterLab opened on it.

``python -m helpers.lessons.lab [FOLDER] [options of JupyterLab]`` makes the folder at the first start. Later starts
bring its lessons up to date and keep every line of the learner. Of each published file the version that the copy was
made from is kept in the folder, so that `helpers.lessons.merging` can tell the learner's changes from ours. Whatever
finds no place is put aside beside the lesson, whole.
"""

import argparse
import contextlib
import copy
import datetime
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from helpers.lessons import merging

COMMAND = "python -m helpers.lessons.lab"
FOLDER, START = "gradient-lessons", "START.md"
KEPT, BASES = ".published", ".published/lessons"
OVERRIDES = "labconfig/default_setting_overrides.json"
"""Where JupyterLab looks, in each folder of configuration, for defaults below the user's settings."""
SETTINGS: dict[str, dict[str, Any]] = {
    # All cells in the page, so that a link finds its section; Markdown to read, not to edit; no news from the network;
    # room for the lessons' names.
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
    "@jupyterlab/docmanager-extension:plugin": {"defaultViewers": {"markdown": "Markdown Preview"}},
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/filebrowser-extension:browser": {"showLastModifiedColumn": False},
}
ASIDE = {
    "aside": "cells that found no place when the lesson was brought up to date, each whole, with the reason",
    "before": "a whole file of yours, as it was before a newer one took its name",
    "fresh": "the lesson as it is published, because your file of that name cannot be read",
}
"""What a file beside a lesson is, by the word before the ending of its name."""


class Refused(Exception):
    """The copy is left as it is: a sentence on why, and what to do."""


def published() -> Path:
    """The lessons as they are published: within the package where it was installed, else in this checkout."""
    installed = Path(__file__).parent / "notebooks"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "notebooks"


def update(folder: Path, fresh: str | None = None, source: Path | None = None) -> list[str]:
    """Make the copy in ``folder``, or bring it up to date from ``source``; ``fresh`` names a lesson to begin anew.

    Gives what is to be told. Each file is written whole or not at all, and the version it was made from after it, so
    the next start ends what was interrupted. Raises `Refused`, or ``OSError`` where the folder cannot be written.
    """
    source = source or published()
    if _in_checkout(folder):
        raise Refused(f"{folder} belongs to a checkout of the project. Name a folder for your copy: {COMMAND} FOLDER")
    names = [path.relative_to(source).as_posix() for path in sorted(source.rglob("*")) if path.is_file()]
    names = [name for name in names if not re.search(r"(^|/)[.]", name)]
    (folder / KEPT).mkdir(parents=True, exist_ok=True)
    with _locked(folder / KEPT / "lock"):
        if server := running(folder):
            raise Refused(f"JupyterLab is open on {folder}, so it is not brought up to date. Use it at {server}")
        told = list(_renamed(folder, source, names))
        if fresh:
            told.append(_begun_anew(folder, source, fresh))
        for name in names:
            told += _brought(folder, source, name)
        _write(folder / KEPT / OVERRIDES, json.dumps(_settings(), indent=1).encode())
        told += _brought(folder, source, START, _start_page(folder, source).encode())
    return told


def _in_checkout(folder: Path) -> bool:
    """Whether the folder is a checkout of the project, or a part of one that is no learner's copy."""
    place = folder.resolve()
    whole, *parents = ((one / "helpers" / "lessons" / "lab.py").exists() for one in (place, *place.parents))
    used = place.is_dir() and any(place.iterdir()) and not (place / KEPT).exists()
    return whole or (any(parents) and used)


def _brought(folder: Path, source: Path, name: str, text: bytes | None = None) -> Iterator[str]:
    """Bring one file up to date, and tell what there is to tell."""
    mine, base = folder / name, folder / BASES / name
    new = (source / name).read_bytes() if text is None else text
    have, was = _read(mine), _read(base)
    notebook, published = (merging.parsed(part) if name.endswith(".ipynb") else None for part in (have, new))
    if have is None or have == was:
        _write(mine, new)
    elif published and not notebook:
        beside = mine.with_suffix(".fresh.ipynb")
        if not beside.exists():
            _write(beside, new)
        yield f"{name} of yours is no notebook that can be read, and is left as it is. A fresh one is {beside.name}"
        return
    elif published and notebook and was != new:
        # Without the version that it was made from, what differs is taken for theirs.
        merged, cells = merging.merge(merging.parsed(was) or published, notebook, published)
        if cells:
            yield f"{name}: cells put aside, with the reasons, in {_put_aside(mine, cells)}: {len(cells)}"
        if merged != notebook:
            _write(mine, merging.written(merged))
    elif not published and was != new and have != new:
        yield f"{name}: yours is now {_set_aside(mine)}"
        _write(mine, new)
    _write(base, new)


def _renamed(folder: Path, source: Path, names: list[str]) -> Iterator[str]:
    """Take what is published under another name, or no longer, out of the way."""
    kept = folder / BASES
    for base in sorted(path for path in kept.rglob("*") if path.is_file() and path.suffix != ".saving"):
        name = base.relative_to(kept).as_posix()
        if name in names or name == START:
            continue
        mine, was = folder / name, merging.parsed(base.read_bytes())
        others = [other for other in names if Path(other).parent == Path(name).parent and not (kept / other).exists()]
        alike = [(_alike(was, source / other, name), other) for other in others if was]
        share, other = max(alike, default=(0, ""))
        if share >= 0.5:
            if mine.exists():
                if (folder / other).exists():
                    yield f"{other}: yours is now {_set_aside(folder / other)}"
                os.replace(mine, folder / other)
                yield f"{name} is now {other}, with all that you wrote"
            (kept / other).parent.mkdir(parents=True, exist_ok=True)
            os.replace(base, kept / other)
        else:
            have = _read(mine)
            theirs = have is not None and merging.parsed(have)
            if have is not None and have != base.read_bytes() and not (was and theirs and merging.same(was, theirs)):
                yield f"{name} is no longer among the lessons: yours is now {_set_aside(mine)}"
            else:
                mine.unlink(missing_ok=True)
            base.unlink()


def _alike(was: dict[str, Any], new: Path, name: str) -> float:
    """How many of a lesson's cells another one has; all if only its number differs."""
    if new.suffix != ".ipynb" or new.stem.partition("_")[2] == Path(name).stem.partition("_")[2]:
        return float(new.suffix == ".ipynb")
    ids = [
        {cell.get("id") for cell in notebook["cells"]} for notebook in (was, merging.parsed(new.read_bytes()) or was)
    ]
    return len(ids[0] & ids[1]) / max(1, len(ids[0]))


def _begun_anew(folder: Path, source: Path, lesson: str) -> str:
    """Put the learner's notebook of a lesson aside; it is then made as at the first start."""
    found = [path for path in source.glob("*.ipynb") if lesson in (path.name, path.stem, path.stem.partition("_")[0])]
    if len(found) != 1:
        lessons = ", ".join(sorted(path.stem for path in source.glob("*.ipynb")))
        raise Refused(f"No lesson is called {lesson!r}. Name one by its number: --fresh 03. There are {lessons}")
    mine = folder / found[0].name
    if not mine.exists():
        return f"{mine.name} is begun anew"
    return f"{mine.name} is begun anew; yours is now {_set_aside(mine)}"


def _set_aside(path: Path) -> str:
    """Give a file of theirs another name, which this returns."""
    names = (path.with_suffix(f".before{n}{path.suffix}") for n in ["", *(f"-{n}" for n in range(2, 10_000))])
    new = next(name for name in names if not name.exists())
    os.replace(path, new)
    return new.name


def _put_aside(lesson: Path, cells: list[tuple[merging.Cell, str]]) -> str:
    """Add cells to the notebook beside the lesson that keeps such, unless they are there."""
    path = lesson.with_suffix(".aside.ipynb")
    text = _read(path)
    notebook = merging.parsed(text)
    if text and notebook is None:
        _set_aside(path)
    notebook = notebook or {"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    there = {cell["source"] for cell in notebook["cells"]}
    for cell, why in cells:
        if cell["source"] not in there:
            says = f"**`{cell['id']}`**, {datetime.date.today()}. {why}"
            notebook["cells"] += [merging.new_cell({"cell_type": "markdown", "source": says}), merging.new_cell(cell)]
    _write(path, merging.written(notebook))
    return path.name


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _write(path: Path, text: bytes) -> None:
    """Write a file whole or not at all, unless it is that already."""
    if _read(path) == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".saving")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text)
        os.chmod(name, path.stat().st_mode if path.exists() else 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Wait until no other start is at work in the folder. The system frees the lock of a process that ends."""
    with path.open("ab") as file:
        for _ in range(300):
            try:
                _lock(file.fileno())
            except (BlockingIOError, PermissionError):
                time.sleep(0.1)
                continue
            except OSError:  # a file system that has no locks
                pass
            break
        else:
            raise Refused(f"Another start has been at work in {path.parent.parent} for half a minute. Try again later")
        yield


def _lock(handle: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def running(folder: Path) -> str | None:
    """The address of a Jupyter server that was opened on this folder or in it, and runs."""
    import psutil
    from jupyter_core.paths import jupyter_runtime_dir

    for path in Path(jupyter_runtime_dir()).glob("jpserver-*.json"):
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError, ValueError, LookupError, TypeError):
            server = json.loads(path.read_bytes())
            within = Path(server["root_dir"]).resolve().is_relative_to(folder.resolve())
            if not within or not psutil.pid_exists(server["pid"]):
                continue
            if not server.get("sock"):  # another process may have the number of one that has ended
                with contextlib.suppress(TimeoutError, socket.gaierror):
                    socket.create_connection((server["hostname"], server["port"]), timeout=2).close()
            token = server.get("token")
            return server["url"] + "lab" + (f"?{urllib.parse.urlencode({'token': token})}" if token else "")
    return None


def _settings() -> dict[str, dict[str, Any]]:
    """Our defaults of JupyterLab's settings, under those that the user or who installed it has set."""
    from jupyter_core.paths import jupyter_config_path

    app = Path(sys.prefix, "share", "jupyter", "lab", "settings")
    places = [*sorted((app / "overrides.d").glob("*.json")), app / "overrides.json"]
    places += [Path(place, OVERRIDES) for place in reversed(jupyter_config_path())]
    settings = copy.deepcopy(SETTINGS)
    for place in places:
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
            for plugin, values in json.loads(place.read_bytes()).items():
                settings.setdefault(plugin, {}).update(values)
    return settings


def _start_page(folder: Path, source: Path) -> str:
    """The page on which JupyterLab opens."""
    rows = []
    for path in sorted(source.glob("*.ipynb")):
        title = "\n".join(cell["source"] for cell in (merging.parsed(path.read_bytes()) or {"cells": []})["cells"][:1])
        heading, minutes = re.search(r"^# (.+)", title, re.M), re.search(r"About (\d+) minutes", title)
        name = path.stem.replace("_", " ", 1)
        rows.append(f"| [{name}]({path.name}) | {heading[1] if heading else ''} | {minutes[1] if minutes else ''} |")
    found = sorted([*folder.glob("[!.]*.*.*"), *folder.glob("[!.]*/[!.]*.*.*")])
    kinds = {path.relative_to(folder).as_posix(): path.suffixes[0][1:].partition("-")[0] for path in found}
    aside = [f"- [{name}]({name}): {ASIDE[kind]}" for name, kind in kinds.items() if kind in ASIDE]
    parts = [PAGE.format(rows="\n".join(rows), done=_done(folder), command=COMMAND)]
    if aside:
        parts += ["## Put aside", "", "Nothing of yours is lost. Delete what you no longer need.", "", *aside, ""]
    return "\n".join(parts)


def _done(folder: Path) -> str:
    """What the start page says of the exercises and guesses done so far."""
    return "Each lesson ends with `progress()`, which says it."


PAGE = """# Who gets a gradient?

Open a lesson here. Run its cells from the top, one by one, with Shift+Enter.

| lesson | question | minutes |
|---|---|---|
{rows}

Do you see an error or a symptom? Do you want something? [I see ... / I want ...](INDEX.md) names the section.
There, the first click on a section opens its lesson; a second one, when it is open, goes to the section.

## A guess

Some cells begin with `guess = ...`. Write what you expect in place of the `...`, then run the cell: it says whether the
run agrees with you. What comes out opens when you run it. A wrong guess costs nothing, and is worth most.

## An exercise

Write your answer into the cell below it, and run the cell. It says *right*, or what your answer shows. The hints are
folded, by what you see. The folder `solutions` has an answer to each, with the reason.

## What you have done

{done}

## Your copy

All in this folder is yours: change it, add cells, break it. Each start brings the lessons up to date and keeps what you
wrote. `{command} --fresh 03` begins lesson 03 anew and keeps yours beside it. This page is made
anew at each start.
"""


def start(folder: Path, options: list[str]) -> int:
    """Open JupyterLab on the copy: on this machine only, with its token, our defaults below the user's settings."""
    kept = (folder / KEPT).resolve()
    paths = [str(kept), os.environ.get("JUPYTER_CONFIG_PATH", "")]
    env = os.environ | {"JUPYTER_CONFIG_PATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-m", "jupyterlab", "--ip=127.0.0.1", f"--LabApp.default_url=/lab/tree/{START}"]
    command += [f"--LabApp.workspaces_dir={kept / 'workspaces'}"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        print("You are root: JupyterLab starts with --allow-root.")
        command.append("--allow-root")
    command += [*options, str(folder)]
    sys.stdout.flush()
    if sys.platform == "win32":  # there a process that another takes the place of leaves its console
        return subprocess.call(command, env=env)
    os.execve(sys.executable, command, env)


def main(words: list[str] | None = None) -> int:
    usage = f"{COMMAND} [FOLDER] [--copy-only] [--fresh LESSON] [options of JupyterLab]"
    parser = argparse.ArgumentParser(usage=usage, description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    parser.add_argument("--copy-only", action="store_true", help="make the copy or bring it up to date, start nothing")
    parser.add_argument("--fresh", metavar="LESSON", help="begin a lesson anew, as in --fresh 03, and put yours aside")
    own, options = parser.parse_known_args(words)
    named = options and not options[0].startswith("-")
    folder = Path(options.pop(0) if named else FOLDER)
    try:
        told = update(folder, own.fresh)
    except Refused as refused:
        print(refused, file=sys.stderr)
        return 1
    except ModuleNotFoundError as missing:
        print(f"{missing.name} is missing: pip install 'who-gets-a-gradient[lessons]'", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"The lessons in {folder} are not brought up to date: {error}", file=sys.stderr)
        print(f"What you wrote is as it was. Mend that, or name another folder: {COMMAND} FOLDER", file=sys.stderr)
        return 1
    print(*told, f"Your lessons are in {folder}. Begin with {folder / START}", sep="\n")
    return 0 if own.copy_only else start(folder, options)


if __name__ == "__main__":
    sys.exit(main())
