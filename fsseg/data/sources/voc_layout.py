"""`VocSource`, the base of data sets in VOC2012's layout: PASCAL (`voc`) and the generated `shapes`.

Layout below `root`: `JPEGImages/<id>.jpg`, `ImageSets/Segmentation/<list>.txt`, and masks in
`SegmentationClass/<id>.png` or else in `SegmentationClassAug/<id>.png`; mask value v stands for class_id v - 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fsseg.config.schema import DatasetConfig
from fsseg.data.arrays import cache_folders
from fsseg.data.faults import Fault
from fsseg.data.images import image_size, read_file, read_image, read_labels, size_error
from fsseg.data.source import ClassIndex, Source, Split, label_table
from fsseg.data.sources.mask_scan import (
    MaskCount,
    build_index,
    kept_counts,
    list_files,
    scan_masks,
    unknown_faults,
)
from fsseg.data.sources.voc_lists import find_list, read_list
from fsseg.errors import UserError

IMAGES, LISTS = "JPEGImages", "ImageSets/Segmentation"
MASKS, MASKS_AUG = "SegmentationClass", "SegmentationClassAug"


class VocSource(Source):
    """A data set in VOC2012's layout; folds are consecutive blocks of classes.

    Attributes:
        train_list, val_list: names under ImageSets/Segmentation, or files.
    """

    mask_rule = "pixels of the class in the segmentation mask; 255 (object boundaries) is ignored"
    masks_advice = "complete the masks, or take the names off the list"

    def __init__(self, cfg: DatasetConfig, classes: Sequence[str], root: Path | None = None) -> None:
        super().__init__(cfg, classes, root)
        self.train_list: str | None = "train"
        self.val_list = "val"
        self._counts: dict[Split, dict[str, MaskCount]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_counts": {}}

    def scan(self, split: Split) -> tuple[ClassIndex, list[Fault]]:
        image_ids, faults = self.list_ids(split)
        counts, unread = self._count_masks(image_ids)
        faults = faults + unread
        index, unknown = build_index([i for i in image_ids if i in counts], counts, len(self.classes))
        paths = {image_id: self.mask_path(split, image_id) for image_id in unknown}
        faults += unknown_faults(paths, unknown, len(self.classes))
        self._counts[split] = counts
        return index, faults

    def kept_index(self, split: Split) -> ClassIndex | None:
        image_ids, faults = self.list_ids(split)
        counts: dict[str, MaskCount] = {}
        left = set(image_ids)
        for label, folder, suffix in self.mask_places():
            if here := left & (files := list_files(folder, suffix)).keys():
                kept = kept_counts(label, files, cache_folders(self.root, self.cache))
                counts.update((i, kept[i]) for i in here if i in kept)
                left -= here
        if faults or len(counts) < len(image_ids):
            return None
        index, unknown = build_index(image_ids, counts, len(self.classes))
        return None if unknown else index

    def mask_counts(self, split: Split) -> dict[str, MaskCount]:
        """Size and values of every readable mask of a split, by image id.

        Raises:
            UserError: the list is missing or cannot be read.
        """
        if split not in self._counts:
            self.scan(split)
        return self._counts[split]

    def list_ids(self, split: Split) -> tuple[list[str], list[Fault]]:
        """Image ids of a split in list order, each once, and a fault for every id the list names again.

        Raises:
            UserError: no such list.
        """
        name, key = self.list_origin(split), f"dataset.{split}_list"
        return read_list(find_list(name, self.root / LISTS, key), f"{key}={name}")

    def listed(self, split: Split) -> Sequence[str]:
        """As in `Source`; no mask is needed for it."""
        try:
            return self._indexes[split].image_ids if split in self._indexes else self.list_ids(split)[0]
        except UserError:
            return ()

    def list_origin(self, split: Split) -> str:
        return self.val_list if split == "val" else str(self.train_list)

    def mask_places(self) -> list[tuple[str, Path, str]]:
        """(label, folder, ending) of the masks, the preferred ones first."""
        return [(folder, self.root / folder, ".png") for folder in (MASKS, MASKS_AUG)]

    def _count_masks(self, image_ids: list[str]) -> tuple[dict[str, MaskCount], list[Fault]]:
        folders = cache_folders(self.root, self.cache)
        left, counts, faults = list(image_ids), {}, []
        for label, folder, suffix in self.mask_places():
            files = list_files(folder, suffix)
            here = [i for i in left if i in files]
            if here:
                found, unread = scan_masks(label, files, here, folders)
                counts.update(found)
                faults += unread
                left = [i for i in left if i not in files]
        for image_id in left:
            places = ", ".join(f"no {image_id}{suffix} in {label}" for label, _, suffix in self.mask_places())
            faults.append(Fault("missing masks", str(self.root / MASKS / f"{image_id}.png"), places, self.masks_advice))
        return counts, faults

    def mask_sizes(self, split: Split) -> dict[str, tuple[int, int]]:
        return {image_id: (count.height, count.width) for image_id, count in self.mask_counts(split).items()}

    def mask_path(self, split: Split, image_id: str) -> Path:
        places = [folder / f"{image_id}{suffix}" for _, folder, suffix in self.mask_places()]
        return next((path for path in places if path.is_file()), places[0])

    def image_path(self, split: Split, image_id: str) -> Path:
        return self.root / IMAGES / f"{image_id}.jpg"

    def image(self, split: Split, image_id: str, longer_side: int | None = None) -> NDArray[np.uint8]:
        return read_image(self.image_path(split, image_id), longer_side, self.content)

    def mask(self, split: Split, image_id: str, class_id: int, ignore_classes: Sequence[int] = ()) -> NDArray[np.uint8]:
        path = self.mask_path(split, image_id)
        labels = read_labels(path, self.content)
        picture = self.image_path(split, image_id)
        if picture.is_file() and (size := image_size(picture)) != labels.shape:
            raise size_error(picture, size, path, labels.shape)
        return np.take(label_table(class_id, ignore_classes), labels)  # three times as fast as table[labels]

    def content(self, path: Path | str, kind: str) -> bytes:
        """Content of an image or mask; a data set that knows what it must be checks it here.

        Raises:
            UserError: it is missing, cannot be read, or is another one.
        """
        return read_file(path, kind)

    def missing_images(self, split: Split) -> list[str]:
        present = list_files(self.root / IMAGES, ".jpg")
        return [image_id for image_id in self.list_ids(split)[0] if image_id not in present]

    def completion(self, split: Split) -> str:
        return f"complete {self.root / IMAGES}, or name a list of the images you have: dataset.{split}_list=..."
