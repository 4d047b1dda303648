"""Cutting a grid into lines for servers: every set of lines is composed again and must be exactly the grid."""

from __future__ import annotations

import itertools
import shlex
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsseg.cell.record import open_cell
from fsseg.config.compose import Composed, composer
from fsseg.errors import UserError
from fsseg.process.files import write_json
from fsseg.sweep.grid import Point, _chunks, build_grid, command, cut, merge, swept_keys

PAPER = ["dataset=pascal5i,coco20i", "backbone=resnet50,resnet101", "shot=1,5", "fold=0,1,2,3"]


def directories(lines: list[str]) -> Counter[str]:
    """Run directories that shell lines lead to, by composing them."""
    found: Counter[str] = Counter()
    with composer() as c:
        for line in lines:
            words = shlex.split(line)
            assert words[:3] == ["python", "train.py", "-m"]
            for _, composed in c.grid(words[3:]):
                assert isinstance(composed, Composed)
                found[str(open_cell(composed.cfg, composed.resolved, composed.task_overrides).directory)] += 1
    return found


@pytest.mark.parametrize(
    "by", [["dataset", "backbone"], ["fold"], ["shot"], ["dataset", "backbone", "shot", "fold"], None]
)
def test_the_lines_of_all_servers_compose_to_exactly_the_grid(by: list[str] | None) -> None:
    points = build_grid(PAPER)
    assert len(points) == 32
    hours = [80.0 if p.settings["dataset"] == "coco20i" else 1.0 for p in points]
    parts = cut(points, hours, 4, by)
    expected = Counter(str(p.cell.directory) for p in points if p.cell)
    assert directories([command(box) for boxes in parts for box in boxes]) == expected
    assert set(expected.values()) == {1}


def test_four_servers_by_dataset_and_backbone_get_a_line_each() -> None:
    points = build_grid(PAPER)
    parts = cut(points, [1.0] * 32, 4, ["dataset", "backbone"])
    assert [[command(box) for box in boxes] for boxes in parts] == [
        [f"python train.py -m dataset={d} backbone={b} shot=1,5 fold=0,1,2,3"]
        for d in ("pascal5i", "coco20i")
        for b in ("resnet50", "resnet101")
    ]


def test_values_that_need_quoting_survive_the_way_through_the_shell() -> None:
    line = ["protocol.seeds=[0,1],[0]", "name='a b'", "fold=range(0,3)", "train.lr=0.1,0.2"]
    points = build_grid(line)
    parts = cut(points, [1.0] * len(points), 3, ["protocol.seeds", "train.lr", "fold"])
    assert directories([command(box) for boxes in parts for box in boxes]) == Counter(
        str(p.cell.directory) for p in points if p.cell
    )


def test_a_key_that_the_line_does_not_have_is_refused() -> None:
    points = build_grid(["fold=0,1"])
    with pytest.raises(UserError, match="nonsense"):
        cut(points, [1.0, 1.0], 2, ["nonsense"])
    with pytest.raises(UserError, match="at least one"):
        cut(points, [1.0, 1.0], 0)


def test_states_come_from_the_directories(tmp_path: object) -> None:
    line = ["fold=0,1,2,3", f"output_dir={tmp_path}"]
    cells = [p.cell for p in build_grid(line)]
    assert all(cells)
    done, failed, other, _ = [c for c in cells if c]
    write_json(done.result, {"fingerprint": done.fingerprint, "metrics": {"miou": 1.0}})
    write_json(failed.status, {"state": "failed", "reason": "bad image"})
    write_json(other.identity_file, {"fingerprint": "else", "identity": {"train.lr": 7}})
    points = build_grid(line)
    assert [p.state for p in points] == ["done", "failed", "faulty", "to do"]
    assert "train.lr: 7 there" in points[2].faults[0].what


def test_two_cells_with_one_directory_are_refused() -> None:
    with pytest.raises(UserError, match="share the directory"):
        build_grid(["fold=0,1", "variant=same", "fold=0", "train.lr=0.1,0.2"])


def test_a_cell_that_cannot_be_is_named_and_the_others_stand() -> None:
    points = build_grid(["fold=0,7"])
    assert [p.state for p in points] == ["to do", "faulty"]
    assert "fold=7" in points[1].faults[0].what


@given(st.lists(st.floats(0, 100), min_size=1, max_size=9), st.integers(1, 5))
@settings(deadline=None)
def test_chunks_are_as_even_as_any_cutting_can_be(weights: list[float], count: int) -> None:
    runs = _chunks(weights, count)
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


def test_swept_keys_are_those_with_several_values_in_order() -> None:
    points = [Point({"shot": "1", "fold": f, "seed": s}) for f in "01" for s in "01"]
    assert swept_keys(points) == ["fold", "seed"]
