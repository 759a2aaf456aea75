"""environment.yml asks conda for what pyproject.toml asks pip for: the same names, the same ranges."""

import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from rattler import MatchSpec

ROOT = Path(__file__).parent.parent
IN_CONDA = {"torch": "pytorch"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))


def conda():
    """name -> the parsed specification; a specification that conda could not read raises."""
    specs = [entry for entry in ENVIRONMENT["dependencies"] if isinstance(entry, str)]
    parsed = [MatchSpec(spec, strict=True) for spec in specs]
    assert len({spec.name.normalized for spec in parsed}) == len(parsed)
    return {spec.name.normalized: spec for spec in parsed}


def test_both_lists_name_the_same_packages_in_the_same_ranges():
    extras = PROJECT["optional-dependencies"]
    wanted = [Requirement(text) for text in [*PROJECT["dependencies"], *extras["lessons"], *extras["test"]]]
    pip = {IN_CONDA.get(one.name, one.name): {str(clause) for clause in one.specifier} for one in wanted}
    pip["python"] = {PROJECT["requires-python"]}
    ours = {name: set(str(spec.version).split(",")) for name, spec in conda().items() if name != "pip"}
    assert ours == pip


def test_every_requirement_is_a_range():
    for name, spec in conda().items():
        assert name in ("pip", "python") or {clause[0] for clause in str(spec.version).split(",")} == {">", "<"}, name


def test_conda_takes_the_cpu_build_from_conda_forge_and_this_checkout():
    assert ENVIRONMENT["channels"] == ["conda-forge", "nodefaults"]
    assert str(conda()["pytorch"].build) == "cpu*"
    assert ENVIRONMENT["dependencies"][-1] == {"pip": ["--editable ."]}
    assert ENVIRONMENT["name"] == PROJECT["name"]
