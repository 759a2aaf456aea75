"""Run a function in several processes of one process group, from a notebook, a script or a test."""

import atexit
import contextlib
import io
import os
import pickle
import queue
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

import cloudpickle
import torch
import torch.distributed as dist

_GRACE = 2.0
"""Seconds that the other ranks have to end by themselves when one has failed."""


class _Worker(NamedTuple):
    process: subprocess.Popen[bytes]
    tasks: IO[bytes]
    answers: IO[bytes]


class _Told(NamedTuple):
    """What a rank tells in the end: when that was, what was printed, and the value or how it failed."""

    ended: float
    printed: str = ""
    value: Any = None
    error: str = ""
    trace: str = ""


_kept: dict[int, list[_Worker]] = {}  # by process: a fork cannot use the workers of the one that it came from


def ranks(function: Callable[..., Any], *args: Any, n: int = 2, timeout: float = 100) -> list[Any]:
    """What ``function(*args)`` returns in each of ``n`` processes: ranks 0 to n - 1 of a process group, with gloo.

    >>> def total(number):
    ...     tensor = torch.tensor([number * (dist.get_rank() + 1)])
    ...     dist.all_reduce(tensor)
    ...     return dist.get_rank(), tensor.item()
    >>> ranks(total, 10)
    [(0, 30), (1, 30)]

    The function may be one of a notebook's cell. It is copied with all that it uses; so is what it takes and returns.
    Each call makes a group of its own, on this machine alone, and begins with ``torch.manual_seed(0)`` and one thread a
    process. What the ranks print is printed after the call, rank by rank. The processes wait for the next call, because
    each takes seconds to import torch, and end with yours. They are in a group already: the function does not call
    ``init_process_group``. Arguments by name go into a lambda: ``ranks(lambda: function(scale=3))``.

    Raises RuntimeError for the first rank that raises, whose process dies, or whose value cannot be unpickled here (a
    DDP, for one), TimeoutError after ``timeout`` seconds of it, TypeError or ValueError for a wrong ``function`` or
    ``n``. What is still at work then is killed.
    """
    if not callable(function):
        raise TypeError(f"{function!r} is no function: pass the function itself, ranks(f), not ranks(f())")
    if not isinstance(n, int):
        raise TypeError(f"n must be an int, not {n!r}")
    if n < 1:
        raise ValueError(f"n must be 1 or more, not {n}")
    task = cloudpickle.dumps((function, args))
    workers = [worker for worker in _kept.pop(os.getpid(), []) if worker.process.poll() is None]
    try:
        workers += (new := [_start() for _ in range(n - len(workers))])
        for worker in new:
            _await(worker)
        told = _run(task, workers[:n], timeout)
    except BaseException:
        _end(workers)
        raise
    late = [rank for rank in range(n) if rank not in told]
    if late:
        _end(workers)
    else:
        _kept[os.getpid()] = workers
    for rank in sorted(told):
        for line in told[rank].printed.splitlines():
            print(f"rank {rank}: {line}")
    if failed := [rank for rank in told if told[rank].error]:
        first = min(failed, key=lambda rank: told[rank].ended)
        # It may have failed because it waited for a rank that had nothing more to do.
        before = [rank for rank in told if rank not in failed and told[rank].ended < told[first].ended]
        aside = f" ({_named(before)} had returned)" if before else ""
        error = RuntimeError(f"rank {first} {told[first].error}{aside}")
        error.add_note(told[first].trace)
        raise error
    if late:
        raise TimeoutError(
            f"{_named(late)} did not return in time: what all ranks do together, such as all_reduce or the backward of "
            "DDP, waits until each of them does it"
        )
    return [told[rank].value for rank in range(n)]


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """For a block, this process is a group of its own: DDP can be looked at, with nobody to talk to.

    >>> with alone():
    ...     torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2)).module
    Linear(in_features=2, out_features=2, bias=True)
    """
    with _quiet():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the line that gloo of torch 2.9 prints, past Python, for each group."""
    kept, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(null)


def _named(ranks: list[int]) -> str:
    return f"rank {' and '.join(map(str, sorted(ranks)))}"


def _run(task: bytes, workers: list[_Worker], timeout: float) -> dict[int, _Told]:
    """What each rank tells, without those that are late."""
    told: dict[int, _Told] = {}
    answers: queue.SimpleQueue[tuple[int, bytes | None]] = queue.SimpleQueue()

    def wait(rank: int, worker: _Worker) -> None:
        answers.put((rank, _next(worker.answers)))

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for rank, worker in enumerate(workers):
            with contextlib.suppress(BrokenPipeError):  # it has died, as its answer will say
                _send(pickle.dumps((task, rank, len(workers), os.path.join(folder, "store"))), worker.tasks)
            threading.Thread(target=wait, args=(rank, worker), daemon=True).start()
        end = time.monotonic() + timeout
        while len(told) < len(workers):
            try:
                rank, answer = answers.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                break
            told[rank] = _told(answer)
            if told[rank].error:
                end = min(end, time.monotonic() + _GRACE)
    return told


def _send(message: bytes, to: IO[bytes]) -> None:
    to.write(len(message).to_bytes(8))
    to.write(message)
    to.flush()


def _next(messages: IO[bytes]) -> bytes | None:
    """The next message; None if there is none, because the process at the other end has ended."""
    size = int.from_bytes(messages.read(8))
    message = messages.read(size)
    return message if message and len(message) == size else None


def _told(answer: bytes | None) -> _Told:
    if answer is None:
        return _Told(0.0, error="died: its process was killed, as when memory is short, or called os._exit")
    try:
        return pickle.loads(answer)
    except Exception as error:  # a class decides what its unpickling raises
        problem = f"returned what cannot be unpickled here ({type(error).__name__}: {error})"
        return _Told(0.0, error=f"{problem}: return tensors or numbers")


_SERVE = """
import sys
sys.path[:] = {}
from helpers.lessons.ranks import _serve
_serve()
"""


def _start() -> _Worker:
    """In a session of its own, so that an interrupt is not sent to it, and a kernel that shuts down does not wait.

    A kernel waits for each child of its process group that does not end when told, such as multiprocessing's tracker.
    """
    command = [sys.executable, "-c", _SERVE.format([path for path in sys.path if isinstance(path, str)])]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdin and process.stdout
    return _Worker(process, process.stdin, process.stdout)


def _await(worker: _Worker) -> None:
    """Until it has imported torch. This is not counted: on a busy machine it takes long."""
    if _next(worker.answers) is None:
        raise RuntimeError("a process could not be started; its own error is above")


def _end(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.process.kill()
    for worker in workers:
        worker.process.wait()
        worker.answers.close()
        with contextlib.suppress(BrokenPipeError):
            worker.tasks.close()


@atexit.register
def _end_all() -> None:
    _end(_kept.pop(os.getpid(), []))


def _serve() -> None:
    """The life of a worker. It ends with the process that started it, even when that is killed."""
    tasks, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what is written past Python
    given: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(tasks, given), daemon=True).start()
    torch.set_num_threads(1)
    if os.name == "posix":  # else gloo asks for the address of the machine's name
        os.environ["GLOO_SOCKET_IFNAME"] = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    with contextlib.suppress(BrokenPipeError):
        _send(b"ready", answers)
        while True:
            _send(_work(*pickle.loads(given.get())), answers)


def _read(tasks: IO[bytes], given: queue.SimpleQueue[bytes]) -> None:
    while task := _next(tasks):
        given.put(task)
    os._exit(1)


def _work(task: bytes, rank: int, n: int, store: str) -> bytes:
    printed = io.StringIO()
    torch.manual_seed(0)
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            with _quiet():
                dist.init_process_group("gloo", store=dist.FileStore(store, n), rank=rank, world_size=n)
            dist.barrier()  # gloo may hang later if a rank leaves while another is still connecting
            function, args = pickle.loads(task)
            value = function(*args)
            return cloudpickle.dumps(_Told(time.monotonic(), printed.getvalue(), value))
        except BaseException as error:
            # When, before the group is destroyed: this is what the other ranks notice.
            ended, trace = time.monotonic(), "".join(traceback.format_exception(error))
            told = f"raised {type(error).__name__}: {error}"
            return pickle.dumps(_Told(ended, printed.getvalue(), error=told, trace=trace))
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
