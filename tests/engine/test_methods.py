"""Every method that trains: interrupted and resumed, on two processes, it ends in the weights of an undisturbed run.

The methods are those of the schema, so that a new one is held to it by its name alone.
"""

from __future__ import annotations

import json
import os
import signal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import cell_of, composed, done, fork_ranks, numbers, run_and_print

from fsseg.cell.episodes import EpisodePart
from fsseg.cell.models import Result, State
from fsseg.config.compose import Composed
from fsseg.config.schema import MethodConfig
from fsseg.engine import train as train_module
from fsseg.run import run

pytestmark = pytest.mark.filterwarnings("ignore")

METHODS = sorted(name for name, schema in MethodConfig.choices().items() if schema.TRAINS)
FREE = sorted(MethodConfig.choices().keys() - METHODS)
# Masks of 255 at the rim differ in number from image to image, so a mean of the ranks' means is not the batch's mean.
LINE = ("train.max_steps=4", "train.batch_size=3", "dataset.rotate_degrees=20", "base_training.max_steps=2",
        "base_training.batch_size=2", "base_training.image_size=25")  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shapes5i")


def line_of(method: str) -> list[str]:
    """HSNet's width must be one of few."""
    return [f"method={method}", *LINE, *(["model.channels=32"] if method == "hsnet" else [])]


_WHOLE: dict[str, Composed] = {}


@pytest.fixture
def whole(method: str, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Composed:
    """The run of a method that nothing disturbed."""
    if method not in _WHOLE:
        c = composed(root, tmp_path_factory.mktemp(method), *line_of(method))
        done(c)
        _WHOLE[method] = c
    return _WHOLE[method]


def weights(c: Composed) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(cell_of(c).checkpoint, weights_only=True)["model"]
    return found


def told(result: Result | None) -> dict[str, Any]:
    """`numbers`, without the place of a base learner and the digest of its file, which names the run that made it."""
    found: dict[str, Any] = json.loads(numbers(result))
    if found["base_learner"] is not None:
        del found["base_learner"]["path"], found["base_learner"]["digest"]
    return found


def losses(c: Composed) -> list[float]:
    return cell_of(c).curves()["train/loss"][1]


@pytest.mark.parametrize("method", METHODS)
def test_stopped_in_the_middle_it_ends_with_the_same_bits(
    method: str, whole: Composed, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    c = composed(root, tmp_path, *line_of(method))
    rate = train_module.learning_rate

    def stopping(cfg: Any, step: int, total: int) -> float:
        if step == 1 and total == 4:  # of the cell itself, not of the base learner that it may begin with
            os.kill(os.getpid(), signal.SIGTERM)
        return rate(cfg, step, total)

    with monkeypatch.context() as patched:
        patched.setattr(train_module, "learning_rate", stopping)
        with pytest.raises(SystemExit):
            run(c.config, c.task_overrides)
    assert cell_of(c).look().state == State.PREEMPTED
    assert torch.load(cell_of(c).checkpoint, weights_only=True)["step"] == 2
    assert told(done(c)) == told(cell_of(whole).result())
    mine, theirs = weights(c), weights(whole)
    assert mine.keys() == theirs.keys()
    assert [name for name in theirs if not torch.equal(mine[name], theirs[name])] == []
    assert losses(c) == losses(whole)


@pytest.mark.process
@pytest.mark.parametrize("method", [name for name in METHODS if name != "abcb"])  # test_distributed.py has more of it
def test_two_processes_train_the_curve_of_one(method: str, whole: Composed, root: Path, tmp_path: Path) -> None:
    c = composed(root, tmp_path, *line_of(method))
    for status, text in fork_ranks(run_and_print, c, folder=tmp_path / "logs"):
        assert status == 0, text
    single, double = losses(whole), losses(c)
    assert len(single) == 4
    assert double == pytest.approx(single, rel=1e-4)
    assert max(abs(a - b) for a, b in pairwise(single)) > 1e-3  # the losses do differ from step to step
    theirs = weights(c)
    for name, tensor in weights(whole).items():
        assert torch.allclose(theirs[name], tensor, rtol=1e-3, atol=1e-5), name


@pytest.mark.parametrize("method", FREE)
def test_an_evaluation_without_training_goes_on_where_it_was_cut_short(
    method: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = (f"method={method}", "protocol.num_episodes=12", "eval.batch_size=2")
    whole, cut = (composed(root, tmp_path / folder, *line) for folder in ("whole", "cut"))
    result = done(whole)
    append, scored = EpisodePart.append, []

    def stopping(part: EpisodePart, rows: Any) -> None:
        append(part, rows)
        scored.append(len(rows))
        if len(scored) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(EpisodePart, "append", stopping)
        with pytest.raises(SystemExit):
            run(cut.config, cut.task_overrides)
    assert cell_of(cut).result() is None
    assert 0 < sum(scored) < 12
    assert numbers(done(cut)) == numbers(result)
    assert cell_of(cut).episodes_file.read_bytes() == cell_of(whole).episodes_file.read_bytes()
