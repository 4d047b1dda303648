"""`VocSource`, any data set in VOC2012's layout, and `PascalSource`, PASCAL-5i: VOC2012 with SBD's extra masks.

Layout below `root`: `JPEGImages/<id>.jpg`, `ImageSets/Segmentation/<list>.txt` and masks in any of three places, looked
at in this order for each image: `SegmentationClass/<id>.png` (VOC's own, with 255 on the boundary),
`SegmentationClassAug/<id>.png` (the ready-made union of VOC and SBD), SBD's `cls/<id>.mat`. The order matters only for
images that both VOC and SBD segmented, where VOC's mask is the one of the benchmark. `run`, `shapes` and the `fsseg`
command are the callers.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fsseg.config.schema import DatasetConfig, PascalConfig
from fsseg.data.arrays import cache_folders
from fsseg.data.faults import Fault, faults_error
from fsseg.data.folds import VOC_CLASSES, fold_classes
from fsseg.data.images import image_size, read_image, read_labels, size_error
from fsseg.data.source import IGNORE_INDEX, ClassIndex, Split
from fsseg.data.sources.mask_scan import MaskCount, MaskFile, build_index, list_files, scan_masks
from fsseg.data.sources.voc_lists import derive_train_list, find_sbd, read_list
from fsseg.errors import UserError

log = logging.getLogger(__name__)

IMAGES, LISTS = "JPEGImages", "ImageSets/Segmentation"
MASKS, MASKS_AUG = "SegmentationClass", "SegmentationClassAug"


class VocSource:
    """A data set in VOC2012's layout; folds are consecutive blocks of classes. Implements `source.Source`.

    Args:
        name: of the data set, e.g. "pascal5i".
        root: folder with JPEGImages, ImageSets/Segmentation and the mask folders.
        classes: class names; mask value v stands for class_id v - 1.
        train_list: a name under ImageSets/Segmentation or a file; None derives VOC's train_aug (see `voc_lists`).
        val_list: likewise, for the evaluation images.
        num_folds: equal parts the classes are cut into.
        sbd_root: folder of the SBD release; None looks in the usual places below and beside `root`.
        cache: folder for the scan of the masks; None keeps it beside the data (see `store.cache_folders`).
    """

    def __init__(
        self,
        *,
        name: str,
        root: str | Path,
        classes: Sequence[str],
        train_list: str | None,
        val_list: str,
        num_folds: int = 4,
        sbd_root: str | Path | None = None,
        cache: str | Path | None = None,
    ) -> None:
        self.name = name
        self.root = Path(root).expanduser()
        self.classes = tuple(classes)
        self.num_folds = num_folds
        self.train_list = train_list
        self.val_list = val_list
        self.sbd_root = Path(sbd_root).expanduser() if sbd_root is not None else None
        self.cache = cache
        self._indexes: dict[Split, ClassIndex] = {}
        self._counts: dict[Split, dict[str, MaskCount]] = {}
        self._sbd: Path | bool | None = False  # False: not looked for yet

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_indexes": {}, "_counts": {}, "_sbd": False}

    def novel_classes(self, fold: int) -> tuple[int, ...]:
        """class_ids held out in `fold`.

        Raises:
            UserError: there is no such fold.
        """
        return fold_classes(len(self.classes), self.num_folds, fold)

    def index(self, split: Split) -> ClassIndex:
        """The index of a split, from the masks alone: images may be absent (see `missing_images`).

        Raises:
            UserError: lists or masks are missing or faulty, everything in one go.
        """
        if split not in self._indexes:
            index, faults = self.scan(split)
            if faults:
                raise faults_error(faults)
            self._indexes[split] = index
        return self._indexes[split]

    def scan(self, split: Split) -> tuple[ClassIndex, list[Fault]]:
        """The index of those images of a split whose masks are sound, and everything wrong with its list and masks.

        Raises:
            UserError: the list itself cannot be had.
        """
        image_ids, faults = self.list_ids(split)
        counts, unread = self._count_masks(image_ids)
        faults = faults + unread
        index, unknown = build_index([i for i in image_ids if i in counts], counts, len(self.classes))
        last = len(self.classes)
        for image_id, values in unknown.items():
            detail = f"holds {', '.join(map(str, values))}; classes are 1 to {last}, 0 is background, 255 ignore"
            faults.append(
                Fault(
                    "unknown class numbers in masks",
                    str(self.mask_path(split, image_id)),
                    detail,
                    "restore these masks",
                )
            )
        self._counts[split] = counts
        return index, faults

    def mask_counts(self, split: Split) -> dict[str, MaskCount]:
        """Size and values of every readable mask of a split, by image id.

        Raises:
            UserError: the list itself cannot be had.
        """
        if split not in self._counts:
            self.scan(split)
        return self._counts[split]

    def list_ids(self, split: Split) -> tuple[list[str], list[Fault]]:
        """Image ids of a split in list order, each once, and a fault for every id the list names again.

        Raises:
            UserError: no such list, or nothing to derive it from.
        """
        lists = self.root / LISTS
        if split == "val":
            return read_list(self.val_list, lists, "dataset.val_list")
        if self.train_list is not None:
            return read_list(self.train_list, lists, "dataset.train_list")
        image_ids, origin = derive_train_list(self.root, self.sbd, self.root / MASKS_AUG, self.val_list)
        log.info("%s: training list of %d images derived from %s", self.name, len(image_ids), origin)
        return image_ids, []

    @property
    def mask_rule(self) -> str:
        return "pixels of the class in the segmentation mask; 255 (object boundaries) is ignored"

    def list_origin(self, split: Split) -> str:
        """One line for the record: which list the split's images come from."""
        if split == "val":
            return self.val_list
        if self.train_list is not None:
            return self.train_list
        return derive_train_list(self.root, self.sbd, self.root / MASKS_AUG, self.val_list)[1]

    @property
    def sbd(self) -> Path | None:
        """Folder that holds SBD's `cls`, if there is one.

        Raises:
            UserError: `sbd_root` is given but holds none.
        """
        if isinstance(self._sbd, bool):
            self._sbd = find_sbd(self.root, self.sbd_root)
        return self._sbd

    def _count_masks(self, image_ids: list[str]) -> tuple[dict[str, MaskCount], list[Fault]]:
        folders = cache_folders(self.root, self.cache)
        left, counts, faults = list(image_ids), {}, []
        for label, files in self._mask_files():
            here = [i for i in left if i in files]
            if here:
                found, unread = scan_masks(label, files, here, folders)
                counts.update(found)
                faults += unread
                left = [i for i in left if i not in files]
        for image_id in left:
            places = f"no {image_id}.png in {MASKS} or {MASKS_AUG}, no {image_id}.mat in SBD's cls"
            fix = "complete the masks (`fsseg prepare` gets VOC2012 and SBD), or take the names off the list"
            faults.append(Fault("missing masks", str(self.root / MASKS / f"{image_id}.png"), places, fix))
        return counts, faults

    def _mask_files(self) -> list[tuple[str, dict[str, MaskFile]]]:
        """(label, files by image id) of the mask folders, the preferred one first."""
        found = [(folder, list_files(self.root / folder, ".png")) for folder in (MASKS, MASKS_AUG)]
        if self.sbd is not None:
            found.append(("cls", list_files(self.sbd / "cls", ".mat")))
        return [(label, files) for label, files in found if files]

    def mask_sizes(self, split: Split) -> dict[str, tuple[int, int]]:
        """(height, width) of every readable mask of a split, by image id."""
        return {image_id: (count.height, count.width) for image_id, count in self.mask_counts(split).items()}

    def mask_path(self, split: Split, image_id: str) -> Path:
        """Where the mask of an image lies, or should."""
        places = [self.root / folder / f"{image_id}.png" for folder in (MASKS, MASKS_AUG)]
        if self.sbd is not None:
            places.append(self.sbd / "cls" / f"{image_id}.mat")
        return next((path for path in places if path.is_file()), places[0])

    def image_path(self, split: Split, image_id: str) -> Path:
        """Where the image lies."""
        return self.root / IMAGES / f"{image_id}.jpg"

    def image(self, split: Split, image_id: str, longer_side: int | None = None) -> NDArray[np.uint8]:
        """The image as RGB, (H, W, 3) uint8; see `source.Source.image`.

        Raises:
            UserError: naming the file, if it is missing or cannot be decoded.
        """
        return read_image(self.image_path(split, image_id), longer_side)

    def labels(self, image_id: str) -> NDArray[np.uint8]:
        """The whole label mask, (H, W) uint8: 0 background, class_id + 1, 255 ignore.

        Raises:
            UserError: naming the file, if it is missing or cannot be decoded.
        """
        return read_labels(self.mask_path("train", image_id))

    def mask(self, split: Split, image_id: str, class_id: int, ignore_classes: Sequence[int] = ()) -> NDArray[np.uint8]:
        """The class as a binary mask at original size, (H, W) uint8 in {0, 1, 255}; see `source.Source.mask`.

        Raises:
            UserError: naming the file, if it is missing, cannot be decoded, or its size differs from the image's.
        """
        path = self.mask_path(split, image_id)
        labels = read_labels(path)
        picture = self.image_path(split, image_id)
        if picture.is_file() and (size := image_size(picture)) != labels.shape:
            raise size_error(picture, size, path, labels.shape)
        lookup = np.zeros(256, dtype=np.uint8)
        lookup[class_id + 1] = 1
        for other in (*(c + 1 for c in ignore_classes if c != class_id), IGNORE_INDEX):
            lookup[other] = IGNORE_INDEX
        return np.take(lookup, labels)  # three times as fast as lookup[labels]

    def background_family(self, split: Split, image_id: str) -> int | None:
        """None: photographs have no such notion."""
        return None

    def missing_images(self, split: Split) -> list[str]:
        """Ids of the split's list without an image in JPEGImages."""
        present = list_files(self.root / IMAGES, ".jpg")
        return [image_id for image_id in self.list_ids(split)[0] if image_id not in present]

    def check(self, splits: Sequence[Split] = ("train", "val")) -> None:
        """Before a run: index the splits and see that their images are there.

        Raises:
            UserError: with everything that is missing or faulty, in one go.
        """
        faults: list[Fault] = []
        for split in splits:
            index, found = self.scan(split)
            if not found:
                self._indexes[split] = index
            fix = f"complete {self.root / IMAGES}, or name a list of the images you have: dataset.{split}_list=..."
            missing = (str(self.image_path(split, i)) for i in self.missing_images(split))
            faults += found + [Fault(f"missing images of the {split} list", path, "", fix) for path in missing]
        if faults:
            raise faults_error(faults)

    @classmethod
    def check_folder(cls, cfg: DatasetConfig, splits: Sequence[Split] = ("train", "val")) -> list[UserError]:
        """What the folder lacks, by a look at the directory alone; nothing is scanned. All splits share its folders."""
        root = Path(cfg.root).expanduser()
        command = f"fsseg prepare dataset={cfg.name} dataset.root={cfg.root} --download"
        expected = f"{IMAGES}, {LISTS} and {MASKS} (or {MASKS_AUG})"
        if not root.is_dir():
            what = f"dataset.root={cfg.root}: there is no folder {root.absolute()}; expected there: {expected}"
            return [UserError(what, f"point dataset.root at the data, or run `{command}`")]
        found = sorted(path.name for path in root.iterdir() if not path.name.startswith("."))
        lacking = [name for name in (IMAGES, LISTS) if not (root / name).is_dir()]
        sbd = getattr(cfg, "sbd_root", None)
        if (
            not any((root / name).is_dir() for name in (MASKS, MASKS_AUG))
            and sbd is None
            and find_sbd(root, None) is None
        ):
            lacking.append(f"{MASKS} (or {MASKS_AUG}, or SBD's cls)")
        if not lacking:
            return []
        holds = f"it holds {', '.join(found[:8])}{', ...' if len(found) > 8 else ''}" if found else "it is empty"
        what = f"dataset.root={cfg.root}: {root.absolute()} lacks {' and '.join(lacking)}; {holds}"
        return [UserError(what, f"point dataset.root at the folder with {expected}, or run `{command}`")]


class PascalSource(VocSource):
    """PASCAL-5i as `conf/dataset/pascal5i.yaml` describes it."""

    def __init__(self, cfg: PascalConfig) -> None:
        super().__init__(
            name=cfg.name,
            root=cfg.root,
            classes=VOC_CLASSES,
            train_list=cfg.train_list,
            val_list=cfg.val_list,
            num_folds=cfg.num_folds,
            sbd_root=cfg.sbd_root,
            cache=cfg.cache,
        )
