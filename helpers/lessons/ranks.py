"""Run a function in several processes of one process group, from a notebook, a script or a test."""

import contextlib
import io
import multiprocessing
import os
import pickle
import signal
import socket
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import cloudpickle
import torch
import torch.distributed as dist

_GRACE = 2.0
"""Seconds that the other ranks have to end by themselves when one has failed."""


class _Worker(NamedTuple):
    process: BaseProcess
    connection: Connection


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
    each takes seconds to import torch, and end with yours. They can start no processes: there a DataLoader needs
    ``num_workers=0``. They are in a group already: the function does not call ``init_process_group``. Arguments by name
    go into a lambda: ``ranks(lambda: function(scale=3))``.

    Raises RuntimeError for the first rank that raises, whose process dies, or whose value cannot be unpickled here (a
    DDP, for one), TimeoutError after ``timeout`` seconds of it, TypeError or ValueError for a wrong ``function`` or
    ``n``. What is still at work then is killed. A script needs the usual ``if __name__ == "__main__":``
    (https://docs.python.org/3/library/multiprocessing.html#the-spawn-and-forkserver-start-methods).
    """
    if not callable(function):
        raise TypeError(f"{function!r} is no function: pass the function itself, ranks(f), not ranks(f())")
    if not isinstance(n, int):
        raise TypeError(f"n must be an int, not {n!r}")
    if n < 1:
        raise ValueError(f"n must be 1 or more, not {n}")
    task = cloudpickle.dumps((function, args))
    workers = [worker for worker in _kept.pop(os.getpid(), []) if worker.process.is_alive()]
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
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for rank, worker in enumerate(workers):
            worker.connection.send((task, rank, len(workers), os.path.join(folder, "store")))
        end = time.monotonic() + timeout
        while working := {worker.connection: rank for rank, worker in enumerate(workers) if rank not in told}:
            ready = wait(list(working), max(0.0, end - time.monotonic()))
            if not ready:
                break
            for connection, rank in working.items():
                if connection in ready:
                    told[rank] = _receive(workers[rank])
                    if told[rank].error:
                        end = min(end, time.monotonic() + _GRACE)
    return told


def _receive(worker: _Worker) -> _Told:
    try:
        told = worker.connection.recv_bytes()
    except EOFError:
        worker.process.join()
        return _Told(0.0, error="died: its process was killed, as when memory is short, or called os._exit")
    try:
        return pickle.loads(told)
    except Exception as error:  # a class decides what its unpickling raises
        problem = f"returned what cannot be unpickled here ({type(error).__name__}: {error})"
        return _Told(0.0, error=f"{problem}: return tensors or numbers")


def _start() -> _Worker:
    context = multiprocessing.get_context("spawn")  # a fork of a process that has threads may hang
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _await(worker: _Worker) -> None:
    """Until it has imported torch. This is not counted: on a busy machine it takes long."""
    try:
        worker.connection.recv()
    except EOFError:
        raise RuntimeError(
            "a process could not be started; its own error is above. In a script, what calls ranks() belongs under "
            'if __name__ == "__main__":'
        ) from None


def _end(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.process.kill()
    for worker in workers:
        worker.process.join()
        worker.connection.close()


def _serve(connection: Connection) -> None:
    """The life of a worker. It ends with the process that started it, even when that is killed."""
    parent = multiprocessing.parent_process()
    assert parent
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupted notebook sends it to all processes
    torch.set_num_threads(1)
    if os.name == "posix":  # else gloo asks for the address of the machine's name
        os.environ["GLOO_SOCKET_IFNAME"] = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    with contextlib.suppress(EOFError):
        connection.send("ready")
        while True:
            connection.send_bytes(_work(*connection.recv()))


def _end_with(parent: BaseProcess) -> None:
    parent.join()
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
