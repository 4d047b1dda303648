"""`fsseg train` from a wheel on a real SLURM, from an empty folder; and a job with a GPU that torch does not see."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cluster import Cluster
from installed_copy import environment, lay_out

from fsseg.cell.record import find_runs

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]


def train(cluster: Cluster, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`python -m fsseg train -m hydra/launcher=slurm ...` in an empty folder, far from any checkout."""
    site, here = lay_out(folder / "site"), folder / "here"
    here.mkdir()
    line = ["-m", "fsseg", "train", "-m", "hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1",
            "hydra.launcher.mem_gb=1", "hydra.launcher.timeout_min=10", "hydra.launcher.poll_seconds=1",
            "dataset.num_train=60", "dataset.num_val=60", "dataset.image_size=25", "train.max_steps=3",
            "model.channels=16", "protocol.num_episodes=6", "protocol.seeds=[0]", "logger.figures=0",
            "logger.tensorboard=false", "num_workers=0", "num_threads=1", *words]  # fmt: skip
    return subprocess.run(
        [sys.executable, *line], cwd=here, env=environment(site) | cluster.environment, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip


def test_jobs_run_the_installed_code(cluster: Cluster, tmp_path: Path) -> None:
    done = train(cluster, tmp_path, "hydra.launcher.gpus_per_node=null", "fold=0,1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("2 cells: 2 done")
    runs = find_runs([tmp_path / "here" / "outputs"])
    assert len(runs) == 2
    for run in runs:
        result = run.result()
        assert result is not None
        assert result.provenance["git"] == {"commit": None, "dirty": None}  # not the checkout's


def test_a_gpu_that_torch_does_not_see_ends_the_job(cluster: Cluster, tmp_path: Path) -> None:
    """This cluster has no GPU to give, so the job is told of one."""
    told = "hydra.launcher.setup=['export SLURM_JOB_GPUS=0']"
    done = train(cluster, tmp_path, "hydra.launcher.gpus_per_node=null", told, "fold=0")
    assert done.returncode == 1
    assert "SLURM_JOB_GPUS=0 says that this process was given a GPU, but torch sees none" in done.stdout
    (run,) = find_runs([tmp_path / "here" / "outputs"])
    assert not run.checkpoint.exists()
