"""`fsseg cancel`: end the jobs of sweeps, in SLURM's queue and on this machine.

A cell that runs gets the usual signal: it saves a checkpoint and goes on from there when its line is started again.
Only what this user's own files name is ended: in a shared folder anybody may write the number of a process or a job.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fsseg.cell.claim import Holder
from fsseg.cell.models import State
from fsseg.cell.record import Problem
from fsseg.cell.sweeps import FOLDER
from fsseg.errors import UserError, visible
from fsseg.sweep.queue import cancel as end_jobs
from fsseg.sweep.status import look_around

_AT_A_TIME = 500  # names of jobs on one command line


@dataclass
class Cancelled:
    """What was ended.

    Attributes:
        jobs: SLURM's names of them.
        processes: of this machine, in words.
        left: what cannot be ended from here, and why.
    """

    jobs: list[str] = field(default_factory=list)
    processes: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def cancel(folders: Sequence[str | Path]) -> Cancelled:
    """End the jobs of all cells of sweeps below the folders, and the sweeps that run on this machine.

    Raises:
        UserError: a folder does not exist or holds no run, or scancel refuses.
    """
    problems: list[Problem] = []
    around, found = look_around(folders, problems), Cancelled()
    cells, sweeps, elsewhere = around.cells, around.sweeps, around.elsewhere
    found.left += [f"{problem}: its jobs are not known" for problem in problems if problem.path.parent.name == FOLDER]
    mine = {os.path.realpath(s.directory) for s in cells}
    ended: set[int] = set()
    for sweep in sweeps:  # before their workers, of which they would start the next
        claim = sweep.claim()
        if claim is None or not claim.alive():
            continue
        if not all(os.path.realpath(sweep.directory(cell)) in mine for cell in sweep.record.cells):
            found.left.append(f"{sweep} has other cells too: name {sweep.experiment} to end it")
        elif not sweep.record.queues:
            _stop(sweep.claim_file, claim.holder, str(sweep), found, ended)
    for s in cells:
        if not elsewhere.places(s.directory):
            continue
        claim = s.run.claim()
        if (queued := elsewhere.queued(s.directory)) is not None:
            files = [place.sweep.file for place in elsewhere.places(s.directory) if place.slurm_job == queued[0]]
            if all(map(_is_own, files)):
                found.jobs.append(queued[0])
            else:
                found.left.append(f"{s.label}: SLURM job {queued[0]} is named by {files[0]}, another user's file")
        elif s.state == State.UNKNOWN:
            found.left.append(f"{s.label}: {s.reason}")
        elif claim is not None and claim.alive() and not claim.holder.fields.get("slurm_job"):
            _stop(s.run.claim_file, claim.holder, s.label, found, ended)
    for start in range(0, len(found.jobs), _AT_A_TIME):
        if refusal := end_jobs(found.jobs[start : start + _AT_A_TIME]):
            raise UserError(f"scancel: {refusal}", "ask whoever started these jobs to run the same command")
    return found


def _is_own(file: Path) -> bool:
    """Whether a file is this user's."""
    try:
        return file.stat().st_uid == os.getuid()
    except OSError:
        return False


def _stop(file: Path, holder: Holder, what: str, found: Cancelled, ended: set[int]) -> None:
    """Send TERM to the holder of a claim, once, if it is a process of this user on this machine."""
    pid = holder.fields.get("pid")
    if not holder.is_here or not isinstance(pid, int) or pid < 2:
        found.left.append(f"{what} is in the hands of {holder}: end it there")
    elif not _is_own(file):
        found.left.append(f"{what} is in the hands of {holder}, by {file}, another user's file")
    elif pid not in ended:
        ended.add(pid)
        try:
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            return
        except PermissionError:
            found.left.append(f"{what}: {holder} is another user's")
            return
        found.processes.append(f"{what}: {holder}")


def text(found: Cancelled) -> str:
    """What `fsseg cancel` prints."""
    lines = []
    if found.jobs:
        arrays = dict.fromkeys(job.partition("_")[0] for job in found.jobs)
        lines.append(f"{len(found.jobs)} SLURM jobs cancelled ({', '.join(arrays)})")
    lines += [f"told to stop: {visible(one)}" for one in found.processes]
    lines += [f"left alone: {visible(one)}" for one in found.left]
    return "\n".join(lines or ["no sweep has a job here that runs or waits"])
