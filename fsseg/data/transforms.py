"""From an image and its mask at original size to the network's square input: fit, augment, crop, pad, normalise.

Called by `fsseg.data.loader` for every image of an episode. The geometry (scale, rotation, flip, crop) is decided
first, on the mask alone; then one resampling produces the pixels of the crop window and no others, from bytes to bytes.
Blur comes after the crop, floats last.

Fit: the longer side becomes `image_size`, the aspect is kept. The random scale of training is relative to that, so
that training and evaluation see objects at the same size on average. (The PFENet family scales PASCAL's 500-pixel
images themselves before it crops 473: 6 % larger; for COCO, 640 pixels and 641, the two agree.) The image lies in the
upper left corner of the square, in training too, so that `valid_size` always tells image from padding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from fsseg.data.source import IGNORE_INDEX

MEAN = (0.485, 0.456, 0.406)
"""Mean of ImageNet, of values in [0, 1], RGB (torchvision's pretrained models)."""
STD = (0.229, 0.224, 0.225)
"""Standard deviation of ImageNet, likewise."""
CROP_TRIES = 30
"""Crops drawn before the best one is taken (PFENet's SemSeg transforms)."""
_SCALE = [1 / (255 * s) for s in STD]
_SHIFT = [-m / s for m, s in zip(MEAN, STD)]
_PADDING = 254  # stands for "outside the image" while a mask is rotated, when 255 may also be an annotation


@dataclass(frozen=True)
class Placement:
    """Where an image lands: scaled to `scaled`, rotated about its centre, a window cut out, then mirrored.

    Attributes:
        source: (height, width) of the original.
        scaled: (height, width) of the whole image after scaling.
        top, left: corner of the window in the scaled image.
        window: (height, width) of the window: the part of the network input that is image.
        angle: degrees, counter-clockwise.
        flip: mirrored left-right.
        blur: blurred.
        kept: share of the foreground that the window holds; 1 if there is none.
    """

    source: tuple[int, int]
    scaled: tuple[int, int]
    top: int
    left: int
    window: tuple[int, int]
    angle: float = 0.0
    flip: bool = False
    blur: bool = False
    kept: float = 1.0


@dataclass(frozen=True)
class Sample:
    """One transformed image.

    Attributes:
        image: (3, S, S) float32, normalised, 0 at padding.
        mask: (S, S) uint8 in {0, 1, 255}, 255 at padding.
        valid_size: (height, width) of the part that is image, from the upper left corner.
    """

    image: Tensor
    mask: Tensor
    valid_size: tuple[int, int]


@dataclass(frozen=True)
class TrainTransform:
    """Random transform of training images; the fields are those of `DatasetConfig`."""

    image_size: int
    scale_range: tuple[float, float] = (0.9, 1.1)
    rotate_degrees: float = 0.0
    blur_probability: float = 0.0
    flip_probability: float = 0.5
    crop_keep: float = 0.85

    def __call__(self, image: NDArray[np.uint8], mask: NDArray[np.uint8], random: Random) -> Sample:
        """Transform (H, W, 3) uint8 and its (H, W) uint8 mask. Foreground in the mask never vanishes altogether."""
        return render(image, mask, self.place(mask, random), self.image_size, keep_foreground=True)

    def place(self, mask: NDArray[np.uint8], random: Random) -> Placement:
        """Draw the geometry: scale, angle, blur and flip, then the crop."""
        return self._crop(self.draw(mask.shape, random), mask, random)

    def draw(self, size: tuple[int, ...], random: Random) -> Placement:
        """All but the crop, for an image of `size` (height, width).

        Every switch takes its random number even when off, so that none disturbs the others.
        """
        low, high = self.scale_range
        scale = low + (high - low) * random.random()
        angle = (2 * random.random() - 1) * self.rotate_degrees
        blur = random.random() < self.blur_probability
        flip = random.random() < self.flip_probability
        height, width = size
        scaled = fitted(height, width, self.image_size * scale)
        window = (min(scaled[0], self.image_size), min(scaled[1], self.image_size))
        return Placement((height, width), scaled, 0, 0, window, angle, flip, blur)

    def _crop(self, plan: Placement, mask: NDArray[np.uint8], random: Random) -> Placement:
        room = (plan.scaled[0] - plan.window[0], plan.scaled[1] - plan.window[1])
        if room == (0, 0) and not plan.angle:
            return plan
        foreground = Foreground(mask, plan)
        if plan.angle and foreground.total == 0 and (mask == 1).any():  # turned out of the picture
            return self._crop(replace(plan, angle=0.0), mask, random)
        best = plan
        best_kept = -1.0
        for _ in range(CROP_TRIES):
            top, left = int(random.random() * (room[0] + 1)), int(random.random() * (room[1] + 1))
            kept = foreground.kept(top, left)
            if kept > best_kept:
                best, best_kept = replace(plan, top=top, left=left, kept=kept), kept
            if kept >= self.crop_keep:
                break
        if best_kept == 0:
            top, left = foreground.central_window(room)
            best = replace(plan, top=top, left=left, kept=foreground.kept(top, left))
        return best


@dataclass(frozen=True)
class EvalTransform:
    """Transform of evaluation images, supports and queries alike: fit, pad right and below, normalise."""

    image_size: int

    def __call__(self, image: NDArray[np.uint8], mask: NDArray[np.uint8], keep_foreground: bool = False) -> Sample:
        """Transform (H, W, 3) uint8 and its mask; `keep_foreground` saves one pixel of an object that nearest
        neighbour would lose (supports)."""
        height, width = mask.shape
        size = fitted(height, width, self.image_size)
        return render(image, mask, Placement((height, width), size, 0, 0, size), self.image_size, keep_foreground)


def fitted(height: int, width: int, longer: float) -> tuple[int, int]:
    """(height, width) with the longer side `longer`, in the same aspect, each at least 1."""
    factor = longer / max(height, width)
    return max(1, round(height * factor)), max(1, round(width * factor))


class Foreground:
    """Counts the foreground in windows of a placed mask without resampling: a pixel counts where its centre lands.

    In a rotated image the share is relative to what rotation leaves inside, and an object of more than 16384 pixels is
    counted on every second row and column (which moves the share by well under 0.01).
    """

    def __init__(self, mask: NDArray[np.uint8], plan: Placement) -> None:
        self.plan = plan
        self._marked = mask == 1
        self.total = int(np.count_nonzero(self._marked))
        self._points: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
        if self.total == 0:
            return
        rows = np.flatnonzero(self._marked.any(axis=1))[[0, -1]] + np.array([0, 1])
        columns = np.flatnonzero(self._marked.any(axis=0))[[0, -1]] + np.array([0, 1])
        ys, xs = self._land(rows[[0, 0, 1, 1]] - 0.5, columns[[0, 1, 0, 1]] - 0.5)
        self._box = (float(ys.min()), float(ys.max()), float(xs.min()), float(xs.max()))
        if plan.angle and not self._holds(0, plan.scaled[0], 0, plan.scaled[1]):
            ys, xs = self.points()
            inside = (ys >= 0) & (ys < plan.scaled[0]) & (xs >= 0) & (xs < plan.scaled[1])
            self._points = ys[inside], xs[inside]
            self.total = int(inside.sum())

    def kept(self, top: int, left: int) -> float:
        """Share of the foreground inside the window at (top, left); 1 where there is no foreground."""
        bottom, right = top + self.plan.window[0], left + self.plan.window[1]
        if self.total == 0 or self._holds(top, bottom, left, right):
            return 1.0
        if self.plan.angle:
            ys, xs = self.points()
            return int(((ys >= top) & (ys < bottom) & (xs >= left) & (xs < right)).sum()) / max(1, len(ys))
        (height, width), (high, wide) = self.plan.source, self.plan.scaled
        # the centre of row y lies at (y + 0.5) * high / height: first row at or below an edge
        y0, y1 = (math.ceil(edge * height / high - 0.5) for edge in (top, bottom))
        x0, x1 = (math.ceil(edge * width / wide - 0.5) for edge in (left, right))
        return int(np.count_nonzero(self._marked[max(y0, 0) : y1, max(x0, 0) : x1])) / self.total

    def central_window(self, room: tuple[int, int]) -> tuple[int, int]:
        """(top, left) of the window around the middle one of the foreground pixels, as far as the image reaches."""
        rows, columns = self.points()
        middle = len(rows) // 2
        top = round(float(rows[middle]) - self.plan.window[0] / 2)
        left = round(float(columns[middle]) - self.plan.window[1] / 2)
        return min(max(top, 0), room[0]), min(max(left, 0), room[1])

    def points(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Centres of the foreground pixels in the scaled and rotated image: rows, columns."""
        if self._points is None:
            step = 2 if self.plan.angle and self.total > 16384 else 1
            ys, xs = np.nonzero(self._marked[::step, ::step])
            self._points = self._land(ys * step, xs * step)
        return self._points

    def _holds(self, top: int, bottom: int, left: int, right: int) -> bool:
        """Whether a window certainly holds all of the foreground: its bounding box lies inside."""
        y0, y1, x0, x1 = self._box
        return top <= y0 and y1 <= bottom and left <= x0 and x1 <= right

    def _land(self, ys: NDArray[Any], xs: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Where the centres of original pixels (rows, columns) lie after scaling and rotation."""
        (height, width), (high, wide) = self.plan.source, self.plan.scaled
        rows = (ys.astype(np.float32) + np.float32(0.5)) * np.float32(high / height)
        columns = (xs.astype(np.float32) + np.float32(0.5)) * np.float32(wide / width)
        if not self.plan.angle:
            return rows, columns
        sin, cos = math.sin(math.radians(self.plan.angle)), math.cos(math.radians(self.plan.angle))
        dy, dx = rows - np.float32(high / 2), columns - np.float32(wide / 2)
        return (
            np.float32(high / 2) - np.float32(sin) * dx + np.float32(cos) * dy,
            np.float32(wide / 2) + np.float32(cos) * dx + np.float32(sin) * dy,
        )


def render(
    image: NDArray[np.uint8], mask: NDArray[np.uint8], plan: Placement, image_size: int, keep_foreground: bool
) -> Sample:
    """Pixels of a placement: image bilinear (with anti-aliasing where it shrinks), mask by nearest neighbour.

    Args:
        image: (H, W, 3) uint8.
        mask: (H, W) uint8 in {0, 1, 255}.
        plan: for an image of this size.
        image_size: S, side of the square; the window must fit.
        keep_foreground: if the window holds foreground of the original but nearest neighbour steps over all of it, the
            place of its middle pixel is marked.
    """
    height, width = plan.window
    pixels, cut = (_turned if plan.angle else _straight)(image, mask, plan)
    if keep_foreground and not (cut == 1).any():
        _mark_one(cut, mask, plan)
    if plan.flip:
        cut = cut[:, ::-1]
    out = torch.zeros(3, image_size, image_size)
    region = out[:, :height, :width]
    for channel, plane in enumerate(pixels):  # one by one: a channel stays in the processor's cache
        plane = blur(plane.float()) if plan.blur else plane
        torch.mul(plane, _SCALE[channel], out=region[channel]).add_(_SHIFT[channel])
    if plan.angle:
        outside = cut == _PADDING
        np.copyto(region.numpy(), 0, where=outside)
        cut = np.where(outside, np.uint8(IGNORE_INDEX), cut)
    out_mask = np.full((image_size, image_size), IGNORE_INDEX, dtype=np.uint8)
    out_mask[:height, :width] = cut
    return Sample(out, torch.from_numpy(out_mask), plan.window)


def blur(plane: Tensor) -> Tensor:
    """Gaussian blur of one channel (H, W), floats, with the kernel [1, 4, 6, 4, 1] / 16 in both directions.

    That is OpenCV's kernel of 5 pixels, which the PFENet family takes. Sums of shifted planes are several times as fast
    as a convolution on a CPU.
    """
    height, width = plane.shape
    wide = functional.pad(plane[None, None], (2, 2, 2, 2), mode="replicate")[0, 0]
    tall = torch.add(wide[1 : 1 + height], wide[3 : 3 + height]).mul_(4).add_(wide[2 : 2 + height], alpha=6)
    tall.add_(wide[:height]).add_(wide[4:])
    row = torch.add(tall[:, 1 : 1 + width], tall[:, 3 : 3 + width]).mul_(4).add_(tall[:, 2 : 2 + width], alpha=6)
    return row.add_(tall[:, :width]).add_(tall[:, 4:]).mul_(1 / 256)


def _straight(image: NDArray[np.uint8], mask: NDArray[np.uint8], plan: Placement) -> tuple[Tensor, NDArray[np.uint8]]:
    """Window of the scaled image, (3, h, w) uint8, mirrored if the plan says so, and of the mask, (h, w), which is not.

    Only the part of the original below the window is read.
    """
    (height, width), (high, wide) = plan.source, plan.scaled
    bottom, right = plan.top + plan.window[0], plan.left + plan.window[1]
    box = (plan.left * width / wide, plan.top * height / high, right * width / wide, bottom * height / high)
    box = (box[0], box[1], min(box[2], width), min(box[3], height))
    size = (plan.window[1], plan.window[0])
    picture = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, box=box, reducing_gap=3.0)
    if plan.flip:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    rows = ((np.arange(plan.top, bottom) + 0.5) * height / high).astype(np.int64)
    columns = ((np.arange(plan.left, right) + 0.5) * width / wide).astype(np.int64)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1), mask.take(rows, axis=0).take(columns, axis=1)


def _turned(image: NDArray[np.uint8], mask: NDArray[np.uint8], plan: Placement) -> tuple[Tensor, NDArray[np.uint8]]:
    """As `_straight` with rotation: one affine resampling, floats; `_PADDING` in the mask outside the image."""
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
    if (shrink := int(min(across, down))) > 1:  # bilinear steps over pixels: let whole ones be averaged first
        image = np.array(Image.fromarray(image).reduce(shrink))
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    rows, columns = torch.arange(size[1])[:, None] + 0.5, torch.arange(size[0]) + 0.5
    if plan.flip:
        columns = columns.flip(0)
    places = torch.empty(1, size[1], size[0], 2)  # in [-1, 1] over the original
    torch.add((columns * a + c) * (2 / width) - 1, rows * (b * 2 / width), out=places[0, ..., 0])
    torch.add((columns * d + f) * (2 / height) - 1, rows * (e * 2 / height), out=places[0, ..., 1])
    turned = functional.grid_sample(pixels, places, mode="bilinear", padding_mode="border", align_corners=False)
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


def turn_hue(image: NDArray[np.uint8], share: float) -> NDArray[np.uint8]:
    """Turn the hue of every pixel of an RGB image (H, W, 3) by `share` of the colour circle; greys stay grey."""
    hsv = np.asarray(Image.fromarray(image).convert("HSV")).copy()
    hsv[..., 0] += np.uint8(round(share * 256) % 256)  # uint8 arithmetic wraps round the circle
    return np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))
