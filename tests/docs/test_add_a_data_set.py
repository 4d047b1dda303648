"""docs/add-a-data-set.md, done as it says: both data sets are verified, trained on, scored, and refused when broken."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from runs import SMALL

from fsseg.data.registry import build_source
from fsseg.data.setup.verify import verify
from fsseg.data.source import Source
from fsseg.errors import UserError

SIZE, PER_CLASS = 40, 6


def picture(class_id: int, number: int) -> tuple[Image.Image, np.ndarray]:
    """A square in the colour of its class on grey, and where it is, (SIZE, SIZE) bool; it has 12 x 12 pixels."""
    inside = np.zeros((SIZE, SIZE), bool)
    top, left = 3 + 4 * number, 20 - 3 * number
    inside[top : top + 12, left : left + 12] = True
    pixels = np.full((SIZE, SIZE, 3), 120, np.uint8)
    pixels[inside] = [(40 * class_id) % 256, 200 - 30 * class_id, 60]
    return Image.fromarray(pixels), inside


def make_leaves(root: Path) -> None:
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    lists: dict[str, list[str]] = {"train": [], "val": []}
    for class_id in range(6):
        for number in range(PER_CLASS):
            image, inside = picture(class_id, number)
            name = f"leaf{class_id}_{number}"
            image.save(root / "JPEGImages" / f"{name}.jpg")
            Image.fromarray(np.where(inside, class_id + 1, 0).astype(np.uint8)).save(
                root / "SegmentationClass" / f"{name}.png"
            )
            lists["train" if number < 3 else "val"].append(name)
    for split, ids in lists.items():
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(ids) + "\n")


def make_objects(root: Path) -> None:
    for class_id, name in enumerate(("ant", "bee", "cup", "fan")):
        (root / name).mkdir(parents=True)
        for number in range(PER_CLASS):
            image, inside = picture(class_id, number)
            image.save(root / name / f"{number}.jpg")
            Image.fromarray(np.where(inside, 255, 0).astype(np.uint8)).save(root / name / f"{number}.png")


@dataclass
class DataSet:
    """A data set of the page: where it was made, the overrides of a small run, and its novel classes by fold."""

    name: str
    root: Path
    page: Any
    own: tuple[str, ...]
    novel: dict[int, list[str]]

    def run(self, *more: str) -> dict[str, Any]:
        return self.page.run(*self.own, *more)

    def source(self) -> Source:
        return build_source(self.page.compose(*self.own).cfg)


CASES = {
    "leaves": (1, make_leaves, {0: ["oak", "maple"], 2: ["lime", "beech"]}),
    "objects": (4, make_objects, {0: ["ant", "bee"], 1: ["cup", "fan"]}),
}


@pytest.fixture(params=CASES)
def data_set(request: pytest.FixtureRequest, page: Any, tmp_path: Path) -> DataSet:
    """A data set of the page, installed as its steps say."""
    name = request.param
    step, make, novel = CASES[name]
    page.read("add-a-data-set.md")
    page.module(page.file_of(step), page.python[step - 1 if step == 1 else 2])
    page.settings(page.python[1 if step == 1 else 3])
    page.choice(page.file_of(step + 2), page.yaml[0 if step == 1 else 1])
    root = tmp_path / name
    make(root)
    own = ("backbone=tiny", f"dataset={name}", f"data.roots.{name}={root}", f"output_dir={tmp_path}/outputs",
           "protocol.min_pixels=50", *(o for o in SMALL if not o.startswith("dataset.num")))  # fmt: skip
    return DataSet(name, root, page, own, novel)


@pytest.mark.filterwarnings("ignore")
def test_a_data_set_of_the_page_is_trained_on_and_scored(data_set: DataSet) -> None:
    for fold, names in data_set.novel.items():
        result = data_set.run(f"fold={fold}")
        assert result["dataset"]["novel_classes"] == names
        assert result["training"]["steps"] == 8
        assert not result["partial"]
        assert set(result["metrics"]["per_class"]) == set(names)


def test_its_index_holds_what_was_drawn(data_set: DataSet) -> None:
    source = data_set.source()
    index = source.index("train")
    classes, images = (6, 3) if data_set.name == "leaves" else (4, PER_CLASS)
    assert len(index.image_ids) == classes * images
    assert index.pair_class.tolist() == [c for c in range(classes) for _ in range(images)]
    assert set(index.pair_pixels.tolist()) == {144}
    mask = source.mask("train", index.image_ids[0], 0)
    np.testing.assert_array_equal(mask, picture(0, 0)[1])
    assert source.image("train", index.image_ids[0]).shape == (SIZE, SIZE, 3)
    copy = pickle.loads(pickle.dumps(source))
    assert copy.index("val").fingerprint == source.index("val").fingerprint


def test_the_mask_of_another_class_is_empty_or_ignored(data_set: DataSet) -> None:
    source = data_set.source()
    image_id = source.index("train").image_ids[0]
    assert not source.mask("train", image_id, 1).any()
    assert set(np.unique(source.mask("train", image_id, 1, ignore_classes=[0])).tolist()) == {0, 255}


def test_verify_accepts_it_and_names_what_is_broken(data_set: DataSet) -> None:
    name, root = data_set.name, data_set.root
    report = verify(data_set.source())
    assert report.ready, report.text()
    broken = next(root.rglob("leaf2_1.png" if name == "leaves" else "cup/1.png"))
    broken.write_bytes(b"no picture")
    lost = next(root.rglob("leaf3_0.jpg" if name == "leaves" else "fan/0.jpg"))
    lost.unlink()
    report = verify(data_set.source())
    assert not report.ready
    assert str(broken) in report.text()
    assert str(lost) in report.text()


def test_a_damaged_image_is_found_before_anything_is_trained(data_set: DataSet) -> None:
    image = next(data_set.root.rglob("leaf5_4.jpg" if data_set.name == "leaves" else "fan/4.jpg"))
    image.write_bytes(image.read_bytes()[:-9])
    with pytest.raises(UserError, match=rf"unreadable images \(\d\): {image}"):
        data_set.run()


def test_an_empty_folder_is_refused_with_what_it_lacks(data_set: DataSet, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="lacks .*" + ("JPEGImages" if data_set.name == "leaves" else "ant")):
        data_set.run(f"dataset.root={tmp_path}/empty")


def test_folds_that_do_not_cut_its_classes_are_refused(data_set: DataSet) -> None:
    with pytest.raises(UserError, match=r"dataset\.num_folds"):
        data_set.run("dataset.num_folds=5")
