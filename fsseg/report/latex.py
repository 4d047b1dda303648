"""Text and tables as LaTeX. `fsseg.report.formats` calls it; what it writes compiles with pdfTeX, XeTeX and LuaTeX.

A table is one of booktabs. The best number of a column among our rows is bold, spreads and intervals are small,
published rows are grey.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

from fsseg.errors import visible

if TYPE_CHECKING:
    from fsseg.report.formats import TextTable

PACKAGES = "% Needs \\usepackage{booktabs}, \\usepackage{graphicx} and \\usepackage{xcolor}.\n"
_SIGNS = ("±", "(*)")
"""Beginnings of notes on what stands in a table."""
_LONG_LABEL = 60  # characters
_WIDE = 6  # columns of numbers, more than which go over both columns of a page

_NAMES = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", **{c: "\\" + c for c in "&%$#_{}"},
    "±": r"$\pm$", "—": "---", "–": "--", "−": "$-$", "×": r"$\times$", "°": r"$^\circ$", "µ": r"$\mu$",
    "…": r"\dots{}", "→": r"$\to$", "≤": r"$\le$", "≥": r"$\ge$", "≠": r"$\ne$", "·": r"$\cdot$", "ß": r"\ss{}",
    "æ": r"\ae{}", "Æ": r"\AE{}", "œ": r"\oe{}", "Œ": r"\OE{}", "ø": r"\o{}", "Ø": r"\O{}", "ł": r"\l{}",
    "Ł": r"\L{}", "ı": r"\i{}", "‘": "`", "’": "'", "“": "``", "”": "''", "`": r"\`{}", '"': r"\char34{}",
}  # fmt: skip
"""Characters that stand for something else in TeX, or that its fonts have under another name."""
_LIGATURES = ("-", "'", ",")  # two of a kind make another character
_ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u", "\u0307": ".",
    "\u0308": '"', "\u030a": "r", "\u030b": "H", "\u030c": "v", "\u0327": "c", "\u0328": "k",
}  # fmt: skip
_NUMBER = re.compile(r"([+-]?)([0-9]+(?:\.[0-9]+)?)(?: ±([0-9.]+))?(?: \[([^,\]]+), ([^\]]+)\])?( \(\*\))?")


def latex(text: object) -> str:
    """A text as LaTeX that shows just this text; after the end of a row too, where `[` and `*` are arguments.

    What no font of pdfTeX has (Chinese, say) is shown as it is by XeTeX and LuaTeX, and by its number by pdfTeX.
    """
    parts: list[str] = []
    foreign = ""
    for c in [*list(visible(text)), ""]:
        written = _character(c) if c else ""
        if written is None:
            foreign += c
            continue
        if foreign:
            numbers = " ".join(f"U+{ord(f):04X}" for f in foreign)
            parts.append(rf"\ifdefined\Umathcode {foreign}\else{{}}[{numbers}]\fi{{}}")
            foreign = ""
        again = written in _LIGATURES and bool(parts) and parts[-1].endswith(written)
        parts.append("{}" + written if again else written)
    shown = "".join(parts)
    return "{}" + shown if shown.startswith(("[", "*")) else shown


def _character(c: str) -> str | None:
    """A character; None if only fonts that XeTeX and LuaTeX can use have it."""
    if c in _NAMES:
        return _NAMES[c]
    if c.isascii():
        return c
    base, marks = (parts := unicodedata.normalize("NFD", c))[:1], parts[1:]
    if base.isascii() and base.isalpha() and marks in _ACCENTS:
        base = rf"\{base}" if base in "ij" else base  # without its dot
        return rf"\{_ACCENTS[marks]}{{{base}}}"
    return None


def latex_table(table: TextTable) -> str:
    """A table with what `PACKAGES` names. The caption says what its signs mean; the other notes are comments below."""
    num = table.per_group
    star = "*" if len(table.header) - 1 > _WIDE else ""
    lines = [rf"\begin{{table{star}}}", r"  \centering", rf"  \caption{{{latex(_caption(table))}}}", r"  \small",
             r"  \setlength{\tabcolsep}{4pt}", rf"  {_FITTED}",
             rf"  \begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}", r"    \toprule"]  # fmt: skip
    if table.groups:
        spans = " & ".join(rf"\multicolumn{{{num}}}{{c}}{{{latex(group)}}}" for group in table.groups)
        rules = (rf"\cmidrule(lr){{{2 + i * num}-{1 + (i + 1) * num}}}" for i in range(len(table.groups)))
        lines += [rf"    & {spans} \\", f"    {' '.join(rules)}"]
    lines += [f"    {' & '.join(map(latex, table.header))} \\\\", r"    \midrule"]
    best = best_cells(table)
    for i, (label, *cells) in enumerate(table.rows):
        indent = r"\quad " if label.startswith(" ") else ""
        written = [indent + _label(label.strip())]
        written += [_cell(cell, (i, j) in best) for j, cell in enumerate(cells, 1)]
        if i in table.published:
            written = [rf"\textcolor{{gray}}{{{cell}}}" if cell else "" for cell in written]
        lines.append(f"    {' & '.join(written)} \\\\")
        if any(getattr(cell, "interval", None) is not None for cell in cells):
            lines.append(f"    {' & '.join([_INTERVAL, *map(_ends, cells)])} \\\\")
    lines += [r"    \bottomrule", r"  \end{tabular}}", rf"\end{{table{star}}}"]
    notes = (note for note in table.notes if not note.startswith(_SIGNS))
    return "\n".join([*lines, *(f"% {visible(note)}" for note in notes)]) + "\n"


def _caption(table: TextTable) -> str:
    """The title, what the intervals are over, and the notes on signs that stand in the table."""
    found = (getattr(cell, "interval", None) for row in table.rows for cell in row)
    over = dict.fromkeys(interval.over for interval in found if interval is not None)
    told = [f"95 % intervals are over {', or '.join(over)}"] if over else []
    told += [note for note in table.notes if note.startswith(_SIGNS)]
    return ". ".join([table.title, *told]) + "." * bool(told)


def best_cells(table: TextTable) -> set[tuple[int, int]]:
    """Row and column of the largest number in each of the table's `scores`, among our own rows.

    Published rows and those below a row (differences) do not count, nor do partial numbers. Where only one row has a
    number nothing is best. Numbers that are printed alike are equally good.
    """
    found: set[tuple[int, int]] = set()
    for j in table.scores:
        numbers = {}
        for i, row in enumerate(table.rows):
            match = _NUMBER.fullmatch(row[j]) if j < len(row) else None
            if match and not match[6] and i not in table.published and not row[0].startswith(" "):
                numbers[i] = float(match[1] + match[2])
        if len(numbers) > 1:
            found |= {(i, j) for i, value in numbers.items() if value == max(numbers.values())}
    return found


_INTERVAL = r"\quad{\scriptsize 95\,\% interval}"
_FITTED = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"  # made smaller if it is too wide


def _label(text: str) -> str:
    """A name; one that would take the place of the numbers in several lines."""
    shown = visible(text)
    lines = [latex(shown[i : i + _LONG_LABEL]) for i in range(0, max(1, len(shown)), _LONG_LABEL)]
    return lines[0] if len(lines) == 1 else "\\shortstack[l]{" + "\\\\".join(lines) + "}"


def _ends(cell: str) -> str:
    """The interval of a number, for the line below it; with as many decimals as the number."""
    interval, match = getattr(cell, "interval", None), _NUMBER.fullmatch(cell)
    if interval is None or match is None:
        return ""
    decimals = len(match[2].partition(".")[2])
    return rf"{{\scriptsize {interval.brackets(f'.{decimals}f')}}}".replace("-", "$-$")


def _cell(text: str, bold: bool) -> str:
    if text == "—":
        return "---"
    if (match := _NUMBER.fullmatch(text)) is None:
        return latex(text)
    sign, value, spread, low, high, partial = match.groups()
    number = f"${sign}${value}" if sign else value
    small = [rf"$\pm${spread}"] if spread else []
    small += [f"[{latex(low)}, {latex(high)}]"] if low else []
    return (
        (rf"\textbf{{{number}}}" if bold else number)
        + ("$^{*}$" if partial else "")
        + (rf"{{\scriptsize\,{' '.join(small)}}}" if small else "")
    )
