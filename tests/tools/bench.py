"""What helpers costs, and what each way of freezing does: ``make bench``, or ``python -m tests.tools.bench``.

Times are CPU time on one thread, the least of several rounds in which the works take turns, so that other programs
count little. The other libraries come with the extra ``bench``.
"""

import copy
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections import OrderedDict
from functools import partial

import matplotlib
import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torchvision.models import resnet18

from helpers import audit, cache_features, draw, freeze, graph, parameters, saved_tensors, unfreeze, watch

LAYERS = (100, 1_000, 10_000)
HEAVY = {"torchvision", "matplotlib", "networkx", "IPython"}


def least(*works, rounds):
    """The least seconds that each of ``works`` takes."""
    best = [float("inf")] * len(works)
    for _ in range(rounds):
        for index, work in enumerate(works):
            start = time.process_time()
            work()
            best[index] = min(best[index], time.process_time() - start)
    return best


def show(head, rows, foot=""):
    """Print a table; a row that is shorter than the head ends in a sentence of any length."""
    full = [head, *(row if len(row) == len(head) else [row[0], *[""] * (len(head) - 1)] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*full, strict=True)]
    for row in (head, *rows):
        print("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=False)).rstrip())
    print(foot)


def ms(seconds):
    return f"{seconds * 1e3:.3g} ms"


def reason(error):
    missing = f"not installed: {getattr(error, 'name', None)}"
    return missing if isinstance(error, ModuleNotFoundError) else f"{type(error).__name__}: {error}".splitlines()[0]


def promises():
    """Rows of a ratio, its bound, and the two times."""
    model, image = resnet18(), torch.rand(1, 3, 224, 224)
    output = model(image)

    def picture():
        draw(graph(output, model), by="module")
        plt.close()

    def observed():
        with saved_tensors(model):
            model(image)

    works = [lambda: str(parameters(model)), lambda: graph(output, model), picture, observed]
    forward, report, alone, drawn, inside = least(lambda: model(image), *works, rounds=30)
    rows = [
        importing(),
        ("str(parameters(model)) / forward", report, forward, 0.03),
        ("graph / forward", alone, forward, 1),
        ("graph and draw / forward", drawn, forward, 1),
        ("forward in saved_tensors / forward", inside, forward, 1.1),
        head_step(),
    ]
    for name, own, other, bound in rows:
        yield name, f"{own / other:.4f}", f"{bound:g}", "ok" if own / other <= bound else "OVER", ms(own), ms(other)


def importing():
    """``import helpers`` beside the ``import torch`` in it, in fresh interpreters."""
    code = """if True:
        import sys, time
        times = [time.process_time()]
        for name in ("torch", "helpers"):
            __import__(name)
            times.append(time.process_time())
        print(times[1] - times[0], times[2] - times[0], *sys.modules)"""
    runs = []
    for _ in range(3):
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        alone, both, *modules = run.stdout.split()
        runs.append((float(both) / float(alone), float(both), float(alone)))
    heavy = ", ".join(sorted(HEAVY.intersection(modules))) or "nothing heavy"
    return f"import helpers (brings {heavy}) / import torch", *statistics.median_low(runs)[1:], 1.05


def head_step(batch=16, times=20):
    """A step of a head on cached features, beside one of the same head behind the frozen backbone."""
    model, images, labels = resnet18(), torch.rand(batch, 3, 64, 64), torch.arange(batch)
    head, model.fc = nn.Linear(512, 100), nn.Identity()
    freeze(model)
    features, _ = cache_features(model, [(images, labels)]).tensors
    optimizer = torch.optim.SGD(head.parameters(), lr=0.01)

    def step(inputs):
        optimizer.zero_grad()
        cross_entropy(head(inputs), labels).backward()
        optimizer.step()

    cached, behind = least(lambda: [step(features) for _ in range(times)], lambda: step(model(images)), rounds=10)
    return "head step on cached features / behind the backbone", cached / times, behind, 0.01


def tools():
    """Rows of what it takes to report on a model and its graph, and whether the text names a frozen parameter."""
    model, image = resnet18(), torch.rand(1, 3, 224, 224)
    model.layer1.requires_grad_(False)
    output = model(image)

    def torchinfo(**data):
        from torchinfo import summary

        settings = {"col_names": ["num_params", "trainable"], "row_settings": ["var_names"], "depth": 9, "verbose": 0}
        return str(summary(model, **settings, **data))

    def torchviz():
        from torchviz import make_dot

        return make_dot(output, params=dict(model.named_parameters()), show_saved=True).source

    works = {
        "helpers.parameters": lambda: str(parameters(model)),
        "torchinfo.summary": torchinfo,
        "torchinfo.summary, with an input": lambda: torchinfo(input_size=image.shape),
        "helpers.graph": lambda: str(graph(output, model).nodes(data=True)),
        "torchviz.make_dot": torchviz,
    }
    signs = {"layer1.0.conv1.weight": "yes", "False": "its layer", "": "no"}
    for name, work in works.items():
        try:
            text = work()
            yield name, ms(*least(work, rounds=5)), next(answer for sign, answer in signs.items() if sign in text)
        except Exception as error:
            yield name, reason(error)


def growth():
    """Rows of microseconds a layer, for models of as many Linear layers in a row."""
    rows = {}
    for count in LAYERS:
        for name, seconds in layers(count):
            rows.setdefault(name, []).append(seconds / count * 1e6)
    return [(name, *(f"{each:.0f}" for each in times), f"{times[-1] / times[0]:.1f}") for name, times in rows.items()]


def layers(count):
    model = nn.Sequential(*(nn.Linear(1, 1) for _ in range(count)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    output = model(torch.ones(1, 1))

    def watched():
        with watch(model):
            pass

    works = {
        "str(parameters(model, optimizer))": lambda: str(parameters(model, optimizer)),
        "audit(model, optimizer)": lambda: audit(model, optimizer),
        "graph(output, model)": lambda: graph(output, model),
        "watch(model)": watched,
        "freeze(model), unfreeze(model)": lambda: (freeze(model), unfreeze(model)),
    }
    return zip(works, least(*works.values(), rounds=3), strict=True)


def giant():
    """A line on 70 billion parameters without memory: 80 blocks and the embeddings of a well-known language model."""
    shapes = [(8192, 8192)] * 2 + [(8192, 1024)] * 2 + [(8192, 28672)] * 2 + [(28672, 8192)]
    with torch.device("meta"):
        blocks = [nn.Sequential(*(nn.Linear(*shape, bias=False) for shape in shapes)) for _ in range(80)]
        model = nn.Sequential(nn.Embedding(128_256, 8192), *blocks, nn.Linear(8192, 128_256, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (seconds,) = least(lambda: (str(parameters(model, optimizer)), audit(model, optimizer)), rounds=1)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024  # from KiB
    total = parameters(model).total / 1e9
    return f"report and audit of {total:.1f} billion parameters on meta: {ms(seconds)}, peak memory +{grown:.1f} MiB\n"


def small():
    """Norm layers that ResNet-18 does not have."""
    layers = [nn.Conv1d(1, 4, 3), nn.InstanceNorm1d(4, affine=True, track_running_stats=True), nn.Conv1d(4, 4, 3)]
    backbone = nn.Sequential(*layers, nn.BatchNorm1d(4, affine=False), nn.ReLU(), nn.Flatten())
    return nn.Sequential(OrderedDict(backbone=backbone, fc=nn.Linear(16, 3)))


# Each way freezes ``body``, which is all of ``model`` but its head, and gives its library's undo.


def ours(model, body):
    freeze(body)
    return lambda: unfreeze(body)


def flags(model, body):
    body.requires_grad_(False)
    return lambda: body.requires_grad_(True)


def flags_and_eval(model, body):
    body.requires_grad_(False).eval()
    return lambda: body.requires_grad_(True).train()


def lightning(model, body, train_bn=True):
    from lightning.pytorch.callbacks import BaseFinetuning

    BaseFinetuning.freeze(body, train_bn=train_bn)
    return lambda: BaseFinetuning.make_trainable(body)


def fastai(model, body):
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner

    groups = [[*body.parameters()], [*model.fc.parameters()]]
    learner = Learner(DataLoaders([], []), model, loss_func=cross_entropy, splitter=lambda _: groups)
    learner.freeze()
    return learner.unfreeze


def timm(model, body):
    from timm import utils

    names = [name for name, _ in model.named_children() if name != "fc"]
    utils.freeze(model, names)
    return lambda: utils.unfreeze(model, names)


WAYS = {
    "helpers.freeze": ours,
    "requires_grad_(False)": flags,
    "the same, and eval() once": flags_and_eval,
    "lightning": lightning,
    "lightning, train_bn=False": partial(lightning, train_bn=False),
    "fastai": fastai,
    "timm": timm,
}


def apply(way, model):
    return way(model, nn.ModuleList(part for name, part in model.named_children() if name != "fc"))


def moved(model, inputs):
    """How many entries of the state_dict three steps move, and of how many, the head's aside."""
    model.train()
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.1)
    before = copy.deepcopy(model.state_dict())
    for _ in range(3):
        optimizer.zero_grad()
        cross_entropy(model(inputs), torch.zeros(len(inputs), dtype=torch.long)).backward()
        optimizer.step()
    after = model.state_dict()
    same = [torch.equal(before[name], after[name]) for name in before if not name.startswith("fc.")]
    return f"{same.count(False)} of {len(same)}"


def steady(model, inputs):
    """Whether an input gives the same in another batch, in train mode."""
    with torch.no_grad():
        return torch.allclose(model.train()(inputs)[:2], model(inputs[:2]), rtol=1e-3, atol=1e-3)


def facts(model):
    parts = [*model.modules()]
    return {
        "parameters": set(model.parameters()),
        "keys": [*model.state_dict()],
        "types": [type(part) for part in parts],
        "settings": [[getattr(part, name, None) for name in getattr(part, "__constants__", ())] for part in parts],
        "modes": [part.training for part in parts],
        "flags": [parameter.requires_grad for parameter in model.parameters()],
    }


def freezing():
    """Rows of what each of ``WAYS`` does to ResNet-18 and to the small net."""
    torch.manual_seed(0)
    images, signals = torch.rand(8, 3, 64, 64), torch.rand(8, 1, 8)
    for name, way in WAYS.items():
        model, little = resnet18(), small()
        # Already as it will be: an exact undo leaves them so.
        model.conv1.requires_grad_(False)
        model.bn1.eval()
        copies = [copy.deepcopy(model) for _ in range(5)]
        before = facts(model)
        try:
            seconds = min(*least(*(partial(apply, way, each) for each in copies), rounds=1))
            apply(way, little)
            undo = apply(way, model)
            frozen, twin = facts(model), copy.deepcopy(model)
            undo()
        except Exception as error:
            yield name, reason(error)
            continue
        undone, count = facts(model), moved(copies[0], images)
        yield (
            name,
            count,
            moved(little, signals),
            "yes" if steady(copies[0], images) else "no",
            ", ".join(fact for fact in list(before)[:4] if frozen[fact] != before[fact]) or "nothing else",
            "yes" if moved(twin, images) == count else "no",
            ", ".join(fact for fact in before if undone[fact] != before[fact]) or "exact",
            ms(seconds),
        )


def main():
    torch.set_num_threads(1)
    matplotlib.use("Agg")
    warnings.simplefilter("ignore")
    large = giant()  # before anything else has raised the peak of memory
    show(["ResNet-18, one image of 224x224", "ratio", "bound", "", "own", "other"], [*promises()])
    show(["ResNet-18", "time", "names a frozen parameter"], [*tools()])
    foot = "Above 1: Python's garbage collector, which looks through all objects of a large model again and again.\n"
    head = ["microseconds a layer", *(f"{count:,} layers" for count in LAYERS), "last / first"]
    show(head, growth(), foot + large)
    # Last, because some of these libraries change torch's classes when they are imported.
    head = ["way to freeze", "moves, ResNet-18", "small net", "steady", "changes", "deepcopy", "undo", "time"]
    foot = """\
moves: entries of the state_dict, the head's aside, that 3 steps move after freezing all but the head and model.train();
the small net has InstanceNorm, and BatchNorm without parameters. steady: an input gives the same in any batch. changes:
besides flags and modes. deepcopy: a copy moves as much. undo: what it leaves changed, where conv1 was already frozen
and bn1 in eval mode."""
    show(head, [*freezing()], foot)


if __name__ == "__main__":
    main()
