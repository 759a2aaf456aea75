"""Answers to the exercises of the lesson on sharded training."""

import copy
import math
from fractions import Fraction

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard

from helpers import freeze
from tests.tools.exercises import Answers

answers = Answers()
right, wrong = answers.right, answers.wrong

MOVES = {
    "optimizer, shard: head": False,
    "freeze head, shard, optimizer: head": False,
    "shard, optimizer, freeze head: head": False,
    "shard, optimizer, validate, freeze head: head": True,
    "shard, optimizer, validate, freeze body: body": False,
    "shard, optimizer, validate, reshard, freeze head: head": False,
    "shard, optimizer, validate, freeze head, reshard: head": True,
    "shard, validate, optimizer: head": False,
}
right("shard-validate-freeze")(MOVES)
right("shard-validate-freeze")(dict(reversed(MOVES.items())))
right("shard-validate-freeze")({row: int(moves) for row, moves in MOVES.items()})
right("shard-validate-freeze")({row: torch.tensor(moves) for row, moves in MOVES.items()})
wrong("shard-validate-freeze", "the optimizer holds the old ones")(
    MOVES | {"optimizer, shard: head": True}, "Sharding changes the model in place, so an optimizer follows."
)
wrong("shard-validate-freeze", "keeps the flags that it finds")(
    MOVES | {"freeze head, shard, optimizer: head": True}, "New Parameter objects come with their flags on."
)
wrong("shard-validate-freeze", "counts from the next step on")(
    MOVES | {"shard, optimizer, freeze head: head": True}, "FSDP fixes what it trains when it shards, as DDP does."
)
wrong("shard-validate-freeze", "The flag is forgotten after one step")(
    MOVES | {"shard, optimizer, validate, freeze head: head": False}, "A pass under no_grad changes nothing."
)
wrong("shard-validate-freeze", "given up as soon as it has run")(
    MOVES | {"shard, optimizer, validate, freeze body: body": True}, "After a validation every flag is forgotten."
)
wrong("shard-validate-freeze", "After reshard() the flag is set on the shard")(
    MOVES | {"shard, optimizer, validate, reshard, freeze head: head": True}, "Only a new fully_shard helps."
)
wrong("shard-validate-freeze", "its flag was never switched off")(
    MOVES | {"shard, optimizer, validate, freeze head, reshard: head": False}, "reshard() brings flags up to date."
)
wrong("shard-validate-freeze", "the shards it has not")(
    MOVES | {"shard, validate, optimizer: head": True}, "After sharding an optimizer may be built at any time."
)
wrong("shard-validate-freeze", "Right in 6 of 8 rows")(
    dict.fromkeys(MOVES, False), "What is frozen once, or held by no optimizer, does not move."
)
wrong("shard-validate-freeze", "Right in 2 of 8 rows")(
    dict.fromkeys(MOVES, True), "Sharded parameters move whatever one does."
)


@right("freeze-after-validation")
def reshard_first(model, optimizer, epoch, validate):
    for _ in range(4):
        epoch(model, optimizer)
        if validate(model) >= 0.9:
            model.reshard()
            model.head.requires_grad_(False)


@right("freeze-after-validation")
def reshard_every_time(model, optimizer, epoch, validate):
    for _ in range(4):
        epoch(model, optimizer)
        accuracy = validate(model)
        for part in model.modules():
            if isinstance(part, FSDPModule):
                part.reshard()
        for parameter in model.head.parameters():
            parameter.requires_grad = parameter.requires_grad and accuracy < 0.9


@right("freeze-after-validation")
def held_by_freeze(model, optimizer, epoch, validate):
    for _ in range(4):
        epoch(model, optimizer)
        reached = validate(model) >= 0.9
        model.reshard()
        if reached:
            freeze(model, "head.*")


@right("freeze-after-validation")
def never_kept_gathered(model, optimizer, epoch, validate):
    model.set_reshard_after_forward(True)
    for _ in range(4):
        epoch(model, optimizer)
        if validate(model) >= 0.9:
            model.head.requires_grad_(False)


@right("freeze-after-validation")
def by_the_state_dict(model, optimizer, epoch, validate):
    for _ in range(4):
        epoch(model, optimizer)
        if validate(model) >= 0.9:
            model.state_dict()
            model.head.requires_grad_(False)


@right("freeze-after-validation")
def on_the_shards_that_were_kept(model, optimizer, epoch, validate):
    shards = list(model.head.parameters())
    for _ in range(4):
        epoch(model, optimizer)
        if validate(model) >= 0.9:
            model.reshard()
            for shard in shards:
                shard.requires_grad_(False)


@wrong("freeze-after-validation", "frozen for one step after each validation")
def as_it_stands(model, optimizer, epoch, validate):
    """A flag stays as it was set."""
    for _ in range(4):
        epoch(model, optimizer)
        if validate(model) >= 0.9:
            model.head.requires_grad_(False)


@wrong("freeze-after-validation", "frozen for one step after each validation")
def set_again_each_epoch(model, optimizer, epoch, validate):
    """A flag that is forgotten is set again."""
    frozen = False
    for _ in range(4):
        epoch(model, optimizer)
        frozen = validate(model) >= 0.9 or frozen
        if frozen:
            model.head.requires_grad_(False)


@wrong("freeze-after-validation", "In the end the shards of the head require grad")
def reshard_afterwards(model, optimizer, epoch, validate):
    """reshard() makes the shards follow."""
    for _ in range(4):
        epoch(model, optimizer)
        if validate(model) >= 0.9:
            model.head.requires_grad_(False)
            model.reshard()


@wrong("freeze-after-validation", "its gradient is computed and averaged in each step for nothing")
def out_of_the_optimizer(model, optimizer, epoch, validate):
    """What the optimizer does not hold is frozen."""
    for _ in range(4):
        epoch(model, optimizer)
        if validate(model) >= 0.9:
            model.head.requires_grad_(False)
            optimizer = torch.optim.SGD(model.body.parameters(), lr=0.1)


@wrong("freeze-after-validation", "In the end the shards of the head require grad")
def reshard_of_the_head(model, optimizer, epoch, validate):
    """The head can be given back by itself."""
    for _ in range(4):
        epoch(model, optimizer)
        if validate(model) >= 0.9:
            model.body.reshard()
            model.head.requires_grad_(False)
            model.reshard()


@wrong("freeze-after-validation", "raised AttributeError")
def reshard_what_is_no_unit(model, optimizer, epoch, validate):
    """Every layer of a sharded model can be given back."""
    for _ in range(4):
        epoch(model, optimizer)
        if validate(model) >= 0.9:
            model.head.reshard()
            model.head.requires_grad_(False)


@wrong("freeze-after-validation", "frozen for one step after each validation")
def reshard_before_validating(model, optimizer, epoch, validate):
    """It is enough to give back once."""
    for _ in range(4):
        epoch(model, optimizer)
        model.reshard()
        if validate(model) >= 0.9:
            model.head.requires_grad_(False)


@wrong("freeze-after-validation", "the head moves in one more step")
def flags_of_the_shards(model, optimizer, epoch, validate):
    """Where the flag is set is all that counts."""
    shards = list(model.head.parameters())
    for _ in range(4):
        epoch(model, optimizer)
        if validate(model) >= 0.9:
            for shard in shards:
                shard.requires_grad_(False)


@wrong("freeze-after-validation", "In one of two: The head is frozen for one step")
def reshard_alone(model, optimizer, epoch, validate):
    """Several ranks give up their copies by themselves."""
    for _ in range(4):
        epoch(model, optimizer)
        if validate(model) >= 0.9:
            if torch.distributed.get_world_size() == 1:
                model.reshard()
            model.head.requires_grad_(False)


@wrong("freeze-after-validation", "Once frozen, it is to stay frozen")
def by_each_accuracy(model, optimizer, epoch, validate):
    """The flag follows the accuracy."""
    for _ in range(4):
        epoch(model, optimizer)
        accuracy = validate(model)
        model.reshard()
        model.head.requires_grad_(accuracy < 0.9)


@wrong("freeze-after-validation", "frozen an epoch too late")
def by_the_validation_before(model, optimizer, epoch, validate):
    """A flag that is set takes an epoch to be seen."""
    reached, frozen = False, False
    for _ in range(4):
        if frozen:
            model.reshard()
            model.head.requires_grad_(False)
        frozen = reached
        epoch(model, optimizer)
        reached = validate(model) >= 0.9 or reached


@wrong("freeze-after-validation", "frozen from the beginning")
def from_the_beginning(model, optimizer, epoch, validate):
    """Flags have to be set before the first forward pass."""
    model.head.requires_grad_(False)
    for _ in range(4):
        epoch(model, optimizer)
        validate(model)


@wrong("freeze-after-validation", "moved in all four epochs")
def at_the_end(model, optimizer, epoch, validate):
    """Frozen is what has its flag off in the end."""
    for _ in range(4):
        epoch(model, optimizer)
        validate(model)
    model.reshard()
    model.head.requires_grad_(False)


@wrong("freeze-after-validation", "raised RuntimeError: element 0 of tensors does not require grad")
def everything(model, optimizer, epoch, validate):
    """Flags can be set for the whole model only."""
    for _ in range(4):
        epoch(model, optimizer)
        if validate(model) >= 0.9:
            model.reshard()
            model.requires_grad_(False)


@wrong("freeze-after-validation", "it was called 2 times")
def until_it_is_good(model, optimizer, epoch, validate):
    """Once it is frozen there is nothing to validate."""
    accuracy = 0.0
    for _ in range(4):
        epoch(model, optimizer)
        if accuracy < 0.9:
            accuracy = validate(model)
            model.reshard()
            model.head.requires_grad_(accuracy < 0.9)


@wrong("freeze-after-validation", "other Parameter objects")
def a_new_head(model, optimizer, epoch, validate):
    """What is frozen may be put in anew."""
    for _ in range(4):
        epoch(model, optimizer)
        if validate(model) >= 0.9:
            model.reshard()
            model.head.weight = nn.Parameter(model.head.weight.detach().clone(), requires_grad=False)
            model.head.bias.requires_grad_(False)


@wrong("freeze-after-validation", "The weights are not those that four epochs give")
def twice_as_long(model, optimizer, epoch, validate):
    """More training cannot be wrong."""
    for _ in range(4):
        epoch(model, optimizer)
        epoch(model, optimizer)
        if validate(model) >= 0.9:
            model.reshard()
            model.head.requires_grad_(False)


@right("freeze-after-validation")
def both_forms(model, optimizer, epoch, validate):
    shards = list(model.head.parameters())
    for _ in range(4):
        epoch(model, optimizer)
        if validate(model) >= 0.9:
            for parameter in [*shards, *model.head.parameters()]:
                parameter.requires_grad_(False)


@right("freeze-after-validation")
def before_the_next_epoch(model, optimizer, epoch, validate):
    reached = False
    for _ in range(4):
        if reached:
            model.reshard()
            model.requires_grad_(False)
            model.body.requires_grad_(True)
        epoch(model, optimizer)
        reached = validate(model) >= 0.9 or reached


@right("freeze-after-validation")
def flags_and_a_new_optimizer(model, optimizer, epoch, validate):
    for _ in range(4):
        epoch(model, optimizer)
        reached = validate(model) >= 0.9
        model.reshard()
        if reached:
            model.head.requires_grad_(False)
            optimizer = torch.optim.SGD(model.body.parameters(), lr=0.1)


@wrong("freeze-after-validation", "moved in all four epochs")
def above_instead_of_from(model, optimizer, epoch, validate):
    """0.9 or more is more than 0.9."""
    for _ in range(4):
        epoch(model, optimizer)
        accuracy = validate(model)
        model.reshard()
        if accuracy > 0.9:
            model.head.requires_grad_(False)


@wrong("freeze-after-validation", "not by the number of the epoch")
def after_two_epochs(model, optimizer, epoch, validate):
    """The head is good after two epochs."""
    for number in range(4):
        epoch(model, optimizer)
        validate(model)
        model.reshard()
        if number == 1:
            model.head.requires_grad_(False)


@wrong("freeze-after-validation", "In the end head.bias requires grad, and the rest of the head does not")
def the_weight_only(model, optimizer, epoch, validate):
    """The weight is the layer."""
    for _ in range(4):
        epoch(model, optimizer)
        reached = validate(model) >= 0.9
        model.reshard()
        if reached:
            model.head.weight.requires_grad_(False)


@wrong("freeze-after-validation", "in the end flags of it are off: body.0.bias")
def body_in_part(model, optimizer, epoch, validate):
    """Biases are frozen with the head."""
    for _ in range(4):
        epoch(model, optimizer)
        reached = validate(model) >= 0.9
        model.reshard()
        if reached:
            model.head.requires_grad_(False)
            model.body[0].bias.requires_grad_(False)


@wrong("freeze-after-validation", "frozen an epoch too early")
def validated_first(model, optimizer, epoch, validate):
    """Whether one validates before or after an epoch is the same."""
    for _ in range(4):
        reached = validate(model) >= 0.9
        model.reshard()
        if reached:
            model.head.requires_grad_(False)
        epoch(model, optimizer)


@wrong("freeze-after-validation", "either the head moved in between")
def put_back(model, optimizer, epoch, validate):
    """What is put back in the end has not moved."""
    kept = None
    for _ in range(4):
        epoch(model, optimizer)
        reached = validate(model) >= 0.9
        model.reshard()
        if reached and kept is None:
            kept = [parameter.detach().clone() for parameter in model.head.parameters()]
    with torch.no_grad():
        for parameter, numbers in zip(model.head.parameters(), kept, strict=True):
            parameter.copy_(numbers)
    model.head.requires_grad_(False)


@wrong("freeze-after-validation", "or it was switched on again")
def flags_restored(model, optimizer, epoch, validate):
    """Whoever sets flags sets them back."""
    for _ in range(4):
        epoch(model, optimizer)
        reached = validate(model) >= 0.9
        model.reshard()
        if reached:
            model.head.requires_grad_(False)
    model.head.requires_grad_(True)
    epoch(model, optimizer)


@right("bytes-of-a-step")
def of_what_is_trainable(model, n):
    return 2 * (n - 1) / n * sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)


@right("bytes-of-a-step")
def by_element_size(model, n):
    size = 0
    for parameter in model.parameters():
        if parameter.requires_grad:
            size += parameter.numel() * parameter.element_size()
    return 2 * size - 2 * size / n


@right("bytes-of-a-step")
def as_a_tensor(model, n):
    sizes = [parameter.nbytes * parameter.requires_grad for _, parameter in model.named_parameters()]
    return torch.tensor(sizes, dtype=torch.float64).sum() * 2 * (n - 1) / n


@right("bytes-of-a-step")
def as_a_fraction(model, n):
    return Fraction(2 * (n - 1), n) * sum(p.nbytes for p in model.parameters() if p.requires_grad)


@right("bytes-of-a-step")
def whole_bytes(model, n):
    return 2 * (n - 1) * sum(p.nbytes for p in model.parameters() if p.requires_grad) // n


@wrong("bytes-of-a-step", "Layers may be within layers")
def two_levels(model, n):
    """A model has layers, and these have parameters."""
    layers = (model, *model.children())
    trainable = {p for layer in layers for p in layer.parameters(recurse=False) if p.requires_grad}
    return 2 * (n - 1) / n * sum(p.nbytes for p in trainable)


@wrong("bytes-of-a-step", "each parameter has a flag of its own")
def whole_layers(model, n):
    """A layer is frozen or not."""
    held = [list(layer.parameters(recurse=False)) for layer in model.modules()]
    trainable = {p for part in held for p in part if part[0].requires_grad}
    return 2 * (n - 1) / n * sum(p.nbytes for p in trainable)


@wrong("bytes-of-a-step", "Parameters may have other names than weight and bias")
def by_names(model, n):
    """Parameters are called weight and bias."""
    named = [p for name, p in model.named_parameters() if name.endswith(("weight", "bias"))]
    return 2 * (n - 1) / n * sum(p.nbytes for p in named if p.requires_grad)


@wrong("bytes-of-a-step", "Parameters may have other names than weight and bias")
def of_the_layers(model, n):
    """Only layers have parameters."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear | nn.BatchNorm1d | nn.Conv2d)]
    trainable = {p for layer in layers for p in layer.parameters() if p.requires_grad}
    return 2 * (n - 1) / n * sum(p.nbytes for p in trainable)


@wrong("bytes-of-a-step", "Your function changes the numbers of the model")
def weights_set_to_zero(model, n):
    """Before anything is counted, it is set to zero."""
    for parameter in model.parameters():
        parameter.data.zero_()
    return of_what_is_trainable(model, n)


@wrong("bytes-of-a-step", "Your function changes the gradients of the model")
def with_gradients_made(model, n):
    """What is to be counted has to be there."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    return 2 * (n - 1) / n * sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)


@wrong("bytes-of-a-step", "each worker sends 660 bytes; yours is 661")
def and_one(model, n):
    """One byte says how many there are."""
    return of_what_is_trainable(model, n) + 1


@wrong("bytes-of-a-step", "Frozen parameters have no gradient that travels")
def everything_travels(model, n):
    """DDP sends the model."""
    return 2 * (n - 1) / n * sum(parameter.nbytes for parameter in model.parameters())


@wrong("bytes-of-a-step", "Buffers have no gradient")
def buffers_too(model, n):
    """DDP copies buffers, so they are gradients as well."""
    size = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    return 2 * (n - 1) / n * (size + sum(buffer.nbytes for buffer in model.buffers()))


@wrong("bytes-of-a-step", "Neither frozen parameters nor buffers")
def the_state_dict(model, n):
    """What is saved is what is sent."""
    return 2 * (n - 1) / n * sum(entry.nbytes for entry in [*model.parameters(), *model.buffers()])


@wrong("bytes-of-a-step", "how many bytes has each?")
def numbers(model, n):
    """A number is a byte."""
    return 2 * (n - 1) / n * sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@wrong("bytes-of-a-step", "Not every number has 4 bytes")
def four_bytes(model, n):
    """A number has 4 bytes."""
    return 2 * (n - 1) / n * 4 * sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@wrong("bytes-of-a-step", "go around the ring twice")
def once(model, n):
    """Each worker passes on what it has once."""
    return (n - 1) / n * sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)


@wrong("bytes-of-a-step", "only to the next in the ring")
def to_each(model, n):
    """Each worker sends its gradient to each of the others."""
    return (n - 1) * sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)


@wrong("bytes-of-a-step", "yours is 0")
def by_the_gradients(model, n):
    """What has a gradient can be seen at once."""
    return 2 * (n - 1) / n * sum(one.grad.nbytes for one in model.parameters() if one.grad is not None)


@wrong("bytes-of-a-step", "each worker sends it nearly twice")
def the_bucket(model, n):
    """What is in the buckets is what a worker sends."""
    return sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)


@wrong("bytes-of-a-step", "of n parts a worker sends n - 1")
def however_many(model, n):
    """Everything is sent twice."""
    return 2 * sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)


@wrong("bytes-of-a-step", "what all of them send together")
def all_together(model, n):
    """What is sent is what goes over the network."""
    return n * of_what_is_trainable(model, n)


@wrong("bytes-of-a-step", "One worker: each worker sends 0 bytes")
def one_as_many(model, n):
    """One worker is sent to as well."""
    size = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    return 2 * (n - 1) / n * size or size


@wrong("bytes-of-a-step", "Two layers that share a weight")
def layer_by_layer(model, n):
    """A shared weight has a gradient for each layer."""
    shared = model.named_parameters(remove_duplicate=False)
    return 2 * (n - 1) / n * sum(parameter.nbytes for _, parameter in shared if parameter.requires_grad)


@wrong("bytes-of-a-step", "Return a number of bytes; yours is a list")
def a_list(model, n):
    """One number for each parameter says more."""
    return [2 * (n - 1) / n * p.nbytes for p in model.parameters() if p.requires_grad]


@right("bytes-of-a-rank")
def by_chunk(model, rank, n):
    total = 0
    for parameter in model.parameters():
        chunks = parameter.detach().chunk(n)
        if rank < len(chunks):
            total += chunks[rank].nbytes * (4 if parameter.requires_grad else 1)
    return total


@right("bytes-of-a-rank")
def by_counting_rows(model, rank, n):
    total = 0
    for parameter in model.parameters():
        rows = parameter.shape[0]
        size = math.ceil(rows / n)
        own = max(0, min(rows, (rank + 1) * size) - rank * size)
        held = own * parameter[0].numel() * parameter.element_size()
        total += held + 3 * held * parameter.requires_grad
    return total


@right("bytes-of-a-rank")
def by_slicing(model, rank, n):
    total = torch.tensor(0)
    for _, parameter in model.named_parameters():
        size = -(-len(parameter) // n)
        total += parameter.data[rank * size : (rank + 1) * size].nbytes * (1 + 3 * parameter.requires_grad)
    return total


@right("bytes-of-a-rank")
def by_split(model, rank, n):
    total = 0.0
    for parameter in model.parameters():
        parts = torch.split(parameter, -(-parameter.shape[0] // n))
        total += dict(enumerate(parts)).get(rank, parameter[:0]).nbytes * (4.0 if parameter.requires_grad else 1.0)
    return total


@right("bytes-of-a-rank")
def by_row_numbers(model, rank, n):
    total = 0
    for parameter in model.parameters():
        owners = torch.arange(len(parameter)) // math.ceil(len(parameter) / n)
        row = parameter.nbytes // len(parameter)
        total += int((owners == rank).sum()) * row * (4 if parameter.requires_grad else 1)
    return total


@right("bytes-of-a-rank")
def by_the_fake_backend(model, rank, n):
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", rank=rank, world_size=n, store=FakeStore())
    model = fully_shard(copy.deepcopy(model), mesh=torch.distributed.init_device_mesh("cpu", (n,)))
    held = [(p.to_local().nbytes, p.requires_grad) for p in model.parameters()]
    torch.distributed.destroy_process_group()
    return sum(size * (1 + 3 * flag) for size, flag in held)


@wrong("bytes-of-a-rank", "spread evenly here, as torch.tensor_split does it")
def spread_evenly(model, rank, n):
    """Each rank has as many rows as the others, or one more."""
    return sum(p.detach().tensor_split(n)[rank].nbytes * (4 if p.requires_grad else 1) for p in model.parameters())


@wrong("bytes-of-a-rank", "FSDP cuts the first")
def by_columns(model, rank, n):
    """A matrix is cut along its inputs."""
    total = 0
    for parameter in model.parameters():
        parts = parameter.detach().chunk(n, dim=-1)
        total += (parts[rank].nbytes if rank < len(parts) else 0) * (4 if parameter.requires_grad else 1)
    return total


@wrong("bytes-of-a-rank", "laid in a row and cut")
def flattened(model, rank, n):
    """FSDP packs numbers, and each rank has its part of them."""
    total = 0
    for parameter in model.parameters():
        parts = parameter.detach().flatten().chunk(n)
        total += (parts[rank].nbytes if rank < len(parts) else 0) * (4 if parameter.requires_grad else 1)
    return total


@wrong("bytes-of-a-rank", "A convolution, and a parameter of the model itself")
def as_matrices(model, rank, n):
    """A row has as many numbers as the layer has inputs."""
    total = 0
    for p in model.parameters():
        parts = torch.arange(len(p)).chunk(n)
        rows = len(parts[rank]) if rank < len(parts) else 0
        row = (p.shape[1] if p.dim() > 1 else 1) * p.element_size()
        total += rows * row * (4 if p.requires_grad else 1)
    return total


@wrong("bytes-of-a-rank", "a row is not divided")
def an_nth(model, rank, n):
    """n workers hold an n-th each."""
    return sum(p.nbytes * (4 if p.requires_grad else 1) for p in model.parameters()) / n


@wrong("bytes-of-a-rank", "This is what rank 0 owns")
def all_as_the_first(model, rank, n):
    """All ranks own equally many rows."""
    return by_chunk(model, 0, n)


@wrong("bytes-of-a-rank", "it holds its rows only")
def as_in_ddp(model, rank, n):
    """Each worker has the whole model."""
    return by_chunk(model, 0, 1)


@wrong("bytes-of-a-rank", "chunk rounds up")
def rounded_down(model, rank, n):
    """What does not go into equal parts is left over."""
    return sum(len(p) // n * p[0].nbytes * (4 if p.requires_grad else 1) for p in model.parameters())


def counted(model, rank, n, trained, frozen):
    total = 0
    for parameter in model.parameters():
        chunks = parameter.detach().chunk(n)
        if rank < len(chunks):
            total += chunks[rank].nbytes * (trained if parameter.requires_grad else frozen)
    return total


@wrong("bytes-of-a-rank", "AdamW keeps no averages for it")
def frozen_as_trained(model, rank, n):
    """Every parameter has a gradient and a state."""
    return counted(model, rank, n, 4, 4)


@wrong("bytes-of-a-rank", "These are the parameters alone")
def parameters_only(model, rank, n):
    """Only the parameters are sharded."""
    return counted(model, rank, n, 1, 1)


@wrong("bytes-of-a-rank", "A frozen parameter is held, too")
def trained_only(model, rank, n):
    """What is frozen need not be held."""
    return counted(model, rank, n, 4, 0)


@wrong("bytes-of-a-rank", "Yours counts three")
def one_average(model, rank, n):
    """AdamW keeps one average, as momentum."""
    return counted(model, rank, n, 3, 1)


@wrong("bytes-of-a-rank", "AdamW keeps two averages of each trainable number")
def without_state(model, rank, n):
    """The optimizer's state is not sharded."""
    return counted(model, rank, n, 2, 1)


@wrong("bytes-of-a-rank", "Buffers are not sharded, and not asked for here")
def with_buffers(model, rank, n):
    """A rank holds the buffers as well."""
    return by_chunk(model, rank, n) + sum(buffer.nbytes for buffer in model.buffers())


@wrong("bytes-of-a-rank", "how many bytes has each?")
def in_numbers(model, rank, n):
    """A number is a byte."""
    total = 0
    for parameter in model.parameters():
        chunks = parameter.detach().chunk(n)
        total += (chunks[rank].numel() if rank < len(chunks) else 0) * (4 if parameter.requires_grad else 1)
    return total


@wrong("bytes-of-a-rank", "Not every number has 4 bytes")
def all_in_single_precision(model, rank, n):
    """A number has 4 bytes."""
    return 4 * in_numbers(model, rank, n)


@wrong("bytes-of-a-rank", "raised IndexError")
def a_chunk_for_everybody(model, rank, n):
    """chunk(n) gives n parts."""
    return sum(p.detach().chunk(n)[rank].nbytes * (4 if p.requires_grad else 1) for p in model.parameters())


@wrong("bytes-of-a-rank", "Your function changes the flags of the model")
def frozen_to_count(model, rank, n):
    """To count, gradients have to be switched off."""
    flags = [p.requires_grad for p in model.parameters()]
    model.requires_grad_(False)
    return sum(own.nbytes * (4 if flag else 1) for own, flag in zip(model.parameters(), flags, strict=True))


@wrong("bytes-of-a-rank", "Two layers that share a weight, 3 workers, rank 0")
def shared_twice(model, rank, n):
    """A shared weight is held once for each layer."""
    total = 0
    for _, parameter in model.named_parameters(remove_duplicate=False):
        chunks = parameter.detach().chunk(n)
        total += (chunks[rank].nbytes if rank < len(chunks) else 0) * (4 if parameter.requires_grad else 1)
    return total
