"""Backbones: an image in, the maps of its stages `layer2`, `layer3`, `layer4` out, all of one size.

The ResNets are torchvision's at stride 8, frozen unless `backbone.trainable_layers` says otherwise. `tiny` is a small
CNN at stride 4 that trains on a CPU. `build_backbone` is called by the methods' `from_config`.
"""

from __future__ import annotations

import logging
from pathlib import Path
from urllib.error import URLError

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from fsseg.config.schema import BackboneConfig, ResNetConfig, TinyConfig
from fsseg.errors import UserError

log = logging.getLogger(__name__)

Features = dict[str, Tensor]
"""Stage name -> (N, C, h, w)."""

LAYERS = ("layer2", "layer3", "layer4")
_STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")


class Backbone(nn.Module):
    """Base of the backbones: five stages in a row, the first of which may be frozen and then build no graph.

    Attributes:
        channels: stage name -> its channels.
        stride: pixels per feature cell, in each direction.
        num_frozen: how many stages, from the first on, do not train.
        frozen: no parameter trains and no graph is built; features of an image may then be kept and used again.
    """

    channels: dict[str, int]
    stride: int
    num_frozen: int
    frozen: bool

    def forward(self, images: Tensor) -> Features:
        """(N, 3, H, W), sides stride * m + 1 -> stage name -> (N, C, m + 1, m + 1)."""
        features: Features = {}
        x = images
        for number, stage in enumerate(_STAGES):
            with torch.set_grad_enabled(torch.is_grad_enabled() and number >= self.num_frozen):
                x = getattr(self, stage)(x)
            if stage in LAYERS:
                features[stage] = x
        return features

    def _freeze(self, trainable_layers: int) -> None:
        """Leave only the last `trainable_layers` stages to training; to be called when all stages are there."""
        self.num_frozen = max(0, len(_STAGES) - trainable_layers)
        self.frozen = self.num_frozen == len(_STAGES)
        for stage in _STAGES[: self.num_frozen]:
            getattr(self, stage).requires_grad_(False)


class ResNetBackbone(Backbone):
    """torchvision's ResNet at stride 8: layer3 and layer4 keep their resolution by dilations 2 and 4.

    BatchNorm uses its stored statistics in every stage, training or not: a batch of 8 or 16 is too small to replace
    them. The first 5 - `trainable_layers` of stem, layer1, ..., layer4 are frozen and build no graph.
    """

    def __init__(self, name: str, trainable_layers: int = 0) -> None:
        super().__init__()
        network = _dilated_resnet(name)
        self.stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            network.layer1,
            network.layer2,
            network.layer3,
            network.layer4,
        )
        expansion = network.layer1[0].expansion
        self.channels = {"layer2": 128 * expansion, "layer3": 256 * expansion, "layer4": 512 * expansion}
        self.stride = ResNetConfig.STRIDE
        self._freeze(trainable_layers)
        self.train()

    @classmethod
    def from_config(cls, cfg: BackboneConfig) -> ResNetBackbone:
        backbone = cls(cfg.name, cfg.trainable_layers)
        if cfg.pretrained:
            load_weights(backbone, cfg.name, cfg.weights)
        elif cfg.weights is not None:
            log.warning("backbone.weights=%s is not used because backbone.pretrained=false", cfg.weights)
        return backbone

    def train(self, mode: bool = True) -> ResNetBackbone:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


def _dilated_resnet(name: str) -> ResNet:
    """A torchvision ResNet, random weights, whose stages 3 and 4 trade their stride for dilation 2 and 4.

    The result at every second (fourth) position of layer3 (layer4) equals the strided network's map there.
    """
    maker = getattr(torchvision.models, name)
    if name != "resnet18":
        return maker(weights=None, replace_stride_with_dilation=[False, True, True])
    network: ResNet = maker(
        weights=None
    )  # torchvision refuses to dilate BasicBlock, so it is done here by the same rule
    for stage, before, after in ((network.layer3, 1, 2), (network.layer4, 2, 4)):
        for number, block in enumerate(stage):
            assert isinstance(block, BasicBlock)
            # The strided convolution still sees its input at the old spacing; everything after it at the new one.
            _set_spacing(block.conv1, before if number == 0 else after)
            _set_spacing(block.conv2, after)
            if block.downsample is not None:
                block.downsample[0].stride = (1, 1)
    return network


def _set_spacing(conv: nn.Conv2d, dilation: int) -> None:
    conv.stride = (1, 1)
    conv.dilation = conv.padding = (dilation, dilation)


class _Residual(nn.Module):
    """relu(skip(x) + GN(conv(relu(GN(conv(x)))))), 3x3 kernels with one dilation; skip is 1x1 where the width changes.

    The second norm starts at zero (Goyal et al., 2017), so that an untrained stage hands on what the stage before it
    saw. Without that, random stages forget colour and texture, the first prior maps tell objects apart badly (area
    under the ROC curve 0.77 at layer4 against 0.95 at layer2), and training may never learn to use the support.
    """

    def __init__(self, inputs: int, outputs: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation, bias=False)
        self.norm1 = nn.GroupNorm(4, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=dilation, dilation=dilation, bias=False)
        self.norm2 = nn.GroupNorm(4, outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1, bias=False) if inputs != outputs else nn.Identity()
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.skip(x) + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


class TinyBackbone(Backbone):
    """A small residual CNN at stride 4 that trains from random weights on a CPU in minutes.

    It has no pretrained weights (`backbone.pretrained` says nothing to it) and trains as a whole by default. With
    fewer `trainable_layers` the first 5 - `trainable_layers` of stem, layer1, ..., layer4 keep their random weights.
    With 0 the second convolutions of the residual stages stay switched off (see `_Residual`): fixed features of colour
    and texture within 9 pixels, besides GroupNorm's statistics of the whole image, which no training can teach to
    leave a background's influence out.
    GroupNorm instead of BatchNorm: an image's features do not depend on the images beside it.
    """

    def __init__(self, trainable_layers: int = len(_STAGES)) -> None:
        super().__init__()
        self.channels = {"layer2": 48, "layer3": 64, "layer4": 64}
        self.stride = TinyConfig.STRIDE
        self.stem = nn.Sequential(nn.Conv2d(3, 24, 5, stride=2, padding=2, bias=False), nn.GroupNorm(4, 24), nn.ReLU())
        self.layer1 = nn.Sequential(
            nn.Conv2d(24, 32, 3, stride=2, padding=1, bias=False), nn.GroupNorm(4, 32), nn.ReLU()
        )
        self.layer2 = _Residual(32, 48, dilation=1)
        self.layer3 = _Residual(48, 64, dilation=2)
        self.layer4 = _Residual(64, 64, dilation=3)
        self._freeze(trainable_layers)

    @classmethod
    def from_config(cls, cfg: BackboneConfig) -> TinyBackbone:
        return cls(cfg.trainable_layers)


def build_backbone(cfg: BackboneConfig) -> Backbone:
    """The backbone that `cfg` names, with its weights.

    Raises:
        UserError: an unknown name, or weights that are missing, unreadable or of another network.
    """
    backbone: Backbone = BackboneConfig.target(cfg.name).from_config(cfg)
    return backbone


def load_weights(backbone: ResNetBackbone, name: str, path: str | None = None) -> None:
    """Fill the backbone with torchvision's IMAGENET1K_V1 weights.

    They come from `path` if given, else from torch's cache (`$TORCH_HOME/hub/checkpoints`), else by download into it,
    checked by the digest in the file's name.

    Raises:
        UserError: naming the file, where it belongs and the switch `backbone.weights`.
    """
    url = torchvision.models.get_model_weights(name).IMAGENET1K_V1.url
    if path is not None:
        file = Path(path)
        if not file.is_file():
            raise UserError(
                f"backbone.weights={path} is not a file", f"give the path of {Path(url).name}, or leave it out"
            )
    else:
        file = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
        if not file.is_file():
            _download(url, file)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen types for a damaged file, and they differ between versions
        raise UserError(
            f"{file} cannot be read as weights: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
            f"replace it by a whole {Path(url).name} (from {url}), or name another file by backbone.weights=",
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    _fill(backbone, name, file, state)


def _download(url: str, file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file), hash_prefix=file.stem.rsplit("-", 1)[1], progress=False)
    except (URLError, OSError, RuntimeError) as error:  # RuntimeError: the digest differs
        raise UserError(
            f"the pretrained weights {file.name} are not in torch's cache and cannot be downloaded ({error})",
            f"put {file.name} (from {url}) into {file.parent}, "
            f"or name its place by backbone.weights=/path/to/{file.name}",
        ) from error


def _fill(backbone: ResNetBackbone, name: str, file: Path, state: object) -> None:
    """Copy a torchvision state dict into the backbone, whose stem has other names; every tensor must find its place."""
    fix = f"give torchvision's IMAGENET1K_V1 weights of {name} by backbone.weights="
    if not isinstance(state, dict):
        raise UserError(f"{file} holds no state dict", fix)
    renamed = {}
    for key, value in state.items():
        plain = str(key).removeprefix("module.")
        for old, new in (("conv1.", "stem.0."), ("bn1.", "stem.1.")):
            if plain.startswith(old):
                plain = new + plain.removeprefix(old)
        if not plain.startswith("fc."):  # the classifier of ImageNet's 1000 classes
            renamed[plain] = value
    own = backbone.state_dict()
    # Files from before 2018 lack num_batches_tracked; nothing here uses it.
    missing = [k for k in own if k not in renamed and not k.endswith("num_batches_tracked")]
    foreign = [k for k in renamed if k not in own]
    shapes = [k for k in own if k in renamed and tuple(getattr(renamed[k], "shape", ())) != tuple(own[k].shape)]
    for keys, what in ((missing, "lacks"), (foreign, "has the foreign"), (shapes, "has another shape for")):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise UserError(f"{file} is not a {name}: it {what} {keys[0]}{more}", fix)
    backbone.load_state_dict(renamed, strict=False)
