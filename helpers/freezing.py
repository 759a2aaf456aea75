"""Freeze parts of a model, so that they neither move nor draw at random, and undo exactly that."""

import difflib
import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from helpers.report import check_module


def frozen_modules(model: nn.Module, around: bool = False, chosen: Iterable[int] = ()) -> dict[str, bool]:
    """The qualified name of every module of ``model`` (``""`` is the model) and whether it counts as frozen.

    The one definition that freeze, watch and audit share: a module counts as frozen when there are parameters in it
    and all of them are frozen (or among the ids ``chosen``); one without any follows the module around it (the model
    itself ``around``), and where it has several names it counts as frozen only if it does under each.

    >>> from torch import nn
    >>> frozen_modules(nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.BatchNorm1d(2, affine=False)))
    {'': True, '0': True, '1': True}
    """
    modules = list(model.named_modules(remove_duplicate=False))  # parents before what is in them
    flags: dict[nn.Module, set[bool]] = {}
    for _, module in reversed(modules):
        own = {not p.requires_grad or id(p) in chosen for p in module.parameters(recurse=False)}
        flags[module] = own.union(*(flags[child] for child in module.children()))
    frozen: dict[str, bool] = {}
    for name, module in modules:
        follows = frozen[name.rpartition(".")[0]] if name else around
        frozen[name] = all(flags[module] or {follows or (is_held(module) and vars(module)["train"].alone)})
    trains = {module for name, module in modules if not frozen[name]}
    return {name: module not in trains for name, module in modules}


def frozen_parts(model: nn.Module, frozen: dict[str, bool]) -> dict[str, nn.Module]:
    """The topmost of the modules that are ``frozen``, each once, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if frozen[name] and not (name and frozen[name.rpartition(".")[0]])
    }


def is_held(module: nn.Module) -> bool:
    """Whether `freeze` looks after the mode of ``module``."""
    return isinstance(vars(module).get("train"), _Hold)


def held_parts(model: nn.Module) -> list[str]:
    """The names of the topmost modules that `freeze` holds in eval mode now."""
    frozen = frozen_modules(model, around=is_held(model))
    return list(frozen_parts(model, {name: frozen[name] and is_held(part) for name, part in model.named_modules()}))


def freeze(module: nn.Module, *patterns: str, hold: bool = True, **unknown: object) -> list[str]:
    """Freeze the parameters whose names match, and hold the parts of the model that are frozen by it in eval mode.

    A pattern is the name of a parameter, or a case-sensitive glob on the names of ``module.named_parameters()``; ``*``
    also matches dots. Without a pattern everything is frozen. Returns the names in model order. Tied weights are one
    parameter: all its names are returned, also if only one matched.

    >>> from torch import nn
    >>> net = nn.Sequential(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout()), nn.Linear(3, 1))
    >>> freeze(net, "0.*")
    ['0.0.weight', '0.0.bias', '0.1.weight', '0.1.bias']
    >>> [part.training for part in net.train()]
    [False, True]

    Frozen means two things: no entry of the part's state_dict changes, and equal inputs give equal outputs. The flags
    give neither, because running statistics, spectral norm's vectors and codebooks move in forward, and dropout of
    every kind draws, for as long as the modules are in train mode. So every module of a frozen part stays in eval mode,
    whatever ``train()`` is called: of the model, of a part, or of each module by a framework
    (https://docs.pytorch.org/docs/stable/notes/autograd.html#locally-disable-grad-doc).

    A module counts as frozen when there are parameters in it and all are frozen; one without parameters follows the
    module around it. What is frozen is looked at when ``train()`` is called: a new head in a model that was frozen
    whole trains with its dropout on, and a part that was unfrozen by other means is held no more.

    >>> _ = freeze(net)
    >>> net[1] = nn.Sequential(nn.Dropout(), nn.Linear(3, 5))
    >>> [part.training for part in net.train()]
    [False, True]

    ``update_bn`` and ``reset_running_stats()`` leave a held part's statistics as they are. Not held are an assignment
    to ``.training``, a module that is put into the part later, and what moves in eval mode too (observers,
    FakeQuantize, an Embedding with ``max_norm``): `audit` names them. What draws in eval mode too, such as
    FractionalMaxPool2d, goes on drawing.

    ``hold=False`` leaves the modes alone. Use it for the turns of a GAN and for adapters inside a base: where a
    gradient must pass through a part, eval mode has a price. It switches off a library's activation checkpointing (so
    more is kept in memory), cuDNN's backward of RNNs (which then raises) and auxiliary outputs, and BatchNorm and
    dropout pass on another gradient. `audit` names the first three where it sees them.

    ``.grad`` of what is frozen becomes None, and `unfreeze` does not bring it back. An optimizer skips a parameter
    without ``.grad``, not one without ``requires_grad``: it would apply the old gradient, and its momentum, once more
    (https://docs.pytorch.org/docs/stable/generated/torch.optim.Optimizer.zero_grad.html). LBFGS skips nothing: after
    freezing make a new one. Optimizers that keep a second copy of the weights (schedule-free ones, Lookahead) put it
    back: freeze before you build them.

    Freeze after you convert or script layers (SyncBatchNorm, quantization, ``torch.jit.script``), and before you trace
    or wrap the model: a trace keeps the mode, and DistributedDataParallel synchronizes what is trainable when it
    wraps. A module without parameters gives ``[]`` and is held. A held model refers to itself, so its memory is free
    some time after ``del``, or after ``gc.collect()``. Loading a whole model that was saved frozen needs
    ``helpers`` installed, loading its state_dict does not.

    Raises, before anything is changed, ValueError for a pattern that matches nothing, naming the nearest names, and
    for a traced part that cannot be held, because the trace has fixed its train mode; TypeError when ``module`` is no
    Module or a pattern no string.
    """
    check_module("freeze", module)
    if unknown:
        raise TypeError(
            f"freeze() has no {', '.join(unknown)}: hold=True, the default, keeps the whole frozen part in eval mode, "
            "and hold=False leaves the modes alone"
        )
    names, owners, groups = _select(module, patterns)
    chosen = set[int]().union(*groups.values())
    frozen = frozen_modules(module, around=not patterns, chosen=chosen)
    parts = list(frozen_parts(module, frozen).values()) if hold else []
    if patterns:
        parts = [part for part in parts if any(id(parameter) in chosen for parameter in part.parameters())]
    if fixed := _fixed_in_train_mode(module, frozen, parts):
        raise ValueError(
            f"{fixed} was traced in train mode, which the trace keeps, so it cannot be held in eval mode: "
            "freeze before tracing, or trace in eval mode (hold=False leaves the modes alone)"
        )
    _hold(module, frozen, parts)
    before, flags = _recorded(owners), {id(parameter): parameter.requires_grad for parameter, *_ in owners}
    for parameter, owner, key in owners:
        if id(parameter) in chosen:
            vars(owner)[_record(key)] = before.get(id(parameter), False) or flags[id(parameter)]
            # Not requires_grad_(): an uninitialized parameter of a lazy module refuses methods.
            parameter.requires_grad = False
            parameter.grad = None
    return [name for name, parameter in names if id(parameter) in chosen]


def unfreeze(module: nn.Module, *patterns: str) -> list[str]:
    """Undo `freeze`: give the parameters that match the flag they had before, and the modules their mode.

    Patterns are those of `freeze`. What `freeze` did not freeze stays as it is. A module that no longer counts as
    frozen gets the mode that ``train()`` or ``eval()`` asked for last. Returns the names restored, in model order.

    >>> from torch import nn
    >>> net = nn.Sequential(nn.Embedding(5, 3).requires_grad_(False), nn.Linear(3, 1))
    >>> _ = freeze(net)
    >>> unfreeze(net)
    ['0.weight', '1.weight', '1.bias']
    >>> [parameter.requires_grad for parameter in net.parameters()]
    [False, True, True]

    However often a parameter was frozen, the flag from before the first time is given back. So who freezes a network
    for a turn, and keeps a part of it frozen always, names what is to train again.

    >>> _ = freeze(net, "1.weight"), freeze(net, hold=False)
    >>> unfreeze(net, "1.bias")
    ['1.bias']

    Each layer remembers the flags that its parameters had, so a layer that was swapped after freezing
    (``convert_sync_batchnorm``, quantization's ``prepare``) remembers none. What matches and stays frozen, because
    it was frozen by other means or its layer was swapped, is named in a UserWarning.

    Raises as `freeze` does, and ValueError when there is nothing to undo but something is frozen by other means.
    """
    check_module("unfreeze", module)
    names, owners, groups = _select(module, patterns)
    before = _recorded(owners)
    for pattern, group in groups.items():
        by_hand = few(name for name, parameter in names if id(parameter) in group and not parameter.requires_grad)
        if by_hand and before.keys().isdisjoint(group) and (patterns or not any(map(is_held, module.modules()))):
            raise ValueError(
                f"{pattern!r} matches nothing that freeze() froze; frozen without it: {by_hand}. "
                "unfreeze() is an undo: to train these, set requires_grad_(True)"
            )
    chosen = set[int]().union(*groups.values())
    restored = chosen & before.keys()
    for parameter, owner, key in owners:
        if id(parameter) in restored:
            parameter.requires_grad = before[id(parameter)]
            vars(owner).pop(_record(key), None)
    _release(module, before.keys() - restored, whole=not patterns)
    unknown = chosen - restored
    if stay := few(name for name, p in names if id(p) in unknown and not p.requires_grad):
        warnings.warn(
            f"these stay frozen: {stay}. Either freeze() did not freeze them, or their layer was swapped after it, and "
            "with the layer what it remembered. To train them, set requires_grad_(True)",
            stacklevel=2,
        )
    return [name for name, parameter in names if id(parameter) in restored]


class _Hold:
    """Stands in for ``train`` of one module: keeps it in eval mode while it counts as frozen.

    An instance attribute rather than a hook: hooks stay as they were, ``training`` tells the truth, forward costs
    nothing and torch.compile sees plain eval. Deepcopy and pickle give a copied module a stand-in of its own. It holds
    its module, else ``build().train()`` would come too late.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.mode = module.training
        """The mode that it would have without `freeze`."""
        self.asked: bool | None = None
        """Whether that mode was asked of it, and not of a module around it; None: of neither since it was frozen."""
        self.frozen: bool | None = None
        """Whether it counted as frozen when last looked at. None: it is shared with a part that trains, which decides.
        """
        self.alone = False
        """Whether it was frozen by itself although it has no parameters; else it follows what is around it."""
        ours: dict[str, Callable[..., Any]] = {"train": self}
        if hasattr(type(module), "reset_running_stats"):
            ours["reset_running_stats"] = self.reset
        self.replaced = {key: vars(module).get(key) for key in ours}
        vars(module).update(ours)

    def __call__(self, mode: bool = True, *args: Any, **kwargs: Any) -> nn.Module:
        if not isinstance(mode, bool):
            return self.own(mode, *args, **kwargs)  # which refuses it
        quiet = _quiet.get()
        if not quiet:
            stand_ins = _stand_ins(self.module)
            if quiet is None:  # else the call around it has looked, and sees more
                frozen = frozen_modules(self.module, around=bool(self.frozen))
                for name, inner in stand_ins.items():
                    inner.frozen = None if inner.frozen is None else frozen[name]
            for inner in stand_ins.values():
                inner.mode, inner.asked = mode, inner is self
        elif not self.frozen:
            return self.module
        with _calling(quiet=bool(self.frozen)):
            # The module's own train() reaches children, and knows what a subclass makes of it.
            self.own(mode and not self.frozen, *args, **kwargs)
        if self.frozen:
            self.module.training = False
        return self.module

    @property
    def own(self) -> Callable[..., nn.Module]:
        return self.replaced["train"] or type(self.module).train.__get__(self.module)

    def reset(self) -> None:
        """Stands in for ``reset_running_stats`` of a norm layer, as `update_bn` calls it."""
        if not frozen_modules(self.module, around=bool(self.frozen))[""]:
            type(self.module).reset_running_stats(self.module)  # type: ignore[attr-defined]

    def let_go(self) -> None:
        for key, before in self.replaced.items():
            del vars(self.module)[key]
            if before:
                vars(self.module)[key] = before


def _stand_ins(model: nn.Module) -> dict[str, _Hold]:
    return {name: vars(part)["train"] for name, part in model.named_modules() if is_held(part)}


_quiet: ContextVar[bool | None] = ContextVar("_quiet", default=None)
"""During a call of ``train``, whether a held part is called, or `freeze` or `unfreeze` call: what they ask is no wish
to remember.
"""


@contextmanager
def _calling(quiet: bool) -> Iterator[None]:
    token = _quiet.set(quiet)
    try:
        yield
    finally:
        _quiet.reset(token)


def _hold(model: nn.Module, frozen: dict[str, bool], parts: list[nn.Module]) -> None:
    """Put a stand-in on every module in the parts, or, if a module's own ``train`` raises, leave all as it was."""
    inside = {module: module.training for part in parts for module in part.modules()}
    new = [_Hold(module) for module in inside if not is_held(module) and _switches_modes(module)]
    for name, stand_in in _stand_ins(model).items():
        if stand_in.module in inside:
            stand_in.frozen = frozen[name] or None
            stand_in.alone |= stand_in.module is model and not any(True for _ in model.parameters())
    try:
        with _calling(quiet=True):
            for part in parts:
                part.eval()
    except BaseException:
        for stand_in in new:
            stand_in.let_go()
        for module, mode in inside.items():
            module.training = mode
        raise


def _switches_modes(module: nn.Module) -> bool:
    """Whether its ``train`` is the one of nn.Module, or one like it, and not a training loop of that name."""
    first = list(inspect.signature(type(module).train).parameters.values())[1:2]
    return callable(vars(module).get("train", type(module).train)) and [item.default for item in first] == [True]


def _release(module: nn.Module, recorded: Iterable[int], whole: bool) -> None:
    """Let go of what is no longer frozen, or no longer by `freeze`, in the mode that it would have without it."""
    frozen, stand_ins = frozen_modules(module), _stand_ins(module)
    ours = [part for part in frozen_parts(module, frozen).values() if any(id(p) in recorded for p in part.parameters())]
    ours += [stand_in.module for stand_in in stand_ins.values() if stand_in.alone and not whole]
    inside = {inner for part in ours for inner in part.modules()}
    gone: dict[nn.Module, _Hold] = {}
    for name, stand_in in stand_ins.items():
        stand_in.frozen = frozen[name] or None
        if not (frozen[name] and stand_in.module in inside):
            gone[stand_in.module] = stand_in
        if stand_in.module not in inside:
            stand_in.let_go()
    others = {part: part.training for part in module.modules() if part not in gone}
    reached = {child for part in gone for child in part.children()}
    with _calling(quiet=True):
        for stand_in in gone.values():  # parents before what is in them
            stand_in.own(stand_in.mode)
        for part, stand_in in gone.items():
            if stand_in.asked or (stand_in.asked is False and part not in reached):
                stand_in.own(stand_in.mode)
    for part, mode in others.items():
        part.training = mode


def _fixed_in_train_mode(module: nn.Module, frozen: dict[str, bool], parts: list[nn.Module]) -> str:
    """The name of a module that computes frozen parts as its trace says, whatever its mode; "" if there is none."""
    inside = {part for top in parts for part in top.modules()}
    for name, part in module.named_modules():
        fixed = isinstance(part, torch.jit.ScriptModule) and part in inside and _script_trains(part)
        if isinstance(part, torch.fx.GraphModule):
            # Of torchvision's extractor, which has a graph for each mode, the one that it will use.
            graph = getattr(part, "eval_graph" if frozen[name] else "train_graph", part.graph)
            training = list(filter(node_trains, graph.nodes))
            read = [source for node in training for source in node.all_input_nodes if source.op == "get_attr"]
            owners = {part.get_submodule(str(source.target).rpartition(".")[0]) for source in read}
            fixed = bool(training) and not inside.isdisjoint({part, *owners})
        if fixed:
            return repr(name) if name else "the model"
    return ""


def _asks_to_train(given: Mapping[str, Any]) -> bool:
    """Without running statistics a norm layer is told to in eval mode, too."""
    modes = ("train", "training", "use_input_stats")
    return given.get("running_mean", ...) is not None and any(given.get(mode) is True for mode in modes)


def _script_trains(part: torch.jit.ScriptModule) -> bool:
    graph = getattr(part, "inlined_graph", None)
    for node in graph.nodes() if graph else ():
        if node.schema() != "(no schema)":
            names = [argument.name for argument in torch._C.parse_schema(node.schema()).arguments]
            values = [value.toIValue() if value.node().kind() == "prim::Constant" else value for value in node.inputs()]
            if _asks_to_train(dict(zip(names, values, strict=False))):
                return True
    return False


def node_trains(node: torch.fx.Node) -> bool:
    """Whether a node of a traced module computes as in train mode, whatever the mode."""
    if node.op != "call_function":
        return False
    if schema := getattr(node.target, "_schema", None):  # as torch.export writes them
        return _asks_to_train(dict(zip([argument.name for argument in schema.arguments], node.args, strict=False)))
    try:
        given = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # a built-in function tells nothing
        return False
    return _asks_to_train(given.arguments)


_Owners = list[tuple[nn.Parameter, nn.Module, str]]
_Selected = tuple[list[tuple[str, nn.Parameter]], _Owners, dict[str, set[int]]]


def _select(module: nn.Module, patterns: tuple[str, ...]) -> _Selected:
    """Every name with its parameter; every parameter with its owners; for each pattern the ids of what it matches."""
    for pattern in patterns:
        if not isinstance(pattern, str):
            kind = type(pattern).__name__
            raise TypeError(f"a pattern is a string like 'layer1.*', not a {kind}: pass names one by one")
    names = list(module.named_parameters(remove_duplicate=False))
    # From the modules themselves: what wraps one may change the names, not what it owns.
    owners = [(p, owner, key) for owner in module.modules() for key, p in owner._parameters.items() if p is not None]
    groups = {}
    for pattern in patterns or ["*"]:
        exact = {id(parameter) for name, parameter in names if name == pattern}
        groups[pattern] = exact or {id(parameter) for name, parameter in names if fnmatchcase(name, pattern)}
        if patterns and not groups[pattern]:
            parts = [name for name, part in module.named_modules() if name and any(True for _ in part.parameters())]
            candidates = [*(name for name, _ in names), *(f"{name}.*" for name in sorted(parts))]
            near = difflib.get_close_matches(pattern, candidates, cutoff=0)
            raise ValueError(f"no parameter name matches {pattern!r}; nearest: {', '.join(near) or 'there are none'}")
    return names, owners, groups


def _record(key: str) -> str:
    """The attribute of the owner that keeps the flag from before: copied and pickled with it, not in the state_dict."""
    return f"_{key}_requires_grad_before_freeze"


def _recorded(owners: _Owners) -> dict[int, bool]:
    return {id(p): vars(owner)[_record(key)] for p, owner, key in owners if _record(key) in vars(owner)}


def few(names: Iterable[str], most: int = 3) -> str:
    """The first names, and how many more there are.

    >>> few("abcd")
    'a, b, c and 1 more'
    """
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")
