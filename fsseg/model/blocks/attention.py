"""Multi-head attention over tokens, with query, key and value projections and no output projection.

The paper's parameter count leaves no room for an output projection. Used by the correlation neck, support modulation
and information cleansing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_NEVER = -30_000.0
"""Score before scaling of a key that takes no part: float16 holds it, and its exponential is 0."""


@dataclass
class Keys:
    """Keys and values of an attention: m positions of each sample.

    Attributes:
        key: (B, m, C), projected.
        value: (B, m, C), projected.
        valid: (B, m) bool; False keys take no part. None: all take part.
        bias: (B, m), added to the scores of each key.
    """

    key: Tensor
    value: Tensor
    valid: Tensor | None = None
    bias: Tensor | None = None


def masks_by_bias(key: Tensor) -> bool:
    """Whether keys that take no part are told by a bias: a mask would rule out the quickest kernel of a GPU."""
    return key.is_cuda


def attend(query: Tensor, keys: Keys, heads: int, scaled: bool = True) -> Tensor:
    """softmax(Q K^T / sqrt(d) + bias) V for each head of d = C / heads channels; the heads' outputs side by side.

    Args:
        query: (B, n, C), projected.
        keys: K, V and the bias.
        heads: number of heads.
        scaled: False leaves the division by sqrt(d) out.

    Returns:
        (B, n, C); zero for a sample without a valid key.
    """
    key, value, valid, bias = keys.key, keys.value, keys.valid, keys.bias
    if key.shape[1] == 0 or query.shape[1] == 0:
        return query.new_zeros(query.shape[0], query.shape[1], value.shape[2])
    q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    depth = q.shape[3]
    scale = depth**-0.5 if scaled else 1.0
    some = None if valid is None else valid.any(1)[:, None, None, None]
    extra = None if bias is None else bias / scale
    if valid is not None and masks_by_bias(key):
        extra = key.new_zeros(valid.shape) if extra is None else extra
        extra, valid = extra.masked_fill(~valid, _NEVER), None
    if extra is not None:
        # A bias per key is one more channel: [q, 1] . [k, b / scale] * scale = q . k * scale + b. As attn_mask, a
        # bias that needs a gradient would push torch off its fused kernels and build the (B, heads, n, m) matrix. The
        # fused kernels want one depth for q, k and v, in steps of 8.
        extra = F.pad(extra[:, None, :, None], (0, (-depth - 1) % 8)).expand(-1, heads, -1, -1)
        k = torch.cat((k, extra.to(k.dtype)), 3)
        q = torch.cat((q, torch.ones_like(q[..., :1]), q.new_zeros(*q.shape[:3], k.shape[3] - depth - 1)), 3)
        v = F.pad(v, (0, k.shape[3] - depth))
    if valid is None:
        out = F.scaled_dot_product_attention(q, k, v, scale=scale)
    else:
        # A sample without valid keys attends to its (zero) padding, and the result is dropped: an empty softmax is NaN.
        allowed = valid[:, None, None, :] | ~valid.any(1)[:, None, None, None]
        out = F.scaled_dot_product_attention(q, k, v, allowed, scale=scale)
    if some is not None:
        out = out.masked_fill(~some, 0)
    return out[..., :depth].transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Attention(Q, K, V) of the paper: three projections (3 C^2 parameters), then `attend`."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)

    def project(self, tokens: Tensor, valid: Tensor | None = None) -> Keys:
        """Keys and values of tokens (B, m, C); `valid` as in `Keys`."""
        return Keys(self.key(tokens), self.value(tokens), valid)

    def forward(self, query: Tensor, tokens: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, n, C) attends to (B, m, C) -> (B, n, C)."""
        return attend(self.query(query), self.project(tokens, valid), self.heads)
