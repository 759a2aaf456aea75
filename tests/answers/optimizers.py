"""Answers to the exercises of the lesson on optimizers."""

import contextlib
import copy

import torch
from torch import nn

from helpers import freeze
from tests.tools.exercises import Answers

answers = Answers()
right, wrong = answers.right, answers.wrong

MOVES = {
    "SGD; nothing": True,
    "SGD; zero_grad(set_to_none=False)": False,
    "SGD, weight decay; zero_grad()": False,
    "SGD, weight decay; zero_grad(set_to_none=False)": True,
    "SGD, momentum; w.grad = None, zero_grad(set_to_none=False)": False,
    "Adam; zero_grad(set_to_none=False)": True,
    "AdamW, weight decay; new AdamW, zero_grad(set_to_none=False)": True,
    "LBFGS; zero_grad() in its closure": True,
}
right("moves-when-frozen")(MOVES)
right("moves-when-frozen")(dict(reversed(MOVES.items())))
right("moves-when-frozen")(dict(zip(MOVES, [True, False, False, True, False, True, True, True], strict=True)))
wrong("moves-when-frozen", "Freezing does not empty .grad")(
    dict.fromkeys(MOVES, False), "A frozen weight does not move, whatever is done."
)
wrong("moves-when-frozen", "Freezing does not empty .grad")(
    MOVES | {"SGD; nothing": False}, "With the flag off, step ignores the gradient that is there."
)
wrong("moves-when-frozen", "rate times zero")(
    MOVES | {"SGD; zero_grad(set_to_none=False)": True}, "A gradient of zero always moves a weight a little."
)
wrong("moves-when-frozen", "does not reach what has no .grad")(
    MOVES | {"SGD, weight decay; zero_grad()": True}, "Weight decay pulls all that the optimizer holds."
)
wrong("moves-when-frozen", "adds weight decay, frozen or not")(
    MOVES | {"SGD, weight decay; zero_grad(set_to_none=False)": False}, "Weight decay is a share of the gradient."
)
wrong("moves-when-frozen", "the momentum waits")(
    MOVES | {"SGD, momentum; w.grad = None, zero_grad(set_to_none=False)": True},
    "zero_grad(set_to_none=False) makes zeros where there is nothing.",
)
wrong("moves-when-frozen", "its average of gradients does the same")(
    MOVES | {"Adam; zero_grad(set_to_none=False)": False}, "Without an argument momentum there is none."
)
wrong("moves-when-frozen", ".grad belongs to the weight")(
    MOVES | {"AdamW, weight decay; new AdamW, zero_grad(set_to_none=False)": False},
    "A new optimizer forgets everything, the old gradient too.",
)
wrong("moves-when-frozen", "LBFGS is the exception")(
    MOVES | {"LBFGS; zero_grad() in its closure": False}, "Every optimizer skips what has no .grad."
)

right("moves-when-frozen")({row: int(value) for row, value in MOVES.items()})
right("moves-when-frozen")({row: torch.tensor(value) for row, value in MOVES.items()})
wrong("moves-when-frozen", "Right in 5 of 8 rows")(
    dict.fromkeys(MOVES, True), "What the optimizer holds moves, whatever is done."
)
wrong("moves-when-frozen", "rate times zero")(
    {row: "zero_grad()" not in row or "LBFGS" in row for row in MOVES},
    "Only zero_grad() with its default stops a weight.",
)
wrong("moves-when-frozen", "Freezing does not empty .grad")(
    {row: "set_to_none=False" in row for row in MOVES}, "Only zeros move a frozen weight."
)
wrong("moves-when-frozen", "Freezing does not empty .grad")(
    {row: "decay" in row or "momentum" in row for row in MOVES},
    "A frozen weight moves by momentum and weight decay alone.",
)
wrong("moves-when-frozen", "Right in 0 of 8 rows")(
    {row: not value for row, value in MOVES.items()}, "True means that the weight stays."
)
wrong("moves-when-frozen", "Still to fill in")(MOVES | {"SGD; nothing": ...}, "One row may be left open.")
wrong("moves-when-frozen", "takes True or False")(
    {row: str(value) for row, value in MOVES.items()}, "A table holds words."
)
wrong("moves-when-frozen", "Keep the table the dict that it was")(
    list(MOVES.values()), "The order of the rows says enough."
)


@right("new-head")
def built_last(model, classes):
    for parameter in model.parameters():
        parameter.requires_grad = False
    model.head = nn.Linear(model.head.in_features, classes)
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


@right("new-head")
def only_the_head_in_adam(model, classes):
    model.head = nn.Linear(model.head.in_features, classes)
    model.body.requires_grad_(False)
    return torch.optim.Adam(model.head.named_parameters(), lr=0.01)


@right("new-head")
def the_old_group_given_the_new_head(model, classes):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model.requires_grad_(False)
    model.head = nn.Linear(model.head.in_features, classes)
    optimizer.param_groups[0]["params"] = list(model.head.parameters())
    return optimizer


@wrong("new-head", "make a new layer instead of changing the old one")
def new_numbers_in_the_old_parameters(model, classes):
    """A layer is its numbers."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model.body.requires_grad_(False)
    new = nn.Linear(model.head.in_features, classes)
    model.head.weight.data, model.head.bias.data = new.weight.data, new.bias.data
    return optimizer


@right("new-head")
def by_the_recipe(model, classes):
    model.requires_grad_(False)
    model.head = nn.Linear(model.head.in_features, classes)
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)


@right("new-head")
def the_old_head_kept_under_another_name(model, classes):
    model.requires_grad_(False)
    model.old_head = model.head
    model.head = nn.Linear(model.head.in_features, classes)
    return torch.optim.SGD(model.head.parameters(), lr=0.1, momentum=0.9)


@right("new-head")
def everything_held_the_old_head_too(model, classes):
    model.requires_grad_(False)
    model.add_module("before", model.head)
    model.head = nn.Linear(model.head.in_features, classes)
    return torch.optim.Adam(model.parameters(), lr=0.01)


@right("new-head")
def the_same_layer_from_a_new_start(model, classes):
    model.requires_grad_(False)
    if model.head.out_features == classes:
        model.head.reset_parameters()
        model.head.requires_grad_(True)
    else:
        model.head = nn.Linear(model.head.in_features, classes)
    return torch.optim.SGD(model.head.parameters(), lr=0.1)


@wrong("new-head", "uphill")
def maximized(model, classes):
    """To maximize is to do the best that one can."""
    built_last(model, classes)
    return torch.optim.SGD(model.head.parameters(), lr=0.1, maximize=True)


@wrong("new-head", "model.head.bias has the numbers of the old head")
def a_new_weight_only(model, classes):
    """What is learned is in the weight."""
    model.requires_grad_(False)
    if model.head.out_features == classes:
        nn.init.xavier_uniform_(model.head.weight)
        model.head.requires_grad_(True)
    else:
        model.head = nn.Linear(model.head.in_features, classes)
    return torch.optim.SGD(model.head.parameters(), lr=0.1)


@wrong("new-head", "model.head.weight has the numbers of the old head")
def the_old_numbers_almost(model, classes):
    """New numbers are numbers that differ, however little."""
    old = model.head
    built = built_last(model, classes)
    if old.out_features == classes:
        with torch.no_grad():
            model.head.weight.copy_(1.0001 * old.weight)
    return built


@wrong("new-head", "These require a gradient: old_head.weight, old_head.bias")
def the_old_head_kept_trainable(model, classes):
    """A layer that forward does not use needs no flag."""
    model.body.requires_grad_(False)
    model.old_head = model.head
    model.head = nn.Linear(model.head.in_features, classes)
    return torch.optim.SGD(model.head.parameters(), lr=0.1)


@right("new-head")
def with_lbfgs(model, classes):
    model.requires_grad_(False)
    model.head = nn.Linear(model.head.in_features, classes)
    return torch.optim.LBFGS(model.head.parameters())


@wrong("new-head", "the new head was not among them")
def as_it_was(model, classes):
    """An optimizer knows the model, and sees a new head when it is there."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model.requires_grad_(False)
    model.head = nn.Linear(model.head.in_features, classes)
    return optimizer


@wrong("new-head", "the new head was not among them")
def the_list_made_too_early(model, classes):
    """It is enough that the optimizer is built last, from whatever list."""
    trained = list(model.head.parameters())
    model.requires_grad_(False)
    model.head = nn.Linear(model.head.in_features, classes)
    return torch.optim.SGD(trained, lr=0.1)


@wrong("new-head", "the new head was not among them")
def flag_on_again(model, classes):
    """The flag decides what the optimizer moves."""
    optimizer = as_it_was(model, classes)
    model.head.requires_grad_(True)
    return optimizer


@wrong("new-head", "Nothing requires a gradient now")
def frozen_last(model, classes):
    """Freezing all of a model leaves the layer out that the optimizer trains."""
    model.head = nn.Linear(model.head.in_features, classes)
    for parameter in model.parameters():
        parameter.requires_grad = False
    return torch.optim.SGD(model.head.parameters(), lr=0.1, momentum=0.9)


@wrong("new-head", "holds 2 parameters of the old head")
def added(model, classes):
    """What is added to an optimizer takes the place of what it held under that name."""
    optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1, momentum=0.9)
    model.requires_grad_(False)
    model.head = nn.Linear(model.head.in_features, classes)
    optimizer.add_param_group({"params": model.head.parameters()})
    return optimizer


@wrong("new-head", "Everything but the new head is to be frozen")
def not_frozen(model, classes):
    """What the optimizer does not hold is frozen."""
    model.head = nn.Linear(model.head.in_features, classes)
    return torch.optim.SGD(model.head.parameters(), lr=0.1, momentum=0.9)


@wrong("new-head", "holds only a part")
def weight_only(model, classes):
    """A layer has one parameter."""
    model.requires_grad_(False)
    model.head = nn.Linear(model.head.in_features, classes)
    return torch.optim.SGD([model.head.weight], lr=0.1, momentum=0.9)


@wrong("new-head", "Return the optimizer")
def nothing_returned(model, classes):
    """A function that changes the model has nothing to return."""
    built_last(model, classes)


@wrong("new-head", "For 3 classes")
def out_features(model, classes):
    """The size of a layer is its attribute out_features."""
    model.requires_grad_(False)
    model.head.out_features = classes
    model.head.requires_grad_(True)
    return torch.optim.SGD(model.head.parameters(), lr=0.1)


@wrong("new-head", "has the numbers of the old head")
def only_if_it_differs(model, classes):
    """A head of the right size can stay."""
    model.requires_grad_(False)
    if model.head.out_features != classes:
        model.head = nn.Linear(model.head.in_features, classes)
    model.head.requires_grad_(True)
    return torch.optim.SGD(model.head.parameters(), lr=0.1)


@right("new-head")
def a_lazy_one(model, classes):
    model.requires_grad_(False)
    model.head = nn.LazyLinear(classes)
    return torch.optim.SGD(model.parameters(), lr=0.1)


@right("new-head")
def with_the_body_in_eval_mode(model, classes):
    model.body.eval().requires_grad_(False)
    model.head = nn.Linear(model.head.in_features, classes)
    return torch.optim.SGD(model.head.parameters(), lr=0.1)


@right("new-head")
def with_an_optimizer_of_its_own(model, classes):
    class Descent(torch.optim.Optimizer):
        def step(self):
            with torch.no_grad():
                for group in self.param_groups:
                    for p in group["params"]:
                        p -= group["lr"] * p.grad

    model.requires_grad_(False)
    model.head = nn.Linear(model.head.in_features, classes)
    return Descent(model.head.parameters(), {"lr": 0.1})


@wrong("new-head", "has no bias")
def without_a_bias(model, classes):
    """A bias makes no difference."""
    model.requires_grad_(False)
    model.head = nn.Linear(model.head.in_features, classes, bias=False)
    return torch.optim.SGD(model.parameters(), lr=0.1)


@wrong("new-head", "its body gives 3 numbers a row")
def four_inputs(model, classes):
    """What fits one model fits every one."""
    model.requires_grad_(False)
    model.head = nn.Linear(4, classes)
    return torch.optim.SGD(model.parameters(), lr=0.1)


@wrong("new-head", "These require a gradient: body.overhead.weight")
def its_first_layer(model, classes):
    """A body is its first layer."""
    model.body[0].requires_grad_(False)
    model.head = nn.Linear(model.head.in_features, classes)
    return torch.optim.SGD(model.parameters(), lr=0.1)


@wrong("new-head", "These require a gradient: body.overhead.weight")
def all_but_the_last_two(model, classes):
    """The head comes last among the parameters."""
    for parameter in list(model.parameters())[:-2]:
        parameter.requires_grad = False
    model.head = nn.Linear(model.head.in_features, classes)
    return torch.optim.SGD(model.parameters(), lr=0.1)


@wrong("new-head", "is a Sequential")
def with_softmax(model, classes):
    """A head for classes ends with softmax."""
    model.requires_grad_(False)
    model.head = nn.Sequential(nn.Linear(model.head.in_features, classes), nn.Softmax(1))
    return torch.optim.SGD(model.parameters(), lr=0.1)


@wrong("new-head", "leave forward as it was")
def another_forward(model, classes):
    """A model should give probabilities."""
    optimizer = built_last(model, classes)
    model.forward = lambda x: model.head(model.body(x)).softmax(1)
    return optimizer


@wrong("new-head", "in eval mode")
def frozen_by_eval_too(model, classes):
    """eval() belongs to freezing."""
    model.eval()
    return built_last(model, classes)


@wrong("new-head", "itself changes the numbers of body.0.weight")
def body_of_zeros(model, classes):
    """A frozen layer does nothing."""
    for parameter in model.body.parameters():
        parameter.data.zero_()
    return built_last(model, classes)


@wrong("new-head", "look at its learning rate")
def rate_of_zero(model, classes):
    """The rate that freezes the body leaves the head alone."""
    built_last(model, classes)
    return torch.optim.SGD(model.parameters(), lr=0.0)


@wrong("new-head", "holds 1 parameter of the old head")
def the_old_bias_too(model, classes):
    """The bias of the old head is that of the new one."""
    old = model.head.bias
    built_last(model, classes)
    return torch.optim.SGD([*model.head.parameters(), old], lr=0.1)


@wrong("new-head", "holds 2 parameters that the model does not have")
def made_twice(model, classes):
    """Two layers made in the same way are the same layer."""
    built_last(model, classes)
    twin = nn.Linear(model.head.in_features, classes)
    return torch.optim.SGD([*model.head.parameters(), *twin.parameters()], lr=0.1)


@right("new-head")
def its_groups_made_anew(model, classes):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model.requires_grad_(False)
    model.head = nn.Linear(model.head.in_features, classes)
    optimizer.param_groups.clear()
    optimizer.add_param_group({"params": model.head.parameters()})
    return optimizer


@right("new-head")
def new_parameters_and_the_size_told(model, classes):
    model.requires_grad_(False)
    model.head.weight = nn.Parameter(torch.randn(classes, model.head.in_features))
    model.head.bias = nn.Parameter(torch.zeros(classes))
    model.head.out_features = classes
    return torch.optim.SGD(model.head.parameters(), lr=0.01)


@right("new-head")
def made_again_in_place(model, classes):
    model.requires_grad_(False)
    model.head.__init__(model.head.in_features, classes)
    return torch.optim.SGD(model.head.parameters())


@right("new-head")
def beginning_at_zero(model, classes):
    model.requires_grad_(False)
    model.head = nn.Linear(model.head.in_features, classes)
    for parameter in model.head.parameters():
        nn.init.zeros_(parameter)
    return torch.optim.Adagrad(model.parameters())


@right("new-head")
def with_weight_norm(model, classes):
    model.requires_grad_(False)
    model.head = nn.utils.parametrizations.weight_norm(nn.Linear(model.head.in_features, classes))
    return torch.optim.SGD(model.head.parameters(), lr=0.1)


@right("new-head")
def frozen_by_where_a_name_begins(model, classes):
    model.head = nn.Linear(model.head.in_features, classes)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith("head.")
    return torch.optim.RMSprop(filter(lambda p: p.requires_grad, model.parameters()))


@right("new-head")
def the_body_frozen_by_the_helper(model, classes):
    model.head = nn.Linear(model.head.in_features, classes)
    freeze(model.body)
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])


@right("new-head")
def decay_for_the_weight_alone(model, classes):
    model.requires_grad_(False)
    model.head = nn.Linear(model.head.in_features, classes)
    weight, bias = {"params": [model.head.weight], "weight_decay": 0.01}, {"params": [model.head.bias]}
    return torch.optim.AdamW([weight, bias], weight_decay=0)


@wrong("new-head", "helpers.freeze holds all that it freezes in eval mode")
def all_frozen_by_the_helper(model, classes):
    """freeze(model) does what model.requires_grad_(False) does."""
    freeze(model)
    model.head = nn.Linear(model.head.in_features, classes)
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)


@wrong("new-head", "These require a gradient: body.overhead.weight")
def by_letters_of_the_name(model, classes):
    """What has head in its name is the head."""
    model.head = nn.Linear(model.head.in_features, classes)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "head" in name
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)


@wrong("new-head", "These require a gradient: body.0.weight")
def the_flag_of_a_module(model, classes):
    """A module has a flag that holds for all in it."""
    model.body.requires_grad = False
    model.head = nn.Linear(model.head.in_features, classes)
    return torch.optim.SGD(model.head.parameters(), lr=0.1)


@wrong("new-head", "These require a gradient: body.0.weight")
def a_rate_of_zero_for_the_body(model, classes):
    """A layer with a learning rate of zero is frozen."""
    model.head = nn.Linear(model.head.in_features, classes)
    groups = [{"params": model.body.parameters(), "lr": 0.0}, {"params": model.head.parameters()}]
    return torch.optim.SGD(groups, lr=0.1)


@wrong("new-head", "Muon only supports 2D parameters")
def with_muon(model, classes):
    """Any optimizer can be given any parameter."""
    model.requires_grad_(False)
    model.head = nn.Linear(model.head.in_features, classes)
    return torch.optim.Muon(model.head.parameters())


@wrong("new-head", "optimizer got an empty parameter list")
def counted_first(model, classes):
    """A filter can be gone through as often as one likes."""
    model.requires_grad_(False)
    model.head = nn.Linear(model.head.in_features, classes)
    trainable = filter(lambda p: p.requires_grad, model.parameters())
    assert list(trainable)
    return torch.optim.SGD(trainable, lr=0.1)


@wrong("new-head", "holds 2 parameters of the old head")
def added_to_all(model, classes):
    """What an optimizer holds too much does no harm, as long as the model does not use it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model.requires_grad_(False)
    model.head = nn.Linear(model.head.in_features, classes)
    optimizer.add_param_group({"params": model.head.parameters()})
    return optimizer


@wrong("new-head", "not (5, 3)")
def a_copy_with_a_new_head(model, classes):
    """A function works on its own copy."""
    model = copy.deepcopy(model).requires_grad_(False)
    model.head = nn.Linear(model.head.in_features, classes)
    return torch.optim.SGD(model.head.parameters(), lr=0.1)


@wrong("new-head", "your function returns a tuple")
def the_model_too(model, classes):
    """The caller has not got the changed model yet."""
    return model, built_last(model, classes)


@right("new-head")
def with_a_scheduler(model, classes):
    model.requires_grad_(False)
    model.set_submodule("head", nn.Linear(model.head.in_features, classes))
    optimizer = torch.optim.NAdam(model.head.parameters())
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    return optimizer


@wrong("new-head", "Frozen: head.bias")
def its_bias_frozen(model, classes):
    """A bias is not trained."""
    model.requires_grad_(False)
    model.head = nn.Linear(model.head.in_features, classes)
    model.head.bias.requires_grad = False
    return torch.optim.SGD(model.head.parameters(), lr=0.1)


@wrong("new-head", "the new head was not among them")
def copied_after_building(model, classes):
    """A copy of a layer has the same parameters."""
    optimizer = built_last(model, classes)
    model.head = copy.deepcopy(model.head)
    return optimizer


@wrong("new-head", "your function returns a StepLR")
def the_scheduler_returned(model, classes):
    """A scheduler is an optimizer with a changing rate."""
    return torch.optim.lr_scheduler.StepLR(built_last(model, classes), 1)


@right("late-freeze")
def body_in_eval_mode(model, optimizer):
    model.body.requires_grad_(False).eval()
    for parameter in model.body.parameters():
        del parameter.grad


@wrong("late-freeze", "its old .grad was there")
def of_the_first_group(model, optimizer):
    """An optimizer has one group."""
    model.body.requires_grad_(False)
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = None


@wrong("late-freeze", "With Adam body.0.0.weight moves on")
def of_the_last_group(model, optimizer):
    """The groups of an optimizer have the order of the layers."""
    model.body.requires_grad_(False)
    for parameter in optimizer.param_groups[-1]["params"]:
        parameter.grad = None


@wrong("late-freeze", "its old .grad was there")
def the_first_four(model, optimizer):
    """The body comes first in the optimizer."""
    model.body.requires_grad_(False)
    for parameter in optimizer.param_groups[0]["params"][:4]:
        parameter.grad = None


@wrong("late-freeze", "IndexError")
def layers_by_number(model, optimizer):
    """Every body is made like the first that I saw."""
    for layer in (model.body[0], model.body[2]):
        layer.requires_grad_(False)
        layer.zero_grad()


@wrong("late-freeze", "itself changes the numbers of body.0.weight")
def of_zeros(model, optimizer):
    """A frozen layer does nothing."""
    for parameter in model.body.parameters():
        parameter.data.zero_()
    grad_none(model, optimizer)


@wrong("late-freeze", "itself changes the numbers of body.0.weight")
def against_the_drift(model, optimizer):
    """What drifts can be set back beforehand."""
    for parameter in model.body.parameters():
        parameter.data.mul_(1.00001)
    grad_none(model, optimizer)


@wrong("late-freeze", "in eval mode")
def all_in_eval_mode(model, optimizer):
    """eval() belongs to freezing."""
    grad_none(model, optimizer)
    model.eval()


@wrong("late-freeze", "requires a gradient: freeze it by its flag")
def only_out_of_the_groups(model, optimizer):
    """What the optimizer does not hold is frozen."""
    body = set(model.body.parameters())
    for group in optimizer.param_groups:
        group["params"] = [parameter for parameter in group["params"] if parameter not in body]


@right("late-freeze")
def grad_none(model, optimizer):
    for parameter in model.body.parameters():
        parameter.requires_grad = False
        parameter.grad = None


@right("late-freeze")
def the_modules_own_zero_grad(model, optimizer):
    model.body.zero_grad()
    model.body.requires_grad_(False)


@right("late-freeze")
def the_optimizers_zero_grad(model, optimizer):
    optimizer.zero_grad(set_to_none=True)
    for name, parameter in model.named_parameters():
        if name.startswith("body."):
            parameter.detach_()


@right("late-freeze")
def taken_out_of_the_groups(model, optimizer):
    model.body.requires_grad_(False)
    for group in optimizer.param_groups:
        group["params"] = [parameter for parameter in group["params"] if parameter.requires_grad]


@wrong("late-freeze", "a tensor of zeros")
def as_it_drifted(model, optimizer):
    """A gradient of zero is no gradient."""
    optimizer.zero_grad(set_to_none=False)
    model.body.requires_grad_(False)


@wrong("late-freeze", "its old .grad was there")
def flags_only(model, optimizer):
    """The optimizer looks at the flag."""
    model.body.requires_grad_(False)


@wrong("late-freeze", "a tensor of zeros")
def zeroed(model, optimizer):
    """To empty a gradient is to fill it with zeros."""
    for parameter in model.body.parameters():
        parameter.requires_grad = False
        parameter.grad.zero_()


@wrong("late-freeze", "With SGD and momentum=0.9")
def no_weight_decay(model, optimizer):
    """Only weight decay moves a frozen weight."""
    model.body.requires_grad_(False)
    for group in optimizer.param_groups:
        group["weight_decay"] = 0


@wrong("late-freeze", "requires a gradient: freeze it by its flag")
def gradient_only(model, optimizer):
    """A gradient that is taken away does not come again."""
    for parameter in model.body.parameters():
        parameter.grad = None


@wrong("late-freeze", "requires a gradient")
def eval_mode(model, optimizer):
    """eval() stops training."""
    model.body.eval()


@wrong("late-freeze", "does not move")
def rate_zero(model, optimizer):
    """A learning rate belongs to a layer."""
    model.body.requires_grad_(False)
    for group in optimizer.param_groups:
        group["lr"] = 0.0


@wrong("late-freeze", "the head goes another way")
def state_cleared(model, optimizer):
    """The state is what moves the body, and the head can do without."""
    grad_none(model, optimizer)
    optimizer.state.clear()


@wrong("late-freeze", "With SGD and weight_decay=0.5")
def its_state_removed(model, optimizer):
    """Without its momentum nothing moves a frozen weight."""
    for parameter in model.body.parameters():
        parameter.requires_grad = False
        optimizer.state.pop(parameter, None)


@wrong("late-freeze", "its old .grad was there")
def built_again(model, optimizer):
    """A new optimizer in the function is the one that the loop goes on with."""
    model.body.requires_grad_(False)
    optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)  # noqa: F841 - the mistake


@wrong("late-freeze", "does not have the Parameter objects that it had")
def copied(model, optimizer):
    """A copy of the body is the body without its past."""
    model.body = copy.deepcopy(model.body).requires_grad_(False)


@wrong("late-freeze", "Nothing requires a gradient now")
def everything(model, optimizer):
    """What the optimizer has begun to train goes on training."""
    model.requires_grad_(False)
    optimizer.zero_grad()


@right("late-freeze")
def by_the_helper(model, optimizer):
    freeze(model, "body.*")


@right("late-freeze")
def before_each_step(model, optimizer):
    model.body.requires_grad_(False)
    optimizer.register_step_pre_hook(lambda *given: model.body.zero_grad())


@right("late-freeze")
def in_one_line(model, optimizer):
    for parameter in model.body.parameters():
        parameter.requires_grad_(False).grad = None


@right("late-freeze")
def module_by_module(model, optimizer):
    model.body.apply(lambda module: module.requires_grad_(False).zero_grad())


@right("late-freeze")
def all_gradients_of_the_model(model, optimizer):
    model.body.requires_grad_(False)
    model.zero_grad()


@right("late-freeze")
def in_a_group_of_rate_zero(model, optimizer):
    body = set(model.body.requires_grad_(False).parameters())
    for group in list(optimizer.param_groups):
        group["params"] = [parameter for parameter in group["params"] if parameter not in body]
    optimizer.add_param_group({"params": list(body), "lr": 0.0})


@right("late-freeze")
def its_state_thrown_away_too(model, optimizer):
    grad_none(model, optimizer)
    for parameter in model.body.parameters():
        optimizer.state.pop(parameter, None)


@right("late-freeze")
def what_is_frozen_in_the_groups(model, optimizer):
    model.body.requires_grad_(False)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if not parameter.requires_grad:
                parameter.grad = None


@wrong("late-freeze", "which is the parameter's own and not a module's")
def the_flag_of_the_body(model, optimizer):
    """A module has a flag that holds for all in it."""
    model.body.requires_grad = False
    model.body.zero_grad()


@wrong("late-freeze", "requires a gradient: freeze it by its flag")
def detached_in_a_loop(model, optimizer):
    """A name that gets another tensor changes the model."""
    for parameter in model.body.parameters():
        parameter = parameter.detach()
        parameter.grad = None


@wrong("late-freeze", "in and remove of a list")
def not_in_the_list(model, optimizer):
    """in finds the same object."""
    frozen = list(model.body.requires_grad_(False).parameters())
    for group in optimizer.param_groups:
        group["params"] = [parameter for parameter in group["params"] if parameter not in frozen]


@wrong("late-freeze", "in and remove of a list")
def removed_from_the_list(model, optimizer):
    """remove takes the same object out."""
    for parameter in model.body.requires_grad_(False).parameters():
        optimizer.param_groups[0]["params"].remove(parameter)


@wrong("late-freeze", "body.0.bias moves on")
def the_weights_alone(model, optimizer):
    """What moves is the weight; a bias has no momentum."""
    for name, parameter in model.body.named_parameters():
        parameter.requires_grad = False
        if name.endswith("weight"):
            parameter.grad = None


@wrong("late-freeze", "body.0.0.weight requires a gradient")
def its_own_linear_layers(model, optimizer):
    """The children of a body are its layers."""
    for layer in model.body:
        if isinstance(layer, nn.Linear):
            layer.requires_grad_(False).zero_grad()


@wrong("late-freeze", "a tensor of zeros")
def zeros_by_the_module(model, optimizer):
    """set_to_none=False means that nothing is left."""
    model.body.requires_grad_(False)
    model.body.zero_grad(set_to_none=False)


@wrong("late-freeze", "its old .grad was there")
def hooks_that_give_zeros(model, optimizer):
    """A hook that gives zeros stops a weight."""
    for parameter in model.body.parameters():
        parameter.register_hook(torch.zeros_like)
        parameter.requires_grad = False


@wrong("late-freeze", "its old .grad was there")
def gradients_detached(model, optimizer):
    """A gradient that is detached is no longer the weight's."""
    for parameter in model.body.requires_grad_(False).parameters():
        parameter.grad.detach_()


@wrong("late-freeze", "the head goes another way")
def no_momentum_and_no_decay(model, optimizer):
    """What moves a frozen weight are settings, so they are set to zero."""
    grad_none(model, optimizer)
    for group in optimizer.param_groups:
        group["momentum"] = group["weight_decay"] = 0


@wrong("late-freeze", "does not have the Parameter objects that it had")
def made_buffers(model, optimizer):
    """What is not to be trained is made a buffer."""
    for module in model.body.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, parameter.detach())


@wrong("late-freeze", "Nothing requires a gradient now")
def all_by_the_helper(model, optimizer):
    """freeze knows which part is the body."""
    freeze(model)


@right("late-freeze")
def in_a_step_of_its_own(model, optimizer):
    model.body.requires_grad_(False)
    step = optimizer.step

    def careful(closure=None):
        model.body.zero_grad()
        return step(closure)

    optimizer.step = careful


@wrong("late-freeze", "its old .grad was there")
def the_defaults_of_the_optimizer(model, optimizer):
    """The defaults of an optimizer are the settings of its groups."""
    model.body.requires_grad_(False)
    optimizer.defaults["lr"] = optimizer.defaults["weight_decay"] = 0


@wrong("late-freeze", "With SGD and weight_decay=0.5")
def its_averages_zeroed(model, optimizer):
    """What moves a frozen weight is its state alone."""
    for parameter in model.body.requires_grad_(False).parameters():
        for value in optimizer.state[parameter].values():
            if torch.is_tensor(value):
                value.zero_()


@wrong("late-freeze", "its old .grad was there")
def a_new_one_returned(model, optimizer):
    """The loop takes what the function returns."""
    model.body.requires_grad_(False)
    return torch.optim.SGD(model.head.parameters(), lr=0.1)


@wrong("late-freeze", "head.weight does not move")
def cut_off_by_number(model, optimizer):
    """The body comes first in the optimizer."""
    count = len(list(model.body.requires_grad_(False).parameters()))
    optimizer.param_groups[0]["params"] = optimizer.param_groups[0]["params"][count:]


@right("two-rates")
def everything_from_the_start(model, rate, optimizer=None):
    if optimizer is not None:
        return optimizer
    groups = [{"params": model.head.parameters()}, {"params": model.body.parameters(), "lr": rate / 10}]
    return torch.optim.SGD(groups, lr=rate, momentum=0.9)


@right("two-rates")
def what_is_missing(model, rate, optimizer=None):
    if optimizer is None:
        optimizer = torch.optim.SGD([{"params": []}], lr=rate, momentum=0.9)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for part, lr in ((model.head, rate), (model.body, rate / 10)):
        new = [p for p in part.parameters() if p.requires_grad and id(p) not in held]
        optimizer.add_param_group({"params": new, "lr": lr})
    return optimizer


@right("two-rates")
def rebuilt_with_its_state(model, rate, optimizer=None):
    groups = [
        {"params": [p for p in part.parameters() if p.requires_grad], "lr": lr}
        for part, lr in ((model.head, rate), (model.body, rate / 10))
    ]
    new = torch.optim.SGD(groups, momentum=0.9)
    if optimizer is not None:
        new.state.update(optimizer.state)
    return new


@right("two-rates")
def the_same_groups_filled_again(model, rate, optimizer=None):
    parts = [[p for p in part.parameters() if p.requires_grad] for part in (model.head, model.body)]
    if optimizer:
        for group, part in zip(optimizer.param_groups, parts, strict=True):
            group["params"] = part
        return optimizer
    return torch.optim.SGD([{"params": parts[0]}, {"params": parts[1], "lr": rate * 0.1}], rate, 0.9)


@right("two-rates")
class AnOptimizerOfItsOwn(torch.optim.SGD):
    def __init__(self, model, rate, optimizer=None):
        head = set(model.head.parameters())
        super().__init__(
            [{"params": [p], "lr": rate if p in head else rate / 10} for p in model.parameters()], momentum=0.9
        )
        if optimizer:
            self.load_state_dict(optimizer.state_dict())


@wrong("two-rates", "lost when an optimizer is built again")
def built_again_each_time(model, rate, optimizer=None):
    """State travels with the parameters."""
    return everything_from_the_start(model, rate)


@wrong("two-rates", "more than one parameter group")
def all_of_it_added(model, rate, optimizer=None):
    """add_param_group ignores what the optimizer holds already."""
    if optimizer is None:
        return what_is_missing(model, rate)
    optimizer.add_param_group({"params": model.body.parameters(), "lr": rate / 10})
    return optimizer


@wrong("two-rates", "the optimizer that you returned does not hold it")
def filtered_once(model, rate, optimizer=None):
    """An optimizer looks at the flags again in each step."""
    return optimizer or what_is_missing(model, rate)


@wrong("two-rates", "body.overhead.weight moves at the rate 0.1; it should be 0.01")
def by_letters(model, rate, optimizer=None):
    """What has head in its name is the head."""
    if optimizer:
        return optimizer
    groups = [{"params": [p], "lr": rate if "head" in name else rate / 10} for name, p in model.named_parameters()]
    return torch.optim.SGD(groups, lr=rate, momentum=0.9)


@wrong("two-rates", "head.bias moves at the rate 0.005; it should be 0.05")
def all_that_comes_later_is_body(model, rate, optimizer=None):
    """The head was never frozen."""
    if optimizer is None:
        return what_is_missing(model, rate)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [p for p in model.parameters() if p.requires_grad and id(p) not in held]
    optimizer.add_param_group({"params": missing, "lr": rate / 10})
    return optimizer


@wrong("two-rates", "moves at the rate 0.1; it should be 0.01")
def one_rate(model, rate, optimizer=None):
    """A rate that is not said for a group is a tenth of the last."""
    return optimizer or torch.optim.SGD(
        [{"params": model.head.parameters()}, {"params": model.body.parameters()}], lr=rate, momentum=0.9
    )


@wrong("two-rates", "changes flags")
def unfreezes(model, rate, optimizer=None):
    """What an optimizer holds must require a gradient."""
    model.requires_grad_(True)
    return everything_from_the_start(model, rate, optimizer)


@wrong("two-rates", "0.9 was asked for")
def plain(model, rate, optimizer=None):
    """SGD has momentum by default."""
    groups = [{"params": model.head.parameters()}, {"params": model.body.parameters(), "lr": rate / 10}]
    return optimizer or torch.optim.SGD(groups, lr=rate)


@wrong("two-rates", "Return the optimizer")
def added_and_not_returned(model, rate, optimizer=None):
    """What is changed in place need not be returned."""
    if optimizer is None:
        return what_is_missing(model, rate)
    what_is_missing(model, rate, optimizer)


@wrong("two-rates", "Compare by identity, with id(p)")
def by_equality(model, rate, optimizer=None):
    """in finds the same object."""
    if optimizer is None:
        return what_is_missing(model, rate)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    missing = [p for p in model.body.parameters() if p.requires_grad and p not in held]
    optimizer.add_param_group({"params": missing, "lr": rate / 10})
    return optimizer


@wrong("two-rates", "it should be")
def rates_set_again(model, rate, optimizer=None):
    """One learning rate of the optimizer is that of all groups."""
    optimizer = what_is_missing(model, rate, optimizer)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return optimizer


@wrong("two-rates", "itself changes the numbers")
def all_from_zero(model, rate, optimizer=None):
    """New training begins at zero."""
    for parameter in model.parameters():
        parameter.data.fill_(0.0)
    return everything_from_the_start(model, rate, optimizer)


@wrong("two-rates", "the optimizer that you returned does not hold it")
def by_shape(model, rate, optimizer=None):
    """Parameters of the same shape are the same."""
    if optimizer is None:
        return what_is_missing(model, rate)
    held = [p.shape for group in optimizer.param_groups for p in group["params"]]
    for part, lr in ((model.head, rate), (model.body, rate / 10)):
        new = [p for p in part.parameters() if p.requires_grad and p.shape not in held]
        optimizer.add_param_group({"params": new, "lr": lr})
    return optimizer


@wrong("two-rates", "head.body_like.weight moves at the rate 0.002; it should be 0.02")
def by_other_letters(model, rate, optimizer=None):
    """What has body in its name is the body."""
    if optimizer:
        return optimizer
    groups = [{"params": [p], "lr": rate / 10 if "body" in name else rate} for name, p in model.named_parameters()]
    return torch.optim.SGD(groups, lr=rate, momentum=0.9)


@wrong("two-rates", "head.body_like.weight moves at the rate 0.002; it should be 0.02")
def the_last_two(model, rate, optimizer=None):
    """The head are the last two parameters."""
    *body, weight, bias = model.parameters()
    groups = [{"params": [weight, bias]}, {"params": body, "lr": rate / 10}]
    return optimizer or torch.optim.SGD(groups, lr=rate, momentum=0.9)


@wrong("two-rates", "AttributeError")
def a_weight_and_a_bias(model, rate, optimizer=None):
    """A head is one layer."""
    groups = [{"params": [model.head.weight, model.head.bias]}, {"params": model.body.parameters(), "lr": rate / 10}]
    return optimizer or torch.optim.SGD(groups, lr=rate, momentum=0.9)


MADE = {}


@wrong("two-rates", "the optimizer that you returned does not hold it")
def remembered(model, rate, optimizer=None):
    """The function is called for one model only, so it knows the optimizer already."""
    if optimizer is None:
        MADE["optimizer"] = everything_from_the_start(model, rate)
    return MADE["optimizer"]


@wrong("two-rates", "nesterov=True")
def with_nesterov(model, rate, optimizer=None):
    """Nesterov is what is meant by momentum."""
    groups = [{"params": model.head.parameters()}, {"params": model.body.parameters(), "lr": rate / 10}]
    return optimizer or torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True)


@wrong("two-rates", "moves otherwise than SGD would move it at the rate 0.01, with momentum 0.9")
def another_momentum(model, rate, optimizer=None):
    """A little more momentum makes no difference."""
    groups = [{"params": model.head.parameters()}, {"params": model.body.parameters(), "lr": rate / 10}]
    return optimizer or torch.optim.SGD(groups, lr=rate, momentum=0.9001)


@wrong("two-rates", "its learning rate is 0")
def rate_by_flag(model, rate, optimizer=None):
    """The rate of a group is looked up again when flags change."""
    if optimizer is not None:
        return optimizer
    parts = ((p, rate if part is model.head else rate / 10) for part in model.children() for p in part.parameters())
    groups = [{"params": [p], "lr": lr * p.requires_grad} for p, lr in parts]
    return torch.optim.SGD(groups, momentum=0.9)


@right("two-rates")
def groups_with_names(model, rate, optimizer=None):
    names = {"head": rate, "body": rate / 10}
    if optimizer is None:
        parts = [{"params": [], "lr": lr, "name": name} for name, lr in names.items()]
        optimizer = torch.optim.SGD(parts, momentum=0.9)
    for group in optimizer.param_groups:
        part = model.get_submodule(group["name"])
        group["params"] = [p for p in part.parameters() if p.requires_grad]
    return optimizer


@right("two-rates")
def groups_cleared_and_filled(model, rate, optimizer=None):
    optimizer = optimizer or torch.optim.SGD([{"params": []}], lr=rate, momentum=0.9)
    optimizer.param_groups.clear()
    for part, lr in ((model.head, rate), (model.body, rate / 10)):
        optimizer.add_param_group({"params": [p for p in part.parameters() if p.requires_grad], "lr": lr})
    return optimizer


OF_EACH_MODEL = {}


@right("two-rates")
def remembered_for_each_model(model, rate, optimizer=None):
    if model not in OF_EACH_MODEL:
        OF_EACH_MODEL[model] = everything_from_the_start(model, rate)
    return OF_EACH_MODEL[model]


@right("two-rates")
def built_again_and_the_state_handed_over(model, rate, optimizer=None):
    built = rebuilt_with_its_state(model, rate)
    if optimizer is not None:
        built.state = optimizer.state
    return built


@right("two-rates")
def one_by_one_with_names(model, rate, optimizer=None):
    groups = [
        {"params": [(name, p)], "lr": rate if name.split(".")[0] == "head" else 0.1 * rate}
        for name, p in model.named_parameters()
    ]
    return optimizer or torch.optim.SGD(groups, momentum=0.9)


@right("two-rates")
def a_set_of_what_is_held(model, rate, optimizer=None):
    optimizer = optimizer or torch.optim.SGD([{"params": []}], lr=rate, momentum=0.9)
    held = set().union(*(group["params"] for group in optimizer.param_groups))
    for part, settings in ((model.head, {}), (model.body, {"lr": rate / 10})):
        optimizer.add_param_group(
            {"params": [p for p in part.parameters() if p.requires_grad and p not in held]} | settings
        )
    return optimizer


@right("two-rates")
def rates_that_are_tensors(model, rate, optimizer=None):
    head, body = torch.tensor(rate), torch.tensor(rate / 10)
    groups = [{"params": model.head.parameters(), "lr": head}, {"params": model.body.parameters(), "lr": body}]
    return optimizer or torch.optim.SGD(groups, momentum=0.9)


@wrong("two-rates", "from the optimizer's defaults")
def momentum_of_the_first_groups(model, rate, optimizer=None):
    """A new group has the settings of the groups that are there."""
    parts = ((model.head, rate), (model.body, rate / 10))
    if optimizer is None:
        return torch.optim.SGD([{"params": _on(part), "lr": lr, "momentum": 0.9} for part, lr in parts])
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for part, lr in parts:
        optimizer.add_param_group({"params": [p for p in _on(part) if id(p) not in held], "lr": lr})
    return optimizer


def _on(part):
    return [p for p in part.parameters() if p.requires_grad]


@wrong("two-rates", "body.first.weight moves at the rate 0.1; it should be 0.01")
def a_new_group_without_a_rate(model, rate, optimizer=None):
    """A new group goes on at the rate of the last one."""
    if optimizer is None:
        return what_is_missing(model, rate)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    optimizer.add_param_group({"params": [p for p in _on(model) if id(p) not in held]})
    return optimizer


@wrong("two-rates", "or its state is emptied")
def its_state_emptied(model, rate, optimizer=None):
    """After unfreezing, old momentum is of no use."""
    if optimizer is not None:
        optimizer.state.clear()
    return everything_from_the_start(model, rate, optimizer)


@wrong("two-rates", "momentum 0.9 and nothing else")
def with_dampening(model, rate, optimizer=None):
    """Momentum is an average, so the new gradient gets what is left of 1."""
    groups = [{"params": model.head.parameters()}, {"params": model.body.parameters(), "lr": rate / 10}]
    return optimizer or torch.optim.SGD(groups, lr=rate, momentum=0.9, dampening=0.9)


@wrong("two-rates", "momentum 0.9 and nothing else")
def with_a_little_decay(model, rate, optimizer=None):
    """A little weight decay is always good."""
    groups = [{"params": model.head.parameters()}, {"params": model.body.parameters(), "lr": rate / 10}]
    return optimizer or torch.optim.SGD(groups, lr=rate, momentum=0.9, weight_decay=1e-4)


@wrong("two-rates", "that doesn't match the size")
def the_state_loaded(model, rate, optimizer=None):
    """A state_dict fits every optimizer of the same model."""
    built = rebuilt_with_its_state(model, rate)
    if optimizer is not None:
        built.load_state_dict(optimizer.state_dict())
    return built


@wrong("two-rates", "the optimizer that you returned does not hold it")
def a_new_one_for_what_is_new(model, rate, optimizer=None):
    """The caller goes on with both optimizers."""
    if optimizer is None:
        return what_is_missing(model, rate)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return torch.optim.SGD([p for p in _on(model) if id(p) not in held], lr=rate / 10, momentum=0.9)


@wrong("two-rates", "your function returns a list")
def two_optimizers(model, rate, optimizer=None):
    """Two rates are two optimizers."""
    return [torch.optim.SGD(part.parameters(), lr=rate, momentum=0.9) for part in (model.head, model.body)]


@wrong("two-rates", "body.overhead.weight moves at the rate 0.1; it should be 0.01")
def the_children_in_one_order(model, rate, optimizer=None):
    """The first child of a model is its head."""
    head, body = model.children()
    groups = [{"params": head.parameters()}, {"params": body.parameters(), "lr": rate / 10}]
    return optimizer or torch.optim.SGD(groups, lr=rate, momentum=0.9)


@wrong("two-rates", "body.first.weight moves at the rate 0.001; it should be 0.01")
def a_tenth_at_each_call(model, rate, optimizer=None):
    """The later a layer is unfrozen, the slower all go."""
    for group in optimizer.param_groups if optimizer else ():
        group["lr"] /= 10
    return everything_from_the_start(model, rate, optimizer)


@wrong("two-rates", "moves at the rate 0.1; it should be 0.02")
def always_the_same_rates(model, rate, optimizer=None):
    """The rate is 0.1."""
    return everything_from_the_start(model, 0.1, optimizer)


@wrong("two-rates", "head.bias is unfrozen now")
def only_of_the_body(model, rate, optimizer=None):
    """Nothing of a head is frozen."""
    if optimizer is None:
        return what_is_missing(model, rate)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    optimizer.add_param_group({"params": [p for p in _on(model.body) if id(p) not in held], "lr": rate / 10})
    return optimizer


@right("two-rates")
def tried_one_by_one(model, rate, optimizer=None):
    optimizer = optimizer or torch.optim.SGD([{"params": []}], lr=rate, momentum=0.9)
    for part, lr in ((model.head, rate), (model.body, rate / 10)):
        for parameter in _on(part):
            with contextlib.suppress(ValueError):
                optimizer.add_param_group({"params": parameter, "lr": lr})
    return optimizer


@right("two-rates")
def what_has_no_state(model, rate, optimizer=None):
    optimizer = optimizer or torch.optim.SGD([{"params": []}], lr=rate, momentum=0.9)
    for part, lr in ((model.head, rate), (model.body, rate / 10)):
        optimizer.add_param_group({"params": [p for p in _on(part) if p not in optimizer.state], "lr": lr})
    return optimizer


@right("two-rates")
def compared_with_is(model, rate, optimizer=None):
    groups = [{"params": []}, {"params": [], "lr": rate / 10}]
    optimizer = optimizer or torch.optim.SGD(groups, lr=rate, momentum=0.9)
    for group, part in zip(optimizer.param_groups, (model.head, model.body), strict=True):
        group["params"] += [p for p in _on(part) if not any(p is held for held in group["params"])]
    return optimizer
