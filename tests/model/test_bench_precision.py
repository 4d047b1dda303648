"""The matrix product that a training step is measured against has the number format of the step's convolutions."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fsseg.model import bench
from fsseg.model.bench import BenchResult, render


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
        assert bench._number_format(device, amp) == expected


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
    assert bench._matmul_rate("cpu", number_format) == 4 * 1024**3  # 2 x 1024^3 operations in half a second
    assert set(seen) == {precision}
    assert torch.get_float32_matmul_precision() == before


def test_the_output_names_it() -> None:
    result = BenchResult("x", 1, 65, 1, "off", 2.0, 3.0, 2.5, 1.0, 5.0, 8.0, (0.2,))
    assert "25 % of the machine's matrix product rate in float32, as its convolutions (8.00 TFLOP/s)" in render(result)
    assert "matrix product rate in TF32" in render(dataclasses.replace(result, number_format="TF32"))
