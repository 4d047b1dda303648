"""What several tests of the data share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def voc_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder for the scan of the real masks, which takes seconds: the first test that needs it pays for all."""
    return tmp_path_factory.mktemp("voc_cache")
