"""Identity of cells, atomic files, refusal of directories that hold something else."""

from __future__ import annotations

import json
import os
import re
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsseg.cell.key import CellKey, fingerprint, flatten, identity, variant_of
from fsseg.cell.record import Cell
from fsseg.cell.status import Status
from fsseg.errors import UserError
from fsseg.process.files import read_json, write_atomic, write_json

KEY = CellKey("runs", "pascal5i", "abcb", "resnet50", 1, 2, 0, "default")


def cell(folder: Path, **settings: object) -> Cell:
    kept = identity({"train": settings})
    return Cell(KEY, folder, fingerprint(kept), kept)


def test_directory_is_the_key_without_time_stamps() -> None:
    assert str(KEY.path) == "runs/pascal5i/abcb/resnet50/1shot/default/fold2/seed0"


def test_variant_leaves_grid_and_neutral_keys_out_and_ignores_order() -> None:
    grid = ["dataset=pascal5i", "fold=2", "shot=5", "seed=1", "backbone=resnet50", "method=abcb", "name=x"]
    neutral = ["dataset.root=/data", "num_workers=4", "log_level=debug", "logger.figures=2", "hydra/launcher=slurm"]
    assert variant_of(grid + neutral) == "default"
    assert variant_of(["train.lr=0.004", "model.iterations=5"]) == "model.iterations-5+train.lr-0.004"
    assert (
        variant_of(["model.iterations=5", "train.lr=0.1", *grid, "train.lr=0.004"])
        == "model.iterations-5+train.lr-0.004"
    )


def test_variant_names_a_path_by_digest_and_keeps_two_apart() -> None:
    one, two = variant_of(["checkpoint=a/last.pt"]), variant_of(["checkpoint=b/last.pt"])
    assert one != two
    assert re.fullmatch(r"checkpoint-[0-9a-f]{8}", one)


@given(
    st.lists(st.tuples(st.from_regex(r"[a-z]{1,8}\.[a-z_]{1,20}", fullmatch=True), st.text(max_size=200)), max_size=12)
)
def test_variant_is_one_safe_name_whatever_the_values(pairs: list[tuple[str, str]]) -> None:
    name = variant_of([f"{k}={v}" for k, v in pairs])
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+\-]*", name)
    assert len(name) <= 96


def test_variants_that_look_alike_after_cleaning_stay_apart() -> None:
    assert variant_of(["protocol.seeds=[0,1]"]) != variant_of(["protocol.seeds=[0_1]"])


def test_fingerprint_ignores_what_cannot_change_the_numbers() -> None:
    base = {"train": {"lr": 0.1, "checkpoint_minutes": 5}, "dataset": {"root": "/a"}, "num_workers": 2, "name": "x"}
    same = {"train": {"lr": 0.1, "checkpoint_minutes": 9}, "dataset": {"root": "/b"}, "num_workers": 0, "name": "y"}
    other = {**base, "train": {"lr": 0.2, "checkpoint_minutes": 5}}
    assert fingerprint(identity(base)) == fingerprint(identity(same))
    assert fingerprint(identity(base)) != fingerprint(identity(other))


def test_fingerprint_sees_the_content_of_a_checkpoint_not_its_path(tmp_path: Path) -> None:
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(content)
    prints = [fingerprint(identity({"checkpoint": str(tmp_path / n)})) for n in "abc"]
    assert prints[0] == prints[1] != prints[2]


def test_a_list_file_counts_by_content(tmp_path: Path) -> None:
    for name in ("one.txt", "two.txt"):
        (tmp_path / name).write_text("2007_000032\n")
    a, b = (identity({"dataset": {"train_list": str(tmp_path / n)}}) for n in ("one.txt", "two.txt"))
    assert a == b
    assert identity({"dataset": {"train_list": "part_train"}})["dataset.train_list"] == "part_train"


def test_flatten_joins_keys_with_dots() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": 2}}, "e": [1]}) == {"a.b": 1, "a.c.d": 2, "e": [1]}


def test_other_settings_are_refused_with_the_differing_keys(tmp_path: Path) -> None:
    old = cell(tmp_path, lr=0.1, epochs=2)
    write_json(old.identity_file, {"fingerprint": old.fingerprint, "identity": old.identity})
    old.check_same_settings()
    with pytest.raises(UserError) as caught:
        cell(tmp_path, lr=0.2, epochs=2).check_same_settings()
    assert "train.lr: 0.1 there, 0.2 now" in caught.value.what
    assert "epochs" not in caught.value.what
    assert "name=" in caught.value.fix
    assert "redo=true" in caught.value.fix


def test_finished_means_a_result_of_the_same_settings(tmp_path: Path) -> None:
    mine = cell(tmp_path, lr=0.1)
    assert mine.finished() is None
    write_json(mine.result, {"fingerprint": "other", "metrics": {}})
    assert mine.finished() is None
    write_json(mine.result, {"fingerprint": mine.fingerprint, "metrics": {}})
    assert mine.finished() == {"fingerprint": mine.fingerprint, "metrics": {}}
    mine.result.write_text('{"fingerprint": ')
    assert mine.finished() is None


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path, stop = tmp_path / "status.json", threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            write_json(path, {"number": number, "filler": [number] * 2000})

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        seen = 0
        while seen < 300:
            if path.exists():
                value = json.loads(path.read_text())
                assert set(value["filler"]) == {value["number"]}
                seen += 1
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert [p.name for p in tmp_path.iterdir()] == ["status.json"]


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result.json"
    write_atomic(path, "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_read_json_takes_only_objects(tmp_path: Path) -> None:
    assert read_json(tmp_path / "absent.json") is None
    (tmp_path / "list.json").write_text("[1]")
    assert read_json(tmp_path / "list.json") is None


def test_status_writes_changes_of_state_at_once_and_the_rest_now_and_then(tmp_path: Path) -> None:
    status = Status(tmp_path / "status.json", interval=3600)
    status.update(state="running", phase="train", step=1)
    status.update(step=2)
    first = read_json(status.path)
    assert first is not None
    assert first["step"] == 1
    status.update(state="done")
    last = read_json(status.path)
    assert last is not None
    assert (last["state"], last["step"]) == ("done", 2)
    with pytest.raises(ValueError, match="unknown status fields"):
        status.update(stat="done")


def test_status_beats_while_running_and_never_for_another_process(tmp_path: Path) -> None:
    taken = False

    def guard() -> None:
        if taken:
            raise RuntimeError("not ours")

    status = Status(tmp_path / "status.json", interval=0.0, guard=guard)
    status.beat()
    assert not status.path.exists()  # type: ignore[union-attr]
    status.update(state="running")
    first = read_json(tmp_path / "status.json")
    status.beat()
    second = read_json(tmp_path / "status.json")
    assert first is not None
    assert second is not None
    assert second["heartbeat"] > first["heartbeat"]
    taken = True
    with pytest.raises(RuntimeError):
        status.beat()
    assert read_json(tmp_path / "status.json") == second


def test_clearing_keeps_the_claim_and_removes_the_result_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = cell(tmp_path, lr=0.1)
    for path in (mine.claim, mine.result, mine.identity_file, mine.config, mine.checkpoint, tmp_path / ".x.1.tmp"):
        write_atomic(path, "x")
    moved: list[str] = []
    rename = os.rename

    def note(source: Path, target: Path) -> None:
        moved.append(source.name)
        rename(source, target)

    monkeypatch.setattr(os, "rename", note)
    mine.clear()
    assert moved[0] == "result.json"
    assert moved[-1] == "identity.json"
    assert [p.name for p in tmp_path.iterdir()] == ["claim.json"]


def test_tidying_removes_what_killed_processes_left_and_nothing_else(tmp_path: Path) -> None:
    mine = cell(tmp_path, lr=0.1)
    kept = (mine.claim, mine.result, mine.checkpoint, mine.previous_checkpoint, tmp_path / ".claim.json.5.tmp")
    left = (mine.checkpoint.with_name("last.pt.new"), mine.checkpoint.with_name(".last.pt.new.ab.tmp"),
            tmp_path / ".status.json.cd.tmp", tmp_path / ".old-1" / "result.json")  # fmt: skip
    for path in (*kept, *left):
        write_atomic(path, "x")
    mine.tidy()
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == sorted(kept)
