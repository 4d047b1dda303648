"""Wilcoxon, Holm and the probability of improvement: against scipy, enumeration and hand calculation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats

from fsseg.report.significance import holm, probability_of_improvement, signed_rank


@pytest.mark.parametrize("pairs", [1, 2, 3, 6, 12, 25])
def test_without_ties_the_test_is_scipys_exact_one(pairs: int) -> None:
    differences = np.random.RandomState(pairs).normal(0.4, 1, pairs)
    found = signed_rank(differences.tolist())
    assert found is not None
    assert found.p == pytest.approx(scipy.stats.wilcoxon(differences, method="exact").pvalue, rel=1e-12)
    assert (found.pairs, found.equal, found.smallest) == (pairs, 0, pytest.approx(min(1, 2 / 2**pairs)))


def test_ties_and_zeros_are_exact_too() -> None:
    differences = [1.0, -1.0, 2.0, 0.0, 2.0, 3.0, 2.0, 0.0]
    found = signed_rank(differences)
    assert found is not None
    ranks = scipy.stats.rankdata([abs(d) for d in differences if d])  # 1.5, 1.5, 4, 4, 6, 4
    sums = [sum(r for r, sign in zip(ranks, signs) if sign) for signs in itertools.product((0, 1), repeat=6)]
    ours = 1.5 + 4 + 4 + 6 + 4
    tails = np.mean([s <= ours for s in sums]), np.mean([s >= ours for s in sums])
    assert found.p == pytest.approx(min(1, 2 * min(tails)))
    assert (found.pairs, found.equal) == (6, 2)
    assert found.limits == " (2 equal pairs left out)"  # 6 pairs can give 0.03


def test_few_pairs_say_what_they_can_give() -> None:
    found = signed_rank([1.0, 2.0, 0.5, 0.1])
    assert found is not None
    assert (found.p, found.smallest) == (0.125, 0.125)
    assert found.limits == " (4 pairs can give no less than 0.12)"


def test_no_difference_no_test() -> None:
    assert signed_rank([0.0, 0.0]) is None
    assert signed_rank([]) is None


def test_holms_correction_by_hand() -> None:
    # sorted 0.01, 0.03, 0.04: 3 x 0.01, 2 x 0.03, and 0.04 x 1 raised to 0.06
    assert holm([0.04, 0.01, None, 0.03]) == pytest.approx([0.06, 0.03, None, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_probability_of_improvement_is_a_mean_over_folds() -> None:
    # fold 0: 62 beats 60 and 61, 60 ties one and loses one: 2.5 of 4; fold 1: 1 of 1; fold 2 has no opponent
    found = probability_of_improvement({0: [62, 60], 1: [50], 2: [9]}, {0: [60, 61], 1: [40]})
    assert found is not None
    assert found.probability == pytest.approx((2.5 / 4 + 1) / 2)
    # a resample of fold 0 gives 0 at the least (60 twice against 61 twice) and 1 at most
    assert found.interval is not None
    assert found.interval.low == pytest.approx(0.5 + 0 / 2)
    assert found.interval.high == pytest.approx(1.0)
    assert str(found) == "0.81 [0.50, 1.00]"


def test_a_row_that_is_always_higher_has_no_interval() -> None:
    """Every draw of two runs of each gives 1: that says nothing of how sure it is."""
    found = probability_of_improvement({0: [5.0, 6.0]}, {0: [1.0, 2.0]})
    assert found is not None
    assert (found.probability, found.interval) == (1.0, None)


def test_one_run_a_fold_has_no_interval() -> None:
    found = probability_of_improvement({0: [1.0], 1: [2.0]}, {0: [0.0], 1: [3.0]})
    assert found is not None
    assert (found.probability, found.interval, str(found)) == (0.5, None, "0.50")
    assert probability_of_improvement({0: [1.0]}, {1: [1.0]}) is None
