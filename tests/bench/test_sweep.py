"""The measurement does with its cells what it says; how fast is not asserted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from run_directories import KEY, make_run

from fsseg.bench.sweep import LIGHT, bench_sweep, format_sweep, start_process
from fsseg.errors import UserError
from fsseg.report.aggregate import aggregate


def test_every_way_is_measured_on_the_same_cells() -> None:
    lines: list[list[str]] = []

    def start(line: Sequence[str]) -> None:
        """Instead of a process: notes the line, and leaves a result for each of its cells."""
        lines.append(list(line))
        given = dict(word.split("=", 1) for word in line if "=" in word)
        for seed in given["seed"].split(","):
            key = replace(KEY, dataset="shapes5i", backbone="tiny", method="prototype", seed=int(seed))
            if not (Path(given["output_dir"]) / key.path).exists():
                make_run(Path(given["output_dir"]), key, result=40.0)

    rows = bench_sweep(aggregate, ["dataset.image_size=65"], cells=3, repeats=2, start=start)
    assert [(row.what, row.cells, row.seconds.number) for row in rows] == [
        ("plan", 3, 2),
        ("one process (-m)", 1, 2),
        ("one process (-m)", 3, 2),
        ("a process each", 3, 2),
        ("one process, all done", 1, 2),
        ("one process, all done", 3, 2),
        ("a process each, all done", 3, 2),
        ("status", 3, 2),
        ("aggregate", 3, 2),
        ("one process (-m): a further cell", 1, 2),
        ("one process, all done: a further cell", 1, 2),
    ]
    # three rounds, one of them warm-up: twice 1 + 1 + 3 processes in each
    assert len(lines) == 3 * 2 * (1 + 1 + 3)
    assert all(set(LIGHT) <= set(line) and "dataset.image_size=65" in line for line in lines)
    assert len({word for line in lines for word in line if word.startswith("output_dir=")}) == 3 * 3  # fresh each round
    assert len(format_sweep(rows).splitlines()) == 1 + len(rows) + 2


def test_what_the_line_gives_replaces_what_is_light() -> None:
    lines: list[list[str]] = []

    def stop(line: Sequence[str]) -> None:
        lines.append(list(line))
        raise UserError("enough", "")

    with pytest.raises(UserError, match="enough"):
        bench_sweep(aggregate, ["method=baseline", "dataset.root=/data"], cells=2, repeats=1, start=stop)
    (line,) = lines
    assert [word for word in line if word.startswith(("method=", "dataset.root="))] == [
        "method=baseline",
        "dataset.root=/data",
    ]


@pytest.mark.process
def test_a_cell_that_fails_is_told_with_its_reason() -> None:
    with pytest.raises(UserError, match="fold=9"):
        start_process(["fold=9"])
