"""`method=pspnet`: the base learner of BAM's stage 1, which segments the base classes of a fold; it has no supports.

Its cells are trained for the sake of others: what it has learned starts their backbone (`backbone.base_training`), and
BAM takes its head as well. `fsseg.engine.base_classes` scores it on the base classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import record_function

from fsseg.data.folds import base_classes
from fsseg.data.types import Batch, Tasks
from fsseg.model.backbones import Backbone, build_backbone
from fsseg.model.base import FewShotModel, Kept, Prediction, Role
from fsseg.model.blocks.batch_norm import SharedBatchNorm
from fsseg.model.blocks.dropout import EpisodeDropout

if TYPE_CHECKING:
    from fsseg.config.schema import Config

BINS = (1, 2, 3, 6)
"""Sides of the pyramid's maps."""
WIDTH = 512
DROPOUT = 0.1


class PyramidHead(nn.Module):
    """PSPNet's head (Zhao et al., CVPR 2017) on the last map of a backbone of C channels.

    The map is averaged over 1x1, 2x2, 3x3 and 6x6 areas, each reduced to C / 4 channels and scaled back; all five go
    through a 3x3 convolution to 512 channels, dropout, and a 1x1 convolution to the classes. Norms take the statistics
    of the batch in training. The areas cover the whole square, padding included, as published.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        reduced = channels // len(BINS)
        self.bins = nn.ModuleList(
            nn.Sequential(
                nn.AdaptiveAvgPool2d(side), nn.Conv2d(channels, reduced, 1, bias=False), SharedBatchNorm(reduced),
                nn.ReLU(),
            )
            for side in BINS
        )  # fmt: skip
        self.mix = nn.Sequential(
            nn.Conv2d(channels + len(BINS) * reduced, WIDTH, 3, padding=1, bias=False), SharedBatchNorm(WIDTH),
            nn.ReLU(),
        )  # fmt: skip
        self.classify = nn.Conv2d(WIDTH, classes, 1)

    def forward(self, features: Tensor, drop: EpisodeDropout | None = None) -> Tensor:
        """(N, C, h, w) -> logits (N, classes, h, w); channel 0 is background. `drop` in training."""
        size = features.shape[-2:]
        wide = [F.interpolate(bin(features), size, mode="bilinear", align_corners=True) for bin in self.bins]
        mixed = self.mix(torch.cat((features, *wide), 1))
        logits: Tensor = self.classify(mixed if drop is None else drop(mixed, DROPOUT))
        return logits


def number_of_base_classes(cfg: Config) -> int:
    """Classes of the data set that are not of the fold."""
    return len(base_classes(cfg.dataset, cfg.fold))


class BaseLearner(FewShotModel):
    """A backbone with PSPNet's head.

    Its state dict has the parts `backbone.` and `head.`; see `FewShotModel.start_from_base`. `seed` is the run's, for
    the dropout.
    """

    def __init__(self, backbone: Backbone, base_classes: int, seed: int = 0) -> None:
        super().__init__()
        self.backbone, self.seed = backbone, seed
        self.head = PyramidHead(backbone.channels["layer4"], base_classes + 1)

    @classmethod
    def from_config(cls, cfg: Config) -> BaseLearner:
        return cls(build_backbone(cfg.backbone), number_of_base_classes(cfg), cfg.seed)

    def forward(self, batch: Batch) -> Prediction:
        """Segment the queries of the batch into background and base classes."""
        drop = EpisodeDropout(batch.specs, self.seed) if self.training else None
        return self.decode((), {"logits": self._logits(batch.query_image, drop)}, batch)

    def encode(self, images: Tensor, pictures: Tensor, role: Role = "both") -> Kept:
        """The logits: (N, base classes + 1, h, w)."""
        return {"logits": self._logits(images)}

    def _logits(self, images: Tensor, drop: EpisodeDropout | None = None) -> Tensor:
        with record_function("fsseg: backbone"):
            features = self.backbone(images)["layer4"]
        with record_function("fsseg: head"):
            logits: Tensor = self.head(features, drop)
            return logits

    def decode(self, supports: Sequence[Kept], query: Kept, tasks: Tasks) -> Prediction:
        return Prediction([query["logits"]], tasks.size, patches=self.backbone.patches)
