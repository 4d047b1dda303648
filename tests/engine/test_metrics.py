"""The score against counts by hand, against scikit-learn, and its invariances."""

from __future__ import annotations

import statistics
from pathlib import Path

import numpy as np
import pytest
from episode_scores import scores
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import jaccard_score

from fsseg.cell.episodes import EpisodeCounts, EpisodeScope, Scored, write_counts
from fsseg.engine.metrics import PooledScore, pixel_counts

# Counted by hand. truth:        prediction:      255 counts nowhere.
#   1 1 0                          1 0 1
#   0 255 1                        0 1 1
# foreground: both = 2, either = 4 -> 50 %; background: both = 1, either = 3 -> 1/3.
TRUTH = np.array([[1, 1, 0], [0, 255, 1]], dtype=np.uint8)
PREDICTION = np.array([[1, 0, 1], [0, 1, 1]], dtype=bool)


def test_a_count_by_hand_with_an_ignored_pixel() -> None:
    score = PooledScore(3)
    assert score.add(1, PREDICTION, TRUTH) == 50.0
    assert (score.intersection[1], score.union[1]) == (2, 4)
    assert (score.background_intersection, score.background_union) == (1, 3)
    assert score.miou([1]) == 50.0
    assert score.fb_iou() == pytest.approx(100 * (1 / 2 + 1 / 3) / 2)


def test_episodes_are_pooled_before_the_division() -> None:
    # a large object found whole (9 of 9) and a small one missed (0 of 1): 9 / 10, where the mean of IoUs says 1 / 2
    score = PooledScore(1)
    score.add(0, np.ones((3, 3), bool), np.ones((3, 3), np.uint8))
    score.add(0, np.zeros((1, 1), bool), np.ones((1, 1), np.uint8))
    assert score.miou([0]) == pytest.approx(90.0)


def test_the_mean_is_over_classes_not_episodes() -> None:
    # class 0: two episodes, IoU 1; class 1: one episode, IoU 0
    score = PooledScore(2)
    for _ in range(2):
        score.add(0, np.ones((2, 2), bool), np.ones((2, 2), np.uint8))
    score.add(1, np.zeros((2, 2), bool), np.ones((2, 2), np.uint8))
    assert score.miou([0, 1]) == pytest.approx(50.0)


def test_the_answer_all_foreground_is_scored_in_the_same_episodes() -> None:
    # TRUTH: 3 of 5 counted pixels are foreground; a second episode adds 1 of 4: 4 / 9. Class 1: 1 of 4.
    score = PooledScore(2)
    quarter = np.array([[1, 0], [0, 0]], np.uint8)
    score.add(0, PREDICTION, TRUTH)
    score.add(0, np.zeros((2, 2), bool), quarter)
    score.add(1, np.zeros((2, 2), bool), quarter)
    assert score.miou_all_foreground([0, 1]) == pytest.approx(100 * (4 / 9 + 1 / 4) / 2)
    all_foreground = PooledScore(2)
    all_foreground.add(0, np.ones((2, 3), bool), TRUTH)
    all_foreground.add(0, np.ones((2, 2), bool), quarter)
    assert all_foreground.iou(0) == pytest.approx(score.miou_all_foreground([0]))


def test_a_class_without_episode_is_an_error_not_a_zero() -> None:
    score = PooledScore(2)
    score.add(0, PREDICTION, TRUTH)
    with pytest.raises(ValueError, match="class 1"):
        score.miou([0, 1])


def test_sizes_must_agree() -> None:
    with pytest.raises(ValueError, match="differ in size"):
        PooledScore(1).add(0, np.zeros((2, 2), bool), np.zeros((2, 3), np.uint8))


episode = st.tuples(
    st.integers(0, 2),
    arrays(bool, (4, 5)),
    arrays(np.uint8, (4, 5), elements=st.sampled_from([0, 1, 255])),
)


@given(st.lists(episode, min_size=1, max_size=6))
def test_agrees_with_scikit_learn_on_the_pooled_pixels(episodes: list[tuple[int, np.ndarray, np.ndarray]]) -> None:
    score = PooledScore(3)
    for class_id, prediction, truth in episodes:
        score.add(class_id, prediction, truth)
    present = sorted({c for c, _, _ in episodes})
    expected = []
    for c in present:
        truth = np.concatenate([t[t != 255] for k, _, t in episodes if k == c])
        prediction = np.concatenate([p[t != 255] for k, p, t in episodes if k == c])
        expected.append(100 * jaccard_score(truth, prediction, zero_division=0.0) if truth.size else 0.0)
    assert score.miou(present) == pytest.approx(np.mean(expected))
    truth = np.concatenate([t[t != 255] for _, _, t in episodes])
    prediction = np.concatenate([p[t != 255] for _, p, t in episodes])
    if truth.size:
        both = [jaccard_score(truth, prediction, pos_label=label, zero_division=0.0) for label in (0, 1)]
        assert score.fb_iou() == pytest.approx(100 * np.mean(both))


@given(st.lists(episode, min_size=2, max_size=6), st.randoms())
def test_the_order_does_not_change_a_digit(episodes: list, random: object) -> None:
    whole = PooledScore(3)
    for e in episodes:
        whole.add(*e)
    shuffled = list(episodes)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    other = PooledScore(3)
    for e in shuffled:
        other.add(*e)
    classes = sorted({c for c, _, _ in episodes})
    assert other.miou(classes) == whole.miou(classes)
    assert other.fb_iou() == whole.fb_iou()


def test_the_counts_of_one_answer_by_hand() -> None:
    assert tuple(pixel_counts(PREDICTION, TRUTH)) == (3, 2, 4, 1, 3)
    assert np.isnan(pixel_counts(np.zeros((1, 1), bool), np.zeros((1, 1), np.uint8)).iou)


def test_a_score_of_counts_and_of_their_file_is_that_of_the_pixels_to_the_last_digit(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    scope = EpisodeScope((9, 2, 5), (1, 0, 3), ("b", "a", "d"))
    pooled = {seed: [PooledScore(4) for _ in range(3)] for seed in scope.seeds}
    rows = []
    for number in range(60):
        seed, class_id = scope.seeds[number % 3], scope.classes[number % 7 % 3]
        truth = draw.choice([0, 1, 255], (6, 7), p=[0.5, 0.4, 0.1]).astype(np.uint8)
        answers = [draw.random((6, 7)) < 0.5 for _ in range(3)]
        for score, answer in zip(pooled[seed], answers):
            score.add(class_id, answer, truth)
        counts = [pixel_counts(answer, truth) for answer in answers]
        rows.append(Scored(seed, number, class_id, "", counts[0].foreground, [c[1:] for c in counts]))
    draw.shuffle(rows)  # type: ignore[arg-type]
    counts = EpisodeCounts.of(scope, [Scored(*row) for row in rows])
    for seed, expected in pooled.items():
        for score, other in zip(PooledScore.of_rounds(counts.select("", seed), 4), expected, strict=True):
            assert {k: np.asarray(v).tolist() for k, v in vars(score).items()} == {
                k: np.asarray(v).tolist() for k, v in vars(other).items()
            }
    write_counts(tmp_path / "episodes.npz", counts)
    found = scores(tmp_path / "episodes.npz")
    last = [(p[-1].miou(scope.classes), p[-1].fb_iou(), p[-1].miou_all_foreground(scope.classes))
            for p in pooled.values()]  # fmt: skip
    means = [statistics.fmean(column) for column in zip(*last)]
    assert [found["miou"], found["fb_iou"], found["miou_all_foreground"]] == pytest.approx(means, rel=1e-12)
    rounds = [[score.miou(scope.classes) for score in p] for p in pooled.values()]
    assert found["miou_per_round"] == pytest.approx([statistics.fmean(t) for t in zip(*rounds)], rel=1e-12)


def test_sums_of_counts_do_not_overflow() -> None:
    half = 2**30
    row = Scored(0, 0, 0, "", half, [(half, half, half, half)])
    counts = EpisodeCounts.of(EpisodeScope((0,), (0,), ("a",)), [row._replace(number=n) for n in range(100)])
    (score,) = PooledScore.of_rounds(counts, 1)
    assert (score.union[0], score.counted[0], score.background_union) == (100 * half, 200 * half, 100 * half)
