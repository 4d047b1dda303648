"""Figure 5 of the paper, and the test of its claim: how much is lost when support and query differ in background.

`fsseg.report.experiments` calls both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from fsseg.cell.models import Distances, Metrics
from fsseg.draw import plots
from fsseg.errors import visible
from fsseg.process.words import count
from fsseg.report.collect import CellResult
from fsseg.report.comparison import LABELS, Cells, Group, Rows, component, notes_of, number_of, rows_of, statistic
from fsseg.report.formats import MISSING, Number, TextTable
from fsseg.report.intervals import Episodes
from fsseg.report.pairs import Term, difference_of, notes_on_intervals
from fsseg.report.statistics import PairedDifference, Statistic, shares

BIN_LABELS = ("0-0.1", "0.1-0.2", "0.2-0.3", "0.3-0.4", "0.4-0.5", "0.5-0.6", ">0.6")
"""The bins of Figure 5, as `fsseg.engine.diagnostics` counts them."""

Told = tuple[str, dict[str, list[tuple[float, list[Term]]]]]
"""A line with a place for figures, and for each shift the pairs of runs that they are of (`difference_of`)."""


def figure5(group: Group, picture: Path) -> TextTable:
    kinds = ["baseline", *(k for k in LABELS if k != "baseline" and any(component(c) == k for c in group.cells))]
    rows = rows_of(group, kinds, component)
    of_bins = _shares(rows)
    table = TextTable(f"Figure 5, share of episodes by foreground distance, percent ({group.title})", ["", *of_bins])
    table.rows = [[bin_, *(Number(f"{s[i]:.1f}", s[i]) for s in of_bins.values())] for i, bin_ in enumerate(BIN_LABELS)]
    means = [statistic(cells, _mean_distance) for k, cells in rows.items() if LABELS[k] in of_bins]
    table.rows.append(["mean distance", *_distances(means)])
    table.notes = [
        "cosine distance between mean support foreground feature (of the last round) and mean query foreground feature",
        "the paper prints this figure as bars without numbers, so none stand beside ours",
        *notes_of(group, rows, beside_paper=False),
    ]
    if of_bins:
        table.vectors += plots.distance_histograms(picture, BIN_LABELS, {visible(group.title): of_bins}, "Figure 5")
        table.pictures.append(picture)
    return table


def background_bias(group: Group, picture: Path) -> TextTable:
    rows = rows_of(group, ["baseline", "sm", "full"], component)
    shifts = sorted(
        {s for c in group.cells if c.result.metrics for s in c.result.metrics.by_background_shift}, key=float
    )
    header = ["", *(f"mIoU at shift {s}" for s in shifts), "lost", *(f"distance at {s}" for s in shifts)]
    table = TextTable(f"Background bias: mIoU in percent by background shift ({group.title})", header)
    table.scores = range(1, len(shifts) + 1)
    series = {}
    for kind, cells in rows.items():
        figures, label = _figures(cells, shifts), LABELS[kind]
        distances = _distances(statistic(cells, partial(_mean_distance, shift=s)) for s in shifts)
        table.rows.append([label, *_texts(figures), *distances])
        # P_1 uses the unmodified support; P_T is the answer, which already has a row.
        earlier = min((len(_rounds_at(c, s)) for c in cells.values() for s in shifts), default=1) - 1
        table.rows += [
            [f"{label}: P_{t}", *_texts(_figures(cells, shifts, t)), *("" for _ in shifts)]
            for t in range(1, earlier + 1)
        ]
        if points := [(float(s), v.mean, v.std) for s, v in zip(shifts, figures) if v is not None]:
            series[label] = points
    table.notes = _paired_notes(rows, shifts)
    table.notes += notes_of(group, rows, beside_paper=False)
    if series:
        table.vectors += plots.miou_against_shift(picture, series, "mIoU by background shift")
        table.pictures.append(picture)
    if panels := {f"background shift {s}": found for s in shifts if (found := _shares(rows, s))}:
        histogram = picture.with_name(f"{picture.stem}-distance.png")
        title = "Distance of foreground features by background shift"
        table.vectors += plots.distance_histograms(histogram, BIN_LABELS, panels, title)
        table.pictures.append(histogram)
    return table


def _figures(cells: Cells, shifts: Sequence[str], t: int | None = None) -> list[Statistic | None]:
    """mIoU at each shift and the loss from the first to the last, of the answer or of P_t."""
    at = [statistic(cells, partial(_miou_at, shift=s, t=t)) for s in shifts]
    return [*at, statistic(cells, partial(_lost, shifts=shifts, t=t)) if len(shifts) > 1 else None]


def _texts(figures: Iterable[Statistic | None]) -> list[str]:
    return [number_of(v) for v in figures]


def _distances(figures: Iterable[Statistic | None]) -> list[str]:
    return [MISSING if v is None else Number(f"{v.mean:.3f}", v.mean) for v in figures]


def _paired_notes(rows: Rows, shifts: Sequence[str]) -> list[str]:
    """Differences between the models, between the shifts, and between the rounds of a model, with their intervals."""
    told = [*_lost_of_each(rows, shifts), *_against_baseline(rows, shifts), *_gain_of_rounds(rows, shifts)]
    episodes, lines = Episodes(), []
    found: list[tuple[PairedDifference, str]] = []
    for line, by_shift in told:
        at = {s: difference for s, pairs in by_shift.items() if (difference := difference_of(pairs, episodes))}
        if at:
            lines.append(line.format(", ".join(f"{d}{f' at shift {s}' if s else ''}" for s, (d, _) in at.items())))
            found += at.values()
    return lines + notes_on_intervals(found)


def _lost_of_each(rows: Rows, shifts: Sequence[str]) -> Iterator[Told]:
    """What each model loses from the first shift to the last."""
    for kind, cells in rows.items() if len(shifts) > 1 else ():
        runs = [(lost, _loss(c, shifts, 1)) for c in cells.values() if (lost := _lost(c, shifts)) is not None]
        yield f"{LABELS[kind]} loses from shift {shifts[0]} to {shifts[-1]}: {{}}", {"": runs}


def _against_baseline(rows: Rows, shifts: Sequence[str]) -> Iterator[Told]:
    """Paired differences to the baseline: every fold and seed against the same fold and seed."""
    for kind in ("sm", "full"):
        met = [(rows[kind][key], rows["baseline"][key]) for key in rows[kind] if key in rows["baseline"]]
        pairs = [(a, b) for a, b in met if a.episodes == b.episodes]
        unlike = f" ({count(len(met) - len(pairs), 'pair')} left out: other episodes)" if len(pairs) < len(met) else ""
        by_shift = {
            s: [(x - y, [Term(1, a, s, -1), Term(-1, b, s, -1)]) for a, b in pairs
                if (x := _miou_at(a, s)) is not None and (y := _miou_at(b, s)) is not None]
            for s in shifts
        }  # fmt: skip
        yield f"{LABELS[kind]} against the baseline, paired by fold and seed{unlike}: {{}}", by_shift
        if len(shifts) > 1:
            lost = [
                (y - x, [*_loss(b, shifts, 1), *_loss(a, shifts, -1)]) for a, b in pairs
                if (x := _lost(a, shifts)) is not None and (y := _lost(b, shifts)) is not None
            ]  # fmt: skip
            yield (
                (
                    f"what the baseline loses from shift {shifts[0]} to {shifts[-1]}, less what {LABELS[kind]} loses "
                    f"(positive: {LABELS[kind]} loses less), paired by fold and seed{unlike}: {{}}"
                ),
                {"": lost},
            )


def _gain_of_rounds(rows: Rows, shifts: Sequence[str]) -> Iterator[Told]:
    """mIoU of a model's last round minus that of its first."""
    for kind, cells in rows.items():
        several = {
            s: [(r[-1] - r[0], [Term(1, c, s, -1), Term(-1, c, s, 0)])
                for c in cells.values() if len(r := _rounds_at(c, s)) > 1]
            for s in shifts
        }  # fmt: skip
        yield f"{LABELS[kind]}, P_T - P_1 of the same model: {{}}", several


def _loss(cell: CellResult, shifts: Sequence[str], sign: int) -> list[Term]:
    return [Term(sign, cell, shifts[0], -1), Term(-sign, cell, shifts[-1], -1)]


def _metrics(cell: CellResult, shift: str | None = None) -> Metrics | None:
    """Metrics of the protocol's own episodes, or of those at a background shift."""
    metrics = cell.result.metrics
    return metrics.by_background_shift.get(shift) if metrics and shift is not None else metrics


def _miou_at(cell: CellResult, shift: str, t: int | None = None) -> float | None:
    """mIoU at a shift, of the answer or of P_t."""
    metrics = _metrics(cell, shift)
    return None if metrics is None else metrics.miou if t is None else metrics.miou_per_round[t - 1]


def _rounds_at(cell: CellResult, shift: str) -> list[float]:
    """mIoU of P_1..P_T; empty if it was not measured."""
    metrics = _metrics(cell, shift)
    return metrics.miou_per_round if metrics else []


def _lost(cell: CellResult, shifts: Sequence[str], t: int | None = None) -> float | None:
    first, last = _miou_at(cell, shifts[0], t), _miou_at(cell, shifts[-1], t)
    return None if first is None or last is None else first - last


def _distance(cell: CellResult, shift: str | None = None) -> Distances | None:
    metrics = _metrics(cell, shift)
    return metrics.foreground_distance if metrics else None


def _mean_distance(cell: CellResult, shift: str | None = None) -> float | None:
    distance = _distance(cell, shift)
    return distance.mean if distance else None


def _shares(rows: Rows, shift: str | None = None) -> dict[str, list[float]]:
    """Label of each row whose distances were measured -> share of all its episodes in each bin, in percent."""
    found = {}
    for kind, cells in rows.items():
        measured = [d.counts for c in cells.values() if (d := _distance(c, shift))]
        if (of_bins := shares([counts for counts in measured if len(counts) == len(BIN_LABELS)])) is not None:
            found[LABELS[kind]] = of_bins
    return found
