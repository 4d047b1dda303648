"""Several processes give what one gives: the score to the last digit, the losses within rounding."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from runs import cell_of, composed, done, fork_ranks, run_and_print
from torch import nn

from fsseg.cell.record import RunDirectory
from fsseg.engine import distributed
from fsseg.engine.distributed import share
from fsseg.errors import UserError
from fsseg.process.ranks import Ranks, several_expected
from fsseg.process.signals import Preempted
from fsseg.run import run

# Masks of 255 at the rim differ in number from image to image, so a mean of the ranks' means is not the batch's mean.
SETTINGS = ("train.batch_size=3", "train.max_steps=5", "protocol.num_episodes=11", "protocol.seeds=[0,1]",
            "eval.batch_size=2", "logger.figures=3", "dataset.rotate_degrees=20")  # fmt: skip


def losses(run: RunDirectory) -> list[float]:
    return run.curves()["train/loss"][1]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shapes5i")


@pytest.mark.process
def test_two_processes_train_on_the_same_batches_and_score_the_same(root: Path, tmp_path: Path) -> None:
    one = composed(root, tmp_path / "one", *SETTINGS)
    alone = done(one)
    both = fork_ranks(run_and_print, composed(root, tmp_path / "two", *SETTINGS), folder=tmp_path / "logs")
    two = cell_of(composed(root, tmp_path / "two", *SETTINGS))
    together = two.result()
    assert together is not None
    for status, text in both:
        assert status == 0, text
        assert json.loads(text.rpartition("returned ")[2]) == ["done", "", msgspec.to_builtins(together)]

    single, double = losses(cell_of(one)), losses(two)
    assert len(single) == 5
    assert double == pytest.approx(single, rel=1e-4)
    assert max(abs(a - b) for a, b in pairwise(single)) > 1e-3  # the losses do differ from step to step
    first = torch.load(cell_of(one).checkpoint, weights_only=True)["model"]
    second = torch.load(two.checkpoint, weights_only=True)["model"]
    for name, tensor in first.items():
        assert torch.allclose(second[name], tensor, rtol=1e-3, atol=1e-5), name
    assert [p.name for p in two.attempts.iterdir()] == ["1.json"]
    assert not two.claim_file.exists()
    assert together.training is not None
    assert alone.training is not None
    assert together.training.images == alone.training.images

    # the same weights, on one process and on three
    settings = [*SETTINGS, "train.enabled=false", f"checkpoint={two.checkpoint}", "variant=scored"]
    again = composed(root, tmp_path / "one", *settings)
    scored = done(again)
    three = composed(root, tmp_path / "two", *settings)
    fork_ranks(run_and_print, three, folder=tmp_path / "logs", world=3)
    apart = cell_of(three).result()
    assert apart is not None
    assert scored.metrics is not None
    assert apart.metrics == scored.metrics
    assert scored.metrics.per_seed[0].num_episodes == 11
    assert together.metrics == scored.metrics


def test_a_score_that_depends_on_every_pixel_is_the_same_on_three_processes(root: Path, tmp_path: Path) -> None:
    settings = ("method=prototype", "backbone.pretrained=false", "protocol.num_episodes=11", "eval.batch_size=2")
    one = composed(root, tmp_path / "one", *settings)
    alone = done(one)
    assert alone.metrics is not None
    assert 1 < alone.metrics.miou != alone.metrics.miou_all_foreground  # it answers neither nothing nor everything
    three = composed(root, tmp_path / "three", *settings)
    fork_ranks(run_and_print, three, folder=tmp_path / "logs", world=3)
    apart = cell_of(three).result()
    assert apart is not None
    assert apart.metrics == alone.metrics
    assert apart.episodes == alone.episodes  # the same counts of every episode


def exchange() -> None:
    """What `test_gradients_stops_and_faults_reach_every_process` runs on two processes."""
    ranks = distributed.set_up("cpu")
    weights = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
    weights[0].grad = torch.tensor([1.0, 2.0]) * (ranks.rank + 1)
    if ranks.rank == 1:
        weights[1].grad = torch.tensor([5.0, 6.0])
    distributed.add_gradients(weights, ranks)
    print("gradients", [None if w.grad is None else w.grad.tolist() for w in weights])
    model = nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(ranks.rank + 7.0)
    distributed.broadcast_weights(model, ranks)
    print("weight", model.weight.item())

    def stop() -> str | None:
        return "signal SIGTERM" if ranks.rank == 1 else None

    def broken() -> Iterator[Any]:
        if ranks.rank == 1:
            raise UserError("image 7 is broken", "mend it")
        yield 1

    def batch(batches: Iterator[Any], should_stop: Any = lambda: None) -> Any:
        return distributed.next_batch(batches, should_stop, ranks)

    try:
        batch(iter([1]), stop)
    except Preempted as error:
        print("preempted", error)
    try:
        batch(broken())
    except UserError as error:
        print("fault", error.what.splitlines()[0])
    print("end", batch(iter([ranks.rank] if ranks.first else [])), flush=True)


def test_gradients_stops_and_faults_reach_every_process(tmp_path: Path) -> None:
    (_, first), (_, second) = fork_ranks(exchange, folder=tmp_path)
    for text in (first, second):
        # 1 + 2 times [1, 2]; what one rank alone has; what none has
        assert "gradients [[3.0, 6.0], [5.0, 6.0], None]" in text
        assert "weight 7.0" in text
        assert "preempted signal SIGTERM" in text
    assert "fault another process of this run failed: image 7 is broken" in first
    assert "fault image 7 is broken" in second
    assert "end 0" in first
    assert "end None" in second


def test_a_cell_that_is_done_or_refused_keeps_no_process_waiting(root: Path, tmp_path: Path) -> None:
    c = composed(root, tmp_path, "train.max_steps=1")
    run(c.config, c.task_overrides)
    for status, text in fork_ranks(run_and_print, c, folder=tmp_path / "done"):
        assert status == 0
        assert "returned" in text
    other = composed(root, tmp_path, "train.max_steps=2")
    (refused, why), (_, left) = fork_ranks(run_and_print, other, folder=tmp_path / "refused")
    assert refused != 0
    assert "train.max_steps: 1 there, 2 now" in why
    assert '["running", "the first process", null]' in left


def test_shares_cover_each_batch_once() -> None:
    for batch, world in ((8, 3), (5, 5), (7, 2), (4, 1)):
        parts = [share(batch, Ranks(r, world)) for r in range(world)]
        assert [i for part in parts for i in part] == list(range(batch))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    with pytest.raises(UserError, match=r"train\.batch_size=2 cannot be shared by 3"):
        share(2, Ranks(0, 3))


def test_several_processes_are_expected_only_where_somebody_started_them(monkeypatch: Any) -> None:
    for name in ("WORLD_SIZE", "SUBMITIT_EXECUTOR", "SUBMITIT_LOCAL_NTASKS", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_NTASKS", "4")  # within `salloc -n 4`
    assert not several_expected()
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    assert several_expected()
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert not several_expected()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert several_expected()


def test_one_process_touches_nothing() -> None:
    model = nn.Linear(1, 1)
    distributed.add_gradients(model.parameters(), Ranks())
    assert model.weight.grad is None
    assert distributed.broadcast("x", Ranks()) == "x"
    assert distributed.gather(1, Ranks()) == [1]
    assert distributed.add_up([1, 2], Ranks()) == [1, 2]
