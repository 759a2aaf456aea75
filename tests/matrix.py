"""The same outputs everywhere: every notebook and every test of helpers, on the versions and settings we promise.

``python -m tests.matrix [WORDS]`` (``make matrix``) runs those whose name contains all the words, and prints one table.
Environments are made in build/matrix, about 7 GB each, and used again. A Python that is not installed is skipped.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
# name -> (Python, what is installed in place of the newest)
ENVIRONMENTS = {
    "newest": None,
    "oldest": ("python3.11", ["torch==2.9.1", "torchvision==0.24.1", "matplotlib==3.10.0"]),
    "Python 3.13": ("python3.13", ["torch==2.14.1", "torchvision==0.29.1"]),
}
SETTINGS = {
    "as it is": {},
    "2 threads": {"OMP_NUM_THREADS": "2"},
    "plain instructions": {"ATEN_CPU_CAPABILITY": "default"},
    "AVX2 instructions": {"ATEN_CPU_CAPABILITY": "avx2"},
    "another hash seed": {"PYTHONHASHSEED": "4"},
    # Below a file nothing can be made, not even by root. pytest and Jupyter keep what they need elsewhere.
    "home not writable": {
        "HOME": "/dev/null/home",
        "JUPYTER_RUNTIME_DIR": "{build}/runtime",
        "IPYTHONDIR": "{build}/ipython",
    },
}
RUNS = [("newest", setting) for setting in SETTINGS] + [(name, "as it is") for name in ENVIRONMENTS if name != "newest"]
VERSIONS = """
import sys, torch, matplotlib
print("%d.%d" % sys.version_info[:2], torch.__version__.partition("+")[0], matplotlib.__version__)
"""


def environment(name: str) -> Path | None:
    """The Python of an environment, made if it is not there; None if its Python is not installed."""
    if ENVIRONMENTS[name] is None:
        return Path(sys.executable)
    version, packages = ENVIRONMENTS[name]
    folder = ROOT / "build" / "matrix" / name.replace(" ", "-")
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        if not (found := _works(version)):
            return None
        subprocess.run([found, "-m", "venv", "--clear", folder], check=True)
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--editable", ".[lessons,test]", *packages],
            check=True,
            cwd=ROOT,
        )
        (folder / "ready").touch()
    return python


def _works(command: str) -> str | None:
    """The path of a Python that runs: a version manager may offer the name of one that is not there."""
    found = shutil.which(command)
    return found if found and subprocess.run([found, "-c", ""], capture_output=True).returncode == 0 else None


def run(name: str, setting: str) -> list[str]:
    """A row of the table."""
    if (python := environment(name)) is None:
        return [name, setting, ENVIRONMENTS[name][0], "", "", "not installed", ""]
    build = ROOT / "build" / "matrix"
    variables = {key: value.format(build=build) for key, value in SETTINGS[setting].items()}
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    start = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True)
    seconds = time.monotonic() - start
    log = build / f"{name}, {setting}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(done.stdout + done.stderr)
    versions = subprocess.run([python, "-c", VERSIONS], capture_output=True, text=True, check=True).stdout.split()
    counts = re.findall(r"\d+ (?:passed|failed|errors?|skipped)", (done.stdout.strip().splitlines() or [""])[-1])
    return [name, setting, *versions, ", ".join(counts) or f"ended with {done.returncode}", f"{seconds:.0f}"]


def main(words: list[str]) -> int:
    head = ["environment", "setting", "Python", "torch", "matplotlib", "tests", "s"]
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    bad = False
    for name, setting in RUNS:
        if all(word in f"{name} {setting}" for word in words):
            row = run(name, setting)
            bad |= bool(re.search("failed|error|ended", row[-2]))
            print("| " + " | ".join(row) + " |", flush=True)
    return bad


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
