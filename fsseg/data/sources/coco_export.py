"""What annotation tools (CVAT, Label Studio, Roboflow) export in COCO's format, where COCO's own files are otherwise.

`coco_store` reads it by these rules, `coco_json` chooses it. Categories have any ids and any names. A category without
an annotation is no class: Roboflow writes one that is the mere name of the project.
"""

from __future__ import annotations

import os
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
class ExportPart:
    """One of several annotation files of a data set.

    Attributes:
        path: of the file.
        folder: of its images, below the folder of the data set; empty: that one.
    """

    path: Path
    folder: str

    @property
    def key(self) -> list[Any]:
        stat = self.path.stat()
        return [self.path.name, self.folder, stat.st_size, stat.st_mtime_ns]


@dataclass(frozen=True)
class Export:
    """How an export is read.

    Attributes:
        crowds: annotations with iscrowd=1 are ignored (`ignore`: 255), or objects like the others (`object`).
        parts: the files that it is made of, if they are several, the first one included.
    """

    crowds: str = "ignore"
    parts: tuple[ExportPart, ...] = ()
    fix = _FIX

    @property
    def key(self) -> dict[str, Any]:
        """What of it a store depends on.

        Raises:
            OSError: a part is not there.
        """
        return {
            "export": 1,
            "crowds": self.crowds,
            **({"parts": [part.key for part in self.parts]} if self.parts else {}),
        }

    def content(self, path: Path) -> dict[str, Any]:
        """What the file holds, or all parts together.

        Raises:
            UserError: one is missing, or no COCO JSON, or their categories do not agree.
        """
        return merged(self.parts) if self.parts else read_json(path, _FIX)

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


def merged(parts: Sequence[ExportPart]) -> dict[str, Any]:
    """Several files as one: categories are known by their names, ids and file names say of which part they are. An
    image knows its part by its number, `PART`.

    Raises:
        UserError: a file is missing or no COCO JSON, or a category with objects in one file is not listed in another.
    """
    contents = [read_json(part.path, _FIX) for part in parts]
    named = [used_categories(part.path, c["categories"], c["annotations"]) for part, c in zip(parts, contents)]
    if faults := [fault for _, found in named for fault in found]:
        raise faults_error(faults)
    for part, (used, _) in zip(parts, named):
        for other, content in zip(parts, contents):
            listed = {str(entry.get("name")).strip() for entry in content["categories"] if isinstance(entry, dict)}
            if lacking := sorted(set(used.values()) - listed):
                what = (
                    f"{part.path} has objects of {', '.join(map(visible, lacking))}, which {other.path} does not list"
                )
                raise UserError(what, "export both files with the same categories, spelled alike")
    found: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    names = sorted({name for used, _ in named for name in used.values()})
    found["categories"] = [{"id": name, "name": name} for name in names]
    for number, (part, content, (used, _)) in enumerate(zip(parts, contents, named)):
        for image in content["images"]:
            found["images"].append(_of_part(part, image, ("id",), {PART: number}))
        for annotation in content["annotations"]:
            category: Any = annotation.get("category_id") if isinstance(annotation, dict) else None
            known = {"category_id": used.get(category, f"{category} of {part.path}")} if _is_plain(category) else {}
            found["annotations"].append(_of_part(part, annotation, ("id", "image_id"), known))
    return found


PART = "part of the data set"


def _of_part(part: ExportPart, entry: Any, ids: Sequence[str], more: dict[str, Any]) -> Any:
    """An entry whose ids and file name say of which part it is; what is no such thing stays as it is, to be told."""
    if not isinstance(entry, dict):
        return entry
    own = {key: f"{entry[key]} of {part.path}" for key in ids if _is_plain(entry.get(key))}
    name = entry.get("file_name")
    if part.folder and isinstance(name, str) and name and not name.startswith("/"):
        own["file_name"] = f"{part.folder}/{name}"
    return {**entry, **own, **more}


def export_classes(path: Path, folders: list[Path], export: Export) -> tuple[str, ...]:
    """Names of the classes of an export, sorted; kept beside its store, so that the file is read once.

    Raises:
        UserError: there is no such file, it is no COCO JSON, or its categories give no classes.
    """
    try:
        stat = path.stat()
        more = {"parts": [part.key for part in export.parts]} if export.parts else {}
    except OSError as error:
        what = f"{error.filename} cannot be read: {error.strerror}"
        raise UserError(what, "set dataset.annotations (and dataset.val_annotations) to a JSON file") from None
    key = {"classes": 1, "file": path.name, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns, **more}
    name = f"{path.stem}.classes.store"
    if (kept := find_store(folders, name, key)) is not None:
        return tuple(unpack_names(kept["classes"]))
    content = export.content(path)
    names, faults = used_categories(path, content["categories"], content["annotations"])
    if faults:
        raise faults_error(faults)
    if not names:
        raise UserError(f"{path}: no category has an annotation", _FIX)
    classes = sorted(names.values())
    arrays: Arrays = {"classes": pack_names(classes)}
    keep_store(folders, name, key, arrays)
    return tuple(classes)


def parts_of(files: Sequence[Path], images: str | None) -> tuple[Path, tuple[ExportPart, ...]]:
    """The folder that holds all images, and the files with their folders below it.

    Args:
        images: the folder that the file names of all are relative to; None: the folder `images` beside each file, or
            else the file's own.
    """
    if images is not None:
        return Path(images).expanduser(), tuple(ExportPart(file, "") for file in files)
    own = [beside if (beside := file.parent / "images").is_dir() else file.parent for file in files]
    root = Path(os.path.commonpath([os.path.abspath(folder) for folder in own])) if len(own) > 1 else own[0]
    below = [os.path.relpath(folder, root).replace(os.sep, "/") for folder in own]
    return root, tuple(ExportPart(file, "" if folder == "." else folder) for file, folder in zip(files, below))
