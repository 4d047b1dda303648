"""Means, spreads and paired differences for all tables and notes of a report.

All sums use `math.fsum`: no figure depends on the order in which the runs were read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


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
class PairedDifference:
    """Mean of first minus second over pairs, with its standard error if there are two pairs or more."""

    mean: float
    standard_error: float | None
    pairs: int

    def __str__(self) -> str:
        error = "" if self.standard_error is None else f"standard error {self.standard_error:.2f}, "
        return f"{self.mean:+.2f} ({error}{self.pairs} pair{'' if self.pairs == 1 else 's'})"

    @classmethod
    def of(cls, pairs: Iterable[tuple[float | None, float | None]]) -> PairedDifference | None:
        """Over the pairs measured on both sides; None if there is no such pair."""
        differences = [a - b for a, b in pairs if a is not None and b is not None]
        if not differences:
            return None
        std, num = sample_std(differences), len(differences)
        return cls(mean(differences), None if std is None else std / math.sqrt(num), num)


def shares(histograms: Sequence[Sequence[int]]) -> list[float] | None:
    """Share of each bin in the sum of equally long histograms, in percent; None where nothing was counted."""
    total = sum(map(sum, histograms))
    return [100 * sum(column) / total for column in zip(*histograms)] if total else None
