"""Sweeps of cells that do not train (`fake_train.py`), as processes of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]


class Sweep:
    """`python fake_train.py` below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *overrides: str, **environment: str) -> subprocess.Popen[str]:
        own = [f"output_dir={self.folder / 'outputs'}", "name=s", f"dataset.root={self.folder}"]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", **environment}
        env.pop("HYDRA_FULL_ERROR", None)
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("fake_train.py")), *overrides, *own],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=self.folder, env=env,
        )  # fmt: skip
        self.started.append(process)
        return process

    def run(self, *overrides: str, **environment: str) -> tuple[int, str]:
        """Exit status, and everything printed."""
        process = self.start(*overrides, **environment)
        output, _ = process.communicate(timeout=120)
        return process.returncode, output

    def cell(self, fold: int) -> Path:
        return self.folder / f"outputs/s/shapes5i/abcb/tiny/1shot/default/fold{fold}/seed0"


def states(output: str) -> list[str]:
    """The state column of the table that ends a sweep, in its order."""
    rows = output.partition("\ncell ")[2].splitlines()[1:]
    return [found.group(1) for row in rows if (found := re.match(r"\S+/seed\d+ +(\w+)", row))]


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)
