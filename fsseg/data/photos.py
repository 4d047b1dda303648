"""Images and masks of a user's own, as files, PIL images or arrays. `fsseg.engine.predict` is the caller.

Photos are turned as people see them (EXIF orientation), their masks alike. `fsseg.data.binary_masks` says which masks
are read.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fsseg.data.binary_masks import marked, mask_values, two_values
from fsseg.data.images import decode_image, eight_bits, opened, orientation, read_file, sideways, turned
from fsseg.errors import UserError

Picture = str | os.PathLike[str] | Image.Image | NDArray[Any]
"""What may be given as an image or a mask: a path, a PIL image, or an array."""

_ARRAY = "give a path, a PIL image, or an array (H, W, 3) of uint8, RGB"
_MASK = "give a path, a PIL image, or an array (H, W) of bool or of whole numbers: 0, and 1 or 255 for the object"


@dataclass(frozen=True)
class Photo:
    """An image of a user, upright.

    Attributes:
        name: the path, or what it is called in messages.
        pixels: (H, W, 3) uint8, RGB; a large JPEG reduced by 2, 4 or 8 (see `fsseg.data.images.decode_image`).
        size: (height, width) of the whole image.
        orientation: of its EXIF; 1 if it was upright.
    """

    name: str
    pixels: NDArray[np.uint8]
    size: tuple[int, int]
    orientation: int = 1

    @property
    def was_turned(self) -> bool:
        return self.orientation != 1


def photo(given: Picture, longer_side: int | None = None, name: str = "the image") -> Photo:
    """An image from a path, a PIL image or an array.

    Args:
        longer_side: pixels that suffice on the longer side, for files; None decodes them whole.
        name: of what is no file.

    Raises:
        UserError: it is missing, damaged, too large, of another depth than 8 or 16 bits, or no image.
    """
    if isinstance(given, str | os.PathLike):
        name = os.fspath(given)
        data = read_file(name, "image")
        with opened(name, data=data) as image:
            size, turn = (image.height, image.width), orientation(image)
        pixels = decode_image(data, longer_side, name, upright=True)
    elif isinstance(given, Image.Image):
        if given.mode == "F" or (given.mode == "I" and given.format != "PNG"):  # see `decode_image`
            raise UserError(f"{name} is a PIL image of mode {given.mode}", "convert it to RGB, or to 8 or 16 bits")
        size, turn = (given.height, given.width), orientation(given)
        grey = np.repeat(eight_bits(given)[..., None], 3, axis=2) if given.mode.startswith("I") else None
        pixels = turned(np.array(given.convert("RGB")) if grey is None else grey, turn)
    else:
        pixels = np.asarray(given)
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or not pixels.size:
            raise UserError(f"{name} is {_words(given, pixels)}", _ARRAY)
        size, turn = (pixels.shape[0], pixels.shape[1]), 1
    return Photo(name, pixels, size[::-1] if sideways(turn) else size, turn)


def mask_of(
    given: Picture, of: Photo, name: str = "the mask", true: bool = False, ones: bool = False
) -> NDArray[np.uint8]:
    """The mask of a photo, (H, W) uint8 in {0, 1, 255}: 1 is the object, 255 is left out.

    What is beside 0 is the object, see `fsseg.data.binary_masks.two_values`. A mask that has the size of the photo as
    it is stored, and not of the photo upright, is turned with it.

    Args:
        given: a path, a PIL image, or an array (H, W) of numbers or of bool.
        of: the photo; its `name` stands in messages.
        name: of a mask that is no file.
        true: of a mask to score by, which need not mark anything.
        ones: 1 is the object, also where there is none of it: 255 is always left out.

    Raises:
        UserError: it cannot be read, has other values, marks nothing, or is of another size.
    """
    if isinstance(given, str | os.PathLike):
        name = os.fspath(given)
        with opened(name, "mask image", read_file(name, "mask image")) as image:
            values, turn = mask_values(image, name), orientation(image)
    elif isinstance(given, Image.Image):
        values, turn = mask_values(given, name), orientation(given)
    else:
        values, turn = np.asarray(given), 1
        if values.ndim != 2 or values.dtype.kind not in "bui" or not values.size:
            raise UserError(f"{name} is {_words(given, values)}", _MASK)
    mask = turned(marked(two_values(values, name), ones), turn)
    if mask.shape != of.size and mask.shape == of.size[::-1] and sideways(of.orientation) and turn == 1:
        mask = turned(mask, of.orientation)
    if mask.shape != of.size:
        raise UserError(
            f"{name} has {mask.shape[1]} x {mask.shape[0]} pixels, and its image {of.name} {of.size[1]} x {of.size[0]}",
            "draw the mask on the image at its own size",
        )
    if not true and not (mask == 1).any():
        raise UserError(f"{name} marks no pixel of an object", "draw the object with 255 (white) on 0 (black)")
    return mask


def holds_a_one(path: str | os.PathLike[str]) -> bool:
    """Whether a mask says by the value 1 what the object is; False if it cannot be read."""
    try:
        with opened(os.fspath(path), "mask image", read_file(os.fspath(path), "mask image")) as image:
            return bool((mask_values(image, os.fspath(path)) == 1).any())
    except UserError:
        return False


def _words(given: Any, array: NDArray[Any]) -> str:
    """What was given in place of an image or a mask."""
    if not array.ndim:
        return f"given as {type(given).__name__}"
    return f"an array of {' x '.join(map(str, array.shape))} of {array.dtype}"
