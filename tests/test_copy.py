"""The learner's own copy: made, brought up to date, and no line of theirs lost, whatever happens in between."""

import contextlib
import copy
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
import tomllib
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.lessons import lab, merging, overview
from tests.tools import lessons

ROOT = Path(__file__).parent.parent
LESSON, OTHER = "03_parameters.ipynb", "05_optimizers.ipynb"
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@pytest.fixture(scope="module")
def as_published(tmp_path_factory):
    """The lessons as they are now, once: nothing below may touch those in the checkout."""
    return shutil.copytree(lessons.FOLDER, tmp_path_factory.mktemp("now") / "notebooks")


@pytest.fixture(scope="module")
def two_lessons(as_published, tmp_path_factory):
    """Two lessons that have all KINDS of cells, the solutions of one, the index and the start page."""
    good = [path for path in sorted(as_published.glob("*.ipynb")) if all(find(read(path)["cells"], k) for k in KINDS)]
    folder = tmp_path_factory.mktemp("two") / "source"
    (folder / "solutions").mkdir(parents=True)
    for path, name in [(good[0], LESSON), (good[1], OTHER)]:
        shutil.copy(path, folder / name)
    for name in ("INDEX.md", lab.START):
        shutil.copy(as_published / name, folder / name)
    solution = as_published / "solutions" / f"{good[0].name[:2]}_solutions.ipynb"
    shutil.copy(solution, folder / "solutions" / "03_solutions.ipynb")
    return folder


@pytest.fixture
def source(two_lessons, tmp_path):
    """They, to be changed as a new version would."""
    return shutil.copytree(two_lessons, tmp_path / "source")


@pytest.fixture
def folder(tmp_path, source, monkeypatch):
    """A copy after the first start."""
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    assert lab.update(tmp_path / "mine", source=source) == []
    return tmp_path / "mine"


def read(path):
    notebook = merging.parsed(path.read_bytes())
    assert notebook is not None, path
    return notebook


@contextlib.contextmanager
def edited(path):
    """The cells of a notebook, to be changed; by their ids where they are asked for by one."""
    notebook = read(path)
    yield notebook["cells"]
    path.write_bytes(merging.written(notebook))


KINDS = {
    "guess": lambda cell: cell["source"].startswith("guess = "),
    "answer": lambda cell: cell.get("id", "").startswith("answer-") and "\ndef answer(" in cell["source"],
    "prose": lambda cell: (
        cell["cell_type"] == "markdown" and cell["source"].count("\n\n") > 1 and cell.get("id") != "title"
    ),
    "code": lambda cell: cell.get("id") not in ("setup", "no-import") and re.match("[a-z]+ = .*\n.*\n", cell["source"]),
}


def find(cells, kind):
    return next((cell for cell in cells if KINDS[kind](cell)), None)


def the(cells, kind):
    """The first cell with a guess, an answer, prose, or code."""
    cell = find(cells, kind)
    assert cell is not None, kind
    return cell


def own(source, cell_type="code", **more):
    cell = {"id": secrets.token_hex(4), "cell_type": cell_type, "metadata": {}, "source": source} | more
    return cell | ({"outputs": [], "execution_count": None} if cell_type == "code" else {})


def printed(text):
    return [{"output_type": "stream", "name": "stdout", "text": [text]}]


def with_guess(cells):
    cell = the(cells, "guess")
    cell.update(source=cell["source"].replace("...", "'my guess'", 1), outputs=printed("my output"))


def with_answer(cells):
    cell = the(cells, "answer")
    head, *_, last = cell["source"].split("\n")
    cell.update(source=f"{head}\ndef answer(x):\n    return 'my answer'\n\n\n{last}", outputs=printed("my verdict"))


def with_own_cells(cells):
    cells.insert(cells.index(the(cells, "guess")) + 1, own("my_cell = 1"))
    cells.insert(cells.index(the(cells, "answer")), own("a note of mine", "markdown"))
    cells += [own("my_last = 1"), own("my_very_last = 1")]


def with_a_picture(cells):
    cell = the(cells, "prose")
    cell.update(
        source=cell["source"] + "\n\n![mine](attachment:mine.png)", attachments={"mine.png": {"image/png": PNG}}
    )


def with_prose(cells):
    cell = the(cells, "prose")
    cell["source"] = cell["source"].replace("\n\n", " A remark of mine.\n\nAnother.\n\n", 1)


def with_code(cells):
    cell = the(cells, "code")
    first, *rest = cell["source"].split("\n")
    cell["source"] = "\n".join(["my_line = 1", f"{first}  # mine", *rest, "my_end = 1"])


def with_all_run(cells):
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            cell.update(outputs=printed(f"run {number}"), execution_count=number + 100)


def with_all_cleared(cells):
    with_answer(cells)
    for cell in cells:
        if cell["cell_type"] == "code":
            cell.update(outputs=[], execution_count=None)


def with_moved_cells(cells):
    cells.insert(3, cells.pop(cells.index(the(cells, "answer"))))
    with_answer(cells)


def with_cut_and_pasted_cells(cells):
    with_answer(cells)
    cell = the(cells, "answer")
    cells.remove(cell)
    cells.append(cell | {"id": "12345678"})


def with_removed_cells(cells):
    cells.remove(the(cells, "prose"))
    cells.remove(the(cells, "code"))
    with_own_cells(cells)


def with_cells_of_another_kind(cells):
    cell = the(cells, "code")
    cell.update(cell_type="raw", source="my raw text")
    del cell["outputs"], cell["execution_count"]


def with_ids_lost(cells):
    with_guess(cells)
    with_own_cells(cells)
    for cell in cells:
        del cell["id"]


def with_doubled_ids(cells):
    cells.append(the(cells, "code") | {"source": "my_copy = 1"})


def with_what_lab_writes(cells):
    for cell in cells:
        cell["metadata"]["scrolled"] = True


LEARNERS = [value for name, value in list(globals().items()) if name.startswith("with_")]


def now_with_other_prose(cells):
    the(cells, "prose")["source"] += "\n\nPublished: a sentence more."


def now_with_the_same_prose_rewritten(cells):
    the(cells, "prose")["source"] = "## Published anew\n\nAnother text.\n\nAll of it."


def now_with_other_code(cells):
    cell = the(cells, "code")
    cell.update(source=cell["source"].replace(" = ", " = 1 * ") + "\npublished = 1", outputs=printed("published"))


def now_with_another_guess(cells):
    cell = the(cells, "guess")
    first, *rest = cell["source"].split("\n")
    cell["source"] = "\n".join([first + "  # published: how many?", *rest[:-1], "published = 1", *rest[-1:]])


def now_with_another_skeleton(cells):
    cell = the(cells, "answer")
    cell["source"] = cell["source"].replace("def answer(", "def answer(published, ").replace("# ", "# published ", 1)


def now_with_an_exercise_less(cells):
    cells.remove(the(cells, "answer"))
    cells.remove(the(cells, "code"))


def now_with_cells_more(cells):
    cells.insert(cells.index(the(cells, "guess")) + 1, own("published = 1", id="new-one"))
    cells.insert(cells.index(the(cells, "answer")), own("published", "markdown", id="new-two"))
    cells.append(own("published = 2", id="new-three"))


def now_with_other_ids(cells):
    the(cells, "guess")["id"] = "another-guess"
    cell = the(cells, "answer")
    cell.update(id="answer-another", source=cell["source"] + "  # published")


def now_in_another_order(cells):
    cells[5:15] = cells[14:4:-1]


def now_with_other_outputs(cells):
    for cell in cells:
        if cell["cell_type"] == "code":
            cell.update(outputs=printed("published"), execution_count=None)


def now_all_different(cells):
    cells[:] = [own(f"published = {n}", id=f"new-{n}") for n in range(5)]


def now_under_another_name(cells):
    """The file is renamed, see below."""


def now_without_this_lesson(cells):
    """The file is removed, see below."""


VERSIONS = [value for name, value in list(globals().items()) if name.startswith("now_")]


def publish(source, version):
    with edited(source / LESSON) as cells:
        version(cells)
    if version is now_under_another_name:
        (source / LESSON).rename(source / "09_what_is_a_parameter.ipynb")
    if version is now_without_this_lesson:
        (source / LESSON).unlink()


def lines(notebook):
    return {line for cell in notebook["cells"] for line in cell["source"].split("\n")}


def everything(folder):
    """Every line, and every picture, that a learner can find in their folder."""
    found = set()
    for path in folder.rglob("*.ipynb"):
        if not path.is_relative_to(folder / lab.KEPT):
            notebook = read(path)
            found |= lines(notebook) | {name for cell in notebook["cells"] for name in cell.get("attachments", {})}
    return found


def theirs(folder):
    """What a learner wrote into their copy of the lesson."""
    mine, base = read(folder / LESSON), read(folder / lab.BASES / LESSON)
    return lines(mine) - lines(base), {name for cell in mine["cells"] for name in cell.get("attachments", {})}


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.__name__)
@pytest.mark.parametrize("learner", LEARNERS, ids=lambda learner: learner.__name__)
def test_no_line_is_lost(folder, source, learner, version):
    with edited(folder / LESSON) as cells:
        learner(cells)
    lines, pictures = theirs(folder)
    publish(source, version)
    lab.update(folder, source=source)
    assert lines | pictures <= everything(folder)
    state = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert not [told for told in lab.update(folder, source=source)]
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == state
    for path in folder.glob("*.ipynb"):
        if version not in (now_under_another_name, now_without_this_lesson):  # they change nothing in the file
            ids = [cell["id"] for cell in read(path)["cells"]]
            assert len(set(ids)) == len(ids)
            lessons.nbformat.validate(json.loads(path.read_bytes()))


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.__name__)
def test_what_a_learner_only_looked_at_is_what_is_published(folder, source, version):
    for name in (LESSON, OTHER):
        with edited(folder / name) as cells:
            with_what_lab_writes(cells)
    publish(source, version)
    lab.update(folder, source=source)
    for path in source.rglob("*.ipynb"):
        name = path.relative_to(source)
        new, mine = read(path), read(folder / name)
        for key in ("id", "source", "cell_type"):
            assert [cell[key] for cell in mine["cells"]] == [cell[key] for cell in new["cells"]], name
        assert [cell.get("outputs") for cell in mine["cells"]] == [cell.get("outputs") for cell in new["cells"]], name
    found = [path.name for path in folder.glob("*.ipynb")]
    assert sorted(found) == sorted(path.name for path in source.glob("*.ipynb"))


def updated(folder, source, learner, version):
    with edited(folder / LESSON) as cells:
        learner(cells)
    publish(source, version)
    told = lab.update(folder, source=source)
    return read(folder / LESSON)["cells"], told


def test_a_changed_prediction_keeps_the_guess_and_comes_back_folded(folder, source):
    cells, told = updated(folder, source, with_guess, now_with_another_guess)
    cell = the(cells, "guess")
    assert cell["source"].startswith("guess = 'my guess'") and "published = 1" in cell["source"] and told == []
    if "predict(" in cell["source"]:
        assert cell["metadata"]["jupyter"]["outputs_hidden"] is True
    assert cell["outputs"] != printed("my output")


def test_an_answer_stands_and_the_new_skeleton_is_beside(folder, source):
    def another(cells):
        cell = the(cells, "answer")
        cell["source"] = cell["source"].replace(
            "raise NotImplementedError", "published()\n    raise NotImplementedError"
        )

    cells, told = updated(folder, source, with_answer, another)
    assert "'my answer'" in the(cells, "answer")["source"]
    assert the(cells, "answer")["outputs"] == printed("my verdict")
    said, beside = read(folder / "03_parameters.aside.ipynb")["cells"]
    assert merging.YOURS in said["source"] and "published()" in beside["source"]
    assert told == [f"{LESSON}: cells put aside, with the reasons, in 03_parameters.aside.ipynb: 1"]
    assert "[03_parameters.aside.ipynb](03_parameters.aside.ipynb)" in (folder / lab.START).read_text("utf-8")


def test_published_text_comes_around_what_they_wrote(folder, source):
    def both(cells):
        with_guess(cells)
        with_own_cells(cells)

    cells, _ = updated(folder, source, both, now_with_cells_more)
    ids, sources = [cell["id"] for cell in cells], [cell["source"] for cell in cells]
    at = ids.index(the(cells, "guess")["id"])
    assert sources[at + 1] == "my_cell = 1" and ids[at + 2] == "new-one" and {"new-two", "new-three"} < set(ids)


def test_outputs_are_theirs_where_they_ran_a_cell_that_is_the_same_and_else_the_published_ones(folder, source):
    before = {cell["id"]: cell for cell in read(source / LESSON)["cells"]}
    cells, _ = updated(folder, source, with_all_run, now_with_other_code)
    for cell in cells:
        if cell["cell_type"] == "code":
            same = cell["source"] == before[cell["id"]]["source"]
            assert cell["outputs"][0]["text"][0].startswith("run" if same else "published"), cell["id"]
    source_cells, _ = updated(folder, source, lambda cells: None, now_with_other_outputs)
    assert all(
        cell["outputs"][0]["text"][0].startswith("run")
        for cell in source_cells
        if cell["cell_type"] == "code" and cell["id"] != the(source_cells, "code")["id"]
    )


def test_a_clash_in_prose_puts_theirs_aside_whole(folder, source):
    cells, _ = updated(folder, source, with_prose, now_with_the_same_prose_rewritten)
    assert "Published anew" in "".join(cell["source"] for cell in cells)
    aside = read(folder / "03_parameters.aside.ipynb")["cells"]
    assert "A remark of mine." in aside[1]["source"] and merging.CHANGED in aside[0]["source"]


def test_a_renamed_lesson_takes_what_they_wrote_with_it(folder, source):
    with edited(folder / LESSON) as cells:
        with_answer(cells)
    publish(source, now_under_another_name)
    assert lab.update(folder, source=source) == [
        f"{LESSON} is now 09_what_is_a_parameter.ipynb, with all that you wrote"
    ]
    assert "'my answer'" in the(read(folder / "09_what_is_a_parameter.ipynb")["cells"], "answer")["source"]
    assert not (folder / LESSON).exists() and not (folder / lab.BASES / LESSON).exists()


@pytest.mark.parametrize("version", ["the same cells", "other cells, and the lesson named"])
def test_solutions_with_another_name_take_what_they_wrote_with_them(folder, source, version):
    """As ``solutions/03_parameters.ipynb`` became ``solutions/03_solutions.ipynb``."""
    for path in (folder, folder / lab.BASES):  # a copy from before
        os.replace(path / "solutions" / "03_solutions.ipynb", path / "solutions" / LESSON)
    with edited(folder / "solutions" / LESSON) as cells:
        cells[1:1] = [own("my_way = 1")]
    if version != "the same cells":
        with edited(source / "solutions" / "03_solutions.ipynb") as cells:
            now_all_different(cells)
            cells[0] = own(f"# Solutions\n\nOf [the lesson](../07_{LESSON[3:]}).", "markdown", id="title")
        os.replace(source / "solutions" / "03_solutions.ipynb", source / "solutions" / "07_solutions.ipynb")
        shutil.copy(source / OTHER, source / "solutions" / "03_solutions.ipynb")  # of another lesson
    new = "03_solutions.ipynb" if version == "the same cells" else "07_solutions.ipynb"
    told = lab.update(folder, source=source)
    assert told[0] == f"solutions/{LESSON} is now solutions/{new}, with all that you wrote"
    assert "my_way = 1" in lines(read(folder / "solutions" / new))
    assert not (folder / "solutions" / LESSON).exists() and lab.update(folder, source=source) == []


def test_solutions_of_a_lesson_that_is_gone_are_not_those_of_another(folder, source):
    with edited(folder / "solutions" / "03_solutions.ipynb") as cells:
        cells[1:1] = [own("my_way = 1")]
    with edited(source / "solutions" / "03_solutions.ipynb") as cells:
        now_all_different(cells)
    os.replace(source / "solutions" / "03_solutions.ipynb", source / "solutions" / "04_solutions.ipynb")
    told = "solutions/03_solutions.ipynb is no longer among the lessons: yours is now 03_solutions.before.ipynb"
    assert lab.update(folder, source=source) == [told]
    assert "my_way = 1" in lines(read(folder / "solutions" / "03_solutions.before.ipynb"))


def test_a_lesson_that_is_gone_leaves_what_they_wrote(folder, source):
    with edited(folder / LESSON) as cells:
        with_answer(cells)
    before = (folder / LESSON).read_bytes()
    publish(source, now_without_this_lesson)
    (told,) = lab.update(folder, source=source)
    assert told == f"{LESSON} is no longer among the lessons: yours is now 03_parameters.before.ipynb"
    assert (folder / "03_parameters.before.ipynb").read_bytes() == before
    assert "03_parameters.before.ipynb" in (folder / lab.START).read_text("utf-8")


def test_a_page_that_both_changed_is_kept_beside_the_new_one(folder, source):
    (folder / "INDEX.md").write_text("my index")
    assert lab.update(folder, source=source) == [] and (folder / "INDEX.md").read_text() == "my index"
    (source / "INDEX.md").write_text("published index")
    assert lab.update(folder, source=source) == ["INDEX.md: yours is now INDEX.before.md"]
    assert (folder / "INDEX.md").read_text() == "published index"
    assert (folder / "INDEX.before.md").read_text() == "my index"


def test_the_start_page_is_made_anew_around_what_they_wrote(folder, source):
    page = folder / lab.START
    page.write_text(page.read_text("utf-8").replace("# Start here", "# Start here\n\nMy line."), "utf-8")
    with edited(source / LESSON) as cells:
        cells[0]["source"] = "# A new question?\n\nAbout 77 minutes: 60 to read and run, 17 for the exercises."
    assert lab.update(folder, source=source) == []
    text = page.read_text("utf-8")
    assert "My line." in text and re.search(r"\| A new question\? \| 77 \| 0 of \d+ \| \d+ \|", text)
    (source / lab.START).write_text("# Published anew\n\n<!-- lessons -->\n<!-- lessons -->\n", "utf-8")
    assert lab.update(folder, source=source) == ["START.md: yours is now START.before.md"]
    assert "My line." in (folder / "START.before.md").read_text("utf-8")
    text = page.read_text("utf-8")
    assert text.startswith("# Published anew") and "A new question?" in text


def test_a_start_page_from_before_it_was_published_is_replaced(folder, source):
    for path in (folder / lab.START, folder / lab.BASES / lab.START):
        path.write_text("# Who gets a gradient?\n\nAs the first version made it.", "utf-8")
    assert lab.update(folder, source=source) == []
    assert (folder / lab.START).read_text("utf-8").startswith("# Start here")


def test_a_copy_made_by_hand_is_taken_as_it_is(folder, source):
    with edited(folder / LESSON) as cells:
        with_answer(cells)
    shutil.rmtree(folder / lab.KEPT)
    before = (folder / LESSON).read_bytes()
    assert lab.update(folder, source=source) == [] and (folder / LESSON).read_bytes() == before
    publish(source, now_with_another_guess)
    lab.update(folder, source=source)
    cells = read(folder / LESSON)["cells"]
    assert "'my answer'" in the(cells, "answer")["source"] and "published" in the(cells, "guess")["source"]


def test_a_lesson_that_they_removed_comes_back(folder, source):
    (folder / LESSON).unlink()
    lab.update(folder, source=source)
    assert (folder / LESSON).read_bytes() == (source / LESSON).read_bytes()


def test_a_lesson_is_begun_anew_and_theirs_put_aside(folder, source):
    for n, name in enumerate(["03_parameters.before.ipynb", "03_parameters.before-2.ipynb"]):
        (folder / LESSON).write_text(f"mine {n}")
        told = lab.update(folder, "03", source)
        assert told == [f"{LESSON} is begun anew; yours is now {name}"]
        assert (folder / name).read_text() == f"mine {n}"
        assert (folder / LESSON).read_bytes() == (source / LESSON).read_bytes()
    with pytest.raises(lab.Refused, match=r"No lesson is called '3x'.*--fresh 03.*03_parameters, 05_optimizers"):
        lab.update(folder, "3x", source)


def test_the_first_start_gives_what_is_published_and_a_page_to_start_from(as_published, tmp_path):
    assert lab.update(tmp_path / "mine", source=as_published) == []
    for path in as_published.rglob("*.*"):
        name = path.relative_to(as_published)
        if path.is_file() and not any(part.startswith(".") for part in name.parts) and path.name != lab.START:
            assert (tmp_path / "mine" / name).read_bytes() == path.read_bytes()
    page = (tmp_path / "mine" / lab.START).read_text("utf-8")
    assert overview.plain(page.encode()) == overview.plain((as_published / lab.START).read_bytes())
    rows = re.findall(r"^\| \[(\d\d) [^]]+\]\(([^)]+)\) \| [^|]{10,} \| \d+ \| 0 of \d+ \| \d+ \|$", page, re.M)
    assert [name for _, name in rows] == sorted(path.name for path in as_published.glob("*.ipynb"))
    for link in re.findall(r"\]\(([^)#]+)", page):
        assert (tmp_path / "mine" / link).is_file(), link


def test_a_lesson_with_another_number_is_the_same_however_much_it_changed(folder, source):
    with edited(folder / LESSON) as cells:
        with_answer(cells)
    publish(source, now_all_different)
    (source / LESSON).rename(source / "09_parameters.ipynb")
    told = lab.update(folder, source=source)
    assert told[0] == f"{LESSON} is now 09_parameters.ipynb, with all that you wrote"
    assert "    return 'my answer'" in lines(read(folder / "09_parameters.aside.ipynb"))


# What goes wrong


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"cells": 1}', b"\xff\xfe", b"<<<<<<< HEAD", b'{"cells": [1]}'])
def test_what_is_no_notebook_is_left_as_it_is_and_named_with_a_fresh_one_beside(folder, source, text):
    (folder / LESSON).write_bytes(text)
    for version in (now_with_other_prose, now_with_other_code):
        publish(source, version)
        (told,) = lab.update(folder, source=source)
        assert told.startswith(f"{LESSON} of yours is no notebook that can be read, and is left as it is.")
        assert (folder / LESSON).read_bytes() == text
    assert read(folder / "03_parameters.fresh.ipynb") and "fresh" in (folder / lab.START).read_text("utf-8")
    os.replace(folder / "03_parameters.fresh.ipynb", folder / LESSON)
    assert lab.update(folder, source=source) == []
    assert [c["source"] for c in read(folder / LESSON)["cells"]] == [
        c["source"] for c in read(source / LESSON)["cells"]
    ]


def dies_at(count, call):
    """Call it in a process that ends at its ``count``-th change of a name or file; whether it came so far."""
    pid = os.fork()
    if pid == 0:
        done = [0]
        replace, unlink = os.replace, Path.unlink

        def step(real):
            def one(*words, **more):
                done[0] += 1
                if done[0] == count:
                    os._exit(9)
                return real(*words, **more)

            return one

        os.replace, Path.unlink = step(replace), step(unlink)
        try:
            call()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.parametrize("version", [now_with_another_guess, now_under_another_name, now_all_different])
def test_a_kill_at_any_moment_loses_nothing_and_the_next_start_mends_it(folder, source, tmp_path, version):
    with edited(folder / LESSON) as cells:
        for learner in (with_guess, with_answer, with_own_cells, with_prose):
            learner(cells)
    (folder / "INDEX.md").write_text("my index")
    lines, _ = theirs(folder)
    publish(source, version)
    (source / "INDEX.md").write_text("published index")
    shutil.copytree(folder, tmp_path / "whole")
    lab.update(tmp_path / "whole", source=source)
    wanted = everything(tmp_path / "whole")
    for count in range(1, 100):
        torn = shutil.copytree(folder, tmp_path / f"torn-{count}")
        came = dies_at(count, lambda torn=torn: lab.update(torn, source=source))
        kept = everything(torn)
        assert lines <= kept, count
        lab.update(torn, source=source)
        assert everything(torn) == wanted, count
        pages = [path.read_text("utf-8") for path in torn.glob("INDEX*.md")]
        assert sorted(pages) == ["my index", "published index"], count
        assert sorted(path.name for path in torn.glob("*.ipynb")) == sorted(
            path.name for path in (tmp_path / "whole").glob("*.ipynb")
        )
        if not came:
            break
    assert 5 < count < 99


def test_a_kill_at_the_first_start_is_mended_by_the_next(source, tmp_path):
    for count in range(1, 100):
        new = tmp_path / f"new-{count}"
        came = dies_at(count, lambda new=new: lab.update(new, source=source))
        assert lab.update(new, source=source) == []
        for path in source.rglob("*.*"):
            copied = new / path.relative_to(source)
            assert overview.plain(copied.read_bytes()) == overview.plain(path.read_bytes())
        if not came:
            break
    assert 8 < count < 99


def test_a_full_disk_is_told_and_what_they_wrote_is_as_it_was(folder, source, capsys, monkeypatch, request):
    with edited(folder / LESSON) as cells:
        with_guess(cells)
    before = (folder / LESSON).read_bytes()
    with edited(source / LESSON) as cells:
        cells += [own("published = 1\n" * 10_000, id=f"new-{n}") for n in range(5)]
    monkeypatch.setattr(lab, "published", lambda: source)
    request.getfixturevalue("full_disk")
    assert lab.main([str(folder), "--copy-only"]) == 1
    told = capsys.readouterr().err
    assert "are not brought up to date: [Errno 27] File too large" in told and "What you wrote is as it was." in told
    assert (folder / LESSON).read_bytes() == before and not list(folder.rglob(".*.saving"))


def test_a_folder_that_cannot_be_written_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert lab.main([str(tmp_path / "file" / "lessons"), "--copy-only"]) == 1
    told = capsys.readouterr().err
    assert f"The lessons in {tmp_path / 'file' / 'lessons'} are not brought up to date: " in told
    assert f"or name another folder: {lab.COMMAND} FOLDER" in told
    if os.path.exists("/proc/version"):  # the one place where root may not write either
        assert lab.main(["/proc/lessons", "--copy-only"]) == 1


def test_a_checkout_is_refused_and_a_folder_of_the_learner_in_it_is_not(tmp_path, source):
    checkout = tmp_path / "checkout"
    (checkout / "helpers" / "lessons").mkdir(parents=True)
    (checkout / "helpers" / "lessons" / "lab.py").touch()
    shutil.copytree(source, checkout / "notebooks")
    (checkout / "link").symlink_to(checkout / "notebooks")
    for place in (checkout, checkout / "notebooks", checkout / "notebooks" / "solutions", checkout / "link"):
        with pytest.raises(lab.Refused, match=r"belongs to a checkout of the project\. Name a folder for your copy"):
            lab.update(place, source=checkout / "notebooks")
    before = {path: path.stat().st_mtime_ns for path in (checkout / "notebooks").rglob("*")}
    for _ in range(2):
        assert lab.update(checkout / "my", source=checkout / "notebooks") == []
    assert {path: path.stat().st_mtime_ns for path in (checkout / "notebooks").rglob("*")} == before
    with pytest.raises(lab.Refused):
        lab.update(ROOT / "tests")


def test_git_does_not_see_the_copies():
    for name in ("my/01_requires_grad.ipynb", "gradient-lessons/START.md", "my/.published/lock"):
        command = ["git", "check-ignore", "-q", "--no-index", name]
        assert subprocess.run(command, cwd=ROOT).returncode == 0, name


def test_two_starts_at_once_are_one_after_the_other(folder, source):
    with edited(folder / LESSON) as cells:
        for learner in (with_guess, with_answer, with_own_cells):
            learner(cells)
    lines, _ = theirs(folder)
    publish(source, now_with_cells_more)
    failed = []

    def one():
        try:
            lab.update(folder, source=source)
        except BaseException as error:
            failed.append(error)

    starts = [threading.Thread(target=one) for _ in range(4)]
    for start in starts:
        start.start()
    for start in starts:
        start.join()
    assert failed == [] and lines <= everything(folder) and not list(folder.glob("*.aside.ipynb"))
    assert sum("published = 2" in cell["source"] for cell in read(folder / LESSON)["cells"]) == 1


def test_who_waits_too_long_is_told(folder, source, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with lab._locked(folder / lab.KEPT / "lock"), pytest.raises(lab.Refused, match="Another start has been at work in"):
        lab.update(folder, source=source)


@pytest.mark.parametrize("inside", ["", "solutions"])
def test_a_folder_that_a_running_server_holds_is_left_alone_and_says_so(folder, source, tmp_path, inside):
    runtime = tmp_path / "runtime"
    runtime.mkdir()
    before = (folder / LESSON).read_bytes()
    publish(source, now_with_other_prose)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        told = {
            "pid": os.getpid(),
            "hostname": "127.0.0.1",
            "port": port,
            "url": f"http://127.0.0.1:{port}/",
            "sock": "",
        }
        told |= {"root_dir": str(folder / inside), "token": "abc"}
        (runtime / "jpserver-1.json").write_text(json.dumps(told))
        with pytest.raises(lab.Refused, match=rf"is open on .*, so it is not .*http://127.0.0.1:{port}/lab\?token=abc"):
            lab.update(folder, source=source)
        assert (folder / LESSON).read_bytes() == before
        (runtime / "jpserver-1.json").write_text(json.dumps(told | {"root_dir": str(tmp_path / "elsewhere")}))
        assert lab.running(folder) is None
    for left in (json.dumps(told), json.dumps(told | {"pid": 2**22 + 1}), "{", "[]"):  # of one that has ended
        (runtime / "jpserver-1.json").write_text(left)
        assert lab.running(folder) is None
    lab.update(folder, source=source)
    assert (folder / LESSON).read_bytes() == (source / LESSON).read_bytes()


def test_words_that_are_not_ours_go_to_jupyterlab(monkeypatch, tmp_path):
    asked, started = [], []
    monkeypatch.setattr(lab, "update", lambda folder, fresh: asked.append((str(folder), fresh)) or [])
    monkeypatch.setattr(lab, "start", lambda folder, options: started.append(options) or 0)
    for words, folder, fresh, options in [
        ([], "gradient-lessons", None, []),
        (["my", "--no-browser", "--port", "9999"], "my", None, ["--no-browser", "--port", "9999"]),
        (["--port", "9999"], "gradient-lessons", None, ["--port", "9999"]),
        (["--fresh", "03", "my", "--ServerApp.token=x"], "my", "03", ["--ServerApp.token=x"]),
    ]:
        assert lab.main(words) == 0
        assert (asked[-1], started[-1]) == ((folder, fresh), options)
    assert lab.main(["my", "--copy-only"]) == 0 and len(started) == 4


def test_what_is_missing_is_told(monkeypatch, capsys):
    def missing(*_):
        raise ModuleNotFoundError("no", name="psutil")

    monkeypatch.setattr(lab, "update", missing)
    assert lab.main(["--copy-only"]) == 1
    assert "psutil is missing: pip install 'who-gets-a-gradient[lessons]'" in capsys.readouterr().err


def test_twelve_lessons_are_brought_up_to_date_within_three_seconds(as_published, tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    source = shutil.copytree(as_published, tmp_path / "source")
    for n, path in enumerate([*source.glob("0[1-4]*.ipynb")]):
        shutil.copy(path, source / f"{n + 20}_{path.name[3:]}")
    lab.update(tmp_path / "mine", source=source)
    for path in tmp_path.rglob("*.ipynb"):
        if lab.KEPT not in path.parts:
            with edited(path) as cells:
                for cell in cells:
                    who = "my" if "mine" in path.parts else "published"
                    cell["source"] = f"{who} = 1\n{cell['source']}" if who == "my" else f"{cell['source']}\n\n# {who}"
    begun = time.perf_counter(), time.process_time()
    told = lab.update(tmp_path / "mine", source=source)
    took = time.perf_counter() - begun[0], time.process_time() - begun[1]
    print(f"updated in {took[0]:.2f} s, {took[1]:.2f} s of the processor")
    assert took[1] < 3 and len([*source.glob("*.ipynb")]) >= 12 and told == []


# The merge, on anything

TEXT = st.lists(st.sampled_from(["a", "b", "c", "guess = ...", "guess = 1", "", "my"]), max_size=6).map("\n".join)
CELLS = st.lists(
    st.tuples(
        st.sampled_from(["one", "two", "three", "answer-four", "five"]), st.sampled_from(["code", "markdown"]), TEXT
    ),
    max_size=5,
    unique_by=lambda cell: cell[0],
)


def notebook(cells):
    made = [own(text, kind, id=name) for name, kind, text in cells]
    return {"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


@settings(deadline=None)
@given(TEXT, TEXT, TEXT)
def test_lines_are_merged(base, mine, new):
    merged, clashes = merging.merge_lines(base, mine, new)
    assert set(mine.split("\n")) - set(base.split("\n")) <= set(merged.split("\n"))
    if not clashes:
        assert set(new.split("\n")) - set(base.split("\n")) <= set(merged.split("\n"))
    assert merging.merge_lines(base, base, new) == (new, []) and merging.merge_lines(base, mine, base) == (mine, [])
    assert merging.merge_lines(base, mine, mine) == (mine, [])


@settings(deadline=None)
@given(CELLS, CELLS, CELLS)
def test_notebooks_are_merged(base, mine, new):
    sides = [notebook(cells) for cells in (base, mine, new)]
    before = copy.deepcopy(sides)
    merged, aside = merging.merge(*sides)
    assert sides == before
    kept = lines(merged) | lines({"cells": [cell for cell, _ in aside]})
    assert lines(sides[1]) - lines(sides[0]) <= kept
    ids = [cell["id"] for cell in merged["cells"]]
    assert len(set(ids)) == len(ids)
    for told, cells in (
        (merging.merge(sides[0], sides[0], sides[2]), new),
        (merging.merge(sides[0], sides[1], sides[0]), mine),
    ):
        assert [cell["source"] for cell in told[0]["cells"]] == [text for *_, text in cells] and told[1] == []
    again, aside = merging.merge(sides[2], merged, sides[2])
    assert [cell["source"] for cell in again["cells"]] == [cell["source"] for cell in merged["cells"]] and aside == []


# In JupyterLab


def test_the_wheel_carries_the_lessons():
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"] == {"notebooks": "helpers/lessons/notebooks"}
    assert lab.published() == lessons.FOLDER


def test_jupyterlab_opens_the_start_page_with_our_defaults_and_the_users_settings_win(tmp_path):
    places = {"CONFIG_DIR": "config", "DATA_DIR": "data", "RUNTIME_DIR": "runtime"}
    env = os.environ | {f"JUPYTER_{name}": str(tmp_path / part) for name, part in places.items()}
    env |= {"JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "settings"), "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    (tmp_path / "config" / "labconfig").mkdir(parents=True)
    theirs = {"@jupyterlab/notebook-extension:tracker": {"windowingMode": "defer"}}
    (tmp_path / "config" / "labconfig" / "default_setting_overrides.json").write_text(json.dumps(theirs))
    user = tmp_path / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    user.parent.mkdir(parents=True)
    user.write_text('{"checkForUpdates": true}')
    command = [
        sys.executable,
        "-m",
        "helpers.lessons.lab",
        "mine",
        "--no-browser",
        "--port=0",
        "--IdentityProvider.token=abc",
    ]
    with subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True) as server:
        try:
            told = []
            for line in server.stderr:
                told.append(line)
                if address := re.search(r"http://127\.0\.0\.1:\d+/", line):
                    break
            assert address, told

            def get(page):
                for _ in range(100):  # the address is told a moment before it answers
                    with (
                        contextlib.suppress(ConnectionError, urllib.error.URLError),
                        urllib.request.urlopen(f"{address[0]}{page}?token=abc") as answer,
                    ):
                        return answer.geturl(), answer.read().decode()
                    time.sleep(0.1)

            assert "/lab/tree/START.md" in get("")[0]
            settings = {one["id"]: one for one in json.loads(get("lab/api/settings")[1])["settings"]}
            defaults = {
                (plugin, key): settings[plugin]["schema"]["properties"][key]["default"]
                for plugin, values in lab.SETTINGS.items()
                for key in values
            }
            notebooks, pages, news, _ = lab.SETTINGS
            assert defaults[notebooks, "windowingMode"] == "defer" and defaults[news, "fetchNews"] == "false"
            assert defaults[pages, "defaultViewers"]["markdown"] == "Markdown Preview"
            assert settings[news]["settings"] == {"checkForUpdates": True}
            assert [path for path in (tmp_path / "settings").rglob("*") if path.is_file()] == [user]
            again = subprocess.run([*command[:4], "--copy-only"], cwd=tmp_path, env=env, capture_output=True, text=True)
            assert (
                again.returncode == 1 and "JupyterLab is open on mine, so it is not brought up to date" in again.stderr
            )
        finally:
            server.terminate()
            server.stderr.read()
    assert sorted(path.name for path in (tmp_path / "mine").iterdir() if path.name[0] != ".") == sorted(
        path.name for path in lessons.FOLDER.iterdir() if path.name[0] != "."
    )
