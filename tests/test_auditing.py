"""What audit finds, on what it stays silent, and that it changes nothing."""

import copy
import doctest
import functools
import inspect
import sys
import time
import warnings
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision import models
from torchvision.ops import StochasticDepth

from helpers import auditing
from helpers.auditing import RULES, Finding, Findings, audit
from helpers.freezing import freeze, unfreeze
from helpers.lessons.ranks import alone

INPUT = torch.ones(4, 2)


@pytest.fixture(scope="module", autouse=True)
def group():
    """A group of one process, for DistributedDataParallel."""
    with alone():
        yield


def found(model, optimizer=None):
    return [(finding.rule, finding.name) for finding in audit(model, optimizer)]


def sgd(model, **options):
    return torch.optim.SGD(model.named_parameters(), lr=0.1, **options)


def net(*backbone, frozen=False):
    """A trainable head, ``1``, behind a backbone, ``0``."""
    model = nn.Sequential(nn.Sequential(*backbone or [nn.Linear(2, 2)]), nn.Linear(2, 1))
    model[0].requires_grad_(not frozen)
    return model


def backward(model, inputs=INPUT):
    model(inputs).sum().backward()


class Holder(nn.Linear):
    """A layer with further attributes."""

    def __init__(self, **attributes):
        super().__init__(2, 1)
        for name, value in attributes.items():
            setattr(self, name, value)


class DropPath(nn.Identity):
    """timm's."""

    def __init__(self):
        super().__init__()
        self.drop_prob = 0.2


def tied():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    return model


# The mistakes ---------------------------------------------------------------------------------------------------------

MISTAKES = []


def mistake(rule, *names):
    """A generator that gives the model and optimizer with the mistake, and then without it."""
    return lambda make: MISTAKES.append(pytest.param(make, [(rule, name) for name in names], id=make.__name__)) or make


@mistake("orphan-in-optimizer", "1.weight", "1.bias")
def removed_layer():
    model = net()
    optimizer = sgd(model)
    model[1] = nn.Identity()
    yield model, optimizer
    yield model, sgd(model)


@mistake("orphan-in-optimizer", "param_groups[1]['params'][0]", "param_groups[1]['params'][1]")
def second_module():
    first, second = nn.Linear(2, 2), nn.Linear(2, 1)
    optimizer = torch.optim.Adam([{"params": first.parameters()}, {"params": second.parameters()}])
    yield first, optimizer
    yield nn.ModuleList([first, second]), optimizer


@mistake("trainable-in-no-optimizer", "1.weight", "1.bias")
def added_layer():
    model = nn.Sequential(nn.Linear(2, 2))
    optimizer = sgd(model)
    model.append(nn.Linear(2, 1))
    yield model, optimizer
    optimizer.add_param_group({"params": model[1].named_parameters()})
    yield model, optimizer


@mistake("trainable-in-no-optimizer", "0.0.weight", "0.0.bias")
def not_frozen():
    model = net()
    yield model, sgd(model[1])
    freeze(model, "0.*")
    yield model, sgd(model[1])


@mistake("held-twice", "weight")
def twice_in_a_group():
    model = nn.Linear(2, 1)
    yield model, torch.optim.SGD([model.weight, model.weight, model.bias], lr=0.1)
    yield model, sgd(model)


@mistake("held-twice", "bias")
def twice_after_an_edit():
    model = nn.Linear(2, 1)
    optimizer = sgd(model)
    optimizer.param_groups.append({**optimizer.param_groups[0], "params": [model.bias]})
    yield model, optimizer
    del optimizer.param_groups[1]
    yield model, optimizer


@mistake("nothing-trainable", "")
def all_frozen():
    model = net()
    optimizer = sgd(model)
    freeze(model)
    yield model, optimizer
    model[1].requires_grad_(True)
    yield model, optimizer


@mistake("stale-grad", "0.0.weight", "0.0.bias")
def frozen_after_a_step():
    model = net()
    optimizer = sgd(model)
    backward(model)
    optimizer.step()
    model[0].requires_grad_(False)
    yield model, optimizer
    optimizer.zero_grad()
    yield model, optimizer


AWAKE = "frozen-part-in-train-mode"


@mistake(AWAKE, "0")
def frozen_batchnorm():
    model = net(nn.Linear(2, 2), nn.BatchNorm1d(2), frozen=True)
    yield model, sgd(model)
    freeze(model, "0.*")
    yield model.train(), sgd(model)


@mistake(AWAKE, "0")
def eval_undone_by_train():
    model = net(nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False), frozen=True)
    model[0].eval()
    model.train()
    yield model, None
    model[0].eval()
    yield model, None


@mistake(AWAKE, "0")
def mode_assigned_although_held():
    model = net(nn.Linear(2, 2), nn.BatchNorm1d(2))
    freeze(model, "0.*")
    for module in model.modules():
        module.training = True
    yield model, None
    model[0].eval()
    yield model, None


@mistake(AWAKE, "0")
def statistics_switched_off():
    model = net(nn.BatchNorm1d(2), frozen=True)
    model[0][0].track_running_stats = False
    yield model, None
    model[0].eval()
    yield model, None


class OtherNorm(nn.Module):
    """Of another library: it updates in a method of its own."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))
        self.register_buffer("mean", torch.zeros(2))

    def forward(self, x):
        self.update(x)
        return (x - self.mean) * self.scale

    def update(self, x):
        if self.training:
            self.mean.lerp_(x.detach().mean(0), 0.1)


class Renamed(nn.BatchNorm1d):
    """Calls the method that it overrides."""

    def forward(self, x):
        return super().forward(x).relu()


class Literal(nn.Linear):
    """Drops by function, with a number that is nowhere but there."""

    def __init__(self):
        super().__init__(2, 2)

    def forward(self, x):
        return nn.functional.dropout(super().forward(x), 0.5, training=self.training)


class Noise(Literal):
    def forward(self, x):
        return x + torch.randn_like(x) if self.training else x


class Far(Literal):
    """Writes two calls away."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(2))

    def forward(self, x):
        if self.training:
            self.update(x)
        return x - self.mean

    def update(self, x):
        self.smooth(x.detach().mean(0))

    def smooth(self, now):
        self.mean = 0.9 * self.mean + 0.1 * now


class Book(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("codes", torch.zeros(2))

    def update(self, x):
        self.codes[:] = x


class Writer(Literal):
    """Tells a part of it to write."""

    def __init__(self):
        super().__init__()
        self.book = Book()

    def forward(self, x):
        if self.training:
            self.book.update(x)
        return x


class Counts(nn.Module):
    """Integers that move."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.tensor(0))

    def forward(self, x):
        if self.training:
            self.seen += len(x)
        return x


class Codebook(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("codes", torch.ones(2, 2))

    def forward(self, x):
        if self.training:
            self.codes += 1
        return x


class Carries(nn.Linear):
    """Drops by function, with a number that it carries."""

    def __init__(self, **numbers):
        super().__init__(2, 2)
        vars(self).update(numbers)


class PatchDrop(nn.Module):
    def __init__(self, prob):
        super().__init__()
        self.prob = prob


def awake(*layers):
    @mistake(AWAKE, "0")
    def awake():
        model = net(*copy.deepcopy(layers), frozen=True)
        yield model, None
        model[0].eval()
        yield model, None


awake(nn.InstanceNorm1d(2, affine=True, track_running_stats=True))
awake(nn.BatchNorm1d(2, momentum=0.0))
awake(OtherNorm())
awake(Renamed(2))
awake(nn.Linear(2, 2), Codebook())
awake(nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2)))
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    awake(nn.utils.spectral_norm(nn.Linear(2, 2)).requires_grad_(False))
awake(nn.Linear(2, 2), nn.Dropout(0.5))
awake(nn.Linear(2, 2), nn.AlphaDropout(1))
awake(nn.LSTM(2, 2, num_layers=2, dropout=0.1))
awake(nn.MultiheadAttention(2, 1, dropout=0.1))
awake(nn.TransformerEncoderLayer(2, 1, 2, dropout=0.1))
awake(nn.Linear(2, 2), nn.RReLU())
awake(nn.Linear(2, 2), StochasticDepth(0.2, "row"))
awake(nn.Linear(2, 2), DropPath())
awake(nn.Linear(2, 2), PatchDrop(0.5))
awake(Carries(drop_rate=0.2))
awake(Carries(attention_dropout=1.0))
awake(Carries(router_jitter_noise=0.01))
awake(Carries(layerdrop=0.1))
awake(Literal())
awake(Noise())
awake(Far())
awake(Writer())
awake(nn.Linear(2, 2), Counts())


@mistake("traced-in-train-mode", "0")
def traced_in_train_mode():
    model = net(BatchNormAct(2), frozen=True)
    body = model[0]
    model[0] = torch.fx.GraphModule(body, Deep().trace(body))
    yield model.eval(), None
    model[0] = torch.fx.GraphModule(body.eval(), Deep().trace(body))
    yield model, None


@mistake("traced-in-train-mode", "0")
def exported_in_train_mode():
    model = net(nn.Linear(2, 2), nn.BatchNorm1d(2), frozen=True)
    body = model[0]
    model[0] = torch.export.export(body, (INPUT,)).module()
    yield model, None
    model[0] = torch.export.export(body.eval(), (INPUT,)).module()
    yield model, None


@mistake(AWAKE, "0")
def put_in_after_freezing():
    model = net(nn.Linear(2, 2), nn.BatchNorm1d(2))
    freeze(model, "0.*")
    model[0].append(nn.Dropout())
    assert "put in after freeze(), which does not hold it: call freeze() again" in str(audit(model))
    yield model, None
    freeze(model, "0.*")
    yield model.train(), None


@mistake(AWAKE, "0")
def scripted_dropout():
    model = net(nn.Linear(2, 2), nn.Dropout(), frozen=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model[0] = torch.jit.script(model[0])
    yield model, None
    freeze(model, "0.*")
    yield model.train(), None


class BatchNormAct(nn.BatchNorm1d):
    """As in timm: a tracer looks into it."""

    def forward(self, x):
        mean, var = self.running_mean, self.running_var
        return nn.functional.batch_norm(x, mean, var, self.weight, self.bias, self.training).relu()


class Deep(torch.fx.Tracer):
    def is_leaf_module(self, module, name):
        return False


def scripted_batchnorm():
    model = net(nn.Linear(2, 2), nn.BatchNorm1d(2), frozen=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model[0] = torch.jit.script(model[0])
    yield model, None
    model[0].eval()
    yield model, None


mistake(AWAKE, "0")(scripted_batchnorm)


@mistake("batch-statistics-in-frozen-part", "0.0")
def norm_without_statistics():
    model = net(nn.BatchNorm1d(2, track_running_stats=False), frozen=True)
    yield model.eval(), None
    model[0].requires_grad_(True)
    yield model, None


def long_rows(kind, norm_type):
    model = nn.Sequential(kind(500, 64, max_norm=7.3, norm_type=norm_type), nn.Linear(64, 1))
    freeze(model, "0.*")
    yield model, None
    table = model[0]
    torch.embedding_renorm_(table.weight, torch.arange(500), table.max_norm, table.norm_type)
    table.max_norm = None  # rounding has left some rows too long
    before = table.weight.clone()
    model(torch.arange(500).reshape(500, 1))
    assert torch.equal(table.weight, before)
    yield model, None
    yield model.append(nn.Embedding(3, 2, max_norm=9.0).requires_grad_(False)), None


@mistake("max-norm-in-frozen-part", "0")
def embedding_with_long_rows():
    return long_rows(nn.Embedding, 2.0)


@mistake("max-norm-in-frozen-part", "0")
def embedding_bag_with_long_rows():
    return long_rows(nn.EmbeddingBag, 1.0)


@pytest.mark.parametrize(
    "row, max_norm, norm_type, long",
    [
        ([0.6, 0.6], 1.0, 1.0, True),  # 1.2
        ([0.6, 0.6], 1.0, 2.0, False),  # 0.85; all three rows together have 1.47
        ([3.0, 4.0], 5.0, 2.0, False),
        ([3.0, 4.0], 5.0, 1.0, True),
    ],
)
def test_a_row_is_long_by_the_norm_of_its_embedding(row, max_norm, norm_type, long):
    table = nn.Embedding(3, 2, max_norm=max_norm, norm_type=norm_type, _weight=torch.tensor([row] * 3))
    model = nn.Sequential(table.requires_grad_(False), nn.Linear(2, 1))
    assert found(model) == [("max-norm-in-frozen-part", "0")] * long


@mistake("max-norm-in-frozen-part", "0")
def embedding_of_which_nothing_is_known():
    model = nn.Sequential(nn.Embedding(3, 2, max_norm=1.0, device="meta").requires_grad_(False), nn.Linear(2, 1))
    yield model, None
    model[0].max_norm = None
    yield model, None


@mistake("observer-in-frozen-part", "0.1")
def fake_quantize():
    model = net(nn.Linear(2, 2), torch.ao.quantization.FakeQuantize(), frozen=True)
    yield model.eval(), None
    model.apply(torch.ao.quantization.disable_observer)
    yield model, None


@mistake("observer-in-frozen-part", "0.1")
def observer():
    model = net(nn.Linear(2, 2), torch.ao.quantization.MinMaxObserver(), frozen=True)
    yield model.eval(), None
    model[0][1] = torch.ao.quantization.PlaceholderObserver()
    yield model, None


@mistake("held-but-trainable", "0.1")
def flags_set_back_by_hand():
    model = net(nn.Linear(2, 2), nn.BatchNorm1d(2))
    freeze(model, "0.*")
    model.requires_grad_(True)
    yield model, None
    yield model.eval(), None


@mistake("off-in-eval-mode", "1")
def checkpointing_that_eval_mode_switches_off():
    model = nn.Sequential(nn.Linear(2, 2), Holder(gradient_checkpointing=True), nn.Linear(1, 1))
    freeze(model, "1.*")
    yield model, None
    model[0].requires_grad_(False)
    yield model, None


class OnGPU(nn.Parameter):
    """Says that it is there."""

    is_cuda = True


@mistake("off-in-eval-mode", "1")
def recurrent_on_a_gpu():
    model = nn.Sequential(nn.Linear(2, 2), nn.GRU(2, 2), nn.Linear(2, 1))
    model[1].weight_ih_l0 = OnGPU(torch.ones(6, 2))
    freeze(model, "1.*")
    yield model, None
    model[1].weight_ih_l0 = nn.Parameter(torch.ones(6, 2), requires_grad=False)
    yield model, None


@mistake("off-in-eval-mode", "1")
def auxiliary_outputs():
    model = nn.Sequential(nn.Linear(2, 2), Holder(aux_logits=True), nn.Linear(1, 1))
    freeze(model, "1.*")
    yield model, None
    unfreeze(model)
    freeze(model, "1.*", hold=False)
    yield model, None


@mistake("flag-on-gathered-parameter", "weight", "bias")
def frozen_after_validation():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = fully_shard(nn.Linear(2, 1), mesh=init_device_mesh("cpu", (1,)))
    with torch.no_grad():
        model(INPUT)
    model.requires_grad_(False)
    yield model, None
    model.reshard()
    model.requires_grad_(False)
    yield model, None


@mistake("orphan-in-optimizer", "param_groups[0]['params'][0]", "param_groups[0]['params'][1]")
def optimizer_built_after_validation():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = fully_shard(nn.Linear(2, 1), mesh=init_device_mesh("cpu", (1,)))
    sharded = torch.optim.SGD(model.parameters(), lr=0.1)
    with torch.no_grad():
        model(INPUT)
    yield model, torch.optim.SGD(model.parameters(), lr=0.1)
    yield model, sharded


@mistake("flag-on-module", "0")
def flag_without_underscore():
    model = net()
    model[0].requires_grad = False
    yield model, None
    model[0].requires_grad_(False)
    yield model, None


@mistake("flag-on-module", "")
def unfrozen_without_underscore():
    model = net(frozen=True)
    model.requires_grad = True
    yield model, None
    model.requires_grad_(True)
    yield model, None


def misspelling(name):
    @mistake("misspelt-flag", "0.0.weight")
    def on_parameter():
        model = net()
        setattr(model[0][0].weight, name, False)
        yield model, None
        model[0][0].weight.requires_grad = False
        yield model, None

    @mistake("misspelt-flag", "0")
    def on_module():
        model = net()
        setattr(model[0], name, False)
        yield model, None
        model[0].requires_grad_(False)
        yield model, None


for name in ("require_grad", "requires_gard", "requires_gradient", "required_grad", "Requires_grad"):
    misspelling(name)


def hiding(make, registered):
    @mistake("unregistered", "0.0.extra")
    def attribute():
        model = net(Holder(extra=make()), nn.Linear(1, 2))
        yield model, None
        model[0][0] = Holder(extra=registered(make()))
        yield model, None


hiding(lambda: torch.ones(1, requires_grad=True), nn.Parameter)
hiding(lambda: nn.Parameter(torch.ones(1)).to(torch.float64), lambda value: nn.Parameter(value.detach()))
hiding(lambda: nn.Parameter(torch.ones(1)) * 0.1, lambda value: nn.Parameter(value.detach()))
hiding(lambda: [nn.Parameter(torch.ones(1))], nn.ParameterList)
hiding(lambda: {"a": nn.Parameter(torch.ones(1))}, nn.ParameterDict)
hiding(lambda: [nn.ReLU(), nn.Linear(1, 1)], nn.ModuleList)
hiding(lambda: {"a": nn.Linear(1, 1)}, nn.ModuleDict)
hiding(lambda: {"a": [(nn.Linear(1, 1),)]}, lambda value: nn.ModuleList(value["a"][0]))


def untied_by_assign(*frozen):
    model = tied()
    model.load_state_dict(tied().state_dict(), assign=True)
    for index in frozen:
        model[index].weight.requires_grad_(False)
    return model


def untied(*frozen):
    @mistake("tied-weights-split", "1.weight")
    def untied():
        model = untied_by_assign(*frozen)
        yield model, None
        model[1].weight = model[0].weight
        yield model, None


for frozen in ([], [0], [1]):
    untied(*frozen)


@mistake("tied-weights-split", "1.weight")
def untied_on_the_meta_device():
    with torch.device("meta"):
        model = untied_by_assign()
    yield model, None
    model[1].weight = model[0].weight
    yield model, None


@mistake("inference-tensor", "1.weight", "1.bias")
def built_under_inference_mode():
    model = net()
    with torch.inference_mode():
        model[1] = nn.Linear(2, 1)
    yield model, None
    model[1] = nn.Linear(2, 1)
    yield model, None


@mistake("inference-tensor", "0.0.center")
def inference_buffer():
    model = net()
    with torch.inference_mode():
        center = torch.ones(2)
    model[0][0].register_buffer("center", center)
    yield model, None
    model[0][0].center = center.clone()
    yield model, None


@mistake("changed-after-wrapping", "module.0.0.weight", "module.0.0.bias")
def unfrozen_in_ddp():
    ddp = DistributedDataParallel(net(frozen=True))
    ddp.module.requires_grad_(True)
    yield ddp, sgd(ddp)
    ddp = DistributedDataParallel(ddp.module)
    yield ddp, sgd(ddp)


@mistake("changed-after-wrapping", "module.1.weight", "module.1.bias")
def frozen_in_ddp():
    ddp = DistributedDataParallel(net())
    backward(ddp)
    freeze(ddp, "module.1.*")
    yield ddp, sgd(ddp)
    yield DistributedDataParallel(ddp.module), sgd(ddp)


@mistake("changed-after-wrapping", "module.1.weight", "module.1.bias", "")
def head_replaced_in_ddp():
    ddp = DistributedDataParallel(net())
    ddp.module[1] = nn.Linear(2, 3)
    yield ddp, sgd(ddp)
    yield DistributedDataParallel(ddp.module), None


@mistake("changed-after-wrapping", "module.1.weight", "module.1.bias")
def only_trainable_layer_replaced_in_ddp():
    # It waits for nothing: no gradient that it knows will come.
    ddp = DistributedDataParallel(net(frozen=True))
    ddp.module[1] = nn.Linear(2, 3)
    yield ddp, sgd(ddp)
    yield DistributedDataParallel(ddp.module), None


@mistake("changed-after-wrapping", "1.module.0.0.weight", "1.module.1.weight", "1.module.1.bias", "1")
def changed_in_ddp_within_a_model():
    model = nn.ModuleList([nn.Linear(2, 2), DistributedDataParallel(net())])
    model[1].module[0][0].weight.requires_grad = False
    model[1].module[1] = nn.Linear(2, 3)
    yield model, None
    model[1] = DistributedDataParallel(model[1].module)
    yield model, None


@mistake("changed-after-wrapping", "module.0.0.weight")
def unfrozen_in_ddp_that_finds_unused_parameters():
    model = net(frozen=True)
    ddp = DistributedDataParallel(model, find_unused_parameters=True)
    model[0][0].weight.requires_grad = True
    model[1].requires_grad_(False)
    yield ddp, None
    model[0][0].weight.requires_grad = False
    yield ddp, None


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
@pytest.mark.parametrize("make, expected", MISTAKES)
def test_a_mistake_is_found_and_its_mend_silences_it(make, expected):
    states = make()
    assert found(*next(states)) == expected
    assert found(*next(states)) == []


def test_every_rule_has_a_mistake_here_and_an_example_in_its_documentation():
    assert {rule for case in MISTAKES for rule, _ in case.values[1]} == set(RULES)
    for rule, find in RULES.items():
        written = inspect.getdoc(find)
        assert f"\n{rule}: " in written and written.endswith("no findings")


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
@pytest.mark.parametrize("rule", RULES)
def test_the_example_of_a_rule_prints_its_words(rule, monkeypatch):
    """Here as well, because `make mutate-helpers` runs no doctests."""
    for of_its_own in ("init_process_group", "destroy_process_group"):  # there is one already
        monkeypatch.setattr(torch.distributed, of_its_own, lambda *args, **options: None)
    example = doctest.DocTestParser().get_doctest(inspect.getdoc(RULES[rule]), dict(vars(auditing)), rule, None, None)
    assert doctest.DocTestRunner().run(example).failed == 0


def test_five_mistakes_at_once_in_resnet18():
    model = models.resnet18()
    model.requires_grad_(False)
    optimizer = sgd(model.fc)
    model.layer4.requires_grad = True
    model.conv1.weight.require_grad = True
    model.fc = nn.Linear(512, 10)
    model.layer1.append(nn.Dropout(0.5))
    rules = Counter(rule for rule, _ in found(model, optimizer))
    assert rules == {
        "orphan-in-optimizer": 2,
        "trainable-in-no-optimizer": 2,
        AWAKE: 3,
        "flag-on-module": 1,
        "misspelt-flag": 1,
    }
    awake = [finding for finding in audit(model) if finding.rule == AWAKE]
    assert [finding.names for finding in awake] == [("bn1",), ("layer1",), ("layer2", "layer3", "layer4")]
    assert [finding.message for finding in awake] == [
        "'bn1' is frozen but in train mode: 1 module moves its buffers ('bn1').",
        "'layer1' is frozen but in train mode: 4 modules move their buffers ('layer1.0.bn1', 'layer1.0.bn2' and 2 "
        "more), 1 module draws at random ('layer1.2').",
        "'layer2', 'layer3', 'layer4' are frozen but in train mode: 15 modules move their buffers ('layer2.0.bn1', "
        "'layer2.0.bn2' and 13 more).",
    ]
    for finding in awake:
        for name in finding.names:
            model.get_submodule(name).eval()
    assert AWAKE not in {rule for rule, _ in found(model)}


def test_findings_come_by_rule_and_then_in_model_order():
    model = nn.Sequential(
        nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(), nn.MultiheadAttention(2, 1, 0.1), nn.Linear(2, 1)
    )
    model[:4].requires_grad_(False)
    names = [name for _, name in found(model, torch.optim.SGD([nn.Parameter(torch.ones(1)), model[0].weight], lr=0.1))]
    assert names == ["param_groups[0]['params'][0]", "4.weight", "4.bias", "1", "3"]


# What moves a frozen parameter ----------------------------------------------------------------------------------------

PLAIN = ("Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD", "Muon", "NAdam", "RAdam", "RMSprop")
OPTIMIZERS = {
    "SGD": {"lr": 0.1},
    "SGD momentum": {"lr": 0.1, "momentum": 0.9},
    "SGD decay": {"lr": 0.1, "weight_decay": 0.1},
    "SGD zero": {"lr": 0.0, "momentum": 0.9},
    "RMSprop momentum": {"momentum": 0.9},
    **{name: {} for name in (*PLAIN, "Rprop")},
}


@pytest.mark.parametrize("gradient", [None, 0.0, 1.0])
@pytest.mark.parametrize("steps", [0, 1])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_stale_grad_is_found_when_the_next_step_moves_the_parameter(name, steps, gradient):
    weight = nn.Parameter(torch.ones(2, 2))
    model = nn.ParameterList([weight, nn.Parameter(torch.ones(2, 2))])
    optimizer = getattr(torch.optim, name.split()[0])(model.parameters(), **OPTIMIZERS[name])

    def step():
        model[1].grad = torch.ones(2, 2)
        optimizer.step()

    for _ in range(steps):
        weight.grad = torch.ones(2, 2)
        step()
    weight.requires_grad_(False)
    weight.grad = None if gradient is None else torch.full((2, 2), gradient)
    expected = [("stale-grad", "0")] if found(model, optimizer) else []
    assert found(model, optimizer) == expected
    before = weight.clone()
    step()
    assert bool(expected) == (not torch.equal(before, weight))


def test_a_gradient_on_the_meta_device_counts():
    model = nn.Linear(2, 1, device="meta")
    model.weight.grad = torch.zeros(1, 2, device="meta")
    model.weight.requires_grad_(False)
    assert found(model, sgd(model)) == [("stale-grad", "weight")]


# Silence --------------------------------------------------------------------------------------------------------------


class OnMeta(TorchFunctionMode):
    """Only parameters go to the meta device: some models compute with other tensors while they are built."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **{**(kwargs or {}), **({"device": "meta"} if func is torch.empty else {})})


def build(name):
    """A torchvision model on the meta device; its forward takes no time there."""
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with OnMeta():
        return models.get_model(name, weights=None, **options).to("meta")


def freeze_rightly(model):
    """Freeze everything and replace what gives the 1000 classes, also in auxiliary classifiers, as all recipes do."""
    freeze(model)
    for name, old in list(model.named_modules()):
        if getattr(old, "out_features", 0) == 1000:
            model.set_submodule(name, nn.Linear(old.in_features, 5, device="meta"))
        elif getattr(old, "out_channels", 0) == 1000:
            model.set_submodule(name, nn.Conv2d(old.in_channels, 5, 1, device="meta"))
    return model.train()


def trained(model):
    """The optimizer of what is trainable."""
    return torch.optim.SGD([(name, tensor) for name, tensor in model.named_parameters() if tensor.requires_grad])


@pytest.mark.parametrize("name", models.list_models(module=models))
def test_silent_on_every_torchvision_classification_model(name):
    model = build(name)
    for prepare in (nn.Module.train, freeze_rightly):
        optimizer = trained(prepare(model))
        assert found(model, optimizer) == []
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
        optimizer.step()
        assert found(model, optimizer) == found(model.eval(), optimizer) == []


@pytest.mark.parametrize("prepare", [nn.Module.train, freeze_rightly])
@pytest.mark.parametrize("name", ["convnext_tiny", "googlenet", "inception_v3", "maxvit_t", "mobilenet_v2", "resnet18",
                                  "shufflenet_v2_x0_5", "squeezenet1_1", "swin_v2_t", "vit_b_32"])  # fmt: skip
def test_silent_after_forward_and_backward(name, prepare):
    model = prepare(build(name))
    optimizer = trained(model)
    size = 299 if name == "inception_v3" else 224
    outputs = model(torch.ones(2, 3, size, size, device="meta"))
    sum(output.sum() for output in (outputs if isinstance(outputs, tuple) else [outputs])).backward()
    assert found(model, optimizer) == []
    optimizer.step()
    assert found(model, optimizer) == []


class Recorder(nn.Module):
    """Keeps activations, registered layers under a second name, and whatever else is no mistake."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.position = nn.Parameter(torch.ones(2))
        self.layers = [self.layer, {"position": self.position}]
        self.layer.owner = [self]
        self.activations = [nn.ReLU(), nn.Linear(2, 2).requires_grad_(False)]
        self.history = []
        self.scale = torch.ones(1)
        self.requires_graph = self.requires_input_grad = self.require_backward_grad_sync = False
        self.requires_grad = self.require_grad = self.requires_gradient = True
        # The way to hide a module from parameters() and state_dict().
        object.__setattr__(self, "teacher", nn.Linear(2, 2))

    def forward(self, x):
        self.converted = self.position.to(torch.float64)
        self.doubled = 2 * x
        self.output = self.layer(x) + self.position
        self.history.append(self.output)
        return self.output


class FrozenBatchNorm(nn.Module):
    """torchvision's: statistics that never move."""

    def __init__(self):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(2))

    def forward(self, x):
        return x - self.running_mean


class Steady(nn.Linear):
    """As a language model of transformers: it asks for the mode, and keeps a number that never moves."""

    def __init__(self):
        super().__init__(2, 2)
        self.register_buffer("final_bias", torch.ones(2))

    def forward(self, x):
        return super().forward(x) + self.final_bias

    def checkpoints(self):
        return self.training


class ReadsOnly(Steady):
    """Asks for the mode where it reads its buffer."""

    def forward(self, x):
        x = super().forward(x) + self.final_bias
        return x if self.training else x * 1


class NeverDrops(Steady):
    """As attention in transformers, with a chance of zero."""

    def __init__(self):
        super().__init__()
        self.attention_dropout = 0

    def forward(self, x):
        return nn.functional.dropout(super().forward(x), self.attention_dropout, self.training)


class Odd(dict):
    """As configurations that give their items as attributes."""

    __getattr__ = dict.__getitem__


class Configured(Steady):
    config = Odd(a=1)


class KeepsInput(Steady):
    def forward(self, x):
        self.last = x
        self.features = [x]
        return super().forward(x)


class OwnFlag(nn.Linear):
    """As wav2vec2's feature encoder: whether its input is to require a gradient."""

    def __init__(self):
        super().__init__(2, 2)
        self.requires_gradient = True

    def forward(self, x):
        return super().forward(x if self.requires_gradient else x.detach())


def shared_dropout():
    dropout = nn.Dropout()
    return nn.Sequential(nn.Sequential(nn.Linear(2, 2), dropout).requires_grad_(False), dropout, nn.Linear(2, 1))


def pruned():
    layer = nn.Linear(2, 2)
    prune.l1_unstructured(layer, "weight", 0.5)
    return layer


RIGHT = {
    "recorder": Recorder,
    "part of a recorder": lambda: Recorder().layer,
    "shared dropout": shared_dropout,
    "pruned": pruned,
    "tied": tied,
    "frozen and untied": lambda: nn.Sequential(untied_by_assign(0, 1), nn.Linear(2, 1)),
    "empty parameters": lambda: Holder(one=nn.Parameter(torch.empty(0)), other=nn.Parameter(torch.empty(0))),
    "parts of one tensor": lambda: Holder(**dict(zip("ab", map(nn.Parameter, torch.ones(2, 3)), strict=True))),
    "sparse parameter": lambda: Holder(extra=nn.Parameter(torch.eye(2).to_sparse())),
    "dropout beside the head": lambda: nn.Sequential(
        nn.Linear(2, 2).requires_grad_(False), nn.Dropout(), nn.Linear(2, 1)
    ),
    "dropout without effect": lambda: net(nn.Dropout(0.0), nn.Linear(2, 2), frozen=True),
    "nothing that moves": lambda: net(
        nn.Linear(2, 2),
        nn.LayerNorm(2),
        nn.ReLU(),
        FrozenBatchNorm(),
        Steady(),
        ReadsOnly(),
        NeverDrops(),
        Configured(),
        frozen=True,
    ),
    "an input that is kept": KeepsInput,
    "instance norm without statistics": lambda: net(nn.Flatten(), nn.InstanceNorm1d(2), nn.Linear(2, 2), frozen=True),
    "a flag of the class's own": lambda: net(OwnFlag(), frozen=True),
    "no flag by its underscore": lambda: net(Carries(_requires_grad=True), frozen=True),
    "an average of the model": lambda: nn.ModuleDict({"averaged": AveragedModel(net())})["averaged"],
    "one-layer LSTM": lambda: nn.Sequential(nn.LSTM(2, 2, dropout=0.1).requires_grad_(False), Last(), nn.Linear(2, 1)),
    "LSTM": lambda: nn.Sequential(nn.LSTM(2, 2, 2, dropout=0.1), Last(), nn.Linear(2, 1)),
    "transformer": lambda: nn.TransformerEncoderLayer(2, 1, 2),
    "lazy": lambda: nn.Sequential(nn.LazyLinear(2), nn.LazyBatchNorm1d(), nn.Linear(2, 1)),
    "weight_norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
    "old weight_norm": lambda: nn.utils.weight_norm(nn.Linear(2, 2)),
    "old spectral_norm": lambda: nn.utils.spectral_norm(nn.Linear(2, 2)),
    "sparse gradient": lambda: nn.Sequential(ToIndex(), nn.Embedding(4, 2, sparse=True)),
    "compiled": lambda: torch.compile(nn.Linear(2, 2), backend="eager"),
    "traced": lambda: torch.fx.symbolic_trace(nn.Linear(2, 2)),
    "data parallel": lambda: nn.DataParallel(nn.Linear(2, 2)),
    "ddp": lambda: DistributedDataParallel(net(frozen=True)),
    "ddp, tied": lambda: DistributedDataParallel(tied()),
    "ddp, not synchronizing": lambda: unsynchronized(DistributedDataParallel(net())),
    "ddp, frozen after wrapping": lambda: frozen_head(DistributedDataParallel(net(), find_unused_parameters=True)),
    "ddp, frozen before the first step": lambda: frozen_head(DistributedDataParallel(net(), static_graph=True)),
    "ddp, ignoring a parameter": lambda: DistributedDataParallel(ignoring(net(), "1.bias")),
    "ddp, delaying a parameter": lambda: delaying(net(), "1.bias"),
    "ddp, copied": lambda: copy.deepcopy(DistributedDataParallel(net(frozen=True))),
}


def unsynchronized(ddp):
    ddp.require_backward_grad_sync = False
    return ddp


def frozen_head(ddp):
    ddp.module[1].requires_grad_(False)
    return ddp


def ignoring(model, *names):
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)
    return model


def delaying(model, name):
    delayed = [(name, model.get_parameter(name))]
    return DistributedDataParallel(
        model, delay_all_reduce_named_params=delayed, param_to_hook_all_reduce=model[1].weight
    )


class Last(nn.Module):
    def forward(self, outputs):
        return outputs[0]


class ToIndex(nn.Module):
    def forward(self, x):
        return x.long()


@pytest.mark.filterwarnings("ignore")  # deprecations, dropout without effect
@pytest.mark.parametrize("build", RIGHT.values(), ids=RIGHT)
def test_silent_on_correct_code(build):
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert found(model) == found(model, optimizer) == []
    for _ in range(2):
        backward(model, INPUT.clone().requires_grad_())
        optimizer.step()
        assert found(model) == found(model, optimizer) == []
        model.to(torch.float32 if _ else torch.float64).float()


def test_silent_on_what_is_trained_on_purpose():
    image = torch.zeros(2, requires_grad=True)
    assert found(nn.Linear(2, 1).requires_grad_(False), torch.optim.Adam([image])) == []
    generator, discriminator = nn.Linear(2, 2), nn.Linear(2, 1)
    optimizers = [sgd(generator), sgd(discriminator)]
    assert found(nn.ModuleList([generator, discriminator]), optimizers) == []
    both = nn.Sequential(generator, discriminator)
    assert found(both, [*optimizers, sgd(generator)]) == []
    assert found(both, optimizers[:1]) == [("trainable-in-no-optimizer", f"1.{name}") for name in ("weight", "bias")]
    discriminator.requires_grad_(False)
    assert found(both, optimizers) == []
    # A frozen feature extractor has no optimizer.
    assert found(both.requires_grad_(False)) == []


def test_silent_when_all_is_frozen_for_evaluation():
    ddp = DistributedDataParallel(net())
    backward(ddp)
    assert found(freeze(ddp) and ddp) == []
    for _ in range(2):
        ddp(INPUT)  # does not raise


def test_gradients_of_ddp_are_not_copied():
    class Made(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            made.append(func(*args, **(kwargs or {})))
            return made[-1]

    made, ddp = [], DistributedDataParallel(net())
    with Made():
        audit(ddp)
    assert [tensor.device.type for tensor in made] == ["meta"]


# How it works ---------------------------------------------------------------------------------------------------------


def state(model, optimizer):
    entries = model.state_dict(keep_vars=True)
    return [
        [(name, id(item), item._version, item.tolist(), item.requires_grad) for name, item in entries.items()],
        [None if tensor.grad is None else tensor.grad.tolist() for tensor in model.parameters()],
        [(name, module.training, list(vars(module))) for name, module in model.named_modules()],
        str(optimizer.state_dict()),
        list(map(len, (optimizer.state, optimizer.param_groups))),
        torch.get_rng_state().tolist(),
    ]


def test_audit_changes_nothing():
    model = net(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(), Holder(extra=[nn.Linear(2, 2)]), nn.Linear(1, 2))
    optimizer = sgd(model, momentum=0.9)
    backward(model)
    optimizer.step()
    model[0].requires_grad_(False)
    model[0].requires_grad = True
    model[1] = nn.Linear(2, 3)
    before = state(model, optimizer)
    assert len(audit(model, optimizer)) > 8
    assert state(model, optimizer) == before


def big(layers, width):
    return nn.Sequential(
        *(
            nn.Sequential(
                nn.Linear(width, 4 * width, bias=False, device="meta"),
                nn.Linear(4 * width, width, bias=False, device="meta"),
                nn.BatchNorm1d(width, device="meta"),
                nn.Dropout(),
            )
            for _ in range(layers)
        )
    )


def test_seventy_billion_parameters_on_the_meta_device():
    model = big(80, 10_560)
    assert sum(parameter.numel() for parameter in model.parameters()) > 70e9
    optimizer = torch.optim.AdamW(model.parameters())
    model[:40].requires_grad_(False)
    start = time.process_time()
    rules = Counter(rule for rule, _ in found(model, optimizer))
    assert time.process_time() - start < 2
    assert rules == {AWAKE: 1}


def test_the_cost_grows_linearly():
    def calls(model, optimizer):
        count = 0

        def count_call(*_):
            nonlocal count
            count += 1

        sys.setprofile(count_call)
        try:
            audit(model, optimizer)
        finally:
            sys.setprofile(None)
        return count

    few, many = (calls(model.requires_grad_(False), sgd(model)) for model in (big(20, 2), big(200, 2)))
    assert many < 11 * few


@pytest.mark.parametrize(
    "arguments, named",
    [
        (
            (sgd(nn.Linear(2, 1)), nn.Linear(2, 1)),
            r"^audit\(model\): .* not a SGD; the model comes before the optimizer$",
        ),
        ((nn.Linear(2, 1).parameters(),), "not a generator; pass the model itself"),
        (
            (nn.Linear(2, 1), nn.Linear(2, 1).parameters()),
            r"^audit\(model, optimizer\): the optimizer must be an optimizer \(not its parameters\) or a list of them, "
            "not a generator$",
        ),
        ((nn.Linear(2, 1), list(nn.Linear(2, 1).parameters())), "not a Parameter"),
        ((nn.Linear(2, 1), torch.optim.SGD), "not a type"),
    ],
)
def test_other_arguments_are_refused(arguments, named):
    with pytest.raises(TypeError, match=named):
        audit(*arguments)


def test_an_optimizer_is_what_has_param_groups():
    model = nn.Linear(2, 1, bias=False)
    backward(model)
    model.requires_grad_(False)
    optimizer = SimpleNamespace(param_groups=[{"params": [model.weight]}])
    assert found(model, optimizer) == [("nothing-trainable", ""), ("stale-grad", "weight")]


def test_a_list_may_hold_itself():
    items = []
    items += [items, nn.Linear(2, 1)]
    assert found(Holder(items=items)) == [("unregistered", "items")]


def test_three_lists_deep_it_looks():
    assert found(Holder(items=[[(nn.Linear(2, 1),)]])) == [("unregistered", "items")]
    assert found(Holder(items=[[[[nn.Linear(2, 1)]]]])) == []


def test_the_model_itself_is_called_so():
    model = nn.BatchNorm1d(2).requires_grad_(False)
    model.requires_grad = model.require_grad = True
    assert [finding.message for finding in audit(model)] == [
        "the model is frozen but in train mode: 1 module moves its buffers (the model).",
        "requires_grad = True on the model is a new attribute without effect.",
        "require_grad = True on the model is a new attribute without effect.",
    ]


LEFT = "style='text-align: left; vertical-align: top'"


def test_findings_are_a_list_that_shows_itself():
    model = net(nn.BatchNorm1d(2), frozen=True)
    model[0].register_module("<norm>", nn.BatchNorm1d(2).requires_grad_(False))
    findings = audit(model)
    assert isinstance(findings, list) and all(isinstance(finding, Finding) for finding in findings)
    assert str(findings).splitlines() == [
        "frozen-part-in-train-mode: '0' is frozen but in train mode: 2 modules move their buffers",
        "  ('0.0', '0.<norm>').",
        "    Freeze it with helpers.freeze(), which holds eval mode, or call its eval() after",
        "    every model.train().",
        "    Page: Rule frozen-part-in-train-mode",
    ]
    assert findings._repr_html_().count("<tr") == 2 and "0.&lt;norm&gt;" in findings._repr_html_()
    assert Findings([Finding("rule", "0", "<", "&")])._repr_html_() == (
        f"<table><thead><tr><th scope=col {LEFT}>finding</th><th scope=col {LEFT}>message</th>"
        f"<th scope=col {LEFT}>remedy</th></tr></thead><tbody><tr style='background: rgba(220, 50, 50, 0.15)'>"
        f"<th scope=row {LEFT[:-1]}; font-weight: normal'><b>Rule rule</b><br>0</th><td {LEFT}>&lt;</td>"
        f"<td {LEFT}>&amp;</td></tr></tbody></table>"
    )
    assert Findings()._repr_html_() == "<p>no findings</p>"
    assert audit(nn.Linear(2, 1)) == [] and str(audit(nn.Linear(2, 1))) == "no findings"


def test_a_finding_breaks_its_lines_between_words_and_never_within():
    name = "a-very.long-name." * 10
    told = str(Finding("rule", "", f"{'word ' * 30}{name}", "do " * 40)).splitlines()
    assert f"  {name}" in told and max(len(line) for line in told if name not in line) <= 88
    assert [line[:6] for line in told[-3:]] == ["    do", "    do", "    Pa"]


def test_a_finding_names_its_page(monkeypatch):
    finding = Finding("stale-grad", "0", "", "")
    assert finding.page == "Rule stale-grad"
    monkeypatch.setattr(auditing, "PAGES", "https://example.org/rules/")
    assert finding.page == "https://example.org/rules/stale-grad.html" and finding.page in str(finding)
    assert f"<a href='{finding.page}'>stale-grad</a>" in Findings([finding])._repr_html_()


class Counts(nn.Module):
    """Counts in train mode."""

    def __init__(self, persistent):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.register_buffer("seen", torch.zeros(()), persistent=persistent)

    def forward(self, x):
        if self.training:
            self.seen.add_(len(x))
        return self.layer(x)


class OwnNorm(nn.Module):
    """Its statistics are moved by a function, and no method of a tensor is called in place."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("var", torch.ones(2))

    def forward(self, x):
        return nn.functional.batch_norm(self.layer(x), self.mean, self.var, training=self.training)


class Drops(nn.Module):
    def __init__(self, drop):
        super().__init__()
        self.layer, self.drop = nn.Linear(2, 2), drop

    def forward(self, x):
        return nn.functional.dropout(self.layer(x), self.drop, self.training)


class CallsADropout(nn.Module):
    """What draws, if anything, is its child, which does not."""

    def __init__(self):
        super().__init__()
        self.layer, self.dropout = nn.Linear(2, 2), nn.Identity()

    def forward(self, x):
        return self.dropout(self.layer(x)) if self.training else self.layer(x)


class DropsNothing(nn.Module):
    def forward(self, x):
        return x


class ReadsItsClass(nn.Module):
    """It has a buffer, and uses names that end with two underscores, which are no methods in place."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.register_buffer("offset", torch.zeros(2))

    def forward(self, x):
        return self.layer(x) + self.offset * (self.training and self.__class__ is ReadsItsClass)


@pytest.mark.parametrize(
    "part, named",
    [
        (Counts(persistent=True), True),
        (Counts(persistent=False), False),
        (OwnNorm(), True),
        (Drops(0.1), True),
        (Drops(1.0), True),
        (Drops(0.0), False),
        (Drops(3), False),  # the number of something
        (Drops(1.5), False),
        (CallsADropout(), False),
        (nn.Sequential(nn.Linear(2, 2), torch.jit.script(DropsNothing())), False),
        (ReadsItsClass(), False),
        (nn.Sequential(nn.Linear(2, 2), torch.ao.nn.quantized.Dropout(0.5)), False),  # does nothing
        (torch.ao.nn.quantizable.LSTM(2, 2, num_layers=2, dropout=0.5), False),  # as this one
        (torch.ao.nn.quantizable.MultiheadAttention(2, 1, dropout=0.5), True),
    ],
)
def test_a_part_is_named_for_what_is_saved_or_drawn(part, named):
    model = nn.Sequential(part.requires_grad_(False), nn.Linear(2, 1))
    assert found(model) == [("frozen-part-in-train-mode", "0")] * named


def test_of_a_scripted_part_the_module_that_has_the_statistics_is_named():
    part = torch.jit.script(net(nn.Linear(2, 2), nn.Sequential(nn.BatchNorm1d(2)), frozen=True))[0]
    (finding,) = audit(nn.Sequential(part, nn.Linear(2, 1)))
    assert finding.message == "'0' is frozen but in train mode: 1 module moves its buffers ('0.1.0')."


# Where only a gradient's way decides ----------------------------------------------------------------------------------


class Block(nn.Module):
    """Of a transformer: attention that drops, and a feed-forward part that drops."""

    def __init__(self, query=None):
        super().__init__()
        self.attention = nn.ModuleDict(
            {"query": query or nn.Linear(2, 2), "key": nn.Linear(2, 2), "out": Carries(drop=0.1)}
        )
        self.norm = nn.LayerNorm(2)
        self.output = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1))


class LoRA(nn.Module):
    def __init__(self):
        super().__init__()
        self.base_layer = nn.Linear(2, 2)
        self.lora = nn.ModuleDict({"A": nn.Linear(2, 1, bias=False), "B": nn.Linear(1, 2, bias=False)})


class Body(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.embeddings = nn.Sequential(nn.Embedding(3, 2), nn.LayerNorm(2), nn.Dropout(0.1))
        self.layer = nn.ModuleList(blocks)


def classifier(make=Block, layers=3, **more):
    body = Body([make() for _ in range(layers)]).requires_grad_(False)
    return nn.ModuleDict({"body": body, **more, "head": nn.Linear(2, 2)})


def low_rank(layers=3):
    model = classifier(lambda: Block(LoRA()), layers)
    for module in model.modules():
        if isinstance(module, LoRA):
            module.lora.requires_grad_(True)
    return model


def bottleneck():
    return nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1), nn.Linear(2, 2))


def trained_by(chosen, model=None):
    """The model with only those parameters trainable whose name has the word in it."""
    model = model or classifier()
    for name, parameter in model.named_parameters():
        parameter.requires_grad = any(word in name for word in chosen)
    return model


PASSES = {
    "LoRA": low_rank,
    "LoRA without a head": lambda: low_rank()["body"],
    "norms only": lambda: trained_by(["norm"]),
    "norms only, of two blocks": lambda: trained_by(["norm"], classifier(layers=2)),
    "LoRA in two blocks": lambda: low_rank(layers=2),
    "two frozen layers, each with a trained one": lambda: trained_by([".2.", "head"], classifier(bottleneck, layers=2)),
    "biases only": lambda: trained_by(["bias"]),
    "prompt tuning": lambda: trained_by(["prompt", "head"], classifier(prompt=nn.Embedding(4, 2))),
    "a prompt of one Parameter": lambda: trained_by(
        ["tokens"], classifier(tokens=nn.ParameterList([torch.ones(4, 2)]))
    ),
    "embeddings": lambda: trained_by(["embeddings.0"]),
}


@pytest.mark.parametrize("make", PASSES.values(), ids=PASSES)
def test_what_only_draws_is_not_named_where_the_gradient_has_to_pass(make):
    assert found(make().train()) == []


def head_first():
    model = classifier()
    return nn.ModuleDict({"head": model["head"], "body": model["body"]})


def last_unfrozen():
    model = classifier()
    model["body"].layer[2].requires_grad_(True)
    return model


def partly_unfrozen():
    model = classifier(layers=12)
    model["body"].layer[11].output.requires_grad_(True)
    return model


def last_norms():
    return trained_by(["head", *(f"layer.{i}.norm" for i in (9, 10, 11))], classifier(layers=12))


def captioning():
    return nn.ModuleDict(
        {
            "encoder": classifier()["body"],
            "decoder": nn.ModuleList([nn.Embedding(3, 2), nn.LSTM(2, 2), nn.Linear(2, 3)]),
        }
    )


NAMED = {
    "a body with a head": (classifier, ["body"]),
    "the head registered first": (head_first, ["body"]),
    "the last layer unfrozen": (last_unfrozen, ["body.embeddings", "body.layer.0", "body.layer.1"]),
    "half of the last layer": (
        partly_unfrozen,
        ["body.embeddings", *(f"body.layer.{i}" for i in range(11)), "body.layer.11.attention"],
    ),
    "the second half of both blocks": (
        lambda: trained_by(["output", "head"], classifier(layers=2)),
        ["body.embeddings", "body.layer.0.attention", "body.layer.1.attention"],
    ),
    "norms of the last layers": (last_norms, ["body.embeddings", *(f"body.layer.{i}" for i in range(9))]),
    "an encoder whose decoder has an embedding": (captioning, ["encoder"]),
    "two bodies with heads": (
        lambda: nn.ModuleDict({"text": classifier(), "image": classifier()}),
        ["text.body", "image.body"],
    ),
}


@pytest.mark.parametrize("make, names", NAMED.values(), ids=NAMED)
def test_what_only_draws_is_named_where_no_gradient_has_to_pass(make, names):
    model = make().train()
    assert [name for finding in audit(model) for name in finding.names] == names
    for name in names:
        model.get_submodule(name).eval()
    assert found(model) == []


class Policy(nn.Sequential):
    """Of a library whose blocks are marked as checkpointed."""

    def __init__(self):
        super().__init__(nn.Linear(2, 2), nn.Linear(2, 2))
        self.gradient_checkpointing = self.aux_logits = True


class Both(nn.Module):
    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


OFF = {
    "a policy and its reference": (lambda: Both(policy=Policy(), reference=frozen(Policy())), []),
    "in a dict": (lambda: nn.ModuleDict({"student": nn.Linear(2, 2), "teacher": frozen(Policy())}), []),
    "a body with a head": (lambda: Both(body=frozen(Policy()), head=nn.Linear(2, 2)), []),
    "behind something trainable": (
        lambda: Both(front=nn.Linear(2, 2), body=frozen(Policy()), head=nn.Linear(2, 2)),
        ["activation checkpointing and its auxiliary outputs"],
    ),
    "perhaps behind it": (lambda: Both(front=nn.Linear(2, 2), body=frozen(Policy())), ["activation checkpointing"]),
}


def frozen(part):
    freeze(part)
    return part


@pytest.mark.parametrize("make, off", OFF.values(), ids=OFF)
def test_what_eval_mode_switches_off_is_named_where_a_gradient_may_pass(make, off):
    findings = audit(make().train())
    assert [finding.rule for finding in findings] == ["off-in-eval-mode"] * len(off)
    assert [finding.message.partition("switches off its ")[2].rstrip(".") for finding in findings] == off


def test_lbfgs_moves_by_what_it_remembers():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.LBFGS(model.parameters())
    optimizer.step(lambda: (optimizer.zero_grad(), backward(model), model(INPUT).square().sum())[2])
    model.weight.requires_grad_(False)
    model.weight.grad = torch.zeros(1, 2)
    assert found(model, optimizer) == [("stale-grad", "weight")]


def test_what_moves_is_always_named():
    model = low_rank()
    model["body"].layer[1].output.append(nn.BatchNorm1d(2).requires_grad_(False))
    assert found(model) == [(AWAKE, "body.layer.1.output")]


class WithoutStatistics(nn.BatchNorm1d):
    """As of a library that writes forward anew: what it overrides is never called."""

    def forward(self, x):
        return x * self.weight


class Wraps(nn.Linear):
    act = functools.wraps(torch.relu)(lambda self, x: torch.relu(x))
    """Says that it wraps what has no code."""


def test_only_what_is_called_counts_among_a_modules_methods():
    assert found(nn.Sequential(WithoutStatistics(2).requires_grad_(False), nn.Linear(2, 2))) == []
    assert found(nn.Sequential(Wraps(2, 2).requires_grad_(False), nn.Linear(2, 2))) == []


def test_like_neighbours_are_one_finding():
    model = classifier(layers=12)
    model["body"].layer[11].requires_grad_(True)
    embeddings, blocks = audit(model)
    assert embeddings.name == "body.embeddings" and len(blocks.names) == 11
    assert blocks.message == (
        "'body.layer.0', 'body.layer.1', 'body.layer.2' and 8 more are frozen but in train mode: "
        "22 modules draw at random ('body.layer.0.attention.out', 'body.layer.0.output.1' and 20 more)."
    )


def test_turns_of_a_gan():
    generator, critic = net(nn.Linear(2, 2), nn.BatchNorm1d(2)), net(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout())
    both, optimizers = nn.ModuleList([generator, critic]), [sgd(generator), sgd(critic)]
    backward(critic)
    freeze(critic, hold=False)
    critic[1].bias.grad = torch.ones(1)  # as when the other turn's gradients are kept
    assert found(both, optimizers) == []
    alone = found(both, optimizers[1])
    assert alone[-3:] == [("nothing-trainable", ""), ("stale-grad", "1.1.bias"), (AWAKE, "1")]


# Optimizers that are not torch's --------------------------------------------------------------------------------------


class Foreign(torch.optim.Optimizer):
    """Keeps what it remembers under names of its own, as schedule-free ones do."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.1})

    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["z"] = torch.ones(1)


class Wrapper:
    """As Lookahead: another optimizer keeps the state."""

    def __init__(self, optimizer, name):
        setattr(self, name, optimizer)
        self.optimizer_inside, self.param_groups, self.state = optimizer, optimizer.param_groups, {}


class Opaque(torch.Tensor):
    """A gradient that refuses to be looked at, as packed states do."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.Tensor.any:
            raise NotImplementedError("not for this kind of tensor")
        return super().__torch_function__(func, types, args, kwargs)


@pytest.mark.parametrize("wrapped", [None, "_base_optimizer", "base_optimizer", "optimizer", "optim"])
def test_a_foreign_optimizer_with_state_may_move_what_has_a_gradient_of_zero(wrapped):
    model = nn.Linear(2, 1)
    optimizer = Foreign(model.parameters())
    if wrapped:
        optimizer = Wrapper(optimizer, wrapped)
    model.weight.requires_grad_(False)
    model.weight.grad = torch.zeros(1, 2)
    assert found(model, optimizer) == []
    getattr(optimizer, "optimizer_inside", optimizer).step()
    (finding,) = audit(model, optimizer)
    assert (finding.rule, finding.name) == ("stale-grad", "weight")
    assert finding.message.endswith("if this optimizer steps before zero_grad, it may move.")
    model.weight.grad = None
    assert found(model, optimizer) == []


def test_what_cannot_be_looked_at_counts():
    model = nn.Linear(2, 1)
    optimizer = sgd(model)
    model.weight.requires_grad_(False)
    model.weight.grad = torch.zeros(1, 2).as_subclass(Opaque)
    assert found(model, optimizer) == [("stale-grad", "weight")]
    model.weight.grad = torch.zeros(1, 2)
    optimizer.state[model.weight]["exp_avg"] = torch.zeros(1, 2).as_subclass(Opaque)
    assert found(model, optimizer) == [("stale-grad", "weight")]


def test_an_optimizer_of_frozen_parameters_only_beside_one_at_work_is_no_finding():
    model = net()
    optimizers = [sgd(model[0]), sgd(model[1])]
    freeze(model, "0.*")
    assert found(model, optimizers) == []
    assert found(model, optimizers[0]) == [
        ("trainable-in-no-optimizer", "1.weight"), ("trainable-in-no-optimizer", "1.bias"), ("nothing-trainable", "")
    ]  # fmt: skip


def test_a_foreign_optimizer_without_state_moves_by_weight_decay():
    model = nn.Linear(2, 1)
    optimizer = Foreign([{"params": model.parameters(), "weight_decay": 0.1}])
    model.weight.requires_grad_(False)
    model.weight.grad = torch.zeros(1, 2)
    assert found(model, optimizer) == [("stale-grad", "weight")]
