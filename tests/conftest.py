"""Fixtures that several test files share."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser
import pytest
from hypothesis import HealthCheck, settings

REPO = Path(__file__).resolve().parents[1]
SHARED = REPO.parent / "shared"

# `pytest` at a desk tries few examples, always the same ones; CI tries more: HYPOTHESIS_PROFILE=ci.
_QUIET = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile("desk", max_examples=30, deadline=None, derandomize=True, suppress_health_check=_QUIET)
settings.register_profile("ci", max_examples=100, deadline=None, print_blob=True, suppress_health_check=_QUIET)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "desk"))

# A test run started in the background ignores INT, and so would every process that its tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests run side by side, and many start processes: one thread each keeps two cores from thrashing.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

# Where this machine's own data lie, and how it launches, is none of the tests' business.
os.environ["FSSEG_MACHINE"] = ""
os.environ.pop("FSSEG_DATA", None)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder with the real PASCAL and COCO samples; absent in most checkouts, required in CI."""
    if not SHARED.is_dir():
        if os.environ.get("FSSEG_REQUIRE_SHARED"):
            pytest.fail(f"{SHARED} is absent although FSSEG_REQUIRE_SHARED is set")
        pytest.skip(f"{SHARED} is absent")
    return SHARED


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A Chromium without a window and without a network, as a driver of selenium; required in CI."""
    if why := browser.missing():
        if os.environ.get("FSSEG_REQUIRE_BROWSER"):
            pytest.fail(f"FSSEG_REQUIRE_BROWSER is set, but {why}")
        pytest.skip(why)
    with browser.started(tmp_path_factory.mktemp("chromium")) as driver:
        yield driver
