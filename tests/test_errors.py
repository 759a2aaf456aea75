"""Errors that are meant: one line in a real kernel, and a traceback for all others."""

import json
import subprocess
import sys

import pytest
from nbclient import NotebookClient
from nbformat import v4

from tests.tools import lessons

MEANT = next(
    (cell["source"], output)
    for path in lessons.paths()
    for cell in lessons.read(path)["cells"]
    for output in cell.get("outputs", [])
    if output["output_type"] == "error" and output["ename"] == "NameError"
)
INSTALL = "from helpers.lessons import errors, lab\nerrors.install()"


@pytest.fixture(scope="module")
def errors(tmp_path_factory):
    """What a kernel sends for a cell, by the cell's source."""
    published = tmp_path_factory.mktemp("published")
    cells = {"fails": "import json\njson.loads('{')", "typed": "x = = 1", "noted": "int('a')"}
    stored = {"fails": "JSONDecodeError", "typed": "SyntaxError", "noted": "KeyError"}
    notebook = v4.new_notebook(
        cells=[
            v4.new_code_cell(
                source,
                metadata={"tags": ["raises-exception"]},
                outputs=[v4.new_output("error", ename=stored[name], evalue="", traceback=[])],
            )
            for name, source in cells.items()
        ]
        + [v4.new_code_cell("[][1]", outputs=[v4.new_output("error", ename="IndexError", evalue="")])]
    )
    (published / "01_a.ipynb").write_text(json.dumps(notebook))
    (published / "02_broken.ipynb").write_text("{")
    sources = [*cells.values(), "[][1]", cells["fails"] + "  # changed", cells["fails"] + "\n", "%tb"]
    there = f"{INSTALL}\nerrors.install()\nfrom pathlib import Path\n"
    there += f"lab.published = lambda: Path({str(published)!r})"
    run = v4.new_notebook(cells=[v4.new_code_cell(source) for source in [there, *sources]])
    replies = {}
    client = NotebookClient(run, timeout=120, allow_errors=True)
    client.on_cell_executed = lambda cell, cell_index, execute_reply: replies.update({cell["source"]: execute_reply})
    client.execute()
    got = {
        cell["source"]: (output, replies[cell["source"]]["content"])
        for cell in run.cells
        for output in cell.outputs
        if output["output_type"] == "error"
    }
    return cells, got


def test_an_error_that_is_meant_is_one_line(errors):
    cells, got = errors
    for source in (cells["fails"], cells["fails"] + "\n", cells["typed"]):
        output, reply = got[source]
        assert output["traceback"] == [f"{output['ename']}: {output['evalue']}"], source
        assert (reply["status"], reply["ename"], reply["evalue"]) == ("error", output["ename"], output["evalue"])
    assert got[cells["typed"]][0]["ename"] == "SyntaxError"


@pytest.mark.parametrize("source", ["[][1]", "int('a')", "import json\njson.loads('{')  # changed"])
def test_any_other_keeps_its_traceback(errors, source):
    """One without the tag, one of another kind than the stored one, one that the learner changed."""
    output, reply = errors[1][source]
    assert len(output["traceback"]) > 1 and "Traceback" in "".join(output["traceback"])
    assert reply["traceback"] == output["traceback"]


def test_the_lessons_own_cells_are_known():
    run = v4.new_notebook(cells=[v4.new_code_cell(source) for source in (INSTALL, MEANT[0])])
    NotebookClient(run, timeout=120, allow_errors=True).execute()
    (output,) = run.cells[1].outputs
    assert output["traceback"] == MEANT[1]["traceback"]


def test_outside_ipython_nothing_happens():
    code = f"import sys\n{INSTALL}\nassert 'IPython' not in sys.modules\n1 / 0"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "Traceback" in done.stderr and done.stderr.endswith("ZeroDivisionError: division by zero\n")
