"""What an `instances_*.json` must hold: checked in full before pycocotools, whose C code trusts it, sees any of it.

`coco_store` is the caller. What annotation tools export (`coco_export`) has categories of its own, may have texts as
ids, and folders in its file names; all else is checked alike. Every fault is named with the id of its image or
annotation. Boxes and areas are not checked, because nothing reads them.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from fsseg.data.faults import Fault
from fsseg.data.folds import COCO_CATEGORY_IDS, COCO_CLASSES
from fsseg.data.images import MAX_PIXELS
from fsseg.errors import UserError

CLASS_OF_CATEGORY: dict[Id, int] = {category: class_id for class_id, category in enumerate(COCO_CATEGORY_IDS)}
OFFICIAL = "use the official annotations (`fsseg prepare dataset=coco20i --download`), or mend the file"

Id = int | str
"""Of an image, an annotation or a category; COCO's are numbers."""

Problem = tuple[str, str]
"""Kind and detail of a fault."""

_UNREADABLE = "annotations whose segmentation cannot be read"
_POLYGONS = "polygons that are no outline in their image"
_RUNS = "run lengths that do not cover their image"
_LONGEST = 1 << 22  # pixels of an outline: pycocotools keeps five points for each


def _short(value: Any) -> str:
    """A value for a message: one line, whatever it holds and however much."""
    return reprlib.repr(value)[:80]


def read_json(path: Path, fix: str = OFFICIAL) -> dict[str, Any]:
    """An annotation file, in COCO's instance form as far as its lists go.

    Args:
        fix: what to do about another file.

    Raises:
        UserError: it is missing, not JSON, or of another form.
    """
    not_coco = f"{path} is not a COCO instances file"
    try:
        if not path.is_file():
            raise OSError("no regular file")
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}", fix) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}", "check the file's permissions") from error
    if not isinstance(content, dict):
        raise UserError(f"{not_coco}: it holds a {type(content).__name__}, not an object", fix)
    lacking = [key for key in ("images", "annotations", "categories") if not isinstance(content.get(key), list)]
    if lacking:
        there = ", ".join(list(content)[:8]) or "nothing"
        raise UserError(f"{not_coco}: it has no list {' and '.join(lacking)} (it holds {there})", fix)
    if content["annotations"] and not any(
        "segmentation" in a for a in content["annotations"][:100] if isinstance(a, dict)
    ):
        other = "use instances_*.json, not captions or boxes" if fix == OFFICIAL else fix
        raise UserError(f"{not_coco}: its annotations have no segmentation", other)
    return content


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


def check_images(
    path: Path, entries: list[Any], exported: bool = False, fix: str = OFFICIAL
) -> tuple[dict[Id, dict[str, Any]], list[Fault]]:
    """The sound image entries by their id, and a fault for each other one.

    Args:
        exported: by an annotation tool.
        fix: of the faults.
    """
    images: dict[Id, dict[str, Any]] = {}
    stems: dict[str, Id] = {}
    faults = []
    for entry in entries:
        problem = _image_problem(entry, images, stems, exported)
        if problem is None:
            images[entry["id"]] = entry
            stems[image_name(entry["file_name"])] = entry["id"]
        else:
            faults.append(Fault(problem[0], str(path), problem[1], fix))
    return images, faults


def image_name(file_name: str) -> str:
    """Id of an image: its file's name without ending, with the folders that an export gives."""
    return PurePosixPath(file_name.replace("\\", "/")).with_suffix("").as_posix()


def _is_name(name: Any, exported: bool) -> bool:
    """Whether a file can have this name below the folder of images; an export may name folders, as Windows does too."""
    if not isinstance(name, str) or not name.isprintable() or name in ("", ".."):
        return False
    if not exported:
        return Path(name).name == name and len(name) <= 255
    path = PurePosixPath(name.replace("\\", "/"))
    return bool(path.name) and not path.is_absolute() and ".." not in path.parts and max(map(len, path.parts)) <= 255


def _is_id(value: Any, exported: bool) -> bool:
    return type(value) is int or (exported and isinstance(value, str) and value != "")


def _image_problem(
    entry: Any, images: dict[Id, dict[str, Any]], stems: dict[str, Id], exported: bool
) -> Problem | None:
    if not isinstance(entry, dict) or not {"id", "file_name", "height", "width"} <= entry.keys():
        return "image entries without id, file_name, height and width", _short(entry)
    number, name = entry["id"], entry["file_name"]
    sizes = entry["height"], entry["width"]
    if (
        not _is_id(number, exported)
        or {*map(type, sizes)} != {int}
        or min(sizes) < 1
        or sizes[0] * sizes[1] > MAX_PIXELS
    ):
        return "image entries with an odd id, height or width", _short(entry)
    if not _is_name(name, exported):
        return "image entries whose file_name is no plain name", f"image {number}: {_short(name)}"
    if number in images:
        return "duplicate ids", f"image id {number} comes up twice"
    if (stem := image_name(name)) in stems:
        return "duplicate ids", f"images {stems[stem]} and {number} are both called {stem}"
    return None


def annotation_problem(
    annotation: Any, images: dict[Id, dict[str, Any]], seen: set[Id], known: Mapping[Id, int] | None = None
) -> Problem | None:
    """What is wrong with an annotation, if anything is.

    Args:
        images: the sound image entries by id.
        seen: ids of the annotations before this one; its own is added.
        known: the categories of an export; None: COCO's.
    """
    exported = known is not None
    known = CLASS_OF_CATEGORY if known is None else known
    found = annotation if isinstance(annotation, dict) else {}
    number, image, category = (found.get(key) for key in ("id", "image_id", "category_id"))
    if not all(_is_id(value, exported) for value in (number, image, category)):
        return "annotations without whole numbers as id, image_id and category_id", _short(annotation)
    assert number is not None
    assert image is not None
    if number in seen:
        return "duplicate ids", f"annotation id {number} comes up twice"
    seen.add(number)
    if image not in images:
        return "unknown ids", f"annotation {number} is of image {image}, which is not listed"
    if category not in known:
        lacking = "is not listed" if exported else "COCO has not"
        return "unknown ids", f"annotation {number} is of category {category}, which {lacking}"
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
    if shape is None or shape == []:
        return _UNREADABLE, "there is none: a box alone"
    if not isinstance(shape, list):
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
