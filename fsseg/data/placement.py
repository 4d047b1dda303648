"""Where an image lands in the network's square, decided on its mask before any pixel of the image is computed.

Called by `fsseg.data.transforms`, which draws placements, and by `fsseg.data.pixels`, which makes their pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Placement:
    """Where an image lands: scaled to `scaled`, turned about its centre, a window cut out, mirrored, put in the square.

    Attributes:
        source: (height, width) of the original.
        scaled: (height, width) of the whole image after scaling.
        top, left: corner of the window in the scaled image.
        window: (height, width) of the window: the part of the network input that is image.
        angle: degrees, counter-clockwise.
        flip: mirrored left-right.
        blur: blurred.
        kept: share of the foreground in the window; 1 if the image has none.
        corner: (row, column) of the window's upper left corner in the square.
        black: padding is black; False: it has the mean colour.
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
    corner: tuple[int, int] = (0, 0)
    black: bool = False


def fitted(height: int, width: int, longer: float) -> tuple[int, int]:
    """(height, width) with the longer side `longer`, in the same aspect, each at least 1."""
    factor = longer / max(height, width)
    return max(1, round(height * factor)), max(1, round(width * factor))


def floored(height: int, width: int, longer: int) -> tuple[int, int]:
    """(height, width) with the longer side `longer`, the other cut to whole pixels, then each floored to a multiple of
    8, at least 8."""
    factor = longer / max(height, width)
    sides = [longer if side == max(height, width) else int(side * factor) for side in (height, width)]
    down, across = (max(8, side // 8 * 8) for side in sides)
    return down, across


def below_a_cell(pixels: int, source: tuple[int, int], scaled: tuple[int, int], cell: int) -> bool:
    """Whether an object takes less than one feature cell at network size: no cell is full of it.

    Args:
        pixels: of the object, in its image at original size.
        source, scaled: (height, width) of that image, and of what the network gets of it.
        cell: pixels from one feature cell to the next.
    """
    return pixels * scaled[0] * scaled[1] < cell**2 * source[0] * source[1]


class Foreground:
    """Counts the foreground in windows of a placed mask without resampling: a pixel counts where its centre lands.

    After a rotation the share is relative to the foreground still in the image. An object of more than 16384 pixels is
    counted on every second row and column, which changes the share by well under 0.01.
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
        """(top, left) of the window around the middle one of the foreground pixels, moved to lie within the image."""
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
        """Whether the bounding box of the foreground lies inside a window."""
        y0, y1, x0, x1 = self._box
        return top <= y0 and y1 <= bottom and left <= x0 and x1 <= right

    def _land(self, ys: NDArray[Any], xs: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Positions of the centres of original pixels (rows, columns) after scaling and rotation."""
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
