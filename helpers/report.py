"""Which parameters a model has, which of them train, and which optimizer group holds each."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import nn
from torch.nn.parameter import is_lazy


class Rendered:
    """Text and HTML for an object whose ``_table`` gives the column titles, the rows of cells, and the text below."""

    _numbers = frozenset({"numel", "saved"})

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
        # Notebooks align every cell to the right unless it says otherwise.
        sides = [f"style='text-align: {'right' if title in self._numbers else 'left'}'" for title in head]

        def line(tags: list[str], cells: Sequence[str]) -> str:
            parts = zip(tags, sides, map(html.escape, cells), strict=True)
            return f"<tr>{''.join(f'<{tag} {side}>{cell}</{tag[:2]}>' for tag, side, cell in parts)}</tr>"

        body = "".join(line(["th scope=row"] + ["td"] * (len(head) - 1), row) for row in rows)
        caption = html.escape(foot).replace("\n", "<br>")
        return (
            f"<table><caption style='caption-side: bottom; text-align: left'>{caption}</caption>"
            f"<thead>{line(['th scope=col'] * len(head), head)}</thead><tbody>{body}</tbody></table>"
        )


@dataclass(frozen=True)
class ParameterRow:
    """One parameter; ``tied`` are its other names. Until a lazy module sets it, ``shape`` is None and ``numel`` 0."""

    name: str
    shape: tuple[int, ...] | None
    numel: int
    dtype: torch.dtype
    requires_grad: bool
    group: int | None
    has_grad: bool
    tied: tuple[str, ...] = ()


@dataclass(frozen=True, repr=False)
class ParameterTable(Rendered, Sequence[ParameterRow]):
    """Rows, one for each parameter; a slice is a table of those rows.

    ``orphans`` counts the parameters that the optimizer holds and the model does not; None without an optimizer.
    """

    rows: tuple[ParameterRow, ...]
    orphans: int | None = None

    @overload
    def __getitem__(self, index: int) -> ParameterRow: ...
    @overload
    def __getitem__(self, index: slice) -> "ParameterTable": ...
    def __getitem__(self, index: int | slice) -> "ParameterRow | ParameterTable":
        return ParameterTable(self.rows[index], self.orphans) if isinstance(index, slice) else self.rows[index]

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
        """The totals, as peft's ``print_trainable_parameters`` writes them, and the orphans if there are any."""
        share = 100 * self.trainable / max(self.total, 1)
        line = f"trainable params: {self.trainable:,} || all params: {self.total:,} || trainable%: {share:.4f}"
        orphans = f"\nparameters of the optimizer that are not the model's: {self.orphans}"
        return line + orphans if self.orphans else line

    def _table(self) -> tuple[list[str], list[tuple[str, ...]], str]:
        head = ["name", "shape", "numel", "dtype", "requires_grad", "has_grad", "group"]
        end = len(head) - (self.orphans is None)
        rows = [
            (
                " = ".join((row.name, *row.tied)),
                "not known yet" if row.shape is None else str(row.shape),
                f"{row.numel:,}",
                str(row.dtype).removeprefix("torch."),
                str(row.requires_grad),
                str(row.has_grad),
                str(row.group),
            )[:end]
            for row in self.rows
        ]
        return head[:end], rows, self.foot


def parameters(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> ParameterTable:
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

    A parameter with several names (tied weights) is one row and counts once. Nothing is run, so any device will do,
    ``meta`` too. An optimizer built before a part of the model was replaced still holds the old parameters and never
    moves the new ones: the text below the table counts the old ones, and the new ones are in group None.

    Raises TypeError when ``model`` is no module, or ``optimizer`` no optimizer.
    """
    check_module("parameters", model)
    groups = {} if optimizer is None else getattr(optimizer, "param_groups", None)
    if groups is None:
        kind = type(optimizer).__name__
        raise TypeError(f"parameters(model, optimizer): pass one torch.optim.Optimizer, not a {kind}")
    held = {parameter: index for index, group in enumerate(groups) for parameter in group["params"]}
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    rows = tuple(
        ParameterRow(
            name=name,
            shape=None if is_lazy(parameter) else tuple(parameter.shape),
            numel=0 if is_lazy(parameter) else parameter.numel(),
            dtype=parameter.dtype,
            requires_grad=parameter.requires_grad,
            group=held.get(parameter),
            has_grad=parameter.grad is not None,
            tied=tuple(tied),
        )
        for parameter, (name, *tied) in names.items()
    )
    return ParameterTable(rows, None if optimizer is None else len(held.keys() - names.keys()))


def check_module(call: str, model: object) -> None:
    """Raise TypeError unless ``model`` is a module."""
    if not isinstance(model, nn.Module):
        hint = "the model comes before the optimizer" if hasattr(model, "param_groups") else "pass the model itself"
        raise TypeError(f"{call}(model): model must be a torch.nn.Module, not a {type(model).__name__}; {hint}")
