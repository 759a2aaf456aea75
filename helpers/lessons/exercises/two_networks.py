"""The exercises and predictions of the lesson on two losses, two networks, and copies that follow."""

import copy

import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss, softplus

from helpers.lessons import digits
from helpers.lessons.exercises import Lesson, facts, raises, run, table

lesson = Lesson("two_networks")
check, predict, progress = lesson.check, lesson.predict, lesson.progress


def _networks():
    generator = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5))
    return generator, nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 1))


def _has(module):
    return any(parameter.grad is not None for parameter in module.parameters())


def _turn(detached=False, frozen=False, recording=True):
    generator, critic = _networks()
    critic.requires_grad_(not frozen)
    fake = generator(torch.rand(2, 3))
    with torch.set_grad_enabled(recording):
        score = critic(fake.detach() if detached else fake)
    score.mean().backward()
    return _has(generator)


def _two_losses():
    body, head, other = nn.Sequential(nn.Linear(3, 4), nn.ReLU()), nn.Linear(4, 1), nn.Linear(4, 1)
    features = body(torch.rand(2, 3))
    first, second = head(features).square().mean(), other(features).square().mean()
    first.backward()
    second.backward()
    return _has(body)


def _loss_with_a_weight():
    net, weight = nn.Linear(3, 1), nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    (weight * net(torch.ones(2, 3))).square().mean().backward()
    optimizer.step()
    return weight.item() != 1


def _copied_target():
    net = nn.Linear(3, 1)
    target = copy.deepcopy(net)
    mse_loss(net(torch.rand(2, 3)), target(torch.rand(2, 3) + 1)).backward()
    return _has(target)


def _averaged():
    student = nn.BatchNorm1d(3)
    teacher = copy.deepcopy(student)
    student(torch.rand(4, 3) + 1)
    with torch.no_grad():
        for mine, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
            mine.lerp_(theirs, 0.1)
    return bool(teacher.running_mean.any())


ROWS = {
    "critic(fake).mean().backward(): generator has a gradient": _turn,
    "critic(fake.detach()).mean().backward(): generator has a gradient": lambda: _turn(detached=True),
    "critic frozen, critic(fake).mean().backward(): generator has a gradient": lambda: _turn(frozen=True),
    "critic(fake) under no_grad, then .mean().backward(): generator has one": lambda: _turn(recording=False),
    "two losses: first.backward(), second.backward(): body has a gradient": _two_losses,
    "loss with a weight, SGD(net.parameters()), a step: the weight has moved": _loss_with_a_weight,
    "mse_loss(net(x), copy.deepcopy(net)(x + 1)).backward(): the copy has one": _copied_target,
    "teacher averaged over parameters(): its running_mean has moved": _averaged,
}


@lesson.exercise("who-has-a-gradient")
def who_has_a_gradient(answer):
    seen = {row: raises(measure) for row, measure in ROWS.items()}
    table(answer, seen, lesson.beliefs("who-has-a-gradient"))


@lesson.exercise("one-round")
def one_round(answer):
    rounds = [(torch.randn(6, 3), torch.randn(6, 4)) for _ in range(3)]
    pair, optimizers = _gan()
    wanted, wanted_optimizers = _gan(pair)
    for noise, real in rounds:
        _reference_round(wanted, wanted_optimizers, noise, real)
    started, flags = copy.deepcopy(pair), facts(pair)["flags"]
    modes, given = facts(pair)["modes"], copy.deepcopy(rounds)
    idle = _play(answer, pair, optimizers, rounds, flags)
    before, now = started.state_dict(), pair.state_dict()
    tensors = [(old, new) for pairs in zip(given, rounds, strict=True) for old, new in zip(*pairs, strict=True)]
    if not all(torch.equal(old, new) for old, new in tensors):
        raise lesson.not_yet("data")
    frozen = [name for name, parameter in started.named_parameters() if not parameter.requires_grad]
    if moved := [name for name in frozen if not torch.equal(before[name], now[name])]:
        raise lesson.not_yet("frozen-moved", first=moved[0])
    if facts(pair)["modes"] != modes:
        raise lesson.not_yet("modes")
    if not _same(pair, wanted):
        if idle:
            raise lesson.not_yet("no-gradient", turn=idle[0])
        without_old, others = _gan(started)
        _play(answer, without_old, others, rounds, flags, old=False)
        raise lesson.not_yet("old-gradients" if _same(without_old, wanted) else "other-weights")


def _gan(like=None):
    """A generator and a critic of which some is frozen, and an optimizer for each that holds all of it."""
    layers = [nn.Linear(4, 6).requires_grad_(False), nn.ReLU(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 1)]
    layers[2].bias.requires_grad_(False)
    generator = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4))
    pair = nn.ModuleDict({"generator": generator, "critic": nn.Sequential(*layers)})
    if like is not None:
        pair.load_state_dict(like.state_dict())
    return pair, {name: torch.optim.SGD(part.parameters(), lr=0.3, momentum=0.5) for name, part in pair.items()}


def _reference_round(pair, optimizers, noise, real):
    generator, critic = pair["generator"], pair["critic"]
    for whose, part in (("critic", critic), ("generator", generator)):
        trained = [parameter for parameter in part.parameters() if parameter.requires_grad]
        fake = generator(noise)
        if whose == "critic":
            loss = softplus(critic(fake)).mean() + softplus(-critic(real)).mean()
        else:
            loss = softplus(-critic(fake)).mean()
        optimizers[whose].zero_grad()
        loss.backward(inputs=trained)
        optimizers[whose].step()


def _play(answer, pair, optimizers, rounds, flags, old=True):
    """Some rounds of the answer; in whose turns no gradient of theirs was seen. Without ``old``, .grad begins as None.

    Refused after each round: other flags, other steps, and gradients of the network whose turn it is not.
    """
    log: list[str] = []
    idle: list[str] = []
    handles = [
        parameter.register_hook(lambda grad, whose=whose: log.append(whose))
        for whose, part in pair.items()
        for parameter in part.parameters()
        if parameter.requires_grad
    ]
    for whose, optimizer in optimizers.items():
        handles.append(optimizer.register_step_post_hook(lambda *_, whose=whose: log.append(f"step of {whose}")))
    if old:
        for parameter in pair.parameters():
            parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    for noise, real in rounds:
        if not old:
            pair.zero_grad()
        log.clear()
        run(answer, pair["generator"], pair["critic"], optimizers["generator"], optimizers["critic"], noise, real)
        named = zip(pair.named_parameters(), flags, strict=True)
        others = {name: parameter.requires_grad for (name, parameter), flag in named if parameter.requires_grad != flag}
        if others:
            names = [name for name, trains in others.items() if trains] or list(others)
            key = "thawed" if others[names[0]] else "left-frozen"
            raise lesson.not_yet(key, number=len(names), first=names[0])
        steps = [event for event in log if event.startswith("step")]
        if steps != ["step of critic", "step of generator"]:
            raise lesson.not_yet("steps", steps=", ".join(steps) or "none")
        first = log.index("step of critic")
        for turn, other, events in (("critic", "generator", log[:first]), ("generator", "critic", log[first:])):
            if other in events:
                raise lesson.not_yet(f"stray-{other}" if turn in events else "no-gradient", turn=turn)
            if turn not in events:  # or it was computed by torch.func, of which a hook hears nothing
                idle.append(turn)
    for handle in handles:
        handle.remove()
    return idle


def _same(one, other):
    now, wanted = one.state_dict(), other.state_dict()
    return all(torch.allclose(now[name], wanted[name], 1e-4, 1e-6) for name in wanted)


@lesson.exercise("lamp-on-the-side")
def lamp_on_the_side(answer):
    body = digits.pretrained().eval()
    body.fc = nn.Identity()
    net = nn.ModuleDict({"body": body, "read": nn.Linear(64, 5), "lamp": nn.Linear(64, 1)}).eval()
    batch = torch.rand(8, 1, 28, 28), torch.arange(8) % 5, torch.rand(8, 1)
    started, given, passed = copy.deepcopy(net), copy.deepcopy(batch), []
    handle = body.conv1.register_forward_hook(lambda module, inputs, output: passed.append(len(output)))
    run(answer, net, *batch)
    handle.remove()
    if not all(map(torch.equal, batch, given)):
        raise lesson.not_yet("data")
    before, now = facts(started), facts(net)
    for what in ("numbers", "flags", "modes"):
        if before[what] != now[what]:
            raise lesson.not_yet(what)
    reading, lamp = _side_gradients(started, *batch)
    grads = {name: parameter.grad for name, parameter in net.named_parameters()}
    if all(grad is None for grad in grads.values()):
        raise lesson.not_yet("no-gradients" if passed else "not-run")
    for part, wanted in (("body", reading), ("read", reading), ("lamp", lamp)):
        names = [name for name in wanted if name.startswith(f"{part}.")]
        if all(grads[name] is not None and _near(grads[name], wanted[name]) for name in names):
            continue
        if missing := [name for name in names if grads[name] is None]:
            raise lesson.not_yet("missing", part=part, number=len(missing), all=len(names))
        other = lamp if wanted is reading else reading
        both = {name: wanted[name] + other[name] if other[name] is not None else wanted[name] for name in names}
        if part == "body" and all(_near(grads[name], both[name]) for name in names):
            raise lesson.not_yet("both")
        raise lesson.not_yet("others", part=part)
    if sum(passed) != len(batch[0]):
        raise lesson.not_yet("passes", passes=sum(passed) / len(batch[0]))


def _side_gradients(net, images, labels, lights):
    """By name: the gradients of the reading loss, and those of the lamp's."""
    names, parameters = zip(*net.named_parameters(), strict=True)
    features = net["body"](images)
    losses = cross_entropy(net["read"](features), labels), mse_loss(net["lamp"](features), lights)
    grads = (torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) for loss in losses)
    return [dict(zip(names, each, strict=True)) for each in grads]


def _near(value, wanted):
    return value.shape == wanted.shape and torch.allclose(value, wanted, 1e-3, 1e-5)


@lesson.exercise("teacher-that-forgets")
def teacher_that_forgets(answer):
    student = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    for tensor in (*student.parameters(), *student[1].buffers()):
        tensor.data += 1  # not as a new network has them
    teacher = copy.deepcopy(student).requires_grad_(False)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.2)
    mine = [*teacher.parameters(), *teacher.buffers()]
    for share in (0.25, 0.25, 0.5):
        optimizer.zero_grad()
        for _ in range(2):  # two batches a step, so that the count of batches is not the count of calls
            student(torch.randn(8, 3) + 2).square().mean().backward()
        optimizer.step()
        old, before, of_student = copy.deepcopy(teacher), facts(student), copy.deepcopy(student)
        run(answer, teacher, student, share)
        if facts(student) != before:
            raise lesson.not_yet("student")
        _followed(teacher, old, of_student, share)
        now = [*teacher.parameters(), *teacher.buffers()]
        if len(now) != len(mine) or any(one is not other for one, other in zip(now, mine, strict=True)):
            raise lesson.not_yet("objects")
        memory = {tensor.untyped_storage().data_ptr() for tensor in (*student.parameters(), *student.buffers())}
        if shared := [n for n, tensor in teacher.state_dict().items() if tensor.untyped_storage().data_ptr() in memory]:
            raise lesson.not_yet("shared", first=shared[0])


def _followed(teacher, old, student, share):
    now, before, theirs = teacher.state_dict(keep_vars=True), old.state_dict(), student.state_dict()
    if now.keys() != before.keys():
        raise lesson.not_yet("came-or-went")
    if recorded := [name for name, tensor in now.items() if tensor.requires_grad]:
        key = "recorded" if now[recorded[0]].grad_fn else "flag"
        raise lesson.not_yet(key, first=recorded[0])
    parameters = [name for name, _ in old.named_parameters()]
    buffers = [name for name, _ in old.named_buffers()]

    def are(names, wanted):
        return all(_near(now[name].detach(), wanted[name]) for name in names)

    gone = {name: before[name].lerp(theirs[name], share) for name in parameters}
    back = {name: before[name].lerp(theirs[name], 1 - share) for name in parameters}
    if all(torch.equal(now[name], before[name]) for name in now):
        raise lesson.not_yet("as-it-was")
    if not are(parameters, gone):
        key = "whole" if are(parameters, theirs) else "other-way" if are(parameters, back) else "other-weights"
        key = "weights-stay" if are(parameters, before) else key
        raise lesson.not_yet(key, share=share)
    floats = [name for name in buffers if before[name].is_floating_point()]
    if not are(floats, theirs):
        key = "buffers-stay" if are(floats, before) else "buffers-others"
        raise lesson.not_yet(key, names=", ".join(name.rpartition(".")[2] for name in floats))
    if not are(buffers, theirs):
        raise lesson.not_yet("count")
