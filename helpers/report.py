"""Which parameters a model has, which of them train, and which optimizer group holds each."""

import html
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress, groupby
from typing import Any, NamedTuple, overload

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

MANY_ROWS = 60
"""A table with more rows than this is folded by module."""
MANY_LINES = 30
"""Nobody said how deep: as deep as this many lines allow."""


class Rendered:
    """Text and HTML for an object whose ``_table`` gives the column titles, the rows of cells, and the text below."""

    _numbers = frozenset({"numel", "saved", "trainable", "all"})

    def _table(self) -> tuple[list[str], list[tuple[str, ...]], str]:
        raise NotImplementedError

    def __str__(self) -> str:
        head, rows, foot = self._table()
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        sides = [">" if title in self._numbers else "<" for title in head]
        line = "  ".join(f"{{:{side}{width}}}" for side, width in zip(sides, widths, strict=True))
        return "\n".join([*(line.format(*row).rstrip() for row in (head, *rows)), foot])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head, rows, foot = self._table()
        lines = []
        for row in rows:
            known = dict(zip(head, row, strict=True))
            trains = known.get("requires_grad") == "True" or known.get("trainable", "0")[0] in "123456789"
            cells = [
                "True: trainable" if trains and title == "requires_grad" else cell for title, cell in known.items()
            ]
            lines.append((f"{TRAINS}; font-weight: bold" if trains else "", [*map(html.escape, cells)]))
        return as_html(head, lines, foot, self._numbers)


TRAINS, AMISS = "background: rgba(230, 159, 0, 0.25)", "background: rgba(220, 50, 50, 0.15)"
"""What trains is orange, as in `helpers.draw`. Tints, so that the page's own colors, dark or light, show through."""


def as_html(
    head: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]], foot: str = "", numbers: Container[str] = ()
) -> str:
    """A table of ``rows``, each a look and cells of HTML; what is in a column of ``numbers`` ends at its right."""
    # Notebooks align every cell to the right unless it says otherwise, and make the name of each row bold.
    sides = [f"text-align: {'right' if title in numbers else 'left'}; vertical-align: top" for title in head]

    def line(look: str, tags: list[str], styles: list[str], cells: Sequence[str]) -> str:
        parts = zip(tags, styles, cells, strict=True)
        told = "".join(f"<{tag} style='{style}'>{cell}</{tag[:2]}>" for tag, style, cell in parts)
        return f"<tr style='{look}'>{told}</tr>" if look else f"<tr>{told}</tr>"

    top = line("", ["th scope=col"] * len(head), sides, head)
    tags, body = ["th scope=row", *["td"] * (len(head) - 1)], ""
    for look, cells in rows:
        name = f"{sides[0]}; font-weight: {'bold' if 'bold' in look else 'normal'}"
        body += line(look, tags, [name, *sides[1:]], cells)
    # A caption would be as narrow as the table.
    below = "<br>".join(map(html.escape, foot.splitlines()))
    return f"<table><thead>{top}</thead><tbody>{body}</tbody></table>" + (f"<p>{below}</p>" if below else "")


class Line(NamedTuple):
    """A module in a folded table, or ``times`` numbered neighbors in which everything is equal.

    ``name`` ends in a dot. ``entries`` is what one of them has: the path below it, and facts to compare.
    """

    name: str
    times: int
    entries: Sequence[tuple[Sequence[str], Any]]

    def opened(self, merge: bool) -> "list[Line]":
        """One level deeper. What has only entries of its own stays closed, but for the model itself."""
        if self.name and all(len(path) < 2 for path, _ in self.entries):
            return [self]
        runs: list[tuple[list[str], list]] = []
        for key, group in groupby(self.entries, key=lambda entry: entry[0][0]):
            inside = [(path[1:], facts) for path, facts in group]
            if merge and runs and _next(runs[-1][0][-1]) == key and runs[-1][1] == inside:
                runs[-1][0].append(key)
            else:
                runs.append(([key], inside))
        spans = [keys[0] if len(keys) == 1 else f"{keys[0]}-{_number(keys[-1])}" for keys, _ in runs]
        return [
            Line(f"{self.name}{span}.", self.times * len(keys), inside)
            for span, (keys, inside) in zip(spans, runs, strict=True)
        ]

    def __str__(self) -> str:
        return self.name.rstrip(".") + (f"  x {self.times}" if self.times > 1 else "")


def _number(name: str) -> str:
    """``layer_9`` gives ``9``."""
    return name[len(name.rstrip("0123456789")) :]


def _next(name: str) -> str | None:
    """``layer_9`` gives ``layer_10``."""
    number = _number(name)
    return f"{name.removesuffix(number)}{int(number) + 1}" if number else None


def fold(entries: Sequence[tuple[Sequence[str], Any]], depth: int | None = None, merge: bool = True) -> list[Line]:
    """Lines for ``depth`` levels of modules; without it, for as many as ``MANY_LINES`` allow, and at least one."""
    lines, longest = Line("", 1, entries).opened(merge), max((len(path) for path, _ in entries), default=0)
    for _ in range(1, min(depth or longest, longest)):
        deeper = [inner for line in lines for inner in line.opened(merge)]
        if depth is None and len(deeper) > MANY_LINES:
            break
        lines = deeper
    return lines


@dataclass(frozen=True)
class ParameterRow:
    """One parameter; ``tied`` are its other names. Until a lazy module sets it, ``shape`` is None and ``numel`` 0.

    ``group`` is None outside the optimizer, else the index of its group; of several optimizers, ``"1.0"`` is the first
    group of the second one, and ``"0.0, 1.0"`` a parameter that two of them move. ``packed``: 4-bit numbers that are
    stored, in ``shape``, as others of ``dtype``; ``numel`` counts the former.
    """

    name: str
    shape: tuple[int, ...] | None
    numel: int
    dtype: torch.dtype
    requires_grad: bool
    group: int | str | None
    has_grad: bool
    tied: tuple[str, ...] = ()
    packed: bool = False


@dataclass(frozen=True, repr=False)
class ParameterTable(Rendered, Sequence[ParameterRow]):
    """Rows, one for each parameter, whatever is folded when it prints; a slice is a table of those rows.

    ``orphans`` counts the parameters that the optimizer holds and the model does not; None without an optimizer.
    ``held`` counts the parts of the model that `helpers.freeze` holds in eval mode, ``of`` the rows before slicing.
    """

    rows: tuple[ParameterRow, ...]
    orphans: int | None = None
    held: int = 0
    depth: int | None = None
    of: int = field(default=0, compare=False)

    @overload
    def __getitem__(self, index: int) -> ParameterRow: ...
    @overload
    def __getitem__(self, index: slice) -> "ParameterTable": ...
    def __getitem__(self, index: int | slice) -> "ParameterRow | ParameterTable":
        if not isinstance(index, slice):
            return self.rows[index]
        return replace(self, rows=self.rows[index], depth=None, of=self.of or len(self))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def trainable(self) -> int:
        """How many numbers train: the elements of the rows that require a gradient."""
        return sum(row.numel for row in self.rows if row.requires_grad)

    @property
    def total(self) -> int:
        """How many numbers there are: the elements of all rows."""
        return sum(row.numel for row in self.rows)

    @property
    def foot(self) -> str:
        """The totals, as peft's ``print_trainable_parameters`` writes them, and what is orphaned or held, if any."""
        share = 100 * self.trainable / max(self.total, 1)
        line = f"trainable params: {self.trainable:,} || all params: {self.total:,} || trainable%: {share:.4f}"
        if self.of > len(self):
            line = f"{len(self)} of {self.of} rows: {line}"
        if self.orphans:
            line += f"\nparameters of the optimizer that are not the model's: {self.orphans}"
        if self.held:
            line += f"\nheld in eval mode: {self.held} part{'s' * (self.held > 1)}"
        return line

    def _table(self) -> tuple[list[str], list[tuple[str, ...]], str]:
        dtypes = [str(row.dtype).removeprefix("torch.") + " (4-bit packed)" * row.packed for row in self.rows]
        if self.depth is not None or len(self) > MANY_ROWS:
            return *self._folded(dtypes), self.foot
        head = ["name", "shape", "numel", "dtype", "requires_grad", "has_grad", "group"]
        end = len(head) - (self.orphans is None)
        rows = [
            (
                " = ".join((row.name, *row.tied)),
                "not known yet" if row.shape is None else str(row.shape),
                f"{row.numel:,}",
                dtype,
                str(row.requires_grad),
                str(row.has_grad),
                str(row.group),
            )[:end]
            for row, dtype in zip(self.rows, dtypes, strict=True)
        ]
        return head[:end], rows, self.foot

    def _folded(self, dtypes: list[str]) -> tuple[list[str], list[tuple[str, ...]]]:
        entries = [
            (row.name.split("."), (row.numel, row.requires_grad, dtype, str(row.group), row.shape, row.tied))
            for row, dtype in zip(self.rows, dtypes, strict=True)
        ]
        rows = []
        for line in fold(entries, self.depth):
            counts, flags, *texts, _, tied = zip(*(facts for _, facts in line.entries), strict=True)
            others = [name for names in tied for name in names if not name.startswith(line.name)]
            rows.append(
                (
                    str(line),
                    f"{line.times * sum(n for n, trains in zip(counts, flags, strict=True) if trains):,}",
                    f"{line.times * sum(counts):,}",
                    *(", ".join(dict.fromkeys(text)) for text in texts),
                    ", ".join(dict.fromkeys(name.rpartition(".")[0] or name for name in others)),
                )
            )
        head = ["name", "trainable", "all", "dtype", "group", "tied to"]
        shown = [title != "group" or self.orphans is not None for title in head]
        shown[-1] = any(row[-1] for row in rows)
        return [*compress(head, shown)], [tuple(compress(row, shown)) for row in rows]


def parameters(
    model: nn.Module, optimizer: Optimizer | Sequence[Optimizer] | None = None, depth: int | None = None
) -> ParameterTable:
    """The parameters of ``model`` as a table that prints itself, with the group of ``optimizer`` that holds each.

    >>> net = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
    >>> _ = net[0].requires_grad_(False)
    >>> table = parameters(net, torch.optim.SGD(net[2].parameters(), lr=0.1))
    >>> table
    name      shape   numel  dtype    requires_grad  has_grad  group
    0.weight  (2, 3)      6  float32  False          False     None
    0.bias    (2,)        2  float32  False          False     None
    2.weight  (1, 2)      2  float32  True           False     0
    2.bias    (1,)        1  float32  True           False     0
    trainable params: 3 || all params: 11 || trainable%: 27.2727
    >>> [row.name for row in table if row.requires_grad], table.trainable, table[-1].shape
    (['2.weight', '2.bias'], 3, (1,))

    A table of more than 60 rows prints folded by module, as deep as 30 lines allow; with ``depth`` any table does, that
    many levels deep. Numbered neighbors in which everything is equal are one line, which has the numbers of all of
    them. The rows are there as ever, and a slice of 60 or fewer prints them:

    >>> net = nn.ModuleDict({"layers": nn.Sequential(*(nn.Linear(8, 8) for _ in range(80))), "head": nn.Linear(8, 2)})
    >>> _ = net["layers"][:70].requires_grad_(False)
    >>> table = parameters(net)
    >>> table
    name                trainable    all  dtype
    layers.0-69  x 70           0  5,040  float32
    layers.70-79  x 10        720    720  float32
    head                       18     18  float32
    trainable params: 738 || all params: 5,778 || trainable%: 12.7726
    >>> table[-2:]
    name         shape   numel  dtype    requires_grad  has_grad
    head.weight  (2, 8)     16  float32  True           False
    head.bias    (2,)        2  float32  True           False
    2 of 162 rows: trainable params: 18 || all params: 18 || trainable%: 100.0000

    A parameter with several names (tied weights) is one row and counts once. Nothing is run, so any device will do,
    ``meta`` too. An optimizer built before a part of the model was replaced still holds the old parameters and never
    moves the new ones: the text below the table counts the old ones, and the new ones are in group None. Of a list of
    optimizers, group ``1.0`` is the first one of the second. bitsandbytes packs two 4-bit weights into a byte: they
    count as numbers, as peft counts them
    (https://github.com/huggingface/peft/blob/main/src/peft/peft_model.py, get_nb_trainable_parameters).

    Raises TypeError when ``model`` is no module or ``optimizer`` neither an optimizer nor a list of them, and
    ValueError when ``depth`` is less than 1.
    """
    from helpers.freezing import held_parts  # which needs check_module

    check_module("parameters", model)
    check_depth("parameters", depth)
    several = isinstance(optimizer, Sequence)
    optimizers = optimizer if isinstance(optimizer, Sequence) else [] if optimizer is None else [optimizer]
    places: dict[nn.Parameter, int | str] = {}
    for index, item in enumerate(optimizers):
        if not hasattr(item, "param_groups"):
            wanted = "pass an optimizer (not its parameters) or a list of them"
            raise TypeError(f"parameters(model, optimizer): {wanted}, not a {type(item).__name__}")
        for number, group in enumerate(item.param_groups):
            for parameter in group["params"]:
                before = f"{places[parameter]}, " if parameter in places else ""
                places[parameter] = f"{before}{index}.{number}" if several else number
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    rows = tuple(
        ParameterRow(
            name=name,
            shape=None if is_lazy(parameter) else tuple(parameter.shape),
            numel=0 if is_lazy(parameter) else parameter.numel() * (2 * parameter.element_size() if packed else 1),
            dtype=parameter.dtype,
            requires_grad=parameter.requires_grad,
            group=places.get(parameter),
            has_grad=parameter.grad is not None,
            tied=tuple(tied),
            packed=packed,
        )
        for parameter, (name, *tied) in names.items()
        # bitsandbytes packs a weight when it moves to its device, and says so.
        for packed in [type(parameter).__name__ == "Params4bit" and getattr(parameter, "bnb_quantized", True)]
    )
    orphans = None if optimizer is None else len(places.keys() - names.keys())
    return ParameterTable(rows, orphans, len(held_parts(model)), depth)


def check_module(call: str, model: object) -> None:
    """Raise TypeError unless ``model`` is a module."""
    if not isinstance(model, nn.Module):
        hint = "the model comes before the optimizer" if hasattr(model, "param_groups") else "pass the model itself"
        raise TypeError(f"{call}(model): model must be a torch.nn.Module, not a {type(model).__name__}; {hint}")


def check_depth(call: str, depth: int | None) -> None:
    """Raise ValueError unless ``depth`` is None or 1 or more."""
    if depth is not None and depth < 1:
        raise ValueError(f"{call}(model, depth): depth is 1 or more levels of modules, not {depth}")
