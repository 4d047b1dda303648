"""Foreground distances, the order of the steps and the recorded cost, against figures worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from fsseg.config.compose import compose
from fsseg.engine.diagnostics import cost_summary, distance_summary, foreground_distances, steps
from fsseg.model.base import Prediction


def prediction(**fields: torch.Tensor) -> Prediction:
    return Prediction([torch.zeros(1, 2, 2, 2)], (3, 3), **fields)


def test_distance_is_between_support_mean_and_mean_over_true_foreground() -> None:
    # 2 x 2 cells of a 3 x 3 image (stride 2): cell i is the pixels around 2 i. Truth: the left column of pixels.
    features = torch.tensor([[[[1.0, 9.0], [0.0, 9.0]], [[0.0, 9.0], [1.0, 9.0]]]])  # left cells (1, 0) and (0, 1)
    truth = torch.zeros(1, 3, 3, dtype=torch.uint8)
    truth[:, :, 0] = 1
    found = foreground_distances(
        prediction(support_foreground=torch.tensor([[2.0, 0.0]]), query_features=features), truth
    )
    # mean (0.5, 0.5), cosine with (2, 0) is 1 / sqrt(2)
    assert found == [pytest.approx(1 - 1 / math.sqrt(2), abs=1e-6)]


def test_an_episode_without_foreground_at_network_size_has_no_distance() -> None:
    features = torch.ones(2, 1, 2, 2)
    truth = torch.zeros(2, 3, 3, dtype=torch.uint8)
    truth[1] = 1
    truth[0, 0, 0] = 255
    found = foreground_distances(prediction(support_foreground=-torch.ones(2, 1), query_features=features), truth)
    assert found == [None, pytest.approx(2.0)]


def test_a_method_without_these_features_has_none() -> None:
    assert foreground_distances(prediction(), torch.ones(1, 3, 3, dtype=torch.uint8)) == [None]
    assert distance_summary([None]) is None


def test_distances_are_counted_by_bin() -> None:
    summary = distance_summary([0.0, 0.05, 0.15, 0.59, 0.61, 2.0, None])
    assert summary is not None
    assert summary.counts == [2, 1, 0, 0, 0, 1, 2]
    assert summary.mean == pytest.approx((0.05 + 0.15 + 0.59 + 0.61 + 2.0) / 6)
    assert (summary.episodes, summary.without_foreground) == (6, 1)
    assert distance_summary([0.3, 0.1, 0.2]) == distance_summary([0.1, 0.2, 0.3])


def test_steps_follow_one_another_as_the_method_makes_them() -> None:
    p = [torch.full((1, 2, 1, 1), float(t)) for t in (1, 2, 3)]
    hats = [torch.full((1, 2, 1, 1), t + 0.5) for t in (1.0, 2.0)]
    whole = steps(Prediction(p, (3, 3), hats))
    assert [name for name, _ in whole] == ["QP, round 1", "SM, round 1", "IC, round 1", "SM, round 2", "IC, round 2"]
    assert [float(logits[0, 0, 0, 0]) for _, logits in whole] == [1, 1.5, 2, 2.5, 3]
    assert [name for name, _ in steps(Prediction(p[:2], (3, 3)))] == ["QP, round 1", "SM, round 1"]
    assert [name for name, _ in steps(Prediction(p[:1], (3, 3)))] == ["QP, round 1"]


def test_cost_is_of_the_rounds_that_the_model_has() -> None:
    small = ["dataset.image_size=25", "model.channels=16"]
    costs = [cost_summary(compose([*small, f"model.iterations={t}"]).cfg) for t in (1, 2, 3, 4)]
    gmacs = [c.gmacs for c in costs if c and c.gmacs]
    assert len(gmacs) == 4
    assert gmacs[0] < gmacs[1] < gmacs[2]
    assert gmacs[3] - gmacs[2] == pytest.approx(gmacs[2] - gmacs[1])  # a further round costs what one round costs
    baseline = cost_summary(compose([*small, "ablation=baseline"]).cfg)
    assert baseline is not None
    assert baseline.gmacs == gmacs[0]  # SM and IC of the last round do not run
    free = cost_summary(compose(["method=dino", "dataset.image_size=25"]).cfg)
    assert free is not None
    assert free.gmacs is not None
    assert free.gmacs > 0
