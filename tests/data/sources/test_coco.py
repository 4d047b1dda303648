from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as rle
from trees import box, coco_categories, coco_json, make_coco, run_lengths, write_jpeg

from fsseg.config.schema import CocoConfig, ProtocolConfig
from fsseg.data.folds import COCO_CLASSES
from fsseg.data.lists import train_lists, val_lists
from fsseg.data.sources import coco_store
from fsseg.data.sources.coco import CocoSource
from fsseg.errors import UserError

# pycocotools' own use of numpy 2, at every decoded mask
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")

SEVEN, NINE = "COCO_val2014_000000000007", "COCO_val2014_000000000009"
PERSON, DOG, TOOTHBRUSH = 0, 16, 79


def source(root: Path, coco_masks: str = "union", **changes) -> CocoSource:
    return CocoSource(CocoConfig(name="coco20i", root=str(root), coco_masks=coco_masks, **changes))


def with_annotations(root: Path, content: Any) -> CocoSource:
    """A tree whose val annotations are `content`: JSON, or text as it stands."""
    path = root / "annotations" / "instances_val2014.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return source(root)


def test_index_counts_the_union_of_instances_without_crowds(tmp_path: Path) -> None:
    index = source(make_coco(tmp_path)).index("val")
    assert index.image_ids == (SEVEN, NINE)  # by COCO id, whatever the order in the file
    assert index.pair_image.tolist() == [0, 0, 1]
    assert index.pair_class.tolist() == [PERSON, DOG, TOOTHBRUSH]
    # Two 10x10 people share 5x5 pixels; the toothbrush is in two pieces of 3x2 and 4x4.
    assert index.pair_pixels.tolist() == [175, 24, 22]


def test_an_image_with_only_a_crowd_of_a_novel_class_is_dropped_from_training_but_never_listed(tmp_path: Path) -> None:
    """Images 1, 2, 3 show a dog each; in 3 there is also a crowd of people, and not one person by himself."""
    crowd = np.zeros((100, 100), np.uint8)
    crowd[80:, 80:] = 1
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 100, "width": 100} for i in (1, 2, 3)],
        "annotations": [
            *({"id": i, "image_id": i, "category_id": 18, "iscrowd": 0, "segmentation": box(0, 0, 60, 60)}
              for i in (1, 2, 3)),
            {"id": 4, "image_id": 3, "category_id": 1, "iscrowd": 1, "segmentation": run_lengths(crowd)},
        ],
        "categories": coco_categories(),
    }  # fmt: skip
    index = with_annotations(tmp_path, content).index("val")
    assert index.pair_class.tolist() == [DOG, DOG, PERSON, DOG]
    assert index.pair_pixels.tolist() == [3600, 3600, 0, 3600]
    for min_pixels in (0, 2048):
        lists = {
            rule: train_lists(
                index, (PERSON,), ProtocolConfig("p", novel_in_training=rule, min_pixels=min_pixels), 1, COCO_CLASSES
            ).candidates
            for rule in ("drop", "background")
        }
        assert lists == {"drop": {DOG: ("1", "2")}, "background": {DOG: ("1", "2", "3")}}
        with pytest.raises(UserError, match="no novel class"):
            val_lists(
                index, (PERSON,), ProtocolConfig("p", min_pixels=min_pixels, repeat_support=True), 1, COCO_CLASSES
            )


def test_crowd_is_ignored_where_no_instance_of_the_class_lies(tmp_path: Path) -> None:
    coco = source(make_coco(tmp_path))
    expected = np.zeros((20, 30), np.uint8)
    expected[0:10, 8:20] = 255
    expected[0:10, 0:10] = 1
    expected[5:15, 5:15] = 1
    np.testing.assert_array_equal(coco.mask("val", SEVEN, PERSON), expected)


def test_crowd_of_another_class_is_background(tmp_path: Path) -> None:
    expected = np.zeros((20, 30), np.uint8)
    expected[12:16, 12:18] = 1
    coco = source(make_coco(tmp_path))
    np.testing.assert_array_equal(coco.mask("val", SEVEN, DOG), expected)
    assert not coco.mask("val", NINE, DOG).any()


def test_ignored_classes_win_even_over_the_class_itself(tmp_path: Path) -> None:
    mask = source(make_coco(tmp_path)).mask("val", SEVEN, DOG, ignore_classes=[PERSON, DOG])
    expected = np.zeros((20, 30), np.uint8)
    expected[12:16, 12:18] = 1
    expected[0:10, 8:20] = 255  # the crowd of people
    expected[0:10, 0:10] = 255
    expected[5:15, 5:15] = 255  # person 2, who covers a corner of the dog
    np.testing.assert_array_equal(mask, expected)


def test_instance_order_does_not_matter(tmp_path: Path) -> None:
    content = coco_json()
    forward = with_annotations(tmp_path / "a", content)
    content["annotations"].reverse()
    backward = with_annotations(tmp_path / "b", content)
    assert forward.index("val").fingerprint == backward.index("val").fingerprint
    np.testing.assert_array_equal(forward.mask("val", SEVEN, PERSON), backward.mask("val", SEVEN, PERSON))


def test_folds_interleave_unless_told_otherwise(tmp_path: Path) -> None:
    assert source(tmp_path).novel_classes(3)[:3] == (3, 7, 11)
    assert source(tmp_path, contiguous_folds=True).novel_classes(3) == tuple(range(60, 80))


def test_json_is_read_once_and_again_when_it_changes(tmp_path: Path, monkeypatch) -> None:
    reads: list[Path] = []
    real = coco_store.read_annotations
    monkeypatch.setattr(
        coco_store, "read_annotations", lambda path, rule, _=None: reads.append(path) or real(path, rule)
    )
    root = make_coco(tmp_path)
    before = source(root).index("val").fingerprint
    assert source(root).index("val").fingerprint == before
    assert len(reads) == 1
    content = coco_json()
    del content["annotations"][1]
    changed = with_annotations(root, content)
    assert changed.index("val").pair_pixels.tolist() == [100, 24, 22]
    assert len(reads) == 2
    os.utime(root / "annotations" / "instances_val2014.json", ns=(0, 0))
    source(root).index("val")
    assert len(reads) == 3


def test_store_cut_short_is_made_again(tmp_path: Path) -> None:
    root = make_coco(tmp_path)
    before = source(root).index("val").fingerprint
    store = root / ".fsseg" / "instances_val2014.store"
    store.write_bytes(store.read_bytes()[:-70])
    assert source(root).index("val").fingerprint == before


def test_pickled_source_is_small_and_reads_the_store_not_the_json(tmp_path: Path, monkeypatch) -> None:
    coco = source(make_coco(tmp_path))
    coco.index("val")
    expected = coco.mask("val", SEVEN, PERSON)
    copy = pickle.loads(pickle.dumps(coco))
    assert len(pickle.dumps(coco)) < 3000
    monkeypatch.setattr(coco_store, "read_annotations", lambda path, rule, _=None: pytest.fail("read the JSON again"))
    np.testing.assert_array_equal(copy.mask("val", SEVEN, PERSON), expected)


def test_image_of_another_size_than_annotated_is_refused(tmp_path: Path) -> None:
    root = make_coco(tmp_path)
    assert source(root).image("val", SEVEN).shape == (20, 30, 3)
    write_jpeg(root / "val2014" / f"{SEVEN}.jpg", (10, 15))
    with pytest.raises(UserError, match=rf"{SEVEN}\.jpg is 15x10 pixels, but .*instances_val2014\.json says 30x20"):
        source(root).image("val", SEVEN)


def test_missing_images_do_not_hinder_the_index_but_the_check(tmp_path: Path) -> None:
    root = make_coco(tmp_path)
    (root / "val2014" / f"{NINE}.jpg").unlink()
    coco = source(root)
    assert len(coco.index("val").image_ids) == 2
    assert coco.missing_images("val") == [NINE]
    with pytest.raises(UserError, match=rf"missing images of the val list \(1\).*{NINE}\.jpg"):
        coco.check()
    coco.check(["train"])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("<html>moved</html>", "is not JSON"),
        ('{"images": [', "is not JSON"),
        ([1, 2], "holds a list"),
        ({"info": {}, "images": []}, "no list annotations and categories"),
        (
            {"images": [], "categories": [], "annotations": [{"id": 1, "image_id": 1, "caption": "a dog"}]},
            "have no segmentation",
        ),
    ],
)
def test_json_that_is_not_coco_is_named(tmp_path: Path, content: Any, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        with_annotations(tmp_path, content).index("val")
    assert "instances_val2014.json" in caught.value.what
    assert not (tmp_path / ".fsseg").exists()


def test_every_fault_of_the_annotations_is_told_in_one_go(tmp_path: Path) -> None:
    content = coco_json()
    content["categories"][0]["name"] = "human"
    content["categories"][79]["id"] = 91
    content["images"].append(dict(content["images"][0]))
    template = content["annotations"][0]
    content["annotations"] += [
        {**template, "id": 5},
        {**template, "id": 11, "image_id": 8},
        {**template, "id": 12, "category_id": 12},
        {**template, "id": 13, "segmentation": {"size": [5, 5], "counts": [25]}},
        {**template, "id": 14, "segmentation": "gone"},
        {"id": 15},
    ]
    with pytest.raises(UserError) as caught:
        with_annotations(tmp_path, content).index("val")
    message = str(caught.value)
    for part in (
        "id 1 is 'human', not 'person'",
        "id 90 (toothbrush) is missing",
        "id 91 ('toothbrush') is none of COCO's",
        "image id 9 comes up twice",
        "annotation id 5 comes up twice",
        "annotation 11 is of image 8",
        "annotation 12 is of category 12",
        "annotation 13: [5, 5]",
        "annotation 14",
        "{'id': 15}",
    ):
        assert part in message
    assert not (tmp_path / ".fsseg").exists()


def with_segmentation(root: Path, *segmentations: Any, **changes: Any) -> CocoSource:
    """A tree with one annotation of a dog, 101 and so on, in the 30x20 image 7 for each segmentation."""
    content = coco_json()
    content["annotations"] = [
        {"id": 101 + row, "image_id": 7, "category_id": 18, "iscrowd": 0, "segmentation": shape, **changes}
        for row, shape in enumerate(segmentations)
    ]
    return with_annotations(root, content)


def runs(*counts: Any) -> dict[str, Any]:
    return {"size": [20, 30], "counts": list(counts)}


def text(counts: Any) -> dict[str, Any]:
    return {"size": [20, 30], "counts": counts}


POLYGONS, RUNS = "polygons that are no outline", "run lengths that do not cover"
UNREADABLE, SIZE = "whose segmentation cannot be read", "masks of another size"


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        # 20 x 30 = 600 pixels
        (runs(), RUNS),
        (runs(0), RUNS),
        (runs(100, 499), RUNS),
        (runs(100, 501), RUNS),
        (runs(100, 600, -100), RUNS),
        (runs(2**32, 600), RUNS),
        (runs(-1, 601), RUNS),
        (runs(10**400), RUNS),
        (runs(100.0, 500), UNREADABLE),
        (runs("600"), UNREADABLE),
        (runs(True, 599), UNREADABLE),
        (runs([600]), UNREADABLE),
        (text(None), UNREADABLE),
        (text(600), UNREADABLE),
        ({"size": [20, 30]}, UNREADABLE),
        ({"counts": [600]}, SIZE),
        ({"size": [30, 20], "counts": [600]}, SIZE),
        ({"size": 20, "counts": [600]}, SIZE),
        # of the compressed form, 600 = 18 * 32 + 24: "h" is 24 and more to come, "B" is 18 with the sign, "b0" 18
        (text(""), RUNS),
        (text("0"), RUNS),
        (text("h"), UNREADABLE),
        (text("hb"), UNREADABLE),
        (text("hb0" * 2), RUNS),
        (text("hB"), RUNS),
        (text("hb0 "), UNREADABLE),
        (text("hb0\u00e9"), UNREADABLE),
        (text("o" * 100_000), UNREADABLE),
        (None, UNREADABLE),
        ("gone", UNREADABLE),
        (7, UNREADABLE),
        ([], UNREADABLE),
        ([1, 1, 9, 1, 9, 9], POLYGONS),
        ([[]], POLYGONS),
        ([None], POLYGONS),
        (["1 1 9 1 9 9"], POLYGONS),
        ([{"x": 1}], POLYGONS),
        ([[1, 1, 9, 9]], POLYGONS),  # two points; pycocotools takes it for a box
        ([[1, 1, 9, 1, 9, 9], [1, 1, 9, 9]], POLYGONS),
        ([[1, 1, 9, 1, 9, 9, 1]], POLYGONS),
        ([[1, 1, 9, 1, 9, "9"]], POLYGONS),
        ([["1", "1", "9", "1", "9", "9"]], POLYGONS),
        ([[1, 1, 9, 1, 9, None]], POLYGONS),
        ([[1, 1, 9, 1, 9, True]], POLYGONS),
        ([[1, 1, 9, 1, 9, [9]]], POLYGONS),
        ([[float("nan"), 1, 9, 1, 9, 9]], POLYGONS),
        ([[1, 1, 9, 1, float("nan"), 9]], POLYGONS),
        ([[1, 1, 9, 1, float("inf"), 9]], POLYGONS),
        ([[1, 1, 9, 1, -float("inf"), 9]], POLYGONS),
        ([[1, 1, 9, 1, float("inf"), -float("inf")]], POLYGONS),
        ([[1, 1, 9, 1, 1e9, 9]], POLYGONS),
        ([[1, 1, 9, 1, -1e300, 9]], POLYGONS),
        ([[1, 1, 9, 1, 10**400, 9]], POLYGONS),
        ([[1, 1, 9, 1, 60.5, 9]], POLYGONS),
        ([[1, 1, 9, 1, 9, -30.5]], POLYGONS),
        ([[0, 0, 30, 20] * 80_000], POLYGONS),  # back and forth: 160,000 edges of 30 pixels are 4.8 million
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_segmentation_that_is_no_mask_of_its_image_never_reaches_pycocotools(
    tmp_path: Path, shape: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rle, "frPyObjects", lambda *args: pytest.fail("pycocotools got it"))
    monkeypatch.setattr(rle, "merge", lambda *args: pytest.fail("pycocotools got it"))
    with pytest.raises(UserError, match=rf"{kind}.*instances_val2014\.json: annotation 101: ") as caught:
        with_segmentation(tmp_path, shape).index("val")
    assert len(caught.value.what) < 400
    assert not (tmp_path / ".fsseg").exists()


def test_all_forms_of_a_sound_mask_give_that_mask(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    masks = [np.zeros((20, 30), np.uint8), np.ones((20, 30), np.uint8)]
    masks += [(random.random((20, 30)) < share).astype(np.uint8) for share in (0.02, 0.5, 0.9)]
    for number, mask in enumerate(masks):
        compressed = rle.encode(np.asfortranarray(mask))["counts"].decode()
        for form, shape in (("list", run_lengths(mask)), ("text", text(compressed))):
            found = with_segmentation(tmp_path / f"{number}{form}", shape).mask("val", SEVEN, DOG)
            np.testing.assert_array_equal(found, mask)
    # runs of no length in the middle are allowed: 40 ones, of which the first column has 20
    expected = np.zeros((20, 30), np.uint8)
    expected[:, :2] = 1
    np.testing.assert_array_equal(
        with_segmentation(tmp_path / "empty", runs(0, 10, 0, 30, 560)).mask("val", SEVEN, DOG), expected
    )


def test_a_polygon_may_leave_its_image_by_as_much_as_that_measures(tmp_path: Path) -> None:
    """It is cut off at the edge; whole numbers and floats are both read."""
    expected = np.zeros((20, 30), np.uint8)
    expected[5:, 10:] = 1
    for number, corner in enumerate((30, 60, 60.0)):
        coco = with_segmentation(tmp_path / str(number), [[10, 5, corner, 5, corner, corner, 10, corner]])
        np.testing.assert_array_equal(coco.mask("val", SEVEN, DOG), expected)


@pytest.mark.parametrize("crowd", ["0", "1", 2, None, [], 0.5])
def test_a_crowd_that_is_neither_yes_nor_no_is_named(tmp_path: Path, crowd: Any) -> None:
    with pytest.raises(UserError, match=r"iscrowd is neither 0 nor 1.*annotation 101"):
        with_segmentation(tmp_path, box(0, 0, 9, 9), iscrowd=crowd).index("val")


@pytest.mark.parametrize("key", ["id", "image_id", "category_id"])
@pytest.mark.parametrize("value", ["7", 7.0, True, None, [7], {"a": 1}])
def test_ids_that_are_no_whole_numbers_are_named(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(UserError, match="annotations without whole numbers as id, image_id and category_id"):
        with_segmentation(tmp_path, box(0, 0, 9, 9), **{key: value}).index("val")


def test_boxes_and_areas_are_not_read_and_may_be_anything(tmp_path: Path) -> None:
    expected = np.zeros((20, 30), np.uint8)
    expected[:9, :9] = 1
    for number, odd in enumerate((None, "x", [1], [float("nan")] * 4, {"a": []})):
        coco = with_segmentation(tmp_path / str(number), box(0, 0, 9, 9), bbox=odd, area=odd)
        np.testing.assert_array_equal(coco.mask("val", SEVEN, DOG), expected)


@pytest.mark.parametrize(
    "change",
    [
        {"height": 0}, {"width": -30}, {"height": 10**9}, {"height": 10_000, "width": 10_000}, {"height": 20.0},
        {"height": "20"}, {"width": True}, {"width": None}, {"width": float("inf")}, {"id": "7"}, {"id": 7.0},
        {"id": True}, {"id": [7]}, {"file_name": ""}, {"file_name": ".."}, {"file_name": "../a.jpg"}, {"file_name": 7},
        {"file_name": "a\nb.jpg"}, {"file_name": "a\0.jpg"}, {"file_name": "\ud800.jpg"}, {"file_name": "a" * 300},
        {"file_name": None},
    ],
    ids=str,
)  # fmt: skip
def test_an_odd_image_entry_is_named(tmp_path: Path, change: dict[str, Any]) -> None:
    content = coco_json()
    content["images"][1] |= change
    with pytest.raises(UserError, match="image entries") as caught:
        with_annotations(tmp_path, content).index("val")
    assert not (tmp_path / ".fsseg").exists()
    assert str(caught.value).isascii()


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("odd", [None, 1, "x", [], {}, {"id": []}, {"id": {}, "name": 1}, nested(300)], ids=str)
@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_entries_of_any_kind_are_named(tmp_path: Path, key: str, odd: Any) -> None:
    content = coco_json()
    content[key].append(odd)
    with pytest.raises(UserError, match=r"instances_val2014\.json") as caught:
        with_annotations(tmp_path, content).index("val")
    assert len(str(caught.value)) < 600


def test_faults_of_segmentations_are_told_with_all_the_others(tmp_path: Path) -> None:
    shapes = [runs(5), box(0, 0, 9, 9), [[1, 1]], runs(-1, 601), "x", [[1, 1, 9, 1, float("nan"), 9]]]
    with pytest.raises(UserError) as caught:
        with_segmentation(tmp_path, *shapes).index("val")
    for number in (101, 103, 104, 105, 106):
        assert f"annotation {number}: " in str(caught.value)
    assert "annotation 102" not in str(caught.value)


def test_masks_made_before_the_annotations_were_checked_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coco = with_segmentation(tmp_path, box(0, 0, 9, 9))
    monkeypatch.setitem(coco_store.RULES, "union", coco_store.RULES["union"]._replace(version=1))
    coco.index("val")
    monkeypatch.undo()
    reads: list[Path] = []
    real: Callable[[Path, str], Any] = coco_store.read_annotations
    monkeypatch.setattr(
        coco_store, "read_annotations", lambda path, rule, _=None: reads.append(path) or real(path, rule)
    )
    source(tmp_path).index("val")
    assert len(reads) == 1


def test_a_pipe_in_place_of_the_annotations_is_named_and_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    os.mkfifo(tmp_path / "annotations" / "instances_val2014.json")
    with pytest.raises(UserError, match=r"instances_val2014\.json cannot be read: no regular file"):
        source(tmp_path).index("val")


def test_folder_check_names_what_is_missing_and_the_other_year(tmp_path: Path) -> None:
    def check(root: Path, year: int = 2014) -> list[UserError]:
        return CocoSource.check_folder(CocoConfig(name="coco20i", root=str(root), year=year))

    root = make_coco(tmp_path / "c", 2017)
    (fault,) = check(root)
    assert "lacks annotations/instances_train2014.json" in fault.what
    assert "dataset.year=2017" in fault.what
    assert "fsseg prepare dataset=coco20i" in fault.fix
    assert check(root, 2017) == []
    assert "there is no folder" in check(tmp_path / "none")[0].what
    (root / "images").mkdir()
    (root / "train2017").rename(root / "images" / "train2017")
    assert check(root, 2017) == []


@pytest.mark.shared
@pytest.mark.parametrize("split", ["train", "val"])
def test_real_masks_equal_those_of_pycocotools_itself(shared_dir, tmp_path: Path, split: Any, capsys) -> None:
    from pycocotools.coco import COCO

    root = shared_dir / "data" / "coco_tiny"
    coco = source(root, year=2017, cache=str(tmp_path))
    index = coco.index(split)
    reference = COCO(str(root / "annotations" / f"instances_{split}2017.json"))
    categories = sorted(reference.getCatIds())

    found = {
        (index.image_ids[i], int(c)): int(p) for i, c, p in zip(index.pair_image, index.pair_class, index.pair_pixels)
    }
    assert len(index.image_ids) == len(reference.getImgIds())
    num_crowds = 0
    for image in reference.loadImgs(reference.getImgIds()):
        name = image["file_name"].removesuffix(".jpg")
        assert coco.image(split, name).shape[:2] == (image["height"], image["width"])
        for class_id, category in enumerate(categories):
            expected = np.zeros((image["height"], image["width"]), np.uint8)
            annotations = reference.loadAnns(reference.getAnnIds(imgIds=[image["id"]], catIds=[category]))
            for annotation in sorted(annotations, key=lambda a: -a["iscrowd"]):
                expected[reference.annToMask(annotation) == 1] = 255 if annotation["iscrowd"] else 1
                num_crowds += annotation["iscrowd"]
            assert found.pop((name, class_id), 0) == int((expected == 1).sum())
            if annotations:
                np.testing.assert_array_equal(coco.mask(split, name, class_id), expected)
    assert not found
    assert num_crowds > 0
