"""What a sweep launches, what it leaves alone, and the table it ends with."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict
from run_directories import make_run
from sweeps import REPO, Sweep, states, wait_until

import fsseg.config.entry  # noqa: F401  registers the schemas
from fsseg.cell.claim import acquire
from fsseg.cell.models import State
from fsseg.config.compose import Composer, composer
from fsseg.sweep.elsewhere import Elsewhere
from fsseg.sweep.grid import Point, examine
from fsseg.sweep.sweeper import Job, text, write_state


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["fold=2", "shot=5"],
        ["dataset=pascal5i", "fold=3", "train.lr=0.004", "train.lr=0.005"],
        ["backbone=resnet101", "dataset=coco20i", "dataset.year=2017", "protocol=hsnet", "protocol.seeds=[3]"],
        ["method=prototype", "dataset=coco20i", "model.layer=layer4"],
        ["experiment=smoke", "fold=1"],
        ["~experiment", "+extra=1", "variant='a b'", "train={lr: 0.5}"],
    ],
)
def test_quick_composition_equals_hydras(overrides: list[str]) -> None:
    with initialize_config_dir(str(REPO / "conf"), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("train", ["num_workers=0,1"], run_mode=RunMode.MULTIRUN)
        composer = Composer(loader, master)
        composer.compose(["fold=0", "train.lr=9"])  # nothing of another cell may stick
        theirs = loader.load_sweep_config(master, overrides)
        with open_dict(theirs):
            del theirs["hydra"]
        mine = composer.compose(overrides)
        assert OmegaConf.to_container(mine, resolve=True) == OmegaConf.to_container(theirs, resolve=True)
        assert list(OmegaConf.to_container(mine)) == list(OmegaConf.to_container(theirs))


def test_quick_composition_refuses_in_hydras_words() -> None:
    with initialize_config_dir(str(REPO / "conf"), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("train", [], run_mode=RunMode.MULTIRUN)
        for overrides in (["train.lrr=1"], ["train.lr=abc"], ["dataset=none"], ["fold=1", "~nothing"]):
            with pytest.raises(HydraException) as mine:
                Composer(loader, master).compose(overrides)
            with pytest.raises(HydraException) as theirs:
                loader.load_sweep_config(master, overrides)
            assert str(mine.value) == str(theirs.value)


def test_two_cells_with_one_directory_are_refused_before_anything_starts(sweep: Sweep) -> None:
    code, output = sweep.run("-m", "fold=0,1", "log_level=info,debug")
    assert code == 1
    assert "two cells of this sweep share the directory" in output
    assert "[fold=0 log_level=info" in output
    assert "[fold=0 log_level=debug" in output
    assert not (sweep.folder / "outputs").exists()


def test_a_rerun_launches_what_is_missing_and_nothing_else(sweep: Sweep) -> None:
    code, output = sweep.run("-m", "fold=0,1,2", FAKE_1="raise", FAKE_2="usererror")
    assert code == 1
    assert "0 of 3 cells done, 3 to run" in output
    assert states(output) == ["done", "failed", "failed"]
    assert "RuntimeError: a bad image" in output
    assert "the image is bad" in output
    assert "error: 2 of 3 cells are not done" in output
    assert "Traceback" not in output

    code, output = sweep.run("-m", "fold=0,1,2")
    assert code == 0
    assert "1 of 3 cells done, 2 to run" in output
    assert states(output) == ["done"] * 3
    assert [len(json.loads((sweep.cell(f).directory / "starts.json").read_text())) for f in range(3)] == [1, 1, 1]

    code, output = sweep.run("-m", "fold=0,1,2")
    assert code == 0
    assert "3 of 3 cells done, 0 to run" in output


def test_redo_runs_a_finished_cell_again_and_its_old_result_hides_no_failure(sweep: Sweep) -> None:
    sweep.run("-m", "fold=0,1")
    first = sweep.cell(0).result_file.stat().st_mtime_ns
    code, output = sweep.run("-m", "fold=0,1", "redo=true", FAKE_1="raise_early")
    assert code == 1
    assert "0 of 2 cells done, 2 to run" in output
    assert states(output) == ["done", "failed"]
    assert sweep.cell(0).result_file.stat().st_mtime_ns > first
    assert sweep.cell(1).result_file.exists()


def test_a_cell_that_returns_without_a_result_is_not_launched_for_ever(sweep: Sweep) -> None:
    code, output = sweep.run("-m", "fold=0", FAKE_0="nothing")
    assert code == 1
    assert states(output) == ["stopped"]


def test_cells_with_faults_are_reported_together_and_the_others_run(sweep: Sweep) -> None:
    code, output = sweep.run("-m", "fold=0,1,7,8", "seed=0,1")
    assert code == 1
    assert "0 of 8 cells done, 4 to run, 4 cannot start" in output
    assert output.count("fold=7 does not exist: shapes5i has folds 0 to 3\n  -> set fold to one of") == 1
    assert len(re.findall(r"fold7/seed[01] +faulty +fold=7 does not exist", output)) == 2
    assert sorted(states(output)) == ["done"] * 4 + ["faulty"] * 4
    assert sweep.cell(0).result_file.exists()
    assert sweep.cell(1).result_file.exists()


def test_a_grid_may_stand_in_a_file_and_the_command_line_wins(sweep: Sweep) -> None:
    params = ("+hydra.sweeper.params.fold='0,1,2'", "+hydra.sweeper.params.seed='0,1'")  # as an experiment's file would
    code, output = sweep.run("-m", *params, "seed=0")
    assert code == 0
    assert states(output) == ["done"] * 3


def test_sys_exit_in_a_cell_ends_only_that_cell(sweep: Sweep) -> None:
    code, output = sweep.run("-m", "fold=0,1,2", FAKE_1="exit")
    assert code == 1
    assert states(output) == ["done", "failed", "done"]
    assert "the cell called sys.exit(3)" in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_sweep_with_the_table(sweep: Sweep, number: signal.Signals) -> None:
    process = sweep.start("-m", "fold=0,1,2", FAKE_1="hang")
    wait_until((sweep.cell(1).directory / "hung").exists)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert states(output) == ["done", "preempted", "stopped"]
    assert f"signal {number.name}" in output
    assert "Traceback" not in output
    assert not sweep.cell(2).directory.exists()


def test_a_cell_that_another_process_holds_is_left_to_it(sweep: Sweep) -> None:
    claim = acquire(sweep.cell(1).claim_file, 5.0)
    claim.start()
    try:
        code, output = sweep.run("-m", "fold=0,1,2")
    finally:
        claim.release()
    assert code == 0
    assert "0 of 3 cells done, 2 to run, 1 in other hands" in output
    assert states(output) == ["done", "running", "done"]
    assert f"process {os.getpid()} on " in output
    assert not (sweep.cell(1).directory / "starts.json").exists()


def test_the_cell_of_a_process_that_is_killed_meanwhile_is_taken_over(sweep: Sweep, tmp_path: Path) -> None:
    first = sweep.start("fold=1", FAKE_1="hang")
    wait_until((sweep.cell(1).directory / "hung").exists)
    second = sweep.start("-m", "fold=0,1", FAKE_0="part:go", FAKE_GO=str(tmp_path))
    wait_until(sweep.cell(0).claim_file.exists)
    first.kill()
    first.communicate()
    (tmp_path / "go").write_text("")
    output, _ = second.communicate(timeout=60)
    assert second.returncode == 0
    assert "1 in other hands" in output
    assert states(output) == ["done", "done"]


def test_a_silent_holder_elsewhere_is_waited_for_no_longer_than_its_lease(sweep: Sweep) -> None:
    claim = acquire(sweep.cell(1).claim_file, 3.0)  # never renewed
    path = sweep.cell(1).claim_file
    fields = {**json.loads(path.read_text()), "host": "another"}
    path.write_text(json.dumps(fields))
    try:
        code, output = sweep.run("-m", "fold=0,1")
    finally:
        claim.release()
    assert code == 0
    assert states(output) == ["done", "done"]


GRID = ("fold=0,1,2", "seed=0,1")
SLOW = {f"FAKE_{fold}": "sleep:0.5" for fold in range(3)}


def starts(sweep: Sweep) -> list[int]:
    cells = [sweep.cell(fold, seed).directory for fold in range(3) for seed in range(2)]
    return [len(json.loads((cell / "starts.json").read_text())) for cell in cells]


@pytest.mark.process
def test_eight_processes_share_a_sweep_and_run_each_cell_once(sweep: Sweep) -> None:
    processes = [sweep.start("-m", *GRID, "lease_seconds=10", **SLOW) for _ in range(8)]
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 8, outputs
    for output in outputs:
        assert len(states(output)) == 6
        assert set(states(output)) <= {"done", "running"}
    assert starts(sweep) == [1] * 6


@pytest.mark.process
def test_one_of_several_killed_in_the_middle_leaves_its_cell_to_another(sweep: Sweep) -> None:
    victim = sweep.start("-m", *GRID, "lease_seconds=10", FAKE_0="hang")
    wait_until((sweep.cell(0).directory / "hung").exists)
    processes = [sweep.start("-m", *GRID, "lease_seconds=10", **SLOW) for _ in range(3)]
    others = [sweep.cell(fold).result_file for fold in range(1, 3)]
    wait_until(lambda: any(path.exists() for path in others), 180)
    victim.kill()
    victim.communicate()
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 3, outputs
    assert starts(sweep) == [1] * 6


def point_of(*overrides: str) -> Point:
    with composer() as c:
        [point] = examine(c.grid(overrides), data=False)
    return point


def job_of(*overrides: str) -> Job:
    return Job(**vars(point_of(*overrides)))


def test_a_result_that_comes_between_looking_and_launching_counts_but_for_redo(tmp_path: Path) -> None:
    line = ("fold=1", f"output_dir={tmp_path}")
    fresh, again = point_of(*line), point_of(*line, "redo=true")
    assert fresh.cell is not None
    make_run(fresh.cell, result=55.0)  # by another process
    job = Job(**vars(fresh))
    job.settle(None, Elsewhere())
    assert (job.state, job.note) == (State.DONE, "mIoU 55.00")
    redone = Job(**vars(again))
    assert redone.state == State.TODO
    assert redone.result() is None
    make_run(redone.place, result=56.0)
    assert redone.result() is not None


def test_a_state_written_for_others_keeps_how_far_the_cell_is(tmp_path: Path) -> None:
    cell = job_of(f"output_dir={tmp_path}").place
    make_run(cell, status={"state": "preempted", "phase": "train", "step": 7, "steps": 9, "eta_seconds": 3}, age=1e6)
    write_state(cell, State.FAILED)
    status = cell.status()
    assert status is not None
    assert (status.state, status.phase, status.step, status.steps) == ("failed", None, 7, 9)
    assert status.eta_seconds is None
    age = cell.look().age
    assert age is not None
    assert age < 100


def test_the_table_names_reasons_and_logs_of_what_is_missing_only(tmp_path: Path) -> None:
    done, failed = job_of("fold=1", f"output_dir={tmp_path}"), job_of("fold=2", f"output_dir={tmp_path}")
    done.state, done.note, done.log = State.DONE, "mIoU 55.00", tmp_path / "a.log"
    failed.state, failed.note, failed.log = State.FAILED, "no memory\nat all", tmp_path / "b.log"
    assert text([done, failed]).splitlines() == [
        "",
        "cell                                               state   result or reason",
        "runs/shapes5i/abcb/tiny/1shot/default/fold1/seed0  done    mIoU 55.00",
        "runs/shapes5i/abcb/tiny/1shot/default/fold2/seed0  failed  no memory",
        f"                                                           log: {tmp_path}/b.log",
        "2 cells: 1 done, 1 failed",
    ]


def test_the_table_tells_cells_apart_whose_names_do_not_hold_all_settings(tmp_path: Path) -> None:
    long = ["dataset.num_train=60", "dataset.num_val=60", "dataset.image_size=25", "model.channels=16",
            "train.max_steps=8", "train.batch_size=2", "protocol.num_episodes=6", f"output_dir={tmp_path}"]  # fmt: skip
    jobs = [job_of(*long, f"protocol.min_pixels={n}") for n in (100, 200)]
    head, *rows = text(jobs).splitlines()[1:3]
    assert head.split() == ["cell", "state", "settings", "result", "or", "reason"]
    assert rows[0].split()[1:] == ["to", "do", "protocol.min_pixels=100"]
