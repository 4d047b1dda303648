"""Where the lines of a run go: the terminal, and train.log of its cell. Called by `fsseg.run` and the sweeper."""

from __future__ import annotations

import contextlib
import copy
import errno
import logging
import sys
from pathlib import Path
from typing import Any

from fsseg.errors import visible
from fsseg.process.files import Refused


class _VisibleFormatter(logging.Formatter):
    """Lines in which foreign text is visible: a line break in an argument starts no new line, one in a message does."""

    def format(self, record: logging.LogRecord) -> str:
        if isinstance(record.args, tuple):
            record = copy.copy(record)
            record.args = tuple(a if hasattr(a, "__float__") else visible(a) for a in record.args or ())
        return "\n".join(map(visible, super().format(record).split("\n")))


_FORMAT = _VisibleFormatter("%(asctime)s %(message)s", "%H:%M:%S")


def configure_logging(level: str) -> None:
    """Send fsseg's loggers to stderr at `level`; the root logger and Hydra's stay as they are."""
    logger = logging.getLogger("fsseg")
    if level.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        level = "info"  # `faults` names it
    logger.setLevel(level.upper())
    logger.propagate = False
    if not any(getattr(h, "fsseg_console", False) for h in logger.handlers):
        logger.addHandler(_Console())


class _Console(logging.StreamHandler):  # type: ignore[type-arg]  # generic from Python 3.11 on
    """The terminal. One that is closed takes nothing more, and stops no run."""

    fsseg_console = True

    def __init__(self) -> None:
        logging.Handler.__init__(self)  # not the stream's: it would keep the one of now
        self.setFormatter(_FORMAT)

    @property
    def stream(self) -> Any:
        """What is stderr now: while a progress bar is drawn, rich stands there, and puts lines above the bar."""
        return sys.stderr

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], (OSError, ValueError)):  # of a file object that is closed: ValueError
            super().handleError(record)


class RunLog(logging.FileHandler):
    """train.log of a cell, appended to by every start.

    Attributes:
        strict: raise errors of writing; set to False while a run records its end.

    Raises:
        OSError: from the logging call itself, if a line cannot be written; a run on a full disk must not go on.
    """

    def __init__(self, path: Path) -> None:
        if path.exists() and not path.is_file():  # opening a FIFO would wait for a reader
            raise Refused(errno.EINVAL, "no file", str(path))
        super().__init__(path, encoding="utf-8")
        self.strict = True
        self.setFormatter(_FORMAT)

    def handleError(self, record: logging.LogRecord) -> None:
        if isinstance(sys.exc_info()[1], OSError):
            if self.strict:
                raise
            return
        super().handleError(record)

    def note(self, text: str) -> None:
        """A text for the file alone, if it is not empty; dropped if it cannot be written."""
        if not text:
            return
        with contextlib.suppress(OSError):
            self.emit(logging.LogRecord("fsseg", logging.ERROR, "", 0, text, (), None))
