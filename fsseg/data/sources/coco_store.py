"""The compact store of COCO masks: `instances_*.json` read once, masks kept by a rule. `coco` is the caller.

The JSON of train2014 has 450 MB and several times that as Python objects; a loader process maps this store instead, in
memory once for all processes of a host. Each rule (`coco_painted`, `coco_union`) has a store of its own.
"""

from __future__ import annotations

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
from fsseg.data.sources.coco_annotations import (
    CLASS_OF_CATEGORY,
    OFFICIAL,
    Id,
    annotation_problem,
    check_categories,
    check_images,
    image_name,
    read_json,
)
from fsseg.data.sources.coco_export import PART, Export
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
        parts: number of the file that lists each image, if an export is made of several.
    """

    def __init__(self, path: Path, rule: str, arrays: Arrays) -> None:
        self.path = path
        self.image_ids = unpack_names(arrays["image_ids"])
        self._file_names = unpack_names(arrays["file_names"])
        self._shape = arrays["shape"]
        self.parts = arrays.get("part")
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


def open_store(
    path: Path, rule: str, folders: list[Path], verify: bool, export: Export | None = None
) -> tuple[CocoStore | None, list[Fault]]:
    """The store of an annotation file, made if none fits; None and the faults if the annotations are faulty.

    Args:
        path: an `instances_*.json`.
        rule: how masks are made, a key of `RULES`.
        folders: where the store is looked for and kept (see `arrays.cache_folders`).
        verify: check the whole store's checksum, not only its header.
        export: how the file is read, if it is none of COCO's own.

    Raises:
        UserError: there is no such file, it is no COCO JSON, or the store cannot be written.
    """
    try:
        stat = path.stat()
    except FileNotFoundError:
        fix = "set dataset.root and dataset.year to where they are, or run `fsseg prepare`"
        fix = fix if export is None else "set dataset.annotations to where they are"
        raise UserError(f"annotations {path} are missing", fix) from None
    key, name = _kept_as(path, rule, stat, export)
    arrays = find_store(folders, name, key, verify)
    if arrays is None:
        made, faults = read_annotations(path, rule, export)
        if faults:
            return None, faults
        stored = keep_store(folders, name, key, made)
        del made
        arrays = find_store([stored.parent], name, key, verify=False)
        if arrays is None:
            raise UserError(f"{stored} changed while it was read", "start again")
    return CocoStore(path, rule, arrays), []


def kept_store(path: Path, rule: str, folders: list[Path], export: Export | None = None) -> CocoStore | None:
    """The store of an annotation file, if one was made of it as it is now.

    Raises:
        OSError: there is no such file.
    """
    key, name = _kept_as(path, rule, path.stat(), export)
    arrays = find_store(folders, name, key, verify=False)
    return None if arrays is None else CocoStore(path, rule, arrays)


def _kept_as(path: Path, rule: str, stat: os.stat_result, export: Export | None) -> tuple[dict[str, Any], str]:
    """Key and file name of the store."""
    version, ending = RULES[rule].version, RULES[rule].ending
    key = {"rule": version, "file": path.name, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    return ({**key, **export.key}, f"{path.stem}.export.{ending}") if export else (key, f"{path.stem}.{ending}")


def read_annotations(path: Path, rule: str, export: Export | None = None) -> tuple[Arrays, list[Fault]]:
    """Read an annotation file; {} and every fault in it if there is any.

    Images stand in the order of their COCO ids; of an export in that of their names.

    Args:
        rule: a key of `RULES`.
        export: as in `open_store`.

    Raises:
        UserError: it is not JSON, or not of COCO's instance form at all.
    """
    maker = RULES[rule].maker()
    start = time.monotonic()
    log.info("reading %s (%.0f MB)", path, path.stat().st_size / 1e6)
    fix = OFFICIAL if export is None else export.fix
    content = read_json(path, fix) if export is None else export.content(path)
    annotations = content.pop("annotations")
    class_of, faults = _classes(path, content["categories"], annotations, export)
    images, found = check_images(path, content["images"], export is not None, fix)
    faults += found
    order: list[Any] = list(images)
    order.sort(key=None if export is None else lambda number: image_name(images[number]["file_name"]))
    position = {number: row for row, number in enumerate(order)}
    sizes = [(images[number]["height"], images[number]["width"]) for number in order]
    seen: set[Id] = set()
    told = time.monotonic()
    for row, annotation in enumerate(annotations):
        annotations[row] = None  # frees the polygons as they are converted
        if (problem := annotation_problem(annotation, images, seen, class_of if export else None)) is not None:
            faults.append(Fault(problem[0], str(path), problem[1], fix))
        elif not faults:  # else only further faults matter
            place = position[annotation["image_id"]]
            shape = annotation if export is None else export.read(annotation)
            maker.add(place, sizes[place], shape, class_of[annotation["category_id"]])
        if time.monotonic() - told > _PROGRESS_SECONDS:
            told = time.monotonic()
            log.info("%s: %d of %d annotations", path.name, row + 1, len(annotations))
    if faults:
        return {}, faults
    names = [images[number]["file_name"] for number in order]
    arrays: Arrays = {
        "image_ids": pack_names([image_name(name) for name in names]),
        "file_names": pack_names(names),
        "shape": np.array(sizes, dtype=np.int32).reshape(-1, 2),
        **maker.arrays(sizes),
    }
    if export is not None and export.parts:
        arrays["part"] = np.array([images[number][PART] for number in order], dtype=np.int8)
    log.info("indexed %s in %.1f s: %d pairs", path.name, time.monotonic() - start, len(arrays["pair_image"]))
    return arrays, []


def _classes(
    path: Path, categories: list[Any], annotations: list[Any], export: Export | None
) -> tuple[dict[Id, int], list[Fault]]:
    """class_id of each category id, and the faults of the categories."""
    if export is not None:
        return export.classes(path, categories, annotations)
    return CLASS_OF_CATEGORY, check_categories(path, categories)
