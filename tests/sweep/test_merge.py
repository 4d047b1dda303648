"""`fsseg merge`: what three machines did becomes one output folder; nothing is lost, nothing is taken for another."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from copies import KEY, attempt, started
from runs import cell_of, composed, done, numbers
from test_pull import stop_at, with_run

from fsseg.cell import uses
from fsseg.cell.claim import Holder, acquire
from fsseg.cell.episodes import EpisodeCounts, EpisodeScope, Scored, write_counts
from fsseg.cell.key import CellKey
from fsseg.cell.models import State, write_record
from fsseg.cell.record import Cell, RunDirectory, find_runs
from fsseg.cell.sweeps import SweepRecord, SweptCell, new_sweep, sweeps_of
from fsseg.cli.sweep import merge as command
from fsseg.errors import UserError
from fsseg.report.aggregate import aggregate
from fsseg.sweep import copies as copies_module
from fsseg.sweep import local, status, sync
from fsseg.sweep import merge as merge_module
from fsseg.sweep.clean import find_waste
from fsseg.sweep.local import How
from fsseg.sweep.merge import merge
from fsseg.sweep.merged import Merged, text


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of small files: a busy disk takes seconds for some of them, and no test here cuts the power."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def of_fold(fold: int, **parts: Any) -> CellKey:
    return replace(KEY, fold=fold, **parts)


def made(root: Path, run: str, fold: int, miou: float | None = None, step: int = 5, **parts: Any) -> Cell:
    """A run with its checkpoint, and with its counts if it has a score; equal arguments make equal files."""
    key = of_fold(fold, **parts)
    cell = with_run(started(root, "a", miou=miou, key=key), run)
    write_checkpoint(cell, f"{run} at {step}")
    status_ = json.loads(cell.status_file.read_text())
    cell.status_file.write_text(json.dumps({**status_, "step": step, "heartbeat": 1000.0}))
    if (result := cell.result()) is not None:
        scope = EpisodeScope((0,), (2,), ("cat",))
        counts = EpisodeCounts.of(scope, [Scored(0, n, 2, "", 9, [(n, 9, 1, 10 - n)]) for n in range(9)])
        write_record(
            cell.result_file, msgspec.structs.replace(result, episodes=write_counts(cell.episodes_file, counts))
        )
    return cell


def write_checkpoint(cell: RunDirectory, content: str) -> None:
    cell.checkpoints.mkdir(exist_ok=True)
    with zipfile.ZipFile(cell.checkpoint, "w") as archive:
        archive.writestr(zipfile.ZipInfo("data.pkl"), content)


def files(*folders: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every file below the folders: inode, time of change, content."""
    found = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                about = path.stat()
                found[str(path)] = (about.st_ino, about.st_mtime_ns, path.read_bytes())
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {os.path.relpath(name, folder): about[2] for name, about in files(folder).items()}


def merged_text(*sources: Path | str, out: Path, **how: Any) -> tuple[Merged, list[str]]:
    merged = merge([str(source) for source in sources], out, **how)
    return merged, text(merged).splitlines()


@pytest.fixture
def servers(tmp_path: Path) -> list[Path]:
    """Three machines: overlaps, an earlier and a later state, torn copies, a cell at work, and one conflict."""
    a, b, c = (tmp_path / name for name in "abc")
    made(a, "r0", 0, 50.0)
    shutil.copytree(a / "runs", b / "runs")  # the same cell, copied over
    made(a, "r1", 1, step=5)
    made(b, "r1", 1, step=8)
    made(c, "r1", 1, 55.0, step=10)
    made(a, "r2", 2, 40.0)
    made(b, "other", 2, 41.0)
    made(c, "r3", 3, 60.0)
    torn = made(a, "r3", 3, 60.0)
    torn.result_file.write_text(torn.result_file.read_text()[:-20])
    short = made(b, "r4", 0, 45.0, shot=5)  # the only copy of its cell
    short.episodes_file.write_bytes(short.episodes_file.read_bytes()[:100])
    cut = made(c, "r5", 1, shot=5, step=7)
    cut.checkpoint.write_bytes(cut.checkpoint.read_bytes()[:-10])
    made(a, "r5", 1, shot=5, step=6)
    empty = made(a, "r6", 2, shot=5)
    shutil.rmtree(empty.checkpoints)
    made(b, "r6b", 2, 47.0, shot=5)
    made(c, "r7", 3, step=3, shot=5)
    return [a, b, c]


def test_three_machines_become_one_folder_and_twice_is_the_same(
    servers: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b, c = servers
    out, before = tmp_path / "all", files(*servers)
    work = acquire(Cell(b / of_fold(1).path, of_fold(1), "", {}).claim_file, 300)
    before = files(*servers)
    with pytest.raises(UserError, match="2 of these are not complete"):
        command([str(s) for s in servers], out=out)
    lines = capsys.readouterr().out.splitlines()
    assert files(*servers) == before
    # a done run has 8 files, another 6
    assert lines[0] == f"8 cells in 15 copies: 6 brought ({4 * 8 + 2 * 6} files); in {out}: 4 done, 2 to go on"
    place = lines.index("  refused: two results of one cell, neither is brought:")
    assert lines[place + 1 : place + 3] == [f"    {a / of_fold(2).path}", f"    {b / of_fold(2).path}"]
    assert lines[place + 3] == "      mIoU 40.00  FB-IoU 80.00 | mIoU 41.00  FB-IoU 80.00"
    assert "      run: r2 | other" in lines
    told = "\n".join(lines)
    assert told.count("refused") == 1
    assert f"not whole: {a / of_fold(3).path}: the copy there is no whole run: result.json is not JSON" in told
    assert f"not whole: {b / of_fold(0, shot=5).path}: episodes.npz " in told
    assert f"not whole: {c / of_fold(1, shot=5).path}: checkpoints/last.pt is cut short" in told
    assert f"stays there: {b / of_fold(1).path}: process {os.getpid()} on" in told
    assert f"stays there: {a / of_fold(2, shot=5).path}: it ended before its first checkpoint" in told
    for source, key in ((a, of_fold(0)), (c, of_fold(1)), (c, of_fold(3)), (a, of_fold(1, shot=5)),
                        (b, of_fold(2, shot=5)), (c, of_fold(3, shot=5))):  # fmt: skip
        assert contents(out / key.path) == contents(source / key.path), key
    assert len(find_runs([out])) == 6
    after = files(out)
    for _ in range(2):
        with pytest.raises(UserError):
            command([str(s) for s in servers], out=out)
        again = capsys.readouterr().out.splitlines()
        assert again[0] == f"nothing to do: 8 cells in 15 copies; in {out}: 4 done, 2 to go on"
        assert again[1:] == lines[1:]
        assert files(out) == after
    assert files(*servers) == before
    work.release()
    # The user decides, and the rest comes.
    shutil.rmtree(b / of_fold(2).path)
    shutil.rmtree(b / of_fold(0, shot=5).path)
    command([str(s) for s in servers], out=out)
    assert RunDirectory(out / of_fold(2).path).look().miou == 40.0
    assert files(out).items() >= after.items()


def test_the_tables_of_the_merged_folder_are_those_of_all_sources(servers: list[Path], tmp_path: Path) -> None:
    shutil.rmtree(servers[1] / of_fold(0, shot=5).path)  # the torn one that no other machine has
    merge([str(s) for s in servers], tmp_path / "all")
    aggregate([*servers], tmp_path / "apart")
    aggregate([tmp_path / "all"], tmp_path / "together")
    rows, together = ((tmp_path / name / "summary.csv").read_text() for name in ("apart", "together"))
    assert together == rows
    assert rows.count("\n") > 6


def test_a_check_says_the_same_and_changes_nothing(servers: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "all"
    looked, lines = merged_text(*servers, out=out, check=True)
    assert not out.exists()
    did, told = merged_text(*servers, out=out)
    assert lines[0] == told[0].replace("brought", "would be brought")
    assert lines[1:] == told[1:]
    assert (looked.faults, did.faults) == (2, 2)


def test_a_result_in_the_folder_stays_whatever_comes(tmp_path: Path) -> None:
    made(tmp_path / "out", "mine", 0, 50.0)
    made(tmp_path / "a", "theirs", 0, 51.0)
    made(tmp_path / "a", "r1", 1, 52.0)
    before = files(tmp_path / "out")
    merged, lines = merged_text(tmp_path / "a", out=tmp_path / "out")
    assert f"  refused: two results of one cell, that in {tmp_path / 'out'} stays:" in lines
    assert merged.faults == 1
    assert files(tmp_path / "out").items() >= before.items()
    assert RunDirectory(tmp_path / "out" / of_fold(1).path).look().miou == 52.0


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_the_longest_trained_copy_wins_in_any_order(order: tuple[int, ...], tmp_path: Path) -> None:
    for number, step in enumerate((3, 9, 6)):
        made(tmp_path / str(number), "r", 0, step=step)
    went_on = Cell(tmp_path / "2" / KEY.path, KEY, "f" * 16, {"fold": 2})
    merged, _ = merged_text(*(tmp_path / str(n) for n in order), out=tmp_path / "out")
    assert contents(tmp_path / "out" / of_fold(0).path) == contents(tmp_path / "1" / of_fold(0).path)
    assert merged.faults == 0
    # A further start beats more steps of the one before it.
    attempt(replace(went_on, directory=tmp_path / "2" / of_fold(0).path), 2, "b")
    merged, _ = merged_text(*(tmp_path / str(n) for n in order), out=tmp_path / "out")
    assert contents(tmp_path / "out" / of_fold(0).path) == contents(tmp_path / "2" / of_fold(0).path)
    assert merged.faults == 0


def test_settings_that_differ_are_named(tmp_path: Path) -> None:
    for name, rate in (("a", 0.1), ("b", 0.2)):
        cell = made(tmp_path / name, name, 0, 50.0)
        identity = json.loads(cell.identity_file.read_text())
        cell.identity_file.write_text(json.dumps({**identity, "identity": {"train.lr": rate}, "fingerprint": name}))
        result = cell.result()
        assert result is not None
        git = {"git": {"commit": name * 12, "dirty": name == "b"}}
        write_record(cell.result_file, msgspec.structs.replace(result, fingerprint=name, provenance=git))
    _, lines = merged_text(tmp_path / "a", tmp_path / "b", out=tmp_path / "out")
    told = ("mIoU 50.00  FB-IoU 80.00 | mIoU 50.00  FB-IoU 80.00", "train.lr: 0.1 | 0.2", "fingerprint: a | b",
            f"commit: {'a' * 10} | {'b' * 10} with changes", "run: a | b")  # fmt: skip
    assert [line.strip() for line in lines[4:]][: len(told)] == list(told)


def test_what_is_torn_in_the_folder_is_mended_by_a_whole_copy_of_the_same_result(tmp_path: Path) -> None:
    made(tmp_path / "a", "r", 0, 50.0)
    merge([str(tmp_path / "a")], tmp_path / "out")
    here = RunDirectory(tmp_path / "out" / of_fold(0).path)
    here.episodes_file.write_bytes(b"half")
    here.checkpoint.unlink()
    merged, lines = merged_text(tmp_path / "out", out=tmp_path / "out")
    assert (merged.faults, f"not whole: {here.directory}: episodes.npz" in "\n".join(lines)) == (1, True)
    merged, _ = merged_text(tmp_path / "a", tmp_path / "out", out=tmp_path / "out")
    assert (merged.faults, merged.cells[0].brought) == (0, 2)
    assert contents(here.directory) == contents(tmp_path / "a" / of_fold(0).path)
    here.result_file.write_text("{")
    before = files(tmp_path / "out")
    merged, lines = merged_text(tmp_path / "a", out=tmp_path / "out")
    assert merged.faults == 1
    assert f"{here.directory}: here result.json is not JSON" in "\n".join(lines)
    assert files(tmp_path / "out") == before


def test_moving_leaves_only_what_is_not_in_place(servers: list[Path], tmp_path: Path) -> None:
    a, b, c = servers
    expected = contents(c / of_fold(3).path)
    stays = [a / of_fold(1).path, a / of_fold(2).path, b / of_fold(2).path, a / of_fold(3).path,
             b / of_fold(0, shot=5).path, c / of_fold(1, shot=5).path, a / of_fold(2, shot=5).path,
             b / of_fold(1).path]  # fmt: skip
    before = {path: contents(path) for path in stays}
    out = tmp_path / "all"
    merged, lines = merged_text(*servers, out=out, how=How.MOVE)
    assert {path: contents(path) for path in stays} == before
    assert sorted(run.directory for run in find_runs(servers)) == sorted(stays)
    assert not list(tmp_path.rglob(".merged*"))
    assert not (c / of_fold(3).path.parent).exists()
    assert contents(out / of_fold(3).path) == expected
    assert ", 7 removed where they were; in" in lines[0]
    after = files(tmp_path)
    merged, again = merged_text(*servers, out=out, how=How.MOVE)
    assert again[0].startswith("nothing to do: ")
    assert files(tmp_path) == after
    assert merged.faults == 2


def test_a_copy_that_is_not_the_same_is_not_moved(tmp_path: Path) -> None:
    there, out = made(tmp_path / "a", "r", 0, 50.0), tmp_path / "out"
    merge([str(tmp_path / "a")], out)
    there.log_file.write_text("other words\n")
    (there.directory / "notes.txt").symlink_to(tmp_path / "elsewhere.txt")
    before = contents(there.directory)
    merged, lines = merged_text(tmp_path / "a", out=out, how=How.MOVE)
    assert f"stays there: {there.directory}: its train.log differs from the one in" in "\n".join(lines)
    shutil.copyfile(there.log_file, out / of_fold(0).path / "train.log")
    (tmp_path / "elsewhere.txt").write_text("of mine")
    merged, lines = merged_text(tmp_path / "a", out=out, how=How.MOVE)
    assert "these were not copied: notes.txt" in "\n".join(lines)
    assert contents(there.directory) == {**before, "notes.txt": b"of mine"}
    assert merged.faults == 0


LEFT = (".notes", ".git/config", "draft.tmp", "figures/.mine/a.png", "checkpoints/best.new", ".left-abc/result.json",
        ".work-abc/aside/result.json", ".work-abc/def/aside/checkpoints/last.pt")  # fmt: skip


@pytest.mark.parametrize("name", LEFT)
def test_what_never_travels_but_is_no_leftover_keeps_a_run_from_being_removed(name: str, tmp_path: Path) -> None:
    """Hidden files of the user's, and what `fsseg.cell.fence` keeps of a run that was being set aside."""
    there = made(tmp_path / "a", "r", 0, 50.0)
    mine = there.directory / name
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.write_text("of mine")
    for _ in range(2):
        merged, lines = merged_text(tmp_path / "a", out=tmp_path / "out", how=How.MOVE)
        assert f"stays there: {there.directory}: these were not copied: {name}" in "\n".join(lines)
        assert (mine.read_text(), merged.faults) == ("of mine", 0)
    assert contents(tmp_path / "out") == {n: c for n, c in contents(tmp_path / "a").items() if not n.endswith(name)}


def test_leftovers_of_killed_processes_go_with_a_run_that_is_moved(tmp_path: Path) -> None:
    there = made(tmp_path / "a", "r", 0, 50.0)
    (tmp_path / "a" / ".merged-notes").mkdir()
    (tmp_path / "a" / f".merged-{'0f' * 16}").mkdir()  # what another command was removing
    for name in (".work-abc/.last.pt.0f.tmp", ".pulled/.0a.tmp", "checkpoints/.last.pt.1c.tmp", "sync.json",
                 ".claim.json.7d.old", "used_by/0.json", ".replaced/result.json", "episodes.part"):  # fmt: skip
        (there.directory / name).parent.mkdir(exist_ok=True)
        (there.directory / name).write_text("{}")
    merged, _ = merged_text(tmp_path / "a", out=tmp_path / "out", how=How.MOVE)
    assert (merged.cells[0].removed, there.directory.exists()) == (1, False)
    assert [path.name for path in (tmp_path / "a").iterdir()] == [".merged-notes"]


def test_a_result_behind_a_link_out_of_the_run_is_no_whole_copy(tmp_path: Path) -> None:
    there = made(tmp_path / "a", "r", 0, 50.0)
    for file in (there.result_file, there.identity_file):
        outside = tmp_path / file.name
        file.rename(outside)
        file.symlink_to(outside)
        merged, lines = merged_text(tmp_path / "a", out=tmp_path / "out")
        assert f"not whole: {there.directory}: {file.name} is a link out of the run" in "\n".join(lines)
        assert (merged.faults, (tmp_path / "out").exists()) == (1, False)
        file.unlink()
        outside.rename(file)


def test_claims_of_machines_that_are_silent_are_watched_all_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copied with its claim, as `rsync -a` does it: nobody knows whether the holder lives until it has been watched."""
    for fold in range(4):
        there = made(tmp_path / "a", f"r{fold}", fold, step=5)
        there.claim_file.write_text(json.dumps({"token": f"{fold}", "host": "elsewhere", "pid": 1}))
        os.utime(there.claim_file, (1000, 1000))
    all_there = threading.Barrier(4)

    def watched(path: Path, holder: Holder) -> bool:
        all_there.wait(30)  # fails unless the four are here together
        return True

    monkeypatch.setattr("fsseg.cell.claim.is_stale", watched)
    merged, _ = merged_text(tmp_path / "a", out=tmp_path / "out", how=How.MOVE)
    assert (merged.faults, sum(cell.removed for cell in merged.cells)) == (0, 4)
    assert not (tmp_path / "a" / "runs").exists()


def test_links_share_what_a_run_writes_once_and_no_log(tmp_path: Path) -> None:
    there = made(tmp_path / "a", "r", 0, step=5)
    there.log_file.chmod(0o444)
    there.checkpoint.chmod(0o444)
    there.tracker_log("aim").parent.mkdir()
    there.tracker_log("aim").write_text("words of the tool\n")
    here = RunDirectory(tmp_path / "out" / of_fold(0).path)
    _, lines = merged_text(tmp_path / "a", out=tmp_path / "out", how=How.LINK)
    assert os.path.samefile(here.checkpoint, there.checkpoint)
    assert not os.path.samefile(here.log_file, there.log_file)
    assert not os.path.samefile(here.tracker_log("aim"), there.tracker_log("aim"))
    assert not any("not linked" in line for line in lines)
    here.note("it goes on")
    assert "goes on" not in there.log_file.read_text()


def test_without_links_files_are_copied_and_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = made(tmp_path / "a", "r", 0, 50.0)
    link = os.link

    def refusing(source: Any, target: Any, **more: Any) -> None:
        if Path(source).is_relative_to(tmp_path / "a"):
            raise OSError(errno.EXDEV, "another device")
        link(source, target, **more)

    monkeypatch.setattr(local.os, "link", refusing)
    _, lines = merged_text(tmp_path / "a", out=tmp_path / "out", how=How.LINK)
    assert (
        lines[-1]
        == f"7 files copied and not linked: {tmp_path / 'out'} is on another file system, or cannot have links"
    )
    assert contents(tmp_path / "out" / of_fold(0).path) == contents(there.directory)


@pytest.mark.skipif(os.getuid() == 0 and not shutil.which("unshare"), reason="root writes everywhere")
def test_a_source_that_cannot_be_written_is_enough(tmp_path: Path) -> None:
    there = made(tmp_path / "a", "r", 0, 50.0)
    folders = [p for p in [tmp_path / "a", *(tmp_path / "a").rglob("*")] if p.is_dir()]
    for folder in folders:
        folder.chmod(0o555)
    before = files(tmp_path / "a")
    try:
        merge([str(tmp_path / "a")], tmp_path / "out")
        assert contents(tmp_path / "out" / of_fold(0).path) == contents(there.directory)
        assert files(tmp_path / "a") == before
    finally:
        for folder in folders:
            folder.chmod(0o755)


def test_the_output_folder_may_be_a_source_and_lie_in_one_and_hold_one(tmp_path: Path) -> None:
    made(tmp_path / "out", "r0", 0, 50.0)
    made(tmp_path / "out" / "server", "r1", 1, 51.0)  # brought over into the folder itself
    made(tmp_path / "b", "r2", 2, 52.0)
    (tmp_path / "again").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "up").symlink_to(tmp_path)
    own = files(tmp_path / "out")
    sources = [tmp_path / "out", tmp_path / "b", tmp_path / "again", tmp_path]
    merged, lines = merged_text(*sources, out=tmp_path / "out")
    assert files(tmp_path / "out").items() >= own.items()
    assert [cell.state for cell in merged.cells] == [State.DONE] * 3
    assert merged.faults == 0
    assert lines[0].startswith("3 cells in 3 copies: 2 brought")
    after = files(tmp_path)
    _, lines = merged_text(*sources, out=tmp_path / "out", how=How.MOVE)
    assert ", 2 removed where they were; in" in lines[0]  # of `b`, to which `again` leads too, and of `out/server`
    assert {s.miou for s in (run.look() for run in find_runs([tmp_path / "out"]))} == {50.0, 51.0, 52.0}
    assert set(files(tmp_path)) < set(after)


ODD = ("a name", "100%s", "naïve-中文", "two\nlines", "'$(x)`", "x" * 100)


@pytest.mark.parametrize("name", ODD)
def test_odd_names_survive(name: str, tmp_path: Path) -> None:
    key = {"name": name, "variant": name}
    there = made(tmp_path / f"server {name}", "r", 0, 50.0, **key)
    there.figures.mkdir()
    (there.figures / f"{name}.png").write_bytes(b"x")
    out = tmp_path / f"out {name}"
    for how in (How.COPY, How.MOVE):
        merged, lines = merged_text(tmp_path / f"server {name}", out=out, how=how)
        assert merged.faults == 0
        assert all(line.isprintable() for line in lines)
    assert (out / of_fold(0, **key).path / "figures" / f"{name}.png").read_bytes() == b"x"
    assert not there.directory.exists()


def test_a_renamed_folder_comes_to_the_place_of_its_cells_and_tables_stay_behind(tmp_path: Path) -> None:
    there = made(tmp_path / "a", "r", 0, 50.0)
    new_sweep(tmp_path / "a" / "runs", sweep_of("a", 1.0, 0))
    (tmp_path / "a" / "runs").rename(tmp_path / "a" / "server1")
    aggregate([tmp_path / "a" / "server1"], tmp_path / "a" / "runs-summary")
    merge([str(tmp_path / "a")], tmp_path / "out")
    assert there.key.path in [run.directory.relative_to(tmp_path / "out") for run in find_runs([tmp_path / "out"])]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["runs"]
    assert sorted(p.name for p in (tmp_path / "out" / "runs").iterdir()) == ["shapes5i", "sweeps"]


# ------------------------------------------------------------------------------------------------------------- sweeps


def sweep_of(host: str, started_at: float, *folds: int, end: str | None = "ended", name: str = "runs") -> SweepRecord:
    cells = [SweptCell(of_fold(f).path.relative_to("runs").as_posix(), [f"fold={f}"], "f" * 16) for f in folds]
    record = SweepRecord(line=["fold=0,1"], cells=cells, host=host, pid=7, started=started_at, end=end)
    record.share([{"name": name, "fold": f} for f in folds or (0,)])
    return record


def test_records_of_sweeps_come_once_and_status_knows_what_never_started(tmp_path: Path) -> None:
    a, b, out = tmp_path / "a", tmp_path / "b", tmp_path / "out"
    made(a, "r0", 0, 50.0)
    made(b, "r1", 1, 51.0)
    new_sweep(out / "runs", sweep_of("here", 300.0, 9))
    new_sweep(a / "runs", sweep_of("a", 100.0, 0, 4, end="was cancelled"))
    new_sweep(b / "runs", sweep_of("b", 200.0, 1, 4, end=None))
    _, lines = merged_text(a, b, out=out)
    assert "2 records of sweeps brought" in lines[0]
    assert [s.record.host for s in sweeps_of([out / "runs"])] == ["a", "b", "here"]  # by their time, not by number
    assert [s.file.name for s in sweeps_of([out / "runs"])] == ["2.json", "3.json", "1.json"]
    cells = {s.directory: s for s in status.look_around([out]).cells}
    assert cells[out / of_fold(0).path].state == State.DONE
    assert cells[out / of_fold(4).path].state == State.STOPPED
    assert cells[out / of_fold(4).path].reason.endswith("sweep 3 on b was killed")
    before = files(out)
    assert merged_text(a, b, out=out)[1][0].startswith("nothing to do: ")
    assert files(out) == before
    # The sweep of b has ended meanwhile.
    (one,) = sweeps_of([b / "runs"])
    one.record.end = "ended"
    one.save()
    merge([str(a), str(b)], out)
    assert [s.record.end for s in sweeps_of([out / "runs"])] == ["was cancelled", "ended", "ended"]
    merge([str(a), str(b)], out, How.MOVE)
    assert not (a / "runs").exists()
    assert len(sweeps_of([out / "runs"])) == 3


def test_a_sweep_at_work_stays_where_it_is(tmp_path: Path) -> None:
    sweep = new_sweep(tmp_path / "a" / "runs", sweep_of("a", 100.0, 0, end=None))
    claim = acquire(sweep.claim_file, 300)
    made(tmp_path / "a", "r0", 0, 50.0)
    _, lines = merged_text(tmp_path / "a", out=tmp_path / "out", how=How.MOVE)
    assert f"  stays there: {sweep.file}: process {os.getpid()} on" in "\n".join(lines)
    assert sweep.file.exists()
    assert not (tmp_path / "out" / "runs" / "sweeps").exists()
    claim.release()


# ----------------------------------------------------------------------------------------------- checkpoints in use


def test_a_checkpoint_that_a_merged_cell_began_from_stays_in_use(tmp_path: Path) -> None:
    """The notes of its users come along, and say where these are now; `fsseg clean` keeps what they need."""
    a, out = tmp_path / "a", tmp_path / "out"
    base = made(a, "r0", 0, 50.0)
    user = made(a, "r1", 1, 51.0)
    user.config_file.write_text(f"name: runs\ncheckpoint: {base.checkpoint}\n")
    uses.note(base.checkpoint, user.directory)
    merge([str(a)], out, How.MOVE)
    here = RunDirectory(out / of_fold(0).path)
    assert uses.users(here) == [out / of_fold(1).path]
    notes: list[str] = []
    kept = {item.path for item in find_waste([out], notes)}
    assert here.checkpoint not in kept
    assert out / of_fold(1).path / "checkpoints" / "last.pt" in kept
    assert any("which is not here: what ends like it stays" in note for note in notes)


# ------------------------------------------------------------------------------------------------------------ stores


def test_a_store_is_a_source_like_a_folder(tmp_path: Path) -> None:
    url, out = f"file://{tmp_path}/store", tmp_path / "out"
    one = made(tmp_path / "a", "r0", 0, 50.0)
    two = made(tmp_path / "a", "r1", 1, step=6)
    for cell in (one, two):
        sync.push(cell, url, checkpoints=True)
    torn = made(tmp_path / "a", "r2", 2, 40.0)
    sync.push(torn, url)
    stored = tmp_path / "store" / torn.key.path
    (stored / "episodes.npz").write_bytes(b"half")
    made(tmp_path / "b", "other", 0, 51.0)
    made(tmp_path / "b", "r1", 1, step=4)
    merged, lines = merged_text(url, tmp_path / "b", out=out)
    told = "\n".join(lines)
    assert merged.faults == 2
    assert f"    {url}/{one.key.path}\n    {tmp_path / 'b' / one.key.path}\n      mIoU 50.00" in told
    assert f"not brought: {url}/{torn.key.path}: the copy there is no whole run: episodes.npz is not what" in told
    assert find_runs([out])[0].directory == out / two.key.path
    two.sync_file.unlink()
    assert contents(out / two.key.path) == contents(two.directory)
    with pytest.raises(UserError, match="is no folder of this machine"):
        merge([url], out, How.MOVE)


def test_wrong_lines_end_in_two_lines(tmp_path: Path) -> None:
    cell = made(tmp_path / "a", "r", 0, 50.0)
    with pytest.raises(UserError, match="no folder"):
        merge([str(tmp_path / "none")], tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no run found"):
        merge([str(tmp_path / "empty")], tmp_path / "out")
    with pytest.raises(UserError, match="is the folder of one experiment"):
        merge([str(tmp_path / "a")], tmp_path / "a" / "runs")
    with pytest.raises(UserError, match="is no folder"):
        merge([str(tmp_path / "a")], cell.log_file)
    with pytest.raises(UserError, match="exclude each other"):
        command([str(tmp_path / "a")], out=tmp_path / "out", move=True, link=True)


# ------------------------------------------------------------------------------------------------------- interrupted


class Cut(BaseException):
    """The process is gone: nothing after this is done."""


@pytest.mark.parametrize(
    ("place", "how", "points"),
    [("put", How.COPY, (0, 8, 15, 23, 27)), ("put", How.LINK, (16,)), ("copyfile", How.COPY, (0, 7, 9)),
     ("link", How.LINK, (3,)), ("rename", How.MOVE, (0, 1)), ("rmtree", How.MOVE, (0, 1)),
     ("new_sweep", How.MOVE, (0,)), ("uses", How.COPY, (0,))],
)  # fmt: skip
def test_a_merge_that_is_cut_short_anywhere_goes_on(
    place: str, how: How, points: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At calls of one kind: no half run, nothing lost; the next command ends in the same as one that was not cut."""
    module, name = {"put": (copies_module, "put"), "copyfile": (local.shutil, "copyfile"), "link": (local.os, "link"),
                    "rename": (local.os, "rename"), "rmtree": (local.shutil, "rmtree"),
                    "new_sweep": (merge_module, "new_sweep"), "uses": (merge_module.uses, "note")}[place]  # fmt: skip
    original = getattr(module, name)
    for point in points:
        root, whole = tmp_path / f"{point}", tmp_path / f"{point}whole"
        done, _ = made(root / "a", "r0", 0, 50.0), made(root / "a", "r1", 1, step=5)
        made(root / "out", "r1", 1, step=3)
        uses.note(done.checkpoint, root / "a" / of_fold(1).path)
        new_sweep(root / "a" / "runs", sweep_of("a", 1.0, 0))
        shutil.copytree(root, whole)
        merge([str(whole / "a")], whole / "out", how)
        calls: list[Any] = []

        def cut(*args: Any, calls: list[Any] = calls, point: int = point, root: Path = root, **more: Any) -> Any:
            ours = Path(args[0]).is_relative_to(root / "a") and "claim" not in Path(args[0]).name
            if ours or place not in ("rename", "link"):
                if len(calls) == point:
                    raise Cut
                calls.append(args)
            return original(*args, **more)

        with monkeypatch.context() as broken:
            broken.setattr(module, name, cut)
            with pytest.raises(Cut):
                merge([str(root / "a")], root / "out", how)
        for run in find_runs([root / "out"]):
            seen = run.look()
            assert seen.state != State.BROKEN
            assert seen.result is None or run.episodes() is not None
            assert not run.checkpoint.exists() or zipfile.is_zipfile(run.checkpoint)
        assert merge([str(root / "a")], root / "out", how).faults == 0
        for folder in ("out", "a"):
            assert without_notes(root / folder) == without_notes(whole / folder)


def without_notes(folder: Path) -> dict[str, bytes]:
    """The notes of users name absolute places."""
    return {name: content for name, content in contents(folder).items() if "used_by" not in name}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shapes5i")


@pytest.mark.process
@pytest.mark.filterwarnings("ignore")
def test_an_unfinished_cell_goes_on_in_the_merged_folder_to_the_last_bit(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linked: what the run goes on to write must not change the files of the folder that it came from."""
    how = How.LINK
    whole = done(composed(root, tmp_path / "whole"))
    first = composed(root, tmp_path / "a")
    with monkeypatch.context() as stopping:
        stop_at(3, stopping)
        with pytest.raises(SystemExit):
            done(first)
    before = contents(tmp_path / "a")
    merged, _ = merged_text(tmp_path / "a", out=tmp_path / "out", how=how)
    assert [cell.state for cell in merged.cells] == [State.PREEMPTED]
    c = composed(root, tmp_path / "out")
    assert numbers(done(c)) == numbers(whole)
    cell = cell_of(c)
    assert cell.last_attempt()[0] == 2
    assert cell.episodes_file.read_bytes() == cell_of(composed(root, tmp_path / "whole")).episodes_file.read_bytes()
    assert cell.metrics_file.read_text().count("\n") == 1 + 8  # a line for each step, none twice
    assert contents(tmp_path / "a") == before
    # What it came from is an earlier state by now.
    after = files(tmp_path / "out")
    merged, _ = merged_text(tmp_path / "a", out=tmp_path / "out", how=how)
    assert merged.faults == 0
    assert files(tmp_path / "out") == after


@pytest.mark.process
@pytest.mark.parametrize("how", [How.COPY, How.MOVE])
def test_a_killed_command_goes_on_without_a_trace(how: How, tmp_path: Path) -> None:
    """SIGKILL after some time, again and again, until one comes to its end."""
    for fold in range(4):
        cell = made(tmp_path / "a", f"r{fold}", fold, 50.0 + fold if fold % 2 else None)
        (cell.directory / "large.bin").write_bytes(os.urandom(1 << 20))
    shutil.copytree(tmp_path / "a", tmp_path / "kept")
    out, kills = tmp_path / "out", 0
    line = [sys.executable, "-m", "fsseg", "merge", str(tmp_path / "a"), "--out", str(out), f"--{how.value}"]
    for wait in (0.01, 0.03, 0.1, 0.05, 0.2, 0.4, None):
        process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
        until = time.monotonic() + 60
        while process.poll() is None and not (out / "runs").exists() and time.monotonic() < until:
            time.sleep(0.002)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(wait)
        if process.poll() is None:
            process.kill()
            kills += 1
        process.communicate()
        for run in find_runs([out]) if out.exists() else []:
            assert run.look().state != State.BROKEN
    assert kills >= 2
    assert process.returncode == 0
    # What is there says nothing of the kills: no claim, no hidden folder. A claim that was being made when its process
    # was killed may be somebody's who is alive, as far as another process can tell: `fsseg clean` removes it later.
    left = {name: content for name, content in contents(out).items() if "/.claim.json." not in name}
    assert left == contents(tmp_path / "kept")
    assert not [p for p in out.rglob(".*") if p.is_dir()]
    assert contents(tmp_path / "a") == (contents(tmp_path / "kept") if how == How.COPY else {})
