"""Rows of one table against each other, pair by pair on the same episodes. `fsseg.report.tables` calls `paired`.

A pair is two runs of one fold and training seed that were scored on the same lists of episodes: what makes a fold hard
or a seed lucky is in both, and falls out of their difference. docs/statistics.md has the formulas.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from fsseg.process.words import count, several
from fsseg.report.collect import CellResult
from fsseg.report.intervals import Episodes, ScorePart, classes_of, episodes_of, folds_of, interval_of, without_reason
from fsseg.report.resampling import Resampled, Scores
from fsseg.report.significance import Improvement, SignedRank, holm, probability_of_improvement, signed_rank
from fsseg.report.statistics import BOTH, IMAGES, RUNS, PairedDifference, mean_of_folds

_MOST = 12  # rows of a table that are set against each other
_REFERENCE = "baseline"
BRACKETS = "[low, high]"
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
    folds: tuple[ScorePart, ...] = ()
    classes: tuple[ScorePart, ...] = ()
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
        parts.append(f"higher in {self.wins} of {count(self.difference.pairs, 'pair')}")
        if self.improvement is not None:
            parts.append(f"probability of improvement {self.improvement}")
        if self.test is not None:
            adjusted = "" if self.p_holm in (None, self.test.p) else f", {self.p_holm:.2g} after Holm"
            parts.append(f"Wilcoxon p {self.test.p:.2g}{adjusted}{self.test.limits}")
        if self.left_out:
            parts.append(f"left out: {several(self.left_out, 4)}")
        return "; ".join(parts)


def notes_on(comparisons: Sequence[RowComparison]) -> list[str]:
    """What the intervals of comparisons are, for the notes of a table; nothing without one."""
    told = [c for c in comparisons if c.difference is not None and c.difference.interval is not None]
    return notes_on_intervals([(c.difference, c.reason) for c in told if c.difference is not None])


def notes_on_intervals(differences: Iterable[tuple[PairedDifference, str]]) -> list[str]:
    """What the intervals of differences are over.

    Args:
        differences: each with the reason why its interval is not of recorded episodes; empty if it is.
    """
    over: dict[str, list[str]] = {}
    for difference, reason in differences:
        if difference.interval is not None:
            over.setdefault(difference.interval.over, []).append(reason)
    notes = []
    for kind, reasons in over.items():
        what = f"{BRACKETS}: 95 % interval over {kind}"
        if kind == RUNS:
            notes.append(f"{what} (Student's t), as single episodes cannot be used: {several(unique(reasons), 1)}")
        elif kind == IMAGES:
            notes.append(f"{what}, for these trained models: how much other training seeds would change is not in it")
        else:
            notes.append(what)
    return notes


def notes_on_parts(comparisons: Sequence[RowComparison]) -> list[str]:
    """In which folds and classes the intervals are over less than that of the whole; for whoever shows them."""
    folds: set[int] = set()
    for c in comparisons:
        if c.difference is not None and c.difference.interval is not None and c.difference.interval.over == BOTH:
            folds |= {p.fold for p in c.folds if p.interval is not None and p.interval.over == IMAGES}
    if not folds:
        return []
    which = f"fold{'s' * (len(folds) > 1)} {', '.join(map(str, sorted(folds)))}"
    return [f"of {which}, which {'have' if len(folds) > 1 else 'has'} one pair, it is over query images alone"]


def unique(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))


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
    folds = [a.key.fold for a, _ in pairs]
    sides = (_by_fold(side) for side in zip(*pairs))
    told = replace(
        blank, wins=sum(d > 0 for d in differences), test=signed_rank(differences),
        improvement=probability_of_improvement(*sides),
    )  # fmt: skip
    whole, reason = without_reason([cell for pair in pairs for cell in pair], found)
    if reason:
        return replace(told, difference=PairedDifference.over(differences, folds), reason=reason)
    unlike = [a.less(b) for a, b in zip(whole[::2], whole[1::2])]
    runs = [scores.miou for scores in unlike]
    return replace(
        told, difference=PairedDifference(mean_of_folds(differences, folds), interval_of(runs), len(pairs)),
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


class Term(NamedTuple):
    """An answer in a sum: added or taken away (`sign`), of a cell, at a shift, in a round (`Episodes.scores`)."""

    sign: int
    cell: CellResult
    shift: str
    round: int


def difference_of(
    pairs: Sequence[tuple[float, Sequence[Term]]], episodes: Episodes
) -> tuple[PairedDifference, str] | None:
    """The mean of sums of answers over pairs of runs, and why its interval is not of recorded episodes (else empty).

    Args:
        pairs: the recorded value of each sum, and the answers it is of: all of one fold, and those at one shift of the
            same episodes. None without one.
    """
    if not pairs:
        return None
    values, folds = [value for value, _ in pairs], [terms[0].cell.key.fold for _, terms in pairs]
    terms = [term for _, of_pair in pairs for term in of_pair]
    whole, reason = without_reason((t.cell for t in terms), episodes.scores([t[1:] for t in terms]))
    if not reason:
        reason = next(filter(None, (_unlike(t) for t in _grouped(pairs, whole))), "")
    if reason:
        return PairedDifference.over(values, folds), reason
    runs = [Resampled.total([(t.sign, s.miou) for t, s in of_pair]) for of_pair in _grouped(pairs, whole)]
    return PairedDifference(mean_of_folds(values, folds), interval_of(runs), len(values)), ""


def _grouped(
    pairs: Sequence[tuple[float, Sequence[Term]]], whole: Sequence[Scores]
) -> Iterator[list[tuple[Term, Scores]]]:
    left = iter(whole)
    for _, terms in pairs:
        yield [(term, next(left)) for term in terms]


def _unlike(of_pair: Sequence[tuple[Term, Scores]]) -> str:
    """Why answers at one shift are not of the same episodes; empty if they are."""
    digests: dict[str, str] = {}
    for term, scores in of_pair:
        if digests.setdefault(term.shift, scores.digest) != scores.digest:
            return f"{term.cell.path} has other episodes in its episodes.npz"
    return ""
