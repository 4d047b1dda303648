"""Masks at feature size, and tokens: the features at a mask's positions, padded to a common count in a batch.

The neck and the steps of ABCB use these; a padded token never takes part in a mean, an attention or a histogram.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from fsseg.errors import UserError
from fsseg.model.base import Kept

_MULTIPLE = 256
"""Numbers of support tokens on a GPU are multiples of it: cuDNN plans its attention anew, for milliseconds, for every
number that it has not seen."""

_LOW_PRECISION_MULTIPLE = 64
"""The same in mixed precision on a CPU, for all tokens: oneDNN compiles and keeps kernels for every shape that it has
not seen, and a training of ABCB would grow by a megabyte and more a step."""


_ANY_MASK: ContextVar[bool] = ContextVar("any_mask", default=False)


@contextmanager
def for_any_mask() -> Iterator[None]:
    """Within it a method computes the same whatever its masks mark, so that it can be recorded once for all of them.

    No value of a mask decides what is computed: all positions are tokens, of queries and supports, and nothing is
    refused. An empty support mask counts as its first cell. `fsseg.engine.export` records methods so.
    """
    token = _ANY_MASK.set(True)
    try:
        yield
    finally:
        _ANY_MASK.reset(token)


def any_mask() -> bool:
    """Whether this runs within `for_any_mask`."""
    return _ANY_MASK.get()


def waits_for_nothing(x: Tensor) -> bool:
    """Whether work on `x` may not wait for the device to tell how many tokens there are: on a GPU, or for any mask.

    All positions are tokens then, and a mask says which take part; and numbers that the host knows are rounded up.
    Elsewhere tokens are gathered, which is less work.
    """
    return x.is_cuda or any_mask()


@dataclass
class Tokens:
    """Feature vectors at the positions of a mask, in raster order, then padding.

    Attributes:
        values: (B, N, C), zero at padding; N is at least the largest count of the batch and may be 0.
        valid: (B, N) bool, False at padding.
        counts: B, how many tokens of each sample are valid; None where only the device knows. They then stand anywhere
            among the N, not in front.
    """

    values: Tensor
    valid: Tensor
    counts: list[int] | None

    @property
    def full(self) -> bool:
        """Every token of every sample is valid, so no mask is needed."""
        return self.counts is not None and min(self.counts) == self.values.shape[1]

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
        index: (B, N) long, flat positions in raster order, then arbitrary ones; None: all positions, as they are.
        valid, counts: as in `Tokens`.
    """

    index: Tensor | None
    valid: Tensor
    counts: list[int] | None

    @classmethod
    def where(cls, mask: Tensor) -> Positions:
        """The True positions of each sample's mask, (B, n) bool, gathered or in place (see `waits_for_nothing`)."""
        return cls(None, mask, None) if waits_for_nothing(mask) else cls.under(mask)

    @classmethod
    def under(cls, mask: Tensor, counts: list[int] | None = None, multiple: int = 1) -> Positions:
        """The True positions of each sample's mask, (B, n) bool, gathered.

        Args:
            counts: how many they are, where that is known.
            multiple: of which the number of tokens is one, as far as there are positions; in mixed precision on a CPU
                64 at least.
        """
        counts = mask.sum(1).tolist() if counts is None else counts
        if torch.is_autocast_enabled("cpu"):
            multiple = max(multiple, _LOW_PRECISION_MULTIPLE)
        size = min(mask.shape[1], -(-max(counts) // multiple) * multiple)
        order = torch.argsort(mask.to(torch.uint8), dim=1, descending=True, stable=True)
        valid = torch.arange(size, device=mask.device) < mask.sum(1, keepdim=True)
        return cls(order[:, :size], valid, counts)

    def gather(self, features: Tensor) -> Tokens:
        """(B, n, C) -> its tokens."""
        values = features
        if self.index is not None:
            values = features.gather(1, self.index[..., None].expand(-1, -1, features.shape[2]))
        tokens = Tokens(values, self.valid, self.counts)
        return tokens if tokens.full else tokens.with_values(values)


def inside_and_outside(mask: Tensor, valid: Tensor | None = None) -> tuple[Positions, Positions]:
    """`Positions.where` the mask (B, n) bool is True, and where it is False; those outside `valid` are neither."""
    inside, outside = (mask, ~mask) if valid is None else (mask & valid, ~mask & valid)
    if waits_for_nothing(mask):
        return Positions.where(inside), Positions.where(outside)
    counts = torch.stack((inside.sum(1), outside.sum(1))).tolist()
    return Positions.under(inside, counts[0]), Positions.under(outside, counts[1])


@dataclass
class Shots:
    """The supports of B tasks of K shots: what was encoded of their images, and where their foreground lies.

    Attributes:
        kept: of the B * K images, sample by sample: as one, or of each image on its own. The second saves copies of
            what lies outside the masks.
        masks: (B, K, h, w) bool, at least one True for every shot; on the host, so that nothing waits for the device
            to learn how many cells they mark.
    """

    kept: Sequence[Kept]
    masks: Tensor

    @cached_property
    def counts(self) -> list[list[int]]:
        """Foreground cells of each sample's shots; for any mask all cells."""
        if any_mask():
            batch, shots, height, width = self.masks.shape
            return [[height * width] * shots] * batch
        return self.masks.flatten(2).sum(2).tolist()

    @cached_property
    def _positions(self) -> Positions:
        """Of the foreground in the maps of all shots of a sample one after the other."""
        if any_mask():
            return Positions(None, self.masks.flatten(1), None)
        features = next(iter(self.kept[0].values()))
        device, multiple = features.device, _MULTIPLE if waits_for_nothing(features) else 1
        positions = Positions.under(self.masks.flatten(1), [sum(counts) for counts in self.counts], multiple)
        assert positions.index is not None
        index, valid = (x.to(device, non_blocking=True) for x in (positions.index, positions.valid))
        return replace(positions, index=index, valid=valid)

    def tokens(self, name: str) -> Tokens:
        """Features (..., h, w, C) under the masks, (B, M, C): each sample's shots one after the other."""
        batch, shots = self.masks.shape[:2]
        if len(self.kept) == 1:
            return self._positions.gather(self.kept[0][name].flatten(1, 2).unflatten(0, (batch, shots)).flatten(1, 2))
        own = [kept[name][0][mask] for kept, mask in zip(self.kept, self.masks.flatten(0, 1))]
        return joined([torch.cat(own[start : start + shots])[None] for start in range(0, batch * shots, shots)])

    def each(self, choose: Callable[[Kept, Tensor], Tokens]) -> Tokens:
        """What `choose` makes of the images and their masks (N, h, w), of all B * K together."""
        device = next(iter(self.kept[0].values())).device
        masks = self.masks.flatten(0, 1).to(device, non_blocking=True)
        if len(self.kept) == 1:
            return choose(self.kept[0], masks)
        return joined([choose(kept, mask[None]).values for kept, mask in zip(self.kept, masks)])

    def alone(self) -> Shots:
        """The same supports as those of B * K tasks of one shot."""
        return Shots(self.kept, self.masks.flatten(0, 1)[:, None])


def joined(parts: Sequence[Tensor]) -> Tokens:
    """Samples (1, N_b, C) of any number of tokens as one `Tokens`."""
    counts = [part.shape[1] for part in parts]
    if len(set(counts)) == 1:
        values = parts[0] if len(parts) == 1 else torch.cat(list(parts))
        return Tokens(values, torch.ones(values.shape[:2], dtype=torch.bool, device=values.device), counts)
    values = torch.cat([F.pad(part, (0, 0, 0, max(counts) - part.shape[1])) for part in parts])
    valid = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    return Tokens(values, valid.to(values.device, non_blocking=True), counts)


def from_map(maps: Tensor) -> Tensor:
    """(N, C, h, w) -> (N, h, w, C), its channels side by side in memory: the form in which features are kept."""
    return maps.permute(0, 2, 3, 1).contiguous()


def to_map(kept: Tensor) -> Tensor:
    """The inverse of `from_map`, without a copy."""
    return kept.permute(0, 3, 1, 2)


def to_tokens(maps: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h * w, C)."""
    return maps.flatten(2).transpose(1, 2)


def _strides(maps: Tensor, size: tuple[int, int], patches: bool) -> list[int]:
    """Pixels from one feature cell to the next, down and across: maps (..., H, W) at size (h, w).

    Of patches, which cover the map, the side of one. Else the backbone's stride for sides of stride * m + 1. For
    stride * m, m > stride is needed as well: of smaller images, which are at most stride ** 2 pixels wide, the cells
    count as spread from corner to corner.
    """
    sides = zip(maps.shape[-2:], size)
    if patches:
        return [big // small for big, small in sides]
    return [(big - 1) // (small - 1) if small > 1 else big for big, small in sides]


def picture_cells(pictures: Tensor, size: tuple[int, int], patches: bool = False) -> Tensor:
    """Feature cells that lie on the picture, not on padding; cell i of a side lies at pixel stride * i.

    A patch lies where its middle does.

    If an image is so thin or so rotated that no cell lies on its picture, all its cells count as picture: attention and
    prior map need at least one.

    Args:
        pictures: (N, H, W) bool, as in `Batch`.
        size: (h, w).

    Returns:
        (N, h, w) bool.
    """
    rows, columns = _strides(pictures, size, patches)
    top, left = (rows // 2, columns // 2) if patches else (0, 0)
    cells = pictures[..., top::rows, left::columns]
    return cells | ~cells.flatten(1).any(1)[:, None, None]


def unless_full(cells: Tensor) -> Tensor | None:
    """(N, h, w) bool, or None if all of it is True: then no mask is needed. To be asked on the host."""
    return cells if any_mask() or not bool(cells.all()) else None


def area_average(maps: Tensor, size: tuple[int, int], patches: bool = False) -> Tensor:
    """Average (B, C, H, W) over the area of each feature cell -> (B, C, h, w).

    Cell i of a side lies at pixel stride * i (as for strided convolutions), so its area is the stride + 1
    pixels around that one, cut at the image's edge. The areas of `patches` lie side by side.
    """
    strides = _strides(maps, size, patches)
    kernel = strides if patches else [s + 1 - s % 2 for s in strides]
    padding = [0, 0] if patches else [k // 2 for k in kernel]
    out = F.avg_pool2d(maps, kernel, strides, padding, count_include_pad=False)
    assert tuple(out.shape[-2:]) == tuple(size), f"side {tuple(maps.shape[-2:])} does not fit {size} cells"
    return out


def downsample_masks(
    masks: Tensor,
    size: tuple[int, int],
    vanished: str = "best_cell",
    names: Sequence[Sequence[str]] | None = None,
    patches: bool = False,
) -> Tensor:
    """Support masks at feature size: a cell is foreground if at least half of its area is. 255 is not foreground.

    Args:
        masks: (B, K, H, W) in {0, 1, 255}.
        size: (h, w).
        vanished: what a mask too small for any cell keeps: `best_cell` (the first of its best covered ones) or `error`.
        names: image names by sample and shot, for error messages.
        patches: what the cells are, see `Backbone.patches`.

    Returns:
        (B, K, h, w) bool, at least one cell True for every shot.

    Raises:
        UserError: a mask without any foreground pixel, or one that vanishes while `vanished` is `error`; names the
        image.
    """
    foreground = masks == 1
    coverage = area_average(foreground.to(torch.float32), size, patches)
    small = coverage >= 0.5
    lost = ~small.flatten(2).any(2)
    if any_mask() or lost.any():
        empty = ~foreground.flatten(2).any(2)
        refused = empty if vanished == "best_cell" else lost
        if not any_mask() and refused.any():
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
