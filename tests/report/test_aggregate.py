from __future__ import annotations

import csv
import json

import pytest

from fsseg.errors import UserError
from fsseg.report.aggregate import aggregate


@pytest.fixture
def sweep(tmp_path, make_cell):
    """1-shot complete, 5-shot with folds 0 and 1, one of its cells failed, coco20i partial."""
    for fold, miou in enumerate((70.0, 75.0, 68.0, 65.0)):
        make_cell(fold, miou)
    for fold in (0, 1):
        make_cell(fold, 72.0 + fold, shot=5)
    make_cell(2, None, shot=5, status={"state": "failed", "reason": "CUDA out of memory"})
    make_cell(0, 40.0, dataset="coco20i", missing_classes=["person"])
    return tmp_path / "x"


def test_the_text_shows_numbers_paper_differences_missing_cells_and_files(sweep):
    text = aggregate([sweep])
    lines = {" ".join(line.split()) for line in text.splitlines()}
    assert "abcb resnet50 70.0 75.0 68.0 65.0 69.5 72.0 73.0 — — —" in lines
    assert "paper (ABCB, CVPR 2024) 72.9 76.0 69.5 64.0 70.6 74.4 78.0 73.9 68.3 73.6" in lines
    assert "difference -2.9 -1.0 -1.5 +1.0 -1.1 -2.4 -5.0" in lines
    assert "abcb resnet50 40.0 (*) — — — —" in lines
    assert "CUDA out of memory" in text
    assert "5-shot fold 3 seed 0: not started" in text
    assert text.rstrip().endswith(
        f"Written to {sweep}: summary.csv, summary.md, summary.json, summary.tex, summary.bib, replication_results.json"
    )


def test_the_text_keeps_its_columns_aligned(sweep):
    block = [line for line in aggregate([sweep]).splitlines() if "resnet50  " in line or "paper" in line]
    ours, paper = block[-2:]
    assert ours.index("70.0") == paper.index("72.9")
    assert ours.index("73.0") == paper.index("78.0")


def test_the_csv_has_a_line_for_every_column_also_the_missing_ones(sweep):
    aggregate([sweep])
    rows = list(csv.DictReader((sweep / "summary.csv").open()))
    assert len(rows) == 15  # (1 + 2 numbers of shots) x (4 folds + mean)
    found = {(r["dataset"], r["shot"], r["fold"]): r for r in rows}
    assert float(found["pascal5i", "1", "mean"]["miou"]) == pytest.approx(69.5)
    assert found["pascal5i", "5", "mean"]["miou"] == ""
    assert found["pascal5i", "5", "3"]["paper"] == "68.3"
    assert found["coco20i", "1", "0"]["partial"] == "True"
    assert found["coco20i", "1", "0"]["paper"] == ""


def test_the_json_holds_tables_missing_cells_and_the_protocol_in_full(sweep):
    aggregate([sweep])
    summary = json.loads((sweep / "summary.json").read_text())
    pascal = next(t for t in summary["tables"] if t["dataset"] == "pascal5i")
    assert pascal["protocol"]["num_episodes"] == 1000
    shots = pascal["rows"][0]["shots"]
    assert shots["1shot"]["mean"]["miou"] == pytest.approx(69.5)
    assert shots["1shot"]["paper"]["folds"] == [72.9, 76.0, 69.5, 64.0]
    assert shots["5shot"]["mean"] is None
    assert {"cell": "pascal5i abcb resnet50 5-shot fold 3 seed 0", "reason": "not started"} in pascal["missing"]


def test_markdown_rows_have_as_many_cells_as_the_header(sweep, make_cell):
    make_cell(0, 1.0, variant="a|b_c")
    aggregate([sweep])
    text = (sweep / "summary.md").read_text()
    table = [line.replace("\\|", "") for line in text.splitlines() if line.startswith("|")]
    pascal = [line for line in table if line.count("|") == 12]
    assert len(pascal) == 6  # header, rule, ours, paper, difference, variant
    assert "a\\|b_c" in text


def test_latex_escapes_names_and_balances_its_columns(sweep, make_cell):
    make_cell(0, 1.0, variant="model.pixel_evolution=false,x=50%")
    aggregate([sweep])
    text = (sweep / "summary.tex").read_text()
    assert r"[model.pixel\_evolution=false,x=50\%]" in text
    body = [line for line in text.splitlines() if line.endswith(r"\\") and line.startswith("    abcb")]
    assert [line.count("&") for line in body] == [5, 10, 10]
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 2
    assert "$^{*}$" in text


def test_replication_results_hold_fractions_a_mean_only_of_all_folds_and_nothing_partial(sweep):
    aggregate([sweep])
    results = json.loads((sweep / "replication_results.json").read_text())["results"]
    assert set(results) == {"pascal5i_resnet50_1shot", "pascal5i_resnet50_5shot"}
    assert results["pascal5i_resnet50_1shot"]["1"]["miou"] == pytest.approx(0.75)
    assert results["pascal5i_resnet50_1shot"]["mean"]["miou"] == pytest.approx(0.695)
    assert set(results["pascal5i_resnet50_5shot"]) == {"0", "1"}


def test_replication_results_are_of_abcb_at_its_defaults(tmp_path, make_cell):
    make_cell(0, 60.0, method="baseline")
    make_cell(0, 61.0, variant="train.lr=1")
    aggregate([tmp_path / "x"])
    assert json.loads((tmp_path / "x" / "replication_results.json").read_text())["results"] == {}


def test_the_standard_protocol_takes_the_one_place_and_the_other_is_named(tmp_path, make_cell):
    for fold in (0, 1):
        make_cell(fold, 60.0, protocol={"name": "bam"})
    make_cell(0, 61.0, name="y")
    text = aggregate([tmp_path])
    results = json.loads((tmp_path / "replication_results.json").read_text())["results"]
    assert results["pascal5i_resnet50_1shot"]["0"]["miou"] == pytest.approx(0.61)
    assert "protocol bam" in text.split("Not in replication_results.json:")[1]


def test_a_second_aggregation_says_the_same_and_does_not_read_its_own_files(sweep):
    first = aggregate([sweep])
    before = {p.name: p.read_bytes() for p in sweep.iterdir() if p.is_file()}
    assert aggregate([sweep]) == first
    assert {p.name: p.read_bytes() for p in sweep.iterdir() if p.is_file()} == before
    assert len(before) == 6  # no temporary file stays


def test_the_older_workflows_own_file_is_read_and_never_replaced(tmp_path):
    old = json.dumps({"results": {"pascal5i_resnet50_1shot": {str(f): {"miou": 0.5 + f / 10} for f in range(4)}}})
    (tmp_path / "replication_results.json").write_text(old)
    text = aggregate([tmp_path])
    assert (tmp_path / "replication_results.json").read_text() == old
    new = json.loads((tmp_path / "replication_results_fsseg.json").read_text())
    assert new["results"]["pascal5i_resnet50_1shot"]["mean"]["miou"] == pytest.approx(0.65)
    assert "older workflow" in text
    assert aggregate([tmp_path]) == text


def test_the_files_can_go_elsewhere(sweep, tmp_path):
    aggregate([sweep], tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / "summary.csv").is_file()
    assert not (sweep / "summary.csv").exists()


def test_a_folder_that_cannot_be_written_is_a_user_error(sweep, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the summary"):
        aggregate([sweep], tmp_path / "file")
