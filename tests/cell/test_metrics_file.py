"""metrics.csv is appended to, and cut back where a run goes on."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from fsseg.cell.metrics_file import MetricsFile
from fsseg.cell.record import RunDirectory


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.csv"


def rows(path: Path, steps: range) -> MetricsFile:
    table = MetricsFile(path, steps.start)
    for step in steps:
        table.append({"step": step, "loss": 1 / (step + 1)})
    table.close()
    return table


def test_rows_are_appended_and_nothing_before_them_is_written_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = MetricsFile(path)
    table.append({"step": 1, "loss": 0.123456789})
    table.flush()
    monkeypatch.setattr("fsseg.cell.metrics_file.open_anew", lambda *_: pytest.fail("the whole file was written"))
    for step in range(2, 100):
        before = path.stat().st_size
        table.append({"step": step, "loss": 0.5})
        table.flush(to_disk=True)
        assert path.stat().st_size == before + len(f"{step},0.5\n")
    table.close()
    assert path.read_text().startswith("step,loss\n1,0.123457\n2,0.5\n")
    assert (table.rows, table.last_step) == (99, 99)


def test_where_a_run_goes_on_what_came_after_its_checkpoint_is_cut_off(path: Path) -> None:
    rows(path, range(5))
    with path.open("a") as file:
        file.write("5,0.1")  # a kill cut this line short
    again = MetricsFile(path, 3)
    assert (again.rows, again.last_step) == (3, 2)
    again.append({"step": 3, "loss": 0.5})
    again.close()
    assert path.read_text() == "step,loss\n0,1\n1,0.5\n2,0.333333\n3,0.5\n"
    assert MetricsFile(path, 0).rows == 0
    assert path.read_text() == ""


def test_rows_that_are_gone_are_said_so(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("fsseg"), "propagate", True)
    rows(path, range(2))
    assert MetricsFile(path, 7).rows == 2
    assert f"{path} has 2 of the 7 rows" in caplog.text


def test_a_process_that_has_the_former_file_open_appends_to_what_nobody_sees(path: Path) -> None:
    former = MetricsFile(path)
    former.append({"step": 1, "loss": 0.5})
    former.flush()
    now = MetricsFile(path, 1)
    former.append({"step": 2, "loss": 99.0})
    former.close()
    now.append({"step": 2, "loss": 0.25})
    now.close()
    assert path.read_text() == "step,loss\n1,0.5\n2,0.25\n"


def test_so_does_one_that_was_resumed_and_had_not_written_yet(path: Path) -> None:
    rows(path, range(1))
    sleeper, now = MetricsFile(path, 1), MetricsFile(path, 1)
    now.append({"step": 1, "loss": 0.5})
    now.flush()
    sleeper.append({"step": 1, "loss": 99.0})
    sleeper.close()
    now.close()
    assert path.read_text() == "step,loss\n0,1\n1,0.5\n"


def test_what_is_no_file_gives_way(path: Path) -> None:
    os.mkfifo(path)
    rows(path, range(2))
    assert path.read_text() == "step,loss\n0,1\n1,0.5\n"
    path.unlink()
    os.mkfifo(path)
    assert MetricsFile(path, 2).rows == 0


def test_a_new_column_makes_room_in_the_rows_before(path: Path) -> None:
    table = MetricsFile(path)
    table.append({"step": 1, "loss": 0.5})
    table.append({"step": 2, "loss": 0.25, "val/miou": 3.0})
    table.append({"val/miou": 4.0, "step": 3})
    table.close()
    assert path.read_text() == "step,loss,val/miou\n1,0.5,\n2,0.25,3\n3,,4\n"
    assert RunDirectory(path.parent).curves() == {
        "loss": ([1.0, 2.0], [0.5, 0.25]), "val/miou": ([2.0, 3.0], [3.0, 4.0]),
    }  # fmt: skip
