"""attempts/<n>.json, one file for every start of a cell. Used by `fsseg.run`."""

from __future__ import annotations

import os
from datetime import datetime, timezone

import msgspec

from fsseg.cell.models import Attempt, write_record
from fsseg.cell.record import RunDirectory
from fsseg.process.files import create_exclusive, json_text
from fsseg.process.provenance import provenance

JOB = "FSSEG_JOB"
"""Environment variable by which a launcher names a job, the same over all its restarts and no other's."""


class AttemptFile:
    """The record of this start: provenance now, the reason for its end later. The caller holds the claim.

    If the start before left no end in its record, that is noted there.

    Args:
        run: the directory.
        run_id: of the run that starts or goes on here; see `Identity`.
    """

    def __init__(self, run: RunDirectory, run_id: str | None = None) -> None:
        number, last = run.last_attempt()
        if last is not None and last.ended is None:
            last.ended = "without a word: killed, or the machine went down"
            write_record(run.attempts / f"{number}.json", last)
        self._record = Attempt(started_at=now(), pid=os.getpid(), run=run_id, job=_job(), **provenance())
        number += 1
        while not create_exclusive(run.attempts / f"{number}.json", json_text(msgspec.to_builtins(self._record))):
            number += 1
        self._path = run.attempts / f"{number}.json"

    def redone(self, run_id: str) -> None:
        """Note that a former run was put aside, and the run that takes its place."""
        self._record.redone, self._record.run = True, run_id
        write_record(self._path, self._record)

    def end(self, reason: str) -> None:
        """Note why it ended."""
        self._record.ended, self._record.ended_at = reason, now()
        write_record(self._path, self._record)


def redone_by_this_job(run: RunDirectory) -> bool:
    """Whether an earlier start of this job has obeyed redo=true: a launcher restarts it with the same overrides.

    SLURM's number tells a job only where it was requeued: one allocation may run many lines.
    """
    requeued = int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0
    if os.environ.get(JOB) is None and not requeued:
        return False
    return any(a.job == _job() and a.redone for a in run.all_attempts())


def _job() -> str | None:
    """Names this job over all its restarts: by what the launcher gave it, else by SLURM's number."""
    if (given := os.environ.get(JOB)) is not None:
        return given
    number = os.environ.get("SLURM_JOB_ID")
    return None if number is None else f"slurm {os.environ.get('SLURM_CLUSTER_NAME') or ''} {number}"


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
