"""The exercises and predictions of the lesson on sharded training."""

import math
import textwrap
from collections import OrderedDict
from collections.abc import Sequence
from functools import cache
from numbers import Real
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from helpers.lessons.exercises import Lesson, changed, facts, kind, run, scalar, table
from helpers.lessons.exercises.running import attempted, waiting
from helpers.lessons.ranks import alone, ranks

lesson = Lesson("sharded")
check, predict, progress = lesson.check, lesson.predict, lesson.progress

WANTED = 0.9
"""The accuracy from which on the head is frozen."""
ACCURACIES, SOONER = (0.5, 0.9, 0.7, 0.97), (0.95, 0.5, 0.7, 0.8)
"""What the validations of the repair tell, epoch by epoch, and another time."""
DTYPES = "Parameters of 8, 4 and 2 bytes a number, 2 workers"


def _parts() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(OrderedDict(body=nn.Sequential(nn.Linear(6, 6), nn.Tanh()), head=nn.Linear(6, 3)))


def _shard(model: Any) -> Any:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    fully_shard(model.body, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def _batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Two for each epoch, others on each rank."""
    shift = dist.get_rank()
    inputs = [(torch.arange(30.0).reshape(5, 6) * (number + 2) + shift).sin() for number in range(2)]
    return [(each, (torch.arange(5) + number + shift) % 3) for number, each in enumerate(inputs)]


def _epoch(model: Any, optimizer: torch.optim.Optimizer, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    for inputs, labels in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()


def _whole(tensor: Any) -> torch.Tensor:
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def _moves(row: str) -> bool:
    """Whether the part at the end of the row moves in the three steps after what the row says."""
    orders, part = row.split(": ")
    model, optimizer, batches = _parts(), torch.optim.SGD([nn.Parameter(torch.zeros(1))]), _batches()
    for word in orders.split(", "):
        match word:
            case "shard":
                _shard(model)
            case "optimizer":
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            case "freeze body" | "freeze head":
                model.get_submodule(word.removeprefix("freeze ")).requires_grad_(False)
            case "validate":
                with torch.no_grad():
                    model(batches[0][0])
            case "reshard":
                model.reshard()
    before = [_whole(parameter) for parameter in model.get_submodule(part).parameters()]
    _epoch(model, optimizer, [*batches, batches[0]])
    after = [_whole(parameter) for parameter in model.get_submodule(part).parameters()]
    return not all(map(torch.equal, before, after))


@cache
def _which_move() -> dict[str, bool]:
    rows = dict.fromkeys(row for row, _ in lesson.beliefs("shard-validate-freeze"))
    with alone():
        return {row: _moves(row) for row in rows}


@lesson.exercise("shard-validate-freeze")
def shard_validate_freeze(answer):
    attempted(answer)
    table(answer, _which_move(), lesson.beliefs("shard-validate-freeze"))


class _Told(NamedTuple):
    """Why an answer is refused, or nothing."""

    key: str = ""
    values: Any = None


class _Validation:
    """A pass under no_grad that tells the accuracies one after the other, and what it was asked about."""

    def __init__(self, accuracies: tuple[float, ...]) -> None:
        self.accuracies = accuracies
        self.models: list[Any] = []

    def __call__(self, model: Any) -> float:
        with torch.no_grad():
            model(_batches()[0][0])
        self.models.append(model)
        return self.accuracies[min(len(self.models), len(self.accuracies)) - 1]


@lesson.exercise("freeze-after-validation")
def freeze_after_validation(answer):
    attempted(answer)
    with alone():
        told = _loop(answer)
        if not told.key and _loop(answer, SOONER, "sooner").key:
            told = _Told("by-number", {"accuracies": ", ".join(map(str, SOONER))})
    if told.key:
        raise lesson.not_yet(told.key, **(told.values or {}))
    try:
        with waiting("Starting two processes"):
            told = ranks(_loop, answer, n=2, timeout=40)[0]
    except (RuntimeError, TimeoutError) as error:
        raise lesson.not_yet("alone-it-works", told=textwrap.shorten(str(error), 150, placeholder=" ...")) from error
    if told.key:
        raise lesson.not_yet("two-processes", told=lesson.not_yet(told.key, **(told.values or {})))


def _loop(answer, accuracies: tuple[float, ...] = ACCURACIES, due: str = "right") -> _Told:
    """What is wrong with the loop on this rank, all ranks together. ``due`` is its name in `_FLAGS`."""
    model, validation = _shard(_parts()), _Validation(accuracies)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    held, batches = list(model.parameters()), _batches()

    def epoch(model: Any, optimizer: torch.optim.Optimizer) -> None:
        _epoch(model, optimizer, batches)

    run(answer, model, optimizer, epoch, validation)
    if len(validation.models) != len(ACCURACIES) or any(one is not model for one in validation.models):
        return _Told("validations", {"number": sum(one is model for one in validation.models)})
    model.reshard()
    now = list(model.parameters())
    if list(map(id, now)) != list(map(id, held)):
        return _Told("other-parameters")
    whole = [_whole(parameter) for parameter in now]
    flags = dict(zip((name for name, _ in model.named_parameters()), (one.requires_grad for one in now), strict=True))
    done = next((name for name in _FLAGS if _close(whole, _reference(name))), "other")
    on = [name for name, flag in flags.items() if flag and name.startswith("head")]
    off = [name for name, flag in flags.items() if not flag and name.startswith("body")]
    if len(on) == 1:
        return _Told("in-part", {"name": on[0]})
    if on:
        return _Told({due: "flag-on", "once": "one-step", "again": "one-step"}.get(done, "trainable"))
    if off:
        return _Told("body", {"names": " and ".join(off)})
    if done == "other" and _close(whole[-2:], _reference(due)[-2:]):
        return _Told("in-between")
    return _Told("" if done == due else done)


def _close(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.allclose(*both, 1e-4, 1e-6) for both in zip(one, other, strict=True))


_FLAGS = {
    "right": "111100",
    "once": "11110111",
    "again": "11110101",
    "one-more": "11111",
    "all": "11111111",
    "late": "111111",
    "sooner": "11",
    "early": "",
    "twice": "11110011",
}
"""Whether the head is trained in each step of the loop, in the right one and in wrong ones; at the end it is not."""


def _reference(name: str) -> list[torch.Tensor]:
    """The parameters after such a loop. All ranks run it together, so only a rank that is alone may keep it."""
    return _of_one(name) if dist.get_world_size() == 1 else _after(name)


def _after(name: str) -> list[torch.Tensor]:
    model, batches = _shard(_parts()), _batches()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for number, flag in enumerate(_FLAGS[name].ljust(len(batches) * len(ACCURACIES), "0")):
        model.head.requires_grad_(flag == "1")
        _epoch(model, optimizer, [batches[number % len(batches)]])
    return [_whole(parameter) for parameter in model.parameters()]


_of_one = cache(_after)


@lesson.exercise("bytes-of-a-step")
def bytes_of_a_step(answer):
    for case, (model, n) in _models().items():
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        size, everything = _bytes(trainable), _bytes(model.parameters())
        due = _sent(n, size)
        wrong = {
            "two-levels": _sent(n, _of_layers(model, *model.children())),
            "first-flag": _sent(n, _of_layers(*model.modules(), whole=True)),
            "frozen": _sent(n, everything),
            "buffers": _sent(n, size + _bytes(model.buffers())),
            "by-name": _sent(n, _bytes(one for one in trainable if not any(one is scale for scale in _scales(model)))),
            "all-entries": _sent(n, everything + _bytes(model.buffers())),
            "numbers": _sent(n, sum(parameter.numel() for parameter in trainable)),
            "four-bytes": _sent(n, sum(parameter.numel() for parameter in trainable) * 4),
            "bucket": size,
            "however-many": 2 * size,
            "once": due / 2,
            "to-each": (n - 1) * size,
            "together": n * due,
        }
        _compare(answer, case, (model, n), due, wrong)


@lesson.exercise("bytes-of-a-rank")
def bytes_of_a_rank(answer):
    models = _models()
    # First that with several dtypes: in the others four times the numbers are the bytes of the parameters alone.
    for case, (model, n) in {DTYPES: models[DTYPES], **models}.items():
        for rank in dict.fromkeys((0, n // 2, n - 1)):
            own, whole = _shares(model, rank, n), _sum(_shares(model, 0, 1))
            due = _sum(own)
            wrong = {
                "nth": whole / n,
                "evenly": _sum(_shares(model, rank, n, cut=_evenly)),
                "columns": _sum(_shares(model, rank, n, cut=_columns)),
                "flat": _sum(_shares(model, rank, n, cut=_flat)),
                "first-rank": _sum(_shares(model, 0, n)),
                "whole": whole,
                "rounded": _sum([(len(one) // n * one[:1].nbytes, one.requires_grad) for one in model.parameters()]),
                "frozen-state": _sum(own, frozen=4),
                "parameters": _sum(own, trained=1),
                "frozen-left-out": _sum(own, frozen=0),
                "three-times": _sum(own, trained=3),
                "no-state": _sum(own, trained=2),
                "buffers": due + _bytes(model.buffers()),
                "numbers": _sum(_shares(model, rank, n, itemsize=1)),
                "four-bytes": _sum(_shares(model, rank, n, itemsize=4)),
            }
            _compare(answer, f"{case}, rank {rank}", (model, rank, n), due, wrong)


def _compare(answer, case: str, given: tuple[Any, ...], due: float, wrong: dict[str, float]) -> None:
    """Refuse a number that is not ``due``, with the belief whose number it is in ``wrong``."""
    before = facts(given[0])
    result = run(answer, *given)
    plain = scalar(result)
    if not isinstance(plain, Real) or isinstance(plain, bool):
        raise lesson.not_yet("no-number", kind=kind(result))
    number = float(plain)
    if what := changed(given[0], before):
        raise lesson.not_yet("changes", what=what)
    if math.isclose(number, due, rel_tol=1e-6) or number in (math.floor(due), math.ceil(due)):
        return
    beliefs = [key for key, value in wrong.items() if abs(value - due) >= 1 and abs(value - number) < 1]
    told = str(lesson.not_yet(beliefs[0])) if beliefs else ""
    values = {"case": case, "due": f"{due:g}", "number": f"{number:g}", "told": told}
    raise lesson.not_yet("bytes", **values)


def _bytes(tensors) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _sent(n: int, size: float) -> float:
    """What each of ``n`` workers in a ring sends in an all-reduce of ``size`` bytes."""
    return 2 * (n - 1) / n * size


def _of_layers(*layers: nn.Module, whole: bool = False) -> int:
    """Bytes of what the layers themselves hold and train, or of all that those hold whose first parameter is so."""
    held = [list(layer.parameters(recurse=False)) for layer in layers]
    return _bytes({one for part in held for one in part if (part[0] if whole else one).requires_grad})


def _scales(model: nn.Module) -> list[nn.Parameter]:
    """The parameters with another name than those of PyTorch's layers."""
    return [one for name, one in model.named_parameters() if not name.endswith(("weight", "bias"))]


def _rows(parameter: torch.Tensor, n: int) -> Sequence[torch.Tensor]:
    return parameter.chunk(n)


def _evenly(parameter: torch.Tensor, n: int) -> Sequence[torch.Tensor]:
    return parameter.tensor_split(n)


def _columns(parameter: torch.Tensor, n: int) -> Sequence[torch.Tensor]:
    return parameter.chunk(n, dim=-1)


def _flat(parameter: torch.Tensor, n: int) -> Sequence[torch.Tensor]:
    return parameter.flatten().chunk(n)


def _shares(model: nn.Module, rank: int, n: int, itemsize: int = 0, cut: Any = _rows) -> list[tuple[int, bool]]:
    """For each parameter how many bytes of it a rank owns, and whether it is trained."""
    shares = []
    for parameter in model.parameters():
        chunks = cut(parameter.detach(), n)
        own = chunks[rank].numel() if rank < len(chunks) else 0
        shares.append((own * (itemsize or parameter.element_size()), parameter.requires_grad))
    return shares


def _sum(shares: list[tuple[int, bool]], trained: int = 4, frozen: int = 1) -> int:
    """Bytes that are held: of what is trained also the gradient and the two averages of AdamW."""
    return sum(size * (trained if flag else frozen) for size, flag in shares)


def _models() -> dict[str, tuple[nn.Module, int]]:
    head_only = nn.Sequential(nn.Linear(20, 6), nn.BatchNorm1d(6), nn.Linear(6, 5))
    head_only[:2].requires_grad_(False)
    dtypes = nn.Sequential(nn.Linear(8, 8).double(), nn.BatchNorm1d(8).float(), nn.Linear(8, 4).half())
    partly = nn.Linear(4, 4)
    partly.weight.requires_grad_(False)
    nested = nn.Sequential(nn.Sequential(partly, nn.Linear(4, 4)), nn.Linear(4, 2))
    tied = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    tied[1].weight = tied[0].weight
    own = nn.Sequential(nn.Conv2d(4, 5, 3), nn.Flatten())
    own.scale = nn.Parameter(torch.ones(5, 2, 3))
    models = {
        "A layer of 110 numbers, 4 workers": (nn.Linear(10, 10), 4),
        "A frozen backbone and a head, 4 workers": (head_only, 4),
        "One worker": (nn.Linear(10, 10), 1),
        "Nothing trainable, 4 workers": (nn.Linear(10, 10).requires_grad_(False), 4),
        DTYPES: (dtypes, 2),
        "Layers within layers, the first weight frozen, 4 workers": (nested, 4),
        "Two layers that share a weight, 3 workers": (tied, 3),
        "64 workers": (nn.Linear(10, 10), 64),
        "A convolution, and a parameter of the model itself, 4 workers": (own, 4),
    }
    # The lesson computes in double precision by default.
    return {case: (model if case == DTYPES else model.float(), n) for case, (model, n) in models.items()}
