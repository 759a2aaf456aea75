"""Answers to the exercises of the lesson on ``requires_grad``."""

import copy
import fnmatch
import functools
import re

import numpy as np
import torch
from torch import nn

from helpers import freeze
from tests.tools.exercises import Answers

answers = Answers()
right, wrong = answers.right, answers.wrong

SEEN = {
    "first.weight has a gradient": True,
    "frozen.weight has a gradient": False,
    "unused.weight has a gradient": False,
    "frozen(hidden) requires grad": True,
    "frozen(torch.ones(1, 2)) requires grad": False,
    "hidden.round() requires grad": True,
    "(hidden > 0) requires grad": False,
    "hidden is a leaf": False,
}
right("who-is-asked")(SEEN)
right("who-is-asked")(dict(reversed(SEEN.items())))
right("who-is-asked")({row: torch.tensor(value) for row, value in SEEN.items()})
right("who-is-asked")({row: int(value) for row, value in SEEN.items()})
right("who-is-asked")({row: np.bool_(value) for row, value in SEEN.items()})
wrong("who-is-asked", "takes True or False; yours is 'zeros'")(
    SEEN | {"hidden.round() requires grad": "zeros"}, "What matters of a gradient is its numbers."
)
wrong("who-is-asked", "takes True or False; yours is None")(
    SEEN | {"unused.weight has a gradient": None}, "A gradient that is None is written as None."
)
wrong("who-is-asked", "Keep the table the dict that it was")(list(SEEN.values()), "The order of the rows says enough.")
wrong("who-is-asked", "Right in 3 of 8 rows")(dict.fromkeys(SEEN, True), "A trainable weight makes everything so.")
wrong("who-is-asked", "does not stop the gradient")(dict.fromkeys(SEEN, False), "One frozen layer freezes the rest.")
wrong("who-is-asked", "does not stop the gradient")(
    SEEN | {"first.weight has a gradient": False}, "A frozen layer stops the gradient."
)
wrong("who-is-asked", "adds nothing to its .grad")(
    SEEN | {"frozen.weight has a gradient": True}, "A frozen layer gets a gradient that the optimizer ignores."
)
wrong("who-is-asked", "not computed from it")(
    SEEN | {"unused.weight has a gradient": True}, "Whatever requires a gradient gets one, zeros if need be."
)
wrong("who-is-asked", "is enough, and hidden does")(
    SEEN | {"frozen(hidden) requires grad": False}, "What comes out of a frozen layer requires no gradient."
)
wrong("who-is-asked", "neither the ones")(
    SEEN | {"frozen(torch.ones(1, 2)) requires grad": True}, "What comes out of a layer always requires a gradient."
)
wrong("who-is-asked", "its gradient is zero")(
    SEEN | {"hidden.round() requires grad": False}, "What has no useful gradient is not recorded."
)
wrong("who-is-asked", "A comparison gives booleans")(
    SEEN | {"(hidden > 0) requires grad": True}, "Whatever is computed from a weight is recorded."
)
wrong("who-is-asked", "it has a grad_fn")(SEEN | {"hidden is a leaf": True}, "A leaf is whatever I gave a name.")
wrong("who-is-asked", "none of these lines raises an error")(
    SEEN | {"hidden is a leaf": "raises"}, "A question that makes no sense raises an error."
)


@right("still-trains")
def method_of_the_layer(model):
    model[0].requires_grad_(False)


@right("still-trains")
def each_parameter(model):
    for parameter in model[0].parameters():
        parameter.requires_grad = False


@right("still-trains")
def by_name_and_returned(model):
    for name, parameter in model.named_parameters():
        if name.startswith("0."):
            parameter.requires_grad_(False)
    return model


@right("still-trains")
def in_one_line(model):
    return model[0].requires_grad_(False)


@right("still-trains")
def a_slice(model):
    return model[:1].requires_grad_(False)


@right("still-trains")
def with_its_old_gradients_dropped(model):
    model[0].requires_grad_(False).zero_grad()


@right("still-trains")
def by_the_helper(model):
    freeze(model, "0.*", hold=False)


@right("still-trains")
def beside_the_lines_that_do_nothing(model):
    model[0].requires_grad = False
    for parameter in model[0].parameters():
        parameter.require_grad = False
        parameter.requires_grad = False


@wrong("still-trains", "and is frozen now")
def all_but_the_last(model):
    """Everything before the last layer is the first."""
    model.requires_grad_(False)
    model[-1].requires_grad_(True)


@wrong("still-trains", "with an underscore")
def attribute_of_the_layer(model):
    """A layer has a flag, as its parameters do."""
    model[0].requires_grad = False


@wrong("still-trains", "with an s")
def misspelled(model):
    """Python would say so if there were no such attribute."""
    for parameter in model[0].parameters():
        parameter.require_grad = False


@wrong("still-trains", "only shares their numbers")
def through_data(model):
    """.data is the parameter itself."""
    for parameter in model[0].parameters():
        parameter.data.requires_grad = False


@wrong("still-trains", "only shares their numbers")
def through_the_state_dict(model):
    """The state_dict holds the parameters."""
    for name, entry in model.state_dict().items():
        if name.startswith("0."):
            entry.requires_grad_(False)


@wrong("still-trains", "0.bias still requires a gradient")
def weight_only(model):
    """A layer has one parameter."""
    model[0].weight.requires_grad = False


@wrong("still-trains", "Now nothing in the model requires a gradient")
def everything(model):
    """The optimizer decides what trains, so freezing more does no harm."""
    model.requires_grad_(False)


@wrong("still-trains", "3.bias was frozen before")
def every_flag_is_mine(model):
    """Every flag is mine to set."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith("0."))


@wrong("still-trains", "3.bias was frozen before")
def from_a_clean_start(model):
    """One turns everything on first, to know where one stands."""
    model.requires_grad_(True)
    model[0].requires_grad_(False)


@wrong("still-trains", "other Parameter objects")
def detached(model):
    """A detached copy of a weight is the weight without a gradient."""
    model[0].weight = nn.Parameter(model[0].weight.detach(), requires_grad=False)
    model[0].bias = nn.Parameter(model[0].bias.detach(), requires_grad=False)


@wrong("still-trains", "other Parameter objects")
def replaced_by_buffers(model):
    """A buffer is a frozen parameter."""
    weight = model[0].weight.detach()
    del model[0].weight
    model[0].register_buffer("weight", weight)


@wrong("still-trains", "2.bias required a gradient")
def the_wrong_end(model):
    """The first layer is the one nearest to the loss, as backward meets it."""
    model[2].requires_grad_(False)
    model[0].requires_grad_(False)
    model[2].weight.requires_grad_(True)


@wrong("still-trains", "What you return is frozen")
def a_copy(model):
    """A function should leave its argument alone."""
    frozen = copy.deepcopy(model)
    frozen[0].requires_grad_(False)
    return frozen


@wrong("still-trains", "in place of the method")
def the_method_overwritten(model):
    """The flag has an underscore at its end."""
    model[0].requires_grad_ = False


@wrong("still-trains", "eval() freezes no parameter")
def eval_mode(model):
    """eval() freezes a layer."""
    model[0].eval()


@wrong("still-trains", "eval() freezes no parameter")
def eval_mode_as_well(model):
    """A frozen layer belongs in eval mode, whatever the statement says."""
    model[0].requires_grad_(False).eval()


@wrong("still-trains", "0.1.weight still requires a gradient")
def as_long_as_two(model):
    """The first two parameters are those of the first layer."""
    for parameter in list(model.parameters())[:2]:
        parameter.requires_grad_(False)


@wrong("still-trains", "and is frozen now")
def by_a_zero_in_the_name(model):
    """A name with a 0 in it is in layer 0."""
    for name, parameter in model.named_parameters():
        if "0" in name:
            parameter.requires_grad_(False)


@wrong("still-trains", "No flag of the model changed")
def by_a_hook_on_its_gradients(model):
    """A gradient of zero is a frozen parameter."""
    for parameter in model[0].parameters():
        parameter.register_hook(lambda gradient: gradient * 0)


@wrong("still-trains", "passes on something else in backward")
def by_a_hook(model):
    """A gradient of zero everywhere is the surest freeze."""
    model[0].requires_grad_(False)
    model[2].weight.register_hook(lambda gradient: gradient * 0)


@wrong("still-trains", "passes on something else in backward")
def with_its_output_detached(model):
    """A frozen layer lets nothing through."""
    model[0].requires_grad_(False)
    model[0].register_forward_hook(lambda module, args, output: output.detach())


@wrong("still-trains", "passes on something else in backward")
def under_no_grad(model):
    """no_grad around a layer is how one freezes it."""
    model[0].requires_grad_(False)
    model[0].forward = torch.no_grad()(model[0].forward)


@wrong("still-trains", "is gone or changed")
def with_all_gradients_dropped(model):
    """zero_grad belongs to freezing, for the whole model."""
    model[0].requires_grad_(False)
    model.zero_grad()


@wrong("still-trains", "Numbers of the model changed")
def zeros(model):
    """A frozen layer does nothing."""
    model[0].requires_grad_(False)
    for parameter in model[0].parameters():
        parameter.data.zero_()


@right("still-trains")
def detached_in_place(model):
    for parameter in model[0].parameters():
        parameter.detach_()


@right("still-trains")
def applied_to_each_module(model):
    model[0].apply(lambda module: module.requires_grad_(False))


@right("still-trains")
def by_the_first_level_of_the_name(model):
    for name, parameter in model.named_parameters():
        if name.split(".")[0] == "0":
            parameter.requires_grad = False


@right("still-trains")
def all_frozen_and_the_others_given_back(model):
    flags = [parameter.requires_grad for parameter in model[1:].parameters()]
    model.requires_grad_(False)
    for parameter, flag in zip(model[1:].parameters(), flags, strict=True):
        parameter.requires_grad_(flag)


@right("still-trains")
def by_the_entries_that_are_parameters(model):
    for entry in model[0].state_dict(keep_vars=True).values():
        entry.requires_grad_(False)


@right("still-trains")
def with_another_model_returned(model):
    model[0].requires_grad_(False)
    return nn.Sequential(*model)


@wrong("still-trains", "0.0.bias still requires a gradient")
def toggled(model):
    """A flag that is to be off is the other way round than it was."""
    for parameter in model[0].parameters():
        parameter.requires_grad = not parameter.requires_grad


@wrong("still-trains", "Does your code reach the parameters")
def only_layers_inside(model):
    """The parameters are in the children."""
    for child in model[0].children():
        child.requires_grad_(False)


@wrong("still-trains", "Does your code reach the parameters")
def mapped_and_never_run(model):
    """map calls a function on each."""
    map(lambda parameter: parameter.requires_grad_(False), model[0].parameters())


@wrong("still-trains", "set their own flag to False")
def not_called(model):
    """Naming the method is enough."""
    return model[0].requires_grad_


@wrong("still-trains", "set their own flag to False")
def turned_on_again(model):
    """requires_grad_ without an argument takes the flag away."""
    model[0].requires_grad_()


@wrong("still-trains", "set their own flag to False")
def gradients_dropped(model):
    """A parameter without a gradient is frozen."""
    for parameter in model[0].parameters():
        parameter.grad = None


@wrong("still-trains", "an optimizer leaves it as it is")
def left_out_of_the_optimizer(model):
    """What the optimizer does not get is frozen."""
    return torch.optim.SGD(model[1:].parameters(), lr=0.1)


@wrong("still-trains", "trainable was made a new attribute of a module")
def as_in_keras(model):
    """A layer is frozen by trainable = False, as in Keras."""
    model[0].trainable = False


@wrong("still-trains", "requires_grads was made a new attribute")
def misspelled_otherwise(model):
    """The flag ends in an s."""
    model[0].requires_grads = False


@wrong("still-trains", "has no attribute 'weight'")
def weight_and_bias(model):
    """Every layer has a weight and a bias."""
    model[0].weight.requires_grad = False
    model[0].bias.requires_grad = False


@wrong("still-trains", "'Linear' object is not iterable")
def each_layer_of_the_block(model):
    """The first part is a block of layers."""
    for layer in model[0]:
        layer.requires_grad_(False)


@wrong("still-trains", "has no attribute 'detach'")
def detach_the_layer(model):
    """detach is for layers, too."""
    model[0].detach()


@wrong("still-trains", "other Parameter objects")
def replaced_by_a_frozen_copy(model):
    """A frozen copy in its place is the same layer, frozen."""
    model[0] = copy.deepcopy(model[0]).requires_grad_(False)


@wrong("still-trains", "0.1.weight still requires a gradient")
def only_linear_layers(model):
    """Only linear layers have parameters."""
    for module in model[0].modules():
        if isinstance(module, nn.Linear):
            module.requires_grad_(False)


@right("nothing-trains")
def stacked(model, batches):
    losses = []
    for images, labels in batches:
        losses.append(nn.functional.cross_entropy(model(images), labels))
    return torch.stack(losses).mean()


@right("nothing-trains")
def added_up(model, batches):
    total = 0
    for images, labels in batches:
        total += nn.functional.cross_entropy(model(images), labels)
    return total / len(batches)


@right("nothing-trains")
def in_a_line(model, batches):
    return sum(nn.functional.cross_entropy(model(x), y) for x, y in batches) / len(batches)


@right("nothing-trains")
def joined_by_cat(model, batches):
    losses = [nn.functional.cross_entropy(model(x), y)[None] for x, y in batches]
    return torch.cat(losses).mean(dim=0, keepdim=True)


@right("nothing-trains")
def in_double_precision(model, batches):
    return sum(nn.functional.cross_entropy(model(x), y).double() for x, y in batches) / len(batches)


@right("nothing-trains")
def written_in_place(model, batches):
    losses = torch.zeros(len(batches))
    for number, (images, labels) in enumerate(batches):
        losses[number] = nn.functional.cross_entropy(model(images), labels)
    return losses.mean()


@wrong("nothing-trains", "is a leaf: nothing leads from it")
def as_it_was(model, batches):
    """What requires a gradient trains."""
    losses = [nn.functional.cross_entropy(model(x), y).item() for x, y in batches]
    return torch.tensor(sum(losses) / len(losses), requires_grad=True)


@wrong("nothing-trains", "nothing leads from it to the model")
def flag_on_the_result(model, batches):
    """The method turns a loss into one that trains."""
    losses = torch.tensor([nn.functional.cross_entropy(model(x), y).item() for x, y in batches])
    return losses.mean().requires_grad_()


@wrong("nothing-trains", "no gradient from it reaches")
def flag_on_the_list(model, batches):
    """A result that was computed from a tensor with a flag leads back to the model."""
    losses = [nn.functional.cross_entropy(model(x), y).item() for x, y in batches]
    return torch.tensor(losses, requires_grad=True).mean()


@wrong("nothing-trains", "raises the old error")
def without_the_flag(model, batches):
    """The flag was the mistake, so the rest is right."""
    losses = [nn.functional.cross_entropy(model(x), y) for x, y in batches]
    return torch.tensor([loss.detach() for loss in losses]).mean()


@wrong("nothing-trains", "as a tensor; yours is a float")
def a_plain_number(model, batches):
    """A loss is a number."""
    return sum(nn.functional.cross_entropy(model(x), y).item() for x, y in batches) / len(batches)


@wrong("nothing-trains", "sum of the losses")
def the_sum(model, batches):
    """The sum has the same gradients as the mean."""
    return torch.stack([nn.functional.cross_entropy(model(x), y) for x, y in batches]).sum()


@wrong("nothing-trains", "mean over all images")
def one_large_batch(model, batches):
    """The mean of the means is the mean of all."""
    images, labels = (torch.cat(part) for part in zip(*batches, strict=True))
    return nn.functional.cross_entropy(model(images), labels)


@wrong("nothing-trains", "the loss of one batch")
def only_the_last(model, batches):
    """What the loop leaves is what it has computed."""
    for images, labels in batches:
        loss = nn.functional.cross_entropy(model(images), labels)
    return loss


@wrong("nothing-trains", "filled, changed or emptied gradients")
def backward_in_the_loop(model, batches):
    """A loss that is to train calls backward."""
    losses = []
    for images, labels in batches:
        losses.append(nn.functional.cross_entropy(model(images), labels) / len(batches))
        losses[-1].backward(retain_graph=True)
    return torch.stack(losses).sum()


@wrong("nothing-trains", "with one number")
def all_losses(model, batches):
    """backward takes the mean by itself."""
    return torch.stack([nn.functional.cross_entropy(model(x), y) for x, y in batches])


@wrong("nothing-trains", "the gradients are not those of the mean")
def one_with_its_record(model, batches):
    """It is enough if one of the losses leads to the model."""
    losses = [nn.functional.cross_entropy(model(x), y) for x, y in batches]
    return (losses[0] + sum(loss.item() for loss in losses[1:])) / len(losses)


@wrong("nothing-trains", "no gradient from it reaches")
def outputs_detached(model, batches):
    """What requires a gradient is recorded from the beginning."""
    outputs = [model(images).detach().requires_grad_() for images, _ in batches]
    pairs = zip(outputs, batches, strict=True)
    return torch.stack([nn.functional.cross_entropy(output, labels) for output, (_, labels) in pairs]).mean()


@wrong("nothing-trains", "those of the mean")
def leads_back_by_a_zero(model, batches):
    """It is enough if the result depends on the parameters in some way."""
    losses = [nn.functional.cross_entropy(model(x), y).item() for x, y in batches]
    return 0 * sum(p.sum() for p in model.parameters()) + sum(losses) / len(losses)


@wrong("nothing-trains", "Flags of the model changed")
def unfrozen(model, batches):
    """Nothing trains because something is frozen."""
    model.requires_grad_(True)
    return torch.stack([nn.functional.cross_entropy(model(x), y) for x, y in batches]).mean()


@wrong("nothing-trains", "yours is")
def added_to_one(model, batches):
    """A total begins at 1."""
    total = torch.ones(())
    for images, labels in batches:
        total = total + nn.functional.cross_entropy(model(images), labels)
    return total / len(batches)


@right("nothing-trains")
def a_running_mean(model, batches):
    mean = 0
    for number, (images, labels) in enumerate(batches, 1):
        mean = mean + (nn.functional.cross_entropy(model(images), labels) - mean) / number
    return mean


@right("nothing-trains")
def in_one_forward(model, batches):
    outputs = model(torch.cat([x for x, _ in batches])).split([len(y) for _, y in batches])
    pairs = zip(outputs, batches, strict=True)
    return torch.stack([nn.functional.cross_entropy(output, labels) for output, (_, labels) in pairs]).mean()


@right("nothing-trains")
def added_to_a_tensor_with_a_flag(model, batches):
    total = torch.zeros(1, requires_grad=True)
    for images, labels in batches:
        total = total + nn.functional.cross_entropy(model(images), labels)
    return total / len(batches)


@right("nothing-trains")
def with_gradients_looked_at(model, batches):
    loss = torch.stack([nn.functional.cross_entropy(model(x), y) for x, y in batches]).mean()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    print(max(gradient.norm() for gradient in torch.autograd.grad(loss, trainable, retain_graph=True)))
    return loss


@wrong("nothing-trains", "has used up its graph")
def with_gradients_taken(model, batches):
    """autograd.grad leaves no trace."""
    loss = torch.stack([nn.functional.cross_entropy(model(x), y) for x, y in batches]).mean()
    torch.autograd.grad(loss, [parameter for parameter in model.parameters() if parameter.requires_grad])
    return loss


@wrong("nothing-trains", "filled, changed or emptied gradients")
def emptied_first(model, batches):
    """zero_grad belongs before every loss."""
    model.zero_grad()
    return torch.stack([nn.functional.cross_entropy(model(x), y) for x, y in batches]).mean()


@wrong("nothing-trains", "has used up its graph")
def backward_and_emptied(model, batches):
    """What was emptied again has not happened."""
    loss = torch.stack([nn.functional.cross_entropy(model(x), y) for x, y in batches]).mean()
    loss.backward()
    model.zero_grad()
    return loss


@wrong("nothing-trains", "the step is the business of the training loop")
def with_a_step(model, batches):
    """A loss that falls needs a step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = torch.stack([nn.functional.cross_entropy(model(x), y) for x, y in batches]).mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss


@wrong("nothing-trains", "The training loop chooses the mode")
def in_eval_mode(model, batches):
    """Several batches are an evaluation."""
    model.eval()
    return torch.stack([nn.functional.cross_entropy(model(x), y) for x, y in batches]).mean()


@wrong("nothing-trains", "or under no_grad")
def without_recording(model, batches):
    """The record is made by backward."""
    with torch.no_grad():
        return torch.stack([nn.functional.cross_entropy(model(x), y) for x, y in batches]).mean()


@wrong("nothing-trains", "raises the old error")
def a_new_tensor_of_tensors(model, batches):
    """A tensor of tensors keeps their records."""
    return torch.Tensor([nn.functional.cross_entropy(model(x), y) for x, y in batches]).mean()


@wrong("nothing-trains", "leaf Variable that requires grad")
def added_in_place(model, batches):
    """A total that is to train requires a gradient from the start."""
    total = torch.tensor(0.0, requires_grad=True)
    for images, labels in batches:
        total += nn.functional.cross_entropy(model(images), labels)
    return total / len(batches)


@wrong("nothing-trains", "Can't call numpy()")
def mean_of_numpy(model, batches):
    """NumPy's mean is as good."""
    return np.mean([nn.functional.cross_entropy(model(x), y) for x, y in batches])


@wrong("nothing-trains", "yours is a list")
def the_list(model, batches):
    """The loop takes the mean."""
    return [nn.functional.cross_entropy(model(x), y) for x, y in batches]


@wrong("nothing-trains", "the loss of one batch")
def returned_in_the_loop(model, batches):
    """return waits for the end of the loop."""
    losses = []
    for images, labels in batches:
        losses.append(nn.functional.cross_entropy(model(images), labels))
        return torch.stack(losses).mean()


@wrong("nothing-trains", "the gradients are not those of the mean")
def running_and_detached(model, batches):
    """A value that is carried on is detached between the steps."""
    total = torch.zeros(())
    for images, labels in batches:
        total = total.detach() + nn.functional.cross_entropy(model(images), labels)
    return total / len(batches)


@wrong("nothing-trains", "The mean of the losses is")
def divided_by_the_images(model, batches):
    """A mean is a sum by the number of images."""
    return sum(nn.functional.cross_entropy(model(x), y) for x, y in batches) / sum(len(y) for _, y in batches)


@right("freeze-by-name")
def parts_of_the_name(model, part):
    names = [name for name, _ in model.named_parameters() if name == part or name.startswith(part + ".")]
    if not names:
        raise ValueError(f"no parameter under {part!r}")
    for name in names:
        model.get_parameter(name).requires_grad_(False)
    return names


@right("freeze-by-name")
def by_dotted_comparison(model, part):
    names = []
    for name, parameter in model.named_parameters():
        if f"{name}.".startswith(f"{part}."):
            parameter.requires_grad = False
            names.append(name)
    if not names:
        raise ValueError(part)
    return names


@right("freeze-by-name")
def by_levels(model, part):
    levels = part.split(".")
    found = {n: p for n, p in model.named_parameters() if n.split(".")[: len(levels)] == levels}
    if len(found) == 0:
        raise ValueError("nothing there")
    [p.requires_grad_(False) for p in found.values()]
    return tuple(found)


@right("freeze-by-name")
def by_an_escaped_expression(model, part):
    found = {n: p for n, p in model.named_parameters() if re.match(rf"{re.escape(part)}(\.|$)", n) and part}
    if not found:
        raise ValueError(part)
    for parameter in found.values():
        parameter.requires_grad_(False)
        parameter.grad = None
    return list(found)


@right("freeze-by-name")
def by_the_helper_by_name(model, part):
    names = [name for name, _ in model.named_parameters() if f"{name}.".startswith(f"{part}.")]
    return freeze(model, *names or [part], hold=False)


@wrong("freeze-by-name", "begins with the same letters")
def beginning_letters(model, part):
    """A name that begins with the part's letters is in that part."""
    names = [name for name, _ in model.named_parameters() if name.startswith(part)]
    if not names:
        raise ValueError(part)
    for name in names:
        model.get_parameter(name).requires_grad = False
    return names


@wrong("freeze-by-name", "a dot in a name is a dot")
def by_an_expression(model, part):
    """A name is a regular expression for itself."""
    names = [name for name, _ in model.named_parameters() if re.match(rf"{part}(\.|$)", name)]
    if not names:
        raise ValueError(part)
    for name in names:
        model.get_parameter(name).requires_grad = False
    return names


@wrong("freeze-by-name", "must not pass in silence")
def silent(model, part):
    """A loop that finds nothing is an error by itself."""
    names = [name for name, _ in model.named_parameters() if f"{name}.".startswith(f"{part}.")]
    for name in names:
        model.get_parameter(name).requires_grad = False
    return names


@wrong("freeze-by-name", "'' names no parameter of the model")
def by_module_or_parameter(model, part):
    """What a model finds under a name is a part of it."""
    try:
        found = model.get_submodule(part)
        names = [f"{part}.{name}".lstrip(".") for name, _ in found.named_parameters()]
    except AttributeError:
        try:
            found, names = model.get_parameter(part), [part]
        except AttributeError:
            raise ValueError(part) from None
    found.requires_grad_(False)
    return names


@wrong("freeze-by-name", "'body.act' names no parameter")
def a_module_is_enough(model, part):
    """A name that a module has is not a wrong one."""
    names = [name for name, _ in model.named_parameters() if f"{name}.".startswith(f"{part}.")]
    if not part or not (names or part in dict(model.named_modules())):
        raise ValueError(part)
    for name in names:
        model.get_parameter(name).requires_grad = False
    return names


@wrong("freeze-by-name", "'body.norm.running_mean' names no parameter")
def an_entry_is_enough(model, part):
    """What is in the state_dict are parameters."""
    if not [name for name in model.state_dict() if f"{name}.".startswith(f"{part}.")]:
        raise ValueError(part)
    names = [name for name, _ in model.named_parameters() if f"{name}.".startswith(f"{part}.")]
    for name in names:
        model.get_parameter(name).requires_grad = False
    return names


@wrong("freeze-by-name", "it raised ValueError, but the part is there")
def nothing_to_do(model, part):
    """If nothing was left to freeze, the name was wrong."""
    names = [name for name, _ in model.named_parameters() if f"{name}.".startswith(f"{part}.")]
    if not any(model.get_parameter(name).requires_grad for name in names):
        raise ValueError(part)
    for name in names:
        model.get_parameter(name).requires_grad = False
    return names


@wrong("freeze-by-name", "whatever else is frozen")
def all_that_is_frozen(model, part):
    """What is frozen now is what I froze."""
    for name, parameter in model.named_parameters():
        if f"{name}.".startswith(f"{part}."):
            parameter.requires_grad = False
    return [name for name, parameter in model.named_parameters() if not parameter.requires_grad]


@wrong("freeze-by-name", "Leave alone the flags of what is not in the part")
def sets_all_flags(model, part):
    """Every flag is mine to set."""
    names = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad = not f"{name}.".startswith(f"{part}.")
        if not parameter.requires_grad:
            names.append(name)
    return names


@wrong("freeze-by-name", "Return the names")
def returns_nothing(model, part):
    """Who froze it need not say what."""
    for name, parameter in model.named_parameters():
        if f"{name}.".startswith(f"{part}."):
            parameter.requires_grad = False


@wrong("freeze-by-name", "which are strings; the list holds a tuple")
def returns_pairs(model, part):
    """named_parameters gives the names."""
    found = [(n, p.requires_grad_(False)) for n, p in model.named_parameters() if f"{n}.".startswith(f"{part}.")]
    if not found:
        raise ValueError(part)
    return found


@wrong("freeze-by-name", "AttributeError")
def only_modules(model, part):
    """Every name in a model is that of a module."""
    model.get_submodule(part).requires_grad_(False)
    return [f"{part}.{name}" for name, _ in model.get_submodule(part).named_parameters()]


@wrong("freeze-by-name", "it raised KeyError; a ValueError is wanted")
def another_error(model, part):
    """Any error will do."""
    names = [name for name, _ in model.named_parameters() if f"{name}.".startswith(f"{part}.")]
    if not names:
        raise KeyError(part)
    for name in names:
        model.get_parameter(name).requires_grad = False
    return names


@wrong("freeze-by-name", "at that depth")
def first_level(model, part):
    """A model has its layers on one level."""
    names = []
    for name, child in model.named_children():
        if name == part:
            for inner, parameter in child.named_parameters(recurse=False):
                parameter.requires_grad = False
                names.append(f"{name}.{inner}")
    return names


@wrong("freeze-by-name", "other Parameter objects")
def new_parameters(model, part):
    """The flag of a parameter is fixed when it is made."""
    names = [name for name, _ in model.named_parameters() if f"{name}.".startswith(f"{part}.")]
    for name in names:
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, nn.Parameter(torch.ones(2), requires_grad=False))
    return names


@wrong("freeze-by-name", "attribute of a module")
def flag_of_the_part(model, part):
    """A module has a flag."""
    model.get_submodule(part).requires_grad = False
    return [f"{part}.{name}" for name, _ in model.get_submodule(part).named_parameters()]


@wrong("freeze-by-name", "but changed flags before")
def freezes_and_then_raises(model, part):
    """An error makes good what was done before it."""
    names = [name for name, _ in model.named_parameters() if f"{name}.".startswith(f"{part}.")]
    for name, parameter in model.named_parameters():
        if name in names or not names:
            parameter.requires_grad = False
    if not names:
        raise ValueError(part)
    return names


@wrong("freeze-by-name", "does not belong to the part")
def anywhere_in_the_name(model, part):
    """A part's name may stand anywhere in a parameter's."""
    names = [name for name, _ in model.named_parameters() if f".{part}." in f".{name}."]
    if not names:
        raise ValueError(part)
    for name in names:
        model.get_parameter(name).requires_grad = False
    return names


@wrong("freeze-by-name", "What was frozen before belongs to the part, too")
def only_newly_frozen(model, part):
    """Only what is trainable belongs to the part."""
    names = [n for n, p in model.named_parameters() if f"{n}.".startswith(f"{part}.")]
    if not names:
        raise ValueError(part)
    names = [name for name in names if model.get_parameter(name).requires_grad]
    for name in names:
        model.get_parameter(name).requires_grad = False
    return names


@wrong("freeze-by-name", "Only parameters of the part")
def with_buffers(model, part):
    """What is in the state_dict are parameters."""
    names = [name for name in model.state_dict() if f"{name}.".startswith(f"{part}.")]
    if not names:
        raise ValueError(part)
    for name, parameter in model.named_parameters():
        if name in names:
            parameter.requires_grad = False
    return names


@wrong("freeze-by-name", "For 'body' the names are")
def in_the_order_of_the_alphabet(model, part):
    """A set of names has an order, if one sorts it."""
    names = sorted(name for name, _ in model.named_parameters() if fnmatch.fnmatchcase(f"{name}.", f"{part}.*"))
    if not names:
        raise ValueError(part)
    for name in names:
        model.get_parameter(name).requires_grad = False
    return names


@wrong("freeze-by-name", "leave the modes alone")
def norm_layers_in_eval_mode(model, part):
    """Freezing puts all norm layers in eval mode."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eval()
    return by_dotted_comparison(model, part)


@wrong("freeze-by-name", "is gone or changed")
def with_all_gradients_emptied(model, part):
    """zero_grad belongs to freezing, for the whole model."""
    model.zero_grad()
    return by_dotted_comparison(model, part)


@wrong("freeze-by-name", "passes on something else in backward")
def with_the_part_detached(model, part):
    """A frozen part lets nothing through."""
    names = by_dotted_comparison(model, part)
    if part in dict(model.named_modules()):
        model.body["norm"].register_forward_hook(lambda module, args, output: output.detach())
    return names


@wrong("freeze-by-name", "Use return")
def one_by_one(model, part):
    """A function that yields has done its work."""
    for name, parameter in model.named_parameters():
        if f"{name}.".startswith(f"{part}."):
            parameter.requires_grad = False
            yield name


@right("freeze-by-name")
def whatever_getattr_finds(model, part):
    names = [name for name, _ in model.named_parameters() if f"{name}.".startswith(f"{part}.")]
    if not names:
        raise ValueError(part)
    functools.reduce(getattr, part.split("."), model).requires_grad_(False)
    return names


@right("freeze-by-name")
def a_module_or_else_a_parameter(model, part):
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    found = {part: parameters[part]} if part in parameters else {}
    if part and part in modules:
        found = dict(modules[part].named_parameters(prefix=part))
    if not found:
        raise ValueError(part)
    for parameter in found.values():
        parameter.requires_grad_(False)
    return found.keys()


@right("freeze-by-name")
def with_an_error_of_its_own(model, part):
    class UnknownPart(ValueError):
        pass

    if not (names := [name for name, _ in model.named_parameters() if f"{name}.".startswith(f"{part}.")]):
        raise UnknownPart(part)
    for name in names:
        model.get_parameter(name).detach_()
    return np.array(names)


@wrong("freeze-by-name", "the full names are wanted")
def names_within_the_part(model, part):
    """The names are those that the part itself gives."""
    names = by_dotted_comparison(model, part)
    return [name.removeprefix(f"{part}.") for name in names]


@wrong("freeze-by-name", "does not belong to the part")
def all_but_the_part(model, part):
    """What is named is what goes on training."""
    names = [name for name, _ in model.named_parameters() if f"{name}.".startswith(f"{part}.")]
    if not names:
        raise ValueError(part)
    for name, parameter in model.named_parameters():
        if name not in names:
            parameter.requires_grad_(False)
    return names


@wrong("freeze-by-name", "'head.weight.data' names no parameter")
def in_either_direction(model, part):
    """A name that begins with a parameter's is that parameter."""
    names = [name for name, _ in model.named_parameters() if f"{name}.".startswith(f"{part}.")]
    names = names or [name for name, _ in model.named_parameters() if part.startswith(f"{name}.")]
    if not names:
        raise ValueError(part)
    for name in names:
        model.get_parameter(name).requires_grad_(False)
    return names


@wrong("freeze-by-name", "'body.layer1', which is a module: Your code raised ValueError")
def only_the_first_level(model, part):
    """A part is what stands before the first dot."""
    names = [name for name, _ in model.named_parameters() if name.split(".")[0] == part]
    if not names:
        raise ValueError(part)
    for name in names:
        model.get_parameter(name).requires_grad_(False)
    return names


@wrong("freeze-by-name", "'body', which is a module: Your code raised ValueError")
def only_the_last_level(model, part):
    """A part is what stands before the last dot."""
    names = [name for name, _ in model.named_parameters() if name.rpartition(".")[0] == part]
    if not names:
        raise ValueError(part)
    for name in names:
        model.get_parameter(name).requires_grad_(False)
    return names


@wrong("freeze-by-name", "raised AssertionError; a ValueError is wanted")
def asserted(model, part):
    """An assertion is an error like another."""
    names = [name for name, _ in model.named_parameters() if f"{name}.".startswith(f"{part}.")]
    assert names
    for name in names:
        model.get_parameter(name).requires_grad_(False)
    return names


@wrong("freeze-by-name", "'boddy' names no parameter")
def the_error_returned(model, part):
    """An error can be returned."""
    try:
        return by_dotted_comparison(model, part)
    except ValueError as error:
        return error


@wrong("freeze-by-name", "Expected a list of names, got a str")
def in_one_string(model, part):
    """Names in a line are names."""
    return ", ".join(by_dotted_comparison(model, part))


@wrong("freeze-by-name", "body.old.weight (and 1 more) should be frozen")
def toggled_by_name(model, part):
    """A flag that is to be off is the other way round than it was."""
    names = [name for name, _ in model.named_parameters() if f"{name}.".startswith(f"{part}.")]
    if not names:
        raise ValueError(part)
    for name in names:
        model.get_parameter(name).requires_grad_(not model.get_parameter(name).requires_grad)
    return names


@wrong("freeze-by-name", "should be frozen, and still requires a gradient")
def only_the_first_that_is_found(model, part):
    """return comes when something was found."""
    for name, parameter in model.named_parameters():
        if f"{name}.".startswith(f"{part}."):
            parameter.requires_grad_(False)
            return [name]
    raise ValueError(part)


@wrong("freeze-by-name", "For 'body' no flag changed")
def entries_of_the_state_dict(model, part):
    """An entry of the state_dict is the parameter."""
    names = [name for name in model.state_dict() if f"{name}.".startswith(f"{part}.")]
    if not names:
        raise ValueError(part)
    for name in names:
        model.state_dict()[name].requires_grad_(False)
    return names
