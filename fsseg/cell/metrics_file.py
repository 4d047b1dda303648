"""metrics.csv while a run trains: rows are appended, and cut back when the run is resumed. Used by `fsseg.engine`.

`RunDirectory.curves` reads the file. A row costs the same whatever the file holds.
"""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fsseg.process.files import METRICS_BYTES, Refused, open_anew, read_file

log = logging.getLogger("fsseg")


class MetricsFile:
    """The file, open for appending.

    It is always written anew under its name first (`open_anew`).

    Args:
        path: of metrics.csv.
        keep: how many of its rows belong to the run; what follows them came after the checkpoint that it goes on from.

    Attributes:
        rows: how many there are.
        last_step: of the last row; None without one.
    """

    def __init__(self, path: Path, keep: int = 0) -> None:
        self.path = path
        self._columns: list[str] = []
        lines = _whole_lines(path)[: keep + 1] if keep else []
        self.rows = max(0, len(lines) - 1)
        self.last_step = None
        if self.rows:
            self._columns, last = _cells(lines[0]), _cells(lines[-1])
            self.last_step = _step(dict(zip(self._columns, last)))
        if self.rows < keep:
            log.warning("%s has %d of the %d rows that the run had written: the others are lost", path, self.rows, keep)
        self._file = open_anew(path, b"".join(lines) if self.rows else b"")

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row, with a column for every key; a new key makes the file be written anew.

        Raises:
            OSError: it cannot be written.
        """
        if unknown := [key for key in row if key not in self._columns]:
            self._add_columns(unknown)
        self._file.write(_line(row, self._columns))
        self.rows += 1
        self.last_step = _step(row)

    def flush(self, to_disk: bool = False) -> None:
        """Hand all rows to the system; with `to_disk` wait until the disk has them.

        Raises:
            OSError: it cannot be written.
        """
        self._file.flush()
        if to_disk:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Raises: OSError."""
        self._file.close()

    def _add_columns(self, names: list[str]) -> None:
        self.close()
        rows = _whole_lines(self.path)[1:]
        filler = b"," * len(names) + b"\n"
        self._columns += names
        head = _line(dict(zip(self._columns, self._columns)), self._columns)
        self._file = open_anew(self.path, head + b"".join(row[:-1] + filler for row in rows))


def _whole_lines(path: Path) -> list[bytes]:
    """Lines with their ends; one that a kill cut short is left out."""
    try:
        lines = read_file(path, METRICS_BYTES).splitlines(keepends=True)
    except (FileNotFoundError, Refused):  # a FIFO, say: the new file takes its name
        return []
    return [line for line in lines if line.endswith(b"\n")]


def _cells(line: bytes) -> list[str]:
    return next(csv.reader([line.decode("utf-8", "replace")]))


def _line(row: Mapping[str, Any], columns: Sequence[str]) -> bytes:
    text = io.StringIO()
    cells = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}
    csv.DictWriter(text, columns, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


def _step(row: Mapping[str, Any]) -> int | None:
    try:
        return int(row["step"])
    except (KeyError, ValueError):
        return None
