from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fsseg.data.lock import folder_lock
from fsseg.errors import UserError


def test_one_at_a_time_and_nobody_is_left_out(tmp_path: Path) -> None:
    inside, most, turns = 0, 0, 0
    guard = threading.Lock()

    def work() -> None:
        nonlocal inside, most, turns
        with folder_lock(tmp_path / "x.lock", beat=0.02):
            with guard:
                inside += 1
                most = max(most, inside)
            time.sleep(0.01)
            with guard:
                inside -= 1
                turns += 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, turns) == (1, 6)
    assert list(tmp_path.iterdir()) == []


def test_a_lock_in_use_is_waited_for_and_its_owner_named(tmp_path: Path) -> None:
    second = folder_lock(tmp_path / "x.lock", beat=0.02, timeout=0.1)
    owner = rf'"pid": {os.getpid()}'
    with folder_lock(tmp_path / "x.lock"), pytest.raises(UserError, match=owner), second:
        pytest.fail("two owners")
    with folder_lock(tmp_path / "x.lock", timeout=0):
        pass


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    code = (
        "import sys, os; from pathlib import Path; from fsseg.data.lock import folder_lock\n"
        "with folder_lock(Path(sys.argv[1])):\n    os._exit(9)"
    )
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.lock")], env=environment, check=False)
    assert (tmp_path / "x.lock").exists()
    os.utime(tmp_path / "x.lock", (time.time() - 500, time.time() - 500))
    entered = []

    def work() -> None:
        with folder_lock(tmp_path / "x.lock", lease=100, beat=0.02):
            entered.append(threading.get_ident())
            time.sleep(0.05)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(entered) == 4
    assert list(tmp_path.iterdir()) == []


def test_the_owner_keeps_its_lock_fresh(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    with folder_lock(path, beat=0.02):
        os.utime(path, (1000, 1000))
        deadline = time.monotonic() + 20
        while path.stat().st_mtime < 2000:
            assert time.monotonic() < deadline, "no beat came"
            time.sleep(0.01)
