"""The measurement runs what it says it runs; how fast is not asserted."""

from __future__ import annotations

from types import SimpleNamespace

import model_samples as samples
import pytest
import torch

from fsseg.bench import step as bench
from fsseg.bench.common import Spread
from fsseg.bench.step import NumberFormat, Setting, StepRow, bench_step, format_steps
from fsseg.config.schema import BackboneConfig, TrainConfig
from fsseg.errors import UserError

CPU = torch.device("cpu")


def config(model, device: str = "cpu", accumulate: int = 1, optimizer: str = "sgd"):
    return SimpleNamespace(
        model=model,
        backbone=BackboneConfig("tiny"),
        dataset=SimpleNamespace(image_size=65),
        shot=1,
        device=device,
        train=TrainConfig(lr=0.1, amp="fp16", accumulate=accumulate, optimizer=optimizer),  # fp16: on a GPU only
    )


def exactly(value: float) -> Spread:
    return Spread.of([value])


def test_measures_a_step_that_predicts_the_wanted_share_in_every_round() -> None:
    (row,) = bench_step(config(samples.abcb(channels=32)), Setting(batch_size=2, repeats=2, share=0.25))
    assert row.predicted_share == pytest.approx((0.25, 0.25, 0.25), abs=0.01)
    assert row.step_seconds is not None
    assert row.step_seconds.median >= row.step_seconds.least > 0
    assert row.step_seconds.number == 2
    assert row.backbone_seconds is not None
    assert row.backbone_seconds.median > 0
    assert row.step_gb is not None
    assert row.step_gb > 0.05
    _, line, *notes = format_steps([row]).splitlines()
    assert line.split()[:7] == ["abcb", "tiny", "65", "1", "2", "float32", "usual"]
    assert notes[-1] == "predicted foreground by round: 25%, 25%, 25%"


def test_the_share_is_reached_in_bf16_too() -> None:
    (row,) = bench_step(config(samples.baseline()), Setting(number_format="bf16", repeats=1, share=0.25))
    assert row.number_format == "bf16"
    assert row.predicted_share == pytest.approx((0.25,), abs=0.01)


def test_a_row_for_each_layout_of_the_same_work() -> None:
    usual, other = bench_step(config(samples.baseline()), Setting(repeats=1, layouts=bench.LAYOUTS))
    assert (usual.layout, other.layout) == ("usual", "channels_last")
    assert usual.step_tflop == other.step_tflop


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_step_in_parts_does_the_work_of_the_whole(optimizer: str) -> None:
    rows = [
        bench_step(config(samples.baseline(), "cpu", parts, optimizer), Setting(batch_size=2, repeats=1))[0]
        for parts in (1, 2)
    ]
    assert rows[0].step_tflop == pytest.approx(rows[1].step_tflop)
    assert [row.accumulate for row in rows] == [1, 2]


def test_a_step_costs_more_operations_than_a_forward_pass_and_more_with_modulation() -> None:
    plain = bench_step(config(samples.baseline()), Setting(repeats=1))[0].step_tflop
    full = bench_step(config(samples.abcb()), Setting(repeats=1))[0].step_tflop
    assert plain is not None
    assert full is not None
    assert 0 < plain < full


def test_a_method_that_does_not_train_has_its_evaluation_measured() -> None:
    (row,) = bench_step(config(samples.prototype()), Setting(repeats=1))
    assert (row.step_seconds, row.step_tflop, row.ratio, row.matmul_share) == (None, None, None, None)
    assert row.encode_seconds is not None
    assert row.decode_seconds is not None
    assert "nan" not in format_steps([row])


def row(**fields) -> StepRow:
    return StepRow("abcb", "tiny", 65, 1, 4, 1, "sgd", "float32", "usual", **fields)


def test_ratio_rates_and_share_follow_from_the_times() -> None:
    found = row(
        backbone_seconds=exactly(2.0),
        step_seconds=Spread(3.0, 2.8, 3.5, 2.5, 3.1, 5),
        step_tflop=5.0,
        matmul_tflops=8.0,
    )
    assert found.ratio == 1.5
    assert found.matmul_share == pytest.approx(5.0 / 2.5 / 8.0)
    assert found.images_per_second == pytest.approx(8 / 3)  # 4 episodes of two images


def test_a_setting_that_does_not_fit_the_memory_leaves_the_others_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError

    with monkeypatch.context() as patch:
        patch.setattr(bench._Side, "step", too_large)
        (failed,) = bench_step(config(samples.baseline()), Setting(batch_size=2, repeats=1))
    assert failed.fault == "out of memory"
    (line,) = [line for line in format_steps([failed]).splitlines() if "out of memory" in line]
    assert line.split() == ["baseline", "tiny", "65", "1", "2", "float32", "usual", "out", "of", "memory"]


def test_an_absent_device_is_refused() -> None:
    with pytest.raises(UserError, match="device=cuda:99"):
        bench_step(config(samples.baseline(), device="cuda:99"), Setting())


@pytest.mark.parametrize(
    ("asked", "amp", "device", "capability", "allowed", "expected"),
    [
        ("run", "off", "cpu", (9, 0), True, "float32"),
        ("run", "fp16", "cpu", (9, 0), True, "float32"),  # as a run does there
        ("run", "fp16", "cuda", (7, 5), True, "fp16"),
        ("run", "off", "cuda", (8, 0), True, "TF32 convolutions"),
        ("run", "off", "cuda", (9, 0), False, "float32"),
        ("run", "off", "cuda", (7, 5), True, "float32"),  # TF32 came with 8.0
        ("float32", "bf16", "cuda", (9, 0), True, "float32"),
        ("tf32", "off", "cuda", (9, 0), True, "tf32"),
    ],
)
def test_the_format_is_that_of_the_convolutions(
    asked: str, amp: str, device: str, capability: tuple[int, int], allowed: bool, expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    with torch.backends.cudnn.flags(allow_tf32=allowed):
        assert bench._format_on(torch.device(device), asked, amp).name == expected


@pytest.mark.parametrize(
    ("asked", "precision", "convolutions"), [("tf32", "high", True), ("float32", "highest", False)]
)
def test_tf32_is_on_or_off_for_everything_and_left_as_it_was(asked: str, precision: str, convolutions: bool) -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    with bench._format_on(torch.device("cuda"), asked, "off").flags():
        assert torch.get_float32_matmul_precision() == precision
        assert torch.backends.cudnn.allow_tf32 is convolutions
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


@pytest.mark.parametrize(("name", "precision"), [("TF32 convolutions", "high"), ("float32", "highest")])
def test_the_product_is_computed_as_the_convolutions_are(
    name: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def half_a_second(*_: object) -> float:
        seen.append(torch.get_float32_matmul_precision())
        return 0.5

    monkeypatch.setattr(bench, "seconds", half_a_second)
    # 2 x 1024^3 operations in half a second
    assert bench.matmul_rate(CPU, NumberFormat(name, CPU)) == 4 * 1024**3
    assert set(seen) == {precision}
    assert torch.get_float32_matmul_precision() == "highest"


def test_the_table_lines_up_and_states_every_setting() -> None:
    full = row(
        backbone_seconds=exactly(2.0), step_seconds=exactly(13.0), encode_seconds=exactly(4.0),
        decode_seconds=exactly(1.0), step_gb=1.0, encode_gb=0.5, decode_gb=0.25, step_tflop=52.0, matmul_tflops=8.0,
        predicted_share=(0.2, 0.3),
    )  # fmt: skip
    _, line, *notes = format_steps([full]).splitlines()
    assert line.split() == [
        "abcb", "tiny", "65", "1", "4", "float32", "usual", "2000", "(2000-2000)", "13000", "(13000-13000)", "6.50",
        "0.6", "1.00", "50%", "500", "(500-500)", "250", "(250-250)", "0.50",
    ]  # fmt: skip
    assert "matrix product: float32 8.00 TFLOP/s" in notes
    assert "predicted foreground by round: 20%, 30%" in notes
