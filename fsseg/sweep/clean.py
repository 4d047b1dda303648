"""`fsseg clean`: files that run directories no longer need. It lists them first, and checks again before it deletes.

Checkpoints of finished cells, claims whose holder is gone, and temporary files that a killed process left. A cell that
a process works on is never touched, a checkpoint that another cell refers to stays, and so does whatever lies outside a
run, behind a link.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fsseg.cell import uses
from fsseg.cell.key import CellKey, output_of
from fsseg.cell.models import State, Unreadable
from fsseg.cell.record import RunDirectory, Snapshot, find_runs, look_at
from fsseg.config.tasks import BASE_LEARNERS
from fsseg.errors import visible
from fsseg.process.files import entries_below, is_leftover, read_file

TEMPORARY_AGE = 3600.0
"""Seconds after which a temporary file counts as abandoned: writing one takes seconds."""

_LARGEST = 64 << 20  # bytes of a configuration that is searched
_KEYS = ("checkpoint", "weights")
_MENTIONS = re.compile(r"(checkpoint|weights)\W*:(?!\s*null\b)")


@dataclass(frozen=True)
class Item:
    """A file to delete: its size in bytes, and why it may go (checkpoint, claim, temporary)."""

    path: Path
    run: RunDirectory
    size: int
    why: str


def find_waste(folders: Iterable[str | Path], notes: list[str] | None = None) -> list[Item]:
    """The files below the folders that could be deleted; deletes nothing.

    Args:
        folders: output folders.
        notes: takes what could not be looked at, and why checkpoints are held back.

    Raises:
        UserError: a folder does not exist or holds no run.
    """
    notes = [] if notes is None else notes
    cells = look_at(folders)
    kept = _kept([s.run for s in cells])
    notes += kept.notes
    items: list[Item] = []
    for s in cells:
        try:
            items += _waste_of(s, kept)
        except OSError as error:
            notes.append(f"{s.directory}: {error.strerror or error}")
    return items


def _waste_of(s: Snapshot, kept: Kept) -> Iterator[Item]:
    if s.alive:
        return
    run, oldest = s.run, time.time() - TEMPORARY_AGE
    inside = Path(os.path.realpath(run.directory))

    def item(path: Path, why: str) -> Iterator[Item]:
        with suppress(FileNotFoundError):  # somebody else removed it just now
            yield Item(path, run, path.stat().st_size, why)

    # A base learner is trained for the sake of its checkpoint: cells of any line may still start from it.
    done_with = s.state == State.DONE and (s.key is None or s.key.method not in BASE_LEARNERS)
    for path in sorted(run.checkpoints.glob("*")) if done_with else ():
        real = Path(os.path.realpath(path))
        if path.is_file() and real.is_relative_to(inside) and real not in kept and not is_leftover(path.name):
            yield from item(path, "checkpoint")
    if run.claim_file.is_file():
        yield from item(run.claim_file, "claim")
    for entry in entries_below(run.directory):
        path = Path(entry.path)
        if not entry.is_file(follow_symlinks=False):
            continue
        # The new result is there, and all that was evaluated is in its episodes.npz.
        past = s.state == State.DONE and (path.is_relative_to(run.replaced) or path == run.episodes_part)
        with suppress(FileNotFoundError):
            if past or (is_leftover(path.name) and path.stat().st_mtime < oldest):
                yield from item(path, "temporary")


def delete(items: Sequence[Item], refused: list[OSError] | None = None) -> list[Item]:
    """Delete the items that are still unused, and return them.

    Args:
        refused: takes the faults of files that cannot be deleted; the others are deleted all the same.
    """
    refused = [] if refused is None else refused
    gone: list[Item] = []
    kept = _kept([item.run for item in items if item.why == "checkpoint"])
    claims = [item for item in items if item.why == "claim"]
    # Each silent holder is watched for some renewals before its claim is taken: all of them at the same time.
    with ThreadPoolExecutor(max_workers=max(1, min(32, len(claims)))) as pool:
        taken = pool.map(lambda item: _take(item, refused), claims)
        gone += [item for item, done in zip(claims, taken) if done]
    for item in items:
        if item.why == "claim":
            continue
        now = item.run.look()
        needed = item.why == "checkpoint" and (now.state != State.DONE or Path(os.path.realpath(item.path)) in kept)
        needed |= item.path == item.run.episodes_part and now.state != State.DONE
        if now.alive or needed:
            continue
        try:
            item.path.unlink()
        except FileNotFoundError:
            continue
        except OSError as error:
            refused.append(error)
            continue
        gone.append(item)
        with suppress(OSError):  # other files are still there
            for folder in item.path.relative_to(item.run.directory).parents[:-1]:
                (item.run.directory / folder).rmdir()
    return gone


def _take(item: Item, refused: list[OSError]) -> bool:
    try:
        return item.run.take_stale_claim()
    except OSError as error:
        refused.append(error)
        return False


def text(items: Sequence[Item], deleted: bool) -> str:
    """What `fsseg clean` prints."""
    if not items:
        return "nothing to clean" if not deleted else "nothing was deleted: somebody works on these cells again"
    words = {"checkpoint": "checkpoints of finished cells", "claim": "stale claims", "temporary": "temporary files"}
    lines = []
    for why, what in words.items():
        if mine := [i for i in items if i.why == why]:
            lines.append(f"{len(mine)} {what}, {sum(i.size for i in mine) / 1e6:.1f} MB")
            lines += [f"  {visible(i.path)}" for i in mine[:20]]
            if len(mine) > 20:
                lines.append(f"  ... and {len(mine) - 20} more")
    lines.append("deleted" if deleted else "nothing deleted yet: --yes deletes these files")
    return "\n".join(lines)


@dataclass
class Kept:
    """The checkpoints that cells refer to: `path in kept`, for a path without links.

    Attributes:
        paths: without links.
        tails: last parts of paths that lead nowhere from here: whatever ends like them is kept.
        unknown: some cell does not tell what it refers to, so every checkpoint is kept.
        notes: why more is kept than is named.
    """

    paths: set[Path] = field(default_factory=set)
    tails: set[tuple[str, ...]] = field(default_factory=set)
    unknown: bool = False
    notes: list[str] = field(default_factory=list)

    def __contains__(self, path: Path) -> bool:
        ends = any(path.parts[-len(tail) :] == tail for tail in self.tails)
        return self.unknown or ends or path in self.paths


def _kept(runs: Iterable[RunDirectory]) -> Kept:
    """What any cell refers to: one of these, of the same output folders, or one that left a note in these.

    An unfinished cell also needs its own checkpoints, which may lie in another run, behind a link.
    """
    kept, runs = Kept(), list(runs)
    places = {run.directory for run in runs} | _outputs(runs)
    for run in runs:
        for user in uses.users(run):
            if user.is_dir():
                places.add(user)
            elif not any(folder.is_dir() for folder in _outputs([RunDirectory(user)])):
                kept.paths.update(map(Path, map(os.path.realpath, run.checkpoints.glob("*"))))
                kept.notes.append(f"{run.directory}: its checkpoint stays: {user}, not seen from here, uses it")
    for run in find_runs(sorted(p for p in places if p.is_dir())):
        try:
            for name in _referred(run):
                _add(kept, run, name)
            if run.look().state != State.DONE:
                kept.paths.update(map(Path, map(os.path.realpath, run.checkpoints.glob("*"))))
        except OSError as error:
            kept.unknown = True
            kept.notes.append(f"all checkpoints stay: {error.filename or run.directory} ({error.strerror or error})")
    return kept


def _outputs(runs: Iterable[RunDirectory]) -> set[Path]:
    """The output folders of runs, as far as their paths name them."""
    return {output_of(run.directory) for run in runs if CellKey.from_path(run.directory) is not None}


def _add(kept: Kept, run: RunDirectory, name: str) -> None:
    """Keep what a name in a run's records may mean.

    A relative path starts at the folder where the run was started. That is this one, or one above the run, or unknown.
    The path of a run that was brought here from another machine leads nowhere, but its end is that of its cell.
    """
    starts = (Path.cwd(), *Path(os.path.abspath(run.directory)).parents)
    places = [Path(os.path.realpath(start / name)) for start in starts]
    kept.paths.update(places)
    if any(place.is_file() for place in places):
        return
    tail, what = tuple(part for part in Path(os.path.normpath(name)).parts if part != ".."), "a relative path"
    if os.path.isabs(name):  # a run of another machine: its own run may have come here with it
        key = CellKey.from_path(Path(name).parent.parent)
        tail, what = (*key.path.parts, *tail[-2:]) if key else (), "which is not here"
    if tail and tail not in kept.tails:
        kept.tails.add(tail)
        kept.notes.append(f"{run.directory} refers to {name}, {what}: what ends like it stays")


def _referred(run: RunDirectory) -> set[str]:
    """The files that a cell needs: it began from them, so their content is part of its identity.

    Raises:
        OSError: its configuration is there and cannot be read.
    """
    names: set[str] = set()
    with suppress(Unreadable):
        result = run.result()
        names |= {result.checkpoint.path} if result is not None and result.checkpoint is not None else set()
    with suppress(Unreadable):
        record = run.identity_record()
        pairs = [override.partition("=") for override in (record.overrides if record else None) or ()]
        names |= {value.strip("'\"") for key, _, value in pairs if key.lstrip("+").rpartition(".")[2] in _KEYS}
    # However large it is: what it may refer to decides about a deletion.
    content = read_file(run.config_file, _LARGEST) if run.config_file.is_file() else b""
    text = content.decode("utf-8", "surrogateescape")
    if _MENTIONS.search(text):  # parsing every configuration of a large sweep would take most of the time
        try:
            names |= set(_named(run.config()))
        except Unreadable:
            values = (value.strip(" '\"") for value in re.findall(r":[ \t]+(\S.*)$", text, re.MULTILINE))
            names |= {value for value in values if os.sep in value or value.endswith(".pt")}
    return {name for name in names if name not in ("", "null") and name.isprintable()}


def _named(value: Any, key: str = "") -> Iterator[str]:
    """All texts below a key that names weights."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _named(item, key if key in _KEYS else str(name))
    elif isinstance(value, list):
        for item in value:
            yield from _named(item, key)
    elif isinstance(value, str) and key in _KEYS:
        yield value
