"""Masks of one class: the one rule by which they are read, for data sets (`fsseg.data.sources.folder_masks`), for the
supports and true masks of `fsseg predict` (`fsseg.data.photos`), and for the mask scan.

0 is the background and the only other value the object: 255, 1, or any other. Beside 1, 255 is neither, as on VOC's
boundaries. All else is refused and never cut at a threshold, for nobody but the user knows what it means.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fsseg.data.images import Read, opened, orientation, read_file, turned
from fsseg.errors import UserError

WHITE, _DEEP = 255, 0xFFFF  # of 8 and of 16 bits
FIX = (
    "save it as PNG with 255 on the object and 0 elsewhere, without soft edges, colours or transparency; of numbers of "
    "classes save a mask for each class (a data set and --truth-dir take them with a classes.txt)"
)
"""What can be done about a mask that the rule refuses."""


def read_binary(path: Path | str, read: Read = read_file, grey: bool = False) -> NDArray[np.uint8]:
    """A PNG of one class by `two_values`, (H, W) uint8; turned as its EXIF orientation says.

    Args:
        grey: values between black and white are cut, white from 128 on, as published data sets need it.

    Raises:
        UserError: it is missing, cannot be decoded, or the rule refuses it.
    """
    kind = "grey mask" if grey else "mask"
    with opened(path, kind, read(path, kind)) as image:
        values, turn = mask_values(image, f"mask {path}"), orientation(image)
        top = _DEEP if image.mode.startswith("I") else WHITE
    if grey:
        return turned(np.where(values > top // 2, WHITE, 0).astype(np.uint8), turn)
    return turned(two_values(values, f"mask {path}"), turn)


def two_values(values: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """The numbers of a mask as uint8: 0; 255 for the object, or 1 if its number is another; 255 beside 1 as it is.

    Args:
        values: of any integer type, or bool.
        name: for messages.

    Raises:
        UserError: there are several numbers beside 0, or negative ones.
    """
    found = [int(v) for v in np.unique(values) if v]
    if found in ([1, WHITE], [1, _DEEP]):
        return np.where(values > 1, WHITE, values).astype(np.uint8)
    if len(found) > 1 or min(found, default=0) < 0:
        shown = ", ".join(map(str, found[:5])) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
        count = f"{len(found)} values beside 0" if len(found) > 1 else "a negative value"
        raise UserError(f"{name} holds {count}, where a mask of one class has one: {shown}", FIX)
    return np.where(values != 0, WHITE if found in ([WHITE], [_DEEP]) else 1, 0).astype(np.uint8)


def marked(mask: NDArray[np.uint8], ones: bool = False) -> NDArray[np.uint8]:
    """What `two_values` gives, as {0, 1, 255}: 1 is the object, 255 is left out.

    Args:
        ones: 1 is the object, also where there is none of it: 255 is always left out.
    """
    return mask if ones or (mask == 1).any() else np.where(mask == WHITE, 1, mask).astype(np.uint8)


def mask_values(image: Image.Image, name: str) -> NDArray[Any]:
    """The numbers of an opened mask, (H, W): grey levels of 8 or 16 bits, of colours with equal channels their level.

    Of a palette they are its numbers, unless the colours in use are greys: then what people see counts.

    Raises:
        UserError: it holds colours, or is transparent in places.
    """
    if image.mode.startswith("I"):
        return np.array(image, dtype=np.int64)
    layered = "transparency" in image.info or image.mode in ("LA", "PA", "RGBA")
    if layered and (np.array(image.convert("RGBA"))[..., 3] != WHITE).any():
        raise UserError(f"{name} is transparent in places", FIX)
    if image.mode in ("1", "L", "LA"):
        return np.array(image.convert("L"))
    colours = np.array(image.convert("RGB"))
    if (colours == colours[..., :1]).all():
        return np.ascontiguousarray(colours[..., 0])
    if image.mode != "P":
        raise UserError(f"{name} is painted in colours (mode {image.mode})", FIX)
    numbers = np.array(image)
    if (black := numbers[(colours == 0).all(-1) & (numbers != 0)]).size:
        raise UserError(f"{name} has a palette in which {black[0]} is black, and 0 another colour", FIX)
    return numbers
