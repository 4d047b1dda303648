"""Run directories as a run leaves them, made through `fsseg.cell.record`: tests write no record by hand."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from omegaconf import OmegaConf

from fsseg.cell.key import CellKey
from fsseg.cell.metrics_file import MetricsFile
from fsseg.cell.models import SCHEMA_VERSION, Identity, Result, State, Status, write_record
from fsseg.cell.record import Cell, RunDirectory
from fsseg.process.files import write_json

KEY = CellKey("runs", "pascal5i", "abcb", "resnet50", 1, 0, 0, "default")
PROTOCOL = {
    "name": "standard", "novel_in_training": "drop", "min_pixels": 2048, "num_episodes": 1000, "seeds": [0, 1],
    "episodes_file": None,
}  # fmt: skip


def make_run(
    place: Path | Cell,
    key: CellKey = KEY,
    *,
    result: float | Mapping[str, Any] | None = None,
    status: str | Mapping[str, Any] | None = None,
    identity: Mapping[str, Any] | None = None,
    overrides: Sequence[str] | None = None,
    config: str | Mapping[str, Any] | None = None,
    age: float = 0.0,
    version: int = SCHEMA_VERSION,
) -> RunDirectory:
    """A run directory with the records that are given; what is already there stays.

    Args:
        place: the output folder, below which `key` says where; or a composed cell, whose key, fingerprint, identity,
            overrides then count.
        result: fields of `Result` that differ from those of `default_result`, nested ones merged; a number is the mIoU.
            A finished run has a status too.
        status: fields of `Status`; a word is the state.
        identity: all settings; written with `overrides`.
        config: of config.yaml, as its text or its mapping.
        age: seconds since the status was written.
        version: schema of the records; 1 has no overrides and no `training.seconds`.
    """
    cell = place if isinstance(place, Cell) else None
    if cell is not None:
        key, identity, overrides = cell.key, identity or cell.identity, overrides or cell.overrides
    run = RunDirectory(cell.directory if cell else Path(place, key.path))  # type: ignore[arg-type]
    run.directory.mkdir(parents=True, exist_ok=True)
    fingerprint = cell.fingerprint if cell else "f"
    if config is not None:
        run.config_file.write_text(config if isinstance(config, str) else OmegaConf.to_yaml(OmegaConf.create(config)))
    if identity is not None:
        kept = list(overrides or []) if version > 1 else None
        written(
            run.identity_file, Identity(fingerprint, dict(identity), kept, cell=key if version > 1 else None), version
        )
    if result is not None:
        given = {"metrics": {"miou": float(result)}} if isinstance(result, (int, float)) else result
        miou = (given.get("metrics") or {}).get("miou", 50.0)
        fields = merged(default_result(key, fingerprint, miou, version), given)
        written(run.result_file, checked(fields, Result), version)
        status = State.DONE.value if status is None else status
    if status is not None:
        given = {"state": status} if isinstance(status, str) else status
        fields = {"heartbeat": time.time() - age, **given}
        written(run.status_file, checked(fields, Status), version)
    return run


def written(path: Path, record: Any, version: int) -> None:
    """Write a record; of an older version, as the code of that time did."""
    write_record(path, record)
    if version < SCHEMA_VERSION:
        write_json(path, {**msgspec.to_builtins(record), "schema_version": version})


def default_result(key: CellKey, fingerprint: str, miou: float, version: int) -> dict[str, Any]:
    """A finished run of 10 steps and one class; the episodes are those of its fold."""
    seconds = {"seconds": 2.5} if version > 1 else {}
    return {
        "cell": key, "fingerprint": fingerprint, "protocol": PROTOCOL,
        "metrics": {"miou": miou, "miou_std": 0.5, "fb_iou": 80.0, "fb_iou_std": 0.1, "per_class": {"cat": miou},
                    "per_seed": [{"seed": 0, "miou": miou, "episodes_fingerprint": f"e{key.fold}"}]},
        "training": {"steps": 10, **seconds},
        "timing": {"train_seconds": 2.5}, "finished_at": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip


def merged(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Both, mappings merged at every depth; `theirs` wins."""
    both = [k for k in theirs if isinstance(theirs[k], Mapping) and isinstance(ours.get(k), Mapping)]
    return {**ours, **theirs, **{k: merged(ours[k], theirs[k]) for k in both}}


def checked(fields: Mapping[str, Any], kind: type[Any]) -> Any:
    """The record with these fields; one that it does not know is a fault of the test."""
    if unknown := set(fields) - set(kind.__struct_fields__):
        raise ValueError(f"{kind.__name__} has no {', '.join(sorted(unknown))}")
    return msgspec.convert(msgspec.to_builtins(dict(fields)), kind)


def write_metrics(run: RunDirectory, rows: Sequence[Mapping[str, Any]]) -> None:
    """metrics.csv with these rows."""
    table = MetricsFile(run.metrics_file)
    for row in rows:
        table.append(row)
    table.close()
