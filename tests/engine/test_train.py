"""When training saves, and that what it saves belongs to the cell."""

from __future__ import annotations

import csv
import multiprocessing
import os
import random
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from runs import cell_of, composed, done

from fsseg.engine import checkpoint
from fsseg.engine import train as train_module
from fsseg.engine.train import learning_rate
from fsseg.errors import UserError
from fsseg.run import run


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shapes5i")


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps at which a checkpoint is written."""
    steps: list[int] = []
    save = checkpoint.save

    def noting(path: Path, state: dict[str, Any], previous: Path | None = None) -> None:
        steps.append(state["step"])
        save(path, state, previous)

    monkeypatch.setattr(checkpoint, "save", noting)
    return steps


@pytest.mark.parametrize(
    ("lr", "power", "expected"),
    [
        # four steps at power 2: (1, 3/4, 2/4, 1/4) squared
        (0.16, 2.0, [0.16, 0.09, 0.04, 0.01]),
        (0.3, 0.0, [0.3, 0.3, 0.3, 0.3]),
        # 0.75 ** 0.9 = exp(0.9 * -0.2876821), 0.5 ** 0.9 = exp(0.9 * -0.6931472), 0.25 ** 0.9 = (0.5 ** 0.9) ** 2
        (0.002, 0.9, [0.002, 0.00154378, 0.00107177, 0.000574349]),
    ],
)
def test_the_learning_rate_is_poly(lr: float, power: float, expected: list[float]) -> None:
    cfg: Any = SimpleNamespace(train=SimpleNamespace(lr=lr, lr_scale=1.0, poly_power=power))
    assert [learning_rate(cfg, step, 4) for step in range(4)] == pytest.approx(expected, rel=1e-5)
    cfg.train.lr_scale = 10.0
    assert [learning_rate(cfg, step, 4) for step in range(4)] == pytest.approx([10 * e for e in expected], rel=1e-5)


def test_the_scale_multiplies_the_recorded_rate_and_stands_in_the_message(root: Path, tmp_path: Path) -> None:
    c = composed(root, tmp_path, "eval.enabled=false", "train.max_steps=2", "train.lr=0.004", "train.lr_scale=10")
    done(c)
    assert cell_of(c).curves()["lr"][1] == pytest.approx([0.04, 0.04 * 0.5**0.9], rel=1e-5)
    assert cell_of(c).identity["train.lr_scale"] == 10
    c = composed(root, tmp_path, "train.max_steps=30", "train.lr_scale=900", "train.lr=900", "name=exploding")
    with pytest.raises(UserError, match=r"\(train\.lr=900\.0, train\.lr_scale=900\.0\)") as caught:
        run(c.config, c.task_overrides)
    assert "train.lr_scale" in caught.value.fix


# 30 of the 60 images have no novel class: 3 steps of 10 make an epoch.
EPOCHS = ("train.batch_size=10", "train.max_steps=8", "eval.enabled=false", "train.checkpoint_minutes=1000")


@pytest.mark.parametrize(("epochs", "steps"), [(1, [3, 6, 8]), (2, [6, 8]), (0, [8])])
def test_a_checkpoint_is_written_every_so_many_epochs_and_at_the_end(
    epochs: int, steps: list[int], root: Path, tmp_path: Path, saved: list[int]
) -> None:
    c = composed(root, tmp_path, *EPOCHS, f"train.checkpoint_epochs={epochs}")
    training = done(c).training
    assert training is not None
    assert training.images == 30
    assert saved == steps


def test_zero_minutes_write_one_after_every_step(root: Path, tmp_path: Path, saved: list[int]) -> None:
    c = composed(root, tmp_path, "eval.enabled=false", "train.max_steps=3", "train.checkpoint_minutes=0")
    run(c.config, c.task_overrides)
    assert saved == [1, 2, 3]


def test_a_row_of_the_metrics_holds_the_mean_loss_of_its_steps(root: Path, tmp_path: Path) -> None:
    losses = {}
    for every in (1, 3):
        c = composed(root, tmp_path, "eval.enabled=false", "train.max_steps=5", f"logger.every_steps={every}",
                     f"name=every{every}")  # fmt: skip
        run(c.config, c.task_overrides)
        with cell_of(c).metrics_file.open() as file:
            losses[every] = {int(row["step"]): float(row["train/loss"]) for row in csv.DictReader(file)}
    single = losses[1]
    assert list(single) == [1, 2, 3, 4, 5]
    assert losses[3] == {
        3: pytest.approx((single[1] + single[2] + single[3]) / 3, rel=1e-5),
        5: pytest.approx((single[4] + single[5]) / 2, rel=1e-5),
    }


def test_a_resumed_run_goes_on_in_the_same_random_numbers(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shipped methods draw none while they train; one with dropout would."""
    rate = train_module.learning_rate
    drawn: dict[int, list[tuple[float, ...]]] = {}
    stop_at = -1

    def drawing(cfg: Any, step: int, total: int) -> float:
        drawn.setdefault(step, []).append((random.random(), float(np.random.rand()), float(torch.rand(()))))
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return rate(cfg, step, total)

    monkeypatch.setattr(train_module, "learning_rate", drawing)
    settings = ("eval.enabled=false", "train.max_steps=5")
    whole, cut = (composed(root, tmp_path, *settings, f"name={name}") for name in ("whole", "cut"))
    done(whole)
    stop_at = 2
    with pytest.raises(SystemExit):
        run(cut.config, cut.task_overrides)
    stop_at = -1
    done(cut)
    assert [len(drawn[step]) for step in range(5)] == [2] * 5
    assert all(first == second for first, second in drawn.values())
    assert len({numbers for both in drawn.values() for numbers in both}) == 5


def test_a_checkpoint_of_other_settings_data_or_code_is_refused(root: Path, tmp_path: Path) -> None:
    c = composed(root, tmp_path, "eval.enabled=false", "train.max_steps=1")
    cell = cell_of(c)
    run(c.config, c.task_overrides)
    whole = torch.load(cell.checkpoint, weights_only=True)
    for change, message in (
        ({"fingerprint": "0"}, "belongs to a run with other settings"),
        ({"dataset_fingerprint": "0"}, "the training data changed since"),
        ({"model": {"w": torch.zeros(1)}}, "does not fit the model as it is now"),
    ):
        cell.result_file.unlink(missing_ok=True)
        torch.save({**whole, **change}, cell.checkpoint)
        with pytest.raises(UserError, match=message) as caught:
            run(c.config, c.task_overrides)
        assert str(cell.checkpoint) in caught.value.what
        assert "redo=true" in caught.value.fix


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": 2}, "is of step 2 of a run of 1 steps"),
        ({"run": "other"}, "is of run other, identity.json beside it of run"),
        ({"rng": {}}, "does not fit the model"),
        ({"rng": {"python": [3, [1, 2], None]}}, "does not fit the model"),
        ({"optimiser": {"state": {}, "param_groups": []}}, "does not fit the model"),
        ({"optimiser": {"state": 7, "param_groups": "x"}}, "does not fit the model"),
    ],
)
def test_a_checkpoint_that_is_crafted_ends_in_two_lines(
    change: dict[str, Any], message: str, root: Path, tmp_path: Path
) -> None:
    c = composed(root, tmp_path, "eval.enabled=false", "train.max_steps=1")
    cell = cell_of(c)
    run(c.config, c.task_overrides)
    whole = torch.load(cell.checkpoint, weights_only=True)
    cell.result_file.unlink()
    torch.save({**whole, **change}, cell.checkpoint)
    with pytest.raises(UserError, match=message) as caught:
        run(c.config, c.task_overrides)
    assert str(cell.checkpoint) in caught.value.what
    assert "redo=true" in caught.value.fix


def test_another_momentum_in_a_checkpoint_is_refused(root: Path, tmp_path: Path) -> None:
    c = composed(root, tmp_path, "eval.enabled=false", "train.max_steps=1")
    cell = cell_of(c)
    run(c.config, c.task_overrides)
    whole = torch.load(cell.checkpoint, weights_only=True)
    cell.result_file.unlink()
    whole["optimiser"]["param_groups"][0]["momentum"] = 0.5
    torch.save(whole, cell.checkpoint)
    with pytest.raises(UserError, match="other settings of the optimiser"):
        run(c.config, c.task_overrides)


def test_a_checkpoint_of_format_1_is_gone_on_from(root: Path, tmp_path: Path) -> None:
    """It held the rows of metrics.csv, and named no run."""
    c = composed(root, tmp_path, "eval.enabled=false", "train.max_steps=3", "train.checkpoint_minutes=0")
    cell = cell_of(c)
    done(c)
    table = cell.metrics_file.read_text()
    with cell.metrics_file.open() as file:
        rows = [{k: int(v) if k == "step" else float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    new = torch.load(cell.checkpoint, weights_only=True)
    old = {k: v for k, v in new.items() if k not in ("run", "rows", "steps")}
    torch.save({**old, "format": 1, "metrics": rows}, cell.checkpoint)
    for file in (cell.result_file, cell.metrics_file, cell.identity_file):
        file.unlink()
    again = done(c)
    assert again.training is not None
    assert again.training.steps == 3
    assert cell.metrics_file.read_text() == table


def test_without_its_identity_a_run_goes_on_as_the_run_of_its_checkpoint(root: Path, tmp_path: Path) -> None:
    c = composed(root, tmp_path, "eval.enabled=false", "train.max_steps=1")
    cell, first = cell_of(c), done(c)
    cell.result_file.unlink()
    cell.identity_file.unlink()
    assert done(c).run == first.run
    stored = cell.identity_record()
    assert stored is not None
    assert stored.run == first.run


def test_weights_that_explode_in_the_last_step_are_no_result(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    c = composed(root, tmp_path, "eval.enabled=false", "train.max_steps=2", "train.checkpoint_minutes=0")
    step, steps = torch.optim.SGD.step, []

    def exploding(self: torch.optim.SGD, *arguments: Any) -> Any:
        step(self, *arguments)
        steps.append(1)
        if len(steps) == 2:
            self.param_groups[0]["params"][0].data.fill_(torch.inf)

    monkeypatch.setattr(torch.optim.SGD, "step", exploding)
    with pytest.raises(UserError, match="are no finite numbers at step 2"):
        run(c.config, c.task_overrides)
    assert not cell_of(c).result_file.exists()


@pytest.mark.parametrize("line", [("train.lr=900",), ("method=prototype", "protocol.min_pixels=0")])
def test_a_run_that_fails_leaves_no_process_that_loads_data(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: tuple[str, ...]
) -> None:
    """Its traceback is still held here, as a sweep holds those of its failed cells."""
    if "method=prototype" in line:

        def fail(*_: object) -> None:
            raise UserError("no answer")

        monkeypatch.setattr("fsseg.engine.scoring._check_finite", fail)
    before = set(multiprocessing.active_children())
    with pytest.raises(UserError, match=r"the loss is|no answer"):
        run(composed(root, tmp_path, *line, "train.max_steps=30", "num_workers=2", "protocol.num_episodes=12").config)
    assert set(multiprocessing.active_children()) == before
