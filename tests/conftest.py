"""Fixtures that several test files share."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
SHARED = REPO.parent / "shared"


# A test run started in the background ignores INT, and so would every process that its tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder with the real PASCAL and COCO samples; absent in most checkouts, required in CI."""
    if not SHARED.is_dir():
        if os.environ.get("FSSEG_REQUIRE_SHARED"):
            pytest.fail(f"{SHARED} is absent although FSSEG_REQUIRE_SHARED is set")
        pytest.skip(f"{SHARED} is absent")
    return SHARED
