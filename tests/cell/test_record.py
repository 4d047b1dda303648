"""What a run directory holds: written and read back, versions, damage, and how a run stands."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_directories import write_metrics

from fsseg.cell.attempt import AttemptFile, redone_by_this_job
from fsseg.cell.claim import acquire
from fsseg.cell.key import CellKey, fingerprint, identity
from fsseg.cell.models import (
    Attempt,
    Identity,
    Metrics,
    Origin,
    Result,
    SeedScore,
    State,
    Status,
    Training,
    Unreadable,
    read,
    write_record,
)
from fsseg.cell.record import Cell, Problem, RunDirectory, find_runs, walk
from fsseg.errors import UserError, merge_errors
from fsseg.process.files import write_json

KEY = CellKey("runs", "pascal5i", "abcb", "resnet50", 1, 2, 0, "default")


def cell(folder: Path, **settings: object) -> Cell:
    kept = identity({"train": settings})
    return Cell(folder, KEY, fingerprint(kept), kept)


def test_other_settings_are_refused_with_the_differing_keys(tmp_path: Path) -> None:
    old = cell(tmp_path, lr=0.1, epochs=2)
    old.begin("a: 1\n")
    old.check_same_settings()
    with pytest.raises(UserError) as caught:
        cell(tmp_path, lr=0.2, epochs=2).check_same_settings()
    assert "train.lr: 0.1 there, 0.2 now" in caught.value.what
    assert "epochs" not in caught.value.what
    assert "name=" in caught.value.fix
    assert "redo=true" in caught.value.fix


def test_a_result_that_is_not_understood_is_never_overwritten_unasked(tmp_path: Path) -> None:
    """It may be the work of a newer version; one that was cut short is none at all."""
    mine = cell(tmp_path, lr=0.1)
    for content in ({"schema_version": 4}, VERSION_1 | {"metrics": {"miou": None}}, {"fingerprint": mine.fingerprint}):
        write_json(mine.result_file, content)
        with pytest.raises(UserError, match=r"result\.json (has|object missing|was changed)") as caught:
            mine.finished()
        assert "redo=true" in caught.value.fix
    mine.result_file.write_text("{")
    assert mine.finished() is None
    for content in ({}, {"fingerprint": 7}, {"fingerprint": mine.fingerprint, "schema_version": 4}):
        write_json(mine.identity_file, content)
        with pytest.raises(UserError, match=r"identity\.json"):
            mine.check_same_settings()
    mine.identity_file.write_text("{")
    mine.check_same_settings()


def test_numbers_of_numpy_are_written_as_numbers(tmp_path: Path) -> None:
    mine = cell(tmp_path)
    write_record(
        mine.result_file, Result(KEY, "f", {}, metrics=Metrics(np.float64(5.5)), training=Training(np.int64(3)))
    )
    result = mine.result()
    assert result is not None
    assert (result.miou, result.training) == (5.5, Training(3))


def test_a_claim_or_a_link_that_cannot_be_read_ends_no_look(tmp_path: Path) -> None:
    run = put(tmp_path / KEY.path, state="running", heartbeat=time.time())
    run.claim_file.mkdir()
    (tmp_path / "loop").symlink_to("loop")
    assert run.claim() is None
    assert [found.look().state for found in find_runs([tmp_path])] == [State.RUNNING]


def test_finished_means_a_result_of_the_same_settings(tmp_path: Path) -> None:
    mine = cell(tmp_path, lr=0.1)
    assert mine.finished() is None
    write_record(mine.result_file, Result(KEY, "other", {}))
    assert mine.finished() is None
    own = Result(KEY, mine.fingerprint, {}, metrics=Metrics(miou=5.0))
    write_record(mine.result_file, own)
    assert mine.finished() == own
    mine.result_file.write_text('{"fingerprint": ')
    assert mine.finished() is None


# What the code before this one wrote, to the letter (numbers shortened): it must be read for ever.
VERSION_1: dict[str, Any] = {
    "schema_version": 1,
    "cell": {"name": "r09", "dataset": "shapes5i", "method": "abcb", "backbone": "tiny", "shot": 1, "fold": 0,
             "seed": 0, "variant": "ablation-sm"},
    "fingerprint": "d3592533046d2ee7",
    "report": None,
    "model": {"name": "abcb", "iterations": 2},
    "protocol": {"name": "standard", "seeds": [0, 1], "num_episodes": 12, "episodes_file": None},
    "metrics": {
        "miou": 42.8, "miou_std": 3.0, "miou_all_foreground": 9.4, "fb_iou": 66.2, "fb_iou_std": 1.9,
        "per_seed": [{"seed": 0, "miou": 46.2, "fb_iou": 67.0, "miou_all_foreground": 9.1, "num_episodes": 12,
                      "episodes_fingerprint": "0f", "classes_without_episode": []}],
        "per_class": {"red dotted cross": 50.0, "blue plain star": None},
        "miou_per_round": [40.0, 42.8],
        "foreground_distance": {"bins": [0.0, 0.1], "counts": [3, 9], "mean": 0.2, "std": 0.1, "episodes": 12,
                                "without_foreground": 0},
        "by_background_shift": {"0.0": {"miou": 44.0, "per_seed": [], "miou_per_round": [41.0, 44.0]}},
    },
    "partial": False,
    "missing_classes": [],
    "dataset": {"name": "shapes5i", "novel_classes": ["red dotted cross"], "num_val_images": 60, "train_list": "train",
                "val_list": "val", "mask_rule": "pixels", "fingerprint_train": "a", "fingerprint_val": "b",
                "episodes_fingerprint": "c"},
    "training": {"steps": 80, "epochs": 5.3, "images": 30, "batch_size": 2, "final_loss": 0.4},
    "cost": {"parameters": 330000, "gmacs": 0.4, "gmacs_dense": 0.5},
    "checkpoint": {"path": "outputs/x/last.pt", "step": 8, "fingerprint": "f", "dataset": "shapes5i", "fold": 0,
                   "method": "abcb", "backbone": "tiny", "base_classes": ["green plain square"]},
    "timing": {"prepare_seconds": 1.0, "train_seconds": 2.5, "evaluate_seconds": 3.0, "figures_seconds": 0.5},
    "peak_memory_bytes": 500000000,
    "provenance": {"fsseg": "0.1.0", "git": {"commit": None, "dirty": None}},
    "finished_at": "2026-11-26T01:22:00+00:00",
}  # fmt: skip


def test_a_result_of_version_1_is_read_in_full(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    write_json(run.result_file, VERSION_1)
    result = run.result()
    assert result is not None
    assert result.metrics is not None
    assert (result.cell.name, result.miou, result.metrics.per_seed[0].episodes_fingerprint) == ("r09", 42.8, "0f")
    assert result.metrics.by_background_shift["0.0"].miou_per_round == [41.0, 44.0]
    assert result.metrics.foreground_distance is not None
    assert result.metrics.foreground_distance.counts == [3, 9]
    assert result.checkpoint == Origin("outputs/x/last.pt", 8, "f", "shapes5i", 0, "abcb", "tiny",
                                       ["green plain square"])  # fmt: skip
    assert result.train_seconds == 2.5
    assert run.look().state == State.DONE


def test_an_identity_of_version_1_knows_no_overrides(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    write_json(run.identity_file, {"fingerprint": "f", "identity": {"train.lr": 0.1}})
    assert run.identity_record() == Identity("f", {"train.lr": 0.1}, None, schema_version=1)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    mine = cell(tmp_path, lr=0.1)
    result = Result(
        KEY, mine.fingerprint, {"name": "standard"}, metrics=Metrics(5.0, per_seed=[SeedScore(3, 5.0)]),
        training=Training(8, seconds=1.5), checkpoint=Origin("a/last.pt"),
    )  # fmt: skip
    write_record(mine.result_file, result)
    assert mine.result() == result
    assert result.train_seconds == 1.5
    assert json.loads(mine.result_file.read_text())["schema_version"] == 3
    told = Cell(tmp_path, KEY, "f", {"a": [1]}, ("fold=2", "train.lr=0.1"))
    run, new = told.begin("fold: 2\n")
    assert new
    expected = Identity("f", {"a": [1]}, ["fold=2", "train.lr=0.1"], run, KEY, schema_version=3)
    assert told.identity_record() == expected
    assert told.begin("fold: 2\n") == (run, False)  # it goes on
    assert told.config() == {"fold": 2}


def test_a_number_that_is_none_is_never_written(tmp_path: Path) -> None:
    mine = cell(tmp_path)
    with pytest.raises(ValueError, match="JSON compliant"):
        write_record(mine.result_file, Result(KEY, "f", {}, metrics=Metrics(float("nan"))))
    assert not mine.result_file.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"schema_version": 1, "cel', "is not JSON"),
        (b"", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[]", "expected `object`, got `array`"),
        (b"{}", "missing required field `cell`"),
        (b'{"schema_version": 4}', "schema_version 4; this fsseg reads versions 1 to 3"),
        (b'{"schema_version": 1}', "missing required field `cell`"),
        (json.dumps(VERSION_1 | {"metrics": {"miou": "70"}}).encode(), "metrics.miou"),
        (json.dumps(VERSION_1 | {"metrics": {"miou": 100.5}}).encode(), "metrics.miou"),
        (json.dumps(VERSION_1 | {"metrics": {"miou": -1}}).encode(), "metrics.miou"),
        (json.dumps(VERSION_1 | {"metrics": {"miou": True}}).encode(), "metrics.miou"),
        (json.dumps(VERSION_1 | {"metrics": {"miou": None}}).encode(), "metrics.miou"),
        (json.dumps(VERSION_1 | {"metrics": {"miou": float("nan")}}).encode(), "is not JSON"),
        (json.dumps(VERSION_1 | {"cell": KEY.__dict__ | {"fold": "2"}}).encode(), "cell.fold"),
    ],
)
def test_a_result_that_makes_no_sense_is_refused_with_the_field(content: bytes, words: str, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.result_file.write_bytes(content)
    with pytest.raises(Unreadable) as caught:
        run.result()
    assert words in str(caught.value)
    snapshot = run.look()
    assert snapshot.state == State.BROKEN
    assert snapshot.reason == f"result.json {caught.value}"


def put(folder: Path, **fields: Any) -> RunDirectory:
    run = RunDirectory(folder)
    write_record(run.status_file, Status(**fields))
    return run


def test_how_a_run_stands(tmp_path: Path) -> None:
    now = 1_000_000.0
    run = RunDirectory(tmp_path)
    assert (run.look(now).state, run.look(now).reason) == (State.FAILED, "ended before its first status")
    for state in (State.QUEUED, State.PREEMPTED, State.FAILED):
        assert put(tmp_path, state=state, reason="so").look(now).state == state
    assert put(tmp_path, state="running", heartbeat=now - 299).look(now).state == State.RUNNING
    silent = put(tmp_path, state="running", heartbeat=now - 301).look(now)
    assert (silent.state, silent.age, silent.reason) == (
        State.STALE, 301.0, "no sign of life: killed, or its host is gone",
    )  # fmt: skip
    assert put(tmp_path, state="running", heartbeat=now + 5).look(now).age == 0.0
    assert "no result.json" in put(tmp_path, state="done").look(now).reason
    assert put(tmp_path, state="done").look(now).state == State.BROKEN
    assert put(tmp_path, state="asleep").look(now).reason == "status.json has state 'asleep'"
    run.status_file.write_text('{"step": "five"}')
    assert (run.look(now).state, "step" in run.look(now).reason) == (State.BROKEN, True)


def test_a_claim_tells_that_a_run_lives_or_has_ended(tmp_path: Path) -> None:
    run = put(tmp_path, state="running", heartbeat=time.time() - 10_000)
    claim = acquire(run.claim_file, 300)
    try:
        assert run.look().state == State.RUNNING  # its status is old, its claim is not
        assert run.look().alive
        os.utime(run.claim_file, (1000, 1000))
        assert run.look().state == State.STALE
        assert not run.look().alive
    finally:
        claim.release()
    fields = {"host": claim.mine.fields["host"], "boot": claim.mine.fields["boot"], "pid": 2**22 + 1,
              "pid_namespace": claim.mine.fields["pid_namespace"], "pid_start": "1"}  # fmt: skip
    write_json(run.claim_file, fields)
    assert (run.look().state, run.look().reason) == (
        State.STALE, "its process has ended without a word: killed, or out of memory",
    )  # fmt: skip
    put(tmp_path, state="failed")
    assert not run.look().alive


def test_a_lease_shorter_or_longer_than_usual_is_that_of_the_claim(tmp_path: Path) -> None:
    run = put(tmp_path, state="running", heartbeat=1000.0)
    for lease, expected in ((5.0, State.STALE), (50.0, State.RUNNING)):
        write_json(run.claim_file, {"host": "elsewhere", "pid": 1, "lease_seconds": lease})
        os.utime(run.claim_file, (1000, 1000))
        assert run.look(now=1010.0).state == expected


def test_a_start_is_recorded_and_one_that_ended_without_a_word_gets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "55")
    run = RunDirectory(tmp_path)
    assert run.last_attempt() == (0, None)
    AttemptFile(run)
    number, first = run.last_attempt()
    assert first is not None
    assert (number, first.ended, first.pid, first.slurm_job) == (1, None, os.getpid(), "55")
    second = AttemptFile(run)
    second.end("done")
    number, last = run.last_attempt()
    assert last is not None
    assert (number, last.ended) == (2, "done")
    lost = json.loads((run.attempts / "1.json").read_text())
    assert lost["ended"] == "without a word: killed, or the machine went down"
    assert lost["packages"]["torch"]  # nothing else of it is lost


def test_redo_counts_as_obeyed_by_the_job_whose_start_put_the_former_run_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory(tmp_path)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    AttemptFile(run).redone("a")
    assert not redone_by_this_job(run)  # by no job at all
    monkeypatch.setenv("SLURM_JOB_ID", "55")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    AttemptFile(run)  # ended before it came to that
    assert not redone_by_this_job(run)
    AttemptFile(run).redone("b")
    AttemptFile(run)
    assert redone_by_this_job(run)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    assert not redone_by_this_job(run)  # another line in the same allocation
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    monkeypatch.setenv("SLURM_JOB_ID", "56")
    assert not redone_by_this_job(run)
    for job, expected in (("launch 1", False), ("launch 1", True), ("launch 2", False)):  # local, in an allocation
        monkeypatch.setenv("FSSEG_JOB", job)
        assert redone_by_this_job(run) is expected
        if job == "launch 1":
            AttemptFile(run).redone("c")


def test_an_attempt_of_version_1_is_read(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    old = {"started_at": "2026-11-26T01:22:00+00:00", "ended": "done", "fsseg": "0.1.0", "git": {"commit": "a"},
           "python": "3.11", "packages": {"torch": "2.15"}, "host": "h", "platform": "p", "cpus": 2, "device": None,
           "command": ["train.py", "-m", "fold=0,1"], "slurm_job": None, "slurm_restarts": None, "pid": 7,
           "ended_at": "2026-11-26T01:23:00+00:00"}  # fmt: skip
    write_json(run.attempts / "10.json", old)
    write_json(run.attempts / "9.json", old | {"command": []})
    number, last = run.last_attempt()
    assert isinstance(last, Attempt)
    assert (number, last.command) == (10, ["train.py", "-m", "fold=0,1"])


def test_curves_are_read_by_column_and_the_later_of_two_lines_counts(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert run.curves() == {}
    write_metrics(run, [{"step": 1, "train/loss": 0.5}, {"step": 2, "train/loss": 0.25, "val/miou": 3.0}])
    assert run.curves() == {"train/loss": ([1.0, 2.0], [0.5, 0.25]), "val/miou": ([2.0], [3.0])}
    run.metrics_file.write_text("step,loss,lr\n1,5,0.1\n2,nan,0.2\n1,4,\nx,1,1\n3,2")
    assert run.curves() == {"loss": ([1.0, 3.0], [4.0, 2.0]), "lr": ([1.0, 2.0], [0.1, 0.2])}
    run.metrics_file.write_text("step,loss\n20,0.5\n10,0.7\n30,0.4\n")
    assert run.curves() == {"loss": ([10.0, 20.0, 30.0], [0.7, 0.5, 0.4])}


def test_runs_are_found_once_by_whatever_way(tmp_path: Path) -> None:
    first, second = tmp_path / KEY.path, tmp_path / CellKey("runs", "d", "m", "b", 5, 0, 1, "v").path
    for folder in (first, second):
        put(folder, state="failed")
    for inside in (first / ".hydra", first / "attempts", first / "tensorboard" / "x", tmp_path / ".submitit"):
        put(inside, state="failed")
    (tmp_path / "link").symlink_to(tmp_path / "runs", target_is_directory=True)
    (first / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "config.yaml").write_text("nothing: of ours\n")
    found = find_runs([tmp_path, tmp_path / "runs", first])
    assert len(found) == 2
    assert {run.directory.resolve() for run in found} == {first, second}
    with pytest.raises(UserError, match="absent is no folder"):
        find_runs([tmp_path / "absent"])


def test_a_run_out_of_its_tree_is_known_by_its_configuration(tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "config.yaml").write_text(
        "name: x\nfold: 2\nshot: 5\nseed: 1\ndataset: {name: coco20i}\nbackbone: {name: tiny}\nmodel: {name: abcb}\n"
    )
    (run,) = find_runs([tmp_path])
    assert run.find_key() == CellKey("x", "coco20i", "abcb", "tiny", 5, 2, 1, "unknown")


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    problems: list[Problem] = []
    assert list(walk(tmp_path / "absent", set(), problems)) == []
    assert problems == [Problem(tmp_path / "absent", "cannot be read (No such file or directory)")]


def test_a_result_that_was_changed_is_not_believed_however_it_is_indented(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    write_record(run.result_file, Result(KEY, "f", {"name": "standard"}, metrics=Metrics(41.25)))
    content = json.loads(run.result_file.read_text())
    run.result_file.write_text(json.dumps(content, sort_keys=True))
    assert run.look().miou == 41.25
    body = json.dumps({k: v for k, v in content.items() if k != "checksum"}, sort_keys=True, separators=(",", ":"))
    assert content["checksum"] == hashlib.sha256(body.encode()).hexdigest()[:16]
    content["metrics"]["miou"] = 61.25
    for changed in (content, {k: v for k, v in content.items() if k != "checksum"}):
        run.result_file.write_text(json.dumps(changed))
        assert run.look().state == State.BROKEN
        assert "was changed after it was written" in run.look().reason


def test_a_result_of_another_run_than_its_identity_is_broken(tmp_path: Path) -> None:
    mine = cell(tmp_path, lr=0.1)
    run, _ = mine.begin("a: 1\n")
    write_record(mine.result_file, Result(KEY, mine.fingerprint, {}, run=run))
    assert mine.look().state == State.DONE
    write_record(mine.result_file, Result(KEY, mine.fingerprint, {}, run="other"))
    assert (mine.look().state, mine.look().reason) == (
        State.BROKEN, f"result.json is of run other, identity.json of run {run}",
    )  # fmt: skip
    with pytest.raises(UserError, match=r"is of run other, identity\.json of run"):
        mine.finished()


def test_a_result_without_its_identity_is_not_overwritten_by_other_settings(tmp_path: Path) -> None:
    mine, other = cell(tmp_path, lr=0.1), cell(tmp_path, lr=0.2)
    run, _ = mine.begin("a: 1\n")
    write_record(mine.result_file, Result(KEY, mine.fingerprint, {}, run=run))
    for spoil in (mine.identity_file.unlink, lambda: mine.identity_file.write_text("{")):
        spoil()
        mine.check_same_settings()
        with pytest.raises(UserError, match=r"holds the result of a run with other settings") as caught:
            other.check_same_settings()
        assert "redo=true" in caught.value.fix


def test_a_reason_of_several_lines_is_a_text_like_any_other(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    told = merge_errors([UserError("one"), UserError("two")])
    write_record(path, Status(state=State.FAILED, reason=told.what))  # type: ignore[arg-type]
    status = read(path, Status)
    assert status is not None
    assert status.reason == "2 faults:\n- one\n- two"
