"""Progress with an ETA: a rich bar on a terminal, plain lines now and then in a file."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType

log = logging.getLogger("fsseg")


def duration(seconds: float) -> str:
    """75 -> 1:15, 3700 -> 1:01:40."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """Counts steps of one phase.

    Args:
        title: what is counted ("train", "evaluate").
        total: steps in all.
        done: steps done before (a resumed run).
        every: seconds between two plain lines.
    """

    def __init__(self, title: str, total: int, done: int = 0, every: float = 15.0) -> None:
        self.title, self.total, self.done, self.every = title, total, done, every
        self._first = done
        self._start = self._last = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
                console=Console(stderr=True), transient=False,
            )  # fmt: skip
            self._task = self._bar.add_task(title, total=total, completed=done, note="")

    def __enter__(self) -> Progress:
        if self._bar:
            with suppress(OSError):  # here and below: a terminal that is gone stops no run
                self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            with suppress(OSError):
                self._bar.stop()

    @property
    def seconds_per_step(self) -> float:
        """Mean since the start of this process; 0 before the first step."""
        return (time.monotonic() - self._start) / max(1, self.done - self._first) if self.done > self._first else 0.0

    @property
    def eta_seconds(self) -> float:
        return self.seconds_per_step * (self.total - self.done)

    @contextmanager
    def paused(self, note: str) -> Iterator[None]:
        """Time that counts in no step; `note` says beside the bar what it is spent on."""
        began = time.monotonic()
        if self._bar:
            with suppress(OSError):
                self._bar.update(self._task, note=note, refresh=True)
        try:
            yield
        finally:
            self._start += time.monotonic() - began

    def step(self, note: str = "", steps: int = 1) -> None:
        """Count `steps`; `note` stands beside the bar or in the line."""
        self.done += steps
        if self._bar:
            with suppress(OSError):
                self._bar.update(self._task, completed=self.done, note=note)
        elif time.monotonic() - self._last >= self.every or self.done == self.total:
            self._last = time.monotonic()
            took = duration(time.monotonic() - self._start)
            left = "" if self.done == self.total else f", {duration(self.eta_seconds)} left"
            log.info("%s %d/%d  %s  (%s%s)", self.title, self.done, self.total, note, took, left)
