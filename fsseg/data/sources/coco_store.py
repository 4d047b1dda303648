"""The compact store of COCO masks: `instances_*.json` read once, one run-length code per (image, class) kept.

The JSON of train2014 has 450 MB and several times that as Python objects; a loader process maps this store instead
(about 100 MB on disk, in memory once for all processes of a host). Only `coco` calls this module.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle

from fsseg.data.arrays import Arrays, find_store, keep_store, pack_names, unpack_names
from fsseg.data.faults import Fault
from fsseg.data.folds import COCO_CATEGORY_IDS, COCO_CLASSES
from fsseg.data.source import ClassIndex
from fsseg.errors import UserError

log = logging.getLogger(__name__)

RULE_VERSION = 1
"""Version; goes up when the rule that turns annotations into masks changes, so that older stores are made again."""

_CLASS_OF_CATEGORY = {category: class_id for class_id, category in enumerate(COCO_CATEGORY_IDS)}
_PROGRESS_SECONDS = 5.0
_OFFICIAL = "use the official annotations (`fsseg prepare dataset=coco20i --download`), or mend the file"


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
    key = {"rule": RULE_VERSION, "file": path.name, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    name = f"{path.stem}.store"
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
    faults = _check_categories(path, content["categories"])
    images, found = _check_images(path, content["images"])
    faults += found
    order = sorted(images)
    position = {number: row for row, number in enumerate(order)}
    instances, crowds = _Union(), _Union()
    annotations = content.pop("annotations")
    seen: set[Any] = set()
    told = time.monotonic()
    for row, annotation in enumerate(annotations):
        annotations[row] = None  # frees the polygons as they are converted
        problem = _add(annotation, images, position, seen, instances, crowds)
        if problem is not None:
            faults.append(Fault(problem[0], str(path), problem[1], _OFFICIAL))
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
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}", _OFFICIAL) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}", "check the file's permissions") from error
    if not isinstance(content, dict):
        raise UserError(f"{not_coco}: it holds a {type(content).__name__}, not an object", _OFFICIAL)
    lacking = [key for key in ("images", "annotations", "categories") if not isinstance(content.get(key), list)]
    if lacking:
        there = ", ".join(list(content)[:8]) or "nothing"
        raise UserError(f"{not_coco}: it has no list {' and '.join(lacking)} (it holds {there})", _OFFICIAL)
    if content["annotations"] and not any(
        "segmentation" in a for a in content["annotations"][:100] if isinstance(a, dict)
    ):
        raise UserError(
            f"{not_coco}: its annotations have no segmentation", "use instances_*.json, not captions or boxes"
        )
    return content


def _check_categories(path: Path, categories: list[Any]) -> list[Fault]:
    """COCO's 80 categories, each under its own id; with any others the folds would differ."""
    given: dict[Any, Any] = {}
    details = []
    for entry in categories:
        if not isinstance(entry, dict) or "id" not in entry or "name" not in entry:
            details.append(f"the entry {str(entry)[:60]} has no id and name")
        elif entry["id"] in given:
            details.append(f"id {entry['id']} comes up twice")
        else:
            given[entry["id"]] = entry["name"]
    for category, name in zip(COCO_CATEGORY_IDS, COCO_CLASSES):
        if category not in given:
            details.append(f"id {category} ({name}) is missing")
        elif given[category] != name:
            details.append(f"id {category} is {given[category]!r}, not {name!r}")
    details += [
        f"id {category} ({given[category]}) is none of COCO's"
        for category in given
        if category not in _CLASS_OF_CATEGORY
    ]
    return [Fault("categories that are not COCO's", str(path), detail, _OFFICIAL) for detail in details]


def _check_images(path: Path, entries: list[Any]) -> tuple[dict[int, dict[str, Any]], list[Fault]]:
    images: dict[int, dict[str, Any]] = {}
    stems: dict[str, int] = {}
    faults = []
    for entry in entries:
        problem = None
        if not isinstance(entry, dict) or not {"id", "file_name", "height", "width"} <= entry.keys():
            problem = ("image entries without id, file_name, height and width", str(entry)[:80])
        elif not isinstance(entry["id"], int) or not all(
            isinstance(entry[k], int) and entry[k] > 0 for k in ("height", "width")
        ):
            problem = ("image entries with an odd id, height or width", str(entry)[:80])
        elif not isinstance(entry["file_name"], str) or Path(entry["file_name"]).name != entry["file_name"]:
            problem = ("image entries whose file_name is no plain name", f"image {entry['id']}: {entry['file_name']}")
        elif entry["id"] in images:
            problem = ("duplicate ids", f"image id {entry['id']} comes up twice")
        elif (stem := Path(entry["file_name"]).stem) in stems:
            problem = ("duplicate ids", f"images {stems[stem]} and {entry['id']} are both called {stem}")
        if problem is None:
            images[entry["id"]] = entry
            stems[Path(entry["file_name"]).stem] = entry["id"]
        else:
            faults.append(Fault(problem[0], str(path), problem[1], _OFFICIAL))
    return images, faults


def _add(
    annotation: Any,
    images: dict[int, dict[str, Any]],
    position: dict[int, int],
    seen: set[Any],
    instances: _Union,
    crowds: _Union,
) -> tuple[str, str] | None:
    """Add one annotation to its image and class; returns kind and detail of its fault, if it has one."""
    try:
        number, image, category = annotation["id"], annotation["image_id"], annotation["category_id"]
        if number in seen:
            return "duplicate ids", f"annotation id {number} comes up twice"
        seen.add(number)
        if image not in images:
            return "unknown ids", f"annotation {number} is of image {image}, which is not listed"
        if category not in _CLASS_OF_CATEGORY:
            return "unknown ids", f"annotation {number} is of category {category}, which COCO has not"
    except (KeyError, TypeError):
        return "annotations without id, image_id and category_id", str(annotation)[:80]
    height, width = images[image]["height"], images[image]["width"]
    try:
        shape = annotation["segmentation"]
        if isinstance(shape, dict) and list(shape["size"]) != [height, width]:
            return "masks of another size", f"annotation {number}: {shape['size']}, image {image} is {[height, width]}"
        code = (
            rle.frPyObjects(shape, height, width)
            if isinstance(shape, list) or isinstance(shape["counts"], list)
            else shape
        )
        code = rle.merge(code) if isinstance(code, list) else code
    except Exception as error:  # pycocotools raises errors of many types on odd content
        return "annotations whose segmentation cannot be read", f"annotation {number}: {error or type(error).__name__}"
    union = crowds if annotation.get("iscrowd") else instances
    union.codes.setdefault((position[image], _CLASS_OF_CATEGORY[category]), []).append(code)
    return None
