"""`status.json` of a running cell, kept up to date by `fsseg.run`; `fsseg.cell.record` reads it."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from fsseg.cell.models import State, Status, Unreadable, write_record
from fsseg.cell.record import RunDirectory
from fsseg.process.provenance import slurm_name


class StatusFile:
    """Written at every change of state or phase, otherwise at most every `interval` seconds.

    Several threads may call it: the loops report steps, the claim's heartbeat calls `beat`.

    Args:
        path: the file; None writes nothing (other processes of a run than the first, or before `show`).
        interval: seconds.
        guard: called before every write; raises if the cell is no longer ours.
    """

    def __init__(self, path: Path | None, interval: float = 5.0, guard: Callable[[], None] = lambda: None) -> None:
        self.path = path
        self.interval = interval
        self._guard = guard
        self._lock = threading.RLock()
        self._written = 0.0
        self._now = Status(
            state=State.QUEUED, host=socket.gethostname(), pid=os.getpid(),
            slurm_job=slurm_name(), started=time.time(),
        )  # fmt: skip

    def update(self, **fields: Any) -> None:
        """Set fields of `Status`; write if the state or phase changed or the last write is old enough."""
        if unknown := set(fields) - set(Status.__struct_fields__):
            raise ValueError(f"unknown status fields {sorted(unknown)}")
        with self._lock:
            urgent = any(fields.get(k, getattr(self._now, k)) != getattr(self._now, k) for k in ("state", "phase"))
            for name, value in fields.items():
                setattr(self._now, name, value)
            if urgent or time.monotonic() - self._written >= self.interval:
                self._write()

    def show(self, path: Path) -> None:
        """Write to this file from now on, and at once."""
        with self._lock:
            self.path = path
            self._write()

    def beat(self) -> None:
        """Record that the process lives, also during a long step; writes only while the state is `running`."""
        with self._lock:
            if self._now.state == State.RUNNING and time.monotonic() - self._written >= self.interval:
                self._write()

    def _write(self) -> None:
        if self.path is None:
            return
        self._guard()
        self._now.heartbeat = time.time()
        write_record(self.path, self._now)
        self._written = time.monotonic()


def write_state(run: RunDirectory, state: State, reason: str | None = None) -> None:
    """Write a state for a process that cannot, or has not started; the recorded progress of the run stays.

    Raises:
        OSError: it cannot be written.
    """
    new = {"state": state, "reason": reason, "phase": None, "eta_seconds": None, "heartbeat": time.time()}
    write_record(run.status_file, msgspec.structs.replace(status_of(run), **new))


def status_of(run: RunDirectory) -> Status:
    """What status.json says; without one that can be read, a status that says nothing."""
    try:
        return run.status() or Status(state=State.QUEUED)
    except Unreadable:
        return Status(state=State.QUEUED)
