"""Unpacks the official archives: never outside the folder, never half. Called by `prepare` after `download`.

An archive goes to a folder of its own first, so that a run never sees half a data set. When all of it is there the
folder gets another name, and its files are moved into place. A folder of either name means that a call was stopped: the
next one begins again, or goes on moving.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from fsseg.data.setup.download import Archive, check_room
from fsseg.errors import UserError

log = logging.getLogger(__name__)

_BLOCK = 1 << 20


def _folders(archive: Archive, root: Path) -> tuple[Path, Path]:
    """Where an archive is unpacked, and the name of that folder once all of it is there."""
    folder = root / ".fsseg" / "unpack"
    return folder / archive.name, folder / f"{archive.name}.whole"


def stopped_at(archive: Archive, root: Path) -> Path | None:
    """What a call left that was stopped while it unpacked an archive or moved its files into place, if one was."""
    return next((folder for folder in _folders(archive, root) if folder.exists()), None)


def is_unpacked(archive: Archive, root: Path) -> bool:
    """Whether all that remains of `unpack` is to move files, for which it needs no archive."""
    return _folders(archive, root)[1].exists()


def unpack(archive: Archive, path: Path, root: Path, still_ours: Callable[[], None] = lambda: None) -> int:
    """Unpack an archive below `root` and return the number of files put in place; a call that was stopped is completed.

    A plain file is moved there.

    Args:
        still_ours: asked before files are removed or put in place; raises if the folder is another process's by now.

    Raises:
        UserError: no room on the disk, the archive is damaged, or a member would leave the folder.
    """
    staging, whole = _folders(archive, root)
    still_ours()
    if archive.plain:
        (root / archive.into).mkdir(parents=True, exist_ok=True)
        _replace(path, root / archive.into / archive.name)
        return 1
    if not whole.exists():
        _fill(staging, archive, path, root)
        still_ours()  # unpacking takes minutes; whoever has the folder now unpacks in the same place
        os.replace(staging, whole)
    shutil.rmtree(staging, ignore_errors=True)
    number = sum(entry.is_file() for entry in whole.rglob("*"))
    _move_tree(whole, root / archive.into)
    shutil.rmtree(whole, ignore_errors=True)
    return number


def _fill(staging: Path, archive: Archive, path: Path, root: Path) -> None:
    """Unpack an archive into a folder of its own, which is gone again if that fails."""
    if staging.exists():
        shutil.rmtree(staging)
    check_room(root, archive.unpacked, f"unpack {archive.name}")
    staging.mkdir(parents=True)
    log.info("unpacking %s", path)
    try:
        for name, source in _members(path):
            inside = _inside(name, archive)
            if inside is None:
                continue
            if source is None:
                raise _escape_error(path, name, "is a link or a device")
            target = staging / inside
            target.parent.mkdir(parents=True, exist_ok=True)
            with source() as content, open(target, "wb") as file:
                shutil.copyfileobj(content, file, _BLOCK)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, OSError) as error:
        shutil.rmtree(staging, ignore_errors=True)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise UserError(f"no room left on the disk of {root.absolute()}", "free some and start again") from error
        raise UserError(f"{path} cannot be unpacked: {error}", f"remove {path} and start again") from error
    except UserError:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _members(path: Path) -> Iterator[tuple[str, Callable[[], IO[bytes]] | None]]:
    """Name of every member of a tar or zip except folders, and a function that opens it; None for links and devices."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                kind = (info.external_attr >> 16) & 0o170000
                if not info.is_dir():
                    yield info.filename, partial(archive.open, info) if kind in (0, 0o100000) else None
        return
    with tarfile.open(path) as tar:
        for member in tar:
            if not member.isdir():
                yield member.name, partial(_open_member, tar, member) if member.isfile() else None


def _open_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    content = tar.extractfile(member)
    assert content is not None  # it is a regular file
    return content


def _inside(name: str, archive: Archive) -> Path | None:
    """Path of a member below the target folder; None if it is not wanted."""
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name or "\0" in name:
        raise _escape_error(Path(archive.name), name, "would leave the folder")
    if archive.strip:
        try:
            pure = pure.relative_to(archive.strip)
        except ValueError:
            return None
    if archive.only and not any(str(pure).startswith(prefix) for prefix in archive.only):
        return None
    return Path(*pure.parts)


def _escape_error(path: Path, member: str, why: str) -> UserError:
    return UserError(f"{path}: member {member!r} {why}; not unpacked", "fetch the archive from its official place")


def _move_tree(source: Path, target: Path) -> None:
    """Move everything below `source` into `target`, whole folders where it can; existing files are replaced."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, target)
        return
    for entry in sorted(source.iterdir()):
        goal = target / entry.name
        if entry.is_dir() != goal.is_dir() and goal.exists():
            raise UserError(f"{goal} stands in the way of the archive's {goal.name}", "move it aside and start again")
        if entry.is_dir():
            _move_tree(entry, goal)
        else:
            _replace(entry, goal)


def _replace(source: Path, target: Path) -> None:
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        near = target.with_name(f".{target.name}.tmp")  # the folder is a link to another disk
        shutil.copyfile(source, near)
        os.replace(near, target)
