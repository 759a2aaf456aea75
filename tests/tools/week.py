"""A learner's week, as it is lived: in a fresh clone, and from the wheel in an empty folder.

``python -m tests.tools.week`` (``make week``) makes the copy, ventures a guess, answers an exercise, adds a cell, lets
the lessons change, and starts again and again. It says what each day left, and fails where a line of the learner is
gone, the progress forgets, or a published file is touched. JupyterLab is started on the last day, plainly and as
learners start it, three times each, and the seconds are told.

``python -m tests.tools.week all`` goes through all lessons instead, from the wheel: untouched they score nothing; with
what the text says came out as guesses and the solutions as answers, everything is right, and a start later it is so.
"""

import contextlib
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbclient
import nbformat

from tests.tools import lessons
from tests.tools.handed_out import DIST, ROOT, build
from tests.tools.ports import free_port

LESSON = "01_requires_grad.ipynb"
COPY = "gradient-lessons"
OWN = "print('a cell of my own')"
SAYS = "*This sentence is new in the lesson.*"


def by_clone(place: Path) -> tuple[Path, Path]:
    """A fresh clone: the folder of the package, and that of the published lessons."""
    subprocess.run(["git", "clone", "--quiet", ROOT, place / "clone"], check=True)
    return place / "clone", place / "clone" / "notebooks"


def by_wheel(place: Path) -> tuple[Path, Path]:
    """What the wheel installs, beside the requirements that are there already."""
    build()
    (wheel,) = DIST.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", place / "site", wheel]
    subprocess.run(pip, check=True)
    return place / "site", place / "site" / "helpers" / "lessons" / "notebooks"


class Week:
    def __init__(self, place: Path, package: Path, published: Path) -> None:
        self.place, self.published, self.folder = place, published, place / "desk" / COPY
        self.folder.parent.mkdir()
        places = {f"JUPYTER_{name}_DIR": str(place / name) for name in ("CONFIG", "DATA", "RUNTIME")}
        self.env = os.environ | places | {"PYTHONPATH": str(package), "PYTHONDONTWRITEBYTECODE": "1"}

    def start(self) -> str:
        command = [sys.executable, "-m", "helpers.lessons.lab", COPY, "--copy-only"]
        ran = subprocess.run(command, cwd=self.folder.parent, env=self.env, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout.strip()

    def page(self) -> str:
        (stands,) = re.findall(r"\*\*(\d+ of \d+) right\*\*", (self.folder / "START.md").read_text("utf-8"))
        return stands

    def progress(self) -> list[str]:
        """What the file says of each exercise or guess: its name and the verdict."""
        path = self.folder / "progress.txt"
        lines = path.read_text("utf-8").splitlines()[1:] if path.exists() else []
        return [" ".join(line.split()[1:-1]) for line in lines]

    def cells(self) -> dict[str, dict]:
        return {cell["id"]: cell for cell in lessons.read(self.folder / LESSON)["cells"]}

    def write(self, changes: dict[str, str], added: str = "") -> None:
        """Change cells, and add one below the first code, as a learner does; save it as Jupyter does."""
        notebook = nbformat.read(self.folder / LESSON, as_version=4)
        for cell in notebook.cells:
            cell.source = changes.get(cell.id, cell.source)
        if added:
            notebook.cells.insert(2, nbformat.v4.new_code_cell(added))
        nbformat.write(notebook, self.folder / LESSON)

    def run(self, lesson: str = LESSON, before: str = "pass", after: str = "pass") -> str:
        """Run All, in a kernel that belongs to this notebook; gives what ``after`` prints, which is not in the file."""
        notebook = nbformat.read(self.folder / lesson, as_version=4)
        first, last = map(nbformat.v4.new_code_cell, (before, after))
        notebook.cells = [first, *notebook.cells, last]
        client = nbclient.NotebookClient(notebook, resources={"metadata": {"path": str(self.folder)}}, timeout=300)
        client.execute(env=self.env | {"JPY_SESSION_NAME": str(self.folder / lesson)})
        notebook.cells = notebook.cells[1:-1]
        nbformat.write(notebook, self.folder / lesson)
        return "".join(output.get("text", "") for output in last.outputs)

    def answered(self, lesson: str) -> None:
        """Run a lesson as it is, which scores nothing; then guess what came out, and answer as solutions do."""
        name = lesson.partition("_")[2].removesuffix(".ipynb")
        stood = self.progress()
        self.run(lesson)
        assert self.progress() == stood, f"{lesson} scores as it comes"
        solved = _solutions(self.folder / "solutions" / f"{lesson[:2]}_solutions.ipynb")
        notebook = nbformat.read(self.folder / lesson, as_version=4)
        said, asked = lessons.said(notebook.cells), 0
        for cell in notebook.cells:
            if called := lessons.PREDICTS.search(cell.source):
                cell.source, asked = cell.source.replace("guess = ...", f"guess = {said[called[1]]}", 1), asked + 1
            asked += cell.id in solved
            cell.source = solved.get(cell.id, cell.source)
        nbformat.write(notebook, self.folder / lesson)
        self.run(lesson)
        now = [
            line for line in (self.folder / "progress.txt").read_text("utf-8").splitlines() if line.split()[0] == name
        ]
        wrong = [line for line in now if " right " not in line]
        assert len(now) == asked and not wrong, (lesson, asked, now)

    def untouched(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.published.rglob("*") if path.is_file()}

    def live(self) -> Iterator[str]:
        before = self.untouched()
        first = self.start()
        yield f"Monday: {first}; {self.page()}"
        assert self.page().startswith("0 of ") and self.progress() == []
        self.run()
        yield f"Monday, all cells run as they are: {self.page()}"
        assert self.page().startswith("0 of ") and not self.progress(), "an untouched lesson scores"

        guess = self.cells()["frozen-middle"]["source"].replace("guess = ...", "guess = [True, False, True]", 1)
        self.write({"frozen-middle": guess})
        self.run()
        yield f"Tuesday, a guess: {self.page()}; {self.progress()}"
        assert [line.partition(" ")[0] for line in self.progress()] == ["frozen-middle"]

        solved = _solutions(self.folder / "solutions" / "01_solutions.ipynb")
        self.write({"answer-still-trains": solved["answer-still-trains"]}, added=OWN)
        self.run()
        yield f"Wednesday, an answer and a cell of their own: {self.page()}; {self.progress()}"
        assert "still-trains right" in self.progress() and self.untouched() == before
        stood, written = self.progress(), self.cells()

        newer = lessons.read(self.published / LESSON)
        newer["cells"][0]["source"] += f"\n\n{SAYS}"
        (self.published / LESSON).write_text(lessons.written(newer), "utf-8")
        told = self.start()
        now = self.cells()
        yield f"Thursday, the lessons have changed: {told.splitlines()[0]}; {self.page()}; {self.progress()}"
        assert SAYS in now["title"]["source"] and self.progress() == stood
        for id, cell in written.items():
            assert id == "title" or now[id]["source"] == cell["source"], id
        assert OWN in [cell["source"] for cell in now.values()] and not list(self.folder.glob("*.aside.*"))

        self.run()
        yield f"Friday, run once more: {self.page()}; {self.progress()}"
        assert self.progress() == stood
        commands = ["jupyterlab", "--allow-root"], ["helpers.lessons.lab", COPY]
        plainly, ours = (min(self.served(command) for _ in range(3)) for command in commands)
        yield f"Friday, JupyterLab: a served page after {plainly:.1f} s plainly, {ours:.1f} s by our command"
        assert ours - plainly <= 5

    def through(self) -> Iterator[str]:
        """All lessons, in the order in which a learner meets them."""
        self.start()
        for path in sorted(self.folder.glob("[0-9]*.ipynb")):
            self.answered(path.name)
            yield f"{path.name}: {self.page()}"
        done = self.page()
        right, _, all_of_them = done.split()
        assert right == all_of_them and self.start() and self.page() == done, done
        yield f"started again: {done}"

    def served(self, command: list[str]) -> float:
        """Seconds until a page is served, and the server ended."""
        port, token = free_port(), secrets.token_hex(16)
        words = [*command, "--no-browser", f"--port={port}", f"--IdentityProvider.token={token}"]
        began = time.monotonic()
        with (self.place / "server.log").open("ab") as log:
            server = subprocess.Popen(
                [sys.executable, "-m", *words], cwd=self.folder.parent, env=self.env, stdout=log, stderr=log
            )
            try:
                while time.monotonic() < began + 60:
                    assert server.poll() is None, (self.place / "server.log").read_text()
                    with contextlib.suppress(OSError):
                        urllib.request.urlopen(f"http://127.0.0.1:{port}/lab?token={token}").close()
                        return time.monotonic() - began
                    time.sleep(0.1)
                raise AssertionError("no page within a minute")
            finally:
                server.send_signal(signal.SIGTERM)
                server.wait()


def _solutions(path: Path) -> dict[str, str]:
    """By answer cell the code to paste into it: a solution, with the cells before it that it needs."""
    found, code = {}, []
    for cell in lessons.read(path)["cells"]:
        kind, _, name = cell["id"].partition("-")
        if kind == "exercise":
            code = []
        elif cell["cell_type"] == "code":
            code.append(cell["source"])
            if kind == "solution":
                found[f"answer-{name}"] = "\n\n\n".join(code)
    return found


def main(words: list[str]) -> int:
    for way in (by_wheel,) if words else (by_clone, by_wheel):
        with tempfile.TemporaryDirectory() as place:
            package, published = way(Path(place))
            print(f"# {way.__doc__.partition(':')[0].partition(',')[0]}", flush=True)
            week = Week(Path(place), package, published)
            for told in week.through() if words else week.live():
                print(told.replace(place, ""), flush=True)
            if way is by_clone:
                git = ["git", "-C", package, "status", "--short"]
                changed = subprocess.run(git, capture_output=True, text=True, check=True).stdout.split()
                assert changed == ["M", f"notebooks/{LESSON}"], changed  # our own change of Thursday
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
