"""Label PNGs that people already have: taken as they are, without any annotations."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from trees import labels_of, make_coco, write_jpeg, write_list

from fsseg.config.schema import CocoConfig
from fsseg.data.setup.verify import verify
from fsseg.data.source import SPLITS
from fsseg.data.sources.coco import CocoSource
from fsseg.errors import UserError


def config(root: Path, **changes: Any) -> CocoConfig:
    return CocoConfig(name="coco20i", root=str(root), coco_masks="maps", **changes)


def source(root: Path, **changes: Any) -> CocoSource:
    return CocoSource(config(root, **changes))


def write_map(folder: Path, name: str, labels: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels).save(folder / f"{name}.png")  # grey


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """HSNet's layout: annotations/{train,val}2014/*.png beside the images; no JSON. 40 x 50 pixels."""
    for split in SPLITS:
        for number, labels in {
            2: labels_of((80, 30), boundary=7),
            1: labels_of((1, 10), (17, 20)),
            3: labels_of(),
        }.items():
            write_map(tmp_path / "annotations" / f"{split}2014", f"COCO_{split}2014_{number}", labels)
            write_jpeg(tmp_path / f"{split}2014" / f"COCO_{split}2014_{number}.jpg")
    return tmp_path


ONE, TWO, THREE = (f"COCO_val2014_{number}" for number in (1, 2, 3))


def test_maps_are_read_as_they_are_in_the_order_of_their_names(root: Path) -> None:
    coco = source(root)
    coco.check()
    index = coco.index("val")
    assert index.image_ids == (ONE, TWO, THREE)
    assert index.pair_image.tolist() == [0, 0, 1]
    assert index.pair_class.tolist() == [0, 16, 79]
    assert index.pair_pixels.tolist() == [10, 20, 30]
    mask = coco.mask("val", TWO, 79)
    assert [(mask == v).sum() for v in (0, 1, 255)] == [2000 - 37, 30, 7]
    assert (coco.mask("val", ONE, 0, ignore_classes=[16, 0]) == 255).sum() == 20
    assert coco.image("val", ONE).shape == (40, 50, 3)
    assert coco.list_origin("val") == str(root / "annotations" / "val2014")
    assert coco.mask_path("val", ONE) == root / "annotations" / "val2014" / f"{ONE}.png"
    assert coco.kept_index("val").fingerprint == index.fingerprint  # type: ignore[union-attr]
    copy = pickle.loads(pickle.dumps(coco))
    np.testing.assert_array_equal(copy.mask("val", TWO, 79), mask)


def test_maps_in_another_folder_are_recorded_with_it(root: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "my maps"
    (root / "annotations").rename(elsewhere)
    coco = source(root, label_maps=str(elsewhere))
    assert coco.index("val").pair_pixels.tolist() == [10, 20, 30]
    assert str(elsewhere) in coco.mask_rule
    assert CocoSource.check_folder(config(root, label_maps=str(elsewhere))) == []
    [fault] = CocoSource.check_folder(config(root, label_maps=str(tmp_path / "none")))
    assert f"none: there is no folder {tmp_path / 'none' / 'train2014'} or " in fault.what
    assert fault.what.startswith("dataset.label_maps=")
    assert "lacks annotations/train2014, annotations/val2014" in CocoSource.check_folder(config(root))[0].what
    with pytest.raises(UserError, match=r"no label maps in .*annotations/val2014"):
        source(root).index("val")


def test_a_list_takes_some_of_the_maps_in_its_order(root: Path) -> None:
    write_map(root / "annotations" / "val2014", "odd", labels_of((81, 5)))  # not listed, not looked at
    write_list(root / "my.txt", [f"val2014/{TWO}.jpg annotations/val2014/{TWO}.png", ONE])
    coco = source(root, val_list=str(root / "my.txt"))
    index = coco.index("val")
    assert index.image_ids == (TWO, ONE)
    assert index.pair_class.tolist() == [79, 0, 16]
    write_list(root / "my.txt", [TWO, "COCO_val2014_4"])
    with pytest.raises(UserError, match=r"COCO_val2014_4 is not in .*annotations/val2014"):
        source(root, val_list=str(root / "my.txt")).index("val")


def test_every_fault_of_the_maps_is_named(root: Path) -> None:
    folder = root / "annotations" / "val2014"
    write_map(folder, ONE, labels_of((90, 5), (81, 3), (1, 4)))
    (folder / f"{TWO}.png").write_bytes(b"nonsense")
    write_map(folder, THREE, labels_of(size=(30, 50)))
    (root / "train2014" / "COCO_train2014_1.jpg").unlink()
    report = verify(source(root))
    told = {(fault.kind, Path(fault.path).name) for fault in report.faults}
    assert told == {
        ("unknown class numbers in masks", f"{ONE}.png"),
        ("unreadable masks", f"{TWO}.png"),
        ("images of another size than their masks", f"{THREE}.jpg"),
    }
    assert "holds 81, 90; classes are 1 to 80, 0 is background, 255 ignore" in report.text()
    assert [Path(path).name for path in report.missing_images["train"]] == ["COCO_train2014_1.jpg"]
    with pytest.raises(UserError, match=r"COCO_val2014_3\.jpg is 50x40 pixels, but .*COCO_val2014_3\.png says 50x30"):
        source(root).image("val", THREE)


def test_maps_of_2017_are_not_the_standard_benchmark(root: Path) -> None:
    for split in SPLITS:
        (root / f"{split}2014").rename(root / f"{split}2017")
        (root / "annotations" / f"{split}2014").rename(root / "annotations" / f"{split}2017")
    report = verify(source(root, year=2017))
    assert report.ready
    assert not report.standard
    assert "not the standard benchmark: the published lists are of COCO 2014, not 2017" in report.text()


def test_a_second_scan_reads_no_map(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsseg.data import workers

    first = source(root).index("val").fingerprint
    monkeypatch.setitem(workers.TASKS, "mask", lambda path: pytest.fail(f"{path} read again"))
    assert source(root).index("val").fingerprint == first


def test_only_images_are_fetched_for_those_who_have_maps(tmp_path: Path) -> None:
    names = [part.archive.name for part in CocoSource.parts(config(tmp_path))]
    assert names == ["train2014.zip", "val2014.zip"]


def test_painted_maps_written_out_and_read_again_are_the_same_data(tmp_path: Path) -> None:
    coco = CocoSource(CocoConfig(name="coco20i", root=str(make_coco(tmp_path))))
    for split in SPLITS:
        for image_id in coco.index(split).image_ids:
            labels = sum(coco.mask(split, image_id, c) * (c + 1) for c in range(80))
            write_map(tmp_path / "annotations" / f"{split}2014", image_id, np.asarray(labels, dtype=np.uint8))
    for split in SPLITS:
        assert source(tmp_path).index(split).fingerprint == coco.index(split).fingerprint
