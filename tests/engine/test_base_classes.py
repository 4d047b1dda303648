"""Base learners: their score, and cells that start from them; trained once, whoever needs them first."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import cell_of, composed, done, fork_ranks, numbers, run_and_print, start

from fsseg import run as run_module
from fsseg.cell.claim import acquire
from fsseg.cell.models import State
from fsseg.cell.record import Cell, open_cell
from fsseg.config.base_training import base_config
from fsseg.config.compose import Composed
from fsseg.config.entry import resolved, typed
from fsseg.engine import train as train_module
from fsseg.engine.base_classes import confusion, metrics_of_table
from fsseg.errors import UserError
from fsseg.report.aggregate import aggregate
from fsseg.run import run
from fsseg.sweep.clean import find_waste

pytestmark = pytest.mark.filterwarnings("ignore")

FROZEN = ("backbone.base_training=true", "backbone.trainable_layers=0", "base_training.max_steps=5",
          "base_training.batch_size=3", "base_training.image_size=25", "train.max_steps=2")  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shapes5i")


@pytest.fixture(scope="module")
def started(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Composed, Cell]:
    """A finished cell that starts from a base learner, and that one."""
    c = composed(root, tmp_path_factory.mktemp("started"), *FROZEN)
    done(c)
    return c, base_of(c)


def base_of(c: Composed) -> Cell:
    config = base_config(c.resolved)
    return open_cell(typed(config), resolved(config))


def weights(cell: Cell, part: str = "") -> dict[str, torch.Tensor]:
    state = torch.load(cell.checkpoint, weights_only=True)["model"]
    return {name: value for name, value in state.items() if name.startswith(part)}


def starts(cell: Cell) -> int:
    return len(list(cell.attempts.glob("*.json")))


# ------------------------------------------------------------------------------------------------ the score


def test_the_score_by_hand() -> None:
    """Background and three classes; the last is in no image, and once taken for another."""
    truth = torch.tensor([[0, 0, 1, 1], [1, 2, 2, 255]], dtype=torch.uint8)
    answer = torch.tensor([[0, 1, 1, 1], [3, 2, 0, 2]])
    table = confusion(answer, truth, 4)
    assert table.tolist() == [[1, 1, 0, 0], [0, 2, 0, 1], [1, 0, 1, 0], [0, 0, 0, 0]]
    found = metrics_of_table(table, ["a", "b", "c"], 1)
    assert found.per_class == pytest.approx({"a": 100 * 2 / 4, "b": 100 * 1 / 2})
    assert found.base_miou == pytest.approx(50)
    assert found.background == pytest.approx(100 * 1 / 3)
    assert found.absent == ["c"]


def test_it_trains_and_its_score_is_of_base_classes_alone(root: Path, tmp_path: Path) -> None:
    c = composed(root, tmp_path, "method=pspnet", "train.max_steps=40", "train.batch_size=4", "dataset.image_size=33")
    result = done(c)
    losses = cell_of(c).curves()["train/loss"][1]
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])
    assert result.metrics is None
    assert result.miou is None
    assert result.base_classes is not None
    assert len(result.base_classes.per_class) + len(result.base_classes.absent) == 15
    assert not set(result.base_classes.per_class) & set(result.dataset.novel_classes)
    assert result.base_classes.images > 0
    assert "mIoU of base classes" in result.score_line()


# ------------------------------------------------------------------------------------------------ interruptions


def test_killed_and_resumed_it_ends_with_the_same_bits(root: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Dropout draws random numbers, and the norms keep statistics: both go on where they stood."""
    settings = ("method=pspnet", "train.max_steps=5", "train.batch_size=3")
    whole, cut = (composed(root, tmp_path, *settings, f"name={name}") for name in ("whole", "cut"))
    done(whole)
    rate = train_module.learning_rate

    def stopping(cfg: Any, step: int, total: int) -> float:
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return rate(cfg, step, total)

    monkeypatch.setattr(train_module, "learning_rate", stopping)
    with pytest.raises(SystemExit):
        run(cut.config, cut.task_overrides)
    monkeypatch.setattr(train_module, "learning_rate", rate)
    again = done(cut)
    theirs = cell_of(whole).result()
    assert theirs is not None
    assert again.base_classes == theirs.base_classes
    mine, other = weights(cell_of(cut)), weights(cell_of(whole))
    assert mine.keys() == other.keys()
    assert all(torch.equal(mine[name], other[name]) for name in other)


def test_a_signal_while_the_base_learner_trains_stops_both_and_the_same_line_completes_them(
    root: Path, tmp_path: Path, started: tuple[Composed, Cell], monkeypatch: Any
) -> None:
    c = composed(root, tmp_path, *FROZEN)
    rate = train_module.learning_rate

    def stopping(cfg: Any, step: int, total: int) -> float:
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return rate(cfg, step, total)

    monkeypatch.setattr(train_module, "learning_rate", stopping)
    with pytest.raises(SystemExit) as caught:
        run(c.config, c.task_overrides)
    assert caught.value.code == 128 + signal.SIGTERM
    for cell in (cell_of(c), base_of(c)):
        assert cell.look().state == State.PREEMPTED
        assert not cell.claim_file.exists()
    assert torch.load(base_of(c).checkpoint, weights_only=True)["step"] == 3
    monkeypatch.setattr(train_module, "learning_rate", rate)
    done(c)
    assert starts(base_of(c)) == 2
    for mine, theirs in ((base_of(c), started[1]), (cell_of(c), cell_of(started[0]))):
        other = weights(theirs)
        assert all(torch.equal(value, other[name]) for name, value in weights(mine).items())


# ------------------------------------------------------------------------------------------------ who starts from it


def test_a_cell_gets_exactly_those_weights_and_says_where_from(started: tuple[Composed, Cell]) -> None:
    c, base = started
    own, theirs = weights(cell_of(c), "backbone."), weights(base, "backbone.")
    assert own.keys() == theirs.keys()
    assert all(torch.equal(own[name], theirs[name]) for name in theirs)
    result, of_base = cell_of(c).result(), base.result()
    assert result is not None
    assert of_base is not None
    assert result.base_learner is not None
    assert result.base_learner.path == str(base.checkpoint)
    assert result.base_learner.fingerprint == of_base.fingerprint
    assert result.base_learner.step == 5
    assert not set(result.base_learner.base_classes) & set(result.dataset.novel_classes)
    waste = [item.run.directory for item in find_waste([c.cfg.output_dir]) if item.why == "checkpoint"]
    assert base.directory not in waste  # another cell may still start from it
    assert cell_of(c).directory in waste


def test_a_second_cell_starts_from_the_same_one(root: Path, started: tuple[Composed, Cell]) -> None:
    c, base = started
    before = base.checkpoint.stat().st_mtime_ns
    other = composed(root, Path(c.cfg.output_dir), *FROZEN, "method=prototype", "shot=2", "seed=4", "name=others")
    done(other)
    assert base_of(other).directory == base.directory
    assert (base.checkpoint.stat().st_mtime_ns, starts(base)) == (before, 1)
    result = cell_of(other).result()
    assert result is not None
    assert result.base_learner is not None
    assert result.base_learner.fingerprint == base.fingerprint


@pytest.mark.process
def test_two_cells_at_the_same_time_train_it_once(root: Path, tmp_path: Path, monkeypatch: Any) -> None:
    cells = [composed(root, tmp_path, *FROZEN, "base_training.max_steps=30", f"seed={seed}") for seed in (0, 1)]
    processes = [start(c, tmp_path / f"log{n}") for n, c in enumerate(cells)]
    for process in processes:
        process.join(120)
    texts = [(tmp_path / f"log{n}").read_text() for n in (0, 1)]
    assert [process.exitcode for process in processes] == [0, 0], texts
    assert sum("waiting for its base learner" in text for text in texts) == 1  # the other may have tried as well
    assert starts(base_of(cells[0])) == 1
    assert [cell_of(c).look().state for c in cells] == [State.DONE] * 2


def test_who_waits_says_so_and_goes_on_when_it_is_given_up(root: Path, tmp_path: Path, monkeypatch: Any) -> None:
    c = composed(root, tmp_path, *FROZEN)
    cell, base = cell_of(c), base_of(c)
    base.directory.mkdir(parents=True)
    claim, looks, seen = acquire(base.claim_file, 300), [], []
    trained = run_module._base_trained

    def second_look(*runs: Any) -> str | None:
        if looks:
            status = cell.status()
            assert status is not None
            seen.append((status.state, status.phase, status.reason))
            claim.release()
        looks.append(1)
        return trained(*runs)

    monkeypatch.setattr(run_module, "_base_trained", second_look)
    monkeypatch.setattr(run_module, "_WAIT_SECONDS", 0.01)
    done(c)
    (once,) = seen
    assert once[:2] == ("running", "waiting for its base learner")
    assert f"{base.directory} is held by process {os.getpid()}" in str(once[2])
    status = cell.status()
    assert status is not None
    assert (status.state, status.reason) == ("done", None)


@pytest.mark.process
def test_on_two_processes_both_are_trained_by_both(root: Path, tmp_path: Path, started: tuple[Composed, Cell]) -> None:
    c = composed(root, tmp_path, *FROZEN, "train.batch_size=4")
    for status, text in fork_ranks(run_and_print, c, folder=tmp_path / "logs"):
        assert status == 0, text
        assert json.loads(text.rpartition("returned ")[2])[0] == "done"
    base = base_of(c)
    assert starts(base) == 1
    own, theirs = weights(cell_of(c), "backbone."), weights(base, "backbone.")
    assert all(torch.equal(own[name], theirs[name]) for name in theirs)
    result = base.result()
    assert result is not None
    assert result.base_classes is not None
    alone = started[1].result()  # of one process: the same images
    assert alone is not None
    assert alone.base_classes is not None
    assert result.base_classes.images == alone.base_classes.images


# ------------------------------------------------------------------------------------------------ what is wrong with it


def _cut(path: Path, base: Cell) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def _foreign(path: Path, base: Cell) -> None:
    state = torch.load(path, weights_only=True)
    torch.save({**state, "fingerprint": "0" * 16}, path)


def _other_run(path: Path, base: Cell) -> None:
    state = torch.load(path, weights_only=True)
    torch.save({**state, "run": "other"}, path)


def _other_backbone(path: Path, base: Cell) -> None:
    state = torch.load(path, weights_only=True)
    state["model"] = {n: v for n, v in state["model"].items() if not n.startswith("backbone.layer4")}
    torch.save(state, path)


FAULTS = {
    "gone": (lambda path, base: path.unlink(), "is gone"), "cut": (_cut, "damaged"),
    "foreign": (_foreign, "is of another base learner"), "other run": (_other_run, "run other"),
    "other backbone": (_other_backbone, "does not fit this model"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_base_learner_that_is_broken_or_foreign_is_two_lines(
    fault: str, started: tuple[Composed, Cell], root: Path, tmp_path: Path
) -> None:
    alter, told = FAULTS[fault]
    c = composed(root, tmp_path, *FROZEN)
    base = base_of(c)
    shutil.copytree(started[1].directory, base.directory)
    alter(base.checkpoint, base)
    with pytest.raises(UserError) as caught:
        run(c.config, c.task_overrides)
    assert told in caught.value.what
    assert str(base.checkpoint) in caught.value.what
    assert str(base.directory) in caught.value.fix
    assert "\n" not in caught.value.what + caught.value.fix
    shutil.rmtree(base.directory)
    done(c)  # as the advice says


def test_a_base_learner_that_cannot_be_trained_fails_the_cell_in_its_words(root: Path, tmp_path: Path) -> None:
    c = composed(root, tmp_path, *FROZEN, "base_training.lr=900")
    with pytest.raises(UserError, match=r"the loss is"):
        run(c.config, c.task_overrides)
    assert cell_of(c).look().state == base_of(c).look().state == State.FAILED


# ------------------------------------------------------------------------------------------------ reports and checks


def test_tables_never_hold_it(started: tuple[Composed, Cell], tmp_path: Path) -> None:
    c, base = started
    text = aggregate([c.cfg.output_dir], tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert "pspnet" not in (tmp_path / "summary.csv").read_text()
    assert "pspnet" not in json.dumps(summary["tables"])
    (listed,) = summary["base_learners"]
    result = base.result()
    assert result is not None
    assert listed == {"cell": str(base.key), "score": result.score_line()}
    assert "Base learners, in no table" in text


def test_check_says_what_would_be_trained_first(root: Path, tmp_path: Path, started: Any, capsys: Any) -> None:
    c = composed(root, tmp_path, *FROZEN, "check=true")
    run(c.config, c.task_overrides)
    assert f"{base_of(c).directory} is not done: it would be trained first" in capsys.readouterr().out
    assert not base_of(c).directory.exists()
    there = composed(root, Path(started[0].cfg.output_dir), *FROZEN, "check=true", "seed=9")
    run(there.config, there.task_overrides)
    assert f"{started[1].checkpoint}, step 5" in capsys.readouterr().out


def test_numbers_do_not_depend_on_who_trained_it(root: Path, tmp_path: Path, started: tuple[Composed, Cell]) -> None:
    """By its own line first, then a cell that starts from it."""
    c = composed(root, tmp_path, *FROZEN)
    recipe = ("train.max_steps=5", "train.batch_size=3", "dataset.image_size=25", "variant=null")
    own = composed(root, tmp_path, "method=pspnet", *recipe)
    assert cell_of(own).directory == base_of(c).directory
    done(own)
    done(c)
    assert starts(base_of(c)) == 1
    first, second = cell_of(c).result(), cell_of(started[0]).result()
    assert first is not None
    assert second is not None
    assert first.metrics == second.metrics
    assert numbers(base_of(c).result()) == numbers(started[1].result())
