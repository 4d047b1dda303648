"""What stands on the page that `fsseg report` writes, gathered from finished and unfinished runs.

`fsseg.cli.page` calls `contents`, and hands in what only `fsseg.sweep` can tell (`Standing`): how cells stand that are
not done, and the lines that run them and the `unstarted` ones. Tables, differences and pairs are those of
`fsseg aggregate`: the same objects.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from fsseg.cell.key import CellKey
from fsseg.cell.models import IN_HANDS, LOST, State
from fsseg.cell.record import Problem, Snapshot
from fsseg.report.collect import CellResult
from fsseg.report.experiments import experiment_tables
from fsseg.report.formats import TextTable
from fsseg.report.page import against, facts
from fsseg.report.page.curves import Strip, strips
from fsseg.report.page.figures import Budget, Embedded, Sheets, embedded, sheets_of
from fsseg.report.page.heat import heat_map
from fsseg.report.page.listing import Listing, of_text_table, plain
from fsseg.report.pairs import notes_on
from fsseg.report.tables import Report, Table

_MOST_RESAMPLED = 300
"""Cells whose records of episodes are read for intervals: some 30 ms each, and twice that for differences."""


@dataclass(frozen=True)
class Searched:
    """What a search for settings has found, as `fsseg search` tells it.

    Attributes:
        header, rows: of the table of trials, the best first.
        line: that runs the winner; empty before a trial has a score.
        pictures: files, each with what it shows.
    """

    name: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    line: str = ""
    pictures: Sequence[tuple[Path, str]] = ()


@dataclass(frozen=True)
class Standing:
    """How all cells stand, as `fsseg status` and `fsseg retry` know it.

    Attributes:
        lines: that run the cells which ended without a result, and those that nobody started.
        notes: cells for which no line was found, by the reason.
    """

    cells: Sequence[Snapshot]
    lines: Sequence[str] = ()
    notes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    problems: Sequence[Problem] = ()
    searches: Sequence[Searched] = ()


@dataclass
class SearchSection:
    """A search for settings: its trials, its pictures, and the line that runs the winner."""

    listing: Listing
    pictures: list[Embedded]
    line: str


@dataclass
class Experiment:
    """One of the paper's experiments: its table and its pictures."""

    listing: Listing
    pictures: list[Embedded]


@dataclass
class Contents:
    """All parts of the page, in its order; an empty one is left out.

    Attributes:
        counts: kind of state -> number of cells: done, running, failed, missing.
        not_started: cells that the tables miss, and of which there is no directory.
        sheets_left: runs whose sheets did not fit.
    """

    names: list[str]
    made: str
    counts: dict[str, int]
    run: list[tuple[str, str]]
    where: list[tuple[str, str]]
    results: list[Listing] = field(default_factory=list)
    experiments: list[Experiment] = field(default_factory=list)
    searches: list[SearchSection] = field(default_factory=list)
    against: list[Listing] = field(default_factory=list)
    heat: list[Listing] = field(default_factory=list)
    curves: list[Strip] = field(default_factory=list)
    sheets: list[Sheets] = field(default_factory=list)
    sheets_left: int = 0
    costs: list[Listing] = field(default_factory=list)
    differences: list[Listing] = field(default_factory=list)
    provenance: Listing | None = None
    unfinished: Listing | None = None
    not_started: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    no_lines: list[tuple[str, list[str]]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    cells: Listing | None = None

    @property
    def has_missing(self) -> bool:
        return bool(self.unfinished or self.not_started or self.lines or self.no_lines or self.problems)


def contents(
    report: Report, standing: Standing, folders: Sequence[str | Path], drawn: Mapping[Path, Path] | None = None
) -> Contents:
    """What the page shows of a report (`build(collect(folders, whole=True))`).

    Args:
        folders: as the user named them.
        drawn: run directory -> folder with sheets that were drawn for this page.
    """
    every = [*report.cells, *report.base_learners, *report.trials]
    page = Contents(
        names=sorted({c.key.name for c in every} | {s.key.name for s in standing.cells if s.key is not None}),
        made=f"{datetime.now().astimezone():%Y-%m-%d %H:%M}",
        counts=_counts(standing, report),
        run=facts.what_was_run(standing.cells),
        where=facts.when_and_where(every, [str(f) for f in folders]),
    )
    budget = Budget()
    page.experiments = _experiments(report, budget)
    page.searches = [_search(one, budget) for one in standing.searches]
    page.results = [_scores_of(table) for table in report.tables]
    page.against = _compared(report)
    page.heat = [listing for table in report.tables if (listing := heat_map(table)) is not None]
    page.curves = strips(_by_row(report))
    page.sheets, page.sheets_left = sheets_of(
        {row.label: row.counted for table in report.tables for row in table.rows if row.counted}, budget, drawn
    )
    page.costs = [listing for table in report.tables if (listing := facts.cost_and_time(table)) is not None]
    page.differences = [listing for table in report.tables if (listing := facts.what_differs(table)) is not None]
    page.provenance = facts.provenance(every)
    _what_is_missing(page, report, standing)
    page.cells = facts.every_cell(report, standing.cells)
    return page


def _counts(standing: Standing, report: Report) -> dict[str, int]:
    """The cells by kind of state; `missing` are those that wait to go on or for their turn, or that nobody started."""
    states = Counter(s.state for s in standing.cells)
    done, running, failed = (
        states[State.DONE],
        sum(states[s] for s in (*IN_HANDS, State.UNKNOWN)),
        sum(states[s] for s in LOST if s not in (State.STOPPED, State.PREEMPTED, State.PRUNED)),
    )
    missing = sum(states.values()) - done - running - failed + len(unstarted(report, standing.cells))
    return {"done": done, "running": running, "failed": failed, "missing": missing}


def unstarted(report: Report, cells: Sequence[Snapshot]) -> list[CellKey]:
    """The cells that tables miss, without those that a sweep has not come to: `cells` hold these by name."""
    known = {s.run.row_key(s.key) for s in cells if s.key is not None}
    return [key for table in report.tables for key in table.unstarted if key not in known]


def _experiments(report: Report, budget: Budget) -> list[Experiment]:
    """The tables of the paper's experiments, with their pictures."""
    found = []
    with tempfile.TemporaryDirectory(prefix="fsseg-report-") as folder:
        for _, table in experiment_tables(report.cells, Path(folder)):
            listing = of_text_table(table)
            words = f"{table.title}. {_in_words(table)}"
            drawn = (embedded(picture, f"Plot of {words}", budget, _caption(picture)) for picture in table.pictures)
            found.append(Experiment(listing, [picture for picture in drawn if picture is not None]))
    return found


def _search(found: Searched, budget: Budget) -> SearchSection:
    listing = plain(f"Trials of {found.name}", list(found.header), [list(row) for row in found.rows])
    listing.notes = list(found.notes)
    listing.filtered = len(found.rows) > 10
    drawn = (embedded(file, words, budget) for file, words in found.pictures)
    return SearchSection(listing, [picture for picture in drawn if picture is not None], found.line)


def _caption(picture: Path) -> str:
    return re.sub("[-_]+", " ", picture.stem)


def _compared(report: Report) -> list[Listing]:
    """Scores and differences with their intervals; a table of too many cells has its own differences alone."""
    episodes, left, found = report.episodes, _MOST_RESAMPLED, []
    for table in report.tables:
        cells = sum(len(row.counted) for row in table.rows)
        if cells > left:
            found += against.comparisons(table, None)
            continue
        left -= cells
        if (scores := against.scores(table, episodes)) is not None:
            found.append(scores)
        found += against.comparisons(table, episodes)
    return found


def _in_words(table: TextTable, most: int = 12) -> str:
    """The rows of a table as a sentence, for a picture that shows them."""
    rows = [
        f"{label.strip()}: {', '.join(f'{name} {cell}' for name, cell in zip(table.header[1:], cells) if cell)}"
        for label, *cells in table.rows
    ]
    return "; ".join(rows[:most]) + (f"; and {len(rows) - most} more rows in the table" if len(rows) > most else "")


def _scores_of(table: Table) -> Listing:
    """A table of scores without the notes that have a section of their own."""
    text, elsewhere = table.as_text(), {*map(str, table.pairs), *notes_on(table.pairs)}
    text.notes = [note for note in text.notes if note not in elsewhere and not note.startswith("differs: ")]
    return of_text_table(text)


def _by_row(report: Report) -> dict[str, list[CellResult]]:
    """Label of a row -> all its cells, those that are not done too; base learners have a row for each method."""
    labels = {row.key[:4]: row.label for table in report.tables for row in table.rows}
    several = len({table.key.dataset for table in report.tables}) > 1
    found: dict[str, list[CellResult]] = defaultdict(list)
    for cell in [*report.cells, *report.base_learners]:
        key = cell.key
        label = labels.get((key.method, key.backbone, key.variant, key.name), f"{key.method} {key.backbone}")
        found[f"{key.dataset}: {label}" if several else label].append(cell)
    return found


def _what_is_missing(page: Contents, report: Report, standing: Standing) -> None:
    page.unfinished = facts.unfinished(standing.cells)
    page.not_started = [str(key) for key in unstarted(report, standing.cells)]
    page.lines = list(standing.lines)
    page.no_lines = [(why, list(labels)) for why, labels in standing.notes.items()]
    page.problems = list(dict.fromkeys(str(p) for p in [*report.problems, *standing.problems]))
