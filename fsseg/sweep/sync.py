"""Copies of run directories on a remote store (file, s3, gs, sftp, ... through fsspec), and reading them back.

`fsseg.run` calls `sync_cell` when a cell ends or is preempted, `fsseg sync` calls `catch_up`, `fsseg aggregate` calls
`mirror`. A store that fails never fails a run: files are tried again with growing pauses. What is pending is noted in
the run directory (`sync.json`), and the next attempt starts there. `result.json` goes last and every file arrives whole
or not at all, so a reader never takes half a cell for a finished one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from fsseg.cell.key import CellKey
from fsseg.cell.models import Copied, Unreadable, write_record
from fsseg.cell.record import RunDirectory, find_runs
from fsseg.errors import UserError, visible
from fsseg.process.files import write_atomic
from fsseg.process.remote import url_faults
from fsseg.sweep.store import Store, Tries, words

if TYPE_CHECKING:
    from fsseg.cell.record import Cell
    from fsseg.config.schema import Config

log = logging.getLogger("fsseg.sync")

_USUAL = Tries()


@dataclass
class Push:
    """What one push achieved.

    Attributes:
        sent: files that arrived now.
        pending: files that have not arrived.
        error: why; empty if nothing is pending.
    """

    sent: list[str] = field(default_factory=list)
    pending: list[str] = field(default_factory=list)
    error: str = ""


def sync_cell(cfg: Config, cell: Cell, final: bool = True) -> None:
    """Copy a cell to `sync.url`, if there is one; never raises, and takes `sync.timeout_seconds` at most.

    Args:
        cfg: of the run.
        cell: whose directory is copied.
        final: the cell is done; False on preemption, when its newest checkpoint goes along as well.
    """
    if cfg.sync.url is None:
        return
    url, outcome = str(cfg.sync.url), Push(error=f"no answer within {cfg.sync.timeout_seconds:g} s")
    tries = Tries(cfg.sync.attempts, deadline=time.monotonic() + cfg.sync.timeout_seconds)

    def work() -> None:
        nonlocal outcome
        try:
            outcome = push(cell, url, cfg.sync.checkpoints or not final, tries)
        except Exception as error:  # a failed copy must not fail the run, whatever the error
            outcome = Push(error=words(error))

    # In a thread, because a store that accepts a connection and then stays silent would block beyond the time-out.
    thread = threading.Thread(target=work, name="fsseg-sync", daemon=True)
    thread.start()
    thread.join(cfg.sync.timeout_seconds + 1)
    if outcome.error:
        log.warning("sync.url=%s: %s; `fsseg sync %s` catches up", url, outcome.error, cell.directory)
        if thread.is_alive():
            _mark(cell, Copied(url, cfg.sync.checkpoints), Push(error=outcome.error))
    elif outcome.sent:
        log.info("%d files copied to %s", len(outcome.sent), url)


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
    known = run.copied()
    copied = Copied(url, checkpoints, files=known.files if known.url == url else {})
    stats = {name: _stat(run.directory / name) for name in _files(run, checkpoints)}
    todo = [name for name, stat in stats.items() if copied.files.get(name) != stat]
    outcome = Push(pending=list(todo))
    if not todo:
        if known.pending or known.url != url:
            _mark(run, copied, outcome)
        return outcome
    key, result = CellKey.from_path(run.directory), run.result_file.name
    base = key.path.as_posix() if key else run.directory.resolve().name
    try:
        if faults := url_faults(url):
            raise faults[0]
        remote = tries.call(lambda: Store(url))
        if result in todo or result not in stats:
            # A result on the store is of an earlier run of this cell: the new files must not seem to belong to it.
            tries.call(lambda: remote.remove(f"{base}/{result}"))
            copied.files.pop(result, None)
        for name in todo:
            tries.call(lambda name=name: remote.send(run.directory / name, f"{base}/{name}"))  # type: ignore[misc]
            copied.files[name] = stats[name]
            outcome.sent.append(name)
            outcome.pending.remove(name)
    except Exception as error:  # botocore, paramiko and others have their own exception types
        outcome.error = words(error)
    _mark(run, copied, outcome)
    return outcome


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
        outcome = push(run, target, checkpoints or own_checkpoints, tries)
        if outcome.error:
            tries = replace(tries, attempts=1)
        found.append((run.directory, outcome))
    if without and not found:
        raise UserError(
            f"{without} runs, and none was started with sync.url", "give the address: --url s3://bucket/folder"
        )
    return found


def mirror(url: str, folder: Path) -> Path:
    """Download what `fsseg aggregate` needs of the runs below a remote folder, and return where it lies.

    Raises:
        UserError: the address is wrong or cannot be read, or holds no run.
    """
    if faults := url_faults(url):
        raise UserError(faults[0].what.removeprefix("sync.url="), faults[0].fix)
    run = RunDirectory(Path())
    records = {run.result_file.name, run.status_file.name, run.identity_file.name}
    try:
        remote = Tries(2).call(lambda: Store(url))
        names = {PurePosixPath(name) for name in Tries(2).call(remote.list)}
        wanted = {n for n in names if n.name in (*records, "replication_results.json")}
        # Only of an unfinished cell the configuration is needed.
        runs = {n.parent for n in wanted if n.name in records}
        wanted |= {r / run.config_file.name for r in runs if r / run.result_file.name not in names} & names
        content = Tries(3).call(lambda: remote.read(sorted(map(str, wanted))))
    except Exception as error:
        raise UserError(
            f"{url}: cannot be read ({words(error)})", "check the address, the network and the credentials"
        ) from None
    if not content:
        raise UserError(f"no run found under {url}", "name a folder above runs that were copied with sync.url")
    root = folder.joinpath(*[p for p in url.partition("://")[2].split("/") if p not in ("", ".", "..")])
    for name, data in content.items():
        write_atomic(root / name, data)
    return root


def _files(run: RunDirectory, checkpoints: bool) -> list[str]:
    """The files of a copy in the order of sending: the result last, the records of progress just before it."""
    kept_here = (run.sync_file, run.claim_file)
    names = []
    for path in run.directory.rglob("*"):
        if path.name.startswith(".") or path.suffix == ".tmp" or path in kept_here or not path.is_file():
            continue
        if checkpoints or path.parent != run.checkpoints:
            names.append(path.relative_to(run.directory).as_posix())

    def rank(name: str) -> tuple[int, str]:
        late = {run.status_file.name: 1, run.result_file.name: 3}
        return 2 if name.startswith(f"{run.checkpoints.name}/") else late.get(name, 0), name

    return sorted(names, key=rank)


def _stat(path: Path) -> list[int]:
    about = path.stat()
    return [about.st_size, about.st_mtime_ns]


def _given(run: RunDirectory) -> tuple[str | None, bool]:
    """The address that the run was started with, and whether its checkpoints go there."""
    copied = run.copied()
    try:
        block = run.config().get("sync") or {}
    except Unreadable:
        block = {}
    return block.get("url") or copied.url, bool(block.get("checkpoints") or copied.checkpoints)


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
    return "\n".join(lines)
