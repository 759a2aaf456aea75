"""The same outputs everywhere: every notebook and every test of helpers, on the versions and settings we promise.

``python -m tests.tools.matrix [WORDS]`` (``make matrix``) runs those whose name contains all the words, and prints one
table. Each row that is green is written into CONTRIBUTING.md, with its date. Environments are made in build/matrix,
about 7 GB each, and used again until pyproject.toml changes. A row that fails or cannot be run says so, and the others
go on. What pytest printed is in build/matrix, a file for each row.
"""

import datetime
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
WANTED = [
    *PROJECT["dependencies"],
    *PROJECT["optional-dependencies"]["lessons"],
    *PROJECT["optional-dependencies"]["test"],
]


def oldest(wanted: list[str]) -> list[str]:
    """Of each requirement the first version that it permits."""
    return [re.sub(r">=([^,]*),.*", r"==\1", requirement) for requirement in wanted]


# name -> (Python, what is installed). None is the environment that runs this.
ENVIRONMENTS = {
    "newest": None,
    "oldest": ("python3.11", oldest(WANTED)),
    "Python 3.13": ("python3.13", WANTED),
    "Python 3.14": ("python3.14", WANTED),
}
SETTINGS = {
    "as it is": {},
    "2 threads": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"},  # two workers of two have two cores
    "plain instructions": {"ATEN_CPU_CAPABILITY": "default"},
    "AVX2 instructions": {"ATEN_CPU_CAPABILITY": "avx2"},
    "another hash seed": {"PYTHONHASHSEED": "4"},
    # Below a file nothing can be made, not even by root.
    "home not writable": {"HOME": "/dev/null/home"},
}
RUNS = [("newest", setting) for setting in SETTINGS] + [(name, "as it is") for name in ENVIRONMENTS if name != "newest"]
HEAD = ["environment", "setting", "Python", "torch", "matplotlib", "tests", "s", "green on"]
VERSIONS = """
import sys, torch, matplotlib
print("%d.%d" % sys.version_info[:2], torch.__version__.partition("+")[0], matplotlib.__version__)
"""


def environment(name: str) -> Path:
    """The Python of an environment, made if it is not there. Raises ``OSError`` with the reason if it cannot be."""
    if ENVIRONMENTS[name] is None:
        return Path(sys.executable)
    version, packages = ENVIRONMENTS[name]
    folder = ROOT / "build" / "matrix" / name.replace(" ", "-")
    python, ready = folder / "bin" / "python", folder / "ready"
    if not ready.exists() or ready.stat().st_mtime < (ROOT / "pyproject.toml").stat().st_mtime:
        for command in (
            [_found(version), "-m", "venv", "--clear", folder],
            [python, "-m", "pip", "install", "--quiet", "--editable", ".", *packages],
        ):
            if subprocess.run(command, cwd=ROOT, stdout=sys.stderr).returncode:
                raise OSError("not installed")
        ready.touch()
    return python


def _found(command: str) -> str:
    """A Python that runs: on the PATH, where pyenv may have a name for one that is not there, or among pyenv's own."""
    installed = Path.home().glob(f".pyenv/versions/*/bin/{command}")
    for path in filter(None, [shutil.which(command), *sorted(installed)]):
        if subprocess.run([path, "-c", ""], capture_output=True).returncode == 0:
            return str(path)
    raise OSError(f"skipped: no {command}")


def run(name: str, setting: str) -> list[str]:
    """A row of the table."""
    try:
        python = environment(name)
    except OSError as error:
        return [name, setting, "", "", "", str(error), ""]
    build = ROOT / "build" / "matrix"
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    start = time.monotonic()
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | SETTINGS[setting] | {"EVERY_STATE": "1"}, capture_output=True, text=True
    )
    seconds = time.monotonic() - start
    log = build / f"{name}, {setting}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(done.stdout + done.stderr)
    versions = subprocess.run([python, "-c", VERSIONS], capture_output=True, text=True).stdout.split() or [""] * 3
    told = re.findall(r"\d+ (?:passed|failed|errors?|skipped)", (done.stdout.strip().splitlines() or [""])[-1])
    told += [f"ended with {done.returncode}"] if done.returncode > 1 or not told else []
    return [name, setting, *versions, ", ".join(told), f"{seconds:.0f}"]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _recorded(page: Path) -> tuple[str, list[list[str]], str]:
    """The rows of the table on the page, with what is before and after it."""
    before, table, after = page.read_text("utf-8").split("<!-- matrix -->\n")
    return before, [row.strip("| ").split(" | ") for row in table.strip().splitlines()[2:]], after


def record(row: list[str], today: datetime.date, page: Path = ROOT / "CONTRIBUTING.md") -> None:
    """Put a row that is green in its place."""
    before, rows, after = _recorded(page)
    known = {tuple(cells[:2]): cells for cells in [*rows, [*row, str(today)]]}
    table = [_line(HEAD), "|" + "---|" * len(HEAD), *(_line(known[run]) for run in RUNS if run in known), ""]
    page.write_text("<!-- matrix -->\n".join([before, "\n".join(table), after]), "utf-8")


def last_run(page: Path = ROOT / "CONTRIBUTING.md") -> tuple[str, list[str]]:
    """Since when every version has been green as it is, and the versions of torch, oldest first."""
    rows = [dict(zip(HEAD, cells, strict=True)) for cells in _recorded(page)[1]]
    versions = {row["torch"] for row in rows}
    return (
        min(row["green on"] for row in rows if row["setting"] == "as it is"),
        sorted(versions, key=lambda version: tuple(map(int, version.split(".")))),
    )


def main(words: list[str]) -> int:
    print(_line(HEAD[:-1]), "|" + "---|" * len(HEAD[:-1]), sep="\n")
    bad = False
    for name, setting in RUNS:
        if all(word in f"{name} {setting}" for word in words):
            row = run(name, setting)
            print(_line(row), flush=True)
            if re.fullmatch(r"\d+ passed(, \d+ skipped)?", row[-2]):
                record(row, datetime.date.today())
            else:
                bad |= not row[-2].startswith("skipped: ")
    return bad


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
