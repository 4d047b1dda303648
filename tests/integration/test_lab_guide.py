"""docs/lab.md, walked: its lines, as they stand there, with cells that do not train and two folds of one shot.

The steps on a cluster are walked in `tests/slurm`.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import script
from sweeps import Started, wait_until
from typer.testing import CliRunner

from fsseg.cell.record import RunDirectory, find_runs
from fsseg.cli.app import app

from .conftest import REPO
from .test_pods import FOLDERS

pytestmark = pytest.mark.process
PAGE = (REPO / "docs" / "lab.md").read_text()
LINES = [
    line.partition("  #")[0].strip()
    for block in re.findall(r"^```\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
]
FEW = ("shot=1", "fold=0,1")
CELLS = 8  # 2 data sets x 2 backbones x 2 folds

SAME = "python train.py -m experiment=paper"
SHARED = f"{SAME} output_dir=/nfs/lab/outputs"
PLAN = "fsseg plan experiment=paper --servers 3"
BY_HAND = [
    f"{SAME} dataset=pascal5i",
    f"{SAME} dataset=coco20i backbone=resnet50",
    f"{SAME} dataset=coco20i backbone=resnet101",
]
STATUS = "fsseg status outputs/paper"
CANCEL = "fsseg cancel outputs/paper"
RETRY = "fsseg retry outputs/paper"
COPY = "fsseg sync outputs --url s3://lab/store --checkpoints"
PULL = "fsseg sync --pull s3://lab/store outputs"
TABLES = "fsseg aggregate outputs/paper"
MERGED = "fsseg aggregate server1/outputs/paper server2/outputs/paper server3/outputs/paper --out tables"
OF_STORE = "fsseg aggregate s3://lab/store/paper"
SMOKE = "python train.py experiment=smoke"

ELSEWHERE = {
    "pip install -e .": "the installation of every test run",
    "export FSSEG_DATA=/data": "tests/config/test_machine.py",
    "fsseg where": "tests/config/test_machine.py",
    "fsseg prepare dataset=pascal5i --download": "tests/data/setup",
    "fsseg prepare dataset=coco20i --download": "tests/data/setup",
    "fsseg prepare --weights backbone=resnet50,resnet101": "tests/cli/test_cli.py",
    f"{SMOKE} dataset=pascal5i": "needs the data; test_train_command.py has the like on real images",
    "fsseg plan experiment=paper": "tests/sweep/test_plan.py",
    f"{SAME} hydra/launcher=slurm hydra.launcher.partition=gpu hydra.launcher.wait=false": "tests/slurm",
    f"{RETRY} --run": "starts train.py itself: tests/sweep/test_retry.py",
    f"{SAME} sync.url=s3://lab/store sync.checkpoints=true": "tests/sweep/test_sync.py",
    "fsseg merge server1/outputs server2/outputs server3/outputs --out outputs": "tests/sweep/test_merge.py",
}
WALKED = [SAME, SHARED, PLAN, *BY_HAND, STATUS, f"{STATUS} --watch", CANCEL, RETRY, COPY, PULL, TABLES, MERGED,
          OF_STORE, SMOKE]  # fmt: skip


def test_every_line_of_the_page_is_walked_here_or_elsewhere() -> None:
    assert sorted(LINES) == sorted([*WALKED, *ELSEWHERE])


class Server:
    """A machine of the lab: its folder holds data and outputs."""

    def __init__(self, lab: Path, name: str) -> None:
        self.lab, self.folder = lab, lab / name
        for root in ("VOCdevkit/VOC2012", "coco"):
            for part in FOLDERS:
                (self.folder / "data" / root / part).mkdir(parents=True)
        for split in ("train", "val"):
            (self.folder / f"data/coco/annotations/instances_{split}2014.json").touch()
        for name in ("train", "val", "train_noval"):  # what the pool of the paper's experiments is derived from
            (self.folder / f"data/VOCdevkit/VOC2012/ImageSets/Segmentation/{name}.txt").write_text(f"2007_{name}\n")
        (self.folder / "train.py").symlink_to(REPO / "train.py")  # it is a checkout
        self.started: list[Started] = []

    def start(self, line: str, **environment: str) -> Started:
        """Start a line of `train.py`."""
        python, program, *words = shlex.split(self._here(line))
        assert (python, program) == ("python", "train.py")
        few = [word for word in FEW if word.partition("=")[0] not in {w.partition("=")[0] for w in words}]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", **environment}
        log = self.folder / f"line{len(self.started)}.txt"
        self.started.append(Started([*words, *few, "lease_seconds=5"], self.folder, env, log))
        return self.started[-1]

    def run(self, line: str) -> str:
        """Start it and wait; what it printed."""
        process = self.start(line)
        output, _ = process.communicate()
        assert process.returncode == 0, output
        return output

    def fsseg(self, line: str) -> str:
        """What a line of `fsseg` prints, its folders taken from here."""
        program, *words = shlex.split(self._here(line))
        assert program == "fsseg"
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, f"{line}: {done.output}{done.exception}"
        return done.output

    def _here(self, line: str) -> str:
        return line.replace("s3://lab/store", f"file://{self.lab}/store").replace("/nfs/lab", str(self.lab))

    def cells(self) -> set[str]:
        """Cells with a result."""
        return done_below(self.folder / "outputs")


def done_below(outputs: Path) -> set[str]:
    runs = [run for run in find_runs([outputs]) if run.result() is not None] if outputs.exists() else []
    return {str(run.directory.relative_to(outputs)) for run in runs}


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[list[Server]]:
    """Three servers."""
    servers = [Server(tmp_path, f"server{number}") for number in (1, 2, 3)]
    yield servers
    for server in servers:
        for process in server.started:
            if process.poll() is None:
                process.kill()
                process.communicate()


def test_a_try(tmp_path: Path) -> None:
    small = ("dataset.num_train=60", "dataset.num_val=60", "num_workers=0")
    _, program, *words = shlex.split(SMOKE)
    done = script(REPO / program, *words, *small, folder=tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done_below(tmp_path / "outputs")) == 1


def test_one_folder_the_same_line_on_each_server(lab: list[Server], tmp_path: Path) -> None:
    processes = [server.start(SHARED) for server in lab[:2]]
    for process in processes:
        output, _ = process.communicate()
        assert process.returncode == 0, output
    shared = tmp_path / "outputs"
    assert len(done_below(shared)) == CELLS
    assert all(path.read_text().count("[[") == 1 for path in shared.rglob("starts.json"))
    assert len(list(shared.rglob("starts.json"))) == CELLS


def test_a_line_for_each_server_and_the_folders_merged(lab: list[Server], tmp_path: Path) -> None:
    printed = lab[0].fsseg(f"{PLAN} shot=1 fold=0,1,2")
    parts = printed.split("# server ")[1:]
    assert len(parts) == 3
    for server, part in zip(lab, parts):
        for line in re.findall(r"^python train\.py .*", part, re.MULTILINE):
            server.run(line)
    found = [server.cells() for server in lab]
    assert [len(cells) for cells in found] == [4, 4, 4]
    assert len(set.union(*found)) == 12

    whole = Server(tmp_path, "whole")
    for server in lab:
        server.folder.rename(whole.folder / server.folder.name)
    table = whole.fsseg(MERGED)
    rows = re.findall(r"^abcb \S+ .*", table, re.MULTILINE)
    assert [re.findall(r"5\d\.0", row)[:3] for row in rows] == [["50.0", "51.0", "52.0"]] * 4  # what these cells score
    assert (whole.folder / "tables/summary.csv").exists()


def test_divided_by_hand(lab: list[Server]) -> None:
    for server, line in zip(lab, BY_HAND):
        server.run(line)
    found = [server.cells() for server in lab]
    assert [len(cells) for cells in found] == [4, 2, 2]
    assert len(set.union(*found)) == CELLS


def states(status: str) -> dict[str, int]:
    """The counts that `fsseg status` begins with."""
    total, _, counts = status.splitlines()[0].partition(": ")
    assert total == f"{CELLS} cells"
    return {state: int(count) for count, state in re.findall(r"(\d+) (\w+)", counts)}


def interrupted(server: Server) -> None:
    """A sweep whose first cell fails; its second is cancelled, before the others have begun."""
    process = server.start(SAME, FAKE_0="raise", FAKE_1="hang")
    wait_until(lambda: any(path.read_text() for path in server.folder.rglob("hung")))
    assert states(server.fsseg(STATUS))["running"] == 1
    assert server.fsseg(CANCEL)
    output, _ = process.communicate()
    assert process.returncode == 143, output


def test_a_sweep_is_watched_cancelled_and_goes_on_with_the_same_line(lab: list[Server]) -> None:
    server = lab[0]
    interrupted(server)
    left = states(server.fsseg(STATUS))
    assert left == {"failed": 1, "preempted": 1, "stopped": CELLS - 2}
    assert "a bad image" in server.fsseg(f"{STATUS} --watch")  # which ends, as nothing runs
    server.run(SAME)
    assert states(server.fsseg(STATUS)) == {"done": CELLS}
    assert "51.0" in server.fsseg(TABLES)


def test_a_lost_line_is_made_anew_for_cells_that_failed_were_cancelled_or_never_started(lab: list[Server]) -> None:
    server = lab[0]
    interrupted(server)
    printed = server.fsseg(RETRY)
    lines = [line.strip() for line in printed.splitlines() if line.strip().startswith("python train.py")]
    assert lines, printed
    for line in lines:
        server.run(line)
    assert states(server.fsseg(STATUS)) == {"done": CELLS}


def test_another_server_pulls_from_the_store_and_goes_on(lab: list[Server]) -> None:
    first, second, _ = lab
    process = first.start(SAME, FAKE_1="hang")
    wait_until(lambda: any(path.read_text() for path in first.folder.rglob("hung")))
    first.fsseg(CANCEL)
    process.communicate()
    first.fsseg(COPY)
    second.fsseg(PULL)
    begun = [RunDirectory(path.parent) for path in (second.folder / "outputs").rglob("hung")]
    assert len(begun) == 1  # a fake cell that hung once goes on from there
    output = second.run(SAME)
    assert f"1 of {CELLS} cells done, {CELLS - 1} to run" in output
    assert len(second.cells()) == CELLS
    second.fsseg(COPY)
    assert second.fsseg(OF_STORE).count("51.0") == 4
