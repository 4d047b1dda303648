"""`fsseg plan`: the grid of an override line as a table with its cost, and a command for each of several servers."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsseg.cell.models import State
from fsseg.cell.record import find_runs
from fsseg.errors import UserError, visible
from fsseg.process.tables import aligned
from fsseg.process.words import extent, size, span
from fsseg.sweep.boxes import cells_of, command, cut, swept_keys
from fsseg.sweep.estimate import Estimate, Known, Measured, estimate, kind_of, measure, measurements, settings_of
from fsseg.sweep.grid import Point, base_points, build_grid

if TYPE_CHECKING:
    from fsseg.data.registry import DataAtHand

CALIBRATION_STEPS = 8
CALIBRATION_EPISODES = 16
_SPEAKING = ("dataset", "backbone", "method")  # keys whose values are clear without the key


@dataclass
class Plan:
    """A grid and what each of its cells costs.

    `base` are the base learners that cells of it start from (`backbone.base_training`), in the form of the grid.
    """

    points: list[Point]
    estimates: list[Estimate | None]
    notes: list[str]
    base: Plan | None = None


def plan(
    overrides: Sequence[str],
    calibrate: bool = False,
    limit_seconds: float = 900.0,
    config_dir: str | None = None,
) -> Plan:
    """Compose the grid, read the state of its cells, estimate their cost.

    Args:
        overrides: as after `python train.py -m`.
        calibrate: run a few steps of every unmeasured kind on this machine.
        limit_seconds: for one calibration.
        config_dir: as `train.py --config-dir` takes it.

    Raises:
        UserError: a fault of the line.
    """
    points = build_grid(overrides, config_dir)
    folders = dict.fromkeys(p.composed.cfg.output_dir for p in points if p.composed is not None)
    known = [m for folder in folders for m in measurements(Path(folder))]
    notes: list[str] = []
    if calibrate:
        where = [o for o in overrides if o.startswith("hydra.searchpath=")]
        if config_dir is not None:
            where += ["--config-dir", config_dir]
        for point in _unmeasured(points, known):
            found, note = run_calibration(point, limit_seconds, where)
            known += found
            notes.append(note)
    all_known = Known(known)
    base = base_points(points, data=False)
    for point in base:
        point.look()
    first = Plan(base, _estimates(base, all_known), []) if base else None
    return Plan(points, _estimates(points, all_known), notes + _not_ready([*base, *points], all_known.at_hand), first)


def _estimates(points: Sequence[Point], known: Known) -> list[Estimate | None]:
    return [
        None if p.composed is None or p.cell is None or p.state == State.FAULTY
        else estimate(p.composed.cfg, p.cell.identity, p.snapshot, known)
        for p in points
    ]  # fmt: skip


def _unmeasured(points: Sequence[Point], known: Sequence[Measured]) -> list[Point]:
    """One cell to run of every kind that was never measured."""
    seen = {(m.kind, m.settings) for m in known}
    chosen = []
    for p in points:
        if p.composed is None or p.cell is None or p.state in (State.DONE, State.FAULTY):
            continue
        mark = (kind_of(p.composed.cfg), settings_of(p.cell.identity))
        if mark not in seen:
            seen.add(mark)
            chosen.append(p)
    return chosen


def run_calibration(point: Point, limit_seconds: float, where: Sequence[str] = ()) -> tuple[list[Measured], str]:
    """Run a few steps and episodes of a cell in its own process and folder; returns measurements and a message.

    Args:
        where: words that say where Hydra finds further files.
    """
    assert point.composed is not None
    label = " ".join(f"{k}={v}" for k, v in point.settings.items())
    with tempfile.TemporaryDirectory(prefix="fsseg-calibration-") as folder:
        short = {
            "output_dir": folder, "name": "calibration", "redo": "false", "check": "false", "sync.url": "null",
            "train.max_steps": CALIBRATION_STEPS, "protocol.num_episodes": CALIBRATION_EPISODES,
            "protocol.seeds": "[0]", "logger.figures": 0, "logger.every_steps": 1, "logger.tensorboard": "false",
            "eval.every_epochs": 0, "train.select": "[]", "base_training.max_steps": CALIBRATION_STEPS,
        }  # fmt: skip
        line = [sys.executable, "-m", "fsseg", "train", *where, *point.composed.task_overrides]
        line += [f"{key}={value}" for key, value in short.items()]
        try:
            done = subprocess.run(line, capture_output=True, text=True, timeout=limit_seconds, env=dict(os.environ))
        except subprocess.TimeoutExpired:
            return [], f"calibration of [{label}]: not done within {limit_seconds:.0f} s"
        found = [m for run in find_runs([folder]) if (m := measure(run, calibration=True)) is not None]
        if done.returncode != 0 or not found:
            said = [line for line in done.stderr.splitlines() if line.strip()]
            reason = next((line for line in said if line.startswith("error:")), said[-1] if said else "no result")
            return [], f"calibration of [{label}] failed: {reason}"
    own = found[-1]  # after that of its base learner, if it starts from one
    train = f"{own.train:.3g} s a step, " if own.train else ""
    return found, f"calibration of [{label}]: {train}{own.evaluate or 0:.3g} s an episode on {own.device}"


def _not_ready(points: Sequence[Point], at_hand: DataAtHand) -> list[str]:
    """What is missing beside the configuration: data, images in the lists, pretrained weights, a place to write to."""
    from fsseg.data.registry import folder_faults, needed_splits
    from fsseg.sweep.preflight import disk_fault, folder_fault, nearest, weights_faults

    notes: dict[str, None] = {}
    seen: set[tuple[Any, ...]] = set()
    for p in points:
        if p.composed is None or p.state in (State.DONE, State.FAULTY):
            continue
        cfg = p.composed.cfg
        needed = id(cfg.dataset), id(cfg.backbone), tuple(needed_splits(cfg))  # a grid's cells share their nodes
        if needed not in seen:
            seen.add(needed)
            faults = [*folder_faults(cfg), *weights_faults(cfg, download=False)]
            notes |= dict.fromkeys(f"not ready: {fault}" for fault in faults)
        notes |= dict.fromkeys(f"not ready: {fault}" for fault in at_hand.faults(cfg))
    todo = [p for p in points if p.state == State.TODO and p.cell is not None]
    places = dict.fromkeys(nearest(p.cell.directory) for p in todo if p.cell is not None)
    outside = [*map(folder_fault, places), disk_fault(todo)]
    return [*notes, *(f"not ready: {fault}" for fault in outside if fault is not None)]


def text(plan: Plan, limit: int = 200) -> str:
    """What `fsseg plan` prints: the table, the totals, and where the numbers come from."""
    points, estimates = plan.points, plan.estimates
    first = [] if plan.base is None else ["first, once for all cells that start from them:", text(plan.base), ""]
    keys = swept_keys(points) or [k for k in ("dataset", "fold") if points and k in points[0].settings]
    rows = [["cell", "state", "steps", "hours", "memory", "disk", "directory"]]
    for p, e in list(zip(points, estimates))[:limit]:
        rows.append([
            " ".join(p.settings[k] if k in _SPEAKING else f"{k} {p.settings[k]}" for k in keys) or "-",
            _state(p), "?" if e is None or e.steps is None else str(e.steps), _hours(e), _memory(e),
            size(e.disk if e else None), str(p.cell.directory) if p.cell else "-",
        ])  # fmt: skip
    lines = [*first, aligned(rows, left=(0, 1, 6))]
    if len(points) > limit:
        lines.append(f"... and {len(points) - limit} more")
    lines += ["", _totals(plan)]
    for basis, count in Counter(e.basis for e in estimates if e is not None and e.basis != "done").items():
        cells = f"{count} cell{'s' * (count != 1)}"
        if basis == "unknown":
            lines.append(
                f"hours of {cells} are unknown: nothing of their kind was measured (`--calibrate` measures here)"
            )
        elif basis == "published figures":
            lines.append(
                f"hours of {cells} from {basis}: 30-60 min a fold on PASCAL, up to 80 GPU hours a fold on COCO, "
                "10-12 GB of GPU memory, 500 MB a checkpoint"
            )
        else:
            lines.append(f"hours of {cells} from {visible(basis)}")
    for counted, count in Counter(e.counted for e in estimates if e is not None and e.counted).items():
        lines.append(f"steps of {count} cell{'s' * (count != 1)} counted from {counted}")
    faulty: dict[str, int] = Counter(str(f) for p in points for f in p.faults)
    lines += [f"cannot start ({count} cells): {fault}" for fault, count in faulty.items()]
    return "\n".join(lines + plan.notes)


def _totals(plan: Plan) -> str:
    counts = Counter(p.state for p in plan.points)
    left = [e for p, e in zip(plan.points, plan.estimates) if e is not None and p.state != State.DONE]
    known = [e.hours for e in left if e.hours is not None]
    unknown, hours = len(left) - len(known), _sum_of(known)
    line = f"{len(plan.points)} cells: {', '.join(f'{n} {state}' for state, n in counts.items())}"
    if left:
        line += f"; {hours} to go" + (f" and {unknown} cells of unknown length" if unknown else "")
        disk = sum(e.disk for e in left if e.disk)
        line += f", {size(disk)} of disk" if disk else ""
    return line


def _sum_of(hours: Sequence[tuple[float, float]], rough: bool = False) -> str:
    low, high = sum(h[0] for h in hours), sum(h[1] for h in hours)
    if rough and high - low < 0.01 * high:
        return f"about {span(1800 * (low + high))}"
    return extent(low, high, "h", most_only=low < 0.01 * high)


def _state(p: Point) -> str:
    shown = (State.RUNNING, State.PREEMPTED, State.PRUNED, State.STALE, State.FAILED)
    if p.state in shown and p.snapshot is not None and p.snapshot.progress and p.snapshot.progress[1]:
        return "{} ({} {}/{})".format(p.state, *p.snapshot.progress)
    return str(p.state)


def _hours(e: Estimate | None) -> str:
    if e is None or e.hours is None:
        return "?"
    low, high = e.hours
    return "0" if high == 0 else extent(low, high, "", most_only=low == 0)


def _memory(e: Estimate | None) -> str:
    if e is None or e.gigabytes is None:
        return "-" if e is not None and e.basis == "done" else "?"
    return extent(*e.gigabytes, "GB")


def servers(
    plan: Plan,
    count: int,
    by: Sequence[str] | None,
    hydra_overrides: Sequence[str] = (),
    config_dir: str | None = None,
) -> str:
    """The command for each server; together they run exactly the grid.

    Args:
        hydra_overrides: of the line; every command has them.
        config_dir: of the line, too.

    Raises:
        UserError: a key in `by` that the line does not have, or cells that cannot start.
    """
    if any(p.state == State.FAULTY for p in plan.points):
        raise UserError("some cells of this line cannot start (listed above)", "mend the line first")
    hours = weights(plan)
    flags = [] if config_dir is None else ["--config-dir", config_dir]
    if by is not None and list(by) == ["finest"]:
        by = swept_keys(plan.points)
    parts = cut(plan.points, hours, count, by)
    why = "more would not be done sooner" if by is None else "cut finer with --by"
    lines = [f"{len(parts)} servers:" if len(parts) == count else f"{len(parts)} of {count} servers have work: {why}"]
    places = {tuple(p.settings.items()): i for i, p in enumerate(plan.points)}
    for number, boxes in enumerate(parts, 1):
        mine = sorted(places[place] for box in boxes for place in cells_of(box))
        done = sum(plan.points[i].state == State.DONE for i in mine)
        known = [e.hours for i in mine if (e := plan.estimates[i]) is not None and e.hours is not None]
        expected = f", {_sum_of(known, rough=True)}" if len(known) == len(mine) else ""
        lines.append(f"\n# server {number}: {len(mine)} cells" + (f" ({done} done)" if done else "") + expected)
        lines += [command(box, hydra_overrides, flags) for box in boxes]
    return "\n".join(lines)


def weights(plan: Plan) -> list[float]:
    """Hours of each cell, the middle of its range; the mean of the others where unknown."""
    middles = [None if e is None or e.hours is None else sum(e.hours) / 2 for e in plan.estimates]
    known = [m for m, p in zip(middles, plan.points) if m is not None and p.state != State.DONE]
    usual = sum(known) / len(known) if known else 1.0
    return [usual if m is None else m for m in middles]
