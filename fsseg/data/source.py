"""The contract between data sets and everything that uses them: `Source`, and the `ClassIndex` it is known by.

A source reads one data set in its official layout. Lists, folds, episodes, transforms and the score are built on top of
this and know nothing of folders or file formats.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "val"]
"""`train`: images whose base classes are trained on; `val`: images whose novel classes are evaluated."""

IGNORE_INDEX = 255


@dataclass(frozen=True)
class ClassIndex:
    """Which classes stand in which images, with how many pixels at original size.

    A pair is listed when the class has at least one pixel (255 never counts). A pair of 0 pixels says that the class is
    in the image but only as pixels of 255 (a crowd of COCO): such a pair is in no list, but an image that holds a novel
    class that way counts as holding it. Pairs are sorted by (image, class).

    Attributes:
        image_ids: (I,) names of all images of the split, in list order, those without any object included.
        pair_image: (P,) int32, position in `image_ids`.
        pair_class: (P,) int16, 0-based class_id.
        pair_pixels: (P,) int64, pixels of the class at original size.
    """

    image_ids: tuple[str, ...]
    pair_image: NDArray[np.int32]
    pair_class: NDArray[np.int16]
    pair_pixels: NDArray[np.int64]

    @property
    def fingerprint(self) -> str:
        """16 hex digits over names and counts: equal for equal annotations, on any machine."""
        digest = hashlib.sha256("\n".join(self.image_ids).encode())
        for array, kind in ((self.pair_image, "<i4"), (self.pair_class, "<i2"), (self.pair_pixels, "<i8")):
            digest.update(np.ascontiguousarray(array, dtype=kind).tobytes())
        return digest.hexdigest()[:16]


class Source(Protocol):
    """One data set on disk. Picklable and cheap to pickle: loader processes get a copy."""

    @property
    def name(self) -> str: ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; position = class_id."""
        ...

    def index(self, split: Split) -> ClassIndex:
        """The index of a split; scans once, then reads its cache.

        Raises:
            UserError: missing folders, unreadable or inconsistent annotations, all in one go.
        """
        ...

    def check(self, splits: Sequence[Split] = ("train", "val")) -> None:
        """Before a run: index the splits and see that all their images are there.

        Raises:
            UserError: with everything that is missing or at fault, in one go.
        """
        ...

    @property
    def mask_rule(self) -> str:
        """How masks are made of the annotations, in words, for the record beside a result."""
        ...

    def list_origin(self, split: Split) -> str:
        """Which list the split's images come from, in words, for the record."""
        ...

    def novel_classes(self, fold: int) -> tuple[int, ...]:
        """class_ids held out in `fold`; the others are the base classes."""
        ...

    def image(self, split: Split, image_id: str, longer_side: int | None = None) -> NDArray[np.uint8]:
        """The image as RGB, (H, W, 3) uint8.

        Args:
            longer_side: pixels on the longer side that are enough. A source may then hand out a larger image reduced
                by 2, 4 or 8, sides rounded up, with no fewer pixels than that (see `images.decode_image`).

        Raises:
            UserError: naming the file, if it is missing or cannot be decoded.
        """
        ...

    def mask(self, split: Split, image_id: str, class_id: int, ignore_classes: Sequence[int] = ()) -> NDArray[np.uint8]:
        """The class as a binary mask at original size, (H, W) uint8 in {0, 1, 255}.

        255 where the annotation says "ignore" (VOC boundary, COCO crowd of this class), and where another class of
        `ignore_classes` stands; 0 at any other class.

        Raises:
            UserError: naming the file, if it is missing, cannot be decoded, or its size differs from the image's.
        """
        ...

    def background_family(self, split: Split, image_id: str) -> int | None:
        """Background family of a generated image (shapes5i); None where there is no such notion."""
        ...
