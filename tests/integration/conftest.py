"""A small shapes5i and the command line, as a user has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from runs import script

from fsseg.cell.record import RunDirectory, find_runs

REPO = Path(__file__).resolve().parents[2]

SMALL = (
    "dataset.num_train=60", "dataset.num_val=60", "dataset.image_size=49", "train.batch_size=2", "train.max_steps=3",
    "protocol.num_episodes=8", "protocol.seeds=[0,1]", "logger.figures=2", "num_workers=0", "num_threads=1",
)  # fmt: skip
"""Overrides that make a cell of shapes5i take a second."""


@pytest.fixture(scope="session")
def shapes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shapes5i")


Command = Callable[..., "CompletedProcess[str]"]


def command(folder: Path, shapes_root: Path) -> Command:
    """`python train.py`, writing below folder/outputs; a small shapes5i unless a data set is named."""

    def call(*overrides: str) -> CompletedProcess[str]:
        own = [f"output_dir={folder / 'outputs'}"]
        if not any(o.startswith("dataset=") for o in overrides):
            own += [f"dataset.root={shapes_root}", *SMALL]
        keys = {o.partition("=")[0] for o in overrides}
        return script(
            REPO / "train.py", *overrides, *(o for o in own if o.partition("=")[0] not in keys), folder=folder, cwd=REPO
        )

    return call


@pytest.fixture
def train(tmp_path: Path, shapes_root: Path) -> Command:
    return command(tmp_path, shapes_root)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, shapes_root: Path) -> tuple[RunDirectory, CompletedProcess[str]]:
    """One cell that several tests look at, and what its run printed."""
    folder = tmp_path_factory.mktemp("trained")
    done = command(folder, shapes_root)()
    assert done.returncode == 0, done.stderr
    (run,) = find_runs([folder / "outputs"])
    return run, done
