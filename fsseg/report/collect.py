"""From output folders to a list of cells: finds run directories, reads what they say, and names what cannot be read.

`fsseg aggregate`, the report and notebooks call `collect` and `to_frame`. Everything here is plain JSON and YAML; torch
and Hydra are never imported, so that reading a thousand runs is quick.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fsseg.errors import UserError
from fsseg.report.cells import Cell, Problem, Unreadable, finished, load, mapping, unfinished
from fsseg.report.replication import REPLICATION_FILE, is_ours, parse_replication

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Cell", "Collection", "Problem", "collect", "to_frame"]

_MARKERS = ("result.json", "status.json", "config.yaml")
_OF_A_RUN = {"checkpoints", "figures", "attempts", "tensorboard"}  # folders of a run that hold no runs themselves


@dataclass
class Collection:
    """Everything found under the folders asked for, in a stable order."""

    cells: list[Cell]
    problems: list[Problem]


def collect(paths: Iterable[str | Path]) -> Collection:
    """Read all run directories under any number of folders; a run directory or a replication_results.json may be named.

    Overlapping folders are read once. A file that cannot be understood becomes a `Problem`, and its cell counts as
    missing, never as a number.

    Raises:
        UserError: a path does not exist, or nothing at all was found.
    """
    roots = [Path(p) for p in paths]
    if not roots:
        raise UserError("no folder given", "name at least one, e.g. outputs/runs")
    for root in roots:
        if not root.exists():
            raise UserError(f"{root} does not exist", "name a folder that holds runs, e.g. outputs/runs")
    cells: list[Cell] = []
    problems: list[Problem] = []
    seen: set[Path] = set()
    for root in roots:
        if root.is_file():
            if (real := root.resolve()) not in seen:
                seen.add(real)
                _add_replication(root, cells, problems)
            continue
        for folder, files in _walk(root, seen, problems):
            if any(marker in files for marker in _MARKERS):
                _add_run(folder, files, cells, problems)
            if REPLICATION_FILE in files and not is_ours(folder / REPLICATION_FILE):
                _add_replication(folder / REPLICATION_FILE, cells, problems)
    if not cells and not problems:
        raise UserError(
            f"no run found under {', '.join(map(str, roots))}",
            "name a folder above run directories (they hold result.json, status.json or config.yaml), or start runs"
            " with train.py",
        )
    cells.sort(key=lambda c: (c.dataset, c.method, c.backbone, c.variant, c.name, c.shot, c.fold, c.seed, str(c.path)))
    return Collection(cells, problems)


def to_frame(collection: Collection | Sequence[Cell]) -> pd.DataFrame:
    """One row a cell, finished or not; the columns are the plain fields of `Cell` plus its identities."""
    import pandas as pd  # takes a second: only for those who ask for a frame

    cells = collection.cells if isinstance(collection, Collection) else collection
    columns = [
        "name", "dataset", "method", "backbone", "variant", "shot", "fold", "seed", "state", "miou", "miou_std",
        "fb_iou", "fb_iou_std", "partial", "missing_classes", "protocol", "protocol_id", "data_val", "data_train",
        "steps", "seconds", "finished_at", "fingerprint", "reason", "path",
    ]  # fmt: skip
    rows = []
    for cell in cells:
        training = mapping(cell.result.get("training"))
        row = asdict(cell) | {
            "missing_classes": ", ".join(cell.missing_classes),
            "protocol": (cell.protocol or {}).get("name"),
            "protocol_id": cell.protocol_id,
            "data_val": cell.data_val,
            "data_train": cell.data_train,
            "steps": training.get("steps"),
            "seconds": training.get("seconds"),
            "finished_at": cell.result.get("finished_at"),
            "path": str(cell.path),
        }
        rows.append({column: row[column] for column in columns})
    return pd.DataFrame(rows, columns=columns)


def _walk(root: Path, seen: set[Path], problems: list[Problem]) -> Iterator[tuple[Path, set[str]]]:
    """Every visible folder once, links followed (people link outputs to another disk), circles left out."""

    def unreadable(error: OSError) -> None:
        problems.append(Problem(Path(error.filename or root), f"cannot be read ({error.strerror})"))

    for folder, folders, files in os.walk(root, followlinks=True, onerror=unreadable):
        real = Path(folder).resolve()
        if real in seen:
            # Its subfolders were visited with it, by whichever path came first.
            folders.clear()
            continue
        seen.add(real)
        names = set(files)
        is_run = any(marker in names for marker in _MARKERS)
        folders[:] = sorted(f for f in folders if not f.startswith(".") and not (is_run and f in _OF_A_RUN))
        yield Path(folder), names


def _add_run(folder: Path, files: set[str], cells: list[Cell], problems: list[Problem]) -> None:
    broken = ""
    if "result.json" in files:
        try:
            cells.append(finished(folder, load(folder / "result.json")))
            return
        except Unreadable as error:
            broken = str(error)
            problems.append(Problem(folder / "result.json", broken))
    cell = unfinished(folder, files, problems)
    if cell is None:
        return
    if broken:
        cell.state, cell.reason = "broken", f"result.json {broken}"
    cells.append(cell)


def _add_replication(path: Path, cells: list[Cell], problems: list[Problem]) -> None:
    try:
        entries, faults = parse_replication(load(path))
    except Unreadable as error:
        problems.append(Problem(path, str(error)))
        return
    problems.extend(Problem(path, fault) for fault in faults)
    for entry in entries:
        cells.append(
            Cell(
                name=path.resolve().parent.name,
                dataset=entry.dataset,
                method="abcb",
                backbone=entry.backbone,
                shot=entry.shot,
                fold=entry.fold,
                seed=0,
                variant="default",
                path=path,
                protocol={"name": "older workflow (not recorded)"},
                miou=entry.miou,
            )
        )
