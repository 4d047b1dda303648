"""A replication_results.json of anybody: what is no figure is named, and the figures beside it count."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from fsseg.report.collect import collect

GOOD = {"0": {"miou": 0.5}}


@pytest.mark.parametrize(
    ("results", "named"),
    [
        ({"pascal5i_resnet50_1shot": {**GOOD, "9" * 5000: {"miou": 0.5}}}, "is neither a fold nor the mean"),
        ({"pascal5i_resnet50_1shot": {**GOOD, "²": {"miou": 0.5}}}, "is neither a fold nor the mean"),
        ({"pascal5i_resnet50_1shot": GOOD, f"a_b_{'9' * 5000}shot": GOOD}, "is not <dataset>"),
        ({"pascal5i_resnet50_1shot": GOOD, "../../x_b_1shot": GOOD}, "is not <dataset>"),
        ({"pascal5i_resnet50_1shot": GOOD, "x" * 300 + "_b_1shot": GOOD}, "is not <dataset>"),
        ({"pascal5i_resnet50_1shot": GOOD, "a_b_1shot": []}, "is not <dataset>"),
        ({"pascal5i_resnet50_1shot": {**GOOD, "1": {"miou": ["x"] * 10_000}}}, "is no fraction"),
        ({"pascal5i_resnet50_1shot": {**GOOD, "1": {"miou": float("nan")}}}, "is no fraction"),
        ({"pascal5i_resnet50_1shot": {**GOOD, "1": {"miou": 10**400}}}, "is no fraction"),
    ],
)
def test_a_wrong_entry_is_named_in_short_and_the_others_count(
    tmp_path: Path, results: dict[str, Any], named: str
) -> None:
    (tmp_path / "replication_results.json").write_text(json.dumps({"results": results}))
    found = collect([tmp_path])
    (problem,) = found.problems
    assert named in problem.what
    assert len(problem.what) < 300
    assert [(c.key.fold, c.result.miou) for c in found.cells] == [(0, 50.0)]


def test_of_many_faults_the_first_are_named_and_the_rest_counted(tmp_path: Path) -> None:
    (tmp_path / "replication_results.json").write_text(json.dumps({"results": {f"{i}": 1 for i in range(1000)}}))
    problems = collect([tmp_path]).problems
    assert len(problems) == 21
    assert problems[-1].what == "has 980 more faults"


@pytest.mark.parametrize(
    ("content", "named"),
    [(b"[" * 200_000, "nested too deeply"), (b"\xff", "not JSON"), (b"[]", "not a JSON object"), (b"", "not JSON")],
)
def test_what_is_no_such_file_is_named(tmp_path: Path, content: bytes, named: str) -> None:
    (tmp_path / "replication_results.json").write_bytes(content)
    (problem,) = collect([tmp_path]).problems
    assert named in problem.what


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    os.mkfifo(tmp_path / "a" / "replication_results.json")
    (tmp_path / "b" / "replication_results.json").mkdir(parents=True)
    with (tmp_path / "replication_results.json").open("wb") as file:
        file.truncate(1 << 40)
    problems = collect([tmp_path]).problems
    assert [str(p).partition(": ")[2].partition(",")[0] for p in problems] == [
        "cannot be read (1099511.6 MB", "cannot be read (a FIFO", "cannot be read (a folder",
    ]  # fmt: skip
