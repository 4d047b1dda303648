"""A folder on a remote store, through fsspec, for `fsseg.sweep.sync`: files arrive whole or not at all."""

from __future__ import annotations

import hashlib
import logging
import random
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fsseg.errors import UserError

log = logging.getLogger("fsseg.sync")
T = TypeVar("T")

_WHOLE_OBJECTS = {"s3", "s3a", "gs", "gcs", "abfs", "az", "memory"}  # readers see a put whole or not at all
_LONGEST_PAUSE = 60.0  # seconds
LARGEST = 64 << 20
"""Bytes of a record that is read from a store: a thousand times what a run writes."""
_SMALL = 32 << 20  # bytes: smaller files are read at once, so that a growing log is sent in one state


@dataclass(frozen=True)
class Listed:
    """A file as its store lists it: bytes, and a mark that changes when the file does."""

    size: int
    mark: str

    @classmethod
    def of(cls, about: Mapping[str, Any]) -> Listed:
        """From fsspec's description: sizes, times, tags, whatever the store tells; `time` is that of the last look."""
        told = repr(sorted((key, str(value)) for key, value in about.items() if key != "time"))
        return cls(int(about.get("size") or 0), hashlib.sha256(told.encode(errors="replace")).hexdigest()[:16])


class Store:
    """A folder on a store.

    Attributes:
        folder: where it lies, if it is one of this machine; else None.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        self.protocol = url.partition("://")[0]
        options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
        if self.protocol in ("s3", "s3a"):
            # botocore waits a minute for a connection and tries five times; here `Tries` sets pauses and attempts.
            options["config_kwargs"] = {"connect_timeout": 10, "read_timeout": 60, "retries": {"max_attempts": 1}}
        elif self.protocol in ("sftp", "ssh"):
            options["timeout"] = 20
        self.fs, root = fsspec.core.url_to_fs(url, **options)
        self.root = root.rstrip("/")
        from fsspec.implementations.local import LocalFileSystem

        self.folder = Path(self.root or "/") if isinstance(self.fs, LocalFileSystem) else None

    def send(self, source: Path, name: str) -> None:
        target = f"{self.root}/{name}"
        parent, _, last = target.rpartition("/")
        if self.protocol in _WHOLE_OBJECTS:
            self._put(source, target)
            return
        self.fs.makedirs(parent, exist_ok=True)
        temporary = f"{parent}/.{last[:60]}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            self._put(source, temporary)
            self.fs.mv(temporary, target)
        except BaseException:
            try:
                self.fs.rm_file(temporary)
            except Exception:
                log.debug("%s may be left behind", temporary)
            raise

    def _put(self, source: Path, target: str) -> None:
        if source.stat().st_size <= _SMALL:
            self.fs.pipe_file(target, source.read_bytes())
        else:
            self.fs.put_file(str(source), target)

    def remove(self, name: str) -> None:
        if self.fs.exists(f"{self.root}/{name}"):
            self.fs.rm_file(f"{self.root}/{name}")

    def list(self, below: str = "") -> dict[str, int]:
        """All files below a folder, relative to it, with their sizes in bytes."""
        return {name: listed.size for name, listed in self.look(below).items()}

    def look(self, below: str = "") -> dict[str, Listed]:
        """All files below a folder, relative to it."""
        root = f"{self.root}/{below}" if below else self.root
        prefix = root.lstrip("/") + "/"
        found = self.fs.find(root, detail=True)
        files = {str(path): about for path, about in found.items() if about.get("type") == "file"}
        return {p.lstrip("/").removeprefix(prefix): Listed.of(about) for p, about in files.items()}

    def fetch(self, name: str, target: Path) -> None:
        """Copy a file into a new one of this machine, past the memory: a checkpoint may be large.

        Raises:
            Exception: any of the store's; part of the file may be there then.
        """
        self.fs.get_file(f"{self.root}/{name}", str(target))

    def get(self, name: str) -> bytes | None:
        """Content of a file; None if there is none."""
        try:
            return bytes(self.fs.cat_file(f"{self.root}/{name}"))
        except FileNotFoundError:
            return None

    def read(self, names: Sequence[str]) -> dict[str, bytes | OSError]:
        """Contents; in place of one that is refused or is no file, its error. A file that has vanished is left out.

        Raises:
            Exception: any other of the store's.
        """
        content: dict[str, bytes | OSError] = {}
        for first in range(0, len(names), 64):
            paths = {f"{self.root}/{name}": name for name in names[first : first + 64]}
            found = self.fs.cat(list(paths), on_error="return")
            if not isinstance(found, dict):  # fsspec unwraps a single file
                found = {next(iter(paths)): found}
            by_tail = {path.lstrip("/"): name for path, name in paths.items()}
            for path, data in found.items():
                if isinstance(data, FileNotFoundError):
                    continue
                if isinstance(data, Exception) and not isinstance(data, (PermissionError, IsADirectoryError)):
                    raise data
                content[by_tail[str(path).lstrip("/")]] = data
        return content


@dataclass(frozen=True)
class Tries:
    """How hard to try.

    Attributes:
        attempts: of each operation.
        pause: seconds before the second attempt; doubles with each.
        deadline: on `time.monotonic`; no attempt starts after it.
    """

    attempts: int = 4
    pause: float = 1.0
    deadline: float | None = None

    def call(self, operation: Callable[[], T]) -> T:
        """Repeat an operation until it works.

        Raises:
            Exception: that of the last attempt, or one for which another attempt is useless.
        """
        for attempt in range(1, self.attempts + 1):
            if self.deadline is not None and time.monotonic() >= self.deadline:
                raise TimeoutError("out of time")
            try:
                return operation()
            except (UserError, ImportError, PermissionError):
                raise  # another attempt does not help
            except Exception as error:
                if attempt == self.attempts:
                    raise
                # cells that end together try again at different times
                wait = min(self.pause * 2.0 ** min(attempt - 1, 20), _LONGEST_PAUSE) * random.uniform(0.8, 1.2)
                if self.deadline is not None:
                    wait = min(wait, max(0.0, self.deadline - time.monotonic()))
                log.debug("attempt %d: %s; again in %.1f s", attempt, words(error), wait)
                time.sleep(wait)
        raise AssertionError("attempts is at least 1")


def words(error: BaseException) -> str:
    if isinstance(error, UserError):
        return f"{error.what} ({error.fix})"
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:300].rstrip(": ")
