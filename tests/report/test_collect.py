from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fsseg.errors import UserError
from fsseg.report.collect import collect, to_frame


def test_a_result_is_read_into_its_cell(tmp_path, make_cell):
    folder = make_cell(2, 61.5, shot=5, seed=3, variant="train.lr=0.004", missing_classes=["cat"])
    (cell,) = collect([tmp_path]).cells
    assert (cell.name, cell.dataset, cell.method, cell.backbone) == ("x", "pascal5i", "abcb", "resnet50")
    assert (cell.shot, cell.fold, cell.seed, cell.variant) == (5, 2, 3, "train.lr=0.004")
    assert (cell.miou, cell.miou_std, cell.fb_iou, cell.done, cell.path) == (61.5, 0.5, 80.0, True, folder)
    assert cell.partial
    assert cell.missing_classes == ("cat",)
    assert cell.per_class == {"cat": 61.5}


def test_a_single_run_directory_may_be_named(make_cell):
    folder = make_cell(0, 50.0)
    assert [c.path for c in collect([folder]).cells] == [folder]


def test_overlapping_and_linked_folders_are_read_once(tmp_path, make_cell):
    folder = make_cell(0, 50.0)
    (tmp_path / "link").symlink_to(tmp_path / "x", target_is_directory=True)
    (folder / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert len(collect([tmp_path, tmp_path / "x", folder]).cells) == 1


def test_hidden_folders_and_the_insides_of_runs_hold_no_runs(tmp_path, make_cell):
    folder = make_cell(0, 50.0)
    for inside in (folder / ".hydra", folder / "attempts", tmp_path / ".submitit"):
        inside.mkdir()
        (inside / "status.json").write_text('{"state": "failed"}')
        (inside / "config.yaml").write_text("a: 1")
    collection = collect([tmp_path])
    assert len(collection.cells) == 1
    assert collection.problems == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"schema_version": 1, "cel', "not JSON"),
        ("", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        ("[]", "holds a list"),
        ("{}", "no schema_version"),
        ('{"schema_version": 2}', "schema_version 2; this fsseg reads version 1"),
        ('{"schema_version": 1, "protocol": {}, "metrics": {"miou": 5}}', "cell.name=None"),
        ('{"schema_version": 1}', "no protocol"),
    ],
)
def test_an_unreadable_result_is_named_and_its_cell_counts_as_missing(make_cell, tmp_path, content, words):
    folder = make_cell(1, None)
    (folder / "result.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    collection = collect([tmp_path])
    (problem,) = collection.problems
    assert problem.path == folder / "result.json"
    assert words in problem.what
    (cell,) = collection.cells
    assert (cell.state, cell.fold, cell.miou) == ("broken", 1, None)
    assert words in cell.reason


@pytest.mark.parametrize("miou", ["null", '"70"', "NaN", "-1", "100.5", "true"])
def test_a_score_that_is_no_percentage_never_becomes_a_number(make_cell, tmp_path, miou):
    folder = make_cell(1, 7777.0)
    text = (folder / "result.json").read_text().replace("7777.0", miou, 1)
    (folder / "result.json").write_text(text)
    collection = collect([tmp_path])
    assert "metrics.miou" in collection.problems[0].what
    assert not collection.cells[0].done


def test_a_failed_cell_tells_its_reason(make_cell, tmp_path):
    folder = make_cell(3, None)
    status = {"schema_version": 1, "state": "failed", "step": 5, "steps": 10, "reason": "CUDA out of memory"}
    (folder / "status.json").write_text(json.dumps(status))
    (cell,) = collect([tmp_path]).cells
    assert cell.state == "failed"
    assert cell.reason == "failed, step 5 of 10, CUDA out of memory"


def test_a_running_cell_tells_how_long_it_has_been_silent(make_cell, tmp_path):
    folder = make_cell(3, None)
    status = {"state": "running", "eta_seconds": 600, "heartbeat": time.time() - 3 * 3600, "host": "node7"}
    (folder / "status.json").write_text(json.dumps(status))
    (cell,) = collect([tmp_path]).cells
    assert cell.reason == "running, 10 min to go, last heard of 3 h ago on node7"


def test_done_without_a_result_is_not_done(make_cell, tmp_path):
    folder = make_cell(3, None)
    (folder / "status.json").write_text('{"state": "done"}')
    (cell,) = collect([tmp_path]).cells
    assert cell.state == "unknown"
    assert "no result.json" in cell.reason


def test_a_broken_status_is_named(make_cell, tmp_path):
    folder = make_cell(3, None)
    (folder / "status.json").write_text('{"state": "ru')
    collection = collect([tmp_path])
    assert collection.problems[0].path == folder / "status.json"
    assert "status.json is not JSON" in collection.cells[0].reason


def test_a_run_directory_out_of_its_tree_is_known_by_its_config(tmp_path):
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "config.yaml").write_text(
        "name: x\nfold: 2\nshot: 5\nseed: 1\ndataset: {name: coco20i}\nbackbone: {name: tiny}\nmodel: {name: abcb}\n"
        "protocol: {name: standard, num_episodes: 7}\n"
    )
    (cell,) = collect([tmp_path]).cells
    assert (cell.dataset, cell.method, cell.backbone, cell.shot, cell.fold, cell.seed) == (
        "coco20i",
        "abcb",
        "tiny",
        5,
        2,
        1,
    )
    assert cell.protocol == {"name": "standard", "num_episodes": 7}
    assert not cell.done


def test_a_foreign_config_is_no_cell(tmp_path, make_cell):
    make_cell(0, 50.0)
    (tmp_path / "config.yaml").write_text("nothing: of ours\n")
    assert len(collect([tmp_path]).cells) == 1


def test_a_missing_path_and_an_empty_folder_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="absent does not exist"):
        collect([tmp_path / "absent"])
    with pytest.raises(UserError, match="no run found under") as error:
        collect([tmp_path])
    assert "train.py" in error.value.fix
    with pytest.raises(UserError):
        collect([])


def test_the_frame_has_one_row_a_cell(tmp_path, make_cell):
    make_cell(0, 50.0)
    (make_cell(1, None) / "status.json").write_text('{"state": "queued"}')
    frame = to_frame(collect([tmp_path]))
    assert frame["fold"].tolist() == [0, 1]
    assert frame["state"].tolist() == ["done", "queued"]
    assert frame["miou"].tolist()[0] == 50.0
    assert frame["miou"].isna().tolist() == [False, True]
    assert frame["steps"].tolist()[0] == 10
    assert frame["protocol"].tolist()[0] == "standard"


def test_protocols_are_one_only_if_every_field_agrees(tmp_path, make_cell):
    make_cell(0, 50.0)
    make_cell(1, 50.0, protocol={"min_pixels": 0})
    make_cell(2, 50.0, protocol={"episodes_file": "fold2.json"})
    make_cell(3, 50.0, protocol={"episodes_file": "fold3.json"})
    ids = [c.protocol_id for c in collect([tmp_path]).cells]
    assert len(set(ids)) == 3
    assert ids[2] == ids[3]  # each fold needs an episodes file of its own


def test_a_list_from_a_file_is_known_by_its_protocol_seeds_and_counts(tmp_path, make_cell):
    def listed(mark, **changes):
        head = {"protocol": changes.pop("drawn", "hsnet"), "fingerprint": mark}
        return {"episodes_file": f"{mark}.tsv", "query_order": "episodes_file", "episodes_list": head, **changes}

    make_cell(0, 50.0, protocol=listed("a"))
    make_cell(1, 50.0, protocol=listed("b"))
    make_cell(2, 50.0, protocol=listed("c", drawn="standard"))
    make_cell(3, 50.0, protocol=listed("d", seeds=[7, 8]))
    make_cell(0, 50.0, protocol=listed("a", num_episodes=5), seed=1)
    cells = sorted(collect([tmp_path]).cells, key=lambda c: (c.seed, c.fold))
    ids = [c.protocol_id for c in cells]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 4
    assert [c.episodes_list for c in cells] == ["a", "b", "c", "d", "a"]


def test_the_older_workflows_file_is_read_in_percent_and_its_faults_are_named(tmp_path):
    old = {
        "results": {
            "pascal5i_resnet50_1shot": {"0": {"miou": 0.7}, "1": {"miou": 0.6}, "2": {"miou": 0.5}, "3": {"miou": 0.4},
                                        "mean": {"miou": 0.6}},
            "coco20i_resnet101_5shot": {"0": {"miou": 51.6}},
            "what": {},
        }
    }  # fmt: skip
    path = tmp_path / "replication_results.json"
    path.write_text(json.dumps(old))
    for asked in (tmp_path, path):
        collection = collect([asked])
        found = [(c.dataset, c.backbone, c.shot, c.fold, c.miou) for c in collection.cells]
        assert found == [("pascal5i", "resnet50", 1, fold, miou) for fold, miou in enumerate((70.0, 60.0, 50.0, 40.0))]
        faults = " ".join(p.what for p in collection.problems)
        assert "states a mean of 0.6000; its folds give 0.5500" in faults
        assert "51.6 is no fraction" in faults
        assert '"what"' in faults


def test_reading_runs_imports_neither_torch_nor_hydra_nor_pandas_nor_matplotlib(tmp_path, make_cell):
    make_cell(0, 50.0)
    code = (
        "import sys, fsseg.report.aggregate, fsseg.draw.sheets\n"
        f"fsseg.report.aggregate.aggregate([{str(tmp_path)!r}])\n"
        "print(sorted({'torch', 'hydra', 'omegaconf', 'pandas', 'matplotlib'} & set(sys.modules)))"
    )
    repo = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=repo, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
