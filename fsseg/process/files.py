"""Reads and writes whole files: a reader never sees half a file, whoever writes it. Every room writes through this."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
import uuid
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


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file so that a reader sees the old content or the new, never a part.

    The data goes to a temporary name in the same folder, is flushed to the disk, then renamed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:60]}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~UMASK)  # mkstemp makes it private; colleagues read the same folder
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


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
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:60]}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
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
    finally:
        temporary.unlink(missing_ok=True)


# Errors of file systems without hard links (exFAT, some FUSE).
_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK)


def _create_without_links(path: Path, data: str) -> bool:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        return False
    return True


def _read_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


UMASK = _read_umask()
"""File mode mask of this process; read once, at import, because reading it changes it for a moment."""
