"""Image lists: reads the published forms, of COCO too, and derives `train_aug` of VOC2012 and SBD."""

from __future__ import annotations

import re
from pathlib import Path

from fsseg.data.faults import Fault
from fsseg.data.sources.mask_scan import list_files
from fsseg.errors import UserError

_SBD_PLACES = ("SBD", "sbd", "benchmark_RELEASE", "dataset")
_PAIR = re.compile(r"(.+)__\d{2}")  # HSNet's lists name (image, class) pairs: 2007_000032__01


def list_path(name: str, lists: Path | None) -> Path | None:
    """The file of a list: a name under `lists`, if there is such a folder, or a path; None if there is neither."""
    named = () if lists is None else (lists / f"{name}.txt", lists / name)
    for path in (*named, Path(name).expanduser()):
        if path.is_file():
            return path
    return None


def read_list(name: str, lists: Path | None, key: str) -> tuple[list[str], list[Fault]]:
    """Image ids of a list in its order, each once, and a fault for every id named twice.

    A line is an id, the published `JPEGImages/x.jpg SegmentationClassAug/x.png`, or HSNet's `x__01`, where an image may
    come up once per class.

    Args:
        name: as in the configuration; see `list_path`.
        lists: the ImageSets/Segmentation folder; None where a list is a file always.
        key: configuration key that holds the name, for messages.

    Raises:
        UserError: no such file, or nothing in it.
    """
    path = list_path(name, lists)
    if path is None:
        if lists is None:
            raise UserError(f"{key}={name} is not a file", "give a text file with one image per line")
        there = ", ".join(sorted(p.stem for p in lists.glob("*.txt"))) or "none"
        raise UserError(
            f"{key}={name}: neither {lists / f'{name}.txt'} nor a file {name}; lists there: {there}",
            f"set {key} to one of those names or to a file",
        )
    ids: dict[str, None] = {}
    faults = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{key}={name}: {path} cannot be read: {error}", "give a text file with one image per line"
        ) from error
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
        raise UserError(f"{key}={name}: {path} names no image", "give a list with one image per line")
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


def derive_train_list(root: Path, sbd: Path | None, aug: Path, val_list: str) -> tuple[list[str], str]:
    """The standard 10582 training images (train_aug), sorted, and what they were derived from, in words.

    SBD's train and val plus VOC's train, minus VOC's val, where SBD's lists are there; else a list `train_aug` or
    `trainaug` under ImageSets/Segmentation; else every mask of SegmentationClassAug minus VOC's val. All three name the
    same images on complete data.

    Args:
        val_list: the evaluation list, taken out where VOC's own val is absent or another list evaluates.

    Raises:
        UserError: none of the three is there.
    """
    lists = root / "ImageSets" / "Segmentation"

    def ids(name: str) -> set[str]:
        return set(read_list(name, lists, "dataset.train_list")[0])

    held_out = ids("val") if list_path("val", lists) else set()
    held_out |= set(read_list(val_list, lists, "dataset.val_list")[0])
    if sbd is not None and (sbd / "train.txt").is_file() and (sbd / "val.txt").is_file():
        pool = ids(str(sbd / "train.txt")) | ids(str(sbd / "val.txt")) | ids("train")
        return sorted(pool - held_out), f"SBD train and val ({sbd}) plus VOC train, minus val"
    for name in ("train_aug", "trainaug"):
        if list_path(name, lists):
            return sorted(ids(name) - held_out), f"the list {name}, minus val"
    masks = list_files(aug, ".png")
    if masks:
        return sorted(set(masks) - held_out), f"all masks of {aug}, minus val"
    raise UserError(
        f"dataset.train_list=null: {root} has nothing to derive train_aug from: SBD's train.txt and val.txt "
        f"beside cls, a list train_aug under {lists}, or {aug}",
        "add SBD (`fsseg prepare dataset=pascal5i --download`), or set dataset.train_list=train for VOC's own 1464",
    )
