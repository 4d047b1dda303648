"""fsseg from a wheel, far from any checkout: `python -m fsseg train` does what `python train.py` does here."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from installed_copy import environment, lay_out
from run_directories import KEY, make_run

from fsseg.cell.record import RunDirectory, find_runs

from .conftest import REPO, SMALL


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_out(tmp_path_factory.mktemp("site"))


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


def python(site: Path, here: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], cwd=here, env=environment(site), capture_output=True, text=True, timeout=300
    )


def folds(here: Path) -> dict[int, RunDirectory]:
    """The finished cells below outputs/, by fold."""
    runs = [run for run in find_runs([here / "outputs"]) if run.result() is not None]
    return {key.fold: run for run in runs if (key := run.find_key()) is not None}


@pytest.mark.process
def test_help_flags_and_faults_speak_of_fsseg_train(site: Path, here: Path) -> None:
    shown = python(site, here, "-m", "fsseg", "train", "--help")
    assert "usage: fsseg train [-m]" in shown.stdout
    assert "  fsseg train -m dataset=pascal5i,coco20i" in shown.stdout
    assert "train.py" not in shown.stdout
    places = python(site, here, "-m", "fsseg", "train", "--info", "searchpath").stdout
    assert f"file://{site}/fsseg/_conf" in places  # it is the copy that runs
    (here / "mine" / "experiment").mkdir(parents=True)
    (here / "mine" / "experiment" / "five.yaml").write_text("# @package _global_\nshot: 5\n")
    own = python(site, here, "-m", "fsseg", "train", "--config-dir", "mine", "experiment=five", "--cfg", "job")
    assert "\nshot: 5\n" in own.stdout
    wrong = python(site, here, "-m", "fsseg", "train", "train.lrrr=1")
    assert wrong.returncode == 1
    assert wrong.stderr == "\nerror: train.lrrr: there is no such configuration key\n  -> did you mean train.lr?\n"
    planned = python(site, here, "-m", "fsseg", "plan", "fold=0,1", "--servers", "1")
    assert "\nfsseg train -m fold=0,1" in planned.stdout
    assert sorted(path.name for path in here.iterdir()) == ["mine"]


@pytest.mark.process
def test_one_cell_and_a_sweep_in_processes_of_their_own(site: Path, here: Path, shapes_root: Path) -> None:
    own = (f"dataset.root={shapes_root}", *SMALL)
    one = python(site, here, "-m", "fsseg", "train", *own)
    assert one.returncode == 0, one.stderr
    assert "done: outputs/runs/shapes5i/" in one.stderr
    launcher = ("hydra/launcher=local", "hydra.launcher.workers=2")
    sweep = python(site, here, "-m", "fsseg", "train", "-m", "fold=0,1,2", *launcher, *own)
    assert sweep.returncode == 0, sweep.stderr + sweep.stdout
    assert "1 of 3 cells done, 2 to run" in sweep.stderr
    assert sorted(folds(here)) == [0, 1, 2]
    assert sweep.stdout.rstrip().endswith("3 cells: 3 done")
    attempt = folds(here)[0].last_attempt()[1]
    assert attempt is not None
    assert attempt.command[:2] == ["fsseg train", f"dataset.root={shapes_root}"]


@pytest.mark.process
def test_torchrun_takes_the_module(site: Path, here: Path, shapes_root: Path) -> None:
    done = python(site, here, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "fsseg", "train",
                  f"dataset.root={shapes_root}", *SMALL, "device=cpu")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(folds(here)) == [0]


@pytest.mark.process
def test_pages_and_tables_have_their_templates_and_facts(site: Path, here: Path) -> None:
    make_run(here / "outputs", KEY, result=50.0)
    for command in ("report", "aggregate"):
        made = python(site, here, "-m", "fsseg", command, "outputs")
        assert made.returncode == 0, made.stderr
    page = (here / "report.html").read_text()
    for part in ("style.css", "script.js"):
        assert (REPO / "fsseg/report/page/templates" / part).read_text() in page
    assert "@inproceedings{zhu2024abcb," in (here / "outputs" / "summary.bib").read_text()


def test_the_build_leaves_no_file_of_the_package_out() -> None:
    """hatchling takes the folders that `lay_out` takes, without what .gitignore names."""
    if not (REPO / ".git").exists():
        pytest.skip("no checkout")
    line = ["git", "ls-files", "--cached", "--ignored", "--exclude-standard", "fsseg", "conf"]
    assert subprocess.run(line, cwd=REPO, capture_output=True, text=True, check=True).stdout == ""


def test_what_is_printed_to_be_run_fits_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsseg.process.command import train_words

    monkeypatch.chdir(tmp_path)
    assert train_words() == ("fsseg", "train")
    Path("train.py").write_text("import torch  # of another project\n")
    assert train_words() == ("fsseg", "train")
    shutil.copy(REPO / "train.py", "train.py")
    assert train_words() == ("python", "train.py")
