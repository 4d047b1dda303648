"""What `fsseg.sweep.merge` found of each cell and did with it, and how `fsseg merge` tells it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fsseg.cell.key import LEVELS, CellKey
from fsseg.cell.models import State
from fsseg.cell.record import RunDirectory
from fsseg.errors import visible
from fsseg.process.words import count
from fsseg.sweep.copies import RunCopy

_MOST_LINES = 40  # of each kind


@dataclass
class CellCopy:
    """A copy of a cell in one of the sources.

    Attributes:
        told: its folder or address.
        root: the folder that was named; None of a store.
        copy: None if not even its records can be read.
        fault: what of it was cut short or cannot be read.
        left: why it has nothing to bring.
        in_place: it lies in the output folder, where it belongs.
    """

    told: str
    root: Path | None = None
    copy: RunCopy | None = None
    key: CellKey | None = None
    state: State | None = None
    fault: str = ""
    left: str = ""
    in_place: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether nothing would be lost without it: it ended before its first checkpoint."""
        part = RunDirectory(Path()).episodes_part.name
        return self.copy is not None and self.state != State.DONE and not (
            self.copy.has_checkpoint() or part in self.copy.files
        )  # fmt: skip


@dataclass(frozen=True)
class Conflict:
    """Two copies of a cell that are of two runs: where they lie, and what differs."""

    one: str
    other: str
    why: str
    differing: list[str]
    one_stays: bool


@dataclass
class MergedCell:
    """What became of a cell.

    Attributes:
        directory: in the output folder.
        copies: in the sources.
        brought: files that were put into place, or would be.
        state: of what is there then; None if nothing is.
        left: copies that stay where they are, each with its reason.
        torn: copies that are not whole, each with its fault.
        errors: copies that could not be brought or removed, each with its fault.
        removed: copies that were moved.
        unlinked: files that were copied although they were to be linked.
        damaged: what is wrong with the run in the output folder.
    """

    directory: Path
    copies: list[CellCopy]
    brought: int = 0
    state: State | None = None
    conflicts: list[Conflict] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)
    torn: list[tuple[str, str]] = field(default_factory=list)
    errors: list[tuple[str, str]] = field(default_factory=list)
    removed: int = 0
    unlinked: int = 0
    damaged: str = ""

    @property
    def is_missing(self) -> bool:
        """Whether a copy of it is lacking in the output folder."""
        return bool(self.conflicts or self.errors or self.damaged or (self.torn and self.state is None))


@dataclass
class Merged:
    """What a merge achieved.

    Attributes:
        cells: sorted by path.
        strange: runs that name no cell, and folders that cannot be read.
        sweeps: records that were brought, or would be.
        left_sweeps: records that stay, each with its reason.
        check: nothing was changed.
    """

    output: Path
    check: bool
    cells: list[MergedCell] = field(default_factory=list)
    strange: list[tuple[str, str]] = field(default_factory=list)
    sweeps: int = 0
    left_sweeps: list[tuple[str, str]] = field(default_factory=list)

    @property
    def faults(self) -> int:
        """Cells that are not complete in the output folder, and what could not be read."""
        # A link that leads up is named, and nothing is lacking for it.
        strange = [place for place, _ in self.strange if not os.path.islink(place)]
        return sum(cell.is_missing for cell in self.cells) + len(strange)


def text(merged: Merged) -> str:
    """What `fsseg merge` prints."""
    cells = merged.cells
    changed = [cell for cell in cells if cell.brought]
    done = sum(cell.state == State.DONE for cell in cells)
    to_go_on = sum(cell.state is not None for cell in cells) - done
    would = "would be " * merged.check
    copies, moved = sum(len(cell.copies) for cell in cells), sum(cell.removed for cell in cells)
    if not changed and not merged.sweeps and not moved:
        head = f"nothing to do: {count(len(cells), 'cell')} in {count(copies, 'copy', 'copies')}"
    else:
        files = count(sum(cell.brought for cell in changed), "file")
        head = (
            f"{count(len(cells), 'cell')} in {count(copies, 'copy', 'copies')}: {len(changed)} {would}brought ({files})"
        )
        head += f", {count(merged.sweeps, 'record')} of sweeps {would}brought" * bool(merged.sweeps)
        head += f", {moved} removed where they were" * bool(moved)
    lines = [f"{head}; in {merged.output}: {done} done, {to_go_on} to go on"]
    for cell in cells:
        for conflict in cell.conflicts:
            lines += _conflict_text(conflict, cell)
    _section(lines, "not whole", [found for cell in cells for found in cell.torn])
    _section(lines, "not whole", [(str(cell.directory), cell.damaged) for cell in cells if cell.damaged])
    _section(lines, "not brought", [found for cell in cells for found in cell.errors])
    _section(lines, "cannot be read", merged.strange)
    _section(lines, "stays there", [found for cell in cells for found in cell.left])
    _section(lines, "stays there", merged.left_sweeps)
    if unlinked := sum(cell.unlinked for cell in cells):
        why = f"{merged.output} is on another file system, or cannot have links"
        lines.append(f"{count(unlinked, 'file')} copied and not linked: {why}")
    if to_go_on:
        lines.append(f"to go on, start the line of these cells here (output_dir={merged.output})")
    return "\n".join(map(visible, lines))


def _conflict_text(conflict: Conflict, cell: MergedCell) -> list[str]:
    stays = f"that in {cell.directory.parents[LEVELS - 1]} stays" if conflict.one_stays else "neither is brought"
    return [
        f"  refused: {conflict.why} of one cell, {stays}:",
        f"    {conflict.one}",
        f"    {conflict.other}",
        *(f"      {line}" for line in conflict.differing),
    ]


def _section(lines: list[str], title: str, found: Sequence[tuple[str, str]]) -> None:
    lines += [f"  {title}: {place}: {why}" for place, why in found[:_MOST_LINES]]
    if len(found) > _MOST_LINES:
        lines.append(f"  ... and {len(found) - _MOST_LINES} more")
