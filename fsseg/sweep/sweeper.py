"""The sweep behind `python train.py -m ...`: checks all cells before it launches, and reports how each one ended.

Hydra's own sweeper launches every job, shows the first exception and forgets the rest. This one composes the whole grid
first: two cells that would share a directory are refused, finished cells and those of other processes are left
out, faulty cells are reported together. The others go to the configured launcher. Hydra finds the sweeper through
`hydra_plugins.fsseg_sweeper`.
"""

from __future__ import annotations

import logging
import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

import msgspec
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from fsseg.cell.models import Result, State, Status, Unreadable, write_record
from fsseg.cell.record import Cell
from fsseg.cell.variant import is_shortened
from fsseg.config.checks import field_faults, place_faults, setting_faults
from fsseg.config.compose import Composer
from fsseg.config.constraints import FILE_PATH
from fsseg.config.entry import typed
from fsseg.config.hydra_internals import BasicLauncher
from fsseg.errors import UserError, merge_errors
from fsseg.process.logs import configure_logging
from fsseg.process.tables import aligned
from fsseg.sweep.boxes import swept_keys
from fsseg.sweep.elsewhere import Elsewhere, write_jobs
from fsseg.sweep.grid import Point, examine
from fsseg.sweep.launchers.base import CellLost, Observer, SequentialLauncher, Submitted, SweepInterrupted

log = logging.getLogger("fsseg.sweep")

_FINE = (State.DONE, State.RUNNING, State.QUEUED)  # no failure: the latter two belong to other processes
_MOST_LAUNCHES = 4  # of a cell in one sweep: other processes may take it and die several times


@dataclass
class Job(Point):
    """A cell of the sweep that runs.

    Attributes:
        note: reason for its state, or its owner.
        log: the log file that explains it.
        old_result: time in nanoseconds of the result that `redo=true` replaces.
        launches: how often this sweep has launched it.
    """

    note: str = ""
    log: Path | None = None
    old_result: int | None = None
    launches: int = 0

    def __post_init__(self) -> None:
        if self.snapshot is not None and self.snapshot.result is not None:
            self.note = _score(self.snapshot.result)
        elif self.composed is not None and self.composed.cfg.redo and self.cell is not None:
            self.old_result = _modified(self.cell.result_file)

    @property
    def place(self) -> Cell:
        """The cell of a job that can start."""
        assert self.cell is not None
        return self.cell

    def result(self) -> Result | None:
        """What result.json says, if it counts and can be understood."""
        if self.old_result is not None and _modified(self.place.result_file) == self.old_result:
            return None
        try:
            return self.place.finished()
        except UserError:
            return None

    def settle(self, returned: JobReturn | None, elsewhere: Elsewhere, job_log: Path | None = None) -> None:
        """Set the state of the cell after its job: its directory decides, the launcher explains a missing result.

        Args:
            returned: what the launcher says; None if nothing.
            elsewhere: finds other processes that have it now.
            job_log: what the job's process printed.
        """
        cell = self.place
        self.note, self.log = "", None
        if (result := self.result()) is not None:
            self.state, self.note = State.DONE, _score(result)
            return
        error = None if returned is None else returned._return_value
        lost = isinstance(error, CellLost)
        if (owner := elsewhere.owner(cell)) is not None:
            self.state, self.note = owner
            return
        status = _status(cell)
        told = State(status.state) if status.state in (State.FAILED, State.PREEMPTED) else None
        self.log = cell.log_file if cell.log_file.exists() else job_log
        if returned is not None and returned.status == JobStatus.FAILED and not lost:
            self.state = State.FAILED
            self.note = error.what if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        elif told is not None:
            self.state, self.note = told, status.reason or ""
            if told == State.PREEMPTED and lost:
                self.note += f" ({error})"
        elif returned is None or returned.status == JobStatus.COMPLETED:
            # Another process held it and has released it since, or it was never started.
            self.state, self.note = State.STOPPED, "not started, or not finished"
        else:
            # Its process wrote no state: it was killed, or died before it reached the cell.
            self.state, self.note = State.FAILED, str(error)
            self.log = job_log if job_log is not None and job_log.exists() else self.log
            try:
                write_state(cell, State.FAILED, self.note[:500])
                cell.note(self.note)
            except OSError as error:
                log.warning("%s: the reason of the failure cannot be written (%s)", cell.directory, error.strerror)


class FssegSweeper(Sweeper):
    """Cartesian product of the overrides, one job a cell, in the order given.

    Args:
        params: overrides from a file (`hydra.sweeper.params` of an experiment); the command line wins. Hydra passes
            them; the composer reads them from the configuration instead.
    """

    def __init__(self, params: dict[str, Any] | None = None) -> None:
        del params

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config
        self.hydra_context = hydra_context
        if found := launch_faults(config):
            raise merge_errors(found)
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        # Replaces Hydra's default, which hides how jobs end. By name: Hydra may have loaded the class twice.
        if config.hydra.launcher._target_ == f"{BasicLauncher.__module__}.{BasicLauncher.__qualname__}":
            self.launcher = SequentialLauncher()
            self.launcher.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> Sequence[JobReturn]:
        """Launch the cells that are neither done nor owned by other processes.

        Raises:
            UserError: two cells have one directory (nothing is started then), or cells are not done in the end.
            SystemExit: INT or TERM ended the sweep; 128 + signal.
        """
        assert self.hydra_context is not None
        assert self.config is not None
        configure_logging(self.config.log_level)
        self.folder = Path(str(self.config.hydra.sweep.dir))
        cells = Composer(self.hydra_context.config_loader, self.config).grid_of_master()  # which holds `arguments` too
        jobs = [Job(**vars(point)) for point in examine(cells, data=True)]
        todo = self._announce(jobs)

        self.returns: list[JobReturn] = []
        interrupted = None
        held = [job for job in jobs if job.state in (State.RUNNING, State.QUEUED)]
        try:
            while todo or held:
                busy = self._launch(todo) if todo else []
                configure_logging(self.config.log_level)
                # A holder may have died or stopped on a signal meanwhile: its cells are then launched here.
                free = wait_for_signs_of_life([*held, *busy], self.elsewhere)
                todo, held = [job for job in free if job.launches < _MOST_LAUNCHES], []
        except KeyboardInterrupt as error:
            interrupted = error if isinstance(error, SweepInterrupted) else SweepInterrupted(signal.SIGINT)
        for job in jobs:
            if job.state == State.TODO:
                job.settle(None, self.elsewhere)
        print(text(jobs), flush=True)
        if interrupted is not None:
            log.warning("ended by %s%s", interrupted, f"; {interrupted.advice}" if interrupted.advice else "")
            raise SystemExit(128 + interrupted.signum)
        if left := [job for job in jobs if job.state not in _FINE]:
            raise UserError(
                f"{len(left)} of {len(jobs)} cells are not done (listed above)",
                "mend the cause and run the same line again: it runs just what is missing",
            )
        return self.returns

    def _announce(self, jobs: Sequence[Job]) -> list[Job]:
        """Log what will be done; returns the cells to launch."""
        groups: dict[str, list[str]] = {}
        for job in jobs:
            if job.state == State.FAULTY:
                groups.setdefault(str(merge_errors(job.faults)), []).append(job.label)
        for fault, labels in groups.items():
            cells = f"{len(labels)} cells: {labels[0]} ..." if len(labels) > 1 else f"cell {labels[0]}"
            log.error("%s\n  (%s)", fault, cells)
        open_ = [job for job in jobs if job.state == State.TODO]
        self.elsewhere = Elsewhere(self.folder if open_ else None)
        for job in open_:
            if (owner := self.elsewhere.owner(job.place)) is not None:
                job.state, job.note = owner
                log.info("left to %s: %s", job.note, job.label)
        todo = [job for job in open_ if job.state == State.TODO]
        faulty, left = sum(map(len, groups.values())), len(open_) - len(todo)
        done = sum(job.state == State.DONE for job in jobs)
        extra = f", {left} in other hands" if left else ""
        extra += f", {faulty} cannot start" if faulty else ""
        log.info("%d of %d cells done, %d to run%s", done, len(jobs), len(todo), extra)
        return todo

    def _launch(self, todo: list[Job]) -> list[Job]:
        """Launch cells and settle their states; returns those that other processes turned out to hold."""
        assert self.launcher is not None
        for job in todo:
            job.launches += 1
        observer = _Observer(todo, self.elsewhere)
        if hasattr(self.launcher, "observer"):
            self.launcher.observer = observer
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            returns = self.launcher.launch([list(job.overrides) for job in todo], initial_job_idx=len(self.returns))
        except UserError as error:
            observer.refused(error)
            raise
        except OSError as error:
            what = f"{error.filename or self.folder}: cannot be used ({error.strerror})"
            raise UserError(what, "mend the permissions, or set output_dir= elsewhere") from error
        except Exception as error:  # a launcher of another package that raises at the first lost job
            if hasattr(self.launcher, "observer"):
                raise
            log.error("the launcher gave up: %s", error)
            returns = []
        for index, returned in enumerate(returns):
            if index not in observer.over:
                observer.ended(index, returned)
        self.returns += returns
        return [job for index, job in enumerate(todo) if index in observer.busy]


class _Observer(Observer):
    """Updates the directories and the terminal while a launcher works on `jobs`."""

    def __init__(self, jobs: Sequence[Job], elsewhere: Elsewhere) -> None:
        self.jobs = jobs
        self.elsewhere = elsewhere
        self.over: set[int] = set()
        self.busy: set[int] = set()
        self._logs: dict[int, Path] = {}
        self._marked = False

    def before_submission(self) -> None:
        for job in self.jobs:
            write_state(job.place, State.QUEUED)
        self._marked = True

    def submitted(self, jobs: dict[int, Submitted], folder: Path) -> None:
        self._logs.update((index, job.log) for index, job in jobs.items())
        write_jobs(folder, {self.jobs[index].place.directory: job for index, job in jobs.items()})

    def ended(self, index: int, returned: JobReturn) -> None:
        job = self.jobs[index]
        job.settle(returned, self.elsewhere, self._logs.get(index))
        self.over.add(index)
        if returned.status == JobStatus.COMPLETED and job.state != State.DONE:  # a run leaves a cell to its holder
            self.busy.add(index)
        log.info("%d/%d %s: %s  %s", len(self.over), len(self.jobs), job.state, job.label, job.note.partition("\n")[0])

    def refused(self, error: UserError) -> None:
        """The launcher submitted nothing."""
        for job in self.jobs if self._marked else ():
            write_state(job.place, State.FAILED, f"not submitted: {error.what}")


def launch_faults(config: DictConfig) -> list[UserError]:
    """What is wrong with the folder of a sweep, or with the settings of its launcher: nothing is made before that.

    Only launchers whose settings have a schema are known. A line break in a name would be one in SLURM's script.
    """
    if found := place_faults(typed(config)):
        return found
    if found := setting_faults("hydra.sweep.dir", str(config.hydra.sweep.dir), FILE_PATH):
        return found
    launcher = config.hydra.launcher
    known = is_dataclass(OmegaConf.get_type(launcher))
    return list(dict(field_faults(launcher, "hydra.launcher.")).values()) if known else []


def wait_for_signs_of_life(jobs: Sequence[Job], elsewhere: Elsewhere) -> list[Job]:
    """Of cells that other processes held when their turn came: those that are free now and not done.

    Waits until each holder has renewed its claim once, or its lease has passed: seconds if the holders live.
    """
    seen = {id(job): _modified(job.place.claim_file) for job in jobs}
    free: list[Job] = []
    open_ = list(jobs)
    while open_:
        for job in list(open_):
            owner = None if job.result() is not None else elsewhere.owner(job.place)
            now = _modified(job.place.claim_file)
            if owner is None or now is None or now != seen[id(job)]:  # without a claim, SLURM's queue is the owner
                open_.remove(job)
                job.settle(None, elsewhere)
                if job.state in (State.STOPPED, State.PREEMPTED):
                    free.append(job)
        if open_:
            time.sleep(0.5)
    return free


def write_state(cell: Cell, state: State, reason: str | None = None) -> None:
    """Write a state for a process that cannot, or has not started; the recorded progress of the cell stays."""
    new = {"state": state, "reason": reason, "phase": None, "eta_seconds": None, "heartbeat": time.time()}
    write_record(cell.status_file, msgspec.structs.replace(_status(cell), **new))


def _status(cell: Cell) -> Status:
    try:
        return cell.status() or Status(state=State.QUEUED)
    except Unreadable:
        return Status(state=State.QUEUED)


def text(jobs: Sequence[Job]) -> str:
    """The cells with their states; those without a result with reason and log file."""
    # Names that do not hold all settings are told apart by those that the line sweeps.
    shortened = any(job.cell is not None and is_shortened(job.cell.key.variant) for job in jobs)
    keys = swept_keys(jobs) if shortened else []
    rows = [["cell", "state", *["settings"] * bool(keys), "result or reason"]]
    for job in jobs:
        told = [" ".join(f"{key}={job.settings.get(key)}" for key in keys)] if keys else []
        rows.append([job.label, str(job.state), *told, (job.note.splitlines() or [""])[0][:200]])
        if job.log is not None and job.state not in _FINE:
            rows.append(["", "", *[""] * bool(keys), f"log: {job.log}"])
    counts = ", ".join(f"{count} {state}" for state, count in Counter(job.state for job in jobs).items())
    return f"\n{aligned(rows, left=(0, 1, 2, 3))}\n{len(jobs)} cells: {counts}"


def _score(result: Result) -> str:
    return "trained" if result.miou is None else f"mIoU {result.miou:.2f}"


def _modified(path: Path) -> int | None:
    """When a file was written, in nanoseconds; None if there is none."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None
