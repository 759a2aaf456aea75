"""The exercises and predictions of the lesson on training in more than one process."""

import copy
import textwrap
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Any
from unittest import mock

import cloudpickle
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from helpers import freeze
from helpers.lessons.exercises import RAISES, Lesson, kind, run, table, taken
from helpers.lessons.exercises.running import attempted, waiting
from helpers.lessons.ranks import alone, ranks

lesson = Lesson("past_one_machine")
check, predict, progress = lesson.check, lesson.predict, lesson.progress


def _model() -> Any:
    parts = OrderedDict(body=nn.Linear(4, 4), norm=nn.BatchNorm1d(4), head=nn.Linear(4, 2))
    parts["norm"].eval()
    return nn.Sequential(parts)


def _after(row: str) -> list[torch.Tensor] | str:
    """The entries of the model on this rank after what the row says and three steps, or that it raises."""
    wrapped = model = _model()
    try:
        for word in row.split(", "):
            match word:
                case "DDP":
                    wrapped = DistributedDataParallel(model)
                case "freeze(body)" | "unfreeze(body)":
                    model.body.requires_grad_(word.startswith("un"))
                case "freeze(norm)":
                    model.norm.requires_grad_(False)
                case "norm.train()":
                    model.norm.train()
                case "helpers.freeze(norm)":
                    freeze(model.norm)
                case "spare layer":
                    model.head.spare = nn.Linear(2, 2)
                case "past the wrapper":
                    wrapped = model
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(3):
            optimizer.zero_grad()
            wrapped(torch.arange(32.0).reshape(8, 4).sin() * (dist.get_rank() + step + 1)).sum().backward()
            optimizer.step()
    except RuntimeError:
        return RAISES
    return [value.clone() for value in model.state_dict().values()]


@cache
def _stays_equal() -> dict[str, bool | str]:
    rows = list(dict.fromkeys(row for row, _ in lesson.beliefs("who-stays-equal")))
    seen: dict[str, bool | str] = {}
    for row, *both in zip(rows, *ranks(_all_rows, rows), strict=True):
        seen[row] = RAISES if RAISES in map(str, both) else all(map(torch.equal, *both))
    return seen


def _all_rows(rows: Sequence[str]) -> list:
    return [_after(row) for row in rows]


@lesson.exercise("who-stays-equal")
def who_stays_equal(answer):
    attempted(answer)
    with waiting("Starting two processes"):
        seen = _stays_equal()
    table(answer, seen, lesson.beliefs("who-stays-equal"))


@lesson.exercise("second-phase")
def second_phase(answer):
    with alone():
        model = _first_phase()
        before, names = copy.deepcopy(model), {id(one): name for name, one in model.named_parameters()}
        given = run(answer, DistributedDataParallel(model))
        if not isinstance(given, DistributedDataParallel):
            raise lesson.not_yet("return-ddp-go", kind=kind(given))
        if isinstance(given.module, DistributedDataParallel):
            raise lesson.not_yet("model-wrapped-twice")
        returned = {id(one) for one in given.module.parameters()}
        if returned < names.keys():
            raise lesson.not_yet("part-of-the-model", kind=kind(given.module))
        if returned != names.keys():
            raise lesson.not_yet("model-return-other")
        if not all(map(torch.equal, model.parameters(), before.parameters())):
            raise lesson.not_yet("weights-have-changed")
        asks = {names[id(parameter)] for parameter in model.parameters() if parameter.requires_grad}
        wanted = {"body.2.weight", "body.2.bias", "head.weight", "head.bias"}
        if missing := sorted(wanted - asks):
            raise lesson.not_yet("should-be-trainable", names=", ".join(missing))
        if extra := sorted(asks - wanted):
            raise lesson.not_yet("should-have-stayed", names=", ".join(extra))
        if not all(part.training for part in given.modules()):
            raise lesson.not_yet("other-mode")
        listed = _on_the_list(given, names)
        if frozen := sorted(listed - wanted):
            raise lesson.not_yet("frozen-on-the-list", names=", ".join(frozen))
        try:
            for _ in range(2):
                given(torch.ones(1, 4)).sum().backward()
        except RuntimeError as error:
            raise lesson.not_yet("training-step-raises", value=str(error).partition(".")[0]) from error
    if apart := _in_others(_not_averaged, answer, n=2)[0]:
        name, equal = apart[0]
        told = "equal-and-no-average" if equal else "not-the-average" if name in listed else "not-averaged"
        raise lesson.not_yet(told, name=name)


def _in_others(function, *args, n: int) -> list[Any]:
    """What ``function(*args)`` gives in each of ``n`` other processes."""
    try:
        with waiting(f"Starting {'two processes' if n == 2 else 'another process'}"):
            return ranks(function, *args, n=n, timeout=60)
    except (RuntimeError, TimeoutError) as error:
        told = textwrap.shorten(str(error), 150, placeholder=" ...")
        raise lesson.not_yet("this-process-works", n=n, told=told) from error


def _first_phase() -> Any:
    body = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).requires_grad_(False)
    return nn.Sequential(OrderedDict(body=body, head=nn.Linear(4, 2)))


def _not_averaged(answer) -> list[tuple[str, bool]]:
    """Trainable parameters whose gradient is not the average on rank 0, up to what a compression loses.

    With each, whether rank 0's gradient is that of all ranks.
    """
    model = _first_phase()
    alike, images = copy.deepcopy(model), torch.arange(32.0).reshape(8, 4).sin() + dist.get_rank()
    wrapped = answer(DistributedDataParallel(model))
    for _ in range(2):
        wrapped.zero_grad()
        wrapped(images).sum().backward()
    alike.body[-1].requires_grad_(True)
    alike(images).sum().backward()
    apart = []
    for (name, twin), parameter in zip(alike.named_parameters(), model.parameters(), strict=True):
        if (total := twin.grad) is not None:
            dist.all_reduce(total)
            found = torch.zeros_like(total) if parameter.grad is None else parameter.grad
            dist.all_reduce(both := found.clone())
            if not (found - total / 2).norm() < total.norm() / 50:
                apart.append((name, parameter.grad is not None and torch.allclose(both, 2 * found)))
    return apart


def _on_the_list(wrapped: DistributedDataParallel, names: Mapping[int, str]) -> set[str]:
    """The parameters whose gradients it averages: only its buckets tell, as communication hooks get them."""
    buckets = wrapped.reducer._get_zeros_like_grad_buckets()
    return {names.get(id(one), "another") for bucket in buckets for one in bucket.parameters()}


@lesson.exercise("my-part")
def my_part(answer):
    fresh, seen = cloudpickle.dumps(answer), {}
    for images, world in ((12, 4), (10, 4), (7, 2), (5, 1), (2, 3), (101, 8)):
        case = f"For {images} images and {world} {'process' if world == 1 else 'processes'}"
        parts = []
        for rank in range(world):
            part = _positions(answer, images, rank, world)
            if any(isinstance(one, bool) for one in part):
                raise lesson.not_yet("function-gives-true", case=case)
            if odd := [one for one in part if not isinstance(one, int) or not 0 <= one < images]:
                raise lesson.not_yet("no-position-they", case=case, value=odd[0], value2=images - 1)
            if part != _positions(answer, images, rank, world):
                raise lesson.not_yet("asked-twice-same")
            parts.append(part)
            seen[images, rank, world] = part
        every = sorted(position for part in parts for position in part)
        if twice := [one for one, next_one in pairwise(every) if one == next_one]:
            raise lesson.not_yet("image-taken-more", case=case, value=twice[0])
        if missing := sorted(set(range(images)) - set(every)):
            raise lesson.not_yet("missing-first", case=case, count=len(missing), value=missing[0])
        sizes = [len(part) for part in parts]
        if max(sizes) - min(sizes) > 1:
            raise lesson.not_yet("they-take-some", case=case, names=", ".join(map(str, sizes)))
    # The other way round, so that no call finds what the one before it has left.
    cases = list(reversed(seen))
    (elsewhere,) = _in_others(_parts, fresh, cases, n=1)
    for case, part in zip(cases, elsewhere, strict=True):
        if part != seen[case]:
            raise lesson.not_yet("images-rank-world", case=case)


def _positions(answer, *case: int) -> list[Any]:
    """With whole numbers of NumPy and torch as Python's, also in a column."""
    given = taken(run(answer, *case), "the positions of the images")
    return [one.item() if set(getattr(one, "shape", [0])) <= {1} else one for one in given]


def _parts(answer: bytes, cases: list[tuple[int, int, int]]) -> list[list[Any]]:
    """At another time of day."""
    with mock.patch("time.time", return_value=0.0):
        return [_positions(cloudpickle.loads(answer), *case) for case in cases]
