"""Answers to the exercises of the lesson on training in more than one process."""

import copy
import os
import random
import time

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook, bf16_compress_hook
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
    "spare layer, DDP": "raises",
    "norm.train(), freeze(norm), DDP": False,
    "norm.train(), helpers.freeze(norm), DDP": True,
    "DDP, past the wrapper": False,
}
right("who-stays-equal")(EQUAL)
right("who-stays-equal")(dict(reversed(EQUAL.items())))
right("who-stays-equal")({row: value if value == "raises" else int(value) for row, value in EQUAL.items()})
right("who-stays-equal")({row: value if value == "raises" else np.bool_(value) for row, value in EQUAL.items()})
wrong("who-stays-equal", "What is frozen before wrapping is not waited for")(
    EQUAL | {"freeze(body), DDP": "raises"}, "Frozen layers need find_unused_parameters."
)
wrong("who-stays-equal", "goes on waiting for the gradients of the body")(
    EQUAL | {"DDP, freeze(body)": True}, "It does not matter whether I freeze before or after wrapping."
)
wrong("who-stays-equal", "what does the second step find?")(
    EQUAL | {"DDP, freeze(body)": False}, "A layer that is frozen late goes on by itself on each rank."
)
wrong("who-stays-equal", "averaged by nobody")(
    EQUAL | {"freeze(body), DDP, unfreeze(body)": True}, "DDP averages whatever has a gradient."
)
wrong("who-stays-equal", "no error comes")(
    EQUAL | {"freeze(body), DDP, unfreeze(body)": "raises"}, "DDP would tell me."
)
wrong("who-stays-equal", "Wrapped again")(
    EQUAL | {"freeze(body), DDP, unfreeze(body), DDP": False}, "What has drifted, or could, stays apart."
)
wrong("who-stays-equal", "gets no gradient, and DDP waits for it")(
    EQUAL | {"spare layer, DDP": True}, "What is not used cannot do any harm."
)
wrong("who-stays-equal", "follow the inputs of each rank")(
    EQUAL | {"norm.train(), freeze(norm), DDP": True}, "A frozen layer is equal everywhere."
)
wrong("who-stays-equal", "also after train()")(
    EQUAL | {"norm.train(), helpers.freeze(norm), DDP": False}, "In train mode every norm layer drifts."
)
wrong("who-stays-equal", "only a forward pass through the wrapper")(
    EQUAL | {"DDP, past the wrapper": True}, "The model is wrapped, so its gradients are averaged."
)
wrong("who-stays-equal", "waits for nothing, so no error comes")(
    EQUAL | {"DDP, past the wrapper": "raises"}, "DDP notices that it is not called."
)
wrong("who-stays-equal", "the gradients of norm layer and head are averaged")(
    EQUAL | {"freeze(body), DDP": False}, "A DDP that does not hold all parameters averages nothing."
)
wrong("who-stays-equal", "What does the second step find?")(
    EQUAL | {"spare layer, DDP": False}, "What gets no gradient keeps the others from being sent, and nobody notices."
)
wrong("who-stays-equal", "nothing of it is waited for, and it is used")(
    EQUAL | {"norm.train(), freeze(norm), DDP": "raises"}, "A frozen layer in train mode confuses DDP."
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


@right("second-phase")
def averaged_by_hand(wrapped):
    def average(parameter):
        dist.all_reduce(parameter.grad)
        parameter.grad /= dist.get_world_size()

    for parameter in wrapped.module.body[-1].requires_grad_(True).parameters():
        parameter.register_post_accumulate_grad_hook(average)
    return wrapped


@right("second-phase")
def averaged_in_a_tensor_hook(wrapped):
    def average(gradient):
        dist.all_reduce(total := gradient.clone())
        return total / dist.get_world_size()

    for parameter in wrapped.module.body[-1].requires_grad_(True).parameters():
        parameter.register_hook(average)
    return wrapped


@right("second-phase")
def wrapped_in_place(wrapped):
    wrapped.module.body[-1].requires_grad_(True)
    wrapped.__init__(wrapped.module)
    return wrapped


@right("second-phase")
def a_ddp_for_the_layer(wrapped):
    wrapped.module.body[-1] = DistributedDataParallel(wrapped.module.body[-1].requires_grad_(True))
    return wrapped


@wrong("second-phase", "equal on both, and it is not the average")
def added_up_by_hand(wrapped):
    """all_reduce gives the average."""
    for parameter in wrapped.module.body[-1].requires_grad_(True).parameters():
        parameter.register_post_accumulate_grad_hook(lambda one: dist.all_reduce(one.grad))
    return wrapped


@wrong("second-phase", "equal on both, and it is not the average")
def handed_out_by_rank_0(wrapped):
    """What counts is that all ranks have the same gradient."""
    for parameter in wrapped.module.body[-1].requires_grad_(True).parameters():
        parameter.register_post_accumulate_grad_hook(lambda one: dist.broadcast(one.grad, 0))
    return wrapped


@wrong("second-phase", "equal on both, and it is not the average")
def divided_twice(wrapped):
    """DDP adds up, so the average is still to be taken, after it."""
    wrapped.module.body[-1].requires_grad_(True)
    again = DistributedDataParallel(wrapped.module)

    def halved(state, bucket):
        return allreduce_hook(None, bucket).then(lambda done: done.value() / dist.get_world_size())

    again.register_comm_hook(None, halved)
    return again


@wrong("second-phase", "nothing where no_sync is in force")
def without_sending(wrapped):
    """To wrap is enough; sending can be left to the last batch."""
    wrapped.module.body[-1].requires_grad_(True)
    again = DistributedDataParallel(wrapped.module)
    again.require_backward_grad_sync = False
    return again


@wrong("second-phase", "around a part of the model: a Linear")
def the_layer_alone(wrapped):
    """A DDP is needed for what is new only."""
    return DistributedDataParallel(wrapped.module.body[-1].requires_grad_(True))


@wrong("second-phase", "yet on the list of the DDP that you return: body.0.bias, body.0.weight")
def frozen_too_late_with_a_hook(wrapped):
    """With a communication hook it is my business what travels."""
    wrapped.module.body.requires_grad_(True)
    again = DistributedDataParallel(wrapped.module, find_unused_parameters=True)
    again.register_comm_hook(None, bf16_compress_hook)
    wrapped.module.body[0].requires_grad_(False)
    return again


@wrong("second-phase", "yet on the list of the DDP that you return: body.0.bias, body.0.weight")
def frozen_and_waited_for(wrapped):
    """What is frozen after wrapping does not travel."""
    wrapped.module.body.requires_grad_(True)
    again = DistributedDataParallel(wrapped.module)
    wrapped.module.body[0].requires_grad_(False)
    return again


@wrong("second-phase", "in eval mode")
def in_eval_mode(wrapped):
    """What is wrapped again begins in eval mode, to be sure."""
    wrapped.module.body[-1].requires_grad_(True)
    return DistributedDataParallel(wrapped.module.eval())


@wrong("second-phase", "yet on the list of the DDP that you return")
def frozen_too_late(wrapped):
    """What is frozen after wrapping does not travel, with find_unused_parameters."""
    wrapped.module.body.requires_grad_(True)
    again = DistributedDataParallel(wrapped.module, find_unused_parameters=True)
    wrapped.module.body[0].requires_grad_(False)
    return again


@wrong("second-phase", "gradient of body.2.weight is not the average of both. It is on")
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


@wrong("second-phase", "look for a division that is missing, or there twice")
def summed_up(wrapped):
    """DDP adds up, so the average is still to be taken."""
    for parameter in wrapped.module.body[-1].requires_grad_(True).parameters():
        parameter.register_hook(lambda gradient: gradient / dist.get_world_size())
    return DistributedDataParallel(wrapped.module)


@wrong("second-phase", "DDP lists what it averages when it wraps")
def as_it_stands(wrapped):
    """DDP looks at the flags in every step."""
    wrapped.module.body[-1].requires_grad_(True)
    return wrapped


@wrong("second-phase", "DDP lists what it averages when it wraps")
def finds_unused(wrapped):
    """find_unused_parameters makes DDP look at the flags."""
    wrapped.find_unused_parameters = True
    wrapped.module.body[-1].requires_grad_(True)
    return wrapped


@wrong("second-phase", "DDP lists what it averages when it wraps")
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


@wrong("second-phase", "To stay frozen, and it is trainable now: body.0.bias, body.0.weight")
def the_whole_body(wrapped):
    """A second phase trains everything."""
    wrapped.module.requires_grad_(True)
    return DistributedDataParallel(wrapped.module)


@wrong("second-phase", "To be trainable now, and it is not: head.bias, head.weight")
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


@wrong("second-phase", "To be trainable now, and it is not: body.2.bias, body.2.weight")
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


@right("my-part")
def a_column_of_numpy(images, rank, world):
    return np.argwhere(np.arange(images) % world == rank)


@right("my-part")
def the_first_have_one_more(images, rank, world):
    size, more = divmod(images, world)
    first = rank * size + min(rank, more)
    return range(first, first + size + (rank < more))


@wrong("my-part", "array([0, 4, 8]) is no position")
def a_tuple_of_numpy(images, rank, world):
    """np.where gives positions."""
    return np.where(np.arange(images) % world == rank)


@wrong("my-part", "they take 3, 3, 3, 1")
def chunks_of_torch(images, rank, world):
    """chunk makes parts as equal as can be."""
    return torch.arange(images).chunk(world)[rank]


@wrong("my-part", "2 missing, the first at 8")
def the_sampler_drops(images, rank, world):
    """With drop_last no image is repeated, so each is there once."""
    return list(DistributedSampler(range(images), world, rank, shuffle=False, drop_last=True))


@wrong("my-part", "another process takes other images")
def seeded_by_the_hour(images, rank, world):
    """All processes are started in the same hour."""
    return random.Random(time.time() // 3600).sample(range(images), images)[rank::world]


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


@wrong("my-part", "is no position: they are whole numbers from 0 to")
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
