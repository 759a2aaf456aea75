"""Find, without running the model, what would move a frozen part or keep a trainable part from learning."""

import difflib
import dis
import html
import inspect
import re
import textwrap
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from itertools import chain, groupby
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.freezing import few, frozen_modules, frozen_parts, is_held, node_trains
from helpers.report import AMISS, as_html, check_module

PAGES = ""
"""Where the pages of the rules are, as ``https://.../rules/``; empty while the project has no address."""


@dataclass(frozen=True)
class Finding:
    """A mistake: its rule, the name of the parameter, module or attribute (``""`` is the model), and what to do.

    ``names`` has all of them, where a finding speaks of several.
    """

    rule: str
    name: str
    message: str
    remedy: str
    names: tuple[str, ...] = ()

    @property
    def page(self) -> str:
        """The address of the rule's page, or its title on the site."""
        return f"{PAGES}{self.rule}.html" if PAGES else f"Rule {self.rule}"

    def __str__(self) -> str:
        # In lines of 88 characters: a notebook breaks a longer one within a word.
        fill = partial(textwrap.fill, width=88, break_long_words=False, break_on_hyphens=False)
        told = fill(f"{self.rule}: {self.message}", subsequent_indent="  ")
        remedy = fill(self.remedy, initial_indent="    ", subsequent_indent="    ")
        return f"{told}\n{remedy}\n    Page: {self.page}"


class Findings(list[Finding]):
    """A list that reads well when printed and in a notebook."""

    def __repr__(self) -> str:
        return "\n".join(map(str, self)) or "no findings"

    def _repr_html_(self) -> str:
        rows = []
        for found in self:
            rule, name, *told = map(html.escape, (found.rule, found.name, found.message, found.remedy))
            page = f"<a href='{html.escape(found.page)}'>{rule}</a>" if PAGES else f"Rule {rule}"
            rows.append((AMISS, [f"<b>{page}</b><br>{name}", *told]))
        return as_html(["finding", "message", "remedy"], rows) if rows else "<p>no findings</p>"


def audit(model: nn.Module, optimizer: Optimizer | Sequence[Optimizer] | None = None) -> list[Finding]:
    """Look for the mistakes in freezing and training that flags, modes and identities give away.

    >>> import torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), nn.Linear(4, 2))
    >>> _ = model[0].requires_grad_(False)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> audit(model, optimizer)
    frozen-part-in-train-mode: '0' is frozen but in train mode: 1 module moves its buffers
      ('0.1').
        Freeze it with helpers.freeze(), which holds eval mode, or call its eval() after
        every model.train().
        Page: Rule frozen-part-in-train-mode

    Gives a list, empty when all is well, in the order of `RULES` and within a rule in model order. Nothing is run or
    changed, and the model is walked over once, so the meta device will do. Each rule shows its mistake and its mend:
    ``help(helpers.auditing.RULES["stale-grad"])``. What only a run can show is for `watch`.

    So a training script can be held to it, and what is on purpose left out:

    >>> def on_purpose(finding):
    ...     return finding.rule == "frozen-part-in-train-mode" and finding.name == "0"
    >>> assert not (found := [f for f in audit(model, optimizer) if not on_purpose(f)]), found

    ``model`` is all that the optimizer trains: put several modules into one ``nn.ModuleList``, and several optimizers
    into a list. Without an optimizer its rules are skipped. Pass a model in DistributedDataParallel with its wrapper,
    which knows what it synchronizes; names then begin with ``module.``, as in its state_dict. A copy that is moved on
    purpose, as an average of a student is, is not frozen in this sense: leave it out, or wrap it in torch's
    ``AveragedModel`` with its flags on. Raises TypeError when an argument is something else.
    """
    check_module("audit", model)
    optimizers = optimizer if isinstance(optimizer, Sequence) else [] if optimizer is None else [optimizer]
    for item in optimizers:
        if not hasattr(item, "param_groups"):
            wanted = "the optimizer must be an optimizer (not its parameters) or a list of them"
            raise TypeError(f"audit(model, optimizer): {wanted}, not a {type(item).__name__}")
    case = _Case(model, optimizers)
    found = Findings()
    for rule, find in RULES.items():
        for names, message, *own in find(case):
            if every := (names,) if isinstance(names, str) else tuple(names):
                found.append(Finding(rule, every[0], message, own[0] if own else _REMEDIES[rule], every))
    return found


class _Held(NamedTuple):
    name: str
    tensor: torch.Tensor
    group: dict[str, Any]
    optimizer: Optimizer
    rests: bool
    """Whether it is not the optimizer's turn: all that it holds is frozen, and another one has something to train."""


class _Case:
    """What the rules look at, collected once."""

    def __init__(self, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        self.modules = dict(model.named_modules())
        self.parameters = dict(model.named_parameters())
        self.tensors = self.parameters | dict(model.named_buffers())
        self.registered = {*self.modules.values(), *self.tensors.values()}
        frozen = frozen_modules(model, around=is_held(model))
        self.parts = frozen_parts(model, frozen)
        self.still = {name: part for name, part in self.modules.items() if frozen[name]}
        # What FSDP has gathered stands in the model for now, and its shard in the optimizer.
        self.gathered = _gathered(self.modules.values())
        whole = {shard: gathered for gathered, shard in self.gathered.items() if gathered in self.registered}
        self.held: dict[torch.Tensor, list[_Held]] = {}
        at_work = [any(p.requires_grad for group in o.param_groups for p in group["params"]) for o in optimizers]
        for optimizer, works in zip(optimizers, at_work, strict=True):
            rests = any(at_work) and not works
            for i, group in enumerate(optimizer.param_groups):
                names = dict(enumerate(group.get("param_names", ())))
                for j, tensor in enumerate(group["params"]):
                    name = names.get(j, f"param_groups[{i}]['params'][{j}]")
                    held = _Held(name, tensor, group, optimizer, rests)
                    self.held.setdefault(whole.get(tensor, tensor), []).append(held)
        # For each module its place, and which of its parameters train, in order.
        self.order = {name: i for i, name in enumerate(self.modules)}
        self.flags = {name: [p.requires_grad for p in module.parameters()] for name, module in self.modules.items()}

    def inside(self, part: str) -> dict[str, nn.Module]:
        """What is in a frozen part and does not train elsewhere, the part with it."""
        named = self.modules[part].named_modules(prefix=part)
        return {name: module for name, module in named if name in self.still}

    def rests(self, part: nn.Module) -> bool:
        """Whether all parameters of a part belong to optimizers whose turn it is not."""
        holders = [self.held.get(parameter, []) for parameter in part.parameters()]
        return bool(holders) and all(several and all(held.rests for held in several) for several in holders)

    def gradient_passes(self, part: str) -> bool:
        """Whether the gradient has to pass through a frozen part, as far as the structure of the model tells it.

        It does where inputs train; within a stack of blocks that hold adapters, from the first of them on; and beside
        such a stack, if all its blocks hold some and the part is no stack itself, as embeddings are not.
        """
        around, order = _around(part), self.order[part]
        beside = not _stacks(self.inside(part))
        return self._only_inputs_train or any(
            order > self.order[first] if _is_in(part, stack) else whole and beside and _is_in(stack, around)
            for stack, first, whole in self._adapted
        )

    def feeds(self, part: str) -> tuple[bool, bool]:
        """Whether something trainable feeds a part, by order: surely (in a Sequential, or something follows), or maybe.

        Modules in a list or dict have no order, and what is of the part's own class is its twin: a student, a policy.
        """
        surely, maybe, inner = self.gradient_passes(part), False, part
        while inner:
            module, branch = self.modules[_around(inner)], self.modules[inner]
            if not isinstance(module, nn.ModuleList | nn.ModuleDict):
                children, in_turn = list(module.children()), isinstance(module, nn.Sequential)
                others = [_trains(child) and (in_turn or type(child) is not type(branch)) for child in children]
                before, after = others[: children.index(branch)], others[children.index(branch) :]
                maybe |= any(before)
                surely |= any(before) and (in_turn or any(after))
            inner = _around(inner)
        return surely, maybe or surely

    @cached_property
    def _adapted(self) -> list[tuple[str, str, bool]]:
        """The stacks in which like blocks are partly trainable: where, the first such block, and if it begins there."""
        found = []
        for (stack, _), blocks in _stacks(self.modules).items():
            partly = [block for block in blocks if len(set(self.flags[block])) == 2]
            if len(partly) > 2 or (len(partly) == 2 and all(map(self._is_adapted, partly))):
                found.append((stack, partly[0], partly[0] == blocks[0]))
        return found

    def _is_adapted(self, block: str) -> bool:
        """Whether frozen and trainable take turns in it, or it is one frozen layer with something trainable."""
        runs = sum(1 for _ in groupby(self.flags[block]))
        return runs > 2 or all(_trains(part) or not _has_children(part) for part in self.modules[block].modules())

    @cached_property
    def _only_inputs_train(self) -> bool:
        """Whether, but for one head, all that trains are embeddings or bare Parameters, as in prompt tuning."""
        inputs = []
        for name, module in self.modules.items():
            flags, around = self.flags[name], self.flags[_around(name)]
            if all(flags) and flags and not (name and all(around)):  # the topmost that trains as a whole
                inputs.append(bool(re.search("prompt|prefix", name)) or all(map(_is_input, module.modules())))
            elif not all(flags) and any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
                inputs.append(_has_children(module) or isinstance(module, nn.ParameterList | nn.ParameterDict))
        return any(inputs) and inputs.count(False) <= 1


_Texts = Iterator[tuple[Any, ...]]  # name or names (a list may be empty), message, and a remedy of its own

RULES: dict[str, Callable[[_Case], _Texts]] = {}
_REMEDIES: dict[str, str] = {}


def _rule(remedy: str = "") -> Callable[[Callable[[_Case], _Texts]], Callable[[_Case], _Texts]]:
    """Make a function one of the rules, with this remedy for all that it finds and gives none of its own."""

    def add(find: Callable[[_Case], _Texts]) -> Callable[[_Case], _Texts]:
        rule = find.__name__.replace("_", "-")
        RULES[rule], _REMEDIES[rule] = find, remedy
        return find

    return add


def _shown(name: str) -> str:
    return repr(name) if name else "the model"


def _for(names: Collection[str], text: str, most: int = 3) -> str:
    """The text with the first names for ``{}``, and of each ``{one|several}`` what goes with their number."""
    text = re.sub(r"\{([^{}]*)\|([^{}]*)\}", r"\1" if len(names) == 1 else r"\2", text)
    return text.replace("{}", few(map(_shown, names), most))


def _around(name: str) -> str:
    return name.rpartition(".")[0]


def _has_children(module: nn.Module) -> bool:
    return next(module.children(), None) is not None


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _stacks(modules: dict[str, nn.Module]) -> dict[tuple[str, type], list[str]]:
    """By the module around them and their class, the names of like modules that are more than a layer."""
    found: dict[tuple[str, type], list[str]] = {}
    for name, module in modules.items():
        if name and _has_children(module):
            found.setdefault((_around(name), type(module)), []).append(name)
    return {key: names for key, names in found.items() if len(names) > 1}


def _is_input(module: nn.Module) -> bool:
    """Whether its own parameters are an embedding's, or bare: of no layer of torch, and no vectors as norms have."""
    own = list(module.parameters(recurse=False))
    listed = isinstance(module, nn.Embedding | nn.EmbeddingBag | nn.ParameterList | nn.ParameterDict)
    torchs = type(module).__module__.startswith("torch.nn.modules.")
    return not own or listed or (not torchs and all(parameter.ndim > 1 for parameter in own))


def _is_in(name: str, part: str) -> bool:
    return name.startswith(f"{part}.") if part else bool(name)


@_rule("Build the optimizer after replacing layers. If it trains two modules, audit nn.ModuleList([one, other]).")
def orphan_in_optimizer(case: _Case) -> _Texts:
    """The optimizer holds a parameter that the model does not have, as after replacing a layer.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1, bias=False))
    >>> optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    >>> model[1] = nn.Identity()
    >>> audit(model, optimizer)
    orphan-in-optimizer: the optimizer holds '1.weight', which is not, or no longer, a
      parameter of the model.
        Build the optimizer after replacing layers. If it trains two modules, audit
        nn.ModuleList([one, other]).
        Page: Rule orphan-in-optimizer
    >>> audit(model, torch.optim.SGD(model.named_parameters(), lr=0.1))
    no findings
    """
    for key, ((name, tensor, *_), *_) in case.held.items():
        # A plain tensor is there on purpose, such as an image to be optimized.
        if isinstance(tensor, nn.Parameter) and key not in case.registered:
            yield name, f"the optimizer holds {name!r}, which is not, or no longer, a parameter of the model."
        elif tensor in case.gathered:
            yield name, f"the optimizer holds {name!r} as FSDP has gathered it for now. Call model.reshard() first."


@_rule("Build the optimizer after replacing and unfreezing layers, or freeze the parameter.")
def trainable_in_no_optimizer(case: _Case) -> _Texts:
    """A parameter gets gradients, and no optimizer moves it.

    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1))
    >>> optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
    >>> audit(model, optimizer)
    trainable-in-no-optimizer: '0.weight' is trainable but in no optimizer: backward
      computes its gradient for nothing.
        Build the optimizer after replacing and unfreezing layers, or freeze the parameter.
        Page: Rule trainable-in-no-optimizer
    >>> optimizer.add_param_group({"params": model[0].parameters()})
    >>> audit(model, optimizer)
    no findings
    """
    averages = [module for module in case.modules.values() if isinstance(module, AveragedModel)]
    known = case.held.keys() | {parameter for module in averages for parameter in module.parameters()}
    for name, parameter in case.parameters.items():
        if case.held and parameter.requires_grad and parameter not in known:
            yield name, f"{name!r} is trainable but in no optimizer: backward computes its gradient for nothing."


@_rule("Build the optimizer from model.parameters(), which gives every parameter once.")
def held_twice(case: _Case) -> _Texts:
    """An optimizer holds the same parameter twice: in one list torch only warns, after an edit it says nothing.

    >>> model = nn.Linear(2, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> optimizer.param_groups[0]["params"].append(model.bias)
    >>> audit(model, optimizer)
    held-twice: one optimizer holds 'bias' more than once: a step moves it as often.
        Build the optimizer from model.parameters(), which gives every parameter once.
        Page: Rule held-twice
    >>> audit(model, torch.optim.SGD(model.parameters(), lr=0.1))
    no findings
    """
    for name, parameter in case.parameters.items():
        optimizers = [id(held.optimizer) for held in case.held.get(parameter, ())]
        if len(set(optimizers)) < len(optimizers):
            yield name, f"one optimizer holds {name!r} more than once: a step moves it as often."


@_rule("Unfreeze what is to be trained, such as the head, with requires_grad_(True), and give it to the optimizer.")
def nothing_trainable(case: _Case) -> _Texts:
    """There is an optimizer, and all that the optimizers hold is frozen.

    >>> model = nn.Linear(2, 1).requires_grad_(False)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> audit(model, optimizer)
    nothing-trainable: all that the optimizer holds is frozen: it moves nothing, or what has
      an old gradient.
        Unfreeze what is to be trained, such as the head, with requires_grad_(True), and
        give it to the optimizer.
        Page: Rule nothing-trainable
    >>> _ = model.requires_grad_(True)
    >>> audit(model, optimizer)
    no findings
    """
    held = [first.tensor for first, *_ in case.held.values()]
    # Of what the model has not, or no longer, another rule speaks.
    if not case.registered.isdisjoint(held) and not any(tensor.requires_grad for tensor in held):
        yield "", "all that the optimizer holds is frozen: it moves nothing, or what has an old gradient."


@_rule("Freeze with helpers.freeze(), which removes it, or call optimizer.zero_grad() (not with set_to_none=False).")
def stale_grad(case: _Case) -> _Texts:
    """A frozen parameter has a gradient from before: an optimizer skips what has no ``.grad``, whatever its flag.

    Zeros count when weight decay or momentum moves the parameter all the same
    (https://docs.pytorch.org/docs/stable/generated/torch.optim.Optimizer.zero_grad.html). Of optimizers that are not
    torch's it is not known, so zeros count there when there is any state. An optimizer whose parameters are all frozen
    while another trains something, as in the turns of a GAN, does not step, and is no finding.

    >>> model = nn.Linear(2, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> model(torch.ones(1, 2)).sum().backward()
    >>> _ = model.weight.requires_grad_(False)
    >>> audit(model, optimizer)
    stale-grad: 'weight' is frozen but has an old gradient: if this optimizer steps before
      zero_grad, it moves.
        Freeze with helpers.freeze(), which removes it, or call optimizer.zero_grad() (not
        with set_to_none=False).
        Page: Rule stale-grad
    >>> optimizer.zero_grad()
    >>> audit(model, optimizer)
    no findings
    """
    stale = {name: p for name, p in case.parameters.items() if not p.requires_grad and p.grad is not None}
    for name, parameter in stale.items():
        if moving := [held for held in case.held.get(parameter, ()) if not held.rests and _moves(held)]:
            moves = "moves" if any(map(_is_torchs, moving)) else "may move"
            old = f"{name!r} is frozen but has an old gradient"
            yield name, f"{old}: if this optimizer steps before zero_grad, it {moves}."


def _is_torchs(held: _Held) -> bool:
    return f"{type(held.optimizer).__module__}.".startswith("torch.optim.")


def _moves(held: _Held) -> bool:
    """Whether the next step moves a parameter that gets no new gradient, or may move it."""
    optimizer, pushes = held.optimizer, [held.tensor.grad]
    # ASGD decays by lambd.
    moves = bool(held.group.get("weight_decay") or held.group.get("lambd"))
    if _is_torchs(held) and not isinstance(optimizer, torch.optim.LBFGS):
        pushes += map(optimizer.state.get(held.tensor, {}).get, ("momentum_buffer", "exp_avg"))
    else:  # any state, its own or that of an optimizer that it wraps
        wrapped = ("_base_optimizer", "base_optimizer", "optimizer", "optim")
        moves |= any(getattr(o, "state", None) for o in (optimizer, *(getattr(optimizer, w, None) for w in wrapped)))
    return held.group.get("lr") != 0 and (moves or any(map(_pushes, pushes)))


def _pushes(tensor: Any) -> bool:
    """Whether it has a number that is not zero. What cannot be looked at, as on the meta device, may have one."""
    try:
        return tensor is not None and (tensor.is_meta or bool(tensor.any()))
    except (RuntimeError, TypeError, AttributeError):
        return True


@_rule()
def frozen_part_in_train_mode(case: _Case) -> _Texts:
    """A frozen part is in train mode, and something in it moves in forward or draws at random.

    In train mode norm layers with running statistics, spectral norm and codebooks move their buffers in every forward,
    under ``no_grad`` too (https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm2d.html), and dropout in all
    its forms makes equal inputs give different outputs. Eval mode of the whole part switches off both; of one Dropout
    it may not be enough, because attention reads its probability and asks the mode of the module around it.

    What moves is recognized by buffers in the state_dict that the code of a class writes to where it asks for
    ``self.training``, and by spectral norm's hook; what draws by torch's classes, by a number in (0, 1] with ``drop``
    or ``jitter`` in its name or the name of its class, and, without any such number, by functions as ``F.dropout`` and
    ``randn_like`` in code that asks for the mode. What moves is always named. What only draws is not
    named where the gradient has to pass through it to reach something trainable: where a frozen layer stands beside
    trainable adapters in its block, and where (but for one head) only embeddings or bare Parameters train, as in prompt
    tuning. There dropout is part of the recipe. Nothing is named of a part whose optimizer holds only what is frozen
    while another has something to train, as in the turns of a GAN.

    >>> from helpers.freezing import freeze
    >>> body = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).requires_grad_(False)
    >>> model = nn.Sequential(body, nn.Dropout(0.5), nn.Linear(2, 1))
    >>> audit(model)
    frozen-part-in-train-mode: '0' is frozen but in train mode: 1 module draws at random
      ('0.1').
        Freeze it with helpers.freeze(), which holds eval mode, or call its eval() after
        every model.train().
        Page: Rule frozen-part-in-train-mode
    >>> _ = freeze(model, "0.*")
    >>> audit(model.train())
    no findings
    """
    awake = []
    for name, part in case.parts.items():
        training = {inner: module for inner, module in case.inside(name).items() if module.training}
        moving = [inner for inner, module in training.items() if _moves_buffers(module)]
        drawing = [inner for inner, module in training.items() if _draws(module)]
        if (moving or (drawing and not case.gradient_passes(name))) and not case.rests(part):
            call = "call {its eval()|eval() on each}"
            if not is_held(part):
                freeze = "Freeze {it|them} with helpers.freeze(), which holds eval mode"
                remedy = f"{freeze}, or {call} after every model.train()."
            elif all(is_held(training[inner]) for inner in moving + drawing):
                remedy = f"Something assigned to .training, against which freeze() cannot hold: {call}."
            else:
                remedy = "Something was put in after freeze(), which does not hold it: call freeze() again."
            awake.append(((_around(name), type(part), bool(moving), bool(drawing), remedy), name, moving, drawing))
    for (*_, remedy), group in groupby(awake, key=lambda found: found[0]):  # neighbours that are alike
        _, names, moves, draws = zip(*group, strict=True)
        moving, drawing = [*chain(*moves)], [*chain(*draws)]
        does = {"module{ moves its|s move their} buffers ({})": moving, "module{ draws|s draw} at random ({})": drawing}
        told = ", ".join(f"{len(inner):,} {_for(inner, what, 2)}" for what, inner in does.items() if inner)
        yield names, _for(names, "{} {is|are} frozen but in train mode: ") + f"{told}.", _for(names, remedy)


def _moves_buffers(module: nn.Module) -> bool:
    """Whether forward writes to buffers in the state_dict, as far as that can be told without a run."""
    if isinstance(module, torch.jit.ScriptModule):
        return any(buffer.is_floating_point() for buffer in module.buffers(recurse=False))
    spectral = any(type(hook).__name__ == "SpectralNorm" for hook in module._forward_pre_hooks.values())
    used = _used_in_train_mode(module)
    parts = [child for part, child in module._modules.items() if child is not None and part in used]
    called = [(part, names) for part in parts for name, names in _methods(part).items() if name in used]
    return spectral or _writes(module, used) or any(_writes(part, names) for part, names in called)


def _writes(module: nn.Module, names: frozenset[str] | set[str]) -> bool:
    """Whether code that uses these names writes to a buffer of the module that is in its state_dict."""
    methods = [name for name in names if name.endswith("_") and not name.endswith("__")]
    in_place = methods or {"batch_norm", "instance_norm", "[] ="} & names
    passing = getattr(module, "_non_persistent_buffers_set", ())
    kept = [name for name, buffer in module._buffers.items() if buffer is not None and name not in passing]
    return any(name in names and (in_place or f"{name} =" in names) for name in kept)


def _used_in_train_mode(module: nn.Module) -> set[str]:
    """The names used by the methods that ask for the mode, and by those that they call, however far."""
    methods = _methods(module)
    used: set[str] = set()
    todo = [names for names in methods.values() if "training" in names]
    for names in todo:  # grows
        todo += [methods[name] for name in names - used if name in methods]
        used |= names
    return used


def _methods(module: nn.Module) -> dict[str, frozenset[str]]:
    """The names that the code of each method of its class uses, up to nn.Module's own; with " =" what it assigns to."""
    return _methods_of(type(module))  # type: ignore[arg-type]


_STORES = ("STORE_ATTR", "STORE_SUBSCR", "STORE_SLICE")  # the first has a name, the others are to []


@cache
def _methods_of(kind: type) -> dict[str, frozenset[str]]:
    found: dict[str, frozenset[str]] = {}
    for base in reversed(kind.__mro__[: kind.__mro__.index(nn.Module)]):
        for name, member in vars(base).items():
            if isinstance(member, property | classmethod | staticmethod):
                member = member.fget if isinstance(member, property) else member.__func__
            member = inspect.unwrap(member) if isinstance(member, FunctionType) else member
            codes = [member.__code__] if isinstance(member, FunctionType) else []
            used: set[str] = set()
            for code in codes:  # grows
                codes += [inner for inner in code.co_consts if isinstance(inner, CodeType)]
                stores = [step for step in dis.get_instructions(code) if step.opname in _STORES]
                used |= {*code.co_names, *(f"{step.argval or '[]'} =" for step in stores)}
            # What it overrides counts where it is called.
            found[name] = frozenset(used | found.get(name, set()) if name in used else used)
    return found


_RANDOM = {f"{kind}dropout{end}" for kind in ("", "alpha_", "feature_alpha_") for end in ("", "1d", "2d", "3d")}
_RANDOM |= {"rrelu", "randn_like", "rand_like", "bernoulli"}


def _draws(module: nn.Module) -> bool:
    """Whether it drops, jitters or adds noise in train mode, as far as numbers, names and code tell it."""
    kind = getattr(module, "original_name", type(module).__name__)  # of a scripted module, the one it was made of
    one_layer = isinstance(module, nn.RNNBase) and module.num_layers == 1
    # Of the layers of quantization those that have a number for dropout leave it unused, but for attention.
    unused = type(module).__module__.startswith("torch.ao.") and not isinstance(module, nn.MultiheadAttention)
    if one_layer or unused:
        return False
    drops = re.search("drop|stochasticdepth", kind.lower())
    if isinstance(module, _DropoutNd) or (drops and isinstance(module, torch.jit.ScriptModule)):
        return bool(getattr(module, "p", 0))
    numbers = {name: value for name, value in vars(module).items() if type(value) in (int, float)}
    chances = [value for name, value in numbers.items() if drops or "drop" in name or "jitter" in name]
    if chances:
        return any(isinstance(chance, float) and 0 < chance <= 1 for chance in chances)
    # A function, not a layer or a number of that name; if there is a number, that says how often.
    return any(not hasattr(module, name) for name in _RANDOM & _used_in_train_mode(module))


@_rule("No mode helps. Make it with track_running_stats=True, as it was when it was trained, or unfreeze it.")
def batch_statistics_in_frozen_part(case: _Case) -> _Texts:
    """A frozen BatchNorm has no running statistics: in eval mode too it uses those of the batch
    (https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm2d.html).

    InstanceNorm uses those of each example, which is no finding.

    >>> model = nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False).requires_grad_(False), nn.Linear(2, 1))
    >>> audit(model)
    batch-statistics-in-frozen-part: '0' has no running statistics: what it gives for an
      example depends on the batch.
        No mode helps. Make it with track_running_stats=True, as it was when it was trained,
        or unfreeze it.
        Page: Rule batch-statistics-in-frozen-part
    >>> model[0] = nn.BatchNorm1d(2).eval().requires_grad_(False)
    >>> audit(model)
    no findings
    """
    names = [n for n, norm in case.still.items() if isinstance(norm, _BatchNorm) and norm.running_mean is None]
    yield names, _for(names, "{} {has|have} no running statistics: what it gives for an example depends on the batch.")


@_rule("Trace or export it again, in eval mode or after helpers.freeze().")
def traced_in_train_mode(case: _Case) -> _Texts:
    """A frozen part was traced or exported in train mode: it computes so whatever its mode, and moves or draws.

    >>> class Noisy(nn.Linear):
    ...     def forward(self, x):
    ...         return nn.functional.dropout(super().forward(x), 0.5, self.training)
    >>> model = nn.Sequential(torch.fx.symbolic_trace(nn.Sequential(Noisy(2, 2))), nn.Linear(2, 1))
    >>> _ = model[0].requires_grad_(False)
    >>> audit(model.eval())
    traced-in-train-mode: '0' was traced in train mode: it moves or draws as in training, in
      eval mode too.
        Trace or export it again, in eval mode or after helpers.freeze().
        Page: Rule traced-in-train-mode
    >>> model[0] = torch.fx.symbolic_trace(nn.Sequential(Noisy(2, 2)).eval()).requires_grad_(False)
    >>> audit(model)
    no findings
    """
    for name, module in case.still.items():
        if isinstance(module, torch.fx.GraphModule) and any(map(node_trains, module.graph.nodes)):
            yield name, f"{_shown(name)} was traced in train mode: it moves or draws as in training, in eval mode too."


@_rule("Call torch.embedding_renorm_(weight, torch.arange(len(weight)), max_norm, norm_type). Set max_norm to None.")
def max_norm_in_frozen_part(case: _Case) -> _Texts:
    """A frozen Embedding or EmbeddingBag has rows that are longer than its ``max_norm``: the forward pass that looks
    one up scales it in place, in eval mode and under ``no_grad`` too
    (https://docs.pytorch.org/docs/stable/generated/torch.nn.Embedding.html).

    The call scales all rows once. Rounding may leave some of them too long, so ``max_norm`` has to go as well.

    >>> table = nn.Embedding(3, 2, max_norm=0.1).requires_grad_(False)
    >>> model = nn.Sequential(table, nn.Linear(2, 1)).eval()
    >>> audit(model)
    max-norm-in-frozen-part: '0' scales rows of its weight that are longer than max_norm, in
      eval mode too.
        Call torch.embedding_renorm_(weight, torch.arange(len(weight)), max_norm,
        norm_type). Set max_norm to None.
        Page: Rule max-norm-in-frozen-part
    >>> _ = torch.embedding_renorm_(table.weight, torch.arange(3), table.max_norm, table.norm_type)
    >>> table.max_norm = None
    >>> audit(model)
    no findings
    """
    names = [n for n, m in case.still.items() if isinstance(m, (nn.Embedding, nn.EmbeddingBag)) and _has_long_rows(m)]
    scale = "{} {scales rows of its weight that are|scale rows of their weights that are} longer than max_norm"
    yield names, _for(names, f"{scale}, in eval mode too.")


def _has_long_rows(table: nn.Embedding | nn.EmbeddingBag) -> bool:
    """Whether it has rows to scale. What cannot be looked at, as on the meta device, may have some."""
    try:
        return table.max_norm is not None and bool((table.weight.norm(table.norm_type, 1) > table.max_norm).any())
    except (RuntimeError, TypeError, AttributeError):
        return True


@_rule("Call torch.ao.quantization.disable_observer on FakeQuantize, and put no plain observers into what is frozen.")
def observer_in_frozen_part(case: _Case) -> _Texts:
    """An observer or FakeQuantize in a frozen part moves its range in every forward, in eval mode too
    (https://docs.pytorch.org/docs/stable/generated/torch.ao.quantization.observer.MinMaxObserver.html).

    >>> from torch.ao.quantization import FakeQuantize, disable_observer
    >>> model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), FakeQuantize()).requires_grad_(False), nn.Linear(2, 1))
    >>> audit(model.eval())
    observer-in-frozen-part: '0.1' observes what passes and moves its buffers, in eval mode
      too.
        Call torch.ao.quantization.disable_observer on FakeQuantize, and put no plain
        observers into what is frozen.
        Page: Rule observer-in-frozen-part
    >>> _ = model.apply(disable_observer)
    >>> audit(model.eval())
    no findings
    """
    names = []
    observers = {name: module for name, module in case.still.items() if _is_observer(module)}
    for name, module in observers.items():
        switch = getattr(module, "observer_enabled", None)
        within = name and _around(name) in observers  # in a FakeQuantize, which says whether it works
        if not within and (switch is None or _pushes(switch)) and any(True for _ in module.buffers()):
            names.append(name)
    observe = "{} {observes what passes and moves its|observe what passes and move their} buffers"
    yield names, _for(names, f"{observe}, in eval mode too.")


def _is_observer(module: nn.Module) -> bool:
    """By the name of the class: importing torch's quantization takes long."""
    return not {"ObserverBase", "FakeQuantizeBase"}.isdisjoint(base.__name__ for base in type(module).__mro__)


@_rule("Call model.train(), which looks at what is frozen, or undo with helpers.unfreeze() instead of the flags.")
def held_but_trainable(case: _Case) -> _Texts:
    """A norm layer trains again, but `freeze` has held it in eval mode, and nothing has looked since.

    >>> from helpers.freezing import freeze, unfreeze
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    >>> _ = freeze(model)
    >>> _ = model.requires_grad_(True)
    >>> audit(model)
    held-but-trainable: '1' trains, but is still held in eval mode, as helpers.freeze() left
      it.
        Call model.train(), which looks at what is frozen, or undo with helpers.unfreeze()
        instead of the flags.
        Page: Rule held-but-trainable
    >>> audit(model.train())
    no findings
    """
    norms = {name: norm for name, norm in case.modules.items() if isinstance(norm, _NormBase) and is_held(norm)}
    off = [name for name, norm in norms.items() if not norm.training and vars(norm)["train"].mode]
    names = [name for name in off if any(case.flags[name])]
    yield names, _for(names, "{} {trains, but is|train, but are} still held in eval mode, as helpers.freeze() left it.")


@_rule("If a gradient has to pass through it, use helpers.freeze(..., hold=False), and look with helpers.watch().")
def off_in_eval_mode(case: _Case) -> _Texts:
    """A gradient must pass through a part held in eval mode, in which something it needs is switched off.

    That is a library's activation checkpointing (it recomputes in train mode only, so more is kept in memory),
    the backward of RNNs by cuDNN, which raises, and auxiliary outputs. Whether a gradient passes is taken from the
    order of the modules: something trainable comes before the part, and is no twin of it as a student is.

    >>> from helpers.freezing import freeze, unfreeze
    >>> base = nn.Sequential(nn.Linear(2, 2))
    >>> base.gradient_checkpointing = True  # as transformers marks its blocks
    >>> model = nn.Sequential(nn.Linear(2, 2), base, nn.Linear(2, 1))
    >>> _ = freeze(model, "1.*")
    >>> audit(model)
    off-in-eval-mode: '1' is held in eval mode, which switches off its activation
      checkpointing.
        If a gradient has to pass through it, use helpers.freeze(..., hold=False), and look
        with helpers.watch().
        Page: Rule off-in-eval-mode
    >>> _ = unfreeze(model), freeze(model, "1.*", hold=False)
    >>> audit(model.train())
    no findings
    """
    for name, part in case.parts.items():
        if is_held(part) and not part.training:
            surely, maybe = case.feeds(name)
            inside = case.inside(name).values()
            on = {attribute for module in inside for attribute, value in vars(module).items() if value is True}
            recurrent = chain(*(module.parameters() for module in inside if isinstance(module, nn.RNNBase)))
            off = {
                # Who switches it on thinks that a gradient may pass.
                "activation checkpointing": maybe and "gradient_checkpointing" in on,
                "backward by cuDNN": surely and any(parameter.is_cuda for parameter in recurrent),
                "auxiliary outputs": surely and "aux_logits" in on,
            }
            if its := " and its ".join(what for what, is_off in off.items() if is_off):
                yield name, f"{_shown(name)} is held in eval mode, which switches off its {its}."


@_rule()
def flag_on_module(case: _Case) -> _Texts:
    """``module.requires_grad = ...`` makes a new attribute of the module, which nothing reads.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    >>> model[0].requires_grad = False
    >>> audit(model)
    flag-on-module: requires_grad = False on '0' is a new attribute without effect.
        Call requires_grad_(False), with the underscore at the end.
        Page: Rule flag-on-module
    >>> _ = model[0].requires_grad_(False)
    >>> audit(model)
    no findings
    """
    for name, module in case.modules.items():
        if _contradicts(value := vars(module).get("requires_grad"), module):
            remedy = f"Call requires_grad_({value}), with the underscore at the end."
            yield name, f"requires_grad = {value} on {_shown(name)} is a new attribute without effect.", remedy


@_rule()
def misspelt_flag(case: _Case) -> _Texts:
    """A misspelled ``requires_grad`` makes a new attribute of the parameter or module, which nothing reads.

    What begins with an underscore, or is named in the code of the class, is the class's own.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> model.weight.require_grad = False
    >>> audit(model)
    misspelt-flag: require_grad = False on 'weight' is a new attribute without effect.
        Call requires_grad_(False): modules have it too, and a misspelled method raises.
        Page: Rule misspelt-flag
    >>> model.weight.requires_grad = False
    >>> audit(model)
    no findings
    """
    for name, owner in (*case.modules.items(), *case.parameters.items()):
        for attribute, value in vars(owner).items():
            if _resembles_flag(attribute) and _contradicts(value, owner) and not _is_of_class(attribute, owner):
                remedy = f"Call requires_grad_({value}): modules have it too, and a misspelled method raises."
                yield name, f"{attribute} = {value} on {_shown(name)} is a new attribute without effect.", remedy


def _is_of_class(attribute: str, owner: nn.Module | nn.Parameter) -> bool:
    return isinstance(owner, nn.Module) and any(attribute in names for names in _methods(owner).values())


@cache
def _resembles_flag(attribute: str) -> bool:
    near = not attribute.startswith("_") and difflib.get_close_matches(attribute, ["requires_grad"], cutoff=0.82)
    # requires_graph and requires_grid are as near, but words of their own.
    return bool(near) and attribute != "requires_grad" and any(part in attribute for part in ("grad", "gard", "grd"))


def _contradicts(flag: object, owner: nn.Module | nn.Parameter) -> bool:
    """Whether some parameter differs: where all agree, nothing went wrong."""
    parameters = owner.parameters() if isinstance(owner, nn.Module) else [owner]
    return isinstance(flag, bool) and any(parameter.requires_grad != flag for parameter in parameters)


@_rule("Use nn.ModuleList, nn.ParameterDict or the like instead of a list or dict.")
def unregistered(case: _Case) -> _Texts:
    """Something trainable is a plain tensor, or hides in a list or dict, and so does not belong to the model.

    >>> model = nn.Linear(2, 1)
    >>> model.blocks = [nn.Linear(2, 2)]
    >>> model.shift = nn.Parameter(torch.ones(1)).to(torch.float64)
    >>> audit(model)
    unregistered: 'blocks' is trainable but not registered: parameters(), state_dict() and
      to() pass it by.
        Use nn.ModuleList, nn.ParameterDict or the like instead of a list or dict.
        Page: Rule unregistered
    unregistered: 'shift' is trainable but not registered: parameters(), state_dict() and
      to() pass it by.
        Assign an nn.Parameter made last: nn.Parameter(value.to(...)), not
        nn.Parameter(value).to(...).
        Page: Rule unregistered
    >>> model.blocks = nn.ModuleList(model.blocks)
    >>> model.shift = nn.Parameter(torch.ones(1).to(torch.float64))
    >>> audit(model)
    no findings
    """
    direct = "Assign an nn.Parameter made last: nn.Parameter(value.to(...)), not nn.Parameter(value).to(...)."
    for prefix, module in case.modules.items():
        # DistributedDataParallel keeps a list of what it wrapped; a rule of its own compares that.
        attributes = {} if isinstance(module, DistributedDataParallel) else vars(module)
        for attribute, value in attributes.items():
            # Who gets a module past nn.Module.__setattr__ means to hide it. What forward keeps comes and goes.
            kept = f"{attribute} =" in _methods(module).get("forward", ())
            hidden = isinstance(value, nn.Module) or attribute in _TORCHS_OWN or kept
            if not hidden and any(_is_lost(item, module, case) for item in _contents(value)):
                name = f"{prefix}.{attribute}".lstrip(".")
                message = f"{name!r} is trainable but not registered: parameters(), state_dict() and to() pass it by."
                yield (name, message, direct) if isinstance(value, torch.Tensor) else (name, message)


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
    elif isinstance(item, nn.Module) and item not in case.registered and holder not in set(item.modules()):
        tensors = item.parameters()
    return any(tensor.requires_grad and tensor not in case.registered for tensor in tensors)


@_rule("Tie them again, one.weight = other.weight, and build the optimizer after it.")
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
    tied-weights-split: '0.weight' and '1.weight' share their memory, but are two parameters
      with a step for each.
        Tie them again, one.weight = other.weight, and build the optimizer after it.
        Page: Rule tied-weights-split
    >>> model[1].weight = model[0].weight
    >>> audit(model)
    no findings
    """
    seen: dict[object, str] = {}
    for name, parameter in case.parameters.items():
        first = seen.setdefault(_memory(parameter), name)
        if first != name and (parameter.requires_grad or case.parameters[first].requires_grad):
            yield name, f"{first!r} and {name!r} share their memory, but are two parameters with a step for each."


def _memory(tensor: torch.Tensor) -> object:
    """Where the values are; sparse and lazy tensors cannot tell."""
    try:
        return tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.numel()
    except (RuntimeError, ValueError, NotImplementedError, AttributeError):
        return id(tensor)


@_rule("Build and load the model outside inference_mode, or assign a clone() made outside.")
def inference_tensor(case: _Case) -> _Texts:
    """A parameter or buffer was made under ``inference_mode``, and autograd can never use it
    (https://docs.pytorch.org/docs/stable/generated/torch.autograd.grad_mode.inference_mode.html).

    >>> with torch.inference_mode():
    ...     model = nn.Linear(2, 1, bias=False)
    >>> audit(model)
    inference-tensor: 'weight' is an inference tensor: it can neither be trained nor changed
      outside inference_mode.
        Build and load the model outside inference_mode, or assign a clone() made outside.
        Page: Rule inference-tensor
    >>> model.weight = nn.Parameter(model.weight.clone())
    >>> audit(model)
    no findings
    """
    for name in [name for name, tensor in case.tensors.items() if not is_lazy(tensor) and tensor.is_inference()]:
        yield name, f"{name!r} is an inference tensor: it can neither be trained nor changed outside inference_mode."


@_rule("Change flags and layers before wrapping. Now wrap again: ddp = DistributedDataParallel(ddp.module).")
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
    changed-after-wrapping: 'module.0.weight' is trainable, but DistributedDataParallel does
      not synchronize it.
        Change flags and layers before wrapping. Now wrap again: ddp =
        DistributedDataParallel(ddp.module).
        Page: Rule changed-after-wrapping
    >>> ddp = DistributedDataParallel(ddp.module)
    >>> _ = model[0].requires_grad_(False)
    >>> audit(ddp)
    changed-after-wrapping: 'module.0.weight' is frozen, but DistributedDataParallel waits
      for its gradient.
        Change flags and layers before wrapping. Now wrap again: ddp =
        DistributedDataParallel(ddp.module).
        Page: Rule changed-after-wrapping
    >>> ddp = DistributedDataParallel(ddp.module)
    >>> dist.destroy_process_group()
    >>> audit(ddp)
    no findings
    """
    wrappers = {name: module for name, module in case.modules.items() if isinstance(module, DistributedDataParallel)}
    for prefix, ddp in wrappers.items():
        here = {parameter: name for name, parameter in ddp.module.named_parameters()}
        # Those that were trainable when it wrapped the model. Only the reducer knows, and only its buckets, as
        # communication hooks get them, tell. The gradients that come with them are not needed, and take no memory on
        # the meta device.
        with _OnMeta():
            buckets = ddp.reducer._get_zeros_like_grad_buckets()
        synchronized = {parameter for bucket in buckets for parameter in bucket.parameters()}
        # Only a gradient that it waits for makes it wait for the others.
        trained = any(parameter.requires_grad for parameter in synchronized & here.keys())
        waits = trained and not (ddp.find_unused_parameters or ddp.static_graph)
        for parameter, name in here.items():
            full = f"{prefix}.module.{name}".lstrip(".")
            if parameter in synchronized:
                if waits and not parameter.requires_grad:
                    yield full, f"{full!r} is frozen, but DistributedDataParallel waits for its gradient."
            elif parameter.requires_grad and name not in ddp.parameters_to_ignore:
                yield full, f"{full!r} is trainable, but DistributedDataParallel does not synchronize it."
        if waits and (gone := synchronized - here.keys()):
            yield prefix, f"{_shown(prefix)} waits for the gradients of {len(gone)} parameters no longer in it."


def _gathered(modules: Iterable[Any]) -> dict[Any, torch.Tensor]:
    """For each parameter that FSDP2 has gathered at some time its shard. torch has no public way to get at these."""
    states = [module._get_fsdp_state() for module in modules if hasattr(module, "_get_fsdp_state")]
    groups = [group for state in states if (group := getattr(state, "_fsdp_param_group", None))]
    return {getattr(p, "_unsharded_param", None): p.sharded_param for group in groups for p in group.fsdp_params}


class _OnMeta(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}) | {"device": "meta"})


@_rule("Call model.reshard(), and then set the flag.")
def flag_on_gathered_parameter(case: _Case) -> _Texts:
    """A flag was set while FSDP2 holds the whole parameter: the sharded one does not know of it, and comes back
    (https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html).

    That is so for the parameters of the root after a forward pass under ``no_grad``.

    >>> import torch.distributed as dist
    >>> from torch.distributed.device_mesh import init_device_mesh
    >>> from torch.distributed.fsdp import fully_shard
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> model = fully_shard(nn.Linear(2, 1, bias=False), mesh=init_device_mesh("cpu", (1,)))
    >>> with torch.no_grad():
    ...     _ = model(torch.ones(1, 2))
    >>> _ = model.requires_grad_(False)
    >>> audit(model)
    flag-on-gathered-parameter: requires_grad = False on 'weight' will be forgotten: FSDP
      has gathered the parameter.
        Call model.reshard(), and then set the flag.
        Page: Rule flag-on-gathered-parameter
    >>> _ = model.reshard(), model.requires_grad_(False)
    >>> dist.destroy_process_group()
    >>> audit(model)
    no findings
    """
    for name, parameter in case.parameters.items():
        if case.gathered.get(parameter, parameter).requires_grad != parameter.requires_grad:
            flag = f"requires_grad = {parameter.requires_grad} on {name!r}"
            yield name, f"{flag} will be forgotten: FSDP has gathered the parameter."
