from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as rle
from trees import box, coco_json, run_lengths, write_jpeg

from fsseg.config.schema import CocoJsonConfig
from fsseg.data.setup.verify import verify
from fsseg.data.sources import coco_store
from fsseg.data.sources.coco_json import CocoJsonSource
from fsseg.errors import UserError

# pycocotools' own use of numpy 2, at every decoded mask
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")

BLOB = np.zeros((20, 30), np.uint8)
BLOB[3:9, 4:25] = 1


def compressed(mask: NDArray[np.uint8]) -> dict[str, Any]:
    code = rle.encode(np.asfortranarray(mask))
    return {"size": list(mask.shape), "counts": code["counts"].decode()}


def export() -> dict[str, Any]:
    """As tools write it: ids of any kind, sub-folders, a category that is only a heading, all three kinds of masks."""
    return {
        "images": [
            {"id": 0, "file_name": "b/2.jpg", "height": 20, "width": 30},
            {"id": "x", "file_name": "a\\1.rf.9.jpg", "height": 20, "width": 30},
            {"id": 5, "file_name": "bare.jpg", "height": 20, "width": 30},
        ],
        "categories": [
            {"id": 0, "name": "animals", "supercategory": "none"},
            {"id": -7, "name": "zebra", "supercategory": "animals"},
            {"id": "o", "name": "okapi"},
            {"id": 1000, "name": "ant"},
        ],
        "annotations": [
            {"id": 0, "image_id": 0, "category_id": -7, "segmentation": box(0, 0, 10, 10), "area": 100, "bbox": []},
            {"id": 1, "image_id": 0, "category_id": -7, "iscrowd": 0, "segmentation": run_lengths(BLOB)},
            {"id": 2, "image_id": "x", "category_id": "o", "segmentation": compressed(BLOB)},
            {"id": 3, "image_id": "x", "category_id": 1000, "iscrowd": 1, "segmentation": run_lengths(1 - BLOB)},
        ],
    }


def write(root: Path, content: dict[str, Any]) -> Path:
    (root / "ann").mkdir(parents=True, exist_ok=True)
    (root / "ann" / "a.json").write_text(json.dumps(content))
    for image in content["images"]:
        if isinstance(name := image.get("file_name"), str):
            write_jpeg(root / "img" / name.replace("\\", "/"), (20, 30))
    return root


def source(root: Path, **changes: Any) -> CocoJsonSource:
    settings = {"image_size": 81, "val_share": 1.0, **changes}
    places = {"root": str(root), "annotations": str(root / "ann" / "a.json"), "images": str(root / "img")}
    return CocoJsonSource(CocoJsonConfig(name="coco_json", **places, **settings))


def test_what_tools_export_is_read(tmp_path: Path) -> None:
    own = source(write(tmp_path, export()))
    own.check(["val"])
    index = own.index("val")
    assert own.classes == ("ant", "okapi", "zebra")  # by name; the heading has no objects
    assert index.image_ids == ("a/1.rf.9", "b/2", "bare")
    pairs = zip(index.pair_image.tolist(), index.pair_class.tolist(), index.pair_pixels.tolist())
    # by hand: the box of 100 pixels and the blob of 6 x 21 share rows 3 to 8 and columns 4 to 9
    assert list(pairs) == [(0, 0, 0), (0, 1, 126), (1, 2, 100 + 126 - 36)]
    np.testing.assert_array_equal(own.mask("val", "a/1.rf.9", 1), BLOB)
    np.testing.assert_array_equal(own.mask("val", "a/1.rf.9", 0), np.where(BLOB, 0, 255))  # a crowd alone
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(own)).mask("val", "b/2", 2)[:3, :10], 1)
    text = verify(own).text()
    assert "class ant has crowds alone (iscrowd=1), which are ignored" in text
    assert "1 of 3 images without an annotation" in text


def test_crowds_are_objects_where_a_tool_marks_its_masks_so(tmp_path: Path) -> None:
    own = source(write(tmp_path, export()), crowds="object")
    assert own.index("val").pair_pixels.tolist() == [600 - 126, 126, 190]
    np.testing.assert_array_equal(own.mask("val", "a/1.rf.9", 0), 1 - BLOB)


def test_a_crowd_of_run_lengths_by_hand(tmp_path: Path) -> None:
    """Run lengths go down the columns of 20 pixels: none of 0, then columns 0 and 1, then nothing. The box of the
    same class covers rows 0 to 9 of columns 1 to 4, so 10 pixels of column 1 are of both."""
    content = export()
    content["annotations"] = [
        {"id": 1, "image_id": 0, "category_id": -7, "iscrowd": 1,
         "segmentation": {"size": [20, 30], "counts": [0, 40, 560]}},
        {"id": 2, "image_id": 0, "category_id": -7, "iscrowd": 0, "segmentation": box(1, 0, 4, 10)},
    ]  # fmt: skip
    root = write(tmp_path, content)
    crowd, both = np.zeros((20, 30), np.uint8), np.zeros((20, 30), np.uint8)
    crowd[:, :2], crowd[:10, 1:5] = 255, 1
    both[:, :2], both[:10, 1:5] = 1, 1
    for crowds, expected in (("ignore", crowd), ("object", both)):
        own = source(root, crowds=crowds)
        assert own.index("val").pair_pixels.tolist() == [40 if crowds == "ignore" else 70]
        np.testing.assert_array_equal(own.mask("val", "b/2", 0), expected)


def test_an_index_is_kept_and_made_again_when_the_file_changes(tmp_path: Path) -> None:
    root = write(tmp_path, export())
    assert source(root).kept_index("val") is None
    made = source(root).index("val")
    kept = source(root).kept_index("val")
    assert kept is not None
    assert kept.fingerprint == made.fingerprint
    content = export()
    content["annotations"].pop()
    write(root, content)
    assert source(root).classes == ("okapi", "zebra")
    assert source(root).kept_index("val") is None


def faulty() -> dict[str, Any]:
    content = export()
    content["images"].append({"id": 9, "file_name": "../up.jpg", "height": 20, "width": 30})
    content["images"].append({"id": 10, "file_name": "b/2.jpg", "height": 20, "width": 30})
    content["annotations"] += [
        {"id": 10, "image_id": 0, "category_id": 1, "segmentation": box(0, 0, 3, 3)},
        {"id": 11, "image_id": 0, "category_id": -7, "segmentation": []},
        {"id": 12, "image_id": 77, "category_id": -7, "segmentation": box(0, 0, 3, 3)},
        {"id": 13, "image_id": 0, "category_id": -7, "segmentation": {"size": [20, 30], "counts": [5]}},
        {"id": 14, "image_id": 0, "category_id": -7, "segmentation": [[1, 1, 2, 2]]},
    ]
    return content


def test_every_fault_of_an_export_is_told_in_one_go_and_once(tmp_path: Path) -> None:
    root = tmp_path
    write(root, {**faulty(), "images": []})
    (root / "ann" / "a.json").write_text(json.dumps(faulty()))
    with pytest.raises(UserError) as error:
        source(root, val_share=0.5).check()
    text = str(error.value)
    for told in (
        "image 9: '../up.jpg'", "images 0 and 10 are both called b/2",
        "annotation 10 is of category 1, which is not listed",
        "annotation 11: there is none: a box alone", "annotation 12 is of image 77", "annotation 13: 5 pixels of 600",
        "annotation 14: 4 numbers", "export the file again with polygons or masks (segmentation)",
    ):  # fmt: skip
        assert text.count(told) >= 1, told
    assert text.count("annotation 11:") == 1
    assert "fsseg prepare" not in text


def test_a_faulty_export_is_read_once_and_its_settings_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(coco_store.log, "info", lambda text, *parts: told.append(text % parts))
    write(tmp_path, {**faulty(), "images": []})
    (tmp_path / "ann" / "a.json").write_text(json.dumps(faulty()))
    report = verify(source(tmp_path, novel=["lion"]))
    assert "annotation 14: 4 numbers" in report.text()
    assert "dataset.novel: there is no class lion" in report.text()
    assert [text for text in told if text.startswith("reading ")] == [f"reading {tmp_path / 'ann' / 'a.json'} (0 MB)"]


# As Roboflow exports: images beside each file, ids from 0 in each, and an entry 0 that is the mere name of the project.
# Class ids differ between the two files. Each value: image -> category -> box.
TRAIN = {"a.rf.1.jpg": {"zebra": box(0, 0, 10, 10)}, "b.rf.2.jpg": {"ant": box(2, 2, 4, 6), "zebra": box(9, 9, 5, 5)}}
VALID = {"c.rf.3.jpg": {"okapi": box(1, 1, 12, 8)}, "a.rf.1.jpg": {"zebra": box(0, 0, 3, 7)}}


def roboflow(root: Path, part: str, shown: dict[str, Any], categories: list[str]) -> Path:
    names = list(shown)
    annotations = [(i, c, s) for i, name in enumerate(names) for c, s in shown[name].items()]
    content = {
        "images": [{"id": i, "file_name": name, "height": 20, "width": 30} for i, name in enumerate(names)],
        "categories": [{"id": 0, "name": "safari", "supercategory": "none"}]
        + [{"id": i, "name": name, "supercategory": "safari"} for i, name in enumerate(categories, 1)],
        "annotations": [
            {"id": n, "image_id": i, "category_id": categories.index(c) + 1, "segmentation": s, "iscrowd": 0}
            for n, (i, c, s) in enumerate(annotations)
        ],
    }
    for number, name in enumerate(names):
        write_jpeg(root / part / name, (20, 30), seed=number + 10 * (part == "valid"))
    path = root / part / "_annotations.coco.json"
    path.write_text(json.dumps(content))
    return path


def both_parts_config(root: Path, **changes: Any) -> CocoJsonConfig:
    files = {"annotations": root / "train" / "_annotations.coco.json",
             "val_annotations": root / "valid" / "_annotations.coco.json"}  # fmt: skip
    settings: Any = {"image_size": 81, "num_folds": 1, **{key: str(path) for key, path in files.items()}, **changes}
    return CocoJsonConfig(name="coco_json", root=str(root), **settings)


def both_parts(root: Path, **changes: Any) -> CocoJsonSource:
    cfg = both_parts_config(root, **changes)
    assert CocoJsonSource.check_folder(cfg) == []
    return CocoJsonSource(cfg)


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    roboflow(tmp_path, "train", TRAIN, ["ant", "okapi", "zebra"])
    roboflow(tmp_path, "valid", VALID, ["zebra", "okapi", "ant"])
    return tmp_path


def test_two_files_are_the_two_sides_and_classes_go_by_name(exported: Path) -> None:
    """Of two images of one name each stays what it is."""
    own = both_parts(exported)
    own.check()
    assert own.classes == ("ant", "okapi", "zebra")
    found = {}
    for split in ("train", "val"):
        index = own.index(split)  # type: ignore[arg-type]
        pairs = zip(index.pair_image.tolist(), index.pair_class.tolist(), index.pair_pixels.tolist())
        found[split] = {(index.image_ids[i], own.classes[c]): n for i, c, n in pairs}
    assert found == {
        "train": {("train/a.rf.1", "zebra"): 100, ("train/b.rf.2", "ant"): 24, ("train/b.rf.2", "zebra"): 25},
        "val": {("valid/a.rf.1", "zebra"): 21, ("valid/c.rf.3", "okapi"): 96},
    }
    assert own.image_path("val", "valid/a.rf.1") == exported / "valid" / "a.rf.1.jpg"
    assert own.mask_path("val", "valid/a.rf.1") == exported / "valid" / "_annotations.coco.json"
    assert own.mask("val", "valid/c.rf.3", 1)[1:9, 1:13].all()
    assert own.list_origin("train").endswith("train/_annotations.coco.json")
    assert verify(own).faults == []
    again = both_parts(exported)
    kept = again.kept_index("val")
    assert kept is not None
    assert kept.fingerprint == own.index("val").fingerprint
    roboflow(exported, "valid", {"c.rf.3.jpg": VALID["c.rf.3.jpg"]}, ["zebra", "okapi", "ant"])
    assert both_parts(exported).kept_index("val") is None


def test_the_same_picture_on_both_sides_is_a_fault_whatever_it_is_called(exported: Path) -> None:
    shutil.copy(exported / "train" / "b.rf.2.jpg", exported / "valid" / "c.rf.3.jpg")
    with pytest.raises(UserError, match=r"trained on and evaluated \(1\): .*valid/c\.rf\.3\.jpg.* is the same as "
                       r".*train/b\.rf\.2\.jpg"):  # fmt: skip
        both_parts(exported).check()


def test_one_folder_of_images_and_an_image_in_both_files(exported: Path) -> None:
    for part in ("train", "valid"):
        for path in (exported / part).glob("*.jpg"):
            write_jpeg(exported / "all" / path.name, (20, 30))
    with pytest.raises(UserError, match=r"images 0 of .*train/_ann.* and 1 of .*valid/_ann.* are both called a\.rf\.1"):
        both_parts(exported, images=str(exported / "all")).check()


def test_two_files_that_do_not_agree_are_told(exported: Path) -> None:
    roboflow(exported, "valid", {"c.rf.3.jpg": {"Zebra": box(0, 0, 3, 7)}}, ["Zebra", "ant", "okapi"])
    cfg = both_parts_config(exported)
    (fault,) = CocoJsonSource.check_folder(cfg)
    assert fault.what == f"{cfg.annotations} has objects of zebra, which {cfg.val_annotations} does not list"
    assert fault.fix == "export both files with the same categories, spelled alike"
    roboflow(exported, "valid", {"c.rf.3.jpg": {"zebra": box(0, 0, 3, 7)}}, ["zebra", "ant", "okapi"])
    cfg.val_list = "mine.txt"
    assert "both say which images are evaluated" in CocoJsonSource.check_folder(cfg)[0].what
    cfg.val_annotations, cfg.val_list = str(exported / "none.json"), None
    assert CocoJsonSource.check_folder(cfg)[0].what.startswith(
        f"dataset.val_annotations={exported}/none.json: there is no"
    )


def test_images_lie_in_a_folder_beside_the_file_or_beside_it(exported: Path) -> None:
    """One file alone, without dataset.images."""
    alone_config = both_parts_config(exported, val_annotations=None, val_share=1.0)
    alone = CocoJsonSource(alone_config)
    alone.check(["val"])
    assert alone.index("val").image_ids == ("a.rf.1", "b.rf.2")
    (exported / "train" / "images").mkdir()
    with pytest.raises(UserError, match=r"train/images/a\.rf\.1\.jpg"):
        CocoJsonSource(alone_config).check(["val"])


CATEGORIES = {
    "class named twice: zebra\n": {"id": "o", "name": "zebra"},
    "class named twice: Zebra and zebra": {"id": "o", "name": "Zebra"},
    "id -7 comes up twice": {"id": -7, "name": "okapi"},
    "has no id and name": {"id": "o", "name": ""},
}


@pytest.mark.parametrize("told", CATEGORIES)
def test_categories_that_cannot_be_meant(told: str, tmp_path: Path) -> None:
    content = export()
    content["categories"][2] = CATEGORIES[told]
    with pytest.raises(UserError, match=told):
        source(write(tmp_path, content))


def test_places_that_are_none_are_told_by_their_keys(tmp_path: Path) -> None:
    cfg = CocoJsonConfig(name="coco_json", root="r", annotations=str(tmp_path / "a.json"), images="nowhere")
    file, folder = CocoJsonSource.check_folder(cfg)
    assert file.what.startswith("dataset.annotations=")
    assert folder.what.startswith("dataset.images=nowhere: there is no folder")
    root = write(tmp_path, export())
    (root / "img" / "b" / "2.jpg").unlink()
    with pytest.raises(UserError, match=r"missing images of the val list \(1\): .*b/2\.jpg") as error:
        source(root).check(["val"])
    assert "dataset.images" in error.value.fix
    (root / "ann" / "a.json").write_text("[1]")
    with pytest.raises(UserError, match="it holds a list, not an object"):
        source(root)


def test_an_export_of_coco_itself_has_the_masks_of_the_union(tmp_path: Path) -> None:
    """Two people that overlap, and a crowd of them: by hand in the tests of `coco20i`, 175 pixels of two squares."""
    own = source(write(tmp_path, coco_json()))
    people = own.classes.index("person")
    mask = own.mask("val", "COCO_val2014_000000000007", people)
    assert (mask == 1).sum() == 175
    assert (mask == 255).sum() == 120 - (mask[0:10, 8:20] == 1).sum()


@pytest.mark.shared
def test_real_annotations_exported_anew_give_the_masks_of_pycocotools(shared_dir: Path, tmp_path: Path) -> None:
    """Polygons, and the same as run lengths, compressed or not, under other ids: all as pycocotools decodes them."""
    folder = shared_dir / "data" / "coco_tiny"
    content = json.loads((folder / "annotations" / "instances_val2017.json").read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    names = {image["id"]: Path(image["file_name"]).stem for image in content["images"]}
    category = {entry["id"]: entry["name"] for entry in content["categories"]}
    truth: dict[tuple[str, str], dict[str, NDArray[np.bool_]]] = {}
    for number, annotation in enumerate(content["annotations"]):
        height, width = sizes[annotation["image_id"]]
        shape = annotation["segmentation"]
        code = rle.frPyObjects(shape, height, width)
        mask = rle.decode(rle.merge(code) if isinstance(code, list) else code)
        pair = names[annotation["image_id"]], category[annotation["category_id"]]
        kinds = truth.setdefault(pair, {"object": np.zeros(mask.shape, bool), "crowd": np.zeros(mask.shape, bool)})
        kinds["crowd" if annotation["iscrowd"] else "object"] |= mask > 0
        if number % 3 and not annotation["iscrowd"]:
            annotation["segmentation"] = compressed(mask) if number % 3 == 1 else run_lengths(mask)
        annotation["category_id"] = 1000 - annotation["category_id"]
    for entry in content["categories"]:
        entry["id"] = 1000 - entry["id"]
    (tmp_path / "a.json").write_text(json.dumps(content))
    images = str(folder / "val2017")
    own = CocoJsonSource(
        CocoJsonConfig(
            "coco_json", "r", image_size=81, val_share=1.0, annotations=str(tmp_path / "a.json"), images=images
        )
    )
    assert set(own.classes) == {name for _, name in truth}
    index = own.index("val")
    pairs = {(index.image_ids[i], own.classes[c]) for i, c in zip(index.pair_image.tolist(), index.pair_class.tolist())}
    assert pairs == set(truth)
    for (image_id, name), kinds in truth.items():
        mask = own.mask("val", image_id, own.classes.index(name))
        np.testing.assert_array_equal(mask == 1, kinds["object"])
        np.testing.assert_array_equal(mask == 255, kinds["crowd"] & ~kinds["object"])
