"""Lines of a log: foreign text starts none, and what cannot be encoded fails none."""

from __future__ import annotations

import io
import logging
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from fsseg.errors import UserError, merge_errors
from fsseg.process.logs import RunLog, configure_logging


def test_foreign_text_starts_no_line(tmp_path: Path) -> None:
    handler = RunLog(tmp_path / "train.log")
    log = logging.Logger("fsseg.test", logging.INFO)
    log.addHandler(handler)
    log.info("held by %s", "a\n12:00:00 done: forged\x1b[2J")
    log.info("%d of %.2f in %s, %s", 3, np.float32(0.5), Path("\udcff\nx"), None)
    log.error("%s\n  (%s)", merge_errors([UserError("p\nq", "fix"), UserError("r")]), "cell")
    handler.note("error: \x1b\nTraceback\n  File")
    handler.close()
    lines = (tmp_path / "train.log").read_text(encoding="utf-8").splitlines()
    assert [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in lines] == [
        r"held by a\n12:00:00 done: forged\x1b[2J",
        r"3 of 0.50 in \xff\nx, None",
        "2 faults:", r"- p\nq", "  -> fix", "- r", "  (cell)",
        r"error: \x1b", "Traceback", "  File",
    ]  # fmt: skip


def test_lines_go_to_what_stderr_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """A progress bar puts itself there while it is drawn; a line to the former stream would run into the bar."""
    configure_logging("info")
    for _ in range(2):
        now = io.StringIO()
        monkeypatch.setattr(sys, "stderr", now)
        logging.getLogger("fsseg").info("said")
        assert now.getvalue().endswith("said\n")
        assert now.getvalue().count("said") == 1
