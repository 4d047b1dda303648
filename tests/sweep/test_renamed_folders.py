"""A folder of runs that was renamed or copied: every command knows its cells by their own names."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from run_directories import make_run
from test_retry import reached, start

from fsseg.cell.key import CellKey
from fsseg.cell.models import Result, write_record
from fsseg.cell.record import Cell, RunDirectory, look_at
from fsseg.report.aggregate import aggregate
from fsseg.report.collect import collect
from fsseg.report.tables import build
from fsseg.sweep import sync
from fsseg.sweep.retry import find_retries
from fsseg.sweep.status import text

KEY = CellKey("runs", "shapes5i", "abcb", "tiny", 1, 0, 0, "default")


@pytest.fixture(params=[3, 1], ids=["now", "earlier"])
def renamed(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Two cells done, one failed, in a folder that was called `runs`; also as an earlier version left them."""
    outputs = tmp_path / "outputs"
    for fold in (0, 1):
        make_run(outputs, replace(KEY, fold=fold), result=60.0 + fold, identity={}, version=request.param)
    make_run(outputs, replace(KEY, fold=2), status={"state": "failed", "reason": "out of luck"}, identity={},
             config={"name": "runs"}, version=request.param)  # fmt: skip
    return (outputs / "runs").rename(outputs / "runs_server2")


def test_aggregate_has_one_row_for_a_renamed_folder(renamed: Path) -> None:
    (table,) = build(collect([renamed])).tables
    (row,) = table.rows
    assert row.key.name == "runs"
    assert [place for place in table.missing if "fold 2" in place[0]] == [
        ("shapes5i abcb tiny 1-shot fold 2 seed 0", f"failed, out of luck ({renamed}/{replace(KEY, fold=2).path})"
         .replace("runs_server2/runs/", "runs_server2/")),
    ]  # fmt: skip


def test_collect_and_status_name_the_cells_as_they_were(renamed: Path) -> None:
    assert {c.key.name for c in collect([renamed]).cells} == {"runs"}
    assert {s.key.name for s in look_at([renamed]) if s.key} == {"runs"}
    lines = text(look_at([renamed])).splitlines()
    here = renamed / replace(KEY, fold=2).path.relative_to("runs")
    assert f"  {replace(KEY, fold=2)} (in {here})  failed: out of luck, log: {here}/train.log" in lines
    assert lines[-1].split() == ["shapes5i", "abcb", "tiny", "1-shot", "60.00", "61.00", "-"]


def test_a_copied_folder_counts_once_in_status_and_tables(renamed: Path, tmp_path: Path) -> None:
    shutil.copytree(renamed, tmp_path / "outputs" / "runs")
    lines = text(look_at([tmp_path])).splitlines()
    assert lines[0] == "6 cells: 4 done, 2 failed"
    at = next(i for i, line in enumerate(lines) if line.startswith("mIoU so far"))
    assert lines[at + 1].split() == ["shapes5i", "abcb", "tiny", "1-shot", "60.00", "61.00", "-"]
    assert lines[at + 2].startswith("2 results lie twice and count once, e.g. ")
    (table,) = build(collect([tmp_path])).tables
    (row,) = table.rows
    assert {column: entry.miou for column, entry in row.entries.items()} == {(1, 0): 60.0, (1, 1): 61.0}
    assert sum("2 results lie twice and count once" in note for note in table.notes) == 1
    assert len([label for label, _ in table.missing if "fold 2" in label]) == 1


def test_two_different_results_of_one_cell_count_nowhere_and_are_named(renamed: Path, tmp_path: Path) -> None:
    make_run(renamed.parent, KEY, result=70.0)
    lines = text(look_at([tmp_path])).splitlines()
    assert lines[-1] == (
        f"left out, as there are two results of {KEY}: {renamed.parent}/{KEY}, {renamed / KEY.path.relative_to('runs')}"
    )
    assert "has two results" in aggregate([tmp_path])


def test_retry_leads_to_the_renamed_directory_and_the_run_keeps_its_name(tmp_path: Path) -> None:
    (cell,) = start(["fold=2", f"output_dir={tmp_path}"])
    cell.begin("name: runs\n")
    place = (tmp_path / "runs").rename(tmp_path / "runs_server2") / cell.key.path.relative_to("runs")
    found = find_retries([tmp_path])
    assert reached(found.lines) == {place: cell.fingerprint}
    there = Cell(place, replace(cell.key, name="runs_server2"), cell.fingerprint, cell.identity)
    there.begin("name: runs_server2\n")  # as the line does
    assert there.find_key() == cell.key
    assert look_at([place])[0].key == cell.key


def test_a_run_that_starts_anew_has_the_name_of_its_line(tmp_path: Path) -> None:
    cell = Cell(tmp_path / KEY.path, KEY, "f", {})
    cell.begin("name: runs\n")
    cell.identity_file.unlink()
    there = Cell(cell.directory, replace(KEY, name="mine"), "f", {})
    there.begin("name: mine\n")
    assert there.find_key() == replace(KEY, name="mine")


def test_a_copy_on_a_store_lies_as_here_and_is_read_by_its_own_name(renamed: Path, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/store"
    assert all(not outcome.error for _, outcome in sync.catch_up([renamed], url))
    assert (tmp_path / "store" / "runs_server2").is_dir()
    assert {c.key.name for c in collect([sync.mirror(url, tmp_path / "mirror")]).cells} == {"runs"}


def test_an_identity_that_names_no_possible_cell_is_not_believed(tmp_path: Path) -> None:
    run = make_run(tmp_path, KEY, identity={}, status="failed")
    run.identity_file.write_text(run.identity_file.read_text().replace('"runs"', '"../x"'))
    assert run.find_key() == KEY
    assert RunDirectory(run.directory).look().state == "failed"


def test_a_result_decides_the_name_of_a_finished_cell(tmp_path: Path) -> None:
    run = make_run(tmp_path, replace(KEY, name="other"), result=50.0)
    write_record(run.result_file, Result(KEY, "f", {}))
    assert run.look().key == KEY
