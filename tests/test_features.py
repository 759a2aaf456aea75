"""cache_features gives what the frozen backbone gives, refuses what would not stay the same, and changes nothing."""

import random
import re
import warnings
import weakref
from collections import OrderedDict, UserDict
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import count, islice

import numpy
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.ao.quantization import FakeQuantize, MinMaxObserver, PerChannelMinMaxObserver, disable_observer
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)
from torchvision.models import resnet18
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.ops import StochasticDepth
from torchvision.transforms import v2
from tqdm import tqdm

from helpers.features import cache_features
from helpers.freezing import freeze, unfreeze
from helpers.lessons.ranks import alone


def draws():
    return random.random(), numpy.random.random(), torch.rand(1).item()


DRAWN = draws()


def test_what_a_module_of_tests_draws_when_it_is_imported_is_the_same_in_each_process():
    assert draws() == DRAWN, "a test begins with the same seeds: see conftest.py"


def images(count=10, size=8):
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.rand(count, 3, size, size, generator=generator), torch.arange(count) % 5)


def small_backbone():
    torch.manual_seed(1)
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Flatten())
    freeze(backbone)
    return backbone


def resnet_backbone():
    torch.manual_seed(1)
    backbone = resnet18()
    backbone.fc = nn.Identity()
    freeze(backbone)
    return backbone


def train_head(head, batches):
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9)
    for inputs, labels in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(inputs), labels).backward()
        optimizer.step()


@pytest.mark.parametrize("build, width, size", [(small_backbone, 144, 8), (resnet_backbone, 512, 32)])
def test_a_head_trained_on_the_cache_gets_the_weights_it_gets_behind_the_backbone(build, width, size):
    backbone = build()
    loader = DataLoader(images(10, size), batch_size=4)
    torch.manual_seed(2)
    head, other = nn.Linear(width, 5), nn.Linear(width, 5)
    other.load_state_dict(head.state_dict())
    cache = cache_features(backbone, loader)
    for _ in range(3):
        train_head(nn.Sequential(backbone, other), loader)
        train_head(head, DataLoader(cache, batch_size=4))
    torch.testing.assert_close(head.state_dict(), other.state_dict(), rtol=0, atol=0)


def test_features_are_those_of_the_backbone_in_the_loaders_order_and_ready_for_a_head():
    backbone, data = small_backbone(), images()
    cache = cache_features(backbone, DataLoader(data, batch_size=3))
    features, labels = cache.tensors
    assert isinstance(cache, TensorDataset) and len(cache) == 10
    torch.testing.assert_close(features, backbone(data.tensors[0]))
    assert torch.equal(labels, data.tensors[1])
    assert not features.requires_grad and features.grad_fn is None and not features.is_inference()


def test_inputs_go_to_the_backbones_device_and_no_graph_is_kept():
    class Elsewhere(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("place", torch.empty(1, device="meta"))

        def forward(self, x):
            self.seen = x.device
            return scale[: len(x)] * 2

    backbone, scale = Elsewhere(), torch.ones(3, 1, requires_grad=True)
    features, _ = cache_features(backbone, [(torch.zeros(3, 1), torch.zeros(3))]).tensors
    assert backbone.seen == torch.device("meta")
    assert features.tolist() == [[2.0]] * 3 and features.grad_fn is None


@pytest.mark.skipif(torch.__version__ < "2.14", reason="torch 2.9 with CUDA wants a driver even for fake tensors")
def test_inputs_go_where_the_parameters_are_and_features_come_to_the_cpu(monkeypatch):
    monkeypatch.setattr("torch.equal", lambda *_: True)  # these tensors have no values
    monkeypatch.setattr("torch.allclose", lambda *_: True)

    class Elsewhere(nn.Linear):
        def forward(self, x):
            self.seen = x.device
            return super().forward(x)

    with FakeTensorMode():  # tensors that only say where they are, so that no GPU is needed
        backbone = Elsewhere(2, 2, device="cuda").requires_grad_(False)
        backbone.register_buffer("elsewhere", torch.ones(1))
        labels = torch.zeros(3, device="cuda")
        cache = cache_features(backbone, [(torch.zeros(3, 2), labels)])
    assert backbone.seen.type == "cuda"
    assert [tensor.device.type for tensor in cache.tensors] == ["cpu", "cpu"]


def test_features_train_a_head_also_when_cached_inside_inference_mode():
    with torch.inference_mode():
        features, _ = cache_features(small_backbone(), DataLoader(images(), batch_size=4)).tensors
    nn.Linear(144, 2)(features).sum().backward()


def test_only_the_features_of_a_batch_are_kept():
    wide, alive = [], []

    class FirstColumn(nn.Module):
        def forward(self, x):
            alive.append(sum(reference() is not None for reference in wide))
            output = x.repeat(1, 100)
            wide.append(weakref.ref(output))
            return output[:, :1]

    features, _ = cache_features(FirstColumn(), DataLoader(TensorDataset(torch.rand(10, 2), torch.arange(10)))).tensors
    assert features.shape == (10, 1) and max(alive) <= 1


def test_a_loader_may_use_its_tensors_again():
    def batches():
        inputs, labels = torch.zeros(2, 1), torch.zeros(2)
        for number in range(3):
            yield inputs.fill_(number), labels.fill_(number)

    features, labels = cache_features(nn.Identity(), batches()).tensors
    assert features.flatten().tolist() == labels.tolist() == [0, 0, 1, 1, 2, 2]


def random_states():
    _, keys, place, *_ = numpy.random.get_state()
    return torch.get_rng_state().tolist(), random.getstate(), keys.tolist(), place


class Draws(nn.Module):
    """As models whose layers may be left out: they draw in eval mode too, and then do not use it."""

    def forward(self, x):
        torch.rand(1), random.random(), numpy.random.random()
        return x


def test_buffers_gradients_and_random_states_stay():
    backbone = nn.Sequential(small_backbone().requires_grad_(False), Draws())
    backbone[0][0].weight.grad = torch.ones_like(backbone[0][0].weight)
    buffers = {name: buffer.clone() for name, buffer in backbone.named_buffers()}
    states = random_states()
    with pytest.warns(UserWarning):
        cache_features(backbone, DataLoader(images(), batch_size=4, shuffle=True))
    torch.testing.assert_close(dict(backbone.named_buffers()), buffers, rtol=0, atol=0)
    assert torch.equal(backbone[0][0].weight.grad, torch.ones_like(backbone[0][0].weight))
    assert random_states() == states
    assert torch.is_grad_enabled()


# Eval mode ------------------------------------------------------------------------------------------------------------


class Functional(nn.Module):
    """As DenseNet, BART, OPT and most of timm: dropout that is no layer."""

    def forward(self, x):
        return nn.functional.dropout(x, 0.5, self.training)


class Attention(nn.Module):
    """As in transformers: the probability from a layer, the drawing in attention itself."""

    def __init__(self):
        super().__init__()
        self.qkv, self.drop = nn.Linear(4, 12), nn.Dropout(0.5)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=self.drop.p if self.training else 0.0)


class Codebook(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("codes", torch.rand(8, 4))

    def forward(self, x):
        near = torch.cdist(x.flatten(0, 1), self.codes).argmin(1)
        if self.training:
            self.codes[near] += 0.1
        return self.codes[near].unflatten(0, x.shape[:2])


@pytest.mark.parametrize(
    "part",
    [
        nn.Dropout,
        Functional,
        Attention,
        Codebook,
        lambda: nn.BatchNorm1d(5),
        lambda: StochasticDepth(0.5, "row"),
        lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)),
        lambda: torch.jit.trace(nn.Dropout().eval(), torch.ones(1)),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_features_are_those_of_eval_mode_whatever_the_mode(part):
    torch.manual_seed(0)
    backbone, data = nn.Sequential(nn.Linear(4, 4), part()).requires_grad_(False), torch.randn(6, 5, 4)
    before = {name: entry.clone() for name, entry in backbone.state_dict().items()}
    first, second = (cache_features(backbone.train(), [(data, torch.zeros(6))]).tensors[0] for _ in range(2))
    assert all(module.training for module in backbone.modules())
    torch.testing.assert_close(backbone.state_dict(), before, rtol=0, atol=0)
    torch.testing.assert_close((first, second), (backbone.eval()(data),) * 2, rtol=0, atol=0)


@pytest.mark.parametrize("labels", [[0, 1], [0, 1, 2]])
def test_each_module_gets_back_its_own_mode_also_after_an_error(labels):
    inner = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.ReLU()))
    backbone = nn.Sequential(nn.BatchNorm1d(4), inner, nn.Dropout()).requires_grad_(False)
    backbone[1].eval()
    backbone[1][1][0].train()
    modes = [module.training for module in backbone.modules()]
    with nullcontext() if len(labels) == 2 else pytest.raises(ValueError, match="one label"):
        cache_features(backbone, [(torch.ones(2, 4), labels)])
    assert len(set(modes)) == 2 and modes == [module.training for module in backbone.modules()]


def test_what_a_class_does_in_train_is_done_and_undone():
    # torchvision's extractors have a graph for each mode, and exchange them in train().
    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(Functional(), nn.Dropout()))
    extractor = create_feature_extractor(net, ["1.1"]).requires_grad_(False)
    held = create_feature_extractor(net, ["1.1"]).requires_grad_(False).eval()
    backbone, x = nn.Sequential(nn.ModuleDict({"held": held}), nn.Identity(), extractor), torch.ones(8, 2)
    backbone.forward = lambda x: torch.cat([held(x)["1.1"], extractor(x)["1.1"]], 1)
    cached = cache_features(backbone, [(x, torch.zeros(8))]).tensors[0]
    assert torch.equal(cached, torch.cat([net.eval()(x)] * 2, 1))
    assert extractor.graph is extractor.train_graph and held.graph is held.eval_graph
    assert extractor.training and not held.training
    assert not torch.equal(extractor(x)["1.1"], extractor(x)["1.1"])


def test_freeze_does_not_take_it_for_a_wish():
    net = nn.Sequential(small_backbone().requires_grad_(True), nn.Dropout())
    net.train()
    freeze(net, "0.*")
    net[0].train()
    stand_in = vars(net[0][1])["train"]
    cache_features(net[0], DataLoader(images(), batch_size=4))
    assert vars(net[0][1])["train"] is stand_in
    unfreeze(net)
    assert all(module.training for module in net.modules())


@pytest.mark.parametrize("labels", [torch.tensor([3, 1]), [3, 1], (3, 1), [torch.tensor(3), torch.tensor(1)]])
def test_labels_may_be_a_tensor_or_a_list(labels):
    cache = cache_features(nn.Flatten(), [(torch.zeros(2, 1, 4), labels), [torch.ones(2, 1, 4), labels]])
    assert cache[3][0].tolist() == [1] * 4
    assert [label.tolist() for _, label in cache] == [3, 1, 3, 1]


def test_a_label_may_have_several_numbers():
    cache = cache_features(nn.Flatten(), [(torch.zeros(2, 1, 4), [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])])
    assert cache[1][1].tolist() == [1.0, 0.0, 0.0]


# Any batch, any output ------------------------------------------------------------------------------------------------


class Output(OrderedDict):
    """As transformers' ModelOutput: a mapping with attributes."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


@dataclass
class Pair:
    loss: None
    hidden: torch.Tensor


class Words(nn.Module):
    def __init__(self, form=Output):
        super().__init__()
        self.table, self.form, self.training_seen = nn.Embedding(50, 3).requires_grad_(False), form, None

    def forward(self, input_ids, attention_mask=None, scale=1.0):
        hidden = self.table(input_ids) * scale
        if attention_mask is not None:
            hidden = hidden * attention_mask[..., None]
        return self.form(loss=None, hidden=hidden, pooled=hidden.sum(1))


IDS, MASK = torch.arange(8).reshape(2, 4), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])


@pytest.mark.parametrize("kind", [dict, UserDict, OrderedDict])
@pytest.mark.parametrize("labels", ["labels", "label", "beside"])
def test_a_mapping_goes_in_as_keywords_without_its_labels(kind, labels):
    words, inputs = Words(), {"input_ids": IDS, "attention_mask": MASK, "scale": 2.0}
    batch = (kind(inputs), [4, 5]) if labels == "beside" else kind(inputs | {labels: torch.tensor([4, 5])})
    features, targets = cache_features(words, [batch, batch]).tensors
    torch.testing.assert_close(features, torch.cat([words(**inputs).hidden] * 2))
    assert targets.tolist() == [4, 5, 4, 5]
    assert batch is not None and len(batch) == (2 if labels == "beside" else 4)


def test_tensors_in_a_mapping_go_to_the_backbones_device():
    class Elsewhere(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("place", torch.empty(1, device="meta"))

        def forward(self, **inputs):
            self.seen = {key: getattr(value, "device", value) for key, value in inputs.items()}
            return torch.ones(2, 1)

    cache_features(backbone := Elsewhere(), [{"ids": IDS, "mask": MASK, "text": "a b", "labels": [0, 1]}])
    assert backbone.seen == {"ids": torch.device("meta"), "mask": torch.device("meta"), "text": "a b"}


@pytest.mark.parametrize(
    "form",
    [
        Output,
        dict,
        lambda loss, hidden, pooled: (loss, hidden, pooled),
        lambda loss, hidden, pooled: [hidden, pooled],
        lambda loss, hidden, pooled: Pair(loss, hidden),
        lambda loss, hidden, pooled: hidden,
    ],
)
def test_the_first_tensor_of_an_output_is_taken(form):
    assert torch.equal(cache_features(words := Words(form), [(IDS, [0, 1])]).tensors[0], words.table(IDS))


def test_pick_takes_what_one_wants():
    data = [(IDS, [0, 1])]
    words = Words()
    first = cache_features(words, data, pick=lambda out: out.hidden[:, 0]).tensors[0]
    pooled = cache_features(words, data, lambda out: out.pooled).tensors[0]
    torch.testing.assert_close((first, pooled), (words.table(IDS)[:, 0], words.table(IDS).sum(1)))
    # Texts of other lengths have one shape when they are pooled.
    assert len(cache_features(words, [*data, (IDS[:, :2], [0, 1])], pick=lambda out: out.pooled)) == 4


def test_a_forward_may_write_to_its_input():
    class Centered(nn.Module):
        def forward(self, x):
            return x.add_(1)

    x = torch.zeros(2, 3)
    features, _ = cache_features(Centered(), [(x, [0, 1])]).tensors
    assert features.tolist() == [[1.0] * 3] * 2 and x.tolist() == [[0.0] * 3] * 2


# Several processes ----------------------------------------------------------------------------------------------------


def by_sampler(data, rank, world, **options):
    return DataLoader(data, batch_size=2, sampler=DistributedSampler(data, world, rank, shuffle=False, **options))


def by_batch_sampler(data, rank, world):
    sampler = DistributedSampler(data, world, rank, shuffle=False)
    return DataLoader(data, batch_sampler=BatchSampler(sampler, 2, drop_last=False))


def by_subset(data, rank, world):
    return DataLoader(Subset(data, range(rank, len(data), world)), batch_size=2)


def by_iterable(data, rank, world):
    class Part(IterableDataset):
        def __iter__(self):
            return islice(iter(data), rank, None, world)

    return DataLoader(Part(), batch_size=2)


@pytest.mark.parametrize("part", [by_sampler, by_batch_sampler, by_subset, by_iterable])
@pytest.mark.parametrize("size, world", [(10, 1), (10, 2), (10, 3), (7, 4), (3, 3)])
def test_the_parts_of_all_processes_are_the_whole_each_example_once(part, size, world):
    data, backbone = TensorDataset(images(size).tensors[0], torch.arange(size)), small_backbone()
    whole = cache_features(backbone, DataLoader(data, batch_size=2)).tensors
    parts = [cache_features(backbone, part(data, rank, world)).tensors for rank in range(world)]
    for rank in range(world):
        torch.testing.assert_close(parts[rank], tuple(tensor[rank::world] for tensor in whole))
    assert sorted(torch.cat([labels for _, labels in parts]).tolist()) == list(range(size))


def test_with_more_processes_than_examples_some_have_none():
    data = TensorDataset(images(2).tensors[0], torch.arange(2))
    parts = [cache_features(nn.Flatten(), by_sampler(data, rank, 5)).tensors for rank in range(5)]
    assert [labels.tolist() for _, labels in parts] == [[0], [1], [], [], []]
    assert parts[4][0].shape == (0, 192)


def test_a_sampler_that_shuffles_repeats_none_either():
    data = TensorDataset(images(10).tensors[0], torch.arange(10))
    seen = []
    for rank in range(3):
        with pytest.warns(UserWarning, match="keeps what DistributedSampler drew"):
            loader = DataLoader(data, batch_size=2, sampler=DistributedSampler(data, 3, rank, shuffle=True))
            seen += cache_features(nn.Flatten(), loader).tensors[1].tolist()
    assert seen != sorted(seen) and sorted(seen) == list(range(10))


def test_nothing_but_repeats_is_left_out():
    data = TensorDataset(images(10).tensors[0], torch.arange(10))
    # The user's own wish: equal parts without repeats.
    assert len(cache_features(nn.Flatten(), by_sampler(data, 2, 3, drop_last=True))) == 3
    # The sampler's last example is a repeat, and the loader leaves out its batch.
    sampler = DistributedSampler(data, 3, 1, shuffle=False)
    dropped = DataLoader(data, batch_size=3, sampler=sampler, drop_last=True)
    assert cache_features(nn.Flatten(), dropped).tensors[1].tolist() == [1, 4, 7]

    def twice(examples):
        inputs, labels = default_collate(examples)
        return torch.cat([inputs, inputs.flip(-1)]), torch.cat([labels, labels])

    flipped = DataLoader(data, batch_size=4, sampler=sampler, collate_fn=twice)
    assert cache_features(nn.Flatten(), flipped).tensors[1].tolist() == [1, 4, 7, 0] * 2


def test_a_backbone_in_ddp_is_run_without_it():
    with alone():
        backbone = DistributedDataParallel(small_backbone().requires_grad_(True))
        backbone.register_forward_pre_hook(lambda *_: pytest.fail("DistributedDataParallel would synchronize buffers"))
        with pytest.raises(ValueError, match=re.escape("trainable parameters (module.0.weight, ")):
            cache_features(backbone, DataLoader(images(), batch_size=4))
        freeze(backbone)
        features, _ = cache_features(backbone, DataLoader(images(), batch_size=4)).tensors
    torch.testing.assert_close(features, backbone.module(images().tensors[0]))


# What it refuses ------------------------------------------------------------------------------------------------------


def loader(**options):
    return DataLoader(images(), batch_size=4, **options)


def pair(inputs=None, labels=None):
    return (torch.zeros(2, 3, 8, 8) if inputs is None else inputs, torch.zeros(2) if labels is None else labels)


class Nothing(nn.Module):
    def __init__(self, output=(None, [])):
        super().__init__()
        self.output = output

    def forward(self, x):
        return self.output


class Mean(nn.Module):
    def forward(self, x):
        return x.mean()


@pytest.mark.parametrize(
    "backbone, batches, error, named",
    [
        (nn.Conv2d(3, 4, 3), loader(), ValueError, "2 trainable parameters (weight, bias)"),
        (resnet18(), loader(), ValueError, "62 trainable parameters (conv1.weight, bn1.weight, bn1.bias, ...)"),
        (nn.Flatten(), [], ValueError, "no batch"),
        (nn.Flatten(), DataLoader(images(2), batch_size=4, drop_last=True), ValueError, "no batch"),
        (nn.Flatten(), [pair(labels=torch.zeros(3))], ValueError, "(2, 192) and labels (3,)"),
        (nn.Flatten(), DataLoader(images(), batch_size=None), ValueError, "and labels ()"),
        (Mean(), [pair()], ValueError, "features () and labels (2,)"),
        (Mean(), [pair(labels=torch.tensor(1))], ValueError, "features () and labels ()"),
        (Nothing(), loader(), TypeError, "gave no tensor but a tuple of NoneType, list"),
        (Nothing(dict(loss=None)), loader(), TypeError, "gave no tensor but a dict of loss: NoneType"),
        (Nothing(Pair(None, "")), loader(), TypeError, "gave no tensor but a Pair of loss: NoneType, hidden: str"),
        (Nothing(), loader(), TypeError, "but a tuple of NoneType, list"),
        (nn.Flatten(), [torch.zeros(2, 3)], TypeError, "in it or beside it, not a Tensor"),
        (nn.Flatten(), [[torch.zeros(2, 3)]], TypeError, "not a list of Tensor"),
        (nn.Flatten(), [(torch.zeros(2, 3), 0, 1)], TypeError, "not a tuple of Tensor, int, int"),
        (nn.Flatten(), [(torch.zeros(2, 3), torch.ones(2, 3), [0, 1])], TypeError, '{"input_ids": ..., "attention_'),
        (nn.Flatten(), [{"image": torch.zeros(2, 3)}], TypeError, "not a dict of image: Tensor: give the DataLoader a"),
        (nn.Flatten(), [UserDict(image=torch.zeros(2))], TypeError, "not a UserDict of image: Tensor"),
        (nn.Flatten(), [pair(labels=["cat", "dog"])], TypeError, "labels must be a tensor or a list of numbers"),
        (
            nn.Flatten(),
            [pair(labels={"boxes": 1})],
            TypeError,
            "labels must be a tensor or a list of numbers, not a dict",
        ),
        (torch.flatten, loader(), TypeError, "cache_features(model): model must be a torch.nn.Module"),
    ],
)
def test_it_refuses_what_it_cannot_cache(backbone, batches, error, named):
    with pytest.raises(error, match=re.escape(named)):
        cache_features(backbone, batches)


@pytest.mark.parametrize(
    "backbone, batches, message",
    [
        (
            nn.PReLU(),
            loader(),
            "the backbone has 1 trainable parameters (weight), so its features will change: freeze(backbone) first, "
            "and leave the head out",
        ),
        (nn.Flatten(), [], "the loader gave no batch: its dataset is empty, or smaller than a batch with drop_last"),
        (
            Mean(),
            [pair()],
            "every row of features needs one label, but the shapes are: features () and labels (2,)",
        ),
        (
            nn.Flatten(),
            [torch.zeros(2, 3)],
            "a batch must be a pair (tensor of inputs, labels), or a mapping that goes in as keywords, its labels (or "
            "label) in it or beside it, not a Tensor: give the DataLoader a collate_fn, which for texts makes "
            '{"input_ids": ..., "attention_mask": ..., "labels": ...}',
        ),
        (
            Nothing(),
            loader(),
            "the backbone gave no tensor but a tuple of NoneType, list: pick=... takes the features from the output",
        ),
    ],
)
def test_what_it_says_tells_what_to_do(backbone, batches, message):
    with pytest.raises((ValueError, TypeError), match=f"^{re.escape(message)}$"):
        cache_features(backbone, batches)


@pytest.mark.parametrize("layers, named", [(2, "(0.weight, 1.weight)"), (3, "(0.weight, 1.weight, 2.weight)"),
                                           (4, "(0.weight, 1.weight, 2.weight, ...)")])  # fmt: skip
def test_up_to_three_names_are_given(layers, named):
    with pytest.raises(ValueError, match=re.escape(f"{layers} trainable parameters {named}, so")):
        cache_features(nn.Sequential(*[nn.PReLU() for _ in range(layers)]), [])


def test_what_pick_gives_must_be_a_tensor():
    message = "pick gave no tensor but a list of Tensor: pick=... takes the features from the output"
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        cache_features(Words(), [(IDS, [0, 1])], pick=lambda out: [out.hidden])


@pytest.mark.parametrize(
    "shapes, labels, message",
    [
        ([(2, 7), (2, 9)], [(2,), (2,)], "the features of all batches are to make one tensor, but their shape is "
         "(2, 7) in the first batch, (2, 9) in batch 2: pick a pooled vector, as in "
         "pick=lambda out: out.last_hidden_state[:, 0], or pad all examples to one length"),
        ([(2, 7), (1, 7), (2, 7, 1)], [(2,), (1,), (2,)], "(2, 7) in the first batch, (2, 7, 1) in batch 3"),
        ([(2, 7), (2, 7)], [(2, 3), (2, 4)], "the labels of all batches are to make one tensor, but their shape is "
         "(2, 3) in the first batch, (2, 4) in batch 2"),
    ],
)  # fmt: skip
def test_a_shape_that_does_not_fit_is_told_at_once(shapes, labels, message):
    def batches():
        yield from ((torch.zeros(shape), torch.zeros(label)) for shape, label in zip(shapes, labels, strict=True))
        pytest.fail("asked for one batch more")

    with pytest.raises(ValueError, match=re.escape(message)):
        cache_features(nn.Identity(), batches())


def test_of_two_dtypes_both_are_named():
    message = (
        "the backbone is torch.float16 and failed on inputs that are torch.float32: give it inputs.to(torch.float16), "
        "or change it with backbone.to(torch.float32)"
    )
    half = nn.Linear(2, 2).half().requires_grad_(False)
    for batch in [(torch.ones(1, 2), [0]), {"input": torch.ones(1, 2), "labels": [0]}]:
        with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
            cache_features(half, [batch])
    with torch.autocast("cpu"):  # or what else makes them fit
        assert len(cache_features(half, [(torch.ones(1, 2), [0])])) == 1


@pytest.mark.parametrize("inputs", [torch.ones(1, 3), torch.ones(1, 2).int(), torch.ones(1, 3).int()])
def test_other_errors_of_the_backbone_are_its_own(inputs):
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        cache_features(nn.Linear(2, 2).requires_grad_(False), [(inputs, [0])])
    with pytest.raises(RuntimeError, match="is too far"):
        cache_features(Fails(), [(inputs, [0])])


class Fails(nn.Module):
    def forward(self, x):
        raise RuntimeError("is too far")


# What would not be the same the next time ----------------------------------------------------------------------------


class Noise(nn.Module):
    """In eval mode too."""

    def __init__(self, draw=torch.randn_like):
        super().__init__()
        self.draw = draw

    def forward(self, x):
        return x + self.draw(x)


class AlwaysDrops(nn.Module):
    """The noise is not in the layers inside, which only get other inputs."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        return self.layer(nn.functional.dropout(x, 0.5))


class Remembers(nn.Module):
    """No buffer: only the outputs tell."""

    seen = 0.0

    def forward(self, x):
        self.seen = self.seen + x.mean()
        return x * self.seen


class Turns(nn.Module):
    """Every other time it turns its rows around, which changes no sum."""

    turned = False

    def forward(self, x):
        self.turned = not self.turned
        return x.flip(1) if self.turned else x


@pytest.mark.parametrize(
    "part, named",
    [
        (Noise(), "1.0 (Noise)"),
        (Noise(lambda x: torch.as_tensor(numpy.random.random(x.shape)).float()), "1.0 (Noise)"),
        (Noise(lambda x: random.random()), "1.0 (Noise)"),
        (AlwaysDrops(), "1.0 (AlwaysDrops)"),
        (Remembers(), "1.0 (Remembers)"),
        (Turns(), "1.0 (Turns)"),
    ],
)
def test_what_draws_in_eval_mode_is_refused_and_named(part, named):
    backbone = nn.Sequential(nn.Linear(3, 3), nn.Sequential(part, nn.ReLU())).requires_grad_(False)
    message = (
        f"the first batch, run twice in eval mode, gave two different features: {named} draws at random in eval mode "
        "too, or remembers what it saw"
    )
    states = random_states()
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        cache_features(backbone, [(torch.ones(4, 3), torch.zeros(4))])
    assert random_states() == states


class Sparse(nn.Module):
    def forward(self, x):
        return x.to_sparse()


class DropsEntries(nn.Module):
    """Of a sparse matrix, as a network on graphs does with edges."""

    def forward(self, x):
        return (x.to_dense() * torch.rand(x.shape)).to_sparse()


class Dense(nn.Module):
    def forward(self, x):
        return x.to_dense()


def test_what_draws_is_named_among_sparse_tensors():
    backbone = nn.Sequential(Sparse(), DropsEntries(), Dense())
    with pytest.raises(ValueError, match=re.escape("different features: 1 (DropsEntries) draws")):
        cache_features(backbone, [(torch.eye(4), torch.zeros(4))])


def test_what_draws_itself_and_what_has_another_shape_each_time_is_refused():
    with pytest.raises(ValueError, match=re.escape("its forward (Noise) draws at random")):
        cache_features(Noise(), [(torch.ones(4, 3), torch.zeros(4))])
    widths = count(1)
    with pytest.raises(ValueError, match="two different features"):
        cache_features(nn.Flatten(), [(torch.ones(4, 9), torch.zeros(4))], pick=lambda out: out[:, : next(widths)])


class Rounds(nn.Module):
    """As sums in another order: scatter_add on a GPU."""

    def __init__(self, *sizes):
        super().__init__()
        self.sizes = iter(sizes)

    def forward(self, x):
        return x * (1 + next(self.sizes))


def test_rounding_is_no_difference_and_nan_neither():
    x = torch.tensor([[1.0, 1e4, float("nan"), float("inf"), 0.0]])
    assert len(cache_features(Rounds(0, 1e-6), [(x, [0])])) == 1
    assert len(cache_features(Rounds(0, 2**-8), [(x.bfloat16(), [0])])) == 1
    with pytest.raises(ValueError, match="two different features"):
        cache_features(Rounds(0, 0.05, 0, 0), [(x, [0])])


def test_the_first_batch_runs_twice_and_the_others_once():
    rows = []
    backbone = nn.Flatten()
    backbone.register_forward_hook(lambda module, args, output: rows.append(len(output)))
    cache_features(backbone, DataLoader(images(10), batch_size=4))
    assert rows == [4, 4, 4, 2]


def entries(model):
    return {name: entry.clone() for name, entry in [*model.named_parameters(), *model.named_buffers()]}


class Counter(nn.Module):
    """A new buffer in place of the old, or another value in it; what it gives stays the same."""

    def __init__(self, place, persistent, parameter=False):
        super().__init__()
        self.place = place
        self.register_buffer("calls", torch.zeros(1), persistent=persistent)
        if parameter:
            self.calls = None
            del self.calls
            self.calls = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, x):
        if self.place:
            self.calls.data.add_(1)
        else:
            self.calls = self.calls + 1
        return x.flatten(1)


@pytest.mark.parametrize(
    "part, named",
    [
        (lambda: MinMaxObserver(), "1.min_val, 1.max_val"),
        (lambda: PerChannelMinMaxObserver(), "1.min_val, 1.max_val"),
        (lambda: FakeQuantize(), "1.scale, 1.zero_point, 1.activation_post_process.min_val, ..."),
        (lambda: Counter(True, True), "1.calls"),
        (lambda: Counter(True, False), "1.calls"),
        (lambda: Counter(False, True), "1.calls"),
        (lambda: Counter(True, True, parameter=True), "1.calls"),
    ],
)
def test_what_moves_in_eval_mode_is_refused_named_and_put_back(part, named):
    backbone = nn.Sequential(nn.Linear(3, 3), part()).requires_grad_(False)
    before = entries(backbone)
    with pytest.raises(ValueError, match=re.escape(f"the backbone moves in eval mode too ({named})")):
        cache_features(backbone, [(torch.randn(4, 3), torch.zeros(4))])
    torch.testing.assert_close(entries(backbone), before, rtol=0, atol=0)


def test_what_the_message_on_what_moves_advises_helps():
    backbone = nn.Sequential(nn.Linear(3, 3), FakeQuantize()).requires_grad_(False)
    backbone(torch.randn(4, 3))
    data = [(torch.randn(4, 3) * 9, torch.zeros(4))]
    with pytest.raises(ValueError, match=re.escape("backbone.apply(torch.ao.quantization.disable_observer)")):
        cache_features(backbone, data)
    backbone.apply(disable_observer)
    assert torch.equal(cache_features(backbone, data).tensors[0], backbone(data[0][0]))


def test_what_moves_later_is_refused_too_and_put_back_after_any_error():
    backbone = nn.Sequential(MinMaxObserver())
    backbone(torch.tensor([[-1.0], [1.0]]))
    before = entries(backbone)
    batches = [(torch.zeros(2, 1), [0, 1]), (torch.full((2, 1), 5.0), [0, 1])]
    with pytest.raises(ValueError, match=re.escape("moves in eval mode too (0.max_val)")):
        cache_features(backbone, batches)
    torch.testing.assert_close(entries(backbone), before, rtol=0, atol=0)
    with pytest.raises(ValueError, match="one label"):
        cache_features(backbone, [batches[0], (batches[1][0], [0])])
    torch.testing.assert_close(entries(backbone), before, rtol=0, atol=0)


class Positions(nn.Module):
    """As many that read texts: a table that grows when one is longer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.arange(3.0), persistent=False)

    def forward(self, x):
        if x.shape[1] > len(self.table):
            self.table = torch.arange(float(x.shape[1]))
        return (x + self.table[: x.shape[1]]).sum(1)


def test_a_table_may_grow():
    data = [(torch.zeros(1, length), [0]) for length in (2, 4, 6)]
    assert cache_features(Positions(), data).tensors[0].tolist() == [1, 6, 15]


@pytest.mark.filterwarnings("ignore:.*quantize_per_tensor")
def test_entries_of_every_kind_may_stand_still():
    backbone = nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(1))
    freeze(backbone)
    backbone.register_buffer("not_a_number", torch.tensor([float("nan")]))
    backbone.register_buffer("integers", torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8))
    backbone.register_buffer("sparse", torch.eye(2).to_sparse())
    backbone.register_buffer("complex", torch.ones(2, dtype=torch.complex64))
    backbone.register_buffer("strided", torch.ones(6)[::2])
    backbone.register_buffer("nowhere", torch.ones(2, device="meta"))
    assert len(cache_features(backbone, [(torch.zeros(1, 2), [0])])) == 1


@pytest.mark.parametrize(
    "backbone, named",
    [
        (nn.BatchNorm1d(3, track_running_stats=False), "itself"),
        (nn.Sequential(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False))), "0.0"),
        (nn.Sequential(*[nn.SyncBatchNorm(3, track_running_stats=False) for _ in range(4)]), "0, 1, 2, ..."),
    ],
)
def test_batchnorm_without_running_statistics_is_refused(backbone, named):
    message = (
        f"BatchNorm without running statistics ({named}) takes those of the batch in eval mode too, so features depend "
        "on which examples are together: it needs track_running_stats=True while it is trained"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        cache_features(backbone.requires_grad_(False), loader())


def test_what_looks_at_one_example_at_a_time_is_not():
    norms = nn.Sequential(nn.InstanceNorm2d(3), nn.GroupNorm(3, 3), nn.BatchNorm2d(3), nn.LayerNorm(8))
    whole, parts = (
        cache_features(norms.requires_grad_(False), DataLoader(images(), batch_size=size)).tensors[0]
        for size in (10, 1)
    )
    torch.testing.assert_close(whole, parts)


# What it warns of -----------------------------------------------------------------------------------------------------


class Pictures(Dataset):
    """Like torchvision's datasets; its own name says nothing."""

    def __init__(self, **attributes):
        vars(self).update(attributes)

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return torch.zeros(3), index


class RandomPictures(Pictures):
    pass


class Holds:
    def __init__(self, transform):
        self.transform = transform


@pytest.mark.parametrize(
    "draws, names",
    [
        (DataLoader(Pictures(), shuffle=True), "RandomSampler"),
        (DataLoader(Pictures(), batch_sampler=BatchSampler(RandomSampler(range(2)), 2, False)), "RandomSampler"),
        (DataLoader(Pictures(), sampler=WeightedRandomSampler([1, 1], 2)), "WeightedRandomSampler"),
        (DataLoader(Pictures(), sampler=DistributedSampler(range(2), 1, 0)), "DistributedSampler"),
        (DataLoader(Pictures(transform=v2.RandomCrop(2))), "RandomCrop"),
        (DataLoader(Pictures(transforms=Holds(v2.TrivialAugmentWide()))), "TrivialAugmentWide"),
        (DataLoader(Pictures(transform=nn.Sequential(nn.Identity(), v2.ColorJitter()))), "ColorJitter"),
        (DataLoader(Pictures(transform=v2.Compose([v2.Compose([v2.RandomHorizontalFlip()])]))), "RandomHorizontalFlip"),
        (DataLoader(Subset(Pictures(transform=v2.AutoAugment()), [0])), "AutoAugment"),
        (DataLoader(ConcatDataset([Pictures(), Pictures(transform=v2.RandAugment())])), "RandAugment"),
        (DataLoader(Pictures(transform=v2.RandomCrop(2)), shuffle=True), "RandomSampler, RandomCrop"),
    ],
)
def test_it_warns_of_what_draws_at_random(draws, names):
    with pytest.warns(UserWarning, match=re.escape(f"keeps what {names} drew")):
        cache_features(nn.Identity(), draws)


def test_the_warning_points_at_the_call():
    with pytest.warns(UserWarning, match="RandomSampler") as warned:
        cache_features(nn.Identity(), DataLoader(Pictures(), shuffle=True))
    assert warned[0].filename == __file__


def test_what_it_warns_of_tells_what_to_do():
    message = (
        "the cache keeps what RandomSampler drew this once: each epoch on it sees the same. Cache without "
        "augmentation, in order, and shuffle the cache: DataLoader(cache, shuffle=True)"
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$"):
        cache_features(nn.Identity(), DataLoader(Pictures(), shuffle=True))


def test_a_transform_may_refer_to_itself():
    transform = Holds(None)
    transform.transform = transform
    assert len(cache_features(nn.Identity(), DataLoader(Pictures(transform=transform)))) == 2


@pytest.mark.parametrize(
    "quiet",
    [
        DataLoader(Pictures(), batch_size=2),
        DataLoader(RandomPictures(transform=v2.Compose([v2.Resize(2), v2.Normalize([0], [1])]))),
        DataLoader(Pictures(transform=str, transforms=None), sampler=DistributedSampler(range(2), 1, 0, shuffle=False)),
        [pair()],
    ],
)
def test_it_is_silent_about_a_fixed_order(quiet):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache_features(nn.Identity(), quiet)


# Progress -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds, shown", [(0.3, False), (0.5, True)])
def test_a_bar_appears_only_after_two_seconds(monkeypatch, capsys, seconds, shown):
    clock = count(0, seconds)
    monkeypatch.setattr("tqdm.std.time", lambda: next(clock))
    monkeypatch.setattr("tqdm.tqdm", partial(tqdm, disable=False))  # whatever TQDM_DISABLE says
    cache_features(nn.Identity(), DataLoader(images(5)))
    out, err = capsys.readouterr()
    assert out == "" and ("\rcache_features: " in err) == shown
    assert err == "" or err.endswith(" \r"), "the bar is cleared at the end"
