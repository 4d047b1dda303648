"""Published figures of the methods beside ABCB: beside which runs they stand, and what is told of them."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from run_directories import make_run

from fsseg.cell.record import Cell, open_cell
from fsseg.config.compose import Composed, composer, config_folder
from fsseg.config.schema import MethodConfig
from fsseg.errors import UserError
from fsseg.report import published
from fsseg.report.collect import collect
from fsseg.report.formats import TextTable
from fsseg.report.paper import MEAN
from fsseg.report.published import as_printed, published_results, published_rows
from fsseg.report.summary import to_csv, to_json, to_replication
from fsseg.report.tables import Row, Table, build

MIOU = (60.0, 65.0, 58.0, 55.0)  # of folds 0 to 3; their mean is 59.5
EXPERIMENTS = sorted(path.stem for path in (config_folder() / "experiment").glob("*_paper.yaml"))


def composed(*line: str) -> list[Composed]:
    with composer() as c:
        found = [made for _, made in c.grid(line)]
    assert not [made for made in found if isinstance(made, UserError)]
    return [made for made in found if isinstance(made, Composed)]


def opened(made: Composed) -> Cell:
    return open_cell(made.cfg, made.resolved, made.task_overrides)


def cells(*line: str) -> list[Cell]:
    return [opened(made) for made in composed(*line)]


def printed(cell: Cell) -> int:
    """How many rows of the file a cell should have beside it."""
    key, file = cell.key, published_results()
    entries = [e for e in file["entries"] if (e["method"], e["backbone"]) == (key.method, key.backbone)]
    if (key.method, key.backbone) == ("dino", "dinov3_b"):
        entries = [e for e in file["training_free"] if "DINOv3 ViT-B" in e["method"]]
    of_place = [e for e in entries if (e["dataset"], e["shot"]) == (key.dataset, key.shot)]
    return sum("memory" not in e["source"] for e in of_place)


def finished(path: Path, made: Sequence[Cell], protocol: str = "standard", **result: Any) -> Table:
    """The table of these cells, each with the mIoU of its fold."""
    for cell in made:
        key = cell.key
        given = {"protocol": {"name": protocol}, "metrics": {"miou": MIOU[key.fold]}, **result}
        make_run(path, key, identity=cell.identity, result=given)
    (table,) = build(collect([path])).tables
    return table


def row_of(table: Table) -> Row:
    (row,) = table.rows
    return row


def line_of(text: TextTable, label: str) -> list[str]:
    (line,) = [row for row in text.rows if row[0].strip() == label]
    return line[1:]


@pytest.fixture(scope="module")
def pfenet() -> list[Cell]:
    return cells("experiment=pfenet_paper", "dataset=pascal5i", "backbone=resnet50", "shot=1")


@pytest.fixture(scope="module")
def bam() -> Composed:
    return composed("experiment=bam_paper", "dataset=pascal5i", "shot=1", "fold=0")[0]


@pytest.fixture(scope="module")
def by_its_rules() -> dict[str, list[Cell]]:
    """By data set: PFENet by its recipe and by the rules of its code."""
    line = ("experiment=pfenet_paper", "backbone=resnet50", "shot=1", "protocol=pfenet")
    return {
        "pascal5i": cells(*line, "dataset=pascal5i"),
        "coco20i": cells(*line, "dataset=coco20i", "dataset.val_list=val.txt", "fold=0"),
    }


@pytest.fixture(scope="module")
def hsnet() -> list[Cell]:
    return cells("experiment=hsnet_paper", "dataset=pascal5i", "backbone=resnet50")


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_cell_of_a_methods_experiment_stands_beside_all_that_is_published_for_it(
    experiment: str, tmp_path: Path
) -> None:
    both = [(opened(c), c.resolved) for c in composed(f"experiment={experiment}", "fold=0")]
    for cell, config in both:
        make_run(tmp_path, cell.key, identity=cell.identity, result=50.0, config=config)
    tables = build(collect([tmp_path])).tables
    assert [note for table in tables for note in table.notes if "no published figure" in note] == []
    expected = {(c.key.method, c.key.dataset, c.key.backbone, c.key.shot): printed(c) for c, _ in both}
    found = {
        (row.key.method, table.key.dataset, row.key.backbone, shot): len(of_shot)
        for table in tables
        for row in table.rows
        for shot, of_shot in row.reported.items()
    }
    assert found == {place: number for place, number in expected.items() if number}
    assert found


def test_under_other_rules_the_figures_stand_there_without_a_difference(pfenet: list[Cell], tmp_path: Path) -> None:
    text = finished(tmp_path, pfenet).as_text()
    assert line_of(text, "published (1)") == ["61.7", "69.5", "55.4", "56.3", "60.8"]  # its mean as printed
    assert [row[0].strip() for row in text.rows] == [text.rows[0][0], "published (1)"]
    assert "published (1): pfenet, read in: SCCAN and VAT READMEs" in text.notes
    (rules,) = [note for note in text.notes if note.startswith("no difference is told")]
    assert "protocol=pfenet" in rules
    (chosen,) = [note for note in text.notes if "selected on the novel test classes" in note]
    assert chosen.startswith("published figures of pfenet are")


def test_under_the_rules_of_its_code_the_difference_is_told(by_its_rules: Any, tmp_path: Path) -> None:
    table = finished(tmp_path, by_its_rules["pascal5i"], "pfenet")
    row, text = row_of(table), table.as_text()
    assert line_of(text, "difference") == ["-1.7", "-4.5", "+2.6", "-1.3", "-1.3"]  # 59.5 - 60.8
    assert row.entries[1, 0].difference == pytest.approx(60.0 - 61.7)
    assert row.entries[1, MEAN].paper == 60.8
    assert not [note for note in text.notes if note.startswith("no difference is told")]


@pytest.mark.parametrize(
    "changed",
    [
        {"protocol.num_episodes": 50},
        {"protocol.seeds": [0]},
        {"protocol.scoring_size": "network"},
        {"protocol.ignore_in_loss": False},
        {"protocol.episodes_file (content)": "0123"},
        {"protocol.fit": "longer_side"},
    ],
)
def test_rules_that_only_bear_the_name_of_its_code_give_no_difference(
    changed: dict[str, Any], by_its_rules: Any, tmp_path: Path
) -> None:
    for cell in by_its_rules["pascal5i"]:
        given = {"protocol": {"name": "pfenet"}, "metrics": {"miou": 60.0}}
        make_run(tmp_path, cell.key, identity={**cell.identity, **changed}, result=given)
    (table,) = build(collect([tmp_path])).tables
    text = table.as_text()
    assert [row[0].strip() for row in text.rows] == [text.rows[0][0], "published (1)"]
    assert any("(protocol=pfenet, unchanged)" in note for note in text.notes)


def test_the_rules_of_a_code_are_those_that_its_protocol_sets() -> None:
    extra = {"coco20i": ("dataset.val_list=val.txt",), "pascal5i": ()}
    with composer() as c:
        made = {
            (method, dataset): c.one([f"protocol={method}", f"dataset={dataset}", *extra[dataset]]).resolved["protocol"]
            for method, dataset in published._RULES
        }
    for (method, dataset), rules in published._RULES.items():
        set_by_it = made[method, dataset]
        rest = {"name", "train_pool", "image_size", "episodes_file", "unlike"}  # of the data set, or of one line
        expected = {f"protocol.{rule}": (value,) for rule, value in set_by_it.items() if rule not in rest}
        assert rules == expected | {"protocol.episodes_file (content)": (None,)}, (method, dataset)


def test_of_two_published_rows_both_stand_there_and_the_note_of_one_too(hsnet: list[Cell], tmp_path: Path) -> None:
    report_of = finished(tmp_path, hsnet, "hsnet")
    text = report_of.as_text()
    assert line_of(text, "published (1)") == ["64.3", "70.7", "60.3", "60.5", "64.0"]
    assert line_of(text, "published (2)") == ["63.5", "68.2", "62.4", "59.8", "63.5"]
    assert line_of(text, "difference") == ["-4.3", "-5.7", "-2.3", "-5.5", "-4.5"]  # to the first, which has no note
    assert [row[0].strip() for row in text.rows].index("difference") == 2
    assert "published (2): hsnet, read in: SCCAN README; uniform lists" in text.notes
    assert "no difference is told to a published figure with a note" in text.notes


def test_files_hold_every_published_row_with_its_source(hsnet: list[Cell], tmp_path: Path) -> None:
    finished(tmp_path, hsnet, "hsnet")
    report = build(collect([tmp_path]))
    first, *_, mean = csv.DictReader(to_csv(report).splitlines())
    both = "64.3 (hsnet, read in: VAT README) | 63.5 (hsnet, read in: SCCAN README; uniform lists)"
    assert (first["published"], first["paper"], mean["paper"]) == (both, "64.3", "64.0")
    assert float(first["difference"]) == pytest.approx(60.0 - 64.3)
    block = json.loads(json.dumps(to_json(report)))["tables"][0]["rows"][0]["shots"]["1shot"]
    assert [(p["mean"], p["source"], p["note"], p["compared"]) for p in block["published"]] == [
        (64.0, "VAT README", "", True),
        (63.5, "SCCAN README", "uniform lists", False),
    ]
    old = to_replication(report)
    assert (old["results"], len(old["left_out"])) == ({}, 1)
    (table,) = report.tables
    grey = r"\textcolor{gray}{\quad published (2)} & \textcolor{gray}{63.5} & \textcolor{gray}{68.2}"
    assert grey in table.as_text().to_latex()
    assert "| published (2) | 63.5 | 68.2" in table.as_text().to_markdown()


def test_more_shots_of_hsnet_are_the_answer_of_a_checkpoint(tmp_path: Path) -> None:
    weights = tmp_path / "last.pt"
    weights.write_bytes(b"weights")
    line = ("experiment=hsnet_paper", "dataset=pascal5i", "backbone=resnet50", "fold=0", "shot=5", "variant=x")
    evaluated = cells(*line, "train.enabled=false", f"checkpoint={weights}")
    table = finished(tmp_path / "evaluated", evaluated, "hsnet")
    first, second = row_of(table).reported[5]
    assert (first.mean, first.note) == (69.5, "the training of the checkpoint is not known")
    assert (second.mean, second.note) == (69.3, "uniform lists; the training of the checkpoint is not known")
    assert not [row for row in table.as_text().rows if row[0].strip() == "difference"]
    trained = finished(tmp_path / "trained", cells(*line), "hsnet")
    assert row_of(trained).reported == {}
    assert any("(train.enabled=true)" in note for note in trained.notes)


def test_another_recipe_has_no_figures_beside_it_and_one_note_says_why(tmp_path: Path) -> None:
    common = cells("experiment=methods_common", "dataset=pascal5i", "method=pfenet,hsnet", "seed=0")
    table = finished(tmp_path, common)
    assert [row.reported for row in table.rows] == [{}, {}]
    (note,) = [note for note in table.notes if note.startswith("no published figures")]
    for method in ("hsnet", "pfenet"):
        assert f"{method} resnet50 1-shot (train." in note
    assert "experiment-methods_common" in table.as_text().to_markdown()  # once, for all rows
    assert "train.batch_size=16" in note
    assert "selected on the novel" not in " ".join(table.as_text().notes)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"train.lr": 0.005}, "train.lr x train.lr_scale=0.05"),
        ({"train.epochs": 15}, "train.epochs=15"),
        ({"model.channels": 64}, "model.channels=64"),
        ({"dataset.train_list": None}, "dataset.train_list=null"),
        ({"train.lr_factors.backbone": 0.1}, "train.lr_factors.backbone=0.1"),
        ({"train.lr": "much"}, "train.lr x train.lr_scale=unknown"),
        ({"train.lr": None}, "train.lr x train.lr_scale=unknown"),
        ({"train.lr": 0.025, "train.lr_scale": "much"}, "train.lr x train.lr_scale=unknown"),
        ({"train.lr": 0.025, "train.lr_scale": 1}, ""),
        ({"backbone.base_training": True}, "backbone.base_training=true"),
        ({"dataset.scale_range": [0.5, 2.0]}, "dataset.scale_range=[0.5, 2.0]"),
    ],
)
def test_a_setting_that_is_not_the_published_one_is_named(
    change: dict[str, Any], told: str, pfenet: list[Cell], tmp_path: Path
) -> None:
    key, identity = pfenet[0].key, {**pfenet[0].identity, **change}
    make_run(tmp_path, key, identity=identity, result=50.0)
    (table,) = build(collect([tmp_path])).tables
    notes = [note for note in table.notes if note.startswith("no published figures")]
    assert [told in note for note in notes] == ([True] if told else [])


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({}, ""),
        ({"epochs": 1}, "base_training.epochs=1"),
        ({"image_size": 81}, "base_training.image_size=81"),
        ({"max_steps": 9}, "base_training.max_steps=9"),
        (None, "base_training.epochs=unknown"),
    ],
)
def test_a_base_learner_that_is_not_the_published_one_is_named(
    changed: dict[str, Any] | None, told: str, bam: Composed, tmp_path: Path
) -> None:
    cell, whole = opened(bam), bam.resolved
    config = None if changed is None else {**whole, "base_training": {**whole["base_training"], **changed}}
    make_run(tmp_path, cell.key, identity=cell.identity, result=50.0, config=config)
    (table,) = build(collect([tmp_path])).tables
    notes = [note for note in table.notes if note.startswith("no published figures")]
    assert [told in note for note in notes] == ([True] if told else [])
    assert len(row_of(table).reported.get(1, [])) == (0 if told else 2)


def test_unknown_settings_samples_and_partial_results_stand_beside_nothing(pfenet: list[Cell], tmp_path: Path) -> None:
    make_run(tmp_path / "unknown", pfenet[0].key, result=50.0)
    (table,) = build(collect([tmp_path / "unknown"])).tables
    assert row_of(table).reported == {}
    assert any("settings unknown" in note for note in table.notes)
    sample = finished(tmp_path / "sample", pfenet, dataset={"num_val_images": 445})
    assert row_of(sample).reported == {}
    partial = finished(tmp_path / "partial", pfenet[:1], "pfenet", partial=True, missing_classes=["cat"]).as_text()
    assert line_of(partial, "published (1)")[0] == ""


def test_what_was_written_down_from_memory_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {"method": "pfenet", "dataset": "pascal5i", "backbone": "resnet50", "shot": 1, "folds": None, "mean": 60.0}
    both = [{**entry, "source": "memory, 2023"}, {**entry, "source": "its paper", "mean": 61.0}]
    monkeypatch.setattr(published, "published_results", lambda: {"entries": both, "training_free": []})
    assert [row.mean for row in published_rows("pfenet", "pascal5i", "resnet50", 1)] == [61.0]


def test_a_training_free_figure_is_named_as_what_it_is() -> None:
    (row,) = published_rows("dino", "coco20i", "dinov3_b", 1)
    assert (row.mean, row.at(0), row.at(MEAN)) == (58.54, None, 58.54)
    assert "its own protocol" in row.note
    assert published_rows("dino", "coco20i", "resnet50", 1) == []


def test_figures_have_the_decimals_that_were_printed() -> None:
    assert [as_printed(value) for value in (68.97, 64.0, 55.3, None)] == ["68.97", "64.0", "55.3", ""]


def test_every_method_with_figures_has_the_settings_that_these_are_of() -> None:
    entries = published_results()["entries"]
    known = {(e["method"], e["dataset"]) for e in entries if e["method"] in MethodConfig.choices()}
    assert known <= set(published._RECIPES)


def test_a_difference_is_told_to_one_row_at_most() -> None:
    places = [(e["method"], e["dataset"], e["backbone"], e["shot"]) for e in published_results()["entries"]]
    for place in places:
        assert sum(not row.note for row in published_rows(*place)) <= 1, place


@pytest.mark.shared
def test_the_packaged_file_is_the_reference(shared_dir: Path) -> None:
    assert published_results() == json.loads((shared_dir / "facts" / "published_results.json").read_text())
