"""The cosine histogram: equal to its dense form, no pair lost, and the right gradient."""

from __future__ import annotations

import os
import subprocess
import sys

import model_reference as reference
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fsseg.model.blocks import histogram
from fsseg.model.blocks.histogram import cosine_histogram, normalised_cosine_histogram
from fsseg.model.blocks.tokens import Positions

RANGES = {"zero_one": (0.0, 1.0), "minus_one_one": (-1.0, 1.0)}


def tokens_of(values: torch.Tensor, counts: list[int]):
    """The first counts[b] rows of each sample."""
    return Positions.under(torch.arange(values.shape[1]) < torch.tensor(counts)[:, None]).gather(values)


@pytest.mark.parametrize("span", RANGES)
@pytest.mark.parametrize("bins", [2, 5, 16])
def test_equals_the_dense_form(span: str, bins: int) -> None:
    torch.manual_seed(0)
    counts = [7, 0, 1, 12]
    values = torch.randn(4, 12, 3, dtype=torch.float64)
    result = cosine_histogram(tokens_of(values, counts), bins, span)
    for b, count in enumerate(counts):
        expected = reference.histogram(list(values[b, :count].numpy()), bins, *RANGES[span])
        np.testing.assert_allclose(result[b], expected, atol=1e-9)


@given(
    count=st.integers(0, 9),
    dimension=st.integers(1, 4),
    bins=st.integers(2, 20),
    span=st.sampled_from(sorted(RANGES)),
    kind=st.sampled_from(["random", "equal", "opposite", "zero", "axes", "huge"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=80, deadline=None)
def test_weights_sum_to_the_number_of_pairs(
    count: int, dimension: int, bins: int, span: str, kind: str, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(1, 9, dimension, generator=generator)
    if kind == "equal":  # every cosine is 1, at the end of the scale
        values = values[:, :1].expand_as(values)
    elif kind == "opposite":
        values = values[:, :1] * torch.tensor([1.0, -1.0, 1.0] * 3)[:, None]
    elif kind == "zero":
        values = torch.zeros_like(values)
    elif kind == "axes":
        values = torch.eye(dimension)[torch.arange(9) % dimension][None]
    elif kind == "huge":
        values = values * 1e15
    result = cosine_histogram(tokens_of(values, [count]), bins, span)
    assert result.shape == (1, bins)
    assert (result > -1e-4).all()
    assert result.sum().item() == pytest.approx(count**2, abs=1e-4)


def test_cosine_one_lies_in_the_last_bin_and_cosine_zero_in_the_first() -> None:
    values = torch.tensor([[[2.0, 0.0], [0.0, 3.0]]])
    np.testing.assert_allclose(cosine_histogram(tokens_of(values, [2]), 3)[0], [2, 0, 2], atol=1e-6)


def test_a_value_between_two_centres_is_shared_by_its_distance() -> None:
    # cos = 0.6 on centres 0, 0.5, 1: 0.4 of a step past the middle, so 0.8 stays and 0.2 goes up; two mirrored pairs.
    values = torch.tensor([[[1.0, 0.0], [0.6, 0.8]]])
    np.testing.assert_allclose(cosine_histogram(tokens_of(values, [2]), 3)[0], [0, 1.6, 2.4], atol=1e-6)


def test_negative_cosines_fall_into_the_first_bin_unless_the_range_spans_them() -> None:
    values = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]])
    np.testing.assert_allclose(cosine_histogram(tokens_of(values, [2]), 3)[0], [2, 0, 2], atol=1e-6)
    np.testing.assert_allclose(cosine_histogram(tokens_of(values, [2]), 3, "minus_one_one")[0], [2, 0, 2], atol=1e-6)
    values = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    np.testing.assert_allclose(cosine_histogram(tokens_of(values, [2]), 3, "minus_one_one")[0], [0, 2, 2], atol=1e-6)


def test_normalised_rows_sum_to_one_and_an_empty_sample_gives_zeros() -> None:
    result = normalised_cosine_histogram(tokens_of(torch.randn(2, 5, 4), [5, 0]), 16)
    np.testing.assert_allclose(result.sum(1), [1, 0], atol=1e-6)
    assert (result[1] == 0).all()


@pytest.mark.parametrize("width", [1, 2, 3, 7])
def test_a_wider_kernel_equals_its_dense_form_and_keeps_the_sum(width: int) -> None:
    values = torch.randn(1, 6, 4, dtype=torch.float64)
    expected = reference.histogram(list(values[0].numpy()), 5, 0.0, 1.0, width) / 36
    result = normalised_cosine_histogram(tokens_of(values, [6]), 5, width=width)[0]
    if width <= 5:  # the loops mirror at each end once
        np.testing.assert_allclose(result, expected, atol=1e-9)
    assert result.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("span", RANGES)
def test_gradient_agrees_with_finite_differences(span: str) -> None:
    torch.manual_seed(1)
    values = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: cosine_histogram(tokens_of(v, [5, 3]), 6, span), values)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    weights = torch.randn(8, dtype=torch.float64)

    def both() -> tuple[torch.Tensor, torch.Tensor]:
        values = base.clone().requires_grad_()
        result = cosine_histogram(tokens_of(values, [23, 11]), 8)
        (result @ weights).sum().backward()
        assert values.grad is not None
        return result.detach(), values.grad

    base = torch.randn(2, 23, 4, dtype=torch.float64)
    whole, whole_gradient = both()
    for chunk in (1, 40, 100):
        monkeypatch.setitem(histogram._CHUNK, "cpu", chunk)
        parts, parts_gradient = both()
        torch.testing.assert_close(parts, whole)
        torch.testing.assert_close(parts_gradient, whole_gradient)


def test_padding_gets_no_gradient() -> None:
    values = torch.randn(2, 5, 3, requires_grad=True)
    cosine_histogram(tokens_of(values, [5, 2]), 4)[:, 0].sum().backward()
    assert values.grad is not None
    assert (values.grad[1, 2:] == 0).all()
    assert values.grad.isfinite().all()


def test_no_tensor_grows_with_pairs_times_bins() -> None:
    """Memory: the largest intermediate of 1200 tokens stays far below the 1200 x 1200 x 16 floats of the dense form."""
    values = torch.randn(1, 1200, 4, requires_grad=True)
    sizes: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(
                x.numel() for x in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(x, torch.Tensor)
            )
            return out

    with Watch():
        cosine_histogram(tokens_of(values, [1200]), 16).sum().backward()
    assert max(sizes) < 2 * 2**16


@pytest.mark.parametrize("span", RANGES)
@pytest.mark.parametrize("together", [2**28, 2 * 30**2, 1])
def test_tokens_in_place_count_as_gathered_ones(span: str, together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they stand among how much padding, and how many samples are in memory together, changes nothing."""
    monkeypatch.setattr(histogram, "_SIMILARITIES", together)
    torch.manual_seed(0)
    features = torch.randn(4, 30, 3, dtype=torch.float64)
    mask = torch.rand(4, 30) > torch.tensor([0.2, 0.9, 0.5, 2.0])[:, None]
    weights = torch.randn(4, 16, dtype=torch.float64)
    found = []
    for in_place in (False, True):
        leaf = features.clone().requires_grad_()
        tokens = Positions(None, mask, None).gather(leaf) if in_place else Positions.under(mask).gather(leaf)
        histograms = cosine_histogram(tokens, 16, span)
        (histograms * weights).sum().backward()
        found.append((histograms.detach(), leaf.grad))
    torch.testing.assert_close(found[1], found[0])


_KERNELS = """
import torch
from fsseg.model.blocks import histogram, histogram_kernels
torch.manual_seed(0)
valid = torch.rand(2, 70) > 0.4
leaf = torch.randn(2, 70, 8, dtype=torch.float64)
weights = torch.randn(2, 16, dtype=torch.float64)
for low, high in histogram.RANGES.values():
    found = []
    for kernels, kind in ((None, torch.float64), (histogram_kernels, torch.float32)):
        histogram._kernels = lambda _: kernels
        values = leaf.clone().to(kind).detach().requires_grad_()
        unit = torch.nn.functional.normalize(values, dim=2) * valid[..., None]
        result = histogram._MaskedHistogram.apply(unit, valid, 16, low, high)
        (result * weights.to(kind)).sum().backward()
        found.append((result.double(), values.grad.double()))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-5, atol=1e-3)
    # Single precision may see a cosine at a bin's centre on its other side, where the slope is another.
    apart = ((found[1][1] - found[0][1]).abs() > 1e-3 * found[0][1].abs().max()).double().mean()
    assert apart < 0.01, apart
print("equal")
"""


def test_the_kernels_of_a_gpu_count_alike() -> None:
    """In Triton's interpreter, which runs them on a CPU; it must be asked for before Triton is imported."""
    pytest.importorskip("triton", reason="torch brings it for GPUs")
    done = subprocess.run(
        [sys.executable, "-c", _KERNELS], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.stdout == "equal\n", done.stderr
