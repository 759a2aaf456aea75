"""The exercises and predictions of the lesson on fine-tuning the last layer."""

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial

import torch
from torch import nn

from helpers import freeze, watch
from helpers.lessons import digits
from helpers.lessons.exercises import Lesson, kind, raises, run, table

lesson = Lesson("finetune_last_layer")
check, predict, progress = lesson.check, lesson.predict, lesson.progress

LOWEST = 0.65
"""The accuracy that a new head must reach; right solutions have 0.72 and more."""


@cache
def _entries_move():
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

    rows = dict.fromkeys(row for row, _ in lesson.beliefs("which-entries-move"))
    return {row: raises(partial(moves, row)) for row in rows}


@lesson.exercise("which-entries-move")
def which_entries_move(answer):
    table(answer, _entries_move(), lesson.beliefs("which-entries-move"))


@lesson.exercise("drifting-backbone")
def drifting_backbone(answer):
    model = digits.pretrained().requires_grad_(False)
    model.fc = nn.Linear(64, 5)
    model.bn1.running_mean += 0.01  # not the network that digits.pretrained() gives once more
    # Dim images, as in the lesson: what they do to running statistics is plain.
    batches = [(0.3 * torch.rand(size, 1, 28, 28), torch.arange(size) % 5) for size in (6, 5, 4, 3)]
    started, handed, own_head = copy.deepcopy(model), copy.deepcopy(batches), model.fc
    run(answer, model, torch.optim.SGD(model.fc.parameters(), lr=0.1), batches)
    _same_data(batches, handed)
    _nothing_else_moved(model, started)
    if trainable := [name for name in _trainable(model) if not name.startswith("fc.")]:
        raise lesson.not_yet("unfrozen", number=len(trainable), first=trainable[0])
    if _head(model) is not own_head:
        raise lesson.not_yet("other-head")
    head = dict(own_head.named_parameters())
    for mode, epochs, key in ((False, 2, ""), (True, 2, "batch"), (False, 0, "no-step"), (False, 1, "one-epoch")):
        wanted = _trained_head(started, handed, mode, epochs)
        if all(torch.allclose(head[name], wanted[name], 1e-3, 1e-5) for name in wanted):
            if key:
                raise lesson.not_yet(key)
            _same_features(model, started)
            return _same_settings(model, started)
    raise lesson.not_yet("other-training")


@lesson.exercise("adapt-then-hold")
def adapt_then_hold(answer):
    backbone = digits.pretrained()
    backbone.fc = nn.Identity()
    images = 0.3 * torch.rand(50, 1, 28, 28) ** 2
    started, handed, wanted = copy.deepcopy(backbone), images.clone(), _adapted(backbone, images)
    run(answer, backbone, images)
    _same_data([(images,)], [(handed,)])
    if moved := [name for name in _changed(backbone, started) if name.endswith(("weight", "bias"))]:
        raise lesson.not_yet("trained", first=moved[0])
    far = [name for name, value in wanted.items() if not _near(backbone.state_dict()[name], value)]
    if far and not _changed(backbone, started):
        raise lesson.not_yet("as-before")
    if far:
        raise lesson.not_yet("not-there-yet", number=len(far), all=len(wanted), first=far[0])
    if trainable := _trainable(backbone):
        raise lesson.not_yet("unfrozen", number=len(trainable), first=trainable[0])
    now = copy.deepcopy(backbone.state_dict())
    with torch.no_grad():
        backbone.train()
        one = torch.linspace(0, 1, 784).reshape(1, 1, 28, 28)
        alone, among = backbone(torch.cat([one, one]))[0], backbone(torch.cat([one, images]))[0]
    if any(not torch.equal(value, now[name]) for name, value in backbone.state_dict().items()):
        raise lesson.not_yet("moves-again")
    if not torch.allclose(alone, among, 1e-4, 1e-6):
        raise lesson.not_yet("by-the-batch")
    reference = copy.deepcopy(started)
    reference.load_state_dict(now)
    _same_features(backbone, reference)


@lesson.exercise("head-for-new-digits")
def head_for_new_digits(answer):
    model = digits.pretrained()
    train, test = digits.few(20, classes=(9, 8, 7, 6, 5), seed=1)
    old_head, started, handed = model.fc, copy.deepcopy(model), copy.deepcopy(train.tensors)
    given = run(answer, model, train)
    _same_data([train.tensors], [handed])
    _nothing_else_moved(model, started)
    before, now = started.fc.state_dict(), _head(model).state_dict()
    if before.keys() == now.keys() and all(torch.equal(before[name], now[name]) for name in now):
        raise lesson.not_yet("a-copy" if isinstance(given, nn.Module) and given is not model else "old-head")
    if not all(torch.equal(before[name], value) for name, value in old_head.state_dict().items()):
        raise lesson.not_yet("old-head-trained")
    if not any(True for _ in model.fc.parameters()):
        raise lesson.not_yet("no-parameters")
    if not all(torch.isfinite(value).all() for value in now.values()):
        raise lesson.not_yet("not-finite")
    _same_features(model, started)
    _same_settings(model, started)
    with _in_eval_mode(model):
        run(model, test.tensors[0][:1])  # a head that does not fit is told in its own words
        order = torch.randperm(len(test))  # the images lie in the order of the digits
        images, labels = test[order]
        with torch.no_grad():
            right = int((model(images).argmax(1) == labels).sum())
    if right < LOWEST * len(test):
        key = "guesses" if right < 0.35 * len(test) else "too-few"
        raise lesson.not_yet(key, right=right, all=len(test), wanted=f"{LOWEST:.0%}")


@contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode, without a call of ``train``, which an answer may have overridden."""
    modes = [(part, part.training) for part in model.modules()]
    for part, _ in modes:
        part.training = False
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def _same_data(batches, handed):
    pairs = [
        (new, old) for one, other in zip(batches, handed, strict=False) for new, old in zip(one, other, strict=True)
    ]
    if len(batches) != len(handed) or not all(torch.equal(new, old) for new, old in pairs):
        raise lesson.not_yet("data")


def _head(model):
    if not isinstance(head := getattr(model, "fc", None), nn.Module):
        raise lesson.not_yet("no-head", kind=kind(head))
    return head


def _trainable(model):
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def _changed(model, started):
    """The entries outside ``fc`` that changed; none may have come or gone."""
    before, now = started.state_dict(), model.state_dict()
    names = [name for name in dict.fromkeys([*before, *now]) if not name.startswith("fc.")]
    if gone := [name for name in names if name not in before or name not in now]:
        raise lesson.not_yet("came-or-went", names=", ".join(gone[:3]))
    return [name for name in names if not torch.equal(before[name], now[name])]


def _nothing_else_moved(model, started):
    moved = _changed(model, started)
    if parameters := [name for name in moved if name.endswith(("weight", "bias"))]:
        raise lesson.not_yet("parameters-moved", number=len(parameters), first=parameters[0])
    if not moved:
        return
    if all(name.endswith("num_batches_tracked") for name in moved):
        raise lesson.not_yet("counts-moved", number=len(moved))
    layers = {name.rpartition(".")[0] for name in moved}
    norms = [name for name, part in model.named_modules() if isinstance(part, nn.BatchNorm2d)]
    unchanged = [name for name in norms if name not in layers]
    key = "some-statistics-moved" if unchanged else "statistics-moved"
    raise lesson.not_yet(key, number=len(moved), first=moved[0], layer=unchanged[0] if unchanged else "")


def _same_features(model, started):
    """A hook or a setting such as ``eps`` is in no entry, and changes the features all the same."""
    features = []
    for one in (model, started):
        twin = copy.deepcopy(one)
        twin.fc = nn.Identity()
        with _in_eval_mode(twin), torch.no_grad():
            features.append(twin(torch.linspace(0, 1, 2 * 784).reshape(2, 1, 28, 28)))
    if features[0].shape != features[1].shape or not torch.allclose(*features, 1e-4, 1e-6):
        raise lesson.not_yet("other-features")


def _same_settings(model, started):
    """What changes nothing in eval mode, and does as soon as a layer is trained or a hook finds its time."""
    before = dict(started.named_modules())
    for name, part in model.named_modules():
        if name.partition(".")[0] == "fc":
            continue
        layer = name or "the model itself"
        if any(held for key, held in vars(part).items() if key.endswith("_hooks")):
            raise lesson.not_yet("left-hook", layer=layer)
        old = before.get(name)
        for setting in ("momentum", "track_running_stats") if isinstance(old, nn.BatchNorm2d) else ():
            was, now = getattr(old, setting), getattr(part, setting, None)
            if was != now:
                raise lesson.not_yet("left-setting", layer=layer, setting=setting, was=was, now=now)


def _adapted(backbone, images):
    """The running statistics that many passes of these images come to, by name: those of one pass, taken whole."""
    twin = copy.deepcopy(backbone).train()
    for part in twin.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 1.0
    with torch.no_grad():
        twin(images)
    return {name: value for name, value in twin.state_dict().items() if "running" in name}


def _near(value, wanted):
    """Within a tenth of what they are on the whole: averages of smaller batches scatter."""
    return value.shape == wanted.shape and bool((value - wanted).norm() <= 0.1 * wanted.norm())


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
