"""`method=baseline`: backbone, correlation neck and query prediction (QP), the paper's baseline; `Abcb` extends it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import record_function

from fsseg.data.types import Tasks
from fsseg.model.backbones import Backbone, build_backbone
from fsseg.model.base import FewShotModel, Kept, Prediction, Role
from fsseg.model.blocks.neck import CorrelationNeck
from fsseg.model.blocks.tokens import (
    Shots,
    Tokens,
    area_average,
    downsample_masks,
    from_map,
    picture_cells,
    to_map,
    unless_full,
)

if TYPE_CHECKING:
    from fsseg.config.schema import Config, NeckConfig


class QueryPrediction(nn.Module):
    """QP: P = phi_p(cat(mean(S_QP), f_q)), phi_p two 1x1 convolutions, the first with ReLU.

    The mean is one vector for the whole map, so phi_p's first layer is applied to each half of its input alone:
    to f_q once for all rounds (`prepare`), to the mean once a round. The sum is the same.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(2 * channels, channels, 1)
        self.second = nn.Conv2d(channels, 2, 1)

    def prepare(self, query: Tensor) -> Tensor:
        """f_q's share of the first layer; (B, C, h, w) -> (B, C, h, w)."""
        channels = query.shape[1]
        return F.conv2d(query, self.first.weight[:, channels:], self.first.bias)

    def forward(self, mean: Tensor, prepared: Tensor) -> Tensor:
        """mean(S_QP) (B, C) and `prepare(f_q)` (B, C, h, w) -> logits P (B, 2, h, w)."""
        share = F.linear(mean, self.first.weight[:, : mean.shape[1], 0, 0])
        return self.second(F.relu(prepared + share[:, :, None, None]))


class Baseline(FewShotModel):
    """Backbone, neck, QP."""

    def __init__(self, backbone: Backbone, cfg: NeckConfig) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = CorrelationNeck(backbone.channels, cfg)
        self.qp = QueryPrediction(cfg.channels)
        self.vanished_mask = cfg.vanished_mask
        self.shot_fusion = cfg.shot_fusion

    @classmethod
    def from_config(cls, cfg: Config) -> Baseline:
        return cls(build_backbone(cfg.backbone), cfg.model)  # type: ignore[arg-type]

    def encode(self, images: Tensor, pictures: Tensor, role: Role = "both") -> Kept:
        """See `CorrelationNeck.encode`; also `picture` (N, h, w) bool, on the host, and for queries `image`, the images
        at feature size, (N, h, w, 3)."""
        with record_function("fsseg: backbone"):
            features = self.backbone(images)
        with record_function("fsseg: neck"):
            cells = (features["layer2"].shape[2], features["layer2"].shape[3])
            picture = picture_cells(pictures, cells, self.backbone.patches)
            valid = unless_full(picture)
            valid = None if valid is None else valid.to(images.device, non_blocking=True)
            kept = self.neck.encode(features, valid, role) | {"picture": picture}
            if role != "support":
                kept["image"] = from_map(area_average(images, cells, self.backbone.patches))
        return kept

    def decode(self, supports: Sequence[Kept], query: Kept, tasks: Tasks) -> Prediction:
        cells = (query["embedded"].shape[1], query["embedded"].shape[2])
        device = query["embedded"].device
        names = [spec.support_ids for spec in tasks.specs]
        masks = downsample_masks(tasks.support_masks, cells, self.vanished_mask, names, self.backbone.patches)
        picture = unless_full(query["picture"])
        picture = None if picture is None else picture.to(device, non_blocking=True)
        image, count = to_map(query["image"]), masks.shape[1]
        shots = Shots(supports, masks)
        with record_function("fsseg: neck"):
            f_q = self.neck(query, shots, picture)
        with record_function("fsseg: rounds"):
            if self.shot_fusion == "logits" and count > 1:
                pictures = None if picture is None else picture.repeat_interleave(count, 0)
                images = image.repeat_interleave(count, 0)
                found = self.rounds(shots.alone().tokens("refined"), f_q.flatten(0, 1), images, pictures).mean_of(count)
            else:
                found = self.rounds(shots.tokens("refined"), f_q.mean(1) if count > 1 else f_q[:, 0], image, picture)
        return replace(found, size=tasks.size, patches=self.backbone.patches)

    def rounds(self, s_qp: Tokens, f_q: Tensor, query_image: Tensor, picture: Tensor | None = None) -> Prediction:
        """Predict from support foreground tokens S_QP, f_q (B, C, h, w) and the query image (B, 3, H, W), whole or at
        feature size.

        `picture` (B, h, w) bool marks the cells that are picture and not padding; None: all are.
        """
        mean = s_qp.mean()
        logits = self.qp(mean, self.qp.prepare(f_q))
        size = (query_image.shape[-2], query_image.shape[-1])
        return Prediction([logits], size, support_foreground=mean, query_features=f_q)
