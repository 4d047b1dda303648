"""`fsseg logs`: which cell is meant, which files are shown, and what reaches a terminal."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import fsseg
from run_directories import KEY, make_run

from fsseg.cell.models import State
from fsseg.cell.record import RunDirectory
from fsseg.cell.status import write_state
from fsseg.cell.sweeps import SweepRecord, SweptCell, new_sweep
from fsseg.sweep import follow
from fsseg.sweep.follow import choose, last_lines, logs, shown_line


def cell(root: Path, lines: str = "begin\n", **changes: object) -> RunDirectory:
    run = make_run(root, replace(KEY, **changes), status={"state": "failed", "reason": "out of memory"})  # type: ignore[arg-type]
    run.log_file.write_text(lines)
    return run


def test_a_run_directory_shows_its_log(tmp_path: Path) -> None:
    run = cell(tmp_path, "12:00:00 one\n12:00:01 two\n")
    assert fsseg("logs", str(run.directory)).stdout == "12:00:00 one\n12:00:01 two\n"
    assert fsseg("logs", str(run.directory), "--lines", "1").stdout == "12:00:01 two\n"


def test_a_part_that_is_a_whole_piece_of_a_name_comes_first(tmp_path: Path) -> None:
    for fold in (1, 10, 11):
        cell(tmp_path, f"fold {fold}\n", fold=fold)
    assert list(logs([str(tmp_path), "fold1"])) == ["fold 1"]
    assert list(logs([str(tmp_path), "old10"])) == ["fold 10"]


def test_several_cells_that_fit_are_named_in_two_lines(tmp_path: Path) -> None:
    cell(tmp_path, fold=0), cell(tmp_path, fold=1)
    done = fsseg("logs", str(tmp_path), "abcb")
    assert (done.returncode, done.stdout) == (1, "")
    what, fix = done.stderr.splitlines()
    assert "2 cells fit abcb: " in what
    assert "fold0/seed0, runs/pascal5i/abcb/resnet50/1shot/default/fold1/seed0" in what
    assert fix.startswith("  -> add a part")


def test_no_cell_that_fits_ends_in_two_lines(tmp_path: Path) -> None:
    cell(tmp_path)
    assert "no cell below" in fsseg("logs", str(tmp_path), "nothing").stderr
    assert len(fsseg("logs", str(tmp_path / "absent")).stderr.splitlines()) == 2


def swept(root: Path, run: RunDirectory, job: str, log: Path) -> None:
    path = str(run.directory.relative_to(root / "runs"))
    new_sweep(root / "runs", SweepRecord([], [SweptCell(path, [], "f", job=job, log=str(log))], "slurm", user=0))


def test_a_job_names_its_cell_and_its_output_follows_the_log(tmp_path: Path) -> None:
    run, out = cell(tmp_path, "trained\n"), tmp_path / "12_3_0_log.out"
    cell(tmp_path, fold=1)
    out.write_text("srun: killed")
    swept(tmp_path, run, "12_3", out)
    assert list(logs([str(tmp_path), "12_3"])) == [
        f"==> {run.log_file} <==", "trained", f"==> {out} <==", "srun: killed",
    ]  # fmt: skip


def test_a_cell_that_never_started_says_why_it_has_no_log(tmp_path: Path) -> None:
    run = make_run(tmp_path, KEY, result=50.0)
    swept(tmp_path, RunDirectory(run.directory.parents[1] / "fold1" / "seed0"), "12_4", tmp_path / "none.out")
    done = fsseg("logs", str(tmp_path), "fold1")
    assert "has no log: stopped, never started" in done.stderr
    assert len(done.stderr.splitlines()) == 2


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (b"\x1b[31mred\x1b[0m \x1b]0;title\x07[red]text[/red]", "red [red]text[/red]"),
        (b"10%\r20%\r100%\n", "100%"),
        (b"bell\x07 null\x00 \xff", "bell\\x07 null\\x00 \\xff"),
        ("turned \u202e round".encode(), "turned \\u202e round"),
        (b"\x1b", "\\x1b"),
        (b"\x1bP+q544e\x1b\\after \x9b31m", "after \\x9b31m"),
        (b"a\tb", "a       b"),
    ],
)
def test_no_command_to_the_terminal_gets_through(line: bytes, shown: str) -> None:
    assert shown_line(line) == shown
    assert shown_line(line).isprintable()


def test_the_last_lines_of_a_large_log_are_read_from_its_end(tmp_path: Path) -> None:
    file = tmp_path / "train.log"
    file.write_text("".join(f"line {n}\n" for n in range(300_000)) + "cut sho")
    assert last_lines(file, 3) == ["line 299998", "line 299999", "cut sho"]
    assert last_lines(file, 0) == []


def test_following_goes_through_a_rotation_and_a_resume_and_ends_with_the_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "_PAUSES", (0.02, 0.05))
    run = make_run(tmp_path, KEY, status={"state": "running", "phase": "train"})
    run.log_file.write_text("one\ntwo\n")
    seen: list[str] = []
    reader = threading.Thread(target=lambda: seen.extend(logs([str(run.directory)], 1, follow=True)))
    reader.start()

    def waits() -> bool:
        time.sleep(0.3)
        return reader.is_alive()

    assert waits()
    with run.log_file.open("a") as file:
        file.write("three\nhalf")
    assert waits()
    run.log_file.rename(run.directory / "train.log.1")
    run.log_file.write_text("four\n")
    assert waits()
    run.log_file.write_text("5\n")  # cut back
    assert waits()
    with run.log_file.open("a") as file:
        file.write("last, without an end")
    write_state(run, State.FAILED, "out of memory")
    reader.join(20)
    assert seen == [
        "two", "three", "half", "four", "5", "last, without an end", f"{KEY}: failed, out of memory",
    ]  # fmt: skip


def test_a_cell_that_is_over_is_shown_and_not_waited_for(tmp_path: Path) -> None:
    run = cell(tmp_path, "one\n")
    begun = time.monotonic()
    assert list(logs([str(run.directory)], follow=True)) == ["one", f"{KEY}: failed, out of memory"]
    assert time.monotonic() - begun < 2


def test_one_cell_of_a_folder_needs_no_part(tmp_path: Path) -> None:
    run = cell(tmp_path)
    assert choose([str(tmp_path)])[0].run == run
