"""What all benchmarks share: measuring sides in turn, the spread of what was measured, the machine, and the report.

Other load on a machine comes and goes. So whatever is compared is measured in turn, round by round, in one process, and
stated as a median with its quartiles. Called by the other modules here and by the `fsseg` command.
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from fsseg.engine.devices import choose_device, describe_device, peak_memory
from fsseg.errors import UserError
from fsseg.process.files import write_atomic
from fsseg.process.provenance import provenance

if TYPE_CHECKING:
    from fsseg.config.schema import Config

N = TypeVar("N")


@dataclass(frozen=True)
class Spread:
    """Repeated measurements of one thing.

    Attributes:
        median: of all.
        low, high: lower and upper quartile.
        least: the smallest.
        mean: of all; sums are made of it.
        number: of measurements.
    """

    median: float
    low: float
    high: float
    least: float
    mean: float
    number: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of one or more values."""
        low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
        return cls(median, low, high, min(values), statistics.fmean(values), len(values))

    def times(self, factor: float) -> Spread:
        """The same in another unit."""
        median, low, high, least, mean = (
            value * factor for value in (self.median, self.low, self.high, self.least, self.mean)
        )
        return Spread(median, low, high, least, mean, self.number)

    def __str__(self) -> str:
        """`1.06 (1.05-1.10)`: median and quartiles, the median in three figures."""
        places = max(0, 2 - int(f"{self.median:e}".partition("e")[2]))
        return f"{self.median:.{places}f} ({self.low:.{places}f}-{self.high:.{places}f})"


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Wall time of a call; on a GPU until its work is done."""
    _synchronise(device)
    start = time.perf_counter()
    run()
    _synchronise(device)
    return time.perf_counter() - start


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_turn(sides: Mapping[N, Callable[[], float]], repeats: int, warm_up: int = 1) -> dict[N, list[float]]:
    """What each side measures, `repeats` times: one after the other, then all once more.

    Args:
        sides: by name; each call gives one measurement.
        warm_up: rounds before these, which are not kept.
    """
    found: dict[N, list[float]] = {name: [] for name in sides}
    for number in range(warm_up + repeats):
        for name, side in sides.items():
            value = side()
            if number >= warm_up:
                found[name].append(value)
    return found


def forget_peak(device: torch.device) -> None:
    """Let `peak_bytes` begin anew; where the system has no such thing, it goes on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_bytes(device: torch.device) -> int:
    """Most memory since `forget_peak`: on a GPU what torch allocated, on a CPU the size of this process."""
    try:
        found = re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text()) if device.type == "cpu" else None
    except OSError:
        found = None
    return int(found[1]) * 1024 if found else peak_memory(device)


def set_up(cfg: Config) -> torch.device:
    """The device of a configuration, with as many threads as it wants.

    Raises:
        UserError: the device is not there.
    """
    if cfg.num_threads:
        torch.set_num_threads(cfg.num_threads)
    return choose_device(cfg.device)


def environment(device: torch.device) -> dict[str, Any]:
    """The machine and the code that figures are of, ready for JSON; `load` is that of the last minute."""
    code = provenance()
    return {
        "device": describe_device(device),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "python": code["python"],
        "torch": torch.__version__,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "fsseg": code["fsseg"],
        "commit": code["git"]["commit"],
        "dirty": code["git"]["dirty"],
        "command": code["command"],
    }


def _cpu_model() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def describe(found: Mapping[str, Any]) -> str:
    """`environment` in two lines."""
    commit = "no commit known" if found["commit"] is None else f"commit {found['commit'][:12]}"
    changed = " with changes" if found["dirty"] else ""
    gpu = f"{found['device']}, CUDA {found['cuda']}; " if found["cuda"] else ""
    return (
        f"{gpu}{found['cpu']}, {found['cores']} cores, {found['threads']} threads of torch, load {found['load']:.1f} "
        f"at the start\nfsseg {found['fsseg']} ({commit}{changed}), torch {found['torch']}, Python {found['python']}"
    )


@dataclass(frozen=True)
class Findings:
    """What one benchmark found.

    Attributes:
        benchmark: its name.
        environment: see `environment`.
        rows: one measurement each; dataclasses.
        table: the rows as text.
    """

    benchmark: str
    environment: dict[str, Any]
    rows: Sequence[Any]
    table: str

    def text(self) -> str:
        """Table, then the machine."""
        return f"{self.table}\n{describe(self.environment)}"

    def write(self, path: Path) -> None:
        """The same as JSON.

        Raises:
            UserError: it cannot be written.
        """
        content = {
            "benchmark": self.benchmark,
            "environment": self.environment,
            "rows": [asdict(row) for row in self.rows],
        }
        try:
            write_atomic(path, json.dumps(content, indent=1) + "\n")
        except OSError as error:
            what = f"{path}: cannot be written ({error.strerror})"
            raise UserError(what, "give another file: --json FILE") from None
