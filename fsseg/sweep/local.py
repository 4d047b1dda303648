"""A run in a folder of this machine as a copy that `fsseg.sweep.copies` can put into place: copied, moved or linked.

`fsseg merge` uses it. Nothing is written in a folder that runs are copied from, so it may be read-only. A run that is
moved is removed only once each of its files is in place with the same content.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import uuid
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from fsseg.cell import uses
from fsseg.cell.claim import LEASE_SECONDS, Busy, acquire
from fsseg.cell.fence import is_work
from fsseg.cell.record import RunDirectory
from fsseg.process.files import entries_below, is_leftover, sha256_of
from fsseg.sweep.copies import PARTS, RunCopy
from fsseg.sweep.held import files_of, shown
from fsseg.sweep.store import Listed

ASIDE = re.compile(r"\.merged-[0-9a-f]{32}")
"""Name of a run directory that was moved and is being deleted."""
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK)


class How(str, Enum):
    """How files come from a folder of this machine."""

    COPY = "copy"
    MOVE = "move"
    LINK = "link"


@dataclass
class LocalRun:
    """The files of a run directory, as a `fsseg.sweep.copies.CopyPlace`.

    Attributes:
        copied: how many files were copied although they were to be linked.
        left_out: names of what cannot be copied: links out of the run, and links that lead nowhere.
    """

    run: RunDirectory
    how: How
    copied: int = 0
    left_out: list[str] = field(default_factory=list)

    def look(self, below: str = "") -> dict[str, Listed]:
        """The files that may come; `below` does not count, as each run is a place of its own."""
        files, self.left_out = files_of(self.run, checkpoints=True, takes=lambda name: True)
        return {name: Listed(size, f"{size} {changed}") for name, (size, changed) in files.items()}

    def fetch(self, name: str, target: Path) -> None:
        """Make a new file of one of the run: a second name of the same file where files are linked, else a copy.

        Raises:
            OSError: it cannot be read, or written.
        """
        source = Path(os.path.realpath(self.run.directory / name))
        if self.how != How.COPY and (self.how == How.MOVE or not _grows(name)):
            try:
                os.link(source, target)
                return
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
            self.copied += self.how == How.LINK
        shutil.copyfile(source, target)
        about = source.stat()
        os.utime(target, ns=(about.st_atime_ns, about.st_mtime_ns))


def _grows(name: str) -> bool:
    """Whether a run that goes on writes into the file itself: a second name would change with it."""
    first = name.partition("/")[0]
    return first in ("train.log", "metrics.csv", "tensorboard", "profile", "trackers") or name.endswith(".part")


def local_copy(run: RunDirectory, how: How) -> RunCopy:
    """
    Raises:
        OSError: a folder of the run cannot be read.
    """
    place = LocalRun(run, how)
    return RunCopy(place, "", place.look(), run)


def remove_moved(copy: RunCopy, here: RunDirectory, root: Path) -> str:
    """Remove a run directory whose copy is complete.

    Args:
        copy: from `local_copy`.
        here: where its copy lies.
        root: the folder that was named; empty folders are removed up to it.

    Returns:
        Why it stays; empty if it was removed.
    """
    run, place = copy.records, copy.place
    if not Path(os.path.realpath(run.directory)).is_relative_to(os.path.realpath(root)) or run.directory.is_symlink():
        return "it lies behind a link"
    if run.replaced.exists() and not run.result_file.exists():
        return "it has a former result of its cell, in .replaced"
    try:
        for name in copy.files:
            if not _same_content(run.directory / name, here.directory / name):
                return f"its {shown(name)} differs from the one in {here.directory}"
        claim = acquire(run.claim_file, LEASE_SECONDS)
    except Busy as busy:
        return f"{busy.holder} works on it"
    except OSError as error:
        return f"it cannot be removed ({error.strerror})"
    try:
        if place.look() != copy.files:
            return "it changed meanwhile"
        if stays := _not_copied(copy):
            return f"these were not copied: {', '.join(map(shown, stays[:5]))}"
        aside = run.directory.with_name(f".merged-{uuid.uuid4().hex}")
        os.rename(run.directory, aside)
    except OSError as error:
        return f"it cannot be removed ({error.strerror})"
    finally:
        claim.release()
    shutil.rmtree(aside, ignore_errors=True)
    drop_empty(run.directory.parent, root)
    return ""


def _not_copied(copy: RunCopy) -> list[str]:
    """What would be lost with the run directory: links out of it, and files that never travel and are somebody's.

    Raises:
        OSError: a folder cannot be read.
    """
    run = copy.records
    root = os.path.realpath(run.directory)
    goes = {run.claim_file.name, run.sync_file.name, *copy.files}
    if run.result_file.exists():  # it is behind these
        goes.add(run.episodes_part.name)
    below = (f"{uses.FOLDER}/", f"{PARTS}/", f"{run.replaced.name}/")
    names = [os.path.relpath(entry.path, root) for entry in entries_below(root)]
    return [
        name
        for name in sorted(names)
        if not (name in goes or name.startswith(below) or is_work(name) or is_leftover(name.rpartition("/")[2]))
    ]


def drop_empty(folder: Path, root: Path) -> None:
    """Remove a folder and those above it, up to `root`, as far as they are empty."""
    with contextlib.suppress(OSError):
        while folder != root and root in folder.parents:
            folder.rmdir()
            folder = folder.parent


def _same_content(one: Path, other: Path) -> bool:
    """Raises: OSError: one cannot be read."""
    try:
        first, second = one.stat(), other.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(first, second) or (first.st_size == second.st_size and sha256_of(one) == sha256_of(other))
