"""The published figures of ABCB, part of the package, and the rule when one may be shown beside our result.

`tables` is the caller. The figures are those of Zhu, Chen, Yin, See, Liu: Addressing Background Context Bias in
Few-Shot Segmentation through Iterative Modulation, CVPR 2024, copied as printed. Those of other methods are in
`fsseg.report.published`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

from fsseg.cell.key import CellKey
from fsseg.config.history import BEFORE

FOLDS = (0, 1, 2, 3)
"""Those of every published result."""
"""The folds of both data sets; a mean is a mean over all of them."""
MEAN = -1
"""The fold number that stands for the mean over the folds."""
WITHOUT_INTERVAL = (
    "difference: ours less the published figure, without an interval: published figures come without their episodes"
)
"""Below every table with such a difference."""

_NAMES = {"abcb": "ABCB"}  # our methods that the paper has a row for -> its name there
_POOL = "dataset.train_list"
_MASKS = "dataset.coco_masks"
_PAPER_POOL = "merged_5953"  # of the line of codes that the paper stands in; the files of its experiments set it
_FULL_VAL_IMAGES = {"pascal5i": 1449, "coco20i": 40504}  # VOC2012 segmentation val; COCO val2014
_ABLATION_RECIPE = {
    "protocol.name": "standard",
    "protocol.num_episodes": 1000,
    "backbone.pretrained": True,
    "backbone.trainable_layers": 0,
    "dataset.image_size": 473,
    "train.epochs": 250,
    "train.max_steps": None,
    "train.lr_scale": 1.0,
    "eval.every_epochs": 0,
    _POOL: _PAPER_POOL,
}
"""The settings of the paper's runs, as its experiments on PASCAL-5i set them. Each model may have its own learning
rate, but what multiplies it is named; and so is that training images are held back."""


@dataclass(frozen=True)
class Published:
    """A published row for one number of shots; mIoU in percent.

    Attributes:
        venue: of the paper whose Tables 1 and 2 it is of; empty where it was read elsewhere, which `source` says.
        folds: mIoU of folds 0 to 3; None where only the mean is known.
        mean: the mean as printed, which need not be the mean of `folds` (see `mean_of_folds`).
        note: what sets it apart from other rows of its method.
        compared: whether the difference to it is told: its rules are those of the runs.
    """

    method: str
    venue: str
    folds: tuple[float, float, float, float] | None
    mean: float
    source: str = ""
    note: str = ""
    compared: bool = True

    @property
    def mean_of_folds(self) -> float:
        return self.mean if self.folds is None else sum(self.folds) / len(self.folds)

    @property
    def mean_is_odd(self) -> bool:
        """Whether the printed mean is further from the mean of the printed folds than rounding explains."""
        return abs(self.mean - self.mean_of_folds) > 0.101  # rounding: up to 0.05 for folds, another 0.05 for the mean

    def at(self, fold: int) -> float | None:
        """mIoU of a fold, or of the mean under `MEAN`; None if it is not known."""
        return self.mean if fold == MEAN else None if self.folds is None else self.folds[fold]


@lru_cache(maxsize=1)
def paper_results() -> dict[str, Any]:
    """The whole file of published figures: tables, ablations, costs."""
    text = (resources.files("fsseg.report") / "facts" / "paper_results.json").read_text(encoding="utf-8")
    return json.loads(text)  # type: ignore[no-any-return]


def published(dataset: str, backbone: str, shot: int, method: str = "ABCB") -> Published | None:
    """The published row of a method, named as in the paper, or None where the paper has none."""
    for row in paper_results()["tables"].get(dataset, {}).get(backbone, []):
        if row["method"] == method and f"{shot}shot" in row:
            figures = row[f"{shot}shot"]
            return Published(method, row["venue"], tuple(figures["folds"]), figures["mean"])
    return None


def is_whole_split(dataset: str, num_val_images: int | None) -> bool:
    """Whether so many evaluation images are all that the data set has, and no sample; None counts as all."""
    return num_val_images is None or num_val_images >= _FULL_VAL_IMAGES.get(dataset, 0)


def comparable(key: CellKey, num_val_images: int | None = None) -> Published | None:
    """The published figures that cells of this data set, method, backbone, shot and variant may be compared with.

    Only a method of the paper, with every setting at its default and on the whole evaluation split, replicates them.
    None for all other cells.

    Args:
        num_val_images: images of the evaluation split, None if the result lacks the number. Fewer than the data set has
            mean that only a sample was evaluated.
    """
    if key.method not in _NAMES or key.variant != "default":
        return None
    if not is_whole_split(key.dataset, num_val_images):
        return None
    return published(key.dataset, key.backbone, key.shot, _NAMES[key.method])


def comparable_ablation(key: CellKey, num_val_images: int | None = None) -> bool:
    """Whether a cell is of the task of the paper's ablations (Tables 3 to 6); see also `unlike_ablation`."""
    task = (key.dataset, key.backbone, key.shot, key.fold) == ("pascal5i", "resnet50", 1, 0)
    return task and is_whole_split("pascal5i", num_val_images)


def unlike_ablation(identity: Mapping[str, Any]) -> list[str]:
    """The settings (`key=value`) that differ from those of the paper's ablations; a missing setting does not count.

    Args:
        identity: of a cell, flat.
    """
    shown = dict(identity)
    if shown.get(_POOL, "") is None:
        shown[_POOL] = "train_aug_10582"  # known as null
    return [
        f"{key}={json.dumps(shown[key])}".replace('"', "")
        for key, value in _ABLATION_RECIPE.items()
        if key in shown and shown[key] != value
    ]


def other_data(key: CellKey, identity: Mapping[str, Any]) -> str | None:
    """The training pool of a PASCAL cell, or the rule of a COCO cell's masks, as `key=value`, if it is not the paper's.

    A missing pool does not count; without a rule of its own a COCO cell is one of before there was a choice.

    Args:
        identity: of the cell, flat; empty if it is unknown.
    """
    if key.dataset == "coco20i" and identity:
        rule = identity.get(_MASKS, BEFORE[_MASKS])
        return None if rule == "painted" else f"{_MASKS}={rule}"
    if key.dataset != "pascal5i" or _POOL not in identity:
        return None
    return next(iter(unlike_ablation({_POOL: identity[_POOL]})), None)
