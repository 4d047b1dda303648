"""torchvision's ResNets, at stride 8 or as they are, frozen or as `backbone.trainable_layers` says; their weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import URLError

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from fsseg.cell.key import file_digest
from fsseg.cell.weights import FILES, cached, digest, mismatch, url
from fsseg.config.schema import ResNetConfig
from fsseg.errors import UserError
from fsseg.model.backbones.base import Backbone
from fsseg.model.backbones.weight_files import fill, read_state

if TYPE_CHECKING:
    from fsseg.config.schema import BackboneConfig

log = logging.getLogger(__name__)

_PLACES = {
    "conv1.": "stem.0.", "bn1.": "stem.1.", "conv2.": "stem.3.", "bn2.": "stem.4.", "conv3.": "stem.6.",
    "bn3.": "stem.7.",
}  # fmt: skip
"""Names in published files -> here; those of a plain stem end with bn1."""


class ResNetBackbone(Backbone):
    """torchvision's ResNet at stride 8: layer3 and layer4 keep their resolution by dilations 2 and 4.

    With `dilated=False` it is the ResNet as it is: layer3 has stride 16, layer4 stride 32. The weights are the same.
    With `deep_stem` it is the ResNet that PSPNet's code has, and PFENet, BAM, HDMNet and SCCAN with it: three 3x3
    convolutions in place of the 7x7 one, and every 3x3 convolution of layer3 (layer4) has dilation 2 (4). In
    torchvision's, the first of a stage keeps the dilation of the stage before.
    BatchNorm uses its stored statistics in every stage, training or not: a batch of 8 or 16 is too small to replace
    them. The first 5 - `trainable_layers` of stem, layer1, ..., layer4 are frozen and build no graph.
    """

    deep_stem = False

    def __init__(self, name: str, trainable_layers: int = 0, dilated: bool = True, deep_stem: bool = False) -> None:
        super().__init__()
        network = _dilated_resnet(name) if dilated else getattr(torchvision.models, name)(weights=None)
        self.stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
        if deep_stem:
            self.deep_stem, self.stem = True, _deepened(network, dilated)
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
        backbone = cls(cfg.name, cfg.trainable_layers, dilated, _is_deep(cfg))
        if cfg.pretrained:
            load_weights(backbone, cfg.name, cfg.weights)
        elif cfg.weights is not None:
            log.warning("backbone.weights=%s is not used because backbone.pretrained=false", cfg.weights)
        return backbone

    @classmethod
    def published(cls, cfg: BackboneConfig) -> TorchvisionWeights:
        return _published(cfg.name, _is_deep(cfg))

    def residual_blocks(self, stage: str) -> list[Callable[[Tensor], Tensor]]:
        return [partial(_before_relu, block) for block in getattr(self, stage)]

    def train(self, mode: bool = True) -> ResNetBackbone:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


def _is_deep(cfg: BackboneConfig) -> bool:
    return getattr(cfg, "stem", "plain") == "deep"


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


def _deepened(network: ResNet, dilated: bool) -> nn.Sequential:
    """Change a ResNet of bottlenecks to PSPNet's; its stem, of three convolutions, which gives layer1 128 channels."""
    stem: list[nn.Module] = []
    for inputs, outputs, stride in ((3, 64, 2), (64, 64, 1), (64, 128, 1)):
        conv = _started(nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False))
        stem += [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    first: Any = network.layer1[0]
    first.conv1 = _started(nn.Conv2d(128, first.conv1.out_channels, 1, bias=False))
    first.downsample[0] = _started(nn.Conv2d(128, first.downsample[0].out_channels, 1, bias=False))
    if dilated:
        for stage, dilation in ((network.layer3, 2), (network.layer4, 4)):
            for block in stage:
                _set_spacing(block.conv2, dilation)  # type: ignore[arg-type]
    return nn.Sequential(*stem, network.maxpool)


def _started(conv: nn.Conv2d) -> nn.Conv2d:
    """With random weights as torchvision's other convolutions have them."""
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def _set_spacing(conv: nn.Conv2d, dilation: int) -> None:
    conv.stride = (1, 1)
    conv.dilation = conv.padding = (dilation, dilation)


def load_weights(backbone: ResNetBackbone, name: str, path: str | None = None) -> None:
    """Fill the backbone with published weights: torchvision's IMAGENET1K_V1, or those of a deep stem.

    They come from `path` if given. torchvision's come else from torch's cache (`$TORCH_HOME/hub/checkpoints`), or by
    download into it.

    Raises:
        UserError: it names the file, its folder and the setting `backbone.weights`.
    """
    deep = backbone.deep_stem
    wanted = ResNetConfig.deep_weights(name) if deep else f"{FILES[name]} (from {url(name)})"
    if path is None:
        file = _published(name, deep).fetch()
    elif not (file := Path(path)).is_file():
        leave = "" if deep else ", or leave it out"
        raise UserError(f"backbone.weights={path} is not a file", f"give the path of {wanted}{leave}")
    state = read_state(file, f"replace it by a whole {wanted}, or name another file by backbone.weights=")
    _check_stem(state, file, name, deep)
    renamed = {}
    for key, value in state.items():
        for old, new in _PLACES.items():
            key = new + key.removeprefix(old) if key.startswith(old) else key
        if not key.startswith("fc."):  # the classifier of ImageNet's 1000 classes
            renamed[key] = value
    fill(backbone, renamed, file, name, f"give {wanted}, by backbone.weights=")
    backbone.read_from(file)


def _check_stem(state: Mapping[str, Any], file: Path, name: str, deep: bool) -> None:
    """That a file of a ResNet has the stem that is asked for.

    Raises:
        UserError: it has the other one.
    """
    if name not in ResNetConfig.DEEP or "conv1.weight" not in state or ("conv2.weight" in state) == deep:
        return
    if deep:
        what = f"{file} is a ResNet with a plain stem, and backbone.stem=deep needs one of three convolutions"
        raise UserError(what, f"give {ResNetConfig.deep_weights(name)}, or leave backbone.stem=deep out")
    what = f"{file} is a ResNet with a stem of three convolutions, and backbone.stem=plain has one"
    raise UserError(what, f"set backbone.stem=deep as well, or give {FILES[name]} (from {url(name)})")


def _published(name: str, deep: bool) -> TorchvisionWeights:
    """Raises:
    UserError: of a deep stem, which torchvision does not have.
    """
    if deep:
        what = "backbone.stem=deep has no weights that can be fetched by name: torchvision has none of this stem"
        raise UserError(what, f"give {ResNetConfig.deep_weights(name)}, by backbone.weights=")
    return TorchvisionWeights(name)


@dataclass(frozen=True)
class TorchvisionWeights:
    """torchvision's weights of one backbone."""

    name: str

    @property
    def way(self) -> str:
        return f"from {url(self.name)} to {cached(self.name)}"

    def cached(self) -> Path | None:
        """The file in torch's cache, whatever it holds."""
        return file if (file := cached(self.name)).is_file() else None

    def fetch(self) -> Path:
        """The file in torch's cache, downloaded if it is not there; its digest is right.

        Raises:
            UserError: it cannot be downloaded, or has another content than its name says.
        """
        file = cached(self.name)
        if not file.is_file():
            _download(self.name, file)
        elif (fault := mismatch(self.name, file_digest(file))) is not None:
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
