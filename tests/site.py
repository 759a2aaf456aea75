"""Look at the built site in Chromium, as readers on a phone, a tablet and a desktop do. `make site` builds it and runs this.

Every finding is printed, with its page. Where Chromium or the extra `site` is missing, nothing is looked at.
"""

import contextlib
import json
import shutil
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests import lessons

ROOT = Path(__file__).parent.parent
SITE = ROOT / "build" / "site"
VIEWS = (("phone", 390, 844, "light"), ("tablet", 820, 1180, "dark"), ("desktop", 1440, 900, "light"))
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]

SIDEWAYS = """() => document.documentElement.scrollWidth - document.documentElement.clientWidth"""
SEEN = """() => ({
    silent: [...document.images].filter(image => !image.alt.trim()).map(image => image.src),
    ids: [...document.querySelectorAll('[id]')].map(element => element.id),
    links: [...document.querySelectorAll('a[href]')].map(link => link.href),
    next: document.querySelector('link[rel=next]')?.href,
})"""
# Numbers everything in view that can be clicked, and notes in which order focus comes by, and whether it shows.
FOLLOW_FOCUS = """() => {
    document.head.insertAdjacentHTML('beforeend', '<style>* { transition: none !important }</style>');
    const look = element => {
        const style = getComputedStyle(element);
        return [style.outline, style.boxShadow, style.background, style.border, style.textDecoration].join();
    };
    const all = document.querySelectorAll('a[href], button, input, select, textarea, summary, [onclick], [role=button]');
    const clickable = [...all].filter(element =>
        !element.disabled && element.checkVisibility({visibilityProperty: true}) && element.getClientRects().length);
    const plain = clickable.map(look), stops = [];
    window.tabbing = {clickable: clickable.map(element => element.outerHTML.slice(0, 120)), reached: [], hidden: []};
    document.addEventListener('focusin', ({target}) => {
        const number = clickable.indexOf(target);
        window.tabbing.round = stops.includes(target);
        stops.push(target);
        window.tabbing.reached.push(number);
        if (number >= 0 && look(target) === plain[number]) window.tabbing.hidden.push(number);
    });
}"""


def pages() -> list[str]:
    """The addresses of all pages, those of the search with a question."""
    files = (path.relative_to(SITE).as_posix() for path in sorted(SITE.rglob("*.html")))
    return [f"{file}?q=no_grad" if file == "search.html" else file for file in files if not file.startswith("_static")]


@contextlib.contextmanager
def served() -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=SITE))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


def look(browser, axe, home: str) -> tuple[list[str], dict[str, dict]]:
    """What is wrong in the pages themselves, and what was seen of each for `link_faults`."""
    found, seen = [], {}
    for size, width, height, scheme in VIEWS:
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        traffic: list[str] = []
        page.on("request", lambda r: r.url.startswith((home, "data:")) or traffic.append(f"asks for {r.url}"))
        page.on("requestfailed", lambda r: traffic.append(f"failed to get {r.url}"))
        page.on("response", lambda r: r.status < 400 or traffic.append(f"got {r.status} for {r.url}"))
        page.on("console", lambda m: m.type != "error" or traffic.append(f"console: {m.text}"))
        page.on("pageerror", lambda error: traffic.append(f"script error: {error}"))
        for name in pages():
            page.goto(home + name)
            if name.startswith("search"):
                page.wait_for_selector("#search-results li")
            seen[name] = page.evaluate(SEEN)
            about = [f"the image {src} has no alternative text" for src in seen[name]["silent"]]
            if (over := page.evaluate(SIDEWAYS)) > 0:
                about.append(f"scrolls sideways by {over} pixels")
            about += [*barriers(axe, page), *keyboard(page), *traffic]
            traffic.clear()
            found += [f"{name}, {size}, {scheme}: {fault}" for fault in about]
        page.close()
    return found, seen


def barriers(axe, page) -> Iterator[str]:
    # Without preload: it fetches style sheets again, from the wrong place.
    for violation in axe.run(page, options={"resultTypes": ["violations"], "preload": False}).response["violations"]:
        if violation["impact"] in ("serious", "critical"):
            nodes = violation["nodes"]
            yield f"{violation['id']}: {len(nodes)} of it, first {nodes[0]['html'][:200]}: {nodes[0]['failureSummary']}"


def keyboard(page) -> Iterator[str]:
    """Tab through the page, then take its first link, which skips to the text."""
    page.evaluate(FOLLOW_FOCUS)
    round = False
    while not round:
        for _ in range(20):
            page.keyboard.press("Tab")
        round = page.evaluate("tabbing.round")
    focus = page.evaluate("tabbing")
    yield from (f"Tab does not reach {html}" for n, html in enumerate(focus["clickable"]) if n not in focus["reached"])
    yield from (f"focus cannot be seen on {focus['clickable'][n]}" for n in sorted(set(focus["hidden"])))
    page.reload()
    for key in ("Tab", "Enter", "Tab"):
        page.keyboard.press(key)
    if not page.evaluate("!!document.activeElement.closest('main')"):
        yield "the first link does not skip to the text"


def link_faults(home: str, seen: dict[str, dict]) -> Iterator[str]:
    """Dead links inside, misshapen ones to the outside (they are not followed), notebooks that cannot be fetched."""
    ids = {name.partition("?")[0]: set(one["ids"]) for name, one in seen.items()}
    for name, one in seen.items():
        for link in sorted(set(one["links"])):
            parts = urlsplit(link)
            if not link.startswith(home):
                if parts.scheme != "https" or "." not in (parts.hostname or ""):
                    yield f"{name}: the link {link} is none to the outside"
                continue
            target = unquote(parts.path).lstrip("/") or "index.html"
            if not (SITE / target).is_file():
                yield f"{name}: the link {link} leads nowhere"
            elif parts.fragment and target in ids and unquote(parts.fragment) not in ids[target]:
                yield f"{name}: the link {link} leads to no place in {target}"
    for path in lessons.paths():
        name = path.relative_to(ROOT).with_suffix(".html").as_posix()
        offered = [SITE / unquote(urlsplit(link).path).lstrip("/") for link in seen[name]["links"] if link.endswith(path.name)]
        if not any(file.is_file() and file.read_bytes() == path.read_bytes() for file in offered):
            yield f"{name}: the notebook cannot be downloaded"


def order_faults(home: str, seen: dict[str, dict]) -> Iterator[str]:
    """Whoever goes on and on from the first page must meet the lessons in their order."""
    met, name = [], "README.html"
    while name and name not in met:
        met.append(name)
        name = (seen[name]["next"] or "").removeprefix(home)
    due = [path.relative_to(ROOT).with_suffix(".html").as_posix() for path in lessons.paths() if path.parent == lessons.FOLDER]
    if [name for name in met if name in due] != due:
        yield f"the pages follow each other as {', '.join(met)}"


def main() -> int:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    try:
        from axe_playwright_python.sync_playwright import Axe
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        print(f"The site was not looked at: {error}. Install the extra 'site'.")
        return 0
    if not chromium:
        print("The site was not looked at: there is no chromium and no google-chrome on the PATH.")
        return 0
    with served() as home, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        found, seen = look(browser, Axe(), home)
        browser.close()
        found += [*link_faults(home, seen), *order_faults(home, seen)]
    print(*found, sep="\n", end="\n" if found else "")
    print(f"{len(seen)} pages, {len(found)} findings")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
