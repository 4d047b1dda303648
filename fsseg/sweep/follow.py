"""The logs of a cell: which files they are, their lines as a terminal may show them, and `fsseg logs`.

A cell has its train.log, and for each job that a sweep started for it what the job printed (SLURM's `.out`, or that of
a local worker). A log is anybody's text: nothing of it reaches the terminal but printable characters.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from fsseg.cell.models import IN_HANDS, State
from fsseg.cell.record import Snapshot
from fsseg.errors import UserError, visible
from fsseg.process.files import open_regular
from fsseg.sweep.status import Surroundings, look_around

_BLOCK = 1 << 16
_TAIL_BYTES = 1 << 20  # most that is read of a log for its last lines
_LONGEST = 1 << 20  # bytes of a line that never ends, before it is shown in pieces
_SHOWN = 8  # candidates that a message names
_PAUSES = 0.5, 3.0  # seconds between two looks at the files, and at the cell
_MAY_RESTART = (State.PREEMPTED, State.STALE)
_SEQUENCES = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[PX^_][^\x1b]*(?:\x1b\\)?|[ -/]*[0-~])"
)
"""What a terminal takes as a command: colours, moves of the cursor, titles."""


def shown_line(line: bytes | str) -> str:
    """A line of a log as it may be shown: commands to the terminal are dropped, other odd characters escaped.

    Of a line that a progress bar has written over, the last state is left.
    """
    text = line.decode("utf-8", "backslashreplace") if isinstance(line, bytes) else line
    text = text.rstrip("\r\n").rpartition("\r")[2]
    return visible(_SEQUENCES.sub("", text).expandtabs(8))


def logs_of(s: Snapshot, around: Surroundings) -> list[Path]:
    """The logs of a cell that are there, train.log first, then those of its jobs, the newest last."""
    jobs = [place.cell.log for place in around.elsewhere.places(s.directory)]
    files = dict.fromkeys([s.run.log_file, *(Path(log) for log in jobs if log)])
    return [file for file in files if file.is_file()]


def last_lines(file: Path, number: int) -> list[str]:
    """The last lines of a log, as `shown_line` makes them; of one that cannot be read, a line that says why."""
    followed = _Followed(file)
    return [*followed.tail(number), *followed.end()][-number:] if number else []


def choose(words: Sequence[str]) -> tuple[Snapshot, Surroundings]:
    """The one cell that the words name: folders, and parts of its name or its SLURM job.

    A part that is a whole piece of a name (fold1) comes before one within a piece (fold10).

    Args:
        words: a run directory; or output folders (`outputs` without one) and parts that all must fit.

    Raises:
        UserError: a folder does not exist or holds no run, or no cell or several fit.
    """
    folders = [word for word in words if os.path.isdir(word)] or ["outputs"]
    parts = [word for word in words if not os.path.isdir(word)]
    if not os.path.isdir(folders[0]):
        raise UserError(f"{' '.join(parts)}: there is no such folder", "name a run directory, or an output folder")
    around = look_around(folders, [])
    named = {os.path.realpath(folder) for folder in folders}
    cells = [s for s in around.cells if os.path.realpath(s.directory) in named] or around.cells
    for fits in (_is_piece, _is_within):
        if found := [s for s in cells if all(fits(part, s, around) for part in parts)]:
            break
    if len(found) == 1:
        return found[0], around
    where, asked = ", ".join(folders), " ".join(parts)
    if not found:
        raise UserError(f"no cell below {where} fits {asked}", f"`fsseg status {where}` lists the cells")
    some = ", ".join(s.label for s in found[:_SHOWN]) + (f", and {len(found) - _SHOWN} more" * (len(found) > _SHOWN))
    raise UserError(f"{len(found)} cells fit {asked or where}: {some}", "add a part that only one of them has")


def _pieces(s: Snapshot, around: Surroundings) -> set[str]:
    jobs = {place.cell.job for place in around.elsewhere.places(s.directory)} | {
        s.status.slurm_job if s.status else None
    }
    return {*s.label.split("/"), *s.directory.parts, *(job for job in jobs if job)}


def _is_piece(part: str, s: Snapshot, around: Surroundings) -> bool:
    return part in _pieces(s, around) or f"/{part.strip('/')}/" in f"/{s.label}/"


def _is_within(part: str, s: Snapshot, around: Surroundings) -> bool:
    return part in s.label or part in str(s.directory)


@dataclass
class _Followed:
    """A log that is read as it grows; one that was replaced or cut back is read from its start."""

    file: Path
    place: int = 0
    node: int = 0
    rest: bytes = b""
    _refused: bool = False

    def tail(self, number: int) -> list[str]:
        """The last whole lines; reading goes on after them."""
        lines: list[bytes] = []
        with suppress(OSError), os.fdopen(open_regular(self.file), "rb") as stream:
            about = os.fstat(stream.fileno())
            start = max(0, about.st_size - min(_TAIL_BYTES, 4096 * (number + 1)))
            stream.seek(start)
            *lines, self.rest = stream.read(about.st_size - start).split(b"\n")
            self.node, self.place = about.st_ino, stream.tell()
            lines = lines[1:] if start else lines
        return [shown_line(line) for line in lines[-number:]] if number else []

    def lines(self) -> Iterator[str]:
        """The whole lines that are new; of a file that cannot be read, once the reason."""
        try:
            handle = open_regular(self.file)
        except OSError as error:
            if not self._refused and not isinstance(error, FileNotFoundError):
                self._refused = True
                yield visible(f"{self.file} cannot be read ({error.strerror})")
            return
        with os.fdopen(handle, "rb") as stream:
            about = os.fstat(stream.fileno())
            if about.st_ino != self.node or about.st_size < self.place:
                if self.rest:
                    yield shown_line(self.rest)
                self.node, self.place, self.rest = about.st_ino, 0, b""
            stream.seek(self.place)
            while block := stream.read(_BLOCK):
                self.place += len(block)
                *whole, self.rest = (self.rest + block).split(b"\n")
                yield from map(shown_line, whole)
                if len(self.rest) > _LONGEST:
                    yield shown_line(self.rest)
                    self.rest = b""

    def end(self) -> Iterator[str]:
        """What is new, a last line without an end too."""
        yield from self.lines()
        if self.rest:
            yield shown_line(self.rest)
            self.rest = b""


@dataclass
class CellLogs:
    """All logs of a cell, one after the other; a line names the file where another one begins."""

    cell: Snapshot
    around: Surroundings
    _read: dict[Path, _Followed] = field(default_factory=dict)
    _named: Path | None = None

    def files(self) -> list[Path]:
        return logs_of(self.cell, self.around)

    def new(self, number: int | None = None, ended: bool = False) -> Iterator[str]:
        """Lines that were not given before.

        Args:
            number: the most of each file; None gives all.
            ended: nobody writes any more: a last line without an end counts.
        """
        several = len(self.files()) > 1
        for file in self.files():
            followed = self._read.setdefault(file, _Followed(file))
            newer = followed.end() if ended else followed.lines()
            if number is None:
                lines = newer
            else:
                lines = iter([*followed.tail(number), *newer][-number:] if number else followed.tail(0))
            for line in lines:
                if several and file != self._named:
                    yield visible(f"==> {file} <==")
                self._named = file
                yield line

    def look(self) -> State:
        """See again how the cell stands, and which logs it has."""
        place = self.cell.directory
        self.around = look_around([next(p for p in (place, *place.absolute().parents) if p.is_dir())], [])
        here = os.path.realpath(place)
        self.cell = next((s for s in self.around.cells if os.path.realpath(s.directory) == here), self.cell)
        return self.cell.state


def logs(words: Sequence[str], number: int | None = None, follow: bool = False) -> Iterator[str]:
    """The lines of `fsseg logs`.

    Args:
        words: see `choose`.
        number: the most of each file to begin with; None gives all.
        follow: go on until nobody works on the cell any more; a cell that saved and starts again goes on.

    Raises:
        UserError: no single cell is named, or it has no log.
    """
    cell, around = choose(words)
    found = CellLogs(cell, around)
    if not found.files() and not (follow and cell.state in IN_HANDS):
        why = f"{cell.label} has no log: {cell.state}" + (f", {cell.reason}" if cell.reason else "")
        raise UserError(why, "`fsseg status` tells how it stands; `fsseg retry` prints the line that runs it")
    yield from found.new(number, ended=not follow)
    idle, looked = 0, float("-inf")
    while follow:
        if time.monotonic() - looked >= _PAUSES[1]:
            state, looked = found.look(), time.monotonic()
            idle = 0 if state in IN_HANDS or state == State.UNKNOWN else idle + 1
            if idle >= (2 if state in _MAY_RESTART else 1):
                break
        yield from found.new()
        time.sleep(_PAUSES[0])
    if follow:
        yield from found.new(ended=True)
        yield visible(f"{found.cell.label}: {found.cell.state}" + f", {found.cell.reason}" * bool(found.cell.reason))
