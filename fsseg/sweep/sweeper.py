"""The sweep behind `python train.py -m ...`: checks all cells before it launches, and reports how each one ended.

Hydra's own sweeper launches every job, shows the first exception and forgets the rest. This one composes the whole grid
first: two cells that would share a directory are refused, finished cells and those of other processes are left
out, faulty cells are reported together. The others go to the configured launcher. Hydra finds the sweeper through
`hydra_plugins.fsseg_sweeper`.
"""

from __future__ import annotations

import logging
import math
import os
import shlex
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from fsseg.cell.claim import LEASE_SECONDS, acquire, take_away
from fsseg.cell.claim import held as held_claim
from fsseg.cell.key import BASE_CELL
from fsseg.cell.models import Result, State
from fsseg.cell.record import Cell, Problem
from fsseg.cell.status import status_of, write_state
from fsseg.cell.sweeps import FOLDER as SWEEPS
from fsseg.cell.sweeps import Sweep, SweepRecord, SweptCell, new_sweep, sweeps_of
from fsseg.cell.variant import is_shortened
from fsseg.config.compose import Composer
from fsseg.config.hydra_internals import hydra_node, run_without_files
from fsseg.config.recorded import from_recorded
from fsseg.config.tasks import BASE_LEARNERS
from fsseg.data.registry import sharing
from fsseg.errors import UserError, merge_errors, visible
from fsseg.process import hook
from fsseg.process.logs import configure_logging
from fsseg.process.provenance import code_state
from fsseg.process.tables import aligned
from fsseg.sweep.boxes import swept_keys
from fsseg.sweep.elsewhere import Elsewhere
from fsseg.sweep.grid import Point, base_points, examine
from fsseg.sweep.launchers.base import (
    CellLost,
    More,
    NeverStarted,
    Observer,
    SequentialLauncher,
    Submitted,
    SweepInterrupted,
)
from fsseg.sweep.preflight import runs_here

log = logging.getLogger("fsseg.sweep")

FINE = (State.DONE, State.RUNNING, State.PENDING)  # no failure: the latter two belong to other processes
_MOST_LAUNCHES = 4  # of a cell in one sweep: other processes may take it and die several times


@dataclass
class Job(Point):
    """A cell of the sweep that runs.

    Attributes:
        note: reason for its state, or its owner.
        log: the log file that explains it.
        old_result: time in nanoseconds of the result that `redo=true` replaces.
        launches: how often this sweep has launched it.
        added: to its configuration, beside what its overrides say: what a search wants of it.
    """

    note: str = ""
    log: Path | None = None
    old_result: int | None = None
    launches: int = 0
    added: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.snapshot is not None and self.snapshot.result is not None:
            self.note = _score(self.snapshot.result)
        elif self.faults:
            self.note = self.faults[0].what
        elif self.composed is not None and self.composed.cfg.redo and self.cell is not None:
            self.old_result = _modified(self.cell.result_file)

    @property
    def place(self) -> Cell:
        """The cell of a job that can start."""
        assert self.cell is not None
        return self.cell

    @property
    def trains_base_classes(self) -> bool:
        """Whether it is a base learner, from which other cells start."""
        return self.place.key.method in BASE_LEARNERS

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
        status = status_of(cell)
        told = State(status.state) if status.state in (State.FAILED, State.PREEMPTED, State.PRUNED) else None
        self.log = cell.log_file if cell.log_file.exists() else job_log
        if returned is not None and returned.status == JobStatus.FAILED and not lost:
            self.state = State.FAILED
            self.note = error.what if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        elif told is not None:
            self.state, self.note = told, status.reason or ""
            if told == State.PREEMPTED and lost:
                self.note += f" ({error})"
        elif isinstance(error, NeverStarted):
            self.state, self.note = State.STOPPED, f"never started; {error}"
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
            if self.composed is not None:  # a process that ends without a word tells nobody
                facts = {"EVENT": "cell_failed", "DIR": cell.directory.absolute(), "CELL": cell.key}
                notify = self.composed.cfg.notify
                hook.call(notify.on_end, notify.timeout_seconds, facts | {"REASON": self.note})


class FssegSweeper(Sweeper):
    """Cartesian product of the overrides, one job a cell, in the order given.

    Args:
        params: overrides from a file (`hydra.sweeper.params` of an experiment); the command line wins. Hydra passes
            them; the composer reads them from the configuration instead.
    """

    cluster: str | None = None

    def __init__(self, params: dict[str, Any] | None = None) -> None:
        del params

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config
        self.hydra_context = hydra_context
        self.task = task_function
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        # Replaces Hydra's default, which hides how jobs end. By name: Hydra may have loaded the class twice.
        if runs_here(config):
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
        composer = Composer(self.hydra_context.config_loader, self.config)  # whose master holds `arguments` too
        if self.config.search is not None:
            from fsseg.sweep.search.run import Search

            return Search(self, composer).run()
        cells = composer.grid_of_master()
        points = examine(cells, data=True, download=runs_here(self.config))
        base = [p for p in base_points(points, True, runs_here(self.config)) if p.state != State.DONE]
        jobs = [Job(**vars(point)) for point in (*base, *points)]
        if any(job.composed is not None and job.composed.cfg.check for job in jobs):
            self._check(jobs)
            return []
        todo, began = self._announce(jobs), time.monotonic()

        self.returns: list[JobReturn] = []
        interrupted = None
        held = [job for job in jobs if job.state in (State.RUNNING, State.PENDING)]
        with ExitStack() as self.claims:
            try:
                while todo or held:
                    busy = self._launch_in_turn(todo)
                    configure_logging(self.config.log_level)
                    if self._leaves:
                        break
                    # A holder may have died or stopped on a signal meanwhile: its cells are then launched here.
                    free = wait_for_signs_of_life([*held, *busy], self.elsewhere)
                    todo, held = [job for job in free if job.launches < _MOST_LAUNCHES], []
            except KeyboardInterrupt as error:
                interrupted = error if isinstance(error, SweepInterrupted) else SweepInterrupted(signal.SIGINT)
            except UserError as error:
                self._notify(jobs, time.monotonic() - began, error.what)
                raise
            for job in jobs:
                if job.state == State.TODO:
                    job.settle(None, self.elsewhere)
        print(text(jobs), flush=True)
        self._notify(jobs, time.monotonic() - began, f"ended by {interrupted}" if interrupted is not None else "")
        if interrupted is not None:
            log.warning("ended by %s%s", interrupted, f"; {interrupted.advice}" if interrupted.advice else "")
            raise SystemExit(128 + interrupted.signum)
        if left := [job for job in jobs if job.state not in FINE]:
            raise UserError(
                f"{len(left)} of {len(jobs)} cells are not done (listed above)",
                "mend the cause and run the same line again: it runs just what is missing",
            )
        if self._leaves and any(job.state in (State.PENDING, State.RUNNING) for job in jobs):
            print(f"look again: {shlex.join(['fsseg', 'status', *map(str, _experiments(jobs)), '--watch'])}")
        return self.returns

    def _check(self, jobs: Sequence[Job]) -> None:
        """check=true: ask every cell in this process, whatever the launcher, what a start would do; write nothing.

        Raises:
            UserError: a cell would be refused.
        """
        assert self.config is not None
        elsewhere, node = Elsewhere(sweeps_of(_experiments(jobs))), hydra_node(self.config)
        node["sweep"]["dir"] = node["sweep"]["subdir"] = "."  # else Hydra makes the folder
        with sharing():
            for number, job in enumerate(jobs):
                if job.state == State.DONE:
                    print(visible(f"{job.label}: already done: {job.note}"))
                elif job.state == State.TODO and (owner := elsewhere.owner(job.place)) is not None:
                    job.state, _ = owner
                    print(visible(f"{job.label}: would be left to {owner[1]}"))
                elif job.state == State.TODO and job.composed is not None:
                    config = from_recorded(job.composed.resolved)
                    place = {"id": str(number), "num": number}
                    returned = run_without_files(
                        self.task, config, node, job.place.overrides, place, self.hydra_context
                    )
                    if isinstance(error := returned._return_value, BaseException):
                        if not isinstance(error, UserError):
                            raise error
                        job.state, job.faults = State.FAULTY, [error]
        _tell_faults(jobs)
        if faulty := [job for job in jobs if job.state == State.FAULTY]:
            raise UserError(
                f"{len(faulty)} of {len(jobs)} cells would be refused (listed above)",
                "mend the cause and check again; without check=true the line runs the others",
            )

    def _notify(self, jobs: Sequence[Job], seconds: float, reason: str) -> None:
        """Tell that the sweep is over, by the command of `notify.on_end`; of several that share it, the last one does.

        Nothing is told while a cell is in other hands, or if nothing was to be launched here.

        Args:
            reason: why it ended before its time, e.g. because SLURM refused it.
        """
        assert self.config is not None
        states = Counter(job.state for job in jobs)
        if states[State.RUNNING] + states[State.PENDING] or not (reason or any(job.launches for job in jobs)):
            return
        failed = states[State.FAILED] + states[State.FAULTY]
        facts = {
            "EVENT": "sweep_ended", "DIR": ":".join(str(path.absolute()) for path in _experiments(jobs)),
            "CELLS": len(jobs), "DONE": states[State.DONE], "FAILED": failed,
            "STOPPED": len(jobs) - states[State.DONE] - failed, "REASON": reason, "SECONDS": f"{seconds:.0f}",
        }  # fmt: skip
        hook.call(self.config.notify.on_end, self.config.notify.timeout_seconds, facts)

    @property
    def _leaves(self) -> bool:
        """Whether the jobs are submitted and left alone (`hydra.launcher.wait=false`)."""
        return getattr(self.launcher, "params", {}).get("wait") is False

    def _announce(self, jobs: Sequence[Job]) -> list[Job]:
        """Log what will be done; returns the cells to launch."""
        _tell_faults(jobs)
        open_ = [job for job in jobs if job.state == State.TODO]
        sweeps = sweeps_of(_experiments(open_))
        for sweep in sweeps:  # that were killed
            if (claim := sweep.claim()) is not None and claim.gone:
                take_away(sweep.claim_file, claim.holder)
        self.elsewhere = Elsewhere(sweeps)
        for job in open_:
            if (owner := self.elsewhere.owner(job.place)) is not None:
                job.state, job.note = owner
                log.info("left to %s: %s", job.note, job.label)
        todo = [job for job in open_ if job.state == State.TODO]
        faulty, left = sum(job.state == State.FAULTY for job in jobs), len(open_) - len(todo)
        done = sum(job.state == State.DONE for job in jobs)
        extra = f", {left} in other hands" if left else ""
        extra += f", {faulty} cannot start" if faulty else ""
        log.info("%d of %d cells done, %d to run%s", done, len(jobs), len(todo), extra)
        return todo

    def _launch_in_turn(self, todo: list[Job]) -> list[Job]:
        """Base learners before the cells that start from them, which would wait for them with a GPU in hand.

        A queue takes all at once: its launcher lets the others depend on the base learners.
        """
        base = [job for job in todo if job.trains_base_classes]
        others = [job for job in todo if not job.trains_base_classes]
        if not base or getattr(self.launcher, "queues", False):
            return self._launch(base + others) if todo else []
        busy, failed = self._launch(base), {job.place.fingerprint for job in base if job.state == State.FAILED}
        for job in others:
            if job.place.identity.get(BASE_CELL) in failed:
                job.state, job.note = State.STOPPED, "never started; its base learner failed"
        others = [job for job in others if job.state == State.TODO]
        return busy + (self._launch(others) if others else [])

    def _launch(self, todo: list[Job], grow: Grow | None = None) -> list[Job]:
        """Launch cells and settle their states; returns those that other processes turned out to hold.

        Args:
            grow: names cells that join them while they run; `todo` grows by these.
        """
        launcher: Any = self.launcher
        ours = hasattr(launcher, "observer")
        with ExitStack() as submitting:
            try:
                if getattr(launcher, "queues", False):
                    todo = self._alone(todo, submitting)
                if not todo:
                    return []
                self.folder.mkdir(parents=True, exist_ok=True)
                sweeps = self._record(todo)
            except OSError as error:
                raise _unusable(error, self.folder) from error
            for job in todo:
                job.launches += 1
            observer = _Observer(self, todo, sweeps, submitting, grow)
            if ours:
                launcher.observer = observer
                launcher.cells = [(sweep.file, swept.path) for sweep, swept in observer.swept]
                launcher.leading = sum(job.trains_base_classes for job in todo)
            try:
                returns = launcher.launch([list(job.overrides) for job in todo], len(self.returns))
            except (UserError, KeyboardInterrupt) as error:
                observer.end(f"ended: {error.what}" if isinstance(error, UserError) else f"ended by {error or 'INT'}")
                raise
            except OSError as error:
                raise _unusable(error, self.folder) from error
            except Exception as error:  # a launcher of another package that raises at the first lost job
                if ours:
                    raise
                log.error("the launcher gave up: %s", error)
                returns = []
        for index, returned in enumerate(returns):
            if index not in observer.over:
                observer.ended(index, returned)
        observer.end("left its jobs to SLURM" if self._leaves else "came to its end")
        self.returns += returns
        return [job for index, job in enumerate(todo) if index in observer.busy]

    def _alone(self, todo: list[Job], submitting: ExitStack) -> list[Job]:
        """Of cells to submit, those that nobody has submitted meanwhile.

        From here until `submitting` is closed no other process submits cells of the same experiments.

        Raises:
            UserError: the queue, or a record of what was submitted, cannot be read.
        """
        launcher: Any = self.launcher
        self.cluster = launcher.check()
        experiments = sorted(_experiments(todo))
        for experiment in experiments:
            submitting.enter_context(held_claim(experiment / SWEEPS / "submitting.claim", LEASE_SECONDS))
        unreadable: list[Problem] = []
        self.elsewhere = Elsewhere(sweeps_of(experiments, unreadable))
        if unreadable:
            raise UserError(
                f"{unreadable[0]}: which cells it has submitted is not known",
                "mend the file or its permissions, or remove it if none of its jobs is in the queue any more",
            )
        free = []
        for job in todo:
            if (owner := self.elsewhere.owner(job.place)) is None:
                free.append(job)
            else:
                job.state, job.note = owner
        return free

    def _record(self, todo: Sequence[Job]) -> dict[Path, Sweep]:
        """Write down what is launched, one record for each experiment, and hold the claims of the records.

        Raises:
            OSError: that cannot be written.
        """
        assert self.config is not None
        queues, node = getattr(self.launcher, "queues", False), hydra_node(self.config)
        found = {}
        for experiment in _experiments(todo):
            mine = [job for job in todo if job.place.experiment == experiment]
            record = SweepRecord(
                line=list(OmegaConf.to_container(self.config.hydra.overrides.task, resolve=False)),  # type: ignore[arg-type]
                cells=_swept_cells(mine),
                launcher=self.config.hydra.runtime.choices.get("hydra/launcher") or type(self.launcher).__name__,
                cluster=self.cluster if queues else None, user=os.getuid() if queues else None,
                host=socket.gethostname(), pid=os.getpid(),
                started=time.time(), code=code_state(), hydra=node,
            )  # fmt: skip
            record.share(_configs(mine))
            found[experiment] = sweep = new_sweep(experiment, record)
            self.elsewhere.add(sweep)
            claim = acquire(sweep.claim_file, LEASE_SECONDS)
            claim.start()
            self.claims.callback(claim.release)
        return found


def _tell_faults(jobs: Sequence[Job]) -> None:
    """Log why cells cannot start, each reason once."""
    groups: dict[str, list[str]] = {}
    for job in jobs:
        if job.state == State.FAULTY:
            groups.setdefault(str(merge_errors(job.faults)), []).append(job.label)
    for fault, labels in groups.items():
        cells = f"{len(labels)} cells: {labels[0]} ..." if len(labels) > 1 else f"cell {labels[0]}"
        log.error("%s\n  (%s)", fault, cells)


_GROW_SECONDS = 2.0  # between looks for more cells, unless one has ended
Grow = Callable[[int | None], list[Job]]
"""Names further cells, given how many could start now (`fsseg.sweep.launchers.base.Observer.more`)."""


class _Observer(Observer):
    """Updates the record and the terminal while a launcher works on `jobs`.

    Args:
        sweeps: the record of each experiment.
        submitting: closed when all jobs are submitted.
        grow: as of `FssegSweeper._launch`.
    """

    def __init__(
        self, sweeper: FssegSweeper, jobs: list[Job], sweeps: Mapping[Path, Sweep], submitting: ExitStack,
        grow: Grow | None,
    ) -> None:  # fmt: skip
        self.sweeper, self.jobs, self.elsewhere = sweeper, jobs, sweeper.elsewhere
        self.over: set[int] = set()
        self.busy: set[int] = set()
        self.swept = [_swept(job.place, sweeps) for job in jobs]
        self._sweeps = sweeps
        self._submitting = submitting
        self._grow = grow
        self._logs: dict[int, Path] = {}
        self._grown = -math.inf

    def more(self, free: int | None) -> list[More]:
        if self._grow is None or time.monotonic() - self._grown < _GROW_SECONDS:
            return []
        self._grown = time.monotonic()
        try:
            jobs = self._grow(free)
            if jobs and getattr(self.sweeper.launcher, "queues", False):
                self._submitting.close()  # what was refused before is not submitted any more
                jobs = self.sweeper._alone(jobs, self._submitting)
                self.elsewhere = self.sweeper.elsewhere
        except Exception as error:
            # The cells that run are waited for; who asks for more after that has the fault again, or not.
            self._grow = None
            log.error("no more cells until those have ended: %s", error)
            jobs = []
        if not jobs:
            self._submitting.close()
            return []
        found = []
        for experiment, sweep in self._sweeps.items():
            mine = [job for job in jobs if job.place.experiment == experiment]
            cells, before = _swept_cells(mine), len(sweep.record.cells)
            sweep.record.cells += cells
            sweep.record.share(_configs(mine), before)
            sweep.by_path.update({cell.path: cell for cell in cells})
            sweep.save()
            self.elsewhere.add_cells(sweep, cells)
            self.swept += [(sweep, cell) for cell in cells]
            self.jobs += mine
            found += [More(sweep.file, cell.path, list(job.overrides)) for job, cell in zip(mine, cells)]
            for job in mine:
                job.launches += 1
        return found

    def submitted(self, jobs: dict[int, Submitted]) -> None:
        self._logs.update((index, job.log) for index, job in jobs.items())
        for index, job in jobs.items():
            swept = self.swept[index][1]
            swept.job, swept.log = job.job_id, str(job.log)
        self.elsewhere.forget_the_queue()
        for sweep in self._sweeps.values():
            try:
                sweep.save()
            except OSError as error:
                names = " ".join(dict.fromkeys(job.job_id.partition("_")[0] for job in jobs.values()))
                log.error(
                    "%s: cannot be written (%s), so no other start will know these jobs: %s",
                    sweep.file, error.strerror, names,
                )  # fmt: skip
        if len(self._logs) == len(self.jobs):
            self._submitting.close()

    def ended(self, index: int, returned: JobReturn) -> None:
        job = self.jobs[index]
        job.settle(returned, self.elsewhere, self._logs.get(index))
        self.over.add(index)
        self._grown = -math.inf
        if returned.status == JobStatus.COMPLETED and job.state != State.DONE:  # a run leaves a cell to its holder
            self.busy.add(index)
        of = "" if self._grow is not None else f"/{len(self.jobs)}"  # of a search nobody knows how many there will be
        log.info("%d%s %s: %s  %s", len(self.over), of, job.state, job.label, job.note.partition("\n")[0])

    def end(self, how: str) -> None:
        """Note how the sweep ended."""
        for sweep in self._sweeps.values():
            sweep.record.end = how
            try:
                sweep.save()
            except OSError as error:
                log.warning("%s: cannot be written (%s)", sweep.file, error.strerror)


def _swept_cells(jobs: Sequence[Job]) -> list[SweptCell]:
    """The cells of one experiment, for its record."""
    return [
        SweptCell(job.place.directory.relative_to(job.place.experiment).as_posix(), list(job.place.overrides),
                  job.place.fingerprint)
        for job in jobs
    ]  # fmt: skip


def _configs(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    return [{**job.composed.resolved, **job.added} for job in jobs if job.composed is not None]


def _swept(cell: Cell, sweeps: Mapping[Path, Sweep]) -> tuple[Sweep, SweptCell]:
    sweep = sweeps[cell.experiment]
    return sweep, sweep.by_path[cell.directory.relative_to(sweep.experiment).as_posix()]


def _experiments(jobs: Iterable[Job]) -> list[Path]:
    """`outputs/<name>` of the cells; one line may have several."""
    return list(dict.fromkeys(job.cell.experiment for job in jobs if job.cell is not None))


def _unusable(error: OSError, folder: Path) -> UserError:
    what = f"{error.filename or folder}: cannot be used ({error.strerror})"
    return UserError(what, "mend the permissions, or set output_dir= elsewhere")


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


def text(jobs: Sequence[Job]) -> str:
    """The cells with their states; those without a result with reason and log file."""
    # Names that do not hold all settings are told apart by those that the line sweeps.
    own = [job for job in jobs if job.cell is None or job.cell.key.method not in BASE_LEARNERS]
    shortened = any(job.cell is not None and is_shortened(job.cell.key.variant) for job in own)
    keys = swept_keys(own) if shortened else []
    rows = [["cell", "state", *["settings"] * bool(keys), "result or reason"]]
    for job in jobs:
        told = [" ".join(f"{key}={job.settings.get(key)}" for key in keys)] if keys else []
        rows.append([job.label, str(job.state), *told, (job.note.splitlines() or [""])[0][:200]])
        if job.log is not None and job.state not in FINE:
            rows.append(["", "", *[""] * bool(keys), f"log: {job.log}"])
    counts = ", ".join(f"{count} {state}" for state, count in Counter(job.state for job in jobs).items())
    return f"\n{aligned(rows, left=(0, 1, 2, 3))}\n{len(jobs)} cells: {counts}"


def _score(result: Result) -> str:
    return result.score_line() if result.miou is None else f"mIoU {result.miou:.2f}"


def _modified(path: Path) -> int | None:
    """When a file was written, in nanoseconds; None if there is none."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None
