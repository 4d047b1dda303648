"""Validation on base classes: when, on what, what it says, and that training does not notice it."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from runs import cell_of, composed, done, fork_ranks, numbers, run_and_print
from torch import nn
from visited import evaluation_batches

from fsseg.cell.models import Metrics
from fsseg.cell.record import Cell
from fsseg.config.compose import Composed
from fsseg.data.loader import training_plan
from fsseg.data.registry import build_source
from fsseg.engine import checkpoint, scoring
from fsseg.engine import train as train_module
from fsseg.engine import validation as validation_module
from fsseg.engine.validation import BASE, Validation
from fsseg.errors import UserError
from fsseg.model import build_model
from fsseg.process.ranks import ALONE
from fsseg.run import run

# 12 of 30 images are held back: 3 steps of 6 make an epoch.
SETTINGS = ("eval.every_epochs=1", "eval.base_share=0.4", "eval.base_episodes=14", "train.batch_size=6",
            "train.max_steps=8", "eval.enabled=false", "eval.batch_size=4",
            "train.checkpoint_minutes=1000")  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shapes5i")


def answer_something() -> None:
    """Foreground where the logits are above their mean: models of so few steps answer nothing, anywhere."""
    original = scoring.predicted_foreground

    def above_mean(logits: torch.Tensor, *rest: Any, **more: Any) -> Any:
        shift = (logits[:, 1] - logits[:, 0]).mean((1, 2), keepdim=True)
        return original(torch.stack((logits[:, 0] + shift, logits[:, 1]), 1), *rest, **more)

    scoring.predicted_foreground = above_mean


@pytest.fixture(autouse=True)
def answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "predicted_foreground", scoring.predicted_foreground)  # put back afterwards
    answer_something()


def rows(cell: Cell) -> list[dict[str, str]]:
    """Of metrics.csv, without the times."""
    with cell.metrics_file.open() as file:
        return [{k: v for k, v in row.items() if k != "seconds_per_step"} for row in csv.DictReader(file)]


def weights(cell: Cell) -> dict[str, torch.Tensor]:
    return torch.load(cell.checkpoint, weights_only=True)["model"]


def assert_same_weights(one: Cell, other: Cell) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Composed:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "predicted_foreground", scoring.predicted_foreground)
        answer_something()
        c = composed(root, tmp_path_factory.mktemp("whole"), *SETTINGS)
        done(c)
    return c


def test_every_epoch_and_the_end_have_a_row_and_stand_in_the_result(whole: Composed) -> None:
    result = cell_of(whole).result()
    assert result is not None
    assert result.training is not None
    found = result.training.base_validation
    assert found is not None
    assert (found.images, found.episodes, result.training.images) == (12, 14, 18)
    assert [(s.step, s.epoch) for s in found.scores] == [(3, 1.0), (6, 2.0), (8, 2.6667)]
    assert (found.miou, found.fb_iou) == (found.scores[-1].miou, found.scores[-1].fb_iou)
    assert len({s.miou for s in found.scores}) == 3
    assert all(1 < s.miou < 99 for s in found.scores)
    table = [row for row in rows(cell_of(whole)) if row["base/miou"]]
    assert [int(row["step"]) for row in table] == [3, 6, 8]
    assert [float(row["base/miou"]) for row in table] == pytest.approx([s.miou for s in found.scores], rel=1e-5)
    assert [float(row["base/fb_iou"]) for row in table] == pytest.approx([s.fb_iou for s in found.scores], rel=1e-5)
    curves = cell_of(whole).curves()
    assert curves["train/loss"][0] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert curves["base/miou"][0] == [3, 6, 8]
    assert result.metrics is None


def test_the_values_are_those_of_an_independent_pooling(whole: Composed) -> None:
    cfg = whole.config
    source = build_source(cfg)
    plan = training_plan(source, cfg).validation
    assert plan is not None
    model = build_model(cfg).eval()
    model.load_state_dict(weights(cell_of(whole)))
    both: dict[int, int] = defaultdict(int)
    either: dict[int, int] = defaultdict(int)
    background = [0, 0]
    (specs,) = plan.episodes.values()
    for batch in evaluation_batches(source, cfg, specs, "train"):
        with torch.no_grad():
            logits = model(batch).rounds[-1]
        for b, spec in enumerate(batch.specs):
            truth = batch.query_truths[b]
            assert truth is not None
            size = (batch.query_image.shape[-2], batch.query_image.shape[-1])
            (answer,) = scoring.predicted_foreground(logits[b : b + 1], size, batch.valid_sizes[b], truth.shape)  # type: ignore[arg-type]
            for said, true in zip(answer.ravel().tolist(), truth.ravel().tolist()):
                if true != 255:
                    both[spec.class_id] += said and true == 1
                    either[spec.class_id] += said or true == 1
                    background[0] += not said and true == 0
                    background[1] += not said or true == 0
    result = cell_of(whole).result()
    assert result is not None
    assert result.training is not None
    found = result.training.base_validation
    assert found is not None
    assert found.miou == pytest.approx(100 * np.mean([both[c] / either[c] for c in either]), rel=1e-9)
    pooled = sum(both.values()) / sum(either.values()), background[0] / background[1]
    assert found.fb_iou == pytest.approx(100 * np.mean(pooled), rel=1e-9)
    novel = {source.classes[c] for c in source.novel_classes(0)}
    assert not novel & {source.classes[c] for c in either}
    lacking = set(range(20)) - set(source.novel_classes(0)) - set(either)
    assert set(found.classes_without_episode) <= {source.classes[c] for c in lacking}


def test_how_often_it_validates_changes_no_weight(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Composed
) -> None:
    """Not even if training and evaluation draw random numbers, as a method with dropout would."""
    rate, check = train_module.learning_rate, scoring._check_finite
    drawn: list[tuple[float, ...]] = []

    def draw() -> tuple[float, ...]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    def in_training(cfg: Any, step: int, total: int) -> float:
        drawn.append(draw())
        return rate(cfg, step, total)

    def in_evaluation(*arguments: Any) -> None:
        draw()
        check(*arguments)

    monkeypatch.setattr(train_module, "learning_rate", in_training)
    monkeypatch.setattr(scoring, "_check_finite", in_evaluation)
    found = {}
    for every in (1, 3):
        drawn.clear()
        c = composed(root, tmp_path, *SETTINGS[1:], f"eval.every_epochs={every}", f"name=every{every}")
        done(c)
        assert_same_weights(cell_of(c), cell_of(whole))
        assert [row["step"] for row in rows(cell_of(c)) if row["base/miou"]] == (
            ["3", "6", "8"] if every == 1 else ["8"]
        )
        found[every] = list(drawn)
    assert found[1] == found[3]
    assert len(set(found[1])) == 8


class Statistics(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5))


def test_statistics_mode_and_random_numbers_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Statistics().train()

    def counts(*_: Any) -> None:
        assert not model.training
        assert not torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        model.net(torch.randn(4, 3))
        random.random()
        np.random.rand()

    monkeypatch.setattr(validation_module, "Scoring", lambda *_: SimpleNamespace(counts=counts))
    monkeypatch.setattr(validation_module, "metrics_of", lambda *_: Metrics(50.0, fb_iou=60.0))
    cfg = SimpleNamespace(eval=SimpleNamespace(every_epochs=1), train=SimpleNamespace(select=[]))
    plan = SimpleNamespace(validation=SimpleNamespace(classes=(), missing_classes=(), episodes={0: [1, 2, 3]}),
                           held_out=1, steps_per_epoch=4)  # fmt: skip
    made: Any = Validation(SimpleNamespace(cfg=cfg, ranks=ALONE), model, None, BASE, plan, 10)  # type: ignore[arg-type]
    assert [step for step in range(11) if made.due(step)] == [4, 8, 10]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    stream = repr(checkpoint.rng_state())
    assert made.score(4) == {"step": 4, "epoch": 1.0, "base/miou": 50.0, "base/fb_iou": 60.0}
    assert model.training
    assert model.net.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert repr(checkpoint.rng_state()) == stream
    assert [step for step in range(11) if made.due(step)] == [8, 10]
    assert made.seconds_left == pytest.approx(2 * made.seconds)
    made.score(8)
    made.score(10)
    assert made.seconds_left == 0


@pytest.mark.parametrize("step", [3, 8])
@pytest.mark.parametrize("kind", ["asked to stop", "crash"])
def test_stopped_during_a_validation_it_ends_as_if_never_stopped(
    kind: str, step: int, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Composed
) -> None:
    c = composed(root, tmp_path, *SETTINGS)
    check, calls = scoring._check_finite, []

    def stopping(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == (2 if step == 3 else 10):  # 4 batches a validation: in the first, or in the third
            if kind == "crash":
                raise MemoryError
            os.kill(os.getpid(), signal.SIGTERM)
        check(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(scoring, "_check_finite", stopping)
        with pytest.raises(SystemExit if kind == "asked to stop" else (MemoryError, UserError)):
            run(c.config, c.task_overrides)
    if kind == "asked to stop":
        state = torch.load(cell_of(c).checkpoint, weights_only=True)
        assert (state["step"], [s["step"] for s in state["base_scores"]]) == (step, [] if step == 3 else [3, 6])
    done(c)
    assert rows(cell_of(c)) == rows(cell_of(whole))
    assert numbers(cell_of(c).result()) == numbers(cell_of(whole).result())
    assert_same_weights(cell_of(c), cell_of(whole))


def run_and_answer(c: Composed) -> None:
    answer_something()
    run_and_print(c)


def test_several_processes_score_the_same_to_the_last_digit(root: Path, tmp_path: Path) -> None:
    """At a rate that moves no weight, so that the sums of gradients, which differ by rounding, do not count."""
    settings = [o for o in SETTINGS if o != "eval.enabled=false"]
    settings += ["train.lr=1e-30", "train.max_steps=4", "train.select=[best_novel,best_base]"]
    one, two = (composed(root, tmp_path / name, *settings) for name in ("one", "two"))
    whole = done(one)
    alone = whole.training
    for status, text in fork_ranks(run_and_answer, two, folder=tmp_path / "logs"):
        assert status == 0, text
    result = cell_of(two).result()
    assert alone is not None
    assert alone.base_validation is not None
    assert result is not None
    assert result.training is not None
    together = result.training.base_validation
    assert together is not None
    assert msgspec.structs.replace(together, seconds=None) == msgspec.structs.replace(
        alone.base_validation, seconds=None
    )
    assert [s.step for s in together.scores] == [3, 4]
    assert 1 < together.miou < 99
    for column in ("base/miou", "novel/miou"):
        assert [r for r in rows(cell_of(two)) if r[column]] == [r for r in rows(cell_of(one)) if r[column]]
    assert {kind: (best.step, best.metrics) for kind, best in result.best.items()} == {
        kind: (3, best.metrics) for kind, best in whole.best.items()
    }
    assert set(result.best) == {"best_novel", "best_base"}


def test_by_default_nothing_of_it_is_anywhere(root: Path, tmp_path: Path) -> None:
    c = composed(root, tmp_path, "eval.enabled=false", "train.max_steps=2")
    done(c)
    plain = json.loads(cell_of(c).result_file.read_text())
    assert plain["training"]["base_validation"] is None
    assert not [key for key in (*plain, *plain["training"]) if key.startswith(("best_", "novel_"))]
    assert not [key for key in rows(cell_of(c))[0] if key.startswith("base/")]
    state = torch.load(cell_of(c).checkpoint, weights_only=True)
    assert not [key for key in state if key.startswith(("base_", "best_", "novel_"))]
    assert not [key for key in cell_of(c).identity if key.startswith("eval.base") or key == "eval.every_epochs"]


def test_a_share_that_makes_no_episode_is_refused_before_the_first_step(root: Path, tmp_path: Path) -> None:
    c = composed(root, tmp_path, *SETTINGS[2:], "eval.every_epochs=1", "eval.base_share=0.01")
    with pytest.raises(UserError, match=r"eval\.base_share=0\.01 holds 1 of 30 training images back") as caught:
        run(c.config, c.task_overrides)
    assert "eval.base_share" in caught.value.fix
    assert not cell_of(c).checkpoint.exists()
