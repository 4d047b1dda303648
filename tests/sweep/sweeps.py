"""Sweeps of cells that do not train (`fake_train.py`), in processes of their own that start at once."""

from __future__ import annotations

import os
import re
import runpy
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from runs import fork

from fsseg.cell.key import CellKey
from fsseg.cell.record import RunDirectory

REPO = Path(__file__).resolve().parents[2]
FAKE = Path(__file__).with_name("fake_train.py")


class Started:
    """`python fake_train.py <words>` as `subprocess.Popen` would show it, but forked off a process that has Hydra."""

    def __init__(self, words: Sequence[str], folder: Path, environment: Mapping[str, str], log: Path) -> None:
        self._log = log
        self._process: ForkServerProcess = fork(_fake_train, list(words), str(folder), dict(environment), log=log)

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def communicate(self, timeout: float = 240) -> tuple[str, None]:
        """Wait for its end; everything it printed."""
        self._process.join(timeout)
        output = self._log.read_text() if self._log.exists() else ""
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("fake_train.py", timeout, output)
        return output, None


def _fake_train(words: list[str], folder: str, environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    warnings.simplefilter("ignore")
    sys.argv = [str(FAKE), *words]
    runpy.run_path(str(FAKE), run_name="__main__")


class Sweep:
    """`python fake_train.py` below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[Started] = []

    def start(self, *overrides: str, **environment: str) -> Started:
        own = [f"output_dir={self.folder / 'outputs'}", "name=s", f"dataset.root={self.folder}"]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", **environment}
        env.pop("HYDRA_FULL_ERROR", None)
        process = Started([*overrides, *own], self.folder, env, self.folder / f"output{len(self.started)}.txt")
        self.started.append(process)
        return process

    def run(self, *overrides: str, **environment: str) -> tuple[int | None, str]:
        """Exit status, and everything printed."""
        process = self.start(*overrides, **environment)
        output, _ = process.communicate()
        return process.returncode, output

    def cell(self, fold: int, seed: int = 0, variant: str = "default") -> RunDirectory:
        key = CellKey("s", "shapes5i", "abcb", "tiny", 1, fold, seed, variant)
        return RunDirectory(self.folder / "outputs" / key.path)


def states(output: str) -> list[str]:
    """The state column of the table that ends a sweep, in its order."""
    rows = output.partition("\ncell ")[2].splitlines()[1:]
    return [found.group(1) for row in rows if (found := re.match(r"\S+/seed\d+ +(\w+)", row))]


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)
