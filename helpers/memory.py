"""What autograd keeps in memory for backward, by module."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from helpers.report import MANY_ROWS, Line, Rendered, check_depth, check_module, fold


class SavedTensors(Rendered):
    """What ``saved_tensors`` has found so far."""

    def __init__(self, modules: Iterable[str], depth: int | None = None) -> None:
        self._modules = dict.fromkeys(modules, 0)
        self._depth = depth
        # By address. The weak reference keeps nothing alive, but without it a later storage could get the same address.
        self._saved: dict[int, tuple[str, int, StorageWeakRef]] = {}

    @property
    def count(self) -> int:
        """How many storages were saved, empty ones too."""
        return len(self._saved)

    @property
    def nbytes(self) -> int:
        """Their size in bytes."""
        return sum(nbytes for _, nbytes, _ in self._saved.values())

    @property
    def by_module(self) -> dict[str, int]:
        """Bytes by the innermost module that saved a storage first, in the model's order; ``""`` outside submodules."""
        totals = self._modules.copy()
        for name, nbytes, _ in self._saved.values():
            totals[name] += nbytes
        return {name: nbytes for name, nbytes in totals.items() if nbytes}

    def _table(self) -> tuple[list[str], list[tuple[str, ...]], str]:
        # What a module saved outside its submodules is an entry below it, with no name.
        entries = [([*name.split("."), ""] if name else [""], nbytes) for name, nbytes in self.by_module.items()]
        merge = self._depth is not None or len(entries) > MANY_ROWS
        lines = fold(entries, self._depth or 1, merge)
        while self._depth is None and (inside := [line for line in lines if str(line)]):
            largest = max(inside, key=_bytes)
            deeper, at = largest.opened(merge), lines.index(largest)
            if _bytes(largest) <= 0.9 * sum(map(_bytes, inside)) or deeper == [largest]:
                break
            lines[at : at + 1] = deeper
        rows: list[tuple[str, ...]] = [(str(line) or "(no submodule)", _size(_bytes(line))) for line in lines]
        return ["module", "saved"], rows, f"saved for backward: {_size(self.nbytes)}, storages: {self.count:,}"


@contextmanager
def saved_tensors(model: nn.Module, depth: int | None = None) -> Iterator[SavedTensors]:
    """Count what the operations inside the block save for backward, without the parameters and buffers of ``model``.

    >>> net = nn.Sequential(nn.Linear(100, 50), nn.ReLU(), nn.Linear(50, 10))
    >>> with saved_tensors(net) as saved:
    ...     loss = net(torch.ones(8, 100)).sum()
    >>> saved.nbytes, saved.count, saved.by_module
    (4800, 2, {'0': 3200, '1': 1600})
    >>> _ = net[0].requires_grad_(False)
    >>> with saved_tensors(net) as saved:
    ...     loss = net(torch.ones(8, 100)).sum()
    >>> saved
    module        saved
    2       1,600 bytes
    saved for backward: 1,600 bytes, storages: 1

    The first layer keeps its input for its weight's gradient, and no longer needs it once frozen. Everything saved in
    the block counts, each storage once and in full, also what backward has freed meanwhile: for what one step keeps,
    run one forward pass. Inputs and copies of weights (autocast makes them) count too, as do other models' parameters.

    Gradients, in-place errors and the lifetime of tensors are as without the block. Blocks nest, also inside other
    ``saved_tensors_hooks`` such as ``save_on_cpu``; hooks entered inside the block, as checkpointing does, come first,
    and what they take is not counted. Other threads are not counted.
    See https://docs.pytorch.org/docs/stable/autograd.html#torch.autograd.graph.saved_tensors_hooks

    The table has the model's children, and opens one with more than nine tenths of what they saved. ``depth`` sets how
    many levels it has; numbered neighbors that saved the same are then one line. ``by_module`` has every module.

    >>> net = nn.Sequential(nn.Sequential(*(nn.Tanh() for _ in range(9))), nn.Tanh())
    >>> with saved_tensors(net, depth=2) as saved:
    ...     loss = net(torch.ones(8, requires_grad=True)).sum()
    >>> saved
    module          saved
    0.0-8  x 9  288 bytes
    1            32 bytes
    saved for backward: 320 bytes, storages: 10

    What a compiled model saves counts for the module that was compiled, as its submodules do not run one by one.

    Raises TypeError when ``model`` is no module, and ValueError when ``depth`` is less than 1.
    """
    check_module("saved_tensors", model)
    check_depth("saved_tensors", depth)
    names: dict[nn.Module | None, str] = {module: name for name, module in model.named_modules()}
    inside: list[nn.Module | None] = [None]
    result = SavedTensors(names.values(), depth)
    own = {storage._cdata: StorageWeakRef(storage) for storage in storages(model.parameters(), model.buffers())}
    # Only the innermost hooks are called, so ours call those around them. Torch has no public way to get at these.
    pack_around, unpack = torch._C._autograd._top_saved_tensors_default_hooks(False) or (_pack, _unpack)

    def forget(*groups: Iterable[Tensor]) -> None:
        for storage in storages(*groups):
            result._saved.pop(storage._cdata, None)

    def enter(module: nn.Module, args: object) -> None:
        # While torch.compile looks at this call, its modules are not to be counted: compiled, they will not be called.
        if not torch.compiler.is_compiling() and module in names:
            inside.append(module)

    def leave(module: nn.Module, args: object, output: object) -> None:
        if not torch.compiler.is_compiling() and inside[-1] is module:
            inside.pop()
            if hasattr(module, "unshard"):  # by FSDP, which has gathered its parameters for this call only
                forget(module.parameters())

    def pack(tensor: Tensor) -> object:
        for storage in storages([tensor]):
            if storage._cdata not in own and storage._cdata not in result._saved:
                result._saved[storage._cdata] = names.get(inside[-1], ""), storage.nbytes(), StorageWeakRef(storage)
        return pack_around(tensor)

    # Hooks for all modules, not the model's own: a deepcopy or a save of the model inside the block takes none along.
    with (
        register_module_forward_pre_hook(enter),
        register_module_forward_hook(leave, always_call=True),
        saved_tensors_hooks(pack, unpack),
    ):
        try:
            yield result
        finally:
            # Lazy and replaced modules have parameters that they did not have before.
            forget(model.parameters(), model.buffers())
            # The graph keeps the hooks. If they kept the model, one that stores its output could never be freed.
            names.clear()
            inside[:] = [None]


def dense_parts(tensor: Tensor) -> list[Tensor]:
    """The strided tensors that hold the values: the tensor itself, or the parts of a sparse tensor or a wrapper."""
    if type(tensor) not in (Tensor, nn.Parameter) and is_traceable_wrapper_subclass(tensor):
        parts = [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]  # a DTensor names its mesh as well
        return [dense for part in parts if isinstance(part, Tensor) for dense in dense_parts(part)]
    if tensor.layout == torch.strided:
        return [tensor]
    if tensor.layout == torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    return [tensor.to_dense()]  # MKL-DNN keeps its values to itself.


def storages(*groups: Iterable[Tensor]) -> list[torch.UntypedStorage]:
    """Where the values are. A storage's ``_cdata`` identifies it, also on the meta device."""
    tensors = [tensor for tensor in chain(*groups) if not is_lazy(tensor)]
    return [part.untyped_storage() for tensor in tensors for part in dense_parts(tensor)]


def _pack(tensor: Tensor) -> tuple[Tensor, int]:
    """Detached: an output of a node, kept as it is, would refer to the node that keeps it and never be freed.

    What no node made stays itself, so that `graph` knows a parameter when it meets it.
    """
    return (tensor if tensor.grad_fn is None else tensor.detach()), tensor._version


def _unpack(packed: tuple[Tensor, int]) -> Tensor:
    """With hooks in place autograd does not look for in-place changes itself."""
    tensor, version = packed
    if tensor._version != version:
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace operation: "
            f"a saved tensor of shape {tuple(tensor.shape)} is at version {tensor._version}; expected version {version}"
        )
    return tensor


def _bytes(line: Line) -> int:
    return line.times * sum(nbytes for _, nbytes in line.entries)


def _size(nbytes: int) -> str:
    mib = nbytes / 2**20
    return f"{nbytes:,} bytes" if mib < 0.01 else f"{mib:.3f} MiB" if mib < 1 else f"{mib:,.2f} MiB"
