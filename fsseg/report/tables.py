"""From cells to tables: one table per data set and protocol, rows method x backbone x variant, columns folds and mean.

`fsseg.report.aggregate` calls `build`. Cells with different scoring rules or evaluation images are never averaged
together, and a mean over folds exists only if all folds do. Only `Table.as_text` rounds numbers, to one decimal; CSV
and JSON keep all digits.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from fsseg.cell.key import CellKey
from fsseg.cell.models import State
from fsseg.cell.record import Problem, RunDirectory
from fsseg.cell.variant import is_shortened, labels
from fsseg.config.constraints import BEST
from fsseg.config.history import completed
from fsseg.config.tasks import BASE_LEARNERS
from fsseg.report.collect import CellResult, Collection, MadeWith, by_list
from fsseg.report.differences import Differences, differences, in_words
from fsseg.report.formats import MISSING, Number, TextTable
from fsseg.report.intervals import Episodes
from fsseg.report.pairs import RowComparison, notes_on, paired
from fsseg.report.paper import MEAN, WITHOUT_INTERVAL, Published, comparable, other_data
from fsseg.report.published import as_printed, figures_beside, label_of, note_of_unlike
from fsseg.report.published import notes_on as notes_on_published
from fsseg.report.replication import OLDER_PROTOCOL
from fsseg.report.statistics import Interval, mean, sample_std

_BY_FILE = ("seeds", "num_episodes", "query_order", "episodes_list")
# Fields of a result's protocol that `protocol.episodes_file`, if given, replaces.
_SHOWN = 3  # of many places in one note


@dataclass(frozen=True)
class Entry:
    """One number of a table, in percent.

    Attributes:
        miou: mean over training seeds (for the column MEAN: of the means of all folds).
        std: sample standard deviation over training seeds; None with fewer than two.
        eval_std: standard deviation over evaluation seeds, averaged over training seeds; None if not recorded.
        seeds: the training seeds in it.
        partial: it lacks a novel class; such a number is not compared with a published one.
        paper: the published figure, if there is one to compare with.
        interval: of `miou`, over the query images and training seeds; None until `with_intervals` finds one.
    """

    miou: float
    std: float | None = None
    eval_std: float | None = None
    fb_iou: float | None = None
    seeds: tuple[int, ...] = ()
    partial: bool = False
    paper: float | None = None
    interval: Interval | None = None

    @property
    def difference(self) -> float | None:
        return None if self.paper is None else self.miou - self.paper

    def __str__(self) -> str:
        spread = "" if self.std is None else f" ±{self.std:.1f}"
        return f"{self.miou:.1f}{spread}{' (*)' if self.partial else ''}"


class RowKey(NamedTuple):
    """What distinguishes the rows of a table; `data_train` is the fingerprint of the training split.

    `selected`: the cells began from a checkpoint that was chosen (`CellResult.selected`).
    """

    method: str
    backbone: str
    variant: str
    name: str
    data_train: str | None
    selected: str = ""

    @classmethod
    def of(cls, cell: CellResult) -> RowKey:
        k = cell.key
        return cls(k.method, k.backbone, k.variant, k.name, cell.result.dataset.fingerprint_train, cell.selected)


@dataclass
class Row:
    """One method on one backbone in one variant; `entries` maps (shot, fold or MEAN) to a number, if there is one.

    `counted` are the cells that its numbers are made of. `best` has the same of other checkpoints of these cells, by
    kind (`train.select`): a column is there if all its cells have that kind, and `entries` takes nothing from it.
    `published` holds the row, by number of shots, to which differences are told: the paper's of ABCB, or one of
    `reported`, which are all published rows of another method.
    """

    key: RowKey
    entries: dict[tuple[int, int], Entry] = field(default_factory=dict)
    published: dict[int, Published] = field(default_factory=dict)
    reported: dict[int, list[Published]] = field(default_factory=dict)
    label: str = ""
    counted: list[CellResult] = field(default_factory=list)
    best: dict[str, dict[tuple[int, int], Entry]] = field(default_factory=dict)

    def paper(self, shot: int, fold: int) -> float | None:
        """The published figure of a column; None if our number is partial, as the two are then not comparable."""
        source = self.published.get(shot)
        return None if source is None else self.beside(source, shot, fold)

    def beside(self, source: Published, shot: int, fold: int) -> float | None:
        """The same of any published row."""
        entry = self.entries.get((shot, fold))
        return None if entry is not None and entry.partial else source.at(fold)


class TableKey(NamedTuple):
    """What two cells in one table have in common; a field is None if it is unknown. `num_folds` are those of the data
    set (`CellResult.folds`)."""

    dataset: str
    protocol_id: str | None
    data_val: str | None
    num_folds: int


@dataclass
class Table:
    """Rows with the same scoring: data set, every field of the protocol, evaluation images.

    `differs` are rules in which it differs from other tables, `differences` settings in which its rows differ. `pairs`
    are its methods against each other. `unstarted` are those of its missing cells that have no directory.
    `twice` names the results that lie in two directories, as after a copy of the folder.
    """

    key: TableKey
    protocol: dict[str, Any]
    shots: list[int]
    rows: list[Row] = field(default_factory=list)
    differs: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    differences: Differences = field(default_factory=dict)
    pairs: list[RowComparison] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)
    unstarted: list[CellKey] = field(default_factory=list)
    twice: list[tuple[str, Path, Path]] = field(default_factory=list)

    @property
    def folds(self) -> range:
        return range(self.key.num_folds)

    def named(self, label: str, shot: int) -> str:
        """A row's label, with the number of shots where the table has several."""
        return f"{label}, {shot}-shot" if len(self.shots) > 1 else label

    @property
    def columns(self) -> tuple[int, ...]:
        """Its folds, and their mean."""
        return (*self.folds, MEAN)

    @property
    def title(self) -> str:
        if not self.protocol:
            return f"{self.key.dataset} (protocol unknown: no result yet)"
        rule = f"protocol {self.protocol.get('name', 'unnamed')}"
        episodes, seeds = self.protocol.get("num_episodes"), self.protocol.get("seeds")
        if isinstance(episodes, int) and isinstance(seeds, list):
            plural = "" if len(seeds) == 1 else "s"
            rule += f", {episodes} episodes x {len(seeds)} evaluation seed{plural}"
        shown = {k: v for k, v in self.differs.items() if k not in ("name", "num_episodes")}
        rule += "".join(f", {k}={v}" for k, v in shown.items())
        return f"{self.key.dataset} (mIoU in percent; {rule})"

    def as_text(self) -> TextTable:
        """For each row its numbers; below them, if there are any, the published ones with the differences, and those of
        other checkpoints."""
        columns, marks = [(shot, fold) for shot in self.shots for fold in self.columns], self._marks()
        names = ["mean" if fold == MEAN else f"fold {fold}" for _, fold in columns]
        text = TextTable(self.title, ["", *names], groups=[f"{shot}-shot" for shot in self.shots])
        text.scores = range(1, len(columns) + 1)
        for row in self.rows:
            entries = [row.entries.get(column) for column in columns]
            text.rows.append([row.label, *map(_number, entries)])
            if (source := next(iter(row.published.values()), None)) is not None and not row.reported:
                figures = [row.paper(*column) for column in columns]
                label = f"  paper ({source.method}, {source.venue})"
                text.published.add(len(text.rows))
                text.rows.append([label, *("" if f is None else f"{f:.1f}" for f in figures)])
                text.rows.append(["  difference", *(_signed(e.difference if e else None) for e in entries)])
            for line in _reported(row, columns, marks):
                text.published |= {len(text.rows)} if line[0].startswith(_PUBLISHED) else set()
                text.rows.append(line)
            for kind, of_kind in row.best.items():
                figures_of_kind = (of_kind.get(column) for column in columns)
                text.rows.append([f"  {BEST[kind]}", *("" if e is None else str(e) for e in figures_of_kind)])
        found = [entry for row in self.rows for entry in row.entries.values()]
        if any(entry.partial for entry in found):
            text.notes.append(
                "(*) partial: a novel class of the fold could not be evaluated; not comparable with a published figure"
            )
        if any(entry.std is not None for entry in found):
            text.notes.append("±: sample standard deviation over training seeds")
        if any(entry.difference is not None for entry in found):
            text.notes.append(WITHOUT_INTERVAL)
        text.notes += [note for kind, note in _OF_BEST.items() if any(kind in row.best for row in self.rows)]
        reported = [figures for row in self.rows for of_shot in row.reported.values() for figures in of_shot]
        text.notes += notes_on_published(marks, reported, [row.key.method for row in self.rows if row.reported])
        text.notes += [*map(str, self.pairs), *notes_on(self.pairs), *in_words(self.differences)]
        text.notes += self.notes
        return text

    def _marks(self) -> dict[str, int]:
        """A number for each source of published figures of other methods than ABCB."""
        found = dict.fromkeys(
            label_of(figures) for row in self.rows for of_shot in row.reported.values() for figures in of_shot
        )
        return {label: number for number, label in enumerate(found, 1)}


_PUBLISHED = "  published ("


def _number(entry: Entry | None) -> str:
    return MISSING if entry is None else Number(entry, entry.miou, entry.std, entry.interval)


def _reported(row: Row, columns: Sequence[tuple[int, int]], marks: Mapping[str, int]) -> list[list[str]]:
    """Lines with the published rows of a method, one for each source, and with the difference where there is one."""
    lines = []
    for label in dict.fromkeys(label_of(f) for of_shot in row.reported.values() for f in of_shot):
        of_source = {s: f for s, of_shot in row.reported.items() for f in of_shot if label_of(f) == label}
        shown = ["" if (f := of_source.get(s)) is None else as_printed(row.beside(f, s, fold)) for s, fold in columns]
        lines.append([f"{_PUBLISHED}{marks[label]})", *shown])
        if any(row.published.get(shot) is figures for shot, figures in of_source.items()):
            entries = (row.entries.get(c) if row.published.get(c[0]) is of_source.get(c[0]) else None for c in columns)
            lines.append(["  difference", *(_signed(e.difference if e else None) for e in entries)])
    return lines


_OF_BEST = {
    "best_novel": "best on novel classes: of the checkpoints of a training, the one that scored best on the novel test "
    "classes (train.select), which is optimistic. It is not the result: that is the last one, in the rows above",
    "best_base": "best on base classes: of the checkpoints of a training, the one that scored best on images of base "
    "classes that were held back (train.select). The result is the last one, in the rows above",
}


def _signed(value: float | None) -> str:
    text = "" if value is None else f"{value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


@dataclass
class Report:
    """The tables, and everything that is in none of them.

    `base_learners` are cells whose score is of base classes: they are in no table, no mean, and not among `cells`.
    `trials`, those of searches, likewise.
    `episodes` is what was read of the cells for the tables, so that nobody reads it again.
    """

    tables: list[Table]
    problems: list[Problem]
    cells: list[CellResult]
    base_learners: list[CellResult] = field(default_factory=list)
    trials: list[CellResult] = field(default_factory=list)
    episodes: Episodes = field(default_factory=Episodes)


MOST_WITH_INTERVALS = 400
"""Cells of a report, more than which take minutes to resample."""


def with_intervals(report: Report) -> None:
    """Give the numbers of a report their intervals, where the episodes of all cells of a row are recorded.

    Nothing is done for a report of more than `MOST_WITH_INTERVALS` cells.
    """
    if sum(len(row.counted) for table in report.tables for row in table.rows) > MOST_WITH_INTERVALS:
        return
    for row in (row for table in report.tables for row in table.rows):
        for shot in sorted({shot for shot, _ in row.entries}):
            score = report.episodes.score([cell for cell in row.counted if cell.key.shot == shot and cell.scored])
            found = {MEAN: score.interval} | {part.fold: part.interval for part in score.folds}
            for fold, interval in found.items() if not score.reason else ():
                if (entry := row.entries.get((shot, fold))) is not None:
                    row.entries[shot, fold] = replace(entry, interval=interval)


def build(collection: Collection) -> Report:
    """Sort cells into tables and average what may be averaged."""
    problems = list(collection.problems)
    base = [cell for cell in collection.cells if cell.key.method in BASE_LEARNERS]
    trials = [cell for cell in collection.cells if cell.is_trial]
    few_shot = [cell for cell in collection.cells if cell.key.method not in BASE_LEARNERS and not cell.is_trial]
    scored: dict[TableKey, list[CellResult]] = defaultdict(list)
    pending: list[CellResult] = []
    for cell in few_shot:
        if cell.key.fold >= cell.folds:
            what = f"is fold {cell.key.fold}; its data set has folds 0 to {cell.folds - 1}"
            problems.append(Problem(cell.path, what))
        elif cell.scored:
            scored[TableKey(cell.key.dataset, cell.protocol_id, cell.data_val, cell.folds)].append(cell)
        else:
            pending.append(cell)
    groups, homes = _apart_by_list(scored), _Homes()
    for key, cells in groups.items():
        for cell in cells:
            homes.add(key, cell)
    for cell in pending:
        key = homes.find(cell)
        groups[key].append(cell)
        homes.add(key, cell)
    order, episodes = sorted(groups, key=lambda key: tuple(map(str, key))), Episodes()
    tables = [_table(key, groups[key], episodes) for key in order]
    _mark_differences(tables)
    _name_older_figures(tables)
    return Report(tables, problems, few_shot, base, trials, episodes)


def _apart_by_list(groups: dict[TableKey, list[CellResult]]) -> defaultdict[TableKey, list[CellResult]]:
    """If cells of one fold were evaluated on different lists of episodes, a table for each list.

    It is unknown which lists of different folds belong together, so these tables have no mean over folds.
    """
    apart: defaultdict[TableKey, list[CellResult]] = defaultdict(list)
    for key, cells in groups.items():
        for mark, alike in by_list(cells).items():
            apart[key if mark is None else key._replace(protocol_id=f"{key.protocol_id}-{mark}")] += alike
    return apart


class _Homes:
    """Which table a cell without score belongs to: that of the finished cells of its row, or else of its protocol.

    Of several the first counts. Every table stands here under all marks by which a cell may look for it.
    """

    def __init__(self) -> None:
        self._keys: dict[TableKey, int] = {}  # and when it first came up
        self._rules: dict[TableKey, Any] = {}  # of its first cell
        self._first: dict[tuple[Any, ...], TableKey] = {}
        self._rows: set[tuple[Any, ...]] = set()

    def add(self, key: TableKey, cell: CellResult) -> None:
        """Note that a table holds a cell."""
        row = RowKey.of(cell)[:4]
        if (key, row) in self._rows:
            return
        self._rows.add((key, row))
        self._keys.setdefault(key, len(self._keys))
        rules = self._rules.setdefault(key, _rules_on_a_file(cell))
        for mark in (None, ("id", key.protocol_id), rules):
            for place in ((key.dataset, key.num_folds, mark), (key.dataset, key.num_folds, mark, row)):
                first = self._first.setdefault(place, key)
                if self._keys[key] < self._keys[first]:
                    self._first[place] = key

    def find(self, cell: CellResult) -> TableKey:
        """The table of a cell without score; a new one if none fits."""
        id_ = cell.protocol_id
        marks = [None] if id_ is None else [("id", id_), *filter(None, [_rules_on_a_file(cell)])]
        for row in ((RowKey.of(cell)[:4],), ()):
            places = ((cell.key.dataset, cell.folds, mark, *row) for mark in marks)
            found = [key for place in places if (key := self._first.get(place)) is not None]
            if found:
                return min(found, key=self._keys.__getitem__)
        return TableKey(cell.key.dataset, id_, None, cell.folds)


def _rules_on_a_file(cell: CellResult) -> Any:
    """The rules of a cell that is evaluated on a file of episodes, whichever file, to compare; None for any other."""
    protocol = cell.result.protocol
    if protocol.get("episodes_file") is None:
        return None
    return _hashable({k: v for k, v in completed(protocol).items() if k not in ("episodes_file", *_BY_FILE)})


def _undrawn(cell: CellResult) -> str | None:
    """Both figures of a cell in which an evaluation seed drew no episode of a class, in words; None of any other."""
    metrics = cell.result.metrics
    if metrics is None or (both := metrics.miou_undrawn) is None:
        return None
    figures = f"mIoU {both.left_out:.1f} if left out, {both.zero:.1f} if counted 0"
    return f"classes without an episode in some seed ({', '.join(both.classes)}): {figures}"


def _hashable(value: Any) -> Any:
    """A value of JSON that can be a key of a dictionary; equal where the values are."""
    if isinstance(value, dict):
        return frozenset((k, _hashable(v)) for k, v in value.items())
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def _table(key: TableKey, cells: list[CellResult], episodes: Episodes) -> Table:
    """A table of cells, those with a score first."""
    table = Table(key, cells[0].result.protocol, sorted({c.key.shot for c in cells}))
    done: dict[RowKey, list[CellResult]] = defaultdict(list)
    pending: dict[RowKey, list[CellResult]] = defaultdict(list)
    beside: dict[tuple[Any, ...], RowKey] = {}
    for cell in cells:
        row_key = RowKey.of(cell)
        if cell.scored:
            beside.setdefault(row_key[:4], row_key)
            done[row_key].append(cell)
        else:
            pending[beside.get(row_key[:4], row_key)].append(cell)
    table.rows = [Row(row_key) for row_key in sorted(done.keys() | pending.keys(), key=lambda k: tuple(map(str, k)))]
    shortened = {c.key.variant: RunDirectory(c.path) for c in cells if is_shortened(c.key.variant)}
    apart: dict[str, list[str]] = {}
    if shared := _label(table.rows, {variant: run.recorded_overrides() for variant, run in shortened.items()}):
        table.notes.append(f"all variants share: {shared}")
    for row in table.rows:
        by_shot: dict[int, list[CellResult]] = defaultdict(list)
        for cell in done[row.key]:
            by_shot[cell.key.shot].append(cell)
        for shot, of_shot in sorted(by_shot.items()):
            reported, settings = figures_beside(of_shot, table.protocol.get("name"))
            row.reported |= {shot: reported} if reported else {}
            apart |= {f"{row.label} {shot}-shot": settings} if settings else {}
            _fill(row, shot, of_shot, table)
        _list_missing(row, done[row.key], pending[row.key], table)
        table.notes += mixed(row)
    table.notes += [*note_of_unlike(apart), *edited(table.rows)]
    counted = {row.label: row.counted for row in table.rows if row.counted}
    table.pairs, table.differences = paired(counted, episodes), differences(counted)
    if unlike := table.protocol.get("unlike"):
        table.notes.append(f"protocol {table.protocol['name']} is not all that its code does: {'; '.join(unlike)}")
    if table.twice:
        each = [f"{where} ({one} and {other})" for where, one, other in table.twice]
        more = f", and {len(each) - _SHOWN} more" if len(each) > _SHOWN else ""
        table.notes.append(f"{len(each)} results lie twice and count once: {', '.join(each[:_SHOWN])}{more}")
    return table


def _label(rows: list[Row], overrides: Mapping[str, Sequence[str] | None]) -> str:
    """Name the rows: method and backbone, and whatever else distinguishes the rows of this table.

    Args:
        overrides: of variants whose names do not hold all settings.

    Returns:
        What the names of all variants have in common, which the labels leave out.
    """
    several_names = len({row.key.name for row in rows}) > 1
    networks = {(row.key.method, row.key.backbone) for row in rows}
    told, shared = labels({row.key.variant: overrides.get(row.key.variant) for row in rows}, len(networks))
    for row in rows:
        key = row.key
        row.label = f"{key.method} {key.backbone}"
        if told[key.variant]:
            row.label += f" [{told[key.variant]}]"
        if several_names:
            row.label += f" ({key.name})"
        if key.selected:
            row.label += f" ({BEST.get(key.selected, key.selected)})"
    taken = Counter(row.label for row in rows)
    for row in rows:
        if taken[row.label] > 1:
            taken[row.label] -= 1
            row.label += f" (training data {(row.key.data_train or 'unknown')[:8]})"
            taken[row.label] += 1
    return shared


def _fill(row: Row, shot: int, cells: list[CellResult], table: Table) -> None:
    """The entries of a row for a number of shots: its folds, and their mean if all are there."""
    notes = table.notes
    images = [n for c in cells if (n := c.result.dataset.num_val_images) is not None]
    source = comparable(cells[0].key, min(images, default=None))
    where = f"{row.label} {shot}-shot"
    if source is None:
        source = next((figures for figures in row.reported.get(shot, []) if figures.compared), None)
    elif other := next(filter(None, (other_data(c.key, c.identity or {}) for c in cells)), None):
        notes.append(f"{where}: no figure of the paper beside it; unlike the paper, it has {other}")
        source = None
    by_fold = {
        fold: _one_per_seed([c for c in cells if c.key.fold == fold], f"{where} fold {fold}", table)
        for fold in table.folds
    }
    found = {fold: e for fold, of_fold in by_fold.items() if (e := _entry(list(of_fold.values())))}
    row.counted += [cell for of_fold in by_fold.values() for cell in of_fold.values()]
    if source is not None and any(not e.partial for e in found.values()):
        row.published[shot] = source
        if source.mean_is_odd:
            notes.append(
                f"{where}: the paper prints a mean of {source.mean}; its folds give {source.mean_of_folds:.1f}"
            )
    if len(found) == len(table.folds):
        found[MEAN] = _mean(found, by_fold)
        if len({e.seeds for f, e in found.items() if f != MEAN}) > 1:
            counts = ", ".join(f"fold {fold}: {len(found[fold].seeds)}" for fold in table.folds)
            notes.append(f"{where}: folds hold different numbers of training seeds ({counts})")
    elif found:
        so_far = mean([e.miou for e in found.values()])
        notes.append(
            f"{where}: {len(found)} of {len(table.folds)} folds done, no mean yet; fold{'s' * (len(found) > 1)} "
            f"{', '.join(map(str, found))} alone: {so_far:.1f}"
        )
    for kind in BEST:
        beside = {fold: e for fold, of_fold in by_fold.items() if (e := _entry(list(of_fold.values()), kind))}
        if len(beside) == len(table.folds):
            beside[MEAN] = _mean(beside, by_fold, kind)
        if beside:
            row.best.setdefault(kind, {}).update({(shot, fold): entry for fold, entry in beside.items()})
    for fold, entry in found.items():
        comparison = None if source is None or entry.partial else source.at(fold)
        row.entries[shot, fold] = replace(entry, paper=comparison)
    for fold, of_fold in by_fold.items():
        notes += [
            f"{where} fold {fold} seed {seed}: {both}"
            for seed, c in of_fold.items()
            if (both := _undrawn(c)) is not None
        ]
        if lacking := sorted({n for c in of_fold.values() for n in c.result.missing_classes}):
            notes.append(f"* {where} fold {fold}: partial, without {', '.join(lacking)}")


def mixed(row: Row) -> list[str]:
    """What the numbers of a row were made with, where that is not the same for all; a note for each kind.

    Of what most cells have only the number of cells is told, of the others which they are. What was not recorded, as
    by the older workflow, counts as no difference.
    """
    kinds: dict[str, Callable[[MadeWith], str | None]] = {
        "torch": lambda made: made.torch,
        "fsseg": lambda made: made.code,
        "device": lambda made: made.device,
    }
    notes = []
    for kind, told in kinds.items():
        found: dict[str, list[CellResult]] = defaultdict(list)
        for cell in row.counted:
            if (value := told(cell.made_with)) is not None:
                found[value].append(cell)
        if len(found) > 1:
            (most, cells), *others = sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))
            rest = "".join(f"; {value}: {_places(of_value)}" for value, of_value in others)
            notes.append(f"{row.label}: not all with the same {kind}. {most}: {_cells(len(cells))}{rest}")
    return notes


def edited(rows: list[Row]) -> list[str]:
    """The note that names the rows with numbers of code that is in no commit."""
    found = []
    for row in rows:
        if cells := [cell for cell in row.counted if cell.made_with.edited]:
            which = "all of it" if len(cells) == len(row.counted) else _places(cells)
            found.append(f"{row.label} ({which})")
    return [f"made while fsseg had changes that are in no commit: {', '.join(found)}"] if found else []


def _cells(count: int) -> str:
    return f"{count} cell{'s' * (count != 1)}"


def _places(cells: list[CellResult]) -> str:
    """Where in its row each of some cells stands; of many the first ones and how many more."""
    places = [f"{c.key.shot}-shot fold {c.key.fold} seed {c.key.seed}" for c in cells]
    more = f" and {len(places) - 2 * _SHOWN} more" if len(places) > 2 * _SHOWN else ""
    return ", ".join(places[: 2 * _SHOWN]) + more


def _one_per_seed(cells: list[CellResult], where: str, table: Table) -> dict[int, CellResult]:
    """The cells of one table entry by training seed; empty if they contradict each other, with a note."""
    by_seed: dict[int, CellResult] = {}
    notes = table.notes
    for cell in cells:
        seed = cell.key.seed
        first = by_seed.setdefault(seed, cell)
        if first is cell:
            continue
        if (first.result.fingerprint, first.result.miou) != (cell.result.fingerprint, cell.result.miou):
            notes.append(f"{where}: left out, as seed {seed} has two results: {first.path} and {cell.path}")
            return {}
        table.twice.append((f"{where} seed {seed}", first.path, cell.path))
    if len({c.episodes for c in by_seed.values()}) > 1:
        notes.append(f"{where}: left out, as its training seeds were evaluated on different episodes")
        return {}
    return by_seed


def _entry(cells: list[CellResult], kind: str = "") -> Entry | None:
    """Of cells that differ in the training seed; None if there is none, or one without a checkpoint of this kind."""
    metrics = [m for c in cells if (m := c.metrics(kind))]
    if not metrics or len(metrics) < len(cells):
        return None
    values = [m.miou for m in metrics]
    spread = [m.miou_std for m in metrics if m.miou_std is not None]
    foreground = [m.fb_iou for m in metrics if m.fb_iou is not None]
    return Entry(
        mean(values),
        sample_std(values),
        eval_std=mean(spread) if spread else None,
        fb_iou=mean(foreground) if len(foreground) == len(cells) else None,
        seeds=tuple(sorted(c.key.seed for c in cells)),
        partial=any(c.partial for c in cells),
    )


def _mean(entries: dict[int, Entry], by_fold: dict[int, dict[int, CellResult]], kind: str = "") -> Entry:
    """The mean over all folds; its deviation is over the seeds that every fold has."""
    complete = sorted(set.intersection(*(set(cells) for cells in by_fold.values())))
    of_seed = ([of_fold[seed].metrics(kind) for of_fold in by_fold.values()] for seed in complete)
    per_seed = [mean([m.miou if m else 0.0 for m in metrics]) for metrics in of_seed]
    foreground = [e.fb_iou for e in entries.values() if e.fb_iou is not None]
    return Entry(
        mean([e.miou for e in entries.values()]),
        sample_std(per_seed),
        fb_iou=mean(foreground) if len(foreground) == len(by_fold) else None,
        seeds=tuple(complete),
        partial=any(e.partial for e in entries.values()),
    )


def _list_missing(row: Row, done: list[CellResult], pending: list[CellResult], table: Table) -> None:
    """List each cell of the row's folds x seeds that has no score, with the reason from its directory."""
    if table.protocol == OLDER_PROTOCOL and not pending:
        return  # nobody starts a cell of the older workflow
    finished = {(c.key.shot, c.key.fold, c.key.seed) for c in done}
    known = {(c.key.shot, c.key.fold, c.key.seed): c for c in sorted(pending, key=lambda c: c.state == State.RUNNING)}
    for shot in sorted({shot for shot, _, _ in finished | known.keys()}):
        seeds = sorted({seed for s, _, seed in finished | known.keys() if s == shot})
        for place in ((shot, fold, seed) for fold in table.folds for seed in seeds):
            if place not in finished:
                label = "{} {} {}-shot fold {} seed {}".format(table.key.dataset, row.label, *place)
                cell = known.get(place)
                table.missing.append((label, f"{cell.reason} ({cell.path})" if cell else "not started"))
                if cell is None:
                    k = row.key
                    table.unstarted.append(CellKey(k.name, table.key.dataset, k.method, k.backbone, *place, k.variant))


def _mark_differences(tables: list[Table]) -> None:
    """Name, in the titles of a data set's several tables, the rules in which they differ."""
    of_dataset: dict[str, list[Table]] = defaultdict(list)
    for table in tables:
        if table.protocol and table.protocol != OLDER_PROTOCOL:  # whose title says it all
            of_dataset[table.key.dataset].append(table)
    for alike in of_dataset.values():
        first = alike[0]
        rules = [completed(table.protocol) for table in alike]
        # Where all tables equal the first, no two differ; otherwise each has another one that it differs from.
        differing = {
            rule
            for rule in {rule for found in rules for rule in found} - {"episodes_file"}
            if any(found.get(rule) != rules[0].get(rule) for found in rules)
        }
        of_data = any(table.key.data_val != first.key.data_val for table in alike)
        for table in alike:
            found = {rule: _shown(table, rule) for rule in differing}
            if of_data:
                found["evaluation data"] = (table.key.data_val or "unknown")[:8]
            table.differs = dict(sorted(found.items()))


def _name_older_figures(tables: list[Table]) -> None:
    """Name, under each row of new runs, the figures of the older workflow for the same key.

    They stand in a table of their own, since nobody recorded how they were scored: no mean is made of both.
    """
    older: dict[tuple[str, str, int], dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for table in tables:
        for row in table.rows if table.protocol == OLDER_PROTOCOL else ():
            for (shot, fold), entry in row.entries.items():
                older[table.key.dataset, row.key.backbone, shot][fold].add(f"{entry.miou:.1f}")
    for table in tables:
        for row in table.rows if table.protocol != OLDER_PROTOCOL else ():
            for shot in table.shots if (row.key.method, row.key.variant) == ("abcb", "default") else ():
                if figures := older.get((table.key.dataset, row.key.backbone, shot)):
                    each = ", ".join(f"fold {f}: {' or '.join(sorted(v))}" for f, v in figures.items() if f != MEAN)
                    table.notes.append(
                        f"{row.label} {shot}-shot: the older workflow has {each}; how these were scored is not "
                        "recorded, so they stand in a table of their own, and no mean is made of both"
                    )


def _shown(table: Table, rule: str) -> Any:
    """A rule of a table's protocol, for its title."""
    value = completed(table.protocol).get(rule, "not recorded")
    if rule == "episodes_list" and isinstance(value, dict):
        split = "-" in (table.key.protocol_id or "")
        return f"{value.get('protocol')}" + (f" {value.get('fingerprint')}" if split else "")
    return value
