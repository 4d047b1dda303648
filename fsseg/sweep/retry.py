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
from fsseg.cell.models import State, Unreadable
from fsseg.cell.record import Cell, Snapshot, look_at, open_cell
from fsseg.errors import UserError, visible
from fsseg.sweep.boxes import command, merge
from fsseg.sweep.grid import split_overrides

if TYPE_CHECKING:
    from fsseg.config.compose import Composer

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
    notes: dict[str, list[str]] = field(default_factory=dict)


def find_retries(folders: Iterable[str | Path], extra: Sequence[str] = ()) -> Retry:
    """Find the cells without a result that no process works on, and the lines that run them.

    Args:
        folders: output folders.
        extra: further overrides for every line, e.g. `hydra/launcher=slurm`.

    Raises:
        UserError: a folder does not exist or holds no run.
    """
    found = Retry([s for s in look_at(folders) if s.state in _STATES and not s.alive])
    if not found.cells:
        return found  # Hydra is not even imported
    from fsseg.config.compose import composer

    boxes: list[dict[str, str]] = []
    with composer() as c:
        for s in found.cells:
            if why := _find(s, c, found, boxes):
                found.notes.setdefault(why, []).append(s.label)
    found.lines = [command(box, extra) for box in merge(boxes)] + found.lines
    return found


def _find(s: Snapshot, composer: Composer, found: Retry, boxes: list[dict[str, str]]) -> str:
    """Add what leads to the cell to the boxes or lines; returns why there is nothing, if there is nothing."""
    key, own = CellKey.from_path(s.directory), _noted(s)
    if isinstance(own, str):
        return own
    if key is None:
        return "its path does not name a cell"
    if own.get("name") != key.name:  # the folder was renamed or copied
        own["name"] = _quoted(key.name)
    output = Path(os.path.abspath(s.directory)).parents[len(key.path.parts) - 1]
    plain = [f"{k}={v}" for k, v in own.items()]
    why = ""
    # A -m line writes every value anew (false becomes False), which may name another variant: then a line without it.
    for words in (composer.swept(plain), plain):
        cell = _led_to(composer, words)
        if isinstance(cell, UserError):
            return f"{cell.what}; {_started(s)}"
        why = why or _difference(cell, key, s)
        if not _difference(cell, key, s):
            if os.path.realpath(cell.directory) != os.path.realpath(s.directory):  # started in another folder than this
                below = output.is_relative_to(Path.cwd())
                own["output_dir"] = _quoted(str(output.relative_to(Path.cwd()) if below else output))
            if words is not plain:
                boxes.append(own)
            else:
                found.lines.append(shlex.join(["python", "train.py", *(f"{k}={v}" for k, v in own.items())]))
            return ""
    return why


def _led_to(composer: Composer, overrides: Sequence[str]) -> Cell | UserError:
    """The cell that overrides lead to, or why they cannot be composed."""
    ((_, composed),) = composer.each([overrides])
    try:
        if isinstance(composed, UserError):
            return composed
        return open_cell(composed.cfg, composed.resolved, composed.task_overrides)
    except UserError as error:
        return error


def _difference(cell: Cell, key: CellKey, s: Snapshot) -> str:
    """Why a cell is not the one of the directory; empty if it is."""
    record = s.run.identity_record()
    if cell.key == key and record is not None and cell.fingerprint == record.fingerprint:
        return ""
    return f"was made by another version of the code or its configuration files: {_AGAIN}, or redo=true"


def _noted(s: Snapshot) -> dict[str, str] | str:
    try:
        record = s.run.identity_record()
    except Unreadable as error:
        return f"identity.json {error}: {_AGAIN}"
    if record is None:
        return f"has no identity.json: {_AGAIN}"
    if record.overrides is None:
        return f"was started by an earlier version, which did not note the overrides of a cell; {_started(s)}"
    own = split_overrides(record.overrides)
    own.pop("redo", None)  # it would throw away what the cell has reached
    return own


def _started(s: Snapshot) -> str:
    """The command of the newest start, if it was typed by hand."""
    last = s.run.last_attempt()[1]
    if last is None or last.command[:1] != ["train.py"]:
        return _AGAIN
    return f"it was started with `{shlex.join(['python', *last.command])}`"


def _quoted(value: str) -> str:
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(value, Quote.single).with_quotes()


def text(found: Retry) -> str:
    """What `fsseg retry` prints."""
    if not found.cells:
        return "nothing to run again"
    lines = [f"{len(found.cells)} cells ended without a result:"]
    lines += [visible(f"  {s.label}  {s.state}" + (f": {s.reason}" if s.reason else "")) for s in found.cells]
    if found.lines:
        lines += ["", "run them again, from the folder they were started in:", *map(visible, found.lines)]
    if found.notes:
        lines += ["", "no line found for:"]
        for why, labels in found.notes.items():
            lines += [*(f"  {visible(label)}" for label in labels), f"  -> {visible(why)}"]
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
        print(f"\n$ {visible(line)}", flush=True)
        failed += subprocess.run([sys.executable, str(script), *words[2:]]).returncode != 0
    return failed
