from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from run_directories import make_run

from fsseg.cell.key import CellKey
from fsseg.cell.models import State
from fsseg.errors import UserError
from fsseg.report.collect import collect, to_frame
from fsseg.report.tables import build


def test_a_result_is_read_into_its_cell(tmp_path, make_cell):
    fields = {"missing_classes": ["cat"], "data": {"fingerprint_val": "v"}}
    run = make_cell(2, 61.5, shot=5, seed=3, variant="train.lr=0.004", **fields)
    (cell,) = collect([tmp_path]).cells
    assert cell.key == CellKey("x", "pascal5i", "abcb", "resnet50", 5, 2, 3, "train.lr=0.004")
    assert (cell.path, cell.state, cell.reason, cell.scored, cell.partial) == (
        run.directory,
        State.DONE,
        "",
        True,
        True,
    )
    whole = run.result()
    assert cell.episodes == ("e2",)
    assert cell.result == msgspec.structs.replace(
        whole, provenance={}, metrics=msgspec.structs.replace(whole.metrics, per_seed=[], per_class={})
    )
    assert (cell.result.miou, cell.result.missing_classes) == (61.5, ["cat"])
    assert (cell.data_val, cell.episodes, cell.identity) == ("v", ("e2",), None)


def test_results_of_the_former_version_are_read(tmp_path, make_cell):
    for fold, version in ((0, 1), (1, 2)):
        make_cell(fold, 50.0, version=version, identity={"train.lr": 0.1})
    old, new = collect([tmp_path]).cells
    assert (old.result.schema_version, new.result.schema_version) == (1, 2)
    assert (old.protocol_id, old.result.metrics.fb_iou) == (new.protocol_id, new.result.metrics.fb_iou)
    assert old.identity == new.identity == {"train.lr": 0.1}


def test_a_cell_that_was_trained_and_not_evaluated_is_named_as_such(tmp_path, make_cell):
    run = make_cell(0, 50.0, result={"metrics": None})
    collection = collect([tmp_path])
    (cell,) = collection.cells
    assert (cell.state, cell.scored, cell.reason) == (State.DONE, False, "trained, not evaluated")
    assert collection.problems == []
    label = "pascal5i abcb resnet50 1-shot fold 0 seed 0"
    (table,) = build(collection).tables
    assert table.missing[0] == (label, f"trained, not evaluated ({run.directory})")


def test_the_configuration_of_a_finished_cell_is_not_read(tmp_path, make_cell):
    make_cell(0, 50.0, config="not: [yaml")
    collection = collect([tmp_path])
    assert (len(collection.cells), collection.problems) == (1, [])


def test_a_single_run_directory_may_be_named(make_cell):
    folder = make_cell(0, 50.0).directory
    assert [c.path for c in collect([folder]).cells] == [folder]


def test_overlapping_and_linked_folders_are_read_once(tmp_path, make_cell):
    folder = make_cell(0, 50.0).directory
    (tmp_path / "link").symlink_to(tmp_path / "x", target_is_directory=True)
    (folder / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert len(collect([tmp_path, tmp_path / "x", folder]).cells) == 1


def test_hidden_folders_and_the_insides_of_runs_hold_no_runs(tmp_path, make_cell):
    run = make_cell(0, 50.0)
    for inside in (run.directory / ".hydra", run.attempts, tmp_path / ".submitit"):
        make_run(inside, status="failed", config="a: 1")
    collection = collect([tmp_path])
    assert len(collection.cells) == 1
    assert collection.problems == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"schema_version": 1, "cel', "not JSON"),
        ("", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        ("[]", "got `array`"),
        ("{}", "missing required field"),
        ('{"schema_version": 99}', "schema_version 99; this fsseg reads versions 1 to 3"),
        ('{"schema_version": 1, "protocol": {}, "cell": {"name": "x"}, "metrics": {"miou": 5}}', "cell"),
        ('{"schema_version": 1}', "missing required field"),
        ('{"schema_version": 2}', "missing required field"),
    ],
)
def test_an_unreadable_result_is_named_and_its_cell_counts_as_missing(make_cell, tmp_path, content, words):
    run = make_cell(1, None)
    run.result_file.write_bytes(content if isinstance(content, bytes) else content.encode())
    collection = collect([tmp_path])
    (problem,) = collection.problems
    assert problem.path == run.result_file
    assert words in problem.what
    (cell,) = collection.cells
    assert (cell.state, cell.key.fold, cell.result.miou) == (State.BROKEN, 1, None)
    assert cell.reason.startswith("result.json ")
    assert words in cell.reason


@pytest.mark.parametrize(
    ("miou", "words"),
    [
        ("null", "metrics.miou"), ('"70"', "metrics.miou"), ("-1", "metrics.miou"), ("100.5", "metrics.miou"),
        ("true", "metrics.miou"), ("NaN", "not JSON"),
    ],
)  # fmt: skip
def test_a_score_that_is_no_percentage_never_becomes_a_number(make_cell, tmp_path, miou, words):
    run = make_cell(1, 77.75)
    run.result_file.write_text(run.result_file.read_text().replace("77.75", miou, 1))
    collection = collect([tmp_path])
    assert collection.problems[0].path == run.result_file
    assert words in collection.problems[0].what
    assert not collection.cells[0].scored


def test_a_failed_cell_tells_its_reason(make_cell, tmp_path):
    make_cell(3, None, status={"state": "failed", "step": 5, "steps": 10, "reason": "CUDA out of memory"})
    (cell,) = collect([tmp_path]).cells
    assert cell.state == State.FAILED
    assert cell.reason == "failed, step 5 of 10, CUDA out of memory"


def test_a_running_cell_tells_how_long_it_has_been_silent(make_cell, tmp_path):
    status = {"state": "running", "eta_seconds": 600, "host": "node7"}
    make_cell(2, None, status=status, age=130)
    make_cell(3, None, status=status, age=3 * 3600)
    running, silent = collect([tmp_path]).cells
    assert (running.state, silent.state) == (State.RUNNING, State.STALE)
    assert running.reason == "running, 10 min to go, last heard of 2 min ago on node7"
    assert silent.reason == (
        "stale, 10 min to go, last heard of 3.0 h ago on node7, no sign of life: killed, or its host is gone"
    )


def test_done_without_a_result_is_not_done(make_cell, tmp_path):
    make_cell(3, None, status="done")
    (cell,) = collect([tmp_path]).cells
    assert cell.state == State.BROKEN
    assert "no result.json" in cell.reason


def test_a_broken_status_is_named(make_cell, tmp_path):
    run = make_cell(3, None)
    run.status_file.write_text('{"state": "ru')
    collection = collect([tmp_path])
    assert collection.problems[0].path == run.status_file
    assert "status.json is not JSON" in collection.cells[0].reason


def test_a_broken_configuration_is_named(make_cell, tmp_path):
    run = make_cell(3, None, status="failed", config="not: [yaml")
    collection = collect([tmp_path])
    assert [p.path for p in collection.problems] == [run.config_file]
    assert (collection.cells[0].state, collection.cells[0].protocol_id) == (State.FAILED, None)


def test_a_run_directory_out_of_its_tree_is_known_by_its_config(tmp_path, make_cell):
    config = {
        "name": "x", "fold": 2, "shot": 5, "seed": 1, "dataset": {"name": "coco20i"}, "backbone": {"name": "tiny"},
        "model": {"name": "abcb"}, "protocol": {"name": "standard", "num_episodes": 7},
    }  # fmt: skip
    make_cell(0, None, config=config).directory.rename(tmp_path / "copy")
    (cell,) = collect([tmp_path]).cells
    assert cell.key == CellKey("x", "coco20i", "abcb", "tiny", 5, 2, 1, "unknown")
    assert cell.result.protocol == {"name": "standard", "num_episodes": 7}
    assert not cell.scored


def test_a_run_that_nothing_names_is_a_problem(tmp_path, make_cell):
    make_cell(0, None, status="failed").directory.rename(tmp_path / "copy")
    collection = collect([tmp_path])
    assert collection.cells == []
    (problem,) = collection.problems
    assert problem.path == tmp_path / "copy"
    assert "neither its path nor its config.yaml names a cell" in problem.what


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
    make_cell(1, None, status="queued")
    frame = to_frame(collect([tmp_path]))
    assert frame["fold"].tolist() == [0, 1]
    assert frame["state"].tolist() == ["done", "queued"]
    assert frame["miou"].tolist()[0] == 50.0
    assert frame["miou"].isna().tolist() == [False, True]
    assert frame["steps"].tolist()[0] == 10
    assert frame["protocol"].tolist()[0] == "standard"


@pytest.mark.parametrize("version", [1, 2])
def test_the_frame_tells_how_long_a_cell_was_trained(tmp_path, version):
    make_run(tmp_path, result=50.0, version=version)
    assert to_frame(collect([tmp_path]))["seconds"].tolist() == [2.5]


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
    cells = sorted(collect([tmp_path]).cells, key=lambda c: (c.key.seed, c.key.fold))
    ids = [c.protocol_id for c in cells]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 4
    assert [c.episodes_list for c in cells] == ["a", "b", "c", "d", "a"]


def test_the_older_workflows_file_is_read_in_percent_and_its_faults_are_named(tmp_path):
    old = {
        "results": {
            "pascal5i_resnet50_1shot": {"0": {"miou": 0.7}, "1": {"miou": 0.6}, "2": {"miou": 0.5}, "3": {"miou": 0.4},
                                        "mean": {"miou": 0.6}},
            "coco20i_resnet101_5shot": {"0": {"miou": 51.6}, "median": {"miou": 0.5}},
            "what": {},
        }
    }  # fmt: skip
    path = tmp_path / "replication_results.json"
    path.write_text(json.dumps(old))
    for asked in (tmp_path, path):
        collection = collect([asked])
        found = [(c.key.dataset, c.key.backbone, c.key.shot, c.key.fold, c.result.miou) for c in collection.cells]
        assert found == [("pascal5i", "resnet50", 1, fold, miou) for fold, miou in enumerate((70.0, 60.0, 50.0, 40.0))]
        faults = " ".join(p.what for p in collection.problems)
        assert "states a mean of 0.6000; its folds give 0.5500" in faults
        assert "51.6 is no fraction" in faults
        assert '["median"] is neither a fold nor the mean' in faults
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


def test_what_a_report_may_show_is_kept_for_cells_that_ask_for_one(tmp_path, make_cell):
    run = make_cell(0, 50.0, result={"report": "table3_components"})
    (cell,) = collect([tmp_path]).cells
    assert cell.result.metrics == run.result().metrics
    assert cell.result.metrics.per_class == {"cat": 50.0}


def test_equal_parts_of_results_are_held_once(tmp_path, make_cell):
    model, data = {"iterations": 3}, {"novel_classes": ["cat"]}
    for fold in range(3):
        make_cell(fold, 50.0 + fold, data=data, protocol={"seeds": [fold // 2]}, result={"model": model})
    first, second, other = (c.result for c in collect([tmp_path]).cells)
    assert first.model is second.model is other.model
    assert first.dataset is second.dataset is other.dataset
    assert first.protocol is second.protocol
    assert (first.protocol["seeds"], other.protocol["seeds"]) == ([0], [1])


def test_values_that_cannot_be_compared_by_their_bytes_are_taken_as_they_are(tmp_path, make_cell):
    for fold in range(2):
        make_cell(fold, 50.0, protocol={"num_episodes": 10**30})
        make_cell(fold, None, seed=1, status="failed", config="protocol: {num_episodes: 1" + "0" * 30 + "}")
    cells = collect([tmp_path]).cells
    assert [c.result.protocol["num_episodes"] for c in cells] == [10**30] * 4


def test_a_nan_in_the_older_workflows_file_costs_one_fold_only(tmp_path):
    path = tmp_path / "replication_results.json"
    path.write_text('{"results": {"pascal5i_resnet50_1shot": {"0": {"miou": 0.7}, "1": {"miou": NaN}}}}')
    collection = collect([path])
    assert [(c.key.fold, c.result.miou) for c in collection.cells] == [(0, 70.0)]
    assert len(collection.problems) == 1
    for content, fault in (("[1]", "is not a JSON object"), ("{", "is not JSON")):
        path.write_text(content)
        assert fault in collect([path]).problems[0].what


def test_runs_of_before_and_after_a_rule_was_named_are_one_protocol(tmp_path, make_cell):
    earlier = {"name": "standard", "min_pixels": 2048}
    later = earlier | {"train_pool": "train_aug_10582", "fit": "longer_side", "undrawn": "left_out", "unlike": []}
    make_cell(0, 50.0, protocol=earlier)
    make_cell(1, 50.0, protocol=later)
    make_cell(2, 50.0, protocol=later | {"train_pool": "merged_5953"})
    ids = [c.protocol_id for c in collect([tmp_path]).cells]
    assert ids[0] == ids[1] != ids[2]
