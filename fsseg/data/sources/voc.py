"""`PascalSource`, PASCAL-5i: VOC2012 with SBD's extra masks, its official archives, and the published list sizes.

Layout: VOC2012's (see `voc_layout`), and masks in any of three places, looked at in this order for each image:
`SegmentationClass/<id>.png` (VOC's own, with 255 on the boundary), `SegmentationClassAug/<id>.png` (the ready-made
union of VOC and SBD), SBD's `cls/<id>.mat`. The order matters only for images that both VOC and SBD segmented, where
VOC's mask is the one of the benchmark.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from fsseg.config.schema import Config, PascalConfig
from fsseg.data.faults import Comparison, Fault
from fsseg.data.folds import VOC_CLASSES
from fsseg.data.setup import published
from fsseg.data.setup.download import Archive, Need, Part
from fsseg.data.source import IGNORE_INDEX, SPLITS, ClassIndex, Split, prepare_command
from fsseg.data.sources.voc_layout import IMAGES, LISTS, MASKS, MASKS_AUG, VocSource
from fsseg.data.sources.voc_lists import (
    MERGED,
    TRAIN_AUG,
    TRAIN_NOVAL,
    TRAIN_NOVAL_MD5,
    TRAIN_NOVAL_URL,
    Derivation,
    derivation,
    find_list,
    find_sbd,
    list_path,
)
from fsseg.errors import UserError

log = logging.getLogger(__name__)

# Sizes and digests as the publishers' servers and torchvision state them.
_VOC = Archive(
    name="VOCtrainval_11-May-2012.tar",
    urls=(
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
        "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
    ),
    size=1_999_639_040,
    md5="6cd6e144f989b92b3379bac3b3de84fd",
    strip="VOCdevkit/VOC2012",
    unpacked=2_000_000_000,
)
_SBD = Archive(
    name="benchmark.tgz",
    urls=(
        "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
        "http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
    ),
    size=1_419_539_633,
    md5="82b4d87ceb2ed10f6038a1cba92111cb",
    strip="benchmark_RELEASE/dataset",
    into="SBD",
    unpacked=300_000_000,
    only=("cls/", "train.txt", "val.txt"),  # its images are VOC2012's
)
_NOVAL = Archive(name=TRAIN_NOVAL, urls=(TRAIN_NOVAL_URL,), size=None, md5=TRAIN_NOVAL_MD5, into=LISTS, plain=True)
_WITH_MASK = 12031  # of VOC2012's 17125 images have a mask in VOC or SBD
_VOC_TRAIN = 1464  # images of VOC2012's own train list: the only training masks with a boundary of 255


class PascalSource(VocSource):
    """PASCAL-5i as `conf/dataset/pascal5i.yaml` describes it."""

    masks_advice = "complete the masks (`fsseg prepare` gets VOC2012 and SBD), or take the names off the list"

    def __init__(self, cfg: PascalConfig) -> None:
        super().__init__(cfg, VOC_CLASSES)
        self.train_list, self.val_list = cfg.train_list or TRAIN_AUG, cfg.val_list
        self.sbd_root = _path(cfg.sbd_root)
        self._prepare = prepare_command(cfg.name, str(cfg.root))

    @cached_property
    def sbd(self) -> Path | None:
        """Folder that holds SBD's `cls`, if there is one.

        Raises:
            UserError: `sbd_root` is given but holds none.
        """
        return find_sbd(self.root, self.sbd_root)

    def mask_places(self) -> list[tuple[str, Path, str]]:
        return super().mask_places() + ([("cls", self.sbd / "cls", ".mat")] if self.sbd is not None else [])

    def list_ids(self, split: Split) -> tuple[list[str], list[Fault]]:
        if (found := self._derivation(split)) is None:
            return super().list_ids(split)
        lists = self.root / LISTS
        held_out = {find_list(self.val_list, lists, "dataset.val_list"), list_path("val", lists)} - {None}
        image_ids = found.image_ids(path for path in held_out if path is not None)
        log.info("%s: training list of %d images derived from %s", self.name, len(image_ids), found.origin)
        return image_ids, []

    def list_origin(self, split: Split) -> str:
        return super().list_origin(split) if (found := self._derivation(split)) is None else found.origin

    def _derivation(self, split: Split) -> Derivation | None:
        """How the list of a split is derived; None for one that a file holds."""
        if split == "val" or self.train_list not in (TRAIN_AUG, MERGED):
            return None
        return derivation(self.train_list, self.root / LISTS, self.sbd, self.root / MASKS_AUG, self._prepare)

    @classmethod
    def check_folder(cls, cfg: PascalConfig, splits: Sequence[Split] = SPLITS) -> list[UserError]:
        """As in `Source`; and whether the lists are there, or what they are derived from."""
        errors = super().check_folder(cfg, splits)
        source = cls(cfg)
        for split in splits if not errors else ():
            try:
                if source._derivation(split) is None:
                    find_list(source.list_origin(split), source.root / LISTS, f"dataset.{split}_list")
            except UserError as error:
                errors.append(error)
        return errors

    @classmethod
    def layout(cls, cfg: PascalConfig, splits: Sequence[Split] = SPLITS) -> dict[str, bool]:
        root = Path(cfg.root).expanduser()  # all splits share its folders
        masks = any((root / name).is_dir() for name in (MASKS, MASKS_AUG))
        return {
            **{name: (root / name).is_dir() for name in (IMAGES, LISTS)},
            f"{MASKS} (or {MASKS_AUG}, or SBD's cls)": masks or cfg.sbd_root is not None or bool(find_sbd(root, None)),
        }

    @classmethod
    def parts(cls, cfg: PascalConfig, fetch: bool = False) -> tuple[Part, ...]:
        sbd = find_sbd(Path(cfg.root).expanduser(), _path(cfg.sbd_root)) or "SBD"
        ready = Need(MASKS_AUG, ".png", _WITH_MASK)
        images = Need(IMAGES, ".jpg", _WITH_MASK)
        lists = tuple(Need(LISTS, f"{name}.txt", 1) for name in SPLITS)
        masks = Need(f"{sbd}/cls", ".mat", 11355), *(Need(str(sbd), f"{name}.txt", 1) for name in SPLITS)
        merged = cfg.train_list == MERGED
        found = (
            # Ready-made masks stand for those of both archives, but not for VOC's own train list.
            Part(_VOC, (images, Need(MASKS, ".png", 2913), *lists), (images, ready, *(lists if merged else ()))),
            Part(_SBD, masks, (ready,)),
        )
        if Need(LISTS, f"{MERGED}.txt", 1).found(Path(cfg.root).expanduser()):
            return found  # the pool is there as a list
        only_for = "" if merged else f"protocol.train_pool={MERGED}"
        noval = Part(_NOVAL, (Need(LISTS, TRAIN_NOVAL, 1),), (Need(str(sbd), TRAIN_NOVAL, 1),), only_for)
        return *found, noval

    @classmethod
    def training_images(cls, cfg: Config) -> int | None:
        data: Any = cfg.dataset
        rules, pools = cfg.protocol, {None: TRAIN_AUG, "train_aug": TRAIN_AUG, TRAIN_AUG: TRAIN_AUG, MERGED: MERGED}
        standard = data.train_list in pools and data.num_folds == 4
        if not standard or rules.list_rule != "pixels" or rules.min_pixels != published.MIN_PIXELS:
            return None
        sizes = published.facts()["pascal5i"]["folds"][str(cfg.fold)][pools[data.train_list]]
        return int(sizes["images_drop" if rules.novel_in_training == "drop" else "images_keep"])

    def compare(self, indexes: Mapping[Split, ClassIndex]) -> Comparison:
        if self.num_folds != 4:
            return super().compare(indexes)
        known = published.facts()["pascal5i"]
        val, train = indexes.get("val"), indexes.get("train")
        pools = {size: pool for pool, size in known["pools"].items()}
        pool = pools.get(len(train.image_ids)) if train is not None else None
        counted = "the lists of BAM and SCCAN, counted from VOC2012's and SBD's masks"
        result = Comparison(f"{counted}; training pool {pool or 'unknown'}")
        for fold in range(4):
            self._compare_fold(result, fold, pool, indexes)
        if val is not None:
            result.add("evaluation list", "images", known["val_images"], len(val.image_ids))
        if train is not None and pool is None:
            expected = known["pools"].get(self.train_list, known["pools"][TRAIN_AUG])
            result.add("training list", "images", expected, len(train.image_ids))
        if val is None or train is None:
            result.causes.append("a split could not be read: see the faults")
        result.causes += self._list_causes(indexes, pool) + self._mask_causes(indexes, pool)
        if result.differences and not result.causes:
            result.causes.append(
                "masks that were edited, resized or saved again: restore them from the official archives"
            )
        result.notes += self._hsnet_notes(indexes)
        return result

    @staticmethod
    def _hsnet_notes(indexes: Mapping[Split, ClassIndex]) -> list[str]:
        """How near `list_rule=grid` comes to HSNet's own lists; no other code uses them, so they decide nothing."""
        known, notes = published.facts()["pascal5i"], []
        whole = {"val": known["val_images"], "train": known["pools"][TRAIN_AUG]}
        for split, index in indexes.items():
            if len(index.image_ids) != whole[split]:
                continue
            sizes, (found, _) = known["hsnet"][split], published.list_sizes(index, range(20), rule="grid")
            other = [f"{n} {found[c] - sizes[n]:+d}" for c, n in enumerate(VOC_CLASSES) if found[c] != sizes[n]]
            notes.append(
                f"HSNet's {split} lists have {sum(sizes.values())} (image, class) pairs, list_rule=grid gives "
                f"{sum(found.values())} (differences: {', '.join(other) or 'none'})"
            )
        return notes

    def _compare_fold(
        self, result: Comparison, fold: int, pool: str | None, indexes: Mapping[Split, ClassIndex]
    ) -> None:
        sizes = published.facts()["pascal5i"]["folds"][str(fold)]
        novel, names = self.novel_classes(fold), self.classes
        base = [c for c in range(len(names)) if c not in novel]
        if "val" in indexes:
            per_class, images = published.list_sizes(indexes["val"], novel)
            result.add(f"fold {fold} val", "images", sizes["val"]["images"], images)
            for c in novel:
                result.add(f"fold {fold} val", names[c], sizes["val"]["per_class"][names[c]], per_class[c])
        if pool is not None:
            train, where = indexes["train"], f"fold {fold} train"
            kept = published.list_sizes(train, base)[1]
            result.add(f"{where}, keep", "images", sizes[pool]["images_keep"], kept)
            per_class, images = published.list_sizes(train, base, drop=novel)
            result.add(f"{where}, drop", "images", sizes[pool]["images_drop"], images)
            for c in base:
                result.add(f"{where}, drop", names[c], sizes[pool]["per_class_drop"][names[c]], per_class[c])

    def _list_causes(self, indexes: Mapping[Split, ClassIndex], pool: str | None) -> list[str]:
        """Causes of different numbers that lie in the lists."""
        known, causes = published.facts()["pascal5i"], []
        val, train = indexes.get("val"), indexes.get("train")
        if val is not None and len(val.image_ids) != known["val_images"]:
            where = f"the evaluation list {self.list_origin('val')}"
            causes.append(f"{where} has {len(val.image_ids)} images; VOC2012's val has 1449")
        if train is not None and pool is None:
            causes.append(
                f"the training list ({self.list_origin('train')}) has {len(train.image_ids)} images; the published "
                f"pools are {TRAIN_AUG} and {MERGED}"
            )
        if train is not None and val is not None and (both := set(train.image_ids) & set(val.image_ids)):
            causes.append(f"{len(both)} images stand in both the training and the evaluation list, e.g. {min(both)}")
        return causes

    def _mask_causes(self, indexes: Mapping[Split, ClassIndex], pool: str | None) -> list[str]:
        """Causes that lie in the masks, and faults of masks that no number shows."""
        causes = []
        if (val := indexes.get("val")) is not None:
            counts = self.mask_counts("val")
            plain = sorted(i for i in val.image_ids if IGNORE_INDEX not in counts[i].pixels)
            if plain:
                causes.append(
                    f"{len(plain)} of {len(val.image_ids)} evaluation masks have no boundary of 255, as VOC's own all "
                    f"have, e.g. {plain[0]}: masks of another version (SBD's have none), and scores on them are not "
                    "comparable"
                )
            folds = published.facts()["pascal5i"]["folds"]
            found = list(published.list_sizes(val, range(20))[0].values())
            right = [folds[str(c // 5)]["val"]["per_class"][name] for c, name in enumerate(VOC_CLASSES)]
            if found != right and sorted(found) == sorted(right):
                causes.append("the masks number the classes in another order than VOC2012 (alphabetical)")
        if pool is not None:  # each holds all of VOC's train list
            counts = self.mask_counts("train")
            bounded = sum(IGNORE_INDEX in counts[i].pixels for i in indexes["train"].image_ids)
            if bounded != _VOC_TRAIN:
                causes.append(
                    f"{bounded} training masks have a boundary of 255; VOC's own train list has {_VOC_TRAIN}: masks of "
                    "another version stand for VOC's (is SegmentationClass complete?)"
                )
        return causes


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text).expanduser()
