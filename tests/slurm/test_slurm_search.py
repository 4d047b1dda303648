"""A search over a real SLURM: a job for each trial, one that fails, one that is cancelled, one that is requeued."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from cluster import Cluster
from test_slurm_sweep import FAKE, Sweep, nothing_is_left_running, wait_until

from fsseg.cell.record import RunDirectory
from fsseg.errors import UserError
from fsseg.sweep.search import view
from fsseg.sweep.search.study import Trial

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]
__all__ = ["nothing_is_left_running"]  # a fixture


def trials(folder: Path) -> dict[int, Trial]:
    (study,) = view.studies_of([folder / "outputs/s"])
    return {trial.number: trial for trial in study.trials()}


def test_two_processes_submit_each_trial_once(cluster: Cluster, tmp_path: Path) -> None:
    sweep = Sweep(cluster, tmp_path, FAKE, "search=lr_and_rounds", "search.trials=6", "search.parallel=2",
                  f"dataset.root={tmp_path}")  # fmt: skip
    processes = [sweep.start() for _ in range(2)]
    outputs = [process.communicate(timeout=400)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert [trial.state for trial in trials(tmp_path).values()] == ["complete"] * 6
    done = [len(json.loads(file.read_text())) for file in (tmp_path / "outputs").rglob("starts.json")]
    assert done == [1] * len(done)
    jobs = [swept.job for record in sweep.records for swept in record.cells if swept.job is not None]
    assert len(jobs) == len(done)


def test_trials_are_jobs_and_each_misfortune_costs_its_own(cluster: Cluster, tmp_path: Path) -> None:
    sweep = Sweep(cluster, tmp_path, FAKE, "search=lr_and_rounds", "search.trials=7", "search.parallel=3",
                  f"dataset.root={tmp_path}")  # fmt: skip

    def cell(number: int) -> RunDirectory:
        try:
            found = trials(tmp_path).get(number)
        except UserError:  # there is no study yet
            found = None
        return RunDirectory(
            tmp_path / "outputs/s" / next(iter(found.cells), "absent") if found else tmp_path / "absent"
        )

    process = sweep.start(
        FAKE_TRIAL_1="usererror", FAKE_TRIAL_2="part:never", FAKE_TRIAL_3="hang", FAKE_GO=str(tmp_path)
    )
    wait_until(lambda: cell(2).claim_file.exists())
    cluster.ask("scancel", sweep.job(cell(2)))
    wait_until(lambda: (cell(3).directory / "hung").exists() and cell(3).claim_file.exists())
    os.kill(json.loads(cell(3).claim_file.read_text())["pid"], signal.SIGUSR2)
    wait_until(lambda: "BeginTime" in cluster.ask("squeue", "-h", "-r", "-o", "%r"))
    # SLURM makes it wait so that the node is done with the first start; released before that, it fails at once.
    time.sleep(5)
    while process.poll() is None:
        sweep.start_requeued()
        time.sleep(0.2)
    output, _ = process.communicate()
    assert process.returncode == 1, output
    assert "1 of 7 trials without a score yet" in output, output
    states = {number: trial.state for number, trial in trials(tmp_path).items()}
    assert states == {
        0: "complete",
        1: "fail",
        2: "running",
        3: "complete",
        4: "complete",
        5: "complete",
        6: "complete",
    }
    jobs = {swept.job for record in sweep.records for swept in record.cells}
    assert len(jobs) == 7

    process = sweep.start()
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    after = trials(tmp_path)
    assert {number: trial.state for number, trial in after.items()} == {**states, 2: "complete"}
    done = [RunDirectory(tmp_path / "outputs/s" / path) for n, t in after.items() if n != 1 for path in t.cells]
    assert [len(json.loads((one.directory / "starts.json").read_text())) for one in done] == [1] * 6
