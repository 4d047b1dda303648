"""The tables of the page beside the scores: what was run, cost and time, what differs, provenance, every cell.

`contents` calls them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from fsseg.cell.key import CellKey
from fsseg.cell.models import State
from fsseg.cell.record import Snapshot
from fsseg.process.words import count, several, size, span
from fsseg.report.collect import CellResult
from fsseg.report.formats import MISSING
from fsseg.report.page.listing import Datum, Line, Listing, about, plain
from fsseg.report.statistics import mean
from fsseg.report.tables import Report, Table

_UNKNOWN = Datum(MISSING)


def what_was_run(cells: Sequence[Snapshot]) -> list[tuple[str, str]]:
    """The axes of the grid, with their values."""
    keys = [s.key for s in cells if s.key is not None]
    axes: list[tuple[str, list[Any]]] = [
        ("experiments", [k.name for k in keys]),
        ("data sets", [k.dataset for k in keys]),
        ("methods", [k.method for k in keys]),
        ("backbones", [k.backbone for k in keys]),
        ("shots", [k.shot for k in keys]),
        ("folds", [k.fold for k in keys]),
        ("training seeds", [k.seed for k in keys]),
    ]
    found = [(name, several([str(v) for v in sorted(set(values))], 12)) for name, values in axes]
    variants = {k.variant for k in keys}
    return [*found, ("variants", "none" if variants <= {"default"} else str(len(variants)))]


def when_and_where(cells: Sequence[CellResult], folders: Sequence[str]) -> list[tuple[str, str]]:
    """Folders, machines, the days of the first and the last result, and the time that all took together."""
    ends = sorted(c.result.finished_at for c in cells if c.result.finished_at)
    hosts = Counter(host for c in cells if (host := _told(c.result.provenance.get("host"))))
    devices = Counter(device for c in cells if (device := _told(c.result.provenance.get("device"))))
    seconds = [s for c in cells if (s := _seconds(c)) is not None]
    facts = [("folders", several(list(folders), 6))]
    if ends:
        facts.append(("results from", ends[0][:16].replace("T", " ")))
        facts.append(("to", ends[-1][:16].replace("T", " ")))
    for name, found in (("machines", hosts), ("devices", devices)):
        if found:
            facts.append(
                (name, several([f"{what} ({count(number, 'cell')})" for what, number in found.most_common()], 4))
            )
    return [*facts, ("time", f"{span(sum(seconds))} of training and evaluation")] if seconds else facts


def cost_and_time(table: Table) -> Listing | None:
    """What the cells of each row took: means over its cells, sums, and the highest memory."""
    columns = ["", "cells", "parameters", "GMACs", "steps", "training", "evaluation", "all cells", "peak memory"]
    rows: list[list[str | Datum]] = []
    for row in table.rows:
        for shot in table.shots:
            if cells := [c for c in row.counted if c.key.shot == shot]:
                rows.append([table.named(row.label, shot), *_took(cells)])
    if not rows:
        return None
    listing = plain(f"Cost and time of {table.title.partition(' (')[0]}", columns, rows)
    listing.notes = [
        "training and evaluation: mean of a cell; all cells: both, of all cells of the row; GMACs: of one episode",
        "peak memory: the most of any cell, as its run recorded it",
    ]
    return listing


def _took(cells: Sequence[CellResult]) -> list[Datum]:
    parameters = [c.result.cost.parameters for c in cells if c.result.cost and c.result.cost.parameters is not None]
    gmacs = [c.result.cost.gmacs for c in cells if c.result.cost and c.result.cost.gmacs is not None]
    steps = [c.result.training.steps for c in cells if c.result.training]
    trained = [s for c in cells if (s := c.result.train_seconds) is not None]
    evaluated = [s for c in cells if (s := c.result.timing.evaluate_seconds) is not None]
    memory = [b for c in cells if (b := c.result.peak_memory_bytes) is not None]
    return [
        Datum(str(len(cells))),
        Datum(f"{max(parameters) / 1e6:.2f} M", max(parameters)) if parameters else _UNKNOWN,
        Datum(f"{max(gmacs):.2f}") if gmacs else _UNKNOWN,
        Datum(_least_and_most(steps), min(steps)) if steps else _UNKNOWN,
        _time(mean(trained)) if trained else _UNKNOWN,
        _time(mean(evaluated)) if evaluated else _UNKNOWN,
        _time(sum(trained) + sum(evaluated)) if trained or evaluated else _UNKNOWN,
        Datum(size(max(memory)), max(memory)) if memory else _UNKNOWN,
    ]


def what_differs(table: Table) -> Listing | None:
    """The settings in which the rows of a table differ (`fsseg.report.differences`)."""
    if not table.differences:
        return None
    labels = [row.label for row in table.rows if row.counted]
    rows: list[list[str | Datum]] = [
        [setting, *(of_rows.get(label, MISSING) for label in labels)] for setting, of_rows in table.differences.items()
    ]
    return plain(f"Settings in which the rows of {about(table)} differ", ["setting", *labels], rows, words=True)


def provenance(cells: Iterable[CellResult]) -> Listing | None:
    """What the results were made with: one line for all cells that agree."""
    found: dict[tuple[str, ...], list[CellResult]] = defaultdict(list)
    for cell in cells:
        if told := cell.result.provenance:
            packages = listed if isinstance(listed := told.get("packages"), dict) else {}
            code = (cell.made_with.code or MISSING) + " and changes in no commit" * cell.made_with.edited
            of_cell = [told.get("fsseg"), code, told.get("python"), packages.get("torch")]
            found[tuple(_told(v) or MISSING for v in (*of_cell, told.get("host"), told.get("device")))].append(cell)
    if not found:
        return None
    columns = ["fsseg", "code", "Python", "torch", "machine", "device", "cells"]
    rows: list[list[str | Datum]] = [[*key, str(len(of_key))] for key, of_key in found.items()]
    return plain("What the results were made with", columns, rows, words=True)


def unfinished(cells: Sequence[Snapshot]) -> Listing | None:
    """The cells without a result, and why."""
    rows: list[list[str | Datum]] = []
    for s in cells:
        if s.state != State.DONE:
            told = [s.reason] if s.reason else []
            told += ["{} step {} of {}".format(*s.progress)] if s.progress else []
            if s.state == State.RUNNING and s.status and s.status.eta_seconds is not None:
                told.append(f"{span(s.status.eta_seconds)} to go")
            told += [f"on {s.status.host}"] if s.status and s.status.host else []
            told += [f"log: {s.run.log_file}"] if s.state in (State.FAILED, State.BROKEN, State.STALE) else []
            rows.append([s.label, str(s.state), ", ".join(told) or MISSING])
    if not rows:
        return None
    listing = plain("Cells without a result", ["cell", "state", "why"], rows, words=True)
    listing.filtered = len(rows) > 10
    return listing


def every_cell(report: Report, states: Sequence[Snapshot]) -> Listing:
    """All cells, one a line; those that no result tells of come from `states`."""
    columns = [
        "data set", "method", "backbone", "variant", "shot", "fold", "seed", "state", "mIoU", "FB-IoU", "steps",
        "time", "experiment",
    ]  # fmt: skip
    lines = []
    seen = set()
    for cell in [*report.cells, *report.base_learners]:
        seen.add(cell.path.resolve())
        lines.append(_line(cell.key, cell.state, cell))
    lines += [_line(s.key, s.state) for s in states if s.key is not None and s.directory.resolve() not in seen]
    listing = Listing("All cells", columns, [lines])
    listing.filtered = True
    return listing


def _line(key: CellKey, state: State, cell: CellResult | None = None) -> Line:
    result = cell.result if cell is not None else None
    metrics = result.metrics if result else None
    seconds = _seconds(cell) if cell is not None else None
    return Line(key.dataset, [
        Datum(key.method), Datum(key.backbone), Datum(key.variant), Datum(str(key.shot)), Datum(str(key.fold)),
        Datum(str(key.seed)), Datum(str(state)),
        Datum(f"{metrics.miou:.2f}") if metrics else _UNKNOWN,
        Datum(f"{metrics.fb_iou:.2f}") if metrics and metrics.fb_iou is not None else _UNKNOWN,
        Datum(str(result.training.steps)) if result and result.training else _UNKNOWN,
        _time(seconds) if seconds is not None else _UNKNOWN,
        Datum(key.name),
    ])  # fmt: skip


def _seconds(cell: CellResult) -> float | None:
    """Training and evaluation together; None where neither is recorded."""
    parts = [s for s in (cell.result.train_seconds, cell.result.timing.evaluate_seconds) if s is not None]
    return sum(parts) if parts else None


def _time(seconds: float) -> Datum:
    return Datum(span(seconds), round(seconds, 1))


def _least_and_most(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low} to {high}"


def _told(value: Any) -> str:
    """A value of a provenance, which may hold anything, as a short text."""
    return str(value)[:200] if value not in (None, "", {}, []) else ""
