"""The `fsseg` command, called in the process of a test."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from pathlib import Path

import pytest

from fsseg.cli.app import main


def advice(ended: subprocess.CompletedProcess[str]) -> tuple[str, str]:
    """The two lines of a mistake, what is wrong and what to do, of a command that printed nothing else to stdout."""
    assert ended.returncode == 1
    assert ended.stdout == ""
    what, fix = ended.stderr.strip().splitlines()[-2:]
    assert what.startswith("error: ")
    assert fix.startswith("  -> ")
    return what, fix


def fsseg(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command in this process: what it prints, and the exit status that the interpreter would make of its end."""
    status, out, err = 0, io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["fsseg", *words])
        patch.chdir(cwd or Path.cwd())
        try:
            main()
        except SystemExit as end:
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
    return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())
