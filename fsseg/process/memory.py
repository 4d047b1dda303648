"""Python's garbage collector, where it costs more than it gives back. Called where a data set is checked."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Pause the collector for a block that makes hundreds of thousands of objects that stay.

    It would walk all of them again and again: a fifth of the time that the check of 120,000 images takes.
    """
    paused = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if paused:
            gc.enable()
