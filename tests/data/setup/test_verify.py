from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from trees import (
    SBD_MASKS,
    TRAIN_AUG,
    VOC_MASKS,
    coco_json,
    labels_of,
    make_coco,
    make_voc,
    write_jpeg,
    write_list,
    write_png,
)

from fsseg.config.schema import CocoConfig, PascalConfig
from fsseg.data.folds import COCO_CLASSES, VOC_CLASSES
from fsseg.data.setup import published
from fsseg.data.setup.published import facts
from fsseg.data.setup.verify import verify
from fsseg.data.sources import voc as voc_module
from fsseg.data.sources.coco import CocoSource
from fsseg.data.sources.voc import PascalSource
from fsseg.draw.sheets import TRUTH_COLOUR

# pycocotools' own use of numpy 2, at every decoded mask
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")


def voc(root: Path, **changes) -> PascalSource:
    return PascalSource(PascalConfig(name="pascal5i", root=str(root), **changes))


def coco(root: Path, **changes) -> CocoSource:
    return CocoSource(CocoConfig(name="coco20i", root=str(root), **changes))


def test_every_fault_of_a_voc_tree_is_reported_with_its_file_in_one_go(tmp_path: Path) -> None:
    root = make_voc(tmp_path, "aug")
    masks, images = root / "SegmentationClassAug", root / "JPEGImages"
    (masks / "2007_t1.png").unlink()
    (masks / "2007_v1.png").write_bytes(b"nonsense")
    write_png(masks / "2008_s1.png", np.full((40, 50), 21, np.uint8))
    (images / "2007_v2.jpg").write_bytes((images / "2007_v2.jpg").read_bytes()[:-300])
    write_jpeg(images / "2008_s2.jpg", (30, 50))
    (images / "2007_t2.jpg").unlink()
    write_list(root / "ImageSets" / "Segmentation" / "mine.txt", [*TRAIN_AUG, "2008_s2"])
    report = verify(voc(root, train_list="mine"))
    told = {(fault.kind, Path(fault.path).name) for fault in report.faults}
    assert told == {
        ("missing masks", "2007_t1.png"),
        ("unreadable masks", "2007_v1.png"),
        ("unknown class numbers in masks", "2008_s1.png"),
        ("duplicate ids", "mine.txt"),
        ("unreadable images", "2007_v2.jpg"),
        ("images of another size than their masks", "2008_s2.jpg"),
    }
    assert report.missing_images["train"] == [str(images / "2007_t2.jpg")]
    assert not report.standard
    assert not report.ready
    text = report.text()
    for _, name in told:
        assert name in text


def test_every_fault_of_coco_annotations_and_images_is_reported(tmp_path: Path) -> None:
    root = make_coco(tmp_path)
    content = coco_json()
    content["categories"][2]["name"] = "automobile"
    content["annotations"][0]["image_id"] = 8
    (root / "annotations" / "instances_val2014.json").write_text(json.dumps(content))
    write_jpeg(root / "train2014" / "COCO_train2014_000000000007.jpg", (10, 10))
    report = verify(coco(root))
    text = report.text()
    assert "id 3 is 'automobile', not 'car'" in text
    assert "annotation 1 is of image 8" in text
    assert "instances_val2014.json" in text
    assert "COCO_train2014_000000000007.jpg: 10x10 pixels" in text


def test_a_folder_with_nothing_is_a_report_not_a_crash(tmp_path: Path) -> None:
    for source in (voc(tmp_path), coco(tmp_path)):
        report = verify(source, sheet=tmp_path / "sheet.png")
        assert not report.standard
        assert len(report.faults) == 2
        assert str(tmp_path) in report.text()
    assert not (tmp_path / "sheet.png").exists()


def test_long_lists_are_cut_in_the_text_but_not_in_the_record(tmp_path: Path) -> None:
    root = make_voc(tmp_path)
    for path in (root / "JPEGImages").iterdir():
        path.unlink()
    report = verify(voc(root))
    assert "and 2 more" in report.text(limit=2)
    assert "more" not in report.text(limit=None)
    assert len(report.missing_images["train"]) == 4


def test_masks_of_another_version_are_recognised_by_their_lack_of_a_boundary(tmp_path: Path) -> None:
    root = make_voc(tmp_path, "aug")
    write_png(root / "SegmentationClassAug" / "2007_v2.png", SBD_MASKS["2007_v2"])
    causes = " ".join(verify(voc(root)).comparison.causes)
    assert "1 of 2 evaluation masks have no boundary of 255" in causes
    assert "2007_v2" in causes


def test_an_image_in_both_lists_is_a_cause(tmp_path: Path) -> None:
    root = make_voc(tmp_path)
    write_list(tmp_path / "leaky.txt", ["2007_t1", "2007_v1"])
    report = verify(voc(root, train_list=str(tmp_path / "leaky.txt")))
    assert any("1 images stand in both" in cause for cause in report.comparison.causes)


@pytest.fixture
def tiny_facts(monkeypatch) -> dict:
    """The published sizes as they would be if VOC were the tree of `make_voc`, each object large enough; by hand."""
    folds = {}
    # Pairs of the tree: train t1 (0, 14), t2 (1), s1 (5, 6), s2 (14); val v1 (19), v2 (0, 14). Images of base classes
    # per fold, and those of them without any novel pixel:
    train = {0: {"s1": (5, 6), "s2": (14,)}, 1: {"t1": (0, 14), "t2": (1,), "s2": (14,)},
             2: {"t2": (1,), "s1": (5, 6)}, 3: {"t1": (0, 14), "t2": (1,), "s1": (5, 6), "s2": (14,)}}  # fmt: skip
    keep = {0: 3, 1: 3, 2: 3, 3: 4}  # t1 stays in fold 0 (class 14) and in fold 2 (class 0)
    val = {0: {0: 1}, 1: {}, 2: {14: 1}, 3: {19: 1}}
    for fold in range(4):
        novel = range(5 * fold, 5 * fold + 5)
        base = [c for c in range(20) if c not in novel]
        per_class = {VOC_CLASSES[c]: sum(c in classes for classes in train[fold].values()) for c in base}
        folds[str(fold)] = {
            "val": {
                "images": sum(val[fold].values()),
                "per_class": {VOC_CLASSES[c]: val[fold].get(c, 0) for c in novel},
            },
            "train_aug_10582": {
                "images_keep": keep[fold], "images_drop": len(train[fold]), "per_class_drop": per_class,
            },
        }  # fmt: skip
    known = {"pascal5i": {"pools": {"train_aug_10582": 4}, "val_images": 2, "folds": folds}}
    known["pascal5i"]["hsnet"] = {split: dict.fromkeys(VOC_CLASSES, 0) for split in ("train", "val")}
    monkeypatch.setattr(published, "facts", lambda: known)
    monkeypatch.setattr(published, "MIN_PIXELS", 1)
    monkeypatch.setattr(voc_module, "_VOC_TRAIN", 2)
    return known


def test_the_standard_lists_are_called_so_whatever_the_masks_come_from(tmp_path: Path, tiny_facts: dict) -> None:
    for masks in ("sbd", "aug", "both"):
        report = verify(voc(make_voc(tmp_path / masks, masks)))
        assert report.comparison.differences == []
        assert report.standard
        assert report.ready
        assert "standard benchmark: all 93 numbers agree" in report.text()


def test_how_near_the_grid_comes_to_hsnets_lists_is_a_note_and_no_difference(tmp_path: Path, tiny_facts: dict) -> None:
    root = make_voc(tmp_path, "aug")
    # On the grid are rows 1, 33 and columns 1, 33 of masks of 40 x 50; v1's first 700 pixels end in row 14.
    large = labels_of((20, 1900), boundary=40)
    write_png(root / "SegmentationClassAug" / "2007_v1.png", large)
    tiny_facts["pascal5i"]["hsnet"]["val"] |= {"person": 1}
    report = verify(voc(root))
    assert report.standard
    assert (
        "note: HSNet's val lists have 1 (image, class) pairs, list_rule=grid gives 1 (differences: person -1, "
        "tvmonitor +1)" in report.text()
    )
    assert "note: HSNet's train lists have 0 (image, class) pairs, list_rule=grid gives 0 (differences: none)" in (
        report.text()
    )
    part = verify(voc(root, train_list="train"))
    assert "train lists" not in " ".join(part.comparison.notes)


def test_the_merged_pool_without_its_files_is_a_fault_that_names_them(tmp_path: Path) -> None:
    report = verify(voc(make_voc(tmp_path), train_list="merged_5953"))
    assert not report.ready
    assert "needs SBD's train_noval.txt" in report.text()
    assert "protocol.train_pool=train_aug_10582" in report.text()


def test_a_merged_pool_of_another_size_is_held_against_its_own(tmp_path: Path) -> None:
    root = make_voc(tmp_path)
    (root / "SBD" / "train_noval.txt").write_text("2008_s2\n")
    differences = [str(d) for d in verify(voc(root, train_list="merged_5953")).comparison.differences]
    assert "training list, images: 3, published 5953 (-5950)" in differences


def test_one_pixel_of_a_novel_class_shows_in_the_lists(tmp_path: Path, tiny_facts: dict) -> None:
    root = make_voc(tmp_path, "aug")
    write_png(root / "SegmentationClassAug" / "2008_s2.png", labels_of((15, 60), (1, 1)))  # an aeroplane of one pixel
    differences = {str(d) for d in verify(voc(root)).comparison.differences}
    assert "fold 0 train, drop, images: 1, published 2 (-1)" in differences
    assert "fold 0 train, drop, person: 0, published 1 (-1)" in differences


def test_classes_numbered_in_another_order_are_recognised(tmp_path: Path, tiny_facts: dict) -> None:
    root = make_voc(tmp_path, "aug")
    for image_id, labels in VOC_MASKS.items():
        swapped = np.choose((labels == 20) * 1 + (labels == 2) * 2, [labels, 2, 20]).astype(np.uint8)
        write_png(root / "SegmentationClassAug" / f"{image_id}.png", swapped)
    report = verify(voc(root))
    assert not report.standard
    assert any("another order" in cause for cause in report.comparison.causes)


def test_sheet_shows_masks_on_their_images(tmp_path: Path) -> None:
    root = make_coco(tmp_path)
    (root / "val2014" / "COCO_val2014_000000000009.jpg").unlink()  # passed over
    report = verify(coco(root), sheet=tmp_path / "out" / "sheet.png", num_samples=4)
    assert report.sheet == tmp_path / "out" / "sheet.png"
    with Image.open(report.sheet) as png:
        picture = np.asarray(png.convert("RGB")).astype(int)
    assert picture.shape[1] == pytest.approx(5 * 2.1 * 130, abs=2)  # one row of five places, 2.1 inches each
    green = (np.abs(picture - 255 * np.asarray(TRUTH_COLOUR)) < 10).all(axis=-1)
    body = green[: -int(0.4 * 130)].any(axis=0)  # without the legend
    places = [body[int(k * 2.1 * 130) : int((k + 1) * 2.1 * 130)].any() for k in range(5)]
    assert places == [True, True, True, True, False]  # two of each split: the val image that is gone is passed over


def test_facts_carried_along_are_sound() -> None:
    pascal, known = facts()["pascal5i"], facts()["coco20i"]
    assert pascal["folds"]["2"]["val"]["images"] == 592  # SCCAN's list of fold 2
    assert [pascal["folds"][f]["merged_5953"]["images_drop"] for f in "0123"] == [4208, 3726, 2752, 4510]
    assert known["pairs_per_fold"] == {
        "train": [95476, 133927, 141054, 141016], "val": [35783, 17912, 14563, 14315]}  # fmt: skip
    for split, per_class in known["per_class"].items():
        assert tuple(per_class) == COCO_CLASSES
        own = [sum(list(per_class.values())[fold::4]) for fold in range(4)]
        every = sum(own)
        assert known["pairs_per_fold"][split] == (own if split == "val" else [every - number for number in own])


@pytest.mark.shared
def test_the_real_masks_are_the_standard_benchmark_and_missing_images_are_listed(shared_dir, voc_cache: Path) -> None:
    source = voc(shared_dir / "data" / "voc_part", cache=str(voc_cache))
    report = verify(source, decode=False)
    assert report.standard
    assert not report.ready
    assert "standard benchmark" in report.text()
    lists = json.loads((shared_dir / "facts" / "published_lists.json").read_text())["coco20i"]
    for split in ("train", "val"):
        assert list(facts()["coco20i"]["per_class"][split].values()) == lists[f"{split}_pairs_per_class"]
        assert facts()["coco20i"]["pairs_per_fold"][split] == lists[f"{split}_pairs_per_fold"]
    here = sum(name.endswith(".jpg") for name in os.listdir(shared_dir / "data/voc_part/JPEGImages"))
    assert here >= 867  # the two lists of the part
    assert len(report.missing_images["train"]) + len(report.missing_images["val"]) == 12031 - here
    known = json.loads((shared_dir / "facts" / "folds.json").read_text())["pascal5i"]
    folds = {f: dict(sizes) for f, sizes in known["list_sizes_from_masks"]["folds"].items()}
    for sizes in folds.values():
        sizes["merged_5953"] = sizes.pop("pfenet_list_5953")
    assert facts()["pascal5i"]["folds"] == folds
    for split, key in (("val", "val"), ("train", "train_file_of_fold")):
        theirs = known["hsnet_image_class_pairs"][key].values()
        assert facts()["pascal5i"]["hsnet"][split] == {n: size for f in theirs for n, size in f["per_class"].items()}
    part = verify(
        voc(shared_dir / "data" / "voc_part", cache=str(voc_cache), train_list="part_train", val_list="part_val")
    )
    assert part.ready
    assert not part.standard
    assert part.decoded == 867


@pytest.mark.shared
def test_the_merged_pool_of_the_real_masks_is_the_published_one(shared_dir, voc_cache: Path, tmp_path: Path) -> None:
    """SBD's train_noval.txt is not at hand: it is made here so that, with VOC's train list (the images whose masks have
    a boundary), it gives the published names. A third of VOC's list stands in both."""
    real, lists = shared_dir / "data" / "voc_part", tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for name in ("SegmentationClassAug", "JPEGImages"):
        (tmp_path / name).symlink_to(real / name)
    for name in ("val", "train_aug"):
        (lists / f"{name}.txt").symlink_to(real / "ImageSets/Segmentation" / f"{name}.txt")
    published_names = voc(real, cache=str(voc_cache), train_list="pfenet_train")
    names, counts = published_names.index("train").image_ids, published_names.mask_counts("train")
    own = [i for i in names if 255 in counts[i].pixels]
    write_list(lists / "train.txt", own)
    write_list(lists / "train_noval.txt", [i for i in names if i not in set(own)] + own[::3])
    merged = voc(tmp_path, cache=str(voc_cache), train_list="merged_5953")
    assert set(merged.index("train").image_ids) == set(names)
    report = verify(merged, decode=False)
    assert report.standard
    assert "training pool merged_5953" in report.text()
    assert report.lists["train"][1] == 5953
    write_list(lists / "train_noval.txt", [i for i in names if i not in set(own)][1:])
    report = verify(merged, decode=False)
    assert not report.standard
    assert "training list, images: 5952, published 5953 (-1)" in map(str, report.comparison.differences)
