"""Base learners in sweeps: each once, before the cells that start from it, and shown by `fsseg plan`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sweeps import Sweep, states

from fsseg.cell.models import State
from fsseg.cell.record import RunDirectory, find_runs
from fsseg.sweep.launchers.slurm import _arrays_of
from fsseg.sweep.plan import plan, text

BASE = "backbone.base_training=true"


def starts(run: RunDirectory) -> list[list[float]]:
    found: list[list[float]] = json.loads((run.directory / "starts.json").read_text())
    return found


@pytest.mark.parametrize("launcher", [(), ("hydra/launcher=local", "hydra.launcher.workers=3")])
def test_base_learners_run_once_and_before_the_cells_that_start_from_them(
    sweep: Sweep, launcher: tuple[str, ...]
) -> None:
    line = ("-m", "fold=0,1", "seed=0,1", BASE, *launcher)
    code, output = sweep.run(*line, FAKE_0="sleep:0.3", FAKE_1="sleep:0.3")
    assert code == 0, output
    base = find_runs([sweep.folder / "outputs/base_training"])
    assert len(base) == 2
    assert "0 of 6 cells done, 6 to run" in output
    assert states(output) == ["done"] * 6
    ended = max(starts(run)[0][1] for run in base)
    others = find_runs([sweep.folder / "outputs/s"])
    assert len(others) == 4
    assert all(starts(run)[0][0] >= ended for run in others)

    code, output = sweep.run(*line)
    assert code == 0, output
    assert "4 of 4 cells done, 0 to run" in output
    code, output = sweep.run("-m", "fold=0,1", "seed=2", "shot=5", BASE, *launcher)
    assert "0 of 2 cells done, 2 to run" in output
    assert [len(starts(run)) for run in base] == [1, 1]


def test_bam_brings_its_base_learners_along_and_other_methods_may_share_them(sweep: Sweep) -> None:
    code, output = sweep.run("-m", "method=bam", "fold=0,1")
    assert code == 0, output
    assert "0 of 4 cells done, 4 to run" in output
    code, output = sweep.run("-m", "method=pfenet,bam", "fold=0,1", BASE)
    assert code == 0, output
    assert "0 of 4 cells done, 4 to run" in output
    base = find_runs([sweep.folder / "outputs/base_training"])
    assert [len(starts(run)) for run in base] == [1, 1]


def test_a_base_learner_that_fails_keeps_back_its_own_cells_alone(sweep: Sweep) -> None:
    code, output = sweep.run("-m", "fold=0,1", BASE, FAKE_1="raise")
    assert code == 1
    assert states(output) == ["done", "failed", "done", "stopped"]
    assert "never started; its base learner failed" in output
    code, output = sweep.run("-m", "fold=0,1", BASE)
    assert code == 0, output
    assert states(output) == ["done"] * 3  # the base learner of fold 1, and the two cells


def test_a_plan_shows_them_first(tmp_path: Path) -> None:
    line = ["fold=0,1", "shot=1,5", BASE, f"dataset.root={tmp_path}/absent", f"output_dir={tmp_path}"]
    found = plan(line)
    assert found.base is not None
    assert len(found.points) == 4
    assert [p.state for p in found.base.points] == [State.TODO] * 2
    assert {str(p.cell.key).split("/")[0] for p in found.base.points if p.cell} == {"base_training"}
    shown = text(found)
    assert shown.startswith("first, once for all cells that start from them:")
    assert "2 cells: 2 to do" in shown
    assert "4 cells: 4 to do" in shown
    assert plan(line[:2] + line[3:]).base is None


def test_arrays_of_base_learners_hold_nothing_else() -> None:
    assert _arrays_of(5, 0) == [(0, 5)]
    assert _arrays_of(5, 2) == [(0, 2), (2, 5)]
    assert _arrays_of(2, 2) == [(0, 2)]
    assert _arrays_of(2500, 1200) == [(0, 1000), (1000, 1200), (1200, 2200), (2200, 2500)]
