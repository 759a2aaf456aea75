"""The exercises and predictions of the lesson on more than one process."""

import copy
import math
import textwrap
from collections import OrderedDict
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from numbers import Real
from operator import index
from typing import Any

import cloudpickle
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from helpers import freeze
from helpers.lessons.exercises import RAISES, Lesson, NotYet, changed, facts, kind, run, scalar, table, taken
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
                case "other seed":
                    torch.manual_seed(dist.get_rank())
                    model = wrapped = _model()
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
        before, held = copy.deepcopy(model.state_dict()), list(model.parameters())
        given = run(answer, DistributedDataParallel(model))
        if not isinstance(given, DistributedDataParallel):
            raise lesson.not_yet("return-ddp-go", kind=kind(given))
        if isinstance(given.module, DistributedDataParallel):
            raise lesson.not_yet("model-wrapped-twice")
        if [id(one) for one in given.module.parameters()] != [id(one) for one in held]:
            raise lesson.not_yet("model-return-other")
        if not all(torch.equal(value, before[name]) for name, value in model.state_dict().items()):
            raise lesson.not_yet("weights-have-changed")
        asks = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        wanted = {"body.2.weight", "body.2.bias", "head.weight", "head.bias"}
        if missing := sorted(wanted - asks):
            raise lesson.not_yet("should-be-trainable", names=", ".join(missing))
        if extra := sorted(asks - wanted):
            raise lesson.not_yet("should-have-stayed", names=", ".join(extra))
        sent, due = _bytes_of_a_step(given), sum(parameter.nbytes for parameter in held if parameter.requires_grad)
        if sent is not None and sent != due:
            why = "The rest trains on each rank by itself" if sent < due else "Something frozen travels along"
            raise lesson.not_yet("step-bytes-gradients", sent=sent, due=due, why=why)
    if apart := _in_others(_not_averaged, answer, n=2)[0]:
        raise lesson.not_yet("two-processes-images", value=apart[0])


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


def _not_averaged(answer) -> list[str]:
    """Trainable parameters whose gradient on this rank is not the average, up to what a compression loses."""
    model = _first_phase()
    alike, images = copy.deepcopy(model), torch.arange(32.0).reshape(8, 4).sin() + dist.get_rank()
    wrapped = answer(DistributedDataParallel(model))
    for _ in range(2):
        wrapped.zero_grad()
        wrapped(images).sum().backward()
    alike.body[-1].requires_grad_(True)
    alike(images).sum().backward()
    apart = []
    for (name, parameter), twin in zip(model.named_parameters(), alike.parameters(), strict=True):
        if (total := twin.grad) is not None:
            dist.all_reduce(total)
            if parameter.grad is None or not (parameter.grad - total / 2).norm() < total.norm() / 50:
                apart.append(name)
    return apart


def _bytes_of_a_step(wrapped: DistributedDataParallel) -> int | None:
    """Of the buckets in the second of two steps. None if the answer has a communication hook: there can be one only."""

    def noted(sizes, bucket):
        sizes.append(bucket.buffer().nbytes)
        return allreduce_hook(dist.group.WORLD, bucket)

    sizes: list[int] = []
    try:
        wrapped.register_comm_hook(sizes, noted)
    except RuntimeError:
        return None
    try:
        for _ in range(2):
            sizes.clear()
            wrapped(torch.ones(1, 4)).sum().backward()
    except RuntimeError as error:
        raise lesson.not_yet("training-step-raises", value=str(error).partition(".")[0]) from error
    return sum(sizes)


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
    """With whole numbers of NumPy and torch as Python's."""
    given = [scalar(one) for one in taken(run(answer, *case), "the positions of the images")]
    return [index(one) if hasattr(one, "__index__") and not isinstance(one, bool) else one for one in given]


def _parts(answer: bytes, cases: list[tuple[int, int, int]]) -> list[list[Any]]:
    return [_positions(cloudpickle.loads(answer), *case) for case in cases]


@lesson.exercise("bytes-of-a-step")
def bytes_of_a_step(answer):
    for case, (model, n) in _models().items():
        before = facts(model)
        given = run(answer, model, n)
        number = scalar(given)
        if not isinstance(number, Real) or isinstance(number, bool):
            raise lesson.not_yet("return-number-bytes", kind=kind(given))
        if what := changed(model, before):
            raise lesson.not_yet("function-changes-model", what=what)
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        size = sum(parameter.nbytes for parameter in trainable)
        due = _sent(n, size)
        if not (math.isclose(number, due, rel_tol=1e-6) or number in (math.floor(due), math.ceil(due))):
            wrong = {
                _sent(n, _of_layers(model, *model.children())): "Layers may be within layers, however deep.",
                _sent(n, _of_layers(*model.modules(), whole=True)): "A layer may be frozen in part: each parameter "
                "has a flag of its own.",
                _sent(n, sum(parameter.nbytes for parameter in model.parameters())): "Frozen parameters have no "
                "gradient that travels.",
                _sent(n, sum(parameter.numel() for parameter in trainable)): "These are numbers: how many bytes has "
                "each?",
                _sent(n, sum(parameter.numel() for parameter in trainable) * 4): "Not every number has 4 bytes.",
                size: "This is what is in the buckets: each worker sends it nearly twice.",
                2 * size: "Nearly: of n parts a worker sends n - 1, to be added up, and n - 1, to be handed on.",
                due / 2: "Gradients go around the ring twice: to be added up, and to be handed on.",
                (n - 1) * size: "A worker does not send to each of the others, only to the next in the ring.",
                n * due: "This is what all of them send together.",
            }
            reason = next(
                (told for value, told in wrong.items() if due not in (0, value) and abs(value - number) < 1), ""
            )
            raise NotYet(f"{case}: each worker sends {due:g} bytes; yours is {float(number):g}. {reason}".strip())


def _sent(n: int, size: float) -> float:
    """What each of ``n`` workers in a ring sends in an all-reduce of ``size`` bytes."""
    return 2 * (n - 1) / n * size


def _of_layers(*layers: nn.Module, whole: bool = False) -> int:
    """Bytes of what the layers themselves hold and train, or of all that those hold whose first parameter asks."""
    held = [list(layer.parameters(recurse=False)) for layer in layers]
    asking = {one for part in held for one in part if (part[0] if whole else one).requires_grad}
    return sum(one.nbytes for one in asking)


def _models() -> dict[str, tuple[nn.Module, int]]:
    head_only = nn.Sequential(nn.Linear(20, 6), nn.BatchNorm1d(6), nn.Linear(6, 6))
    head_only[:2].requires_grad_(False)
    dtypes = nn.Sequential(nn.Linear(8, 8).double(), nn.BatchNorm1d(8), nn.Linear(8, 4).half())
    partly = nn.Linear(4, 4)
    partly.weight.requires_grad_(False)
    nested = nn.Sequential(nn.Sequential(partly, nn.Linear(4, 4)), nn.Linear(4, 2))
    tied = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    tied[1].weight = tied[0].weight
    return {
        "A layer of 110 numbers, 4 workers": (nn.Linear(10, 10), 4),
        "A frozen backbone and a head, 4 workers": (head_only, 4),
        "One worker": (nn.Linear(10, 10), 1),
        "Nothing trainable, 4 workers": (nn.Linear(10, 10).requires_grad_(False), 4),
        "Parameters of 8, 4 and 2 bytes a number, 2 workers": (dtypes, 2),
        "Layers within layers, the first weight frozen, 4 workers": (nested, 4),
        "Two layers that share a weight, 3 workers": (tied, 3),
        "64 workers": (nn.Linear(10, 10), 64),
    }
