"""The pixels of a placement: the crop window is resampled once, then converted to floats and normalised.

Called by `fsseg.data.transforms`. Without rotation the image is resampled in whole numbers (Pillow's arithmetic, in
Pillow or torch): the result is the same on every processor. Rotation and blur, in training only, use floats, and
processors may differ by one level.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from fsseg.data.images import reduction
from fsseg.data.placement import Foreground, Placement
from fsseg.data.source import IGNORE_INDEX

MEAN = (0.485, 0.456, 0.406)
"""Mean of ImageNet, of values in [0, 1], RGB (torchvision's pretrained models)."""
STD = (0.229, 0.224, 0.225)
"""Standard deviation of ImageNet, likewise."""
_SCALE = [1 / (255 * s) for s in STD]
_SHIFT = [-m / s for m, s in zip(MEAN, STD)]
BLACK = tuple(_SHIFT)
"""A black pixel, normalised."""
_PADDING = 254  # stands for "outside the image" while a mask is rotated, when 255 may also be an annotation


@dataclass(frozen=True)
class Sample:
    """One transformed image.

    Attributes:
        image: (3, S, S) float32, normalised; padding is 0 (the mean colour) or `BLACK`.
        mask: (S, S) uint8 in {0, 1, 255}, 255 at padding.
        picture: (S, S) bool, True on pixels of the image, False at padding: around the window, and in its corners after
            a rotation.
        valid_size: (height, width) of the window. It lies in the upper left corner, but in training with
            `protocol.fit=pfenet` in the middle.
    """

    image: Tensor
    mask: Tensor
    picture: Tensor
    valid_size: tuple[int, int]


def render(
    image: NDArray[np.uint8], mask: NDArray[np.uint8], plan: Placement, image_size: int, keep_foreground: bool
) -> Sample:
    """Pixels of a placement: image bilinear (with anti-aliasing where it shrinks), mask by nearest neighbour.

    Args:
        image: (H, W, 3) uint8, or reduced by 2, 4 or 8 (see `Source.image`).
        mask: (H, W) uint8 in {0, 1, 255}.
        plan: for an image of the mask's size.
        image_size: S, side of the square; the window must fit, at its corner.
        keep_foreground: if the window holds foreground that nearest neighbour skips altogether, its middle pixel is
            marked.
    """
    if not plan.angle:
        pixels, picture = render_image(image, plan, image_size)
        return Sample(pixels, render_mask(mask, plan, image_size, keep_foreground), picture, plan.window)
    assert reduction(image.shape, plan.source), (image.shape, plan.source)
    planes, cut = _turned(image, mask, plan)
    cut = _finished(cut, mask, plan, keep_foreground)
    inside = cut != _PADDING
    return Sample(
        _normalised(planes, plan, image_size, inside),
        _placed(np.where(inside, cut, np.uint8(IGNORE_INDEX)), plan, image_size, IGNORE_INDEX),
        _placed(inside, plan, image_size, False),
        plan.window,
    )


def render_image(image: NDArray[np.uint8], plan: Placement, image_size: int) -> tuple[Tensor, Tensor]:
    """`Sample.image` and `Sample.picture` of a placement without rotation, which needs no mask; see `render`."""
    assert reduction(image.shape, plan.source), (image.shape, plan.source)
    picture = _placed(np.ones(plan.window, dtype=np.bool_), plan, image_size, False)
    return _normalised(_straight(image, plan), plan, image_size), picture


def render_mask(mask: NDArray[np.uint8], plan: Placement, image_size: int, keep_foreground: bool) -> Tensor:
    """`Sample.mask` of a placement without rotation, which needs no image; see `render`."""
    (height, width), (high, wide), (tall, broad) = plan.source, plan.scaled, plan.window
    rows = ((np.arange(plan.top, plan.top + tall) + 0.5) * height / high).astype(np.int64)
    columns = ((np.arange(plan.left, plan.left + broad) + 0.5) * width / wide).astype(np.int64)
    cut = _finished(mask.take(rows, axis=0).take(columns, axis=1), mask, plan, keep_foreground)
    return _placed(cut, plan, image_size, IGNORE_INDEX)


def _finished(
    cut: NDArray[np.uint8], mask: NDArray[np.uint8], plan: Placement, keep_foreground: bool
) -> NDArray[np.uint8]:
    """The window of a mask with what has to be kept of its foreground, and mirrored."""
    if keep_foreground and not (cut == 1).any():
        _mark_one(cut, mask, plan)
    return np.ascontiguousarray(cut[:, ::-1]) if plan.flip else cut


def _placed(window: NDArray[Any], plan: Placement, image_size: int, padding: int) -> Tensor:
    """A window in its square."""
    (top, left), (height, width) = plan.corner, plan.window
    out = np.full((image_size, image_size), padding, dtype=window.dtype)
    out[top : top + height, left : left + width] = window
    return torch.from_numpy(out)


def _normalised(planes: Tensor, plan: Placement, image_size: int, inside: NDArray[np.bool_] | None = None) -> Tensor:
    """The channels of a window as floats, in their square; 0 where the window is not `inside` the image."""
    (top, left), (bottom, right) = plan.corner, (plan.corner[0] + plan.window[0], plan.corner[1] + plan.window[1])
    out = torch.empty(3, image_size, image_size)
    padding = torch.tensor(BLACK if plan.black else (0.0, 0.0, 0.0))[:, None, None]
    for strip in (out[:, :top], out[:, bottom:], out[:, top:bottom, :left], out[:, top:bottom, right:]):
        strip.copy_(padding)
    region = out[:, top:bottom, left:right]
    for channel, plane in enumerate(planes):  # one by one: a channel stays in the processor's cache
        if plan.blur:
            levels = torch.from_numpy(blurred(plane.numpy()))
            torch.mul(levels, _SCALE[channel] / 256, out=region[channel]).add_(_SHIFT[channel])
        else:
            torch.mul(plane, _SCALE[channel], out=region[channel]).add_(_SHIFT[channel])
    if inside is not None:
        np.copyto(region.numpy(), 0, where=~inside)
    return out


def blurred(plane: NDArray[np.uint8] | NDArray[np.float32]) -> NDArray[np.float32]:
    """256 times the Gaussian blur of one channel (H, W), rounded to whole levels first, with [1, 4, 6, 4, 1] / 16.

    That is OpenCV's kernel of 5 pixels, which the PFENet family takes. It equals four convolutions with [1, 1] in each
    direction: eight sums of neighbours in 16 bits (at most 256 * 255), several times as fast as a convolution of
    floats. The rows are summed end to end; what one row adds to the next falls into the padding.
    """
    height, width = plane.shape
    row = width + 4
    padded = np.empty((height + 4, row), np.uint16)
    inner = padded[2:-2, 2:-2]
    if plane.dtype == np.uint8:
        inner[:] = plane
    else:
        np.add(plane, np.float32(0.5), out=inner, casting="unsafe")
    padded[2:-2, :2], padded[2:-2, -2:] = inner[:, :1], inner[:, -1:]
    padded[:2], padded[-2:] = padded[2], padded[-3]
    flat, spare = padded.ravel(), np.empty(padded.size, np.uint16)
    for step in 4 * (row,) + 4 * (1,):
        size = len(flat) - step
        flat, spare = np.add(flat[step:], flat[:size], out=spare[:size]), flat
    return np.lib.stride_tricks.as_strided(flat, (height, width), (2 * row, 2)).astype(np.float32)


def _straight(image: NDArray[np.uint8], plan: Placement) -> Tensor:
    """Window of the scaled image, (3, h, w) uint8, mirrored if the plan says so."""
    (height, width), (high, wide), (tall, broad) = plan.source, plan.scaled, plan.window
    bottom, right = plan.top + tall, plan.left + broad
    factor = reduction(image.shape, plan.source)
    if factor == 1 and high * wide < 3 * tall * broad:
        # torch is three times as quick as Pillow, to the same level or the next, but scales whole images only
        whole = functional.interpolate(
            torch.from_numpy(image).permute(2, 0, 1)[None], plan.scaled, mode="bilinear", antialias=True
        )
        pixels = whole[0, :, plan.top : bottom, plan.left : right]
    else:
        across, down = width / wide / factor, height / high / factor
        box = (
            plan.left * across,
            plan.top * down,
            min(right * across, width / factor),
            min(bottom * down, height / factor),
        )
        picture = Image.fromarray(image).resize((broad, tall), Image.Resampling.BILINEAR, box=box, reducing_gap=3.0)
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    return pixels.flip(-1) if plan.flip else pixels


def _turned(image: NDArray[np.uint8], mask: NDArray[np.uint8], plan: Placement) -> tuple[Tensor, NDArray[np.uint8]]:
    """As `_straight` with rotation: one affine resampling, floats; and the mask (h, w), unmirrored, with `_PADDING`
    outside the image."""
    (height, width), (high, wide) = plan.source, plan.scaled
    sin, cos = math.sin(math.radians(plan.angle)), math.cos(math.radians(plan.angle))
    # window -> scaled image, turned back about its centre -> original: x = a * column + b * row + c; d, e, f for y
    across, down = width / wide, height / high
    dx, dy = plan.left - wide / 2, plan.top - high / 2
    a, b, c = cos * across, -sin * across, (cos * dx - sin * dy + wide / 2) * across
    d, e, f = sin * down, cos * down, (sin * dx + cos * dy + high / 2) * down
    size = (plan.window[1], plan.window[0])
    cut = Image.fromarray(mask).transform(
        size, Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.NEAREST, fillcolor=_PADDING
    )
    factor = reduction(image.shape, plan.source)
    if (shrink := int(min(across, down) / factor)) > 1:  # bilinear skips pixels: average blocks of them first
        image, factor = np.array(Image.fromarray(image).reduce(shrink)), factor * shrink
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    rows, columns = torch.arange(size[1]) + 0.5, torch.arange(size[0]) + 0.5
    if plan.flip:
        columns = columns.flip(0)
    # Coordinates in [-1, 1] over the image; a reduced one is larger than the original if the factor does not divide it.
    # As complex numbers x + iy their table is one sum of a row and a column, six times as fast as filling x and y.
    over_x, over_y = 2 / (image.shape[1] * factor), 2 / (image.shape[0] * factor)
    along = torch.complex((columns * a + c) * over_x - 1, (columns * d + f) * over_y - 1)
    places = along + torch.complex(rows * (b * over_x), rows * (e * over_y))[:, None]
    turned = functional.grid_sample(
        pixels, torch.view_as_real(places)[None], mode="bilinear", padding_mode="border", align_corners=False
    )
    return turned[0], np.array(cut)


def _mark_one(cut: NDArray[np.uint8], mask: NDArray[np.uint8], plan: Placement) -> None:
    """Mark in `cut` (not yet mirrored) the place of the middle one of the foreground pixels in the window, if any."""
    foreground = Foreground(mask, plan)
    if not foreground.total:
        return
    rows, columns = foreground.points()
    ys, xs = np.floor(rows - plan.top).astype(np.int64), np.floor(columns - plan.left).astype(np.int64)
    inside = np.flatnonzero((ys >= 0) & (ys < plan.window[0]) & (xs >= 0) & (xs < plan.window[1]))
    if len(inside):
        middle = inside[len(inside) // 2]
        cut[ys[middle], xs[middle]] = 1
