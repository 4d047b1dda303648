"""The layouts of the cross-domain sets, each as a small tree of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from trees import write_jpeg, write_list

from fsseg.config.compose import compose
from fsseg.data.registry import build_source, checked_source
from fsseg.data.setup.verify import verify
from fsseg.data.source import Source
from fsseg.errors import UserError

SIZE = (40, 50)


def write_grey(path: Path, rows: int) -> None:
    """A mask whose first rows are light grey, as in copies that were saved as JPEG in between, the others dark."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full(SIZE, 9, np.uint8)
    pixels[:rows] = 250
    Image.fromarray(np.repeat(pixels[..., None], 3, axis=2)).save(path)


def fss1000(root: Path) -> None:
    for name in ("abes_flyingfish", "bus", "cup", "fan"):
        for number in (1, 2):
            write_jpeg(root / name / f"{number}.jpg", SIZE)
            write_grey(root / name / f"{number}.png", number)
    write_list(root / "fss_test_set.txt", ["bus", "abe's_flyingfish"])
    write_list(root / "val.txt", ["cup"])


def isic(root: Path) -> None:
    for number, label in enumerate(("1", "1", "2", "3")):
        write_jpeg(root / "ISIC2018_Task1-2_Training_Input" / label / f"ISIC_{number}.jpg", SIZE)
        write_grey(root / "ISIC2018_Task1_Training_GroundTruth" / f"ISIC_{number}_segmentation.png", 5)


def isic_with_a_table(root: Path) -> None:
    isic(root)
    folder = root / "ISIC2018_Task1-2_Training_Input"
    lines = ["ID,Class"]
    for path in sorted(folder.rglob("*.jpg")):
        lines.append(f"{path.stem},{path.parent.name}")
        path.rename(folder / path.name)
    write_list(root / "class_id.csv", lines)


def deepglobe(root: Path) -> None:
    for label, patches in {"1": ("7_00", "7_01"), "6": ("7_01",)}.items():
        for patch in patches:
            write_jpeg(root / label / "test" / "origin" / f"{patch}.jpg", SIZE)
            write_grey(root / label / "test" / "groundtruth" / f"{patch}.png", 5)


def chest_xray(root: Path) -> None:
    for name in ("CHNCXR_1", "CHNCXR_2", "MCUCXR_1"):
        (root / "CXR_png").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros(SIZE, np.uint8)).save(root / "CXR_png" / f"{name}.png")
    write_grey(root / "masks" / "CHNCXR_1_mask.png", 5)
    write_grey(root / "masks" / "MCUCXR_1.png", 5)


def suim(root: Path) -> None:
    for name in ("d_1", "f_2"):
        write_jpeg(root / "images" / f"{name}.jpg", SIZE)
        for label, rows in {"FV": 5, "HD": 0}.items():  # with empty masks, as it comes
            write_grey(root / "masks" / label / f"{name}.bmp", rows)


TREES = {"fss1000": fss1000, "isic": isic, "deepglobe": deepglobe, "chest_xray": chest_xray, "suim": suim}
# (classes, images that are evaluated, pairs among them), by hand from the trees
EXPECTED = {
    "fss1000": (["abes_flyingfish", "bus", "cup", "fan"],
                ["abes_flyingfish/1", "abes_flyingfish/2", "bus/1", "bus/2"], 4),
    "isic": (["1", "2", "3"], ["1/ISIC_0", "1/ISIC_1", "2/ISIC_2", "3/ISIC_3"], 4),
    "deepglobe": (["1", "6"], ["1/7_00", "1/7_01", "6/7_01"], 3),
    "chest_xray": (["lung"], ["CHNCXR_1"], 1),
    "suim": (["FV", "HD"], ["d_1", "f_2"], 2),
}  # fmt: skip


def opened(name: str, root: Path, *more: str) -> Source:
    line = (f"dataset={name}", f"dataset.root={root}", "method=prototype", "backbone=tiny", *more)
    return checked_source(compose(line).cfg)


@pytest.mark.parametrize("name", TREES)
def test_each_layout_is_read_and_its_numbers_compared(name: str, tmp_path: Path) -> None:
    TREES[name](tmp_path)
    source = opened(name, tmp_path)
    classes, images, pairs = EXPECTED[name]
    assert list(source.classes) == classes
    index = source.index("val")
    assert list(index.image_ids) == images
    assert int((index.pair_pixels > 0).sum()) == pairs
    first, c = index.image_ids[0], int(index.pair_class[0])
    rows = 1 if name == "fss1000" else 5
    assert np.flatnonzero(source.mask("val", first, c).any(axis=1)).tolist() == list(range(rows))
    text = verify(source, decode=False).text()
    assert "not the standard benchmark" in text
    assert "not agreed on: " in text
    published = {"fss1000": 1000, "isic": 3, "deepglobe": 6, "chest_xray": 1, "suim": 7}[name]
    if published != len(classes):
        assert f"all, classes: {len(classes)}, published {published}" in text


def test_the_classes_of_isic_may_be_a_table(tmp_path: Path) -> None:
    isic_with_a_table(tmp_path)
    source = opened("isic", tmp_path)
    assert list(source.index("val").image_ids) == EXPECTED["isic"][1]


def test_of_fss_1000_the_authors_list_is_novel_and_the_validation_classes_are_left_out(tmp_path: Path) -> None:
    fss1000(tmp_path)
    source = opened("fss1000", tmp_path, "dataset.val_classes=val.txt")
    assert [source.classes[c] for c in source.novel_classes(0)] == ["abes_flyingfish", "bus"]
    assert list(source.index("train").image_ids) == ["fan/1", "fan/2"]
    assert "training, classes: 1, published 520" in verify(source, decode=False).text()
    (tmp_path / "fss_test_set.txt").unlink()
    with pytest.raises(UserError, match=r"dataset\.test_classes=fss_test_set\.txt: .* cannot be read") as error:
        build_source(compose(["dataset=fss1000", f"dataset.root={tmp_path}"]).cfg)
    assert "HKUSTCV/FSS-1000" in error.value.fix
    write_list(tmp_path / "fss_test_set.txt", ["bus", "ruler"])
    with pytest.raises(UserError, match=r"1 of its 2 classes have no folder in .*: ruler"):
        build_source(compose(["dataset=fss1000", f"dataset.root={tmp_path}"]).cfg)


def test_a_folder_of_something_else_is_told_with_the_layout(tmp_path: Path) -> None:
    for name in ("CXR_png", "masks"):
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match="no masks of chest_xray in") as error:
        opened("chest_xray", tmp_path)
    assert "masks/<id>_mask.png" in error.value.fix
