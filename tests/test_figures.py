"""A figure's words: all that it shows, and nothing that changes with the version that draws it."""

import base64
import io
import re

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from helpers.lessons.figures import _Table, describe, show, table

matplotlib.use("Agg")


def panel(**settings):
    ax = Figure().subplots()
    ax.set(**settings)
    return ax


def told(ax):
    return describe(ax.figure).splitlines()


def test_titles_labels_scales_and_legend():
    ax = panel(title="Two\nlines", xlabel="images", ylabel="accuracy", xscale="log")
    ax.plot([1, 10], [0.123, -0.0], label="frozen")
    ax.plot([1], [2], label="trained")
    ax.legend()
    ax.figure.suptitle("All")
    assert told(ax) == [
        "Figure with 1 panel: All.",
        "Two lines.",
        "Across: images (log scale).",
        "Up: accuracy.",
        'Line "frozen", 2 points: (1, 0.12), (10, 0).',
        'Line "trained", 1 point: (1, 2).',
        "Legend: frozen; trained.",
    ]


def test_a_long_series_is_told_by_its_ends_and_extremes():
    ax = panel()
    ax.plot(range(100), [(x - 30) ** 2 for x in range(100)])
    assert told(ax)[1] == "Line, 100 points: first (0, 900), last (99, 4,800), lowest (30, 0), highest (99, 4,800)."
    ax = panel()
    ax.plot(range(13), [-((x - 3) ** 2) for x in range(13)])
    ax.plot(range(12), range(12))
    assert told(ax)[1] == "Line, 13 points: first (0, -9), last (12, -81), lowest (12, -81), highest (3, 0)."
    assert told(ax)[2].startswith("Line, 12 points: (0, 0), (1, 1), ")


def test_a_point_that_stands_at_a_name_is_told_by_it_on_both_axes():
    ax = panel()
    ax.plot(["train", "eval"], ["few", "many"])
    ax.set_xticks([1 / 3], ["a third"])
    ax.set_yticks([0.1 + 0.2], ["little"])
    ax.plot([0.3333333], [0.3])
    assert told(ax)[1:] == ["Line, 2 points: (0, 0), (1, 1).", "Line, 1 point: (a third, little)."]
    ax = panel()
    ax.plot(["train", "eval"], ["few", "many"])
    assert told(ax)[1] == "Line, 2 points: (train, few), (eval, many)."


def test_bars_by_their_names_upright_and_lying():
    upright, lying = panel(), panel()
    upright.bar(["train", "eval"], [62, 2], label="entries")
    lying.barh(["train", "eval"], [62, 2])
    assert told(upright)[1] == 'Bars "entries", 2 bars: (train, 62), (eval, 2).'
    assert told(lying)[1] == "Bars, 2 bars: (train, 62), (eval, 2)."


def test_points_images_and_texts():
    ax = panel()
    ax.scatter([1, 2], [3, 4], label="seeds")
    assert told(ax)[1] == 'Points "seeds", 2 points: (1, 3), (2, 4).'
    ax = panel()
    ax.imshow(np.array([[0, 1], [2, 3]]))
    ax.text(0, 0, "here")
    ax.text(1, 1, "there")
    ax.fill_between([0, 1], [0, 1])  # has no points of its own
    assert told(ax)[1:] == ["Image, 2 x 2, from 0 to 3, mean 1.5.", "Written in it: here; there."]


def test_panels_are_numbered_and_hidden_ones_left_out():
    figure = Figure()
    first, second, hidden = figure.subplots(1, 3)
    first.set_title("a")
    first.plot([2], [2])
    second.plot([1], [1])
    hidden.set_visible(False)
    assert describe(figure).splitlines() == [
        "Figure with 2 panels.",
        "Panel 1. a.",
        "Line, 1 point: (2, 2).",
        "Panel 2. Line, 1 point: (1, 1).",
    ]


def test_an_axes_with_words_of_its_own_is_told_by_them():
    ax = panel(title="Graph")
    ax.plot([1], [1])
    ax.words = "3 nodes"
    assert told(ax) == ["Figure with 1 panel.", "Graph.", "3 nodes"]


@pytest.mark.parametrize(
    "change",
    [
        lambda ax: ax.plot([0, 1], [0, 1]),
        lambda ax: ax.set_title("other"),
        lambda ax: ax.set_xlabel("other"),
        lambda ax: ax.set_yscale("symlog"),
        lambda ax: ax.lines[0].set_ydata([0, 3]),
        lambda ax: ax.lines[0].set_label("other"),
        lambda ax: ax.legend(),
        lambda ax: ax.text(0, 0, "other"),
        lambda ax: ax.bar([1], [1]),
        lambda ax: ax.scatter([1], [1]),
    ],
)
def test_every_change_is_in_the_words(change):
    ax = panel(ylabel="y")
    ax.plot([0, 1], [0, 2], label="slope")
    before = describe(ax.figure)
    change(ax)
    assert describe(ax.figure) != before


def test_show_displays_a_sharp_picture_and_its_words_folded(monkeypatch):
    import matplotlib.pyplot as plt

    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, **how: shown.append((data, how)))
    figure, ax = plt.subplots(figsize=(4, 2))
    other = plt.figure()
    ax.set_title("a < b")
    words = describe(figure)
    show(figure)
    (picture, how), (folded, as_it_is) = shown
    assert how["raw"] is as_it_is["raw"] is True
    assert picture["text/plain"] == folded["text/plain"] == words
    assert folded["text/html"] == (
        "<details><summary>In words</summary><p>Figure with 1 panel.<br>a &lt; b.</p></details>"
    )
    image = Image.open(io.BytesIO(base64.b64decode(picture["image/png"])))
    assert image.size == pytest.approx((840, 440), abs=1), "older versions of matplotlib round down"
    assert how["metadata"] == {"image/png": {"width": 420}}
    freetype = matplotlib.ft2font.__freetype_version__
    assert image.info["Software"] == f"Matplotlib {matplotlib.__version__}, FreeType {freetype}"
    assert not plt.fignum_exists(figure.number) and plt.fignum_exists(other.number)
    plt.close(other)


def test_a_picture_stands_on_a_card_with_round_corners(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, **how: shown.append(data))
    figure = Figure(figsize=(4, 2))
    figure.subplots(1, 2)[1].set_facecolor("red")
    show(figure)
    image = Image.open(io.BytesIO(base64.b64decode(shown[0]["image/png"]))).convert("RGBA")
    corners, edges = [(0, 0), (837, 0), (0, 437), (837, 437)], [(419, 0), (419, 436), (0, 219), (836, 219)]
    assert [image.getpixel(corner)[3] for corner in corners] == [0] * 4
    assert [image.getpixel(edge) for edge in edges] == [(242, 242, 242, 255)] * 4
    assert image.getpixel((270, 220)) == (242, 242, 242, 255) and image.getpixel((590, 220)) == (255, 0, 0, 255)


ROWS = {"a < b": {"moves": True, "size": 1234}, "c": {"moves": False, "size": 0.12345, "why": "raises"}}


def test_a_table_is_told_in_text(capsys):
    table(ROWS, "name")
    assert capsys.readouterr().out.splitlines() == [
        "name   moves   size  why",
        "a < b  yes    1,234",
        "c      no     0.123  raises",
    ]


def test_without_a_corner_nothing_stands_there(capsys):
    table({"a": {"b": 1}})
    assert capsys.readouterr().out == "   b\na  1\n"


def test_html_is_exactly_this():
    left, right = "text-align: left; vertical-align: top", "text-align: right; vertical-align: top"
    assert _Table({"a": {"b": 1, "c": "d"}, "e": {"c": "raises"}}, "")._repr_html_() == (
        f"<table><thead><tr><td style='{left}'></td><th scope=col style='{right}'>b</th>"
        f"<th scope=col style='{left}'>c</th></tr></thead>"
        f"<tbody><tr><th scope=row style='{left}'>a</th><td style='{right}'>1</td><td style='{left}'>d</td></tr>"
        f"<tr><th scope=row style='{left}'>e</th><td style='{right}'></td>"
        f"<td style='{left}; {_Table._LOOKS['raises']}'>raises</td></tr></tbody></table>"
    )


def test_a_table_is_shown_in_words_and_colors():
    seen = _Table(ROWS, "name")._repr_html_()
    looks = {word: style for style, word in re.findall(r"<td style='([^']*)'>([^<]+)</td>", seen)}
    assert "background" in looks["yes"] and "background" in looks["raises"] and "background" not in looks["no"]
    assert "text-align: right" in looks["1,234"] and "text-align: left" in looks["yes"]
    assert "<th scope=row style='text-align: left; vertical-align: top'>a &lt; b</th>" in seen
    assert seen.count("<th scope=col") == 4 and "<style" not in seen


def test_values_of_numpy_and_torch_do_in_a_table(capsys):
    table({"a": {"b": np.True_, "c": np.float32(0.5), "d": torch.tensor(False), "e": np.int64(7)}})
    assert capsys.readouterr().out.splitlines()[1].split() == ["a", "yes", "0.5", "no", "7"]
    table({"a": {"b": torch.tensor([7])}})
    assert capsys.readouterr().out.splitlines()[1].split() == ["a", "tensor([7])"]
