"""What may be deleted, and what must never be."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from run_directories import KEY, make_run

from fsseg.cell.claim import acquire
from fsseg.cell.record import RunDirectory
from fsseg.sweep.clean import delete, find_waste, text


def run_folder(root: Path, fold: int, done: bool = True, checkpoint: str | None = None) -> RunDirectory:
    """A run with a checkpoint of its own; it began from another, if one is given."""
    key, config = replace(KEY, fold=fold), {"name": "runs", "checkpoint": checkpoint}
    origin = {"path": checkpoint, "step": 8} if checkpoint else None
    run = make_run(root, key, result={"checkpoint": origin} if done else None,
                   status=None if done else "failed", config=config)  # fmt: skip
    run.checkpoint.parent.mkdir()
    run.checkpoint.write_bytes(b"12345")
    return run


def old(path: Path, seconds: float = 7200) -> Path:
    path.touch()
    os.utime(path, (time.time() - seconds,) * 2)
    return path


def abandoned_claim(run: RunDirectory) -> Path:
    """A claim whose process has ended."""
    code = (
        f"from pathlib import Path; from fsseg.cell.claim import acquire; acquire(Path({str(run.claim_file)!r}), 300)"
    )
    subprocess.run([sys.executable, "-c", code, str(run.claim_file)], check=True)
    return run.claim_file


def test_checkpoints_of_finished_cells_go_and_those_of_others_stay(tmp_path: Path) -> None:
    done, failed = run_folder(tmp_path, 0), run_folder(tmp_path, 1, done=False)
    items = find_waste([tmp_path])
    assert [(i.path, i.why, i.size) for i in items] == [(done.checkpoint, "checkpoint", 5)]
    assert done.checkpoint.exists()  # looking deletes nothing
    delete(items)
    assert not done.checkpoint.parent.exists()
    assert failed.checkpoint.exists()
    assert done.result_file.exists()


@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
@pytest.mark.parametrize("elsewhere", [False, True], ids=["started here", "started elsewhere"])
def test_a_checkpoint_that_another_cell_names_stays(
    relative: bool, elsewhere: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finished or not: without the file the cell that began from it cannot even be looked up again."""
    root = tmp_path / "outputs"
    first, second = run_folder(root, 0), run_folder(root, 1)
    names = [str(r.checkpoint.relative_to(tmp_path) if relative else r.checkpoint) for r in (first, second)]
    run_folder(root, 2, done=False, checkpoint=names[0])
    finished = run_folder(root, 3, checkpoint=names[1])
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else" if elsewhere else tmp_path)
    items = find_waste([root])
    assert [i.path for i in items] == [finished.checkpoint]
    delete(items)
    assert first.checkpoint.exists()
    assert second.checkpoint.exists()


def test_a_checkpoint_that_another_experiment_names_stays(tmp_path: Path) -> None:
    """Only one experiment is cleaned; the cell that began from its checkpoint lies in another."""
    root = tmp_path / "outputs"
    used, free = run_folder(root, 0), run_folder(root, 1)
    items = find_waste([root / "runs"])
    assert {i.path for i in items} == {used.checkpoint, free.checkpoint}
    other = replace(KEY, name="scored", shot=5)
    make_run(root, other, result={"checkpoint": {"path": str(used.checkpoint)}})
    assert [i.path for i in find_waste([root / "runs"])] == [free.checkpoint]
    delete(items)  # listed before the other experiment came
    assert used.checkpoint.exists()
    assert not free.checkpoint.exists()


def test_temporary_files_go_when_they_are_old(tmp_path: Path) -> None:
    run = run_folder(tmp_path, 0, done=False)
    gone = old(run.checkpoint.with_name(".last.pt.x1.tmp"))
    (run.directory / ".status.json.x2.tmp").touch()  # being written now
    old(run.directory / ".hidden")
    items = find_waste([tmp_path])
    assert [i.path for i in items] == [gone]
    assert delete(items) == items
    assert not gone.exists()


def test_nothing_of_a_cell_that_somebody_works_on_is_touched(tmp_path: Path) -> None:
    run = run_folder(tmp_path, 0)
    old(run.checkpoint.with_name(".last.pt.x1.tmp"))
    before = find_waste([tmp_path])
    assert len(before) == 2
    claim = acquire(run.claim_file, lease=300.0)
    try:
        assert find_waste([tmp_path]) == []
        assert delete(before) == []  # the cell came to life between the listing and the deleting
        assert run.checkpoint.exists()
    finally:
        claim.release()


def test_a_running_cell_without_a_claim_is_not_touched_either(tmp_path: Path) -> None:
    run = make_run(tmp_path, status="running")
    old(run.directory / ".status.json.x.tmp")
    assert find_waste([tmp_path]) == []


def test_the_claim_of_a_process_that_ended_goes(tmp_path: Path) -> None:
    run = run_folder(tmp_path, 0, done=False)
    claim = abandoned_claim(run)
    items = find_waste([tmp_path])
    assert [(i.path, i.why) for i in items] == [(claim, "claim")]
    assert delete(items) == items
    assert not claim.exists()


def test_a_claim_taken_over_since_the_listing_stays(tmp_path: Path) -> None:
    run = run_folder(tmp_path, 0, done=False)
    path = abandoned_claim(run)
    items = find_waste([tmp_path])
    claim = acquire(path, lease=300.0)  # another run takes the cell over
    try:
        assert delete(items) == []
        assert path.exists()
    finally:
        claim.release()


def test_the_text_says_what_it_is_about_and_that_nothing_is_gone_yet(tmp_path: Path) -> None:
    run_folder(tmp_path, 0)
    items = find_waste([tmp_path])
    assert "1 checkpoints of finished cells" in text(items, deleted=False)
    assert "--yes" in text(items, deleted=False)
    assert text([], deleted=False) == "nothing to clean"


def test_a_file_that_may_not_be_deleted_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = run_folder(tmp_path, 0), run_folder(tmp_path, 1)
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path == first.checkpoint:
            raise PermissionError(13, "Permission denied", str(path))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    refused: list[OSError] = []
    assert [item.path for item in delete(find_waste([tmp_path]), refused)] == [second.checkpoint]
    assert [error.filename for error in refused] == [str(first.checkpoint)]
    assert first.checkpoint.exists()


def test_what_was_evaluated_so_far_goes_once_there_is_a_result_and_the_counts_stay(tmp_path: Path) -> None:
    finished, unfinished = run_folder(tmp_path, 0), run_folder(tmp_path, 1, done=False)
    for run in (finished, unfinished):
        run.episodes_part.write_bytes(b"part")
        run.episodes_file.write_bytes(b"counts")
    items = find_waste([tmp_path])
    assert [(i.path, i.why) for i in items if i.path.parent != i.run.checkpoints] == [
        (finished.episodes_part, "temporary")
    ]
    finished.result_file.rename(finished.result_file.with_suffix(".away"))  # another run began since
    delete(items)
    assert finished.episodes_part.exists()
    finished.result_file.with_suffix(".away").rename(finished.result_file)
    delete(find_waste([tmp_path]))
    assert not finished.episodes_part.exists()
    assert unfinished.episodes_part.exists()
    assert finished.episodes_file.exists()
    assert unfinished.episodes_file.exists()
