"""Foreign text on a terminal, in a log, in a table: names of runs, reasons, hosts, overrides of who knows whom.

All that prints calls `visible`; `fsseg.report.formats` adds what Markdown, LaTeX and CSV need.
"""

from __future__ import annotations


class Lines(str):
    """Several lines on purpose, each of which is visible already."""


def visible(text: object) -> str:
    """A text as one line that shows each of its characters: what cannot be printed is written as an escape.

    A line break becomes `\\n`, the ESC of a terminal `\\x1b`, a mark that turns the direction of writing `\\u202e`, a
    byte of a file name that is no UTF-8 `\\xff`. `Lines` stay as they are.
    """
    if isinstance(text, Lines):
        return text
    text = str(text)
    if isinstance(text, Lines) or text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python keeps a byte that it could not decode
        character = chr(code - 0xDC00)
    return character.encode("unicode_escape").decode("ascii")
