"""`method=prototype`, training-free: foreground is what resembles the mean support foreground feature.

It shares data, engine and score with the learned methods and shows what the backbone's features are worth by
themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from fsseg.data.types import Batch
from fsseg.errors import UserError
from fsseg.model.backbones import Backbone, build_backbone
from fsseg.model.base import FewShotModel, Prediction
from fsseg.model.blocks.tokens import area_average, downsample_masks, picture_cells, to_tokens

if TYPE_CHECKING:
    from fsseg.config.schema import Config, PrototypeConfig

_SCALE = 20.0  # turns cosines into logits; changes no decision


class Prototype(FewShotModel):
    """Cosine matching with the mean support foreground feature, all shots pooled.

    The map is cut by `threshold`: `otsu` finds each query's best two-class split; `background` compares with the mean
    support background feature instead. Neither uses padding or support pixels of 255.
    """

    trainable = False

    def __init__(self, backbone: Backbone, cfg: PrototypeConfig) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.layer, self.threshold = cfg.layer, cfg.threshold

    @classmethod
    def from_config(cls, cfg: Config) -> Prototype:
        return cls(build_backbone(cfg.backbone), cfg.model)  # type: ignore[arg-type]

    @torch.no_grad()
    def forward(self, batch: Batch) -> Prediction:
        shots = batch.support_images.shape[1]
        size = (batch.query_image.shape[-2], batch.query_image.shape[-1])
        support = self.backbone(batch.support_images.flatten(0, 1))[self.layer]
        query = self.backbone(batch.query_image)[self.layer]
        names = [spec.support_ids for spec in batch.specs]
        cells = (support.shape[2], support.shape[3])
        masks = downsample_masks(batch.support_masks, cells, names=names)
        tokens = to_tokens(support).unflatten(0, (-1, shots)).flatten(1, 2)  # (B, K n, C)
        foreground = _masked_mean(tokens, masks.flatten(1))
        similarity = _cosine(query, foreground)
        if self.threshold == "otsu":
            picture = picture_cells(batch.query_picture, cells)
            seen = similarity if picture is None else [of_query[own] for of_query, own in zip(similarity, picture)]
            cuts = [otsu(values.reshape(1, -1)) for values in seen]
            other = torch.cat(cuts)[:, None, None].expand_as(similarity)
        else:
            background = area_average((batch.support_masks == 0).to(tokens.dtype), cells) >= 0.5
            other = _cosine(query, _masked_mean(tokens, (background & ~masks).flatten(1)))
        logits = torch.stack((other, similarity), 1) * _SCALE
        return Prediction([logits], size, support_foreground=foreground, query_features=query)

    def loss(self, prediction: Prediction, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        raise UserError("method=prototype has nothing to train", "evaluate it with train.enabled=false")


def _masked_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean of (B, n, C) over the True positions of (B, n) -> (B, C); zero without any."""
    weights = mask.to(tokens.dtype)
    return torch.einsum("bnc,bn->bc", tokens, weights) / weights.sum(1, keepdim=True).clamp_min(1)


def _cosine(features: Tensor, vector: Tensor) -> Tensor:
    """(B, C, h, w), (B, C) -> (B, h, w)."""
    return torch.einsum("bchw,bc->bhw", F.normalize(features, dim=1), F.normalize(vector, dim=1))


def otsu(values: Tensor) -> Tensor:
    """The threshold that separates each row best: largest variance between the two sides (Otsu 1979), over all cuts.

    Args:
        values: (B, n).

    Returns:
        (B,): half way between the two values beside the best cut; the largest value if all are equal or n is 1.
    """
    ordered = values.double().sort(1).values
    count = values.shape[1]
    if count == 1:
        return values[:, 0]
    below = torch.arange(1, count, device=values.device, dtype=torch.float64)
    sums = ordered.cumsum(1)
    left = sums[:, :-1] / below
    right = (sums[:, -1:] - sums[:, :-1]) / (count - below)
    variance = below * (count - below) * (right - left) ** 2
    variance = variance.masked_fill(ordered[:, 1:] <= ordered[:, :-1], -1.0)  # a cut lies between two different values
    best = variance.argmax(1, keepdim=True)
    cut = (ordered.gather(1, best) + ordered.gather(1, best + 1)) / 2
    flat = ordered[:, :1] == ordered[:, -1:]
    return torch.where(flat, ordered[:, -1:], cut)[:, 0].to(values.dtype)
