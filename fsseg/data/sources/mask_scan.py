"""The scan of mask files behind `ClassIndex`: which values each mask holds, with how many pixels, kept on disk.

A scan is kept for each mask folder, with size and time of each file. Another list costs nothing, and only changed masks
are read again. Called by `voc_layout`, and by `coco_maps` for label maps of COCO; its JSON file has a store of its own
(`coco_store`).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fsseg.data.arrays import Arrays, find_store, keep_store, pack_names, unpack_names
from fsseg.data.binary_masks import FIX as BINARY_FIX
from fsseg.data.faults import Fault
from fsseg.data.source import IGNORE_INDEX, ClassIndex
from fsseg.data.workers import map_files
from fsseg.errors import UserError

log = logging.getLogger(__name__)

RULE_VERSION = 3
"""Version; goes up when a scan records something else, so that older scans are made again."""


_FIXES = {
    "own mask": "save them as PNG with the number of a class a pixel, 8 bits: with a palette, or as grey",
    "binary mask": BINARY_FIX,
}
"""What a user can do about masks of their own, by the task that cannot read them."""


@dataclass(frozen=True)
class MaskFile:
    """A mask on disk; size in bytes and time in nanoseconds show whether it changed."""

    path: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class MaskCount:
    """What one mask holds: size at original resolution and pixels per value (0 and 255 included).

    `grid` has, for the same values, those of the pixels that lie in the rows and columns of `workers.GRID`.
    """

    height: int
    width: int
    pixels: dict[int, int]
    grid: dict[int, int]


def list_files(folder: Path, suffix: str) -> dict[str, MaskFile]:
    """Files of a folder by their name without `suffix`, in one pass over the directory; {} if there is no folder."""
    try:
        with os.scandir(folder) as entries:
            found = {}
            for entry in entries:
                if entry.name.endswith(suffix) and not entry.name.startswith(".") and entry.is_file():
                    stat = entry.stat()
                    found[entry.name[: -len(suffix)]] = MaskFile(entry.path, stat.st_size, stat.st_mtime_ns)
            return found
    except (FileNotFoundError, NotADirectoryError):
        return {}


def scan_masks(
    label: str, files: Mapping[str, MaskFile], wanted: Sequence[str], folders: list[Path], task: str = "mask"
) -> tuple[dict[str, MaskCount], list[Fault]]:
    """Count the wanted masks of one folder, reading from disk only those that are new or changed.

    Args:
        label: names the mask folder in the store's file name and key.
        files: all masks of the folder, by image id.
        wanted: image ids to count, all of them in `files`.
        folders: where the store is looked for and kept (see `arrays.cache_folders`).
        task: how they are read, one of `workers.TASKS` that count.

    Returns:
        counts by image id, and a fault for every mask that cannot be read.
    """
    key, name = _kept_as(label, task)
    known = kept_counts(label, files, folders, task)
    todo = [image_id for image_id in wanted if image_id not in known]
    faults = []
    if todo:
        start = time.monotonic()
        ids = {files[image_id].path: image_id for image_id in todo}
        for path, result in map_files(task, list(ids), f"masks of {label}"):
            if isinstance(result, str):
                faults.append(Fault("unreadable masks", path, result, _FIXES.get(task, "restore these files")))
            else:
                height, width, rows = result
                pixels, grid = ({row[0]: row[column] for row in rows} for column in (1, 2))
                known[ids[path]] = MaskCount(height, width, pixels, grid)
        faults.sort(key=lambda fault: fault.path)
        log.info("scanned %d masks of %s in %.1f s", len(todo), label, time.monotonic() - start)
        # Another process may have scanned other masks of this folder meanwhile: keep its work.
        merged = {**_unpack(find_store(folders, name, key), files), **known}
        try:
            keep_store(folders, name, key, _pack(merged, files))
        except UserError as error:
            log.warning("%s; the masks are scanned again at every start", error)
    return {image_id: known[image_id] for image_id in wanted if image_id in known}, faults


def kept_counts(
    label: str, files: Mapping[str, MaskFile], folders: list[Path], task: str = "mask"
) -> dict[str, MaskCount]:
    """What an earlier scan counted in one folder, of the masks that are still the same."""
    key, name = _kept_as(label, task)
    return _unpack(find_store(folders, name, key), files)


def _kept_as(label: str, task: str) -> tuple[dict[str, Any], str]:
    """Key and file name of a folder's store."""
    key = {"rule": RULE_VERSION, "masks": label, **({} if task == "mask" else {"task": task})}
    return key, f"masks-{label.replace('/', '_').replace(' ', '_')}.store"


def build_index(
    image_ids: Sequence[str], counts: Mapping[str, MaskCount], num_classes: int
) -> tuple[ClassIndex, dict[str, list[int]]]:
    """The index of images whose masks are counted, and by image id the mask values that belong to no class.

    A mask value v in 1..num_classes is class_id v - 1; 0 is background, 255 ignore.
    """
    image, class_id, pixels, grid = [], [], [], []
    unknown: dict[str, list[int]] = {}
    for position, image_id in enumerate(image_ids):
        count = counts[image_id]
        for value, number in sorted(count.pixels.items()):
            if 1 <= value <= num_classes:
                image.append(position)
                class_id.append(value - 1)
                pixels.append(number)
                grid.append(count.grid[value])
            elif value not in (0, IGNORE_INDEX):
                unknown.setdefault(image_id, []).append(value)
    index = ClassIndex(
        image_ids=tuple(image_ids),
        pair_image=np.array(image, dtype=np.int32),
        pair_class=np.array(class_id, dtype=np.int16),
        pair_pixels=np.array(pixels, dtype=np.int64),
        pair_grid=np.array(grid, dtype=np.int32),
    )
    return index, unknown


def unknown_faults(paths: Mapping[str, Path], unknown: Mapping[str, list[int]], num_classes: int) -> list[Fault]:
    """A fault for every mask with values that belong to no class; `paths` and `unknown` are by image id."""
    kind, known = "unknown class numbers in masks", f"classes are 1 to {num_classes}, 0 is background, 255 ignore"
    return [
        Fault(kind, str(paths[image_id]), f"holds {', '.join(map(str, values))}; {known}", "restore these masks")
        for image_id, values in unknown.items()
    ]


def _pack(counts: Mapping[str, MaskCount], files: Mapping[str, MaskFile]) -> Arrays:
    names = sorted(counts)
    values = [list(counts[name].pixels) for name in names]
    return {
        "names": pack_names(names),
        "file": np.array([[files[n].size, files[n].mtime_ns] for n in names], dtype=np.int64).reshape(-1, 2),
        "shape": np.array([[counts[n].height, counts[n].width] for n in names], dtype=np.int32).reshape(-1, 2),
        "begin": np.cumsum([0, *map(len, values)], dtype=np.int64),
        "value": np.array([v for row in values for v in row], dtype=np.uint8),
        "pixels": np.array([p for name in names for p in counts[name].pixels.values()], dtype=np.int64),
        "grid": np.array([counts[n].grid[v] for n, row in zip(names, values) for v in row], dtype=np.int32),
    }


def _unpack(arrays: Arrays | None, files: Mapping[str, MaskFile]) -> dict[str, MaskCount]:
    """Stored counts of the files that are still as they were when counted."""
    if arrays is None:
        return {}
    begin, value, pixels, grid = (arrays[name].tolist() for name in ("begin", "value", "pixels", "grid"))
    rows: list[tuple[list[int], list[int]]] = list(zip(arrays["file"].tolist(), arrays["shape"].tolist()))
    counts = {}
    for position, (name, (stamp, shape)) in enumerate(zip(unpack_names(arrays["names"]), rows)):
        file = files.get(name)
        if file is not None and [file.size, file.mtime_ns] == stamp:
            span = slice(begin[position], begin[position + 1])
            of_value = (dict(zip(value[span], numbers[span])) for numbers in (pixels, grid))
            counts[name] = MaskCount(shape[0], shape[1], *of_value)
    return counts
