"""train_head: the same weights with any number of processes, nothing lost, and for each fault a message in time.

The processes are real. Most are forked from a server that has imported torch once, and started as a cluster does it, by
environment variables; a few are torchrun's.
"""

import contextlib
import hashlib
import io
import multiprocessing
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision import models

from helpers import freeze, train_head
from helpers.lessons import digits
from tests.tools.ports import free_port

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["helpers.train_head", "helpers.lessons.digits"])
SECONDS = 300  # no test waits longer for processes, and train_head would wait 600 without its --timeout
TOLERANCE = 1e-5  # of each weight, as stated in train_head's documentation


def few_digits():
    """Ten images a class instead of 400."""
    digits.HELD_BACK = digits.PER_CLASS - 10


def set_variable(name, value):
    os.environ[name] = str(value)


def use_weights(home):
    """Let the weights of the small network of torchvision be the file in this TORCH_HOME."""
    set_variable("TORCH_HOME", home)
    (file,) = Path(home, "hub", "checkpoints").iterdir()
    models.MobileNet_V3_Small_Weights.DEFAULT.value.url = f"https://example.org/{file.name}"


def at_step(number, act):
    """Let ``act`` happen just before the given step of this process."""
    step, count = torch.optim.SGD.step, iter(range(1, number + 1))

    def counting(*args, **kwargs):
        if next(count, None) == number:
            act()
        return step(*args, **kwargs)

    torch.optim.SGD.step = counting


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def stop():
    os.kill(os.getpid(), signal.SIGSTOP)


def one_process(arguments, environment, log, prepare):
    """What runs in a process of `start`; ``prepare`` are functions with their arguments."""
    with open(log, "w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.environ.update(environment)
    multiprocessing.set_start_method("fork", force=True)  # as in a process of one's own, for the DataLoader's workers
    for function, *args in prepare:
        function(*args)
    train_head.main(arguments)


@dataclass
class Ended:
    code: int
    text: str


def start(folder, *arguments, world=2, ranks=None, port=None, prepare=(), hangs=None):
    """Run train_head in ``world`` processes, or only in those of ``ranks``, and wait until they have ended.

    ``prepare`` is for all, or a dictionary from a rank to what is for this one. Not waited for is the one that hangs.
    """
    port, ranks = port or free_port(), range(world) if ranks is None else ranks
    processes = []
    try:
        for rank in ranks:
            places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
            places |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            environment = {key: str(value) for key, value in places.items()}
            own = prepare.get(rank, ()) if isinstance(prepare, dict) else prepare
            target = ([*map(str, arguments)], environment, folder / f"rank{rank}", own)
            process = SERVER.Process(target=one_process, args=target)
            process.start()
            processes.append(process)
        end = time.monotonic() + SECONDS
        for rank, process in zip(ranks, processes, strict=True):
            if rank != hangs:
                process.join(end - time.monotonic())
                assert process.exitcode is not None, f"process {rank} hangs: {(folder / f'rank{rank}').read_text()}"
        texts = [said((folder / f"rank{rank}").read_text()) for rank in ranks]
        return [Ended(process.exitcode, text) for process, text in zip(processes, texts, strict=True)]
    finally:
        for process in processes:
            process.kill()
            process.join()


def said(text):
    """Without what torch 2.9 says when processes meet, and the progress bar that appears on a slow machine."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith(("[Gloo] Rank", "cache_fea"))]
    return "".join(f"{line}\n" for line in lines)


def alone(*arguments):
    """Run train_head here, as one process; what it says when it fails."""
    with contextlib.redirect_stderr(io.StringIO()) as told:
        try:
            train_head.main([*map(str, arguments)])
        except SystemExit as end:
            # A message given to sys.exit is written at the end of Python only.
            return end.code if isinstance(end.code, str) else said(told.getvalue()).removesuffix("\n")


def torchrun(*arguments):
    """Run torchrun and give its exit code and all it wrote; whatever happens, nothing of it keeps running."""
    command = [sys.executable, "-m", "torch.distributed.run", *map(str, arguments)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        text, _ = process.communicate(timeout=SECONDS)
        return Ended(process.returncode, text)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def weights(file):
    return torch.load(file, weights_only=True)


def assert_same(one, other, tolerance=TOLERANCE):
    torch.testing.assert_close(weights(one), weights(other), rtol=0, atol=tolerance)


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(digits, "HELD_BACK", digits.PER_CLASS - 10)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder of three photos in two classes, and weights for a small network of torchvision in TORCH_HOME."""
    for number, name in enumerate(["cat/a", "dog/b", "dog/c"]):
        file = tmp_path / "photos" / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (50 * number, 100, 255 - 50 * number)).save(file)
    torch.manual_seed(0)
    buffer = io.BytesIO()
    torch.save(models.mobilenet_v3_small().state_dict(), buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()[:8]
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / f"small-{digest}.pth").write_bytes(buffer.getvalue())
    monkeypatch.setenv("TORCH_HOME", "")
    monkeypatch.setattr(models.MobileNet_V3_Small_Weights.DEFAULT.value, "url", "")
    use_weights(tmp_path)
    return tmp_path / "photos"


# The same weights -----------------------------------------------------------------------------------------------------


def test_one_two_and_three_processes_give_the_same_weights(tmp_path, capsys):
    # 2,000 images in batches of 60: the last one is smaller, and no process gets the same number from each.
    options = ["--epochs", 2, "--batch-size", 60]
    assert alone("--output", tmp_path / "1", *options) is None
    printed = capsys.readouterr().out
    for world in (2, 3):
        ended = start(tmp_path, "--output", tmp_path / str(world), *options, world=world)
        assert [process.code for process in ended] == [0] * world
        assert (
            ended[0].text.replace(f"processes: {world}", "processes: 1").splitlines()[:-1] == printed.splitlines()[:-1]
        )
        assert [process.text for process in ended[1:]] == [""] * (world - 1)
        assert_same(tmp_path / "1", tmp_path / str(world))
    old, new = digits.pretrained().state_dict(), weights(tmp_path / "1")
    assert [name for name in old if not torch.equal(old[name], new[name])] == ["fc.weight", "fc.bias"]
    model = digits.SmallResNet(5)
    model.load_state_dict(new)
    assert digits.accuracy(model, digits.few(1)[1]) > 0.7
    assert printed.startswith("2000 images of 5 classes, processes: 1, epochs done: 0 of 2\ntrainable params: 325 ||")


def test_one_process_gives_the_weights_of_the_plain_loop(tmp_path, few):
    alone("--output", tmp_path / "out", "--epochs", 3, "--batch-size", 15)
    model = digits.pretrained()
    freeze(model)
    torch.manual_seed(0)
    model.fc = torch.nn.Linear(64, 5)
    optimizer = torch.optim.SGD(model.fc.parameters(), lr=0.01, momentum=0.9)
    images, labels = digits.few(10)[0].tensors
    for epoch in range(3):
        for batch in torch.randperm(50, generator=torch.Generator().manual_seed(epoch)).split(15):
            loss = torch.nn.functional.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    torch.testing.assert_close(weights(tmp_path / "out"), model.state_dict(), rtol=0, atol=TOLERANCE)


def test_a_folder_of_images_and_a_batch_of_which_a_process_has_none(tmp_path, photos):
    options = ["--data", photos, "--model", "mobilenet_v3_small", "--epochs", 2, "--batch-size", 1, "--lr", 0.1]
    assert alone("--output", tmp_path / "1", *options) is None
    ended = start(tmp_path, "--output", tmp_path / "2", *options, prepare=[(use_weights, tmp_path)])
    assert [process.code for process in ended] == [0, 0], ended
    assert_same(tmp_path / "1", tmp_path / "2")
    models.mobilenet_v3_small(num_classes=2).load_state_dict(weights(tmp_path / "2"))


def test_stopped_and_resumed_is_as_never_stopped(tmp_path, few):
    checkpoint = ["--checkpoint", tmp_path / "head"]
    alone("--output", tmp_path / "straight", "--epochs", 4)
    alone("--output", tmp_path / "early", "--epochs", 2, *checkpoint)
    alone("--output", tmp_path / "resumed", "--epochs", 4, *checkpoint)
    assert_same(tmp_path / "straight", tmp_path / "resumed", tolerance=0)
    with pytest.raises(AssertionError):
        assert_same(tmp_path / "straight", tmp_path / "early")
    # Once more, with nothing left to do.
    alone("--output", tmp_path / "again", "--epochs", 4, *checkpoint)
    assert_same(tmp_path / "straight", tmp_path / "again", tolerance=0)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["again", "early", "head", "resumed", "straight"]


def test_the_seed_decides(tmp_path, few):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.rand(1)
        alone("--output", tmp_path / name, "--epochs", 1, "--seed", seed)
    assert_same(tmp_path / "a", tmp_path / "b", tolerance=0)
    assert not torch.equal(weights(tmp_path / "a")["fc.weight"], weights(tmp_path / "c")["fc.weight"])


def test_every_head_of_torchvision_is_found_or_refused():
    for name in ("resnet18", "vgg11", "densenet121", "shufflenet_v2_x0_5", "vit_b_32", "convnext_tiny", "swin_t"):
        with torch.device("meta"):
            model = models.get_model(name)
        head, layer = train_head.last_linear(model.eval())
        assert layer.out_features == 1000
        model.set_submodule(head, torch.nn.Identity())
        assert model(torch.zeros(2, 3, 224, 224, device="meta")).shape == (2, layer.in_features)
    with torch.device("meta"), pytest.raises(train_head.Problem, match="SqueezeNet has no Linear layer"):
        train_head.last_linear(models.squeezenet1_0())


# Processes that fail --------------------------------------------------------------------------------------------------


def test_a_worker_killed_in_a_step_costs_that_epoch_only(tmp_path, few):
    options = ["--epochs", 3, "--batch-size", 10, "--checkpoint", tmp_path / "head"]
    alone("--output", tmp_path / "straight", *options[:4])
    # 50 images, 5 steps an epoch: in the middle of the second.
    prepare = {0: [(few_digits,)], 1: [(few_digits,), (at_step, 8, die)]}
    other, killed = start(tmp_path, "--output", tmp_path / "out", *options, prepare=prepare)
    assert killed.code == -signal.SIGKILL
    assert other.code == 1 and "train_head: process 0 of 2 lost the others: " in other.text
    assert "The same command goes on from the --checkpoint, if it has one." in other.text
    assert not (tmp_path / "out").exists() and weights(tmp_path / "head")["done"] == 1
    ended = start(tmp_path, "--output", tmp_path / "out", *options, prepare=[(few_digits,)])
    assert [process.code for process in ended] == [0, 0] and "epochs done: 1 of 3" in ended[0].text
    assert_same(tmp_path / "straight", tmp_path / "out")


def test_torchrun_starts_again_by_itself(tmp_path, few, monkeypatch):
    options = ["--epochs", 3, "--batch-size", 10]
    alone("--output", tmp_path / "straight", *options)
    (tmp_path / "killed_once.py").write_text(
        "import os\n"
        "from helpers import train_head\n"
        "from tests.test_train_head import at_step, die, few_digits\n"
        "few_digits()\n"
        "if os.environ['RANK'] == '1' and os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':\n"
        "    at_step(8, die)\n"
        "train_head.main()\n"
    )
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    launch = ["--standalone", "--nproc-per-node", 2, "--max-restarts", 1, tmp_path / "killed_once.py"]
    ended = torchrun(*launch, "--output", tmp_path / "out", *options, "--checkpoint", tmp_path / "head")
    assert ended.code == 0, ended.text
    assert re.findall("epochs done: (.*)", ended.text) == ["0 of 3", "1 of 3"]
    assert_same(tmp_path / "straight", tmp_path / "out")


def test_a_worker_that_hangs_is_waited_for_no_longer_than_the_timeout(tmp_path):
    prepare = {0: [(few_digits,)], 1: [(few_digits,), (at_step, 3, stop)]}
    other, _ = start(tmp_path, "--output", tmp_path / "out", "--timeout", 5, prepare=prepare, hangs=1)
    assert other.code == 1 and "did not answer within 5 s (--timeout)" in other.text


def test_a_rank_that_never_arrives(tmp_path):
    for rank in (0, 1):
        (ended,) = start(tmp_path, "--output", tmp_path / "out", "--timeout", 1, ranks=[rank])
        assert ended.code == 1 and f"train_head: process {rank}: " in ended.text and "After" not in ended.text
        assert re.search(r"not all 2 processes met at 127.0.0.1:\d+ within 1 s \(--timeout\). Were all", ended.text)


def test_addresses_of_before_a_restart(tmp_path):
    """Where torchrun restarts without TORCH_DISABLE_SHARE_RDZV_TCP_STORE, the dead processes' addresses are found."""
    restarted = [(set_variable, "TORCHELASTIC_RESTART_COUNT", 1)]
    (ended,) = start(tmp_path, "--output", tmp_path / "out", "--timeout", 1, ranks=[0], prepare=restarted)
    assert ended.code == 1 and ended.text.endswith("start it with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1\n")


def test_a_machine_that_never_arrives_is_named_by_torchrun(tmp_path):
    launch = ["--nnodes", 2, "--node-rank", 0, "--master-addr", "127.0.0.1", "--master-port", free_port()]
    ended = torchrun(*launch, "--rdzv-conf", "timeout=1", "-m", "helpers.train_head", "--output", tmp_path / "out")
    assert ended.code == 1 and "1/2 clients joined" in ended.text


def test_a_port_that_is_taken(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (ended,) = start(tmp_path, "--output", tmp_path / "out", ranks=[0], port=port)
        assert ended.code == 1 and ended.text.endswith(
            f"port {port} is taken: choose another --master-port, or on one machine torchrun --standalone\n"
        )
        launch = ["--nproc-per-node", 2, "--master-port", port, "-m", "helpers.train_head"]
        ended = torchrun(*launch, "--output", tmp_path / "out")
        assert ended.code == 1 and "EADDRINUSE" in ended.text and str(port) in ended.text


# Data and options -----------------------------------------------------------------------------------------------------


def test_fewer_images_than_processes(tmp_path, photos):
    options = ["--data", photos, "--model", "mobilenet_v3_small", "--output", tmp_path / "out"]
    ended = start(tmp_path, *options, world=4, prepare=[(use_weights, tmp_path)])
    message = "train_head: 3 images cannot be split over 4 processes: start at most 3\n"
    assert [(process.code, process.text) for process in ended] == [(1, message)] + [(1, "")] * 3


def test_processes_that_do_not_have_the_same(tmp_path):
    prepare = {0: [(few_digits,)]}
    ended = start(tmp_path, "--output", tmp_path / "out", prepare=prepare)
    assert [process.text for process in ended] == [
        "train_head: process 0 and process 1 differ in images (50, 2000): start all alike, with the same data\n",
        "",
    ]
    assert [process.code for process in ended] == [1, 1] and not (tmp_path / "out").exists()


def lose_data():
    def few(_):
        raise FileNotFoundError("the disk is gone")

    digits.few = few


def test_what_fails_in_one_process_ends_all(tmp_path):
    ended = start(tmp_path, "--output", tmp_path / "out", prepare={0: [(few_digits,)], 1: [(lose_data,)]})
    assert [process.code for process in ended] == [1, 1]
    assert [process.text for process in ended] == ["train_head: process 1: the disk is gone\n", ""]


def test_no_process_ends_before_it_is_said(tmp_path):
    """torchrun would kill the one that says it."""
    prepare = {0: [(say_slowly,)], 1: [(tell_what_was_said, tmp_path / "rank0")]}
    ended = start(tmp_path, "--output", tmp_path, prepare=prepare)
    message = f"train_head: process 0: {tmp_path} is a folder: name a file\n"
    assert [(process.code, process.text) for process in ended] == [(1, message), (1, f"heard {message}")]


def say_slowly():
    say = train_head.say

    def slowly(*args):
        time.sleep(1)
        say(*args)

    train_head.say = slowly


def tell_what_was_said(log):
    """Just before this process ends."""
    destroy = torch.distributed.destroy_process_group

    def telling():
        print("heard", said(log.read_text()), end="")
        destroy()

    torch.distributed.destroy_process_group = telling


def empty(photos):
    for file in (photos / "cat").iterdir():
        file.unlink()


def remove_classes(photos):
    for folder in photos.iterdir():
        folder.rename(photos.with_name(folder.name))


@pytest.mark.parametrize(
    "spoil, named",
    [
        (
            lambda photos: photos.rename(photos.with_name("moved")),
            "--data: no folder '{photos}': give digits, or a folder with a folder of images for each class",
        ),
        (remove_classes, "Couldn't find any class folder in {photos}"),
        (empty, "Found no valid file for the classes cat. Supported extensions are: .jpg"),
    ],
)
def test_a_folder_that_is_not_as_it_should_be(photos, tmp_path, spoil, named):
    spoil(photos)
    said = alone("--data", photos, "--model", "mobilenet_v3_small", "--output", tmp_path / "out")
    assert said.startswith("train_head: ") and named.format(photos=photos) in said


@pytest.mark.parametrize("data", ["", "Digits", __file__])
def test_data_that_is_no_folder(data, tmp_path):
    assert alone("--data", data, "--output", tmp_path / "out").startswith(
        f"train_head: --data: no folder {data!r}: give"
    )


@pytest.mark.parametrize("damage", [lambda image: image.write_bytes(b"no picture"), lambda image: halve(image)])
def test_a_damaged_image_is_named(damage, photos, tmp_path):
    damage(photos / "dog" / "b.png")
    options = ["--data", photos, "--model", "mobilenet_v3_small", "--output", tmp_path / "out"]
    first, second = start(tmp_path, *options, prepare=[(use_weights, tmp_path)])
    assert first.code == second.code == 1 and second.text == ""
    assert first.text.startswith(f"train_head: process 1: {photos}/dog/b.png cannot be read as an image (")
    assert first.text.endswith("): remove or replace it\n") and first.text.count("\n") == 1


def test_a_model_without_weights_or_without_that_name(photos, tmp_path, monkeypatch):
    said = alone("--data", photos, "--model", "resnet81", "--output", tmp_path / "out")
    assert said == (
        "train_head: torchvision has no classification model 'resnet81'; nearest: resnet18, resnet152, resnet101"
    )

    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    assert "no network" in alone("--data", photos, "--output", tmp_path / "out")


@pytest.mark.parametrize(
    "gpus, advice",
    [(0, "use --backend gloo"), (2, "start 2 processes here (--nproc-per-node), or use --backend gloo")],
)
def test_nccl_without_enough_gpus(gpus, advice, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert alone("--backend", "nccl", "--output", tmp_path / "out") == (
        f"train_head: --backend nccl needs a GPU for each process, and this machine has {gpus}: {advice}"
    )


def test_a_rank_that_torchrun_did_not_give(monkeypatch, tmp_path):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("RANK", "0")
    said = alone("--output", tmp_path / "out")
    assert said.startswith("train_head: RANK is set, but: ") and "WORLD_SIZE expected" in said
    assert said.endswith("\nStart it with torchrun, or unset RANK for a single process.")


@pytest.mark.parametrize(
    "options, named",
    [
        ([], "required: --output"),
        (["--output", "out", "--epochs", "0"], "--epochs must be from 1 to 9.22e+18, not 0"),
        (["--output", "out", "--batch-size", "-1"], "--batch-size must be from 1 to 9.22e+18, not -1"),
        (["--output", "out", "--lr", "nan"], "--lr must be from 1.18e-38 to 3.4e+38, not nan"),
        (["--output", "out", "--lr", "inf"], "--lr must be from 1.18e-38 to 3.4e+38, not inf"),
        (["--output", "out", "--lr", "1e39"], "--lr must be from 1.18e-38 to 3.4e+38, not 1e+39"),
        (["--output", "out", "--lr", "1e-300"], "--lr must be from 1.18e-38 to 3.4e+38, not 1e-300"),
        (["--output", "out", "--batch-size", str(2**70)], f"--batch-size must be from 1 to 9.22e+18, not {2**70}"),
        (["--output", "out", "--seed", str(2**70)], f"--seed must be from -9.22e+18 to 9.22e+18, not {2**70}"),
        (["--output", "out", "--timeout", "1e13"], "--timeout must be from 0.001 to 1e+09, not 10000000000000.0"),
        (["--output", "out", "--timeout", "0"], "--timeout must be from 0.001 to 1e+09, not 0.0"),
        (["--output", "out", "--model", "resnet18"], "the digits have their own small network: leave --model out"),
        (["--output", "out", "--backend", "mpi"], "invalid choice: 'mpi'"),
        (["--output", "out", "--checkpoint", "out"], "--output and --checkpoint must be two files"),
    ],
)
def test_options_that_make_no_sense(options, named):
    assert named in alone(*options).splitlines()[-1]


@pytest.mark.parametrize("option", ["--output", "--checkpoint"])
def test_what_cannot_be_written_is_said_before_training(option, tmp_path, few):
    long = "n" * 250  # the system takes 255, and .unfinished has to be added
    for file, named in (
        (tmp_path, " is a folder: name a file"),
        (tmp_path / "no" / "file", f": the folder {tmp_path}/no does not exist: create it first"),
        (tmp_path / long, " cannot be written (File name too long): name another file"),
    ):
        assert alone("--output", tmp_path / "out", option, file) == f"train_head: {file}{named}"
    assert [*tmp_path.iterdir()] == []


# Checkpoints ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path, few):
    alone("--output", tmp_path / "out", "--epochs", 2, "--checkpoint", tmp_path / "head")
    (tmp_path / "out").unlink()
    return tmp_path / "head"


@pytest.mark.parametrize(
    "options, named",
    [
        (
            ["--lr", 0.5],
            "was made with lr=0.01, and now it is 0.5: give it the options and data that it was made with, or give",
        ),
        (["--batch-size", 7], "was made with batch_size=64, and now it is 7: "),
        (["--seed", 7], "was made with seed=0, and now it is 7: "),
        (["--epochs", 1], "has 2 epochs behind it, more than the 1 asked for: ask for more, or give another"),
    ],
)
def test_a_checkpoint_of_other_options_is_refused_and_kept(checkpoint, options, named):
    before = checkpoint.read_bytes()
    said = alone("--output", checkpoint.with_name("out"), "--checkpoint", checkpoint, *options)
    assert said.startswith(f"train_head: {checkpoint} {named}")
    assert said.endswith(" another --checkpoint. It was left as it is")
    assert checkpoint.read_bytes() == before and [*checkpoint.parent.iterdir()] == [checkpoint]


def test_a_checkpoint_of_other_data_is_refused(checkpoint, monkeypatch):
    monkeypatch.setattr(digits, "HELD_BACK", digits.PER_CLASS - 9)
    said = alone("--output", checkpoint.with_name("out"), "--checkpoint", checkpoint)
    assert said.startswith(f"train_head: {checkpoint} was made with images=50, and now it is 45: ")


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("evil",))


def halve(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    "damage",
    [
        halve,
        lambda file: file.write_bytes(b""),
        lambda file: file.write_text("<html>"),
        lambda file: torch.save({"head": 1, "facts": {}}, file),
        lambda file: torch.save(weights(file) | {"more": Evil()}, file),
    ],
)
def test_a_damaged_checkpoint_is_named_in_every_process_and_kept(checkpoint, damage, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    damage(checkpoint)
    before = checkpoint.read_bytes()
    said = alone("--output", checkpoint.with_name("out"), "--checkpoint", checkpoint)
    assert said.startswith(f"train_head: {checkpoint} is damaged, or no checkpoint of train_head (")
    assert said.endswith("It was left as it is: give another --checkpoint, or delete it if you do not need it")
    assert checkpoint.read_bytes() == before and [*checkpoint.parent.iterdir()] == [checkpoint]


def test_a_trained_model_is_no_checkpoint_and_kept(tmp_path, few):
    alone("--output", tmp_path / "model", "--epochs", 1)
    before = (tmp_path / "model").read_bytes()
    assert alone("--output", tmp_path / "out", "--checkpoint", tmp_path / "model") == (
        f"train_head: {tmp_path}/model is no checkpoint but looks like a trained model, the --output of a run: "
        "give another --checkpoint. It was left as it is"
    )
    assert (tmp_path / "model").read_bytes() == before and [*tmp_path.iterdir()] == [tmp_path / "model"]


def test_a_checkpoint_is_no_place_for_the_model_and_another_file_is(checkpoint):
    before = checkpoint.read_bytes()
    said = alone("--output", checkpoint)
    assert said == f"train_head: --output would replace {checkpoint}, which is a checkpoint: name another file"
    assert checkpoint.read_bytes() == before and [*checkpoint.parent.iterdir()] == [checkpoint]
    for content in ({"other": 1}, [1]):
        torch.save(content, checkpoint)
        assert alone("--output", checkpoint, "--epochs", 1) is None and "fc.bias" in weights(checkpoint)


def spoil_loss(patch):
    loss = train_head.cross_entropy
    patch.setattr(train_head, "cross_entropy", lambda *args, **kwargs: loss(*args, **kwargs) + float("inf"))


def spoil_weights(patch):
    """In the only step of the epoch, so that its loss does not show it."""
    patch.setattr(torch.optim.SGD, "step", lambda self: self.param_groups[0]["params"][0].data.fill_(float("nan")))


@pytest.mark.parametrize("spoil", [spoil_loss, spoil_weights])
def test_a_training_that_diverges_ends_and_the_checkpoint_is_kept(checkpoint, spoil, monkeypatch):
    before = checkpoint.read_bytes()
    spoil(monkeypatch)
    said = alone("--output", checkpoint.with_name("out"), "--checkpoint", checkpoint, "--epochs", 4)
    assert said == "train_head: loss or weights are not finite after epoch 3, which was not saved: lower --lr"
    assert checkpoint.read_bytes() == before and [*checkpoint.parent.iterdir()] == [checkpoint]


def test_a_learning_rate_that_is_too_high_ends_all_processes(tmp_path):
    options = ["--output", tmp_path / "out", "--batch-size", 10, "--lr", 1e38]
    ended = start(tmp_path, *options, prepare=[(few_digits,)])
    assert [process.code for process in ended] == [1, 1] and not (tmp_path / "out").exists()
    assert ended[0].text.endswith(" which was not saved: lower --lr\n") and ended[1].text == ""


def test_a_full_disk_costs_no_file(tmp_path, few, full_disk):
    (tmp_path / "out").write_text("old")
    said = alone("--output", tmp_path / "out", "--epochs", 1, "--checkpoint", tmp_path / "head")
    assert said.startswith(f"train_head: {tmp_path}/out could not be written; is the disk full? (")
    assert (tmp_path / "out").read_text() == "old" and weights(tmp_path / "head")["done"] == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["head", "out"]


def test_a_disk_that_is_full_for_one_process_ends_all(checkpoint):
    before = checkpoint.read_bytes()
    options = ["--output", checkpoint.with_name("out"), "--checkpoint", checkpoint, "--epochs", 9]
    prepare = {0: [(few_digits,), (limit_files, len(before) - 1)], 1: [(few_digits,)]}
    ended = start(checkpoint.parent, *options, prepare=prepare)
    assert [process.code for process in ended] == [1, 1] and ended[1].text == ""
    message = f"\ntrain_head: process 0: {checkpoint} could not be written; is the disk full? ("
    assert message in ended[0].text and "epoch 3: " in ended[0].text and "epoch 4: " not in ended[0].text
    assert checkpoint.read_bytes() == before and not checkpoint.with_name("head.unfinished").exists()


def limit_files(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def test_only_the_first_process_needs_the_checkpoint(checkpoint):
    there, elsewhere = ["--checkpoint", checkpoint], checkpoint.with_name("elsewhere")
    shared = ["--output", elsewhere / "out", "--epochs", 3]
    elsewhere.mkdir()
    alone("--output", elsewhere / "alone", *shared[2:])
    ended = start(checkpoint.parent, *shared, *there, prepare={0: [(few_digits,)], 1: [(few_digits,), (forget,)]})
    assert [process.code for process in ended] == [0, 0]
    assert_same(elsewhere / "alone", elsewhere / "out")


def forget():
    """As on a machine that does not share the first one's disk."""
    train_head.read = None


def test_a_worker_killed_while_it_writes_leaves_the_old_checkpoint(checkpoint):
    before = checkpoint.read_bytes()
    options = ["--output", checkpoint.with_name("out"), "--checkpoint", checkpoint, "--epochs", 3]
    (ended,) = start(checkpoint.parent, *options, world=1, prepare=[(few_digits,), (write_half,)])
    assert ended.code == -signal.SIGKILL and checkpoint.read_bytes() == before
    assert alone(*options) is None and weights(checkpoint)["done"] == 3
    assert not checkpoint.with_name("head.unfinished").exists()


def write_half():
    write = Path.write_bytes

    def half(file, data):
        write(file, data[: len(data) // 2])
        die()

    Path.write_bytes = half
