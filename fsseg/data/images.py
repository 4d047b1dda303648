"""Decoding of images and label masks, with errors that name the file. Called by the sources and by the mask scan.

EXIF orientation is left alone on purpose: the masks of VOC and COCO are drawn on the unrotated pixels.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from fsseg.errors import UserError

_RESTORE = "fetch the file again: it is damaged, or was not copied to the end"
# What Pillow raises on damaged files, by decoder: OSError (truncation), SyntaxError (PNG chunks), ValueError, EOFError.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


def _reason(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    return str(error) or type(error).__name__


@contextmanager
def _named(path: Path | str, kind: str = "image") -> Iterator[None]:
    """Raise every error of opening and decoding as a `UserError` that names the file."""
    try:
        yield
    except FileNotFoundError:
        what, fix = f"{kind} {path} is missing", f"complete the {kind} folder, or take the name off the list"
        raise UserError(what, fix) from None
    except _DECODE_ERRORS as error:
        raise UserError(f"{kind} {path} cannot be read: {_reason(error)}", _RESTORE) from error


def read_image(path: Path | str, longer_side: int | None = None) -> NDArray[np.uint8]:
    """An image as RGB, (H, W, 3) uint8; grey-scale and CMYK files are converted.

    Args:
        longer_side: as in `decode_image`.

    Raises:
        UserError: the file is missing, truncated or no image.
    """
    with _named(path):
        return decode_image(Path(path).read_bytes(), longer_side)


def decode_image(data: bytes, longer_side: int | None = None) -> NDArray[np.uint8]:
    """A file's content as RGB, (H, W, 3) uint8.

    Args:
        longer_side: pixels that suffice on the longer side. A large JPEG is then decoded at 1/2, 1/4 or 1/8 of its
            size, sides rounded up, with at least so many pixels left. None decodes it whole.

    Raises:
        OSError, SyntaxError, ValueError, EOFError: it is damaged or no image.
    """
    with Image.open(io.BytesIO(data)) as image:
        if image.format == "JPEG" and image.mode in ("RGB", "L"):
            if (factor := _affordable(max(image.size), longer_side)) > 1:
                image.draft("RGB", (max(image.width // factor, 1), max(image.height // factor, 1)))
            elif (whole := _decode_whole(data)) is not None:
                return whole
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))


_REDUCE_FROM = 1200  # pixels; decoding less of a smaller photograph saves no time, as most goes into reading its bits


def _affordable(side: int, longer_side: int | None) -> int:
    """By how much a JPEG of this longer side may be reduced."""
    if longer_side is None or side < _REDUCE_FROM:
        return 1
    return next((factor for factor in (8, 4, 2) if side // factor >= longer_side), 1)


def reduction(image: tuple[int, ...], original: tuple[int, ...]) -> int:
    """The factor, 1, 2, 4 or 8, by which `decode_image` reduced an image of (H, W) to (h, w, ...); 0 if it did not."""
    factors = (1, 2, 4, 8) if max(original[:2]) >= _REDUCE_FROM else (1,)
    sides = tuple(zip(image[:2], original[:2]))
    return next((f for f in factors if all(small == -(-large // f) for small, large in sides)), 0)


def _decode_whole(data: bytes) -> NDArray[np.uint8] | None:
    """Decode with torchvision: the same library and pixels as Pillow, fewer copies, 60 to 80 % of the time.

    None if its decoder is absent or fails: Pillow then decodes, or says what is wrong.
    """
    import torch

    decode = _decoder()
    if decode is None:
        return None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The image decoding and encoding", DeprecationWarning)
            pixels = decode(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    except RuntimeError:
        return None
    return np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())


@cache
def _decoder() -> Callable[[Any], Any] | None:
    """Bytes to (3, H, W); None in a torchvision without decoders (0.29 warns at every call that they will go)."""
    try:
        from torchvision.io import ImageReadMode, decode_jpeg  # slow to import, and the mask scan needs none
    except ImportError:
        return None
    return partial(decode_jpeg, mode=ImageReadMode.RGB)


def image_size(path: Path | str) -> tuple[int, int]:
    """(height, width) of an image, from its header alone.

    Raises:
        UserError: the file is missing or no image.
    """
    with _named(path), Image.open(path) as image:
        return image.height, image.width


def check_image(path: Path | str) -> tuple[int, int]:
    """(height, width) of an image, after the cheapest decoding that shows whether it is truncated.

    Raises:
        UserError: the file is missing, truncated or no image.
    """
    with _named(path), Image.open(path) as image:
        size = image.height, image.width
        # JPEG: all bits are read, few pixels computed
        image.draft("RGB", (max(image.width // 8, 1), max(image.height // 8, 1)))
        image.load()
        return size


def read_labels(path: Path | str) -> NDArray[np.uint8]:
    """A label mask, (H, W) uint8: 0 background, class_id + 1, 255 ignore. `.mat` is SBD's form, all else is PNG.

    Raises:
        UserError: the file is missing, cannot be decoded, or holds colours instead of class numbers.
    """
    return _read_sbd(path) if str(path).endswith(".mat") else _read_png(path)


def _read_png(path: Path | str) -> NDArray[np.uint8]:
    with _named(path, "mask"), Image.open(path) as image:
        if image.mode not in ("P", "L"):
            raise UserError(
                f"mask {path} is of mode {image.mode}: one byte of class number per pixel is expected",
                "use the palette PNGs of VOC2012 (class numbers), not masks painted in colours",
            )
        return np.array(image)


def _read_sbd(path: Path | str) -> NDArray[np.uint8]:
    from scipy.io import loadmat  # slow to import, and most trees have no .mat

    try:
        labels: Any = loadmat(path, variable_names=["GTcls"], squeeze_me=True, struct_as_record=False)["GTcls"]
        labels = np.asarray(labels.Segmentation)
    except FileNotFoundError:
        raise UserError(f"mask {path} is missing", "complete SBD's cls folder, or take the name off the list") from None
    except Exception as error:  # scipy raises errors of many types on damaged bytes
        raise UserError(
            f"mask {path} cannot be read as SBD's GTcls.Segmentation: {_reason(error)}", _RESTORE
        ) from error
    if labels.ndim != 2 or labels.dtype.kind not in "iuf" or labels.size == 0:
        raise UserError(f"mask {path} holds no (height, width) array of class numbers", _RESTORE)
    if labels.min() < 0 or labels.max() > 255 or (labels.dtype.kind == "f" and (labels % 1).any()):
        raise UserError(f"mask {path} holds values that are no class numbers", _RESTORE)
    return np.ascontiguousarray(labels, dtype=np.uint8)


def size_error(
    image_path: Path | str, image: tuple[int, int], mask_path: Path | str, mask: tuple[int, int]
) -> UserError:
    """The fault of a mask that is not of its image's size; sizes are (height, width)."""
    return UserError(
        f"mask {mask_path} is {mask[1]}x{mask[0]} pixels, but image {image_path} is {image[1]}x{image[0]}",
        "restore both from the same release: one of them was resized or belongs to another image",
    )
