"""Records with random damage: whatever they hold, status and tables are made, and no number comes of it unnamed."""

from __future__ import annotations

import copy
import csv
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from run_directories import KEY, PROTOCOL, make_run

from fsseg.cell.record import RunDirectory, look_at
from fsseg.report.aggregate import aggregate
from fsseg.sweep import status

REPORTS = ("table3_components", "table5_iterations", "table6_rounds", "figure5_distance", "background_bias")
HOSTILE: list[Any] = [
    None, True, -1, 0, 7, 1e300, -0.5, 10**18, 10**400, float("nan"), float("inf"), "", "x", "\x1b[2J", "a\nb", "../..",
    "/abs", "$\\frac{$", "\ud800", "=1+1", "x" * 3000, [], [1], {}, {"a": {"b": 1}}, [None] * 50, {"1": 1, "x": 2},
]  # fmt: skip


def whole_result(report: str) -> dict[str, Any]:
    seed = {"seed": 0, "miou": 50.0, "fb_iou": 60.0, "num_episodes": 10, "episodes_fingerprint": "e"}
    distance = {"bins": [0.1], "counts": [1] * 7, "mean": 0.2, "std": 0.1, "episodes": 7, "without_foreground": 0}
    metrics = {
        "miou": 50.0, "miou_std": 0.5, "fb_iou": 60.0, "per_seed": [seed], "per_class": {"cat": 50.0},
        "miou_per_round": [48.0, 49.0, 50.0], "foreground_distance": distance,
    }  # fmt: skip
    return {
        "report": report, "model": {"iterations": 3, "modulation": True, "cleansing": True},
        "metrics": metrics | {"by_background_shift": {"0.0": metrics, "1.0": metrics}},
        "cost": {"gmacs": 1.0, "parameters": 5},
    }  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in nested mappings and lists."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


def damaged(data: bytes, of_yaml: bool, draw: random.Random) -> bytes:
    if draw.random() < 0.2:  # cut short, or some bytes changed
        changed = bytearray(data)
        for _ in range(draw.randrange(1, 4)):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        return bytes(changed[: draw.randrange(len(changed))] if draw.random() < 0.3 else changed)
    value = yaml.safe_load(data) if of_yaml else json.loads(data)
    for _ in range(draw.randrange(1, 3)):
        *path, last = draw.choice(places(value)) or (None,)
        if last is None:
            value = copy.deepcopy(draw.choice(HOSTILE))
            break
        block = value
        for key in path:
            block = block[key]
        block[last] = copy.deepcopy(draw.choice(HOSTILE))
        if draw.random() < 0.2 and isinstance(block, dict):
            block[str(draw.choice(HOSTILE))[:50]] = block.pop(last)
    return (yaml.safe_dump(value, allow_unicode=False) if of_yaml else json.dumps(value)).encode(errors="replace")


def damage(root: Path, draw: random.Random) -> None:
    """Six cells of one experiment, some finished, of which each may have one damaged file; and a whole one."""
    report = draw.choice(REPORTS)
    make_run(root, replace(KEY, name="whole"), result=41.25)
    for fold in range(6):
        key = replace(KEY, name="x", fold=fold % 4, variant=f"v{fold % 3}")
        identity, config = {"train.lr": 0.1, "fold": fold, "model.iterations": 3}, {"protocol": PROTOCOL}
        progress = {"state": draw.choice(("failed", "running")), "step": 3, "steps": 9, "eta_seconds": 5.0}
        finished = {"result": whole_result(report)} if draw.random() < 0.6 else {"status": progress}
        run = make_run(root, key, identity=identity, config=config, overrides=["fold=1"], **finished)
        claim = {"pid": 1, "host": "h", "lease_seconds": 5, "interval_seconds": 1, "slurm_job": "7"}
        run.claim_file.write_text(json.dumps(claim | {"slurm_restart": "1"}))
        victim = draw.choice((run.result_file, run.identity_file, run.status_file, run.config_file, run.claim_file))
        if victim.exists():
            victim.write_bytes(damaged(victim.read_bytes(), victim == run.config_file, draw))
    older = root / "replication_results.json"
    older.write_text(json.dumps({"results": {"pascal5i_resnet50_1shot": {"0": {"miou": 0.5}, "mean": {"miou": 0.5}}}}))
    older.write_bytes(damaged(older.read_bytes(), False, draw))


def check(folder: Path, seed: int) -> None:
    draw = random.Random(seed)
    root, out = folder / f"{seed}", folder / f"out{seed}"
    damage(root, draw)
    assert "41.25" in status.text(look_at([root]))
    text = aggregate([root], out)
    assert all(line.isprintable() for line in text.split("\n"))
    rows = list(csv.DictReader((out / "summary.csv").open(encoding="utf-8")))
    scores = {float(row["miou"]) for row in rows if row["miou"]}
    assert 41.25 in scores
    assert all(0 <= score <= 100 for score in scores)
    assert sorted(p for p in folder.iterdir() if p not in (root, out)) == []
    for run in RunDirectory(root).directory.rglob("status.json"):
        RunDirectory(run.parent).last_attempt()
        RunDirectory(run.parent).size()


def test_random_damage_ends_no_table(tmp_path: Path) -> None:
    for seed in range(20):
        place = tmp_path / f"{seed}"
        place.mkdir()
        check(place, seed)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 2000, 100))
def test_much_random_damage_ends_no_table(tmp_path: Path, first: int) -> None:
    for seed in range(first, first + 100):
        place = tmp_path / f"{seed}"
        place.mkdir()
        check(place, seed)
