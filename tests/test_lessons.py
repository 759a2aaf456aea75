"""The rules for notebooks: the lessons keep them, and every planted fault is refused by name."""

import base64
import copy
import io
import json
import os
import re
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from jupyter_client.connect import LocalPortCache
from nbval.kernel import CURRENT_ENV_KERNEL_NAME, RunningKernel
from PIL import Image

from tests.tools import lessons, mutate

ROOT = Path(__file__).parent.parent
WORDS = "Figure with 1 panel."


@pytest.mark.parametrize("path", lessons.paths(), ids=lambda path: path.stem)
def test_a_lesson_keeps_the_rules(path):
    assert lessons.faults(path) == []


@pytest.mark.parametrize("path", list(filter(lessons.is_lesson, lessons.paths())), ids=lambda path: path.stem)
def test_a_lesson_has_the_form_of_one(path):
    assert lessons.form_faults(path) == []


def test_there_are_lessons_and_what_jupyter_keeps_beside_them_is_none(tmp_path, monkeypatch):
    assert lessons.paths()
    monkeypatch.setattr(lessons, "FOLDER", tmp_path)
    for name in ("01_a.ipynb", ".01_a.ipynb", ".ipynb_checkpoints/01_a-checkpoint.ipynb", "solutions/01_a.ipynb",
                 "solutions/.ipynb_checkpoints/01_a-checkpoint.ipynb"):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    assert [path.relative_to(tmp_path).as_posix() for path in lessons.paths()] == ["01_a.ipynb", "solutions/01_a.ipynb"]


def png(software="Matplotlib 3.11.2, FreeType 2.14.3", shade=0):
    from PIL.PngImagePlugin import PngInfo

    info, buffer = PngInfo(), io.BytesIO()
    info.add_text("Software", software)
    Image.new("L", (4, 4), shade).save(buffer, "png", pnginfo=info)
    return base64.b64encode(buffer.getvalue()).decode()


def code(id, source, outputs=(), tags=(), count=None):
    metadata = {"tags": list(tags)} if tags else {}
    cell = {"cell_type": "code", "id": id, "metadata": metadata, "source": source, "outputs": list(outputs)}
    return {**cell, "execution_count": count}


def stream(text):
    return {"output_type": "stream", "name": "stdout", "text": text}


def display(**data):
    return {"output_type": "display_data", "metadata": {}, "data": {key.replace("_", "/"): data[key] for key in data}}


def shown():
    """A picture and, below it, its words, folded."""
    picture = display(image_png=png(), text_plain=WORDS) | {"metadata": {"image/png": {"width": 2}}}
    return [picture, display(text_html=f"<details><summary>In words</summary>{WORDS}</details>", text_plain=WORDS)]


def good():
    error = {"output_type": "error", "ename": "ValueError", "evalue": "no", "traceback": ["ValueError: no"]}
    return {
        "cells": [
            {"cell_type": "markdown", "id": "title", "metadata": {}, "source": "# A title\n\n![a leaf](leaf.png)"},
            code("two", "print(2)", [stream("2\n")], count=1),
            code("fails", "raise ValueError('no')", [error], ["raises-exception"], count=2),
            code("drawn", "show(figure)", shown(), count=3),
        ],
        "metadata": copy.deepcopy(lessons.METADATA),
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def put(path, notebook):
    path.write_text(lessons.written(notebook), "utf-8")
    return path


def test_a_good_notebook_has_no_fault(tmp_path):
    assert lessons.faults(put(tmp_path / "good.ipynb", good())) == []


def edit(cell, **changes):
    return lambda notebook: notebook["cells"][cell].update(changes)


def say(text):
    return edit(1, outputs=[stream(text)])


FAULTS = {
    "never executed": (1, edit(1, execution_count=None), "never executed"),
    "executed twice": (1, edit(1, execution_count=7), "out of order: number 7, where 1 is due"),
    "executed before the one above": (2, edit(2, execution_count=1), "out of order"),
    "skip comment": (1, edit(1, source="# NBVAL_SKIP\nprint(2)"), "NBVAL_SKIP hides"),
    "ignore comment": (1, edit(1, source="print(2)\n  ## NBVAL_IGNORE_OUTPUT"), "NBVAL_IGNORE_OUTPUT hides"),
    "old ignore comment": (1, edit(1, source="# PYTEST_VALIDATE_IGNORE_OUTPUT"), "hides the cell"),
    "raises comment": (1, edit(1, source="# NBVAL_RAISES_EXCEPTION\nprint(2)"), "NBVAL_RAISES_EXCEPTION hides"),
    "skip tag": (1, edit(1, metadata={"tags": ["nbval-skip"]}), "nbval-skip hides"),
    "ignore tag": (1, edit(1, metadata={"tags": ["nbval-ignore-output"]}), "nbval-ignore-output hides"),
    "figure without words": (
        3,
        edit(3, outputs=[display(image_png=png(), text_plain="<Figure size 640x480 with 1 Axes>")]),
        "a figure without words",
    ),
    "figure without text": (3, edit(3, outputs=[display(image_png=png())]), "a figure without words"),
    "figure whose words are hidden": (3, edit(3, outputs=shown()[:1]), "without its words, folded"),
    "figure with the words of another": (
        3,
        edit(3, outputs=[shown()[0], display(text_html="<details>a</details>", text_plain="a")]),
        "without its words, folded",
    ),
    "figure whose words are not folded": (3, edit(3, outputs=[shown()[0], stream(WORDS)]), "without its words, folded"),
    "figure as svg": (3, edit(3, outputs=[{**display(text_plain=WORDS), "data": {"image/svg+xml": "<svg/>"}}]), "PNG"),
    "tag without an error": (2, edit(2, outputs=[]), "no stored error"),
    "error without a tag": (2, edit(2, metadata={}), "the error ValueError, but no tag"),
    "address": (1, say("<object at 0x7f8a2c3d4e50>"), "an address in an output: '0x7f8a2c3d4e50'"),
    "path": (1, say("saved to /home/me/net.pt"), "a path in an output: '/home/me/net.pt'"),
    "path in the home folder": (1, say("saved to ~/net.pt"), "a path in an output"),
    "windows path": (1, say("C:\\Users\\me"), "a path in an output"),
    "time": (1, say("took 125 ms"), "a time in an output: '125 ms'"),
    "clock": (1, say("done at 12:34:56"), "a time in an output"),
    "date": (1, say("on 2026-01-31"), "a time in an output"),
    "progress bar": (1, say(" 50%|#####     | 5/10"), "a progress bar"),
    "full digits": (1, say("loss 0.69314718"), "more than 4 decimals"),
    "address in a result": (1, edit(1, outputs=[display(text_plain="f at 0x7f8a2c3d4e50")]), "an address"),
    "path in an error": (
        2,
        edit(2, outputs=[{**good()["cells"][2]["outputs"][0], "evalue": "/tmp/x/y", "traceback": []}]),
        "a path in an output",
    ),
    "id missing": (1, lambda notebook: notebook["cells"][1].pop("id"), "the id is missing"),
    "id twice": (2, edit(2, id="two"), "the id is there twice"),
    "random id": (1, edit(1, id="3f2a9c1d"), "not a readable one"),
    "long random id": (1, edit(1, id="3f2a9c1d-0b1c-4d5e-8f90-123456789abc"), "not a readable one"),
    "remote image": (0, edit(0, source="![a leaf](https://example.org/leaf.png)"), "is remote"),
    "image without words": (0, edit(0, source="![](leaf.png)"), "no alternative text"),
    "tag without words": (0, edit(0, source='<img src="leaf.png">'), "no alternative text"),
    "tag with empty words": (0, edit(0, source='<img alt="" src="leaf.png">'), "no alternative text"),
    "remote tag": (0, edit(0, source="<img alt='a leaf' src='//example.org/leaf.png'>"), "is remote"),
    "image in an output": (
        1,
        edit(1, outputs=[display(text_html="<img src='leaf.png'>", text_plain="x")]),
        "no alternative",
    ),
    "13 lines": (1, edit(1, source="\n".join(["print(2)"] * 13)), "13 lines, more than 12"),
    "89 characters": (1, edit(1, source="#" * 89), "a line of 89 characters, more than 88"),
    "cell metadata": (1, edit(1, metadata={"collapsed": True}), "metadata that a save drops: collapsed"),
    "tag that folds on the site only": (
        1,
        edit(1, metadata={"tags": ["hide-output"]}),
        "the tag has no jupyter beside",
    ),
    "fold without its tag": (1, edit(1, metadata={"jupyter": {"outputs_hidden": True}}), "a save drops: jupyter"),
    "timing metadata": (1, edit(1, metadata={"execution": {"iopub.execute_input": "now"}}), "a save drops: execution"),
    "output metadata": (
        3,
        lambda notebook: notebook["cells"][3]["outputs"][0].update(metadata={"a": 1}),
        "save drops: a",
    ),
    "height of a picture": (
        3,
        lambda notebook: notebook["cells"][3]["outputs"][0]["metadata"]["image/png"].update(height=2),
        "save drops: image/png.height",
    ),
    "long traceback": (
        2,
        lambda notebook: notebook["cells"][2]["outputs"][0].update(traceback=["File x", "ValueError: no"]),
        "a traceback that is not cut",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_named_with_file_and_cell(name, tmp_path):
    cell, plant, told = FAULTS[name]
    notebook = good()
    plant(notebook)
    path = tmp_path / "lesson.ipynb"
    path.write_text(json.dumps(notebook), "utf-8")
    where = notebook["cells"][cell].get("id", cell)
    assert any(f"lesson.ipynb, cell {where!r}" in fault and told in fault for fault in lessons.faults(path))


NOTEBOOK_FAULTS = {
    "another kernel": (
        lambda notebook: notebook["metadata"]["kernelspec"].update(name="conda"),
        "the kernel is 'conda'",
    ),
    "no kernel": (lambda notebook: notebook["metadata"].pop("kernelspec"), "the kernel is None"),
    "metadata": (lambda notebook: notebook["metadata"].update(widgets={}), "metadata that a save drops: widgets"),
    "version": (
        lambda notebook: notebook["metadata"]["language_info"].update(version="3.11.7"),
        "a save drops: language_info.version",
    ),
    "format without ids": (lambda notebook: notebook.update(nbformat_minor=4), "not of format 4.5"),
}


@pytest.mark.parametrize("name", NOTEBOOK_FAULTS)
def test_a_fault_of_the_whole_notebook_is_named(name, tmp_path):
    plant, told = NOTEBOOK_FAULTS[name]
    notebook = good()
    plant(notebook)
    path = tmp_path / "lesson.ipynb"
    path.write_text(json.dumps(notebook), "utf-8")
    assert any("lesson.ipynb" in fault and told in fault for fault in lessons.faults(path))


@pytest.mark.parametrize("text", ["{", json.dumps(good()) + "x"])
def test_a_file_that_is_not_json_is_named(text, tmp_path):
    path = tmp_path / "lesson.ipynb"
    path.write_text(text)
    assert lessons.faults(path)[0].startswith("lesson.ipynb: not JSON")


def test_another_layout_of_the_same_notebook_is_refused(tmp_path):
    path = tmp_path / "lesson.ipynb"
    path.write_text(json.dumps(good()))
    assert lessons.faults(path) == ["lesson.ipynb: not in the form that 'make save' writes"]


# What runs a kernel


def unsaved(*sources):
    notebook = good()
    notebook["cells"] = [code(f"cell-{n}", source) for n, source in enumerate(sources)]
    return notebook


DRAW = "import matplotlib.pyplot as plt\nfrom helpers.lessons.figures import show\nfigure, ax = plt.subplots()\n"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A notebook as an editor leaves it, saved once: random and missing ids, foreign metadata, an error, a figure."""
    notebook = unsaved("print(2)", "1 / 0", DRAW + "_ = ax.plot([0, 1], [0, 2], label='slope')\nshow(figure)", "3")
    notebook["metadata"] = {"kernelspec": {"name": "conda"}, "widgets": {}}
    notebook["cells"][0]["id"] = "3f2a9c1d"
    del notebook["cells"][3]["id"]
    notebook["cells"][1]["metadata"] = {"tags": ["raises-exception"], "collapsed": True}
    path = tmp_path_factory.mktemp("saved") / "lesson.ipynb"
    path.write_text(json.dumps(notebook))
    lessons.save(path)
    return path


def test_what_is_saved_keeps_the_rules(saved):
    assert lessons.faults(saved) == []
    cells = json.loads(saved.read_text())["cells"]
    assert [cell["id"] for cell in cells] == ["code-print-2", "cell-1", "cell-2", "code-3"]
    assert cells[1]["outputs"][0]["traceback"] == ["ZeroDivisionError: division by zero"]


def test_a_second_save_changes_nothing(saved):
    before = saved.read_bytes()
    lessons.save(saved)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["lesson.ipynb"]


def test_a_failing_cell_is_named_and_the_file_left_as_it_was(tmp_path, capsys):
    path = put(tmp_path / "lesson.ipynb", unsaved("print(2)", "undefined"))
    before = path.read_bytes()
    assert lessons.main([str(path)]) == 1
    told = capsys.readouterr().out
    assert "lesson.ipynb: left as it is" in told and "'undefined' is not defined" in told
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_cell_that_kills_its_kernel_is_named_by_a_save(tmp_path, capsys):
    path = put(tmp_path / "lesson.ipynb", unsaved("print(2)", "import os; os._exit(1)", "print(3)"))
    before = path.read_bytes()
    assert lessons.main([str(path)]) == 1
    assert capsys.readouterr().out == "lesson.ipynb: left as it is: the kernel died in cell 'cell-1'\n"
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_told_and_the_file_left_as_it_was(tmp_path, capsys, full_disk):
    path = put(tmp_path / "lesson.ipynb", unsaved("print('long\\n' * 100_000)"))
    before = path.read_bytes()
    assert lessons.main([str(path)]) == 1
    assert "lesson.ipynb: left as it is: [Errno 27] File too large" in capsys.readouterr().out
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_killed_save_leaves_the_file_as_it_was_and_the_next_one_works(tmp_path, killed):
    path = put(tmp_path / "lesson.ipynb", unsaved("print(2)"))
    before = path.read_bytes()
    killed(f"lessons.main([{str(path)!r}])", "from tests.tools import lessons")
    assert path.read_bytes() == before
    (left,) = set(tmp_path.iterdir()) - {path}
    assert subprocess.run(["git", "check-ignore", "-q", "--no-index", left.name], cwd=ROOT).returncode == 0
    assert lessons.main([str(path)]) == 0 and lessons.faults(path) == []


def figure(cells):
    return cells[2]["outputs"][0]["data"]


def strict_nbval(*words, **variables):
    """What pytest with this project's own settings prints."""
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider", "-q"]
    command += ["-p", "no:hypothesispytest"]  # as early.py does for the lessons
    command += ["-c", ROOT / "pyproject.toml", "--rootdir", ROOT, *words]
    env = os.environ | variables
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True).stdout


def replace(cell, old, new):
    return lambda cells: cells[cell].update(source=cells[cell]["source"].replace(old, new))


def rewrite(cell, source, *outputs):
    return lambda cells: cells[cell].update(source=source, outputs=list(outputs))


def add(cell, line):
    return lambda cells: cells[cell].update(source=f"{cells[cell]['source']}\n{line}")


SPAWN = """\
import multiprocessing
with multiprocessing.get_context("spawn").Pool(2) as pool:
    print(pool.map(abs, [-1, -2]))"""
TOLD = stream("○ not attempted: sum\n")


def predict(third, fourth, said):
    """A prediction in the third cell, what the third and the fourth cell do after it, and what the text says is so."""

    def plant(cells):
        sentences = {"predictions": {"sum": {"beliefs": [{"guess": 3, "says": "One more."}]}}}
        source = f"from helpers.lessons.exercises import Lesson\nlesson, seen = Lesson('sums', {sentences}), 2"
        rewrite(0, source)(cells)
        rewrite(2, f'predict = lesson.predict\npredict("sum", ..., seen)\n{third}', TOLD)(cells)
        rewrite(3, fourth)(cells)
        cells.insert(3, {"cell_type": "markdown", "id": "after", "metadata": {}, "source": f"{lessons.AFTER}`{said}`."})

    return plant


# What is changed, and the cell that must fail.
PLANTED = {
    "end: the cell hangs": (add(3, "import time; time.sleep(600)"), 3),  # first, as it takes longest
    "nothing": (lambda cells: None, None),
    "output": (lambda cells: cells[0]["outputs"][0].update(text="3\n"), 0),
    "result": (lambda cells: cells[3].update(source="4"), 3),
    "error": (lambda cells: cells[1]["outputs"][0].update(evalue="by two"), 1),
    "slope": (replace(2, "[0, 2]", "[0, 3]"), 2),
    "label": (replace(2, "'slope'", "'line'"), 2),
    "color, which only the picture shows": (replace(2, "label=", "color='k', label="), 2),
    "picture of another version": (lambda cells: figure(cells).update({"image/png": png("Matplotlib 3.9.0")}), None),
    "error that is no more": (replace(1, "1 / 0", "pass"), 1),
    "error that is new": (replace(0, "(2)", "(two)"), 0),
    "import": (replace(2, "import matplotlib.pyplot as plt\n", ""), 2),
    "line more": (add(0, "print(3)"), 0),
    "line of stderr": (add(0, "import sys; print('unasked', file=sys.stderr)"), 0),
    "progress bar, which comes by the clock": (add(0, "from tqdm import tqdm; bar = [*tqdm([1])]"), None),
    "stream": (lambda cells: cells[0]["outputs"][0].update(name="stderr"), 0),
    "order": (rewrite(3, "display(1, 2)", display(text_plain="2"), display(text_plain="1")), 3),
    "order of kinds, which says nothing": (lambda cells: cells[2]["outputs"].reverse(), None),
    "end: the kernel dies": (add(3, "import os, tempfile; tempfile.mkdtemp(); os._exit(1)"), 3),
    "worker: two processes of its own": (rewrite(3, SPAWN, stream("[1, 2]\n")), None),
    "prediction: what is so, at once again": (predict("seen += 1", "seen = 2", "2"), 2),
    "prediction: what the text says is so": (predict("", "", "3"), 2),
    "prediction: what is so, after the end": (predict("", "seen += 1", "2"), 2),
}
RUNNERS = {"nbval": [], "make quick": ["-p", "tests.tools.fast"]}


def places():
    """In which notebook each change is, and from which cell on: in one for all, but for those that need a kernel."""
    together = 0
    for number, name in enumerate(PLANTED):
        if ":" in name or name in ("nothing", "import"):
            yield name, (f"alone-{number}", 0)
        else:
            yield name, ("together", 4 * together)
            together += 1


PLACES = dict(places())


@pytest.fixture(scope="module", autouse=True)
def verdicts_begin_early(request):
    """Before the first test here, so that the other tests run while two runners wait for the cell that hangs."""
    if any("verdict" in getattr(item, "fixturenames", ()) for item in request.session.items):  # a cell has none
        request.getfixturevalue("verdicts")


@pytest.fixture(scope="module")
def verdicts(saved, tmp_path_factory):
    """What strict nbval, with this project's own settings, says of the saved notebook after each change, and leaves.

    Both runners at once: each waits for the cell that hangs.
    """
    folder, notebooks = tmp_path_factory.mktemp("planted"), {}
    for name, (file, first) in PLACES.items():
        notebook = lessons.read(saved)
        PLANTED[name][0](notebook["cells"])
        for cell in notebook["cells"]:
            cell["id"] = f"{cell['id']}-{first}"
        notebooks.setdefault(file, notebook | {"cells": []})["cells"] += notebook["cells"]
    for file, notebook in notebooks.items():
        put(folder / f"{file}.ipynb", notebook)

    def told(runner):
        # That the second runner is not the first again: its kernels are forked from a process that holds torch, and
        # yet have the threads that they would have had.
        threads = 1 + (runner == "make quick")
        held = unsaved("import sys; held = 'torch' in sys.modules\nimport torch\nprint(held, torch.get_num_threads())")
        held["cells"][0].update(execution_count=1, outputs=[stream(f"{threads == 2} {threads}\n")])
        held = put(tmp_path_factory.mktemp(runner.replace(" ", "-")) / "held.ipynb", held)
        temporary = tmp_path_factory.mktemp("temporary")
        variables = {"OMP_NUM_THREADS": str(threads), "TMPDIR": str(temporary)}
        said = strict_nbval(*RUNNERS[runner], "--nbval-cell-timeout=40", folder, held, **variables)
        return said, [path.name for path in temporary.iterdir()]

    with ThreadPoolExecutor() as pool:
        yield {runner: pool.submit(told, runner) for runner in RUNNERS}


@pytest.fixture(scope="module", params=RUNNERS)
def verdict(request, verdicts):
    if request.param == "make quick" and sys.platform != "linux":
        pytest.skip("forks on Linux only")
    told, left = verdicts[request.param].result()
    failed = sum(cell is not None for _, cell in PLANTED.values())
    more = 4 * sum(name.startswith("prediction") for name in PLANTED)  # see with_predictions in conftest.py
    assert f"{failed} failed, {4 * len(PLANTED) + more - failed + 1} passed" in told, told
    return told, left


def test_a_file_that_is_no_notebook_is_named_in_one_line(tmp_path):
    (tmp_path / "half.ipynb").write_text(json.dumps(good())[:300])
    (tmp_path / "old.ipynb").write_text(
        json.dumps({"nbformat": 3, "nbformat_minor": 0, "metadata": {}, "worksheets": []})
    )
    (tmp_path / "empty.ipynb").write_text(json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}}))
    told = strict_nbval("-n", "0", tmp_path)
    assert "Traceback" not in told and "3 errors" in told, told
    assert re.search(r"^half.ipynb: not JSON: .*line 1 column 299", told, re.M), told
    assert re.findall(r"^(\w+).ipynb: not a notebook of format 4$", told, re.M) == ["empty", "old"], told


def test_a_dead_kernel_is_noticed_and_its_cell_named(tmp_path):
    put(tmp_path / "dies.ipynb", unsaved("2", "import os; os._exit(1)", "3", "4"))
    told = strict_nbval("-n", "0", tmp_path)  # not by the limit of 600 seconds: that has another message
    assert "Cell 1: The kernel died in this cell." in told and "1 failed, 1 passed, 2 xfailed" in told, told


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a kernel is met at ports")
def test_a_port_that_another_process_was_faster_to_take_stops_no_kernel(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as other:
        monkeypatch.setattr(LocalPortCache, "find_available_port", lambda *_: other.getsockname()[1])
        kernels = [RunningKernel(CURRENT_ENV_KERNEL_NAME, startup_timeout=60) for _ in range(2)]
    assert all(kernel.is_alive() for kernel in kernels)
    for kernel in kernels:
        kernel.stop()


def test_the_bench_runs_each_lesson_as_a_kernel_begins(tmp_path):
    one = put(tmp_path / "one.ipynb", unsaved("import torch", "torch.set_default_dtype(torch.float64)"))
    two = put(tmp_path / "two.ipynb", unsaved("import torch", "assert torch.ones(1).dtype == torch.float32"))
    code = f"from tests.tools.bench_notebooks import Path, plain; plain([Path({str(one)!r}), Path({str(two)!r})])"
    done = subprocess.run([sys.executable, "-c", code], cwd=lessons.FOLDER.parent, capture_output=True, text=True)
    assert done.returncode == 0, done
    wall, _, imported, _ = map(float, done.stdout.split())
    assert 0 < wall < imported


def test_survivors_are_of_cells_that_there_are():
    for lesson, survivors in mutate.REASONS.items():
        cells = {cell["id"] for cell in lessons.read(lessons.FOLDER / f"{lesson}.ipynb")["cells"]}
        assert {name.partition(":")[0] for name in survivors} <= cells, lesson


@pytest.mark.skipif(os.name != "posix", reason="forks")
def test_mutants_that_no_output_notices_are_named_and_no_lesson_touches_the_next(tmp_path):
    lines = "import torch", "torch.set_default_dtype(torch.float64)", "torch.tensor(1.0).dtype"
    for name in ("one", "two"):  # in "two" the second line changes nothing if "one" is not forgotten
        put(tmp_path / f"{name}.ipynb", unsaved(*lines))
    put(tmp_path / "idle.ipynb", unsaved("print(1)", "idle = 2"))
    command = [
        sys.executable,
        "-m",
        "tests.tools.mutate",
        *(tmp_path / f"{name}.ipynb" for name in ("one", "two", "idle")),
    ]
    done = subprocess.run(command, cwd=lessons.FOLDER.parent, capture_output=True, text=True)
    *told, survivor, reason = done.stdout.splitlines()
    assert told == ["one.ipynb: 3 of 3 noticed", "two.ipynb: 3 of 3 noticed", "idle.ipynb: 1 of 2 noticed"], done
    assert "idle = 2" in survivor and "NO REASON" in reason and done.returncode == 1


@pytest.mark.parametrize("name", PLANTED)
def test_strict_nbval_notices_a_changed(name, verdict):
    (file, first), cell, (told, _) = PLACES[name], PLANTED[name][1], verdict
    failed = map(int, re.findall(rf"FAILED (?:\S*/)?{file}\.ipynb::Cell (\d+)", told))
    assert [at - first for at in failed if first <= at < first + 4] == ([] if cell is None else [cell]), told


def test_what_came_on_stderr_is_shown(verdict):
    told, _ = verdict
    assert "\nstderr:\nunasked\n" in told, told  # twice where CI is set: pytest's summary repeats it


def test_kernels_leave_nothing_behind_however_they_end(verdict):
    assert verdict[1] == []
