"""The order of work of `fsseg.data.transforms` against the straightforward one.

Both build the same training episodes from the same JPEGs in the same run: `python tests/benchmarks/loading_orders.py`.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from fsseg.data.images import decode_image
from fsseg.data.pixels import MEAN, STD, render
from fsseg.data.source import IGNORE_INDEX
from fsseg.data.transforms import CROP_TRIES, TrainTransform


@dataclass(frozen=True)
class Side:
    """One order of work, on one core.

    Attributes:
        ms: median milliseconds of a 1-shot training episode (two images, two masks), decoding included; processor time,
            so that other load on the machine counts little.
        decode_ms: the part of it that decodes the JPEGs and PNGs.
        kept: mean share of the foreground that the crop keeps.
        below: share of crops that keep less than `crop_keep`.
    """

    ms: float
    decode_ms: float
    kept: float
    below: float


@dataclass(frozen=True)
class OrderComparison:
    """Both orders on the same episodes; `ratio` is the median over the episodes of straightforward / ours: the two were
    timed one right after the other."""

    ours: Side
    straightforward: Side
    ratio: float


def compare_orders(
    transform: TrainTransform, pictures: Sequence[tuple[bytes, bytes]], episodes: int = 60, seed: int = 0
) -> OrderComparison:
    """Time both orders of work.

    The straightforward order decodes both with Pillow, then scales, rotates, blurs and mirrors the whole image in
    float32 with torchvision's functions (masks likewise, nearest neighbour), then draws crops on the finished mask
    until one keeps enough. Both draw the same scale, angle, blur and flip, and the same kind of crop; both run in this
    process on one thread, episode by episode in turn, so that other load on the machine hits both alike.

    Args:
        pictures: (JPEG bytes, PNG bytes with 1 = foreground), e.g. of `draw_pictures`.
        episodes: timed, after five that are not.
        seed: of the augmentation.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times: tuple[list[float], list[float]] = ([], [])
    decodes: tuple[list[float], list[float]] = ([], [])
    kept: tuple[list[float], list[float]] = ([], [])
    try:
        for number in range(-5, episodes):
            for side, build in enumerate((_build_ours, _build_straightforward)):
                shares, decode, start = [], 0.0, time.process_time()
                for role in range(2):
                    jpeg, png = pictures[(2 * number + role) % len(pictures)]
                    share, seconds = build(jpeg, png, transform, Random(f"bench {seed} {number} {role}"))
                    shares.append(share)
                    decode += seconds
                if number >= 0:
                    times[side].append(time.process_time() - start)
                    decodes[side].append(decode)
                    kept[side].extend(shares)
    finally:
        torch.set_num_threads(threads)
    ours, straightforward = (
        Side(
            ms=1e3 * statistics.median(times[side]),
            decode_ms=1e3 * statistics.median(decodes[side]),
            kept=statistics.fmean(kept[side]),
            below=sum(k < transform.crop_keep for k in kept[side]) / len(kept[side]),
        )
        for side in range(2)
    )
    return OrderComparison(ours, straightforward, statistics.median(plain / own for own, plain in zip(*times)))


def _build_ours(jpeg: bytes, png: bytes, transform: TrainTransform, random: Random) -> tuple[float, float]:
    start = time.process_time()
    image, mask = decode_image(jpeg, transform.longer_side), _decode(png)
    decoded = time.process_time() - start
    plan = transform.place(mask, random)
    render(image, mask, plan, transform.image_size, keep_foreground=True)
    return plan.kept, decoded


def _build_straightforward(jpeg: bytes, png: bytes, transform: TrainTransform, random: Random) -> tuple[float, float]:
    start = time.process_time()
    image, mask = _decode(jpeg), _decode(png)
    decoded = time.process_time() - start
    return straightforward(image, mask, transform, random)[2], decoded


def _decode(data: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as picture:
        return np.array(picture)


def straightforward(
    image: NDArray[np.uint8], mask: NDArray[np.uint8], transform: TrainTransform, random: Random
) -> tuple[Tensor, Tensor, float]:
    """The same random transform done the plain way: whole float images step by step, the crop last.

    Returns:
        image (3, S, S) float32 and mask (S, S) float32 as `TrainTransform` makes them, and the share of the foreground
        kept, counted in the transformed mask.
    """
    from torchvision.transforms.v2 import InterpolationMode, functional

    nearest, bilinear = InterpolationMode.NEAREST_EXACT, InterpolationMode.BILINEAR
    size = transform.image_size
    plan = transform.draw(mask.shape, random)
    pixels = torch.from_numpy(image).permute(2, 0, 1).float().div_(255)
    labels = torch.from_numpy(mask)[None].float()
    pixels = functional.resize(pixels, list(plan.scaled), bilinear, antialias=True)
    labels = functional.resize(labels, list(plan.scaled), nearest)
    if plan.angle:
        pixels = functional.rotate(pixels, plan.angle, bilinear, fill=list(MEAN))
        labels = functional.rotate(labels, plan.angle, InterpolationMode.NEAREST, fill=[float(IGNORE_INDEX)])
    if plan.blur:
        pixels = functional.gaussian_blur(pixels, [5, 5])
    if plan.flip:
        pixels, labels = functional.horizontal_flip(pixels), functional.horizontal_flip(labels)
    height, width = plan.scaled
    total = int((labels == 1).sum())
    best, best_kept = (0, 0), -1.0
    for _ in range(CROP_TRIES):
        top, left = (
            int(random.random() * (max(height - size, 0) + 1)),
            int(random.random() * (max(width - size, 0) + 1)),
        )
        inside = int((labels[0, top : top + size, left : left + size] == 1).sum())
        kept = inside / total if total else 1.0
        if kept > best_kept:
            best, best_kept = (top, left), kept
        if kept >= transform.crop_keep:
            break
    top, left = best
    pixels = functional.normalize(pixels[:, top : top + size, left : left + size], list(MEAN), list(STD))
    labels = labels[0, top : top + size, left : left + size]
    space = [0, size - pixels.shape[2], 0, size - pixels.shape[1]]
    pixels = torch.nn.functional.pad(pixels, space, value=0.0)
    labels = torch.nn.functional.pad(labels, space, value=float(IGNORE_INDEX))
    return pixels, labels, best_kept


def draw_pictures(count: int, seed: int, size: tuple[int, int] = (375, 500)) -> list[tuple[bytes, bytes]]:
    """(JPEG, PNG mask) files of `size` (height, width): an ellipse on clutter; bytes about as many as VOC's."""
    height, width = size
    files = []
    for number in range(count):
        draw = np.random.default_rng((seed, number))
        coarse = draw.integers(0, 256, (height // 12, width // 12, 3), dtype=np.uint8)
        ground = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        pixels = np.asarray(ground, dtype=np.float64) + draw.normal(0, 9, (height, width, 3))
        mask = Image.new("L", (width, height), 0)
        high, wide = draw.uniform(0.25, 0.9) * height, draw.uniform(0.25, 0.9) * width
        top, left = draw.uniform(0, height - high), draw.uniform(0, width - wide)
        ImageDraw.Draw(mask).ellipse((left, top, left + wide, top + high), fill=1)
        pixels[np.asarray(mask) == 1] = pixels[np.asarray(mask) == 1] * 0.5 + draw.uniform(0, 128, 3)
        jpeg, png = io.BytesIO(), io.BytesIO()
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(jpeg, "JPEG", quality=90)
        mask.save(png, "PNG")
        files.append((jpeg.getvalue(), png.getvalue()))
    return files


def format_comparison(found: OrderComparison) -> str:
    """The comparison in three lines of plain text."""
    lines = []
    for name, side in (("fsseg", found.ours), ("straightforward", found.straightforward)):
        lines.append(
            f"  {name:<15} {side.ms:7.1f} ms, {side.decode_ms:4.1f} of them to decode; the crop keeps "
            f"{100 * side.kept:.1f} % of the foreground, {100 * side.below:.1f} % of crops less than the limit"
        )
    return "\n".join([*lines, f"  {found.ratio:.2f} times as fast"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=473, help="side of the network input in pixels (default: 473)")
    parser.add_argument("--episodes", type=int, default=60, help="episodes timed (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="of the pictures and the augmentation (default: 0)")
    arguments = parser.parse_args()
    transform = TrainTransform(arguments.size, (0.9, 1.1), 10.0, 1.0)  # every step is done to every image
    print(f"1-shot training episode at {arguments.size} px from 500 x 375 JPEGs, one core")
    print(f"(scale 0.9-1.1, rotation 10 degrees, blur always), {arguments.episodes} episodes:")
    pictures = draw_pictures(16, arguments.seed)
    print(format_comparison(compare_orders(transform, pictures, arguments.episodes, arguments.seed)))


if __name__ == "__main__":
    main()
