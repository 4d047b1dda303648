"""What annotation tools (CVAT, Label Studio, Roboflow) export in COCO's format, where COCO's own files are otherwise.

`coco_store` reads it by these rules, `coco_json` chooses it. Categories have any ids and any names. A category without
an annotation is no class: Roboflow writes one that is the mere name of the project.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsseg.data.arrays import Arrays, find_store, keep_store, pack_names, unpack_names
from fsseg.data.faults import Fault, faults_error
from fsseg.data.sources.coco_annotations import Id, read_json
from fsseg.data.sources.own import same_names
from fsseg.errors import UserError, visible

_FIX = "export the file again with polygons or masks (segmentation), or mend it"
_KIND = "categories that give no classes"


@dataclass(frozen=True)
class Export:
    """How an export is read.

    Attributes:
        crowds: annotations with iscrowd=1 are ignored (`ignore`: 255), or objects like the others (`object`).
    """

    crowds: str = "ignore"
    fix = _FIX

    @property
    def key(self) -> dict[str, Any]:
        """What of it a store depends on."""
        return {"export": 1, "crowds": self.crowds}

    def read(self, annotation: dict[str, Any]) -> dict[str, Any]:
        """A sound annotation as it is to be understood."""
        return annotation if self.crowds == "ignore" else {**annotation, "iscrowd": 0}

    def classes(
        self, path: Path, categories: Sequence[Any], annotations: Sequence[Any]
    ) -> tuple[dict[Id, int], list[Fault]]:
        """class_id of each category id that is a class, and a fault for each category that is none."""
        names, faults = used_categories(path, categories, annotations)
        rank = {name: class_id for class_id, name in enumerate(sorted(names.values()))}
        return {number: rank[name] for number, name in names.items()}, faults


def used_categories(
    path: Path, categories: Sequence[Any], annotations: Sequence[Any]
) -> tuple[dict[Id, str], list[Fault]]:
    """Names of the categories that have an annotation, by id, and a fault for each that cannot be a class."""
    given: dict[Id, str] = {}
    details = []
    for entry in categories:
        number, name = (entry.get("id"), entry.get("name")) if isinstance(entry, dict) else (None, None)
        text = name.strip() if isinstance(name, str) and name.isprintable() else ""
        if not isinstance(number, int | str) or isinstance(number, bool) or not text:
            details.append(f"the entry {visible(repr(entry)[:80])} has no id and name")
        elif number in given:
            details.append(f"id {number} comes up twice")
        else:
            given[number] = text
    used = {a.get("category_id") for a in annotations if isinstance(a, dict) and _is_plain(a.get("category_id"))}
    names = {number: name for number, name in given.items() if number in used}
    twice = same_names(sorted(names.values()))
    details += [f"class named twice: {a}" if a == b else f"class named twice: {a} and {b}" for a, b in twice]
    fix = "give each category an id and a name of its own"
    return names, [Fault(_KIND, str(path), detail, fix) for detail in details]


def _is_plain(value: Any) -> bool:
    return type(value) in (int, str)


def export_classes(path: Path, folders: list[Path]) -> tuple[str, ...]:
    """Names of the classes of an export, sorted; kept beside its store, so that the file is read once.

    Raises:
        UserError: there is no such file, it is no COCO JSON, or its categories give no classes.
    """
    try:
        stat = path.stat()
    except OSError as error:
        what = f"dataset.annotations={path} cannot be read: {error.strerror}"
        raise UserError(what, "set dataset.annotations to the JSON file") from None
    key = {"classes": 1, "file": path.name, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    name = f"{path.stem}.classes.store"
    if (kept := find_store(folders, name, key)) is not None:
        return tuple(unpack_names(kept["classes"]))
    content = read_json(path, _FIX)
    names, faults = used_categories(path, content["categories"], content["annotations"])
    if faults:
        raise faults_error(faults)
    if not names:
        raise UserError(f"{path}: no category has an annotation", _FIX)
    classes = sorted(names.values())
    arrays: Arrays = {"classes": pack_names(classes)}
    keep_store(folders, name, key, arrays)
    return tuple(classes)
