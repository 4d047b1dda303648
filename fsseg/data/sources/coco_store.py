"""The compact store of COCO masks: `instances_*.json` read once, masks kept by a rule. `coco` is the caller.

The JSON of train2014 has 450 MB and several times that as Python objects; a loader process maps this store instead, in
memory once for all processes of a host. Each rule (`coco_painted`, `coco_union`) has a store of its own.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fsseg.data.arrays import Arrays, find_store, keep_store, pack_names, unpack_names
from fsseg.data.faults import Fault
from fsseg.data.source import ClassIndex
from fsseg.data.sources.coco_annotations import OFFICIAL, annotation_problem, check_categories, check_images
from fsseg.data.sources.coco_painted import PaintedMaker, PaintedMasks
from fsseg.data.sources.coco_union import UnionMaker, UnionMasks
from fsseg.errors import UserError

log = logging.getLogger(__name__)

_PROGRESS_SECONDS = 5.0


class _Rule(NamedTuple):
    """How annotations become masks; `version` goes up when that changes, so that older stores are made again; `ending`
    is that of the store's file name."""

    version: int | str
    ending: str
    maker: type[PaintedMaker] | type[UnionMaker]
    masks: type[PaintedMasks] | type[UnionMasks]


RULES = {
    "painted": _Rule("painted 1", "painted.store", PaintedMaker, PaintedMasks),
    "union": _Rule(2, "store", UnionMaker, UnionMasks),
}
"""By their names in `dataset.coco_masks`."""


class CocoStore:
    """Masks of one split: arrays of a store, looked up by image id and class_id.

    Attributes:
        path: of the annotations.
        image_ids: of all images, in the order of their COCO ids.
    """

    def __init__(self, path: Path, rule: str, arrays: Arrays) -> None:
        self.path = path
        self.image_ids = unpack_names(arrays["image_ids"])
        self._file_names = unpack_names(arrays["file_names"])
        self._shape = arrays["shape"]
        self._masks = RULES[rule].masks(arrays)
        self._position = {image_id: position for position, image_id in enumerate(self.image_ids)}

    def _at(self, image_id: str) -> int:
        try:
            return self._position[image_id]
        except KeyError:
            raise UserError(f"image {image_id} is not listed in {self.path}", "take an id of that file") from None

    def file_name(self, image_id: str) -> str:
        """Name of an image's file. All methods raise a `UserError` if the annotations do not list the image."""
        return self._file_names[self._at(image_id)]

    def mask_path(self, image_id: str) -> Path:
        """The JSON file, whatever the image."""
        return self.path

    def size(self, image_id: str) -> tuple[int, int]:
        """(height, width) in pixels."""
        height, width = self._shape[self._at(image_id)].tolist()
        return height, width

    def index(self, image_ids: Sequence[str]) -> tuple[ClassIndex, list[Fault]]:
        """The index of some images, in their order; the annotations of a store have no faults."""
        pixels = self._masks.pairs()
        pairs = np.array(sorted(pixels), dtype=np.int32).reshape(-1, 2)
        whole = ClassIndex(
            image_ids=tuple(self.image_ids),
            pair_image=np.ascontiguousarray(pairs[:, 0]),
            pair_class=pairs[:, 1].astype(np.int16),
            pair_pixels=np.array([pixels[pair] for pair in sorted(pixels)], dtype=np.int64),
        )
        return whole.take([self._at(image_id) for image_id in image_ids]), []

    def sizes(self, image_ids: Sequence[str]) -> dict[str, tuple[int, int]]:
        """(height, width) by image id."""
        return {image_id: self.size(image_id) for image_id in image_ids}

    def kept_index(self, image_ids: Sequence[str]) -> ClassIndex | None:
        """The same."""
        return self.index(image_ids)[0]

    def mask(self, image_id: str, class_id: int, ignore_classes: Sequence[int] = ()) -> NDArray[np.uint8]:
        """As in `Source`."""
        position = self._at(image_id)
        return self._masks.mask(position, self.size(image_id), class_id, ignore_classes)


def open_store(path: Path, rule: str, folders: list[Path], verify: bool) -> tuple[CocoStore | None, list[Fault]]:
    """The store of an annotation file, made if none fits; None and the faults if the annotations are faulty.

    Args:
        path: an `instances_*.json`.
        rule: how masks are made, a key of `RULES`.
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
    key, name = _kept_as(path, rule, stat)
    arrays = find_store(folders, name, key, verify)
    if arrays is None:
        made, faults = read_annotations(path, rule)
        if faults:
            return None, faults
        stored = keep_store(folders, name, key, made)
        del made
        arrays = find_store([stored.parent], name, key, verify=False)
        if arrays is None:
            raise UserError(f"{stored} changed while it was read", "start again")
    return CocoStore(path, rule, arrays), []


def kept_store(path: Path, rule: str, folders: list[Path]) -> CocoStore | None:
    """The store of an annotation file, if one was made of it as it is now.

    Raises:
        OSError: there is no such file.
    """
    key, name = _kept_as(path, rule, path.stat())
    arrays = find_store(folders, name, key, verify=False)
    return None if arrays is None else CocoStore(path, rule, arrays)


def _kept_as(path: Path, rule: str, stat: os.stat_result) -> tuple[dict[str, Any], str]:
    """Key and file name of the store."""
    version, ending = RULES[rule].version, RULES[rule].ending
    key = {"rule": version, "file": path.name, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    return key, f"{path.stem}.{ending}"


def read_annotations(path: Path, rule: str) -> tuple[Arrays, list[Fault]]:
    """Read an annotation file; {} and every fault in it if there is any.

    Images stand in the order of their COCO ids.

    Args:
        rule: a key of `RULES`.

    Raises:
        UserError: it is not JSON, or not of COCO's instance form at all.
    """
    maker = RULES[rule].maker()
    start = time.monotonic()
    log.info("reading %s (%.0f MB)", path, path.stat().st_size / 1e6)
    content = _read_json(path)
    faults = check_categories(path, content["categories"])
    images, found = check_images(path, content["images"])
    faults += found
    order = sorted(images)
    position = {number: row for row, number in enumerate(order)}
    sizes = [(images[number]["height"], images[number]["width"]) for number in order]
    annotations = content.pop("annotations")
    seen: set[int] = set()
    told = time.monotonic()
    for row, annotation in enumerate(annotations):
        annotations[row] = None  # frees the polygons as they are converted
        if (problem := annotation_problem(annotation, images, seen)) is not None:
            faults.append(Fault(problem[0], str(path), problem[1], OFFICIAL))
        elif not faults:  # else only further faults matter
            place = position[annotation["image_id"]]
            maker.add(place, sizes[place], annotation)
        if time.monotonic() - told > _PROGRESS_SECONDS:
            told = time.monotonic()
            log.info("%s: %d of %d annotations", path.name, row + 1, len(annotations))
    if faults:
        return {}, faults
    names = [images[number]["file_name"] for number in order]
    arrays: Arrays = {
        "image_ids": pack_names([Path(name).stem for name in names]),
        "file_names": pack_names(names),
        "shape": np.array(sizes, dtype=np.int32).reshape(-1, 2),
        **maker.arrays(sizes),
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
