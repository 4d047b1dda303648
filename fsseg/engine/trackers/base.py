"""What a tracker of experiments is asked to do, and what it is told of a run. Beside this: a file for each tool."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsseg.cell.models import Result

LEFT_OUT = ("sync", "notify", "data")
"""Parts of the configuration that no tracker gets: addresses, commands and paths, which may hold secrets."""


@dataclass(frozen=True)
class About:
    """A run as a tracker shows it.

    Attributes:
        run: the id of the run, in identity.json: the same over all its starts, another one after `redo=true`.
        name: of the cell, its path below the experiment.
        experiment: of which it is a part: `name=` of the line.
        group: what its folds and seeds have in common.
        tags: key -> value, of the cell's own name.
        config: all settings, without `LEFT_OUT`.
        folder: where a tool that keeps files puts them.
        id: that the tool gave it at an earlier start; None at the first.
        rows: how many rows of metrics.csv the tool has from earlier starts.
    """

    run: str
    name: str
    experiment: str
    group: str
    tags: Mapping[str, str]
    config: Mapping[str, Any]
    folder: Path
    id: str | None = None
    rows: int = 0


class Tracker(ABC):
    """A run in a tool, open for more. Any method may raise whatever it likes: the tracker is dropped then.

    Making one opens the run `About.id`, or a new one.

    Attributes:
        id: the run's, in the tool.
        place: where people find it: a folder or an address.
        rows: how many rows of metrics.csv it has.
    """

    id: str
    place: str
    rows: int

    @abstractmethod
    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """The numbers of a row of metrics.csv; no step comes twice, and none after a later one."""

    @abstractmethod
    def result(self, numbers: Mapping[str, float], figures: Mapping[str, Path], record: Path) -> None:
        """The end of a run that is done.

        Args:
            numbers: of result.json, by `result_numbers`.
            figures: name -> PNG.
            record: result.json itself.
        """

    @abstractmethod
    def close(self, state: str) -> None:
        """Nothing comes any more from this start: `done`, `failed`, `preempted` or `killed`."""


def without_password(text: str) -> str:
    """A text as it may be written down: an address in it has no user and no password."""
    return re.sub(r"://[^/\s@]*@", "://", text)


def result_numbers(result: Result) -> dict[str, float]:
    """The scores of a result in percent, and what it took: means, each seed, each class."""
    found: dict[str, float | None] = {"train_seconds": result.train_seconds}
    if (scores := result.metrics) is not None:
        found |= {"miou": scores.miou, "miou_std": scores.miou_std, "fb_iou": scores.fb_iou,
                  "fb_iou_std": scores.fb_iou_std}  # fmt: skip
        found |= {f"class/{name}": value for name, value in scores.per_class.items()}
        for seed in scores.per_seed:
            found |= {f"seed{seed.seed}/miou": seed.miou, f"seed{seed.seed}/fb_iou": seed.fb_iou}
        found |= {f"round{number}/miou": value for number, value in enumerate(scores.miou_per_round)}
    if (base := result.base_classes) is not None:
        found |= {"base_miou": base.base_miou, **{f"class/{name}": value for name, value in base.per_class.items()}}
    for kind, chosen in result.best.items():
        found[f"{kind}/step"] = chosen.step
        found[f"{kind}/miou"] = None if chosen.metrics is None else chosen.metrics.miou
    return {name: float(value) for name, value in found.items() if value is not None and math.isfinite(value)}
