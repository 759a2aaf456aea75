"""Freeze parameters together with the running statistics of their norm layers, and undo exactly that."""

import difflib
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from helpers._frozen import all_deciding, frozen_modules
from helpers.report import check_module


def freeze(module: nn.Module, *patterns: str, norm_stats: bool = True) -> list[str]:
    """Freeze the parameters whose names match, and the running statistics of the norm layers that are frozen by it.

    A pattern is a case-sensitive glob on the names of ``module.named_parameters()``; ``*`` also matches dots. Without a
    pattern everything is frozen. Returns the names in model order. Tied weights are one parameter: all its names are
    returned, also if only one matched.

    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    >>> freeze(net, "0.*", "1.*")
    ['0.weight', '0.bias', '1.weight', '1.bias']
    >>> [layer.training for layer in net.train()]
    [True, False, True]

    A frozen BatchNorm or InstanceNorm stays in eval mode, also after ``module.train()``: in train mode it would update
    its running statistics whatever the flags (https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm2d.html).
    Without own parameters (``affine=False``) it counts as frozen when all parameters of the nearest module around it
    are. ``norm_stats=False`` sets flags only. No other mode changes: dropout and stochastic depth in a frozen
    part stay random in train mode (`audit` reports the first, `cache_features` refuses both).

    ``.grad`` of what is frozen becomes None, and `unfreeze` does not bring it back. An optimizer skips a parameter
    without ``.grad``, not one without ``requires_grad``: it would apply the old gradient, and its momentum, once more
    (https://docs.pytorch.org/docs/stable/generated/torch.optim.Optimizer.zero_grad.html). LBFGS skips nothing: after
    freezing make a new one. Freeze before wrapping the model in DistributedDataParallel, which synchronizes what is
    trainable when it wraps: `audit` finds what changed after it.

    A module without parameters gives ``[]``; norm layers in it are held in eval mode. Loading a whole model that was
    saved frozen needs ``helpers`` installed, loading its state_dict does not.

    Raises, before anything is changed, ValueError for a pattern that matches nothing, naming the nearest names, and
    TypeError when ``module`` is no Module or a pattern no string.
    """
    check_module("freeze", module)
    named, groups = _select(module, patterns)
    chosen, before = set[int]().union(*groups), _recorded(named)
    for name, parameter, owner in named:
        if (key := id(parameter)) in chosen:
            before[key] = vars(owner)[_record(name)] = before.get(key, False) or parameter.requires_grad
            # Not requires_grad_(): an uninitialized parameter of a lazy module refuses methods.
            parameter.requires_grad = False
            parameter.grad = None
    if norm_stats:
        frozen, untouched = frozen_modules(module), all_deciding(module, lambda parameter: id(parameter) not in chosen)
        for name, layer in module.named_modules(remove_duplicate=False):
            # Without running statistics a norm layer does the same in both modes.
            with_statistics = isinstance(layer, _NormBase) and layer.running_mean is not None
            because = (frozen[name] or not patterns) and not untouched[name]
            if with_statistics and because and not _is_held(layer):
                _Held(layer)
    return [name for name, parameter, _ in named if id(parameter) in chosen]


def unfreeze(module: nn.Module, *patterns: str) -> list[str]:
    """Undo `freeze`: give the parameters that match the flag they had before, and their norm layers their mode.

    Patterns are those of `freeze`. What `freeze` did not freeze stays as it is. A norm layer that no longer counts as
    frozen gets the mode that ``train()`` or ``eval()`` asked for last. Returns the names restored, in model order.

    >>> from torch import nn
    >>> net = nn.Sequential(nn.Embedding(5, 3).requires_grad_(False), nn.Linear(3, 1))
    >>> _ = freeze(net)
    >>> unfreeze(net)
    ['0.weight', '1.weight', '1.bias']
    >>> [parameter.requires_grad for parameter in net.parameters()]
    [False, True, True]

    Raises as `freeze` does, and ValueError when there is nothing to undo but something is frozen by other means.
    """
    check_module("unfreeze", module)
    named, groups = _select(module, patterns)
    before = _recorded(named)
    held = {name: layer for name, layer in module.named_modules(remove_duplicate=False) if _is_held(layer)}
    for pattern, group in zip(patterns or ["*"], groups, strict=True):
        by_hand = [name for name, parameter, _ in named if id(parameter) in group and not parameter.requires_grad]
        if by_hand and before.keys().isdisjoint(group) and (patterns or not held):
            raise ValueError(
                f"{pattern!r} matches nothing that freeze() froze; frozen without it: {', '.join(by_hand[:3])}. "
                "unfreeze() is an undo: to train these, set requires_grad_(True)"
            )
    chosen = set[int]().union(*groups)
    restored, left = chosen & before.keys(), before.keys() - chosen
    for name, parameter, owner in named:
        if (key := id(parameter)) in restored:
            parameter.requires_grad = before[key]
            vars(owner).pop(_record(name), None)
    frozen, untouched = frozen_modules(module), all_deciding(module, lambda parameter: id(parameter) not in chosen)
    undone = all_deciding(module, lambda parameter: id(parameter) not in left)
    stay = {layer for name, layer in held.items() if frozen[name] and not undone[name]}
    for layer in {layer for name, layer in held.items() if not untouched[name]} - stay:
        stand_in = vars(layer).pop("train")
        if stand_in.replaced:
            vars(layer)["train"] = stand_in.replaced
        layer.training = stand_in.mode
    return [name for name, parameter, _ in named if id(parameter) in restored]


class _Held:
    """Stands in for ``train`` of one norm layer: keeps it in eval mode and remembers the mode it would be in.

    An instance attribute rather than a forward pre-hook: hooks stay as they were, ``training`` tells the truth, forward
    costs nothing and torch.compile sees plain eval. Deepcopy and pickle give a copied layer a stand-in of its own.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer, self.mode, self.replaced = layer, layer.training, vars(layer).get("train")
        layer.training = False
        vars(layer)["train"] = self

    def __call__(self, mode: bool = True) -> nn.Module:
        # The layer's own train() checks the mode, reaches children, and knows what a subclass makes of it.
        if self.replaced:
            self.replaced(mode)
        else:
            type(self.layer).train(self.layer, mode)
        self.mode, self.layer.training = self.layer.training, False
        return self.layer


def _is_held(layer: nn.Module) -> bool:
    return isinstance(vars(layer).get("train"), _Held)


_Named = list[tuple[str, nn.Parameter, nn.Module]]


def _select(module: nn.Module, patterns: tuple[str, ...]) -> tuple[_Named, list[set[int]]]:
    """Every parameter name with its parameter and owner, and for each pattern the ids of the parameters it matches."""
    for pattern in patterns:
        if not isinstance(pattern, str):
            kind = type(pattern).__name__
            raise TypeError(f"a pattern is a string like 'layer1.*', not a {kind}: pass names one by one")
    named = [
        (name, parameter, owner)
        for prefix, owner in module.named_modules(remove_duplicate=False)
        for name, parameter in owner.named_parameters(prefix, recurse=False, remove_duplicate=False)
    ]
    groups = [{id(parameter) for name, parameter, _ in named if fnmatchcase(name, glob)} for glob in patterns or ["*"]]
    for pattern, group in zip(patterns, groups, strict=False):
        if not group:
            parts = [name for name, part in module.named_modules() if name and any(True for _ in part.parameters())]
            candidates = [*(name for name, _, _ in named), *(f"{name}.*" for name in sorted(parts))]
            near = difflib.get_close_matches(pattern, candidates, cutoff=0)
            raise ValueError(f"no parameter name matches {pattern!r}; nearest: {', '.join(near) or 'there are none'}")
    return named, groups


def _record(name: str) -> str:
    """The attribute of the owner that keeps the flag from before: copied and pickled with it, not in the state_dict."""
    return f"_{name.rpartition('.')[2]}_requires_grad_before_freeze"


def _recorded(named: _Named) -> dict[int, bool]:
    return {id(p): vars(owner)[_record(name)] for name, p, owner in named if _record(name) in vars(owner)}
