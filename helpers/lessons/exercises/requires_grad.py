"""The exercises and predictions of the lesson on ``requires_grad``."""

import copy
import operator

import torch
from torch import nn

from helpers.lessons.exercises import RAISES, Lesson, NotYet, kind, raises, run, table, taken

lesson = Lesson()
check, predict, progress = lesson.check, lesson.predict, lesson.progress

lesson.prediction(
    "any",
    {
        (False, False): "b has z among its inputs, and z asks: one is enough.",
        (True, True): "a has only inputs that do not ask: who would need its gradient?",
        (True, False): "It is the other way round: a has no input that asks, b has one.",
    },
)
lesson.prediction(
    "frozen-middle",
    {
        (True, True, True): "A frozen layer is not asked for a gradient of its own, so it keeps none.",
        (False, False, True): "You let the frozen layer stop the gradient. It keeps none, and passes it on.",
        (True, False, False): "Backward begins at the loss, so the last layer is the first that it reaches.",
        (False, False, False): "Freezing one layer turns nothing off for the others.",
    },
)
lesson.prediction(
    "flops",
    {
        (3, 1): "It is the other way round: to reach the first layer backward must pass the last two, frozen or not.",
        (1, 1): "Two frozen layers each time, but backward ends at the earliest tensor that asks: look where that is.",
        (3, 3): "One product for its own weight, one to pass on: which are needed if nothing before asks?",
        (2, 2): "Has the last layer somebody to pass on to? And do frozen layers at the end pass on for nothing?",
        (1, 2): "The first is right. The last two save their own products, and both pass on: 5 - 2.",
    },
)
lesson.prediction(
    "moment",
    {
        (1, 0.8, 0.8): "Backward looks at the flag again before it adds to .grad.",
        (1, 1, 1): "Once .grad is there, the optimizer applies it: it never looks at the flag.",
        (1, 0.8, 1): "Backward looks at the flag again. The optimizer does not: it applies what is in .grad.",
    },
)
lesson.prediction(
    "accumulate",
    {
        (6, 6, 6): "backward() does not overwrite .grad; it adds to it.",
        (6, 12, 24): "It adds the new gradient, 6, each time; it does not double what is there.",
        (6, 36, 216): "It adds, it does not multiply.",
    },
)


@lesson.exercise(
    "who-is-asked",
    follows="A gradient goes from the loss to every leaf that asks and was used, through frozen layers; results keep "
    "none, and the flag of a result is not yours to set.",
)
def who_is_asked(answer):
    first, frozen, last, unused = (nn.Linear(2, 2) for _ in range(4))
    frozen.requires_grad_(False)
    hidden = first(torch.ones(1, 2))
    loss = last(frozen(hidden)).sum()
    loss.backward()
    seen = {
        "first.weight has a gradient": first.weight.grad is not None,
        "frozen.weight has a gradient": frozen.weight.grad is not None,
        "unused.weight has a gradient": unused.weight.grad is not None,
        "frozen(hidden).requires_grad": frozen(hidden).requires_grad,
        "frozen(torch.ones(1, 2)).requires_grad": frozen(torch.ones(1, 2)).requires_grad,
        "hidden is a leaf": hidden.is_leaf,
        "hidden.requires_grad = False raises": raises(lambda: setattr(hidden, "requires_grad", False)) == RAISES,
        "a second loss.backward() raises": raises(loss.backward) == RAISES,
    }
    beliefs = {
        ("first.weight has a gradient", False): "The frozen layer does not stop the gradient on its way to first.",
        ("frozen.weight has a gradient", True): "Backward passes the frozen layer, but adds nothing to its .grad.",
        ("unused.weight has a gradient", True): "unused asks, but the loss was not computed from it.",
        ("frozen(hidden).requires_grad", False): "One input that asks is enough, and hidden has a grad_fn.",
        ("frozen(torch.ones(1, 2)).requires_grad", True): "No input asks: neither the ones nor the frozen weights.",
        ("hidden is a leaf", True): "hidden was computed from a weight that asks: it has a grad_fn.",
        ("hidden.requires_grad = False raises", False): "hidden is a result: its flag follows from its inputs.",
        ("a second loss.backward() raises", False): "The first backward freed what forward had saved.",
    }
    table(answer, seen, beliefs)


@lesson.exercise(
    "still-trains",
    follows="The method with the underscore reaches every parameter of the layer, and a misspelled method is an error, "
    "where a misspelled attribute is silent.",
)
def still_trains(answer):
    _freezes_the_first(answer, nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    block = nn.Sequential(nn.Linear(3, 4), nn.PReLU())
    _freezes_the_first(answer, nn.Sequential(block, *(nn.Linear(4, 4) for _ in range(9)), nn.Linear(4, 2)))


def _freezes_the_first(answer, model):
    objects, untouched = list(model.parameters()), copy.deepcopy(model)
    given = run(answer, model)
    _only_flags(objects, untouched, model)
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    wanted = {name: not name.startswith("0.") for name in flags}
    if all(flags.values()):
        if isinstance(given, nn.Module) and not all(parameter.requires_grad for parameter in given.parameters()):
            raise NotYet("What you return is frozen, the model that was given is not: freeze it, not a copy.")
        _no_stray_flag(model)
        raise NotYet("No flag of the model changed. Does what you changed share its flag, or only its numbers?")
    if not any(flags.values()):
        raise NotYet("Now nothing asks, and backward() would raise: only the first layer is to be frozen.")
    if missed := [name for name in wanted if flags[name] and not wanted[name]]:
        raise NotYet(f"{missed[0]} still asks: a layer may have several parameters, some of them deeper in it.")
    if extra := [name for name in wanted if wanted[name] and not flags[name]]:
        raise NotYet(f"{', '.join(extra[:2])} should still ask: only what is in model[0] is to be frozen.")
    untouched[0].requires_grad_(False)
    for one in (model, untouched):
        one(torch.ones(1, 3)).sum().backward()
    twins = zip(model.parameters(), untouched.parameters(), strict=True)
    if not all(one.grad is other.grad is None or torch.equal(one.grad, other.grad) for one, other in twins):
        raise NotYet("The flags are right, but backward gives other gradients than before: change nothing but flags.")


@lesson.exercise(
    "freeze-by-name",
    follows="That is what freeze() of helpers does with patterns. It does one thing more, and holds what it freezes in "
    "eval mode: the lesson on fine-tuning says why.",
)
def freeze_by_name(answer):
    parts = ("body", "body.layer1", "head.weight", "head", "aux", "body.deep.block", "body.norm")
    for part in parts:
        model = _parts()
        objects, untouched = list(model.parameters()), copy.deepcopy(model)
        try:
            given = run(answer, model, part)
        except NotYet as reason:
            which = "a single parameter" if part == "head.weight" else "a module"
            raise NotYet(f"For {part!r}, which is {which}: {reason}") from None
        names = [name for name, _ in model.named_parameters() if f"{name}.".startswith(f"{part}.")]
        _only_flags(objects, untouched, model)
        _right_flags(part, names, untouched, model)
        if given is None:
            raise NotYet("The flags are right. Return the names, as a list.")
        listed = taken(given, "a list of names")
        if not all(isinstance(name, str) for name in listed):
            raise NotYet(f"Return names, which are strings; the list holds {kind(listed[0])}.")
        if listed != names:
            why = ""
            if set(listed) - set(names):
                why = " Only parameters of the part belong there, whatever else is frozen or has a name."
            elif "head.bias" in names and "head.bias" not in listed:
                why = " head.bias belongs to the part, though it was frozen before."
            raise NotYet(f"For {part!r} the names are {names}, not {listed}.{why}")
    for absent in ("boddy", "body.layer", "layer1", "weight"):
        model = _parts()
        objects, untouched = list(model.parameters()), copy.deepcopy(model)
        try:
            answer(model, absent)
        except ValueError:
            pass
        except Exception as error:
            raise NotYet(
                f"For {absent!r}, which is no part, it raised {type(error).__name__}: ValueError was asked for."
            ) from None
        else:
            raise NotYet(
                f"{absent!r} is no part of the model, and nothing was said: a wrong name must not pass in silence."
            )
        _only_flags(objects, untouched, model)
        twins = zip(untouched.parameters(), model.parameters(), strict=True)
        if any(one.requires_grad != other.requires_grad for one, other in twins):
            raise NotYet(f"For {absent!r}, which is no part, it raised ValueError, but changed flags before.")


def _parts():
    """Parts whose names begin alike, lie deep, come twice, or are a single parameter."""
    blocks = {"layer1": nn.Linear(2, 2), "layer10": nn.Linear(2, 2), "norm": nn.BatchNorm1d(2)}
    deep = nn.ModuleDict({"deep": nn.ModuleDict({"block": nn.Linear(2, 2), "other": nn.Linear(2, 2)})})
    body = nn.ModuleDict({**blocks, **deep})
    model = nn.ModuleDict({"body": body, "aux": nn.ModuleDict({"head": nn.Linear(2, 1)}), "head": nn.Linear(2, 1)})
    model["head"].bias.requires_grad = False  # by somebody before
    return model


def _only_flags(objects, untouched, model):
    """Raise `NotYet` if anything but flags differs from the copy made before, or a parameter is another object."""
    before, after = untouched.state_dict(), model.state_dict()
    kinds = [[type(module) for module in one.modules()] for one in (untouched, model)]
    named = [[name for name, _ in one.named_parameters()] for one in (untouched, model)]
    same = len(objects) == len(named[1]) and all(map(operator.is_, objects, model.parameters()))
    if not same or named[0] != named[1] or kinds[0] != kinds[1] or before.keys() != after.keys():
        raise NotYet(
            "The model has other Parameter objects or modules now. An optimizer would hold the old ones: change flags."
        )
    if any(before[name].dtype != after[name].dtype or not before[name].equal(after[name]) for name in before):
        raise NotYet("Numbers of the model changed. Freezing changes flags, and nothing else.")
    modes = zip(untouched.modules(), model.modules(), strict=True)
    # A norm layer may be put in eval mode with good reason: that holds its running statistics.
    if any(one.training != other.training for one, other in modes if not isinstance(one, nn.BatchNorm1d)):
        raise NotYet("The mode changed: eval() freezes nothing, and changes what dropout and norm layers do.")


def _no_stray_flag(model):
    """Name the attribute that was made where a flag was meant."""
    for owner in (*model.modules(), *model.parameters()):
        for name in vars(owner).keys() & {"requires_grad", "requires_grad_", "require_grad"}:
            if name == "requires_grad_":
                raise NotYet("You put a value in place of the method requires_grad_: call it, requires_grad_(False).")
            what = "a layer" if isinstance(owner, nn.Module) else "a parameter"
            raise NotYet(
                f"{name} was made a new attribute of {what}, and nothing reads it: look at the underscore at the end "
                "of the method, and at the s."
            )


def _right_flags(part, names, untouched, model):
    before = {name: parameter.requires_grad for name, parameter in untouched.named_parameters()}
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    if before == flags:
        _no_stray_flag(model)
        raise NotYet(f"For {part!r} no flag changed. Does your code reach parameters at that depth?")
    if flags["head.bias"]:
        raise NotYet("head.bias was frozen before, and asks now: leave alone what is not part of the name.")
    extra = [name for name in flags if before[name] and not flags[name] and name not in names]
    if extra and extra[0].startswith(part):
        raise NotYet(f"{part!r} froze {extra[0]} too: a name that begins with the same letters is another part.")
    if extra:
        raise NotYet(f"For {part!r} {extra[0]} should still ask, and is frozen.")
    if missed := [name for name in names if flags[name]]:
        raise NotYet(f"For {part!r} {missed[0]} should be frozen, and still asks.")
