"""Finds the owner of a cell: a process that holds its claim, a job in SLURM's queue, or a sweep that will come to it.

The sweeper asks before it launches; `fsseg status`, `retry` and `cancel` ask for everybody else.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fsseg.cell.claim import ClaimView
from fsseg.cell.key import experiment_of
from fsseg.cell.models import State
from fsseg.cell.record import RunDirectory
from fsseg.cell.sweeps import Sweep, SweptCell
from fsseg.sweep.queue import JOB_ID, Queued, cluster_name, last_states, queue, still_there


@dataclass(frozen=True)
class CellPlace:
    """A cell in the record of a sweep."""

    sweep: Sweep
    cell: SweptCell

    @property
    def slurm_job(self) -> str | None:
        """SLURM's name of its job."""
        return self.cell.job if self.sweep.record.queues and JOB_ID.fullmatch(self.cell.job or "") else None


class Elsewhere:
    """Who has which cell.

    Args:
        sweeps: records of the experiments that the cells belong to.
    """

    def __init__(self, sweeps: Iterable[Sweep] = ()) -> None:
        self._places: dict[str, list[CellPlace]] = {}
        self._users: set[int] = set()
        self._queue: dict[str, Queued] | None = None
        self._asked = float("-inf")
        self._cluster: str | None = None
        self._alive: dict[Path, bool] = {}
        self._real: dict[Path, str] = {}
        for sweep in sweeps:
            self.add(sweep)

    def add(self, sweep: Sweep) -> None:
        """Know of one more sweep; the newest last."""
        self.add_cells(sweep, sweep.record.cells)

    def add_cells(self, sweep: Sweep, cells: Iterable[SweptCell]) -> None:
        """Know of cells that joined a sweep."""
        experiment = os.path.realpath(sweep.experiment)
        for cell in cells:
            self._places.setdefault(os.path.join(experiment, cell.path), []).append(CellPlace(sweep, cell))
        if sweep.record.user is not None:
            self._users.add(sweep.record.user)

    def forget_the_queue(self) -> None:
        """Ask again when it is needed next: jobs were submitted, or ended."""
        self._asked = float("-inf")

    def places(self, directory: Path) -> list[CellPlace]:
        """Where records name a cell, the newest last."""
        whole = Path(os.path.abspath(directory))
        if (experiment := experiment_of(whole)) is None:
            return []
        if experiment not in self._real:
            self._real[experiment] = os.path.realpath(experiment)
        return self._places.get(os.path.join(self._real[experiment], whole.relative_to(experiment)), [])

    def directories(self) -> Iterator[Path]:
        """All cells of the sweeps, as their records name them."""
        for places in self._places.values():
            yield places[-1].sweep.directory(places[-1].cell)

    def owner(self, cell: RunDirectory) -> tuple[State, str] | None:
        """State (running or pending) and owner of a cell that should be left alone; None if it is free."""
        claim = cell.claim()
        if claim is not None and claim.alive():  # by this machine's clock; the run looks closely at what is old here
            if not self.has_ended(cell, claim):
                return State.RUNNING, str(claim.holder)
            cell.take_claim(claim)
        if (found := self.queued(cell.directory)) is not None:
            job, entry = found
            return State.RUNNING if entry.works else State.PENDING, f"SLURM job {job}, {entry}"
        return None

    def queued(self, directory: Path) -> tuple[str, Queued] | None:
        """The job of a cell that is in SLURM's queue; None if there is none, or the queue is not known."""
        for place in reversed(self.places(directory)):
            job = place.slurm_job
            if job and self._is_here(place.sweep) and (entry := (self._ask_queue() or {}).get(job)) is not None:
                return job, entry
        return None

    def awaited(self, directory: Path, heard: float) -> Sweep | None:
        """A sweep that lives, and has the cell to do still; None if there is none.

        Args:
            heard: when the cell was last heard of: a sweep that started before has done it.
        """
        for place in reversed(self.places(directory)):
            record = place.sweep.record
            if not record.queues and heard < record.started and self._lives(place.sweep):
                return place.sweep
        return None

    def unknown(self, directory: Path) -> CellPlace | None:
        """Where the newest sweep of a cell stands, if it handed the cell to a queue that nobody here can ask."""
        place = self._newest(directory)
        return place if place and place.slurm_job is not None and not self._is_here(place.sweep) else None

    def end(self, directory: Path) -> str:
        """How the newest sweep of a cell ended, in words; nothing of one that has handed it to SLURM."""
        place = self._newest(directory)
        if place is None or place.slurm_job is not None:
            return ""
        record = place.sweep.record
        killed = "" if self._lives(place.sweep) else f"on {record.host or 'an unknown host'} was killed"
        return f"{place.sweep} {record.end or killed}"

    def _newest(self, directory: Path) -> CellPlace | None:
        return next(reversed(self.places(directory)), None)

    def endings(self, directories: Iterable[Path]) -> dict[Path, str]:
        """What SLURM says of the newest jobs of cells, none of which is in the queue any more."""
        jobs = {}
        for directory in directories:
            place = next((p for p in reversed(self.places(directory)) if p.slurm_job is not None), None)
            if place is not None and self._is_here(place.sweep):
                jobs[directory] = str(place.slurm_job)
        states = last_states(dict.fromkeys(jobs.values()))
        return {directory: f"its SLURM job {job}: {states[job]}" for directory, job in jobs.items()}

    def has_ended(self, cell: RunDirectory, claim: ClaimView) -> bool:
        """Whether the holder was a job of this user on this cluster that is no longer in the queue.

        The queue is asked after the claim was seen, and scontrol too: a claim is taken away on this answer.
        """
        job, cluster = str(claim.holder.fields.get("slurm_job") or ""), claim.holder.fields.get("slurm_cluster")
        if not JOB_ID.fullmatch(job) or not cluster:
            return False
        try:
            if cell.claim_file.stat().st_uid != os.getuid():  # a cluster may hide jobs of other users
                return False
        except OSError:
            return False
        for _ in range(2):
            jobs = self._ask_queue()
            if jobs is None or job in jobs:
                return False
            self.forget_the_queue()
        return cluster == self.cluster and not still_there(job)

    @property
    def cluster(self) -> str | None:
        """Name of the cluster of this machine; None if there is none, or it does not answer now."""
        self._cluster = self._cluster or cluster_name()
        return self._cluster

    def _is_here(self, sweep: Sweep) -> bool:
        """Whether the queue that can be asked is that of the sweep."""
        return self._ask_queue() is not None and sweep.record.cluster == self.cluster

    def _lives(self, sweep: Sweep) -> bool:
        if sweep.file not in self._alive:
            claim = sweep.claim()
            self._alive[sweep.file] = claim is not None and claim.alive()
        return self._alive[sweep.file]

    def _ask_queue(self) -> dict[str, Queued] | None:
        if time.monotonic() - self._asked > 2:  # one answer serves a whole grid
            self._queue, self._asked = queue(self._users), time.monotonic()
        return self._queue
