"""The exercises of the lesson on parameters: what their checks measure. The sentences are in parameters.toml."""

import contextlib
import copy
import itertools
import textwrap
from collections.abc import Mapping

import torch
from torch import nn

from helpers.lessons.exercises import Lesson, NotYet, kind, run, scalar, table, taken

lesson = Lesson("parameters")
check, predict, progress = lesson.check, lesson.predict, lesson.progress


@contextlib.contextmanager
def _float32():
    """New tensors are float32, as the statements say, whatever the kernel was told before."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@lesson.exercise("what-registers")
@_float32()
def what_registers(answer):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.same = nn.Parameter(torch.ones(2)).to(torch.float32)
            self.half = nn.Parameter(torch.ones(2)) * 0.5
            self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
            self.register_parameter("empty", None)
            self.fixed = nn.Buffer(torch.ones(2))
            self.cache = nn.Buffer(torch.ones(2), persistent=False)
            self.layers = {"first": nn.Linear(2, 2)}
            self.steps = nn.ParameterList([torch.ones(2)])

    model = Model()
    trained = {name.split(".")[0] for name, _ in model.named_parameters()}
    saved = {name.split(".")[0] for name in model.state_dict()}
    names = ("same", "half", "frozen", "empty", "fixed", "cache", "layers", "steps")
    seen = {name: (name in trained, name in saved) for name in names}
    if isinstance(answer, dict):
        answer = {name: _pair(name, value) for name, value in answer.items()}
    table(answer, seen, lesson.beliefs("what-registers"))


def _pair(name, value):
    """Two verdicts as a tuple, of whatever they were written in; what is empty as it is."""
    parts = value
    if isinstance(value, list | tuple) or getattr(value, "shape", None) == (2,):
        parts = tuple(scalar(part) for part in value)
    if parts is ... or (isinstance(parts, tuple) and any(part is ... for part in parts)):
        return parts
    verdicts = isinstance(parts, tuple) and all(type(part) in (bool, int) and part in (0, 1) for part in parts)
    if not verdicts or len(parts) != 2:
        yours = list(parts) if isinstance(parts, tuple) else kind(value)
        raise lesson.not_yet("pair", row=repr(name), yours=yours)
    return tuple(map(bool, parts))


@lesson.exercise("hidden-heads")
@_float32()
def hidden_heads(answer):
    for size, tasks in ((6, {"digit": 5, "slant": 2, "pen": 2}), (5, {"age": 1, "digit": 3, "place": 2})):
        given = dict(tasks)
        model = _made(answer, "answer(dim, tasks)", size, given)
        if given != tasks:
            raise lesson.not_yet("tasks-changed")
        model.train()
        x, first = torch.randn(6, size), dict(_whole(model).named_parameters())
        scores = _scores(model, x, tasks)
        if not _equal(scores, _scores(model, x, tasks)):
            raise lesson.not_yet("random")
        if late := [name for name, _ in _whole(model).named_parameters() if name not in first]:
            raise lesson.not_yet("late", name=repr(late[0].removeprefix("0.")))
        model.eval()
        if not _equal(scores, _scores(model, x, tasks, "In eval mode: ")):
            raise lesson.not_yet("mode")
        _registered(model, scores, size, tasks)
        _each_its_own(model, x, tasks)
        _saved_and_moved(model, answer, x, tasks)
        _with_relu(answer, size, tasks)


def _scores(model, x, tasks, when=""):
    before = x.clone()
    try:
        scores = run(model, x)
    except NotYet as reason:
        raise NotYet(f"{when}{reason}") from reason
    if not torch.equal(before, x):
        raise lesson.not_yet("x-changed")
    if not isinstance(scores, Mapping) or set(scores) != set(tasks):
        raise lesson.not_yet("no-dictionary", when=when, tasks=", ".join(tasks), given=kind(scores))
    for task, found in scores.items():
        if not isinstance(found, torch.Tensor) or found.shape != (len(x), tasks[task]):
            given = f"the shape {tuple(found.shape)}" if isinstance(found, torch.Tensor) else kind(found)
            raise lesson.not_yet("shape", rows=len(x), task=repr(task), wanted=(len(x), tasks[task]), given=given)
        if not found.isfinite().all():
            raise lesson.not_yet("not-finite", task=repr(task))
    return scores


def _equal(scores, others):
    return all(torch.equal(score, others[task]) for task, score in scores.items())


def _leaves(results):
    """The leaves that backward from the results would reach."""
    nodes, leaves = [result.grad_fn for result in results if result.grad_fn is not None], {}
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        if hasattr(node, "variable"):
            leaves[id(node.variable)] = node.variable
        below = [each for each, _ in node.next_functions if each is not None and each not in seen]
        seen.update(below)
        nodes.extend(below)
    return list(leaves.values())


def _whole(module):
    """A model with the answer's module as its only part: it sees what is registered, whatever methods that has."""
    return nn.Sequential(module)


def _registered(model, scores, size, tasks):
    used = _leaves(scores.values())
    known = {id(parameter) for parameter in taken(run(lambda: model.parameters()), "parameters")}
    within = dict(_whole(model).named_parameters())
    found = [leaf for leaf in used if id(leaf) in known]
    wanted = sum((size + 1) * 4 + (4 + 1) * n for n in tasks.values())
    if frozen := [name for name, parameter in within.items() if not parameter.requires_grad]:
        raise lesson.not_yet("frozen", name=repr(frozen[0].removeprefix("0.")))
    if not used:
        raise lesson.not_yet("no-gradient")
    if not known:
        raise lesson.not_yet(_why_empty(model, used))
    if not found:
        raise lesson.not_yet("others")
    if len(found) < len(used):
        raise lesson.not_yet("some", used=len(used), found=len(found))
    numbers = sum(leaf.numel() for leaf in used)
    if numbers < wanted == sum(parameter.numel() for parameter in within.values()):
        raise lesson.not_yet("cut", numbers=numbers, wanted=wanted)
    if numbers != wanted:
        raise lesson.not_yet("too-few" if numbers < wanted else "too-many", numbers=numbers, wanted=wanted)
    if spare := len(known) - len(found):
        raise lesson.not_yet("idle", spare=spare)
    if known != set(map(id, within.values())):
        raise lesson.not_yet("by-hand", found=len(within), wanted=len(known))


def _why_empty(model, used):
    """Why parameters() is empty, though forward uses something that requires grad."""
    if any(isinstance(part, nn.ParameterDict | nn.ParameterList) for part in model.modules()):
        return "parameter-containers"
    if {id(leaf) for leaf in used} & set(map(id, model.buffers())):
        return "buffers"
    held = [value for name, value in vars(model).items() if isinstance(value, list | tuple | dict) and name[0] != "_"]
    inner = [part for value in held for part in (value.values() if isinstance(value, dict) else value)]
    return "only-inside" if any(isinstance(part, nn.Module) for part in inner) else "nothing"


def _each_its_own(model, x, tasks):
    for task in tasks:
        before = {name: score.detach().clone() for name, score in _scores(model, x, tasks).items()}
        model.zero_grad()
        _scores(model, x, tasks)[task].square().sum().backward()
        _step(model)
        after = _scores(model, x, tasks)
        others = [name for name in tasks if name != task and not torch.equal(before[name], after[name])]
        if others:
            raise lesson.not_yet("shared", task=repr(task), other=repr(others[0]))
        if torch.equal(before[task], after[task]):
            raise lesson.not_yet("unmoved", task=repr(task))


def _network(answer, x, tasks):
    """A new one, called once: layers may be lazy, and have no shape before."""
    made = _made(answer, "answer(dim, tasks)", x.shape[1], dict(tasks))
    _scores(made, x, tasks)
    return made


def _saved_and_moved(model, answer, x, tasks):
    scores = _scores(model, x, tasks)
    state = run(lambda: _whole(model).state_dict())
    twin = _network(answer, x, tasks)
    memory = [{parameter.data_ptr() for parameter in network.parameters()} for network in (model, twin)]
    if memory[0] & memory[1]:
        raise lesson.not_yet("two-networks")
    _load(twin, state)
    if not _equal(scores, _scores(twin, x, tasks)):
        raise lesson.not_yet("not-loaded", entries=len(state))
    run(lambda: _whole(twin).double())
    doubled = _scores(twin, x.double(), tasks, "After double(), with a double x: ")
    for task, found in doubled.items():
        if found.dtype != torch.float64 or not torch.allclose(found, scores[task].double(), atol=1e-4):
            raise lesson.not_yet("left-behind", task=repr(task), dtype=found.dtype)
    moved = _network(answer, x, tasks)
    run(lambda: _whole(moved).to("meta").to_empty(device="cpu"))
    _load(moved, state)
    if not _equal(scores, _scores(moved, x, tasks)):
        raise lesson.not_yet("old-parameters")


def _with_relu(answer, size, tasks):
    """Between the kinks the slope of the scores is constant, and where none of the four numbers passes, it is zero."""
    model = _network(answer, torch.zeros(1, size), tasks).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    for task in tasks:
        slopes = []
        for rows, scale in ((256, 1), (4096, 1000)):  # far away, too: there, other functions bend again or are flat
            x = (scale * torch.randn(rows, size, dtype=torch.float64)).requires_grad_()
            total = _scores(model, x, tasks)[task].sum()
            slopes.append(torch.autograd.grad(total, x)[0].round(decimals=6).unique(dim=0))
        every = torch.cat(slopes).unique(dim=0)
        if len(every) > 2**4 or len(slopes[1]) <= 2**3 or not (every == 0).all(1).any():
            raise lesson.not_yet("not-relu", task=repr(task))


def _step(module):
    """A step of plain SGD; that of torch.optim imports a compiler first, which takes seconds."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad


def _load(module, state, which="A new"):
    """Load the state_dict of a whole that had such a module as its part."""
    try:
        _whole(module).load_state_dict(copy.deepcopy(state))
    except Exception as error:
        why = textwrap.shorten(" ".join(str(error).splitlines()[1:]) or str(error), 150, placeholder=" ...")
        raise lesson.not_yet("does-not-load", which=which, kind=type(module).__name__, why=why) from error


def _made(answer, call, *args):
    if isinstance(answer, nn.Module):
        raise lesson.not_yet("instance", given=kind(answer))
    made = run(answer, *args)
    if isinstance(made, type) or not isinstance(made, nn.Module):
        raise lesson.not_yet("no-module", call=call, given=kind(made))
    return made


NAMES = ("scale", "mean", "scratch")
NEAR = {"rtol": 1e-6, "atol": 1e-6}
"""What float32 leaves of a mean that was computed in another order."""


@lesson.exercise("running-mean")
@_float32()
def running_mean(answer):
    def layer():
        return _made(answer, "answer(size)", size)

    for size in (3, 1):
        _own_tensors(layer(), layer())
        _starts_right(layer(), size)
        _kinds(layer())
        _moved(layer(), size)
        for asks, recording in itertools.product((False, True), (True, False)):
            _trains(layer(), size, asks, recording)
        _one_row(layer(), size)
        for recording in (True, False):
            _holds(layer(), size, recording)
        _trains_only_scale(layer(), size)
        _saves(layer(), layer(), size)


def _own_tensors(layer, other):
    for name in NAMES:
        value, another = getattr(layer, name, None), getattr(other, name, None)
        if not isinstance(value, torch.Tensor):
            raise lesson.not_yet("no-tensor", name=repr(name), given=kind(value))
        if isinstance(another, torch.Tensor) and value.numel() and value.data_ptr() == another.data_ptr():
            raise lesson.not_yet("two-layers", name=name)
    for one, two in itertools.combinations(NAMES, 2):
        if getattr(layer, one).data_ptr() == getattr(layer, two).data_ptr() != 0:
            raise lesson.not_yet("one-tensor", one=one, two=two)


def _starts_right(layer, size):
    for name, start in (("scale", 1.0), ("mean", 0.0), ("scratch", 0.0)):
        value = getattr(layer, name)
        if value.dtype != torch.float32:
            raise lesson.not_yet("dtype-at-first", name=name, dtype=value.dtype)
        if value.shape != (size,):
            raise lesson.not_yet("shape-at-first", name=name, size=size, given=tuple(value.shape))
        if not (value == start).all():
            raise lesson.not_yet("numbers-at-first", name=name, size=size, start=start, given=value.tolist())


def _kinds(layer, when=""):
    own = {id(p): name for name, p in taken(run(lambda: layer.named_parameters()), "parameters")}
    names = {id(p): name.removeprefix("0.") for name, p in _whole(layer).named_parameters()}
    scale = {id(leaf) for leaf in [layer.scale, *_leaves([layer.scale])]}
    if not scale & names.keys():
        is_buffer = id(layer.scale) in map(id, layer.buffers())
        raise lesson.not_yet("scale-buffer" if is_buffer else "scale-plain", when=when)
    if not layer.scale.requires_grad:
        raise lesson.not_yet("scale-frozen", when=when)
    if id(layer.mean) in names:
        raise lesson.not_yet("mean-trains" if layer.mean.requires_grad else "mean-frozen", when=when)
    if id(layer.scratch) in names:
        raise lesson.not_yet("scratch-parameter", when=when)
    if others := [name for number, name in names.items() if number not in scale]:
        raise lesson.not_yet("more-parameters", when=when, names=", ".join(others))
    if own.keys() != names.keys():
        raise lesson.not_yet("hidden-parameters", when=when, names=", ".join(names.values()))
    for name in ("mean", "scratch"):
        value = getattr(layer, name)
        if isinstance(value, torch.Tensor) and value.is_leaf and value.requires_grad:
            raise lesson.not_yet("flag", when=when, name=name)


def _moved(layer, size):
    run(lambda: _whole(layer).double())
    left = [name for name in NAMES if getattr(layer, name).dtype != torch.float64]
    if left:
        raise lesson.not_yet("not-moved", names=" and ".join(left))
    result = _called(layer, torch.ones(2, size, dtype=torch.float64))
    if isinstance(result, torch.Tensor) and result.dtype != torch.float64:
        raise lesson.not_yet("result-dtype-double", dtype=result.dtype)


def _called(layer, x, recording=True):
    """What a call gives, of which nothing is left on x, on scale, or as history."""
    before, asks, parameters = x.detach().clone(), x.requires_grad, list(_whole(layer).parameters())
    scale = layer.scale.detach().clone()
    with torch.set_grad_enabled(recording):
        given = run(layer, x)
    if not torch.equal(before, x.detach()):
        raise lesson.not_yet("x-changed")
    if x.requires_grad != asks:
        raise lesson.not_yet("x-flag")
    _kinds(layer, "After a call ")
    if any(new is not old for new, old in zip(_whole(layer).parameters(), parameters, strict=True)):
        raise lesson.not_yet("other-scale")
    if not torch.equal(layer.scale.detach(), scale):
        raise lesson.not_yet("scale-changed")
    for name in ("mean", "scratch"):
        value = getattr(layer, name)
        if not isinstance(value, torch.Tensor) or value.shape != scale.shape:
            shape = f"the shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else kind(value)
            raise lesson.not_yet("shape", name=name, wanted=tuple(scale.shape), given=shape)
        if value.dtype != x.dtype:
            raise lesson.not_yet("dtype", name=name, dtype=value.dtype, wanted=x.dtype)
        if value.is_inference():
            raise lesson.not_yet("inference", name=name)
        if value.requires_grad:
            raise lesson.not_yet(f"{name}-history")
    return given


def _trains(layer, size, asks, recording):
    """Train mode: scratch, then mean, then the result."""
    layer.train()
    _fill(layer)
    where = "" if recording else "under no_grad "
    mean = last = torch.zeros(size)
    for rows in (4, 2, 3):
        x = (torch.randn(rows, size) + 3).requires_grad_(asks)
        given = _called(layer, x, recording)
        batch, old = x.detach().mean(0), mean
        mean = 0.9 * old + 0.1 * batch
        wrong = {"sum": x.detach().sum(0), "all": x.detach().mean().expand(size), "unmoved": last}
        _near("scratch", layer, batch, wrong, where)
        last = batch
        _near("mean", layer, mean, {"batch": batch, "swapped": 0.1 * old + 0.9 * batch, "unmoved": old}, where)
        _result(given, x, old, layer)
        if recording:
            _gradients(given, x, layer, "train")


def _one_row(layer, size):
    layer.train()
    _fill(layer)
    _called(layer, torch.randn(4, size) + 3)
    x, old = torch.randn(1, size) + 3, layer.mean.detach().clone()
    given = _called(layer, x)
    for name, wanted in (("scratch", x[0]), ("mean", 0.9 * old + 0.1 * x[0])):
        if not torch.allclose(getattr(layer, name), wanted, **NEAR):
            raise lesson.not_yet("one-row", name=name)
    _result(given, x, old, layer)


def _holds(layer, size, recording):
    """Eval mode: the same result, and nothing moves."""
    layer.train()
    _fill(layer)
    _called(layer, torch.randn(4, size) + 3)
    layer.eval()
    before = {name: getattr(layer, name).detach().clone() for name in ("mean", "scratch")}
    x = (torch.randn(2, size) + 3).requires_grad_(recording)
    given = _called(layer, x, recording)
    for name, value in before.items():
        if not torch.equal(getattr(layer, name), value):
            raise lesson.not_yet("eval-moved", name=name, where="" if recording else "under no_grad ")
    _result(given, x, None, layer)
    if recording:
        _gradients(given, x, layer, "eval")


def _fill(layer):
    """Give scale numbers that are not all the same, as training would."""
    with torch.no_grad():
        for parameter in _whole(layer).parameters():
            parameter.copy_(torch.arange(2.0, 2.0 + parameter.numel()).view_as(parameter))


def _near(name, layer, wanted, wrong, where):
    value = getattr(layer, name)
    if not torch.allclose(value, wanted, **NEAR):
        why = [told for told, number in wrong.items() if torch.allclose(value, number, **NEAR)]
        raise lesson.not_yet(f"{name}-{why[0] if why else 'other'}", where=where)


def _result(given, x, old, layer):
    """Of the layer's own mean and scale, which are right by now; ``old`` is the mean before a call in train mode."""
    x, scale, mean = x.detach(), layer.scale.detach(), layer.mean.detach()
    wanted = (x - mean) * scale
    if not isinstance(given, torch.Tensor) or given.shape != wanted.shape:
        found = f"the shape {tuple(given.shape)}" if isinstance(given, torch.Tensor) else kind(given)
        raise lesson.not_yet("result-shape", wanted=tuple(wanted.shape), given=found)
    if given.dtype != wanted.dtype:
        raise lesson.not_yet("result-dtype", wanted=wanted.dtype, dtype=given.dtype)
    wrong = {
        "scaled-first": x * scale - mean,
        "divided": (x - mean) / scale,
        "no-scale": x - mean,
        "batch": (x - x.mean(0)) * scale,
        "normalized": (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt() * scale,
    }
    wrong |= {} if old is None else {"old-mean": (x - old) * scale}
    if not torch.allclose(given, wanted, rtol=1e-5, atol=1e-5):
        why = [told for told, number in wrong.items() if torch.allclose(given, number, rtol=1e-5, atol=1e-5)]
        raise lesson.not_yet(f"result-{(why or ['other' if old is not None else 'eval'])[0]}", scale=scale.tolist())


def _gradients(given, x, layer, mode):
    if not given.requires_grad:
        raise lesson.not_yet("result-no-grad")
    leaves = [*_whole(layer).parameters(), *([x] if x.requires_grad else [])]
    wanted = torch.autograd.grad(((x - layer.mean) * layer.scale).square().sum(), leaves)
    found = run(lambda: torch.autograd.grad(given.square().sum(), leaves, allow_unused=True))
    for leaf, one, other in zip(leaves, found, wanted, strict=True):
        if one is None or not torch.allclose(one, other, rtol=1e-4, atol=1e-4):
            raise lesson.not_yet("gradient", mode=mode, name="x" if leaf is x else "scale")


def _trains_only_scale(layer, size):
    _whole(layer).requires_grad_(True)
    run(layer.train(), torch.randn(4, size) + 3).sum().backward()
    before = {name: getattr(layer, name).detach().clone() for name in NAMES}
    _step(_whole(layer))
    moved = [name for name, value in before.items() if not torch.equal(value, getattr(layer, name))]
    if moved != ["scale"]:
        raise lesson.not_yet("step", moved=", ".join(moved) or "nothing")


def _saves(layer, twin, size):
    layer.train()
    for _ in range(2):
        run(layer, torch.randn(4, size) + 3)
    _fill(layer)
    state = run(lambda: _whole(layer).state_dict())
    scratch, mean = layer.scratch.detach().clone(), layer.mean.detach().clone()
    if any(isinstance(value, torch.Tensor) and torch.equal(value, scratch) for value in state.values()):
        raise lesson.not_yet("scratch-saved")
    _load(twin, state)
    if not torch.equal(twin.mean, mean):
        raise lesson.not_yet("mean-not-saved")
    if not torch.equal(twin.scale, layer.scale):
        raise lesson.not_yet("scale-not-saved")
    if not (twin.scratch == 0).all():
        raise lesson.not_yet("scratch-back")
    x = torch.randn(4, size) + 3
    if not torch.allclose(run(layer, x), run(twin.train(), x), atol=1e-4):
        raise lesson.not_yet("other-result")
    _load(layer, state, "A used")
    run(layer, torch.ones(2, size, requires_grad=True) * 2)
    try:
        copy.deepcopy(layer)
    except RuntimeError:
        raise lesson.not_yet("deepcopy") from None
