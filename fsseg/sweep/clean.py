"""`fsseg clean`: what run directories no longer need. It lists first; deleting asks the same questions once more.

Checkpoints of finished cells, claims whose holder is gone, and temporary files that a killed process left. A cell that
somebody works on is never touched, and a checkpoint that another cell's configuration names stays.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fsseg.cell.claim import is_gone, is_stale, read_holder, take_away
from fsseg.process.files import read_json
from fsseg.sweep.status import CLAIM, CellState, read_states

TEMPORARY_AGE = 3600.0
"""Seconds after which a temporary file belongs to nobody: writing one takes seconds."""

_TEMPORARY = re.compile(r"\..+\.(tmp|old)")


@dataclass(frozen=True)
class Item:
    """A file to delete: its size in bytes, and why it may go (checkpoint, claim, temporary)."""

    path: Path
    run: Path
    size: int
    why: str


def find_waste(folders: Iterable[str | Path]) -> list[Item]:
    """What could be deleted below the folders; nothing is.

    Raises:
        UserError: a folder does not exist or holds no run.
    """
    states = read_states(folders)
    kept = _named_checkpoints(states)
    items: list[Item] = []
    for state in states:
        if _is_alive(state):
            continue
        if state.state == "done":
            for path in sorted((state.directory / "checkpoints").glob("*")):
                if path.is_file() and path.resolve() not in kept and not _TEMPORARY.fullmatch(path.name):
                    items.append(_item(path, state, "checkpoint"))
        if (state.directory / CLAIM).is_file():
            items.append(_item(state.directory / CLAIM, state, "claim"))
        oldest = time.time() - TEMPORARY_AGE
        for path in sorted(state.directory.rglob(".*")):
            if path.is_file() and _TEMPORARY.fullmatch(path.name) and path.stat().st_mtime < oldest:
                items.append(_item(path, state, "temporary"))
    return items


def delete(items: Sequence[Item]) -> list[Item]:
    """Delete what still may go, and return it."""
    from fsseg.sweep.status import read_state

    gone: list[Item] = []
    claims = [item for item in items if item.why == "claim"]
    # A silent holder is watched for some of its renewals before its claim is taken: together, not one by one.
    with ThreadPoolExecutor(max_workers=max(1, min(32, len(claims)))) as pool:
        gone += [item for item, taken in zip(claims, pool.map(_take_claim, claims)) if taken]
    for item in items:
        if item.why == "claim":
            continue
        state = read_state(item.run)
        if _is_alive(state) or (item.why == "checkpoint" and state.state != "done"):
            continue
        try:
            item.path.unlink()
        except FileNotFoundError:
            continue
        gone.append(item)
        if item.why == "checkpoint":
            with_nothing_left = item.path.parent
            if not any(with_nothing_left.iterdir()):
                with_nothing_left.rmdir()
    return gone


def report(items: Sequence[Item], deleted: bool) -> str:
    """What `fsseg clean` prints."""
    if not items:
        return "nothing to clean" if not deleted else "nothing was deleted: somebody works on these cells again"
    words = {"checkpoint": "checkpoints of finished cells", "claim": "stale claims", "temporary": "temporary files"}
    lines = []
    for why, text in words.items():
        if mine := [i for i in items if i.why == why]:
            lines.append(f"{len(mine)} {text}, {sum(i.size for i in mine) / 1e6:.1f} MB")
            lines += [f"  {i.path}" for i in mine[:20]]
            if len(mine) > 20:
                lines.append(f"  ... and {len(mine) - 20} more")
    lines.append("deleted" if deleted else "nothing deleted yet: --yes deletes these files")
    return "\n".join(lines)


def _is_alive(state: CellState) -> bool:
    """Whether somebody works on the cell, as far as one look can tell."""
    if state.state in ("running", "queued"):
        return True
    claim = state.directory / CLAIM
    holder = read_holder(claim)
    if holder is None or is_gone(holder):
        return False
    try:
        return time.time() - claim.stat().st_mtime <= holder.lease
    except OSError:
        return False


def _take_claim(item: Item) -> bool:
    holder = read_holder(item.path)
    return holder is not None and (is_gone(holder) or is_stale(item.path, holder)) and take_away(item.path, holder)


def _named_checkpoints(states: Sequence[CellState]) -> set[Path]:
    """Checkpoints that some cell's configuration names: without them that cell cannot even be looked up again."""
    found = set()
    for state in states:
        if state.state == "done":
            name = (read_json(state.directory / "result.json") or {}).get("checkpoint")
        else:
            try:
                match = re.search(r"^checkpoint: *(.+)$", (state.directory / "config.yaml").read_text(), re.MULTILINE)
            except OSError:
                match = None
            name = match.group(1).strip().strip("'\"") if match else None
        if name and name != "null":
            found.add(Path(str(name)).resolve())
    return found


def _item(path: Path, state: CellState, why: str) -> Item:
    return Item(path, state.directory, path.stat().st_size, why)
