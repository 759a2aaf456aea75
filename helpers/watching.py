"""Which entries of a state_dict changed, and which of them were meant to be frozen."""

import copy
import pickle
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_flatten

from helpers._frozen import frozen_modules
from helpers.memory import dense_parts
from helpers.report import check_module

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class watch:
    """Context manager that compares the ``state_dict`` of ``model`` before and after the block, exactly.

    >>> net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    >>> _ = net[:2].requires_grad_(False)
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    >>> with watch(net) as seen:
    ...     (net(torch.eye(2)) ** 2).sum().backward()
    ...     optimizer.step()
    >>> print(seen)
    5 of 9 entries changed, 3 of them meant to be frozen: 1.running_mean, 1.running_var, 1.num_batches_tracked
    >>> seen.changed
    ['1.running_mean', '1.running_var', '1.num_batches_tracked', '2.weight', '2.bias']

    ``changed`` lists the entries whose values, dtype or shape differ, and those that came or went, in the order of the
    state_dict. ``unexpected`` are those of them that were frozen *when the block began*, whatever became of the flags
    inside: parameters with ``requires_grad`` False, and other entries of modules that count as frozen.

    Values are compared bit by bit: NaN equals the same NaN, and 0.0 differs from -0.0. A move to another device is no
    change. Tensors on ``meta`` have no values, so there only dtype and shape count. Buffers registered with
    ``persistent=False`` are not in the state_dict and not watched. It keeps one copy of the state_dict, on the same
    device, until the block ends. Both lists are set also when the block raises.

    Raises TypeError when ``model`` is no module, RuntimeError when a list is read before the block has ended.
    """

    def __init__(self, model: nn.Module) -> None:
        check_module("watch", model)
        self._model = model
        self._lists: tuple[list[str], list[str]] | None = None

    def __enter__(self) -> Self:
        self._lists = None
        self._trainable = {n: p.requires_grad for n, p in self._model.named_parameters(remove_duplicate=False)}
        self._frozen = frozen_modules(self._model)
        shared: dict[int, Any] = {}  # deepcopy with one memo, not clone: tied weights are copied once
        self._before = {n: (facts, copy.deepcopy(parts, shared)) for n, (facts, parts) in _entries(self._model).items()}
        return self

    def __exit__(self, *error: object) -> None:
        before, after = self._before, _entries(self._model)
        names = list(dict.fromkeys([*before, *after]))
        gone: tuple[list[Any], list[Tensor]] = ([], [])
        pairs = [(before.get(name, gone), after.get(name, gone)) for name in names]
        same = [old[0] == new[0] and all(map(_same, old[1], new[1])) for old, new in pairs]
        changed = [name for name, kept in zip(names, same, strict=True) if not kept]
        self._size = len(names)
        self._lists = changed, [name for name in changed if self._meant_frozen(name)]
        del self._before

    @property
    def changed(self) -> list[str]:
        """The names of the entries that changed."""
        return self._ended()[0]

    @property
    def unexpected(self) -> list[str]:
        """Those of ``changed`` that were meant to be frozen."""
        return self._ended()[1]

    def __str__(self) -> str:
        if self._lists is None:
            return "nothing compared yet: the block has not ended"
        changed, unexpected = self._lists
        shown = ", ".join(unexpected[:3]) + (f" and {len(unexpected) - 3:,} more" if len(unexpected) > 3 else "")
        frozen = f"{len(unexpected):,} of them meant to be frozen: {shown}" if unexpected else "none meant to be frozen"
        return f"{len(changed):,} of {self._size:,} entries changed, {frozen}"

    __repr__ = __str__

    def _ended(self) -> tuple[list[str], list[str]]:
        if self._lists is None:
            raise RuntimeError("watch compares when its block ends: read changed and unexpected after the with block")
        return self._lists

    def _meant_frozen(self, name: str) -> bool:
        if name in self._trainable:
            return not self._trainable[name]
        return self._frozen.get(name.rpartition(".")[0], False)


def _entries(model: nn.Module) -> dict[str, tuple[list[Any], list[Tensor]]]:
    """For each entry what can be compared with ``==``, and the tensors whose values are to be compared."""
    entries = {}
    for name, value in model.state_dict().items():
        leaves, structure = tree_flatten(value)
        facts: list[Any] = [structure]
        parts: list[Tensor] = []
        for leaf in leaves:
            if not isinstance(leaf, Tensor):  # get_extra_state may give anything that can be pickled
                facts.append(pickle.dumps(leaf))
            elif is_lazy(leaf):
                facts.append(type(leaf))
            else:
                facts += [(type(t), t.dtype, t.shape, t.layout, t.is_meta) for t in (leaf, *dense_parts(leaf))]
                parts += dense_parts(leaf)
        entries[name] = facts, parts
    return entries


def _same(old: Tensor, new: Tensor) -> bool:
    return old.is_meta or torch.equal(_bits(old), _bits(new.to(old.device)))


def _bits(tensor: Tensor) -> Tensor:
    """Floats as integers of the same width: ``torch.equal`` calls NaN unequal to itself, and 0.0 equal to -0.0."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor.view(_BITS[tensor.element_size()])
