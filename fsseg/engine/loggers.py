"""What a run writes while it goes: metrics.csv and TensorBoard events. Called by the training loop."""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path
from typing import Any

from fsseg.process.files import write_atomic


class MetricsLog:
    """Rows of metrics.csv, kept whole in memory so that every state on disk is a whole file.

    Args:
        directory: the run directory.
        tensorboard: also write TensorBoard events.
        rows: rows of the checkpoint from which a run is resumed.
    """

    def __init__(self, directory: Path, tensorboard: bool, rows: list[dict[str, Any]] | None = None) -> None:
        self.path = directory / "metrics.csv"
        self.rows = list(rows or [])
        self._written = 0.0
        self._board = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            # purge_step hides what a killed attempt wrote beyond the checkpoint
            purge = self.rows[-1]["step"] + 1 if self.rows else 0
            self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=purge, flush_secs=30)

    def add(self, row: dict[str, Any]) -> None:
        """Add a row; the file is written at most every other second."""
        self.rows.append(row)
        if self._board:
            for key, value in row.items():
                if key not in ("step", "epoch"):
                    self._board.add_scalar(key, value, row["step"])
        if time.monotonic() - self._written > 2.0:
            self.write()

    def write(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(dict.fromkeys(k for row in self.rows for k in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in self.rows)
        write_atomic(self.path, text.getvalue())
        self._written = time.monotonic()

    def close(self) -> None:
        self.write()
        if self._board:
            self._board.close()
