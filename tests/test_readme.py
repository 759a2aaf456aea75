"""What the README shows runs, and what it links to is there."""

import doctest
import re
from pathlib import Path

from tests import lessons

README = Path(__file__).parent.parent / "README.md"


def test_its_example_runs():
    result = doctest.testfile(str(README), module_relative=False)
    assert result.attempted > 5 and result.failed == 0


def test_it_lists_every_lesson_and_no_other():
    linked = re.findall(r"\]\(notebooks/([\w-]+\.ipynb)\)", README.read_text("utf-8"))
    assert linked == [path.name for path in lessons.paths() if path.parent == lessons.FOLDER]


def test_the_index_names_sections_that_are_there():
    rows = re.findall(
        r"^\| .* \| \[(\d\d)\]\((\S+)\) \| (.*) \|$", (lessons.FOLDER / "INDEX.md").read_text("utf-8"), re.M
    )
    assert len(rows) > 50 and {file for _, file, _ in rows} == {path.name for path in lessons.FOLDER.glob("*.ipynb")}
    for number, file, section in rows:
        cells = lessons.read(lessons.FOLDER / file)["cells"]
        headings = re.findall(r"^## (.*)$", "\n\n".join(cell["source"] for cell in cells), re.M)
        assert file.startswith(number) and section in headings, (file, section)
