"""States read from run directories, and the report made of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fsseg.cell.claim import acquire
from fsseg.cell.key import CellKey
from fsseg.errors import UserError
from fsseg.process.files import write_json
from fsseg.sweep.status import find_runs, key_of, read_state, read_states, report, span

KEY = CellKey("runs", "pascal5i", "abcb", "resnet50", 1, 2, 0, "default")


def run_folder(root: Path, key: CellKey = KEY, **status: Any) -> Path:
    folder = root / key.path
    write_json(folder / "status.json", {"state": "running", "heartbeat": time.time(), "host": "node1", **status})
    return folder


def test_a_result_means_done_whatever_the_status_says(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    write_json(folder / "result.json", {"metrics": {"miou": 61.25}})
    state = read_state(folder)
    assert (state.state, state.miou, state.key) == ("done", 61.25, KEY)


def test_status_alone_that_says_done_is_broken(tmp_path: Path) -> None:
    assert read_state(run_folder(tmp_path, state="done")).state == "broken"


@pytest.mark.parametrize(("silence", "expected"), [(10.0, "running"), (299.0, "running"), (301.0, "stale")])
def test_a_running_cell_is_stale_after_its_lease(tmp_path: Path, silence: float, expected: str) -> None:
    folder = run_folder(tmp_path, heartbeat=1000.0)
    state = read_state(folder, now=1000.0 + silence, lease=300.0)
    assert state.state == expected
    assert state.age == silence


def test_a_renewed_claim_keeps_a_cell_running_that_writes_no_status(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, heartbeat=1000.0)
    claim = acquire(folder / "claim.json", lease=60.0)
    try:
        assert read_state(folder).state == "running"
        os.utime(folder / "claim.json", (1000.0, 1000.0))
        assert read_state(folder).state == "stale"
    finally:
        claim.release()


def test_a_holder_that_ended_on_this_machine_makes_its_cell_stale_at_once(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    code = (
        "from pathlib import Path; from fsseg.cell.claim import acquire; "
        f"acquire(Path({str(folder)!r}, 'claim.json'), 300)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    state = read_state(folder)
    assert state.state == "stale"
    assert "ended" in state.reason


def test_a_clock_that_is_behind_the_writers_gives_no_negative_age(tmp_path: Path) -> None:
    assert read_state(run_folder(tmp_path, heartbeat=2000.0), now=1000.0).age == 0.0


def test_a_directory_that_died_before_its_first_status_counts_as_failed(tmp_path: Path) -> None:
    folder = tmp_path / KEY.path
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("name: runs\n")
    assert read_state(folder).state == "failed"


def test_a_status_that_is_no_json_is_broken(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    (folder / "status.json").write_text('{"state": "run')
    assert read_state(folder).state == "broken"


def test_runs_are_found_once_under_overlapping_folders_and_links(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "outputs")
    (tmp_path / "outputs" / "runs" / "loop").symlink_to(tmp_path / "outputs")
    (folder / "figures").mkdir()
    assert find_runs([tmp_path / "outputs", tmp_path / "outputs" / "runs", folder]) == [folder]


def test_a_key_is_read_off_a_relative_path_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run_folder(tmp_path)
    monkeypatch.chdir(folder.parents[1])
    assert key_of(Path("fold2/seed0")) == KEY
    assert key_of(tmp_path) is None


def test_the_report_counts_and_names_what_needs_help(tmp_path: Path) -> None:
    def key(fold: int) -> CellKey:
        return CellKey("runs", "pascal5i", "abcb", "resnet50", 1, fold, 0, "default")

    run_folder(tmp_path, key(0), phase="train", step=50, steps=200, eta_seconds=7200, miou=12.5)
    run_folder(tmp_path, key(1), state="failed", reason="UserError: truncated image")
    run_folder(tmp_path, key(2), state="preempted", phase="train", step=7, steps=9)
    for fold, miou in ((3, 60.0),):
        write_json(tmp_path / key(fold).path / "result.json", {"metrics": {"miou": miou}})
    text = report(read_states([tmp_path]))
    assert text.splitlines()[0] == "4 cells: 1 done, 1 running, 1 preempted, 1 failed"
    assert "train, 50/200, 2.0 h left, mIoU 12.50, on node1" in text
    assert "failed: UserError: truncated image" in text
    assert "preempted: train 7/9" in text
    [row] = [line for line in text.splitlines() if line.startswith("pascal5i abcb resnet50 1-shot")]
    assert row.split()[-2:] == ["60.00", "60.00"]


def test_the_mean_stands_only_where_every_fold_of_the_table_is_done(tmp_path: Path) -> None:
    for backbone, folds in (("resnet50", (0, 1)), ("resnet101", (0,))):
        for fold in folds:
            key = CellKey("runs", "pascal5i", "abcb", backbone, 1, fold, 0, "default")
            write_json(tmp_path / key.path / "result.json", {"metrics": {"miou": 50.0 + 10 * fold}})
    rows = {line.split()[2]: line.split()[4:] for line in report(read_states([tmp_path])).splitlines()[3:]}
    assert rows == {"resnet50": ["50.00", "60.00", "55.00"], "resnet101": ["50.00", "-", "-"]}


def test_missing_and_empty_folders_are_the_users_fault(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder"):
        read_states([tmp_path / "absent"])
    with pytest.raises(UserError, match="no run found"):
        read_states([tmp_path])


@pytest.mark.parametrize(("seconds", "text"), [(40, "40 s"), (720, "12 min"), (12240, "3.4 h"), (449280, "5.2 d")])
def test_spans_of_time_are_short(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_reading_states_imports_neither_torch_nor_hydra(tmp_path: Path) -> None:
    run_folder(tmp_path)
    code = (
        "import sys, json; from pathlib import Path; import fsseg.cli.app;"
        "from fsseg.sweep import status, retry, clean;"
        f"p = [Path({str(tmp_path)!r})]; status.report(status.read_states(p));"
        "retry.find_retries(p); clean.find_waste(p);"
        "print(json.dumps([m for m in ('torch', 'hydra', 'omegaconf', 'pandas', 'numpy') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) == []
