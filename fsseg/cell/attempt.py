"""attempts/<n>.json, one file for every start of a cell. Used by `fsseg.run`."""

from __future__ import annotations

import os
from datetime import datetime, timezone

import msgspec

from fsseg.cell.models import Attempt, write_record
from fsseg.cell.record import RunDirectory
from fsseg.process.files import create_exclusive, json_text
from fsseg.process.provenance import provenance


class AttemptFile:
    """The record of this start: provenance now, the reason for its end later. The caller holds the claim.

    If the start before left no end in its record, that is noted there.
    """

    def __init__(self, run: RunDirectory) -> None:
        number, last = run.last_attempt()
        if last is not None and last.ended is None:
            last.ended = "without a word: killed, or the machine went down"
            write_record(run.attempts / f"{number}.json", last)
        self._record = Attempt(started_at=now(), pid=os.getpid(), **provenance())
        number += 1
        while not create_exclusive(run.attempts / f"{number}.json", json_text(msgspec.to_builtins(self._record))):
            number += 1
        self._path = run.attempts / f"{number}.json"

    def end(self, reason: str) -> None:
        """Note why it ended."""
        self._record.ended, self._record.ended_at = reason, now()
        write_record(self._path, self._record)


def redone_by_this_job(run: RunDirectory) -> bool:
    """Whether redo=true has been obeyed: SLURM starts a requeued job with the same overrides."""
    if int(os.environ.get("SLURM_RESTART_COUNT") or 0) == 0:
        return False
    last = run.last_attempt()[1]
    return last is not None and last.slurm_job == os.environ.get("SLURM_JOB_ID")


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
