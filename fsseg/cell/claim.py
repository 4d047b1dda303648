"""The lease: a folder belongs to the one process that holds its claim file. `fsseg.run` takes and keeps a cell's
`claim.json`, `fsseg prepare` holds a data folder while it fetches.

The file is created exclusively and renewed by a thread, which sets its modification time by the shared folder's own
clock. No wall clock is trusted. A process that finds a claim older than the lease watches it for a few more renewals by
a monotonic clock, then removes it by a rename, which succeeds for one process only. The holder looks at the file before
each write, so a holder that slept through its lease notices and stops. It may also fall asleep between the look and the
write: `fsseg.cell.fence` makes such a write fail.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from fsseg.process.files import RECORD_BYTES, ClaimLost, create_exclusive, json_text, open_regular, read_file
from fsseg.process.provenance import slurm_name

log = logging.getLogger("fsseg")

LEASE_SECONDS = 300.0
"""Of a claim that states none of its own, and of those that no configuration speaks of."""
_LONGEST_LEASE = 1e8  # seconds, three years: a claim that states more states nothing
_MOST_SECONDS_BETWEEN_RENEWALS = 10.0
_RENEWALS_WATCHED = 3  # how many must fail to come before an old claim counts as stale
_HERE = ("host", "boot", "pid_namespace")  # equal fields mean: the same numbers of processes
_ABSENT_PAUSES = (0.0, 0.2, 0.8)  # a process that took the wrong claim away puts it back at once


class Busy(Exception):
    """Another process holds the claim."""

    def __init__(self, holder: Holder) -> None:
        super().__init__(f"held by {holder}")
        self.holder = holder


@dataclass(frozen=True)
class Holder:
    """Who holds a claim, as written in the file. `raw` is the file's content; the token in it makes it unique."""

    raw: str
    fields: dict[str, Any]

    @property
    def token(self) -> str:
        """Different for every claim ever taken."""
        return str(self.fields["token"])

    @property
    def lease(self) -> float:
        """Seconds."""
        return _positive(self.fields.get("lease_seconds"), LEASE_SECONDS)

    @property
    def interval(self) -> float:
        """Seconds between renewals."""
        return _positive(self.fields.get("interval_seconds"), _MOST_SECONDS_BETWEEN_RENEWALS)

    @property
    def is_here(self) -> bool:
        """Whether it is a process of this machine, as it numbers them now."""
        mine = _this_process()
        return all(self.fields.get(k) is not None and self.fields.get(k) == mine[k] for k in _HERE)

    def __str__(self) -> str:
        if not self.fields:
            return "an unknown process"
        name = self.fields.get("slurm_name") or self.fields.get("slurm_job")
        job = f", SLURM job {name}" if name else ""
        return f"process {self.fields.get('pid')} on {self.fields.get('host')}{job}"


def read_holder(path: Path) -> Holder | None:
    """Who holds the claim file; None if there is none."""
    try:
        raw = read_file(path, RECORD_BYTES).decode("utf-8", "replace")
    except FileNotFoundError:
        return None
    try:
        fields = json.loads(raw)
    except (ValueError, RecursionError):
        fields = None
    return Holder(raw, fields if isinstance(fields, dict) else {})


def is_gone(holder: Holder) -> bool:
    """Whether the holder is known to have ended: a process of this machine, or an earlier start of our SLURM job."""
    theirs, mine = holder.fields, _this_process()
    if holder.is_here:
        return process_start(theirs.get("pid")) != theirs.get("pid_start")
    same_job = theirs.get("slurm_job") is not None and all(
        theirs.get(k) == mine[k] for k in ("slurm_job", "slurm_cluster")
    )
    return same_job and _number(theirs.get("slurm_restart")) < _number(mine["slurm_restart"])


def is_stale(path: Path, holder: Holder, sleep: Callable[[float], None] = time.sleep) -> bool:
    """Whether the claim has not been renewed for its lease.

    If the claim looks old, the holder may still live: the clock may have jumped. So the call waits for some renewals
    before it answers. A claim dated in the future (the clock was set back) is watched for a whole lease.
    """
    seen = _modified(path)
    if seen is None:
        return False
    age = _folder_clock(path.parent) - seen
    if abs(age) <= holder.lease:
        return False
    end = time.monotonic() + (_RENEWALS_WATCHED * holder.interval if age > 0 else holder.lease)
    while time.monotonic() < end:
        sleep(min(holder.interval / 4, 1.0))
        if _modified(path) != seen:
            return False
    return True


@dataclass(frozen=True)
class ClaimView:
    """A claim at one moment.

    Attributes:
        gone: its holder is known to have ended.
        renewed: seconds since the epoch.
    """

    holder: Holder
    gone: bool
    renewed: float

    def alive(self, now: float | None = None) -> bool:
        """Whether its holder works, by this machine's clock. It may be off, so `acquire` checks old claims closely."""
        return not self.gone and (time.time() if now is None else now) - self.renewed <= self.holder.lease


def look(path: Path) -> ClaimView | None:
    """The claim as it is now; None if there is none that can be read."""
    try:
        holder = read_holder(path)
        return None if holder is None else ClaimView(holder, is_gone(holder), path.stat().st_mtime)
    except OSError:
        return None


def take_away(path: Path, holder: Holder) -> bool:
    """Remove the claim of `holder`, and no other; False if it is gone already."""
    now = read_holder(path)
    if now is None or now.raw != holder.raw:
        return False
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.old")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return False
    try:
        taken = read_holder(aside)
        if taken is not None and taken.raw == holder.raw:
            return True
        # Another process replaced it between the look and the rename: that claim is alive, put it back.
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
        return False
    finally:
        aside.unlink(missing_ok=True)


def acquire(path: Path, lease: float) -> Claim:
    """Take the claim, if need be from a holder that is gone or stale; `Claim.start` then renews it.

    Args:
        path: the claim file.
        lease: seconds without renewal after which others may take it.

    Raises:
        Busy: another process holds it.
        OSError: the folder cannot be written to.
    """
    fields = {
        "token": uuid.uuid4().hex, **_this_process(), "lease_seconds": lease,
        "interval_seconds": min(lease / 10, _MOST_SECONDS_BETWEEN_RENEWALS), "taken_at": time.time(),
    }  # fmt: skip
    mine = Holder(json_text(fields), fields)
    while True:
        if create_exclusive(path, mine.raw):
            return Claim(path, mine)
        holder = read_holder(path)
        if holder is None:
            continue  # released between the two lines
        gone = is_gone(holder)
        if not gone and not is_stale(path, holder):
            if read_holder(path) is None:
                continue
            raise Busy(holder)
        if take_away(path, holder):
            log.info(
                "taking %s over from %s, which %s",
                path.parent,
                holder,
                "has ended" if gone else "gives no sign of life",
            )


@contextlib.contextmanager
def held(path: Path, lease: float) -> Iterator[Claim]:
    """Hold the claim for the block; wait first while another process holds it. Ask `Claim.check` before writing.

    Args:
        path, lease: as for `acquire`.

    Raises:
        OSError: the folder cannot be written to.
    """
    told = False
    while True:
        try:
            claim = acquire(path, lease)
            break
        except Busy as busy:
            if not told:
                log.info("%s is %s; waiting for it", path.parent, busy)
                told = True
            time.sleep(min(1.0, busy.holder.interval / 4))
    claim.start()
    try:
        yield claim
    finally:
        claim.release()


class Claim:
    """A claim we hold."""

    def __init__(self, path: Path, mine: Holder) -> None:
        self.path, self.mine = path, mine
        self._lock = threading.RLock()
        self._lost: str | None = None
        self._released = False
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        # Renewal goes by the open file, not by its name: a claim of another process under our name is never renewed.
        self._file = os.open(path, os.O_RDWR)
        self.check()

    def start(self, on_beat: Callable[[], None] = lambda: None) -> None:
        """Renew from a thread until `release`; `on_beat` is called after every renewal."""
        self._thread = threading.Thread(target=self._renew, args=(on_beat,), name="fsseg claim", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Look at the file.

        Raises:
            ClaimLost: it is not ours any more.
        """
        with self._lock:
            if self._lost is None and not self._released:
                self._lost = self._look()
            if self._lost is not None:
                raise ClaimLost(self._lost)

    def rest(self) -> None:
        """Renew no more, and wait for what the thread is about."""
        self._end.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def release(self) -> None:
        """Give it up; does nothing if another process has taken it."""
        self.rest()
        with self._lock:
            if not self._released:
                self._released = True
                with contextlib.suppress(OSError):
                    take_away(self.path, self.mine)
                os.close(self._file)

    def _renew(self, on_beat: Callable[[], None]) -> None:
        while not self._end.wait(self.mine.interval):
            try:
                with self._lock:
                    os.utime(self._file)
                    self.check()
                on_beat()
            except ClaimLost:
                return  # the loops ask `check` at every step
            except OSError as error:
                log.debug("the claim could not be renewed: %s", error)  # a network file system may come back

    def _look(self) -> str | None:
        for pause in _ABSENT_PAUSES:
            time.sleep(pause)
            holder = read_holder(self.path)
            if holder is not None:
                return None if holder.raw == self.mine.raw else f"taken over by {holder}"
        # Not made again: another process may have had the folder meanwhile, and be done with it.
        return f"the claim file {self.path} was removed"


def _this_process() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "pid_start": process_start(os.getpid()),
        "boot": _read("/proc/sys/kernel/random/boot_id"),
        "pid_namespace": _pid_namespace(),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "slurm_name": slurm_name(),
        "slurm_cluster": os.environ.get("SLURM_CLUSTER_NAME"),
        "slurm_restart": os.environ.get("SLURM_RESTART_COUNT"),
    }


def process_start(pid: Any) -> str | None:
    """When a process of this machine started, in its kernel's ticks; None if there is none or it is a zombie."""
    text = _read(f"/proc/{pid}/stat") if isinstance(pid, int) else None
    if text is None:
        return None
    after_name = text.rpartition(")")[2].split()  # the name may hold spaces and brackets
    return None if after_name[0] in ("Z", "X") else after_name[19]


@lru_cache(maxsize=1)
def _pid_namespace() -> str | None:
    """Namespace of the process numbers: two containers may each have a process 7."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _modified(path: Path) -> float | None:
    try:
        handle = open_regular(path)  # opening asks the server; NFS answers a bare stat from its cache
    except FileNotFoundError:
        return None
    try:
        return os.fstat(handle).st_mtime
    finally:
        os.close(handle)


def _folder_clock(folder: Path) -> float:
    """Time by the file system's clock: that of a file touched now."""
    probe = folder / f".clock.{uuid.uuid4().hex}.tmp"
    try:
        with probe.open("x") as file:
            os.utime(probe)
            return os.fstat(file.fileno()).st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _positive(value: Any, otherwise: float) -> float:
    return float(value) if isinstance(value, (int, float)) and 0 < value < _LONGEST_LEASE else otherwise


def _number(text: Any) -> int:
    """What SLURM's variables hold; 0 for nothing, and for what is no number."""
    return int(text) if isinstance(text, str) and re.fullmatch("[0-9]{1,9}", text) else 0
