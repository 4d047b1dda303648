from __future__ import annotations

from dataclasses import replace

import pytest
from run_directories import KEY

from fsseg.report.paper import comparable, paper_results, published


@pytest.mark.parametrize(
    ("dataset", "backbone", "shot", "folds", "mean"),
    [  # Tables 1 and 2 of the paper, row ABCB
        ("pascal5i", "resnet50", 1, (72.9, 76.0, 69.5, 64.0), 70.6),
        ("pascal5i", "resnet101", 5, (74.8, 78.5, 73.6, 72.6), 74.9),
        ("coco20i", "resnet50", 5, (50.5, 59.1, 57.0, 53.6), 55.1),
        ("coco20i", "resnet101", 1, (46.0, 56.3, 54.3, 51.3), 51.5),
    ],
)
def test_the_published_rows_are_as_printed(dataset, backbone, shot, folds, mean):
    row = published(dataset, backbone, shot)
    assert row is not None
    assert (row.folds, row.mean, row.venue) == (folds, mean, "CVPR 2024")


def test_the_one_printed_mean_of_abcb_that_its_folds_do_not_give_is_known():
    odd = [
        (dataset, backbone, shot)
        for dataset in ("pascal5i", "coco20i")
        for backbone in ("resnet50", "resnet101")
        for shot in (1, 5)
        if published(dataset, backbone, shot).mean_is_odd
    ]
    assert odd == [("coco20i", "resnet101", 1)]  # (46.0 + 56.3 + 54.3 + 51.3) / 4 = 51.975, printed 51.5


def test_only_a_replication_is_compared():
    assert comparable(KEY) == published("pascal5i", "resnet50", 1)
    assert comparable(KEY, num_val_images=1449) is not None
    assert comparable(KEY, num_val_images=445) is None
    changes = [("variant", "train.lr=0.004"), ("method", "baseline"), ("backbone", "tiny"), ("shot", 2),
               ("dataset", "shapes5i")]  # fmt: skip
    for field, value in changes:
        assert comparable(replace(KEY, **{field: value})) is None


def test_other_methods_of_the_paper_are_at_hand():
    assert published("pascal5i", "resnet50", 1, "HDMNet").mean == 69.4
    assert published("pascal5i", "resnet50", 1, "no such method") is None
    assert paper_results()["ablations_pascal5i_fold0_resnet50_1shot"]["components"]["baseline + SM"] == 68.2


@pytest.mark.shared
def test_the_packaged_figures_are_the_reference_figures(shared_dir):
    import json

    assert paper_results() == json.loads((shared_dir / "facts" / "paper_results.json").read_text())
