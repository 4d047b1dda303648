"""`method=prototype`, training-free: foreground is what resembles the mean support foreground feature.

It shares data, engine and score with the learned methods and shows what the backbone's features are worth by
themselves. What every training-free method needs is here too; `fsseg.model.dino` takes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from fsseg.data.types import Tasks
from fsseg.errors import UserError
from fsseg.model.backbones import Backbone, build_backbone
from fsseg.model.base import FewShotModel, Kept, Prediction, Role
from fsseg.model.blocks.tokens import (
    Shots,
    any_mask,
    area_average,
    downsample_masks,
    from_map,
    picture_cells,
    to_map,
    unless_full,
)

if TYPE_CHECKING:
    from fsseg.config.schema import Config, DinoConfig, PrototypeConfig

SCALE = 20.0
"""Turns differences of cosines into logits; changes no decision."""


class TrainingFree(FewShotModel):
    """A frozen backbone, of which one stage is matched (`layer`), and nothing to train."""

    trainable = False

    def __init__(self, backbone: Backbone, cfg: PrototypeConfig | DinoConfig) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.name, self.layer = cfg.name, cfg.layer

    @classmethod
    def from_config(cls, cfg: Config) -> TrainingFree:
        return cls(build_backbone(cfg.backbone), cfg.model)  # type: ignore[arg-type]

    def loss(self, prediction: Prediction, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        raise UserError(f"method={self.name} has nothing to train", "evaluate it with train.enabled=false")


class Prototype(TrainingFree):
    """Cosine matching with the mean support foreground feature, all shots pooled.

    The map is cut by `threshold`: `otsu` finds each query's best two-class split; `background` compares with the mean
    support background feature instead. Neither uses padding or support pixels of 255.
    """

    def __init__(self, backbone: Backbone, cfg: PrototypeConfig) -> None:
        super().__init__(backbone, cfg)
        self.threshold = cfg.threshold

    @torch.no_grad()
    def encode(self, images: Tensor, pictures: Tensor, role: Role = "both") -> Kept:
        """`features` (N, h, w, C) of the layer, and `picture` (N, h, w) bool, on the host."""
        features = self.backbone(images)[self.layer]
        return {
            "features": from_map(features),
            "picture": picture_cells(pictures, (features.shape[2], features.shape[3]), self.backbone.patches),
        }

    @torch.no_grad()
    def decode(self, supports: Sequence[Kept], query: Kept, tasks: Tasks) -> Prediction:
        features = to_map(query["features"])
        cells = (features.shape[2], features.shape[3])
        names, patches = [spec.support_ids for spec in tasks.specs], self.backbone.patches
        masks = downsample_masks(tasks.support_masks, cells, names=names, patches=patches)
        foreground = Shots(supports, masks).tokens("features").mean()
        similarity = _cosine(features, foreground)
        if self.threshold == "otsu":
            other = otsu_cuts(similarity, query["picture"])[:, None, None].expand_as(similarity)
        else:
            background = background_cells(tasks.support_masks, masks, patches)
            other = _cosine(features, Shots(supports, background).tokens("features").mean())
        logits = torch.stack((other, similarity), 1) * SCALE
        return Prediction([logits], tasks.size, [], foreground, features, patches)


def _cosine(features: Tensor, vector: Tensor) -> Tensor:
    """(B, C, h, w), (B, C) -> (B, h, w)."""
    return torch.einsum("bchw,bc->bhw", F.normalize(features, dim=1), F.normalize(vector, dim=1))


def background_cells(masks: Tensor, foreground: Tensor, patches: bool = False) -> Tensor:
    """Cells of the supports that show background: at least half of their area is 0 in the mask, not 255, not padding.

    Args:
        masks: (B, K, H, W) in {0, 1, 255}.
        foreground: (B, K, h, w) bool, `downsample_masks` of them; these cells are none.
        patches: what the cells are, see `Backbone.patches`.

    Returns:
        (B, K, h, w) bool; a shot may have no such cell.
    """
    size = (foreground.shape[2], foreground.shape[3])
    return (area_average((masks == 0).to(torch.float32), size, patches) >= 0.5) & ~foreground


def otsu_cuts(similarity: Tensor, picture: Tensor) -> Tensor:
    """Each query's `otsu` threshold, of the cells on its picture alone.

    Args:
        similarity: (B, ...).
        picture: the same shape, bool, on the host.

    Returns:
        (B,).
    """
    if any_mask():
        return otsu(similarity.flatten(1), picture.flatten(1))
    valid = unless_full(picture)
    seen = similarity if valid is None else [own[cells] for own, cells in zip(similarity, valid)]
    return torch.cat([otsu(values.reshape(1, -1)) for values in seen])


def otsu(values: Tensor, valid: Tensor | None = None) -> Tensor:
    """The threshold that separates each row best: largest variance between the two sides (Otsu 1979), over all cuts.

    Args:
        values: (B, n).
        valid: (B, n) bool, at least one for every row, which alone count; None: all do.

    Returns:
        (B,): half way between the two values beside the best cut; the largest value if all are equal or there is one.
    """
    if values.shape[1] == 1:
        return values[:, 0]
    valid = torch.ones_like(values, dtype=torch.bool) if valid is None else valid
    count = valid.sum(1, keepdim=True)
    ordered = values.double().masked_fill(~valid, torch.inf).sort(1).values
    below = torch.arange(1, values.shape[1], device=values.device, dtype=torch.float64)
    sums = ordered.masked_fill(ordered == torch.inf, 0).cumsum(1)
    left = sums[:, :-1] / below
    right = (sums[:, -1:] - sums[:, :-1]) / (count - below).clamp_min(1)
    variance = below * (count - below) * (right - left) ** 2
    no_cut = (ordered[:, 1:] <= ordered[:, :-1]) | (below >= count)  # a cut lies between two different values
    best = variance.masked_fill(no_cut, -1.0).argmax(1, keepdim=True)
    cut = (ordered.gather(1, best) + ordered.gather(1, best + 1)) / 2
    largest = ordered.gather(1, count - 1)
    return torch.where(ordered[:, :1] == largest, largest, cut)[:, 0].to(values.dtype)
