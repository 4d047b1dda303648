"""What can be known before a job is spent ends in two lines, and nothing is written, started or submitted."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from .conftest import Told, two_lines

SLURM = "-m hydra/launcher=slurm hydra.launcher.partition=gpu"
SIGNAL = "hydra.launcher.timeout_min=2 hydra.launcher.signal_delay_s=120"
LINES = [
    # line, what its first line names, what its second line names
    ("fold=0,1", "fold=0,1 has several values", "-m fold=0,1"),
    ("fold=range(0,4)", "fold=range(0,4) has several values", "-m 'fold=range(0,4)'"),
    ("protocol.seeds=0,1", "protocol.seeds=0,1 has several values", "[a,b]"),
    ("hydra/launcher=slurm", "hydra/launcher=slurm", "add -m"),
    ("hydra/launcher=local fold=1", "hydra/launcher=local", "add -m"),
    ("hydra.launcher.partition=gpu", "hydra.launcher.partition is no setting", "hydra/launcher=slurm"),
    (f"{SLURM} {SIGNAL}", "hydra.launcher.signal_delay_s=120", "timeout_min"),
    (f"-m hydra/launcher=submitit_slurm {SIGNAL}", "hydra.launcher.timeout_min=2 is 120 s", "signal_delay_s"),
    ("hydra.job.chdir=true", "hydra.job.chdir=true", "leave it out"),
    (f"{SLURM} fold=0,1 hydra.job.chdir=true", "hydra.job.chdir=true", "leave it out"),
    ("-m fold=0,1 hydra.job.chdir=true", "hydra.job.chdir=true", "leave it out"),
    ("-m fold=0,1 hydra/sweeper=basic hydra.job.chdir=true", "hydra.job.chdir=true", "leave it out"),
    ("-m fold=0,1 hydra/sweeper=basic hydra.sweep.subdir=x", "hydra.sweep.subdir=x", "variant="),
    (f"{SLURM} hydra/sweeper=basic {SIGNAL}", "hydra.launcher.signal_delay_s=120", "timeout_min"),
    ("-m fold=0, 1", "fold=0,: Hydra cannot read", "fold=0,1,2,3"),
    ("hydra.run.dir=mine", "hydra.run.dir=mine", "output_dir="),
    ("-m fold=0,1 hydra.run.dir=mine", "hydra.run.dir=mine", "output_dir="),
    ("-m fold=0,1 hydra.sweep.subdir=${hydra.job.num}", "hydra.sweep.subdir=${hydra.job.num}", "variant="),
    (f"{SLURM} fold=0,1 hydra.sweep.subdir=${{fold}}", "hydra.sweep.subdir=${fold}", "variant="),
    ("hydra.output_subdir=.hydra", "hydra.output_subdir=.hydra", "config.yaml"),
    (f"{SLURM} hydra.output_subdir=.hydra", "hydra.output_subdir=.hydra", "config.yaml"),
    ("--cfg job -m fold=0,1", "--cfg", "fsseg plan"),
    ("fold=1 --cfg hydra -m", "--cfg", "leave -m"),
    ("--info searchpath -m fold=0,1", "--info", "fsseg plan"),
    ("--cfg job --run", "--run", "leave one"),
    ("--resolve", "--resolve", "--cfg job"),
    ("-p train fold=1", "--package", "--cfg job"),
    ("--multirum fold=0,1", "--multirum", "--hydra-help"),
    ("search=lr_and_rounds", "search=lr_and_rounds starts many cells", "-m search=lr_and_rounds"),
    (f"{SLURM} fold=0,1 output_dir=/proc/nowhere", "/proc/nowhere", "output_dir="),
]


@pytest.mark.parametrize(("line", "what", "fix"), LINES, ids=[line for line, _, _ in LINES])
def test_a_line_that_cannot_be_obeyed_ends_in_two_lines(line: str, what: str, fix: str, told: Told) -> None:
    first, second = two_lines(told(*line.split()))
    assert what in first
    assert fix in second


def test_a_launcher_of_an_experiment_file_without_m_is_told(told: Told, tmp_path: Path) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    text = "# @package _global_\ndefaults:\n  - override /hydra/launcher: slurm\n"
    (tmp_path / "mine" / "experiment" / "night.yaml").write_text(text)
    what, fix = two_lines(told("--config-dir", f"{tmp_path}/mine", "experiment=night"))
    assert "hydra/launcher=slurm starts the cells of a sweep" in what
    assert "hydra/launcher=basic" in fix


LAUNCHERS = {"local": ("-m", "hydra/launcher=local"), "slurm": tuple(SLURM.split()), "basic": ("-m",)}


@pytest.mark.parametrize("launcher", ["local", "slurm"])
def test_weights_that_are_not_there_are_told_once_for_each_backbone(
    launcher: str, told: Told, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    what, _ = two_lines(told(*LAUNCHERS[launcher], "backbone=resnet18,resnet50", "fold=0,1"))
    assert what == "error: 4 of 4 cells are not done (listed above)"
    faults = capsys.readouterr().err
    for name, file in (("resnet18", "resnet18-f37072fd.pth"), ("resnet50", "resnet50-0676ba61.pth")):
        place = here.parent / "torch" / "hub" / "checkpoints" / file
        assert f"the pretrained weights of {name} are not in torch's cache: {place} is not there\n  -> " in faults
        assert faults.count(f"`fsseg prepare --weights backbone={name}`") == 1


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_file_in_torchs_cache_that_is_another_stops_every_launcher(
    launcher: str, told: Told, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = here.parent / "torch" / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"")  # SHA-256 e3b0c442...
    two_lines(told(*LAUNCHERS[launcher], "backbone=resnet18"))
    assert (
        f"{file} is not the file that its name says: its SHA-256 begins with e3b0c442\n  -> " in capsys.readouterr().err
    )


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("dataset=pascal5i", "dataset.root=nowhere", "backbone=tiny"), "dataset.root=nowhere"),
        (("backbone=resnet18", "backbone.weights=no.pth"), "backbone.weights=no.pth is not a file"),
        (("checkpoint=no.pt",), "checkpoint=no.pt is not a file"),
        (("protocol.episodes_file=no.tsv",), "protocol.episodes_file=no.tsv is not a file"),
        (("sync.url=nonsense://there",), "sync.url=nonsense://there"),
    ],
    ids=lambda words: words[-1] if isinstance(words, tuple) else "",
)
def test_a_file_that_is_not_there_is_told(
    words: tuple[str, ...], what: str, launcher: str, told: Told, capsys: pytest.CaptureFixture[str]
) -> None:
    two_lines(told(*LAUNCHERS[launcher], *words))
    faults = capsys.readouterr().err
    assert what in faults
    assert faults.count("\n  -> ") == 1


Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(("free", "refused"), [(0.9e9, True), (1.1e9, False)])
def test_a_disk_that_is_clearly_too_small_is_refused_with_both_figures(
    free: float, refused: bool, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four cells of 500 MB, as published: 2 GB."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(int(1e12), 0, int(free)))
    monkeypatch.setattr("fsseg.data.registry.folder_faults", lambda cfg: [])
    monkeypatch.setattr("fsseg.sweep.launchers.slurm.shutil.which", lambda name: None)  # ends there, if it comes so far
    what, fix = two_lines(told(*LAUNCHERS["slurm"], "dataset=pascal5i", "backbone.pretrained=false", "fold=0,1,2,3"))
    if refused:
        assert what == "error: output_dir=outputs: 4 cells need about 2 GB, and 900 MB are free"
        assert "fsseg clean" in fix
    else:
        assert "there is no sbatch" in what


def test_a_folder_where_nothing_can_be_written_is_told(
    told: Told, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    others = here.parent / "others"
    (others / "theirs").mkdir(parents=True)
    may = os.access  # root may write everywhere
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != others / "theirs" and may(path, mode))
    two_lines(told(*LAUNCHERS["slurm"], f"output_dir={others}", "name=theirs", "fold=0,1"))
    assert f"{others}/theirs: nothing can be written there" in capsys.readouterr().err
    assert list((others / "theirs").iterdir()) == []
