"""The measurement runs what it says it runs; how fast is not asserted."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import model_samples as samples
import pytest
import torch

from fsseg.bench import step as bench
from fsseg.bench.step import BenchResult, bench_model, format_step
from fsseg.config.schema import BackboneConfig
from fsseg.errors import UserError


def config(model, device: str = "cpu"):
    return SimpleNamespace(
        model=model,
        backbone=BackboneConfig("tiny"),
        dataset=SimpleNamespace(image_size=65),
        shot=1,
        device=device,
        train=SimpleNamespace(amp="bf16"),  # on a GPU only
    )


def test_measures_a_step_that_predicts_the_wanted_share_in_every_round() -> None:
    result = bench_model(config(samples.abcb(channels=32)), batch_size=2, repeats=2, share=0.25)
    assert result.predicted_share == pytest.approx((0.25, 0.25, 0.25), abs=0.01)
    assert result.step_seconds >= result.quickest_step_seconds > 0
    assert result.backbone_seconds > 0
    assert result.peak_memory_gb > 0.05
    text = format_step(result)
    assert "batch 2, 65 px, 1 shot, amp off" in text
    assert "25 %, 25 %, 25 %" in text


def test_a_step_costs_more_operations_than_a_forward_pass_and_more_with_modulation() -> None:
    plain = bench_model(config(samples.baseline()), repeats=1).step_tflop
    full = bench_model(config(samples.abcb()), repeats=1).step_tflop
    assert 0 < plain < full


def test_ratio_and_share_follow_from_the_times() -> None:
    result = BenchResult("x", 1, 65, 1, "off", 2.0, 3.0, 2.5, 1.0, 5.0, 8.0, (0.2,))
    assert result.ratio == 1.5
    assert result.matmul_share == pytest.approx(5.0 / 2.5 / 8.0)


def test_a_method_without_training_and_an_absent_device_are_refused() -> None:
    with pytest.raises(UserError, match="prototype"):
        bench_model(config(samples.prototype()))
    with pytest.raises(UserError, match="device=cuda:99"):
        bench_model(config(samples.baseline(), device="cuda:99"))


@pytest.mark.parametrize(
    ("device", "amp", "capability", "allowed", "expected"),
    [
        ("cpu", "off", (9, 0), True, "float32"),
        ("cpu", "bf16", (9, 0), True, "bf16"),
        ("cuda", "fp16", (7, 5), True, "fp16"),
        ("cuda", "off", (8, 0), True, "TF32"),
        ("cuda", "off", (9, 0), False, "float32"),
        ("cuda", "off", (7, 5), True, "float32"),  # TF32 came with 8.0
    ],
)
def test_the_format_is_that_of_the_convolutions(
    device: str,
    amp: str,
    capability: tuple[int, int],
    allowed: bool,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    with torch.backends.cudnn.flags(allow_tf32=allowed):
        assert bench._number_format(torch.device(device), amp) == expected


@pytest.mark.parametrize(("number_format", "precision"), [("TF32", "high"), ("float32", "highest")])
def test_the_product_is_computed_in_it_and_torch_left_as_it_was(
    number_format: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def half_a_second(*_: object) -> float:
        seen.append(torch.get_float32_matmul_precision())
        return 0.5

    before = torch.get_float32_matmul_precision()
    monkeypatch.setattr(bench, "_seconds", half_a_second)
    assert (
        bench._matmul_rate(torch.device("cpu"), number_format) == 4 * 1024**3
    )  # 2 x 1024^3 operations in half a second
    assert set(seen) == {precision}
    assert torch.get_float32_matmul_precision() == before


def test_the_output_lines_up_and_names_the_format() -> None:
    result = BenchResult("x", 1, 65, 1, "off", 2.0, 13.0, 2.5, 1.0, 5.0, 8.0, (0.2, 0.3))
    assert format_step(result).splitlines() == [
        "x; batch 1, 65 px, 1 shot, amp off",
        "backbone alone   2.000  s on the 2 images",
        "training step   13.000  s = 6.50 x the backbone",
        "peak memory       1.00  GB",
        "work             5.000  TFLOP a step, 25 % of the machine's matrix product rate in float32, as its "
        "convolutions (8.00 TFLOP/s)",
        "predicted foreground by round: 20 %, 30 %",
    ]
    assert "matrix product rate in TF32" in format_step(dataclasses.replace(result, number_format="TF32"))
