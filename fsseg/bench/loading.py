"""How fast a data set is loaded, as training reads it: the measurement behind `fsseg bench data`.

Episodes per second and memory per worker for several shots and numbers of workers, in turn, and where the time goes.
Called by the `fsseg` command.
"""

from __future__ import annotations

import copy
import math
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from fsseg.bench.common import Spread, in_turn
from fsseg.config.schema import Config
from fsseg.data.episodes import EpisodeSampler
from fsseg.data.lists import train_lists
from fsseg.data.loader import EpisodeDataset, start_worker, train_transform
from fsseg.data.source import Source
from fsseg.data.transforms import TrainTransform
from fsseg.data.types import Episode, collate
from fsseg.errors import UserError
from fsseg.process.tables import aligned

_BATCH = 4


@dataclass(frozen=True)
class LoadingRow:
    """One measurement.

    Attributes:
        dataset: name.
        image_size: side of the network input in pixels.
        shot: K.
        workers: loader processes; 0 loads in the main one.
        seconds_per_episode: after every worker has started and filled its queue.
        worker_mb: most memory that one worker (with 0 workers: this process) held, in 2**20 bytes: private pages only,
            sampled every few episodes. Without /proc it is the process's peak, which counts shared pages too.
        decode_ms, mask_ms, transform_ms: mean milliseconds an episode inside a worker, by kind of work.
    """

    dataset: str
    image_size: int
    shot: int
    workers: int
    seconds_per_episode: Spread
    worker_mb: float
    decode_ms: float
    mask_ms: float
    transform_ms: float

    @property
    def episodes_per_second(self) -> float:
        """From the median."""
        return 1 / self.seconds_per_episode.median


@dataclass(frozen=True)
class Size:
    """How much is measured: episodes timed per combination (rounded up to whole batches), and how often."""

    episodes: int = 48
    repeats: int = 3


def bench_loading(
    source: Source,
    cfg: Config,
    shots: Sequence[int] = (1, 5),
    workers: Sequence[int] = (0, 1, 2, 3, 4),
    size: Size = Size(),  # it cannot be changed
) -> list[LoadingRow]:
    """Time training episodes of one data set at its training size.

    Args:
        source, cfg: the data set and the configuration with its fold, protocol, image size and augmentation.
        shots, workers: every combination is measured. A shot that the lists are too small for is left out.
        size: how much of each. All combinations are measured once, then all once more, and so on.

    Raises:
        UserError: the data set is faulty, or too small for any of the shots.
    """
    refused = None
    sides: dict[tuple[int, int], _Loading] = {}
    for shot in shots:
        try:
            lists = train_lists(
                source.index("train"), source.novel_classes(cfg.fold), cfg.protocol, shot, source.classes
            )
        except UserError as error:
            refused = error
            continue
        sampler = EpisodeSampler(lists, shot, cfg.seed, cfg.protocol)
        sides |= {(shot, count): _Loading(source, sampler, cfg, count, size.episodes) for count in workers}
    if not sides and refused is not None:
        raise refused
    times = in_turn(sides, size.repeats, warm_up=0)  # each side has a warm-up of its own
    return [side.row(times[name]) for name, side in sides.items()]


@dataclass
class _Loading:
    """One combination: a call loads its episodes once, and takes the seconds of one."""

    source: Source
    sampler: EpisodeSampler
    cfg: Config
    workers: int
    episodes: int
    splits: list[_Clock] = field(default_factory=list)

    def __call__(self) -> float:
        taken, splits = _measure(self.source, self.sampler, self.cfg, self.workers, self.episodes)
        self.splits += splits
        return taken

    def row(self, times: list[float]) -> LoadingRow:
        return LoadingRow(
            dataset=self.source.name,
            image_size=self.cfg.dataset.image_size,
            shot=self.sampler.shot,
            workers=self.workers,
            seconds_per_episode=Spread.of(times),
            worker_mb=max(s.megabytes for s in self.splits),
            decode_ms=1e3 * statistics.fmean(s.decode for s in self.splits),
            mask_ms=1e3 * statistics.fmean(s.mask for s in self.splits),
            transform_ms=1e3 * statistics.fmean(s.transform for s in self.splits),
        )


def _measure(
    source: Source, sampler: EpisodeSampler, cfg: Config, workers: int, episodes: int
) -> tuple[float, list[_Clock]]:
    """Seconds an episode, and what each one timed took."""
    # every worker loads two batches ahead of the first one it delivers: those are not timed
    warm = max(1, 2 * workers)
    timed = math.ceil(episodes / _BATCH)
    specs = [sampler[e] for e in range((warm + timed) * _BATCH)]
    transform = _TimedTransform(**asdict(train_transform(cfg)))
    dataset = _Timed(EpisodeDataset(_timed(source), "train", specs, transform, cfg.seed))
    loader: DataLoader[Any] = DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_size=_BATCH,
        num_workers=workers,
        collate_fn=_collate_timed,
        worker_init_fn=start_worker,
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # what a worker has, for 0 workers too
    try:
        splits: list[_Clock] = []
        start = 0.0
        for number, (_, found) in enumerate(loader):
            if number + 1 > warm:
                splits += found
            if number + 1 == warm:
                start = time.perf_counter()
        seconds = time.perf_counter() - start
    finally:
        torch.set_num_threads(threads)
    return seconds / (timed * _BATCH), splits


@dataclass
class _Clock:
    """Seconds of one episode by kind of work, and the process's memory."""

    decode: float = 0.0
    mask: float = 0.0
    transform: float = 0.0
    megabytes: float = 0.0


_clock = _Clock()  # of the episode under way in this process


def _timed(source: Source) -> Source:
    """The same source with timed `image` and `mask`."""
    timed = copy.copy(source)
    vars(timed).update(image=partial(_clocked, "decode", source.image), mask=partial(_clocked, "mask", source.mask))
    return timed


def _clocked(kind: str, call: Callable[..., Any], *arguments: Any) -> Any:
    start = time.perf_counter()
    out = call(*arguments)
    setattr(_clock, kind, getattr(_clock, kind) + time.perf_counter() - start)
    return out


class _TimedTransform(TrainTransform):
    def __call__(self, image: NDArray[np.uint8], mask: NDArray[np.uint8], random: Random) -> Any:
        return _clocked("transform", super().__call__, image, mask, random)


class _Timed:
    def __init__(self, dataset: EpisodeDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> tuple[Episode, _Clock]:
        global _clock
        _clock = _Clock()
        episode = self.dataset[i]
        if i % 7 == 0:
            _clock.megabytes = own_megabytes()
        return episode, _clock


def _collate_timed(items: Sequence[tuple[Episode, _Clock]]) -> tuple[Any, list[_Clock]]:
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
    title = ("dataset", "px", "shot", "workers", "ms an episode", "episodes/s", "MB/worker", "decode ms", "mask ms",
             "transform ms")  # fmt: skip
    lines = [
        (r.dataset, str(r.image_size), str(r.shot), str(r.workers), str(r.seconds_per_episode.times(1e3)),
         f"{r.episodes_per_second:.1f}", f"{r.worker_mb:.0f}", f"{r.decode_ms:.1f}", f"{r.mask_ms:.1f}",
         f"{r.transform_ms:.1f}")
        for r in rows
    ]  # fmt: skip
    note = "ms an episode: median (quartiles); decode, mask, transform: inside a worker, which computes on one thread"
    return f"{aligned([title, *lines])}\n{note}"
