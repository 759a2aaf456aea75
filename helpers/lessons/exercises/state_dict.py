"""The exercises and predictions of the lesson on ``state_dict``."""

import copy
import operator
import re
from collections import OrderedDict

import torch
from torch import nn

from helpers.lessons.exercises import Lesson, NotAttempted, NotYet, kind, run, table

lesson = Lesson()
check, predict, progress = lesson.check, lesson.predict, lesson.progress

lesson.prediction(
    "flags",
    {
        (False, True): "You took the entry for the parameter. It is another tensor, with a flag of its own.",
        (None, True): "You let the state_dict hold what is trained. It holds what belongs to the model, frozen or not.",
        (True, True): "A new parameter asks, but an entry is no parameter. All flags in it are False.",
        (True, False): "To freeze turns a flag off. And an entry is another tensor, with a flag of its own: False.",
        (None, False): "Frozen parameters belong to the model, too: their names are there.",
        (None, None): "Parameters belong to the model, frozen or not: their names are there.",
    },
)
lesson.prediction(
    "write",
    {
        (True, True, True, True): "The memory is shared, not the dictionary: a new tensor in it is no write.",
        (True, True, True, False): "An entry that gets another tensor is replaced: that is no write into memory.",
        (True, False, True, True): "a = a + 1 makes a new tensor and replaces the entry: that is no write into memory.",
        (True, False, False, True): "It is += that writes in place on a tensor. a = a + 1 makes a new one.",
        (True, True, False, False): "On a tensor += writes in place. A new tensor for an entry is no write.",
        (False, False, True, True): "Freezing protects no value. And a = a + 1 makes a new tensor: no write.",
        (True, False, False, False): "On a tensor += writes in place: it is not the same as a = a + 1.",
        (False, False, True, False): "Freezing protects no value: the flag only says that no gradient is asked for.",
        (False, True, True, True): "Freezing protects no value: the flag only says that no gradient is asked for.",
        (False, True, False, True): "It is the other way round: a new tensor in the dictionary is no write.",
        (False, False, False, False): "You took the entries for copies. They are detached, over the same memory.",
    },
)
lesson.prediction(
    "snapshot",
    {
        (True, True): "dict copies the dictionary: new names for the same tensors, and training writes into these.",
        (False, False): "deepcopy copies the tensors, too. So training does not reach them.",
        (False, True): "It is the other way round: deepcopy copies the tensors too, dict the dictionary only.",
    },
)
lesson.prediction(
    "head-mend",
    {
        (False, False): "You took the error for 'nothing was done'. It comes after everything that fits was loaded.",
        (True, True): "An entry of another size is left out as a whole: no rows of it are copied.",
        (False, True): "It is the other way round: what fits was loaded, what does not was left out as a whole.",
    },
)
lesson.prediction(
    "stored",
    {
        (0, 0): "You let the flags come with the values. They are not stored: who receives keeps its own.",
        (0, 2): "You let the flags come with the values. They are not stored: who receives keeps its own.",
        (4, 4): "Loading turns no flag on: half was frozen in part before, and stays so.",
        (2, 2): "Each model keeps its own flags: in fresh nothing was ever frozen.",
        (2, 4): "It is the other way round: in half, two parameters were frozen before; in fresh, none.",
        (4, 0): "In half only body was frozen, which has two of the four parameters.",
    },
)
lesson.prediction(
    "trap",
    {
        (True, True, True, True, True): "You let assign=True end with its call. It leaves a mark on the dictionary.",
        (False, True, True, True, True): "The mark is an attribute of the dictionary: which copies keep attributes?",
        (False, True, False, True, True): "The mark is no tensor: memory of its own does not take it off.",
        (False, False, True, True, True): "torch.save writes the attributes of the dictionary into the file, too.",
        (False, True, True, False, True): "deepcopy copies the attributes of the dictionary, too: the mark is one.",
        (True, False, True, False, True): "Each copy has the mark from the entries themselves: they have it first.",
        (False, False, False, False, False): "The mark is on one dictionary. dict() and state_dict() make new ones.",
        (False, False, False, False, True): "dict() makes a plain dictionary, without the attributes of the other.",
        (False, False, True, False, False): "Each call of state_dict() makes a new dictionary, without a mark.",
    },
)


@lesson.exercise(
    "shared-or-not",
    follows="What counts is the memory, not the dictionary: a write in place reaches all who share it, a line that "
    "replaces an entry reaches none, and a plain load copies values and leaves the memories apart.",
)
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
    beliefs = {
        ("layer", 1): "dict copies the dictionary, not the tensor in it: += writes into the memory of the layer.",
        ("layer", 11): "The + 10 made a new tensor, which replaced the one in entries. It was written into no memory.",
        ("layer", 12): "The + 10 made a new tensor, which replaced the one in entries. It was written into no memory.",
        ("entries", 12): "After the + 10 entries has another tensor than copied: the += does not reach it.",
        ("entries", 1): "The name in entries leads to the new tensor now, 1 + 10.",
        ("entries", 2): "The name in entries leads to the new tensor now, 1 + 10.",
        ("copied", 12): "copied was made before the + 10, and keeps the tensor that it had then.",
        ("copied", 11): "copied was made before the + 10, and keeps the tensor that it had then.",
        ("copied", 1): "The += is on the tensor in copied itself.",
        ("deep", 2): "deepcopy copied the tensor, too: it shares memory with nobody.",
        ("deep", 11): "deepcopy copied the tensor, too: it shares memory with nobody.",
        ("deep", 12): "deepcopy copied the tensor, too: it shares memory with nobody.",
        ("layer, after loading", 1): "load_state_dict copies what is in entries now, not what was there once.",
        ("layer, after loading", 2): "load_state_dict copies the value of the entry into the parameter of that name.",
        ("copied, after loading", 2): "Loading wrote in place, into the memory that copied shares with the layer.",
        ("copied, after loading", 1): "Loading wrote in place, into the memory that copied shares with the layer.",
        ("layer, at the end", 111): "A plain load copies: entries and the layer have one value, and two memories.",
    }
    table(answer, seen, beliefs)


@lesson.exercise(
    "best-epoch",
    follows="A snapshot has memory of its own, and all that a state_dict has: weights of one epoch with running "
    "statistics of another would be a model that nobody validated.",
)
def best_epoch(answer):
    for losses in _LOSSES:
        model = nn.Sequential(OrderedDict(norm=nn.BatchNorm1d(2), first=nn.Linear(2, 3), last=nn.Linear(3, 1)))
        model.get_parameter("last.bias").requires_grad_(False)  # by somebody before
        manner, train = _manner(model), _Epochs(model, losses)
        try:
            given = run(answer, model, train, len(losses))
        except NotYet as reason:
            if "_Epochs" in str(reason):
                raise NotYet(
                    "train is called as train(model), and your function as answer(model, train, epochs): was train "
                    f"given no model? {str(reason).replace('_Epochs', 'train')}"
                ) from None
            raise NotYet(f"With losses {losses}: {reason}" if reason.__cause__ else str(reason)) from None
        if train.faults:
            raise NotYet(train.faults[0])
        if len(train.after) != len(losses) + 1:
            raise NotYet(f"train was called {len(train.after) - 1} times, and {len(losses)} epochs were asked for.")
        _is_of_the_best(model, train, given)
        if changed := _changed(manner, _manner(model) | {"mode": manner["mode"]}):
            raise NotYet(
                f"The values are right. But the model's {changed} changed, and only values were to be restored."
            )
        restored = _values(model)
        train.step()
        moved = _values(model)
        still = [name for name, asks in manner["flags"].items() if asks and torch.equal(moved[name], restored[name])]
        if still:
            raise NotYet(
                f"The values are right, but another epoch does not move {still[0]}: the optimizer holds other "
                "parameters than the model has now. Copy values into those that are there."
            )


_LOSSES = (
    [40.0, 12.0, 7.0, 9.0, 8.0, 11.0],
    [0.52, 0.53, 0.51, 0.54],
    [3e6, 2e6, 5e6, 6e6],
    [1.0, -2.0, 0.5, 0.6],
    [-1.0, 2.0, 1.0],
    [3.0, 2.0],
)


class _Epochs:
    """What a learner calls as ``train``: real steps, losses by script; ``after`` has the values after each epoch."""

    def __init__(self, model, losses):
        self.model, self.losses, self.after, self.faults = model, losses, [_values(model)], []
        self.held = list(model.parameters())  # as by an optimizer: SGD by hand spares its slow first import

    def __call__(self, model):
        if len(self.after) > 100:
            raise NotYet("train was called a hundred times. Your loop does not end: it is to run epochs times.")
        if model is not self.model:
            self.faults.append(f"train was given {kind(model)} that is not the model: its optimizer has this one only.")
        elif _differ(self.after[-1], _values(model)):
            self.faults.append(
                "Between two epochs your code changed the model, so training went another way. Restore it at the end."
            )
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


def _is_of_the_best(model, train, given):
    """Raise `NotYet` if the model has not the values it had after the epoch with the lowest loss."""
    losses, values = train.losses, _values(model)
    best = losses.index(min(losses)) + 1
    wrong = _differ(train.after[best], values)
    if not wrong:
        return
    parameters = [name for name, _ in model.named_parameters()]
    best_is = f"the best epoch (number {best}, loss {min(losses)})"
    epoch = next((number for number, after in enumerate(train.after) if not _differ(after, values)), None)
    if epoch == len(losses):
        if isinstance(given, nn.Module) and not _differ(train.after[best], _values(given)):
            raise NotYet(
                "What you return has the best values. The model that was given is still that of the last epoch."
            )
        raise NotYet(
            f"The model is that of the last epoch, not of {best_is}. Does what you keep have memory of its own, which "
            "training does not reach? And is it loaded into this model?"
        )
    if epoch == best - 1:
        raise NotYet(
            "Those are the values with which the best epoch began. Its loss belongs to those after train(model)."
        )
    if epoch is not None:
        found = f"that of epoch {epoch}, with loss {losses[epoch - 1]}" if epoch else "as before the first epoch"
        raise NotYet(f"The model is {found}. The lowest of all losses is that of {best_is}.")
    if wrong == ["norm.num_batches_tracked"]:
        raise NotYet(
            "norm.num_batches_tracked is not that of the best epoch: an integer, and a buffer like the others."
        )
    if not set(wrong) & set(parameters):
        raise NotYet(f"The parameters are those of the best epoch. The buffers are not: look at {', '.join(wrong)}.")
    if set(wrong) <= set(parameters):
        raise NotYet(f"The buffers are those of the best epoch. The parameters are not: look at {wrong[0]}.")
    raise NotYet(
        f"{wrong[0]} has not the value that it had after {best_is}, and the model is that of no epoch of this call. "
        "Does your code keep something from an earlier call, or change what it keeps?"
    )


@lesson.exercise(
    "load-backbone",
    follows="Whoever calls it knows afterwards what the model holds: the whole backbone of the checkpoint, or, with an "
    "error, what it held before.",
)
def load_backbone(answer):
    small, wide = nn.Linear(2, 2), nn.Linear(2, 5)
    deep = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 5))
    cases = [("fc", small, ""), ("fc", wide, "module."), ("head", None, "module."), ("classifier", deep, "")]
    for head, old, prefix in cases:
        _loads(answer, head, prefix, _saved(head, old, prefix))
    saved = _network("fc", small).state_dict()
    _network("fc", small).load_state_dict(saved, assign=True)
    _loads(answer, "fc", "", saved, marked=True)
    for fault, change in _FAULTS.items():
        for prefix in ("", "module."):
            saved, model = _saved("fc", small, prefix), _network("fc", wide)
            change(saved, prefix)
            _is_refused(answer, saved, model, fault)


def _loads(answer, head, prefix, saved, marked=False):
    """Raise `NotYet` if the backbone in ``saved`` is not all that a model gets."""
    model = _network(head, nn.Linear(2, 5))
    before, objects, manner = _values(model), list(model.parameters()), _manner(model)
    copies = copy.deepcopy(saved)
    given = _run_where_all_fits(answer, head, prefix, model, saved)
    _is_loaded(head, prefix, copies, model, before, given)
    if list(saved) != list(copies) or _differ(copies, saved):
        raise NotYet("The model is right, but saved was changed. Write the new names into a dictionary of your own.")
    if any(entry.requires_grad for entry in saved.values()):
        raise NotYet("The model is right, but flags in saved were changed. No load looks at the flags of entries.")
    after = list(model.parameters())
    if len(after) != len(objects) or not all(map(operator.is_, after, objects)):
        if marked:
            raise NotYet(
                "This saved was used with assign=True once, and what you load carries the mark: the model has other "
                "Parameter objects now, over the memory of the entries. Load dict(entries)."
            )
        raise NotYet(
            "The values are right, but the model has other Parameter objects: an optimizer built before would hold "
            "the old ones. Copy values into those that are there."
        )
    if changed := _changed(manner, _manner(model)):
        raise NotYet(f"The values are right, but the model's {changed} changed. Only values were to be loaded.")
    with torch.no_grad():
        for tensor in _tensors(model).values():
            tensor.add_(1)
    if _differ(copies, saved):
        raise NotYet("The values are right, but in the memory of saved: training the model would change saved.")


def _rename_all(saved, prefix):
    for name in list(saved):
        saved[f"{prefix}backbone.{name.removeprefix(prefix)}"] = saved.pop(name)


def _put(name, change):
    return lambda saved, prefix: saved.update({prefix + name: change(saved.get(prefix + name))})


_FAULTS = {
    "body.module.weight is missing in saved": lambda saved, prefix: saved.pop(f"{prefix}body.module.weight"),
    "norm.running_mean, a buffer, is missing in saved": lambda saved, prefix: saved.pop(f"{prefix}norm.running_mean"),
    "extra.weight in saved is no name of the model": _put("extra.weight", lambda _: torch.ones(2)),
    "All names in saved begin with backbone., and fit no name of the model": _rename_all,
    "layer1.weight has shape (3, 2) in saved, and (2, 3) in the model": _put(
        "layer1.weight", lambda old: old.T.clone()
    ),
    "layer1.bias has one number in saved, and two in the model": _put("layer1.bias", lambda old: old[:1].clone()),
    "norm.running_var, a buffer, has three numbers in saved, and two in the model": _put(
        "norm.running_var", lambda old: torch.ones(3)
    ),
}


def _network(head, last):
    body = nn.Sequential(OrderedDict({"module": nn.Linear(2, 2), head: nn.Linear(2, 2)}))
    parts = {"layer1": nn.Linear(3, 2), "norm": nn.BatchNorm1d(2), "body": body, f"{head}_norm": nn.LayerNorm(2)}
    if last is not None:
        parts[head] = copy.deepcopy(last)
    model = nn.Sequential(OrderedDict(parts))
    with torch.no_grad():
        for tensor in _tensors(model).values():
            tensor.copy_(torch.rand(tensor.shape) * 1000)
    model.get_parameter("layer1.bias").requires_grad_(False)  # by somebody before
    return model


def _saved(head, last, prefix):
    return {prefix + name: entry for name, entry in _values(_network(head, last)).items()}


def _run_where_all_fits(answer, head, prefix, model, saved):
    try:
        return run(answer, model, saved, head)
    except NotYet as reason:
        error = reason.__cause__
        if error is None or isinstance(error, NameError | TypeError | AttributeError):
            raise
        if f"size mismatch for {head}." in str(error):
            raise NotYet(f"The head's entries are still in what you load, in another size. {reason}") from None
        _tell_of_lost_parts(head, prefix, re.findall(r"""(?<=['"])[\w.]+(?=['"])""", str(error)))
        hint = f"Look at the names that you load: are body.module.weight and {head}_norm.weight among them?"
        if deep := [name for name in saved if name.startswith(f"{head}.") and name.count(".") > 1]:
            hint = f"In saved the head has several layers here: {', '.join(deep)} belong to it."
        raise NotYet(f"{reason} Everything but the head fits here. {hint}") from None


def _tell_of_lost_parts(head, prefix, names):
    """Raise `NotYet` if the names show which part was lost, and so how names were cut."""
    parts = ("layer1", "norm", "body.module", f"body.{head}", f"{head}_norm")
    lost = [part for part in parts if f"{part}.weight" in names]
    if len(lost) == len(parts) and prefix:
        raise NotYet("Nothing was loaded: all names in saved begin with module. here, and those of the model do not.")
    if lost == [f"{head}_norm"]:
        raise NotYet(f"{head}_norm was left out. It begins with the letters of {head!r}, and is another part.")
    if lost == [f"body.{head}"]:
        raise NotYet(f"body.{head} was left out. It is a part of body: the head is the part at the top.")
    if lost == ["body.module"]:
        raise NotYet(
            "body.module was lost. There module. is in the middle of a name: cut it off only at the beginning."
        )
    if lost == ["layer1"]:
        raise NotYet("layer1 was lost. lstrip('module.') takes off every one of these letters, also the l of layer1.")


def _is_loaded(head, prefix, saved, model, before, given):
    values, wanted = _values(model), dict(before)
    for name, entry in saved.items():
        if not name.removeprefix(prefix).startswith(f"{head}."):
            wanted[name.removeprefix(prefix)] = entry
    wrong = _differ(wanted, values)
    if not wrong:
        return
    if isinstance(given, nn.Module) and not _differ(wanted, _values(given)):
        raise NotYet("What you return is loaded. The model that was given is not.")
    if [name for name in wrong if name.startswith(f"{head}.")]:
        raise NotYet(
            f"{head} is the model's own head. It has other values now, or is gone: leave its entries out by name."
        )
    _tell_of_lost_parts(head, prefix, wrong)
    if not _differ(before, values):
        raise NotYet("There was no error, and nothing was loaded. Print the names in saved beside those of the model.")
    if not set(wrong) & {name for name, _ in model.named_parameters()}:
        raise NotYet(f"The parameters are loaded, the buffers are not: look at {', '.join(wrong)}.")
    raise NotYet(f"These were not loaded, or not rightly: {', '.join(wrong)}.")


def _is_refused(answer, saved, model, fault):
    before, objects, manner = _values(model), list(model.parameters()), _manner(model)
    try:
        run(answer, model, saved, "fc")
    except NotAttempted:  # a bare NotImplementedError, and any error will do
        pass
    except NotYet as reason:
        if reason.__cause__ is None:  # no error of the answer
            raise
    else:
        why = "Whoever calls it would go on with a model that is loaded in part."
        if "missing" in fault:
            why = "strict=False hides that, and so do the model's own entries, if they fill up saved."
        if "one number" in fault:
            why = "copy_() spreads one number over any size: compare shapes."
        raise NotYet(f"{fault}, and there was no error. {why}")
    changed = _differ(before, _values(model))
    if changed:
        raise NotYet(
            f"{fault}. It raised an error, but by then {changed[0]} was changed: load_state_dict loads what fits, "
            "then raises. And to put old values back takes a real snapshot."
        )
    if changed := _changed(manner, _manner(model)):
        raise NotYet(f"{fault}. It raised an error, but by then the model's {changed} changed.")
    if not all(map(operator.is_, model.parameters(), objects)):
        raise NotYet(f"{fault}. It raised an error, but the model has other Parameter objects now.")


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


def _differ(wanted, found):
    """The names in ``wanted`` that are not in ``found``, or have another value there."""
    return [
        name for name in wanted if name not in found or not torch.equal(wanted[name].double(), found[name].double())
    ]
