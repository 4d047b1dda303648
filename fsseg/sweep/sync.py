"""Copies of run directories on a remote store (file, s3, gs, sftp, ... through fsspec), and reading them back.

`fsseg.run` calls `sync_cell` when a cell ends or is preempted, `fsseg sync` calls `catch_up`, `fsseg aggregate` calls
`mirror`. A store that fails never fails a run: files are tried again with growing pauses. What is pending is noted in
the run directory (`sync.json`), and the next attempt starts there. `result.json` goes last and every file arrives whole
or not at all, so a reader never takes half a cell for a finished one. Nothing on the store is removed before what
replaces it is there; `fsseg.sweep.held` says what may be replaced.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fsseg.cell.models import Copied, Unreadable, write_record
from fsseg.cell.record import RunDirectory, find_runs
from fsseg.errors import UserError, visible
from fsseg.process.files import write_atomic
from fsseg.process.remote import path_of, url_faults
from fsseg.sweep.held import (
    base_of,
    files_of,
    is_plain,
    is_temporary,
    leftovers,
    look_there,
    own_result,
    same_place,
    shown,
    start_of,
)
from fsseg.sweep.store import LARGEST, Store, Tries, words

if TYPE_CHECKING:
    from fsseg.cell.record import Cell
    from fsseg.config.schema import Config

log = logging.getLogger("fsseg.sync")

_USUAL = Tries()
_LONGEST = 1e6  # seconds


@dataclass
class Push:
    """What one push achieved.

    Attributes:
        sent: files that arrived now.
        pending: files that have not arrived.
        error: why; empty if nothing is pending.
        left_out: what cannot travel: links out of the run, names that not every store can take.
        onto_itself: the store is the run directory itself.
    """

    sent: list[str] = field(default_factory=list)
    pending: list[str] = field(default_factory=list)
    error: str = ""
    left_out: list[str] = field(default_factory=list)
    onto_itself: bool = False


def sync_cell(cfg: Config, cell: Cell, final: bool = True) -> None:
    """Copy a cell to `sync.url`, if there is one; never raises, and takes `sync.timeout_seconds` at most.

    Args:
        cfg: of the run.
        cell: whose directory is copied.
        final: the cell is done; False on preemption, when its newest checkpoint goes along as well.
    """
    if cfg.sync.url is None:
        return
    # A failed copy must not fail the run, whatever the error: no thread, no file descriptor, no terminal left.
    try:
        outcome = _in_time(cfg, cell, final)
        if outcome.error:
            log.warning("sync.url=%s: %s; `fsseg sync %s` catches up", cfg.sync.url, outcome.error, cell.directory)
        elif outcome.sent:
            log.info("%d files copied to %s", len(outcome.sent), cfg.sync.url)
        if outcome.left_out:
            log.warning("not copied: %s", _left_out(outcome))
    except Exception as error:
        with suppress(Exception):
            log.warning("nothing is copied: %s", words(error))


def _in_time(cfg: Config, cell: Cell, final: bool) -> Push:
    """`push` within the time limit of the configuration."""
    limit = cfg.sync.timeout_seconds
    seconds = min(limit, _LONGEST) if limit > 0 else 0.0  # no thread waits for infinity
    url, outcome = str(cfg.sync.url), Push(error=f"no answer within {limit:g} s")
    tries = Tries(cfg.sync.attempts, deadline=time.monotonic() + seconds)

    def work() -> None:
        nonlocal outcome
        try:
            outcome = push(cell, url, cfg.sync.checkpoints or not final, tries)
        except Exception as error:
            outcome = Push(error=words(error))

    # In a thread, because a store that accepts a connection and then stays silent would block beyond the time-out.
    thread = threading.Thread(target=work, name="fsseg-sync", daemon=True)
    thread.start()
    thread.join(seconds + 1)
    if thread.is_alive():
        known = cell.copied()
        _mark(cell, known if known.url == url else Copied(url, cfg.sync.checkpoints), outcome)
    return outcome


def push(run: RunDirectory, url: str, checkpoints: bool = False, tries: Tries = _USUAL) -> Push:
    """Copy what is new in a run directory; note in its `sync.json` what arrived and what is pending.

    Args:
        run: where to copy from.
        url: the folder that stands for the output folder.
        checkpoints: copy them too.
        tries: for each operation.

    Raises:
        OSError: if the run directory itself cannot be read.
    """
    if faults := url_faults(url):
        return Push(error=words(faults[0]))  # not noted in the run: the address may hold a password
    known = run.copied()
    copied = Copied(url, checkpoints)
    if known.url == url:
        copied.files, copied.run = known.files, known.run
    stats, left_out = files_of(run, checkpoints)
    result, fault = own_result(run) if run.result_file.name in stats else (None, "")
    if fault:
        del stats[run.result_file.name]
    todo = [name for name, stat in stats.items() if copied.files.get(name) != stat]
    outcome = Push(pending=todo, left_out=left_out)
    if todo:
        try:
            _send(run, copied, stats, result, outcome, tries)
        except Exception as error:  # botocore, paramiko and others have their own exception types
            outcome.error = words(error)
    outcome.error = outcome.error or fault
    if todo or fault or known.pending or known.url != url:
        _mark(run, copied, outcome)
    return outcome


def _send(
    run: RunDirectory,
    copied: Copied,
    stats: Mapping[str, list[int]],
    result: bytes | None,
    outcome: Push,
    tries: Tries,
) -> None:
    """Send what is pending, and what the store has lost; remove what is left of an earlier run.

    Raises:
        Exception: any of the store's; what was sent before it stands in `copied` and `outcome`.
    """
    remote = tries.call(lambda: Store(str(copied.url)))
    base = base_of(run)
    if why := same_place(run, remote):
        outcome.onto_itself = True
        raise UserError(why, "give one outside the output folder")
    held = tries.call(lambda: look_there(remote, base, run))
    leftovers(held, run, result, copied.run)  # raises if something there must stay
    outcome.pending = [name for name in stats if name in outcome.pending or name not in held.names]

    def clear() -> None:
        now = tries.call(lambda: look_there(remote, base, run))  # another run may have come meanwhile
        for name in sorted(leftovers(now, run, result, copied.run) - stats.keys()):
            tries.call(lambda name=name: remote.remove(f"{base}/{name}"))  # type: ignore[misc]

    last = {run.config_file.name, run.identity_file.name, run.result_file.name}
    cleared = False
    for name in list(outcome.pending):
        if name in last and not cleared:
            clear()
            cleared = True
        tries.call(lambda name=name: remote.send(run.directory / name, f"{base}/{name}"))  # type: ignore[misc]
        copied.files[name] = stats[name]
        outcome.sent.append(name)
        outcome.pending.remove(name)
    if not cleared:
        clear()
    copied.run = start_of(run) or None


def catch_up(
    folders: Iterable[str | Path],
    url: str | None = None,
    checkpoints: bool = False,
    tries: Tries = _USUAL,
) -> list[tuple[Path, Push]]:
    """Copy every run directory below the folders, except for files already on the store.

    Args:
        folders: output folders.
        url: None takes the one in each run's configuration.
        checkpoints: copy them too; those of a run with `sync.checkpoints=true` are copied in any case.
        tries: as in `push`; once the store has failed, each further cell is tried once.

    Raises:
        UserError: a folder does not exist, or no run under it has an address.
    """
    if url is not None and (faults := url_faults(url)):
        raise faults[0]
    found: list[tuple[Path, Push]] = []
    without = 0
    for run in find_runs(folders):
        own_url, own_checkpoints = _given(run)
        if (target := url or own_url) is None:
            without += 1
            continue
        try:
            outcome = push(run, target, checkpoints or own_checkpoints, tries)
        except Exception as error:  # one odd run ends no other
            outcome = Push(error=words(error))
        if outcome.error:
            tries = replace(tries, attempts=1)
        found.append((run.directory, outcome))
    if without and not found:
        raise UserError(
            f"{without} runs, and none was started with sync.url", "give the address: --url s3://bucket/folder"
        )
    # The copies themselves, where the store lies below a folder that was named.
    return [(d, o) for d, o in found if not o.onto_itself] or found


def mirror(url: str, folder: Path) -> Path:
    """Download what `fsseg aggregate` needs of the runs below a remote folder, and return where it lies.

    Nothing is written outside the folder, whatever names the store has; one warning tells what was left out.

    Raises:
        UserError: the address is wrong or cannot be read, or holds no run.
    """
    check_address(url)
    bad: list[str] = []
    with reading(url):
        remote = Tries(2).call(lambda: Store(url))
        wanted = _wanted(Tries(2).call(remote.list), bad)
        content = Tries(3).call(lambda: remote.read(sorted(wanted)))
    root = folder.joinpath(*path_of(url))
    written = 0
    for name, data in content.items():
        try:
            if isinstance(data, OSError):
                raise data
            write_atomic(root / name, data)
            written += 1
        except OSError as error:  # refused, or it needs a folder where another name is a file
            bad.append(f"{shown(name)} ({error.strerror or type(error).__name__})")
    tell_left_out(url, bad)
    if not written:
        raise UserError(f"no run found under {url}", "name a folder above runs that were copied with sync.url")
    return root


def check_address(url: str) -> None:
    """Raises: UserError: nothing can be read from there, as far as the address tells."""
    if faults := url_faults(url):
        raise UserError(faults[0].what.removeprefix("sync.url="), faults[0].fix)


@contextmanager
def reading(url: str) -> Iterator[None]:
    """Raise whatever a store raises in the block as a fault of its address."""
    try:
        yield
    except Exception as error:  # botocore, paramiko and others have their own exception types
        raise UserError(
            f"{url}: cannot be read ({words(error)})", "check the address, the network and the credentials"
        ) from None


def tell_left_out(url: str, bad: Sequence[str]) -> None:
    """One warning that names the files of a store that are not read, if there are any."""
    if bad:
        more = f" and {len(bad) - 10} more" if len(bad) > 10 else ""
        log.warning("%s: %d files are left out: %s%s", url, len(bad), ", ".join(bad[:10]), more)


def _wanted(sizes: Mapping[str, int], bad: list[str]) -> set[str]:
    """Of the files on a store, those that the tables need. `bad` takes names that lead elsewhere, and huge files."""
    run = RunDirectory(Path())
    records = {run.result_file.name, run.status_file.name, run.identity_file.name}
    kinds = {*records, run.config_file.name, "replication_results.json"}
    good: set[str] = set()
    for name, size in sizes.items():
        parts = re.split(r"[/\\]", name)
        if parts[-1] not in kinds:
            continue
        if not is_plain(name):
            bad.append(shown(name))
        elif size > LARGEST:
            bad.append(f"{name} ({size} bytes)")
        elif not any(map(is_temporary, parts)):
            good.add(name)
    # Only of an unfinished cell the configuration is needed.
    runs = {n.rpartition("/")[0] for n in good if n.rpartition("/")[2] in records}
    done = {n.rpartition("/")[0] for n in good if n.rpartition("/")[2] == run.result_file.name}
    return {n for n in good if n.rpartition("/")[2] != run.config_file.name or n.rpartition("/")[0] in runs - done}


def _given(run: RunDirectory) -> tuple[str | None, bool]:
    """The address that the run was started with, and whether its checkpoints go there."""
    copied = run.copied()
    try:
        block = run.config().get("sync")
    except Unreadable:
        block = None
    own = block if isinstance(block, dict) else {}
    url = own.get("url")
    given = url if isinstance(url, str) and url else copied.url
    return given, own.get("checkpoints") is True or copied.checkpoints


def _mark(run: RunDirectory, copied: Copied, outcome: Push) -> None:
    copied.at, copied.error, copied.pending = time.time(), outcome.error, outcome.pending
    try:
        write_record(run.sync_file, copied)
    except OSError as error:
        log.debug("%s: %s", run.sync_file, error)


def text(outcomes: Sequence[tuple[Path, Push]]) -> str:
    """What `fsseg sync` prints."""
    sent = sum(len(o.sent) for _, o in outcomes)
    behind = [(d, o) for d, o in outcomes if o.error or o.pending]
    lines = [f"{len(outcomes)} cells: {sent} files copied, {len(outcomes) - len(behind)} cells up to date"]
    lines += [visible(f"  {d}: {len(o.pending)} files pending: {o.error}") for d, o in behind]
    lines += [visible(f"  {d}: not copied: {_left_out(o)}") for d, o in outcomes if o.left_out]
    return "\n".join(lines)


def _left_out(outcome: Push) -> str:
    more = f" and {len(outcome.left_out) - 10} more" if len(outcome.left_out) > 10 else ""
    return f"{', '.join(outcome.left_out[:10])}{more} (links out of the run, or odd names)"
