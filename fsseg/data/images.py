"""Decoding of images and label masks, with errors that name the file. Called by the sources and by the mask scan.

EXIF orientation is left alone unless `upright` is asked for: the masks of VOC and COCO are drawn on the pixels as they
lie in the file, those of a user's own photographs on what an annotation tool shows, which is turned.
"""

from __future__ import annotations

import io
import os
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from fsseg.errors import UserError

MAX_PIXELS = 89_478_485
"""An image of more is refused by its header alone; it is where Pillow begins to warn."""

TOO_LARGE = f"has more than {MAX_PIXELS:,} pixels"

_FORMATS = {"image": ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP"), "mask": ("PNG",),
            "grey mask": ("PNG", "BMP"), "figure": ("PNG",)}  # fmt: skip
_FORMATS["mask image"] = _FORMATS["image"]  # of one object, as `fsseg predict` takes it
"""All that Pillow is asked to open, whatever a file is called: for EPS it would start Ghostscript."""
_RESTORE = "fetch the file again: it is damaged, or was not copied to the end"
_CONVERT = "save it in one of these formats (HEIC is none); if it should be in one, fetch the file again"
# What Pillow raises on damaged files, by decoder: OSError (truncation), SyntaxError (PNG chunks), ValueError, EOFError.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError)
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__


@contextmanager
def _named(path: Path | str, kind: str) -> Iterator[None]:
    """Raise every error of opening and decoding as a `UserError` that names the file."""
    try:
        yield
    except FileNotFoundError:
        what, fix = f"{kind} {path} is missing", f"complete the {kind} folder, or take the name off the list"
        raise UserError(what, fix) from None
    except _BOMBS:
        what = f"{kind} {path} {TOO_LARGE}"
        raise UserError(what, "make image and mask smaller: more is never decoded") from None
    except UnidentifiedImageError:
        formats = f"format{'s' if len(_FORMATS[kind]) > 1 else ''} {', '.join(_FORMATS[kind])}"
        raise UserError(f"{kind} {path} cannot be read: not an image of the {formats}", _CONVERT) from None
    except _DECODE_ERRORS as error:
        raise UserError(f"{kind} {path} cannot be read: {_reason(error)}", _RESTORE) from error


@contextmanager
def opened(path: Path | str, kind: str = "image", data: bytes | None = None) -> Iterator[Image.Image]:
    """The one place where Pillow opens files; errors of the body, which decodes, are named as `_named` does.

    Args:
        data: the file's content, if it has been read.
    """
    with _named(path, kind):
        if data is None:
            _check_regular(path)
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(path if data is None else io.BytesIO(data), formats=_FORMATS[kind])
        with image:
            if kind.endswith("image"):
                _check_depth(image, path, kind)
            yield image


def _check_regular(path: Path | str) -> None:
    if stat.S_ISDIR(mode := os.stat(path).st_mode):
        raise UserError(f"{path} is a folder, where an image or mask is wanted", "name a file in it")
    if not stat.S_ISREG(mode):
        raise OSError("no regular file")  # a pipe would be waited for


def read_file(path: Path | str, kind: str) -> bytes:
    """Content of an image or mask (`kind`), for `read_image` and `read_labels`.

    Raises:
        UserError: it is missing or cannot be read.
    """
    with _named(path, kind):
        _check_regular(path)
        return Path(path).read_bytes()


Read = Callable[[Path | str, str], bytes]
"""`read_file`, or what a source puts in its place that knows what the content must be."""


def _check_depth(image: Image.Image, path: Path | str, kind: str) -> None:
    """8 and 16 bits are read; of floats and 32 bits nobody but the user knows what is black and what white."""
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):  # old Pillows open PNGs of 16 bits as I
        what = f"{kind} {path} holds {'float' if image.mode == 'F' else '32-bit'} values"
        raise UserError(what, "save it with 8 bits a channel: only you know which of its values are black and white")


def read_image(
    path: Path | str, longer_side: int | None = None, read: Read = read_file, upright: bool = False
) -> NDArray[np.uint8]:
    """An image as RGB, (H, W, 3) uint8; grey-scale, CMYK and 16-bit files are converted.

    Args:
        longer_side, upright: as in `decode_image`.

    Raises:
        UserError: the file is missing, truncated, no image, or its depth is neither 8 nor 16 bits.
    """
    return decode_image(read(path, "image"), longer_side, path, upright)


def decode_image(
    data: bytes, longer_side: int | None = None, path: Path | str = "in memory", upright: bool = False
) -> NDArray[np.uint8]:
    """A file's content as RGB, (H, W, 3) uint8.

    Grey of 16 bits is divided by 257, so that 65535 becomes 255; of colours of 16 bits Pillow drops the lower byte, at
    most one level less.

    Args:
        longer_side: pixels that suffice on the longer side. A large JPEG is then decoded at 1/2, 1/4 or 1/8 of its
            size, sides rounded up, with at least so many pixels left. None decodes it whole.
        path: for messages.
        upright: turn it as its EXIF orientation says, as people see it.

    Raises:
        UserError: it is damaged, no image, or its depth is neither 8 nor 16 bits.
    """
    with opened(path, data=data) as image:
        turn = orientation(image) if upright else 1
        if image.format == "JPEG" and image.mode in ("RGB", "L"):
            if (factor := _affordable(max(image.size), longer_side)) > 1:
                image.draft("RGB", (max(image.width // factor, 1), max(image.height // factor, 1)))
            elif (whole := _decode_whole(data)) is not None:
                return turned(whole, turn)
        if image.mode.startswith("I"):
            return turned(np.repeat(eight_bits(image)[..., None], 3, axis=2), turn)
        return turned(np.array(image if image.mode == "RGB" else image.convert("RGB")), turn)


def eight_bits(image: Image.Image) -> NDArray[np.uint8]:
    """Grey of 16 bits, divided by 257."""
    return ((np.asarray(image, dtype=np.uint32) + 128) // 257).astype(np.uint8)


_EXIF_ORIENTATION = 0x0112


def orientation(image: Image.Image) -> int:
    """EXIF orientation of an opened image, 1 to 8; 1, as it lies, where there is none, or none that makes sense."""
    if "exif" not in image.info:  # of TIFF Pillow obeys the tag itself; of PNG it would decode all to look for more
        return 1
    try:
        found = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # Pillow raises errors of many types on damaged tags, which are no reason to lose the image
        return 1
    return found if found in range(1, 9) else 1


def sideways(orientation: int) -> bool:
    """Whether the sides of an image of this EXIF orientation change places when it is turned."""
    return orientation >= 5


def turned(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Pixels, (H, W, ...), as people see them: 3 stands on its head, 6 and 8 lie on their sides, the others of 2 to 8
    are mirrored as well. The sides change places from 5 on."""
    if sideways(orientation):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _seen(image: Image.Image, upright: bool) -> tuple[int, int]:
    """(height, width) of an opened image, turned if `upright` is set."""
    size = image.height, image.width
    return size[::-1] if upright and sideways(orientation(image)) else size


def image_orientation(path: Path | str) -> int:
    """`orientation` of a file, from its header alone.

    Raises:
        UserError: as `image_size`.
    """
    with opened(path) as image:
        return orientation(image)


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


def image_size(path: Path | str, upright: bool = False) -> tuple[int, int]:
    """(height, width) of an image, from its header alone; as people see it, if `upright` is set.

    Raises:
        UserError: as `read_image`, as far as the header shows.
    """
    with opened(path) as image:
        return _seen(image, upright)


def check_image(path: Path | str, upright: bool = False) -> tuple[int, int]:
    """(height, width) of an image as in `image_size`, after the cheapest decoding that shows whether it is truncated.

    Raises:
        UserError: as `read_image`.
    """
    with opened(path) as image:
        size = _seen(image, upright)
        # JPEG: all bits are read, few pixels computed
        image.draft("RGB", (max(image.width // 8, 1), max(image.height // 8, 1)))
        image.load()
        return size


def read_labels(path: Path | str, read: Read = read_file, own: bool = False) -> NDArray[np.uint8]:
    """A label mask, (H, W) uint8: 0 background, class_id + 1, 255 ignore. `.mat` is SBD's form, all else is PNG.

    Args:
        own: of a user's own classes: it is turned as `decode_image` does with `upright`, and its palette may be any.

    Raises:
        UserError: the file is missing, cannot be decoded, holds colours instead of class numbers, or its palette shows
            that it was saved with other numbers.
    """
    return _read_sbd(path) if str(path).endswith(".mat") else _read_png(path, read(path, "mask"), own)


def _read_png(path: Path | str, data: bytes, own: bool) -> NDArray[np.uint8]:
    with opened(path, "mask", data) as image:
        tiles: list[Any] = getattr(image, "tile", [])
        form = tiles[0][3] if tiles else image.mode  # "L;4": Pillow turns grey of 4 bits into 0, 17, 34, ...
        if image.mode not in ("P", "L") or form in ("L;2", "L;4"):
            raise UserError(
                f"mask {path} is of mode {form}: one byte of class number per pixel is expected",
                "use the palette PNGs of VOC2012 (class numbers), not masks painted in colours",
            )
        palette = bytes(image.palette.palette) if image.palette is not None else b""  # as in the file, before decoding
        labels = np.array(image)
        if own:
            return turned(labels, orientation(image))
    if other := _renumbered(palette):
        wrong = [f"{v} is {other[v]}" for v in np.unique(labels).tolist() if v in other]
        if wrong:
            raise UserError(
                f"mask {path} was saved with other class numbers than VOC's: by the colours of its palette, "
                f"{', '.join(wrong)}",
                "restore it from its release; if its numbers are right, save it as grey, without a palette",
            )
    return labels


def voc_palette() -> NDArray[np.uint8]:
    """VOC's colours, (256, 3): bit k of a label, low to high, goes to channel k mod 3 at bit 7 - k // 3."""
    palette = np.zeros((256, 3), dtype=np.uint8)
    for label in range(256):
        for bit in range(8):
            palette[label, bit % 3] |= (label >> bit & 1) << (7 - bit // 3)
    return palette


_VOC_COLOURS = {tuple(colour): label for label, colour in enumerate(voc_palette().tolist())}
_VOC_LABELS = (*range(1, 21), 255)


@lru_cache(maxsize=64)
def _renumbered(palette: bytes) -> dict[int, int]:
    """Values whose colour is that of another class of VOC2012 or of its boundary, and which.

    Programs that save an indexed PNG anew often number its colours from 0: a person becomes value 1, an aeroplane.
    Other palettes are no fault: grey ramps, colours of the user's own, one that ends before 255. Grey, the colour of
    cars, counts only in a palette of VOC's colours alone, and black never does: it fills the unused places.
    """
    colours = list(zip(palette[::3], palette[1::3], palette[2::3]))
    voc = all(colour in _VOC_COLOURS for colour in colours)
    found = {}
    for value, colour in enumerate(colours):
        label = _VOC_COLOURS.get(colour, value)
        if label in _VOC_LABELS and label != value and (voc or len(set(colour)) > 1):
            found[value] = label
    return found


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
