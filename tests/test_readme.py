"""What the README shows runs, and what it links to is there."""

import datetime
import doctest
import re
import runpy
from pathlib import Path

from PIL import Image

from conftest import differ
from helpers.lessons import overview
from tests.tools import lessons, matrix

README = Path(__file__).parent.parent / "README.md"
LESSONS = [path for path in lessons.paths() if path.parent == lessons.FOLDER]


def test_its_example_runs():
    result = doctest.testfile(str(README), module_relative=False)
    assert result.attempted > 5 and result.failed == 0


def test_it_lists_every_lesson_and_no_other():
    linked = re.findall(r"\]\(notebooks/([\w-]+\.ipynb)\)", README.read_text("utf-8"))
    assert list(dict.fromkeys(linked)) == [path.name for path in LESSONS]


def test_minutes_are_those_of_the_lessons():
    teachers = (README.parent / "docs" / "teachers.md").read_text("utf-8")
    for path in LESSONS:
        (minutes,) = re.findall(r"^About (\d+) minutes", lessons.read(path)["cells"][0]["source"], re.M)
        (name,) = re.findall(
            rf"^\| \[(.*)\]\(notebooks/{path.name}\) \|.*\| {minutes} \|$", README.read_text("utf-8"), re.M
        )
        assert re.search(rf"^\| {re.escape(name)} \| {minutes} \|", teachers, re.M), name


def test_the_index_links_to_sections_that_are_there():
    index = (lessons.FOLDER / "INDEX.md").read_text("utf-8")
    rows = re.findall(r"^\| .* \| (\[(\d\d)\]\((\S+)\) \| \[(.*)\]\(\S+\)) \|$", index, re.M)
    assert len(rows) == len(re.findall(r"^\| .*ipynb", index, re.M)) > 50
    assert {file for _, _, file, _ in rows} == {path.name for path in LESSONS}
    for row, number, file, section in rows:
        cells = lessons.read(lessons.FOLDER / file)["cells"]
        headings = re.findall(r"^##+ (.*)$", "\n\n".join(cell["source"] for cell in cells), re.M)
        assert file.startswith(number) and section in headings, (file, section)
        place = overview.place(section)
        assert row == f"[{number}]({file}) | [{section}]({file}#{place})"
        assert "%" not in place, f"JupyterLab does not find {section}"


def test_the_index_has_what_people_look_for():
    index = (lessons.FOLDER / "INDEX.md").read_text("utf-8")
    quoted = [text for text in re.findall(r"`([^`]+)`", index) if len(text) > 8]
    for path in LESSONS:
        cells, linked = lessons.read(path)["cells"], set(re.findall(rf"\[([^\n|]*)\]\({path.name}#", index))
        after = next((n for n, cell in enumerate(cells) if cell["source"].startswith("## If you see")), len(cells))
        entries = re.findall(r"^### (.*)$", "\n\n".join(cell["source"] for cell in cells[after:]), re.M)
        assert set(entries) <= linked, f"{path.name}: no row leads to {set(entries) - linked}"
        raised = {o["evalue"] for cell in cells for o in cell.get("outputs", []) if o["output_type"] == "error"}
        assert not [error for error in raised if not any(text in error for text in quoted)], path.name
    for word in ("GAN", "LoRA", ".cuda()", "embedding", "EMA", "accumulat", "clip"):
        assert word in index, word


def test_its_picture_is_the_one_drawn_now_and_its_words_say_what_it_shows(tmp_path):
    drawn = runpy.run_path(str(README.parent / "docs" / "picture.py"))
    drawn["save"](tmp_path / "now.png")
    old, new = Image.open(README.parent / "docs" / "frozen.png"), Image.open(tmp_path / "now.png")
    assert old.info["Software"] != new.info["Software"] or not differ(old, new), "run: python docs/picture.py"
    (words,) = re.findall(r"!\[([^\]]*)\]\(docs/frozen.png\)", README.read_text("utf-8"), re.S)
    for recipe in ("frozen_by_flags", "freeze"):
        names, changed = drawn["moved"](drawn[recipe])
        assert f"{len(changed)} of its {len(names)} entries" in words.replace("\n", " ")


def test_a_green_row_of_the_matrix_is_written_where_the_lessons_pages_read_it(tmp_path):
    page = tmp_path / "CONTRIBUTING.md"
    page.write_text((README.parent / "CONTRIBUTING.md").read_text("utf-8"), "utf-8")
    before, _, after = page.read_text("utf-8").split("<!-- matrix -->")
    for day, (name, setting) in enumerate(matrix.RUNS, 1):
        version = "2.9.1" if name == "oldest" else "2.14.1"
        matrix.record([name, setting, "3.11", version, "3.10.0", "9 passed", "1"], datetime.date(2031, 2, day), page)
    assert matrix.last_run(page) == ("2031-02-01", ["2.9.1", "2.14.1"])
    matrix.record(["newest", "as it is", "3.11", "2.14.1", "3.10.0", "8 passed", "1"], datetime.date(2031, 3, 1), page)
    day = 1 + matrix.RUNS.index(("oldest", "as it is"))  # of the versions the first, now that the newest was run again
    assert matrix.last_run(page) == (f"2031-02-{day:02}", ["2.9.1", "2.14.1"])
    now = page.read_text("utf-8").split("<!-- matrix -->")
    assert (before, after) == (now[0], now[2]) and len(now[1].strip().splitlines()) == 2 + len(matrix.RUNS)
    assert now[1].splitlines()[3] == "| newest | as it is | 3.11 | 2.14.1 | 3.10.0 | 8 passed | 1 | 2031-03-01 |"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", matrix.last_run()[0]) and len(matrix.last_run()[1]) > 1
