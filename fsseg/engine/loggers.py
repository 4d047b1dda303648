"""What a run writes while it trains: metrics.csv and TensorBoard events. Called by the training loop."""

from __future__ import annotations

import time
from typing import Any

from fsseg.cell.metrics_file import MetricsFile
from fsseg.cell.record import RunDirectory


class MetricsLog:
    """Rows of metrics.csv, and the same numbers as TensorBoard events.

    Args:
        run: the directory.
        tensorboard: also write TensorBoard events.
        rows: how many rows the checkpoint knows from which a run is resumed.
    """

    def __init__(self, run: RunDirectory, tensorboard: bool, rows: int = 0) -> None:
        self._table = MetricsFile(run.metrics_file, rows)
        self._flushed = 0.0
        self._board = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            # purge_step hides events that a killed attempt wrote after the checkpoint
            purge = (self._table.last_step or -1) + 1
            self._board = SummaryWriter(str(run.tensorboard), purge_step=purge, flush_secs=30)

    @property
    def rows(self) -> int:
        return self._table.rows

    def add(self, row: dict[str, Any]) -> None:
        """Add a row; readers see it within two seconds, or when the next one comes."""
        self._table.append(row)
        if self._board:
            for key, value in row.items():
                if key not in ("step", "epoch"):
                    self._board.add_scalar(key, value, row["step"])
        if time.monotonic() - self._flushed > 2.0:
            self._table.flush()
            self._flushed = time.monotonic()

    def save(self) -> None:
        """Put all rows on the disk, before a checkpoint that counts them."""
        self._table.flush(to_disk=True)

    def close(self) -> None:
        self._table.close()
        if self._board:
            self._board.close()
