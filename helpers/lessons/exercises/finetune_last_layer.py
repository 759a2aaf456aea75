"""The exercises and predictions of the lesson on fine-tuning the last layer."""

import copy
import re
from functools import partial

import torch
from torch import nn
from torch.utils.data import TensorDataset

from helpers import freeze, watch
from helpers.lessons import digits
from helpers.lessons.exercises import Lesson, NotYet, kind, raises, run, table

lesson = Lesson()
check, predict, progress = lesson.check, lesson.predict, lesson.progress

lesson.prediction(
    "still",
    {
        0: "The head was trained: its two entries at least have changed. Look which others did.",
        2: "Those two the optimizer moved. The others moved in the forward pass: look at their names.",
        26: "Each of the 12 BatchNorm layers has three entries that move: the count of batches is one, too.",
        36: "Those are the entries of the BatchNorm layers. The head was trained as well.",
        74: "The weights of the frozen layers stood still: look which names are not among those that moved.",
        12: "One entry for each BatchNorm layer? Each has three that move, and the head was trained too.",
    },
    otherwise="Three entries of each of the 12 BatchNorm layers move, and the two of the head that was trained.",
)
lesson.prediction(
    "no-grad",
    {
        0: "no_grad switches off what is recorded for backward. The statistics move without backward.",
        2: "Nothing trained the head here: look which entries a forward pass alone changes.",
        24: "The count of batches is an entry as well: three for each of the 12 layers.",
        38: "Without a backward and a step the head stands still: only a forward pass was run.",
        12: "One entry for each BatchNorm layer? Each has three: mean, variance and count of batches.",
    },
    otherwise="Only a forward pass was run: look which entries of the 12 BatchNorm layers it changes.",
)
lesson.prediction(
    "mend",
    {
        0: "eval() switches off no gradient. The head got its own, and the optimizer moved it.",
        36: "In eval mode a BatchNorm layer reads its statistics and does not write them; the head is trained.",
        38: "The mode decides whether the statistics move, and this one word was changed.",
    },
    otherwise="In eval mode no statistics move; the optimizer moves what the head has.",
)
lesson.prediction(
    "audit",
    {
        (True, True): "An optimizer keeps the parameters that it was given. Which head was there when it was built?",
        (False, False): "The new head asks for a gradient and the loss is computed from it, so it gets one.",
        (False, True): "It is the other way round: the gradient comes from backward, the move from the optimizer.",
    },
)
lesson.prediction(
    "runs",
    {
        (True, True): "The frozen features were made for other digits: with many images, own ones are better.",
        (False, False): "With 25 images a whole network is hard to train; a head on ready features is easy.",
        (False, True): "It is the other way round: the more images, the less the ready features are worth.",
    },
)
lesson.prediction(
    "resnet-moves",
    {
        (2, 2): "Only fc was trained, but in train mode every BatchNorm layer moves its running statistics.",
        (62, 0): "Eval mode does not stop training: the two entries of fc move.",
        (60, 0): "You left out fc, which was trained both times.",
        (60, 2): "In train mode the two entries of fc moved as well, on top of the 60.",
        (62, 62): "Eval mode keeps the running statistics of every BatchNorm layer as they are.",
        (42, 2): "Three entries of each BatchNorm layer move: the count of batches is one, too.",
        (22, 2): "Of each BatchNorm layer not one entry moves but three: mean, variance and count of batches.",
        (122, 2): "No weight of the frozen layers moves: train mode is not what trains them.",
    },
    otherwise="20 BatchNorm layers with three entries each, in train mode only; and fc, which is trained each time.",
)

LOWEST = 0.65
"""The accuracy that a new head must reach; right solutions have 0.72 and more."""


@lesson.exercise(
    "which-entries-move",
    follows="An optimizer moves a parameter that it holds, if it finds a gradient. A forward pass in train mode moves "
    "running statistics. Ask both questions of every part that is meant to be frozen.",
)
def which_entries_move(answer):
    pretrained, images = digits.pretrained(), torch.rand(4, 1, 28, 28)

    def moves(row):
        recipe, entry = row.split(": ")
        model = copy.deepcopy(pretrained)
        old_head = model.fc
        if "freeze" in recipe:
            freeze(model)
        model.requires_grad_("flags last" in recipe)
        model.fc = nn.Linear(64, 5)
        if "flags last" in recipe:
            model.requires_grad_(False)
        held = model if "all" in recipe else old_head if "old" in recipe else model.fc
        optimizer = torch.optim.SGD(held.parameters(), lr=0.1, weight_decay=0.1 if "decay" in recipe else 0)
        for mode in re.findall(r"(train|eval)\(\)", recipe):
            getattr(model, mode)()
        with watch(model) as seen:
            nn.functional.cross_entropy(model(images), torch.arange(4)).backward()
            optimizer.step()
        return entry in seen.changed

    beliefs = {
        ("train(): bn1.weight", True): "The weight of a BatchNorm layer is a parameter: frozen, it gets no gradient.",
        ("train(): bn1.running_var", False): "No flag reaches a buffer: in train mode the forward pass moves it.",
        ("eval(): fc.weight", False): "Eval mode switches off no gradient: the head is trained in it, too.",
        ("eval(), then train(): bn1.running_mean", False): "train() reaches every layer and undoes the eval() before.",
        ("freeze, then train(): bn1.running_mean", True): "freeze() holds what it freezes in eval mode, whoever "
        "calls train().",
        ("old optimizer, eval(): fc.weight", True): "The optimizer was built before the new head, so it holds the old "
        "one.",
        ("all, decay, eval(): conv1.weight", True): "A frozen weight has no .grad, and what has none the optimizer "
        "skips, with its weight decay.",
        (
            "old optimizer, eval(): fc.weight",
            "raises",
        ): "An optimizer does not notice that what it holds is used no more.",
        ("all, decay, eval(): conv1.weight", "raises"): "SGD takes frozen parameters without an error, and skips them.",
        ("flags last, eval(): fc.weight", False): "The new head was frozen too, so nothing asks. Does backward() pass?",
        ("flags last, eval(): fc.weight", True): "The flags were turned off after the new head was there: it is frozen "
        "with the rest.",
    }
    rows = dict.fromkeys(row for row, _ in beliefs)
    table(answer, {row: raises(partial(moves, row)) for row in rows}, beliefs)


@lesson.exercise(
    "drifting-backbone",
    follows="Now the backbone gives an image the same features in training and later, alone and among others. Whoever "
    "shares it or has stored its features can go on.",
)
def drifting_backbone(answer):
    model = digits.pretrained().requires_grad_(False)
    model.fc = nn.Linear(64, 5)
    model.bn1.running_mean += 0.01  # not the network that digits.pretrained() gives once more
    # Dim images, as in the lesson: what they do to running statistics is plain.
    batches = [(0.3 * torch.rand(size, 1, 28, 28), torch.arange(size) % 5) for size in (6, 5, 4, 3)]
    started, handed = copy.deepcopy(model), copy.deepcopy(batches)
    run(answer, model, torch.optim.SGD(model.fc.parameters(), lr=0.1), batches)
    _same_data(batches, handed)
    _nothing_else_moved(model, started)
    head = dict(_head(model).named_parameters())
    if head.keys() != {"weight", "bias"}:
        raise NotYet("The head that was handed over is to be trained, and to be model.fc in the end as well.")
    for mode, epochs, reason in (
        (False, 2, ""),
        (
            True,
            2,
            "The entries of the backbone stand still. But the head learned from other features than it will be used "
            "with: the BatchNorm layers normalized by the batch at hand. momentum and track_running_stats change what "
            "a layer keeps; look for what makes it use what it has.",
        ),
        (False, 0, "The backbone stands still, and so does the head: it is to be trained."),
        (False, 1, "The backbone stands still, but the head has learned for one epoch of the two."),
    ):
        wanted = _trained_head(started, handed, mode, epochs)
        if all(torch.allclose(head[name], wanted[name], 1e-3, 1e-5) for name in wanted):
            if reason:
                raise NotYet(reason)
            return _same_features(model, started)
    raise NotYet(
        "The backbone stands still, but the head is not the one that two epochs give: one step of the optimizer that "
        "was handed over for each batch, in their order, on the features of the backbone in eval mode."
    )


@lesson.exercise(
    "head-for-new-digits",
    follows="A head, a hundred images and some steps: that is what a pretrained backbone is for. Since nothing else "
    "moved, the old head still reads the old digits on it.",
)
def head_for_new_digits(answer):
    model = digits.pretrained()
    train, test = digits.few(20, classes=(9, 8, 7, 6, 5), seed=1)
    old_head, started, handed = model.fc, copy.deepcopy(model), copy.deepcopy(train.tensors)
    given = run(answer, model, train)
    _same_data([train.tensors], [handed])
    _nothing_else_moved(model, started)
    before, now = started.fc.state_dict(), _head(model).state_dict()
    if before.keys() == now.keys() and all(torch.equal(before[name], now[name]) for name in now):
        if isinstance(given, nn.Module) and given is not model:
            raise NotYet("The model that was given is as it was. Change it, and not a copy of it.")
        raise NotYet("The model that was given still has its old head, and nothing moved.")
    if not all(torch.equal(before[name], value) for name, value in old_head.state_dict().items()):
        raise NotYet(
            "The old head was trained in place of a new one, and reads the old digits no more. Assign a new layer to "
            "model.fc, and train that."
        )
    if not all(torch.isfinite(value).all() for value in now.values()):
        raise NotYet("The head holds numbers that are not finite: the steps are too large, so take a smaller lr.")
    _same_features(model, started)
    run(model, test.tensors[0][:1])  # a head that does not fit is told in its own words
    order = torch.randperm(len(test))  # the images lie in the order of the digits
    reads = digits.accuracy(model, TensorDataset(*test[order]))
    told = f"it reads {round(reads * len(test))} of {len(test)} other images, and {LOWEST:.0%} are wanted"
    if reads < 0.35:
        raise NotYet(
            f"The model guesses: {told}. Either the head that is in the model now was not trained (an optimizer keeps "
            "the parameters that it was given when it was built), or the steps were few or small, or labels and "
            "scores do not fit."
        )
    if reads < LOWEST:
        raise NotYet(f"Nothing else moved. But {told}: take more steps, or others in size.")


def _same_data(batches, handed):
    pairs = [
        (new, old) for one, other in zip(batches, handed, strict=False) for new, old in zip(one, other, strict=True)
    ]
    if len(batches) != len(handed) or not all(torch.equal(new, old) for new, old in pairs):
        raise NotYet("The images or labels that were given have changed: work on copies of them.")


def _head(model):
    if not isinstance(head := getattr(model, "fc", None), nn.Module):
        raise NotYet(f"In the end model.fc is to be the trained head, and it is {kind(head)}: put the head back.")
    return head


def _moved_outside_head(model, started):
    """The entries that changed, came or went, but for those of ``fc``."""
    before, now = started.state_dict(), model.state_dict()
    names = [name for name in dict.fromkeys([*before, *now]) if not name.startswith("fc.")]
    if gone := [name for name in names if name not in before or name not in now]:
        raise NotYet(
            f"Entries of the state_dict came or went: {', '.join(gone[:3])}. Keep the layers of the backbone and their "
            "buffers."
        )
    return [name for name in names if not torch.equal(before[name], now[name])]


def _nothing_else_moved(model, started):
    moved = _moved_outside_head(model, started)
    _no_others_moved([name for name in moved if name.endswith(("weight", "bias"))])
    if any("running" in name or "num_batches" in name for name in moved):
        _tell_drift(model, moved)
    _no_others_moved(moved)


def _same_features(model, started):
    """A hook or a setting such as ``eps`` is in no entry, and changes the features all the same."""
    features = []
    for one in (model, started):
        twin = copy.deepcopy(one).eval()
        twin.fc = nn.Identity()
        with torch.no_grad():
            features.append(twin(torch.linspace(0, 1, 2 * 784).reshape(2, 1, 28, 28)))
    if features[0].shape != features[1].shape or not torch.allclose(*features, 1e-4, 1e-6):
        raise NotYet("No entry moved, but the backbone gives other features: a setting or a hook was left in it.")


def _tell_drift(model, moved):
    if all(name.endswith("num_batches_tracked") for name in moved):
        raise NotYet(
            f"{len(moved)} entries moved, the counts of batches. So the BatchNorm layers were in train mode: "
            "momentum=0 keeps their averages, and they still normalize by the batch at hand."
        )
    layers = {name.rpartition(".")[0] for name in moved if "running" in name or "num_batches" in name}
    norms = [name for name, part in model.named_modules() if isinstance(part, nn.BatchNorm2d)]
    if still := [name for name in norms if name not in layers]:
        raise NotYet(
            f"{still[0]} stands still now, but {len(moved)} entries moved, {moved[0]} first. There are norm layers in "
            "every block; named_modules() and modules() reach them all."
        )
    raise NotYet(
        f"{len(moved)} entries moved that should not, {moved[0]} first. They are buffers, so neither a flag nor an "
        "optimizer stops them: look at the mode in which each forward pass is run."
    )


def _no_others_moved(moved):
    if moved:
        raise NotYet(
            f"Outside fc moved: {len(moved)}, {moved[0]} among them. A parameter moves if it gets a gradient "
            "and the optimizer holds it."
        )


def _trained_head(started, batches, mode, epochs):
    """The parameters of the head after the training that the exercise wants, with the backbone in this mode."""
    model = copy.deepcopy(started).train(mode)
    optimizer = torch.optim.SGD(model.fc.parameters(), lr=0.1)
    for _ in range(epochs):
        for images, labels in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    return dict(model.fc.named_parameters())
