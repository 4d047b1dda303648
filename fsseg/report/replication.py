"""`replication_results.json`, the file of the older single-script workflow: read by `collect`, made by `summary`.

Its schema: `{"results": {"<dataset>_<backbone>_<k>shot": {"0".."3": {"miou": fraction}, "mean": {"miou": fraction}}}}`.
It names no method (all results are of ABCB), no protocol and no seed. Ours has more beside it, which older readers pass
over: what it cannot hold (`left_out`), notes, and at a figure of an older file where it came from.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from msgspec import structs

from fsseg.cell.key import CellKey
from fsseg.cell.models import Metrics, Result
from fsseg.process.files import read_json

REPLICATION_FILE = "replication_results.json"
REPLICATION_BYTES = 64 << 20
"""Most that is read of one; a row has about 200 bytes."""
_WRITER = "fsseg aggregate"
OLDER_PROTOCOL = {"name": "older workflow (not recorded)"}
"""Of every figure of an older file: the rules that it was scored by are unknown."""
_OLDER = "older workflow"
_KEY = re.compile(r"(?P<dataset>.+)_(?P<backbone>[^_]+)_(?P<shot>[0-9]{1,9})shot")
_FOLD = re.compile("[0-9]{1,9}")


def is_ours(path: Path) -> bool:
    """Whether `fsseg aggregate` wrote the file: then the runs already hold its numbers."""
    return (read_json(path, REPLICATION_BYTES) or {}).get("written_by") == _WRITER


def parse_replication(value: Mapping[str, Any]) -> tuple[list[Result], list[str]]:
    """All folds of an older file as results, and its faults in words.

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
        if match is None or not isinstance(folds, dict) or not _cell(match, 0).is_whole:
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
            entries.append(Result(_cell(match, int(fold)), "", OLDER_PROTOCOL, metrics=metrics))
    return entries, faults


def _cell(match: re.Match[str], fold: int) -> CellKey:
    return CellKey(_OLDER, match["dataset"], "abcb", match["backbone"], int(match["shot"]), fold, 0, "default")


def merge_older(files: Mapping[Path, Sequence[Result]]) -> tuple[list[tuple[Path, Result]], list[tuple[Path, str]]]:
    """The figures of all older files, each with its file, as one set: they complete each other by key and fold.

    Where two files have different figures for one fold, it is unknown which belong together: under that key the figures
    of each file stay apart, named after its folder.

    Returns:
        The figures; and the files that contradict another one, with what is to be said.
    """
    found: dict[tuple[str, str, int], dict[int, dict[float | None, Path]]] = defaultdict(lambda: defaultdict(dict))
    for path, results in files.items():
        for result in results:
            found[_place(result.cell)][result.cell.fold].setdefault(result.miou, path)
    apart = {place: [f for f, of_fold in folds.items() if len(of_fold) > 1] for place, folds in found.items()}
    names = _names(files)
    merged = [
        (path, structs.replace(r, cell=replace(r.cell, name=names[path])) if apart[_place(r.cell)] else r)
        for path, results in files.items()
        for r in results
    ]
    said = []
    for (dataset, backbone, shot), folds in apart.items():
        for fold in folds[:1]:
            one, other = list(found[dataset, backbone, shot][fold].values())[:2]
            what = f"has another fold {fold} of {dataset}_{backbone}_{shot}shot than {one}: their figures stay apart"
            said.append((other, what))
    return merged, said


def _place(key: CellKey) -> tuple[str, str, int]:
    return key.dataset, key.backbone, key.shot


def _names(files: Iterable[Path]) -> dict[Path, str]:
    """A name for each file: that of its folder, with a number where several folders have it."""
    taken: Counter[str] = Counter()
    names = {}
    for path in files:
        name = path.resolve().parent.name or "older"
        taken[name] += 1
        names[path] = name if taken[name] == 1 else f"{name} {taken[name]}"
    return names


@dataclass
class Place:
    """What stands under one key: mIoU in percent by fold, the mean if there is one, and the older files in it."""

    folds: dict[int, float]
    mean: float | None = None
    older: dict[int, Path] = field(default_factory=dict)


def replication_json(
    places: Mapping[tuple[str, str, int], Place], left_out: Sequence[str], notes: Sequence[str]
) -> dict[str, Any]:
    """The older file's content.

    Args:
        places: by data set, backbone and shot.
        left_out: the rows that it has no place for, each with the reason.
        notes: whatever else its readers should know.
    """
    results: dict[str, Any] = {}
    for (dataset, backbone, shot), place in places.items():
        block: dict[str, Any] = {str(fold): {"miou": miou / 100} for fold, miou in sorted(place.folds.items())}
        for fold, path in place.older.items():
            block[str(fold)]["from"] = str(path)
        if place.mean is not None:
            block["mean"] = {"miou": place.mean / 100}
        results[f"{dataset}_{backbone}_{shot}shot"] = block
    extra = {"left_out": list(left_out), "notes": list(notes)}
    return {"results": results, "unit": "fraction", "written_by": _WRITER} | extra
