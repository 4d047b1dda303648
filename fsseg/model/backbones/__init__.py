"""Where features come from, one file a family. The methods' `from_config` calls `build_backbone`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from fsseg.config.schema import STRIDES
from fsseg.errors import UserError
from fsseg.model.backbones.base import LAYERS, Backbone, Features
from fsseg.model.backbones.tiny import TinyBackbone
from fsseg.model.backbones.torchvision import ResNetBackbone, load_weights

if TYPE_CHECKING:
    from fsseg.config.schema import BackboneConfig

log = logging.getLogger(__name__)


def build_backbone(cfg: BackboneConfig) -> Backbone:
    """The backbone that `cfg` names, with its weights.

    Raises:
        UserError: an unknown name, or weights that are missing, unreadable or of another network.
    """
    if cfg.name == "tiny":
        return TinyBackbone(cfg.trainable_layers)
    if cfg.name not in STRIDES:
        raise UserError(f"backbone.name={cfg.name} is unknown", f"choose backbone= one of: {', '.join(STRIDES)}")
    backbone = ResNetBackbone(cfg.name, cfg.trainable_layers)
    if cfg.pretrained:
        load_weights(backbone, cfg.name, cfg.weights)
    elif cfg.weights is not None:
        log.warning("backbone.weights=%s is not used because backbone.pretrained=false", cfg.weights)
    return backbone


__all__ = ["LAYERS", "Backbone", "Features", "ResNetBackbone", "TinyBackbone", "build_backbone", "load_weights"]
