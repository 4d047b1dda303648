"""What a run writes while it trains: metrics.csv and TensorBoard events. Called by the training loop."""

from __future__ import annotations

import time
from typing import Any

from fsseg.cell.record import RunDirectory


class MetricsLog:
    """Rows of metrics.csv, kept whole in memory so that every state on disk is a whole file.

    Args:
        run: the directory.
        tensorboard: also write TensorBoard events.
        rows: rows of the checkpoint from which a run is resumed.
    """

    def __init__(self, run: RunDirectory, tensorboard: bool, rows: list[dict[str, Any]] | None = None) -> None:
        self.run = run
        self.rows = list(rows or [])
        self._written = 0.0
        self._board = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            # purge_step hides events that a killed attempt wrote after the checkpoint
            purge = self.rows[-1]["step"] + 1 if self.rows else 0
            self._board = SummaryWriter(str(run.tensorboard), purge_step=purge, flush_secs=30)

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
        self.run.write_metrics(self.rows)
        self._written = time.monotonic()

    def close(self) -> None:
        self.write()
        if self._board:
            self._board.close()
