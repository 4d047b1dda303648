"""Checkpoints beside the last one in the tables: in lines of their own, and in no number of the last."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fsseg.cell.record import RunDirectory
from fsseg.report.aggregate import aggregate
from fsseg.report.collect import collect, to_frame
from fsseg.report.paper import MEAN
from fsseg.report.tables import Table, build

MakeCell = Callable[..., RunDirectory]


def best(miou: float, kind: str = "best_novel", every_epochs: int = 1) -> dict[str, Any]:
    return {kind: {"step": 5, "epoch": 1.0, "chosen_by": 99.0, "validations": 2, "every_epochs": every_epochs,
                   "episodes": 40, "metrics": {"miou": miou, "fb_iou": 90.0}}}  # fmt: skip


def one_table(path: Path) -> Table:
    (table,) = build(collect([path])).tables
    return table


@pytest.fixture
def folds(tmp_path: Path, make_cell: MakeCell) -> Path:
    """Last: 60, 62, 64, 66, mean 63. Best: 70, 72, 74, 80, mean 74. A second row has none, and lies between."""
    for fold in range(4):
        make_cell(fold, 60.0 + 2 * fold, result=best((70.0, 72.0, 74.0, 80.0)[fold]))
        make_cell(fold, 65.0, method="baseline")
    return tmp_path


def test_the_best_has_a_line_below_its_row_and_enters_no_other_number(folds: Path) -> None:
    ours, other = one_table(folds).rows
    assert [ours.entries[1, column].miou for column in (0, 1, 2, 3, MEAN)] == [60, 62, 64, 66, 63]
    assert [ours.best["best_novel"][1, column].miou for column in (0, 1, 2, 3, MEAN)] == [70, 72, 74, 80, 74]
    assert ours.entries[1, MEAN].difference == pytest.approx(63 - 70.6)  # to the paper: of the last
    assert other.best == {}
    lines = [" ".join(line.split()) for line in aggregate([folds]).splitlines()]
    at = lines.index("best on novel classes 70.0 72.0 74.0 80.0 74.0")
    assert lines[at - 1].startswith("difference ")
    assert lines[at - 3] == "abcb resnet50 60.0 62.0 64.0 66.0 63.0"
    assert lines[at + 1] == "baseline resnet50 65.0 65.0 65.0 65.0 65.0"
    assert sum("train.select" in line for line in lines) == 1
    assert "| best on novel classes | 70.0 | 72.0 | 74.0 | 80.0 | 74.0 |" in (folds / "summary.md").read_text()
    assert r"\quad best on novel classes & 70.0 & 72.0 & 74.0 & 80.0 & 74.0 \\" in (folds / "summary.tex").read_text()


def test_as_data_it_has_names_of_its_own(folds: Path) -> None:
    aggregate([folds])
    rows = {(r["method"], r["fold"]): r for r in csv.DictReader((folds / "summary.csv").open())}
    assert (rows["abcb", "mean"]["miou"], rows["abcb", "mean"]["best_novel"]) == ("63.0", "74.0")
    assert (rows["abcb", "3"]["best_novel"], rows["abcb", "3"]["best_base"]) == ("80.0", "")
    assert rows["baseline", "3"]["best_novel"] == ""
    ours, other = json.loads((folds / "summary.json").read_text())["tables"][0]["rows"]
    assert ours["shots"]["1shot"]["best_novel"]["mean"]["miou"] == 74.0
    assert ours["shots"]["1shot"]["mean"]["miou"] == 63.0
    assert "best_novel" not in other["shots"]["1shot"]
    assert to_frame(collect([folds])).query("method == 'abcb'")["best_novel"].tolist() == [70, 72, 74, 80]
    replication = json.loads((folds / "replication_results.json").read_text())["results"]
    assert replication["pascal5i_resnet50_1shot"]["mean"]["miou"] == pytest.approx(0.63)


def test_a_column_whose_runs_do_not_all_have_it_has_none(tmp_path: Path, make_cell: MakeCell) -> None:
    for fold in range(4):
        for seed in (0, 1):
            kept = best(70.0 + 4 * seed, "best_base") if (fold, seed) != (2, 1) else {}
            make_cell(fold, 60.0, seed=seed, episodes="e", result=kept)
    (row,) = one_table(tmp_path).rows
    assert {column: entry.miou for (_, column), entry in row.best["best_base"].items()} == {0: 72, 1: 72, 3: 72}
    assert row.best["best_base"][1, 0].std == pytest.approx(8**0.5)  # of 70 and 74: sqrt(4 + 4)
    assert row.entries[1, MEAN].miou == 60.0
    assert "best on base classes" in aggregate([tmp_path])


def test_a_run_of_a_chosen_checkpoint_is_a_row_of_its_own_that_says_so(tmp_path: Path, make_cell: MakeCell) -> None:
    for fold in range(4):
        make_cell(fold, 60.0, variant="v")
    make_cell(
        0, 80.0, seed=1, episodes="e0", variant="v", result={"checkpoint": {"path": "x", "selected": "best_novel"}}
    )
    make_cell(0, 62.0, seed=2, episodes="e0", variant="v", result={"checkpoint": {"path": "x"}})
    last, chosen = one_table(tmp_path).rows
    assert (last.label, last.entries[1, 0].miou) == ("abcb resnet50 [v]", 61.0)
    assert (chosen.label, chosen.entries[1, 0].miou) == ("abcb resnet50 [v] (best on novel classes)", 80.0)


def test_it_is_told_if_runs_of_a_row_were_not_looked_at_alike(tmp_path: Path, make_cell: MakeCell) -> None:
    for fold in range(4):
        make_cell(fold, 60.0, result=best(70.0, every_epochs=5 if fold == 3 else 1))
    how = "every 5 epochs, 40 episodes or every epoch, 40 episodes"
    told = f"differs: best on novel classes, looked for: {how} (abcb resnet50)"
    assert f"  {told}\n" in aggregate([tmp_path])
