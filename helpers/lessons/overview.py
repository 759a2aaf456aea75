"""The start page of a learner's folder: the published page, with the lessons and what is done in its marked places."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from helpers.lessons import files, merging, progress

PAGE = "START.md"
PUBLISHED = f"{progress.KEPT}/lessons"
"""Where a learner's folder keeps the published version of each of its files."""
ASIDE = {
    "aside": "cells that found no place when the lesson was brought up to date, each whole, with the reason",
    "before": "a whole file of yours, as it was before a newer one took its name",
    "fresh": "the lesson as it is published, because your file of that name cannot be read",
    "damaged": "your progress, as it was when it could not be read in full",
}
"""What a file beside a lesson is, by the word before the ending of its name."""


class Task(NamedTuple):
    """An exercise, or a prediction, which takes no minutes of its own."""

    title: str
    place: str
    minutes: int = 0


class Lesson(NamedTuple):
    file: str
    question: str
    minutes: int
    exercises: dict[str, Task]
    predictions: dict[str, Task]

    @property
    def name(self) -> str:
        """The name of its exercises' module: ``requires_grad`` of ``01_requires_grad.ipynb``."""
        return Path(self.file).stem.partition("_")[2]


def lessons(folder: Path) -> list[Lesson]:
    """The lessons in a folder, in their order."""
    found = ((path.name, merging.parsed(path.read_bytes())) for path in sorted(folder.glob("[0-9]*.ipynb")))
    return [_lesson(name, notebook["cells"]) for name, notebook in found if notebook and notebook["cells"]]


def _lesson(file: str, cells: list[merging.Cell]) -> Lesson:
    title = cells[0]["source"]
    question = re.search(r"^# (.+)", title, re.M)
    exercises: dict[str, Task] = {}
    predictions: dict[str, Task] = {}
    heading = ""
    for cell in cells:
        source = cell["source"]
        if cell["cell_type"] == "markdown":
            text = re.sub(r"^```.*?^```", "", source, flags=re.M | re.S)
            heading = next(reversed(re.findall(r"^#{1,6} (.+)", text, re.M)), heading)
        elif (name := str(cell.get("id"))).startswith("answer-"):
            minutes = re.search(r"^# .*about (\d+) minute", source)
            exercises[name.removeprefix("answer-")] = Task(heading, f"{file}#{place(heading)}", _number(minutes))
        elif asked := re.search(r'^predict\("([^"]+)"', source, re.M):
            predictions[asked[1]] = Task(heading, f"{file}#{place(heading)}")
    whole = _number(re.search(r"About (\d+) minutes", title))
    return Lesson(file, question[1] if question else "", whole, exercises, predictions)


def _number(found: re.Match[str] | None) -> int:
    return int(found[1]) if found else 0


def anchor(heading: str) -> str:
    """The fragment by which JupyterLab and the site find a heading."""
    return heading.strip().replace("`", "").replace(" ", "-")


def place(heading: str) -> str:
    """The same in a link. JupyterLab compares it as it stands: no link reaches a heading with what is encoded here."""
    return quote(anchor(heading), safe=";,/?:@&=+$!~*'()")


def left(lesson: Lesson, stands: Mapping[str, str]) -> int:
    """Minutes left: of each exercise that is not right; of the reading, by the share of guesses not yet ventured."""
    exercises = sum(task.minutes for task in lesson.exercises.values())
    to_do = sum(task.minutes for name, task in lesson.exercises.items() if stands.get(name) != "right")
    ahead = [name not in stands for name in lesson.predictions] or [not stands]
    return to_do + round(max(0, lesson.minutes - exercises) * sum(ahead) / len(ahead))


def table(lessons: Iterable[Lesson], entries: progress.Entries | None = None) -> str:
    """The lessons as Markdown; with ``entries``, what is right, what is left and what is next."""
    rows, total, right, minutes, following = [], 0, 0, 0, ""
    for lesson in lessons:
        shown = f"[{Path(lesson.file).stem.replace('_', ' ', 1)}]({lesson.file})"
        row = [shown, lesson.question, str(lesson.minutes or "")]
        if entries is not None:
            stands = {name: entry.verdict for (of, name), entry in entries.items() if of == lesson.name}
            tasks = {**lesson.predictions, **lesson.exercises}
            done, remaining = sum(stands.get(name) == "right" for name in tasks), left(lesson, stands)
            row += [f"{done} of {len(tasks)}", str(remaining)]
            total, right, minutes = total + len(tasks), right + done, minutes + remaining
            ahead = [task for name, task in lesson.exercises.items() if stands.get(name) != "right"]
            if ahead and not following:
                task = f"[{ahead[0].title}]({ahead[0].place}), about {ahead[0].minutes} minutes, in lesson {shown}"
                following = f"Next: {task if stands else f'lesson {shown}'}."
        rows.append(f"| {' | '.join(row)} |")
    columns = ["lesson", "question", "minutes", *(["right", "minutes left"] if entries is not None else [])]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *rows]
    if entries is not None:
        told = following or "That is all of it."
        lines += ["", f"**{right} of {total} right**, about {minutes} minutes left. {told}"]
    return "\n".join(lines)


def refresh(folder: Path) -> None:
    """Write what there is now into the marked places of a learner's page, wherever these still are."""
    page = files.read(folder / PAGE)
    if page is not None:
        stands = table(lessons(folder / PUBLISHED), progress.kept(folder))
        text = filled(page.decode(errors="surrogateescape"), {"lessons": stands, "put aside": put_aside(folder)})
        files.write(folder / PAGE, text.encode(errors="surrogateescape"))


def put_aside(folder: Path) -> str:
    """What lies beside the lessons, and why."""
    found = sorted([*folder.glob("[!.]*.*.*"), *folder.glob("[!.]*/[!.]*.*.*")])
    kinds = {path.relative_to(folder).as_posix(): path.suffixes[0][1:].partition("-")[0] for path in found}
    listed = [f"- [{name}]({name}): {ASIDE[kind]}" for name, kind in kinds.items() if kind in ASIDE]
    head = ["## Put aside", "", "Nothing of yours is lost. Delete what you no longer need.", ""]
    return "\n".join([*head, *listed]) if listed else ""


def filled(page: str, places: Mapping[str, str]) -> str:
    """The page with other text in its marked places.

    >>> print(filled("All:\\n<!-- lessons -->\\nby number\\n<!-- lessons -->", {"lessons": "01, 02"}))
    All:
    <!-- lessons -->
    <BLANKLINE>
    01, 02
    <BLANKLINE>
    <!-- lessons -->
    """
    for name, text in places.items():
        mark = f"<!-- {name} -->"
        before, found, rest = page.partition(mark)
        _, ended, after = rest.partition(mark)
        if found and ended:
            page = "\n\n".join(filter(None, [f"{before}{mark}", text, f"{mark}{after}"]))
    return page


def plain(page: bytes) -> bytes:
    """The page with nothing in its marked places: what is left is published, or the learner's."""
    text = filled(page.decode(errors="surrogateescape"), {"lessons": "", "put aside": ""})
    return text.encode(errors="surrogateescape")
