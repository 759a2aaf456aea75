"""Run a frozen backbone once, so that a head trains on what it gave."""

import re
import warnings
from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset, DistributedSampler, TensorDataset

from helpers.auditing import audit
from helpers.report import check_module

_UNSTEADY = ("norm-statistics-drift", "dropout-in-frozen-part")


def cache_features(backbone: nn.Module, loader: Iterable) -> TensorDataset:
    """The outputs of a frozen backbone with their labels, on the CPU and in the order of the loader.

    >>> import torch
    >>> from torch import nn
    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> images = TensorDataset(torch.rand(10, 1, 8, 8), torch.arange(10))
    >>> backbone = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten()).requires_grad_(False)
    >>> features, labels = cache_features(backbone, DataLoader(images, batch_size=4)).tensors
    >>> features.shape, labels.shape
    (torch.Size([10, 144]), torch.Size([10]))

    A batch is a pair: a tensor of inputs, moved to the backbone's device, and a tensor or list of labels. The features
    are ordinary tensors, for ``no_grad``; what ``inference_mode`` makes cannot be saved for the head's backward
    (https://docs.pytorch.org/docs/stable/generated/torch.autograd.grad_mode.inference_mode.html). Only one batch of
    activations is in memory at a time. Modes and torch's CPU random state stay as they are. After 2 s a progress bar
    appears.

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

    Raises ValueError for a backbone with trainable parameters, or in a mode that makes its features random (dropout,
    StochasticDepth, DropPath) or its statistics drift, and when there are no batches or not as many labels as features;
    TypeError for other types.
    """
    check_module("cache_features", backbone)
    unsteady = [str(found) for found in audit(backbone) if found.rule in _UNSTEADY]
    if trainable := [name for name, parameter in backbone.named_parameters() if parameter.requires_grad]:
        raise ValueError(
            f"the backbone has {len(trainable)} trainable parameters ({_first(trainable)}), so its features will "
            "change: freeze(backbone) first, and leave the head out"
        )
    if paths := [name for name, part in backbone.named_modules() if part.training and _drops_paths(part)]:
        unsteady.append(
            f"StochasticDepth or DropPath is active in {_first(paths)}: it leaves out layers at random.\n"
            "    Call eval() on it after every backbone.train()."
        )
    if unsteady:
        raise ValueError("\n".join(["the backbone would give other features the next time:", *unsteady]))
    if drawn := _random_parts(loader):
        warnings.warn(
            f"the cache keeps what {', '.join(drawn)} drew this once: each epoch on it sees the same. Cache without "
            "augmentation, in order, and shuffle the cache: DataLoader(cache, shuffle=True)",
            stacklevel=2,
        )
    from tqdm import tqdm  # type: ignore[import-untyped]

    # Its forward would wait for the other processes, which may have fewer batches.
    run = backbone.module if isinstance(backbone, DistributedDataParallel) else backbone
    like = next(chain(backbone.parameters(), backbone.buffers()), torch.empty(0))
    features, targets = [], []
    # The random state, because a DataLoader draws a seed for each pass.
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.no_grad():
        for batch in tqdm(loader, desc="cache_features", delay=2, leave=False):
            match batch:
                case [torch.Tensor() as inputs, labels]:
                    output = run(inputs.to(like.device))
                case _:
                    raise TypeError(
                        f"a batch must be a pair (tensor of inputs, labels), not {_form(batch)}: "
                        "give the DataLoader a collate_fn that makes such pairs"
                    )
            if not isinstance(output, torch.Tensor):
                raise TypeError(f"the backbone must give one tensor, not {_form(output)}: wrap it to pick one")
            try:
                target = torch.as_tensor(labels)
            except (TypeError, ValueError, RuntimeError) as error:
                raise TypeError(f"labels must be a tensor or a list of numbers, not {_form(labels)}") from error
            if not output.ndim or output.shape[:1] != target.shape[:1]:
                shapes = f"features {tuple(output.shape)} and labels {tuple(target.shape)}"
                raise ValueError(f"every row of features needs one label, but the shapes are: {shapes}")
            # Copies, because a slice would keep all that it is a slice of.
            features.append(output.to("cpu", copy=True))
            targets.append(target.to("cpu", copy=True))
        if not features:
            raise ValueError("the loader gave no batch: its dataset is empty, or smaller than a batch with drop_last")
        kept = slice(_without_repeats(loader, sum(map(len, targets))))
        return TensorDataset(torch.cat(features)[kept], torch.cat(targets)[kept])


def _without_repeats(loader: Any, rows: int) -> int:
    """How many of the rows come before those that a DistributedSampler repeats at the end."""
    sampler = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
    # Another number of rows: the loader left out the last batch, or makes several rows of an example.
    if not isinstance(sampler, DistributedSampler) or rows != len(sampler):
        return rows
    return len(range(sampler.rank, len(sampler.dataset), sampler.num_replicas))  # type: ignore[arg-type]


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _drops_paths(part: Any) -> bool:
    named = type(part).__name__ in ("StochasticDepth", "DropPath")
    return named and bool(getattr(part, "p", None) or getattr(part, "drop_prob", None))


def _form(value: object) -> str:
    inside = f" of {', '.join(type(item).__name__ for item in value)}" if isinstance(value, list | tuple) else ""
    return f"a {type(value).__name__}{inside}"


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
