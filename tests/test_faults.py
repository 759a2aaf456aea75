"""What goes wrong around the lessons is told, or does no harm: no network, a broken .venv, a foreign file.

Broken notebooks, dead kernels, full disks and kills are in test_lessons.py and test_digits.py.
"""

import ast
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tools import lessons

ROOT = Path(__file__).parent.parent

# In a network namespace of its own, which begins with nothing, not even loopback; kernels need that.
OFFLINE = """
import fcntl, socket, struct, sys, pytest
with socket.socket() as any:
    fcntl.ioctl(any, 0x8914, struct.pack("16sh14x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP
try:
    socket.create_connection(("192.0.2.1", 80), timeout=5)
except OSError as error:
    print(error)
sys.exit(pytest.main(sys.argv[1:]))
"""


def test_without_any_network_a_lesson_and_the_digits_are_the_same():
    unshare = ["unshare", "--map-root-user", "--net"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("this system does not let us make a network namespace (unshare)")
    parts = ["notebooks/03_parameters.ipynb", "helpers/lessons/digits.py"]
    command = [*unshare, sys.executable, "-c", OFFLINE, "-q", "-n", "0", "-p", "no:cacheprovider", *parts]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith("[Errno 101] Network is unreachable") and done.returncode == 0, done.stdout


# Where a whole object is read on purpose: lesson 04 shows what that does, learners answer exercises of 02 and 04 so,
# which is right though unwise (tests/answers), and a frozen copy must come through it.
WHOLE_OBJECTS = {
    "notebooks/04_state_dict.ipynb",
    "answers/no_grad.py",
    "answers/state_dict.py",
    "tests/test_freezing.py",
}


def calls(source):
    """Every call in it: what is called, and its keywords, as written."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}


def test_nothing_unpickles_a_file():
    for path in lessons.paths():
        for cell in lessons.read(path)["cells"]:
            if cell["cell_type"] == "code":
                assert not list(unpickled(path, cell["source"])), (path.name, cell["id"])
    for path in [path for part in ("helpers", "tests") for path in (ROOT / part).rglob("*.py")]:
        assert not list(unpickled(path, path.read_text("utf-8"))), path.name
    for planted in (
        "pickle.load(file)",
        "pickle.loads(read)",
        "torch.load(file, weights_only=False)",
        "numpy.load(file, allow_pickle=True)",
    ):
        assert list(unpickled(ROOT / "lesson.py", planted))
    assert list(unpickled(ROOT / "exercises" / "no_grad.py", "torch.load(file, weights_only=False)"))


def unpickled(path, source):
    name = f"{path.parent.name}/{path.name}"
    for called, words in calls(source):
        whole = words.get("weights_only", "True") != "True" and name not in WHOLE_OBJECTS
        if (
            whole
            or "allow_pickle" in words
            or called in ("pickle.load", "pickle.Unpickler", "joblib.load")
            # helpers.lessons.ranks reads what comes through pipes from processes that it started itself.
            or (called == "pickle.loads" and name != "lessons/ranks.py")
        ):
            yield called


def test_helpers_ask_for_weights_only_by_name():
    """An environment variable can turn torch's default off."""
    found = [
        (path.name, words.get("weights_only"))
        for path in (ROOT / "helpers").rglob("*.py")
        for called, words in calls(path.read_text("utf-8"))
        if called == "torch.load" or called.endswith((".get_state_dict", "load_state_dict_from_url"))
    ]
    assert found and all(only == "True" for _, only in found), found


# A Python that makes no environment and installs nothing, only notes what it was asked.
PYTHON = """#!/bin/sh
case "$*" in
*"-m venv"*) rm -rf .venv && mkdir -p .venv/bin && cp "$0" .venv/bin/python && echo venv >> asked ;;
*"-m pip install"*) echo install >> asked; exit "${PIP_ENDS:-0}" ;;
*find_spec*) cat home ;;
*version_info*) exit "${TOO_OLD:-0}" ;;
esac
"""


@pytest.fixture
def make(tmp_path):
    """Run ``make .venv/ready`` in a checkout with that Python; gives how it ends, and what Python was asked to do."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    (tmp_path / "home").write_text(f"{tmp_path}/helpers/__init__.py\n")
    asked = tmp_path / "asked"

    def run(**env):
        asked.write_text("")
        command = ["make", ".venv/ready", f"PYTHON={python}"]
        env = os.environ | {"MAKEFLAGS": ""} | env
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        return done.returncode, asked.read_text().split(), done.stdout + done.stderr

    return run


def test_make_sets_up_once(make):
    assert make()[:2] == (0, ["venv", "install"])
    assert make()[:2] == (0, [])


def test_make_goes_on_where_an_install_was_interrupted(make):
    assert make(PIP_ENDS="1")[:2] == (2, ["venv", "install"])
    assert make(PIP_ENDS="1")[:2] == (2, ["install"])
    assert make()[:2] == (0, ["install"])


def test_make_installs_again_after_a_change_of_requirements(make, tmp_path):
    make()
    os.utime(tmp_path / "pyproject.toml", (2**31, 2**31))
    assert make()[:2] == (0, ["install"])


def test_make_installs_again_where_the_checkout_was_moved_or_copied(make, tmp_path):
    make()
    (tmp_path / "home").write_text("/elsewhere/helpers/__init__.py\n")
    assert make()[:2] == (0, ["install"])


def test_make_replaces_an_environment_whose_python_is_gone(make, tmp_path):
    make()
    (tmp_path / ".venv" / "bin" / "python").unlink()
    assert make()[:2] == (0, ["venv", "install"])


def test_make_replaces_an_environment_whose_python_does_not_start(make, tmp_path):
    make()
    (tmp_path / ".venv" / "bin" / "python").write_text("#!/bin/sh\nexit 1\n")
    assert make()[:2] == (0, ["venv", "install"])


def test_make_says_which_python_it_needs(make):
    ended, asked, told = make(TOO_OLD="1")
    assert (ended, asked) == (2, []) and "Python 3.11 or newer is needed; name one: make PYTHON=" in told


def test_where_the_port_is_taken_jupyterlab_says_so_and_takes_another(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "jupyterlab", "--allow-root", "--no-browser", "--ip=127.0.0.1"]
        command += [f"--port={port}", str(tmp_path)]
        env = os.environ | {f"JUPYTER_{name}_DIR": str(tmp_path / name) for name in ("CONFIG", "DATA", "RUNTIME")}
        with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as server:
            told = []
            for line in server.stderr:
                told.append(line)
                if "/lab?token=" in line:
                    break
            server.kill()
    assert any(f"The port {port} is already in use, trying another port." in line for line in told), told
    assert told and re.search(r"http://127\.0\.0\.1:(\d+)/lab", told[-1])[1] != str(port), told
