"""The bootstrap over query images: against loops written for the purpose, scipy's bootstrap, and hand calculation."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from episode_scores import scores as independent_scores
from made_episodes import COUNTED, counts_of, made_areas, share_of

from fsseg.cell.episodes import EpisodeCounts, EpisodeScope, Scored, write_counts
from fsseg.report.resampling import RESAMPLES, Queries, Resampled, drawn_counts, interval, scores


def episode(seed: int, number: int, class_id: int, area: int, both: int, either: int) -> Scored:
    return Scored(seed, number, class_id, "", area, [(both, either, COUNTED - either, COUNTED - both)])


SCOPE = EpisodeScope((7, 3), (1, 4, 6), ("cat", "dog", "cow"))
EPISODES = [
    # one image of a cat twice in seed 7 and once in seed 3, another one once; a dog in seed 3 alone; no cow
    episode(7, 0, 1, 10, 5, 20), episode(7, 1, 1, 10, 9, 10), episode(7, 2, 1, 30, 1, 50),
    episode(3, 0, 1, 10, 8, 10), episode(3, 1, 4, 40, 10, 50),
]  # fmt: skip


def test_episodes_of_one_image_are_one_query() -> None:
    queries = Queries.of(EpisodeCounts.of(SCOPE, EPISODES))
    assert queries.classes == ("cat", "dog")
    assert queries.truth.tolist() == [[1, 10, COUNTED], [1, 30, COUNTED], [4, 40, COUNTED]]
    assert queries.bounds == (0, 2, 3)
    assert queries.intersection[0].tolist() == [[14, 1, 0], [8, 0, 10]]  # seeds 7 and 3
    assert queries.union[0].tolist() == [[30, 50, 0], [10, 0, 50]]
    assert queries.episodes == 5


@pytest.mark.parametrize(("zero", "miou"), [(False, (15 / 80 + (8 / 10 + 10 / 50) / 2) / 2),
                                            (True, (15 / 80 / 3 + (8 / 10 + 10 / 50) / 3) / 2)])  # fmt: skip
def test_the_score_follows_the_rule_for_classes_without_episode(zero: bool, miou: float) -> None:
    (found,) = scores([(2, Queries.of(EpisodeCounts.of(SCOPE, EPISODES), zero=zero), -1)])
    assert found.miou.value == pytest.approx(100 * miou)
    assert found.classes["cat"].value == pytest.approx(100 * (15 / 80 + 8 / 10) / 2)
    assert found.classes["dog"].value == pytest.approx(20.0)  # of the one seed that drew it
    assert (found.miou.fold, found.miou.queries, found.miou.strata, found.classes["cat"].queries) == (2, 3, 2, 2)
    # unions of 30 + 10 and 50 pixels are worth (40 + 50)^2 / (40^2 + 50^2) images; of the dog there is one
    assert found.classes["cat"].effective == pytest.approx(8100 / 4100)
    assert found.miou.effective == pytest.approx(2 / (4100 / 8100 + 1))


def test_the_score_is_that_of_the_file_for_every_round_and_shift(tmp_path: Path) -> None:
    areas, random = made_areas([3, 8], 20), np.random.RandomState(1)
    counts = counts_of(areas, lambda c, i, *_: random.randint(areas[c][i]), (4, 5), ("", "0.5"), rounds=2)
    write_counts(tmp_path / "e.npz", counts)
    for shift in ("", "0.5"):
        expected = independent_scores(tmp_path / "e.npz", shift)["miou_per_round"]
        queries = Queries.of(counts, shift)
        assert [s.miou.value for s in scores([(0, queries, 0), (0, queries, 1)])] == pytest.approx(expected)


def test_each_resample_draws_images_with_all_their_episodes() -> None:
    areas, random = made_areas([3, 8], 12), np.random.RandomState(1)
    queries = Queries.of(counts_of(areas, lambda c, i, *_: random.randint(areas[c][i]), (4, 5)))
    (found,) = scores([(0, queries, -1)])
    draws = [drawn_counts(12, queries.truth[a : a + 12].tobytes()) for a in (0, 12)]
    for b in (0, 1, RESAMPLES - 1):
        seeds = []
        for s in range(2):
            ious = []
            for c in range(2):
                chosen = [q for q in range(12) for _ in range(draws[c][b, q])]
                assert len(chosen) == 12
                both = sum(queries.intersection[0, s, 12 * c + q] for q in chosen)
                ious.append(both / sum(queries.union[0, s, 12 * c + q] for q in chosen))
            seeds.append(sum(ious) / 2)
        assert found.miou.resampled[b] == pytest.approx(100 * sum(seeds) / 2)


def test_equal_queries_are_drawn_alike_in_any_company_and_order() -> None:
    areas = made_areas([3, 8], 15)
    one, two = (Queries.of(counts_of(areas, share_of(areas, 0.5, 0.1, n))) for n in (1, 2))
    other = Queries.of(counts_of(made_areas([3, 8], 15, seed=5), lambda *_: 7))
    alone = scores([(0, one, -1)])[0].miou.resampled
    for order in itertools.permutations(range(3)):
        found = scores([(0, [one, two, other][i], -1) for i in order])[order.index(0)]
        assert np.array_equal(found.miou.resampled, alone)  # to the last bit
    assert drawn_counts(5, b"a").tolist() == drawn_counts(5, b"a").tolist() != drawn_counts(5, b"b").tolist()


def test_the_draws_are_those_of_every_version() -> None:
    assert drawn_counts(4, b"a")[:3].tolist() == [[1, 1, 1, 1], [0, 1, 2, 1], [1, 0, 1, 2]]


def test_the_ends_are_those_of_scipys_bootstrap() -> None:
    """Of a ratio of sums, and of the difference of two on the same images: percentiles, 20,000 resamples of scipy."""
    random = np.random.RandomState(4)
    union = np.exp(random.normal(8, 1, 150)).astype(int).astype(float)
    first = np.floor(union * random.beta(4, 3, 150))
    second = np.floor(np.minimum(first * random.uniform(0.8, 1.1, 150), union))
    queries = [
        Queries.of(EpisodeCounts.of(EpisodeScope((0,), (1,), ("cat",)), [
            Scored(0, n, 1, "", int(u), [(int(b), int(u), 10**6 - int(u), 10**6 - int(b))])
            for n, (b, u) in enumerate(zip(side, union))
        ]))
        for side in (first, second)
    ]  # fmt: skip
    one, two = (s.miou for s in scores([(0, q, -1) for q in queries]))

    def ends(statistic: object, *data: np.ndarray) -> list[float]:
        options = {"n_resamples": 20_000, "method": "percentile", "paired": True, "rng": np.random.default_rng(0)}
        found = scipy.stats.bootstrap(data, statistic, batch=2000, **options).confidence_interval
        return [found.low, found.high]

    def ratio(b: np.ndarray, u: np.ndarray, axis: int = -1) -> np.ndarray:
        return 100 * b.sum(axis=axis) / u.sum(axis=axis)

    def difference(b: np.ndarray, d: np.ndarray, u: np.ndarray, axis: int = -1) -> np.ndarray:
        return ratio(b, u, axis) - ratio(d, u, axis)

    for ours, theirs in (
        (one, ends(ratio, first, union)), (one.less(two), ends(difference, first, second, union)),
    ):  # fmt: skip
        spread = float(np.std(ours.resampled))
        assert np.quantile(ours.resampled, [0.025, 0.975]) == pytest.approx(theirs, abs=0.15 * spread)


def test_few_images_make_the_tails_smaller() -> None:
    """Hesterberg's rule for 9 images of one class: t of 8 degrees, times sqrt(9 / 8); the normal quantile of that."""
    values = np.linspace(0, 100, 10_001)
    tail = scipy.stats.norm.cdf(-scipy.stats.t.ppf(0.975, 8) * (9 / 8) ** 0.5)
    found = interval([Resampled(0, 50.0, values, 9, 1, 9.0)])
    assert found is not None
    assert (found.low, found.high) == pytest.approx((100 * tail, 100 - 100 * tail))
    assert 0.006 < tail < 0.0075
    assert found.over == "query images"


def test_large_objects_make_images_fewer_than_they_are() -> None:
    """Two classes of 4 effective images each: t of 2 x 3 degrees, times sqrt(4 / 3)."""
    values = np.linspace(0, 100, 10_001)
    found = interval([Resampled(0, 50.0, values, 200, 2, 4.0)])
    assert found is not None
    assert found.low == pytest.approx(100 * scipy.stats.norm.cdf(-scipy.stats.t.ppf(0.975, 6) * (4 / 3) ** 0.5))


def test_folds_count_by_their_classes_when_images_are_few() -> None:
    """One class of 2 effective images and two of 8: on average 1 / (1 / 3 * 1 / 2 + 2 / 3 * 1 / 8) = 4 of each of 3."""
    values = np.linspace(0, 100, 10_001)
    folds = [Resampled(0, 50.0, values, 90, 1, 2.0), Resampled(1, 50.0, values, 90, 2, 8.0)]
    found, alike = interval(folds), interval([Resampled(0, 50.0, values, 90, 3, 4.0)])
    assert found is not None
    assert alike is not None
    assert (found.low, found.high) == pytest.approx((alike.low, alike.high))


def test_a_difference_has_the_fewer_images_of_its_sides() -> None:
    one, two = (Resampled(0, v, np.full(RESAMPLES, v), 9, 1, n) for v, n in ((50.0, 7.0), (40.0, 5.0)))
    assert one.less(two).effective == two.less(one).effective == 5.0
    assert one.less(two).value == 10.0


def test_training_seeds_add_their_share() -> None:
    """Fold 0: 60 and 62, fold 1: 50 and 54. Squares within folds 2 + 8 = 10 of 2 degrees: variance 5, error of the mean
    of four sqrt(5 / 4); t of 2 degrees is 4.303. The images alone: 3 and 4 to either side in every run, so that the
    ends are 56.5 - sqrt(9 + h * h) and 56.5 + sqrt(16 + h * h) with h = 4.303 * 1.118."""
    around = np.r_[np.full(1000, -3.0), np.full(1000, 4.0)]
    runs = [Resampled(f, v, v + around, 10_000, 1, 1e4) for f, v in ((0, 60.0), (0, 62.0), (1, 50.0), (1, 54.0))]
    found = interval(runs)
    assert found is not None
    half = scipy.stats.t.ppf(0.975, 2) * (5 / 4) ** 0.5
    assert (found.low, found.high) == pytest.approx((56.5 - (9 + half**2) ** 0.5, 56.5 + (16 + half**2) ** 0.5))
    assert found.over == "query images and training seeds"


def test_each_fold_counts_alike_however_many_training_seeds_it_has() -> None:
    """Fold 0: 60 and 62, fold 1: 50. The mean of the folds is (61 + 50) / 2 = 55.5, not that of the runs. The variance
    within folds is 2 of 1 degree, that of the mean (2 / 2 + 2 / 1) / 4 = 3 / 4; t of 1 degree is 12.706. The images: 3
    and 4 to either side in every run."""
    around = np.r_[np.full(1000, -3.0), np.full(1000, 4.0)]
    found = interval([Resampled(f, v, v + around, 10_000, 1, 1e4) for f, v in ((0, 60.0), (0, 62.0), (1, 50.0))])
    assert found is not None
    half = scipy.stats.t.ppf(0.975, 1) * 0.75**0.5
    assert (found.low, found.high) == pytest.approx((55.5 - (9 + half**2) ** 0.5, 55.5 + (16 + half**2) ** 0.5))


def test_one_image_a_class_has_no_interval() -> None:
    assert interval([Resampled(0, 50.0, np.full(RESAMPLES, 50.0), 3, 3, 1.0)]) is None
