"""Small runs for the tests: a cell of shapes5i that takes a second, in this process or in one that can be killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import socket
import sys
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import msgspec

from fsseg.cell.models import Result
from fsseg.cell.record import Cell, open_cell
from fsseg.config.compose import Composed, compose

SMALL = (
    "dataset.num_train=60", "dataset.num_val=60", "dataset.image_size=25", "model.channels=16", "train.batch_size=2",
    "train.max_steps=8", "protocol.num_episodes=6", "protocol.seeds=[0]", "logger.figures=0", "logger.every_steps=1",
    "logger.tensorboard=false", "num_workers=0", "num_threads=1", "device=cpu", "variant=small",
)  # fmt: skip

_PRELOADED = (
    "fsseg.config.compose", "fsseg.run", "fsseg.engine.train", "fsseg.engine.evaluate", "fsseg.model",
    "fsseg.draw.sheets", "hydra_plugins.fsseg_sweeper", "hydra_plugins.fsseg_launchers",
)  # fmt: skip


def composed(root: Path, output: Path, *overrides: str) -> Composed:
    """The small cell; `overrides` come first and win."""
    keys = {o.partition("=")[0] for o in overrides}
    rest = [*SMALL, f"dataset.root={root}", f"output_dir={output}"]
    if {"method=prototype", "method=dino", "method=pspnet"} & set(overrides):  # they have no neck
        rest.remove("model.channels=16")
    return compose([*overrides, *(o for o in rest if o.partition("=")[0] not in keys)])


def cell_of(c: Composed) -> Cell:
    return open_cell(c.cfg, c.resolved, c.task_overrides)


def done(c: Composed) -> Result:
    """The result of the cell, which is run if need be."""
    from fsseg.run import run

    result = run(c.config, c.task_overrides).result
    assert result is not None
    return result


def numbers(result: Result | None) -> str:
    """What of a result must not depend on interruptions, as text."""
    assert result is not None
    plain = msgspec.to_builtins(result)
    if plain["training"] is not None:
        del plain["training"]["seconds"]
        for timed in (plain["training"]["base_validation"], plain["training"].get("novel_validation")):
            if timed is not None:
                del timed["seconds"]
    for kind in ("best_novel", "best_base"):
        if kind in plain:
            del plain[kind]["seconds"]
    left_out = ("timing", "provenance", "finished_at", "peak_memory_bytes", "run", "checksum")
    return json.dumps({k: v for k, v in plain.items() if k not in left_out}, sort_keys=True)


def start(c: Composed, log: Path) -> ForkServerProcess:
    """`run` in a process of its own; what it says, and its result, go to `log`."""
    return fork(run_and_print, c, log=log)


def run_and_print(c: Composed) -> None:
    from fsseg.run import run

    outcome = run(c.config, c.task_overrides)
    print("returned", json.dumps([outcome.state, outcome.holder, msgspec.to_builtins(outcome.result)]), flush=True)


def fork(
    function: Callable[..., None], *arguments: Any, log: Path, environment: Mapping[str, str] | None = None
) -> ForkServerProcess:
    """Call a function in a process of its own, which starts at once since torch is loaded already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOADED))
    process = context.Process(target=_child, args=(function, arguments, str(log), dict(environment or {})))
    process.start()
    return process


def script(path: Path, *arguments: str, folder: Path, cwd: Path, timeout: float = 300) -> CompletedProcess[str]:
    """`python path arguments...` in a forked process: as a user starts it, without seconds of imports.

    Args:
        folder: where its output is kept meanwhile.
    """
    out, err = (folder / f"{uuid.uuid4().hex}.{kind}" for kind in ("out", "err"))
    process = fork(
        _run_script,
        path,
        arguments,
        cwd,
        err,
        log=out,
        environment={"OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"]},
    )
    process.join(timeout)
    if process.is_alive():
        process.kill()
        raise TimeoutError(f"{path.name} {' '.join(arguments)}: {err.read_text()}")
    done = CompletedProcess([str(path), *arguments], process.exitcode or 0, out.read_text(), err.read_text())
    out.unlink()
    err.unlink()
    return done


def _run_script(path: Path, arguments: Sequence[str], cwd: Path, err: Path) -> None:
    os.dup2(os.open(err, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    os.chdir(cwd)
    os.environ.pop("HYDRA_FULL_ERROR", None)
    multiprocessing.set_start_method("fork", force=True)  # as for a process that a shell starts
    warnings.simplefilter("ignore")
    sys.argv = [str(path), *arguments]
    sys.path.insert(0, str(path.parent))
    runpy.run_path(str(path), run_name="__main__")


def fork_ranks(function: Callable[..., None], *arguments: Any, folder: Path, world: int = 2) -> list[tuple[int, str]]:
    """Call it on `world` processes with the environment torchrun gives them; exit status and output of each."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logs = [folder / f"rank{r}.log" for r in range(world)]
    processes = [
        fork(function, *arguments, log=log, environment={
            "RANK": str(r), "LOCAL_RANK": str(r), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
        })
        for r, log in enumerate(logs)
    ]  # fmt: skip
    for process in processes:
        process.join(300)
    return [(process.exitcode or 0, log.read_text()) for process, log in zip(processes, logs)]


def _child(function: Callable[..., None], arguments: Any, log: str, environment: dict[str, str]) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(environment)
    function(*arguments)
