from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from trees import labels_of, write_jpeg, write_list, write_png

from fsseg.config.schema import FolderConfig
from fsseg.data.setup.verify import verify
from fsseg.data.sources.folder import FolderSource
from fsseg.errors import UserError

# What each image shows: value of a class -> pixels. Values are those of CLASSES, in which the names are not sorted.
CLASSES = ["zebra", "ant", "okapi"]
SHOWN = {
    "a": labels_of((1, 500), (2, 100), boundary=30),
    "b": labels_of((3, 700)),
    "day 1/c": labels_of((2, 300), (3, 40)),
    "d": labels_of((1, 60)),
}
SORTED = ["ant", "okapi", "zebra"]
PAIRS = [("a", "ant", 100), ("a", "zebra", 500), ("b", "okapi", 700), ("d", "zebra", 60), ("day 1/c", "ant", 300),
         ("day 1/c", "okapi", 40)]  # fmt: skip


def write_mask(path: Path, inside: NDArray[np.bool_]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.where(inside, 255, 0).astype(np.uint8)).save(path)


def make(root: Path, form: str) -> Path:
    for image_id, labels in SHOWN.items():
        write_jpeg(root / "images" / f"{image_id}.jpg")
        if form == "indexed":
            write_png(root / "masks" / f"{image_id}.png", labels)
            write_list(root / "classes.txt", CLASSES)
        else:
            for value in set(np.unique(labels).tolist()) - {0, 255}:
                write_mask(root / "masks" / CLASSES[value - 1] / f"{image_id}.png", labels == value)
    return root


def source(root: Path, **changes: object) -> FolderSource:
    settings = {"image_size": 81, "val_share": 1.0, **changes}
    return FolderSource(FolderConfig(name="folder", root=str(root), **settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["indexed", "classes"])
def test_both_forms_of_masks_give_the_same_index_and_masks(form: str, tmp_path: Path) -> None:
    folder = source(make(tmp_path, form))
    index = folder.index("val")
    assert list(folder.classes) == SORTED
    pairs = zip(index.pair_image.tolist(), index.pair_class.tolist(), index.pair_pixels.tolist())
    assert [(index.image_ids[i], folder.classes[c], n) for i, c, n in pairs] == PAIRS
    labels = SHOWN["a"]
    mask = folder.mask("val", "a", SORTED.index("zebra"), [SORTED.index("ant")])
    assert (mask == 1).tolist() == (labels == 1).tolist()
    ignored = np.isin(labels, [2, 255] if form == "indexed" else [2])  # a folder of classes knows no 255
    assert (mask == 255).tolist() == ignored.tolist()
    folder.check(["val"])
    again = pickle.loads(pickle.dumps(folder))
    np.testing.assert_array_equal(again.mask("val", "a", 2, [0]), mask)


@pytest.mark.parametrize("form", ["indexed", "classes"])
def test_a_plan_finds_the_index_that_a_scan_kept_and_no_other(form: str, tmp_path: Path) -> None:
    root = make(tmp_path, form)
    assert source(root).kept_index("val") is None
    made = source(root).index("val")
    kept = source(root).kept_index("val")
    assert kept is not None
    assert kept.fingerprint == made.fingerprint
    write_mask(next((root / "masks").rglob("d.png")), np.ones((40, 50), bool))
    assert source(root).kept_index("val") is None


def test_masks_of_two_classes_may_overlap(tmp_path: Path) -> None:
    write_jpeg(tmp_path / "images" / "a.jpg")
    left, top = np.zeros((40, 50), bool), np.zeros((40, 50), bool)
    left[:, :20] = top[:10] = True
    write_mask(tmp_path / "masks" / "left" / "a.png", left)
    write_mask(tmp_path / "masks" / "top" / "a.png", top)
    folder = source(tmp_path)
    assert folder.index("val").pair_pixels.tolist() == [800, 500]
    np.testing.assert_array_equal(folder.mask("val", "a", 0) == 1, left)
    with_other = folder.mask("val", "a", 0, [1])
    np.testing.assert_array_equal(with_other == 255, top)
    np.testing.assert_array_equal(with_other == 1, left & ~top)


def test_every_fault_is_told_in_one_go(tmp_path: Path) -> None:
    root = make(tmp_path, "classes")
    masks = root / "masks"
    write_mask(masks / "ant" / "nobody.png", np.ones((40, 50), bool))
    write_mask(masks / "zebra" / "a.png", np.ones((50, 40), bool))
    write_mask(masks / "okapi" / "b.png", np.zeros((40, 50), bool))
    Image.fromarray(np.repeat(np.array([[7, 9]], np.uint8), 25, 1).repeat(40, 0)).save(masks / "zebra" / "d.png")
    write_jpeg(masks / "zebra" / "e.jpg")
    (root / "images" / "day 1" / "c.jpg").write_bytes(b"nonsense")
    with pytest.raises(UserError) as error:
        source(root).check(["val"])
    text = f"{error.value.what}\n{error.value.fix}"
    for told in (
        "nobody.jpg", "50x40 pixels, its mask in", "okapi/b.png: all of it is 0",
        "2 values beside 0, where a mask of one class has one: 7, 9",
        "c.jpg", "masks that are no PNG (1)", "255 on the object and 0 elsewhere, without soft edges",
        "an image and its mask have one name", "delete the file",
    ):  # fmt: skip
        assert told in text, told
    report = verify(source(root))
    assert {f.kind for f in report.faults} >= {
        "empty masks",
        "unreadable masks",
        "images of another size than their masks",
    }
    assert report.missing_images["val"] == [str(root / "images" / "nobody.jpg")]


def test_a_boundary_of_255_beside_1_is_that_of_an_indexed_mask(tmp_path: Path) -> None:
    """And where masks of one set do so, one with 255 alone is not guessed at."""
    root = make(tmp_path / "classes", "classes")
    for image_id, labels in SHOWN.items():
        for value in set(np.unique(labels).tolist()) - {0, 255}:
            path = root / "masks" / CLASSES[value - 1] / f"{image_id}.png"
            Image.fromarray(np.where(labels == 255, 255, labels == value).astype(np.uint8)).save(path)
    found, expected = source(root), source(make(tmp_path / "indexed", "indexed"))
    assert found.index("val").fingerprint == expected.index("val").fingerprint
    for image_id, name, _ in PAIRS:
        masks = [s.mask("val", image_id, SORTED.index(name)) for s in (found, expected)]
        np.testing.assert_array_equal(*masks)
    assert (found.mask("val", "a", SORTED.index("ant")) == 255).sum() == 30
    found.check(["val"])
    write_mask(root / "masks" / "zebra" / "d.png", SHOWN["d"] == 1)
    with pytest.raises(UserError, match=r"255 may be object or boundary \(1\): .*zebra/d\.png") as error:
        source(root).check(["val"])
    assert error.value.fix == "mark objects by 1 in all masks, and delete masks that show none"


def test_images_of_other_kinds_are_converted_and_a_huge_one_is_told(tmp_path: Path) -> None:
    """16 bits, CMYK; and one of 90 million pixels, by its header alone."""
    root = make(tmp_path, "classes")
    Image.fromarray(np.full((40, 50), 257 * 9, np.uint16)).save(root / "images" / "a.png")
    Image.new("CMYK", (50, 40)).save(root / "images" / "b.jpg")
    (root / "images" / "a.jpg").unlink()
    folder = source(root)
    folder.check(["val"])
    assert np.unique(folder.image("val", "a")).tolist() == [9]
    assert folder.image("val", "b").shape == (40, 50, 3)
    Image.new("1", (10_000, 9_000)).save(root / "images" / "a.png")
    with pytest.raises(UserError, match=r"images that are too large \(1\): .*a\.png") as error:
        source(root).check(["val"])
    assert error.value.fix == "make image and mask smaller: more is never decoded"


def test_a_mask_of_the_turned_photograph_fits_and_one_of_the_lying_does_not(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(tmp_path / "images" / "a.jpg", exif=exif)
    seen = np.zeros((50, 40), bool)
    seen[:10] = True
    write_mask(tmp_path / "masks" / "cat" / "a.png", seen)
    folder = source(tmp_path, num_folds=1)
    folder.check(["val"])
    assert folder.image("val", "a").shape == (50, 40, 3)
    np.testing.assert_array_equal(folder.mask("val", "a", 0) == 1, seen)
    report = verify(folder)
    assert not report.faults
    assert "1 image turned by EXIF orientation, as people see them" in report.text()
    write_mask(tmp_path / "masks" / "cat" / "a.png", seen.T)
    with pytest.raises(
        UserError, match=r"40x50 pixels, turned by EXIF orientation 6, .* 50x40 \(its size before"
    ) as error:
        source(tmp_path, num_folds=1).check(["val"])
    assert "as people see it" in error.value.fix


def test_what_is_no_fault_is_told_by_verify(tmp_path: Path) -> None:
    root = make(tmp_path, "classes")
    write_jpeg(root / "images" / "bare.jpg")
    for name in ("a.HEIC", "day 1/e.heic", "day 1/f.cr2", ".hidden/g.heic", "day 1/.DS_Store"):
        (root / "images" / name).parent.mkdir(exist_ok=True)
        (root / "images" / name).touch()
    text = verify(source(root, image_size=41)).text()
    assert f"{root}/images: 3 files left out, of kinds that are not read (1 .cr2, 2 .heic); convert images" in text
    assert "classes (3): ant, okapi, zebra" in text
    assert "1 of 5 images without a mask, left out: bare" in text
    # by hand: images of 50 x 40 shrink by 41 / 50, so that 60 and 40 pixels are 40 and 27, and 100 are 67
    assert "2 masks with less than a feature cell (8x8 pixels at dataset.image_size=41): d (zebra, 60 pixels), " in text


def test_a_deep_check_reads_every_mask_of_an_image(tmp_path: Path) -> None:
    root = make(tmp_path, "classes")
    assert "content of 10 image and mask files" in verify(source(root), deep=True).text()  # 4 images, 6 masks
    write_mask(root / "masks" / "zebra" / "a.png", SHOWN["a"] == 2)
    (fault,) = verify(source(root), deep=True).faults
    assert fault.path.endswith("masks/zebra/a.png")


def test_two_images_of_one_name_are_told(tmp_path: Path) -> None:
    root = make(tmp_path, "indexed")
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(root / "images" / "a.PNG")
    with pytest.raises(UserError, match=r"images of one name \(1\): .*a\.PNG: and .*a\.jpg"):
        source(root).index("val")


WRONG = {
    "twice": (["cat", "dog", "cat"], r"classes\.txt: class named twice: cat\n"),
    "by case": (["cat", "dog", "Cat"], "class named twice: Cat and cat"),
    "background": (["background", "cat"], "line 1 is background, but line 1 names the class of value 1"),
    "empty line": (["cat", "", "dog"], "line 2 is empty"),
    "too many": ([f"c{n}" for n in range(255)], "255 classes, but a PNG holds"),
    "none": ([""], r"classes\.txt is empty"),
}


@pytest.mark.parametrize("case", WRONG)
def test_classes_that_cannot_be_meant(case: str, tmp_path: Path) -> None:
    lines, what = WRONG[case]
    make(tmp_path, "indexed")
    write_list(tmp_path / "classes.txt", lines)
    with pytest.raises(UserError, match=what):
        source(tmp_path)


def test_values_without_a_class_are_told(tmp_path: Path) -> None:
    make(tmp_path, "indexed")
    write_list(tmp_path / "classes.txt", CLASSES[:2])
    with pytest.raises(UserError, match=r"b\.png: holds 3; classes are 1 to 2, 0 is background, 255 ignore") as error:
        source(tmp_path).index("val")
    assert "complete classes.txt" in error.value.fix


def test_layouts_that_are_none(tmp_path: Path) -> None:
    cfg = FolderConfig(name="folder", root=str(tmp_path / "a"), image_size=81)
    assert (
        "lacks images, masks" in FolderSource.check_folder(cfg)[0].what
        or "no folder" in FolderSource.check_folder(cfg)[0].what
    )
    (tmp_path / "a" / "images").mkdir(parents=True)
    (tmp_path / "a" / "masks").mkdir()
    assert "masks is empty" in FolderSource.check_folder(cfg)[0].what
    write_png(tmp_path / "a" / "masks" / "x.png", SHOWN["a"])
    assert "has no classes.txt" in FolderSource.check_folder(cfg)[0].what
    (tmp_path / "a" / "masks" / "x.png").unlink()
    write_jpeg(tmp_path / "a" / "masks" / "cat" / "x.jpg")
    assert "no PNG in the folder of class cat" in FolderSource.check_folder(cfg)[0].what


def test_classes_to_train_on_must_be_left(tmp_path: Path) -> None:
    root = make(tmp_path, "classes")

    def told(splits: list[str], **changes: object) -> list[str]:
        cfg = FolderConfig(name="folder", root=str(root), image_size=81, **changes)  # type: ignore[arg-type]
        return [f"{e.what} -> {e.fix}" for e in FolderSource.check_folder(cfg, splits)]  # type: ignore[arg-type]

    assert told(["train", "val"], novel=["zebra"]) == []
    assert told(["val"], novel=SORTED) == []
    assert told(["val"], num_folds=1) == []
    (text,) = told(["train", "val"], novel=SORTED)
    assert "all 3 classes are novel, none is left to train on" in text
    (text,) = told(["val"], novel=["zebra", "lion"])
    assert "no class lion" in text
    assert "the classes are ant, okapi, zebra" in text
    (text,) = told(["val"], num_folds=4)
    assert "dataset.num_folds=4: there are only 3 classes" in text


def test_verify_tells_of_classes_that_the_settings_name_and_nobody_has(tmp_path: Path) -> None:
    root = make(tmp_path, "classes")
    assert not verify(source(root, novel=["zebra"]), decode=False).faults
    assert not verify(source(root, novel=SORTED), decode=False).faults
    for changes, told in (
        (
            {"novel": ["lion"]},
            f"{root}: dataset.novel: there is no class lion in {root}\n  -> the classes are ant, okapi",
        ),
        ({"num_folds": 4}, f"{root}: dataset.num_folds=4: there are only 3 classes to cut into folds\n  -> set"),
    ):
        report = verify(source(root, **changes), decode=False)
        assert told in report.text()
        assert report.text().endswith("0 images decoded, 1 fault")
        assert not report.ready
