"""From cells to tables: one table per data set and protocol, rows method x backbone x variant, columns folds and mean.

`tables.aggregate` and the report call `build`. Cells that were scored by different rules, or on other images, never
meet in an average, and a mean over folds exists only when all folds do.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from fsseg.report.cells import BY_FILE, by_list
from fsseg.report.collect import Cell, Collection, Problem
from fsseg.report.paper import FOLDS, Published, comparable

MEAN = -1
"""The fold number under which a row keeps the mean over its folds."""


@dataclass(frozen=True)
class Entry:
    """One number of a table, in percent.

    Attributes:
        miou: mean over training seeds (for the column MEAN: of the means of all folds).
        std: sample standard deviation over training seeds; None with fewer than two.
        eval_std: standard deviation over evaluation seeds, averaged over training seeds; None where not recorded.
        seeds: the training seeds in it.
        partial: a novel class is missing in it; such a number is not compared with a published one.
        paper: the published figure, if there is one to compare with.
    """

    miou: float
    std: float | None = None
    eval_std: float | None = None
    fb_iou: float | None = None
    seeds: tuple[int, ...] = ()
    partial: bool = False
    paper: float | None = None

    @property
    def difference(self) -> float | None:
        return None if self.paper is None else self.miou - self.paper


@dataclass
class Row:
    """One method on one backbone in one variant; `entries` maps (shot, fold or MEAN) to a number, if there is one."""

    name: str
    method: str
    backbone: str
    variant: str
    data_train: str | None = None
    entries: dict[tuple[int, int], Entry] = field(default_factory=dict)
    published: dict[int, Published] = field(default_factory=dict)
    label: str = ""

    def paper(self, shot: int, fold: int) -> float | None:
        """The published figure of a column; None where ours is partial, as the two must not stand side by side."""
        source = self.published.get(shot)
        entry = self.entries.get((shot, fold))
        if source is None or (entry is not None and entry.partial):
            return None
        return source.mean if fold == MEAN else source.folds[fold]


@dataclass
class Table:
    """All rows that were scored alike: same data set, same protocol in every field, same evaluation images."""

    dataset: str
    protocol: dict[str, Any] | None
    protocol_id: str | None
    data_val: str | None
    rows: list[Row] = field(default_factory=list)
    shots: list[int] = field(default_factory=list)
    differs: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)

    @property
    def title(self) -> str:
        if self.protocol is None:
            return f"{self.dataset} (protocol unknown: no result yet)"
        rule = f"protocol {self.protocol.get('name', 'unnamed')}"
        episodes, seeds = self.protocol.get("num_episodes"), self.protocol.get("seeds")
        if isinstance(episodes, int) and isinstance(seeds, list):
            plural = "" if len(seeds) == 1 else "s"
            rule += f", {episodes} episodes x {len(seeds)} evaluation seed{plural}"
        shown = {k: v for k, v in self.differs.items() if k not in ("name", "num_episodes")}
        rule += "".join(f", {k}={v}" for k, v in shown.items())
        return f"{self.dataset} (mIoU in percent; {rule})"


@dataclass
class Report:
    """The tables with everything that did not make it into them."""

    tables: list[Table]
    problems: list[Problem]
    cells: list[Cell]


def build(collection: Collection) -> Report:
    """Sort cells into tables and average what may be averaged."""
    problems = list(collection.problems)
    usable: list[Cell] = []
    for cell in collection.cells:
        if cell.fold in FOLDS:
            usable.append(cell)
        else:
            problems.append(Problem(cell.path, f"is fold {cell.fold}; the tables hold folds {FOLDS[0]} to {FOLDS[-1]}"))
    groups: dict[tuple[str, str | None, str | None], list[Cell]] = defaultdict(list)
    for cell in usable:
        if cell.done:
            groups[cell.dataset, cell.protocol_id, cell.data_val].append(cell)
    groups = _apart_by_list(groups)
    for cell in usable:
        if not cell.done:
            groups[_table_of(cell, groups)].append(cell)
    tables = [_table(key, cells) for key, cells in sorted(groups.items(), key=lambda item: tuple(map(str, item[0])))]
    _mark_differences(tables)
    return Report(tables, problems, collection.cells)


def _apart_by_list(
    groups: dict[tuple[str, str | None, str | None], list[Cell]],
) -> dict[tuple[str, str | None, str | None], list[Cell]]:
    """Where cells of one fold were evaluated on different lists of episodes, a table for each list.

    Which lists of different folds belong together nothing tells: such tables have no mean over folds.
    """
    apart: dict[tuple[str, str | None, str | None], list[Cell]] = defaultdict(list)
    for (dataset, protocol_id, data_val), cells in groups.items():
        for mark, alike in by_list(cells).items():
            apart[dataset, protocol_id if mark is None else f"{protocol_id}-{mark}", data_val] += alike
    return apart


def _table_of(
    cell: Cell, groups: dict[tuple[str, str | None, str | None], list[Cell]]
) -> tuple[str, str | None, str | None]:
    """Where a cell without result would stand: beside the finished cells of its row, else of its protocol."""
    same_data = [key for key in groups if key[0] == cell.dataset]
    fitting = [
        key
        for key in same_data
        if cell.protocol_id is None or key[1] == cell.protocol_id or any(_same_rules(c, cell) for c in groups[key])
    ]
    for key in fitting:
        if any(_row_key(c)[:4] == _row_key(cell)[:4] for c in groups[key]):
            return key
    return fitting[0] if fitting else (cell.dataset, cell.protocol_id, None)


def _same_rules(done: Cell, pending: Cell) -> bool:
    """Whether a cell yet to be evaluated on a file of episodes has the rules of one that has been."""
    own, other = (
        {k: v is not None if k == "episodes_file" else v for k, v in (c.protocol or {}).items() if k not in BY_FILE}
        for c in (done, pending)
    )
    return own == other and bool(own.get("episodes_file"))


def _row_key(cell: Cell) -> tuple[str, str, str, str, str | None]:
    return (cell.method, cell.backbone, cell.variant, cell.name, cell.data_train)


def _table(key: tuple[str, str | None, str | None], cells: list[Cell]) -> Table:
    protocol = next((c.protocol for c in cells if c.done), cells[0].protocol)
    table = Table(key[0], protocol, key[1], key[2], shots=sorted({c.shot for c in cells}))
    done: dict[tuple[str, str, str, str, str | None], list[Cell]] = defaultdict(list)
    for cell in cells:
        if cell.done:
            done[_row_key(cell)].append(cell)
    pending: dict[tuple[str, str, str, str, str | None], list[Cell]] = defaultdict(list)
    for cell in cells:
        if not cell.done:
            beside = next((k for k in done if k[:4] == _row_key(cell)[:4]), _row_key(cell))
            pending[beside].append(cell)
    for row_key in sorted(done.keys() | pending.keys(), key=lambda k: tuple(map(str, k))):
        method, backbone, variant, name, data_train = row_key
        table.rows.append(Row(name, method, backbone, variant, data_train))
    _label(table.rows)
    for row in table.rows:
        row_key = (row.method, row.backbone, row.variant, row.name, row.data_train)
        _fill(row, done[row_key], table)
        _list_missing(row, done[row_key], pending[row_key], table)
    return table


def _label(rows: list[Row]) -> None:
    """Method and backbone, and of the rest just what tells the rows of this table apart."""
    several_names = len({row.name for row in rows}) > 1
    for row in rows:
        row.label = f"{row.method} {row.backbone}"
        if row.variant != "default":
            row.label += f" [{row.variant}]"
        if several_names:
            row.label += f" ({row.name})"
    for row in rows:
        if sum(r.label == row.label for r in rows) > 1:
            row.label += f" (training data {(row.data_train or 'unknown')[:8]})"


def _fill(row: Row, cells: list[Cell], table: Table) -> None:
    for shot in sorted({c.shot for c in cells}):
        of_shot = [c for c in cells if c.shot == shot]
        images = {c.data.get("num_val_images") for c in of_shot}
        smallest = min((n for n in images if isinstance(n, int)), default=None)
        source = comparable(table.dataset, row.method, row.backbone, shot, row.variant, smallest)
        where = f"{row.label} {shot}-shot"
        by_fold: dict[int, dict[int, Cell]] = {}
        for fold in FOLDS:
            here = [c for c in of_shot if c.fold == fold]
            by_fold[fold] = _one_per_seed(here, f"{where} fold {fold}", table)
            entry = _entry(list(by_fold[fold].values()))
            if entry is not None:
                row.entries[shot, fold] = _with_paper(entry, source, fold)
        if source is not None and any(not e.partial for (s, _), e in row.entries.items() if s == shot):
            row.published[shot] = source
            if source.mean_is_odd:
                table.notes.append(
                    f"{where}: the paper prints a mean of {source.mean}; its folds give {source.mean_of_folds:.1f}"
                )
        _mean(row, shot, by_fold, source, where, table)
        for entry_fold in FOLDS:
            lacking = sorted({n for c in by_fold[entry_fold].values() for n in c.missing_classes})
            if lacking:
                table.notes.append(f"* {where} fold {entry_fold}: partial, without {', '.join(lacking)}")


def _one_per_seed(cells: list[Cell], where: str, table: Table) -> dict[int, Cell]:
    """The cells of one table entry by training seed; empty if they contradict each other, with a note saying so."""
    by_seed: dict[int, Cell] = {}
    for cell in cells:
        first = by_seed.setdefault(cell.seed, cell)
        if first is cell:
            continue
        if (first.fingerprint, first.miou) != (cell.fingerprint, cell.miou):
            table.notes.append(f"{where}: left out, as seed {cell.seed} has two results: {first.path} and {cell.path}")
            return {}
        table.notes.append(f"{where}: seed {cell.seed} lies twice, counted once: {first.path} and {cell.path}")
    if len({c.episodes for c in by_seed.values()}) > 1:
        table.notes.append(f"{where}: left out, as its training seeds were evaluated on different episodes")
        return {}
    return by_seed


def _entry(cells: list[Cell]) -> Entry | None:
    if not cells:
        return None
    values = [c.miou for c in cells if c.miou is not None]
    foreground = [c.fb_iou for c in cells if c.fb_iou is not None]
    spread = [c.miou_std for c in cells if c.miou_std is not None]
    return Entry(
        miou=_average(values),
        std=_sample_std(values),
        eval_std=_average(spread) if spread else None,
        fb_iou=_average(foreground) if len(foreground) == len(cells) else None,
        seeds=tuple(sorted(c.seed for c in cells)),
        partial=any(c.partial for c in cells),
    )


def _with_paper(entry: Entry, source: Published | None, fold: int) -> Entry:
    if source is None or entry.partial:
        return entry
    return Entry(**{**entry.__dict__, "paper": source.mean if fold == MEAN else source.folds[fold]})


def _mean(
    row: Row, shot: int, by_fold: dict[int, dict[int, Cell]], source: Published | None, where: str, table: Table
) -> None:
    """The mean over folds if all are there, else a note with the mean so far."""
    entries = {fold: row.entries[shot, fold] for fold in FOLDS if (shot, fold) in row.entries}
    if not entries:
        return
    if len(entries) < len(FOLDS):
        folds = ", ".join(map(str, entries))
        so_far = _average([e.miou for e in entries.values()])
        table.notes.append(
            f"{where}: {len(entries)} of {len(FOLDS)} folds done, no mean yet; fold{'s' * (len(entries) > 1)} {folds}"
            f" alone: {so_far:.1f}"
        )
        return
    complete = sorted(set.intersection(*(set(cells) for cells in by_fold.values())))
    per_seed = [_average([by_fold[fold][seed].miou or 0.0 for fold in FOLDS]) for seed in complete]
    foreground = [e.fb_iou for e in entries.values() if e.fb_iou is not None]
    entry = Entry(
        miou=_average([e.miou for e in entries.values()]),
        std=_sample_std(per_seed),
        fb_iou=_average(foreground) if len(foreground) == len(FOLDS) else None,
        seeds=tuple(complete),
        partial=any(e.partial for e in entries.values()),
    )
    row.entries[shot, MEAN] = _with_paper(entry, source, MEAN)
    if len({e.seeds for e in entries.values()}) > 1:
        counts = ", ".join(f"fold {fold}: {len(e.seeds)}" for fold, e in entries.items())
        table.notes.append(f"{where}: folds hold different numbers of training seeds ({counts})")


def _list_missing(row: Row, done: list[Cell], pending: list[Cell], table: Table) -> None:
    """Every cell of the row's rectangle of folds x seeds without a result, with what its directory says."""
    finished = {(c.shot, c.fold, c.seed) for c in done}
    known = {(c.shot, c.fold, c.seed): c for c in pending}
    for shot in sorted({c.shot for c in done + pending}):
        seeds = sorted({c.seed for c in done + pending if c.shot == shot})
        for fold in FOLDS:
            for seed in seeds:
                if (shot, fold, seed) in finished:
                    continue
                cell = known.get((shot, fold, seed))
                label = f"{table.dataset} {row.label} {shot}-shot fold {fold} seed {seed}"
                table.missing.append((label, f"{cell.reason} ({cell.path})" if cell else "not started"))


def _mark_differences(tables: list[Table]) -> None:
    """Name, in the titles of a data set's several tables, the rules in which they differ."""
    for table in tables:
        others = [t for t in tables if t.dataset == table.dataset and t is not table and t.protocol and table.protocol]
        for other in others:
            assert table.protocol is not None
            assert other.protocol is not None
            for key in table.protocol.keys() | other.protocol.keys():
                if key != "episodes_file" and table.protocol.get(key) != other.protocol.get(key):
                    value = table.protocol.get(key, "not recorded")
                    if key == "episodes_list" and isinstance(value, dict):
                        split = "-" in (table.protocol_id or "")
                        value = f"{value.get('protocol')}" + (f" {value.get('fingerprint')}" if split else "")
                    table.differs[key] = value
            if table.data_val != other.data_val:
                table.differs["evaluation data"] = (table.data_val or "unknown")[:8]
        table.differs = dict(sorted(table.differs.items()))


def _average(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def _sample_std(values: list[float]) -> float | None:
    if len(values) < 2:
        return None
    mean = _average(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
