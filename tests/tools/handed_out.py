"""What is handed out: build the wheel and the source archive, and check them.

``python -m tests.tools.handed_out`` (``make dist``) leaves both in build/dist. It fails for a description that PyPI
would refuse, a file that is no part of the project, and one that names a folder of this machine. The wheel is installed
into an empty environment with the oldest versions it permits, where the README's examples are run. It says what is
still missing, such as the address of the project.
"""

import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from helpers.auditing import PAGES
from tests.tools.matrix import PROJECT, oldest

ROOT = Path(__file__).parents[2]
DIST = ROOT / "build" / "dist"
NOT_OURS = {".venv", ".git", "my", "build", "__pycache__", ".ipynb_checkpoints", "gradient-lessons"}


def build() -> list[Path]:
    shutil.rmtree(DIST, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "build", "--outdir", DIST, ROOT], check=True, stdout=subprocess.DEVNULL)
    return sorted(DIST.iterdir())


def contents(archive: Path) -> dict[str, bytes]:
    """The files of an archive, by name."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as opened:
            return {name: opened.read(name) for name in opened.namelist() if not name.endswith("/")}
    with tarfile.open(archive) as opened:
        files = {member.name: opened.extractfile(member) for member in opened.getmembers() if member.isfile()}
        return {name.partition("/")[2]: file.read() for name, file in files.items() if file}


def faults(archive: Path) -> list[str]:
    found = []
    for name, data in contents(archive).items():
        if strange := NOT_OURS & set(name.split("/")):
            found.append(f"{archive.name}: {name} is in {', '.join(strange)}, which is no part of the project")
        if str(ROOT).encode() in data or str(Path.home()).encode() + b"/" in data:
            found.append(f"{archive.name}: {name} names a folder of this machine")
    return found


EXAMPLES = "import doctest, sys; sys.exit(doctest.testfile(sys.argv[1], module_relative=False).failed)"


def installed(wheel: Path) -> list[str]:
    """What fails of the README's examples in an environment of the wheel and of what it requires, at its oldest."""
    with tempfile.TemporaryDirectory() as place:
        python = Path(place, "bin", "python")
        for command in (
            [sys.executable, "-m", "venv", place],
            [python, "-m", "pip", "install", "--quiet", wheel, *oldest(PROJECT["dependencies"])],
        ):
            subprocess.run(command, check=True)
        ran = subprocess.run(
            [python, "-I", "-c", EXAMPLES, ROOT / "README.md"], cwd=place, capture_output=True, text=True
        )
    return [f"README.md, with the oldest versions: {ran.stdout}{ran.stderr}"] if ran.returncode else []


def missing() -> list[str]:
    """What a release would need, and the project has not."""
    nameless = "the project has no address yet (helpers.auditing.PAGES is empty): findings name their page by its title"
    return [] if PAGES else [nameless]


def main() -> int:
    archives = build()
    bad = [fault for archive in archives for fault in faults(archive)]
    bad += [fault for archive in archives if archive.suffix == ".whl" for fault in installed(archive)]
    for archive in archives:
        print(f"{archive.name}: {len(contents(archive))} files, {archive.stat().st_size / 2**20:.1f} MiB")
    print(*bad, *(f"missing: {what}" for what in missing()), sep="\n")
    refused = subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *archives]).returncode
    return bool(bad or refused)


if __name__ == "__main__":
    sys.exit(main())
