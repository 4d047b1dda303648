"""Finished runs with recorded episodes, whose counts a test gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from run_directories import make_run

from fsseg.cell.episodes import EpisodeCounts, EpisodeScope, Scored, write_counts
from fsseg.cell.key import CellKey
from fsseg.cell.record import RunDirectory

PIXELS = 1000  # of an episode


def scored_run(
    root: Path,
    key: CellKey,
    hits: Mapping[str, Sequence[int]],
    *,
    foreground: int = 100,
    episodes: str = "e",
    **more: Any,
) -> RunDirectory:
    """A run with one seed of episodes.

    Args:
        hits: class -> pixels of each of its episodes that are rightly foreground; nothing else is answered foreground.
            The episodes of a class differ in their foreground by a pixel each, so each is a query of its own.
        episodes: fingerprint of the list.
    """
    classes = tuple(range(len(hits)))
    scored, number = [], 0
    for class_id, of_class in enumerate(hits.values()):
        for i, hit in enumerate(of_class):
            true = foreground + i
            scored.append(Scored(0, number, class_id, "", true, [(hit, true, PIXELS - true, PIXELS - hit)]))
            number += 1
    sums = {name: (sum(of_class), sum(foreground + i for i in range(len(of_class)))) for name, of_class in hits.items()}
    per_class = {name: 100 * both / either for name, (both, either) in sums.items()}
    miou = sum(per_class.values()) / len(per_class)
    run = RunDirectory(root / key.path)
    run.directory.mkdir(parents=True, exist_ok=True)
    record = write_counts(run.episodes_file, EpisodeCounts.of(EpisodeScope((0,), classes, tuple(hits)), scored))
    seed = {"seed": 0, "miou": miou, "num_episodes": number, "episodes_fingerprint": episodes}
    metrics = {"miou": miou, "per_class": per_class, "per_seed": [seed]}
    result = {"metrics": metrics, "episodes": msgspec.to_builtins(record), "protocol": {"seeds": [0]}}
    return make_run(root, key, result=result, **more)
