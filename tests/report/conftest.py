"""Run directories as a finished or broken run leaves them, written by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PROTOCOL = {
    "name": "standard",
    "novel_in_training": "drop",
    "min_pixels": 2048,
    "num_episodes": 1000,
    "seeds": [0, 1],
    "episodes_file": None,
}

MakeCell = Callable[..., Path]


@pytest.fixture
def make_cell(tmp_path: Path) -> MakeCell:
    """make_cell(fold, miou, **differences) -> the run directory of a finished cell; miou=None writes no result."""

    def make(fold: int, miou: float | None, **changes: Any) -> Path:
        cell = {
            "name": "x", "dataset": "pascal5i", "method": "abcb", "backbone": "resnet50", "shot": 1, "fold": fold,
            "seed": 0, "variant": "default",
        }  # fmt: skip
        cell |= {k: v for k, v in changes.items() if k in cell}
        folder = (
            Path(changes.get("root", tmp_path)) / cell["name"] / cell["dataset"] / cell["method"] / cell["backbone"]
            / f"{cell['shot']}shot" / cell["variant"] / f"fold{cell['fold']}" / f"seed{cell['seed']}"
        )  # fmt: skip
        folder.mkdir(parents=True)
        if miou is None:
            return folder
        result = {
            "schema_version": 1,
            "cell": cell,
            "fingerprint": "f",
            "protocol": PROTOCOL | changes.get("protocol", {}),
            "metrics": {
                "miou": miou,
                "miou_std": 0.5,
                "fb_iou": changes.get("fb_iou", 80.0),
                "fb_iou_std": 0.1,
                "per_seed": [{"seed": 0, "miou": miou, "episodes_fingerprint": changes.get("episodes", f"e{fold}")}],
                "per_class": {"cat": miou},
            },
            "partial": bool(changes.get("missing_classes")),
            "missing_classes": changes.get("missing_classes", []),
            "dataset": {"fingerprint_train": "t", "fingerprint_val": "v"} | changes.get("data", {}),
            "training": {"steps": 10, "seconds": 2.5},
            "finished_at": "2026-01-01T00:00:00+00:00",
        }  # fmt: skip
        (folder / "result.json").write_text(json.dumps(result))
        return folder

    return make


@pytest.fixture
def add(tmp_path: Path, make_cell: Callable[..., Path]) -> MakeCell:
    """add(report, variant, miou, model, metrics=..., more of make_cell) -> a finished cell of an experiment."""

    def make(
        report: str, variant: str, miou: float, model: dict[str, Any], fold: int = 0, *,
        metrics: dict[str, Any] | None = None, identity: dict[str, Any] | None = None,
        extra: dict[str, Any] | None = None, **changes: Any,
    ) -> Path:  # fmt: skip
        folder = make_cell(fold, miou, name=changes.pop("name", report), variant=variant, **changes)
        path = folder / "result.json"
        result = json.loads(path.read_text())
        result |= {"report": report, "model": model, "fingerprint": str(folder), **(extra or {})}
        result["metrics"] |= metrics or {}
        path.write_text(json.dumps(result))
        (folder / "identity.json").write_text(json.dumps({"identity": identity or {}}))
        return folder

    return make
