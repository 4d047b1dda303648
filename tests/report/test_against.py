"""`fsseg compare`: which cells meet, what is refused, and figures worked out by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import fsseg
from run_directories import KEY, make_run
from scored_runs import scored_run

from fsseg.errors import UserError
from fsseg.report.against import side_by_side, text, to_json

EVEN = {"cat": [50] * 6, "dog": [20] * 6}
"""Of 100 to 105 pixels of foreground: IoU 300 / 615 and 120 / 615."""
MORE = {"cat": [70] * 6, "dog": [20] * 6}
ABCB, BASELINE = KEY, replace(KEY, method="baseline")


def lines_of(found: str) -> dict[str, list[str]]:
    """First words of each line of the table -> its cells."""
    rows = [line.split("  ") for line in found.splitlines()]
    return {row[0]: [cell.strip() for cell in row[1:] if cell.strip()] for row in rows if len(row) > 2}


def test_two_runs_stand_side_by_side_with_their_paired_difference(tmp_path: Path) -> None:
    a = scored_run(tmp_path, ABCB, MORE, identity={"train.lr": 0.1, "fold": 0})
    b = scored_run(tmp_path, BASELINE, EVEN, identity={"train.lr": 0.2, "fold": 0})
    found = side_by_side(a.directory, b.directory)
    (sides,) = found.shots.values()
    assert found.settings == {"train.lr": {"A": "0.1", "B": "0.2"}}
    assert sides.comparison.difference is not None
    assert sides.comparison.difference.mean == pytest.approx((100 * 120 / 615) / 2)
    classes = {part.name: part for part in sides.comparison.classes}
    assert classes["cat"].value == pytest.approx(100 * 120 / 615)
    assert classes["dog"].value == 0
    rows = lines_of(text(found))
    assert rows["train.lr"] == ["0.1", "0.2"]
    # 420 / 615 and 300 / 615: 68.29 and 48.78
    assert [cell.split(" ")[0] for cell in rows["fold 0 cat"]] == ["68.29", "48.78", "+19.51", "1"]
    assert [cell.split(" ")[0] for cell in rows["mean"]] == ["43.90", "34.15", "+9.76", "1"]
    assert rows["mean"][2].startswith("+9.76 [+")


def test_every_difference_has_an_interval_or_says_that_it_has_none(tmp_path: Path) -> None:
    for fold in (0, 1):
        scored_run(tmp_path, replace(ABCB, fold=fold), MORE, episodes=f"e{fold}")
        scored_run(tmp_path, replace(BASELINE, fold=fold), EVEN, episodes=f"e{fold}")
    place = tmp_path / "runs" / "pascal5i"
    shown = text(side_by_side(place / "abcb", place / "baseline"))
    table = [line for line in shown.splitlines() if line.startswith(("fold", "mean"))]
    assert len(table) == 2 * 2 + 2 + 1  # each class of two folds, the folds, the mean
    assert all(line.count("[") == 3 and line.split()[-1] in "12" for line in table)
    bare = [make_run(tmp_path / "bare", key, result=50.0) for key in (ABCB, BASELINE)]
    shown = text(side_by_side(bare[0].directory, bare[1].directory))
    assert "+0.00 (no interval)" in shown
    assert "no classes" in shown


def test_settings_that_nobody_knows_are_not_told_to_be_equal(tmp_path: Path) -> None:
    known = [scored_run(tmp_path / "known", key, MORE, identity={"train.lr": 0.1}) for key in (ABCB, BASELINE)]
    assert "no further setting differs\n" in text(side_by_side(*(run.directory for run in known)))
    unknown = [scored_run(tmp_path / "unknown", key, MORE) for key in (ABCB, BASELINE)]
    shown = text(side_by_side(*(run.directory for run in unknown)))
    assert "setting differs" not in shown
    assert "settings not known, without identity.json\n" in shown


def test_folds_of_one_pair_say_that_training_seeds_are_not_in_their_intervals(tmp_path: Path) -> None:
    for fold, seed, hits in ((0, 0, MORE), (0, 1, {"cat": [71] * 6, "dog": [22] * 6}), (1, 0, MORE)):
        scored_run(tmp_path, replace(ABCB, fold=fold, seed=seed), hits, episodes=f"e{fold}")
        scored_run(tmp_path, replace(BASELINE, fold=fold, seed=seed), EVEN, episodes=f"e{fold}")
    place = tmp_path / "runs" / "pascal5i"
    shown = text(side_by_side(place / "abcb", place / "baseline"))
    assert "  [low, high]: 95 % interval over query images and training seeds\n" in shown
    assert "  of fold 1, which has one pair, it is over query images alone" in shown


def test_cells_meet_by_fold_and_seed_and_what_is_alone_is_named(tmp_path: Path) -> None:
    scored_run(tmp_path, ABCB, MORE)
    scored_run(tmp_path, replace(ABCB, fold=1), MORE, episodes="f")
    scored_run(tmp_path, replace(ABCB, fold=2), MORE, episodes="one")
    for fold, episodes in ((0, "e"), (2, "another"), (3, "g")):
        scored_run(tmp_path, replace(BASELINE, fold=fold), EVEN, episodes=episodes)
    place = tmp_path / "runs" / "pascal5i"
    (sides,) = side_by_side(place / "abcb", place / "baseline").shots.values()
    assert sides.pairs == {0: 1}
    assert sides.left_out == (
        "only in A: fold 1 seed 0", "only in B: fold 3 seed 0", "fold 2 seed 0: scored on different episodes",
    )  # fmt: skip


def test_unequal_episodes_are_refused_with_the_reason(tmp_path: Path) -> None:
    a, b = scored_run(tmp_path, ABCB, MORE), scored_run(tmp_path, BASELINE, EVEN, episodes="another")
    done = fsseg("compare", str(a.directory), str(b.directory))
    assert (done.returncode, done.stdout) == (1, "")
    what, fix = done.stderr.splitlines()
    assert what.endswith("cannot be compared: 1-shot: fold 0 seed 0: scored on different episodes")
    assert fix.startswith("  -> ")


def test_what_is_no_single_row_is_refused(tmp_path: Path) -> None:
    scored_run(tmp_path, ABCB, MORE), scored_run(tmp_path, BASELINE, EVEN)
    other = scored_run(tmp_path / "b", replace(ABCB, dataset="coco20i"), EVEN)
    running = make_run(tmp_path / "c", KEY, status="running")
    abcb = tmp_path / "runs" / "pascal5i" / "abcb"
    for first, second, named in (
        (tmp_path / "runs", abcb, "holds 2 rows"), (abcb, other.directory, "different data sets"),
        (abcb, running.directory, "holds no run with a score"), (abcb, tmp_path / "absent", "does not exist"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=named):
            side_by_side(first, second)


def test_json_has_all_decimals(tmp_path: Path) -> None:
    a, b = scored_run(tmp_path, ABCB, MORE), scored_run(tmp_path, BASELINE, EVEN)
    found = json.loads(fsseg("compare", str(a.directory), str(b.directory), "--json").stdout)
    assert found == json.loads(json.dumps(to_json(side_by_side(a.directory, b.directory))))
    shot = found["shots"]["1"]
    assert shot["a"]["value"] == pytest.approx(100 * 540 / 615 / 2)
    assert shot["difference"]["difference"]["pairs"] == 1
    assert {part["name"]: part["pairs"] for part in shot["difference"]["classes"]} == {"cat": 1, "dog": 1}


def test_hostile_names_are_text(tmp_path: Path) -> None:
    key = replace(ABCB, variant="[red]\x1b[2J")
    a, b = (
        scored_run(tmp_path, key, {"\x1b[31mcat": [5, 6], "[b]": [7, 8]}),
        scored_run(tmp_path, BASELINE, {"\x1b[31mcat": [5, 7], "[b]": [7, 8]}),
    )
    shown = text(side_by_side(a.directory, b.directory))
    assert "fold 0 \\x1b[31mcat" in shown
    assert all(line.isprintable() for line in shown.splitlines())
