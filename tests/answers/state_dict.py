"""Answers to the exercises of the lesson on ``state_dict``."""

import copy
import io

import torch
from torch import nn

from tests.tools.exercises import Answers

answers = Answers()
right, wrong = answers.right, answers.wrong

SHARED = {
    "layer": 2,
    "entries": 11,
    "copied": 2,
    "deep": 1,
    "layer, after loading": 11,
    "copied, after loading": 11,
    "layer, at the end": 11,
}
right("shared-or-not")(SHARED)
right("shared-or-not")({row: float(number) for row, number in SHARED.items()})
right("shared-or-not")(dict(reversed(SHARED.items())))
wrong("shared-or-not", "not the tensor in it")(
    SHARED | {"layer": 1, "copied, after loading": 2}, "A copy of the dictionary has tensors of its own."
)
wrong("shared-or-not", "written into no memory")(
    SHARED | {"layer": 12, "copied": 12}, "Whatever is put into the state_dict is put into the model."
)
wrong("shared-or-not", "the += does not reach it")(
    SHARED | {"entries": 12}, "Two dictionaries that began with one tensor go on sharing it."
)
wrong("shared-or-not", "keeps the tensor that it had then")(
    SHARED | {"copied": 12}, "A copy of a dictionary follows what becomes of the first one."
)
wrong("shared-or-not", "shares memory with nobody")(
    SHARED | {"deep": 2}, "deepcopy is deep in the dictionary, and keeps its tensors."
)
wrong("shared-or-not", "copies the value of the entry")(
    SHARED | {"layer, after loading": 2, "layer, at the end": 2},
    "A model has its own entries already: loading is idle.",
)
wrong("shared-or-not", "the memory that copied shares")(
    SHARED | {"copied, after loading": 2}, "Loading puts a new parameter into the layer."
)
wrong("shared-or-not", "one value, and two memories")(
    SHARED | {"layer, at the end": 111}, "What was loaded shares memory with what it was loaded from."
)


@right("best-epoch")
def restore_rightly(model, train, epochs):
    lowest = float("inf")
    for _ in range(epochs):
        if (loss := train(model)) < lowest:
            lowest = loss
            best = copy.deepcopy(model.state_dict())
    model.load_state_dict(best)


@right("best-epoch")
def clones_of_every_epoch(model, train, epochs):
    kept = []
    for _ in range(epochs):
        loss = train(model)
        kept.append((loss, {name: entry.clone() for name, entry in model.state_dict().items()}))
    model.load_state_dict(min(kept, key=lambda pair: pair[0])[1])
    return model


@right("best-epoch")
def through_a_file(model, train, epochs):
    losses, file = [], io.BytesIO()
    for _ in range(epochs):
        losses.append(train(model))
        if losses[-1] == min(losses):
            file = io.BytesIO()
            torch.save(model.state_dict(), file)
    file.seek(0)
    model.load_state_dict(torch.load(file))


@right("best-epoch")
def by_hand(model, train, epochs):
    lowest = None
    for _ in range(epochs):
        loss = train(model)
        if lowest is None or loss < lowest:
            lowest, twin = loss, copy.deepcopy(model)
    with torch.no_grad():
        for mine, kept in zip(model.parameters(), twin.parameters(), strict=True):
            mine.copy_(kept)
    for mine, kept in zip(model.buffers(), twin.buffers(), strict=True):
        mine.copy_(kept)
    return lowest


@right("best-epoch")
def through_data(model, train, epochs):
    lowest = float("inf")
    for _ in range(epochs):
        if (loss := train(model)) < lowest:
            lowest, best = loss, [t.detach().clone() for t in [*model.parameters(), *model.buffers()]]
    for tensor, value in zip([*model.parameters(), *model.buffers()], best, strict=True):
        tensor.data = value


@wrong("best-epoch", "memory of its own")
def the_state_dict_itself(model, train, epochs):
    """A state_dict is a snapshot."""
    lowest = float("inf")
    for _ in range(epochs):
        if (loss := train(model)) < lowest:
            lowest, best = loss, model.state_dict()
    model.load_state_dict(best)


@wrong("best-epoch", "training does not reach")
def a_copied_dictionary(model, train, epochs):
    """To copy the dictionary is to copy the weights."""
    lowest = float("inf")
    for _ in range(epochs):
        if (loss := train(model)) < lowest:
            lowest, best = loss, model.state_dict().copy()
    model.load_state_dict(best)


@wrong("best-epoch", "The buffers are not: look at norm.running_mean")
def parameters_only(model, train, epochs):
    """The parameters are all that training changes."""
    lowest = float("inf")
    for _ in range(epochs):
        if (loss := train(model)) < lowest:
            lowest, best = loss, {name: p.detach().clone() for name, p in model.named_parameters()}
    model.load_state_dict(best, strict=False)


@wrong("best-epoch", "an integer, and a buffer")
def floating_point_only(model, train, epochs):
    """A counter is no state that matters."""
    lowest = float("inf")
    for _ in range(epochs):
        if (loss := train(model)) < lowest:
            lowest = loss
            best = {name: e.clone() for name, e in model.state_dict().items() if e.is_floating_point()}
    model.load_state_dict(best, strict=False)


@wrong("best-epoch", "The parameters are not")
def buffers_only(model, train, epochs):
    """A kept parameter is safe, only the running statistics move on."""
    lowest = float("inf")
    for _ in range(epochs):
        if (loss := train(model)) < lowest:
            lowest, best = loss, {**model.state_dict(), **copy.deepcopy(dict(model.named_buffers()))}
    model.load_state_dict(best)


@wrong("best-epoch", "the best epoch began")
def kept_too_early(model, train, epochs):
    """The loss of an epoch is that of the weights it began with."""
    lowest = float("inf")
    for _ in range(epochs):
        before = copy.deepcopy(model.state_dict())
        if (loss := train(model)) < lowest:
            lowest, best = loss, before
    model.load_state_dict(best)


@wrong("best-epoch", "holds other parameters than the model")
def assigned(model, train, epochs):
    """assign=True is the thorough way to load."""
    lowest = float("inf")
    for _ in range(epochs):
        if (loss := train(model)) < lowest:
            lowest, best = loss, copy.deepcopy(model.state_dict())
    model.load_state_dict(best, assign=True)


@wrong("best-epoch", "What you return has the best values")
def returns_a_copy(model, train, epochs):
    """Whoever gave me the model takes what I return."""
    lowest = float("inf")
    for _ in range(epochs):
        if (loss := train(model)) < lowest:
            lowest, best = loss, copy.deepcopy(model)
    model = best
    return model


@wrong("best-epoch", "with loss 8.0")
def better_than_before(model, train, epochs):
    """The best epoch is the last one that was better than the one before."""
    last = float("inf")
    for _ in range(epochs):
        if (loss := train(model)) < last:
            best = copy.deepcopy(model.state_dict())
        last = loss
    model.load_state_dict(best)


@wrong("best-epoch", "with loss 40.0")
def highest(model, train, epochs):
    """A higher number is better, as with accuracy."""
    best_score = float("-inf")
    for _ in range(epochs):
        if (score := train(model)) > best_score:
            best_score, best = score, copy.deepcopy(model.state_dict())
    model.load_state_dict(best)


@wrong("best-epoch", "Restore it at the end")
def restored_in_the_loop(model, train, epochs):
    """As soon as an epoch was worse, the best one is to be restored."""
    lowest = float("inf")
    for _ in range(epochs):
        if (loss := train(model)) < lowest:
            lowest, best = loss, copy.deepcopy(model.state_dict())
        else:
            model.load_state_dict(best)


@wrong("best-epoch", "epochs were asked for")
def stops_early(model, train, epochs):
    """A worse epoch is the end of training."""
    lowest = float("inf")
    for _ in range(epochs):
        if (loss := train(model)) >= lowest:
            break
        lowest, best = loss, copy.deepcopy(model.state_dict())
    model.load_state_dict(best)


@wrong("best-epoch", "is not the model")
def trains_a_copy(model, train, epochs):
    """The optimizer follows the model, whichever copy I train."""
    lowest, twin = float("inf"), copy.deepcopy(model)
    for _ in range(epochs):
        if (loss := train(twin)) < lowest:
            lowest, best = loss, copy.deepcopy(twin.state_dict())
    model.load_state_dict(best)


@wrong("best-epoch", "But the model's flags changed")
def all_ask(model, train, epochs):
    """After restoring, everything is to train on."""
    restore_rightly(model, train, epochs)
    model.requires_grad_(True)


@wrong("best-epoch", "But the model's names changed")
def kept_in_the_model(model, train, epochs):
    """What belongs to a model is best kept in the model."""
    restore_rightly(model, train, epochs)
    model.register_buffer("best", torch.zeros(1))


@wrong("best-epoch", "With losses [3000000.0")
def from_a_hundred(model, train, epochs):
    """No loss is above a hundred."""
    lowest = 100.0
    for _ in range(epochs):
        if (loss := train(model)) < lowest:
            lowest, best = loss, copy.deepcopy(model.state_dict())
    model.load_state_dict(best)


@wrong("best-epoch", "with loss 0.52. The lowest")
def clearly_better(model, train, epochs):
    """A little lower is not lower."""
    lowest = float("inf")
    for _ in range(epochs):
        if (loss := train(model)) < lowest - 0.1:
            lowest, best = loss, copy.deepcopy(model.state_dict())
    model.load_state_dict(best)


@wrong("best-epoch", "with loss 0.5. The lowest")
def nearest_to_zero(model, train, epochs):
    """The best loss is the one nearest to zero."""
    lowest = float("inf")
    for _ in range(epochs):
        if abs(loss := train(model)) < abs(lowest):
            lowest, best = loss, copy.deepcopy(model.state_dict())
    model.load_state_dict(best)


@wrong("best-epoch", "of no epoch of this call")
def kept_in_half(model, train, epochs):
    """A snapshot may have fewer digits than the model."""
    lowest = float("inf")
    for _ in range(epochs):
        if (loss := train(model)) < lowest:
            lowest, best = loss, {name: entry.half() for name, entry in model.state_dict().items()}
    model.load_state_dict(best)


@wrong("best-epoch", "was train given no model?")
def arguments_swapped(train, model, epochs):
    """Arguments are found by their names."""
    restore_rightly(model, train, epochs)


@wrong("best-epoch", "Your loop does not end")
def until_it_is_zero(model, train, epochs):
    """Training ends when the loss is zero."""
    while train(model) != 0:
        best = copy.deepcopy(model.state_dict())
    model.load_state_dict(best)


def backbone_of(saved, head):
    cut = {name.removeprefix("module."): entry for name, entry in saved.items()}
    return {name: entry for name, entry in cut.items() if not name.startswith(f"{head}.")}


@right("load-backbone")
def load_rightly(model, saved, head):
    rest = {name.removeprefix("module."): entry for name, entry in saved.items()}
    rest = {name: entry for name, entry in rest.items() if not name.startswith(f"{head}.")}
    own = model.state_dict()
    if {name: e.shape for name, e in rest.items()} != {
        name: e.shape for name, e in own.items() if not name.startswith(f"{head}.")
    }:
        raise ValueError("names or sizes do not fit")
    model.load_state_dict(rest, strict=False)


@right("load-backbone")
def tried_on_a_copy(model, saved, head):
    rest = backbone_of(saved, head)
    for target in (copy.deepcopy(model), model):
        missing, unexpected = target.load_state_dict(rest, strict=False)
        if unexpected or any(name.split(".")[0] != head for name in missing):
            raise KeyError(f"{missing} {unexpected}")


@right("load-backbone")
def rolled_back(model, saved, head):
    old = copy.deepcopy(model.state_dict())
    own_head = {name: entry for name, entry in old.items() if name.startswith(f"{head}.")}
    try:
        model.load_state_dict(backbone_of(saved, head) | own_head)
    except RuntimeError:
        model.load_state_dict(old)
        raise


@right("load-backbone")
def copied_by_hand(model, saved, head):
    targets = {name: t for name, t in model.state_dict().items() if name.split(".")[0] != head}
    found = {}
    for name, entry in saved.items():
        words = name.split(".")
        words = words[1:] if words[0] == "module" else words
        if words[0] != head:
            found[".".join(words)] = entry
    assert set(found) == set(targets), set(found) ^ set(targets)
    assert all(found[name].shape == targets[name].shape for name in found)
    for name, target in targets.items():
        target.copy_(found[name])


@right("load-backbone")
def with_the_tool_of_torch(model, saved, head):
    names = dict(saved)
    nn.modules.utils.consume_prefix_in_state_dict_if_present(names, "module.")
    for name in [name for name in names if name.startswith(f"{head}.")]:
        del names[name]
    for name, entry in model.state_dict().items():
        if name.startswith(f"{head}."):
            names[name] = entry.clone()
    copy.deepcopy(model).load_state_dict(names, strict=True)
    model.load_state_dict(names, strict=True)


@right("load-backbone")
def all_or_none_cut(model, saved, head):
    rest = dict(saved)
    if all(name.startswith("module.") for name in rest):
        rest = {name[7:]: entry for name, entry in rest.items()}
    rest = {name: entry for name, entry in rest.items() if name.partition(".")[0] != head}
    if rest.keys() != {name for name in model.state_dict() if name.partition(".")[0] != head}:
        raise KeyError("names")
    copy.deepcopy(model).load_state_dict(rest, strict=False)
    model.load_state_dict(rest, strict=False)


@wrong("load-backbone", "strict=False hides that")
def not_strict(model, saved, head):
    """strict=False lets only that pass which may be missing."""
    cut = {name.removeprefix("module."): entry for name, entry in saved.items()}
    rest = {name: entry for name, entry in cut.items() if not name.startswith(f"{head}.")}
    model.load_state_dict(rest, strict=False)


@wrong("load-backbone", "if they fill up saved")
def filled_up(model, saved, head):
    """With the model's own entries as a start, the load can be strict, so it checks everything."""
    own = copy.deepcopy(model.state_dict())
    own.update(backbone_of(saved, head))
    model.load_state_dict(own)


@wrong("load-backbone", "by then layer1.weight was changed")
def looks_afterwards(model, saved, head):
    """To raise after loading is early enough."""
    missing, unexpected = model.load_state_dict(backbone_of(saved, head), strict=False)
    if unexpected or any(not name.startswith(f"{head}.") for name in missing):
        raise ValueError(missing + unexpected)


@wrong("load-backbone", "takes a real snapshot")
def no_snapshot(model, saved, head):
    """model.state_dict() keeps the old values."""
    old = model.state_dict()
    missing, unexpected = model.load_state_dict(backbone_of(saved, head), strict=False)
    if unexpected or any(not name.startswith(f"{head}.") for name in missing):
        model.load_state_dict(old)
        raise ValueError(missing + unexpected)


@wrong("load-backbone", "fc_norm was left out")
def beginning_letters(model, saved, head):
    """What begins with the letters of the head is the head."""
    cut = {name.removeprefix("module."): entry for name, entry in saved.items()}
    rest = {name: entry for name, entry in cut.items() if not name.startswith(head)}
    missing, unexpected = copy.deepcopy(model).load_state_dict(rest, strict=False)
    if unexpected or any(not name.startswith(head) for name in missing):
        raise ValueError(missing + unexpected)
    model.load_state_dict(rest, strict=False)


@wrong("load-backbone", "It is a part of body")
def at_any_depth(model, saved, head):
    """No other part has the name of the head."""
    cut = {name.removeprefix("module."): entry for name, entry in saved.items()}
    rest = {name: entry for name, entry in cut.items() if head not in name.split(".")}
    own = {name: e for name, e in model.state_dict().items() if name.startswith(f"{head}.")}
    copy.deepcopy(model).load_state_dict(rest | own)
    model.load_state_dict(rest | own)


@wrong("load-backbone", "norm.running_var, a buffer, has three numbers")
def sizes_of_parameters(model, saved, head):
    """Only parameters have sizes that differ."""
    rest = backbone_of(saved, head)
    own = {name: e for name, e in model.state_dict().items() if not name.startswith(f"{head}.")}
    sizes = {name: p.shape for name, p in model.named_parameters()}
    if set(rest) != set(own) or any(name in sizes and rest[name].shape != sizes[name] for name in rest):
        raise ValueError("names or sizes do not fit")
    model.load_state_dict(rest, strict=False)


@wrong("load-backbone", "in the middle of a name")
def replaced_everywhere(model, saved, head):
    """module. is found only at the beginning of a name."""
    cut = {name.replace("module.", ""): entry for name, entry in saved.items()}
    rest = {name: entry for name, entry in cut.items() if not name.startswith(f"{head}.")}
    own = {name: e for name, e in model.state_dict().items() if name.startswith(f"{head}.")}
    copy.deepcopy(model).load_state_dict(rest | own)
    model.load_state_dict(rest | own)


@wrong("load-backbone", "are body.module.weight and fc_norm.weight among them?")
def last_words(model, saved, head):
    """The name of a tensor is what stands after the last part."""
    cut = {".".join(name.split(".")[-2:]): entry for name, entry in saved.items()}
    load_rightly(model, cut, head)


@wrong("load-backbone", "lstrip('module.') takes off")
def stripped(model, saved, head):
    """lstrip takes off a word."""
    rest = {name.lstrip("module."): entry for name, entry in saved.items()}
    rest = {name: entry for name, entry in rest.items() if not name.startswith(f"{head}.")}
    missing, unexpected = copy.deepcopy(model).load_state_dict(rest, strict=False)
    bad = [name for name in missing if not name.startswith(f"{head}.")] + unexpected
    if bad:
        raise ValueError(f"do not fit: {bad}")
    model.load_state_dict(rest, strict=False)


@wrong("load-backbone", "all names in saved begin with module.")
def prefix_left(model, saved, head):
    """load_state_dict knows the names of DataParallel."""
    heads = (f"{head}.", f"module.{head}.")
    rest = {name: entry for name, entry in saved.items() if not name.startswith(heads)}
    own = {name: entry for name, entry in model.state_dict().items() if name.startswith(f"{head}.")}
    copy.deepcopy(model).load_state_dict(rest | own)
    model.load_state_dict(rest | own)


@wrong("load-backbone", "leave its entries out by name")
def what_fits(model, saved, head):
    """The head is what does not fit."""
    own = model.state_dict()
    cut = {name.removeprefix("module."): entry for name, entry in saved.items()}
    fits = {name: e for name, e in cut.items() if name in own and own[name].shape == e.shape}
    model.load_state_dict(fits, strict=False)


@wrong("load-backbone", "spreads one number over any size")
def sizes_not_compared(model, saved, head):
    """copy_ refuses another size."""
    rest = backbone_of(saved, head)
    own = {name: e for name, e in model.state_dict().items() if not name.startswith(f"{head}.")}
    if set(rest) != set(own):
        raise ValueError(set(rest) ^ set(own))
    for name, entry in own.items():
        entry.copy_(rest[name])


@wrong("load-backbone", "other Parameter objects")
def assigned_too(model, saved, head):
    """assign=True is the thorough way to load."""
    rest = backbone_of(saved, head)
    copy.deepcopy(model).load_state_dict(
        rest | {n: e for n, e in model.state_dict().items() if n.startswith(f"{head}.")}
    )
    model.load_state_dict(rest, strict=False, assign=True)


@wrong("load-backbone", "in the memory of saved")
def same_memory(model, saved, head):
    """Setting .data copies values."""
    load_rightly(model, saved, head)
    for name, entry in backbone_of(saved, head).items():
        owner, _, attribute = name.rpartition(".")
        getattr(model.get_submodule(owner), attribute).data = entry


@wrong("load-backbone", "saved was changed")
def renamed_in_place(model, saved, head):
    """The dictionary is mine to change."""
    for name in list(saved):
        entry = saved.pop(name)
        if not name.removeprefix("module.").startswith(f"{head}."):
            saved[name.removeprefix("module.")] = entry
    load_rightly(model, saved, head)


@wrong("load-backbone", "the buffers are not")
def parameters_of_the_backbone(model, saved, head):
    """The parameters are what a checkpoint has."""
    rest = backbone_of(saved, head)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith(f"{head}."):
                parameter.copy_(rest[name])


@wrong("load-backbone", "The model that was given is not")
def loads_a_copy(model, saved, head):
    """Whoever gave me the model takes what I return."""
    model = copy.deepcopy(model)
    load_rightly(model, saved, head)
    return model


@wrong("load-backbone", "the model's flags changed")
def all_trainable(model, saved, head):
    """What was just loaded is to train."""
    load_rightly(model, saved, head)
    model.requires_grad_(True)


@wrong("load-backbone", "fc is the model's own head")
def head_thrown_away(model, saved, head):
    """Without its head the model is the backbone, and can be loaded strictly."""
    setattr(model, head, nn.Identity())
    model.load_state_dict(backbone_of(saved, head))


@wrong("load-backbone", "Load dict(entries)")
def mark_kept(model, saved, head):
    """copy.copy of a state_dict is what dict() of it is."""
    names = copy.copy(saved)
    nn.modules.utils.consume_prefix_in_state_dict_if_present(names, "module.")
    for name in [name for name in names if name.startswith(f"{head}.")]:
        del names[name]
    own = {name: entry for name, entry in model.state_dict().items() if name.startswith(f"{head}.")}
    copy.deepcopy(model).load_state_dict(names | own)
    model.load_state_dict(names, strict=False)


@wrong("load-backbone", "Load dict(entries)")
def deeply_copied(model, saved, head):
    """A deep copy of the entries is safe in every way."""
    names = copy.deepcopy(saved)
    for name in list(names):
        entry = names.pop(name)
        if not name.removeprefix("module.").startswith(f"{head}."):
            names[name.removeprefix("module.")] = entry
    own = {name: entry for name, entry in model.state_dict().items() if name.startswith(f"{head}.")}
    copy.deepcopy(model).load_state_dict(names | own)
    model.load_state_dict(names, strict=False)


@wrong("load-backbone", "the head has several layers here")
def weight_and_bias(model, saved, head):
    """A head is one layer, with a weight and a bias."""
    cut = {name.removeprefix("module."): entry for name, entry in saved.items()}
    rest = {name: entry for name, entry in cut.items() if name not in (f"{head}.weight", f"{head}.bias")}
    missing, unexpected = copy.deepcopy(model).load_state_dict(rest, strict=False)
    if unexpected or any(not name.startswith(f"{head}.") for name in missing):
        raise ValueError(f"do not fit: {missing + unexpected}")
    model.load_state_dict(rest, strict=False)


@wrong("load-backbone", "The head's entries are still in what you load")
def head_not_cut(model, saved, head):
    """strict=False lets sizes pass, too."""
    model.load_state_dict({name.removeprefix("module."): entry for name, entry in saved.items()}, strict=False)


@wrong("load-backbone", "not rightly: layer1.weight")
def in_half_precision(model, saved, head):
    """A load gives back the digits that a conversion took."""
    load_rightly(model, {name: entry.half() for name, entry in saved.items()}, head)


@wrong("load-backbone", "there was no error")
def error_returned(model, saved, head):
    """Whoever calls a function looks at what it returns."""
    try:
        load_rightly(model, saved, head)
    except ValueError as error:
        return error


@wrong("load-backbone", "another gradient mode")
def recording_off(model, saved, head):
    """A model that did not load is safe if nothing can train it."""
    try:
        load_rightly(model, saved, head)
    except ValueError:
        torch.set_grad_enabled(False)


@wrong("load-backbone", "the model's mode changed")
def ready_to_predict(model, saved, head):
    """A model that was loaded is there to predict."""
    load_rightly(model, saved, head)
    model.eval()


@wrong("load-backbone", "the model's dtypes changed")
def in_double(model, saved, head):
    """More digits do no harm."""
    load_rightly(model, saved, head)
    model.double()


@wrong("load-backbone", "flags in saved were changed")
def asking_entries(model, saved, head):
    """An entry has to ask, so that the parameter asks."""
    for entry in saved.values():
        entry.requires_grad_(entry.is_floating_point())
    load_rightly(model, saved, head)
