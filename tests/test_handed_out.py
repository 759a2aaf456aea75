"""The check of what is handed out names what does not belong there, and what is missing."""

import io
import tarfile
import zipfile

import pytest

from tests.tools import handed_out


@pytest.mark.parametrize("kind", ["helpers-1.whl", "helpers-1.tar.gz"])
def test_what_does_not_belong_there_is_named(kind, tmp_path):
    files = {
        "helpers/freezing.py": b"import torch",
        "notebooks/.ipynb_checkpoints/01.ipynb": b"{}",
        "helpers/data.txt": f"{handed_out.ROOT}/notebooks".encode(),
    }
    if kind.endswith("whl"):
        with zipfile.ZipFile(tmp_path / kind, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(tmp_path / kind, "w:gz") as archive:
            for name, data in files.items():
                entry = tarfile.TarInfo(f"helpers-1/{name}")
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    assert handed_out.contents(tmp_path / kind) == files
    assert handed_out.faults(tmp_path / kind) == [
        f"{kind}: notebooks/.ipynb_checkpoints/01.ipynb is in .ipynb_checkpoints, which is no part of the project",
        f"{kind}: helpers/data.txt names a folder of this machine",
    ]


def test_it_says_that_there_is_no_address(monkeypatch):
    monkeypatch.setattr(handed_out, "PAGES", "")
    assert ["PAGES is empty" in what for what in handed_out.missing()] == [True]
    monkeypatch.setattr(handed_out, "PAGES", "https://example.org/rules/")
    assert handed_out.missing() == []
