"""fsseg's launchers under a sweeper of another package (`hydra/sweeper=basic`, `hydra/sweeper=optuna`).

Such a sweeper gives a launcher the overrides of some jobs and wants a number for each. `fsseg.sweep.launchers` hand the
call on to this module, which makes a sweep of it: with a record, without the cells that are done or in other hands.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus

from fsseg.cell.models import State
from fsseg.config.compose import Composer
from fsseg.errors import UserError, merge_errors
from fsseg.process.logs import configure_logging
from fsseg.sweep.grid import examine
from fsseg.sweep.launchers.base import CellLauncher, SweepInterrupted, failed
from fsseg.sweep.sweeper import FssegSweeper, Job


def launch(launcher: CellLauncher, job_overrides: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
    """Run cells; each job returns the mIoU of its cell.

    A cell that another process has, or that has no score, gives None.

    Args:
        first: number of the first job.

    Raises:
        UserError: the launcher does not wait for its jobs, or two different jobs have one directory.
        SystemExit: INT or TERM came; 128 + signal.
    """
    if launcher.params.get("wait") is False:
        raise UserError(
            "hydra.launcher.wait=false: this sweeper needs the score of each cell before it goes on",
            "leave hydra.launcher.wait out, or hydra/sweeper=",
        )
    assert launcher.config is not None
    assert launcher.hydra_context is not None
    configure_logging(launcher.config.log_level)
    batch = FssegSweeper()
    batch.config, batch.hydra_context, batch.launcher = launcher.config, launcher.hydra_context, launcher
    batch.folder = Path(str(launcher.config.hydra.sweep.dir))
    batch.returns = [JobReturn()] * first  # job names count on from them
    different = list(dict.fromkeys(map(tuple, job_overrides)))
    composed = Composer(launcher.hydra_context.config_loader, launcher.config).each(different)
    points = examine(composed, data=True, download=False)
    jobs = {job.overrides: job for job in (Job(**vars(point)) for point in points)}
    try:
        with ExitStack() as batch.claims:
            if todo := batch._announce(list(jobs.values())):
                batch._launch(todo)
    except SweepInterrupted as stop:
        raise SystemExit(128 + stop.signum) from None
    finally:
        launcher.cells = ()
    return [_returned(jobs[tuple(overrides)]) for overrides in job_overrides]


def _returned(job: Job) -> JobReturn:
    """What Hydra wants to know of a job; the directory of its cell tells."""
    if job.state == State.FAULTY:
        return failed(merge_errors(job.faults), job.overrides)
    if job.state in (State.FAILED, State.PREEMPTED, State.STOPPED):
        return failed(UserError(f"{job.label}: {job.note}", f"log: {job.log or job.place.log_file}"), job.overrides)
    result: Any = job.result()
    done = JobReturn(overrides=list(job.overrides), status=JobStatus.COMPLETED)
    done.return_value = None if result is None else result.miou
    return done
