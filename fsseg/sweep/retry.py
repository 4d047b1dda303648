"""`fsseg retry`: the cells that ended without a result, and the lines that run just them again.

Nothing has to be reset: a cell without `result.json` is not done, a run continues from its checkpoint and takes over a
stale claim by itself. So the whole sweep line works too. The lines here are for users who lost it, or want only these
cells. They are made from the overrides in each cell's `identity.json`. These are composed again, and a line is given
only if they lead to the same directory and fingerprint.

Run directories may come from others. So what is stored there is data: an interpolation is not evaluated, and Hydra's
own settings and options are not obeyed. A cell with such overrides gets no line, but the reason.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsseg.cell.key import CellKey, output_of
from fsseg.cell.models import LOST, State, Unreadable
from fsseg.cell.record import Cell, Snapshot, open_cell
from fsseg.errors import UserError, visible
from fsseg.process.command import train_words
from fsseg.sweep.boxes import command, merge
from fsseg.sweep.elsewhere import Elsewhere
from fsseg.sweep.grid import split_overrides
from fsseg.sweep.status import Surroundings, look_around

if TYPE_CHECKING:
    from fsseg.config.compose import Composer

_AGAIN = "run its sweep line again"
_KEY = re.compile(r"(\+\+|\+|~)?(?!hydra\b)[A-Za-z_]\w*([./@]\w+)*", re.ASCII)
"""Of an override that sets something of a cell: no option of the command line, nothing of Hydra's own."""


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
    return retries_among(look_around(list(folders)), extra)


def retries_among(around: Surroundings, extra: Sequence[str] = (), absent: Sequence[CellKey] = ()) -> Retry:
    """The same of cells that were looked at.

    Args:
        absent: cells that nobody started, of rows of which there are others: a line for them is made from one of these.
    """
    found = Retry([s for s in around.cells if s.state in LOST and not s.alive])
    for s in around.cells:
        if s.state == State.UNKNOWN:
            found.notes.setdefault(f"{s.reason}: look where it is, or {_AGAIN}", []).append(s.label)
    if not found.cells and not absent:
        return found  # Hydra is not even imported
    from fsseg.config.compose import composer

    boxes: list[dict[str, str]] = []
    with composer() as c:
        for s in found.cells:
            try:
                noted = _noted(s, around.elsewhere)
                why = noted if isinstance(noted, str) else _find(s, noted, c, found, boxes)
            except UserError as error:
                why = f"{error.what}; {_started(s)}"
            except Exception as error:  # whatever one cell's files hold, the others go on
                why = _not_composed(error)
            if why:
                found.notes.setdefault(why, []).append(s.label)
        _find_absent(absent, around, c, found, boxes)
    found.lines = [command(box, extra) for box in merge(boxes)] + found.lines
    return found


def _find_absent(
    absent: Sequence[CellKey], around: Surroundings, composer: Composer, found: Retry, boxes: list[dict[str, str]]
) -> None:
    """Add what leads to cells that nobody started: what another cell of their row was started with, at their place."""
    rows: dict[CellKey, list[Snapshot]] = {}
    for s in around.cells if absent else ():
        if s.key is not None:
            rows.setdefault(_row(s.run.row_key(s.key)), []).append(s)
    wanted: dict[Path, tuple[Snapshot, list[CellKey]]] = {}
    for key in absent:
        if not (siblings := rows.get(_row(key))):
            found.notes.setdefault(f"no cell of its row has a directory: {_AGAIN}", []).append(str(key))
            continue
        sibling = min(siblings, key=lambda s: (s.key is None or s.key.shot != key.shot, s.label))
        wanted.setdefault(sibling.directory, (sibling, []))[1].append(key)
    for s, keys in wanted.values():
        try:
            noted = _noted(s, around.elsewhere)
            why = noted if isinstance(noted, str) else _find_beside(s, noted, keys, composer, found, boxes)
        except UserError as error:
            why = f"{error.what}; so it is of {s.label}, of their row"
        except Exception as error:
            why = _not_composed(error)
        if why:
            found.notes.setdefault(why, []).extend(map(str, keys))


def _find_beside(
    s: Snapshot, noted: _Noted, keys: Sequence[CellKey], composer: Composer, found: Retry, boxes: list[dict[str, str]]
) -> str:
    """Add what leads to absent cells beside one that is there; returns why there is nothing, if there is nothing.

    What leads to the one that is there is looked for first, so that it is known to be whole.
    """
    there, swept = Retry([]), list[dict[str, str]]()
    if why := _find(s, noted, composer, there, swept):
        return f"{why} (so it is of {s.label}, of their row)"
    key_there = CellKey.from_path(s.directory)
    assert key_there is not None  # it was found
    output = output_of(s.directory)
    own = swept[0] if swept else noted.overrides
    made = []
    for key in keys:
        place = {name: getattr(key, name) for name in ("shot", "fold", "seed")}
        words = {**own, **{k: str(v) for k, v in place.items() if k in own or getattr(key_there, k) != v}}
        line = [f"{k}={v}" for k, v in words.items()]
        cell, _ = _led_to(composer, list(composer.swept(line)) if swept else line, output)
        if cell.key != key:
            return f"what leads to {s.label}, of their row, does not lead to them: {_AGAIN}"
        made.append(words)
    if swept:
        boxes += made
    else:
        found.lines += map(_line_of_one, made)
    return ""


def _row(key: CellKey) -> CellKey:
    """What cells have in common that are columns of one row."""
    return replace(key, shot=0, fold=0, seed=0)


def _not_composed(error: Exception) -> str:
    return f"its overrides cannot be composed ({type(error).__name__}); {_AGAIN}"


@dataclass(frozen=True)
class _Noted:
    """What a cell was started with, and the fingerprint that it had."""

    overrides: dict[str, str]
    fingerprint: str


def _find(s: Snapshot, noted: _Noted, composer: Composer, found: Retry, boxes: list[dict[str, str]]) -> str:
    """Add what leads to the cell to the boxes or lines; returns why there is nothing, if there is nothing.

    Raises:
        UserError: its overrides cannot be composed.
    """
    key, own = CellKey.from_path(s.directory), noted.overrides
    if key is None:
        return "its path does not name a cell"
    if own.get("name") != key.name:  # the folder was renamed or copied
        own["name"] = _quoted(key.name)
    output = output_of(s.directory)
    if why := _unfit(own) or _unfit({"output_dir": _quoted(str(output))}):
        return f"{why}; {_started(s)}"
    plain = [f"{k}={v}" for k, v in own.items()]
    why = ""
    # A -m line writes every value anew (false becomes False), which may name another variant: then a line without it.
    swept = list(composer.swept(plain))
    for words in (swept, plain) if swept != plain else (swept,):
        cell, home = _led_to(composer, words, output)
        if cell.key != key or cell.fingerprint != noted.fingerprint:
            why = why or f"was made by another version of the code or its configuration files: {_AGAIN}, or redo=true"
            continue
        if os.path.realpath(home) != os.path.realpath(output):  # started in another folder than this
            own["output_dir"] = _quoted(str(output))
        if words is not plain:
            boxes.append(own)
        else:
            found.lines.append(_line_of_one(own))
        return ""
    return why


def _line_of_one(own: Mapping[str, str]) -> str:
    """The line of a single cell, without -m."""
    return shlex.join([*train_words(), *(f"{k}={v}" for k, v in own.items())])


def _unfit(own: Mapping[str, str]) -> str:
    """Why overrides cannot be handed on as they are stored; empty if they can.

    Raises:
        UserError: one is not in Hydra's grammar.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from fsseg.config.entry import explained

    parser = OverridesParser.create()
    for key, value in own.items():
        word = f"{key}={value}"
        if not word.isprintable():
            return f"{ascii(word)[1:-1]} holds characters that cannot be printed"
        if not _KEY.fullmatch(key):
            return f"{word} is no setting of a cell"
        with explained():
            override = parser.parse_override(word)
        if override.is_sweep_override():
            return f"{word} is a setting of more than one cell"
        if any("${" in text for text in _texts(override.value())):  # `$\{` too means one
            return f"{word} holds an interpolation ${{...}}, and what is stored is not evaluated"
    return ""


def _texts(value: Any) -> Iterator[str]:
    """All strings in a value, keys of mappings too."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from (*_texts(key), *_texts(item))
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    else:
        yield str(value)


def _led_to(composer: Composer, overrides: Sequence[str], output: Path) -> tuple[Cell, str]:
    """The cell that overrides lead to in an output folder, and the output folder that they name themselves.

    Raises:
        UserError: they cannot be composed.
    """
    ((_, composed),) = composer.each([overrides])
    if isinstance(composed, UserError):
        raise composed
    cell = open_cell(composed.cfg, composed.resolved, composed.task_overrides, output)
    return cell, composed.cfg.output_dir


def _noted(s: Snapshot, elsewhere: Elsewhere) -> _Noted | str:
    """What the cell says of itself, or the newest sweep of a cell that never started; or why there is nothing."""
    try:
        record = s.run.identity_record()
    except Unreadable as error:
        return f"identity.json {error}: {_AGAIN}"
    places = elsewhere.places(s.directory)
    if record is None and not places:
        return f"has no identity.json: {_AGAIN}"
    if record is None:
        overrides, fingerprint = places[-1].cell.overrides, places[-1].cell.fingerprint
    elif record.overrides is None:
        return f"was started by an earlier version, which did not note the overrides of a cell; {_started(s)}"
    else:
        overrides, fingerprint = record.overrides, record.fingerprint
    own = split_overrides(overrides)
    # redo=true would throw away what the cell has reached.
    return _Noted({k: v for k, v in own.items() if k.lstrip("+~") != "redo"}, fingerprint)


def _started(s: Snapshot) -> str:
    """The command of the newest start, if it was typed by hand."""
    last = s.run.last_attempt()[1]
    by_hand = {"train.py": ["python", "train.py"], "fsseg train": ["fsseg", "train"]}
    if last is None or (start := by_hand.get("".join(last.command[:1]))) is None:
        return _AGAIN
    line = shlex.join([*start, *last.command[1:]])
    return f"it was started with `{line}`" if line.isprintable() else _AGAIN


def _quoted(value: str) -> str:
    """A text in Hydra's quotes, if it needs them."""
    from hydra.core.override_parser.types import Quote, QuotedString

    if re.fullmatch(r"/?[A-Za-z_][\w./-]*", value, re.ASCII) and value.lower() not in (
        "true",
        "false",
        "null",
        "nan",
        "inf",
    ):
        return value
    return QuotedString(value, Quote.single).with_quotes()


def text(found: Retry) -> str:
    """What `fsseg retry` prints."""
    if not found.cells and not found.notes:
        return "nothing to run again"
    lines = [f"{len(found.cells)} cells ended without a result" + ":" * bool(found.cells)]
    lines += [visible(f"  {s.label}  {s.state}" + (f": {s.reason}" if s.reason else "")) for s in found.cells]
    if found.lines:
        lines += ["", "run them again, from the folder they were started in:", *map(visible, found.lines)]
    if found.notes:
        lines += ["", "no line found for:"]
        for why, labels in found.notes.items():
            lines += [*(f"  {visible(label)}" for label in labels), f"  -> {visible(why)}"]
    return "\n".join(lines)


def run_lines(lines: Sequence[str]) -> int:
    """Run the lines one after the other, here; returns how many of them failed."""
    failed = 0
    for line in lines:
        words = shlex.split(line)
        print(f"\n$ {visible(line)}", flush=True)
        start = ["train.py"] if words[:2] == ["python", "train.py"] else ["-m", "fsseg", "train"]
        failed += subprocess.run([sys.executable, *start, *words[2:]]).returncode != 0
    return failed
