"""Answers to the exercises of the lesson on other gradients."""

import copy

import torch
from torch import nn
from torch.func import functional_call, grad, vjp

from tests.tools.exercises import Answers

answers = Answers()
right, wrong = answers.right, answers.wrong
cross_entropy = nn.functional.cross_entropy

CALLED = {
    "backward: layer backward": True,
    "frozen: layer backward": False,
    "frozen, x requires grad: layer backward": True,
    "frozen, x requires grad: weight": False,
    "forward: net forward": False,
    "autograd.grad: weight .grad": False,
    "functional_call: layer forward": True,
    "functional_call: weight": False,
}
right("which-hook-is-called")(CALLED)
right("which-hook-is-called")(dict(reversed(CALLED.items())))
right("which-hook-is-called")({row: int(value) for row, value in CALLED.items()})
right("which-hook-is-called")({row: torch.tensor(value) for row, value in CALLED.items()})
wrong("which-hook-is-called", "the gradient of the input None")(
    CALLED | {"backward: layer backward": False},
    "The first layer has no gradient of its input, so its hook has no use.",
)
wrong("which-hook-is-called", "its output does not either")(
    CALLED | {"frozen: layer backward": True}, "Backward visits every layer."
)
wrong("which-hook-is-called", "has to pass through the frozen layer")(
    CALLED | {"frozen, x requires grad: layer backward": False}, "A frozen layer is a wall for backward."
)
wrong("which-hook-is-called", "That of the frozen weight is not computed")(
    CALLED | {"frozen, x requires grad: weight": True}, "Where backward passes, all hooks of the layer are called."
)
wrong("which-hook-is-called", "nothing raises")(
    CALLED | {"frozen, x requires grad: weight": "raises"}, "A tensor that does not require grad has no hooks."
)
wrong("which-hook-is-called", "the bare method")(
    CALLED | {"forward: net forward": True}, "net(x) and net.forward(x) are the same."
)
wrong("which-hook-is-called", "nothing was accumulated")(
    CALLED | {"autograd.grad: weight .grad": True}, "A gradient was computed, so all hooks of the weight are called."
)
wrong("which-hook-is-called", "The hook is on the module's own weight")(
    CALLED | {"functional_call: weight": True}, "A hook belongs to the name of a parameter."
)
wrong("which-hook-is-called", "Only the tensors are others")(
    CALLED | {"functional_call: layer forward": False}, "A functional call goes around the module."
)
wrong("which-hook-is-called", "and the hook waits")(
    CALLED | {"autograd.grad: weight .grad": "raises"}, "A hook for .grad needs a .grad."
)
wrong("which-hook-is-called", "may be called")(CALLED | {"forward: net forward": "raises"}, "forward is private.")


@right("attack-in-training")
def asked_for_the_image(model, images, labels, size):
    pixels = images.clone().requires_grad_()
    (slope,) = torch.autograd.grad(cross_entropy(model(pixels), labels), pixels)
    return (images + size * slope.sign()).clamp(0, 1)


@right("attack-in-training")
def backward_for_the_image_only(model, images, labels, size):
    pixels = images.detach().clone().requires_grad_()
    cross_entropy(model(pixels), labels).backward(inputs=[pixels])
    return (images + size * pixels.grad.sign()).clamp(0, 1)


@right("attack-in-training")
def on_a_copy(model, images, labels, size):
    twin, pixels = copy.deepcopy(model), images.clone().requires_grad_()
    cross_entropy(twin(pixels), labels).backward()
    return torch.clamp(pixels.detach() + size * pixels.grad.sign(), 0, 1)


@right("attack-in-training")
def by_a_function(model, images, labels, size):
    weights = {name: value.detach() for name, value in model.named_parameters()}
    slope = grad(lambda pixels: cross_entropy(functional_call(model, weights, (pixels,)), labels, reduction="sum"))
    return (images + size * slope(images).sign()).clamp(0, 1)


@right("attack-in-training")
def gradients_put_aside_and_back(model, images, labels, size):
    kept = [weight.grad for weight in model.parameters()]
    for weight in model.parameters():
        weight.grad = None
    pixels = images.clone().requires_grad_()
    cross_entropy(model(pixels), labels).backward()
    for weight, gradient in zip(model.parameters(), kept, strict=True):
        weight.grad = gradient
    with torch.no_grad():
        return (pixels + size * pixels.grad.sign()).clamp_(0, 1)


@right("attack-in-training")
def flags_off_and_restored(model, images, labels, size):
    flags = [weight.requires_grad for weight in model.parameters()]
    model.requires_grad_(False)
    pixels = images.clone().requires_grad_()
    (-cross_entropy(model(pixels), labels)).backward()
    for weight, flag in zip(model.parameters(), flags, strict=True):
        weight.requires_grad_(flag)
    return (images - size * pixels.grad.sign()).clamp(0, 1)


@right("attack-in-training")
def in_double_precision(model, images, labels, size):
    return asked_for_the_image(model, images, labels, size).double()


@wrong("attack-in-training", "left something on the images")
def as_it_was(model, images, labels, size):
    """An attack takes the gradient of the images by backward(), and zero_grad() cleans up."""
    images.requires_grad_()
    cross_entropy(model(images), labels).backward()
    model.zero_grad()
    return (images + size * images.grad.sign()).clamp(0, 1).detach()


@wrong("attack-in-training", "drops them together with those that an attack has left")
def cleaned_up(model, images, labels, size):
    """zero_grad() removes what the attack has left."""
    pixels = images.clone().requires_grad_()
    cross_entropy(model(pixels), labels).backward()
    model.zero_grad()
    return (images + size * pixels.grad.sign()).clamp(0, 1)


@wrong("attack-in-training", "drops them together with those that an attack has left")
def cleaned_up_with_zeros(model, images, labels, size):
    """Zeros are as good as no gradient."""
    model.zero_grad(set_to_none=False)
    return asked_for_the_image(model, images, labels, size)


@wrong("attack-in-training", "was added to them, or replaced them")
def plain_backward(model, images, labels, size):
    """The gradient of the image is all that backward() computes here."""
    pixels = images.clone().requires_grad_()
    cross_entropy(model(pixels), labels).backward()
    return (images + size * pixels.grad.sign()).clamp(0, 1)


@wrong("attack-in-training", "The flags of the parameters")
def flags_off_and_all_on(model, images, labels, size):
    """The usual pair: requires_grad_(False) before, requires_grad_(True) after."""
    model.requires_grad_(False)
    attacked = asked_for_the_image(model, images, labels, size)
    model.requires_grad_(True)
    return attacked


@wrong("attack-in-training", "another mode")
def train_mode_left(model, images, labels, size):
    """After an attack the training goes on, so train mode is right."""
    attacked = asked_for_the_image(model, images, labels, size)
    model.train()
    return attacked


@wrong("attack-in-training", "Parameters or buffers of the model have changed")
def in_train_mode(model, images, labels, size):
    """An attack in training is made in train mode, and then the mode is put back."""
    model.train()
    attacked = asked_for_the_image(model, images, labels, size)
    model.eval()
    return attacked


@wrong("attack-in-training", "The images that were given have changed, or the labels")
def in_place(model, images, labels, size):
    """The attacked images take the place of the others."""
    attacked = asked_for_the_image(model, images, labels, size)
    return images.copy_(attacked)


@wrong("attack-in-training", "require grad")
def with_its_history(model, images, labels, size):
    """What is computed from the image keeps its flag."""
    pixels = images.clone().requires_grad_()
    (slope,) = torch.autograd.grad(cross_entropy(model(pixels), labels), pixels)
    return (pixels + size * slope.sign()).clamp(0, 1)


@wrong("attack-in-training", "leave the range from 0 to 1")
def without_an_end(model, images, labels, size):
    """A pixel is a number like any other."""
    pixels = images.clone().requires_grad_()
    (slope,) = torch.autograd.grad(cross_entropy(model(pixels), labels), pixels)
    return images + size * slope.sign()


@wrong("attack-in-training", "in which the loss falls")
def downhill(model, images, labels, size):
    """A gradient is followed downhill."""
    pixels = images.clone().requires_grad_()
    (slope,) = torch.autograd.grad(cross_entropy(model(pixels), labels), pixels)
    return (images - size * slope.sign()).clamp(0, 1)


@wrong("attack-in-training", "move in another way")
def without_signs(model, images, labels, size):
    """The step is a multiple of the gradient."""
    pixels = images.clone().requires_grad_()
    (slope,) = torch.autograd.grad(cross_entropy(model(pixels), labels), pixels)
    return (images + size * slope / slope.abs().max()).clamp(0, 1)


@wrong("attack-in-training", "come back as they were")
def nothing_done(model, images, labels, size):
    """What changes nothing leaves nothing behind."""
    return images.clone()


@wrong("attack-in-training", "A hook is left")
def a_hook_that_masks(model, images, labels, size):
    """A hook keeps the gradient from the weights."""
    list(model.modules())[-1].register_forward_hook(lambda module, given, output: output)
    return asked_for_the_image(model, images, labels, size)


@wrong("attack-in-training", "does not require grad")
def under_no_grad(model, images, labels, size):
    """no_grad keeps gradients out of the weights."""
    pixels = images.clone().requires_grad_()
    with torch.no_grad():
        loss = cross_entropy(model(pixels), labels)
    (slope,) = torch.autograd.grad(loss, pixels)
    return (images + size * slope.sign()).clamp(0, 1)


@right("round-in-a-range")
def clamp_then_straight_through(w, low, high):
    inside = w.clamp(low, high)
    return inside + (inside.round() - inside).detach()


@right("round-in-a-range")
def by_a_mask(w, low, high):
    mask = ((w >= low) & (w <= high)).to(w.dtype)
    return mask * w + (w.round().clamp(low, high) - mask * w).detach()


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w, low, high):
        ctx.save_for_backward((w >= low) & (w <= high))
        return w.round().clamp(low, high)

    @staticmethod
    def backward(ctx, gradient):
        (inside,) = ctx.saved_tensors
        return gradient * inside, None, None


@right("round-in-a-range")
def an_own_function(w, low, high):
    return Rounded.apply(w, low, high)


@right("round-in-a-range")
def torch_has_it(w, low, high):
    inside = torch.where((w >= low) & (w <= high), w, w.detach().clamp(low, high))
    return inside - (inside - inside.round()).detach()


@right("round-in-a-range")
def a_hook_on_the_copy(w, low, high):
    copied = w * 1
    result = copied + (w.round().clamp(low, high) - copied).detach()
    if copied.requires_grad:
        copied.register_hook(lambda gradient: gradient * ((w >= low) & (w <= high)))
    return result


@wrong("round-in-a-range", "the gradient of w is zero everywhere")
def plain(w, low, high):
    """Rounding is recorded, so it has a gradient."""
    return w.clamp(low, high).round()


@wrong("round-in-a-range", "The gradient passes everywhere")
def passes_everywhere(w, low, high):
    """Straight-through, as in the lesson."""
    return w + (w.clamp(low, high).round() - w).detach()


@wrong("round-in-a-range", "the graph is cut off")
def flag_on_again(w, low, high):
    """The flag says who gets a gradient."""
    return w.clamp(low, high).round().detach().requires_grad_(w.requires_grad)


@wrong("round-in-a-range", "the graph is cut off")
def under_no_grad_round(w, low, high):
    """Rounding should not be recorded."""
    with torch.no_grad():
        return w.clamp(low, high).round()


@wrong("round-in-a-range", "a hook on w sees all of w's gradient")
def a_hook_on_the_weight(w, low, high):
    """A hook on w masks the gradient."""
    if w.requires_grad:
        inside = (w >= low) & (w <= high)
        w.register_hook(lambda gradient: gradient * inside)
    return w + (w.clamp(low, high).round() - w).detach()


@wrong("round-in-a-range", "w has other numbers than before")
def clamped_in_place(w, low, high):
    """What is beyond the ends is of no use, so it is brought back."""
    w.data.clamp_(low, high)
    return w + (w.round() - w).detach()


@wrong("round-in-a-range", "1.3 is beyond 1")
def inside_by_the_level(w, low, high):
    """What rounds to a level inside is inside."""
    inside = (w.round() >= low) & (w.round() <= high)
    return torch.where(inside, w + (w.round() - w).detach(), w.detach().round().clamp(low, high))


@wrong("round-in-a-range", "when its rounded value is")
def fake_quantized(w, low, high):
    """torch has it: fake quantization."""
    return torch.fake_quantize_per_tensor_affine(w.float(), 1.0, 0, low, high).to(w.dtype)


@wrong("round-in-a-range", "is wanted")
def always_three_levels(w, low, high):
    """The levels are those of the lesson."""
    return clamp_then_straight_through(w, -1, 1)


@wrong("round-in-a-range", "is wanted")
def not_rounded(w, low, high):
    """Clamping has the right derivative."""
    return w.clamp(low, high)


@wrong("round-in-a-range", "is wanted")
def floored(w, low, high):
    """Whole numbers come from floor."""
    inside = w.clamp(low, high)
    return inside + (inside.floor() - inside).detach()


@wrong("round-in-a-range", "no gradient passes through that")
def whole_numbers(w, low, high):
    """Levels are integers."""
    return w.clamp(low, high).round().long()


class Ones(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w, low, high):
        ctx.save_for_backward((w >= low) & (w <= high))
        return w.round().clamp(low, high)

    @staticmethod
    def backward(ctx, gradient):
        return ctx.saved_tensors[0].to(gradient.dtype), None, None


@wrong("round-in-a-range", "It should be what comes from the result")
def always_one(w, low, high):
    """The derivative of straight-through is 1."""
    return Ones.apply(w, low, high)


@wrong("round-in-a-range", "Inside the ends it should get all of it")
def half_of_it(w, low, high):
    """A soft step lets a part of the gradient pass."""
    inside = w.clamp(low, high)
    return inside / 2 + (inside.round() - inside / 2).detach()


@right("loss-after-a-step")
def a_functional_call(model, first, later, rate):
    moving = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    loss = cross_entropy(model(first[0]), first[1])
    slopes = torch.autograd.grad(loss, list(moving.values()), create_graph=True)
    steps = zip(moving.items(), slopes, strict=True)
    ahead = {name: weight - rate * slope for (name, weight), slope in steps}
    return cross_entropy(functional_call(model, ahead, (later[0],)), later[1])


@right("loss-after-a-step")
def by_functions(model, first, later, rate):
    moving = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}

    def loss_of(tensors, images, labels):
        return cross_entropy(functional_call(model, tensors, (images,)), labels)

    slopes = grad(loss_of)(moving, *first)
    return loss_of({name: weight - rate * slopes[name] for name, weight in moving.items()}, *later)


@right("loss-after-a-step")
def all_tensors_given(model, first, later, rate):
    named = dict(model.named_parameters())
    moving = [name for name in named if named[name].requires_grad]
    loss = cross_entropy(model(first[0]), first[1])
    for name, slope in zip(
        moving, torch.autograd.grad(loss, [named[n] for n in moving], create_graph=True), strict=True
    ):
        named[name] = torch.sub(named[name], slope, alpha=rate)
    return cross_entropy(functional_call(model, named, later[0]), later[1]).reshape(1)


@right("loss-after-a-step")
def a_copy_with_results_in_it(model, first, later, rate):
    moving = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    loss = cross_entropy(model(first[0]), first[1])
    slopes = torch.autograd.grad(loss, list(moving.values()), create_graph=True)
    twin = copy.deepcopy(model)
    for (name, weight), slope in zip(moving.items(), slopes, strict=True):
        place, _, last = name.rpartition(".")
        part = twin.get_submodule(place)
        delattr(part, last)
        setattr(part, last, weight - rate * slope)
    return cross_entropy(twin(later[0]), later[1])


@right("loss-after-a-step")
def taken_out_and_put_back(model, first, later, rate):
    moving = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    loss = cross_entropy(model(first[0]), first[1])
    slopes = torch.autograd.grad(loss, list(moving.values()), create_graph=True)
    for (name, weight), slope in zip(moving.items(), slopes, strict=True):
        place, _, last = name.rpartition(".")
        delattr(model.get_submodule(place), last)
        setattr(model.get_submodule(place), last, weight - rate * slope)
    loss = cross_entropy(model(later[0]), later[1])
    for name, weight in moving.items():
        place, _, last = name.rpartition(".")
        delattr(model.get_submodule(place), last)
        setattr(model.get_submodule(place), last, weight)
    return loss


@wrong("loss-after-a-step", "the first-order gradient")
def without_create_graph(model, first, later, rate):
    """autograd.grad gives a gradient, and a gradient can be subtracted."""
    moving = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    slopes = torch.autograd.grad(cross_entropy(model(first[0]), first[1]), list(moving.values()))
    steps = zip(moving.items(), slopes, strict=True)
    ahead = {name: weight - rate * slope for (name, weight), slope in steps}
    return cross_entropy(functional_call(model, ahead, (later[0],)), later[1])


@wrong("loss-after-a-step", "the first-order gradient")
def with_retain_graph(model, first, later, rate):
    """retain_graph=True keeps what is needed."""
    moving = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    loss = cross_entropy(model(first[0]), first[1])
    slopes = torch.autograd.grad(loss, list(moving.values()), retain_graph=True)
    steps = zip(moving.items(), slopes, strict=True)
    ahead = {name: weight - rate * slope for (name, weight), slope in steps}
    return cross_entropy(functional_call(model, ahead, (later[0],)), later[1])


def stepped(model, first, rate):
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=rate)
    optimizer.zero_grad()
    cross_entropy(model(first[0]), first[1]).backward()
    optimizer.step()


@wrong("loss-after-a-step", "do not lead back to the model's parameters")
def in_a_copy(model, first, later, rate):
    """A copy takes the step, so the model stays as it was."""
    twin = copy.deepcopy(model)
    stepped(twin, first, rate)
    return cross_entropy(twin(later[0]), later[1])


@wrong("loss-after-a-step", "other gradients than before")
def in_the_model_itself(model, first, later, rate):
    """A step is what an optimizer does."""
    stepped(model, first, rate)
    return cross_entropy(model(later[0]), later[1])


@wrong("loss-after-a-step", "The step was taken in the model itself")
def loaded_into_the_model(model, first, later, rate):
    """load_state_dict puts the new tensors in."""
    moving = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    loss = cross_entropy(model(first[0]), first[1])
    slopes = torch.autograd.grad(loss, list(moving.values()), create_graph=True)
    steps = zip(moving.items(), slopes, strict=True)
    model.load_state_dict({name: weight - rate * slope for (name, weight), slope in steps}, strict=False)
    return cross_entropy(model(later[0]), later[1])


@wrong("loss-after-a-step", "backward() of it raises")
def loaded_and_put_back(model, first, later, rate):
    """The model is as it was when its numbers are put back."""
    before = copy.deepcopy(model.state_dict())
    moving = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    loss = cross_entropy(model(first[0]), first[1])
    slopes = torch.autograd.grad(loss, list(moving.values()), create_graph=True)
    with torch.no_grad():
        for weight, slope in zip(moving.values(), slopes, strict=True):
            weight -= rate * slope
    loss = cross_entropy(model(later[0]), later[1])
    model.load_state_dict(before)
    return loss


@wrong("loss-after-a-step", "Frozen parameters were moved")
def all_of_them_by_functions(model, first, later, rate):
    """torch.func.grad leaves out what is frozen."""
    named = dict(model.named_parameters())

    def loss_of(tensors, images, labels):
        return cross_entropy(functional_call(model, tensors, (images,)), labels)

    slopes = grad(loss_of)(named, *first)
    return loss_of({name: weight - rate * slopes[name] for name, weight in named.items()}, *later)


@wrong("loss-after-a-step", "One of the differentiated Tensors does not require grad")
def all_of_them(model, first, later, rate):
    """autograd.grad gives None for what is frozen."""
    named = dict(model.named_parameters())
    loss = cross_entropy(model(first[0]), first[1])
    slopes = torch.autograd.grad(loss, list(named.values()), create_graph=True, allow_unused=True)
    steps = zip(named.items(), slopes, strict=True)
    ahead = {name: weight - rate * slope for (name, weight), slope in steps if slope is not None}
    return cross_entropy(functional_call(model, ahead, (later[0],)), later[1])


@wrong("loss-after-a-step", "The flags of the parameters")
def flags_on(model, first, later, rate):
    """For a gradient the flag has to be on."""
    model.requires_grad_(True)
    return a_functional_call(model, first, later, rate)


@wrong("loss-after-a-step", "it has no history")
def a_number(model, first, later, rate):
    """A loss is reported without its history."""
    return a_functional_call(model, first, later, rate).detach()


@wrong("loss-after-a-step", "Return the later loss as a tensor")
def an_item(model, first, later, rate):
    """A loss is a number."""
    return a_functional_call(model, first, later, rate).item()


@wrong("loss-after-a-step", "goes uphill")
def uphill(model, first, later, rate):
    """The gradient is added."""
    return a_functional_call(model, first, later, -rate)


@wrong("loss-after-a-step", "of the first batch after the step")
def the_same_batch(model, first, later, rate):
    """The step is judged by the images that it was taken on."""
    return a_functional_call(model, first, first, rate)


@wrong("loss-after-a-step", "without the step")
def no_step(model, first, later, rate):
    """The step takes place when backward() is called."""
    return cross_entropy(model(later[0]), later[1])


@wrong("loss-after-a-step", "one step of plain gradient descent")
def two_steps(model, first, later, rate):
    """Two steps are better than one."""
    moving = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    for _ in range(2):
        loss = cross_entropy(functional_call(model, moving, (first[0],)), first[1])
        slopes = torch.autograd.grad(loss, list(moving.values()), create_graph=True)
        steps = zip(moving.items(), slopes, strict=True)
        moving = {name: weight - rate * slope for (name, weight), slope in steps}
    return cross_entropy(functional_call(model, moving, (later[0],)), later[1])


@wrong("loss-after-a-step", "gradients that the model held before are gone")
def gradients_emptied(model, first, later, rate):
    """A step begins with zero_grad()."""
    model.zero_grad()
    return a_functional_call(model, first, later, rate)


@wrong("round-in-a-range", "leave its flag as it is")
def flag_of_the_weight_on(w, low, high):
    """A weight needs its flag for a gradient."""
    if w.is_leaf:
        w.requires_grad_()
    return clamp_then_straight_through(w, low, high)


@right("attack-in-training")
def one_image_at_a_time(model, images, labels, size):
    pairs = zip(images.split(1), labels.split(1), strict=True)
    return torch.cat([asked_for_the_image(model, image, label, size) for image, label in pairs])


@right("attack-in-training")
def flag_on_for_a_moment(model, images, labels, size):
    images.requires_grad_()
    cross_entropy(model(images), labels).backward(inputs=[images])
    images.requires_grad_(False)
    signs, images.grad = images.grad.sign(), None
    return (images + size * signs).clamp(0, 1)


@wrong("attack-in-training", "move in another way")
def clamped_to_the_range_of_the_images(model, images, labels, size):
    """The range of a pixel is that of the images at hand."""
    pixels = images.clone().requires_grad_()
    (slope,) = torch.autograd.grad(cross_entropy(model(pixels), labels), pixels)
    return (images + size * slope.sign()).clamp(images.min(), images.max())


@wrong("attack-in-training", "zero divided by its own size is nan")
def sign_by_division(model, images, labels, size):
    """A number divided by its size is its sign."""
    pixels = images.clone().requires_grad_()
    (slope,) = torch.autograd.grad(cross_entropy(model(pixels), labels), pixels)
    return (images + size * slope / slope.abs()).clamp(0, 1)


@wrong("attack-in-training", "was added to them, or replaced them")
def as_published(model, images, labels, size):
    """detach() makes a copy, and backward() is for the image."""
    pixels = images.detach().requires_grad_()
    cross_entropy(model(pixels), labels).backward()
    return (pixels + size * pixels.grad.sign()).clamp(0, 1).detach()


@right("round-in-a-range")
def numbers_written_under_no_grad(w, low, high):
    inside = w.clamp(low, high).clone()
    with torch.no_grad():
        inside.round_()
    return inside


@right("round-in-a-range")
def by_hardtanh(w, low, high):
    inside = nn.functional.hardtanh(w, low, high)
    return inside - (inside - inside.round()).detach()


@wrong("round-in-a-range", "raised ValueError")
def for_a_matrix(w, low, high):
    """A weight is a matrix."""
    rows, columns = w.shape
    return clamp_then_straight_through(w, low, high).reshape(rows, columns)


@wrong("round-in-a-range", "Inside the ends it should get all of it")
def gradient_clipped(w, low, high):
    """Straight-through has a gradient between -1 and 1."""
    copied = w * 1
    if copied.requires_grad:
        copied.register_hook(lambda gradient: (gradient * ((w >= low) & (w <= high))).clamp(-1, 1))
    return copied + (w.round().clamp(low, high) - copied).detach()


@wrong("round-in-a-range", "and 0 is wanted")
def ends_swapped(w, low, high):
    """clamp takes the upper end first."""
    return w.clamp(high, low).round()


@right("loss-after-a-step")
def by_vjp(model, first, later, rate):
    moving = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}

    def loss_of(tensors, images, labels):
        return cross_entropy(functional_call(model, tensors, (images,)), labels)

    loss, back = vjp(lambda tensors: loss_of(tensors, *first), moving)
    (slopes,) = back(torch.ones_like(loss))
    return loss_of({name: weight - rate * slopes[name] for name, weight in moving.items()}, *later)


@right("loss-after-a-step")
def flags_on_and_put_back(model, first, later, rate):
    named = dict(model.named_parameters())
    flags = {name: weight.requires_grad for name, weight in named.items()}
    model.requires_grad_(True)
    slopes = torch.autograd.grad(cross_entropy(model(first[0]), first[1]), list(named.values()), create_graph=True)
    for name, weight in named.items():
        weight.requires_grad_(flags[name])
    steps = zip(named.items(), slopes, strict=True)
    ahead = {name: weight - rate * slope for (name, weight), slope in steps if flags[name]}
    return cross_entropy(functional_call(model, ahead, (later[0],)), later[1])


@wrong("loss-after-a-step", "in two ways: directly, and through the gradient")
def weights_detached(model, first, later, rate):
    """The weights before the step are constants."""
    moving = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    loss = cross_entropy(model(first[0]), first[1])
    slopes = torch.autograd.grad(loss, list(moving.values()), create_graph=True)
    steps = zip(moving.items(), slopes, strict=True)
    ahead = {name: weight.detach() - rate * slope for (name, weight), slope in steps}
    return cross_entropy(functional_call(model, ahead, (later[0],)), later[1])


@wrong("loss-after-a-step", "yours is a Tensor of shape (8,)")
def a_loss_for_each_image(model, first, later, rate):
    """A loss is computed for each image."""
    moving = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    loss = cross_entropy(model(first[0]), first[1])
    slopes = torch.autograd.grad(loss, list(moving.values()), create_graph=True)
    steps = zip(moving.items(), slopes, strict=True)
    ahead = {name: weight - rate * slope for (name, weight), slope in steps}
    return cross_entropy(functional_call(model, ahead, (later[0],)), later[1], reduction="none")


@wrong("attack-in-training", "drops them together with those that an attack has left")
def emptied_by_hand(model, images, labels, size):
    """A gradient is removed by setting it to None."""
    pixels = images.clone().requires_grad_()
    cross_entropy(model(pixels), labels).backward()
    for weight in model.parameters():
        weight.grad = None
    return (images + size * pixels.grad.sign()).clamp(0, 1)
