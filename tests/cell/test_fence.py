"""A process that lost its claim between looking at it and writing: the file system itself refuses what it does."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from run_directories import KEY

from fsseg.cell.claim import Claim, acquire, take_away
from fsseg.cell.fence import drop, fenced, set_aside
from fsseg.cell.models import Result, State, write_record
from fsseg.cell.record import Cell
from fsseg.process.files import ClaimLost, create_exclusive, stage, write_atomic


@pytest.fixture
def cell(tmp_path: Path) -> Cell:
    return Cell(tmp_path, KEY, "f", {"train.lr": 0.1})


@pytest.fixture(autouse=True)
def _nothing_staged(tmp_path: Path) -> Iterator[None]:
    yield
    stage(tmp_path, None)


def finished(cell: Cell) -> str:
    """A finished run in the directory; its id."""
    run, _ = cell.begin("a: 1\n")
    for path in (cell.status_file, cell.metrics_file, cell.log_file, cell.attempts / "1.json", cell.checkpoint):
        write_atomic(path, "of the old run")
    write_record(cell.result_file, Result(KEY, "f", {}, run=run))
    return run


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def overtaken(cell: Cell, claim: Claim) -> None:
    """Another process takes the directory over, and gives it up again."""
    assert take_away(cell.claim_file, claim.mine)
    other = acquire(cell.claim_file, 300)
    with fenced(cell, other):
        pass
    other.release()


def test_while_it_is_ours_we_write_and_nothing_is_left_behind(cell: Cell) -> None:
    claim = acquire(cell.claim_file, 300)
    with fenced(cell, claim) as work:
        write_atomic(cell.status_file, "1")
        assert create_exclusive(cell.attempts / "1.json", "2")
        assert not create_exclusive(cell.attempts / "1.json", "3")
        assert work.parent == cell.directory
        assert list(work.iterdir()) == []
    claim.release()
    assert files(cell.directory) == {"status.json": b"1", "attempts/1.json": b"2"}
    assert sorted(p.name for p in cell.directory.iterdir()) == ["attempts", "status.json"]


def test_who_was_overtaken_can_write_move_and_remove_nothing_more(cell: Cell) -> None:
    claim = acquire(cell.claim_file, 300)
    with fenced(cell, claim) as work:
        finished(cell)
        before = files(cell.directory)
        overtaken(cell, claim)
        stage(cell.directory, work)  # that of the other process is its own
        before.pop("claim.json")
        for late in (
            lambda: write_atomic(cell.result_file, "late"),
            lambda: write_atomic(cell.directory / "figures" / "new.png", "late"),
            lambda: create_exclusive(cell.attempts / "2.json", "late"),
            lambda: set_aside(cell, work),
            lambda: drop(cell.previous_checkpoint, work),
            lambda: drop(cell.checkpoint, work),
        ):
            with pytest.raises(ClaimLost):
                late()
            assert files(cell.directory) == before


@pytest.mark.parametrize("call", ["open", "replace", "link"])
def test_overtaken_at_any_call_within_a_write_it_writes_nothing(
    call: str, cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = acquire(cell.claim_file, 300)
    with fenced(cell, claim) as work:
        write_atomic(cell.status_file, "mine")
        original = os.open if call == "open" else getattr(os, call)

        def asleep(*arguments: Any, **options: Any) -> Any:
            monkeypatch.undo()
            overtaken(cell, claim)
            stage(cell.directory, work)
            return original(*arguments, **options)

        if call == "open":
            opening = Path.open

            def asleep_at_open(path: Path, *arguments: Any, **options: Any) -> Any:
                monkeypatch.undo()
                overtaken(cell, claim)
                stage(cell.directory, work)
                return opening(path, *arguments, **options)

            monkeypatch.setattr(Path, "open", asleep_at_open)
        else:
            monkeypatch.setattr(os, call, asleep)
        late = (create_exclusive, cell.attempts / "1.json") if call == "link" else (write_atomic, cell.status_file)
        with pytest.raises(ClaimLost):
            late[0](late[1], "late")
    assert files(cell.directory) == {"status.json": b"mine"}


def test_who_falls_asleep_before_it_has_its_folder_does_not_get_in(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    claim, mkdir = acquire(cell.claim_file, 300), Path.mkdir

    def asleep(path: Path, *arguments: Any, **options: Any) -> None:
        monkeypatch.undo()
        overtaken(cell, claim)
        mkdir(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", asleep)
    with pytest.raises(ClaimLost, match="was removed"), fenced(cell, claim):
        pytest.fail("it got in")
    assert list(cell.directory.iterdir()) == []


def test_what_is_replaced_is_kept_until_there_is_a_new_result(cell: Cell) -> None:
    old = finished(cell)
    whole = files(cell.directory)
    claim = acquire(cell.claim_file, 300)
    with fenced(cell, claim) as work:
        set_aside(cell, work)
        assert cell.look().state == State.FAILED
        assert not cell.identity_file.exists()
        history = {"train.log", "attempts/1.json"}
        assert files(cell.replaced) == {name: data for name, data in whole.items() if name not in history}
        cell.begin("a: 2\n")  # a second attempt at it never came to a result: the first one's is worth more
        set_aside(cell, work)
        kept = Cell(cell.replaced, KEY, "f", {}).result()
        assert kept is not None
        assert kept.run == old
        write_record(cell.result_file, Result(KEY, "f", {}, run="new"))
        set_aside(cell, work)
        kept = Cell(cell.replaced, KEY, "f", {}).result()
        assert kept is not None
        assert kept.run == "new"
        drop(cell.replaced, work)
    claim.release()
    assert set(files(cell.directory)) == history


def test_cut_short_while_setting_aside_the_next_holder_puts_everything_back(
    cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at the n-th rename; then, while putting back, at the m-th."""
    finished(cell)
    whole, rename = files(cell.directory), os.rename

    class Died(BaseException):
        pass

    def dying(calls: int) -> None:
        left = [calls]

        def die(source: Path, target: Path) -> None:
            if Path(source).name == "claim.json":  # of a release, which a killed process does not do
                raise Died
            left[0] -= 1
            if left[0] < 0:
                raise Died
            rename(source, target)

        monkeypatch.setattr(os, "rename", die)
        monkeypatch.setattr("fsseg.cell.fence.shutil.rmtree", lambda *_, **__: None)

    moved = 0
    for first in range(10):
        for second in range(3):
            claim = acquire(cell.claim_file, 300)
            with contextlib.suppress(Died), fenced(cell, claim) as work:
                dying(first)
                set_aside(cell, work)
            monkeypatch.undo()
            take_away(cell.claim_file, claim.mine)
            if cell.replaced.exists():
                moved += 1
                for path in cell.replaced.iterdir():
                    os.rename(path, cell.directory / path.name)
                cell.replaced.rmdir()
            claim = acquire(cell.claim_file, 300)
            dying(second)
            with contextlib.suppress(Died), fenced(cell, claim):
                pass
            monkeypatch.undo()
            take_away(cell.claim_file, claim.mine)
            claim = acquire(cell.claim_file, 300)
            with fenced(cell, claim):
                pass
            claim.release()
            assert files(cell.directory) == whole, (first, second)
    assert 0 < moved < 30


def test_an_empty_folder_gives_way_and_a_full_one_costs_nothing(cell: Cell) -> None:
    """What a sleeper left behind while the run was being set aside."""
    finished(cell)
    whole = files(cell.directory)
    aside = cell.directory / ".work-dead" / "aside"
    aside.mkdir(parents=True)
    os.rename(cell.checkpoints, aside / "checkpoints")
    cell.checkpoints.mkdir()
    for full in (False, True):
        if full:
            os.rename(cell.checkpoints, cell.directory / "moved")
            aside.mkdir(parents=True)
            os.rename(cell.directory / "moved", aside / "checkpoints")
            write_atomic(cell.checkpoints / "new.pt", "new")
        claim = acquire(cell.claim_file, 300)
        with fenced(cell, claim):
            pass
        claim.release()
        if not full:
            assert files(cell.directory) == whole
    left = [p for p in cell.directory.iterdir() if p.name.startswith(".left-")]
    assert [(p / "last.pt").read_text() for p in left] == ["of the old run"]
    assert (cell.checkpoints / "new.pt").read_text() == "new"


def test_who_was_overtaken_expels_nobody(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    """It falls asleep between its last look at the claim and what it does to the folders of others."""
    (cell.directory / ".work-dead").mkdir()
    sleeper, rename, others = acquire(cell.claim_file, 300), os.rename, []

    def asleep(source: Any, target: Any) -> None:
        monkeypatch.undo()
        assert take_away(cell.claim_file, sleeper.mine)
        other = acquire(cell.claim_file, 300)
        holding = fenced(cell, other)
        others.append((holding, holding.__enter__()))
        rename(source, target)

    monkeypatch.setattr(os, "rename", asleep)
    with pytest.raises(ClaimLost), fenced(cell, sleeper):
        pytest.fail("it got in")
    [(holding, work)] = others
    assert work.is_dir()
    holding.__exit__(None, None, None)


@pytest.mark.parametrize("calls", range(1, 6))
def test_a_fault_while_setting_aside_puts_everything_back(
    calls: int, cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished(cell)
    whole, rename, left = files(cell.directory), os.rename, [calls]

    def faulty(source: Any, target: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise PermissionError(13, "Permission denied", str(source))
        rename(source, target)

    claim = acquire(cell.claim_file, 300)
    with fenced(cell, claim) as work:
        monkeypatch.setattr(os, "rename", faulty)
        with pytest.raises(PermissionError):
            set_aside(cell, work)
        monkeypatch.undo()
    claim.release()
    assert files(cell.directory) == whole
    assert [p.name for p in cell.directory.iterdir() if p.name.startswith(".")] == []
