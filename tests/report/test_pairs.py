"""Methods of a table against each other, on pairs of runs that were scored on the same episodes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fsseg.cell.record import RunDirectory
from fsseg.report.aggregate import aggregate
from fsseg.report.collect import collect
from fsseg.report.tables import build

MakeCell = Callable[..., RunDirectory]


def test_each_row_is_set_against_the_baseline_on_the_folds_and_seeds_of_both(
    tmp_path: Path, make_cell: MakeCell
) -> None:
    for fold, (ours, theirs) in enumerate([(62.0, 60.0), (66.0, 60.0), (70.0, 66.0)]):  # 2, 6, 4 more
        make_cell(fold, ours)
        make_cell(fold, theirs, method="baseline")
    make_cell(3, 90.0)  # the baseline has no such fold
    make_cell(0, 90.0, seed=1)  # nor such a seed
    make_cell(0, 40.0, method="prototype", shot=5)
    make_cell(0, 50.0, method="baseline", shot=5)
    (table,) = build(collect([tmp_path])).tables
    assert [(pair.row, pair.reference, pair.shot) for pair in table.pairs] == [
        ("abcb resnet50", "baseline resnet50", 1), ("prototype resnet50", "baseline resnet50", 5),
    ]  # fmt: skip
    first, second = (pair.difference for pair in table.pairs)
    assert (first.mean, first.pairs) == (4.0, 3)
    assert first.standard_error == pytest.approx(2 / 3**0.5)  # deviations -2, 2, 0: variance 8 / 2
    assert (second.mean, second.standard_error, second.pairs) == (-10.0, None, 1)
    told = (
        "abcb resnet50 against baseline resnet50, 1-shot, paired by fold and training seed on the same episodes: "
        "+4.00 (standard error 1.15, 3 pairs)"
    )
    assert f"  {told}\n" in aggregate([tmp_path])
    assert f"% {told}\n" in (tmp_path / "summary.tex").read_text()
    (one, _) = json.loads((tmp_path / "summary.json").read_text())["tables"][0]["paired"]
    assert (one["row"], one["difference"]["mean"], one["difference"]["pairs"]) == ("abcb resnet50", 4.0, 3)


def test_runs_on_other_episodes_are_no_pair(tmp_path: Path, make_cell: MakeCell) -> None:
    for fold in (0, 1):
        make_cell(fold, 64.0)
        make_cell(fold, 60.0, method="prototype", episodes="other" if fold else None)
    (table,) = build(collect([tmp_path])).tables
    (pair,) = table.pairs
    assert (pair.reference, pair.difference.mean, pair.difference.pairs) == ("abcb resnet50", -4.0, 1)
    assert table.differences["episodes"]["prototype resnet50"] == "e0 or other"


def test_variants_of_one_method_are_not_set_against_each_other(tmp_path: Path, make_cell: MakeCell) -> None:
    for rate in (1, 2):
        make_cell(0, 60.0, variant=f"train.lr-{rate}")
    (table,) = build(collect([tmp_path])).tables
    assert table.pairs == []
