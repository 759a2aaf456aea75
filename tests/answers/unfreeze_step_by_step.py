"""Answers to the exercises of the lesson on unfreezing step by step."""

import copy

import torch
from torch import nn
from torch.nn.utils.parametrize import register_parametrization
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from helpers import freeze, unfreeze
from tests.tools.exercises import Answers

answers = Answers()
right, wrong = answers.right, answers.wrong

COSTS = {
    "only first: keeps as many bytes as all": True,
    "only last: a layer before it keeps something": False,
    "biases only: keeps fewer bytes than all": True,
    "after freeze(norm), requires_grad_(True) and train(): running_mean moves": True,
    "low rank, first step: A moves": False,
    "low rank, second step: A moves": True,
    "checkpoint, use_reentrant=True: second gets a gradient": False,
    "autocast: the gradient of last.weight is float32": True,
}
right("what-each-choice-costs")(COSTS)
right("what-each-choice-costs")(dict(reversed(COSTS.items())))
right("what-each-choice-costs")(dict(zip(COSTS, torch.tensor(list(COSTS.values())), strict=True)))
for (row, given), (told, belief) in {
    ("only first: keeps as many bytes as all", False): (
        "Each ReLU keeps its output",
        "Memory goes with the number of parameters that are trained.",
    ),
    ("only last: a layer before it keeps something", True): (
        "the graph begins at last",
        "Every forward pass keeps all activations, until backward.",
    ),
    ("biases only: keeps fewer bytes than all", False): (
        "The gradient of a bias needs no input",
        "A layer that trains anything keeps its input.",
    ),
    ("after freeze(norm), requires_grad_(True) and train(): running_mean moves", False): (
        "this one is held no more",
        "freeze() holds a layer until unfreeze().",
    ),
    ("low rank, first step: A moves", True): (
        "The gradient of A is a product with B",
        "What asks and is held by the optimizer moves in each step.",
    ),
    ("low rank, second step: A moves", False): (
        "B moved in the first step",
        "A matrix with a gradient of zeros is stuck for good.",
    ),
    ("checkpoint, use_reentrant=True: second gets a gradient", True): (
        "looks only at its input",
        "Checkpointing changes memory, and never gradients.",
    ),
    ("checkpoint, use_reentrant=True: second gets a gradient", "raises"): (
        "no error tells you",
        "What is without a gradient raises in backward.",
    ),
    ("autocast: the gradient of last.weight is float32", False): (
        "The weight stays float32",
        "autocast turns the weights into bfloat16.",
    ),
}.items():
    wrong("what-each-choice-costs", told)(COSTS | {row: given}, belief)
wrong("what-each-choice-costs", "Each ReLU keeps its output")(
    dict.fromkeys(COSTS, False), "Freezing saves memory, wherever the frozen layers are."
)


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


@wrong("unfreeze-a-stage", "Asking: conv1.weight")
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


@right("low-rank-update")
class TwoMatrices(nn.Module):
    def __init__(self, linear, rank):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.A = nn.Parameter(torch.randn(rank, linear.in_features))
        self.B = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x):
        return self.linear(x) + x @ self.A.T @ self.B.T

    def merged(self):
        linear = copy.deepcopy(self.linear)
        with torch.no_grad():
            linear.weight += self.B @ self.A
        return linear


@right("low-rank-update")
class TwoLayers(nn.Module):
    def __init__(self, linear, rank):
        super().__init__()
        self.linear = copy.deepcopy(linear).requires_grad_(False)
        self.update = nn.Sequential(
            nn.Linear(linear.in_features, rank, bias=False), nn.Linear(rank, linear.out_features, bias=False)
        )
        nn.init.zeros_(self.update[1].weight)

    def forward(self, x):
        return self.linear(x) + 2 * self.update(x)

    def merged(self):
        down, up = self.update
        linear = nn.Linear(down.in_features, up.out_features, bias=self.linear.bias is not None)
        with torch.no_grad():
            linear.weight.copy_(self.linear.weight + 2 * up.weight @ down.weight)
            if linear.bias is not None:
                linear.bias.copy_(self.linear.bias)
        return linear


@right("low-rank-update")
class ZerosFirst(nn.Module):
    """The weight is a buffer, the first matrix is zero and the module computes with the merged weight."""

    def __init__(self, linear, rank):
        super().__init__()
        self.register_buffer("weight", linear.weight.detach())
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())
        self.A = nn.Parameter(torch.zeros(rank, linear.in_features))
        self.B = nn.Parameter(torch.randn(linear.out_features, rank))

    def forward(self, x):
        return nn.functional.linear(x, self.weight + self.B @ self.A, self.bias)

    def merged(self):
        linear = nn.Linear(*self.weight.T.shape, bias=self.bias is not None)
        del linear.weight
        linear.weight = nn.Parameter((self.weight + self.B @ self.A).detach())
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.clone())
        return linear


@right("low-rank-update")
class ALinear(nn.Linear):
    """A linear layer itself, with more to it."""

    def __init__(self, linear, rank):
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None)
        self.load_state_dict(linear.state_dict())
        linear.requires_grad_(False)
        self.requires_grad_(False)
        self.A = nn.Parameter(torch.randn(rank, linear.in_features))
        self.B = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x):
        return super().forward(x) + (x @ self.A.T) @ self.B.T

    def merged(self):
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None)
        state = {name: value for name, value in self.state_dict().items() if name not in "AB"}
        linear.load_state_dict(state | {"weight": self.weight + self.B @ self.A})
        return linear


@right("low-rank-update")
class Parametrized(nn.Module):
    """With torch's own parametrizations."""

    class Plus(nn.Module):
        def __init__(self, shape, rank):
            super().__init__()
            self.A, self.B = nn.Parameter(torch.randn(rank, shape[1])), nn.Parameter(torch.zeros(shape[0], rank))

        def forward(self, weight):
            return weight + self.B @ self.A

    def __init__(self, linear, rank):
        super().__init__()
        self.linear = copy.deepcopy(linear).requires_grad_(False)
        register_parametrization(self.linear, "weight", self.Plus(linear.weight.shape, rank))

    def forward(self, x):
        return self.linear(x)

    def merged(self):
        linear = nn.Linear(self.linear.in_features, self.linear.out_features, bias=self.linear.bias is not None)
        state = {name: value for name, value in self.linear.state_dict().items() if name == "bias"}
        linear.load_state_dict(state | {"weight": self.linear.weight})
        return linear


@right("low-rank-update")
class Scaled(TwoMatrices):
    """With the factor that is usual, alpha by rank."""

    def __init__(self, linear, rank):
        super().__init__(linear, rank)
        self.factor = 16 / rank

    def forward(self, x):
        return self.linear(x) + self.factor * (x @ self.A.T @ self.B.T)

    def merged(self):
        linear = copy.deepcopy(self.linear)
        with torch.no_grad():
            linear.weight += self.factor * self.B @ self.A
        return linear


@right("low-rank-update")
class SmallNumbers(TwoMatrices):
    """As small as some begin."""

    def __init__(self, linear, rank):
        super().__init__(linear, rank)
        nn.init.normal_(self.A, std=0.01)


@wrong("low-rank-update", "but not for a part of it of shape (7, 6). Your code raised RuntimeError: einsum()")
class ThreeDimensions(TwoMatrices):
    """x is a batch of sequences."""

    def forward(self, x):
        return self.linear(x) + torch.einsum("bti,ri,or->bto", x, self.A, self.B)


@wrong("low-rank-update", "but not for a part of it of shape (6,).")
class RowsOnly(TwoMatrices):
    """There is always a batch."""

    def forward(self, x):
        return self.linear(x) + torch.einsum("...bi,ri,or->...bo", x, self.A, self.B)


@wrong("low-rank-update", "merged() changes the modes of the module")
class MergedInEvalMode(TwoMatrices):
    """What is merged is no longer trained."""

    def merged(self):
        self.eval()
        return super().merged()


@wrong("low-rank-update", "merged() changes the gradients of the module")
class MergedWithoutGradients(TwoMatrices):
    """Gradients have to be cleared before a weight is copied."""

    def merged(self):
        for parameter in self.parameters():
            parameter.grad = None
        return super().merged()


@wrong("low-rank-update", "linear.weight asks for a gradient")
class FrozenInForward(TwoMatrices):
    """It is early enough to freeze in forward."""

    def __init__(self, linear, rank):
        super().__init__(linear, rank)
        linear.requires_grad_(True)

    def forward(self, x):
        self.linear.requires_grad_(False)
        return super().forward(x)


@wrong("low-rank-update", "train(False) changes the numbers of the module")
class MergedByEval(TwoMatrices):
    """In eval mode the update belongs into the weight."""

    def train(self, mode=True):
        if mode is not self.training:
            self.linear.weight.data += (self.B.data @ self.A.data) * (-1 if mode else 1)
        return super().train(mode)

    def forward(self, x):
        return super().forward(x) if self.training else self.linear(x)


@wrong("low-rank-update", "parameters() of a linear gives bias, weight; that of merged() bias")
class APlainWeight(TwoMatrices):
    """What is computed is a weight, as soon as it is called so."""

    def merged(self):
        linear = copy.deepcopy(self.linear)
        del linear.weight
        linear.weight = self.linear.weight + self.B @ self.A
        return linear


@wrong("low-rank-update", "it computes with the module")
class ARename(TwoMatrices):
    """A linear is what calls itself one."""

    def merged(self):
        linear = super().merged()
        linear.forward = self.forward
        return linear


@wrong("low-rank-update", "its weight and bias alone do not")
class ACopyInside(TwoMatrices):
    """A copy of the module in a linear is merged."""

    def merged(self):
        linear = copy.deepcopy(self.linear)
        linear.forward = copy.deepcopy(self).forward
        return linear


@wrong("low-rank-update", "make the outputs infinite or NaN")
class Normalized(TwoMatrices):
    """A small number in the denominator makes every division safe."""

    def forward(self, x):
        return self.linear(x) + x @ self.A.T @ self.B.T / (self.B.square().sum().sqrt() + 1e-6)


@wrong("low-rank-update", "The linear that was given has the parameters")
class InsideTheLinear(nn.Module):
    """What is added to a layer belongs into it."""

    def __init__(self, linear, rank):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        linear.A = nn.Parameter(torch.randn(rank, linear.in_features))
        linear.B = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x):
        return self.linear(x) + x @ self.linear.A.T @ self.linear.B.T


@wrong("low-rank-update", "merged() gives other outputs than the module")
class MergedOnce(TwoMatrices):
    """What was merged follows the matrices."""

    def merged(self):
        if "layer" not in vars(self):
            vars(self)["layer"] = super().merged()
        return self.layer


@wrong("low-rank-update", "one of them begins with zeros")
class BothRandom(TwoMatrices):
    """Weights begin with small random numbers."""

    def __init__(self, linear, rank):
        super().__init__(linear, rank)
        nn.init.normal_(self.B)


@wrong("low-rank-update", "Are both matrices zero")
class BothZero(TwoMatrices):
    """An update of zero is one of which everything is zero."""

    def __init__(self, linear, rank):
        super().__init__(linear, rank)
        nn.init.zeros_(self.A)


@wrong("low-rank-update", "linear.weight asks for a gradient")
class NotFrozen(TwoMatrices):
    """What has an update of its own is no longer trained."""

    def __init__(self, linear, rank):
        super().__init__(linear, rank)
        self.linear.requires_grad_(True)


@wrong("low-rank-update", "linear.bias asks for a gradient")
class BiasNotFrozen(TwoMatrices):
    """A bias is small, so it may be trained along."""

    def __init__(self, linear, rank):
        super().__init__(linear, rank)
        if linear.bias is not None:
            self.linear.bias.requires_grad_(True)


@wrong("low-rank-update", "Nothing in parameters() asks")
class PlainTensors(nn.Module):
    """requires_grad makes a tensor a parameter."""

    def __init__(self, linear, rank):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.A = torch.randn(rank, linear.in_features, requires_grad=True)
        self.B = torch.zeros(linear.out_features, rank, requires_grad=True)

    forward, merged = TwoMatrices.forward, TwoMatrices.merged


@wrong("low-rank-update", "the two matrices have 20 numbers; 24 ask here: update")
class FullUpdate(nn.Module):
    """An update has the size of the weight."""

    def __init__(self, linear, rank):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.update = nn.Parameter(torch.zeros(linear.out_features, linear.in_features))

    def forward(self, x):
        return self.linear(x) + x @ self.update.T

    def merged(self):
        linear = copy.deepcopy(self.linear)
        linear.weight.data += self.update.data
        return linear


@wrong("low-rank-update", "another gradient than from merged()")
class WithoutRecording(TwoMatrices):
    """What is frozen belongs in no_grad."""

    def forward(self, x):
        with torch.no_grad():
            frozen = self.linear(x)
        return frozen + x @ self.A.T @ self.B.T


@wrong("low-rank-update", "linear.weight has other numbers now")
class MergedInPlace(TwoMatrices):
    """To merge is to add the update to the linear that is there."""

    def merged(self):
        self.linear.weight.data += self.B.data @ self.A.data
        return copy.deepcopy(self.linear)


@wrong("low-rank-update", "merged() gives other outputs than the module")
class WithoutItsFactor(TwoMatrices):
    """A factor in forward belongs to training alone."""

    def forward(self, x):
        return self.linear(x) + 0.5 * (x @ self.A.T @ self.B.T)


@wrong("low-rank-update", "merged() gives other outputs than the module")
class WithoutUpdate(TwoMatrices):
    """To merge is to take the update away."""

    def merged(self):
        return copy.deepcopy(self.linear)


@wrong("low-rank-update", "The bias of merged() is the module's own")
class SharedBias(TwoMatrices):
    """What is not changed can be shared."""

    def merged(self):
        linear = super().merged()
        linear.bias = self.linear.bias
        return linear


@wrong("low-rank-update", "mat1 and mat2 shapes cannot be multiplied")
class NotTransposed(TwoMatrices):
    """A weight has inputs first, as it is written in nn.Linear."""

    def forward(self, x):
        return self.linear(x) + x @ self.A @ self.B


@wrong("low-rank-update", "The linear has no bias")
class AlwaysABias(TwoMatrices):
    """Every linear has a bias."""

    def merged(self):
        linear = nn.Linear(self.linear.in_features, self.linear.out_features)
        linear.weight.data = self.linear.weight + self.B @ self.A
        linear.bias.data = (
            torch.zeros(linear.out_features) if self.linear.bias is None else self.linear.bias.data.clone()
        )
        return linear


@wrong("low-rank-update", "something is not registered")
class Hidden(nn.Module):
    """What a module uses is part of it, wherever it is kept."""

    def __init__(self, linear, rank):
        super().__init__()
        self.hidden = [linear.requires_grad_(False)]
        self.A = nn.Parameter(torch.randn(rank, linear.in_features))
        self.B = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x):
        return self.hidden[0](x) + x @ self.A.T @ self.B.T

    def merged(self):
        linear = copy.deepcopy(self.hidden[0])
        linear.weight.data += self.B.data @ self.A.data
        return linear


@wrong("low-rank-update", "linear.weight got a gradient")
class HiddenAndAsking(Hidden):
    """What is not in parameters() is frozen."""

    def __init__(self, linear, rank):
        super().__init__(linear, rank)
        linear.requires_grad_(True)


@wrong("low-rank-update", "a matrix of rank 4; at most 2")
class TwoUpdates(TwoMatrices):
    """The outputs can be made equal by taking away what is there at the start."""

    def __init__(self, linear, rank):
        super().__init__(linear, rank)
        nn.init.normal_(self.B)
        self.register_buffer("start", (self.B @ self.A).detach())

    def forward(self, x):
        return self.linear(x) + x @ (self.B @ self.A - self.start).T

    def merged(self):
        linear = super().merged()
        linear.weight.data -= self.start
        return linear


@wrong("low-rank-update", "is to be an nn.Module")
class NoModule:
    """A class with forward is a module."""

    def __init__(self, linear, rank):
        self.linear = linear


@right("checkpoint-behind-a-frozen-part")
def the_new_kind(backbone, blocks, x):
    return checkpoint(blocks, backbone(x), use_reentrant=False)


@right("checkpoint-behind-a-frozen-part")
def features_ask(backbone, blocks, x):
    features = backbone(x).detach().requires_grad_()
    return checkpoint(blocks, features, use_reentrant=True)


@right("checkpoint-behind-a-frozen-part")
def block_by_block(backbone, blocks, x):
    with torch.no_grad():
        features = backbone(x)
    for block in blocks:
        features = checkpoint(block, features, use_reentrant=False)
    return features


@right("checkpoint-behind-a-frozen-part")
def in_two_segments(backbone, blocks, x):
    return checkpoint_sequential(blocks, 2, backbone(x), use_reentrant=False)


@right("checkpoint-behind-a-frozen-part")
def something_that_asks(backbone, blocks, x):
    asking = torch.zeros(1, requires_grad=True)
    return checkpoint(lambda features, _: blocks(features), backbone(x), asking, use_reentrant=True)


@right("checkpoint-behind-a-frozen-part")
def only_the_last_blocks(backbone, blocks, x):
    return checkpoint(blocks[2:], blocks[:2](backbone(x)), use_reentrant=False)


@wrong("checkpoint-behind-a-frozen-part", "Under no_grad nothing is recorded")
def under_no_grad(backbone, blocks, x):
    """The frozen part and all behind it belong in no_grad."""
    with torch.no_grad():
        return blocks(backbone(x))


@wrong("checkpoint-behind-a-frozen-part", "only the inputs decide whether anything is recorded")
def the_old_kind(backbone, blocks, x):
    """Checkpointing changes memory, and never gradients."""
    return checkpoint(blocks, backbone(x), use_reentrant=True)


@wrong("checkpoint-behind-a-frozen-part", "x asks for a gradient after your call")
def x_asks(backbone, blocks, x):
    """Something has to ask, so let the input."""
    return checkpoint(blocks, backbone(x.requires_grad_()), use_reentrant=True)


@wrong("checkpoint-behind-a-frozen-part", "kept something for backward, and the backbone is frozen")
def a_copy_of_x_asks(backbone, blocks, x):
    """It is enough to leave the caller's tensor alone."""
    return checkpoint(blocks, backbone(x.clone().requires_grad_()), use_reentrant=True)


@wrong("checkpoint-behind-a-frozen-part", "The flag of backbone.0.weight was changed")
def backbone_asks(backbone, blocks, x):
    """Gradients reach the blocks through the backbone."""
    backbone.requires_grad_(True)
    return checkpoint(blocks, backbone(x), use_reentrant=True)


@wrong("checkpoint-behind-a-frozen-part", "blocks.0.0.weight got no gradient")
def the_result_asks(backbone, blocks, x):
    """A result that asks has a way back to the weights."""
    return checkpoint(blocks, backbone(x), use_reentrant=True).requires_grad_()


@wrong("checkpoint-behind-a-frozen-part", "at most two thirds were asked for")
def no_checkpoint(backbone, blocks, x):
    """The gradients are what counts."""
    return blocks(backbone(x))


@wrong("checkpoint-behind-a-frozen-part", "The backbone ran twice")
def all_of_it(backbone, blocks, x):
    """The more is checkpointed, the better."""
    return checkpoint(lambda x: blocks(backbone(x)), x, use_reentrant=False)


@wrong("checkpoint-behind-a-frozen-part", "dropout drew other masks")
def without_the_random_state(backbone, blocks, x):
    """Random numbers do not matter for gradients."""
    return checkpoint(blocks, backbone(x), use_reentrant=False, preserve_rng_state=False)


@wrong("checkpoint-behind-a-frozen-part", "the activations are kept elsewhere")
def packed_away(backbone, blocks, x):
    """What is not on the device is not kept."""
    with torch.autograd.graph.saved_tensors_hooks(lambda kept: kept.clone(), lambda kept: kept):
        return blocks(backbone(x))


@wrong("checkpoint-behind-a-frozen-part", "in eval mode after your call")
def in_eval_mode(backbone, blocks, x):
    """Blocks that run twice have to do without dropout."""
    return checkpoint(blocks.eval(), backbone(x), use_reentrant=False)


@wrong("checkpoint-behind-a-frozen-part", "The mode of backbone is another after your call")
def a_backbone_in_eval_mode(backbone, blocks, x):
    """Whoever uses a frozen part puts it in eval mode."""
    return checkpoint(blocks, backbone.eval()(x), use_reentrant=False)


@wrong("checkpoint-behind-a-frozen-part", "at most two thirds were asked for")
def the_first_block(backbone, blocks, x):
    """The first block is the large one."""
    return blocks[1:](checkpoint(blocks[0], backbone(x), use_reentrant=False))
