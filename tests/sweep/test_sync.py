"""Copies on a remote store: a real S3-speaking server on loopback, a local folder, stores that fail."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from copies import KEY, REMOTE, configured, redo, started
from run_directories import make_run as make_records

from fsseg.cell.key import CellKey
from fsseg.cell.record import Cell, find_runs
from fsseg.errors import UserError
from fsseg.process.remote import url_faults
from fsseg.report.aggregate import aggregate
from fsseg.sweep import sync
from fsseg.sweep.store import Tries

ALWAYS = {"config.yaml", "identity.json", "train.log", "figures/episodes.png", "status.json", "result.json"}


def make_run(root: Path, key: CellKey = KEY, done: bool = True) -> Cell:
    cell = Cell(root / key.path, key, "f" * 16, {"fold": key.fold})
    make_records(
        cell, result=50.0 if done else None, config="name: runs\n",
        status={"state": "done" if done else "preempted", "step": 5, "steps": 10},
    )  # fmt: skip
    cell.log_file.write_text("log\n")
    cell.episodes_figure.parent.mkdir()
    cell.episodes_figure.write_bytes(b"png")
    cell.checkpoint.parent.mkdir()
    cell.checkpoint.write_bytes(b"weights")
    cell.claim_file.write_text("{}")
    (cell.directory / ".status.json.abc.tmp").write_text("half")
    return cell


def objects(bucket: str) -> dict[str, bytes]:
    """Everything in the bucket, asked for with another client than the one under test."""
    import boto3

    client = boto3.client("s3")
    listed = client.list_objects_v2(Bucket=bucket).get("Contents", [])
    return {o["Key"]: client.get_object(Bucket=bucket, Key=o["Key"])["Body"].read() for o in listed}


def test_a_finished_cell_arrives_on_s3_without_checkpoints_claims_and_temporary_files(
    tmp_path: Path, bucket: str
) -> None:
    cell = make_run(tmp_path)
    sync.sync_cell(configured(f"s3://{bucket}/exp"), cell)
    found = objects(bucket)
    assert set(found) == {f"exp/{REMOTE}/{name}" for name in ALWAYS}
    assert found[f"exp/{REMOTE}/result.json"] == cell.result_file.read_bytes()
    marker = cell.copied()
    assert marker.pending == []
    assert marker.error == ""


def test_checkpoints_go_along_when_asked_for_and_on_preemption(tmp_path: Path, bucket: str) -> None:
    sync.sync_cell(configured(f"s3://{bucket}/asked", checkpoints=True), make_run(tmp_path / "a"))
    sync.sync_cell(configured(f"s3://{bucket}/preempted"), make_run(tmp_path / "b", done=False), final=False)
    found = objects(bucket)
    assert found[f"asked/{REMOTE}/checkpoints/last.pt"] == b"weights"
    assert found[f"preempted/{REMOTE}/checkpoints/last.pt"] == b"weights"
    assert f"preempted/{REMOTE}/result.json" not in found


def test_counts_of_episodes_always_go_and_those_of_a_part_where_the_work_goes_on(tmp_path: Path, bucket: str) -> None:
    url, place = f"s3://{bucket}/exp", f"exp/{REMOTE}"
    cell = make_run(tmp_path, done=False)
    cell.episodes_part.write_bytes(b"half of it")
    sync.sync_cell(configured(url), cell, final=False)  # preempted
    assert objects(bucket)[f"{place}/episodes.part"] == b"half of it"
    cell.episodes_part.write_bytes(b"more of it")
    assert "episodes.part" not in sync.push(cell, url).sent  # only records and logs
    cell.episodes_file.write_bytes(b"counts")
    make_records(cell, result=50.0)  # killed before the part was removed
    sync.sync_cell(configured(url, checkpoints=True), cell)
    found = objects(bucket)
    assert found[f"{place}/episodes.npz"] == b"counts"
    assert f"{place}/episodes.part" not in found


def test_only_what_changed_is_sent_again(tmp_path: Path, bucket: str) -> None:
    cell = make_run(tmp_path)
    assert len(sync.push(cell, f"s3://{bucket}/x").sent) == 6
    assert sync.push(cell, f"s3://{bucket}/x").sent == []
    cell.log_file.write_text("more\n")
    assert sync.push(cell, f"s3://{bucket}/x").sent == ["train.log"]
    assert objects(bucket)[f"x/{REMOTE}/train.log"] == b"more\n"


def test_aggregate_mirror_of_s3_equals_the_local_files(tmp_path: Path, bucket: str) -> None:
    done, unfinished = KEY, CellKey("runs", "shapes5i", "abcb", "tiny", 1, 3, 0, "default")
    for key, is_done in ((done, True), (unfinished, False)):
        sync.push(make_run(tmp_path / "local", key, is_done), f"s3://{bucket}/deep/exp")
    root = sync.mirror(f"s3://{bucket}/deep/exp", tmp_path / "mirror")
    files = {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    expected = {
        f"{done.path}/result.json", f"{done.path}/status.json", f"{done.path}/identity.json",
        f"{unfinished.path}/status.json", f"{unfinished.path}/identity.json", f"{unfinished.path}/config.yaml",
    }  # fmt: skip
    assert files == {name: (tmp_path / "local" / name).read_bytes() for name in expected}
    deeper = sync.mirror(f"s3://{bucket}/deep/exp/runs/shapes5i", tmp_path / "second")
    assert deeper.joinpath(*done.path.parts[2:], "result.json").is_file()


@pytest.mark.parametrize("version", [1, 2])
def test_aggregating_from_an_address_tells_what_aggregating_the_folder_tells(version: int, tmp_path: Path) -> None:
    """Runs of an ablation at two rates and with fewer steps than the paper's: identity.json alone says so."""
    full = dict.fromkeys(("modulation", "cleansing", "pixel_evolution", "structure_evolution"), True) | {
        "iterations": 3
    }
    for name, model in {"full": full, "sm": full | {"cleansing": False}}.items():
        for lr in (0.1, 0.005):
            settings = {"train.lr": lr, "train.max_steps": 100} | {f"model.{k}": v for k, v in model.items()}
            result = {"report": "table3_components", "model": model, "metrics": {"miou": 60 + lr}}
            key = CellKey("runs", "pascal5i", "abcb", "resnet50", 1, 0, 0, f"{name}-{lr}")
            make_records(tmp_path / "local", key, result=result, identity=settings, version=version)
    for run in find_runs([tmp_path / "local"]):
        sync.push(run, f"file://{tmp_path}/store")
    mirrored = sync.mirror(f"file://{tmp_path}/store", tmp_path / "mirror")
    texts = []
    for place in (tmp_path / "local", mirrored):
        texts.append(aggregate([place], tmp_path / "tables").replace(str(place), "HERE"))
    assert "max_steps" in texts[0]
    assert texts[1] == texts[0]


def test_a_missing_bucket_is_the_users_fault_for_a_reader(tmp_path: Path, bucket: str) -> None:
    with pytest.raises(UserError, match=f"s3://{bucket}x/exp"):
        sync.mirror(f"s3://{bucket}x/exp", tmp_path)


def refusing_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_store_that_refuses_connections_leaves_the_run_alone_and_is_caught_up(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cell = make_run(tmp_path)
    logging.getLogger("fsseg").propagate = True
    with monkeypatch.context() as broken, caplog.at_level("WARNING", logger="fsseg.sync"):
        broken.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{refusing_port()}")
        sync.sync_cell(configured(f"s3://{bucket}/exp"), cell)
    assert "fsseg sync" in caplog.text
    marker = cell.copied()
    assert marker.pending[-1] == "result.json"
    assert marker.error
    assert objects(bucket) == {}
    [(directory, outcome)] = sync.catch_up([tmp_path])
    assert (directory, outcome.pending, outcome.error) == (cell.directory, [], "")
    assert f"exp/{REMOTE}/result.json" in objects(bucket)


def test_a_store_that_accepts_and_never_answers_costs_no_more_than_the_time_limit(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = make_run(tmp_path)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        sync.sync_cell(configured(f"s3://{bucket}/exp", timeout_seconds=0.5), cell)  # the test's own limit is the check
    marker = cell.copied()
    assert "no answer" in marker.error


class Flaky:
    """Lets a `Store` fail the first `failures` sends, and notes the order of what arrives."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, failures: int = 0, fail_on: str = "") -> None:
        self.failures, self.fail_on, self.tries = failures, fail_on, 0
        self.arrived: list[str] = []
        original: Callable[..., None] = sync.Store.send

        def send(remote: Any, source: Path, name: str) -> None:
            self.tries += 1
            if self.tries <= self.failures or (self.fail_on and name.endswith(self.fail_on)):
                raise ConnectionResetError("reset")
            original(remote, source, name)
            self.arrived.append(name.removeprefix(f"{REMOTE}/"))

        monkeypatch.setattr(sync.Store, "send", send)


def test_the_result_goes_last_and_not_at_all_when_something_before_it_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = make_run(tmp_path / "local")
    url = f"file://{tmp_path}/store"
    flaky = Flaky(monkeypatch, fail_on="checkpoints/last.pt")
    outcome = sync.push(cell, url, True, Tries(2, pause=0))
    rest = ["checkpoints/last.pt", "config.yaml", "identity.json", "result.json"]
    assert outcome.pending == rest
    assert "ConnectionResetError" in outcome.error
    assert not (tmp_path / "store" / REMOTE / "result.json").exists()
    flaky.fail_on = ""
    assert sync.push(cell, url, True, Tries(pause=0)).sent == rest
    assert flaky.arrived[-1] == "result.json"


def test_a_passing_failure_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Flaky(monkeypatch, failures=3)
    outcome = sync.push(make_run(tmp_path / "local"), f"file://{tmp_path}/store", tries=Tries(4, pause=0))
    assert (len(outcome.sent), outcome.pending, outcome.error) == (6, [], "")


def test_a_store_that_is_down_is_not_tried_to_the_end_for_every_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for fold in range(3):
        make_run(tmp_path / "local", replace(KEY, fold=fold))
    flaky = Flaky(monkeypatch, failures=1000)
    outcomes = sync.catch_up([tmp_path / "local"], f"file://{tmp_path}/store", tries=Tries(5, pause=0))
    assert flaky.tries == 5 + 1 + 1
    assert [len(o.pending) for _, o in outcomes] == [6, 6, 6]
    assert sync.text(outcomes).splitlines()[0] == "3 cells: 0 files copied, 0 cells up to date"


def test_a_plain_folder_never_shows_half_a_file_and_keeps_no_temporary_ones(tmp_path: Path) -> None:
    cell = make_run(tmp_path / "local")
    sync.push(cell, f"file://{tmp_path}/store")
    files = {
        p.relative_to(tmp_path / "store" / REMOTE).as_posix() for p in (tmp_path / "store").rglob("*") if p.is_file()
    }
    assert files == ALWAYS


def test_two_machines_with_one_bucket_keep_the_result_that_came_first(tmp_path: Path, bucket: str) -> None:
    first, second = started(tmp_path / "a", "a", 2, miou=50.0), started(tmp_path / "b", "b", miou=60.0)
    assert sync.push(first, f"s3://{bucket}/x", True).error == ""
    before = objects(bucket)
    assert "run of this cell" in sync.push(second, f"s3://{bucket}/x", True).error
    second.result_file.unlink()
    assert "run of this cell" in sync.push(second, f"s3://{bucket}/x", True).error
    assert objects(bucket) == before


def test_a_cell_that_was_redone_replaces_its_own_copy_in_a_bucket(tmp_path: Path, bucket: str) -> None:
    cell = started(tmp_path / "a", "a", 2, miou=50.0)
    assert sync.push(cell, f"s3://{bucket}/x", True).error == ""
    redo(cell, "a, later", miou=60.0)
    assert sync.push(cell, f"s3://{bucket}/x").error == ""
    found = {name.removeprefix(f"x/{REMOTE}/"): data for name, data in objects(bucket).items()}
    assert found["result.json"] == cell.result_file.read_bytes()
    starts = {f"attempts/{n}.json" for n in (1, 2, 3)}
    assert set(found) == starts | {"config.yaml", "identity.json", "result.json", "status.json", "train.log"}


def test_another_address_gets_everything(tmp_path: Path) -> None:
    cell = make_run(tmp_path / "local")
    assert len(sync.push(cell, f"file://{tmp_path}/one").sent) == 6
    assert len(sync.push(cell, f"file://{tmp_path}/two").sent) == 6


def test_catching_up_takes_the_address_from_the_configuration_of_the_run(tmp_path: Path) -> None:
    cell = make_run(tmp_path / "local")
    cell.config_file.write_text(f"sync:\n  url: file://{tmp_path}/store\n  checkpoints: true\n")
    [(_, outcome)] = sync.catch_up([tmp_path / "local"])
    assert "checkpoints/last.pt" in outcome.sent
    assert (tmp_path / "store" / REMOTE / "result.json").is_file()


def test_catching_up_without_any_address_says_so(tmp_path: Path) -> None:
    make_run(tmp_path)
    with pytest.raises(UserError, match="--url"):
        sync.catch_up([tmp_path])


@pytest.mark.parametrize("url", ["bucket/folder", "s3://", "nosuchthing://a/b"])
def test_an_address_that_cannot_work_is_a_fault_of_the_configuration(url: str) -> None:
    [fault] = url_faults(url)
    assert url in fault.what


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(protocol: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    [fault] = url_faults("s3://bucket/x")
    assert fault.fix == "pip install 'fsseg[s3]'"
