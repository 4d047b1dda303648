"""Scores with their intervals, and rows of a table against each other. `contents` calls `scores` and `comparisons`.

All numbers are those of `fsseg.report.intervals` and `fsseg.report.pairs`; here they only become rows of a table, each
with a picture of its interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fsseg.process.words import several
from fsseg.report.formats import MISSING
from fsseg.report.intervals import Episodes, Score, ScorePart
from fsseg.report.page.listing import Bar, Datum, Line, Listing, about
from fsseg.report.pairs import RowComparison, compare, corrected, notes_on, notes_on_parts
from fsseg.report.statistics import Interval
from fsseg.report.tables import Row, Table

_MOST = 12
"""Rows of a table that are set against each other. More are variants of a search: tests of all of them say little."""


def scores(table: Table, episodes: Episodes) -> Listing | None:
    """The mIoU of each row and number of shots with its interval; None for a table of very many rows."""
    if not 1 <= len(rows := _rows(table)) <= _MOST:
        return None
    found: list[tuple[str, Score]] = []
    lacking = []
    for row in rows:
        for shot in table.shots:
            if cells := [c for c in row.counted if c.key.shot == shot]:
                found.append((label := table.named(row.label, shot), episodes.score(cells)))
                if len(folds := sorted({c.key.fold for c in cells})) < len(table.folds):
                    lacking.append(f"{label}: of fold{'s' * (len(folds) > 1)} {', '.join(map(str, folds))} alone")
    ends = [end for _, score in found for end in _ends(score.value, score.interval)]
    listing = Listing(
        f"mIoU in percent with its 95 % interval, {about(table)}", ["", "mIoU", "interval", "", "runs", "episodes"]
    )
    listing.bodies.append([
        Line(label, [
            Datum(f"{score.value:.2f}"), _brackets(score.interval, ".2f"),
            _bar(score.value, score.interval, ends, f"{label}: {score.value:.2f}{_told(score.interval)}"),
            Datum(str(score.runs)),
            Datum(str(score.episodes) if score.episodes else MISSING),
        ])
        for label, score in found
    ])  # fmt: skip
    over = dict.fromkeys(score.interval.over for _, score in found if score.interval is not None)
    listing.notes = [f"intervals are over {kind}; what is not named there is held fixed" for kind in over]
    listing.notes += dict.fromkeys(
        f"{label}: single episodes cannot be used: {score.reason}" for label, score in found if score.reason
    )
    listing.notes += lacking
    listing.notes.append("rows share their episodes: whether one is better is told by the differences, not by overlap")
    return listing


def comparisons(table: Table, episodes: Episodes | None) -> list[Listing]:
    """Each row less the reference, with interval and tests; and the same of every fold and class.

    Args:
        episodes: for the variants of one method, which the table itself does not compare; None leaves these out.
    """
    found = table.pairs or ([] if episodes is None else _of_variants(table, episodes))
    if not found:
        return []
    known = [(c, c.difference) for c in found if c.difference is not None]
    ends = [0.0, *(end for _, d in known for end in _ends(d.mean, d.interval))]
    columns = [
        "row less reference", "difference", "interval", "", "pairs", "episodes", "higher in", "P(improvement)",
        "Wilcoxon p", "after Holm",
    ]  # fmt: skip
    names = _names(found, table)
    references = {c.reference for c in found}
    to = f" to {found[0].reference}" if len(references) == 1 else ""
    columns[0] = "row" if to else columns[0]
    listing = Listing(f"Differences of mIoU{to}, paired by fold and training seed, {about(table)}", columns)
    listing.bodies.append([_compared(c, name, ends) for c, name in zip(found, names)])
    listing.notes = [
        *(f"{name}: not compared: {c.refused}" for c, name in zip(found, names) if c.refused),
        *(f"{name}: left out: {several(c.left_out, 4)}" for c, name in zip(found, names) if c.left_out),
        *(f"{name}: Wilcoxon's p{c.test.limits}" for c, name in zip(found, names) if c.test and c.test.limits),
        *notes_on(found),
        "Wilcoxon's p is exact, over pairs of runs; Holm's correction is for all rows of this table",
    ]
    parts = _parts(table, [(c, name) for c, name in zip(found, names) if c.classes])
    return [listing, parts] if parts is not None else [listing]


def _rows(table: Table) -> list[Row]:
    return [row for row in table.rows if row.counted]


def _of_variants(table: Table, episodes: Episodes) -> list[RowComparison]:
    """The rows of one method against the first of them; none of very many."""
    rows = _rows(table)
    if not 2 <= len(rows) <= _MOST:
        return []
    found = []
    for row in rows[1:]:
        for shot in table.shots:
            ours, theirs = ([c for c in r.counted if c.key.shot == shot] for r in (row, rows[0]))
            if ours and theirs:
                compared = compare(ours, theirs, episodes)
                found.append(replace(compared, row=row.label, reference=rows[0].label, shot=shot))
    return corrected(found)


def _names(found: Sequence[RowComparison], table: Table) -> list[str]:
    """What to call each comparison: without the reference, if all have the same."""
    alike = len({c.reference for c in found}) == 1
    names = [c.row if alike else f"{c.row} less {c.reference}" for c in found]
    return [table.named(name, c.shot) for c, name in zip(found, names)]


def _compared(c: RowComparison, label: str, ends: Sequence[float]) -> Line:
    if c.difference is None:
        return Line(label, [Datum("not compared"), *[Datum(MISSING)] * 8])
    d, test = c.difference, c.test
    return Line(label, [
        Datum(f"{d.mean:+.2f}", d.mean, strong=d.interval is not None and d.interval.excludes_zero),
        _brackets(d.interval, "+.2f"),
        _bar(d.mean, d.interval, ends, f"{label}: {d}"),
        Datum(str(d.pairs)),
        Datum(str(c.episodes) if c.episodes else MISSING),
        Datum(f"{c.wins} of {d.pairs}"),
        Datum(str(c.improvement) if c.improvement is not None else MISSING),
        Datum(f"{test.p:.2g}") if test is not None else Datum(MISSING),
        Datum(f"{c.p_holm:.2g}") if c.p_holm is not None else Datum(MISSING),
    ])  # fmt: skip


def _parts(table: Table, named: Sequence[tuple[RowComparison, str]]) -> Listing | None:
    """The difference of each class with its interval, by fold."""
    if not named:
        return None
    found = [c for c, _ in named]
    listing = Listing(f"Differences of IoU by fold and class, {about(table)}", ["class", *(name for _, name in named)])
    for fold in sorted({part.fold for c in found for part in c.folds}):
        lines = [Line(f"fold {fold}", _in_row([c.folds for c in found], fold, f"fold {fold}"), lead=True)]
        of_fold = dict.fromkeys(part.name for c in found for part in c.classes if part.fold == fold)
        lines += [Line(name, _in_row([c.classes for c in found], fold, name)) for name in of_fold]
        listing.bodies.append(lines)
    listing.notes = [
        "bold: the interval does not hold 0. These intervals are not corrected for their number: of twenty that are of "
        "no difference, one leaves 0 out",
        *notes_on_parts(found),
    ]
    listing.folded = True
    return listing


def _in_row(columns: Sequence[Sequence[ScorePart]], fold: int, name: str) -> list[Datum]:
    found = []
    for parts in columns:
        part = next((p for p in parts if (p.fold, p.name) == (fold, name)), None)
        if part is None:
            found.append(Datum(MISSING))
            continue
        interval = part.interval
        brackets = "" if interval is None else f" {interval.brackets('+.1f')}"
        strong = interval is not None and interval.excludes_zero
        found.append(Datum(f"{part.value:+.1f}{brackets}", part.value, strong=strong))
    return found


def _brackets(interval: Interval | None, form: str) -> Datum:
    if interval is None:
        return Datum(MISSING)
    return Datum(interval.brackets(form), interval.high - interval.low)


def _told(interval: Interval | None) -> str:
    return "" if interval is None else f", interval {interval.low:.2f} to {interval.high:.2f}"


def _ends(value: float, interval: Interval | None) -> list[float]:
    return [value] if interval is None else [interval.low, value, interval.high]


def _bar(value: float, interval: Interval | None, ends: Sequence[float], words: str) -> Datum:
    """A picture of an interval on the axis of its table."""
    low, high = min(ends), max(ends)
    margin = 0.04 * (high - low) or 1.0

    def place(x: float) -> float:
        return round(100 * (x - low + margin) / (high - low + 2 * margin), 1)

    first, last = (value, value) if interval is None else (interval.low, interval.high)
    zero = place(0.0) if low <= 0 <= high else None
    return Datum("", value, bar=Bar(place(first), place(value), place(last), zero, words))
