"""The exercises and predictions of the lesson on gradients other than those of weights by a loss."""

import copy
import warnings
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from helpers.lessons.exercises import Lesson, kind, raises, run, table

lesson = Lesson("other_gradients")
check, predict, progress = lesson.check, lesson.predict, lesson.progress


@lesson.exercise("which-hook-is-called")
def which_hook_is_called(answer):
    def is_called(row):
        doing, who = row.split(": ")
        net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
        called: set[str] = set()
        net.register_forward_hook(lambda *_: called.add("net forward"))
        net[0].register_forward_hook(lambda *_: called.add("layer forward"))
        net[0].register_full_backward_hook(lambda *_: called.add("layer backward"))
        net[0].weight.register_hook(lambda _: called.add("weight"))
        net[0].weight.register_post_accumulate_grad_hook(lambda _: called.add("weight .grad"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a full backward hook on a layer whose inputs require no grad
            _do(doing, net, torch.ones(1, 2))
        return who in called

    beliefs = lesson.beliefs("which-hook-is-called")
    rows = dict.fromkeys(row for row, _ in beliefs)
    table(answer, {row: raises(partial(is_called, row)) for row in rows}, beliefs)


def _do(doing, net, x):
    if "frozen" in doing:
        net[0].requires_grad_(False)
    if "x requires grad" in doing:
        x.requires_grad_()
    if doing == "functional_call":
        others = {name: torch.ones_like(value).requires_grad_() for name, value in net.named_parameters()}
        output = functional_call(net, others, (x,))
    else:
        output = net.forward(x) if doing == "forward" else net(x)
    if doing == "autograd.grad":
        torch.autograd.grad(output.sum(), net[0].weight)
    else:
        output.sum().backward()


@lesson.exercise("attack-in-training")
def attack_in_training(answer):
    for frozen in (2, 5, 0):
        net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 5)).eval()
        net[2].running_mean += 0.1
        images, labels = 0.2 + 0.6 * torch.rand(6, 1, 4, 4), torch.arange(6) % 5
        images[:, :, 0, 0], images[:, :, 0, 1] = (0.0, 1.0) if frozen == 2 else (0.01, 0.99)
        nn.init.zeros_(net[1].weight[:, -1])  # the last pixel has a gradient of zero
        nn.functional.cross_entropy(net(images), labels).backward()  # an accumulation has begun
        net[4].bias.grad = None
        net[:frozen].requires_grad_(False)
        slope = _slope(net, images, labels)
        before, handed, size = _state(net), (images.clone(), labels.clone()), 0.05 if frozen == 2 else 0.1
        attacked = run(answer, net, images, labels, size)
        if not torch.equal(images, handed[0]) or not torch.equal(labels, handed[1]):
            raise lesson.not_yet("images-changed")
        if images.requires_grad or images.grad is not None:
            raise lesson.not_yet("image-flag")
        _left_alone(net, before)
        if not isinstance(attacked, Tensor):
            raise lesson.not_yet("no-tensor", kind=kind(attacked))
        if attacked.shape != images.shape:
            raise lesson.not_yet("shape", wanted=tuple(images.shape), got=tuple(attacked.shape))
        if attacked.requires_grad:
            raise lesson.not_yet("recorded")
        if not attacked.isfinite().all():
            raise lesson.not_yet("not-finite")
        _attacked(attacked.to(images.dtype), images, slope, size)


def _slope(net, images, labels):
    twin = copy.deepcopy(net)
    pixels = images.clone().requires_grad_()
    return torch.autograd.grad(nn.functional.cross_entropy(twin(pixels), labels), pixels)[0]


def _attacked(attacked, images, slope, size):
    """Where the slope is far from zero the pixel has moved as far as it may, in the right direction, within 0 to 1."""
    clear = slope.abs() > 1e-4 * slope.abs().max()
    free, wanted = images + size * slope.sign(), (images + size * slope.sign()).clamp(0, 1)
    close = partial(torch.allclose, rtol=0, atol=1e-4 * size)
    if close(attacked[clear], wanted[clear]) and bool(((attacked - images).abs() <= 1.001 * size).all()):
        if attacked.min() < 0 or attacked.max() > 1:
            raise lesson.not_yet("no-clamp")
        return
    if close(attacked[clear], images[clear]):
        raise lesson.not_yet("not-moved")
    if close(attacked[clear], (images - size * slope.sign()).clamp(0, 1)[clear]):
        raise lesson.not_yet("downhill")
    if close(attacked[clear], free[clear]):
        raise lesson.not_yet("no-clamp")
    raise lesson.not_yet("other-step")


def _state(net):
    """What of a model is to be as it was, by name: an answer may take parameters out and put them back."""
    named = dict(net.named_parameters())
    kinds = ("_backward_hooks", "_post_accumulate_grad_hooks")
    return {
        "gradients": {name: None if w.grad is None else w.grad.tolist() for name, w in named.items()},
        "flags": {name: w.requires_grad for name, w in named.items()},
        "modes": {name: part.training for name, part in net.named_modules()},
        "numbers": {name: entry.tolist() for name, entry in net.state_dict().items()},
        "hooks": [
            {
                n: [len(held) for kind, held in vars(m).items() if kind.endswith("_hooks")]
                for n, m in net.named_modules()
            },
            {name: [len(getattr(w, kind) or ()) for kind in kinds] for name, w in named.items()},
        ],
    }


def _left_alone(net, before):
    """The model is as it was, told in the order of what matters most."""
    now = _state(net)
    if now["gradients"] != before["gradients"]:
        some = [
            any(g is not None and torch.tensor(g).any() for g in one["gradients"].values()) for one in (before, now)
        ]
        raise lesson.not_yet("gradients-gone" if some == [True, False] else "gradients-other")
    for what in ("flags", "modes", "numbers"):
        if now[what] != before[what]:
            raise lesson.not_yet(f"{what}-changed")
    if now["hooks"] != before["hooks"]:
        raise lesson.not_yet("hook-left")


@lesson.exercise("round-in-a-range")
def round_in_a_range(answer):
    torch.manual_seed(1)
    cases = ((-1, 1, torch.float32, (3, 4)), (-2, 3, torch.float64, (12,)), (0, 1, torch.float32, (2, 2, 3)))
    for low, high, dtype, shape in cases:
        values = torch.tensor([-7.3, -2.2, -1.8, -0.9, -0.3, 0.2, 0.8, 0.9, 1.3, 2.6, 3.4, 8.1], dtype=dtype)
        values = values.reshape(shape)
        for leaf in (True, False):
            given = values.clone().requires_grad_()
            w = given if leaf else 2 * given / 2
            handed = w.detach().clone()
            result = run(answer, w, low, high)
            _rounded(result, w, handed, low, high)
            _passes(result, w, given, handed, low, high)
        still = values.clone()
        result = run(answer, still, low, high)
        _rounded(result, still, values, low, high)
        if still.requires_grad:
            raise lesson.not_yet("flag-changed")


def _rounded(result, w, handed, low, high):
    if not isinstance(result, Tensor):
        raise lesson.not_yet("no-tensor", kind=kind(result))
    if not torch.equal(w.detach(), handed):
        raise lesson.not_yet("weight-changed")
    if result.shape != w.shape:
        raise lesson.not_yet("shape", wanted=tuple(w.shape), got=tuple(result.shape))
    wanted = handed.round().clamp(low, high)
    if not result.dtype.is_floating_point:
        raise lesson.not_yet("dtype", got=str(result.dtype).removeprefix("torch."))
    wrong = ~torch.isclose(result.detach().to(wanted.dtype), wanted, rtol=0, atol=1e-4)
    if wrong.any():
        where = tuple(wrong.nonzero()[0].tolist())
        numbers = {"w": handed[where].item(), "got": result[where].item(), "wanted": wanted[where].item()}
        told = {name: f"{number + 0:.3g}" for name, number in numbers.items()}
        raise lesson.not_yet("values", low=low, high=high, **told)


def _passes(result, w, given, handed, low, high):
    """The gradient, where w is used once more beside it: a hook left on w would be noticed."""
    way = result.requires_grad and torch.autograd.grad(result.sum(), given, retain_graph=True, allow_unused=True)[0]
    if not isinstance(way, Tensor):
        raise lesson.not_yet("cut-off")
    factors = 0.5 * (torch.arange(handed.numel(), dtype=handed.dtype).reshape(handed.shape) - 5.5)
    loss = (factors.to(result.dtype) * result).sum() + (3 * w).sum()
    given.grad = None
    loss.backward()
    slope = given.grad - 3
    inside = ((handed >= low) & (handed <= high)).to(handed.dtype)
    if torch.allclose(slope, factors * inside):
        return
    if not torch.isfinite(slope).all():
        raise lesson.not_yet("not-finite")
    if not slope.any():
        raise lesson.not_yet("zeros")
    if torch.allclose(slope, factors):
        raise lesson.not_yet("everywhere")
    if torch.allclose(slope, factors * inside - 3 * (1 - inside)):
        raise lesson.not_yet("hook-on-w")
    if torch.allclose(slope, factors * ((handed > low - 0.5) & (handed < high + 0.5))):
        raise lesson.not_yet("by-the-level")
    if torch.allclose(slope, inside):
        raise lesson.not_yet("not-the-incoming")
    wrong = ~torch.isclose(slope, factors * inside)
    where = tuple(wrong.nonzero()[0].tolist())
    numbers = {"w": handed[where].item(), "got": slope[where].item(), "came": factors[where].item()}
    raise lesson.not_yet("gradient", low=low, high=high, **{name: f"{n:.3g}" for name, n in numbers.items()})


@lesson.exercise("loss-after-a-step")
def loss_after_a_step(answer):
    for frozen in (0, 1, 2):
        net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)).eval()
        net[: 2 * frozen].requires_grad_(False)
        if frozen == 1:
            net[4].bias.requires_grad_(False)
        first, later = ((torch.randn(size, 3), torch.arange(size) % 3) for size in (6, 8))
        handed = [value.clone() for value in (*first, *later)]
        if frozen == 1:
            for weight in net.parameters():
                weight.grad = torch.full_like(weight, 0.5)
        before, rate = _state(net), 0.7 if frozen else 1.5
        wanted = _ahead(net, first, later, rate)
        loss = run(answer, net, first, later, rate)
        if not all(map(torch.equal, handed, (*first, *later))):
            raise lesson.not_yet("data")
        _left_alone(net, before)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            shape = f" of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else ""
            raise lesson.not_yet("no-loss", kind=kind(loss) + shape)
        _same_loss(loss, wanted, net, first, later, rate)
        if not loss.requires_grad:
            raise lesson.not_yet("no-graph")
        _same_gradients(loss, wanted[1], _ahead(net, first, later, rate, create_graph=False)[1], net)


def _ahead(net, first, later, rate, all_of_them=False, **how):
    """The loss after the step and, from it, the gradient of each parameter: exact unless ``create_graph=False``."""
    twin = copy.deepcopy(net)
    if all_of_them:
        twin.requires_grad_(True)
    moving = {name: weight for name, weight in twin.named_parameters() if weight.requires_grad}
    before = nn.functional.cross_entropy(twin(first[0]), first[1])
    slopes = torch.autograd.grad(before, list(moving.values()), **({"create_graph": True} | how))
    steps = zip(moving.items(), slopes, strict=True)
    ahead = {name: weight - rate * slope for (name, weight), slope in steps}
    loss = nn.functional.cross_entropy(functional_call(twin, ahead, (later[0],)), later[1])
    return loss, dict(zip(moving, torch.autograd.grad(loss, list(moving.values())), strict=True))


def _same_loss(loss, wanted, net, first, later, rate):
    close = partial(torch.allclose, rtol=1e-5, atol=0)
    value = loss.detach().reshape(()).to(wanted[0].dtype)
    if close(value, wanted[0].detach()):
        return
    others = {
        "no-step": lambda: nn.functional.cross_entropy(net(later[0]), later[1]),
        "first-data": lambda: nn.functional.cross_entropy(net(first[0]), first[1]),
        "uphill": lambda: _ahead(net, first, later, -rate)[0],
        "frozen-too": lambda: _ahead(net, first, later, rate, all_of_them=True)[0],
        "same-data": lambda: _ahead(net, first, first, rate)[0],
    }
    for key, other in others.items():
        if close(value, other().detach()):
            raise lesson.not_yet(key)
    raise lesson.not_yet("other-loss", got=f"{value.item():.4f}", wanted=f"{wanted[0].item():.4f}")


def _same_gradients(loss, wanted, first_order, net):
    named = dict(net.named_parameters())
    for weight in named.values():
        weight.grad = None
    try:
        loss.reshape(()).backward()
    except RuntimeError as error:
        raise lesson.not_yet("backward-raises", error=str(error).partition(".")[0]) from error
    if missing := [name for name in wanted if named[name].grad is None]:
        raise lesson.not_yet("no-way-back", first=missing[0])
    close = partial(torch.allclose, rtol=1e-3, atol=1e-5)
    if all(close(named[name].grad, slope) for name, slope in wanted.items()):
        return
    if all(close(named[name].grad, slope) for name, slope in first_order.items()):
        raise lesson.not_yet("first-order")
    raise lesson.not_yet("other-gradient")
