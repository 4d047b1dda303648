"""Run directories as a finished or broken run leaves them, in the few words that tests of tables need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from run_directories import KEY, make_run, merged

from fsseg.cell.key import CellKey
from fsseg.cell.record import RunDirectory

MakeCell = Callable[..., RunDirectory]
_KEY_FIELDS = {field.name for field in fields(CellKey)}


@pytest.fixture
def make_cell(tmp_path: Path) -> MakeCell:
    """make_cell(fold, miou, **differences) -> the directory of a finished cell; miou=None writes no result.

    Differences: fields of the key; `protocol` and `data` (the data set's block); `missing_classes`; `episodes` (the
    fingerprint of the list); `result` (anything else of it); `root`; and what `make_run` takes.
    """

    def make(
        fold: int, miou: float | None, *, root: Path = tmp_path, protocol: Mapping[str, Any] | None = None,
        data: Mapping[str, Any] | None = None, missing_classes: list[str] | None = None, episodes: str | None = None,
        result: Mapping[str, Any] | None = None, **changes: Any,
    ) -> RunDirectory:  # fmt: skip
        of_key = {"name": "x", "fold": fold} | {k: changes.pop(k) for k in _KEY_FIELDS & changes.keys()}
        if miou is not None:
            seed = {"seed": 0, "miou": miou, "episodes_fingerprint": episodes or f"e{fold}"}
            given = {
                "protocol": protocol or {}, "dataset": data or {}, "metrics": {"miou": miou, "per_seed": [seed]},
                "partial": bool(missing_classes), "missing_classes": missing_classes or [],
            }  # fmt: skip
            changes["result"] = merged(given, result or {})
        return make_run(root, replace(KEY, **of_key), **changes)

    return make


@pytest.fixture
def add(make_cell: MakeCell) -> MakeCell:
    """add(report, variant, miou, model, metrics=..., more of make_cell) -> a finished cell of an experiment."""

    def make(
        report: str, variant: str, miou: float, model: dict[str, Any], fold: int = 0, *,
        metrics: dict[str, Any] | None = None, cost: dict[str, Any] | None = None,
        identity: dict[str, Any] | None = None, name: str | None = None, seed: int = 0, **changes: Any,
    ) -> RunDirectory:  # fmt: skip
        result = {"report": report, "model": model, "metrics": metrics or {}, "cost": cost}
        result["fingerprint"] = f"{variant} {fold} {seed}"
        return make_cell(
            fold, miou, name=name or report, variant=variant, seed=seed, result=result, identity=identity or {},
            **changes,
        )  # fmt: skip

    return make
