"""The `fsseg` command as a user types it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import fsseg
from run_directories import KEY, make_run

from fsseg.cell.record import RunDirectory


def finished(root: Path, fold: int, miou: float) -> RunDirectory:
    return make_run(root, replace(KEY, dataset="shapes5i", backbone="tiny", fold=fold), result=miou, version=1)


def test_the_command_ends_like_any_other_process() -> None:
    done = subprocess.run([sys.executable, "-m", "fsseg", "status", "no/such"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: no/such is no folder\n  -> ")


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    text = fsseg("--help").stdout
    for command in (
        "train",
        "prepare",
        "verify",
        "episodes",
        "plan",
        "status",
        "retry",
        "clean",
        "sync",
        "aggregate",
        "sheets",
        "predict",
        "cost",
        "bench",
    ):
        assert f"  {command} " in text
    code = (
        "import sys, json, fsseg.cli.app;"
        "print(json.dumps([m for m in ('torch', 'hydra', 'omegaconf', 'pandas', 'fsspec') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["status", "no/such/folder"], "no/such/folder"),
        (["plan", "train.lrr=1"], "train.lrr"),
        (["plan", "fold=0", "--by", "fold"], "--servers"),
        (["episodes", "fold=9"], "fold=9"),
        (["plan", "fold=0", "--servers", "0"], "--servers"),
        (["plan", "fold=0", "--servers", "1000000000000000000"], "--servers"),
        (["status", ".", "--every", "nan"], "--every"),
        (["status", ".", "--every", "inf"], "--every"),
        (["status", ".", "--every", "-1"], "--every"),
        (["bench", "data", "--workers", "1000000000000000000"], "--workers"),
        (["bench", "data", "--shots", "0"], "--shots"),
        (["bench", "data", "--shots", "x"], "--shots"),
        (["bench", "step", "--formats", "bf16,half"], "--formats"),
        (["bench", "step", "--layouts", ""], "--layouts"),
        (["bench", "step", "dataset=shapes5i", "device=cpu", "--formats", "float32,tf32", "--json", "x.json"], "tf32"),
        (["bench", "step", "dataset=shapes5i", "train.accumulate=2", "device=cpu", "--batch", "3"], "train.accumulate"),
        (["bench", "step", "dataset=shapes5i", "fold=0,9"], "fold=9"),
        (["aggregate", "nosuchthing://a/b"], "nosuchthing://a/b"),
    ],
)
def test_a_users_fault_ends_in_two_lines_and_status_1(words: list[str], named: str, tmp_path: Path) -> None:
    done = fsseg(*words, cwd=tmp_path)
    assert done.returncode == 1
    what, fix = done.stderr.strip().splitlines()
    assert what.startswith("error: ")
    assert named in what + fix
    assert fix.startswith("  -> ")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.glob("*.json")) == []  # refused before the first measurement


@pytest.mark.parametrize("value", ["-1", "0", "1e18", "1000000000000000000", "inf", "nan", "text"])
@pytest.mark.parametrize("words", [["data", "--episodes"], ["step", "--batch"], ["step", "--repeats"]])
def test_a_number_out_of_range_is_refused_with_the_option(words: list[str], value: str) -> None:
    done = fsseg("bench", *words, value)
    assert done.returncode != 0
    assert words[-1] in done.stderr
    assert "Traceback" not in done.stderr


def test_verify_reports_a_missing_folder_and_leaves_with_status_1() -> None:
    done = fsseg("verify", "dataset=pascal5i", "dataset.root=/no/such/folder")
    assert done.returncode == 1
    assert "/no/such/folder" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (["dataset.root='${nowhere}'"], "nowhere"),
        (["--quick", "--sheet", "/proc/no/such/sheet.png", "dataset.num_train=8", "dataset.num_val=8"], "--sheet FILE"),
        (["--digests", "list", "dataset.num_train=8", "dataset.num_val=8"], "add --deep"),
    ],
)
def test_verify_tells_a_mistake_in_two_lines(line: list[str], what: str, tmp_path: Path) -> None:
    root = [] if "dataset.root" in line[0] else [f"dataset.root={tmp_path}"]
    done = fsseg("verify", *line, *root)
    assert done.returncode != 0
    assert what in done.stderr
    assert "  -> " in done.stderr
    assert "Traceback" not in done.stderr


def test_plan_takes_a_pasted_line_with_its_m(tmp_path: Path) -> None:
    done = fsseg(
        "plan", "-m", "dataset=pascal5i", "fold=0,1", f"output_dir={tmp_path}", "--servers", "2", "--by", "fold"
    )
    assert done.returncode == 0, done.stderr
    assert "2 cells: 2 to do" in done.stdout
    for fold in (0, 1):
        assert f"python train.py -m dataset=pascal5i fold={fold} output_dir={tmp_path}" in done.stdout


def test_status_clean_and_retry_work_on_a_folder(tmp_path: Path) -> None:
    run = finished(tmp_path, 0, 41.5)
    run.checkpoint.parent.mkdir()
    run.checkpoint.write_bytes(b"x")
    assert "1 cells: 1 done" in fsseg("status", str(tmp_path)).stdout
    assert fsseg("retry", str(tmp_path)).stdout == "nothing to run again\n"
    assert "nothing deleted yet" in fsseg("clean", str(tmp_path)).stdout
    assert run.checkpoint.exists()
    assert "deleted" in fsseg("clean", str(tmp_path), "--yes").stdout
    assert not run.checkpoint.parent.exists()


def test_watch_ends_when_nothing_runs(tmp_path: Path) -> None:
    finished(tmp_path, 0, 41.5)
    assert "1 done" in fsseg("status", str(tmp_path), "--watch").stdout


def test_sync_copies_and_aggregate_reads_the_copy_like_the_original(tmp_path: Path) -> None:
    for fold, miou in enumerate((40.0, 50.0, 60.0, 70.0)):
        finished(tmp_path / "outputs", fold, miou)
    url = f"file://{tmp_path}/store"
    done = fsseg("sync", str(tmp_path / "outputs"), "--url", url)
    assert done.returncode == 0, done.stderr
    assert "4 cells: 8 files copied" in done.stdout
    remote = fsseg("aggregate", url + "/runs", cwd=tmp_path)
    assert remote.returncode == 0, remote.stderr
    local = fsseg("aggregate", str(tmp_path / "outputs" / "runs"))
    assert (tmp_path / "runs-summary" / "summary.md").read_bytes() == (
        tmp_path / "outputs" / "runs" / "summary.md"
    ).read_bytes()
    assert "55.0" in local.stdout  # the mean over the folds, 40 to 70
