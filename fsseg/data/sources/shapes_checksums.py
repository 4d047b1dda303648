"""Checksums of the generated files of `shapes5i`: most flipped bits give other pixels, and no error.

`shapes` records them when it draws the data set, and compares them when a run starts and when a file is read. A data
set of an earlier version has none: `fsseg verify` draws it again and compares.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fsseg.data.images import read_image, read_labels
from fsseg.errors import UserError

Checksums = dict[str, int]
"""CRC-32 of files by their path below the data set, "JPEGImages/val_00001.jpg"."""

_ENCODER_LEVELS = 8  # of 255, by which JPEGs of two encoders may differ at a pixel; at quality 95 it is a few


def checksums_of(folder: Path, parts: Sequence[str]) -> Checksums:
    """Those of all files of a data set.

    Args:
        parts: its folders.
    """
    names = (f"{part}/{name}" for part in parts for name in sorted(os.listdir(folder / part)))
    return {n: zlib.crc32((folder / n).read_bytes()) for n in names if n.endswith((".jpg", ".png", ".txt"))}


def compare_with_drawn(folder: Path, drawn: Path, parts: Sequence[str]) -> tuple[Checksums, list[str]]:
    """Checksums of a data set's files, and which of them differ from those that were just drawn by the same settings.

    Another version of zlib or of the JPEG encoder may have written them: masks must have the same labels, and if no
    image at all has the same bytes, images must have nearly the same pixels.
    """
    found, expected = checksums_of(folder, parts), checksums_of(drawn, parts)
    differ = [name for name in expected if found.get(name) != expected[name]]
    other_encoder = all(name in differ for name in expected if name.endswith(".jpg"))
    return found, [name for name in differ if not _alike(folder / name, drawn / name, other_encoder)]


def _alike(file: Path, drawn: Path, other_encoder: bool) -> bool:
    try:
        if file.suffix == ".png":
            return np.array_equal(read_labels(file), read_labels(drawn))
        if file.suffix == ".txt" or not other_encoder:
            return False
        one, two = (read_image(path).astype(np.int16) for path in (file, drawn))
    except UserError:
        return False
    return one.shape == two.shape and int(np.abs(one - two).max()) <= _ENCODER_LEVELS
