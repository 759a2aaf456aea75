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
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from helpers.lessons import files, merging, overview, progress

COMMAND = "python -m helpers.lessons.lab"
FOLDER, START = "gradient-lessons", overview.PAGE
KEPT, BASES = progress.KEPT, overview.PUBLISHED
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
        files.write(folder / KEPT / OVERRIDES, json.dumps(_settings(), indent=1).encode())
        with _locked(folder / progress.LOCK):
            overview.refresh(folder)
    return told


def _in_checkout(folder: Path) -> bool:
    """Whether the folder is a checkout of the project, or a part of one that is no learner's copy."""
    place = folder.resolve()
    whole, *parents = ((one / "helpers" / "lessons" / "lab.py").exists() for one in (place, *place.parents))
    used = place.is_dir() and any(place.iterdir()) and not (place / KEPT).exists()
    return whole or (any(parents) and used)


def _brought(folder: Path, source: Path, name: str) -> Iterator[str]:
    """Bring one file up to date, and tell what there is to tell."""
    mine, base = folder / name, folder / BASES / name
    new, have, was = (source / name).read_bytes(), files.read(mine), files.read(base)
    if name == START:  # what we write into its marked places is no change of theirs
        new, have, was = overview.plain(new), have and overview.plain(have), was and overview.plain(was)
    notebook, published = (merging.parsed(part) if name.endswith(".ipynb") else None for part in (have, new))
    if have is None or have == was:
        if have != new:
            files.write(mine, new)
    elif published and not notebook:
        beside = mine.with_suffix(".fresh.ipynb")
        if not beside.exists():
            files.write(beside, new)
        yield f"{name} of yours is no notebook that can be read, and is left as it is. A fresh one is {beside.name}"
        return
    elif published and notebook and was != new:
        # Without the version that it was made from, what differs is taken for theirs.
        merged, cells = merging.merge(merging.parsed(was) or published, notebook, published)
        if cells:
            yield f"{name}: cells put aside, with the reasons, in {_put_aside(mine, cells)}: {len(cells)}"
        if merged != notebook:
            files.write(mine, merging.written(merged))
    elif not published and was != new and have != new:
        yield f"{name}: yours is now {files.set_aside(mine)}"
        files.write(mine, new)
    files.write(base, new)


def _renamed(folder: Path, source: Path, names: list[str]) -> Iterator[str]:
    """Take what is published under another name, or no longer, out of the way."""
    kept = folder / BASES
    for base in sorted(path for path in kept.rglob("*") if path.is_file() and path.suffix != ".saving"):
        name = base.relative_to(kept).as_posix()
        if name in names:
            continue
        mine, was = folder / name, merging.parsed(base.read_bytes())
        others = [other for other in names if Path(other).parent == Path(name).parent and not (kept / other).exists()]
        alike = [(_alike(was, source / other, name), other) for other in others if was]
        share, other = max(alike, default=(0, ""))
        if share >= 0.5:
            if mine.exists():
                if (folder / other).exists():
                    yield f"{other}: yours is now {files.set_aside(folder / other)}"
                os.replace(mine, folder / other)
                yield f"{name} is now {other}, with all that you wrote"
            (kept / other).parent.mkdir(parents=True, exist_ok=True)
            os.replace(base, kept / other)
        else:
            have = files.read(mine)
            theirs = have is not None and merging.parsed(have)
            if have is not None and have != base.read_bytes() and not (was and theirs and merging.same(was, theirs)):
                yield f"{name} is no longer among the lessons: yours is now {files.set_aside(mine)}"
            else:
                mine.unlink(missing_ok=True)
            base.unlink()


def _alike(was: dict[str, Any], new: Path, name: str) -> float:
    """How many of a lesson's cells another one has; all if only its number, or the name of its solutions, differs."""
    notebook = merging.parsed(new.read_bytes()) if new.suffix == ".ipynb" else None
    if notebook is None:
        return 0.0
    if _lesson(name, was) == _lesson(new.name, notebook):
        return 1.0
    ids = [{cell.get("id") for cell in one["cells"]} for one in (was, notebook)]
    return len(ids[0] & ids[1]) / max(1, len(ids[0]))


def _lesson(name: str, notebook: dict[str, Any]) -> str:
    """What a notebook is about: ``01_requires_grad``, and solutions whose first cell names that lesson, are alike."""
    lesson = Path(name).stem.partition("_")[2]
    if lesson != "solutions":
        return lesson
    named = re.search(r"/\d+_(\w+)[.]ipynb", "".join(cell["source"] for cell in notebook["cells"][:1]))
    return named[1] if named else name


def _begun_anew(folder: Path, source: Path, lesson: str) -> str:
    """Put the learner's notebook of a lesson aside; it is then made as at the first start."""
    found = [path for path in source.glob("*.ipynb") if lesson in (path.name, path.stem, path.stem.partition("_")[0])]
    if len(found) != 1:
        lessons = ", ".join(sorted(path.stem for path in source.glob("*.ipynb")))
        raise Refused(f"No lesson is called {lesson!r}. Name one by its number: --fresh 03. There are {lessons}")
    mine = folder / found[0].name
    if not mine.exists():
        return f"{mine.name} is begun anew"
    return f"{mine.name} is begun anew; yours is now {files.set_aside(mine)}"


def _put_aside(lesson: Path, cells: list[tuple[merging.Cell, str]]) -> str:
    """Add cells to the notebook beside the lesson that keeps such, unless they are there."""
    path = lesson.with_suffix(".aside.ipynb")
    text = files.read(path)
    notebook = merging.parsed(text)
    if text and notebook is None:
        files.set_aside(path)
    notebook = notebook or {"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    there = {cell["source"] for cell in notebook["cells"]}
    for cell, why in cells:
        if cell["source"] not in there:
            says = f"**`{cell['id']}`**, {datetime.date.today()}. {why}"
            notebook["cells"] += [merging.new_cell({"cell_type": "markdown", "source": says}), merging.new_cell(cell)]
    files.write(path, merging.written(notebook))
    return path.name


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Wait until no other start is at work in the folder."""
    try:
        with files.locked(path, seconds=30):
            yield
    except files.Held:
        folder = path.parent.parent
        raise Refused(f"Another start has been at work in {folder} for half a minute. Try again later") from None


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
