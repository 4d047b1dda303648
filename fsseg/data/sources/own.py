"""`OwnSource`, the base of a user's own data sets (`folder`, `coco_json`, the cross-domain sets): which classes are
novel, which images are trained on and which evaluated, and what is said of photographs that lie on their side.

Classes come from the disk, sorted by name, and so do images. Images are turned as their EXIF orientation says: masks
are drawn on what annotation tools show, which is turned.
"""

from __future__ import annotations

import hashlib
import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fsseg.config.checks import ALL_NOVEL
from fsseg.config.schema import OwnConfig
from fsseg.data.faults import Comparison, Fault
from fsseg.data.folds import uneven_fold
from fsseg.data.images import image_orientation, read_image
from fsseg.data.own_files import SUFFIXES
from fsseg.data.placement import below_a_cell, fitted
from fsseg.data.source import OTHER_SIZE, SPLITS, ClassIndex, Source, Split
from fsseg.errors import UserError, visible
from fsseg.process.words import count

CELL = 8
"""Pixels between two feature cells of the ResNets, at network size; of other backbones it differs."""


class OwnSource(Source):
    """A data set whose classes and images are found on the disk.

    Attributes:
        novel: names of the novel classes; empty where folds say which they are.
        lists: the file that names a split's images, if there is one.
    """

    upright = True
    size_fix = "save the mask at the size of its image, as people see it: turned by its EXIF orientation"

    def __init__(self, cfg: OwnConfig, classes: Sequence[str], root: Path) -> None:
        super().__init__(cfg, classes, root)
        self.novel = tuple(dict.fromkeys(cfg.novel))
        self.lists: dict[Split, str | None] = {"train": cfg.train_list, "val": cfg.val_list}
        self.val_share, self.split_seed = float(cfg.val_share), int(cfg.split_seed)
        self.side = int(cfg.image_size)
        self._listed: dict[Split, tuple[list[str], list[Fault]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_listed": {}}

    # ------------------------------------------------------------------------------------- what a data set has to say

    @abstractmethod
    def all_ids(self) -> list[str]:
        """Ids of all annotated images, sorted.

        Raises:
            UserError: there are none.
        """

    @abstractmethod
    def masks_of(self, split: Split, image_id: str) -> Mapping[str, tuple[int, int]]:
        """(height, width) of each mask of an image that can be read, by the file it comes from."""

    @abstractmethod
    def own_notes(self) -> Iterator[str]:
        """What `fsseg verify` should tell besides faults."""

    # ------------------------------------------------------------------------------------------------ classes, splits

    def novel_classes(self, fold: int) -> tuple[int, ...]:
        if not self.novel:
            return uneven_fold(len(self.classes), self.num_folds, fold)
        if unknown := [name for name in self.novel if name not in self.classes]:
            raise UserError(
                f"dataset.novel: there is no class {', '.join(map(visible, unknown))} in {self.root}",
                f"the classes are {some(self.classes)}",
            )
        return tuple(sorted(self.classes.index(name) for name in self.novel))

    def list_ids(self, split: Split) -> tuple[list[str], list[Fault]]:
        """Ids of a split, and the faults of its list: in the order of its list, or sorted.

        Raises:
            UserError: there is no such list, or nothing in it.
        """
        if split not in self._listed:
            self._listed[split] = self._split(split)
        return self._listed[split]

    def _split(self, split: Split) -> tuple[list[str], list[Fault]]:
        ids, other = self.all_ids(), SPLITS[1 - SPLITS.index(split)]
        if (name := self.lists[split]) is not None:
            return listed(name, f"dataset.{split}_list", ids, str(self.root))
        if self.lists[other] is not None:
            taken = set(self.list_ids(other)[0])
            return [i for i in ids if i not in taken], []
        evaluated = drawn(ids, self.val_share, self.split_seed)
        return [i for i in ids if (i in evaluated) == (split == "val")], []

    def list_origin(self, split: Split) -> str:
        if (name := self.lists[split]) is not None:
            return name
        other = SPLITS[1 - SPLITS.index(split)]
        if (name := self.lists[other]) is not None:
            return f"all images that {name} does not name"
        share = self.val_share if split == "val" else 1 - self.val_share
        return f"{share:.3g} of all images (dataset.val_share={self.val_share:g}, split_seed={self.split_seed})"

    def listed(self, split: Split) -> Sequence[str]:
        """As in `Source`; no mask is needed for it."""
        try:
            return self.list_ids(split)[0]
        except UserError:
            return ()

    # --------------------------------------------------------------------------------------------------------- images

    def image(self, split: Split, image_id: str, longer_side: int | None = None) -> NDArray[np.uint8]:
        return read_image(self.image_path(split, image_id), longer_side, upright=True)

    def mask_sizes(self, split: Split) -> dict[str, tuple[int, int]]:
        masks = {image_id: self.masks_of(split, image_id) for image_id in self.list_ids(split)[0]}
        return {image_id: next(iter(found.values())) for image_id, found in masks.items() if found}

    def size_faults(self, split: Split, found: Mapping[str, tuple[int, int]]) -> list[Fault]:
        """As in `Source`; of several masks of an image each is looked at."""
        faults = []
        for image_id, size in found.items():
            for mask, expected in self.masks_of(split, image_id).items():
                if size == expected:
                    continue
                path = self.image_path(split, image_id)
                turn = image_orientation(path)
                as_lies = " (its size before it is turned)" if turn >= 5 and expected == size[::-1] else ""
                detail = f"{size[1]}x{size[0]} pixels{f', turned by EXIF orientation {turn}' if turn > 1 else ''}, "
                detail += f"its mask in {mask} {expected[1]}x{expected[0]}{as_lies}"
                faults.append(Fault(OTHER_SIZE, str(path), detail, self.size_fix))
        return faults

    def compare(self, indexes: Mapping[Split, ClassIndex]) -> Comparison:
        """What should be known of the data beside their faults: nobody has published anything of them."""
        return Comparison(notes=[*self.own_notes(), *self._turned(indexes), *self._small(indexes)])

    def _turned(self, indexes: Mapping[Split, ClassIndex]) -> Iterator[str]:
        found = []
        for split, index in indexes.items():
            for image_id in index.image_ids:
                try:
                    if (turn := image_orientation(path := self.image_path(split, image_id))) > 1:
                        found.append(f"{path} ({turn})")
                except UserError:  # told as a fault
                    continue
        if found:
            yield (
                f"{count(len(found), 'image')} turned by EXIF orientation, as people see them: {some(found, 3)}; "
                "their masks must be of the turned pictures (look at --sheet)"
            )

    def _small(self, indexes: Mapping[Split, ClassIndex]) -> Iterator[str]:
        """Objects that no feature cell is full of."""
        found = []
        for split, index in indexes.items():
            sizes = self.mask_sizes(split)
            for position, c, pixels in zip(index.pair_image, index.pair_class, index.pair_pixels):
                image_id = index.image_ids[position]
                scaled = fitted(*sizes[image_id], self.side)
                if pixels and below_a_cell(pixels, sizes[image_id], scaled, CELL):
                    found.append(f"{image_id} ({self.classes[c]}, {count(int(pixels), 'pixel')})")
        if found:
            yield (
                f"{count(len(found), 'mask')} with less than a feature cell ({CELL}x{CELL} pixels at "
                f"dataset.image_size={self.side}): {some(found, 3)}; protocol.min_pixels leaves small objects out, a "
                "larger dataset.image_size or cut-outs make them larger"
            )

    @classmethod
    def check_folder(cls, cfg: Any, splits: Sequence[Split] = SPLITS) -> list[UserError]:
        """As in `Source`; and whether the classes are there that the settings name, some of them to train on."""
        return super().check_folder(cfg, splits) or cls.class_faults(cfg, splits)

    @classmethod
    def class_faults(cls, cfg: Any, splits: Sequence[Split]) -> list[UserError]:
        """`setting_faults`, of data that are there."""
        try:
            source: OwnSource = cls(cfg)  # type: ignore[call-arg]  # a subclass takes only this
        except UserError as error:
            return [error]
        return source.setting_faults(splits)

    def setting_faults(self, splits: Sequence[Split] = SPLITS) -> list[UserError]:
        """As in `Source`: whether the classes are there that the settings name, some of them to train on."""
        try:
            novel = self.novel_classes(0)
        except UserError as error:
            return [error]
        if "train" not in splits or not self.novel or len(novel) < len(self.classes):
            return []
        what = f"dataset.novel={list(self.novel)}: all {len(self.classes)} classes are novel, none is left to train on"
        return [UserError(what, ALL_NOVEL)]


def drawn(ids: Sequence[str], share: float, seed: int) -> set[str]:
    """The images that are evaluated: those with the smallest SHA-256 of seed and id, a share of all, rounded.

    An image that comes or goes so moves at most one other from one side to the other.
    """
    order = sorted(ids, key=lambda image_id: hashlib.sha256(f"fsseg split {seed}\n{image_id}".encode()).digest())
    return set(order[: math.floor(share * len(ids) + 0.5)])


def listed(name: str, key: str, ids: Sequence[str], origin: str) -> tuple[list[str], list[Fault]]:
    """Ids that a list names, in its order, and a fault for every other line.

    A line is the path of an image below the folder of images, with or without its ending.

    Args:
        name: the list's file.
        key: configuration key that holds it, for messages.
        ids: all there are.
        origin: where those come from, for messages.

    Raises:
        UserError: there is no such file, or nothing in it.
    """
    path, known = Path(name).expanduser(), set(ids)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        what = f"{key}={name} cannot be read: {getattr(error, 'strerror', None) or error}"
        raise UserError(what, "give a text file with one image per line") from error
    found: dict[str, None] = {}
    faults = []
    for number, line in enumerate(lines, 1):
        if not (text := line.strip().replace("\\", "/")):
            continue
        forms = text, without_suffix(text), without_suffix(text).removeprefix("images/")
        if (image_id := next((i for i in forms if i in known), None)) is None:
            what, fix = f"line {number}, {text}: no annotated image of {origin}", "take these lines off the list"
            faults.append(Fault("listed images that are not there, or have no mask", name, what, fix))
        elif image_id in found:
            what = f"line {number} names {image_id} again"
            faults.append(Fault("duplicate ids", name, what, "name each image once"))
        else:
            found[image_id] = None
    if not found and not faults:
        raise UserError(f"{key}: {name} names no image", "give a list with one image per line")
    return list(found), faults


def without_suffix(name: str) -> str:
    """A path without the ending of an image file; any other name as it is."""
    stem, dot, ending = name.rpartition(".")
    return stem if f"{dot}{ending}".lower() in SUFFIXES else name


def same_names(names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of names that differ by nothing, or by case and blanks alone."""
    first: dict[str, str] = {}
    pairs = []
    for name in names:
        key = " ".join(name.split()).casefold()
        if key in first:
            pairs.append((first[key], name))
        else:
            first[key] = name
    return pairs


def some(names: Sequence[str], shown: int = 20) -> str:
    """The first names of many, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(map(visible, names[:shown])) + more
