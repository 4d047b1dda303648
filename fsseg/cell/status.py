"""`status.json`: how far a running cell is. `fsseg.run` writes it; `fsseg status` and the sweeper read it."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fsseg.process.files import write_json

SCHEMA_VERSION = 1


class Status:
    """`status.json` of a running cell: written at every change of state, and else at most every `interval` seconds.

    Several threads may call it: the loops report steps, the claim's heartbeat calls `beat`.

    Args:
        path: the file; None writes nothing (processes of a run other than the first).
        interval: seconds.
        guard: called before every writing; raises if the cell is no longer ours.
    """

    def __init__(self, path: Path | None, interval: float = 5.0, guard: Callable[[], None] = lambda: None) -> None:
        self.path = path
        self.interval = interval
        self._guard = guard
        self._lock = threading.RLock()
        self._written = 0.0
        self._fields: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "state": "queued",
            "phase": None,
            "step": 0,
            "steps": None,
            "seconds_per_step": None,
            "eta_seconds": None,
            "miou": None,
            "reason": None,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "slurm_job": os.environ.get("SLURM_JOB_ID"),
            "started": time.time(),
            "heartbeat": None,
            "peak_memory_bytes": None,
        }

    def update(self, **fields: Any) -> None:
        """Set fields; write if the state or phase changed or the last writing is old enough."""
        if unknown := set(fields) - set(self._fields):
            raise ValueError(f"unknown status fields {sorted(unknown)}")
        with self._lock:
            urgent = any(fields.get(k, self._fields[k]) != self._fields[k] for k in ("state", "phase"))
            self._fields.update(fields)
            if urgent or time.monotonic() - self._written >= self.interval:
                self._write()

    def beat(self) -> None:
        """Say that the process lives, however long a step takes; writes only while the state is `running`."""
        with self._lock:
            if self._fields["state"] == "running" and time.monotonic() - self._written >= self.interval:
                self._write()

    def _write(self) -> None:
        if self.path is None:
            return
        self._guard()
        self._fields["heartbeat"] = time.time()
        write_json(self.path, self._fields)
        self._written = time.monotonic()
