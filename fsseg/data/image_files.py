"""The image files of a split before any is decoded: sizes in bytes, a fingerprint of them, and their headers.

A damaged image is so found when a run starts, not after hours of training. Headers are kept on disk with size and time
of each file: the second start reads only files that are new or changed. `Source.check` is the caller.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fsseg.data.arrays import Arrays, find_store, keep_store, pack_names, unpack_names
from fsseg.data.workers import map_files
from fsseg.errors import UserError

log = logging.getLogger(__name__)

RULE_VERSION = 1
"""Version; goes up when more is asked of a header, so that all are read again."""


class Stamp(NamedTuple):
    """Bytes of a file, and the time of its last change in nanoseconds."""

    size: int
    mtime_ns: int


class _Header(NamedTuple):
    stamp: Stamp
    shape: tuple[int, int]


def stamps_of(paths: Iterable[Path]) -> dict[Path, Stamp]:
    """Those of the files that are there, in one pass over each folder: on a network folder far quicker than by name."""
    wanted: dict[str, dict[str, Path]] = {}
    for path in paths:
        folder, name = os.path.split(path)
        wanted.setdefault(folder, {})[name] = path
    found = {}
    for folder, names in wanted.items():
        try:
            with os.scandir(folder or ".") as entries:
                for entry in entries:
                    if entry.name in names and entry.is_file():
                        stat = entry.stat()
                        found[names[entry.name]] = Stamp(stat.st_size, stat.st_mtime_ns)
        except (FileNotFoundError, NotADirectoryError):
            continue
    return found


def sizes_fingerprint(paths: Mapping[str, Path], stamps: Mapping[Path, Stamp]) -> str | None:
    """16 hex digits over image ids and sizes in bytes, in the order given: equal on every machine with these images.

    None if an image is not there.
    """
    if any(path not in stamps for path in paths.values()):
        return None
    text = "\n".join(f"{image_id}\t{stamps[path].size}" for image_id, path in paths.items())
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_headers(
    split: str, root: Path, stamps: Mapping[Path, Stamp], folders: list[Path], upright: bool = False
) -> tuple[dict[Path, tuple[int, int]], dict[Path, str]]:
    """(height, width) of images by their headers, and the reason for each that has none or is cut short.

    Args:
        split: names the store that they are kept in.
        root: folder of the data set; the store names files relative to it.
        stamps: of the images to look at.
        folders: where the store is looked for and kept (see `arrays.cache_folders`).
        upright: images are turned as their EXIF orientation says, and so are these sizes.
    """
    name, key = f"images-{split}.store", {"rule": RULE_VERSION, **({"upright": 1} if upright else {})}
    above = f"{root}{os.sep}"  # `relpath` looks at the current folder for each of 120,000 images
    names = {path: text[len(above) :] if (text := str(path)).startswith(above) else os.path.relpath(path, root)
             for path in stamps}  # fmt: skip
    known = _kept(folders, name, key)
    shapes = {
        path: known[names[path]].shape
        for path, stamp in stamps.items()
        if names[path] in known and known[names[path]].stamp == stamp
    }
    todo = {str(path): path for path in stamps if path not in shapes}
    if not todo:
        return shapes, {}
    start, reasons, new = time.monotonic(), {}, {}
    for text, result in map_files("upright header" if upright else "header", list(todo), f"headers of {split} images"):
        path = todo[text]
        if isinstance(result, str):
            reasons[path] = result
        else:
            shapes[path] = (result[0], result[1])
            new[names[path]] = _Header(stamps[path], shapes[path])
    log.info("looked at the headers of %d %s images in %.1f s", len(todo), split, time.monotonic() - start)
    if new:
        _keep(folders, name, key, new)
    return shapes, reasons


def _kept(folders: list[Path], name: str, key: dict[str, int]) -> dict[str, _Header]:
    arrays = find_store(folders, name, key)
    if arrays is None:
        return {}
    rows = zip(unpack_names(arrays["names"]), arrays["file"].tolist(), arrays["shape"].tolist())
    return {path: _Header(Stamp(*stamp), (height, width)) for path, stamp, (height, width) in rows}


def _keep(folders: list[Path], name: str, key: dict[str, int], new: Mapping[str, _Header]) -> None:
    """Add headers to the store, and to what another process may have written there meanwhile."""
    merged = {path: header for path, header in {**_kept(folders, name, key), **new}.items() if "\n" not in path}
    arrays: Arrays = {
        "names": pack_names(list(merged)),
        "file": np.array([header.stamp for header in merged.values()], dtype=np.int64).reshape(-1, 2),
        "shape": np.array([header.shape for header in merged.values()], dtype=np.int32).reshape(-1, 2),
    }
    try:
        keep_store(folders, name, key, arrays)
    except UserError as error:
        log.warning("%s; the headers are read again at every start", error)
