"""The network that is frozen with a click shows what torch does, and can be used by whoever comes."""

import json
import os
import random

import pytest

from tests.tools import click
from tests.tools.site import CHROMIUM, FLAGS

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium (Debian: apt-get install chromium)")
DATA = click.stored()
EVERY = list(click.states())
SAMPLE = EVERY if os.environ.get("EVERY_STATE") else random.Random(0).sample(EVERY, 32)  # make matrix: all of them


def test_what_is_stored_is_what_torch_does_now():
    wrong = []
    for state in SAMPLE:
        now = json.loads(json.dumps(click.encoded(iter([click.look(state)]))))
        if click.resolved(now, 0) != click.resolved(DATA, state.number):
            wrong.append((state, click.resolved(now, 0)))
    assert not wrong, "run: make click"


def said(*settings):
    """What is stored of a state, by row where it is by row."""
    gradient, _, kept, moved, _, flops, equal, failed = click.resolved(DATA, click.of(*settings).number)
    rows = [dict(zip(click.ROWS, one, strict=True)) for one in (gradient, kept[1], moved)]
    return (*rows, kept[0].partition(",")[0], flops.partition(" ")[0], equal, failed)


def test_every_state_has_its_place_and_the_story_tells_what_is_so():
    assert [state.number for state in EVERY] == list(range(512)) == list(range(len(DATA["states"])))
    assert len(click.STEPS) == 5
    (all_before, middle), (_, moves), (_, held), (_, attack), (_, head) = [
        [said(*step.before), said(*step.after)] for step in click.STEPS
    ]
    gets, keeps, changes, total, work, *_ = middle
    assert gets["conv1"] and gets["bn"] and not gets["conv2"] and total == all_before[3] == "394.5 KiB"
    assert 0.3 < 1 - int(work.replace(",", "")) / int(all_before[4].replace(",", "")) < 0.35
    assert said("11101", "train", "no", "flags")[3] == "345.5 KiB", "49.0 KiB less by fc1"
    gets, keeps, changes, *_ = moves
    assert changes["bn"] == "changes running_mean, running_var, num_batches_tracked"
    assert not any(keeps[name] for name in click.ROWS[: click.ROWS.index("fc1")])
    gets, keeps, changes, *_, equal, _ = held
    assert [name for name, told in changes.items() if told] == ["fc1", "fc2"] and equal == 0
    assert attack[0]["input"] and attack[3] == "394.4 KiB" and not attack[0]["conv1"]
    gets, keeps, changes, total, work, *_ = head
    assert all(gets[name] for name in click.SWITCHED) and (total, work) == ("394.5 KiB", "5,680,128")
    assert [name for name, told in changes.items() if told] == ["bn", "fc2"]
    for way in ("flags", "no_grad", "head"):
        gets, keeps, changes, total, work, *_ = said("00001", "train", "no", way)
        assert (total, work) == ("2.4 KiB", "5,120") and changes["bn"]


def test_the_page_is_made_of_its_parts_and_asks_for_nothing_elsewhere():
    text = click.PAGE.read_text("utf-8")
    assert text == click.page(DATA), "run: make click"
    assert len(text.encode()) < 150_000
    assert not [word for word in ("http:", "https:", "src=", "url(", "@import", "fetch(") if word in text]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is missing: install the extra 'ci'")
    home = str(tmp_path_factory.mktemp("chromium"))
    with sync_api.sync_playwright() as playwright:
        env = os.environ | {"XDG_CONFIG_HOME": home, "XDG_CACHE_HOME": home}
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, env=env)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser):
    complaints = []

    def opened(address="", **settings):
        page = browser.new_context(**settings).new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda asked: asked.url.startswith("file:") or complaints.append(asked.url))
        page.goto(click.PAGE.as_uri() + address)
        return page

    yield opened
    assert complaints == []
    for context in browser.contexts:
        context.close()


def seen(page):
    """What the page shows, in the form in which it is stored."""
    rows = page.locator(".live ol.net > li:not(.head)")
    part = lambda name: [text.strip() for text in rows.locator(f".{name}").all_inner_texts()]  # noqa: E731
    got = [click.WORDS["gradient"][1] in text for text in part("gradient")]
    passed = [text == click.WORDS["passed"][1] for text in part("passed")]
    widths = [int(style[len("width:") :].strip(" ;%")) for style in rows.locator(".bar").evaluate_all(
        "bars => bars.map(bar => bar.getAttribute('style'))")]  # fmt: skip
    total, flops = page.locator(".live .total").inner_text(), page.locator(".live .flops").inner_text()
    told = page.locator(".live .told div").all_inner_texts()
    equal = page.locator(".live .equal").inner_text()
    failed = page.locator(".live .told-of").inner_text()
    return [
        list(map(int, got)),
        list(map(int, passed)),
        [total, part("size"), widths],
        part("moved"),
        [line for line in told if line != click.WORDS["silent"]],
        flops,
        click.WORDS["equal"].index(equal),
        click.WORDS["told"].index(failed),
    ]


def is_shown(page, state):
    assert seen(page) == click.resolved(DATA, state.number)
    flags = [button.get_attribute("aria-checked") == "true" for button in page.get_by_role("switch").all()]
    assert flags == [name in state.trainable for name in click.SWITCHED]


@needs_chromium
@pytest.mark.parametrize("settings", [{}, {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"}])
def test_the_story_shows_each_state_and_its_answer_waits(opened, settings):
    page = opened(**settings)
    for number, (title, _, answer, before, after) in enumerate(click.STEPS, 1):
        page.get_by_role("button", name=f"{number}. {title}").click()
        is_shown(page, click.of(*before))
        told = page.locator(".step:not([hidden]) details p").first
        assert page.locator(".step:not([hidden])").count() == 1 and not told.is_visible()
        page.locator(".step:not([hidden]) summary").click()
        page.wait_for_function("place => location.hash === place", arg=f"{click.of(*after).address}-step{number}")
        is_shown(page, click.of(*after))
        assert told.inner_text() == answer.replace("**", "")
        since = page.get_by_text("You have changed the settings since.").and_(page.locator(":visible"))
        assert since.count() == 0
        page.get_by_role("switch").first.click()
        since.wait_for()
        since.get_by_role("button").click()
        is_shown(page, click.of(*after))
        page.reload()
        is_shown(page, click.of(*after))
        assert told.is_visible() and page.locator(".step:not([hidden]) h2").inner_text().startswith(f"{number}.")
    page.get_by_role("button", name="On your own").click()
    assert page.locator(".step:not([hidden])").count() == 0 and page.get_by_text(click.FREE).is_visible()
    page.go_back()
    assert page.locator(".step:not([hidden]) h2").inner_text().startswith("5.")
    sideways = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(sideways) <= 0


@needs_chromium
def test_every_switch_works_by_keyboard_and_each_change_is_told(opened):
    page = opened()
    page.locator("body").press("Tab")
    for _ in range(40):
        focused = page.evaluate("document.activeElement.textContent")
        if focused.startswith("conv2"):
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Space")
    is_shown(page, click.of("11011", "train", "no", "flags"))
    told = page.get_by_role("status").inner_text()
    assert (
        "With a gradient: conv1, BatchNorm, fc1, fc2." in told
        and "Saved for backward: 394.5 KiB" in told
        and "no findings" in told
    )
    page.get_by_label("eval()").focus()
    page.keyboard.press("Space")
    page.get_by_label("helpers.freeze()").focus()
    page.keyboard.press("Space")
    is_shown(page, click.of("11011", "eval", "no", "freeze"))
    assert page.get_by_role("status").inner_text() != told


@needs_chromium
def test_an_address_is_a_state(opened):
    for state in random.Random(1).sample(EVERY, 12):
        is_shown(opened(state.address), state)
    lost = opened("#11111-train-no-magic")
    is_shown(lost, click.of(*click.STEPS[0].before))
    assert lost.get_by_text(click.LOST).is_visible() and not opened().get_by_text(click.LOST).is_visible()
    page = opened(EVERY[7].address)
    page.evaluate(f"location.hash = {json.dumps(EVERY[99].address)}")
    page.wait_for_timeout(100)
    is_shown(page, EVERY[99])


@needs_chromium
def test_without_javascript_the_story_is_there_in_pictures_and_words(opened):
    page = opened(java_script_enabled=False)
    assert page.locator(".live").is_hidden() and page.locator(".steps").is_hidden()
    steps = page.locator(".step")
    assert steps.count() == len(click.STEPS)
    steps.nth(1).locator("summary").click()
    pictures = steps.nth(1).locator("ol.net")
    assert pictures.count() == 2 and pictures.nth(1).is_visible()
    assert "changes running_mean, running_var, num_batches_tracked" in pictures.nth(1).inner_text()


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(opened, scheme):
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe is missing: install the extra 'site'"
    )
    page = opened("#00011-train-no-flags", color_scheme=scheme)
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
