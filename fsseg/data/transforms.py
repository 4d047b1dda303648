"""From an image and its mask at original size to the network's square input: fit, augment, crop, pad, normalise.

Called by `fsseg.data.loader` for every image of an episode. The geometry (scale, rotation, flip, crop) is decided
first, on the mask alone (`fsseg.data.placement`); then one resampling produces the pixels of the crop window
(`fsseg.data.pixels`). Blur comes after the crop, floats last.

How an image comes into the square of S = `image_size` pixels (`fit`, of `protocol.fit`):

- `longer_side`: the longer side becomes S, the aspect is kept. The random scale of training is relative to that, so
  that training and evaluation see objects at the same size on average. The image lies in the upper left corner, in
  training too; padding has the mean colour.
- `squash` (HSNet, HDMNet): both sides become S; there is no padding, and in training neither scale nor crop.
- `pfenet` (PFENet, BAM): at test the longer side becomes S, then both sides are floored to multiples of 8; the image
  lies in the upper left corner, padding is black. In training the image is scaled by the random factor of its own size
  and cropped; where it is smaller than the square it lies in the middle, and padding has the mean colour. So PASCAL's
  500-pixel images are 6 % larger in training than at test.

`Sample.picture` tells picture from padding. The methods here leave padding out, of any fit; in the published codes it
takes part like any other pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from random import Random

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fsseg.data.pixels import Sample, render, render_image, render_mask
from fsseg.data.placement import Foreground, Placement, fitted, floored

CROP_TRIES = 30
"""Crops drawn before the best one is taken (PFENet's SemSeg transforms)."""
REDUCED_MARGIN = 2
"""Sides of a JPEG decoded at reduced size are at least this many times those of the network input. Anti-aliased scaling
then hides the difference: on photographs the mean is below 0.7 of 255 levels, and 99 % of the values differ by at most
4 (`tests/data/test_images.py`)."""


@dataclass(frozen=True)
class TrainTransform:
    """Random transform of training images; the fields are those of `DatasetConfig`, and `ProtocolConfig.fit`."""

    image_size: int
    scale_range: tuple[float, float] = (0.9, 1.1)
    rotate_degrees: float = 0.0
    blur_probability: float = 0.0
    flip_probability: float = 0.5
    crop_keep: float = 0.85
    fit: str = "longer_side"

    @property
    def longer_side(self) -> int | None:
        """Pixels of an image's longer side that suffice; more make no visible difference. None: all of them.

        A crop may show a part of a large image at its own size (`pfenet`), or a short side may be enlarged (`squash`).
        """
        if self.fit != "longer_side":
            return None
        return math.ceil(REDUCED_MARGIN * self.image_size * self.scale_range[1])

    def __call__(self, image: NDArray[np.uint8], mask: NDArray[np.uint8], random: Random) -> Sample:
        """Transform (H, W, 3) uint8, or the same reduced (see `Source.image`), and its (H, W) uint8 mask. Some
        foreground of the mask always remains."""
        return render(image, mask, self.place(mask, random), self.image_size, keep_foreground=True)

    def of_labels(self, image: NDArray[np.uint8], labels: NDArray[np.uint8], random: Random) -> Sample:
        """As a call, with a label map (H, W) of many classes: the crop is any, and no object is kept in it."""
        return render(image, labels, self.place(np.zeros_like(labels), random), self.image_size, keep_foreground=False)

    def place(self, mask: NDArray[np.uint8], random: Random) -> Placement:
        """Draw the geometry: scale, angle, blur and flip, then the crop."""
        return self._crop(self.draw(mask.shape, random), mask, random)

    def draw(self, size: tuple[int, ...], random: Random) -> Placement:
        """All but the crop, for an image of `size` (height, width).

        Each switch draws its random number even when off, so that it does not change the draws of the others.
        """
        low, high = self.scale_range
        scale = low + (high - low) * random.random()
        angle = (2 * random.random() - 1) * self.rotate_degrees
        blur = random.random() < self.blur_probability
        flip = random.random() < self.flip_probability
        height, width = size
        scaled = self._scaled(height, width, scale)
        window = (min(scaled[0], self.image_size), min(scaled[1], self.image_size))
        plan = Placement((height, width), scaled, 0, 0, window, angle, flip, blur)
        if self.fit == "pfenet":
            return replace(plan, corner=((self.image_size - window[0]) // 2, (self.image_size - window[1]) // 2))
        return plan

    def _scaled(self, height: int, width: int, scale: float) -> tuple[int, int]:
        if self.fit == "squash":
            return self.image_size, self.image_size
        if self.fit == "pfenet":
            return fitted(height, width, max(height, width) * scale)
        return fitted(height, width, self.image_size * scale)

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
    fit: str = "longer_side"

    @property
    def longer_side(self) -> int | None:
        """As in `TrainTransform`."""
        return None if self.fit == "squash" else REDUCED_MARGIN * self.image_size

    def __call__(self, image: NDArray[np.uint8], mask: NDArray[np.uint8], keep_foreground: bool = False) -> Sample:
        """Both as `TrainTransform` does."""
        pixels, picture = self.image(image, mask.shape)
        return Sample(pixels, self.mask(mask, keep_foreground), picture, self.place(mask.shape).window)

    def image(self, image: NDArray[np.uint8], size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """`Sample.image` and `Sample.picture` of an image (H, W, 3) uint8 of `size`, or the same reduced."""
        return render_image(image, self.place(size), self.image_size)

    def mask(self, mask: NDArray[np.uint8], keep_foreground: bool = False) -> Tensor:
        """`Sample.mask` of a mask; `keep_foreground` saves one pixel of an object that nearest neighbour would lose
        (supports)."""
        return render_mask(mask, self.place(mask.shape), self.image_size, keep_foreground)

    def place(self, size: tuple[int, ...]) -> Placement:
        """Where an image of `size` (height, width) lands."""
        height, width = size
        if self.fit == "squash":
            scaled = (self.image_size, self.image_size)
        else:
            scaled = (floored if self.fit == "pfenet" else fitted)(height, width, self.image_size)
        return Placement((height, width), scaled, 0, 0, scaled, black=self.fit == "pfenet")
