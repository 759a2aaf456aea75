"""watch: every state_dict entry that changed, and those of them meant to be frozen."""

import copy
import io
import re

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules import module as module_hooks
from torchvision.models import resnet18

from helpers.lessons.ranks import alone
from helpers.memory import saved_tensors
from helpers.report import parameters
from helpers.watching import watch


@pytest.mark.parametrize("mode, changed, unexpected", [("train", 62, 60), ("eval", 2, 0)])
def test_textbook_recipe(mode, changed, unexpected):
    torch.manual_seed(0)
    net = resnet18().requires_grad_(False)
    net.fc = nn.Linear(512, 10)
    optimizer = torch.optim.SGD(net.fc.parameters(), lr=0.1)
    getattr(net, mode)()
    with watch(net) as seen:
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(torch.randn(4, 3, 32, 32)), torch.arange(4)).backward()
            optimizer.step()
    assert (len(seen.changed), len(seen.unexpected)) == (changed, unexpected)
    assert seen.changed[-2:] == ["fc.weight", "fc.bias"]
    assert set(seen.unexpected) == set(seen.changed) & {name for name, _ in net.named_buffers()}
    assert seen.changed == [name for name in net.state_dict() if name in seen.changed]
    if mode == "train":
        shown = "bn1.running_mean, bn1.running_var, bn1.num_batches_tracked and 57 more"
        assert str(seen) == f"62 of 122 entries changed, 60 of them meant to be frozen: {shown}"
    else:
        assert str(seen) == repr(seen) == "2 of 122 entries changed, none meant to be frozen"


def fused_step(net):
    (net[0].weight.sum() * 3).backward()
    torch.optim.AdamW([net[0].weight], lr=0.1, fused=True).step()


def double_hash_twin(net):
    with torch.no_grad():
        net[0].weight.copy_(2 * torch.ones(64, 1))


def one_bit(net):
    net[0].weight.data.view(torch.int32)[5, 0] ^= 1


@pytest.mark.parametrize(
    "change",
    [
        fused_step,
        double_hash_twin,
        one_bit,
        lambda net: net[0].weight.data.mul_(1.5),
        lambda net: setattr(net[0].weight, "data", torch.zeros(64, 1)),
        lambda net: setattr(net[0].weight, "data", net[0].weight.data.double()),
        lambda net: setattr(net[0].weight, "data", net[0].weight.data.T),
        lambda net: setattr(net[0], "weight", nn.Parameter(net[0].weight.to("meta"))),
        lambda net: net[0].weight.data.fill_(float("nan")),
        lambda net: net[0].weight.untyped_storage().fill_(0),
        lambda net: setattr(net[0], "weight", nn.Parameter(torch.zeros(64, 1))),
        lambda net: net.state_dict()["0.weight"].zero_(),
        lambda net: delattr(net[0], "weight"),
    ],
)
def test_every_change_is_noticed(change):
    net = nn.Sequential(nn.Linear(1, 64), nn.Linear(64, 1))
    nn.init.ones_(net[0].weight)
    with watch(net) as seen:
        change(net)
    assert seen.changed == ["0.weight"] and seen.unexpected == []


@pytest.mark.parametrize(
    "keep",
    [
        lambda net: net,
        lambda net: net.train(False).requires_grad_(False),
        lambda net: net[0].weight.data.add_(0),
        lambda net: setattr(net[0], "weight", nn.Parameter(net[0].weight.detach().clone())),
        lambda net: net.load_state_dict(copy.deepcopy(net.state_dict())),
        lambda net: setattr(net[0].weight, "grad", torch.ones(3, 3)),
        lambda net: net.__setitem__(0, copy.deepcopy(net[0])),
    ],
)
def test_equal_values_are_no_change(keep):
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    net[0].weight.data[0, 0] = float("nan")
    net[1].running_mean.fill_(float("inf"))
    with watch(net) as seen:
        keep(net)
    assert seen.changed == [] and str(seen) == "0 of 7 entries changed, none meant to be frozen"


@pytest.mark.parametrize(
    "dtype",
    ["bool", "uint8", "int64", "float16", "bfloat16", "float8_e5m2", "float64", "complex64", "complex128"],
)
def test_any_dtype_and_a_scalar(dtype):
    net = nn.Module()
    dtype = getattr(torch, dtype)
    net.register_buffer("one", torch.ones((), dtype=dtype))
    net.register_buffer("same", torch.ones(2, 3).to(dtype).T)
    with watch(net) as seen:
        net.one.zero_()
    assert seen.changed == ["one"]


def test_sign_of_zero_is_a_change_and_lazy_conjugation_is_none():
    net = nn.Module()
    net.register_buffer("zero", torch.zeros(2))
    net.register_buffer("z", torch.tensor([1 + 1j]))
    with watch(net) as seen:
        net.zero.neg_()
        net.z = torch.tensor([1 - 1j]).conj()
    assert seen.changed == ["zero"]


def test_replaced_module_and_what_came_and_went():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[1].requires_grad_(False)
    with watch(net) as seen:
        net[1] = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU())
        net.append(nn.PReLU())
    assert seen.changed == ["1.weight", "1.bias", "1.0.weight", "2.weight"]
    assert seen.unexpected == ["1.weight", "1.bias"]
    assert str(seen) == (
        "4 of 6 entries changed, 2 of them meant to be frozen: 1.weight, 1.bias; "
        "trainable and unmoved: 0.weight, 0.bias"
    )
    head, *rows = seen._repr_html_().split("<tr")
    assert head.startswith("<p>4 of 6 entries changed, 2 of them meant to be frozen</p><table>")
    told = [re.findall(r"<t[hd][^>]*>([^<]*)", row) for row in rows]
    assert told == [
        ["state_dict", "entries", "which"],
        ["changed, though frozen", "2", "1.weight, 1.bias"],
        ["changed, not frozen", "2", "1.0.weight, 2.weight"],
        ["trainable, unmoved", "2", "0.weight, 0.bias"],
    ]
    assert [re.findall(r"rgba\(([^)]*)", row) for row in rows] == [[], ["220, 50, 50, 0.15"], ["230, 159, 0, 0.25"], []]


def test_html_of_what_is_as_it_should_be_has_no_alarm():
    net = nn.Linear(1, 1)
    net.add_module("<b>", nn.Linear(1, 1))
    seen = watch(net)
    assert seen._repr_html_() == "<p>nothing compared yet: the block has not ended</p>"
    with seen:
        pass
    page = seen._repr_html_()
    assert page.startswith("<p>0 of 4 entries changed, none meant to be frozen</p>")
    assert page.count("<tr>") == page.count("<tr") == 4, "no look"
    assert page.count("text-align: right") == 4, "the numbers and their title"
    assert "weight, bias, &lt;b&gt;.weight, &lt;b&gt;.bias" in page


def test_html_names_eight_entries_and_counts_the_others():
    with watch(nn.ParameterList(torch.ones(1) for _ in range(9))) as seen:
        pass
    assert ">0, 1, 2, 3, 4, 5, 6, 7 and 1 more<" in seen._repr_html_()


def test_a_frozen_norm_is_known_where_a_wrapper_renames_it():
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    net = nn.Sequential(checkpoint_wrapper(nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1).requires_grad_(False))))
    with watch(net) as seen:
        net(torch.randn(4, 1))
    assert seen.unexpected == ["0.1.running_mean", "0.1.running_var", "0.1.num_batches_tracked"]


def test_meant_to_be_frozen_is_judged_at_the_start():
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    net[0].requires_grad_(False)
    with watch(net) as seen:
        net[0].requires_grad_(True)
        net[1].requires_grad_(False)
        for parameter in net.parameters():
            parameter.data.add_(1)
    assert seen.changed == ["0.weight", "1.weight"] and seen.unexpected == ["0.weight"]


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(3, affine=False), nn.InstanceNorm1d(3, track_running_stats=True)])
def test_statistics_without_parameters_of_their_own_follow_the_module_around(layer):
    net = nn.Sequential(nn.Sequential(nn.Conv1d(3, 3, 1), copy.deepcopy(layer)), copy.deepcopy(layer), nn.PReLU())
    net[0].requires_grad_(False)
    with watch(net) as seen:
        net(torch.randn(4, 3, 5))
    moved = ["running_mean", "running_var", *["num_batches_tracked"] * isinstance(layer, nn.BatchNorm1d)]
    assert seen.changed == [f"{place}.{name}" for place in ("0.1", "1") for name in moved]
    assert seen.unexpected == [f"0.1.{name}" for name in moved]


def test_stale_gradient_moves_a_frozen_weight():
    net = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net(torch.ones(1, 2)).sum().backward()
    net.requires_grad_(False)
    with watch(net) as seen:
        optimizer.step()
    assert seen.unexpected == ["weight", "bias"]


def test_tied_weights_show_under_both_names_and_are_copied_once():
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2))
    net[1].weight = net[0].weight.requires_grad_(False)
    with watch(net) as seen:
        copies = {StorageWeakRef(part.untyped_storage()) for _, parts in seen._before.values() for part in parts}
        net[0].weight.data.add_(1)
    assert len(copies) == 2, "the weight and the bias"
    assert all(copy.expired() for copy in copies), "the copies end with the block"
    assert seen.changed == seen.unexpected == ["0.weight", "1.weight"]


def test_a_tie_that_is_cut_counts_when_the_values_part():
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    net[1].weight = net[0].weight
    with watch(net) as seen:
        net.load_state_dict({name: value.clone() for name, value in net.state_dict().items()}, assign=True)
        net[0].weight.data.add_(1)
    assert seen.changed == ["0.weight"]


def test_buffers_outside_the_state_dict_are_not_watched():
    net = nn.Module()
    net.register_buffer("step", torch.zeros(1), persistent=False)
    with watch(net) as seen:
        net.step.add_(1)
    assert seen.changed == []


class Extra(nn.Module):
    def __init__(self, extra):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1), requires_grad=False)
        self.extra = extra

    def get_extra_state(self):
        return self.extra

    def set_extra_state(self, state):
        self.extra = state


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (1, 2),
        (1, 1.0),
        (None, {}),
        ({"seen": [1, torch.zeros(2)]}, {"seen": [1, torch.ones(2)]}),
        (torch.zeros(2), "zeros"),
        ({"steps": 1, "mean": torch.zeros(2)}, {"steps": 2, "mean": torch.zeros(2)}),
        ({"mean": torch.zeros(2), "var": torch.ones(2)}, {"mean": torch.ones(2), "var": torch.ones(2)}),
        (io.BytesIO(b"a"), io.BytesIO(b"b")),
    ],
)
def test_extra_state_counts_with_its_module(before, after):
    net = Extra(before)
    with watch(net) as same:
        net.extra = copy.deepcopy(before)
    with watch(net) as other:
        net.extra = after
    assert same.changed == [] and other.changed == other.unexpected == ["_extra_state"]


def test_extra_state_changed_in_place():
    net = Extra({"scale": [1.0, float("nan")]})
    with watch(net) as seen:
        net.extra["scale"][0] = 2.0
    assert seen.changed == ["_extra_state"]


def test_lazy_entries_change_when_they_get_their_shape():
    net = nn.Sequential(nn.LazyLinear(2), nn.LazyBatchNorm1d())
    with watch(net) as still:
        pass
    with watch(net) as seen:
        net(torch.ones(3, 2))
    assert still.changed == [] and seen.changed == list(net.state_dict())


def test_meta_compares_dtype_and_shape():
    net = nn.Sequential(*[nn.Linear(1_000_000, 70_000, device="meta") for _ in range(3)])
    with watch(net) as seen:
        net[0].weight.data.zero_()
        net[1].bfloat16()
        net[2].weight = nn.Parameter(net[2].weight[1:])
    assert seen.changed == ["1.weight", "1.bias", "2.weight"]


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_bsr, torch.sparse_csc])
def test_sparse_buffers(layout):
    size = (2, 2) if layout == torch.sparse_bsr else None
    net = nn.Module()
    net.register_buffer("a", torch.eye(4).to_sparse(layout=layout, blocksize=size))
    net.register_buffer("b", (2 * torch.eye(4)).to_sparse(layout=layout, blocksize=size))
    with watch(net) as seen:
        net.a = net.a.clone()
        net.b = net.a.clone()
    assert seen.changed == ["b"]


def test_a_sparse_buffer_of_another_shape_has_changed():
    net = nn.Module()
    net.register_buffer("a", torch.eye(2).to_sparse())
    with watch(net) as seen:
        net.a = torch.sparse_coo_tensor(net.a._indices(), net.a._values(), (2, 3))
    assert seen.changed == ["a"]


def test_tensor_that_wraps_others():
    net = nn.Module()
    net.register_buffer("ragged", torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged))
    net.register_buffer("same", net.ragged.clone())
    with watch(net) as seen:
        net.ragged.values()[4] = 2
    assert seen.changed == ["ragged"]


def test_strided_nested_and_negated_tensors():
    net = nn.Module()
    net.register_buffer("ragged", torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]))
    net.register_buffer("same", net.ragged.clone())
    net.register_buffer("negated", torch.ones(2, dtype=torch.complex64).conj().imag)
    assert net.negated.is_neg()
    with watch(net) as seen:
        net.ragged.unbind()[1][2] = 2
    assert seen.changed == ["ragged"]


def test_lists_are_there_after_the_block_only():
    net = nn.Linear(1, 1)
    seen = watch(net)
    assert str(seen) == "nothing compared yet: the block has not ended"
    message = "watch compares when its block ends: read its lists after the with block"
    with seen:
        for name in ("changed", "unexpected", "unmoved"):
            with pytest.raises(RuntimeError, match=f"^{message}$"):
                getattr(seen, name)
        assert "not ended" in str(seen)
        net.weight.data.add_(1)
    assert seen.changed == ["weight"]
    with seen:
        assert "not ended" in str(seen)
    assert seen.changed == [], "a second block starts anew"


@pytest.mark.parametrize(("frozen", "shown"), [(3, "0, 1, 2"), (4, "0, 1, 2 and 1 more")])
def test_up_to_three_names_are_shown(frozen, shown):
    net = nn.ParameterList([torch.ones(1)] * frozen).requires_grad_(False)
    with watch(net) as seen:
        for parameter in net:
            parameter.data.zero_()
    assert str(seen) == f"{frozen} of {frozen} entries changed, {frozen} of them meant to be frozen: {shown}"


def test_lists_are_set_when_the_block_raises():
    net = nn.Linear(1, 1)
    with pytest.raises(ZeroDivisionError), watch(net) as seen:
        net.bias.data.add_(1)
        raise ZeroDivisionError
    assert seen.changed == ["bias"]


def test_state_dict_is_no_model():
    with pytest.raises(TypeError, match=r"watch\(model\).*not a OrderedDict; pass the model itself"):
        watch(nn.Linear(1, 1).state_dict())


def inside_and_out(tool):
    def run(net, optimizer):
        with tool(net):
            pass

    return run


def table(net, optimizer):
    str(parameters(net, optimizer)) + parameters(net, optimizer)._repr_html_()


def state(net, optimizer):
    """All that a look at the model must not touch."""
    return {
        "modes": [module.training for module in net.modules()],
        "tensors": [(id(t), t.data_ptr(), t._version, t.requires_grad, t.tolist())
                    for t in (*net.parameters(), *net.buffers())],
        "grads": [(id(p.grad), p.grad._version, p.grad.tolist()) for p in net.parameters() if p.grad is not None],
        "attributes": [{k: dict(v) if isinstance(v, dict) else v for k, v in vars(m).items()} for m in net.modules()],
        "hooks": {k: dict(v) for k, v in vars(module_hooks).items() if "_global_" in k and isinstance(v, dict)},
        "saved": torch._C._autograd._top_saved_tensors_default_hooks(False),
        "optimizer": str(optimizer.state_dict()),
        "random": torch.get_rng_state().tolist(),
        "recording": torch.is_grad_enabled(),
    }  # fmt: skip


@pytest.mark.parametrize("look", [table, inside_and_out(saved_tensors), inside_and_out(watch)])
def test_looking_changes_nothing(look):
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3).eval(), nn.Dropout(), nn.Linear(3, 1))
    net[0].requires_grad_(False)
    net[3].register_forward_hook(lambda *_: None)
    net[3].register_forward_pre_hook(lambda *_: None)
    optimizer = torch.optim.Adam(net[3].parameters())
    net(torch.randn(4, 2)).sum().backward()
    optimizer.step()
    before = state(net, optimizer)
    look(net, optimizer)
    assert state(net, optimizer) == before


# Tensors whose values are not reached as others are


def quantized(scale=0.1):
    values = torch.arange(-3.0, 3.0).view(2, 3)
    scales, zeros = torch.tensor([scale, 0.2]), torch.zeros(2, dtype=torch.int64)
    return {
        "per tensor": torch.quantize_per_tensor(values, scale, 0, torch.qint8),
        "per channel": torch.quantize_per_channel(values, scales, zeros, 0, torch.qint8),
    }


@pytest.mark.filterwarnings("ignore")  # quantization is deprecated
@pytest.mark.parametrize("kind", quantized())
def test_quantized_tensors_are_compared_by_their_integers_and_scales(kind):
    net = nn.Module()
    net.register_buffer("kept", quantized()[kind])
    net.register_buffer("same", quantized()[kind])
    net.register_buffer("scaled", quantized()[kind])
    net.register_buffer("moved", quantized()[kind])
    with watch(net) as seen:
        net.same = net.same.clone()
        net.scaled = quantized(0.3)[kind]
        net.moved.copy_(torch.zeros(2, 3))
    assert seen.changed == ["scaled", "moved"]


@pytest.mark.filterwarnings("ignore")
def test_a_quantized_model_does_not_end_the_process():
    body = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 4)), {nn.Linear}, dtype=torch.qint8)
    model = nn.Sequential(body, nn.Linear(4, 2))
    with watch(model) as seen:
        model(torch.randn(3, 4))
        model[1].weight.data.add_(1)
    assert seen.changed == ["1.weight"]


def test_sharded_models():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    with alone():
        mesh = init_device_mesh("cpu", (1,))
        model = nn.Sequential(nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 2))
        for part in (*model, model):
            fully_shard(part, mesh=mesh)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with watch(model) as seen:
            model(torch.randn(3, 4)).sum().backward()
            optimizer.step()
            with torch.no_grad():
                model[0].bias.to_local().add_(1)
        assert seen.changed == ["0.bias", "1.weight", "1.bias"] and seen.unexpected == ["0.bias"]
        assert seen.unmoved == []


# What belongs to what


def frozen_block():
    return nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)).requires_grad_(False)


@pytest.mark.parametrize("wrap", ["checkpoint", "compiled", "compiled child", "data parallel"])
def test_what_renames_entries_changes_nothing_about_what_was_meant(wrap):
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    block = frozen_block()
    if wrap == "checkpoint":
        model = nn.Sequential(checkpoint_wrapper(block), nn.Linear(6, 2))
    elif wrap == "compiled child":
        model = nn.Sequential(torch.compile(block, backend="eager"), nn.Linear(6, 2))
    else:
        model = nn.Sequential(block, nn.Linear(6, 2))
        model = torch.compile(model, backend="eager") if wrap == "compiled" else nn.DataParallel(model)
    with watch(model) as seen:
        model(torch.randn(8, 6))
        with torch.no_grad():
            block[0].weight.add_(1)
    assert len(seen.changed) == 4 and seen.unexpected == seen.changed
    assert seen.unmoved == [
        name for name in model.state_dict() if name.endswith(("1.weight", "1.bias")) and "0." not in name
    ]


class Packed(nn.Linear):
    """As 4-bit layers do: the quantization state of the weight is in the state_dict, under the weight's name."""

    def __init__(self):
        super().__init__(2, 2)
        self.absmax = torch.ones(2)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight.absmax"] = self.absmax


def test_what_belongs_to_a_frozen_parameter_is_meant_to_be_frozen():
    model = nn.Sequential(Packed())
    model[0].weight.requires_grad_(False)
    with watch(model) as seen:
        model[0].absmax.mul_(2)
    assert seen.unexpected == ["0.weight.absmax"]
    model[0].weight.requires_grad_(True)
    with watch(model) as seen:
        model[0].absmax.mul_(2)
    assert seen.changed == ["0.weight.absmax"] and seen.unexpected == []


def test_unmoved_are_the_trainable_entries_that_did_not_change():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1))
    model[1].requires_grad_(False)
    tied = model[2].weight
    with watch(model) as seen:
        pass
    assert seen.unmoved == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert str(seen) == "0 of 6 entries changed, none meant to be frozen"
    with watch(model) as seen:
        tied.data.add_(1)
        model[0].requires_grad_(False)  # counted as when the block began
    assert seen.unmoved == ["0.weight", "0.bias", "2.bias"]
    shown = "1 of 6 entries changed, none meant to be frozen; trainable and unmoved: 0.weight, 0.bias, 2.bias"
    assert str(seen) == shown
