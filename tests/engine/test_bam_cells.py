"""Cells of BAM: they take over a base learner whole, hold it in their checkpoint, and need nothing else after that."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from runs import cell_of, composed, done

from fsseg.cell.record import Cell, open_cell
from fsseg.config.base_training import base_config
from fsseg.config.compose import Composed
from fsseg.config.entry import resolved, typed
from fsseg.data.registry import checked_source
from fsseg.data.source import Source
from fsseg.errors import UserError
from fsseg.model.backbones import TinyBackbone
from fsseg.run import run

pytestmark = pytest.mark.filterwarnings("ignore")

LINE = ("method=bam", "shot=2", "base_training.max_steps=3", "base_training.batch_size=3",
        "base_training.image_size=25", "train.max_steps=3")  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shapes5i")


@pytest.fixture(scope="module")
def trained(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Composed:
    c = composed(root, tmp_path_factory.mktemp("trained"), *LINE)
    done(c)
    return c


def weights(cell: Cell) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(cell.checkpoint, weights_only=True)["model"]
    return state


def test_backbone_and_head_are_to_the_bit_those_of_the_base_learner(trained: Composed) -> None:
    config = base_config(trained.resolved)
    base = open_cell(typed(config), resolved(config))
    own, theirs = weights(cell_of(trained)), weights(base)
    assert any("running_mean" in name for name in theirs)
    assert all(torch.equal(own[name], value) for name, value in theirs.items())
    result = cell_of(trained).result()
    assert result is not None
    assert result.base_learner is not None
    assert result.base_learner.fingerprint == base.fingerprint


def test_a_backbone_that_does_not_serve_is_told_before_its_base_learner_is_trained(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: TinyBackbone) -> None:
        raise UserError("no layer4 by itself", "choose another")

    monkeypatch.setattr(TinyBackbone, "check_layer4", refuse)
    c = composed(root, tmp_path, *LINE)
    with pytest.raises(UserError, match="no layer4 by itself"):
        run(c.config, c.task_overrides)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]  # no base learner was begun


def test_its_checkpoint_is_evaluated_without_a_base_learner(root: Path, tmp_path: Path, trained: Composed) -> None:
    held = (*LINE, "train.enabled=false", f"checkpoint={cell_of(trained).checkpoint}")
    result, theirs = done(composed(root, tmp_path, *held)), cell_of(trained).result()
    assert theirs is not None
    assert result.metrics == theirs.metrics
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]  # no base learner was made


def test_it_is_of_its_number_of_shots(root: Path, tmp_path: Path, trained: Composed) -> None:
    held = ("train.enabled=false", f"checkpoint={cell_of(trained).checkpoint}", "shot=1")
    c = composed(root, tmp_path, *(word for word in LINE if word != "shot=2"), *held)
    with pytest.raises(UserError, match=r"checkpoint=\S+ was trained with 2 shots, and shot=1") as caught:
        run(c.config, c.task_overrides)
    assert caught.value.fix == "set shot=2, or train with shot=1"


def test_validation_leaves_no_trace_in_the_head(root: Path, trained: Composed) -> None:
    """Base classes and novel ones are validated; after that the head is still as in evaluation."""
    line = (*LINE, "eval.every_epochs=1", "train.select=[best_base,best_novel]", "train.batch_size=20", "shot=1")
    line = tuple(word for word in line if word != "shot=2")
    c = composed(root, Path(trained.cfg.output_dir), *line, "name=validated")
    result = done(c)
    assert set(result.best) == {"best_base", "best_novel"}
    own, theirs = weights(cell_of(c)), weights(cell_of(trained))
    frozen = [name for name in theirs if name.startswith(("backbone.", "head."))]
    assert all(torch.equal(own[name], theirs[name]) for name in frozen)


def test_a_source_with_other_folds_than_its_settings_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A base learner's classes come from the settings: with others it would leave the wrong one out, in silence."""
    usual = Source.novel_classes
    monkeypatch.setattr(Source, "novel_classes", lambda self, fold: usual(self, (fold + 1) % self.num_folds))
    checked_source(composed(root, root / "none", "method=abcb").cfg)  # it needs no base classes
    with pytest.raises(UserError, match=r"by its settings the base classes of fold 1 are \[0, 1") as error:
        checked_source(composed(root, root / "none", "method=bam", "fold=1").cfg)
    assert "let NUM_CLASSES and interleaved" in error.value.fix
