"""The exercises and predictions of the lesson on parameters."""

import copy
import itertools
import textwrap
from collections.abc import Mapping

import torch
from torch import nn

from helpers.lessons.exercises import RAISES, Lesson, NotYet, kind, run, table, taken

lesson = Lesson()
check, predict, progress = lesson.check, lesson.predict, lesson.progress

lesson.prediction(
    "table",
    {
        (True, False, False): "tensor asks and gets a gradient, yet parameters() does not give it to the optimizer.",
        (False, True, False): "The layer in the list is a module, but nobody told the model: it does not look inside.",
        (False, False, True): "doubled began as a Parameter. What .double() returned is none: see its first column.",
        (True, True, True): "All three took part. The optimizer moves what parameters() gives: see that column.",
        (True, True, False): "To ask, or to be a layer, is not enough: the optimizer moves what parameters() gives.",
        (
            True,
            False,
            True,
        ): "Asking is not enough: look at the column parameters(), from which the optimizer was made.",
        (
            False,
            True,
            True,
        ): "Of a Parameter and from a Parameter: but does the model know them? Look at the column parameters().",
    },
)
lesson.prediction(
    "double",
    {
        (False, False): "With float32 there is nothing to convert: .to() returns the Parameter itself.",
        (True, True): "A conversion is an operation: its result is a plain tensor, which a module does not register.",
        (False, True): "It is the other way round: a new tensor is float32, so only float64 makes a new one.",
    },
)
lesson.prediction(
    "buffer",
    {
        False: "The name stays registered: of a plain tensor assignment asks whether the name is a buffer's.",
        RAISES: "That is what happens at a Parameter's name. A plain tensor is just what a buffer is.",
    },
)
lesson.prediction(
    "frozen-or-buffer",
    {
        (
            True,
            False,
            False,
        ): "Frozen are the flags. The layer writes to its statistics in forward, without a gradient.",
        (True, True, True): "requires_grad_ of a module goes through parameters(), and a buffer is not among them.",
        (True, True, False): "requires_grad_ reaches Parameters only, and forward changes BatchNorm's buffers.",
        (False, False, True): "Freezing does not last: one call for the whole module reaches every Parameter.",
        (False, False, False): "A frozen Parameter is still a Parameter, and BatchNorm's statistics need no gradient.",
        (False, True, False): "It is the other way round: requires_grad_ of a module reaches Parameters, not buffers.",
        (
            False,
            True,
            True,
        ): "The last is right. requires_grad_ of a module reaches Parameters, frozen or not, no buffers.",
    },
)
lesson.prediction(
    "tied",
    {
        (2, 2, True): "Two layers, two names, but one object: count objects, and look whose flag was set.",
        (2, 2, False): "named_parameters() gives each object once, under its first name.",
        (1, 1, False): "It is one object, yet each layer saves its own entry: state_dict() has both names.",
        (1, 2, True): "The names are right. Freezing 1 sets a flag of the one Parameter that both layers have.",
        (1, 1, True): "One object, then: so it has one flag. And state_dict() has an entry for each name.",
        (2, 1, False): "It is the other way round: named_parameters() gives each object once, state_dict() each name.",
        (2, 1, True): "named_parameters() gives each object once, state_dict() each name: and one object has one flag.",
    },
)


@lesson.exercise(
    "what-registers",
    follows="A module knows what it was given as a Parameter, buffer or module, whatever its flag; the class of the "
    "value that is assigned decides, not where it came from.",
)
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
        answer = {name: tuple(pair) if isinstance(pair, list) else pair for name, pair in answer.items()}
        for name, pair in answer.items():
            empty = pair is ... or (isinstance(pair, tuple) and any(part is ... for part in pair))
            if not empty and not (isinstance(pair, tuple) and len(pair) == 2 and all(map(_is_verdict, pair))):
                yours = list(pair) if isinstance(pair, tuple) else kind(pair)
                raise NotYet(f"Row {name!r} takes True or False twice, such as [True, False]; yours is {yours}.")
    beliefs = {
        ("same", (False, False)): "same was float32 already: .to() had nothing to convert and returned the Parameter.",
        ("same", (False, True)): "same is the Parameter itself, and no buffer: .to() had nothing to convert.",
        ("same", (True, False)): "same is a Parameter that the module knows, and each of those is saved as well.",
        ("half", (True, True)): "half was computed from a Parameter, and the result of an operation is a plain tensor.",
        ("half", (True, False)): "half asks for a gradient, but it is a result, and results are not registered.",
        ("half", (False, True)): "half is a plain tensor, an ordinary attribute: nothing saves it.",
        ("frozen", (False, True)): "Freezing sets a flag. A frozen Parameter is still one, and parameters() gives it.",
        ("frozen", (False, False)): "Neither parameters() nor state_dict() looks at the flag of frozen.",
        ("frozen", (True, False)): "What is not trained is saved all the same: a Parameter is saved, frozen or not.",
        ("empty", (True, True)): "empty is a place with nothing in it: there is no tensor to train or to save.",
        ("empty", (False, True)): "The place of empty is registered, but there is nothing in it to save.",
        ("empty", (True, False)): "None is no Parameter: parameters() passes by an empty place.",
        ("fixed", (True, True)): "fixed is a buffer: saved, and in buffers(), but not in parameters().",
        ("fixed", (False, False)): "fixed is a buffer, and a buffer is saved unless it was told otherwise.",
        ("fixed", (True, False)): "It is the other way round: a buffer is saved, and never in parameters().",
        ("cache", (False, True)): "persistent=False says that cache is not saved. It is still moved.",
        ("cache", (True, False)): "Not to be saved does not make cache a Parameter: a buffer is in no parameters().",
        ("cache", (True, True)): "cache is a buffer, so not in parameters(), and persistent=False, so not saved.",
        (
            "layers",
            (True, True),
        ): "The module does not look into a dictionary. The layer knows its weights, but who knows it?",
        ("layers", (False, True)): "What the module does not register is not saved either.",
        ("layers", (True, False)): "The module does not look into a dictionary, and gives nothing of what is in it.",
        ("steps", (False, False)): "A ParameterList makes a Parameter of a plain tensor, and is a module itself.",
        ("steps", (False, True)): "What a ParameterList holds are Parameters, even if they came as plain tensors.",
        ("steps", (True, False)): "A ParameterList is a module in the module: its Parameters are saved as well.",
    }
    table(answer, seen, beliefs)


@lesson.exercise(
    "hidden-heads",
    follows="A network in which every container is a module can be trained, moved and saved as a whole. "
    "audit() of helpers finds layers that hide in a list or dictionary.",
)
def hidden_heads(answer):
    for size, tasks in ((6, {"color": 3, "shape": 2, "size": 3}), (5, {"age": 1, "color": 3, "place": 2})):
        given = dict(tasks)
        model = _made(answer, "answer(dim, tasks)", size, given)
        if given != tasks:
            raise NotYet("Your code changes the dictionary tasks, which is not its own.")
        model.train()
        x = torch.randn(6, size)
        scores = _scores(model, x, tasks)
        if not _equal(scores, _scores(model, x, tasks)):
            raise NotYet(
                "The same x gives other scores in the next call. Are layers made in forward? Is anything random?"
            )
        model.eval()
        if not _equal(scores, _scores(model, x, tasks, "In eval mode: ")):
            raise NotYet("In eval mode the same x gives other scores than in train mode.")
        _registered(model, scores, size, tasks)
        _each_its_own(model, x, tasks)
        _with_relu(model, x, tasks)
        _saved_and_moved(model, answer, x, size, tasks)


@lesson.exercise(
    "running-mean",
    follows="BatchNorm is built like this: a weight that trains, running statistics as buffers. That is why freezing "
    "its weights leaves its statistics moving, and why eval() is needed as well.",
)
def running_mean(answer):
    for size in (3, 1):
        _own_tensors(_layer(answer, size), _layer(answer, size))
        layer = _layer(answer, size)
        _starts_right(layer, size)
        _kinds(layer)
        _moved(_layer(answer, size), size)
        for mode in ("", "in eval mode ", "under no_grad "):
            _computes(_layer(answer, size), size, mode)
        _trains_only_scale(_layer(answer, size), size)
        _saves(layer, _layer(answer, size), size)


def _is_verdict(value):
    return isinstance(value, bool)


def _scores(model, x, tasks, when=""):
    before = x.clone()
    try:
        scores = run(model, x)
    except NotYet as reason:
        raise NotYet(f"{when}{reason}") from reason
    if not torch.equal(before, x):
        raise NotYet("forward changes x itself, which is not its own.")
    if not isinstance(scores, Mapping) or set(scores) != set(tasks):
        raise NotYet(
            f"{when}forward(x) should give a dictionary with the scores of {', '.join(tasks)}; it gives {kind(scores)}."
        )
    for task, found in scores.items():
        if not isinstance(found, torch.Tensor) or found.shape != (len(x), tasks[task]):
            shape = f"the shape {tuple(found.shape)}" if isinstance(found, torch.Tensor) else kind(found)
            raise NotYet(f"For {len(x)} rows {task!r} should have the shape {(len(x), tasks[task])}; it has {shape}.")
        if not found.isfinite().all():
            raise NotYet(f"The scores of {task!r} are not all finite numbers.")
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


def _registered(model, scores, size, tasks):
    used = _leaves(scores.values())
    known = {id(parameter) for parameter in taken(run(lambda: model.parameters()), "parameters")}
    found = [leaf for leaf in used if id(leaf) in known]
    wanted = sum((size + 1) * 4 + (4 + 1) * n for n in tasks.values())
    if not used:
        raise NotYet("The scores do not ask for a gradient: nothing that forward uses can be trained.")
    if not known:
        if any(isinstance(part, nn.ParameterDict | nn.ParameterList) for part in model.modules()):
            raise NotYet(
                "parameters() is empty. A ParameterDict or ParameterList makes Parameters of tensors; it does not look "
                "into a list that it holds. For layers there are other containers."
            )
        if {id(leaf) for leaf in used} & set(map(id, model.buffers())):
            raise NotYet("You registered the weights as buffers: they are moved and saved, and no optimizer gets them.")
        held = [
            value for name, value in vars(model).items() if isinstance(value, list | tuple | dict) and name[0] != "_"
        ]
        inner = [part for value in held for part in (value.values() if isinstance(value, dict) else value)]
        if any(isinstance(part, nn.Module) for part in inner):
            raise NotYet(
                "parameters() is empty. You made modules of the inner containers, but they sit in a plain list or "
                "dictionary, and the network does not look into that."
            )
        raise NotYet(
            "parameters() is empty: an optimizer has nothing to move. The network looks at the class of what is "
            "assigned to it, and a list or dictionary is not of nn."
        )
    if not found:
        raise NotYet(
            "parameters() has something, but forward uses other layers. Register the very layers that forward calls, "
            "not copies of them."
        )
    if len(found) < len(used):
        raise NotYet(
            f"Of the {len(used)} tensors that forward trains, parameters() has {len(found)}. Which layers still sit in "
            "a plain list or dictionary?"
        )
    numbers = sum(leaf.numel() for leaf in used)
    if numbers != wanted:
        why = "Does each task have two layers of its own?" if numbers < wanted else "Are there more layers than before?"
        raise NotYet(f"forward uses {numbers} numbers that train, and the heads have {wanted}. {why}")
    spare = len(known) - len(found)
    if spare:
        raise NotYet(
            f"parameters() has {spare} that forward never uses: layers that are registered and idle are saved and "
            "counted, and never learn."
        )


def _with_relu(model, x, tasks):
    for factor in (1, 1000):  # large numbers: some functions bend again there
        found, mirrored, middle = (_scores(model, sign * factor * x, tasks) for sign in (1, -1, 0))
        for task, n in tasks.items():
            parts = {tuple(sorted(leaf.shape)): leaf.detach() for leaf in _leaves([found[task]])}
            shapes = [(4, x.shape[1]), (4,), (n, 4), (n,)]
            if parts.keys() == set(shapes):  # two linear layers, transposed or not
                first, shift, last, bias = (parts[shape] for shape in shapes)
                first, last = first if len(first) == 4 else first.T, last if len(last) == n else last.T
                wanted = (factor * x @ first.T + shift).relu() @ last.T + bias
                same = torch.allclose(found[task] / factor, wanted / factor, atol=1e-4)
            else:  # other forms of the weights: not a straight line, at least
                bend = found[task] + mirrored[task] - 2 * middle[task]
                same = factor == 1 or bend.abs().max() > 1e-3 * found[task].abs().max()
            if not same:
                raise NotYet(f"The scores of {task!r} are not those of two linear layers with a ReLU between them.")


def _each_its_own(model, x, tasks):
    for task in tasks:
        before = {name: score.detach().clone() for name, score in _scores(model, x, tasks).items()}
        model.zero_grad()
        _scores(model, x, tasks)[task].sum().backward()
        _step(model)
        after = _scores(model, x, tasks)
        others = [name for name in tasks if name != task and not torch.equal(before[name], after[name])]
        if others:
            raise NotYet(
                f"A step on the loss of {task!r} changed the scores of {others[0]!r}: the two heads share a layer. "
                "Make new layers for each task."
            )
        if torch.equal(before[task], after[task]):
            raise NotYet(f"A step on the loss of {task!r} did not change its scores.")


def _saved_and_moved(model, answer, x, size, tasks):
    scores = _scores(model, x, tasks)
    state = run(lambda: model.state_dict())
    twin = _made(answer, "answer(dim, tasks)", size, dict(tasks))
    memory = [{parameter.data_ptr() for parameter in network.parameters()} for network in (model, twin)]
    if memory[0] & memory[1]:
        raise NotYet("Two networks share layers: training one changes the other. Make new layers in each __init__.")
    _load(twin, state)
    if not _equal(scores, _scores(twin, x, tasks)):
        raise NotYet(
            f"It trains, but a new network that loads the state_dict() gives other scores: there are {len(state)} "
            "entries in it. What only parameters() gives is not saved: let the network register it."
        )
    run(lambda: twin.double())
    doubled = _scores(twin, x.double(), tasks, "After double(), with a double x: ")
    for task, found in doubled.items():
        if found.dtype != torch.float64 or not torch.allclose(found, scores[task].double(), atol=1e-4):
            raise NotYet(f"After double() the scores of {task!r} are {found.dtype}: some layer was left behind.")
    moved = _made(answer, "answer(dim, tasks)", size, dict(tasks))
    # New Parameters, as a move to "meta" makes them; forward there imports a compiler first, which takes seconds.
    run(lambda: moved.load_state_dict(state, assign=True))
    if not _equal(scores, _scores(moved, x, tasks)):
        raise NotYet(
            'A move such as to("meta") puts new Parameters into what is registered, and so does load_state_dict(..., '
            "assign=True): after it forward still uses the old ones. Register the layers, not only their Parameters."
        )


def _step(module):
    """A step of plain SGD; that of torch.optim imports a compiler first, which takes seconds."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad


def _load(module, state, which="A new"):
    try:
        module.load_state_dict(copy.deepcopy(state))
    except Exception as error:
        why = textwrap.shorten(" ".join(str(error).splitlines()[1:]) or str(error), 150, placeholder=" ...")
        raise NotYet(f"{which} {type(module).__name__} does not load the state_dict(): {why}") from error


def _made(answer, call, *args):
    if isinstance(answer, nn.Module):
        raise NotYet(f"The check makes modules of its own: give it the class itself, not {kind(answer)} made from it.")
    made = run(answer, *args)
    if isinstance(made, type) or not isinstance(made, nn.Module):
        raise NotYet(f"{call} should give an nn.Module; it gives {kind(made)}.")
    return made


def _layer(answer, size):
    return _made(answer, "answer(size)", size)


def _own_tensors(layer, other):
    names = ("scale", "mean", "scratch")
    for name in names:
        value, another = getattr(layer, name, None), getattr(other, name, None)
        if not isinstance(value, torch.Tensor):
            raise NotYet(f"The layer should have a tensor {name!r}; there it has {kind(value)}.")
        if isinstance(another, torch.Tensor) and value.numel() and value.data_ptr() == another.data_ptr():
            raise NotYet(f"Two layers have the same tensor as {name}. Make a new one in each __init__.")
    for one, two in itertools.combinations(names, 2):
        if getattr(layer, one).data_ptr() == getattr(layer, two).data_ptr() != 0:
            raise NotYet(f"{one} and {two} are one tensor: what is written into one is in the other. Make two.")


def _starts_right(layer, size):
    for name, start in (("scale", 1.0), ("mean", 0.0), ("scratch", 0.0)):
        value = getattr(layer, name)
        if value.dtype != torch.float32:
            raise NotYet(f"{name} should be float32 at first, as new tensors are; yours is {value.dtype}.")
        if value.shape != (size,):
            raise NotYet(f"{name} should have the shape ({size},); yours has {tuple(value.shape)}.")
        if not (value == start).all():
            raise NotYet(f"{name} should be {size} numbers, all {start} at first; yours is {value.tolist()}.")


def _kinds(layer, when=""):
    names = {id(p): name for name, p in taken(run(lambda: layer.named_parameters()), "parameters")}
    own = {id(leaf) for leaf in [layer.scale, *_leaves([layer.scale])]}
    if not own & names.keys():
        what = (
            "a buffer is not trained" if id(layer.scale) in map(id, layer.buffers()) else "only a Parameter is trained"
        )
        raise NotYet(f"{when}scale is not in parameters(), so no optimizer will move it: {what}.")
    if not layer.scale.requires_grad:
        raise NotYet(f"{when}scale is frozen: it should ask for a gradient.")
    if id(layer.mean) in names:
        frozen = "It is frozen now, but one requires_grad_(True) on the layer makes it train."
        asks = "It asks for a gradient, so an optimizer would train it."
        raise NotYet(
            f"{when}mean is in parameters(). {asks if layer.mean.requires_grad else frozen} Which kind of tensor is "
            "saved and never trained?"
        )
    if id(layer.scratch) in names:
        raise NotYet(f"{when}scratch is in parameters(): it would be saved, and trained after requires_grad_(True).")
    others = [name for number, name in names.items() if number not in own]
    if others:
        raise NotYet(f"{when}parameters() also has {', '.join(others)}: only scale should train.")


def _moved(layer, size):
    run(lambda: layer.double())
    left = [name for name in ("scale", "mean", "scratch") if getattr(layer, name).dtype != torch.float64]
    if left:
        raise NotYet(
            f"{' and '.join(left)} stayed float32 when the layer was converted by double(), and would stay on the CPU: "
            "a plain attribute is not moved."
        )
    result = run(layer, torch.ones(2, size, dtype=torch.float64))
    if isinstance(result, torch.Tensor) and result.dtype != torch.float64:
        raise NotYet(f"After double() the result for a double x is {result.dtype}.")


def _computes(layer, size, mode):
    asks = mode == "in eval mode "
    layer.train(not asks)
    _fill(layer)
    parameters, scale = list(layer.parameters()), layer.scale.detach().clone()
    mean = last = torch.zeros(size)
    for rows in (4, 2):
        x = (torch.randn(rows, size) + 3).requires_grad_(asks)
        before = x.detach().clone()
        with torch.set_grad_enabled(mode != "under no_grad "):
            given = run(layer, x)
        if not torch.equal(before, x.detach()):
            raise NotYet("x itself was changed. Compute something new from it, without in-place operations.")
        if x.requires_grad != asks:
            raise NotYet(
                "A call changed the flag of x, which is to be left as it is. detach() gives another tensor to use."
            )
        _kinds(layer, "After a call ")
        if any(new is not old for new, old in zip(layer.parameters(), parameters, strict=True)):
            raise NotYet("After a call scale is another Parameter: an optimizer made before still holds the old one.")
        if not torch.equal(layer.scale.detach(), scale):
            raise NotYet("A call changed the numbers of scale: only an optimizer should.")
        batch, old = before.mean(0), mean
        mean = 0.9 * old + 0.1 * batch
        wrong = {
            "the sum over the rows": before.sum(0),
            "the mean over all": before.mean(),
            "what it was before the call": last,
        }
        _near("scratch", layer, batch, wrong, mode)
        last = batch
        wrong = {
            "the mean of this batch alone": batch,
            "0.1 * mean + 0.9 * scratch": 0.1 * old + 0.9 * batch,
            "what it was before the call": old,
        }
        _near("mean", layer, mean, wrong, mode)
        histories = {
            "mean": "it has a history that grows with every batch. A buffer is recorded like any tensor.",
            "scratch": "it was computed from an x that asks, and a buffer is recorded like any tensor.",
        }
        for name, why in histories.items():
            if getattr(layer, name).requires_grad:
                raise NotYet(f"After a call {name} asks for a gradient: {why}")
            if getattr(layer, name).is_inference():
                raise NotYet(
                    f"After a call {name} is a tensor of inference_mode: nothing outside of that mode may write into "
                    "it, load_state_dict neither. no_grad is enough."
                )
        _result(given, x, mean, old, layer)
        if mode != "under no_grad ":
            _gradients_of(given, x, mean, layer)


def _fill(layer):
    """Give scale numbers that are not all the same, as training would."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.arange(2.0, 2.0 + parameter.numel()).view_as(parameter))


def _result(given, x, mean, old, layer):
    x, scale = x.detach(), layer.scale.detach()
    wanted = (x - mean) * scale
    if not isinstance(given, torch.Tensor) or given.shape != wanted.shape:
        raise NotYet(f"layer(x) should give a tensor of the shape of x, {tuple(wanted.shape)}, not {kind(given)}.")
    if given.dtype != wanted.dtype:
        raise NotYet(f"The result for an x of {wanted.dtype} is {given.dtype}.")
    wrong = {
        "yours uses none, or the mean as it was before this call": (x - old) * scale,
        "yours scales x before the mean is subtracted": x * scale - mean,
        "yours divides by scale": (x - mean) / scale,
        "yours does without scale": x - mean,
        "yours uses the mean of this batch": (x - x.mean(0)) * scale,
    }
    if not torch.allclose(given, wanted, atol=1e-4):
        why = [told for told, number in wrong.items() if torch.allclose(given, number, atol=1e-4)]
        what = why[0] if why else f"for scale {scale.tolist()} yours gives other numbers"
        raise NotYet(f"The result should be (x - mean) * scale, with the new mean; {what}.")


def _gradients_of(given, x, mean, layer):
    if not given.requires_grad:
        raise NotYet("The result does not ask for a gradient, so scale cannot train. Was it computed under no_grad?")
    leaves = [*layer.parameters(), *([x] if x.requires_grad else [])]
    wanted = torch.autograd.grad(((x - mean) * layer.scale).sum(), leaves)
    found = run(lambda: torch.autograd.grad(given.sum(), leaves, allow_unused=True))
    for leaf, one, other in zip(leaves, found, wanted, strict=True):
        if one is None or not torch.allclose(one, other, atol=1e-4):
            name = "x" if leaf is x else "scale"
            raise NotYet(f"The gradient of {name} is not that of (x - mean) * scale with mean as a constant.")


def _near(name, layer, wanted, wrong, mode):
    value = getattr(layer, name)
    if not isinstance(value, torch.Tensor) or value.shape != wanted.shape:
        shape = f"the shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else kind(value)
        raise NotYet(f"After a call {name} should have the shape {tuple(wanted.shape)}; it has {shape}.")
    if value.dtype != wanted.dtype:
        raise NotYet(f"After a call {name} is {value.dtype}, though the layer and x are {wanted.dtype}.")
    if not torch.allclose(value.detach(), wanted, atol=1e-4):
        why = [
            f": yours is {told}" for told, number in wrong.items() if torch.allclose(value.detach(), number, atol=1e-4)
        ]
        raise NotYet(f"After a call {mode}{name} is not what it should be{why[0] if why else ''}.")


def _trains_only_scale(layer, size):
    layer.requires_grad_(True)
    run(layer, torch.randn(4, size) + 3).sum().backward()
    before = {name: getattr(layer, name).detach().clone() for name in ("scale", "mean", "scratch")}
    _step(layer)
    moved = [name for name, value in before.items() if not torch.equal(value, getattr(layer, name))]
    if moved != ["scale"]:
        raise NotYet(f"A step after requires_grad_(True) moved {', '.join(moved) or 'nothing'}: it should move scale.")


def _saves(layer, twin, size):
    for _ in range(2):
        run(layer, torch.randn(4, size) + 3)
    _fill(layer)
    state = run(lambda: layer.state_dict())
    scratch, mean = layer.scratch.detach().clone(), layer.mean.detach().clone()
    if any(isinstance(value, torch.Tensor) and torch.equal(value, scratch) for value in state.values()):
        raise NotYet("scratch is in state_dict(): a buffer is saved unless it is told otherwise.")
    _load(twin, state)
    if not torch.equal(twin.mean, mean):
        raise NotYet("mean was not saved: a new layer that loads the state_dict() does not have it.")
    if not torch.equal(twin.scale, layer.scale):
        raise NotYet("scale was not saved: a new layer that loads the state_dict() does not have it.")
    if not (twin.scratch == 0).all():
        raise NotYet("scratch came back with load_state_dict(): it should not be saved.")
    x = torch.randn(4, size) + 3
    if not torch.allclose(run(layer, x), run(twin, x), atol=1e-4):
        raise NotYet(
            "A new layer that loads the state_dict() gives another result for the same x: forward uses something "
            "that is not loaded, or that two layers share."
        )
    _load(layer, state, "A used")
    run(layer, torch.ones(2, size, requires_grad=True) * 2)
    try:
        copy.deepcopy(layer)
    except RuntimeError:
        raise NotYet(
            "copy.deepcopy does not copy a layer that was called: it keeps a tensor that has a history."
        ) from None
