"""Cutting a grid into lines for servers: all lines together must be exactly the grid."""

from __future__ import annotations

import itertools
import shlex
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsseg.cell.record import open_cell
from fsseg.config.compose import Composed, composer
from fsseg.errors import UserError
from fsseg.sweep.boxes import command, cut, merge, split_evenly, swept_keys
from fsseg.sweep.grid import Point, build_grid

PAPER = ["dataset=pascal5i,coco20i", "backbone=resnet50,resnet101", "shot=1,5", "fold=0,1,2,3"]


def words_of(line: str) -> list[str]:
    words = shlex.split(line)
    assert words[:3] == ["python", "train.py", "-m"]
    return words[3:]


def directories(lines: Sequence[str]) -> Counter[str]:
    """Run directories that shell lines lead to, by composing them."""
    found: Counter[str] = Counter()
    with composer() as c:
        for line in lines:
            for _, composed in c.grid(words_of(line)):
                assert isinstance(composed, Composed)
                found[str(open_cell(composed.cfg, composed.resolved, composed.task_overrides).directory)] += 1
    return found


def product(line: Sequence[str]) -> list[tuple[str, ...]]:
    """The jobs of a line of plain values."""
    keys, values = zip(*(word.split("=") for word in line))
    return [tuple(f"{k}={v}" for k, v in zip(keys, job)) for job in itertools.product(*(v.split(",") for v in values))]


@pytest.mark.parametrize(
    "by", [["dataset", "backbone"], ["fold"], ["shot"], ["dataset", "backbone", "shot", "fold"], None]
)
def test_the_lines_of_all_servers_are_exactly_the_grid(by: list[str] | None) -> None:
    points = [Point(job) for job in product(PAPER)]
    assert len(points) == 32
    hours = [80.0 if p.settings["dataset"] == "coco20i" else 1.0 for p in points]
    parts = cut(points, hours, 4, by)
    jobs = [job for boxes in parts for box in boxes for job in product(words_of(command(box)))]
    assert Counter(jobs) == Counter(product(PAPER))


def test_hydra_composes_the_lines_to_exactly_the_grid() -> None:
    points = build_grid([*PAPER[:3], "fold=0,3"])
    parts = cut(points, [80.0 if p.settings["dataset"] == "coco20i" else 1.0 for p in points], 4)
    expected = Counter(str(p.cell.directory) for p in points if p.cell)
    assert directories([command(box) for boxes in parts for box in boxes]) == expected
    assert set(expected.values()) == {1}
    assert len(expected) == 16


def test_four_servers_by_dataset_and_backbone_get_a_line_each() -> None:
    parts = cut([Point(job) for job in product(PAPER)], [1.0] * 32, 4, ["dataset", "backbone"])
    assert [[command(box) for box in boxes] for boxes in parts] == [
        [f"python train.py -m dataset={d} backbone={b} shot=1,5 fold=0,1,2,3"]
        for d in ("pascal5i", "coco20i")
        for b in ("resnet50", "resnet101")
    ]


def test_values_that_need_quoting_survive_the_way_through_the_shell() -> None:
    line = ["protocol.seeds=[0,1]", "name=1.10", "output_dir='it\\'s \"$HOME\"','c d'", "fold=range(0,2)", "seed=0,1"]
    points = build_grid(line)
    parts = cut(points, [1.0] * len(points), 3, ["output_dir", "seed", "fold"])
    assert directories([command(box) for boxes in parts for box in boxes]) == Counter(
        str(p.cell.directory) for p in points if p.cell
    )


def test_a_key_that_the_line_does_not_have_is_refused() -> None:
    points = [Point(("fold=0",)), Point(("fold=1",))]
    with pytest.raises(UserError, match="nonsense"):
        cut(points, [1.0, 1.0], 2, ["nonsense"])
    with pytest.raises(UserError, match="at least one"):
        cut(points, [1.0, 1.0], 0)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=9), st.integers(1, 5))
@settings(deadline=None)
def test_chunks_are_as_even_as_any_cutting_can_be(weights: list[float], count: int) -> None:
    runs = split_evenly(weights, count)
    assert [i for run in runs for i in run] == list(range(len(weights)))
    assert all(runs)
    possible = []
    for size in range(1, min(count, len(weights)) + 1):
        for marks in itertools.combinations(range(1, len(weights)), size - 1):
            edges = [0, *marks, len(weights)]
            possible.append(max(sum(weights[a:b]) for a, b in itertools.pairwise(edges)))
    assert max(sum(weights[i] for i in run) for run in runs) <= min(possible) + 1e-6


@given(st.sets(st.tuples(st.sampled_from("ab"), st.sampled_from("cde"), st.sampled_from("fgh")), min_size=1))
@settings(deadline=None)
def test_merged_boxes_hold_every_point_once_and_no_other(cells: set[tuple[str, str, str]]) -> None:
    boxes = merge([dict(zip(("x", "y", "z"), cell)) for cell in sorted(cells)])
    held = [point for box in boxes for point in itertools.product(*(box[k] for k in ("x", "y", "z")))]
    assert sorted(held) == sorted(cells)


def test_a_full_product_merges_into_one_line() -> None:
    points = [{"a": a, "b": b} for a in "12" for b in "345"]
    assert merge(points) == [{"a": ("1", "2"), "b": ("3", "4", "5")}]


def test_points_with_other_keys_never_meet_and_each_counts_once() -> None:
    points = [{"a": "1"}, {"a": "1"}, {"a": "1", "b": "2"}, {"a": "2"}]
    assert merge(points) == [{"a": ("1", "2")}, {"a": ("1",), "b": ("2",)}]


def test_swept_keys_are_those_with_several_values_in_order() -> None:
    points = [Point(("shot=1", f"fold={f}", f"seed={s}")) for f in "01" for s in "01"]
    assert swept_keys(points) == ["fold", "seed"]
