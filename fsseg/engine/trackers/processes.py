"""The trackers of a run, each in a process of its own (`fsseg.engine.trackers.follow`), so that none can harm the run.

`fsseg.run` starts and ends them, the training says how far its checkpoints go. Nothing here waits for a tracker before
the end, and no longer than `PATIENCE` then. One that fails is told once and dropped.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from fsseg.cell.models import State, Tracked, Unreadable, read
from fsseg.cell.record import RunDirectory

log = logging.getLogger("fsseg")

PATIENCE = 60.0
"""Seconds that the end of a run waits for its trackers, all together."""
HURRY = 10.0
"""The same when a signal has stopped the run: its time is short."""


class Trackers:
    """Those of a run in this process; none until `start`. No method raises."""

    def __init__(self) -> None:
        self._open: list[_Follower] = []

    def start(self, run: RunDirectory, names: Sequence[str]) -> None:
        """Start the process of each; the caller holds the claim, and identity.json is written."""
        for name in names:
            try:
                self._open.append(_Follower(run, name))
            except OSError as error:
                log.warning("tracker %s: %s; the run goes on without it", name, error)

    def saved(self, rows: int) -> None:
        """A checkpoint that counts so many rows of metrics.csv is on the disk: these will not be taken back."""
        self._open = [follower for follower in self._open if follower.tell(f"rows {rows}") or not follower.is_over()]

    def end(self, state: State, hurry: Callable[[], bool]) -> None:
        """Tell all of them that this start is over, and wait a while for what they still have to say.

        Args:
            state: of the cell.
            hurry: whether the wait must be short.
        """
        since = time.monotonic()
        for follower in self._open:
            follower.tell(f"end {state}", last=True)
        while self._open:
            self._open = [follower for follower in self._open if not follower.is_over()]
            waited = time.monotonic() - since
            if waited > (HURRY if hurry() else PATIENCE):
                for follower in self._open:
                    follower.kill()
                    log.warning("tracker %s: not done after %.0f s; it was ended (%s)",
                                follower.name, waited, follower.log_file)  # fmt: skip
                break
            time.sleep(0.05)
        self._open = []

    def drop(self) -> None:
        """The cell is another's: end them where they are."""
        for follower in self._open:
            follower.kill()
        self._open = []


class _Follower:
    """The process of one tracker.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, run: RunDirectory, name: str) -> None:
        self.name, self.log_file, self._note = name, run.tracker_log(name), run.tracker_file(name)
        self.log_file.parent.mkdir(exist_ok=True)
        package = str(Path(__file__).resolve().parents[3])
        known = os.environ.get("PYTHONPATH")
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([package, known] if known else [package]), "PYTHONSAFEPATH": "1"
        }  # fmt: skip
        with self.log_file.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "fsseg.engine.trackers.follow", str(run.directory), name],
                stdin=subprocess.PIPE, stdout=output, stderr=output, env=environment,
                start_new_session=True,  # Ctrl-C is for the run
            )  # fmt: skip
        assert self._process.stdin is not None
        self._pipe = self._process.stdin.fileno()
        os.set_blocking(self._pipe, False)

    def tell(self, line: str, last: bool = False) -> bool:
        """Whether it could be told. A pipe that is full holds what was said before; a later line says more than this.

        Short lines are written whole or not at all.
        """
        try:
            os.write(self._pipe, f"{line}\n".encode())
        except BlockingIOError:
            return True
        except OSError:
            return False
        finally:
            if last:
                with suppress(OSError):
                    self._process.stdin.close()  # type: ignore[union-attr]
        return True

    def is_over(self) -> bool:
        """Whether its process has ended; says so if it failed."""
        if (status := self._process.poll()) is None:
            return False
        if status != 0:
            with suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)  # what the tool left behind
            log.warning("tracker %s: %s; the run goes on without it (%s)", self.name, self._reason(), self.log_file)
        return True

    def _reason(self) -> str:
        with suppress(Unreadable):
            if (note := read(self._note, Tracked)) is not None and note.error:
                return note.error
        return f"its process ended with status {self._process.returncode}"

    def kill(self) -> None:
        with suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
