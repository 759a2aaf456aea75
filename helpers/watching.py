"""Which entries of a state_dict changed, and which of them were meant to be frozen."""

import copy
import html
import pickle
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_flatten

from helpers.freezing import few, frozen_modules
from helpers.memory import dense_parts
from helpers.report import AMISS, TRAINS, as_html, check_module

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
    inside: parameters with ``requires_grad`` False, and other entries of modules that count as frozen. ``unmoved`` are
    the trainable parameters that did not change, as when no gradient reaches them or no optimizer holds them. That is
    no alarm: a gradient may be zero, and behind a head that starts at zero it is, for one step.

    >>> optimizer = torch.optim.SGD([net[2].weight], lr=0.1)
    >>> with watch(net.eval()) as seen:
    ...     (net(torch.eye(2)) ** 2).sum().backward()
    ...     optimizer.step()
    >>> print(seen)
    1 of 9 entries changed, none meant to be frozen; trainable and unmoved: 2.bias

    Values are compared bit by bit: NaN equals the same NaN, and 0.0 differs from -0.0. Of quantized tensors the
    integers, scales and zero points are compared, of sharded ones this process's part. A move to another device is no
    change. Tensors on ``meta`` have no values, so there only dtype and shape count. Buffers registered with
    ``persistent=False`` are not in the state_dict and not watched. What belongs to what is decided by the objects, not
    by names, so compiled, wrapped and activation-checkpointed models will do. It keeps one copy of the state_dict, on
    the same device, until the block ends. All lists are set also when the block raises.

    Raises TypeError when ``model`` is no module, RuntimeError when a list is read before the block has ended.
    """

    def __init__(self, model: nn.Module) -> None:
        check_module("watch", model)
        self._model = model
        self._lists: tuple[list[str], list[str], list[str]] | None = None

    def __enter__(self) -> Self:
        self._lists = None
        entries = self._model.state_dict(keep_vars=True)
        self._meant_frozen = _meant_frozen(self._model, entries)
        self._trainable = {n for n, value in entries.items() if isinstance(value, nn.Parameter) and value.requires_grad}
        shared: dict[int, Any] = {}  # deepcopy with one memo, not clone: tied weights are copied once
        values = _values(entries).items()
        self._before = {name: (facts, copy.deepcopy(parts, shared)) for name, (facts, parts) in values}
        return self

    def __exit__(self, *error: object) -> None:
        before, after = self._before, _values(self._model.state_dict(keep_vars=True))
        names = dict.fromkeys([*before, *after])
        changed = [n for n in names if n not in before or n not in after or not _same(before[n], after[n])]
        self._size = len(names)
        # What came later belongs to nobody that was there before.
        unexpected = [name for name in changed if self._meant_frozen.get(name)]
        self._lists = changed, unexpected, [name for name in before if name in self._trainable - set(changed)]
        del self._before

    @property
    def changed(self) -> list[str]:
        """The names of the entries that changed."""
        return self._ended()[0]

    @property
    def unexpected(self) -> list[str]:
        """Those of ``changed`` that were meant to be frozen."""
        return self._ended()[1]

    @property
    def unmoved(self) -> list[str]:
        """The names of the parameters that were trainable, and did not change."""
        return self._ended()[2]

    def __str__(self) -> str:
        if self._lists is None:
            return "nothing compared yet: the block has not ended"
        changed, unexpected, unmoved = self._lists
        frozen = f"{len(unexpected):,} of them meant to be frozen: {few(unexpected)}" if unexpected else ""
        told = f"{len(changed):,} of {self._size:,} entries changed, {frozen or 'none meant to be frozen'}"
        return f"{told}; trainable and unmoved: {few(unmoved)}" if changed and unmoved else told

    __repr__ = __str__

    def _repr_html_(self) -> str:
        if self._lists is None:
            return f"<p>{self}</p>"
        changed, unexpected, unmoved = self._lists
        free = [name for name in changed if name not in set(unexpected)]
        rows = [
            (AMISS if unexpected else "", "changed, though frozen", unexpected),
            (TRAINS if free else "", "changed, not frozen", free),
            ("", "trainable, unmoved", unmoved),
        ]
        told = [(look, [what, f"{len(names):,}", html.escape(few(names, 8))]) for look, what, names in rows]
        frozen = f"{len(unexpected):,} of them" if unexpected else "none"
        above = f"<p>{len(changed):,} of {self._size:,} entries changed, {frozen} meant to be frozen</p>"
        return above + as_html(["state_dict", "entries", "which"], told, numbers=["entries"])

    def _ended(self) -> tuple[list[str], list[str], list[str]]:
        if self._lists is None:
            raise RuntimeError("watch compares when its block ends: read its lists after the with block")
        return self._lists


def _meant_frozen(model: nn.Module, entries: dict[str, Any]) -> dict[str, bool]:
    """Whether each entry belongs to something frozen: a parameter, or a module that counts as frozen."""
    frozen = frozen_modules(model)
    buffers = ((name, item) for name, module in model.named_modules() for item in module._buffers.values())
    flags = {id(item): frozen[name] for name, item in buffers if item is not None}
    flags |= {id(item): not item.requires_grad for item in entries.values() if isinstance(item, nn.Parameter)}
    known = frozen | {name: flags[id(item)] for name, item in entries.items() if id(item) in flags}
    # The rest is what a module or a parameter (quantized weights do) adds to its own: it goes with the longest name
    # that its name begins with.
    meant = {}
    for name in entries:
        owner = name
        while owner not in known:
            owner = owner.rpartition(".")[0]
        meant[name] = known[owner]
    return meant


_Value = tuple[list[Any], list[Tensor]]


def _values(entries: dict[str, Any]) -> dict[str, _Value]:
    """For each entry what can be compared with ``==``, and the tensors whose values are to be compared."""
    values = {}
    for name, value in entries.items():
        leaves, structure = tree_flatten(value)
        facts: list[Any] = [structure]
        parts: list[Tensor] = []
        for leaf in leaves:
            if not isinstance(leaf, Tensor):  # get_extra_state may give anything that can be pickled
                facts.append(pickle.dumps(leaf))
            elif is_lazy(leaf):
                facts.append(type(leaf))
            else:
                ragged = leaf.is_nested and leaf.layout == torch.strided
                inside = [part.detach().resolve_neg() for part in (leaf.unbind() if ragged else dense_parts(leaf))]
                facts += [(type(t), t.dtype, t.layout, t.is_meta) for t in (leaf, *inside)]
                facts += [part.shape for part in (inside if ragged else (leaf, *inside))]
                for part in inside:
                    numbers, how = _dequantized(part) if part.is_quantized else ([part], [])
                    facts += how
                    parts += numbers
        values[name] = facts, parts
    return values


def _dequantized(tensor: Tensor) -> tuple[list[Tensor], list[Any]]:
    """The integers of a quantized tensor and what they mean: ``torch.equal`` kills the process when given such."""
    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return [tensor.int_repr()], [tensor.qscheme(), tensor.q_scale(), tensor.q_zero_point()]
    how = [tensor.qscheme(), tensor.q_per_channel_axis()]
    return [tensor.int_repr(), tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()], how


def _same(old: _Value, new: _Value) -> bool:
    (old_facts, old_parts), (new_facts, new_parts) = old, new
    pairs = zip(old_parts, new_parts, strict=True)
    return old_facts == new_facts and all(a.is_meta or torch.equal(_bits(a), _bits(b.to(a.device))) for a, b in pairs)


def _bits(tensor: Tensor) -> Tensor:
    """Floats as integers of the same width: ``torch.equal`` calls NaN unequal to itself, and 0.0 equal to -0.0."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor.view(_BITS[tensor.element_size()])
