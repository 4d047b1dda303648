"""Images and masks of a user's own, as files, PIL images or arrays. `fsseg.engine.predict` is the caller.

Unlike those of data sets, photos are turned as people see them (EXIF orientation), their masks alike. A mask has 0 for
background and 255 or 1 for the object.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fsseg.data.images import decode_image, opened, read_file, rgb
from fsseg.data.source import IGNORE_INDEX
from fsseg.errors import UserError

Picture = str | os.PathLike[str] | Image.Image | NDArray[Any]
"""What may be given as an image or a mask: a path, a PIL image, or an array."""

_ORIENTATION = 0x0112  # the EXIF tag; 1 is upright
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""Orientation -> what makes the stored pixels upright (EXIF 2.3, tag Orientation)."""
_SIDEWAYS = (5, 6, 7, 8)
_ARRAY = "give an array (H, W, 3) of uint8, RGB"


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
        path = os.fspath(given)
        data = read_file(path, "image")
        with opened(data, path) as image:
            orientation = _orientation(image)
            size = image.height, image.width
        pixels = decode_image(data, longer_side, path)
        name = path
    elif isinstance(given, Image.Image):
        if given.mode == "F" or (given.mode == "I" and given.format != "PNG"):  # see `decode_image`
            raise UserError(f"{name} is a PIL image of mode {given.mode}", "convert it to RGB, or to 8 or 16 bits")
        pixels, size, orientation = rgb(given), (given.height, given.width), _orientation(given)
    else:
        pixels = np.asarray(given)
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or not pixels.size:
            raise UserError(f"{name} is an array of {_shape(pixels)} of {pixels.dtype}", _ARRAY)
        size, orientation = (pixels.shape[0], pixels.shape[1]), 1
    if orientation in _SIDEWAYS:
        size = size[::-1]
    return Photo(name, _upright(pixels, orientation), size, orientation)


def mask_of(
    given: Picture, of: Photo, name: str = "the mask", true: bool = False, ones: bool = False
) -> NDArray[np.uint8]:
    """The mask of a photo, (H, W) uint8 in {0, 1, 255}: 1 is the object, 255 is left out.

    Where 255 is the only value beside 0, it is the object. A mask that has the size of the photo as it is stored, and
    not of the photo upright, is turned with it.

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
        with opened(read_file(name, "image"), name) as image:
            values, orientation = _values(image, name), _orientation(image)
    elif isinstance(given, Image.Image):
        values, orientation = _values(given, name), _orientation(given)
    else:
        values, orientation = np.asarray(given), 1
        if values.ndim != 2 or values.dtype.kind not in "bui" or not values.size:
            what = f"{name} is an array of {_shape(values)} of {values.dtype}"
            raise UserError(what, "give an array (H, W) of bool, or of whole numbers: 0, and 1 or 255 for the object")
    mask = _upright(_binary(values, name, ones), orientation)
    if mask.shape != of.size and mask.shape == of.size[::-1] and of.orientation in _SIDEWAYS and orientation == 1:
        mask = _upright(mask, of.orientation)
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
        with opened(read_file(os.fspath(path), "image"), os.fspath(path)) as image:
            return bool((_values(image, os.fspath(path)) == 1).any())
    except UserError:
        return False


def _binary(values: NDArray[Any], name: str, ones: bool) -> NDArray[np.uint8]:
    """Values as {0, 1, 255}.

    Raises:
        UserError: there are others.
    """
    found = [int(v) for v in np.unique(values)]
    if others := [v for v in found if v not in (0, 1, IGNORE_INDEX)]:
        some = ", ".join(map(str, others[:6])) + (", ..." if len(others) > 6 else "")
        raise UserError(
            f"{name} holds the values {some}: a mask has 0 and 255, or 0 and 1",
            "save one mask for each class, as PNG and without smoothing; of an array pass e.g. labels == 3",
        )
    whole = 1 if ones or 1 in found else IGNORE_INDEX
    out = np.zeros(values.shape, np.uint8)
    out[values == whole] = 1
    if whole == 1:
        out[values == IGNORE_INDEX] = IGNORE_INDEX
    return out


def _values(image: Image.Image, name: str) -> NDArray[Any]:
    """The numbers of a mask (H, W): grey levels, or indices of a palette unless its colours are black and white.

    Raises:
        UserError: it has colours.
    """
    if image.mode == "P":
        colours = np.array(image.convert("RGB"))
        return colours[..., 0] if set(np.unique(colours)) <= {0, 255} and _grey(colours) else np.array(image)
    if image.mode.startswith("I"):
        deep = np.array(image, dtype=np.int64)
        return np.where(deep == 65535, IGNORE_INDEX, deep)
    if image.mode in ("1", "L", "LA"):
        return np.array(image.convert("L"))
    colours = np.array(image.convert("RGB"))
    if not _grey(colours):
        what = f"{name} is painted in colours (mode {image.mode})"
        raise UserError(what, "save it as a grey PNG: 0 (black) background, 255 (white) object")
    return colours[..., 0]


def _grey(colours: NDArray[np.uint8]) -> bool:
    return bool((colours == colours[..., :1]).all())


def _orientation(image: Image.Image) -> int:
    """What is still to be turned of the pixels that Pillow gives: it turns those of a TIFF itself."""
    if image.format == "TIFF":
        image.load()
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow raises many types for a damaged EXIF block, without which the pixels are whole
        return 1
    return found if found in _TURNS else 1


def _upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    if orientation not in _TURNS:
        return pixels
    return np.array(Image.fromarray(pixels).transpose(_TURNS[orientation]))


def _shape(array: NDArray[Any]) -> str:
    return " x ".join(map(str, array.shape)) or "one number"
