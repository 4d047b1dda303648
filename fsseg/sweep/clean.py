"""`fsseg clean`: files that run directories no longer need. It lists them first, and checks again before it deletes.

Checkpoints of finished cells, claims whose holder is gone, and temporary files that a killed process left. A cell that
a process works on is never touched, and a checkpoint that another cell's configuration names stays.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fsseg.cell.models import State, Unreadable
from fsseg.cell.record import RunDirectory, Snapshot, look_at
from fsseg.errors import visible

TEMPORARY_AGE = 3600.0
"""Seconds after which a temporary file counts as abandoned: writing one takes seconds."""

_TEMPORARY = re.compile(r"\..+\.(tmp|old)")


@dataclass(frozen=True)
class Item:
    """A file to delete: its size in bytes, and why it may go (checkpoint, claim, temporary)."""

    path: Path
    run: RunDirectory
    size: int
    why: str


def find_waste(folders: Iterable[str | Path]) -> list[Item]:
    """The files below the folders that could be deleted; deletes nothing.

    Raises:
        UserError: a folder does not exist or holds no run.
    """
    cells = look_at(folders)
    kept = _kept(cells)
    oldest = time.time() - TEMPORARY_AGE
    items: list[Item] = []

    def add(path: Path, why: str) -> None:
        with suppress(FileNotFoundError):  # somebody else removed it just now
            items.append(Item(path, run, path.stat().st_size, why))

    for s in cells:
        run = s.run
        if s.alive:
            continue
        if s.state == State.DONE:
            for path in sorted(run.checkpoints.glob("*")):
                if path.is_file() and path.resolve() not in kept and not _TEMPORARY.fullmatch(path.name):
                    add(path, "checkpoint")
        if run.claim_file.is_file():
            add(run.claim_file, "claim")
        for path in sorted(run.directory.rglob(".*")):
            if path.is_file() and _TEMPORARY.fullmatch(path.name) and path.stat().st_mtime < oldest:
                add(path, "temporary")
    return items


def delete(items: Sequence[Item], refused: list[OSError] | None = None) -> list[Item]:
    """Delete the items that are still unused, and return them.

    Args:
        refused: takes the faults of files that cannot be deleted; the others are deleted all the same.
    """
    refused = [] if refused is None else refused
    gone: list[Item] = []
    kept = _kept([item.run.look() for item in items if item.why == "checkpoint"])
    claims = [item for item in items if item.why == "claim"]
    # Each silent holder is watched for some renewals before its claim is taken: all of them at the same time.
    with ThreadPoolExecutor(max_workers=max(1, min(32, len(claims)))) as pool:
        taken = pool.map(lambda item: _take(item, refused), claims)
        gone += [item for item, done in zip(claims, taken) if done]
    for item in items:
        if item.why == "claim":
            continue
        now = item.run.look()
        if now.alive or (item.why == "checkpoint" and (now.state != State.DONE or item.path.resolve() in kept)):
            continue
        try:
            item.path.unlink()
        except FileNotFoundError:
            continue
        except OSError as error:
            refused.append(error)
            continue
        gone.append(item)
        if item.why == "checkpoint":
            with suppress(OSError):  # other checkpoints are still there
                item.path.parent.rmdir()
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


def _kept(cells: Iterable[Snapshot]) -> set[Path]:
    """Checkpoints that some cell names, in whichever experiment of the same output folders it lies."""
    keys = {s.directory: s.key for s in cells}
    outputs = {Path(os.path.abspath(d)).parents[len(key.path.parts) - 1] for d, key in keys.items() if key}
    return {path for s in (look_at([*keys, *outputs]) if keys else ()) for path in _named_checkpoint(s)}


def _named_checkpoint(s: Snapshot) -> Iterable[Path]:
    """The checkpoint that a cell starts from: its content is part of the identity, so the cell needs it.

    A relative path starts at the folder where the run was started: the current one, or one above the run.
    """
    try:
        origin = s.result.checkpoint if s.result else None
        name = origin.path if origin else None if s.result else s.run.config().get("checkpoint")
    except Unreadable:
        name = None
    places = [Path.cwd(), *Path(os.path.abspath(s.directory)).parents] if name else []
    return [Path(place, str(name)).resolve() for place in places]
