"""Sheets of episodes that lie in the runs, made small enough for a page; and how the episodes on them scored.

`contents` calls `sheets_of`. Pillow is imported for the first picture.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fsseg.cell.episodes import OWN, EpisodeCounts
from fsseg.cell.extremes import RANKS, extremes, extremes_of_classes, ranked
from fsseg.cell.models import Unreadable
from fsseg.cell.record import RunDirectory
from fsseg.errors import UserError
from fsseg.process.files import PICTURE_BYTES, read_file
from fsseg.process.words import count, several
from fsseg.report.collect import CellResult
from fsseg.report.page.listing import Datum, Listing, plain

MOST_BYTES, MOST_SHEETS = 9_000_000, 45
"""Of all pictures of a page together; what does not fit is named."""
_WIDTH = 1000  # pixels
_QUALITY = 62


@dataclass(frozen=True)
class Embedded:
    """A picture as a `data:` address, what it shows in words, and its size in pixels."""

    address: str
    words: str
    width: int
    height: int
    caption: str = ""


@dataclass
class Sheets:
    """The sheets of one run, and the extremes of its episodes by class."""

    heading: str
    pictures: list[Embedded] = field(default_factory=list)
    classes: Listing | None = None


class Budget:
    """How much of the page pictures may take."""

    def __init__(self, most_bytes: int = MOST_BYTES, most: int = MOST_SHEETS) -> None:
        self.bytes, self.left = most_bytes, most

    def takes(self, size: int) -> bool:
        """Whether a picture of so many bytes still fits; if so, it is counted."""
        if self.left < 1 or size > self.bytes:
            return False
        self.bytes -= size
        self.left -= 1
        return True


def embedded(file: Path, words: str, budget: Budget, caption: str = "") -> Embedded | None:
    """A picture file, scaled down to the page's width; None if it is no picture, or the budget is spent.

    A file of the size of a bomb is refused by Pillow, and one above `PICTURE_BYTES` is not read.
    """
    if budget.left < 1:
        return None
    from PIL import Image

    from fsseg.data.images import opened

    try:
        with opened(file, "figure", read_file(file, PICTURE_BYTES)) as image:
            picture = image.convert("RGB")
    except (OSError, ValueError, UserError):
        return None
    if picture.width > _WIDTH:
        height = max(1, round(picture.height * _WIDTH / picture.width))
        picture = picture.resize((_WIDTH, height), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    try:
        picture.save(out, "WEBP", quality=_QUALITY, method=2)
        kind = "webp"
    except (OSError, KeyError, ValueError):  # a Pillow without WebP; or a side of more pixels than WebP has
        out = io.BytesIO()
        picture.save(out, "JPEG", quality=_QUALITY)
        kind = "jpeg"
    address = f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"
    if not budget.takes(len(address)):
        return None
    return Embedded(address, words, picture.width, picture.height, caption)


def sheets_of(
    rows: Mapping[str, Sequence[CellResult]], budget: Budget, drawn: Mapping[Path, Path] | None = None
) -> tuple[list[Sheets], int]:
    """The sheets of one run for each row, shot and fold: of the first training seed that has some.

    Args:
        rows: label of a row -> its finished cells.
        drawn: run directory -> another folder that holds its sheets.

    Returns:
        What was found, and how many further runs have sheets that did not fit. Of many rows each has its turn, so that
        the first fold of all rows comes before the second.
    """
    found: list[Sheets] = []
    left_out = 0
    for label, cell, folder in _in_turn(rows, drawn or {}):
        if budget.left < 1:
            left_out += 1
            continue
        key = cell.key
        sheets = Sheets(f"{label}, {key.shot}-shot, fold {key.fold}, seed {key.seed}")
        counts = _counts(cell)
        for file, rank, per_class in _files(folder):
            told = f" {_in_words(counts, rank, per_class)}" if counts is not None else ""
            caption = f"{rank} episodes{' of each class' * per_class}" if rank else "episodes"
            words = f"{caption[0].upper()}{caption[1:]} of {sheets.heading}: supports, query, truth, prediction.{told}"
            if (picture := embedded(file, words, budget, caption)) is not None:
                sheets.pictures.append(picture)
        if not sheets.pictures:
            left_out += budget.left < 1 or budget.bytes < 100_000
            continue
        sheets.classes = _by_class(counts, sheets.heading)
        found.append(sheets)
    order = {label: place for place, label in enumerate(rows)}
    found.sort(key=lambda sheets: next((order[label] for label in rows if sheets.heading.startswith(label)), 0))
    return found, left_out


def _in_turn(
    rows: Mapping[str, Sequence[CellResult]], drawn: Mapping[Path, Path]
) -> list[tuple[str, CellResult, Path]]:
    """The runs whose sheets are shown, with the folder that holds them: the first of each row, then the second, ..."""
    per_row: list[list[tuple[str, CellResult, Path]]] = []
    for label, cells in rows.items():
        places: dict[tuple[int, int], tuple[str, CellResult, Path]] = {}
        for cell in sorted(cells, key=lambda c: (c.key.shot, c.key.fold, c.path not in drawn, c.key.seed)):
            place = (cell.key.shot, cell.key.fold)
            folder = drawn.get(cell.path, RunDirectory(cell.path).figures)
            if place not in places and _files(folder):
                places[place] = (label, cell, folder)
        per_row.append(list(places.values()))
    longest = max(map(len, per_row), default=0)
    return [of_row[turn] for turn in range(longest) for of_row in per_row if turn < len(of_row)]


def _files(folder: Path) -> list[tuple[Path, str, bool]]:
    """The sheets in a folder, each with its rank and whether it is of each class: the best there are."""
    for per_class in (True, False):
        files = [(folder / f"{rank}{'_per_class' * per_class}.png", rank, per_class) for rank in RANKS]
        if there := [entry for entry in files if entry[0].is_file()]:
            return there
    episodes = folder / "episodes.png"
    return [(episodes, "", False)] if episodes.is_file() else []


def _counts(cell: CellResult) -> EpisodeCounts | None:
    """The recorded episodes under the run's own backgrounds; None where there are none that can be read."""
    try:
        counts = RunDirectory(cell.path).episodes()
    except Unreadable:
        return None
    return None if counts is None else counts.select(OWN)


def _in_words(counts: EpisodeCounts, rank: str, per_class: bool) -> str:
    """The IoU of the episodes of a rank."""
    if not rank:
        return f"{count(len(counts), 'episode')} were evaluated."
    episodes = ranked(counts, counts.iou())
    if not per_class:
        values = [e.value for e in extremes(episodes, 3)[rank]]
        return f"IoU of these: {', '.join(f'{v:.1f}' for v in values)}."
    names = dict(zip(counts.scope.classes, counts.scope.class_names))
    found = extremes_of_classes(episodes, 1)[rank]
    return f"IoU: {several([f'{names.get(e.class_id, e.class_id)} {e.value:.1f}' for e in found], 20)}."


def _by_class(counts: EpisodeCounts | None, heading: str) -> Listing | None:
    """The IoU of the best, the median and the worst episode of each class."""
    if counts is None:
        return None
    names = dict(zip(counts.scope.classes, counts.scope.class_names))
    columns: dict[int, dict[str, float]] = {}
    for rank, found in extremes_of_classes(ranked(counts, counts.iou()), 1).items():
        for episode in found:
            columns.setdefault(episode.class_id, {})[rank] = episode.value
    numbers = {class_id: int((counts["class_id"] == class_id).sum()) for class_id in columns}
    rows: list[list[str | Datum]] = [
        [str(names.get(class_id, class_id)), *(f"{of_class[rank]:.1f}" for rank in RANKS), str(numbers[class_id])]
        for class_id, of_class in columns.items()
    ]
    return plain(f"IoU of single episodes in percent, {heading}", ["class", *RANKS, "episodes"], rows)
