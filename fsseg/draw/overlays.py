"""Predicted masks over their images, each class in a colour of its own. `fsseg.engine.predict_files` calls it."""

from __future__ import annotations

import colorsys

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_FIRST = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (240, 228, 66))
"""Okabe and Ito's palette, the blue of predictions on the sheets first; their orange is that of support masks."""
_GOLDEN = 0.61803398875  # turns of the colour wheel between two further classes, so that neighbours differ


def class_colours(count: int) -> NDArray[np.uint8]:
    """RGB of class numbers, (count + 1, 3); 0, the background, is black."""
    more = [colorsys.hsv_to_rgb(n * _GOLDEN % 1, 0.65, 0.9) for n in range(count - len(_FIRST))]
    colours = [(0, 0, 0), *_FIRST[:count], *(tuple(round(255 * part) for part in colour) for colour in more)]
    return np.array(colours, dtype=np.uint8)


def overlay(image: NDArray[np.uint8], labels: NDArray[np.uint8], colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """An image (H, W, 3) uint8 with class numbers as tint and outline; the background is dimmed.

    Args:
        image: the whole image, at any size.
        labels: (H', W') uint8, brought to the image's size by nearest neighbour.
        colours: as of `class_colours`.
    """
    height, width = image.shape[:2]
    if labels.shape != (height, width):
        labels = np.asarray(Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST))
    painted = colours[labels]
    found = labels > 0
    out = np.where(found[..., None], image // 8 * 5 + painted // 8 * 3, image // 8 * 5)
    border = _outline(labels, max(1, max(height, width) // 300))
    out[border & ~found] = 255  # white outside, the colour inside: the border shows on any background
    out[border & found] = painted[border & found]
    return out.astype(np.uint8)


def _outline(labels: NDArray[np.uint8], thickness: int) -> NDArray[np.bool_]:
    """Pixels with another label within `thickness` rows or columns."""
    found = np.zeros(labels.shape, dtype=np.bool_)
    for shift in range(1, thickness + 1):
        for one, other in ((np.s_[shift:], np.s_[:-shift]), (np.s_[:, shift:], np.s_[:, :-shift])):
            differ = labels[one] != labels[other]
            found[one] |= differ
            found[other] |= differ
    return found
