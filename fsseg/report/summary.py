"""A report as the contents of its files: text, Markdown, LaTeX, CSV, JSON, and the older workflow's JSON.

`fsseg.report.aggregate` writes them.
"""

from __future__ import annotations

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from fsseg.errors import visible
from fsseg.report.collect import NOT_RECORDED, MadeWith
from fsseg.report.formats import csv_cell, markdown_item
from fsseg.report.paper import FOLDS, MEAN
from fsseg.report.replication import replication_json
from fsseg.report.tables import COLUMNS, Entry, Report, Row, Table


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
    return "\n".join(["% Needs \\usepackage{booktabs}.\n", *(t.as_text().to_latex() for t in report.tables)])


def _leftovers(report: Report, heading: str, shown: Callable[[object], str]) -> list[str]:
    """Missing cells and unreadable files, each with its reason."""
    missing = [f"{label}: {reason}" for table in report.tables for label, reason in table.missing]
    blocks = []
    for what, items in (("Missing cells", missing), ("Could not be read", report.problems)):
        if items:
            lines = "".join(f"{shown(item)}\n" for item in items)
            blocks.append(heading.format(f"{what} ({len(items)})") + lines)
    return ["\n".join(blocks)]


def to_csv(report: Report) -> str:
    """One line per data set, protocol, row, shot and fold (or mean); an empty `miou` is a missing number."""
    columns = [
        "dataset", "protocol", "protocol_id", "data_val", "name", "method", "backbone", "variant", "shot", "fold",
        "miou", "std", "eval_std", "fb_iou", "seeds", "partial", "paper", "difference",
    ]  # fmt: skip
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for table in report.tables:
        same = table.key._asdict() | {"protocol": table.protocol.get("name", "")}
        for row in table.rows:
            names = {name: csv_cell(value) for name, value in (same | row.key._asdict()).items()}
            for shot in table.shots:
                for fold, entry in _entries(row, shot).items():
                    figures: dict[str, Any] = {"paper": row.paper(shot, MEAN if fold == "mean" else int(fold))}
                    if entry is not None:
                        figures = _figures(entry) | {"seeds": csv_cell(" ".join(map(str, entry.seeds)))}
                    writer.writerow({**names, "shot": shot, "fold": fold, **figures})
    return out.getvalue()


def to_json(report: Report) -> dict[str, Any]:
    """Everything, nested: tables > rows > shots > folds; the missing cells and the problems beside them."""

    def block(row: Row, shot: int) -> dict[str, Any]:
        entries = {fold: None if entry is None else _figures(entry) for fold, entry in _entries(row, shot).items()}
        return entries | {"paper": asdict(row.published[shot]) if shot in row.published else None}

    def rows(table: Table) -> list[dict[str, Any]]:
        keys = ("name", "method", "backbone", "variant", "data_train")
        return [
            {k: getattr(row.key, k) for k in keys}
            | {"label": row.label, "shots": {f"{shot}shot": block(row, shot) for shot in table.shots}}
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
            "missing": [{"cell": label, "reason": reason} for label, reason in table.missing],
        }
        for table in report.tables
    ]
    problems = [{"path": str(p.path), "what": p.what} for p in report.problems]
    return {"schema_version": 1, "unit": "mIoU in percent", "tables": tables, "problems": problems}


def _entries(row: Row, shot: int) -> dict[str, Entry | None]:
    return {"mean" if fold == MEAN else str(fold): row.entries.get((shot, fold)) for fold in COLUMNS}


def _made_with(row: Row) -> list[MadeWith]:
    return [cell.made_with for cell in row.counted if cell.made_with != NOT_RECORDED]


def _figures(entry: Entry) -> dict[str, Any]:
    return vars(entry) | {"seeds": list(entry.seeds), "difference": entry.difference}


def to_replication(report: Report) -> tuple[dict[str, Any], list[str]]:
    """The content of replication_results.json, and the rows left out of it, in words.

    The file has one place for each data set, backbone and shot, meant for ABCB: only whole results of ABCB at its
    defaults enter. Of several such rows the one under the protocol `standard` is taken, then the one with most folds,
    then the one with most episodes.
    """
    rivals: dict[tuple[str, str, int], list[tuple[tuple[bool, int, int], Table, Row]]] = defaultdict(list)
    left_out: list[str] = []
    abcb = [
        (t, row) for t in report.tables for row in t.rows if row.key.method == "abcb" and row.key.variant == "default"
    ]
    for table, row in abcb:
        for shot in table.shots:
            entries = [row.entries[shot, fold] for fold in FOLDS if (shot, fold) in row.entries]
            if any(e.partial for e in entries):
                left_out.append(f"{table.key.dataset} {row.label} {shot}-shot (partial)")
            elif entries:
                episodes = table.protocol.get("num_episodes")
                standard = table.protocol.get("name") == "standard"
                rank = (standard, len(entries), episodes if isinstance(episodes, int) else 0)
                rivals[table.key.dataset, row.key.backbone, shot].append((rank, table, row))
    figures = {}
    for (dataset, backbone, shot), candidates in sorted(rivals.items()):
        (_, home, row), *others = sorted(candidates, key=lambda c: c[0], reverse=True)
        folds = {fold: row.entries[shot, fold].miou for fold in FOLDS if (shot, fold) in row.entries}
        mean = row.entries.get((shot, MEAN))
        figures[dataset, backbone, shot] = (folds, mean.miou if mean else None)
        for _, table, other in others:
            left_out.append(f"{other.label} {shot}-shot of {table.title}; in its place: {row.label} of {home.title}")
    return replication_json(figures), left_out
