"""The background families of `shapes5i`, and the pixel operations used for all its drawing.

`shapes_draw` is the caller; its rules hold here too: random numbers come from `random.Random` alone, and
arrays see only operations that IEEE 754 rounds exactly, so that every machine draws the same. A family has colours and
statistics of its own, and varies within them; its function takes the x and y of each pixel, (H, W), and returns RGB
in [0, 1], (H, W, 3).
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Sequence
from random import Random

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def _gradient(x: Array, y: Array, rng: Random) -> Array:
    """Two sky colours that run into each other: no edges at all."""
    a = hsv(rng.uniform(0.50, 0.60), rng.uniform(0.10, 0.30), rng.uniform(0.82, 0.98))
    b = hsv(rng.uniform(0.54, 0.66), rng.uniform(0.30, 0.52), rng.uniform(0.52, 0.78))
    dx, dy = direction(rng, 180)
    along = x * dx + y * dy
    along = (along - along.min()) / (along.max() - along.min())
    return a + (along * along if rng.random() < 0.5 else along)[..., None] * (b - a)


def _grating(x: Array, y: Array, rng: Random) -> Array:
    """Sand and wood: parallel bars of two browns, of one direction and period."""
    hue = rng.uniform(0.065, 0.115)
    a = hsv(hue, rng.uniform(0.22, 0.42), rng.uniform(0.78, 0.92))
    b = hsv(hue - rng.uniform(0.0, 0.03), rng.uniform(0.38, 0.58), rng.uniform(0.45, 0.64))
    dx, dy = direction(rng, 180)
    bend = 4 * (value_noise(x, y, 40, rng) - 0.5)
    bars = wave((x * dx + y * dy + bend) / rng.uniform(7, 15))
    sharp = rng.uniform(1.0, 2.5)
    return a + np.clip((bars - 0.5) * sharp + 0.5, 0, 1)[..., None] * (b - a)


def _clouds(x: Array, y: Array, rng: Random) -> Array:
    """Foliage: noise of several octaves in dark greens."""
    hue = rng.uniform(0.24, 0.42)
    a = hsv(hue, rng.uniform(0.30, 0.50), rng.uniform(0.12, 0.24))
    b = hsv(hue - rng.uniform(0.0, 0.06), rng.uniform(0.22, 0.42), rng.uniform(0.50, 0.68))
    cell, total = rng.uniform(18, 34), np.zeros_like(x)
    for finer, weight in ((1.0, 0.5), (2.3, 0.28), (5.3, 0.22)):
        total = total + weight * value_noise(x, y, cell / finer, rng)
    return a + np.clip((total - 0.5) * 1.9 + 0.5, 0, 1)[..., None] * (b - a)


def _blobs(x: Array, y: Array, rng: Random) -> Array:
    """Confetti: dots of two sizes of colour, light pinks and lilacs, on a lighter ground."""
    hue = rng.uniform(0.84, 0.97)
    image = np.broadcast_to(hsv(hue, rng.uniform(0.06, 0.16), rng.uniform(0.88, 0.97)), (*x.shape, 3)).copy()
    tones = [hsv(hue + rng.uniform(-0.06, 0.06), rng.uniform(0.22, 0.42), rng.uniform(0.62, 0.86)) for _ in range(2)]
    pitch, height, width = rng.uniform(11, 19), *x.shape
    for row in range(-1, int(height / pitch) + 2):
        for column in range(-1, int(width / pitch) + 2):
            cx = (column + 0.5 * (row % 2) + 0.5 * rng.random()) * pitch
            cy = (row + 0.5 * rng.random()) * pitch
            radius = pitch * rng.uniform(0.2, 0.42)
            tone = tones[rng.randrange(2)]
            rows = slice(max(0, int(cy - radius) - 1), max(0, int(cy + radius) + 2))
            columns = slice(max(0, int(cx - radius) - 1), max(0, int(cx + radius) + 2))
            dx, dy = x[rows, columns] - cx, y[rows, columns] - cy
            cover = soft(radius - np.sqrt(dx * dx + dy * dy))[..., None]
            image[rows, columns] += cover * (tone - image[rows, columns])
    return image


def _bricks(x: Array, y: Array, rng: Random) -> Array:
    """A wall: bricks of differing greyish browns and reds in rows, with light mortar between them."""
    hue = rng.uniform(-0.02, 0.05)
    brick = hsv(hue, rng.uniform(0.25, 0.45), rng.uniform(0.40, 0.56))
    mortar = hsv(hue + 0.08, rng.uniform(0.05, 0.15), rng.uniform(0.70, 0.84))
    dx, dy = direction(rng, 12)
    long, short = rng.uniform(19, 28), rng.uniform(9, 13)
    v = (y * dx - x * dy) / short + 40 + rng.random()
    row = np.floor(v)
    u = (x * dx + y * dy) / long + 40 + rng.random() + 0.5 * (row % 2)
    column = np.floor(u)
    tones = 0.72 + 0.56 * random_array(rng, (97, 89))
    tone = tones[row.astype(np.int64) % 97, column.astype(np.int64) % 89]
    gap = np.minimum(np.minimum(u - column, 1 - u + column) * long, np.minimum(v - row, 1 - v + row) * short)
    return mortar + soft(gap - 0.9)[..., None] * (brick * tone[..., None] - mortar)


FAMILIES: dict[str, Callable[[Array, Array, Random], Array]] = {
    "gradient": _gradient,
    "grating": _grating,
    "clouds": _clouds,
    "blobs": _blobs,
    "bricks": _bricks,
}
FAMILY_NAMES = tuple(FAMILIES)
"""Background families; position = number of the family."""


# --- numbers ----------------------------------------------------------------------------------------------------------


def unit(degrees: float) -> tuple[float, float]:
    """Cosine and sine. Rounded, since the last digit may differ between C libraries."""
    angle = math.radians(degrees)
    return round(math.cos(angle), 9), round(math.sin(angle), 9)


def direction(rng: Random, within: float) -> tuple[float, float]:
    return unit(within * (2 * rng.random() - 1))


def hsv(hue: float, saturation: float, value: float) -> Array:
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value))


def wave(t: Array) -> Array:
    """Triangle wave of period 1 in [0, 1]."""
    return np.abs(2 * (t - np.floor(t)) - 1)


def soft(distance: Array) -> Array:
    """Cover of a pixel whose centre lies `distance` pixels inside an edge."""
    return np.clip(distance + 0.5, 0, 1)


def random_array(rng: Random, shape: Sequence[int]) -> Array:
    """Numbers in [0, 1], in steps of 1/255."""
    count = math.prod(shape)
    return np.frombuffer(rng.randbytes(count), dtype=np.uint8).reshape(shape) / 255.0


def value_noise(x: Array, y: Array, cell: float, rng: Random) -> Array:
    """Smooth noise in [0, 1]: random values on a lattice of `cell` pixels, blended between its points."""
    u, v = x / cell + rng.random(), y / cell + rng.random()
    i, j = np.floor(u).astype(np.int64), np.floor(v).astype(np.int64)
    lattice = random_array(rng, (int(j.max()) + 2, int(i.max()) + 2))
    s, t = u - i, v - j
    s, t = s * s * (3 - 2 * s), t * t * (3 - 2 * t)
    above = lattice[j, i] + s * (lattice[j, i + 1] - lattice[j, i])
    below = lattice[j + 1, i] + s * (lattice[j + 1, i + 1] - lattice[j + 1, i])
    return above + t * (below - above)
