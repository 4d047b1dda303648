"""Histogram of the cosine similarities of all token pairs, differentiable, without building a (N, N, L) tensor.

Structure-wise evolution E_s (`fsseg.model.abcb`) uses it on the query's predicted foreground.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fsseg.model.blocks.exact import exact, wide
from fsseg.model.blocks.tokens import Tokens

RANGES = {"zero_one": (0.0, 1.0), "minus_one_one": (-1.0, 1.0)}
# Pairs in memory at once: as many as fit a CPU's cache, or as keep a GPU busy.
_CHUNK = {"cpu": 2**17}
_CHUNK_ELSEWHERE = 2**24
_SIMILARITIES = 2**28  # likewise, where nobody looks at how many tokens there are: 1 GB


def cosine_histogram(tokens: Tokens, bins: int, span: str = "zero_one") -> Tensor:
    """Soft counts of the cosine similarity of all ordered token pairs (i, j), i = j included.

    Bin centres are spread evenly over the range, first and last on its ends. A pair counts in the two nearest bins by a
    triangular ("spire-shaped") kernel, with weights that sum to 1 for every value, 1 itself included; a value outside
    the range counts at its end. A zero vector's cosine with anything is 0.

    Args:
        tokens: B samples of any number of tokens, (B, N, C).
        bins: L, at least 2.
        span: a key of `RANGES`.

    Returns:
        (B, L), float32 or wider; row b sums to the square of sample b's token count.
    """
    low, high = RANGES[span]
    with exact(tokens.values):
        unit = F.normalize(wide(tokens.values), dim=2)
        if tokens.counts is None:
            return _MaskedHistogram.apply(unit, tokens.valid, bins, low, high)
        return _Histogram.apply(unit, tokens.counts, bins, low, high)


def normalised_cosine_histogram(tokens: Tokens, bins: int, span: str = "zero_one", width: int = 1) -> Tensor:
    """`cosine_histogram` divided by the number of pairs: (B, L), rows sum to 1, or to 0 without any token.

    `width` is half the base of the triangular kernel, in bins.
    """
    pairs = tokens.valid.sum(1, keepdim=True) ** 2
    return widened(cosine_histogram(tokens, bins, span), width) / pairs.clamp_min(1)


def widened(histogram: Tensor, width: int) -> Tensor:
    """A histogram (B, L) of kernels of half-base 1 converted to kernels of half-base `width`; sums stay.

    A triangle of half-base w is the sum of those of half-base 1 at the distances -w + 1, ..., w - 1, with weights
    (w - distance) / w^2. Weight beyond an end is mirrored back.
    """
    if width == 1:
        return histogram
    return histogram @ _widening(histogram.shape[1], width).to(histogram)


@cache
def _widening(bins: int, width: int) -> Tensor:
    """(L, L), made once: how much of each narrow bin goes to which wide one."""
    matrix = torch.zeros(bins, bins, dtype=torch.float64)
    for offset in range(1 - width, width):
        for start in range(bins):
            place = (start + offset) % (2 * bins)  # mirrored half a bin beyond the ends
            matrix[start, min(place, 2 * bins - 1 - place)] += (width - abs(offset)) / width**2
    return matrix


class _Histogram(torch.autograd.Function):
    """One pass over the pairs i <= j in each direction, some rows at a time; no sample sees another's padding.

    A value at place p on the scale of the bins, 0 <= p <= L - 1, weighs 1 - |p - l| in bin l where that is positive.
    Summed over all pairs this is S[l - 1] - S[l] with S[l] = sum of clamp(p - l, 0, 1), so that clamping and summing
    L - 1 times gives the histogram. Adding each weight to its bin (scatter) gives the same, but on a GPU in random
    order, and all threads wait for the same few bins.
    """

    @staticmethod
    def forward(ctx: Any, unit: Tensor, counts: list[int], bins: int, low: float, high: float) -> Tensor:
        rows = []
        for sample, count in zip(unit, counts):
            passed = unit.new_zeros(bins + 1, dtype=torch.float64)  # S[-1], ..., S[L - 1]
            passed[0] = count * count
            for start, stop in _blocks(count, unit.device.type):
                place = _place(sample[start:stop] @ sample[start:count].T, bins, low, high)
                size = stop - start
                passed[1:bins] += _passed(place[:, :size], bins) + 2 * _passed(place[:, size:], bins)
            rows.append(passed[:-1] - passed[1:])
        ctx.save_for_backward(unit)
        ctx.counts, ctx.bins, ctx.low, ctx.high = counts, bins, low, high
        return torch.stack(rows).to(unit.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (unit,) = ctx.saved_tensors
        result = _pull_back(unit, gradient, ctx.counts, ctx.bins, (ctx.low, ctx.high))
        return result, None, None, None, None


def _pull_back(unit: Tensor, gradient: Tensor, counts: list[int], bins: int, span: tuple[float, float]) -> Tensor:
    """Gradient of the unit vectors (B, N, C), given that of the histograms (B, L)."""
    result = torch.zeros_like(unit)
    scale = (bins - 1) / (span[1] - span[0])
    for sample, into, slope, count in zip(unit, result, _slopes(gradient, scale), counts):
        for start, stop in _blocks(count, unit.device.type):
            place = ((sample[start:stop] @ sample[start:count].T) - span[0]) * scale
            pairs = slope[_interval(place, bins)]
            # A pair's cosine depends on both tokens, and (i, j) stands for (j, i) too.
            into[start:stop] += 2 * (pairs @ sample[start:count])
            into[stop:count] += 2 * (pairs[:, stop - start :].T @ sample[start:stop])
    return result


def _slopes(gradient: Tensor, scale: float) -> Tensor:
    """(B, L + 1): what a cosine's change changes the loss by, in each interval between the centres.

    From one centre to the next the count moves from bin to bin at a constant rate; the ends are flat.
    """
    return F.pad((gradient[:, 1:] - gradient[:, :-1]) * scale, (1, 1))


def _interval(place: Tensor, bins: int) -> Tensor:
    """Which interval each place (unbounded) lies in; 0 and L are the ends."""
    return place.clamp_(-0.5, bins - 0.5).floor_().add_(1).long()


class _MaskedHistogram(torch.autograd.Function):
    """The same for tokens that stand anywhere among zero vectors, without a look at how many they are.

    A pair with a zero vector is put at place 0, where it adds nothing to any S; S[-1] is the number of valid pairs. All
    ordered pairs are computed, some samples at a time, by kernels of a GPU where there are any.
    """

    @staticmethod
    def forward(ctx: Any, unit: Tensor, valid: Tensor, bins: int, low: float, high: float) -> Tensor:
        kernels = _kernels(unit)
        sums = []
        for some in _samples(unit):
            cosine = unit[some] @ unit[some].transpose(1, 2)
            if kernels is not None:
                sums.append(kernels.passed_sums(cosine, valid[some], bins, low))
            else:
                place = _place(cosine, bins, low, high)
                place.mul_(valid[some, :, None]).mul_(valid[some, None])
                sums += [_passed(own, bins)[None] for own in place]
        passed = F.pad(torch.cat(sums), (1, 1))
        passed[:, 0] = valid.sum(1, dtype=torch.float64) ** 2
        ctx.save_for_backward(unit, valid)
        ctx.bins, ctx.low, ctx.high = bins, low, high
        return (passed[:, :-1] - passed[:, 1:]).to(unit.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        unit, valid = ctx.saved_tensors
        scale = (ctx.bins - 1) / (ctx.high - ctx.low)
        slope = _slopes(gradient, scale)
        kernels = _kernels(unit)
        result = torch.empty_like(unit)
        for some in _samples(unit):
            cosine = unit[some] @ unit[some].transpose(1, 2)
            if kernels is not None:
                pairs = kernels.slopes_of(cosine, slope[some], ctx.low)
            else:
                interval = _interval((cosine - ctx.low) * scale, ctx.bins)
                pairs = torch.stack([own[where] for own, where in zip(slope[some], interval)])
            result[some] = 2 * (pairs @ unit[some])  # (i, j) and (j, i) each depend on both tokens
        return result.masked_fill_(~valid[..., None], 0), None, None, None, None


def _kernels(unit: Tensor) -> Any:
    """`fsseg.model.blocks.histogram_kernels`, where they can run: on a GPU for which torch has brought Triton."""
    if not unit.is_cuda or unit.dtype != torch.float32:
        return None
    try:
        from fsseg.model.blocks import histogram_kernels
    except ImportError:
        return None
    return histogram_kernels


def _samples(unit: Tensor) -> Iterator[slice]:
    """Samples (B, N, C) whose similarities are in memory together."""
    step = max(1, _SIMILARITIES // unit.shape[1] ** 2)
    return (slice(start, start + step) for start in range(0, len(unit), step))


def _blocks(count: int, device: str) -> Iterator[tuple[int, int]]:
    """Blocks of rows (start, stop) such that a block against all columns from its start on fits the chunk."""
    start = 0
    while start < count:
        stop = min(count, start + max(1, _CHUNK.get(device, _CHUNK_ELSEWHERE) // (count - start)))
        yield start, stop
        start = stop


def _place(cosine: Tensor, bins: int, low: float, high: float) -> Tensor:
    """Position of each value on the scale of the bins, [0, bins - 1]."""
    return cosine.sub_(low).mul_((bins - 1) / (high - low)).clamp_(0, bins - 1)


def _passed(place: Tensor, bins: int) -> Tensor:
    """S[0], ..., S[bins - 2] of the values, (bins - 1,) float64."""
    place = place.contiguous()
    buffer = torch.empty_like(place)
    sums = [torch.clamp(place, n, n + 1, out=buffer).sum() for n in range(bins - 1)]
    return torch.stack(sums).double() - place.numel() * torch.arange(bins - 1, device=place.device)
