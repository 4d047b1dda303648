"""predictions.csv of `fsseg predict`: a row for each image and class, read again by the next start of the same line."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any

from fsseg.process.files import open_anew

_COLUMNS = ("file", "name", "class", "share", "mean_probability", "seconds", "intersection", "union", "iou")


@dataclass(frozen=True)
class ClassRow:
    """What was found of a class in an image.

    Attributes:
        file: absolute path of the image.
        name: of its outputs, without ending.
        of_class: the class.
        share: of the image's pixels that are of it.
        mean_probability: of its foreground, over the pixels that are of it; None without any.
        seconds: that the network took, its share of a batch.
        intersection, union: pixels, with the true mask; None without one.
    """

    file: str
    name: str
    of_class: str
    share: float
    mean_probability: float | None
    seconds: float
    intersection: int | None = None
    union: int | None = None

    @property
    def iou(self) -> float | None:
        """In percent; None where neither mask has a pixel."""
        return 100 * (self.intersection or 0) / self.union if self.union else None


class PredictionTable:
    """The file, and its rows by image and class.

    Args:
        path: of the file.
        fresh: leave out what it holds.
    """

    def __init__(self, path: Path, fresh: bool = False) -> None:
        self.path = path
        self._rows: dict[str, dict[str, ClassRow]] = {}
        self._file: io.TextIOWrapper | None = None
        for row in () if fresh else _read(path):
            self._rows.setdefault(row.file, {})[row.of_class] = row

    @property
    def names(self) -> dict[str, str]:
        """Absolute path of an image -> the name of its outputs."""
        return {file: next(iter(rows.values())).name for file, rows in self._rows.items()}

    def rows_of(self, image: Path) -> Mapping[str, ClassRow]:
        """Class -> row."""
        return self._rows.get(os.path.abspath(image), {})

    def forget(self, images: Iterable[Path]) -> None:
        """Leave out the rows of images that are to be segmented anew."""
        for image in images:
            self._rows.pop(os.path.abspath(image), None)

    def add(self, rows: Sequence[ClassRow]) -> None:
        """Write the rows of an image, whose files are there."""
        assert self._file is not None
        for row in rows:
            self._rows.setdefault(row.file, {})[row.of_class] = row
            _writer(self._file).writerow(_cells(row))
        self._file.flush()

    def __enter__(self) -> PredictionTable:
        """Write what is known, and stay open for more."""
        head = io.StringIO(newline="")
        _writer(head).writerow(_COLUMNS)
        for rows in self._rows.values():
            _writer(head).writerows(map(_cells, rows.values()))
        content = head.getvalue().encode(errors="surrogateescape")
        self._file = io.TextIOWrapper(open_anew(self.path, content), "utf-8", errors="surrogateescape", newline="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _writer(file: Any) -> Any:
    return csv.writer(file, lineterminator="\n")


def _cells(row: ClassRow) -> list[Any]:
    iou = None if row.iou is None else round(row.iou, 4)
    return [round(value, 6) if isinstance(value, float) else value for value in astuple(row)] + [iou]


def _read(path: Path) -> Iterable[ClassRow]:
    """The rows of a file; what is no whole row, as the last one of a process that was killed, is left out."""
    try:
        text = path.read_text("utf-8", errors="surrogateescape")
    except OSError:
        return
    for cells in csv.reader(io.StringIO(text, newline="")):
        if len(cells) != len(_COLUMNS) or tuple(cells) == _COLUMNS:
            continue
        kinds = (str, str, str, float, float, float, int, int)
        try:
            yield ClassRow(*(kind(cell) if cell else None for kind, cell, _ in zip(kinds, cells, fields(ClassRow))))  # type: ignore[arg-type]
        except ValueError:
            continue
