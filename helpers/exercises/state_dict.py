"""The exercises and predictions of the lesson on ``state_dict``."""

import copy
import re
from collections import OrderedDict

import torch
from torch import nn

from helpers.exercises import Lesson, NotAttempted, NotYet, kind, run, table

lesson = Lesson()
check, predict, progress = lesson.check, lesson.predict, lesson.progress

lesson.prediction(
    "flags",
    {
        (False, True): "You took the entry for the parameter. It is another tensor, with a flag of its own.",
        (None, True): "You let the state_dict hold what is trained. It holds what belongs to the model, frozen or not.",
        (True, True): "The entries are not new parameters, which would ask. Look at the printed flags: who asks?",
        (None, False): "Frozen parameters belong to the model, too: their names are there.",
    },
)
lesson.prediction(
    "write",
    {
        (True, True, True, True): "The memory is shared, not the dictionary: a new tensor in it is no write.",
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
    },
)
lesson.prediction(
    "trap",
    {
        (True, True, True, True, True): "You let assign=True end with its call. It leaves a mark on the dictionary.",
        (False, True, True, True, True): "The mark is an attribute of the dictionary: which copies keep attributes?",
        (False, True, False, True, True): "The mark is no tensor: memory of its own does not take it off.",
        (False, False, True, True, True): "torch.save writes the attributes of the dictionary into the file, too.",
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
    for losses in ([40.0, 12.0, 7.0, 9.0, 8.0, 11.0], [0.9, 0.4, 0.6, 0.2, 0.3, 0.5], [-1.0, 2.0, 1.0], [3.0, 2.0]):
        model = nn.Sequential(OrderedDict(norm=nn.BatchNorm1d(2), first=nn.Linear(2, 3), last=nn.Linear(3, 1)))
        model.get_parameter("last.bias").requires_grad_(False)  # by somebody before
        flags, train = _flags(model), _Epochs(model, losses)
        given = run(answer, model, train, len(losses))
        if train.faults:
            raise NotYet(train.faults[0])
        if len(train.after) != len(losses) + 1:
            raise NotYet(f"train was called {len(train.after) - 1} times, and {len(losses)} epochs were asked for.")
        _is_of_the_best(model, train, given)
        if _flags(model) != flags:
            raise NotYet("The values are right. But names or flags changed, and only values were to be restored.")
        restored = _values(model)
        train.step()
        moved = _values(model)
        still = [name for name, asks in flags.items() if asks and torch.equal(moved[name], restored[name])]
        if still:
            raise NotYet(
                f"The values are right, but another epoch does not move {still[0]}: the optimizer holds other "
                "parameters than the model has now. Copy values into those that are there."
            )


class _Epochs:
    """What a learner calls as ``train``: real steps, losses by script; ``after`` has the values after each epoch."""

    def __init__(self, model, losses):
        self.model, self.losses, self.after, self.faults = model, losses, [_values(model)], []
        self.held = list(model.parameters())  # as by an optimizer: SGD by hand spares its slow first import

    def __call__(self, model):
        if len(self.after) > 100:
            raise RuntimeError("train was called a hundred times: your loop does not end")
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
        loss = f", with loss {losses[epoch - 1]}" if epoch else ""
        raise NotYet(f"The model is that of epoch {epoch}{loss}. The lowest of all losses is that of {best_is}.")
    if wrong == ["norm.num_batches_tracked"]:
        raise NotYet(
            "norm.num_batches_tracked is not that of the best epoch: an integer, and a buffer like the others."
        )
    if not set(wrong) & set(parameters):
        raise NotYet(f"The parameters are those of the best epoch. The buffers are not: look at {', '.join(wrong)}.")
    if set(wrong) <= set(parameters):
        raise NotYet(f"The buffers are those of the best epoch. The parameters are not: look at {wrong[0]}.")
    raise NotYet(f"{wrong[0]} has not the value that it had after {best_is}.")


@lesson.exercise(
    "load-backbone",
    follows="Whoever calls it knows afterwards what the model holds: the whole backbone of the checkpoint, or, with an "
    "error, what it held before.",
)
def load_backbone(answer):
    for head, old_classes, prefix in (("fc", 2, ""), ("fc", 5, "module."), ("head", None, "module."), ("head", 2, "")):
        saved, model = _saved(head, old_classes, prefix), _network(head, 5)
        before, objects, flags = _values(model), dict(model.named_parameters()), _flags(model)
        given_names, copies = list(saved), copy.deepcopy(saved)
        given = _run_where_all_fits(answer, head, prefix, model, saved)
        _is_loaded(head, prefix, saved, model, before, given)
        if list(saved) != given_names or _differ(copies, saved):
            raise NotYet(
                "The model is right, but saved was changed. Write the new names into a dictionary of your own."
            )
        after = dict(model.named_parameters())
        if after.keys() != objects.keys() or any(after[name] is not objects[name] for name in after):
            raise NotYet(
                "The values are right, but the model has other Parameter objects: an optimizer built before would hold "
                "the old ones. Copy values into those that are there."
            )
        if _flags(model) != flags:
            raise NotYet("The values are right, but flags changed: layer1.bias was frozen, and nothing else.")
        with torch.no_grad():
            for tensor in _tensors(model).values():
                tensor.add_(1)
        if _differ(copies, saved):
            raise NotYet("The values are right, but in the memory of saved: training the model would change saved.")
    for fault, change in _FAULTS.items():
        for prefix in ("", "module."):
            saved, model = _saved("fc", 2, prefix), _network("fc", 5)
            change(saved, prefix)
            _is_refused(answer, saved, model, fault)


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


def _network(head, classes):
    body = nn.Sequential(OrderedDict({"module": nn.Linear(2, 2), head: nn.Linear(2, 2)}))
    parts = {"layer1": nn.Linear(3, 2), "norm": nn.BatchNorm1d(2), "body": body, f"{head}_norm": nn.LayerNorm(2)}
    if classes:
        parts[head] = nn.Linear(2, classes)
    model = nn.Sequential(OrderedDict(parts))
    with torch.no_grad():
        for tensor in _tensors(model).values():
            tensor.copy_(torch.randint(1, 1000, tensor.shape))
    model.get_parameter("layer1.bias").requires_grad_(False)  # by somebody before
    return model


def _saved(head, classes, prefix):
    return {prefix + name: entry for name, entry in _values(_network(head, classes)).items()}


def _run_where_all_fits(answer, head, prefix, model, saved):
    try:
        return run(answer, model, saved, head)
    except NotYet as reason:
        if reason.__cause__ is None:
            raise
        named = re.findall(r"""(?<=['"])[\w.]+(?=['"])""", str(reason.__cause__))
        _tell_of_lost_parts(head, prefix, named)
        raise NotYet(
            "Everything but the head fits here, and still there was an error. Look at the names after your cut: are "
            f"body.module.weight and {head}_norm.weight among them? {reason}"
        ) from None


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
    before, objects = _values(model), dict(model.named_parameters())
    flags = _flags(model)
    try:
        run(answer, model, saved, "fc")
    except (NotYet, NotAttempted):  # any error will do
        pass
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
    after = dict(model.named_parameters())
    if any(after[name] is not objects[name] for name in after) or _flags(model) != flags:
        raise NotYet(f"{fault}. It raised an error, but the model has other Parameter objects or flags now.")


def _tensors(model):
    return dict(model.named_parameters()) | dict(model.named_buffers())


def _values(model):
    return {name: tensor.detach().clone() for name, tensor in _tensors(model).items()}


def _flags(model):
    return {name: parameter.requires_grad for name, parameter in model.named_parameters()}


def _differ(wanted, found):
    """The names in ``wanted`` that are not in ``found``, or have another value there."""
    return [
        name for name in wanted if name not in found or not torch.equal(wanted[name].double(), found[name].double())
    ]
