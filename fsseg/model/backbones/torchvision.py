"""torchvision's ResNets, at stride 8 or as they are, frozen or as `backbone.trainable_layers` says; their weights."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import URLError

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from fsseg.cell.weights import FILES, cached, digest, mismatch, url
from fsseg.errors import UserError
from fsseg.model.backbones.base import Backbone
from fsseg.model.backbones.weight_files import fill, read_state
from fsseg.process.files import sha256_of

if TYPE_CHECKING:
    from fsseg.config.schema import BackboneConfig

log = logging.getLogger(__name__)


class ResNetBackbone(Backbone):
    """torchvision's ResNet at stride 8: layer3 and layer4 keep their resolution by dilations 2 and 4.

    With `dilated=False` it is the ResNet as it is: layer3 has stride 16, layer4 stride 32. The weights are the same.
    BatchNorm uses its stored statistics in every stage, training or not: a batch of 8 or 16 is too small to replace
    them. The first 5 - `trainable_layers` of stem, layer1, ..., layer4 are frozen and build no graph.
    """

    def __init__(self, name: str, trainable_layers: int = 0, dilated: bool = True) -> None:
        super().__init__()
        network = _dilated_resnet(name) if dilated else getattr(torchvision.models, name)(weights=None)
        self.stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
        self.layer1, self.layer2 = network.layer1, network.layer2
        self.layer3, self.layer4 = network.layer3, network.layer4
        expansion = network.layer1[0].expansion
        self.channels = {"layer2": 128 * expansion, "layer3": 256 * expansion, "layer4": 512 * expansion}
        self.freeze(trainable_layers)
        self.train()

    @classmethod
    def from_config(cls, cfg: BackboneConfig, dilated: bool = True) -> ResNetBackbone:
        """Build the ResNet of `cfg` with its weights.

        Raises:
            UserError: they are missing, unreadable or of another network.
        """
        backbone = cls(cfg.name, cfg.trainable_layers, dilated)
        if cfg.pretrained:
            load_weights(backbone, cfg.name, cfg.weights)
        elif cfg.weights is not None:
            log.warning("backbone.weights=%s is not used because backbone.pretrained=false", cfg.weights)
        return backbone

    def residual_blocks(self, stage: str) -> list[Callable[[Tensor], Tensor]]:
        return [partial(_before_relu, block) for block in getattr(self, stage)]

    def train(self, mode: bool = True) -> ResNetBackbone:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


def _before_relu(block: BasicBlock | Bottleneck, x: Tensor) -> Tensor:
    """A residual block without its last ReLU (He et al., 2016)."""
    y = F.relu(block.bn1(block.conv1(x)))
    y = block.bn2(block.conv2(y))
    if isinstance(block, Bottleneck):
        y = block.bn3(block.conv3(F.relu(y)))
    return y + (x if block.downsample is None else block.downsample(x))


def _dilated_resnet(name: str) -> ResNet:
    """A torchvision ResNet, random weights, whose stages 3 and 4 have dilation 2 and 4 in place of their stride.

    The result at every second (fourth) position of layer3 (layer4) equals the strided network's map there.
    """
    maker = getattr(torchvision.models, name)
    if name != "resnet18":
        return maker(weights=None, replace_stride_with_dilation=[False, True, True])
    network: ResNet = maker(weights=None)
    # torchvision refuses to dilate BasicBlock, so it is done here by the same rule.
    for stage, before, after in ((network.layer3, 1, 2), (network.layer4, 2, 4)):
        for number, block in enumerate(stage):
            assert isinstance(block, BasicBlock)
            # The convolution that had the stride keeps the old dilation; all after it get the new one.
            _set_spacing(block.conv1, before if number == 0 else after)
            _set_spacing(block.conv2, after)
            if block.downsample is not None:
                block.downsample[0].stride = (1, 1)
    return network


def _set_spacing(conv: nn.Conv2d, dilation: int) -> None:
    conv.stride = (1, 1)
    conv.dilation = conv.padding = (dilation, dilation)


def load_weights(backbone: ResNetBackbone, name: str, path: str | None = None) -> None:
    """Fill the backbone with torchvision's IMAGENET1K_V1 weights.

    They come from `path` if given, else from torch's cache (`$TORCH_HOME/hub/checkpoints`), else by download into it.

    Raises:
        UserError: it names the file, its folder and the setting `backbone.weights`.
    """
    if path is None:
        file = fetch_weights(name)
    elif not (file := Path(path)).is_file():
        raise UserError(f"backbone.weights={path} is not a file", f"give the path of {FILES[name]}, or leave it out")
    advice = f"replace it by a whole {FILES[name]} (from {url(name)}), or name another file by backbone.weights="
    state = read_state(file, advice)
    renamed = {}
    for key, value in state.items():
        for old, new in (("conv1.", "stem.0."), ("bn1.", "stem.1.")):
            key = new + key.removeprefix(old) if key.startswith(old) else key
        if not key.startswith("fc."):  # the classifier of ImageNet's 1000 classes
            renamed[key] = value
    fill(backbone, renamed, file, name, f"give torchvision's IMAGENET1K_V1 weights of {name} by backbone.weights=")


def fetch_weights(name: str) -> Path:
    """torchvision's file of a backbone in torch's cache, downloaded if it is not there; its digest is right.

    Raises:
        UserError: it cannot be downloaded, or has another content than its name says.
    """
    file = cached(name)
    if not file.is_file():
        _download(name, file)
        return file
    try:
        found = sha256_of(file)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})", "check its permissions") from None
    if (fault := mismatch(name, found)) is not None:
        raise fault
    return file


def _download(name: str, file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url(name), str(file), hash_prefix=digest(name), progress=False)
    except (URLError, OSError, RuntimeError) as error:  # RuntimeError: the digest differs
        raise UserError(
            f"the pretrained weights {file.name} are not in torch's cache and cannot be downloaded ({error})",
            f"run `fsseg prepare --weights backbone={name}` where there is a network, put {file.name} (from "
            f"{url(name)}) into {file.parent}, or name its place by backbone.weights=/path/to/{file.name}",
        ) from error
