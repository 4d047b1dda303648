"""Masks at feature size, and tokens: the features at a mask's positions, padded to a common count in a batch.

The neck and the steps of ABCB use these; a padded token never takes part in a mean, an attention or a histogram.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from fsseg.errors import UserError


@dataclass
class Tokens:
    """Feature vectors at the positions of a mask, in raster order, then padding.

    Attributes:
        values: (B, N, C), zero at padding; N is the largest count of the batch and may be 0.
        valid: (B, N) bool, False at padding.
        counts: B, how many tokens of each sample are valid.
    """

    values: Tensor
    valid: Tensor
    counts: list[int]

    @property
    def full(self) -> bool:
        """Every token of every sample is valid, so no mask is needed."""
        return min(self.counts) == self.values.shape[1]

    def with_values(self, values: Tensor) -> Tokens:
        """Other features, (B, N, D), at the same positions; padding becomes zero."""
        return replace(self, values=values if self.full else values.masked_fill(~self.valid[..., None], 0))

    def mean(self) -> Tensor:
        """(B, C): mean over a sample's own tokens; zero for a sample without any."""
        return self.values.sum(1) / self.valid.sum(1, keepdim=True).clamp_min(1)

    @property
    def mask(self) -> Tensor | None:
        """`valid`, or None if every token is valid."""
        return None if self.full else self.valid


@dataclass
class Positions:
    """Where the tokens of a mask lie; gathers from any map of the same size.

    Attributes:
        index: (B, N) long, flat positions in raster order, then arbitrary ones.
        valid, counts: as in `Tokens`.
    """

    index: Tensor
    valid: Tensor
    counts: list[int]

    @classmethod
    def under(cls, mask: Tensor, counts: list[int] | None = None) -> Positions:
        """The True positions of each sample's mask, (B, n) bool; `counts`: how many they are, where that is known."""
        counts = mask.sum(1).tolist() if counts is None else counts
        order = torch.argsort(mask.to(torch.uint8), dim=1, descending=True, stable=True)
        valid = torch.arange(max(counts), device=mask.device) < mask.sum(1, keepdim=True)
        return cls(order[:, : max(counts)], valid, counts)

    def gather(self, features: Tensor) -> Tokens:
        """(B, n, C) -> its tokens."""
        values = features.gather(1, self.index[..., None].expand(-1, -1, features.shape[2]))
        tokens = Tokens(values, self.valid, self.counts)
        return tokens if tokens.full else tokens.with_values(values)


def tokens_under(mask: Tensor, features: Tensor) -> Tokens:
    """Tokens of (B, n, C) where the mask (B, n) is True."""
    return Positions.under(mask).gather(features)


def inside_and_outside(mask: Tensor, valid: Tensor | None = None) -> tuple[Positions, Positions]:
    """The True and the False positions of each sample's mask, (B, n) bool; those outside `valid` are neither."""
    inside, outside = (mask, ~mask) if valid is None else (mask & valid, ~mask & valid)
    counts = torch.stack((inside.sum(1), outside.sum(1))).tolist()  # one wait for the device
    return Positions.under(inside, counts[0]), Positions.under(outside, counts[1])


def to_tokens(maps: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h * w, C)."""
    return maps.flatten(2).transpose(1, 2)


def _strides(maps: Tensor, size: tuple[int, int]) -> list[int]:
    """Pixels from one feature cell to the next, down and across: maps (..., H, W) at size (h, w).

    The backbone's stride for sides of stride * m + 1. For stride * m, m > stride is needed as well: of smaller images,
    which are at most stride ** 2 pixels wide, the cells count as spread from corner to corner.
    """
    return [(big - 1) // (small - 1) if small > 1 else big for big, small in zip(maps.shape[-2:], size)]


def picture_cells(pictures: Tensor, size: tuple[int, int]) -> Tensor | None:
    """Feature cells that lie on the picture, not on padding; cell i of a side lies at pixel stride * i.

    If an image is so thin or so rotated that no cell lies on its picture, all its cells count as picture: attention and
    prior map need at least one.

    Args:
        pictures: (N, H, W) bool, as in `Batch`.
        size: (h, w).

    Returns:
        (N, h, w) bool; None if all cells are picture.
    """
    rows, columns = _strides(pictures, size)
    cells = pictures[..., ::rows, ::columns]
    cells = cells | ~cells.flatten(1).any(1)[:, None, None]
    return None if bool(cells.all()) else cells


def area_average(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Average (B, C, H, W) over the area of each feature cell -> (B, C, h, w).

    Cell i of a side lies at pixel stride * i (as for strided convolutions), so its area is the stride + 1
    pixels around that one, cut at the image's edge.
    """
    strides = _strides(maps, size)
    kernel = [s + 1 - s % 2 for s in strides]
    out = F.avg_pool2d(maps, kernel, strides, [k // 2 for k in kernel], count_include_pad=False)
    assert tuple(out.shape[-2:]) == tuple(size), f"side {tuple(maps.shape[-2:])} does not fit {size} cells"
    return out


def downsample_masks(
    masks: Tensor, size: tuple[int, int], vanished: str = "best_cell", names: Sequence[Sequence[str]] | None = None
) -> Tensor:
    """Support masks at feature size: a cell is foreground if at least half of its area is. 255 is not foreground.

    Args:
        masks: (B, K, H, W) in {0, 1, 255}.
        size: (h, w).
        vanished: what a mask too small for any cell keeps: `best_cell` (the first of its best covered ones) or `error`.
        names: image names by sample and shot, for error messages.

    Returns:
        (B, K, h, w) bool, at least one cell True for every shot.

    Raises:
        UserError: a mask without any foreground pixel, or one that vanishes while `vanished` is `error`; names the
        image.
    """
    foreground = masks == 1
    coverage = area_average(foreground.to(torch.float32), size)
    small = coverage >= 0.5
    lost = ~small.flatten(2).any(2)
    if lost.any():
        empty = ~foreground.flatten(2).any(2)
        refused = empty if vanished == "best_cell" else lost
        if refused.any():
            b, k = refused.nonzero()[0].tolist()
            name = names[b][k] if names is not None else f"{k} of sample {b}"
            if empty[b, k]:
                raise UserError(
                    f"the mask of support image {name} has no foreground pixel at network size",
                    "the episode sampler must not choose it: raise protocol.min_pixels, or check the image's mask",
                )
            raise UserError(
                f"the object in support image {name} is smaller than one feature cell",
                "set model.vanished_mask=best_cell, or raise protocol.min_pixels",
            )
        flat = coverage.flatten(2)
        best = F.one_hot(flat.argmax(2), flat.shape[2]).bool().view_as(small)
        small = small | (best & lost[..., None, None])
    return small
