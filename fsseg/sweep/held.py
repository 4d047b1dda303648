"""What of a run may go to a store, and what the store holds of its cell: `fsseg.sweep.sync` asks before it sends.

A copy replaces what is there only if nothing of another run is lost by it. Two runs of one cell (two machines with one
`sync.url`, or a redo) are told apart by their starts, which `attempts/<n>.json` record.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fsseg.cell import uses
from fsseg.cell.key import CellKey, output_of
from fsseg.cell.models import Attempt, Unreadable, read
from fsseg.cell.record import RunDirectory
from fsseg.errors import UserError
from fsseg.process.files import entries_below
from fsseg.sweep.store import LARGEST, Store

_FIX = "give another address, or take that copy off the store first"


def is_plain(name: str) -> bool:
    """Whether a name relative to a folder stays below it on every system, and can be printed."""
    parts = name.split("/")
    usual = name.isprintable() and "\\" not in name and not {"", ".", ".."} & set(parts)
    return usual and len(name.encode()) < 2000 and all(len(part.encode()) <= 255 for part in parts)


def is_temporary(name: str) -> bool:
    """Whether a file or folder of this name is work in progress, which never travels."""
    return name.startswith(".") or name.endswith((".tmp", ".new"))


def shown(name: str) -> str:
    """A name as it may be printed."""
    return name if name.isprintable() else ascii(name)[1:-1]


def files_of(
    run: RunDirectory, checkpoints: bool, takes: Callable[[str], bool] = is_plain
) -> tuple[dict[str, list[int]], list[str]]:
    """The files of a copy, and what is left out of it.

    The result comes last, just before it the settings: until then the store holds the old ones of both, or none. What
    was evaluated so far (`RunDirectory.episodes_part`) goes along with the checkpoints, until there is a result. A link
    is followed only to a file inside the run.

    Args:
        checkpoints: take them too.
        takes: whether a file of this name can travel.

    Returns:
        Name -> [bytes, time of change in ns] in the order of sending, and the names of what cannot travel.

    Raises:
        OSError: a folder of the run cannot be read.
    """
    root = os.path.realpath(run.directory)
    kept_here = {run.sync_file.name, run.claim_file.name, uses.FOLDER}
    if not checkpoints:
        kept_here |= {run.checkpoints.name, run.episodes_part.name}
    if run.result_file.exists():
        kept_here.add(run.episodes_part.name)
    found: dict[str, list[int]] = {}
    left_out: list[str] = []

    def stays(entry: os.DirEntry[str]) -> bool:
        return is_temporary(entry.name) or (entry.name in kept_here and os.path.dirname(entry.path) == root)

    for entry in entries_below(root, stays):
        path = Path(entry.path)
        told = path.relative_to(root).as_posix()
        try:
            inside = not path.is_symlink() or Path(os.path.realpath(path)).is_relative_to(root)
            about = path.stat()
        except FileNotFoundError:
            if path.is_symlink():
                left_out.append(shown(told))
            continue
        except OSError:  # a link in a circle
            left_out.append(shown(told))
            continue
        if not inside or (stat.S_ISREG(about.st_mode) and not takes(told)):
            left_out.append(shown(told))
        elif stat.S_ISREG(about.st_mode):
            found[told] = [about.st_size, about.st_mtime_ns]

    return {name: found[name] for name in in_turn(run, found)}, sorted(left_out)


def in_turn(run: RunDirectory, names: Iterable[str]) -> list[str]:
    """The files of a run in the order in which a copy is made: status, checkpoints, settings, and last the result."""
    late = {run.status_file.name: 1, run.config_file.name: 3, run.identity_file.name: 3, run.result_file.name: 4}

    def rank(name: str) -> tuple[int, str]:
        return 2 if name.startswith(f"{run.checkpoints.name}/") else late.get(name, 0), name

    return sorted(names, key=rank)


def base_of(run: RunDirectory) -> str:
    """The folder of a run below the address."""
    key = CellKey.from_path(run.directory)
    return key.path.as_posix() if key else run.directory.resolve().name


def same_place(run: RunDirectory, remote: Store) -> str:
    """Why the store is no other place than the run itself; empty if it is one.

    Folders are compared by device and inode, so links, relative paths and bind mounts make no difference.
    """
    if remote.folder is None:
        return ""
    target, own = Path(os.path.realpath(remote.folder / base_of(run))), Path(os.path.realpath(run.directory))
    if is_below(target, run.directory) or is_below(own, target):
        return "the address leads to the runs themselves"
    is_a_cell = CellKey.from_path(run.directory) is not None
    if is_a_cell and is_below(Path(os.path.realpath(remote.folder)), output_of(own)):
        return "the address leads to a folder among the runs themselves"
    return ""


def is_below(path: Path, folder: Path) -> bool:
    """Whether a path is the folder or lies in it; what does not exist yet lies where its parents lie."""
    try:
        there = folder.stat()
    except OSError:
        return False
    for place in (path, *path.parents):
        try:
            if os.path.samestat(place.stat(), there):
                return True
        except OSError:
            continue
    return False


@dataclass(frozen=True)
class Held:
    """What a store holds of a cell.

    Attributes:
        names: files, relative to the cell's folder, without temporary ones.
        result: content of result.json; None if there is none, or one that says nothing.
        start: mark of the newest start; empty if there is no record of it.
        number: of that start.
    """

    names: frozenset[str]
    result: bytes | None
    start: str
    number: int


def look_there(remote: Store, base: str, run: RunDirectory) -> Held:
    """See what the store holds of a cell.

    Args:
        base: the cell's folder on the store.
        run: the local one, for the names of its files.

    Raises:
        UserError: a record there is too large to be one.
    """
    sizes = remote.list(base)
    names = {n for n in sizes if not any(is_temporary(part) for part in n.split("/"))}

    def record(name: str) -> bytes | None:
        if sizes.get(name, 0) > LARGEST:
            raise UserError(f"the store holds a {name} of {sizes[name]} bytes, which no run has written", _FIX)
        return remote.get(f"{base}/{name}") if name in names else None

    result = record(run.result_file.name)
    folder = f"{run.attempts.name}/"
    numbers = [int(n) for name in names if (n := name.removeprefix(folder).removesuffix(".json")).isdecimal()]
    number = max(numbers, default=0)
    try:
        start = start_mark(msgspec.json.decode(record(f"{folder}{number}.json") or b"null", type=Attempt | None))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        start = ""
    return Held(frozenset(names), result if says_something(result) else None, start, number)


def says_something(data: bytes | None) -> bool:
    """Whether a JSON record holds anything: `{}` and half a file do not."""
    try:
        value = json.loads(data or b"")
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and bool(value)


def start_mark(record: Attempt | None) -> str:
    """What tells a start of a run from every other; empty without a record of it."""
    return "" if record is None else f"{record.started_at} {record.host} {record.pid}"


def start_of(run: RunDirectory, number: int | None = None) -> str:
    """The mark of a start of the local run, of the newest by default; empty without a record of it."""
    if number is None:
        return start_mark(run.last_attempt()[1])
    try:
        return start_mark(read(run.attempts / f"{number}.json", Attempt))
    except Unreadable:
        return ""


def own_result(run: RunDirectory) -> tuple[bytes | None, str]:
    """Content of the run's result.json, None if there is none; and what is wrong with it, if anything is."""
    try:
        if run.result() is None:
            return None, ""
        return run.result_file.read_bytes(), ""
    except (Unreadable, OSError) as error:
        return None, f"{run.result_file.name} {error}"


def leftovers(held: Held, run: RunDirectory, result: bytes | None, sent: str | None) -> frozenset[str]:
    """The files of an earlier run that ours replaces, as far as they are on the store; the old result among them.

    With a result, what was evaluated before it is one of them.

    Args:
        held: what is there.
        run: that is to be copied.
        result: of this run.
        sent: mark of the newest start that this directory sent to this address.

    Raises:
        UserError: what is there is of another run and must stay.
    """
    same = bool(held.start) and held.start == start_of(run, held.number)
    mine = same or (bool(held.start) and held.start == sent)
    if held.result is not None and result is None:
        fix = "it stays there until this one is finished" if mine else _FIX
        raise UserError("the store holds a finished run of this cell", fix)
    if held.result is not None and result != held.result and not mine:
        raise UserError("the store holds the result of another run of this cell", _FIX)
    if held.result is None and result is None and held.start and not mine:
        raise UserError("the store holds another or a newer run of this cell", _FIX)
    replaced = (bool(held.start) and not same) or (held.result is not None and held.result != result)
    return held.names if replaced else held.names & ({run.episodes_part.name} if result is not None else set())
