"""`fsseg compare A B`: two runs, or two rows of several cells, side by side: settings, scores, paired differences.

All statistics are those of `fsseg.report.pairs` and `fsseg.report.intervals`; here cells are matched and lines made.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fsseg.config.tasks import BASE_LEARNERS
from fsseg.errors import UserError, visible
from fsseg.process.tables import aligned
from fsseg.process.words import count, several
from fsseg.report.collect import CellResult, collect
from fsseg.report.differences import Differences, differences
from fsseg.report.intervals import Episodes, Score, ScorePart
from fsseg.report.pairs import Pair, RowComparison, compare, corrected, notes_on, notes_on_parts
from fsseg.report.statistics import Interval

A, B = "A", "B"
_SAME = "fsseg compare takes two runs of the same episodes, or two folders of such runs, one row each"


@dataclass(frozen=True)
class SideBySide:
    """What two sides have for one number of shots, over the pairs that had the same episodes.

    Attributes:
        ours, theirs: the scores of the two sides, over the pairs alone.
        pairs: how many a fold has.
        left_out: folds and training seeds that are on one side alone, and pairs of unequal episodes.
    """

    ours: Score
    theirs: Score
    comparison: RowComparison
    pairs: dict[int, int]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class TwoSides:
    """Two rows, what differs in their settings, and their scores by number of shots."""

    paths: tuple[Path, Path]
    cells: tuple[list[CellResult], list[CellResult]]
    settings: Differences
    shots: dict[int, SideBySide]


def side_by_side(first: Path, second: Path) -> TwoSides:
    """Compare what two folders hold.

    Raises:
        UserError: a folder does not exist, holds no score or several rows, or the two have no pair of equal episodes.
    """
    cells = row_of(first), row_of(second)
    if cells[0][0].key.dataset != cells[1][0].key.dataset:
        names = " and ".join(c[0].key.dataset for c in cells)
        raise UserError(f"{first} and {second} are of different data sets: {names}", _SAME)
    episodes = Episodes()
    shots, refused = {}, []
    for shot in sorted({c.key.shot for side in cells for c in side}):
        ours, theirs = ([c for c in side if c.key.shot == shot] for side in cells)
        found = _of_shot(ours, theirs, episodes)
        if isinstance(found, SideBySide):
            shots[shot] = found
        else:
            refused.append(f"{shot}-shot: {found}")
    if not shots:
        raise UserError(f"{first} and {second} cannot be compared: {'; '.join(refused)}", _SAME)
    told = corrected([sides.comparison for sides in shots.values()])
    shots = {shot: replace(sides, comparison=one) for (shot, sides), one in zip(shots.items(), told)}
    return TwoSides((first, second), cells, differences(dict(zip((A, B), cells))), shots)


def row_of(folder: Path) -> list[CellResult]:
    """The cells with a score below a folder, which are one row of a table: one cell a place.

    Raises:
        UserError: there is none, or more than one row.
    """
    scored = [c for c in collect([folder]).cells if c.scored and c.key.method not in BASE_LEARNERS]
    if not scored:
        raise UserError(f"{folder} holds no run with a score", f"`fsseg status {folder}` tells how its runs stand")
    rows = sorted({(k.name, k.dataset, k.method, k.backbone, k.variant) for k in (c.key for c in scored)})
    if len(rows) > 1:
        names = several(["/".join(row) for row in rows], 4)
        raise UserError(f"{folder} holds {len(rows)} rows: {names}", "name a folder with the runs of one of them")
    places: dict[tuple[int, int, int], CellResult] = {}
    for cell in scored:
        place = cell.key.shot, cell.key.fold, cell.key.seed
        first = places.setdefault(place, cell)
        if (first.result.fingerprint, first.result.miou) != (cell.result.fingerprint, cell.result.miou):
            raise UserError(
                f"two results of {cell.key}: {first.path} and {cell.path}", "name a folder with one of them"
            )
    return list(places.values())


def _of_shot(ours: Sequence[CellResult], theirs: Sequence[CellResult], episodes: Episodes) -> SideBySide | str:
    """The two sides for one number of shots; a text says why they cannot be compared."""
    sides = [{(c.key.fold, c.key.seed): c for c in side} for side in (ours, theirs)]
    left_out = [
        f"only in {name}: fold {fold} seed {seed}"
        for name, i in ((A, 0), (B, 1))
        for fold, seed in sorted(sides[i].keys() - sides[1 - i].keys())
    ]
    kept: list[Pair] = []
    refused = []
    for place in sorted(sides[0].keys() & sides[1].keys()):
        pair = sides[0][place], sides[1][place]
        found = compare([pair[0]], [pair[1]], episodes)
        if found.difference is None:
            refused.append(found.refused)
        else:
            kept.append(pair)
    if not kept:
        return "; ".join(refused) or compare(ours, theirs, episodes).refused
    pairs: dict[int, int] = defaultdict(int)
    for one, _ in kept:
        pairs[one.key.fold] += 1
    one_side, other_side = [a for a, _ in kept], [b for _, b in kept]
    return SideBySide(
        episodes.score(one_side), episodes.score(other_side), compare(one_side, other_side, episodes), dict(pairs),
        (*left_out, *refused),
    )  # fmt: skip


def text(found: TwoSides) -> str:
    """What `fsseg compare` prints."""
    lines = [visible(f"{name}  {_whose(cells)}, {path}") for name, cells, path in zip((A, B), found.cells, found.paths)]
    if found.settings:
        rows = [["differs", A, B]]
        rows += [[key, of_rows.get(A, "-"), of_rows.get(B, "-")] for key, of_rows in found.settings.items()]
        lines += ["", aligned(rows, left=(0, 1, 2))]
    if all(c.identity is None for side in found.cells for c in side):
        lines += ["", "settings not known, without identity.json"]
    elif not found.settings:
        lines += ["", "no further setting differs"]
    for shot, sides in found.shots.items():
        lines += ["", *_of_shot_in_words(shot, sides)]
    return "\n".join(lines)


def _whose(cells: Sequence[CellResult]) -> str:
    key = cells[0].key
    variant = "" if key.variant == "default" else f" [{key.variant}]"
    return f"{key.dataset} {key.method} {key.backbone}{variant}: {count(len(cells), 'cell')}"


def _of_shot_in_words(shot: int, sides: SideBySide) -> list[str]:
    comparison, total = sides.comparison, sides.comparison.difference
    assert total is not None  # `_of_shot` has left out what cannot be compared
    rows = [[f"{shot}-shot, mIoU", A, B, f"{A} - {B}", "pairs"]]
    for name, ours, theirs, difference in _lines(sides):
        rows.append([
            name, _figure(ours.value, ours.interval), _figure(theirs.value, theirs.interval),
            _figure(difference.value, difference.interval, signed=True), str(sides.pairs[difference.fold]),
        ])  # fmt: skip
    rows.append([
        "mean", _figure(sides.ours.value, sides.ours.interval), _figure(sides.theirs.value, sides.theirs.interval),
        _figure(total.mean, total.interval, signed=True), str(total.pairs),
    ])  # fmt: skip
    notes = [visible(f"{A} against {B}{str(comparison).partition(f'{shot}-shot')[2]}")]
    notes += map(visible, [*notes_on([comparison]), *notes_on_parts([comparison])])
    if comparison.reason:
        notes.append(visible(f"no classes: {comparison.reason}"))
    return [
        aligned(rows),
        *(f"  {note}" for note in notes),
        *(visible(f"  left out: {what}") for what in sides.left_out),
    ]


def _lines(sides: SideBySide) -> list[tuple[str, ScorePart, ScorePart, ScorePart]]:
    """Each class and each fold: its name, both scores, and the difference."""
    ours, theirs = ({(p.fold, p.name): p for p in (*s.folds, *s.classes)} for s in (sides.ours, sides.theirs))
    found = []
    for part in (*sides.comparison.classes, *sides.comparison.folds):
        place = part.fold, part.name
        if place in ours and place in theirs:
            of_fold = part in sides.comparison.folds
            found.append((part.name if of_fold else f"fold {part.fold} {part.name}", ours[place], theirs[place], part))
    return found


def _figure(value: float, interval: Interval | None, signed: bool = False) -> str:
    form = "+.2f" if signed else ".2f"
    shown = f"{value:{form}}"
    if interval is None:
        return f"{shown} (no interval)" if signed else shown
    return f"{shown} {interval.brackets(form)}"


def to_json(found: TwoSides) -> dict[str, Any]:
    """The same with all decimals."""
    named = zip(("a", "b"), found.paths, found.cells)
    sides = {name: {"path": str(path), "cells": [str(c.path) for c in cells]} for name, path, cells in named}
    shots = {}
    for shot, of_shot in found.shots.items():
        told = asdict(of_shot.comparison) | {"row": A, "reference": B, "shot": shot}
        for name in ("folds", "classes"):
            told[name] = [part | {"pairs": of_shot.pairs[part["fold"]]} for part in told[name]]
        told["left_out"] = list(of_shot.left_out)
        shots[str(shot)] = {"a": asdict(of_shot.ours), "b": asdict(of_shot.theirs), "difference": told}
    return {"schema_version": 1, "unit": "mIoU in percent", **sides, "settings": found.settings, "shots": shots}
