"""Commands that read many cells grow with their number, and keep the limits that a user may count on.

`growth.py` prints the figures themselves.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import growth
import pytest
from growth import CASES, measure

import fsseg
from fsseg.cli.app import app

MOST = {2: 128, 4: 640}
"""Cells of the largest folder, by the factor between two folders."""


def lines_run(function: Callable[[], None]) -> int:
    """How many lines of fsseg a call runs, those of loops once for each turn: the same on every machine."""
    count, package = 0, str(Path(fsseg.__file__).parent)

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace if frame.f_code.co_filename.startswith(package) else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("case", [c for c in CASES if c not in ("plan", "plan for 4 servers")])
def test_the_work_grows_with_the_number_of_cells(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    factor = 4 if case.startswith("aggregate") else 2  # the cells of a plan take longer
    work = []
    for count in (1, *(MOST[factor] // factor**n for n in (2, 1, 0))):  # the first time also imports
        arguments = CASES[case](tmp_path / str(len(work)), count)
        work.append(lines_run(lambda arguments=arguments: app(arguments, standalone_mode=False)))
        assert capsys.readouterr().out
    # What does not depend on the number falls out of the differences. If the work grew with the square, the ratio of
    # the differences was the square of the factor.
    assert (work[3] - work[2]) / (work[2] - work[1]) < 1.25 * factor


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("case", [name for name in CASES if name.startswith("plan")])
def test_4000_cells_are_planned_in_15_seconds(case: str) -> None:
    assert measure(CASES[case], 4000).seconds < 15


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("case", [name for name in CASES if name.startswith("aggregate")])
def test_20000_cells_are_aggregated_in_15_seconds_and_300_megabytes(case: str) -> None:
    cost = measure(CASES[case], 20_000)
    assert cost.seconds < 15
    assert cost.megabytes < (400 if case == "aggregate, a protocol each" else 300)  # those are 20,000 tables


@pytest.mark.process
def test_it_runs_as_a_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["growth.py", "--cells", "8,16", "--only", "status"])
    growth.main()
    title, line = capsys.readouterr().out.splitlines()
    assert title.split() == ["cells", "8", "16"]
    assert re.fullmatch(r"status( +\d+\.\d s, \d+ MB){2}", line)
