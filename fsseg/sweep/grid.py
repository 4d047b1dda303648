"""The cells of a `-m` line: the configuration and directory of each, and whether it is done or cannot start.

The sweeper, `fsseg plan` and `fsseg retry` expand a line here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from fsseg.cell.key import BASE_CELL
from fsseg.cell.models import State
from fsseg.cell.record import Cell, Snapshot, open_cell
from fsseg.cell.sweeps import sweeps_of
from fsseg.errors import UserError
from fsseg.sweep.elsewhere import Elsewhere

if TYPE_CHECKING:
    from fsseg.config.compose import Composed
    from fsseg.config.schema import Config
    from fsseg.data.registry import DataNow


@dataclass
class Point:
    """One cell of a grid.

    Attributes:
        overrides: the cell's part of the line.
        composed: its configuration; None if it cannot be composed.
        cell: directory and fingerprint; None if the configuration is faulty.
        state: done, faulty or to do; after `look` that of its directory; pending or running with a job in SLURM.
        snapshot: state of its directory; None if it is empty, or before `look`.
        faults: why it cannot start; empty if it can.
    """

    overrides: tuple[str, ...]
    composed: Composed | None = None
    cell: Cell | None = None
    state: State = State.TODO
    snapshot: Snapshot | None = None
    faults: list[UserError] = field(default_factory=list)

    @cached_property
    def settings(self) -> dict[str, str]:
        """Override key -> value as written, in the order of the line."""
        return split_overrides(self.overrides)

    @property
    def label(self) -> str:
        return str(self.cell.key) if self.cell else " ".join(self.overrides)

    def look(self) -> None:
        """Read the state of a cell to do from its directory, if a run was started there."""
        if self.state == State.TODO and self.cell is not None and self.cell.status_file.exists():
            self.snapshot = self.cell.look()
            self.state = self.snapshot.state


def split_overrides(overrides: Iterable[str]) -> dict[str, str]:
    """Override key -> value as written; the last of a key counts, as in Hydra."""
    parts = (o.partition("=") for o in overrides)
    return {key: value if equals else "null" for key, equals, value in parts}  # ~key alone: Hydra takes any value


def build_grid(overrides: Sequence[str], config_dir: str | None = None) -> list[Point]:
    """Compose the cells of `train.py -m <overrides>` and look at their directories.

    A grid may be planned before its data is there: only finished cells are compared with it.

    Args:
        overrides: as after `python train.py -m`.
        config_dir: as for `composer`.

    Raises:
        UserError: a fault of the line as a whole, of its launcher or its folder, or two cells with one directory.
    """
    from fsseg.config.compose import composer
    from fsseg.config.entry import explained
    from fsseg.sweep.launchers.habit import ready

    with composer(config_dir) as c, explained():
        line = c.of_line(overrides)
        ready(line.master)
        if line.master.search is not None:
            raise UserError(
                "search= chooses its cells by what was scored: they cannot be listed before",
                "plan the line without search=, which is one trial; or check that the search can start: `train.py -m "
                "... check=true`",
            )
        points = examine(line.grid_of_master(), data=False)
    cells = [point.cell for point in points if point.cell is not None]
    elsewhere = Elsewhere(sweeps_of(dict.fromkeys(cell.experiment for cell in cells)))
    for point in points:
        if point.composed is not None and not point.composed.cfg.redo:
            point.look()
        if point.cell is not None and point.state not in (State.DONE, State.FAULTY):
            _, job = elsewhere.queued(point.cell.directory) or ("", None)
            point.state = point.state if job is None else State.RUNNING if job.works else State.PENDING
    return points


def examine(
    jobs: Sequence[tuple[tuple[str, ...], Composed | UserError]], data: bool, download: bool = True
) -> list[Point]:
    """The points of composed cells, in their order; each is done, to do or faulty.

    Args:
        jobs: overrides of each cell, and what they compose to.
        data: whether what a cell needs beside its configuration is looked for: data, weights, room on the disk.
        download: whether weights that are missing may be fetched when a cell starts.

    Raises:
        UserError: two cells have one directory, or the disk is far too small for all.
    """
    from fsseg.data.registry import DataAtHand, DataNow, folder_faults
    from fsseg.sweep.preflight import cell_faults, disk_fault

    def lacks(cfg: Config, cell: Cell) -> list[UserError]:
        if not data:
            return []
        return (folder_faults(cfg) or at_hand.faults(cfg)) + cell_faults(cfg, cell.directory, download)

    now, at_hand = DataNow(), DataAtHand()
    points = [_examined(Point(tuple(job)), composed, lacks, now) for job, composed in jobs]
    seen: dict[Path, Point] = {}
    for point in points:
        if point.cell is not None and (other := seen.setdefault(point.cell.directory, point)) is not point:
            raise UserError(
                f"two cells of this sweep share the directory {point.cell.directory}: "
                f"[{' '.join(other.overrides)}] and [{' '.join(point.overrides)}]",
                "take the duplicate out of the sweep, or set variant= to tell them apart",
            )
    if data and (fault := disk_fault(point for point in points if point.state == State.TODO)) is not None:
        raise fault
    return points


def base_points(points: Sequence[Point], data: bool, download: bool = True) -> list[Point]:
    """The base learners that cells to do start from (`backbone.base_training`), each once, without those of the grid.

    Args:
        points, data, download: as for `examine`.

    Raises:
        UserError: as of `examine`.
    """
    from fsseg.config.base_training import base_config, base_overrides, starts_from_a_base_learner
    from fsseg.config.compose import Composed
    from fsseg.config.entry import typed

    found: dict[tuple[str, str], tuple[tuple[str, ...], Composed | UserError]] = {}
    for point in points:
        if point.composed is None or point.cell is None or point.state in (State.DONE, State.FAULTY):
            continue
        cfg = point.composed.cfg
        if starts_from_a_base_learner(cfg):
            mark = cfg.output_dir, point.cell.identity[BASE_CELL]
            if mark not in found:
                words = base_overrides(point.composed.task_overrides)
                found[mark] = words, Composed(words, words, typed(base_config(point.composed.resolved)))
    own = {point.cell.directory for point in points if point.cell is not None}
    return [
        point
        for point in examine(list(found.values()), data, download)
        if point.cell is None or point.cell.directory not in own
    ]


def _examined(
    point: Point, composed: Composed | UserError, lacks: Callable[[Config, Cell], list[UserError]], now: DataNow
) -> Point:
    from omegaconf.errors import OmegaConfBaseException

    from fsseg.config.checks import faults, place_faults
    from fsseg.config.entry import explain

    if isinstance(composed, UserError):
        point.state, point.faults = State.FAULTY, [composed]
        return point
    point.composed, cfg = composed, composed.cfg
    try:
        if place_faults(cfg):
            point.state, point.faults = State.FAULTY, faults(cfg)
            return point
        plain = composed.resolved
        point.cell = open_cell(cfg, plain, composed.task_overrides)
        if not cfg.redo and (result := point.cell.finished()) is not None:
            if (changed := now.fault(cfg, plain["dataset"], result.dataset)) is not None:
                raise changed
            point.state, point.snapshot = State.DONE, Snapshot(point.cell, State.DONE, result=result)
            return point
        point.faults = faults(cfg) or lacks(cfg, point.cell)
        if not point.faults and not cfg.redo:
            point.cell.check_same_settings()
    except UserError as error:
        point.faults = (faults(cfg) if point.cell is None else []) or [error]
    except OmegaConfBaseException as error:
        point.faults = [explain(error)]
    if point.faults:
        point.state = State.FAULTY
    return point
