"""`method=hsnet`: 4D convolutions over the cosines of all pairs of query and support positions, at all depths.

Min, Kang, Cho, "Hypercorrelation Squeeze for Few-Shot Segmentation", ICCV 2021. The features are the outputs of every
residual block of a backbone that is not dilated, before the last ReLU; the support's are multiplied by its mask. The
cosines of a stage's blocks are the channels of one 4D map. Blocks of `fsseg.model.blocks.conv4d` squeeze the support's
sides and lead from layer4 to layer2; 2D convolutions decode what is left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import record_function

from fsseg.data.types import Tasks
from fsseg.model.backbones import LAYERS, Backbone, build_backbone
from fsseg.model.base import FewShotModel, Kept, Prediction, Role, upsample
from fsseg.model.blocks.conv4d import conv4d_block, resize_query
from fsseg.model.blocks.tokens import any_mask, downsample_masks, from_map, picture_cells, unless_full

if TYPE_CHECKING:
    from fsseg.config.schema import Config, HsnetConfig

_EPSILON = 1e-5  # added to the length of a feature
_SQUEEZE = {
    "layer2": ((5, 4), (5, 4), (3, 2)),
    "layer3": ((5, 4), (3, 2), (3, 2)),
    "layer4": ((3, 2), (3, 2), (3, 2)),
}
"""Kernel, and stride over the support's sides, of a stage's three squeezing blocks. With sides that halve from stage to
stage, rounded up, all three end at the same support sides: 2 x 2 at 400 pixels."""


class HypercorrelationSqueeze(nn.Module):
    """The learned part: 4D maps of the three stages in, logits out.

    Args:
        blocks: stage -> its residual blocks, which are the channels of its 4D map.
        channels: C, width after squeezing; on the way there it is C / 8 and C / 2.
    """

    def __init__(self, blocks: Mapping[str, int], channels: int) -> None:
        super().__init__()
        widths = (channels // 8, channels // 2, channels)
        self.squeeze = nn.ModuleDict()
        for layer, shapes in _SQUEEZE.items():
            steps = zip((blocks[layer], *widths), widths, shapes)
            self.squeeze[layer] = nn.Sequential(*(conv4d_block(i, o, *shape) for i, o, shape in steps))
        self.mix = nn.ModuleDict(
            {
                layer: nn.Sequential(*(conv4d_block(channels, channels, 3) for _ in range(3)))
                for layer in ("layer3", "layer2")
            }
        )
        half = channels // 2
        self.decode_small = nn.Sequential(_conv(channels, channels), nn.ReLU(), _conv(channels, half), nn.ReLU())
        self.decode_large = nn.Sequential(_conv(half, half), nn.ReLU(), _conv(half, 2))

    def forward(self, correlations: Mapping[str, Tensor]) -> Tensor:
        """Stage -> (B, L, h, w, h', w') -> logits (B, 2, 2h, 2w), h and w those of layer2."""
        mixed = self.squeeze["layer4"](correlations["layer4"])
        for layer, mix in self.mix.items():
            own = self.squeeze[layer](correlations[layer])
            mixed = mix(own + resize_query(mixed, (own.shape[2], own.shape[3])))
        small = self.decode_small(mixed.mean((4, 5)))
        return self.decode_large(upsample(small, (2 * small.shape[2], 2 * small.shape[3])))


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class Hsnet(FewShotModel):
    """Backbone without dilation, correlations, `HypercorrelationSqueeze`; K shots vote."""

    def __init__(self, backbone: Backbone, cfg: HsnetConfig) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = HypercorrelationSqueeze(
            {layer: len(backbone.residual_blocks(layer)) for layer in LAYERS}, cfg.channels
        )

    @classmethod
    def from_config(cls, cfg: Config) -> Hsnet:
        return cls(build_backbone(cfg.backbone, dilated=False), cfg.model)  # type: ignore[arg-type]

    def encode(self, images: Tensor, pictures: Tensor, role: Role = "both") -> Kept:
        """For each stage its features, (N, L, h, w, C) for L blocks, of length 1 (a little less: `_EPSILON`), and zero
        on padding; of supports also `<stage>_length` (N, L, h, w), how long they were."""
        with record_function("fsseg: backbone"):
            found = self.backbone.blocks(images)
        kept: Kept = {}
        for layer, maps in found.items():
            features = torch.stack([from_map(x) for x in maps], 1)
            wide = torch.promote_types(features.dtype, torch.float32)  # squares of half precision could overflow
            length = torch.linalg.vector_norm(features, dim=4, dtype=wide)
            features = features / (length + _EPSILON)[..., None]
            picture = unless_full(picture_cells(pictures, (features.shape[2], features.shape[3])))
            if picture is not None:
                features = features * picture.to(images.device, non_blocking=True)[:, None, :, :, None]
            kept[layer] = features
            if role != "query":
                kept[f"{layer}_length"] = length
        return kept

    def decode(self, supports: Sequence[Kept], query: Kept, tasks: Tasks) -> Prediction:
        """One shot: the head's logits. More: the shots' votes (`voted`), or in training, which votes do not allow, the
        mean of their logits."""
        names = [spec.support_ids for spec in tasks.specs]
        sizes = {layer: (query[layer].shape[2], query[layer].shape[3]) for layer in LAYERS}
        shares = {layer: mask_shares(tasks.support_masks, size, names) for layer, size in sizes.items()}
        answers = []
        for shot in range(tasks.support_masks.shape[1]):
            support = _of_shot(supports, tasks.support_masks.shape[1], shot)
            with record_function("fsseg: correlation"):
                correlations = {
                    layer: correlation(
                        query[layer], support[layer], support[f"{layer}_length"],
                        share[:, shot].to(query[layer].device, non_blocking=True),
                    )
                    for layer, share in shares.items()
                }  # fmt: skip
            with record_function("fsseg: head"):
                answers.append(self.head(correlations))
        if len(answers) == 1:
            logits = answers[0]
        elif self.training:
            logits = torch.stack(answers).mean(0)
        else:
            logits = voted(answers, tasks)
        return Prediction([logits], tasks.size)


def _of_shot(supports: Sequence[Kept], shots: int, shot: int) -> Kept:
    """What was kept of one of the K shots of every sample, (B, ...)."""
    if len(supports) == 1:
        return {name: x[shot::shots] for name, x in supports[0].items()}
    own = supports[shot::shots]
    return own[0] if len(own) == 1 else {name: torch.cat([kept[name] for kept in own]) for name in own[0]}


def mask_shares(masks: Tensor, size: tuple[int, int], names: Sequence[Sequence[str]] | None = None) -> Tensor:
    """Support masks at the size of a stage, as published: bilinear, corners aligned, neither averaged nor cut.

    Of an object that lies between the points that are read nothing would be left; it keeps its best covered cell, or
    all that it covers at least half of.

    Args:
        masks: (B, K, H, W) in {0, 1, 255}, on the host; 255 is not foreground.
        size: (h, w).
        names: image names by sample and shot, for error messages.

    Returns:
        (B, K, h, w) in [0, 1].

    Raises:
        UserError: a mask without any foreground pixel.
    """
    shares = upsample((masks == 1).to(torch.float32), size)
    lost = ~(shares > 0).flatten(2).any(2)
    if any_mask() or lost.any():
        covered = downsample_masks(masks, size, names=names).to(torch.float32)
        shares = torch.where(lost[..., None, None], covered, shares)
    return shares


def correlation(query: Tensor, support: Tensor, length: Tensor, shares: Tensor) -> Tensor:
    """Cosines of all query positions with all support positions, negative ones as 0.

    The support's features f are multiplied by the mask m before their cosine is taken, whose denominator has eps added
    to each length. That is the cosine of f itself, times m (|f| + eps) / (m |f| + eps): close to 1 wherever m is not 0.

    Args:
        query, support: of length 1, (B, L, h, w, C) and (B, L, h', w', C).
        length: of the support's features before, (B, L, h', w').
        shares: mask at their size, (B, h', w').

    Returns:
        (B, L, h, w, h', w'); in memory L lies beside h' and w', where a convolution over the support's sides wants it.
    """
    share = shares[:, None]
    factor = share * (length + _EPSILON) / (share * length + _EPSILON)
    left, right = query.flatten(2, 3), (support * factor[..., None]).flatten(2, 3)
    found = torch.stack([F.relu(q @ s.transpose(1, 2)) for q, s in zip(left.unbind(1), right.unbind(1))], 2)
    cells = found.unflatten(3, support.shape[2:4]).unflatten(1, query.shape[2:4])
    return cells.permute(0, 3, 1, 2, 4, 5)


def voted(answers: Sequence[Tensor], tasks: Tasks) -> Tensor:
    """The answer of K shots as published: each marks what it calls foreground; a pixel is foreground if it is marked by
    at least half as many shots as the pixel marked most often, and by one at least.

    Args:
        answers: K logits, (B, 2, h, w) each.
        tasks: the size of the images, at which votes are taken, and their parts that are picture.

    Returns:
        Logits (B, 2, H, W): of background 0, of foreground 2 votes - most + 1/2, which is positive from half of the
        most votes on. NaN for a sample with an answer that is not finite.
    """
    full = torch.stack([upsample(logits, tasks.size) for logits in answers])  # (K, B, 2, H, W)
    votes = (full[:, :, 1] > full[:, :, 0]).sum(0)
    most = torch.stack([own[:height, :width].amax() for own, (height, width) in zip(votes, tasks.valid_sizes)])
    margin = (2 * votes - most.clamp_min(1)[:, None, None]).to(full.dtype) + 0.5
    finite = torch.isfinite(full).all(4).all(3).all(2).all(0)
    margin = margin.masked_fill(~finite[:, None, None], torch.nan)
    return torch.stack((torch.zeros_like(margin), margin), 1)
