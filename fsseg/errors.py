"""The one exception type for mistakes that a user can make; raised everywhere, printed by `train.py` and `fsseg`.

And `visible`, through which all that prints shows text that somebody else may have written: names of runs, reasons,
hosts, overrides. `fsseg.report.formats` adds what Markdown, LaTeX and CSV need.
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


class UserError(Exception):
    """A fault the user can correct: one line says what is wrong, one line what to do.

    Both lines name the file, configuration key or command concerned. The entry points print them without a traceback
    and exit with a non-zero status; `HYDRA_FULL_ERROR=1` shows the traceback.

    Args:
        what: what is wrong; several lines only as `Lines`.
        fix: what to do about it.
    """

    def __init__(self, what: str, fix: str = "") -> None:
        self.what = what
        self.fix = fix
        super().__init__(what, fix)  # both as args, so that the exception survives pickling between processes

    def __str__(self) -> str:
        return Lines(f"{visible(self.what)}\n  -> {visible(self.fix)}") if self.fix else visible(self.what)


class Diverged(UserError):
    """Numbers of a training that are not finite: its settings end it, on any machine and however often it is tried."""


def merge_errors(errors: list[UserError]) -> UserError:
    """Several faults as one error, each with its own two lines and told once, in the order found."""
    errors = list({str(error): error for error in errors}.values())
    if len(errors) == 1:
        return errors[0]
    return UserError(Lines(f"{len(errors)} faults:\n" + "\n".join(f"- {e}" for e in errors)))
