"""The tables of `build` as terminal text, Markdown, CSV, JSON and LaTeX.

`tables.aggregate` is the caller. Numbers are rounded here and nowhere else: one decimal for people, all for machines.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from fsseg.report.paper import FOLDS
from fsseg.report.tables import MEAN, Entry, Report, Row, Table

MISSING = "—"
_COLUMNS = (*FOLDS, MEAN)
_MAX_WIDTH = 118  # a wider table is cut into one block per number of shots
_PARTIAL = "(*) partial: a novel class of the fold could not be evaluated; not comparable with a published figure"


def to_text(report: Report) -> str:
    """All tables, notes, missing cells and problems for a terminal or a log."""
    parts = []
    for table in report.tables:
        whole = _aligned(table, table.shots)
        if len(whole[0]) > _MAX_WIDTH and len(table.shots) > 1:
            blocks = [_aligned(table, [shot]) for shot in table.shots if _has_any(table, shot)]
            body = "\n\n".join("\n".join(block) for block in blocks)
        else:
            body = "\n".join(whole)
        parts.append(f"{table.title}\n\n{body}\n")
        parts.extend(f"  {note}\n" for note in _notes(table))
        parts.append("\n")
    parts.append("".join(_leftovers(report, bullet="  ", heading=str)))
    return "".join(parts).rstrip("\n") + "\n"


def to_markdown(report: Report) -> str:
    """The same as GitHub Markdown."""
    parts = []
    for table in report.tables:
        header, *rows = _grid(table, table.shots, _plain)
        parts.append(f"### {table.title}\n\n")
        parts.append("| " + " | ".join(header) + " |\n")
        parts.append("|" + "|".join([" --- "] + [" ---: "] * (len(header) - 1)) + "|\n")
        for row in rows:
            parts.append("| " + " | ".join(cell.strip().replace("|", "\\|") for cell in row) + " |\n")
        parts.append("\n")
        parts.extend(f"- {note.replace('*', chr(92) + '*')}\n" for note in _notes(table))
        parts.append("\n")
    parts.extend(_leftovers(report, bullet="- ", heading=lambda text: f"### {text.rstrip(':')}\n"))
    return "".join(parts).rstrip("\n") + "\n"


def to_csv(report: Report) -> str:
    """One line per data set, protocol, row, shot and fold (or mean); an empty `miou` is a missing number."""
    columns = [
        "dataset", "protocol", "protocol_id", "data_val", "name", "method", "backbone", "variant", "shot", "fold",
        "miou", "std", "eval_std", "fb_iou", "seeds", "partial", "paper", "difference",
    ]  # fmt: skip
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    for table in report.tables:
        for row in table.rows:
            for shot in table.shots:
                for fold in _COLUMNS:
                    entry = row.entries.get((shot, fold))
                    writer.writerow(
                        {
                            "dataset": table.dataset,
                            "protocol": (table.protocol or {}).get("name", ""),
                            "protocol_id": table.protocol_id,
                            "data_val": table.data_val,
                            "name": row.name,
                            "method": row.method,
                            "backbone": row.backbone,
                            "variant": row.variant,
                            "shot": shot,
                            "fold": "mean" if fold == MEAN else fold,
                            "paper": row.paper(shot, fold),
                        }
                        | ({} if entry is None else _entry_dict(entry) | {"seeds": " ".join(map(str, entry.seeds))})
                    )
    return out.getvalue()


def to_json(report: Report) -> dict[str, Any]:
    """Everything, nested: tables > rows > shots > folds; the missing cells and the problems beside them."""
    tables = []
    for table in report.tables:
        rows = []
        for row in table.rows:
            shots = {
                f"{shot}shot": {
                    "mean" if fold == MEAN else str(fold): None
                    if (entry := row.entries.get((shot, fold))) is None
                    else _entry_dict(entry)
                    for fold in _COLUMNS
                }
                | {"paper": asdict(row.published[shot]) if shot in row.published else None}
                for shot in table.shots
            }
            keys = {k: getattr(row, k) for k in ("name", "method", "backbone", "variant", "data_train", "label")}
            rows.append(keys | {"shots": shots})
        tables.append(
            {
                "dataset": table.dataset,
                "protocol": table.protocol,
                "protocol_id": table.protocol_id,
                "data_val": table.data_val,
                "rows": rows,
                "notes": table.notes,
                "missing": [{"cell": label, "reason": reason} for label, reason in table.missing],
            }
        )
    problems = [{"path": str(p.path), "what": p.what} for p in report.problems]
    return {"schema_version": 1, "unit": "mIoU in percent", "tables": tables, "problems": problems}


def to_latex(report: Report) -> str:
    """One booktabs table per data set and protocol; needs \\usepackage{booktabs}."""
    parts = ["% Needs \\usepackage{booktabs}.\n"]
    for table in report.tables:
        _, *rows = _grid(table, table.shots, _latex_entry, MISSING_LATEX)
        width = len(_COLUMNS)
        spans = " & ".join(f"\\multicolumn{{{width}}}{{c}}{{{shot}-shot}}" for shot in table.shots)
        rules = " ".join(f"\\cmidrule(lr){{{2 + i * width}-{1 + (i + 1) * width}}}" for i in range(len(table.shots)))
        names = " & ".join("mean" if fold == MEAN else f"fold {fold}" for _ in table.shots for fold in _COLUMNS)
        parts.append(
            f"\n\\begin{{table}}\n  \\centering\n  \\caption{{{_escape(table.title)}}}\n"
            f"  \\begin{{tabular}}{{l{'r' * width * len(table.shots)}}}\n    \\toprule\n"
            f"    & {spans} \\\\\n    {rules}\n    & {names} \\\\\n    \\midrule\n"
        )
        for label, *cells in rows:
            indent = "\\quad " if label.startswith(" ") else ""
            parts.append(f"    {indent}{_escape(label.strip())} & {' & '.join(cells)} \\\\\n")
        parts.append("    \\bottomrule\n  \\end{tabular}\n\\end{table}\n")
        parts.extend(f"% {note}\n" for note in _notes(table))
    return "".join(parts)


MISSING_LATEX = "---"


def _grid(
    table: Table, shots: list[int], entry_text: Callable[[Entry], str], missing: str = MISSING
) -> list[list[str]]:
    """A header and, for each row, its numbers, then where there are published ones those and the differences."""
    header = [""] + [f"{shot}-shot {'mean' if f == MEAN else f'fold {f}'}" for shot in shots for f in _COLUMNS]
    lines = [header]
    for row in table.rows:
        columns = [(shot, fold) for shot in shots for fold in _COLUMNS]
        entries = [row.entries.get(column) for column in columns]
        lines.append([row.label] + [missing if e is None else entry_text(e) for e in entries])
        if not any(shot in row.published for shot in shots):
            continue
        figures = [row.paper(*column) for column in columns]
        lines.append([f"  paper ({_source(row)})"] + ["" if f is None else f"{f:.1f}" for f in figures])
        differences = [None if e is None else e.difference for e in entries]
        lines.append(["  difference"] + ["" if d is None else _signed(d) for d in differences])
    return lines


def _aligned(table: Table, shots: list[int]) -> list[str]:
    """The grid as fixed-width lines: shots over folds, a rule below, numbers to the right."""
    _, *rows = _grid(table, shots, _plain)
    per_shot = len(_COLUMNS)
    names = [""] + ["mean" if fold == MEAN else f"fold {fold}" for _ in shots for fold in _COLUMNS]
    widths = [max(len(line[i]) for line in [names, *rows]) for i in range(len(names))]
    gaps = [4 if i % per_shot == 1 else 2 for i in range(len(names))]  # a wider gap before each number of shots

    def line(cells: list[str]) -> str:
        tail = "".join(" " * gaps[i] + cells[i].rjust(widths[i]) for i in range(1, len(cells)))
        return cells[0].ljust(widths[0]) + tail

    over = " " * widths[0]
    for index, shot in enumerate(shots):
        span = sum(gaps[i] + widths[i] for i in range(1 + index * per_shot, 1 + (index + 1) * per_shot))
        over += " " * 4 + f" {shot}-shot ".center(span - 4, "-")
    return [over, line(names), *(line(row).rstrip() for row in rows)]


def _plain(entry: Entry) -> str:
    text = f"{entry.miou:.1f}"
    if entry.std is not None:
        text += f" ±{entry.std:.1f}"
    return text + (" (*)" if entry.partial else "")


def _latex_entry(entry: Entry) -> str:
    text = f"{entry.miou:.1f}"
    if entry.std is not None:
        text += f" $\\pm$ {entry.std:.1f}"
    return text + ("$^{*}$" if entry.partial else "")


def _signed(value: float) -> str:
    text = f"{value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def _source(row: Row) -> str:
    source = next(iter(row.published.values()))
    return f"{source.method}, {source.venue}"


def _has_any(table: Table, shot: int) -> bool:
    return any(s == shot for row in table.rows for s, _ in row.entries)


def _notes(table: Table) -> list[str]:
    entries = [entry for row in table.rows for entry in row.entries.values()]
    notes = list(table.notes)
    if any(entry.std is not None for entry in entries):
        notes.insert(0, "±: sample standard deviation over training seeds")
    if any(entry.partial for entry in entries):
        notes.insert(0, _PARTIAL)
    return notes


def _leftovers(report: Report, bullet: str, heading: Callable[[str], str]) -> list[str]:
    """Missing cells and unreadable files, each with its reason."""
    lines = []
    missing = [item for table in report.tables for item in table.missing]
    if missing:
        lines.append(heading(f"Missing cells ({len(missing)}):") + "\n")
        lines.extend(f"{bullet}{label}: {reason}\n" for label, reason in missing)
    if report.problems:
        lines.append(("\n" if missing else "") + heading(f"Could not be read ({len(report.problems)}):") + "\n")
        lines.extend(f"{bullet}{problem}\n" for problem in report.problems)
    return lines


def _entry_dict(entry: Entry) -> dict[str, Any]:
    return asdict(entry) | {"seeds": list(entry.seeds), "difference": entry.difference}


def _escape(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {c: "\\" + c for c in "&%$#_{}"}
    return "".join(special.get(c, c) for c in text)
