"""The heat map of the page: IoU of every class and mIoU of every fold, for each row of a table. `contents` calls it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from fsseg.report.formats import MISSING
from fsseg.report.page.listing import HEAT_STEPS, Datum, Line, Listing, about
from fsseg.report.statistics import mean
from fsseg.report.tables import Row, Table

_MOST_COLUMNS = 8  # rows of the table that stand as columns beside the classes; of more each has a line

Column = tuple[str, int]
"""Label of a row of the table, and number of shots."""
Folds = dict[int, dict[str, dict[Column, float]]]
"""Fold -> class, `` for the mean of the fold -> column -> percent."""


def heat_map(table: Table) -> Listing | None:
    """The IoU of each class, by fold; a number is the mean over training seeds. None where no cell recorded classes."""
    folds: Folds = defaultdict(lambda: defaultdict(dict))
    columns: list[Column] = []
    for row in table.rows:
        for shot in table.shots:
            if of_row := _of_row(row, shot, table):
                columns.append((row.label, shot))
                for fold, of_classes in of_row.items():
                    for name, value in of_classes.items():
                        folds[fold][name][row.label, shot] = value
    if not any(name for of_classes in folds.values() for name in of_classes):
        return None
    values = [v for classes in folds.values() for of_columns in classes.values() for v in of_columns.values()]
    low, high = 10.0 * (min(values) // 10), 10.0 * -(-max(values) // 10)
    scale = (low, high if high > low else low + 10.0)
    labels = {column: table.named(*column) for column in columns}
    listing = (_classes_down if len(columns) <= _MOST_COLUMNS else _classes_across)(folds, labels, scale)
    listing.legend = scale
    listing.caption = (
        f"IoU of each class and mIoU of each fold, {about(table)}: {min(values):.1f} to {max(values):.1f} percent, "
        f"mean {mean(values):.1f}"
    )
    listing.notes.append("a number is the mean over training seeds")
    return listing


def _of_row(row: Row, shot: int, table: Table) -> dict[int, dict[str, float]]:
    """Fold -> class -> percent, of one row of the table."""
    found: dict[int, dict[str, float]] = {}
    for fold in table.folds:
        of_classes: dict[str, list[float]] = defaultdict(list)
        for cell in row.counted:
            if (cell.key.shot, cell.key.fold) == (shot, fold) and cell.result.metrics is not None:
                for name, iou in cell.result.metrics.per_class.items():
                    if iou is not None:
                        of_classes[name].append(iou)
        if of_classes:
            found[fold] = {name: mean(ious) for name, ious in of_classes.items()}
            if (entry := row.entries.get((shot, fold))) is not None:
                found[fold] = {"": entry.miou} | found[fold]
    return found


def _classes_down(folds: Folds, labels: Mapping[Column, str], scale: tuple[float, float]) -> Listing:
    listing = Listing("", ["class", *labels.values()])
    for fold, of_classes in sorted(folds.items()):
        listing.bodies.append([
            Line(name or f"fold {fold}", [_datum(values.get(c), scale) for c in labels], lead=not name)
            for name, values in of_classes.items()
        ])  # fmt: skip
    return listing


def _classes_across(folds: Folds, labels: Mapping[Column, str], scale: tuple[float, float]) -> Listing:
    columns = [(fold, name) for fold, of_classes in sorted(folds.items()) for name in of_classes]
    listing = Listing("", ["", *(name or "mean" for _, name in columns)])
    listing.groups = [(f"fold {fold}", len(of_classes)) for fold, of_classes in sorted(folds.items())]
    listing.bodies.append([
        Line(label, [_datum(folds[fold][name].get(c), scale) for fold, name in columns]) for c, label in labels.items()
    ])  # fmt: skip
    return listing


def _datum(value: float | None, scale: tuple[float, float]) -> Datum:
    if value is None:
        return Datum(MISSING)
    low, high = scale
    return Datum(f"{value:.1f}", heat=round(HEAT_STEPS * min(max((value - low) / (high - low), 0.0), 1.0)))
