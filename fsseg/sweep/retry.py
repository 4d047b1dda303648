"""`fsseg retry`: the cells that ended without a result, and the lines that run just them again.

Nothing has to be reset: a cell without `result.json` is not done, a run continues from its checkpoint and takes over a
stale claim by itself. So the whole sweep line works too. The lines here are for users who lost it, or want only these
cells. They are made from the overrides in each cell's `identity.json`. These are composed again, and a line is given
only if they lead to the same directory and fingerprint.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fsseg.cell.key import CellKey
from fsseg.cell.record import Snapshot, State, Unreadable, look_at, open_cell
from fsseg.errors import UserError
from fsseg.sweep.boxes import command, merge
from fsseg.sweep.grid import split_overrides

if TYPE_CHECKING:
    from fsseg.config.compose import Composed

_STATES = (State.FAILED, State.STALE, State.PREEMPTED, State.BROKEN)
_AGAIN = "run its sweep line again"


@dataclass
class Retry:
    """What can be run again.

    Attributes:
        cells: the cells that ended without a result.
        lines: shell commands that run them.
        notes: cells for which no line was found, and why.
    """

    cells: list[Snapshot]
    lines: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find_retries(folders: Iterable[str | Path], extra: Sequence[str] = ()) -> Retry:
    """Find the cells without a result that no process works on, and the lines that run them.

    Args:
        folders: output folders.
        extra: further overrides for every line, e.g. `hydra/launcher=slurm`.

    Raises:
        UserError: a folder does not exist or holds no run.
    """
    found = Retry([s for s in look_at(folders) if s.state in _STATES])
    if not found.cells:
        return found  # Hydra is not even imported
    settings = []
    for cell, own in zip(found.cells, _overrides_of(found.cells)):
        if isinstance(own, str):
            found.notes.append(f"{cell.label}: {own}")
        else:
            settings.append(own)
    found.lines = [command(box, extra) for box in merge(settings)]
    return found


def _overrides_of(cells: Sequence[Snapshot]) -> list[dict[str, str] | str]:
    """For each cell the overrides that lead to it, or why there are none."""
    from fsseg.config.compose import composer

    noted = [_noted(s) for s in cells]
    with composer() as c:
        again = iter(c.each([[f"{k}={v}" for k, v in own.items()] for own in noted if not isinstance(own, str)]))
        return [own if isinstance(own, str) else _proven(s, own, next(again)[1]) for s, own in zip(cells, noted)]


def _noted(s: Snapshot) -> dict[str, str] | str:
    try:
        record = s.run.identity_record()
    except Unreadable as error:
        return f"identity.json {error}: {_AGAIN}"
    if record is None:
        return f"has no identity.json: {_AGAIN}"
    if record.overrides is None:
        last = s.run.last_attempt()[1]
        line = shlex.join(["python", *last.command]) if last is not None and last.command[:1] == ["train.py"] else ""
        how = f"it was started with `{line}`" if line else _AGAIN
        return f"was started by an earlier version, which did not note the overrides of a cell; {how}"
    own = split_overrides(record.overrides)
    own.pop("redo", None)  # it would discard the cell's progress
    return own


def _proven(s: Snapshot, own: dict[str, str], composed: Composed | UserError) -> dict[str, str] | str:
    """The overrides, if they lead to this directory and this fingerprint."""
    from hydra.core.override_parser.types import Quote, QuotedString

    if isinstance(composed, UserError):
        return composed.what
    key, record = CellKey.from_path(s.directory), s.run.identity_record()
    assert record is not None
    try:
        cell = open_cell(composed.cfg, composed.resolved, composed.task_overrides)
    except UserError as error:
        return error.what
    if cell.key != key or cell.fingerprint != record.fingerprint:
        return f"was made by another version of the code or its configuration files: {_AGAIN}, or redo=true"
    if os.path.realpath(cell.directory) != os.path.realpath(s.directory):  # started in another folder than this
        output = os.path.relpath(Path(os.path.abspath(s.directory)).parents[len(key.path.parts) - 1])
        own["output_dir"] = QuotedString(output, Quote.single).with_quotes()
    return own


def text(found: Retry) -> str:
    """What `fsseg retry` prints."""
    if not found.cells:
        return "nothing to run again"
    lines = [f"{len(found.cells)} cells ended without a result:"]
    lines += [f"  {s.label}  {s.state}" + (f": {s.reason}" if s.reason else "") for s in found.cells]
    if found.lines:
        lines += ["", "run them again, from the folder they were started in:", *found.lines]
    if found.notes:
        lines += ["", "no line found for:", *(f"  {note}" for note in found.notes)]
    return "\n".join(lines)


def run_lines(lines: Sequence[str]) -> int:
    """Run the lines one after the other, here; returns how many of them failed.

    Raises:
        UserError: there is no train.py.
    """
    places = [Path("train.py"), Path(__file__).resolve().parents[2] / "train.py"]
    script = next((p for p in places if p.is_file()), None)
    if script is None:
        raise UserError("there is no train.py in this folder", "go to the checkout, or run the lines by hand")
    failed = 0
    for line in lines:
        words = shlex.split(line)
        print(f"\n$ {line}", flush=True)
        failed += subprocess.run([sys.executable, str(script), *words[2:]]).returncode != 0
    return failed
