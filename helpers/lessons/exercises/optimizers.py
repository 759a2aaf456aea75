"""The exercises and predictions of the lesson on optimizers."""

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from helpers.lessons.exercises import Lesson, NotYet, kind, run, table

lesson = Lesson()
check, predict, progress = lesson.check, lesson.predict, lesson.progress

lesson.prediction(
    "step",
    {
        (True, False, False, False): "You let the flag decide in step. Only backward reads it: look at line three.",
        (True, True, False, False): "A step needs something to go by: without a .grad there is nothing, flag or not.",
        (True, True, True, False): "A weight that asks and has no .grad is passed by: step looks at .grad alone.",
        (False, False, False, False): "We filled .grad by hand; step does not ask where it comes from.",
    },
    otherwise="Compare the two lines that have a gradient with the two that have none.",
)
lesson.prediction(
    "zero",
    {
        (False, False, False, False, False, False): "A gradient of zero is a gradient: momentum and weight decay are "
        "applied to it.",
        (False, False, True, False, False, False): "Weight decay is added to the gradient, also to one of zero.",
        (False, False, True, True, True, True): "Momentum and weight decay need no gradient of their own, but step "
        "passes by what has none before it applies them.",
        (False, False, True, False, True, True): "Weight decay is applied inside step, which passes by what has no "
        "gradient.",
        (False, False, True, True, True, False): "Momentum is applied inside step, which passes by what has no "
        "gradient.",
        (True, False, True, False, True, False): "Plain SGD moves a weight by rate times gradient: zero times anything "
        "is zero.",
        (False, False, False, False, True, False): "Momentum adds a share of the last step to the next, also where "
        "the gradient is zero.",
        (True, True, True, True, True, True): "Step passes by what has no gradient, and plain SGD adds nothing to "
        "one of zero.",
    },
    otherwise="Look at the lines with None first, and then at what each setting adds to a gradient of zero.",
)
lesson.prediction(
    "table",
    {
        (0, 0, 0): "Frozen does not mean left alone: a .grad of zeros is there, and step works on it.",
        (2, 0, 4): "You let zero_grad make zeros from the start. It fills only a .grad that is there: None stays None.",
        (2, 2, 4): "You let weight decay reach what has no .grad. Step passes it by.",
        (0, 2, 4): "In the second column .grad is None: step passes it by before it applies weight decay.",
        (0, 0, 5): "Plain SGD has nothing to add to a gradient of zero.",
        (0, 0, 3): "Count again in the last column: momentum, weight decay, and both kinds of Adam, which average "
        "gradients.",
        (0, 0, 2): "Count again in the last column: Adam has averages of gradients, which go on as momentum does.",
        (0, 3, 4): "Momentum and averages wait where .grad is None; they do not go on.",
        (0, 4, 4): "The default zero_grad leaves None, and what has no .grad is passed by.",
    },
    otherwise="In which columns is there a .grad once the weight is frozen? And what does each optimizer add to zeros?",
)
lesson.prediction(
    "resume-all",
    {
        (4, 0.01): "You took a state_dict to hold state only. It holds the settings of each group too, and loading "
        "replaces yours.",
        (
            2,
            0.01,
        ): "All four were trained when it was saved, and flags play no part in loading. The saved settings come "
        "along, too.",
        (2, 0.1): "All four were trained when it was saved, and flags play no part in loading.",
        (0, 0.01): "The optimizer was new; but then the saved state was loaded, and the saved settings with it.",
        (0, 0.1): "The momentum is the state that is loaded: four parameters have some.",
    },
    otherwise="Look at what was saved: the momenta of one step of all four parameters, and the settings of the group.",
)

SGD, Adam, AdamW, LBFGS = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.LBFGS


@lesson.exercise(
    "moves-when-frozen",
    follows="When you freeze late, two things decide: whether there is a .grad, and what the optimizer adds to it. "
    "Take .grad away, and only LBFGS still moves the weight.",
)
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
        "LBFGS; zero_grad()": _moves(LBFGS, _none, max_iter=1),
    }
    beliefs: dict[tuple[str, Any], str] = {
        ("SGD; nothing", False): "Freezing does not empty .grad: the old gradient is still there, and step applies it.",
        ("SGD; zero_grad(set_to_none=False)", True): "With a gradient of zero plain SGD has nothing to add: rate times "
        "zero.",
        ("SGD, weight decay; zero_grad()", True): "Weight decay does not reach what has no .grad: step passes it by "
        "before.",
        ("SGD, weight decay; zero_grad(set_to_none=False)", False): "The .grad is there, filled with zeros, so step "
        "works on the weight and adds weight decay, frozen or not.",
        ("SGD, momentum; w.grad = None, zero_grad(set_to_none=False)", True): "There is no .grad that zero_grad could "
        "fill: None stays None, and the momentum waits.",
        ("Adam; zero_grad(set_to_none=False)", False): "Adam has no argument named momentum, but its average of "
        "gradients does the same, and a .grad of zeros lets it go on.",
        ("AdamW, weight decay; new AdamW, zero_grad(set_to_none=False)", False): "The new AdamW has no averages. But "
        ".grad belongs to the weight, is filled with zeros, and weight decay needs no averages.",
        ("LBFGS; zero_grad()", False): "LBFGS is the exception: it goes in a direction mixed from its earlier steps, "
        "in which w took part.",
    }
    table(answer, seen, beliefs)


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
    """Whether the second step moves ``w``, which was frozen after the first."""
    w, other = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = build([w, other], lr=0.1, **settings)
    for number in range(2):
        before = w.item()
        loss = (w * other - 3) ** 2
        loss.backward()
        optimizer.step(loss.item)
        if number == 0:
            w.requires_grad_(False)
            optimizer = build([w, other], lr=0.1, **settings) if rebuilt else optimizer
            between(w, optimizer)
    return w.item() != before


@lesson.exercise(
    "new-head",
    follows="An optimizer keeps the Parameter objects that it is given. So it is the last thing to be built, and "
    "helpers.audit(model, optimizer) shows whether it fits.",
)
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
    """`NotYet` unless ``answer`` gives the model a new head, freezes the body, and two steps train the head alone."""
    body, old = _numbers(model.body, "body."), list(model.head.parameters())
    numbers = old[0].detach().clone()
    optimizer = _optimizer(run(answer, model, classes))
    parameters = dict(model.named_parameters())
    if gone := [name for name in body if name not in parameters]:
        raise NotYet(f"The model has no {gone[0]} any more: only the head is to be replaced.")
    _same_numbers(body, parameters)
    x = torch.randn(5, 4)
    width = _tried("The body", model.body, x).shape[1]
    output = _tried(f"The model (its body gives {width} numbers a row)", model, x)
    if not isinstance(model.head, nn.Linear):
        raise NotYet(f"model.head is {kind(model.head)}: a linear layer was asked for, such as nn.Linear makes.")
    if output.shape != (5, classes):
        raise NotYet(f"For {classes} classes and 5 rows the model gives {tuple(output.shape)}, not (5, {classes}).")
    if not torch.equal(output, model.head(model.body(x))):
        raise NotYet("model(x) is no longer model.head(model.body(x)): replace the head, and leave forward as it was.")
    if model.head.bias is None:
        raise NotYet("The new head has no bias: it is to have a weight and a bias, as the old one.")
    _still_in_train_mode(model)
    head = {name: p for name, p in parameters.items() if name not in body}
    if any(p.shape == numbers.shape and torch.equal(p, numbers) for p in head.values()):
        raise NotYet("model.head has the old numbers: a head of the same size is to be new, too.")
    if not any(p.requires_grad for p in parameters.values()):
        raise NotYet("Nothing asks now, so backward() would raise: the new head was frozen with the rest.")
    if asking := [name for name in body if parameters[name].requires_grad]:
        raise NotYet(f"Still asking: {', '.join(asking)}. Everything but the new head is to be frozen.")
    if frozen := [name for name, p in head.items() if not p.requires_grad]:
        raise NotYet(f"Frozen: {', '.join(frozen)}. The whole new head is to be trained.")
    before = _numbers(model)
    for _ in range(2):
        _tried("A step", _step, model, optimizer, x)
    if moved := [name for name in body if not torch.equal(parameters[name], body[name])]:
        raise NotYet(f"{', '.join(moved)} moved: the body is to stay as it was.")
    held = _held(optimizer)
    for name, parameter in head.items():
        if not parameter.isfinite().all():
            raise NotYet(f"After two steps {name} has numbers that are not finite: look at the learning rate.")
        if torch.equal(parameter, before[name]):
            raise NotYet(_still(name, id(parameter) in held, bool(held & set(map(id, head.values())))))
    if orphans := held - set(map(id, parameters.values())):
        many = f"{len(orphans)} parameter{'s' * (len(orphans) > 1)}"
        which = "of the old head, which the model no longer has"
        if not orphans <= set(map(id, old)):
            which = "that the model does not have"
        raise NotYet(f"The new head learns. But the optimizer holds {many} {which}.")


def _held(optimizer):
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def _numbers(module, prefix=""):
    return {prefix + name: p.detach().clone() for name, p in module.named_parameters()}


def _same_numbers(before, parameters):
    if other := [name for name in before if not torch.equal(before[name], parameters[name])]:
        raise NotYet(f"Your function itself changes the numbers of {other[0]}: they are not yours to change.")


def _same_objects(before, model):
    now = dict(model.named_parameters())
    if now.keys() != before.keys() or any(now[name] is not before[name] for name in now):
        raise NotYet("The model has other Parameter objects now: an optimizer of before holds the old ones.")


def _still_in_train_mode(model):
    """The body may be in eval mode with good reason: that would hold the statistics of norm layers."""
    if not (model.training and model.head.training):
        which = "The head" if model.training else "The model"
        raise NotYet(f"{which} is in eval mode after your call, and is to be trained: eval() freezes nothing.")


def _still(name: str, held: bool, others: bool) -> str:
    if held:
        return f"The optimizer holds {name}, and a step does not move it: look at its learning rate."
    if others:
        return f"{name} did not move: the optimizer holds only a part of the new head."
    return (
        f"{name} got a gradient and did not move: the optimizer does not hold it. It holds the Parameter objects "
        "that it was given, and the new head was not among them."
    )


@lesson.exercise(
    "late-freeze",
    follows="No gradient is no step: with .grad = None neither momentum nor weight decay is applied, whatever kind of "
    "zero_grad the loop calls. What the optimizer has for the body waits until you unfreeze it.",
)
def late_freeze(answer):
    cases: list[tuple[Callable[..., torch.optim.Optimizer], dict[str, float]]] = [
        (SGD, {"momentum": 0.9}),
        (SGD, {"weight_decay": 0.5}),
        (AdamW, {"weight_decay": 0.5}),
        (Adam, {}),
    ]
    for number, (build, settings) in enumerate(cases):
        wanted, _ = _drift(_properly, number, build, settings)
        got, left = _drift(lambda *given: run(answer, *given), number, build, settings)
        told = f"With {build.__name__}" + "".join(f" and {name}={value}" for name, value in settings.items())
        if still := [name for name, (before, after) in got.items() if name[:4] == "head" and before.equal(after)]:
            raise NotYet(f"{told} {still[0]} stands still: only the body is to be frozen.")
        drifted = [name for name, (before, after) in got.items() if name[:4] == "body" and not before.equal(after)]
        if drifted:
            raise NotYet(f"{told} {drifted[0]} still moves. {left}")
        if not all(torch.allclose(after, wanted[name][1], rtol=1e-4) for name, (_, after) in got.items()):
            raise NotYet(
                f"{told} the body stands still, but the head goes another way than without the call. Its momentum or "
                "averages, its learning rate and its weight decay are not yours to change."
            )


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
        raise NotYet("Nothing asks now, so the loop's next backward() would raise: only the body is to be frozen.")
    if asking := [name for name, p in objects.items() if name.startswith("body.") and p.requires_grad]:
        raise NotYet(f"{asking[0]} still asks: freeze it by its flag.")
    _still_in_train_mode(model)
    left = _what_is_left([p.grad for name, p in objects.items() if name.startswith("body.")])
    for _ in range(3):
        _tried("The loop", _step, model, optimizer, x, set_to_none=False)
    return {name: (before[name], p.detach()) for name, p in objects.items()}, left


def _what_is_left(gradients):
    if all(gradient is None for gradient in gradients):
        return "Its gradients were gone after your call: what gave it new ones, or moves it without?"
    if any(gradient is not None and gradient.any() for gradient in gradients):
        return (
            "After your call its old .grad was still there. The loop fills it with zeros, and zero is still a step: "
            "look at what becomes of .grad."
        )
    return (
        "After your call its .grad is a tensor of zeros. That is still a step: momentum, averages, weight decay go on."
    )


@lesson.exercise(
    "two-rates",
    follows="An optimizer that holds everything from the start needs nothing when flags change; one that holds less "
    "has to be given what is missing. Neither has to be built again.",
)
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
    x, momenta, given = torch.randn(4, 2).double(), {}, ()
    for call, parts in enumerate([frozen, *later]):
        flags = {name: not any(f"{name}.".startswith(f"{part}.") for part in parts) for name in parameters}
        for name, parameter in parameters.items():
            parameter.requires_grad_(flags[name])
        if call:  # another model meanwhile: what was returned for this one need not be remembered, it is given
            _asked_for_optimizer(answer, copy.deepcopy(model), rate)
        before = _numbers(model)
        optimizer = _asked_for_optimizer(answer, model, rate, *given)
        given = (optimizer,)
        _same_objects(parameters, model)
        _same_numbers(before, parameters)
        if {name: p.requires_grad for name, p in parameters.items()} != flags:
            raise NotYet("Your function changes flags: it is to follow them.")
        for _ in range(2):
            before = _numbers(model)
            _tried("A step", _step, model, optimizer, x)
            for name, parameter in parameters.items():
                step = before[name] - parameter.detach()
                if not flags[name] and step.any():
                    raise NotYet(f"{name} is frozen, and moved.")
                if flags[name] and not step.any():
                    since = "is unfrozen now" if call and name not in momenta else "asks"
                    why = "the optimizer that you returned does not hold it"
                    if id(parameter) in _held(optimizer):
                        why = "the optimizer holds it, and its learning rate is 0"
                    raise NotYet(f"{name} {since}, and a step does not move it: {why}.")
                if flags[name]:
                    due = rate if name.startswith("head.") else rate / 10
                    _compare(name, step, parameter.grad, momenta, due, call)


def _asked_for_optimizer(answer, *given):
    try:
        return _optimizer(run(answer, *given))
    except NotYet as reason:
        if any(said in str(reason) for said in ("Boolean value of Tensor", "size of tensor")):
            raise NotYet(
                f"{reason} Tensors are compared number by number, by == and also by in of a list: compare by "
                "identity, with id(p) or with a set."
            ) from None
        raise


def _compare(name, step, gradient, momenta, rate, call):
    """`NotYet` unless ``step`` is that of SGD with momentum 0.9 at ``rate``."""
    new = name not in momenta
    momenta[name] = gradient.clone() if new else 0.9 * momenta[name] + gradient
    if torch.allclose(step, rate * momenta[name]):
        return
    if not step.isfinite().all():
        raise NotYet(f"{name} is not finite after a step.")
    if torch.allclose(step, rate * (gradient + 0.9 * momenta[name])):
        raise NotYet(f"{name} moves as with nesterov=True: plain momentum was asked for.")
    if not new and any(torch.allclose(step, factor * rate * gradient) for factor in (0.1, 1, 10)):
        raise NotYet(
            f"{name} moves as if it had no momentum. It had some: an optimizer that is built again starts without."
            if call
            else f"{name} moves without momentum: 0.9 was asked for."
        )
    got = (step.norm() / momenta[name].norm()).item()
    # Of a single number that has momentum, each other step would look like another rate.
    if abs(got / rate - 1) > 0.01 and (new or step.numel() > 1) and torch.allclose(step, got * momenta[name]):
        raise NotYet(f"{name} moves at the rate {got:.3g}; it should be {rate:.3g}.")
    raise NotYet(
        f"{name} moves otherwise than SGD would move it at the rate {rate:.3g}, with momentum 0.9 and nothing else."
    )


def _optimizer(given):
    if not isinstance(given, torch.optim.Optimizer):
        raise NotYet(f"Return the optimizer; your function returns {kind(given)}.")
    return given


def _step(model, optimizer, x, set_to_none=True):
    """One step of a training loop, with any optimizer; only LBFGS has to be given the closure."""

    def closure():
        optimizer.zero_grad(set_to_none=set_to_none)
        output = model(x)
        loss = output.square().mean() + output.sum()
        loss.backward()
        return loss

    closure()
    if isinstance(optimizer, LBFGS):
        optimizer.step(closure)
    else:
        optimizer.step()


def _tried(what, call, *args, **kwargs):
    try:
        return call(*args, **kwargs)
    except Exception as error:
        text = str(error).strip().splitlines() or [""]
        raise NotYet(f"{what} after your call raised {type(error).__name__}: {text[0][:120]}") from error
