"""Methods of one table against each other, pair by pair on the same episodes. `fsseg.report.tables` calls `paired`.

A pair is two runs of one fold and training seed that were scored on the same lists of episodes: what makes a fold hard
or a seed lucky is in both, and falls out of their difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fsseg.report.collect import CellResult
from fsseg.report.statistics import PairedDifference

_MOST = 12  # rows of a table that are set against each other
_REFERENCE = "baseline"


@dataclass(frozen=True)
class Paired:
    """The mIoU of a row less that of another one, the reference, for a number of shots."""

    row: str
    reference: str
    shot: int
    difference: PairedDifference

    def __str__(self) -> str:
        return (
            f"{self.row} against {self.reference}, {self.shot}-shot, paired by fold and training seed on the same "
            f"episodes: {self.difference}"
        )


def paired(rows: Mapping[str, Sequence[CellResult]]) -> list[Paired]:
    """Every row against the first one of the method `baseline`, or if there is none against the first row.

    Empty for a table of one method, whose variants are told apart by what was tried, and for one of very many rows.

    Args:
        rows: label -> the cells that its numbers are made of, one for each shot, fold and seed.
    """
    methods = {label: cells[0].key.method for label, cells in rows.items() if cells}
    if len(set(methods.values())) < 2 or len(methods) > _MOST:
        return []
    reference = next((label for label, method in methods.items() if method == _REFERENCE), next(iter(methods)))
    theirs = _by_place(rows[reference])
    found = []
    for label in methods:
        if label == reference:
            continue
        ours = _by_place(rows[label])
        for shot in sorted({shot for shot, *_ in ours}):
            pairs = [(c, theirs[place]) for place, c in ours.items() if place in theirs and place[0] == shot]
            alike = [(one.result.miou, two.result.miou) for one, two in pairs if one.episodes == two.episodes != ()]
            if (difference := PairedDifference.of(alike)) is not None:
                found.append(Paired(label, reference, shot, difference))
    return found


def _by_place(cells: Sequence[CellResult]) -> dict[tuple[int, int, int], CellResult]:
    """Number of shots, fold and seed -> cell."""
    return {(c.key.shot, c.key.fold, c.key.seed): c for c in cells}
