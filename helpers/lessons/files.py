"""Files of a learner: written whole or not at all, by one process at a time."""

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path


class Held(Exception):
    """Another process has held the lock for too long."""


def read(path: Path) -> bytes | None:
    """What is in the file; None if there is no such file."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def write(path: Path, text: bytes) -> None:
    """Write a file whole or not at all, unless it is that already."""
    if read(path) == text:
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


def set_aside(path: Path, why: str = "before") -> str:
    """Give a file another name, ``name.before.txt`` for ``name.txt``, which this returns."""
    names = (path.with_suffix(f".{why}{n}{path.suffix}") for n in ["", *(f"-{n}" for n in range(2, 10_000))])
    new = next(name for name in names if not name.exists())
    os.replace(path, new)
    return new.name


@contextlib.contextmanager
def locked(path: Path, seconds: float) -> Iterator[None]:
    """Wait until no other process has this lock. The system frees the lock of a process that ends.

    Raises `Held` after so many seconds.
    """
    with path.open("ab") as file:
        for _ in range(round(seconds * 10)):
            try:
                _lock(file.fileno())
            except (BlockingIOError, PermissionError):
                time.sleep(0.1)
                continue
            except OSError:  # a file system that has no locks
                pass
            break
        else:
            raise Held
        yield


def _lock(handle: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
