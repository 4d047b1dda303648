"""`FolderSource`, `dataset=folder`: photographs and masks of the user's own.

Layout below `root`: `images/<name>.jpg` (PNG, TIFF), and either `masks/<class>/<name>.png`, white on the object, or
`masks/<name>.png` with class numbers and `classes.txt` (see `folder_masks`). Images may lie in sub-folders, masks then
in the same ones. An image id is the path below `images/` without its ending. Images without a mask are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fsseg.config.schema import OwnConfig
from fsseg.data.arrays import cache_folders
from fsseg.data.faults import Fault
from fsseg.data.images import image_size, size_error
from fsseg.data.own_files import MASKS, SUFFIXES, other_kinds
from fsseg.data.source import SPLITS, ClassIndex, Split
from fsseg.data.sources.folder_masks import Counts, MaskForm, all_files, files_below, open_masks, twins
from fsseg.data.sources.own import OwnSource, some
from fsseg.process.words import count

IMAGES = "images"


class FolderSource(OwnSource):
    """A folder of images and masks.

    Args:
        form: the masks, where a data set's layout is another one.
    """

    def __init__(self, cfg: OwnConfig, form: MaskForm | None = None) -> None:
        root = Path(cfg.root).expanduser()
        self.form = form or open_masks(root)
        super().__init__(cfg, self.form.classes, root)
        self.mask_rule = self.form.rule
        self._counts: Counts = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_counts": {}}

    @cached_property
    def image_files(self) -> dict[str, Path]:
        """All image files by id, whether they have a mask or not."""
        return {image_id: Path(file.path) for image_id, file in files_below(self.root / IMAGES, SUFFIXES).items()}

    def all_ids(self) -> list[str]:
        return self.form.image_ids()

    def scan(self, split: Split) -> tuple[ClassIndex | None, list[Fault]]:
        image_ids, faults = self.list_ids(split)
        counts, unread = self.form.count(image_ids, cache_folders(self.root, self.cache))
        self._counts |= counts
        index, found = self.form.index(image_ids, counts)
        return index, [*faults, *unread, *found, *self._twins(image_ids), *self._strays()]

    def kept_index(self, split: Split) -> ClassIndex | None:
        image_ids, faults = self.list_ids(split)
        counts = self.form.kept(image_ids, cache_folders(self.root, self.cache))
        if faults or counts is None:
            return None
        index, found = self.form.index(image_ids, counts)
        return None if found else index

    def masks_of(self, split: Split, image_id: str) -> Mapping[str, tuple[int, int]]:
        if not self._counts:
            self._counts = self.form.count(self.all_ids(), cache_folders(self.root, self.cache))[0]
        found = {self.form.files[n].path: self._counts.get(n) for n in self.form.of_image(image_id)}
        return {path: (count.height, count.width) for path, count in found.items() if count is not None}

    def image_path(self, split: Split, image_id: str) -> Path:
        return self.image_files.get(image_id) or self.root / IMAGES / f"{image_id}.jpg"

    def mask_path(self, split: Split, image_id: str) -> Path:
        names = self.form.of_image(image_id)
        return Path(self.form.files[names[0]].path) if names else self.root / MASKS / f"{image_id}.png"

    def mask_paths(self, split: Split, image_id: str) -> Sequence[Path]:
        return [Path(self.form.files[name].path) for name in self.form.of_image(image_id)]

    def mask(self, split: Split, image_id: str, class_id: int, ignore_classes: Sequence[int] = ()) -> NDArray[np.uint8]:
        picture = self.image_path(split, image_id)
        size = image_size(picture, upright=True) if picture.is_file() else None
        found, path = self.form.mask(image_id, class_id, ignore_classes, size)
        if size is not None and path is not None and found.shape != size:
            raise size_error(picture, size, path, found.shape)
        return found

    def missing_images(self, split: Split) -> list[str]:
        return [image_id for image_id in self.list_ids(split)[0] if image_id not in self.image_files]

    def completion(self, split: Split) -> str:
        return "add these images, or delete their masks: an image and its mask have one name"

    def _twins(self, image_ids: Sequence[str]) -> list[Fault]:
        """Two images of one name: nobody knows which of them a mask is of."""
        used, fix = set(image_ids), "keep one of the two, or give them two names"
        pairs = [pair for pair in twins(self.root / IMAGES, SUFFIXES) if self._id_of(pair[0]) in used]
        return [Fault("images of one name", one, f"and {other}", fix) for one, other in pairs]

    def _strays(self) -> list[Fault]:
        """Files beside the masks that are meant as masks, and cannot be read as such."""
        others = files_below(self.root / MASKS, [suffix for suffix in SUFFIXES if suffix != ".png"])
        fix = "save them as PNG: JPEG changes their values"
        return [Fault("masks that are no PNG", file.path, "", fix) for file in others.values()]

    def _id_of(self, path: str) -> str:
        return Path(path).relative_to(self.root / IMAGES).with_suffix("").as_posix()

    def own_notes(self) -> Iterator[str]:
        yield f"classes ({len(self.classes)}): {some(self.classes)}"
        if unmarked := sorted(self.image_files.keys() - set(self.all_ids())):
            number = f"{len(unmarked)} of {count(len(self.image_files), 'image')}"
            yield f"{number} without a mask, left out: {some(unmarked, 3)}"
        if others := other_kinds(all_files(self.root / IMAGES)):
            yield f"{self.root / IMAGES}: {others}; convert images to JPEG or PNG"

    @classmethod
    def layout(cls, cfg: Any, splits: Sequence[Split] = SPLITS) -> dict[str, bool]:
        return {name: Path(cfg.root).expanduser().joinpath(name).is_dir() for name in (IMAGES, MASKS)}
