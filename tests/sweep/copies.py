"""Runs with the records that tell one run from another, for the tests of copies on a store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from run_directories import make_run as make_records

from fsseg.cell.claim import acquire
from fsseg.cell.fence import drop, fenced, set_aside
from fsseg.cell.key import CellKey
from fsseg.cell.models import Attempt, write_record
from fsseg.cell.record import Cell
from fsseg.config.schema import Config

KEY = CellKey("runs", "shapes5i", "abcb", "tiny", 1, 2, 0, "default")
REMOTE = "runs/shapes5i/abcb/tiny/1shot/default/fold2/seed0"


def started(root: Path, host: str, starts: int = 1, miou: float | None = None, key: CellKey = KEY) -> Cell:
    """A run as its starts on a machine leave it: `starts` attempts, a checkpoint, a result if it has a score."""
    cell = Cell(root / key.path, key, "f" * 16, {"fold": key.fold})
    make_records(cell, result=miou, config="name: runs\n", identity={"fold": key.fold},
                 status={"state": "preempted" if miou is None else "done", "step": 5, "steps": 10})  # fmt: skip
    cell.log_file.write_text(f"log of {host}\n")
    cell.checkpoint.parent.mkdir(exist_ok=True)
    cell.checkpoint.write_text(f"weights of {host}")
    for number in range(1, starts + 1):
        attempt(cell, number, host)
    return cell


def attempt(cell: Cell, number: int, host: str) -> None:
    record = Attempt(f"2026-01-0{number}T00:00:00+00:00", pid=100 + number, host=host)
    write_record(cell.attempts / f"{number}.json", record)


def configured(url: str | None, **fields: Any) -> Config:
    return OmegaConf.create(
        {"sync": {"url": url, "checkpoints": False, "attempts": 1, "timeout_seconds": 20.0, **fields}}
    )  # type: ignore[return-value]


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder, with its content."""
    return {p.relative_to(folder).as_posix(): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def redo(cell: Cell, host: str, miou: float | None) -> None:
    """The run is replaced by a new one, as `redo=true` does it."""
    claim = acquire(cell.claim_file, 300)
    with fenced(cell, claim) as work:
        set_aside(cell, work)
        drop(cell.replaced, work)
        started(cell.directory.parents[7], host, starts=0, miou=miou, key=cell.key)
    claim.release()
    attempt(cell, cell.last_attempt()[0] + 1, host)
