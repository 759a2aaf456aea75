"""Answers to the exercises of the lesson on ``requires_grad``."""

import torch
from torch import nn

from tests.tools.exercises import Answers

answers = Answers()
right, wrong = answers.right, answers.wrong

ASKED = {
    "first.weight has a gradient": True,
    "frozen.weight has a gradient": False,
    "unused.weight has a gradient": False,
    "frozen(hidden).requires_grad": True,
    "frozen(torch.ones(1, 2)).requires_grad": False,
    "hidden is a leaf": False,
    "hidden.requires_grad = False raises": True,
    "a second loss.backward() raises": True,
}
right("who-is-asked")(ASKED)
right("who-is-asked")(dict(reversed(ASKED.items())))
right("who-is-asked")({**ASKED})
wrong("who-is-asked", "does not stop the gradient")(
    ASKED | {"first.weight has a gradient": False}, "A frozen layer stops the gradient."
)
wrong("who-is-asked", "adds nothing to its .grad")(
    ASKED | {"frozen.weight has a gradient": True}, "A frozen layer gets a gradient that the optimizer ignores."
)
wrong("who-is-asked", "not computed from it")(
    ASKED | {"unused.weight has a gradient": True}, "Whatever asks gets a gradient, zeros if need be."
)
wrong("who-is-asked", "One input that asks is enough")(
    ASKED | {"frozen(hidden).requires_grad": False}, "What comes out of a frozen layer needs no gradient."
)
wrong("who-is-asked", "neither the ones")(
    ASKED | {"frozen(torch.ones(1, 2)).requires_grad": True}, "What comes out of a layer always needs a gradient."
)
wrong("who-is-asked", "it has a grad_fn")(ASKED | {"hidden is a leaf": True}, "A leaf is whatever I gave a name.")
wrong("who-is-asked", "its flag follows from its inputs")(
    ASKED | {"hidden.requires_grad = False raises": False}, "A flag can be set on any tensor."
)
wrong("who-is-asked", "freed what forward had saved")(
    ASKED | {"a second loss.backward() raises": False}, "Backward can be called as often as one likes."
)


@right("still-trains")
def method_of_the_layer(model):
    model[0].requires_grad_(False)


@right("still-trains")
def each_parameter(model):
    for parameter in model[0].parameters():
        parameter.requires_grad = False


@right("still-trains")
def by_name_and_returned(model):
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith("0."))
    return model


@wrong("still-trains", "should still ask")
def all_but_the_last(model):
    """Everything before the last layer is the first."""
    model.requires_grad_(False)
    model[-1].requires_grad_(True)


@wrong("still-trains", "look at the underscore")
def attribute_of_the_layer(model):
    """A layer has a flag, as its parameters do."""
    model[0].requires_grad = False


@wrong("still-trains", "at the s")
def misspelled(model):
    """Python would say so if there were no such attribute."""
    for parameter in model[0].parameters():
        parameter.require_grad = False


@wrong("still-trains", "only its numbers")
def through_data(model):
    """.data is the parameter itself."""
    for parameter in model[0].parameters():
        parameter.data.requires_grad = False


@wrong("still-trains", "0.bias still asks")
def weight_only(model):
    """A layer has one parameter."""
    model[0].weight.requires_grad = False


@wrong("still-trains", "Now nothing asks")
def everything(model):
    """The optimizer decides what trains, so freezing more does no harm."""
    model.requires_grad_(False)


@wrong("still-trains", "other Parameter objects")
def detached(model):
    """A detached copy of a weight is the weight without a gradient."""
    model[0].weight = nn.Parameter(model[0].weight.detach(), requires_grad=False)
    model[0].bias = nn.Parameter(model[0].bias.detach(), requires_grad=False)


@wrong("still-trains", "other Parameter objects")
def replaced_by_buffers(model):
    """A buffer is a frozen parameter."""
    weight = model[0].weight.detach()
    del model[0].weight
    model[0].register_buffer("weight", weight)


@wrong("still-trains", "should still ask")
def the_wrong_end(model):
    """The first layer is the one nearest to the loss, as backward meets it."""
    model[2].requires_grad_(False)
    model[0].requires_grad_(False)
    model[2].weight.requires_grad_(True)


@right("freeze-by-name")
def parts_of_the_name(model, part):
    names = [name for name, _ in model.named_parameters() if name == part or name.startswith(part + ".")]
    if not names:
        raise ValueError(f"no parameter under {part!r}")
    for name in names:
        model.get_parameter(name).requires_grad_(False)
    return names


@right("freeze-by-name")
def by_dotted_comparison(model, part):
    names = []
    for name, parameter in model.named_parameters():
        if f"{name}.".startswith(f"{part}."):
            parameter.requires_grad = False
            names.append(name)
    if not names:
        raise ValueError(part)
    return names


@right("freeze-by-name")
def by_levels(model, part):
    levels = part.split(".")
    found = {n: p for n, p in model.named_parameters() if n.split(".")[: len(levels)] == levels}
    if len(found) == 0:
        raise ValueError("nothing there")
    [p.requires_grad_(False) for p in found.values()]
    return tuple(found)


@wrong("freeze-by-name", "begins with the same letters")
def beginning_letters(model, part):
    """A name that begins with the part's letters is in that part."""
    names = [name for name, _ in model.named_parameters() if name.startswith(part)]
    if not names:
        raise ValueError(part)
    for name in names:
        model.get_parameter(name).requires_grad = False
    return names


@wrong("freeze-by-name", "must not pass in silence")
def silent(model, part):
    """A loop that finds nothing is an error by itself."""
    names = [name for name, _ in model.named_parameters() if f"{name}.".startswith(f"{part}.")]
    for name in names:
        model.get_parameter(name).requires_grad = False
    return names


@wrong("freeze-by-name", "whatever else is frozen")
def all_that_is_frozen(model, part):
    """What is frozen now is what I froze."""
    for name, parameter in model.named_parameters():
        if f"{name}.".startswith(f"{part}."):
            parameter.requires_grad = False
    return [name for name, parameter in model.named_parameters() if not parameter.requires_grad]


@wrong("freeze-by-name", "leave alone what is not part of the name")
def sets_all_flags(model, part):
    """Every flag is mine to set."""
    names = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad = not f"{name}.".startswith(f"{part}.")
        if not parameter.requires_grad:
            names.append(name)
    return names


@wrong("freeze-by-name", "Return the names")
def returns_nothing(model, part):
    """Who froze it need not say what."""
    for name, parameter in model.named_parameters():
        if f"{name}.".startswith(f"{part}."):
            parameter.requires_grad = False


@wrong("freeze-by-name", "AttributeError")
def only_modules(model, part):
    """Every name in a model is that of a module."""
    model.get_submodule(part).requires_grad_(False)
    return [f"{part}.{name}" for name, _ in model.get_submodule(part).named_parameters()]


@wrong("freeze-by-name", "at that depth")
def first_level(model, part):
    """A model has its layers on one level."""
    names = []
    for name, child in model.named_children():
        if name == part:
            for inner, parameter in child.named_parameters(recurse=False):
                parameter.requires_grad = False
                names.append(f"{name}.{inner}")
    return names


@wrong("freeze-by-name", "other Parameter objects")
def new_parameters(model, part):
    """The flag of a parameter is fixed when it is made."""
    names = [name for name, _ in model.named_parameters() if f"{name}.".startswith(f"{part}.")]
    for name in names:
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, nn.Parameter(torch.ones(2), requires_grad=False))
    return names


@right("still-trains")
def in_one_line(model):
    return model[0].requires_grad_(False)


@right("still-trains")
def a_slice(model):
    return model[:1].requires_grad_(False)


@wrong("still-trains", "What you return is frozen")
def a_copy(model):
    """A function should leave its argument alone."""
    import copy

    frozen = copy.deepcopy(model)
    frozen[0].requires_grad_(False)
    return frozen


@wrong("still-trains", "in place of the method")
def the_method_overwritten(model):
    """The flag has an underscore at its end."""
    model[0].requires_grad_ = False


@wrong("still-trains", "eval() freezes nothing")
def eval_mode(model):
    """eval() freezes a layer."""
    model[0].eval()


@wrong("still-trains", "0.1.weight still asks")
def as_long_as_two(model):
    """The first two parameters are those of the first layer."""
    for parameter in list(model.parameters())[:2]:
        parameter.requires_grad_(False)


@wrong("still-trains", "should still ask")
def by_a_zero_in_the_name(model):
    """A name with a 0 in it is in layer 0."""
    for name, parameter in model.named_parameters():
        if "0" in name:
            parameter.requires_grad_(False)


@wrong("still-trains", "gives other gradients")
def by_a_hook(model):
    """A gradient of zero everywhere is the surest freeze."""
    model[0].requires_grad_(False)
    model[2].weight.register_hook(lambda gradient: gradient * 0)


@wrong("still-trains", "Numbers of the model changed")
def zeros(model):
    """A frozen layer does nothing."""
    model[0].requires_grad_(False)
    for parameter in model[0].parameters():
        parameter.data.zero_()


@wrong("freeze-by-name", "attribute of a layer")
def flag_of_the_part(model, part):
    """A module has a flag."""
    model.get_submodule(part).requires_grad = False
    return [f"{part}.{name}" for name, _ in model.get_submodule(part).named_parameters()]


@wrong("freeze-by-name", "but changed flags before")
def freezes_and_then_raises(model, part):
    """An error makes good what was done before it."""
    names = [name for name, _ in model.named_parameters() if f"{name}.".startswith(f"{part}.")]
    for name, parameter in model.named_parameters():
        if name in names or not names:
            parameter.requires_grad = False
    if not names:
        raise ValueError(part)
    return names


@wrong("freeze-by-name", "should still ask, and is frozen")
def anywhere_in_the_name(model, part):
    """A part's name may stand anywhere in a parameter's."""
    names = [name for name, _ in model.named_parameters() if f".{part}." in f".{name}."]
    if not names:
        raise ValueError(part)
    for name in names:
        model.get_parameter(name).requires_grad = False
    return names


@wrong("freeze-by-name", "though it was frozen before")
def only_newly_frozen(model, part):
    """Only what asked belongs to the part."""
    names = [n for n, p in model.named_parameters() if p.requires_grad and f"{n}.".startswith(f"{part}.")]
    if not names:
        raise ValueError(part)
    for name in names:
        model.get_parameter(name).requires_grad = False
    return names


@wrong("freeze-by-name", "Only parameters of the part")
def with_buffers(model, part):
    """What is in the state_dict are parameters."""
    names = [name for name in model.state_dict() if f"{name}.".startswith(f"{part}.")]
    if not names:
        raise ValueError(part)
    for name, parameter in model.named_parameters():
        if name in names:
            parameter.requires_grad = False
    return names


@wrong("freeze-by-name", "Use return")
def one_by_one(model, part):
    """A function that yields has done its work."""
    for name, parameter in model.named_parameters():
        if f"{name}.".startswith(f"{part}."):
            parameter.requires_grad = False
            yield name
