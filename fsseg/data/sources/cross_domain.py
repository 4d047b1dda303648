"""The data sets of cross-domain few-shot segmentation, in the layouts that the published codes read: `dataset=fss1000`,
`isic`, `deepglobe`, `chest_xray`, `suim`. Users bring the files; what was published of them, `verify` counts.

All but FSS-1000 are for evaluation alone: every class is novel, every image evaluated. Where the layout comes from:
FSS-1000 (Li et al., CVPR 2020; the split in HSNet), PATNet (Lei et al., ECCV 2022) for ISIC, Deepglobe and Chest X-ray,
ABCDFSS (Herzog, CVPR 2024) for SUIM with its two parts merged. A mask is white on the object; grey is cut at 128, as
these codes do.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fsseg.config.schema import Fss1000Config, OwnConfig
from fsseg.data.faults import Comparison, Fault
from fsseg.data.own_files import SUFFIXES
from fsseg.data.source import SPLITS, ClassIndex, Split
from fsseg.data.sources.folder import FolderSource
from fsseg.data.sources.folder_masks import ClassMasks, files_below
from fsseg.data.sources.mask_scan import MaskFile
from fsseg.data.sources.own import some
from fsseg.errors import UserError

JPEG = (".jpg", ".jpeg")
MASKS = (".png", ".bmp")

Found = tuple[dict[str, dict[str, MaskFile]], dict[str, Path]]
"""Mask files by class and image id, and image files by id."""


@dataclass(frozen=True)
class CrossDomain:
    """One of these data sets.

    Attributes:
        needs: folders below the root; none where classes are the folders.
        find: looks at the names of its files.
        images, classes, pairs: how many were published, None for what nobody states.
        source: who states it.
        disputed: what groups do not agree on, or could not be confirmed.
    """

    needs: tuple[str, ...]
    find: Callable[[Path], Found]
    images: int
    classes: int
    pairs: int | None
    source: str
    disputed: str


def _fss1000(root: Path) -> Found:
    """`<class>/<n>.jpg` and `<class>/<n>.png`."""
    masks = _by_folder(root, (".png",))
    return masks, {i: path for name in masks for i, path in _paths(root / name, JPEG, f"{name}/").items()}


_ISIC = "ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth"


def _isic(root: Path) -> Found:
    """Images in a folder for each of the three classes, or all in one, with PATNet's `class_id.csv` (ID, Class)."""
    of_class = _class_ids(root / "class_id.csv")
    images = {}
    for name, path in _paths(root / _ISIC[0], JPEG).items():
        label = name.rpartition("/")[0] or of_class.get(name, "")
        if label:
            images[f"{label}/{path.stem}"] = path
    truth = files_below(root / _ISIC[1], (".png",))
    masks: dict[str, dict[str, MaskFile]] = {}
    for image_id, path in images.items():
        if (file := truth.get(f"{path.stem}_segmentation")) is not None:
            masks.setdefault(image_id.rpartition("/")[0], {})[image_id] = file
    return masks, images


def _class_ids(path: Path) -> dict[str, str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return {row["ID"]: row["Class"] for row in csv.DictReader(file)}
    except FileNotFoundError:
        return {}
    except (OSError, KeyError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{path} cannot be read: {error}", "restore PATNet's file, with the columns ID, Class"
        ) from None


def _deepglobe(root: Path) -> Found:
    """`<class>/test/origin/<patch>.jpg` and `<class>/test/groundtruth/<patch>.png`."""
    masks: dict[str, dict[str, MaskFile]] = {}
    images: dict[str, Path] = {}
    for folder in _folders(root):
        found = files_below(folder / "test" / "groundtruth", (".png",))
        if found:
            masks[folder.name] = {f"{folder.name}/{name}": file for name, file in found.items()}
            images |= _paths(folder / "test" / "origin", JPEG, f"{folder.name}/")
    return masks, images


def _chest_xray(root: Path) -> Found:
    """`CXR_png/<id>.png` and `masks/<id>_mask.png`; masks without that ending are of another hospital's images."""
    files, ending = files_below(root / "masks", (".png",)), "_mask"
    masks = {name.removesuffix(ending): file for name, file in files.items() if name.endswith(ending)}
    return ({"lung": masks} if masks else {}), _paths(root / "CXR_png", (".png",))


def _suim(root: Path) -> Found:
    """`images/<id>.jpg` and `masks/<class>/<id>.bmp`, TEST and train_val in one folder."""
    return _by_folder(root / "masks", MASKS, nested=False), _paths(root / "images", JPEG)


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.glob("*") if path.is_dir() and not path.name.startswith("."))


def _by_folder(root: Path, suffixes: Sequence[str], nested: bool = True) -> dict[str, dict[str, MaskFile]]:
    """The masks of each folder that has some; with `nested`, the folder's name is part of the image id."""
    found = {path.name: files_below(path, suffixes) for path in _folders(root)}
    return {
        name: {f"{name}/{i}" if nested else i: file for i, file in files.items()}
        for name, files in found.items()
        if files
    }


def _paths(folder: Path, suffixes: Sequence[str] = SUFFIXES, prefix: str = "") -> dict[str, Path]:
    return {f"{prefix}{name}": Path(file.path) for name, file in files_below(folder, suffixes).items()}


SETS = {
    "fss1000": CrossDomain(
        (), _fss1000, 10_000, 1000, 10_000, "Li et al., CVPR 2020: ten images of each class",
        "the authors fix the 240 test classes alone (fss_test_set.txt); 520 and 240 of the others are trained and "
        "validated on, as each group draws them (HSNet's draw is the one in use); of one published code users report "
        "that it tests on the validation classes",
    ),
    "isic": CrossDomain(
        _ISIC, _isic, 2594, 3, 2594, "ISIC 2018, Task 1, training part",
        "the challenge has no classes: the three are those of PATNet's class_id.csv, and some codes average over "
        "images instead of classes",
    ),
    "deepglobe": CrossDomain(
        (), _deepglobe, 5666, 6, None, "Lei et al., ECCV 2022: patches of 408 x 408",
        "the paper's 5666 patches cannot be made anew: users of its script count 9174 or 9175, and the authors' later "
        "upload has another number; results on different copies are not comparable",
    ),
    "chest_xray": CrossDomain(
        ("CXR_png", "masks"), _chest_xray, 566, 1, 566, "the masks of the Shenzhen set, <id>_mask.png",
        "the usual archive also holds images without a mask, and masks of the Montgomery set (<id>.png), which are "
        "left out here: PATNet's loader cannot read them",
    ),
    "suim": CrossDomain(
        ("images", "masks"), _suim, 1635, 7, 3859, "Islam et al., IROS 2020: 1525 and 110 images; pairs as in ABCDFSS",
        "some evaluate the 110 images of TEST alone, which is easier",
    ),
}  # fmt: skip
"""By `dataset.name`."""


class CrossDomainSource(FolderSource):
    """One of `SETS`."""

    def __init__(self, cfg: OwnConfig) -> None:
        self.known = SETS[cfg.name]
        root = Path(cfg.root).expanduser()
        by_class, images = self.known.find(root)
        if not by_class:
            raise UserError(
                f"dataset.root={cfg.root}: no masks of {cfg.name} in {root.absolute()}", _layout_advice(cfg)
            )
        self._images = images
        super().__init__(cfg, ClassMasks(by_class, str(root), grey=True))

    @cached_property
    def image_files(self) -> dict[str, Path]:
        return self._images

    def image_path(self, split: Split, image_id: str) -> Path:
        return self._images.get(image_id) or self.root / f"{image_id}.jpg"

    def _twins(self, image_ids: Sequence[str]) -> list[Fault]:
        return []  # ids come from one folder of one ending

    def _strays(self) -> list[Fault]:
        return []  # what lies beside them is none of the data set's business

    def compare(self, indexes: Mapping[Split, ClassIndex]) -> Comparison:
        """Numbers of the files that are there with the published ones; an empty mask is no pair."""
        notes = [*self.own_notes(), f"not agreed on: {self.known.disputed}"]
        result = Comparison(self.known.source, notes=notes)
        result.add("all", "classes", self.known.classes, len(self.classes))
        result.add("all", "images with a mask", self.known.images, len(self.all_ids()))
        self.compare_split(result, indexes)
        if result.differences:
            result.causes.append("another copy of the data, or not all of it; " + self.known.disputed)
        return result

    def compare_split(self, result: Comparison, indexes: Mapping[Split, ClassIndex]) -> None:
        """The (image, class) pairs, where both splits are all images."""
        if self.known.pairs is not None and set(indexes) == set(SPLITS):
            pairs = sum(int((index.pair_pixels > 0).sum()) for index in indexes.values())
            result.add("all", "(image, class) pairs", self.known.pairs, pairs)

    @classmethod
    def layout(cls, cfg: Any, splits: Sequence[Split] = SPLITS) -> dict[str, bool]:
        root = Path(cfg.root).expanduser()
        return {name: (root / name).is_dir() for name in SETS[cfg.name].needs} or {"folders of classes": root.is_dir()}


class Fss1000Source(CrossDomainSource):
    """FSS-1000: the novel classes are those of the authors' list; images of validation classes are not used."""

    def __init__(self, cfg: Fss1000Config) -> None:
        super().__init__(cfg)
        self.held_out = self._listed_classes(cfg.val_classes, "dataset.val_classes") if cfg.val_classes else ()
        self.novel = self.novel or self._listed_classes(cfg.test_classes, "dataset.test_classes")

    def _listed_classes(self, name: str, key: str) -> tuple[str, ...]:
        """Names of a list that have a folder; apostrophes do not count, which some copies lack.

        Raises:
            UserError: there is no such list, or a class of it has no folder.
        """
        given = Path(name).expanduser()
        path = given if given.is_absolute() or given.is_file() else self.root / given
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            what = f"{key}={name}: {path} cannot be read: {getattr(error, 'strerror', None) or error}"
            raise UserError(
                what, "fss_test_set.txt lies in the authors' repository, HKUSTCV/FSS-1000; one class a line"
            ) from None
        folders = {folder.replace("'", ""): folder for folder in self.classes}
        if lacking := [line for line in lines if line.replace("'", "") not in folders]:
            what = f"{key}={name}: {len(lacking)} of its {len(lines)} classes have no folder in {self.root}: "
            raise UserError(
                what + some(lacking, 5), "complete the data, or give the list of the classes that are there"
            )
        return tuple(dict.fromkeys(folders[line.replace("'", "")] for line in lines))

    def _split(self, split: Split) -> tuple[list[str], list[Fault]]:
        if self.lists["train"] or self.lists["val"]:
            return super()._split(split)
        novel, unused = set(self.novel), set(self.held_out) - set(self.novel)
        of_class = {i: i.partition("/")[0] for i in self.all_ids()}
        return [i for i, c in of_class.items() if (c in novel) == (split == "val") and c not in unused], []

    def list_origin(self, split: Split) -> str:
        if self.lists["train"] or self.lists["val"]:
            return super().list_origin(split)
        return f"all images of the {len(self.novel)} test classes" if split == "val" else "all images of the others"

    def compare_split(self, result: Comparison, indexes: Mapping[Split, ClassIndex]) -> None:
        result.add("test", "classes", 240, len(self.novel))
        if self.held_out:
            result.add("validation", "classes", 240, len(self.held_out))
            result.add("training", "classes", 520, len(set(self.classes) - set(self.novel) - set(self.held_out)))

    def own_notes(self) -> Iterator[str]:
        yield from super().own_notes()
        if not self.held_out:
            yield "no dataset.val_classes: the 240 validation classes are trained on as well"


def _layout_advice(cfg: OwnConfig) -> str:
    folders = {
        "fss1000": "<class>/<n>.jpg with <class>/<n>.png",
        "isic": f"{_ISIC[0]}/<class>/<id>.jpg (or class_id.csv) with {_ISIC[1]}/<id>_segmentation.png",
        "deepglobe": "<class>/test/origin/<patch>.jpg with <class>/test/groundtruth/<patch>.png",
        "chest_xray": "CXR_png/<id>.png with masks/<id>_mask.png",
        "suim": "images/<id>.jpg with masks/<class>/<id>.bmp",
    }
    return f"lay the files out as {folders[cfg.name]}"
