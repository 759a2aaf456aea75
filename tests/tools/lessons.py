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
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat.v4.rwbase import rejoin_lines
from nbval.plugin import comment_markers, metadata_tags

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
IMAGE = re.compile(r"!\[(?P<alt>[^\]]*)\]\((?P<src>[^)\s]*)[^)]*\)|<img\b(?P<tag>[^>]*)>", re.IGNORECASE)


def paths() -> list[Path]:
    """The lessons and their solutions; what Jupyter keeps beside them, in folders with a dot, is none."""
    found = FOLDER.rglob("*.ipynb")
    return sorted(path for path in found if not any(part[0] == "." for part in path.relative_to(FOLDER).parts))


def anchor(heading: str) -> str:
    """The fragment by which JupyterLab finds a heading."""
    return heading.replace(" ", "-")


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
        cell["metadata"] = {"tags": cell["metadata"]["tags"]} if cell["metadata"].get("tags") else {}
        for output in cell.get("outputs", []):
            if "metadata" in output:
                output["metadata"] = {}
            if output["output_type"] == "error":
                output["traceback"] = [f"{output['ename']}: {output['evalue']}"]
    return notebook


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
        lesson = {cell["id"]: cell["source"] for cell in read(path.parent.parent / path.name)["cells"]}
        for cell in notebook["cells"]:
            if cell["id"].startswith("exercise-"):
                cell["source"] = lesson.get(cell["id"], cell["source"])
    resources = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(notebook, timeout=120, resources=resources, record_timing=False, coalesce_streams=True)
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


def _cell_faults(cell: dict, ids: Counter):
    if "id" not in cell:
        yield "the id is missing"
    elif ids[cell["id"]] > 1:
        yield "the id is there twice"
    elif not READABLE_ID.fullmatch(cell["id"]):
        yield "the id is not a readable one; 'make save' gives one"
    if dropped := [key for key in cell["metadata"] if key != "tags"]:
        yield f"metadata that a save drops: {', '.join(dropped)}"
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
    printed = "".join(output["text"] for output in cell["outputs"] if output["output_type"] == "stream")
    for output in cell["outputs"]:
        yield from _output_faults(output, printed)


def _output_faults(output: dict, printed: str):
    data = output.get("data", {})
    words = data.get("text/plain", "")
    pictures = [mime for mime in data if mime.startswith("image/")]
    if pictures and pictures != ["image/png"]:
        yield f"a picture as {pictures[0]}; show it as PNG"
    if pictures and (not words or words.startswith("<")):
        yield "a figure without words of its own; show it by helpers.lessons.figures.show"
    elif pictures and words not in printed:
        yield "a figure whose words are not visible beside it; show it by helpers.lessons.figures.show"
    if output.get("metadata"):
        yield f"metadata that a save drops: {', '.join(output['metadata'])}"
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


def main(names: list[str]) -> int:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    bad = []
    for path in [Path(name) for name in names] or paths():
        try:
            save(path)
            print(f"saved {path.name}")
            bad += faults(path)
        except (OSError, ValueError, CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            bad.append(f"{path.name}: left as it is: {error}")
    print(*bad, sep="\n", end="\n" if bad else "")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
