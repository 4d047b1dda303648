"""The work before the first pixel grows with the number of images and instances; `coco_size.py` prints the figures."""

from __future__ import annotations

import json
import re
from pathlib import Path

import coco_size
import pytest
from coco_size import FULL, STAGES, make_annotations, sizes
from test_growth import lines_run

SHARES = (0.0016, 0.004, 0.01)  # from one to the next 2.5 times as large


def test_the_work_grows_with_the_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco_size, "EPISODES", 50)  # what they take depends on their number alone
    work: dict[str, list[int]] = {stage: [] for stage in STAGES}
    for number, share in enumerate((SHARES[0], *SHARES)):  # the first time also imports
        root = tmp_path / str(number)
        make_annotations(root, share)
        for stage, run in STAGES.items():
            work[stage].append(lines_run(lambda run=run, root=root: run(root)))
    # What does not depend on the size falls out of the differences. If the work grew with the square, the ratio of the
    # differences was 6.25.
    growth = {stage: (most - more) / max(more - least, 1000) for stage, (_, least, more, most) in work.items()}
    assert {stage: ratio for stage, ratio in growth.items() if ratio > 1.5 * 2.5} == {}


def test_the_files_hold_what_coco_holds(tmp_path: Path) -> None:
    assert sizes(1.0) == FULL == {"train": (82_783, 604_907), "val": (40_504, 291_875)}
    make_annotations(tmp_path / "coco", 0.001)
    for split, (images, instances) in sizes(0.001).items():
        content = json.loads((tmp_path / "coco" / "annotations" / f"instances_{split}2014.json").read_text())
        assert (len(content["images"]), len(content["annotations"])) == (images, instances)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_full_size_takes_less_than_8_gigabytes(tmp_path: Path) -> None:
    make_annotations(tmp_path / "coco")
    costs = {stage: coco_size.measure(stage, tmp_path / "coco") for stage in STAGES}
    assert max(cost.megabytes for cost in costs.values()) < 8000


@pytest.mark.process
def test_it_runs_as_a_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["coco_size.py", "--shares", "0.002"])
    monkeypatch.setattr(coco_size, "STAGES", {stage: STAGES[stage] for stage in list(STAGES)[:2]})
    coco_size.main()
    title, *lines = capsys.readouterr().out.splitlines()
    assert "train 166 + 1,210, val 81 + 584" in title
    assert [bool(re.search(r" \d+\.\d s +\d+\.\d s wall +\d+ MB   [\d,]+ ", line)) for line in lines] == [True, True]
