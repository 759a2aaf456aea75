"""cache_features gives what the frozen backbone gives, refuses what would not stay the same, and changes nothing."""

import re
import warnings
import weakref
from itertools import count, islice

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
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
from torchvision.ops import StochasticDepth
from torchvision.transforms import v2

from helpers.features import cache_features
from helpers.freezing import freeze
from helpers.lessons.ranks import alone


def images(count=10, size=8):
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.rand(count, 3, size, size, generator=generator), torch.arange(count) % 5)


def small_backbone():
    torch.manual_seed(1)
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Flatten())
    freeze(backbone)
    backbone[3].eval()
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
def test_inputs_go_where_the_parameters_are_and_features_come_to_the_cpu():
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


def test_modes_buffers_gradients_and_random_state_stay():
    backbone = small_backbone()
    backbone.append(nn.Sequential(nn.Dropout(0.0), nn.Linear(144, 2).requires_grad_(False)))
    backbone[0].weight.grad = torch.ones_like(backbone[0].weight)
    modes = [module.training for module in backbone.modules()]
    buffers = {name: buffer.clone() for name, buffer in backbone.named_buffers()}
    random = torch.get_rng_state()
    with pytest.warns(UserWarning):
        cache_features(backbone, DataLoader(images(), batch_size=4, shuffle=True))
    assert len(set(modes)) == 2 and modes == [module.training for module in backbone.modules()]
    torch.testing.assert_close(dict(backbone.named_buffers()), buffers, rtol=0, atol=0)
    assert torch.equal(backbone[0].weight.grad, torch.ones_like(backbone[0].weight))
    assert torch.equal(torch.get_rng_state(), random) and torch.is_grad_enabled()


@pytest.mark.parametrize("labels", [torch.tensor([3, 1]), [3, 1], (3, 1), [torch.tensor(3), torch.tensor(1)]])
def test_labels_may_be_a_tensor_or_a_list(labels):
    cache = cache_features(nn.Flatten(), [(torch.zeros(2, 1, 4), labels), [torch.ones(2, 1, 4), labels]])
    assert cache[3][0].tolist() == [1] * 4
    assert [label.tolist() for _, label in cache] == [3, 1, 3, 1]


def test_a_label_may_have_several_numbers():
    cache = cache_features(nn.Flatten(), [(torch.zeros(2, 1, 4), [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])])
    assert cache[1][1].tolist() == [1.0, 0.0, 0.0]


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


class Tuple(nn.Module):
    def forward(self, x):
        return x, x


class Mean(nn.Module):
    def forward(self, x):
        return x.mean()


@pytest.mark.parametrize(
    "backbone, batches, error, named",
    [
        (nn.Conv2d(3, 4, 3), loader(), ValueError, "2 trainable parameters (weight, bias)"),
        (resnet18(), loader(), ValueError, "62 trainable parameters (conv1.weight, bn1.weight, bn1.bias, ...)"),
        (nn.BatchNorm2d(3).requires_grad_(False), loader(), ValueError, "norm-statistics-drift: the model is frozen"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout()).requires_grad_(False), loader(), ValueError, "'1' drops"),
        (nn.Flatten(), [], ValueError, "no batch"),
        (nn.Flatten(), DataLoader(images(2), batch_size=4, drop_last=True), ValueError, "no batch"),
        (nn.Flatten(), [pair(labels=torch.zeros(3))], ValueError, "(2, 192) and labels (3,)"),
        (nn.Flatten(), DataLoader(images(), batch_size=None), ValueError, "and labels ()"),
        (Mean(), [pair()], ValueError, "features () and labels (2,)"),
        (Mean(), [pair(labels=torch.tensor(1))], ValueError, "features () and labels ()"),
        (Tuple(), loader(), TypeError, "not a tuple of Tensor, Tensor"),
        (nn.Flatten(), [torch.zeros(2, 3)], TypeError, "(tensor of inputs, labels), not a Tensor"),
        (nn.Flatten(), [[torch.zeros(2, 3)]], TypeError, "not a list of Tensor"),
        (nn.Flatten(), [(torch.zeros(2, 3), 0, 1)], TypeError, "not a tuple of Tensor, int, int"),
        (nn.Flatten(), [{"image": torch.zeros(2, 3)}], TypeError, "not a dict: give the DataLoader a"),
        (nn.Flatten(), [({"image": torch.zeros(2, 3)}, [0, 1])], TypeError, "not a tuple of dict, list"),
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
            "a batch must be a pair (tensor of inputs, labels), not a Tensor: "
            "give the DataLoader a collate_fn that makes such pairs",
        ),
        (Tuple(), loader(), "the backbone must give one tensor, not a tuple of Tensor, Tensor: wrap it to pick one"),
    ],
)
def test_what_it_says_tells_what_to_do(backbone, batches, message):
    with pytest.raises((ValueError, TypeError), match=f"^{re.escape(message)}$"):
        cache_features(backbone, batches)


class DropPath(nn.Identity):
    """timm's."""

    def __init__(self, drop_prob):
        super().__init__()
        self.drop_prob = drop_prob


def test_it_refuses_what_drops_paths_until_that_is_in_eval_mode():
    paths = [DropPath(0.1), DropPath(None), DropPath(0.0), StochasticDepth(0.0, "row"), StochasticDepth(0.2, "row")]
    backbone = nn.Sequential(nn.Linear(2, 2), *paths).requires_grad_(False)
    message = (
        "the backbone would give other features the next time:\n"
        "StochasticDepth or DropPath is active in 1, 5: it leaves out layers at random.\n"
        "    Call eval() on it after every backbone.train()."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        cache_features(backbone, [(torch.ones(1, 2), [0])])
    cache_features(backbone.eval(), [(torch.ones(1, 2), [0])])


@pytest.mark.parametrize("layers, named", [(2, "(0.weight, 1.weight)"), (3, "(0.weight, 1.weight, 2.weight)"),
                                           (4, "(0.weight, 1.weight, 2.weight, ...)")])  # fmt: skip
def test_up_to_three_names_are_given(layers, named):
    with pytest.raises(ValueError, match=re.escape(f"{layers} trainable parameters {named}, so")):
        cache_features(nn.Sequential(*[nn.PReLU() for _ in range(layers)]), [])


def test_of_many_names_it_says_three():
    backbone = nn.Sequential(nn.Dropout(), *[StochasticDepth(0.2, "row") for _ in range(4)], nn.Linear(2, 2))
    message = (
        "the backbone would give other features the next time:\n"
        "dropout-in-frozen-part: '0' drops at random (p=0.5) in a frozen part: equal inputs get different features.\n"
        "    Call its eval() after every model.train(), or override train() of the part.\n"
        "StochasticDepth or DropPath is active in 1, 2, 3, ...: it leaves out layers at random.\n"
        "    Call eval() on it after every backbone.train()."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        cache_features(backbone.requires_grad_(False), [(torch.ones(1, 2), [0])])


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
    with pytest.warns(UserWarning, match=re.escape(f"keeps what {names} drew")) as warned:
        cache_features(nn.Identity(), draws)
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
    cache_features(nn.Identity(), DataLoader(images(5)))
    out, err = capsys.readouterr()
    assert out == "" and ("\rcache_features: " in err) == shown
    assert err == "" or err.endswith(" \r"), "the bar is cleared at the end"
