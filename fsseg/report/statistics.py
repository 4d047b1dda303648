"""Means, spreads, intervals and differences as the tables and notes of a report show them.

All sums use `math.fsum`: no figure depends on the order in which the runs were read. `fsseg.report.resampling` makes
intervals of recorded episodes, `fsseg.report.significance` the tests; docs/statistics.md has the formulas.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fsseg.process.words import count

LEVEL = 0.95
"""Of every interval."""
IMAGES = "query images"
BOTH = "query images and training seeds"
RUNS = "runs"
"""What an interval can be over (`Interval.over`)."""


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def mean_of_folds(values: Sequence[float], folds: Sequence[int]) -> float:
    """Mean over folds of the mean of each: a fold counts alike however many training seeds it has.

    Args:
        folds: that of each value.
    """
    return mean([mean([v for v, f in zip(values, folds) if f == fold]) for fold in sorted(set(folds))])


def sample_std(values: Sequence[float]) -> float | None:
    """Sample standard deviation (n - 1); None for fewer than two values."""
    if len(values) < 2:
        return None
    middle = mean(values)
    return math.sqrt(math.fsum((v - middle) ** 2 for v in values) / (len(values) - 1))


@dataclass(frozen=True)
class Statistic:
    """Mean over folds and training seeds; `std` is that of the seeds' means over folds, with two seeds or more."""

    mean: float
    std: float | None

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + ("" if self.std is None else f" ±{self.std:.2f}")

    @classmethod
    def of(cls, values: Mapping[tuple[int, int], float]) -> Statistic:
        """Of values by (fold, seed); every seed has the same folds."""
        of_seed: dict[int, list[float]] = {}
        for (_, seed), value in values.items():
            of_seed.setdefault(seed, []).append(value)
        return cls(mean(list(values.values())), sample_std([mean(of_seed[seed]) for seed in sorted(of_seed)]))


@dataclass(frozen=True)
class Interval:
    """A 95 % interval.

    Attributes:
        over: what it is over: `IMAGES`, `BOTH`, or `RUNS` of a fold and training seed. What is not named there is
            held fixed: how much it would change the number is not in the interval.
    """

    low: float
    high: float
    over: str

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0

    def brackets(self, form: str) -> str:
        """`[1.21, 6.80]`, both ends in the form that is given (`.2f`)."""
        return f"[{self.low:{form}}, {self.high:{form}}]"


def t_interval(values: Sequence[float], middle: float) -> Interval | None:
    """Student's t over runs or pairs of runs, as if they were independent; None for fewer than two.

    Args:
        middle: of the interval: their mean, or that of folds.
    """
    std = sample_std(values)
    if std is None:
        return None
    half = t_quantile(len(values) - 1) * std / math.sqrt(len(values))
    return Interval(middle - half, middle + half, RUNS)


def t_quantile(degrees: float) -> float:
    """Half the width of a 95 % interval of Student's t, in standard errors."""
    from scipy.special import stdtrit  # a fifth of a second, only for reports that have a difference

    return float(stdtrit(degrees, 0.5 + LEVEL / 2))


@dataclass(frozen=True)
class PairedDifference:
    """Mean over folds of first minus second, with its interval; None where one pair is all there is to go by."""

    mean: float
    interval: Interval | None
    pairs: int

    def __str__(self) -> str:
        """`+4.00 [+1.21, +6.80] (3 pairs)`."""
        what = count(self.pairs, "pair")
        if self.interval is None:
            return f"{self.mean:+.2f} ({what}, no interval)"
        return f"{self.mean:+.2f} {self.interval.brackets('+.2f')} ({what})"

    @classmethod
    def over(cls, differences: Sequence[float], folds: Sequence[int]) -> PairedDifference:
        """Of the differences of pairs, at least one, with Student's t over them.

        Args:
            folds: that of each pair.
        """
        middle = mean_of_folds(differences, folds)
        return cls(middle, t_interval(differences, middle), len(differences))


def shares(histograms: Sequence[Sequence[int]]) -> list[float] | None:
    """Share of each bin in the sum of equally long histograms, in percent; None where nothing was counted."""
    total = sum(map(sum, histograms))
    return [100 * sum(column) / total for column in zip(*histograms)] if total else None
