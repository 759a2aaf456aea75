"""The exercises of the lesson on ``state_dict``: what their checks measure. What they say is in state_dict.toml."""

import copy
import operator
import re
import tempfile
from collections import OrderedDict
from pathlib import Path

import torch
from torch import nn

from helpers.lessons.exercises import Lesson, NotAttempted, NotYet, kind, run, table

lesson = Lesson("state_dict")
check, predict, progress = lesson.check, lesson.predict, lesson.progress


@lesson.exercise("shared-or-not")
def shared_or_not(answer):
    layer = nn.Linear(1, 1, bias=False)
    nn.init.ones_(layer.weight)
    entries = layer.state_dict()
    copied, deep = dict(entries), copy.deepcopy(entries)
    entries["weight"] = entries["weight"] + 10
    copied["weight"] += 1
    seen = {
        "layer": layer.weight.item(),
        "entries": entries["weight"].item(),
        "copied": copied["weight"].item(),
        "deep": deep["weight"].item(),
    }
    layer.load_state_dict(entries)
    seen |= {"layer, after loading": layer.weight.item(), "copied, after loading": copied["weight"].item()}
    entries["weight"] += 100
    seen["layer, at the end"] = layer.weight.item()
    table(answer, seen, lesson.beliefs("shared-or-not"))


@lesson.exercise("best-epoch")
def best_epoch(answer):
    refused = [(losses, *_restored(answer, list(losses))) for losses in _LOSSES]
    refused = [(losses, epoch, reason) for losses, epoch, reason in refused if reason]
    if not refused:
        return
    # To restore nothing and to take the last epoch for the best look the same, but not with every list of losses.
    if [losses for losses, epoch, _ in refused if epoch == len(losses)] == [
        losses for losses in _LOSSES if losses[-1] > min(losses)
    ]:
        raise lesson.not_yet("last")
    if all(epoch == losses.index(min(losses)) for losses, epoch, _ in refused):
        raise lesson.not_yet("began", losses=list(refused[0][0]))
    raise refused[0][2]


_LOSSES = (
    (40.0, 12.0, 7.0, 9.0, 8.0, 11.0),
    (0.52, 0.53, 0.51, 0.54),
    (3e6, 2e6, 5e6, 6e6),
    (1.0, -2.0, 0.5, 0.6),
    (-1.0, 2.0, 1.0),
    (3.0, 2.0),
    (1.0, 0.0, 0.5),
    (0.5012, 0.5014, 0.5009, 0.5011),
    (0.5, 0.3, 0.3, 0.7),
    (2.0,),
)


class _Epochs:
    """What a learner calls as ``train``: real steps, losses by script; ``after`` has the values after each epoch."""

    def __init__(self, model, losses):
        self.model, self.losses, self.after, self.faults = model, losses, [_values(model)], []
        self.held = list(model.parameters())  # as by an optimizer: SGD by hand spares its slow first import

    def __call__(self, model):
        if len(self.after) > 100:
            raise lesson.not_yet("endless")
        if model is not self.model:
            self.faults.append(lesson.not_yet("another-model", kind=kind(model)))
        elif _differ(self.after[-1], _values(model)):
            self.faults.append(lesson.not_yet("between"))
        self.step()
        self.after.append(_values(self.model))
        return self.losses[min(len(self.after) - 2, len(self.losses) - 1)]

    def step(self):
        self.model.train()
        for parameter in self.held:
            parameter.grad = None
        self.model(torch.randn(8, 2)).pow(2).mean().backward()
        with torch.no_grad():
            for parameter in self.held:
                if parameter.grad is not None:
                    parameter -= 0.05 * parameter.grad


def _restored(answer, losses):
    """Which epoch's values the model has in the end, if one's, and why that is not right, if it is not."""
    model = nn.Sequential(OrderedDict(norm=nn.BatchNorm1d(2), first=nn.Linear(2, 3), last=nn.Linear(3, 1)))
    model.get_parameter("last.bias").requires_grad_(False)  # by somebody before
    manner, extras, train = _manner(model), _extras(model), _Epochs(model, losses)
    try:
        given = run(answer, model, train, len(losses))
    except NotYet as reason:
        if "_Epochs" in str(reason):
            raise lesson.not_yet("no-model", error=str(reason).replace("_Epochs", "train")) from None
        if not reason.__cause__:
            raise
        tie = len(set(losses)) < len(losses)
        raise lesson.not_yet("error-tie" if tie else "error", losses=losses, error=reason) from None
    if train.faults:
        raise train.faults[0]
    if len(train.after) != len(losses) + 1:
        raise lesson.not_yet("calls", calls=len(train.after) - 1, epochs=len(losses))
    values = _values(model)
    epochs = [number for number, after in enumerate(train.after) if not _differ(after, values)]
    epoch = epochs[-1] if epochs else None
    best = [number for number, loss in enumerate(losses, 1) if loss == min(losses)]
    if epoch not in best:
        if isinstance(given, nn.Module) and not _differ(train.after[best[0]], _values(given)):
            return None, lesson.not_yet("returned")
        return epoch, _why_not_the_best(model, train, values, epoch, best[0])
    if changed := _changed(manner, _manner(model) | {"mode": manner["mode"]}):
        return epoch, lesson.not_yet("manner", what=changed)
    if left := _left(extras, model):
        return epoch, lesson.not_yet("left", what=left)
    train.step()
    moved = _values(model)
    unmoved = [name for name, flag in manner["flags"].items() if flag and torch.equal(moved[name], values[name])]
    return epoch, lesson.not_yet("optimizer", name=unmoved[0]) if unmoved else None


def _why_not_the_best(model, train, values, epoch, best):
    losses = train.losses
    wrong = _differ(train.after[best], values)
    parameters = [name for name, _ in model.named_parameters()]
    if epoch == 0:
        return lesson.not_yet("before-all", losses=losses, best=best)
    if epoch is not None:
        key = "zero" if min(losses) == 0 else "other-epoch"
        return lesson.not_yet(key, losses=losses, epoch=epoch, loss=losses[epoch - 1], best=best)
    if wrong == ["norm.num_batches_tracked"]:
        return lesson.not_yet("counter")
    if not set(wrong) & set(parameters):
        return lesson.not_yet("buffers", names=", ".join(wrong))
    if set(wrong) <= set(parameters):
        return lesson.not_yet("parameters", name=wrong[0])
    return lesson.not_yet("no-epoch", name=wrong[0], best=best)


@lesson.exercise("resume-a-run")
def resume_a_run(answer):
    # In each process the number of the epoch in whose middle it is killed, or None; Adam has other state than SGD.
    for epochs, killed_in, adam in (
        (4, [None], False),
        (6, [3, None], False),
        (5, [1, None], False),
        (6, [3, 2, None], True),
        (4, [None, None], False),
    ):
        due = _Process(adam)
        for _ in range(epochs):
            due.epoch(due.model, due.optimizer, due.shuffle)
            due.scheduler.step()
        with tempfile.TemporaryDirectory() as folder:
            done, path, written = 0, Path(folder, "run.pt"), []
            for dies_in in killed_in:
                process = _Process(adam, dies_in)
                _resumes(answer, process, due, done, epochs, path, len(killed_in) > 1)
                done = epochs if dies_in is None else done + dies_in - 1
                if path.exists():
                    written.append((done, path.read_bytes()))
            for done, file in written[:1]:
                if done < epochs:
                    _goes_on_from(answer, _Process(adam), due, done, epochs, path, file)


class _Killed(BaseException):
    """What ends a process: no ``except Exception`` is to catch it."""


class _Process:
    """A run that has just been built. ``starts`` has the state of everything at the beginning of each epoch."""

    def __init__(self, adam, dies_in=None):
        torch.manual_seed(0)
        self.model = nn.Sequential(OrderedDict(norm=nn.BatchNorm1d(3), first=nn.Linear(3, 4), last=nn.Linear(4, 2)))
        self.model.get_parameter("first.bias").requires_grad_(False)
        self.images, self.wanted = torch.randn(20, 3), torch.randn(20, 2)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        if adam:
            self.optimizer = torch.optim.Adam(trained, lr=0.1)
        else:
            self.optimizer = torch.optim.SGD(trained, lr=0.1, momentum=0.9)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, step_size=3, gamma=0.5)
        self.shuffle = torch.Generator().manual_seed(0)
        self.dies_in, self.starts = dies_in, []

    def epoch(self, model, optimizer, shuffle):
        for name, given in (("model", model), ("optimizer", optimizer), ("shuffle", shuffle)):
            if given is not getattr(self, name):
                raise lesson.not_yet("arguments", kind=kind(given), which=name)
        if len(self.starts) >= 100:
            raise lesson.not_yet("endless")
        self.starts.append(self.state())
        if self.dies_in is not None and len(self.starts) > self.dies_in:
            raise lesson.not_yet("caught")
        model.train()
        for number, batch in enumerate(torch.randperm(20, generator=shuffle).split(5)):
            if self.dies_in == len(self.starts) and number == 2:
                raise _Killed
            optimizer.zero_grad()
            (model(self.images[batch]) - self.wanted[batch]).pow(2).mean().backward()
            optimizer.step()

    def state(self):
        """What the next step depends on, as a copy."""
        saved = self.optimizer.state_dict()["state"]
        return {
            "model": _values(self.model),
            "optimizer's state": {
                f"{number} {name}": torch.as_tensor(value).clone()
                for number, state in saved.items()
                for name, value in state.items()
                if value is not None
            },
            "order of the images": {"state": self.shuffle.get_state()},
            "learning rate": self.optimizer.param_groups[0]["lr"],
            "scheduler's state": self.scheduler.last_epoch,
        }


def _goes_on_from(answer, process, due, done, epochs, path, file):
    """Raise `NotYet` if an older file, put back, is not where ``answer`` goes on: then it has something else."""
    path.write_bytes(file)
    try:
        _resumes(answer, process, due, done, epochs, path, True)
    except NotYet:
        raise lesson.not_yet("memory", done=done) from None


def _resumes(answer, process, due, done, epochs, path, killed):
    """Run ``answer`` in a process that begins after ``done`` epochs; raise `NotYet` where that is not as ``due``."""
    parts = (process.model, process.optimizer, process.scheduler, process.shuffle)
    try:
        run(answer, *parts, process.epoch, epochs, path)
    except NotYet as reason:
        if not isinstance(reason.__cause__, _Killed):
            raise
    except _Killed:
        pass
    else:
        if process.dies_in is not None and len(process.starts) >= process.dies_in:
            raise lesson.not_yet("caught")
    if path.is_dir():
        raise lesson.not_yet("folder")
    for other in path.parent.iterdir():
        if other != path and other.is_file():
            other.unlink()
    trained, left = len(process.starts), epochs - done
    if process.dies_in is None and trained != left:
        key = "epochs" if done else "nothing-written" if killed else "first"
        raise lesson.not_yet("finished" if done == epochs else key, done=done, epochs=epochs, trained=trained, due=left)
    _goes_on(process, due, done)
    if process.dies_in is not None:
        if trained < process.dies_in:
            raise lesson.not_yet("short", done=done, epochs=epochs, trained=trained)
        return
    own = list(map(id, process.model.parameters()))
    if any(id(held) not in own for group in process.optimizer.param_groups for held in group["params"]):
        raise lesson.not_yet("objects")
    end, wanted = process.state(), due.state()
    for what in end:
        if not _same(end[what], wanted[what]):
            raise lesson.not_yet("end-finished" if done == epochs else "end", what=what)


def _goes_on(process, due, done):
    """Raise `NotYet` at the first epoch that does not begin as that of the run that was never killed."""
    new = due.starts[0]["model"]
    for number, start in enumerate(process.starts[: len(due.starts) - done], done):
        wanted = due.starts[number]
        if number == done and done:
            wrong = _differ(wanted["model"], start["model"])
            parameters = [name for name, _ in process.model.named_parameters()]
            if wrong and not _differ(new, start["model"]):
                raise lesson.not_yet("model-new", epoch=number + 1)
            if wrong and not set(wrong) & set(parameters):
                raise lesson.not_yet("buffers", epoch=number + 1, names=", ".join(wrong))
            if wrong:
                raise lesson.not_yet("model", epoch=number + 1, before=number)
            if not _same(wanted["order of the images"], start["order of the images"]):
                raise lesson.not_yet("order", epoch=number + 1, before=number)
            if not _same(wanted["optimizer's state"], start["optimizer's state"]):
                raise lesson.not_yet("momentum", epoch=number + 1)
        if not _same(wanted["order of the images"], start["order of the images"]):
            raise lesson.not_yet("reseeded", epoch=number + 1)
        if start["learning rate"] != wanted["learning rate"]:
            rates = {"rate": start["learning rate"], "due": wanted["learning rate"]}
            raise lesson.not_yet("rate", epoch=number + 1, **rates)


def _same(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and not _differ(one, other)
    return one == other


@lesson.exercise("load-backbone")
def load_backbone(answer):
    small, wide = nn.Linear(2, 2), nn.Linear(2, 5)
    deep = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 5))
    cases = [("fc", small, ""), ("fc", wide, "module."), ("head", None, "_orig_mod."), ("classifier", deep, "")]
    for head, old, prefix in cases:
        _loads(answer, head, prefix, _saved(head, old, prefix))
    for fault, change in _FAULTS.items():
        for prefix in ("", "module."):
            saved, model = _saved("fc", small, prefix), _network("fc", wide)
            change(saved, prefix)
            _is_refused(answer, saved, model, fault)


def _loads(answer, head, prefix, saved):
    """Raise `NotYet` if the backbone in ``saved`` is not all that a model gets."""
    model = _network(head, nn.Linear(2, 5))
    before, objects, manner, extras = _values(model), list(model.parameters()), _manner(model), _extras(model)
    copies = copy.deepcopy(saved)
    given = _run_where_all_fits(answer, head, prefix, model, saved)
    _is_loaded(head, prefix, copies, model, before, given)
    if list(saved) != list(copies) or _differ(copies, saved):
        raise lesson.not_yet("saved-changed")
    if any(entry.requires_grad for entry in saved.values()):
        raise lesson.not_yet("saved-flags")
    after = list(model.parameters())
    if len(after) != len(objects) or not all(map(operator.is_, after, objects)):
        raise lesson.not_yet("objects")
    if changed := _changed(manner, _manner(model)):
        raise lesson.not_yet("manner", what=changed)
    if left := _left(extras, model):
        raise lesson.not_yet("left", what=left)
    with torch.no_grad():
        for tensor in _tensors(model).values():
            tensor.add_(1)
    if _differ(copies, saved):
        raise lesson.not_yet("memory")


def _rename_all(saved, prefix):
    for name in list(saved):
        saved[f"{prefix}old_{name.removeprefix(prefix)}"] = saved.pop(name)


def _put(name, change):
    return lambda saved, prefix: saved.update({prefix + name: change(saved.get(prefix + name))})


def _drop(name):
    return lambda saved, prefix: saved.pop(prefix + name)


_FAULTS = {
    "weight": _drop("body.module.weight"),
    "mean": _drop("norm.running_mean"),
    "counter": _drop("norm.num_batches_tracked"),
    "extra": _put("extra.weight", lambda _: torch.ones(2)),
    "renamed": _rename_all,
    "one": _put("layer1.bias", lambda old: old[:1].clone()),
    "turned": _put("layer2.weight", lambda old: old.T.contiguous()),  # as many numbers, laid out as new
    "three": _put("norm.running_var", lambda _: torch.ones(3)),
    "column": _put("layer2.weight", lambda _: torch.ones(2, 1)),
}


def _network(head, last):
    body = nn.Sequential(OrderedDict({"module": nn.Linear(2, 2), head: nn.Linear(2, 2)}))
    parts = {"layer1": nn.Linear(3, 2), "norm": nn.BatchNorm1d(2), "body": body, "layer2": nn.Linear(3, 2)}
    parts[f"{head}_norm"] = nn.LayerNorm(2)
    if last is not None:
        parts[head] = copy.deepcopy(last)
    model = nn.Sequential(OrderedDict(parts))
    with torch.no_grad():
        for tensor in _tensors(model).values():
            tensor.copy_(torch.rand(tensor.shape) * 1000)
    model.get_parameter("layer1.bias").requires_grad_(False)  # by somebody before
    return model


def _saved(head, last, prefix):
    """A real state_dict, with the versions in its _metadata, of a wrapper if there is a prefix."""
    network = _network(head, last)
    for part in prefix.split(".")[:-1]:
        network = nn.ModuleDict({part: network})
    return network.state_dict()


def _run_where_all_fits(answer, head, prefix, model, saved):
    try:
        return run(answer, model, saved, head)
    except NotYet as reason:
        error = reason.__cause__
        if error is None or isinstance(error, NameError | TypeError | AttributeError):
            raise
        if f"size mismatch for {head}." in str(error):
            raise lesson.not_yet("head-size", error=reason) from None
        names = re.findall(r"""(?<=['"])[\w.]+(?=['"])""", str(error))
        if "Missing key" in str(error) and names and all(name.startswith(f"{head}.") for name in names):
            raise lesson.not_yet("strict", error=reason) from None
        _tell_of_lost_parts(head, prefix, names)
        if deep := [name for name in saved if name.startswith(f"{head}.") and name.count(".") > 1]:
            raise lesson.not_yet("head-deep", error=reason, names=", ".join(deep)) from None
        raise lesson.not_yet("fits", error=reason, head=head) from None


def _tell_of_lost_parts(head, prefix, names):
    """Raise `NotYet` if the names show which part was lost, and so how names were cut."""
    parts = ("layer1", "layer2", "norm", "body.module", f"body.{head}", f"{head}_norm")
    lost = [part for part in parts if f"{part}.weight" in names]
    if len(lost) == len(parts) and prefix:
        raise lesson.not_yet("prefix", prefix=prefix)
    if lost == [f"{head}_norm"]:
        raise lesson.not_yet("head-norm", head=head)
    if lost == [f"body.{head}"]:
        raise lesson.not_yet("inner-head", head=head)
    if lost == ["body.module"]:
        raise lesson.not_yet("inner-module")
    if lost == ["layer1", "layer2"]:
        raise lesson.not_yet("letters", parts=" and ".join(lost))


def _is_loaded(head, prefix, saved, model, before, given):
    values, wanted = _values(model), dict(before)
    for name, entry in saved.items():
        if not name.removeprefix(prefix).startswith(f"{head}."):
            wanted[name.removeprefix(prefix)] = entry
    wrong = _differ(wanted, values)
    if not wrong:
        return
    if isinstance(given, nn.Module) and not _differ(wanted, _values(given)):
        raise lesson.not_yet("returned")
    if [name for name in wrong if name.startswith(f"{head}.")]:
        raise lesson.not_yet("head-lost", head=head)
    _tell_of_lost_parts(head, prefix, wrong)
    if not _differ(before, values):
        raise lesson.not_yet("nothing")
    if not set(wrong) & {name for name, _ in model.named_parameters()}:
        raise lesson.not_yet("buffers", names=", ".join(wrong))
    raise lesson.not_yet("values", names=", ".join(wrong))


def _is_refused(answer, saved, model, fault):
    told = str(lesson.not_yet(f"fault-{fault}"))
    before, objects, manner = _values(model), list(model.parameters()), _manner(model)
    try:
        run(answer, model, saved, "fc")
    except NotAttempted:  # a bare NotImplementedError, and any error will do
        pass
    except NotYet as reason:
        if reason.__cause__ is None:  # no error of the answer
            raise
    else:
        raise lesson.not_yet(f"passed-{fault}", fault=told)
    if changed := _differ(before, _values(model)):
        raise lesson.not_yet("changed-first", fault=told, name=changed[0])
    if changed := _changed(manner, _manner(model)):
        raise lesson.not_yet("changed-manner", fault=told, what=changed)
    if not all(map(operator.is_, model.parameters(), objects)):
        raise lesson.not_yet("changed-objects", fault=told)


def _tensors(model):
    return dict(model.named_parameters()) | dict(model.named_buffers())


def _values(model):
    return {name: tensor.detach().clone() for name, tensor in _tensors(model).items()}


def _manner(model):
    """What stays when only values are loaded."""
    tensors = _tensors(model)
    return {
        "names": set(tensors),
        "flags": {name: tensor.requires_grad for name, tensor in tensors.items()},
        "dtypes": {name: tensor.dtype for name, tensor in tensors.items()},
        "mode": [module.training for module in model.modules()],
    }


def _changed(before, after):
    """The first of the things in `_manner` that changed, or None."""
    return next((what for what in before if before[what] != after[what]), None)


def _extras(model):
    """The attributes of each module, and how many hooks it has."""
    return {
        name: (
            set(vars(module)),
            sum(len(value) for key, value in vars(module).items() if "hook" in key and isinstance(value, dict)),
        )
        for name, module in model.named_modules()
    }


def _left(before, model):
    """What an answer left on ``model``, in words, or nothing."""
    after = _extras(model)
    for name, (attributes, hooks) in after.items():
        known, hooked = before.get(name, (set(), 0))
        if name not in before:
            return f"a module, {name}"
        if attributes != known:
            return f"an attribute, {min(attributes ^ known)}"
        if hooks != hooked:
            return "a hook"
    return ""


def _differ(wanted, found):
    """The names in ``wanted`` that are not in ``found``, or have another value there."""
    return [
        name for name in wanted if name not in found or not torch.equal(wanted[name].double(), found[name].double())
    ]
