"""Tests of a difference over pairs of runs: exact Wilcoxon, Holm's correction, probability of improvement.

`fsseg.report.pairs` uses them. docs/statistics.md has formulas and sources.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fsseg.process.words import count
from fsseg.report.resampling import RESAMPLES, drawn_counts
from fsseg.report.statistics import LEVEL, Interval, mean


@dataclass(frozen=True)
class SignedRank:
    """Wilcoxon's signed rank test, two-sided.

    Attributes:
        p: exact; of the pairs that differ.
        pairs: that differ; `equal` are those that do not, which the test leaves out.
        smallest: the p of as many pairs that all have one sign: no smaller one can come out.
    """

    p: float
    pairs: int
    equal: int
    smallest: float

    @property
    def limits(self) -> str:
        """What to know of p beside it: that so few pairs cannot show much, and that pairs were left out."""
        told = [f"{count(self.equal, 'equal pair')} left out"] * (self.equal > 0)
        if self.smallest > 0.05:
            told.append(f"{count(self.pairs, 'pair')} can give no less than {self.smallest:.2g}")
        return f" ({', '.join(told)})" if told else ""


def signed_rank(differences: Sequence[float]) -> SignedRank | None:
    """Exact Wilcoxon test that paired differences are symmetric about 0; None if none differs from 0.

    Zeros are left out, and equal sizes share the mean of their ranks, as Wilcoxon has it. The distribution is that of
    all 2^n signs of the ranks at hand, so it is exact with ties too, where the tables of scipy's wilcoxon are not;
    without ties the two agree.
    """
    unequal = sorted((d for d in differences if d != 0), key=abs)
    if not unequal:
        return None
    sizes = [abs(d) for d in unequal]
    # twice the mean rank: whole numbers, so that sums of ranks are places in an array
    ranks = [2 * sizes.index(s) + sizes.count(s) + 1 for s in sizes]
    total = sum(ranks)
    chances = np.zeros(total + 1)
    chances[0] = 1.0
    for rank in ranks:
        chances[rank:] = chances[rank:] + chances[:-rank]
        chances /= 2
    rise = sum(rank for rank, d in zip(ranks, unequal) if d > 0)
    tail = float(chances[: min(rise, total - rise) + 1].sum())
    num = len(unequal)
    return SignedRank(min(1.0, 2 * tail), num, len(differences) - num, min(1.0, 2.0 ** (1 - num)))


def holm(values: Sequence[float | None]) -> list[float | None]:
    """p values of one family of comparisons, each so large that all may be held against one level (Holm 1979).

    The smallest of m is multiplied by m, the next one by m - 1, and so on; none becomes smaller than the one before it,
    and none larger than 1. None stays None and belongs to no family.
    """
    order = sorted((i for i, p in enumerate(values) if p is not None), key=lambda i: values[i] or 0.0)
    adjusted: list[float | None] = [None] * len(values)
    so_far = 0.0
    for place, i in enumerate(order):
        so_far = max(so_far, min(1.0, (len(order) - place) * (values[i] or 0.0)))
        adjusted[i] = so_far
    return adjusted


@dataclass(frozen=True)
class Improvement:
    """Probability that a run of the first row scores higher than one of the second, on the same fold.

    Attributes:
        interval: over training seeds; None where no fold has two runs of a row, or all draws agree, as where every run
            of one row is higher: that would say that it is certain.
    """

    probability: float
    interval: Interval | None

    def __str__(self) -> str:
        text = f"{self.probability:.2f}"
        return text if self.interval is None else f"{text} {self.interval.brackets('.2f')}"


def probability_of_improvement(
    ours: Mapping[int, Sequence[float]], theirs: Mapping[int, Sequence[float]]
) -> Improvement | None:
    """P(X > Y) of Agarwal et al. (2021): in each fold the share of all runs of X and Y in which X is higher, equal ones
    count half; then the mean over folds. None without a fold of both.

    Args:
        ours, theirs: fold -> scores of its runs. The interval draws the runs of each fold and row anew.
    """
    folds = sorted(fold for fold in ours if fold in theirs)
    if not folds:
        return None
    values, resampled = [], np.zeros(RESAMPLES)
    for fold in folds:
        first, second = (np.sort(np.asarray(side[fold], dtype=np.float64)) for side in (ours, theirs))
        won = (first[:, None] > second).astype(np.float64) + 0.5 * (first[:, None] == second)
        values.append(float(won.mean()))
        of_first, of_second = (drawn_counts(v.size, b"runs", i.to_bytes(1, "big"), v.tobytes())
                               for i, v in enumerate((first, second)))  # fmt: skip
        resampled += np.einsum("bi,ij,bj->b", of_first, won, of_second) / won.size / len(folds)
    several = any(len(side[fold]) > 1 for fold in folds for side in (ours, theirs))
    low, high = np.quantile(resampled, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2]).tolist()
    return Improvement(mean(values), Interval(low, high, "training seeds") if several and low < high else None)
