"""The exercises and predictions of the lesson on ``no_grad``."""

import contextlib
import copy
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._pytree import tree_leaves

from helpers import saved_tensors
from helpers.lessons.exercises import Lesson, kind, raises, run, table

lesson = Lesson("no_grad")
check, predict, progress = lesson.check, lesson.predict, lesson.progress


@lesson.exercise("which-switch")
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

    def in_a_thread():
        _, net, _, x = fresh()
        with torch.no_grad(), ThreadPoolExecutor(1) as pool:
            return pool.submit(net, x).result().requires_grad

    def kept():
        _, net, _, x = fresh()
        with saved_tensors(net) as saved:
            net(x).detach()
        return saved.nbytes > 0

    plain, _, _ = features(torch.no_grad)
    _, head, sealed = features(torch.inference_mode)
    seen = {
        "eval(): net(x) requires grad": evaluated(),
        "no_grad(): net(x) moves the running mean": bool(plain[1].running_mean.any()),
        "no_grad(): net(x) in a new thread requires grad": in_a_thread(),
        "no_grad(): before gets a gradient": through_no_grad(),
        "requires_grad_(False) on net: before gets a gradient": through_frozen(),
        "net(x).detach(): net saves for backward": kept(),
        "inference_mode(): head gets a gradient from features": raises(lambda: learns(head, head(sealed))),
        "inference_mode(): head gets a gradient from features.clone()": raises(
            lambda: learns(head, head(sealed.clone()))
        ),
    }
    table(answer, seen, lesson.beliefs("which-switch"))


@lesson.exercise("cut-off-adapter")
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
    holds = ("train", "reset_running_stats")  # helpers.freeze puts these on a module
    result = _run(answer, parts, adapter, backbone, head, given, holds=holds)
    now = {name: _facts(part) for name, part in parts.items()}
    references = [_reference(before, mode, x, direction) for mode in (False, True)]
    wanted, _ = references[0]
    if not isinstance(result, Tensor) or result.shape != wanted.shape or result.dtype != wanted.dtype:
        what = f"a {result.dtype} tensor of {tuple(result.shape)}" if isinstance(result, Tensor) else kind(result)
        raise lesson.not_yet("result", dtype=wanted.dtype, shape=tuple(wanted.shape), what=what)
    fits = [gradients for output, gradients in references if _close(result, output)]
    if not fits:
        _statistics_held(was["backbone"], now["backbone"], "statistics-instead")
        raise lesson.not_yet("other-output")
    for name in ("adapter", "head"):
        if not all(now[name]["flags"].values()):
            raise lesson.not_yet("flags-off", part=name)
        if was[name]["modes"] != now[name]["modes"]:
            raise lesson.not_yet("mode", part=name)
        _as_before(("objects", "values", "settings"), was[name], now[name], "The output is right.", f"{name}.")
    for name in parts:
        _as_before(("gradients",), was[name], now[name], "The output is right.", f"{name}.")
    if not _same(x, given) or given.requires_grad:
        raise lesson.not_yet("x-changed")
    if not result.requires_grad:
        raise lesson.not_yet("no-graph")
    for part in parts.values():
        part.zero_grad()
    run((result * direction).sum().backward, retain_graph=True)
    _right_ones_learn(parts, result)
    _as_before(("objects",), was["backbone"], now["backbone"], "The backbone has no gradients.", "backbone.")
    _statistics_held(was["backbone"], now["backbone"], "statistics")
    _as_before(("values", "settings"), was["backbone"], now["backbone"], "The output is right.", "backbone.")
    learned = [(f"{name}.{of}", p) for name in ("adapter", "head") for of, p in parts[name].named_parameters()]
    other = [[of for (of, p), g in zip(learned, gradients, strict=True) if not _close(p.grad, g)] for gradients in fits]
    if all(other):
        raise lesson.not_yet("other-gradient", name=other[0][0])
    with torch.no_grad():  # a step by hand: the first torch.optim of a process costs seconds
        for _, parameter in learned:
            parameter -= 0.1 * parameter.grad


def _right_ones_learn(parts, result):
    without = {name: [of for of, p in part.named_parameters() if p.grad is None] for name, part in parts.items()}
    has = {name: len(without[name]) < len(list(part.parameters())) for name, part in parts.items()}
    if not has["adapter"] and has["backbone"]:
        raise lesson.not_yet("between")
    if not has["adapter"]:
        leaves, learned = _trainable_leaves(result), list(parts["adapter"].parameters())
        if any(torch.equal(leaf, parameter) for leaf in leaves for parameter in learned):
            raise lesson.not_yet("copy")
        raise lesson.not_yet("flag-on-a-result" if not all(isinstance(p, nn.Parameter) for p in leaves) else "cut")
    for name in ("adapter", "head"):
        if without[name]:
            others = f", though others of the {name} have one" if has[name] else ""
            raise lesson.not_yet("one-missing", name=f"{name}.{without[name][0]}", others=others)
    if has["backbone"]:
        grads = {name: p.grad for name, p in parts["backbone"].named_parameters() if p.grad is not None}
        key = "backbone-learns" if any(gradient.any() for gradient in grads.values()) else "zeros"
        raise lesson.not_yet(key, name=next(iter(grads)))


def _trainable_leaves(result):
    """The tensors that require grad and are no results, as backward from ``result`` finds them."""
    seen, ahead = set(), [result.grad_fn]
    while ahead:
        node = ahead.pop()
        if node and node not in seen:
            seen.add(node)
            ahead += [below for below, _ in node.next_functions]
    return [node.variable for node in seen if hasattr(node, "variable")] or [result]


def _statistics_held(was, now, key):
    if (name := _changed("values", was, now)) in was["buffers"]:
        raise lesson.not_yet(key, name=name)


def _reference(parts, training, x, direction):
    adapter, backbone, head = copy.deepcopy(list(parts.values()))
    output = head(backbone.train(training)(adapter(x)))
    learned = [*adapter.parameters(), *head.parameters()]
    return output, torch.autograd.grad((output * direction).sum(), learned)


def _close(one, other):
    return one.shape == other.shape and torch.allclose(one.to(other.dtype), other, atol=1e-5)


@lesson.exercise("head-features")
def head_features(answer):
    everything = ("", "0", "1", "2", "3", "3.0", "3.1", "3.2")
    for still in ((), everything, ("0", "1", "3.2"), ("", "3.1")):
        inner = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        backbone = _warm(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), inner))
        backbone[0].bias.requires_grad = False  # by somebody before
        backbone[0].weight.grad = torch.ones(4, 3)
        for name, module in backbone.named_modules():
            module.training = name not in still
        if "" in still and len(still) == 2:
            backbone.double()
        features = _features_once(answer, backbone, (4, 4, 2))
        kept = features.clone()
        with torch.no_grad():
            _features_once(answer, backbone, (3, 1, 4))
        if not torch.equal(features, kept):
            raise lesson.not_yet("same-memory")


def _features_once(answer, backbone, rows):
    batches = [torch.randn(n, 3, dtype=backbone[0].weight.dtype) for n in rows]
    given, before, was = [batch.clone() for batch in batches], copy.deepcopy(backbone), _facts(backbone)
    wanted = _features(before, batches)
    with saved_tensors(backbone) as saved, _recorded() as recorded:
        features = _run(answer, {"backbone": backbone}, backbone, given)
    now = _facts(backbone)
    if not isinstance(features, Tensor):
        raise lesson.not_yet("one-tensor", what=kind(features))
    if features.shape != wanted.shape:
        told = f"{rows[0]}, {rows[1]} and {rows[2]}"
        raise lesson.not_yet("shape", rows=told, wanted=tuple(wanted.shape), shape=tuple(features.shape))
    if features.dtype != wanted.dtype:
        raise lesson.not_yet("dtype", wanted=wanted.dtype, dtype=features.dtype)
    _nothing_recorded(features, saved.nbytes, recorded)
    if moved := _changed("values", was, now):
        counts = [name for name in was["buffers"] if name.endswith("num_batches_tracked")]
        if any(name in now["values"] and now["values"][name] > was["values"][name] for name in counts):
            raise lesson.not_yet("moved", name=moved)
        raise lesson.not_yet("values", first="The features do not require grad.", name=moved)
    if not _close(features, wanted):
        if _close(features.sort(0).values, wanted.sort(0).values):
            raise lesson.not_yet("order")
        raise lesson.not_yet(_why_others(answer, before, batches, features))
    if features.is_inference():
        raise lesson.not_yet("inference")
    head = nn.Linear(4, 1, dtype=wanted.dtype)
    with torch.enable_grad():
        run(head(features).sum().backward)
    if head.weight.grad is None or not _close(head.weight.grad[0], wanted.sum(0)):
        raise lesson.not_yet("head")
    _modes_as_before(was["modes"], now["modes"])
    _as_before(("objects", "flags", "settings", "gradients"), was, now, "The features are right.")
    if len(given) != len(batches) or not all(map(_same, batches, given)):
        raise lesson.not_yet("batches")
    if any(batch.requires_grad for batch in given):
        raise lesson.not_yet("batches-require-grad")
    return features


@contextlib.contextmanager
def _recorded() -> Iterator[list[str]]:
    """The kinds of modules whose outputs were recorded, in whatever thread and under whatever hooks."""
    recorded: list[str] = []

    def look(module, args, output):
        if any(isinstance(tensor, Tensor) and tensor.requires_grad for tensor in tree_leaves(output)):
            recorded.append(type(module).__name__)

    handle = register_module_forward_hook(look)
    try:
        yield recorded
    finally:
        handle.remove()


def _features(backbone, batches, *in_train_mode):
    """What it gives in eval mode, but for some kinds of layers."""
    twin = copy.deepcopy(backbone).eval()
    for module in twin.modules():
        module.training = isinstance(module, in_train_mode)
    with torch.no_grad():
        return torch.cat([twin(batch) for batch in batches])


def _nothing_recorded(features, nbytes, recorded):
    how = f"{nbytes} bytes were saved for backward" if nbytes else ""
    if recorded and not nbytes:  # in another thread, or under hooks that took what was saved
        how = f"the output of a {recorded[0]} was recorded"
    if how:
        raise lesson.not_yet("recorded" if features.requires_grad else "too-late", how=how)
    if features.requires_grad:
        raise lesson.not_yet("requires-grad")


def _why_others(answer, before, batches, features):
    """What went into features that are not those of eval mode."""
    again = _run(answer, {}, copy.deepcopy(before), [batch.clone() for batch in batches])
    if isinstance(again, Tensor) and not features.isnan().any() and not _close(again, features):
        return "dropout"
    in_training = raises(lambda: _features(before, batches, nn.BatchNorm1d))  # it raises for a single row
    if isinstance(in_training, Tensor) and _close(features, in_training):
        return "batch-statistics"
    return "other-numbers"


def _modes_as_before(was, now):
    changed = [name for name in was if was[name] != now.get(name)]
    if changed and not any(now.values()):
        raise lesson.not_yet("all-eval")
    if changed and not any(was.values()):
        raise lesson.not_yet("all-train")
    if changed:
        which = f"module {changed[0]!r}" if changed[0] else "the backbone itself"
        mode, other = ("train", "eval") if was[changed[0]] else ("eval", "train")
        raise lesson.not_yet("one-mode", which=which, mode=mode, other=other)


def _run(answer, parts, *args, holds=()):
    """`run`, and no method left on one of the ``parts`` by which it would compute otherwise, but those of ``holds``."""
    modules = {
        f"{name}.{path}".rstrip("."): part for name, whole in parts.items() for path, part in whole.named_modules()
    }
    before = {name: _methods(part) for name, part in modules.items()}
    result = run(answer, *args)
    for name, part in modules.items():
        if new := sorted(_methods(part) - before[name] - set(holds)):
            raise lesson.not_yet("method", name=f"{name}.{new[0]}")
    return result


def _methods(part):
    """What hides a method of its class on one module."""
    return {name for name in vars(part) if callable(getattr(type(part), name, None))}


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
        "settings": {f"{name}.{key}".lstrip("."): value for name, part in parts.items() for key, value in _plain(part)}
        | {f"the number of hooks on {name}": _hooks(parameter) for name, parameter in parameters.items()},
    }


def _plain(part):
    """The settings of a module, such as p of dropout, and how many hooks it has; not its mode."""
    for key, value in vars(part).items():
        if key.endswith("_hooks"):
            yield key, len(value)
        elif isinstance(value, bool | int | float) and key != "training":
            yield key, value


def _hooks(parameter):
    of_all = (getattr(parameter, kind, None) for kind in ("_backward_hooks", "_post_accumulate_grad_hooks"))
    return sum(len(hooks) for hooks in of_all if hooks)


def _changed(what, was, now):
    """The first name of which a fact is not as it was, or None."""
    names = was[what] if what == "settings" else was[what] | now[what]
    return next((name for name in names if not _same(was[what].get(name), now[what].get(name))), None)


def _same(one, other):
    if isinstance(one, nn.Parameter) or not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return one is other or (not isinstance(one, Tensor) and not isinstance(other, Tensor) and one == other)
    return one.dtype == other.dtype and torch.equal(one, other)


def _as_before(kinds, was, now, first, within=""):
    for what in kinds:
        if name := _changed(what, was, now):
            told = name if name.startswith("the ") else within + name
            raise lesson.not_yet(what, first=first, name=told, was=was[what].get(name))
