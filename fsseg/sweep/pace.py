"""How fast the cells of a grid go, and when the whole grid will be done: from running cells and from finished ones.

`fsseg.sweep.live` shows it. `fsseg plan` estimates cells before they start (`fsseg.sweep.estimate`); here only what the
run directories say of themselves counts.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fsseg.cell.models import IN_HANDS, LOST, State
from fsseg.cell.record import Snapshot
from fsseg.process.words import count, span


class _Taken(NamedTuple):
    """Mean seconds of finished cells: in all, and of what comes after the training."""

    whole: float
    after_training: float


@dataclass(frozen=True)
class Pace:
    """The rates of all running cells together, and what is left.

    Attributes:
        steps: training steps a second; 0 if no cell trains.
        episodes: evaluated episodes a second.
        running: cells that run now.
        seconds: until all cells in somebody's hands are done, if as many run at a time as now; None if nothing tells.
        unknown: cells in somebody's hands of which nothing tells how long they take; they are not in `seconds`.
        left_out: cells that nobody has, and that have no result.
    """

    steps: float
    episodes: float
    running: int
    seconds: float | None
    unknown: int
    left_out: int

    def __str__(self) -> str:
        parts = [f"{_rate(self.steps)} steps/s"] * (self.steps > 0)
        parts += [f"{_rate(self.episodes)} episodes/s"] * (self.episodes > 0)
        if self.seconds is not None:
            parts.append(f"about {span(self.seconds)} to go")
            parts += [f"without {count(self.unknown, 'cell')} of unknown length"] * (self.unknown > 0)
        elif self.unknown:
            parts.append("time to go not known yet")
        if self.left_out:
            parts.append(f"{count(self.left_out, 'cell')} to be run again")
        return ", ".join(parts)


def pace_of(cells: Sequence[Snapshot], now: float | None = None) -> Pace:
    """The pace of the cells as they stand.

    A running cell needs what its status says, and for what comes after its phase the mean of finished cells of the same
    data set, method, backbone and shot; a waiting cell needs the mean of these, or else of all finished cells.

    Args:
        now: seconds since the epoch; None takes the clock.
    """
    now = time.time() if now is None else now
    taken = _finished(cells)
    running = [s for s in cells if s.state == State.RUNNING]
    left = [_left(s, taken, now) for s in cells if s.state in IN_HANDS]
    known = [seconds for seconds in left if seconds is not None]
    own = [seconds for s in running if (seconds := _left(s, taken, now)) is not None]
    seconds = max([sum(known) / max(1, len(running)), *own]) if known else None
    return Pace(
        _speed(running, "train"), _speed(running, "evaluate"), len(running), seconds, len(left) - len(known),
        sum(s.state in LOST for s in cells),
    )  # fmt: skip


def _speed(running: Sequence[Snapshot], phase: str) -> float:
    seconds = (s.status.seconds_per_step for s in running if s.status is not None and s.status.phase == phase)
    return sum(1 / each for each in seconds if each)


def _finished(cells: Sequence[Snapshot]) -> dict[tuple[object, ...], _Taken]:
    """Kind of cell -> mean times; under () those of all finished cells."""
    found: dict[tuple[object, ...], list[_Taken]] = defaultdict(list)
    for s in cells:
        if s.result is None:
            continue
        timing = s.result.timing
        after = (timing.evaluate_seconds or 0.0) + (timing.figures_seconds or 0.0)
        whole = (timing.prepare_seconds or 0.0) + (s.result.train_seconds or 0.0) + after
        if whole > 0:
            for kind in (_kind(s), ()):
                found[kind].append(_Taken(whole, after))
    return {
        kind: _Taken(sum(t.whole for t in all_) / len(all_), sum(t.after_training for t in all_) / len(all_))
        for kind, all_ in found.items()
    }


def _kind(s: Snapshot) -> tuple[object, ...]:
    return () if s.key is None else (s.key.dataset, s.key.method, s.key.backbone, s.key.shot)


def _left(s: Snapshot, taken: dict[tuple[object, ...], _Taken], now: float) -> float | None:
    """Seconds that a cell in somebody's hands still needs; None if nothing tells."""
    usual, status = taken.get(_kind(s), taken.get(())), s.status
    if s.state != State.RUNNING or status is None or status.state != State.RUNNING:
        return None if usual is None else usual.whole
    if status.eta_seconds is not None and status.phase in ("train", "evaluate"):
        after = usual.after_training if usual is not None and status.phase == "train" else 0.0
        return max(0.0, status.eta_seconds - (s.age or 0.0)) + after
    return None if usual is None else max(0.0, usual.whole - (now - (status.started or now)))


def _rate(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.2g}"
