"""Comparison of the lists built from a user's data with the published ones, class by class. Called by `verify`.

The published sizes are part of the package (`facts/list_sizes.json`, which says where they come from).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from fsseg.data.folds import COCO_CLASSES, VOC_CLASSES
from fsseg.data.lists import eligible_pairs, images_with
from fsseg.data.source import IGNORE_INDEX, ClassIndex, Split
from fsseg.data.sources.coco import CocoSource
from fsseg.data.sources.voc import VocSource

MIN_PIXELS = 2048
"""The published lists take an (image, class) pair from this size on (2 * 32 * 32)."""

COCO_TOLERANCE = 0.05
"""Share by which COCO's list sizes may differ from the published ones: those were counted on PNG masks of other rules
(first polygon only, or the last annotation on top), which nobody can download any more."""
_COCO_TOLERATED = 5  # images, for the rarest classes

_VOC_TRAIN = 1464  # images of VOC2012's own train list: the only training masks with a boundary of 255


@dataclass(frozen=True)
class Difference:
    """One number that is not the published one; `where` is a list ("fold 0 val"), `what` a class or "images"."""

    where: str
    what: str
    published: int
    found: int

    def __str__(self) -> str:
        return f"{self.where}, {self.what}: {self.found}, published {self.published} ({self.found - self.published:+d})"


@dataclass
class Comparison:
    """The outcome.

    Attributes:
        published: in words, what the lists were compared with; empty if there is nothing to compare with.
        checked: numbers compared.
        differences: those that differ.
        causes: what the differences probably come from.
        notes: what else the user should know.
    """

    published: str = ""
    checked: int = 0
    differences: list[Difference] = field(default_factory=list)
    causes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def standard(self) -> bool:
        """Whether the data are the standard benchmark."""
        return bool(self.checked) and not self.differences and not self.causes

    def add(self, where: str, what: str, published: int, found: int, tolerance: float = 0.0) -> None:
        """Compare one number."""
        self.checked += 1
        if abs(found - published) > max(tolerance * published, _COCO_TOLERATED if tolerance else 0):
            self.differences.append(Difference(where, what, published, found))


@cache
def facts() -> dict[str, Any]:
    """The published sizes."""
    text = resources.files("fsseg.data.setup").joinpath("facts/list_sizes.json").read_text(encoding="utf-8")
    content: dict[str, Any] = json.loads(text)
    return content


def _sizes(index: ClassIndex, classes: Sequence[int], drop: Sequence[int] | None = None) -> tuple[dict[int, int], int]:
    """(images per class, images) of the pairs from `MIN_PIXELS` on, in images without a pixel of a class to `drop`."""
    pairs = eligible_pairs(index, classes, MIN_PIXELS, images_with(index, drop) if drop else ())
    per_class = dict.fromkeys(classes, 0)
    for _, class_id in pairs:
        per_class[class_id] += 1
    return per_class, len({image for image, _ in pairs})


def compare(source: Any, indexes: dict[Split, ClassIndex]) -> Comparison:
    """Compare the lists of a source; empty for data sets without published lists.

    Args:
        source: a `VocSource` or `CocoSource`.
        indexes: its indexes, of those splits that could be read.
    """
    if isinstance(source, CocoSource):
        return _compare_coco(source, indexes)
    if isinstance(source, VocSource) and source.classes == VOC_CLASSES and source.num_folds == 4:
        return _compare_pascal(source, indexes)
    return Comparison(notes=[f"{source.name} has no published lists to compare with"])


def _compare_pascal(source: VocSource, indexes: dict[Split, ClassIndex]) -> Comparison:
    known = facts()["pascal5i"]
    result = Comparison()
    names = source.classes
    everything = range(len(names))
    val, train = indexes.get("val"), indexes.get("train")
    pool = None
    if train is not None:
        pool = next((name for name, size in known["pools"].items() if size == len(train.image_ids)), None)
    result.published = (
        f"the lists of BAM and SCCAN, counted from VOC2012's and SBD's masks; training pool {pool or 'unknown'}"
    )
    for fold in range(source.num_folds):
        sizes = known["folds"][str(fold)]
        novel = source.novel_classes(fold)
        base = [c for c in everything if c not in novel]
        if val is not None:
            per_class, images = _sizes(val, novel)
            result.add(f"fold {fold} val", "images", sizes["val"]["images"], images)
            for c in novel:
                result.add(f"fold {fold} val", names[c], sizes["val"]["per_class"][names[c]], per_class[c])
        if train is not None and pool is not None:
            result.add(f"fold {fold} train, keep", "images", sizes[pool]["images_keep"], _sizes(train, base)[1])
            per_class, images = _sizes(train, base, drop=novel)
            result.add(f"fold {fold} train, drop", "images", sizes[pool]["images_drop"], images)
            for c in base:
                where = f"fold {fold} train, drop"
                result.add(where, names[c], sizes[pool]["per_class_drop"][names[c]], per_class[c])
    if val is not None:
        result.add("evaluation list", "images", known["val_images"], len(val.image_ids))
    if train is not None and pool is None:
        result.add("training list", "images", known["pools"]["train_aug_10582"], len(train.image_ids))
    if val is None or train is None:
        result.causes.append("a split could not be read: see the faults")
    _pascal_causes(source, result, indexes, pool)
    return result


def _pascal_causes(source: VocSource, result: Comparison, indexes: dict[Split, ClassIndex], pool: str | None) -> None:
    """Find what differing numbers come from, and what is wrong although the numbers agree."""
    known = facts()["pascal5i"]
    val, train = indexes.get("val"), indexes.get("train")
    add = result.causes.append
    if val is not None and len(val.image_ids) != known["val_images"]:
        add(f"the evaluation list {source.list_origin('val')} has {len(val.image_ids)} images; VOC2012's val has 1449")
    if train is not None and pool is None:
        origin = source.list_origin("train")
        add(
            f"the training list ({origin}) has {len(train.image_ids)} images; the published pools are train_aug "
            "(10582) and PFENet's list (5953). HSNet's 10092 follow a rule of their own and are not compared"
        )
    if train is not None and val is not None and (both := set(train.image_ids) & set(val.image_ids)):
        add(f"{len(both)} images stand in both the training and the evaluation list, e.g. {min(both)}")
    if val is not None:
        counts = source.mask_counts("val")
        plain = sorted(i for i in val.image_ids if IGNORE_INDEX not in counts[i].pixels)
        if plain:
            add(
                f"{len(plain)} of {len(val.image_ids)} evaluation masks have no boundary of 255, as VOC's "
                f"own all have, e.g. {plain[0]}: masks of another version (SBD's have none), "
                "and scores on them are not comparable"
            )
        found = [_sizes(val, range(20))[0][c] for c in range(20)]
        right = [known["folds"][str(c // 5)]["val"]["per_class"][VOC_CLASSES[c]] for c in range(20)]
        if found != right and sorted(found) == sorted(right):
            add("the masks number the classes in another order than VOC2012 (alphabetical)")
    if train is not None and pool == "train_aug_10582":
        counts = source.mask_counts("train")
        bounded = sum(IGNORE_INDEX in counts[i].pixels for i in train.image_ids)
        if bounded != _VOC_TRAIN:
            add(
                f"{bounded} training masks have a boundary of 255; VOC's own train list has {_VOC_TRAIN}: masks of "
                "another version stand for VOC's (is SegmentationClass complete?)"
            )
    if result.differences and not result.causes:
        add("masks that were edited, resized or saved again: restore them from the official archives")


def _compare_coco(source: CocoSource, indexes: dict[Split, ClassIndex]) -> Comparison:
    known = facts()["coco20i"]
    result = Comparison(published=f"the size of the official files of COCO {source.year}")
    official = known["images"][str(source.year)]
    for split, index in indexes.items():
        result.add(f"annotations of {split}{source.year}", "images", official[split], len(index.image_ids))
    if result.differences:
        sizes = ", ".join(f"{d.found} images of {d.published}" for d in result.differences)
        result.causes.append(f"the annotation files are not the official ones, but a part or another release: {sizes}")
    if len(indexes) < 2:
        result.causes.append("a split could not be read: see the faults")
    if source.year != 2014:
        result.causes.append(f"every published result uses COCO 2014, not {source.year}: its lists are not comparable")
        return result
    result.published = f"HSNet's lists of COCO 2014, with a tolerance of {COCO_TOLERANCE:.0%}"
    for split, index in indexes.items():
        per_class, _ = _sizes(index, range(80))
        for c, name in enumerate(COCO_CLASSES):
            result.add(f"{split}2014", name, known["per_class"][split][name], per_class[c], COCO_TOLERANCE)
    if source.contiguous_folds or source.num_folds != 4:
        result.causes.append("the folds are not cut the standard way (dataset.contiguous_folds, dataset.num_folds)")
    elif "val" in indexes:
        for fold, published in enumerate(known["val_images_per_fold"]):
            images = _sizes(indexes["val"], source.novel_classes(fold))[1]
            result.add(f"fold {fold} val", "images", published, images, COCO_TOLERANCE)
    if result.differences and not result.causes:
        result.causes.append("annotations that were edited: restore the official archive")
    return result
