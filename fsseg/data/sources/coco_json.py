"""`CocoJsonSource`, `dataset=coco_json`: a JSON file in COCO's format, as CVAT, Label Studio and Roboflow export it.

Masks are the union of all instances of a class, as pycocotools makes them (`coco_union`); what only a crowd covers is
255. An image id is the `file_name` without its ending; `dataset.images` is the folder that file names are relative to.
"""

from __future__ import annotations

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
from fsseg.data.sources.coco_export import Export, export_classes
from fsseg.data.sources.coco_store import CocoStore, kept_store, open_store
from fsseg.data.sources.own import OwnSource, some
from fsseg.errors import UserError

_RULE = "union"


class CocoJsonSource(OwnSource):
    """One annotation file, and a folder of images."""

    size_fix = (
        "export annotations of the image as people see it, turned by its EXIF orientation, or save it without one"
    )

    def __init__(self, cfg: CocoJsonConfig) -> None:
        self.annotations = Path(cfg.annotations).expanduser()
        root, self._folders = _places(cfg)
        super().__init__(cfg, export_classes(self.annotations, self._folders), root)
        self.export = Export(cfg.crowds)
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
        return self._store.index(image_ids)[0], faults

    def kept_index(self, split: Split) -> ClassIndex | None:
        if self._store is None:
            self._store = kept_store(self.annotations, _RULE, self._folders, self.export)
        if self._store is None:
            return None
        image_ids, faults = self.list_ids(split)
        return None if faults else self._store.kept_index(image_ids)

    def masks_of(self, split: Split, image_id: str) -> Mapping[str, tuple[int, int]]:
        return {str(self.annotations): self._opened().size(image_id)}

    def image_path(self, split: Split, image_id: str) -> Path:
        return self.root / self._opened().file_name(image_id).replace("\\", "/")

    def mask_path(self, split: Split, image_id: str) -> Path:
        return self.annotations

    def mask(self, split: Split, image_id: str, class_id: int, ignore_classes: Sequence[int] = ()) -> NDArray[np.uint8]:
        store, picture = self._opened(), self.image_path(split, image_id)
        size = store.size(image_id)
        if picture.is_file() and (found := image_size(picture, upright=True)) != size:
            raise size_error(picture, found, self.annotations, size)
        return store.mask(image_id, class_id, ignore_classes)

    def missing_images(self, split: Split) -> list[str]:
        return [image_id for image_id in self.list_ids(split)[0] if not self.image_path(split, image_id).is_file()]

    def completion(self, split: Split) -> str:
        return f"point dataset.images at the folder that the file names in {self.annotations.name} are relative to"

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
        annotations, images = Path(cfg.annotations).expanduser(), Path(cfg.images).expanduser()
        return {str(annotations): annotations.is_file(), str(images): images.is_dir()}

    @classmethod
    def check_folder(cls, cfg: CocoJsonConfig, splits: Sequence[Split] = SPLITS) -> list[UserError]:
        """As in `OwnSource`, with the two keys that say where the data are."""
        file, folder = Path(cfg.annotations).expanduser(), Path(cfg.images).expanduser()
        errors = []
        if not file.is_file():
            what = f"dataset.annotations={cfg.annotations}: there is no file {file.absolute()}"
            errors.append(UserError(what, "set dataset.annotations to the JSON file of an export in COCO's format"))
        if not folder.is_dir():
            what = f"dataset.images={cfg.images}: there is no folder {folder.absolute()}"
            errors.append(UserError(what, "set dataset.images to the folder that its file names are relative to"))
        return errors or cls.class_faults(cfg, splits)


def _places(cfg: CocoJsonConfig) -> tuple[Path, list[Path]]:
    """The folder of the images, and the folders that a store may lie in, which go by that of the annotations."""
    return Path(cfg.images).expanduser(), cache_folders(Path(cfg.annotations).expanduser().parent, cfg.cache)
