"""Correlation neck: backbone features of support and query in, f_s and f_q of width C out, for `baseline` and `abcb`.

The paper says only "HSNet's multi-level features, then HDMNet's correlation modules"; its contents are OPEN. These
are published building blocks, each with a switch, sized so that parameters and MACs meet the paper's budget (`fsseg
cost`):

    s, q   = relu(norm(1x1(cat(layer2, layer3))))                         shared by support and query
    f_s    = relu(s + up(self-attention(pool(s))))                        foreground and background alike
    cross  = up(attention(pool(q) -> pool of s over foreground only))     the background is masked out
    prior  = max over support foreground of cosine(layer4), scaled to [0, 1] over the query (PFENet)
    f_q    = relu(q + ffn(relu(1x1(cat(q, cross, prior)))))               of each shot on its own
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsseg.model.backbones import Features
from fsseg.model.blocks.attention import Attention
from fsseg.model.blocks.tokens import Tokens, to_tokens, tokens_under

if TYPE_CHECKING:
    from fsseg.config.schema import NeckConfig

_SIMILARITIES = 2**26  # cosine similarities in memory at once


class CorrelationNeck(nn.Module):
    """The neck of the module's docstring. Each shot is correlated with the query separately.

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
        if cfg.neck_prior:
            # With torch's usual start one channel among 2C + 1 has hardly any weight. Training may then learn to
            # segment salient objects without the support. So the prior starts with the weight of all others together.
            with torch.no_grad():
                self.merge.weight[:, -1] *= merged**0.5
        self.ffn = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.ReLU(), nn.Conv2d(channels, channels, 1))

    def forward(
        self,
        support: Features,
        query: Features,
        masks: Tensor,
        support_valid: Tensor | None = None,
        query_valid: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Correlate.

        Args:
            support: features of the B * K support images, sample by sample.
            query: features of the B query images.
            masks: (B, K, h, w) bool, support foreground; at least one True for every shot.
            support_valid, query_valid: (B * K, h, w) and (B, h, w) bool, cells that are picture and not padding; no
                attention includes padding, nor does the prior's range. None: all are picture.

        Returns:
            f_s and f_q of every shot, (B, K, C, h, w) each.
        """
        batch, shots = masks.shape[:2]
        flat_masks = masks.flatten(0, 1)
        s, q = self.embed(support), self.embed(query)
        q_each = q.repeat_interleave(shots, 0) if shots > 1 else q
        parts = [q_each]
        if self.cross_attention is not None:
            parts.append(self.cross(q_each, pooled_under(s, flat_masks, self.pool)))
        if self.use_prior:
            layer4, valid = query["layer4"], query_valid
            if shots > 1:
                layer4 = layer4.repeat_interleave(shots, 0)
                valid = valid.repeat_interleave(shots, 0) if valid is not None else None
            parts.append(prior_map(layer4, tokens_under(flat_masks.flatten(1), to_tokens(support["layer4"])), valid))
        f_q = self.fuse(parts).unflatten(0, (batch, shots))
        return self.refine(s, support_valid).unflatten(0, (batch, shots)), f_q

    def embed(self, features: Features) -> Tensor:
        """Backbone features -> (N, C, h, w)."""
        x = self.reduce(torch.cat((features["layer2"], features["layer3"]), 1))
        return F.relu(self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))

    def cross(self, q: Tensor, keys: Tokens) -> Tensor:
        """Cross-attention of the query (B, C, h, w), pooled, with the support's foreground -> (B, C, h, w)."""
        assert self.cross_attention is not None
        small = pool(q, self.pool)
        return unpool(_to_map(self.cross_attention(to_tokens(small), keys.values, keys.mask), small), self.pool, q)

    def fuse(self, parts: list[Tensor]) -> Tensor:
        """Query features and their correlations with the support -> f_q of one shot, (B, C, h, w)."""
        return F.relu(parts[0] + self.ffn(F.relu(self.merge(torch.cat(parts, 1)))))

    def refine(self, s: Tensor, valid: Tensor | None = None) -> Tensor:
        """Self-attention on the support, pooled -> f_s, (B, C, h, w); `valid` (B, h, w) bool leaves padding out."""
        if self.self_attention is not None:
            small = pool(s, self.pool)
            tokens = to_tokens(small)
            if valid is None:
                own = self.self_attention(tokens, tokens)
            else:
                keys = pooled_under(s, valid, self.pool)
                own = self.self_attention(tokens, keys.values, keys.mask)
            s = s + unpool(_to_map(own, small), self.pool, s)
        return F.relu(s)


def pooled_under(s: Tensor, masks: Tensor, factor: int) -> Tokens:
    """Keys of an attention: features of (B, C, h, w) under (B, h, w) bool (the foreground, the picture), pooled.

    A pooled cell holds the mean of its features under the mask, and is a key if it has any. So nothing outside the mask
    enters, and every shot has a key.
    """
    share = pool(masks[:, None].to(s.dtype), factor)
    means = pool(s * masks[:, None], factor) / share.clamp_min(1e-6)
    return tokens_under(share.flatten(1) > 0, to_tokens(means))


def pool(x: Tensor, factor: int) -> Tensor:
    """Average (B, C, h, w) over blocks of factor x factor cells; blocks at the right and lower edge may be smaller."""
    return F.avg_pool2d(x, factor, ceil_mode=True, count_include_pad=False) if factor > 1 else x


def unpool(x: Tensor, factor: int, like: Tensor) -> Tensor:
    """Bilinear inverse of `pool`: (B, C, ceil(h / factor), ...) -> (B, C, h, w) of `like`."""
    if factor == 1:
        return x
    big = F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
    return big[..., : like.shape[2], : like.shape[3]]


def _to_map(tokens: Tensor, like: Tensor) -> Tensor:
    """(B, h * w, C) -> (B, C, h, w) of `like`."""
    return tokens.transpose(1, 2).unflatten(2, tuple(like.shape[2:]))


def prior_map(query: Tensor, foreground: Tokens, valid: Tensor | None = None) -> Tensor:
    """Largest cosine similarity of each query position with the support's foreground (CANet, PFENet).

    Only the foreground's columns of the similarity matrix are computed, and only some samples at a time.

    Args:
        query: (B, C, h, w).
        foreground: support features (B, N, C), at least one for every sample.
        valid: (B, h, w) bool, query positions that are picture, at least one for every sample; None: all are.

    Returns:
        (B, 1, h, w), each sample's map scaled linearly to [0, 1] over the picture; 0 on padding.
    """
    left, right = F.normalize(to_tokens(query), dim=2), F.normalize(foreground.values, dim=2)
    step = max(1, _SIMILARITIES // (left.shape[1] * right.shape[1]))
    rows = []
    for start in range(0, left.shape[0], step):
        part = slice(start, start + step)
        similarity = left[part] @ right[part].transpose(1, 2)
        if not foreground.full:
            similarity = similarity.masked_fill(~foreground.valid[part, None, :], -2)  # below every cosine
        rows.append(similarity.amax(2))
    best = torch.cat(rows)
    padding = torch.zeros_like(best, dtype=torch.bool) if valid is None else ~valid.flatten(1)
    low = best.masked_fill(padding, 2).amin(1, keepdim=True)  # beyond every cosine, as above
    high = best.masked_fill(padding, -2).amax(1, keepdim=True)
    scaled = ((best - low) / (high - low).clamp_min(1e-6)).masked_fill(padding, 0)
    return scaled.unflatten(1, tuple(query.shape[2:]))[:, None]
