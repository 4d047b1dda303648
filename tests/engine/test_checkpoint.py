"""Checkpoints: whole at every moment, checked when written and read, the one before as the way back."""

from __future__ import annotations

import logging
import os
import random
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fsseg.cell.record import RunDirectory
from fsseg.engine import checkpoint
from fsseg.engine.checkpoint import Damaged, load, recover, rng_state, save, seed_everything, set_rng_state
from fsseg.errors import UserError
from fsseg.process.files import ClaimLost, stage


@pytest.fixture(autouse=True)
def _logging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("fsseg"), "propagate", True)


def state(step: int) -> dict[str, Any]:
    trained = {"dataset": "shapes5i", "fold": 0, "method": "abcb", "backbone": "tiny", "base_classes": ["cat"]}
    return {
        "model": {"w": torch.full((1000,), float(step))}, "step": step, "optimiser": {}, "scaler": {}, "rng": {},
        "seconds": 1.5, "loss": 0.5, "window": [], "rows": 0, "run": "r", "steps": 9, "fingerprint": "f",
        "dataset_fingerprint": "d", "origin": trained,
    }  # fmt: skip


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "last.pt", tmp_path / "previous.pt"


def test_the_one_before_is_kept(files: tuple[Path, Path]) -> None:
    last, previous = files
    for step in (1, 2, 3):
        save(last, state(step), previous)
    assert load(last)["step"] == 3
    assert load(previous)["step"] == 2
    assert sorted(p.name for p in last.parent.iterdir()) == ["last.pt", "previous.pt"]


@pytest.mark.parametrize("call", ["fsync", "link", "replace"])
def test_stopped_anywhere_in_saving_a_whole_checkpoint_is_there(
    call: str, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies at the n-th such call; what it leaves is used as it is."""
    last, previous = files
    for n in range(4):
        save(last, state(1), previous)
        save(last, state(2), previous)
        calls, original = [], getattr(os, call)

        class Died(BaseException):
            pass

        def die(*arguments: Any, calls: list[int] = calls, n: int = n, original: Any = original) -> Any:
            calls.append(1)
            if len(calls) > n:
                raise Died
            return original(*arguments)

        monkeypatch.setattr(os, call, die)
        died = False
        try:
            save(last, state(3), previous)
        except Died:
            died = True
        monkeypatch.setattr(os, call, original)
        found = recover(last, previous)
        assert found is not None
        assert found["step"] == (2 if died else 3)
        assert last.exists()


def test_a_failed_write_leaves_both_as_they_were(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    last, previous = files
    save(last, state(1), previous)
    save(last, state(2), previous)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save(last, state(3), previous)
    assert (load(last)["step"], load(previous)["step"]) == (2, 1)
    assert len(list(last.parent.iterdir())) == 2


def test_a_new_one_that_reads_back_differently_is_not_taken(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    last, previous = files
    save(last, state(1), previous)
    write = checkpoint.write_atomic

    def cut(path: Path, data: bytes) -> None:
        write(path, data[:-100])

    monkeypatch.setattr(checkpoint, "write_atomic", cut)
    with pytest.raises(OSError, match="reads back differently"):
        save(last, state(2), previous)
    assert load(last)["step"] == 1


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other"])
def test_a_damaged_one_is_said_so_and_the_one_before_takes_its_place(
    damage: str, files: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    last, previous = files
    save(last, state(1), previous)
    save(last, state(2), previous)
    data = bytearray(last.read_bytes())
    if damage == "flipped":
        data[data.index(torch.full((100,), 2.0).numpy().tobytes()) + 50] ^= 1  # torch.load itself takes this
        assert torch.load(_written(last, data), weights_only=True)["step"] == 2
    elif damage == "other":
        torch.save({"weights": 1}, last)
    else:
        _written(last, data[: len(data) // 2] if damage == "cut" else b"")
    with pytest.raises(Damaged, match=str(last)):
        load(last)
    found = recover(last, previous)
    assert found is not None
    assert found["step"] == 1
    assert str(last) in caplog.text
    assert str(previous) in caplog.text
    assert load(last)["step"] == 1
    save(last, state(2), previous)  # and the damaged one never becomes the previous one
    assert load(previous)["step"] == 1


def test_only_the_damaged_checkpoint_of_a_run_may_be_deleted(tmp_path: Path) -> None:
    """A file of any other name or place may be somebody's photo."""
    run = RunDirectory(tmp_path / "seed0")
    (run.directory / "other").mkdir(parents=True)
    run.checkpoints.mkdir()
    own, elsewhere = run.checkpoint, run.directory / "other" / "last.pt"
    for path in (own, elsewhere):
        path.write_bytes(b"no archive")
    assert "it is no checkpoint, or it is damaged" in refused(own).what  # not in a run yet
    run.identity_file.touch()
    assert "the checkpoint is damaged" in refused(own).what
    assert refused(own).fix == "delete it, or give another one"
    assert "delete" not in refused(elsewhere).fix


def refused(path: Path) -> Damaged:
    with pytest.raises(Damaged, match=str(path)) as caught:
        load(path)
    return caught.value


def test_none_usable_is_said_so(files: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    last, previous = files
    assert recover(last, previous) is None
    assert caplog.text == ""
    last.write_bytes(b"x")
    previous.write_bytes(b"")
    assert recover(last, previous) is None
    assert "training starts anew" in caplog.text


def test_just_the_one_before_is_enough(files: tuple[Path, Path]) -> None:
    last, previous = files
    save(previous, state(1))
    found = recover(last, previous)
    assert found is not None
    assert last.exists()


def test_a_file_that_may_not_be_read_is_no_damage(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    last, previous = files
    save(last, state(1), previous)

    def forbidden(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checkpoint, "_faulty_part", forbidden)
    with pytest.raises(UserError, match="Permission denied") as caught:
        recover(last, previous)
    assert not isinstance(caught.value, Damaged)


def test_without_hard_links_the_one_before_is_kept_too(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    for step in (1, 2):
        save(files[0], state(step), files[1])
    assert (load(files[0])["step"], load(files[1])["step"]) == (2, 1)


def test_all_generators_go_on_where_they_stood(files: tuple[Path, Path]) -> None:
    def draw() -> tuple[Any, ...]:
        return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(3).tolist()

    seed_everything(3)
    random.gauss(0, 1)
    np.random.randn()  # half of a pair is kept for the next call
    save(files[0], {**state(1), "rng": rng_state()})
    expected = draw()
    seed_everything(4)
    set_rng_state(load(files[0])["rng"])
    assert draw() == expected


def _written(path: Path, data: bytes | bytearray) -> Path:
    path.write_bytes(bytes(data))
    return path


class Opened:
    """Unpickled, it would be called."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("opened",)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"step": -1}, "`$.step`"),
        ({"step": "3"}, "`$.step`"),
        ({"step": True}, "`$.step`"),
        ({"seconds": -5.0}, "`$.seconds`"),
        ({"window": ["0.5"]}, "`$.window[0]`"),
        ({"rows": -1}, "`$.rows`"),
        ({"model": [1]}, "`$.model`"),
        ({"origin": {"dataset": "x"}}, "`$.origin`"),
        ({"format": 3}, "`$.format`"),
        ({"fingerprint": None}, "`$.fingerprint`"),
        ({"model": {"w": torch.tensor([1.0, float("nan")])}}, "the weights w are no finite numbers"),
        ({"model": {"w": torch.tensor([float("inf")])}}, "the weights w are no finite numbers"),
        ({"model": {"w": Opened()}}, "holds objects that no checkpoint of fsseg holds"),
    ],
)
def test_right_format_and_wrong_content_is_refused_in_two_lines(
    change: dict[str, Any], words: str, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files[0].parent)
    torch.save({"format": 2, **state(1), **change}, files[0])
    with pytest.raises(Damaged) as caught:
        load(files[0])
    assert words in caught.value.what
    assert str(files[0]) in caught.value.what
    assert "\n" not in caught.value.what + caught.value.fix
    assert "weights_only" not in str(caught.value)
    assert not Path("opened").exists()


def test_a_pipe_in_place_of_a_checkpoint_is_not_waited_for(files: tuple[Path, Path]) -> None:
    os.mkfifo(files[0])
    with pytest.raises(UserError, match="a FIFO, no file"):
        load(files[0])


def test_a_compressed_archive_is_refused_before_it_is_unpacked(files: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(files[0], "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10_000_000)
    with pytest.raises(Damaged, match=r"archive/data\.pkl is compressed"):
        load(files[0])


def test_weights_that_are_no_numbers_are_never_saved(files: tuple[Path, Path]) -> None:
    save(files[0], state(1), files[1])
    with pytest.raises(UserError, match="the weights w are no finite numbers at step 2"):
        save(files[0], state(2) | {"model": {"w": torch.tensor([float("nan")])}}, files[1])
    assert load(files[0])["step"] == 1
    assert not files[1].exists()


def test_without_hard_links_a_process_that_lost_the_run_moves_nothing(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    save(files[0], state(1), files[1])
    save(files[0], state(2), files[1])
    monkeypatch.setattr(os, "link", refused)
    work = files[0].parent / ".work-mine"
    work.mkdir()
    stage(files[0].parent, work)
    try:
        copy = shutil.copyfile

        def overtaken(source: Path, target: Path) -> None:
            shutil.rmtree(work)
            copy(source, target)

        monkeypatch.setattr(shutil, "copyfile", overtaken)
        with pytest.raises(ClaimLost):
            save(files[0], state(3), files[1])
    finally:
        stage(files[0].parent, None)
    assert (load(files[0])["step"], load(files[1])["step"]) == (2, 1)
