"""Where the time of training steps goes (`train.profile`): a trace of some early steps, and its shares in a few lines.

The training loop and the methods mark their parts, `fsseg: backbone`, with torch's `record_function`, which costs
microseconds while nothing is traced. Called by the training loop.
"""

from __future__ import annotations

import gzip
import json
import logging
import tempfile
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from fsseg.engine.context import Run
from fsseg.process.files import write_atomic
from fsseg.process.tables import aligned
from fsseg.process.words import count

log = logging.getLogger("fsseg")

WARM_UP = 5
"""Steps before the first one that is traced: the first steps also allocate memory and choose algorithms."""
STEPS = 10
"""Steps that are traced."""

_MARK = "fsseg: "
_NAMES = {
    "data": "waiting for data",
    "backbone": "backbone",
    "neck": "neck",
    "rounds": "rounds",
    "forward": "forward, the rest, and loss",
    "backward": "backward",
    "optimiser": "optimiser",
}
"""Marked parts of a step, in the order of a summary. Those that a method marks lie within `forward`."""
_REST, _IDLE = "the rest", "idle"
_ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
_LAUNCHES = ("cuda_runtime", "cuda_driver")


def part(name: str) -> record_function:
    """A block of a step, marked in the trace."""
    return record_function(_MARK + name)


class Steps:
    """What the training loop tells of its steps; here nobody listens."""

    def step(self) -> None:
        """The end of a step."""


class Tracing(Steps):
    """Traces some of the steps.

    Args:
        folder: `trace.json.gz` and `summary.txt` are written there once the last of them is done.
        left: steps that are still to do; of few the first ones are traced, too.
        device: the training's.
    """

    def __init__(self, folder: Path, left: int, device: torch.device) -> None:
        self.folder = folder
        steps = max(1, min(STEPS, left // 2))
        wait = min(WARM_UP, left - steps)
        self.left = wait + steps
        warm_up = min(2, wait)  # the profiler itself is slow at first
        on_gpu = [ProfilerActivity.CUDA] if device.type == "cuda" else []
        self.profiler = profile(
            activities=[ProfilerActivity.CPU, *on_gpu],
            schedule=schedule(wait=wait - warm_up, warmup=warm_up, active=steps, repeat=1),
            on_trace_ready=self._write,
        )

    def step(self) -> None:
        self.left -= 1
        if self.left >= 0:
            self.profiler.step()

    def _write(self, profiler: profile) -> None:
        if self.left:  # the training stops, and so does the profiler
            return
        with tempfile.TemporaryDirectory(prefix="fsseg-profile-") as folder:
            path = Path(folder) / "trace.json.gz"
            profiler.export_chrome_trace(str(path))
            trace = path.read_bytes()
        text = shares(json.loads(gzip.decompress(trace))["traceEvents"]).text()
        write_atomic(self.folder / "trace.json.gz", trace)
        write_atomic(self.folder / "summary.txt", text + "\n")
        for line in (f"where the time of a step goes ({self.folder}):", *text.splitlines()):
            log.info("%s", line)


@contextmanager
def profiling(run: Run, left: int) -> Iterator[Steps]:
    """Within the block some of the steps are traced, if `train.profile` asks for it, by the first of several processes.

    A training that stops before the last of them leaves no trace.

    Args:
        left: steps that are still to do.
    """
    assert run.device is not None
    if not run.cfg.train.profile or not run.ranks.first or not left:
        yield Steps()
        return
    tracing = Tracing(run.cell.profile_folder, left, run.device)
    with tracing.profiler:
        yield tracing


@dataclass(frozen=True)
class Shares:
    """Where the time of traced steps went.

    Attributes:
        steps: traced.
        seconds: of one of them.
        host: share of the time by part, of the process that trains; they sum to 1.
        device: the same of the GPU, by the part that gave it the work, and `idle`; None on a CPU.
    """

    steps: int
    seconds: float
    host: Mapping[str, float]
    device: Mapping[str, float] | None = None

    def text(self) -> str:
        """A table of a dozen lines."""
        found = [name for name in (*_NAMES.values(), *self.host, *(self.device or ())) if name not in (_REST, _IDLE)]
        columns = [self.host, *([self.device] if self.device is not None else [])]
        names = [name for name in dict.fromkeys(found) if any(name in column for column in columns)]
        title = (
            ["share of a step", "CPU", "ms"] if self.device is None else ["share of a step", "host", "ms", "GPU", "ms"]
        )
        lines = [title]
        for name in [*names, _REST, *([_IDLE] if self.device is not None else [])]:
            figures = [column.get(name) for column in columns]
            cells = [("-", "-") if f is None else (f"{f:.1%}", f"{1e3 * f * self.seconds:.1f}") for f in figures]
            lines.append([name, *(text for cell in cells for text in cell)])
        each = " each, while they are" if self.steps > 1 else ", while it is"
        head = f"{count(self.steps, 'step')} of {1e3 * self.seconds:.1f} ms{each} traced"
        return f"{head}\n{aligned(lines)}"


def shares(events: Sequence[Mapping[str, Any]]) -> Shares:
    """Where the time went, by the events of a trace in Chrome's format."""
    steps = [e for e in events if e.get("name", "").startswith("ProfilerStep#") and e.get("cat") == "user_annotation"]
    start, end = min(e["ts"] for e in steps), max(e["ts"] + e["dur"] for e in steps)
    thread = steps[0]["tid"]
    marks = [e for e in events if e.get("name", "").startswith(_MARK) and e.get("cat") == "user_annotation"]
    spans = [(e["ts"], e["ts"] + e["dur"], e["name"].removeprefix(_MARK)) for e in marks if e["tid"] == thread]
    pieces = _innermost(
        [(start, end, ""), *((max(a, start), min(b, end), n) for a, b, n in spans if b > start and a < end)]
    )
    host: Counter[str] = Counter()
    for (begin, name), (finish, _) in pairwise([*pieces, (end, "")]):
        host[_called(name)] += finish - begin
    whole = end - start
    return Shares(
        steps=len(steps), seconds=whole / len(steps) / 1e6, host={name: taken / whole for name, taken in host.items()},
        device=_device_shares(events, pieces, start, end),
    )  # fmt: skip


def _called(name: str) -> str:
    return _NAMES.get(name, name) if name else _REST


def _innermost(spans: Sequence[tuple[float, float, str]]) -> list[tuple[float, str]]:
    """Nested spans (start, end, name), the first around all others, as (start, name of the innermost from there)."""
    pieces: list[tuple[float, str]] = []
    around: list[tuple[float, str]] = []  # (end, name) of the spans that hold the place, the innermost last
    for start, end, name in sorted(spans, key=lambda span: (span[0], -span[1])):
        while around and around[-1][0] <= start:
            over = around.pop()[0]
            if around:
                pieces.append((over, around[-1][1]))
        pieces.append((start, name))
        around.append((end, name))
    while len(around) > 1:
        over = around.pop()[0]
        pieces.append((over, around[-1][1]))
    return pieces


def _device_shares(
    events: Sequence[Mapping[str, Any]], pieces: Sequence[tuple[float, str]], start: float, end: float
) -> dict[str, float] | None:
    """Work counts for the part that launched it, on whatever thread: `backward` has threads of its own."""
    launched = {e["args"]["correlation"]: e["ts"] for e in events
                if e.get("cat") in _LAUNCHES and "correlation" in e.get("args", {})}  # fmt: skip
    work = [e for e in events if e.get("cat") in _ON_DEVICE and e["ts"] < end and e["ts"] + e["dur"] > start]
    if not work:
        return None
    starts = [begin for begin, _ in pieces]
    taken: Counter[str] = Counter()
    for e in work:
        at = launched.get(e.get("args", {}).get("correlation"), start - 1)
        name = pieces[bisect_right(starts, at) - 1][1] if at >= start else ""
        taken[_called(name)] += min(e["ts"] + e["dur"], end) - max(e["ts"], start)
    busy, until = 0.0, start
    for e in sorted(work, key=lambda e: e["ts"]):
        busy += max(0.0, min(e["ts"] + e["dur"], end) - max(e["ts"], until))
        until = max(until, e["ts"] + e["dur"])
    share = busy / (end - start)
    total = sum(taken.values())
    return {name: share * of / total for name, of in taken.items()} | {_IDLE: 1 - share}
