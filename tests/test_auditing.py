"""What audit finds, on what it stays silent, and that it changes nothing."""

import copy
import doctest
import inspect
import sys
import time
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import prune
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision import models
from torchvision.ops import StochasticDepth

from helpers import auditing
from helpers.auditing import RULES, Finding, Findings, audit
from helpers.freezing import freeze
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

    drop_prob = 0.2


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


@mistake("norm-statistics-drift", "0.1")
def frozen_batchnorm():
    model = net(nn.Linear(2, 2), nn.BatchNorm1d(2), frozen=True)
    yield model, sgd(model)
    freeze(model, "0.*")
    yield model.train(), sgd(model)


@mistake("norm-statistics-drift", "0.1")
def eval_undone_by_train():
    model = net(nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False), frozen=True)
    model[0].eval()
    model.train()
    yield model, None
    model[0].eval()
    yield model, None


@mistake("norm-statistics-drift", "0.0")
def instance_norm_with_statistics():
    model = net(nn.InstanceNorm1d(2, affine=True, track_running_stats=True), frozen=True)
    yield model, None
    model[0].eval()
    yield model, None


@mistake("norm-statistics-drift", "0.0")
def momentum_zero():
    model = net(nn.BatchNorm1d(2, momentum=0.0), frozen=True)
    yield model, None
    model[0].eval()
    yield model, None


@mistake("norm-statistics-drift", "0.0")
def statistics_switched_off():
    model = net(nn.BatchNorm1d(2), frozen=True)
    model[0][0].track_running_stats = False
    yield model, None
    model[0].eval()
    yield model, None


def dropping(*layers, at):
    @mistake("dropout-in-frozen-part", *at)
    def dropout():
        model = net(*copy.deepcopy(layers), frozen=True)
        yield model, None
        model[0].eval()
        yield model, None


dropping(nn.Linear(2, 2), nn.Dropout(0.5), at=["0.1"])
dropping(nn.Linear(2, 2), nn.AlphaDropout(0.1), at=["0.1"])
dropping(nn.LSTM(2, 2, num_layers=2, dropout=0.1), at=["0.0"])
dropping(nn.MultiheadAttention(2, 1, dropout=0.1), at=["0.0"])
dropping(
    nn.TransformerEncoderLayer(2, 1, 2, dropout=0.1),
    at=["0.0.self_attn", "0.0.dropout", "0.0.dropout1", "0.0.dropout2"],
)


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
        "norm-statistics-drift": 20,
        "dropout-in-frozen-part": 1,
        "flag-on-module": 1,
        "misspelt-flag": 1,
    }


def test_findings_come_by_rule_and_then_in_model_order():
    model = net(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(), nn.BatchNorm1d(2), frozen=True)
    optimizer = sgd(model[0][0])
    names = [name for _, name in found(model, optimizer)]
    assert names == ["1.weight", "1.bias", "0.1", "0.3", "0.2"]


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
    "stochastic depth": lambda: net(nn.Linear(2, 2), StochasticDepth(0.2, "row"), DropPath(), frozen=True),
    "norm without statistics": lambda: net(nn.BatchNorm1d(2, track_running_stats=False), nn.LayerNorm(2), frozen=True),
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
    start = time.perf_counter()
    rules = Counter(rule for rule, _ in found(model, optimizer))
    assert time.perf_counter() - start < 2
    assert rules == {"norm-statistics-drift": 40, "dropout-in-frozen-part": 40}


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
        "the model is frozen but in train mode: it uses each batch's statistics, and its own drift.",
        "requires_grad = True on the model is a new attribute without effect.",
        "require_grad = True on the model is a new attribute without effect.",
    ]


def test_findings_are_a_list_that_shows_itself():
    model = net(nn.BatchNorm1d(2), frozen=True)
    model[0].register_module("<norm>", nn.BatchNorm1d(2).requires_grad_(False))
    findings = audit(model)
    assert isinstance(findings, list) and all(isinstance(finding, Finding) for finding in findings)
    assert str(findings).splitlines()[0].startswith("norm-statistics-drift: '0.0' is frozen but")
    assert len(str(findings).splitlines()) == 4 and str(findings).splitlines()[2].startswith("norm-statistics-drift: ")
    assert findings._repr_html_().count("<tr>") == 3 and "0.&lt;norm&gt;" in findings._repr_html_()
    assert Findings([Finding("rule", "0", "<", "&")])._repr_html_() == (
        "<table><tr><td>rule</td><td>name</td><td>message</td><td>remedy</td></tr>"
        "<tr><td>rule</td><td>0</td><td>&lt;</td><td>&amp;</td></tr></table>"
    )
    assert Findings()._repr_html_() == "<table><tr><td>no findings</td></tr></table>"
    assert audit(nn.Linear(2, 1)) == [] and str(audit(nn.Linear(2, 1))) == "no findings"
