"""What an `instances_*.json` must hold: checked in full before pycocotools, whose C code trusts it, sees any of it.

`coco_store` is the caller. Every fault is named with the id of its image or annotation. Boxes and areas are not
checked, because nothing reads them.
"""

from __future__ import annotations

import math
import reprlib
from pathlib import Path
from typing import Any

import numpy as np

from fsseg.data.faults import Fault
from fsseg.data.folds import COCO_CATEGORY_IDS, COCO_CLASSES
from fsseg.data.images import MAX_PIXELS

CLASS_OF_CATEGORY = {category: class_id for class_id, category in enumerate(COCO_CATEGORY_IDS)}
OFFICIAL = "use the official annotations (`fsseg prepare dataset=coco20i --download`), or mend the file"

Problem = tuple[str, str]
"""Kind and detail of a fault."""

_UNREADABLE = "annotations whose segmentation cannot be read"
_POLYGONS = "polygons that are no outline in their image"
_RUNS = "run lengths that do not cover their image"
_LONGEST = 1 << 22  # pixels of an outline: pycocotools keeps five points for each


def _short(value: Any) -> str:
    """A value for a message: one line, whatever it holds and however much."""
    return reprlib.repr(value)[:80]


def check_categories(path: Path, categories: list[Any]) -> list[Fault]:
    """COCO's 80 categories, each under its own id; with any others the folds would differ."""
    given: dict[int, Any] = {}
    details = []
    for entry in categories:
        if not isinstance(entry, dict) or type(entry.get("id")) is not int or "name" not in entry:
            details.append(f"the entry {_short(entry)} has no id (a whole number) and name")
        elif entry["id"] in given:
            details.append(f"id {entry['id']} comes up twice")
        else:
            given[entry["id"]] = entry["name"]
    for category, name in zip(COCO_CATEGORY_IDS, COCO_CLASSES):
        if category not in given:
            details.append(f"id {category} ({name}) is missing")
        elif given[category] != name:
            details.append(f"id {category} is {_short(given[category])}, not {name!r}")
    details += [
        f"id {category} ({_short(given[category])}) is none of COCO's"
        for category in given
        if category not in CLASS_OF_CATEGORY
    ]
    return [Fault("categories that are not COCO's", str(path), detail, OFFICIAL) for detail in details]


def check_images(path: Path, entries: list[Any]) -> tuple[dict[int, dict[str, Any]], list[Fault]]:
    """The sound image entries by their id, and a fault for each other one."""
    images: dict[int, dict[str, Any]] = {}
    stems: dict[str, int] = {}
    faults = []
    for entry in entries:
        problem = _image_problem(entry, images, stems)
        if problem is None:
            images[entry["id"]] = entry
            stems[Path(entry["file_name"]).stem] = entry["id"]
        else:
            faults.append(Fault(problem[0], str(path), problem[1], OFFICIAL))
    return images, faults


def _image_problem(entry: Any, images: dict[int, dict[str, Any]], stems: dict[str, int]) -> Problem | None:
    if not isinstance(entry, dict) or not {"id", "file_name", "height", "width"} <= entry.keys():
        return "image entries without id, file_name, height and width", _short(entry)
    number, name = entry["id"], entry["file_name"]
    sizes = entry["height"], entry["width"]
    if {type(number), *map(type, sizes)} != {int} or min(sizes) < 1 or sizes[0] * sizes[1] > MAX_PIXELS:
        return "image entries with an odd id, height or width", _short(entry)
    plain = isinstance(name, str) and name.isprintable() and Path(name).name == name and len(name) <= 255
    if not plain or name in ("", ".."):
        return "image entries whose file_name is no plain name", f"image {number}: {_short(name)}"
    if number in images:
        return "duplicate ids", f"image id {number} comes up twice"
    if (stem := Path(name).stem) in stems:
        return "duplicate ids", f"images {stems[stem]} and {number} are both called {stem}"
    return None


def annotation_problem(annotation: Any, images: dict[int, dict[str, Any]], seen: set[int]) -> Problem | None:
    """What is wrong with an annotation, if anything is.

    Args:
        images: the sound image entries by id.
        seen: ids of the annotations before this one; its own is added.
    """
    found = annotation if isinstance(annotation, dict) else {}
    number, image, category = (found.get(key) for key in ("id", "image_id", "category_id"))
    if type(number) is not int or type(image) is not int or type(category) is not int:
        return "annotations without whole numbers as id, image_id and category_id", _short(annotation)
    if number in seen:
        return "duplicate ids", f"annotation id {number} comes up twice"
    seen.add(number)
    if image not in images:
        return "unknown ids", f"annotation {number} is of image {image}, which is not listed"
    if category not in CLASS_OF_CATEGORY:
        return "unknown ids", f"annotation {number} is of category {category}, which COCO has not"
    if (crowd := found.get("iscrowd", 0)) not in (0, 1):
        return "annotations whose iscrowd is neither 0 nor 1", f"annotation {number}: {_short(crowd)}"
    height, width = images[image]["height"], images[image]["width"]
    problem = _segmentation_problem(found.get("segmentation"), height, width)
    return None if problem is None else (problem[0], f"annotation {number}: {problem[1]}")


def _segmentation_problem(shape: Any, height: int, width: int) -> Problem | None:
    if isinstance(shape, dict):
        if shape.get("size") != [height, width]:
            return "masks of another size", f"{_short(shape.get('size'))}, its image is {[height, width]}"
        return _runs_problem(run_lengths(shape), height * width)
    if not isinstance(shape, list) or not shape:
        return _UNREADABLE, f"{_short(shape)} is neither a list of polygons nor run lengths"
    details = (_polygon_problem(polygon, max(height, width)) for polygon in shape)
    return next(((_POLYGONS, detail) for detail in details if detail is not None), None)


def _runs_problem(runs: list[int] | None, pixels: int) -> Problem | None:
    if runs is None:
        return _UNREADABLE, "its counts are neither a list of whole numbers nor COCO's compressed text"
    if min(runs, default=0) < 0:
        return _RUNS, "a run of negative length"
    if (covered := sum(runs)) != pixels:
        return _RUNS, f"{_short(covered)} pixels of {pixels}"
    return None


def run_lengths(shape: dict[str, Any]) -> list[int] | None:
    """Lengths of the runs, 0 first, column by column, from either form of `counts`; None if it is neither."""
    counts = shape.get("counts")
    if isinstance(counts, str):
        return _uncompressed(counts)
    return counts if isinstance(counts, list) and set(map(type, counts)) <= {int} else None


def _uncompressed(text: str) -> list[int] | None:
    """COCO's compressed form: a character holds five bits from "0" on, low ones first; the sixth says that more follow,
    the fifth of the last is the sign. From the fourth run on it is the difference to the last but one."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return None if shift else runs


def _polygon_problem(polygon: Any, side: int) -> str | None:
    """What is wrong with a polygon in an image whose longer side is given, if anything is.

    It may leave the image by as much as the image measures; pycocotools cuts it off.
    """
    if not isinstance(polygon, list) or not set(map(type, polygon)) <= {int, float}:
        return f"{_short(polygon)} is no list of numbers"
    if len(polygon) % 2 or len(polygon) < 6:
        return f"{len(polygon)} numbers, where x and y of three or more points are expected"
    low, high = min(polygon), max(polygon)
    if not (-side <= low and high <= 2 * side and math.isfinite(sum(polygon))):  # the sum shows NaN, the others not
        return f"coordinates from {_short(low)} to {_short(high)} in an image of {side} pixels"
    if len(polygon) * (high - low) > _LONGEST:
        points = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
        if np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum() > _LONGEST:
            return f"an outline of more than {_LONGEST} pixels"
    return None
