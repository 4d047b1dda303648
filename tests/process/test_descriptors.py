"""A process without standard streams, or with too few open files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]


def shell(line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", line], cwd=REPO, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("closed", ["2>&-", "1>&- 2>&-", "<&- 1>&- 2>&-"])
def test_a_file_that_is_opened_later_gets_no_standard_number(closed: str) -> None:
    code = (
        "from fsseg.process.descriptors import open_standard_streams as o; o(); import sys, os;"
        "number = os.open('/dev/null', os.O_RDONLY); print('lost'); print('lost', file=sys.stderr);"
        "sys.exit(number < 3)"
    )
    assert shell(f'{sys.executable} -c "{code}" {closed}').returncode == 0


@pytest.mark.parametrize(
    ("arguments", "status"), [("status nowhere 2>&-", 1), ("status nowhere >&- 2>&-", 1), ("--help >&-", 0)]
)
def test_a_command_without_streams_ends_as_with_them(arguments: str, status: int) -> None:
    done = shell(f"{sys.executable} -m fsseg {arguments}")
    assert done.returncode == status
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_output_that_cannot_be_written_is_told_in_two_lines() -> None:
    done = shell(f"{sys.executable} -m fsseg --help > /dev/full")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 2
    assert "No space left" in done.stderr


def test_too_few_open_files_are_told_before_anything_starts(tmp_path: Path) -> None:
    done = shell(f"ulimit -n 20; {sys.executable} train.py output_dir={tmp_path}/out")
    assert done.returncode == 1
    what, fix = done.stderr.strip().splitlines()
    assert what.startswith("error: this process may have only 20 files open")
    assert "ulimit -n" in fix
    assert not (tmp_path / "out").exists()


def test_a_limit_that_may_be_raised_is() -> None:
    code = (
        "from fsseg.process.descriptors import allow_open_files as a; import resource as r; a();"
        "print(*r.getrlimit(r.RLIMIT_NOFILE))"
    )
    assert shell(f'ulimit -Sn 64; ulimit -Hn 1000; {sys.executable} -c "{code}"').stdout == "1000 1000\n"
