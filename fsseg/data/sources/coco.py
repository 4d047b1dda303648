"""`CocoSource`, COCO-20i: COCO images with masks made on demand from `instances_*.json`.

Our rule, since published PNG masks differ between groups: an image has one binary mask per class, the union of all its
instances, all polygons of each; crowd regions are not foreground, and pixels that only a crowd of the class covers are
255. `run` and the `fsseg` command are the callers; the masks come out of the store that `coco_store` makes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle

from fsseg.config.schema import CocoConfig, DatasetConfig
from fsseg.data.arrays import cache_folders
from fsseg.data.faults import Fault, faults_error
from fsseg.data.folds import COCO_CLASSES, fold_classes
from fsseg.data.images import image_size, read_image
from fsseg.data.source import IGNORE_INDEX, ClassIndex, Split
from fsseg.data.sources.coco_store import CocoStore, open_store
from fsseg.errors import UserError


class CocoSource:
    """COCO in its official layout. Implements `source.Source`.

    Layout below `root`: `annotations/instances_{train,val}{year}.json` and images in `{train,val}{year}/` or
    `images/{train,val}{year}/`. An image id is the file name without its ending.

    Args:
        cfg: as `conf/dataset/coco20i.yaml` describes it; used are name, root, year, num_folds, contiguous_folds, cache.
    """

    def __init__(self, cfg: CocoConfig) -> None:
        self.name = cfg.name
        self.root = Path(cfg.root).expanduser()
        self.year = cfg.year
        self.num_folds = cfg.num_folds
        self.contiguous_folds = cfg.contiguous_folds
        self.cache = cfg.cache
        self.classes = COCO_CLASSES
        self._stores: dict[Split, CocoStore] = {}
        self._indexes: dict[Split, ClassIndex] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_stores": {}, "_indexes": {}}  # a loader process maps the store itself

    def novel_classes(self, fold: int) -> tuple[int, ...]:
        """class_ids held out in `fold`.

        Raises:
            UserError: there is no such fold.
        """
        return fold_classes(len(self.classes), self.num_folds, fold, interleaved=not self.contiguous_folds)

    def annotation_path(self, split: Split) -> Path:
        """The JSON file of a split."""
        return self.root / "annotations" / f"instances_{split}{self.year}.json"

    def index(self, split: Split) -> ClassIndex:
        """The index of a split, from the annotations alone: images may be absent (see `missing_images`).

        Raises:
            UserError: the annotations are missing or faulty, everything in one go.
        """
        if split not in self._indexes:
            store, faults = self._open(split, verify=True)
            if store is None:
                raise faults_error(faults)
            self._indexes[split] = store.index()
        return self._indexes[split]

    def scan(self, split: Split) -> tuple[ClassIndex | None, list[Fault]]:
        """The index of a split and everything wrong with its annotations; no index if anything is.

        Raises:
            UserError: there is no such file, or it is no COCO JSON at all.
        """
        store, faults = self._open(split, verify=True)
        return (None if store is None else store.index()), faults

    def _open(self, split: Split, verify: bool) -> tuple[CocoStore | None, list[Fault]]:
        store, faults = open_store(self.annotation_path(split), cache_folders(self.root, self.cache), verify)
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
        """Where the image lies."""
        store = self._store(split)
        return self.image_folder(split) / store.file_names[store.position(image_id)]

    def image(self, split: Split, image_id: str, longer_side: int | None = None) -> NDArray[np.uint8]:
        """The image as RGB, (H, W, 3) uint8; see `source.Source.image`.

        Raises:
            UserError: naming the file, if it is missing, cannot be decoded, or is not of the annotated size.
        """
        path = self.image_path(split, image_id)
        image = read_image(path, longer_side)
        store = self._store(split)
        height, width = store.size(store.position(image_id))
        if image.shape[:2] != (height, width) and (found := image_size(path)) != (height, width):
            raise UserError(
                f"image {path} is {found[1]}x{found[0]} pixels, but "
                f"{self.annotation_path(split)} says {width}x{height}: its masks would not fit",
                "restore the original image: it was resized or belongs to another release",
            )
        return image

    def mask(self, split: Split, image_id: str, class_id: int, ignore_classes: Sequence[int] = ()) -> NDArray[np.uint8]:
        """The class as a binary mask at original size, (H, W) uint8 in {0, 1, 255}; see `source.Source.mask`.

        A pixel of an instance is 1 even where a crowd of the class overlaps it, and 255 where one of `ignore_classes`
        (instance or crowd) does.

        Raises:
            UserError: naming the annotation file, if it does not list the image.
        """
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
        """(height, width) that the annotations give for every image of a split, by image id."""
        store = self._store(split)
        return {image_id: store.size(position) for position, image_id in enumerate(store.image_ids)}

    def mask_path(self, split: Split, image_id: str) -> Path:
        """The file that an image's masks come from."""
        return self.annotation_path(split)

    @property
    def mask_rule(self) -> str:
        return "union of all instances per class; pixels covered only by a crowd of the class are ignored"

    def list_origin(self, split: Split) -> str:
        """One line for the record: which list the split's images come from."""
        return self.annotation_path(split).name

    def background_family(self, split: Split, image_id: str) -> int | None:
        """None: photographs have no such notion."""
        return None

    def missing_images(self, split: Split) -> list[str]:
        """Ids of annotated images that are not in the image folder."""
        folder = self.image_folder(split)
        present = set(os.listdir(folder)) if folder.is_dir() else set()
        store = self._store(split)
        return [image_id for image_id, name in zip(store.image_ids, store.file_names) if name not in present]

    def check(self, splits: Sequence[Split] = ("train", "val")) -> None:
        """Before a run: index the splits and see that their images are there.

        Raises:
            UserError: with everything that is missing or faulty, in one go.
        """
        faults: list[Fault] = []
        for split in splits:
            index, found = self.scan(split)
            faults += found
            if index is not None:
                self._indexes[split] = index
                fix = (
                    f"complete {self.image_folder(split)}: `fsseg prepare dataset={self.name} dataset.root={self.root}`"
                )
                kind = f"missing images of the {split} list"
                faults += [Fault(kind, str(self.image_path(split, i)), "", fix) for i in self.missing_images(split)]
        if faults:
            raise faults_error(faults)

    @classmethod
    def check_folder(cls, cfg: DatasetConfig, splits: Sequence[Split] = ("train", "val")) -> list[UserError]:
        """What the folder lacks for `splits`, by a look at the directory alone; nothing is read."""
        root = Path(cfg.root).expanduser()
        year = getattr(cfg, "year", 2014)
        files = [f"annotations/instances_{split}{year}.json" for split in splits]
        folders = [f"{split}{year}" for split in splits]
        expected = ", ".join([*files, *folders])
        command = f"fsseg prepare dataset={cfg.name} dataset.root={cfg.root} --download"
        if not root.is_dir():
            what = f"dataset.root={cfg.root}: there is no folder {root.absolute()}; expected there: {expected}"
            return [UserError(what, f"point dataset.root at the data, or run `{command}`")]
        lacking = [name for name in files if not (root / name).is_file()]
        lacking += [n for n in folders if not (root / n).is_dir() and not (root / "images" / n).is_dir()]
        if not lacking:
            return []
        found = sorted(path.name for path in root.iterdir() if not path.name.startswith("."))
        holds = f"it holds {', '.join(found[:8])}{', ...' if len(found) > 8 else ''}" if found else "it is empty"
        other = {2014: 2017, 2017: 2014}.get(year)
        if other and (root / "annotations" / f"instances_val{other}.json").is_file():
            holds += f" (data of {other}: dataset.year={other})"
        what = f"dataset.root={cfg.root}: {root.absolute()} lacks {', '.join(lacking)}; {holds}"
        return [UserError(what, f"point dataset.root at the folder with {expected}, or run `{command}`")]
