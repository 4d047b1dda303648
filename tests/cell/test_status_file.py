"""status.json: written when something changes, now and then otherwise, and never for another process."""

from __future__ import annotations

from pathlib import Path

import pytest

from fsseg.cell.models import Status
from fsseg.cell.record import RunDirectory
from fsseg.cell.status import StatusFile


def told(folder: Path) -> Status:
    status = RunDirectory(folder).status()
    assert status is not None
    return status


def test_changes_of_state_are_written_at_once_and_the_rest_now_and_then(tmp_path: Path) -> None:
    status = StatusFile(RunDirectory(tmp_path).status_file, interval=3600)
    status.update(state="running", phase="train", step=1)
    status.update(step=2)
    assert told(tmp_path).step == 1
    status.update(state="done")
    assert (told(tmp_path).state, told(tmp_path).step) == ("done", 2)
    with pytest.raises(ValueError, match="unknown status fields"):
        status.update(stat="done")


def test_it_beats_while_running_and_never_for_another_process(tmp_path: Path) -> None:
    taken = False

    def guard() -> None:
        if taken:
            raise RuntimeError("not ours")

    status = StatusFile(RunDirectory(tmp_path).status_file, interval=0.0, guard=guard)
    status.beat()
    assert not RunDirectory(tmp_path).status_file.exists()
    status.update(state="running")
    first = told(tmp_path)
    status.beat()
    second = told(tmp_path)
    assert second.heartbeat is not None
    assert first.heartbeat is not None
    assert second.heartbeat > first.heartbeat
    taken = True
    with pytest.raises(RuntimeError):
        status.beat()
    assert told(tmp_path) == second
