"""The exercises and predictions of the lesson on ``no_grad``."""

import copy
import operator

import torch
from torch import Tensor, nn

from helpers import saved_tensors
from helpers.exercises import RAISES, Lesson, NotYet, kind, raises, run, table

lesson = Lesson()
check, predict, progress = lesson.check, lesson.predict, lesson.progress

lesson.prediction(
    "left-alone",
    {
        (False, False, False): "You let the block cut off all that leaves it, and freeze what is made in it. It only "
        "stops the recording of what is computed inside.",
        (
            False,
            False,
            True,
        ): "The first tensor was there before. It was returned, not computed, so it lost nothing.",
        (True, True, True): "The product was computed inside, so nothing was recorded of it.",
        (True, False, False): "The layer's weight is a Parameter and no result: it asks, and no_grad does not hold "
        "backward() up.",
        (
            True,
            True,
            False,
        ): "It is the other way round: the product is a result of the block, the weight is none.",
    },
)
lesson.prediction(
    "data-slopes",
    {
        (True, True, True): "Only the clone has memory of its own. Through the others the zero arrived in the result.",
        (True, True, False): ".data is no copy: the zero arrived in the result, and backward multiplied with it.",
        (True, False, True): "detach() is no copy: look at what it printed in place of a slope.",
        (False, False, False): "A clone has memory of its own, so the zero did not arrive in the result.",
    },
)
lesson.prediction(
    "middle-no-grad",
    {
        (True, False, True): "no_grad does not let the gradient pass: of what ran inside, there is no record to go "
        "back along. The flag, in the next cell, is what does this.",
        (
            True,
            True,
            True,
        ): "after's result asks, but not all before it learn: the record ends at after.",
        (False, True, True): "What middle computed was not recorded, so backward does not find middle either.",
        (False, False, False): "The block ends before after runs: it is recorded, and its own weight asks.",
    },
)
lesson.prediction(
    "table",
    {
        (
            False,
            False,
            False,
        ): "A result that does not ask may come from a network that was recorded: detach() is called "
        "when the network has run.",
        (True, False, False): "What was recorded keeps what its gradients need, until the record is freed.",
        (True, True, True): "It was recorded, and kept its tensors, but the detached result does not ask.",
        (False, False, True): "It is the other way round: the network was recorded, and the result does not show it.",
    },
)
lesson.prediction(
    "resnet-table",
    {
        "almost nothing": "Few weights do not mean little memory: to come back to conv1, the gradient must pass all "
        "layers, and most of them need what they kept for that.",
        "half": "The weights are not counted. The layers after conv1 keep what they need to let it pass.",
    },
)
lesson.prediction(
    "checkpoint",
    {
        (
            True,
            True,
            True,
        ): "By the rule each result asks. But the old form does not record the block while it runs, and "
        "looks only at its input.",
        (False, False, False): "The new form records as usual: the block's parameters ask, so its result does.",
        (True, False, True): "If you do not say which, you get the old form, in this version.",
        (False, True, False): "It is the other way round: the old form, True, is the one that looks only at its input.",
        (True, True, False): "It is the other way round: the old form, True, is the one that looks only at its input.",
    },
)


@lesson.exercise(
    "which-switch",
    follows="There are two questions, is it recorded and how do the layers compute, and eval() is about the second "
    "alone. A switch ends with its block, and an inference tensor outlives it: a clone made outside is free of that.",
)
def which_switch(answer):
    def fresh():
        net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        return nn.Linear(2, 2), net, nn.Linear(4, 1), torch.eye(2)

    def features(switch):
        _, net, head, x = fresh()
        with switch():
            return net, head, net(x)

    def learns(layer, result):
        result.sum().backward()
        return layer.weight.grad is not None

    def through_no_grad():
        before, net, head, x = fresh()
        hidden = before(x)
        with torch.no_grad():
            result = net(hidden)
        return learns(before, head(result))

    def through_frozen():
        before, net, head, x = fresh()
        return learns(before, head(net.requires_grad_(False)(before(x))))

    def evaluated():
        _, net, _, x = fresh()
        return net.eval()(x).requires_grad

    def kept():
        _, net, _, x = fresh()
        with saved_tensors(net) as saved:
            net(x).detach()
        return saved.nbytes > 0

    plain, plain_head, made = features(torch.no_grad)
    _, head, sealed = features(torch.inference_mode)
    seen = {
        "net.eval(): net(x) asks": evaluated(),
        "no_grad: net(x) moves the running mean": bool(plain[1].running_mean.any()),
        "no_grad: head(features) asks": plain_head(made).requires_grad,
        "no_grad: before learns through net(hidden)": through_no_grad(),
        "net.requires_grad_(False): before learns through net(hidden)": through_frozen(),
        "net(x).detach(): tensors are kept while net runs": kept(),
        "inference_mode: head learns from features": raises(lambda: learns(head, head(sealed))),
        "inference_mode: head learns from features.clone()": raises(lambda: learns(head, head(sealed.clone()))),
    }
    beliefs = {
        ("net.eval(): net(x) asks", False): "eval() switches how dropout and BatchNorm compute; all is still recorded.",
        ("no_grad: net(x) moves the running mean", False): "no_grad stops the recording for backward. BatchNorm is in "
        "train mode, and goes on counting.",
        ("no_grad: head(features) asks", False): "The head runs outside of the block, and its own weights ask: no_grad "
        "does not travel on with a result, as volatile did.",
        ("no_grad: before learns through net(hidden)", True): "What net computed was not recorded, so the way back to "
        "before is cut. That there is no error does not mean that all learn.",
        ("net.requires_grad_(False): before learns through net(hidden)", False): "Frozen parameters get no gradient "
        "of their own; one that comes back passes the layer, to whatever asks before it.",
        ("net(x).detach(): tensors are kept while net runs", False): "net has run before detach() is called: it was "
        "recorded as usual, and needed the memory meanwhile.",
        ("inference_mode: head learns from features", True): "The head must save its input for backward, and an "
        "inference tensor cannot be saved.",
        (
            "inference_mode: head learns from features",
            False,
        ): "It does not pass in silence: the head must save its input for backward, and says so when it cannot.",
        ("inference_mode: head learns from features.clone()", "raises"): "A clone that is made outside of the block is "
        "an ordinary tensor: the head can save it.",
        ("inference_mode: head learns from features.clone()", False): "The head's own weights ask, and the clone, made "
        "outside of the block, can be saved.",
    }
    for row in ("no_grad: before learns through net(hidden)", "no_grad: head(features) asks"):
        beliefs[row, RAISES] = "Nothing is wrong here for torch: what was not recorded is a constant, without an error."
    table(answer, seen, beliefs)


@lesson.exercise(
    "cut-off-adapter",
    follows="The flag holds the parameters and lets the gradient pass; eval() holds the statistics. Memory is the "
    "price: the backbone is recorded, because the gradient has to come back through it.",
)
def cut_off_adapter(answer):
    for frozen in (False, True):
        backbone = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 4))
        adapter, head = nn.Linear(3, 3), nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
        backbone.requires_grad_(not frozen).train(not frozen)
        for _ in range(2):
            _one_step(answer, adapter, backbone, head)


def _one_step(answer, adapter, backbone, head):
    x, direction = torch.randn(6, 3), torch.randn(6, 2)
    parts = {"adapter": adapter, "backbone": backbone, "head": head}
    before, objects = copy.deepcopy(parts), list(backbone.parameters())
    result = run(answer, adapter, backbone, head, x.clone())
    if not isinstance(result, Tensor) or result.shape != direction.shape:
        what = f"a tensor of {tuple(result.shape)}" if isinstance(result, Tensor) else kind(result)
        raise NotYet(f"Return what the head gives, here a tensor of {tuple(direction.shape)}. Yours is {what}.")
    references = [_reference(before, mode, x, direction) for mode in (False, True)]
    fits = [gradients for output, gradients in references if _close(result, output)]
    if not fits:
        raise NotYet("What you return is not head(backbone(adapter(x))): all three are to be used, in this order.")
    for name in ("adapter", "head"):
        if not all(parameter.requires_grad for parameter in parts[name].parameters()):
            raise NotYet(f"Parameters of the {name} no longer ask: only the backbone is to be held still.")
    if not result.requires_grad:
        raise NotYet("The head's output does not ask, so backward() would raise: the head has to run outside no_grad.")
    for part in parts.values():
        part.zero_grad()
    run((result * direction).sum().backward)
    has = {name: [p.grad is not None for p in part.parameters()] for name, part in parts.items()}
    if not any(has["adapter"]) and any(has["backbone"]):
        raise NotYet(
            "The backbone has a gradient and the adapter has none: the cut is between the two. The gradient is to pass "
            "the backbone, and to leave nothing there."
        )
    if not all(has["adapter"]):
        raise NotYet(
            "The adapter has no gradient: what the backbone computed leads nowhere. To ask for a gradient again on a "
            "result does not bring the way back; the backbone itself has to be recorded, with its flags off."
        )
    if not all(has["head"]):
        raise NotYet("The head has no gradient: it is to learn too.")
    if any(has["backbone"]):
        if not any(p.grad.any() for p in backbone.parameters() if p.grad is not None):
            raise NotYet("The backbone's gradients are zeros, not None: with weight decay an optimizer would move it.")
        raise NotYet(
            "The adapter learns. But the backbone has a gradient too, and an optimizer would move it: eval() holds the "
            "statistics, not the parameters, which ask by a flag of their own."
        )
    was, now = before["backbone"].state_dict(), backbone.state_dict()
    names = [name for name, _ in before["backbone"].named_parameters()]
    same = len(objects) == len(list(backbone.parameters())) and all(map(operator.is_, objects, backbone.parameters()))
    if not same or was.keys() != now.keys() or not all(torch.equal(was[name], now[name]) for name in names):
        raise NotYet("The backbone's parameters are others than before: leave them where they are, and their values.")
    if moved := [name for name in was if "running" in name and not torch.equal(was[name], now[name])]:
        raise NotYet(
            f"The backbone has no gradients. But {' and '.join(moved)} moved: BatchNorm's statistics are no parameters "
            "and have no flag. In which mode do they stay?"
        )
    learned = [*adapter.parameters(), *head.parameters()]
    if not any(all(_close(p.grad, g) for p, g in zip(learned, gradients, strict=True)) for gradients in fits):
        raise NotYet(
            "The output is right, but the gradients are not those that come back through the backbone: they went "
            "around it."
        )
    with torch.no_grad():  # a step by hand: the first torch.optim of a process costs seconds
        for parameter in learned:
            parameter -= 0.1 * parameter.grad


def _reference(parts, training, x, direction):
    adapter, backbone, head = copy.deepcopy(list(parts.values()))
    output = head(backbone.train(training)(adapter(x)))
    learned = [*adapter.parameters(), *head.parameters()]
    return output, torch.autograd.grad((output * direction).sum(), learned)


def _close(one, other):
    return one.shape == other.shape and torch.allclose(one.to(other.dtype), other, atol=1e-5)


@lesson.exercise(
    "head-features",
    follows="Now the backbone runs once for a whole training of the head. cache_features() of helpers does the same "
    "with a DataLoader and its labels.",
)
def head_features(answer):
    for modes in ("train", "eval", "mixed"):
        inner = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        backbone = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), inner)
        backbone[0].bias.requires_grad = False  # by somebody before
        with torch.no_grad():
            for _ in range(5):
                backbone(2 * torch.randn(16, 3) + 1)
        backbone.train(modes != "eval")
        if modes == "mixed":
            backbone[1].eval()
            inner[1].eval()
        for _ in range(2):
            _features_once(answer, backbone)


def _features_once(answer, backbone):
    batches = [torch.randn(rows, 3) for rows in (4, 4, 2)]
    given, before = [batch.clone() for batch in batches], copy.deepcopy(backbone)
    still = copy.deepcopy(backbone).eval()
    with torch.no_grad():
        wanted = torch.cat([still(batch) for batch in batches])
    with saved_tensors(backbone) as saved:
        features = run(answer, backbone, given)
    if not isinstance(features, Tensor):
        raise NotYet(f"Return the features in one tensor, for instance with torch.cat. Yours is {kind(features)}.")
    if features.shape != wanted.shape:
        raise NotYet(
            f"For batches of 4, 4 and 2 rows the features should be {tuple(wanted.shape)}, a row for each row. Yours "
            f"are {tuple(features.shape)}."
        )
    if features.dtype != wanted.dtype:
        raise NotYet(f"The features should be {wanted.dtype}, as the backbone gives them, and are {features.dtype}.")
    _nothing_recorded(features, saved.nbytes)
    _as_before(before, backbone, "statistics")
    if not _close(features, wanted):
        if _close(features.sort(0).values, wanted.sort(0).values):
            raise NotYet("The rows are right, but not in the order of the batches.")
        raise NotYet("The features are not those of eval mode: dropout, or statistics of the batch, went into them.")
    if features.is_inference():
        raise NotYet(
            "The numbers are right, but these are inference tensors: a head cannot save them for backward. Use "
            "no_grad, or clone outside of the block: a clone made inside is an inference tensor too."
        )
    head = nn.Linear(4, 1)
    run(head(features).sum().backward)
    if head.weight.grad is None or not _close(head.weight.grad[0], wanted.sum(0)):
        raise NotYet("A head that was run on the features does not get the gradient that it should.")
    _as_before(before, backbone, "modes and flags")
    if len(given) != len(batches) or not all(map(torch.equal, given, batches)):
        raise NotYet("The batches are others than before: leave them as they are.")


def _nothing_recorded(features, nbytes):
    if features.requires_grad and nbytes:
        raise NotYet(
            f"The features ask, and {nbytes} bytes are kept for backward: all was recorded. The weights ask, so "
            "neither eval() nor a flag of the batch stops that."
        )
    if features.requires_grad:
        raise NotYet("The features ask for a gradient, and nobody needs it: a head learns by its own weights.")
    if nbytes:
        raise NotYet(
            f"The features do not ask, but {nbytes} bytes were kept for backward while the backbone ran: to cut the "
            "result off comes too late."
        )


def _as_before(before, backbone, what):
    was, now = dict(before.named_modules()), dict(backbone.named_modules())
    old, new = before.state_dict(), backbone.state_dict()
    if was.keys() != now.keys() or old.keys() != new.keys():
        raise NotYet("The backbone has other parts than before: leave it as it is.")
    if what == "statistics":
        moved = [name for name in old if not torch.equal(old[name], new[name])]
        if any("running" in name for name in moved):
            raise NotYet(
                f"{moved[0]} moved: no_grad and inference_mode leave BatchNorm and dropout as they are in training."
            )
        if moved:
            raise NotYet(f"{moved[0]} has other values than before: leave the backbone as it is.")
        return
    changed = [name for name in was if was[name].training != now[name].training]
    if changed and not any(module.training for module in now.values()):
        raise NotYet("The features are right. But the backbone was not all in eval mode before, and it is now.")
    if changed and not any(module.training for module in was.values()):
        raise NotYet("The features are right. But the backbone was in eval mode before, and it is in train mode now.")
    if changed:
        name = changed[0]
        mode, other = ("train", "eval") if was[name].training else ("eval", "train")
        raise NotYet(
            f"The features are right. But module {name!r} was in {mode} mode before, and is in {other} mode now: "
            "train() and eval() set a module and all modules in it, and .training is that of one alone."
        )
    for name, module in now.items():
        if other := [key for key, value in _plain(was[name]).items() if vars(module).get(key) != value]:
            raise NotYet(f"The features are right. But {name}.{other[0]} is not what it was before.")
    flags = {name: parameter.requires_grad for name, parameter in before.named_parameters()}
    if other := [name for name, parameter in backbone.named_parameters() if parameter.requires_grad != flags[name]]:
        raise NotYet(
            f"The features are right. But the flag of {other[0]} was {flags[other[0]]} before, and is not now."
        )
    if any(parameter.grad is not None for parameter in backbone.parameters()):
        raise NotYet("The features are right. But parameters of the backbone have gradients now.")


def _plain(module):
    """The settings of a module, such as p of dropout; not its mode."""
    return {
        key: value for key, value in vars(module).items() if isinstance(value, bool | int | float) and key != "training"
    }
