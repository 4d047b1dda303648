"""What the machinery of sweeps costs for each cell: the measurement behind `fsseg bench sweep`.

A grid of cells whose work is nearly nothing is planned, run with `-m` in one process and in a process for each cell,
run again when all are done, looked at and aggregated. Called by the `fsseg` command.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fsseg.bench.common import Spread
from fsseg.errors import UserError
from fsseg.process.tables import aligned
from fsseg.sweep import plan, status

LIGHT = (
    "dataset=shapes5i", "dataset.num_train=40", "dataset.num_val=80", "backbone=tiny", "method=prototype",
    "train.enabled=false", "protocol.num_episodes=4", "protocol.seeds=[0]", "logger.tensorboard=false",
    "logger.figures=0", "num_workers=0", "device=cpu", "hydra/launcher=basic", "sync.url=null",
)  # fmt: skip
"""A cell with nearly no work; what a line gives instead counts."""


@dataclass(frozen=True)
class SweepRow:
    """One thing that is done with the grid.

    Attributes:
        what: it is.
        cells: that it is done with.
        seconds: of all of them together.
        per_cell: seconds divided by their number; of a further cell without what a process needs to start.
    """

    what: str
    cells: int
    seconds: Spread
    per_cell: Spread


Start = Callable[[Sequence[str]], None]
"""Runs a line of `fsseg train`."""
Aggregate = Callable[[Sequence[Path], Path], object]
"""Makes tables of the runs below some folders, and writes them into another."""


def start_process(line: Sequence[str]) -> None:
    """In a process of its own.

    Raises:
        UserError: it failed; with its last words.
    """
    done = subprocess.run([sys.executable, "-m", "fsseg", "train", *line], capture_output=True, text=True)
    if done.returncode:
        words = " | ".join(done.stderr.strip().splitlines()[-2:])
        raise UserError(f"a cell of the benchmark failed: {words[-400:]}", f"try it: fsseg train {' '.join(line)}")


def bench_sweep(
    aggregate: Aggregate, line: Sequence[str] = (), cells: int = 8, repeats: int = 3, start: Start = start_process
) -> list[SweepRow]:
    """Time a grid of `cells` cells over `seed`, `repeats` times from nothing, after one time that is not kept.

    Args:
        aggregate: what `fsseg aggregate` calls; this room does not know the reports.
        line: overrides in addition to `LIGHT`, or instead of some of it.

    Raises:
        UserError: a fault of the line, or a cell that fails.
    """
    given = {override.lstrip("+~").partition("=")[0] for override in line}
    base = [*(o for o in LIGHT if o.partition("=")[0] not in given), *line]
    with tempfile.TemporaryDirectory(prefix="fsseg-bench-") as folder:
        if "dataset.root" not in given and "dataset" not in given:
            base.append(f"dataset.root={folder}/data")
        rounds = [
            _Round(base, cells, Path(folder) / str(number), start, aggregate).times() for number in range(repeats + 1)
        ]
    found = {what: [times[what] for times in rounds[1:]] for what in rounds[0]}
    rows = [SweepRow(what, n, Spread.of(found[what, n]), Spread.of(found[what, n]).times(1 / n)) for what, n in found]
    for what in (_RUN, _AGAIN):
        more = [(many - one) / (cells - 1) for many, one in zip(found[what, cells], found[what, 1])]
        rows.append(SweepRow(f"{what}: a further cell", 1, Spread.of(more), Spread.of(more)))
    return rows


_RUN, _AGAIN, _EACH = "one process (-m)", "one process, all done", "a process each"


@dataclass
class _Round:
    """All that is done with a grid, once, from an empty folder."""

    base: list[str]
    cells: int
    folder: Path
    start: Start
    aggregate: Aggregate

    def times(self) -> dict[tuple[str, int], float]:
        """(what, cells) -> seconds, in the order in which it is done."""
        seeds = ",".join(map(str, range(self.cells)))
        grid = [*self.base, f"output_dir={self.folder}/one", f"seed={seeds}"]
        single = [*self.base, f"output_dir={self.folder}/single"]
        alone = [[*self.base, f"output_dir={self.folder}/each", f"seed={seed}"] for seed in range(self.cells)]
        todo: list[tuple[str, int, Callable[[], object]]] = [
            ("plan", self.cells, lambda: plan.text(plan.plan(grid))),
            (_RUN, 1, lambda: self.start(["-m", *single, "seed=0"])),
            (_RUN, self.cells, lambda: self.start(["-m", *grid])),
            (_EACH, self.cells, lambda: self._start_all(alone)),
            (_AGAIN, 1, lambda: self.start(["-m", *single, "seed=0"])),
            (_AGAIN, self.cells, lambda: self.start(["-m", *grid])),
            (f"{_EACH}, all done", self.cells, lambda: self._start_all(alone)),
            ("status", self.cells, lambda: status.text(status.look_around([self.folder / "one"]).cells)),
            ("aggregate", self.cells, lambda: self.aggregate([self.folder / "one"], self.folder / "summary")),
        ]
        return {(what, n): _seconds(run) for what, n, run in todo}

    def _start_all(self, lines: Sequence[Sequence[str]]) -> None:
        for line in lines:
            self.start(line)


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def format_sweep(rows: Sequence[SweepRow]) -> str:
    """The rows as a table in plain text."""
    title = ("", "cells", "seconds", "ms a cell")
    lines = [(row.what, str(row.cells), str(row.seconds), str(row.per_cell.times(1e3))) for row in rows]
    notes = (
        "seconds: median (quartiles); a further cell: what each cell beyond the first adds to its process",
        "plan, status and aggregate: without the start of the process",
    )
    return "\n".join([aligned([title, *lines]), *notes])
