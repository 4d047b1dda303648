from __future__ import annotations

import math

import pytest
from run_directories import PROTOCOL

from fsseg.report.collect import collect
from fsseg.report.paper import MEAN
from fsseg.report.tables import Row, Table, build


def one_table(path) -> Table:
    (table,) = build(collect([path])).tables
    return table


def one_row(path) -> Row:
    (row,) = one_table(path).rows
    return row


def test_the_mean_over_four_folds_stands_beside_the_papers(tmp_path, make_cell):
    for fold, miou in enumerate((70.0, 75.0, 68.0, 65.0)):
        make_cell(fold, miou)
    row = one_row(tmp_path)
    mean = row.entries[1, MEAN]
    assert mean.miou == pytest.approx(69.5)  # (70 + 75 + 68 + 65) / 4
    assert mean.paper == 70.6
    assert mean.difference == pytest.approx(-1.1)
    assert row.entries[1, 2].difference == pytest.approx(68.0 - 69.5)


def test_runs_on_another_training_pool_than_the_papers_get_no_figure_of_it(tmp_path, make_cell):
    for fold in range(4):
        make_cell(fold, 70.0, identity={"dataset.train_list": None})
    table = one_table(tmp_path)
    assert [table.rows[0].entries[1, column].paper for column in (0, MEAN)] == [None, None]
    assert table.notes == [
        "abcb resnet50 1-shot: no figure of the paper beside it; unlike the paper, it has "
        "dataset.train_list=train_aug_10582"
    ]


def test_runs_on_masks_of_another_rule_than_the_published_lists_get_no_figure_of_the_paper(tmp_path, make_cell):
    """Cells of before there was a choice had the union of each class, and say nothing of it."""
    make_cell(0, 40.0, dataset="coco20i", identity={"dataset.name": "coco20i"})
    make_cell(
        1, 40.0, dataset="coco20i", identity={"dataset.name": "coco20i", "dataset.coco_masks": "painted"}, name="y"
    )
    before, now = sorted(one_table(tmp_path).rows, key=lambda row: row.key.name)
    assert (before.entries[1, 0].paper, now.entries[1, 1].paper is not None) == (None, True)
    assert any("it has dataset.coco_masks=union" in note for note in one_table(tmp_path).notes)


def test_runs_on_the_papers_training_pool_get_its_figures(tmp_path, make_cell):
    make_cell(0, 70.0, identity={"dataset.train_list": "merged_5953"})
    assert one_row(tmp_path).entries[1, 0].paper == 72.9


def test_no_mean_without_all_folds_but_a_note(tmp_path, make_cell):
    make_cell(0, 70.0)
    make_cell(2, 71.0)
    table = one_table(tmp_path)
    assert (1, MEAN) not in table.rows[0].entries
    assert any("2 of 4 folds done" in note and "folds 0, 2 alone: 70.5" in note for note in table.notes)
    assert table.missing == [
        ("pascal5i abcb resnet50 1-shot fold 1 seed 0", "not started"),
        ("pascal5i abcb resnet50 1-shot fold 3 seed 0", "not started"),
    ]


def test_training_seeds_give_mean_and_sample_deviation(tmp_path, make_cell):
    for fold in range(4):
        for seed, offset in enumerate((0.0, 2.0, 4.0)):
            make_cell(fold, 60.0 + 10 * fold / 4 + offset, seed=seed, episodes=f"e{fold}")
    row = one_row(tmp_path)
    assert row.entries[1, 0].miou == pytest.approx(62.0)
    assert row.entries[1, 0].std == pytest.approx(2.0)  # sqrt((4 + 0 + 4) / 2)
    assert row.entries[1, 0].eval_std == 0.5
    assert row.entries[1, 0].seeds == (0, 1, 2)
    # Fold values 62, 64.5, 67, 69.5; means of the seeds 63.75, 65.75, 67.75.
    assert row.entries[1, MEAN].miou == pytest.approx(65.75)
    assert row.entries[1, MEAN].std == pytest.approx(2.0)


def test_one_seed_has_no_deviation(tmp_path, make_cell):
    make_cell(0, 70.0)
    assert one_row(tmp_path).entries[1, 0].std is None


def test_folds_with_different_numbers_of_seeds_are_told(tmp_path, make_cell):
    for fold in range(4):
        make_cell(fold, 60.0)
    make_cell(0, 64.0, seed=1)
    table = one_table(tmp_path)
    mean = table.rows[0].entries[1, MEAN]
    assert mean.miou == pytest.approx(60.5)  # (62 + 60 + 60 + 60) / 4
    assert mean.std is None
    assert any("fold 0: 2, fold 1: 1" in note for note in table.notes)
    assert [label for label, _ in table.missing] == [
        f"pascal5i abcb resnet50 1-shot fold {fold} seed 1" for fold in (1, 2, 3)
    ]


@pytest.mark.parametrize(
    "change",
    [{"num_episodes": 10}, {"seeds": [0]}, {"novel_in_training": "ignore"}, {"name": "bam"}, {"a_later_field": 1}],
)
def test_cells_of_different_protocols_are_never_averaged(tmp_path, make_cell, change):
    for fold in range(3):
        make_cell(fold, 60.0)
    make_cell(3, 90.0, protocol=change)
    report = build(collect([tmp_path]))
    assert len(report.tables) == 2
    assert all((1, MEAN) not in row.entries for table in report.tables for row in table.rows)
    titles = [table.title for table in report.tables]
    assert titles[0] != titles[1]


def test_cells_scored_on_other_images_are_never_averaged(tmp_path, make_cell):
    for fold in range(3):
        make_cell(fold, 60.0)
    make_cell(3, 90.0, data={"fingerprint_val": "other"})
    tables = build(collect([tmp_path])).tables
    assert len(tables) == 2
    assert tables[0].title != tables[1].title


def test_cells_trained_on_other_images_are_rows_of_their_own(tmp_path, make_cell):
    for fold in range(3):
        make_cell(fold, 60.0)
    make_cell(3, 90.0, data={"fingerprint_train": "other"})
    table = one_table(tmp_path)
    assert len({row.label for row in table.rows}) == 2
    assert all((1, MEAN) not in row.entries for row in table.rows)


def test_variants_methods_and_names_are_rows_of_their_own(tmp_path, make_cell):
    make_cell(0, 60.0)
    make_cell(0, 61.0, variant="train.lr=0.004")
    make_cell(0, 62.0, method="baseline")
    make_cell(0, 63.0, name="y")
    labels = [row.label for row in one_table(tmp_path).rows]
    assert labels == [
        "abcb resnet50 (x)",
        "abcb resnet50 (y)",
        "abcb resnet50 [train.lr=0.004] (x)",
        "baseline resnet50 (x)",
    ]


def test_only_abcb_at_its_defaults_has_a_figure_of_the_paper(tmp_path, make_cell):
    make_cell(0, 60.0)
    make_cell(0, 61.0, variant="train.lr=0.004")
    make_cell(0, 62.0, method="baseline")
    make_cell(0, 63.0, backbone="tiny")
    papers = {row.label: row.entries[1, 0].paper for row in one_table(tmp_path).rows}
    assert papers == {
        "abcb resnet50": 72.9,
        "abcb resnet50 [train.lr=0.004]": None,
        "baseline resnet50": None,
        "abcb tiny": None,
    }


def test_a_partial_result_taints_its_mean_and_stands_beside_no_published_figure(tmp_path, make_cell):
    for fold in range(4):
        make_cell(fold, 60.0, missing_classes=["sheep"] if fold == 3 else [])
    table = one_table(tmp_path)
    row = table.rows[0]
    for column in (3, MEAN):
        assert row.entries[1, column].partial
        assert row.entries[1, column].paper is None
        assert row.paper(1, column) is None
    assert row.entries[1, 0].paper == 72.9
    assert any("fold 3: partial, without sheep" in note for note in table.notes)


def test_a_sample_of_the_data_set_stands_beside_no_published_figure(tmp_path, make_cell):
    make_cell(0, 60.0, data={"num_val_images": 445})
    row = one_row(tmp_path)
    assert row.entries[1, 0].paper is None
    assert row.published == {}


def test_a_cell_with_two_different_results_is_left_out_and_told(tmp_path, make_cell):
    make_cell(0, 60.0, root=tmp_path / "a")
    make_cell(0, 61.0, root=tmp_path / "b")
    table = one_table(tmp_path)
    assert table.rows[0].entries == {}
    assert any("has two results" in note for note in table.notes)


def test_a_copied_result_counts_once(tmp_path, make_cell):
    for root in ("a", "b"):
        make_cell(0, 60.0, root=tmp_path / root)
    make_cell(0, 66.0, seed=1, root=tmp_path / "a")
    assert one_row(tmp_path).entries[1, 0].miou == pytest.approx(63.0)


def test_seeds_evaluated_on_different_episodes_are_not_averaged(tmp_path, make_cell):
    make_cell(0, 60.0, episodes="one")
    make_cell(0, 61.0, episodes="other", seed=1)
    table = one_table(tmp_path)
    assert table.rows[0].entries == {}
    assert any("different episodes" in note for note in table.notes)


def test_a_failed_cell_is_listed_in_the_row_it_belongs_to(tmp_path, make_cell):
    for fold in range(3):
        make_cell(fold, 60.0)
    folder = make_cell(3, None, status={"state": "failed", "reason": "disk full"}).directory
    table = one_table(tmp_path)
    assert len(table.rows) == 1
    assert table.missing == [("pascal5i abcb resnet50 1-shot fold 3 seed 0", f"failed, disk full ({folder})")]


def test_of_two_tables_of_its_protocol_a_failed_cell_is_listed_in_that_of_its_row(tmp_path, make_cell):
    make_cell(0, 60.0, data={"fingerprint_val": "a"})
    make_cell(0, 60.0, method="baseline", data={"fingerprint_val": "b"})
    make_cell(1, None, method="baseline", status="failed", config={"protocol": PROTOCOL})
    tables = {table.key.data_val: table for table in build(collect([tmp_path])).tables}
    label = "pascal5i baseline resnet50 1-shot fold 1 seed 0"
    assert dict(tables["b"].missing)[label].startswith("failed")
    assert label not in dict(tables["a"].missing)


def test_a_foreground_figure_is_of_all_seeds_or_none(tmp_path, make_cell):
    make_cell(0, 60.0)
    make_cell(0, 60.0, seed=1, result={"metrics": {"fb_iou": 70.0}})
    assert one_row(tmp_path).entries[1, 0].fb_iou == 75.0
    make_cell(0, 60.0, seed=2, result={"metrics": {"fb_iou": None}})
    assert one_row(tmp_path).entries[1, 0].fb_iou is None


def test_a_sweep_without_any_result_still_has_its_table(tmp_path, make_cell):
    make_cell(0, None, status="queued")
    table = one_table(tmp_path)
    assert table.rows[0].entries == {}
    assert [reason.split(" (")[0] for _, reason in table.missing] == ["queued"] + ["not started"] * 3


def test_a_fold_beyond_the_table_is_told(tmp_path, make_cell):
    make_cell(4, 60.0)
    make_cell(0, 60.0)
    (problem,) = build(collect([tmp_path])).problems
    assert "fold 4" in problem.what


OWN = {"dataset.name": "folder", "dataset.novel": []}


def test_a_data_set_of_other_folds_has_a_table_of_its_own_and_a_mean_of_all_of_them(tmp_path, make_cell):
    """Six folds, all done; two, of which one is; and novel classes by name, which are one fold."""
    for fold in range(6):
        make_cell(fold, 40.0 + fold, name="six", dataset="folder", identity=OWN | {"dataset.num_folds": 6})
    make_cell(1, 50.0, name="two", dataset="folder", identity=OWN | {"dataset.num_folds": 2})
    make_cell(0, 60.0, name="named", dataset="folder",
              identity=OWN | {"dataset.novel": ["zebra"], "dataset.num_folds": 2})  # fmt: skip
    report = build(collect([tmp_path]))
    assert report.problems == []
    tables = {table.rows[0].key.name: table for table in report.tables}
    six, named, two = (tables[name].rows[0].entries for name in ("six", "named", "two"))
    assert six[1, MEAN].miou == pytest.approx(42.5)  # (40 + ... + 45) / 6
    assert named[1, MEAN].miou == 60.0
    assert (1, MEAN) not in two
    assert tables["two"].missing == [("folder abcb resnet50 1-shot fold 0 seed 0", "not started")]
    assert tables["six"].missing == []
    assert tables["six"].as_text().header[-2:] == ["fold 5", "mean"]


def test_the_mean_does_not_depend_on_the_order_of_reading(tmp_path, make_cell):
    values = (0.1, 70.3, 33.3, 99.9)
    for fold in (3, 1, 0, 2):
        make_cell(fold, values[fold])
    assert one_row(tmp_path).entries[1, MEAN].miou == math.fsum(values) / 4


def _listed(mark):
    return {"episodes_file": f"{mark}.tsv", "episodes_list": {"protocol": "standard", "fingerprint": mark}}


def test_lists_of_different_folds_are_averaged_and_different_lists_of_one_fold_never(tmp_path, make_cell):
    for fold in range(4):
        make_cell(fold, 50.0 + 2 * fold, protocol=_listed(f"list{fold}"))
    (table,) = build(collect([tmp_path])).tables
    assert table.rows[0].entries[1, MEAN].miou == 53.0  # (50 + 52 + 54 + 56) / 4

    make_cell(0, 90.0, protocol=_listed("other"), method="baseline")
    tables = build(collect([tmp_path])).tables
    assert len(tables) == 5
    for table in tables:
        (row,) = table.rows
        assert len(row.entries) == 1
        assert "episodes_list=standard " in table.title


def test_a_cell_yet_to_be_evaluated_on_a_list_stands_beside_its_row(tmp_path, make_cell):
    make_cell(0, 50.0, protocol={**_listed("a"), "seeds": [7], "num_episodes": 5, "query_order": "episodes_file"})
    protocol = {
        "name": "standard", "novel_in_training": "drop", "min_pixels": 2048, "num_episodes": 1000, "seeds": [0, 1],
        "query_order": "cycle", "episodes_file": "b.tsv",
    }  # fmt: skip
    make_cell(1, None, config={"protocol": protocol}, status="running")
    (table,) = build(collect([tmp_path])).tables
    assert any("fold 1" in label and "running" in reason for label, reason in table.missing)


def test_rows_of_a_sweep_are_labelled_by_what_differs(tmp_path, make_cell):
    for lr in (0.1, 0.2):
        make_cell(0, 60.0, variant=f"model.iterations-5+train.lr-{lr}")
    make_cell(0, 60.0)
    table = one_table(tmp_path)
    assert [row.label for row in table.rows] == [
        "abcb resnet50", "abcb resnet50 [train.lr-0.1]", "abcb resnet50 [train.lr-0.2]",
    ]  # fmt: skip
    assert table.notes[0] == "all variants share: model.iterations-5"
    assert {row.key.variant for row in table.rows} > {"default", "model.iterations-5+train.lr-0.1"}


def test_rows_whose_names_are_cut_are_labelled_by_what_their_lines_set(tmp_path, make_cell):
    """As earlier versions cut them, in the middle of a key."""
    for lr, digest in ((0.1, "0a1b2c3d"), (0.2, "0a1b2c3e")):
        line = ["dataset.num_train=60", "protocol.min_pixels=100", f"train.lr={lr}", "fold=0"]
        variant = f"dataset.num_train-60+protocol.min_pi-{digest}"
        make_cell(0, 60.0, variant=variant, identity={}, overrides=line)
    table = one_table(tmp_path)
    assert [row.label for row in table.rows] == ["abcb resnet50 [train.lr-0.1]", "abcb resnet50 [train.lr-0.2]"]
    assert table.notes[0] == "all variants share: dataset.num_train-60+protocol.min_pixels-100"


def test_a_class_that_a_seed_did_not_draw_stands_below_the_table_with_both_figures(tmp_path, make_cell):
    metrics = {"miou_undrawn": {"left_out": 50.04, "zero": 40.04, "classes": ["toaster"]}}
    make_cell(1, 40.04, result={"metrics": metrics}, protocol={"name": "hsnet", "unlike": ["the final weights"]})
    (table,) = build(collect([tmp_path])).tables
    (row,) = table.rows
    assert not row.entries[1, 1].partial  # the images are there
    note = "fold 1 seed 0: classes without an episode in some seed (toaster): mIoU 50.0 if left out, 40.0 if counted 0"
    assert any(note in found for found in table.notes), table.notes
    assert any("protocol hsnet is not all that its code does: the final weights" in found for found in table.notes)
