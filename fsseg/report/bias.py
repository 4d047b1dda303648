"""Figure 5 of the paper, and the test of its claim: what is lost when support and query stand on other backgrounds.

`fsseg.report.experiments` calls both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from fsseg.report import plots
from fsseg.report.cells import Cell, mapping
from fsseg.report.comparison import (
    LABELS,
    MISSING,
    Group,
    Key,
    Section,
    component,
    mean,
    notes_of,
    rows_of,
    spread,
    statistic,
)

BIN_LABELS = ("0-0.1", "0.1-0.2", "0.2-0.3", "0.3-0.4", "0.4-0.5", "0.5-0.6", ">0.6")
"""The bins of Figure 5, as `fsseg.engine.diagnostics` counts them."""


def figure5(group: Group, picture: Path) -> Section:
    kinds = ["baseline", *(k for k in LABELS if k != "baseline" and any(component(c) == k for c in group.cells))]
    rows = rows_of(group, kinds, component)
    shares = {LABELS[k]: s for k, cells in rows.items() if (s := _shares([_distance(c) for c in cells.values()]))}
    section = Section(f"Figure 5, share of episodes by foreground distance, percent ({group.title})", ["", *shares], [])
    section.rows = [[bin_, *(f"{s[i]:.1f}" for s in shares.values())] for i, bin_ in enumerate(BIN_LABELS)]
    means = [statistic(cells, _mean_distance) for k, cells in rows.items() if LABELS[k] in shares]
    section.rows.append(["mean distance", *(MISSING if m is None else f"{m.mean:.3f}" for m in means)])
    section.notes += [
        "cosine distance between mean support foreground feature (of the last round) and mean query foreground feature",
        "the paper prints this figure as bars without numbers, so none stand beside ours",
        *(n for n in notes_of(group, rows) if "figures are of" not in n),
    ]
    if shares:
        plots.distance_histograms(picture, BIN_LABELS, {group.title: shares}, "Figure 5")
        section.pictures.append(picture)
    return section


def background_bias(group: Group, picture: Path) -> Section:
    rows = rows_of(group, ["baseline", "sm", "full"], component)
    shifts = sorted({s for c in group.cells for s in _by_shift(c)}, key=float)
    series, table = {}, []
    for kind, cells in rows.items():
        at = {s: statistic(cells, lambda c, s=s: _miou_at(c, s)) for s in shifts}  # type: ignore[misc]
        lost = statistic(cells, lambda c: _lost(c, shifts)) if len(shifts) > 1 else None
        distances = [statistic(cells, lambda c, s=s: _mean_distance(c, s)) for s in shifts]  # type: ignore[misc]
        table.append([
            LABELS[kind], *(MISSING if v is None else str(v) for v in (*at.values(), lost)),
            *(MISSING if d is None else f"{d.mean:.3f}" for d in distances),
        ])  # fmt: skip
        table += _earlier_rounds(LABELS[kind], cells, shifts)
        series[LABELS[kind]] = [(float(s), v.mean, v.std) for s, v in at.items() if v is not None]
    header = ["", *(f"mIoU at shift {s}" for s in shifts), "lost", *(f"distance at {s}" for s in shifts)]
    section = Section(f"Background bias: mIoU in percent by background shift ({group.title})", header, table)
    section.notes += _against_baseline(rows, shifts)
    section.notes += [n for n in notes_of(group, rows) if "figures are of" not in n]
    series = {label: points for label, points in series.items() if points}
    panels = {}
    for s in shifts:
        shares = {
            LABELS[k]: h for k, cells in rows.items() if (h := _shares([_distance(c, s) for c in cells.values()]))
        }
        if shares:
            panels[f"background shift {s}"] = shares
    if series:
        plots.miou_against_shift(picture, series, "mIoU by background shift")
        section.pictures.append(picture)
    if panels:
        histogram = picture.with_name(f"{picture.stem}-distance.png")
        plots.distance_histograms(histogram, BIN_LABELS, panels, "Distance of foreground features by background shift")
        section.pictures.append(histogram)
    return section


def _earlier_rounds(label: str, cells: dict[Key, Cell], shifts: Sequence[str]) -> list[list[str]]:
    """What the same models answer in the rounds before the last: P_1 uses the support as it is."""

    def measured(cell: Cell, t: int, shift: str) -> float | None:
        rounds = mapping(_by_shift(cell).get(shift)).get("miou_per_round")
        return float(rounds[t]) if isinstance(rounds, list) and t < len(rounds) - 1 else None

    def lost(cell: Cell, t: int) -> float | None:
        first, last = measured(cell, t, shifts[0]), measured(cell, t, shifts[-1])
        return None if first is None or last is None else first - last

    def row(t: int) -> list[str]:
        found = [statistic(cells, lambda c, s=s: measured(c, t, s)) for s in shifts]  # type: ignore[misc]
        if None in found:
            return []
        found.append(statistic(cells, lambda c: lost(c, t)) if len(shifts) > 1 else None)
        return [f"{label}: P_{t + 1}", *(MISSING if v is None else str(v) for v in found), *("" for _ in shifts)]

    return list(takewhile(bool, map(row, count()))) if shifts else []


def _against_baseline(rows: dict[str, dict[Key, Cell]], shifts: Sequence[str]) -> list[str]:
    """Paired differences to the baseline: every fold and seed against the same fold and seed."""
    lines = []
    for kind in ("sm", "full"):
        pairs = [(rows[kind][key], rows["baseline"][key]) for key in rows[kind] if key in rows["baseline"]]
        parts = []
        for s in shifts:
            both = [(_miou_at(a, s), _miou_at(b, s)) for a, b in pairs]
            differences = [a - b for a, b in both if a is not None and b is not None]
            if differences:
                std = spread(differences)
                error = "" if std is None else f" (standard error {std / math.sqrt(len(differences)):.2f})"
                parts.append(f"{mean(differences):+.2f}{error} at shift {s}")
        if parts:
            lines.append(f"{LABELS[kind]} against the baseline, over {len(pairs)} fold-seed pairs: {', '.join(parts)}")
    return lines


def _by_shift(cell: Cell) -> dict[str, Any]:
    return mapping(mapping(cell.result.get("metrics")).get("by_background_shift"))


def _miou_at(cell: Cell, shift: str) -> float | None:
    return mapping(_by_shift(cell).get(shift)).get("miou")


def _lost(cell: Cell, shifts: Sequence[str]) -> float | None:
    first, last = _miou_at(cell, shifts[0]), _miou_at(cell, shifts[-1])
    return None if first is None or last is None else first - last


def _distance(cell: Cell, shift: str | None = None) -> dict[str, Any]:
    """The record of foreground distances, of the protocol's own episodes or of those at a background shift."""
    metrics = mapping(cell.result.get("metrics"))
    return mapping((metrics if shift is None else mapping(_by_shift(cell).get(shift))).get("foreground_distance"))


def _mean_distance(cell: Cell, shift: str | None = None) -> float | None:
    return _distance(cell, shift).get("mean")


def _shares(records: Sequence[dict[str, Any]]) -> list[float] | None:
    """Share of all episodes in each bin, in percent."""
    counts = [r["counts"] for r in records if isinstance(r.get("counts"), list) and len(r["counts"]) == len(BIN_LABELS)]
    total = sum(map(sum, counts))
    return [100 * sum(column) / total for column in zip(*counts)] if total else None
