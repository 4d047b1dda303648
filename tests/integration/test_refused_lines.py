"""Names, folders and files that cannot be: `train.py` says so in two lines, and nothing is made before that."""

from __future__ import annotations

from pathlib import Path
from subprocess import CompletedProcess

import pytest
from runs import script
from sweeps import FAKE

from .conftest import REPO

LAUNCHERS = {
    "run": (),
    "basic": ("-m", "fold=0,1"),
    "local": ("-m", "fold=0,1", "hydra/launcher=local", "hydra.launcher.workers=1"),
}


def told(done: CompletedProcess[str]) -> list[str]:
    """The two lines of an error."""
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    what, fix = done.stderr.strip().splitlines()[-2:]
    assert what.startswith("error: ")
    assert fix.startswith("  -> ")
    return [what, fix]


@pytest.fixture(params=LAUNCHERS)
def start(request: pytest.FixtureRequest, tmp_path: Path) -> object:
    """`train.py`, alone or as a sweep, with cells that do not train."""

    def call(*overrides: str) -> CompletedProcess[str]:
        line = (*LAUNCHERS[request.param], *overrides, f"dataset.root={tmp_path}")
        path = REPO / "train.py" if request.param == "run" else FAKE
        (tmp_path / "here").mkdir(exist_ok=True)
        return script(path, *line, folder=tmp_path, cwd=tmp_path / "here")

    return call


BAD_NAMES = ("name='a\nb'", "name=../up", "name=..", "name='a b'", "name=" + "x" * 101, "variant=-x",
             "protocol.name='a\nb'", "model.name=../..", "dataset.name='shapes5i\n#SBATCH'")  # fmt: skip


@pytest.mark.parametrize("word", BAD_NAMES, ids=[word[:16] for word in BAD_NAMES])
def test_a_name_that_breaks_the_rule_makes_nothing(word: str, start: object, tmp_path: Path) -> None:
    done = start(word, f"output_dir={tmp_path}/here/out")  # type: ignore[operator]
    told(done)
    assert word.partition("=")[0] in done.stderr
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.parametrize(
    "place", ["file", "file/below", "/proc/nowhere", "/sys/nowhere", "x" * 300, "x/" * 2000, "'a\nb'", "''"]
)
def test_an_output_folder_that_cannot_be_ends_in_two_lines(place: str, start: object, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "file").write_text("")
    told(start(f"output_dir={place}"))  # type: ignore[operator]
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["file"]


@pytest.mark.parametrize("place", ["/proc/nowhere", "{}/file"])
def test_so_does_a_folder_of_hydra(place: str, start: object, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    (tmp_path / "file").write_text("")
    key = "hydra.run.dir" if request.node.callspec.params["start"] == "run" else "hydra.sweep.dir"
    done = start(f"{key}={place.format(tmp_path)}", f"output_dir={tmp_path}/here/out")  # type: ignore[operator]
    told(done)
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.parametrize("start", ["basic", "local"], indirect=True)  # a single run keeps nothing in Hydra's folder
def test_so_does_a_line_break_in_the_folder_of_a_sweep(start: object, tmp_path: Path) -> None:
    told(start("hydra.sweep.dir='a\nb'", f"output_dir={tmp_path}/here/out"))  # type: ignore[operator]
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ("--config-dir", "nowhere"),
        ("--config-name", "nowhere"),
        ("--config-path", "/nowhere"),
        ("hydra/launcher=nowhere",),
        ("hydra.searchpath=5",),
        ("hydra.output_subdir=/proc/nowhere",),
        ("seed=" + "1" * 5000,),
        (b"name=\xff".decode(errors="surrogateescape"),),
        ("+a=" + "[" * 5000 + "]" * 5000,),
    ],
    ids=lambda words: words[0][:24].encode("ascii", "replace").decode(),
)
def test_a_line_that_hydra_cannot_read_ends_in_two_lines(words: tuple[str, ...], tmp_path: Path) -> None:
    told(script(REPO / "train.py", *words, f"output_dir={tmp_path}/out", folder=tmp_path, cwd=tmp_path))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "setting",
    ["local hydra.launcher.workers=inf", "local hydra.launcher.workers=0", "local hydra.launcher.signal_delay_s=-1",
     "local hydra.launcher.max_restarts=text", "slurm hydra.launcher.poll_seconds=inf",
     "slurm hydra.launcher.poll_seconds=nan", "slurm hydra.launcher.timeout_min=-1",
     "slurm hydra.launcher.submitit_folder='a\nb'", "slurm hydra.launcher.partition='a\n#SBATCH --exclusive'",
     "slurm hydra.launcher.name='a\nb'"],
)  # fmt: skip
def test_a_setting_of_a_launcher_is_checked_before_anything_is_made(setting: str, tmp_path: Path) -> None:
    launcher, _, word = setting.partition(" ")
    done = script(FAKE, "-m", f"hydra/launcher={launcher}", word, f"output_dir={tmp_path}/out",
                  f"dataset.root={tmp_path}", folder=tmp_path, cwd=tmp_path)  # fmt: skip
    assert word.partition("=")[0] in told(done)[0]
    assert list(tmp_path.iterdir()) == []


def test_slurms_folder_that_cannot_be_made_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ("sbatch", "srun", "squeue", "scontrol"):
        (commands / name).write_text("#!/bin/sh\necho ClusterName = x\n")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:/usr/bin:/bin")
    line = ("-m", "hydra/launcher=slurm", "hydra.launcher.submitit_folder=/proc/nowhere", f"output_dir={tmp_path}/out")
    done = script(FAKE, *line, f"dataset.root={tmp_path}", folder=tmp_path, cwd=tmp_path)
    assert "/proc/nowhere" in told(done)[0]


def test_a_name_like_a_number_is_the_folders_name(tmp_path: Path) -> None:
    line = ("-m", "name=1.10,1.20", f"output_dir={tmp_path}/out", f"dataset.root={tmp_path}")
    done = script(FAKE, *line, folder=tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folders = {path.relative_to(tmp_path / "out").parts[0] for path in (tmp_path / "out").rglob("result.json")}
    assert folders == {"1.10", "1.20"}
