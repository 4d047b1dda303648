"""Rows of one table against each other, pair by pair on the same episodes. `fsseg.report.tables` calls `paired`.

A pair is two runs of one fold and training seed that were scored on the same lists of episodes: what makes a fold hard
or a seed lucky is in both, and falls out of their difference. docs/statistics.md has the formulas.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fsseg.process.words import several
from fsseg.report.collect import CellResult
from fsseg.report.intervals import Episodes, Part, classes_of, episodes_of, folds_of, interval_of, without_reason
from fsseg.report.significance import Improvement, SignedRank, holm, probability_of_improvement, signed_rank
from fsseg.report.statistics import PairedDifference, mean, t_interval

if TYPE_CHECKING:
    from fsseg.report.resampling import Scores

_MOST = 12  # rows of a table that are set against each other
_REFERENCE = "baseline"
Pair = tuple[CellResult, CellResult]


@dataclass(frozen=True)
class RowComparison:
    """The mIoU of a row less that of another one, the reference, for a number of shots.

    Attributes:
        difference: None if the two cannot be compared; `refused` says why.
        episodes: that both rows of each fold were scored on, summed over folds; 0 if they were not used.
        folds, classes: the difference of each fold and of each class of a fold, with its interval.
        wins: in how many pairs the row scores higher.
        test: Wilcoxon's, over the pairs; None if none differs.
        p_holm: its p, corrected for all comparisons of the table.
        improvement: P(a run of the row scores higher than one of the reference).
        left_out: pairs that are not in it, each with the reason.
        reason: why the interval is Student's t over the pairs, and there are no classes; empty otherwise.
    """

    row: str
    reference: str
    shot: int
    difference: PairedDifference | None = None
    refused: str = ""
    episodes: int = 0
    folds: tuple[Part, ...] = ()
    classes: tuple[Part, ...] = ()
    wins: int = 0
    test: SignedRank | None = None
    p_holm: float | None = None
    improvement: Improvement | None = None
    left_out: tuple[str, ...] = ()
    reason: str = ""

    def __str__(self) -> str:
        who = f"{self.row} against {self.reference}, {self.shot}-shot"
        if self.difference is None:
            return f"{who}: not compared: {self.refused}"
        parts = [f"{who}, paired by fold and training seed on the same episodes: {self.difference}"]
        parts.append(f"higher in {self.wins} of {self.difference.pairs}")
        if self.improvement is not None:
            parts.append(f"probability of improvement {self.improvement}")
        if self.test is not None:
            adjusted = "" if self.p_holm is None else f", {self.p_holm:.2g} after Holm"
            parts.append(f"Wilcoxon p {self.test.p:.2g}{adjusted}")
        if self.left_out:
            parts.append(f"left out: {several(self.left_out, 4)}")
        return "; ".join(parts)


def compare(
    ours: Sequence[CellResult], theirs: Sequence[CellResult], episodes: Episodes | None = None
) -> RowComparison:
    """Two rows for one number of shots, on the folds and training seeds of both that had the same episodes.

    `p_holm` is not there yet: `corrected` makes it for all comparisons that are told together.

    Args:
        ours, theirs: cells with a score, one for each fold and training seed.
    """
    blank = RowComparison("", "", ours[0].key.shot if ours else 0)
    opposite = {(c.key.fold, c.key.seed): c for c in theirs}
    met = [(c, other) for c in ours if (other := opposite.get((c.key.fold, c.key.seed))) is not None]
    if not met:
        return replace(blank, refused="no fold and training seed in common")
    pairs, left_out = [], []
    for a, b in met:
        if a.episodes == b.episodes != ():
            pairs.append((a, b))
        else:
            why = "scored on different episodes" if a.episodes and b.episodes else "its episodes are not recorded"
            left_out.append(f"fold {a.key.fold} seed {a.key.seed}: {why}")
    found = (episodes or Episodes()).scores([(cell, "", -1) for pair in pairs for cell in pair])
    unlike = [
        place for place, (one, two) in enumerate(zip(found[::2], found[1::2]))
        if not isinstance(one, str) and not isinstance(two, str) and one.digest != two.digest
    ]  # fmt: skip
    left_out += [
        f"fold {pairs[i][0].key.fold} seed {pairs[i][0].key.seed}: their episodes.npz have different episodes"
        for i in unlike
    ]
    kept = [i for i in range(len(pairs)) if i not in unlike]
    if not kept:
        return replace(blank, refused=several(left_out, 4))
    answers = [found[2 * i + side] for i in kept for side in (0, 1)]
    return _told(replace(blank, left_out=tuple(left_out)), [pairs[i] for i in kept], answers)


def _told(blank: RowComparison, pairs: Sequence[Pair], found: Sequence[Scores | str]) -> RowComparison:
    """What is said of pairs.

    Args:
        found: the resampled scores of both sides of each pair, one pair after the other.
    """
    differences = [_miou(a) - _miou(b) for a, b in pairs]
    sides = (_by_fold(side) for side in zip(*pairs))
    told = replace(
        blank, wins=sum(d > 0 for d in differences), test=signed_rank(differences),
        improvement=probability_of_improvement(*sides),
    )  # fmt: skip
    whole, reason = without_reason([cell for pair in pairs for cell in pair], found)
    if reason:
        difference = PairedDifference(mean(differences), t_interval(differences, "pairs"), len(pairs))
        return replace(told, difference=difference, reason=reason)
    unlike = [a.less(b) for a, b in zip(whole[::2], whole[1::2])]
    runs = [scores.miou for scores in unlike]
    return replace(
        told, difference=PairedDifference(mean(differences), interval_of(runs), len(pairs)),
        episodes=episodes_of(unlike), folds=folds_of(runs), classes=classes_of(unlike),
    )  # fmt: skip


def _miou(cell: CellResult) -> float:
    if (miou := cell.result.miou) is None:
        raise ValueError("only cells that have a score")
    return miou


def _by_fold(cells: Iterable[CellResult]) -> dict[int, list[float]]:
    found: dict[int, list[float]] = defaultdict(list)
    for cell in cells:
        found[cell.key.fold].append(_miou(cell))
    return found


def corrected(comparisons: Sequence[RowComparison]) -> list[RowComparison]:
    """The same with p values for all of them together (`holm`)."""
    adjusted = holm([c.test.p if c.test is not None else None for c in comparisons])
    return [replace(c, p_holm=p) for c, p in zip(comparisons, adjusted)]


def paired(rows: Mapping[str, Sequence[CellResult]], episodes: Episodes | None = None) -> list[RowComparison]:
    """Every row against the first one of the method `baseline`, or if there is none against the first row.

    Empty for a table of one method, whose variants are told apart by what was tried, and for one of very many rows.

    Args:
        rows: label -> the cells that its numbers are made of, one for each shot, fold and seed.
    """
    methods = {label: cells[0].key.method for label, cells in rows.items() if cells}
    if len(set(methods.values())) < 2 or len(methods) > _MOST:
        return []
    reference = next((label for label, method in methods.items() if method == _REFERENCE), next(iter(methods)))
    theirs, episodes = _by_shot(rows[reference]), episodes or Episodes()
    found = []
    for label in methods:
        for shot, ours in sorted(_by_shot(rows[label]).items()):
            if label != reference and shot in theirs:
                found.append(replace(compare(ours, theirs[shot], episodes), row=label, reference=reference, shot=shot))
    return corrected(found)


def _by_shot(cells: Sequence[CellResult]) -> dict[int, list[CellResult]]:
    found: dict[int, list[CellResult]] = defaultdict(list)
    for cell in cells:
        found[cell.key.shot].append(cell)
    return found
