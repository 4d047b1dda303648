"""`CocoJsonSource`, `dataset=coco_json`: a JSON file in COCO's format, as CVAT, Label Studio and Roboflow export it.

Masks are the union of all instances of a class, as pycocotools makes them (`coco_union`); what only a crowd covers is
255. An image id is the `file_name` without its ending, of two files with the folder of the file in front.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fsseg.config.schema import CocoJsonConfig
from fsseg.data.arrays import cache_folders
from fsseg.data.faults import Fault, faults_error
from fsseg.data.images import image_size, size_error
from fsseg.data.source import SPLITS, ClassIndex, Split
from fsseg.data.sources.coco_export import Export, export_classes, parts_of
from fsseg.data.sources.coco_store import CocoStore, kept_store, open_store
from fsseg.data.sources.own import OwnSource, some
from fsseg.errors import UserError
from fsseg.process.files import sha256_of

_RULE = "union"


class CocoJsonSource(OwnSource):
    """One annotation file and a folder of images; or two files, of images to train on and to evaluate."""

    size_fix = (
        "export annotations of the image as people see it, turned by its EXIF orientation, or save it without one"
    )

    def __init__(self, cfg: CocoJsonConfig) -> None:
        self.files = _files(cfg)
        self.annotations = self.files[0]
        root, parts = parts_of(self.files, cfg.images)
        self._folders = cache_folders(self.annotations.parent, cfg.cache)
        self.export = Export(cfg.crowds, parts if len(parts) > 1 else ())
        super().__init__(cfg, export_classes(self.annotations, self._folders, self.export), root)
        crowds = "pixels covered only by a crowd are ignored" if cfg.crowds == "ignore" else "crowds are objects"
        self.mask_rule = f"union of all instances per class, by pycocotools; {crowds}"
        self._store: CocoStore | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_store": None}  # a loader process maps it itself

    def _opened(self) -> CocoStore:
        if self._store is None:
            self._store, faults = open_store(self.annotations, _RULE, self._folders, False, self.export)
            if self._store is None:
                raise faults_error(faults)
        return self._store

    def all_ids(self) -> list[str]:
        return self._opened().image_ids

    def scan(self, split: Split) -> tuple[ClassIndex | None, list[Fault]]:
        self._store, faults = open_store(self.annotations, _RULE, self._folders, True, self.export)
        if self._store is None:
            return None, faults
        image_ids, faults = self.list_ids(split)
        return self._store.index(image_ids)[0], [*faults, *(self._copies() if split == "val" else ())]

    def kept_index(self, split: Split) -> ClassIndex | None:
        if self._store is None:
            self._store = kept_store(self.annotations, _RULE, self._folders, self.export)
        if self._store is None:
            return None
        image_ids, faults = self.list_ids(split)
        return None if faults else self._store.kept_index(image_ids)

    def list_ids(self, split: Split) -> tuple[list[str], list[Fault]]:
        store = self._opened()
        if store.parts is None:
            return super().list_ids(split)
        return [i for i, part in zip(store.image_ids, store.parts.tolist()) if part == SPLITS.index(split)], []

    def list_origin(self, split: Split) -> str:
        return str(self._file(split)) if self.export.parts else super().list_origin(split)

    def _file(self, split: Split) -> Path:
        return self.files[SPLITS.index(split)] if self.export.parts else self.annotations

    def _copies(self) -> Iterator[Fault]:
        """Images of the one file that are evaluated as those of the other, bit for bit, whatever they are called."""
        sides = (
            [[self.image_path(s, i) for i in self.list_ids(s)[0]] for s in SPLITS] if self.export.parts else [[], []]
        )
        by_size: dict[int, list[Path]] = defaultdict(list)
        for path in sides[0]:
            if path.is_file():
                by_size[path.stat().st_size].append(path)
        for path in sides[1]:
            others = by_size.get(path.stat().st_size, []) if path.is_file() else []
            if others and (other := next((o for o in others if sha256_of(o) == sha256_of(path)), None)) is not None:
                fix = "leave each of them out on one side"
                yield Fault("images that are trained on and evaluated", str(path), f"is the same as {other}", fix)

    def masks_of(self, split: Split, image_id: str) -> Mapping[str, tuple[int, int]]:
        return {str(self._file(split)): self._opened().size(image_id)}

    def image_path(self, split: Split, image_id: str) -> Path:
        return self.root / self._opened().file_name(image_id).replace("\\", "/")

    def mask_path(self, split: Split, image_id: str) -> Path:
        return self._file(split)

    def mask(self, split: Split, image_id: str, class_id: int, ignore_classes: Sequence[int] = ()) -> NDArray[np.uint8]:
        store, picture = self._opened(), self.image_path(split, image_id)
        size = store.size(image_id)
        if picture.is_file() and (found := image_size(picture, upright=True)) != size:
            raise size_error(picture, found, self._file(split), size)
        return store.mask(image_id, class_id, ignore_classes)

    def missing_images(self, split: Split) -> list[str]:
        return [image_id for image_id in self.list_ids(split)[0] if not self.image_path(split, image_id).is_file()]

    def completion(self, split: Split) -> str:
        return f"point dataset.images at the folder that the file names in {self._file(split)} are relative to"

    def own_notes(self) -> Iterator[str]:
        yield f"{len(self.classes)} classes: {some(self.classes)}"
        try:
            store = self._opened()
        except UserError:  # told as faults
            return
        index = store.index(store.image_ids)[0]
        if alone := sorted(set(index.pair_class.tolist()) - set(index.pair_class[index.pair_pixels > 0].tolist())):
            names = some([self.classes[c] for c in alone])
            yield (
                f"class {names} has crowds alone (iscrowd=1), which are ignored; where "
                "a tool marks all brush masks so, set dataset.crowds=object"
            )
        if bare := len(store.image_ids) - len(set(index.pair_image.tolist())):
            yield f"{bare} of {len(store.image_ids)} images have no annotation"

    @classmethod
    def layout(cls, cfg: CocoJsonConfig, splits: Sequence[Split] = SPLITS) -> dict[str, bool]:
        images = parts_of(_files(cfg), cfg.images)[0]
        return {**{str(file): file.is_file() for file in _files(cfg)}, str(images): images.is_dir()}

    @classmethod
    def check_folder(cls, cfg: CocoJsonConfig, splits: Sequence[Split] = SPLITS) -> list[UserError]:
        """As in `OwnSource`, with the keys that say where the data are."""
        errors = []
        for key, file in zip(("annotations", "val_annotations"), _files(cfg)):
            if not file.is_file():
                what = f"dataset.{key}={file}: there is no file {file.absolute()}"
                errors.append(UserError(what, f"set dataset.{key} to the JSON file of an export in COCO's format"))
        if cfg.images is not None and not (folder := Path(cfg.images).expanduser()).is_dir():
            what = f"dataset.images={cfg.images}: there is no folder {folder.absolute()}"
            errors.append(UserError(what, "set dataset.images to the folder that its file names are relative to"))
        if cfg.val_annotations is not None and (cfg.train_list or cfg.val_list):
            what = "dataset.val_annotations and a list both say which images are evaluated"
            errors.append(
                UserError(what, "leave out dataset.train_list and dataset.val_list, or dataset.val_annotations")
            )
        return errors or cls.class_faults(cfg, splits)


def _files(cfg: CocoJsonConfig) -> list[Path]:
    """The annotation files: of the images that are trained on, and of those that are evaluated, if they are two."""
    return [Path(name).expanduser() for name in (cfg.annotations, cfg.val_annotations) if name is not None]
