"""A trial that scores low ends early, keeps what it has trained, and can be taken up again."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from omegaconf import DictConfig, open_dict
from runs import cell_of, composed

from fsseg.cell.models import State
from fsseg.config.compose import Composed
from fsseg.config.schema import SearchConfig
from fsseg.run import run

LINE = ("train.max_steps=null", "train.epochs=3", "eval.enabled=false", "eval.every_epochs=1", "eval.base_share=0.4",
        "eval.base_episodes=4")  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


def study(file: Path, others: list[float]) -> str:
    """A journal with trials that scored this after every epoch, and one more that is under way; its name."""
    backend = optuna.storages.journal.JournalFileBackend(str(file))
    made = optuna.create_study(storage=optuna.storages.JournalStorage(backend), direction="maximize")
    for score in others:
        trial = made.ask()
        for epoch in (1, 2, 3):
            trial.report(score, epoch)
        made.tell(trial, score)
    made.ask()
    return made.study_name


def trial_of(c: Composed, file: Path, others: list[float], pruner: str = "median") -> DictConfig:
    name = study(file, others)
    search = SearchConfig(pruner=pruner, storage=str(file), study=name, trial=len(others))
    with open_dict(c.config):
        c.config.search = search
    return c.config


def test_below_the_median_it_ends_and_a_start_by_hand_goes_on(root: Path, tmp_path: Path) -> None:
    c = composed(root, tmp_path, *LINE)
    cell = cell_of(c)
    outcome = run(trial_of(c, tmp_path / "journal.log", [101.0] * 6), c.task_overrides)
    assert outcome.state == State.PRUNED
    status = cell.status()
    assert status is not None
    assert status.state == State.PRUNED
    assert "after epoch 1, search.pruner=median" in (status.reason or "")
    assert cell.checkpoint.exists()
    assert cell.result() is None
    assert len(cell.curves()["base/miou"][0]) == 1

    again = composed(root, tmp_path, *LINE)
    assert run(again.config, again.task_overrides).state == State.DONE
    result = cell.result()
    assert result is not None
    assert result.training is not None
    assert result.training.base_validation is not None
    assert len(cell.curves()["base/miou"][0]) == 3
    assert result.training.steps == cell.curves()["base/miou"][0][-1]


@pytest.mark.parametrize(("others", "pruner"), [([0.0] * 6, "median"), ([101.0] * 4, "median"), ([101.0] * 6, "none")])
def test_it_is_trained_to_its_end(others: list[float], pruner: str, root: Path, tmp_path: Path) -> None:
    """Above the median; among too few others; without a pruner."""
    c = composed(root, tmp_path, *LINE)
    assert run(trial_of(c, tmp_path / "journal.log", others, pruner), c.task_overrides).state == State.DONE


def test_a_study_that_cannot_be_read_costs_no_training(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    c = composed(root, tmp_path, *LINE)
    config = trial_of(c, tmp_path / "journal.log", [101.0] * 6)
    (tmp_path / "journal.log").write_text("no journal\n")
    assert run(config, c.task_overrides).state == State.DONE
    assert "search.pruner: trial 6 is not compared" in caplog.text
