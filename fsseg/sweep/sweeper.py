"""The sweep behind `python train.py -m ...`: looks before it launches, and says in the end how every cell fared.

Hydra's own sweeper launches every job, shows the first exception and forgets the rest. This one composes the whole grid
first: two cells that would share a directory are refused, finished cells and those that other processes have are
dropped, cells with faults are reported together; the others go to whatever launcher is configured. Hydra finds it
through `hydra_plugins.fsseg_sweeper`.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fsseg.cell.record import open_cell
from fsseg.config.compose import Composer
from fsseg.config.hydra_internals import BasicLauncher, split_line
from fsseg.errors import UserError
from fsseg.process.files import write_atomic
from fsseg.sweep.jobs import (
    FINE,
    Elsewhere,
    Job,
    grouped,
    mark_queued,
    record_text,
    refuse_shared_directories,
    result_time,
    settle,
    table,
    wait_for_signs_of_life,
    write_state,
)
from fsseg.sweep.launchers.base import SequentialLauncher, Submitted, SweepInterrupted

log = logging.getLogger("fsseg.sweep")

_MOST_LAUNCHES = 4  # of a cell in one sweep: others may take it, and die, more than once


class FssegSweeper(Sweeper):
    """Cartesian product of the overrides, one job a cell, in the order given.

    Args:
        params: overrides that stand in a file (`hydra.sweeper.params` of an experiment); the command line wins.
    """

    def __init__(self, params: dict[str, Any] | None = None) -> None:
        self.params = dict(params or {})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config
        self.hydra_context = hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        if type(self.launcher) is BasicLauncher:  # the default: Hydra's, but for its ways to end
            self.launcher = SequentialLauncher()
            self.launcher.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> Sequence[JobReturn]:
        """Launch what is neither done nor in other hands.

        Raises:
            UserError: two cells have one directory (nothing is started then), or cells are not done in the end.
            SystemExit: INT or TERM ended the sweep; 128 + signal.
        """
        assert self.hydra_context is not None
        assert self.config is not None
        from fsseg.process.logs import configure_logging

        configure_logging(self.config.log_level)
        self.folder = Path(str(self.config.hydra.sweep.dir))
        lines = [f"{key}={value}" for key, value in self.params.items()] + arguments
        composer = Composer(self.hydra_context.config_loader, self.config)
        jobs = [examine(composer, overrides) for overrides in split_line(self.hydra_context.config_loader, lines)]
        refuse_shared_directories(jobs)
        todo = self._announce(jobs)

        self.returns: list[JobReturn] = []
        interrupted = None
        held = [job for job in jobs if job.state in ("running", "queued")]
        try:
            while todo or held:
                busy = self._launch(todo) if todo else []
                configure_logging(self.config.log_level)
                # A holder may have died meanwhile, or stopped on a signal: its cells are ours to go on with.
                free = wait_for_signs_of_life([*held, *busy], self.elsewhere)
                todo, held = [job for job in free if job.launches < _MOST_LAUNCHES], []
        except KeyboardInterrupt as error:
            interrupted = error if isinstance(error, SweepInterrupted) else SweepInterrupted(signal.SIGINT)
        for job in jobs:
            if job.state == "todo":
                settle(job, None, self.elsewhere)
        print(table(jobs), flush=True)
        if interrupted is not None:
            log.warning("ended by %s%s", interrupted, f"; {interrupted.advice}" if interrupted.advice else "")
            raise SystemExit(128 + interrupted.signum)
        if left := [job for job in jobs if job.state not in FINE]:
            raise UserError(
                f"{len(left)} of {len(jobs)} cells are not done (listed above)",
                "mend the cause and run the same line again: it runs just what is missing",
            )
        return self.returns

    def _announce(self, jobs: Sequence[Job]) -> list[Job]:
        """Say what will be done; the cells to launch."""
        faulty = [job for job in jobs if job.state == "faulty"]
        for text, labels in grouped(faulty).items():
            log.error(
                "%s\n  (%s)", text, f"{len(labels)} cells: {labels[0]} ..." if len(labels) > 1 else f"cell {labels[0]}"
            )
        todo = [job for job in jobs if job.state == "todo"]
        self.elsewhere = Elsewhere(self.folder.glob(".submitit/*/jobs.json") if todo else ())
        for job in todo:
            assert job.cell is not None
            if (owner := self.elsewhere.owner(job.cell)) is not None:
                job.state, job.note = owner
                log.info("left to %s: %s", job.note, job.label)
        left = [job for job in todo if job.state != "todo"]
        todo = [job for job in todo if job.state == "todo"]
        done = sum(job.state == "done" for job in jobs)
        extra = f", {len(left)} in other hands" if left else ""
        extra += f", {len(faulty)} cannot start" if faulty else ""
        log.info("%d of %d cells done, %d to run%s", done, len(jobs), len(todo), extra)
        return todo

    def _launch(self, todo: list[Job]) -> list[Job]:
        """Launch cells and settle their states; those that turned out to be held by others."""
        assert self.launcher is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        for job in todo:
            job.launches += 1
        observer = _Observer(todo, self.elsewhere)
        if hasattr(self.launcher, "observer"):
            self.launcher.observer = observer
        try:
            returns = self.launcher.launch([job.overrides for job in todo], initial_job_idx=len(self.returns))
        except UserError as error:
            observer.refused(error)
            raise
        except Exception as error:  # a launcher of somebody else's that gives up at the first lost job
            if hasattr(self.launcher, "observer"):
                raise
            log.error("the launcher gave up: %s", error)
            returns = []
        for index, returned in enumerate(returns):
            if index not in observer.over:
                observer.ended(index, returned)
        self.returns += returns
        return [job for index, job in enumerate(todo) if index in observer.busy]


class _Observer:
    """Keeps the directories and the terminal informed while a launcher works on `jobs`."""

    def __init__(self, jobs: Sequence[Job], elsewhere: Elsewhere) -> None:
        self.jobs = jobs
        self.elsewhere = elsewhere
        self.over: set[int] = set()
        self.busy: set[int] = set()
        self._logs: dict[int, Path] = {}
        self._marked = False

    def before_submission(self) -> None:
        for job in self.jobs:
            assert job.cell is not None
            mark_queued(job.cell)
        self._marked = True

    def submitted(self, jobs: dict[int, Submitted], folder: Path) -> None:
        record = {}
        for index, job in jobs.items():
            cell = self.jobs[index].cell
            assert cell is not None
            record[str(cell.directory.absolute())] = {"job_id": job.job_id, "log": str(job.log)}
            self._logs[index] = job.log
        write_atomic(folder / "jobs.json", record_text(record))

    def ended(self, index: int, returned: JobReturn) -> None:
        job = self.jobs[index]
        settle(job, returned, self.elsewhere, self._logs.get(index))
        self.over.add(index)
        if returned.status == JobStatus.COMPLETED and job.state != "done":  # a run leaves a cell to its holder
            self.busy.add(index)
        log.info("%d/%d %s: %s  %s", len(self.over), len(self.jobs), job.state, job.label, job.note.partition("\n")[0])

    def refused(self, error: UserError) -> None:
        """Nothing was submitted after all."""
        for job in self.jobs if self._marked else ():
            assert job.cell is not None
            write_state(job.cell, "failed", f"not submitted: {error.what}")


def examine(composer: Composer, overrides: Sequence[str]) -> Job:
    """One cell before the launch: done, todo or faulty."""
    from fsseg.config.checks import faults
    from fsseg.config.entry import explain, typed
    from fsseg.data.registry import folder_faults

    job = Job(list(overrides), None, [], "faulty")
    try:
        composed = composer.compose(overrides)
        cfg = typed(composed)
        try:
            job.cell = open_cell(cfg, _plain(composed), overrides)
        except UserError:
            job.faults = faults(cfg)
            if not job.faults:
                raise
            return job
        if not cfg.redo and (result := job.cell.finished()) is not None:
            job.state, job.note = "done", f"mIoU {result.miou:.2f}" if result.miou is not None else "trained"
            return job
        job.faults = faults(cfg) or folder_faults(cfg)
        if not job.faults:
            if cfg.redo:
                job.old_result = result_time(job.cell)
            else:
                job.cell.check_same_settings()
            job.state = "todo"
    except UserError as error:
        job.faults = [error]
    except (HydraException, OmegaConfBaseException) as error:
        job.faults = [explain(error)]
    return job


def _plain(cfg: DictConfig) -> dict[str, Any]:
    value = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(value, dict)
    return {str(k): v for k, v in value.items()}
