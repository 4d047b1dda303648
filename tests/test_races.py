"""Processes that are stopped, woken, killed, asked to end and told to redo, on few cells: what is left is one run.

`pytest -m slow tests/test_races.py` takes some minutes; CI plays a short game.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import cell_of, composed, done, numbers, start

from fsseg.cell.models import Result, State
from fsseg.cell.record import Cell
from fsseg.config.compose import Composed
from fsseg.sweep.clean import delete, find_waste

pytestmark = pytest.mark.filterwarnings("ignore")

_PROCESSES = 6
_CELLS = 4
_STEPS = (6, 8)  # two settings that compete for each cell's directory


class Game:
    """Cells, the processes that work on them, and what a whole run of each comes to."""

    def __init__(self, root: Path, folder: Path, seed: int) -> None:
        self.root, self.folder, self.draw = root, folder, random.Random(seed)
        self.alive: list[Any] = []
        self.logs: list[Path] = []
        self.moves: Counter[str] = Counter()
        self.wholes: dict[tuple[int, int], tuple[Cell, Result]] = {}

    def composed(self, fold: int, steps: int, *overrides: str, output: str = "game") -> Composed:
        return composed(
            self.root, self.folder / output, f"fold={fold}", f"train.max_steps={steps}", "train.checkpoint_minutes=0",
            "lease_seconds=1", *overrides,
        )  # fmt: skip

    def whole(self, fold: int, steps: int) -> tuple[Cell, Result]:
        """The cell as it is if nothing ever interrupts it."""
        if (fold, steps) not in self.wholes:
            c = self.composed(fold, steps, output=f"whole{steps}")
            self.wholes[fold, steps] = cell_of(c), done(c)
        return self.wholes[fold, steps]

    def round(self) -> None:
        """One move: a new process, or a signal for one that lives."""
        time.sleep(self.draw.random() * 0.5)
        self.alive = [p for p in self.alive if p.is_alive()]
        if len(self.alive) < _PROCESSES and self.draw.random() < 0.6:
            redo = self.draw.random() < 0.3
            self.begin(self.draw.randrange(_CELLS), self.draw.choice(_STEPS), *(["redo=true"] if redo else []))
            self.moves["redo" if redo else "start"] += 1
        elif self.alive:
            number = self.draw.choice(
                [signal.SIGSTOP] * 3 + [signal.SIGCONT] * 3 + [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP]
            )
            self.send(self.draw.choice(self.alive), number)
            self.moves[number.name] += 1

    def begin(self, fold: int, steps: int, *overrides: str) -> Any:
        self.logs.append(self.folder / f"{len(self.logs)}.log")
        self.alive.append(start(self.composed(fold, steps, *overrides), self.logs[-1]))
        return self.alive[-1]

    def send(self, process: Any, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)

    def end(self) -> None:
        """Wake all sleepers, let everybody come to an end."""
        for process in self.alive:
            self.send(process, signal.SIGCONT)
        for process in self.alive:
            process.join(120)
            assert not process.is_alive()

    def finish(self, fold: int) -> None:
        """Bring a cell to its end under the settings that it has, and compare it with a whole run."""
        stored = cell_of(self.composed(fold, _STEPS[0])).identity_record()
        steps = _STEPS[0] if stored is None else stored.identity["train.max_steps"]
        c = self.composed(fold, steps)
        cell, result = cell_of(c), done(c)
        whole, expected = self.whole(fold, steps)
        state = torch.load(cell.checkpoint, weights_only=True)
        identity = cell.identity_record()
        assert identity is not None
        assert identity.run == result.run == state["run"]
        assert identity.fingerprint == result.fingerprint == state["fingerprint"] == cell.fingerprint
        assert result.training is not None
        assert result.training.steps == state["step"] == state["steps"] == steps
        assert numbers(result) == numbers(expected)
        for name, tensor in torch.load(whole.checkpoint, weights_only=True)["model"].items():
            assert torch.equal(state["model"][name], tensor), name
        for name, curve in whole.curves().items():
            if name != "seconds_per_step":
                assert cell.curves()[name] == curve, name
        assert state["rows"] == steps == len(cell.metrics_file.read_text().splitlines()) - 1
        assert cell.look().state == State.DONE
        status = cell.status()
        assert status is not None
        assert status.state == State.DONE
        # A process that was killed right after it wrote the result leaves its claim and its folders.
        delete([item for item in find_waste([cell.directory]) if item.why != "checkpoint"])
        assert not cell.claim_file.exists()
        names = [str(p.relative_to(cell.directory)) for p in cell.directory.rglob("*") if p.is_file()]
        assert [name for name in names if name.startswith(".")] == []


@pytest.mark.parametrize(
    ("seed", "rounds"),
    [
        pytest.param(1, 30, marks=pytest.mark.process),
        pytest.param(2, 200, marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
    ],
)
def test_whatever_happens_to_the_processes_every_cell_ends_as_one_whole_run(
    seed: int, rounds: int, tmp_path: Path
) -> None:
    game = Game(tmp_path / "shapes5i", tmp_path, seed)
    done(game.composed(0, 6, output="data"))  # makes the data
    for _ in range(rounds):
        game.round()
    game.end()
    print(dict(game.moves), "attempts:", [len(list(c.attempts.glob("*"))) for c in map(_cell(game), range(_CELLS))])
    for fold in range(_CELLS):
        game.finish(fold)
    for log in game.logs:
        text = log.read_text() if log.exists() else ""
        lines = [line for line in text.splitlines() if "Error" in line]
        assert all("UserError" in line for line in lines), text


def _cell(game: Game) -> Any:
    return lambda fold: cell_of(game.composed(fold, _STEPS[0]))
