"""Cells in processes of their own: throttle, GPUs, kills, signals; and what SLURM's commands tell."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
from pathlib import Path

import pytest
from sweeps import Sweep, states, wait_until

from fsseg.errors import UserError
from fsseg.sweep import queue as queues
from fsseg.sweep.launchers.base import last_line
from fsseg.sweep.launchers.local import slots, visible_gpus
from fsseg.sweep.queue import last_states, queue, still_there

LOCAL = ("hydra/launcher=local", "hydra.launcher.workers=2")


def starts(sweep: Sweep, fold: int) -> list[list[object]]:
    value: list[list[object]] = json.loads((sweep.cell(fold).directory / "starts.json").read_text())
    return value


def test_a_killed_worker_costs_its_cell_only_and_leaves_a_reason(sweep: Sweep) -> None:
    code, output = sweep.run("-m", "fold=0,1,2", *LOCAL, FAKE_1="kill", FAKE_2="raise")
    assert code == 1
    assert states(output) == ["done", "failed", "failed"]
    assert "killed by SIGKILL" in output
    status = sweep.cell(1).status()
    assert status is not None
    assert status.state == "failed"
    assert status.reason is not None
    assert "SIGKILL" in status.reason
    assert "SIGKILL" in sweep.cell(1).log_file.read_text()
    logs = [Path(found) for found in re.findall(r"log: (\S+)", output)]
    assert len(logs) == 2
    assert "RuntimeError: a bad image" in logs[1].read_text()
    assert "Traceback" in logs[1].read_text()

    code, output = sweep.run("-m", "fold=0,1,2", *LOCAL)
    assert code == 0
    assert "1 of 3 cells done, 2 to run" in output


@pytest.mark.process
def test_no_more_cells_than_workers_run_at_a_time_each_on_its_own_gpu(sweep: Sweep) -> None:
    slow = {f"FAKE_{fold}": "sleep:0.7" for fold in range(4)}
    code, _ = sweep.run("-m", "fold=0,1,2,3", *LOCAL, CUDA_VISIBLE_DEVICES="4,6", **slow)
    assert code == 0
    rows = [starts(sweep, fold)[0] for fold in range(4)]
    overlaps = 0
    for i, (begin, end, gpu, pid) in enumerate(rows):
        beside = [row for j, row in enumerate(rows) if j != i and row[0] < end and begin < row[1]]  # type: ignore[operator]
        assert len([row for row in beside if row[0] <= begin < row[1]]) <= 1  # type: ignore[operator]
        assert gpu in ("4", "6")
        assert all(row[2] != gpu and row[3] != pid for row in beside)
        overlaps += len(beside)
    assert overlaps >= 2


@pytest.mark.process
def test_a_worker_that_saved_itself_on_usr2_starts_again_and_finishes(sweep: Sweep) -> None:
    process = sweep.start("-m", "fold=0,1", *LOCAL, FAKE_1="hang")
    wait_until(
        lambda: (sweep.cell(1).directory / "hung").exists() and (sweep.cell(1).directory / "hung").read_text() != ""
    )
    os.kill(int((sweep.cell(1).directory / "hung").read_text()), signal.SIGUSR2)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "it starts again" in output
    assert states(output) == ["done", "done"]


def test_a_signal_to_the_sweep_reaches_the_workers_and_the_table_follows(sweep: Sweep) -> None:
    process = sweep.start("-m", "fold=0,1,2", "hydra/launcher=local", "hydra.launcher.workers=1", FAKE_1="hang")
    wait_until((sweep.cell(1).directory / "hung").exists)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    assert states(output) == ["done", "preempted", "stopped"]
    assert not sweep.cell(1).claim_file.exists()


@pytest.mark.process
def test_workers_outlive_a_killed_sweep_and_the_next_one_leaves_them_alone(sweep: Sweep, tmp_path: Path) -> None:
    first = sweep.start("-m", "fold=0", *LOCAL, FAKE_0="part:go", FAKE_GO=str(tmp_path))
    wait_until(sweep.cell(0).claim_file.exists)
    first.kill()
    first.communicate()
    code, output = sweep.run("-m", "fold=0,1", "lease_seconds=5", *LOCAL)
    (tmp_path / "go").write_text("")
    assert code == 0
    assert states(output) == ["running", "done"]
    wait_until(sweep.cell(0).result_file.exists)
    assert len(starts(sweep, 0)) == 1


def test_a_machine_without_slurm_is_told_in_one_line(sweep: Sweep) -> None:
    code, output = sweep.run("-m", "fold=0,1", "hydra/launcher=slurm", PATH=str(sweep.folder))
    assert code == 1
    assert "error: hydra/launcher=slurm: there is no sbatch on this machine" in output
    assert "Traceback" not in output
    assert not sweep.cell(0).status_file.exists()


PARAMS = {"workers": None, "gpus_per_node": None, "tasks_per_node": 1}


def test_gpus_are_dealt_in_groups_and_shared_where_workers_outnumber_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,5")
    assert visible_gpus() == ["0", "1", "2", "3", "5"]
    assert slots(PARAMS).gpus == [["0"], ["1"], ["2"], ["3"], ["5"]]
    assert slots(PARAMS).workers == 5
    two = slots({**PARAMS, "tasks_per_node": 2})
    assert (two.workers, two.gpus) == (2, [["0", "1"], ["2", "3"]])
    assert slots({**PARAMS, "workers": 9}).workers == 9
    assert slots({**PARAMS, "gpus_per_node": 0}).gpus == [[]]
    with pytest.raises(UserError, match="shows 5 GPUs"):
        slots({**PARAMS, "gpus_per_node": 6})
    with pytest.raises(UserError, match="runs nothing"):
        slots({**PARAMS, "workers": 0})


def test_without_gpus_the_environment_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    found = slots(PARAMS)
    assert (found.workers, found.gpus, found.threads) == (3, [], 4)


def test_the_line_that_names_an_exception_is_found() -> None:
    trace = 'Traceback (most recent call last):\n  File "a.py", line 1, in f\n    g()\nValueError: too small\n'
    assert last_line(trace) == "ValueError: too small"
    assert (
        last_line(trace.replace("ValueError: too small", "fsseg.errors.UserError: no data\n  -> fetch it")) == "no data"
    )


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder at the front of PATH for stand-ins of SLURM's commands."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def stand_in(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_the_queue_is_known_by_both_names_of_an_array_task(commands: Path) -> None:
    stand_in(
        commands,
        "squeue",
        """\
echo '12_3    15    RUNNING  0   None                '
echo '12_4    16    PENDING  2   BeginTime           '
echo '17      17    PENDING  0   JobHeldUser         '
echo 'slurm_load_jobs: a warning'""",
    )
    jobs = queue()
    assert jobs is not None
    assert sorted(jobs) == ["12_3", "12_4", "15", "16", "17"]
    assert str(jobs["15"]) == "RUNNING"
    assert str(jobs["12_4"]) == "PENDING, requeued (BeginTime)"
    assert [jobs[name].works for name in ("12_3", "12_4", "17")] == [True, False, False]
    assert [jobs[name].held for name in ("12_3", "12_4", "17")] == [False, False, True]


def test_no_answer_of_squeue_is_not_an_empty_queue(commands: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queues, "_PAUSE", 0)
    stand_in(commands, "squeue", 'echo call >> "$0.calls"; exit 1')
    assert queue() is None
    assert (commands / "squeue.calls").read_text() == 3 * "call\n"
    stand_in(commands, "squeue", '[ -e "$0.again" ] || { touch "$0.again"; exit 1; }')
    assert queue() == {}  # a busy controller drops some calls
    stand_in(commands, "squeue", "true")
    assert queue() == {}


@pytest.mark.parametrize(
    ("sacct", "words"),
    [
        ("12_3|OUT_OF_MEMORY|0:125", "OUT_OF_MEMORY"),
        ("12_3|FAILED|0:9", "FAILED, killed by SIGKILL"),
        ("12_3|FAILED|137:0", "FAILED, exit status 137 (killed by SIGKILL)"),
        ("12_3|CANCELLED by 0|0:0", "CANCELLED by 0"),
        ("12_3|FAILED|1:0", "FAILED, exit status 1"),
    ],
)
def test_how_a_job_ended_is_put_in_words(commands: Path, sacct: str, words: str) -> None:
    stand_in(commands, "sacct", f"echo '{sacct}'")
    assert last_states(["12_3"])["12_3"].startswith(words)


def test_what_a_user_wants_squeue_to_show_hides_nothing(commands: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUEUE_PARTITION", "cpu")
    listing = "echo '12 12 RUNNING 0 None'; echo '13 13 COMPLETED 0 None'"
    stand_in(commands, "squeue", f'[ -z "$SQUEUE_PARTITION" ] && case "$*" in *--all*) {listing};; esac')
    assert list(queue() or {}) == ["12"]


def test_scontrol_says_whether_a_job_is_over(commands: Path) -> None:
    for state, there in (("RUNNING", True), ("PENDING", True), ("COMPLETED", False), ("CANCELLED", False)):
        stand_in(commands, "scontrol", f"echo 'JobId=15 JobState={state} Reason=None'")
        assert still_there("15") == there
    stand_in(commands, "scontrol", "exit 1")
    assert not still_there("15")


def test_tasks_that_never_started_share_a_line_of_sacct(commands: Path) -> None:
    stand_in(
        commands, "sacct", "echo 'call' >> \"$0.calls\"; echo '12_0|COMPLETED|0:0'; echo '12_[2,4-6%2]|CANCELLED|0:0'"
    )
    found = last_states(["12_0", "12_2", "12_4", "12_6"])
    assert found == {"12_0": "COMPLETED", "12_2": "CANCELLED", "12_4": "CANCELLED", "12_6": "CANCELLED"}
    assert (commands / "sacct.calls").read_text() == "call\n"


def test_scontrol_answers_where_accounting_is_off(commands: Path) -> None:
    stand_in(commands, "sacct", "exit 1")
    stand_in(
        commands,
        "scontrol",
        """\
echo 'JobId=15 ArrayJobId=12 ArrayTaskId=3 JobState=NODE_FAIL Reason=NodeDown ExitCode=0:0'
echo 'JobId=12 ArrayJobId=12 ArrayTaskId=4294967294 JobState=CANCELLED ExitCode=0:0'""",
    )
    assert last_states(["12_3", "12_7"]) == {"12_3": "NODE_FAIL", "12_7": "CANCELLED"}
    stand_in(commands, "scontrol", "exit 1")
    assert "neither sacct nor scontrol" in last_states(["12_3"])["12_3"]


def cluster_of_stand_ins(sweep: Sweep, **programs: str) -> str:
    """A PATH with commands that accept one array, whose jobs wait for ever; `programs` replaces some of them."""
    folder = sweep.folder / "bin"
    folder.mkdir()
    usual = {
        "sbatch": 'echo "$@" >> "$0.calls"; echo Submitted batch job 12', "srun": "true", "scancel": "true",
        "squeue": "echo '12_0 12 PENDING 0 Priority'; echo '12_1 13 PENDING 0 Priority'", "sacct": "exit 1",
        "scontrol": "echo ClusterName = stand-in",
    }  # fmt: skip
    for name, text in (usual | programs).items():
        stand_in(folder, name, text)
    return f"{folder}:{os.environ['PATH']}"


@pytest.mark.parametrize(("name", "text"), [("squeue", "exit 1"), ("scontrol", "exit 1")])
def test_nothing_is_submitted_while_slurm_does_not_answer(sweep: Sweep, name: str, text: str) -> None:
    path = cluster_of_stand_ins(sweep, **{name: text})
    code, output = sweep.run("-m", "fold=0,1", "hydra/launcher=slurm", "hydra.launcher.wait=false", PATH=path)
    assert code == 1
    assert f"error: hydra/launcher=slurm: {name} does not answer" in output
    assert not (sweep.folder / "bin/sbatch.calls").exists()
    assert not (sweep.folder / "outputs").exists()


def test_a_refused_sweep_is_told_to_who_waits_for_its_end(sweep: Sweep) -> None:
    path = cluster_of_stand_ins(sweep, sbatch="echo sbatch: no such partition >&2; exit 1", squeue="true")
    told = sweep.folder / "told"
    tell = f"notify.on_end='echo \"$FSSEG_EVENT $FSSEG_CELLS $FSSEG_DONE $FSSEG_REASON\" >> {told}'"
    code, output = sweep.run("-m", "fold=0,1", "hydra/launcher=slurm", tell, PATH=path)
    assert code == 1, output
    (line,) = told.read_text().splitlines()
    assert line.startswith("sweep_ended 2 0 ")
    assert "no such partition" in line


def test_nothing_is_submitted_beside_a_record_that_cannot_be_read(sweep: Sweep) -> None:
    path = cluster_of_stand_ins(sweep)
    line = ("-m", "fold=0,1", "hydra/launcher=slurm", "hydra.launcher.wait=false")
    code, output = sweep.run(*line, PATH=path)
    assert (code, states(output)) == (0, ["pending", "pending"]), output
    record = sweep.folder / "outputs/s/sweeps/1.json"
    record.write_text(record.read_text().replace('"schema_version": 3', '"schema_version": 99'))
    code, output = sweep.run(*line, PATH=path)
    assert code == 1
    assert "1.json: has schema_version 99" in output
    assert "which cells it has submitted is not known" in output
    assert len((sweep.folder / "bin/sbatch.calls").read_text().splitlines()) == 1


def test_an_array_that_is_refused_does_not_hide_the_one_before(sweep: Sweep) -> None:
    """More cells than one array takes: the second is refused, and the first goes on and is told."""
    once = '[ -e "$0.calls" ] && { echo sbatch: too many jobs >&2; exit 1; }; echo "$@" >> "$0.calls"; echo job 12'
    some = "for i in $(seq 0 999); do echo 12_$i 12$i PENDING 0 Priority; done"
    path = cluster_of_stand_ins(sweep, sbatch=once, squeue=some)
    seeds = ",".join(map(str, range(1001)))
    code, output = sweep.run("-m", f"seed={seeds}", "hydra/launcher=slurm", "hydra.launcher.wait=false", PATH=path)
    assert code == 1
    assert "submitted to SLURM as 12," in output
    assert re.search("1 of 1001 cells are not submitted: sbatch refused the sweep: .*too many jobs", output)
    assert "1001 cells: 1000 pending, 1 stopped" in output
