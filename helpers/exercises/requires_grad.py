"""The exercises and predictions of the lesson on ``requires_grad``."""

import torch
from torch import nn

from helpers.exercises import Lesson, NotYet, raises, run, table, taken

lesson = Lesson()
check, predict, progress = lesson.check, lesson.predict, lesson.progress

lesson.prediction(
    "any",
    {
        (False, False): "You let one input that does not ask decide, as the old volatile did. One that asks is enough.",
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
        (2, 2): "It is not one product a layer: look which layers backward must pass.",
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
        "frozen(hidden) asks": frozen(hidden).requires_grad,
        "frozen(torch.ones(1, 2)) asks": frozen(torch.ones(1, 2)).requires_grad,
        "hidden is a leaf": hidden.is_leaf,
        "hidden.requires_grad = False": raises(lambda: setattr(hidden, "requires_grad", False) or True),
        "loss.backward() once more": raises(lambda: loss.backward() or True),
    }
    beliefs = {
        ("first.weight has a gradient", False): "The frozen layer does not stop the gradient on its way to first.",
        ("frozen.weight has a gradient", True): "Backward passes the frozen layer, but adds nothing to its .grad.",
        ("unused.weight has a gradient", True): "unused asks, but the loss was not computed from it.",
        ("frozen(hidden) asks", False): "One input that asks is enough, and hidden asks.",
        ("frozen(torch.ones(1, 2)) asks", True): "Here no input asks: neither the ones nor the frozen weights.",
        ("hidden is a leaf", True): "hidden was computed from a weight that asks: it has a grad_fn.",
        ("hidden.requires_grad = False", True): "hidden is a result: its flag follows from its inputs.",
        ("loss.backward() once more", True): "The first backward freed what forward had saved.",
    }
    table(answer, seen, beliefs)


@lesson.exercise(
    "still-trains",
    follows="The method with the underscore reaches every parameter of the layer, and a misspelled method is an error, "
    "where a misspelled attribute is silent.",
)
def still_trains(answer):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    before = dict(model.named_parameters())
    given = run(answer, model)
    _same_objects(before, model)
    flags = {name: parameter.requires_grad for name, parameter in before.items()}
    if isinstance(given, nn.Module) and given is not model:
        raise NotYet("The model itself is to be frozen, not a copy of it.")
    if all(flags.values()):
        if "requires_grad" in vars(model[0]) or any("require_grad" in vars(p) for p in model[0].parameters()):
            raise NotYet(
                "All four parameters still ask. A new attribute was made that nothing reads: look at the underscore "
                "at the end of the method, and at the s."
            )
        raise NotYet(
            "All four parameters still ask. Does what you changed share its flag with the weight, or only its numbers?"
        )
    if flags["0.weight"] != flags["0.bias"]:
        left = "0.bias" if flags["0.bias"] else "0.weight"
        raise NotYet(f"{left} still asks: a layer may have several parameters.")
    if not any(flags.values()):
        raise NotYet("Now nothing asks, and backward() would raise: only the first layer is to be frozen.")
    if flags != {"0.weight": False, "0.bias": False, "2.weight": True, "2.bias": True}:
        asking = [name for name, asks in flags.items() if asks]
        raise NotYet(f"Asking now: {', '.join(asking)}. It should be the last layer's two.")
    model(torch.ones(1, 3)).sum().backward()
    if model[0].weight.grad is not None or model[2].weight.grad is None:
        raise NotYet("The flags are right, but a backward does not give the last layer a gradient, and it alone.")


@lesson.exercise(
    "freeze-by-name",
    follows="That is what freeze() of helpers does with patterns. It does one thing more, for running statistics: the "
    "lesson on fine-tuning has it.",
)
def freeze_by_name(answer):
    def build():
        blocks = {"layer1": nn.Linear(2, 2), "layer10": nn.Linear(2, 2)}
        model = nn.ModuleDict({"body": nn.ModuleDict(blocks), "head": nn.Linear(2, 1)})
        model["head"].bias.requires_grad = False  # by somebody before
        return model

    body = ["body.layer1.weight", "body.layer1.bias", "body.layer10.weight", "body.layer10.bias"]
    for part, names in {"body": body, "body.layer1": body[:2], "head.weight": ["head.weight"]}.items():
        model = build()
        objects = dict(model.named_parameters())
        given = run(answer, model, part)
        flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        wanted = {name: name not in (*names, "head.bias") for name in objects}
        _same_flags(part, flags, wanted)
        _same_objects(objects, model)
        if given is None:
            raise NotYet("The flags are right. Return the names, as a list.")
        listed = taken(given, "a list of names")
        if listed != names:
            why = "; head.bias was frozen before, by somebody else" if "head.bias" in listed else ""
            raise NotYet(f"For {part!r} the names are {names}, not {listed}{why}.")
    for absent in ("boddy", "body.layer"):
        model = build()
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
                f"{absent!r} is no part of the model, and nothing was said: a misspelled name must not pass in silence."
            )


def _same_objects(before, model):
    after = dict(model.named_parameters())
    if before.keys() != after.keys() or any(before[name] is not after[name] for name in after):
        raise NotYet("The model has other Parameter objects now. An optimizer built before would hold the old ones.")


def _same_flags(part, flags, wanted):
    extra = [name for name in wanted if wanted[name] and not flags.get(name)]
    missed = [name for name in wanted if not wanted[name] and flags.get(name)]
    if "head.bias" in missed:
        raise NotYet("head.bias was frozen before, and asks now: leave alone what is not part of the name.")
    if part == "body.layer1" and extra == ["body.layer10.weight", "body.layer10.bias"]:
        raise NotYet("'body.layer1' froze body.layer10 too: a name that begins with the same letters is another part.")
    if missed and len(missed) == len([name for name in wanted if not wanted[name]]) - 1:
        raise NotYet(f"For {part!r} nothing was frozen. Does your code reach parameters below the first level?")
    if missed:
        raise NotYet(f"For {part!r} {', '.join(missed)} should be frozen, and still asks.")
    if extra:
        raise NotYet(f"For {part!r} {', '.join(extra)} should still ask, and is frozen.")
