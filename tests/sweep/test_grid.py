"""The cells of a line: what each composes to, and how it stands."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_directories import make_run

from fsseg.cell.models import State
from fsseg.errors import UserError
from fsseg.sweep.grid import build_grid


def test_states_come_from_the_directories(tmp_path: Path) -> None:
    line = ["fold=0,1,2,3", f"output_dir={tmp_path}"]
    cells = [p.cell for p in build_grid(line)]
    done, failed, other, _ = [c for c in cells if c]
    make_run(done, result=1.0)
    make_run(failed, status={"state": "failed", "reason": "bad image"})
    make_run(tmp_path, other.key, identity={"train.lr": 7})
    points = build_grid(line)
    assert [p.state for p in points] == [State.DONE, State.FAILED, State.FAULTY, State.TODO]
    assert points[0].snapshot is not None
    assert points[0].snapshot.miou == 1.0
    assert "train.lr: 7 there" in points[2].faults[0].what


def test_a_cell_that_is_to_be_redone_is_to_do_whatever_is_there(tmp_path: Path) -> None:
    line = ["fold=0,1", f"output_dir={tmp_path}"]
    done, other = (p.cell for p in build_grid(line))
    assert done is not None
    assert other is not None
    make_run(done, result=1.0)
    make_run(tmp_path, other.key, identity={"train.lr": 7})
    points = build_grid([*line, "redo=true"])
    assert [p.state for p in points] == [State.TODO, State.TODO]


def test_two_cells_with_one_directory_are_refused() -> None:
    with pytest.raises(UserError, match="share the directory"):
        build_grid(["fold=0,1", "variant=same", "fold=0", "train.lr=0.1,0.2"])


def test_a_cell_that_cannot_be_is_named_and_the_others_stand() -> None:
    points = build_grid(["fold=0,7"])
    assert [p.state for p in points] == [State.TODO, State.FAULTY]
    assert "fold=7" in points[1].faults[0].what


def test_a_cell_that_cannot_be_composed_is_named_in_the_words_of_train() -> None:
    points = build_grid(["train.lr=0.1,x"])
    assert [p.state for p in points] == [State.TODO, State.FAULTY]
    assert "train.lr" in points[1].faults[0].what
