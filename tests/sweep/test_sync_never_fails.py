"""The copy at the end of a run: whatever happens to it, the run is finished."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from copies import REMOTE, configured, started

from fsseg.process.logs import configure_logging
from fsseg.sweep import sync
from fsseg.sweep.store import Store, Tries

INFINITE = float("inf")


@pytest.mark.parametrize("seconds", [INFINITE, 1e300, 1e18, 3e9, float("nan"), 0.0, -1.0, -INFINITE], ids=str)
def test_no_time_limit_fails_a_run(seconds: float, tmp_path: Path) -> None:
    cell = started(tmp_path / "local", "a", miou=50.0)
    sync.sync_cell(configured(f"file://{tmp_path}/store", timeout_seconds=seconds), cell)
    arrived = (tmp_path / "store" / REMOTE / "result.json").is_file()
    assert arrived == (seconds > 0)


@pytest.mark.parametrize("attempts", [0, -1, 10**18])
def test_no_number_of_attempts_fails_a_run(attempts: int, tmp_path: Path) -> None:
    cell = started(tmp_path / "local", "a", miou=50.0)
    (tmp_path / "store").write_text("in the way")
    url = f"file://{tmp_path}/store"
    sync.sync_cell(configured(url, attempts=attempts, timeout_seconds=0.3), cell)
    assert cell.copied().pending


def test_the_pause_between_attempts_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)

    def fail() -> None:
        raise ConnectionResetError("reset")

    with pytest.raises(ConnectionResetError):
        Tries(3000).call(fail)
    assert max(pauses) <= 72
    assert [round(p / 2**i) for i, p in enumerate(pauses[:4])] == [1, 1, 1, 1]


@pytest.mark.parametrize("error", [MemoryError(), RecursionError("deep"), OverflowError("large"), KeyError("x"),
                                   RuntimeError("can't start new thread")], ids=lambda e: type(e).__name__)  # fmt: skip
@pytest.mark.parametrize("where", ["thread", "record", "log", "push"])
def test_no_error_fails_a_run(where: str, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    target = {"thread": (threading.Thread, "start"), "record": (sync, "_mark"), "log": (sync.log, "info"),
              "push": (sync, "push")}[where]  # fmt: skip
    monkeypatch.setattr(*target, fail)
    sync.sync_cell(configured(f"file://{tmp_path}/store"), started(tmp_path / "local", "a", miou=50.0))


@pytest.mark.parametrize("stream", ["closed", "none"])
def test_a_closed_terminal_fails_no_run(stream: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = started(tmp_path / "local", "a", miou=50.0)
    terminal = open(os.devnull, "w")  # noqa: SIM115
    monkeypatch.setattr(sys, "stderr", terminal)
    import logging

    logger = logging.getLogger("fsseg")
    kept, logger.handlers = logger.handlers, []
    try:
        configure_logging("info")
        terminal.close()
        if stream == "none":
            monkeypatch.setattr(sys, "stderr", None)
        sync.sync_cell(configured(f"file://{tmp_path}/store"), cell)
        logging.getLogger("fsseg").info("done: %s", cell.directory)
    finally:
        logger.handlers = kept
    assert (tmp_path / "store" / REMOTE / "result.json").is_file()


def test_what_arrived_is_remembered_when_the_store_falls_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"file://{tmp_path}/store"
    cell = started(tmp_path / "local", "a", miou=50.0)
    sync.push(cell, url)
    before = cell.copied()
    cell.log_file.write_text("more")
    go_on = threading.Event()
    monkeypatch.setattr(Store, "send", lambda *_: go_on.wait(30))
    sync.sync_cell(configured(url, timeout_seconds=0.1), cell)
    go_on.set()
    after = cell.copied()
    assert after.files == before.files
    assert after.run == before.run
    assert "no answer" in after.error


PROGRAM = """
import os, resource, sys
from pathlib import Path
sys.path[:0] = {paths!r}
from copies import configured, started
from fsseg.process.logs import configure_logging
from fsseg.sweep.sync import sync_cell
configure_logging("info")
cell = started(Path({root!r}), "a", miou=50.0)
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
{before}
sync_cell(configured({url!r}, timeout_seconds={seconds}), cell)
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
Path({root!r}, "ended").write_text("well")
"""


def run(root: Path, url: str, before: str = "", seconds: str = "1.0", shell: str = "") -> tuple[float, str]:
    """Run the program, which must end with status 0; seconds that it took, and what it printed."""
    tests = Path(__file__).resolve().parents[1]
    code = PROGRAM.format(paths=[str(tests), str(tests / "sweep")], root=str(root), url=url, before=before,
                          seconds=seconds)  # fmt: skip
    began = time.monotonic()
    words = ["sh", "-c", f'exec "$0" -c "$1" {shell}', sys.executable, code]
    done = subprocess.run(words, timeout=100, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (root / "ended").read_text() == "well"
    return time.monotonic() - began, done.stderr


@pytest.mark.process
@pytest.mark.parametrize("protocol", ["s3", "file"])
@pytest.mark.parametrize("spare", [0, 1, 2, 4, 8])
def test_too_few_file_descriptors_fail_no_run(spare: int, protocol: str, tmp_path: Path) -> None:
    """The limit leaves `spare` descriptors beside those that are open when the run ends."""
    url = "s3://bucket/x" if protocol == "s3" else f"file://{tmp_path}/store"
    limit = f"resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir('/proc/self/fd')) - 1 + {spare}, hard))"
    run(tmp_path / "local", url, limit)


@pytest.mark.process
@pytest.mark.parametrize("shell", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_a_run_without_a_terminal_ends_well(shell: str, tmp_path: Path) -> None:
    run(tmp_path / "local", f"file://{tmp_path}/store", shell=shell)
    assert (tmp_path / "store" / REMOTE / "result.json").is_file()


@pytest.mark.process
@pytest.mark.parametrize("before", ["os.close(2)", "sys.stderr.close()"])
def test_a_terminal_that_goes_away_fails_no_run(before: str, tmp_path: Path) -> None:
    _, told = run(tmp_path / "local", f"file://{tmp_path}/store", before)
    assert "Traceback" not in told
    assert (tmp_path / "store" / REMOTE / "result.json").is_file()


@pytest.mark.process
def test_a_process_ends_although_its_store_stays_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that wait for an answer hold up neither the run nor the end of the process."""
    for name, value in {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_DEFAULT_REGION": "us-east-1",
                        "no_proxy": "127.0.0.1"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        seconds, told = run(tmp_path / "local", "s3://bucket/x", seconds="4.0")
    assert "no answer within 4 s" in told
    assert seconds < 40


@pytest.mark.process
def test_a_pipe_in_place_of_the_store_holds_up_no_run(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "store")
    run(tmp_path / "local", f"file://{tmp_path}/store")
