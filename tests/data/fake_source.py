"""A data set in memory, for tests of what is built on top of `Source`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fsseg.data.source import ClassIndex, Split


def index_of(images: Mapping[str, Mapping[int, int]]) -> ClassIndex:
    """`{image: {class_id: pixels}}` as an index."""
    rows = [(i, c, n) for i, pairs in enumerate(images.values()) for c, n in sorted(pairs.items())]
    return ClassIndex(
        tuple(images),
        np.array([r[0] for r in rows], dtype=np.int32),
        np.array([r[1] for r in rows], dtype=np.int16),
        np.array([r[2] for r in rows], dtype=np.int64),
    )


class FakeSource:
    """Images of 40 x 60 with one block of 16 x 16 per class, four classes to a row; fold f = classes 2f, 2f + 1.

    A class's block is painted with the colour (10 * class_id + 20, 0, 0); the background is (0, image number, 0).
    """

    name = "fake"
    height, width = 40, 60

    def __init__(self, images: Mapping[Split, Mapping[str, Mapping[int, int]]], num_classes: int = 8) -> None:
        self.images = images
        self.classes = tuple(f"class{c}" for c in range(num_classes))

    def index(self, split: Split) -> ClassIndex:
        return index_of(self.images[split])

    def novel_classes(self, fold: int) -> tuple[int, ...]:
        return (2 * fold, 2 * fold + 1)

    def labels(self, split: Split, image_id: str) -> NDArray[np.uint8]:
        """class_id + 1 at each pixel, 0 at background."""
        out = np.zeros((self.height, self.width), dtype=np.uint8)
        for c in self.images[split][image_id]:
            row, column = divmod(c % 8, 4)
            out[2 + 18 * row : 18 + 18 * row, 14 * column : 14 * column + 14] = c + 1
        return out

    def image(self, split: Split, image_id: str, longer_side: int | None = None) -> NDArray[np.uint8]:
        labels = self.labels(split, image_id)
        out = np.zeros((self.height, self.width, 3), dtype=np.uint8)
        out[..., 1] = list(self.images[split]).index(image_id) * (labels == 0)
        out[..., 0] = np.where(labels > 0, 10 * labels + 10, 0)
        return out

    def mask(self, split: Split, image_id: str, class_id: int, ignore_classes: Sequence[int] = ()) -> NDArray[np.uint8]:
        labels = self.labels(split, image_id)
        out = (labels == class_id + 1).astype(np.uint8)
        for other in ignore_classes:
            if other != class_id:
                out[labels == other + 1] = 255
        return out

    def background_family(self, split: Split, image_id: str) -> int | None:
        return list(self.images[split]).index(image_id) % 3
