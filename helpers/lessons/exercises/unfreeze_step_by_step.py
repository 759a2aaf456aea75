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

lesson = Lesson("unfreeze_step_by_step")
check, predict, progress = lesson.check, lesson.predict, lesson.progress


@lesson.exercise("what-each-choice-costs")
def what_each_choice_costs(answer):
    everything, (first, second) = _kept("0.", "2.", "4."), _low_rank_moves()
    beliefs = lesson.beliefs("what-each-choice-costs")
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


@lesson.exercise("unfreeze-a-stage")
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
            raise lesson.not_yet("optimizer-holds-twice", value=twice[0])
        states = _go_on(model, optimizer)
        _nothing_else_moved(before, states[-1])
        if any(part.training for part in model.layer4.modules() if isinstance(part, nn.BatchNorm2d)):
            raise lesson.not_yet("statistics-stand-still")
        for mode in (False, True):
            model.train(mode)
            if model.fc.training is not mode:
                raise lesson.not_yet("after-model-train", mode=mode)
        for name in objects:
            if name.startswith(TRAINED) and torch.equal(states[0][name], before[name]):
                why = "The optimizer with which the loop goes on does not hold it."
                if held[id(objects[name])]:
                    why = "The optimizer holds it: look at its learning rate."
                raise lesson.not_yet("asks-step-does", name=name, why=why)
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
        raise lesson.not_yet("model-other-parameter")
    if entries.keys() != before.keys() or (
        changed := [name for name in before if not torch.equal(entries[name], before[name])]
    ):
        what = changed[0] if entries.keys() == before.keys() else "the entries of the state_dict"
        raise lesson.not_yet("function-itself-changes", what=what)
    if frozen := [name for name, p in now.items() if name.startswith(TRAINED) and not p.requires_grad]:
        raise lesson.not_yet("frozen-all-layer", names=", ".join(frozen[:3]))
    if asking := [name for name, p in now.items() if not name.startswith(TRAINED) and p.requires_grad]:
        raise lesson.not_yet("asking-before-layer", names=", ".join(asking[:3]))


def _nothing_else_moved(before, after):
    names = [name for name in before if not torch.equal(before[name], after[name])]
    if moved := [name for name in names if "running" in name or "num_batches" in name]:
        raise lesson.not_yet("moved-loop-which", value=moved[0])
    if moved := [name for name in names if not name.startswith(TRAINED)]:
        raise lesson.not_yet("moved-before-layer", value=moved[0])


def _moves_as(before, states, due, fresh, rate):
    """`NotYet` unless the steps are those of ``due``; in ``fresh`` the head started without momentum."""
    names = [name for part in TRAINED for name in before if name.startswith(part)]
    for name in names:
        step, wanted, forgetful = (run[0][name] - before[name] for run in (states, due, fresh))
        lr = rate if name.startswith("fc.") else rate / 10
        if not step.isfinite().all():
            raise lesson.not_yet("finite-after-step", name=name)
        if _close(step, wanted):
            continue
        if _close(step, forgetful):
            raise lesson.not_yet("moves-if-had", name=name)
        factor = (step.norm() / wanted.norm()).item()
        if name.startswith("layer4.") and _close(step, factor * wanted):
            raise lesson.not_yet("moves-rate-should", name=name, value=factor * lr, lr=lr)
        raise NotYet(
            f"{name} moves otherwise than SGD moves it at the rate {lr:.3g}, which is due, with the momentum that it "
            f"has and the settings of the head. {'' if name.startswith('fc.') else _DEFAULTS}".strip()
        )
    for name in names:
        if not _close(states[-1][name], due[-1][name]):
            raise lesson.not_yet("first-step-right", name=name, _DEFAULTS=_DEFAULTS)


_DEFAULTS = (
    "What add_param_group is not told, it takes from optimizer.defaults; the head's group may have changed since then."
)


def _close(one, other):
    return torch.allclose(one, other, rtol=1e-5, atol=1e-12)


@lesson.exercise("low-rank-update")
def low_rank_update(answer):
    for size, rank, bias in (((6, 4), 2, True), ((3, 5), 1, False), ((5, 5), 3, True)):
        linear = nn.Linear(*size, bias=bias).requires_grad_(bias)
        before, x = copy.deepcopy(linear), torch.randn(2, 7, size[0])
        module = _module(run(answer, linear, rank))
        _trains_two(module, before, rank)
        if not torch.allclose(_outputs(module, x, before), before(x), 1e-4, 1e-5):
            raise lesson.not_yet("start-outputs-those")
        for mode in (True, False):
            outputs = _outputs(module, x, before)
            _train(module, x)
            _is_untouched(linear, before)
            trained = _outputs(module, x, before)
            if not trained.isfinite().all():
                raise lesson.not_yet("some-steps-training")
            if torch.allclose(trained, outputs, 1e-4, 1e-6):
                raise lesson.not_yet("some-steps-training-2")
            _takes_any_shape(module, x, trained, before)
            _keeps_its_numbers(module, mode)
            _merges(module, linear, before, x, rank)
        _passes_gradients(module, x)
        _is_whole_in_its_state_dict(answer, module, before, x, rank)


def _module(given):
    if not isinstance(given, nn.Module):
        raise lesson.not_yet("class-be-an", kind=kind(given))
    return given


def _outputs(module, x, linear):
    outputs = run(module, x)
    if not isinstance(outputs, Tensor) or outputs.shape != linear(x).shape:
        got = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else kind(outputs)
        raise lesson.not_yet("x-shape-linear", value=tuple(x.shape), value2=tuple(linear(x).shape), got=got)
    return outputs.detach()


def _trains_two(module, linear, rank):
    asking = {name: p for name, p in module.named_parameters() if p.requires_grad}
    own = [linear.weight] if linear.bias is None else [linear.weight, linear.bias]
    if asked := [n for n, p in asking.items() if any(p.shape == w.shape and torch.equal(p, w) for w in own)]:
        raise lesson.not_yet("asks-gradient-linear", value=asked[0])
    if not asking:
        raise lesson.not_yet("nothing-parameters-asks")
    due, numbers = rank * (linear.in_features + linear.out_features), sum(p.numel() for p in asking.values())
    if numbers != due:
        raise lesson.not_yet(
            "inputs-outputs-rank",
            in_features=linear.in_features,
            out_features=linear.out_features,
            rank=rank,
            due=due,
            numbers=numbers,
            names=", ".join(asking),
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
        raise lesson.not_yet("linear-was-given", names=", ".join(now))
    for name, parameter in now.items():
        if not torch.equal(parameter, started[name]):
            raise lesson.not_yet("linear-other-numbers", name=name)
        if parameter.grad is not None:
            raise lesson.not_yet("linear-got-gradient", name=name)


def _takes_any_shape(module, x, outputs, linear):
    for index in (0, (0, 0), None):
        try:
            if not torch.allclose(_outputs(module, x[index], linear), outputs[index], 1e-3, 1e-5):
                raise lesson.not_yet("outputs-others")
        except NotYet as reason:
            raise lesson.not_yet(
                "x-features-module", value=tuple(x.shape), value2=tuple(x[index].shape), reason=reason
            ) from None


def _keeps_its_numbers(module, mode):
    """Leaves it in train mode or in eval mode."""
    before = facts(module)["numbers"]
    for each in (not mode, mode):
        module.train(each)
        if facts(module)["numbers"] != before:
            raise lesson.not_yet("train-changes-numbers", each=each)


def _merges(module, linear, before, x, rank):
    outputs, looks = _outputs(module, x, before), facts(module)
    merged = run(module.merged)
    now = changed(module, looks)
    if not isinstance(merged, nn.Linear):
        raise lesson.not_yet("merged-gives-an", kind=kind(merged))
    if merged is linear:
        raise lesson.not_yet("merged-gives-linear")
    _is_untouched(linear, before)
    if not torch.allclose(_outputs(module, x, before), outputs, 1e-4, 1e-6):
        raise lesson.not_yet("after-merged-module")
    if now:
        raise lesson.not_yet("merged-changes-module", now=now)
    if (merged.bias is None) != (before.bias is None):
        raise lesson.not_yet("linear-bias-what", value="no" if before.bias is None else "a")
    if merged.weight.shape != before.weight.shape:
        raise lesson.not_yet(
            "weight-linear-inputs",
            in_features=before.in_features,
            out_features=before.out_features,
            value=tuple(before.weight.shape),
            value2=tuple(merged.weight.shape),
        )
    names, due = (", ".join(sorted(dict(layer.named_parameters()))) for layer in (merged, before))
    if names != due:
        raise lesson.not_yet("parameters-linear-gives", due=due, value=names or "nothing")
    if not torch.allclose(merged(x), outputs, 1e-3, 1e-5):
        raise lesson.not_yet("merged-gives-other")
    if not torch.allclose(nn.functional.linear(x, merged.weight, merged.bias), outputs, 1e-3, 1e-5):
        raise lesson.not_yet("merged-gives-right")
    own = {p.untyped_storage().data_ptr() for p in (*module.state_dict().values(), *linear.parameters())}
    if shared := [name for name, p in merged.named_parameters() if p.untyped_storage().data_ptr() in own]:
        raise lesson.not_yet("merged-module-s", value=shared[0])
    update = torch.linalg.matrix_rank(merged.weight.detach() - before.weight, rtol=1e-3).item()
    if update > rank:
        raise lesson.not_yet("weight-changed-matrix", update=update, rank=rank)
    _train(module, x)
    if not torch.allclose(merged(x), outputs, 1e-3, 1e-5):
        raise lesson.not_yet("what-merged-gave")


def _passes_gradients(module, x):
    """The layers before it have to learn, too."""
    gradients = []
    for layer in (module, run(module.merged)):
        asking = x.clone().requires_grad_()
        gradients += torch.autograd.grad(layer(asking).square().sum(), asking, allow_unused=True)
    got, due = gradients
    if got is None or not torch.allclose(got, due, 1e-3, 1e-5):
        raise lesson.not_yet("input-gets-another")


def _is_whole_in_its_state_dict(answer, module, linear, x, rank):
    other = _module(run(answer, nn.Linear(linear.in_features, linear.out_features, linear.bias is not None), rank))
    other.load_state_dict(module.state_dict())
    if not torch.allclose(_outputs(other, x, linear), _outputs(module, x, linear), 1e-4, 1e-6):
        raise lesson.not_yet("state-dict-loaded")


@lesson.exercise("checkpoint-behind-a-frozen-part")
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
            raise lesson.not_yet("mode-another-after", value=turned[0])
        torch.rand(3)  # what a loss may draw meanwhile
        output.square().sum().backward()
        _has_gradients(parts, plain, x, drop)
        if runs["backbone"] > 1:
            raise lesson.not_yet("backbone-ran-twice")
        if of_backbone := [name for name in saved.by_module if name.startswith("backbone")]:
            raise lesson.not_yet("kept-something-backward", value=of_backbone[0])
        if saved.nbytes * 3 > kept.nbytes * 2:
            raise lesson.not_yet("gradients-right-but", nbytes=saved.nbytes, nbytes2=kept.nbytes)
        if runs["blocks"] <= depth:
            raise lesson.not_yet("each-block-ran")


def _is_the_same(output, wanted, parts, x):
    if not isinstance(output, Tensor) or output.shape != wanted.shape:
        raise lesson.not_yet("return-what-blocks", value=tuple(wanted.shape), kind=kind(output))
    if x.requires_grad:
        raise lesson.not_yet("x-asks-gradient")
    if asking := [name for name, p in parts.named_parameters() if p.requires_grad == name.startswith("backbone")]:
        raise lesson.not_yet("flag-was-changed", value=asking[0])
    if not all(part.training for part in parts["blocks"].modules()):
        raise lesson.not_yet("blocks-eval-mode")
    if not torch.allclose(output, wanted, 1e-4, 1e-6):
        raise lesson.not_yet("result-what-blocks")
    if not output.requires_grad:
        raise lesson.not_yet("result-does-ask")


def _has_gradients(parts, plain, x, drop):
    if reached := [name for name, p in parts["backbone"].named_parameters() if p.grad is not None]:
        raise lesson.not_yet("backbone-got-gradient", value=reached[0])
    for (name, p), (_, due) in zip(parts["blocks"].named_parameters(), plain.named_parameters(), strict=True):
        if p.grad is None:
            raise lesson.not_yet("blocks-got-no", name=name)
        if not torch.allclose(p.grad, due.grad, 1e-4, 1e-6):
            why = "The blocks ran again, and dropout drew other masks: its random state is to be put back for that."
            raise NotYet(
                f"blocks.{name} gets another gradient than without checkpointing. {why if drop else ''}".strip()
            )
