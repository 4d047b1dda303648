"""A replication_results.json of anybody: what is no figure is named, the others count; and the one that we write."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_directories import PROTOCOL

from fsseg.cell.record import RunDirectory
from fsseg.report.aggregate import aggregate
from fsseg.report.collect import collect
from fsseg.report.paper import MEAN
from fsseg.report.tables import build

GOOD = {"0": {"miou": 0.5}}

MakeCell = Callable[..., RunDirectory]


@pytest.mark.parametrize(
    ("results", "named"),
    [
        ({"pascal5i_resnet50_1shot": {**GOOD, "9" * 5000: {"miou": 0.5}}}, "is neither a fold nor the mean"),
        ({"pascal5i_resnet50_1shot": {**GOOD, "²": {"miou": 0.5}}}, "is neither a fold nor the mean"),
        ({"pascal5i_resnet50_1shot": GOOD, f"a_b_{'9' * 5000}shot": GOOD}, "is not <dataset>"),
        ({"pascal5i_resnet50_1shot": GOOD, "../../x_b_1shot": GOOD}, "is not <dataset>"),
        ({"pascal5i_resnet50_1shot": GOOD, "x" * 300 + "_b_1shot": GOOD}, "is not <dataset>"),
        ({"pascal5i_resnet50_1shot": GOOD, "a_b_1shot": []}, "is not <dataset>"),
        ({"pascal5i_resnet50_1shot": {**GOOD, "1": {"miou": ["x"] * 10_000}}}, "is no fraction"),
        ({"pascal5i_resnet50_1shot": {**GOOD, "1": {"miou": float("nan")}}}, "is no fraction"),
        ({"pascal5i_resnet50_1shot": {**GOOD, "1": {"miou": 10**400}}}, "is no fraction"),
    ],
)
def test_a_wrong_entry_is_named_in_short_and_the_others_count(
    tmp_path: Path, results: dict[str, Any], named: str
) -> None:
    (tmp_path / "replication_results.json").write_text(json.dumps({"results": results}))
    found = collect([tmp_path])
    (problem,) = found.problems
    assert named in problem.what
    assert len(problem.what) < 300
    assert [(c.key.fold, c.result.miou) for c in found.cells] == [(0, 50.0)]


def test_of_many_faults_the_first_are_named_and_the_rest_counted(tmp_path: Path) -> None:
    (tmp_path / "replication_results.json").write_text(json.dumps({"results": {f"{i}": 1 for i in range(1000)}}))
    problems = collect([tmp_path]).problems
    assert len(problems) == 21
    assert problems[-1].what == "has 980 more faults"


@pytest.mark.parametrize(
    ("content", "named"),
    [(b"[" * 200_000, "nested too deeply"), (b"\xff", "not JSON"), (b"[]", "not a JSON object"), (b"", "not JSON")],
)
def test_what_is_no_such_file_is_named(tmp_path: Path, content: bytes, named: str) -> None:
    (tmp_path / "replication_results.json").write_bytes(content)
    (problem,) = collect([tmp_path]).problems
    assert named in problem.what


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    os.mkfifo(tmp_path / "a" / "replication_results.json")
    (tmp_path / "b" / "replication_results.json").mkdir(parents=True)
    with (tmp_path / "replication_results.json").open("wb") as file:
        file.truncate(1 << 40)
    problems = collect([tmp_path]).problems
    assert [str(p).partition(": ")[2].partition(",")[0] for p in problems] == [
        "cannot be read (1099511.6 MB", "cannot be read (a FIFO", "cannot be read (a folder",
    ]  # fmt: skip


def older(folder: Path, **results: dict[int, float]) -> Path:
    """A file of the older workflow: key -> {fold: fraction}."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {key: {str(fold): {"miou": miou} for fold, miou in folds.items()} for key, folds in results.items()}
    (folder / "replication_results.json").write_text(json.dumps({"results": content}))
    return folder


def written(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "replication_results.json").read_text())
    return content


def test_older_files_complete_each_other_wherever_they_lie(tmp_path: Path) -> None:
    a = older(tmp_path / "server1" / "out", pascal5i_resnet50_1shot={0: 0.70, 1: 0.75})
    b = older(tmp_path / "server2", pascal5i_resnet50_1shot={2: 0.68, 3: 0.65}, pascal5i_resnet50_5shot={0: 0.74})
    (table,) = build(collect([a, b])).tables
    (row,) = table.rows
    assert row.label == "abcb resnet50"
    assert row.entries[1, MEAN].miou == pytest.approx(69.5)  # (70 + 75 + 68 + 65) / 4
    assert table.missing == []
    text = aggregate([a, b], tmp_path / "tables")
    assert "70.0    75.0    68.0    65.0  69.5" in text
    found = written(tmp_path / "tables")["results"]
    assert found["pascal5i_resnet50_1shot"]["mean"]["miou"] == pytest.approx(0.695)
    source = f"{b}/replication_results.json"
    assert found["pascal5i_resnet50_1shot"]["2"] == {"miou": pytest.approx(0.68), "from": source}
    assert set(found["pascal5i_resnet50_5shot"]) == {"0"}


def test_a_copy_of_an_older_file_counts_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        older(tmp_path / name, pascal5i_resnet50_1shot={0: 0.70})
    (table,) = build(collect([tmp_path])).tables
    assert [(row.key.name, row.entries[1, 0].miou) for row in table.rows] == [("older workflow", 70.0)]
    assert any("lie twice and count once" in note for note in table.notes)


def test_older_files_that_contradict_each_other_stay_apart_under_that_key(tmp_path: Path) -> None:
    """Two experiments, whose folders have one name."""
    a = older(tmp_path / "a" / "out", pascal5i_resnet50_1shot={0: 0.70, 1: 0.71}, pascal5i_resnet50_5shot={0: 0.8})
    b = older(tmp_path / "b" / "out", pascal5i_resnet50_1shot={0: 0.60, 2: 0.61}, pascal5i_resnet50_5shot={1: 0.9})
    collection = collect([a, b])
    (problem,) = collection.problems
    file = "replication_results.json"
    assert str(problem) == (
        f"{b}/{file}: has another fold 0 of pascal5i_resnet50_1shot than {a}/{file}: their figures stay apart"
    )
    (table,) = build(collection).tables
    found = {row.label: {place: entry.miou for place, entry in row.entries.items()} for row in table.rows}
    assert found == {
        "abcb resnet50 (older workflow)": {(5, 0): 80.0, (5, 1): 90.0},
        "abcb resnet50 (out)": {(1, 0): 70.0, (1, 1): 71.0},
        "abcb resnet50 (out 2)": {(1, 0): 60.0, (1, 2): 61.0},
    }


def test_older_figures_and_new_runs_stand_apart_in_tables_and_complete_each_other_in_the_file(
    tmp_path: Path, make_cell: MakeCell
) -> None:
    old = older(tmp_path / "old", pascal5i_resnet50_1shot={0: 0.70, 1: 0.75, 2: 0.5})
    for fold in (2, 3):
        make_cell(fold, 68.0, protocol=PROTOCOL)
    tables = {table.protocol["name"]: table for table in build(collect([tmp_path])).tables}
    new = tables["standard"]
    assert set(new.rows[0].entries) == {(1, 2), (1, 3)}
    (note,) = [note for note in new.notes if "older workflow" in note]
    assert "abcb resnet50 1-shot: the older workflow has fold 0: 70.0, fold 1: 75.0, fold 2: 50.0; " in note
    text = aggregate([tmp_path], tmp_path / "tables")
    content = written(tmp_path / "tables")
    source = f"{old}/replication_results.json"
    assert content["results"] == {
        "pascal5i_resnet50_1shot": {
            "0": {"miou": 0.7, "from": source}, "1": {"miou": 0.75, "from": source},
            "2": {"miou": 0.68}, "3": {"miou": 0.68},
        }
    }  # fmt: skip
    expected = "pascal5i_resnet50_1shot: folds 0, 1 of the older workflow, the others of runs, so there is no mean"
    assert content["notes"] == [expected]
    assert expected in text
    assert content["left_out"][0].startswith("abcb resnet50 1-shot fold 2 of pascal5i (mIoU in percent; protocol older")


def test_a_new_run_takes_the_place_of_an_older_figure_whatever_its_protocol(
    tmp_path: Path, make_cell: MakeCell
) -> None:
    older(tmp_path / "old", pascal5i_resnet50_1shot=dict.fromkeys(range(4), 0.5))
    make_cell(0, 68.0, protocol=PROTOCOL | {"name": "bam"})
    aggregate([tmp_path], tmp_path / "tables")
    found = written(tmp_path / "tables")["results"]["pascal5i_resnet50_1shot"]
    assert {fold: figure["miou"] for fold, figure in found.items()} == {"0": 0.68, "1": 0.5, "2": 0.5, "3": 0.5}


def test_the_file_is_written_though_it_can_hold_nothing_and_says_why(tmp_path: Path, make_cell: MakeCell) -> None:
    make_cell(0, 60.0, method="baseline")
    make_cell(0, 61.0, variant="train.lr-1")
    make_cell(0, 62.0, shot=5, missing_classes=["cat"])
    make_cell(1, None, shot=10, status="failed")
    text = aggregate([tmp_path / "x"])
    assert written(tmp_path / "x") == {
        "results": {}, "unit": "fraction", "written_by": "fsseg aggregate",
        "left_out": [
            "pascal5i abcb resnet50 5-shot: partial, a novel class is missing",
            "pascal5i abcb resnet50 [train.lr-1] 1-shot: the file has no place for variants",
            "pascal5i baseline resnet50 1-shot: the file holds abcb alone",
        ],
        "notes": ["no row of these tables has a place in it: it holds whole results of abcb at its defaults"],
    }  # fmt: skip
    for said in ("5-shot: partial", "no place for variants", "holds abcb alone", "no row of these tables"):
        assert said in text


def test_many_rows_without_a_place_are_all_in_the_file_and_the_first_in_the_text(
    tmp_path: Path, make_cell: MakeCell
) -> None:
    for number in range(30):
        make_cell(0, 60.0, variant=f"train.lr-{number}")
    text = aggregate([tmp_path / "x"])
    assert text.count("has no place for variants") == 20
    assert "  ... and 10 more, listed in it\n" in text
    assert len(written(tmp_path / "x")["left_out"]) == 30
