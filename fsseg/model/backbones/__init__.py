"""The backbones, one file for each family. The methods' `from_config` calls `build_backbone`."""

from __future__ import annotations

from fsseg.config.schema import BackboneConfig
from fsseg.model.backbones.base import LAYERS, Backbone, Features
from fsseg.model.backbones.tiny import TinyBackbone
from fsseg.model.backbones.torchvision import ResNetBackbone, load_weights
from fsseg.model.backbones.weight_files import PublishedWeights


def build_backbone(cfg: BackboneConfig, dilated: bool = True) -> Backbone:
    """The backbone that `cfg` names, with its weights.

    Args:
        dilated: False lets layer3 and layer4 keep their strides; only of a backbone that provides `blocks`
            (`BackboneConfig.PROVIDES`). It is the method's choice, not a setting.

    Raises:
        UserError: an unknown name, or weights that are missing, unreadable or of another network.
    """
    make = BackboneConfig.target(cfg.name).from_config
    backbone: Backbone = make(cfg) if dilated else make(cfg, dilated=False)
    return backbone


def published_weights(cfg: BackboneConfig) -> PublishedWeights | None:
    """What `build_backbone` would take from a cache or download; None for a file, or random weights.

    Raises:
        UserError: an unknown name, or weights that are not known by name.
    """
    if not cfg.pretrained or cfg.weights is not None:
        return None
    found: PublishedWeights | None = BackboneConfig.target(cfg.name).published(cfg)
    return found


__all__ = ["LAYERS", "Backbone", "Features", "ResNetBackbone", "TinyBackbone", "build_backbone", "load_weights",
           "published_weights"]  # fmt: skip
