"""What COCO's size costs before any pixel is read: `python tests/benchmarks/coco_size.py`.

Annotation files as large as those of COCO 2014 are made, without images, and go through `prepare`, the lists of a fold
and the episodes of five seeds. Each stage is a process of its own; its time and its most memory are printed.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from peak import peak_megabytes

from fsseg.config.compose import compose
from fsseg.config.schema import Config
from fsseg.data.folds import COCO_CATEGORY_IDS, COCO_CLASSES

FULL = {"train": (82_783, 604_907), "val": (40_504, 291_875)}
"""Images and instances of COCO 2014."""
EPISODES = 1000  # of each of five seeds, as protocol=standard has it
_SIDES = (480, 640)
_POOL = 20_000  # different outlines at most


def sizes(share: float) -> dict[str, tuple[int, int]]:
    """Images and instances of each split at a share of the full size."""
    return {split: (round(share * images), round(share * instances)) for split, (images, instances) in FULL.items()}


def make_annotations(root: Path, share: float = 1.0) -> None:
    """Write `instances_{train,val}2014.json` and empty folders for the images below `root`.

    An image has up to five classes, the most frequent class every fifth instance, as in COCO roughly. Outlines have 40
    points on average, so that the files are as large as the official ones; one instance in a hundred is a crowd, given
    as run lengths.
    """
    (root / "annotations").mkdir(parents=True)
    draw = random.Random(0)
    outlines = [_outline(draw) for _ in range(min(_POOL, sizes(share)["train"][1]))]
    weights = list(accumulate(1 / (c + 1) for c in range(len(COCO_CATEGORY_IDS))))
    categories = [{"id": c, "name": name} for c, name in zip(COCO_CATEGORY_IDS, COCO_CLASSES)]
    for split, (images, instances) in sizes(share).items():
        (root / f"{split}2014").mkdir()
        first = 1 if split == "train" else 500_000
        with open(root / "annotations" / f"instances_{split}2014.json", "w") as file:
            file.write(f'{{"categories": {json.dumps(categories)}, "images": [')
            names = (f"COCO_{split}2014_{first + i:012d}.jpg" for i in range(images))
            entries = (
                f'{{"id": {first + i}, "file_name": "{name}", "height": {_SIDES[i % 2]}, "width": {_SIDES[1 - i % 2]}}}'
                for i, name in enumerate(names)
            )
            file.write(", ".join(entries) + '], "annotations": [')
            file.write(", ".join(_instances(draw, range(first, first + images), instances, outlines, weights)) + "]}")


def _outline(draw: random.Random) -> str:
    """A polygon of 12 to 68 points within 480 x 480 pixels, its objects from 10 to 200 pixels across."""
    half = 5 * 20 ** draw.random()
    x, y = (half + draw.random() * (480 - 2 * half) for _ in range(2))
    corners = sorted(draw.random() for _ in range(draw.randrange(3, 18)))
    points = [_on_square(corner, half) for corner in corners for _ in range(4)]
    return json.dumps([[round(v, 2) for dx, dy in points for v in (x + dx * draw.random(), y + dy * draw.random())]])


def _on_square(turn: float, half: float) -> tuple[float, float]:
    side, along = divmod(4 * turn, 1)
    a, b = half, half * (2 * along - 1)
    return ((a, b), (-b, a), (-a, -b), (b, -a))[int(side)]


def _instances(draw: random.Random, ids: range, count: int, outlines: list[str], weights: list[float]) -> Any:
    classes = [draw.choices(COCO_CATEGORY_IDS, cum_weights=weights, k=1 + i % 5) for i in range(len(ids))]
    for number in range(1, count + 1):
        i = draw.randrange(len(ids))
        category = classes[i][draw.randrange(len(classes[i]))]
        shape, crowd = outlines[draw.randrange(len(outlines))], number % 100 == 0
        if crowd:
            height, width = _SIDES[i % 2], _SIDES[1 - i % 2]
            shape = f'{{"size": [{height}, {width}], "counts": [1000, 5000, {height * width - 6000}]}}'
        yield (
            f'{{"segmentation": {shape}, "area": 1.0, "iscrowd": {int(crowd)}, "image_id": {ids[i]}, '
            f'"bbox": [0.0, 0.0, 1.0, 1.0], "category_id": {category}, "id": {number}}}'
        )


# ------------------------------------------------------------------------------------------------------------- stages


def configuration(root: Path, shot: int = 1) -> Config:
    line = ["dataset=coco20i", "protocol=standard", "fold=1", f"shot={shot}", f"dataset.root={root}", "num_workers=0"]
    return compose([*line, f"protocol.num_episodes={EPISODES}"]).cfg


def _prepare(root: Path) -> str:
    from fsseg.data.setup.prepare import prepare

    report = prepare(configuration(root).dataset)
    assert report.verified is not None
    assert not report.verified.faults
    return f"{sum(number for _, number in report.verified.lists.values()):,} images indexed"


def _training(root: Path, shot: int) -> str:
    from fsseg.data.loader import training_plan
    from fsseg.data.registry import build_source

    cfg = configuration(root, shot)
    plan = training_plan(build_source(cfg), cfg)
    for number in range(len(plan.sampler)):
        plan.sampler[number]
    return f"{plan.num_images:,} images, an epoch of {len(plan.sampler):,} episodes"


def _held_out(root: Path) -> str:
    from fsseg.data.loader import training_plan
    from fsseg.data.registry import build_source

    cfg = configuration(root)
    cfg.eval.every_epochs = 1
    plan = training_plan(build_source(cfg), cfg)
    return f"{plan.held_out:,} images held back"


def _evaluation(root: Path, shot: int) -> str:
    from fsseg.data.loader import evaluation_plan
    from fsseg.data.registry import build_source

    cfg = configuration(root, shot)
    plan = evaluation_plan(build_source(cfg), cfg)
    images = {i for specs in plan.episodes.values() for s in specs for i in (s.query_id, *s.support_ids)}
    return f"{sum(map(len, plan.episodes.values())):,} episodes of {len(images):,} images"


def _plan(root: Path) -> str:
    from fsseg.sweep.plan import plan, text

    line = ["dataset=coco20i", "protocol=standard", "fold=0,1,2,3", "shot=1,5", f"dataset.root={root}"]
    return text(plan([*line, f"output_dir={root / 'outputs'}"])).splitlines()[-1]


STAGES: dict[str, Callable[[Path], str]] = {
    "prepare": _prepare,
    "prepare again": _prepare,
    "train lists, an epoch, 1 shot": lambda root: _training(root, 1),
    "train lists, an epoch, 5 shots": lambda root: _training(root, 5),
    "train lists, images held back": _held_out,
    "5 x 1000 episodes, 1 shot": lambda root: _evaluation(root, 1),
    "5 x 1000 episodes, 5 shots": lambda root: _evaluation(root, 5),
    "plan of 8 cells": _plan,
}


@dataclass(frozen=True)
class Cost:
    """What a stage took: processor time and wall time in seconds, the most memory in 1e6 bytes, and what it made."""

    seconds: float
    wall: float
    megabytes: float
    made: str


def measure(stage: str, root: Path) -> Cost:
    """The cost of a stage in a process of its own.

    Raises:
        RuntimeError: it failed.
    """
    done = subprocess.run(
        [sys.executable, __file__, "--stage", stage, "--root", str(root)], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{stage} failed: {done.stderr}")
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def run_stage(stage: str, root: Path) -> Cost:
    """The same in this process, whose most memory it is."""
    start, wall = time.process_time(), time.monotonic()
    made = STAGES[stage](root)
    return Cost(time.process_time() - start, time.monotonic() - wall, peak_megabytes(), made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shares", default="0.25,1", help="shares of the full size (default: 0.25,1)")
    parser.add_argument("--root", type=Path, help="folder to make the annotations in, and to leave; else a new one")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage is not None:
        print(json.dumps(vars(run_stage(arguments.stage, arguments.root))))
        return
    for share in map(float, arguments.shares.split(",")):
        with tempfile.TemporaryDirectory(prefix="fsseg-coco-") as folder:
            root = (arguments.root or Path(folder)) / f"share-{share:g}"
            if not root.is_dir():
                make_annotations(root, share)
            megabytes = sum(path.stat().st_size for path in (root / "annotations").iterdir()) / 1e6
            counts = ", ".join(f"{split} {images:,} + {of:,}" for split, (images, of) in sizes(share).items())
            print(f"images + instances: {counts}; {megabytes:.0f} MB of annotations")
            for stage in STAGES:
                c = measure(stage, root)
                print(
                    f"{stage:<32}{c.seconds:>9.1f} s{c.wall:>9.1f} s wall{c.megabytes:>9.0f} MB   {c.made}", flush=True
                )


if __name__ == "__main__":
    main()
