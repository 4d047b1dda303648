from __future__ import annotations

import json

import pytest

from fsseg.config.schema import CocoConfig, PascalConfig
from fsseg.data.folds import COCO_CATEGORY_IDS, COCO_CLASSES, VOC_CLASSES, base_classes, fold_classes
from fsseg.data.sources.coco import CocoSource
from fsseg.data.sources.voc import PascalSource
from fsseg.errors import UserError


def novel_classes(dataset: str, fold: int, contiguous: bool = False) -> tuple[int, ...]:
    if dataset == "coco20i":
        return CocoSource(CocoConfig(name=dataset, root="", contiguous_folds=contiguous)).novel_classes(fold)
    return PascalSource(PascalConfig(name=dataset, root="")).novel_classes(fold)


def test_pascal_fold_holds_five_consecutive_classes() -> None:
    assert novel_classes("pascal5i", 2) == (10, 11, 12, 13, 14)
    assert [VOC_CLASSES[c] for c in novel_classes("pascal5i", 2)] == [
        "diningtable",
        "dog",
        "horse",
        "motorbike",
        "person",
    ]


def test_coco_fold_takes_every_fourth_class_unless_told_otherwise() -> None:
    assert novel_classes("coco20i", 1)[:4] == (1, 5, 9, 13)
    assert novel_classes("coco20i", 1, contiguous=True) == tuple(range(20, 40))


@pytest.mark.parametrize("contiguous", [False, True])
@pytest.mark.parametrize("dataset", ["pascal5i", "coco20i"])
def test_base_classes_of_a_configuration_are_those_that_the_source_does_not_hold_out(
    dataset: str, contiguous: bool
) -> None:
    cfg = PascalConfig(name=dataset) if dataset == "pascal5i" else CocoConfig(name=dataset, contiguous_folds=contiguous)
    number = {"pascal5i": 20, "coco20i": 80}[dataset]
    for fold in range(4):
        found = base_classes(cfg, fold)
        assert list(found) == sorted(found)
        assert sorted([*found, *novel_classes(dataset, fold, contiguous)]) == list(range(number))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("num_classes", "num_folds"), [(20, 4), (80, 4), (20, 5), (6, 1)])
def test_folds_share_no_class_and_leave_none_out(num_classes: int, num_folds: int, interleaved: bool) -> None:
    folds = [fold_classes(num_classes, num_folds, fold, interleaved) for fold in range(num_folds)]
    assert sorted(c for fold in folds for c in fold) == list(range(num_classes))
    assert {len(fold) for fold in folds} == {num_classes // num_folds}


def test_coco_ids_skip_the_ten_numbers_coco_never_gave() -> None:
    # Stop sign is category 13 after the gap at 12, and toothbrush, the last class, is category 90.
    assert len(COCO_CATEGORY_IDS) == len(COCO_CLASSES) == 80
    assert COCO_CATEGORY_IDS[COCO_CLASSES.index("stop sign")] == 13
    assert COCO_CATEGORY_IDS[COCO_CLASSES.index("toothbrush")] == 90


def test_odd_folds_are_refused() -> None:
    with pytest.raises(UserError, match="fold=4"):
        novel_classes("pascal5i", 4)
    with pytest.raises(UserError, match="num_folds=3"):
        fold_classes(20, 3, 0)


@pytest.mark.shared
def test_names_and_folds_equal_the_published_ones(shared_dir) -> None:
    facts = json.loads((shared_dir / "facts" / "folds.json").read_text())
    assert list(VOC_CLASSES) == facts["pascal5i"]["classes"]
    assert list(COCO_CLASSES) == facts["coco20i"]["classes"]
    assert list(COCO_CATEGORY_IDS) == facts["coco20i"]["category_ids"]
    for fold in range(4):
        assert list(novel_classes("pascal5i", fold)) == facts["pascal5i"]["folds"][str(fold)]
        assert list(novel_classes("coco20i", fold)) == facts["coco20i"]["folds"][str(fold)]
        assert (
            list(novel_classes("coco20i", fold, contiguous=True))
            == facts["coco20i"]["folds_contiguous_variant"][str(fold)]
        )
