"""Rates and what is left of a grid, against sums done by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from run_directories import KEY, make_run

from fsseg.cell.models import State
from fsseg.cell.record import look_at
from fsseg.sweep.pace import pace_of

TIMES = {"prepare_seconds": 40.0, "train_seconds": 800.0, "evaluate_seconds": 100.0, "figures_seconds": 60.0}


def training(root: Path, fold: int, eta: float, pace: float = 0.5) -> None:
    make_run(root, replace(KEY, fold=fold), status={
        "state": "running", "phase": "train", "step": 10, "steps": 100, "seconds_per_step": pace, "eta_seconds": eta,
    })  # fmt: skip


def done(root: Path, fold: int) -> None:
    make_run(root, replace(KEY, fold=fold), result={"timing": TIMES, "training": {"seconds": None}})


def test_the_rates_of_cells_that_run_together_add_up(tmp_path: Path) -> None:
    training(tmp_path, 0, 50.0, pace=0.5)
    training(tmp_path, 1, 50.0, pace=0.25)
    make_run(tmp_path, replace(KEY, fold=2), status={
        "state": "running", "phase": "evaluate", "step": 1, "steps": 9, "seconds_per_step": 0.1, "eta_seconds": 1.0,
    })  # fmt: skip
    found = pace_of(look_at([tmp_path]))
    assert (found.steps, found.episodes, found.running) == (2.0 + 4.0, 10.0, 3)
    assert str(found).startswith("6 steps/s, 10 episodes/s, about 50 s to go")


def test_a_training_cell_still_needs_the_evaluation_that_finished_cells_took(tmp_path: Path) -> None:
    training(tmp_path, 0, 500.0)
    done(tmp_path, 1)
    seconds = pace_of(look_at([tmp_path])).seconds
    assert seconds is not None
    assert 655 < seconds <= 500 + 100 + 60


def test_waiting_cells_take_the_mean_of_finished_ones_divided_by_what_runs(tmp_path: Path) -> None:
    done(tmp_path, 0)
    training(tmp_path, 1, 340.0)
    training(tmp_path, 2, 340.0)
    cells = look_at([tmp_path])
    waiting = [replace(cells[0], state=State.QUEUED, result=None) for _ in range(4)]
    seconds = pace_of([*cells, *waiting]).seconds
    assert seconds is not None
    assert abs(seconds - (2 * (340 + 160) + 4 * 1000) / 2) < 10


def test_what_nothing_tells_is_said_and_not_guessed(tmp_path: Path) -> None:
    make_run(tmp_path, KEY, status={"state": "running", "phase": "prepare"})
    make_run(tmp_path, replace(KEY, fold=1), status="failed")
    found = pace_of(look_at([tmp_path]))
    assert found.seconds is None
    assert str(found) == "time to go not known yet, 1 cell to be run again"
