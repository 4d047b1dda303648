"""Run directories that somebody else has changed: values that no run has, what is no file, endless trees."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from run_directories import KEY, make_run, merged

from fsseg.cell.claim import look, read_holder
from fsseg.cell.key import CellKey
from fsseg.cell.models import NotJson, Result, State, Unreadable
from fsseg.cell.record import Problem, RunDirectory, find_runs, walk

ROUNDS = {"miou": 5.0, "miou_per_round": [4.0, 5.0]}


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"metrics": {"miou": 101.0}}, "metrics.miou"),
        ({"metrics": {"miou": -0.1}}, "metrics.miou"),
        ({"metrics": {"miou_std": -1.0}}, "metrics.miou_std"),
        ({"metrics": {"fb_iou": 100.5}}, "metrics.fb_iou"),
        ({"metrics": {"per_class": {"cat": 1e300}}}, "metrics.per_class"),
        ({"metrics": {"per_seed": [{"seed": 0, "miou": 200.0}]}}, "metrics.per_seed"),
        ({"metrics": {"miou_per_round": [-4.0]}}, "metrics.miou_per_round"),
        ({"metrics": {"by_background_shift": {"left": ROUNDS}}}, "by_background_shift"),
        ({"metrics": {"by_background_shift": {"1e999": ROUNDS}}}, "by_background_shift"),
        ({"metrics": {"by_background_shift": {"0.5": {"miou": 500.0}}}}, "by_background_shift"),
        ({"training": {"steps": -1}}, "training.steps"),
        ({"training": {"steps": 1.5}}, "training.steps"),
        ({"timing": {"train_seconds": -2.5}}, "timing.train_seconds"),
        ({"timing": {"evaluate_seconds": 1e300}}, "timing.evaluate_seconds"),
        ({"cost": {"parameters": -5}}, "cost.parameters"),
        ({"peak_memory_bytes": -1}, "peak_memory_bytes"),
        ({"dataset": {"num_val_images": -1}}, "dataset.num_val_images"),
        ({"cell": {"seed": 1e300}}, "cell.seed"),
        ({"cell": {"seed": -1}}, "cell"),
        ({"cell": {"fold": 2**64}}, "cell"),
        ({"cell": {"name": "../up"}}, "cell"),
        ({"cell": {"name": ".."}}, "cell"),
        ({"cell": {"dataset": "/etc"}}, "cell"),
        ({"cell": {"variant": ""}}, "cell"),
        ({"cell": {"backbone": "x" * 256}}, "cell"),
        ({"schema_version": True}, "schema_version"),
    ],
)
def test_a_result_that_no_run_has_is_named_and_not_believed(
    tmp_path: Path, changed: dict[str, Any], named: str
) -> None:
    run = make_run(tmp_path, result=50.0)
    run.result_file.write_text(json.dumps(merged(json.loads(run.result_file.read_bytes()), changed)))
    with pytest.raises(Unreadable, match=named) as caught:
        run.result()
    assert not isinstance(caught.value, NotJson)  # it is never replaced unasked
    seen = run.look()
    assert (seen.state, seen.result) == (State.BROKEN, None)
    assert seen.reason.startswith("result.json ")


def test_every_field_of_a_whole_result_may_be_there(tmp_path: Path) -> None:
    metrics = {
        "miou": 100.0, "miou_std": 0.0, "fb_iou": 0.0, "per_class": {"cat": None, "dog": 100.0}, **ROUNDS,
        "by_background_shift": {"0.0": ROUNDS, "0.25": ROUNDS, "1": ROUNDS, "1e-05": ROUNDS},
    }  # fmt: skip
    run = make_run(tmp_path, result={"metrics": metrics | {"miou": 100.0}, "cost": {"parameters": 0, "gmacs": 0.0}})
    result = run.result()
    assert result is not None
    assert result.metrics is not None
    assert list(result.metrics.by_background_shift) == ["0.0", "0.25", "1", "1e-05"]


def test_of_a_name_given_twice_the_last_counts_for_every_reader(tmp_path: Path) -> None:
    run = make_run(tmp_path, result=50.0)
    text = run.result_file.read_text().replace('"miou": 50.0', '"miou": 60.0, "miou": 50.0')
    assert text.count("60.0")
    run.result_file.write_text(text)
    result = run.result()
    assert result is not None
    assert result.miou == json.loads(text)["metrics"]["miou"] == 50.0


@pytest.mark.parametrize("depth", [2_000, 200_000])
def test_depth_is_named_and_no_sign_of_a_file_cut_short(tmp_path: Path, depth: int) -> None:
    run = make_run(tmp_path, result=50.0)
    text = run.result_file.read_text()
    run.result_file.write_text(
        text.replace('"provenance": {}', '"provenance": {"a": ' + "[" * depth + "]" * depth + "}")
    )
    with pytest.raises(Unreadable, match="nested too deeply") as caught:
        run.result()
    assert not isinstance(caught.value, NotJson)


def test_a_status_that_no_run_has_is_named(tmp_path: Path) -> None:
    for number, (changed, named) in enumerate(
        [({"step": -1}, "step"), ({"miou": 101}, "miou"), ({"heartbeat": 1e300}, "heartbeat"), ({"pid": 0.5}, "pid")]
    ):
        run = make_run(tmp_path / str(number), status="running")
        run.status_file.write_text(json.dumps({"state": "running", **changed}))
        seen = run.look()
        assert seen.state == State.BROKEN
        assert seen.reason.startswith(f"status.json has a wrong {named}: ")


def test_a_reason_is_shown_up_to_a_length(tmp_path: Path) -> None:
    assert len(make_run(tmp_path, status={"state": "failed", "reason": "x" * 10**6}).look().reason) == 2000


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000, '{"lease_seconds": Infinity, "interval_seconds": NaN}', '{"lease_seconds": ' + "9" * 400 + "}",
        '{"lease_seconds": 1e300}', '{"lease_seconds": true, "interval_seconds": -1}', '{"pid": "../self", "host": []}',
        '{"slurm_job": "7", "slurm_restart": "x"}', '{"slurm_job": "7", "slurm_restart": [1]}', "null", "",
    ],
)  # fmt: skip
def test_a_claim_of_anything_is_one_of_an_unknown_holder(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    run = make_run(tmp_path, status="running")
    run.claim_file.write_text(text)
    view = look(run.claim_file)
    assert view is not None
    assert 0 < view.holder.lease < 1e8
    assert 0 < view.holder.interval < 1e8
    assert run.look().state in (State.RUNNING, State.STALE)
    os.utime(run.claim_file, (1, 1))
    assert not view.alive(now=2e9)
    assert run.look(now=2e9).state == State.STALE


def test_what_is_no_file_is_no_claim_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "claim.json")
    assert look(tmp_path / "claim.json") is None
    with pytest.raises(OSError, match="a FIFO"):
        read_holder(tmp_path / "claim.json")


def test_attempts_are_counted_by_plain_numbers(tmp_path: Path) -> None:
    run = make_run(tmp_path, status="failed")
    run.attempts.mkdir()
    for name in ("²", "٣", "9" * 200, "x", "-1", "7"):
        (run.attempts / f"{name}.json").write_text('{"started_at": "t"}')
    number, attempt = run.last_attempt()
    assert number == 7
    assert attempt is not None
    os.mkfifo(run.attempts / "8.json")
    assert run.last_attempt() == (8, None)


def test_curves_of_what_is_no_csv(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    os.mkfifo(run.metrics_file)
    assert run.curves() == {}
    run.metrics_file.unlink()
    run.metrics_file.write_text("step,loss\n1,0.5\n2,0.25\n3," + "9" * 200_000 + "\n4,0.1\n")  # csv takes 131,072
    assert run.curves() == {"loss": ([1.0, 2.0], [0.5, 0.25])}
    run.metrics_file.write_bytes(b"step,loss\n1,\xff\n2,0.5\n")
    assert run.curves() == {"loss": ([2.0], [0.5])}


@pytest.mark.slow
def test_curves_of_a_million_rows(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    with run.metrics_file.open("w") as file:
        file.write("step,loss,lr,seconds_per_step,val_miou\n")
        file.writelines(f"{i},0.123456,0.00123456,0.123456,\n" for i in range(1_000_000))
    steps, losses = run.curves()["loss"]
    assert (len(steps), steps[-1], losses[-1]) == (1_000_000, 999_999.0, 0.123456)


CONFIG = {
    "name": "x", "fold": 2, "shot": 5, "seed": 1, "dataset": {"name": "d"}, "backbone": {"name": "b"},
    "model": {"name": "m"},
}  # fmt: skip


@pytest.mark.parametrize(
    "changed",
    [
        {"name": "../x"}, {"name": ""}, {"name": ".."}, {"fold": -1}, {"seed": "x"}, {"shot": None}, {"dataset": "d"},
        {"dataset": [1]}, {"model": {"name": "a/b"}}, {"seed": 2**64}, {"backbone": {"name": "b" * 300}},
    ],
)  # fmt: skip
def test_a_configuration_that_names_no_place_below_a_folder_names_no_cell(
    tmp_path: Path, changed: dict[str, Any]
) -> None:
    run = RunDirectory(tmp_path / "copy")
    run.directory.mkdir()
    run.config_file.write_text(json.dumps(CONFIG))
    assert run.find_key() == CellKey("x", "d", "m", "b", 5, 2, 1, "unknown")
    run.config_file.write_text(json.dumps(CONFIG | changed))
    assert run.find_key() is None


def test_a_path_names_a_cell_only_if_it_is_one_of_ours() -> None:
    place = "d/m/b/1shot/v/fold0/seed0"
    assert CellKey.from_path(Path("/r/n", place)) == CellKey("n", "d", "m", "b", 1, 0, 0, "v")
    assert CellKey.from_path(Path("/r/n/d/m/b/1shot/v/fold0/seed0\n")) is None
    assert CellKey.from_path(Path("/r/n/d/m/b/1shot/v/fold٣/seed0")) is None
    assert CellKey.from_path(Path("/r/n/d/m/b/1shot/v/fold0", "seed" + "9" * 100)) is None


def test_a_folder_given_from_within_its_tree_is_named_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path, result=50.0)
    inside = tmp_path / KEY.name / KEY.dataset
    monkeypatch.chdir(inside)
    (found,) = find_runs([".."])
    assert found.find_key() == KEY
    assert found.directory.resolve() == run.directory


def test_size_counts_files_and_follows_no_link(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    (run.directory / "a" / "b").mkdir(parents=True)
    (run.directory / "x").write_bytes(b"12345")
    (run.directory / "a" / "b" / "y").write_bytes(b"123")
    (tmp_path / "outside").write_bytes(b"1" * 1000)
    (run.directory / "link").symlink_to(tmp_path / "outside")
    (run.directory / "circle").symlink_to("circle")
    (run.directory / "up").symlink_to(tmp_path)
    os.mkfifo(run.directory / "fifo")
    assert run.size() == 8


def names(found: Iterator[tuple[str, set[str]]], root: Path) -> list[str]:
    return [os.path.relpath(folder, root) for folder, _ in found]


def test_a_tree_of_links_is_walked_once_and_never_upwards(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for i in range(3):
        (root / f"d{i}").mkdir(parents=True)
        for j in range(3):
            (root / f"d{i}" / f"l{j}").symlink_to(root / f"d{j}")
    (root / "d0" / "up").symlink_to(tmp_path)
    (root / "d0" / "itself").symlink_to(root)
    (root / "circle").symlink_to("circle")
    (tmp_path / "beside").mkdir()
    problems: list[Problem] = []
    assert names(walk(root, set(), problems), root) == [".", "d0", "d0/l1", "d0/l1/l2"]
    assert problems == [Problem(root / "d0/up", "is a link to a folder above; it is not followed")]
    (root / "d0" / "beside").symlink_to(tmp_path / "beside")
    assert "d0/beside" in names(walk(root, set(), problems), root)


def test_a_folder_that_cannot_be_read_does_not_end_the_walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "b", result=50.0)
    (tmp_path / "a").mkdir()
    scan = os.scandir

    def refuse(path: Any) -> Any:
        if os.fspath(path).endswith("/a"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    problems: list[Problem] = []
    assert len(find_runs([tmp_path], problems)) == 1
    assert problems == [Problem(tmp_path / "a", "cannot be read (Permission denied)")]


def test_folders_left_out_are_logged_where_nobody_asks_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("fsseg.cell.record.log.warning", lambda text, *given: said.append(text % given))
    make_run(tmp_path / "runs", result=50.0)
    (tmp_path / "runs" / "up\n").symlink_to(tmp_path)
    assert len(find_runs([tmp_path / "runs"])) == 1
    assert said == [f"{tmp_path}/runs/up\\n: is a link to a folder above; it is not followed"]


def test_a_folder_in_the_place_of_a_record_makes_a_broken_run(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / KEY.path)
    run.result_file.mkdir(parents=True)
    (found,) = find_runs([tmp_path])
    seen = found.look()
    assert (seen.state, seen.reason) == (State.BROKEN, "result.json cannot be read (a folder, no file)")


def test_the_limits_cost_no_whole_file() -> None:
    """A result with 80 classes, 5 seeds and 5 shifts is a hundredth of what may be read."""
    result = Result(KEY, "f", {})
    metrics = {"miou": 5.0, "per_class": {f"class number {i}": 50.123456789 for i in range(80)}, "per_seed": [
        {"seed": s, "miou": 50.0, "episodes_fingerprint": "0" * 16} for s in range(5)]}  # fmt: skip
    whole = msgspec.to_builtins(result) | {
        "metrics": metrics | {"by_background_shift": {f"0.{i}": metrics for i in range(5)}}
    }
    assert len(json.dumps(whole, indent=2)) < (4 << 20) / 100
