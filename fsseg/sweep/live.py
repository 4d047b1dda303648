"""`fsseg status --watch` on a terminal: states, pace, the cells, what failed logs end with; keys open a log.

What is shown is text that others may have written. It goes through `fsseg.errors.visible` or `shown_line`, and into
`rich.text.Text`, which takes `[red]` for text: neither reaches the terminal as a command.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from fsseg.cell.models import IN_HANDS, State
from fsseg.cell.record import Problem, Snapshot
from fsseg.errors import visible
from fsseg.sweep.follow import last_lines, logs_of
from fsseg.sweep.pace import pace_of
from fsseg.sweep.status import Surroundings, look_around, text, told

if TYPE_CHECKING:
    from rich.text import Text

_COLOURS = {
    State.DONE: "green", State.RUNNING: "cyan", State.PENDING: "blue", State.QUEUED: "blue", State.UNKNOWN: "magenta",
    State.PREEMPTED: "yellow", State.PRUNED: "yellow", State.STALE: "yellow", State.STOPPED: "yellow",
    State.FAILED: "red", State.BROKEN: "red",
}  # fmt: skip
_ORDER = (State.FAILED, State.BROKEN, State.STALE, State.RUNNING, State.PREEMPTED, State.PRUNED, State.STOPPED,
          State.PENDING, State.QUEUED, State.UNKNOWN, State.DONE)  # fmt: skip
_TICK = 0.2  # seconds until a changed size of the terminal is seen
_LEAST_ROWS = 3  # of the list of cells, before other parts give way
_LOG_LINES = 2000  # of a log that is opened
_FAILED_LOGS = 3  # whose last lines are shown
_LAST = 2  # lines of each


@dataclass
class View:
    """What is on the screen, and what keys do with it; `lines` draws it for any size.

    Attributes:
        chosen: the directory of the cell that Enter opens.
        log: lines of the opened log, from the newest cell look; None while the list is shown.
        above: lines of the log that are scrolled out below the screen.
    """

    around: Surroundings
    problems: list[Problem] = field(default_factory=list)
    chosen: Path | None = None
    log: list[str] | None = None
    above: int = 0
    _page: int = 10

    @property
    def cells(self) -> list[Snapshot]:
        """Those that need somebody first, the finished ones last."""
        return sorted(self.around.cells, key=lambda s: _ORDER.index(s.state) if s.state in _ORDER else 0)

    @property
    def at_work(self) -> bool:
        return any(s.state in IN_HANDS for s in self.around.cells)

    def see(self, around: Surroundings, problems: list[Problem]) -> None:
        """Take a new look at the cells; an open log is read again."""
        self.around, self.problems = around, problems
        if self.log is not None:
            self._open()

    def press(self, key: str) -> bool:
        """Do what a key says; False if it ends the view."""
        moves = {"up": -1, "k": -1, "down": 1, "j": 1, "page up": -self._page, "page down": self._page,
                 "home": -(10**9), "g": -(10**9), "end": 10**9, "G": 10**9}  # fmt: skip
        if self.log is not None:
            if key in ("q", "escape", "enter", "backspace"):
                self.log = None
            elif key in moves:
                self.above = min(max(0, self.above - moves[key]), max(0, len(self.log) - self._page))
        elif key in ("q", "escape"):
            return False
        elif key == "enter":
            self.above = 0
            self._open()
        elif key in moves:
            cells = self.cells
            self.chosen = cells[min(max(0, self._place() + moves[key]), len(cells) - 1)].directory
        return True

    def _place(self) -> int:
        return next((i for i, s in enumerate(self.cells) if s.directory == self.chosen), 0)

    def _open(self) -> None:
        cell, lines = self.cells[self._place()], []
        self.chosen = cell.directory
        files = logs_of(cell, self.around)
        for file in files:
            lines += [visible(f"==> {file} <==")] * (len(files) > 1) + last_lines(file, _LOG_LINES)
        self.log = lines or [visible(f"no log: {cell.state}" + f", {cell.reason}" * bool(cell.reason))]

    def lines(self, width: int, height: int) -> list[Text]:
        """The screen: at most `height` lines of at most `width` columns."""
        drawn = self._opened(width, height) if self.log is not None else self._list(width, height)
        return drawn[:height]

    def _opened(self, width: int, height: int) -> list[Text]:
        assert self.log is not None
        cell = self.cells[self._place()]
        self._page = max(1, height - 2)
        end = len(self.log) - self.above
        shown = self.log[max(0, end - self._page) : end]
        keys = "q back  up/down scroll" + f"  ({self.above} lines below)" * (self.above > 0)
        head = _fitted(f"{cell.state}  {_cut_left(visible(cell.label), width - len(cell.state) - 2)}", width, "bold")
        return [head, *(_fitted(line, width) for line in shown), _fitted(keys, width, "dim")]

    def _list(self, width: int, height: int) -> list[Text]:
        cells, place = self.cells, self._place()
        counts = Counter(s.state for s in cells)
        head = [_fitted(f"{time.strftime('%H:%M:%S')}  {len(cells)} cells", width, "bold")]
        head += [_bar(state, counts[state], len(cells), width) for state in State if counts[state]]
        if pace := str(pace_of(cells)):
            head.append(_fitted(pace, width))
        keys = _fitted("q quit  up/down choose  Enter its log", width, "dim")
        room = height - len(head) - _LEAST_ROWS - 2
        logs = self._failed(width, _FAILED_LOGS)
        for most in reversed(range(_FAILED_LOGS)):
            if len(logs) > room:
                logs = self._failed(width, most)
        rows = max(1, height - len(head) - len(logs) - 2)
        self._page = rows
        first = min(max(0, place - rows // 2), max(0, len(cells) - rows))
        common = _common_start([s.label for s in cells])
        lines = [*head, _fitted("", width)]
        for number, s in enumerate(cells[first : first + rows], first):
            lines.append(_row(s, common, width, number == place))
        return [*lines, *logs, keys]

    def _failed(self, width: int, most: int) -> list[Text]:
        """The last lines of the logs of so many failed cells."""
        from rich.text import Text

        lost = [s for s in self.cells if s.state in (State.FAILED, State.BROKEN, State.STALE)]
        lines: list[Text] = []
        common = _common_start([s.label for s in self.around.cells])
        for s in lost[:most]:
            files = logs_of(s, self.around)
            if last := [line for file in files[:1] for line in last_lines(file, _LAST)]:
                lines.append(_fitted(_cut_left(visible(s.label)[common:], width), width, "red"))
                lines += [_fitted(f"  {line}", width) for line in last]
        return [Text(""), *lines] if lines else []


def _row(s: Snapshot, common: int, width: int, chosen: bool) -> Text:
    """One cell: a mark, its state, its name, and what there is to say, the name cut first if there is no room."""
    name = visible(s.label)[common:] or visible(s.label)
    name = _cut_left(name, max(12, (width - 14) * 2 // 3))
    line = _fitted(f"{'>' if chosen else ' '} {s.state:<9}  {name}  {visible(told(s))}", width)
    line.stylize(_COLOURS.get(s.state, ""), 2, 2 + len(s.state))
    if chosen:
        line.stylize("reverse")
    return line


def _bar(state: State, number: int, of: int, width: int) -> Text:
    """A state with its count and its share; a state of few cells has a bar too."""
    room = max(4, min(40, width - 20))
    line = _fitted(f"  {state:<9} {number:>6}  {'█' * max(1, round(room * number / of))}", width)
    line.stylize(_COLOURS.get(state, ""), 20)
    return line


def _fitted(line: str, width: int, style: str = "") -> Text:
    from rich.text import Text

    made = Text(line, style=style, no_wrap=True, overflow="ellipsis")
    made.truncate(max(1, width), overflow="ellipsis")
    return made


def _cut_left(name: str, most: int) -> str:
    """The end of a name tells the cells apart."""
    return name if len(name) <= most else "…" + name[len(name) - max(1, most - 1) :]


def _common_start(labels: Sequence[str]) -> int:
    """Characters that all names begin with, up to the last slash; 0 for a single one."""
    pieces = zip(*(visible(label).split("/") for label in labels))
    return sum(len(p[0]) + 1 for p in takewhile(lambda p: len(set(p)) == 1, pieces)) if len(labels) > 1 else 0


class _Looks:
    """Looks at the cells in a thread: keys are obeyed while SLURM does not answer."""

    def __init__(self, folders: Sequence[str | Path], every: float) -> None:
        self._folders, self._every = folders, every
        self._found: queue.SimpleQueue[tuple[Surroundings, list[Problem]] | BaseException] = queue.SimpleQueue()
        self._next, self._busy = float("-inf"), False

    def first(self) -> tuple[Surroundings, list[Problem]]:
        """Raises: UserError, as `look_around`."""
        self._next = time.monotonic() + self._every
        problems: list[Problem] = []
        return look_around(self._folders, problems), problems

    def newest(self) -> tuple[Surroundings, list[Problem]] | None:
        """A look that has ended since; begins the next one when it is time. Raises: UserError."""
        if not self._busy and time.monotonic() >= self._next:
            self._busy = True
            threading.Thread(target=self._look, daemon=True).start()
        if self._found.empty():
            return None
        found = self._found.get()
        self._busy, self._next = False, time.monotonic() + self._every
        if isinstance(found, BaseException):
            raise found
        return found

    def _look(self) -> None:
        problems: list[Problem] = []
        try:
            self._found.put((look_around(self._folders, problems), problems))
        except BaseException as error:
            self._found.put(error)


def is_possible() -> bool:
    """Whether there is a terminal on both sides, one that can move its cursor."""
    streams = (sys.stdin, sys.stdout)
    both = all(s is not None and not s.closed and s.isatty() for s in streams)
    return both and os.environ.get("TERM", "dumb") not in ("", "dumb")


def watch(folders: Sequence[str | Path], every: float = 5.0) -> None:
    """Show the cells until none runs or waits, or a key ends it; then print the text of `fsseg status`.

    An open log is not closed when the last cell ends.

    Raises:
        UserError: as `look_around`.
    """
    looks = _Looks(folders, every)
    view = View(*looks.first())
    if view.at_work:
        _show(view, looks)
    print(text(view.around.cells, view.problems), flush=True)


def _show(view: View, looks: _Looks) -> None:
    """Draw and obey keys until the view ends; the terminal is then as it was."""
    from rich.console import Console, Group
    from rich.live import Live

    from fsseg.process.keys import TerminalKeys

    console = Console(highlight=False, markup=False, emoji=False)
    drawn: tuple[int, int] | None = None
    with (
        TerminalKeys() as keys,
        Live(console=console, screen=True, auto_refresh=False, redirect_stderr=False) as screen,
    ):
        while view.at_work or view.log is not None:
            size = console.size.width, console.size.height
            found = looks.newest()
            if found is not None:
                view.see(*found)
            if found is not None or size != drawn:
                screen.update(Group(*view.lines(*size)), refresh=True)
                drawn = size
            try:
                key = keys.read(_TICK)
            except EOFError:
                return
            if key:
                drawn = None
                if not view.press(key):
                    return
