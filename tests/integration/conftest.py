"""A small shapes5i and the command line, as a user has them."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from runs import script

from fsseg.cell.record import RunDirectory, find_runs
from fsseg.cli.train import start
from fsseg.config import entry

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


Told = Callable[..., str]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where lines are started: empty. Beside it an empty torch cache, and SLURM commands of which those that
    start jobs note their calls."""
    commands = tmp_path / "bin"
    commands.mkdir()
    noted = f'echo "$0 $*" >> {tmp_path}/calls; exit 1'
    for name, text in {"sbatch": noted, "srun": noted, "squeue": "true", "scontrol": "echo ClusterName = x"}.items():
        (commands / name).write_text(f"#!/bin/sh\n{text}\n")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("CUDA_VISIBLE_DEVICES", "HYDRA_FULL_ERROR"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`fsseg train` may be called in this process: what it changes is put back."""
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(entry, "allow_open_files", lambda: None)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    logger = logging.getLogger("fsseg")
    before = logger.handlers[:], logger.level, logger.propagate
    logger.handlers.clear()  # one of another test writes elsewhere
    yield
    logger.handlers[:], logger.level, logger.propagate = before


@pytest.fixture
def told(here: Path, in_process: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Told]:
    """`fsseg train` in this process, for a line that must be refused: what it prints to its end."""

    def call(*words: str) -> str:
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        with pytest.raises(SystemExit) as end:
            start(words)
        assert isinstance(end.value.code, str)  # which Python prints, and makes status 1 of
        return end.value.code

    yield call
    assert list(here.iterdir()) == []
    assert not (here.parent / "calls").exists()


def two_lines(text: str) -> tuple[str, str]:
    what, fix = text.strip().splitlines()
    assert what.startswith("error: ")
    assert fix.startswith("  -> ")
    return what, fix
