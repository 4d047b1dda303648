"""Which episodes are the best, the median and the worst: by hand."""

from __future__ import annotations

import numpy as np
import pytest

from fsseg.cell.episodes import EpisodeCounts, EpisodeScope, Scored
from fsseg.cell.extremes import Ranked, extremes, extremes_of_classes, ranked

SCOPE = EpisodeScope((7, 3), (4, 9), ("cat", "cow"))


def episode(number: int, value: float, class_id: int = 4) -> Ranked:
    return Ranked(7, number, class_id, value)


def numbers(found: dict[str, list[Ranked]]) -> dict[str, list[int]]:
    return {rank: [e.number for e in some] for rank, some in found.items()}


def test_among_equal_values_the_earlier_episode_comes_first() -> None:
    # rising: 10 (number 1), 10 (3), 50 (0), 70 (4), 90 (2), 90 (5), 95 (6): the middle three are 50, 70, 90
    every = [episode(n, v) for n, v in enumerate((50.0, 10.0, 90.0, 10.0, 70.0, 90.0, 95.0))]
    assert numbers(extremes(every, 3)) == {"best": [6, 2, 5], "median": [0, 4, 2], "worst": [1, 3, 0]}


@pytest.mark.parametrize(
    ("count", "median"),
    [(1, [1]), (2, [1, 2]), (3, [0, 1, 2]), (4, [0, 1, 2, 3]), (9, [0, 1, 2, 3])],
)
def test_the_middle_of_an_even_number_of_episodes(count: int, median: list[int]) -> None:
    found = numbers(extremes([episode(n, float(n)) for n in range(4)], count))
    assert found == {"best": [3, 2, 1, 0][:count], "median": median, "worst": [0, 1, 2, 3][:count]}


def test_each_class_has_extremes_of_its_own() -> None:
    every = [episode(0, 1.0, 9), episode(1, 5.0), episode(2, 3.0), episode(3, 2.0, 9), episode(4, 4.0)]
    found = numbers(extremes_of_classes(every, 1))
    assert found == {"best": [1, 3], "median": [4, 0], "worst": [2, 0]}


def test_episodes_are_ranked_in_the_order_of_the_protocol_and_without_iou_not_at_all() -> None:
    def scored(seed: int, number: int, both: int, either: int) -> Scored:
        return Scored(seed, number, 4, "", both, [(both, either, 100 - either, 100 - both)])

    counts = EpisodeCounts.of(SCOPE, [scored(3, 0, 1, 4), scored(7, 1, 0, 0), scored(7, 0, 3, 4)])
    found = ranked(counts, counts.iou())
    assert found == [Ranked(7, 0, 4, 75.0), Ranked(3, 0, 4, 25.0)]  # seed 7 is the protocol's first
    assert np.isnan(counts.iou()[1])


def test_counts_that_differ_in_a_pixel_are_unlike() -> None:
    def counts(*intersections: int) -> EpisodeCounts:
        """Of the last round; the first one is the same in all."""
        rounds = [[(both, 12, 88, 100 - both) for both in (1, last)] for last in intersections]
        return EpisodeCounts.of(SCOPE, [Scored(7, n, 4, "", 9, pixels) for n, pixels in enumerate(rounds)])

    assert counts(5, 6, 7).unlike(counts(5, 6)) == []
    assert counts(5, 6).unlike(counts(5, 8, 7)) == [("", 7, 1), ("", 7, 2)]  # another count, and one that is not there
