"""`backbone=tiny`: a small CNN at stride 4 that trains on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from fsseg.model.backbones.base import STAGES, Backbone

if TYPE_CHECKING:
    from fsseg.config.schema import BackboneConfig


class _Residual(nn.Module):
    """relu(skip(x) + GN(conv(relu(GN(conv(x)))))), 3x3 kernels with one dilation; skip is 1x1 where the width changes.
    The first convolution and the skip may have a stride.

    The second norm starts at zero (Goyal et al., 2017), so that an untrained stage passes on the features of the
    stage before it. Otherwise random stages lose colour and texture, the first prior maps separate objects badly (area
    under the ROC curve 0.77 at layer4 against 0.95 at layer2), and training may never learn to use the support.
    """

    def __init__(self, inputs: int, outputs: int, dilation: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.norm1 = nn.GroupNorm(4, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=dilation, dilation=dilation, bias=False)
        self.norm2 = nn.GroupNorm(4, outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1, bias=False) if inputs != outputs else nn.Identity()
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.before_relu(x))

    def before_relu(self, x: Tensor) -> Tensor:
        """All but the last ReLU."""
        shortcut = self.skip(x if self.stride == 1 else x[..., :: self.stride, :: self.stride])
        return shortcut + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))


class TinyBackbone(Backbone):
    """A small residual CNN at stride 4 that trains from random weights on a CPU in minutes.

    It has no pretrained weights (it ignores `backbone.pretrained`) and trains as a whole by default. With
    fewer `trainable_layers` the first 5 - `trainable_layers` of stem, layer1, ..., layer4 keep their random weights.
    With 0 the second convolutions of the residual stages stay switched off (see `_Residual`): fixed features of colour
    and texture within 9 pixels, and GroupNorm's statistics of the whole image, which carry the influence of the
    background whatever is trained after them.
    GroupNorm instead of BatchNorm: an image's features do not depend on the images beside it.
    With `dilated=False` layer3 and layer4 have a stride of 2 in place of their dilation; the weights have the same
    shapes.
    """

    def __init__(self, trainable_layers: int = len(STAGES), dilated: bool = True) -> None:
        super().__init__()
        self.channels = {"layer2": 48, "layer3": 64, "layer4": 64}
        self.stem = nn.Sequential(nn.Conv2d(3, 24, 5, stride=2, padding=2, bias=False), nn.GroupNorm(4, 24), nn.ReLU())
        self.layer1 = nn.Sequential(
            nn.Conv2d(24, 32, 3, stride=2, padding=1, bias=False), nn.GroupNorm(4, 32), nn.ReLU()
        )
        self.layer2 = _Residual(32, 48, dilation=1)
        self.layer3 = _Residual(48, 64, dilation=2) if dilated else _Residual(48, 64, dilation=1, stride=2)
        self.layer4 = _Residual(64, 64, dilation=3) if dilated else _Residual(64, 64, dilation=1, stride=2)
        self.freeze(trainable_layers)

    @classmethod
    def from_config(cls, cfg: BackboneConfig, dilated: bool = True) -> TinyBackbone:
        return cls(cfg.trainable_layers, dilated)

    def residual_blocks(self, stage: str) -> list[Callable[[Tensor], Tensor]]:
        return [getattr(self, stage).before_relu]
