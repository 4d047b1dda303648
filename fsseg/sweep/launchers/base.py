"""What fsseg's launchers share: the part that runs in the job, and the launcher that runs cells one after the other.

Hydra's launchers hide how a job ended: an exception becomes a successful SLURM job, a killed job an exception that ends
the sweep. These launchers wait for every job and report each one. `fsseg.sweep.sweeper` then reads the cell's
directory, which decides. The classes that Hydra instantiates are in `hydra_plugins.fsseg_launchers`. No torch here.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import BaseSubmititLauncher

from fsseg.config.hydra_internals import BasicLauncher
from fsseg.errors import UserError
from fsseg.process.signals import SIGNALS


class CellLost(RuntimeError):
    """A job ended without a result: killed, cancelled, out of memory, or its node failed. The text says which."""


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


class Observer:
    """Receives the events of a launcher. The sweeper uses a subclass; this one ignores them."""

    def before_submission(self) -> None:
        """Called before the jobs are submitted; none has started."""

    def submitted(self, jobs: dict[int, Submitted], folder: Path) -> None:
        """Called when jobs, by their position in the launch, are queued; `folder` holds their pickles and logs."""

    def ended(self, index: int, returned: JobReturn) -> None:
        """Called when a job has ended."""


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


class SequentialLauncher(BasicLauncher):
    """`hydra/launcher=basic`: Hydra's, but a cell that calls `sys.exit` ends only itself."""

    observer = Observer()

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the cells in this process.

        Raises:
            SweepInterrupted: INT or TERM came; the running cell has saved its checkpoint.
        """
        returns: list[JobReturn] = []
        for index, overrides in enumerate(job_overrides):
            try:
                returned = super().launch([overrides], initial_job_idx + index)[0]
            except SystemExit as error:
                if (number := _signal_behind(error)) is not None:
                    raise SweepInterrupted(number) from None
                returned = failed(CellLost(f"the cell called sys.exit({error.code!r})"), overrides)
            except KeyboardInterrupt:
                raise SweepInterrupted(signal.SIGINT) from None
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
    """A launcher whose cells run in processes of their own, through submitit's pickles."""

    observer = Observer()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "observer"}  # the job does not need the sweep

    def __call__(
        self,
        sweep_overrides: list[str],
        job_dir_key: str,
        job_num: int,
        job_id: str,
        singleton_state: dict[type, Singleton],
    ) -> JobReturn:
        """Run one cell, in the job.

        Raises:
            Exception: whatever the cell raised, so that the job's log holds the traceback and SLURM says FAILED.
        """
        import fsseg.config.entry  # noqa: F401  registers schemas and resolvers, before anything is composed

        returned = super().__call__(sweep_overrides, job_dir_key, job_num, job_id, singleton_state)
        if returned.status == JobStatus.FAILED and isinstance(returned._return_value, BaseException):
            raise returned._return_value
        return returned

    def job_arguments(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[tuple[Any, ...]]:
        """What `__call__` takes, for each job."""
        state = Singleton.get_state()
        return [
            (list(overrides), "hydra.sweep.dir", initial_job_idx + i, f"job_id_for_{initial_job_idx + i}", state)
            for i, overrides in enumerate(job_overrides)
        ]

    def checkpoint(self, *args: Any, **kwargs: Any) -> Any:
        """Called by submitit on USR2: requeue the same call."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, *args, **kwargs)


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
