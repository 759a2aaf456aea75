"""Functions in real processes: what each rank returns, and how it is told when one fails."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import torch.distributed as dist
from jupyter_client.manager import start_new_kernel
from torch.nn.parallel import DistributedDataParallel

from helpers.lessons import ranks as module
from helpers.lessons.ranks import ranks


def processes():
    return {worker.process.pid for worker in module._kept.get(os.getpid(), [])}


def test_each_rank_returns_what_it_has_in_order():
    scale = 3

    def scaled(tensor):
        tensor *= scale + dist.get_rank()
        return tensor, torch.get_num_threads(), torch.initial_seed()

    given = torch.ones(2)
    (first, *settings), (second, *others) = ranks(scaled, given)
    assert first.tolist() == [3, 3] and second.tolist() == [4, 4] and given.tolist() == [1, 1]
    assert settings == others == [1, 0]


def test_processes_are_kept_and_more_are_started_when_asked_for():
    some = processes()
    n = len(some) + 1
    assert ranks(dist.get_world_size, n=n) == [n] * n
    assert some < (more := processes()) and len(more) == n
    assert ranks(dist.get_rank, n=1) == [0] and processes() == more


def test_what_is_printed_comes_rank_by_rank(capfd):
    def talk():
        time.sleep(0.1 * (1 - dist.get_rank()))
        print("I am", dist.get_rank())
        print("aside", file=sys.stderr)

    ranks(talk)
    assert capfd.readouterr() == ("rank 0: I am 0\nrank 0: aside\nrank 1: I am 1\nrank 1: aside\n", "")


def fails(how):
    if dist.get_rank() == 1:
        how()
    dist.all_reduce(torch.ones(1))


def raise_no():
    raise ValueError("no")


def test_the_rank_that_failed_first_is_told_and_the_processes_are_kept():
    before = processes()
    for _ in range(20):  # the other rank fails too, a moment later
        with pytest.raises(RuntimeError, match=r"^rank 1 raised ValueError: no\n") as error:
            ranks(fails, raise_no)
    assert "in raise_no" in error.value.__notes__[0]
    assert ranks(dist.get_rank) == [0, 1] and before <= processes()


def test_leaving_is_no_way_to_return():
    with pytest.raises(RuntimeError, match=r"^rank 1 raised SystemExit: 3\n"):
        ranks(fails, lambda: sys.exit(3))


def test_a_rank_that_returned_before_the_others_is_told():
    with pytest.raises(RuntimeError, match=r"(?s)^rank 0 raised RuntimeError: .*\(rank 1 had returned\)\n"):
        ranks(lambda: None if dist.get_rank() else dist.all_reduce(torch.ones(1)))


def test_a_value_that_cannot_be_sent_is_told():
    with pytest.raises(RuntimeError, match=r"^rank [01] raised TypeError: cannot pickle"):
        ranks(lambda: (number for number in ()))


@pytest.mark.parametrize("returned", [lambda: DistributedDataParallel(torch.nn.Linear(2, 2)), lambda: Unreadable()])
def test_a_value_that_cannot_be_unpickled_here_is_told_and_the_processes_are_kept(returned):
    before = processes()
    with pytest.raises(
        RuntimeError, match=r"^rank [01] returned what cannot be unpickled here \(ValueError: .*numbers\n"
    ):
        ranks(returned)
    assert ranks(dist.get_rank) == [0, 1] and before <= processes()


class Unreadable:
    def __reduce__(self):
        return (int, ("no number",))


@pytest.mark.parametrize(
    "function, n, error, named",
    [
        (None, 2, TypeError, r"^None is no function: pass the function itself, ranks\(f\), not ranks\(f\(\)\)$"),
        (dist.get_rank, "2", TypeError, "^n must be an int, not '2'$"),
        (dist.get_rank, 2.0, TypeError, "^n must be an int, not 2.0$"),
        (dist.get_rank, 0, ValueError, "^n must be 1 or more, not 0$"),
        (dist.get_rank, -1, ValueError, "^n must be 1 or more, not -1$"),
    ],
)
def test_what_cannot_be_run_is_told_at_once(function, n, error, named):
    before = processes()
    with pytest.raises(error, match=named):
        ranks(function, n=n)
    assert processes() == before


def test_a_process_that_died_is_told_or_replaced():
    ranks(dist.get_rank)
    os.kill(min(processes()), signal.SIGTERM)  # while it had nothing to do
    time.sleep(0.5)
    with pytest.raises(RuntimeError, match=r"^rank 1 died: "):
        ranks(fails, lambda: os._exit(3))
    assert ranks(dist.get_rank) == [0, 1]


SCRIPT = """
import os, sys
from helpers.lessons.ranks import ranks
def number():
    return os.getpid()
print(*ranks(number), flush=True)
end = sys.argv[1:] and os.kill(os.getpid(), 9)
"""


@pytest.mark.skipif(os.name != "posix", reason="asks the system for a process by its number")
@pytest.mark.parametrize("how", [[], ["killed"]])
def test_processes_end_with_the_script_that_started_them(tmp_path, how):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, tmp_path / "script.py", *how], capture_output=True, text=True)
    ends = time.monotonic() + 60
    for pid in map(int, done.stdout.split()):
        while alive(pid):
            assert how and time.monotonic() < ends, f"{pid} is still there"
            time.sleep(0.1)
    assert len(done.stdout.split()) == 2 and done.stderr == ""


def test_a_process_that_cannot_be_started_is_told(monkeypatch, capfd):
    monkeypatch.setattr(module, "_SERVE", "raise ImportError('no torch here')")
    with pytest.raises(RuntimeError, match=r"^a process could not be started; its own error is above$"):
        ranks(print, n=len(processes()) + 1)
    assert "no torch here" in capfd.readouterr().err


def test_a_kernel_that_shuts_down_does_not_wait_for_them(tmp_path):
    manager, client = start_new_kernel(env=os.environ | {"TMPDIR": str(tmp_path)})
    manager.shutdown_wait_time = 100
    code = "import tempfile; from helpers.lessons.ranks import ranks; kept = tempfile.TemporaryDirectory(); ranks(int)"
    assert client.execute(code, reply=True, timeout=100)["content"]["status"] == "ok" and [*tmp_path.iterdir()]
    client.stop_channels()
    began = time.monotonic()
    manager.shutdown_kernel()
    assert time.monotonic() - began < 10 and not [*tmp_path.iterdir()]


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_fork_starts_processes_of_its_own():
    before = ranks(os.getpid)
    near, far = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=lambda: far.send(ranks(os.getpid)))
    process.start()
    assert near.poll(60) and not set(near.recv()) & set(before)
    process.join()
    assert ranks(os.getpid) == before


def test_a_rank_that_hangs_is_ended_in_time():
    ranks(dist.get_rank)
    workers, start = processes(), time.monotonic()
    with pytest.raises(TimeoutError, match=r"^rank 0 and 1 did not return in time: "):
        ranks(fails, lambda: time.sleep(100), timeout=1)
    assert time.monotonic() - start < 90, "the answer alone sleeps 100"
    assert not any(map(alive, workers))
