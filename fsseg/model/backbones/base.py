"""`Backbone`: an image in, the maps of its stages `layer2`, `layer3`, `layer4` out, all of one size if dilated."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsseg.cell.key import file_digest

if TYPE_CHECKING:
    from pathlib import Path

    from fsseg.config.schema import BackboneConfig
    from fsseg.model.backbones.weight_files import PublishedWeights

log = logging.getLogger(__name__)

Features = dict[str, Tensor]
"""Stage name -> (N, C, h, w)."""

LAYERS = ("layer2", "layer3", "layer4")
STAGES = ("stem", "layer1", *LAYERS)


class Backbone(nn.Module):
    """Base of the backbones: five stages in a row. The first ones may be frozen and then build no graph.

    Attributes:
        channels: stage name -> its channels.
        num_frozen: how many stages, from the first on, do not train.
        patches: cells are areas that lie side by side and cover the image, as those of vision transformers. Else they
            are points at every stride-th pixel, the first on the image's corner, as those of strided convolutions.
        weights: the file that its weights were read from, and the first 16 hex digits of its SHA-256; None if it
            started from random ones.
    """

    channels: dict[str, int]
    num_frozen: int
    patches: bool = False
    weights: dict[str, str] | None = None

    @classmethod
    def published(cls, cfg: BackboneConfig) -> PublishedWeights | None:
        """The weights that it starts from if `backbone.weights` names no file; None if there are none.

        Raises:
            UserError: they are not known by name.
        """
        return None

    def read_from(self, file: Path) -> None:
        """Note that the weights came from this file; `fsseg.engine.result` records it."""
        self.weights = {"file": str(file), "digest": file_digest(file)}
        log.info("weights from %s (SHA-256 %s...)", file, self.weights["digest"])

    def forward(self, images: Tensor, last: str = "layer4") -> Features:
        """(N, 3, S, S) -> stage name -> (N, C, n, n): n is m + 1 for S = stride * m + 1, and m for S = stride * m.

        Stages after the `last` do not run.
        """
        features: Features = {}
        x = images
        for number, stage in enumerate(STAGES[: STAGES.index(last) + 1]):
            # Not inference_mode: what follows trains, and torch saves none of its tensors for the backward pass.
            with torch.set_grad_enabled(torch.is_grad_enabled() and number >= self.num_frozen):
                x = getattr(self, stage)(x)
            if stage in LAYERS:
                features[stage] = x
        return features

    def check_layer4(self) -> None:
        """That layer4 can run on other input, for the methods that need it (`BackboneConfig.PROVIDES`, `stages`).

        Raises:
            UserError: it cannot, which the name of the backbone did not say.
        """

    def residual_blocks(self, stage: str) -> Sequence[Callable[[Tensor], Tensor]]:
        """The residual blocks of one of `LAYERS` in their order, each without its last ReLU.

        Only of a backbone that provides `blocks` (`BackboneConfig.PROVIDES`).
        """
        raise NotImplementedError

    def blocks(self, images: Tensor) -> dict[str, list[Tensor]]:
        """(N, 3, S, S) -> stage name -> the output of each of its residual blocks before the last ReLU, (N, C, n, n).

        Only of a backbone that has `residual_blocks`. If it is not dilated, n halves from stage to stage, rounded up.
        """
        found: dict[str, list[Tensor]] = {}
        x = images
        for number, stage in enumerate(STAGES):
            with torch.set_grad_enabled(torch.is_grad_enabled() and number >= self.num_frozen):
                if stage not in LAYERS:
                    x = getattr(self, stage)(x)
                    continue
                found[stage] = []
                for block in self.residual_blocks(stage):
                    found[stage].append(block(x))
                    x = F.relu(found[stage][-1])  # not in place: what was found stays as it is
        return found

    def freeze(self, trainable_layers: int) -> None:
        """Let only the last `trainable_layers` stages train; called when all stages are there."""
        self.num_frozen = max(0, len(STAGES) - trainable_layers)
        for stage in STAGES[: self.num_frozen]:
            getattr(self, stage).requires_grad_(False)
