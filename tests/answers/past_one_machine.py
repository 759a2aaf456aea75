"""Answers to the exercises of the lesson on more than one process."""

import copy
import os
import random
from fractions import Fraction

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler

from tests.tools.exercises import Answers

answers = Answers()
right, wrong = answers.right, answers.wrong

EQUAL = {
    "freeze(body), DDP": True,
    "DDP, freeze(body)": "raises",
    "freeze(body), DDP, unfreeze(body)": False,
    "freeze(body), DDP, unfreeze(body), DDP": True,
    "other seed, DDP": True,
    "spare layer, DDP": "raises",
    "norm.train(), freeze(norm), DDP": False,
    "norm.train(), helpers.freeze(norm), DDP": True,
}
right("who-stays-equal")(EQUAL)
right("who-stays-equal")(dict(reversed(EQUAL.items())))
right("who-stays-equal")({**EQUAL})
wrong("who-stays-equal", "DDP does not wait for")(
    EQUAL | {"freeze(body), DDP": "raises"}, "Frozen layers need find_unused_parameters."
)
wrong("who-stays-equal", "still waits for the gradients of the body")(
    EQUAL | {"DDP, freeze(body)": True}, "It does not matter whether I freeze before or after wrapping."
)
wrong("who-stays-equal", "What does the second find?")(
    EQUAL | {"DDP, freeze(body)": False}, "A layer that is frozen late goes on by itself on each rank."
)
wrong("who-stays-equal", "nobody averages the gradients of the body")(
    EQUAL | {"freeze(body), DDP, unfreeze(body)": True}, "DDP averages whatever has a gradient."
)
wrong("who-stays-equal", "no error comes")(
    EQUAL | {"freeze(body), DDP, unfreeze(body)": "raises"}, "DDP would tell me."
)
wrong("who-stays-equal", "Wrapped again")(
    EQUAL | {"freeze(body), DDP, unfreeze(body), DDP": False}, "What has drifted, or could, stays apart."
)
wrong("who-stays-equal", "copies the parameters and buffers of rank 0")(
    EQUAL | {"other seed, DDP": False}, "All ranks need the same seed before they build the model."
)
wrong("who-stays-equal", "gets none: DDP waits")(
    EQUAL | {"spare layer, DDP": True}, "What is not used cannot do any harm."
)
wrong("who-stays-equal", "follow the images of each rank")(
    EQUAL | {"norm.train(), freeze(norm), DDP": True}, "A frozen layer is equal everywhere."
)
wrong("who-stays-equal", "also after train()")(
    EQUAL | {"norm.train(), helpers.freeze(norm), DDP": False}, "In train mode every norm layer drifts."
)


@right("second-phase")
def wrapped_again(wrapped):
    wrapped.module.body[-1].requires_grad_(True)
    return DistributedDataParallel(wrapped.module)


@right("second-phase")
def one_by_one(wrapped):
    model = wrapped.module
    for name, parameter in model.named_parameters():
        if name.startswith(("body.2.", "head.")):
            parameter.requires_grad = True
    return DistributedDataParallel(model)


@right("second-phase")
def through_the_parameters(wrapped):
    for parameter in wrapped.module.body[-1].parameters():
        parameter.requires_grad_()
    return DistributedDataParallel(wrapped.module, gradient_as_bucket_view=True)


@right("second-phase")
def in_half_the_bytes(wrapped):
    wrapped.module.body[-1].requires_grad_(True)
    again = DistributedDataParallel(wrapped.module)
    again.register_comm_hook(None, bf16_compress_hook)
    return again


@right("second-phase")
def with_a_static_graph(wrapped):
    wrapped.module.body[-1].requires_grad_(True)
    return DistributedDataParallel(wrapped.module, process_group=dist.new_group(), static_graph=True)


@wrong("second-phase", "In a step 200 bytes of gradients are averaged, and 120 are trainable. Something frozen")
def frozen_too_late(wrapped):
    """What is frozen after wrapping does not travel, with find_unused_parameters."""
    wrapped.module.body.requires_grad_(True)
    again = DistributedDataParallel(wrapped.module, find_unused_parameters=True)
    wrapped.module.body[0].requires_grad_(False)
    return again


@wrong("second-phase", "is not the average of both")
def each_for_itself(wrapped):
    """A process group is that of the process."""
    wrapped.module.body[-1].requires_grad_(True)
    groups = [dist.new_group([rank]) for rank in range(dist.get_world_size())]
    return DistributedDataParallel(wrapped.module, process_group=groups[dist.get_rank()])


@wrong("second-phase", "In 2 of a group, rank 1 raised")
def a_group_of_rank_0(wrapped):
    """Rank 0 averages for all."""
    wrapped.module.body[-1].requires_grad_(True)
    return DistributedDataParallel(wrapped.module, process_group=dist.new_group([0]))


@wrong("second-phase", "the gradient of body.2.weight is not the average of both")
def summed_up(wrapped):
    """DDP adds up, so the average is still to be taken."""
    for parameter in wrapped.module.body[-1].requires_grad_(True).parameters():
        parameter.register_hook(lambda gradient: gradient / dist.get_world_size())
    return DistributedDataParallel(wrapped.module)


@wrong("second-phase", "DDP fixed what it averages when it wrapped")
def as_it_stands(wrapped):
    """DDP looks at the flags in every step."""
    wrapped.module.body[-1].requires_grad_(True)
    return wrapped


@wrong("second-phase", "DDP fixed what it averages when it wrapped")
def finds_unused(wrapped):
    """find_unused_parameters makes DDP look at the flags."""
    wrapped.find_unused_parameters = True
    wrapped.module.body[-1].requires_grad_(True)
    return wrapped


@wrong("second-phase", "DDP fixed what it averages when it wrapped")
def wrapped_too_early(wrapped):
    """Wrapping again is what counts, whenever."""
    again = DistributedDataParallel(wrapped.module)
    wrapped.module.body[-1].requires_grad_(True)
    return again


@wrong("second-phase", "wrapped twice")
def around_the_wrapper(wrapped):
    """A DDP is a module like any other, so it can be wrapped."""
    wrapped.module.body[-1].requires_grad_(True)
    return DistributedDataParallel(wrapped)


@wrong("second-phase", "which averages the gradients; yours is a Sequential")
def unwrapped(wrapped):
    """The model remembers that it was wrapped."""
    wrapped.module.body[-1].requires_grad_(True)
    return wrapped.module


@wrong("second-phase", "other Parameter objects")
def a_copy(wrapped):
    """To wrap again one needs a fresh copy of the model."""
    model = copy.deepcopy(wrapped.module)
    model.body[-1].requires_grad_(True)
    return DistributedDataParallel(model)


@wrong("second-phase", "should have stayed frozen")
def the_whole_body(wrapped):
    """A second phase trains everything."""
    wrapped.module.requires_grad_(True)
    return DistributedDataParallel(wrapped.module)


@wrong("second-phase", "head.bias, head.weight should be trainable")
def the_head_rests(wrapped):
    """One part is trained after the other."""
    wrapped.module.requires_grad_(False)
    wrapped.module.body[-1].requires_grad_(True)
    return DistributedDataParallel(wrapped.module)


@wrong("second-phase", "Weights have changed")
def begins_anew(wrapped):
    """What was frozen has to be set up before it learns."""
    wrapped.module.body[-1].requires_grad_(True)
    wrapped.module.body[-1].reset_parameters()
    return DistributedDataParallel(wrapped.module)


@wrong("second-phase", "body.2.bias, body.2.weight should be trainable")
def a_flag_on_the_layer(wrapped):
    """A layer has a flag of its own."""
    wrapped.module.body[-1].requires_grad = True
    return DistributedDataParallel(wrapped.module)


@right("my-part")
def every_nth(images, rank, world):
    return range(rank, images, world)


@right("my-part")
def in_a_row(images, rank, world):
    return list(range(images * rank // world, images * (rank + 1) // world))


@right("my-part")
def split_by_numpy(images, rank, world):
    return np.array_split(np.arange(images), world)[rank]


@right("my-part")
def split_by_torch(images, rank, world):
    return torch.arange(images).tensor_split(world)[rank]


@right("my-part")
def shuffled_alike(images, rank, world):
    order = torch.randperm(images, generator=torch.Generator().manual_seed(0))
    return order[rank::world].tolist()


@right("my-part")
def in_a_column(images, rank, world):
    return (torch.arange(images) % world == rank).nonzero()


@right("my-part")
def by_the_remainder(images, rank, world):
    return (image for image in range(images) if image % world == rank)


@wrong("my-part", "2 missing, the first at 8")
def whole_parts_only(images, rank, world):
    """All parts must be equally large."""
    size = images // world
    return range(rank * size, (rank + 1) * size)


@wrong("my-part", "is taken more than once")
def the_sampler(images, rank, world):
    """DistributedSampler gives each image once."""
    return list(DistributedSampler(range(images), world, rank, shuffle=False))


@wrong("my-part", "is taken more than once")
def everything(images, rank, world):
    """torchrun splits the data."""
    return range(images)


@wrong("my-part", "some wait while others work")
def rounded_up(images, rank, world):
    """The last one takes what is left."""
    size = -(-images // world)
    return range(rank * size, min(images, (rank + 1) * size))


@wrong("my-part", "the same process takes other images")
def drawn(images, rank, world):
    """On the average each image is taken once."""
    return random.sample(range(images), images // world)


@wrong("my-part", "1 missing, the first at 0")
def counted_from_one(images, rank, world):
    """Ranks are counted from 1."""
    return range(rank + 1, images, world)


@wrong("my-part", "some wait while others work")
def rank_0_takes_the_rest(images, rank, world):
    """Rank 0 has more to do anyhow."""
    size = images // world
    return [*range(rank * size, (rank + 1) * size), *(range(size * world, images) if rank == 0 else ())]


@wrong("my-part", "is no position: they go from 0 to")
def past_the_end(images, rank, world):
    """The last part is as large as the others."""
    size = -(-images // world)
    return range(rank * size, (rank + 1) * size)


@wrong("my-part", "positions, not a mask")
def a_mask(images, rank, world):
    """To say for each image whether I take it is as good."""
    return torch.arange(images) % world == rank


@wrong("my-part", "positions, not a mask")
def a_list_of_truths(images, rank, world):
    """To say for each image whether I take it is as good."""
    return [image % world == rank for image in range(images)]


parts, seeds = {}, []


@wrong("my-part", "another process takes other images")
def what_is_left(images, rank, world):
    """Processes share variables."""
    if (images, rank, world) not in parts:
        gone = {one for (n, _, size), part in parts.items() if (n, size) == (images, world) for one in part}
        left = [one for one in range(images) if one not in gone]
        parts[images, rank, world] = left[: (images + world - 1 - rank) // world]
    return parts[images, rank, world]


@wrong("my-part", "another process takes other images")
def seeded_by_a_draw(images, rank, world):
    """A seed that is drawn once is the same for all."""
    if not seeds:
        seeds.append(random.random())
    return random.Random(seeds[0]).sample(range(images), images)[rank::world]


@wrong("my-part", "another process takes other images")
def seeded_by_the_process(images, rank, world):
    """What does not change while the script runs is the same for all."""
    return random.Random(os.getpid()).sample(range(images), images)[rank::world]


@right("bytes-of-a-step")
def of_what_asks(model, n):
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
    asking = {p for layer in layers for p in layer.parameters(recurse=False) if p.requires_grad}
    return 2 * (n - 1) / n * sum(p.nbytes for p in asking)


@wrong("bytes-of-a-step", "each parameter has a flag of its own")
def whole_layers(model, n):
    """A layer is frozen or not."""
    held = [list(layer.parameters(recurse=False)) for layer in model.modules()]
    asking = {p for part in held for p in part if part[0].requires_grad}
    return 2 * (n - 1) / n * sum(p.nbytes for p in asking)


@wrong("bytes-of-a-step", "Your function changes the numbers of the model")
def weights_set_to_zero(model, n):
    """Before anything is counted, it is set to zero."""
    for parameter in model.parameters():
        parameter.data.zero_()
    return of_what_asks(model, n)


@wrong("bytes-of-a-step", "Your function changes the gradients of the model")
def with_gradients_made(model, n):
    """What is to be counted has to be there."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    return 2 * (n - 1) / n * sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)


@wrong("bytes-of-a-step", "each worker sends 660 bytes; yours is 661")
def and_one(model, n):
    """One byte says how many there are."""
    return of_what_asks(model, n) + 1


@wrong("bytes-of-a-step", "Frozen parameters have no gradient that travels")
def everything_travels(model, n):
    """DDP sends the model."""
    return 2 * (n - 1) / n * sum(parameter.nbytes for parameter in model.parameters())


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
