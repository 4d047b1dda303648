"""The rule `union` of COCO's masks: all instances of a class together, through pycocotools. `coco_store` is the caller.

A class has one run-length code for its instances and one for its crowds; pixels that only a crowd covers are 255.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle

from fsseg.data.arrays import Arrays
from fsseg.data.source import IGNORE_INDEX
from fsseg.data.sources.coco_annotations import run_lengths


@dataclass
class _Codes:
    """Run-length codes per (image position, class_id), gathered annotation by annotation."""

    codes: dict[tuple[int, int], list[Any]] = field(default_factory=dict)

    def arrays(self, kind: str) -> Arrays:
        pairs: list[tuple[int, int]] = []
        pixels: list[int] = []
        blobs: list[bytes] = []
        for pair in sorted(self.codes):
            code = rle.merge(self.codes.pop(pair))
            if area := int(rle.area(code)):
                pairs.append(pair)
                pixels.append(area)
                blobs.append(code["counts"])
        table = np.array(pairs, dtype=np.int32).reshape(-1, 2)
        return {
            f"{kind}_image": np.ascontiguousarray(table[:, 0]),
            f"{kind}_class": table[:, 1].astype(np.int16),
            f"{kind}_pixels": np.array(pixels, dtype=np.int64),
            f"{kind}_begin": np.cumsum([0, *map(len, blobs)], dtype=np.int64),
            f"{kind}_code": np.frombuffer(b"".join(blobs), dtype=np.uint8),
        }


class UnionMaker:
    """Gathers annotations, and makes the arrays of a store of them."""

    def __init__(self) -> None:
        self._instances, self._crowds = _Codes(), _Codes()

    def add(self, position: int, size: tuple[int, int], annotation: dict[str, Any], class_id: int) -> None:
        """Add one sound annotation of the image at `position`; `size` is (height, width)."""
        shape = annotation["segmentation"]
        if isinstance(shape, dict):
            code = rle.frPyObjects({"size": list(size), "counts": run_lengths(shape)}, *size)
        else:
            code = rle.merge(rle.frPyObjects(shape, *size))
        union = self._crowds if annotation.get("iscrowd") else self._instances
        union.codes.setdefault((position, class_id), []).append(code)

    def arrays(self, sizes: Sequence[tuple[int, int]]) -> Arrays:
        """The arrays of all that was added, which is given up on the way."""
        return {**self._instances.arrays("pair"), **self._crowds.arrays("crowd")}


class UnionMasks:
    """The masks of a store, by image position and class_id."""

    def __init__(self, arrays: Arrays) -> None:
        self._arrays = arrays

    def pairs(self) -> dict[tuple[int, int], int]:
        """Pixels of each pair with at least one instance pixel; 0 for those with crowd pixels alone."""
        own = list(zip(self._arrays["pair_image"].tolist(), self._arrays["pair_class"].tolist()))
        pixels = dict(zip(own, self._arrays["pair_pixels"].tolist()))
        for pair in zip(self._arrays["crowd_image"].tolist(), self._arrays["crowd_class"].tolist()):
            pixels.setdefault(pair, 0)
        return pixels

    def mask(
        self, position: int, size: tuple[int, int], class_id: int, ignore_classes: Sequence[int]
    ) -> NDArray[np.uint8]:
        """As in `Source`. A pixel of an instance is 1 even where a crowd of the class overlaps it, and 255 where one of
        `ignore_classes` (instance or crowd) does."""
        mask = np.zeros(size, dtype=np.uint8)
        for counts in self._codes("crowd", position, class_id):
            mask[rle.decode({"size": list(size), "counts": counts}) > 0] = IGNORE_INDEX
        for counts in self._codes("pair", position, class_id):
            mask[rle.decode({"size": list(size), "counts": counts}) > 0] = 1
        for other in ignore_classes:
            if other != class_id:
                for counts in (*self._codes("pair", position, other), *self._codes("crowd", position, other)):
                    mask[rle.decode({"size": list(size), "counts": counts}) > 0] = IGNORE_INDEX
        return mask

    def _codes(self, kind: str, position: int, class_id: int) -> tuple[bytes, ...]:
        """Compressed run lengths of the class's instances (pair) or crowds; empty if the image has none."""
        low, high = np.searchsorted(self._arrays[f"{kind}_image"], [position, position + 1])
        found = np.flatnonzero(self._arrays[f"{kind}_class"][low:high] == class_id)
        if not found.size:
            return ()
        begin, end = self._arrays[f"{kind}_begin"][low + found[0] : low + found[0] + 2].tolist()
        return (self._arrays[f"{kind}_code"][begin:end].tobytes(),)
