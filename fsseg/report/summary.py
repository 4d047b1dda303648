"""A report as the contents of its files: text, Markdown, LaTeX, CSV, JSON, and the older workflow's JSON.

`fsseg.report.aggregate` writes them.
"""

from __future__ import annotations

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from fsseg.config.constraints import BEST
from fsseg.errors import visible
from fsseg.process.words import count
from fsseg.report.collect import NOT_RECORDED, CellResult, MadeWith
from fsseg.report.formats import csv_cell, markdown_item
from fsseg.report.latex import PACKAGES
from fsseg.report.paper import FOLDS, MEAN
from fsseg.report.published import as_printed, label_of
from fsseg.report.replication import OLDER_PROTOCOL, Place, replication_json
from fsseg.report.tables import Entry, Report, Row, Table


def to_text(report: Report) -> str:
    """All tables, notes, missing cells and problems for a terminal or a log."""
    tables = [table.as_text().to_text() + "\n" for table in report.tables]
    return "".join([*tables, *_leftovers(report, "{}:\n", lambda item: f"  {visible(item)}")]).rstrip("\n") + "\n"


def to_markdown(report: Report) -> str:
    """The same as GitHub Markdown."""
    tables = [table.as_text().to_markdown() + "\n" for table in report.tables]
    return "".join([*tables, *_leftovers(report, "### {}\n\n", markdown_item)]).rstrip("\n") + "\n"


def to_latex(report: Report) -> str:
    """One booktabs table per data set and protocol."""
    return "\n".join([PACKAGES, *(t.as_text().to_latex() for t in report.tables)])


def _leftovers(report: Report, heading: str, shown: Callable[[object], str]) -> list[str]:
    """Base learners, missing cells and unreadable files, each with its score or its reason."""
    missing = [f"{label}: {reason}" for table in report.tables for label, reason in table.missing]
    base = [f"{cell.key}: {_of_base_classes(cell)}" for cell in report.base_learners]
    searched = Counter(cell.key.name for cell in report.trials)
    trials = [f"{name}: {count(number, 'cell')} (`fsseg search` lists them)" for name, number in searched.items()]
    blocks = []
    for what, items in (
        ("Base learners, in no table: what they score is of base classes", base),
        ("Searches, whose trials are in no table for the same reason", trials), ("Missing cells", missing),
        ("Could not be read", report.problems),
    ):  # fmt: skip
        if items:
            lines = "".join(f"{shown(item)}\n" for item in items)
            blocks.append(heading.format(f"{what} ({len(items)})") + lines)
    return ["\n".join(blocks)]


def _of_base_classes(cell: CellResult) -> str:
    return cell.result.score_line() if cell.result.base_classes is not None else cell.reason


def to_csv(report: Report) -> str:
    """One line per data set, protocol, row, shot and fold (or mean); an empty `miou` is a missing number.

    The mIoU of checkpoints beside the last one has columns of its own (`train.select`). `paper` is the published figure
    that `difference` is to; `published` names all there are of a method other than ABCB, each with its source.
    """
    columns = [
        "dataset", "protocol", "protocol_id", "data_val", "name", "method", "backbone", "variant", "shot", "fold",
        "miou", "std", "low", "high", "eval_std", "fb_iou", "seeds", "partial", "paper",
        "difference", "selected", *BEST, "published",
    ]  # fmt: skip
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for table in report.tables:
        same = table.key._asdict() | {"protocol": table.protocol.get("name", "")}
        for row in table.rows:
            names = {name: csv_cell(value) for name, value in (same | row.key._asdict()).items()}
            for shot in table.shots:
                for fold, entry in _by_column(row.entries, shot, table).items():
                    number = MEAN if fold == "mean" else int(fold)
                    figures: dict[str, Any] = {"paper": row.paper(shot, number)}
                    if entry is not None:
                        figures = _figures(entry) | {"seeds": csv_cell(" ".join(map(str, entry.seeds)))}
                    for kind, of_kind in row.best.items():
                        beside = of_kind.get((shot, number))
                        figures[kind] = None if beside is None else beside.miou
                    figures["published"] = csv_cell(_published(row, shot, number))
                    writer.writerow({**names, "shot": shot, "fold": fold, **figures})
    return out.getvalue()


def _published(row: Row, shot: int, fold: int) -> str:
    """Every published figure of a column, of a method other than ABCB, with its source."""
    found = ((label_of(f), row.beside(f, shot, fold)) for f in row.reported.get(shot, []))
    return " | ".join(f"{as_printed(value)} ({label})" for label, value in found if value is not None)


def to_json(report: Report) -> dict[str, Any]:
    """Everything, nested: tables > rows > shots > folds; the missing cells and the problems beside them."""

    def block(table: Table, row: Row, shot: int) -> dict[str, Any]:
        of_shot = _by_column(row.entries, shot, table)
        entries = {fold: None if entry is None else _figures(entry) for fold, entry in of_shot.items()}
        paper: dict[str, Any] = {"paper": asdict(row.published[shot]) if shot in row.published else None}
        if shot in row.reported:
            paper["published"] = [asdict(figures) for figures in row.reported[shot]]
        return (
            entries
            | paper
            | {
                kind: {fold: _figures(entry) for fold, entry in _by_column(of_kind, shot, table).items() if entry}
                for kind, of_kind in row.best.items()
            }
        )

    def rows(table: Table) -> list[dict[str, Any]]:
        keys = ("name", "method", "backbone", "variant", "data_train")
        return [
            {k: getattr(row.key, k) for k in keys}
            | ({"selected": row.key.selected} if row.key.selected else {})
            | {"label": row.label, "shots": {f"{shot}shot": block(table, row, shot) for shot in table.shots}}
            | {"made_with": [made._asdict() | {"cells": n} for made, n in Counter(_made_with(row)).most_common()]}
            for row in table.rows
        ]

    tables = [
        {
            "dataset": table.key.dataset,
            "protocol": table.protocol or None,
            "protocol_id": table.key.protocol_id,
            "data_val": table.key.data_val,
            "rows": rows(table),
            "notes": table.notes,
            "paired": [asdict(pair) for pair in table.pairs],
            "differences": table.differences,
            "missing": [{"cell": label, "reason": reason} for label, reason in table.missing],
        }
        for table in report.tables
    ]
    problems = [{"path": str(p.path), "what": p.what} for p in report.problems]
    base = [{"cell": str(cell.key), "score": _of_base_classes(cell)} for cell in report.base_learners]
    found = {"schema_version": 1, "unit": "mIoU in percent", "tables": tables, "problems": problems}
    return found | ({"base_learners": base} if base else {})


def _by_column(entries: Mapping[tuple[int, int], Entry], shot: int, table: Table) -> dict[str, Entry | None]:
    return {"mean" if fold == MEAN else str(fold): entries.get((shot, fold)) for fold in table.columns}


def _made_with(row: Row) -> list[MadeWith]:
    return [cell.made_with for cell in row.counted if cell.made_with != NOT_RECORDED]


def _figures(entry: Entry) -> dict[str, Any]:
    ends = {"low": None, "high": None} if entry.interval is None else asdict(entry.interval)
    plain = {name: value for name, value in vars(entry).items() if name != "interval"}
    return plain | {"seeds": list(entry.seeds), "difference": entry.difference, **ends}


def to_replication(report: Report) -> dict[str, Any]:
    """The content of replication_results.json; it is written whatever the tables hold, and says what it cannot hold.

    The file has one place for each data set, backbone and shot, meant for ABCB: only whole results of ABCB at its
    defaults enter. Of several such rows of runs the one under the protocol `standard` is taken, then the one with most
    folds, then the one with most episodes. Folds that it lacks are taken from older files; there is no mean then.
    """
    rivals: dict[tuple[str, str, int], list[tuple[tuple[bool, bool, int, int], Table, Row]]] = defaultdict(list)
    left_out: list[str] = []
    for table, row, shot in ((t, row, shot) for t in report.tables for row in t.rows for shot in t.shots):
        entries = [row.entries[shot, fold] for fold in table.folds if (shot, fold) in row.entries]
        if why := _no_place(table, row, entries):
            left_out.append(f"{table.key.dataset} {row.label} {shot}-shot: {why}")
        elif entries:
            episodes, standard = table.protocol.get("num_episodes"), table.protocol.get("name") == "standard"
            rank = (not _is_older(table), standard, len(entries), episodes if isinstance(episodes, int) else 0)
            rivals[table.key.dataset, row.key.backbone, shot].append((rank, table, row))
    places: dict[tuple[str, str, int], Place] = {}
    notes: list[str] = []
    for (dataset, backbone, shot), candidates in sorted(rivals.items()):
        (_, home, row), *others = sorted(candidates, key=lambda c: c[0], reverse=True)
        place = places[dataset, backbone, shot] = _place_of(row, shot, _is_older(home))
        for _, table, other in others:
            taken = []
            if _is_older(table) and not _is_older(home) and not place.older:
                taken = _complete(place, other, shot)
                which = f"fold{'s' * (len(taken) > 1)} {', '.join(map(str, taken))}"
                if taken:
                    key = f"{dataset}_{backbone}_{shot}shot"
                    notes.append(f"{key}: {which} of the older workflow, the others of runs, so there is no mean")
            if rest := sorted(_folds(other, shot).keys() - set(taken)):
                which = f" fold {', '.join(map(str, rest))}" if _is_older(table) else ""
                left_out.append(
                    f"{other.label} {shot}-shot{which} of {table.title}; in its place: {row.label} of {home.title}"
                )
    if not places:
        notes.append("no row of these tables has a place in it: it holds whole results of abcb at its defaults")
    return replication_json(places, left_out, notes)


def _no_place(table: Table, row: Row, entries: Sequence[Entry]) -> str:
    """Why the older workflow's file cannot hold a row with these numbers; empty if it can, or there are none."""
    if not entries:
        return ""
    if row.key.method != "abcb":
        return "the file holds abcb alone"
    if row.key.variant != "default":
        return "the file has no place for variants"
    if table.key.num_folds != len(FOLDS):
        return f"the file holds data sets of {len(FOLDS)} folds"
    return "partial, a novel class is missing" if any(e.partial for e in entries) else ""


def _is_older(table: Table) -> bool:
    return table.protocol == OLDER_PROTOCOL


def _folds(row: Row, shot: int) -> dict[int, float]:
    return {fold: row.entries[shot, fold].miou for fold in FOLDS if (shot, fold) in row.entries}


def _place_of(row: Row, shot: int, older: bool) -> Place:
    mean = row.entries.get((shot, MEAN))
    place = Place(_folds(row, shot), mean.miou if mean else None)
    if older:
        place.older = {c.key.fold: c.path for c in row.counted if c.key.shot == shot}
    return place


def _complete(place: Place, row: Row, shot: int) -> list[int]:
    """Take from a row of older figures the folds that a place lacks; returns them."""
    lacking = {fold: miou for fold, miou in _folds(row, shot).items() if fold not in place.folds}
    place.folds |= lacking
    place.older |= {c.key.fold: c.path for c in row.counted if c.key.shot == shot and c.key.fold in lacking}
    return sorted(lacking)
