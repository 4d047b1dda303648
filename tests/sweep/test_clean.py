"""What may be deleted, and what must never be."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from fsseg.cell.claim import acquire
from fsseg.cell.key import CellKey
from fsseg.process.files import write_json
from fsseg.sweep.clean import delete, find_waste, report


def run_folder(root: Path, fold: int, done: bool = True) -> Path:
    folder = root / CellKey("runs", "shapes5i", "abcb", "tiny", 1, fold, 0, "default").path
    write_json(folder / "status.json", {"state": "done" if done else "failed"})
    if done:
        write_json(folder / "result.json", {"fingerprint": "f", "checkpoint": None, "metrics": {"miou": 5.0}})
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.pt").write_bytes(b"12345")
    return folder


def old(path: Path, seconds: float = 7200) -> Path:
    path.touch()
    os.utime(path, (time.time() - seconds,) * 2)
    return path


def abandoned_claim(folder: Path) -> Path:
    """A claim whose process has ended."""
    code = (
        "from pathlib import Path; from fsseg.cell.claim import acquire; "
        f"acquire(Path({str(folder)!r}, 'claim.json'), 300)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    return folder / "claim.json"


def test_checkpoints_of_finished_cells_go_and_those_of_others_stay(tmp_path: Path) -> None:
    done, failed = run_folder(tmp_path, 0), run_folder(tmp_path, 1, done=False)
    items = find_waste([tmp_path])
    assert [(i.path, i.why, i.size) for i in items] == [(done / "checkpoints" / "last.pt", "checkpoint", 5)]
    assert (done / "checkpoints" / "last.pt").exists()  # looking deletes nothing
    delete(items)
    assert not (done / "checkpoints").exists()
    assert (failed / "checkpoints" / "last.pt").exists()
    assert (done / "result.json").exists()


def test_a_checkpoint_that_another_cell_names_stays(tmp_path: Path) -> None:
    used, by_config, by_result = run_folder(tmp_path, 0), run_folder(tmp_path, 1, done=False), run_folder(tmp_path, 2)
    second = run_folder(tmp_path, 3)
    (by_config / "config.yaml").write_text(f"name: runs\ncheckpoint: {used}/checkpoints/last.pt\n")
    write_json(by_result / "result.json", {"fingerprint": "f", "checkpoint": f"{second}/checkpoints/last.pt"})
    assert [i.path for i in find_waste([tmp_path])] == [by_result / "checkpoints" / "last.pt"]


def test_temporary_files_go_when_they_are_old(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, 0, done=False)
    gone = old(folder / "checkpoints" / ".last.pt.x1.tmp")
    (folder / ".status.json.x2.tmp").touch()  # being written now
    old(folder / ".hidden")
    items = find_waste([tmp_path])
    assert [i.path for i in items] == [gone]
    assert delete(items) == items
    assert not gone.exists()


def test_nothing_of_a_cell_that_somebody_works_on_is_touched(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, 0)
    old(folder / "checkpoints" / ".last.pt.x1.tmp")
    before = find_waste([tmp_path])
    assert len(before) == 2
    claim = acquire(folder / "claim.json", lease=300.0)
    try:
        assert find_waste([tmp_path]) == []
        assert delete(before) == []  # the cell came to life between the listing and the deleting
        assert (folder / "checkpoints" / "last.pt").exists()
    finally:
        claim.release()


def test_a_running_cell_without_a_claim_is_not_touched_either(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, 0, done=False)
    write_json(folder / "status.json", {"state": "running", "heartbeat": time.time()})
    old(folder / ".status.json.x.tmp")
    assert find_waste([tmp_path]) == []


def test_the_claim_of_a_process_that_ended_goes(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, 0, done=False)
    claim = abandoned_claim(folder)
    items = find_waste([tmp_path])
    assert [(i.path, i.why) for i in items] == [(claim, "claim")]
    assert delete(items) == items
    assert not claim.exists()


def test_a_claim_taken_over_since_the_listing_stays(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, 0, done=False)
    path = abandoned_claim(folder)
    items = find_waste([tmp_path])
    claim = acquire(path, lease=300.0)  # another run takes the cell over
    try:
        assert delete(items) == []
        assert path.exists()
    finally:
        claim.release()


def test_the_report_says_what_it_is_about_and_that_nothing_is_gone_yet(tmp_path: Path) -> None:
    run_folder(tmp_path, 0)
    items = find_waste([tmp_path])
    assert "1 checkpoints of finished cells" in report(items, deleted=False)
    assert "--yes" in report(items, deleted=False)
    assert report([], deleted=False) == "nothing to clean"
