"""Small runs for the tests: a cell of shapes5i that takes a second, in this process or in one that can be killed."""

from __future__ import annotations

import json
import multiprocessing
import os
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from fsseg.cell import Cell, open_cell
from fsseg.compose import Composed, compose

SMALL = (
    "dataset.num_train=60", "dataset.num_val=60", "dataset.image_size=25", "model.channels=16", "train.batch_size=2",
    "train.max_steps=8", "protocol.num_episodes=6", "protocol.seeds=[0]", "logger.figures=0", "logger.every_steps=1",
    "logger.tensorboard=false", "num_workers=0", "num_threads=1", "device=cpu", "variant=small",
)  # fmt: skip

_PRELOADED = (
    "fsseg.compose", "fsseg.run", "fsseg.engine.train", "fsseg.engine.evaluate", "fsseg.model", "fsseg.report.figures",
)  # fmt: skip


def composed(root: Path, output: Path, *overrides: str) -> Composed:
    """The small cell; `overrides` come first and win."""
    keys = {o.partition("=")[0] for o in overrides}
    rest = (*SMALL, f"dataset.root={root}", f"output_dir={output}")
    return compose([*overrides, *(o for o in rest if o.partition("=")[0] not in keys)])


def cell_of(c: Composed) -> Cell:
    return open_cell(c.cfg, c.resolved, c.task_overrides)


def numbers(result: dict[str, Any]) -> str:
    """What of a result must not depend on interruptions, as text."""
    left_out = ("timing", "provenance", "finished_at", "peak_memory_bytes")
    return json.dumps({k: v for k, v in result.items() if k not in left_out}, sort_keys=True)


def start(c: Composed, log: Path) -> ForkServerProcess:
    """`run` in a process of its own, which starts at once since torch is loaded already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOADED))
    process = context.Process(target=_child, args=(c, str(log)))
    process.start()
    return process


def _child(c: Composed, log: str) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    from fsseg.run import run

    run(c.config, c.task_overrides)
