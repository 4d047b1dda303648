"""A table of text cells, for a terminal and as Markdown, LaTeX, CSV and JSON; how foreign text stands in each.

`fsseg.report.tables` (scores) and `fsseg.report.experiments` (the paper's experiments) use it.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fsseg.errors import visible
from fsseg.process.tables import aligned
from fsseg.report.latex import latex_table
from fsseg.report.statistics import Interval

MISSING = "—"
_MAX_WIDTH = 118  # a wider table is cut into one block a group


@dataclass
class TextTable:
    """One table, with the notes below it and the pictures that belong to it.

    Attributes:
        header: names of the columns; the first is that of the rows' labels.
        groups: headings over the columns after the first, each over the same number of columns.
        scores: numbers of the columns of whose numbers the largest is the best.
        published: numbers of the rows that are not ours.
        vectors: files of the same pictures for a paper, as PDF and SVG.
    """

    title: str
    header: list[str]
    rows: list[list[str]] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    pictures: list[Path] = field(default_factory=list)
    scores: Collection[int] = ()
    published: set[int] = field(default_factory=set)
    vectors: list[Path] = field(default_factory=list)

    def to_text(self) -> str:
        """For a terminal or a log."""
        lines = self._lines()
        if len(lines[0]) > _MAX_WIDTH and len(self.groups) > 1:
            lines = ["\n\n".join("\n".join(block._lines()) for block in self._blocks())]
        notes = [f"  {visible(note)}" for note in self.notes] + [f"  picture: {visible(p)}" for p in self.pictures]
        gap = [] if self.groups else [""]
        return "\n".join([visible(self.title), "", *lines, *gap, *notes]).rstrip("\n") + "\n"

    def to_markdown(self) -> str:
        """As GitHub Markdown, its pictures shown."""

        def line(cells: Sequence[str]) -> str:
            return "| " + " | ".join(markdown(cell) for cell in cells) + " |"

        groups = [f"{group} " for group in self.groups for _ in range(self.per_group)] or [""] * len(self.header)
        header = [self.header[0], *(group + name for group, name in zip(groups, self.header[1:]))]
        rule = "|" + "|".join([" --- "] + [" ---: "] * (len(header) - 1)) + "|"
        parts = [f"### {markdown(self.title)}", "", line(header), rule, *map(line, self.rows), ""]
        parts += [markdown_item(note) for note in self.notes]
        parts += ["", *(f"![{markdown(p.stem)}]({quote(p.name)})" for p in self.pictures)] if self.pictures else []
        return "\n".join(parts) + "\n"

    def to_latex(self) -> str:
        """As a table of booktabs (`fsseg.report.latex`)."""
        return latex_table(self)

    def to_csv(self) -> str:
        """One line a row. Numbers have all decimals that are known; spreads and intervals have columns of their own."""
        names, columns = self._columns(), ["row", "kind"]
        for j, name in enumerate(names[1:], 1):
            kinds = {kind for row in self.rows if j < len(row) for kind in _parts(row[j])}
            columns += [name, *(f"{name} {kind}" for kind in ("std", "low", "high") if kind in kinds)]
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(map(csv_cell, columns))
        for i, row in enumerate(self.rows):
            line: dict[str, Any] = {"row": row[0].strip(), "kind": self._kind(i)}
            for name, cell in zip(names[1:], row[1:]):
                line |= {f"{name} {kind}".rstrip(): value for kind, value in _parts(cell).items()}
            writer.writerow(csv_cell(line.get(name)) for name in columns)
        return out.getvalue()

    def to_json(self) -> dict[str, Any]:
        """Title, columns, rows and notes; of each cell its text, and its value and spread if it is a number."""
        names = self._columns()
        rows = [
            {
                "row": row[0].strip(), "kind": self._kind(i),
                "cells": {name: _as_json(cell) for name, cell in zip(names[1:], row[1:])},
            }
            for i, row in enumerate(self.rows)
        ]  # fmt: skip
        return {"title": self.title, "columns": names[1:], "rows": rows, "notes": self.notes}

    def _columns(self) -> list[str]:
        """Names of the columns, each with its group, no two alike."""
        groups = [f"{group} " for group in self.groups for _ in range(self.per_group)] or [""] * len(self.header)
        names = [self.header[0], *(group + name for group, name in zip(groups, self.header[1:]))]
        return [name if name not in names[:j] else f"{name} ({j})" for j, name in enumerate(names)]

    def _kind(self, row: int) -> str:
        return "published" if row in self.published else "ours"

    @property
    def per_group(self) -> int:
        """Columns below each heading."""
        return (len(self.header) - 1) // max(len(self.groups), 1)

    def _lines(self) -> list[str]:
        """The rows in columns; each group has its heading and a double gap before it."""
        rows, num = [self.header, *self.rows], self.per_group
        if not self.groups:
            return aligned(rows).split("\n")
        widths = [max(map(len, column)) for column in zip(*rows)]
        over = " " * widths[0]
        for i, group in enumerate(self.groups):
            over += "    " + f" {group} ".center(sum(widths[1 + i * num : 1 + (i + 1) * num]) + 2 * (num - 1), "-")
        starts = range(1, len(self.header), num)  # an empty column before each makes the gap
        spaced = [[row[0], *(cell for i in starts for cell in ["", *row[i : i + num]])] for row in rows]
        return [over, *aligned(spaced).split("\n")]

    def _blocks(self) -> Iterator[TextTable]:
        """A table for each group that has a number, with the rows that are not empty there."""
        for i, group in enumerate(self.groups):
            first, last = 1 + i * self.per_group, 1 + (i + 1) * self.per_group
            header, *rows = ([line[0], *line[first:last]] for line in [self.header, *self.rows])
            if any(set(row[1:]) - {"", MISSING} for row in rows):
                yield replace(self, header=header, rows=[row for row in rows if any(row[1:])], groups=[group])


def markdown(text: object) -> str:
    """A text as GitHub Markdown that shows just this text in a heading or a cell of a table."""
    shown = visible(text).strip().replace("&", "&amp;").replace("<", "&lt;")
    return _MARKDOWN.sub(r"\\\g<0>", shown)


def markdown_item(text: object) -> str:
    """The same as an item of a list, in which it begins no list, quotation or rule of its own."""
    return "- " + re.sub(r"^([0-9]*)([.)]|(?<![0-9])[+>-])", r"\1\\\2", markdown(text))


# What begins code, a column, emphasis, a formula, the target of a link, or ends a heading.
# Our own mark for a partial result, (*), means nothing in Markdown. An underscore within a word does not either.
_MARKDOWN = re.compile(r"[\\`|~$]|(?<!\()\*|\*(?!\))|(?<![^\W_])_|_(?![^\W_])|(?<=\])[(\[:]|#")


class Number(str):
    """A number as text, as a table shows it, which keeps what it is made of for CSV, JSON and LaTeX.

    Attributes:
        spread: its standard deviation over training seeds; None if there is none.
        interval: its 95 % interval; None if there is none.
    """

    value: float
    spread: float | None
    interval: Interval | None

    def __new__(
        cls, text: object, value: float, spread: float | None = None, interval: Interval | None = None
    ) -> Number:
        made = super().__new__(cls, text)
        made.value, made.spread, made.interval = value, spread, interval
        return made


def _parts(cell: str) -> dict[str, Any]:
    """What a cell holds: `""` its number (or text, where it is none), `std`, `low`, `high`; nothing if it is empty."""
    if isinstance(cell, Number):
        ends = {} if cell.interval is None else {"low": cell.interval.low, "high": cell.interval.high}
        return {"": cell.value, **({} if cell.spread is None else {"std": cell.spread}), **ends}
    if cell in ("", MISSING, "-"):
        return {}
    return {"": float(cell) if _DECIMAL.fullmatch(cell) else cell}


def _as_json(cell: str) -> dict[str, Any]:
    found = _parts(cell)
    value = found.pop("", None)
    return {"text": str(cell), **({} if isinstance(value, str) else {"value": value}), **found}


_DECIMAL = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")


def csv_cell(value: Any) -> Any:
    """What stands in a cell of a CSV file: numbers as they are, texts visible and never a formula of a spreadsheet."""
    if value is None or isinstance(value, (int, float)):
        return value
    shown = visible(value)
    begins = shown.lstrip().startswith(tuple("=+-@\uff1d\uff0b\uff0d\uff20"))  # some drop blanks before they look
    return "'" + shown if begins else shown
