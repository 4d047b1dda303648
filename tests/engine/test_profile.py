"""Shares of a trace, by hand; what `train.profile` leaves, and that it changes no number."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from runs import cell_of, composed, done

from fsseg.cell.record import find_runs
from fsseg.engine.profile import Tracing, profiling, shares
from fsseg.process.ranks import Ranks


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shapes5i")


def event(name: str, start: float, length: float, cat: str = "user_annotation", tid: int = 1, **args: Any) -> dict:
    return {"ph": "X", "cat": cat, "name": name, "ts": start, "dur": length, "tid": tid, "args": args}


# Two steps of 100 us each. In the first: 10 data, 40 forward that holds 20 backbone and 15 neck, 30 backward.
STEPS = [
    event("ProfilerStep#7", 1000, 100),
    event("ProfilerStep#8", 1100, 100),
    event("fsseg: data", 1000, 10),
    event("fsseg: forward", 1010, 40),
    event("fsseg: backbone", 1010, 20),
    event("fsseg: neck", 1030, 15),
    event("fsseg: backward", 1060, 30),
    event("fsseg: optimiser", 1190, 10),
    event("fsseg: data", 900, 50),  # before what is traced
    event("fsseg: rounds", 1100, 50, tid=2),  # another thread's
    event("aten::add", 1000, 5, cat="cpu_op"),
    {"ph": "M", "name": "process_name", "args": {}},
]


def test_each_moment_counts_for_the_innermost_part() -> None:
    found = shares(STEPS)
    assert (found.steps, found.seconds, found.device) == (2, pytest.approx(100e-6), None)
    assert found.host == pytest.approx({
        "waiting for data": 10 / 200, "backbone": 20 / 200, "neck": 15 / 200, "forward, the rest, and loss": 5 / 200,
        "backward": 30 / 200, "optimiser": 10 / 200, "the rest": 110 / 200,
    })  # fmt: skip


def test_work_of_a_gpu_counts_for_the_part_that_launched_it() -> None:
    work = [
        event("cudaLaunchKernel", 1015, 1, "cuda_runtime", correlation=1),
        event("cudaLaunchKernel", 1070, 1, "cuda_runtime", tid=9, correlation=2),  # the thread of backward
        event("cudaLaunchKernel", 1055, 1, "cuda_driver", correlation=3),  # between two parts
        event("conv", 1040, 60, "kernel", correlation=1),
        event("conv_backward", 1100, 30, "kernel", correlation=2),
        event("copy", 1120, 20, "gpu_memcpy", correlation=3),  # 10 of them beside the kernel before
    ]
    found = shares([*STEPS, *work])
    # busy from 1040 to 1140: half of the time, shared out as 60 : 30 : 20
    assert found.device == pytest.approx({
        "backbone": 0.5 * 60 / 110, "backward": 0.5 * 30 / 110, "the rest": 0.5 * 20 / 110, "idle": 0.5,
    })  # fmt: skip
    title, *lines = found.text().splitlines()[1:]
    assert title.split() == ["share", "of", "a", "step", "host", "ms", "GPU", "ms"]
    assert [" ".join(line.split()) for line in lines] == [
        "waiting for data 5.0% 0.0 - -",
        "backbone 10.0% 0.0 27.3% 0.0",
        "neck 7.5% 0.0 - -",
        "forward, the rest, and loss 2.5% 0.0 - -",
        "backward 15.0% 0.0 13.6% 0.0",
        "optimiser 5.0% 0.0 - -",
        "the rest 55.0% 0.1 9.1% 0.0",
        "idle - - 50.0% 0.1",
    ]


def test_a_run_leaves_trace_and_summary_and_the_numbers_of_one_without(root: Path, tmp_path: Path) -> None:
    line = ("train.max_steps=6", "eval.enabled=false", "train.checkpoint_minutes=1000", "logger.every_steps=1")
    plain = composed(root, tmp_path, *line, "name=plain")
    traced = composed(root, tmp_path, *line, "name=traced", "train.profile=true")
    results = [done(c) for c in (plain, traced)]
    folder = cell_of(traced).directory / "profile"
    assert sorted(path.name for path in folder.iterdir()) == ["summary.txt", "trace.json.gz"]
    text = (folder / "summary.txt").read_text()
    assert text.startswith("3 steps of ")
    assert all(name in text for name in ("waiting for data", "backbone", "neck", "rounds", "backward", "optimiser"))
    found = shares(json.loads(gzip.decompress((folder / "trace.json.gz").read_bytes()))["traceEvents"])
    assert sum(found.host.values()) == pytest.approx(1)
    assert min(found.host.values()) > 0
    assert results[0].fingerprint == results[1].fingerprint
    losses = [cell_of(c).curves()["train/loss"] for c in (plain, traced)]
    assert losses[0] == losses[1]
    assert not (cell_of(plain).directory / "profile").exists()
    assert {run.directory for run in find_runs([tmp_path])} >= {cell_of(traced).directory}


@pytest.mark.parametrize(
    ("asked", "rank", "left", "traces"),
    [(True, 0, 5, True), (True, 1, 5, False), (True, 0, 0, False), (False, 0, 5, False)],
)
def test_the_first_of_several_processes_traces_if_it_is_asked_to(
    asked: bool, rank: int, left: int, traces: bool, tmp_path: Path
) -> None:
    cfg = SimpleNamespace(train=SimpleNamespace(profile=asked))
    cell = SimpleNamespace(profile_folder=tmp_path)
    run: Any = SimpleNamespace(cfg=cfg, cell=cell, ranks=Ranks(rank, 2), device=torch.device("cpu"))
    with profiling(run, left) as steps:
        assert isinstance(steps, Tracing) is traces
    assert list(tmp_path.iterdir()) == []  # no step was done


def test_a_training_that_stops_early_leaves_none(root: Path, tmp_path: Path) -> None:
    c = composed(root, tmp_path, "train.max_steps=6", "train.lr=900", "train.lr_scale=900", "train.profile=true")
    with pytest.raises(Exception, match="loss is"):
        done(c)
    assert not (cell_of(c).directory / "profile").exists()
