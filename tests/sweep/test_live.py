"""The live view of `fsseg status --watch`: what it draws at which size, what keys do, and how it leaves a terminal."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from run_directories import KEY, make_run

from fsseg.cell.record import RunDirectory
from fsseg.sweep.live import View
from fsseg.sweep.status import look_around, watch

EVIL = "\x1b[2J\x1b]0;title\x07evil [red]not red[/red]\u202e"


def grid(root: Path, done: int = 2) -> RunDirectory:
    """Cells that are done, one that runs, one that failed: this one is returned."""
    for fold in range(done):
        make_run(root, replace(KEY, fold=fold), result=50.0 + fold)
    make_run(root, replace(KEY, fold=90), status={
        "state": "running", "phase": "train", "step": 5, "steps": 9, "seconds_per_step": 0.5, "eta_seconds": 3600.0,
    })  # fmt: skip
    failed = make_run(root, replace(KEY, fold=91), status={"state": "failed", "reason": "[red]bad\x1b[31m"})
    failed.log_file.write_text("".join(f"line {n}\n" for n in range(99)) + EVIL + "\n")
    return failed


def view_of(root: Path) -> View:
    return View(look_around([root], []))


def plain(view: View, width: int, height: int) -> list[str]:
    return [line.plain for line in view.lines(width, height)]


def test_a_frame_has_counts_bars_rates_cells_and_the_end_of_failed_logs(tmp_path: Path) -> None:
    grid(tmp_path)
    lines = plain(view_of(tmp_path), 100, 30)
    assert re.fullmatch(r"\d\d:\d\d:\d\d  4 cells", lines[0])
    assert re.match(r"  done +2  █{20}$", lines[1])  # half of 40
    assert re.match(r"  running +1  █{10}$", lines[2])
    assert lines[4] == "2 steps/s, about 60 min to go, 1 cell to be run again"
    assert lines[6].startswith("> failed     fold91/seed0  [red]bad\\x1b[31m")
    assert lines[7].startswith("  running    fold90/seed0  train, 5/9, ")
    assert lines[8].startswith("  done       fold0/seed0  mIoU 50.00")
    assert lines[-4:-1] == ["fold91/seed0", "  line 98", "  evil [red]not red[/red]\\u202e"]


@pytest.mark.parametrize(("width", "height"), [(60, 20), (60, 10), (30, 5), (200, 60), (1, 1)])
def test_a_frame_fits_any_terminal(tmp_path: Path, width: int, height: int) -> None:
    grid(tmp_path, done=30)
    view = view_of(tmp_path)
    for key in ("", "G", "enter"):
        if key:
            view.press(key)
        lines = view.lines(width, height)
        assert len(lines) <= height
        assert all(line.cell_len <= width for line in lines)


def test_a_narrow_frame_keeps_the_end_of_names(tmp_path: Path) -> None:
    grid(tmp_path)
    make_run(tmp_path, replace(KEY, name="other", variant="v" * 60), status="failed")
    rows = [line for line in plain(view_of(tmp_path), 60, 20) if line[2:].startswith(("failed", "done"))]
    assert any("…" in row and "/fold91/seed0" in row for row in rows)


def test_keys_choose_a_cell_and_open_its_log(tmp_path: Path) -> None:
    failed = grid(tmp_path)
    view = view_of(tmp_path)
    for key, fold in (("down", 90), ("j", 0), ("G", 1), ("up", 0), ("k", 90), ("home", 91), ("k", 91)):
        assert view.press(key)
        row = next(line for line in plain(view, 100, 30) if line.startswith("> "))
        assert f"fold{fold}/seed0" in row
    assert view.press("enter")
    lines = plain(view, 100, 12)
    assert lines[0] == f"failed  {KEY.path.parents[1]}/fold91/seed0"
    assert lines[1:-1] == [*(f"  line {n}".strip() for n in range(90, 99)), "evil [red]not red[/red]\\u202e"]
    view.press("up")
    assert plain(view, 100, 12)[1] == "line 89"
    failed.log_file.write_text("new\n")
    view.see(look_around([tmp_path], []), [])
    assert view.log == ["new"]
    assert view.press("q")  # back to the list
    assert not view.press("q")


def test_no_markup_or_command_reaches_the_terminal(tmp_path: Path) -> None:
    grid(tmp_path)
    view, out = view_of(tmp_path), io.StringIO()
    console = Console(file=out, force_terminal=True, width=120, color_system="truecolor")
    for key in ("j", "k", "enter"):
        view.press(key)
        for line in view.lines(120, 40):
            console.print(line)
    rest = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    assert "[red]not red[/red]" in rest
    assert rest.replace("\n", "").isprintable()


def test_without_a_terminal_the_text_is_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path, KEY, result=50.0)
    watch([tmp_path])
    assert re.match(r"\d\d:\d\d:\d\d  1 cells: 1 done\n", capsys.readouterr().out)


class Terminal:
    """`fsseg status --watch` in a pseudo terminal."""

    def __init__(self, root: Path, width: int, height: int) -> None:
        self.ours, self.theirs = pty.openpty()
        self.resize(width, height)
        self.before = termios.tcgetattr(self.theirs)
        self.out = b""
        code = (
            "import sys; from fsseg.cli.app import main; sys.argv = ['fsseg', 'status', '--watch', sys.argv[1]]; main()"
        )
        self.pid = os.fork()
        if self.pid == 0:
            _controlled_by(self.theirs)
            environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
            os.execve(sys.executable, [sys.executable, "-c", code, str(root)], environment | {"TERM": "xterm"})

    def resize(self, width: int, height: int) -> None:
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def wait_for(self, text: bytes, seconds: float = 60) -> bytes:
        """Read on until the text is there; what was read since the last call."""
        end, read = time.monotonic() + seconds, b""
        while text not in read:
            assert time.monotonic() < end, (text, read)
            if select.select([self.ours], [], [], 0.1)[0]:
                read += os.read(self.ours, 1 << 16)
        self.out += read
        return read

    def end(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def _controlled_by(terminal: int) -> None:
    os.setsid()
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
    for stream in range(3):
        os.dup2(terminal, stream)


@pytest.mark.process
@pytest.mark.parametrize("how", ["q", "ctrl-c", "TERM"])
def test_the_terminal_is_left_as_it_was(tmp_path: Path, how: str) -> None:
    grid(tmp_path)
    terminal = Terminal(tmp_path, 60, 20)
    terminal.wait_for(b"q quit")
    assert termios.tcgetattr(terminal.theirs)[3] & termios.ECHO == 0
    terminal.resize(100, 30)
    assert b"heard of" in terminal.wait_for(b"q quit")  # what 60 columns have no room for
    os.write(terminal.ours, b"j\x1b[A\r")
    terminal.wait_for(b"q back")
    os.write(terminal.ours, b"q")
    terminal.wait_for(b"q quit")
    if how == "TERM":
        os.kill(terminal.pid, signal.SIGTERM)
    else:
        os.write(terminal.ours, b"q" if how == "q" else b"\x03")
    terminal.wait_for(b"\x1b[?1049l")  # the screen that was there before
    status = terminal.end()
    assert status == (143 if how == "TERM" else 0)
    assert termios.tcgetattr(terminal.theirs) == terminal.before
    assert b"\x1b]0;" not in terminal.out
    assert b"\x1b[2Jevil" not in terminal.out
