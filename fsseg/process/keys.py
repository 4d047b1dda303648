"""Single keys from a terminal: read without Enter and without echo, and the terminal is left as it was.

`fsseg.sweep.live` uses it. The curses of Python would take over the screen as well.
"""

from __future__ import annotations

import os
import select
import sys
import termios
import tty
from contextlib import suppress
from types import TracebackType
from typing import Any

from fsseg.process.signals import exiting_on

_NAMES = {
    b"\x1b[A": "up", b"\x1bOA": "up", b"\x1b[B": "down", b"\x1bOB": "down",
    b"\x1b[5~": "page up", b"\x1b[6~": "page down",
    b"\x1b[H": "home", b"\x1bOH": "home", b"\x1b[F": "end", b"\x1bOF": "end", b"\r": "enter", b"\n": "enter",
    b"\x1b": "escape", b"\x7f": "backspace",
}  # fmt: skip


class TerminalKeys:
    """In the block `with TerminalKeys() as keys:` stdin gives single keys; after it the terminal is as it was before.

    Ctrl-C raises KeyboardInterrupt as always. TERM, and HUP of a terminal that closes, raise SystemExit, so that the
    terminal is put back. Ctrl-Z does nothing: the shell would get a terminal that shows no letters.

    Args:
        handle: descriptor of the terminal; None takes stdin.

    Raises:
        termios.error: it is no terminal.
    """

    def __init__(self, handle: int | None = None) -> None:
        self._handle = sys.stdin.fileno() if handle is None else handle
        self._before: list[Any] = []
        self._signals = exiting_on(("SIGTERM", "SIGHUP"))
        self._waiting = b""

    def __enter__(self) -> TerminalKeys:
        self._before = termios.tcgetattr(self._handle)
        self._signals.__enter__()
        tty.setcbreak(self._handle)
        now = termios.tcgetattr(self._handle)
        now[6][termios.VSUSP] = b"\0"
        termios.tcsetattr(self._handle, termios.TCSANOW, now)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._signals.__exit__(kind, error, trace)
        with suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(self._handle, termios.TCSAFLUSH, self._before)

    def read(self, seconds: float) -> str:
        """The next key, by its letter or its name (`up`, `down`, `page up`, `enter`, ...); empty if none comes in time.

        Raises:
            EOFError: the terminal is gone.
        """
        if not self._waiting:
            if not select.select([self._handle], [], [], seconds)[0]:
                return ""
            self._waiting = self._more()
        if self._waiting == b"\x1b" and select.select([self._handle], [], [], 0.05)[0]:
            self._waiting += self._more()
        key, self._waiting = _first(self._waiting)
        return _NAMES.get(key) or (key.decode("utf-8", "ignore") if key[:1] != b"\x1b" else "")

    def _more(self) -> bytes:
        try:
            found = os.read(self._handle, 1024)
        except OSError:
            found = b""
        if not found:
            raise EOFError("the terminal is gone")
        return found


def _first(waiting: bytes) -> tuple[bytes, bytes]:
    """One key of what was typed, and the rest: `ESC [ 5 ~` is one, and so is a letter of several bytes."""
    if waiting[:2] in (b"\x1b[", b"\x1bO"):
        end = next((i for i in range(2, len(waiting)) if 0x40 <= waiting[i] <= 0x7E), len(waiting) - 1)
        return waiting[: end + 1], waiting[end + 1 :]
    end = 1
    while end < len(waiting) and 0x80 <= waiting[end] < 0xC0:
        end += 1
    return waiting[:end], waiting[end:]
