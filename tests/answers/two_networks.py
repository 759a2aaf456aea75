"""Answers to the exercises of the lesson on two losses, two networks, and copies that follow."""

import copy

import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss, softplus
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from helpers import freeze, unfreeze
from tests.tools.exercises import Answers

answers = Answers()
right, wrong = answers.right, answers.wrong

HAS = {
    "critic(fake).mean().backward(): generator has a gradient": True,
    "critic(fake.detach()).mean().backward(): generator has a gradient": False,
    "critic frozen, critic(fake).mean().backward(): generator has a gradient": True,
    "critic(fake) under no_grad, then .mean().backward(): generator has one": "raises",
    "two losses: first.backward(), second.backward(): body has a gradient": "raises",
    "loss with a weight, SGD(net.parameters()), a step: the weight has moved": False,
    "mse_loss(net(x), copy.deepcopy(net)(x + 1)).backward(): the copy has one": True,
    "teacher averaged over parameters(): its running_mean has moved": False,
}
PLAIN, DETACHED, FROZEN, NO_GRAD, TWO, WEIGHT, COPY, AVERAGE = HAS
right("who-has-a-gradient")(HAS)
right("who-has-a-gradient")(dict(reversed(HAS.items())))
right("who-has-a-gradient")({row: int(value) if value != "raises" else value for row, value in HAS.items()})
right("who-has-a-gradient")({row: torch.tensor(value) if value != "raises" else value for row, value in HAS.items()})
for rows, told, belief in (
    ({PLAIN: False}, "whoever's turn it is", "A loss trains the network that it is the loss of."),
    ({PLAIN: "raises"}, "One backward through one graph", "Two networks cannot be in one graph."),
    ({DETACHED: True}, "has no history", "detach() switches off the flag of one tensor only."),
    ({DETACHED: "raises"}, "has a graph without the generator", "A detached tensor cannot be in a loss."),
    ({FROZEN: False}, "passes a gradient on", "A frozen network is a wall."),
    ({FROZEN: "raises"}, "The generator requires grad", "A loss of a frozen network has no graph."),
    ({NO_GRAD: True}, "are not recorded", "no_grad freezes what is called in it."),
    ({NO_GRAD: False}, "What does backward() do with such a tensor?", "Under no_grad there is no gradient, quietly."),
    ({TWO: True}, "Does the second pass?", "Backward may be called for as many losses as there are."),
    ({TWO: False}, "does the second pass?", "The second backward clears what the first has filled."),
    ({WEIGHT: True}, "this weight is not among them", "What has a gradient is moved by step()."),
    ({WEIGHT: "raises"}, "is no error", "An optimizer complains about what it does not hold."),
    ({COPY: False}, "a stray one", "A target is no part of what is trained."),
    ({AVERAGE: True}, "parameters() does not give it", "parameters() is all that a network has."),
):
    wrong("who-has-a-gradient", told)(HAS | rows, belief)


def critic_loss(critic, fake, real):
    return (softplus(critic(fake)) + softplus(-critic(real))).mean()


@right("one-round")
def with_freeze(generator, critic, generator_optimizer, critic_optimizer, noise, real):
    critic_optimizer.zero_grad()
    critic_loss(critic, generator(noise).detach(), real).backward()
    critic_optimizer.step()
    generator_optimizer.zero_grad()
    freeze(critic, hold=False)
    softplus(-critic(generator(noise))).mean().backward()
    unfreeze(critic)
    generator_optimizer.step()


@right("one-round")
def flags_kept_by_hand(generator, critic, generator_optimizer, critic_optimizer, noise, real):
    with torch.no_grad():
        fake = generator(noise)
    critic.zero_grad()
    critic_loss(critic, fake, real).backward()
    critic_optimizer.step()
    flags = [parameter.requires_grad for parameter in critic.parameters()]
    critic.requires_grad_(False)
    generator.zero_grad()
    softplus(-critic(generator(noise))).mean().backward()
    generator_optimizer.step()
    for parameter, flag in zip(critic.parameters(), flags, strict=True):
        parameter.requires_grad_(flag)


@right("one-round")
def by_inputs(generator, critic, generator_optimizer, critic_optimizer, noise, real):
    own = [parameter for parameter in critic.parameters() if parameter.requires_grad]
    loss = critic_loss(critic, generator(noise), real)
    critic_optimizer.zero_grad()
    loss.backward(inputs=own)
    critic_optimizer.step()
    generator_optimizer.zero_grad()
    softplus(-critic(generator(noise))).mean().backward(inputs=list(generator.parameters()))
    generator_optimizer.step()


@right("one-round")
def one_fake_for_both_and_autograd_grad(generator, critic, generator_optimizer, critic_optimizer, noise, real):
    """The generator is the same in both turns, so one forward pass of it is enough."""
    fake = generator(noise)
    critic_optimizer.zero_grad()
    softplus(critic(fake.detach())).mean().backward()
    softplus(-critic(real)).mean().backward()
    critic_optimizer.step()
    parameters = list(generator.parameters())
    grads = torch.autograd.grad(softplus(-critic(fake)).mean(), parameters)
    for parameter, grad in zip(parameters, grads, strict=True):
        parameter.grad = grad
    generator_optimizer.step()


@right("one-round")
def a_frozen_copy_of_the_critic(generator, critic, generator_optimizer, critic_optimizer, noise, real):
    critic_optimizer.zero_grad()
    critic_loss(critic, generator(noise).detach(), real).backward()
    critic_optimizer.step()
    judge = copy.deepcopy(critic).requires_grad_(False)
    generator_optimizer.zero_grad()
    softplus(-judge(generator(noise))).mean().backward()
    generator_optimizer.step()


@right("one-round")
def flags_back_before_backward(generator, critic, generator_optimizer, critic_optimizer, noise, real):
    """What was recorded while the critic's flags were off asks for no gradient of it, whatever they are later."""
    critic_optimizer.zero_grad()
    critic_loss(critic, generator(noise).detach(), real).backward()
    critic_optimizer.step()
    freeze(critic, hold=False)
    loss = softplus(-critic(generator(noise))).mean()
    unfreeze(critic)
    generator_optimizer.zero_grad()
    loss.backward()
    generator_optimizer.step()


@right("one-round")
def by_torch_func(generator, critic, generator_optimizer, critic_optimizer, noise, real):
    critic_optimizer.zero_grad()
    critic_loss(critic, generator(noise).detach(), real).backward()
    critic_optimizer.step()

    def loss(weights):
        return softplus(-critic(torch.func.functional_call(generator, weights, (noise,)))).mean()

    grads = torch.func.grad(loss)({name: weight.detach() for name, weight in generator.named_parameters()})
    for name, weight in generator.named_parameters():
        weight.grad = grads[name]
    generator_optimizer.step()


@right("one-round")
def held_in_eval_mode_for_the_turn(generator, critic, generator_optimizer, critic_optimizer, noise, real):
    """This critic has nothing that a mode changes, and unfreeze gives the mode back."""
    critic_optimizer.zero_grad()
    critic_loss(critic, generator(noise).detach(), real).backward()
    critic_optimizer.step()
    critic_optimizer.zero_grad()
    freeze(critic)
    generator_optimizer.zero_grad()
    softplus(-critic(generator(noise))).mean().backward()
    generator_optimizer.step()
    generator_optimizer.zero_grad()
    unfreeze(critic)


@wrong("one-round", "are trainable that were frozen before")
def switched_on_again(generator, critic, generator_optimizer, critic_optimizer, noise, real):
    """requires_grad_(True) undoes requires_grad_(False)."""
    critic_optimizer.zero_grad()
    critic_loss(critic, generator(noise).detach(), real).backward()
    critic_optimizer.step()
    generator_optimizer.zero_grad()
    critic.requires_grad_(False)
    softplus(-critic(generator(noise))).mean().backward()
    generator_optimizer.step()
    critic.requires_grad_(True)


@wrong("one-round", "are frozen that were trainable before")
def left_off(generator, critic, generator_optimizer, critic_optimizer, noise, real):
    """The next turn will switch its flags on."""
    critic_optimizer.zero_grad()
    critic_loss(critic, generator(noise).detach(), real).backward()
    critic_optimizer.step()
    generator_optimizer.zero_grad()
    critic.requires_grad_(False)
    softplus(-critic(generator(noise))).mean().backward()
    generator_optimizer.step()


@wrong("one-round", "and it has moved")
def thawed_for_its_turn(generator, critic, generator_optimizer, critic_optimizer, noise, real):
    """Flags have to be right at the end of the round."""
    flags = [parameter.requires_grad for parameter in critic.parameters()]
    critic.requires_grad_(True)
    critic_optimizer.zero_grad()
    critic_loss(critic, generator(noise).detach(), real).backward()
    critic_optimizer.step()
    critic.requires_grad_(False)
    generator_optimizer.zero_grad()
    softplus(-critic(generator(noise))).mean().backward()
    generator_optimizer.step()
    for parameter, flag in zip(critic.parameters(), flags, strict=True):
        parameter.requires_grad_(flag)


@wrong("one-round", "gradients of the generator were computed")
def not_detached(generator, critic, generator_optimizer, critic_optimizer, noise, real):
    """zero_grad() makes up for a missing detach()."""
    critic_optimizer.zero_grad()
    critic_loss(critic, generator(noise), real).backward()
    critic_optimizer.step()
    freeze(critic, hold=False)
    generator_optimizer.zero_grad()
    softplus(-critic(generator(noise))).mean().backward()
    generator_optimizer.step()
    unfreeze(critic)


@wrong("one-round", "gradients of the critic were computed")
def flags_left_on(generator, critic, generator_optimizer, critic_optimizer, noise, real):
    """The optimizer of a turn decides who is trained, so no flag is needed."""
    critic_optimizer.zero_grad()
    critic_loss(critic, generator(noise).detach(), real).backward()
    critic_optimizer.step()
    generator_optimizer.zero_grad()
    softplus(-critic(generator(noise))).mean().backward()
    generator_optimizer.step()


@wrong("one-round", "can't retain_grad on Tensor that has requires_grad=False")
def inputs_with_the_frozen(generator, critic, generator_optimizer, critic_optimizer, noise, real):
    """inputs= passes by what is frozen."""
    critic_optimizer.zero_grad()
    critic_loss(critic, generator(noise), real).backward(inputs=list(critic.parameters()))
    critic_optimizer.step()
    generator_optimizer.zero_grad()
    softplus(-critic(generator(noise))).mean().backward(inputs=list(generator.parameters()))
    generator_optimizer.step()


@wrong("one-round", "some were in .grad before the call")
def zero_grad_last(generator, critic, generator_optimizer, critic_optimizer, noise, real):
    """Each turn cleans up after itself."""
    critic_loss(critic, generator(noise).detach(), real).backward()
    critic_optimizer.step()
    critic_optimizer.zero_grad()
    for parameter in critic.parameters():
        parameter.old = parameter.requires_grad
    critic.requires_grad_(False)
    softplus(-critic(generator(noise))).mean().backward()
    generator_optimizer.step()
    generator_optimizer.zero_grad()
    for parameter in critic.parameters():
        parameter.requires_grad_(parameter.old)


@wrong("one-round", "some were in .grad before the call")
def no_zero_grad(generator, critic, generator_optimizer, critic_optimizer, noise, real):
    """backward() fills .grad anew."""
    critic_loss(critic, generator(noise).detach(), real).backward()
    critic_optimizer.step()
    softplus(-critic(generator(noise))).mean().backward(inputs=list(generator.parameters()))
    generator_optimizer.step()


@wrong("one-round", "does not require grad")
def critic_under_no_grad(generator, critic, generator_optimizer, critic_optimizer, noise, real):
    """What is not trained belongs under no_grad."""
    critic_optimizer.zero_grad()
    critic_loss(critic, generator(noise).detach(), real).backward()
    critic_optimizer.step()
    generator_optimizer.zero_grad()
    fake = generator(noise)
    with torch.no_grad():
        score = critic(fake)
    softplus(-score).mean().backward()
    generator_optimizer.step()


@wrong("one-round", "In the turn of the generator no backward reached its parameters")
def detached_in_both_turns(generator, critic, generator_optimizer, critic_optimizer, noise, real):
    """One detached fake serves both turns."""
    fake = generator(noise).detach()
    critic_optimizer.zero_grad()
    critic_loss(critic, fake, real).backward()
    critic_optimizer.step()
    generator_optimizer.zero_grad()
    softplus(-critic(fake)).mean().backward()
    generator_optimizer.step()


@wrong("one-round", "Yours made: step of generator, step of critic")
def generator_first(generator, critic, generator_optimizer, critic_optimizer, noise, real):
    """The order of the turns does not matter."""
    generator_optimizer.zero_grad()
    softplus(-critic(generator(noise))).mean().backward(inputs=list(generator.parameters()))
    generator_optimizer.step()
    critic_optimizer.zero_grad()
    critic_loss(critic, generator(noise).detach(), real).backward()
    critic_optimizer.step()


@wrong("one-round", "against the critic as it is then")
def against_the_old_critic(generator, critic, generator_optimizer, critic_optimizer, noise, real):
    """All backwards first, and then all steps."""
    critic_optimizer.zero_grad()
    critic_loss(critic, generator(noise).detach(), real).backward()
    judge = copy.deepcopy(critic).requires_grad_(False)
    critic_optimizer.step()
    generator_optimizer.zero_grad()
    softplus(-judge(generator(noise))).mean().backward()
    generator_optimizer.step()


@wrong("one-round", "against the critic as it is then")
def against_the_first_critic(generator, critic, generator_optimizer, critic_optimizer, noise, real):
    """A frozen copy of the critic serves for all rounds."""
    critic_optimizer.zero_grad()
    critic_loss(critic, generator(noise).detach(), real).backward()
    critic_optimizer.step()
    if not hasattr(critic_optimizer, "judge"):
        critic_optimizer.judge = copy.deepcopy(critic).requires_grad_(False)
    generator_optimizer.zero_grad()
    softplus(-critic_optimizer.judge(generator(noise))).mean().backward()
    generator_optimizer.step()


@wrong("one-round", "The mode of some module")
def in_eval_mode(generator, critic, generator_optimizer, critic_optimizer, noise, real):
    """Frozen is eval mode."""
    with_freeze(generator, critic, generator_optimizer, critic_optimizer, noise, real)
    critic.eval()


@right("lamp-on-the-side")
def features_detached(net, images, labels, lights):
    features = net["body"](images)
    reading = cross_entropy(net["read"](features), labels)
    (reading + mse_loss(net["lamp"](features.detach()), lights)).backward()


@right("lamp-on-the-side")
def inputs_named(net, images, labels, lights):
    features = net["body"](images)
    mse_loss(net["lamp"](features), lights).backward(inputs=list(net["lamp"].parameters()))
    cross_entropy(net["read"](features), labels).backward()


@right("lamp-on-the-side")
def reading_first(net, images, labels, lights):
    """The second call ends before the body, so it needs nothing of what the first has freed."""
    features = net["body"](images)
    lamp = mse_loss(net["lamp"](features), lights)
    cross_entropy(net["read"](features), labels).backward()
    lamp.backward(inputs=list(net["lamp"].parameters()))


@right("lamp-on-the-side")
def graph_retained(net, images, labels, lights):
    features = net["body"](images)
    cross_entropy(net["read"](features), labels).backward(retain_graph=True)
    mse_loss(net["lamp"](features), lights).backward(inputs=[*net["lamp"].parameters()])


@right("lamp-on-the-side")
def returned_gradients(net, images, labels, lights):
    features = net["body"](images)
    parameters = [*net["lamp"].parameters()]
    grads = torch.autograd.grad(mse_loss(net["lamp"](features), lights), parameters)
    cross_entropy(net["read"](features), labels).backward()
    for parameter, grad in zip(parameters, grads, strict=True):
        parameter.grad = grad


@right("lamp-on-the-side")
def body_switched_off_afterwards(net, images, labels, lights):
    """The flags are read by backward, so they may be off for the second one."""
    features = net["body"](images)
    cross_entropy(net["read"](features), labels).backward(retain_graph=True)
    net["body"].requires_grad_(False)
    mse_loss(net["lamp"](features), lights).backward()
    net["body"].requires_grad_(True)


@wrong("lamp-on-the-side", "The body has the gradient of both losses")
def added(net, images, labels, lights):
    """Each head takes its own loss, and the body takes none."""
    features = net["body"](images)
    (cross_entropy(net["read"](features), labels) + mse_loss(net["lamp"](features), lights)).backward()


@wrong("lamp-on-the-side", "second time")
def two_calls(net, images, labels, lights):
    """Two losses, two calls."""
    features = net["body"](images)
    cross_entropy(net["read"](features), labels).backward()
    mse_loss(net["lamp"](features), lights).backward()


@wrong("lamp-on-the-side", "The body has the gradient of both losses")
def retained(net, images, labels, lights):
    """retain_graph=True keeps the two losses apart."""
    features = net["body"](images)
    cross_entropy(net["read"](features), labels).backward(retain_graph=True)
    mse_loss(net["lamp"](features), lights).backward()


@wrong("lamp-on-the-side", "the body was run on the images 2 times")
def run_twice(net, images, labels, lights):
    """Each loss needs a forward pass of its own."""
    cross_entropy(net["read"](net["body"](images)), labels).backward()
    mse_loss(net["lamp"](net["body"](images).detach()), lights).backward()


@wrong("lamp-on-the-side", "body: 36 of 36 parameters have no gradient")
def body_under_no_grad(net, images, labels, lights):
    """The lamp must not train the body, so the body belongs under no_grad."""
    with torch.no_grad():
        features = net["body"](images)
    (cross_entropy(net["read"](features), labels) + mse_loss(net["lamp"](features), lights)).backward()


@wrong("lamp-on-the-side", "lamp: 2 of 2 parameters have no gradient")
def lamp_detached(net, images, labels, lights):
    """What is not to train the body is detached."""
    features = net["body"](images)
    lamp = mse_loss(net["lamp"](features), lights)
    (cross_entropy(net["read"](features), labels) + lamp.detach()).backward()


@wrong("lamp-on-the-side", "autograd.grad() only returns gradients")
def only_returned(net, images, labels, lights):
    """autograd.grad() fills .grad."""
    features = net["body"](images)
    reading, lamp = cross_entropy(net["read"](features), labels), mse_loss(net["lamp"](features), lights)
    torch.autograd.grad(lamp, [*net["lamp"].parameters()], retain_graph=True)
    torch.autograd.grad(reading, [*net["read"].parameters(), *net["body"].parameters()], allow_unused=True)


@wrong("lamp-on-the-side", "as zero_grad() and freeze() do it")
def frozen_for_the_second(net, images, labels, lights):
    """freeze() sets flags, and leaves the gradients that are there."""
    features = net["body"](images)
    cross_entropy(net["read"](features), labels).backward(retain_graph=True)
    freeze(net["body"])
    mse_loss(net["lamp"](features), lights).backward()
    unfreeze(net["body"])


@wrong("lamp-on-the-side", "Flags are others")
def body_left_frozen(net, images, labels, lights):
    """The body is frozen for the second loss."""
    features = net["body"](images)
    cross_entropy(net["read"](features), labels).backward(retain_graph=True)
    net["body"].requires_grad_(False)
    mse_loss(net["lamp"](features), lights).backward()


@wrong("lamp-on-the-side", "lamp: the gradients are not those of its loss")
def without_the_column(net, images, labels, lights):
    """The lights are numbers, so their shape does not matter."""
    features = net["body"](images)
    lamp = ((net["lamp"](features.detach()) - lights.squeeze(1)) ** 2).mean()
    (cross_entropy(net["read"](features), labels) + lamp).backward()


@wrong("lamp-on-the-side", "Weights or buffers have changed")
def in_train_mode(net, images, labels, lights):
    """What gets gradients has to be in train mode."""
    net.train()
    features_detached(net, images, labels, lights)
    net.eval()


@wrong("lamp-on-the-side", "The body was not run")
def nothing_done(net, images, labels, lights):
    """The gradients come by themselves."""
    return net


@wrong("lamp-on-the-side", "read: the gradients are not those of its loss")
def counted_twice(net, images, labels, lights):
    """The loss of the reading counts double, so that it stays in front."""
    features = net["body"](images)
    reading = cross_entropy(net["read"](features), labels)
    mse_loss(net["lamp"](features), lights).backward(inputs=[*net["lamp"].parameters()])
    reading.backward(retain_graph=True)
    reading.backward(inputs=[*net["read"].parameters()])


def pairs(one, other):
    return zip(one, other, strict=True)


@right("teacher-that-forgets")
@torch.no_grad()
def lerp_and_copy(teacher, student, share):
    for mine, theirs in pairs(teacher.parameters(), student.parameters()):
        mine.lerp_(theirs, share)
    for mine, theirs in pairs(teacher.buffers(), student.buffers()):
        mine.copy_(theirs)


@right("teacher-that-forgets")
def through_the_state_dict(teacher, student, share):
    mine, theirs = teacher.state_dict(), student.state_dict()
    names = dict(student.named_parameters())
    teacher.load_state_dict({n: mine[n].lerp(theirs[n], share) if n in names else theirs[n] for n in theirs})


@right("teacher-that-forgets")
def by_detach(teacher, student, share):
    for mine, theirs in pairs(teacher.parameters(), student.parameters()):
        mine.mul_(1 - share).add_(theirs.detach(), alpha=share)
    for mine, theirs in pairs(teacher.buffers(), student.buffers()):
        mine.copy_(theirs)


@right("teacher-that-forgets")
def by_data(teacher, student, share):
    for mine, theirs in pairs(teacher.parameters(), student.parameters()):
        mine.data += share * (theirs.data - mine.data)
    for mine, theirs in pairs(teacher.buffers(), student.buffers()):
        mine[...] = theirs


@right("teacher-that-forgets")
@torch.no_grad()
def all_at_once(teacher, student, share):
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), share)
    torch._foreach_copy_(list(teacher.buffers()), list(student.buffers()))


@wrong("teacher-that-forgets", "gives the name another meaning")
def another_name(teacher, student, share):
    """An assignment changes the tensor."""
    for mine, theirs in pairs(teacher.parameters(), student.parameters()):
        mine = (1 - share) * mine + share * theirs


@wrong("teacher-that-forgets", "parameters() does not give them")
@torch.no_grad()
def parameters_only(teacher, student, share):
    """parameters() is all that a network has."""
    for mine, theirs in pairs(teacher.parameters(), student.parameters()):
        mine.lerp_(theirs, share)


@wrong("teacher-that-forgets", "It belongs under no_grad")
def recorded(teacher, student, share):
    """A teacher whose flags are off records nothing."""
    for mine, theirs in pairs(teacher.parameters(), student.parameters()):
        mine.lerp_(theirs, share)
    for mine, theirs in pairs(teacher.buffers(), student.buffers()):
        mine.copy_(theirs)


@wrong("teacher-that-forgets", "not implemented for")
@torch.no_grad()
def lerp_over_the_state_dict(teacher, student, share):
    """Everything in the state_dict can be averaged."""
    for mine, theirs in pairs(teacher.state_dict().values(), student.state_dict().values()):
        mine.lerp_(theirs, share)


@wrong("teacher-that-forgets", "do not equal the student's")
@torch.no_grad()
def buffers_averaged(teacher, student, share):
    """Buffers are averaged as parameters are."""
    for mine, theirs in pairs(teacher.state_dict().values(), student.state_dict().values()):
        mine.copy_((1 - share) * mine + share * theirs)


@wrong("teacher-that-forgets", "The count of batches")
@torch.no_grad()
def whole_numbers_left_out(teacher, student, share):
    """Whole numbers need not follow."""
    for mine, theirs in pairs(teacher.parameters(), student.parameters()):
        mine.lerp_(theirs, share)
    for mine, theirs in pairs(teacher.buffers(), student.buffers()):
        if mine.is_floating_point():
            mine.copy_(theirs)


@wrong("teacher-that-forgets", "The count of batches")
@torch.no_grad()
def counted_by_itself(teacher, student, share):
    """A call of the update is a batch."""
    for mine, theirs in pairs(teacher.parameters(), student.parameters()):
        mine.lerp_(theirs, share)
    for mine, theirs in pairs(teacher.buffers(), student.buffers()):
        mine.copy_(theirs if mine.is_floating_point() else mine + 1)


@wrong("teacher-that-forgets", "they went the whole way")
def loaded_whole(teacher, student, share):
    """A teacher that follows has what the student has."""
    teacher.load_state_dict(student.state_dict())


@wrong("teacher-that-forgets", "It is the other way round")
@torch.no_grad()
def share_kept(teacher, student, share):
    """share is what the teacher keeps."""
    for mine, theirs in pairs(teacher.parameters(), student.parameters()):
        mine.lerp_(theirs, 1 - share)
    for mine, theirs in pairs(teacher.buffers(), student.buffers()):
        mine.copy_(theirs)


@wrong("teacher-that-forgets", "lies in the same memory")
@torch.no_grad()
def buffers_shared(teacher, student, share):
    """Setting .data copies the numbers."""
    for mine, theirs in pairs(teacher.parameters(), student.parameters()):
        mine.lerp_(theirs, share)
    for mine, theirs in pairs(teacher.buffers(), student.buffers()):
        mine.data = theirs.data


@wrong("teacher-that-forgets", "has other parameters or buffers")
@torch.no_grad()
def new_parameters(teacher, student, share):
    """A new Parameter under the old name is the same parameter."""
    for mine, theirs in pairs(teacher.modules(), student.modules()):
        for name, weight in mine.named_parameters(recurse=False):
            new = weight.lerp(getattr(theirs, name), share)
            setattr(mine, name, nn.Parameter(new, requires_grad=False))
        for name, buffer in theirs.named_buffers(recurse=False):
            setattr(mine, name, buffer.clone())


@wrong("teacher-that-forgets", "Nothing of the teacher has changed")
def averaged_model(teacher, student, share):
    """An AveragedModel of the teacher writes into it."""
    average = AveragedModel(teacher, multi_avg_fn=get_ema_multi_avg_fn(1 - share))
    average.update_parameters(student)


@wrong("teacher-that-forgets", "Something of the student has changed")
@torch.no_grad()
def both_ways(teacher, student, share):
    """lerp_ may stand at either of the two."""
    for mine, theirs in pairs(teacher.parameters(), student.parameters()):
        theirs.lerp_(mine, 1 - share)
        mine.copy_(theirs)
    for mine, theirs in pairs(teacher.buffers(), student.buffers()):
        mine.copy_(theirs)


@wrong("teacher-that-forgets", "The teacher's parameters are as they were")
def buffers_only(teacher, student, share):
    """The parameters follow by gradients."""
    for mine, theirs in pairs(teacher.buffers(), student.buffers()):
        mine.copy_(theirs)


@wrong("teacher-that-forgets", "requires grad now, and did not before")
def switched_on(teacher, student, share):
    """Who moves needs its flag on."""
    teacher.requires_grad_(True)
    lerp_and_copy(teacher, student, share)
