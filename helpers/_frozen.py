"""What counts as frozen: the one definition that freeze, watch and audit share."""

from collections import Counter
from collections.abc import Callable, Iterator

from torch import nn


def frozen_modules(model: nn.Module) -> dict[str, bool]:
    """The qualified name of every module of ``model`` (``""`` is the model) and whether it counts as frozen.

    A module counts as frozen when its own parameters are all frozen; a module without any, when all parameters below
    the nearest module around it are. A model without parameters is not frozen. Shared modules appear under every name.

    >>> from torch import nn
    >>> frozen_modules(nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.BatchNorm1d(2, affine=False)))
    {'': True, '0': True, '1': True}
    """
    return all_deciding(model, lambda parameter: not parameter.requires_grad)


def all_deciding(model: nn.Module, test: Callable[[nn.Parameter], bool]) -> dict[str, bool]:
    """For every module, whether all parameters that decide if it counts as frozen pass ``test`` (False without any)."""
    own: dict[str, list[bool]] = {}
    total: Counter[str] = Counter()
    failing: Counter[str] = Counter()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner = name.rpartition(".")[0]
        passes = test(parameter)
        own.setdefault(owner, []).append(passes)
        for prefix in _upwards(owner):
            total[prefix] += 1
            failing[prefix] += not passes

    def decided(name: str) -> bool:
        if name in own:
            return all(own[name])
        around = next((prefix for prefix in _upwards(name) if total[prefix]), None)
        return around is not None and not failing[around]

    return {name: decided(name) for name, _ in model.named_modules(remove_duplicate=False)}


def _upwards(name: str) -> Iterator[str]:
    """``a.b`` gives ``a.b``, ``a`` and ``""``."""
    while name:
        yield name
        name = name.rpartition(".")[0]
    yield ""
