"""What all benchmarks share."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from fsseg.bench.common import Findings, Spread, describe, environment, forget_peak, in_turn, peak_bytes
from fsseg.errors import UserError

CPU = torch.device("cpu")


def test_a_spread_holds_median_quartiles_and_the_least() -> None:
    assert Spread.of([4.0, 1.0, 2.0, 3.0, 5.0]) == Spread(3.0, 2.0, 4.0, 1.0, 3.0, 5)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0, 7.0, 7.0, 1)
    assert str(Spread(1.0634, 1.0512, 1.1, 1.0, 1.07, 9)) == "1.06 (1.05-1.10)"
    assert str(Spread(1.0634, 1.0512, 1.1, 1.0, 1.07, 9).times(1000)) == "1063 (1051-1100)"


def test_sides_are_measured_in_turn_and_the_warm_up_is_not_kept() -> None:
    calls: list[str] = []

    def side(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    found = in_turn({"a": lambda: side("a"), "b": lambda: side("b")}, repeats=2)
    assert calls == ["a", "b"] * 3
    assert found == {"a": [3.0, 5.0], "b": [4.0, 6.0]}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux only")
def test_the_peak_is_that_since_it_was_forgotten() -> None:
    large = torch.ones(64 << 18)  # 64 MiB
    before = peak_bytes(CPU)
    del large
    forget_peak(CPU)
    after = peak_bytes(CPU)
    assert before - after > 32e6


@dataclass(frozen=True)
class Row:
    name: str
    seconds: Spread


def test_the_report_is_text_and_json_with_machine_and_code(tmp_path: Path) -> None:
    machine = environment(CPU)
    report = Findings("step", machine, [Row("a", Spread.of([1.0, 2.0]))], "a table")
    report.write(tmp_path / "out.json")
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["benchmark"] == "step"
    assert content["rows"] == [
        {"name": "a", "seconds": {"median": 1.5, "low": 1.25, "high": 1.75, "least": 1.0, "mean": 1.5, "number": 2}}
    ]
    assert content["environment"] == machine
    assert {"cpu", "cores", "threads", "device", "torch", "fsseg", "commit", "command", "load"} <= machine.keys()
    assert report.text().startswith("a table\n")
    assert torch.__version__ in report.text()


def test_a_gpu_is_named_first() -> None:
    machine = environment(CPU) | {"device": "NVIDIA X", "cuda": "12.8", "commit": None}
    assert describe(machine).startswith("NVIDIA X, CUDA 12.8; ")
    assert "no commit known" in describe(machine)


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        Findings("step", environment(CPU), [], "").write(tmp_path / "file" / "out.json")
