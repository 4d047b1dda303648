"""What differs between the rows of a table stands below it, and nothing where nothing does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fsseg.cell.key import BASE_CELL
from fsseg.cell.record import RunDirectory
from fsseg.report.aggregate import aggregate
from fsseg.report.collect import collect
from fsseg.report.tables import build

MakeCell = Callable[..., RunDirectory]

RECIPE = {
    "fold": 0, "shot": 1, "seed": 0, "dataset.name": "pascal5i", "dataset.train_list": None, "dataset.image_size": 473,
    "dataset.scale_range": [0.9, 1.1], "backbone.name": "resnet50", "train.enabled": True, "train.lr": 0.02,
    "train.epochs": 15, "train.momentum": 0.9,
}  # fmt: skip


def told(path: Path) -> list[str]:
    (table,) = build(collect([path])).tables
    return [note for note in table.as_text().notes if note.startswith("differs: ")]


@pytest.fixture
def two(make_cell: MakeCell) -> Callable[..., None]:
    """two(one, other, **more) -> finished cells of abcb and baseline, each with its own changes to `RECIPE`."""

    def make(one: dict[str, Any], other: dict[str, Any], fold: int = 0, **more: Any) -> None:
        for method, changes in (("abcb", one), ("baseline", other)):
            identity = RECIPE | {"model.name": method, "fold": fold} | changes
            make_cell(fold, 60.0, method=method, identity={k: v for k, v in identity.items() if v != "absent"}, **more)

    return make


def test_nothing_is_told_where_nothing_differs(tmp_path: Path, two: Callable[..., None]) -> None:
    for fold in range(4):
        two({"model.iterations": 3}, {}, fold)  # what only one of them has is no difference of the two
    assert told(tmp_path) == []
    assert "differs" not in aggregate([tmp_path])
    assert json.loads((tmp_path / "summary.json").read_text())["tables"][0]["differences"] == {}


def test_each_setting_has_a_line_with_its_values_by_row(tmp_path: Path, two: Callable[..., None]) -> None:
    two(
        {"train.lr": 0.06, "dataset.train_list": "merged_5953", "dataset.image_size": 641, "model.heads": 4},
        {"train.optimizer": "adamw", "dataset.scale_range": [0.8, 1.25], "model.heads": 8},
    )
    expected = [
        "differs: train.lr: 0.06 (abcb resnet50); 0.02 (baseline resnet50)",
        "differs: train.optimizer: sgd (abcb resnet50); adamw (baseline resnet50)",  # sgd before there was a choice
        "differs: dataset.image_size: 641 (abcb resnet50); 473 (baseline resnet50)",
        "differs: dataset.scale_range: [0.9, 1.1] (abcb resnet50); [0.8, 1.25] (baseline resnet50)",
        "differs: dataset.train_list: merged_5953 (abcb resnet50); train_aug_10582 (baseline resnet50)",
        "differs: model.heads: 4 (abcb resnet50); 8 (baseline resnet50)",
    ]
    assert told(tmp_path) == expected
    assert all(f"  {line}\n" in aggregate([tmp_path]) for line in expected)
    assert all(f"% {line}\n" in (tmp_path / "summary.tex").read_text() for line in expected)
    assert f"\n- {expected[0]}\n" in (tmp_path / "summary.md").read_text()
    (table,) = json.loads((tmp_path / "summary.json").read_text())["tables"]
    assert table["differences"]["train.lr"] == {"abcb resnet50": "0.06", "baseline resnet50": "0.02"}


def test_a_row_that_trains_nothing_has_no_settings_of_the_training(tmp_path: Path, make_cell: MakeCell) -> None:
    for method, rate in (("abcb", 0.02), ("baseline", 0.06)):
        make_cell(0, 60.0, method=method, identity=RECIPE | {"train.lr": rate, "model.name": method})
    make_cell(0, 50.0, method="prototype", result={"training": None},
              identity=RECIPE | {"train.enabled": False, "train.lr": 0.5, "train.epochs": 9})  # fmt: skip
    assert told(tmp_path) == [
        "differs: train.enabled: true (abcb resnet50, baseline resnet50); false (prototype resnet50)",
        "differs: train.lr: 0.02 (abcb resnet50); 0.06 (baseline resnet50)",
    ]


def test_weights_and_a_checkpoint_that_only_one_has_are_told(tmp_path: Path, two: Callable[..., None]) -> None:
    for fold in (0, 1):  # each fold has a checkpoint of its own
        two({"backbone.weights (content)": "ab12", "checkpoint (content)": f"digest{fold}"}, {}, fold)
    assert told(tmp_path) == [
        "differs: backbone.weights (content): ab12 (abcb resnet50); none (baseline resnet50)",
        "differs: checkpoint: a file (abcb resnet50); none (baseline resnet50)",
    ]


def test_lists_that_are_files_are_compared_fold_by_fold(tmp_path: Path, two: Callable[..., None]) -> None:
    for fold in (0, 1):
        own = {"dataset.train_list": f"content {fold}"}
        two(own, own, fold)
    assert told(tmp_path) == []
    two({"dataset.train_list": "content 2"}, {"dataset.train_list": "content x"}, 2)
    (line,) = told(tmp_path)
    assert line == (
        "differs: dataset.train_list: content 0 or content 1 or content 2 (abcb resnet50); "
        "content 0 or content 1 or content x (baseline resnet50)"
    )


def test_base_learners_are_compared_fold_by_fold(tmp_path: Path, two: Callable[..., None]) -> None:
    for fold in (0, 1):
        own = {"backbone.base_training": True, BASE_CELL: f"learner{fold}"}
        two(own, own, fold)
    assert told(tmp_path) == []
    two({"backbone.base_training": True, BASE_CELL: "learner2"}, {"backbone.base_training": True, BASE_CELL: "x"}, 2)
    assert told(tmp_path) == [
        f"differs: {BASE_CELL}: learner0 or learner1 or learner2 (abcb resnet50); "
        "learner0 or learner1 or x (baseline resnet50)"
    ]


def test_one_row_with_base_learners_is_told_in_one_line(tmp_path: Path, two: Callable[..., None]) -> None:
    for fold in (0, 1):
        two({}, {"backbone.base_training": True, BASE_CELL: f"learner{fold}"}, fold)
    assert told(tmp_path) == ["differs: backbone.base_training: false (abcb resnet50); true (baseline resnet50)"]


def test_a_file_beside_a_named_list_is_told(tmp_path: Path, two: Callable[..., None]) -> None:
    two({"dataset.train_list": "content 0"}, {})
    assert told(tmp_path) == [
        "differs: dataset.train_list: a list of its own (abcb resnet50); train_aug_10582 (baseline resnet50)"
    ]


def test_other_episodes_steps_and_seeds_are_told(tmp_path: Path, make_cell: MakeCell) -> None:
    for fold in range(4):  # the pools of the folds differ, the two rows do not
        make_cell(fold, 60.0, result={"training": {"steps": 10 + fold}}, identity=RECIPE)
        steps = 40 if fold == 3 else 10 + fold
        make_cell(fold, 60.0, method="baseline", result={"training": {"steps": steps}}, identity=RECIPE,
                  episodes="other" if fold == 1 else None)  # fmt: skip
    make_cell(0, 61.0, seed=4, result={"training": {"steps": 10}}, identity=RECIPE)
    assert told(tmp_path) == [
        "differs: episodes: e0 or e1 or e2 or e3 (abcb resnet50); e0 or e2 or e3 or other (baseline resnet50)",
        "differs: training seeds: 0, 4 (abcb resnet50); 0 (baseline resnet50)",
        "differs: training steps: 10 to 13 (abcb resnet50); 10 to 40 (baseline resnet50)",
    ]


def test_rows_without_a_fold_in_common_are_compared_by_their_settings_alone(
    tmp_path: Path, make_cell: MakeCell
) -> None:
    make_cell(0, 60.0, result={"training": {"steps": 10}}, identity=RECIPE)
    make_cell(1, 60.0, method="baseline", result={"training": {"steps": 20}}, identity=RECIPE | {"train.epochs": 30})
    assert told(tmp_path) == ["differs: train.epochs: 15 (abcb resnet50); 30 (baseline resnet50)"]


def test_a_row_of_unknown_settings_is_named(tmp_path: Path, make_cell: MakeCell) -> None:
    make_cell(0, 60.0, identity=RECIPE)
    make_cell(0, 60.0, method="baseline")
    assert told(tmp_path) == [
        "differs: settings: known (abcb resnet50); not known, without identity.json (baseline resnet50)"
    ]


def test_a_row_of_several_values_has_them_all_and_many_rows_are_counted(tmp_path: Path, make_cell: MakeCell) -> None:
    for fold in (0, 1):
        make_cell(fold, 60.0, identity=RECIPE | {"train.lr": (0.02, 0.01)[fold]})
        make_cell(fold, 60.0, method="baseline", identity=RECIPE)
    assert told(tmp_path) == ["differs: train.lr: 0.01 or 0.02 (abcb resnet50); 0.02 (baseline resnet50)"]
    for n in range(13):
        make_cell(0, 60.0, name="y", variant=f"train.lr-0.{n + 5}", identity=RECIPE | {"train.lr": n + 0.5})
    assert told(tmp_path) == ["differs: train.lr: 15 different values"]
