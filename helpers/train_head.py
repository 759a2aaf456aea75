"""Train a new last layer on a frozen pretrained network, in one process or in many. Made to be copied and changed.

On one machine, in one process and in two::

    python -m helpers.train_head --output trained.pt
    torchrun --standalone --nproc-per-node 2 -m helpers.train_head --output trained.pt

On two machines with eight GPUs each, the same line on both but for ``--node-rank``::

    torchrun --nnodes 2 --node-rank 0 --master-addr FIRST --nproc-per-node 8 -m helpers.train_head \\
        --backend nccl --data IMAGES --output trained.pt --checkpoint head.pt

A frozen backbone gives the same features in every epoch. So each process runs it once, over its own part of the images,
and keeps their features; what travels between processes at every step is the gradient of the head. The price: images
cannot be augmented anew in each epoch.

The order of the images depends on the seed alone, and the gradient is the mean over the whole batch, however it is
split. So any number of processes gives the same weights, up to the order in which floats are added: the digits' head
differs by less than 1e-5 between 1, 2 and 3 processes.

After every epoch process 0 writes the checkpoint. The same command, also with another number of processes, goes on from
it. Features are not kept: a restart computes them again. torchrun can start again by itself; the variable keeps the new
processes from the addresses of the dead ones (https://github.com/pytorch/pytorch/issues/135712)::

    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun --standalone --max-restarts 3 --nproc-per-node 2 -m ...

What ends all processes is said once, by process 0. torchrun adds a traceback of its own: look above it.
"""

import argparse
import io
import os
import reprlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TextIO

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, Subset

from helpers import cache_features, freeze, parameters


class Problem(Exception):
    """What the user has to hear. Raised in every process, or in none, so that no process waits for another."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    device = join(options.backend, options.timeout)
    rank, world, code = dist.get_rank(), dist.get_world_size(), 0
    try:
        run(options, device)
        dist.barrier()  # a process that leaves while another still connects to it may bring that one down
    except Problem as error:
        code = 1
        say(f"train_head: {error}", sys.stderr)
        everyones(None)  # waits until it is said: torchrun kills all as soon as one has ended
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        # Without destroy_process_group(), which might wait for the others.
        sys.exit(
            f"train_head: process {rank} of {world} lost the others: {first_line(error)}\n"
            f"One of them ended, which its own message explains, or did not answer within {options.timeout:g} s "
            "(--timeout). The same command goes on from the --checkpoint, if it has one."
        )
    dist.destroy_process_group()
    if code:
        sys.exit(code)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="train_head",
        description=(__doc__ or "").partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--output", type=Path, required=True, help="file for the trained model's state_dict")
    add("--checkpoint", type=Path, help="file that is written after every epoch, and gone on from")
    add("--data", default="digits", help="digits, or a folder that has a folder of images for each class")
    add("--model", help="for a folder: a classification model of torchvision, resnet18 if None")
    add("--epochs", type=int, default=20, help="in all, those of the checkpoint included")
    add("--batch-size", type=int, default=64, help="of all processes together")
    add("--lr", type=float, default=0.01, help="learning rate of SGD with momentum 0.9")
    add("--seed", type=int, default=0, help="of the new layer, and of the order of the images")
    add("--backend", choices=("gloo", "nccl"), default="gloo", help="gloo for the CPU, nccl for one GPU a process")
    add("--timeout", type=float, default=600, help="seconds that a process waits for the others")
    options = parser.parse_args(arguments)
    floats, whole = torch.finfo(torch.float32), torch.iinfo(torch.int64)
    ranges = {
        "epochs": (1, whole.max),
        "batch_size": (1, whole.max),
        "lr": (floats.tiny, floats.max),
        "seed": (whole.min, whole.max - options.epochs),
        "timeout": (1e-3, 1e9),
    }
    for name, (least, most) in ranges.items():
        if not least <= vars(options)[name] <= most:
            told = f"must be from {least:.3g} to {most:.3g}, not {vars(options)[name]}"
            parser.error(f"--{name.replace('_', '-')} {told}")
    if options.output == options.checkpoint:
        parser.error("--output and --checkpoint must be two files")
    if options.data == "digits" and options.model:
        parser.error("the digits have their own small network: leave --model out")
    if options.data != "digits":
        options.model = options.model or "resnet18"
    return options


def join(backend: str, seconds: float) -> torch.device:
    """Join the processes that were started together, and give the device of this one."""
    device = torch.device("cpu")
    if backend == "nccl":
        local, gpus = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
        if local >= gpus:
            fewer = f"start {gpus} processes here (--nproc-per-node), or " if gpus else ""
            sys.exit(
                f"train_head: --backend nccl needs a GPU for each process, and this machine has {gpus}: "
                f"{fewer}use --backend gloo"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if "RANK" not in os.environ:  # not started by torchrun or the like: a group of one
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        return device
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=seconds))
    except ValueError as error:
        sys.exit(f"train_head: RANK is set, but: {error}\nStart it with torchrun, or unset RANK for a single process.")
    except RuntimeError as error:
        rank, world, host, port = (os.environ[k] for k in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))
        advice = (
            f"not all {world} processes met at {host}:{port} within {seconds:g} s (--timeout). Were all started, with "
            "the same address, port and number of processes, and can they reach it?"
        )
        if "EADDRINUSE" in str(error):
            advice = f"port {port} is taken: choose another --master-port, or on one machine torchrun --standalone"
        elif int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)):
            advice += " After a restart by torchrun: start it with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"
        sys.exit(f"train_head: process {rank}: {first_line(error)}\n{advice}")
    return device


def run(options: argparse.Namespace, device: torch.device) -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    with together():
        model, dataset, classes = load(options.data, options.model)
        if rank == 0:
            for path in filter(None, (options.output, options.checkpoint)):
                can_write(path)
            if is_checkpoint(options.output):
                raise Problem(f"--output would replace {options.output}, which is a checkpoint: name another file")
    images = len(dataset)  # type: ignore[arg-type]
    # What processes must have in common, and a checkpoint with them.
    facts = {name: vars(options)[name] for name in ("model", "batch_size", "lr", "seed")}
    facts |= {"classes": classes, "images": images}
    for other, theirs in enumerate(everyones(facts | {"epochs": options.epochs})):
        if found := difference(facts | {"epochs": options.epochs}, theirs):
            text = "process {} and process {} differ in {} ({}, {}): start all alike, with the same data"
            raise Problem(text.format(rank, other, *found))
    if images < world:
        raise Problem(f"{images} images cannot be split over {world} processes: start at most {images}")
    with together():
        state = read(options.checkpoint, facts, options.epochs) if rank == 0 and options.checkpoint else None
    state = everyones(state)[0]

    # The backbone, frozen and without its head, goes once over this process's part of the images.
    freeze(model.eval())
    name, old_head = last_linear(model)
    model.set_submodule(name, nn.Identity())
    part = DataLoader(
        Subset(dataset, range(rank, images, world)),
        batch_size=-(-options.batch_size // world),
        num_workers=readers() if options.model else 0,
    )
    with together():
        features, labels = cache_features(model.to(device), part).tensors

    torch.manual_seed(options.seed)
    head = nn.Linear(old_head.in_features, len(classes))
    model.set_submodule(name, head.to(device))
    optimizer = torch.optim.SGD(head.parameters(), lr=options.lr, momentum=0.9)
    first = 0
    if state:
        head.load_state_dict(state["head"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["done"]
    # Wrapped last, because it synchronizes what is trainable now.
    synchronized = DistributedDataParallel(head)
    say(f"{images} images of {len(classes)} classes, processes: {world}, epochs done: {first} of {options.epochs}")
    say(parameters(model).foot)

    for epoch in range(first, options.epochs):
        # The same order in every process, and with any number of processes.
        order = torch.randperm(images, generator=torch.Generator().manual_seed(options.seed + epoch))
        loss_of_epoch = torch.zeros((), device=device)
        for batch in order.split(options.batch_size):
            # Image i is in process i % world, at place i // world. Some batches have none here: then zeros travel.
            mine = batch[batch % world == rank] // world
            loss = cross_entropy(synchronized(features[mine].to(device)), labels[mine].to(device), reduction="sum")
            optimizer.zero_grad()
            # The processes' gradients are averaged, so the sum over the batch comes out divided by world.
            (loss * world / len(batch)).backward()
            optimizer.step()
            loss_of_epoch += loss.detach()
        dist.all_reduce(loss_of_epoch)
        say(f"epoch {epoch + 1}: mean loss {loss_of_epoch.item() / images:.3g}")
        # The weights too: the last step may have spoiled them. They are the same in every process.
        if not all(tensor.isfinite().all() for tensor in (loss_of_epoch, *head.parameters())):
            raise Problem(f"loss or weights are not finite after epoch {epoch + 1}, which was not saved: lower --lr")
        with together():
            if rank == 0 and options.checkpoint:
                state = {"head": head.state_dict(), "optimizer": optimizer.state_dict(), "done": epoch + 1}
                write(options.checkpoint, state | {"facts": facts})
    with together():
        if rank == 0:
            write(options.output, model.cpu().state_dict())
    say(f"saved in {options.output}")


def load(data: str, name: str | None) -> tuple[nn.Module, Dataset, list[str]]:
    """The pretrained model, the images prepared for it with their labels, and the names of the classes."""
    if name is None:
        from helpers.lessons import digits

        train, _ = digits.few(digits.PER_CLASS - digits.HELD_BACK)
        return digits.pretrained(), train, [str(digit) for digit in digits.NEW]

    from torchvision import models
    from torchvision.datasets import ImageFolder

    from helpers.lessons.pretrained import pretrained

    known = models.list_models(module=models)
    if name not in known:
        near = ", ".join(get_close_matches(name, known, cutoff=0))
        raise Problem(f"torchvision has no classification model {name!r}; nearest: {near}")
    if not os.path.isdir(data):
        raise Problem(f"--data: no folder {data!r}: give digits, or a folder with a folder of images for each class")
    weights = models.get_model_weights(name).DEFAULT
    dataset = ImageFolder(data, transform=weights.transforms(), loader=read_image)
    model = pretrained(models.get_model_builder(name), weights)
    last_linear(model)
    return model, dataset, dataset.classes


def read_image(path: str) -> Any:
    from torchvision.datasets.folder import default_loader

    try:
        return default_loader(path)
    except Exception as error:  # a damaged file can raise nearly anything, often without its name
        raise OSError(f"{path} cannot be read as an image ({first_line(error)}): remove or replace it") from error


def last_linear(model: nn.Module) -> tuple[str, nn.Linear]:
    """The head and its qualified name."""
    named = [(name, part) for name, part in model.named_modules() if isinstance(part, nn.Linear)]
    if not named:
        raise Problem(f"{type(model).__name__} has no Linear layer as its head: choose another --model")
    return named[-1]


def readers() -> int:
    """How many processes read images for this one: the cores that it may use, shared out on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


@contextmanager
def together() -> Iterator[None]:
    """When the block fails in one process, end in all, with its message."""
    problem = None
    try:
        yield
    except (Problem, OSError, RuntimeError) as error:
        # The first lines may be the traceback of a DataLoader's worker.
        problem = str(error).splitlines()[-1].removeprefix("OSError: ")
    problems = everyones(problem)
    for text in dict.fromkeys(filter(None, problems)):
        where = [str(rank) for rank, other in enumerate(problems) if other == text]
        raise Problem(text if len(where) == len(problems) else f"process {', '.join(where)}: {text}")


def everyones(value: Any) -> list[Any]:
    """The values of all processes, in their order."""
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def difference(ours: dict, theirs: dict) -> tuple[str, str, str] | None:
    """The first fact that is not the same in both, and its two values."""
    for fact, value in ours.items():
        if value != theirs.get(fact):
            return fact, reprlib.repr(value), reprlib.repr(theirs.get(fact))
    return None


def read(path: Path, facts: dict, epochs: int) -> dict | None:
    """The checkpoint, if there is one, provided that it was made with the same options and data."""
    if not path.exists():
        return None
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        trained = all(isinstance(value, torch.Tensor) for value in state.values())
        if not trained:
            theirs, done, _, _ = (state[key] for key in ("facts", "done", "head", "optimizer"))
    except Exception as error:  # a damaged file can raise nearly anything
        raise Problem(
            f"{path} is damaged, or no checkpoint of train_head ({type(error).__name__}: {first_line(error)}). "
            "It was left as it is: give another --checkpoint, or delete it if you do not need it"
        ) from error
    if trained:
        problem = "is no checkpoint but looks like a trained model, the --output of a run:"
    elif found := difference(facts, theirs):
        text = "was made with {}={}, and now it is {}: give it the options and data that it was made with, or"
        problem = text.format(found[0], found[2], found[1])
    elif done > epochs:
        problem = f"has {done} epochs behind it, more than the {epochs} asked for: ask for more, or"
    else:
        return state
    raise Problem(f"{path} {problem} give another --checkpoint. It was left as it is")


def is_checkpoint(path: Path) -> bool:
    try:
        return "facts" in torch.load(path, weights_only=True, mmap=True)
    except Exception:  # it is not there, or anything else
        return False


def can_write(path: Path) -> None:
    """Better a message now than after the training."""
    if path.is_dir():
        raise Problem(f"{path} is a folder: name a file")
    if not path.parent.is_dir():
        raise Problem(f"{path}: the folder {path.parent} does not exist: create it first")
    try:
        unfinished(path).touch()
        unfinished(path).unlink()
    except OSError as error:
        raise Problem(f"{path} cannot be written ({error.strerror}): name another file") from error


def write(path: Path, content: object) -> None:
    """Whole or not at all: a process killed while it writes leaves the old file."""
    # Not by torch.save() itself: on a disk that fills up at the end, that of torch 2.9 leaves a cut file and no error.
    torch.save(content, data := io.BytesIO())
    try:
        unfinished(path).write_bytes(data.getbuffer())
        os.replace(unfinished(path), path)
    except OSError as error:
        unfinished(path).unlink(missing_ok=True)
        raise Problem(f"{path} could not be written; is the disk full? ({first_line(error)})") from error


def unfinished(path: Path) -> Path:
    return path.with_name(path.name + ".unfinished")


def say(text: str, file: TextIO | None = None) -> None:
    if dist.get_rank() == 0:
        print(text, file=file, flush=True)


def first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


if __name__ == "__main__":
    main()
