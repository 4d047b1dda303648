"""A table of the page: what the templates need of it. The other modules here fill it, `render` shows it.

All texts are as somebody wrote them; the templates escape them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fsseg.report.formats import TextTable
from fsseg.report.tables import Table

_LONG = 30  # rows
HEAT_STEPS = 20
"""Colours of a heat map are numbered 0 to this; style.css has them."""


@dataclass(frozen=True)
class Bar:
    """An interval as a picture: places between 0 and 100, and what it shows in words.

    Attributes:
        zero: where 0 is; None if it is not on the axis.
    """

    low: float
    value: float
    high: float
    zero: float | None
    words: str


@dataclass(frozen=True)
class Datum:
    """One cell of a table.

    Attributes:
        order: what the column is sorted by where the text's own number does not say it, as for `12 min`.
        heat: number of its colour, 0 to `HEAT_STEPS`.
    """

    text: str
    order: float | None = None
    heat: int | None = None
    strong: bool = False
    bar: Bar | None = None


@dataclass
class Line:
    """A row: `minor` ones belong to the row above, `lead` ones head their body; both stay there in a sorted table."""

    label: str
    data: list[Datum]
    minor: bool = False
    lead: bool = False


@dataclass
class Listing:
    """A table with its caption and notes.

    Attributes:
        columns: headings; the first is that of the rows' labels.
        bodies: rows that are kept together.
        groups: headings over the columns after the first, each with the number of columns that it spans.
        words: the columns hold words, not numbers.
        filtered: a field above it filters its rows by text.
        folded: shown when its reader asks for it.
        legend: lowest and highest value of the colours.
    """

    caption: str
    columns: list[str]
    bodies: list[list[Line]] = field(default_factory=list)
    groups: list[tuple[str, int]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    words: bool = False
    filtered: bool = False
    folded: bool = False
    legend: tuple[float, float] | None = None

    @property
    def long(self) -> bool:
        """Whether it scrolls in a box of its own, under its headings."""
        return sum(map(len, self.bodies)) > _LONG


def about(table: Table) -> str:
    """Data set and rules of a table, for captions of what is not mIoU alone."""
    return table.title.replace("mIoU in percent; ", "")


def plain(caption: str, columns: Sequence[str], rows: Sequence[Sequence[str | Datum]], words: bool = False) -> Listing:
    """A table with one body of rows, each a label and its cells."""
    lines = [Line(_text(label), [d if isinstance(d, Datum) else Datum(d) for d in data]) for label, *data in rows]
    return Listing(caption, list(columns), [lines], words=words)


def of_text_table(table: TextTable) -> Listing:
    """A table of `fsseg aggregate`. Indented rows (the paper's figures, differences) stay with the row above."""
    per_group = (len(table.header) - 1) // max(len(table.groups), 1)
    listing = Listing(table.title, table.header, groups=[(g, per_group) for g in table.groups], notes=table.notes)
    for label, *cells in table.rows:
        line = Line(label.strip(), [Datum(cell) for cell in cells], minor=label.startswith(" "))
        if line.minor and listing.bodies:
            listing.bodies[-1].append(line)
        else:
            listing.bodies.append([line])
    return listing


def _text(label: str | Datum) -> str:
    return label.text if isinstance(label, Datum) else label
