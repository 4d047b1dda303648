"""The fixture of the sweep tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sweeps import Sweep


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[Sweep]:
    one = Sweep(tmp_path)
    yield one
    for process in one.started:
        if process.poll() is None:
            process.kill()
            process.communicate()
