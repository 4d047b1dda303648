"""attempts/<n>.json, one file for every start of a cell. Used by `fsseg.run`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import msgspec

from fsseg.cell.models import Attempt, write_record
from fsseg.cell.record import RunDirectory
from fsseg.cell.sweeps import Sweep
from fsseg.process.files import create_exclusive, json_text
from fsseg.process.provenance import code_state, provenance

JOB = "FSSEG_JOB"
"""Environment variable by which a launcher names a job, the same over all its restarts and no other's."""


_submission: ContextVar[Submission | None] = ContextVar("submission", default=None)


@dataclass(frozen=True)
class Submission:
    """Where the configuration of this run comes from: the record of a sweep.

    Attributes:
        sweep: the file.
        code: of the process that wrote it, as `code_state` tells it.
    """

    sweep: str
    code: dict[str, Any]

    @classmethod
    def of(cls, sweep: Sweep) -> Submission:
        return cls(str(sweep.file), sweep.record.code)

    @contextmanager
    def known(self) -> Iterator[None]:
        """In the block, an `AttemptFile` notes it."""
        token = _submission.set(self)
        try:
            yield
        finally:
            _submission.reset(token)

    def change(self) -> str:
        """How the code has changed since, in words; empty if it has not."""
        now = code_state()
        if self.code == now:
            return ""
        return f"the code has changed since {self.sweep} was written: {_code(self.code)} then, {_code(now)} now"


def _code(state: dict[str, Any]) -> str:
    commit = state.get("commit")
    changed = " with changes that are not committed" if state.get("dirty") else ""
    return (f"commit {commit[:10]}{changed}, " if commit else "") + f"source {state.get('source')}"


class AttemptFile:
    """The record of this start: provenance now, the reason for its end later. The caller holds the claim.

    If the start before left no end in its record, that is noted there.

    Args:
        run: the directory.
        run_id: of the run that starts or goes on here; see `Identity`.
    """

    def __init__(self, run: RunDirectory, run_id: str | None = None) -> None:
        self._began = time.monotonic()
        number, last = run.last_attempt()
        if last is not None and last.ended is None:
            last.ended = "without a word: killed, or the machine went down"
            write_record(run.attempts / f"{number}.json", last)
        self._record = Attempt(started_at=now(), pid=os.getpid(), run=run_id, job=_job(), **provenance())
        if (submission := _submission.get()) is not None:
            self._record.sweep, self._record.submitted = submission.sweep, submission.code
            self._record.change = submission.change()
        number += 1
        while not create_exclusive(run.attempts / f"{number}.json", json_text(msgspec.to_builtins(self._record))):
            number += 1
        self._path = run.attempts / f"{number}.json"

    @property
    def change(self) -> str:
        """How the code has changed since the run was submitted; empty if it has not, or was not submitted."""
        return self._record.change

    @property
    def seconds(self) -> str:
        """Since it started."""
        return f"{time.monotonic() - self._began:.0f}"

    @property
    def of_a_sweep(self) -> bool:
        """Whether it runs what the record of a sweep says."""
        return self._record.sweep is not None

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
