"""The compact store of COCO masks: `instances_*.json` read once, one run-length code per (image, class) kept.

The JSON of train2014 has 450 MB and several times that as Python objects; a loader process maps this store instead
(about 100 MB on disk, in memory once for all processes of a host). Only `coco` calls this module.
"""

from __future__ import annotations

import json
import logging
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle

from fsseg.data.arrays import Arrays, find_store, keep_store, pack_names, unpack_names
from fsseg.data.faults import Fault
from fsseg.data.source import ClassIndex
from fsseg.data.sources.coco_annotations import (
    CLASS_OF_CATEGORY,
    OFFICIAL,
    annotation_problem,
    check_categories,
    check_images,
    run_lengths,
)
from fsseg.errors import UserError

log = logging.getLogger(__name__)

RULE_VERSION = 2
"""Version; goes up when the rule that turns annotations into masks changes, so that older stores are made again."""

_PROGRESS_SECONDS = 5.0


class CocoStore:
    """Masks of one split: arrays of a store, looked up by image position and class_id."""

    def __init__(self, path: Path, arrays: Arrays) -> None:
        self.path = path
        self.image_ids = unpack_names(arrays["image_ids"])
        self.file_names = unpack_names(arrays["file_names"])
        self._arrays = arrays
        self._position = {image_id: position for position, image_id in enumerate(self.image_ids)}

    def position(self, image_id: str) -> int:
        """Position of an image.

        Raises:
            UserError: the annotations do not list it.
        """
        try:
            return self._position[image_id]
        except KeyError:
            raise UserError(f"image {image_id} is not listed in {self.path}", "take an id of that file") from None

    def size(self, position: int) -> tuple[int, int]:
        """(height, width) in pixels."""
        height, width = self._arrays["shape"][position].tolist()
        return height, width

    def index(self) -> ClassIndex:
        """Pairs with at least one instance pixel, and those with crowd pixels alone: 0 pixels, see `ClassIndex`."""
        own = list(zip(self._arrays["pair_image"].tolist(), self._arrays["pair_class"].tolist()))
        pixels = dict(zip(own, self._arrays["pair_pixels"].tolist()))
        for pair in zip(self._arrays["crowd_image"].tolist(), self._arrays["crowd_class"].tolist()):
            pixels.setdefault(pair, 0)
        pairs = np.array(sorted(pixels), dtype=np.int32).reshape(-1, 2)
        return ClassIndex(
            image_ids=tuple(self.image_ids),
            pair_image=np.ascontiguousarray(pairs[:, 0]),
            pair_class=pairs[:, 1].astype(np.int16),
            pair_pixels=np.array([pixels[pair] for pair in sorted(pixels)], dtype=np.int64),
        )

    def instances(self, position: int, class_id: int) -> tuple[bytes, ...]:
        """Compressed run lengths of the union of the class's instances; empty if the image has none."""
        return self._codes("pair", position, class_id)

    def crowd(self, position: int, class_id: int) -> tuple[bytes, ...]:
        """Compressed run lengths of the union of the class's crowd regions; empty if the image has none."""
        return self._codes("crowd", position, class_id)

    def _codes(self, kind: str, position: int, class_id: int) -> tuple[bytes, ...]:
        low, high = np.searchsorted(self._arrays[f"{kind}_image"], [position, position + 1])
        found = np.flatnonzero(self._arrays[f"{kind}_class"][low:high] == class_id)
        if not found.size:
            return ()
        begin, end = self._arrays[f"{kind}_begin"][low + found[0] : low + found[0] + 2].tolist()
        return (self._arrays[f"{kind}_code"][begin:end].tobytes(),)


def open_store(path: Path, folders: list[Path], verify: bool) -> tuple[CocoStore | None, list[Fault]]:
    """The store of an annotation file, made if none fits; None and the faults if the annotations are faulty.

    Args:
        path: an `instances_*.json`.
        folders: where the store is looked for and kept (see `arrays.cache_folders`).
        verify: check the whole store's checksum, not only its header.

    Raises:
        UserError: there is no such file, it is no COCO JSON, or the store cannot be written.
    """
    try:
        stat = path.stat()
    except FileNotFoundError:
        what = f"annotations {path} are missing"
        raise UserError(what, "set dataset.root and dataset.year to where they are, or run `fsseg prepare`") from None
    key, name = _kept_as(path, stat)
    arrays = find_store(folders, name, key, verify)
    if arrays is None:
        made, faults = read_annotations(path)
        if faults:
            return None, faults
        stored = keep_store(folders, name, key, made)
        del made
        arrays = find_store([stored.parent], name, key, verify=False)
        if arrays is None:
            raise UserError(f"{stored} changed while it was read", "start again")
    return CocoStore(path, arrays), []


def kept_store(path: Path, folders: list[Path]) -> CocoStore | None:
    """The store of an annotation file, if one was made of it as it is now.

    Raises:
        OSError: there is no such file.
    """
    key, name = _kept_as(path, path.stat())
    arrays = find_store(folders, name, key, verify=False)
    return None if arrays is None else CocoStore(path, arrays)


def _kept_as(path: Path, stat: os.stat_result) -> tuple[dict[str, Any], str]:
    """Key and file name of the store."""
    key = {"rule": RULE_VERSION, "file": path.name, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    return key, f"{path.stem}.store"


@dataclass
class _Union:
    """Run-length codes per (image position, class_id), gathered annotation by annotation."""

    codes: dict[tuple[int, int], list[Any]] = field(default_factory=dict)

    def arrays(self, kind: str) -> Arrays:
        pairs: list[tuple[int, int]] = []
        pixels: list[int] = []
        blobs: list[bytes] = []
        for pair in sorted(self.codes):
            code = rle.merge(self.codes.pop(pair))
            if area := int(rle.area(code)):
                pairs.append(pair)
                pixels.append(area)
                blobs.append(code["counts"])
        table = np.array(pairs, dtype=np.int32).reshape(-1, 2)
        return {
            f"{kind}_image": np.ascontiguousarray(table[:, 0]),
            f"{kind}_class": table[:, 1].astype(np.int16),
            f"{kind}_pixels": np.array(pixels, dtype=np.int64),
            f"{kind}_begin": np.cumsum([0, *map(len, blobs)], dtype=np.int64),
            f"{kind}_code": np.frombuffer(b"".join(blobs), dtype=np.uint8),
        }


def read_annotations(path: Path) -> tuple[Arrays, list[Fault]]:
    """Read an annotation file; {} and every fault in it if there is any.

    Images stand in the order of their COCO ids.

    Raises:
        UserError: it is not JSON, or not of COCO's instance form at all.
    """
    start = time.monotonic()
    log.info("reading %s (%.0f MB)", path, path.stat().st_size / 1e6)
    content = _read_json(path)
    faults = check_categories(path, content["categories"])
    images, found = check_images(path, content["images"])
    faults += found
    order = sorted(images)
    position = {number: row for row, number in enumerate(order)}
    instances, crowds = _Union(), _Union()
    annotations = content.pop("annotations")
    seen: set[int] = set()
    told = time.monotonic()
    for row, annotation in enumerate(annotations):
        annotations[row] = None  # frees the polygons as they are converted
        if (problem := annotation_problem(annotation, images, seen)) is not None:
            faults.append(Fault(problem[0], str(path), problem[1], OFFICIAL))
        elif not faults:  # else only further faults matter
            _add(annotation, images, position, instances, crowds)
        if time.monotonic() - told > _PROGRESS_SECONDS:
            told = time.monotonic()
            log.info("%s: %d of %d annotations", path.name, row + 1, len(annotations))
    if faults:
        return {}, faults
    names = [images[number]["file_name"] for number in order]
    arrays: Arrays = {
        "image_ids": pack_names([Path(name).stem for name in names]),
        "file_names": pack_names(names),
        "shape": np.array([[images[n]["height"], images[n]["width"]] for n in order], dtype=np.int32).reshape(-1, 2),
        **instances.arrays("pair"),
        **crowds.arrays("crowd"),
    }
    log.info("indexed %s in %.1f s: %d pairs", path.name, time.monotonic() - start, len(arrays["pair_image"]))
    return arrays, []


def _read_json(path: Path) -> dict[str, Any]:
    not_coco = f"{path} is not a COCO instances file"
    try:
        if not path.is_file():
            raise OSError("no regular file")
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}", OFFICIAL) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}", "check the file's permissions") from error
    if not isinstance(content, dict):
        raise UserError(f"{not_coco}: it holds a {type(content).__name__}, not an object", OFFICIAL)
    lacking = [key for key in ("images", "annotations", "categories") if not isinstance(content.get(key), list)]
    if lacking:
        there = ", ".join(list(content)[:8]) or "nothing"
        raise UserError(f"{not_coco}: it has no list {' and '.join(lacking)} (it holds {there})", OFFICIAL)
    if content["annotations"] and not any(
        "segmentation" in a for a in content["annotations"][:100] if isinstance(a, dict)
    ):
        raise UserError(
            f"{not_coco}: its annotations have no segmentation", "use instances_*.json, not captions or boxes"
        )
    return content


def _add(
    annotation: dict[str, Any],
    images: dict[int, dict[str, Any]],
    position: dict[int, int],
    instances: _Union,
    crowds: _Union,
) -> None:
    """Add one sound annotation to its image and class."""
    image, shape = annotation["image_id"], annotation["segmentation"]
    height, width = images[image]["height"], images[image]["width"]
    if isinstance(shape, dict):
        code = rle.frPyObjects({"size": [height, width], "counts": run_lengths(shape)}, height, width)
    else:
        code = rle.merge(rle.frPyObjects(shape, height, width))
    union = crowds if annotation.get("iscrowd") else instances
    union.codes.setdefault((position[image], CLASS_OF_CATEGORY[annotation["category_id"]]), []).append(code)
