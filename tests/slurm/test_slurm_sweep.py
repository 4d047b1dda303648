"""A sweep over a real SLURM: what jobs may suffer, the table in the end, and what the same line does when run again."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster

from fsseg.cell.models import State
from fsseg.cell.record import RunDirectory
from fsseg.cell.sweeps import SweepRecord, sweeps_of
from fsseg.config.compose import compose
from fsseg.data.registry import build_source

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

REPO = Path(__file__).resolve().parents[2]
FAKE = REPO / "tests/sweep/fake_train.py"
SLURM = (
    "hydra/launcher=slurm", "hydra.launcher.gpus_per_node=null", "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.mem_gb=1", "hydra.launcher.timeout_min=10", "hydra.launcher.signal_delay_s=30",
    "hydra.launcher.array_parallelism=4", "hydra.launcher.poll_seconds=2",
)  # fmt: skip
DATA = ("dataset.num_train=60", "dataset.num_val=60", "dataset.image_size=49")
SMALL = (
    *DATA, "train.batch_size=2", "train.max_steps=20", "protocol.num_episodes=8", "protocol.seeds=[0]",
    "logger.figures=0", "logger.tensorboard=false", "num_workers=0", "num_threads=1",
)  # fmt: skip


STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def nothing_is_left_running() -> Iterator[None]:
    yield
    for process in STARTED:
        if process.poll() is None:
            process.kill()
            process.communicate()
    STARTED.clear()


class Sweep:
    """One sweep line on one cluster."""

    def __init__(
        self, cluster: Cluster, folder: Path, script: Path, *overrides: str, options: Sequence[str] = ()
    ) -> None:
        self.cluster = cluster
        self.folder = folder
        self.line = [str(script), *options, "-m", *SLURM, *overrides, "name=s", f"output_dir={folder / 'outputs'}"]

    def start(self, **environment: str) -> subprocess.Popen[str]:
        own = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", **environment}
        process = subprocess.Popen(
            [sys.executable, *self.line], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=REPO,
            env={**os.environ, **self.cluster.environment, **own},
        )  # fmt: skip
        STARTED.append(process)
        return process

    def cell(self, fold: int, seed: int = 0) -> RunDirectory:
        """By the records, for before its first start there is no directory."""
        paths = (c.path for record in self.records for c in record.cells if c.path.endswith(f"/fold{fold}/seed{seed}"))
        return RunDirectory(self.folder / "outputs/s" / next(paths, "absent"))

    @property
    def records(self) -> list[SweepRecord]:
        return [one.record for one in sweeps_of([self.folder / "outputs/s"])]

    @property
    def jobs(self) -> dict[int, str]:
        """Fold -> job, by the newest record."""
        last = self.records[-1] if self.records else None
        return {int(c.path.rpartition("fold")[2][0]): c.job for c in last.cells if c.job is not None} if last else {}

    def job(self, cell: RunDirectory) -> str:
        experiment = self.folder / "outputs/s"
        return next(
            str(swept.job)
            for record in self.records
            for swept in record.cells
            if experiment / swept.path == cell.directory and swept.job is not None
        )

    def command(self, *words: str) -> str:
        """What a command of `fsseg` prints."""
        done = subprocess.run(
            [sys.executable, "-m", "fsseg", *words], text=True, capture_output=True, cwd=REPO,
            env={**os.environ, **self.cluster.environment}, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start_requeued(self) -> None:
        """SLURM makes a requeued job wait for two minutes; tests do not."""
        for line in self.cluster.ask("squeue", "-h", "-r", "-t", "PENDING", "-o", "%i %r").splitlines():
            job, _, reason = line.partition(" ")
            if reason == "BeginTime":
                self.cluster.ask("scontrol", "update", f"JobId={job}", "StartTime=now")


def wait_until(condition: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.1)


def training(cell: RunDirectory) -> bool:
    status = cell.status()
    return status is not None and (status.state, status.phase) == ("running", "train") and cell.claim_file.exists()


def states(output: str) -> dict[str, str]:
    """Cells of the table that ends a sweep, as `fold3/seed0: state`."""
    rows = output.partition("\ncell ")[2].splitlines()[1:]
    return {found.group(1): found.group(2) for row in rows if (found := re.match(r"\S+/(fold\d/seed\d+) +(\w+)", row))}


def attempts(cell: RunDirectory) -> int:
    return len(list(cell.attempts.glob("*.json")))


def test_each_misfortune_costs_its_own_cell_and_the_same_line_completes_the_rest(
    cluster: Cluster, tmp_path: Path
) -> None:
    root = tmp_path / "shapes5i"
    build_source(compose([f"dataset.root={root}", *DATA]).cfg)
    sweep = Sweep(cluster, tmp_path, REPO / "train.py", "fold=0,1,2,3", "seed=0,1", f"dataset.root={root}", *SMALL)

    def cells() -> dict[str, RunDirectory]:
        return {f"fold{f}/seed{s}": sweep.cell(f, s) for f in range(4) for s in range(2)}

    process = sweep.start()
    wait_until(lambda: sweep.jobs)
    raising, killed, cancelled, limited, requeued = (
        cells()[name] for name in ("fold0/seed0", "fold0/seed1", "fold1/seed0", "fold1/seed1", "fold2/seed0")
    )
    raising.metrics_file.mkdir(parents=True)  # the run cannot write there
    waiting = {killed, cancelled, limited, requeued}
    end = time.monotonic() + 700
    while process.poll() is None:
        assert time.monotonic() < end, f"the sweep does not end; never trained: {waiting}"
        for cell in [one for one in waiting if training(one)]:
            waiting.remove(cell)
            if cell == killed:
                os.kill(json.loads(cell.claim_file.read_text())["pid"], signal.SIGKILL)
            elif cell == cancelled:
                cluster.send("scancel", sweep.job(cell))
            elif cell == limited:
                # What SLURM sends before the limit. `scancel --signal` may send it again, to the next start.
                os.kill(json.loads(cell.claim_file.read_text())["pid"], signal.SIGUSR2)
            else:
                cluster.send("scontrol", "requeue", sweep.job(cell))
        sweep.start_requeued()
        time.sleep(0.2)
    assert not waiting
    output, _ = process.communicate(timeout=400)

    assert process.returncode == 1, output
    first = states(output)
    expected: dict[str, Any] = dict.fromkeys(cells(), "done")
    expected["fold0/seed0"] = expected["fold0/seed1"] = "failed"
    expected["fold1/seed0"] = "preempted"
    assert first == expected, output
    assert "8 cells: 2 failed, 1 preempted, 5 done" in output
    for name, cell in cells().items():
        assert cell.result_file.exists() == (expected[name] == "done")
        assert cell.look().state == expected[name]
    assert "metrics.csv" in output
    assert "SIGKILL" in killed.log_file.read_text()
    assert "CANCELLED" in output
    assert attempts(limited) == attempts(requeued) == 2
    logs = [Path(found) for found in re.findall(r"log: (\S+)", output)]
    assert len(logs) == 3
    assert all(log.is_file() for log in logs)

    raising.metrics_file.rmdir()
    before = {name: attempts(cell) for name, cell in cells().items()}
    process = sweep.start()
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    assert "5 of 8 cells done, 3 to run" in output
    assert states(output) == dict.fromkeys(cells(), "done")
    for name, cell in cells().items():
        assert attempts(cell) == before[name] + (expected[name] != "done")


def test_jobs_outlive_the_launching_process_and_are_not_submitted_twice(cluster: Cluster, tmp_path: Path) -> None:
    sweep = Sweep(
        cluster, tmp_path, FAKE, "fold=0,1,2", f"dataset.root={tmp_path}", "lease_seconds=5",
        "hydra.launcher.array_parallelism=1",
    )  # fmt: skip
    acts = {"FAKE_0": "part:go", "FAKE_GO": str(tmp_path)}
    process = sweep.start(**acts)
    wait_until(lambda: sweep.cell(0).claim_file.exists())
    assert not sweep.cell(2).directory.exists()
    process.kill()
    process.communicate()
    standing = sweep.command("status", str(tmp_path / "outputs/s"))
    assert "3 cells: 1 running, 2 pending" in standing
    assert f"fold2/seed0  SLURM {sweep.jobs[2]}, PENDING" in standing

    process = sweep.start(**acts)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "0 of 3 cells done, 0 to run, 3 in other hands" in output
    assert list(states(output).values()) == ["running", "pending", "pending"]

    (tmp_path / "go").write_text("")
    wait_until(lambda: all(sweep.cell(fold).result_file.exists() for fold in range(3)))
    assert [len(json.loads((sweep.cell(fold).directory / "starts.json").read_text())) for fold in range(3)] == [1, 1, 1]
    assert len(sweep.records) == 1


def test_an_interrupted_sweep_says_which_jobs_go_on(cluster: Cluster, tmp_path: Path) -> None:
    sweep = Sweep(cluster, tmp_path, FAKE, "fold=0,1", f"dataset.root={tmp_path}")
    process = sweep.start(FAKE_0="part:go", FAKE_GO=str(tmp_path))
    wait_until(lambda: sweep.cell(0).claim_file.exists() and sweep.cell(1).result_file.exists())
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert list(states(output).values()) == ["running", "done"]
    assert f"`scancel {sweep.job(sweep.cell(0)).partition('_')[0]}` ends them" in output
    (tmp_path / "go").write_text("")
    wait_until(sweep.cell(0).result_file.exists)


def test_what_sbatch_refuses_is_told_in_its_words(cluster: Cluster, tmp_path: Path) -> None:
    sweep = Sweep(cluster, tmp_path, FAKE, "fold=0", f"dataset.root={tmp_path}", "hydra.launcher.partition=none")
    process = sweep.start()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "error: sbatch refused the sweep" in output
    assert "invalid partition" in output
    assert "Traceback" not in output
    standing = sweep.command("status", str(tmp_path / "outputs/s"))
    assert "fold0/seed0  stopped: never started; sweep 1 ended: sbatch refused the sweep" in standing


def test_waiting_and_requeued_jobs_run_what_was_submitted(cluster: Cluster, tmp_path: Path) -> None:
    """A YAML file edited while one cell runs and four wait: no other values, no second job."""
    file = tmp_path / "extra/experiment/mine.yaml"
    file.parent.mkdir(parents=True)
    text = "# @package _global_\nvariant: edited\ntrain:\n  lr: {}\n"
    file.write_text(text.format(0.011))
    sweep = Sweep(
        cluster, tmp_path, FAKE, "experiment=mine", "dataset.num_folds=5", "fold=0,1,2,3,4",
        f"dataset.root={tmp_path}",
        "hydra.launcher.array_parallelism=1", options=("--config-dir", str(tmp_path / "extra")),
    )  # fmt: skip
    process = sweep.start(FAKE_0="hang")
    wait_until(lambda: (sweep.cell(0).directory / "hung").exists() and sweep.cell(0).claim_file.exists())
    file.write_text(text.format(0.5))
    os.kill(json.loads(sweep.cell(0).claim_file.read_text())["pid"], signal.SIGUSR2)
    wait_until(lambda: "BeginTime" in cluster.ask("squeue", "-h", "-r", "-o", "%r"))
    standing = sweep.command("status", str(tmp_path / "outputs/s"))
    assert re.search(rf"fold0/seed0  SLURM {sweep.job(sweep.cell(0))}, PENDING, requeued \(\w+\)", standing)
    assert not {"failed", "stopped", "preempted"} & set(standing.splitlines()[0].split())
    while process.poll() is None:
        sweep.start_requeued()
        time.sleep(0.2)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert set(states(output).values()) == {"done"}
    [record] = sweep.records
    assert {record.config_of(cell)["train"]["lr"] for cell in record.cells} == {0.011}
    for cell in record.cells:
        result = RunDirectory(tmp_path / "outputs/s" / cell.path).result()
        assert result is not None
        assert result.fingerprint == cell.fingerprint
    assert len({str(cell.job).partition("_")[0] for cell in record.cells}) == 1


def test_submitted_and_left_cells_are_known_cancelled_and_run_again(cluster: Cluster, tmp_path: Path) -> None:
    """No launcher is alive: the queue and the record tell everything; nothing is submitted twice."""
    folder, acts = str(tmp_path / "outputs/s"), {"FAKE_0": "part:go", "FAKE_GO": str(tmp_path), "FAKE_1": "raise:fail"}
    line = ("fold=0,1,2,3", f"dataset.root={tmp_path}", "hydra.launcher.wait=false",
            "hydra.launcher.array_parallelism=2")  # fmt: skip
    one = Sweep(cluster, tmp_path, FAKE, *line)
    other = Sweep(cluster, tmp_path, FAKE, *line, f"hydra.launcher.submitit_folder={tmp_path}/elsewhere")
    starts = [one.start(**acts), other.start(**acts)]  # at once, and with other places for their jobs
    outputs = [process.communicate(timeout=120)[0] for process in starts]
    assert [process.returncode for process in starts] == [0, 0], outputs
    (tmp_path / "fail").write_text("")  # not before both are through: the later one would submit what has failed
    assert [bool(re.search("submitted to SLURM", output)) for output in outputs].count(True) == 1
    assert all(f"look again: fsseg status {folder} --watch" in output for output in outputs)
    assert all({"pending", "running"} >= set(states(output).values()) for output in outputs)
    assert len(one.records) == 1
    wait_until(lambda: one.cell(0).claim_file.exists() and one.cell(1).look().state == "failed")
    cluster.ask("scontrol", "hold", one.jobs[3])
    wait_until(lambda: "JobHeld" in cluster.ask("squeue", "-h", "-r", "-o", "%r"), 60)
    # The job of a failed cell may stand in the queue a moment longer than its process lives.
    wait_until(lambda: re.search(r"fold1/seed0  failed", one.command("status", folder)), 60)
    standing = one.command("status", folder)
    assert "fold0/seed0  ?, on" in standing
    assert re.search(r"fold1/seed0  failed: RuntimeError: a bad image", standing)
    assert re.search(rf"fold3/seed0  SLURM {one.jobs[3]}, PENDING \(JobHeld(User|Admin)\)", standing)
    assert f"`scontrol release {one.jobs[3]}` lets it go" in standing
    wait_until(one.cell(2).result_file.exists)
    retried = one.command("retry", folder)
    assert "1 cells ended without a result" in retried
    assert "python train.py fold=1 " in retried or "-m fold=1 " in retried

    assert "2 SLURM jobs cancelled" in one.command("cancel", folder)
    wait_until(lambda: not cluster.ask("squeue", "-h"))
    watched = one.command("status", folder, "--watch")  # ends by itself
    assert "fold3/seed0  stopped: never started; its SLURM job" in watched
    assert "CANCELLED" in watched
    assert re.search(r"4 cells: 1 done, .*1 failed, 1 stopped", watched)
    assert re.search(r"-m fold=0,1,3 ", one.command("retry", folder))

    (tmp_path / "go").write_text("")
    process = other.start()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "1 of 4 cells done, 3 to run" in output
    wait_until(lambda: all(one.cell(fold).result_file.exists() for fold in range(4)))
    assert [len(json.loads((one.cell(f).directory / "starts.json").read_text())) for f in range(4)] == [1, 1, 1, 1]


@pytest.mark.parametrize("count", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_many_cells_are_one_array_and_little_to_write(count: int, cluster: Cluster, tmp_path: Path) -> None:
    seeds = ",".join(map(str, range(count // 4)))
    sweep = Sweep(cluster, tmp_path, FAKE, "fold=0,1,2,3", f"seed={seeds}", f"dataset.root={tmp_path}",
                  "hydra.launcher.wait=false", "hydra.launcher.array_parallelism=1")  # fmt: skip
    output, _ = sweep.start(FAKE_0="part:go", FAKE_GO=str(tmp_path)).communicate(timeout=120)
    # The first of the array may have started before the line told how they stand.
    assert re.search(rf"{count} cells: ({count} pending|1 running, {count - 1} pending)", output), output
    [record] = sweep.records
    assert len({str(cell.job).partition("_")[0] for cell in record.cells}) == 1
    written = sum(
        p.stat().st_size for name in (".submitit", "sweeps") for p in (tmp_path / "outputs/s" / name).rglob("*")
    )
    assert written < count * 10_000
    wait_until(lambda: sweep.cell(0).look().state == State.RUNNING)
    assert f"{count} cells: 1 running, {count - 1} pending" in sweep.command("status", str(tmp_path / "outputs/s"))
    assert f"{count} SLURM jobs cancelled" in sweep.command("cancel", str(tmp_path / "outputs/s"))
    wait_until(lambda: not cluster.ask("squeue", "-h"))


@pytest.mark.parametrize("choice", ["hydra/launcher=submitit_slurm", "hydra/sweeper=basic"])
def test_a_launcher_by_habit_and_another_sweeper_run_their_cells_as_recorded_jobs(
    cluster: Cluster, tmp_path: Path, choice: str
) -> None:
    sweep = Sweep(cluster, tmp_path, FAKE, choice, "fold=0,1", f"dataset.root={tmp_path}")
    if choice.startswith("hydra/launcher"):
        sweep.line = [o for o in sweep.line if o not in ("hydra/launcher=slurm", "hydra.launcher.poll_seconds=2")]
    output, _ = sweep.start().communicate(timeout=120)
    assert all(sweep.cell(fold).result_file.exists() for fold in (0, 1)), output
    assert sorted(sweep.jobs) == [0, 1]
    assert all(re.fullmatch(r"\d+(_\d)?", job) for job in sweep.jobs.values())
    before = len(sweep.records)
    sweep.start().communicate(timeout=120)
    assert len(sweep.records) == before  # all done: nothing is submitted again


def test_cells_depend_on_the_base_learners_that_they_start_from(cluster: Cluster, tmp_path: Path) -> None:
    line = ("fold=0,1", "backbone.base_training=true", f"dataset.root={tmp_path}", "hydra.launcher.wait=false")
    sweep = Sweep(cluster, tmp_path, FAKE, *line)
    process = sweep.start(FAKE_0="part:go", FAKE_1="part:go", FAKE_GO=str(tmp_path))
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    base = sweeps_of([tmp_path / "outputs/base_training"])[0].record
    assert len(base.cells) == 2
    told = {job: cluster.ask("squeue", "-h", "-r", "-j", job, "-o", "%T %E") for job in sweep.jobs.values()}
    arrays = {str(cell.job).partition("_")[0] for cell in base.cells}
    assert len(arrays) == 1
    for text in told.values():
        assert text.startswith("PENDING")
        assert f"afterany:{next(iter(arrays))}" in text
    (tmp_path / "go").write_text("")
    wait_until(lambda: all(sweep.cell(fold).result_file.exists() for fold in (0, 1)))
    runs = [RunDirectory(tmp_path / "outputs/base_training" / cell.path) for cell in base.cells]
    ended = max(json.loads((run.directory / "starts.json").read_text())[0][1] for run in runs)
    for fold in (0, 1):
        assert json.loads((sweep.cell(fold).directory / "starts.json").read_text())[0][0] >= ended
