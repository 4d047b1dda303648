"""What fsseg's launchers share: the part that runs in the job, and the launcher that runs cells one after the other.

Hydra's launchers hide how a job ended: an exception becomes a successful SLURM job, a killed job an exception that ends
the sweep. And their jobs compose their configuration anew from whatever the YAML files say by then. These launchers
wait for every job and report each one; `fsseg.sweep.sweeper` then reads the cell's directory, which decides. Their jobs
run what the record of the sweep says. The classes that Hydra instantiates are in `hydra_plugins.fsseg_launchers`. No
torch here.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import BaseSubmititLauncher
from omegaconf import DictConfig

from fsseg.cell.attempt import Submission
from fsseg.cell.models import State, Unreadable
from fsseg.cell.record import Cell, open_cell
from fsseg.cell.status import write_state
from fsseg.cell.sweeps import Sweep, SweptCell, read_sweep
from fsseg.config.entry import typed  # registers schemas and resolvers
from fsseg.config.hydra_internals import BasicLauncher, run_without_files
from fsseg.config.recorded import from_recorded
from fsseg.errors import UserError
from fsseg.process.signals import SIGNALS


class CellLost(RuntimeError):
    """A job ended without a result: killed, cancelled, out of memory, or its node failed. The text says which."""


class NeverStarted(CellLost):
    """A job was cancelled or lost while it waited."""


class SweepInterrupted(KeyboardInterrupt):
    """INT or TERM reached the launching process; its jobs have ended, or go on in SLURM."""

    def __init__(self, signum: int, advice: str = "") -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum
        self.advice = advice


@dataclass(frozen=True)
class Submitted:
    """Where a job is: its id (SLURM's, or `<pid>.<index>` of a local worker) and its log file."""

    job_id: str
    log: Path


@dataclass(frozen=True)
class More:
    """A cell that joins a launch: its record, its path in it, and its overrides."""

    file: Path
    path: str
    overrides: Sequence[str]


class Observer:
    """Receives the events of a launcher. The sweeper uses a subclass; this one ignores them."""

    def submitted(self, jobs: dict[int, Submitted]) -> None:
        """Called when jobs, by their position in the launch, are queued."""

    def ended(self, index: int, returned: JobReturn) -> None:
        """Called when a job has ended."""

    def more(self, free: int | None) -> Sequence[More]:
        """Cells that came up since the launch: a search asks for its next trials here.

        Args:
            free: how many could start now; None of a queue, which takes any number.
        """
        return []


class StopSignals:
    """Context manager that notes INT, TERM and HUP, so that a launcher can end its jobs before it exits.

    At the end the former handlers are back. Outside the main thread it notes nothing.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            try:
                self._before[number] = signal.signal(number, self._note)
            except ValueError:
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)

    def sleep(self, seconds: float) -> None:
        """Sleep, but return at once if a signal came before or comes meanwhile."""
        seen, until = len(self.received), time.monotonic() + seconds
        while len(self.received) == seen and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 0.2))


def failed(error: BaseException, overrides: Sequence[str]) -> JobReturn:
    """Hydra's record of a job that ended in `error`."""
    returned = JobReturn(overrides=list(overrides), status=JobStatus.FAILED)
    returned.return_value = error
    return returned


class RecordedJobs:
    """What a job of a sweep calls: it runs the configuration of its cell in the sweep's record.

    It is pickled for every job, so it holds no more than it needs.

    Args:
        task: the function that `@hydra.main` decorates.
    """

    def __init__(self, task: TaskFunction) -> None:
        self._task = task

    def __call__(self, file: Path, path: str, number: int) -> JobReturn:
        """Run one cell, in the job; the arguments as for `run`.

        Raises:
            Exception: whatever the cell raised, so that the job's log holds the traceback and SLURM says FAILED.
        """
        returned = self.run(file, path, number)
        if returned.status == JobStatus.FAILED and isinstance(returned._return_value, BaseException):
            raise returned._return_value
        return returned

    def run(self, file: Path, path: str, number: int, context: HydraContext | None = None) -> JobReturn:
        """Run one cell; an exception of the task is in what is returned.

        Args:
            file: the record.
            path: the cell in it.
            number: of the job, for Hydra.
            context: as for `run_without_files`.

        Raises:
            UserError: the record is gone, or is not of this version of the code or of its files.
        """
        try:
            sweep = read_sweep(file)
            swept = sweep.by_path[path]
        except (Unreadable, KeyError) as error:
            raise UserError(f"{file} {error}", "start the sweep's line again") from None
        cell, config = _as_submitted(sweep, swept)
        with Submission.of(sweep).known():
            job = {"id": swept.job or str(number), "num": number}
            return run_without_files(self._task, config, sweep.record.hydra, cell.overrides, job, context)

    def checkpoint(self, *args: Any, **kwargs: Any) -> Any:
        """Called by submitit on USR2: requeue the same call."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, *args, **kwargs)


def _as_submitted(sweep: Sweep, swept: SweptCell) -> tuple[Cell, DictConfig]:
    """The cell and the configuration of a job.

    Raises:
        UserError: they are not what was submitted any more; the cell is then marked as failed.
    """
    plain = sweep.record.config_of(swept)
    config = from_recorded(plain)
    task = [o for o in swept.overrides if not o.startswith(("hydra.", "hydra/"))]
    cell = open_cell(typed(config), plain, task)
    if cell.fingerprint != swept.fingerprint:
        error = UserError(
            f"{cell.directory}: not what was submitted: fingerprint {swept.fingerprint} then, {cell.fingerprint} now",
            "weights, a checkpoint or a list that it names, or the code has changed: start the sweep's line again",
        )
        claim = cell.claim()
        if claim is None or not claim.alive():  # else it is in the hands of another process, whatever this job wants
            with suppress(OSError):
                write_state(cell, State.FAILED, error.what)
        raise error
    return cell, config


class SequentialLauncher(BasicLauncher):
    """`hydra/launcher=basic`: one cell after the other, in this process. A cell that calls `sys.exit` ends only itself.

    Attributes:
        cells: set before `launch`: record and path of each cell, in the order of their overrides.
    """

    observer = Observer()
    cells: Sequence[tuple[Path, str]]

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the cells in this process.

        Raises:
            SweepInterrupted: INT or TERM came; the running cell has saved its checkpoint.
        """
        assert self.task_function is not None
        jobs = RecordedJobs(self.task_function)
        returns: list[JobReturn] = []
        left = [More(file, path, overrides) for (file, path), overrides in zip(self.cells, job_overrides)]
        while left or (left := list(self.observer.more(1))):
            index, cell = len(returns), left.pop(0)
            file, path, overrides = cell.file, cell.path, cell.overrides
            try:
                returned = jobs.run(file, path, initial_job_idx + index, self.hydra_context)
            except SystemExit as error:
                if (number := _signal_behind(error)) is not None:
                    raise SweepInterrupted(number) from None
                returned = failed(CellLost(f"the cell called sys.exit({error.code!r})"), overrides)
            except KeyboardInterrupt:
                raise SweepInterrupted(signal.SIGINT) from None
            except UserError as error:
                returned = failed(error, overrides)
            except OSError as error:  # from Hydra, which makes a folder for the job
                what = f"{error.filename}: the folder cannot be made ({error.strerror})"
                returned = failed(UserError(what, "set output_dir= elsewhere"), overrides)
            self.observer.ended(index, returned)
            returns.append(returned)
        return returns


def _signal_behind(error: SystemExit) -> int | None:
    """The signal that a shell's exit status 128 + n stands for, if it is one that ends a sweep."""
    if isinstance(error.code, int) and error.code - 128 in SIGNALS:
        return error.code - 128
    return None


class CellLauncher(BaseSubmititLauncher):
    """A launcher whose cells run in processes of their own, through submitit's pickles.

    Attributes:
        cells: as of `SequentialLauncher`; empty under a sweeper of another package.
        leading: how many of them, from the first on, are base learners that others of them start from.
    """

    observer = Observer()
    cells: Sequence[tuple[Path, str]] = ()
    leading = 0
    queues = False
    """Whether its jobs wait in a queue that outlives the launching process."""

    @property
    def jobs(self) -> RecordedJobs:
        """What each job calls, with the record and the path of its cell, and a number."""
        assert self.task_function is not None
        return RecordedJobs(self.task_function)


def outcome(pickles: Sequence[Path], overrides: Sequence[str]) -> JobReturn | None:
    """How a job of one or more tasks returned; None if a task left nothing.

    Args:
        pickles: the result file of each task, rank 0 first.
    """
    from submitit.core import utils

    first: JobReturn | None = None
    for path in pickles:
        try:
            kind, value = utils.pickle_load(path)
        except (OSError, EOFError):
            return None
        except Exception as error:  # written by another version of the code
            return failed(CellLost(f"{path} cannot be read: {type(error).__name__}: {error}"), overrides)
        if kind == "error":
            return failed(CellLost(last_line(value)), overrides)
        first = first or value
    return first


def last_line(trace: str) -> str:
    """The line of a traceback that names the exception; of `UserError` only its text."""
    lines = [line for line in trace.splitlines() if line and not line.startswith(" ")]
    line = lines[-1] if lines else trace.strip()
    return line.removeprefix("fsseg.errors.UserError: ")
