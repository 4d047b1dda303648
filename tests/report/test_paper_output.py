"""What `fsseg aggregate` writes for a paper: LaTeX, plots, a bibliography; and hostile names in every format."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from experiment_files import BASELINE, FULL, Add
from hostile import ODD_TEXT
from run_directories import KEY, make_run
from scored_runs import scored_run

from fsseg.config.schema import MethodConfig
from fsseg.report.aggregate import aggregate
from fsseg.report.bibliography import references, to_bib

EVEN = {"cat": [50] * 6, "dog": [20] * 6}


def entries(text: str) -> dict[str, dict[str, str]]:
    """BibTeX -> key -> its fields, with `type`; by another way of reading than it was written in."""
    found = {}
    for kind, key, body in re.findall(r"^@(\w+)\{([^,]+),\n(.*?)\n\}$", text, re.MULTILINE | re.DOTALL):
        found[key] = {"type": kind, **dict(re.findall(r"^  (\w+) = \{(.*)\},$", body, re.MULTILINE))}
    return found


def test_the_bibliography_has_what_the_cells_are_made_of(tmp_path: Path) -> None:
    found = entries(to_bib([KEY, replace(KEY, method="hsnet", dataset="shapes5i", backbone="tiny")]))
    assert sorted(found) == ["he2016resnet", "min2021hsnet", "shaban2017oslsm", "zhu2024abcb"]
    assert found["min2021hsnet"] == {
        "type": "inproceedings", "author": "Min, Juhong and Kang, Dahyun and Cho, Minsu", "year": "2021",
        "title": "{Hypercorrelation Squeeze for Few-Shot Segmentation}",
        "booktitle": "Proceedings of the IEEE/CVF International Conference on Computer Vision (ICCV)",
    }  # fmt: skip


def test_what_has_no_entry_is_named_and_makes_none() -> None:
    text = to_bib([replace(KEY, method="@article{x,", backbone="a\n@b")])
    assert "method (at)article{x," in text
    assert "backbone a\\n(at)b" in text
    assert text.count("@") == len(entries(text)) == 1


def test_every_entry_is_of_something_that_exists_and_says_who_and_when() -> None:
    keys = [e["key"] for e in references()]
    assert sorted(set(keys)) == sorted(keys)
    for entry in references():
        assert entry["author"]
        assert entry["year"].isdecimal()
        assert set(entry["of"].get("method", ())) <= set(MethodConfig.choices())


def test_numbers_of_recorded_episodes_have_intervals_in_every_file(tmp_path: Path) -> None:
    scored_run(tmp_path / "runs", KEY, EVEN)
    aggregate([tmp_path / "runs"], tmp_path)
    (line,) = (x for x in csv.DictReader((tmp_path / "summary.csv").open()) if x["fold"] == "0")
    low, high = float(line["low"]), float(line["high"])
    assert low < float(line["miou"]) < high
    (table,) = json.loads((tmp_path / "summary.json").read_text())["tables"]
    entry = table["rows"][0]["shots"]["1shot"]["0"]
    assert (entry["low"], entry["high"], entry["over"]) == (low, high, "query images")
    tex = (tmp_path / "summary.tex").read_text()
    assert rf"{{\scriptsize [{low:.1f}, {high:.1f}]}}" in tex
    (caption,) = (line for line in tex.splitlines() if line.startswith(r"  \caption{"))
    assert caption.endswith(r"evaluation seed). 95 \% intervals are over query images.}")


def test_a_caption_says_what_the_signs_of_its_table_are(tmp_path: Path, make_cell: Add) -> None:
    for seed in (0, 1):
        make_cell(0, 60.0 + seed, seed=seed, missing_classes=["cat"])
    aggregate([tmp_path], tmp_path)
    (caption,) = (x for x in (tmp_path / "summary.tex").read_text().splitlines() if x.startswith(r"  \caption{"))
    assert r"$\pm$: sample standard deviation over training seeds." in caption
    assert "(*) partial: a novel class of the fold could not be evaluated" in caption


def test_a_report_of_very_many_cells_is_not_resampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fsseg.report.tables.MOST_WITH_INTERVALS", 0)
    scored_run(tmp_path / "runs", KEY, EVEN)
    aggregate([tmp_path / "runs"], tmp_path)
    assert "95" not in (tmp_path / "summary.tex").read_text()


def test_an_experiment_has_a_file_of_each_kind(tmp_path: Path, add: Add) -> None:
    by_shift = {s: {"miou": 60.0 - 10 * float(s), "miou_per_round": [50.0]} for s in ("0.0", "1.0")}
    for variant, model, seed in (("b", BASELINE, 0), ("f", FULL, 0), ("f", FULL, 1)):
        metrics: dict[str, Any] = {"by_background_shift": by_shift}
        add("background_bias", variant, 50.0, model, seed=seed, metrics=metrics, root=tmp_path / "runs")
    text = aggregate([tmp_path / "runs"], tmp_path)
    kinds = {p.suffix for p in tmp_path.glob("background_bias.*")}
    assert kinds == {".md", ".tex", ".csv", ".json", ".png", ".pdf", ".svg"}
    assert all(f"background_bias{kind}" in text for kind in kinds)
    (row, *_) = csv.DictReader((tmp_path / "background_bias.csv").open())
    assert (row["row"], float(row["mIoU at shift 1.0"])) == ("baseline (backbone + QP)", 50.0)
    assert json.loads((tmp_path / "background_bias.json").read_text())["pictures"] == ["background_bias.png"]


HOSTILE = [t for t in ODD_TEXT if t.strip() and t not in (".", "..") and "/" not in t and len(t.encode()) < 250] + [
    "<script>alert(1)<!-- ", '"quoted"', "%", "\\input{x}", "$x^2_3$", "a & b \\\\ #1 ~", "=1+1", "@SUM(A1)", "日本語",
    "x" * 250, "\\end{tabular}",
]  # fmt: skip


def test_hostile_names_are_text_in_every_file(tmp_path: Path) -> None:
    for name in set(HOSTILE):
        make_run(tmp_path / "runs", replace(KEY, variant=name), result=50.0)
    aggregate([tmp_path / "runs"], tmp_path)
    with (tmp_path / "summary.csv").open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [c for c in cells if c[:1] in "=+@\t\r" and c[1:]]
    assert not [c for c in cells if c.startswith("-") and not re.fullmatch(r"-[0-9.]+", c)]
    tex = (tmp_path / "summary.tex").read_text()
    lines = [line for line in tex.splitlines() if not line.startswith("%")]
    assert sum(line.strip() == r"\end{tabular}}" for line in lines) == tex.count(r"\begin{tabular}") == 1
    assert not [line for line in lines if "\\input{" in line]
    assert r"\textbackslash{}end\{tabular\}" in tex
    rows = [line for line in lines if "abcb resnet50" in line]
    assert len(rows) == len(set(HOSTILE))
    assert rf"[l]{{abcb resnet50 [{'x' * 45}\\{'x' * 60}\\" in tex  # a long name takes several lines
    columns = {len(re.findall(r"(?<!\\)&", row)) for row in rows}
    assert columns == {5}  # a label, four folds, the mean
    for kind in ("md", "csv", "tex", "bib"):
        assert (tmp_path / f"summary.{kind}").read_text().replace("\n", "").isprintable(), kind
