"""The measurement runs what it says it runs; how fast is not asserted."""

from __future__ import annotations

from types import SimpleNamespace

import model_samples as samples
import pytest

from fsseg.config import BackboneConfig
from fsseg.errors import UserError
from fsseg.model.bench import BenchResult, bench_model, compare_precision, render


def config(model, side: int = 65):
    return SimpleNamespace(
        model=model, backbone=BackboneConfig("tiny"), dataset=SimpleNamespace(image_size=side), shot=1
    )


def test_measures_a_step_that_predicts_the_wanted_share_in_every_round() -> None:
    result = bench_model(config(samples.abcb(channels=32)), batch_size=2, repeats=2, share=0.25)
    assert result.predicted_share == pytest.approx((0.25, 0.25, 0.25), abs=0.01)
    assert result.step_seconds >= result.quickest_step_seconds > 0
    assert result.backbone_seconds > 0
    assert result.peak_memory_gb > 0.05
    text = render(result)
    assert "batch 2, 65 px, 1 shot" in text
    assert "25 %, 25 %, 25 %" in text


def test_a_step_costs_more_operations_than_a_forward_pass_and_more_with_modulation() -> None:
    plain = bench_model(config(samples.baseline()), repeats=1).step_tflop
    full = bench_model(config(samples.abcb()), repeats=1).step_tflop
    assert 0 < plain < full


def test_ratio_and_share_follow_from_the_times() -> None:
    result = BenchResult("x", 1, 65, 1, "off", 2.0, 3.0, 2.5, 1.0, 5.0, 8.0, (0.2,))
    assert result.ratio == 1.5
    assert result.matmul_share == pytest.approx(5.0 / 2.5 / 8.0)


def test_bf16_answers_stay_close_to_float32() -> None:
    difference, changed = compare_precision(config(samples.abcb()), device="cpu", batch_size=1)
    assert 0 < difference < 0.1  # 0 would mean that autocast did nothing
    assert changed < 0.1


def test_a_method_without_training_and_an_absent_device_are_refused() -> None:
    with pytest.raises(UserError, match="prototype"):
        bench_model(config(samples.prototype()))
    with pytest.raises(UserError, match="device=cuda:99"):
        bench_model(config(samples.baseline()), device="cuda:99")
