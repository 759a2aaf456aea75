"""The exercises and predictions of the lesson on ``no_grad``."""

import copy

import torch
from torch import Tensor, nn

from helpers import graph, saved_tensors
from helpers.lessons.exercises import RAISES, Lesson, NotYet, kind, raises, run, table

lesson = Lesson()
check, predict, progress = lesson.check, lesson.predict, lesson.progress

lesson.prediction(
    "left-alone",
    {
        (False, False, False): "no_grad only stops the recording of what is computed inside: the first tensor was "
        "computed before, the layer's weight is no result, and backward() runs as ever.",
        (False, False, True): "The first tensor was there before. It was returned, not computed, so it lost nothing.",
        (True, True, True): "The product was computed inside, so nothing was recorded of it.",
        (True, False, False): "The layer's weight is a Parameter and no result: it asks, and no_grad does not hold "
        "backward() up.",
        (True, True, False): "It is the other way round: the product is a result of the block, the weight is none.",
    },
    otherwise="Ask of each whether it was computed inside the block: that alone is not recorded.",
)
lesson.prediction(
    "data-slopes",
    {
        (True, True, True): "Only the clone has memory of its own. Through the others the zero arrived in the result.",
        (True, True, False): ".data is no copy: the zero arrived in the result, and backward multiplied with it.",
        (True, False, True): "detach() gives no slope at all: look at what it printed in place of one.",
        (False, False, False): "A clone has memory of its own, so the zero did not arrive in the result.",
    },
    otherwise="Which of the three share memory with the result, so that the zero arrives there? What did they print?",
)
lesson.prediction(
    "middle-no-grad",
    {
        (True, False, True): "no_grad does not let the gradient pass: of what ran inside, there is no record to go "
        "back along. The flag, in the next cell, is what does this.",
        (True, True, True): "after's result asks, but not all before it learn: the record ends at after.",
        (False, True, True): "What middle computed was not recorded, so backward does not find middle either.",
        (False, False, False): "The block ends before after runs: it is recorded, and its own weight asks.",
    },
    otherwise="Go back from after's result: after ran outside of the block, and of what middle did there is no record.",
)
lesson.prediction(
    "table",
    {
        (False, False, False): "A result that does not ask may come from a network that was recorded: detach() is "
        "called when the network has run.",
        (True, False, False): "What was recorded keeps what its gradients need, until the record is freed.",
        (True, True, True): "It was recorded, and kept its tensors, but the detached result does not ask.",
        (False, False, True): "It is the other way round: the network was recorded, and the result does not show it.",
    },
    otherwise="First the network runs, recorded, and keeps what its gradients need. Then detach() cuts the result off.",
)
lesson.prediction(
    "resnet-table",
    {
        "almost nothing": "Few weights do not mean little memory: to come back to conv1, the gradient must pass all "
        "layers, and most of them need what they kept for that.",
        "half": "The weights are not counted. The layers after conv1 keep what they need to let it pass.",
    },
    otherwise="Choose one of the three, as they are written.",
)
lesson.prediction(
    "checkpoint",
    {
        (True, True, True): "By the rule each result asks. But the old form does not record the block while it runs, "
        "and looks only at its input.",
        (False, False, False): "The new form records as usual: the block's parameters ask, so its result does.",
        (True, False, True): "If you do not say which, you get the old form, in this version.",
        (False, True, False): "It is the other way round: the old form, True, is the one that looks only at its input.",
        (True, True, False): "It is the other way round: the old form, True, is the one that looks only at its input.",
    },
    otherwise="The first of the three is one of the other two. Only the new form, False, looks at the parameters.",
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
    for make in (_chain, _Residual):
        for training, frozen in ((True, False), (False, True), (True, True), (False, False)):
            adapter, head = nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
            backbone = _warm(make())
            backbone.requires_grad_(not frozen).train(training)
            for _ in range(2):
                _one_step(answer, {"adapter": adapter, "backbone": backbone, "head": head})


def _chain():
    deeper = nn.Sequential(nn.Tanh(), nn.BatchNorm1d(4))
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), deeper, nn.Linear(4, 3))


class _Residual(nn.Module):
    """Not to be run by going through its parts."""

    def __init__(self):
        super().__init__()
        self.deep = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.BatchNorm1d(3), nn.Tanh()))
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x):
        return self.norm(x) + self.deep(x)


def _warm(backbone):
    """With statistics that are not those of a new layer."""
    with torch.no_grad():
        for _ in range(5):
            backbone(2 * torch.randn(16, 3) + 1)
    return backbone


def _one_step(answer, parts):
    adapter, backbone, head = parts.values()
    x, direction = torch.randn(6, 3), torch.randn(6, 2)
    given, before = x.clone(), copy.deepcopy(parts)
    was = {name: _facts(part) for name, part in parts.items()}
    result = run(answer, adapter, backbone, head, given)
    now = {name: _facts(part) for name, part in parts.items()}
    references = [_reference(before, mode, x, direction) for mode in (False, True)]
    wanted, _ = references[0]
    if not isinstance(result, Tensor) or result.shape != wanted.shape or result.dtype != wanted.dtype:
        what = f"a {result.dtype} tensor of {tuple(result.shape)}" if isinstance(result, Tensor) else kind(result)
        raise NotYet(f"Return what the head gives, here a {wanted.dtype} tensor of {tuple(wanted.shape)}, not {what}.")
    fits = [gradients for output, gradients in references if _close(result, output)]
    if not fits:
        _statistics_held(
            was["backbone"],
            now["backbone"],
            "What you return is head(backbone(adapter(x))) neither in train nor in eval mode, and",
        )
        raise NotYet("What you return is not head(backbone(adapter(x))): all three are to be used, in this order.")
    for name in ("adapter", "head"):
        if not all(now[name]["flags"].values()):
            raise NotYet(f"Parameters of the {name} no longer ask: only the backbone is to be held still.")
        if was[name]["modes"] != now[name]["modes"]:
            raise NotYet(
                f"The output is right. But the {name} is in another mode now: dropout in it would be switched too. "
                "Only the backbone is to be held still."
            )
        _as_before(("objects", "values", "settings"), was[name], now[name], "The output is right.", f"{name}.")
    for name in parts:
        _as_before(("gradients",), was[name], now[name], "The output is right.", f"{name}.")
    if not _same(x, given) or given.requires_grad:
        raise NotYet("The output is right. But x is not what it was before, its values or its flag: leave it alone.")
    if not result.requires_grad:
        raise NotYet("The head's output does not ask, so backward() would raise: the head has to run outside no_grad.")
    for part in parts.values():
        part.zero_grad()
    run((result * direction).sum().backward, retain_graph=True)
    _right_ones_learn(parts, result)
    _as_before(("objects",), was["backbone"], now["backbone"], "The backbone has no gradients.", "backbone.")
    _statistics_held(was["backbone"], now["backbone"], "The backbone has no gradients, but")
    _as_before(("values", "settings"), was["backbone"], now["backbone"], "The output is right.", "backbone.")
    learned = [(f"{name}.{of}", p) for name in ("adapter", "head") for of, p in parts[name].named_parameters()]
    other = [[of for (of, p), g in zip(learned, gradients, strict=True) if not _close(p.grad, g)] for gradients in fits]
    if all(other):
        raise NotYet(
            f"The output is right. But the gradient of {other[0][0]} differs from the one that comes back from the "
            "head through the backbone."
        )
    with torch.no_grad():  # a step by hand: the first torch.optim of a process costs seconds
        for _, parameter in learned:
            parameter -= 0.1 * parameter.grad


def _right_ones_learn(parts, result):
    without = {name: [of for of, p in part.named_parameters() if p.grad is None] for name, part in parts.items()}
    has = {name: len(without[name]) < len(list(part.parameters())) for name, part in parts.items()}
    if not has["adapter"] and has["backbone"]:
        raise NotYet(
            "The backbone has a gradient and the adapter has none: the cut is between the two. The gradient is to pass "
            "the backbone, and to leave nothing there."
        )
    if not has["adapter"]:
        leaves = graph(result, nn.ModuleDict(parts)).nodes.values()
        if any(leaf["name"] == "Tensor" for leaf in leaves):
            raise NotYet(
                "The adapter has no gradient. To ask for a gradient again on a result does not bring the way back: the "
                "backbone itself has to be recorded, with its flags off."
            )
        raise NotYet(
            "The adapter has no gradient: on the way from the adapter to the head something was not recorded, or was "
            "cut off. Which switch holds the backbone's parameters, and lets a gradient pass?"
        )
    for name in ("adapter", "head"):
        if without[name]:
            others = f", though others of the {name} have one" if has[name] else ""
            raise NotYet(f"{name}.{without[name][0]} has no gradient{others}: it is to learn too.")
    if has["backbone"]:
        if not any(p.grad.any() for p in parts["backbone"].parameters() if p.grad is not None):
            raise NotYet("The backbone's gradients are zeros, not None: with weight decay an optimizer would move it.")
        raise NotYet(
            "The adapter learns. But the backbone has a gradient too, and an optimizer would move it: eval() holds the "
            "statistics, not the parameters, which ask by a flag of their own."
        )


def _statistics_held(was, now, first):
    if (name := _changed("values", was, now)) in was["buffers"]:
        raise NotYet(
            f"{first} backbone.{name} is not what it was: BatchNorm's statistics are no parameters and have no flag. "
            "In which mode do they stay, in all of the backbone?"
        )


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
    everything = ("", "0", "1", "2", "3", "3.0", "3.1", "3.2")
    for still in ((), everything, ("0", "1", "3.2"), ("", "3.1")):
        inner = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        backbone = _warm(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), inner))
        backbone[0].bias.requires_grad = False  # by somebody before
        backbone[0].weight.grad = torch.ones(4, 3)
        for name, module in backbone.named_modules():
            module.training = name not in still
        features = _features_once(answer, backbone, (4, 4, 2))
        kept = features.clone()
        with torch.no_grad():
            _features_once(answer, backbone, (3, 1, 4))
        if not torch.equal(features, kept):
            raise NotYet("The features of one call changed in the next: give a new tensor each time.")


def _features_once(answer, backbone, rows):
    batches = [torch.randn(n, 3) for n in rows]
    given, before, was = [batch.clone() for batch in batches], copy.deepcopy(backbone), _facts(backbone)
    wanted = _features(before, batches)
    with saved_tensors(backbone) as saved:
        features = run(answer, backbone, given)
    now = _facts(backbone)
    if not isinstance(features, Tensor):
        raise NotYet(f"Return the features in one tensor, for instance with torch.cat. Yours is {kind(features)}.")
    if features.shape != wanted.shape:
        raise NotYet(
            f"For batches of {rows[0]}, {rows[1]} and {rows[2]} rows the features should be {tuple(wanted.shape)}, a "
            f"row for each row. Yours are {tuple(features.shape)}."
        )
    if features.dtype != wanted.dtype:
        raise NotYet(f"The features should be {wanted.dtype}, as the backbone gives them, and are {features.dtype}.")
    _nothing_recorded(features, saved.nbytes)
    if moved := _changed("values", was, now):
        counts = [name for name in was["buffers"] if name.endswith("num_batches_tracked")]
        if any(name in now["values"] and now["values"][name] > was["values"][name] for name in counts):
            raise NotYet(
                f"{moved} moved: no_grad and inference_mode leave BatchNorm and dropout as they are in training."
            )
        raise NotYet(f"{moved} has other values than before: leave the backbone as it is.")
    if not _close(features, wanted):
        if _close(features.sort(0).values, wanted.sort(0).values):
            raise NotYet("The rows are right, but not in the order of the batches.")
        raise NotYet(_why_others(answer, before, batches, features))
    if features.is_inference():
        raise NotYet(
            "The numbers are right, but these are inference tensors: a head cannot save them for backward. Use "
            "no_grad, or clone outside of the block: a clone made inside is an inference tensor too."
        )
    head = nn.Linear(4, 1)
    with torch.enable_grad():
        run(head(features).sum().backward)
    if head.weight.grad is None or not _close(head.weight.grad[0], wanted.sum(0)):
        raise NotYet("A head that was run on the features does not get the gradient that it should.")
    _modes_as_before(was["modes"], now["modes"])
    _as_before(("objects", "flags", "settings", "gradients"), was, now, "The features are right.")
    if len(given) != len(batches) or not all(map(_same, batches, given)):
        raise NotYet("The features are right. But the batches are others than before: leave them as they are.")
    if any(batch.requires_grad for batch in given):
        raise NotYet("The features are right. But the batches ask for a gradient now: leave them as they are.")
    return features


def _features(backbone, batches, *in_train_mode):
    """What it gives in eval mode, but for some kinds of layers."""
    twin = copy.deepcopy(backbone).eval()
    for module in twin.modules():
        module.training = isinstance(module, in_train_mode)
    with torch.no_grad():
        return torch.cat([twin(batch) for batch in batches])


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


def _why_others(answer, before, batches, features):
    """What went into features that are not those of eval mode."""
    again = run(answer, copy.deepcopy(before), [batch.clone() for batch in batches])
    if isinstance(again, Tensor) and not features.isnan().any() and not _close(again, features):
        return "The features differ from call to call on the same batches: dropout is on. Which mode turns it off?"
    in_training = raises(lambda: _features(before, batches, nn.BatchNorm1d))  # it raises for a single row
    if isinstance(in_training, Tensor) and _close(features, in_training):
        return (
            "The statistics of each batch went into its features: BatchNorm was in train mode. In eval mode it uses "
            "those that it has."
        )
    return "The features are not what the backbone gives in eval mode, batch by batch, with nothing done to it after."


def _modes_as_before(was, now):
    changed = [name for name in was if was[name] != now.get(name)]
    if changed and not any(now.values()):
        raise NotYet("The features are right. But the backbone was not all in eval mode before, and it is now.")
    if changed and not any(was.values()):
        raise NotYet("The features are right. But the backbone was in eval mode before, and it is in train mode now.")
    if changed:
        which = f"module {changed[0]!r}" if changed[0] else "the backbone itself"
        mode, other = ("train", "eval") if was[changed[0]] else ("eval", "train")
        raise NotYet(
            f"The features are right. But {which} was in {mode} mode before, and is in {other} mode now: train() and "
            "eval() set a module and all modules in it, and .training is that of one alone."
        )


def _facts(module):
    """What a call could leave changed in a module, by kind and name."""
    parameters, buffers = dict(module.named_parameters()), dict(module.named_buffers())
    parts = dict(module.named_modules())
    return {
        "objects": parameters,
        "buffers": buffers,
        "values": {name: tensor.detach().clone() for name, tensor in (parameters | buffers).items()},
        "flags": {name: parameter.requires_grad for name, parameter in parameters.items()},
        "gradients": {name: p.grad if p.grad is None else p.grad.clone() for name, p in parameters.items()},
        "modes": {name: part.training for name, part in parts.items()},
        "settings": {f"{name}.{key}".lstrip("."): value for name, part in parts.items() for key, value in _plain(part)},
    }


def _plain(part):
    """The settings of a module, such as p of dropout, and how many hooks it has; not its mode."""
    for key, value in vars(part).items():
        if key.endswith("_hooks"):
            yield key, len(value)
        elif isinstance(value, bool | int | float) and key != "training":
            yield key, value


def _changed(what, was, now):
    """The first name of which a fact is not as it was, or None."""
    names = was[what] if what == "settings" else was[what] | now[what]
    return next((name for name in names if not _same(was[what].get(name), now[what].get(name))), None)


def _same(one, other):
    if isinstance(one, nn.Parameter) or not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return one is other or (not isinstance(one, Tensor) and not isinstance(other, Tensor) and one == other)
    return one.dtype == other.dtype and torch.equal(one, other)


def _as_before(kinds, was, now, first, within=""):
    told = {
        "objects": "{} is another object than before, or gone: an optimizer would hold the old one",
        "values": "{} has other values than before: leave them as they are",
        "flags": "the flag of {} was {} before, and is not now",
        "settings": "{} is not what it was before",
        "gradients": "the gradient of {} is not what it was before the call: leave backward() and zero_grad() to the "
        "code that calls yours",
    }
    for what in kinds:
        if name := _changed(what, was, now):
            raise NotYet(f"{first} But {told[what].format(within + name, was[what].get(name))}.")
