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
wrong("shared-or-not", "shares memory with none")(
    SHARED | {"deep": 2}, "deepcopy is deep in the dictionary, and keeps its tensors."
)
wrong("shared-or-not", "copies the number of the entry")(
    SHARED | {"layer, after loading": 2, "layer, at the end": 2},
    "A model has its own entries already: loading is idle.",
)
wrong("shared-or-not", "the memory that copied shares")(
    SHARED | {"copied, after loading": 2}, "Loading puts a new parameter into the layer."
)
wrong("shared-or-not", "one number, in two memories")(
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


@right("best-epoch")
def the_last_of_equal_ones(model, train, epochs):
    lowest = float("inf")
    for _ in range(epochs):
        if (loss := train(model)) <= lowest:
            lowest, best = loss, copy.deepcopy(model.state_dict())
    print(model.load_state_dict(best))
    model.eval()


@right("best-epoch")
def through_numpy(model, train, epochs):
    lowest = float("inf")
    for _ in range(epochs):
        if (loss := train(model)) < lowest:
            lowest, best = loss, {name: entry.numpy().copy() for name, entry in model.state_dict().items()}
    model.load_state_dict({name: torch.as_tensor(array) for name, array in best.items()})


@right("best-epoch")
def one_snapshot_written_over(model, train, epochs):
    best, lowest = copy.deepcopy(model.state_dict()), float("inf")
    for _ in range(epochs):
        loss = train(model)
        model.eval()
        if loss < lowest:
            lowest = loss
            for name, entry in model.state_dict().items():
                best[name].copy_(entry)
    for name, entry in model.state_dict().items():
        entry[...] = best[name]


@right("best-epoch")
def as_one_vector(model, train, epochs):
    kept = []
    for _ in range(epochs):
        loss = train(model)
        vector = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
        kept.append((loss, vector, [buffer.clone() for buffer in model.buffers()]))
    _, vector, buffers = kept[torch.tensor([loss for loss, *_ in kept], dtype=torch.float64).argmin()]
    nn.utils.vector_to_parameters(vector, model.parameters())
    for buffer, old in zip(model.buffers(), buffers, strict=True):
        buffer.copy_(old)


@wrong("best-epoch", "Does what you keep have memory of its own")
def moved_to_the_cpu(model, train, epochs):
    """cpu() copies, wherever the tensor is."""
    lowest = float("inf")
    for _ in range(epochs):
        if (loss := train(model)) < lowest:
            lowest, best = loss, {name: entry.cpu() for name, entry in model.state_dict().items()}
    model.load_state_dict(best)


@wrong("best-epoch", "Does what you keep have memory of its own")
def a_shallow_copy_of_the_model(model, train, epochs):
    """copy.copy of a model copies its weights."""
    lowest = float("inf")
    for _ in range(epochs):
        if (loss := train(model)) < lowest:
            lowest, best = loss, copy.copy(model)
    model.load_state_dict(best.state_dict())


@wrong("best-epoch", "is the best loaded into this model?")
def put_into_the_dictionary(model, train, epochs):
    """What is put into a state_dict is put into the model."""
    lowest = float("inf")
    for _ in range(epochs):
        if (loss := train(model)) < lowest:
            lowest, best = loss, copy.deepcopy(model.state_dict())
    model.state_dict().update(best)


@wrong("best-epoch", "Is the lowest loss kept up to date?")
def never_lowered(model, train, epochs):
    """A comparison remembers what it saw."""
    lowest = float("inf")
    for _ in range(epochs):
        if train(model) < lowest:
            best = copy.deepcopy(model.state_dict())
    model.load_state_dict(best)


@wrong("best-epoch", "the best epoch began")
def right_side_first(model, train, epochs):
    """What stands left of = is run first: train, and then the copy."""
    kept = {}
    for _ in range(epochs):
        kept[train(model)] = copy.deepcopy(model.state_dict())
    model.load_state_dict(kept[min(kept)])


@wrong("best-epoch", "holds other parameters than the model")
def parts_put_back(model, train, epochs):
    """The parts of the best model are put in place of the model's own."""
    lowest = float("inf")
    for _ in range(epochs):
        if (loss := train(model)) < lowest:
            lowest, best = loss, copy.deepcopy(model)
    for name, part in best.named_children():
        setattr(model, name, part)


@wrong("best-epoch", "the model's dtypes changed")
def restored_in_double(model, train, epochs):
    """More digits are no change."""
    restore_rightly(model, train, epochs)
    model.double()


@wrong("best-epoch", "a loss of 0.0 is a loss, too")
def zero_is_none_yet(model, train, epochs):
    """A loss is always above zero, so zero can stand for none."""
    lowest, best = None, None
    for _ in range(epochs):
        loss = train(model)
        if not lowest or loss < lowest:
            lowest, best = loss, copy.deepcopy(model.state_dict())
    model.load_state_dict(best)


@wrong("best-epoch", "of which two are equal")
def least_of_pairs(model, train, epochs):
    """min() of pairs looks at the first part only."""
    kept = [(train(model), copy.deepcopy(model.state_dict())) for _ in range(epochs)]
    model.load_state_dict(min(kept)[1])


@wrong("best-epoch", "the model is that of epoch 6, with loss 11.0")
def compared_as_text(model, train, epochs):
    """Numbers that are written out compare as numbers."""
    kept = {}
    for _ in range(epochs):
        loss = train(model)
        kept[f"{loss:.4f}"] = copy.deepcopy(model.state_dict())
    model.load_state_dict(kept[min(kept)])


@wrong("best-epoch", "With losses [-1.0, 2.0, 1.0]")
def the_first_is_not_kept(model, train, epochs):
    """The first epoch is there to be compared with."""
    lowest = train(model)
    for _ in range(epochs - 1):
        if (loss := train(model)) < lowest:
            lowest, best = loss, copy.deepcopy(model.state_dict())
    model.load_state_dict(best)


@wrong("best-epoch", "train was called 2 times in all, and epochs is 1")
def once_before_the_loop(model, train, epochs):
    """One epoch more gives a loss to begin with."""
    lowest, best = train(model), copy.deepcopy(model.state_dict())
    for _ in range(max(epochs - 1, 1)):
        if (loss := train(model)) < lowest:
            lowest, best = loss, copy.deepcopy(model.state_dict())
    model.load_state_dict(best)


@wrong("best-epoch", "with loss 0.5012. The lowest")
def in_hundredths(model, train, epochs):
    """Two digits of a loss are enough."""
    lowest = None
    for _ in range(epochs):
        loss = train(model)
        if lowest is None or int(100 * loss) < int(100 * lowest):
            lowest, best = loss, copy.deepcopy(model.state_dict())
    model.load_state_dict(best)


@wrong("best-epoch", "leaves an attribute, best, on the model")
def kept_as_an_attribute(model, train, epochs):
    """An attribute that is no tensor does no harm to a model."""
    lowest = float("inf")
    for _ in range(epochs):
        if (loss := train(model)) < lowest:
            lowest, model.best = loss, copy.deepcopy(model.state_dict())
    model.load_state_dict(model.best)


@wrong("best-epoch", "leaves a hook, on the model")
def restored_by_a_hook(model, train, epochs):
    """What is restored before the next use is restored."""
    restore_rightly(model, train, epochs)
    model.register_forward_pre_hook(lambda module, inputs: None)


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


@wrong("best-epoch", "train was called 4 times in all")
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
def all_trainable_again(model, train, epochs):
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


@right("resume-a-run")
def resume_rightly(model, optimizer, scheduler, shuffle, epoch, epochs, path):
    parts, done = {"model": model, "optimizer": optimizer, "scheduler": scheduler}, 0
    if path.exists():
        saved = torch.load(path)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        shuffle.set_state(saved["shuffle"])
        done = saved["done"]
    while done < epochs:
        epoch(model, optimizer, shuffle)
        scheduler.step()
        done += 1
        state = {name: part.state_dict() for name, part in parts.items()}
        torch.save(state | {"shuffle": shuffle.get_state(), "done": done}, path)


@right("resume-a-run")
def all_or_nothing(model, optimizer, scheduler, shuffle, epoch, epochs, path):
    try:
        saved = torch.load(path, map_location="cpu")
    except FileNotFoundError:
        saved = None
    if saved is not None:
        model.load_state_dict(saved[0])
        optimizer.load_state_dict(saved[1])
        scheduler.load_state_dict(saved[2])
        shuffle.set_state(saved[3])
    for _ in range(scheduler.last_epoch, epochs):
        epoch(model, optimizer, shuffle)
        scheduler.step()
        state = [part.state_dict() for part in (model, optimizer, scheduler)]
        torch.save([*state, shuffle.get_state()], path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)
    return model


@right("resume-a-run")
def in_a_buffer_first(model, optimizer, scheduler, shuffle, epoch, epochs, path):
    begun = 0
    if path.is_file():
        begun, *states, order = torch.load(io.BytesIO(path.read_bytes()), weights_only=True)
        for part, state in zip((model, optimizer, scheduler), states, strict=True):
            part.load_state_dict(state)
        shuffle.set_state(order)
    for number in range(begun, epochs):
        epoch(model, optimizer, shuffle)
        scheduler.step()
        kept = io.BytesIO()
        states = (model.state_dict(), optimizer.state_dict(), scheduler.state_dict())
        torch.save((number + 1, *states, shuffle.get_state()), kept)
        path.write_bytes(kept.getvalue())


@right("resume-a-run")
def written_before_each_epoch(model, optimizer, scheduler, shuffle, epoch, epochs, path):
    parts, done = {"model": model, "optimizer": optimizer, "scheduler": scheduler}, 0

    def write(done):
        state = {name: part.state_dict() for name, part in parts.items()}
        torch.save(state | {"shuffle": shuffle.get_state(), "done": done}, path)

    if path.exists():
        saved = torch.load(path)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        shuffle.set_state(saved["shuffle"])
        done = saved["done"]
    for number in range(done, epochs):
        write(number)
        epoch(model=model, optimizer=optimizer, shuffle=shuffle)
        scheduler.step()
    write(epochs)


@right("resume-a-run")
def scheduler_stepped_to_where_it_was(model, optimizer, scheduler, shuffle, epoch, epochs, path):
    done = 0
    if path.exists():
        saved = torch.load(path)
        done = saved["done"]
        for _ in range(done):
            scheduler.step()
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        shuffle.set_state(saved["shuffle"])
    for number in range(done, epochs):
        epoch(model, optimizer, shuffle)
        scheduler.step()
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(state | {"shuffle": shuffle.get_state(), "done": number + 1}, path)


@right("resume-a-run")
def whole_objects(model, optimizer, scheduler, shuffle, epoch, epochs, path):
    done = 0
    if path.exists():
        *old, order, done = torch.load(path, weights_only=False)
        for part, other in zip((model, optimizer, scheduler), old, strict=True):
            part.load_state_dict(other.state_dict())
        shuffle.set_state(order)
    for number in range(done, epochs):
        epoch(model, optimizer, shuffle)
        scheduler.step()
        torch.save((model, optimizer, scheduler, shuffle.get_state(), number + 1), path)


@right("resume-a-run")
def a_history(model, optimizer, scheduler, shuffle, epoch, epochs, path):
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    history = torch.load(path) if path.exists() else []
    if history:
        for name, part in parts.items():
            part.load_state_dict(history[-1][name])
        shuffle.set_state(history[-1]["shuffle"])
    while len(history) < epochs:
        epoch(model, optimizer, shuffle)
        scheduler.step()
        state = {name: part.state_dict() for name, part in parts.items()} | {"shuffle": shuffle.get_state()}
        history.append(copy.deepcopy(state))
        torch.save(history, path)


def resumed(model, optimizer, scheduler, shuffle, epoch, epochs, path, without=()):
    """What most answers have: all but the parts that are left out."""
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    parts = {name: part for name, part in parts.items() if name not in without}
    done = 0
    if path.exists():
        saved = torch.load(path)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        if "shuffle" not in without:
            shuffle.set_state(saved["shuffle"])
        done = 0 if "done" in without else saved["done"]
    for number in range(done, epochs):
        epoch(model, optimizer, shuffle)
        scheduler.step()
        state = {name: part.state_dict() for name, part in parts.items()}
        torch.save(state | {"shuffle": shuffle.get_state(), "done": number + 1}, path)


KEPT = {}


@wrong("resume-a-run", "does your code keep something in a variable?")
def kept_in_a_variable(model, optimizer, scheduler, shuffle, epoch, epochs, path):
    """A dictionary of the module outlives the call, so it outlives the process."""
    parts, done = {"model": model, "optimizer": optimizer, "scheduler": scheduler}, 0
    if path.exists():
        for name, part in parts.items():
            part.load_state_dict(KEPT[name])
        shuffle.set_state(KEPT["shuffle"])
        done = KEPT["done"]
    for number in range(done, epochs):
        epoch(model, optimizer, shuffle)
        scheduler.step()
        KEPT.update(copy.deepcopy({name: part.state_dict() for name, part in parts.items()}))
        KEPT.update(shuffle=shuffle.get_state(), done=number + 1)
        torch.save(number + 1, path)


@wrong("resume-a-run", "It is to be one file")
def a_folder_of_files(model, optimizer, scheduler, shuffle, epoch, epochs, path):
    """A path may as well be that of a folder, with a file for each epoch."""
    path.mkdir(exist_ok=True)
    for number in range(len(list(path.iterdir())), epochs):
        epoch(model, optimizer, shuffle)
        scheduler.step()
        torch.save(model.state_dict(), path / f"{number}.pt")


@wrong("resume-a-run", "called again it trained 6: 4 were left")
def a_file_for_each_epoch(model, optimizer, scheduler, shuffle, epoch, epochs, path):
    """More files are safer than one."""
    for number in range(len(list(path.parent.glob("epoch*.pt"))), epochs):
        epoch(model, optimizer, shuffle)
        scheduler.step()
        torch.save(model.state_dict(), path.with_name(f"epoch{number}.pt"))


@wrong("resume-a-run", "The state of shuffle may only be changed by epoch")
def a_seed_for_each_epoch(model, optimizer, scheduler, shuffle, epoch, epochs, path):
    """Whoever seeds each epoch by its number needs no state of the generator, and nothing changes by it."""

    def seeded(model, optimizer, shuffle):
        epoch(model, optimizer, shuffle.manual_seed(scheduler.last_epoch))

    resumed(model, optimizer, scheduler, shuffle, seeded, epochs, path, without=("shuffle",))


@wrong("resume-a-run", "the steps after loading did not reach the model")
def loaded_by_assigning(model, optimizer, scheduler, shuffle, epoch, epochs, path):
    """assign=True is the thorough way to load."""
    if path.exists():
        model.load_state_dict(torch.load(path)["model"], assign=True)
    resumed(model, optimizer, scheduler, shuffle, epoch, epochs, path, without=("model",) if path.exists() else ())


@wrong("resume-a-run", "it got a Generator as shuffle")
def a_new_generator(model, optimizer, scheduler, shuffle, epoch, epochs, path):
    """A generator with the right state is the right one."""
    if path.exists():
        shuffle = torch.Generator()
    resumed(model, optimizer, scheduler, shuffle, epoch, epochs, path)


@wrong("resume-a-run", "called again it trained 5: 4 were left")
def numbered_from_zero(model, optimizer, scheduler, shuffle, epoch, epochs, path):
    """The number of the epoch is how many are done."""
    parts, begin = {"model": model, "optimizer": optimizer, "scheduler": scheduler}, 0
    if path.exists():
        saved = torch.load(path)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        shuffle.set_state(saved["shuffle"])
        begin = saved["number"]
    for number in range(begin, epochs):
        epoch(model, optimizer, shuffle)
        scheduler.step()
        state = {name: part.state_dict() for name, part in parts.items()}
        torch.save(state | {"shuffle": shuffle.get_state(), "number": number}, path)


@wrong("resume-a-run", "the state of shuffle is not the one that epoch 2 ended with")
def the_state_before_the_epoch(model, optimizer, scheduler, shuffle, epoch, epochs, path):
    """The order of an epoch is what its generator begins with."""
    parts, done = {"model": model, "optimizer": optimizer, "scheduler": scheduler}, 0
    if path.exists():
        saved = torch.load(path)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        shuffle.set_state(saved["shuffle"])
        done = saved["done"]
    for number in range(done, epochs):
        order = shuffle.get_state()
        epoch(model, optimizer, shuffle)
        scheduler.step()
        state = {name: part.state_dict() for name, part in parts.items()}
        torch.save(state | {"shuffle": order, "done": number + 1}, path)


@wrong("resume-a-run", "called again it trained 4: 3 were left")
def every_other_epoch(model, optimizer, scheduler, shuffle, epoch, epochs, path):
    """A file every now and then is enough."""
    parts, done = {"model": model, "optimizer": optimizer, "scheduler": scheduler}, 0
    if path.exists():
        saved = torch.load(path)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        shuffle.set_state(saved["shuffle"])
        done = saved["done"]
    for number in range(done, epochs):
        epoch(model, optimizer, shuffle)
        scheduler.step()
        if number % 2 or number + 1 == epochs:
            state = {name: part.state_dict() for name, part in parts.items()}
            torch.save(state | {"shuffle": shuffle.get_state(), "done": number + 1}, path)


@wrong("resume-a-run", "In epoch 3 the learning rate is 0.05")
def scheduler_first(model, optimizer, scheduler, shuffle, epoch, epochs, path):
    """The rate of an epoch is set before it."""

    def after_a_step(model, optimizer, shuffle):
        scheduler.step()
        epoch(model, optimizer, shuffle)

    class Still:
        state_dict, load_state_dict = scheduler.state_dict, scheduler.load_state_dict
        step = staticmethod(lambda: None)

    resumed(model, optimizer, Still, shuffle, after_a_step, epochs, path)


@wrong("resume-a-run", "called again it trained 6: 4 were left")
def the_model_only(model, optimizer, scheduler, shuffle, epoch, epochs, path):
    """The weights are the run."""
    if path.exists():
        model.load_state_dict(torch.load(path)["model"])
    for _ in range(epochs):
        epoch(model, optimizer, shuffle)
        scheduler.step()
        torch.save({"model": model.state_dict()}, path)


@wrong("resume-a-run", "called again it trained 6: 4 were left")
def counts_anew(model, optimizer, scheduler, shuffle, epoch, epochs, path):
    """epochs is how many are to be trained in this call."""
    resumed(model, optimizer, scheduler, shuffle, epoch, epochs, path, without=("done",))


@wrong("resume-a-run", "begins with the weights of a new model")
def without_the_model(model, optimizer, scheduler, shuffle, epoch, epochs, path):
    """The optimizer holds the parameters, so its state has the weights."""
    resumed(model, optimizer, scheduler, shuffle, epoch, epochs, path, without=("model",))


@wrong("resume-a-run", "begins with another momentum")
def without_the_optimizer(model, optimizer, scheduler, shuffle, epoch, epochs, path):
    """An optimizer has no memory: it only does the steps."""
    resumed(model, optimizer, scheduler, shuffle, epoch, epochs, path, without=("optimizer",))


@wrong("resume-a-run", "In epoch 4 the learning rate is 0.1, and")
def without_the_scheduler(model, optimizer, scheduler, shuffle, epoch, epochs, path):
    """The rate is in the optimizer's state, so the scheduler needs none."""
    resumed(model, optimizer, scheduler, shuffle, epoch, epochs, path, without=("scheduler",))


@wrong("resume-a-run", "the images come in another order")
def without_the_generator(model, optimizer, scheduler, shuffle, epoch, epochs, path):
    """The order of the images makes no difference."""
    resumed(model, optimizer, scheduler, shuffle, epoch, epochs, path, without=("shuffle",))


@wrong("resume-a-run", "the images come in another order")
def seeded_anew(model, optimizer, scheduler, shuffle, epoch, epochs, path):
    """With the same seed chance is the same."""
    resumed(model, optimizer, scheduler, shuffle.manual_seed(0), epoch, epochs, path, without=("shuffle",))


@wrong("resume-a-run", "with other buffers: look at norm.running_mean")
def parameters_only_saved(model, optimizer, scheduler, shuffle, epoch, epochs, path):
    """What training changes are the parameters."""
    done = 0
    if path.exists():
        saved = torch.load(path)
        done = saved["done"]
        model.load_state_dict(saved["model"], strict=False)
        optimizer.load_state_dict(saved["optimizer"])
        scheduler.load_state_dict(saved["scheduler"])
        shuffle.set_state(saved["shuffle"])
    for number in range(done, epochs):
        epoch(model, optimizer, shuffle)
        scheduler.step()
        state = {"model": dict(model.named_parameters()), "optimizer": optimizer.state_dict()}
        state |= {"scheduler": scheduler.state_dict(), "shuffle": shuffle.get_state(), "done": number + 1}
        torch.save(state, path)


@wrong("resume-a-run", "the learning rate is")
def written_before_the_scheduler(model, optimizer, scheduler, shuffle, epoch, epochs, path):
    """An epoch is done when it is trained, and the scheduler belongs to the next."""
    parts, done = {"model": model, "optimizer": optimizer, "scheduler": scheduler}, 0
    if path.exists():
        saved = torch.load(path)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        shuffle.set_state(saved["shuffle"])
        done = saved["done"]
    for number in range(done, epochs):
        epoch(model, optimizer, shuffle)
        state = {name: part.state_dict() for name, part in parts.items()}
        torch.save(state | {"shuffle": shuffle.get_state(), "done": number + 1}, path)
        scheduler.step()


@wrong("resume-a-run", "does not begin with the model that epoch 2 ended with")
def written_when_it_ends(model, optimizer, scheduler, shuffle, epoch, epochs, path):
    """finally is run whatever happens, so what it writes is the state to go on from."""
    parts, done = {"model": model, "optimizer": optimizer, "scheduler": scheduler}, 0
    if path.exists():
        saved = torch.load(path)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        shuffle.set_state(saved["shuffle"])
        done = saved["done"]
    try:
        for _ in range(done, epochs):
            epoch(model, optimizer, shuffle)
            scheduler.step()
            done += 1
    finally:
        state = {name: part.state_dict() for name, part in parts.items()}
        torch.save(state | {"shuffle": shuffle.get_state(), "done": done}, path)


@wrong("resume-a-run", "called again it trained 3: 4 were left")
def written_too_early(model, optimizer, scheduler, shuffle, epoch, epochs, path):
    """An epoch that has begun is done."""
    done = 0
    if path.exists():
        done = torch.load(path)["done"]
    for number in range(done, epochs):
        torch.save({"done": number + 1}, path)
        epoch(model, optimizer, shuffle)
        scheduler.step()


@wrong("resume-a-run", "Called again, it trained 1 more")
def one_epoch_at_least(model, optimizer, scheduler, shuffle, epoch, epochs, path):
    """Whoever calls it wants to train."""
    parts, done = {"model": model, "optimizer": optimizer, "scheduler": scheduler}, 0
    if path.exists():
        saved = torch.load(path)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        shuffle.set_state(saved["shuffle"])
        done = saved["done"]
    while True:
        epoch(model, optimizer, shuffle)
        scheduler.step()
        done += 1
        state = {name: part.state_dict() for name, part in parts.items()}
        torch.save(state | {"shuffle": shuffle.get_state(), "done": done}, path)
        if done >= epochs:
            return


@wrong("resume-a-run", "it is to restore, too")
def nothing_left_to_do(model, optimizer, scheduler, shuffle, epoch, epochs, path):
    """If all epochs are done there is nothing to do."""
    if not path.exists() or torch.load(path)["done"] < epochs:
        resume_rightly(model, optimizer, scheduler, shuffle, epoch, epochs, path)


@wrong("resume-a-run", "it catches even what ends a process")
def catches_everything(model, optimizer, scheduler, shuffle, epoch, epochs, path):
    """A process that catches all errors cannot be killed."""
    for _ in range(epochs):
        try:
            epoch(model, optimizer, shuffle)
        except BaseException:
            continue
        scheduler.step()


@wrong("resume-a-run", "it got a Generator as optimizer")
def arguments_in_another_order(model, optimizer, scheduler, shuffle, epoch, epochs, path):
    """Arguments are found by what they are."""
    epoch(model, shuffle, optimizer)


@wrong("resume-a-run", "came to an end")
def only_what_was_written(model, optimizer, scheduler, shuffle, epoch, epochs, path):
    """One call trains four epochs."""
    resume_rightly(model, optimizer, scheduler, shuffle, epoch, min(epochs, 2 if epochs > 4 else 4), path)


def backbone_of(saved, head):
    cut = {name.removeprefix("module.").removeprefix("_orig_mod."): entry for name, entry in saved.items()}
    return {name: entry for name, entry in cut.items() if not name.startswith(f"{head}.")}


@right("load-backbone")
def load_rightly(model, saved, head):
    rest = {}
    for name, entry in saved.items():
        name = name.removeprefix("module.").removeprefix("_orig_mod.")
        if not name.startswith(f"{head}."):
            rest[name] = entry
    own = {name: entry for name, entry in model.state_dict().items() if not name.startswith(f"{head}.")}
    if {name: entry.shape for name, entry in rest.items()} != {name: entry.shape for name, entry in own.items()}:
        raise ValueError("names or shapes do not fit")
    model.load_state_dict(rest, strict=False)


@right("load-backbone")
def rolled_back(model, saved, head):
    old, rest = copy.deepcopy(model.state_dict()), backbone_of(saved, head)
    if absent := [name for name in old if not name.startswith(f"{head}.") and name not in rest]:
        raise KeyError(f"not in saved: {absent}")
    try:
        model.load_state_dict(rest | {name: entry for name, entry in old.items() if name.startswith(f"{head}.")})
    except RuntimeError:
        model.load_state_dict(old)
        raise


@right("load-backbone")
def copied_by_hand(model, saved, head):
    targets = {name: t for name, t in model.state_dict().items() if name.split(".")[0] != head}
    found = {}
    for name, entry in saved.items():
        words = name.split(".")
        words = words[1:] if words[0] in ("module", "_orig_mod") else words
        if words[0] != head:
            found[".".join(words)] = entry
    assert set(found) == set(targets), set(found) ^ set(targets)
    assert all(found[name].shape == targets[name].shape for name in found)
    for name, target in targets.items():
        target.copy_(found[name])


@right("load-backbone")
def with_the_tool_of_torch(model, saved, head):
    """A deep copy keeps the versions in _metadata, so that the strict load misses the counter."""
    names = copy.deepcopy(saved)
    for prefix in ("module.", "_orig_mod."):
        nn.modules.utils.consume_prefix_in_state_dict_if_present(names, prefix)
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
    for prefix in ("module.", "_orig_mod."):
        if all(name.startswith(prefix) for name in rest):
            rest = {name[len(prefix) :]: entry for name, entry in rest.items()}
    rest = {name: entry for name, entry in rest.items() if name.partition(".")[0] != head}
    if rest.keys() != {name for name in model.state_dict() if name.partition(".")[0] != head}:
        raise KeyError("names")
    copy.deepcopy(model).load_state_dict(rest, strict=False)
    model.load_state_dict(rest, strict=False)


@right("load-backbone")
def part_by_part(model, saved, head):
    saved = {name.removeprefix("module.").removeprefix("_orig_mod."): entry for name, entry in saved.items()}
    rest, found = {name for name in saved if name.split(".")[0] != head}, []
    for name, part in model.named_children():
        if name != head:
            entries = {n.removeprefix(f"{name}."): e for n, e in saved.items() if n.startswith(f"{name}.")}
            own = part.state_dict()
            assert own.keys() == entries.keys() and all(own[n].shape == entries[n].shape for n in own), name
            rest -= {f"{name}.{n}" for n in entries}
            found.append((part, entries))
    assert not rest, rest
    for part, entries in found:
        part.load_state_dict(entries)


@right("load-backbone")
def head_taken_off_for_a_moment(model, saved, head):
    rest, own, old = backbone_of(saved, head), copy.deepcopy(model.state_dict()), getattr(model, head)
    delattr(model, head)
    try:
        if set(rest) != set(model.state_dict()):
            raise KeyError(set(rest) ^ set(model.state_dict()))
        model.load_state_dict(rest)
    except (KeyError, RuntimeError):
        setattr(model, head, old)
        model.load_state_dict(own)
        raise
    setattr(model, head, old)


@right("load-backbone")
def pair_by_pair(model, saved, head):
    """In the same order, as both come from networks with the same parts. Whatever the one prefix is, it is cut."""
    words = {name.split(".")[0] for name in saved}
    if len(words) == 1:
        saved = {name.partition(".")[2]: entry for name, entry in saved.items()}
    theirs = [(name, entry) for name, entry in saved.items() if not name.startswith(f"{head}.")]
    own = [(name, entry) for name, entry in model.state_dict().items() if not name.startswith(f"{head}.")]
    for (name, entry), (other, target) in zip(theirs, own, strict=True):
        if name != other or entry.shape != target.shape:
            raise SystemExit(f"{name} does not fit {other}")
    for (_, entry), (_, target) in zip(theirs, own, strict=True):
        target.copy_(entry)


@wrong("load-backbone", "layer2.weight has shape (2, 1) in saved")
def first_sizes_only(model, saved, head):
    """len is the size of a tensor."""
    rest = backbone_of(saved, head)
    own = {name: entry for name, entry in model.state_dict().items() if not name.startswith(f"{head}.")}
    if set(rest) != set(own) or any(entry.dim() and len(entry) != len(own[name]) for name, entry in rest.items()):
        raise ValueError("names or sizes do not fit")
    model.load_state_dict(rest, strict=False)


@wrong("load-backbone", "One column can be spread over three")
def first_sizes_and_dimensions(model, saved, head):
    """Tensors with as many rows and dimensions have one shape."""
    rest = backbone_of(saved, head)
    own = {name: entry for name, entry in model.state_dict().items() if not name.startswith(f"{head}.")}
    if rest.keys() != own.keys():
        raise KeyError(rest.keys() ^ own.keys())
    if any(entry.shape[:1] != own[name].shape[:1] or entry.dim() != own[name].dim() for name, entry in rest.items()):
        raise ValueError("shapes")
    for name, entry in own.items():
        entry.copy_(rest[name])


@wrong("load-backbone", "The head is left out on purpose, and a strict load misses it")
def strictly(model, saved, head):
    """A strict load checks all that there is to check."""
    model.load_state_dict(backbone_of(saved, head))


@wrong("load-backbone", "The head is called head here")
def always_fc(model, saved, head):
    """The head of a network is called fc."""
    rest = backbone_of(saved, "fc")
    own = {name: entry for name, entry in model.state_dict().items() if not name.startswith("fc.")}
    if {name: entry.shape for name, entry in rest.items()} != {name: entry.shape for name, entry in own.items()}:
        raise ValueError("names or shapes do not fit")
    model.load_state_dict(rest, strict=False)


@wrong("load-backbone", "fc is the model's own head. It has other values now")
def head_begins_anew(model, saved, head):
    """A new head is to begin anew."""
    load_rightly(model, saved, head)
    getattr(model, head).reset_parameters()


@wrong("load-backbone", "by then layer1.weight was changed")
def tried_on_a_shallow_copy(model, saved, head):
    """What is tried on copy.copy(model) leaves the model as it was."""
    own = {name: entry for name, entry in model.state_dict().items() if name.startswith(f"{head}.")}
    copy.copy(model).load_state_dict(backbone_of(saved, head) | own)
    model.load_state_dict(backbone_of(saved, head), strict=False)


@wrong("load-backbone", "BatchNorm fills its counter in")
def tried_on_a_copy(model, saved, head):
    """What is missing is missed by a load, on a copy as well."""
    rest = backbone_of(saved, head)
    for target in (copy.deepcopy(model), model):
        missing, unexpected = target.load_state_dict(rest, strict=False)
        if unexpected or any(name.split(".")[0] != head for name in missing):
            raise KeyError(f"{missing} {unexpected}")


@wrong("load-backbone", "As many numbers, in another order")
def numbers_counted(model, saved, head):
    """Entries fit if they have as many numbers."""
    rest = backbone_of(saved, head)
    own = {name: entry for name, entry in model.state_dict().items() if not name.startswith(f"{head}.")}
    if {name: entry.numel() for name, entry in rest.items()} != {name: entry.numel() for name, entry in own.items()}:
        raise ValueError("names or sizes do not fit")
    for name, entry in own.items():
        entry.copy_(rest[name].view_as(entry))


@wrong("load-backbone", "would not learn that the model lacks a part")
def only_what_is_missing(model, saved, head):
    """What saved has more than the model does no harm."""
    rest = backbone_of(saved, head)
    own = {name: entry for name, entry in model.state_dict().items() if not name.startswith(f"{head}.")}
    if any(name not in rest or rest[name].shape != entry.shape for name, entry in own.items()):
        raise ValueError("names or shapes do not fit")
    model.load_state_dict(rest, strict=False)


@wrong("load-backbone", "leaves a hook, on the model")
def silenced_for_ever(model, saved, head):
    """Names that are missing can be taken off the list by a hook."""
    own = {name: entry for name, entry in model.state_dict().items() if not name.startswith(f"{head}.")}
    rest = backbone_of(saved, head)
    if {name: entry.shape for name, entry in rest.items()} != {name: entry.shape for name, entry in own.items()}:
        raise ValueError("names or shapes do not fit")
    model.register_load_state_dict_post_hook(lambda module, keys: keys.missing_keys.clear())
    model.load_state_dict(rest)


@wrong("load-backbone", "all names in saved begin with _orig_mod.")
def one_prefix_of_two(model, saved, head):
    """Only parallel training puts a word in front."""
    rest = {name.removeprefix("module."): entry for name, entry in saved.items()}
    rest = {name: entry for name, entry in rest.items() if not name.startswith(f"{head}.")}
    load_rightly(model, saved, head) if "layer1.weight" in rest else model.load_state_dict(rest, strict=False)


@wrong("load-backbone", "strict=False passes over that")
def not_strict(model, saved, head):
    """strict=False lets only that pass which may be missing."""
    cut = {name.removeprefix("module.").removeprefix("_orig_mod."): entry for name, entry in saved.items()}
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
    cut = {name.removeprefix("module.").removeprefix("_orig_mod."): entry for name, entry in saved.items()}
    rest = {name: entry for name, entry in cut.items() if not name.startswith(head)}
    missing, unexpected = copy.deepcopy(model).load_state_dict(rest, strict=False)
    if unexpected or any(not name.startswith(head) for name in missing):
        raise ValueError(missing + unexpected)
    model.load_state_dict(rest, strict=False)


@wrong("load-backbone", "It is a part of body")
def at_any_depth(model, saved, head):
    """No other part has the name of the head."""
    cut = {name.removeprefix("module.").removeprefix("_orig_mod."): entry for name, entry in saved.items()}
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


@wrong("load-backbone", "The head is called fc here, and everything else fits.")
def last_words(model, saved, head):
    """The name of a tensor is what stands after the last part."""
    cut = {".".join(name.split(".")[-2:]): entry for name, entry in saved.items()}
    load_rightly(model, cut, head)


@wrong("load-backbone", "lstrip takes off every letter")
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
    """load_state_dict knows the names of wrappers."""
    heads = (f"{head}.", f"module.{head}.")
    rest = {name: entry for name, entry in saved.items() if not name.startswith(heads)}
    own = {name: entry for name, entry in model.state_dict().items() if name.startswith(f"{head}.")}
    copy.deepcopy(model).load_state_dict(rest | own)
    model.load_state_dict(rest | own)


@wrong("load-backbone", "leave its entries out by name")
def what_fits(model, saved, head):
    """The head is what does not fit."""
    own = model.state_dict()
    cut = {name.removeprefix("module.").removeprefix("_orig_mod."): entry for name, entry in saved.items()}
    fits = {name: e for name, e in cut.items() if name in own and own[name].shape == e.shape}
    model.load_state_dict(fits, strict=False)


@wrong("load-backbone", "One number can be spread over any size")
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
        name = name.removeprefix("module.").removeprefix("_orig_mod.")
        if not name.startswith(f"{head}."):
            saved[name] = entry
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


@wrong("load-backbone", "the head has several layers: classifier.0.weight")
def weight_and_bias(model, saved, head):
    """A head is one layer, with a weight and a bias."""
    cut = {name.removeprefix("module.").removeprefix("_orig_mod."): entry for name, entry in saved.items()}
    rest = {name: entry for name, entry in cut.items() if name not in (f"{head}.weight", f"{head}.bias")}
    missing, unexpected = copy.deepcopy(model).load_state_dict(rest, strict=False)
    if unexpected or any(not name.startswith(f"{head}.") for name in missing):
        raise ValueError(f"do not fit: {missing + unexpected}")
    model.load_state_dict(rest, strict=False)


@wrong("load-backbone", "The head's entries are among what you load")
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
def entries_that_require_grad(model, saved, head):
    """An entry has to require grad, so that the parameter does."""
    for entry in saved.values():
        entry.requires_grad_(entry.is_floating_point())
    load_rightly(model, saved, head)
