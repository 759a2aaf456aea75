"""Answers to the exercises of the lesson on parameters."""

import copy

import torch
from torch import nn

from tests.exercises import Answers

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
wrong("what-registers", "A frozen Parameter is still one")(
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
wrong("what-registers", "who knows it?")(
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


@wrong("hidden-heads", "is not of nn")
class AsItWas(nn.Module):
    """What a layer in the network needs is to be an attribute, in whatever it is kept."""

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


@wrong("hidden-heads", "modules of the inner containers")
class OnlyInside(nn.Module):
    """It is enough that the layers are in a ModuleList, wherever that is kept."""

    def __init__(self, dim, tasks):
        super().__init__()
        self.heads = {t: nn.ModuleList([nn.Linear(dim, 4), nn.Linear(4, n)]) for t, n in tasks.items()}

    def forward(self, x):
        return {t: last(first(x).relu()) for t, (first, last) in self.heads.items()}


@wrong("hidden-heads", "parameters() has 4. Which layers")
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


@wrong("hidden-heads", "gives other scores: there are 0 entries")
class OnlyTrained(nn.Module):
    """What parameters() gives is all that is asked of a network."""

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
        self.scratch = torch.mean(x, 0).detach()
        self.mean = (self.mean * 0.9 + self.scratch * 0.1).detach()
        return torch.einsum("rs,s->rs", x - self.mean, self.scale)


@right("running-mean")
class Parametrized(Registered):
    def __init__(self, size):
        super().__init__(size)
        nn.utils.parametrize.register_parametrization(self, "scale", nn.Identity())


@wrong("running-mean", "one requires_grad_(True) on the layer")
class FrozenParameter(nn.Module):
    """A frozen Parameter is a buffer."""

    def __init__(self, size):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(size))
        self.mean = nn.Parameter(torch.zeros(size), requires_grad=False)
        self.scratch = nn.Buffer(torch.zeros(size), persistent=False)

    def forward(self, x):
        with torch.no_grad():
            self.scratch.copy_(x.mean(0))
            self.mean.lerp_(self.scratch, 0.1)
        return (x - self.mean) * self.scale


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


@wrong("running-mean", "a history that grows with every batch")
class Recorded(Registered):
    """A buffer is never recorded."""

    def forward(self, x):
        self.scratch = x.mean(0)
        self.mean = 0.9 * self.mean + 0.1 * self.scratch
        return (x - self.mean) * self.scale


@wrong("running-mean", "computed under no_grad")
class NothingRecorded(Registered):
    """no_grad holds the mean, and leaves the rest as it is."""

    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


@wrong("running-mean", "a buffer is not trained")
class ScaleIsABuffer(Registered):
    """A buffer that asks for a gradient is trained."""

    def __init__(self, size):
        super().__init__(size)
        del self.scale
        self.scale = nn.Buffer(torch.ones(size, requires_grad=True))


@wrong("running-mean", "only a Parameter is trained")
class ScaleAsks(Registered):
    """What asks for a gradient is trained."""

    def __init__(self, size):
        super().__init__(size)
        del self.scale
        self.scale = torch.ones(size, requires_grad=True)


@wrong("running-mean", "mean of this batch alone")
class NotRunning(Registered):
    """The running mean is the mean of the batch that runs."""

    def forward(self, x):
        self.mean = self.scratch = x.detach().mean(0)
        return (x - self.mean) * self.scale


@wrong("running-mean", "x itself was changed")
class ChangesTheInput(Registered):
    """What a layer is given is its own."""

    def forward(self, x):
        self.scratch = x.detach().mean(0)
        self.mean = 0.9 * self.mean + 0.1 * self.scratch
        x -= self.mean
        return x * self.scale


@wrong("running-mean", "in eval mode mean is not what it should be: that is what it was before the call")
class OnlyInTraining(Registered):
    """A running mean stands still in eval mode by itself, so every layer has to see to it."""

    def forward(self, x):
        if self.training:
            return super().forward(x)
        self.scratch = x.detach().mean(0)
        return (x - self.mean) * self.scale


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
