"""Numbers of a GPU are read some steps later: a run reads, records and refuses the same as one that waits for each."""

from __future__ import annotations

import csv
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import cell_of, composed, done, numbers

from fsseg.engine import checkpoint, pending
from fsseg.engine import train as train_module
from fsseg.engine.pending import Pending
from fsseg.errors import Diverged, UserError
from fsseg.run import run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shapes5i")


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every training reads as far behind as on a GPU."""

    class Late(Pending[Any]):
        def __init__(self, device: torch.device) -> None:
            super().__init__(device, pending.BEHIND)

    monkeypatch.setattr(train_module, "Pending", Late)


def test_steps_are_read_in_order_and_so_many_behind() -> None:
    queue: Pending[str] = Pending(CPU, behind=2)
    seen = []
    for note in "abcd":
        queue.put(note, torch.tensor([float(ord(note)), 0.5], dtype=torch.float64))
        seen.append([name for name, _ in queue.read()])
    assert seen == [[], [], ["a"], ["b"]]
    assert list(queue.read(everything=True)) == [("c", [99.0, 0.5]), ("d", [100.0, 0.5])]
    assert list(queue.read(everything=True)) == []


def test_a_cpu_has_its_numbers_at_once() -> None:
    queue: Pending[int] = Pending(CPU)
    queue.put(1, torch.tensor([2.0]))
    assert list(queue.read()) == [(1, [2.0])]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_not_waited_for_until_its_numbers_are_read() -> None:
    device = torch.device("cuda")
    queue: Pending[int] = Pending(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(20):
            queue.put(step, torch.full((3,), float(step), device=device, dtype=torch.float64))
            for note, values in queue.read():
                assert values == [float(note)] * 3
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [note for note, _ in queue.read(everything=True)] == list(range(20 - pending.BEHIND, 20))


def written(c: Any) -> tuple[Any, ...]:
    """Rows of metrics.csv but for times, and what of the checkpoint does not depend on the clock."""
    cell = cell_of(c)
    with cell.metrics_file.open() as file:
        rows = [{k: v for k, v in row.items() if k != "seconds_per_step"} for row in csv.DictReader(file)]
    state = torch.load(cell.checkpoint, weights_only=True)
    weights = {name: tensor.tolist() for name, tensor in state["model"].items()}
    return rows, weights, state["loss"], state["window"], state["step"], state["rows"]


LINE = ("train.max_steps=7", "logger.every_steps=2", "train.batch_size=10", "eval.every_epochs=1",
        "eval.base_episodes=3", "protocol.num_episodes=3", "train.checkpoint_minutes=1000")  # fmt: skip


def test_reading_late_changes_no_record_of_a_run_not_even_of_one_that_was_stopped(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    prompt = composed(root, tmp_path / "prompt", *LINE)
    result = numbers(done(prompt))
    stopped = composed(root, tmp_path / "stopped", *LINE)
    behind = composed(root, tmp_path / "behind", *LINE)
    stop_at, rate = 4, train_module.learning_rate

    def stopping(cfg: Any, step: int, total: int) -> float:
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return rate(cfg, step, total)

    monkeypatch.setattr(train_module, "learning_rate", stopping)
    with pytest.raises(SystemExit):
        run(stopped.config, stopped.task_overrides)
    request.getfixturevalue("late")
    with pytest.raises(SystemExit):
        run(behind.config, behind.task_overrides)
    assert written(behind) == written(stopped)
    assert written(behind)[3:5] == ([written(behind)[2]], 5)  # the fifth loss waits for the row of step 6
    stop_at = -1
    assert numbers(done(behind)) == result
    assert written(behind) == written(prompt)


@pytest.mark.usefixtures("late")
def test_a_loss_that_is_no_number_stops_at_its_step_and_nothing_later_is_kept(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint after every step: the one that would hold step 4 finds its loss, and is not written."""
    saved: list[int] = []
    save, rate = checkpoint.save, train_module.learning_rate

    def noting(path: Path, state: dict[str, Any], previous: Path | None = None) -> None:
        saved.append(state["step"])
        save(path, state, previous)

    def infinite(cfg: Any, step: int, total: int) -> float:
        return float("inf") if step == 2 else rate(cfg, step, total)

    monkeypatch.setattr(checkpoint, "save", noting)
    monkeypatch.setattr(train_module, "learning_rate", infinite)
    line = ("train.max_steps=12", "eval.enabled=false", "train.checkpoint_minutes=1000", "train.checkpoint_epochs=0")
    c = composed(root, tmp_path, *line)
    with pytest.raises(Diverged, match=r"the loss is nan at step 4 "):
        run(c.config, c.task_overrides)
    status = cell_of(c).status()
    assert status is not None
    assert (status.state, status.diverged) == ("failed", True)
    assert saved == []
    assert cell_of(c).curves()["train/loss"][0] == [1, 2, 3]


@pytest.mark.usefixtures("late")
def test_a_fault_of_the_data_loses_no_row_of_the_steps_before_it(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    following = train_module.distributed.next_batch
    asked: list[int] = []

    def faulty(*arguments: Any) -> Any:
        asked.append(1)
        if len(asked) == 4:
            raise UserError("an image is broken", "mend it")
        return following(*arguments)

    monkeypatch.setattr(train_module.distributed, "next_batch", faulty)
    c = composed(root, tmp_path, "eval.enabled=false")
    with pytest.raises(UserError, match="an image is broken"):
        run(c.config, c.task_overrides)
    assert cell_of(c).curves()["train/loss"][0] == [1, 2, 3]
