"""Keeps a process that lost its claim from writing, however late it wakes. Entered by `fsseg.run`, once it has a claim.

Between a look at the claim and a write, a process may be stopped for an hour. Therefore whoever works in a run
directory prepares every file in a folder of its own there (`.work-<token>`) and renames it into place, and whoever
takes the directory over removes the folders of all others first. A rename whose source or target is gone fails in the
file system itself: what a sleeper was about to write, or to move away, stays as the new holder has it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from fsseg.cell.claim import Claim
from fsseg.cell.record import Cell, RunDirectory
from fsseg.process.files import ClaimLost, stage

log = logging.getLogger("fsseg")

_WORK = ".work-"
_ASIDE = "aside"


@contextlib.contextmanager
def fenced(cell: RunDirectory, claim: Claim) -> Iterator[Path]:
    """Hold the directory against all who had it before; gives the folder in which files are prepared.

    Raises:
        ClaimLost: the claim is another's by now; in the block, from whatever writes.
        OSError: the directory cannot be written to.
    """
    work = cell.directory / f"{_WORK}{claim.mine.token}"
    work.mkdir()
    try:
        # Ours still, so whoever takes over from here on finds the folder and removes it.
        claim.check()
        _expel_others(cell.directory, work)
        stage(cell.directory, work)
        yield work
    finally:
        claim.rest()  # its thread writes the status
        stage(cell.directory, None)
        with contextlib.suppress(OSError):  # then the next holder does it
            _put_back(cell.directory, work)
            shutil.rmtree(work)


def _expel_others(directory: Path, work: Path) -> None:
    """Take the folders of those who had the directory before into ours, and put back what one was moving away.

    May itself be cut short or overtaken at any point: whoever comes next takes our folder and does the rest.
    """
    for other in directory.glob(f"{_WORK}*"):
        if other != work:
            with _ours(work):
                _move(other, work / uuid.uuid4().hex, work)
    _put_back(directory, work)


def _put_back(directory: Path, work: Path) -> None:
    """Put back what somebody was setting aside when he was cut short; what is there again costs nothing."""
    for aside in sorted(work.rglob(_ASIDE)):
        for path in _in_turn(aside, first="identity.json", last="result.json"):
            try:
                os.rename(path, directory / path.name)  # an empty folder gives way
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                kept = directory / f".left-{uuid.uuid4().hex}"
                os.rename(path, kept)
                log.warning("%s was set aside and is there again: the old one is kept as %s", path.name, kept)


def set_aside(cell: Cell, work: Path) -> None:
    """Move the run in the directory to `.replaced`, where it stays until a new result is there.

    Claim, log, attempts and what is known of a copy stay: they belong to the directory. The result goes first and the
    identity last, so that a reader never takes what is left for a result or for a run with other settings. If this is
    cut short, the next holder puts everything back.

    Args:
        cell: the caller holds its claim.
        work: from `fenced`.

    Raises:
        ClaimLost: another process has taken the directory over.
    """
    if cell.result_file.exists():
        drop(cell.replaced, work)  # left over from before this result
    aside, staying = work / _ASIDE, (cell.claim_file, cell.log_file, cell.attempts, cell.sync_file)
    with _ours(work):
        aside.mkdir()
        for path in _in_turn(cell.directory, first=cell.result_file.name, last=cell.identity_file.name):
            if path not in staying and not path.name.startswith("."):
                os.rename(path, aside / path.name)
    if (cell.replaced / cell.result_file.name).exists():  # what is set aside now never came to a result
        drop(aside, work)
        return
    drop(cell.replaced, work)
    with _ours(work):
        os.rename(aside, cell.replaced)


def is_work(name: str) -> bool:
    """Whether a file, by its name in a run directory, is one that a killed process prepared: no part of a run.

    What was being set aside is a run, which the next holder puts back.
    """
    first, *rest = name.split("/")
    return first.startswith(_WORK) and _ASIDE not in rest


def put(source: Path, target: Path, work: Path) -> None:
    """Move a file that was prepared in `work` to its place in the run directory, whatever file is there.

    Raises:
        ClaimLost: another process has taken the directory over.
        OSError: there is a folder in its place.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with _ours(work):
        os.replace(source, target)


def drop(path: Path, work: Path) -> None:
    """Remove a file or folder of the run directory, if it is there.

    Args:
        work: from `fenced`.

    Raises:
        ClaimLost: another process has taken the directory over.
    """
    gone = work / uuid.uuid4().hex
    with _ours(work):
        if not _move(path, gone, work):
            return
    if gone.is_dir():
        shutil.rmtree(gone, ignore_errors=True)
    else:
        gone.unlink(missing_ok=True)


def _move(source: Path, target: Path, work: Path) -> bool:
    """Rename; False if there is no source.

    Raises:
        FileNotFoundError: our own folder is gone.
    """
    try:
        os.rename(source, target)
    except FileNotFoundError:
        os.stat(work)
        return False
    return True


@contextlib.contextmanager
def _ours(work: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        if work.is_dir():
            raise
        raise ClaimLost(f"another process has taken {work.parent} over") from None


def _in_turn(folder: Path, first: str, last: str) -> list[Path]:
    """The entries of a folder, if there is one; two of them at their places."""
    try:
        entries = sorted(folder.iterdir())
    except FileNotFoundError:
        return []
    return sorted(entries, key=lambda path: {first: 0, last: 2}.get(path.name, 1))
