"""Cells whose episodes are recorded: counts from a rule, and a run directory with the score that follows from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from episode_scores import scores as independent_scores

from fsseg.cell.episodes import EpisodeCounts, EpisodeScope, Scored, write_counts
from fsseg.cell.record import RunDirectory

COUNTED = 10_000
MakeCell = Callable[..., RunDirectory]
Hits = Callable[[int, int, int, str, int], int]
"""Class, place of the image in its class, seed, shift, round -> pixels that are predicted and true."""


def counts_of(
    areas: Mapping[int, Sequence[int]], hits: Hits, seeds: Sequence[int] = (0, 1), shifts: Sequence[str] = ("",),
    rounds: int = 1,
) -> EpisodeCounts:  # fmt: skip
    """One episode of every image in every seed and shift; a fifth of each object's area is predicted beside it.

    Args:
        areas: class -> true foreground of each of its images.
    """
    scope = EpisodeScope(tuple(seeds), tuple(areas), tuple(f"class {c}" for c in areas), tuple(shifts))
    scored = []
    for shift in shifts:
        for seed in seeds:
            images = [(c, i, area) for c, of_class in areas.items() for i, area in enumerate(of_class)]
            for number, (c, i, area) in enumerate(images):
                found = [hits(c, i, seed, shift, r) for r in range(rounds)]
                either = area + area // 5
                pixels = [(both, either, COUNTED - either, COUNTED - both) for both in found]
                scored.append(Scored(seed, number, c, shift, area, pixels))
    return EpisodeCounts.of(scope, scored)


def made_areas(classes: Sequence[int], images: int, seed: int = 0) -> dict[int, list[int]]:
    random = np.random.RandomState(seed)
    return {c: np.sort(random.randint(200, 5000, images)).tolist() for c in classes}


def share_of(areas: Mapping[int, Sequence[int]], share: float, spread: float, seed: int) -> Hits:
    """Of each image about this share of the object, the same of every method up to `seed`."""
    common, own = np.random.RandomState(99), np.random.RandomState(seed)
    shares = {
        c: np.clip(share + common.normal(0, 0.2, len(a)) + own.normal(0, spread, len(a)), 0, 1)
        for c, a in areas.items()
    }
    return lambda c, i, s, shift, r: int(areas[c][i] * shares[c][i])


def recorded(
    make: MakeCell, fold: int, counts: EpisodeCounts, *, place: Path, result: Mapping[str, Any] | None = None,
    **changes: Any,
) -> RunDirectory:  # fmt: skip
    """A cell of `make` (`make_cell`) with these counts and the score that follows from them.

    Args:
        place: an existing folder to write to before the run directory is there.
    """
    record = write_counts(place / "episodes.npz", counts)
    score = independent_scores(place / "episodes.npz")["miou"]
    given = {"episodes": msgspec.to_builtins(record), **(result or {})}
    run = make(fold, float(score), result=given, **changes)
    (place / "episodes.npz").replace(run.episodes_file)
    return run
