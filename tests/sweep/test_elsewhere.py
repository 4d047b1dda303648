"""The records of earlier submissions, whatever lies in their place."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from run_directories import KEY

from fsseg.cell.models import State
from fsseg.cell.record import Cell
from fsseg.sweep import elsewhere
from fsseg.sweep.elsewhere import Elsewhere
from fsseg.sweep.launchers.slurm import Queued


@pytest.mark.parametrize("jobs", [None, [], "x", {"a": 5}, {"a": None, "b": []}, [["a", {"job_id": "7"}]]])
def test_a_record_of_anything_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: Any) -> None:
    cell = Cell(tmp_path / "cell", KEY, "f", {})
    for name in ("1", "2", "3"):
        (tmp_path / ".submitit" / name).mkdir(parents=True)
    (tmp_path / ".submitit" / "1" / "jobs.json").write_text(json.dumps({"jobs": jobs}))
    os.mkfifo(tmp_path / ".submitit" / "2" / "jobs.json")
    good = {"jobs": {str(cell.directory): {"job_id": "7"}}}
    (tmp_path / ".submitit" / "3" / "jobs.json").write_text(json.dumps(good))
    monkeypatch.setattr(elsewhere, "queue", lambda: {"7": Queued("PENDING", "")})
    owner = Elsewhere(tmp_path).owner(cell)
    assert owner is not None
    assert owner[0] == State.QUEUED
