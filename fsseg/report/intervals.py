"""Intervals of scores: of a cell, of a row of several folds and training seeds, of each class and each fold.

`fsseg.report.pairs` compares rows with it, and whoever shows a number with its interval asks it:

    episodes = Episodes()              # reads each episodes.npz once
    episodes.score(cells)              # of one cell, or of all cells of a row and number of shots
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fsseg.cell.models import Unreadable
from fsseg.cell.record import RunDirectory
from fsseg.report.collect import CellResult
from fsseg.report.statistics import Interval, mean, mean_of_folds, t_interval

if TYPE_CHECKING:
    from fsseg.cell.episodes import EpisodeCounts
    from fsseg.report.resampling import Queries, Resampled, Scores

_TOGETHER = 32  # answers that are read and resampled together: about a megabyte each
_KEPT = 256  # answers whose resamples are kept: 16 kB a class
_ROUNDING = 1e-6  # between the mIoU of a result and that of its counts

Answer = tuple[Path, str, int]
"""Run directory, shift and round."""


@dataclass(frozen=True)
class ScorePart:
    """One number of a fold or a class, with its interval if it has one; a score in percent, or a difference of two."""

    name: str
    fold: int
    value: float
    interval: Interval | None


@dataclass(frozen=True)
class Score:
    """mIoU in percent: mean over training seeds, then over folds, with its interval.

    Attributes:
        interval: over the query images, and over training seeds where a fold has several; over (fold, seed) runs where
            `reason` says why no episodes could be used. None where there is nothing to go by.
        runs: how many cells it is the mean of, and `episodes` how many each fold has, summed over folds.
        folds, classes: the same of each fold and of each class of a fold.
        reason: why there are no classes and no interval over images; empty otherwise.
    """

    value: float
    interval: Interval | None
    runs: int
    episodes: int
    folds: tuple[ScorePart, ...] = ()
    classes: tuple[ScorePart, ...] = ()
    reason: str = ""


class Episodes:
    """The recorded episodes of cells, resampled as they are asked for, and kept while there is room."""

    def __init__(self) -> None:
        self._counts: OrderedDict[Path, EpisodeCounts | str] = OrderedDict()
        self._scores: OrderedDict[Answer, Scores | str] = OrderedDict()

    def scores(self, wanted: Sequence[tuple[CellResult, str, int]]) -> list[Scores | str]:
        """The resampled scores of answers; a text says why there are none.

        Args:
            wanted: each a cell, a shift and a round: one of `eval.background_shifts`, or empty for the protocol's own
                episodes; -1 for the last round, which is the answer.
        """
        keys = [(cell.path, shift, round) for cell, shift, round in wanted]
        found = {key: self._scores[key] for key in keys if key in self._scores}
        todo = {key: (cell, shift, round) for key, (cell, shift, round) in zip(keys, wanted) if key not in found}
        # one fold after the other: what has the same queries is resampled together
        order = sorted(todo.items(), key=lambda item: (item[1][0].key.shot, item[1][0].key.fold))
        for start in range(0, len(order), _TOGETHER):
            made = self._made(dict(order[start : start + _TOGETHER]))
            found |= made
            for key, scores in made.items():
                self._scores[key] = scores
        while len(self._scores) > _KEPT:
            self._scores.popitem(last=False)
        return [found[key] for key in keys]

    def _made(self, wanted: Mapping[Answer, tuple[CellResult, str, int]]) -> dict[Answer, Scores | str]:
        from fsseg.report.resampling import scores

        queries: dict[tuple[Path, str], Queries | str] = {}
        for (path, shift, _), (cell, *_rest) in wanted.items():
            if (path, shift) not in queries:
                queries[path, shift] = self._queries(cell, shift)
        found: dict[Answer, Scores | str] = {}
        whole = []
        for key, (cell, shift, round) in wanted.items():
            if isinstance(of_key := queries[cell.path, shift], str):
                found[key] = of_key
            else:
                whole.append((key, (cell.key.fold, of_key, round)))
        for (key, _), made in zip(whole, scores([answer for _, answer in whole])):
            recorded = wanted[key][0].result.miou
            unlike = key[1:] == ("", -1) and recorded is not None and abs(made.miou.value - recorded) > _ROUNDING
            found[key] = (
                f"episodes.npz gives an mIoU of {made.miou.value:.2f}, not that of result.json" if unlike else made
            )
        return found

    def _queries(self, cell: CellResult, shift: str) -> Queries | str:
        from fsseg.report.resampling import Queries

        counts = self._read(cell)
        if isinstance(counts, str):
            return counts
        if shift not in counts.scope.shifts:
            return f"episodes.npz has no background shift {shift}"
        try:
            return Queries.of(counts, shift, cell.result.protocol.get("undrawn") == "zero")
        except ValueError as error:
            return f"episodes.npz has {error}"

    def _read(self, cell: CellResult) -> EpisodeCounts | str:
        from fsseg.cell.episodes import read_counts

        if cell.result.episodes is None:
            return "has no record of single episodes"
        if (held := self._counts.get(cell.path)) is None:
            try:
                held = read_counts(RunDirectory(cell.path).episodes_file, cell.result.episodes)
            except Unreadable as error:
                held = f"episodes.npz {error}"
            self._counts[cell.path] = held
            if len(self._counts) > 1:  # the next question is of another shift or round of the same cell, if any
                self._counts.popitem(last=False)
        return held

    def score(self, cells: Sequence[CellResult]) -> Score:
        """Of cells of one row and number of shots, each with a score.

        Raises:
            ValueError: there is none, or one has no score.
        """
        mious = [cell.result.miou for cell in cells]
        known = [miou for miou in mious if miou is not None]
        if not known or len(known) < len(mious):
            raise ValueError("only cells that have a score")
        value = mean_of_folds(known, [cell.key.fold for cell in cells])
        whole, reason = without_reason(cells, self.scores([(cell, "", -1) for cell in cells]))
        if reason:
            return Score(value, t_interval(known, value), len(known), 0, reason=reason)
        runs = [s.miou for s in whole]
        return Score(value, interval_of(runs), len(known), episodes_of(whole), folds_of(runs), classes_of(whole))


def without_reason(cells: Iterable[CellResult], found: Iterable[Scores | str]) -> tuple[list[Scores], str]:
    """The scores if every cell has some; otherwise none, and which cell has none and why."""
    whole = []
    for cell, scores in zip(cells, found):
        if isinstance(scores, str):
            return [], f"{cell.path} {scores}"
        whole.append(scores)
    return whole, ""


def episodes_of(found: Iterable[Scores]) -> int:
    """Episodes of one run of each fold; those of other training seeds are the same."""
    return sum({scores.miou.fold: scores.episodes for scores in found}.values())


def interval_of(runs: Sequence[Resampled]) -> Interval | None:
    """`fsseg.report.resampling.interval`."""
    from fsseg.report.resampling import interval

    return interval(runs)


def folds_of(runs: Sequence[Resampled]) -> tuple[ScorePart, ...]:
    """The mean of each fold."""
    return tuple(
        ScorePart(f"fold {fold}", fold, mean([run.value for run in of_fold]), interval_of(of_fold))
        for fold in sorted({run.fold for run in runs})
        if (of_fold := [run for run in runs if run.fold == fold])
    )


def classes_of(found: Iterable[Scores]) -> tuple[ScorePart, ...]:
    """The mean of each class of each fold, in the order of the folds."""
    of_class: dict[tuple[int, str], list[Resampled]] = {}
    for scores in found:
        for name, run in scores.classes.items():
            of_class.setdefault((run.fold, name), []).append(run)
    order = sorted(of_class, key=lambda key: key[0])
    return tuple(
        ScorePart(name, fold, mean([run.value for run in of_class[fold, name]]), interval_of(of_class[fold, name]))
        for fold, name in order
    )
