"""`replication_results.json`, the file of the older single-script workflow: read by `collect`, made by `summary`.

Its schema: `{"results": {"<dataset>_<backbone>_<k>shot": {"0".."3": {"miou": fraction}, "mean": {"miou": fraction}}}}`.
It names no method (all results are of ABCB), no protocol and no seed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fsseg.cell.key import CellKey
from fsseg.cell.models import Metrics, Result
from fsseg.process.files import read_json

REPLICATION_FILE = "replication_results.json"
REPLICATION_BYTES = 64 << 20
"""Most that is read of one; a row has about 200 bytes."""
_WRITER = "fsseg aggregate"
_PROTOCOL = {"name": "older workflow (not recorded)"}
_KEY = re.compile(r"(?P<dataset>.+)_(?P<backbone>[^_]+)_(?P<shot>[0-9]{1,9})shot")
_FOLD = re.compile("[0-9]{1,9}")


def is_ours(path: Path) -> bool:
    """Whether `fsseg aggregate` wrote the file: then the runs already hold its numbers."""
    return (read_json(path, REPLICATION_BYTES) or {}).get("written_by") == _WRITER


def parse_replication(name: str, value: Mapping[str, Any]) -> tuple[list[Result], list[str]]:
    """All folds of an older file as results under a name, and its faults in words.

    A value that is no fraction is reported and left out. A stated mean that differs from the mean of its four folds by
    more than 0.05 points is reported; the folds count.
    """
    results = value.get("results")
    if not isinstance(results, dict):
        return [], ['has no "results" object: not a replication_results.json']
    entries: list[Result] = []
    faults: list[str] = []
    for key, folds in results.items():
        match = _KEY.fullmatch(key)
        if match is None or not isinstance(folds, dict) or not _cell(name, match, 0).is_whole:
            faults.append(f'results["{key:.80}"] is not <dataset>_<backbone>_<k>shot with an object of folds')
            continue
        found: dict[str, float] = {}
        for fold, figure in folds.items():
            miou = figure.get("miou") if isinstance(figure, dict) else None
            if fold != "mean" and not _FOLD.fullmatch(fold):
                faults.append(f'results["{key}"]["{fold:.80}"] is neither a fold nor the mean')
            elif isinstance(miou, bool) or not isinstance(miou, (int, float)) or not 0 <= miou <= 1:
                faults.append(f'results["{key}"]["{fold}"].miou={miou!r:.80} is no fraction between 0 and 1')
            else:
                found[fold] = float(miou)
        stated = found.pop("mean", None)
        if stated is not None and len(found) == 4 and not math.isclose(stated, sum(found.values()) / 4, abs_tol=5e-4):
            faults.append(
                f'results["{key}"] states a mean of {stated:.4f}; its folds give {sum(found.values()) / 4:.4f}'
            )
        for fold, miou in sorted(found.items()):
            metrics = Metrics(round(100 * miou, 10))
            entries.append(Result(_cell(name, match, int(fold)), "", _PROTOCOL, metrics=metrics))
    return entries, faults


def _cell(name: str, match: re.Match[str], fold: int) -> CellKey:
    return CellKey(name, match["dataset"], "abcb", match["backbone"], int(match["shot"]), fold, 0, "default")


def replication_json(
    figures: Mapping[tuple[str, str, int], tuple[Mapping[int, float], float | None]],
) -> dict[str, Any]:
    """The older file's content.

    Args:
        figures: (dataset, backbone, shot) -> ({fold: mIoU in percent}, mean in percent or None if a fold is missing).
    """
    results: dict[str, Any] = {}
    for (dataset, backbone, shot), (folds, mean) in figures.items():
        block: dict[str, Any] = {str(fold): {"miou": miou / 100} for fold, miou in sorted(folds.items())}
        if mean is not None:
            block["mean"] = {"miou": mean / 100}
        results[f"{dataset}_{backbone}_{shot}shot"] = block
    return {"results": results, "unit": "fraction", "written_by": _WRITER}
