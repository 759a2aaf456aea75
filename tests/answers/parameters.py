"""Answers to the exercises of the lesson on parameters."""

import copy

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tests.tools.exercises import Answers

answers = Answers()
right, wrong = answers.right, answers.wrong

KNOWN = {
    "same": [True, True],
    "half": [False, False],
    "frozen": [True, True],
    "empty": [False, False],
    "fixed": [False, True],
    "cache": [False, False],
    "layers": [False, False],
    "steps": [True, True],
}
right("what-registers")(KNOWN)
right("what-registers")(dict(reversed(KNOWN.items())))
right("what-registers")({name: tuple(pair) for name, pair in KNOWN.items()})
wrong("what-registers", ".to() had nothing to convert and returned the Parameter")(
    KNOWN | {"same": [False, False]}, "After .to() a Parameter is always a plain tensor."
)
wrong("what-registers", "the result of an operation is a plain tensor")(
    KNOWN | {"half": [True, True]}, "What is computed from a Parameter is a Parameter."
)
wrong("what-registers", "A frozen Parameter is a Parameter")(
    KNOWN | {"frozen": [False, True]}, "A frozen Parameter is a buffer."
)
wrong("what-registers", "there is no tensor to train or to save")(
    KNOWN | {"empty": [True, True]}, "What was registered by name is there, empty or not."
)
wrong("what-registers", "fixed is a buffer: saved")(KNOWN | {"fixed": [True, True]}, "What is saved is a Parameter.")
wrong("what-registers", "a buffer is saved unless")(
    KNOWN | {"fixed": [False, False]}, "A state_dict holds what is trained."
)
wrong("what-registers", "says that cache is not saved")(KNOWN | {"cache": [False, True]}, "Every buffer is saved.")
wrong("what-registers", "who knows the layer?")(
    KNOWN | {"layers": [True, True]}, "A layer registers itself, wherever it is kept."
)
wrong("what-registers", "makes a Parameter of a plain tensor")(
    KNOWN | {"steps": [False, False]}, "A list of plain tensors holds no Parameters."
)
wrong("what-registers", "takes True or False twice")(
    {name: pair[0] for name, pair in KNOWN.items()}, "What is in parameters() is what is saved, so one word will do."
)


@right("hidden-heads")
class Containers(nn.Module):
    def __init__(self, dim, tasks):
        super().__init__()
        self.heads = nn.ModuleDict({t: nn.ModuleList([nn.Linear(dim, 4), nn.Linear(4, n)]) for t, n in tasks.items()})

    def forward(self, x):
        return {t: last(first(x).relu()) for t, (first, last) in self.heads.items()}


@right("hidden-heads")
class ByName(nn.Module):
    def __init__(self, dim, tasks):
        super().__init__()
        self.tasks = list(tasks)
        for task, n in tasks.items():
            self.add_module(f"{task}_first", nn.Linear(dim, 4))
            setattr(self, f"{task}_last", nn.Linear(4, n))

    def forward(self, x):
        return {t: getattr(self, f"{t}_last")(getattr(self, f"{t}_first")(x).relu()) for t in self.tasks}


@right("hidden-heads")
class RegisteredBeside(nn.Module):
    def __init__(self, dim, tasks):
        super().__init__()
        self.heads = {t: [nn.Linear(dim, 4), nn.Linear(4, n)] for t, n in tasks.items()}
        self.layers = nn.ModuleList(layer for parts in self.heads.values() for layer in parts)

    def forward(self, x):
        return {t: last(first(x).relu()) for t, (first, last) in self.heads.items()}


@right("hidden-heads")
class OwnParameters(nn.Module):
    def __init__(self, dim, tasks):
        super().__init__()
        self.first = nn.Parameter(torch.randn(len(tasks), 4, dim))
        self.shift = nn.Parameter(torch.zeros(len(tasks), 4))
        self.last = nn.ParameterDict({t: nn.Parameter(torch.randn(n, 4)) for t, n in tasks.items()})
        self.bias = nn.ParameterDict({t: torch.zeros(n) for t, n in tasks.items()})

    def forward(self, x):
        hidden = (torch.einsum("thd,rd->trh", self.first, x) + self.shift[:, None]).relu()
        return {t: hidden[i] @ self.last[t].T + self.bias[t] for i, t in enumerate(self.last)}


@right("hidden-heads")
def a_sequential_for_each(dim, tasks):
    class Heads(nn.ModuleDict):
        def forward(self, x):
            return {task: head(x) for task, head in self.items()}

    return Heads({t: nn.Sequential(nn.Linear(dim, 4), nn.ReLU(), nn.Linear(4, n)) for t, n in tasks.items()})


@wrong("hidden-heads", "a list, a dictionary or a plain tensor is neither")
class AsItWas(nn.Module):
    """A layer belongs to the network if it is kept in an attribute, in whatever form."""

    def __init__(self, dim, tasks):
        super().__init__()
        self.heads = {t: [nn.Linear(dim, 4), nn.Linear(4, n)] for t, n in tasks.items()}
        for parts in self.heads.values():
            for layer in parts:
                layer.requires_grad_(True)

    def forward(self, x):
        return {t: last(first(x).relu()) for t, (first, last) in self.heads.items()}


@wrong("hidden-heads", "list is not a Module subclass")
class OnlyOutside(nn.Module):
    """A ModuleDict looks into the lists that it holds."""

    def __init__(self, dim, tasks):
        super().__init__()
        self.heads = nn.ModuleDict({t: [nn.Linear(dim, 4), nn.Linear(4, n)] for t, n in tasks.items()})

    def forward(self, x):
        return {t: last(first(x).relu()) for t, (first, last) in self.heads.items()}


@wrong("hidden-heads", "For layers there are other containers")
class InAParameterDict(nn.Module):
    """What is to be in parameters() goes into a ParameterDict."""

    def __init__(self, dim, tasks):
        super().__init__()
        self.heads = nn.ParameterDict({t: [nn.Linear(dim, 4), nn.Linear(4, n)] for t, n in tasks.items()})

    def forward(self, x):
        return {t: last(first(x).relu()) for t, (first, last) in self.heads.items()}


@wrong("hidden-heads", "registered the weights as buffers")
class AsBuffers(nn.Module):
    """To register is to call register_buffer."""

    def __init__(self, dim, tasks):
        super().__init__()
        self.heads = {t: [nn.Linear(dim, 4), nn.Linear(4, n)] for t, n in tasks.items()}
        for task, parts in self.heads.items():
            for number, layer in enumerate(parts):
                self.register_buffer(f"{task}_{number}_weight", layer.weight)
                self.register_buffer(f"{task}_{number}_bias", layer.bias)

    def forward(self, x):
        return {t: last(first(x).relu()) for t, (first, last) in self.heads.items()}


@wrong("hidden-heads", "The inner containers are modules")
class OnlyInside(nn.Module):
    """It is enough that the layers are in a ModuleList, wherever that is kept."""

    def __init__(self, dim, tasks):
        super().__init__()
        self.heads = {t: nn.ModuleList([nn.Linear(dim, 4), nn.Linear(4, n)]) for t, n in tasks.items()}

    def forward(self, x):
        return {t: last(first(x).relu()) for t, (first, last) in self.heads.items()}


@wrong("hidden-heads", "parameters() has 6. Which layers")
class OnlyLast(nn.Module):
    """Only the layers that make the scores are the heads."""

    def __init__(self, dim, tasks):
        super().__init__()
        self.first = [nn.Linear(dim, 4) for _ in tasks]
        self.last = nn.ModuleDict({t: nn.Linear(4, n) for t, n in tasks.items()})

    def forward(self, x):
        return {t: last(first(x).relu()) for first, (t, last) in zip(self.first, self.last.items(), strict=True)}


@wrong("hidden-heads", "not copies of them")
class Copies(nn.Module):
    """To register layers is to tell the network what it has; a copy tells it as well."""

    def __init__(self, dim, tasks):
        super().__init__()
        self.heads = {t: [nn.Linear(dim, 4), nn.Linear(4, n)] for t, n in tasks.items()}
        self.layers = nn.ModuleList(copy.deepcopy(layer) for parts in self.heads.values() for layer in parts)

    def forward(self, x):
        return {t: last(first(x).relu()) for t, (first, last) in self.heads.items()}


@wrong("hidden-heads", "finds 0 of the")
class OnlyTrained(nn.Module):
    """A network is what its parameters() gives."""

    def __init__(self, dim, tasks):
        super().__init__()
        self.heads = {t: [nn.Linear(dim, 4), nn.Linear(4, n)] for t, n in tasks.items()}

    def parameters(self, recurse=True):
        return [p for parts in self.heads.values() for layer in parts for p in layer.parameters()]

    def forward(self, x):
        return {t: last(first(x).relu()) for t, (first, last) in self.heads.items()}


@wrong("hidden-heads", "Does each task have two layers of its own?")
class SharedFirst(nn.Module):
    """A list of one layer taken twice has two layers."""

    def __init__(self, dim, tasks):
        super().__init__()
        first = nn.Linear(dim, 4)
        self.heads = nn.ModuleDict({t: nn.ModuleList([first, nn.Linear(4, n)]) for t, n in tasks.items()})

    def forward(self, x):
        return {t: last(first(x).relu()) for t, (first, last) in self.heads.items()}


@wrong("hidden-heads", "with a ReLU between them")
class WithoutReLU(nn.Module):
    """A Sequential of linear layers puts in what belongs between them."""

    def __init__(self, dim, tasks):
        super().__init__()
        self.heads = nn.ModuleDict({t: nn.Sequential(nn.Linear(dim, 4), nn.Linear(4, n)) for t, n in tasks.items()})

    def forward(self, x):
        return {task: head(x) for task, head in self.heads.items()}


@wrong("hidden-heads", "Are layers made in forward?")
class MadeInForward(nn.Module):
    """Layers may be made where they are used."""

    def __init__(self, dim, tasks):
        super().__init__()
        self.dim, self.tasks = dim, tasks

    def forward(self, x):
        self.heads = nn.ModuleDict(
            {t: nn.Sequential(nn.Linear(self.dim, 4), nn.ReLU(), nn.Linear(4, n)) for t, n in self.tasks.items()}
        )
        return {task: head(x) for task, head in self.heads.items()}


@right("running-mean")
class Registered(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(size))
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scratch", torch.zeros(size), persistent=False)

    def forward(self, x):
        if self.training:
            self.scratch = x.detach().mean(0)
            self.mean = 0.9 * self.mean + 0.1 * self.scratch
        return (x - self.mean) * self.scale


@right("running-mean")
class InPlace(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.scratch = nn.Buffer(torch.zeros(size), persistent=False)
        self.mean = nn.Buffer(torch.zeros(size))
        self.register_parameter("scale", nn.Parameter(torch.ones(size)))

    @torch.no_grad()
    def update(self, x):
        self.scratch.copy_(x.mean(dim=0))
        self.mean.lerp_(self.scratch, 0.1)

    def forward(self, x):
        if self.training:
            self.update(x)
        return (x - self.mean) * self.scale


@right("running-mean")
class WithALayerInside(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.inside = nn.Module()
        self.inside.scale = nn.Parameter(torch.ones(size))
        self.norm = nn.BatchNorm1d(size, affine=False)
        self.scratch = nn.Buffer(torch.zeros(size), persistent=False)

    @property
    def scale(self):
        return self.inside.scale

    @property
    def mean(self):
        return self.norm.running_mean

    def forward(self, x):
        if self.training:
            self.scratch = x.data.mean(0)
            self.mean.mul_(0.9).add_(0.1 * self.scratch)
        return (x - self.mean) * self.scale


@right("running-mean")
class SavedByItself(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(size))
        for name in ("mean", "scratch"):
            self.register_buffer(name, torch.zeros(size), persistent=False)

    def get_extra_state(self):
        return {"mean": self.mean}

    def set_extra_state(self, state):
        self.mean = state["mean"]

    def forward(self, x):
        if self.training:
            self.scratch = torch.mean(x, 0).detach()
            self.mean = (self.mean * 0.9 + self.scratch * 0.1).detach()
        return torch.einsum("rs,s->rs", x - self.mean, self.scale)


@right("running-mean")
class Parametrized(Registered):
    def __init__(self, size):
        super().__init__(size)
        nn.utils.parametrize.register_parametrization(self, "scale", nn.Identity())


@right("running-mean")
class HeldWithoutRecording(Registered):
    def forward(self, x):
        if self.training:
            with torch.no_grad():
                self.scratch = x.mean(0)
                self.mean += 0.1 * (self.scratch - self.mean)
        return torch.addcmul(torch.zeros_like(x), x - self.mean, self.scale)


@right("running-mean")
class HeldByTheMode(Registered):
    def train(self, mode=True):
        self.rate = 0.1 if mode else 0.0
        return super().train(mode)

    def forward(self, x):
        rate = getattr(self, "rate", 0.1)
        if rate:
            self.scratch = x.detach().mean(0)
            self.mean = (1 - rate) * self.mean + rate * self.scratch
        return (x - self.mean) * self.scale


@wrong("running-mean", "It is frozen now, but one requires_grad_(True)")
class FrozenParameter(nn.Module):
    """A frozen Parameter is a buffer."""

    def __init__(self, size):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(size))
        self.mean = nn.Parameter(torch.zeros(size), requires_grad=False)
        self.scratch = nn.Buffer(torch.zeros(size), persistent=False)

    def forward(self, x):
        if self.training:
            with torch.no_grad():
                self.scratch.copy_(x.mean(0))
                self.mean.lerp_(self.scratch, 0.1)
        return (x - self.mean) * self.scale


@wrong("running-mean", "It is frozen now, but one requires_grad_(True)")
class HiddenParameter(FrozenParameter):
    """What the layer does not name is in no parameters()."""

    def named_parameters(self, *args, **kwargs):
        return ((name, p) for name, p in super().named_parameters(*args, **kwargs) if name != "mean")


@wrong("running-mean", "mean stayed float32")
class PlainMean(Registered):
    """The attributes of a layer belong to it, so they follow it."""

    def __init__(self, size):
        super().__init__(size)
        del self.mean
        self.mean = torch.zeros(size)


@wrong("running-mean", "scratch stayed float32")
class PlainScratch(Registered):
    """What is not saved needs no registering."""

    def __init__(self, size):
        super().__init__(size)
        del self.scratch
        self.scratch = torch.zeros(size)


@wrong("running-mean", "scratch stayed float32")
class MovedByHand(PlainScratch):
    """A layer is moved by a call of its own double()."""

    def double(self):
        self.scratch = self.scratch.double()
        return super().double()


@wrong("running-mean", "mean was not saved")
class NothingSaved(Registered):
    """To be saved, it is enough to be a buffer."""

    def __init__(self, size):
        super().__init__(size)
        self.mean = nn.Buffer(torch.zeros(size), persistent=False)


@wrong("running-mean", "scratch is in state_dict()")
class ScratchSaved(Registered):
    """A buffer is not saved unless it is asked to be."""

    def __init__(self, size):
        super().__init__(size)
        self.register_buffer("scratch", torch.zeros(size))


@wrong("running-mean", "requires grad")
class Recorded(Registered):
    """A buffer is never recorded."""

    def forward(self, x):
        if self.training:
            self.scratch = x.mean(0)
            self.mean = 0.9 * self.mean + 0.1 * self.scratch
        return (x - self.mean) * self.scale


@wrong("running-mean", "computed under no_grad")
class NothingRecorded(Registered):
    """no_grad holds the mean, and leaves the rest as it is."""

    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


@wrong("running-mean", "In train mode the gradient of x")
class CutOff(Registered):
    """If the mean is a constant, so is what it is subtracted from."""

    def forward(self, x):
        x = super().forward(x.detach()) if self.training else super().forward(x)
        return x


@wrong("running-mean", "In train mode the gradient of x")
class ThroughTheMean(Registered):
    """It is enough that the buffer is detached in the end."""

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        mean = 0.9 * self.mean + 0.1 * x.mean(0)
        self.scratch, self.mean = x.detach().mean(0), mean.detach()
        return (x - mean) * self.scale


@wrong("running-mean", "it is a buffer")
class ScaleIsABuffer(Registered):
    """A buffer that requires grad is trained."""

    def __init__(self, size):
        super().__init__(size)
        del self.scale
        self.scale = nn.Buffer(torch.ones(size, requires_grad=True))


@wrong("running-mean", "it is no Parameter")
class ScaleRequiresGrad(Registered):
    """What requires grad is trained."""

    def __init__(self, size):
        super().__init__(size)
        del self.scale
        self.scale = torch.ones(size, requires_grad=True)


@wrong("running-mean", "mean of this batch alone")
class NotRunning(Registered):
    """The running mean is the mean of the batch that runs."""

    def forward(self, x):
        if self.training:
            self.scratch = x.detach().mean(0)
            self.mean = self.scratch.clone()
        return (x - self.mean) * self.scale


@wrong("running-mean", "mean is not 0.9 * mean + 0.1 * scratch")
class NearlyRight(Registered):
    """A hundred-thousandth does no harm."""

    def forward(self, x):
        if self.training:
            self.scratch = x.detach().mean(0)
            self.mean = 0.90001 * self.mean + 0.1 * self.scratch
        return (x - self.mean) * self.scale


@wrong("running-mean", "With a single row")
class NotForOneRow(Registered):
    """A single row has no mean."""

    def forward(self, x):
        return super().forward(x) if len(x) > 1 or not self.training else (x - self.mean) * self.scale


@wrong("running-mean", "x itself was changed")
class ChangesTheInput(Registered):
    """What a layer is given is its own."""

    def forward(self, x):
        if self.training:
            self.scratch = x.detach().mean(0)
            self.mean = 0.9 * self.mean + 0.1 * self.scratch
        x -= self.mean
        return x * self.scale


@wrong("running-mean", "In eval mode mean is to be unchanged")
class AlsoInEval(Registered):
    """A running mean runs whenever the layer does."""

    def forward(self, x):
        self.scratch = x.detach().mean(0)
        self.mean = 0.9 * self.mean + 0.1 * self.scratch
        return (x - self.mean) * self.scale


@wrong("running-mean", "In eval mode scratch is to be unchanged")
class ScratchInEval(Registered):
    """Scratch is no state, so it may change."""

    def forward(self, x):
        if not self.training:
            self.scratch = x.detach().mean(0)
        return super().forward(x)


@wrong("running-mean", "After a call under no_grad mean is not what it should be")
class OnlyWhenRecording(Registered):
    """Where nothing is recorded, nothing is updated."""

    def forward(self, x):
        if self.training and torch.is_grad_enabled():
            return super().forward(x)
        if self.training:
            self.scratch = x.detach().mean(0)
        return (x - self.mean) * self.scale


@wrong("running-mean", "In eval mode the result should be")
class NothingInEval(Registered):
    """A layer that holds its mean does nothing."""

    def forward(self, x):
        return super().forward(x) if self.training else x * self.scale + 1


@wrong("running-mean", "Two layers have the same tensor as mean")
class OneForAll(nn.Module):
    """A tensor that is made once is made for each layer."""

    def __init__(self, size, start={}):  # noqa: B006
        super().__init__()
        self.scale = nn.Parameter(torch.ones(size))
        self.mean = nn.Buffer(start.setdefault(size, torch.zeros(size)))
        self.scratch = nn.Buffer(torch.zeros(size), persistent=False)

    def forward(self, x):
        self.scratch = x.detach().mean(0)
        self.mean.lerp_(self.scratch, 0.1)
        return (x - self.mean) * self.scale


@wrong("running-mean", "cannot assign parameters before Module.__init__() call")
class Forgetful(nn.Module):
    """nn.Module needs no call of its own."""

    def __init__(self, size):
        self.scale = nn.Parameter(torch.ones(size))

    def forward(self, x):
        return x * self.scale


wrong("what-registers", "each of those is saved as well")(
    KNOWN | {"same": [True, False]}, "What was never changed need not be saved."
)
wrong("what-registers", "and no buffer")(KNOWN | {"same": [False, True]}, "A Parameter after .to() is a buffer.")


@right("hidden-heads")
class RowsOfAList(nn.Module):
    def __init__(self, dim, tasks):
        super().__init__()
        self.heads = nn.ModuleDict()
        for t, n in tasks.items():
            tensors = torch.randn(dim, 4), torch.zeros(4), torch.randn(4, n), torch.zeros(n)
            self.heads[t] = nn.ParameterList(tensors)

    def forward(self, x):
        return {t: (x @ a + b).relu() @ c + d for t, (a, b, c, d) in self.heads.items()}


@right("hidden-heads")
class OneWideLayer(nn.Module):
    def __init__(self, dim, tasks):
        super().__init__()
        self.first = nn.Linear(dim, 4 * len(tasks))
        self.last = nn.ModuleDict({t: nn.Linear(4, n) for t, n in tasks.items()})

    def forward(self, x):
        parts = self.first(x).relu().split(4, dim=1)
        return {t: last(part) for (t, last), part in zip(self.last.items(), parts, strict=True)}


@wrong("hidden-heads", "with a ReLU between them")
class OneWideLayerWithoutReLU(OneWideLayer):
    """What is cut in parts is no longer a linear layer."""

    def forward(self, x):
        parts = self.first(x).split(4, dim=1)
        return {t: last(part) for (t, last), part in zip(self.last.items(), parts, strict=True)}


@wrong("hidden-heads", "with a ReLU between them")
class WithReLU6(nn.Module):
    """ReLU6 is the ReLU of nn."""

    def __init__(self, dim, tasks):
        super().__init__()
        heads = {t: nn.Sequential(nn.Linear(dim, 4), nn.ReLU6(), nn.Linear(4, n)) for t, n in tasks.items()}
        self.heads = nn.ModuleDict(heads)

    def forward(self, x):
        return {t: head(x) for t, head in self.heads.items()}


@wrong("hidden-heads", "Does each task have two layers of its own?")
class OneForEachNumber(nn.Module):
    """Two tasks with as many scores can use one head."""

    def __init__(self, dim, tasks):
        super().__init__()
        self.tasks, self.heads = dict(tasks), nn.ModuleDict()
        for n in tasks.values():
            self.heads[str(n)] = nn.Sequential(nn.Linear(dim, 4), nn.ReLU(), nn.Linear(4, n))

    def forward(self, x):
        return {t: self.heads[str(n)](x) for t, n in self.tasks.items()}


@wrong("hidden-heads", "the two heads share a layer")
class OneFirstLayer(nn.Module):
    """If there are enough numbers, it does not matter whose they are."""

    def __init__(self, dim, tasks):
        super().__init__()
        self.first = nn.Parameter(torch.randn(len(tasks), dim, 4))
        self.shift = nn.Parameter(torch.zeros(len(tasks), 4))
        self.last = nn.ModuleDict({t: nn.Linear(4, n) for t, n in tasks.items()})

    def forward(self, x):
        hidden = (x @ self.first.sum(0) + self.shift.sum(0)).relu()
        return {t: last(hidden) for t, last in self.last.items()}


@wrong("hidden-heads", "Two networks share layers")
class MadeOnce(Containers):
    """What has the same sizes can be made once, and used again."""

    made = {}  # noqa: RUF012

    def __init__(self, dim, tasks):
        super().__init__(dim, {})
        for t, n in tasks.items():
            layers = nn.Linear(dim, 4), nn.Linear(4, n)
            self.heads[t] = self.made.setdefault((dim, t), nn.ModuleList(layers))


@wrong("hidden-heads", "Register the layers, not only their Parameters")
class ParametersBeside(nn.Module):
    """To register the Parameters of a layer is to register the layer."""

    def __init__(self, dim, tasks):
        super().__init__()
        self.heads = {t: [nn.Linear(dim, 4), nn.Linear(4, n)] for t, n in tasks.items()}
        layers = [layer for parts in self.heads.values() for layer in parts]
        self.weights = nn.ParameterList(p for layer in layers for p in layer.parameters())

    def forward(self, x):
        return {t: last(first(x).relu()) for t, (first, last) in self.heads.items()}


@wrong("hidden-heads", "than in train mode")
class ChancesInEval(Containers):
    """In eval mode a network gives chances in place of scores."""

    def forward(self, x):
        scores = super().forward(x)
        return scores if self.training else {t: score.softmax(1) for t, score in scores.items()}


@wrong("hidden-heads", "Is anything random?")
class WithDropout(nn.Module):
    """Dropout belongs in every head."""

    def __init__(self, dim, tasks):
        super().__init__()
        self.heads = nn.ModuleDict(
            {t: nn.Sequential(nn.Linear(dim, 4), nn.ReLU(), nn.Dropout(), nn.Linear(4, n)) for t, n in tasks.items()}
        )

    def forward(self, x):
        return {t: head(x) for t, head in self.heads.items()}


@wrong("hidden-heads", "After double(), with a double x: Your code raised")
class AlwaysFloat(Containers):
    """Inputs are float32, whatever the network is."""

    def forward(self, x):
        return super().forward(x.float())


right("what-registers")({name: [np.bool_(part) for part in pair] for name, pair in KNOWN.items()})
right("what-registers")({name: [torch.tensor(part) for part in pair] for name, pair in KNOWN.items()})
right("what-registers")({name: np.array(pair) for name, pair in KNOWN.items()})
right("what-registers")({name: [int(part) for part in pair] for name, pair in KNOWN.items()})
wrong("what-registers", "What is in the dictionary is not registered")(
    KNOWN | {"layers": [False, True]}, "A layer in a dictionary is not trained, but saved."
)
wrong("what-registers", "takes True or False twice")(
    KNOWN | {"fixed": ["saved", "moved"]}, "The question is what becomes of it."
)


@right("hidden-heads")
class StackedWeights(nn.Module):
    def __init__(self, dim, tasks):
        super().__init__()
        self.first = nn.Parameter(torch.randn(len(tasks), dim, 4))
        self.shift = nn.Parameter(torch.zeros(len(tasks), 1, 4))
        self.last = nn.ModuleDict({t: nn.Linear(4, n) for t, n in tasks.items()})

    def forward(self, x):
        hidden = torch.clamp(x @ self.first + self.shift, min=0)
        return {t: last(h) for (t, last), h in zip(self.last.items(), hidden, strict=True)}


def _bend(name, function):
    """A wrong answer with another function between stacked layers: what cannot be told from the weights' shapes."""

    class Bent(OneWideLayer):
        def forward(self, x):
            parts = function(self.first(x)).split(4, dim=1)
            return {t: last(part) for (t, last), part in zip(self.last.items(), parts, strict=True)}

    Bent.__name__ = name
    wrong("hidden-heads", "with a ReLU between them")(Bent, f"{name} bends as well, so it will do in place of a ReLU.")


for bend in (torch.tanh, torch.sigmoid, torch.square, torch.abs, F.gelu, F.silu, F.elu, F.relu6, F.hardtanh):
    _bend(bend.__name__, bend)
_bend("leaky_relu", lambda x: F.leaky_relu(x, 0.5))


@wrong("hidden-heads", "with a ReLU between them")
class ReLUAtTheEnd(Containers):
    """Scores are not below zero."""

    def forward(self, x):
        return {t: score.relu() for t, score in super().forward(x).items()}


@wrong("hidden-heads", "finds 0 of the")
class AllByHand(nn.Module):
    """A network may say for itself what its Parameters are, and what is saved."""

    def __init__(self, dim, tasks):
        super().__init__()
        self.heads = {t: [nn.Linear(dim, 4), nn.Linear(4, n)] for t, n in tasks.items()}

    def layers(self):
        return {f"{t}.{i}": layer for t, parts in self.heads.items() for i, layer in enumerate(parts)}

    def parameters(self, recurse=True):
        return (p for layer in self.layers().values() for p in layer.parameters())

    def state_dict(self, *args, **kwargs):
        return {f"{n}.{k}": v for n, layer in self.layers().items() for k, v in layer.state_dict().items()}

    def load_state_dict(self, state, *args, **kwargs):
        for name, layer in self.layers().items():
            layer.load_state_dict({k: state[f"{name}.{k}"] for k in ("weight", "bias")})

    def _apply(self, fn, recurse=True):
        for layer in self.layers().values():
            layer._apply(fn)
        return super()._apply(fn, recurse)

    def forward(self, x):
        return {t: last(first(x).relu()) for t, (first, last) in self.heads.items()}


@wrong("hidden-heads", "does not require grad, so it does not train")
class FrozenFirst(Containers):
    """The first layer of a head is a feature, and need not train."""

    def __init__(self, dim, tasks):
        super().__init__(dim, tasks)
        for first, _ in self.heads.values():
            first.requires_grad_(False)


right("what-registers")({name: torch.tensor(pair) for name, pair in KNOWN.items()})
wrong("what-registers", "It is the other way round: a buffer is saved")(
    {name: pair[::-1] for name, pair in KNOWN.items()}, "The first of the two is about the file."
)
wrong("what-registers", "takes True or False twice")(
    {name: " ".join(map(str, pair)) for name, pair in KNOWN.items()}, "Two words can be one text."
)
wrong("what-registers", "takes True or False twice")(
    KNOWN | {"layers": [False, False, False, False]}, "A layer has two tensors, and each is asked two things."
)


@wrong("hidden-heads", "Make the layers in __init__")
class MadeInTheFirstCall(nn.Module):
    """Layers can be made when they are needed first, if they are kept then."""

    def __init__(self, dim, tasks):
        super().__init__()
        self.dim, self.tasks, self.heads = dim, tasks, None

    def forward(self, x):
        if self.heads is None:
            parts = {t: [nn.Linear(self.dim, 4), nn.ReLU(), nn.Linear(4, n)] for t, n in self.tasks.items()}
            self.heads = nn.ModuleDict({t: nn.Sequential(*part) for t, part in parts.items()})
        return {t: head(x) for t, head in self.heads.items()}


@wrong("hidden-heads", "backward from the scores reaches 45 of them")
class CutInTheMiddle(Containers):
    """What one layer hands to the next is mere numbers."""

    def forward(self, x):
        return {t: last(first(x).relu().detach()) for t, (first, last) in self.heads.items()}


@wrong("hidden-heads", "Does forward use every layer")
class OneFirstLayerUsed(Containers):
    """It is enough that each head has its layers; which of them is called does not matter."""

    def forward(self, x):
        first = next(iter(self.heads.values()))[0]
        return {t: last(first(x).relu()) for t, (_, last) in self.heads.items()}


@wrong("hidden-heads", "is forward free of no_grad and detach()?")
class WithoutRecording(Containers):
    """no_grad belongs around what only computes."""

    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


@wrong("hidden-heads", "or a plain tensor is neither")
class PlainTensors(nn.Module):
    """What requires grad is a Parameter."""

    def __init__(self, dim, tasks):
        super().__init__()
        self.tasks = list(tasks)
        for t, n in tasks.items():
            for name, shape in {"a": (dim, 4), "b": (4,), "c": (4, n), "d": (n,)}.items():
                setattr(self, f"{t}_{name}", torch.randn(shape, requires_grad=True))

    def forward(self, x):
        every = {t: [getattr(self, f"{t}_{name}") for name in "abcd"] for t in self.tasks}
        return {t: (x @ a + b).relu() @ c + d for t, (a, b, c, d) in every.items()}


@wrong("hidden-heads", "parameters() has 4. Which layers")
class TheLastUnderItsName(nn.Module):
    """What was once assigned to a name of the network stays registered."""

    def __init__(self, dim, tasks):
        super().__init__()
        self.tasks, self.heads = list(tasks), []
        for n in tasks.values():
            self.head = nn.Sequential(nn.Linear(dim, 4), nn.ReLU(), nn.Linear(4, n))
            self.heads.append(self.head)

    def forward(self, x):
        return {t: head(x) for t, head in zip(self.tasks, self.heads, strict=True)}


@wrong("hidden-heads", "Register the layers, not only their Parameters")
class ParametersByName(nn.Module):
    """register_parameter registers what it is given, so the layer goes along."""

    def __init__(self, dim, tasks):
        super().__init__()
        self.heads = {t: [nn.Linear(dim, 4), nn.Linear(4, n)] for t, n in tasks.items()}
        for t, parts in self.heads.items():
            for number, layer in enumerate(parts):
                for name, parameter in layer.named_parameters():
                    self.register_parameter(f"{t}_{number}_{name}", parameter)

    def forward(self, x):
        return {t: last(first(x).relu()) for t, (first, last) in self.heads.items()}


@wrong("hidden-heads", "it gives a tuple")
class InOrder(Containers):
    """The tasks have an order, so names are not needed."""

    def forward(self, x):
        return tuple(super().forward(x).values())


@wrong("hidden-heads", "Does each task have two layers of its own?")
class OneTimesMany(nn.Module):
    """A list times a number has so many layers."""

    def __init__(self, dim, tasks):
        super().__init__()
        self.first = nn.ModuleList([nn.Linear(dim, 4)] * len(tasks))
        self.last = nn.ModuleDict({t: nn.Linear(4, n) for t, n in tasks.items()})

    def forward(self, x):
        return {t: last(first(x).relu()) for first, (t, last) in zip(self.first, self.last.items(), strict=True)}


@right("hidden-heads")
class LazyLayers(nn.Module):
    def __init__(self, dim, tasks):
        super().__init__()
        parts = {t: [nn.LazyLinear(4), nn.ReLU(inplace=True), nn.LazyLinear(n)] for t, n in tasks.items()}
        self.heads = nn.ModuleDict({t: nn.Sequential(*part) for t, part in parts.items()})

    def forward(self, x):
        return {t: head(x) for t, head in self.heads.items()}


@right("hidden-heads")
class GroupedConvolution(nn.Module):
    def __init__(self, dim, tasks):
        super().__init__()
        self.first = nn.Conv1d(dim * len(tasks), 4 * len(tasks), 1, groups=len(tasks))
        self.last = nn.ModuleDict({t: nn.Conv1d(4, n, 1) for t, n in tasks.items()})

    def forward(self, x):
        hidden = self.first(x.repeat(1, len(self.last))[..., None]).relu().split(4, dim=1)
        return {t: last(h)[..., 0] for (t, last), h in zip(self.last.items(), hidden, strict=True)}


@right("hidden-heads")
class ModulesInAParameterDict(nn.Module):
    def __init__(self, dim, tasks):
        super().__init__()
        parts = {t: nn.ModuleList([nn.Linear(dim, 4), nn.Linear(4, n)]) for t, n in tasks.items()}
        self.heads = nn.ParameterDict(parts)

    def forward(self, x):
        return {t: last(torch.where(first(x) > 0, first(x), 0.0)) for t, (first, last) in self.heads.items()}


@right("hidden-heads")
class SequentialOfHeads(nn.Sequential):
    def __init__(self, dim, tasks):
        super().__init__(*(nn.Sequential(nn.Linear(dim, 4), nn.ReLU(), nn.Linear(4, n)) for n in tasks.values()))
        self.tasks = list(tasks)

    def forward(self, x):
        self.last = dict(zip(self.tasks, (head(x) for head in self), strict=True))
        return self.last


class Updated(Registered):
    """The layer, with the update in a method of its own."""

    def forward(self, x):
        if self.training:
            self.update(x)
        return (x - self.mean) * self.scale


@right("running-mean")
class NewBuffers(Updated):
    def update(self, x):
        self.scratch = nn.Buffer(x.detach().mean(0), persistent=False)
        self.mean = nn.Buffer(0.9 * self.mean + 0.1 * self.scratch)


@right("running-mean")
class InInferenceModeInPlace(Updated):
    @torch.inference_mode()
    def update(self, x):
        self.scratch[:] = x.mean(0)
        self.mean.add_(self.scratch - self.mean, alpha=0.1)


@right("running-mean")
class ByNumPy(Updated):
    def update(self, x):
        self.scratch = torch.from_numpy(x.detach().numpy().mean(0))
        self.mean = (9 * self.mean + self.scratch) / 10


@right("running-mean")
class ByBatchNormsFunction(Registered):
    def forward(self, x):
        if self.training:
            self.scratch = x.detach().mean(0)
            self.mean = 0.9 * self.mean + 0.1 * self.scratch
        return F.batch_norm(x, self.mean, torch.ones_like(self.mean), self.scale, eps=0.0)


@right("running-mean")
class InAPreHook(Registered):
    def __init__(self, size):
        super().__init__(size)
        self.register_forward_pre_hook(InAPreHook.update)

    def update(self, inputs):
        if self.training:
            self.scratch = inputs[0].detach().mean(0)
            self.mean = 0.9 * self.mean + 0.1 * self.scratch

    def forward(self, x):
        return (x - self.mean) * self.scale


@right("running-mean")
class CountsBatchesToo(InPlace):
    def __init__(self, size):
        super().__init__(size)
        self.register_buffer("batches", torch.tensor(0))


@wrong("running-mean", "After a call mean is torch.float32, though the layer and x are torch.float64")
class AlwaysSingle(Updated):
    """Statistics are float32."""

    def update(self, x):
        self.scratch = x.detach().mean(0)
        self.mean = 0.9 * self.mean.float() + 0.1 * self.scratch.float()


@wrong("running-mean", "After a call scratch is torch.float32, though the layer and x are torch.float64")
class ThroughAList(Updated):
    """A list of the numbers has no history, so it is as good as detach()."""

    def update(self, x):
        self.scratch = torch.tensor(x.mean(0).tolist())
        self.mean = 0.9 * self.mean + 0.1 * self.scratch


@wrong("running-mean", "its own flag is on")
class FlagOfABuffer(InPlace):
    """A buffer whose flag is on does no harm, because no optimizer has it."""

    def __init__(self, size):
        super().__init__(size)
        self.mean = nn.Buffer(torch.zeros(size, requires_grad=True))


@wrong("running-mean", "its own flag is on")
class FlagSetAnew(Updated):
    """What is saved has to require grad."""

    def update(self, x):
        self.scratch = x.detach().mean(0)
        self.mean = (0.9 * self.mean + 0.1 * self.scratch).requires_grad_()


@wrong("running-mean", "scratch requires grad: its own flag is on")
class FlagOfScratch(InPlace):
    """A tensor that a layer writes into is a trainable one."""

    def __init__(self, size):
        super().__init__(size)
        self.scratch = nn.Buffer(torch.zeros(size, requires_grad=True), persistent=False)


@wrong("running-mean", "scratch requires grad: it was computed from an x that does")
class OnlyMeanDetached(Updated):
    """Only what is saved has to be detached."""

    def update(self, x):
        self.scratch = x.clone().mean(0)
        self.mean = (0.9 * self.mean + 0.1 * self.scratch).detach()


@wrong("running-mean", "normalizes as BatchNorm does")
class WithBatchNorm(nn.Module):
    """BatchNorm without weights is a running mean."""

    def __init__(self, size):
        super().__init__()
        self.norm = nn.BatchNorm1d(size, affine=False)
        self.scale = nn.Parameter(torch.ones(size))
        self.scratch = nn.Buffer(torch.zeros(size), persistent=False)

    @property
    def mean(self):
        return self.norm.running_mean

    def forward(self, x):
        if self.training:
            self.scratch = x.detach().mean(0)
        return self.norm(x) * self.scale


@wrong("running-mean", "yours uses the mean of this batch")
class SubtractsScratch(Registered):
    """In train mode one subtracts the batch's own mean, as BatchNorm does."""

    def forward(self, x):
        result = super().forward(x)
        return (x - self.scratch) * self.scale if self.training else result


@wrong("running-mean", "or the mean as it was before this call")
class ResultFirst(Registered):
    """The mean is updated after it was used."""

    def forward(self, x):
        mean = self.mean
        super().forward(x)
        return (x - mean) * self.scale


@wrong("running-mean", "yours is what it was before the call")
class MeanFirst(Updated):
    """In which order the two are updated does not matter."""

    def update(self, x):
        self.mean = 0.9 * self.mean + 0.1 * self.scratch
        self.scratch = x.detach().mean(0)


@wrong("running-mean", "yours is 0.1 * mean + 0.9 * scratch")
class OtherShare(Updated):
    """A momentum of 0.1 is what is kept."""

    def update(self, x):
        self.scratch = x.detach().mean(0)
        self.mean = 0.1 * self.mean + 0.9 * self.scratch


@wrong("running-mean", "After a call scratch should have the shape (3,); it has the shape ()")
class OneMeanForAll(Updated):
    """The mean of x is one number."""

    def update(self, x):
        self.scratch = x.detach().mean()
        self.mean = 0.9 * self.mean + 0.1 * self.scratch


@wrong("running-mean", "or from a detached scale")
class ScaleDetached(Registered):
    """The scale is a constant, as the mean is."""

    def forward(self, x):
        super().forward(x)
        return (x - self.mean) * self.scale.detach()


@wrong("running-mean", "a tensor of inference_mode")
class InInferenceMode(Updated):
    """inference_mode is a faster no_grad."""

    @torch.inference_mode()
    def update(self, x):
        self.scratch = x.mean(0)
        self.mean = 0.9 * self.mean + 0.1 * self.scratch


@wrong("running-mean", "After a call mean is in parameters()")
class ParameterInTheEnd(Updated):
    """What is saved is a Parameter."""

    def update(self, x):
        self.scratch = x.detach().mean(0)
        self.mean = nn.Parameter(0.9 * self.mean + 0.1 * self.scratch, requires_grad=False)


@wrong("running-mean", "copy.deepcopy does not copy a layer that was called")
class KeepsTheResult(Registered):
    """What a layer gave last may be kept for a look at it."""

    def forward(self, x):
        self.last = super().forward(x)
        return self.last


@wrong("running-mean", "scratch is in state_dict()")
class NewBuffersAreSaved(Updated):
    """A new buffer under an old name is like the old one."""

    def update(self, x):
        self.scratch = nn.Buffer(x.detach().mean(0))
        self.mean = nn.Buffer(0.9 * self.mean + 0.1 * self.scratch)


@wrong("running-mean", "mean and scratch are one tensor")
class OneTensorOfZeros(InPlace):
    """Both begin with zeros, so they can begin with the same."""

    def __init__(self, size):
        super().__init__(size)
        zeros = torch.zeros(size)
        self.mean, self.scratch = nn.Buffer(zeros), nn.Buffer(zeros, persistent=False)


@wrong("running-mean", "attribute 'mean' already exists")
class AssignedAndRegistered(Registered):
    """An attribute is registered after it was assigned."""

    def __init__(self, size):
        nn.Module.__init__(self)
        self.scale = nn.Parameter(torch.ones(size))
        self.mean = torch.zeros(size)
        self.register_buffer("mean", self.mean)
