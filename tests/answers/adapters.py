"""Answers to the exercises of the lesson on adapters."""

import copy
import io

import torch
from torch import nn
from torch.nn.utils.parametrize import register_parametrization
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from helpers import watch
from tests.tools.exercises import Answers

answers = Answers()
right, wrong = answers.right, answers.wrong

LEARNS = {
    "A: has a gradient": True,
    "A: moves": False,
    "A, AdamW: moves": True,
    "B: moves": True,
    "norm: has a gradient": False,
    "B, frozen again: moves": False,
    "B, early optimizer: moves": False,
    "B, use_reentrant=True: has a gradient": False,
}
right("who-learns-in-an-adapter")(LEARNS)
right("who-learns-in-an-adapter")(dict(reversed(LEARNS.items())))
right("who-learns-in-an-adapter")({row: int(value) for row, value in LEARNS.items()})
right("who-learns-in-an-adapter")(dict(zip(LEARNS, torch.tensor(list(LEARNS.values())), strict=True)))
for (row, given), (told, belief) in {
    ("A: has a gradient", False): ("that is not None", "A gradient of zero is no gradient."),
    ("A: moves", True): ("by nothing", "What has a gradient and is held by the optimizer moves in each step."),
    ("A, AdamW: moves", False): ("be it of zeros", "Every optimizer leaves alone what has a gradient of zeros."),
    ("B: moves", False): ("A is random", "An update that is zero has gradients of zero."),
    ("norm: has a gradient", True): ("frozen with the body", "Behind a trained layer everything has a gradient."),
    ("B, frozen again: moves", True): ("frozen with the rest", "requires_grad_(False) is for the base alone."),
    ("B, early optimizer: moves", True): ("before there was a B", "An optimizer holds the model."),
    ("B, use_reentrant=True: has a gradient", True): ("x does not", "Checkpointing changes memory, never gradients."),
}.items():
    wrong("who-learns-in-an-adapter", told)(LEARNS | {row: given}, belief)
wrong("who-learns-in-an-adapter", "that is not None")(
    dict.fromkeys(LEARNS, False), "An update that is zero learns nothing, however it is trained."
)
wrong("who-learns-in-an-adapter", "by nothing")(
    dict.fromkeys(LEARNS, True), "What is in a model and requires grad is trained."
)


@right("low-rank-update")
class TwoMatrices(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.A = nn.Parameter(torch.empty(rank, linear.in_features))
        self.B = nn.Parameter(torch.zeros(linear.out_features, rank))
        nn.init.kaiming_uniform_(self.A, a=5**0.5)
        self.scale = alpha / rank

    def forward(self, x):
        return self.linear(x) + self.scale * (x @ self.A.T @ self.B.T)

    def merged(self):
        linear = copy.deepcopy(self.linear)
        with torch.no_grad():
            linear.weight += self.scale * self.B @ self.A
        return linear


@right("low-rank-update")
class TwoLayers(nn.Module):
    """As nn.Linear begins; the factor between the two."""

    def __init__(self, linear, rank, alpha):
        super().__init__()
        self.linear = copy.deepcopy(linear).requires_grad_(False)
        self.down = nn.Linear(linear.in_features, rank, bias=False)
        self.up = nn.Linear(rank, linear.out_features, bias=False)
        nn.init.zeros_(self.up.weight)
        self.scale = alpha / rank

    def forward(self, x):
        return self.linear(x) + self.up(self.scale * self.down(x))

    def merged(self):
        linear = nn.Linear(self.down.in_features, self.up.out_features, bias=self.linear.bias is not None)
        with torch.no_grad():
            linear.weight.copy_(self.linear.weight + self.scale * self.up.weight @ self.down.weight)
            if linear.bias is not None:
                linear.bias.copy_(self.linear.bias)
        return linear


@right("low-rank-update")
class Transposed(nn.Module):
    """Inputs first, small normal numbers; the weight is a buffer, and the module computes with the merged weight."""

    def __init__(self, linear, rank, alpha):
        super().__init__()
        self.register_buffer("weight", linear.weight.detach())
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())
        self.first = nn.Parameter(0.02 * torch.randn(linear.in_features, rank))
        self.second = nn.Parameter(torch.zeros(rank, linear.out_features))
        self.alpha, self.rank = alpha, rank

    def whole(self):
        return self.weight + self.alpha * (self.first @ self.second).T / self.rank

    def forward(self, x):
        return nn.functional.linear(x, self.whole(), self.bias)

    def merged(self):
        linear = nn.Linear(*self.weight.T.shape, bias=self.bias is not None)
        del linear.weight
        linear.weight = nn.Parameter(self.whole().detach())
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.clone())
        return linear


@right("low-rank-update")
class ALinear(nn.Linear):
    """A linear layer itself, with more to it; drawn with a mean square of 1 / in_features."""

    def __init__(self, linear, rank, alpha):
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None)
        self.load_state_dict(linear.state_dict())
        linear.requires_grad_(False)
        self.requires_grad_(False)
        self.A = nn.Parameter(torch.randn(rank, linear.in_features) / linear.in_features**0.5)
        self.B = nn.Parameter(torch.zeros(linear.out_features, rank))
        self.scale = alpha / rank

    def forward(self, x):
        return super().forward(x) + (x @ self.A.T) @ self.B.T * self.scale

    def merged(self):
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None)
        state = {name: value for name, value in self.state_dict().items() if name not in "AB"}
        linear.load_state_dict(state | {"weight": self.weight + self.scale * self.B @ self.A})
        return linear


@right("low-rank-update")
class KaimingNormal(TwoMatrices):
    """As large as is allowed."""

    def __init__(self, linear, rank, alpha):
        super().__init__(linear, rank, alpha)
        nn.init.kaiming_normal_(self.A)


@right("low-rank-update")
class Parametrized(nn.Module):
    """With torch's own parametrizations."""

    class Plus(nn.Module):
        def __init__(self, shape, rank, alpha):
            super().__init__()
            self.A, self.B = nn.Parameter(torch.empty(rank, shape[1])), nn.Parameter(torch.zeros(shape[0], rank))
            nn.init.xavier_uniform_(self.A)
            self.scale = alpha / rank

        def forward(self, weight):
            return weight + self.scale * self.B @ self.A

    def __init__(self, linear, rank, alpha):
        super().__init__()
        self.linear = copy.deepcopy(linear).requires_grad_(False)
        register_parametrization(self.linear, "weight", self.Plus(linear.weight.shape, rank, alpha))

    def forward(self, x):
        return self.linear(x)

    def merged(self):
        linear = nn.Linear(self.linear.in_features, self.linear.out_features, bias=self.linear.bias is not None)
        state = {name: value for name, value in self.linear.state_dict().items() if name == "bias"}
        linear.load_state_dict(state | {"weight": self.linear.weight})
        return linear


@right("low-rank-update")
class InOneCall(nn.Module):
    """Orthogonal rows in a ParameterDict; base and update in one addmm."""

    def __init__(self, linear, rank, alpha):
        super().__init__()
        self.linear, self.scale = linear.requires_grad_(False), alpha / rank
        A = nn.init.orthogonal_(torch.empty(rank, linear.in_features))
        self.update = nn.ParameterDict({"A": A, "B": torch.zeros(linear.out_features, rank)})

    def forward(self, x):
        rows = x.reshape(-1, x.shape[-1])
        thin, wide = rows @ self.update["A"].T, self.update["B"].T
        return torch.addmm(self.linear(rows), thin, wide, alpha=self.scale).reshape(*x.shape[:-1], -1)

    @torch.no_grad()
    def merged(self):
        linear = copy.deepcopy(self.linear)
        linear.weight.addmm_(self.update["B"], self.update["A"], alpha=self.scale)
        return linear


@wrong("low-rank-update", "neither will ever move")
class BothZero(TwoMatrices):
    """An update of zero is one of which everything is zero."""

    def __init__(self, linear, rank, alpha):
        super().__init__(linear, rank, alpha)
        nn.init.zeros_(self.A)


@wrong("low-rank-update", "one of them begins with zeros")
class BothRandom(TwoMatrices):
    """Weights begin with small random numbers."""

    def __init__(self, linear, rank, alpha):
        super().__init__(linear, rank, alpha)
        nn.init.normal_(self.B)


@wrong("low-rank-update", "times as large as √(2 / 48) at the start")
class LargeStart(TwoMatrices):
    """Random is random."""

    def __init__(self, linear, rank, alpha):
        super().__init__(linear, rank, alpha)
        nn.init.normal_(self.A)


@wrong("low-rank-update", "times as large as √(2 / 48) at the start")
class DividedByRank(TwoMatrices):
    """The start of a matrix goes with its rank."""

    def __init__(self, linear, rank, alpha):
        super().__init__(linear, rank, alpha)
        self.A = nn.Parameter(torch.randn(rank, linear.in_features) / rank)


@wrong("low-rank-update", "the paper's start is the other way round")
class ZerosFirst(TwoMatrices):
    """Which of the two is zero does not matter."""

    def __init__(self, linear, rank, alpha):
        super().__init__(linear, rank, alpha)
        nn.init.zeros_(self.A)
        nn.init.normal_(self.B, std=0.02)


@wrong("low-rank-update", "draw them at random")
class Constant(TwoMatrices):
    """Small is enough: the numbers may be equal."""

    def __init__(self, linear, rank, alpha):
        super().__init__(linear, rank, alpha)
        nn.init.constant_(self.A, 0.01)


@wrong("low-rank-update", "it is to be 8 / 2 times that")
class WithoutScale(TwoMatrices):
    """The learning rate is scale enough."""

    def __init__(self, linear, rank, alpha):
        super().__init__(linear, rank, alpha)
        self.scale = 1


@wrong("low-rank-update", "The update is alpha * B @ A")
class OnlyAlpha(TwoMatrices):
    """alpha is the factor."""

    def __init__(self, linear, rank, alpha):
        super().__init__(linear, rank, alpha)
        self.scale = alpha


@wrong("low-rank-update", "The update is B @ A / rank")
class OnlyRank(TwoMatrices):
    """A sum of rank terms is to be a mean."""

    def __init__(self, linear, rank, alpha):
        super().__init__(linear, rank, alpha)
        self.scale = 1 / rank


@wrong("low-rank-update", "does not differ from that of the linear by 8 / 2 * B @ A")
class RootOfRank(TwoMatrices):
    """A sum of random terms grows with the root of their number."""

    def __init__(self, linear, rank, alpha):
        super().__init__(linear, rank, alpha)
        self.scale = alpha / rank**0.5


@wrong("low-rank-update", "nothing in the module is to draw at random")
class WithDropout(TwoMatrices):
    """An update needs dropout before it, as a library has it."""

    def forward(self, x):
        dropped = nn.functional.dropout(x, 0.1, self.training)
        return self.linear(x) + self.scale * (dropped @ self.A.T @ self.B.T)


@wrong("low-rank-update", "Does the way from the matrices to the outputs pass a detach()")
class Detached(TwoMatrices):
    """What goes out of a frozen layer is detached."""

    def forward(self, x):
        update = self.scale * (x @ self.A.T @ self.B.T)
        return self.linear(x) + update.detach() + 0 * update


@wrong("low-rank-update", "leave the matrix of shape (2, 48) as it was")
class ARandomProjection(TwoMatrices):
    """A is random and stays so: B alone is trained."""

    def forward(self, x):
        return self.linear(x) + self.scale * (x @ self.A.detach().T @ self.B.T)


@wrong("low-rank-update", "A second module begins with the same matrix")
class NotDrawn(TwoMatrices):
    """Rows that differ are as good as random ones."""

    def __init__(self, linear, rank, alpha):
        super().__init__(linear, rank, alpha)
        self.A = nn.Parameter(torch.eye(rank, linear.in_features) / linear.in_features**0.5)


@wrong("low-rank-update", "merged() changes the layers of the module")
class MergedAndKept(TwoMatrices):
    """What was merged belongs to the module."""

    def merged(self):
        self.layer = super().merged()
        return self.layer


@wrong("low-rank-update", "but not for a part of it of shape (7, 48). Your code raised RuntimeError: einsum()")
class ThreeDimensions(TwoMatrices):
    """x is a batch of sequences."""

    def forward(self, x):
        return self.linear(x) + self.scale * torch.einsum("bti,ri,or->bto", x, self.A, self.B)


@wrong("low-rank-update", "but not for a part of it of shape (48,).")
class RowsOnly(TwoMatrices):
    """There is always a batch."""

    def forward(self, x):
        return self.linear(x) + self.scale * torch.einsum("...bi,ri,or->...bo", x, self.A, self.B)


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


@wrong("low-rank-update", "linear.weight requires grad")
class FrozenInForward(TwoMatrices):
    """It is early enough to freeze in forward."""

    def __init__(self, linear, rank, alpha):
        super().__init__(linear, rank, alpha)
        linear.requires_grad_(True)

    def forward(self, x):
        self.linear.requires_grad_(False)
        return super().forward(x)


@wrong("low-rank-update", "train(False) changes the numbers of the module")
class MergedByEval(TwoMatrices):
    """In eval mode the update belongs into the weight."""

    def train(self, mode=True):
        if mode is not self.training:
            self.linear.weight.data += self.scale * (self.B.data @ self.A.data) * (-1 if mode else 1)
        return super().train(mode)

    def forward(self, x):
        return super().forward(x) if self.training else self.linear(x)


@wrong("low-rank-update", "parameters() of the linear gives bias, weight; that of merged() bias")
class APlainWeight(TwoMatrices):
    """What is computed is a weight, as soon as it is called so."""

    def merged(self):
        linear = copy.deepcopy(self.linear)
        del linear.weight
        linear.weight = self.linear.weight + self.scale * self.B @ self.A
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
        return self.linear(x) + self.scale * (x @ self.A.T @ self.B.T) / (self.B.square().sum().sqrt() + 1e-6)


@wrong("low-rank-update", "The linear that was given has the parameters")
class InsideTheLinear(nn.Module):
    """What is added to a layer belongs into it."""

    def __init__(self, linear, rank, alpha):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        linear.A = nn.Parameter(0.02 * torch.randn(rank, linear.in_features))
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


@wrong("low-rank-update", "linear.bias requires grad")
class BiasNotFrozen(TwoMatrices):
    """A bias is small, so it may be trained along."""

    def __init__(self, linear, rank, alpha):
        super().__init__(linear, rank, alpha)
        if linear.bias is not None:
            self.linear.bias.requires_grad_(True)


@wrong("low-rank-update", "Nothing in parameters() requires grad")
class PlainTensors(nn.Module):
    """requires_grad makes a tensor a parameter."""

    def __init__(self, linear, rank, alpha):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.A = torch.randn(rank, linear.in_features, requires_grad=True)
        self.B = torch.zeros(linear.out_features, rank, requires_grad=True)

    forward, merged = TwoMatrices.forward, TwoMatrices.merged


@wrong("low-rank-update", "of shapes (2, 48) and (40, 2) or transposed. Trainable here: update (40, 48)")
class FullUpdate(nn.Module):
    """An update has the size of the weight."""

    def __init__(self, linear, rank, alpha):
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
        return frozen + self.scale * (x @ self.A.T @ self.B.T)


@wrong("low-rank-update", "linear.weight has other numbers now")
class MergedInPlace(TwoMatrices):
    """To merge is to add the update to the linear that is there."""

    def merged(self):
        self.linear.weight.data += self.scale * self.B.data @ self.A.data
        return copy.deepcopy(self.linear)


@wrong("low-rank-update", "merged() gives other outputs than the module")
class MergedWithoutItsFactor(TwoMatrices):
    """A factor in forward belongs to training alone."""

    def merged(self):
        linear = copy.deepcopy(self.linear)
        linear.weight.data += self.B.data @ self.A.data
        return linear


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
        linear.weight.data = (self.linear.weight + self.scale * self.B @ self.A).detach()
        linear.bias.data = (
            torch.zeros(linear.out_features) if self.linear.bias is None else self.linear.bias.data.clone()
        )
        return linear


@wrong("low-rank-update", "something is not registered")
class Hidden(nn.Module):
    """What a module uses is part of it, wherever it is kept."""

    def __init__(self, linear, rank, alpha):
        super().__init__()
        self.hidden = [linear.requires_grad_(False)]
        self.A = nn.Parameter(0.02 * torch.randn(rank, linear.in_features))
        self.B = nn.Parameter(torch.zeros(linear.out_features, rank))
        self.scale = alpha / rank

    def forward(self, x):
        return self.hidden[0](x) + self.scale * (x @ self.A.T @ self.B.T)

    def merged(self):
        linear = copy.deepcopy(self.hidden[0])
        linear.weight.data += self.scale * self.B.data @ self.A.data
        return linear


@wrong("low-rank-update", "linear.weight got a gradient")
class HiddenAndTrainable(Hidden):
    """What is not in parameters() is frozen."""

    def __init__(self, linear, rank, alpha):
        super().__init__(linear, rank, alpha)
        linear.requires_grad_(True)


@wrong("low-rank-update", "the matrix next to the output is not")
class StartTakenAway(TwoMatrices):
    """The outputs can be made equal by taking away what is there at the start."""

    def __init__(self, linear, rank, alpha):
        super().__init__(linear, rank, alpha)
        nn.init.normal_(self.B)
        self.register_buffer("start", (self.B @ self.A).detach())

    def forward(self, x):
        return self.linear(x) + self.scale * x @ (self.B @ self.A - self.start).T


@wrong("low-rank-update", "is to be an nn.Module")
class NoModule:
    """A class with forward is a module."""

    def __init__(self, linear, rank, alpha):
        self.linear = linear


def through(file, content):
    """Write, go back, read."""
    torch.save(content, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@right("adapter-in-a-file")
def trained_and_buffers(trained, fresh, file):
    names = [name for name, weight in trained.named_parameters() if weight.requires_grad]
    names += [name for name, _ in trained.named_buffers()]
    state = trained.state_dict()
    missing, unexpected = fresh.load_state_dict(through(file, {name: state[name] for name in names}), strict=False)
    assert not unexpected and not set(missing) & set(names)


@right("adapter-in-a-file")
def all_but_the_frozen(trained, fresh, file):
    frozen = {name for name, weight in trained.named_parameters() if not weight.requires_grad}
    kept = {name: value for name, value in trained.state_dict().items() if name not in frozen}
    fresh.load_state_dict(fresh.state_dict() | through(file, {"weights": kept, "rank": 2, "alpha": 4})["weights"])


@right("adapter-in-a-file")
def what_differs(trained, fresh, file):
    before, now = fresh.state_dict(), trained.state_dict()
    loaded = through(file, {name: value for name, value in now.items() if not torch.equal(value, before[name])})
    with torch.no_grad():
        for name, value in loaded.items():
            before[name].copy_(value)


@right("adapter-in-a-file")
def with_watch(trained, fresh, file):
    twin = copy.deepcopy(fresh)
    with watch(twin) as seen:
        twin.load_state_dict(trained.state_dict())
    state = trained.state_dict()
    pairs = [(name, state[name].clone()) for name in seen.changed]
    fresh.load_state_dict(dict(through(file, pairs)), strict=False)


@right("adapter-in-a-file")
def parameters_as_they_are(trained, fresh, file):
    """Saved as Parameters, and assigned on loading."""
    saved = {name: weight for name, weight in trained.named_parameters() if weight.requires_grad}
    fresh.load_state_dict(through(file, saved | dict(trained.named_buffers())), strict=False, assign=True)


@wrong("adapter-in-a-file", "fc.weight of fresh is not that of trained: the head was trained")
def as_it_was(trained, fresh, file):
    """The adapter is what was added to the base."""
    state = trained.state_dict().items()
    loaded = through(file, {name: value for name, value in state if name.endswith((".A", ".B"))})
    fresh.load_state_dict(loaded, strict=False)


@wrong("adapter-in-a-file", "middle.running_mean of fresh is not that of trained: it is a buffer")
def by_flags(trained, fresh, file):
    """What was trained is what requires grad."""
    names = [name for name, weight in trained.named_parameters() if weight.requires_grad]
    state = trained.state_dict()
    fresh.load_state_dict(through(file, {name: state[name] for name in names}), strict=False)


@wrong("adapter-in-a-file", "The file holds first.linear.weight, which is frozen")
def everything(trained, fresh, file):
    """To be safe, save all of it."""
    fresh.load_state_dict(through(file, trained.state_dict()))


@wrong("adapter-in-a-file", "Nothing is in the file")
def directly(trained, fresh, file):
    """What counts is that fresh has it."""
    fresh.load_state_dict(trained.state_dict())


@wrong("adapter-in-a-file", "what comes into fresh is to come through the file")
def a_token_file(trained, fresh, file):
    """A file is there, so it was used."""
    torch.save({"rank": 2}, file)
    fresh.load_state_dict(trained.state_dict())


@wrong("adapter-in-a-file", "but nothing was read from it")
def not_read(trained, fresh, file):
    """What is on disk and what is in memory are the same."""
    frozen = {name for name, weight in trained.named_parameters() if not weight.requires_grad}
    torch.save({name: value for name, value in trained.state_dict().items() if name not in frozen}, file)
    fresh.load_state_dict(trained.state_dict())


@wrong("adapter-in-a-file", "after zero_grad() each .grad is None")
def by_gradients(trained, fresh, file):
    """What was trained has a gradient."""
    kept = [name for name, weight in trained.named_parameters() if weight.grad is not None]
    kept += [name for name, _ in trained.named_buffers()]
    state = trained.state_dict()
    fresh.load_state_dict(through(file, {name: state[name] for name in kept}), strict=False)


@wrong("adapter-in-a-file", "and not equal to it. Half precision rounds")
def in_half_precision(trained, fresh, file):
    """A file may be rounded, since nobody trains in it."""
    frozen = {name for name, weight in trained.named_parameters() if not weight.requires_grad}
    state = trained.state_dict().items()
    fresh.load_state_dict(through(file, {n: v.half() for n, v in state if n not in frozen}), strict=False)


@wrong("adapter-in-a-file", "so does adding a difference")
def differences(trained, fresh, file):
    """What was learned is the difference."""
    now, before = trained.state_dict(), fresh.state_dict()
    moved = {name: now[name] - before[name] for name in now if not torch.equal(now[name], before[name])}
    for name, difference in through(file, moved).items():
        before[name] += difference


@right("adapter-in-a-file")
def in_one_row(trained, fresh, file):
    """All numbers in one tensor, read from the bytes of the file."""
    frozen = {name for name, weight in trained.named_parameters() if not weight.requires_grad}
    kept = [name for name in trained.state_dict() if name not in frozen]
    torch.save(torch.cat([trained.state_dict()[name].flatten() for name in kept]), file)
    row, began = torch.load(io.BytesIO(file.getvalue())), 0
    for name in kept:
        into = fresh.state_dict()[name]
        into.copy_(row[began : began + into.numel()].view_as(into))
        began += into.numel()


@wrong("adapter-in-a-file", "fresh is as it was")
def only_saved(trained, fresh, file):
    """Saving is what was asked for."""
    state = trained.state_dict().items()
    frozen = {name for name, weight in trained.named_parameters() if not weight.requires_grad}
    torch.save({name: value for name, value in state if name not in frozen}, file)


@wrong("adapter-in-a-file", "Your code raised EOFError")
def not_rewound(trained, fresh, file):
    """A file is read from its beginning, whatever was done with it."""
    torch.save({name: value for name, value in trained.state_dict().items() if name.startswith("fc")}, file)
    fresh.load_state_dict(torch.load(file), strict=False)


@wrong("adapter-in-a-file", "entries of fresh are not those of trained, first.A first")
def the_head_alone(trained, fresh, file):
    """The head is what is new, so it is what is trained."""
    state = trained.state_dict().items()
    loaded = through(file, {name: value for name, value in state if name.startswith(("fc.", "middle.r", "middle.n"))})
    fresh.load_state_dict(loaded, strict=False)


@wrong("adapter-in-a-file", "The file holds first.linear.weight, which is frozen")
def by_name(trained, fresh, file):
    """An adapter is the whole layer that was put in."""
    state = trained.state_dict().items()
    loaded = through(file, {name: value for name, value in state if not name.startswith("middle.weight")})
    fresh.load_state_dict(loaded, strict=False)


@wrong("adapter-in-a-file", "cannot be loaded with weights_only=True")
def the_module(trained, fresh, file):
    """A model is saved as it is."""
    torch.save(trained, file)
    fresh.load_state_dict(trained.state_dict())


@wrong("adapter-in-a-file", "The flags of fresh are not as they were")
def flags_too(trained, fresh, file):
    """What is loaded is to be trained."""
    all_but_the_frozen(trained, fresh, file)
    fresh.requires_grad_(True)


@wrong("adapter-in-a-file", "The modes of fresh are not as they were")
def in_eval_mode(trained, fresh, file):
    """What is loaded is to be used."""
    all_but_the_frozen(trained, fresh, file)
    fresh.eval()


@wrong("adapter-in-a-file", "they share memory")
def the_same_tensors(trained, fresh, file):
    """Assigned is as good as copied."""
    all_but_the_frozen(trained, fresh, file)
    for name, buffer in trained.named_parameters():
        if buffer.requires_grad:
            part, _, last = name.rpartition(".")
            setattr(fresh.get_submodule(part), last, buffer)
    for name, buffer in trained.named_buffers():
        part, _, last = name.rpartition(".")
        setattr(fresh.get_submodule(part), last, buffer)


@right("checkpoint-behind-a-frozen-part")
def the_new_kind(backbone, blocks, x):
    return checkpoint(blocks, backbone(x), use_reentrant=False)


@right("checkpoint-behind-a-frozen-part")
def features_require_grad(backbone, blocks, x):
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
def something_that_requires_grad(backbone, blocks, x):
    mark = torch.zeros(1, requires_grad=True)
    return checkpoint(lambda features, _: blocks(features), backbone(x), mark, use_reentrant=True)


@right("checkpoint-behind-a-frozen-part")
def only_the_last_blocks(backbone, blocks, x):
    return checkpoint(blocks[2:], blocks[:2](backbone(x)), use_reentrant=False)


@right("checkpoint-behind-a-frozen-part")
def layers_in_segments(backbone, blocks, x):
    layers = [layer for block in blocks for layer in block]
    return checkpoint_sequential(layers, 4, backbone(x), use_reentrant=False)


@right("checkpoint-behind-a-frozen-part")
def by_forward(backbone, blocks, x):
    features = backbone(x)
    for block in blocks:
        features = checkpoint(block.forward, features, use_reentrant=False)
    return features


@right("checkpoint-behind-a-frozen-part")
def layer_by_layer_inside(backbone, blocks, x):
    def run(features, block):
        for layer in block:
            features = layer(features)
        return features

    features = backbone(x)
    for block in blocks:
        features = checkpoint(run, features, block, use_reentrant=False)
    return features


@wrong("checkpoint-behind-a-frozen-part", "at most two thirds are allowed")
def all_but_the_linears(backbone, blocks, x):
    """The weights are what costs, so the other layers can be checkpointed."""
    features = backbone(x)
    for block in blocks:
        features = checkpoint(block[1:], block[0](features), use_reentrant=False)
    return features


@right("checkpoint-behind-a-frozen-part")
def a_hook_for_a_while(backbone, blocks, x):
    handle = backbone.register_forward_hook(lambda part, given, output: output.requires_grad_(True))
    features = backbone(x)
    handle.remove()
    return checkpoint(blocks, features, use_reentrant=True)


@wrong("checkpoint-behind-a-frozen-part", "a hook was left in the backbone")
def a_hook_for_good(backbone, blocks, x):
    """A mark belongs to the model."""
    backbone.register_forward_hook(lambda part, given, output: output.requires_grad_(True))
    return checkpoint(blocks, backbone(x), use_reentrant=True)


@wrong("checkpoint-behind-a-frozen-part", "Under no_grad nothing is recorded")
def under_no_grad(backbone, blocks, x):
    """The frozen part and all behind it belong in no_grad."""
    with torch.no_grad():
        return blocks(backbone(x))


@wrong("checkpoint-behind-a-frozen-part", "only the inputs decide whether anything is recorded")
def the_old_kind(backbone, blocks, x):
    """Checkpointing changes memory, and never gradients."""
    return checkpoint(blocks, backbone(x), use_reentrant=True)


@wrong("checkpoint-behind-a-frozen-part", "x requires grad after your call")
def x_requires_grad(backbone, blocks, x):
    """Something has to require grad, so let the input."""
    return checkpoint(blocks, backbone(x.requires_grad_()), use_reentrant=True)


@wrong("checkpoint-behind-a-frozen-part", "kept something for backward, and the backbone is frozen")
def a_copy_of_x_requires_grad(backbone, blocks, x):
    """It is enough to leave the caller's tensor alone."""
    return checkpoint(blocks, backbone(x.clone().requires_grad_()), use_reentrant=True)


@wrong("checkpoint-behind-a-frozen-part", "The flag of backbone.0.weight was changed")
def backbone_requires_grad(backbone, blocks, x):
    """Gradients reach the blocks through the backbone."""
    backbone.requires_grad_(True)
    return checkpoint(blocks, backbone(x), use_reentrant=True)


@wrong("checkpoint-behind-a-frozen-part", "blocks.0.0.weight got no gradient")
def the_result_requires_grad(backbone, blocks, x):
    """A result that requires grad has a way back to the weights."""
    return checkpoint(blocks, backbone(x), use_reentrant=True).requires_grad_()


@wrong("checkpoint-behind-a-frozen-part", "yours is a tensor of shape ()")
def a_loss(backbone, blocks, x):
    """What is returned is what backward begins with."""
    return checkpoint(blocks, backbone(x), use_reentrant=False).sum()


@wrong("checkpoint-behind-a-frozen-part", "at most two thirds are allowed")
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


@wrong("checkpoint-behind-a-frozen-part", "the activations are kept elsewhere")
def packed_away_but_one(backbone, blocks, x):
    """One checkpoint makes it checkpointed."""
    features = checkpoint(blocks[0], backbone(x), use_reentrant=False)
    with torch.autograd.graph.save_on_cpu():
        return blocks[1:](features)


@wrong("checkpoint-behind-a-frozen-part", "in eval mode after your call")
def in_eval_mode_for_good(backbone, blocks, x):
    """Blocks that run twice have to do without dropout."""
    return checkpoint(blocks.eval(), backbone(x), use_reentrant=False)


@wrong("checkpoint-behind-a-frozen-part", "The mode of backbone is another after your call")
def a_backbone_in_eval_mode(backbone, blocks, x):
    """Whoever uses a frozen part puts it in eval mode."""
    return checkpoint(blocks, backbone.eval()(x), use_reentrant=False)


@wrong("checkpoint-behind-a-frozen-part", "at most two thirds are allowed")
def the_first_block(backbone, blocks, x):
    """The first block is the large one."""
    return blocks[1:](checkpoint(blocks[0], backbone(x), use_reentrant=False))
