"""Fixtures that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
SHARED = REPO.parent / "shared"


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder with the real PASCAL and COCO samples; absent in most checkouts, required in CI."""
    if not SHARED.is_dir():
        if os.environ.get("FSSEG_REQUIRE_SHARED"):
            pytest.fail(f"{SHARED} is absent although FSSEG_REQUIRE_SHARED is set")
        pytest.skip(f"{SHARED} is absent")
    return SHARED
