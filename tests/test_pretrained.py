"""The real weights: found in torch's cache folder, or an error that says what to do. No network is used."""

import hashlib
import io
import re
from urllib.error import URLError

import pytest
import torch
from torchvision.models import ResNet18_Weights, resnet18

from helpers.lessons.pretrained import pretrained
from tests.tools import lessons

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


@pytest.fixture
def stand_in(file, monkeypatch):
    """Put an object of ours where the weights are, under a name that carries its hash; gives the file."""

    def put(content):
        buffer = io.BytesIO()
        torch.save(content, buffer)
        name = f"resnet18-{hashlib.sha256(buffer.getvalue()).hexdigest()[:8]}.pth"
        monkeypatch.setattr(ResNet18_Weights.DEFAULT.value, "url", f"https://example.org/{name}")
        file.parent.mkdir(parents=True)
        file.with_name(name).write_bytes(buffer.getvalue())
        return file.with_name(name)

    return put


def weights():
    entries = resnet18(weights=None).state_dict()
    entries["conv1.weight"].fill_(0.25)
    return entries


def test_the_lessons_lines_load_the_file(stand_in, offline):
    stand_in(weights())
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


def test_one_changed_bit_in_weights_that_still_load_is_noticed(stand_in, offline):
    file = stand_in(weights())
    assert (pretrained(resnet18, ResNet18_Weights.DEFAULT).conv1.weight == 0.25).all()
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    torch.load(file, weights_only=True)
    with pytest.raises(RuntimeError, match="damaged: its SHA-256 begins with"):
        pretrained(resnet18, ResNet18_Weights.DEFAULT)


class Harm:
    done = False

    def __reduce__(self):
        return setattr, (Harm, "done", True)


def test_a_file_that_names_a_function_does_not_get_it_called(stand_in, offline):
    stand_in({"conv1.weight": Harm()})
    with pytest.raises(RuntimeError, match="cannot be loaded into resnet18"):
        pretrained(resnet18, ResNet18_Weights.DEFAULT)
    assert not Harm.done


def test_weights_of_another_network_are_named(stand_in, offline):
    file = stand_in({"weight": torch.zeros(1)})
    with pytest.raises(RuntimeError, match="cannot be loaded into resnet18") as error:
        pretrained(resnet18, ResNet18_Weights.DEFAULT)
    assert str(file) in str(error.value)


def test_errors_of_the_builder_itself_come_through(file, monkeypatch):
    def builder(weights):
        raise KeyError("mine")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: {})
    with pytest.raises(KeyError, match="mine"):
        pretrained(builder, ResNet18_Weights.DEFAULT)
