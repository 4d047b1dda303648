"""The collector is paused for a block, and as it was afterwards."""

from __future__ import annotations

import gc

import pytest

from fsseg.process.memory import uncollected


def test_the_collector_is_as_it_was_afterwards_whatever_happens() -> None:
    assert gc.isenabled()
    with uncollected():
        assert not gc.isenabled()
        with uncollected():
            pass
        assert not gc.isenabled()
    with pytest.raises(KeyError), uncollected():
        raise KeyError
    assert gc.isenabled()
