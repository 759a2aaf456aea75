"""The exercises and predictions of the lesson on ``requires_grad``; their sentences are in the TOML file beside it."""

import copy
import operator

import torch
from torch import Tensor, nn

from helpers.lessons.exercises import RAISES, Lesson, NotYet, kind, run, table, taken

lesson = Lesson("requires_grad")
check, predict, progress = lesson.check, lesson.predict, lesson.progress


@lesson.exercise("who-is-asked")
def who_is_asked(answer):
    first, frozen, last, unused = (nn.Linear(2, 2) for _ in range(4))
    frozen.requires_grad_(False)
    hidden = first(torch.ones(1, 2))
    loss = last(frozen(hidden)).sum()
    loss.backward()
    seen = {
        "first.weight has a gradient": first.weight.grad is not None,
        "frozen.weight has a gradient": frozen.weight.grad is not None,
        "unused.weight has a gradient": unused.weight.grad is not None,
        "frozen(hidden) requires grad": frozen(hidden).requires_grad,
        "frozen(torch.ones(1, 2)) requires grad": frozen(torch.ones(1, 2)).requires_grad,
        "hidden.round() requires grad": hidden.round().requires_grad,
        "(hidden > 0) requires grad": (hidden > 0).requires_grad,
        "hidden is a leaf": hidden.is_leaf,
    }
    if isinstance(answer, dict):
        for row in (row for row in seen if isinstance(answer.get(row), str) and answer[row] == RAISES):
            raise lesson.not_yet("no-raises", row=row)
    table(answer, seen, lesson.beliefs("who-is-asked"))


@lesson.exercise("still-trains")
def still_trains(answer):
    _freezes_the_first(answer, nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    block = nn.Sequential(nn.Linear(3, 4), nn.PReLU())
    model = nn.Sequential(block, *(nn.Linear(4, 4) for _ in range(10)), nn.Dropout(), nn.Linear(4, 2)).eval()
    for layer in (block[0], model[3]):
        layer.bias.requires_grad = False  # by somebody before
    _freezes_the_first(answer, model)


def _freezes_the_first(answer, model):
    model(torch.ones(1, 3)).sum().backward()
    before = _Before(model, "0")
    given = run(answer, model)
    before.compare()
    turned_on, missed, extra = before.flags()
    if before.same_flags():
        if isinstance(given, nn.Module) and not all(parameter.requires_grad for parameter in given.parameters()):
            raise lesson.not_yet("returned-copy")
        _refuse_stray_flag(model)
        raise lesson.not_yet("no-flag")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise lesson.not_yet("nothing-left")
    for key, names in (("turned-on", turned_on), ("missed", missed), ("extra", extra)):
        if names:
            raise lesson.not_yet(key, names=_listed(names))
    before.compare_passes(torch.ones(1, 3))


@lesson.exercise("nothing-trains")
def nothing_trains(answer):
    for sizes in ((3, 5, 2), (4,)):
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
        model[1].requires_grad_(False)
        batches = [(torch.randn(size, 3), torch.arange(size) % 2) for size in sizes]
        twin = copy.deepcopy(model)
        losses = [nn.functional.cross_entropy(twin(images), labels) for images, labels in batches]
        torch.stack(losses).mean().backward()
        if len(sizes) == 1:
            model(batches[0][0]).sum().backward()  # gradients of somebody before
        before = _Before(model)
        given = run(answer, model, batches)
        before.compare()
        if not before.same_flags():
            raise lesson.not_yet("flags")
        _is_the_mean(given, [loss.detach() for loss in losses], list(map(len, [labels for _, labels in batches])))
        model.zero_grad()
        try:
            given.sum().backward()
        except RuntimeError as error:
            if "a second time" not in str(error):
                raise
            raise lesson.not_yet("used-up") from None
        pairs = [
            (name, one.grad, other.grad)
            for (name, one), other in zip(model.named_parameters(), twin.parameters(), strict=True)
        ]
        if none := [name for name, one, other in pairs if one is None and other is not None]:
            raise lesson.not_yet("no-gradient", names=_listed(none))
        if wrong := [name for name, one, other in pairs if other is not None and not torch.allclose(one, other)]:
            raise lesson.not_yet("gradients", names=_listed(wrong))


def _is_the_mean(given, losses, sizes):
    if not isinstance(given, Tensor):
        raise lesson.not_yet("no-tensor", kind=kind(given))
    if given.numel() != 1:
        raise lesson.not_yet("shape", shape=tuple(given.shape))
    if not given.requires_grad:
        raise lesson.not_yet("no-flag")
    if given.is_leaf:
        raise lesson.not_yet("leaf")
    losses, weights = torch.stack(losses), torch.tensor(sizes, dtype=torch.float32)
    got, due = given.detach().reshape(()).float(), losses.mean()
    if torch.allclose(got, due):
        return
    for key, other in (("total", losses.sum()), ("by-images", (losses * weights).sum() / weights.sum())):
        if torch.allclose(got, other):
            raise lesson.not_yet(key)
    if any(torch.allclose(got, loss) for loss in losses):
        raise lesson.not_yet("one-batch")
    raise lesson.not_yet("value", due=due.item(), got=got.item())


@lesson.exercise("freeze-by-name")
def freeze_by_name(answer):
    for part in ("body", "body.layer1", "head.weight", "head", "aux", "body.deep.block", "body.norm", "body.old"):
        _freezes(answer, _Parts(), part)
    nowhere = ("boddy", "body.layer", "layer1", "weight", "", "body.act", "body.norm.running_mean", "head.weight.data")
    for absent in nowhere:
        model = _Parts()
        before = _Before(model)
        error = _raised(answer, model, absent)
        if error is None:
            raise lesson.not_yet("silent", part=absent)
        if not isinstance(error, ValueError):
            raise lesson.not_yet("other-error", part=absent, error=type(error).__name__)
        if not before.same_flags():
            raise lesson.not_yet("changed-before", part=absent)
        before.compare()


def _raised(answer, model, part):
    """What the learner's function raises; the refusal of anything else that is wrong with it goes through."""
    try:
        run(answer, model, part)
    except NotYet as reason:
        if reason.__cause__ is None:
            raise
        return reason.__cause__
    return None


def _freezes(answer, model, part):
    x = torch.ones(3, 2)
    model(x).sum().backward()
    before = _Before(model, part)
    try:
        given = run(answer, model, part)
    except NotYet as reason:
        if isinstance(reason.__cause__, ValueError) and part == "body.old":
            raise lesson.not_yet("frozen-before", part=part) from None
        what = "a single parameter" if part == "head.weight" else "a module"
        raise lesson.not_yet("part-error", part=part, what=what, reason=reason) from None
    before.compare()
    turned_on, missed, extra = before.flags()
    if before.same_flags() and part != "body.old":
        _refuse_stray_flag(model)
        raise lesson.not_yet("no-flag", part=part)
    if turned_on:
        raise lesson.not_yet("turned-on", part=part, names=_listed(turned_on))
    if extra:
        key = "letters" if all(name.replace("_", ".").startswith(part) for name in extra) else "extra"
        raise lesson.not_yet(key, part=part, names=_listed(extra))
    if missed:
        raise lesson.not_yet("missed", part=part, names=_listed(missed))
    before.compare_passes(x)
    _right_names(given, part, before.names)


def _right_names(given, part, due):
    if given is None:
        raise lesson.not_yet("no-names")
    listed = taken(given, "a list of names")
    if others := [name for name in listed if not isinstance(name, str)]:
        raise lesson.not_yet("not-names", kind=kind(others[0]))
    if listed != due:
        if listed == [name.removeprefix(f"{part}.") for name in due]:
            raise lesson.not_yet("names-short", part=part, due=due, got=listed)
        extra, frozen = set(listed) - set(due), {"head.bias", "body.old.weight", "body.old.bias"} & set(due)
        key = "names-extra" if extra else "names-before" if frozen - set(listed) else "names"
        raise lesson.not_yet(key, part=part, due=due, got=listed)


class _Parts(nn.Module):
    """Parts whose names begin alike, lie deep, come twice, hold no parameter, or are a single one."""

    def __init__(self):
        super().__init__()
        names = ("layer1", "layer10", "norm", "act", "old")
        layers = nn.Linear(2, 2), nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Tanh(), nn.Linear(2, 2)
        self.body = nn.ModuleDict(dict(zip(names, layers, strict=True)))
        self.body["deep"] = nn.ModuleDict({"block": nn.Linear(2, 2), "other": nn.Linear(2, 2)})
        self.body_layer1 = nn.Linear(2, 2)
        self.aux = nn.ModuleDict({"head": nn.Linear(2, 2)})
        self.head = nn.Linear(2, 1)
        self.body["old"].requires_grad_(False)  # both by somebody before
        self.head.bias.requires_grad = False

    def forward(self, x):
        body = self.body
        for layer in (body["layer1"], body["layer10"], body["norm"], body["act"], body["old"], *body["deep"].values()):
            x = layer(x)
        return self.head(self.aux["head"](self.body_layer1(x)))


class _Before:
    """A model before an answer saw it: what `compare` finds changed besides the flags, and which flags `part` has."""

    def __init__(self, model, part=None):
        self.model, self.twin = model, copy.deepcopy(model)
        self.objects = list(model.parameters())
        self.gradients = [None if p.grad is None else p.grad.clone() for p in self.objects]
        self.names = [name for name, _ in model.named_parameters() if f"{name}.".startswith(f"{part}.")]

    def flags(self):
        """Names outside the part that were turned on, in the part that are on, and outside that were turned off."""
        pairs = zip(self.twin.named_parameters(), self.model.parameters(), strict=True)
        changed = [(name, was.requires_grad, now.requires_grad) for (name, was), now in pairs]
        outside = [(name, was, now) for name, was, now in changed if name not in self.names]
        return (
            [name for name, was, now in outside if now and not was],
            [name for name, _, now in changed if now and name in self.names],
            [name for name, was, now in outside if was and not now],
        )

    def same_flags(self):
        pairs = zip(self.twin.parameters(), self.model.parameters(), strict=True)
        return all(was.requires_grad == now.requires_grad for was, now in pairs)

    def compare(self):
        """Raise `NotYet` if anything but flags, and the gradients in the part, is not as it was."""
        one, other = self.twin, self.model
        kinds = [[type(module) for module in both.modules()] for both in (one, other)]
        named = [[name for name, _ in both.named_parameters()] for both in (one, other)]
        before, after = one.state_dict(), other.state_dict()
        same = len(self.objects) == len(named[1]) and all(map(operator.is_, self.objects, other.parameters()))
        if not same or named[0] != named[1] or kinds[0] != kinds[1] or before.keys() != after.keys():
            raise lesson.not_yet("other-objects")
        if any(before[name].dtype != after[name].dtype or not before[name].equal(after[name]) for name in before):
            raise lesson.not_yet("numbers")
        if any(was.training != now.training for was, now in zip(one.modules(), other.modules(), strict=True)):
            raise lesson.not_yet("modes")
        for name, parameter, was in zip(named[1], self.objects, self.gradients, strict=True):
            if name not in self.names and not _equal(was, parameter.grad):
                raise lesson.not_yet("old-gradients", names=name)

    def compare_passes(self, x):
        """Raise `NotYet` if the model gives, or passes back, something else than its twin with the same flags."""
        for was, now in zip(self.twin.parameters(), self.objects, strict=True):
            was.requires_grad_(now.requires_grad)
        seen = [_pass(one, x) for one in (self.twin, self.model)]
        if not all(map(_equal, *seen)):
            raise lesson.not_yet("passes")


def _pass(model, x):
    """What a model gives for ``x`` and passes back, to its parameters and to ``x``. Dropout aside: modes are equal."""
    x = x.clone().requires_grad_()
    for parameter in model.parameters():
        parameter.grad = None
    torch.manual_seed(0)
    output = model(x)
    if output.requires_grad:
        output.sum().backward()
    return [output.detach(), x.grad, *(parameter.grad for parameter in model.parameters())]


def _equal(one, other):
    return one is other or (one is not None and other is not None and torch.equal(one, other))


_STRAY = {"requires_grad", "requires_grad_", "require_grad", "requires_grads", "require_grads", "trainable"}


def _refuse_stray_flag(model):
    """Name the attribute that was made where a flag was meant."""
    for owner in (*model.modules(), *model.parameters()):
        for name in sorted(vars(owner).keys() & _STRAY):
            if name == "requires_grad_":
                raise lesson.not_yet("stray-method")
            what = "a module" if isinstance(owner, nn.Module) else "a parameter"
            raise lesson.not_yet("stray", name=name, owner=what)


def _listed(names):
    return names[0] + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")
