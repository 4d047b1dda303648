"""Reads and writes whole files: a reader never sees half a file, whoever writes it. Every room writes through this.

Files below a folder given to `stage` are prepared in a folder of this process alone, and renamed from there. Whoever
removes that folder thereby stops the process from writing: a rename without its source fails, however late it comes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object from a file; None if the file is absent or does not hold one."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, 64 hex digits.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class ClaimLost(Exception):
    """The folder belongs to another process by now; nothing was written, and nothing may be written any more."""


_staging: dict[str, Path] = {}  # absolute folder -> where files below it are prepared


def stage(folder: Path, staging: Path | None) -> None:
    """From now on prepare all files below `folder` in `staging`, on the same file system; None ends that.

    Once `staging` is gone, every function here that would write below `folder` raises `ClaimLost`.
    """
    if staging is None:
        _staging.pop(os.path.abspath(folder), None)
    else:
        _staging[os.path.abspath(folder)] = staging


def staging_of(path: Path) -> Path | None:
    """Where a file is to be prepared that will be named `path`; None: beside it."""
    if not _staging:
        return None
    place = os.path.abspath(path)
    while (parent := os.path.dirname(place)) != place:
        if (found := _staging.get(parent)) is not None:
            return found
        place = parent
    return None


@contextlib.contextmanager
def prepared(path: Path) -> Iterator[Path]:
    """A new name for a file or folder that will be renamed to `path` in the block; what is left of it is removed.

    Raises:
        ClaimLost: `path` is below a folder that was given to `stage`, and the place for preparing is gone.
    """
    staging = staging_of(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = (staging or path.parent) / f".{path.name[:60]}.{uuid.uuid4().hex}.tmp"
    try:
        yield temporary
    except FileNotFoundError:
        if staging is not None and not staging.is_dir():
            raise ClaimLost(f"another process has taken {staging.parent} over") from None
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file so that a reader sees the old content or the new, never a part.

    The data goes to a temporary name, is flushed to the disk, then renamed.

    Raises:
        ClaimLost: see `stage`.
    """
    with prepared(path) as temporary:
        _write_new(temporary, data)
        os.replace(temporary, path)


def _write_new(path: Path, data: bytes | str) -> None:
    with path.open("xb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, value: Any) -> None:
    """`write_atomic` of indented JSON, keys in the order given."""
    write_atomic(path, json_text(value))


def json_text(value: Any) -> str:
    """Indented JSON, keys in the order given."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def create_exclusive(path: Path, data: str) -> bool:
    """Create a file with its content in one step; False if the name is taken. Of many callers exactly one gets True.

    A finished file is linked to the name: with O_EXCL readers could see an empty file, and old NFS does not support it.
    The number of links shows whether it worked: over NFS the reply to `link` may get lost although the link was made.
    """
    with prepared(path) as temporary:
        _write_new(temporary, data)
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno in _NO_LINKS:
                return _create_without_links(path, data)
            if os.stat(temporary).st_nlink != 2:
                raise
        return os.stat(temporary).st_nlink == 2


# Errors of file systems without hard links (exFAT, some FUSE).
_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK)


def _create_without_links(path: Path, data: str) -> bool:
    try:
        _write_new(path, data)
    except FileExistsError:
        return False
    return True


def _read_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


UMASK = _read_umask()
"""File mode mask of this process; read once, at import, because reading it changes it for a moment."""
