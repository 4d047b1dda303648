"""Correlation neck: backbone features of support and query in, f_s and f_q of width C out, for `baseline` and `abcb`.

The paper says only "HSNet's multi-level features, then HDMNet's correlation modules"; its contents are OPEN. These
are published building blocks, each with a switch, sized so that parameters and MACs meet the paper's budget (`fsseg
cost`):

    s, q   = relu(norm(1x1(cat(layer2, layer3))))                         shared by support and query
    f_s    = relu(s + up(self-attention(pool(s))))                        foreground and background alike
    cross  = up(attention(pool(q) -> pool of s over foreground only))     the background is masked out
    prior  = max over support foreground of cosine(layer4), scaled to [0, 1] over the query (PFENet)
    f_q    = relu(q + ffn(relu(1x1(cat(q, cross, prior)))))               of each shot on its own

`encode` computes what depends on one image alone (s or q, f_s, normalised layer4), `forward` what depends on an
episode. Exact shortcuts there: the 1x1's share of q is computed once for all shots, its share of cross before scaling
up, since both are linear.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsseg.model.backbones import Features
from fsseg.model.base import Kept, Role
from fsseg.model.blocks.attention import Attention, attend
from fsseg.model.blocks.tokens import Positions, Shots, Tokens, from_map, to_map, to_tokens

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

    def encode(self, features: Features, valid: Tensor | None = None, role: Role = "both") -> Kept:
        """What depends on one image alone.

        Args:
            features: of N images.
            valid: (N, h, w) bool, cells that are picture and not padding; None: all are.
            role: of the images; what only the other role needs is left out.

        Returns:
            `embedded` (N, h, w, C), s or q; `refined` (N, h, w, C), f_s, of supports; `layer4` (N, h, w, C4) of length
            1, where the prior is used.
        """
        embedded = self.embed(features)
        kept = {"embedded": from_map(embedded)}
        if role != "query":
            kept["refined"] = from_map(self.refine(embedded, valid))
        if self.use_prior:
            kept["layer4"] = F.normalize(from_map(features["layer4"]), dim=3)
        return kept

    def forward(self, query: Kept, shots: Shots, valid: Tensor | None = None) -> Tensor:
        """Correlate.

        Args:
            query: `encode` of the B query images.
            shots: the supports, with `encode` of their images.
            valid: (B, h, w) bool, query cells that are picture and not padding; they alone make the prior's range.
                None: all are picture.

        Returns:
            f_q of every shot, (B, K, C, h, w).
        """
        q = to_map(query["embedded"])
        channels, (batch, number) = q.shape[1], shots.masks.shape[:2]
        merged = F.conv2d(q, self.merge.weight[:, :channels], self.merge.bias)[:, None]
        if self.cross_attention is not None:
            cross = F.conv2d(self.cross(q, shots), self.merge.weight[:, channels : 2 * channels])
            merged = merged + unpool(cross, self.pool, q).unflatten(0, (batch, number))
        if self.use_prior:
            prior = prior_map(query["layer4"], shots.tokens("layer4"), shots.counts, valid)
            merged = merged + prior[:, :, None] * self.merge.weight[:, -1]
        f_q = self.ffn(F.relu(merged.expand(-1, number, -1, -1, -1).flatten(0, 1)))
        return F.relu(q[:, None] + f_q.unflatten(0, (batch, number)))

    def embed(self, features: Features) -> Tensor:
        """Backbone features -> (N, C, h, w)."""
        x = self.reduce(torch.cat((features["layer2"], features["layer3"]), 1))
        return F.relu(self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))

    def cross(self, q: Tensor, shots: Shots) -> Tensor:
        """Cross-attention of the query (B, C, h, w), pooled, with each shot's foreground, pooled -> (B * K, C, ...)."""
        assert self.cross_attention is not None
        small = pool(q, self.pool)
        asked = self.cross_attention.query(to_tokens(small))
        keys = shots.each(lambda s, masks: pooled_under(to_map(s["embedded"]), masks, self.pool))
        number = shots.masks.shape[1]
        found = attend(
            asked.repeat_interleave(number, 0) if number > 1 else asked,
            self.cross_attention.project(keys.values, keys.mask), self.cross_attention.heads,
        )  # fmt: skip
        return _to_map(found, small)

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
    return Positions.where(share.flatten(1) > 0).gather(to_tokens(means))


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


def prior_map(
    query: Tensor, foreground: Tokens, counts: list[list[int]], valid: Tensor | None = None, added: float = 0.0
) -> Tensor:
    """Largest cosine similarity of each query position with the foreground of each shot (CANet, PFENet).

    Only the foreground's columns of the similarity matrix are computed, and only some samples at a time.

    Args:
        query: (B, h, w, C), of length 1.
        foreground: support features (B, M, C) of length 1, all shots of a sample one after the other.
        counts: how many of them are of each shot, at least one: B lists of K. All that are there, valid or not, if
            `foreground` does not say how many are.
        valid: (B, h, w) bool, query positions that are picture, at least one for every sample; None: all are.
        added: to the range of a map, which divides it.

    Returns:
        (B, K, h, w), each map scaled linearly to [0, 1] over the picture; 0 on padding.
    """
    size, left, right = query.shape[1:3], query.flatten(1, 2), foreground.values
    step = max(1, _SIMILARITIES // (left.shape[1] * right.shape[1]))
    rows = []
    for start in range(0, left.shape[0], step):
        similarity = left[start : start + step] @ right[start : start + step].transpose(1, 2)
        if foreground.counts is None or (len(counts[0]) == 1 and not foreground.full):  # below every cosine
            similarity = similarity.masked_fill(~foreground.valid[start : start + step, None, :], -2)
        if len(counts[0]) == 1:
            rows.append(similarity.amax(2)[:, None])
        else:
            for own, numbers in zip(similarity, counts[start : start + step]):
                parts = own[:, : sum(numbers)].split(numbers, 1)
                rows.append(torch.stack([part.amax(1) for part in parts])[None])
    best = torch.cat(rows)
    padding = torch.zeros_like(best, dtype=torch.bool) if valid is None else ~valid.flatten(1)[:, None]
    low = best.masked_fill(padding, 2).amin(2, keepdim=True)  # beyond every cosine, as above
    high = best.masked_fill(padding, -2).amax(2, keepdim=True)
    return ((best - low) / ((high - low).clamp_min(1e-6) + added)).masked_fill(padding, 0).unflatten(2, size)
