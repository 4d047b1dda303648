"""`method=pfenet`: prior map and prototype of the support, and an enrichment of the query's features at several sizes.

Tian, Zhao, Shu, Yang, Li, Jia, "Prior Guided Feature Enrichment Network for Few-Shot Segmentation", TPAMI 2020. What it
is, and where it differs from what is published: docs/methods.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import record_function

from fsseg.data.types import Tasks
from fsseg.model.backbones import Backbone, build_backbone
from fsseg.model.base import FewShotModel, Kept, Prediction, Role, cross_entropy, upsample
from fsseg.model.blocks.dropout import EpisodeDropout
from fsseg.model.blocks.prototypes import MaskClassifier, PrototypeNeck, ResidualPair, guided, pointwise
from fsseg.model.blocks.tokens import picture_cells

if TYPE_CHECKING:
    from fsseg.config.schema import Config, PfenetConfig

Size = tuple[int, int]


def sides(size: Size, shares: Sequence[float]) -> list[Size]:
    """Height and width of the maps of the enrichment, for a feature map of this size; at least 1.

    To the nearest whole number, of two the even one: 60 -> 60, 30, 15, 8 and 81 -> 81, 40, 20, 10, as published for
    473 and 641 pixels.
    """
    return [(max(1, round(size[0] * share)), max(1, round(size[1] * share))) for share in shares]


def resized(maps: Tensor, size: Size) -> Tensor:
    """(B, C, h, w) at another size, bilinear, corners aligned."""
    return maps if maps.shape[2:] == size else F.interpolate(maps, size, mode="bilinear", align_corners=True)


class FeatureEnrichment(nn.Module):
    """FEM: the query's features, prototype and prior merged at several sizes, from the first to the last.

        m_i = relu(1x1(cat(pool(q), prototype, prior)))           of size i
        m_i = m_i + relu(1x1(cat(m_i, x_{i-1})))                  from the second on
        x_i = m_i + relu(3x3(relu(3x3(m_i))))
        out = relu(1x1(cat(x_1, ..., x_n)))                       of q's size

    pool is the adaptive mean; all else is brought to size bilinearly. Each x_i also predicts, for the loss.

    Args:
        channels: C of all these maps.
        shares: sizes, as shares of that of q.
        strong_prior: the weights of the prior start as large as all others together (see `CorrelationNeck`).
    """

    def __init__(self, channels: int, shares: Sequence[float], strong_prior: bool = False) -> None:
        super().__init__()
        self.shares = list(shares)
        self.merge = nn.ModuleList(pointwise(2 * channels + 1, channels) for _ in shares)
        self.previous = nn.ModuleList(pointwise(2 * channels, channels) for _ in self.shares[1:])
        self.refine = nn.ModuleList(ResidualPair(channels) for _ in shares)
        self.classify = nn.ModuleList(MaskClassifier(channels) for _ in shares)
        self.fuse = pointwise(len(self.shares) * channels, channels)
        if strong_prior:
            with torch.no_grad():
                for layers in self.merge:
                    layers[0].weight[:, -1] *= (2 * channels + 1) ** 0.5  # type: ignore[index]

    def forward(
        self, query: Tensor, prototype: Tensor, prior: Tensor, drop: EpisodeDropout | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """q (B, C, h, w), prototype (B, C), prior (B, 1, h, w) -> out (B, C, h, w), and logits of each size."""
        full = (query.shape[2], query.shape[3])
        found: list[Tensor] = []
        for number, size in enumerate(sides(full, self.shares)):
            pooled = query if size == full else F.adaptive_avg_pool2d(query, size)
            merged = self.merge[number](guided(pooled, prototype, resized(prior, size)))
            if number:
                merged = merged + self.previous[number - 1](torch.cat((merged, resized(found[-1], size)), 1))
            found.append(self.refine[number](merged))
        logits = [classify(x, drop) for classify, x in zip(self.classify, found)]
        return self.fuse(torch.cat([resized(x, full) for x in found], 1)), logits


class Pfenet(FewShotModel):
    """Backbone, neck, enrichment, and a classifier on a residual pair. K shots: mean of prototypes and of priors.

    `seed` is the run's, for the dropout.
    """

    def __init__(self, backbone: Backbone, cfg: PfenetConfig, seed: int = 0) -> None:
        super().__init__()
        self.backbone, self.seed = backbone, seed
        backbone.check_layer4()
        self.neck = PrototypeNeck(backbone.channels, cfg.channels, cfg.dropout)
        self.enrichment = FeatureEnrichment(cfg.channels, cfg.sides, cfg.strong_prior)
        self.refine, self.classify = ResidualPair(cfg.channels), MaskClassifier(cfg.channels)

    @classmethod
    def from_config(cls, cfg: Config) -> Pfenet:
        return cls(build_backbone(cfg.backbone), cfg.model, cfg.seed)  # type: ignore[arg-type]

    def encode(self, images: Tensor, pictures: Tensor, role: Role = "both") -> Kept:
        """See `PrototypeNeck.encode`."""
        with record_function("fsseg: backbone"):
            features = self.backbone(images, "layer3" if role == "support" else "layer4")
        with record_function("fsseg: neck"):
            cells = (features["layer3"].shape[2], features["layer3"].shape[3])
            return self.neck.encode(features, picture_cells(pictures, cells), role)

    def decode(self, supports: Sequence[Kept], query: Kept, tasks: Tasks) -> Prediction:
        """The answer, and in `hats` the predictions of the enrichment."""
        drop = EpisodeDropout(tasks.specs, self.seed) if self.training else None
        with record_function("fsseg: neck"):
            guidance = self.neck(query, supports, tasks, self.backbone.layer4, drop)
        with record_function("fsseg: enrichment"):
            prototype, prior = guidance.prototypes.mean(1), guidance.priors.mean(1, keepdim=True)
            features, side_logits = self.enrichment(guidance.query, prototype, prior, drop)
            return Prediction([self.classify(self.refine(features), drop)], tasks.size, side_logits)

    def loss(self, prediction: Prediction, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """CE of the answer + mean over the sides of the CE of what each predicts.

        Args:
            prediction: what `forward` returned.
            target: (B, H, W) in {0, 1, 255}, from `training_target`; 255 counts nowhere.

        Returns:
            The loss, and its terms (detached) under the names `answer` and side_1, side_2, ...
        """
        target = target.long()
        answer = cross_entropy(prediction.logits, target)
        of_sides = [cross_entropy(upsample(p, prediction.size), target) for p in prediction.hats]
        terms = {f"side_{number}": term.detach() for number, term in enumerate(of_sides, start=1)}
        return answer + torch.stack(of_sides).mean(), {"answer": answer.detach(), **terms}
