"""The exercises and predictions of the lesson on adapters."""

import copy
import io
import warnings
from collections import Counter, OrderedDict
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from helpers import saved_tensors
from helpers.lessons.exercises import Lesson, NotYet, changed, facts, kind, raises, run, table

lesson = Lesson("adapters")
check, predict, progress = lesson.check, lesson.predict, lesson.progress


class LowRank(nn.Module):
    """The update of the lesson."""

    def __init__(self, linear: nn.Linear, rank: int = 2, alpha: float = 4) -> None:
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.A = nn.Parameter(torch.empty(rank, linear.in_features))
        self.B = nn.Parameter(torch.zeros(linear.out_features, rank))
        nn.init.kaiming_uniform_(self.A, a=5**0.5)
        self.scale = alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.scale * (x @ self.A.T @ self.B.T)


@lesson.exercise("who-learns-in-an-adapter")
def who_learns_in_an_adapter(answer):
    beliefs = lesson.beliefs("who-learns-in-an-adapter")
    rows = dict.fromkeys(row for row, _ in beliefs)
    table(answer, {row: raises(partial(_seen, row)) for row in rows}, beliefs)


def _seen(row: str) -> bool:
    """What a row of the table claims, of a run of its own."""
    first, norm = nn.Linear(4, 4), nn.LayerNorm(4)
    body = nn.Sequential(first, norm, nn.Linear(4, 4)).requires_grad_(False)
    head, x = nn.Linear(4, 2), torch.randn(8, 4)
    optimizer: torch.optim.Optimizer = torch.optim.SGD([*body.parameters(), *head.parameters()], lr=0.1)
    body[0] = update = LowRank(first)
    named = {"A": update.A, "B": update.B, "norm": norm.weight}[row.partition(":")[0].partition(",")[0]]
    if "frozen again" in row:
        body.requires_grad_(False)
    if "early optimizer" not in row:
        trainable = [p for p in [*body.parameters(), *head.parameters()] if p.requires_grad]
        optimizer = (torch.optim.AdamW if "AdamW" in row else torch.optim.SGD)(trainable, lr=0.1)
    if "use_reentrant=True" in row:
        with warnings.catch_warnings(action="ignore"):
            features = checkpoint(body, x, use_reentrant=True)
    else:
        features = body(x)
    before = named.detach().clone()
    head(features).square().mean().backward()
    optimizer.step()
    return named.grad is not None if row.endswith("gradient") else not torch.equal(named, before)


@lesson.exercise("low-rank-update")
def low_rank_update(answer):
    for size, rank, alpha, bias in (((48, 40), 2, 8, True), ((30, 50), 1, 3, False), ((50, 40), 4, 4, True)):
        linear = nn.Linear(*size, bias=bias).requires_grad_(bias)
        before, x = copy.deepcopy(linear), torch.randn(2, 7, size[0])
        module = _module(run(answer, linear, rank, alpha))
        matrices = _trains_two(module, before, rank)
        started = _outputs(module, x, before)
        if not torch.allclose(started, before(x), 1e-4, 1e-5):
            raise lesson.not_yet("start-outputs-those")
        _begins_small(*matrices, rank)
        other = _module(run(answer, copy.deepcopy(before), rank, alpha))
        if torch.equal(_trains_two(other, before, rank)[0], matrices[0]):
            raise lesson.not_yet("not-drawn")
        for mode in (True, False):
            outputs, began = _outputs(module, x, before), [matrix.detach().clone() for matrix in matrices]
            _train(module, x)
            _is_untouched(linear, before)
            trained = _outputs(module, x, before)
            if not trained.isfinite().all():
                raise lesson.not_yet("not-finite")
            if not torch.equal(trained, _outputs(module, x, before)):
                raise lesson.not_yet("draws")
            if torch.allclose(trained, outputs, 1e-4, 1e-6):
                raise lesson.not_yet("learns-nothing")
            if still := [now for now, was in zip(matrices, began, strict=True) if torch.equal(now, was)]:
                raise lesson.not_yet("one-learns", shape=tuple(still[0].shape))
            _takes_any_shape(module, x, trained, before)
            _keeps_its_numbers(module, mode)
            _merges(module, linear, before, x, matrices, alpha)
        _passes_gradients(module, x)
        _is_whole_in_its_state_dict(partial(answer, rank=rank, alpha=alpha), module, before, x)


def _module(given: Any) -> nn.Module:
    if not isinstance(given, nn.Module):
        raise lesson.not_yet("no-module", kind=kind(given))
    return given


def _outputs(module: nn.Module, x: Tensor, linear: nn.Linear) -> Tensor:
    outputs = run(module, x)
    if not isinstance(outputs, Tensor) or outputs.shape != linear(x).shape:
        raise lesson.not_yet("other-shape", given=tuple(x.shape), due=tuple(linear(x).shape), got=_got(outputs))
    return outputs.detach()


def _got(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else kind(value)


def _trains_two(module: nn.Module, linear: nn.Linear, rank: int) -> tuple[nn.Parameter, nn.Parameter]:
    """The matrix next to the input, and the one next to the output."""
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    own = [linear.weight] if linear.bias is None else [linear.weight, linear.bias]
    if of_linear := [n for n, p in trainable.items() if any(p.shape == w.shape and torch.equal(p, w) for w in own)]:
        raise lesson.not_yet("linear-trains", name=of_linear[0])
    if not trainable:
        raise lesson.not_yet("nothing-trains")
    found = [
        [p for p in trainable.values() if p.shape in ((rank, size), (size, rank))]
        for size in (linear.in_features, linear.out_features)
    ]
    if len(trainable) != 2 or any(len(those) != 1 for those in found):
        shapes = ", ".join(f"{name} {tuple(p.shape)}" for name, p in trainable.items())
        due = f"({rank}, {linear.in_features}) and ({linear.out_features}, {rank})"
        raise lesson.not_yet("other-matrices", rank=rank, due=due, shapes=shapes)
    return found[0][0], found[1][0]


def _begins_small(A: Tensor, B: Tensor, rank: int) -> None:
    if not A.any():
        raise lesson.not_yet("a-is-zero" if B.any() else "both-zero")
    if B.any():
        raise lesson.not_yet("b-is-random")
    inputs = A.numel() // rank
    size = A.detach().square().mean().sqrt().item() * (inputs / 2) ** 0.5
    if not size <= 1.4:  # drawn with a mean square of 2 / inputs, it is 1 up to chance
        raise lesson.not_yet("large-start", size=size, inputs=inputs)
    if torch.linalg.matrix_rank(A.detach()).item() < rank:
        raise lesson.not_yet("equal-rows", rank=rank)


def _train(module: nn.Module, x: Tensor) -> None:
    # Adam's steps are as large whatever factor the update has.
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=0.01)
    for _ in range(4):
        optimizer.zero_grad()
        (run(module, x) - 1).square().mean().backward()
        optimizer.step()


def _is_untouched(linear: nn.Linear, before: nn.Linear) -> None:
    now, started = dict(linear.named_parameters()), dict(before.named_parameters())
    if now.keys() != started.keys():
        raise lesson.not_yet("linear-changed", names=", ".join(now))
    for name, parameter in now.items():
        if not torch.equal(parameter, started[name]):
            raise lesson.not_yet("linear-moved", name=name)
        if parameter.grad is not None:
            raise lesson.not_yet("linear-gradient", name=name)


def _takes_any_shape(module: nn.Module, x: Tensor, outputs: Tensor, linear: nn.Linear) -> None:
    for index in (0, (0, 0), None):
        try:
            if not torch.allclose(_outputs(module, x[index], linear), outputs[index], 1e-3, 1e-5):
                raise lesson.not_yet("other-outputs")
        except NotYet as reason:
            shapes = {"whole": tuple(x.shape), "part": tuple(x[index].shape)}
            raise lesson.not_yet("any-shape", reason=reason, **shapes) from None


def _keeps_its_numbers(module: nn.Module, mode: bool) -> None:
    """Leaves it in train mode or in eval mode."""
    before = facts(module)["numbers"]
    for each in (not mode, mode):
        module.train(each)
        if facts(module)["numbers"] != before:
            raise lesson.not_yet("train-changes-numbers", mode=each)


def _merges(module, linear, before, x, matrices, alpha):
    outputs, looks, layers = _outputs(module, x, before), facts(module), len([*module.modules()])
    merged = run(module.merged)
    now = "layers" if len([*module.modules()]) != layers else changed(module, looks)
    if not isinstance(merged, nn.Linear):
        raise lesson.not_yet("merged-kind", kind=kind(merged))
    if merged is linear:
        raise lesson.not_yet("merged-is-linear")
    _is_untouched(linear, before)
    if not torch.allclose(_outputs(module, x, before), outputs, 1e-4, 1e-6):
        raise lesson.not_yet("merged-disturbs")
    if now:
        raise lesson.not_yet("merged-changes", what=now)
    if (merged.bias is None) != (before.bias is None):
        raise lesson.not_yet("merged-bias", due="no" if before.bias is None else "a")
    if merged.weight.shape != before.weight.shape:
        shapes = {"due": tuple(before.weight.shape), "got": tuple(merged.weight.shape)}
        raise lesson.not_yet("merged-shape", inputs=before.in_features, outputs=before.out_features, **shapes)
    names, due = (", ".join(sorted(dict(layer.named_parameters()))) for layer in (merged, before))
    if names != due:
        raise lesson.not_yet("merged-parameters", due=due, got=names or "nothing")
    if not torch.allclose(merged(x), outputs, 1e-3, 1e-5):
        raise lesson.not_yet("merged-outputs")
    if not torch.allclose(nn.functional.linear(x, merged.weight, merged.bias), outputs, 1e-3, 1e-5):
        raise lesson.not_yet("merged-by-other-means")
    own = {p.untyped_storage().data_ptr() for p in (*module.state_dict().values(), *linear.parameters())}
    if shared := [name for name, p in merged.named_parameters() if p.untyped_storage().data_ptr() in own]:
        raise lesson.not_yet("merged-shares", name=shared[0])
    _has_the_scale(merged.weight.detach() - before.weight.detach(), *matrices, alpha)
    _train(module, x)
    if not torch.allclose(merged(x), outputs, 1e-3, 1e-5):
        raise lesson.not_yet("merged-follows")


def _has_the_scale(change: Tensor, A: Tensor, B: Tensor, alpha: float) -> None:
    outputs, inputs = change.shape
    A, B = (A if A.shape[1] == inputs else A.T).detach(), (B if B.shape[0] == outputs else B.T).detach()
    rank = len(A)
    size = change.norm()
    for factor, key in ((alpha / rank, ""), (1, "no-scale"), (alpha, "only-alpha"), (1 / rank, "only-rank")):
        if (change - factor * B @ A).norm() <= 1e-2 * size:
            if key:
                raise lesson.not_yet(key, alpha=alpha, rank=rank)
            return
    raise lesson.not_yet("other-change", alpha=alpha, rank=rank)


def _passes_gradients(module: nn.Module, x: Tensor) -> None:
    """The layers before it have to learn, too."""
    gradients: list[Any] = []
    for layer in (module, run(module.merged)):
        given = x.clone().requires_grad_()
        gradients += torch.autograd.grad(layer(given).square().sum(), given, allow_unused=True)
    got, due = gradients
    if got is None or not torch.allclose(got, due, 1e-3, 1e-5):
        raise lesson.not_yet("other-input-gradient")


def _is_whole_in_its_state_dict(answer, module, linear, x):
    other = _module(run(answer, nn.Linear(linear.in_features, linear.out_features, linear.bias is not None)))
    other.load_state_dict(module.state_dict())
    if not torch.allclose(_outputs(other, x, linear), _outputs(module, x, linear), 1e-4, 1e-6):
        raise lesson.not_yet("not-in-state-dict")


@lesson.exercise("adapter-in-a-file")
def adapter_in_a_file(answer):
    for width, norm in ((8, False), (6, True)):
        base = _network(width, norm)
        trained, fresh = _adapted(base), _adapted(base)
        _trained(trained)
        file, began, known = _File(), copy.deepcopy(fresh), copy.deepcopy(trained)
        run(answer, trained, fresh, file)
        for which, one, other in (("trained", trained, known), ("fresh", fresh, began)):
            _flags_and_modes(which, one, other)
        if any(not torch.equal(v, known.state_dict()[n]) for n, v in trained.state_dict().items()):
            raise lesson.not_yet("trained-changed")
        read, numbers = file.was_read, _in_file(file, trained)
        if frozen := [n for n, p in fresh.named_parameters() if not p.requires_grad and _differs(p, began, n)]:
            raise lesson.not_yet("frozen-changed", name=frozen[0])
        if not numbers:
            raise lesson.not_yet("no-tensors")
        _comes_back(trained, fresh, began)
        if not read or numbers < sum(p.numel() for p in trained.parameters() if p.requires_grad):
            raise lesson.not_yet("not-by-the-file" if read else "not-read")
        _trained(trained)
        if all(torch.equal(v, fresh.state_dict()[n]) for n, v in trained.state_dict().items()):
            raise lesson.not_yet("shared")


class _File(io.BytesIO):
    """A file that knows whether somebody has read from it."""

    was_read = False

    def __getattribute__(self, name: str) -> Any:
        if name.startswith(("read", "get")):
            self.was_read = True
        return super().__getattribute__(name)


def _network(width: int, norm: bool) -> nn.Module:
    middle: nn.Module = nn.BatchNorm1d(width) if norm else nn.Tanh()
    parts = OrderedDict(
        first=nn.Linear(5, width), middle=middle, second=nn.Linear(width, width), fc=nn.Linear(width, 3)
    )
    return nn.Sequential(parts)


def _adapted(base: nn.Module) -> Any:
    """A copy of a frozen base with updates and a head of its own, both random."""
    model: Any = copy.deepcopy(base).requires_grad_(False)
    model.first, model.second = LowRank(model.first), LowRank(model.second)
    model.fc = nn.Linear(model.fc.in_features, 3)
    return model


def _trained(model: nn.Module) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model.train()(torch.randn(9, 5) + 1), torch.arange(9) % 3).backward()
        optimizer.step()
    optimizer.zero_grad()


def _differs(parameter: Tensor, began: nn.Module, name: str) -> bool:
    return not torch.equal(parameter, began.state_dict()[name])


def _flags_and_modes(which: str, model: nn.Module, before: nn.Module) -> None:
    for what in ("modes", "flags"):
        if facts(model)[what] != facts(before)[what]:
            raise lesson.not_yet("flags-or-modes", which=which, what=what)
    if model.state_dict().keys() != before.state_dict().keys():
        raise lesson.not_yet("other-entries", which=which)


def _in_file(file: io.BytesIO, trained: nn.Module) -> int:
    """How many numbers of tensors are in it."""
    if file.closed or not file.getvalue():
        raise lesson.not_yet("closed" if file.closed else "empty")
    try:
        content = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    except Exception as error:
        raise lesson.not_yet("cannot-be-loaded", error=type(error).__name__) from None
    tensors = list(_tensors(content))
    frozen = {name: p for name, p in trained.named_parameters() if not p.requires_grad}
    for name, parameter in frozen.items():
        if any(t.shape == parameter.shape and torch.equal(t, parameter) for t in tensors):
            raise lesson.not_yet("base-in-file", name=name)
    # The storage of a slice is saved whole.
    return sum(t.untyped_storage().nbytes() // t.element_size() for t in tensors)


def _tensors(content: Any, depth: int = 4) -> Iterator[Tensor]:
    if isinstance(content, Tensor):
        yield content
    elif isinstance(content, dict | list | tuple) and depth:
        for one in content.values() if isinstance(content, dict) else content:
            yield from _tensors(one, depth - 1)


def _comes_back(trained: nn.Module, fresh: nn.Module, began: nn.Module) -> None:
    due, got, before = trained.state_dict(), fresh.state_dict(), began.state_dict()
    missing = [name for name in due if not torch.equal(due[name], got[name])]
    if not missing:
        return
    if all(torch.equal(got[name], before[name]) for name in due):
        raise lesson.not_yet("nothing-came")
    rounded = [n for n in missing if not torch.equal(got[n], before[n]) and torch.allclose(got[n], due[n], 1e-2, 1e-2)]
    if rounded:
        raise lesson.not_yet("rounded", name=rounded[0])
    if heads := [name for name in missing if name.startswith("fc.")]:
        raise lesson.not_yet("no-head", name=heads[0])
    if buffers := [name for name in missing if name in dict(trained.named_buffers())]:
        raise lesson.not_yet("no-buffers", name=buffers[0])
    raise lesson.not_yet("not-all", number=len(missing), name=missing[0])


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
        # Layers and not blocks are counted: an answer may run the layers of a block without calling the block.
        layers = [layer for block in blocks for layer in block]
        for name, layer in (("backbone", backbone[0]), *(("layers", layer) for layer in layers)):
            layer.register_forward_pre_hook(lambda *_, name=name, runs=runs: runs.update([name]))
        torch.manual_seed(1)
        with saved_tensors(parts) as saved:
            output = run(answer, backbone, blocks, x)
        _is_the_same(output, wanted, parts, x)
        if turned := [name for name, part in parts.named_modules() if part.training is not modes[name]]:
            raise lesson.not_yet("other-mode", name=turned[0])
        torch.rand(3)  # what a loss may draw meanwhile
        output.square().sum().backward()
        _has_gradients(parts, plain, drop)
        if runs["backbone"] > 1:
            raise lesson.not_yet("backbone-twice")
        if of_backbone := [name for name in saved.by_module if name.startswith("backbone")]:
            raise lesson.not_yet("backbone-kept", name=of_backbone[0])
        if saved.nbytes * 3 > kept.nbytes * 2:
            raise lesson.not_yet("too-many-bytes", got=saved.nbytes, plain=kept.nbytes)
        again = runs["layers"] - len(layers)
        if again * 3 < len(layers):
            raise lesson.not_yet("kept-elsewhere", again=again, layers=len(layers))
        if backbone(x).requires_grad:
            raise lesson.not_yet("hook-left")


def _is_the_same(output, wanted, parts, x):
    if not isinstance(output, Tensor) or output.shape != wanted.shape:
        raise lesson.not_yet("other-result", due=tuple(wanted.shape), got=_got(output))
    if x.requires_grad:
        raise lesson.not_yet("x-marked")
    if turned := [name for name, p in parts.named_parameters() if p.requires_grad == name.startswith("backbone")]:
        raise lesson.not_yet("other-flag", name=turned[0])
    if not all(part.training for part in parts["blocks"].modules()):
        raise lesson.not_yet("blocks-in-eval-mode")
    if not torch.allclose(output, wanted, 1e-4, 1e-6):
        raise lesson.not_yet("other-numbers")
    if not output.requires_grad:
        raise lesson.not_yet("not-recorded")


def _has_gradients(parts, plain, drop):
    if reached := [name for name, p in parts["backbone"].named_parameters() if p.grad is not None]:
        raise lesson.not_yet("backbone-gradient", name=reached[0])
    for (name, p), (_, due) in zip(parts["blocks"].named_parameters(), plain.named_parameters(), strict=True):
        if p.grad is None:
            raise lesson.not_yet("no-gradient", name=name)
        if not torch.allclose(p.grad, due.grad, 1e-4, 1e-6):
            raise lesson.not_yet("other-masks" if drop else "other-gradient", name=name)
