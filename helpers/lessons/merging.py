"""Bring a learner's notebook up to date: a three-way merge by cell id, in which no line of theirs is lost.

Each takes notebooks as they are in the file, and cells' sources as text:

>>> base = {"cells": [{"id": "any", "cell_type": "code", "metadata": {}, "source": "guess = ...\\nlook(x)"}]}
>>> own = {"id": "own", "cell_type": "code", "metadata": {}, "source": "x"}
>>> mine = {"cells": [base["cells"][0] | {"source": "guess = 3\\nlook(x)"}, own]}
>>> new = {"cells": [base["cells"][0] | {"source": "guess = ...  # a number\\nlook(y)"}]}
>>> merged, aside = merge(base, mine, new)
>>> [cell["source"] for cell in merged["cells"]], aside
(['guess = 3\\nlook(y)', 'x'], [])
"""

import copy
import json
import uuid
from collections.abc import Iterable
from difflib import SequenceMatcher
from typing import Any

Cell = dict[str, Any]
ABSENT: Any = object()
GONE = "The lesson has no such cell any more. This is yours."
CHANGED = "You and an update changed the same lines. The lesson has the published cell; this is yours."
YOURS = "An update changed this cell where you had written. The lesson has yours; this is the published one."


def parsed(text: bytes | None) -> dict[str, Any] | None:
    """The notebook in a file, each source in one piece; None if it is none of format 4."""
    try:
        notebook = json.loads(text or b"")
        cells = notebook["cells"]
        for cell in cells:
            cell["source"] = "".join(cell["source"])
        parts = [notebook["metadata"], *(cell["metadata"] for cell in cells)]
        kinds = {cell["cell_type"] for cell in cells}
        whole = notebook["nbformat"] == 4 and all(isinstance(part, dict) for part in parts)
    except (ValueError, TypeError, LookupError, RecursionError):
        return None
    return notebook if whole and kinds <= {"code", "markdown", "raw"} else None


def written(notebook: dict[str, Any]) -> bytes:
    """The file of a notebook, laid out as Jupyter does."""
    cells = [cell | {"source": cell["source"].splitlines(keepends=True)} for cell in notebook["cells"]]
    return (json.dumps(notebook | {"cells": cells}, indent=1, ensure_ascii=False) + "\n").encode(
        errors="backslashreplace"
    )


def merge(base: dict, mine: dict, new: dict) -> tuple[dict, list[tuple[Cell, str]]]:
    """``mine`` with what changed from ``base`` to ``new``, and the cells that found no place in it, each with why."""
    base, mine, new = (copy.deepcopy(notebook) for notebook in (base, mine, new))
    _give_ids(mine["cells"], base["cells"])
    taken = {cell["id"] for cell in mine["cells"]}
    pairs = ((old["id"], now["id"]) for old, now in _pairs(base["cells"], new["cells"]))
    renamed = {old: now for old, now in pairs if now not in taken}
    for cell in [*base["cells"], *mine["cells"]]:
        cell["id"] = renamed.get(cell["id"], cell["id"])
    b, m, n = ({cell["id"]: cell for cell in notebook["cells"]} for notebook in (base, mine, new))
    cells: list[Cell] = []
    aside: list[tuple[Cell, str]] = []
    for name in _order(list(b), list(m), list(n)):
        if name in b and name in m and name in n:
            cell, why = _merge_cell(b[name], m[name], n[name])
            cells.append(cell)
            if why:
                aside.append((n[name] if why == YOURS else m[name], why))
        elif name in m and name in n:
            cells.append(n[name])
            if _touched(m[name], n[name]):
                aside.append((m[name], CHANGED))
        elif name in m and name in b:
            if _touched(m[name], b[name]):
                aside.append((m[name], GONE))
        elif name in m or name not in b:  # a cell of their own, or a new one; one that they removed stays so
            cells.append(m.get(name) or n[name])
    outside = [{k: v for k, v in notebook.items() if k not in ("cells", "metadata")} for notebook in (base, mine, new)]
    metadata = _merge_keys(*(notebook.get("metadata", {}) for notebook in (base, mine, new)))
    merged = _merge_keys(*outside) | {"metadata": metadata, "cells": cells}
    return merged | {"nbformat_minor": max(5, merged.get("nbformat_minor", 5))}, aside


def _merge_cell(b: Cell, m: Cell, n: Cell) -> tuple[Cell, str]:
    """One cell of three, and why its other form is to be put aside, if it is."""
    source, clashes = merge_lines(b["source"], m["source"], n["source"])
    kind = _pick(b["cell_type"], m["cell_type"], n["cell_type"])
    answer = n["id"].startswith("answer-")
    guessed = all(lines and all(line.startswith("guess") for line in lines) for lines in clashes)
    if (_touched(m, b) and kind != m["cell_type"]) or (clashes and not answer and not guessed):
        return n, CHANGED
    same = source == m["source"] and kind == m["cell_type"]
    cell = n | {"cell_type": kind, "source": source}
    cell["metadata"] = _merge_keys(b["metadata"], m["metadata"], n["metadata"])
    if attached := n.get("attachments", {}) | m.get("attachments", {}):
        cell["attachments"] = attached
    if not same:
        cell["metadata"] |= n["metadata"]
        if "predict(" in source:  # another question than the one whose answer they saw
            cell["metadata"]["jupyter"] = cell["metadata"].get("jupyter", {}) | {"outputs_hidden": True}
    for key in ("outputs", "execution_count"):
        cell.pop(key, None)
        ran = same and (source != n["source"] or m.get("outputs") != b.get("outputs"))
        if kind == "code":
            cell[key] = (m if ran else n).get(key, [] if key == "outputs" else None)
    return cell, YOURS if clashes and answer else ""


def merge_lines(base: str, mine: str, new: str) -> tuple[str, list[list[str]]]:
    """Both changes of a text, line by line, and the lines of ``base`` which both changed: there ``mine`` stands.

    >>> merge_lines("a\\nb\\nc", "a 1\\nb\\nc", "a\\nb 2\\nc\\nd")
    ('a 1\\nb 2\\nc\\nd', [])
    >>> merge_lines("a\\nb", "a 1\\nb", "a 2\\nb 2")
    ('a 1\\nb 2', [['a']])
    """
    b, *sides = (text.split("\n") for text in (base, mine, new))
    edits = sorted(
        (start, end, who, side[low:high])
        for who, side in enumerate(sides)
        for kind, start, end, low, high in SequenceMatcher(None, b, side, autojunk=False).get_opcodes()
        if kind != "equal"
    )
    out: list[str] = []
    clashes: list[list[str]] = []
    at = 0
    while edits:
        start, end, *_ = edits[0]
        group: list[tuple[int, int, int, list[str]]] = []
        while edits and (edits[0][0] < end or edits[0][0] == edits[0][1] == start == end or not group):
            group.append(edits.pop(0))
            end = max(end, group[-1][1])
        was, (ours, theirs) = b[start:end], (_edited(b, start, end, group, who) for who in (0, 1))
        parts = [(was, ours, theirs)]
        if len(was) == len(ours) == len(theirs):
            parts = [([x], [y], [z]) for x, y, z in zip(was, ours, theirs, strict=True)]
        out += b[at:start]
        at = end
        for x, y, z in parts:
            out += _pick(x, y, z)
            if x not in (y, z) and y != z:
                clashes.append(x)
    return "\n".join(out + b[at:]), clashes


def _edited(b: list[str], start: int, end: int, group: Iterable, who: int) -> list[str]:
    out: list[str] = []
    for low, high, whose, lines in group:
        if whose == who:
            out += b[start:low] + lines
            start = high
    return out + b[start:end]


def _pick(base: Any, mine: Any, new: Any) -> Any:
    return new if mine == base else mine


def _merge_keys(base: dict, mine: dict, new: dict) -> dict:
    merged = {key: _pick(*(side.get(key, ABSENT) for side in (base, mine, new))) for key in mine | new}
    return {key: value for key, value in merged.items() if value is not ABSENT}


def _touched(cell: Cell, before: Cell) -> bool:
    return any(cell.get(key) != before.get(key) for key in ("source", "cell_type", "attachments"))


def _order(base: list[str], mine: list[str], new: list[str]) -> list[str]:
    """All ids. The published order, unless they moved cells; what one side lacks stands after what it followed."""
    shared = set(base) & set(mine) & set(new)
    moved = [name for name in mine if name in shared] != [name for name in base if name in shared]
    order, others = (list(mine), new) if moved else (list(new), mine)
    for before, name in zip([None, *others], others, strict=False):
        if name not in order:
            order.insert(order.index(before) + 1 if before else 0, name)
    return order


def _give_ids(cells: list[Cell], base: list[Cell]) -> None:
    """Each cell an id of its own: a tool may have dropped or doubled them. A cell like one that is missing is that."""
    seen: set[Any] = set()
    for cell in cells:
        if not isinstance(cell.get("id"), str) or cell["id"] in seen:
            cell["id"] = uuid.uuid4().hex[:8]
        seen.add(cell["id"])
    for lost, found in _pairs(base, cells):
        found["id"] = lost["id"]


def _pairs(before: list[Cell], after: list[Cell]) -> list[tuple[Cell, Cell]]:
    """Cells of ``before`` with those of ``after`` that have another id, and are the same by their text."""
    ids = [{cell["id"] for cell in cells} for cells in (before, after)]
    old = [cell for cell in before if cell["id"] not in ids[1]]
    new = [cell for cell in after if cell["id"] not in ids[0]]
    texts, others = ([(cell["cell_type"], cell["source"]) for cell in cells] for cells in (old, new))
    found: list[tuple[Cell, Cell]] = []
    for kind, i, j, k, l in SequenceMatcher(None, texts, others, autojunk=False).get_opcodes():  # noqa: E741
        if kind in ("equal", "replace") and j - i == l - k:
            pairs = zip(old[i:j], new[k:l], strict=True)
            found += [(x, y) for x, y in pairs if kind == "equal" or _alike(x, y)]
    return found


def _alike(x: Cell, y: Cell) -> bool:
    if x["cell_type"] != y["cell_type"]:
        return False
    (*_, last), (*_, end) = ((cell["source"].split("\n")) for cell in (x, y))
    checked = last == end and last.startswith(("check(", "predict("))
    return checked or SequenceMatcher(None, x["source"], y["source"], autojunk=False).ratio() > 0.6


def same(x: dict[str, Any], y: dict[str, Any]) -> bool:
    """Whether two notebooks say the same, whatever was run in them."""
    return len(x["cells"]) == len(y["cells"]) and not any(map(_touched, x["cells"], y["cells"]))


def new_cell(cell: Cell) -> Cell:
    """The cell with an id of its own, and all that a cell needs."""
    return {"metadata": {}} | cell | {"id": uuid.uuid4().hex[:8]}
