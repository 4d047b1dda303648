"""The cluster of the SLURM tests."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, missing


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A running SLURM of one node; skipped where it cannot be started, unless FSSEG_REQUIRE_SLURM is set."""
    if why := missing():
        if os.environ.get("FSSEG_REQUIRE_SLURM"):
            pytest.fail(f"FSSEG_REQUIRE_SLURM is set, but {why}")
        pytest.skip(why)
    folder = Path(tempfile.mkdtemp(prefix="slurm"))  # pytest's own folders have names too long for a socket
    one = Cluster(folder)
    try:
        one.up()
        yield one
    finally:
        one.down()
        shutil.rmtree(folder, ignore_errors=True)
