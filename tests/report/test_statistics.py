"""Means, spreads, paired differences and shares against figures worked out by hand and by the standard library."""

from __future__ import annotations

import itertools
import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsseg.report.statistics import Interval, PairedDifference, Statistic, mean, sample_std, shares

PERCENT = st.floats(0, 100)


@given(st.lists(PERCENT, min_size=2, max_size=20))
def test_mean_and_deviation_are_those_of_the_standard_library(values: list[float]) -> None:
    assert mean(values) == statistics.fmean(values)
    assert sample_std(values) == pytest.approx(statistics.stdev(values), rel=1e-9, abs=1e-12)


def test_no_figure_depends_on_the_order() -> None:
    values = [0.1, 70.3, 33.3, 99.9, 1e-9]
    assert len({mean(order) for order in itertools.permutations(values)}) == 1
    assert len({sample_std(order) for order in itertools.permutations(values)}) == 1


def test_one_value_has_no_deviation() -> None:
    assert sample_std([3.0]) is None
    assert str(Statistic.of({(0, 0): 50.0, (1, 0): 60.0})) == "55.00"  # two folds, but one seed


def test_the_deviation_of_a_statistic_is_that_of_the_seeds_means_over_folds() -> None:
    # seed 0: (10 + 30) / 2 = 20; seed 1: (12 + 36) / 2 = 24; mean 22, deviation sqrt((4 + 4) / 1)
    found = Statistic.of({(0, 0): 10.0, (1, 0): 30.0, (0, 1): 12.0, (1, 1): 36.0})
    assert found == Statistic(22.0, pytest.approx(math.sqrt(8)))  # type: ignore[arg-type]
    assert str(found) == "22.00 ±2.83"


def test_a_difference_over_pairs_has_the_interval_of_students_t() -> None:
    # 3 and 1: mean 2, deviation sqrt(2), error sqrt(2) / sqrt(2) = 1; t of 1 degree is 12.706
    found = PairedDifference.over([3.0, 1.0], [0, 1])
    assert (found.mean, found.pairs) == (2.0, 2)
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == pytest.approx((2 - 12.7062, 2 + 12.7062), abs=1e-4)
    assert found.interval.over == "runs"
    assert str(found) == "+2.00 [-10.71, +14.71] (2 pairs)"


def test_one_pair_says_that_it_has_no_interval() -> None:
    assert str(PairedDifference.over([-1.5], [0])) == "-1.50 (1 pair, no interval)"


def test_an_interval_excludes_zero_on_either_side() -> None:
    ends = [(-2.0, -1.0), (-1.0, 0.0), (0.0, 1.0), (-1.0, 1.0), (0.5, 1.0)]
    assert [Interval(*pair, "runs").excludes_zero for pair in ends] == [True, False, False, False, True]


def test_shares_are_of_everything_counted() -> None:
    assert shares([[1, 0, 3], [2, 2, 0]]) == [37.5, 25.0, 37.5]  # 3, 2 and 3 of 8
    assert shares([[0, 0]]) is None
    assert shares([]) is None
