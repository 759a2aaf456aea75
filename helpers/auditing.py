"""Find, without running the model, what would move a frozen part or keep a trainable part from learning."""

import difflib
import html
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from helpers._frozen import frozen_modules
from helpers.report import check_module


@dataclass(frozen=True)
class Finding:
    """A mistake: its rule, the name of the parameter, module or attribute (``""`` is the model), and what to do."""

    rule: str
    name: str
    message: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.message}\n    {self.remedy}"


class Findings(list[Finding]):
    """A list that reads well when printed and in a notebook."""

    def __repr__(self) -> str:
        return "\n".join(map(str, self)) or "no findings"

    def _repr_html_(self) -> str:
        rows = [("rule", "name", "message", "remedy"), *map(astuple, self)] if self else [("no findings",)]
        cells = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows)
        return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def audit(model: nn.Module, optimizer: Optimizer | Sequence[Optimizer] | None = None) -> list[Finding]:
    """Look for the mistakes in freezing and training that flags, modes and identities give away.

    >>> import torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    >>> _ = model[:2].requires_grad_(False)
    >>> audit(model, torch.optim.SGD(model.parameters(), lr=0.1))
    norm-statistics-drift: '1' is frozen but in train mode: it uses each batch's statistics, and its own drift.
        Freeze it with helpers.freeze(), which keeps it in eval mode, or call its eval() after every model.train().

    Gives a list, empty when all is well, in the order of `RULES` and within a rule in model order. Nothing is run or
    changed, and the model is walked over once, so the meta device will do. Each rule shows its mistake and its mend:
    ``help(helpers.auditing.RULES["stale-grad"])``. What only a run can show is for `watch`.

    ``model`` is all that the optimizer trains: put several modules into one ``nn.ModuleList``, and several optimizers
    into a list. Without an optimizer its rules are skipped. Pass a model in DistributedDataParallel with its wrapper,
    which knows what it synchronizes; names then begin with ``module.``, as in its state_dict. Raises TypeError when an
    argument is something else.
    """
    check_module("audit", model)
    optimizers = optimizer if isinstance(optimizer, Sequence) else [] if optimizer is None else [optimizer]
    for item in optimizers:
        if not hasattr(item, "param_groups"):
            wanted = "the optimizer must be an optimizer (not its parameters) or a list of them"
            raise TypeError(f"audit(model, optimizer): {wanted}, not a {type(item).__name__}")
    case = _Case(model, optimizers)
    return Findings(Finding(rule, *texts) for rule, find in RULES.items() for texts in find(case))


class _Held(NamedTuple):
    name: str
    tensor: torch.Tensor
    group: dict[str, Any]
    optimizer: Optimizer


class _Case:
    """What the rules look at, collected once."""

    def __init__(self, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        self.modules = dict(model.named_modules())
        self.parameters = dict(model.named_parameters())
        self.tensors = self.parameters | dict(model.named_buffers())
        self.registered = {id(item) for item in (*self.modules.values(), *self.tensors.values())}
        frozen = frozen_modules(model)
        trains = {id(part) for name, part in model.named_modules(remove_duplicate=False) if not frozen[name]}
        # In train mode although frozen, and that under every name it has.
        self.awake = {name: part for name, part in self.modules.items() if part.training and id(part) not in trains}
        self.held: dict[int, list[_Held]] = {}
        for optimizer in optimizers:
            for i, group in enumerate(optimizer.param_groups):
                names = dict(enumerate(group.get("param_names", ())))
                for j, tensor in enumerate(group["params"]):
                    name = names.get(j, f"param_groups[{i}]['params'][{j}]")
                    self.held.setdefault(id(tensor), []).append(_Held(name, tensor, group, optimizer))


_Texts = Iterator[tuple[str, str, str]]  # name, message, remedy


def _shown(name: str) -> str:
    return repr(name) if name else "the model"


def orphan_in_optimizer(case: _Case) -> _Texts:
    """The optimizer holds a parameter that the model does not have, as after replacing a layer.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1, bias=False))
    >>> optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    >>> model[1] = nn.Identity()
    >>> audit(model, optimizer)
    orphan-in-optimizer: the optimizer holds '1.weight', which is not, or no longer, a parameter of the model.
        Build the optimizer after replacing layers. If it trains two modules, audit nn.ModuleList([one, other]).
    >>> audit(model, torch.optim.SGD(model.named_parameters(), lr=0.1))
    no findings
    """
    remedy = "Build the optimizer after replacing layers. If it trains two modules, audit nn.ModuleList([one, other])."
    for (name, tensor, *_), *_ in case.held.values():
        # A plain tensor is there on purpose, such as an image to be optimized.
        if isinstance(tensor, nn.Parameter) and id(tensor) not in case.registered:
            yield name, f"the optimizer holds {name!r}, which is not, or no longer, a parameter of the model.", remedy


def trainable_in_no_optimizer(case: _Case) -> _Texts:
    """A parameter gets gradients, and no optimizer moves it.

    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1))
    >>> optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
    >>> audit(model, optimizer)
    trainable-in-no-optimizer: '0.weight' is trainable but in no optimizer: backward computes its gradient for nothing.
        Build the optimizer after replacing and unfreezing layers, or freeze the parameter.
    >>> optimizer.add_param_group({"params": model[0].parameters()})
    >>> audit(model, optimizer)
    no findings
    """
    remedy = "Build the optimizer after replacing and unfreezing layers, or freeze the parameter."
    for name, parameter in case.parameters.items():
        if case.held and parameter.requires_grad and id(parameter) not in case.held:
            message = f"{name!r} is trainable but in no optimizer: backward computes its gradient for nothing."
            yield name, message, remedy


def held_twice(case: _Case) -> _Texts:
    """An optimizer holds the same parameter twice: in one list torch only warns, after an edit it says nothing.

    >>> model = nn.Linear(2, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> optimizer.param_groups[0]["params"].append(model.bias)
    >>> audit(model, optimizer)
    held-twice: one optimizer holds 'bias' more than once: a step moves it as often.
        Build the optimizer from model.parameters(), which gives every parameter once.
    >>> audit(model, torch.optim.SGD(model.parameters(), lr=0.1))
    no findings
    """
    remedy = "Build the optimizer from model.parameters(), which gives every parameter once."
    for name, parameter in case.parameters.items():
        optimizers = [id(held.optimizer) for held in case.held.get(id(parameter), ())]
        if len(set(optimizers)) < len(optimizers):
            yield name, f"one optimizer holds {name!r} more than once: a step moves it as often.", remedy


def nothing_trainable(case: _Case) -> _Texts:
    """There is an optimizer and nothing to train.

    >>> model = nn.Linear(2, 1).requires_grad_(False)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> audit(model, optimizer)
    nothing-trainable: nothing in the model and the optimizer requires a gradient: backward() will raise.
        Unfreeze what is to be trained, such as the head, with requires_grad_(True).
    >>> _ = model.requires_grad_(True)
    >>> audit(model, optimizer)
    no findings
    """
    tensors = [*case.parameters.values(), *(first.tensor for first, *_ in case.held.values())]
    if case.held and not any(tensor.requires_grad for tensor in tensors):
        message = "nothing in the model and the optimizer requires a gradient: backward() will raise."
        yield "", message, "Unfreeze what is to be trained, such as the head, with requires_grad_(True)."


def stale_grad(case: _Case) -> _Texts:
    """A frozen parameter has a gradient from before: an optimizer skips what has no ``.grad``, whatever its flag.

    Zeros count when weight decay or momentum moves the parameter all the same
    (https://docs.pytorch.org/docs/stable/generated/torch.optim.Optimizer.zero_grad.html).

    >>> model = nn.Linear(2, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> model(torch.ones(1, 2)).sum().backward()
    >>> _ = model.weight.requires_grad_(False)
    >>> audit(model, optimizer)
    stale-grad: 'weight' is frozen but has an old gradient: the next step moves it.
        Freeze with helpers.freeze(), which removes it, or call optimizer.zero_grad() (not with set_to_none=False).
    >>> optimizer.zero_grad()
    >>> audit(model, optimizer)
    no findings
    """
    remedy = (
        "Freeze with helpers.freeze(), which removes it, or call optimizer.zero_grad() (not with set_to_none=False)."
    )
    for name, parameter in case.parameters.items():
        if not parameter.requires_grad and any(map(_moves, case.held.get(id(parameter), ()))):
            yield name, f"{name!r} is frozen but has an old gradient: the next step moves it.", remedy


def _moves(held: _Held) -> bool:
    """Whether the next step moves a parameter that gets no new gradient."""
    if held.tensor.grad is None or held.group.get("lr") == 0:
        return False
    state = getattr(held.optimizer, "state", {}).get(held.tensor, {})
    pushes = (held.tensor.grad, state.get("momentum_buffer"), state.get("exp_avg"))
    # ASGD decays by lambd. On the meta device there are no values to look at.
    decays = bool(held.group.get("weight_decay") or held.group.get("lambd"))
    return decays or any(push is not None and (push.is_meta or bool(push.any())) for push in pushes)


def norm_statistics_drift(case: _Case) -> _Texts:
    """A frozen norm layer is in train mode: its buffers change in every forward, under ``no_grad`` too.

    With ``momentum=0`` the mean and variance stay as they are, but unused: the output still depends on the batch
    (https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm2d.html).

    >>> from helpers.freezing import freeze
    >>> model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))
    >>> _ = model[0].requires_grad_(False)
    >>> audit(model)
    norm-statistics-drift: '0' is frozen but in train mode: it uses each batch's statistics, and its own drift.
        Freeze it with helpers.freeze(), which keeps it in eval mode, or call its eval() after every model.train().
    >>> _ = freeze(model, "0.*")
    >>> audit(model.train())
    no findings
    """
    remedy = (
        "Freeze it with helpers.freeze(), which keeps it in eval mode, or call its eval() after every model.train()."
    )
    for name, layer in case.awake.items():
        if isinstance(layer, _NormBase) and layer.running_mean is not None:
            message = f"{_shown(name)} is frozen but in train mode: it uses each batch's statistics, and its own drift."
            yield name, message, remedy


def dropout_in_frozen_part(case: _Case) -> _Texts:
    """Dropout, that of attention and RNNs too, makes frozen features random.

    StochasticDepth and DropPath do as well, but published recipes for fine-tuning keep them on, so they are no finding.
    `cache_features` refuses them.

    >>> backbone = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).requires_grad_(False)
    >>> model = nn.Sequential(backbone, nn.Dropout(0.5), nn.Linear(2, 1))
    >>> audit(model)
    dropout-in-frozen-part: '0.1' drops at random (p=0.5) in a frozen part: equal inputs get different features.
        Call its eval() after every model.train(), or override train() of the part.
    >>> _ = backbone.eval()
    >>> audit(model)
    no findings
    """
    remedy = "Call its eval() after every model.train(), or override train() of the part."
    for name, layer in case.awake.items():
        if p := _dropout(layer):
            message = f"{name!r} drops at random (p={p}) in a frozen part: equal inputs get different features."
            yield name, message, remedy


def _dropout(layer: Any) -> float:
    if isinstance(layer, _DropoutNd):
        return layer.p
    inside = isinstance(layer, nn.MultiheadAttention) or (isinstance(layer, nn.RNNBase) and layer.num_layers > 1)
    return layer.dropout if inside else 0.0


def flag_on_module(case: _Case) -> _Texts:
    """``module.requires_grad = ...`` makes a new attribute of the module, which nothing reads.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    >>> model[0].requires_grad = False
    >>> audit(model)
    flag-on-module: requires_grad = False on '0' is a new attribute without effect.
        Call requires_grad_(False), with the underscore at the end.
    >>> _ = model[0].requires_grad_(False)
    >>> audit(model)
    no findings
    """
    for name, module in case.modules.items():
        value = vars(module).get("requires_grad")
        if _contradicts(value, module):
            message = f"requires_grad = {value} on {_shown(name)} is a new attribute without effect."
            yield name, message, f"Call requires_grad_({value}), with the underscore at the end."


def misspelt_flag(case: _Case) -> _Texts:
    """A misspelled ``requires_grad`` makes a new attribute of the parameter or module, which nothing reads.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> model.weight.require_grad = False
    >>> audit(model)
    misspelt-flag: require_grad = False on 'weight' is a new attribute without effect.
        Call requires_grad_(False): modules have it too, and a misspelled method raises.
    >>> model.weight.requires_grad = False
    >>> audit(model)
    no findings
    """
    for name, owner in (*case.modules.items(), *case.parameters.items()):
        for attribute, value in vars(owner).items():
            if _resembles_flag(attribute) and _contradicts(value, owner):
                message = f"{attribute} = {value} on {_shown(name)} is a new attribute without effect."
                yield (
                    name,
                    message,
                    f"Call requires_grad_({value}): modules have it too, and a misspelled method raises.",
                )


@cache
def _resembles_flag(attribute: str) -> bool:
    near = difflib.get_close_matches(attribute, ["requires_grad"], cutoff=0.82)
    # requires_graph and requires_grid are as near, but words of their own.
    return bool(near) and attribute != "requires_grad" and any(part in attribute for part in ("grad", "gard", "grd"))


def _contradicts(flag: object, owner: nn.Module | nn.Parameter) -> bool:
    """Whether some parameter differs: where all agree, nothing went wrong."""
    parameters = owner.parameters() if isinstance(owner, nn.Module) else [owner]
    return isinstance(flag, bool) and any(parameter.requires_grad != flag for parameter in parameters)


def unregistered(case: _Case) -> _Texts:
    """Something trainable is a plain tensor, or hides in a list or dict, and so does not belong to the model.

    >>> model = nn.Linear(2, 1)
    >>> model.blocks = [nn.Linear(2, 2)]
    >>> model.shift = nn.Parameter(torch.ones(1)).to(torch.float64)
    >>> audit(model)
    unregistered: 'blocks' is trainable but not registered: parameters(), state_dict() and to() pass it by.
        Use nn.ModuleList, nn.ParameterDict or the like instead of a list or dict.
    unregistered: 'shift' is trainable but not registered: parameters(), state_dict() and to() pass it by.
        Assign an nn.Parameter made last: nn.Parameter(value.to(...)), not nn.Parameter(value).to(...).
    >>> model.blocks = nn.ModuleList(model.blocks)
    >>> model.shift = nn.Parameter(torch.ones(1).to(torch.float64))
    >>> audit(model)
    no findings
    """
    direct = "Assign an nn.Parameter made last: nn.Parameter(value.to(...)), not nn.Parameter(value).to(...)."
    inside = "Use nn.ModuleList, nn.ParameterDict or the like instead of a list or dict."
    for prefix, module in case.modules.items():
        # DistributedDataParallel keeps a list of what it wrapped; a rule of its own compares that.
        attributes = {} if isinstance(module, DistributedDataParallel) else vars(module)
        for attribute, value in attributes.items():
            # Who gets a module past nn.Module.__setattr__ means to hide it.
            hidden = isinstance(value, nn.Module) or attribute in _TORCHS_OWN
            if not hidden and any(_is_lost(item, module, case) for item in _contents(value)):
                name = f"{prefix}.{attribute}".lstrip(".")
                message = f"{name!r} is trainable but not registered: parameters(), state_dict() and to() pass it by."
                yield name, message, direct if isinstance(value, torch.Tensor) else inside


_TORCHS_OWN = frozenset(vars(nn.Module()))


def _contents(value: object, depth: int = 3) -> Iterator[object]:
    if isinstance(value, list | tuple | set | dict) and depth:
        for item in value.values() if isinstance(value, dict) else value:
            yield from _contents(item, depth - 1)
    else:
        yield value


def _is_lost(item: object, holder: nn.Module, case: _Case) -> bool:
    tensors: Iterable[Any] = ()
    if isinstance(item, torch.Tensor) and item.grad_fn is not None:
        # One operation on a Parameter that nobody has; activations and parametrized weights start at a registered one.
        inputs = [getattr(node, "variable", None) for node, _ in item.grad_fn.next_functions]
        tensors = [tensor for tensor in inputs if isinstance(tensor, nn.Parameter)]
    elif isinstance(item, torch.Tensor):
        tensors = [item]
    elif isinstance(item, nn.Module) and id(item) not in case.registered and holder not in set(item.modules()):
        tensors = item.parameters()
    return any(tensor.requires_grad and id(tensor) not in case.registered for tensor in tensors)


def tied_weights_split(case: _Case) -> _Texts:
    """Tied weights became two parameters over the same memory, as after ``load_state_dict(..., assign=True)``.

    >>> def tied():
    ...     model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    ...     model[1].weight = model[0].weight
    ...     return model
    >>> model = tied()
    >>> model.load_state_dict(tied().state_dict(), assign=True)
    <All keys matched successfully>
    >>> audit(model)
    tied-weights-split: '0.weight' and '1.weight' share their memory, but are two parameters with a step for each.
        Tie them again, one.weight = other.weight, and build the optimizer after it.
    >>> model[1].weight = model[0].weight
    >>> audit(model)
    no findings
    """
    remedy = "Tie them again, one.weight = other.weight, and build the optimizer after it."
    seen: dict[object, str] = {}
    for name, parameter in case.parameters.items():
        first = seen.setdefault(_memory(parameter), name)
        if first != name and (parameter.requires_grad or case.parameters[first].requires_grad):
            message = f"{first!r} and {name!r} share their memory, but are two parameters with a step for each."
            yield name, message, remedy


def _memory(tensor: torch.Tensor) -> object:
    """Where the values are; sparse and lazy tensors cannot tell."""
    try:
        return tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.numel()
    except (RuntimeError, ValueError):
        return id(tensor)


def inference_tensor(case: _Case) -> _Texts:
    """A parameter or buffer was made under ``inference_mode``, and autograd can never use it
    (https://docs.pytorch.org/docs/stable/generated/torch.autograd.grad_mode.inference_mode.html).

    >>> with torch.inference_mode():
    ...     model = nn.Linear(2, 1, bias=False)
    >>> audit(model)
    inference-tensor: 'weight' is an inference tensor: it can neither be trained nor changed outside inference_mode.
        Build and load the model outside inference_mode, or assign a clone() made outside.
    >>> model.weight = nn.Parameter(model.weight.clone())
    >>> audit(model)
    no findings
    """
    remedy = "Build and load the model outside inference_mode, or assign a clone() made outside."
    for name, tensor in case.tensors.items():
        if not is_lazy(tensor) and tensor.is_inference():
            message = f"{name!r} is an inference tensor: it can neither be trained nor changed outside inference_mode."
            yield name, message, remedy


def changed_after_wrapping(case: _Case) -> _Texts:
    """A flag or layer changed inside DistributedDataParallel, which synchronizes what is trainable when it wraps
    (https://docs.pytorch.org/docs/stable/generated/torch.nn.parallel.DistributedDataParallel.html).

    What became trainable, or came later, trains in each process on its own, without an error. What was frozen or taken
    out is waited for, unless ``find_unused_parameters`` or ``static_graph`` tells it not to: the second step raises.
    What it is told to ignore is no finding.

    >>> import torch.distributed as dist
    >>> from torch.nn.parallel import DistributedDataParallel
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    >>> _ = model[0].requires_grad_(False)
    >>> ddp = DistributedDataParallel(model)
    >>> _ = model[0].requires_grad_(True)
    >>> audit(ddp)
    changed-after-wrapping: 'module.0.weight' is trainable, but DistributedDataParallel does not synchronize it.
        Change flags and layers before wrapping. Now wrap again: ddp = DistributedDataParallel(ddp.module).
    >>> ddp = DistributedDataParallel(ddp.module)
    >>> _ = model[0].requires_grad_(False)
    >>> audit(ddp)
    changed-after-wrapping: 'module.0.weight' is frozen, but DistributedDataParallel waits for its gradient.
        Change flags and layers before wrapping. Now wrap again: ddp = DistributedDataParallel(ddp.module).
    >>> ddp = DistributedDataParallel(ddp.module)
    >>> dist.destroy_process_group()
    >>> audit(ddp)
    no findings
    """
    remedy = "Change flags and layers before wrapping. Now wrap again: ddp = DistributedDataParallel(ddp.module)."
    for prefix, ddp in case.modules.items():
        if not isinstance(ddp, DistributedDataParallel):
            continue
        synchronized = {id(parameter): parameter for parameter in _synchronized(ddp)}
        here = dict(ddp.module.named_parameters())
        # Only a gradient that it waits for makes it wait for the others.
        waits = not (ddp.find_unused_parameters or ddp.static_graph) and any(
            parameter.requires_grad for parameter in here.values() if id(parameter) in synchronized
        )
        for name, parameter in here.items():
            full = f"{prefix}.module.{name}".lstrip(".")
            known = synchronized.pop(id(parameter), None) is not None
            if parameter.requires_grad and not known and name not in ddp.parameters_to_ignore:
                message = f"{full!r} is trainable, but DistributedDataParallel does not synchronize it."
                yield full, message, remedy
            if not parameter.requires_grad and known and waits:
                message = f"{full!r} is frozen, but DistributedDataParallel waits for its gradient."
                yield full, message, remedy
        if synchronized and waits:
            message = f"{_shown(prefix)} waits for the gradients of {len(synchronized)} parameters no longer in it."
            yield prefix, message, remedy


def _synchronized(ddp: DistributedDataParallel) -> list[torch.Tensor]:
    """The parameters whose gradients it averages: those that were trainable when it wrapped the model."""
    # Only the reducer knows, and only its buckets, as communication hooks get them, tell. The gradients that come with
    # them are not needed, and take no memory on the meta device.
    with _OnMeta():
        buckets = ddp.reducer._get_zeros_like_grad_buckets()
    return [parameter for bucket in buckets for parameter in bucket.parameters()]


class _OnMeta(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}) | {"device": "meta"})


RULES = {
    rule.__name__.replace("_", "-"): rule
    for rule in (
        orphan_in_optimizer,
        trainable_in_no_optimizer,
        held_twice,
        nothing_trainable,
        stale_grad,
        norm_statistics_drift,
        dropout_in_frozen_part,
        flag_on_module,
        misspelt_flag,
        unregistered,
        tied_weights_split,
        inference_tensor,
        changed_after_wrapping,
    )
}
