"""Answers to the exercises of the lesson on unfreezing step by step."""

import copy
import math

import torch
from torch import nn
from torch.optim import lr_scheduler

from helpers import freeze, saved_tensors, unfreeze
from tests.tools.exercises import Answers

answers = Answers()
right, wrong = answers.right, answers.wrong

COSTS = {
    "only first: as much is saved as with everything": True,
    "only last: a layer before it saves something": False,
    "only second: first saves something": False,
    "twice the batch: twice as much is saved": True,
    "twice the batch: the gradients take twice as many bytes": False,
    "only last, Adam: the optimizer keeps nothing for first": True,
    "everything, SGD with momentum: the state is as large as the gradients": True,
    "later, Adam: second has state before its first step": False,
}
right("what-each-choice-costs")(COSTS)
right("what-each-choice-costs")(dict(reversed(COSTS.items())))
right("what-each-choice-costs")(dict(zip(COSTS, torch.tensor(list(COSTS.values())), strict=True)))
right("what-each-choice-costs")({row: int(holds) for row, holds in COSTS.items()})
for row, (told, belief) in {
    "only first: as much is saved as with everything": (
        "Each ReLU saves its output",
        "Memory goes with the number of parameters that are trained.",
    ),
    "only last: a layer before it saves something": (
        "the graph begins at last",
        "Every forward pass keeps all activations, until backward.",
    ),
    "only second: first saves something": (
        "nothing is recorded there",
        "A layer in front of a trained one saves its output.",
    ),
    "twice the batch: twice as much is saved": ("a row for each row of the batch", "Memory is a matter of the model."),
    "twice the batch: the gradients take twice as many bytes": (
        "has the shape of its parameter",
        "Everything grows with the batch.",
    ),
    "only last, Adam: the optimizer keeps nothing for first": (
        "it is passed by",
        "An optimizer makes state for all that it holds.",
    ),
    "everything, SGD with momentum: the state is as large as the gradients": (
        "one number for each number",
        "Momentum is a setting, and takes no memory.",
    ),
    "later, Adam: second has state before its first step": (
        "puts parameters into a list",
        "What is added to an optimizer has state at once.",
    ),
}.items():
    wrong("what-each-choice-costs", told)(COSTS | {row: not COSTS[row]}, belief)
wrong("what-each-choice-costs", "Each ReLU saves its output")(
    dict.fromkeys(COSTS, False), "Freezing saves memory, wherever the frozen layers are."
)
wrong("what-each-choice-costs", "None of these rows raises")(
    COSTS | {"only second: first saves something": "raises"}, "What saves nothing cannot be trained."
)


def total(model, inputs, count, saved=1, gradients=1, state=2):
    """The bill of the last ``count`` parts, with a weight for each of its parts."""
    twin = copy.deepcopy(model).requires_grad_(False)
    trained = twin[len(twin) - count :].requires_grad_(True)
    with saved_tensors(twin) as kept:
        twin(inputs)
    numbers = sum(parameter.nbytes for parameter in trained.parameters())
    return saved * kept.nbytes + (gradients + state) * numbers


@right("as-many-as-fit")
def counted_on_a_copy(model, inputs, limit):
    for count in range(len(model), -1, -1):
        twin = copy.deepcopy(model).requires_grad_(False)
        trained = twin[len(model) - count :].requires_grad_(True)
        with saved_tensors(twin) as kept:
            twin(inputs)
        numbers = sum(parameter.numel() for parameter in trained.parameters())
        if kept.nbytes + 12 * numbers <= limit:
            return count


@right("as-many-as-fit")
def measured_by_a_step(model, inputs, limit):
    for count in range(len(model), 0, -1):
        twin = copy.deepcopy(model).requires_grad_(False)
        twin.zero_grad()
        trainable = list(twin[len(model) - count :].requires_grad_(True).parameters())
        if not trainable:
            return count
        optimizer = torch.optim.AdamW(trainable)
        with saved_tensors(twin) as kept:
            output = twin(inputs)
        output.sum().backward()
        optimizer.step()
        state = [s["exp_avg"].nbytes + s["exp_avg_sq"].nbytes for s in optimizer.state.values()]
        if kept.nbytes + sum(p.grad.nbytes for p in trainable) + sum(state) <= limit:
            return count
    return 0


@right("as-many-as-fit")
def on_the_meta_device(model, inputs, limit):
    twin, words, best = copy.deepcopy(model).to("meta"), inputs.to("meta"), 0
    for count in range(1, len(twin) + 1):
        twin.requires_grad_(False)
        trained = twin[len(twin) - count :].requires_grad_(True)
        with saved_tensors(twin) as kept:
            twin(words)
        if kept.nbytes + 3 * sum(p.nbytes for p in trained.parameters()) <= limit:
            best = count
    return best


@right("as-many-as-fit")
def by_halves(model, inputs, limit):
    low, high = 0, len(model)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if total(model, inputs, middle) <= limit else (low, middle - 1)
    return torch.tensor(low)


def most(model, bill, limit):
    return max(count for count in range(len(model) + 1) if bill(count) <= limit)


@wrong("as-many-as-fit", "for what is saved in forward alone")
def activations_only(model, inputs, limit):
    """Memory is what forward keeps."""
    return most(model, lambda count: total(model, inputs, count, gradients=0, state=0), limit)


@wrong("as-many-as-fit", "for gradients and state alone")
def weights_only(model, inputs, limit):
    """Memory goes with the number of parameters that are trained."""
    return most(model, lambda count: total(model, inputs, count, saved=0), limit)


@wrong("as-many-as-fit", "without AdamW")
def no_state(model, inputs, limit):
    """An optimizer is a rule, and keeps nothing."""
    return most(model, lambda count: total(model, inputs, count, state=0), limit)


@wrong("as-many-as-fit", "There are three: its gradient")
def no_gradients(model, inputs, limit):
    """Gradients are used up at once."""
    return most(model, lambda count: total(model, inputs, count, gradients=0), limit)


@wrong("as-many-as-fit", "There are three: its gradient")
def state_of_momentum(model, inputs, limit):
    """Adam keeps an average of the gradient."""
    return most(model, lambda count: total(model, inputs, count, state=1), limit)


@wrong("as-many-as-fit", "when nothing is frozen")
def nothing_frozen(model, inputs, limit):
    """Forward keeps all activations, frozen layers or not."""
    twin = copy.deepcopy(model).requires_grad_(True)
    with saved_tensors(twin) as kept:
        twin(inputs)
    bills = [
        kept.nbytes + 3 * sum(p.nbytes for p in twin[len(twin) - count :].parameters())
        for count in range(len(twin) + 1)
    ]
    return max((count for count, bill in enumerate(bills) if bill <= limit), default=0)


@wrong("as-many-as-fit", "A float32 takes four")
def numbers_for_bytes(model, inputs, limit):
    """A number takes a byte."""
    return most(model, lambda count: total(model, inputs, count, gradients=1 / 4, state=2 / 4), limit)


@wrong("as-many-as-fit", "how many parts are frozen")
def where_they_begin(model, inputs, limit):
    """The first trained part says how many there are."""
    return len(model) - counted_on_a_copy(model, inputs, limit)


@wrong("as-many-as-fit", "one part too many")
def first_that_does_not_fit(model, inputs, limit):
    """The search ends at the answer."""
    return min(counted_on_a_copy(model, inputs, limit) + 1, len(model))


@wrong("as-many-as-fit", "one part too few")
def strictly_one_less(model, inputs, limit):
    """One part is to be left over."""
    return max(counted_on_a_copy(model, inputs, limit) - 1, 0)


@wrong("as-many-as-fit", "Yours is")
def all_of_it(model, inputs, limit):
    """A network with few weights always fits."""
    return len(model)


@wrong("as-many-as-fit", "Yours is")
def from_the_front(model, inputs, limit):
    """The first layers are the cheap ones."""
    return most(model, lambda count: 3 * sum(p.nbytes for p in model[:count].parameters()), limit)


@wrong("as-many-as-fit", "The flags of the model are not what they were")
def on_the_model_itself(model, inputs, limit):
    """Flags can be set for a moment."""
    count = counted_on_a_copy(model, inputs, limit)
    model.requires_grad_(False)
    model[len(model) - count :].requires_grad_(True)
    return count


@wrong("as-many-as-fit", "The numbers of the model are not what they were")
def one_forward_pass(model, inputs, limit):
    """A forward pass changes nothing."""
    with saved_tensors(model):
        model(inputs)
    return counted_on_a_copy(model, inputs, limit)


@wrong("as-many-as-fit", "The gradients of the model are not what they were")
def one_backward_pass(model, inputs, limit):
    """zero_grad() afterwards leaves everything as it was."""
    count = counted_on_a_copy(model, inputs, limit)
    model.zero_grad()
    return count


@wrong("as-many-as-fit", "Return the number of parts")
def the_parts_themselves(model, inputs, limit):
    """The parts are what was wanted."""
    return model[len(model) - counted_on_a_copy(model, inputs, limit) :]


@wrong("as-many-as-fit", "and the model has")
def the_bytes(model, inputs, limit):
    """The bill is what was wanted."""
    return total(model, inputs, len(model))


def norms_of(part):
    """Its norm layers."""
    return [layer for layer in part.modules() if isinstance(layer, nn.BatchNorm2d)]


def release(layer4):
    """All of it trains, and its norm layers stay in eval mode."""
    for layer in norms_of(layer4):
        layer.eval().train = lambda mode=True: None
    layer4.requires_grad_(True)


@right("unfreeze-a-stage")
def one_group_more(model, optimizer):
    release(model.layer4)
    head = optimizer.param_groups[0]
    settings = {name: value for name, value in head.items() if name not in ("params", "initial_lr")}
    optimizer.add_param_group(settings | {"params": model.layer4.parameters(), "lr": head["lr"] / 10})


@right("unfreeze-a-stage")
def eval_before_each_forward(model, optimizer):
    def to_eval(layer, inputs):
        layer.eval()

    unfreeze(model, "layer4.*")
    for layer in norms_of(model.layer4):
        layer.register_forward_pre_hook(to_eval)
    head = optimizer.param_groups[0]
    rate = head["lr"] / 10
    optimizer.add_param_group(head | {"params": model.layer4.parameters(), "lr": rate, "initial_lr": rate})


@right("unfreeze-a-stage")
def groups_written_by_hand(model, optimizer):
    def train(mode=True):
        type(model).train(model, mode)
        model.layer4.eval()
        return model

    model.train = train
    for name, parameter in model.named_parameters():
        if name.startswith("layer4."):
            parameter.requires_grad = True
            head = optimizer.param_groups[0]
            optimizer.param_groups.append({**head, "params": [parameter], "lr": head["lr"] / 10})


@right("unfreeze-a-stage")
def the_state_carried_over(model, optimizer):
    release(model.layer4)
    (head,) = optimizer.param_groups
    kept = dict(optimizer.state)
    groups = [head, head | {"params": list(model.layer4.parameters()), "lr": head["lr"] / 10}]
    optimizer.__init__(groups)
    optimizer.state.update(kept)


@right("unfreeze-a-stage")
def norms_of_their_own_class(model, optimizer):
    class Held(nn.BatchNorm2d):
        def train(self, mode=True):
            return super().train(False)

    model.layer4.requires_grad_(True)
    for layer in norms_of(model.layer4):
        layer.eval().__class__ = Held
    head = optimizer.param_groups[0]
    optimizer.add_param_group(head | {"params": model.layer4.parameters(), "lr": head["lr"] / 10})


@wrong("unfreeze-a-stage", "is without momentum, dampening, weight_decay")
def a_group_appended_by_hand(model, optimizer):
    """A group is a dictionary in a list, and takes the rest from the defaults."""
    release(model.layer4)
    rate = optimizer.param_groups[0]["lr"] / 10
    optimizer.param_groups.append({"params": list(model.layer4.parameters()), "lr": rate})


@wrong("unfreeze-a-stage", "layer4.0.bn1.running_mean moved")
def as_it_was(model, optimizer):
    """A name that is bound anew inside a function is another optimizer for the caller, too."""
    unfreeze(model, "layer4.*")
    rate = optimizer.defaults["lr"]
    trained = [{"params": model.fc.parameters()}, {"params": model.layer4.parameters(), "lr": rate / 10}]
    optimizer = torch.optim.SGD(trained, lr=rate, momentum=0.9)


@wrong("unfreeze-a-stage", "the loop goes on does not hold it")
def rebuilt(model, optimizer):
    """A name that is bound anew inside a function is another optimizer for the caller, too."""
    release(model.layer4)
    rate = optimizer.param_groups[0]["lr"]
    trained = [{"params": model.fc.parameters()}, {"params": model.layer4.parameters(), "lr": rate / 10}]
    optimizer = torch.optim.SGD(trained, lr=rate, momentum=0.9)


@wrong("unfreeze-a-stage", "the loop goes on does not hold it")
def flags_only(model, optimizer):
    """An optimizer moves whatever asks."""
    release(model.layer4)


@wrong("unfreeze-a-stage", "moves as if it had no momentum")
def initialized_again(model, optimizer):
    """An optimizer can be built again in its place without a loss."""
    release(model.layer4)
    (head,) = optimizer.param_groups
    optimizer.__init__([head, head | {"params": list(model.layer4.parameters()), "lr": head["lr"] / 10}])


@wrong("unfreeze-a-stage", "layer4.0.bn1.running_mean moved")
def by_unfreeze(model, optimizer):
    """unfreeze() is about flags alone."""
    unfreeze(model, "layer4.*")
    rate = optimizer.param_groups[0]["lr"]
    optimizer.add_param_group({"params": model.layer4.parameters(), "lr": rate / 10})


@wrong("unfreeze-a-stage", "layer4.0.bn1.running_mean moved")
def by_flags(model, optimizer):
    """freeze() holds a norm layer until unfreeze(), whatever its flags."""
    model.layer4.requires_grad_(True)
    head = optimizer.param_groups[0]
    optimizer.add_param_group(head | {"params": model.layer4.parameters(), "lr": head["lr"] / 10})


@wrong("unfreeze-a-stage", "layer4.0.bn1.running_mean moved")
def held_again(model, optimizer):
    """Frozen once more and then made trainable, a layer trains and is held."""
    by_unfreeze(model, optimizer)
    for layer in norms_of(model.layer4):
        freeze(layer)
        layer.requires_grad_(True)


@wrong("unfreeze-a-stage", "layer4.0.bn1.running_mean moved")
def by_unfreeze_and_eval(model, optimizer):
    """eval() lasts."""
    by_unfreeze(model, optimizer)
    model.layer4.eval()


@wrong("unfreeze-a-stage", "layer4.0.conv1.weight moves at the rate 0.05; it should be 0.005")
def in_the_same_group(model, optimizer):
    """What an optimizer is given later learns more slowly by itself."""
    release(model.layer4)
    optimizer.add_param_group({"params": model.layer4.parameters()})


@wrong("unfreeze-a-stage", "layer4.0.conv1.weight moves at the rate 0.005; it should be 0.002")
def the_first_rate(model, optimizer):
    """The rate of an optimizer is in its defaults."""
    release(model.layer4)
    optimizer.add_param_group({"params": model.layer4.parameters(), "lr": optimizer.defaults["lr"] / 10})


@wrong("unfreeze-a-stage", "it takes from optimizer.defaults")
def the_first_settings(model, optimizer):
    """Only the rate of a group changes, so the rest may come from the defaults."""
    release(model.layer4)
    rate = optimizer.param_groups[0]["lr"]
    optimizer.add_param_group({"params": model.layer4.parameters(), "lr": rate / 10})


@wrong("unfreeze-a-stage", "After model.train(True) the head is in the other mode")
def nothing_follows_train(model, optimizer):
    """To hold the norm layers is to hold the model in eval mode."""
    one_group_more(model, optimizer)
    model.eval()
    model.train = lambda mode=True: model


@wrong("unfreeze-a-stage", "so they normalize by the batch at hand")
def without_tracking(model, optimizer):
    """A norm layer that tracks no statistics uses those that it has."""
    by_unfreeze(model, optimizer)
    for layer in norms_of(model.layer4):
        layer.track_running_stats = False


@wrong("unfreeze-a-stage", "fc.weight moves otherwise than SGD moves it at the rate 0.05")
def all_slower(model, optimizer):
    """A rate belongs to the whole optimizer."""
    release(model.layer4)
    for group in optimizer.param_groups:
        group["lr"] /= 10
    optimizer.add_param_group({"params": model.layer4.parameters(), "lr": optimizer.param_groups[0]["lr"]})


@wrong("unfreeze-a-stage", "Trainable: conv1.weight")
def everything_asks(model, optimizer):
    """What the optimizer does not hold is frozen."""
    model.requires_grad_(True)
    rate = optimizer.param_groups[0]["lr"]
    optimizer.add_param_group({"params": model.layer4.parameters(), "lr": rate / 10})


@wrong("unfreeze-a-stage", "Frozen: layer4.0.bn1.weight")
def without_norms(model, optimizer):
    """To hold the statistics of a norm layer is to freeze it."""
    one_group_more(model, optimizer)
    for layer in norms_of(model.layer4):
        freeze(layer)


@wrong("unfreeze-a-stage", "layer4.0.conv1.weight twice")
def added_by_hand_twice(model, optimizer):
    """Each group has what it has: a parameter may be in two."""
    one_group_more(model, optimizer)
    optimizer.param_groups[0]["params"] += list(model.layer4.parameters())


@wrong("unfreeze-a-stage", "the next is not")
def without_momentum(model, optimizer):
    """What is new begins without momentum."""
    release(model.layer4)
    rate = optimizer.param_groups[0]["lr"]
    optimizer.add_param_group({"params": model.layer4.parameters(), "lr": rate / 10, "momentum": 0})


@wrong("unfreeze-a-stage", "look at its learning rate")
def rate_of_zero(model, optimizer):
    """A tenth of a rate can be left to the scheduler."""
    release(model.layer4)
    optimizer.add_param_group({"params": model.layer4.parameters(), "lr": 0.0})


@wrong("unfreeze-a-stage", "some parameters appear in more than one parameter group")
def the_whole_model(model, optimizer):
    """The optimizer takes what is new, and skips what it has."""
    release(model.layer4)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer.add_param_group({"params": trained, "lr": optimizer.param_groups[0]["lr"] / 10})


@wrong("unfreeze-a-stage", "other Parameter objects")
def a_fresh_head(model, optimizer):
    """A stage more needs another head."""
    one_group_more(model, optimizer)
    model.fc = copy.deepcopy(model.fc)


@wrong("unfreeze-a-stage", "has momentum before its first step")
def made_up_momentum(model, optimizer):
    """A group needs its momentum before it can be stepped."""
    one_group_more(model, optimizer)
    for parameter in model.layer4.parameters():
        optimizer.state[parameter]["momentum_buffer"] = torch.ones_like(parameter)


@wrong("unfreeze-a-stage", "and the settings of the head")
def without_nesterov(model, optimizer):
    """A rate, momentum and weight decay are all the settings that there are."""
    release(model.layer4)
    head = optimizer.param_groups[0]
    group = {name: head[name] for name in ("momentum", "weight_decay")}
    optimizer.add_param_group(group | {"params": model.layer4.parameters(), "lr": head["lr"] / 10})


@right("a-schedule-for-each")
def one_function_each(optimizer, begin, steps):
    def stage(step):
        return 1 - (step - begin) / (steps - begin)

    return lr_scheduler.LambdaLR(optimizer, [lambda step: 1 - step / steps, stage])


@right("a-schedule-for-each")
def zero_until_it_begins(optimizer, begin, steps):
    functions = [
        lambda step, start=start: (steps - step) / (steps - start) if step >= start else 0.0 for start in (0, begin)
    ]
    return lr_scheduler.LambdaLR(optimizer, functions)


@right("a-schedule-for-each")
def read_from_a_table(optimizer, begin, steps):
    shares = torch.linspace(1, 0, steps + 1, dtype=torch.float32)
    late = torch.cat([torch.ones(begin), torch.linspace(1, 0, steps - begin + 1, dtype=torch.float32)])
    return lr_scheduler.LambdaLR(optimizer, [lambda step: shares[step].item(), lambda step: late[step].item()])


class Own(lr_scheduler.LRScheduler):
    """A scheduler of its own."""

    def __init__(self, optimizer, begin, steps):
        self.begin, self.steps = begin, steps
        super().__init__(optimizer)

    def get_lr(self):
        starts = zip(self.base_lrs, (0, self.begin), strict=True)
        return [rate * (self.steps - max(self.last_epoch, start)) / (self.steps - start) for rate, start in starts]


@right("a-schedule-for-each")
def a_class_of_its_own(optimizer, begin, steps):
    return Own(optimizer, begin, steps)


class Plain:
    """No scheduler of torch, but it has a step()."""

    def __init__(self, optimizer, begin, steps):
        self.groups, self.begin, self.steps, self.over = optimizer.param_groups, begin, steps, 0
        self.own = [group["lr"] for group in self.groups]

    def step(self):
        self.over += 1
        for group, rate, start in zip(self.groups, self.own, (0, self.begin), strict=True):
            group["lr"] = rate * (self.steps - max(self.over, start)) / (self.steps - start)


@right("a-schedule-for-each")
def no_scheduler_of_torch(optimizer, begin, steps):
    return Plain(optimizer, begin, steps)


@right("a-schedule-for-each")
def the_rate_made_larger_first(optimizer, begin, steps):
    optimizer.param_groups[1]["lr"] *= steps / (steps - begin)
    return lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)


@wrong("a-schedule-for-each", "which has fallen while it was frozen")
def as_it_is(optimizer, begin, steps):
    """A group that is frozen waits, with its rate."""
    return lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)


@wrong("a-schedule-for-each", "In step 1 the head has the rate")
def both_from_begin(optimizer, begin, steps):
    """One function is for all groups, so it has to begin with the stage."""
    return lr_scheduler.LambdaLR(optimizer, lambda step: 1 - max(0, step - begin) / (steps - begin))


@wrong("a-schedule-for-each", "zero, so it does not move in that step")
def zero_at_begin(optimizer, begin, steps):
    """The stage begins after the step in which it is unfrozen."""
    functions = [lambda step: 1 - step / steps, lambda step: (step > begin) * (1 - (step - begin) / (steps - begin))]
    return lr_scheduler.LambdaLR(optimizer, functions)


@wrong("a-schedule-for-each", "steps lie between begin and the end")
def as_steep_as_the_head(optimizer, begin, steps):
    """What falls in the same way falls by as much in each step."""
    functions = [lambda step: 1 - step / steps, lambda step: 1 - max(0, step - begin) / steps]
    return lr_scheduler.LambdaLR(optimizer, functions)


@wrong("a-schedule-for-each", "which is due one step later")
def counted_from_one(optimizer, begin, steps):
    """The first step is step 1."""
    functions = [lambda step: 1 - (step + 1) / steps, lambda step: 1 - (step + 1 - begin) / (steps - begin)]
    return lr_scheduler.LambdaLR(optimizer, functions)


@wrong("a-schedule-for-each", "In step begin = 6 the stage has the rate 0.0075, which is due one step later")
def stage_counted_from_one(optimizer, begin, steps):
    """The first step of the stage is its step 1."""
    functions = [lambda step: 1 - step / steps, lambda step: 1 - (step + 1 - begin) / (steps - begin)]
    return lr_scheduler.LambdaLR(optimizer, functions)


@wrong("a-schedule-for-each", "the stage has the rate 0.001; 0.01, its own rate, is due")
def a_rate_instead_of_a_factor(optimizer, begin, steps):
    """The function gives the rate."""
    own = 10 * optimizer.param_groups[1]["lr"]
    return lr_scheduler.LambdaLR(optimizer, [lambda step: 1 - step / steps, lambda step: own])


@wrong("a-schedule-for-each", "In step 0 the head has the rate 0.01; 0.1 is due")
def in_the_other_order(optimizer, begin, steps):
    """The stage comes first, as in the network."""
    for group, rate in zip(optimizer.param_groups, (0.01, 0.1), strict=True):
        group["lr"] = rate
    return one_function_each(optimizer, begin, steps)


@wrong("a-schedule-for-each", "Return the scheduler")
def nothing_returned(optimizer, begin, steps):
    """A scheduler works by itself once it is built."""
    one_function_each(optimizer, begin, steps)


@wrong("a-schedule-for-each", "Return the scheduler")
def the_class(optimizer, begin, steps):
    """A class does what its objects do."""
    return lr_scheduler.LambdaLR


@wrong("a-schedule-for-each", "Return the scheduler")
def the_functions(optimizer, begin, steps):
    """The functions are the schedule."""
    return [lambda step: 1 - step / steps, lambda step: 1 - (step - begin) / (steps - begin)]


@wrong("a-schedule-for-each", "1")
def one_function_in_a_list(optimizer, begin, steps):
    """The head has a scheduler of its own already."""
    return lr_scheduler.LambdaLR(optimizer, [lambda step: 1 - (step - begin) / (steps - begin)])


@wrong("a-schedule-for-each", "have changed: a schedule changes rates")
def without_decay(optimizer, begin, steps):
    """Weight decay is to wait as well."""
    optimizer.param_groups[1]["weight_decay"] = 0.0
    return one_function_each(optimizer, begin, steps)


@wrong("a-schedule-for-each", "The groups of the optimizer")
def a_group_later(optimizer, begin, steps):
    """A group belongs into the optimizer when it is unfrozen."""
    stage = optimizer.param_groups.pop()
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    optimizer.param_groups.append(stage)
    optimizer.param_groups.append(stage)
    return scheduler


@wrong("a-schedule-for-each", "In step 1 the head has the rate")
def along_a_cosine(optimizer, begin, steps):
    """Rates fall along a cosine."""

    def fall(step, start):
        return 0.5 * (1 + math.cos(math.pi * (step - start) / (steps - start)))

    return lr_scheduler.LambdaLR(optimizer, [lambda step: fall(step, 0), lambda step: fall(step, begin)])
