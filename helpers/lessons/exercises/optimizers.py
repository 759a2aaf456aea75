"""The exercises and predictions of the lesson on optimizers."""

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from helpers.lessons.exercises import Lesson, NotYet, kind, run, table

lesson = Lesson("optimizers")
check, predict, progress = lesson.check, lesson.predict, lesson.progress

SGD, Adam, AdamW, LBFGS = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.LBFGS


@lesson.exercise("moves-when-frozen")
def moves_when_frozen(answer):
    seen = {
        "SGD; nothing": _moves(SGD),
        "SGD; zero_grad(set_to_none=False)": _moves(SGD, _zeros),
        "SGD, weight decay; zero_grad()": _moves(SGD, _none, weight_decay=0.5),
        "SGD, weight decay; zero_grad(set_to_none=False)": _moves(SGD, _zeros, weight_decay=0.5),
        "SGD, momentum; w.grad = None, zero_grad(set_to_none=False)": _moves(SGD, _taken_away, momentum=0.5),
        "Adam; zero_grad(set_to_none=False)": _moves(Adam, _zeros),
        "AdamW, weight decay; new AdamW, zero_grad(set_to_none=False)": _moves(
            AdamW, _zeros, rebuilt=True, weight_decay=0.5
        ),
        "LBFGS; zero_grad() in its closure": _moves(LBFGS),
    }
    table(answer, seen, lesson.beliefs("moves-when-frozen"))


def _none(w, optimizer):
    optimizer.zero_grad()


def _zeros(w, optimizer):
    optimizer.zero_grad(set_to_none=False)


def _taken_away(w, optimizer):
    w.grad = None
    optimizer.zero_grad(set_to_none=False)


def _moves(
    build: Callable[..., torch.optim.Optimizer],
    between: Callable[..., None] = lambda w, optimizer: None,
    rebuilt: bool = False,
    **settings: Any,
) -> bool:
    """Whether the second turn moves ``w``, which was frozen after the first."""
    w, other = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(()))
    optimizer = build([w, other], lr=0.1, **settings)

    def backward():
        loss = (w * other - 3) ** 2
        loss.backward()
        return loss

    def closure():
        optimizer.zero_grad()
        return backward()

    def turn():
        if build is LBFGS:
            optimizer.step(closure)
        else:
            backward()
            optimizer.step()

    turn()
    w.requires_grad_(False)
    optimizer = build([w, other], lr=0.1, **settings) if rebuilt else optimizer
    between(w, optimizer)
    before = w.item()
    turn()
    return w.item() != before


@lesson.exercise("new-head")
def new_head(answer):
    flat = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    deep = nn.Sequential(OrderedDict(first=nn.Linear(4, 6), tanh=nn.Tanh(), overhead=nn.Linear(6, 3)))
    _replaces(answer, Network(body=flat, head=nn.Linear(4, 2)), 3)
    # Of the same size as the old one, and new all the same.
    _replaces(answer, Network(head=nn.Linear(3, 2), body=deep), 2)


class Network(nn.Module):
    """A body with a head behind it, registered in the order in which they are given."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x):
        return self.head(self.body(x))


def _replaces(answer, model, classes):
    """Refused unless ``answer`` gives the model a new head, freezes all else, and two steps train the head alone."""
    body, old = _numbers(model.body, "body."), list(model.head.parameters())
    numbers = [p.detach().clone() for p in old]
    optimizer = _optimizer(run(answer, model, classes))
    parameters = dict(model.named_parameters())
    if gone := [name for name in body if name not in parameters]:
        raise lesson.not_yet("body-gone", name=gone[0])
    _same_numbers(body, parameters)
    x = torch.randn(5, 4)
    width = _tried("what-body", model.body, x).shape[1]
    output = _tried("what-model", model, x, width=width)
    if not isinstance(model.head, nn.Linear):
        raise lesson.not_yet("not-linear", kind=kind(model.head))
    if output.shape != (5, classes):
        raise lesson.not_yet("outputs", classes=classes, shape=tuple(output.shape))
    if model.head.out_features != classes:
        raise lesson.not_yet("stale-size", told=model.head.out_features, classes=classes)
    if not torch.equal(output, model.head(model.body(x))):
        raise lesson.not_yet("forward")
    if model.head.bias is None:
        raise lesson.not_yet("no-bias")
    _still_in_train_mode(model)
    parameters = dict(model.named_parameters())  # of a lazy layer they are there only now
    head = {f"head.{name}": p for name, p in model.head.named_parameters()}
    others = {name: p for name, p in parameters.items() if id(p) not in set(map(id, head.values()))}
    for name, before in zip(("weight", "bias"), numbers, strict=True):
        new = getattr(model.head, name)  # a parametrized layer, as by weight_norm, has other parameters
        if new.shape == before.shape and torch.allclose(new, before, rtol=0.01, atol=1e-3):
            raise lesson.not_yet("old-numbers", name=f"model.head.{name}")
    if not any(p.requires_grad for p in parameters.values()):
        raise lesson.not_yet("nothing-trainable")
    if trainable := [name for name, p in others.items() if p.requires_grad]:
        raise lesson.not_yet("others-trainable", names=", ".join(trainable))
    if frozen := [name for name, p in head.items() if not p.requires_grad]:
        raise lesson.not_yet("head-frozen", names=", ".join(frozen))
    _trains(model, optimizer, x, head, others)
    if orphans := _held(optimizer) - set(map(id, parameters.values())):
        sentences = lesson.sentences["exercises"]["new-head"]["says"]
        which = sentences["orphans-old" if orphans <= set(map(id, old)) else "orphans-other"]
        raise lesson.not_yet("orphans", many=f"{len(orphans)} parameter{'s' * (len(orphans) > 1)}", which=which)


def _trains(model, optimizer, x, head, others):
    """Refused unless two steps move all of the head and nothing else, the first of them downhill."""
    before, gradients = _numbers(model), torch.autograd.grad(_loss(model(x)), list(head.values()))
    for number in range(2):
        _tried("what-step", _step, model, optimizer, x)
        if number == 0:
            steps = [p.detach() - before[name] for name, p in head.items()]
            rise = sum((step * gradient).sum().item() for step, gradient in zip(steps, gradients, strict=True))
    if wild := [name for name, p in head.items() if not p.isfinite().all()]:
        raise lesson.not_yet("not-finite", name=wild[0])
    if moved := [name for name, p in others.items() if not torch.equal(p, before[name])]:
        raise lesson.not_yet("others-move", names=", ".join(moved))
    held = _held(optimizer)
    for name, parameter in head.items():
        if torch.equal(parameter, before[name]):
            some = held & set(map(id, head.values()))
            key = "held-unmoved" if id(parameter) in held else "part-held" if some else "not-held"
            raise lesson.not_yet(key, name=name)
    if rise > 0:
        raise lesson.not_yet("uphill")


def _held(optimizer):
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def _numbers(module, prefix=""):
    return {prefix + name: p.detach().clone() for name, p in module.named_parameters()}


def _same_numbers(before, parameters):
    if other := [name for name in before if not torch.equal(before[name], parameters[name])]:
        raise lesson.not_yet("numbers", name=other[0])


def _same_objects(before, model):
    now = dict(model.named_parameters())
    if now.keys() != before.keys() or any(now[name] is not before[name] for name in now):
        raise lesson.not_yet("objects")


def _still_in_train_mode(model):
    """The body may be in eval mode with good reason: that would hold the statistics of norm layers."""
    if not (model.training and model.head.training):
        which = lesson.sentences["says"]["eval-head" if model.training else "eval-model"]
        raise lesson.not_yet("eval-mode", which=which)


@lesson.exercise("late-freeze")
def late_freeze(answer):
    cases: list[tuple[Callable[..., torch.optim.Optimizer], dict[str, float]]] = [
        (SGD, {"momentum": 0.9}),
        (SGD, {"weight_decay": 0.5}),
        (AdamW, {"weight_decay": 0.5}),
        (Adam, {}),
    ]
    for number, (build, settings) in enumerate(cases):
        wanted, _ = _drift(_properly, number, build, settings)
        got, left = _drift(lambda *given: _by_identity(answer, *given), number, build, settings)
        told = " and ".join([build.__name__, *(f"{name}={value}" for name, value in settings.items())])
        unmoved = [name for name, (before, after) in got.items() if before.equal(after)]
        if still := [name for name in unmoved if name.startswith("head.")]:
            raise lesson.not_yet("head-unmoved", optimizer=told, name=still[0])
        if drifted := [name for name in got if name.startswith("body.") and name not in unmoved]:
            raise lesson.not_yet("body-moves", optimizer=told, name=drifted[0], left=left)
        if not all(torch.allclose(after, wanted[name][1], rtol=1e-4) for name, (_, after) in got.items()):
            raise lesson.not_yet("other-way", optimizer=told)


def _properly(model, optimizer):
    for parameter in model.body.parameters():
        parameter.requires_grad, parameter.grad = False, None


def _drift(freeze, number, build, settings):
    """Every parameter at the call of ``freeze`` and three steps later; what became of its gradients.

    The body is nested from case 2 on; cases 1 and 3 have two groups, in another order.
    """
    torch.manual_seed(number)
    head, last = nn.Linear(2, 1), nn.Linear(3, 2)
    body = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), last)
    if number > 1:
        body = nn.Sequential(nn.Sequential(nn.Linear(2, 3), nn.Tanh()), last)
    model = Network(body=body, head=head) if number == 0 else Network(head=head, body=body)
    parts = {1: (head, body), 3: (body, head)}.get(number, (model,))
    groups = [{"params": part.parameters()} for part in parts]
    optimizer, x = build(groups, lr=0.1, **settings), torch.randn(4, 2)
    for _ in range(2):
        _step(model, optimizer, x, set_to_none=False)
    objects, before = dict(model.named_parameters()), _numbers(model)
    freeze(model, optimizer)
    _same_objects(objects, model)
    _same_numbers(before, objects)
    if not any(p.requires_grad for p in objects.values()):
        raise lesson.not_yet("nothing-trainable")
    if trainable := [name for name, p in objects.items() if name.startswith("body.") and p.requires_grad]:
        raise lesson.not_yet("flag-on", name=trainable[0])
    _still_in_train_mode(model)
    left = _what_is_left([p.grad for name, p in objects.items() if name.startswith("body.")])
    for _ in range(3):
        _tried("what-loop", _step, model, optimizer, x, set_to_none=False)
    return {name: (before[name], p.detach()) for name, p in objects.items()}, left


def _what_is_left(gradients):
    sentences = lesson.sentences["exercises"]["late-freeze"]["says"]
    if all(gradient is None for gradient in gradients):
        return sentences["left-none"]
    if any(gradient is not None and gradient.any() for gradient in gradients):
        return sentences["left-old"]
    return sentences["left-zeros"]


@lesson.exercise("two-rates")
def two_rates(answer):
    body = nn.Sequential(OrderedDict(first=nn.Linear(2, 3), overhead=nn.Linear(3, 2)))
    plain = Network(body=body, head=nn.Linear(2, 1))
    _follow(answer, 0.1, copy.deepcopy(plain), ["body.first"], [[]])
    head = nn.Sequential(OrderedDict(body_like=nn.Linear(2, 2), last=nn.Linear(2, 1)))
    body = nn.Sequential(OrderedDict(first=nn.Linear(2, 2), overhead=nn.Linear(2, 2)))
    _follow(answer, 0.02, Network(head=head, body=body), ["body"], [["body.first"], []])
    _follow(answer, 0.05, plain, ["body.first.bias", "head.bias"], [["body.first.bias", "head.bias"], []])


def _follow(answer, rate, model, frozen, later):
    """Train with what ``answer`` gives, and compare every step with SGD's rule. ``later``: what is frozen then."""
    parameters = dict(model.double().named_parameters())
    x, momenta, since, given = torch.randn(4, 2).double(), {}, {}, ()
    for call, parts in enumerate([frozen, *later]):
        flags = {name: not any(f"{name}.".startswith(f"{part}.") for part in parts) for name in parameters}
        for name, parameter in parameters.items():
            parameter.requires_grad_(flags[name])
        if call:  # another model meanwhile: what was returned for this one need not be remembered, it is given
            _optimizer(_by_identity(answer, copy.deepcopy(model), rate))
        before = _numbers(model)
        optimizer = _optimizer(_by_identity(answer, model, rate, *given))
        given = (optimizer,)
        _same_objects(parameters, model)
        _same_numbers(before, parameters)
        if {name: p.requires_grad for name, p in parameters.items()} != flags:
            raise lesson.not_yet("flags")
        for _ in range(2):
            before = _numbers(model)
            _tried("what-step", _step, model, optimizer, x)
            for name, parameter in parameters.items():
                step = before[name] - parameter.detach()
                if not flags[name] and step.any():
                    raise lesson.not_yet("frozen-moved", name=name)
                if flags[name] and not step.any():
                    sentences = lesson.sentences["exercises"]["two-rates"]["says"]
                    when = sentences["since-now" if call and name not in momenta else "since-start"]
                    why = sentences["why-rate" if id(parameter) in _held(optimizer) else "why-not-held"]
                    raise lesson.not_yet("unmoved", name=name, since=when, why=why)
                if flags[name]:
                    due = rate if name.startswith("head.") else rate / 10
                    had = since.setdefault(name, call) < call
                    _compare(name, step, parameter.grad, momenta, due, had)


def _by_identity(answer, *given):
    try:
        return run(answer, *given)
    except NotYet as reason:
        if any(said in str(reason) for said in ("Boolean value of Tensor", "size of tensor")):
            raise lesson.not_yet("by-number", reason=reason) from None
        raise


def _compare(name, step, gradient, momenta, rate, had):
    """Refused unless ``step`` is that of SGD, momentum 0.9, at ``rate``. ``had``: momentum before the last call."""
    new = name not in momenta
    momenta[name] = gradient.clone() if new else 0.9 * momenta[name] + gradient
    if torch.allclose(step, rate * momenta[name]):
        return
    if not step.isfinite().all():
        raise lesson.not_yet("not-finite", name=name)
    if torch.allclose(step, rate * (gradient + 0.9 * momenta[name])):
        raise lesson.not_yet("nesterov", name=name)
    if not new and any(torch.allclose(step, factor * rate * gradient) for factor in (0.1, 1, 10)):
        raise lesson.not_yet("momentum-lost" if had else "no-momentum", name=name)
    got = (step.norm() / momenta[name].norm()).item()
    # Of a single number that has momentum, each other step would look like another rate.
    if abs(got / rate - 1) > 0.01 and (new or step.numel() > 1) and torch.allclose(step, got * momenta[name]):
        raise lesson.not_yet("rate", name=name, got=f"{got:.3g}", due=f"{rate:.3g}")
    raise lesson.not_yet("otherwise", name=name, due=f"{rate:.3g}")


def _optimizer(given):
    if not isinstance(given, torch.optim.Optimizer):
        raise lesson.not_yet("no-optimizer", kind=kind(given))
    return given


def _loss(output):
    return output.square().mean() + output.sum()


def _step(model, optimizer, x, set_to_none=True):
    """One step of a training loop, with any optimizer; only LBFGS has to be given the closure."""

    def closure():
        optimizer.zero_grad(set_to_none=set_to_none)
        loss = _loss(model(x))
        loss.backward()
        return loss

    closure()
    if isinstance(optimizer, LBFGS):
        optimizer.step(closure)
    else:
        optimizer.step()


def _tried(what, call, *args, width=None, **kwargs):
    try:
        return call(*args, **kwargs)
    except Exception as error:
        text = str(error).strip().splitlines() or [""]
        told = lesson.sentences["says"][what].format(width=width)
        raise lesson.not_yet("raised", what=told, error=type(error).__name__, text=text[0][:120]) from error
