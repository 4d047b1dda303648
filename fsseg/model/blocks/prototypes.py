"""Prototype and prior map: what the supports tell in PFENet, and what its decoders are made of; for `pfenet`, `bam`.

    q, s       = relu(1x1(cat(layer2, layer3)))               one convolution for queries, another for supports
    prototype  = sum of s * mask / (area + 5e-4)
    prior      = max over support foreground of cosine(layer4), scaled to [0, 1] over the query

Training drops channels of q and of s; of a prototype it is the same, for a mean is taken channel by channel.
layer4 of a query runs on its layer3, that of a support on its layer3 * mask. Tian, Zhao, Shu, Yang, Li, Jia,
"Prior Guided Feature Enrichment Network for Few-Shot Segmentation", TPAMI 2020. BAM's meta learner (Lang et al., CVPR
2022) is built of the same parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsseg.data.types import Tasks
from fsseg.model.backbones import Features
from fsseg.model.base import Kept, Role
from fsseg.model.blocks.dropout import EpisodeDropout
from fsseg.model.blocks.neck import prior_map
from fsseg.model.blocks.tokens import Shots, any_mask, downsample_masks, from_map, to_map, unless_full

_AREA = 5e-4  # cells added to the area that a masked mean divides by
_RANGE = 1e-7  # added to the range that the prior divides by
_CLASSIFIER_DROPOUT = 0.1


def pointwise(inputs: int, outputs: int) -> nn.Sequential:
    """1x1 convolution without bias, ReLU."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.ReLU())


class ResidualPair(nn.Module):
    """x + relu(3x3(relu(3x3(x)))), without biases."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.second(F.relu(self.first(x))))


class MaskClassifier(nn.Module):
    """3x3 convolution, ReLU, dropout, 1x1 convolution to the logits of background and foreground.

    The last convolution alone has a bias.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second = nn.Conv2d(channels, 2, 1)

    def forward(self, x: Tensor, drop: EpisodeDropout | None = None) -> Tensor:
        """(B, C, h, w) -> logits (B, 2, h, w); `drop` in training."""
        x = F.relu(self.first(x))
        return self.second(x if drop is None else drop(x, _CLASSIFIER_DROPOUT))


@dataclass
class Guidance:
    """What the supports tell of the queries, of every shot on its own.

    Attributes:
        query: q, (B, C, h, w).
        prototypes: (B, K, C).
        priors: (B, K, h, w), in [0, 1].
    """

    query: Tensor
    prototypes: Tensor
    priors: Tensor


class PrototypeNeck(nn.Module):
    """The first three lines of the module's docstring.

    Args:
        widths: channels of the backbone's stages.
        channels: C of q, s and prototype.
        dropout: share of the channels of q and of s that training drops.
    """

    def __init__(self, widths: dict[str, int], channels: int, dropout: float = 0.5) -> None:
        super().__init__()
        inputs = widths["layer2"] + widths["layer3"]
        self.query, self.support = pointwise(inputs, channels), pointwise(inputs, channels)
        self.dropout = dropout

    def encode(self, features: Features, picture: Tensor, role: Role = "both") -> Kept:
        """What depends on one image alone.

        Args:
            features: of N images; of supports layer4 is not needed.
            picture: (N, h, w) bool, cells that are picture and not padding; on the host.
            role: of the images; what only the other role needs is left out.

        Returns:
            Of queries `query` (N, h, w, C), q, and `layer4` (N, h, w, C4) of length 1; of supports `support`
            (N, h, w, C), s, and `layer3` (N, h, w, C3) as it is; and `picture`.
        """
        joined = torch.cat((features["layer2"], features["layer3"]), 1)
        kept = {"picture": picture}
        if role != "support":
            kept["query"] = from_map(self.query(joined))
            kept["layer4"] = F.normalize(from_map(features["layer4"]), dim=3)
        if role != "query":
            kept["support"] = from_map(self.support(joined))
            kept["layer3"] = from_map(features["layer3"])
        return kept

    def forward(
        self, query: Kept, supports: Sequence[Kept], tasks: Tasks, layer4: Callable[[Tensor], Tensor],
        drop: EpisodeDropout | None = None,
    ) -> Guidance:  # fmt: skip
        """Compare.

        Args:
            query: `encode` of the B query images.
            supports: `encode` of the B * K support images, sample by sample: all as one, or of each on its own.
            tasks: the masks.
            layer4: the backbone's stage, of maps (N, C3, h, w).
            drop: in training.

        Raises:
            UserError: a support mask without any foreground pixel.
        """
        device = query["query"].device
        seen = _joined(supports, "picture").unflatten(0, (len(tasks), -1))
        weights = support_weights(tasks.support_masks, seen, [spec.support_ids for spec in tasks.specs])
        shots, there = weights.shape[1], weights.flatten(0, 1).to(device, non_blocking=True)
        prototypes = masked_mean(_joined(supports, "support"), there).unflatten(0, (-1, shots))
        masked = to_map(_joined(supports, "layer3") * there[..., None])
        foreground = Shots([{"layer4": F.normalize(from_map(layer4(masked)), dim=3)}], weights > 0)
        valid = unless_full(query["picture"])
        valid = None if valid is None else valid.to(device, non_blocking=True)
        priors = prior_map(query["layer4"], foreground.tokens("layer4"), foreground.counts, valid, _RANGE)
        q = to_map(query["query"])
        if drop is not None:
            q = drop(q, self.dropout)
            prototypes = prototypes * drop.scale((shots, q.shape[1]), self.dropout, prototypes)
        return Guidance(q, prototypes, priors)


def guided(query: Tensor, prototype: Tensor, prior: Tensor) -> Tensor:
    """q (B, C, h, w), the prototype (B, C) at every cell, and the prior (B, 1, h, w), as one: (B, 2C + 1, h, w)."""
    return torch.cat((query, prototype[:, :, None, None].expand_as(query), prior), 1)


def support_weights(masks: Tensor, picture: Tensor, names: Sequence[Sequence[str]]) -> Tensor:
    """Support masks at feature size as PFENet has them: bilinear, corners aligned; so weights, and not a bool.

    At sides of stride * m + 1 (473, 641), where cells lie on pixels, a weight is the mask's pixel there: 0 or 1. A mask
    that lies between all cells would make prototype and prior 0; it gets the cells that `downsample_masks` gives it.

    Args:
        masks: (B, K, H, W) in {0, 1, 255}; only 1 is foreground.
        picture: (B, K, h, w) bool, cells that are picture and not padding.
        names: of the images, by sample and shot, for error messages.

    Returns:
        (B, K, h, w) in [0, 1], at least one cell above 0 for every shot.

    Raises:
        UserError: a mask without any foreground pixel; names the image.
    """
    size = (picture.shape[2], picture.shape[3])
    weights = F.interpolate((masks == 1).to(torch.float32), size, mode="bilinear", align_corners=True) * picture
    lost = ~(weights > 0).flatten(2).any(2)
    if any_mask() or lost.any():
        covered = downsample_masks(masks, size, names=names).to(weights.dtype)
        weights = torch.where(lost[..., None, None], covered, weights)
    return weights


def masked_mean(features: Tensor, weights: Tensor) -> Tensor:
    """Sum of the features under the mask, divided by its area + 5e-4: (N, h, w, C), (N, h, w) -> (N, C)."""
    return (features * weights[..., None]).sum((1, 2)) / (weights.sum((1, 2)) + _AREA)[:, None]


def _joined(supports: Sequence[Kept], name: str) -> Tensor:
    """What was kept of all images under a name, as one."""
    return supports[0][name] if len(supports) == 1 else torch.cat([kept[name] for kept in supports])
