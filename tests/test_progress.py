"""What a learner has done: kept in their folder only, whole or not at all, and shown on their start page."""

import datetime
import importlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers.lessons import files, lab, merging, overview, progress
from tests.tools import exercises as key
from tests.tools import lessons

ROOT = Path(__file__).parent.parent
BEGAN = datetime.date.today()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A learner's folder, and this process as the kernel of a notebook in it."""
    folder = tmp_path / "mine"
    (folder / progress.KEPT).mkdir(parents=True)
    kernel(monkeypatch, folder, JPY_SESSION_NAME=str(folder / "01_requires_grad.ipynb"))
    monkeypatch.setattr(progress, "_told", set())
    return folder


def kernel(monkeypatch, begun, user_ns=None, **env):
    shell = SimpleNamespace(kernel=..., starting_dir=str(begun), user_ns=user_ns or {})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)


def lines(folder):
    """What is kept, where the date is that of these tests, which may run past midnight, with "today" for it."""
    head, *rest = (folder / progress.FILE).read_text("utf-8").splitlines()
    assert head == progress.HEAD
    return [re.sub(f"{BEGAN}|{datetime.date.today()}", "today", line) for line in rest]


def test_a_verdict_is_kept_in_a_file_that_one_can_read(folder):
    assert progress.standing("requires_grad") == {}
    for lesson, name, verdict in [
        ("requires_grad", "any", "right"),
        ("no_grad", "head-features", "not yet"),
        ("requires_grad", "freeze-by-name", "not yet"),
        ("requires_grad", "still-trains", "not attempted"),
    ]:
        assert progress.record(lesson, name, verdict) is None
    assert lines(folder) == [
        "requires_grad  any             right    today",
        "requires_grad  freeze-by-name  not yet  today",
        "no_grad        head-features   not yet  today",
    ]
    assert progress.standing("requires_grad") == {"any": "right", "freeze-by-name": "not yet"}
    assert progress.standing("no_grad") == {"head-features": "not yet"} and progress.standing("optimizers") == {}


def test_what_was_right_stays_right_since_the_day_when_it_first_was(folder):
    text = "no_grad any right 2026-01-31\nno_grad two not yet 2026-02-01"
    (folder / progress.FILE).write_text(f"{progress.HEAD}\n{text}")
    before = (folder / progress.FILE).read_bytes()
    for name in ("any", "two"):
        for verdict in ("not yet", "not attempted", "right" if name == "any" else "not yet"):
            assert progress.record("no_grad", name, verdict) is None
            assert (folder / progress.FILE).read_bytes() == before, verdict
    progress.record("no_grad", "two", "right")
    assert lines(folder) == ["no_grad  any  right  2026-01-31", "no_grad  two  right  today"]


def test_a_new_name_takes_what_was_done_under_the_old_one_with_it(folder, monkeypatch):
    monkeypatch.setattr(progress, "RENAMED", {"no_grad any": "recording which", "no_grad more": "no_grad any"})
    text = "no_grad any right 2026-01-31\nno_grad more not yet 2026-02-01\nrecording which not yet 2026-03-01\n"
    (folder / progress.FILE).write_text(f"{progress.HEAD}\n{text}")
    assert progress.standing("recording") == {"which": "right"} and progress.standing("no_grad") == {"any": "not yet"}
    progress.record("no_grad", "more", "right")  # by a lesson that an update has not reached
    assert lines(folder) == ["recording  which  right  2026-01-31", "no_grad    any    right  today"]


# Where it is kept, and where not


def test_only_the_kernel_of_a_notebook_in_the_folder_has_a_place(tmp_path, monkeypatch):
    mine, other = tmp_path / "mine", tmp_path / "notebooks"
    for path in (mine / progress.KEPT, mine / "solutions", mine / "own", other):
        path.mkdir(parents=True)
    (tmp_path / "link").symlink_to(mine)

    def place(begun, name, **user_ns):
        kernel(monkeypatch, begun, user_ns, JPY_SESSION_NAME=str(name))
        return progress.place()

    assert place(mine, mine / "01_a.ipynb") == place(mine / "own", mine / "own" / "b.ipynb") == mine
    assert place(tmp_path / "link", tmp_path / "link" / "01_a.ipynb") == place(mine, "01_a.ipynb") == mine
    assert place(mine / "solutions", mine / "solutions" / "01_solutions.ipynb") is None, "it is not their answer"
    assert place(mine, mine / "console-1") is None and place(mine, "") is None and place(other, "") is None
    assert place(other, other / "01_a.ipynb") is None, "a folder that is no learner's"
    assert place(other, mine / "01_a.ipynb") is None, "begun from a cell of theirs, as by ! make test"
    # VS Code names the notebook itself, and begins where its settings say.
    assert place(tmp_path, "x", __vsc_ipynb_file__=str(mine / "01_a.ipynb")) == mine
    assert place(tmp_path, "x", __vsc_ipynb_file__=str(other / "01_a.ipynb")) is None
    assert place(mine, mine / "01_a.ipynb", __vsc_ipynb_file__=str(mine / "solutions" / "01_a.ipynb")) is None


@pytest.mark.parametrize("shell", [None, SimpleNamespace(user_ns={}, starting_dir=".")], ids=["script", "ipython"])
def test_without_a_kernel_there_is_none(folder, monkeypatch, shell):
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert progress.place() is None and progress.record("no_grad", "any", "right") is None
    assert progress.standing("no_grad") == {} and not (folder / progress.FILE).exists()


LOOK = """\
from helpers.lessons import progress
print(progress.place() is not None, progress.record("no_grad", "any", "right"), progress.standing("no_grad"))"""


def environment(notebook):
    """What a Jupyter server gives the kernel of a notebook that is opened at its root."""
    from jupyter_server.services.kernels.kernelmanager import MappingKernelManager
    from jupyter_server.services.sessions.sessionmanager import SessionManager

    server = SessionManager(kernel_manager=MappingKernelManager(root_dir=str(notebook.parent)))
    return server.get_kernel_env(notebook.name, notebook.name)


def test_a_kernel_of_a_jupyter_server_keeps_it_also_for_the_next_one(folder, monkeypatch):
    monkeypatch.undo()
    from jupyter_client.manager import start_new_kernel

    notebook, told = folder / "02_no_grad.ipynb", []
    notebook.touch()
    for n in range(2):
        env = environment(notebook) | {"PYTHONPATH": str(ROOT)}
        manager, client = start_new_kernel(kernel_name="python3", cwd=str(folder), env=env)
        try:
            code = f"import os\nos.chdir('/')\n{LOOK}" if n else LOOK
            client.execute_interactive(code, timeout=100, output_hook=lambda m: told.append(m["content"].get("text")))
        finally:
            client.stop_channels()
            manager.shutdown_kernel(now=True)
    assert list(filter(None, told)) == 2 * ["True None {'any': 'right'}\n"], told
    assert lines(folder) == ["no_grad  any  right  today"]


@pytest.mark.parametrize("begun", ["terminal", "cell"])
def test_nbval_sees_no_file_wherever_it_is_started(folder, tmp_path, monkeypatch, begun):
    """As `make test` is run from a terminal of JupyterLab on a learner's folder, or from a cell of theirs."""
    monkeypatch.undo()
    mine = folder / "01_requires_grad.ipynb"
    (folder / progress.FILE).write_text(f"{progress.HEAD}\nno_grad any not yet 2026-01-31\n")
    before = (folder / progress.FILE).read_bytes()
    env = os.environ | {"JUPYTER_SERVER_ROOT": str(folder), "JUPYTER_SERVER_URL": "http://127.0.0.1:8888/"}
    if begun == "cell":
        env |= {"JPY_SESSION_NAME": environment(mine)["JPY_SESSION_NAME"], "JPY_PARENT_PID": str(os.getpid())}
    else:
        env.pop("JPY_SESSION_NAME", None)
    output = {"output_type": "stream", "name": "stdout", "text": "False None {}\n"}
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "source": LOOK, "outputs": [output], "execution_count": 1}
    notebook = {"cells": [cell], "metadata": lessons.METADATA, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "02_no_grad.ipynb").write_text(lessons.written(notebook))
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider", "-q", "-n", "0"]
    command += ["-c", ROOT / "pyproject.toml", "--rootdir", ROOT, tmp_path / "notebooks"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert "1 passed" in done.stdout, done.stdout
    assert (folder / progress.FILE).read_bytes() == before and os.listdir(tmp_path / "notebooks") == [
        "02_no_grad.ipynb"
    ]


# What goes wrong


@pytest.mark.parametrize(
    "text",
    [
        b"\xff\xfe\x00garbage",
        b"\0" * 300,
        "{head}\nno_grad any right 2026-01-31\n<<<<<<< HEAD\nno_grad two right 2026-01-31\n",
        "no_grad any right 2026-01-31\n",
        "{head}\nno_grad any perfect 2026-01-31\nno_grad any right 2026-01-31\n",
        "{head}\nno_grad any right 2026-01-31\nno_grad two ri",
    ],
)
def test_what_is_damaged_is_put_aside_with_a_word_and_what_can_be_read_goes_on(folder, text):
    text = text.format(head=progress.HEAD).encode() if isinstance(text, str) else text
    (folder / progress.FILE).write_bytes(text)
    readable = {name for name in ("any", "two") if f"no_grad {name} right 2026-01-31".encode() in text}
    assert progress.standing("no_grad").keys() == readable
    assert (folder / progress.FILE).read_bytes() == text, "who only looks changes nothing"
    told = progress.record("no_grad", "new", "right")
    assert told == "progress.txt could not be read in full: it is now progress.damaged.txt, and was begun anew."
    assert (folder / "progress.damaged.txt").read_bytes() == text
    assert progress.standing("no_grad").keys() == {*readable, "new"} and len(lines(folder)) == len(readable) + 1
    assert progress.record("no_grad", "newer", "right") is None
    assert overview.ASIDE["damaged"] in overview.put_aside(folder)


@pytest.mark.parametrize(
    "text",
    [
        "{head}\r\n\r\n no_grad\tany  right 2026-01-31 \r\n",
        "\ufeff{head}\nno_grad any right 2026-01-31",
        "Your progress in these lessons, in the words of another version.\nno_grad any right 2026-01-31\n",
    ],
)
def test_what_an_editor_or_another_version_does_is_no_damage(folder, text):
    (folder / progress.FILE).write_bytes(text.format(head=progress.HEAD).encode())
    assert progress.standing("no_grad") == {"any": "right"} and progress.record("no_grad", "two", "right") is None
    assert len(lines(folder)) == 2 and not (folder / "progress.damaged.txt").exists()


@pytest.mark.parametrize("emptied", [Path.unlink, lambda path: path.write_bytes(b"")], ids=["removed", "emptied"])
def test_who_removes_the_file_begins_anew(folder, emptied):
    progress.record("no_grad", "any", "right")
    emptied(folder / progress.FILE)
    assert progress.standing("no_grad") == {} and progress.record("no_grad", "two", "right") is None
    assert progress.standing("no_grad") == {"two": "right"}


def test_what_cannot_be_written_is_told_once_and_nothing_else_stops(folder, monkeypatch):
    progress.record("no_grad", "any", "right")
    before = (folder / progress.FILE).read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write", full)
    told = progress.record("no_grad", "two", "right")
    assert told == "Your progress is not kept: progress.txt cannot be written (No space left on device)."
    assert progress.record("no_grad", "three", "right") is None, "told already"
    assert (folder / progress.FILE).read_bytes() == before
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with files.locked(folder / progress.LOCK, 1):
        assert "this verdict is not kept" in progress.record("no_grad", "four", "right")
        assert progress.record("no_grad", "any", "right") is None, "what is there needs no lock"


def test_a_kill_in_the_middle_leaves_it_as_it_was_and_the_next_verdict_is_kept(folder, killed):
    progress.record("no_grad", "any", "right")
    before = (folder / progress.FILE).read_bytes()
    (folder / lab.START).write_text("<!-- lessons --><!-- lessons -->")
    code = f"progress.add(Path({str(folder)!r}), {{('no_grad', 'two'): progress.Entry('right', '2026-01-31')}})"
    killed(code, "from pathlib import Path\nfrom helpers.lessons import progress")
    assert (folder / progress.FILE).read_bytes() == before
    assert progress.record("no_grad", "three", "right") is None and len(lines(folder)) == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_what_two_kernels_write_at_once_is_merged(folder):
    children = []
    for who in ("one", "two", "three"):
        if (pid := os.fork()) == 0:
            try:
                told = [progress.record(who, f"name-{n}", "right") for n in range(25)]
                os._exit(any(told))
            finally:
                os._exit(2)
        children.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0, 0, 0]
    assert len(lines(folder)) == 75 and not [*folder.glob(".*.saving"), *folder.glob("*.damaged*")]


# The start page


def cell(id, source, kind="code"):
    return {"cell_type": kind, "id": id, "metadata": {}, "source": source} | (
        {"outputs": [], "execution_count": None} if kind == "code" else {}
    )


def lesson(path, minutes, predictions, exercises):
    cells = [cell("title", f"# What is {path.stem}?\n\nAbout {minutes} minutes: some of them.", "markdown")]
    for name in predictions:
        cells.append(cell(f"{name}-heading", f"## About `{name}()`\n\n```python\n# no heading\n```", "markdown"))
        cells.append(cell(name, f'guess = ...\npredict("{name}", guess, 1)\nprint(1)'))
    for name, about in exercises.items():
        hint = "<details>\n<summary>It fails</summary>\n\nSo?\n\n</details>"
        cells.append(cell(f"exercise-{name}", f"### Task {name}: (now)\n\nDo it.\n\n{hint}", "markdown"))
        effort = f"# difficulty 1 of 5, importance 2 of 5, about {about} minutes"
        cells.append(cell(f"answer-{name}", f'{effort}\ncheck("{name}", answer)'))
    notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(merging.written(notebook))


@pytest.fixture
def page(folder):
    """Two lessons, and the page as it is published."""
    lesson(folder / overview.PUBLISHED / "01_one.ipynb", 45, ["a", "b", "c"], {"x": 5, "y": 10})
    lesson(folder / overview.PUBLISHED / "02_two.ipynb", 20, [], {"z": 1})
    (folder / lab.START).write_bytes((lessons.FOLDER / lab.START).read_bytes())
    overview.refresh(folder)
    return folder / lab.START


def shown(page):
    _, text, _ = page.read_text("utf-8").split("<!-- lessons -->")
    *rows, last = text.strip().splitlines()
    return [row.split(" | ")[-2:] for row in rows if re.match(r"\| \[\d", row)], last


def test_the_start_page_says_what_is_right_what_is_left_and_what_is_next(folder, page):
    assert shown(page) == (
        [["0 of 5", "45 |"], ["0 of 1", "20 |"]],
        "**0 of 6 right**, about 65 minutes left. Next: lesson [01 one](01_one.ipynb).",
    )
    progress.record("one", "a", "not yet")
    progress.record("one", "b", "right")
    rows, last = shown(page)
    assert rows == [["1 of 5", "25 |"], ["0 of 1", "20 |"]], "two guesses of three ventured: 10 of 30 minutes to read"
    task = "[Task x: (now)](01_one.ipynb#Task-x:-(now)), about 5 minutes, in lesson [01 one](01_one.ipynb)"
    assert last == f"**1 of 6 right**, about 45 minutes left. Next: {task}."
    progress.record("one", "x", "right")
    progress.record("one", "y", "not yet")
    assert shown(page)[0][0] == ["2 of 5", "20 |"] and "[Task y: (now)]" in shown(page)[1]
    for name in ("a", "c", "y"):
        progress.record("one", name, "right")
    assert shown(page) == (
        [["5 of 5", "0 |"], ["0 of 1", "20 |"]],
        "**5 of 6 right**, about 20 minutes left. Next: lesson [02 two](02_two.ipynb).",
    )
    progress.record("two", "z", "right")
    progress.record("gone", "old", "right")
    assert shown(page)[1] == "**6 of 6 right**, about 0 minutes left. That is all of it."


def test_what_the_learner_wrote_on_the_page_stays(folder, page):
    text = page.read_text("utf-8")
    page.write_text(f"My first line.\n\n{text}\nMy last line.", "utf-8")
    progress.record("one", "a", "right")
    assert shown(page)[0][0] == ["1 of 5", "35 |"]
    text = page.read_text("utf-8")
    assert text.startswith("My first line.\n\n# Start here") and text.endswith("My last line.")
    for theirs in (b"all mine", b"<!-- lessons -->\nhalf", b"\xff\xfe <!-- lessons --><!-- lessons --> \xff"):
        page.write_bytes(theirs)
        assert progress.record("one", theirs.hex(), "right") is None
        assert overview.plain(page.read_bytes()) == overview.plain(theirs)
    page.unlink()
    assert progress.record("one", "c", "right") is None and not page.exists()


def test_a_page_that_cannot_be_written_costs_no_verdict(folder, page, monkeypatch):
    monkeypatch.setattr(overview, "refresh", lambda folder: 1 / 0)
    assert progress.record("one", "a", "right") is None and progress.standing("one") == {"a": "right"}


def test_a_verdict_is_kept_at_once(folder, monkeypatch):
    monkeypatch.setattr(lab, "running", lambda folder: None)
    lab.update(folder, source=lessons.FOLDER)
    begun = time.process_time()
    for n in range(5):
        progress.record("requires_grad", f"name-{n}", "right")
    new = (time.process_time() - begun) / 5
    begun = time.process_time()
    for n in range(50):
        progress.record("requires_grad", f"name-{n % 5}", "right")
    old = (time.process_time() - begun) / 50
    print(f"a new verdict {new * 1000:.1f} ms, an old one {old * 1000:.2f} ms")
    assert new < 0.15 and old < 0.01


def test_the_lessons_are_read_as_they_are():
    found = {lesson.name: lesson for lesson in overview.lessons(lessons.FOLDER)}
    assert [key.notebook(name).name for name in found] == sorted(path.name for path in lessons.FOLDER.glob("*.ipynb"))
    for name, lesson in found.items():
        declared = importlib.import_module(f"helpers.lessons.exercises.{name}").lesson
        assert [*lesson.exercises] == [*declared.exercises] and {*lesson.predictions} == {*declared.predictions}
        assert all(task.minutes > 0 for task in lesson.exercises.values())
        minutes = sum(task.minutes for task in lesson.exercises.values())
        assert lesson.question and 0 < minutes < lesson.minutes and overview.left(lesson, {}) == lesson.minutes
        cells = lessons.read(lessons.FOLDER / lesson.file)["cells"]
        headings = re.findall(r"^#+ (.+)", "\n".join(c["source"] for c in cells if c["cell_type"] == "markdown"), re.M)
        for task in (*lesson.exercises.values(), *lesson.predictions.values()):
            assert task.title in headings and task.place.startswith(f"{lesson.file}#"), task


def test_the_published_page_is_true_of_what_there_is():
    text = (lessons.FOLDER / lab.START).read_text("utf-8")
    assert overview.filled(text, {"lessons": "new", "put aside": "old"}) != text
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert (lessons.FOLDER / link).is_file(), link
    assert f"`{lab.COMMAND}`" in text and f"`{lab.COMMAND} --fresh 03`" in text and f"`{progress.FILE}`" in text
    assert "notebooks/START\n" in (ROOT / "docs" / "contents.md").read_text("utf-8")
    assert lab.START not in [path.name for path in lessons.paths()]
