"""The exercises and predictions of the lesson on unfreezing step by step."""

import copy
import warnings
from collections import Counter

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from helpers import freeze, saved_tensors
from helpers.lessons import digits
from helpers.lessons.exercises import Lesson, NotYet, changed, facts, kind, raises, run, table

lesson = Lesson()
check, predict, progress = lesson.check, lesson.predict, lesson.progress

lesson.prediction(
    "depth",
    {
        75: "That is their share of the parameters. What is kept are outputs, and those of the late layers are small.",
        100: "The forward pass is the same, but it keeps only what backward will need.",
        0: "Nothing is kept only where nothing trains.",
    },
    otherwise="What is kept are outputs of layers, from the first trainable one on.",
)
lesson.prediction(
    "worth",
    {"the rest": "It has most of the layers, but what they know of the old digits serves the new ones as well."},
    otherwise='It is one of the two: "layer4" or "the rest".',
)
lesson.prediction(
    "group",
    {
        (2, 2): "A new optimizer is given parameters, not what another one remembers of them.",
        (0, 0): "add_param_group leaves the state alone: fc has been stepped, and keeps its momentum.",
        (11, 0): "Momentum comes with the first step: those of layer4 have had none.",
        (11, 11): "Momentum comes with the first step, in a new optimizer too.",
        (11, 2): "A new optimizer remembers nothing, and those of layer4 have had no step.",
    },
    otherwise="fc has two parameters, and they alone have been stepped, by the first optimizer.",
)
lesson.prediction(
    "rates",
    {
        (True, True): "LambdaLR computes from the rates that it noted when it was built, when there was one group.",
        (False, False): "StepLR notes nothing: it multiplies the rate that each group has at the time.",
        (True, False): "The other way round: StepLR multiplies what is there, LambdaLR computes from what it noted.",
    },
)
lesson.prediction(
    "low-rank-step",
    {
        (True, True, False): "Both ask, but the gradient of A goes through B, which is zero: it is zero as well.",
        (True, False, False): "The other way round: zeros times a gradient stay zeros, and B is what is zero.",
        (True, True, True): "The frozen weight has no gradient, so nothing moves it; and that of A is zero at first.",
        (False, False, False): "The term is zero, but its gradient for B is not: A @ x is not zero.",
    },
)
lesson.prediction(
    "reentrant",
    {
        (True, True): "So it should be. But this way of checkpoint runs the blocks under no_grad, and its result asks "
        "for a gradient only if an input does.",
        (False, False): "The head is outside of checkpoint, and its own parameters ask.",
        (True, False): "The head comes last: backward reaches it first.",
    },
)
lesson.prediction(
    "bfloat16",
    {
        (True, True): "Between 1 and the next smaller number in bfloat16 lie 0.0039: a step of 0.001 is rounded away.",
        (False, False): "float32 has some seven digits: 0.999 is one of its numbers.",
        (False, True): "The other way round: bfloat16 is the one with few digits.",
    },
)


@lesson.exercise(
    "what-each-choice-costs",
    follows="Three questions for each choice: where does the recorded graph begin, what does each step of backward "
    "need, and what does a gradient of zero teach. Few trained numbers do not mean few kept ones.",
)
def what_each_choice_costs(answer):
    everything, (first, second) = _kept("0.", "2.", "4."), _low_rank_moves()
    beliefs = {
        (
            "only first: keeps as many bytes as all",
            False,
        ): "A gradient reaches the first layer through all that come after it. Each ReLU keeps its output, which is "
        "the very tensor that a trained layer behind it would keep.",
        (
            "only last: a layer before it keeps something",
            True,
        ): "Nothing before last asks, nor does x: the graph begins at last.",
        (
            "biases only: keeps fewer bytes than all",
            False,
        ): "The gradient of a bias needs no input, so first does not keep x. The ReLUs keep their outputs, as before.",
        (
            "after freeze(norm), requires_grad_(True) and train(): running_mean moves",
            False,
        ): "freeze() holds a layer in eval mode while it is frozen, and looks again at each train(). With its weight "
        "trainable, this one is held no more.",
        (
            "low rank, first step: A moves",
            True,
        ): "The gradient of A is a product with B, and B is zero: A gets a gradient of zeros.",
        (
            "low rank, second step: A moves",
            False,
        ): "B moved in the first step, since A is not zero. With B the gradient of A is no longer zero.",
        (
            "checkpoint, use_reentrant=True: second gets a gradient",
            True,
        ): "The old kind runs second without recording, and looks only at its input to see whether anything asks. "
        "That input comes out of a frozen layer.",
        (
            "checkpoint, use_reentrant=True: second gets a gradient",
            "raises",
        ): "last asks and gets its gradient, so backward() has something to do: no error tells you.",
        (
            "autocast: the gradient of last.weight is float32",
            False,
        ): "autocast makes copies in bfloat16 for the products. The weight stays float32, and .grad has its type.",
    }
    seen = (
        _kept("0.") == everything,
        bool(_kept("4.").keys() - {"4"}),
        sum(_kept("bias").values()) < sum(everything.values()),
        _norm_moves(),
        first,
        second,
        raises(_reentrant_reaches),
        _under_autocast() is torch.float32,
    )
    table(answer, dict(zip(dict.fromkeys(row for row, _ in beliefs), seen, strict=True)), beliefs)


def _network():
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))


def _kept(*asking: str) -> dict[str, int]:
    """Bytes by layer, of a forward pass with those parameters asking that have one of these in their name."""
    model = _network()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in name for part in asking))
    with saved_tensors(model) as saved:
        model(torch.randn(8, 4))
    return saved.by_module


def _norm_moves():
    norm = nn.BatchNorm1d(4)
    freeze(norm)
    norm.requires_grad_(True).train()
    before = norm.running_mean.clone()
    norm(torch.randn(8, 4) + 1)
    return not torch.equal(norm.running_mean, before)


def _low_rank_moves():
    """Whether A moves in the first step, and in the second."""
    linear, x = nn.Linear(4, 4).requires_grad_(False), torch.randn(8, 4)
    A, B = nn.Parameter(torch.randn(2, 4)), nn.Parameter(torch.zeros(4, 2))
    optimizer, moves = torch.optim.SGD([A, B], lr=0.1), []
    for _ in range(2):
        before = A.detach().clone()
        optimizer.zero_grad()
        (linear(x) + x @ A.T @ B.T).square().mean().backward()
        optimizer.step()
        moves.append(not torch.equal(A, before))
    return moves


def _reentrant_reaches():
    first, relu, second, _, last = _network()
    first.requires_grad_(False)
    with warnings.catch_warnings(action="ignore"):
        output = checkpoint(second, relu(first(torch.randn(8, 4))), use_reentrant=True)
    last(relu(output)).sum().backward()
    return second.weight.grad is not None


def _under_autocast():
    model = _network().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(torch.randn(8, 4).float())
    output.sum().backward()
    return model[4].weight.grad.dtype


@lesson.exercise(
    "unfreeze-a-stage",
    follows="An optimizer that is given more keeps what it has. And a norm layer whose weights train is frozen no "
    "more: statistics that are to stand still need eval mode after each train().",
)
def unfreeze_a_stage(answer):
    # As the optimizer was built, with a rate that was lowered since, as a scheduler does, and with other settings.
    for rate, momentum, decay in ((0.05, 0.9, 0.0), (0.02, 0.9, 0.0), (0.02, 0.5, 0.01)):
        model = _with_a_new_head()
        optimizer = torch.optim.SGD(model.fc.parameters(), lr=0.05, momentum=0.9)
        _go_on(model, optimizer)
        optimizer.param_groups[0].update(lr=rate, momentum=momentum, weight_decay=decay)
        wanted, fresh = copy.deepcopy((model, optimizer)), copy.deepcopy((model, optimizer))
        fresh[1].state.clear()
        before, objects = _entries(model), dict(model.named_parameters())
        run(answer, model, optimizer)
        _asks_and_is_the_same(model, before, objects)
        held = Counter(id(p) for group in optimizer.param_groups for p in group["params"])
        if twice := [name for name, p in objects.items() if held[id(p)] > 1]:
            raise NotYet(f"The optimizer holds {twice[0]} twice, and would move it twice in each step.")
        states = _go_on(model, optimizer)
        _nothing_else_moved(before, states[-1])
        if any(part.training for part in model.layer4.modules() if isinstance(part, nn.BatchNorm2d)):
            raise NotYet(
                "The statistics stand still. But norm layers of layer4 are in train mode, so they normalize by the "
                "batch at hand: hold them in eval mode."
            )
        for mode in (False, True):
            model.train(mode)
            if model.fc.training is not mode:
                raise NotYet(f"After model.train({mode}) the head is in the other mode: it is not to be held.")
        for name in objects:
            if name.startswith(TRAINED) and torch.equal(states[0][name], before[name]):
                why = "The optimizer with which the loop goes on does not hold it."
                if held[id(objects[name])]:
                    why = "The optimizer holds it: look at its learning rate."
                raise NotYet(f"{name} asks, and a step does not move it. {why}")
        for twin in (wanted, fresh):
            _release(*twin)
        _moves_as(before, states, _go_on(*wanted), _go_on(*fresh, steps=1), rate)


TRAINED = ("fc.", "layer4.")


def _with_a_new_head():
    model = digits.pretrained()
    freeze(model)
    model.fc = nn.Linear(64, 5)
    return model.double()


def _release(model, optimizer):
    for layer in model.layer4.modules():
        if isinstance(layer, nn.BatchNorm2d):
            vars(layer.eval())["train"] = lambda mode=True: None
    model.layer4.requires_grad_(True)
    head = optimizer.param_groups[0]
    optimizer.add_param_group(head | {"params": model.layer4.parameters(), "lr": head["lr"] / 10})


def _entries(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _go_on(model, optimizer, steps=2):
    """Steps of the training loop; the entries of the state_dict after each."""
    generator, states = torch.Generator().manual_seed(0), []
    for _ in range(steps):
        images = torch.rand(5, 1, 12, 12, generator=generator, dtype=torch.float64)
        model.train()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), torch.arange(5)).backward()
        optimizer.step()
        states.append(_entries(model))
    return states


def _asks_and_is_the_same(model, before, objects):
    now, entries = dict(model.named_parameters()), model.state_dict()
    if now.keys() != objects.keys() or any(now[name] is not objects[name] for name in now):
        raise NotYet("The model has other Parameter objects now. Those of fc are the ones that have momentum.")
    if entries.keys() != before.keys() or (
        changed := [name for name in before if not torch.equal(entries[name], before[name])]
    ):
        what = changed[0] if entries.keys() == before.keys() else "the entries of the state_dict"
        raise NotYet(f"Your function itself changes {what}: only flags and groups are yours to change.")
    if frozen := [name for name, p in now.items() if name.startswith(TRAINED) and not p.requires_grad]:
        raise NotYet(f"Frozen: {', '.join(frozen[:3])}. All of layer4 is to be trained, and the head as before.")
    if asking := [name for name, p in now.items() if not name.startswith(TRAINED) and p.requires_grad]:
        raise NotYet(f"Asking: {', '.join(asking[:3])}. Before layer4 everything is to stay frozen.")


def _nothing_else_moved(before, after):
    names = [name for name in before if not torch.equal(before[name], after[name])]
    if moved := [name for name in names if "running" in name or "num_batches" in name]:
        raise NotYet(
            f"{moved[0]} moved in the loop, which calls train(). freeze() holds only what is frozen, and a norm layer "
            "in train mode moves its statistics: let it be in eval mode after each train(), too."
        )
    if moved := [name for name in names if not name.startswith(TRAINED)]:
        raise NotYet(f"{moved[0]} moved: before layer4 everything is to stay frozen.")


def _moves_as(before, states, due, fresh, rate):
    """`NotYet` unless the steps are those of ``due``; in ``fresh`` the head started without momentum."""
    names = [name for part in TRAINED for name in before if name.startswith(part)]
    for name in names:
        step, wanted, forgetful = (run[0][name] - before[name] for run in (states, due, fresh))
        lr = rate if name.startswith("fc.") else rate / 10
        if not step.isfinite().all():
            raise NotYet(f"{name} is not finite after a step.")
        if _close(step, wanted):
            continue
        if _close(step, forgetful):
            raise NotYet(f"{name} moves as if it had no momentum. It had some, in the optimizer that was given.")
        factor = (step.norm() / wanted.norm()).item()
        if name.startswith("layer4.") and _close(step, factor * wanted):
            raise NotYet(f"{name} moves at the rate {factor * lr:.3g}; it should be {lr:.3g}.")
        raise NotYet(
            f"{name} moves otherwise than SGD moves it at the rate {lr:.3g}, which is due, with the momentum that it "
            f"has and the settings of the head. {'' if name.startswith('fc.') else _DEFAULTS}".strip()
        )
    for name in names:
        if not _close(states[-1][name], due[-1][name]):
            raise NotYet(
                f"The first step of {name} is right, the next is not: momentum and the other settings are to be those "
                f"of the head. {_DEFAULTS}"
            )


_DEFAULTS = (
    "What add_param_group is not told, it takes from optimizer.defaults; the head's group may have changed since then."
)


def _close(one, other):
    return torch.allclose(one, other, rtol=1e-5, atol=1e-12)


@lesson.exercise(
    "low-rank-update",
    follows="Two thin matrices instead of one large: fewer gradients, less state in the optimizer. What is kept for "
    "backward in the layers behind is as before, and merged, it costs nothing when the model is used.",
)
def low_rank_update(answer):
    for size, rank, bias in (((6, 4), 2, True), ((3, 5), 1, False), ((5, 5), 3, True)):
        linear = nn.Linear(*size, bias=bias).requires_grad_(bias)
        before, x = copy.deepcopy(linear), torch.randn(2, 7, size[0])
        module = _module(run(answer, linear, rank))
        _trains_two(module, before, rank)
        if not torch.allclose(_outputs(module, x, before), before(x), 1e-4, 1e-5):
            raise NotYet(
                "At the start the outputs are not those of the linear: the product of the two matrices is to be zero, "
                "so one of them begins with zeros."
            )
        for mode in (True, False):
            outputs = _outputs(module, x, before)
            _train(module, x)
            _is_untouched(linear, before)
            trained = _outputs(module, x, before)
            if not trained.isfinite().all():
                raise NotYet(
                    "Some steps of training make the outputs infinite or NaN. What divides by the matrices, or takes a "
                    "root of them, has no gradient where they are zero."
                )
            if torch.allclose(trained, outputs, 1e-4, 1e-6):
                raise NotYet(
                    "Some steps of training leave the outputs as they were. Are both matrices zero at the start? The "
                    "gradient of each is a product with the other."
                )
            _takes_any_shape(module, x, trained, before)
            _keeps_its_numbers(module, mode)
            _merges(module, linear, before, x, rank)
        _passes_gradients(module, x)
        _is_whole_in_its_state_dict(answer, module, before, x, rank)


def _module(given):
    if not isinstance(given, nn.Module):
        raise NotYet(f"The class is to be an nn.Module; calling it gives {kind(given)}.")
    return given


def _outputs(module, x, linear):
    outputs = run(module, x)
    if not isinstance(outputs, Tensor) or outputs.shape != linear(x).shape:
        got = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else kind(outputs)
        raise NotYet(f"For x of shape {tuple(x.shape)} the linear gives {tuple(linear(x).shape)}, your module {got}.")
    return outputs.detach()


def _trains_two(module, linear, rank):
    asking = {name: p for name, p in module.named_parameters() if p.requires_grad}
    own = [linear.weight] if linear.bias is None else [linear.weight, linear.bias]
    if asked := [n for n, p in asking.items() if any(p.shape == w.shape and torch.equal(p, w) for w in own)]:
        raise NotYet(f"{asked[0]} asks for a gradient: the linear is to be frozen, weight and bias.")
    if not asking:
        raise NotYet("Nothing in parameters() asks. A plain tensor is not registered: nn.Parameter makes one that is.")
    due, numbers = rank * (linear.in_features + linear.out_features), sum(p.numel() for p in asking.values())
    if numbers != due:
        raise NotYet(
            f"For {linear.in_features} inputs, {linear.out_features} outputs and rank {rank} the two matrices have "
            f"{due} numbers; {numbers} ask here: {', '.join(asking)}."
        )


def _train(module, x):
    # Adam's steps are as large whatever factor the update has.
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=0.01)
    for _ in range(4):
        optimizer.zero_grad()
        (run(module, x) - 1).square().mean().backward()
        optimizer.step()


def _is_untouched(linear, before):
    now, started = dict(linear.named_parameters()), dict(before.named_parameters())
    if now.keys() != started.keys():
        raise NotYet(f"The linear that was given has the parameters {', '.join(now)} now: leave it as it is.")
    for name, parameter in now.items():
        if not torch.equal(parameter, started[name]):
            raise NotYet(f"linear.{name} has other numbers now: the linear that was given is to stay as it is.")
        if parameter.grad is not None:
            raise NotYet(f"linear.{name} got a gradient: it is to be frozen.")


def _takes_any_shape(module, x, outputs, linear):
    for index in (0, (0, 0), None):
        try:
            if not torch.allclose(_outputs(module, x[index], linear), outputs[index], 1e-3, 1e-5):
                raise NotYet("The outputs are others.")
        except NotYet as reason:
            raise NotYet(
                f"x is (..., in_features), and your module is right for {tuple(x.shape)}, but not for a part of it of "
                f"shape {tuple(x[index].shape)}. {reason}"
            ) from None


def _keeps_its_numbers(module, mode):
    """Leaves it in train mode or in eval mode."""
    before = facts(module)["numbers"]
    for each in (not mode, mode):
        module.train(each)
        if facts(module)["numbers"] != before:
            raise NotYet(
                f"train({each}) changes the numbers of the module. Only merged() merges: what is saved in one mode "
                "would be wrong in the other, and the numbers of the linear never change."
            )


def _merges(module, linear, before, x, rank):
    outputs, looks = _outputs(module, x, before), facts(module)
    merged = run(module.merged)
    now = changed(module, looks)
    if not isinstance(merged, nn.Linear):
        raise NotYet(f"merged() gives {kind(merged)}: an nn.Linear was asked for.")
    if merged is linear:
        raise NotYet("merged() gives the linear that was given: a new one was asked for.")
    _is_untouched(linear, before)
    if not torch.allclose(_outputs(module, x, before), outputs, 1e-4, 1e-6):
        raise NotYet("After merged() the module itself gives other outputs: merge into a new layer.")
    if now:
        raise NotYet(f"merged() changes the {now} of the module, which may be in the middle of training.")
    if (merged.bias is None) != (before.bias is None):
        raise NotYet(
            f"The linear has {'no' if before.bias is None else 'a'} bias; what merged() gives differs in that."
        )
    if merged.weight.shape != before.weight.shape:
        raise NotYet(
            f"The weight of a linear with {before.in_features} inputs and {before.out_features} outputs has shape "
            f"{tuple(before.weight.shape)}; that of merged() has {tuple(merged.weight.shape)}."
        )
    names, due = (", ".join(sorted(dict(layer.named_parameters()))) for layer in (merged, before))
    if names != due:
        raise NotYet(
            f"parameters() of a linear gives {due}; that of merged() {names or 'nothing'}. A plain tensor is missing "
            "there and in the state_dict, and is tied to what it was computed from: nn.Parameter makes one that is not."
        )
    if not torch.allclose(merged(x), outputs, 1e-3, 1e-5):
        raise NotYet("merged() gives other outputs than the module.")
    if not torch.allclose(nn.functional.linear(x, merged.weight, merged.bias), outputs, 1e-3, 1e-5):
        raise NotYet("merged() gives the right outputs, but its weight and bias alone do not: merge into the weight.")
    own = {p.untyped_storage().data_ptr() for p in (*module.state_dict().values(), *linear.parameters())}
    if shared := [name for name, p in merged.named_parameters() if p.untyped_storage().data_ptr() in own]:
        raise NotYet(f"The {shared[0]} of merged() is the module's own: if one is trained, the other moves. Copy it.")
    update = torch.linalg.matrix_rank(merged.weight.detach() - before.weight, rtol=1e-3).item()
    if update > rank:
        raise NotYet(f"The weight has changed by a matrix of rank {update}; at most {rank} was asked for.")
    _train(module, x)
    if not torch.allclose(merged(x), outputs, 1e-3, 1e-5):
        raise NotYet("What merged() gave follows the module when that is trained on: it computes with the module.")


def _passes_gradients(module, x):
    """The layers before it have to learn, too."""
    gradients = []
    for layer in (module, run(module.merged)):
        asking = x.clone().requires_grad_()
        gradients += torch.autograd.grad(layer(asking).square().sum(), asking, allow_unused=True)
    got, due = gradients
    if got is None or not torch.allclose(got, due, 1e-3, 1e-5):
        raise NotYet(
            "The input gets another gradient than from merged(). A frozen linear still passes gradients on to the "
            "layers before it; no_grad and detach do not."
        )


def _is_whole_in_its_state_dict(answer, module, linear, x, rank):
    other = _module(run(answer, nn.Linear(linear.in_features, linear.out_features, linear.bias is not None), rank))
    other.load_state_dict(module.state_dict())
    if not torch.allclose(_outputs(other, x, linear), _outputs(module, x, linear), 1e-4, 1e-6):
        raise NotYet(
            "Its state_dict, loaded into another one, does not give the same outputs: something is not registered. "
            "A module finds what is its attribute, or in a ModuleList or ParameterList."
        )


@lesson.exercise(
    "checkpoint-behind-a-frozen-part",
    follows="Say use_reentrant=False each time. The old kind asks its inputs whether to record, and behind a frozen "
    "part no input asks.",
)
def checkpoint_behind_a_frozen_part(answer):
    for drop, depth in ((0.0, 6), (0.5, 8)):
        backbone = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
        backbone.requires_grad_(False)
        blocks = nn.Sequential(
            *[nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Dropout(drop), nn.Tanh()) for _ in range(depth)]
        )
        plain, x = copy.deepcopy(blocks), torch.randn(16, 6)
        torch.manual_seed(1)
        with saved_tensors(plain) as kept:
            wanted = plain(backbone(x))
        wanted.square().sum().backward()
        parts, runs = nn.ModuleDict({"backbone": backbone.train(not drop), "blocks": blocks}), Counter[str]()
        modes = {name: part.training for name, part in parts.named_modules()}
        backbone[0].register_forward_pre_hook(lambda *_, runs=runs: runs.update(["backbone"]))
        for block in blocks:
            block.register_forward_pre_hook(lambda *_, runs=runs: runs.update(["blocks"]))
        torch.manual_seed(1)
        with saved_tensors(parts) as saved:
            output = run(answer, backbone, blocks, x)
        _is_the_same(output, wanted, parts, x)
        if turned := [name for name, part in parts.named_modules() if part.training is not modes[name]]:
            raise NotYet(
                f"The mode of {turned[0]} is another after your call: modes belong to the caller, also of what is "
                "frozen."
            )
        torch.rand(3)  # what a loss may draw meanwhile
        output.square().sum().backward()
        _has_gradients(parts, plain, x, drop)
        if runs["backbone"] > 1:
            raise NotYet("The backbone ran twice. It is frozen: give checkpoint the blocks alone, and its features.")
        if of_backbone := [name for name in saved.by_module if name.startswith("backbone")]:
            raise NotYet(
                f"{of_backbone[0]} kept something for backward, and the backbone is frozen: its input asks. Only what "
                "goes into the blocks may."
            )
        if saved.nbytes * 3 > kept.nbytes * 2:
            raise NotYet(
                f"The gradients are right. But {saved.nbytes:,} bytes are kept for backward, and {kept.nbytes:,} "
                "without checkpointing: at most two thirds were asked for."
            )
        if runs["blocks"] <= depth:
            raise NotYet("Each block ran only once: the activations are kept elsewhere, and not computed again.")


def _is_the_same(output, wanted, parts, x):
    if not isinstance(output, Tensor) or output.shape != wanted.shape:
        raise NotYet(f"Return what the blocks give, a tensor of shape {tuple(wanted.shape)}; yours is {kind(output)}.")
    if x.requires_grad:
        raise NotYet("x asks for a gradient after your call: it belongs to the caller, and nobody needs its gradient.")
    if asking := [name for name, p in parts.named_parameters() if p.requires_grad == name.startswith("backbone")]:
        raise NotYet(f"The flag of {asking[0]} was changed: the backbone stays frozen, and the blocks are trained.")
    if not all(part.training for part in parts["blocks"].modules()):
        raise NotYet("The blocks are in eval mode after your call: dropout is to be used in training.")
    if not torch.allclose(output, wanted, 1e-4, 1e-6):
        raise NotYet("The result is not what blocks(backbone(x)) gives from the same random state.")
    if not output.requires_grad:
        raise NotYet(
            "The result does not ask, so the blocks would get no gradient. With use_reentrant=True only the inputs "
            "decide whether anything is recorded, and features of a frozen part do not ask. Under no_grad nothing is "
            "recorded at all."
        )


def _has_gradients(parts, plain, x, drop):
    if reached := [name for name, p in parts["backbone"].named_parameters() if p.grad is not None]:
        raise NotYet(f"backbone.{reached[0]} got a gradient: it is to stay frozen.")
    for (name, p), (_, due) in zip(parts["blocks"].named_parameters(), plain.named_parameters(), strict=True):
        if p.grad is None:
            raise NotYet(
                f"blocks.{name} got no gradient: the result asks, but nothing connects it with the weights of the "
                "blocks."
            )
        if not torch.allclose(p.grad, due.grad, 1e-4, 1e-6):
            why = "The blocks ran again, and dropout drew other masks: its random state is to be put back for that."
            raise NotYet(
                f"blocks.{name} gets another gradient than without checkpointing. {why if drop else ''}".strip()
            )
