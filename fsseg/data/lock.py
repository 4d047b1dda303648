"""One process at a time in a folder, over all hosts that share it. Called by `prepare`.

The lock is a file created exclusively and touched at every beat; one that has not been touched for the lease is stale,
its owner dead, and is taken over. Times are those of the file server, so that clocks of hosts need not agree. `flock`
would do on one host; shared folders do not all carry it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from fsseg.errors import UserError

log = logging.getLogger(__name__)

LEASE_SECONDS = 120.0
_BEAT_SECONDS = 15.0


@contextlib.contextmanager
def folder_lock(
    path: Path, lease: float = LEASE_SECONDS, beat: float = _BEAT_SECONDS, timeout: float | None = None
) -> Iterator[None]:
    """Hold the lock file `path`; wait while another process does.

    Args:
        lease: seconds without a beat after which a lock counts as left behind.
        beat: seconds between two beats.
        timeout: longest wait in seconds; None waits as long as the other process lives.

    Raises:
        UserError: the wait took longer than `timeout`.
        OSError: the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    owner = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "token": uuid.uuid4().hex})
    start, told = time.monotonic(), False
    while not _create(path, owner):
        content, age = _read(path)
        if content is not None and age > lease:
            log.warning("%s was left behind %.0f s ago by %s; taking it over", path, age, content)
            _remove(path, content)
            continue
        if not told:
            log.info("another process prepares this data (%s); waiting for it", content)
            told = True
        if timeout is not None and time.monotonic() - start > timeout:
            raise UserError(
                f"{path} is held by another process: {content}",
                f"wait for it; if it is dead the lock frees itself after {lease:.0f} s",
            )
        time.sleep(min(1.0, beat / 4))
    stop = threading.Event()
    keeper = threading.Thread(target=_beat, args=(path, owner, stop, beat), daemon=True)
    keeper.start()
    try:
        yield
    finally:
        stop.set()
        keeper.join()
        _remove(path, owner)


def _create(path: Path, owner: str) -> bool:
    """Put a complete lock file in place, or find one there: `link` fails if the name exists, on NFS too."""
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    draft.write_text(owner)
    try:
        os.link(draft, path)
        return True
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        try:
            with open(path, "x") as file:
                file.write(owner)
            return True
        except FileExistsError:
            return False
    finally:
        draft.unlink()


def _read(path: Path) -> tuple[str | None, float]:
    """Owner of a lock and seconds since its last beat, by the file server's clock; (None, 0) if it is gone."""
    probe = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        content, beat = path.read_text(), path.stat().st_mtime
        probe.write_text("")
        return content, probe.stat().st_mtime - beat
    except FileNotFoundError:
        return None, 0.0
    finally:
        probe.unlink(missing_ok=True)


def _remove(path: Path, owner: str) -> None:
    """Remove the lock if it is still `owner`'s.

    It is first renamed to a name of its own: of several processes that find it stale one wins, and one that renamed a
    newer owner's lock sees so and puts it back.
    """
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        if path.read_text() != owner:
            return
        os.rename(path, aside)
    except FileNotFoundError:
        return
    if aside.read_text() != owner:
        with contextlib.suppress(OSError):
            os.link(aside, path)
    aside.unlink()


def _beat(path: Path, owner: str, stop: threading.Event, seconds: float) -> None:
    while not stop.wait(seconds):
        try:
            if path.read_text() != owner:
                log.warning("%s was taken over by another process", path)
                return
            os.utime(path)
        except OSError as error:  # the folder may be back at the next beat
            log.warning("%s: %s", path, error)
