"""Masks painted as those of the published lists: by hand, against a plain loop, and on real annotations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as rle
from trees import box, coco_categories, coco_json, make_coco, run_lengths

from fsseg.config.schema import CocoConfig, ProtocolConfig
from fsseg.data.folds import COCO_CATEGORY_IDS, COCO_CLASSES
from fsseg.data.lists import train_lists
from fsseg.data.sources import coco_store
from fsseg.data.sources.coco import CocoSource
from fsseg.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")

SEVEN, NINE = "COCO_val2014_000000000007", "COCO_val2014_000000000009"
PERSON, BICYCLE, DOG = 0, 1, 16
Labels = NDArray[np.uint8]


def source(root: Path, **changes: Any) -> CocoSource:
    return CocoSource(CocoConfig(name="coco20i", root=str(root), **changes))


def annotated(root: Path, size: tuple[int, int], *annotations: tuple[int, Any] | tuple[int, Any, int]) -> CocoSource:
    """One image 7 of (height, width), with (class_id, segmentation, iscrowd) in this order."""
    content = {
        "images": [{"id": 7, "file_name": f"{SEVEN}.jpg", "height": size[0], "width": size[1]}],
        "annotations": [
            {"id": row, "image_id": 7, "category_id": COCO_CATEGORY_IDS[c], "segmentation": shape,
             "iscrowd": crowd[0] if crowd else 0}
            for row, (c, shape, *crowd) in enumerate(annotations)
        ],
        "categories": coco_categories(),
    }  # fmt: skip
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "annotations" / "instances_val2014.json").write_text(json.dumps(content))
    return source(root)


def picture(coco: CocoSource, *classes: int) -> list[str]:
    """The label map of image 7 as text: the first class is a, the second b."""
    labels = sum(np.where(coco.mask("val", SEVEN, c) == 1, k, 0) for k, c in enumerate(classes, 1))
    return ["".join(".abc"[label] for label in row) for row in np.asarray(labels).tolist()]


def test_a_polygon_has_its_border_and_numbers_are_cut_toward_zero(tmp_path: Path) -> None:
    corners = [[2.9, 1.2, 5.99, 1, 5.5, 3.999, 2, 3.5]]  # (2, 1) to (5, 3), both included
    assert picture(annotated(tmp_path / "a", (6, 8), (DOG, corners)), DOG) == [
        "........",
        "..aaaa..",
        "..aaaa..",
        "..aaaa..",
        "........",
        "........",
    ]
    beyond = [[-0.9, -0.9, 1.5, -0.9, 1.5, 0.5, -0.9, 0.5]]  # -0.9 is 0, not -1
    assert picture(annotated(tmp_path / "b", (3, 4), (DOG, beyond)), DOG) == ["aa..", "....", "...."]
    assert source(tmp_path / "b").index("val").pair_pixels.tolist() == [2]


def test_later_instances_lie_over_earlier_ones_and_crowds_are_left_out(tmp_path: Path) -> None:
    person, dog, bicycle = box(0, 0, 3, 3), box(2, 2, 3, 3), box(5, 0, 1, 1)
    crowd = np.zeros((7, 8), np.uint8)
    crowd[:, 6:] = 1
    every = ((PERSON, person), (DOG, dog), (PERSON, run_lengths(crowd), 1), (BICYCLE, bicycle))
    coco = annotated(tmp_path / "a", (7, 8), *every)
    assert picture(coco, PERSON, DOG, BICYCLE) == [
        "aaaa.cc.",
        "aaaa.cc.",
        "aabbbb..",
        "aabbbb..",
        "..bbbb..",
        "..bbbb..",
        "........",
    ]
    assert 255 not in coco.mask("val", SEVEN, PERSON)
    index = coco.index("val")
    assert dict(zip(index.pair_class.tolist(), index.pair_pixels.tolist())) == {PERSON: 12, BICYCLE: 4, DOG: 16}
    ignored = coco.mask("val", SEVEN, PERSON, ignore_classes=[DOG, PERSON])
    assert [(ignored == v).sum() for v in (0, 1, 255)] == [56 - 12 - 16, 12, 16]
    backward = annotated(tmp_path / "b", (7, 8), *reversed(every))
    assert picture(backward, PERSON, DOG)[2:4] == ["aaaabb..", "aaaabb.."]


def test_every_polygon_of_an_instance_is_filled_by_itself(tmp_path: Path) -> None:
    """One that lies in another makes no hole."""
    coco = annotated(tmp_path, (8, 8), (DOG, box(0, 0, 6, 6) + box(2, 2, 2, 2)))
    assert coco.index("val").pair_pixels.tolist() == [49]


def test_run_lengths_of_either_form_are_painted_as_they_are(tmp_path: Path) -> None:
    dog = (np.random.default_rng(0).random((11, 13)) < 0.4).astype(np.uint8)
    text = {"size": [11, 13], "counts": rle.encode(np.asfortranarray(dog))["counts"].decode()}
    for name, shape in (("list", run_lengths(dog)), ("text", text)):
        coco = annotated(tmp_path / name, (11, 13), (PERSON, box(0, 0, 12, 10)), (DOG, shape))
        np.testing.assert_array_equal(coco.mask("val", SEVEN, DOG), dog)
        np.testing.assert_array_equal(coco.mask("val", SEVEN, PERSON), 1 - dog)


def plain(size: tuple[int, int], annotations: list[tuple[int, Any, int]]) -> Labels:
    """The published rule, one pixel buffer and one polygon after the other."""
    labels = np.zeros(size, np.uint8)
    for class_id, shape, crowd in annotations:
        if crowd == 1:
            continue
        if type(shape) is dict:
            counts = shape["counts"]
            code = shape if isinstance(counts, str) else rle.frPyObjects(shape, size[0], size[1])
            labels[rle.decode(code) == 1] = class_id + 1
            continue
        for polygon in shape:
            points = [[int(polygon[k]), int(polygon[k + 1])] for k in range(0, len(polygon), 2)]
            cv2.fillPoly(labels, [np.array(points, np.int32)], class_id + 1)
    return labels


def random_annotations(rng: np.random.Generator, size: tuple[int, int]) -> list[tuple[int, Any, int]]:
    found: list[tuple[int, Any, int]] = []
    for _ in range(rng.integers(1, 9)):
        kind, class_id = rng.random(), int(rng.choice([0, 1, 16, 79]))
        if kind < 0.25:
            mask = (rng.random(size) < rng.random()).astype(np.uint8)
            shape: Any = run_lengths(mask)
            if kind < 0.12:
                shape = {"size": list(size), "counts": rle.encode(np.asfortranarray(mask))["counts"].decode()}
        else:
            shape = []
            for _ in range(rng.integers(1, 4)):
                points = rng.uniform(-0.4, 1.4, (rng.integers(3, 12), 2)) * size[::-1]
                if rng.random() < 0.5:
                    points = np.clip(points, 0, size[::-1])  # as COCO's own: up to the far edge, not beyond
                shape.append(points.round(2).ravel().tolist())
        found.append((class_id, shape, int(rng.random() < 0.15)))
    return found


@pytest.mark.parametrize("seed", range(40))
def test_painted_maps_are_those_of_a_plain_loop(tmp_path: Path, seed: int) -> None:
    """Polygons over each other, in holes and beyond the border; crowds; both forms of run lengths."""
    rng = np.random.default_rng(seed)
    size = (int(rng.integers(1, 60)), int(rng.integers(1, 60)))
    annotations = random_annotations(rng, size)
    expected = plain(size, annotations)
    coco = annotated(tmp_path, size, *annotations)
    index = coco.index("val")
    for c in range(80):
        np.testing.assert_array_equal(coco.mask("val", SEVEN, c), expected == c + 1)
    counts = {int(label) - 1: int((expected == label).sum()) for label in np.unique(expected) if label}
    assert dict(zip(index.pair_class.tolist(), index.pair_pixels.tolist())) == counts
    found = coco.mask("val", SEVEN, 16, ignore_classes=[0, 79])
    np.testing.assert_array_equal(found, np.where(np.isin(expected, [1, 80]), 255, expected == 17))


def test_a_class_that_is_only_a_crowd_or_covered_altogether_is_not_in_the_image(tmp_path: Path) -> None:
    """So `drop` keeps the image: the published codes see the painted map alone."""
    crowd = run_lengths(np.ones((100, 100), np.uint8))
    dog = (DOG, box(0, 0, 70, 70))
    coco = annotated(tmp_path, (100, 100), (PERSON, crowd, 1), (BICYCLE, box(5, 5, 9, 9)), dog)
    index = coco.index("val")
    assert index.pair_class.tolist() == [DOG]
    rules = ProtocolConfig("p", novel_in_training="drop", repeat_support=True)
    twice = index.take([0])
    assert twice.fingerprint == index.fingerprint
    with pytest.raises(UserError, match=r"lists 1 images, 1 \(image, class\) pairs are left"):
        train_lists(index, (PERSON, BICYCLE), rules, 1, COCO_CLASSES)


def test_each_rule_has_its_own_store_and_both_may_lie_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_coco(tmp_path)
    painted, union = (source(root, coco_masks=rule).index("val") for rule in ("painted", "union"))
    # 7: people of 11 x 11 that share 6 x 6; the dog lies over their corner with 7 x 5. 9: pieces of 4 x 3 and 5 x 5.
    assert dict(zip(painted.pair_class.tolist(), painted.pair_pixels.tolist())) == {0: 206 - 16, 16: 35, 79: 37}
    assert union.pair_pixels.tolist() == [175, 24, 22]
    names = {path.name for path in (root / ".fsseg").iterdir()}
    assert names == {"instances_val2014.painted.store", "instances_val2014.store"}
    monkeypatch.setattr(coco_store, "read_annotations", lambda *args: pytest.fail("read the JSON again"))
    assert source(root).index("val").fingerprint == painted.fingerprint
    assert source(root, coco_masks="union").index("val").fingerprint == union.fingerprint
    assert source(root).kept_index("val") is not None


def test_the_rule_is_recorded() -> None:
    assert "painted" in source(Path("x")).mask_rule
    assert source(Path("x"), coco_masks="union").mask_rule.startswith("union of all instances")
    assert "/my/maps" in source(Path("x"), coco_masks="maps", label_maps="/my/maps").mask_rule


@pytest.mark.parametrize("version", ["4.10.0", "4.8.1"])
def test_an_opencv_that_paints_otherwise_is_refused(
    tmp_path: Path, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_coco(tmp_path)
    monkeypatch.setattr(cv2, "__version__", version)
    with pytest.raises(UserError, match=f"OpenCV {version} does not paint") as caught:
        source(root).index("val")
    assert "opencv-python-headless>=4.11" in caught.value.fix
    assert source(root, coco_masks="union").index("val").image_ids == (SEVEN, NINE)


def test_opencv_fills_no_further_than_the_outline(tmp_path: Path) -> None:
    """The edge from (9, 2) to (4, 12) passes (8.5, 3): 4.8 to 4.10 fill column 9 of that row."""
    coco = annotated(tmp_path, (14, 14), (DOG, [[1, 1, 9, 2, 4, 12]]))
    assert picture(coco, DOG)[3] == "..aaaaaaa....."


@pytest.mark.parametrize("shape", [[[1, 1, 9, 1, 9, float("nan")]], [[1, 1, 9, 1, 9, 1e300]], [[1, 1, 9, 1]]], ids=str)
def test_what_is_no_polygon_never_reaches_opencv(tmp_path: Path, shape: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "fillPoly", lambda *args: pytest.fail("OpenCV got it"))
    content = coco_json()
    content["annotations"][0]["segmentation"] = shape
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val2014.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"polygons that are no outline.*annotation 1: "):
        source(tmp_path).index("val")


@pytest.mark.shared
def test_real_annotations_give_exactly_the_published_pairs(shared_dir: Path, tmp_path: Path) -> None:
    facts = json.loads((shared_dir / "facts" / "published_lists.json").read_text())
    published = {int(i): classes or [] for i, classes in facts["coco_tiny_pairs"]["pairs"].items()}
    coco = source(shared_dir / "data" / "coco_tiny", year=2017, cache=str(tmp_path))
    found: dict[int, list[int]] = {}
    splits: tuple[Literal["train", "val"], ...] = ("train", "val")
    for split in splits:
        index = coco.index(split)
        found |= {int(image_id): [] for image_id in index.image_ids}
        for position in np.flatnonzero(index.pair_pixels >= 2048):
            found[int(index.image_ids[index.pair_image[position]])].append(int(index.pair_class[position]))
        content = json.loads((coco.mask_path(split)).read_text())
        for image in content["images"]:
            annotations = [
                (COCO_CATEGORY_IDS.index(a["category_id"]), a["segmentation"], a["iscrowd"])
                for a in content["annotations"]
                if a["image_id"] == image["id"]
            ]
            expected, name = plain((image["height"], image["width"]), annotations), image["file_name"][:-4]
            for label in np.unique(expected[expected > 0]).tolist():
                np.testing.assert_array_equal(coco.mask(split, name, label - 1), expected == label)
    assert found == published
    assert sum(map(len, found.values())) == 413
