"""How one image of `shapes5i` is drawn: the classes, and each number that sets the difficulty.

`shapes` calls `deal` and `draw_image` and writes the files. Equal inputs give equal pixels on any machine: random
numbers come from `random.Random` alone, and arrays see only operations that IEEE 754 rounds exactly (no sine, no power,
no sum of floats whose order is open). Coordinates are (x, y) in pixels at pixel centres; images are float64 RGB in
[0, 1] until the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray

from fsseg.data.source import IGNORE_INDEX
from fsseg.data.sources.shapes_backgrounds import (
    FAMILIES,
    FAMILY_NAMES,
    Array,
    direction,
    hsv,
    random_array,
    soft,
    unit,
    wave,
)

VERSION = 1
"""Version; raise it when the code below draws something else. A change of `Recipe` needs no raise."""


@dataclass(frozen=True)
class Recipe:
    """What makes the data set easy or hard. A change leads to another folder, never to a mixture (see `shapes.py`)."""

    side: tuple[int, int] = (97, 129)
    """Smallest and largest image side, in pixels; both sides are drawn on their own."""
    object_shares: tuple[float, float, float] = (0.10, 0.40, 0.50)
    """Shares of images with 1, 2 and 3 objects, each object of another class."""
    look_alike: float = 0.5
    """Probability that a further object shares the colour, shape or texture of the first, where the counts allow it."""
    area: tuple[float, float] = (0.075, 0.135)
    """Area of an object before overlaps, as a share of the image."""
    visible: float = 0.72
    """Smallest share of an object that overlaps and the image's edge leave to be seen."""
    boundary: float = 0.9
    """Half the width of the 255 band round each object, in pixels."""
    aspect: float = 1.15
    """Largest stretch of an object along one of its axes against the other."""
    turn: float = 180.0
    """Objects turn by up to this many degrees either way."""
    hue_jitter: float = 0.022
    """Largest change of a class's hue (the circle is 1; neighbouring class colours are about 0.16 apart)."""
    saturation: tuple[float, float] = (0.68, 0.95)
    value: tuple[float, float] = (0.74, 0.97)
    """Saturation and brightness of objects: drawn anew for each."""
    second_tone: tuple[float, float] = (0.30, 0.45)
    """Brightness of a texture's second tone relative to its first."""
    period: tuple[float, float] = (0.40, 0.50)
    """Period of a texture relative to the object's equivalent radius sqrt(area / pi)."""
    ambient: float = 0.18
    """Share of the background's mean colour in an object's colour: the light of a scene falls on its objects too.
    `dataset.ambient` sets it."""
    shading: float = 0.18
    """Brightness falls by up to this share from one side of the image to the other."""
    noise: float = 0.035
    """Largest noise of a pixel."""


COLOURS = {"red": 0.995, "yellow": 0.145, "green": 0.345, "blue": 0.60, "purple": 0.79}
"""Hue of each colour name."""
CLASS_PARTS = (
    ("red", "dotted", "cross"),
    ("yellow", "checkered", "disc"),
    ("green", "plain", "square"),
    ("blue", "plain", "star"),
    ("purple", "striped", "triangle"),
    # fold 1
    ("red", "checkered", "star"),
    ("yellow", "dotted", "triangle"),
    ("green", "striped", "cross"),
    ("blue", "dotted", "square"),
    ("purple", "plain", "disc"),
    # fold 2
    ("red", "plain", "triangle"),
    ("yellow", "striped", "star"),
    ("green", "dotted", "disc"),
    ("blue", "checkered", "cross"),
    ("purple", "checkered", "square"),
    # fold 3
    ("red", "striped", "square"),
    ("yellow", "plain", "cross"),
    ("green", "checkered", "triangle"),
    ("blue", "striped", "disc"),
    ("purple", "dotted", "star"),
)
"""(colour, texture, shape) of each class; fold f holds classes 5f..5f+4.

A fold has each colour and each shape once, and each texture. Of the 20 classes 4 share each colour, 4 each shape and 5
each texture, so one property never identifies a class; any two of them do.
"""
CLASSES = tuple(" ".join(parts) for parts in CLASS_PARTS)
"""Class names such as "red striped triangle"; position = class_id."""


@dataclass(frozen=True)
class Layout:
    """What an image holds.

    Attributes:
        family: position in `FAMILIES`.
        class_ids: its objects, back to front.
    """

    family: int
    class_ids: tuple[int, ...]


def deal(num_images: int, rng: Random, recipe: Recipe) -> list[Layout]:
    """Deal families and classes to images so that each class stands on each family about equally often."""
    counts = np.zeros((len(FAMILIES), len(CLASSES)), dtype=np.int64)
    layouts: list[Layout] = []
    families: list[int] = []
    sizes: list[int] = []
    for _ in range(num_images):
        if not families:
            families = list(range(len(FAMILIES)))
            rng.shuffle(families)
        if not sizes:  # a deck of 20, so that the shares hold for few images too
            ends = [round(20 * sum(recipe.object_shares[: n + 1])) for n in range(3)]
            sizes = [next(n for n in range(3) if card < ends[n]) + 1 for card in range(20)]
            rng.shuffle(sizes)
        family, size = families.pop(), sizes.pop()
        chosen: list[int] = []
        while len(chosen) < size:
            similar = bool(chosen) and rng.random() < recipe.look_alike
            free = [c for c in range(len(CLASSES)) if c not in chosen]
            least = min(counts[family, c] for c in free)
            pool = [c for c in free if counts[family, c] <= least + 1] if similar else free
            pool = [c for c in pool if _alike(c, chosen[0])] or free if similar else pool
            # The class with the smaller count on this family first, then the smaller count in all; ties are random.
            chosen.append(min(pool, key=lambda c: (counts[family, c], counts[:, c].sum(), rng.random())))
            counts[family, chosen[-1]] += 1
        rng.shuffle(chosen)
        layouts.append(Layout(family, tuple(chosen)))
    return layouts


def _alike(a: int, b: int) -> bool:
    return any(x == y for x, y in zip(CLASS_PARTS[a], CLASS_PARTS[b]))


def draw_image(layout: Layout, rng: Random, recipe: Recipe) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw an image.

    Returns:
        the image, (H, W, 3) uint8 RGB, and its labels, (H, W) uint8: 0 background, class_id + 1, 255 boundary.
    """
    width, height = rng.randint(*recipe.side), rng.randint(*recipe.side)
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    image = FAMILIES[FAMILY_NAMES[layout.family]](x, y, rng)
    ambient = np.rint(image * 255).astype(np.int64).sum(axis=(0, 1)) / (255 * width * height)
    labels = np.zeros((height, width), dtype=np.uint8)
    for item in _place(layout.class_ids, x, y, rng, recipe):
        part = item.window  # views: writing to them writes to the whole
        colour = _object_colour(item, x[part], y[part], rng, recipe)
        colour = (1 - recipe.ambient) * colour + recipe.ambient * ambient
        cover = np.clip(0.5 - item.distance, 0, 1)[..., None]
        image[part] = (1 - cover) * image[part] + cover * colour
        labels[part][item.distance <= 0] = item.class_id + 1
        labels[part][np.abs(item.distance) <= recipe.boundary] = IGNORE_INDEX
    dx, dy = direction(rng, 180)
    along = ((x - width / 2) * dx + (y - height / 2) * dy) / max(width, height)
    image = image * (1 - recipe.shading * rng.random() * (0.5 + along))[..., None]
    image = image + recipe.noise * (random_array(rng, image.shape) - 0.5) * 2
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8), labels


# --- objects ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Item:
    """An object in place.

    Attributes:
        corners: its outline.
        centre, axis: origin and direction of its own x axis.
        area: in square pixels, before overlaps.
        window: rows and columns round it.
        distance: signed distance of the window's pixels to the outline, in pixels, negative inside.
    """

    class_id: int
    centre: tuple[float, float]
    axis: tuple[float, float]
    area: float
    window: tuple[slice, slice]
    distance: Array


def _outline(shape: str) -> list[tuple[float, float]]:
    """Corners of a shape, of any size, round the origin."""
    if shape == "disc":
        return [unit(360 * k / 36) for k in range(36)]
    if shape == "triangle":
        return [unit(120 * k - 90) for k in range(3)]
    if shape == "square":
        return [unit(90 * k + 45) for k in range(4)]
    if shape == "star":
        return [(r * a, r * b) for k in range(10) for r in [0.46 if k % 2 else 1.0] for a, b in [unit(36 * k - 90)]]
    arm = 0.34
    quarter = [(1.0, -arm), (1.0, arm), (arm, arm)]
    corners = []
    for _ in range(4):
        corners += quarter
        quarter = [(-b, a) for a, b in quarter]
    return corners


def _item(class_id: int, area: float, x: Array, y: Array, rng: Random, recipe: Recipe) -> _Item:
    """The class's shape with `area` square pixels, stretched, turned and moved into the image by chance."""
    stretch = math.sqrt(rng.uniform(1 / recipe.aspect, recipe.aspect))
    corners = [(a * stretch, b / stretch) for a, b in _outline(CLASS_PARTS[class_id][2])]
    after = [*corners[1:], corners[0]]
    unit_area = abs(sum(a * d - b * c for (a, b), (c, d) in zip(corners, after))) / 2
    scale = math.sqrt(area / unit_area)
    c, s = direction(rng, recipe.turn)
    corners = [(scale * (c * a - s * b), scale * (s * a + c * b)) for a, b in corners]
    # The box may stick out by a tenth of its side; `visible` bounds what that hides.
    centre = []
    for k, side in enumerate(reversed(x.shape)):
        low, high = min(p[k] for p in corners), max(p[k] for p in corners)
        start, end = -low - 0.1 * (high - low), side - high + 0.1 * (high - low)
        centre.append(start + (end - start) * rng.random() if start < end else side / 2)
    corners = [(a + centre[0], b + centre[1]) for a, b in corners]
    xs, ys = zip(*corners)
    window = (slice(max(0, int(min(ys)) - 3), int(max(ys)) + 4), slice(max(0, int(min(xs)) - 3), int(max(xs)) + 4))
    distance = _distance(corners, x[window], y[window])
    return _Item(class_id, (centre[0], centre[1]), (c, s), area, window, distance)


def _distance(corners: Sequence[tuple[float, float]], x: Array, y: Array) -> Array:
    """Signed distance of each pixel to an outline, in pixels, negative inside."""
    squared = np.full(x.shape, np.inf)
    inside = np.zeros(x.shape, dtype=bool)
    for (ax, ay), (bx, by) in zip(corners, [*corners[1:], corners[0]]):
        ex, ey, wx, wy = bx - ax, by - ay, x - ax, y - ay
        t = np.clip((wx * ex + wy * ey) / (ex * ex + ey * ey), 0, 1)
        dx, dy = wx - ex * t, wy - ey * t
        np.minimum(squared, dx * dx + dy * dy, out=squared)
        if ay != by:  # even-odd rule: the edges that a ray to the right crosses
            inside ^= ((ay > y) != (by > y)) & (wx < ex * wy / ey)
    root = np.sqrt(squared)
    return np.where(inside, -root, root)


def _place(class_ids: Sequence[int], x: Array, y: Array, rng: Random, recipe: Recipe) -> list[_Item]:
    """Find places that leave every object visible; try anew, a little smaller each time, until they do."""
    shrink = 1.0
    while True:
        items = [_item(c, shrink * rng.uniform(*recipe.area) * x.size, x, y, rng, recipe) for c in class_ids]
        owner = np.full(x.shape, -1)
        for number, item in enumerate(items):
            owner[item.window][item.distance <= 0] = number
        if all((owner == number).sum() >= recipe.visible * item.area for number, item in enumerate(items)):
            return items
        shrink *= 0.995


def _object_colour(item: _Item, x: Array, y: Array, rng: Random, recipe: Recipe) -> Array:
    """Colour at each pixel of the window as if the object covered it, (h, w, 3)."""
    colour_name, texture, _ = CLASS_PARTS[item.class_id]
    hue = COLOURS[colour_name] + recipe.hue_jitter * (2 * rng.random() - 1)
    first = hsv(hue, rng.uniform(*recipe.saturation), rng.uniform(*recipe.value))
    second = first * rng.uniform(*recipe.second_tone)
    period = math.sqrt(item.area / math.pi) * rng.uniform(*recipe.period)
    # Textures lie in the object's own axes and turn with it.
    (c, s), (cx, cy) = item.axis, item.centre
    u = ((x - cx) * c + (y - cy) * s) / period + rng.random()
    v = ((y - cy) * c - (x - cx) * s) / period + rng.random()
    if texture == "plain":
        weight = np.zeros_like(x)
    elif texture == "striped":
        weight = soft((wave(v) - 0.5) * period / 2)
    elif texture == "dotted":
        du, dv = u - np.floor(u) - 0.5, v - np.floor(v) - 0.5
        weight = soft((0.33 - np.sqrt(du * du + dv * dv)) * period)
    else:
        weight = soft((wave(u / 1.5) - 0.5) * period * 0.75)
        other = soft((wave(v / 1.5) - 0.5) * period * 0.75)
        weight = weight * (1 - other) + other * (1 - weight)
    return first + weight[..., None] * (second - first)
