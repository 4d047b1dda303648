"""How long the commands take that read many cells, and how much memory: `python tests/benchmarks/growth.py`.

Each figure is of a process of its own, as a user starts it; processor time, so that other load counts little.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from many_cells import make_tree, make_whole_tree, planned

Case = Callable[[Path, int], list[str]]
"""Fills an empty folder for so many cells, and gives the arguments of `fsseg`."""


def _of_tree(command: str, kind: str) -> Case:
    def case(folder: Path, count: int) -> list[str]:
        make_tree(folder, count, kind)
        return [command, str(folder)]

    return case


def _plan(*more: str, swept: str = "seed", made: tuple[str, ...] = ()) -> Case:
    def case(folder: Path, count: int) -> list[str]:
        return ["plan", *planned(folder, count, swept, made), *more]

    return case


def _report(folder: Path, count: int) -> list[str]:
    make_whole_tree(folder / "runs", count)
    return ["report", str(folder / "runs"), "--out", str(folder / "report.html")]


CASES: dict[str, Case] = {
    "aggregate": _of_tree("aggregate", "seeds"),
    "aggregate, a variant each": _of_tree("aggregate", "variants"),
    "aggregate, half unfinished": _of_tree("aggregate", "unfinished"),
    "aggregate, a protocol each": _of_tree("aggregate", "protocols"),
    "aggregate, an experiment": _of_tree("aggregate", "experiment"),
    "plan": _plan(),
    "plan, a learning rate each": _plan(swept="train.lr"),
    "plan for 4 servers": _plan("--servers", "4"),
    "plan for 4 servers, all done": _plan("--servers", "4", made=("done",)),
    "plan for 4 servers, some done": _plan("--servers", "4", made=("done", "failed", "running", "")),
    "status": _of_tree("status", "unfinished"),
    "retry": _of_tree("retry", "unfinished"),
    "clean": _of_tree("clean", "unfinished"),
    "report": _report,
}


_MEASURED = f"""
import atexit, sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from peak import peak_megabytes
atexit.register(lambda: print(time.process_time(), peak_megabytes(), file=sys.stderr))
from fsseg.cli.app import main
main()
"""


@dataclass(frozen=True)
class Cost:
    """What a command took: processor time in seconds, and the most memory in 1e6 bytes."""

    seconds: float
    megabytes: float


def measure(case: Case, count: int) -> Cost:
    """The cost of a case with so many cells.

    Raises:
        RuntimeError: the command failed.
    """
    with tempfile.TemporaryDirectory(prefix="fsseg-growth-") as folder:
        arguments = case(Path(folder), count)
        done = subprocess.run(
            [sys.executable, "-c", _MEASURED, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
    if done.returncode:
        raise RuntimeError(f"fsseg {arguments[0]} failed: {done.stderr}")
    seconds, megabytes = done.stderr.splitlines()[-1].split()
    return Cost(float(seconds), float(megabytes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", default="1000,4000,20000", help="numbers of cells (default: 1000,4000,20000)")
    parser.add_argument("--only", default="", help="cases whose name begins so (default: all)")
    arguments = parser.parse_args()
    counts = [int(number) for number in arguments.cells.split(",")]
    print(f"{'cells':<32}" + "".join(f"{count:>20,}" for count in counts))
    for name, case in CASES.items():
        if name.startswith(arguments.only):
            costs = [measure(case, count) for count in counts]
            figures = (f"{cost.seconds:.1f} s, {cost.megabytes:.0f} MB" for cost in costs)
            print(f"{name:<32}" + "".join(f"{figure:>20}" for figure in figures), flush=True)


if __name__ == "__main__":
    main()
