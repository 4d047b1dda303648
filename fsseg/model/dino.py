"""`method=dino`, training-free: prototypes by k-means on frozen features, and a Gram map that spreads their answer.

Foreground and background of the supports become a few directions each. A query cell is foreground if it is nearer to
one of the foreground's than to all of the background's; cells that look alike then answer alike. Meant for the features
of a self-supervised vision transformer (DINOv2, DINOv3); it runs on every backbone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from fsseg.data.types import Tasks
from fsseg.model.backbones import Backbone
from fsseg.model.base import Kept, Prediction, Role
from fsseg.model.blocks.attention import Keys, attend
from fsseg.model.blocks.exact import exact, wide
from fsseg.model.blocks.tokens import (
    Shots,
    Tokens,
    any_mask,
    downsample_masks,
    from_map,
    picture_cells,
    to_map,
    unless_full,
)
from fsseg.model.prototype import SCALE, TrainingFree, background_cells, otsu_cuts

if TYPE_CHECKING:
    from fsseg.config.schema import DinoConfig


class Dino(TrainingFree):
    """Nearest of several prototypes, then passes of the query's Gram map.

    Padding, and support pixels of 255, take no part. Without a background prototype (`background_prototypes=0`, or the
    objects fill all supports) the similarity is cut by `otsu`, as in `Prototype`.
    """

    def __init__(self, backbone: Backbone, cfg: DinoConfig) -> None:
        super().__init__(backbone, cfg)
        self.foreground_prototypes, self.background_prototypes = cfg.foreground_prototypes, cfg.background_prototypes
        self.kmeans_iterations = cfg.kmeans_iterations
        self.gram_passes, self.gram_temperature = cfg.gram_passes, cfg.gram_temperature

    @torch.no_grad()
    def encode(self, images: Tensor, pictures: Tensor, role: Role = "both") -> Kept:
        """`features` (N, h, w, C) of the layer, of length 1, and for queries `picture` (N, h, w) bool, on the host."""
        features = wide(self.backbone(images)[self.layer])
        kept = {"features": from_map(F.normalize(features, dim=1))}
        if role != "support":
            kept["picture"] = picture_cells(pictures, (features.shape[2], features.shape[3]), self.backbone.patches)
        return kept

    @torch.no_grad()
    def decode(self, supports: Sequence[Kept], query: Kept, tasks: Tasks) -> Prediction:
        features, picture = query["features"], query["picture"].flatten(1)
        cells = (features.shape[1], features.shape[2])
        names, patches = [spec.support_ids for spec in tasks.specs], self.backbone.patches
        masks = downsample_masks(tasks.support_masks, cells, names=names, patches=patches)
        foreground = Shots(supports, masks).tokens("features")
        background = Shots(supports, background_cells(tasks.support_masks, masks, patches))
        valid = unless_full(picture)
        valid = None if valid is None else valid.to(features.device, non_blocking=True)
        unit = features.flatten(1, 2)
        with exact(unit):  # which cluster is nearest hangs on small differences
            similarity = self._similarity(unit, foreground, self.foreground_prototypes)
            answer = similarity - self._threshold(unit, similarity, background, picture)
            for _ in range(self.gram_passes):
                answer = spread(unit, answer, self.gram_temperature, valid)
        answer = answer.unflatten(1, cells)
        logits = torch.stack((torch.zeros_like(answer), answer), 1) * SCALE
        return Prediction([logits], tasks.size, [], foreground.mean(), to_map(features), patches)

    def _similarity(self, unit: Tensor, tokens: Tokens, number: int) -> Tensor:
        """Largest cosine of each query cell (B, n, C) with one of the tokens' prototypes, (B, n)."""
        return (unit @ spherical_kmeans(tokens, number, self.kmeans_iterations).transpose(1, 2)).amax(2)

    def _threshold(self, unit: Tensor, similarity: Tensor, background: Shots, picture: Tensor) -> Tensor:
        """What the similarity with the foreground must exceed, (B, n) or (B, 1)."""
        lacking = ~background.masks.flatten(1).any(1)  # on the host
        if self.background_prototypes == 0 or (not any_mask() and bool(lacking.all())):
            return otsu_cuts(similarity, picture)[:, None]
        other = self._similarity(unit, background.tokens("features"), self.background_prototypes)
        if not any_mask() and not bool(lacking.any()):
            return other
        cuts = otsu_cuts(similarity, picture)[:, None]
        return torch.where(lacking.to(other.device, non_blocking=True)[:, None], cuts, other)


def spherical_kmeans(tokens: Tokens, number: int, iterations: int) -> Tensor:
    """Directions around which tokens of length 1 lie: k-means by cosine, from a start without chance.

    The start is the token farthest from the mean, then again and again the one farthest from those chosen so far. In
    each iteration a token joins the centre of the largest cosine (the first of several), and a centre becomes the
    direction of its tokens' sum; one without tokens stays. Where there are fewer tokens than centres, some centres are
    the same.

    Args:
        tokens: (B, N, C), N at least 1; each sample has its own clusters.
        number: k, of centres.
        iterations: at least 1, so that a single centre is the tokens' mean direction.

    Returns:
        (B, k, C), of length 1; zero for a sample without tokens.
    """
    values, valid = tokens.values, tokens.valid
    centres = _farthest_first(values, valid, number)
    numbers = torch.arange(number, device=values.device)
    for _ in range(iterations):
        nearest = (values @ centres.transpose(1, 2)).argmax(2, keepdim=True)
        members = ((nearest == numbers) & valid[..., None]).to(values.dtype)
        sums = members.transpose(1, 2) @ values
        centres = torch.where((members.sum(1) > 0)[..., None], F.normalize(sums, dim=2), centres)
    return centres


def _farthest_first(values: Tensor, valid: Tensor, number: int) -> Tensor:
    """The start of `spherical_kmeans`, (B, number, C)."""
    samples = torch.arange(len(values), device=values.device)

    def cosines(direction: Tensor) -> Tensor:
        return (values @ direction[..., None])[..., 0]

    closeness = cosines(F.normalize(values.sum(1), dim=1))
    chosen: list[Tensor] = []
    for _ in range(number):
        farthest = values[samples, closeness.masked_fill(~valid, torch.inf).argmin(1)]
        closeness = cosines(farthest) if not chosen else torch.maximum(closeness, cosines(farthest))
        chosen.append(farthest)
    return torch.stack(chosen, 1)


def spread(unit: Tensor, answer: Tensor, temperature: float, valid: Tensor | None = None) -> Tensor:
    """One pass of the Gram map: softmax(unit unit^T / temperature) answer, so that cells that look alike answer alike.

    Args:
        unit: (B, n, C), of length 1.
        answer: (B, n).
        temperature: of the softmax; the larger, the more each cell's answer becomes the mean of all.
        valid: (B, n) bool, cells whose answer is passed on, at least one for every sample; None: all are.

    Returns:
        (B, n).
    """
    return attend(unit / temperature, Keys(unit, answer[..., None], valid), heads=1, scaled=False)[..., 0]
