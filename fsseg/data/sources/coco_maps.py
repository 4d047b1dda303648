"""`LabelMaps`, the rule `maps` of COCO's masks: label PNGs that people already have, as they are. `coco` is the caller.

A folder holds `<image id>.png` for each image of a split, in the layout of HSNet and PFENet (`annotations/val2014`
beside `val2014`). Label v is class_id v - 1, 0 is background, 255 is ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fsseg.data.faults import Fault
from fsseg.data.images import image_size, read_labels
from fsseg.data.source import ClassIndex, label_table
from fsseg.data.sources.mask_scan import (
    MaskFile,
    build_index,
    kept_counts,
    list_files,
    scan_masks,
    unknown_faults,
)
from fsseg.errors import UserError


class LabelMaps:
    """The label maps of one split.

    Attributes:
        folder: that they lie in.
        cache: folders that their counts are kept in (see `arrays.cache_folders`).
    """

    def __init__(self, folder: Path, cache: list[Path], num_classes: int) -> None:
        self.folder, self.cache, self._num_classes = folder, cache, num_classes
        self._sizes: dict[str, tuple[int, int]] = {}

    @cached_property
    def _files(self) -> dict[str, MaskFile]:
        if not (files := list_files(self.folder, ".png")):
            raise UserError(
                f"no label maps in {self.folder}",
                "set dataset.label_maps to the folder that holds train2014 and val2014 with PNGs, or "
                "dataset.coco_masks=painted to make masks from COCO's annotations",
            )
        return files

    @property
    def image_ids(self) -> list[str]:
        """Of all maps, in the order of their names.

        Raises:
            UserError: there are none.
        """
        return sorted(self._files)

    def file_name(self, image_id: str) -> str:
        """Name of an image's file."""
        return f"{image_id}.jpg"

    def mask_path(self, image_id: str) -> Path:
        """The file of a map, whether it exists or not."""
        return self.folder / f"{image_id}.png"

    def size(self, image_id: str) -> tuple[int, int]:
        """(height, width) in pixels.

        Raises:
            UserError: the map is missing or damaged.
        """
        return image_size(self.mask_path(image_id))

    def index(self, image_ids: Sequence[str]) -> tuple[ClassIndex, list[Fault]]:
        """The index of those images whose maps can be read, in their order, and every fault of the maps."""
        counts, faults = scan_masks(self.folder.name, self._files, image_ids, self.cache)
        self._sizes = {image_id: (count.height, count.width) for image_id, count in counts.items()}
        index, unknown = build_index([i for i in image_ids if i in counts], counts, self._num_classes)
        paths = {image_id: self.mask_path(image_id) for image_id in unknown}
        return index, faults + unknown_faults(paths, unknown, self._num_classes)

    def sizes(self, image_ids: Sequence[str]) -> dict[str, tuple[int, int]]:
        """(height, width) of those maps that can be read, by image id."""
        if not self._sizes:
            self.index(image_ids)
        return self._sizes

    def kept_index(self, image_ids: Sequence[str]) -> ClassIndex | None:
        """The index by an earlier scan; None if there is none of these maps as they are now."""
        counts = kept_counts(self.folder.name, self._files, self.cache)
        if not counts.keys() >= set(image_ids):
            return None
        index, unknown = build_index(image_ids, counts, self._num_classes)
        return None if unknown else index

    def mask(self, image_id: str, class_id: int, ignore_classes: Sequence[int] = ()) -> NDArray[np.uint8]:
        """As in `Source`."""
        labels = read_labels(self.mask_path(image_id))
        return np.take(label_table(class_id, ignore_classes), labels)
