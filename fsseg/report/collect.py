"""From output folders to a list of cells: finds run directories, reads what they say, and names what cannot be read.

`fsseg aggregate`, the report and notebooks call `collect` and `to_frame`. Everything here is plain JSON and YAML; torch
and Hydra are never imported, so that reading a thousand runs is quick.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsseg.errors import UserError
from fsseg.report.replication import REPLICATION_FILE, is_ours, parse_replication

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1
_MARKERS = ("result.json", "status.json", "config.yaml")
_OF_A_RUN = {"checkpoints", "figures", "attempts", "tensorboard"}  # folders of a run that hold no runs themselves
_LAYOUT = re.compile(
    r"(?P<name>[^/]+)/(?P<dataset>[^/]+)/(?P<method>[^/]+)/(?P<backbone>[^/]+)/(?P<shot>\d+)shot/(?P<variant>[^/]+)"
    r"/fold(?P<fold>\d+)/seed(?P<seed>\d+)$"
)


@dataclass
class Cell:
    """One run directory, finished or not. mIoU and FB-IoU in percent; None where there is no result.

    Attributes:
        state: done, or for a cell without result: queued, running, preempted, failed, broken, unknown.
        reason: why there is no result, for people; empty for a finished cell.
        protocol: every field of the protocol; None where nothing on disk tells.
        miou, fb_iou: means over the evaluation seeds.
        miou_std, fb_iou_std: standard deviations over the evaluation seeds.
        episodes: fingerprints of the evaluated episode lists, one a seed.
        data: the data set's block of the result (fingerprints of both splits and more).
        partial: a novel class could not be evaluated; see `missing_classes`.
        result: the whole result.json.
    """

    name: str
    dataset: str
    method: str
    backbone: str
    shot: int
    fold: int
    seed: int
    variant: str
    path: Path
    state: str = "done"
    reason: str = ""
    protocol: dict[str, Any] | None = None
    miou: float | None = None
    miou_std: float | None = None
    fb_iou: float | None = None
    fb_iou_std: float | None = None
    per_class: dict[str, float] = field(default_factory=dict)
    episodes: tuple[str, ...] = ()
    data: dict[str, Any] = field(default_factory=dict)
    partial: bool = False
    missing_classes: tuple[str, ...] = ()
    fingerprint: str = ""
    result: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def done(self) -> bool:
        return self.state == "done"

    @property
    def protocol_id(self) -> str | None:
        """8 hex digits over the protocol in full: cells are averaged only where it is equal.

        Of `episodes_file` only whether there is one counts: every fold needs a file of its own.
        """
        if self.protocol is None:
            return None
        whole = self.protocol | {"episodes_file": self.protocol.get("episodes_file") is not None}
        return hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()[:8]

    @property
    def data_val(self) -> str | None:
        """Fingerprint of the evaluation split; None where the result has none."""
        return _text(self.data.get("fingerprint_val"))

    @property
    def data_train(self) -> str | None:
        """Fingerprint of the training split; None where the result has none."""
        return _text(self.data.get("fingerprint_train"))

    @property
    def label(self) -> str:
        """The cell in words: `pascal5i abcb resnet50 1-shot fold 2 seed 0`, with its variant if it has one."""
        text = f"{self.dataset} {self.method} {self.backbone} {self.shot}-shot fold {self.fold} seed {self.seed}"
        return text if self.variant == "default" else f"{text} [{self.variant}]"


@dataclass(frozen=True)
class Problem:
    """A file that should have told something and did not."""

    path: Path
    what: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


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
        training = _mapping(cell.result.get("training"))
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
            cells.append(_finished(folder, _load(folder / "result.json")))
            return
        except _Unreadable as error:
            broken = str(error)
            problems.append(Problem(folder / "result.json", broken))
    cell = _unfinished(folder, files, problems)
    if cell is None:
        return
    if broken:
        cell.state, cell.reason = "broken", f"result.json {broken}"
    cells.append(cell)


class _Unreadable(Exception):
    """Why a file is not what its name says."""


def _load(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise _Unreadable(f"cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise _Unreadable(f"is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise _Unreadable(f"holds a {type(value).__name__} instead of an object")
    return value


def _finished(folder: Path, result: dict[str, Any]) -> Cell:
    """The cell of a result of schema version 1.

    Raises:
        _Unreadable: another version, or a field that the tables need is absent or no sensible value.
    """
    version = result.get("schema_version")
    if version != SCHEMA_VERSION:
        raise _Unreadable(
            "has no schema_version: no result of fsseg"
            if version is None
            else f"has schema_version {version!r}; this fsseg reads version {SCHEMA_VERSION}"
        )
    key = _mapping(result.get("cell"))
    metrics = _mapping(result.get("metrics"))
    protocol = result.get("protocol")
    if not isinstance(protocol, dict):
        raise _Unreadable("has no protocol")
    return Cell(
        **{k: _typed(key, k, str, "cell.") for k in ("name", "dataset", "method", "backbone", "variant")},
        **{k: _typed(key, k, int, "cell.") for k in ("shot", "fold", "seed")},
        path=folder,
        protocol=protocol,
        miou=_percent(metrics, "miou"),
        miou_std=_number(metrics.get("miou_std")),
        fb_iou=_number(metrics.get("fb_iou")),
        fb_iou_std=_number(metrics.get("fb_iou_std")),
        per_class={k: n for k, v in _mapping(metrics.get("per_class")).items() if (n := _number(v)) is not None},
        episodes=_episodes(metrics),
        data=_mapping(result.get("dataset")),
        partial=bool(result.get("partial", False)) or bool(result.get("missing_classes")),
        missing_classes=_texts(result.get("missing_classes")),
        fingerprint=str(result.get("fingerprint", "")),
        result=result,
    )


def _episodes(metrics: dict[str, Any]) -> tuple[str, ...]:
    seeds = metrics.get("per_seed")
    entries = [s for s in seeds if isinstance(s, dict)] if isinstance(seeds, list) else []
    return tuple(str(s["episodes_fingerprint"]) for s in entries if s.get("episodes_fingerprint"))


def _unfinished(folder: Path, files: set[str], problems: list[Problem]) -> Cell | None:
    """The cell of a directory without a readable result, or None if the directory is no run."""
    config: dict[str, Any] = {}
    status: dict[str, Any] = {}
    if "config.yaml" in files:
        config = _load_yaml(folder / "config.yaml", problems)
    status_fault = ""
    if "status.json" in files:
        try:
            status = _load(folder / "status.json")
        except _Unreadable as error:
            status_fault = f"status.json {error}"
            problems.append(Problem(folder / "status.json", str(error)))
    key = _key_from_path(folder) or _key_from_config(config)
    if key is None:
        if "status.json" in files and not status_fault:
            problems.append(Problem(folder, "has a status.json, but neither its path nor its config.yaml names a cell"))
        return None
    protocol = config.get("protocol")
    state = str(status.get("state") or "unknown")
    reason = status_fault or _reason(state, status)
    if state == "done":
        state = "unknown"  # only result.json means done
    return Cell(
        **key, path=folder, state=state, reason=reason, protocol=protocol if isinstance(protocol, dict) else None
    )


def _reason(state: str, status: dict[str, Any]) -> str:
    if state == "done":
        return "status.json says done, but there is no result.json"
    if not status:
        return "has a config.yaml, but no status.json"
    parts = [state]
    if (step := _number(status.get("step"))) is not None:
        steps = _number(status.get("steps"))
        parts.append(f"step {step:.0f}" + (f" of {steps:.0f}" if steps else ""))
    if state == "running":
        if (eta := _number(status.get("eta_seconds"))) is not None:
            parts.append(f"{_span(eta)} to go")
        if (beat := _number(status.get("heartbeat"))) is not None:
            parts.append(
                f"last heard of {_span(max(0.0, time.time() - beat))} ago on {status.get('host', 'unknown host')}"
            )
    if status.get("reason"):
        parts.append(str(status["reason"]).strip())
    return ", ".join(parts)


def _span(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _key_from_path(folder: Path) -> dict[str, Any] | None:
    match = _LAYOUT.search(folder.resolve().as_posix())
    if match is None:
        return None
    return {k: int(v) if k in ("shot", "fold", "seed") else v for k, v in match.groupdict().items()}


def _key_from_config(config: dict[str, Any]) -> dict[str, Any] | None:
    """For a run directory that was copied out of its tree; its variant can no longer be told."""
    try:
        return {
            "name": str(config["name"]),
            "dataset": str(config["dataset"]["name"]),
            "method": str(config["model"]["name"]),
            "backbone": str(config["backbone"]["name"]),
            "shot": int(config["shot"]),
            "fold": int(config["fold"]),
            "seed": int(config["seed"]),
            "variant": "unknown",
        }
    except (KeyError, TypeError, ValueError):
        return None


def _load_yaml(path: Path, problems: list[Problem]) -> dict[str, Any]:
    import yaml

    try:
        value = yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, yaml.YAMLError) as error:
        problems.append(Problem(path, f"cannot be read ({str(error).splitlines()[0]})"))
        return {}
    return _mapping(value)


def _add_replication(path: Path, cells: list[Cell], problems: list[Problem]) -> None:
    try:
        entries, faults = parse_replication(_load(path))
    except _Unreadable as error:
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


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list) else ()


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def _typed(mapping: dict[str, Any], key: str, kind: type, prefix: str) -> Any:
    value = mapping.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise _Unreadable(f"has {prefix}{key}={value!r}, no {'text' if kind is str else 'whole number'}")
    return value


def _percent(metrics: dict[str, Any], key: str) -> float:
    value = _number(metrics.get(key))
    if value is None or not 0 <= value <= 100:
        raise _Unreadable(f"has metrics.{key}={metrics.get(key)!r}, no percentage")
    return value
