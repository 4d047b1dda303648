"""A table of text cells, for a terminal, as Markdown and as LaTeX.

The tables of scores (`fsseg.report.tables`) and those of the paper's experiments (`fsseg.report.experiments`) are shown
through it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from fsseg.process.tables import aligned

MISSING = "—"
_MAX_WIDTH = 118  # a wider table is cut into one block a group


@dataclass
class TextTable:
    """One table, with what is to be said below it and the pictures written beside it.

    Attributes:
        header: names of the columns; the first is that of the rows' labels.
        groups: headings over the columns after the first, each over equally many.
    """

    title: str
    header: list[str]
    rows: list[list[str]] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    pictures: list[Path] = field(default_factory=list)

    @property
    def columns(self) -> int:
        """How many stand under one group."""
        return (len(self.header) - 1) // len(self.groups)

    def blocks(self) -> Iterator[TextTable]:
        """A table for each group that has a number, of the rows that have anything there."""
        for i, group in enumerate(self.groups):
            first, last = 1 + i * self.columns, 1 + (i + 1) * self.columns
            header, *rows = ([line[0], *line[first:last]] for line in [self.header, *self.rows])
            if any(set(row[1:]) - {"", MISSING} for row in rows):
                yield replace(self, header=header, rows=[row for row in rows if any(row[1:])], groups=[group])


def to_text(table: TextTable) -> str:
    """For a terminal or a log."""
    lines = _lines(table)
    if len(lines[0]) > _MAX_WIDTH and len(table.groups) > 1:
        lines = "\n\n".join("\n".join(_lines(block)) for block in table.blocks()).split("\n")
    notes = [f"  {note}" for note in table.notes] + [f"  picture: {p}" for p in table.pictures]
    gap = [] if table.groups else [""]
    return "\n".join([table.title, "", *lines, *gap, *notes]).rstrip("\n") + "\n"


def _lines(table: TextTable) -> list[str]:
    """The rows in columns; groups stand over theirs, with a wider gap before each."""
    rows = [table.header, *table.rows]
    if not table.groups:
        return aligned(rows).split("\n")
    widths = [max(map(len, column)) for column in zip(*rows)]
    over, num = " " * widths[0], table.columns
    for i, group in enumerate(table.groups):
        span = sum(widths[1 + i * num : 1 + (i + 1) * num]) + 2 * (num - 1)
        over += "    " + f" {group} ".center(span, "-")
    # An empty column before each group makes its gap twice as wide.
    spaced = [
        [row[0], *(c for i, cell in enumerate(row[1:]) for c in ([cell] if i % num else ["", cell]))] for row in rows
    ]
    return [over, *aligned(spaced).split("\n")]


def to_markdown(table: TextTable) -> str:
    """As GitHub Markdown, its pictures shown."""

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.strip().replace("|", "\\|") for cell in cells) + " |"

    groups = [f"{group} " for group in table.groups for _ in range(table.columns)] or [""] * (len(table.header) - 1)
    header = [table.header[0], *(group + name for group, name in zip(groups, table.header[1:]))]
    rule = "|" + "|".join([" --- "] + [" ---: "] * (len(header) - 1)) + "|"
    parts = [f"### {table.title}", "", line(header), rule, *map(line, table.rows), ""]
    parts += [f"- {note}".replace("*", "\\*") for note in table.notes]
    parts += ["", *(f"![{p.stem}]({p.name})" for p in table.pictures)] if table.pictures else []
    return "\n".join(parts) + "\n"


def to_latex(table: TextTable) -> str:
    """As a booktabs table with groups; needs \\usepackage{booktabs}."""
    num = table.columns
    spans = " & ".join(f"\\multicolumn{{{num}}}{{c}}{{{group}}}" for group in table.groups)
    rules = " ".join(f"\\cmidrule(lr){{{2 + i * num}-{1 + (i + 1) * num}}}" for i in range(len(table.groups)))
    parts = [
        f"\\begin{{table}}\n  \\centering\n  \\caption{{{_escape(table.title)}}}\n"
        f"  \\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}\n    \\toprule\n"
        f"    & {spans} \\\\\n    {rules}\n    & {' & '.join(table.header[1:])} \\\\\n    \\midrule\n"
    ]
    for label, *cells in table.rows:
        indent = "\\quad " if label.startswith(" ") else ""
        numbers = (c.replace(" ±", r" $\pm$ ").replace(" (*)", "$^{*}$").replace(MISSING, "---") for c in cells)
        parts.append(f"    {indent}{_escape(label.strip())} & {' & '.join(numbers)} \\\\\n")
    parts.append("    \\bottomrule\n  \\end{tabular}\n\\end{table}\n")
    parts += [f"% {note}\n" for note in table.notes]
    return "".join(parts)


def _escape(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {c: "\\" + c for c in "&%$#_{}"}
    return "".join(special.get(c, c) for c in text)
