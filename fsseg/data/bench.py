"""How fast episodes are made: the measurements behind `fsseg bench data`.

`bench_loading` times a data set as training reads it: episodes per second and memory per worker for several shots and
numbers of workers, and where the time goes. `compare_orders` times the transforms of `fsseg.data.transforms` against
the straightforward order of work on the same JPEGs in the same run. Nothing else imports this module.
"""

from __future__ import annotations

import io
import math
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor
from torch.utils.data import DataLoader

from fsseg.config import Config
from fsseg.data.episodes import EpisodeSampler
from fsseg.data.lists import train_lists
from fsseg.data.loader import EpisodeDataset, _start_worker, train_transform
from fsseg.data.source import IGNORE_INDEX, ClassIndex, Source, Split
from fsseg.data.transforms import CROP_TRIES, MEAN, STD, TrainTransform, render
from fsseg.data.types import Episode, collate
from fsseg.errors import UserError


@dataclass(frozen=True)
class LoadingRow:
    """One measurement.

    Attributes:
        dataset: name.
        image_size: side of the network input in pixels.
        shot: K.
        workers: loader processes; 0 loads in the main one.
        episodes_per_second: after every worker has started and filled its queue.
        worker_mb: most memory that one worker (with 0 workers: the process) held for itself, in 2**20 bytes: private
            pages, sampled every few episodes; without /proc the process's peak, which counts shared pages too.
        decode_ms, mask_ms, transform_ms: mean milliseconds an episode inside a worker, by kind of work.
    """

    dataset: str
    image_size: int
    shot: int
    workers: int
    episodes_per_second: float
    worker_mb: float
    decode_ms: float
    mask_ms: float
    transform_ms: float


def bench_loading(
    source: Source,
    cfg: Config,
    shots: Sequence[int] = (1, 5),
    workers: Sequence[int] = (0, 1, 2, 3, 4),
    episodes: int = 48,
    batch_size: int = 4,
    progress: Callable[[LoadingRow], None] | None = None,
) -> list[LoadingRow]:
    """Time training episodes of one data set at its training size.

    Args:
        source, cfg: of the data set; fold, protocol, image size and augmentation are read from `cfg`.
        shots, workers: every combination is measured. A shot that the lists are too small for is left out.
        episodes: episodes timed per combination (rounded up to whole batches).
        batch_size: episodes per batch.
        progress: called with each row as it is measured.

    Raises:
        UserError: the data set is at fault, or too small for any of the shots.
    """
    rows, refused = [], None
    for shot in shots:
        try:
            lists = train_lists(
                source.index("train"), source.novel_classes(cfg.fold), cfg.protocol, shot, source.classes
            )
        except UserError as error:
            refused = error
            continue
        sampler = EpisodeSampler(lists, shot, cfg.seed, cfg.protocol.repeat_support)
        for count in workers:
            row = _measure(source, sampler, cfg, count, episodes, batch_size)
            rows.append(row)
            if progress:
                progress(row)
    if not rows and refused is not None:
        raise refused
    return rows


def _measure(
    source: Source, sampler: EpisodeSampler, cfg: Config, workers: int, episodes: int, batch: int
) -> LoadingRow:
    # every worker has two batches under way before its first is handed out: those are not timed
    warm = max(1, 2 * workers)
    timed = math.ceil(episodes / batch)
    specs = [sampler[e] for e in range((warm + timed) * batch)]
    transform = _TimedTransform(**asdict(train_transform(cfg)))
    dataset = _Timed(
        EpisodeDataset(_TimedSource(source), "train", specs, transform, cfg.seed, hue_shift=cfg.dataset.hue_shift)
    )
    loader: DataLoader[Any] = DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_size=batch,
        num_workers=workers,
        collate_fn=_collate_timed,
        worker_init_fn=_start_worker,
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # what a worker has, for 0 workers too
    try:
        splits: list[_Split] = []
        start = 0.0
        for number, (_, found) in enumerate(loader):
            if number + 1 > warm:
                splits += found
            if number + 1 == warm:
                start = time.perf_counter()
        seconds = time.perf_counter() - start
    finally:
        torch.set_num_threads(threads)
    return LoadingRow(
        dataset=source.name,
        image_size=transform.image_size,
        shot=sampler.shot,
        workers=workers,
        episodes_per_second=timed * batch / seconds,
        worker_mb=max(s.megabytes for s in splits),
        decode_ms=1e3 * statistics.fmean(s.decode for s in splits),
        mask_ms=1e3 * statistics.fmean(s.mask for s in splits),
        transform_ms=1e3 * statistics.fmean(s.transform for s in splits),
    )


@dataclass
class _Split:
    """Seconds of one episode by kind of work, and the process's memory."""

    decode: float = 0.0
    mask: float = 0.0
    transform: float = 0.0
    megabytes: float = 0.0


_split = _Split()  # of the episode under way in this process


class _TimedSource:
    """A `Source` whose image and mask calls are timed."""

    def __init__(self, source: Source) -> None:
        self.source, self.name, self.classes = source, source.name, source.classes

    def image(self, split: Split, image_id: str) -> NDArray[np.uint8]:
        start = time.perf_counter()
        out = self.source.image(split, image_id)
        _split.decode += time.perf_counter() - start
        return out

    def mask(self, split: Split, image_id: str, class_id: int, ignore_classes: Sequence[int] = ()) -> NDArray[np.uint8]:
        start = time.perf_counter()
        out = self.source.mask(split, image_id, class_id, ignore_classes)
        _split.mask += time.perf_counter() - start
        return out

    def index(self, split: Split) -> ClassIndex:
        return self.source.index(split)

    def novel_classes(self, fold: int) -> tuple[int, ...]:
        return self.source.novel_classes(fold)

    def background_family(self, split: Split, image_id: str) -> int | None:
        return self.source.background_family(split, image_id)


class _TimedTransform(TrainTransform):
    def __call__(self, image: NDArray[np.uint8], mask: NDArray[np.uint8], random: Random) -> Any:
        start = time.perf_counter()
        out = super().__call__(image, mask, random)
        _split.transform += time.perf_counter() - start
        return out


class _Timed:
    def __init__(self, dataset: EpisodeDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> tuple[Episode, _Split]:
        global _split
        _split = _Split()
        episode = self.dataset[i]
        if i % 7 == 0:
            _split.megabytes = own_megabytes()
        return episode, _split


def _collate_timed(items: Sequence[tuple[Episode, _Split]]) -> tuple[Any, list[_Split]]:
    return collate([episode for episode, _ in items]), [split for _, split in items]


def own_megabytes() -> float:
    """Memory of this process that it shares with no other, in 2**20 bytes."""
    try:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024
    except (OSError, ValueError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if sys.platform == "darwin" else 1024)


# ------------------------------------------------------------------------------------------ against the straightforward


@dataclass(frozen=True)
class OrderComparison:
    """`fsseg.data.transforms` against the straightforward order, one core, the same episodes in turn.

    Attributes:
        image_size, switches: what was compared.
        ours_ms, straightforward_ms: median milliseconds of a 1-shot training episode (two images, two masks), decoding
            included.
        ratio: straightforward_ms / ours_ms.
        ours_kept, straightforward_kept: mean share of the foreground that the crop keeps.
        ours_below, straightforward_below: share of crops that keep less than `crop_keep`.
    """

    image_size: int
    switches: str
    ours_ms: float
    straightforward_ms: float
    ratio: float
    ours_kept: float
    straightforward_kept: float
    ours_below: float
    straightforward_below: float


def compare_orders(
    image_size: int = 473,
    scale_range: tuple[float, float] = (0.9, 1.1),
    rotate_degrees: float = 10.0,
    blur_probability: float = 1.0,
    episodes: int = 60,
    seed: int = 0,
    pictures: Sequence[tuple[bytes, bytes]] | None = None,
) -> OrderComparison:
    """Time both orders of work on 500 x 375 JPEGs with PNG masks.

    The straightforward order decodes both, then scales, rotates, blurs and mirrors the whole image in float32 with
    torchvision's functions (masks likewise, nearest neighbour), then draws crops on the finished mask until one keeps
    enough. Both draw the same scale, angle, blur and flip, and the same kind of crop; both run in this process on one
    thread, episode by episode in turn, so that other load on the machine hits both alike.

    Args:
        image_size, scale_range, rotate_degrees, blur_probability: of the training transform; every step is done to
            every image by default.
        episodes: timed, after five that are not.
        seed: of the pictures and the augmentation.
        pictures: (JPEG bytes, PNG bytes with 1 = foreground); None draws sixteen.
    """
    transform = TrainTransform(image_size, scale_range, rotate_degrees, blur_probability)
    files = pictures or draw_pictures(16, seed)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times: tuple[list[float], list[float]] = ([], [])
    kept: tuple[list[float], list[float]] = ([], [])
    try:
        for number in range(-5, episodes):
            for side, build in enumerate((_build_ours, _build_straightforward)):
                shares, start = [], time.process_time()
                for role in range(2):
                    jpeg, png = files[(2 * number + role) % len(files)]
                    shares.append(build(jpeg, png, transform, Random(f"bench {seed} {number} {role}")))
                if number >= 0:
                    times[side].append(time.process_time() - start)
                    kept[side].extend(shares)
    finally:
        torch.set_num_threads(threads)
    ours, other = (1e3 * statistics.median(t) for t in times)
    below = [sum(k < transform.crop_keep for k in side) / len(side) for side in kept]
    return OrderComparison(
        image_size=image_size,
        switches=f"scale {scale_range[0]}-{scale_range[1]}, rotation {rotate_degrees}, blur {blur_probability}",
        ours_ms=ours,
        straightforward_ms=other,
        ratio=other / ours,
        ours_kept=statistics.fmean(kept[0]),
        straightforward_kept=statistics.fmean(kept[1]),
        ours_below=below[0],
        straightforward_below=below[1],
    )


def _build_ours(jpeg: bytes, png: bytes, transform: TrainTransform, random: Random) -> float:
    image, mask = _decode(jpeg, png)
    plan = transform.place(mask, random)
    render(image, mask, plan, transform.image_size, keep_foreground=True)
    return plan.kept


def _decode(jpeg: bytes, png: bytes) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    with Image.open(io.BytesIO(jpeg)) as picture, Image.open(io.BytesIO(png)) as labels:
        return np.array(picture), np.array(labels)


def _build_straightforward(jpeg: bytes, png: bytes, transform: TrainTransform, random: Random) -> float:
    image_bytes, mask_bytes = _decode(jpeg, png)
    _, _, kept = straightforward(image_bytes, mask_bytes, transform, random)
    return kept


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


# --------------------------------------------------------------------------------------------------------------- report


def format_loading(rows: Sequence[LoadingRow]) -> str:
    """The rows as a table in plain text."""
    lines = [
        f"{'dataset':<10} {'size':>4} {'shot':>4} {'workers':>7} {'episodes/s':>10} {'MB/worker':>9}   "
        f"{'decode':>7} {'mask':>7} {'transform':>9}  (ms an episode)"
    ]
    for r in rows:
        lines.append(
            f"{r.dataset:<10} {r.image_size:>4} {r.shot:>4} {r.workers:>7} {r.episodes_per_second:>10.1f} "
            f"{r.worker_mb:>9.0f}   {r.decode_ms:>7.1f} {r.mask_ms:>7.1f} {r.transform_ms:>9.1f}"
        )
    lines.append(f"{os.cpu_count()} cores; every worker computes on one thread")
    return "\n".join(lines)


def format_comparison(c: OrderComparison) -> str:
    """The comparison in four lines of plain text."""
    return "\n".join(
        [
            f"1-shot training episode at {c.image_size} px from 500 x 375 JPEGs, one core ({c.switches}):",
            f"  fsseg            {c.ours_ms:7.1f} ms   crop keeps {100 * c.ours_kept:.1f} % of the foreground, "
            f"{100 * c.ours_below:.1f} % of crops below the limit",
            f"  straightforward  {c.straightforward_ms:7.1f} ms   crop keeps {100 * c.straightforward_kept:.1f} %, "
            f"{100 * c.straightforward_below:.1f} % below",
            f"  {c.ratio:.1f} times as fast",
        ]
    )
