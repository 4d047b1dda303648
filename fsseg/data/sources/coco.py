"""`CocoSource`, COCO-20i: COCO images with masks made from `instances_*.json` when needed.

Layout below `root`: `annotations/instances_{train,val}{year}.json` and images in `{train,val}{year}/` or
`images/{train,val}{year}/`. An image id is the file name without its ending.

The published PNG masks differ between groups, so the rule here is: an image has one binary mask per class, the union of
all its instances with all their polygons. Crowd regions are not foreground; pixels that only a crowd of the class
covers are 255. `coco_store` keeps the masks.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle

from fsseg.config.schema import CocoConfig
from fsseg.data.arrays import cache_folders
from fsseg.data.faults import Comparison, Fault, faults_error
from fsseg.data.folds import COCO_CLASSES, fold_classes
from fsseg.data.images import image_size, read_image
from fsseg.data.setup import published
from fsseg.data.setup.download import Archive, Need, Part
from fsseg.data.source import IGNORE_INDEX, SPLITS, ClassIndex, Source, Split
from fsseg.data.sources.coco_store import CocoStore, kept_store, open_store
from fsseg.errors import UserError

_YEAR = 2014  # of all published results
_TOLERANCE = 0.05
"""Share by which list sizes may differ from the published ones: those were counted on PNG masks of other rules (first
polygon only, or the last annotation on top), which nobody can download any more."""


def _archive(name: str, size: int, md5: str, unpacked: int, only: tuple[str, ...] = ()) -> Archive:
    folder = "annotations" if name.startswith("annotations") else "zips"
    url = f"http://images.cocodataset.org/{folder}/{name}"
    return Archive(name=name, urls=(url,), size=size, md5=md5, unpacked=unpacked, only=only)


def _images(split: Split, count: int, size: int, md5: str, unpacked: int) -> Part:
    folder = f"{split}{_YEAR}"
    needs = Need(folder, ".jpg", count)
    return Part(
        _archive(f"{folder}.zip", size, md5, unpacked), (needs,), instead=(Need(f"images/{folder}", ".jpg", count),)
    )


# Sizes as the publishers' servers state them, digests as several projects publish them; the servers give none.
_PARTS = (
    Part(
        _archive(
            f"annotations_trainval{_YEAR}.zip",
            252_872_794,
            "0a379cfc70b0e71301e0f377548639bd",
            700_000_000,
            only=("annotations/instances_",),
        ),
        needs=tuple(Need("annotations", f"instances_{split}{_YEAR}.json", 1) for split in SPLITS),
    ),
    _images("train", 82783, 13_510_573_713, "0da8c0bd3d6becc4dcb32757491aca88", 13_600_000_000),
    _images("val", 40504, 6_645_013_297, "a3d79f5ed8d289b7a7554ce06a5782b3", 6_700_000_000),
)


class CocoSource(Source):
    """COCO-20i as `conf/dataset/coco20i.yaml` describes it."""

    mask_rule = "union of all instances per class; pixels covered only by a crowd of the class are ignored"

    def __init__(self, cfg: CocoConfig) -> None:
        super().__init__(cfg, COCO_CLASSES)
        self.year = cfg.year
        self.contiguous_folds = cfg.contiguous_folds
        self._stores: dict[Split, CocoStore] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_stores": {}}  # a loader process maps the store itself

    def novel_classes(self, fold: int) -> tuple[int, ...]:
        return fold_classes(len(self.classes), self.num_folds, fold, interleaved=not self.contiguous_folds)

    def scan(self, split: Split) -> tuple[ClassIndex | None, list[Fault]]:
        store, faults = self._open(split, verify=True)
        return (None if store is None else store.index()), faults

    def kept_index(self, split: Split) -> ClassIndex | None:
        store = kept_store(self.mask_path(split), cache_folders(self.root, self.cache))
        return None if store is None else store.index()

    def _open(self, split: Split, verify: bool) -> tuple[CocoStore | None, list[Fault]]:
        store, faults = open_store(self.mask_path(split), cache_folders(self.root, self.cache), verify)
        if store is not None:
            self._stores[split] = store
        return store, faults

    def _store(self, split: Split) -> CocoStore:
        if split not in self._stores:
            store, faults = self._open(split, verify=False)
            if store is None:
                raise faults_error(faults)
        return self._stores[split]

    def image_folder(self, split: Split) -> Path:
        """Where the images of a split lie: `root/{split}{year}`, or below `root/images`."""
        nested = self.root / "images" / f"{split}{self.year}"
        return nested if nested.is_dir() else self.root / f"{split}{self.year}"

    def image_path(self, split: Split, image_id: str) -> Path:
        store = self._store(split)
        return self.image_folder(split) / store.file_names[store.position(image_id)]

    def image_paths(self, split: Split, image_ids: Sequence[str]) -> dict[str, Path]:
        """As in `Source`; looks for the folder once, not for each of 120,000 images."""
        store, folder = self._store(split), self.image_folder(split)
        return {image_id: folder / store.file_names[store.position(image_id)] for image_id in image_ids}

    def mask_path(self, split: Split, image_id: str = "") -> Path:
        """The JSON file of the split, whatever the image."""
        return self.root / "annotations" / f"instances_{split}{self.year}.json"

    def list_origin(self, split: Split) -> str:
        return self.mask_path(split).name

    def image(self, split: Split, image_id: str, longer_side: int | None = None) -> NDArray[np.uint8]:
        path = self.image_path(split, image_id)
        image = read_image(path, longer_side)
        store = self._store(split)
        height, width = store.size(store.position(image_id))
        if image.shape[:2] != (height, width) and (found := image_size(path)) != (height, width):
            raise UserError(
                f"image {path} is {found[1]}x{found[0]} pixels, but "
                f"{self.mask_path(split)} says {width}x{height}: its masks would not fit",
                "restore the original image: it was resized or belongs to another release",
            )
        return image

    def mask(self, split: Split, image_id: str, class_id: int, ignore_classes: Sequence[int] = ()) -> NDArray[np.uint8]:
        """As in `Source`. A pixel of an instance is 1 even where a crowd of the class overlaps it, and 255 where one of
        `ignore_classes` (instance or crowd) does."""
        store = self._store(split)
        position = store.position(image_id)
        size = store.size(position)
        mask = np.zeros(size, dtype=np.uint8)
        for counts in store.crowd(position, class_id):
            mask[rle.decode({"size": list(size), "counts": counts}) > 0] = IGNORE_INDEX
        for counts in store.instances(position, class_id):
            mask[rle.decode({"size": list(size), "counts": counts}) > 0] = 1
        for other in ignore_classes:
            if other != class_id:
                for counts in (*store.instances(position, other), *store.crowd(position, other)):
                    mask[rle.decode({"size": list(size), "counts": counts}) > 0] = IGNORE_INDEX
        return mask

    def mask_sizes(self, split: Split) -> dict[str, tuple[int, int]]:
        store = self._store(split)
        return {image_id: store.size(position) for position, image_id in enumerate(store.image_ids)}

    def is_one_image(self, image_id: str) -> bool:
        """An id holds the image's number, which no other image of COCO has."""
        return True

    def missing_images(self, split: Split) -> list[str]:
        folder = self.image_folder(split)
        present = set(os.listdir(folder)) if folder.is_dir() else set()
        store = self._store(split)
        return [image_id for image_id, name in zip(store.image_ids, store.file_names) if name not in present]

    def completion(self, split: Split) -> str:
        return f"complete {self.image_folder(split)}: `fsseg prepare dataset={self.name} dataset.root={self.root}`"

    @classmethod
    def layout(cls, cfg: CocoConfig, splits: Sequence[Split] = SPLITS) -> dict[str, bool]:
        root = Path(cfg.root).expanduser()
        files = [f"annotations/instances_{split}{cfg.year}.json" for split in splits]
        folders = [f"{split}{cfg.year}" for split in splits]
        there = {name: (root / name).is_file() for name in files}
        return there | {name: any((root / base / name).is_dir() for base in ("", "images")) for name in folders}

    @classmethod
    def check_folder(cls, cfg: CocoConfig, splits: Sequence[Split] = SPLITS) -> list[UserError]:
        errors = super().check_folder(cfg, splits)
        other = {2014: 2017, 2017: 2014}.get(cfg.year)
        if not (Path(cfg.root).expanduser() / "annotations" / f"instances_val{other}.json").is_file():
            return errors
        return [UserError(f"{e.what} (data of {other}: dataset.year={other})", e.fix) for e in errors]

    @classmethod
    def parts(cls, cfg: CocoConfig, fetch: bool = False) -> tuple[Part, ...]:
        if cfg.year == _YEAR:
            return _PARTS
        if fetch:
            raise UserError(
                f"dataset.year={cfg.year}: only COCO {_YEAR}, the year of all results, is fetched",
                f"set dataset.year={_YEAR}, or fetch the other year from cocodataset.org",
            )
        return ()

    def compare(self, indexes: Mapping[Split, ClassIndex]) -> Comparison:
        known = published.facts()["coco20i"]
        result = Comparison(f"the size of the official files of COCO {self.year}")
        official = known["images"][str(self.year)]
        for split, index in indexes.items():
            result.add(f"annotations of {split}{self.year}", "images", official[split], len(index.image_ids))
        if result.differences:
            sizes = ", ".join(f"{d.found} images of {d.published}" for d in result.differences)
            what = "the annotation files are not the official ones, but a part or another release"
            result.causes.append(f"{what}: {sizes}")
        if len(indexes) < 2:
            result.causes.append("a split could not be read: see the faults")
        if self.year != _YEAR:
            what = f"every published result uses COCO {_YEAR}, not {self.year}: its lists are not comparable"
            result.causes.append(what)
            return result
        result.published = f"HSNet's lists of COCO {_YEAR}, with a tolerance of {_TOLERANCE:.0%}"
        for split, index in indexes.items():
            per_class, _ = published.list_sizes(index, range(80))
            for c, name in enumerate(COCO_CLASSES):
                result.add(f"{split}{_YEAR}", name, known["per_class"][split][name], per_class[c], _TOLERANCE)
        if self.contiguous_folds or self.num_folds != 4:
            what = "the folds are not cut the standard way (dataset.contiguous_folds, dataset.num_folds)"
            result.causes.append(what)
        elif "val" in indexes:
            for fold, size in enumerate(known["val_images_per_fold"]):
                images = published.list_sizes(indexes["val"], self.novel_classes(fold))[1]
                result.add(f"fold {fold} val", "images", size, images, _TOLERANCE)
        if result.differences and not result.causes:
            result.causes.append("annotations that were edited: restore the official archive")
        return result
