"""Output folders of any number of cells, for the benchmark `growth.py` and the tests of growth.

Every kind of folder is what a sweep leaves: a grid of data sets, backbones, shots, folds and training seeds. The
records are those of whole runs (20 novel classes, five evaluation seeds, provenance), made by `run_directories`.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import cycle, islice, product
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the command line; pytest has it there already

from run_directories import make_run

from fsseg.cell.key import CellKey, identity
from fsseg.cell.record import find_runs
from fsseg.config.compose import compose
from fsseg.sweep.grid import build_grid

KINDS = ("seeds", "variants", "unfinished", "protocols", "experiment")
"""seeds: one variant, many seeds. variants: each cell its own. unfinished: half the cells have no result. protocols:
every cell was evaluated under its own rules. experiment: all belong to Table 3 of the paper, seed by seed."""

_STATES = ("failed", "running", "preempted", "queued")  # of the unfinished; running, but silent, is stale


def keys(count: int) -> Iterator[CellKey]:
    """The first `count` cells of a grid with as many training seeds as it takes."""
    grid = product(range(count), ("pascal5i", "coco20i"), ("resnet50", "resnet101"), (1, 5), range(4))
    for seed, dataset, backbone, shot, fold in islice(grid, count):
        yield CellKey("runs", dataset, "abcb", backbone, shot, fold, seed, "default")


def make_tree(folder: Path, count: int, kind: str = "seeds") -> None:
    """Write `count` run directories of one of `KINDS` below `folder`."""
    for number, key in enumerate(keys(count)):
        if kind == "variants":
            key = replace(key, seed=0, variant=f"train.lr-0.{number:06}")
        elif kind == "experiment":
            components = ("baseline", "sm", "full")
            key = replace(
                key, name="table3", dataset="pascal5i", backbone="resnet50", shot=1, fold=0, seed=number // 3,
                variant=components[number % 3],
            )  # fmt: skip
        _make(folder, key, number, kind)


def make_whole_tree(folder: Path, count: int, kind: str = "unfinished") -> None:
    """The same with what `fsseg report` reads besides: 600 rows of metrics.csv, and a sheet of episodes, in each."""
    make_tree(folder, count, kind)
    rows = [f"{step},{5 / (1 + step / 4000):.6g},0.01,{0.4 + step % 7 / 10}" for step in range(50, 30_050, 50)]
    metrics = "\n".join(["step,train/loss,train/lr,train/seconds_per_step", *rows]) + "\n"
    sheet = _sheet()
    for run in find_runs([folder]):
        run.metrics_file.write_text(metrics)
        run.figures.mkdir()
        run.episodes_figure.write_bytes(sheet)


def _sheet() -> bytes:
    """A picture as large as a sheet of three episodes, and as hard to compress as photos."""
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (45, 75, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).resize((1300, 780), Image.Resampling.BICUBIC).save(out, "PNG")
    return out.getvalue()


def planned(folder: Path, count: int, swept: str = "seed", made: Sequence[str] = ()) -> list[str]:
    """The line of a grid of about `count` cells below `folder`, each of which stands as `made` says in turn.

    Args:
        swept: a key that takes as many values as it needs.
        made: done, failed, running (but silent), or empty for a cell that was never started.
    """
    line = ["dataset=pascal5i,coco20i", "backbone=resnet50,resnet101", "shot=1,5", "fold=0,1,2,3"]
    values = range(1, max(1, count // 32) + 1)
    line += [f"{swept}={','.join(str(v if swept == 'seed' else v / 1e6) for v in values)}", f"output_dir={folder}"]
    for number, (point, state) in enumerate(zip(build_grid(line) if made else (), cycle(made))):
        assert point.cell is not None
        assert point.composed is not None
        if state == "done":
            result = _result(point.cell.key, number, point.composed.resolved["protocol"])
            make_run(point.cell, result=result | {"fingerprint": point.cell.fingerprint})
        elif state:
            status = {"state": state, "phase": "train", "step": 100, "steps": 1000, "seconds_per_step": 0.5}
            make_run(point.cell, status=status, age=1e6)
    return line


def _make(folder: Path, key: CellKey, number: int, kind: str) -> None:
    config = _settings(key.dataset, key.backbone)
    settings = identity(config) | {"shot": key.shot, "fold": key.fold, "seed": key.seed}
    protocol, overrides = config["protocol"], [f"fold={key.fold}", f"seed={key.seed}"]
    if kind == "protocols":
        protocol = protocol | {"num_episodes": 1000 + number}
    if kind == "unfinished" and number % 2:
        status = {"state": _STATES[number // 2 % 4], "phase": "train", "step": 100, "steps": 1000, "host": "node1"}
        text = _text(key.dataset, key.backbone)
        for part in ("shot", "fold", "seed"):
            text = re.sub(rf"^{part}: \d+$", f"{part}: {getattr(key, part)}", text, flags=re.MULTILINE)
        make_run(folder, key, status=status, identity=settings, overrides=overrides, config=text, age=1e6)
        return
    result = _result(key, number, protocol)
    if kind == "experiment":
        model = config["model"] | {"cleansing": key.variant == "full", "modulation": key.variant != "baseline"}
        settings |= {f"model.{name}": value for name, value in model.items()}
        result |= {"report": "table3_components", "model": model, "fingerprint": f"{number:016x}"}
    make_run(folder, key, result=result, identity=settings, overrides=overrides)


@lru_cache
def _settings(dataset: str, backbone: str) -> dict[str, Any]:
    return compose([f"dataset={dataset}", f"backbone={backbone}"]).resolved


@lru_cache
def _text(dataset: str, backbone: str) -> str:
    """config.yaml of one cell of them."""
    return OmegaConf.to_yaml(OmegaConf.create(_settings(dataset, backbone)))


def _result(key: CellKey, number: int, protocol: dict[str, Any]) -> dict[str, Any]:
    """Fields of `Result` as a run on 20 novel classes writes them, the scores different for every cell."""
    miou = 50 + number % 997 / 100
    classes = [f"class {key.fold * 20 + c}" for c in range(20)]
    seeds = [
        {"seed": s, "miou": miou + s / 10, "fb_iou": 80.0, "miou_all_foreground": 30.0, "num_episodes": 1000,
         "episodes_fingerprint": f"{key.dataset} {key.shot} {key.fold} {s}"}
        for s in range(5)
    ]  # fmt: skip
    packages = dict.fromkeys(("torch", "torchvision", "numpy", "hydra-core", "omegaconf", "pillow"), "1.2.3")
    return {
        "fingerprint": f"{number:016x}", "protocol": protocol, "model": {"name": "abcb", "iterations": 3},
        "metrics": {"miou": miou, "miou_std": 0.3, "fb_iou": 80.0, "fb_iou_std": 0.2, "per_seed": seeds,
                    "per_class": dict.fromkeys(classes, miou), "miou_per_round": [miou - 2, miou - 1, miou]},
        "dataset": {"name": key.dataset, "novel_classes": classes, "fingerprint_train": f"train {key.dataset}",
                    "fingerprint_val": f"val {key.dataset}"},
        "timing": {"prepare_seconds": 6.0, "train_seconds": 4000.0 + number % 13, "evaluate_seconds": 200.0},
        "training": {"steps": 10000, "images": 5000 + key.fold, "batch_size": 16, "seconds": 4000.0 + number % 13},
        "cost": {"parameters": 45_000_000, "gmacs": 100.0, "gmacs_dense": 120.0}, "peak_memory_bytes": 11_000_000_000,
        "provenance": {"fsseg": "0.9", "git": {"commit": "0" * 40, "dirty": False}, "packages": packages,
                       "host": "node1", "device": "NVIDIA A100-SXM4-40GB", "command": ["train.py", "-m"]},
    }  # fmt: skip
