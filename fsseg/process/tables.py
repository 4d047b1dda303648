"""Tables in plain text."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import zip_longest

from fsseg.errors import visible


def aligned(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """The rows as lines of text, columns two blanks apart and as wide as their widest cell; no line ends in a blank.

    Cells are made visible: a table has as many lines as rows, whatever they hold.

    Args:
        rows: cells of each line; a row may be shorter than the others.
        left: numbers of the columns that are flush left; the others are flush right.
    """
    rows = [[visible(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip_longest(*rows, fillvalue="")]
    lines = (
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)
