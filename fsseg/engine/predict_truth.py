"""True masks beside predictions of `fsseg predict`: intersection and union in pixels, as an evaluation counts them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

from fsseg.data.own_files import Truths
from fsseg.data.photos import Photo, holds_a_one, mask_of
from fsseg.data.source import IGNORE_INDEX
from fsseg.engine.predict import Answer
from fsseg.errors import UserError


class TrueMasks:
    """The true masks of some images.

    An object is 255; or 1, where any of the masks holds a 1: then 255 is left out of the score, as on VOC's boundaries,
    also in a mask that shows nothing of its class.
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
        found = {}
        for name, file in self._truths.files(image).items():
            try:
                truth = mask_of(file, photo, true=True, ones=self._ones)
            except UserError as error:
                fault(image, error)
                continue
            mask, true = answer.mask_of(name) & (truth != IGNORE_INDEX), truth == 1
            found[name] = (int((mask & true).sum()), int((mask | true).sum()))
        return found

    @cached_property
    def _ones(self) -> bool:
        """Whether the masks mark objects by 1; they are looked through once, up to the first that does."""
        return any(holds_a_one(file) for image in self._images for file in self._truths.files(image).values())
