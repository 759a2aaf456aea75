"""saved_tensors: what is kept for backward, and that counting it changes nothing."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules import module as module_hooks
from torch.utils.checkpoint import checkpoint
from torchvision.models import mobilenet_v2, resnet18

from helpers import freeze, graph
from helpers.lessons.ranks import alone
from helpers.memory import dense_parts, saved_tensors


@pytest.mark.parametrize(
    ("trainable", "mib", "count"), [("", 169.22, 81), ("fc", 0.016, 1), ("conv1", 169.20, 80), ("nothing", 0, 0)]
)
def test_resnet18_keeps_what_the_first_trainable_layer_needs(trainable, mib, count):
    net = resnet18().eval()
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name.startswith(trainable))
    with saved_tensors(net) as saved:
        net(torch.zeros(8, 3, 224, 224))
    assert saved.nbytes / 2**20 == pytest.approx(mib, abs=0.005)
    assert saved.count == count
    assert sum(saved.by_module.values()) == saved.nbytes


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_nothing_is_saved_without_recording(off):
    net = nn.Linear(2, 2)
    with saved_tensors(net) as saved, off():
        net(torch.ones(1, 2))
    assert (saved.nbytes, saved.count, saved.by_module) == (0, 0, {})
    assert str(saved) == "module  saved\nsaved for backward: 0 bytes, storages: 0"


MODELS = {
    "mobilenet": (lambda: mobilenet_v2(num_classes=3), torch.zeros(2, 3, 32, 32)),
    "encoder": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.zeros(2, 5, 8)),
    "norms": (
        lambda: nn.Sequential(
            nn.Conv1d(4, 4, 1),
            nn.BatchNorm1d(4, affine=False),
            nn.InstanceNorm1d(4, track_running_stats=True),
            nn.Dropout(0.5),
        ),
        torch.zeros(2, 4, 3),
    ),
}


@pytest.mark.parametrize("build, batch", MODELS.values(), ids=MODELS)
def test_bytes_and_count_are_those_of_the_storages_kept_alive(build, batch):
    net = build()
    own = {tensor.untyped_storage()._cdata for tensor in (*net.parameters(), *net.buffers())}
    kept = []
    with saved_tensors_hooks(lambda tensor: kept.append(tensor.detach()), lambda _: None):
        net(batch)
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in kept}
    expected = {address: nbytes for address, nbytes in storages.items() if address not in own}
    with saved_tensors(net) as saved:
        net(batch)
    assert len(expected) > 1
    assert (saved.count, saved.nbytes) == (len(expected), sum(expected.values()))
    assert set(saved.by_module) <= {name for name, _ in net.named_modules()}


def test_gradients_and_statistics_are_identical():
    torch.manual_seed(0)
    net, batch = resnet18(), torch.randn(2, 3, 32, 32)
    twin = copy.deepcopy(net)
    net(batch).sum().backward()
    with saved_tensors(twin):
        twin(batch).sum().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(net.parameters(), twin.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), twin.buffers(), strict=True))


def test_second_derivative():
    x = torch.tensor([0.3, 2.0], requires_grad=True)
    with saved_tensors(nn.Identity()):
        (first,) = torch.autograd.grad(x.sin().pow(3).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x)
    expected = 6 * x.sin() * x.cos() ** 2 - 3 * x.sin() ** 3
    assert torch.allclose(second, expected)


def test_mistakes_raise_as_ever():
    x = torch.ones(3, requires_grad=True)
    with saved_tensors(nn.Identity()):
        y = x.exp()
        z = x.exp()
    with torch.no_grad():
        y.add_(1)
    with pytest.raises(
        RuntimeError,
        match="^one of the variables needed for gradient computation has been modified by an inplace operation: "
        r"a saved tensor of shape \(3,\) is at version 1; expected version 0$",
    ):
        y.sum().backward()
    z.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        z.sum().backward()


def test_it_keeps_nothing_alive():
    class Remembers(nn.Linear):
        def forward(self, x):
            self.last = super().forward(x).exp()
            return self.last

    net = Remembers(2, 2)
    gc.disable()
    try:
        with saved_tensors(net) as saved:
            storage = StorageWeakRef(net(torch.ones(1, 2)).untyped_storage())
        model = weakref.ref(net)
        del net
        assert model() is None and storage.expired()
    finally:
        gc.enable()
    assert saved.count == 2


def test_a_new_storage_at_an_old_address_counts():
    x = torch.ones(1_000, requires_grad=True)
    with saved_tensors(nn.Identity()) as saved:
        for _ in range(3):
            x.exp()
    assert (saved.count, saved.nbytes) == (3, 3 * 4_000)


def test_a_storage_counts_once_and_in_full():
    x = torch.ones(10, 10)
    w = torch.ones(10, 10, requires_grad=True)
    with saved_tensors(nn.Identity()) as saved:
        (x * w).sum() + (x.T * w).sum() + (x[:1] * w).sum()
    assert (saved.count, saved.nbytes) == (1, 400)


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.ModuleDict({"deep": nn.Sequential(nn.Linear(4, 4), nn.Sigmoid())})
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.body["deep"](x).exp())


def test_bytes_go_to_the_innermost_module():
    net = Nested()
    with saved_tensors(net) as saved:
        net(torch.ones(2, 4)).sin()
    assert list(saved.by_module.items()) == [("", 32 + 8), ("body.deep.0", 32), ("body.deep.1", 32)]
    assert str(saved) == (
        "module             saved\n"
        "(no submodule)  40 bytes\n"
        "body.deep.0     32 bytes\n"
        "body.deep.1     32 bytes\n"
        "saved for backward: 104 bytes, storages: 4"
    )
    assert saved._repr_html_().count("<th scope=row") == 3


def lines(saved):
    return [line.rsplit("  ", 1)[0].rstrip() for line in str(saved).splitlines()[1:-1]]


def test_depth_is_how_many_levels_the_table_has():
    net = Nested()
    found = {}
    for depth in (1, 2, 3, 9):
        with saved_tensors(net, depth=depth) as saved:
            net(torch.ones(2, 4)).sin()
        found[depth] = lines(saved)
        assert saved.by_module == {"": 40, "body.deep.0": 32, "body.deep.1": 32}
    deepest = ["(no submodule)", "body.deep.0-1  x 2"]
    assert found == {1: ["(no submodule)", "body"], 2: ["(no submodule)", "body.deep"], 3: deepest, 9: deepest}
    assert str(saved).splitlines()[2] == "body.deep.0-1  x 2  64 bytes"


def test_what_a_module_saves_beside_its_submodules_is_a_line():
    class Beside(nn.Sequential):
        def forward(self, x):
            return super().forward(x).exp()

    net = nn.Sequential(Beside(nn.Linear(4, 4), nn.Tanh()), nn.Linear(4, 1))
    with saved_tensors(net, depth=2) as saved:
        net(torch.ones(2, 4))
    assert lines(saved) == ["0", "0.0-1  x 2"] and sum(saved.by_module.values()) == 96


def test_a_child_that_has_nearly_everything_is_opened():
    class Wrapped(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.body, self.drop = nn.ModuleDict({"layers": inner}), nn.Tanh()

        def forward(self, x):
            return self.drop(self.body["layers"](x)[:1]).exp().repeat(99, 1).exp()

    with saved_tensors(net := Wrapped(nn.Sequential(*(nn.Tanh() for _ in range(5))))) as saved:
        net(torch.ones(4, 8, requires_grad=True))
    assert lines(saved) == ["(no submodule)", *(f"body.layers.{i}" for i in range(5)), "drop"]
    with saved_tensors(net := Wrapped(nn.Sequential(*(nn.Tanh() for _ in range(80))))) as saved:
        net(torch.ones(4, 8, requires_grad=True))
    assert lines(saved) == ["(no submodule)", "body.layers.0-79  x 80", "drop"]
    assert str(saved).splitlines()[2].endswith("  10,240 bytes") and len(saved.by_module) == 82
    with saved_tensors(net := Wrapped(nn.Tanh())) as saved:
        net(torch.ones(4, 8, requires_grad=True))
    assert lines(saved) == ["(no submodule)", "body", "drop"], "8 of 10 are not enough"
    with saved_tensors(net) as saved:
        net(torch.ones(9, 8, requires_grad=True))
    assert saved.by_module == {"": 3200, "body.layers": 288, "drop": 32}
    assert lines(saved) == ["(no submodule)", "body", "drop"], "9 of 10 neither"


@pytest.mark.parametrize(("layers", "shown"), [(60, 60), (61, 1)])
def test_like_neighbors_are_one_line_where_there_are_more_than_sixty(layers, shown):
    net = nn.Sequential(*(nn.Tanh() for _ in range(layers)))
    with saved_tensors(net) as saved:
        net(torch.ones(1, requires_grad=True))
    assert len(lines(saved)) == shown and len(saved.by_module) == layers


def test_a_module_that_is_not_the_models_counts_for_the_one_around():
    net = Nested()
    net.head.forward = lambda x: nn.Tanh()(x)
    with saved_tensors(net) as saved:
        net(torch.ones(2, 4))
    assert saved.by_module["head"] == 32


def test_exception_inside_a_module():
    net = nn.Sequential(nn.Linear(2, 2), nn.Sigmoid())
    before = hooks()
    with pytest.raises(ZeroDivisionError), saved_tensors(net) as saved:
        with pytest.raises(RuntimeError, match="shapes"):
            net(torch.ones(1, 3))
        torch.ones(5, requires_grad=True).exp()
        raise ZeroDivisionError
    assert saved.by_module == {"": 20, "0": 12}
    assert hooks() == before


def hooks():
    return {
        "global": [dict(value) for name, value in vars(module_hooks).items() if name.startswith("_global_")
                   and isinstance(value, dict)],
        "saved": torch._C._autograd._top_saved_tensors_default_hooks(False),
    }  # fmt: skip


def test_checkpoint_keeps_its_input_only_and_recomputes_inside_the_block():
    net = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 4), nn.Sigmoid())
    x = torch.ones(2, 4, requires_grad=True)
    with saved_tensors(net) as saved:
        out = checkpoint(net, x, use_reentrant=False)
        assert saved.nbytes == 32  # torch 2.9 saves an empty tensor beside it
        out.sum().backward()
        kept = saved.nbytes
        net[1](x)
    assert net[0].weight.grad is not None
    assert saved.nbytes == kept + 32 and saved.by_module["1"] == 32


def test_blocks_nest():
    net = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid())
    x = torch.ones(2, 4, requires_grad=True)
    with saved_tensors(net) as outer:
        with saved_tensors(net[1]) as inner:
            net(x).sum().backward()
        net(x)
    assert inner.by_module == {"": 32 + 64 + 32}, "the input, the weight of a layer outside net[1], the output"
    assert outer.by_module == {"0": 32, "1": 2 * 32}
    assert net[0].weight.grad is not None


def test_hooks_around_the_block_still_work():
    packed = []
    x = torch.ones(3, requires_grad=True)
    with (
        saved_tensors_hooks(lambda tensor: packed.append(1) or 2 * tensor.detach(), lambda tensor: tensor),
        saved_tensors(nn.Identity()) as saved,
    ):
        x.exp().sum().backward()
    assert packed == [1] and saved.count == 1
    assert torch.allclose(x.grad, 2 * x.exp())
    with save_on_cpu(), saved_tensors(nn.Identity()) as saved:
        x.exp().sum().backward()
    assert saved.count == 1


def test_parameters_that_come_inside_the_block_are_the_models():
    net = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.ones(1, 3, requires_grad=True)
    with saved_tensors(net) as saved:
        net(x)
        net[2] = nn.Linear(4, 3)
        net(x)
    assert saved.nbytes == 12 + 2 * 16, "the input once and the output of ReLU twice"


def test_tied_weights_and_shared_modules():
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    net[2].weight = net[0].weight
    net.append(net[1])
    with saved_tensors(net) as saved:
        net(torch.ones(1, 3))
    assert saved.by_module == {"0": 12, "1": 24}


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize(
    ("layout", "nbytes"),
    [(torch.sparse_coo, 16 + 64), (torch.sparse_csr, 16 + 40 + 64), (torch.sparse_csc, 16 + 40 + 64)],
)
def test_sparse_tensors_count_by_their_parts(layout, nbytes):
    net = nn.Module()
    net.weight = nn.Parameter(torch.ones(4, 2))
    matrix = torch.eye(4).to_sparse(layout=layout)
    with saved_tensors(net) as saved:
        (matrix @ net.weight).sum().backward()
    assert saved.nbytes == nbytes
    assert torch.equal(net.weight.grad, torch.ones(4, 2))
    net.register_buffer("matrix", matrix)
    with saved_tensors(net) as saved:
        net.matrix @ net.weight
    assert saved.nbytes == 0


def test_a_subclass_that_wraps_nothing_counts_as_a_tensor():
    class Named(torch.Tensor):
        pass

    with saved_tensors(nn.Identity()) as saved:
        torch.ones(2).as_subclass(Named).requires_grad_().exp()
    assert (saved.nbytes, saved.count) == (8, 1)


def test_a_tensor_that_wraps_others_counts_by_its_parts():
    ragged = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    with saved_tensors(nn.Identity()) as saved:
        ragged * nn.Parameter(torch.ones(()))
    assert saved.nbytes >= 5 * 4 + 3 * 8, "the values and the offsets"


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_meta_counts_like_the_real_thing(device):
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1)).to(device)
    with saved_tensors(net) as saved:
        net(torch.ones(16, 8, device=device))
    assert (saved.nbytes, saved.count) == (2 * 16 * 8 * 4, 2)


def test_a_copy_made_inside_the_block_takes_no_hooks_along():
    net = nn.Sequential(nn.Linear(2, 2))
    with saved_tensors(net) as saved:
        twin = copy.deepcopy(net)
    twin(torch.ones(1, 2)).sum().backward()
    assert saved.count == 0


@pytest.mark.parametrize(
    ("nbytes", "size"),
    [(10_485, "10,485 bytes"), (16_384, "0.016 MiB"), (2**20, "1.00 MiB"), (5 * 2**30, "5,120.00 MiB")],
)
def test_sizes_are_in_mib(nbytes, size):
    with saved_tensors(nn.Identity()) as saved:
        torch.ones(nbytes, dtype=torch.uint8, device="meta") * torch.ones((), requires_grad=True, device="meta")
    assert str(saved).endswith(f"backward: {size}, storages: 1")


def test_a_generator_is_no_model():
    with (
        pytest.raises(TypeError, match=r"^saved_tensors\(model\): .* not a generator; pass the model itself$"),
        saved_tensors(nn.ReLU().parameters()),
    ):
        pass


def test_depth_is_one_or_more():
    with pytest.raises(ValueError, match=r"^saved_tensors\(model, depth\): .*, not 0$"), saved_tensors(nn.ReLU(), 0):
        pass


@pytest.mark.filterwarnings("ignore:Using `torch.compile")
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("fullgraph", [False, True])
def test_a_compiled_model_counts_for_the_module_that_was_compiled(fullgraph, before):
    x = torch.ones(3, 4)
    plain = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    whole = torch.compile(plain, backend="aot_eager", fullgraph=fullgraph)
    with_part = nn.Sequential(torch.compile(plain, backend="aot_eager", fullgraph=fullgraph), nn.Tanh())
    for model, expected in ((whole, {"": 96}), (with_part, {"0": 96, "1": 12})):
        torch.compiler.reset()
        if before:
            model(x)
        with saved_tensors(model) as saved:  # the first call is where torch.compile looks at it
            model(x).sum().backward()
        assert saved.by_module == expected
        assert torch.allclose(model(x), model.get_submodule("0")(x).tanh() if model is with_part else plain(x))


@pytest.mark.parametrize("sharded", [False, True])
def test_sharded_parameters_are_the_models(sharded):
    with alone():
        net = nn.Sequential(nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
        net.append(nn.MultiheadAttention(2, 1))  # uses the weight of a part that it does not call
        net[4].forward = lambda x, forward=net[4].forward: forward(x, x, x)[0].clone()
        if sharded:
            mesh = init_device_mesh("cpu", (1,))
            for part in (net[3], net[4], net):
                fully_shard(part, mesh=mesh)
            assert all(len(dense_parts(parameter)) == 1 for parameter in net.parameters())
        with saved_tensors(net) as saved:
            net(torch.ones(2, 4)).sum().backward()
    assert saved.by_module == {"1": 32, "2": 32, "4": 96}


def test_wrappers_for_recomputation_are_modules_like_others():
    net = nn.Sequential(checkpoint_wrapper(nn.Sequential(nn.Linear(4, 4), nn.Tanh())), nn.Linear(4, 1))
    x = torch.ones(2, 4, requires_grad=True)
    with saved_tensors(net) as saved:
        net(x).sum().backward()
    inside = {"0._checkpoint_wrapped_module.0", "0._checkpoint_wrapped_module.1", "0._checkpoint_wrapped_module"}
    assert saved.by_module["1"] == 32 and set(saved.by_module) - {"1", "0", ""} <= inside
    assert net[0][0].weight.grad is not None and str(saved).startswith("module")


def test_graph_finds_frozen_parameters_inside_the_block():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    freeze(net, "1.*")
    with saved_tensors(net):
        output = net(torch.ones(3, 4))
        names = {node["name"] for _, node in graph(output, net).nodes(data=True)}
    assert {name for name, _ in net.named_parameters()} <= names


def test_what_no_node_made_is_kept_itself():
    frozen, weight = torch.ones(3), torch.ones(3, requires_grad=True)
    with saved_tensors(nn.Identity()):
        product = frozen * weight
        power = weight.exp()
    assert product.grad_fn._saved_self is frozen
    assert power.grad_fn._saved_result is not power


def test_a_leaf_keeps_its_errors_and_its_lifetime():
    weight, x = torch.ones(3, requires_grad=True), torch.ones(3)
    with saved_tensors(nn.Identity()):
        y = x * weight
        storage = StorageWeakRef(x.untyped_storage())
    x.add_(1)
    with pytest.raises(RuntimeError, match=r"is at version 1; expected version 0$"):
        y.sum().backward()
    gc.disable()
    try:
        del x, y
        assert storage.expired()
    finally:
        gc.enable()
