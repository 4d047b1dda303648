"""A table of text cells, for a terminal, as Markdown and as LaTeX; how foreign text stands in each, and in CSV.

`fsseg.report.tables` (scores) and `fsseg.report.experiments` (the paper's experiments) use it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fsseg.errors import visible
from fsseg.process.tables import aligned

MISSING = "—"
_MAX_WIDTH = 118  # a wider table is cut into one block a group


@dataclass
class TextTable:
    """One table, with the notes below it and the pictures that belong to it.

    Attributes:
        header: names of the columns; the first is that of the rows' labels.
        groups: headings over the columns after the first, each over the same number of columns.
    """

    title: str
    header: list[str]
    rows: list[list[str]] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    pictures: list[Path] = field(default_factory=list)

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

        groups = [f"{group} " for group in self.groups for _ in range(self._per_group)] or [""] * len(self.header)
        header = [self.header[0], *(group + name for group, name in zip(groups, self.header[1:]))]
        rule = "|" + "|".join([" --- "] + [" ---: "] * (len(header) - 1)) + "|"
        parts = [f"### {markdown(self.title)}", "", line(header), rule, *map(line, self.rows), ""]
        parts += [markdown_item(note) for note in self.notes]
        parts += ["", *(f"![{markdown(p.stem)}]({quote(p.name)})" for p in self.pictures)] if self.pictures else []
        return "\n".join(parts) + "\n"

    def to_latex(self) -> str:
        """As a table with groups; needs \\usepackage{booktabs}."""
        num = self._per_group
        spans = " & ".join(f"\\multicolumn{{{num}}}{{c}}{{{latex(group)}}}" for group in self.groups)
        rules = " ".join(f"\\cmidrule(lr){{{2 + i * num}-{1 + (i + 1) * num}}}" for i in range(len(self.groups)))
        parts = [
            f"\\begin{{table}}\n  \\centering\n  \\caption{{{latex(self.title)}}}\n"
            f"  \\begin{{tabular}}{{l{'r' * (len(self.header) - 1)}}}\n    \\toprule\n"
            f"    & {spans} \\\\\n    {rules}\n    & {' & '.join(map(latex, self.header[1:]))} \\\\\n    \\midrule\n"
        ]
        for label, *cells in self.rows:
            indent = "\\quad " if label.startswith(" ") else ""
            numbers = (
                latex(c).replace(" ±", r" $\pm$ ").replace(" (*)", "$^{*}$").replace(MISSING, "---") for c in cells
            )
            parts.append(f"    {indent}{latex(label.strip())} & {' & '.join(numbers)} \\\\\n")
        parts.append("    \\bottomrule\n  \\end{tabular}\n\\end{table}\n")
        return "".join([*parts, *(f"% {visible(note)}\n" for note in self.notes)])

    @property
    def _per_group(self) -> int:
        return (len(self.header) - 1) // max(len(self.groups), 1)

    def _lines(self) -> list[str]:
        """The rows in columns; each group has its heading and a double gap before it."""
        rows, num = [self.header, *self.rows], self._per_group
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
            first, last = 1 + i * self._per_group, 1 + (i + 1) * self._per_group
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


def latex(text: object) -> str:
    """A text as LaTeX that shows just this text; after the end of a row too, where `[` and `*` are arguments."""
    shown = "".join(_LATEX.get(c, c) for c in visible(text))
    return "{}" + shown if shown.startswith(("[", "*")) else shown


_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", **{c: "\\" + c for c in "&%$#_{}"},
}  # fmt: skip


def csv_cell(value: Any) -> Any:
    """What stands in a cell of a CSV file: numbers as they are, texts visible and never a formula of a spreadsheet."""
    if value is None or isinstance(value, (int, float)):
        return value
    shown = visible(value)
    return "'" + shown if shown.startswith(tuple("=+-@\uff1d\uff0b\uff0d\uff20")) else shown
