"""What is handed out: build the wheel and the source archive, and check them.

``python -m tests.tools.handed_out`` (``make dist``) leaves both in build/dist. It fails for a description that PyPI
would refuse, a file that is no part of the project, and one that names a folder of this machine. It says what is still
missing, such as the address of the project.
"""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from helpers.auditing import PAGES

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


def missing() -> list[str]:
    """What a release would need, and the project has not."""
    nameless = "the project has no address yet (helpers.auditing.PAGES is empty): findings name their page by its title"
    return [] if PAGES else [nameless]


def main() -> int:
    archives = build()
    bad = [fault for archive in archives for fault in faults(archive)]
    for archive in archives:
        print(f"{archive.name}: {len(contents(archive))} files, {archive.stat().st_size / 2**20:.1f} MiB")
    print(*bad, *(f"missing: {what}" for what in missing()), sep="\n")
    refused = subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *archives]).returncode
    return bool(bad or refused)


if __name__ == "__main__":
    sys.exit(main())
