"""Bootstrap of scores over the query images of recorded episodes (`episodes.npz`). `fsseg.report.intervals` calls it.

A score is a mean of ratios of sums of pixels. On each resample the queries of every class are drawn anew, with
replacement, each with all of its episodes; the sums, ratios and means are made again. Sums of whole numbers are exact
in double precision, so no number depends on the order in which a machine adds. docs/statistics.md has the formulas.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fsseg.cell.episodes import OWN, EpisodeCounts
from fsseg.report.statistics import BOTH, IMAGES, Interval, mean, mean_of_folds, t_quantile

RESAMPLES = 2000
"""Of every bootstrap."""
_STACKED = 32  # answers whose sums are made together; more take more memory and no less time
_KEPT = 64  # classes whose draws are kept: up to half a megabyte each


def drawn_counts(number: int, *content: bytes) -> NDArray[np.uint8]:
    """(`RESAMPLES`, number): how often each of `number` units is drawn when as many are drawn with replacement.

    Args:
        content: what the units are: the same content gives the same draws, in every order of reading and on every
            machine (the stream of `numpy.random.RandomState` is frozen).
    """
    digest = hashlib.sha256(b"\0".join([b"fsseg bootstrap", str(number).encode(), *content])).digest()
    random = np.random.RandomState(np.frombuffer(digest, dtype="<u4"))  # type: ignore[arg-type]
    drawn = random.randint(0, number, size=(RESAMPLES, number), dtype=np.int64)
    drawn += number * np.arange(RESAMPLES)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=RESAMPLES * number)
    return np.minimum(counts, 255).astype(np.uint8).reshape(RESAMPLES, number)


@lru_cache(_KEPT)
def _draws_of_class(truth: bytes) -> NDArray[np.uint8]:
    return drawn_counts(len(truth) // 24, truth)


@dataclass(frozen=True)
class Queries:
    """The counts of one run at one shift, summed over the episodes of each query: C classes, Q queries, S seeds.

    What a query is follows from its class and its pixels, true foreground and counted ones: episodes that agree in them
    are of one image. Two images of a class that happen to agree count as one, which makes intervals no narrower.

    Attributes:
        classes: names of the classes that have an episode.
        truth: (Q, 3) int64, class, foreground and counted pixels, in this order.
        bounds: (C + 1) places in `truth` where a class begins.
        intersection, union: (R, S, Q) float64, whole numbers.
        drawn: (S, C) whether a seed has an episode of a class.
        zero: a class that a seed has no episode of counts 0 there (`protocol.undrawn`), otherwise it is left out.
        scope_size: classes of the protocol, drawn or not.
        episodes: how many, and `digest` which they are.
    """

    classes: tuple[str, ...]
    truth: NDArray[np.int64]
    bounds: tuple[int, ...]
    intersection: NDArray[np.float64]
    union: NDArray[np.float64]
    drawn: NDArray[np.bool_]
    zero: bool
    scope_size: int
    episodes: int
    digest: str

    @classmethod
    def of(cls, counts: EpisodeCounts, shift: str = OWN, zero: bool = False) -> Queries:
        """Of the episodes of a shift.

        Raises:
            ValueError: there is none.
        """
        rows = counts.select(shift).rows
        if not len(rows):
            raise ValueError("no episode")
        scope = counts.scope
        counted = rows["union"][:, 0].astype(np.int64) + rows["background_intersection"][:, 0]
        columns = [rows["class_id"].astype(np.int64), rows["foreground"].astype(np.int64), counted]
        order = np.lexsort(columns[::-1])
        ordered = np.stack(columns, axis=1)[order]
        first = np.r_[True, (ordered[1:] != ordered[:-1]).any(axis=1)]
        query = np.empty(len(rows), dtype=np.int64)
        query[order] = np.cumsum(first) - 1
        truth = ordered[first]
        ids, starts = np.unique(truth[:, 0], return_index=True)
        names = dict(zip(scope.classes, scope.class_names))
        # one place for each seed and query: a sum over each is one pass over the episodes
        place = sum(s * (rows["seed"] == seed) for s, seed in enumerate(scope.seeds)) * len(truth) + query
        size = (len(scope.seeds), len(truth))
        both, either = (
            np.stack(
                [np.bincount(place, column[:, r], math.prod(size)).reshape(size) for r in range(counts.rounds)],
                dtype=np.float64,
            )
            for column in (rows["intersection"], rows["union"])
        )
        met = np.bincount(place, minlength=math.prod(size)).reshape(size)
        drawn = np.add.reduceat(met, starts, axis=1) > 0
        which = b"".join(np.ascontiguousarray(c).tobytes() for c in (rows["seed"], rows["number"], *columns))
        return cls(
            tuple(names[i] for i in ids.tolist()), truth, (*starts.tolist(), len(truth)), both, either, drawn,
            zero, len(scope.classes), len(rows), hashlib.sha256(which).hexdigest(),
        )  # fmt: skip

    @cached_property
    def draws_key(self) -> bytes:
        """Equal for runs that are resampled alike: those with the same queries."""
        return self.truth.tobytes()

    @property
    def sizes(self) -> tuple[int, ...]:
        """Queries of each class."""
        return tuple(b - a for a, b in zip(self.bounds, self.bounds[1:]))

    def shares(self) -> NDArray[np.float64]:
        """(S, C) what the IoU of a class in a seed counts in the mIoU."""
        drawn = self.drawn.astype(np.float64)
        of_seed = np.full(len(drawn), self.scope_size) if self.zero else drawn.sum(axis=1)
        return drawn / np.maximum(of_seed, 1)[:, None] / len(drawn)


class Resampled(NamedTuple):
    """One number of one run, or of a pair of runs, and what it is on every resample.

    Attributes:
        fold: of the run.
        value: in percent.
        resampled: (`RESAMPLES`,) the same on each resample.
        queries: distinct queries behind it, drawn within each of `strata` classes.
        effective: queries of equal size that would say as much (Kish 1965), of one class; harmonic mean of the classes.
    """

    fold: int
    value: float
    resampled: NDArray[np.float64]
    queries: int
    strata: int
    effective: float

    @classmethod
    def total(cls, terms: Sequence[tuple[int, Resampled]]) -> Resampled:
        """Numbers of one fold, added up with their signs, resample by resample."""
        return terms[0][1]._replace(
            value=math.fsum(sign * term.value for sign, term in terms),
            resampled=np.sum([s * t.resampled for s, t in terms], axis=0),
            effective=min(term.effective for _, term in terms),
        )

    def less(self, other: Resampled) -> Resampled:
        """The difference, resample by resample; only of numbers that are resampled alike."""
        return self.total([(1, self), (-1, other)])


@dataclass(frozen=True)
class Scores:
    """mIoU and the IoU of each class of one answer, resampled.

    Attributes:
        episodes: how many, and `digest` which they are: two answers are compared only if they agree in it.
    """

    miou: Resampled
    classes: dict[str, Resampled]
    episodes: int
    digest: str

    def less(self, other: Scores) -> Scores:
        """The differences, resample by resample; only of answers to the same queries."""
        return replace(
            self, miou=self.miou.less(other.miou),
            classes={name: own.less(other.classes[name]) for name, own in self.classes.items()},
        )  # fmt: skip


def scores(answers: Sequence[tuple[int, Queries, int]]) -> list[Scores]:
    """The scores of answers, each given as fold, queries and round; those with the same queries are made together."""
    found: dict[int, Scores] = {}
    alike: dict[bytes, list[int]] = defaultdict(list)
    for place, (_, queries, _) in enumerate(answers):
        alike[queries.draws_key].append(place)
    for places in alike.values():
        for start in range(0, len(places), _STACKED):
            some = places[start : start + _STACKED]
            found |= zip(some, _stacked([answers[place] for place in some]))
    return [found[place] for place in range(len(answers))]


def _stacked(answers: Sequence[tuple[int, Queries, int]]) -> list[Scores]:
    first = answers[0][1]
    mious = np.zeros((len(answers), RESAMPLES + 1))
    missed = np.zeros(len(answers))  # sum over classes of the share of the variance that a bootstrap does not see
    of_class: list[dict[str, Resampled]] = [{} for _ in answers]
    for c, (name, start, end) in enumerate(zip(first.classes, first.bounds, first.bounds[1:])):
        draws = _draws_of_class(first.truth[start:end].tobytes())
        weights = np.concatenate([np.ones((1, end - start)), draws])  # the first line is the number itself
        sums = [np.stack([q.intersection[r, :, start:end], q.union[r, :, start:end]]) for _, q, r in answers]
        seeds = [len(q.drawn) for _, q, _ in answers]
        stacked = np.concatenate([s.reshape(-1, end - start) for s in sums]) @ weights.T
        for i, block in enumerate(np.split(stacked, np.cumsum([2 * s for s in seeds])[:-1])):
            both, either = block.reshape(2, seeds[i], -1)
            # where no pixel of a seed is drawn, its own ratio stands: the resample says nothing of it
            own = np.where(either[:, :1] > 0, both[:, :1] / np.maximum(either[:, :1], 1), 0.0)
            iou = 100 * np.divide(both, either, out=np.repeat(own, RESAMPLES + 1, axis=1), where=either > 0)
            fold, queries, _ = answers[i]
            mious[i] += (queries.shares()[:, c, None] * iou).sum(axis=0)
            line = iou[queries.drawn[:, c]].mean(axis=0)
            effective = _effective(sums[i][1].sum(axis=0))
            missed[i] += 1 / effective
            of_class[i][name] = Resampled(fold, float(line[0]), line[1:], end - start, 1, effective)
    return [
        Scores(
            Resampled(fold, float(line[0]), line[1:], len(q.truth), len(q.classes), len(q.classes) / float(lost)),
            classes, q.episodes, q.digest,
        )
        for (fold, q, _), line, lost, classes in zip(answers, mious, missed, of_class)
    ]  # fmt: skip


def _effective(sizes: NDArray[np.float64]) -> float:
    """How many queries of equal size say as much of a ratio of sums as those of these sizes (Kish 1965)."""
    squares = float((sizes**2).sum())
    return float(sizes.sum()) ** 2 / squares if squares > 0 else float(len(sizes))


def interval(runs: Sequence[Resampled]) -> Interval | None:
    """95 % interval of the mean of runs: over training seeds, then over folds. Those of a fold share their episodes.

    Over query images: the percentiles of the resampled mean, expanded for few queries (Hesterberg 2015), where large
    objects make them fewer than they are. Where a fold has several training seeds, over those too: the squared half
    widths add up (Zou and Donner 2008), that of the seeds being Student's t with the deviation within folds.

    None where the queries of a class are too few to draw from.
    """
    by_fold: dict[int, list[Resampled]] = defaultdict(list)
    for run in runs:
        by_fold[run.fold].append(run)
    value = mean_of_folds([run.value for run in runs], [run.fold for run in runs])
    resampled = np.mean([np.mean([run.resampled for run in of_fold], axis=0) for of_fold in by_fold.values()], axis=0)
    strata = sum(of_fold[0].strata for of_fold in by_fold.values())
    each = strata / math.fsum(max(run.strata / run.effective for run in of_fold) for of_fold in by_fold.values())
    if sum(of_fold[0].queries for of_fold in by_fold.values()) <= strata or each <= 1:
        return None
    expanded = t_quantile(strata * (each - 1)) * math.sqrt(each / (each - 1))
    low, high = np.quantile(resampled, _tails(expanded)).tolist()
    seeds = _of_seeds([[run.value for run in of_fold] for of_fold in by_fold.values()])
    if seeds is None:
        return Interval(low, high, IMAGES)
    return Interval(
        value - math.hypot(value - low, seeds), value + math.hypot(high - value, seeds),
        BOTH,
    )  # fmt: skip


def _tails(quantile: float) -> list[float]:
    """The two tails of the normal distribution beyond so many standard deviations."""
    tail = 0.5 * math.erfc(quantile / math.sqrt(2))
    return [tail, 1 - tail]


def _of_seeds(folds: Sequence[Sequence[float]]) -> float | None:
    """Half width of the 95 % interval of the mean of the folds' means over what varies within folds; None without two
    values in one fold.

    The deviation is pooled over the folds.
    """
    degrees = sum(len(of_fold) - 1 for of_fold in folds)
    if degrees == 0:
        return None
    squares = math.fsum((v - mean(of_fold)) ** 2 for of_fold in folds for v in of_fold)
    error = math.sqrt(squares / degrees * math.fsum(1 / len(of_fold) for of_fold in folds)) / len(folds)
    return t_quantile(degrees) * error
