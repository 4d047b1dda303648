"""True masks beside predictions of `fsseg predict`: intersection and union in pixels, as an evaluation counts them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fsseg.data.images import read_labels
from fsseg.data.own_files import Truths
from fsseg.data.photos import Photo, holds_a_one, mask_of
from fsseg.data.source import IGNORE_INDEX
from fsseg.engine.predict import Answer
from fsseg.errors import UserError


class TrueMasks:
    """The true masks of some images.

    Of masks with numbers of classes (`Truths.numbers`) 255 is left out of the score. Else an object is what is beside
    0; where any of the masks holds a 1, 255 is left out, as on VOC's boundaries, also in a mask that shows nothing of
    its class.
    """

    def __init__(self, truths: Truths, images: Sequence[Path]) -> None:
        self._truths, self._images = truths, images

    def scores(
        self, image: Path, photo: Photo, answer: Answer, fault: Callable[[Path, UserError], None]
    ) -> dict[str, tuple[int, int]]:
        """Class -> intersection and union, where there is a true mask.

        Args:
            fault: is told of a mask that cannot be used.
        """
        files = self._truths.files(image)
        try:
            truths = self._indexed(files, photo)
        except UserError as error:
            fault(image, error)
            return {}
        found = {}
        for name, file in files.items():
            try:
                truth = truths[name] if truths else mask_of(file, photo, true=True, ones=self._ones)
            except UserError as error:
                fault(image, error)
                continue
            mask, true = answer.mask_of(name) & (truth != IGNORE_INDEX), truth == 1
            found[name] = (int((mask & true).sum()), int((mask | true).sum()))
        return found

    def _indexed(self, files: Mapping[str, Path], photo: Photo) -> dict[str, NDArray[np.uint8]]:
        """Class -> true mask as `mask_of` gives it, out of the one mask of numbers; empty where masks are of one class.

        Raises:
            UserError: it cannot be read, is of another size, or holds a number that is of no class.
        """
        numbers = self._truths.numbers
        if not numbers or not files:
            return {}
        path = next(iter(files.values()))
        labels = read_labels(path, own=True)
        if others := sorted(set(np.unique(labels).tolist()) - {0, IGNORE_INDEX, *numbers.values()}):
            what = f"{path} holds {', '.join(map(str, others))}, for which {self._truths.named_in} has no line"
            raise UserError(what, "mend the mask, or complete the list of classes")
        of_class = {name: np.where(labels == IGNORE_INDEX, IGNORE_INDEX, labels == numbers[name]) for name in files}
        return {name: mask_of(mask.astype(np.uint8), photo, str(path), true=True, ones=True)
                for name, mask in of_class.items()}  # fmt: skip

    @cached_property
    def _ones(self) -> bool:
        """Whether the masks mark objects by 1; they are looked through once, up to the first that does."""
        return any(holds_a_one(file) for image in self._images for file in self._truths.files(image).values())
