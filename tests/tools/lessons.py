"""The lessons as documents: the one form in which they are saved, and the rules that nbval does not hold.

``python -m tests.tools.lessons [FILE ...]`` re-executes notebooks and writes them in that form (``make save``).
"""

import copy
import json
import os
import re
import sys
import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat.v4.rwbase import rejoin_lines
from nbval.plugin import comment_markers, metadata_tags

from tests.tools import ports

ports.kernels_without_ports()  # here, as whatever runs a notebook comes by
FOLDER = Path(__file__).parents[2] / "notebooks"
LONGEST, WIDEST = 12, 88
"""Lines of a code cell, and characters of a line: more is not seen at the width of a notebook."""
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
READABLE_ID = re.compile(r"(?![0-9a-f]{8}(-|$))[a-z0-9]+(-[a-z0-9]+)*")  # not the random ones that Jupyter gives
UNSTABLE = {
    "an address": re.compile(r"\b0x[0-9a-fA-F]{6,}"),
    "a path": re.compile(r"(?<![\w.:/<])(?:~[\\/]|[A-Za-z]:\\|(?:/[\w.+-]+){2,})|site-packages"),
    "a time": re.compile(
        r"\b\d+(\.\d+)? ?(ns|[µu]s|ms|s|sec|seconds?|min|minutes|it/s)\b|\b\d\d?:\d\d(:\d\d)?\b|\b20\d\d-\d\d-\d\d\b"
    ),
    "a progress bar": re.compile(r"\r|\d%\|"),
    "more than 4 decimals": re.compile(r"\d\.\d{5,}"),
}
FOLDED = {"hide-output": ("outputs_hidden",), "hide-cell": ("outputs_hidden", "source_hidden")}
"""What folds in JupyterLab where a tag folds it on the site."""
AFTER = "<details>\n<summary>After your guess</summary>\n\n"
PREDICTS = re.compile(r'^predict\("(.+?)"', re.M)
SAID = re.compile(re.escape(AFTER) + r"`(.+?)`[.,:]")
"""After a guess, what is so comes first, as one would have written it."""
MINUTES = re.compile(r"About (\d+) minutes: (\d+) to read and run, (\d+) for the exercises")
EFFORT = re.compile(r"^# difficulty [1-5] of 5, importance [1-5] of 5, about (\d+) minutes?$", re.M)
IMAGE = re.compile(r"!\[(?P<alt>[^\]]*)\]\((?P<src>[^)\s]*)[^)]*\)|<img\b(?P<tag>[^>]*)>", re.IGNORECASE)


def paths() -> list[Path]:
    """The lessons and their solutions; what Jupyter keeps beside them, in folders with a dot, is none."""
    found = FOLDER.rglob("*.ipynb")
    return sorted(path for path in found if not any(part[0] == "." for part in path.relative_to(FOLDER).parts))


def lesson_of(solution: Path) -> Path:
    """The lesson that a notebook of solutions belongs to: 01_requires_grad.ipynb for 01_solutions.ipynb."""
    (path,) = solution.parent.parent.glob(f"{solution.name[:3]}*.ipynb")
    return path


def solution_of(lesson: Path) -> Path:
    return lesson.parent / "solutions" / f"{lesson.name[:2]}_solutions.ipynb"


def canonical(notebook: dict) -> dict:
    """``notebook`` in the one form that is committed: only what is compared or shown, whoever saved it with what."""
    notebook = rejoin_lines(copy.deepcopy(notebook))
    notebook.update(metadata=copy.deepcopy(METADATA), nbformat=4, nbformat_minor=5)
    taken = Counter(cell.get("id") for cell in notebook["cells"])
    for cell in notebook["cells"]:
        if not READABLE_ID.fullmatch(cell.get("id", "")) or taken[cell["id"]] > 1:
            taken[cell.get("id")] -= 1
            cell["id"] = _new_id(cell, taken)
            taken[cell["id"]] += 1
        cell["metadata"] = _metadata(cell["metadata"].get("tags"))
        for output in cell.get("outputs", []):
            if "metadata" in output:
                output["metadata"] = _shown_as(output["metadata"])
            if output["output_type"] == "error":
                output["traceback"] = [f"{output['ename']}: {output['evalue']}"]
    return notebook


def _metadata(tags: list[str] | None) -> dict:
    """What is kept of a cell's metadata: its tags, which the site reads, and what JupyterLab reads in place of them."""
    folded = {key: True for tag in tags or [] for key in FOLDED.get(tag, ())}
    return {**({"jupyter": folded} if folded else {}), **({"tags": tags} if tags else {})}


def _shown_as(metadata: dict) -> dict:
    """What is kept of an output's metadata: how wide a picture is, which has more pixels for dense screens."""
    width = metadata.get("image/png", {}).get("width")
    return {"image/png": {"width": width}} if width else {}


def _new_id(cell: dict, taken: Counter) -> str:
    words = re.findall("[a-z0-9]+", cell["source"].lower())[:4]
    base = "-".join([cell["cell_type"], *words])
    return next(name for n in range(1, 1000) if not taken[name := f"{base}-{n}" if n > 1 else base])


def written(notebook: dict) -> str:
    return nbformat.writes(nbformat.from_dict(notebook)) + "\n"


def read(path: Path) -> dict:
    """The notebook as it stands in the file, nothing mended. Raises ``ValueError`` if it is none of format 4."""
    try:
        notebook = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name}: not JSON: {error}") from error
    if not isinstance(notebook, dict) or notebook.get("nbformat") != 4 or not isinstance(notebook.get("cells"), list):
        raise ValueError(f"{path.name}: not a notebook of format 4")
    return rejoin_lines(nbformat.from_dict(notebook))


def save(path: Path) -> None:
    """Re-execute the notebook and write it, whole or not at all: an error without the tag leaves the file as it was."""
    notebook = canonical(read(path))
    if path.parent.name == "solutions":  # an exercise is stated in its lesson only
        lesson = {cell["id"]: cell["source"] for cell in read(lesson_of(path))["cells"]}
        for cell in notebook["cells"]:
            if cell["id"].startswith("exercise-"):
                cell["source"] = lesson.get(cell["id"], cell["source"])
    resources = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(notebook, timeout=600, resources=resources, record_timing=False, coalesce_streams=True)
    begun = []
    client.on_cell_start = lambda cell, cell_index: begun.append(cell["id"])
    try:
        client.execute()
    except DeadKernelError as error:
        raise DeadKernelError(f"the kernel died in cell {begun[-1]!r}") from error
    write(path, written(canonical(notebook)))


def write(path: Path, text: str) -> None:
    """Write the file whole or not at all: an error on the way, or a sudden end, leaves it as it was."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".saving")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(name, path.stat().st_mode if path.exists() else 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def faults(path: Path) -> list[str]:
    """Everything that strict nbval would let pass in this notebook, each naming file, cell and what is wrong."""
    try:
        notebook = read(path)
    except ValueError as error:
        return [str(error)]
    found = []
    if notebook["nbformat_minor"] != 5:
        found.append(f"{path.name}: not of format 4.5, which gives cells their ids")
    kernel = notebook["metadata"].get("kernelspec", {}).get("name")
    if kernel != "python3":
        found.append(f"{path.name}: the kernel is {kernel!r}, not 'python3'")
    if dropped := _dropped(notebook["metadata"], METADATA):
        found.append(f"{path.name}: metadata that a save drops: {dropped}")
    ids = Counter(cell.get("id") for cell in notebook["cells"])
    due = 1
    for number, cell in enumerate(notebook["cells"]):
        about = list(_cell_faults(cell, ids))
        if cell["cell_type"] == "code":
            about += _code_faults(cell, due)
            due += 1
        found += [f"{path.name}, cell {cell.get('id', number)!r}: {fault}" for fault in about]
    if not found and path.read_text("utf-8") != written(canonical(notebook)):
        found.append(f"{path.name}: not in the form that 'make save' writes")
    return found


def said(cells: list[dict]) -> dict[str, str]:
    """What the text after each prediction says is so, as code; predictions by name, in their order."""
    found = {}
    for cell, after in pairwise([*cells, {"source": ""}]):
        if cell["cell_type"] == "code" and (asked := PREDICTS.search(cell["source"])):
            told = SAID.match(after["source"])
            found[asked[1]] = told[1] if told else ""
    return found


def form_faults(path: Path) -> list[str]:
    """Where a lesson lacks the form of one: answers that wait, ways on from its end, and a length that can be read."""
    cells = read(path)["cells"]
    names = {cell.get("id"): cell for cell in cells}
    found = []
    for cell, after in pairwise([*cells, {"source": ""}]):
        if PREDICTS.search(cell["source"]) and cell["cell_type"] == "code":
            outputs = cell["outputs"] or [{}]
            first = outputs[0].get("data", {}).get("text/plain", "") or outputs[0].get("text", "")
            for wrong, what in (
                ("hide-output" not in cell["metadata"].get("tags", []), "a prediction without the tag hide-output"),
                (not first.startswith("○ not attempted"), "a prediction that prints something before predict(...)"),
                (not SAID.match(after["source"]), "no 'After your guess', folded, follows and begins with what is so"),
            ):
                found += [f"{path.name}, cell {cell['id']!r}: {what}"] if wrong else []
    answers = solution_of(path).name
    for name in (id.removeprefix("exercise-") for id in names if id and id.startswith("exercise-")):
        if f"solutions/{answers}#" not in names.get(f"see-{name}", {"source": ""})["source"]:
            found.append(f"{path.name}: no cell 'see-{name}' leads from the exercise to its answer")
    onward = names.get("onward", {"source": ""})["source"]
    if cells[-1].get("id") != "onward" or any(f"({to}" not in onward for to in ("START.md", "INDEX.md", "solutions/")):
        found.append(f"{path.name}: the last cell 'onward' leads to the start page, the index and the solutions")
    if "Clear Outputs" in "".join(cell["source"] for cell in cells):
        found.append(f"{path.name}: advises to clear outputs")
    read_minutes, count = reading(cells)
    stated = MINUTES.search(cells[0]["source"])
    effort = sum(int(minutes) for cell in cells for minutes in EFFORT.findall(cell["source"]))
    due = 5 * -(-read_minutes // 5)
    if not stated or tuple(map(int, stated.groups())) != (due + effort, due, effort):
        found.append(
            f"{path.name}: the title is to say: About {due + effort:.0f} minutes: {due:.0f} to read and run, {effort} "
            "for the exercises."
        )
    if read_minutes > 45 or not 25 <= count <= 45:
        found.append(f"{path.name}: {read_minutes:.0f} minutes and {count} cells; at most 45, and 25 to 45")
    return found


def reading(cells: list[dict]) -> tuple[float, int]:
    """Minutes to read the parts of a lesson, at 150 words a minute and 6 seconds a line of code, and their cells.

    Exercises, what is looked up, and what is folded until a guess is made are not counted.
    """
    headings = [cell["source"].startswith("## Exercises") for cell in cells]
    parts = [cell for cell in cells[: headings.index(True) if any(headings) else None]]
    parts = [cell for cell in parts if not cell["source"].startswith(AFTER)]
    words = sum(len(cell["source"].split()) for cell in parts if cell["cell_type"] == "markdown")
    lines = sum(len(cell["source"].splitlines()) for cell in parts if cell["cell_type"] == "code")
    return words / 150 + lines / 10, len(parts)


def _cell_faults(cell: dict, ids: Counter):
    if "id" not in cell:
        yield "the id is missing"
    elif ids[cell["id"]] > 1:
        yield "the id is there twice"
    elif not READABLE_ID.fullmatch(cell["id"]):
        yield "the id is not a readable one; 'make save' gives one"
    kept = _metadata(cell["metadata"].get("tags"))
    if dropped := [key for key, value in cell["metadata"].items() if kept.get(key) != value]:
        yield f"metadata that a save drops: {', '.join(dropped)}"
    elif missing := kept.keys() - cell["metadata"].keys():
        yield f"the tag has no {', '.join(missing)} beside it; 'make save' writes it"
    outputs = cell.get("outputs", [])
    html = [output.get("data", {}).get("text/html", "") for output in outputs]
    for match in IMAGE.finditer("\n".join([cell["source"] if cell["cell_type"] == "markdown" else "", *html])):
        tag = match["tag"]
        alt, src = (match["alt"], match["src"]) if tag is None else (_attribute(tag, "alt"), _attribute(tag, "src"))
        if not alt.strip():
            yield f"the image {src[:40]!r} has no alternative text"
        if re.match(r"(\w+:)?//", src):
            yield f"the image {src[:40]!r} is remote"


def _code_faults(cell: dict, due: int):
    source, tags = cell["source"], cell["metadata"].get("tags", [])
    if cell["execution_count"] is None:
        yield "never executed"
    elif cell["execution_count"] != due:
        yield f"executed out of order: number {cell['execution_count']}, where {due} is due"
    if len(source.splitlines()) > LONGEST:
        yield f"{len(source.splitlines())} lines, more than {LONGEST}"
    if wide := [line for line in source.splitlines() if len(line) > WIDEST]:
        yield f"a line of {len(wide[0])} characters, more than {WIDEST}"
    for marker in [*comment_markers, *(tag for tag in metadata_tags if tag != "raises-exception")]:
        if re.search(rf"\b{marker}\b", source) or marker in tags:
            yield f"{marker} hides the cell from nbval"
    errors = [output for output in cell["outputs"] if output["output_type"] == "error"]
    if "raises-exception" in tags and not errors:
        yield "raises-exception, but no stored error"
    if errors and "raises-exception" not in tags:
        yield f"the error {errors[0]['ename']}, but no tag raises-exception"
    for output, below in zip(cell["outputs"], [*cell["outputs"][1:], {}], strict=False):
        yield from _output_faults(output, below.get("data", {}))


def _output_faults(output: dict, below: dict):
    data = output.get("data", {})
    words = data.get("text/plain", "")
    pictures = [mime for mime in data if mime.startswith("image/")]
    if pictures and pictures != ["image/png"]:
        yield f"a picture as {pictures[0]}; show it as PNG"
    if pictures and (not words or words.startswith("<")):
        yield "a figure without words of its own; show it by helpers.lessons.figures.show"
    elif pictures and (below.get("text/plain") != words or "<details>" not in below.get("text/html", "")):
        yield "a figure without its words, folded, below it; show it by helpers.lessons.figures.show"
    if dropped := _dropped(output.get("metadata", {}), _shown_as(output.get("metadata", {}))):
        yield f"metadata that a save drops: {dropped}"
    if output["output_type"] == "error" and output["traceback"] != [f"{output['ename']}: {output['evalue']}"]:
        yield "a traceback that is not cut to the line that is compared"
    shown = [value for mime, value in data.items() if mime.startswith("text/")]
    for text in [*shown, output.get("text", ""), output.get("evalue", "")]:
        for what, pattern in UNSTABLE.items():
            if match := pattern.search(text):
                yield f"{what} in an output: {match[0]!r}"


def _dropped(metadata: dict, kept: dict, within: str = "") -> str:
    names = [f"{within}{key}" for key in metadata if key not in kept]
    for key in metadata.keys() & kept.keys():
        if isinstance(kept[key], dict) and (inner := _dropped(metadata[key], kept[key], f"{within}{key}.")):
            names.append(inner)
    return ", ".join(names)


def _attribute(tag: str, name: str) -> str:
    match = re.search(rf"\b{name}\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s>]+))", tag, re.IGNORECASE)
    return next((group for group in match.groups() if group), "") if match else ""


def is_lesson(path: Path) -> bool:
    return bool(re.match(r"\d\d_", path.name)) and path.parent.name != "solutions"


def main(names: list[str]) -> int:
    bad = []
    for path in [Path(name) for name in names] or paths():
        try:
            save(path)
            print(f"saved {path.name}")
            bad += faults(path) + (form_faults(path) if is_lesson(path) else [])
        except (OSError, ValueError, CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            bad.append(f"{path.name}: left as it is: {error}")
    print(*bad, sep="\n", end="\n" if bad else "")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
