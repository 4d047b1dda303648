"""Who has a cell: a claim, a job in SLURM's queue, a sweep that lives, or nobody; and what the commands say of it."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from run_directories import KEY, make_run

from fsseg.cell.claim import acquire
from fsseg.cell.models import State
from fsseg.cell.record import RunDirectory
from fsseg.cell.sweeps import Sweep, SweepRecord, SweptCell, new_sweep, sweeps_of
from fsseg.sweep import cancel as cancelling
from fsseg.sweep import elsewhere, status
from fsseg.sweep.elsewhere import Elsewhere
from fsseg.sweep.grid import build_grid
from fsseg.sweep.queue import Queued
from fsseg.sweep.retry import find_retries
from fsseg.sweep.status import look_around

KEYS = [replace(KEY, fold=fold) for fold in range(4)]


class Slurm:
    """What the commands of a cluster answer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.jobs: dict[str, Queued] | None = {}
        self.endings: dict[str, str] = {}
        self.cancelled: list[str] = []
        monkeypatch.setattr(elsewhere, "queue", lambda users: self.jobs)
        monkeypatch.setattr(elsewhere, "cluster_name", lambda: "ours" if self.jobs is not None else None)
        monkeypatch.setattr(elsewhere, "still_there", lambda job: job in self.hidden)
        self.hidden: list[str] = []
        monkeypatch.setattr(elsewhere, "last_states", lambda ids: {i: self.endings.get(i, "unknown") for i in ids})
        monkeypatch.setattr(cancelling, "end_jobs", self._cancel)

    def _cancel(self, ids: list[str]) -> str:
        self.cancelled += ids
        return ""


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Slurm:
    return Slurm(monkeypatch)


def swept(output: Path, cluster: str | None = "ours", jobs: Mapping[int, str] | None = None) -> Sweep:
    """A sweep of all four folds, with the jobs of some of them in the queue of a cluster; None for one without."""
    cells = [
        SweptCell(key.path.relative_to(key.name).as_posix(), [f"fold={key.fold}"], "f", job=(jobs or {}).get(key.fold))
        for key in KEYS
    ]
    record = SweepRecord(["fold=0,1,2,3"], cells, cluster=cluster, started=time.time() - 1)
    record.user = None if cluster is None else os.getuid()
    return new_sweep(output / KEY.name, record)


def stand(output: Path) -> dict[int, tuple[str, str]]:
    cells = look_around([output]).cells
    return {s.key.fold: (str(s.state), s.reason) for s in cells if s.key is not None}


def test_each_cell_stands_as_the_queue_says(tmp_path: Path, slurm: Slurm) -> None:
    make_run(tmp_path, KEYS[0], status={"state": "preempted", "phase": "train", "step": 7, "steps": 9}, age=5)
    make_run(tmp_path, KEYS[3], result=50.0)
    swept(tmp_path, jobs={fold: f"12_{fold}" for fold in range(4)})
    slurm.jobs = {"12_0": Queued("PENDING", "BeginTime", 1), "12_1": Queued("PENDING", "JobHeldUser"),
                  "12_2": Queued("RUNNING", "None"), "12_3": Queued("COMPLETING", "None")}  # fmt: skip
    assert stand(tmp_path) == {
        0: ("pending", "SLURM 12_0, PENDING, requeued (BeginTime)"),
        1: ("pending", "SLURM 12_1, PENDING (JobHeldUser); `scontrol release 12_1` lets it go"),
        2: ("running", "SLURM 12_2, RUNNING"),
        3: ("done", ""),
    }
    lines = status.text(look_around([tmp_path]).cells).splitlines()
    assert lines[0] == "4 cells: 1 done, 1 running, 2 pending"
    assert lines[3].endswith("fold2/seed0  starting, SLURM 12_2, RUNNING")


def test_cells_whose_jobs_are_gone_wait_for_nothing(tmp_path: Path, slurm: Slurm) -> None:
    make_run(tmp_path, KEYS[0], status={"state": "preempted", "reason": "SIGTERM"})
    make_run(tmp_path, KEYS[1], status="queued")  # as an earlier version left it
    swept(tmp_path, jobs={fold: f"12_{fold}" for fold in range(3)})
    slurm.endings = {"12_0": "CANCELLED by 0", "12_1": "CANCELLED", "12_2": "NODE_FAIL"}
    assert stand(tmp_path) == {
        0: ("preempted", "SIGTERM; its SLURM job 12_0: CANCELLED by 0"),
        1: ("stopped", "never started; its SLURM job 12_1: CANCELLED"),
        2: ("stopped", "never started; its SLURM job 12_2: NODE_FAIL"),
        3: ("stopped", "never started; sweep 1 on an unknown host was killed"),
    }
    status.watch([tmp_path], every=60)  # ends at once: nothing is in any queue


def test_a_claim_of_a_job_that_has_left_the_queue_is_stale(tmp_path: Path, slurm: Slurm) -> None:
    run = make_run(tmp_path, KEYS[0], status="running")
    claim = acquire(run.claim_file, 300)
    run.claim_file.write_text(
        run.claim_file.read_text()
        .replace('"slurm_job": null', '"slurm_job": "77"')
        .replace('"slurm_cluster": null', '"slurm_cluster": "ours"')
        .replace(socket.gethostname(), "node9")
    )
    swept(tmp_path, jobs={0: "77"})
    slurm.jobs = {"77": Queued("RUNNING", "None")}
    assert stand(tmp_path)[0][0] == "running"
    slurm.jobs, slurm.endings = {}, {"77": "OUT_OF_MEMORY"}
    assert stand(tmp_path)[0] == ("stale", "its SLURM job 77: OUT_OF_MEMORY")
    claim.release()


def test_where_the_queue_cannot_be_asked_that_is_said(tmp_path: Path, slurm: Slurm) -> None:
    make_run(tmp_path, KEYS[1], status={"state": "failed", "reason": "no"}, age=-5)  # after the submission
    make_run(tmp_path, KEYS[2], status="preempted", age=-5)  # it may have been requeued
    swept(tmp_path, cluster="theirs", jobs={0: "12_0", 1: "12_1", 2: "12_2"})
    told = "SLURM 12_0 when it was submitted; its queue cannot be asked from here now"
    for jobs in ({}, None):
        slurm.jobs = jobs
        assert stand(tmp_path)[0] == ("unknown", told)
        assert stand(tmp_path)[1] == ("failed", "no")
        assert stand(tmp_path)[2][0] == "unknown"
        status.watch([tmp_path], every=60)  # ends: there is nothing to wait for
    assert f"{KEYS[0]}: {told}" in cancelling.cancel([tmp_path]).left
    found = find_retries([tmp_path])
    assert [s.key for s in found.cells] == [KEYS[1], KEYS[3]]
    assert found.notes[f"{told}: look where it is, or run its sweep line again"] == [str(KEYS[0])]
    swept(tmp_path, cluster=None)  # a newer sweep, which was killed: SLURM has nothing to do with it any more
    assert stand(tmp_path)[0] == ("stopped", "never started; sweep 2 on an unknown host was killed")


def test_a_claim_is_taken_away_only_if_squeue_and_scontrol_agree(tmp_path: Path, slurm: Slurm) -> None:
    run = make_run(tmp_path, KEYS[0], status="running")
    claim = acquire(run.claim_file, 300)
    fields = run.claim_file.read_text().replace('"slurm_job": null', '"slurm_job": "77"')
    run.claim_file.write_text(fields.replace('"slurm_cluster": null', '"slurm_cluster": "ours"'))
    for slurm.jobs, slurm.hidden in (({"77": Queued("RUNNING", "None")}, []), (None, []), ({}, ["77"])):
        owner = Elsewhere().owner(run)
        assert owner is not None
        assert owner[0] == State.RUNNING
    slurm.jobs, slurm.hidden = {}, []
    assert Elsewhere().owner(run) is None
    assert not run.claim_file.exists()
    claim.release()


def test_a_finished_cell_that_waits_to_be_done_anew_is_told(tmp_path: Path, slurm: Slurm) -> None:
    run = make_run(tmp_path, KEYS[0], result=50.0)
    os.utime(run.result_file, (1e9, 1e9))
    make_run(tmp_path, KEYS[1], result=50.0)
    swept(tmp_path, jobs={0: "12_0", 1: "12_1"})
    os.utime(RunDirectory(tmp_path / KEYS[1].path).result_file, (4e9, 4e9))  # just now: its job is about to end
    slurm.jobs = {"12_0": Queued("PENDING", "Priority"), "12_1": Queued("RUNNING", "None")}
    assert stand(tmp_path)[0] == (
        "pending", "SLURM 12_0, PENDING (Priority); the result that is there stays until then"
    )  # fmt: skip
    assert stand(tmp_path)[1][0] == "done"
    assert cancelling.cancel([tmp_path / KEYS[0].path]).jobs == ["12_0"]


def test_a_job_that_is_being_requeued_is_in_hands(tmp_path: Path, slurm: Slurm) -> None:
    make_run(tmp_path, KEYS[0], status="preempted")
    make_run(tmp_path, KEYS[1], status="failed")
    swept(tmp_path, jobs={0: "12_0", 1: "12_1"})
    slurm.jobs = {f"12_{n}": Queued("COMPLETING", "None") for n in (0, 1)}
    assert [stand(tmp_path)[n][0] for n in (0, 1)] == ["running", "failed"]


def test_sweeps_are_found_from_any_folder_above(tmp_path: Path, slurm: Slurm) -> None:
    swept(tmp_path / "project" / "outputs", jobs={0: "12_0"})
    slurm.jobs = {"12_0": Queued("PENDING", "Priority")}
    assert stand(tmp_path)[0][0] == "pending"
    assert cancelling.cancel([tmp_path]).jobs == ["12_0"]


def test_cancel_says_which_records_it_cannot_read(tmp_path: Path, slurm: Slurm) -> None:
    sweep = swept(tmp_path, jobs={0: "12_0"})
    sweep.file.with_name("2.json").write_text('{"schema_version": 99, "line": [], "cells": []}')
    [left] = cancelling.cancel([tmp_path]).left
    assert left.endswith("2.json: has schema_version 99; this fsseg reads versions 1 to 3: its jobs are not known")


def test_cells_of_a_living_sweep_are_queued_until_it_has_come_to_them(tmp_path: Path, slurm: Slurm) -> None:
    make_run(tmp_path, KEYS[0], status={"state": "failed", "reason": "before"}, age=60)
    sweep = swept(tmp_path, cluster=None)
    make_run(tmp_path, KEYS[1], status={"state": "failed", "reason": "in this sweep"}, age=-1)
    claim = acquire(sweep.claim_file, 300)
    here = f"sweep 1, process {os.getpid()} on {socket.gethostname()}"
    assert stand(tmp_path) == {
        0: ("queued", here), 1: ("failed", "in this sweep"), 2: ("queued", here), 3: ("queued", here)
    }  # fmt: skip
    claim.release()
    sweep.record.end = "ended by SIGINT"
    sweep.save()
    assert stand(tmp_path)[0] == ("failed", "before")
    assert stand(tmp_path)[2] == ("stopped", "never started; sweep 1 ended by SIGINT")


def test_a_plan_knows_the_queue_too(tmp_path: Path, slurm: Slurm) -> None:
    swept(tmp_path, jobs={0: "12_0", 1: "12_1", 2: "12_2"})
    make_run(tmp_path, KEYS[3], status={"state": "failed"})
    slurm.jobs = {"12_0": Queued("PENDING", "Priority"), "12_1": Queued("RUNNING", "None")}
    points = build_grid(["dataset=pascal5i", "fold=0,1,2,3", f"output_dir={tmp_path}"])
    assert [str(p.state) for p in points] == ["pending", "running", "to do", "failed"]


def test_only_the_cells_below_the_folder_are_told(tmp_path: Path, slurm: Slurm) -> None:
    swept(tmp_path, jobs={0: "12_0"})
    one = tmp_path / KEYS[2].path
    with pytest.raises(Exception, match="is no folder"):
        look_around([one])
    one.mkdir(parents=True)
    assert [s.key for s in look_around([one]).cells] == [KEYS[2]]
    assert len(look_around([one.parents[1]]).cells) == 4


def test_the_owner_is_found_whatever_lies_beside_the_records_and_through_links(tmp_path: Path, slurm: Slurm) -> None:
    swept(tmp_path / "disk", jobs={0: "12_0"})
    (tmp_path / "disk" / KEY.name / "sweeps" / "2.json").write_text("{")
    swept(tmp_path / "disk", jobs={1: "15"})  # the newest has no job for the first
    (tmp_path / "outputs").symlink_to(tmp_path / "disk")
    slurm.jobs = {"12_0": Queued("PENDING", "Resources"), "15": Queued("RUNNING", "None")}
    for output in (tmp_path / "disk", tmp_path / "outputs"):
        one = Elsewhere(sweeps_of([tmp_path / "disk" / KEY.name]))
        cells = [RunDirectory(output / key.path) for key in KEYS]
        assert one.owner(cells[0]) == (State.PENDING, "SLURM job 12_0, PENDING (Resources)")
        assert one.owner(cells[1]) == (State.RUNNING, "SLURM job 15, RUNNING")
        assert one.owner(cells[2]) is None
    assert Elsewhere(sweeps_of([tmp_path / "disk" / KEY.name])).owner(RunDirectory(Path("/a"))) is None


def test_cancel_ends_the_jobs_of_the_cells_that_are_named(tmp_path: Path, slurm: Slurm) -> None:
    swept(tmp_path, jobs={fold: f"12_{fold}" for fold in range(4)})
    make_run(tmp_path, KEYS[1], status="running")
    slurm.jobs = {f"12_{fold}": Queued("PENDING", "Priority") for fold in (1, 2, 3)}
    assert cancelling.cancel([tmp_path / KEYS[1].path]).jobs == ["12_1"]
    assert slurm.cancelled == ["12_1"]
    found = cancelling.cancel([tmp_path])
    assert found.jobs == ["12_1", "12_2", "12_3"]
    assert cancelling.text(found) == "3 SLURM jobs cancelled (12)"
    slurm.jobs = {}
    assert cancelling.text(cancelling.cancel([tmp_path])) == "no sweep has a job here that runs or waits"


def test_cancel_stops_the_processes_of_this_machine_and_no_others(
    tmp_path: Path, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(cancelling.os, "kill", lambda pid, number: killed.append((pid, number)))
    sweep = swept(tmp_path, cluster=None)
    claims = [acquire(sweep.claim_file, 300)]
    for fold in (0, 1):
        run = make_run(tmp_path, KEYS[fold], status="running")
        claims.append(acquire(run.claim_file, 300))
    text = run.claim_file.read_text()
    run.claim_file.write_text(text.replace(socket.gethostname(), "node9"))
    found = cancelling.cancel([tmp_path])
    assert killed == [(os.getpid(), signal.SIGTERM)]  # the sweep, and its first cell in the same process
    assert found.left == [f"{KEYS[1]} is in the hands of process {os.getpid()} on node9: end it there"]
    found = cancelling.cancel([tmp_path / KEYS[0].path])
    assert killed == [(os.getpid(), signal.SIGTERM)] * 2  # this cell alone
    assert found.left == [f"sweep 1 has other cells too: name {sweep.experiment} to end it"]
    if os.getuid() == 0:
        for file in (sweep.claim_file, sweep.file, RunDirectory(tmp_path / KEYS[0].path).claim_file):
            os.chown(file, 12345, -1)
        assert len(cancelling.cancel([tmp_path]).left) == 3
        assert len(killed) == 2
    run.claim_file.write_text(text)
    for claim in claims:
        claim.release()


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to give a file away")
def test_cancel_ends_no_job_that_another_user_names(tmp_path: Path, slurm: Slurm) -> None:
    sweep = swept(tmp_path, jobs={0: "12_0"})
    os.chown(sweep.file, 12345, -1)
    slurm.jobs = {"12_0": Queued("PENDING", "Priority")}
    found = cancelling.cancel([tmp_path])
    assert (found.jobs, slurm.cancelled) == ([], [])
    assert f"named by {sweep.file}, another user's file" in found.left[0]
