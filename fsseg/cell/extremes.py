"""The best, median and worst of evaluated episodes, by their recorded counts. `fsseg.engine.redraw` draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fsseg.cell.episodes import EpisodeCounts

RANKS = ("best", "median", "worst")


@dataclass(frozen=True)
class Ranked:
    """An episode, and what it is ranked by: an IoU in percent, or a difference of two."""

    seed: int
    number: int
    class_id: int
    value: float

    @property
    def key(self) -> tuple[int, int]:
        """Evaluation seed and number."""
        return self.seed, self.number


def ranked(counts: EpisodeCounts, values: NDArray[np.float64]) -> list[Ranked]:
    """The episodes of one shift with their values, in the order of the protocol.

    Args:
        values: (E,); an episode of NaN has no rank and is left out.
    """
    columns = (counts[name].tolist() for name in ("seed", "number", "class_id"))
    every = [Ranked(*row) for row in zip(*columns, values.tolist())]
    place = {seed: i for i, seed in enumerate(counts.scope.seeds)}
    return sorted((e for e in every if e.value == e.value), key=lambda e: (place[e.seed], e.number))


def extremes(episodes: Sequence[Ranked], count: int) -> dict[str, list[Ranked]]:
    """The `count` highest, highest first; those in the middle, from the lower to the higher; the lowest, lowest first.

    Among equal values the episode that comes first in `episodes` is the higher in the best and the lower in the others.
    Fewer than three times `count` episodes are in more than one of the three.
    """
    rising = sorted(episodes, key=lambda e: e.value)
    middle = max(0, (len(rising) - count) // 2)
    return {
        "best": sorted(episodes, key=lambda e: -e.value)[:count],
        "median": rising[middle : middle + count],
        "worst": rising[:count],
    }


def extremes_of_classes(episodes: Sequence[Ranked], count: int) -> dict[str, list[Ranked]]:
    """`extremes` of every class by itself, one class after the other by its id."""
    found: dict[str, list[Ranked]] = {rank: [] for rank in RANKS}
    for class_id in sorted({e.class_id for e in episodes}):
        own = extremes([e for e in episodes if e.class_id == class_id], count)
        for rank, some in own.items():
            found[rank] += some
    return found
