"""Reads and writes whole files: a reader never sees half a file, whoever writes it. Every room writes through this.

Files below a folder given to `stage` are prepared in a folder of this process alone, and renamed from there. Whoever
removes that folder thereby stops the process from writing: a rename without its source fails, however late it comes.

What somebody else may have written is read through this too: a reader never waits for what is no file, and never takes
in more than a file of its kind can hold.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
import uuid
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

RECORD_BYTES = 4 << 20
"""Most that is read of result.json, status.json and the other records of a cell; whole ones have some kB."""
CONFIG_BYTES = 1 << 20
"""Of a config.yaml; whole ones have some kB."""
METRICS_BYTES = 1 << 30
"""Of a metrics.csv; a million rows have about 100 MB."""
EPISODE_LIST_BYTES = 256 << 20
"""Of a list of episodes: about a hundred bytes an episode."""
EPISODES_BYTES = 512 << 20
"""Of an episodes.npz or episodes.part; a million episodes of three rounds have 80 MB."""
PICTURE_BYTES = 64 << 20
"""Of a picture that a run drew."""

_DEEPEST = 64  # levels of a YAML file; a configuration has four


class Refused(OSError):
    """A file that is not read although the system would let us; `strerror` says why."""


def open_regular(path: str | Path, limit: int | None = None) -> int:
    """The descriptor of a file opened for reading. Never waits, as `open` does for the other end of a FIFO.

    Args:
        limit: bytes that it may have; None for any number.

    Raises:
        Refused: it is no regular file, or larger than the limit.
        OSError: it cannot be opened.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise Refused(errno.EINVAL, "a socket, no file", str(path)) from None
        raise
    about = os.fstat(handle)
    why = ""
    if not stat.S_ISREG(about.st_mode):
        why = next(what for is_it, what in _OTHER_KINDS if is_it(about.st_mode))
    elif limit is not None and about.st_size > limit:
        why = f"{about.st_size / 1e6:.1f} MB, more than the {limit / 1e6:.1f} MB that such a file may have"
    if why:
        os.close(handle)
        raise Refused(errno.EINVAL, why, str(path))
    return handle


_OTHER_KINDS = (
    (stat.S_ISDIR, "a folder, no file"),
    (stat.S_ISFIFO, "a FIFO, no file"),
    (lambda mode: True, "a device, no file"),
)


def read_file(path: str | Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises:
        Refused: it is no regular file, or larger than the limit.
        OSError: it cannot be read.
    """
    handle = open_regular(path, limit)
    try:
        left, parts = os.fstat(handle).st_size, []
        while left > 0 and (part := os.read(handle, left)):
            parts.append(part)
            left -= len(part)
    finally:
        os.close(handle)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_json(path: Path, limit: int = RECORD_BYTES) -> dict[str, Any] | None:
    """A JSON object from a file; None if the file is absent or does not hold one."""
    try:
        value = json.loads(read_file(path, limit))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def read_yaml(path: Path) -> Any:
    """A YAML file as JSON could say it too: mappings with names, lists, texts, finite numbers, true, false, null.

    Anchors (with which a page of text stands for more than a memory holds), tags and depth are refused before anything
    is built: no file that fsseg writes has them.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no YAML of this kind; the text says why in one line.
    """
    text = read_file(path, CONFIG_BYTES).decode()
    if (quick := _yaml_by_key(text)) is not None:
        return quick
    return json.loads(_yaml_as_json(text))


_KEY_OF_A_CONFIGURATION = re.compile(r"^(?=[A-Za-z_]\w*:(?:\s|$))", re.MULTILINE)
_LONGEST_PART = 10_000  # characters: what is kept stays small
_NOT_A_KEY = re.compile(r"^(?:---|\.\.\.|%|<<)", re.MULTILINE)


def _yaml_by_key(text: str) -> dict[str, Any] | None:
    """As `read_yaml`, for a mapping whose keys begin the lines; None for any other text, or if a part is refused.

    Thousands of cells have the same protocol, data set and model, and YAML takes milliseconds: each part is read once.
    """
    head, *parts = _KEY_OF_A_CONFIGURATION.split(text)
    if head or _NOT_A_KEY.search(text) or any(len(part) > _LONGEST_PART for part in parts):
        return None
    found: dict[str, Any] = {}
    for part in parts:
        try:
            value = json.loads(_part_as_json(part))
        except ValueError:  # a text or a list that goes on at the start of the next line: only the whole tells
            return None
        if not isinstance(value, dict) or len(value) != 1:
            return None
        found |= value
    return found or None


def _yaml_as_json(text: str) -> str:
    """Raises: ValueError, as `read_yaml` says."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    try:
        for event in yaml.parse(text, Loader=loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if getattr(event, "anchor", None) is not None or getattr(event, "tag", None) is not None:
                raise ValueError("it has anchors or tags")
            if depth > _DEEPEST:
                raise ValueError("it is nested too deeply")
        return json.dumps(yaml.load(text, Loader=loader), allow_nan=False)
    except yaml.YAMLError as error:
        raise ValueError(str(error).splitlines()[0]) from None
    except TypeError as error:
        raise ValueError(f"it has values that are no configuration ({error})") from None


_part_as_json = lru_cache(maxsize=1024)(_yaml_as_json)


def entries_below(
    folder: str | Path, skip: Callable[[os.DirEntry[str]], bool] = lambda entry: False
) -> Iterator[os.DirEntry[str]]:
    """Everything below a folder that is no folder itself, at any depth. Links are given, not entered.

    Args:
        skip: what is left out, a folder with all that is in it.

    Raises:
        OSError: a folder cannot be read; one that has vanished counts as empty.
    """
    waiting = [os.fspath(folder)]
    while waiting:
        with contextlib.suppress(FileNotFoundError), os.scandir(waiting.pop()) as listing:
            for entry in sorted(listing, key=lambda e: e.name):
                if skip(entry):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                else:
                    yield entry


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
    if staging is not None and not staging.is_dir():
        raise ClaimLost(f"another process has taken {staging.parent} over")
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


def is_leftover(name: str) -> bool:
    """Whether a file of this name is one of `prepared`, or a claim that was taken away: killed processes leave them."""
    return name.startswith(".") and name.endswith((".tmp", ".old")) and len(name) > len("..tmp")


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


def open_anew(path: Path, content: bytes = b"") -> BinaryIO:
    """A new file of this name and content, open at its end, to be appended to.

    A process that lost the run and still has the former file of this name open appends to a file that nobody sees.

    Raises:
        ClaimLost: see `stage`.
    """
    with prepared(path) as new:
        file = new.open("xb")
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.replace(new, path)  # once it is open: by its name it may be another's a moment later
        except BaseException:
            file.close()
            raise
    return file


def write_json(path: Path, value: Any) -> None:
    """`write_atomic` of indented JSON, keys in the order given."""
    write_atomic(path, _json_bytes(value))


def json_text(value: Any) -> str:
    """Indented JSON, keys in the order given."""
    return _json_bytes(value).decode()


def _json_bytes(value: Any) -> bytes:
    """The text of `json.dumps(indent=2)`, which itself is slow and holds a string for every token."""
    try:
        return msgspec.json.format(json.dumps(value, allow_nan=False).encode(), indent=2) + b"\n"
    except msgspec.DecodeError:  # a name of a file that is not UTF-8 makes half a character, which it does not take
        return json.dumps(value, indent=2, allow_nan=False).encode() + b"\n"


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
