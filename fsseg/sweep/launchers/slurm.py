"""`hydra/launcher=slurm`: the cells as a SLURM array through submitit, every one of them waited for.

submitit itself waits with `sacct`, and raises at the first job that died. Here `squeue`, which every cluster has, shows
which jobs still exist. A job that is gone without a result is a failed cell; its reason comes from `sacct` or
`scontrol`, whichever answers (`fsseg.sweep.queue`). The sweeper also asks `squeue` before a launch, to leave waiting
jobs alone.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus

from fsseg.errors import UserError
from fsseg.sweep.launchers.base import (
    CellLauncher,
    CellLost,
    More,
    NeverStarted,
    StopSignals,
    Submitted,
    SweepInterrupted,
    failed,
    outcome,
)
from fsseg.sweep.queue import Queued, cluster_name, last_states, queue

log = logging.getLogger("fsseg.sweep")

_LOOK_SECONDS = 1.0  # between looks for result files
_COMMON = ("timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes", "name",
           "stderr_to_stdout")  # fmt: skip
"""Settings that submitit names alike for every cluster; its names for SLURM's own settings begin with `slurm_`."""
_LARGEST_ARRAY = 1000  # SLURM's MaxArraySize is 1001 unless the cluster sets another


class SlurmLauncher(CellLauncher):
    """Submits one array and, unless `wait` is false, waits for all its jobs; no failed job raises an error."""

    _EXECUTOR = "slurm"
    queues = True

    def check(self) -> str:
        """See whether SLURM is here and answers, before anything is written; returns the cluster's name.

        Raises:
            UserError: it is not, or does not: what waits in its queue would be submitted once more.
        """
        for program in ("sbatch", "srun", "squeue", "scontrol"):
            if shutil.which(program) is None:
                raise UserError(
                    f"hydra/launcher=slurm: there is no {program} on this machine",
                    "start the sweep where SLURM's commands are (a login node), or take hydra/launcher=local",
                )
        name = cluster_name()
        if name is None or queue() is None:
            command = "scontrol show config" if name is None else "squeue"
            raise UserError(
                f"hydra/launcher=slurm: {command.split()[0]} does not answer",
                f"start the line again when `{command}` does: what waits in the queue is not known now",
            )
        return name

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submit and wait; without waiting, nothing is returned.

        Raises:
            UserError: SLURM refuses the jobs.
            SweepInterrupted: INT or TERM came; the jobs go on.
        """
        from fsseg.sweep import foreign

        if not self.cells:
            return foreign.launch(self, job_overrides, initial_job_idx)
        cells = [More(file, path, overrides) for (file, path), overrides in zip(self.cells, job_overrides)]
        with StopSignals() as signals:  # from the first sbatch on: a job whose number is not noted is nobody's
            jobs, refused = self._submit(cells, 0, initial_job_idx)
            if refused is not None and not jobs:
                raise refused
            if refused is not None:
                log.error("%d of %d cells are not submitted: %s", len(cells) - len(jobs), len(cells), refused)
            if not self.params["wait"]:
                if signals.received:
                    raise self._interrupted(jobs, signals)
                return []
            submitted = len(jobs)
            missing = cells[submitted:]
            returns = self._wait(jobs, cells[:submitted], signals, initial_job_idx)
        for index, cell in enumerate(missing, submitted):
            returns.append(failed(refused or CellLost("not submitted"), cell.overrides))
            self.observer.ended(index, returns[-1])
        return returns

    def _submit(self, cells: Sequence[More], before: int, first: int) -> tuple[list[Any], UserError | None]:
        """Submit cells, in arrays of a size that SLURM takes; returns the jobs, and why the rest has none.

        Cells after the `leading` ones wait in the queue until those have ended. However they end: one that failed is
        tried again by a cell that needs it, which tells why. If they waited for success, that cell would for ever.

        Args:
            before: how many were submitted before, and `first` the number of the first job of all.
        """
        import submitit

        ours = ("submitit_folder", "max_num_timeout", "poll_seconds", "wait")
        params = {k if k in _COMMON else f"slurm_{k}": v for k, v in self.params.items() if k not in ours}
        folder = Path(str(self.params["submitit_folder"])).expanduser().absolute()
        arguments = [(cell.file, cell.path, first + before + index) for index, cell in enumerate(cells)]
        leading = 0 if before else self.leading
        jobs: list[Any] = []
        for start, end in _arrays_of(len(arguments), leading):
            if start == leading > 0:
                params["slurm_dependency"] = ":".join(["afterany", *_arrays(jobs, " ").split()])
            try:
                executor = submitit.AutoExecutor(
                    folder, cluster="slurm", slurm_max_num_timeout=int(self.params["max_num_timeout"])
                )
                executor.update_parameters(**params)
                array = executor.map_array(self.jobs, *zip(*arguments[start:end]))
            except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
                lines = [line for line in str(error).splitlines() if "sbatch" in line] or str(error).splitlines()
                said = lines[-1].removeprefix("subprocess.CalledProcessError: ").strip()
                fix = "mend hydra.launcher.* (partition, account, gpus_per_node, mem_gb, timeout_min, ...)"
                return jobs, UserError(f"sbatch refused the sweep: {said}", fix)
            # Each array is told at once: the next one may be refused, and this one runs.
            told = {before + start + i: Submitted(job.job_id, job.paths.stdout) for i, job in enumerate(array)}
            self.observer.submitted(told)
            log.info("submitted to SLURM as %s, logs in %s", _arrays(array), folder)
            jobs += array
        return jobs, None

    def _interrupted(self, jobs: list[Any], signals: StopSignals) -> SweepInterrupted:
        return SweepInterrupted(signals.received[0], f"the SLURM jobs go on; `scancel {_arrays(jobs, ' ')}` ends them")

    def _wait(self, jobs: list[Any], cells: list[More], signals: StopSignals, first: int) -> list[JobReturn]:
        """Wait for all jobs, and for those of cells that come up meanwhile."""
        every = float(self.params["poll_seconds"])
        returns: dict[int, JobReturn] = {}
        gone_since: dict[int, float] = {}
        asked, held = 0.0, set[int]()
        late: UserError | None = None

        def end(index: int, returned: JobReturn) -> None:
            returns[index] = returned
            self.observer.ended(index, returned)

        while True:
            if late is None and (more := self.observer.more(None)):
                added, refused = self._submit(more, len(jobs), first)
                jobs += added
                cells += more[: len(added)]
                if refused is not None:  # those that were submitted have their results first
                    log.error("%s; what was submitted goes on", refused)
                    late = refused
            if len(returns) == len(jobs):
                if late is not None:
                    raise late
                break
            signals.sleep(_LOOK_SECONDS)
            if signals.received:
                raise self._interrupted(jobs, signals)
            present: dict[str, Queued] | None = None
            if time.monotonic() - asked >= every:
                present, asked = queue(), time.monotonic()
            lost: list[int] = []
            for i, job in enumerate(jobs):
                if i in returns:
                    continue
                pickles = [task.paths.result_pickle for task in (job._sub_jobs or [job])]
                returned = outcome(pickles, cells[i].overrides) if all(p.exists() for p in pickles) else None
                if returned is None or returned.status != JobStatus.COMPLETED:
                    # A job that stopped on a signal may leave an error and still be requeued: the queue decides.
                    if present is None:
                        continue
                    if (entry := present.get(job.job_id)) is not None:
                        gone_since.pop(i, None)
                        if entry.held and i not in held:
                            held.add(i)
                            log.warning("SLURM holds job %s: %s (`scontrol release %s`)", job.job_id, entry, job.job_id)
                        continue
                    # Result files may appear late on a network file system.
                    since = gone_since.setdefault(i, time.monotonic())
                    if returned is None:
                        if time.monotonic() - since >= max(every, 5.0):
                            lost.append(i)
                        continue
                end(i, returned)
            endings = last_states(jobs[i].job_id for i in lost)
            for i in lost:
                how = f"SLURM job {jobs[i].job_id}: {endings[jobs[i].job_id]}"
                error = CellLost(how) if jobs[i].paths.stdout.exists() else NeverStarted(how)
                end(i, failed(error, cells[i].overrides))
        return [returns[i] for i in range(len(jobs))]


def _arrays_of(count: int, leading: int) -> list[tuple[int, int]]:
    """Where arrays of so many cells begin and end; the leading ones are in arrays of their own."""
    starts = [*range(0, leading, _LARGEST_ARRAY), *range(leading, count, _LARGEST_ARRAY)]
    return list(pairwise([*starts, count]))


def _arrays(jobs: Sequence[Any], separator: str = ", ") -> str:
    return separator.join(dict.fromkeys(job.job_id.partition("_")[0] for job in jobs))
