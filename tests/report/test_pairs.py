"""Methods of a table against each other, on pairs of runs that were scored on the same episodes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_episodes import counts_of, made_areas, recorded, share_of

from fsseg.cell.record import RunDirectory
from fsseg.report.aggregate import aggregate
from fsseg.report.collect import collect
from fsseg.report.intervals import Episodes
from fsseg.report.pairs import compare
from fsseg.report.paper import MEAN
from fsseg.report.tables import build, with_intervals

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
    # deviations -2, 2, 0: variance 8 / 2, error 2 / sqrt(3); t of 2 degrees is 4.303
    assert (first.interval.low, first.interval.high) == pytest.approx((4 - 4.968, 4 + 4.968), abs=1e-3)
    assert (second.mean, second.interval, second.pairs) == (-10.0, None, 1)
    told = (
        "abcb resnet50 against baseline resnet50, 1-shot, paired by fold and training seed on the same episodes: "
        "+4.00 [-0.97, +8.97] (3 pairs); higher in 3 of 3 pairs; probability of improvement 1.00; "
        "Wilcoxon p 0.25, 0.5 after Holm (3 pairs can give no less than 0.25)"
    )
    assert f"  {told}\n" in aggregate([tmp_path])
    assert f"% {told}\n" in (tmp_path / "summary.tex").read_text()
    (one, _) = json.loads((tmp_path / "summary.json").read_text())["tables"][0]["paired"]
    assert (one["row"], one["difference"]["mean"], one["difference"]["pairs"]) == ("abcb resnet50", 4.0, 3)
    assert one["difference"]["interval"]["over"] == "runs"
    assert one["reason"].endswith("has no record of single episodes")


def test_runs_on_other_episodes_are_no_pair(tmp_path: Path, make_cell: MakeCell) -> None:
    for fold in (0, 1):
        make_cell(fold, 64.0)
        make_cell(fold, 60.0, method="prototype", episodes="other" if fold else None)
    (table,) = build(collect([tmp_path])).tables
    (pair,) = table.pairs
    assert (pair.reference, pair.difference.mean, pair.difference.pairs) == ("abcb resnet50", -4.0, 1)
    assert pair.left_out == ("fold 1 seed 0: scored on different episodes",)
    assert str(pair).endswith("; left out: fold 1 seed 0: scored on different episodes")
    assert table.differences["episodes"]["prototype resnet50"] == "e0 or other"


def test_variants_of_one_method_are_not_set_against_each_other(tmp_path: Path, make_cell: MakeCell) -> None:
    for rate in (1, 2):
        make_cell(0, 60.0, variant=f"train.lr-{rate}")
    (table,) = build(collect([tmp_path])).tables
    assert table.pairs == []


def two_rows(tmp_path: Path, make_cell: MakeCell, seeds: int = 1, **baseline: Any) -> None:
    """A method and its baseline on two folds, on episodes that are recorded; 30 images of each of two classes."""
    for fold in (0, 1):
        areas = made_areas([10 * fold, 10 * fold + 1], 30, seed=fold)
        for seed in range(seeds):
            for method, share in (("abcb", 0.62), ("baseline", 0.55)):
                counts = counts_of(areas, share_of(areas, share, 0.05, 10 * seed + len(method)))
                recorded(make_cell, fold, counts, place=tmp_path, method=method, seed=seed,
                         **(baseline if method == "baseline" else {}))  # fmt: skip


def test_recorded_episodes_give_the_interval_over_images(tmp_path: Path, make_cell: MakeCell) -> None:
    two_rows(tmp_path, make_cell)
    text = aggregate([tmp_path])
    ((pair,),) = (t.pairs for t in build(collect([tmp_path])).tables)
    assert pair.difference.interval.over == "query images"
    assert 2 < pair.difference.interval.low < pair.difference.mean < pair.difference.interval.high < 10
    assert (pair.episodes, pair.wins, pair.reason) == (240, 2, "")
    assert [(p.name, p.fold) for p in pair.folds] == [("fold 0", 0), ("fold 1", 1)]
    assert [(p.name, p.fold) for p in pair.classes] == [
        ("class 0", 0), ("class 1", 0), ("class 10", 1), ("class 11", 1),
    ]  # fmt: skip
    assert sum(p.value for p in pair.folds) / 2 == pytest.approx(pair.difference.mean)
    assert sum(p.value for p in pair.classes) / 4 == pytest.approx(pair.difference.mean)
    assert all(p.interval.low < p.value < p.interval.high for p in (*pair.folds, *pair.classes))
    assert f"{pair}\n" in text
    assert "[low, high]: 95 % interval over query images, for these trained models: " in text


def test_paired_intervals_are_narrower_than_those_of_the_rows(tmp_path: Path, make_cell: MakeCell) -> None:
    """The same runs: what an image has for both methods falls out of the difference, but not of the two scores."""
    two_rows(tmp_path, make_cell)
    cells = collect([tmp_path]).cells
    ours, theirs = ([c for c in cells if c.key.method == method] for method in ("abcb", "baseline"))
    paired = compare(ours, theirs).difference.interval
    widths = [(s.interval.high - s.interval.low) for s in map(Episodes().score, (ours, theirs))]
    assert paired.high - paired.low < 0.5 * (widths[0] ** 2 + widths[1] ** 2) ** 0.5


def test_training_seeds_are_in_the_interval_where_there_are_several(tmp_path: Path, make_cell: MakeCell) -> None:
    two_rows(tmp_path, make_cell, seeds=3)
    ((pair,),) = (t.pairs for t in build(collect([tmp_path])).tables)
    assert (pair.difference.pairs, pair.difference.interval.over) == (6, "query images and training seeds")
    assert pair.episodes == 240  # those of one seed: the others have the same
    assert pair.test.p == 2 / 2**6
    assert "after Holm" not in str(pair)  # one comparison: nothing to correct
    one = compare(*([c for c in collect([tmp_path]).cells if c.key.method == m and c.key.seed == 0]
                    for m in ("abcb", "baseline")))  # fmt: skip
    assert one.difference.interval.over == "query images"


@pytest.mark.parametrize("with_episodes", [True, False])
def test_folds_of_different_numbers_of_seeds_count_alike(
    tmp_path: Path, make_cell: MakeCell, with_episodes: bool
) -> None:
    """Scores and differences are those of the table: means over folds of the means over training seeds."""
    for fold, seed in ((0, 0), (0, 1), (1, 0), (2, 0), (3, 0)):
        areas = made_areas([10 * fold, 10 * fold + 1], 30, seed=fold)
        for method, share in (("abcb", 0.3 + 0.2 * fold), ("baseline", 0.25)):
            counts = counts_of(areas, share_of(areas, share, 0.05, 10 * seed + len(method)))
            run = recorded(make_cell, fold, counts, place=tmp_path, method=method, seed=seed)
            if not with_episodes:
                run.episodes_file.unlink()
    report = build(collect([tmp_path]))
    with_intervals(report)
    ((table,), cells) = report.tables, collect([tmp_path]).cells
    mious = {(c.key.method, c.key.fold, c.key.seed): c.result.miou for c in cells}
    ours, theirs = (
        (mious[m, 0, 0] / 2 + mious[m, 0, 1] / 2 + mious[m, 1, 0] + mious[m, 2, 0] + mious[m, 3, 0]) / 4
        for m in ("abcb", "baseline")
    )
    assert abs(ours - sum(mious[k] for k in mious if k[0] == "abcb") / 5) > 2  # it makes a difference here
    score = Episodes().score([c for c in cells if c.key.method == "abcb"])
    assert score.value == pytest.approx(ours)
    assert score.interval.low < ours < score.interval.high
    (pair,) = table.pairs
    assert pair.difference.mean == pytest.approx(ours - theirs)
    assert pair.difference.interval.low < ours - theirs < pair.difference.interval.high
    (entry,) = (e for row in table.rows if row.key.method == "abcb" for (_, f), e in row.entries.items() if f == MEAN)
    assert entry.miou == pytest.approx(ours)
    assert entry.interval == (score.interval if with_episodes else None)


def test_what_cannot_be_compared_says_why(tmp_path: Path, make_cell: MakeCell) -> None:
    two_rows(tmp_path, make_cell, episodes="other")
    ((pair,),) = (t.pairs for t in build(collect([tmp_path])).tables)
    assert pair.difference is None
    why = "fold 0 seed 0: scored on different episodes, fold 1 seed 0: scored on different episodes"
    assert pair.refused == why
    assert f"abcb resnet50 against baseline resnet50, 1-shot: not compared: {why}\n" in aggregate([tmp_path])


def test_no_run_in_common_says_so(make_cell: MakeCell, tmp_path: Path) -> None:
    make_cell(0, 50.0)
    make_cell(1, 50.0, method="baseline")
    ((pair,),) = (t.pairs for t in build(collect([tmp_path])).tables)
    assert pair.refused == "no fold and training seed in common"


def test_recorded_episodes_that_differ_are_refused_whatever_the_results_say(
    tmp_path: Path, make_cell: MakeCell
) -> None:
    for method, seed in (("abcb", 1), ("baseline", 2)):
        areas = made_areas([1], 30, seed=seed)
        recorded(make_cell, 0, counts_of(areas, lambda *_: 100), place=tmp_path, method=method)
    ((pair,),) = (t.pairs for t in build(collect([tmp_path])).tables)
    assert pair.refused == "fold 0 seed 0: their episodes.npz have different episodes"


def test_a_file_that_was_changed_is_not_used(tmp_path: Path, make_cell: MakeCell) -> None:
    two_rows(tmp_path, make_cell)
    file = next(tmp_path.rglob("abcb/**/fold1/**/episodes.npz"))
    file.write_bytes(file.read_bytes() + b"x")
    ((pair,),) = (t.pairs for t in build(collect([tmp_path])).tables)
    assert pair.difference.interval.over == "runs"  # Student's t over the two pairs
    assert pair.reason.startswith(f"{file.parent} episodes.npz is not the one of result.json")
    assert pair.classes == ()
    assert "as single episodes cannot be used: " in aggregate([tmp_path])


def test_p_values_of_one_table_are_corrected_together(tmp_path: Path, make_cell: MakeCell) -> None:
    for fold in range(4):
        for method, miou in (("baseline", 50.0), ("abcb", 60.0 + fold), ("prototype", 40.0 + fold)):
            make_cell(fold, miou, method=method)
    (table,) = build(collect([tmp_path])).tables
    assert [(p.test.p, p.p_holm) for p in table.pairs] == [(0.125, 0.25), (0.125, 0.25)]
