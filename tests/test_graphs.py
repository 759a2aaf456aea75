"""graph() tells the truth about the autograd graph and leaves it alone; draw() is legible and says what it shows."""

import math
import subprocess
import sys
import time
import warnings
from collections import Counter, OrderedDict
from dataclasses import dataclass
from itertools import combinations

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import networkx
import pytest
import torch
import torch.distributed as dist
from matplotlib.patches import FancyArrowPatch
from matplotlib.path import Path
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.checkpoint import checkpoint
from torchvision.models import mobilenet_v2, resnet18

from helpers.graphs import _routes, draw, graph
from helpers.memory import saved_tensors
from helpers.watching import watch


@pytest.fixture(autouse=True)
def _seed_and_close():
    torch.manual_seed(0)
    yield
    plt.close("all")


def three_layers(frozen=1):
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    net[2 * frozen].requires_grad_(False)
    return net


def resnet(trainable=""):
    """A ResNet-18 of which only the parameters whose names start so are trainable."""
    net = resnet18()
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name.startswith(trainable))
    return net


class Norms(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False)
        self.instance, self.layer = nn.InstanceNorm2d(4, affine=True), nn.LayerNorm(6)

    def forward(self, x):
        return self.layer(self.instance(self.bn(self.conv(x))))


def kinds(found):
    return Counter(node["kind"] for _, node in found.nodes(data=True))


def leaves(found, frozen):
    return {node["parameter"] for _, node in found.nodes(data=True) if node["frozen"] is frozen}


def by_name(found, name):
    (key,) = [key for key, node in found.nodes(data=True) if node["name"] == name]
    return key


# graph


def test_a_frozen_layer_in_the_middle_is_there_with_its_names_and_passes_the_gradient():
    net = three_layers()
    found = graph(net(torch.randn(3, 4)), net)
    assert leaves(found, True) == {"2.weight", "2.bias"}
    assert leaves(found, False) == {"0.weight", "0.bias", "4.weight", "4.bias"}
    assert kinds(found) == {"operation": 7, "leaf": 6, "pruned": 1}
    (pruned,) = [key for key, node in found.nodes(data=True) if node["kind"] == "pruned"]
    assert [found.nodes[key]["module"] for key in found.successors(pruned)] == ["0"]  # the data
    assert found.nodes[0]["name"] == "AddmmBackward0" and not list(found.successors(0))
    assert networkx.ancestors(found, 0) | {0} == set(found)
    assert found.nodes[by_name(found, "2.weight")]["shape"] == (8, 8)
    modules = [node["module"] for _, node in found.nodes(data=True) if node["name"] == "AddmmBackward0"]
    assert modules == ["4", "2", "0"]
    assert [node["module"] for _, node in found.nodes(data=True) if node["name"] == "ReluBackward0"] == ["2", "0"]


def test_without_a_model_a_frozen_parameter_is_a_pruned_input_and_nothing_is_named():
    found = graph(three_layers()(torch.randn(3, 4)))
    assert kinds(found) == {"operation": 7, "leaf": 4, "pruned": 3}
    assert leaves(found, False) == {None}
    assert {node["name"] for _, node in found.nodes(data=True) if node["kind"] == "leaf"} == {"Parameter"}
    assert {node["module"] for _, node in found.nodes(data=True)} == {None}
    assert sum(dict(found.nodes(data="saved_bytes")).values()) == 48 + 96 + 96  # parameters count no more than with it


def test_one_input_that_requires_grad_is_enough():
    x, z = torch.ones(2, requires_grad=True), torch.ones(2)
    found = graph(x + z)
    assert list(found.nodes(data="kind")) == [(0, "operation"), (1, "leaf"), (2, "pruned")]
    assert found.nodes[1] | {"module": None} == found.nodes[1]
    assert (found.nodes[1]["name"], found.nodes[1]["parameter"], found.nodes[1]["frozen"]) == ("Tensor", None, False)
    assert set(found.edges) == {(1, 0), (2, 0)}
    with pytest.raises(ValueError, match="does not require grad"):
        graph(z + z)


def test_two_calls_give_the_same_graph():
    net = three_layers()
    output = net(torch.randn(3, 4))
    first, second = graph(output, net), graph(output, net)
    assert list(first.nodes(data=True)) == list(second.nodes(data=True)) and list(first.edges) == list(second.edges)
    assert list(first) == list(range(len(first)))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("trainable", "counts", "frozen"),
    [
        ("", {"operation": 70, "leaf": 62, "pruned": 1}, 0),
        ("fc", {"operation": 2, "leaf": 2, "pruned": 1}, 0),
        ("layer4.1", {"operation": 10, "leaf": 8, "pruned": 2}, 2),
        ("conv1", {"operation": 69, "leaf": 62, "pruned": 1}, 61),
    ],
)
def test_resnet18_by_what_is_trainable(trainable, counts, frozen, training):
    net = resnet(trainable).train(training)
    found = graph(net(torch.randn(2, 3, 64, 64)), net)
    assert kinds(found) == counts
    assert len(leaves(found, True)) == frozen
    assert leaves(found, False) == {name for name, p in net.named_parameters() if p.requires_grad}


def test_an_operation_without_parameters_belongs_with_the_one_before_it():
    net = resnet18().eval()
    found = graph(net(torch.randn(1, 3, 64, 64)), net)
    modules = Counter((node["name"], node["module"]) for _, node in found.nodes(data=True))
    assert modules["ConvolutionBackward0", "layer2.0.downsample.0"] == 1
    assert modules["AddBackward0", "layer3.1.bn2"] == modules["ReluBackward0", "layer3.1.bn1"] == 1
    assert modules["TBackward0", "fc"] == modules["AddmmBackward0", "fc"] == 1
    assert modules["MaxPool2DWithIndicesBackward0", "bn1"] == 1


def test_an_operation_before_all_modules_belongs_to_the_model():
    net = nn.Linear(2, 2)
    found = graph(net(torch.ones(1, 2, requires_grad=True).exp()), net)
    (module,) = (node["module"] for _, node in found.nodes(data=True) if node["name"] == "ExpBackward0")
    assert module == ""


def test_an_operation_on_parameters_at_different_depths_belongs_to_the_one_around_them():
    net = nn.ModuleDict({"a": nn.Linear(2, 2)})
    net["a"].inner = nn.Linear(2, 2)
    found = graph(net["a"].weight * net["a"].inner.weight, net)
    assert found.nodes[0]["module"] == "a"


def test_an_operation_on_parameters_of_two_modules_belongs_to_the_one_around_them():
    class Tower(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})

        def forward(self, x):
            return x @ (self.block["a"].weight * self.block["b"].weight)

    net = Tower()
    found = graph(net(torch.ones(1, 2)), net)
    assert found.nodes[by_name(found, "MulBackward0")]["module"] == "block"


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(6, 6), (2, 6)),
        (nn.Conv2d(3, 4, 3), (2, 3, 6, 6)),
        (nn.BatchNorm1d(6), (2, 6)),
        (nn.BatchNorm2d(3), (2, 3, 6, 6)),
        (nn.LayerNorm(6), (2, 6)),
        (nn.GroupNorm(1, 3), (2, 3, 6, 6)),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize(
    ("frozen", "data"),
    [({"weight"}, True), ({"bias"}, True), ({"weight"}, False), ({"bias"}, False), ({"weight", "bias"}, False)],
)
def test_weight_and_bias_are_found_together(layer, shape, frozen, data):
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(name not in frozen)
    found = graph(layer(torch.randn(shape, requires_grad=not data)), layer)
    assert leaves(found, True) == frozen
    assert leaves(found, False) - {None} == {"weight", "bias"} - frozen
    assert kinds(found)["pruned"] == data
    assert {node["module"] for _, node in found.nodes(data=True) if node["parameter"]} == {""}


def test_a_frozen_parameter_that_cannot_be_known_stays_a_nameless_pruned_input():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2), requires_grad=False)

        def forward(self, x):
            return x * self.weight + self.bias

    net = Scale()
    found = graph(net(torch.ones(2)), net)
    assert leaves(found, True) == set()
    assert Counter(found.nodes[user]["name"] for key, user in found.edges if found.nodes[key]["kind"] == "pruned") == {
        "MulBackward0": 1,
        "AddBackward0": 1,
    }


class Affine(nn.Module):
    """An addmm whose parameters go by other names than a Linear's."""

    def __init__(self):
        super().__init__()
        self.shift, self.kernel = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, 2))

    def forward(self, x):
        return torch.addmm(self.shift, x, self.kernel)


def test_a_frozen_parameter_that_is_kept_is_a_leaf_whatever_its_name():
    net = Affine()
    net.kernel.requires_grad_(False)
    found = graph(net(torch.ones(1, 2, requires_grad=True)), net)
    assert leaves(found, frozen=True) == {"kernel"} and kinds(found)["pruned"] == 0


def test_what_a_module_has_not_is_no_missing_bias():
    net = Affine()
    found = graph(net(torch.ones(1, 2)), net)
    assert leaves(found, frozen=False) == {"shift", "kernel"} and kinds(found)["pruned"] == 1
    net.shift.requires_grad_(False)
    assert kinds(graph(net(torch.ones(1, 2)), net))["pruned"] == 2  # the shift, which is not kept, and x


def test_every_node_tells_the_same_things():
    net = three_layers()
    nodes = [node for _, node in graph(net(torch.ones(1, 4)), net).nodes(data=True)]
    facts = {"kind", "name", "parameter", "frozen", "shape", "saved_bytes", "module"}
    assert all(node.keys() == facts for node in nodes)
    assert {node["shape"] for node in nodes if node["kind"] != "leaf"} == {None}
    assert {node["name"] for node in nodes if node["kind"] == "pruned"} == {"None"}


def test_a_layer_without_bias_has_no_pruned_input_for_it():
    net = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3, affine=False))
    found = graph(net(torch.randn(2, 3, 4, 4, requires_grad=True)), net)
    assert kinds(found) == {"operation": 2, "leaf": 2}
    assert found.nodes[0]["module"] == "1"  # known by its running statistics


def test_frozen_is_the_flag_now():
    net = nn.Linear(2, 2)
    output = net(torch.ones(1, 2))
    net.bias.requires_grad_(False)
    found = graph(output, net)
    assert (leaves(found, True), leaves(found, False)) == ({"bias"}, {"weight"})


def test_a_parameter_unfrozen_after_the_forward_pass_is_no_leaf_of_its_graph():
    net = three_layers()
    output = net(torch.randn(3, 4))
    net.requires_grad_(True)
    assert leaves(graph(output, net), False) == {"0.weight", "0.bias", "4.weight", "4.bias"}
    output.sum().backward()
    assert net[2].weight.grad is None


def test_tied_weights_and_a_layer_used_twice_are_one_leaf():
    net = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 3), nn.Linear(3, 5))
    net[2].weight = net[0].weight
    hidden = net[1](net[1](net[0](torch.tensor([1, 2]))))
    found = graph(net[2](hidden), net)
    names = [node["parameter"] for _, node in found.nodes(data=True) if node["kind"] == "leaf"]
    assert sorted(names) == ["0.weight", "1.bias", "1.weight", "2.bias"]
    assert len(list(found.successors(by_name(found, "1.bias")))) == 2
    net[1].requires_grad_(False)
    hidden = net[1](net[1](net[0](torch.tensor([1, 2]))))
    found = graph(net[2](hidden), net)
    assert leaves(found, True) == {"1.weight", "1.bias"} and kinds(found)["leaf"] == 4
    assert len(list(found.successors(by_name(found, "1.bias")))) == 2
    assert draw(found, by="module").words.count("1: frozen, 12 params") == 1


def test_a_layer_under_two_names_has_its_frozen_bias():
    layer = nn.Linear(3, 2)
    layer.bias.requires_grad_(False)
    net = nn.ModuleDict({"first": layer, "again": layer})
    found = graph(net["again"](torch.ones(1, 3)), net)
    assert leaves(found, True) == {"first.bias"} and found.graph["outside"] == {}
    assert kinds(found)["pruned"] == 1  # the input


class TiedLM(nn.Module):
    """A language model in short: the output layer has the weight of the input embedding."""

    def __init__(self, bias=False):
        super().__init__()
        self.embed, self.block1, self.block2 = nn.Embedding(7, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.head = nn.Linear(3, 7, bias=bias)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.block2(self.block1(self.embed(x)).relu()).relu())


def test_a_tied_weight_with_a_bias_of_its_own_belongs_to_the_module_that_has_both():
    net = TiedLM(bias=True)
    found = graph(net(torch.tensor([1, 2])), net)
    assert found.nodes[0]["name"] == "AddmmBackward0" and found.nodes[0]["module"] == "head"
    assert found.nodes[by_name(found, "embed.weight")]["module"] == "embed"
    net = TiedLM()
    found = graph(net(torch.tensor([1, 2])), net)
    assert found.nodes[0]["module"] == "embed"  # autograd does not tell which of the two


def test_what_the_graph_does_not_meet_is_recorded():
    net = three_layers(0)
    net.aside = nn.Linear(1, 1)
    found = graph(net[:5](torch.randn(3, 4)), net)
    assert found.graph["outside"] == {
        "0.weight": {"frozen": True, "shape": (8, 4)},
        "0.bias": {"frozen": True, "shape": (8,)},
        "aside.weight": {"frozen": False, "shape": (1, 1)},
        "aside.bias": {"frozen": False, "shape": (1,)},
    }
    assert graph(net[:5](torch.randn(3, 4))).graph["outside"] == {}
    net = three_layers()
    assert graph(net(torch.randn(3, 4)), net).graph["outside"] == {}  # a frozen layer that the gradient passes is met


def packed_otherwise():
    return torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.detach(), lambda tensor: tensor)


@pytest.mark.parametrize("around", [saved_tensors, lambda net: packed_otherwise()])
def test_frozen_leaves_are_found_whatever_hook_has_saved_them(around):
    net = three_layers()
    with around(net):
        output = net(torch.randn(3, 4))
    assert leaves(graph(output, net), True) == {"2.weight", "2.bias"}
    output.sum().backward()


def test_under_autocast_a_frozen_weight_is_a_pruned_input():
    net = three_layers()
    with torch.autocast("cpu", torch.bfloat16):
        output = net(torch.randn(3, 4))
    found = graph(output, net)
    assert leaves(found, True) == set() and kinds(found)["pruned"] == 3
    assert leaves(found, False) == {"0.weight", "0.bias", "4.weight", "4.bias"}
    assert set(found.graph["outside"]) == {"2.weight", "2.bias"}


def test_it_reads_no_attribute_that_runs_code():
    class Lazy(nn.Linear):
        @property
        def code(self):
            raise AssertionError

    net = nn.Sequential(spectral_norm(nn.Linear(4, 4)), Lazy(4, 1))
    net[0].parametrizations.weight.original.requires_grad_(False)
    output = net(torch.randn(3, 4))
    with torch.no_grad():
        net[0].parametrizations.weight[0]._u.copy_(torch.tensor([1.0, 0, 0, 0]))
    with watch(net) as seen:
        found = graph(output, net)
    assert not seen.changed
    assert leaves(found, False) == {"0.bias", "1.weight", "1.bias"}
    assert set(found.graph["outside"]) == {"0.parametrizations.weight.original"}


def test_a_scripted_module_has_a_graph():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated
        net = torch.jit.script(nn.Linear(2, 2))
    assert leaves(graph(net(torch.ones(1, 2)), net), False) == {"weight", "bias"}


def test_a_wrapper_that_renames_hides_no_leaf():
    inner = nn.Sequential(nn.Linear(4, 4), nn.Conv1d(1, 1, 1, bias=False))
    for net in (checkpoint_wrapper(inner), nn.Sequential(checkpoint_wrapper(inner))):
        net.requires_grad_(True)
        inner[0].bias.requires_grad_(False)
        x = torch.randn(2, 1, 4, requires_grad=True)
        found = graph(inner(x), net)
        names = {id(parameter): name for name, parameter in net.named_parameters()}
        assert leaves(found, True) == {names[id(inner[0].bias)]}
        assert leaves(found, False) == {None, names[id(inner[0].weight)], names[id(inner[1].weight)]}
        assert kinds(found)["pruned"] == 0  # the convolution is known to have no bias
        modules = {node["module"] for _, node in found.nodes(data=True) if node["kind"] == "operation"}
        assert modules <= {name.rpartition(".")[0] for name in names.values()} | {""}


def test_a_sharded_model_has_a_graph():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 2))
        fully_shard(net[2], mesh=mesh)
        fully_shard(net, mesh=mesh)
        found = graph(net(torch.randn(3, 4)), net)
    finally:
        dist.destroy_process_group()
    assert leaves(found, True) == {"1.weight", "1.bias"}
    assert leaves(found, False) == {"0.weight", "0.bias", None}  # the last block has been sharded again
    assert found.graph["outside"] == {}
    assert "Parameter: trainable, (2, 4)" in draw(found, by="module").words


def test_several_outputs_are_one_graph():
    x = torch.ones(2, requires_grad=True)
    shared = x.exp()
    found = graph({"a": shared * 2, "b": [shared.sum(), None, torch.ones(1)]})
    assert kinds(found) == {"operation": 3, "leaf": 1, "pruned": 1}
    assert len(list(found.successors(by_name(found, "ExpBackward0")))) == 2


def test_its_time_grows_linearly():
    def seconds(length):
        y = torch.ones(1, requires_grad=True)
        for _ in range(length):
            y = y.sin()
        start = time.process_time()
        graph(y)
        return time.process_time() - start

    assert min(seconds(4000) for _ in range(3)) < 16 * min(seconds(500) for _ in range(3))


def test_three_thousand_operations_in_a_row():
    y = torch.ones(1, requires_grad=True)
    for _ in range(3000):
        y = y.sin()
    found = graph(y)
    assert kinds(found) == {"operation": 3000, "leaf": 1}
    assert networkx.dag_longest_path_length(found) == 3000
    assert sum(dict(found.nodes(data="saved_bytes")).values()) == 3000 * 4


# saved bytes


def saved_by_hooks(model, x):
    """Unique storages that are saved for backward and belong to no parameter or buffer, counted another way."""
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(x)
    for tensor in [*model.parameters(), *model.buffers()]:
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(storages.values()), output


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (three_layers(0), (3, 4)),
        (three_layers(1), (3, 4)),
        (three_layers(2), (3, 4)),
        (Norms(), (2, 3, 8, 8)),
        (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (2, 3, 8)),
        (mobilenet_v2(), (2, 3, 32, 32)),
        (resnet(), (2, 3, 64, 64)),
        (resnet("layer4"), (2, 3, 64, 64)),
        (resnet("conv1"), (2, 3, 64, 64)),
        (resnet("fc"), (2, 3, 64, 64)),
    ],
)
def test_saved_bytes_add_up_to_what_hooks_count(model, shape, training):
    torch.manual_seed(0)
    expected, hooked = saved_by_hooks(model.train(training), torch.randn(shape))
    assert expected > 0
    torch.manual_seed(0)
    found = graph(model(torch.randn(shape)), model)
    assert sum(dict(found.nodes(data="saved_bytes")).values()) == expected
    assert len(graph(hooked, model)) == len(found)


def test_a_tensor_that_two_operations_keep_counts_for_the_first():
    x = torch.ones(256, requires_grad=True)
    first = x.exp()  # keeps its result
    found = graph(first * first)  # keeps it too
    assert found.nodes[by_name(found, "ExpBackward0")]["saved_bytes"] == 1024
    assert found.nodes[by_name(found, "MulBackward0")]["saved_bytes"] == 0


def test_it_works_on_the_meta_device():
    with torch.device("meta"):
        net, x = three_layers(), torch.ones(3, 4)
    found = graph(net(x), net)
    assert leaves(found, True) == {"2.weight", "2.bias"}
    assert sum(dict(found.nodes(data="saved_bytes")).values()) == 3 * (4 + 8 + 8) * 4


# what it leaves alone


@pytest.mark.parametrize("draws", [False, True])
def test_backward_after_it_gives_the_same_gradients_and_nothing_else_changes(draws):
    x, net = torch.randn(2, 3, 64, 64), resnet("layer")
    output = net(x)
    output.sum().backward(retain_graph=True)
    expected = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    net.zero_grad()
    before = {name: (t.clone(), t._version) for name, t in net.state_dict().items()}
    modes, rng = [m.training for m in net.modules()], torch.get_rng_state()
    found = graph(output, net)
    if draws:
        draw(found, by="module").figure.canvas.draw()
    assert torch.equal(torch.get_rng_state(), rng) and [m.training for m in net.modules()] == modes
    assert all(p.grad is None for p in net.parameters())
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name][0]) and tensor._version == before[name][1]
    output.sum().backward()
    assert {name for name, p in net.named_parameters() if p.grad is not None} == set(expected)
    assert all(torch.equal(net.get_parameter(name).grad, grad) for name, grad in expected.items())


def test_the_graph_does_not_keep_the_saved_tensors_alive():
    class Note(torch.autograd.Function):
        alive = 0

        @staticmethod
        def forward(ctx, x):
            ctx.token = Token()
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            return grad * 2

    class Token:
        def __init__(self):
            Note.alive += 1

        def __del__(self):
            Note.alive -= 1

    y = Note.apply(torch.ones(1, requires_grad=True))
    found = graph(y)
    assert Note.alive == 1
    del y
    assert Note.alive == 0 and len(found) == 2


def test_hooks_on_saved_tensors_are_called_only_where_torch_shows_nothing_without():
    shows = hasattr(torch._C._autograd.SavedTensor, "data")  # not in torch 2.9
    calls, net, x = [], nn.Sequential(nn.Linear(3, 3), nn.ReLU()), torch.ones(1, 3, requires_grad=True)
    net.register_forward_pre_hook(lambda *_: calls.append("forward"))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (t.device, t), lambda t: calls.append("unpack") or t[1]):
        hooked = net(x)
    output = checkpoint(net, x, use_reentrant=False)
    assert sum(dict(graph(hooked, net).nodes(data="saved_bytes")).values()) == 24  # x, and what ReLU made
    assert sum(dict(graph(output, net).nodes(data="saved_bytes")).values()) == (0 if shows else 24)
    assert ("unpack" in calls) is not shows
    ran = calls.count("forward")
    assert ran == 2 if shows else ran > 2
    output.sum().backward()
    assert calls.count("forward") == ran + 1


class Triple(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x, None, x + 1)
        ctx.variable = "not a leaf"
        return x * 3

    @staticmethod
    def backward(ctx, grad):
        return grad * 3


def changed_in_a_view(x):
    y = x * 1
    y[0].mul_(2)
    return y


@pytest.mark.parametrize(
    ("function", "names", "nbytes"),
    [
        (Triple.apply, {"TripleBackward"}, 32),
        (lambda x: checkpoint(torch.sin, x, use_reentrant=True), {"CheckpointFunctionBackward"}, 16),
        (lambda x: checkpoint(torch.sin, x, use_reentrant=False), {"SinBackward0"}, None),
        (lambda x: x[torch.tensor([0, 1])], {"IndexBackward0"}, 16),
        (changed_in_a_view, {"MulBackward0", "CopySlices"}, None),
        (lambda x: torch.sparse.mm(torch.eye(4).to_sparse(), x[:, None]), {"SparseAddmmBackward0"}, 64 + 16),
        (torch.compile(lambda x: x.sin() * 2, backend="aot_eager"), {"CompiledFunctionBackward"}, 16),
    ],
    ids=["Function", "reentrant", "checkpoint", "index", "view", "sparse", "compiled"],
)
def test_unusual_nodes(function, names, nbytes):
    found = graph(function(torch.ones(4, requires_grad=True)))
    assert names <= {node["name"] for _, node in found.nodes(data=True)}
    assert nbytes in (None, sum(dict(found.nodes(data="saved_bytes")).values()))
    assert draw(found).words


def test_a_model_with_parameters_not_made_yet():
    net = nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(2))
    assert leaves(graph(net[0](torch.ones(1, 2)), net), False) == {"0.weight", "0.bias"}


# errors


def under(context, function):
    with context:
        return function(torch.ones(2, requires_grad=True))


@pytest.mark.parametrize(
    ("output", "says"),
    [
        (torch.ones(2), "does not require grad"),
        (torch.ones(2, requires_grad=True), r"is a leaf, computed from nothing\. Pass a result computed from it\.$"),
        ((torch.ones(2, requires_grad=True) * 2).detach(), "detached"),
        (under(torch.no_grad(), torch.exp), "no_grad"),
        (under(torch.inference_mode(), torch.exp), r"inference_mode\. Compute it again without\.$"),
        (three_layers().requires_grad_(False)(torch.ones(1, 4)), "frozen"),
        ([torch.ones(2)], "no graph behind"),
    ],
)
def test_a_tensor_without_history_says_why(output, says):
    with pytest.raises(ValueError, match=says):
        graph(output)


@pytest.mark.parametrize(
    ("output", "says"),
    [
        (3.0, "float"),
        (nn.Linear(1, 1), "Linear"),
        ([], "got nothing"),
        (None, "got nothing"),
        (["a"], "str"),
        ([torch.ones(1), 1, "a"], "got Tensor, int, str"),
    ],
)
def test_only_tensors_have_a_graph(output, says):
    with pytest.raises(TypeError, match=says):
        graph(output)


@dataclass
class Output:
    logits: torch.Tensor
    loss: torch.Tensor
    cache: object


@pytest.mark.parametrize(
    ("output", "says"),
    [
        (
            Output(torch.ones(1), torch.ones(1), 1),
            "got Output. It holds tensors under logits, loss: .* as out.logits.$",
        ),
        (
            {"cache": object(), "loss": torch.ones(1)},
            r"It holds tensors under loss: pass one of them, as out\['loss'\]",
        ),
        (OrderedDict(cache=object(), loss=torch.ones(1)), r"object. It holds tensors under loss: .* as out.loss.$"),
        ((torch.ones(1), object()), "it got Tensor, object.$"),
    ],
)
def test_of_an_output_object_it_says_what_to_pass(output, says):
    with pytest.raises(TypeError, match=says):
        graph(output)


@pytest.mark.parametrize("function", [torch.exp, Triple.apply, lambda x: x[torch.tensor([0])]])
def test_after_backward_it_says_that_the_saved_tensors_are_gone(function):
    y = function(torch.ones(2, requires_grad=True))
    y.sum().backward(retain_graph=True)
    assert kinds(graph(y))["operation"] >= 1
    y.sum().backward()
    with pytest.raises(
        RuntimeError,
        match=r"backward\(\) has freed .*whole graph to show\. Call graph\(\) before .*retain_graph=True\)\.$",
    ):
        graph(y)


# draw


def drawn(case):
    if case == "op":
        net = three_layers()
        return draw(graph(net(torch.randn(3, 4)), net))
    net = mobilenet_v2() if case == "mobilenet" else resnet(case)
    if case == "layer":
        net.layer3[0].conv1.requires_grad_(False)
    return draw(graph(net(torch.randn(2, 3, 64, 64)), net), by="module")


def boxes(ax):
    renderer = ax.figure.canvas.get_renderer()
    return [(text, text.get_bbox_patch().get_window_extent(renderer)) for text in ax.texts]


@pytest.mark.parametrize("case", ["op", "", "fc", "layer", "conv1", "layer4.1.conv2", "mobilenet"])
def test_nothing_overlaps_and_all_is_inside(case):
    ax = drawn(case)
    ax.figure.canvas.draw()
    renderer = ax.figure.canvas.get_renderer()
    placed = boxes(ax)
    assert len(placed) >= 2
    legend = ax.get_legend()
    areas = [(text.get_text(), area) for text, area in placed] + [("legend", legend.get_window_extent(renderer))]
    for (one, a), (other, b) in combinations(areas, 2):
        assert not a.overlaps(b), (one, other)
    for name, area in areas:
        for outer in (ax.bbox, ax.figure.bbox):
            assert outer.x0 <= area.x0 and area.x1 <= outer.x1 and outer.y0 <= area.y0 and area.y1 <= outer.y1, name
    for (text, area), inner in zip(placed, [text.get_window_extent(renderer) for text, _ in placed], strict=True):
        assert area.x0 <= inner.x0 and inner.x1 <= area.x1, text.get_text()
    assert ax.figure.get_figwidth() <= 8 and ax.figure.get_figheight() <= 13
    assert all(text.get_fontsize() >= 8 for text in [*ax.texts, *legend.get_texts()])


def test_by_operation_draws_every_node_and_edge():
    net = three_layers()
    found = graph(net(torch.randn(3, 4)), net)
    ax = draw(found)
    texts = [text.get_text() for text in ax.texts]
    assert len(texts) == len(found)
    assert texts.count("AddmmBackward0\nsaved 48 B") == 1 and texts.count("ReluBackward0\nsaved 96 B") == 2
    assert {"2.weight\nfrozen, (8, 8)", "0.weight\ntrainable, (8, 4)", "None\npruned input"} <= set(texts)
    assert sum(isinstance(artist, FancyArrowPatch) for artist in ax.get_children()) == found.number_of_edges()
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == ["trainable", "frozen", "operation", "pruned input"]


def test_inputs_are_above_what_uses_them():
    ax = drawn("op")
    height = {text.get_text().split("\n")[0]: text.get_position()[1] for text in ax.texts}
    assert height["0.weight"] > height["2.weight"] > height["4.weight"] > height["4.bias"] > 0


def test_places_are_exactly_these():
    """In points: a row is 45, the main line is at 0, what feeds it on the right, and 18 lie between two boxes."""
    ax = drawn("op")
    places = {}
    for text in ax.texts:
        x, y = text.get_position()
        places.setdefault(y, []).append((round(x, 2), text.get_text().split("\n")[0]))
    assert places == {
        270: [(0, "0.weight")],
        225: [(79.02, "None"), (0, "TBackward0"), (170.09, "0.bias")],
        180: [(0, "AddmmBackward0")],
        135: [(86.25, "2.bias"), (174.91, "2.weight"), (0, "ReluBackward0")],
        90: [(100.71, "4.weight"), (0, "AddmmBackward0")],
        45: [(81.43, "TBackward0"), (0, "ReluBackward0"), (167.68, "4.bias")],
        0: [(0, "AddmmBackward0")],
    }
    assert [*ax.get_xlim(), *ax.get_ylim()] == pytest.approx([-186.16, 353.84, -45, 292.5])
    assert list(72 * ax.figure.get_size_inches()) == [540, 337.5]


def test_many_inputs_widen_the_figure():
    ax = draw(graph(torch.stack([torch.ones(1, requires_grad=True) for _ in range(9)])))
    xs = sorted(text.get_position()[0] for text in ax.texts if "trainable" in text.get_text())
    width = 15 * 4.82 + 8  # of "trainable, (1,)"
    assert xs == pytest.approx([(width + 18) * index for index in range(9)])
    assert ax.get_xlim() == pytest.approx((-width / 2 - 18, xs[-1] + width / 2 + 18))


def arrows(ax):
    """For every arrow its place in points: where it starts, where its head ends, and the part of it farthest left."""
    ax.figure.canvas.draw()
    to_points = ax.transData.inverted()
    found = [artist for artist in ax.get_children() if isinstance(artist, FancyArrowPatch)]
    areas = [arrow.get_tightbbox().transformed(to_points) for arrow in found]
    return [(area.y1, area.y0, area.x0) for area in areas]


def test_an_arrow_runs_from_the_lower_edge_of_a_box_to_the_upper_edge_of_another():
    y = torch.ones(1, requires_grad=True).sin()
    ax = draw(graph(y))
    (start, end, _), *others = arrows(ax)
    above, below = [box.transformed(ax.transData.inverted()) for _, box in sorted(boxes(ax), key=lambda b: -b[1].y0)]
    assert others == []
    # A row is 45 points high, a box of two lines 29, as planned; how high it is drawn depends on matplotlib's version.
    assert start == pytest.approx(45 - 14.5, abs=0.1) and end == pytest.approx(14.5, abs=1.5)
    assert start == pytest.approx(above.y0, abs=3.5) and end == pytest.approx(below.y1, abs=3.5)


def test_an_arrow_past_other_boxes_is_seen_beside_them():
    y = torch.ones(1, requires_grad=True).sin()
    ax = draw(graph((y.cos().exp() + y).sin()))
    lefts = sorted(left for _, _, left in arrows(ax))
    placed = [(text.get_text()[:3], box.transformed(ax.transData.inverted())) for text, box in boxes(ax)]
    passed = [box.x0 for name, box in placed if name in ("Cos", "Exp")]
    assert len(passed) == 2 and len(lefts) == 6
    assert min(passed) - 18 < lefts[0] < min(passed) - 6 and lefts[1] > max(passed)


def test_an_arrow_makes_way_for_what_it_would_cross_only():
    """Not for boxes beside its line, nor for those in the rows of its ends."""
    x, *sides = (torch.ones(1, requires_grad=True) for _ in range(4))
    ax = draw(graph((torch.stack([x.sin(), *sides]).cos() * sides[-1]).exp()))
    assert [len(points) for points in routes(ax)] == [2] * 9
    ax = draw(graph((torch.stack([x.sin(), *sides]).cos() * x).exp()))
    assert sorted(len(points) for points in routes(ax)) == [2] * 8 + [10]


def routes(ax):
    """The points of every arrow."""
    found = [artist for artist in ax.get_children() if isinstance(artist, FancyArrowPatch)]
    return [arrow._path_original.vertices for arrow in found]


def test_routes_are_exactly_these():
    """Straight where nothing is in the way. Else in a lane: 9 left of the boxes and lanes beside it, with corners of 6
    points that are made round, into the left half of the box below, each arrow nearer to its corner than the last.
    """
    places = {
        "top": (0, 225, 40, 14.5),  # x and y of the middle, half the width, half the height
        "second": (0, 180, 30, 14.5),
        "side": (100, 180, 20, 14.5),
        "third": (0, 135, 40, 14.5),
        "fourth": (10, 90, 50, 14.5),
        "last": (0, 45, 20, 14.5),
    }
    straight, past = [("top", "side"), ("fourth", "last")], [("side", "last"), ("top", "third"), ("third", "last")]
    up = [("last", "fourth"), ("fourth", "second")]
    found, lanes = _routes(places, [*straight, *past, *up])  # short ones first
    xs, ys = ([[round(point[axis], 1) for point in points] for points in found] for axis in (0, 1))
    assert xs == [
        [0, 100],
        [10, 0],
        [-20, -20, -49, -49, -49, -49, -49, -49, -10, -10],
        [-20, -20, -39, -39, -39, -39, -39, -39, -16, -16],
        [-20, -20, -58, -58, -58, -58, -58, -58, -8, -8],
        [-40, -40, -67, -67, -67, -67, -67, -67, -12, -12],
        [90, 90, -76, -76, -76, -76, -76, -76, -12.8, -12.8],
    ]
    assert ys == [
        [210.5, 194.5],
        [75.5, 59.5],
        [45, 45, 45, 45, 45, 118.5, 118.5, 112.5, 112.5, 104.5],
        [210.5, 202.5, 202.5, 196.5, 196.5, 163.5, 163.5, 157.5, 157.5, 149.5],
        [120.5, 112.5, 112.5, 106.5, 106.5, 73.5, 73.5, 67.5, 67.5, 59.5],
        [90, 90, 90, 90, 90, 208.5, 208.5, 202.5, 202.5, 194.5],
        [165.5, 157.5, 157.5, 151.5, 151.5, 73.5, 73.5, 67.5, 67.5, 59.5],
    ]
    assert lanes == [-49, -39, -58, -67, -76]


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.ModuleList(nn.Conv2d(wide, 2 * wide, 3, 2, 1) for wide in (1, 2, 4))
        self.up = nn.Upsample(scale_factor=2)
        self.decoder = nn.ModuleList(nn.Conv2d(wide, out, 3, padding=1) for wide, out in ((8, 4), (8, 2), (4, 1)))

    def forward(self, x):
        skips = []
        for layer in self.encoder:
            skips.append(x := layer(x).relu())
        x = self.up(self.decoder[0](skips.pop()))
        for layer in self.decoder[1:]:
            x = self.up(layer(torch.cat([x, skips.pop()], 1)))
        return x


def test_arrows_past_boxes_run_in_lanes_of_their_own():
    net = UNet()
    ax = draw(graph(net(torch.ones(1, 1, 8, 8)), net), by="module")
    lanes = [points[:, 0].min() for points in routes(ax) if len(points) > 2]
    left = min(text.get_position()[0] - len(text.get_text().split("\n")[1]) * 4.82 / 2 - 4 for text in ax.texts)
    assert len(lanes) == 2 and left > max(lanes) > min(lanes) + 8 and ax.get_xlim()[0] < min(lanes)


def test_arrows_into_one_box_end_apart():
    x = torch.ones(1, requires_grad=True).sin()
    y = (x.cos().exp() + x).tan().exp() + x
    ends = [tuple(points[-1].round(2)) for points in routes(draw(graph((y.sin() * x).sin() * y)))]
    assert len(set(ends)) == len(ends)


def test_kinds_differ_without_color_too():
    net = resnet("layer")
    net.layer3[0].bn1.weight.requires_grad_(False)
    looks = {}
    for ax in (drawn("op"), draw(graph(net(torch.randn(2, 3, 64, 64)), net), by="module")):
        for text in ax.texts:
            words, patch = text.get_text(), text.get_bbox_patch()
            order = ("not in the graph", "trainable", "frozen", "mixed", "pruned")
            kind = next((kind for kind in order if kind in words), "operation")
            looks.setdefault(kind, set()).add((patch.get_facecolor(), patch.get_linestyle(), patch.get_linewidth()))
    assert len(looks) == 6 and all(len(same) == 1 for same in looks.values())
    faces, edges = zip(*[(face, edge) for ((face, *edge),) in looks.values()], strict=True)
    assert len(set(faces)) == len(set(map(tuple, edges))) == 6
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == ["trainable", "frozen", "mixed", "pruned input", "not in the graph"]


def test_texts_and_arrows_can_be_read():
    x = torch.ones(1, requires_grad=True).sin()
    ax = draw(graph(x.cos().exp() + x))
    for text in ax.texts:
        looks = text.get_ha(), text.get_va(), text.get_size(), text.get_family(), text.get_color(), text.get_zorder()
        assert looks == ("center", "center", 8, ["monospace"], "black", 2), "above the arrows"
        assert text.get_bbox_patch().get_boxstyle().pad == 0.5 and text.get_clip_path() is not None
    arrows = [artist for artist in ax.get_children() if isinstance(artist, FancyArrowPatch)]
    for arrow in arrows:
        assert type(arrow.get_arrowstyle()).__name__ == "CurveFilledB" and arrow.get_mutation_scale() == 8
        assert arrow.get_edgecolor() == arrow.get_facecolor() == (0.35, 0.35, 0.35, 1)
        assert arrow.get_clip_path() is not None
    kinds = sorted(tuple(arrow._path_original.codes) for arrow in arrows)
    assert kinds == [(Path.MOVETO, Path.LINETO)] * 4 + [(Path.MOVETO, *[Path.CURVE4] * 9)]
    legend = ax.get_legend()
    assert not legend.get_frame_on() and legend._ncols == 2 and legend._loc == 8  # in a row at the lower edge
    assert not ax.axison


def test_the_legend_shows_the_boxes_as_they_are():
    ax = drawn("op")
    shown = {
        (box.get_facecolor(), box.get_edgecolor(), box.get_linewidth())
        for box in (t.get_bbox_patch() for t in ax.texts)
    }
    legend = ax.get_legend()
    assert {
        (patch.get_facecolor(), patch.get_edgecolor(), patch.get_linewidth()) for patch in legend.get_patches()
    } == shown
    assert {text.get_fontsize() for text in legend.get_texts()} == {8} and not legend.get_frame_on()


def test_the_axes_tell_what_they_show_unless_they_have_a_label():
    import matplotlib.pyplot as plt

    found = graph(nn.Linear(1, 1)(torch.ones(1)))
    assert "graph of" in repr(ax := draw(found)) and ax.get_label() == ax.words.split("; ")[0]
    assert draw(found, plt.figure().add_subplot(label="mine")).get_label() == "mine"


def test_by_module_draws_resnet18_in_blocks():
    net = resnet18()
    words = draw(graph(net(torch.randn(2, 3, 64, 64)), net), by="module").words.split("; ")
    assert [part.split(": ")[0] for part in words[1:]] == [
        *("None", "conv1", "bn1", "layer1.0", "layer1.1", "layer2.0", "layer2.1"),
        *("layer3.0", "layer3.1", "layer4.0", "layer4.1", "fc"),
    ]


def test_by_module_opens_what_is_partly_frozen_before_all_else():
    words = drawn("layer").words.split("; ")
    assert [part.split(": ")[0] for part in words[1:]] == [
        *("None", "layer1.0", "layer1.1", "layer2.0", "layer2.1"),
        *(f"layer3.0.{name}" for name in ("conv1", "bn1", "downsample.0", "conv2", "downsample.1", "bn2")),
        *("layer3.1", "layer4.0", "layer4.1", "fc", "conv1, bn1"),
    ]
    found = dict(part.split(": ") for part in words[1:])
    assert found["None"] == "pruned input"
    assert found["layer1.0"].startswith("trainable, 73,984 params, saved ")
    assert found["layer3.0.conv1"] == "frozen, 294,912 params"
    assert found["fc"].startswith("frozen, 513,000 params")
    assert found["conv1, bn1"] == "frozen, 9,536 params, not in the graph"


def test_by_module_keeps_every_parameter_and_byte_of_the_graph():
    net = resnet18()
    found = graph(net(torch.randn(1, 3, 64, 64)), net)
    words = draw(found, by="module").words
    counts = [
        int(part.split(" params")[0].split()[-1].replace(",", "")) for part in words.split("; ") if "params" in part
    ]
    assert len(counts) == 11
    assert sum(counts) == sum(math.prod(node["shape"]) for _, node in found.nodes(data=True) if node["parameter"])
    assert sum(counts) == sum(p.numel() for p in net.parameters())


def test_by_module_shows_pruned_inputs_only_where_the_graph_begins():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    words = draw(graph(net(torch.ones(1, 2)) * 2, net), by="module").words  # the number 2 is a pruned input, too
    assert words.startswith("graph of 11 nodes: 4 trainable leaves, 0 frozen leaves, 2 pruned inputs, saved ")
    assert [part.split(":")[0] for part in words.split("; ")[1:]] == ["None", "0", "1"]


def test_the_words_are_the_picture():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).requires_grad_(False)
    net[1].requires_grad_(True)
    assert draw(graph(net(torch.ones(3, 2)), net)).words == (
        "graph of 5 nodes: 2 trainable leaves, 0 frozen leaves, 1 pruned input, saved 24 B; "
        "1.weight: trainable, (2, 2); None: pruned input; TBackward0; 1.bias: trainable, (2,); "
        "AddmmBackward0: saved 24 B; 0.weight, 0.bias: frozen, 6 params, not in the graph"
    )


@pytest.mark.parametrize(("numel", "size"), [(1, "4 B"), (250, "0.977 KiB"), (256, "1 KiB"), (1 << 20, "4 MiB")])
def test_sizes(numel, size):
    assert f"ExpBackward0: saved {size}" in draw(graph(torch.ones(numel, requires_grad=True).exp())).words


@pytest.mark.parametrize(("numel", "size"), [(1 << 28, "1 GiB"), (1 << 38, "1 TiB")])
def test_sizes_no_memory_has(numel, size):
    y = torch.ones(numel, requires_grad=True, device="meta").exp()
    assert draw(graph(y)).words.endswith(f"ExpBackward0: saved {size}")


def test_it_draws_into_the_axes_it_is_given():
    _, (left, right) = plt.subplots(1, 2, figsize=(12, 6))
    numbers = plt.get_fignums()
    assert draw(graph(torch.ones(1, requires_grad=True) * 2), ax=right) is right
    assert plt.get_fignums() == numbers and len(right.texts) == 3 and not left.texts


def test_a_module_used_twice_and_one_below_its_own_parameters_are_drawn():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.a, self.b = nn.Parameter(torch.ones(1)), nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.scale * self.a(self.b(self.a(x)))

    net = Loop()
    x = torch.ones(1, 2, requires_grad=True)
    ax = draw(graph(net(x), net), by="module")
    assert headings(ax) == ["Tensor", "a", "b", "a, again", "(model)"]
    ax.figure.canvas.draw()


def headings(ax):
    return [part.split(": ")[0] for part in ax.words.split("; ")[1:]]


def heights(ax):
    return {text.get_text().split("\n")[0]: text.get_position()[1] for text in ax.texts}


@pytest.mark.parametrize("frozen", [False, True])
def test_a_tied_language_model_begins_and_ends_with_its_embedding(frozen):
    net = TiedLM()
    net.embed.requires_grad_(not frozen)
    ax = draw(graph(net(torch.tensor([1, 2])), net), by="module")
    if frozen:  # then the first use is not in the graph
        assert headings(ax) == ["None", "block1", "block2", "embed"]
        assert "embed: frozen, 21 params" in ax.words
        return
    assert headings(ax) == ["embed", "block1", "block2", "embed, again"]
    assert "embed: trainable, 21 params, " in ax.words and "embed, again: trainable" in ax.words
    assert [*heights(ax).values()] == [135, 90, 45, 0]
    assert len(routes(ax)) == 3  # no arrow says that the embedding's weight is used again: its name does


class Alternating(nn.Module):
    def __init__(self, times):
        super().__init__()
        self.a, self.b, self.times = nn.Linear(2, 2), nn.Linear(2, 2), times

    def forward(self, x):
        for _ in range(self.times):
            x = self.b(self.a(x).relu()).relu()
        return x


def test_a_module_used_many_times_has_two_boxes_and_an_arrow_up():
    net = Alternating(1)
    assert headings(draw(graph(net(torch.ones(1, 2)), net), by="module")) == ["None", "a", "b"]
    for times, arrows_up in ((2, 0), (9, 1)):
        net.times = times
        ax = draw(graph(net(torch.ones(1, 2)), net), by="module")
        assert headings(ax) == ["None", "a", "b", "a, again", "b, again"]
        assert sum(points[0][1] < points[-1][1] for points in routes(ax)) == arrows_up
        assert len(routes(ax)) == 4 + arrows_up
        assert "a, again: trainable, saved" in ax.words


def test_a_module_used_twice_side_by_side_is_one_box():
    net = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    x, z = torch.ones(1, 2), torch.zeros(1, 2)
    output = net["b"](net["a"](x)) * net["b"](net["a"](z))
    assert headings(draw(graph(output, net), by="module")) == ["None", "a", "b"]


def test_a_box_stands_above_all_that_it_feeds_however_late_it_ends():
    """As the position bias of T5's first layer, which every layer uses."""
    net = nn.ModuleDict({name: nn.Linear(2, 2) for name in "abc"})
    h = net["a"](torch.ones(1, 2))
    bias = net["a"].weight.sum().exp().sin().cos().tan()
    ax = draw(graph(net["c"](net["b"](h) + bias) * bias, net), by="module")
    y = heights(ax)
    assert y["a"] > y["b"] > y["c"] and all(points[0][1] > points[-1][1] for points in routes(ax))


@pytest.mark.parametrize("trained", ["lower", "upper", "head"])
def test_a_transformer_is_folded_where_its_flags_change(trained):
    net = nn.Sequential(OrderedDict(embed=nn.Linear(4, 8), blocks=nn.Sequential(), head=nn.Linear(8, 2)))
    for _ in range(12):
        net.blocks.append(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
    numel = sum(p.numel() for p in net.blocks.parameters())
    net.requires_grad_(False)
    {"lower": net[:1], "upper": net.head, "head": net.head}[trained].requires_grad_(True)
    if trained != "head":
        net.blocks[:6].requires_grad_(trained == "lower")
        net.blocks[6:].requires_grad_(trained == "upper")
    found = graph(net(torch.randn(2, 3, 4)), net)
    words = dict(part.split(": ") for part in draw(found, by="module").words.split("; ")[1:])
    half, grey = f"{numel // 2:,} params", "frozen, {:,} params, not in the graph"
    if trained == "lower":  # the frozen bias that no operation keeps counts, too
        assert list(words) == ["None", "embed", "blocks.0-5", "blocks.6-11", "head"]
        assert words["blocks.0-5"].startswith(f"trainable, {half}, saved")
        assert words["blocks.6-11"].startswith(f"frozen, {half}, saved")
    elif trained == "upper":
        assert list(words) == ["None", "blocks.6-11", "head", "embed, blocks.0-5"]
        assert words["blocks.6-11"].startswith(f"trainable, {half}, saved")
        assert words["embed, blocks.0-5"] == grey.format(40 + numel // 2)
    else:
        assert list(words) == ["None", "head", "embed, blocks"]
        assert words["embed, blocks"] == grey.format(40 + numel)


@pytest.mark.parametrize("hidden", ["no_grad", "frozen"])
def test_an_encoder_outside_the_graph_stands_beside_it(hidden):
    net = nn.ModuleDict({"encoder": resnet18(), "head": nn.Linear(1000, 2), "spare": nn.Linear(3, 3)})
    net["encoder"].requires_grad_(hidden == "no_grad")
    with torch.set_grad_enabled(hidden == "frozen"):
        features = net["encoder"].eval()(torch.randn(1, 3, 64, 64))
    ax = draw(graph(net["head"](features), net), by="module")
    assert ax.words.split("; ")[1:] == [
        "None: pruned input",
        "head: trainable, 2,002 params, saved 3.91 KiB",
        *["encoder: frozen, 11,689,512 params, not in the graph"] * (hidden == "frozen"),
        ("spare: trainable, 12 params" if hidden == "frozen" else "encoder, spare: trainable, 11,689,524 params")
        + ", not in the graph",
    ]
    top = {y for heading, y in heights(ax).items() if heading != "head"}
    assert top == {45} and len(routes(ax)) == 1


def test_many_parts_outside_are_named_by_the_first_and_the_last():
    net = resnet("fc")
    words = draw(graph(net(torch.randn(1, 3, 64, 64)), net), by="module").words
    assert words.endswith("; conv1 ... layer4: frozen, 11,176,512 params, not in the graph")


@pytest.mark.parametrize(("layers", "boxes"), [(4, 13), (5, 4)])  # with the input; more than four alike are one
def test_by_module_goes_as_deep_as_sixteen_boxes_allow(layers, boxes):
    net = nn.Sequential(*[nn.Sequential(*[nn.Linear(2, 2) for _ in range(layers)]) for _ in range(3)])
    assert len(draw(graph(net(torch.ones(1, 2)), net), by="module").texts) == boxes


def test_a_net_of_many_layers_is_drawn_as_can_be_read():
    deep = nn.Sequential(*[nn.Sequential(*[nn.Linear(2, 2) for _ in range(6)]) for _ in range(4)])
    assert headings(draw(graph(deep(torch.ones(1, 2)), deep), by="module")) == ["None", *(f"{i}.0-5" for i in range(4))]


@pytest.mark.parametrize("frozen", [0, 9])
def test_many_unlike_layers_are_folded_by_flag(frozen):
    net = nn.ModuleDict(
        {"features": nn.Sequential(*[nn.Linear(2 + i, 3 + i) for i in range(20)]), "fc": nn.Linear(22, 1)}
    )
    net["features"][:frozen].requires_grad_(False)
    x = torch.ones(1, 2, requires_grad=True)
    ax = draw(graph(net["fc"](net["features"](x)), net), by="module")
    assert headings(ax) == ["Tensor", *(["features.0-8", "features.9-19"] if frozen else ["features.0-19"]), "fc"]


def test_one_block_of_a_folded_list_is_opened_only_if_it_is_partly_frozen():
    net = nn.Sequential(*[nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(8)])
    x = torch.randn(2, 3, 8, requires_grad=True)
    net[:7].requires_grad_(False)
    assert headings(draw(graph(net(x), net), by="module")) == ["Tensor", "(model)", "0-6", "7"]
    net[7].norm1.requires_grad_(False)
    ax = draw(graph(net(x), net), by="module")
    assert "0-6" in headings(ax) and {"7.norm1", "7.norm2", "7.linear1"} <= set(headings(ax))
    assert "7.norm1: frozen, 16 params" in ax.words


def test_a_part_of_a_graph_can_be_drawn():
    net = resnet18()
    found = graph(net(torch.randn(2, 3, 64, 64)), net)
    part = found.subgraph(range(30))
    assert len(draw(part).texts) == 30
    assert "layer4.0" in draw(part, by="module").words
    for key in range(30, len(found) - 1):
        found.remove_node(key)
    assert draw(found).words  # also the input without what it feeds


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"by": "layer"}, """^by is "op" or "module", not 'layer'.$"""),
        ({"by": "module"}, r'^by="module" needs the module names: make the graph with graph\(output, model\).$'),
    ],
)
def test_draw_says_what_it_needs(arguments, says):
    with pytest.raises(ValueError, match=says):
        draw(graph(torch.ones(1, requires_grad=True) * 2), **arguments)
    assert not plt.get_fignums()


def test_too_many_boxes_are_refused():
    y = torch.ones(1, requires_grad=True)
    for _ in range(59):
        y = y.sin()
    assert len(draw(graph(y)).texts) == 60
    y = y.sin()
    with pytest.raises(ValueError, match=r'^61 boxes .* too tall to read .* by="module"'):
        draw(graph(y))


def test_importing_it_imports_neither_networkx_nor_matplotlib():
    code = (
        "import sys, helpers.graphs; print([m for m in ('networkx', 'matplotlib', 'torchvision') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
