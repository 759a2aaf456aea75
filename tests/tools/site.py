"""Look at the built site in Chromium, as readers on a phone, a tablet and a desktop do: `make test-site`.

Every finding is printed with its page. Where Chromium is missing (Debian: apt-get install chromium), it says so.
"""

import contextlib
import shutil
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.tools import lessons

ROOT = lessons.FOLDER.parent
SITE = ROOT / "build" / "site"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
VIEWS = (("phone", 390, 844, "light"), ("tablet", 820, 1180, "dark"), ("desktop", 1440, 900, "light"))
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]

SIDEWAYS = """() => document.documentElement.scrollWidth - document.documentElement.clientWidth"""
# Links inside the site are told from its root.
SEEN = """home => ({
    silent: [...document.images].filter(image => !image.alt.trim()).map(image => image.src),
    ids: [...document.querySelectorAll('[id]')].map(element => element.id),
    links: [...document.querySelectorAll('a[href]')].map(link => link.href.replace(home, '')),
    next: document.querySelector('link[rel=next]')?.href.replace(home, ''),
})"""
# Numbers everything in view that can be clicked, and notes in which order focus comes by, and whether it shows.
# Of radio buttons Tab reaches the one that is chosen; the arrow keys reach the others.
FOLLOW_FOCUS = """() => {
    document.head.insertAdjacentHTML('beforeend', '<style>* { transition: none !important }</style>');
    const look = element => {
        const style = getComputedStyle(element);
        return [style.outline, style.boxShadow, style.background, style.border, style.textDecoration].join();
    };
    const all = document.querySelectorAll('a[href], button, input, summary, [onclick], [role=button]');
    const clickable = [...all].filter(element =>
        !element.disabled && (element.type !== 'radio' || element.checked) &&
        element.checkVisibility({visibilityProperty: true}) && element.getClientRects().length);
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


def findings(folder: Path) -> tuple[list[str], dict[str, dict]]:
    """Everything that a reader of the pages in ``folder`` would stumble over, and what was seen in each page."""
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import sync_playwright

    seen: dict[str, dict] = {}
    with served(folder) as home, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        found = [fault for view in VIEWS for fault in look(browser, Axe(), home, pages(folder), view, seen)]
        browser.close()
    return [*found, *link_faults(folder, seen)], seen


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


def pages(folder: Path) -> list[str]:
    """The addresses of all pages, that of the search with a question."""
    files = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.html")))
    return [f"{file}?q=no_grad" if file == "search.html" else file for file in files if not file.startswith("_static")]


def look(browser, axe, home: str, names: list[str], view: tuple, seen: dict[str, dict]) -> Iterator[str]:
    """What is wrong in the pages themselves; ``seen`` takes what the checks of links need."""
    size, width, height, scheme = view
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    about: list[str] = []
    page.on("request", lambda r: r.url.startswith((home, "data:")) or about.append(f"asks for {r.url}"))
    # Aborted is what was under way when we went on to the next page.
    page.on("requestfailed", lambda r: r.failure == "net::ERR_ABORTED" or about.append(f"failed to get {r.url}"))
    page.on("response", lambda r: r.status < 400 or about.append(f"got {r.status} for {r.url}"))
    page.on("console", lambda m: m.type != "error" or about.append(f"console: {m.text}"))
    page.on("pageerror", lambda error: about.append(f"script error: {error}"))
    for name in names:
        page.goto(home + name)
        if name.startswith("search"):
            page.wait_for_selector("#search-results li")
        seen[name] = page.evaluate(SEEN, home)
        about += [f"the image {source} has no alternative text" for source in seen[name]["silent"]]
        if (over := page.evaluate(SIDEWAYS)) > 0:
            about.append(f"scrolls sideways by {over} pixels")
        about += [*barriers(axe, page), *keyboard(page)]
        if name == "README.html":  # what opens is the same on every page
            about += opened(axe, page)
        yield from (f"{name}, {size}, {scheme}: {fault}" for fault in about)
        about.clear()
    page.close()


def barriers(axe, page) -> Iterator[str]:
    # Without preload: it fetches style sheets once more, from the wrong place.
    for violation in axe.run(page, options={"resultTypes": ["violations"], "preload": False}).response["violations"]:
        if violation["impact"] in ("serious", "critical"):
            first, *_ = nodes = violation["nodes"]
            yield f"{violation['id']}, {len(nodes)} times, first {first['html'][:200]}: {first['failureSummary']}"


def keyboard(page) -> Iterator[str]:
    """Tab through the page, then take its first link, which skips to the text."""
    page.evaluate(FOLLOW_FOCUS)
    round = False
    while not round:
        for _ in range(20):
            page.keyboard.press("Tab")
        round = page.evaluate("tabbing.round")
    tabbing = page.evaluate("tabbing")
    clickable, reached, hidden = tabbing["clickable"], set(tabbing["reached"]), set(tabbing["hidden"])
    yield from (f"Tab does not reach {html}" for number, html in enumerate(clickable) if number not in reached)
    yield from (f"focus cannot be seen on {clickable[number]}" for number in sorted(hidden))
    page.reload()
    for key in ("Tab", "Enter", "Tab"):
        page.keyboard.press(key)
    if not page.evaluate("!!document.activeElement.closest('main')"):
        yield "the first link does not skip to the text"


def opened(axe, page) -> Iterator[str]:
    """The dialogs and menus behind the buttons of a page's head."""
    menus = (".dropdown-download-buttons > button", ".theme-switch-button")
    for name in (*menus, ".search-button", ".secondary-toggle", ".primary-toggle"):
        button = page.locator(f"{name}:visible").first
        if button.count():
            button.press("Enter")
            page.evaluate("Promise.all(document.getAnimations().map(animation => animation.finished)).then(() => {})")
            yield from (f"{name} opened: {fault}" for fault in barriers(axe, page))
            page.keyboard.press("Escape")


def link_faults(folder: Path, seen: dict[str, dict]) -> Iterator[str]:
    """Links inside that are dead, and links to the outside of a wrong form: those are not followed."""
    ids = {name.partition("?")[0]: set(one["ids"]) for name, one in seen.items()}
    for name, one in seen.items():
        for link in sorted(set(one["links"])):
            parts = urlsplit(link)
            target, place = unquote(parts.path) or "index.html", unquote(parts.fragment)
            if parts.scheme:
                if parts.scheme != "https" or "." not in (parts.hostname or ""):
                    yield f"{name}: the link {link} is not one to the outside"
            elif not (folder / target).is_file():
                yield f"{name}: the link {link} leads nowhere"
            elif place and place not in ids.get(target, ()):
                yield f"{name}: the link {link} leads to no place in {target}"


def lesson_faults(folder: Path, seen: dict[str, dict]) -> Iterator[str]:
    """Notebooks without a page or a download, and lessons that do not follow each other."""
    places = {path.relative_to(ROOT).with_suffix(".html").as_posix(): path for path in lessons.paths()}
    for name, path in places.items():
        offered = [folder / link for link in seen[name]["links"] if link.endswith(path.name)]
        if not any(file.is_file() and file.read_bytes() == path.read_bytes() for file in offered):
            yield f"{name}: the notebook cannot be downloaded"
    met, name = [], "README.html"
    while name and name not in met:
        met.append(name)
        name = seen[name]["next"]
    if [name for name in met if name in places] != sorted(places, key=lambda name: ("solutions" in name, name)):
        yield f"the pages follow each other as {', '.join(met)}"


def main() -> int:
    if CHROMIUM is None:
        print("The site was not looked at: there is no Chromium (Debian: apt-get install chromium).")
        return 0
    found, seen = findings(SITE)
    found += lesson_faults(SITE, seen)
    print(*found, f"{len(seen)} pages, {len(found)} findings", sep="\n")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
