"""attempts/<n>.json, one file for every start of a cell, and the names of disk faults. Used by `fsseg.run`."""

from __future__ import annotations

import errno
import os
from datetime import datetime, timezone
from pathlib import Path

from fsseg.cell.record import Cell
from fsseg.errors import UserError
from fsseg.process.files import create_exclusive, json_text, read_json, write_json
from fsseg.process.provenance import provenance


class Attempt:
    """The record of this start: provenance now, the reason for its end later. The caller holds the claim.

    A former start that did not come to note its end gets that noted.
    """

    def __init__(self, cell: Cell) -> None:
        folder = cell.directory / "attempts"
        number = max(_numbers(cell), default=0)
        last = read_json(folder / f"{number}.json")
        if last is not None and last.get("ended") is None:
            write_json(folder / f"{number}.json", {**last, "ended": "without a word: killed, or the machine went down"})
        self.record = {"started_at": now(), "ended": None, **provenance(), "pid": os.getpid()}
        number += 1
        while not create_exclusive(folder / f"{number}.json", json_text(self.record)):
            number += 1
        self.path = folder / f"{number}.json"

    def end(self, reason: str) -> None:
        """Note why it ended."""
        write_json(self.path, {**self.record, "ended": reason, "ended_at": now()})


def redone_by_this_job(cell: Cell) -> bool:
    """Whether redo=true has been obeyed: SLURM starts a requeued job with the same overrides."""
    if int(os.environ.get("SLURM_RESTART_COUNT") or 0) == 0:
        return False
    last = read_json(cell.directory / "attempts" / f"{max(_numbers(cell), default=0)}.json")
    return last is not None and last.get("slurm_job") == os.environ.get("SLURM_JOB_ID")


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def is_disk_fault(error: BaseException) -> bool:
    """Whether the disk is full, read-only, forbidden or broken: nothing that a traceback would explain."""
    return isinstance(error, OSError) and error.errno in _DISK_FAULTS


_DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG)


def disk_fault(error: OSError, directory: Path) -> UserError:
    """The same for the user, naming the run directory, or the file if it lies elsewhere."""
    name = str(error.filename or directory)
    where = directory if name.startswith(str(directory)) else name
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(
            f"{where}: cannot be written ({reason})",
            "free space and start again: the run goes on from its last checkpoint; or set output_dir= to another disk",
        )
    return UserError(f"{where}: cannot be used ({reason})", "mend the permissions, or set output_dir= elsewhere")


def _numbers(cell: Cell) -> list[int]:
    return [int(p.stem) for p in (cell.directory / "attempts").glob("*.json") if p.stem.isdigit()]
