"""The rule `painted` of COCO's masks, that of the published lists: instances over each other in one label map an image.

In file order, each over what is there already; every polygon by itself with OpenCV's `fillPoly`, at coordinates cut to
whole numbers; instances given as run lengths as they are; crowds left out. `coco_store` is the caller.

A map is kept as its runs of equal labels, row by row, compressed: half the size of the codes of `union`, and decoded
in a fifth of their time.
"""

from __future__ import annotations

import logging
import time
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fsseg.data.arrays import Arrays
from fsseg.data.source import label_table
from fsseg.data.sources.coco_annotations import run_lengths
from fsseg.errors import UserError

log = logging.getLogger(__name__)

_SINCE = (4, 11)
"""OpenCV 4.8 to 4.10 fill beyond a polygon's outline. Later ones paint as 4.7 and earlier did, in whose time the
published masks were made, but for polygons that leave their image."""
_PROGRESS_SECONDS = 5.0

_Outline = list[NDArray[np.int32]]  # the polygons of an instance, (points, 2)


class PaintedMaker:
    """Gathers annotations, and makes the arrays of a store of them.

    Raises:
        UserError: OpenCV is too old.
    """

    def __init__(self) -> None:
        import cv2  # here, because a run that finds a store needs none of it

        if tuple(int(number) for number in cv2.__version__.split(".")[:2]) < _SINCE:
            raise UserError(
                f"OpenCV {cv2.__version__} does not paint COCO's masks as the published ones were painted",
                "install a later one: pip install 'opencv-python-headless>=4.11'",
            )
        self._fill = cv2.fillPoly
        self._shapes: dict[int, list[tuple[int, _Outline | NDArray[np.int64]]]] = {}

    def add(self, position: int, size: tuple[int, int], annotation: dict[str, Any], class_id: int) -> None:
        """Add one sound annotation of the image at `position`; `size` is (height, width)."""
        if annotation.get("iscrowd"):
            return
        shape = annotation["segmentation"]
        kept: _Outline | NDArray[np.int64]  # some of the memory that the annotation takes
        if isinstance(shape, dict):
            kept = np.array(run_lengths(shape), dtype=np.int64)
        else:
            kept = [np.array(polygon, dtype=np.float64).astype(np.int32).reshape(-1, 2) for polygon in shape]
        self._shapes.setdefault(position, []).append((class_id + 1, kept))

    def arrays(self, sizes: Sequence[tuple[int, int]]) -> Arrays:
        """The arrays of all that was added, which is given up on the way.

        Args:
            sizes: (height, width) of all images.
        """
        pairs: list[tuple[int, int, int]] = []
        codes: list[bytes] = []
        told = time.monotonic()
        for position, size in enumerate(sizes):
            code: bytes = b""
            pixels: dict[int, int] = {}
            if shapes := self._shapes.pop(position, None):
                code, pixels = encode(self._painted(size, shapes))
            codes.append(code)
            pairs += [(position, label - 1, number) for label, number in pixels.items()]
            if time.monotonic() - told > _PROGRESS_SECONDS:
                told = time.monotonic()
                log.info("painted %d of %d label maps", position + 1, len(sizes))
        table = np.array(pairs, dtype=np.int64).reshape(-1, 3)
        return {
            "pair_image": table[:, 0].astype(np.int32),
            "pair_class": table[:, 1].astype(np.int16),
            "pair_pixels": np.ascontiguousarray(table[:, 2]),
            "begin": np.cumsum([0, *map(len, codes)], dtype=np.int64),
            "code": np.frombuffer(b"".join(codes), dtype=np.uint8),
        }

    def _painted(
        self, size: tuple[int, int], shapes: list[tuple[int, _Outline | NDArray[np.int64]]]
    ) -> NDArray[np.uint8]:
        labels = np.zeros(size, dtype=np.uint8)
        for label, shape in shapes:
            if isinstance(shape, list):
                for polygon in shape:  # all in one call would leave holes where they overlap
                    self._fill(labels, [polygon], label)
            else:
                ones = np.repeat(np.arange(len(shape)) % 2 == 1, shape)
                labels[ones.reshape(size[::-1]).T] = label
        return labels


def encode(labels: NDArray[np.uint8]) -> tuple[bytes, dict[int, int]]:
    """The code of a label map, and the pixels of each label but 0 in it."""
    flat = labels.ravel()
    starts = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1))
    values, lengths = flat[starts], np.diff(starts, append=flat.size).astype("<u4")
    planes = lengths.view(np.uint8).reshape(-1, 4).T  # low bytes together, then the next: mostly 0
    pixels = np.bincount(values, weights=lengths)
    found = {int(label): int(pixels[label]) for label in np.flatnonzero(pixels) if label}
    return zlib.compress(values.tobytes() + planes.tobytes()), found


def decode(code: bytes, size: tuple[int, int], table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The label map of a code, (H, W), with each label replaced by its value in `table`, (256,)."""
    content = zlib.decompress(code)
    runs = len(content) // 5
    planes = np.frombuffer(content, np.uint8, offset=runs).reshape(4, runs)
    lengths = np.ascontiguousarray(planes.T).view("<u4").ravel()
    return np.repeat(table[np.frombuffer(content, np.uint8, runs)], lengths).reshape(size)


class PaintedMasks:
    """The masks of a store, by image position and class_id."""

    def __init__(self, arrays: Arrays) -> None:
        self._arrays = arrays

    def pairs(self) -> dict[tuple[int, int], int]:
        """Pixels of each pair."""
        pairs = zip(self._arrays["pair_image"].tolist(), self._arrays["pair_class"].tolist())
        return dict(zip(pairs, self._arrays["pair_pixels"].tolist()))

    def mask(
        self, position: int, size: tuple[int, int], class_id: int, ignore_classes: Sequence[int]
    ) -> NDArray[np.uint8]:
        """As in `Source`: each pixel is of one class at most."""
        begin, end = self._arrays["begin"][position : position + 2].tolist()
        if begin == end:
            return np.zeros(size, dtype=np.uint8)
        return decode(self._arrays["code"][begin:end].tobytes(), size, label_table(class_id, ignore_classes))
