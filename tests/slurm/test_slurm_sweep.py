"""A sweep over a real SLURM: what jobs may suffer, the table in the end, and what the same line does when run again."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster

from fsseg.cell.record import RunDirectory
from fsseg.config.compose import compose
from fsseg.data.registry import build_source
from fsseg.process.files import read_json

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

    def __init__(self, cluster: Cluster, folder: Path, script: Path, *overrides: str) -> None:
        self.cluster = cluster
        self.folder = folder
        self.line = [str(script), "-m", *SLURM, *overrides, "name=s", f"output_dir={folder / 'outputs'}"]

    def start(self, **environment: str) -> subprocess.Popen[str]:
        own = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", **environment}
        process = subprocess.Popen(
            [sys.executable, *self.line], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=REPO,
            env={**os.environ, **self.cluster.environment, **own},
        )  # fmt: skip
        STARTED.append(process)
        return process

    def cell(self, fold: int, seed: int = 0) -> RunDirectory:
        found = next((self.folder / "outputs/s").glob(f"shapes5i/abcb/tiny/1shot/*/fold{fold}/seed{seed}"), None)
        return RunDirectory(found or self.folder / "absent")

    def job(self, cell: RunDirectory) -> str:
        records = sorted((self.folder / "outputs/s/.submitit").glob("*/jobs.json"))
        jobs = (read_json(records[-1]) or {})["jobs"]
        return str(jobs[str(cell.directory)]["job_id"])

    def start_requeued(self) -> None:
        """SLURM makes a requeued job wait for two minutes; tests do not."""
        for line in self.cluster.ask("squeue", "-h", "-r", "-t", "PENDING", "-o", "%i %r").splitlines():
            job, _, reason = line.partition(" ")
            if reason == "BeginTime":
                self.cluster.ask("scontrol", "update", f"JobId={job}", "StartTime=now")


def wait_until(condition: Callable[[], object], seconds: float = 240) -> None:
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
    wait_until(lambda: list((tmp_path / "outputs/s/.submitit").glob("*/jobs.json")))
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
    wait_until(lambda: sweep.cell(0).claim_file.exists() and sweep.cell(2).status() is not None)
    assert sweep.cell(2).look().state == "queued"
    process.kill()
    process.communicate()

    process = sweep.start(**acts)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "0 of 3 cells done, 0 to run, 3 in other hands" in output
    assert list(states(output).values()) == ["running", "queued", "queued"]

    (tmp_path / "go").write_text("")
    wait_until(lambda: all(sweep.cell(fold).result_file.exists() for fold in range(3)))
    assert [len(json.loads((sweep.cell(fold).directory / "starts.json").read_text())) for fold in range(3)] == [1, 1, 1]
    assert len(list((tmp_path / "outputs/s/.submitit").glob("*/jobs.json"))) == 1


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
    snapshot = sweep.cell(0).look()
    assert snapshot.state == "failed"
    assert "not submitted" in snapshot.reason
