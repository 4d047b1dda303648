"""States read from run directories, and the report made of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from run_directories import KEY, make_run

from fsseg.cell.claim import acquire
from fsseg.cell.key import CellKey
from fsseg.cell.models import State
from fsseg.cell.record import RunDirectory, find_runs, look_at
from fsseg.errors import UserError
from fsseg.sweep.retry import find_retries
from fsseg.sweep.status import look_around, text


def running(root: Path, key: CellKey = KEY, age: float = 0.0, **status: Any) -> RunDirectory:
    return make_run(root, key, status={"state": "running", "host": "node1", **status}, age=age)


def test_a_result_means_done_whatever_the_status_says(tmp_path: Path) -> None:
    seen = make_run(tmp_path, result=61.25, status="running").look()
    assert (seen.state, seen.miou, seen.key) == (State.DONE, 61.25, KEY)


def test_status_alone_that_says_done_is_broken(tmp_path: Path) -> None:
    assert make_run(tmp_path, status="done").look().state == State.BROKEN


@pytest.mark.parametrize(("silence", "expected"), [(10.0, "running"), (299.0, "running"), (301.0, "stale")])
def test_a_running_cell_is_stale_after_its_lease(tmp_path: Path, silence: float, expected: str) -> None:
    seen = running(tmp_path, heartbeat=1000.0).look(now=1000.0 + silence)
    assert seen.state == expected
    assert seen.age == silence


def test_a_cell_at_work_over_a_result_that_was_cut_short_is_running(tmp_path: Path) -> None:
    run = running(tmp_path)
    run.result_file.write_text('{"cell": ')
    claim = acquire(run.claim_file, lease=60.0)
    try:
        assert run.look().state == State.RUNNING
        assert find_retries([tmp_path]).cells == []
        run.status_file.unlink()  # claimed a moment ago
        assert run.look().state == State.FAILED
        assert find_retries([tmp_path]).cells == []
    finally:
        claim.release()
    assert run.look().state == State.BROKEN
    assert "result.json is not JSON" in run.look().reason


def test_a_renewed_claim_keeps_a_cell_running_that_writes_no_status(tmp_path: Path) -> None:
    run = running(tmp_path, heartbeat=1000.0)
    claim = acquire(run.claim_file, lease=60.0)
    try:
        assert run.look().state == State.RUNNING
        os.utime(run.claim_file, (1000.0, 1000.0))
        assert run.look().state == State.STALE
    finally:
        claim.release()


def test_a_holder_that_ended_on_this_machine_makes_its_cell_stale_at_once(tmp_path: Path) -> None:
    run = running(tmp_path)
    code = (
        f"from pathlib import Path; from fsseg.cell.claim import acquire; acquire(Path({str(run.claim_file)!r}), 300)"
    )
    subprocess.run([sys.executable, "-c", code, str(run.claim_file)], check=True)
    seen = run.look()
    assert seen.state == State.STALE
    assert "ended" in seen.reason


def test_a_clock_that_is_behind_the_writers_gives_no_negative_age(tmp_path: Path) -> None:
    assert running(tmp_path, heartbeat=2000.0).look(now=1000.0).age == 0.0


def test_a_directory_that_died_before_its_first_status_counts_as_failed(tmp_path: Path) -> None:
    assert make_run(tmp_path, config="name: runs\n").look().state == State.FAILED


def test_a_status_that_is_no_json_is_broken(tmp_path: Path) -> None:
    run = running(tmp_path)
    run.status_file.write_text('{"state": "run')
    assert run.look().state == State.BROKEN


def test_runs_are_found_once_under_overlapping_folders_and_links(tmp_path: Path) -> None:
    run = running(tmp_path / "outputs")
    (tmp_path / "outputs" / "runs" / "loop").symlink_to(tmp_path / "outputs")
    run.episodes_figure.parent.mkdir()
    assert find_runs([tmp_path / "outputs", tmp_path / "outputs" / "runs", run.directory]) == [run]


def test_a_key_is_read_off_a_relative_path_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(running(tmp_path).directory.parents[1])
    assert CellKey.from_path(Path("fold0/seed0")) == KEY
    assert CellKey.from_path(tmp_path) is None


def test_the_text_counts_and_names_what_needs_help(tmp_path: Path) -> None:
    running(tmp_path, phase="train", step=50, steps=200, eta_seconds=7200, miou=12.5)
    failed = make_run(tmp_path, replace(KEY, fold=1), status={"state": "failed", "reason": "UserError: truncated"})
    make_run(tmp_path, replace(KEY, fold=2), status={"state": "preempted", "phase": "train", "step": 7, "steps": 9})
    running(tmp_path, replace(KEY, fold=4), age=7200.0, phase="evaluate")
    make_run(tmp_path, replace(KEY, fold=5), status="queued")
    make_run(tmp_path, replace(KEY, fold=3), result=60.0)
    lines = text(look_at([tmp_path])).splitlines()
    here = "runs/pascal5i/abcb/resnet50/1shot/default"
    assert lines[0] == "6 cells: 1 done, 1 running, 1 queued, 1 preempted, 1 stale, 1 failed"
    assert lines[2] == "running"
    assert lines[3].startswith(f"  {here}/fold0/seed0  train, 50/200, 2.0 h left, mIoU 12.50, on node1, heard of ")
    assert lines[5:7] == ["queued in a sweep", f"  {here}/fold5/seed0"]
    assert lines[8] == "to be run again (`fsseg retry`)"
    assert lines[9] == f"  {here}/fold1/seed0  failed: UserError: truncated, log: {failed.log_file}"
    assert lines[10].startswith(f"  {here}/fold2/seed0  preempted: train 7/9, log: ")
    assert "fold4/seed0  stale: no sign of life: killed, or its host is gone, last on node1 2.0 h ago" in lines[11]
    assert lines[13].split() == ["mIoU", "so", "far", "fold", "3", "mean"]
    assert lines[14].split() == ["pascal5i", "abcb", "resnet50", "1-shot", "60.00", "-"]


def test_a_long_section_is_cut(tmp_path: Path) -> None:
    for fold in range(4):
        make_run(tmp_path, replace(KEY, fold=fold), status="queued")
    lines = text(look_at([tmp_path]), limit=2).splitlines()
    assert lines[-1] == "  ... and 2 more"
    assert len(lines) == 6


def test_the_mean_stands_only_where_all_four_folds_are_done(tmp_path: Path) -> None:
    for backbone, folds in (("resnet50", (0, 1, 2, 3)), ("resnet101", (0, 2))):
        for fold in folds:
            make_run(tmp_path, replace(KEY, backbone=backbone, fold=fold), result=50.0 + 10 * fold)
    rows = {line.split()[2]: line.split()[4:] for line in text(look_at([tmp_path])).splitlines()[3:]}
    assert rows == {
        "resnet50": ["50.00", "60.00", "70.00", "80.00", "65.00"], "resnet101": ["50.00", "-", "70.00", "-", "-"]
    }  # fmt: skip


def test_of_a_users_own_data_all_folds_are_as_many_as_its_settings_say(tmp_path: Path) -> None:
    """Novel classes by name are one fold."""
    own = {"dataset.novel": [], "dataset.num_folds": 2}
    make_run(tmp_path, replace(KEY, backbone="named"), result=50.0, identity=own | {"dataset.novel": ["zebra"]})
    make_run(tmp_path, replace(KEY, backbone="half"), result=50.0, identity=own)
    rows = {line.split()[2]: line.split()[4:] for line in text(look_at([tmp_path])).splitlines()[3:]}
    assert rows == {"named": ["50.00", "50.00"], "half": ["50.00", "-"]}


def test_seeds_are_averaged_and_partial_results_are_marked(tmp_path: Path) -> None:
    for seed, miou in enumerate((40.0, 50.0)):
        make_run(tmp_path, replace(KEY, seed=seed), result={"metrics": {"miou": miou}, "partial": seed == 1})
    make_run(tmp_path, replace(KEY, variant="train.lr-1"), result=10.0)
    make_run(tmp_path, replace(KEY, name="other"), result=20.0)
    lines = text(look_at([tmp_path])).splitlines()[3:]
    assert [line.split() for line in lines[:3]] == [
        ["other:", "pascal5i", "abcb", "resnet50", "1-shot", "20.00", "-"],
        ["runs:", "pascal5i", "abcb", "resnet50", "1-shot", "45.00*", "-"],
        ["runs:", "pascal5i", "abcb", "resnet50", "1-shot", "[train.lr-1]", "10.00", "-"],
    ]
    assert lines[3] == "* partial: a novel class had no episode"


def test_missing_and_empty_folders_are_the_users_fault(tmp_path: Path) -> None:
    for look in (look_at, look_around):
        with pytest.raises(UserError, match="no folder"):
            look([tmp_path / "absent"])
        with pytest.raises(UserError, match="no run found"):
            look([tmp_path])


def test_looking_at_runs_imports_neither_torch_nor_hydra(tmp_path: Path) -> None:
    running(tmp_path)
    code = (
        "import sys, json; from pathlib import Path; import fsseg.cli.app;"
        "from fsseg.sweep import status, retry, clean;"
        f"p = [Path({str(tmp_path)!r})];"
        "status.text(status.look_around(p).cells); retry.find_retries(p); clean.find_waste(p);"
        "print(json.dumps([m for m in ('torch', 'hydra', 'omegaconf', 'pandas', 'numpy') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) == []


def test_a_sweep_never_needs_what_works_inside_a_cell(tmp_path: Path) -> None:
    """With the launchers and everything that a plan, a sweep or a copy imports."""
    code = (
        "import sys, json, pkgutil, importlib, fsseg.sweep;"
        "found = pkgutil.walk_packages(fsseg.sweep.__path__, 'fsseg.sweep.');"
        "names = [m.name for m in found if 'plugin' not in m.name];"
        "[importlib.import_module(name) for name in names];"
        "import hydra_plugins.fsseg_sweeper, hydra_plugins.fsseg_launchers;"
        "from fsseg.sweep.plan import plan, text; text(plan(sys.argv[1:]));"
        "bad = ('torch', 'fsseg.run', 'fsseg.engine', 'fsseg.model', 'fsseg.report', 'matplotlib');"
        "print(json.dumps([len(names), [m for m in sys.modules if m.startswith(bad)]]))"
    )
    line = [f"output_dir={tmp_path}", "dataset=shapes5i,pascal5i", f"dataset.root={tmp_path}"]
    done = subprocess.run([sys.executable, "-c", code, *line], check=True, capture_output=True, text=True)
    count, found = json.loads(done.stdout)
    assert count > 12
    assert found == []


def test_results_of_a_sweep_are_labelled_by_what_differs(tmp_path: Path) -> None:
    for lr in (0.1, 0.2):
        make_run(tmp_path, replace(KEY, variant=f"model.iterations-5+train.lr-{lr}"), result=60.0)
    lines = text(look_at([tmp_path])).splitlines()
    labels = [line.split("  ")[0] for line in lines[3:5]]
    assert labels == [f"pascal5i abcb resnet50 1-shot [train.lr-{lr}]" for lr in (0.1, 0.2)]
    assert lines[-1] == "all variants share: model.iterations-5"
