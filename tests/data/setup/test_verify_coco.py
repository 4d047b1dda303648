"""`fsseg verify` of complete COCO 2014: made annotation files of the official size, with the published number of pairs.

A pair is a rectangle of exactly 2048 pixels. An image has four places for one, in none of which the same class comes
twice: each class fills consecutive images, and has fewer pairs than the split has images.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from trees import coco_categories

from fsseg.config.schema import CocoConfig
from fsseg.data.folds import COCO_CATEGORY_IDS, COCO_CLASSES
from fsseg.data.setup.published import facts
from fsseg.data.setup.verify import VerifyReport, verify
from fsseg.data.source import Split
from fsseg.data.sources.coco import CocoSource

HEIGHT, WIDTH, SIZES = 4 * 33, 64, {"train": 82783, "val": 40504}


def rectangle(place: int, height: int) -> list[list[int]]:
    """`height` rows of 64 pixels: `fillPoly` includes the last row and column."""
    top, bottom = 33 * place, 33 * place + height - 1
    return [[0, top, WIDTH - 1, top, WIDTH - 1, bottom, 0, bottom]]


def annotations(split: Split, per_class: dict[str, int]) -> dict[str, Any]:
    """The given number of pairs of 2048 pixels, and in the places that are left pairs of 1984 pixels of any class."""
    count = SIZES[split]
    images = [
        {"id": i, "file_name": f"COCO_{split}2014_{i:012d}.jpg", "height": HEIGHT, "width": WIDTH} for i in range(count)
    ]
    classes = [c for c, name in enumerate(COCO_CLASSES) for _ in range(per_class[name])]
    listed = len(classes)
    assert listed < 4 * count
    classes += [c % 80 for c in range(listed, min(listed + 20_000, 4 * count))]
    entries = [
        {"id": row, "image_id": row % count, "category_id": COCO_CATEGORY_IDS[c], "iscrowd": 0,
         "segmentation": rectangle(row // count, 32 if row < listed else 31)}
        for row, c in enumerate(classes)
    ]  # fmt: skip
    return {"images": images, "annotations": entries, "categories": coco_categories()}


def write(root: Path, split: Split, content: dict[str, Any]) -> None:
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "annotations" / f"instances_{split}2014.json").write_text(json.dumps(content))


def published(split: Split) -> dict[str, int]:
    return dict(facts()["coco20i"]["per_class"][split])


def look(root: Path, **changes: Any) -> VerifyReport:
    return verify(CocoSource(CocoConfig(name="coco20i", root=str(root), **changes)), decode=False)


@pytest.mark.slow
def test_complete_coco_is_the_standard_benchmark_exactly(tmp_path: Path) -> None:
    splits: tuple[Split, ...] = ("train", "val")
    contents = {split: annotations(split, published(split)) for split in splits}
    for split in splits:
        write(tmp_path, split, contents[split])
    report = look(tmp_path)
    assert report.standard
    # two files, 80 classes and 4 folds of both splits
    assert "standard benchmark: all 170 numbers agree with the published ones" in report.text()
    assert "instances painted over each other" in report.text()
    contents["train"]["annotations"][60_000]["segmentation"] = rectangle(0, 31)
    name = COCO_CLASSES[COCO_CATEGORY_IDS.index(contents["train"]["annotations"][60_000]["category_id"])]
    write(tmp_path, "train", contents["train"])
    found = {(d.where, d.what, d.found - d.published) for d in look(tmp_path).comparison.differences}
    assert ("train2014", name, -1) in found
    assert len(found) == 4  # its class, and the three folds of which it is a base class
    assert not look(tmp_path, contiguous_folds=True).standard


@pytest.fixture(scope="module")
def val(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A root whose val split has the official size; its train split is absent."""
    root, content = tmp_path_factory.mktemp("coco"), annotations("val", published("val"))
    write(root, "val", content)
    return root, content


def test_the_evaluation_split_of_complete_coco_counts_exactly(val: tuple[Path, dict[str, Any]]) -> None:
    root, content = val
    report = look(root)
    assert report.comparison.checked == 1 + 80 + 4
    assert report.comparison.differences == []
    assert report.comparison.causes == ["a split could not be read: see the faults"]
    row = next(r for r, a in enumerate(content["annotations"]) if a["category_id"] == 90)  # a toothbrush: class 79
    content["annotations"][row]["segmentation"] = rectangle(content["annotations"][row]["id"] // SIZES["val"], 31)
    write(root, "val", content)
    assert [str(d) for d in look(root).comparison.differences] == [
        "val2014, toothbrush: 93, published 94 (-1)",
        "fold 3 val, pairs: 14314, published 14315 (-1)",
    ]


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree of two images a split, as if that were all of COCO: a dog in one, a person and a cat in the other."""
    known = {"images": {"2014": {"train": 2, "val": 2}}, "per_class": {}, "pairs_per_fold": {}}
    entries: dict[str, Any] = dict.fromkeys(COCO_CLASSES, 0) | {"dog": 1, "person": 1, "cat": 1}
    for split in ("train", "val"):
        known["per_class"][split] = entries
        # dog 16 and person 0 are of fold 0, cat 15 of fold 3
        known["pairs_per_fold"][split] = [2, 0, 0, 1] if split == "val" else [1, 3, 3, 2]
        shapes = ((0, 18, 0), (1, 1, 0), (1, 17, 1))
        content = {
            "images": [{"id": i, "file_name": f"{split}{i}.jpg", "height": HEIGHT, "width": WIDTH} for i in (0, 1)],
            "annotations": [
                {"id": row, "image_id": image, "category_id": category, "iscrowd": 0,
                 "segmentation": rectangle(place, 32)}
                for row, (image, category, place) in enumerate(shapes)
            ],
            "categories": coco_categories(),
        }  # fmt: skip
        write(tmp_path, split, content)  # type: ignore[arg-type]
    monkeypatch.setattr("fsseg.data.setup.published.facts", lambda: {"coco20i": known})
    return tmp_path


def test_label_maps_are_said_to_follow_the_painted_rule_or_not(small: Path) -> None:
    coco = CocoSource(CocoConfig(name="coco20i", root=str(small)))
    assert look(small).standard
    splits: tuple[Split, ...] = ("train", "val")
    for split in splits:
        (small / "annotations" / f"{split}2014").mkdir()
        for image_id in coco.index(split).image_ids:
            labels = sum(coco.mask(split, image_id, c) * np.uint8(c + 1) for c in (0, 15, 16))
            Image.fromarray(np.asarray(labels)).save(small / "annotations" / f"{split}2014" / f"{image_id}.png")
    report = look(small, coco_masks="maps")
    assert report.standard
    assert "note: these label maps follow the painted rule" in report.text()
    path = small / "annotations" / "val2014" / "val0.png"
    Image.fromarray(np.asarray(Image.open(path)) * np.uint8(0)).save(path)
    report = look(small, coco_masks="maps")
    assert "note: these label maps do not follow the painted rule" in report.text()
    assert "val2014, dog: 0, published 1 (-1)" in report.text()


def test_union_is_said_to_hold_more_than_the_published_lists(small: Path) -> None:
    report = look(small, coco_masks="union")
    assert not report.standard
    assert "its lists hold about 4 % more pairs than the published ones" in report.text()


def test_a_list_that_has_all_that_is_published_is_standard_and_one_that_lacks_some_is_not(small: Path) -> None:
    (small / "val.txt").write_text("val2014/val1.jpg x\nval2014/val0.jpg x\n")
    report = look(small, val_list=str(small / "val.txt"))
    assert report.standard
    assert report.lists["val"] == (str(small / "val.txt"), 2)
    (small / "val.txt").write_text("val0\n")
    report = look(small, val_list=str(small / "val.txt"))
    assert not report.standard
    assert "likely cause: dataset.train_list or dataset.val_list leaves images out" in report.text()


def test_folds_of_another_cut_are_not_compared(small: Path) -> None:
    report = look(small, contiguous_folds=True)
    assert not report.standard
    assert report.comparison.differences == []
