"""How fast a data set is loaded, as training reads it: the measurement behind `fsseg bench data`.

Episodes per second and memory per worker for several shots and numbers of workers, and where the time goes. Called by
the `fsseg` command; `bench_orders` compares the order of work with the straightforward one.
"""

from __future__ import annotations

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
from torch.utils.data import DataLoader

from fsseg.config.schema import Config
from fsseg.data.episodes import EpisodeSampler
from fsseg.data.lists import train_lists
from fsseg.data.loader import EpisodeDataset, _start_worker, train_transform
from fsseg.data.source import ClassIndex, Source, Split
from fsseg.data.transforms import TrainTransform
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
    dataset = _Timed(EpisodeDataset(_TimedSource(source), "train", specs, transform, cfg.seed))
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

    def image(self, split: Split, image_id: str, longer_side: int | None = None) -> NDArray[np.uint8]:
        start = time.perf_counter()
        out = self.source.image(split, image_id, longer_side)
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

    def check(self, splits: Sequence[Split] = ("train", "val")) -> None:
        self.source.check(splits)

    def background_family(self, split: Split, image_id: str) -> int | None:
        return self.source.background_family(split, image_id)

    def list_origin(self, split: Split) -> str:
        return self.source.list_origin(split)

    @property
    def mask_rule(self) -> str:
        return self.source.mask_rule


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
