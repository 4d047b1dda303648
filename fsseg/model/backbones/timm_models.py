"""`backbone=timm`: models of the package timm, convolutional ones at stride 8 and plain vision transformers.

timm is an extra (`fsseg[timm]`), imported when such a backbone is built.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fsseg.config.schema import BackboneConfig
from fsseg.data.pixels import MEAN, STD
from fsseg.errors import UserError
from fsseg.model.backbones.base import LAYERS, STAGES, Backbone, Features
from fsseg.model.backbones.timm_weights import TimmWeights
from fsseg.model.backbones.weight_files import fill, first_line, read_state

if TYPE_CHECKING:
    from torch import Tensor

    from fsseg.config.schema import TimmConfig

log = logging.getLogger(__name__)

_FITTING = "choose a convolutional model that timm builds with output_stride=8, or a plain vision transformer"


class TimmBackbone(Backbone):
    """Three maps of one size of a timm model, frozen (`trainable_layers` 0) or training as a whole (5).

    Of a convolutional model the last three stages at stride 8; of a transformer its patches after three of its blocks,
    normed. Images come normalised with ImageNet's mean and deviation, and are brought to the model's own.
    BatchNorm uses its stored statistics, as in `ResNetBackbone`; a frozen model is in evaluation mode altogether.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, cfg: TimmConfig) -> None:
        super().__init__()
        stride, self.patches = BackboneConfig.named(cfg.name).cells(cfg)
        self.whole = cfg.trainable_layers == len(STAGES)
        self.num_frozen = 0 if self.whole else len(STAGES)
        timm = _timm(cfg)
        self.network, file = _network(timm, cfg, stride, self.patches)
        if file is not None:
            self.read_from(file)
        self.depths = _depths(cfg, self.network) if is_transformer(self.network) else None
        self._last_stage = _last_stage(self.network) if self.depths is None else ()
        own = timm.data.resolve_model_data_config(self.network)
        mean, std = (own["mean"], own["std"]) if cfg.normalisation == "model" else (MEAN, STD)
        scale, shift = torch.tensor(STD) / torch.tensor(std), torch.tensor(MEAN) - torch.tensor(mean)
        self.register_buffer("scale", scale[:, None, None], persistent=False)
        self.register_buffer("shift", (shift / torch.tensor(std))[:, None, None], persistent=False)
        self.network.requires_grad_(self.whole)
        self.train()
        self.channels = self._measured(cfg.model, stride)

    @classmethod
    def from_config(cls, cfg: BackboneConfig) -> TimmBackbone:
        """Build the model of `cfg` with its weights.

        Raises:
            UserError: timm is absent, does not know the model, or has no weights of it; the model has other maps than
                its name says; weights are unreadable, or of another model.
        """
        return cls(cfg)  # type: ignore[arg-type]

    @classmethod
    def published(cls, cfg: BackboneConfig) -> TimmWeights:
        model: str = cfg.model  # type: ignore[attr-defined]
        return TimmWeights.of(_timm(cfg), model)  # type: ignore[arg-type]

    def forward(self, images: Tensor, last: str = "layer4") -> Features:
        """(N, 3, S, S) -> stage name -> (N, C, n, n), up to the `last`; all of them are computed."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.whole):
            x = images * self.scale + self.shift
            if self.depths is None:
                maps = self.network(x)[-len(LAYERS) :]
            else:
                indices = sorted({depth - 1 for depth in self.depths})
                intermediates: Any = self.network.forward_intermediates
                found = intermediates(x, indices=indices, norm=True, intermediates_only=True)
                maps = [found[indices.index(depth - 1)] for depth in self.depths]
        return dict(zip(LAYERS[: LAYERS.index(last) + 1], maps))

    def check_layer4(self) -> None:
        if not self._last_stage:
            raise UserError(
                f"timm keeps no layers between the last two maps of a {type(self.network).__name__}, which the method "
                "runs again on masked supports",
                "choose another backbone or method",
            )

    def layer4(self, layer3: Tensor) -> Tensor:
        """The last stage of a convolutional model on other input: (N, C3, n, n) -> (N, C4, n, n)."""
        for module in self._last_stage:
            layer3 = module(layer3)
        return layer3

    def train(self, mode: bool = True) -> TimmBackbone:
        super().train(mode and self.whole)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    def _measured(self, model: str, stride: int) -> dict[str, int]:
        """Channels of the three maps, by one small image.

        Raises:
            UserError: the maps are not of the size that `TimmConfig.cells` says.
        """
        cells = 4 if self.patches else 5
        side = 4 * stride + (0 if self.patches else 1)
        training = self.training
        with torch.no_grad():
            found = self.eval()(torch.zeros(1, 3, side, side))
        self.train(training)
        sizes = [tuple(maps.shape[2:]) for maps in found.values()]
        if sizes != [(cells, cells)] * len(LAYERS):
            shown = ", ".join(f"{height} x {width}" for height, width in sizes)
            raise UserError(
                f"backbone.model={model} gives maps of {shown} cells for {side} pixels, not three of {cells} x {cells}",
                _FITTING,
            )
        return {layer: maps.shape[1] for layer, maps in found.items()}


def is_transformer(network: nn.Module) -> bool:
    """Whether a timm model is a row of blocks over patches."""
    return hasattr(network, "patch_embed") and hasattr(network, "blocks") and hasattr(network, "forward_intermediates")


def _last_stage(network: nn.Module) -> tuple[nn.Module, ...]:
    """The modules between the last two maps of a convolutional model; none if its extractor keeps them in another way.

    timm has two kinds of extractors: a row of named modules (FeatureListNet), and a network with `blocks`. Both say in
    `feature_info` after which module each map is taken. A tuple, for the modules are the network's and no others.
    """
    blocks = getattr(network, "blocks", None)
    row = dict(network.named_children()) if blocks is None else {f"blocks_{n}": block for n, block in enumerate(blocks)}
    ends = [name.replace(".", "_") for name in network.feature_info.module_name()[-2:]]  # type: ignore[union-attr, operator]
    names = list(row)
    if len(ends) < 2 or not set(ends) <= set(names):
        return ()
    return tuple(row[name] for name in names[names.index(ends[0]) + 1 : names.index(ends[1]) + 1])


def _timm(cfg: TimmConfig) -> ModuleType:
    """The package.

    Raises:
        UserError: it cannot be imported, or does not know the model, or not these weights of it.
    """
    try:
        import timm
    except ImportError as error:
        raise UserError(
            f"backbone={cfg.name} is a model of the package timm, which cannot be imported ({error})",
            "pip install 'fsseg[timm]', or choose another backbone",
        ) from None
    plain, _, tag = cfg.model.partition(".")
    if not timm.is_model(plain):
        near = difflib.get_close_matches(plain, timm.list_models(), n=3)
        advice = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() lists what there is"
        raise UserError(f"backbone.model={cfg.model} is no model of timm {timm.__version__}", advice)
    tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{plain}.*")]
    if tag and tag not in tags:
        raise UserError(
            f"backbone.model={cfg.model}: timm {timm.__version__} knows no weights {tag} of {plain}",
            f"choose one of: {', '.join(tags)}" if tags else "leave the tag out",
        )
    return timm


def _network(timm: ModuleType, cfg: TimmConfig, stride: int, patches: bool) -> tuple[nn.Module, Path | None]:
    """The network with its weights, and the file that they came from; it draws the same random numbers in all cases.

    Raises:
        UserError: it cannot be built in this form, or its weights cannot be had.
    """
    if not cfg.pretrained:
        if cfg.weights is not None:
            log.warning("backbone.weights=%s is not used because backbone.pretrained=false", cfg.weights)
        return _built(timm, cfg, stride, patches), None
    if cfg.weights is not None:
        network = _built(timm, cfg, stride, patches)
        return network, _load(network, cfg.model, cfg.weights)
    weights = TimmWeights.of(timm, cfg.model)
    if (file := weights.cached()) is None:
        with torch.random.fork_rng(devices=[]):
            _built(timm, cfg, stride, patches)  # for a model that does not serve nothing is downloaded
        file = weights.fetch()
    try:
        source = {"file": str(file), "custom_load": weights.custom}
        return _created(timm, cfg, stride, patches, pretrained=True, pretrained_cfg_overlay=source), file
    except Exception as error:  # timm raises many types for what is not as it should be
        with torch.random.fork_rng(devices=[]):
            _built(timm, cfg, stride, patches)  # or the model is at fault
        raise UserError(
            f"{file} cannot be loaded as the weights of {cfg.model}: {first_line(error)}",
            "remove it and it is fetched again, or name other weights by backbone.weights=",
        ) from error


def _built(timm: ModuleType, cfg: TimmConfig, stride: int, patches: bool) -> nn.Module:
    """The network with random weights.

    Raises:
        UserError: it cannot be built in this form.
    """
    try:
        return _created(timm, cfg, stride, patches)
    except Exception as error:  # timm raises many types for what a model does not take
        raise UserError(
            f"backbone.model={cfg.model} cannot be built as a backbone: {first_line(error)}", _FITTING
        ) from error


def _created(timm: ModuleType, cfg: TimmConfig, stride: int, patches: bool, **weights: Any) -> nn.Module:
    transformer = patches and "patch" in cfg.model
    form: dict[str, Any] = {"features_only": True, "output_stride": stride}
    if transformer:
        form = {"num_classes": 0, "dynamic_img_size": True}
    network: nn.Module = timm.create_model(cfg.model, **form, **weights)
    if transformer and not is_transformer(network):
        raise TypeError("it is no plain row of blocks over patches")
    return network


def _load(network: nn.Module, model: str, path: str) -> Path:
    """Fill the network from a file of the whole model, or of this part of it.

    Raises:
        UserError: the file is not there, unreadable, or of another model.
    """
    fix = f"give the state dict of timm's {model} by backbone.weights="
    if not (file := Path(path)).is_file():
        raise UserError(f"backbone.weights={path} is not a file", fix)
    own = network.state_dict()
    state = read_state(file, fix)
    # timm's feature extractors write `stages_0.` where the whole model has `stages.0.`.
    tops = {key.partition(".")[0] for key in own}
    renamed = {}
    for key, value in state.items():
        flat = re.sub(r"^(\w+?)\.(\d+)\.", r"\1_\2.", key)
        renamed[flat if flat.partition(".")[0] in tops else key] = value
    # Tensors beyond those in a stage that the network has are of another model: `fill` refuses them.
    stage = _stage_of(network)
    held = {stage(key) for key in own}
    beyond = [key for key in renamed if key not in own and stage(key) not in held]
    if beyond:
        log.info("%s: %d tensors of layers that a backbone lacks are left out (%s, ...)", file, len(beyond), beyond[0])
        for key in beyond:
            del renamed[key]
    fill(network, renamed, file, model, fix)
    return file


def _stage_of(network: nn.Module) -> Callable[[str], str]:
    """Key of a state dict -> the stage that it lies in: its first word, or the first two (`blocks.3`) where maps are
    taken from single members of a row, of which timm builds no more than are needed."""
    rows: set[str] = set()
    if not is_transformer(network):
        names = network.feature_info.module_name()  # type: ignore[union-attr, operator]
        rows = {first for first, _, number in (name.partition(".") for name in names) if number.isdigit()}

    def stage(key: str) -> str:
        return ".".join(key.split(".")[: 2 if key.partition(".")[0] in rows else 1])

    return stage


def _depths(cfg: TimmConfig, network: nn.Module) -> list[int]:
    """After how many blocks the three maps are taken.

    Raises:
        UserError: the model has fewer blocks.
    """
    blocks = len(network.blocks)  # type: ignore[arg-type]
    depths = list(cfg.depths) if cfg.depths is not None else [max(1, blocks // 2), max(1, blocks * 3 // 4), blocks]
    if depths[-1] > blocks:
        raise UserError(f"backbone.depths={depths}: {cfg.model} has {blocks} blocks", "lower the numbers")
    return depths
