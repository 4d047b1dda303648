"""The histogram's two passes over all pairs as GPU kernels (Triton, which comes with torch for GPUs).

`fsseg.model.blocks.histogram` calls them for tokens that stay in place. Without them each bin is a pass of its own over
the matrix of similarities: 2000 launches a training step, and more time than the backbone takes. Sums are made in a
fixed order, so that a result is the same every time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 4096
_SIZE = tl.constexpr(_BLOCK)


@triton.jit
def _sum_kernel(cosine, valid, out, tokens, bins, low):  # type: ignore[no-untyped-def]
    sample, part, parts = tl.program_id(1), tl.program_id(0), tl.num_programs(0)
    at = part * _SIZE + tl.arange(0, _SIZE)
    inside = at < tokens * tokens
    pair = sample.to(tl.int64) * tokens * tokens + at
    value = tl.load(cosine + pair, mask=inside, other=0.0)
    first = tl.load(valid + sample * tokens + at // tokens, mask=inside, other=0)
    second = tl.load(valid + sample * tokens + at % tokens, mask=inside, other=0)
    place = tl.minimum(tl.maximum((value - low) * (bins - 1.0) / (1.0 - low), 0.0), bins - 1.0)
    place = tl.where((first != 0) & (second != 0), place, 0.0)
    row = out + (sample * parts + part) * (bins - 1)
    for number in range(bins - 1):
        tl.store(row + number, tl.sum(tl.minimum(tl.maximum(place - number, 0.0), 1.0), 0))


@triton.jit
def _slope_kernel(cosine, slope, tokens, bins, low):  # type: ignore[no-untyped-def]
    sample = tl.program_id(1)
    at = tl.program_id(0) * _SIZE + tl.arange(0, _SIZE)
    inside = at < tokens * tokens
    pair = sample.to(tl.int64) * tokens * tokens + at
    value = tl.load(cosine + pair, mask=inside, other=0.0)
    place = tl.minimum(tl.maximum((value - low) * (bins - 1.0) / (1.0 - low), -0.5), bins - 0.5)
    interval = tl.floor(place).to(tl.int32) + 1
    tl.store(cosine + pair, tl.load(slope + sample * (bins + 1) + interval, mask=inside, other=0.0), mask=inside)


def passed_sums(cosine: Tensor, valid: Tensor, bins: int, low: float) -> Tensor:
    """S[0], ..., S[L - 2] of each sample (see `histogram._Histogram`), (B, L - 1) float64.

    Args:
        cosine: (B, N, N) float32, contiguous.
        valid: (B, N) bool; a pair counts if both its tokens are valid.
        bins: L.
        low: where the bins begin; they end at 1.
    """
    batch, tokens = valid.shape
    parts = triton.cdiv(tokens * tokens, _BLOCK)
    out = torch.empty(batch, parts, bins - 1, device=cosine.device)
    _sum_kernel[(parts, batch)](cosine, valid.to(torch.uint8), out, tokens, bins, low)
    return out.sum(1, dtype=torch.float64)


def slopes_of(cosine: Tensor, slope: Tensor, low: float) -> Tensor:
    """Replaces each similarity (B, N, N), contiguous, by the slope of its interval; `slope` is (B, L + 1)."""
    batch, tokens = cosine.shape[:2]
    grid = (triton.cdiv(tokens * tokens, _BLOCK), batch)
    bins = slope.shape[1] - 1
    _slope_kernel[grid](cosine, slope.contiguous(), tokens, bins, low)
    return cosine
