"""A row whose numbers were made with different code, torch or devices says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from run_directories import KEY, make_run

from fsseg.cell.record import RunDirectory
from fsseg.report.aggregate import aggregate
from fsseg.report.collect import NOT_RECORDED, MadeWith, collect
from fsseg.report.tables import build

MakeCell = Callable[..., RunDirectory]


def made(torch: str = "2.4.1", commit: str | None = "a" * 40, dirty: bool = False, **rest: Any) -> dict[str, Any]:
    provenance = {"fsseg": "1.2", "git": {"commit": commit, "dirty": dirty}, "packages": {"torch": torch, "numpy": "2"}}
    return {"provenance": provenance | {"device": "NVIDIA H100"} | rest}


def notes(path: Path) -> list[str]:
    (table,) = build(collect([path])).tables
    return [note for note in table.notes if "folds done" not in note and "seeds" not in note]


def test_a_row_of_one_version_says_nothing(tmp_path: Path, make_cell: MakeCell) -> None:
    for fold in range(4):
        make_cell(fold, 60.0, result=made())
    assert notes(tmp_path) == []


def test_the_cells_with_another_torch_are_named(tmp_path: Path, make_cell: MakeCell) -> None:
    for fold in range(4):
        make_cell(fold, 60.0, result=made("2.1.0" if fold == 2 else "2.4.1"))
    expected = "abcb resnet50: not all with the same torch. 2.4.1: 3 cells; 2.1.0: 1-shot fold 2 seed 0"
    assert notes(tmp_path) == [expected]
    assert f"{expected}\n" in aggregate([tmp_path])
    assert expected in (tmp_path / "summary.md").read_text()
    (row,) = json.loads((tmp_path / "summary.json").read_text())["tables"][0]["rows"]
    same = {"code": "commit aaaaaaaaaa", "edited": False, "device": "NVIDIA H100"}
    assert row["made_with"] == [{"torch": "2.4.1", **same, "cells": 3}, {"torch": "2.1.0", **same, "cells": 1}]


def test_commits_versions_and_devices_are_named_each_in_a_note(tmp_path: Path, make_cell: MakeCell) -> None:
    make_cell(0, 60.0, result=made())
    make_cell(1, 60.0, result=made(commit="b" * 40, device="CPU (2 threads)"))
    make_cell(2, 60.0, result=made(commit=None, device="CPU (4 threads)"))
    make_cell(3, 60.0, result=made(device="CPU (4 threads)"))
    assert notes(tmp_path) == [
        "abcb resnet50: not all with the same fsseg. commit aaaaaaaaaa: 2 cells; "
        "commit bbbbbbbbbb: 1-shot fold 1 seed 0; version 1.2: 1-shot fold 2 seed 0",
        "abcb resnet50: not all with the same device. CPU: 3 cells; NVIDIA H100: 1-shot fold 0 seed 0",
    ]


def test_code_that_is_in_no_commit_is_named_though_it_is_the_same_everywhere(
    tmp_path: Path, make_cell: MakeCell
) -> None:
    for fold in range(4):
        make_cell(fold, 60.0, result=made(dirty=True))
        make_cell(fold, 60.0, method="baseline", result=made(dirty=fold == 3))
    assert notes(tmp_path) == [
        "made while fsseg had changes that are in no commit: "
        "abcb resnet50 (all of it), baseline resnet50 (1-shot fold 3 seed 0)"
    ]


def test_rows_are_looked_at_each_for_itself(tmp_path: Path, make_cell: MakeCell) -> None:
    make_cell(0, 60.0, result=made("2.1.0"))
    make_cell(0, 60.0, method="baseline", result=made("2.4.1"))
    assert notes(tmp_path) == []


def test_of_many_cells_the_first_are_named(tmp_path: Path, make_cell: MakeCell) -> None:
    for seed in range(10):
        make_cell(0, 60.0, seed=seed, episodes="e", result=made())
        make_cell(1, 60.0, seed=seed, episodes="e", result=made("2.1.0") if seed else made())
    (note,) = notes(tmp_path)
    assert note.endswith("2.1.0: " + ", ".join(f"1-shot fold 1 seed {s}" for s in range(1, 7)) + " and 3 more")


@pytest.mark.parametrize(
    "odd", [{}, {"git": 3, "packages": [1], "fsseg": None, "device": 7}, {"packages": {"torch": 2}}]
)
def test_what_is_not_recorded_or_odd_is_no_difference(odd: dict[str, Any], tmp_path: Path, make_cell: MakeCell) -> None:
    assert MadeWith.of(odd) == NOT_RECORDED
    make_cell(0, 60.0, result=made())
    make_cell(1, 60.0, result={"provenance": odd})
    assert notes(tmp_path) == []


def test_what_is_kept_of_a_thousand_results_is_kept_once(tmp_path: Path) -> None:
    for seed in range(20):
        make_run(tmp_path, replace(KEY, seed=seed), result=made() | {"metrics": {"miou": 60.0}})
    cells = collect([tmp_path]).cells
    assert len({id(cell.made_with) for cell in cells}) == 1
    assert all(cell.result.provenance == {} for cell in cells)
