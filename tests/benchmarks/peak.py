"""The most memory that a process of a benchmark held. Imports nothing large: it is imported where that is measured."""

from __future__ import annotations

import re
from pathlib import Path


def peak_megabytes() -> float:
    """Of this process so far, in 1e6 bytes."""
    # Not `ru_maxrss`: that of a new process begins with what its parent takes.
    found = re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024 / 1e6
