"""`method=baseline`: backbone, correlation neck and query prediction (QP), the paper's baseline; `Abcb` extends it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from fsseg.data.types import Batch
from fsseg.model.backbones import Backbone, Features, build_backbone
from fsseg.model.base import FewShotModel, Prediction
from fsseg.model.blocks.neck import CorrelationNeck
from fsseg.model.blocks.tokens import Tokens, downsample_masks, picture_cells, to_tokens, tokens_under

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

    def forward(self, batch: Batch) -> Prediction:
        support = self.backbone(batch.support_images.flatten(0, 1))
        query = self.backbone(batch.query_image)
        return self.decode(support, query, batch)

    def decode(self, support: Features, query: Features, batch: Batch) -> Prediction:
        """Everything after the backbone; features computed before can be passed in.

        Args:
            support: features of the B * K support images, sample by sample.
            query: features of the B query images.
            batch: images and masks.

        Raises:
            UserError: a support mask without foreground.
        """
        cells = (query["layer2"].shape[2], query["layer2"].shape[3])
        names = [spec.support_ids for spec in batch.specs]
        masks = downsample_masks(batch.support_masks, cells, self.vanished_mask, names)
        picture = picture_cells(batch.query_picture, cells)
        f_s, f_q = self.neck(support, query, masks, picture_cells(batch.support_pictures.flatten(0, 1), cells), picture)
        shots = masks.shape[1]
        if self.shot_fusion == "logits" and shots > 1:
            tokens = tokens_under(masks.flatten(0, 1).flatten(1), to_tokens(f_s.flatten(0, 1)))
            images = batch.query_image.repeat_interleave(shots, 0)
            pictures = None if picture is None else picture.repeat_interleave(shots, 0)
            return self.rounds(tokens, f_q.flatten(0, 1), images, pictures).mean_of(shots)
        # The tokens of all shots one after the other, each shot in raster order.
        s_qp = tokens_under(masks.flatten(1), to_tokens(f_s.transpose(1, 2)))
        return self.rounds(s_qp, f_q.mean(1), batch.query_image, picture)

    def rounds(self, s_qp: Tokens, f_q: Tensor, query_image: Tensor, picture: Tensor | None = None) -> Prediction:
        """Predict from support foreground tokens S_QP, f_q (B, C, h, w) and the query image (B, 3, H, W).

        `picture` (B, h, w) bool marks the cells that are picture and not padding; None: all are.
        """
        mean = s_qp.mean()
        logits = self.qp(mean, self.qp.prepare(f_q))
        size = (query_image.shape[-2], query_image.shape[-1])
        return Prediction([logits], size, support_foreground=mean, query_features=f_q)
