"""Records of sweeps: what comes back is what went in, and whatever lies there instead is named and left out."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from fsseg.cell.models import Unreadable
from fsseg.cell.record import Problem
from fsseg.cell.sweeps import SweepRecord, SweptCell, look_for, new_sweep, read_sweep, sweeps_of

PATH = "shapes5i/abcb/tiny/1shot/default/fold{}/seed0"


def record(*folds: int) -> SweepRecord:
    return SweepRecord(line=["fold=0,1"], cells=[SweptCell(PATH.format(f), [f"fold={f}"], f"print{f}") for f in folds])


def test_cells_share_their_configuration_and_get_their_own_back(tmp_path: Path) -> None:
    configs: list[dict[str, Any]] = [
        {"fold": 0, "redo": False, "lr": 1.0, "model": {"name": "a", "on": True}, "data": {"sizes": [1, 2.5, None]}},
        {"fold": 1, "redo": False, "lr": 1, "model": {"name": "a", "on": 1}, "data": {"sizes": [1, 2.5, None]}},
        {"fold": 0, "redo": True, "lr": 1.0, "model": {"name": "b", "on": True}, "data": {"sizes": []}},
    ]
    given = record(0, 1, 2)
    given.share(configs)
    sweep = read_sweep(new_sweep(tmp_path, given).file)
    back = [sweep.record.config_of(cell) for cell in sweep.record.cells]
    assert json.dumps(back, sort_keys=True) == json.dumps(configs, sort_keys=True)  # 1, 1.0 and true are not the same
    assert {name: len(kinds) for name, kinds in sweep.record.nodes.items()} == {"model": 3, "data": 2}
    assert sweep.record.cells[0].own == {}


def test_each_start_has_a_number_of_its_own(tmp_path: Path) -> None:
    first, second = new_sweep(tmp_path, record(0)), new_sweep(tmp_path, record(1))
    assert [s.file.name for s in (first, second)] == ["1.json", "2.json"]
    (tmp_path / "sweeps" / "9.json").mkdir()
    assert new_sweep(tmp_path, record(2)).file.name == "10.json"
    assert [str(s) for s in sweeps_of([tmp_path])] == ["sweep 1", "sweep 2", "sweep 10"]
    assert second.experiment == tmp_path
    assert second.directory(second.record.cells[0]) == tmp_path / PATH.format(1)


CELL = {"path": PATH.format(0), "overrides": [], "fingerprint": "f"}


@pytest.mark.parametrize(
    "content",
    [
        {}, [], {"schema_version": 99, "line": [], "cells": []}, {"line": [], "cells": [{"path": 5}]},
        {"line": [], "cells": [{**CELL, "own": {"model": 3}}], "nodes": {"model": []}},
        {"line": [], "cells": [{**CELL, "own": {"model": "x"}}], "nodes": {"model": [{}]}},
        {"line": [], "cells": [{**CELL, "own": {"model": True}}], "nodes": {"model": [{}, {}]}},
    ],
)  # fmt: skip
def test_what_is_no_record_is_named_and_left_out(tmp_path: Path, content: Any) -> None:
    good = new_sweep(tmp_path, record(0))
    (tmp_path / "sweeps" / "2.json").write_text(json.dumps(content))
    problems: list[Problem] = []
    assert [s.file for s in sweeps_of([tmp_path], problems)] == [good.file]
    assert [p.path.name for p in problems] == ["2.json"]


def test_a_fifo_and_other_names_are_no_records(tmp_path: Path) -> None:
    good = new_sweep(tmp_path, record(0))
    os.mkfifo(good.file.with_name("2.json"))
    (good.file.parent / "4.json").write_text("{")
    for name in ("01.json", "x.json", "1.json.tmp", "1.claim", "-1.json"):
        (good.file.parent / name).write_text("{")
    problems: list[Problem] = []
    assert len(sweeps_of([tmp_path, tmp_path], problems)) == 1
    assert [p.path.name for p in problems] == ["2.json", "4.json"]
    with pytest.raises(Unreadable, match="not there"):
        read_sweep(good.file.with_name("3.json"))


@pytest.mark.parametrize(
    "path",
    [
        "", "/etc", "../../other/" + PATH.format(0), "x/" + PATH.format(0), PATH.format(0) + "/..",
        PATH.format(0) + "\n", "shapes5i/abcb/tiny/1shot/default/fold0", "a\x1b/abcb/tiny/1shot/default/fold0/seed0",
    ],
)  # fmt: skip
def test_a_cell_outside_its_experiment_is_none(tmp_path: Path, path: str) -> None:
    given = record(0)
    given.cells.append(SweptCell(path, [], "f"))
    sweep = read_sweep(new_sweep(tmp_path, given).file)
    assert [cell.path for cell in sweep.record.cells] == [PATH.format(0)]


def test_the_records_of_a_folder_are_its_own_and_those_above_and_below(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        new_sweep(tmp_path / "outputs" / name, record(0))
    run = tmp_path / "outputs/a" / PATH.format(0)
    run.mkdir(parents=True)
    both = [tmp_path / "outputs" / name for name in ("a", "b")]

    def found(folder: str | Path) -> list[Path]:
        return [sweep.experiment for sweep in look_for([folder])[1]]

    for above in (tmp_path, tmp_path / "outputs"):
        assert found(above) == both
    for below in (both[0], run, run.parents[2]):
        assert found(below) == both[:1]
    monkeypatch.chdir(run)
    assert [p.resolve() for p in found(".")] == both[:1]
    monkeypatch.chdir(tmp_path)
    assert found("outputs/a") == [Path("outputs/a")]
