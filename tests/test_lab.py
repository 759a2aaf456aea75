"""The lessons as students meet them: in a real JupyterLab, in a real browser.

`make test` opens one lesson, `make test-lab` all lessons and solutions. Needs Chromium (Debian: apt-get install
chromium). A failing run leaves a screenshot in build/lab.
"""

import contextlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
import urllib.request

import pytest

from helpers.lessons.exercises import Lesson
from helpers.lessons.lab import SETTINGS
from tests.tools import lessons
from tests.tools.ports import free_port

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium (Debian: apt-get install chromium)")
SCREENSHOTS = lessons.FOLDER.parent / "build" / "lab"
ALWAYS = "01_requires_grad.ipynb"
NOTEBOOKS = [
    pytest.param(
        path,
        id=path.relative_to(lessons.FOLDER).as_posix(),
        marks=[] if path.name == ALWAYS and path.parent == lessons.FOLDER else pytest.mark.lab,
    )
    for path in lessons.paths()
]
WRONG = "def answer(model):\n    model[0].weight.requires_grad = False\n\n\ncheck('still-trains', answer)"
RIGHT = "def answer(model):\n    model[0].requires_grad_(False)\n\n\ncheck('still-trains', answer)"
VERDICT = f"right: {Lesson('requires_grad').title('still-trains')}"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A JupyterLab over a copy of the notebooks, on loopback, with our settings; gives its folder and address."""
    folder = tmp_path_factory.mktemp("lab")
    for name, values in SETTINGS.items():
        file = folder / "settings" / f"{name.replace(':', '/')}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    shutil.copytree(lessons.FOLDER, folder / "notebooks")
    port, token = free_port(), secrets.token_hex(16)
    places = {"CONFIG_DIR": "config", "DATA_DIR": "data", "RUNTIME_DIR": "runtime"}
    env = os.environ | {f"JUPYTER_{name}": str(folder / part) for name, part in places.items()}
    env |= {f"JUPYTERLAB_{name}_DIR": str(folder / name.lower()) for name in ("SETTINGS", "WORKSPACES")}
    env["npm_config_cache"] = str(folder / "npm")
    command = [sys.executable, "-m", "jupyterlab", "--allow-root", "--no-browser", "--ip=127.0.0.1", f"--port={port}"]
    command += ["--ServerApp.port_retries=0", f"--IdentityProvider.token={token}", str(folder / "notebooks")]
    with (
        (folder / "server.log").open("wb") as log,
        subprocess.Popen(command, env=env, stdout=log, stderr=log) as server,
    ):
        address = f"http://127.0.0.1:{port}"
        try:
            for _ in range(120):
                assert server.poll() is None, (folder / "server.log").read_text()
                with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/api?token={token}"):
                    break
                time.sleep(0.5)
            yield folder / "notebooks", f"{address}/lab/tree/{{}}?reset&token={token}"
        finally:
            server.terminate()


@pytest.fixture
def page(request, tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is missing: install the extra 'ci'")
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_api.sync_playwright() as playwright:
        env = os.environ | {"XDG_CONFIG_HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*quiet, "--disable-sync"], env=env)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(180_000)
        page.complaints = []
        page.on("console", lambda message: message.type == "error" and page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("dialog", lambda dialog: (page.complaints.append(f"dialog: {dialog.message}"), dialog.accept()))
        failed = request.session.testsfailed
        yield page
        if request.session.testsfailed > failed:
            SCREENSHOTS.mkdir(parents=True, exist_ok=True)
            name = re.sub(r"\W+", "-", request.node.name).strip("-")
            page.screenshot(path=SCREENSHOTS / f"{name}.png")
        browser.close()


def opened(page, lab, name):
    page.goto(lab[1].format(name))
    page.wait_for_selector(".jp-Notebook .jp-CodeCell .cm-content")
    page.locator(".jp-KernelName", has_text="Python 3 (ipykernel)").wait_for()
    idle(page)


def menu(page, name, item):
    page.locator(".lm-MenuBar-item", has_text=re.compile(f"^{name}$")).click()
    page.locator(".lm-Menu-item", has_text=re.compile(f"^{item}")).first.click()


def idle(page, seconds=180):
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]", timeout=1000 * seconds)


def prompts(page):
    """What stands before each code cell: [1]: when it has run, [*]: while it runs or waits, [ ]: before."""
    return [text.strip() for text in page.locator(".jp-Notebook .jp-CodeCell .jp-InputPrompt").all_inner_texts()]


def finished(page, seconds=600):
    """Wait until every cell has run, or a dialog asks something."""
    end = time.monotonic() + seconds
    while not all(re.fullmatch(r"\[\d+\]:", prompt) for prompt in prompts(page)):
        assert page.locator(".jp-Dialog").count() == 0, page.locator(".jp-Dialog").inner_text()
        assert time.monotonic() < end, f"not finished after {seconds} s: {prompts(page)}"
        page.wait_for_timeout(500)
    idle(page)


def saved(page, path):
    before = path.stat().st_mtime_ns
    menu(page, "File", "Save Notebook")
    for _ in range(100):
        if path.stat().st_mtime_ns != before:
            time.sleep(0.5)
            return lessons.read(path)
        page.wait_for_timeout(100)
    raise AssertionError("the notebook was not saved")


def printed(cell):
    """What nbval compares of a cell, with the parts of a stream put together, which Jupyter may send in pieces."""
    told = {}
    for output in cell.get("outputs", []):
        kind = output.get("name", output["output_type"])
        told[kind] = told.get(kind, "") + output.get("text", output.get("evalue", ""))
        told[kind] += output.get("data", {}).get("text/plain", "")
    return told


@pytest.mark.parametrize("path", NOTEBOOKS)
def test_run_all_gives_what_is_stored(page, lab, path):
    name = path.relative_to(lessons.FOLDER).as_posix()
    opened(page, lab, name)
    menu(page, "Edit", "Clear Outputs of All Cells")
    assert not any(re.search(r"\d", prompt) for prompt in prompts(page))
    menu(page, "View", "Expand All Code")  # a folded cell has no prompt that would say that it has run
    menu(page, "Run", "Run All Cells")
    finished(page)
    assert page.complaints == []
    stored, run = lessons.read(path), saved(page, lab[0] / name)
    assert [cell["id"] for cell in run["cells"]] == [cell["id"] for cell in stored["cells"]]
    for old, new in zip(stored["cells"], run["cells"], strict=True):
        assert printed(new) == printed(old), old["id"]
        assert "error" not in printed(new) or "raises-exception" in new["metadata"]["tags"], old["id"]
    pictures = [
        output["data"]
        for cell in stored["cells"]
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    images = page.locator(".jp-OutputArea-output img")
    assert images.count() == len(pictures)
    for number, data in enumerate(pictures):
        images.nth(number).scroll_into_view_if_needed()
        assert images.nth(number).evaluate(
            "image => image.complete && image.naturalWidth > 0 && image.clientWidth > 200"
        )
        words = (
            page.locator(".jp-OutputArea-output details")
            .filter(has=page.get_by_text("In words", exact=True))
            .nth(number)
        )
        assert not words.locator("p").is_visible()
        words.locator("summary").click()
        assert " ".join(data["text/plain"].split()) == " ".join(words.locator("p").inner_text().split())


def run(page, cell, source=None):
    """Run a cell as it is, or with ``source`` typed into it."""
    cell.locator(".cm-content").click()
    if source:
        page.keyboard.press("Control+a")
        page.keyboard.insert_text(source)
    page.keyboard.press("Shift+Enter")


def test_an_answer_is_checked_and_kept(page, lab):
    opened(page, lab, ALWAYS)
    cells = page.locator(".jp-CodeCell")
    (number,) = [n for n, text in enumerate(cells.all_inner_texts()) if 'check("still-trains"' in text]
    answer = cells.nth(number)
    run(page, cells.first)
    run(page, answer, WRONG)
    answer.get_by_text("0.bias still requires a gradient. Every parameter in model[0] is to be frozen").wait_for()
    run(page, answer, RIGHT)
    answer.get_by_text(VERDICT).wait_for()
    saved(page, lab[0] / ALWAYS)
    page.reload()
    page.wait_for_selector(".jp-Notebook .jp-CodeCell .cm-content")
    assert "model[0].requires_grad_(False)" in answer.locator(".cm-content").inner_text()
    assert VERDICT in answer.locator(".jp-OutputArea").inner_text()
    assert page.complaints == [] and page.locator(".jp-Dialog").count() == 0


@pytest.mark.lab
@pytest.mark.parametrize("heading", [r"## [\w ]+", r"##+ .*`\w+[(].*", r"### `[^`]*'[^`]*[(].*"])
def test_a_link_of_the_index_opens_the_lesson_and_then_finds_the_section(page, lab, heading):
    rows = re.findall(r"\[\d\d\]\(\S+\) \| \[(.*)\]\((\S+)#(\S+)\) \|$", (lab[0] / "INDEX.md").read_text("utf-8"), re.M)
    texts = {file: "\n".join(c["source"] for c in lessons.read(lab[0] / file)["cells"]) for _, file, _ in rows}
    fits = [bool(re.fullmatch(heading, re.search(rf"^##+ {re.escape(to)}$", texts[f], re.M)[0])) for to, f, _ in rows]
    number = fits.index(True)
    page.goto(lab[1].format("INDEX.md"))
    link = page.locator(".jp-MarkdownViewer td:last-child a").nth(number)
    link.click()
    page.wait_for_selector(".jp-Notebook .jp-CodeCell .cm-content")
    idle(page)
    found = page.locator(f".jp-Notebook [data-jupyter-id={json.dumps(rows[number][2])}]")
    expect = pytest.importorskip("playwright.sync_api").expect
    expect(found).not_to_be_in_viewport()
    page.locator(".lm-TabBar-tab", has_text="INDEX.md").first.click()
    link.click()
    expect(found).to_be_in_viewport()
    assert page.complaints == [] and page.locator(".jp-Dialog").count() == 0
