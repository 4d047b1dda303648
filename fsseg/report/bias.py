"""Figure 5 of the paper, and the test of its claim: what is lost when support and query stand on other backgrounds.

`fsseg.report.experiments` calls both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fsseg.draw import plots
from fsseg.report.cells import Cell, mapping
from fsseg.report.comparison import (
    LABELS,
    MISSING,
    Group,
    Key,
    Section,
    Statistic,
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
        *notes_of(group, rows, beside_paper=False),
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
        figures = _figures(cells, shifts)
        distances = [statistic(cells, lambda c, s=s: _mean_distance(c, s)) for s in shifts]  # type: ignore[misc]
        table.append([
            LABELS[kind], *_texts(figures), *(MISSING if d is None else f"{d.mean:.3f}" for d in distances),
        ])  # fmt: skip
        # P_1 uses the support as it is; P_T is the answer, and has its row already.
        earlier = min((len(_rounds_at(c, s)) for c in cells.values() for s in shifts), default=1) - 1
        for t in range(1, earlier + 1):
            table.append([f"{LABELS[kind]}: P_{t}", *_texts(_figures(cells, shifts, t)), *("" for _ in shifts)])
        series[LABELS[kind]] = [(float(s), v.mean, v.std) for s, v in zip(shifts, figures) if v is not None]
    header = ["", *(f"mIoU at shift {s}" for s in shifts), "lost", *(f"distance at {s}" for s in shifts)]
    section = Section(f"Background bias: mIoU in percent by background shift ({group.title})", header, table)
    section.notes += _against_baseline(rows, shifts) + _gain_of_rounds(rows, shifts)
    section.notes += notes_of(group, rows, beside_paper=False)
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


def _figures(cells: dict[Key, Cell], shifts: Sequence[str], t: int | None = None) -> list[Statistic | None]:
    """mIoU at each shift and what is lost between the ends, of the answer or of P_t."""
    at = [statistic(cells, lambda c, s=s: _miou_at(c, s, t)) for s in shifts]  # type: ignore[misc]
    return [*at, statistic(cells, lambda c: _lost(c, shifts, t)) if len(shifts) > 1 else None]


def _texts(figures: Sequence[Statistic | None]) -> list[str]:
    return [MISSING if v is None else str(v) for v in figures]


def _against_baseline(rows: dict[str, dict[Key, Cell]], shifts: Sequence[str]) -> list[str]:
    """Paired differences to the baseline: every fold and seed against the same fold and seed."""
    lines = []
    for kind in ("sm", "full"):
        pairs = [(rows[kind][key], rows["baseline"][key]) for key in rows[kind] if key in rows["baseline"]]
        at = {s: _paired((_miou_at(a, s), _miou_at(b, s)) for a, b in pairs) for s in shifts}
        if parts := [f"{figure} at shift {s}" for s, figure in at.items() if figure]:
            lines.append(f"{LABELS[kind]} against the baseline, paired by fold and seed: {', '.join(parts)}")
        if len(shifts) > 1 and (figure := _paired((_lost(b, shifts), _lost(a, shifts)) for a, b in pairs)):
            lines.append(
                f"what the baseline loses from shift {shifts[0]} to {shifts[-1]}, less what {LABELS[kind]} loses "
                f"(positive: {LABELS[kind]} loses less), paired by fold and seed: {figure}"
            )
    return lines


def _gain_of_rounds(rows: dict[str, dict[Key, Cell]], shifts: Sequence[str]) -> list[str]:
    """What a model's last round adds to its own first one."""

    lines = []
    for kind, cells in rows.items():
        several = {s: [r for c in cells.values() if len(r := _rounds_at(c, s)) > 1] for s in shifts}
        at = {s: _paired((rounds[-1], rounds[0]) for rounds in found) for s, found in several.items()}
        if parts := [f"{figure} at shift {s}" for s, figure in at.items() if figure]:
            lines.append(f"{LABELS[kind]}, P_T - P_1 of the same model: {', '.join(parts)}")
    return lines


def _paired(pairs: Iterable[tuple[float | None, float | None]]) -> str:
    """Mean of first minus second with its standard error, over the pairs measured on both sides; empty without any."""
    differences = [a - b for a, b in pairs if a is not None and b is not None]
    if not differences:
        return ""
    num, std = len(differences), spread(differences)
    error = "" if std is None else f"standard error {std / math.sqrt(num):.2f}, "
    return f"{mean(differences):+.2f} ({error}{num} pair{'' if num == 1 else 's'})"


def _by_shift(cell: Cell) -> dict[str, Any]:
    return mapping(mapping(cell.result.get("metrics")).get("by_background_shift"))


def _miou_at(cell: Cell, shift: str, t: int | None = None) -> float | None:
    """Of the answer, or of P_t."""
    return mapping(_by_shift(cell).get(shift)).get("miou") if t is None else _rounds_at(cell, shift)[t - 1]


def _rounds_at(cell: Cell, shift: str) -> list[float]:
    """mIoU of P_1..P_T; empty where it was not measured."""
    rounds = mapping(_by_shift(cell).get(shift)).get("miou_per_round")
    return rounds if isinstance(rounds, list) else []


def _lost(cell: Cell, shifts: Sequence[str], t: int | None = None) -> float | None:
    first, last = _miou_at(cell, shifts[0], t), _miou_at(cell, shifts[-1], t)
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
