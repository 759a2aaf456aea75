"""Pictures and tables that carry words: what a figure shows, computed from it, to be compared and to be read.

A picture's bytes change with every version of matplotlib; its words do not. They also tell the figure to a reader who
cannot see it.
"""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_POINTS = 12
"""A series of more points is told by its first, last, lowest and highest."""


_GROUND = "#f2f2f2"
"""What a picture stands on: neither a hole in a light page nor a lamp in a dark one."""
_PAD = 0.1
"""Of the ground around a picture, in inches; its corners are as round."""


def show(figure: "Figure") -> None:
    """Display ``figure`` as a PNG whose ``text/plain`` are its words, then the words, folded, and close it.

    >>> from matplotlib.figure import Figure
    >>> figure = Figure()
    >>> _ = figure.subplots().plot([5, 50], [0.78, 0.84], label="frozen backbone")
    >>> print(describe(figure))
    Figure with 1 panel.
    Line "frozen backbone", 2 points: (5, 0.78), (50, 0.84).
    """
    import matplotlib.pyplot as plt
    from IPython.display import display
    from matplotlib import __version__, ft2font
    from matplotlib.patches import FancyBboxPatch
    from matplotlib.transforms import Affine2D, Bbox

    words = describe(figure)
    width, height = figure.get_size_inches()
    ground = FancyBboxPatch((0, 0), width, height, boxstyle=f"round,pad={_PAD}", zorder=-1, linewidth=0)
    inches = Affine2D().scale(1 / width, 1 / height) + figure.transFigure
    ground.set(facecolor=_GROUND, transform=inches)
    figure.add_artist(ground)
    whole = Bbox([[-_PAD, -_PAD], [width + _PAD, height + _PAD]])
    for patch in (ax.patch for ax in figure.axes if ax.get_facecolor() == (1, 1, 1, 1)):
        patch.set_facecolor(_GROUND)
    # A picture can be compared only with one that was drawn by the same two, so it names them.
    drawn_by = f"Matplotlib {__version__}, FreeType {ft2font.__freetype_version__}"
    buffer = io.BytesIO()
    clear: dict[str, Any] = {"facecolor": "none", "metadata": {"Software": drawn_by}}
    figure.savefig(buffer, format="png", dpi=200, bbox_inches=whole, **clear)
    plt.close(figure)  # or the notebook would show it a second time at the end of the cell
    picture = {"image/png": base64.b64encode(buffer.getvalue()).decode(), "text/plain": words}
    # Twice as many pixels as it is wide on a plain screen, for the others.
    display(picture, metadata={"image/png": {"width": round(100 * whole.width)}}, raw=True)
    lines = "<br>".join(map(html.escape, words.splitlines()))
    folded = f"<details><summary>In words</summary><p>{lines}</p></details>"
    display({"text/html": folded, "text/plain": words}, raw=True)


def table(rows: Mapping[str, Mapping[str, bool | float | str]], corner: str = "") -> None:
    """Display what is so and what is not as a table: ``rows`` has the columns of each row, by its name.

    In a notebook yes and no have colors, too; the text beside it is this one. ``corner`` stands above the rows' names.

    >>> table({"weight": {"trainable": True, "numbers": 1024}, "mask": {"trainable": False, "numbers": 8}}, "name")
    name    trainable  numbers
    weight  yes          1,024
    mask    no               8

    A float is told to 3 digits, a row without one of the columns has a gap there, and ``"raises"`` has a color.
    """
    from IPython.display import display

    display(_Table(rows, corner))


class _Table:
    _LOOKS: Mapping[bool | str, str] = {
        # Tints, so that the page's own colors, dark or light, show through.
        True: "background: rgba(0, 160, 80, 0.25); font-weight: bold",
        False: "opacity: 0.75",
        "raises": "background: rgba(220, 50, 50, 0.25); font-weight: bold",
    }

    def __init__(self, rows: Mapping[str, Mapping[str, bool | float | str]], corner: str) -> None:
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        self._head = [corner, *columns]
        self._rows = [[name, *(_python(row.get(column, "")) for column in columns)] for name, row in rows.items()]

    def __repr__(self) -> str:
        lines = [self._head, *([_cell(value) for value in row] for row in self._rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        # A number ends where its column does, as does the title above numbers.
        ends = [self._ends(number) for number in range(len(widths))]
        told = [
            [
                cell.rjust(width) if end else cell.ljust(width)
                for cell, width, end in zip(line, widths, ends, strict=True)
            ]
            for line in lines
        ]
        return "\n".join("  ".join(line).rstrip() for line in told)

    def _repr_html_(self) -> str:
        def line(cells: list[Any], tags: list[str]) -> str:
            parts = []
            for number, (cell, tag) in enumerate(zip(cells, tags, strict=True)):
                # Notebooks align every cell to the right unless it says otherwise.
                style = f"text-align: {'right' if self._ends(number) else 'left'}; vertical-align: top"
                if tag == "td" and (look := self._LOOKS.get(cell) if isinstance(cell, bool | str) else None):
                    style += f"; {look}"
                parts.append(f"<{tag} style='{style}'>{html.escape(_cell(cell))}</{tag[:2]}>")
            return f"<tr>{''.join(parts)}</tr>"

        others = len(self._head) - 1
        head = line(self._head, ["th scope=col" if self._head[0] else "td", *["th scope=col"] * others])
        body = "".join(line(row, ["th scope=row", *["td"] * others]) for row in self._rows)
        return f"<table><thead>{head}</thead><tbody>{body}</tbody></table>"

    def _ends(self, number: int) -> bool:
        """Whether a column has numbers."""
        return any(isinstance(row[number], int | float) and not isinstance(row[number], bool) for row in self._rows)


def _python(value: Any) -> Any:
    """A number of NumPy or torch as Python's."""
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value


def _cell(value: bool | float | str) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3g}" if isinstance(value, float) else str(value)


def all_reduce(held: Sequence[Sequence[int]]) -> "Figure":
    """A picture of an all-reduce in two moves: what ``n`` ranks hold of ``n`` numbers, and what they send next.

    >>> print(describe(all_reduce([[1, 10], [2, 20]])))
    Figure with 3 panels.
    Panel 1. each has its own.
    Rank 0 holds 1, 10; rank 1 holds 2, 20.
    Panel 2. after reduce-scatter.
    Rank 0 holds 3; rank 1 holds 30.
    Panel 3. after all-gather.
    Rank 0 holds 3, 30; rank 1 holds 3, 30.
    """
    import matplotlib.pyplot as plt

    n = len(held)
    sums = [sum(column) for column in zip(*held, strict=True)]
    stages: dict[str, list[dict[int, int]]] = {
        "each has its own": [dict(enumerate(numbers)) for numbers in held],
        "after reduce-scatter": [{rank: sums[rank]} for rank in range(n)],
        "after all-gather": [dict(enumerate(sums)) for _ in range(n)],
    }
    figure, panels = plt.subplots(1, 3, figsize=(8, 0.4 + 0.6 * n), layout="constrained")
    arrow = {"arrowstyle": "->", "shrinkA": 12, "shrinkB": 12, "connectionstyle": "arc3,rad=0.15"}
    for number, (ax, (title, ranks)) in enumerate(zip(panels, stages.items(), strict=True)):
        for rank, parts in enumerate(ranks):
            for part, value in parts.items():
                box = {"boxstyle": "round", "facecolor": "#CFDCE4" if number == 0 else "#F6C28B"}
                ax.text(part, rank, str(value), ha="center", va="center", bbox=box)
        # Part p is added up by rank p, and handed on from there.
        for part, other in permutations(range(n), 2) if number < 2 else ():
            start, end = (other, part) if number == 0 else (part, other)
            ax.annotate("", (part, end), (part, start), arrowprops=arrow)
        ax.set(title=title, xlim=(-0.7, n - 0.3), ylim=(n - 0.4, -0.6), xticks=[])
        ax.set_yticks(range(n), [f"rank {rank}" for rank in range(n)])
        told = [f"rank {rank} holds {', '.join(map(str, parts.values()))}" for rank, parts in enumerate(ranks)]
        ax.words = f"{'; '.join(told).capitalize()}."
    return figure


def describe(figure: "Figure") -> str:
    """The words of ``figure``: titles, labels, scales, legend, and every series with its data to 2 digits.

    An axes that has an attribute ``words`` (``helpers.draw`` sets it) is told by that.
    """
    figure.draw_without_rendering()  # tick labels exist only after drawing
    panels = [ax for ax in figure.axes if ax.get_visible()]
    title = f": {_line(figure.get_suptitle())}" if figure.get_suptitle() else ""
    lines = [f"Figure with {_count(len(panels), 'panel')}{title}."]
    for number, ax in enumerate(panels, 1):
        told = _panel(ax)
        lines += [f"Panel {number}. {told[0]}", *told[1:]] if len(panels) > 1 and told else told
    return "\n".join(lines)


def _panel(ax: Any) -> list[str]:
    import numpy as np

    words = getattr(ax, "words", None)
    told = [f"{_line(ax.get_title())}."] if ax.get_title() else []
    if words:
        return [*told, words]
    for name, axis in (("Across", ax.xaxis), ("Up", ax.yaxis)):
        if axis.get_label_text():
            scale = "" if axis.get_scale() == "linear" else f" ({axis.get_scale()} scale)"
            told.append(f"{name}: {_line(axis.get_label_text())}{scale}.")
    across, up = _names(ax.xaxis), _names(ax.yaxis)
    for line in ax.get_lines():
        told.append(_series("Line", line.get_label(), zip(*line.get_data(orig=False), strict=True), across, up))
    for collection in ax.collections:
        if len(offsets := collection.get_offsets()) and collection.get_offset_transform() == ax.transData:
            told.append(_series("Points", collection.get_label(), offsets, across, up))
    for bars in ax.containers:
        if hasattr(bars, "datavalues"):
            flat = bars.orientation == "horizontal"
            middles = [b.get_y() + b.get_height() / 2 if flat else b.get_x() + b.get_width() / 2 for b in bars]
            pairs = zip(middles, bars.datavalues, strict=True)
            told.append(_series("Bars", bars.get_label(), pairs, up if flat else across, {}))
    for image in ax.get_images():
        data = np.asarray(image.get_array())
        size = " x ".join(map(str, data.shape))
        told.append(f"Image, {size}, from {_number(data.min())} to {_number(data.max())}, mean {_number(data.mean())}.")
    if texts := [_line(text.get_text()) for text in ax.texts if text.get_text()]:
        told.append(f"Written in it: {'; '.join(texts)}.")
    if legend := ax.get_legend():
        told.append(f"Legend: {'; '.join(_line(text.get_text()) for text in legend.get_texts())}.")
    return told


def _series(kind: str, label: Any, points: Any, across: dict[float, str], up: dict[float, str]) -> str:
    def told(point: Any) -> str:
        x, y = (float(value) for value in point)
        return f"({across.get(round(x, 6)) or _number(x)}, {up.get(round(y, 6)) or _number(y)})"

    points = list(points)
    name = "" if str(label).startswith("_") else f' "{_line(str(label))}"'
    if len(points) <= _POINTS:
        shown = ", ".join(map(told, points))
    else:
        low, high = min(points, key=lambda p: p[1]), max(points, key=lambda p: p[1])
        shown = f"first {told(points[0])}, last {told(points[-1])}, lowest {told(low)}, highest {told(high)}"
    return f"{kind}{name}, {_count(len(points), 'point' if kind != 'Bars' else 'bar')}: {shown}."


def _names(axis: Any) -> dict[float, str]:
    """The ticks that carry names, not numbers."""
    ticks = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
    texts = {round(float(at), 6): _line(label.get_text()) for at, label in ticks}
    return {at: text for at, text in texts.items() if text[:1] != "$" and any(map(str.isalpha, text))}


def _number(value: float) -> str:
    short = float(f"{float(value):.2g}") + 0.0  # adding 0.0 makes -0.0 a plain 0
    return f"{short:,.10g}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _line(text: str) -> str:
    return " ".join(text.split())
