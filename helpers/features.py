"""Run a frozen backbone once, so that a head trains on what it gave."""

import random
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.utils.data import Dataset, DistributedSampler, TensorDataset

from helpers.memory import dense_parts
from helpers.report import check_module


def cache_features(backbone: nn.Module, loader: Iterable, pick: Callable[[Any], Tensor] | None = None) -> TensorDataset:
    """The outputs of a frozen backbone with their labels, on the CPU and in the order of the loader.

    >>> import torch
    >>> from torch import nn
    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> images = TensorDataset(torch.rand(10, 1, 8, 8), torch.arange(10))
    >>> backbone = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Dropout(), nn.Flatten()).requires_grad_(False)
    >>> features, labels = cache_features(backbone, DataLoader(images, batch_size=4)).tensors
    >>> features.shape, labels.shape
    (torch.Size([10, 144]), torch.Size([10]))

    The backbone runs in eval mode, so that nothing drops at random and no statistics move; afterwards every module has
    the mode that it had. A batch is a pair of inputs and labels. Inputs are a tensor, or a mapping that goes in as
    keywords. A mapping may also hold the labels itself, as ``labels`` or ``label``: they are taken out. Tensors are
    copied to the backbone's device. Labels are a tensor or a list of numbers, one for each row of features.

    The features are the first tensor in the output, which may be a tensor, list, tuple, mapping or dataclass.
    ``pick(output)`` may take another: ``pick=lambda out: out.last_hidden_state[:, 0]``. Beyond the number of rows all
    batches must give one shape, as one tensor holds them.

    >>> class Words(nn.Embedding):
    ...     def forward(self, input_ids, attention_mask):
    ...         return {"hidden": super().forward(input_ids), "mask": attention_mask}
    >>> texts = {"input_ids": torch.ones(4, 7).long(), "attention_mask": torch.ones(4, 7), "labels": [0, 1, 0, 1]}
    >>> words = Words(50, 16).requires_grad_(False)
    >>> cache_features(words, [texts]).tensors[0].shape
    torch.Size([4, 7, 16])
    >>> cache_features(words, [texts], pick=lambda out: out["hidden"].mean(1)).tensors[0].shape
    torch.Size([4, 16])

    A cache is right only if the backbone would give the same again. So the first batch runs twice, and what differs by
    more than rounding is refused. So are parameters and buffers that move in eval mode, as those of quantization's
    observers do: they are compared with a copy, kept on the CPU meanwhile, after the first batch and at the end. And so
    is BatchNorm without running statistics, which makes a feature depend on the other examples in its batch
    (https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm1d.html). What moved is put back.

    The features are ordinary tensors, for ``no_grad``; what ``inference_mode`` makes cannot be saved for the head's
    backward (https://docs.pytorch.org/docs/stable/generated/torch.autograd.grad_mode.inference_mode.html). Only one
    batch of activations is in memory at a time. The random states of torch, numpy and ``random`` stay as they are.
    After 2 s a progress bar appears.

    With several processes, each caches its own part: give it a loader with ``DistributedSampler(data, shuffle=False)``,
    or over ``Subset(data, range(rank, len(data), world))``, which does the same. All parts together are the whole, each
    example once: the last one, which the sampler may repeat to give all processes as many, is left out. An iterable
    dataset must share itself out. A backbone in DistributedDataParallel is run without it, so no process waits.

    >>> from torch.utils.data import DistributedSampler
    >>> for rank in range(3):
    ...     sampler = DistributedSampler(images, num_replicas=3, rank=rank, shuffle=False)
    ...     _, labels = cache_features(backbone, DataLoader(images, batch_size=4, sampler=sampler)).tensors
    ...     print(labels.tolist())
    [0, 3, 6, 9]
    [1, 4, 7]
    [2, 5, 8]

    A loader that shuffles or augments gives a UserWarning, because the cache keeps what it drew this once. It is
    recognized by ``shuffle`` and by class names (RandomSampler, RandomCrop, ColorJitter) in the loader's and dataset's
    ``sampler`` and ``transform``, so what a ``collate_fn`` or ``__getitem__`` draws goes unnoticed.

    Raises ValueError for a backbone with trainable parameters, or whose features would differ the next time, as above,
    and when there are no batches, not as many labels as features, or batches whose shapes do not fit together;
    TypeError for other types, also when the backbone fails on inputs of another dtype than its own.
    """
    check_module("cache_features", backbone)
    if trainable := [name for name, parameter in backbone.named_parameters() if parameter.requires_grad]:
        raise ValueError(
            f"the backbone has {len(trainable)} trainable parameters ({_first(trainable)}), so its features will "
            "change: freeze(backbone) first, and leave the head out"
        )
    norms = {name or "itself": part for name, part in backbone.named_modules() if isinstance(part, _BatchNorm)}
    if without := [name for name, part in norms.items() if part.running_mean is None]:
        raise ValueError(
            f"BatchNorm without running statistics ({_first(without)}) takes those of the batch in eval mode too, so "
            "features depend on which examples are together: it needs track_running_stats=True while it is trained"
        )
    if drawn := _random_parts(loader):
        warnings.warn(
            f"the cache keeps what {', '.join(drawn)} drew this once: each epoch on it sees the same. Cache without "
            "augmentation, in order, and shuffle the cache: DataLoader(cache, shuffle=True)",
            stacklevel=2,
        )
    from tqdm import tqdm  # type: ignore[import-untyped]

    # Its forward would wait for the other processes, which may have fewer batches.
    run = backbone.module if isinstance(backbone, DistributedDataParallel) else backbone
    pairs: list[tuple[Tensor, Tensor]] = []
    with torch.inference_mode(False), torch.no_grad(), _as_it_was(run) as check:
        for batch in tqdm(loader, desc="cache_features", delay=2, leave=False):
            inputs, target = _read(batch)
            rows = _features(run, inputs, pick)
            if not rows.ndim or rows.shape[:1] != target.shape[:1]:
                shapes = f"features {tuple(rows.shape)} and labels {tuple(target.shape)}"
                raise ValueError(f"every row of features needs one label, but the shapes are: {shapes}")
            if not pairs:
                again = _features(run, inputs, pick)
                check()
                # Not to the bit: scatter_add and others on a GPU add in any order.
                near = max(1e-4, 4 * torch.finfo(rows.dtype).eps) if rows.is_floating_point() else 0
                same = again.shape == rows.shape
                if not (same and torch.allclose(again.double(), rows.double(), near, near / 10, True)):
                    raise ValueError(
                        "the first batch, run twice in eval mode, gave two different features: "
                        f"{_unsteady(run, inputs, pick)} draws at random in eval mode too, or remembers what it saw"
                    )
            pairs.append((rows, target))
            for what, first, new in zip(("features", "labels"), pairs[0], pairs[-1], strict=True):
                if new.shape[1:] != first.shape[1:]:
                    shapes = f"{tuple(first.shape)} in the first batch, {tuple(new.shape)} in batch {len(pairs)}"
                    raise ValueError(
                        f"the {what} of all batches are to make one tensor, but their shape is {shapes}: pick a pooled "
                        "vector, as in pick=lambda out: out.last_hidden_state[:, 0], or pad all examples to one length"
                    )
        if not pairs:
            raise ValueError("the loader gave no batch: its dataset is empty, or smaller than a batch with drop_last")
        check()
        whole = [torch.cat(column) for column in zip(*pairs, strict=True)]
        return TensorDataset(*(column[: _without_repeats(loader, len(column))] for column in whole))


def _read(batch: Any) -> tuple[Any, Tensor]:
    """The inputs in a batch, and a copy of its labels."""
    inputs: Any = None
    match batch:
        case {"labels": labels, **inputs} | {"label": labels, **inputs} | [inputs, labels]:
            pass
    if not isinstance(inputs, Tensor | Mapping):
        raise TypeError(
            "a batch must be a pair (tensor of inputs, labels), or a mapping that goes in as keywords, its labels (or "
            f"label) in it or beside it, not {_form(batch)}: give the DataLoader a collate_fn, which for texts makes "
            '{"input_ids": ..., "attention_mask": ..., "labels": ...}'
        )
    try:
        return inputs, torch.as_tensor(labels).to("cpu", copy=True)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"labels must be a tensor or a list of numbers, not {_form(labels)}") from error


def _features(run: nn.Module, inputs: Any, pick: Callable[[Any], Tensor] | None) -> Tensor:
    own = [*run.parameters(), *run.buffers()]
    device = own[0].device if own else "cpu"
    # Copies, because forward may write to its inputs.
    keywords = inputs if isinstance(inputs, Mapping) else {"": inputs}
    given = {key: part.to(device, copy=True) if isinstance(part, Tensor) else part for key, part in keywords.items()}
    try:
        output = run(**given) if keywords is inputs else run(given[""])
    except RuntimeError as error:
        ours, theirs = _float_type(own), _float_type(given.values())
        if None in (ours, theirs) or ours == theirs:
            raise
        raise TypeError(
            f"the backbone is {ours} and failed on inputs that are {theirs}: give it inputs.to({ours}), or change it "
            f"with backbone.to({theirs})"
        ) from error
    first = next((part for part in _parts(output).values() if isinstance(part, Tensor)), output)
    found = pick(output) if pick else first
    if not isinstance(found, Tensor):
        whose = "pick" if pick else "the backbone"
        raise TypeError(f"{whose} gave no tensor but {_form(found)}: pick=... takes the features from the output")
    # A copy, because a slice would keep all that it is a slice of.
    return found.to("cpu", copy=True)


def _float_type(values: Iterable[Any]) -> torch.dtype | None:
    return next((value.dtype for value in values if isinstance(value, Tensor) and value.is_floating_point()), None)


def _parts(value: Any) -> dict[Any, Any]:
    """What is in an output or a batch, by name or by place."""
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    return dict(value if isinstance(value, Mapping) else enumerate(value if isinstance(value, list | tuple) else ()))


def _form(value: object) -> str:
    inside = [f"{key}: " * isinstance(key, str) + type(part).__name__ for key, part in _parts(value).items()]
    return f"a {type(value).__name__}" + " of " * bool(inside) + ", ".join(inside)


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[Callable[[], None]]:
    """In eval mode; afterwards modes and random states are as before, and if the block raises, all entries.

    Gives a check that raises if an entry has moved.
    """
    numpy = sys.modules.get("numpy")
    drawn = random.getstate(), numpy and numpy.random.get_state()
    before: dict[tuple[str, int], Tensor] = {}
    # Without the stand-ins of freeze(), which would remember which mode is asked for here.
    modes = {module: (module.training, vars(module).pop("train", None)) for module in model.modules()}

    def moved() -> dict[tuple[str, int], Tensor]:
        return {key: now for key, now in _entries(model).items() if not _begins_with(now, before.get(key, now))}

    def check() -> None:
        if names := [name for name, _ in moved()]:
            raise ValueError(
                f"the backbone moves in eval mode too ({_first(names)}), so its features depend on what it saw before. "
                "FakeQuantize stops with backbone.apply(torch.ao.quantization.disable_observer); other observers do not"
            )

    try:
        # Of torch because a DataLoader draws a seed for each pass.
        with torch.random.fork_rng(range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)):
            model.eval()
            before |= {key: part.detach().to("cpu", copy=True) for key, part in _entries(model).items()}
            yield check
    except BaseException:
        for key, now in moved().items():
            now.resize_(before[key].shape).copy_(before[key])
        raise
    finally:
        random.setstate(drawn[0])
        if numpy:
            numpy.random.set_state(drawn[1])
        for module, (mode, _) in modes.items():  # parents before what is in them
            if type(module).train is not nn.Module.train:  # such as that of torchvision's extractors, with two graphs
                module.train(mode)
        for module, (mode, stand_in) in modes.items():
            module.training = mode
            if stand_in is not None:
                vars(module)["train"] = stand_in


def _entries(model: nn.Module) -> dict[tuple[str, int], Tensor]:
    named = chain(model.named_parameters(), model.named_buffers())
    usual = [(name, entry) for name, entry in named if not (is_lazy(entry) or entry.is_meta or entry.is_quantized)]
    return {(name, place): part for name, entry in usual for place, part in enumerate(dense_parts(entry))}


def _begins_with(new: Tensor, old: Tensor) -> bool:
    """Bit by bit. A table of positions that grew for a longer input does, an observer that was empty does not."""
    now, before = (tensor.detach().cpu().contiguous().flatten().view(torch.uint8) for tensor in (new, old))
    return torch.equal(now[: len(before) or None], before)


def _unsteady(run: nn.Module, inputs: Any, pick: Callable[[Any], Tensor] | None) -> str:
    """The innermost module that gives two outputs for the same inputs."""

    def note(module: nn.Module, *values: Any) -> None:
        groups = [[part for part in (value, *_parts(value).values()) if isinstance(part, Tensor)] for value in values]
        seen.append((module, *(str([_checksum(tensor) for tensor in group]) for group in groups)))

    seen: list[tuple[Any, ...]] = []
    with register_module_forward_hook(note, with_kwargs=True):
        _features(run, inputs, pick)
        first = len(seen)
        _features(run, inputs, pick)
    # A module comes after those inside it, with checksums of its arguments, its keywords and its output.
    passes = zip(seen[:first], seen[first:], strict=False)
    found = next((one[0] for one, two in passes if one[:3] == two[:3] and one[3] != two[3]), run)
    name = next((name for name, module in run.named_modules() if module is found), "")
    return f"{name or 'its forward'} ({type(found).__name__})"


def _checksum(tensor: Tensor) -> float:
    """A number that depends on where each value stands: two dropouts may leave the same sum."""
    parts = [part.double().flatten() for part in dense_parts(tensor)]
    return sum((part * torch.arange(len(part), device=part.device).cos()).sum().item() for part in parts)


def _without_repeats(loader: Any, rows: int) -> int:
    """How many of the rows come before those that a DistributedSampler repeats at the end."""
    sampler = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
    # Another number of rows: the loader left out the last batch, or makes several rows of an example.
    if not isinstance(sampler, DistributedSampler) or rows != len(sampler):
        return rows
    return len(range(sampler.rank, len(sampler.dataset), sampler.num_replicas))  # type: ignore[arg-type]


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _random_parts(loader: Any) -> list[str]:
    """The classes of what draws at random each time the loader is read."""
    parts, seen, found = [loader], set(), []
    for part in parts:  # grows
        if id(part) in seen:
            continue
        seen.add(id(part))
        named = re.search("Random|Augment|AugMix|Jitter|Elastic", type(part).__name__)
        if getattr(part, "shuffle", None) is True or (named and not isinstance(part, Dataset)):
            found.append(type(part).__name__)
        for attribute in ("sampler", "batch_sampler", "dataset", "datasets", "transform", "transforms"):
            inner: Any = getattr(part, attribute, None)
            parts += [*inner] if isinstance(inner, list | tuple | nn.Sequential) else [inner]
    return list(dict.fromkeys(found))
