"""A small shapes5i and the command line, as a user has them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]

SMALL = (
    "dataset.num_train=60", "dataset.num_val=60", "dataset.image_size=49", "train.batch_size=2", "train.max_steps=3",
    "protocol.num_episodes=8", "protocol.seeds=[0,1]", "logger.figures=2", "num_workers=0", "num_threads=1",
)  # fmt: skip
"""Overrides that make a cell of shapes5i take seconds."""


@pytest.fixture(scope="session")
def shapes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shapes5i")


Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def train(tmp_path: Path, shapes_root: Path) -> Command:
    """`python train.py`, writing below tmp_path/outputs; a small shapes5i unless a data set is named."""

    def call(*overrides: str) -> subprocess.CompletedProcess[str]:
        own = [f"output_dir={tmp_path / 'outputs'}"]
        if not any(o.startswith("dataset=") for o in overrides):
            own += [f"dataset.root={shapes_root}", *SMALL]
        keys = {o.partition("=")[0] for o in overrides}
        own = [o for o in own if o.partition("=")[0] not in keys]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        environment.pop("HYDRA_FULL_ERROR", None)
        return subprocess.run(
            [sys.executable, str(REPO / "train.py"), *overrides, *own],
            capture_output=True, text=True, cwd=REPO, env=environment, timeout=300,
        )  # fmt: skip

    return call
