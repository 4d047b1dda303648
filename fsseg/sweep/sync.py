"""Copies of run directories on a remote store (file, s3, gs, sftp, ... through fsspec), and reading them back.

`fsseg.run` calls `sync_cell` when a cell ends or is preempted, `fsseg sync` calls `catch_up`, `fsseg aggregate` calls
`mirror`. A store that fails never fails a run: files are tried again with growing pauses, what is left over is noted in
the run directory (`sync.json`), and the next attempt begins there. `result.json` goes last and every file arrives whole
or not at all, so that a reader never takes half a cell for a finished one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, TypeVar

from fsseg.config.checks import url_faults
from fsseg.errors import UserError
from fsseg.process.files import read_json, write_atomic, write_json
from fsseg.sweep.status import CLAIM, find_runs, key_of
from fsseg.sweep.store import Store, tried, words

if TYPE_CHECKING:
    from fsseg.cell.record import Cell
    from fsseg.config.schema import Config

log = logging.getLogger("fsseg.sync")
T = TypeVar("T")

MARKER = "sync.json"
_COLLECTED = ("result.json", "status.json", "replication_results.json")


@dataclass
class Outcome:
    """What one push achieved.

    Attributes:
        sent: files that arrived now.
        pending: files that should be there and are not.
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
    url, outcome = str(cfg.sync.url), Outcome(error=f"no answer within {cfg.sync.timeout_seconds:g} s")
    deadline = time.monotonic() + cfg.sync.timeout_seconds

    def work() -> None:
        nonlocal outcome
        try:
            outcome = push(
                cell.directory, url, checkpoints=cfg.sync.checkpoints or not final,
                relative=cell.key.path.as_posix(), attempts=cfg.sync.attempts, deadline=deadline,
            )  # fmt: skip
        except Exception as error:  # a copy is a convenience: whatever goes wrong, the run's own result stands
            outcome = Outcome(error=words(error))

    # In a thread, because a store that accepts a connection and then says nothing heeds no time-out of ours.
    thread = threading.Thread(target=work, name="fsseg-sync", daemon=True)
    thread.start()
    thread.join(cfg.sync.timeout_seconds + 1)
    if outcome.error:
        log.warning("sync.url=%s: %s; `fsseg sync %s` catches up", url, outcome.error, cell.directory)
        if thread.is_alive():
            _mark(cell.directory, url, {}, Outcome(error=outcome.error), cfg.sync.checkpoints)
    elif outcome.sent:
        log.info("%d files copied to %s", len(outcome.sent), url)


def push(
    directory: Path,
    url: str,
    *,
    checkpoints: bool = False,
    relative: str | None = None,
    attempts: int = 4,
    pause: float = 1.0,
    deadline: float | None = None,
) -> Outcome:
    """Copy what is new in a run directory; note in its `sync.json` what arrived and what is pending.

    Args:
        directory: of the run.
        url: the folder that stands for the output folder.
        checkpoints: copy them too.
        relative: path below `url`; None takes the cell's own.
        attempts: for each operation.
        pause: seconds before the second attempt; doubles with each.
        deadline: on `time.monotonic`; nothing new is begun after it.

    Raises:
        OSError: if the run directory itself cannot be read.
    """
    known = read_json(directory / MARKER) or {}
    arrived: dict[str, list[int]] = dict(known.get("files") or {}) if known.get("url") == url else {}
    stats = {name: _stat(directory / name) for name in _files(directory, checkpoints)}
    todo = [name for name, stat in stats.items() if arrived.get(name) != stat]
    outcome = Outcome(pending=list(todo))
    if not todo:
        if known.get("pending") or known.get("url") != url:
            _mark(directory, url, arrived, outcome, checkpoints)
        return outcome

    def attempt(operation: Callable[[], T]) -> T:
        return tried(operation, attempts, pause, deadline)

    try:
        if faults := url_faults(url):
            raise faults[0]
        remote = attempt(lambda: Store(url))
        base = relative if relative is not None else _relative(directory)
        if "result.json" in todo or "result.json" not in stats:
            # A result over there is that of an earlier run of this cell: what comes now must not be taken for its rest.
            attempt(lambda: remote.remove(f"{base}/result.json"))
            arrived.pop("result.json", None)
        for name in todo:
            attempt(lambda name=name: remote.send(directory / name, f"{base}/{name}"))  # type: ignore[misc]
            arrived[name] = stats[name]
            outcome.sent.append(name)
            outcome.pending.remove(name)
    except Exception as error:  # botocore, paramiko and friends have exception trees of their own
        outcome.error = words(error)
    _mark(directory, url, arrived, outcome, checkpoints)
    return outcome


def catch_up(
    folders: Iterable[str | Path],
    url: str | None = None,
    checkpoints: bool = False,
    attempts: int = 4,
    pause: float = 1.0,
) -> list[tuple[Path, Outcome]]:
    """Copy every run directory below the folders, as far as it is not there yet.

    Args:
        folders: output folders.
        url: None takes the one that each run was given.
        checkpoints: copy them too; a run that was given `sync.checkpoints=true` copies its own in any case.
        attempts, pause: as in `push`; once the store has failed, each further cell is tried once.

    Raises:
        UserError: a folder does not exist, or no run under it has an address.
    """
    if url is not None and (faults := url_faults(url)):
        raise faults[0]
    found: list[tuple[Path, Outcome]] = []
    without = 0
    for directory in find_runs(folders):
        own_url, own_checkpoints = _given(directory)
        if (target := url or own_url) is None:
            without += 1
            continue
        outcome = push(directory, target, checkpoints=checkpoints or own_checkpoints, attempts=attempts, pause=pause)
        if outcome.error:
            attempts = 1
        found.append((directory, outcome))
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
    try:
        remote = tried(lambda: Store(url), 2, 1.0, None)
        names = set(tried(remote.list, 2, 1.0, None))
        wanted = {
            n for n in names if PurePosixPath(n).name in ("result.json", "status.json", "replication_results.json")
        }
        runs = {PurePosixPath(n).parent for n in wanted if PurePosixPath(n).name != "replication_results.json"}
        # Only an unfinished cell is asked for its configuration.
        wanted |= {str(r / "config.yaml") for r in runs if str(r / "result.json") not in names} & names
        content = tried(lambda: remote.read(sorted(wanted)), 3, 1.0, None)
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


def _files(directory: Path, checkpoints: bool) -> list[str]:
    """What belongs into a copy, in the order of sending: the result last, whatever tells of progress just before."""
    names = []
    for path in directory.rglob("*"):
        name = path.relative_to(directory).as_posix()
        if path.name.startswith(".") or path.suffix == ".tmp" or name in (MARKER, CLAIM) or not path.is_file():
            continue
        if name.startswith("checkpoints/") and not checkpoints:
            continue
        names.append(name)

    def rank(name: str) -> tuple[int, str]:
        if name == "result.json":
            return 3, name
        return (2 if name.startswith("checkpoints/") else 1 if name == "status.json" else 0), name

    return sorted(names, key=rank)


def _stat(path: Path) -> list[int]:
    about = path.stat()
    return [about.st_size, about.st_mtime_ns]


def _relative(directory: Path) -> str:
    key = key_of(directory)
    return key.path.as_posix() if key else directory.resolve().name


def _given(directory: Path) -> tuple[str | None, bool]:
    """The address that the run was started with, and whether its checkpoints go there."""
    import yaml

    marker = read_json(directory / MARKER) or {}
    try:
        text = (directory / "config.yaml").read_text(encoding="utf-8")
        config = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        block = config.get("sync") or {}
    except (OSError, ValueError, AttributeError, yaml.YAMLError):
        block = {}
    return block.get("url") or marker.get("url"), bool(block.get("checkpoints") or marker.get("checkpoints"))


def _mark(directory: Path, url: str, files: dict[str, list[int]], outcome: Outcome, checkpoints: bool) -> None:
    record = {
        "url": url, "checkpoints": checkpoints, "at": time.time(), "error": outcome.error, "pending": outcome.pending,
        "files": files,
    }  # fmt: skip
    try:
        write_json(directory / MARKER, record)
    except OSError as error:
        log.debug("%s: %s", directory / MARKER, error)


def summary(outcomes: Sequence[tuple[Path, Outcome]]) -> str:
    """What `fsseg sync` prints."""
    sent = sum(len(o.sent) for _, o in outcomes)
    behind = [(d, o) for d, o in outcomes if o.error or o.pending]
    lines = [f"{len(outcomes)} cells: {sent} files copied, {len(outcomes) - len(behind)} cells up to date"]
    lines += [f"  {d}: {len(o.pending)} files pending: {o.error}" for d, o in behind]
    return "\n".join(lines)
