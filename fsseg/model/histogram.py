"""Histogram of the cosine similarities of all token pairs, differentiable, without building a (N, N, L) tensor.

Structure-wise evolution E_s (`fsseg.model.abcb`) uses it on the query's predicted foreground.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fsseg.model.tokens import Tokens

RANGES = {"zero_one": (0.0, 1.0), "minus_one_one": (-1.0, 1.0)}
_CHUNK = 2**22  # pairs in memory at once


def cosine_histogram(tokens: Tokens, bins: int, span: str = "zero_one") -> Tensor:
    """Soft counts of the cosine similarity of all ordered token pairs (i, j), i = j included.

    Bin centres are spread evenly over the range, first and last on its ends. A pair counts in the two nearest bins by a
    triangular ("spire-shaped") kernel, with weights that sum to 1 for every value, 1 itself included; a value outside
    the range counts at its end. A zero vector's cosine with anything is 0.

    Args:
        tokens: B samples of any number of tokens.
        bins: L, at least 2.
        span: a key of `RANGES`.

    Returns:
        (B, L); row b sums to the square of sample b's token count.
    """
    low, high = RANGES[span]
    with torch.autocast(tokens.values.device.type, enabled=False):
        values = tokens.values if tokens.values.dtype == torch.float64 else tokens.values.float()
        return _Histogram.apply(F.normalize(values, dim=2), tokens.valid, bins, low, high)


def normalised_cosine_histogram(tokens: Tokens, bins: int, span: str = "zero_one") -> Tensor:
    """`cosine_histogram` divided by the number of pairs: (B, L), rows sum to 1, or to 0 without any token."""
    pairs = tokens.valid.sum(1, keepdim=True) ** 2
    return cosine_histogram(tokens, bins, span) / pairs.clamp_min(1)


class _Histogram(torch.autograd.Function):
    """Forward and backward each pass over the pairs once, some rows at a time."""

    @staticmethod
    def forward(ctx: Any, unit: Tensor, valid: Tensor, bins: int, low: float, high: float) -> Tensor:
        batch, count, _ = unit.shape
        result = unit.new_zeros(batch, bins)
        for rows in _rows(batch, count):
            place, _ = _place(unit[:, rows] @ unit.transpose(1, 2), bins, low, high)
            left = place.floor().clamp_(max=bins - 2)
            weight = (valid[:, rows, None] & valid[:, None, :]).to(unit.dtype)
            upper = (place - left) * weight
            index = left.long().flatten(1)
            result.scatter_add_(1, index, (weight - upper).flatten(1))
            result.scatter_add_(1, index + 1, upper.flatten(1))
        ctx.save_for_backward(unit, valid)
        ctx.bins, ctx.low, ctx.high = bins, low, high
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        unit, valid = ctx.saved_tensors
        batch, count, _ = unit.shape
        # Between two centres the count moves from one bin to the next at a constant rate.
        slope = (gradient[:, 1:] - gradient[:, :-1]) * ((ctx.bins - 1) / (ctx.high - ctx.low))
        result = torch.zeros_like(unit)
        for rows in _rows(batch, count):
            place, inside = _place(unit[:, rows] @ unit.transpose(1, 2), ctx.bins, ctx.low, ctx.high)
            index = place.floor().clamp_(max=ctx.bins - 2).long()
            pairs = slope.gather(1, index.flatten(1)).view_as(place)
            pairs = pairs * (inside & valid[:, rows, None] & valid[:, None, :])
            result[:, rows] = 2 * (
                pairs @ unit
            )  # a pair's cosine depends on both its tokens, and (i, j) mirrors (j, i)
        return result, None, None, None, None


def _rows(batch: int, count: int) -> list[slice]:
    step = max(1, _CHUNK // max(1, batch * count))
    return [slice(start, start + step) for start in range(0, count, step)]


def _place(cosine: Tensor, bins: int, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Position of each value on the scale of the bins, in [0, bins - 1], and whether it lies within the range."""
    inside = (cosine > low) & (cosine < high)
    return (cosine.clamp(low, high) - low) * ((bins - 1) / (high - low)), inside
