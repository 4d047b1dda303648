"""Correlation neck: backbone features of support and query in, f_s and f_q of width C out, for `baseline` and `abcb`.

The paper says only "HSNet's multi-level features, then HDMNet's correlation modules"; its contents are OPEN. These
are published building blocks, each with a switch, sized so that parameters and MACs meet the paper's budget (`fsseg
cost`):

    s, q   = relu(norm(1x1(cat(layer2, layer3))))                         shared by support and query
    f_s    = relu(s + up(self-attention(pool(s))))                        foreground and background alike
    cross  = up(attention(pool(q) -> pool of s over foreground only))     the background is masked out
    prior  = max over support foreground of cosine(layer4), scaled to [0, 1] over the query (PFENet)
    f_q    = relu(q + ffn(relu(1x1(cat(q, cross, prior)))))               averaged over the shots
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsseg.model.attention import Attention
from fsseg.model.backbone import Features
from fsseg.model.tokens import flatten, gather

if TYPE_CHECKING:
    from fsseg.config import NeckConfig

_SIMILARITIES = 2**26  # cosine similarities in memory at once


class CorrelationNeck(nn.Module):
    """See the module's text. Every shot meets the query on its own; the query features of all shots are averaged.

    Args:
        widths: channels of the backbone's stages.
        cfg: `channels`, `heads`, `neck_pool` and the three switches.
    """

    def __init__(self, widths: dict[str, int], cfg: NeckConfig) -> None:
        super().__init__()
        channels = cfg.channels
        self.pool = cfg.neck_pool
        self.use_prior = cfg.neck_prior
        self.reduce = nn.Conv2d(widths["layer2"] + widths["layer3"], channels, 1)
        self.norm = nn.LayerNorm(channels)
        self.self_attention = Attention(channels, cfg.heads) if cfg.neck_self_attention else None
        self.cross_attention = Attention(channels, cfg.heads) if cfg.neck_cross_attention else None
        merged = channels * (2 if cfg.neck_cross_attention else 1) + (1 if cfg.neck_prior else 0)
        self.merge = nn.Conv2d(merged, channels, 1)
        self.ffn = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.ReLU(), nn.Conv2d(channels, channels, 1))

    def forward(self, support: Features, query: Features, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Correlate.

        Args:
            support: features of the B * K support images, sample by sample.
            query: features of the B query images.
            masks: (B, K, h, w) bool, support foreground; at least one True for every shot.

        Returns:
            f_s (B, K, C, h, w) and f_q (B, C, h, w).
        """
        batch, shots = masks.shape[:2]
        flat_masks = masks.flatten(0, 1)
        s, q = self._embed(support), self._embed(query)
        q_each = q.repeat_interleave(shots, 0) if shots > 1 else q
        parts = [q_each]
        if self.cross_attention is not None:
            parts.append(self._cross(q, s, flat_masks, shots))
        if self.use_prior:
            layer4 = query["layer4"]
            parts.append(
                prior_map(layer4.repeat_interleave(shots, 0) if shots > 1 else layer4, support["layer4"], flat_masks)
            )
        f_q = F.relu(q_each + self.ffn(F.relu(self.merge(torch.cat(parts, 1)))))
        f_q = f_q.unflatten(0, (batch, shots)).mean(1)
        if self.self_attention is not None:
            small = pool(s, self.pool)
            tokens = flatten(small)
            s = s + unpool(_unflatten(self.self_attention(tokens, tokens), small), self.pool, s)
        return F.relu(s).unflatten(0, (batch, shots)), f_q

    def _embed(self, features: Features) -> Tensor:
        x = self.reduce(torch.cat((features["layer2"], features["layer3"]), 1))
        return F.relu(self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))

    def _cross(self, q: Tensor, s: Tensor, masks: Tensor, shots: int) -> Tensor:
        """Cross-attention of the pooled query with the support's foreground -> (B * K, C, h, w)."""
        assert self.cross_attention is not None
        # A pooled cell holds the mean of its foreground features alone, and counts if it has any: nothing of the
        # background leaks in, and no shot is left without a key.
        share = pool(masks[:, None].to(s.dtype), self.pool)
        means = pool(s * masks[:, None], self.pool) / share.clamp_min(1e-6)
        keys = gather(flatten(means), share.flatten(1) > 0)
        small = pool(q, self.pool)
        tokens = flatten(small).repeat_interleave(shots, 0)
        return unpool(_unflatten(self.cross_attention(tokens, keys.values, keys.mask), small), self.pool, s)


def pool(x: Tensor, factor: int) -> Tensor:
    """Average (B, C, h, w) over blocks of factor x factor cells; blocks at the right and lower edge may be smaller."""
    return F.avg_pool2d(x, factor, ceil_mode=True, count_include_pad=False) if factor > 1 else x


def unpool(x: Tensor, factor: int, like: Tensor) -> Tensor:
    """Bilinear inverse of `pool`: (B, C, ceil(h / factor), ...) -> (B, C, h, w) of `like`."""
    if factor == 1:
        return x
    big = F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
    return big[..., : like.shape[2], : like.shape[3]]


def _unflatten(tokens: Tensor, like: Tensor) -> Tensor:
    """(B, h * w, C) -> (B, C, h, w) of `like`."""
    return tokens.transpose(1, 2).unflatten(2, tuple(like.shape[2:]))


def prior_map(query: Tensor, support: Tensor, masks: Tensor) -> Tensor:
    """Largest cosine similarity of each query position with the support's foreground (PFENet, CANet).

    Only the foreground columns of the similarity matrix are computed, and only some samples at a time.

    Args:
        query: (B, C, h, w).
        support: (B, C, h, w).
        masks: (B, h, w) bool, at least one True for every sample.

    Returns:
        (B, 1, h, w), each sample's map scaled linearly to [0, 1].
    """
    left = F.normalize(flatten(query), dim=2)
    right = gather(F.normalize(flatten(support), dim=2), masks.flatten(1))
    size, count = left.shape[1], right.values.shape[1]
    step = max(1, _SIMILARITIES // (size * count))
    rows = []
    for start in range(0, left.shape[0], step):
        part = slice(start, start + step)
        similarity = left[part] @ right.values[part].transpose(1, 2)
        if not right.full:
            similarity = similarity.masked_fill(~right.valid[part, None, :], -2)  # below every cosine
        rows.append(similarity.amax(2))
    best = torch.cat(rows)
    low = best.amin(1, keepdim=True)
    scaled = (best - low) / (best.amax(1, keepdim=True) - low).clamp_min(1e-6)
    return scaled.unflatten(1, tuple(query.shape[2:]))[:, None]
