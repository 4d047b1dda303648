"""`train.py` under sweepers that are not fsseg's: Hydra's own, and one that chooses its values by the score."""

from __future__ import annotations

import json
import os
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from runs import SMALL, script

from fsseg.cell.record import find_runs

from .conftest import REPO, Command

pytestmark = pytest.mark.process

QUICK = ("method=prototype", *(o for o in SMALL if not o.startswith("model.")))

# What hydra-optuna-sweeper does with a job, and no more: asks for a number, and goes on from it.
CLIMBER = """
from dataclasses import dataclass, field
from typing import Any
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper

class Climber(Sweeper):
    def __init__(self, params): self.params = params
    def setup(self, *, hydra_context, task_function, config):
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config)
    def sweep(self, arguments):
        scores = {}
        for number, fold in enumerate(str(self.params["fold"]).split(",")):
            (job,) = self.launcher.launch([[*arguments, f"fold={fold}"]], initial_job_idx=number)
            scores[fold] = float(job.return_value)
        print("best", max(scores, key=scores.get), scores, flush=True)

@dataclass
class Conf:
    _target_: str = "hydra_plugins.climber.Climber"
    params: dict[str, Any] = field(default_factory=dict)

ConfigStore.instance().store(group="hydra/sweeper", name="climber", node=Conf)
"""


def test_hydras_own_sweeper_runs_the_cells_and_leaves_finished_ones(train: Command, tmp_path: Path) -> None:
    line = ("-m", "hydra/sweeper=basic", "fold=0,1", *QUICK)
    assert train(*line).returncode == 0
    assert len(find_runs([tmp_path / "outputs"])) == 2
    again = train(*line)
    assert again.returncode == 0
    assert again.stderr.count("already done") == 2


def test_a_sweeper_that_needs_a_number_gets_the_score_also_of_a_finished_cell(tmp_path: Path) -> None:
    plugins = tmp_path / "hydra_plugins"
    plugins.mkdir()
    (plugins / "climber.py").write_text(CLIMBER)
    (tmp_path / "train.py").write_text((REPO / "train.py").read_text())
    os.symlink(REPO / "conf", tmp_path / "conf")
    line = ["-m", "hydra/sweeper=climber", "+hydra.sweeper.params.fold='0,1'", *QUICK, "dataset.root=data"]

    def start(*more: str) -> CompletedProcess[str]:
        done = script(tmp_path / "train.py", *line, *more, folder=tmp_path, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done

    first = start().stdout
    results = [json.loads(path.read_text()) for path in sorted((tmp_path / "outputs").rglob("result.json"))]
    scores = {str(result["cell"]["fold"]): result["metrics"]["miou"] for result in results}
    assert first == f"best {max(scores, key=scores.__getitem__)} {scores}\n"
    second = start("hydra/launcher=local", "hydra.launcher.workers=2")
    assert second.stdout == first
