"""The real weights: found in torch's cache folder, or an error that says what to do. No network is used."""

import re
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torchvision.models import ResNet18_Weights, resnet18

from helpers.pretrained import pretrained
from tests import lessons

LESSON = lessons.FOLDER / "06_finetune_last_layer.ipynb"
URL = ResNet18_Weights.DEFAULT.url


@pytest.fixture
def file(monkeypatch, tmp_path):
    """Where torchvision looks for ResNet-18's weights, in a TORCH_HOME of this test's own."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub" / "checkpoints" / URL.rpartition("/")[2]


@pytest.fixture
def offline(monkeypatch):
    def refuse(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr(torch.hub, "urlopen", refuse)


def stand_in(file):
    file.parent.mkdir(parents=True)
    weights = resnet18(weights=None).state_dict()
    weights["conv1.weight"].fill_(0.25)
    torch.save(weights, file)


def test_the_lessons_lines_load_the_file(file, offline):
    stand_in(file)
    cell = next(cell for cell in lessons.read(LESSON)["cells"] if cell["id"] == "real")
    source, swapped = re.subn(r"^# (from helpers|net = )", r"\1", cell["source"], flags=re.MULTILINE)
    assert swapped == 2
    names = {"resnet18": resnet18, "torch": torch}
    exec(source, names)
    assert (names["net"].conv1.weight == 0.25).all() and names["net"].training
    assert all(parameter.requires_grad for parameter in names["net"].parameters())


def test_without_file_and_network_the_error_says_what_to_put_where(file, offline):
    with pytest.raises(FileNotFoundError) as error:
        pretrained(resnet18, ResNet18_Weights.DEFAULT)
    assert str(file) in str(error.value) and URL in str(error.value) and "TORCH_HOME" in str(error.value)
    assert not file.exists()


def test_a_damaged_file_is_named(file, offline):
    file.parent.mkdir(parents=True)
    file.write_bytes(b"half a file")
    with pytest.raises(RuntimeError, match="cannot be loaded into resnet18") as error:
        pretrained(resnet18, ResNet18_Weights.DEFAULT)
    assert str(file) in str(error.value) and file.exists()


def test_weights_of_another_network_are_named(file, offline):
    file.parent.mkdir(parents=True)
    torch.save({"weight": torch.zeros(1)}, file)
    with pytest.raises(RuntimeError, match="cannot be loaded into resnet18"):
        pretrained(resnet18, ResNet18_Weights.DEFAULT)


def test_errors_of_the_builder_itself_come_through(file):
    def builder(weights):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        pretrained(builder, ResNet18_Weights.DEFAULT)
    assert isinstance(file, Path)
