"""Finds the owner of a cell: a process that holds its claim, or a job of an earlier sweep in SLURM's queue."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

from fsseg.cell.claim import ClaimView
from fsseg.cell.models import State
from fsseg.cell.record import Cell
from fsseg.process.files import JOBS_BYTES, read_json, write_atomic
from fsseg.sweep.launchers.base import Submitted
from fsseg.sweep.launchers.slurm import Queued, cluster_name, queue


def write_jobs(folder: Path, jobs: Mapping[Path, Submitted]) -> None:
    """Note one submission in its folder: cell directory to job id and log file."""
    record = {str(cell.absolute()): {"job_id": job.job_id, "log": str(job.log)} for cell, job in jobs.items()}
    write_atomic(folder / "jobs.json", json.dumps({"schema_version": 1, "jobs": record}, indent=1) + "\n")


class Elsewhere:
    """Finds the owners of cells.

    Args:
        folder: of the sweep; None if nothing was ever submitted from there.
    """

    def __init__(self, folder: Path | None) -> None:
        self._jobs: dict[str, list[str]] = {}
        self._queue: dict[str, Queued] | None = None
        self._cluster: str | None = None
        self._asked = float("-inf")
        for path in sorted(folder.glob(".submitit/*/jobs.json")) if folder else ():
            jobs = (read_json(path, JOBS_BYTES) or {}).get("jobs")
            for directory, job in jobs.items() if isinstance(jobs, dict) else ():
                if isinstance(job, dict) and "job_id" in job:
                    self._jobs.setdefault(directory, []).append(str(job["job_id"]))

    def owner(self, cell: Cell) -> tuple[State, str] | None:
        """State (running or queued) and owner of a cell that should be left alone; None if it is free."""
        claim = cell.claim()
        if claim is not None and claim.alive():  # by this machine's clock; the run looks closely at what is old here
            if not self._has_ended_in_slurm(cell, claim):
                return State.RUNNING, str(claim.holder)
            cell.take_claim(claim)
        for job_id in self._jobs.get(str(cell.directory.absolute()), ()):
            if (entry := (self._ask_queue() or {}).get(job_id)) is not None:
                runs = entry.state in ("RUNNING", "COMPLETING")
                return State.RUNNING if runs else State.QUEUED, f"SLURM job {job_id}, {entry}"
        return None

    def _ask_queue(self) -> dict[str, Queued] | None:
        if time.monotonic() - self._asked > 2:  # one answer serves a whole grid
            self._queue, self._asked = queue(), time.monotonic()
        return self._queue

    def _has_ended_in_slurm(self, cell: Cell, claim: ClaimView) -> bool:
        """Whether the holder was a job of this user on this cluster that is no longer in the queue."""
        job, cluster = claim.holder.fields.get("slurm_job"), claim.holder.fields.get("slurm_cluster")
        if not job or not cluster:
            return False
        try:
            if cell.claim_file.stat().st_uid != os.getuid():  # a cluster may hide jobs of other users
                return False
        except OSError:
            return False
        jobs = self._ask_queue()
        if jobs is None or str(job) in jobs:
            return False
        self._cluster = self._cluster or cluster_name()
        return bool(cluster == self._cluster)
