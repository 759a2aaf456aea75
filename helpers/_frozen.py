"""What counts as frozen: the one definition that freeze, watch and audit share."""

from collections.abc import Callable

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
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]  # parents before what is in them
    own: dict[str, list[bool]] = {name: [] for name in names}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        own[name.rpartition(".")[0]].append(test(parameter))
    # For a module with all that is in it: None without any parameter, else whether all pass.
    within = {name: all(passed) if passed else None for name, passed in own.items()}
    for name in reversed(names):
        around = name.rpartition(".")[0]
        if name and within[name] is not None:
            within[around] = within[name] and within[around] is not False
    for name in names:
        if within[name] is None:
            within[name] = bool(name) and within[name.rpartition(".")[0]]
    return {name: all(own[name]) if own[name] else bool(within[name]) for name in names}
