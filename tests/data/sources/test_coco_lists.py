"""Lists that name images of COCO: their order is kept, and what does not fit is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trees import make_coco, write_list

from fsseg.config.schema import CocoConfig, ProtocolConfig
from fsseg.data.folds import COCO_CLASSES
from fsseg.data.lists import val_lists
from fsseg.data.source import ClassIndex
from fsseg.data.sources.coco import CocoSource
from fsseg.errors import UserError

SEVEN, NINE = "COCO_val2014_000000000007", "COCO_val2014_000000000009"


def source(root: Path, **changes: Any) -> CocoSource:
    return CocoSource(CocoConfig(name="coco20i", root=str(root), **changes))


@pytest.mark.parametrize("line", [
    "val2014/{}.jpg annotations/val2014/{}.png", "{}", "{}.jpg", "val2014/{}.png", "/any/where/{}.JPG",
])  # fmt: skip
@pytest.mark.parametrize("rule", ["painted", "union"])
def test_the_images_are_those_of_the_list_in_its_order(tmp_path: Path, line: str, rule: str) -> None:
    root = make_coco(tmp_path)
    whole = source(root, coco_masks=rule).index("val")
    write_list(tmp_path / "my.txt", [line.replace("{}", name) for name in (NINE, SEVEN)])
    coco = source(root, coco_masks=rule, val_list=str(tmp_path / "my.txt"))
    index = coco.index("val")
    assert index.image_ids == (NINE, SEVEN)
    assert index.pair_image.tolist() == [0, 1, 1]
    assert index.pair_class.tolist() == [79, 0, 16]
    assert index.pair_pixels.tolist() == whole.pair_pixels[[2, 0, 1]].tolist()
    assert coco.list_origin("val") == str(tmp_path / "my.txt")
    assert coco.list_origin("train") == "instances_train2014.json"
    assert coco.kept_index("val").fingerprint == index.fingerprint  # type: ignore[union-attr]
    rules = ProtocolConfig("p", min_pixels=1, repeat_support=True)
    with pytest.raises(UserError, match="no novel class"):  # one image a class: nothing else is taken in
        val_lists(index, (0, 16, 79), rules, 1, COCO_CLASSES)


def test_numbers_alone_name_images_too(tmp_path: Path) -> None:
    root = make_coco(tmp_path)
    write_list(tmp_path / "my.txt", ["9", "000000000007"])
    assert source(root, val_list=str(tmp_path / "my.txt")).index("val").image_ids == (NINE, SEVEN)


def test_only_listed_images_are_missed_and_measured(tmp_path: Path) -> None:
    root = make_coco(tmp_path)
    (root / "val2014" / f"{NINE}.jpg").unlink()
    write_list(tmp_path / "my.txt", [SEVEN])
    coco = source(root, val_list=str(tmp_path / "my.txt"))
    coco.check(["val"])
    assert coco.missing_images("val") == []
    assert coco.mask_sizes("val") == {SEVEN: (20, 30)}


def test_names_that_are_unknown_or_come_twice_are_faults(tmp_path: Path) -> None:
    root = make_coco(tmp_path)
    write_list(tmp_path / "my.txt", [SEVEN, f"val2014/{SEVEN}.jpg", "7", "COCO_val2014_000000000008", "odd"])
    coco = source(root, val_list=str(tmp_path / "my.txt"))
    with pytest.raises(UserError) as caught:
        coco.index("val")
    for part in ("line 2 names", "7 names COCO_val2014_000000000007 again", "000000000008 is not in ",
                 "odd is not in", "my.txt"):  # fmt: skip
        assert part in str(caught.value)
    assert coco.kept_index("val") is None


def test_a_list_that_is_none_is_named(tmp_path: Path) -> None:
    root = make_coco(tmp_path)
    with pytest.raises(UserError, match=r"dataset\.val_list=nothing\.txt is not a file"):
        source(root, val_list="nothing.txt").index("val")
    write_list(tmp_path / "empty.txt", [])
    with pytest.raises(UserError, match=r"empty\.txt names no image"):
        source(root, train_list=str(tmp_path / "empty.txt")).index("train")


def test_an_index_gives_some_images_in_any_order() -> None:
    index = ClassIndex(
        ("a", "b", "c"), np.array([0, 0, 2], np.int32), np.array([3, 5, 1], np.int16), np.array([9, 8, 7])
    )
    taken = index.take([2, 1, 0])
    assert taken.image_ids == ("c", "b", "a")
    assert (taken.pair_image.tolist(), taken.pair_class.tolist(), taken.pair_pixels.tolist()) == (
        [0, 2, 2], [1, 3, 5], [7, 9, 8])  # fmt: skip
    assert (taken.pair_image.dtype, taken.pair_class.dtype) == (np.int32, np.int16)
    assert index.take([0, 1, 2]).fingerprint == index.fingerprint
    assert index.take([]).image_ids == ()
