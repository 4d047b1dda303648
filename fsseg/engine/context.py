"""`Run`: one start of a cell, with everything that training and evaluation share. `fsseg.run` makes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fsseg.cell.claim import Claim
from fsseg.cell.record import Cell
from fsseg.cell.status import StatusFile
from fsseg.engine.trackers.processes import Trackers
from fsseg.process.ranks import ALONE, Ranks
from fsseg.process.signals import Signals

if TYPE_CHECKING:
    import torch

    from fsseg.config.schema import Config


@dataclass
class Run:
    """What training and evaluation need beside model and data.

    Attributes:
        cfg: the composed configuration.
        cell: the directory to work in; only the first of several processes writes there.
        device: where to compute; None until `fsseg.run` has chosen it.
        ranks: the processes that work on the cell together.
        claim: held by the first process; None in the others.
        id: of the run that is made here, named in its identity, checkpoints and result (see `fsseg.cell.models`).
        fresh: the id was made now.
        work: where the first process prepares its files (see `fsseg.cell.fence`).
        signals: notes of signals that ask the run to stop.
        status: writes `status.json`.
        announced: whether the other processes have been told if there is work.
        trackers: processes that tell other tools of the run; none outside the first process.
    """

    cfg: Config
    cell: Cell
    device: torch.device | None = None
    ranks: Ranks = ALONE
    claim: Claim | None = None
    id: str | None = None
    fresh: bool = False
    work: Path | None = None
    signals: Signals = field(default_factory=Signals)
    status: StatusFile = field(default_factory=lambda: StatusFile(None))
    announced: bool = False
    trackers: Trackers = field(default_factory=Trackers)

    def still_ours(self) -> None:
        """Check the claim; called before anything is written to the cell.

        Raises:
            ClaimLost: another process has taken the cell over.
        """
        if self.claim is not None:
            self.claim.check()

    def asked_to_stop(self) -> bool:
        """Whether a signal came: what is left to do must be short."""
        return self.signals.received is not None

    def should_stop(self) -> str | None:
        """A reason to stop, or None; called at every step.

        Raises:
            ClaimLost: another process has taken the cell over.
        """
        self.still_ours()
        return self.signals.reason()
