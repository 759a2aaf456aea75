"""What an answer leaves behind in torch for everything that comes after it: seen, undone and named.

>>> before = Torch()
>>> torch.nn.ReLU.train = lambda self, mode=True: self
>>> _ = torch.set_grad_enabled(False)
>>> before.put_back()
['another gradient mode', 'another nn.ReLU.train']
>>> torch.is_grad_enabled(), "train" in vars(torch.nn.ReLU), before.put_back()
(True, False, [])
"""

import contextlib
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.utils.checkpoint
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_empty, _hooks_for_saved = torch.empty, torch._C._autograd._top_saved_tensors_default_hooks


def _set_device(device: torch.device) -> None:
    # None is the CPU without the mode that a default device is, which sees every call.
    torch.set_default_device(None if device.type == "cpu" else device)


SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "gradient mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    # get_default_device() raises in 2.9 once None was set.
    "default device": (lambda: _empty(0).device, _set_device),
    "anomaly mode": (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    "deterministic mode": (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    "number of threads": (torch.get_num_threads, torch.set_num_threads),
    "autocast": (lambda: torch.is_autocast_enabled("cpu"), lambda on: torch.set_autocast_enabled("cpu", on)),
}
"""What is set for all of torch: how it is read, and set."""
STACKS: list[tuple[Callable[[], int], Callable[[int], Any], type[TorchFunctionMode | TorchDispatchMode]]] = [
    (torch._C._len_torch_function_stack, torch._C._get_function_stack_at, TorchFunctionMode),
    (torch._C._len_torch_dispatch_stack, torch._C._get_dispatch_stack_at, TorchDispatchMode),
]
"""Modes that see every call: how many there are, one of them, and the class that ends one."""
HOOKS: dict[str, dict[Any, Any]] = {
    name.removeprefix("_global_").removesuffix("s").replace("_", " "): held
    for module in ("torch.nn.modules.module", "torch.optim.optimizer")
    for name, held in vars(sys.modules[module]).items()
    if name.startswith("_global_") and isinstance(held, dict)
}
"""Hooks of all modules, and of all optimizers."""


def _owners() -> Iterator[Any]:
    """What one might patch: functions, layers, optimizers, tensors."""
    yield from (torch, nn, nn.functional, nn.init, nn.utils, nn.parallel, torch.autograd, torch.autograd.graph)
    yield from (torch.optim, torch.optim.lr_scheduler, torch.utils.checkpoint)
    for place in (nn, nn.parallel, torch.optim, torch.optim.lr_scheduler):
        for value in [*vars(place).values(), torch.Tensor]:
            if isinstance(value, type):
                yield from (one for one in value.__mro__ if one.__module__.startswith("torch"))


class _Patches:
    """What classes and modules of torch hold, compared by identity and all at once: it is asked twice a call."""

    def __init__(self, owners: Iterable[Any]) -> None:
        self.was: dict[Any, dict[str, Any]] = {}
        self.seen: weakref.WeakValueDictionary[int, nn.Module] = weakref.WeakValueDictionary()
        self.note(owners)

    def note(self, owners: Iterable[Any] = ()) -> None:
        """As they are now is how they are to be."""
        owners = dict.fromkeys([*self.was, *owners])
        self.was = {owner: dict(vars(owner)) for owner in owners}
        self.views = [vars(owner).values() for owner in owners]
        self.values = [*chain.from_iterable(self.views)]

    def same(self) -> bool:
        try:
            return [*chain.from_iterable(self.views)] == self.values
        except Exception:  # two values that cannot be compared
            return False

    def begin(self, models: Iterable[Any]) -> None:
        """Watch also the classes that a model has, each that is found by its name: others are made for one model."""
        new = [model for model in models if isinstance(model, nn.Module) and id(model) not in self.seen]
        kinds = {type(part) for model in new for part in model.modules()} - self.was.keys()
        kinds = {one for one in kinds if getattr(sys.modules.get(one.__module__), one.__name__, None) is one}
        self.seen.update((id(model), model) for model in new)
        if kinds or not self.same():
            self.note(kinds)

    def put_back(self, was: dict[Any, dict[str, Any]]) -> Iterator[str]:
        if was is self.was and self.same():
            return
        for owner, before in was.items():
            now = vars(owner)
            for name in [*before, *(now.keys() - before)]:
                old, new = before.get(name, ABSENT), now.get(name, ABSENT)
                if old is not new and _matters(owner, name, old, new):
                    with contextlib.suppress(AttributeError, TypeError):
                        delattr(owner, name) if old is ABSENT else setattr(owner, name, old)
                    yield f"another {_named(owner)}.{name}"
        self.note()


ABSENT = object()
COMPILING = tuple(str(Path(torch.__file__).with_name(name)) for name in ("_dynamo", "_compile.py"))
_patches = _Patches(_owners())


class Torch:
    """How torch is now. ``models`` are those that an answer is given: their classes are watched, too."""

    def __init__(self, *models: Any) -> None:
        _patches.begin(models)
        self.patches = _patches.was
        self.settings = [read() for read, _ in SETTINGS.values()]
        self.stacks = [size() for size, *_ in STACKS]
        self.hooks = [dict(held) for held in HOOKS.values()]
        self.saved = _hooks_for_saved(True)

    def put_back(self) -> list[str]:
        """Undo what has changed since, and name it."""
        left = []
        for (name, (read, write)), before in zip(SETTINGS.items(), self.settings, strict=True):
            if read() != before:
                write(before)
                left.append(f"another {name}")
        for (size, get, kind), before in zip(STACKS, self.stacks, strict=True):
            while size() > before:
                mode = get(size() - 1)
                left.append(f"a {type(mode).__name__.lstrip('_')} switched on")
                kind.__exit__(mode, None, None, None)  # not its own, which may print
        if _hooks_for_saved(True) != self.saved:
            while _hooks_for_saved(True) not in (self.saved, None):
                torch._C._autograd._pop_saved_tensors_default_hooks()
            left.append("hooks for saved tensors")
        hooks = zip(HOOKS.items(), self.hooks, strict=True)
        if changed := [(what, held, before) for (what, held), before in hooks if held != before]:
            for _, held, before in changed:
                held.clear()
                held.update(before)
            what = changed[0][0]
            left.append("a hook for all optimizers" if "optimizer" in what else f"a {what} for all modules")
        return [*left, *_patches.put_back(self.patches)]


def _matters(owner: Any, name: str, old: Any, new: Any) -> bool:
    """Not what torch itself sets when something is used first: a module, a hooked step, what torch.compile notes."""
    if isinstance(new, ModuleType) or name.startswith("__annot"):
        return False
    if getattr(new, "hooked", False):  # the step of an optimizer, its own or an inherited one
        inherited = [vars(one).get(name) for one in owner.__mro__[1:]] if old is ABSENT else [old]
        return not any(new.__wrapped__ is one for one in inherited)
    if getattr(getattr(new, "__code__", None), "co_filename", "").startswith(COMPILING):
        return False
    used = any(callable(value) or hasattr(value, "__get__") for value in (old, new) if value is not ABSENT)
    return used or not name.startswith("_")


def _named(owner: Any) -> str:
    name = owner.__name__ if isinstance(owner, ModuleType) else owner.__qualname__
    if isinstance(owner, type):
        place = owner.__module__
        name = f"nn.{name}" if place.startswith("torch.nn") else f"torch.optim.{name}" if "optim" in place else name
        return f"torch.{name}" if owner is torch.Tensor else name
    return name.replace("torch.nn", "nn", 1)
