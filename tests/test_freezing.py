"""What is frozen neither moves nor draws, whatever train() is called; unfreeze gives back what was before, exactly."""

import copy
import re
from functools import partial

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from helpers.auditing import audit
from helpers.freezing import freeze, frozen_modules, held_parts, unfreeze


def resnet():
    from torchvision.models import resnet18

    return resnet18(weights=None, num_classes=5), torch.randn(4, 3, 32, 32)


def mobilenet():
    from torchvision.models import mobilenet_v2

    return mobilenet_v2(weights=None, num_classes=5), torch.randn(4, 3, 32, 32)


def norms():
    layers = [
        nn.Conv1d(2, 4, 3),
        nn.SyncBatchNorm(4),
        nn.BatchNorm1d(4, affine=False, momentum=None),
        nn.Tanh(),
        nn.InstanceNorm1d(4, affine=True, track_running_stats=True),
        nn.InstanceNorm1d(4, track_running_stats=True),
    ]
    return nn.Sequential(*layers), torch.randn(4, 2, 8)


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.block = nn.ModuleDict({"pair": nn.ModuleList([nn.Linear(3, 3), nn.BatchNorm1d(3)])})
        self.plain = nn.Sequential(nn.Sequential(nn.BatchNorm1d(3, affine=False)), nn.Linear(3, 3))

    def forward(self, x):
        first, second = self.block["pair"]
        return self.plain(second(first(x * self.scale)))


def nested():
    return Nested(), torch.randn(4, 3)


def lazy():
    layers = nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.LazyBatchNorm2d(affine=False)
    return nn.Sequential(*layers), torch.randn(4, 2, 5, 5)


def materialized():
    net, x = lazy()
    net(x)
    return net, x


def transformer():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.Sequential(nn.Linear(3, 8), layer), torch.randn(4, 5, 3)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.out = nn.Embedding(6, 3), nn.BatchNorm1d(3), nn.Linear(3, 6)
        self.out.weight = self.embed.weight

    def forward(self, x):
        return self.out(self.norm(self.embed(x)))


def tied():
    return Tied(), torch.arange(4)


ZOO = [resnet, mobilenet, norms, nested, lazy, materialized, transformer, tied]
zoo = pytest.mark.parametrize("make", ZOO)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def with_head(make):
    backbone, x = make()
    return nn.Sequential(backbone, nn.Flatten(), nn.LazyLinear(2)), x


def steps(net, x, optimizer=None):
    """Three training steps; the names of the state_dict entries that changed."""
    optimizer = optimizer or torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    before = {name: entry.clone() for name, entry in net.state_dict().items()}
    for _ in range(3):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    return {name for name, entry in net.state_dict().items() if not torch.equal(entry, before[name])}


def flags(net):
    return {name: parameter.requires_grad for name, parameter in net.named_parameters(remove_duplicate=False)}


def modes(net):
    return {name: module.training for name, module in net.named_modules()}


def attributes(net):
    """The names of everything that any module holds, so that nothing can be left behind."""
    return {name: set(vars(module)) for name, module in net.named_modules()}


# What freeze holds still


def test_textbook_recipe_changes_only_the_new_head():
    net, x = resnet()
    freeze(net)
    net.fc = nn.Linear(512, 100)
    net.train()
    assert len(net.state_dict()) == 122
    assert steps(net, x, torch.optim.SGD(net.fc.parameters(), lr=0.1)) == {"fc.weight", "fc.bias"}


@zoo
def test_nothing_frozen_changes_in_train_mode(make):
    net, x = with_head(make)
    with torch.no_grad():
        net.eval()(x)
    names = freeze(net, "0.*")
    assert names == [name for name in flags(net) if name.startswith("0.")]
    assert flags(net) == {name: name.startswith("2.") for name in flags(net)}
    # The features of a fresh MobileNetV2 are too small to move the head's weight.
    assert {"2.bias"} <= steps(net.train(), x) <= {"2.weight", "2.bias"}
    assert {name for name, mode in modes(net).items() if not mode} == {f"0.{name}".strip(".") for name in modes(net[0])}


@pytest.mark.parametrize("make", [resnet, norms, nested, materialized])
def test_features_of_one_image_do_not_depend_on_its_batch(make):
    net, x = make()
    net.train()
    alone, beside = net(x[:2])[:1], net(torch.cat([x[:1], x[2:] + 5]))[:1]
    assert not torch.allclose(alone, beside, atol=1e-2)
    freeze(net)
    net.train()
    torch.testing.assert_close(net(x[:1]), net(torch.cat([x[:1], x[2:] + 5]))[:1], rtol=1e-3, atol=1e-4)


@zoo
def test_freeze_keeps_objects_keys_hooks_and_hyperparameters(make):
    net, _ = make()

    def described():
        return (
            [id(p) for p in net.parameters()],
            [id(b) for b in net.buffers()],
            [id(m) for m in net.modules()],
            list(net.state_dict()),
            [len(m._forward_pre_hooks) + len(m._forward_hooks) + len(m._backward_hooks) for m in net.modules()],
            repr(net),
        )

    before = described()
    freeze(net)
    assert described() == before
    unfreeze(net)
    assert described() == before


@pytest.mark.parametrize("optimizer", ["SGD momentum", "SGD decay", "Adam", "AdamW"])
@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("when", ["after backward", "after zero_grad"])
def test_freezing_late_stops_at_once(optimizer, set_to_none, when):
    build = {
        "SGD momentum": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        "SGD decay": partial(torch.optim.SGD, lr=0.1, weight_decay=0.1),
        "Adam": torch.optim.Adam,
        "AdamW": torch.optim.AdamW,
    }[optimizer]
    net, x = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)), torch.randn(8, 3)
    optimizer = build(net.parameters())
    assert {"0.weight", "1.weight", "1.running_mean"} < steps(net, x, optimizer)
    optimizer.zero_grad(set_to_none=set_to_none)
    if when == "after backward":
        net(x).square().mean().backward()
    before = copy.deepcopy(net[:2].state_dict())
    freeze(net, "0.*", "1.*")
    optimizer.step()
    for _ in range(3):
        optimizer.zero_grad(set_to_none=set_to_none)
        net.train()(x).square().mean().backward()
        optimizer.step()
    assert [name for name, entry in net[:2].state_dict().items() if not torch.equal(entry, before[name])] == []


def test_freezing_drops_the_gradient_of_what_was_frozen_by_hand_and_no_other():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    net(torch.ones(1, 2)).sum().backward()
    net[0].requires_grad_(False)
    freeze(net, "0.*")
    assert [parameter.grad is None for parameter in net.parameters()] == [True, True, False, False]


def test_freezing_between_forward_and_backward_keeps_no_gradient():
    net = nn.Linear(2, 1)
    loss = net(torch.ones(1, 2)).sum()
    freeze(net, "weight")
    loss.backward()
    assert net.weight.grad is None and net.bias.grad is not None


def test_a_frozen_layer_passes_the_gradient_on():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    freeze(net, "1.*")
    net(torch.randn(4, 2)).sum().backward()
    assert [layer.weight.grad is not None for layer in net] == [True, False, True]


# What is held


def drifts(norm):
    before = norm.num_batches_tracked.clone()
    norm(torch.randn(4, norm.num_features))
    return not torch.equal(before, norm.num_batches_tracked)


def test_hold_false_sets_flags_only():
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    before = modes(net)
    assert freeze(net, hold=False) == list(flags(net))
    assert modes(net.train()) == before and drifts(net[1]) and not any(flags(net).values())
    freeze(net)
    assert not drifts(net.train()[1])
    freeze(net, hold=False)
    assert not drifts(net.train()[1])


def test_a_part_is_held_only_when_all_its_parameters_are_frozen():
    net = nn.Sequential(nn.BatchNorm1d(3))
    freeze(net, "0.weight")
    assert drifts(net.train()[0])
    freeze(net, "0.bias")
    assert not drifts(net.train()[0])
    unfreeze(net, "0.weight")
    assert drifts(net[0])


def test_a_module_without_parameters_follows_the_module_around_it():
    net, _ = nested()
    plain = net.plain[0][0]
    freeze(net, "block.*")
    assert drifts(plain)
    freeze(net, "plain.1.bias")
    assert drifts(plain)
    freeze(net, "plain.*")
    assert not drifts(plain)
    unfreeze(net, "block.*")
    assert not drifts(plain.train())
    unfreeze(net, "plain.1.bias")
    assert drifts(plain)


def test_what_was_frozen_by_hand_is_held_with_the_part_that_freeze_completes():
    net = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3)).requires_grad_(False)
    freeze(net, "0.bias")
    assert [drifts(norm) for norm in net.train()] == [False, False]
    freeze(net)
    unfreeze(net, "1.*")
    assert [drifts(norm) for norm in net.train()] == [False, False]  # all of it is frozen, and some of it by freeze
    with pytest.warns(UserWarning, match=r"these stay frozen: 1.weight, 1.bias\. "):
        assert unfreeze(net) == ["0.weight", "0.bias"]
    assert [drifts(norm) for norm in net] == [True, True] and not any(flags(net).values())


def test_module_without_parameters():
    assert freeze(nn.ReLU()) == unfreeze(nn.ReLU()) == []
    net = nn.Sequential(nn.Linear(3, 3).requires_grad_(False), nn.BatchNorm1d(3, affine=False), nn.Linear(3, 1))
    for layer in net[:2]:
        freeze(layer)
    assert not drifts(net.train()[1])
    unfreeze(net, "0.*")
    assert not drifts(net[1])  # it was frozen by itself
    assert unfreeze(net) == [] and drifts(net[1])


@pytest.mark.parametrize(("frozen", "other"), ["ab", "ba"])
def test_a_norm_shared_by_a_frozen_and_a_trainable_part_trains(frozen, other):
    norm = nn.BatchNorm1d(3, affine=False)
    net = nn.ModuleDict({name: nn.Sequential(nn.Linear(3, 3), norm) for name in "ab"})
    freeze(net, f"{frozen}.*")
    assert drifts(norm) and drifts(norm.train())
    net.eval()
    net.train()
    assert drifts(norm) and not net[frozen].training
    freeze(net, f"{other}.*")
    net.train()
    assert not drifts(norm)
    unfreeze(net, f"{frozen}.*")
    assert drifts(norm)


def test_unfreezing_one_part_leaves_the_others():
    net = nn.Sequential(*(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)) for _ in range(3)))
    freeze(net)
    net.train()
    assert unfreeze(net, "2.*") == ["2.0.weight", "2.0.bias", "2.1.weight", "2.1.bias"]
    assert [drifts(block[1]) for block in net] == [False, False, True]
    unfreeze(net, "1.*")
    assert [drifts(block[1]) for block in net] == [False, True, True]


# Undo


@zoo
@pytest.mark.parametrize("by_hand", [False, True])
def test_unfreeze_restores_flags_modes_and_attributes(make, by_hand):
    net, _ = make()
    if by_hand:
        next(net.parameters()).requires_grad = False
    before = flags(net), modes(net), attributes(net)
    names = freeze(net)
    assert not any(flags(net).values())
    assert freeze(net) == names
    assert unfreeze(net) == names
    assert (flags(net), modes(net), attributes(net)) == before


@pytest.mark.parametrize("make", [resnet, norms, tied, materialized])
def test_unfrozen_statistics_move_again(make):
    net, x = with_head(make)
    net(x)
    before = {name for name, _ in net.named_buffers() if "running" in name}
    freeze(net)
    unfreeze(net.train())
    assert before <= steps(net, x)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("then", [[], [True], [False], [True, False], [False, True], [False, True, True]])
def test_unfreeze_gives_the_mode_that_was_asked_last(first, then):
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout())
    twin = copy.deepcopy(net)
    net.train(first), twin.train(first)
    freeze(net)
    for mode in then:
        assert net.train(mode) is net and net[1].train(mode) is net[1]
        twin.train(mode)
        assert not any(modes(net).values())
    unfreeze(net)
    assert modes(net) == modes(twin)


def test_unfreezing_what_is_around_a_part_is_no_wish_for_its_mode():
    net = nn.Sequential(nn.Sequential(nn.Linear(3, 3), nn.Dropout()), nn.Linear(3, 2))
    freeze(net)
    net.train()[0].eval()
    unfreeze(net, "1.*")
    unfreeze(net, "0.*")
    assert modes(net) == {"": True, "0": False, "0.0": False, "0.1": False, "1": True}


def test_flag_set_by_hand_after_freeze_counts_as_trainable_when_frozen_again():
    net = nn.Linear(2, 2).requires_grad_(False)
    freeze(net)
    net.requires_grad_(True)
    freeze(net)
    unfreeze(net)
    assert flags(net) == {"weight": True, "bias": True}


def test_unfreeze_leaves_what_was_frozen_by_hand_before_or_beside():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    net[0].requires_grad_(False)
    freeze(net, "1.*")
    net[2].bias.requires_grad_(False)
    with pytest.warns(UserWarning, match="these stay frozen: 0.weight, 0.bias, 2.bias. Either freeze"):
        assert unfreeze(net) == ["1.weight", "1.bias"]
    assert [name for name, flag in flags(net).items() if not flag] == ["0.weight", "0.bias", "2.bias"]


def test_part_and_whole_know_of_each_other():
    net = nn.Sequential(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), nn.Linear(3, 1))
    assert freeze(net[0], "1.*") == ["1.weight", "1.bias"]
    assert unfreeze(net) == ["0.1.weight", "0.1.bias"]
    freeze(net)
    assert unfreeze(net[0]) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert drifts(net[0][1]) and not any(flags(net[1]).values())


@pytest.mark.parametrize("pattern", ["embed.*", "out.weight"])
def test_tied_weights_freeze_and_unfreeze_under_both_names(pattern):
    net, _ = tied()
    assert freeze(net, pattern) == ["embed.weight", "out.weight"]
    assert flags(net) == {name: name not in ("embed.weight", "out.weight") for name in flags(net)}
    other = "out.weight" if pattern == "embed.*" else "embed.*"
    assert unfreeze(net, other) == ["embed.weight", "out.weight"]
    assert all(flags(net).values())
    assert unfreeze(net) == []


def test_tied_weights_frozen_through_a_part_are_unfrozen_through_the_other_name():
    net, _ = tied()
    freeze(net.embed)
    assert unfreeze(net, "out.weight") == ["embed.weight", "out.weight"]
    assert all(flags(net).values()) and attributes(net) == attributes(tied()[0])


def test_a_shared_module_and_a_parameter_held_twice_have_all_their_names():
    layer = nn.Linear(2, 2, bias=False)
    layer.again = layer.weight
    net = nn.ModuleDict({"a": layer, "b": nn.Sequential(layer), "c": nn.Linear(2, 2, bias=False)})
    names = ["a.weight", "a.again", "b.0.weight", "b.0.again"]
    assert freeze(net, "b.0.again") == names
    assert unfreeze(net, "a.weight") == names


# Layers that are special


def test_lazy_modules_stay_frozen_when_they_materialize():
    net, x = lazy()
    before = flags(net)
    freeze(net)
    with pytest.raises(ValueError, match="uninitialized"):
        net[0].weight.sum()
    net.train()(x)
    assert type(net[1]) is nn.BatchNorm2d and not any(flags(net).values())
    assert [norm.num_batches_tracked.item() for norm in net[1:]] == [0, 0]
    unfreeze(net)
    net(x)
    assert flags(net) == before and [norm.num_batches_tracked.item() for norm in net[1:]] == [1, 1]


def test_a_train_method_of_the_layers_own_is_respected():
    class Stubborn(nn.BatchNorm1d):
        def __init__(self, features):
            super().__init__(features)
            self.drop = nn.Dropout()

        def train(self, mode=True):
            super().train(mode)
            self.training = False
            return self

    net = nn.Sequential(Stubborn(3))
    freeze(net)
    net.train()
    assert not net[0].drop.training and not net[0].training
    unfreeze(net)
    assert net[0].drop.training and not net[0].training

    calls = []
    layer = nn.BatchNorm1d(3)
    layer.train = own = calls.append
    freeze(layer)
    layer.train()
    assert calls == [False, False] and not layer.training
    unfreeze(layer)
    assert layer.train is own and calls[2:] == [True, True]

    class Backbone(nn.Sequential):
        def train(self, mode=True):
            super().train(mode)
            self[1].eval()
            return self

    net = nn.Sequential(Backbone(nn.Linear(3, 3), nn.BatchNorm1d(3)), nn.Linear(3, 2))
    freeze(net, "0.*")
    assert not any(modes(net.train()[0]).values())
    unfreeze(net)
    assert modes(net[0]) == {"": True, "0": True, "1": False}


def test_wrong_mode_is_still_refused():
    layer = nn.BatchNorm1d(3)
    freeze(layer)
    with pytest.raises(ValueError, match="boolean"):
        layer.train("yes")


# Copies


def through_deepcopy(net, path):
    return copy.deepcopy(net)


def through_file(net, path):
    torch.save(net, path)
    return torch.load(path, weights_only=False)


@pytest.mark.parametrize("through", [through_deepcopy, through_file])
@pytest.mark.parametrize("make", [resnet, norms, nested, materialized, tied])
def test_copies_are_frozen_and_independent(make, through, tmp_path):
    net, x = make()
    net.train()
    before = flags(net), modes(net), attributes(net)
    freeze(net)
    frozen = flags(net), modes(net), attributes(net)
    twin = through(net, tmp_path / "net.pt")
    whole = nn.Sequential(twin, nn.Flatten(), nn.LazyLinear(2))
    assert (flags(twin), modes(twin), attributes(twin)) == frozen
    whole(x)
    assert steps(whole.train(), x) == {"2.weight", "2.bias"}
    twin.eval()
    unfreeze(twin.train())
    assert (flags(twin), modes(twin), attributes(twin)) == before
    assert (flags(net), modes(net.train()), attributes(net)) == frozen
    unfreeze(net)
    assert (flags(net), modes(net), attributes(net)) == before


def test_state_dict_carries_neither_flags_nor_anything_new(tmp_path):
    net, x = norms()
    plain, _ = norms()
    freeze(net)
    assert list(net.state_dict()) == list(plain.state_dict())
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    weights = torch.load(tmp_path / "weights.pt", weights_only=True)
    plain.load_state_dict(weights)
    assert all(flags(plain).values()) and all(modes(plain.train()).values())
    torch.testing.assert_close(plain.eval()(x), net(x), rtol=0, atol=0)
    for assign in (False, True):
        net.load_state_dict(weights, assign=assign)
        assert not any(flags(net).values())
    unfreeze(net)
    assert all(flags(net).values())


def test_compiled_without_graph_breaks():
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3, affine=False))
    x = torch.randn(4, 3) + 1
    freeze(net)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), copy.deepcopy(net).eval()(x))
    compiled.train()
    compiled(x)
    assert [net[i].num_batches_tracked.item() for i in (1, 3)] == [0, 0]
    assert unfreeze(compiled)[0] == "_orig_mod.0.weight"
    compiled(x)
    assert [net[i].num_batches_tracked.item() for i in (1, 3)] == [1, 1]


# Errors


@pytest.mark.parametrize(
    ("pattern", "nearest"),
    [
        ("block", "block.*"),
        ("blok.*", "block.*"),
        ("block.pair.0.wieght", "block.pair.0.weight"),
        ("Scale", "scale"),
        ("block.pair.1.running_mean", "block.pair.1."),
        ("", "nearest"),
    ],
)
@pytest.mark.parametrize("call", [freeze, unfreeze])
def test_pattern_that_matches_nothing_names_the_nearest(call, pattern, nearest):
    net, _ = nested()
    if call is unfreeze:
        freeze(net)
    before = flags(net), modes(net), attributes(net)
    with pytest.raises(ValueError, match="no parameter name matches") as error:
        call(net, "scale", pattern)
    assert repr(pattern) in str(error.value) and nearest in str(error.value)
    assert (flags(net), modes(net), attributes(net)) == before


def test_pattern_on_a_module_without_parameters():
    with pytest.raises(ValueError, match="there are none"):
        freeze(nn.ReLU(), "*")


@pytest.mark.parametrize("call", [freeze, unfreeze])
def test_wrong_types_say_what_to_pass(call):
    net = nn.Linear(2, 2)
    message = f"{call.__name__}(model): model must be a torch.nn.Module, not a generator; pass the model itself"
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        call(net.parameters())
    with pytest.raises(TypeError, match="list: pass names one by one"):
        call(net, "weight", ["bias"])
    assert all(flags(net).values())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net: freeze(net, "1.*"), "no parameter name matches '1.*'; nearest: 2.*, 0.*, 2.bias"),
        (lambda net: freeze(net[1], "*"), "no parameter name matches '*'; nearest: there are none"),
        (
            lambda net: unfreeze(net.requires_grad_(False)),
            "'*' matches nothing that freeze() froze; frozen without it: 0.weight, 0.bias, 2.weight and 1 more. "
            "unfreeze() is an undo: to train these, set requires_grad_(True)",
        ),
    ],
)
def test_messages_tell_what_to_do(call, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)))


@pytest.mark.parametrize("patterns", [(), ("0.*",), ("*",), ("1.*", "0.weight")])
def test_unfreeze_of_what_was_frozen_by_hand_raises(patterns):
    net = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2), nn.Linear(2, 2))
    if len(patterns) == 2:
        freeze(net, "1.*")
    before = flags(net)
    with pytest.raises(ValueError, match=r"frozen without it: 0.weight.*requires_grad_\(True\)"):
        unfreeze(net, *patterns)
    assert flags(net) == before


def test_unfreeze_of_what_trains_anyway_does_nothing():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    freeze(net, "0.*")
    assert unfreeze(net, "1.*") == []
    unfreeze(net)
    assert unfreeze(net) == [] and all(flags(net).values())


# Random trees, random sequences, against a model that knows only names

LEAVES = {"linear": ("weight", "bias"), "tied": ("weight", "bias"), "norm": ("weight", "bias"), "plain": (), "drop": ()}
leaf = st.sampled_from(sorted(LEAVES))
trees = st.lists(st.lists(st.lists(leaf, max_size=2) | leaf, max_size=3) | leaf, min_size=1, max_size=3)


def build(tree, shared):
    if isinstance(tree, list):
        return nn.Sequential(*(build(part, shared) for part in tree))
    layer = {
        "linear": partial(nn.Linear, 3, 3),
        "tied": partial(nn.Linear, 3, 3),
        "norm": partial(nn.BatchNorm1d, 3),
        "plain": partial(nn.BatchNorm1d, 3, affine=False),
        "drop": nn.Dropout,
    }[tree]()
    if tree == "tied":
        layer.weight = shared
    return layer


class Predicted:
    """Flags, records and modes by name; tied weights share one key."""

    def __init__(self, tree):
        self.modes, self.keys = {}, {}
        self.walk(tree, "")
        self.flags = dict.fromkeys(self.keys.values(), True)
        self.records, self.held = {}, set()

    def walk(self, tree, name):
        self.modes[name] = True
        if isinstance(tree, list):
            for index, part in enumerate(tree):
                self.walk(part, f"{name}.{index}".lstrip("."))
        else:
            for own in LEAVES[tree]:
                self.keys[f"{name}.{own}"] = "shared" if (tree, own) == ("tied", "weight") else f"{name}.{own}"

    def match(self, patterns):
        def one(pattern):
            head, _, tail = pattern.partition("*")
            hits = {key for name, key in self.keys.items() if name.startswith(head) and name.endswith(tail)}
            return hits if "*" in pattern else {key for name, key in self.keys.items() if name == pattern}

        return [one(pattern) for pattern in patterns]

    def within(self, part):
        return {key for name, key in self.keys.items() if not part or name.startswith(part + ".")}

    def decided(self, part, decide, otherwise):
        """By the parameters within a part; without any, by those of the part around it."""
        while not self.within(part):
            if not part:
                return otherwise
            part = part.rpartition(".")[0]
        return decide(self.within(part))

    def frozen(self, part, otherwise):
        return self.decided(part, lambda keys: not any(self.flags[key] for key in keys), otherwise)

    def names(self, keys):
        return [name for name, key in self.keys.items() if key in keys]

    def freeze(self, patterns, hold):
        groups = self.match(patterns or ["*"])
        if patterns and not all(groups):
            return ValueError
        matched = set().union(*groups)
        for key in matched:
            self.records[key] = self.records.get(key) or self.flags[key]
            self.flags[key] = False
        frozen = {part for part in self.modes if hold and self.frozen(part, otherwise=not patterns)}
        for part in frozen:
            topmost = part == "" or part.rpartition(".")[0] not in frozen
            if topmost and (not patterns or self.within(part) & matched):
                self.held |= {inner for inner in self.modes if f"{inner}.".startswith(f"{part}." if part else "")}
        return self.names(matched)

    def unfreeze(self, patterns):
        groups = self.match(patterns or ["*"])
        if patterns and not all(groups):
            return ValueError
        for group in groups:
            by_hand = any(not self.flags[key] for key in group) and not group & self.records.keys()
            if by_hand and (patterns or not self.held):
                return ValueError
        matched = set().union(*groups)
        restored = matched & self.records.keys()
        for key in restored:
            self.flags[key] = self.records.pop(key)
        stay = set()
        for part in sorted(self.held):  # parents first
            ours = part.rpartition(".")[0] in stay if part else False
            ours = ours or self.decided(part, lambda keys: bool(keys & self.records.keys()), otherwise=bool(patterns))
            if ours and self.frozen(part, otherwise=True):
                stay.add(part)
        self.held = stay
        return self.names(restored)

    def train(self, part, mode):
        for name in self.modes:
            if not part or name == part or name.startswith(part + "."):
                self.modes[name] = mode


def check(net, predicted):
    assert flags(net) == {name: predicted.flags[key] for name, key in predicted.keys.items()}
    assert modes(net) == {name: mode and name not in predicted.held for name, mode in predicted.modes.items()}


def called(function, *args, **kwargs):
    try:
        return function(*args, **kwargs)
    except ValueError:
        return ValueError


@pytest.mark.filterwarnings("ignore:these stay frozen")
@settings(max_examples=80, deadline=None, derandomize=True)
@given(tree=trees, data=st.data())
def test_random_sequences_are_as_predicted(tree, data):
    net, predicted = build(tree, nn.Parameter(torch.ones(3, 3))), Predicted(tree)
    by_name = dict(net.named_parameters(remove_duplicate=False))
    for name, key in predicted.keys.items():
        if predicted.flags[key] and data.draw(st.integers(0, 3)) == 0:
            by_name[name].requires_grad = predicted.flags[key] = False
    initial, left = flags(net), attributes(net)
    globs = sorted({*by_name, "*", "*.weight", "*.bias", "none.*", *(f"{part}.*" for part in predicted.modes if part)})
    patterns = st.lists(st.sampled_from(globs), max_size=2)
    for action in data.draw(st.lists(st.sampled_from(["freeze", "freeze", "unfreeze", "train", "copy"]), max_size=8)):
        if action == "copy":
            net = copy.deepcopy(net)
        elif action == "train":
            part, mode = data.draw(st.sampled_from(sorted(predicted.modes))), data.draw(st.booleans())
            net.get_submodule(part).train(mode)
            predicted.train(part, mode)
        elif action == "freeze":
            chosen, hold = data.draw(patterns), data.draw(st.sampled_from([True, True, False]))
            assert called(freeze, net, *chosen, hold=hold) == predicted.freeze(chosen, hold)
        else:
            chosen = data.draw(patterns)
            assert called(unfreeze, net, *chosen) == predicted.unfreeze(chosen)
        check(net, predicted)
    called(unfreeze, net)
    assert flags(net) == initial and modes(net) == predicted.modes and attributes(net) == left


def test_what_counts_as_frozen_is_decided_by_all_parameters_in_a_module_tied_ones_too():
    block = nn.TransformerEncoderLayer(4, 2, 4)
    block.self_attn.requires_grad_(False).out_proj.requires_grad_(True)
    assert not any(frozen_modules(block).values())
    tied = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False), nn.Linear(2, 2))
    tied[1].weight = tied[0].weight.requires_grad_(False)
    assert frozen_modules(tied) == {"": False, "0": True, "1": True, "2": False}


# Every kind of thing that moves or draws in train mode


class OtherNorm(nn.Module):
    """A norm layer that is none of torch's."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(6))
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x):
        if self.training:
            self.mean.lerp_(x.detach().mean(0), 0.1)
        return (x - self.mean) * self.scale


class Codebook(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("codes", torch.randn(8, 6))

    def forward(self, x):
        near = torch.cdist(x, self.codes).argmin(1)
        if self.training:
            self.codes[near] = self.codes[near].lerp(x.detach(), 0.2)
        return self.codes[near]


class Functional(nn.Linear):
    """Dropout by function."""

    def __init__(self):
        super().__init__(6, 6)

    def forward(self, x):
        return nn.functional.dropout(super().forward(x), 0.5, self.training)


class Attention(nn.Module):
    """As in transformers: the probability is the Dropout's, the mode is asked of the module around it."""

    def __init__(self):
        super().__init__()
        self.qkv, self.drop = nn.Linear(6, 18), nn.Dropout(0.5)

    def forward(self, x):
        q, k, v = self.qkv(x)[None].chunk(3, -1)
        dropped = self.drop.p if self.training else 0.0
        return nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=dropped)[0]


class Recurrent(nn.LSTM):
    def __init__(self):
        super().__init__(6, 6, num_layers=2, dropout=0.5)

    def forward(self, x):
        return super().forward(x)[0]


class Path(nn.Module):
    """Drop path: leaves out a branch at random."""

    def __init__(self):
        super().__init__()
        self.branch, self.drop_prob = nn.Linear(6, 6), 0.5

    def forward(self, x):
        kept = torch.rand(len(x), 1) > self.drop_prob if self.training else 1
        return x + self.branch(x) * kept


class Layers(nn.Module):
    """Layer drop: leaves out a layer at random, for all examples."""

    def __init__(self):
        super().__init__()
        self.layers, self.layerdrop = nn.ModuleList(nn.Linear(6, 6) for _ in range(8)), 0.5

    def forward(self, x):
        for layer in self.layers:
            if not self.training or torch.rand(()) > self.layerdrop:
                x = layer(x)
        return x


KINDS = {
    "BatchNorm": lambda: nn.BatchNorm1d(6),
    "InstanceNorm": lambda: nn.Sequential(
        nn.Unflatten(1, (3, 2)), nn.InstanceNorm1d(3, affine=True, track_running_stats=True), nn.Flatten()
    ),
    "another library's norm": OtherNorm,
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6)),
    "spectral norm by a hook": lambda: nn.utils.spectral_norm(nn.Linear(6, 6)),
    "codebook": Codebook,
    "Dropout": lambda: nn.Sequential(nn.Linear(6, 6), nn.Dropout()),
    "dropout by function": Functional,
    "dropout in attention": Attention,
    "MultiheadAttention": lambda: nn.TransformerEncoderLayer(6, 2, 6),
    "dropout in an LSTM": Recurrent,
    "drop path": Path,
    "layer drop": Layers,
}
TRAINS = {
    "of the model": lambda net: net.train(),
    "of the part": lambda net: net[0].train(),
    "of each module": lambda net: [module.train() for module in net.modules()],
    "of each child, from within": lambda net: [module.train() for module in reversed(list(net.modules()))],
}


@pytest.mark.filterwarnings("ignore:enable_nested_tensor", "ignore:`torch.nn.utils.weight_norm`")
@pytest.mark.parametrize("train", TRAINS.values(), ids=TRAINS)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_each_kind_neither_moves_nor_draws(kind, train):
    net, x = nn.Sequential(nn.Sequential(nn.Linear(6, 6), kind()), nn.Linear(6, 2)), torch.randn(16, 6)
    net[0](x), net[0](x)
    before = copy.deepcopy(net[0].state_dict())
    first, again = net[0](x), net[0](x)
    moved = any(not torch.equal(entry, before[name]) for name, entry in net[0].state_dict().items())
    assert moved or not torch.equal(first, again)
    freeze(net, "0.*")
    expected = net.eval()(x)
    train(net)
    assert torch.equal(net(x), expected)
    assert steps(net, x) <= {"1.weight", "1.bias"}
    assert torch.equal(net[0](x), net[0](x)) and not any(modes(net[0]).values())
    unfreeze(net)
    assert all(modes(net[0]).values())


# Looked at when train() is called


def test_a_new_head_in_a_model_that_was_frozen_whole_trains_with_its_dropout_on():
    net = nn.Sequential(nn.Sequential(nn.Linear(3, 3), nn.Dropout()), nn.Dropout(), nn.Linear(3, 2))
    freeze(net)
    assert not any(modes(net.train()).values())
    net[2] = nn.Sequential(nn.Dropout(), nn.Linear(3, 2))
    assert {name for name, mode in modes(net.train()).items() if mode} == {"", "1", "2", "2.0", "2.1"}
    for child in net.children():
        child.train()
    assert {name for name, mode in modes(net).items() if mode} == {"", "1", "2", "2.0", "2.1"}
    net.eval()
    assert not any(modes(net).values())
    net[1].train()  # alone, as a framework may
    assert net[1].training


def test_a_dropout_taken_out_of_a_frozen_part_trains_in_a_new_head():
    old = nn.Sequential(nn.Linear(3, 3), nn.Dropout(), nn.Linear(3, 3))
    net = nn.ModuleDict({"body": nn.Linear(3, 3), "head": old})
    freeze(net)
    net["head"] = nn.Sequential(*old[:-1], copy.deepcopy(old[1]), nn.Linear(3, 2))  # while the old one is still there
    assert [part.training for part in net.train()["head"]] == [False, True, True, True]
    assert not net["body"].training
    del old
    assert [part.training for part in net.eval().train()["head"]] == [False, True, True, True]


def test_a_held_model_may_be_a_passing_value():
    def build():
        net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
        freeze(net, "0.*", "1.*")
        return net.eval()

    assert [part.training for part in build().train()] == [False, False, True]


class Raises(nn.Linear):
    def train(self, mode=True):
        if not mode:
            raise NotImplementedError("not supported yet")
        return super().train(mode)


@pytest.mark.parametrize("inside", ["raises", "no method"])
def test_a_train_that_raises_leaves_all_as_it_was(inside):
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), Raises(3, 3) if inside == "raises" else nn.Linear(3, 3))
    if inside == "no method":
        net[2].train = True
    net[0](torch.ones(1, 3)).sum().backward()
    before = flags(net), modes(net), attributes(net), net[0].weight.grad
    with pytest.raises((NotImplementedError, TypeError)):
        freeze(net)
    assert (flags(net), modes(net), attributes(net), net[0].weight.grad) == before
    assert len(freeze(net, hold=False)) == 6


def test_a_train_with_more_arguments_gets_them_and_a_loop_of_that_name_is_left_alone():
    class More(nn.BatchNorm1d):
        def train(self, mode=True, freeze_bn=False):
            self.told = freeze_bn
            return super().train(mode)

    class Loop(nn.Linear):
        def train(self, loader=None, epochs=1):
            return f"{epochs} epochs"

    net = More(3)
    freeze(net)
    net.train(True, freeze_bn=True)
    assert net.told and not net.training
    loop = Loop(3, 3)
    freeze(loop)
    assert loop.train(epochs=3) == "3 epochs" and not any(flags(loop).values())
    assert unfreeze(loop) == ["weight", "bias"]


def test_a_copy_knows_what_is_around_its_parts():
    net = nn.Sequential(nn.Sequential(nn.Linear(3, 3), nn.Dropout()), nn.Linear(3, 2))
    freeze(net)
    net.eval()
    twin = copy.deepcopy(net)
    unfreeze(twin[0])
    assert not twin[0].training  # eval() of the whole was asked last
    twin[0].append(nn.Linear(3, 3))
    twin[0][1].train()
    assert twin[0][1].training and not net[0][1].training


def test_a_part_is_copied_without_the_model_around_it(tmp_path):
    net = nn.Sequential(nn.Sequential(nn.Linear(3, 3), nn.Dropout()), nn.Linear(1000, 1000))
    freeze(net)
    assert not through_file(net[0], tmp_path / "part.pt").train()[1].training
    assert (tmp_path / "part.pt").stat().st_size < 50_000


@pytest.mark.parametrize("through", [lambda net, path: net, through_deepcopy, through_file])
def test_a_part_unfrozen_by_other_means_is_held_no_more(through, tmp_path):
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout())
    freeze(net)
    net = through(net, tmp_path / "net.pt")
    net.requires_grad_(True)
    assert all(modes(net.train()).values()) and drifts(net[1])
    freeze(net)
    assert not any(modes(net).values())


def test_a_framework_that_puts_modes_back_by_assignment_finds_them_as_they_were():
    net = nn.Sequential(nn.Sequential(nn.Linear(3, 3), nn.Dropout()), nn.Linear(3, 2))
    freeze(net, "0.*")
    net.train()
    before = {module: module.training for module in net.modules()}
    net.eval()
    for module, mode in before.items():
        module.training = mode
    assert not net[0][1].training and net[1].training
    unfreeze(net)
    assert not net[0].training  # eval() was asked last


def test_statistics_are_left_alone_by_update_bn_and_reset():
    data = (3 + 5 * torch.randn(64, 6)).split(16)
    net = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 6), nn.BatchNorm1d(6))
    for batch in data:
        net(batch)
    freeze(net, "0.*", "1.*")
    averaged = torch.optim.swa_utils.AveragedModel(net)
    before = copy.deepcopy(averaged.state_dict())
    torch.optim.swa_utils.update_bn(data, averaged)
    changed = [name for name, entry in averaged.state_dict().items() if not torch.equal(entry, before[name])]
    assert changed == ["module.3.running_mean", "module.3.running_var"]
    still = net[1].running_mean.clone()
    net[1].reset_running_stats()
    assert torch.equal(net[1].running_mean, still)
    net.requires_grad_(True)
    net[1].reset_running_stats()
    assert not net[1].running_mean.any()
    freeze(net)
    unfreeze(net)
    net[1](data[0])
    net[1].reset_running_stats()
    assert not net[1].running_mean.any() and "reset_running_stats" not in vars(net[1])


def test_a_norm_without_parameters_is_reset_when_what_is_around_it_is_not_frozen():
    net = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6, affine=False))
    net(3 + torch.randn(16, 6))
    freeze(net)
    net[1].reset_running_stats()
    assert net[1].running_mean.any()
    net.requires_grad_(True).train()[1].reset_running_stats()
    assert not net[1].running_mean.any()


# Modules that are traced, and layers that are swapped


class BatchNormAct(nn.BatchNorm2d):
    """As in timm: a tracer looks into it."""

    def forward(self, x):
        mean, var = self.running_mean, self.running_var
        return nn.functional.batch_norm(x, mean, var, self.weight, self.bias, self.training).relu()


def body(norm=nn.BatchNorm2d):
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm(4), nn.Dropout())


IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def extracted(net):
    from torchvision.models.feature_extraction import create_feature_extractor

    return create_feature_extractor(net, ["1.relu"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "make",
    [lambda: extracted(body(BatchNormAct)), lambda: torch.jit.script(body()), lambda: torch.fx.symbolic_trace(body())],
)
def test_what_was_traced_or_scripted_and_follows_train_is_held(make):
    net = make()
    net(IMAGES)
    before = copy.deepcopy(net.state_dict())
    freeze(net)
    net.train()
    first, again = ((y if isinstance(y := net(IMAGES), torch.Tensor) else y["1.relu"]) for _ in range(2))
    assert torch.equal(first, again)
    assert all(torch.equal(entry, before[name]) for name, entry in net.state_dict().items())
    unfreeze(net)
    net(IMAGES)
    assert any(not torch.equal(entry, before[name]) for name, entry in net.state_dict().items())


@pytest.mark.parametrize("norm", [nn.InstanceNorm2d(3, affine=True), nn.BatchNorm2d(3, track_running_stats=False)])
@pytest.mark.parametrize("traced", [torch.jit.trace, lambda module, x: torch.export.export(module, (x,)).module()])
def test_a_trace_in_eval_mode_is_taken_for_one_where_a_norm_has_no_statistics(norm, traced):
    model = traced(norm.eval(), torch.rand(2, 3, 4, 4))
    assert freeze(model, hold=False) and "traced-in-train-mode" not in {finding.rule for finding in audit(model)}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("pattern", [(), ("1.*",), ("0.*",)])
def test_a_trace_in_train_mode_cannot_be_held(pattern):
    def traced(net):
        return torch.jit.trace(net, IMAGES, check_trace=False)

    net = traced(body())
    if pattern == ("0.*",):
        assert freeze(net, *pattern) == ["0.weight", "0.bias"]
        return
    before = flags(net), modes(net)
    with pytest.raises(ValueError, match=r"traced in train mode.*freeze before tracing"):
        freeze(net, *pattern)
    assert (flags(net), modes(net)) == before
    assert freeze(net, *pattern, hold=False)
    assert freeze(traced(body().eval()), *pattern)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("layer", [nn.Dropout(), nn.BatchNorm2d(4), nn.InstanceNorm2d(4, track_running_stats=True)])
def test_each_layer_that_was_traced_in_train_mode_is_noticed(layer):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), copy.deepcopy(layer))
    traced = torch.jit.trace(net, IMAGES, check_trace=False)
    with pytest.raises(ValueError, match="traced in train mode"):
        freeze(traced)
    assert freeze(torch.jit.trace(net.eval(), IMAGES, check_trace=False)) == [*dict(net.named_parameters())]


def test_a_part_of_an_extractor_cannot_be_held():
    net = extracted(body(BatchNormAct))
    with pytest.raises(ValueError, match="the model was traced in train mode"):
        freeze(net, "1.*")
    assert all(flags(net).values())
    frozen = body(BatchNormAct)
    freeze(frozen, "1.*")
    before = frozen[1].running_mean.clone()
    extracted(frozen).train()(IMAGES)
    assert torch.equal(frozen[1].running_mean, before)


def test_unfreeze_says_what_a_swapped_layer_has_forgotten():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    freeze(net, "0.*", "1.*")
    net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    with pytest.warns(
        UserWarning,
        match=r"^these stay frozen: 1.weight, 1.bias. Either freeze\(\) did not freeze them, or their layer was "
        r"swapped after it, and with the layer what it remembered. To train them, set requires_grad_\(True\)$",
    ):
        assert unfreeze(net) == ["0.weight", "0.bias"]
    net = nn.SyncBatchNorm.convert_sync_batchnorm(freeze(body := nn.Sequential(nn.BatchNorm2d(4))) and body)
    assert not any(modes(net.train()).values())  # by the module around it


def test_the_warning_points_at_the_call():
    net = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2))
    freeze(net, "1.*")
    with pytest.warns(UserWarning, match="these stay frozen: 0.weight, 0.bias") as caught:
        unfreeze(net)
    assert [warning.filename for warning in caught] == [__file__]


def test_held_parts_are_the_topmost():
    net = nn.Sequential(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), nn.Linear(3, 3), nn.Linear(3, 2))
    assert held_parts(net) == []
    freeze(net, "0.*", "1.*")
    assert held_parts(net) == ["0", "1"]
    freeze(net)
    assert held_parts(net) == [""]
    net[2].requires_grad_(True)
    assert held_parts(net) == ["0", "1"]
    dropout = nn.Dropout()
    freeze(dropout)
    assert held_parts(dropout) == [""] and held_parts(nn.Sequential(dropout, nn.Linear(2, 2))) == ["0"]
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    freeze(net)
    assert held_parts(net[1]) == [""]  # a part of a held part


def test_a_name_is_taken_before_it_is_read_as_a_glob():
    net = nn.ModuleDict({"head": nn.ParameterDict({"b[0]": torch.ones(2), "b0": torch.ones(2)})})
    assert freeze(net, *dict(net.named_parameters())) == ["head.b0", "head.b[0]"]
    assert unfreeze(net, "head.b[0]") == ["head.b[0]"]


def test_norm_stats_names_hold():
    message = (
        "freeze() has no norm_stats, mode: hold=True, the default, keeps the whole frozen part in eval mode, and "
        "hold=False leaves the modes alone"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        freeze(nn.Linear(2, 2), norm_stats=False, mode=None)


def test_checkpoint_wrappers_rename_nothing_that_matters():
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    net = nn.Sequential(checkpoint_wrapper(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))), nn.Linear(3, 1))
    names = freeze(net, "0.*")
    assert len(names) == 4 and names == [name for name in flags(net) if name.startswith("0.")]
    assert not net.train()[0].training and steps(net, torch.randn(4, 3)) == {"1.weight", "1.bias"}
    assert unfreeze(net) == names
    assert len(freeze(checkpoint_wrapper(nn.Linear(2, 2)))) == 2


def test_the_cost_of_train_grows_linearly():
    import sys

    def calls(layers):
        net = nn.Sequential(*(nn.Sequential(nn.Linear(1, 1), nn.Dropout()) for _ in range(layers)), nn.Dropout())
        freeze(net)
        net.append(nn.Linear(1, 1))
        count = 0

        def count_call(*_):
            nonlocal count
            count += 1

        sys.setprofile(count_call)
        try:
            net.train()
        finally:
            sys.setprofile(None)
        return count

    assert calls(400) < 11 * calls(40)
