"""Random hostile inputs: no traceback, no hang, no crash, no wrong answer. `pytest -m slow` plays all 2,000."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hostile import KINDS, play
from runs import fork

_SECONDS = 60  # for one case; they take a fraction of a second


def _play(kind: str, numbers: range, folder: Path, report: Path) -> None:
    """Play cases in a process of its own, which a crash would end; a line for each."""
    logging.getLogger("fsseg").setLevel(logging.CRITICAL)

    def too_long(*_: Any) -> None:
        raise TimeoutError(f"longer than {_SECONDS} s")

    signal.signal(signal.SIGALRM, too_long)
    os.environ["HOME"] = str(folder)
    for number in numbers:
        place = folder / f"{kind}{number}"
        signal.alarm(_SECONDS)
        try:
            came_to = play(kind, number, place / "case")
        except BaseException as error:
            came_to = f"FAULT {type(error).__name__}: {str(error)[:300]!r}"
            traceback.print_exc()
        signal.alarm(0)
        with report.open("a") as file:
            file.write(f"{kind} {number} {came_to}\n")
        shutil.rmtree(place, ignore_errors=True)


def _all(kind: str, count: int, folder: Path) -> Counter[str]:
    report, log = folder / "report", folder / "log"
    process = fork(_play, kind, range(count), folder, report, log=log)
    process.join(60 + 3 * count)
    if process.is_alive():  # a hang within C code, which no signal interrupts
        process.kill()
    lines = report.read_text().splitlines() if report.exists() else []
    assert len(lines) == count, (
        f"{kind} {len(lines)} hung or crashed (exit status {process.exitcode}):\n{log.read_text()[-3000:]}"
    )
    faults = [line for line in lines if "FAULT" in line]
    assert not faults, "\n".join(faults) + "\n" + log.read_text()[-6000:]
    return Counter(line.split()[2] for line in lines)


@pytest.mark.process
@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_of_hostile_inputs_is_refused_or_answered_rightly(kind: str, tmp_path: Path) -> None:
    _all(kind, KINDS[kind][1] // 20, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_thousand_hostile_inputs_are_refused_or_answered_rightly(tmp_path: Path) -> None:
    found = {}
    for kind, (_, count) in KINDS.items():
        began, folder = time.monotonic(), tmp_path / kind
        folder.mkdir()
        found[kind] = _all(kind, count, folder)
        print(kind, dict(found[kind]), f"{time.monotonic() - began:.0f} s")
    assert sum(sum(c.values()) for c in found.values()) == 2000
    assert all(c["ok"] and c["refused"] for kind, c in found.items() if kind != "tree")
