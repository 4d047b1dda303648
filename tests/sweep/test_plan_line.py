"""`fsseg plan` composes a line as `train.py -m` does: the same cells, and its lines for servers are exactly these."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig
from sweeps import REPO

from fsseg.cell.record import Cell, open_cell
from fsseg.config.compose import Composed, Composer, composer
from fsseg.errors import UserError
from fsseg.run import _hydra_overrides
from fsseg.sweep.grid import build_grid
from fsseg.sweep.plan import plan, servers

MINE = """# @package _global_
hydra:
  sweeper:
    params:
      train.lr: 0.1,0.2
      variant: lr${train.lr}-${seed}
      seed: range(2)
      dataset.root: "'a b, c=d'"
"""
BY_DATASET = "train.lr='${by_dataset:{coco20i: 0.1, other: 0.2}}'"

LINES = [
    [BY_DATASET, "dataset=coco20i,pascal5i"],
    ["train.lr=0.1,0.2", "variant=lr${train.lr}"],
    ["train.lr=0.1,${train.poly_power},'${train.momentum}'"],
    ["name='${dataset.name}-runs'", "dataset=shapes5i,coco20i", "fold=0,1"],
    ["seed=range(0,3)", "train.lr=choice(0.1,0.2)"],
    ["backbone=glob(resnet*)", "dataset=coco20i,pascal5i"],
    ["dataset.root='my data, here=now'", "fold=0,1"],
    ["output_dir='${oc.env:HOME}/o ut'", "fold=0,1"],
    ["protocol.seeds=[0,1],[2]", "dataset.scale_range=[0.9,1.1]", "++train.momentum=0.1,0.2"],
    ["data.roots.pascal5i='${oc.env:HOME}/voc'", "data.roots.coco20i=$HOME", "dataset=pascal5i,coco20i", "fold=0,1"],
    ["name=1.10,x", "variant=true,1e3", "fold=0"],
    ["experiment=table3_components", "ablation=baseline,sm", "fold=0,1"],
    ["experiment=mine", "--config-dir", "more files"],
    ["experiment=mine", "train.lr=0.3,0.4", "dataset=shapes5i,coco20i", "--config-dir=more files"],
    ["experiment=mine", "hydra.searchpath=['more files']"],
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to start lines in, with an experiment of the user's own."""
    (tmp_path / "more files" / "experiment").mkdir(parents=True)
    (tmp_path / "more files" / "experiment" / "mine.yaml").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)  # what another test left
    return tmp_path


class Stopped(Exception):
    """Before anything is launched."""


def train_py(line: Sequence[str]) -> None:
    """`python train.py -m <line>` in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py", "-m", *line])
        patch.setenv("HYDRA_FULL_ERROR", "0")
        runpy.run_path(str(REPO / "train.py"), run_name="__main__")


def swept_by_train_py(line: Sequence[str]) -> tuple[Composer, list[tuple[tuple[str, ...], Composed | UserError]]]:
    """What the sweep of `python train.py -m <line>` composes, in this process and with all of Hydra's own machinery."""
    seen: list[Any] = []
    composes = Composer.grid_of_master

    def stop(self: Composer) -> list[tuple[tuple[str, ...], Composed | UserError]]:
        seen.extend([self, composes(self)])
        raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Composer, "grid_of_master", stop)
        with pytest.raises(Stopped):
            train_py(line)
        # What the job of each cell takes for the overrides that name it.
        master, loader = seen[0].master, seen[0]._loader
        for job, composed in seen[1]:
            HydraConfig.instance().set_config(loader.load_sweep_config(master, list(job)))
            assert tuple(_hydra_overrides("abcb")) == composed.task_overrides
        HydraConfig.instance().cfg = None
    return seen[0], seen[1]


def split(line: Sequence[str]) -> tuple[list[str], str | None]:
    """Overrides of a line, and its `--config-dir`."""
    words, found = list(line), None
    while flags := [i for i, word in enumerate(words) if word.startswith("--config-dir")]:
        flag = words.pop(flags[0])
        found = flag.partition("=")[2] or words.pop(flags[0])
    return words, found


def facts(cell: Cell | None) -> tuple[str, str]:
    assert cell is not None
    return os.path.abspath(cell.directory), cell.fingerprint


@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_a_plan_has_the_cells_of_the_sweep_and_its_lines_are_exactly_these(line: list[str]) -> None:
    _, theirs = swept_by_train_py(line)
    assert len(theirs) > 1
    overrides, config_dir = split(line)
    made = plan(overrides, config_dir=config_dir)
    assert [point.overrides for point in made.points] == [job for job, _ in theirs]
    cells = []
    for point, (_, composed) in zip(made.points, theirs):
        assert isinstance(composed, Composed), composed
        cells.append(facts(open_cell(composed.cfg, composed.resolved, composed.task_overrides)))
        assert point.composed is not None
        assert facts(point.cell) == cells[-1]
        assert point.composed.resolved == composed.resolved
    found = []
    own = [o for o in overrides if o.startswith("hydra.")]
    for printed in servers(made, 2, ["finest"], own, config_dir).splitlines():
        if printed.startswith("fsseg train "):
            command = shlex.split(printed)
            assert command[2] == "-m"
            again, folder = split(command[3:])
            found += [facts(point.cell) for point in build_grid(again, folder)]
    assert sorted(found) == sorted(cells)


def test_what_is_interpolated_takes_the_values_of_each_cell() -> None:
    def rows(*line: str) -> list[tuple[str, str, float]]:
        points = build_grid(line)
        assert all(point.cell is not None and point.composed is not None for point in points)
        return [(p.cell.key.dataset, p.cell.key.variant, p.composed.cfg.train.lr) for p in points]  # type: ignore[union-attr]

    assert rows("train.lr=0.1,0.2", "variant=lr${train.lr}") == [("shapes5i", "lr0.1", 0.1), ("shapes5i", "lr0.2", 0.2)]
    assert [(d, lr) for d, _, lr in rows(BY_DATASET, "dataset=coco20i,pascal5i")] == [
        ("coco20i", 0.1), ("pascal5i", 0.2)]  # fmt: skip
    assert rows("train.lr=0.1,${train.poly_power}") == [
        ("shapes5i", "train.lr-0.1", 0.1), ("shapes5i", "train.lr-0.9", 0.9)]  # fmt: skip


def test_an_interpolation_to_nowhere_is_the_fault_of_its_cell() -> None:
    good, bad = build_grid(["train.lr=0.1,${nowhere}"])
    assert (good.state, bad.state) == ("to do", "faulty")
    assert "nowhere" in bad.faults[0].what


@pytest.mark.parametrize(
    ("line", "key"),
    [
        (["hydra/launcher=local", "hydra.launcher.workers=0"], "hydra.launcher.workers=0"),
        (["hydra/launcher=slurm", "hydra.launcher.partition='a\nb'"], "hydra.launcher.partition"),
        (["hydra.sweep.dir=" + "x" * 300], "hydra.sweep.dir"),
        (["hydra.sweep.dir='${nowhere}'"], "nowhere"),
        (["output_dir='${hydra:runtime.cwd}/x'"], "HydraConfig"),
        (["+hydra.sweeper.params.variant='l${model.layer}'", "method=prototype,abcb"], "layer"),
        (["backbone=glob(x*)"], "glob"),
        (["fold=0,0"], "share the directory"),
    ],
)
def test_a_plan_refuses_what_the_sweep_refuses_as_a_whole(line: list[str], key: str) -> None:
    with pytest.raises(UserError, match=key.replace(".", r"\.")) as refused:
        plan(line)
    with pytest.raises(SystemExit, match=key.replace(".", r"\.")) as stopped:
        train_py(line)
    told = re.sub(r" full_key: .*", "", str(stopped.value).strip())  # Hydra's own words where its plugin is made
    assert told == re.sub(r" full_key: .*", "", f"error: {refused.value}")


def test_a_folder_of_files_that_is_not_there_is_told() -> None:
    with pytest.raises(UserError, match="--config-dir nowhere"), composer("nowhere"):
        pass
