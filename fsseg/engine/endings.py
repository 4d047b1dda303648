"""The table of how an attempt ends, by the exception that ended it. Called by `fsseg.run`."""

from __future__ import annotations

import errno
import traceback
from dataclasses import dataclass
from pathlib import Path

from fsseg.cell.models import State
from fsseg.errors import Diverged, UserError
from fsseg.process.files import ClaimLost
from fsseg.process.signals import Preempted, Pruned, Signals


@dataclass(frozen=True)
class Ending:
    """What is recorded and what follows.

    Attributes:
        state, reason: for status.json and attempts/<n>.json.
        error: what the caller of the run gets; None after a signal, which then ends the process.
        note: what train.log alone gets; empty if nothing.
        recorded: whether the cell is still ours to write to.
        copied: whether `sync.url` gets what is there so far.
        diverged: whether numbers were not finite.
    """

    state: State
    reason: str = ""
    error: BaseException | None = None
    note: str = ""
    recorded: bool = True
    copied: bool = False
    diverged: bool = False


def ending_of(error: BaseException, directory: Path, signals: Signals) -> Ending:
    """The ending for an exception.

    Args:
        directory: of the run.
        signals: of the run.
    """
    trace = traceback.format_exc()
    match error:
        case ClaimLost():
            return Ending(State.RUNNING, str(error), error, recorded=False)
        case Preempted():
            return Ending(State.PREEMPTED, str(error), copied=True)
        case Pruned():
            return Ending(State.PRUNED, str(error), copied=True)
        case KeyboardInterrupt():
            # without a noted signal this is not the main thread: the caller must get the error
            return Ending(State.PREEMPTED, "interrupted twice at the keyboard", None if signals.received else error)
        case UserError():
            what = f"error: {error}\n{trace}"
            return Ending(State.FAILED, error.what, error, what, diverged=isinstance(error, Diverged))
        case Exception() if signals.received is not None and "DataLoader worker" in str(error):
            return Ending(State.PREEMPTED, str(signals.reason()), copied=True)  # the signal hit the worker as well
        case OSError() if is_disk_fault(error):
            fault = disk_fault(error, directory)
        case RuntimeError() if type(error).__name__ == "OutOfMemoryError":  # torch's; not imported for its name
            fault = UserError(
                f"out of GPU memory: {(str(error).splitlines() or [''])[0]}",
                "in training raise train.accumulate, which changes no number; in evaluation lower eval.batch_size, "
                "eval.backbone_batch or eval.feature_cache_gb",
            )
        case _:
            return Ending(State.FAILED, f"{type(error).__name__}: {error}"[:500], error, trace)
    return Ending(State.FAILED, fault.what, fault, trace)


def is_disk_fault(error: BaseException) -> bool:
    """Whether the disk is full, read-only, forbidden or broken: a traceback would not help."""
    return isinstance(error, OSError) and error.errno in _DISK_FAULTS


_DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG)


def disk_fault(error: OSError, directory: Path) -> UserError:
    """A disk fault as a `UserError` that names the run directory, or the file if it is outside."""
    name = str(error.filename or directory)
    where = directory if name.startswith(str(directory)) else name
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(
            f"{where}: cannot be written ({reason})",
            "free space and start again: the run goes on from its last checkpoint; or set output_dir= to another disk",
        )
    return UserError(f"{where}: cannot be used ({reason})", "mend the permissions, or set output_dir= elsewhere")
