"""`CocoSource`, COCO-20i: COCO images, with masks from `instances_*.json` or from label PNGs.

Layout below `root`: `annotations/instances_{train,val}{year}.json` and images in `{train,val}{year}/` or
`images/{train,val}{year}/`. An image id is the file name without its ending.

`dataset.coco_masks` says how masks are made: `painted` (`coco_painted`, the rule of the published lists), `union`
(`coco_union`), or `maps` (`coco_maps`, label PNGs as they are). `coco_store` keeps the masks of the first two.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fsseg.config.schema import CocoConfig
from fsseg.data.arrays import cache_folders
from fsseg.data.faults import Comparison, Fault, faults_error
from fsseg.data.folds import COCO_CLASSES, fold_classes
from fsseg.data.images import image_size, read_image
from fsseg.data.setup import published
from fsseg.data.setup.download import Archive, Need, Part
from fsseg.data.source import SPLITS, ClassIndex, Source, Split
from fsseg.data.sources.coco_lists import listed_images
from fsseg.data.sources.coco_maps import LabelMaps
from fsseg.data.sources.coco_store import CocoStore, kept_store, open_store
from fsseg.errors import UserError

_YEAR = 2014  # of all published results
_RULES = {
    "painted": "instances painted over each other in file order by OpenCV's fillPoly; crowds are left out",
    "union": "union of all instances per class; pixels covered only by a crowd of the class are ignored",
    "maps": "label maps of {}, as they are; 255 is ignored",
}


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

    def __init__(self, cfg: CocoConfig) -> None:
        super().__init__(cfg, COCO_CLASSES)
        self.year = cfg.year
        self.interleaved = CocoConfig.interleaved(cfg)
        self.coco_masks = cfg.coco_masks
        self.mask_rule = _RULES[cfg.coco_masks].format(cfg.label_maps or "annotations")
        self.label_maps = _label_maps(cfg)
        self.lists: dict[Split, str | None] = {"train": cfg.train_list, "val": cfg.val_list}
        self._opened: dict[Split, CocoStore | LabelMaps] = {}
        self._listed: dict[Split, list[str]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_opened": {}, "_listed": {}}  # a loader process maps the store itself

    def novel_classes(self, fold: int) -> tuple[int, ...]:
        return fold_classes(len(self.classes), self.num_folds, fold, self.interleaved)

    def scan(self, split: Split) -> tuple[ClassIndex | None, list[Fault]]:
        masks, faults = self._open(split, verify=True)
        if masks is None:
            return None, faults
        image_ids, unlisted = self._list(split, masks)
        index, faults = masks.index(image_ids)
        return index, unlisted + faults

    def kept_index(self, split: Split) -> ClassIndex | None:
        masks: CocoStore | LabelMaps | None
        if self.coco_masks == "maps":
            masks = self._maps(split)
        else:
            masks = kept_store(self.mask_path(split), self.coco_masks, cache_folders(self.root, self.cache))
        if masks is None:
            return None
        image_ids, faults = self._list(split, masks)
        return None if faults else masks.kept_index(image_ids)

    def _maps(self, split: Split) -> LabelMaps:
        folder = self.label_maps / f"{split}{self.year}"
        return LabelMaps(folder, cache_folders(self.label_maps, self.cache), len(self.classes))

    def _open(self, split: Split, verify: bool) -> tuple[CocoStore | LabelMaps | None, list[Fault]]:
        if self.coco_masks == "maps":
            self._opened[split] = self._maps(split)
            return self._opened[split], []
        store, faults = open_store(self.mask_path(split), self.coco_masks, cache_folders(self.root, self.cache), verify)
        if store is not None:
            self._opened[split] = store
        return store, faults

    def _masks(self, split: Split) -> CocoStore | LabelMaps:
        if split not in self._opened:
            masks, faults = self._open(split, verify=False)
            if masks is None:
                raise faults_error(faults)
        return self._opened[split]

    def _list(self, split: Split, masks: CocoStore | LabelMaps) -> tuple[list[str], list[Fault]]:
        """Ids of the images that the configuration names, all if it names none, and the faults of its list."""
        if (name := self.lists[split]) is None:
            return masks.image_ids, []
        origin = masks.folder if isinstance(masks, LabelMaps) else masks.path
        return listed_images(name, f"dataset.{split}_list", masks.image_ids, str(origin))

    def _image_ids(self, split: Split) -> list[str]:
        if split not in self._listed:
            self._listed[split] = self._list(split, self._masks(split))[0]
        return self._listed[split]

    def image_folder(self, split: Split) -> Path:
        """Where the images of a split lie: `root/{split}{year}`, or below `root/images`."""
        nested = self.root / "images" / f"{split}{self.year}"
        return nested if nested.is_dir() else self.root / f"{split}{self.year}"

    def image_path(self, split: Split, image_id: str) -> Path:
        return self.image_folder(split) / self._masks(split).file_name(image_id)

    def image_paths(self, split: Split, image_ids: Sequence[str]) -> dict[str, Path]:
        """As in `Source`; looks for the folder once, not for each of 120,000 images."""
        masks, folder = self._masks(split), self.image_folder(split)
        return {image_id: folder / masks.file_name(image_id) for image_id in image_ids}

    def mask_path(self, split: Split, image_id: str = "") -> Path:
        """An image's label map; of masks made from annotations the JSON file, whatever the image."""
        if self.coco_masks == "maps":
            return self._maps(split).mask_path(image_id)
        return self.root / "annotations" / f"instances_{split}{self.year}.json"

    def list_origin(self, split: Split) -> str:
        if (name := self.lists[split]) is not None:
            return name
        return str(self._maps(split).folder) if self.coco_masks == "maps" else self.mask_path(split).name

    def image(self, split: Split, image_id: str, longer_side: int | None = None) -> NDArray[np.uint8]:
        path = self.image_path(split, image_id)
        image = read_image(path, longer_side)
        height, width = self._masks(split).size(image_id)
        if image.shape[:2] != (height, width) and (found := image_size(path)) != (height, width):
            raise UserError(
                f"image {path} is {found[1]}x{found[0]} pixels, but "
                f"{self.mask_path(split, image_id)} says {width}x{height}: its masks would not fit",
                "restore the original image: it was resized or belongs to another release",
            )
        return image

    def mask(self, split: Split, image_id: str, class_id: int, ignore_classes: Sequence[int] = ()) -> NDArray[np.uint8]:
        return self._masks(split).mask(image_id, class_id, ignore_classes)

    def mask_sizes(self, split: Split) -> dict[str, tuple[int, int]]:
        return self._masks(split).sizes(self._image_ids(split))

    def is_one_image(self, image_id: str) -> bool:
        """An id holds the image's number, which no other image of COCO has."""
        return True

    def missing_images(self, split: Split) -> list[str]:
        folder = self.image_folder(split)
        present = set(os.listdir(folder)) if folder.is_dir() else set()
        masks = self._masks(split)
        return [image_id for image_id in self._image_ids(split) if masks.file_name(image_id) not in present]

    def completion(self, split: Split) -> str:
        return f"complete {self.image_folder(split)}: `fsseg prepare dataset={self.name} dataset.root={self.root}`"

    @classmethod
    def layout(cls, cfg: CocoConfig, splits: Sequence[Split] = SPLITS) -> dict[str, bool]:
        root = Path(cfg.root).expanduser()
        folders = [f"{split}{cfg.year}" for split in splits]
        if cfg.coco_masks == "maps":  # a folder of their own has a fault of its own, see `check_folder`
            files = [] if cfg.label_maps is not None else [f"annotations/{folder}" for folder in folders]
        else:
            files = [f"annotations/instances_{split}{cfg.year}.json" for split in splits]
        there = {name: (root / name).exists() for name in files}
        return there | {name: any((root / base / name).is_dir() for base in ("", "images")) for name in folders}

    @classmethod
    def check_folder(cls, cfg: CocoConfig, splits: Sequence[Split] = SPLITS) -> list[UserError]:
        errors = super().check_folder(cfg, splits)
        if cfg.coco_masks == "maps":
            folders = [_label_maps(cfg) / f"{split}{cfg.year}" for split in splits]
            lacking = [str(folder) for folder in folders if cfg.label_maps is not None and not folder.is_dir()]
            what = f"dataset.label_maps={cfg.label_maps}: there is no folder {' or '.join(lacking)}"
            fix = f"point dataset.label_maps at the folder that holds train{cfg.year} and val{cfg.year} with label PNGs"
            return [*errors, *([UserError(what, fix)] if lacking else [])]
        other = {2014: 2017, 2017: 2014}.get(cfg.year)
        if not (Path(cfg.root).expanduser() / "annotations" / f"instances_val{other}.json").is_file():
            return errors
        return [UserError(f"{e.what} (data of {other}: dataset.year={other})", e.fix) for e in errors]

    @classmethod
    def parts(cls, cfg: CocoConfig, fetch: bool = False) -> tuple[Part, ...]:
        if cfg.year == _YEAR:
            return _PARTS[1:] if cfg.coco_masks == "maps" else _PARTS
        if fetch:
            raise UserError(
                f"dataset.year={cfg.year}: only COCO {_YEAR}, the year of all results, is fetched",
                f"set dataset.year={_YEAR}, or fetch the other year from cocodataset.org",
            )
        return ()

    def compare(self, indexes: Mapping[Split, ClassIndex]) -> Comparison:
        result = Comparison(f"the size of the official files of COCO {self.year}")
        self._compare_sizes(result, indexes)
        if self.year == _YEAR:
            self._compare_pairs(result, indexes)
        else:
            result.causes.append(f"the published lists are of COCO {_YEAR}, not {self.year}")
        return result

    def _compare_sizes(self, result: Comparison, indexes: Mapping[Split, ClassIndex]) -> None:
        """Images of the annotation files; a list names some of them, and label maps may be there for some alone."""
        official = published.facts()["coco20i"]["images"][str(self.year)]
        if self.coco_masks != "maps":
            for split, index in indexes.items():
                if self.lists[split] is None:
                    result.add(f"annotations of {split}{self.year}", "images", official[split], len(index.image_ids))
        if result.differences:
            sizes = ", ".join(f"{d.found} images of {d.published}" for d in result.differences)
            what = "the annotation files are not the official ones, but a part or another release"
            result.causes.append(f"{what}: {sizes}")
        if len(indexes) < 2:
            result.causes.append("a split could not be read: see the faults")

    def _compare_pairs(self, result: Comparison, indexes: Mapping[Split, ClassIndex]) -> None:
        """(image, class) pairs of each class, and of each fold, with the published ones: exactly."""
        known = published.facts()["coco20i"]
        result.published = (
            f"HSNet's lists of COCO {_YEAR}: masks painted, objects from {published.MIN_PIXELS} pixels on"
        )
        before, standard_folds = len(result.differences), self.interleaved and self.num_folds == 4
        for split, index in indexes.items():
            per_class, _ = published.list_sizes(index, range(len(self.classes)))
            for c, name in enumerate(self.classes):
                result.add(f"{split}{_YEAR}", name, known["per_class"][split][name], per_class[c])
            for fold, size in enumerate(known["pairs_per_fold"][split] if standard_folds else ()):
                novel = self.novel_classes(fold)
                pairs = sum(number for c, number in per_class.items() if (c in novel) == (split == "val"))
                result.add(f"fold {fold} {split}", "pairs", size, pairs)
        differ = len(result.differences) > before
        if not standard_folds:
            what = "the folds are not cut the standard way (dataset.contiguous_folds, dataset.num_folds)"
            result.causes.append(what)
        if self.coco_masks == "union":
            result.causes.append(
                "dataset.coco_masks=union: its lists hold about 4 % more pairs than the published ones, which are of "
                "painted masks (dataset.coco_masks=painted)"
            )
        elif self.coco_masks == "maps" and indexes:
            follow = "do not follow the painted rule, or are not complete" if differ else "follow the painted rule"
            result.notes.append(f"these label maps {follow}")
        if result.differences and not result.causes:
            result.causes.append(self._likely_cause())

    def _likely_cause(self) -> str:
        if any(self.lists.values()):
            return "dataset.train_list or dataset.val_list leaves images out that the published lists have"
        if self.coco_masks == "maps":
            return "label maps of another rule, or not all: dataset.coco_masks=painted makes them from the annotations"
        return "annotations that were edited: restore the official archive"


def _label_maps(cfg: CocoConfig) -> Path:
    """The folder of the label maps of both splits."""
    return Path(f"{cfg.root}/annotations" if cfg.label_maps is None else cfg.label_maps).expanduser()
