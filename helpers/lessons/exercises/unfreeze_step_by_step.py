"""The exercises and predictions of the lesson on unfreezing step by step."""

import copy
import math
from collections import Counter, OrderedDict
from itertools import pairwise

import torch
from torch import nn

from helpers import freeze, saved_tensors
from helpers.lessons import digits
from helpers.lessons.exercises import RAISES, Lesson, NotYet, changed, facts, kind, run, scalar, table

lesson = Lesson("unfreeze_step_by_step")
check, predict, progress = lesson.check, lesson.predict, lesson.progress

Adam, SGD = torch.optim.Adam, torch.optim.SGD


@lesson.exercise("what-each-choice-costs")
def what_each_choice_costs(answer):
    values = answer.values() if isinstance(answer, dict) else ()
    if any(isinstance(value, str) and value.strip().lower() == RAISES for value in values):
        raise lesson.not_yet("none-raises")
    everything, first, second, last, doubled = (
        _step(*chosen) for chosen in (("",), ("0.",), ("2.",), ("4.",), ("", SGD, 16))
    )
    seen = {
        "only first: as much is saved as with everything": first["saved"] == everything["saved"],
        "only last: a layer before it saves something": last["layers"] != ["4"],
        "only second: first saves something": "0" in second["layers"],
        "twice the batch: twice as much is saved": doubled["saved"] == 2 * everything["saved"],
        "twice the batch: the gradients take twice as many bytes": doubled["grads"] == 2 * everything["grads"],
        "only last, Adam: the optimizer keeps nothing for first": not _step("4.", Adam)["kept"]["0"],
        "everything, SGD with momentum: the state is as large as the gradients": (
            sum(everything["kept"].values()) == everything["grads"]
        ),
        "later, Adam: second has state before its first step": _has_state_when_added(),
    }
    table(answer, seen, lesson.beliefs("what-each-choice-costs"))


def _network():
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))


def _step(chosen, kind=SGD, rows=8):
    """What a step holds in which those parameters require grad whose name begins so: the layers that save something,
    the bytes saved, of the gradients, and of what the optimizer keeps, by layer."""
    model = _network()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(chosen))
    optimizer = kind(model.parameters(), lr=0.1, **({"momentum": 0.9} if kind is SGD else {}))
    with saved_tensors(model) as saved:
        output = model(torch.randn(rows, 4))
    output.sum().backward()
    optimizer.step()
    kept = dict.fromkeys("024", 0)
    for name, parameter in model.named_parameters():
        kept[name[0]] += sum(value.nbytes for value in optimizer.state.get(parameter, {}).values())
    grads = sum(parameter.grad.nbytes for parameter in model.parameters() if parameter.grad is not None)
    return {"layers": list(saved.by_module), "saved": saved.nbytes, "grads": grads, "kept": kept}


def _has_state_when_added():
    model = _network().requires_grad_(False)
    optimizer = Adam(model[4].requires_grad_(True).parameters(), lr=0.1)
    model(torch.randn(8, 4)).sum().backward()
    optimizer.step()
    optimizer.add_param_group({"params": model[2].requires_grad_(True).parameters()})
    return bool(optimizer.state.get(model[2].weight))


@lesson.exercise("as-many-as-fit")
def as_many_as_fit(answer):
    counts, cases = [], []
    for model, inputs in (_halving(), _equal(), _with_norms()):
        bills = [_bill(model, inputs, count) for count in range(len(model) + 1)]
        totals = sorted({sum(bill) for bill in bills})
        limits = [(low + high) // 2 for low, high in pairwise(totals)]
        for limit in [*limits, totals[-1] + 99]:
            before = facts(model)
            counts.append(_count(run(answer, model, inputs, limit), model))
            if now := changed(model, before):
                raise lesson.not_yet("model-changed", now=now)
            cases.append((model, inputs, limit, bills))
    due = [_fitting(bills, limit) for *_, limit, bills in cases]
    if counts == due:
        return
    for name, part in BELIEFS.items():
        if counts == [_fitting([part(bill) for bill in bills], limit) for *_, limit, bills in cases]:
            raise lesson.not_yet(name)
    if counts == [
        _fitting([_bill(model, inputs, count, whole=True) for count in range(len(model) + 1)], limit)
        for model, inputs, limit, _ in cases
    ]:
        raise lesson.not_yet("all-saved")
    if counts == [len(model) - count for count, (model, *_) in zip(due, cases, strict=True)]:
        raise lesson.not_yet("from-the-front")
    if counts == [min(count + 1, len(m)) for count, (m, *_) in zip(due, cases, strict=True)]:
        raise lesson.not_yet("one-too-many")
    if counts == [max(count - 1, 0) for count in due]:
        raise lesson.not_yet("one-too-few")
    wrong = next(number for number, count in enumerate(counts) if count != due[number])
    model, _, limit, bills = cases[wrong]
    saved, gradients, state = bills[due[wrong]]
    more = lesson.sentences["exercises"]["as-many-as-fit"]["says"]["next-part"]
    after = more.format(total=f"{sum(bills[due[wrong] + 1]):,}") if due[wrong] < len(model) else ""
    raise lesson.not_yet(
        "another-number",
        parts=len(model),
        limit=f"{limit:,}",
        due=due[wrong],
        saved=f"{saved:,}",
        gradients=f"{gradients:,}",
        state=f"{state:,}",
        after=after,
        got=counts[wrong],
    )


BELIEFS = {
    "activations-alone": lambda bill: bill[:1],
    "weights-alone": lambda bill: bill[1:],
    "without-state": lambda bill: bill[:2],
    "two-numbers": lambda bill: (bill[0], bill[2]),
    "numbers-for-bytes": lambda bill: (bill[0], bill[1] // 4, bill[2] // 4),
}


def _halving():
    sizes = ((1, 8), (8, 16), (16, 32))
    layers = [layer for size in sizes for layer in (nn.Conv2d(*size, 3, stride=2, padding=1), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 10)).float()
    return model, torch.rand(6, 1, 16, 16, dtype=torch.float32)


def _equal():
    blocks = [nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(4)]
    model = nn.Sequential(*blocks).float()
    model[:2].requires_grad_(False)
    return model, torch.rand(32, 8, dtype=torch.float32)


def _with_norms():
    layers = OrderedDict(first=nn.Linear(8, 40), norm=nn.BatchNorm1d(40), relu=nn.ReLU(), last=nn.Linear(40, 3))
    model = nn.Sequential(layers).float()
    inputs = torch.rand(10, 8, dtype=torch.float32)
    copy.deepcopy(model)(inputs).sum().backward()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    return model, inputs


def _bill(model, inputs, count, whole=False):
    """What is saved, the gradients and AdamW's state if the last ``count`` parts are trained; with ``whole``, what is
    saved if nothing is frozen."""
    twin = copy.deepcopy(model).requires_grad_(False)
    trained = twin[len(twin) - count :].requires_grad_(True)
    numbers = sum(parameter.nbytes for parameter in trained.parameters())
    if whole:
        twin.requires_grad_(True)
    with saved_tensors(twin) as saved:
        twin(inputs)
    return saved.nbytes, numbers, 2 * numbers


def _fitting(bills, limit):
    return max((count for count, bill in enumerate(bills) if sum(bill) <= limit), default=0)


def _count(given, model):
    count = scalar(given)
    if isinstance(count, bool) or not isinstance(count, int | float) or count != count // 1:
        raise lesson.not_yet("no-number", kind=kind(given))
    if not 0 <= count <= len(model):
        raise lesson.not_yet("out-of-range", count=count, parts=len(model))
    return int(count)


@lesson.exercise("unfreeze-a-stage")
def unfreeze_a_stage(answer):
    # As the optimizer was built, with a rate that was lowered since, as a scheduler does, and with other settings.
    for rate, momentum, decay, nesterov in (
        (0.05, 0.9, 0.0, False),
        (0.02, 0.9, 0.0, False),
        (0.02, 0.5, 0.01, False),
        (0.02, 0.5, 0.0, True),
    ):
        model = _with_a_new_head()
        optimizer = torch.optim.SGD(model.fc.parameters(), lr=0.05, momentum=0.9)
        _go_on(model, optimizer)
        optimizer.param_groups[0].update(lr=rate, momentum=momentum, weight_decay=decay, nesterov=nesterov)
        wanted, fresh = copy.deepcopy((model, optimizer)), copy.deepcopy((model, optimizer))
        fresh[1].state.clear()
        before, objects = _entries(model), dict(model.named_parameters())
        run(answer, model, optimizer)
        _trainable_and_the_same(model, before, objects)
        for group in optimizer.param_groups:
            if missing := [name for name in optimizer.defaults if name not in group]:
                raise lesson.not_yet("group-incomplete", missing=", ".join(missing[:3]))
        held = Counter(id(p) for group in optimizer.param_groups for p in group["params"])
        if twice := [name for name, p in objects.items() if held[id(p)] > 1]:
            raise lesson.not_yet("optimizer-holds-twice", value=twice[0])
        if made_up := [name for name, p in model.layer4.named_parameters() if _has_momentum(optimizer, p)]:
            raise lesson.not_yet("momentum-made-up", name=f"layer4.{made_up[0]}")
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
        _moves_as(before, states, _go_on(*wanted), _go_on(*fresh, steps=1), rate, 1 / (1 + momentum * nesterov))


TRAINED = ("fc.", "layer4.")


def _has_momentum(optimizer, parameter):
    state = optimizer.state.get(parameter, {}).values()
    return any(isinstance(value, torch.Tensor) and bool(value.any()) for value in state)


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


def _trainable_and_the_same(model, before, objects):
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
    if trainable := [name for name, p in now.items() if not name.startswith(TRAINED) and p.requires_grad]:
        raise lesson.not_yet("trainable-before-layer", names=", ".join(trainable[:3]))


def _nothing_else_moved(before, after):
    names = [name for name in before if not torch.equal(before[name], after[name])]
    if moved := [name for name in names if "running" in name or "num_batches" in name]:
        raise lesson.not_yet("moved-loop-which", value=moved[0])
    if moved := [name for name in names if not name.startswith(TRAINED)]:
        raise lesson.not_yet("moved-before-layer", value=moved[0])


def _moves_as(before, states, due, fresh, rate, plain):
    """`NotYet` unless the steps are those of ``due``; in ``fresh`` the head started without momentum.

    ``plain`` is the share of a first step that is left without what nesterov adds to it.
    """
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
        if (
            name.startswith("layer4.")
            and _close(step, factor * wanted)
            and not (plain < 1 and abs(factor - plain) < 1e-6)
        ):
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


@lesson.exercise("a-schedule-for-each")
def a_schedule_for_each(answer):
    for begin, steps, rates in ((6, 10, (0.1, 0.01)), (3, 12, (0.2, 0.05)), (0, 5, (0.1, 0.02))):
        parts = [[nn.Parameter(torch.ones(2)) for _ in range(2)] for _ in rates]
        groups = [{"params": part, "lr": rate} for part, rate in zip(parts, rates, strict=True)]
        optimizer = torch.optim.SGD(groups, momentum=0.9, weight_decay=0.01)
        settings = _settings(optimizer)
        scheduler = run(answer, optimizer, begin, steps)
        if isinstance(scheduler, type) or not callable(getattr(scheduler, "step", None)):
            raise lesson.not_yet("no-scheduler", kind=kind(scheduler))
        if _settings(optimizer) != settings:
            raise lesson.not_yet("other-settings")
        seen = []
        for _ in range(steps):
            seen.append([_rate(group["lr"]) for group in optimizer.param_groups])
            optimizer.step()
            run(scheduler.step)
        if _settings(optimizer) != settings:
            raise lesson.not_yet("other-settings")
        _as_due(seen, begin, steps, rates)


def _settings(optimizer):
    """What a step looks at in each group but for its rate."""
    names = optimizer.defaults.keys() - {"lr"}
    return [
        (list(map(id, group["params"])), {name: group.get(name) for name in names}) for group in optimizer.param_groups
    ]


def _rate(value):
    rate = scalar(value)
    if isinstance(rate, bool) or not isinstance(rate, int | float):
        raise lesson.not_yet("no-rate", kind=kind(value))
    return rate


def _as_due(seen, begin, steps, rates):
    head = [rates[0] * (1 - t / steps) for t in range(steps)]
    stage = {t: rates[1] * (1 - (t - begin) / (steps - begin)) for t in range(begin, steps)}
    for t, (got, _) in enumerate(seen):
        if not _same(got, head[t]):
            early = t + 1 < steps and _same(got, head[t + 1])
            raise lesson.not_yet("head-early" if early else "head-rate", t=t, got=_told(got), due=_told(head[t]))
    for t, due in stage.items():
        got = seen[t][1]
        if _same(got, due):
            continue
        told = {"t": t, "begin": begin, "steps": steps, "got": _told(got), "due": _told(due), "left": steps - begin}
        if t > begin:
            raise lesson.not_yet("stage-later", **told)
        if _same(got, rates[1] * (1 - begin / steps)):
            raise lesson.not_yet("stage-fallen", **told)
        if _same(got, 0):
            raise lesson.not_yet("stage-zero", **told)
        if begin + 1 < steps and _same(got, stage[begin + 1]):
            raise lesson.not_yet("stage-early", **told)
        raise lesson.not_yet("stage-begin", **told)


def _same(one, other):
    return math.isclose(one, other, rel_tol=1e-5, abs_tol=1e-9)


def _told(rate):
    return f"{rate:.3g}"
