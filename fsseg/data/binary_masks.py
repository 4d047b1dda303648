"""`read_binary`: masks of one class, black and white. Called by the sources of folders, and by the mask scan."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fsseg.data.images import Read, eight_bits, opened, orientation, read_file, turned
from fsseg.errors import UserError

WHITE = 255
"""Value of the object's pixels."""


def read_binary(path: Path | str, read: Read = read_file, grey: bool = False) -> NDArray[np.uint8]:
    """A mask of one class, (H, W) uint8: 255 on the object, 0 elsewhere; turned as its EXIF orientation says.

    Palettes, colours whose channels are equal, and 1 or 16 bits are read as the grey that they show.

    Args:
        grey: values between black and white are cut, white from 128 on, as published data sets need it; else they are
            a fault, for nobody but the user knows what they mean.

    Raises:
        UserError: it is missing, cannot be decoded, holds colours, is transparent in places, or holds other values.
    """
    kind = "grey mask" if grey else "mask"
    with opened(path, kind, read(path, kind)) as image:
        pixels = _grey(image, path)
        pixels = turned(pixels, orientation(image))
    if grey:
        return np.where(pixels >= 128, WHITE, 0).astype(np.uint8)
    found = np.flatnonzero(np.bincount(pixels.ravel(), minlength=256))
    if others := [str(v) for v in found.tolist() if v not in (0, WHITE)]:
        shown = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
        raise UserError(
            f"mask {path} holds other values than 0 and 255: {shown}",
            "save it with 255 on the object and 0 elsewhere, without soft edges; numbers of classes are read where the "
            "folder has a classes.txt",
        )
    return pixels


def _grey(image: Image.Image, path: Path | str) -> NDArray[np.uint8]:
    """What an opened mask shows, as grey of 8 bits, (H, W)."""
    if image.mode.startswith("I"):
        grey = eight_bits(image).clip(1, WHITE - 1)  # black and white are 0 and 65535 alone
        wide = np.asarray(image)
        return np.where(wide == 0, 0, np.where(wide == 0xFFFF, WHITE, grey)).astype(np.uint8)
    if image.mode in ("1", "L"):
        return np.array(image.convert("L"))
    pixels = np.array(image.convert("RGBA"))
    if (pixels[..., 3] != WHITE).any():
        what = f"mask {path} is transparent in places"
        raise UserError(what, "save it without transparency: 255 on the object, 0 elsewhere")
    if (pixels[..., :1] != pixels[..., 1:3]).any():
        what = f"mask {path} holds colours"
        raise UserError(what, "save it with 255 (white) on the object and 0 (black) elsewhere")
    return np.ascontiguousarray(pixels[..., 0])
