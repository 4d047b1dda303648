"""The cells of one sweep: what state each is in, before the launch and after it, and the table that says so.

`fsseg.sweep.sweeper` drives it. A cell's directory has the last word on its state; what the launcher saw only explains
why a cell has no result, and what nobody could write down (a killed process cannot) is written into its `status.json`
and log.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus

from fsseg.cell.claim import Holder, is_gone, read_holder, take_away
from fsseg.cell.record import Cell, Result
from fsseg.cell.status import StatusFile
from fsseg.errors import UserError, merge_errors
from fsseg.process.files import read_json
from fsseg.sweep.launchers.base import CellLost
from fsseg.sweep.launchers.slurm import Queued, cluster_name, queue

log = logging.getLogger("fsseg.sweep")

# States in which nothing is left for the user to mend: `running` and `queued` cells belong to other processes.
FINE = ("done", "running", "queued")


@dataclass
class Job:
    """One point of the grid.

    Attributes:
        overrides: as Hydra's launcher takes them.
        cell: its directory and fingerprint; None if it could not be composed.
        faults: why it cannot start; empty if it can.
        state: todo before the launch; else done, faulty, running (by another process), queued (in SLURM), failed,
            preempted, stopped (the sweep ended before its turn).
        note: the reason, or who has it.
        log: the file to look into.
        old_result: time stamp of a result that `redo=true` does not accept.
        launches: how often this sweep has launched it.
    """

    overrides: list[str]
    cell: Cell | None
    faults: list[UserError]
    state: str
    note: str = ""
    log: Path | None = None
    old_result: int | None = None
    launches: int = 0

    @property
    def label(self) -> str:
        return str(self.cell.key) if self.cell else " ".join(self.overrides)

    def result(self) -> Result | None:
        """What result.json says, if it counts."""
        assert self.cell is not None
        if self.old_result is not None and result_time(self.cell) == self.old_result:
            return None
        return self.cell.finished()


def result_time(cell: Cell) -> int | None:
    """When result.json was written, in nanoseconds; None if there is none."""
    try:
        return cell.result_file.stat().st_mtime_ns
    except OSError:
        return None


@dataclass
class Elsewhere:
    """Who else has a cell: a claim that lives, or a job that an earlier start of the sweep left in SLURM's queue.

    Args:
        records: the `jobs.json` files of earlier submissions.
    """

    records: Iterable[Path] = ()
    _jobs: dict[str, list[str]] = field(default_factory=dict)
    _queue: dict[str, Queued] | None = None
    _cluster: str | None = None
    _asked: float = float("-inf")

    def __post_init__(self) -> None:
        for path in sorted(self.records):
            for directory, job in ((read_json(path) or {}).get("jobs") or {}).items():
                self._jobs.setdefault(directory, []).append(str(job.get("job_id")))

    def owner(self, cell: Cell) -> tuple[str, str] | None:
        """State (running or queued) and owner of a cell that should be left alone; None if it is free."""
        holder = read_holder(cell.claim_file)
        if holder is not None and not is_gone(holder) and _renewed_lately(cell.claim_file, holder):
            if not self._has_ended_in_slurm(cell, holder):
                return "running", str(holder)
            take_away(cell.claim_file, holder)
        for job_id in self._jobs.get(str(cell.directory.absolute()), ()):
            if (entry := (self._ask_queue() or {}).get(job_id)) is not None:
                return (
                    "running" if entry.state in ("RUNNING", "COMPLETING") else "queued"
                ), f"SLURM job {job_id}, {entry}"
        return None

    def _ask_queue(self) -> dict[str, Queued] | None:
        if time.monotonic() - self._asked > 2:  # one answer serves a whole grid
            self._queue, self._asked = queue(), time.monotonic()
        return self._queue

    def _has_ended_in_slurm(self, cell: Cell, holder: Holder) -> bool:
        """Whether the holder was a job of ours on this cluster, and is not in the queue any more."""
        job, cluster = holder.fields.get("slurm_job"), holder.fields.get("slurm_cluster")
        if not job or not cluster:
            return False
        try:
            if cell.claim_file.stat().st_uid != os.getuid():  # a cluster may hide the jobs of others
                return False
        except OSError:
            return False
        jobs = self._ask_queue()
        if jobs is None or str(job) in jobs:
            return False
        self._cluster = self._cluster or cluster_name()
        return cluster == self._cluster


def _renewed_lately(path: Path, holder: Holder) -> bool:
    """By this machine's clock, which may be off; the run looks closely at what is old here."""
    try:
        return time.time() - path.stat().st_mtime <= holder.lease
    except OSError:
        return False


def wait_for_signs_of_life(jobs: Sequence[Job], elsewhere: Elsewhere, sleep: Any = time.sleep) -> list[Job]:
    """Of cells that others held when their turn came: those that are free now and were not brought to an end.

    Waits until each holder has renewed its claim once, or let its lease pass: seconds if they live.
    """
    seen = {id(job): _claim_time(job) for job in jobs}
    free: list[Job] = []
    open_ = list(jobs)
    while open_:
        for job in list(open_):
            assert job.cell is not None
            owner = None if job.result() is not None else elsewhere.owner(job.cell)
            now = _claim_time(job)
            if owner is None or now is None or now != seen[id(job)]:  # without a claim, SLURM's queue is the owner
                open_.remove(job)
                settle(job, None, elsewhere)
                if job.state == "stopped" or job.state == "preempted":
                    free.append(job)
        if open_:
            sleep(0.5)
    return free


def _claim_time(job: Job) -> int | None:
    assert job.cell is not None
    try:
        return job.cell.claim_file.stat().st_mtime_ns
    except OSError:
        return None


def refuse_shared_directories(jobs: Sequence[Job]) -> None:
    """Raises:
    UserError: two cells of the sweep have one directory.
    """
    seen: dict[Path, Job] = {}
    for job in jobs:
        if job.cell is None:
            continue
        other = seen.setdefault(job.cell.directory, job)
        if other is not job:
            raise UserError(
                f"two cells of this sweep share the directory {job.cell.directory}: "
                f"[{' '.join(other.overrides)}] and [{' '.join(job.overrides)}]",
                "take the duplicate out of the sweep, or set variant= to tell them apart",
            )


def mark_queued(cell: Cell) -> None:
    """Note in `status.json` that the cell is about to be handed to a launcher; how far it is stays there."""
    write_state(cell, "queued", None)


def write_state(cell: Cell, state: str, reason: str | None) -> None:
    """Write a state on behalf of a process that cannot; the other fields stay as they are."""
    kept = {
        key: value
        for key, value in (read_json(cell.status_file) or {}).items()
        if key in ("step", "steps", "seconds_per_step", "miou", "peak_memory_bytes", "host", "pid", "slurm_job")
    }
    StatusFile(cell.status_file, interval=0).update(**kept, state=state, phase=None, reason=reason)


def settle(job: Job, returned: JobReturn | None, elsewhere: Elsewhere, job_log: Path | None = None) -> None:
    """Find out how a cell fared.

    Args:
        job: its state, note and log are set.
        returned: what the launcher says of it; None if nothing.
        elsewhere: to ask whether others have it now.
        job_log: what the job's process printed.
    """
    assert job.cell is not None
    job.note, job.log = "", None
    if (result := job.result()) is not None:
        job.state, job.note = "done", f"mIoU {result.miou:.2f}" if result.miou is not None else "trained"
        return
    lost = returned is not None and isinstance(returned._return_value, CellLost)
    if (owner := elsewhere.owner(job.cell)) is not None:
        job.state, job.note = owner
        return
    status = read_json(job.cell.status_file) or {}
    state, reason = status.get("state"), str(status.get("reason") or "")
    job.log = job.cell.log_file if job.cell.log_file.exists() else job_log
    if returned is None or returned.status == JobStatus.COMPLETED:
        # Not started, or held by a process that has let go of it since.
        if state in ("failed", "preempted"):
            job.state, job.note = str(state), reason
        else:
            job.state, job.note = "stopped", "not started, or not finished"
    elif returned.status == JobStatus.FAILED and not lost:
        error = returned._return_value
        job.state = "failed"
        job.note = error.what if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    elif state in ("failed", "preempted"):
        job.state, job.note = str(state), reason
        if state == "preempted" and lost:
            job.note += f" ({returned._return_value})"
    else:
        # Its process could write nothing any more: killed, or dead before it came to the cell.
        job.state = "failed"
        job.note = str(returned._return_value)
        job.log = job_log if job_log is not None and job_log.exists() else job.log
        _write_down(job.cell, job.note)


def _write_down(cell: Cell, reason: str) -> None:
    try:
        write_state(cell, "failed", reason[:500])
        with cell.log_file.open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now():%H:%M:%S} {reason}\n")
    except OSError as error:
        log.warning("%s: the reason of the failure cannot be written (%s)", cell.directory, error.strerror)


def grouped(jobs: Sequence[Job]) -> dict[str, list[str]]:
    """Labels of cells by the text of their faults."""
    groups: dict[str, list[str]] = {}
    for job in jobs:
        groups.setdefault(str(merge_errors(job.faults)), []).append(job.label)
    return groups


def table(jobs: Sequence[Job]) -> str:
    """The cells with their states; those without a result with reason and log file."""
    width = max([len("cell"), *(len(job.label) for job in jobs)])
    lines = ["", f"{'cell':<{width}}  {'state':<9}  result or reason"]
    for job in jobs:
        first = (job.note.splitlines() or [""])[0][:200]
        lines.append(f"{job.label:<{width}}  {job.state:<9}  {first}".rstrip())
        if job.log is not None and job.state not in FINE:
            lines.append(f"{'':<{width}}  {'':<9}  log: {job.log}")
    counts = {state: sum(job.state == state for job in jobs) for state in dict.fromkeys(job.state for job in jobs)}
    lines.append(f"{len(jobs)} cells: " + ", ".join(f"{count} {state}" for state, count in counts.items()))
    return "\n".join(lines)


def record_text(jobs: dict[str, dict[str, str]]) -> str:
    """Content of `jobs.json`: cell directory to job id and log file of one submission."""
    return json.dumps({"schema_version": 1, "jobs": jobs}, indent=1) + "\n"
