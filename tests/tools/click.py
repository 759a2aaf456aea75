"""The network that is frozen with a click: what torch says of each of its states, and the page that shows it.

``python -m tests.tools.click`` (``make click``) runs every state that the page can reach and writes `PAGE`, which is in
each learner's folder. The site shows the same `fragment`. The page computes nothing: it looks up what is stored in it.
"""

import copy
import html
import itertools
import json
import sys
import tomllib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from helpers import audit, freeze, saved_tensors, watch
from tests.tools.site import CHROMIUM, FLAGS

ROOT = Path(__file__).parents[2]
PARTS, PAGE, HERE = ROOT / "docs" / "click", ROOT / "notebooks" / "CLICK.html", "<!-- the network -->"
PICTURE = PAGE.with_name("click.png")
HEADS = ("layer, forward \u2193", "gradient, backward \u2191", "saved for backward", "changed by the step")
SWITCHED = ("conv1", "bn", "conv2", "fc1", "fc2")
"""The layers with parameters: each has a switch."""
ROWS = ("input", "conv1", "bn", "relu1", "conv2", "relu2", "dropout", "fc1", "relu2b", "fc2", "loss")
FIRST_PART = ("conv1", "bn", "relu1", "conv2", "relu2")
"""What `no_grad` stands around in one of the ways."""
WAYS = {
    "flags": "flags: requires_grad_(False)",
    "freeze": "helpers.freeze(): flags, and held in eval mode",
    "no_grad": "flags, and no_grad from conv1 to the second ReLU",
    "head": "flags, and only fc2 in the optimizer",
}
CHOICES = {
    "mode": ("Mode of the model", {"train": "train()", "eval": "eval()"}),
    "input": ("The images require grad", {"no": "no", "yes": "yes"}),
    "way": ("Frozen by", WAYS),
}
MODES, INPUTS, _ = (list(values) for _, values in CHOICES.values())
WORDS = {
    "flag": ["frozen", "trainable"],
    "gradient": ["no gradient", "gets a gradient", "no gradient, though it requires grad"],
    "passed": ["", "\u2191 passes one on"],
    "equal": ["no, dropout draws", "yes"],
    "told": ["helpers.audit says", "The step fails"],
    "silent": "no findings",
}
TABLES = ("gradient", "passed", "kept", "moved", "told")
"""What many states have in common, in the order in which a state names it."""
WIDEST = 16 * 8 * 14 * 14 * 4
"""Bytes of the largest tensor of a layer, 16 images of 8 channels: its bar is as wide as there is room."""
LABELS = {"input": "images", "bn": "BatchNorm", "relu1": "ReLU", "relu2": "ReLU", "relu2b": "ReLU"}


class Step(NamedTuple):
    title: str
    question: str
    answer: str
    before: list[str]
    after: list[str]


TEXTS = tomllib.loads((PARTS / "story.toml").read_text("utf-8"))
INTRO, FREE, LOST, LEGEND = (" ".join(TEXTS[name].split()) for name in ("intro", "free", "lost", "legend"))
STEPS = [
    Step(**{name: " ".join(v.split()) if isinstance(v, str) else v for name, v in s.items()}) for s in TEXTS["steps"]
]


class State(NamedTuple):
    """What the reader has set."""

    trainable: frozenset[str]
    mode: str
    input: str
    way: str

    @property
    def number(self) -> int:
        """Its place among all states, as the page finds it."""
        flags = sum(1 << place for place, name in enumerate(SWITCHED) if name in self.trainable)
        rest = list(WAYS).index(self.way) * 4 + INPUTS.index(self.input) * 2 + MODES.index(self.mode)
        return rest * 2 ** len(SWITCHED) + flags

    @property
    def address(self) -> str:
        flags = "".join("1" if name in self.trainable else "0" for name in SWITCHED)
        return f"#{flags}-{self.mode}-{self.input}-{self.way}"


class Seen(NamedTuple):
    """What torch did in a state, row by row or as a whole."""

    gradient: list[bool]  # has a .grad after backward
    passed: list[bool]  # a gradient leaves it towards the input
    kept: list[int]  # bytes kept for backward
    flops: int
    moved: list[str]
    equal: bool  # the same images give the same scores twice
    audit: list[str]
    error: str


def states() -> Iterator[State]:
    """All of them, in the order of their numbers."""
    for way, given, mode in itertools.product(WAYS, INPUTS, MODES):
        for flags in range(2 ** len(SWITCHED)):
            yield State(frozenset(name for n, name in enumerate(SWITCHED) if flags >> n & 1), mode, given, way)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = {
        "conv1": nn.Conv2d(1, 8, 3, stride=2, padding=1, bias=False),  # the norm layer would take it away again
        "bn": nn.BatchNorm2d(8),
        "relu1": nn.ReLU(),
        "conv2": nn.Conv2d(8, 16, 3, stride=2, padding=1),
        "relu2": nn.ReLU(),
        "flatten": nn.Flatten(),
        "dropout": nn.Dropout(0.5),
        "fc1": nn.Linear(784, 32),
        "relu2b": nn.ReLU(),
        "fc2": nn.Linear(32, 5),
    }
    return nn.Sequential(OrderedDict(layers))


def look(state: State) -> Seen:
    """One training step in this state, on 16 images, with everything looked at."""
    model, images, labels = network(), torch.rand(16, 1, 28, 28), torch.arange(16) % 5
    frozen = [name for name in SWITCHED if name not in state.trainable]
    if state.way == "freeze" and frozen:
        freeze(model, *(f"{name}.*" for name in frozen))
    else:
        for name in frozen:
            model.get_submodule(name).requires_grad_(False)
    model.train(state.mode == "train")
    images.requires_grad_(state.input == "yes")
    held = model.fc2.parameters() if state.way == "head" else [p for p in model.parameters() if p.requires_grad]
    error, optimizer = "", None
    try:
        optimizer = torch.optim.SGD(held, lr=0.1)
    except ValueError as refused:
        error = f"Nothing is trainable: SGD() raises ValueError: {refused}. Forward and backward were run without it."
    found = [f"{finding.rule}: {finding.message}" for finding in audit(model, optimizer)]
    twin = copy.deepcopy(model)
    with torch.no_grad():
        equal = torch.equal(twin(images), twin(images))
    passed, values = {}, images
    with watch(model) as seen, FlopCounterMode(display=False) as counter:
        with saved_tensors(model) as kept:
            for name, layer in model.named_children():
                block = torch.no_grad() if state.way == "no_grad" and name in FIRST_PART else nullcontext()
                with block:
                    given, values = values, layer(values)
                passed[name] = given.requires_grad and values.requires_grad
            loss = nn.functional.cross_entropy(values, labels)
        before = counter.get_total_flops()
        try:
            loss.backward()
        except RuntimeError as refused:
            error = f"{error} backward() raises RuntimeError: {refused}.".strip()
        flops = counter.get_total_flops() - before
        if optimizer and not error:
            optimizer.step()
    grads = {"input": images.grad is not None}
    grads |= {name: model.get_submodule(name).weight.grad is not None for name in SWITCHED}
    by_row = {name: kept.by_module.get(name, 0) for name in ROWS} | {"loss": kept.by_module.get("", 0)}
    passed |= {"input": False, "loss": values.requires_grad}
    gradient = [grads.get(name, False) for name in ROWS]
    return Seen(
        gradient, [passed[name] for name in ROWS], list(by_row.values()), flops, seen.changed, equal, found, error
    )


def encoded(seen: Iterator[Seen]) -> dict[str, Any]:
    """All states as the page looks them up: what many have in common is stored once, and named by its place."""
    tables: dict[str, list[Any]] = {name: [] for name in TABLES}

    def place(table: str, value: Any) -> int:
        if value not in tables[table]:
            tables[table].append(value)
        return tables[table].index(value)

    numbers = []
    everything = look(of("11111", "train", "no", "flags"))
    for one in seen:
        told = [one.error] if one.error else _folded(one.audit)
        kept = [f"keeps {size / 1024:.1f} KiB" if size else "" for size in one.kept]
        wide = [round(100 * size / WIDEST) for size in one.kept]
        less = [sum(everything.kept) - sum(one.kept), everything.flops - one.flops]
        total = f"{sum(one.kept) / 1024:.1f} KiB{_less(f'{less[0] / 1024:.1f} KiB', less[0])}"
        work = f"{one.flops:,} FLOPs{_less(f'{less[1]:,}', less[1])}"
        places = (
            place("gradient", list(map(int, one.gradient))),
            place("passed", list(map(int, one.passed))),
            place("kept", [total, kept, wide]),
            place("moved", _by_row(one.moved)),
            place("told", told),
        )
        numbers.append([*places, work, int(one.equal), int(bool(one.error))])
    return tables | {"states": numbers}


def _less(shown: str, number: int) -> str:
    return f", {shown} less than when everything trains" if number else ""


def _folded(findings: list[str]) -> list[str]:
    """One line for each rule: its first finding, and how many more there are."""
    rules: dict[str, list[str]] = {}
    for finding in findings:
        rules.setdefault(finding.partition(":")[0], []).append(finding)
    return [found[0] + (f" And {len(found) - 1} more." if len(found) > 1 else "") for found in rules.values()]


def _by_row(changed: list[str]) -> list[str]:
    entries: dict[str, list[str]] = {}
    for name in changed:
        row, _, entry = name.rpartition(".")
        entries.setdefault(row, []).append(entry)
    return [f"changes {', '.join(entries[row])}" if row in entries else "" for row in ROWS]


def page_data() -> dict[str, Any]:
    """All that the page looks up."""
    story = [[_asked(step.before), _asked(step.after)] for step in STEPS]
    settings = {name: list(values) for name, (_, values) in CHOICES.items()}
    return (
        encoded(map(look, states()))
        | settings
        | {"words": WORDS, "story": story, "torch": torch.__version__.partition("+")[0]}
    )


def _asked(settings: list[str]) -> dict[str, str]:
    return dict(zip(("flags", "mode", "input", "way"), settings, strict=True))


def of(flags: str, mode: str, given: str, way: str) -> State:
    return State(frozenset(name for name, flag in zip(SWITCHED, flags, strict=True) if flag == "1"), mode, given, way)


def fragment(data: dict[str, Any]) -> str:
    """The part of a page: the story, the network, its data, style and script."""
    steps = "".join(_step(number, step, data) for number, step in enumerate(STEPS, 1))
    turns = "".join(f"<button type=button>{number}. {step.title}</button>" for number, step in enumerate(STEPS, 1))
    style, script = ((PARTS / f"click.{kind}").read_text("utf-8") for kind in ("css", "js"))
    stored = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return f"""<div class="click"><style>{style}</style><p>{INTRO}</p>
<nav class="steps" aria-label="Steps of the story" hidden>{turns}<button type=button>On your own</button></nav>
{steps}<section class="free" hidden><p>{FREE}</p></section><p class="lost" hidden>{LOST}</p>
<div class="live" hidden>
<form class="controls">{"".join(_choice(name, *choice) for name, choice in CHOICES.items())}</form>
{_network(of(*STEPS[0].before), data, live=True)}<p class="legend">{_bold(LEGEND.format(torch=data["torch"]))}</p>
<p class="said" role="status"></p></div>
<script type="application/json">{stored}</script><script>{script}</script></div>
"""


def _step(number: int, step: Step, data: dict[str, Any]) -> str:
    without = "".join(
        f"<p>{when} (without JavaScript, as a picture):</p>{_network(of(*state), data)}"
        for when, state in (("Before", step.before), ("After", step.after))
    )
    again = "You have changed the settings since. <button type=button>Set it again</button>"
    return f"""<section class="step"><h2>{number}. {step.title}</h2><p>{_bold(step.question)}</p>
<details><summary>Set it, and show me</summary><p>{_bold(step.answer)}</p>
<p class="since" hidden>{again}</p><noscript>{without}</noscript></details></section>
"""


def _bold(text: str) -> str:
    parts = html.escape(text, quote=False).split("**")
    return "".join(f"<strong>{part}</strong>" if place % 2 else part for place, part in enumerate(parts))


def _choice(name: str, legend: str, values: dict[str, str]) -> str:
    radios = (
        f'<label><input type="radio" name="{name}" value="{value}"{" checked" if not place else ""}> {label}</label>'
        for place, (value, label) in enumerate(values.items())
    )
    return f"<fieldset><legend>{legend}</legend>{''.join(radios)}</fieldset>"


def _network(state: State, data: dict[str, Any], live: bool = False) -> str:
    """The network in a state, from the images down to the loss, and what there is to say of the whole."""
    gradient, passed, kept, moved, told, flops, equal, failed = data["states"][state.number]
    total, sizes, widths = data["kept"][kept]
    rows = [f'<li class="head" aria-hidden="true">{"".join(f"<span>{head}</span>" for head in HEADS)}</li>']
    for place, name in enumerate(ROWS):
        label, leaf, frozen = LABELS.get(name, name), name in SWITCHED, name in set(SWITCHED) - state.trainable
        flag = f"{label} <small>{WORDS['flag'][not frozen]}</small>"
        shown = f"<span>{flag if leaf else label}</span>"
        if leaf and live:
            shown = f'<button type=button role="switch" aria-checked="{str(not frozen).lower()}">{flag}</button>'
        has = data["gradient"][gradient][place]
        wanted = name in state.trainable or (name == "input" and state.input == "yes")
        kind = 1 if has else 2 if wanted else 0
        got = WORDS["gradient"][kind] if leaf or name == "input" else ""
        rows.append(
            f'<li data-name="{label}"{" data-leaf=1" if got else ""}{" class=frozen" if frozen else ""}>'
            f'<span class="name">{shown}</span>'
            f'<span class="gradient{("", " yes", " odd")[kind]}"><span>{got}</span>'
            f'<span class="passed">{WORDS["passed"][data["passed"][passed][place]]}</span></span>'
            f'<span class="kept"><span class="size">{sizes[place]}</span>'
            f'<span class="bar" style="width:{widths[place]}%"></span></span>'
            f'<span class="moved{" odd" if frozen else ""}">{data["moved"][moved][place]}</span></li>'
        )
    lines = "".join(f"<div>{html.escape(line)}</div>" for line in data["told"][told] or [WORDS["silent"]])
    return (
        f'<dl class="sums"><dt>Saved for backward</dt><dd class="total">{total}</dd>'
        f'<dt>Work of backward</dt><dd class="flops">{flops}</dd></dl><ol class="net">{"".join(rows)}</ol>'
        f'<dl><dt class="told-of">{WORDS["told"][failed]}</dt><dd class="told">{lines}</dd>'
        f'<dt>The same scores twice</dt><dd class="equal">{WORDS["equal"][equal]}</dd></dl>'
    )


def page(data: dict[str, Any]) -> str:
    """The page of its own that a learner's folder holds."""
    return (PARTS / "page.html").read_text("utf-8").replace(HERE, fragment(data))


def stored() -> dict[str, Any]:
    """The data in the page."""
    _, _, rest = PAGE.read_text("utf-8").partition('<script type="application/json">')
    return json.loads(rest.partition("</script>")[0])


def resolved(data: dict[str, Any], number: int) -> list[Any]:
    """What the data says of a state, wherever it is stored."""
    *places, flops, equal, failed = data["states"][number]
    return [*(data[table][place] for table, place in zip(TABLES, places, strict=True)), flops, equal, failed]


def photograph() -> None:
    """The picture of the first answer, which lesson 01 shows."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        view = browser.new_page(viewport={"width": 900, "height": 900}, device_scale_factor=1.5)
        view.goto(f"{PAGE.as_uri()}#{'-'.join(STEPS[0].after)}")
        view.locator(".live ol.net").screenshot(path=PICTURE)
        browser.close()
    Image.open(PICTURE).convert("RGB").quantize(64).save(PICTURE, optimize=True)


def main() -> int:
    PAGE.write_text(page(page_data()), "utf-8")
    if CHROMIUM:
        photograph()
    return 0


if __name__ == "__main__":
    sys.exit(main())
