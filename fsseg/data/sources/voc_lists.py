"""Image lists of VOC2012 and SBD: reads the published forms, and derives the training pools.

`voc_layout` and `voc` are the callers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fsseg.cell.key import list_file
from fsseg.data.faults import Fault
from fsseg.data.sources.mask_scan import list_files
from fsseg.errors import UserError

TRAIN_AUG, MERGED = "train_aug_10582", "merged_5953"
"""The training pools that are derived: `protocol.train_pool`, `dataset.train_list`."""
TRAIN_NOVAL = "train_noval.txt"
"""SBD's train without VOC's val, 5623 images: not in SBD's archive, but beside it on its authors' page."""
TRAIN_NOVAL_URL = "https://www.cs.cornell.edu/~bharathh/train_noval.txt"
TRAIN_NOVAL_MD5 = "79bff800c5f0b1ec6b21080a3c066722"  # address and digest as torchvision's SBDataset has them

_SBD_PLACES = ("SBD", "sbd", "benchmark_RELEASE", "dataset")
_PAIR = re.compile(r"(.+)__\d{2}")  # HSNet's lists name (image, class) pairs: 2007_000032__01


def list_path(name: str, lists: Path) -> Path | None:
    """The file of a list: a path, or a name under `lists`; None if there is neither.

    A name without a folder never means a file of the current folder: a cell is known by the name of a list, but by the
    content of a file (`fsseg.cell.key.list_file`).
    """
    candidates = (list_file(name), lists / f"{name}.txt", lists / name)
    return next((path for path in candidates if path is not None and path.is_file()), None)


def find_list(name: str, lists: Path, key: str) -> Path:
    """The file of a list that a configuration names; looks at names only.

    Args:
        name: see `list_path`.
        lists: the ImageSets/Segmentation folder.
        key: configuration key that holds the name, for messages.

    Raises:
        UserError: there is none.
    """
    if (path := list_path(name, lists)) is not None:
        return path
    there = ", ".join(sorted(p.stem for p in lists.glob("*.txt"))) or "none"
    fix = f"set {key} to one of those names or to a file"
    if os.sep not in name and Path(name).is_file():
        fix += f"; a file of the current folder is written {key}=.{os.sep}{name}"
    raise UserError(f"{key}={name}: neither a list {lists / f'{name}.txt'} nor a file; lists there: {there}", fix)


def read_list(path: Path, key: str) -> tuple[list[str], list[Fault]]:
    """Image ids of a list in its order, each once, and a fault for every id named twice.

    A line is an id, the published `JPEGImages/x.jpg SegmentationClassAug/x.png`, or HSNet's `x__01`, where an image may
    come up once per class.

    Args:
        path: see `find_list`.
        key: what names the list, for messages: "dataset.val_list=val".

    Raises:
        UserError: it cannot be read, or there is nothing in it.
    """
    ids: dict[str, None] = {}
    faults = []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{key}: {path} cannot be read: {error}", "give a text file with one image per line") from error
    for number, line in enumerate(lines, 1):
        if not (words := line.split()):
            continue
        image_id = re.sub(r"\.(jpe?g|png|mat)$", "", words[0].rsplit("/", 1)[-1], flags=re.IGNORECASE)
        if pair := _PAIR.fullmatch(image_id):
            ids[pair[1]] = None
        elif image_id in ids:
            faults.append(
                Fault("duplicate ids", str(path), f"line {number} names {image_id} again", "name each image once")
            )
        else:
            ids[image_id] = None
    if not ids:
        raise UserError(f"{key}: {path} names no image", "give a list with one image per line")
    return list(ids), faults


def find_sbd(root: Path, given: Path | None) -> Path | None:
    """The folder that holds SBD's `cls`: at or below `given`, or in the usual places below and beside `root`.

    Raises:
        UserError: `given` holds none.
    """
    bases = (
        [given]
        if given is not None
        else [root, *(base / place for base in (root, root.parent, root.parent.parent) for place in _SBD_PLACES)]
    )
    for base in bases:
        for folder in (base, base / "dataset", base / "benchmark_RELEASE" / "dataset"):
            if (folder / "cls").is_dir():
                return folder
    if given is not None:
        raise UserError(
            f"dataset.sbd_root={given}: no cls folder with SBD's .mat files at or below it",
            "point dataset.sbd_root at benchmark_RELEASE/dataset, or leave it out",
        )
    return None


@dataclass(frozen=True)
class Derivation:
    """How a training pool comes about from the official files; VOC's val is then taken out.

    Attributes:
        lists: whose images are put together, each once.
        masks: folder whose masks name the images instead; None where `lists` do.
        origin: the same in words, for the record.
    """

    lists: tuple[Path, ...]
    masks: Path | None
    origin: str

    def image_ids(self, val: Iterable[Path]) -> list[str]:
        """The images, sorted, without those of the lists `val`.

        Raises:
            UserError: a list cannot be read.
        """
        pool = set(list_files(self.masks, ".png")) if self.masks is not None else _ids(self.lists)
        return sorted(pool - _ids(val))


def derivation(pool: str, lists: Path, sbd: Path | None, aug: Path, prepare: str) -> Derivation:
    """How a pool can be derived from what is there; looks at names only.

    `TRAIN_AUG` (10582 images): SBD's train and val plus VOC's train, where SBD's lists are there; else a list
    `train_aug` or `trainaug`; else every mask of SegmentationClassAug. All three name the same images on complete data.
    `MERGED` (5953 images): SBD's train_noval plus VOC's train, or a list of the pool's own name.

    Args:
        lists: the ImageSets/Segmentation folder.
        sbd: the folder that holds SBD's `cls`, if there is one.
        aug: the SegmentationClassAug folder.
        prepare: the command that fetches what is missing.

    Raises:
        UserError: nothing is there that it can be derived from.
    """
    voc_train = lists / "train.txt"
    if pool == MERGED:
        if (ready := lists / f"{MERGED}.txt").is_file():
            return Derivation((ready,), None, f"the list {MERGED}, minus val")
        places = [folder / TRAIN_NOVAL for folder in (sbd, lists) if folder is not None]
        found = next((path for path in places if path.is_file()), None)
        if found is not None and voc_train.is_file():
            return Derivation((found, voc_train), None, f"SBD train_noval ({found}) plus VOC train, minus val")
        raise _no_merged(found is None, places, voc_train, prepare)
    official = (sbd / "train.txt", sbd / "val.txt", voc_train) if sbd is not None else ()
    if official and all(path.is_file() for path in official):
        return Derivation(official, None, f"SBD train and val ({sbd}) plus VOC train, minus val")
    for name in ("train_aug", "trainaug"):
        if (path := list_path(name, lists)) is not None:
            return Derivation((path,), None, f"the list {name}, minus val")
    if aug.is_dir() and any(name.endswith(".png") for name in os.listdir(aug)):
        return Derivation((), aug, f"all masks of {aug}, minus val")
    raise UserError(
        f"training pool {TRAIN_AUG}: {lists.parent.parent} has nothing to derive train_aug from: SBD's train.txt and "
        f"val.txt beside cls with VOC's train.txt, a list train_aug under {lists}, or {aug}",
        f"add SBD (`{prepare}`), or set dataset.train_list=train for VOC's own 1464",
    )


def _no_merged(noval: bool, places: Sequence[Path], voc_train: Path, prepare: str) -> UserError:
    """The error that names the files that the merged pool lacks, where they come from, and the other choice."""
    other = f"or set protocol.train_pool={TRAIN_AUG}"
    if noval:
        what = f"SBD's {TRAIN_NOVAL}: there is no {' and no '.join(map(str, places))}"
        if not voc_train.is_file():
            what += f"; and VOC's own train list: there is no {voc_train}"
        fix = f"`{prepare}` fetches it from {TRAIN_NOVAL_URL} (MD5 {TRAIN_NOVAL_MD5}); {other}"
    else:
        what = f"VOC's own train list: there is no {voc_train}"
        fix = f"`{prepare}` fetches it with VOC2012; {other}"
    return UserError(f"training pool {MERGED} (protocol.train_pool, dataset.train_list) needs {what}", fix)


def _ids(paths: Iterable[Path]) -> set[str]:
    return {image_id for path in paths for image_id in read_list(path, f"the list {path.stem}")[0]}
