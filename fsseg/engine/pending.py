"""`Pending`: numbers that the device is still computing, read some steps later. Used by the training loop.

Reading a number of a GPU at once makes this process wait until the GPU has done all that it was given before, and the
GPU then waits for its next work. A step's loss is not needed by the next step: it is copied when it is there, and read
when the copy is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

BEHIND = 4
"""Steps on a GPU before a step's numbers are read: enough to keep it at work, few to be lost when one is not finite."""


class Pending(Generic[T]):
    """A queue of steps: what was noted of each, and its numbers.

    How far behind they are read is fixed, so that it never depends on how quick a device is: several processes read the
    same step at the same time.

    Args:
        device: where the numbers are computed.
        behind: steps that are left in the queue; None is 0 on a CPU, which has computed them by then.
    """

    def __init__(self, device: torch.device, behind: int | None = None) -> None:
        self.behind = (BEHIND if device.type == "cuda" else 0) if behind is None else behind
        self._queue: deque[tuple[T, Tensor, torch.cuda.Event | None]] = deque()

    def put(self, note: T, numbers: Tensor) -> None:
        """Add a step; `numbers` (n) are on their way to the host when it returns."""
        event = None
        host = numbers.detach()
        if host.device.type == "cuda":
            host = host.to("cpu", non_blocking=True)  # into pinned memory
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(numbers.device))
        self._queue.append((note, host, event))

    def read(self, everything: bool = False) -> Iterator[tuple[T, list[float]]]:
        """The steps that are far enough behind, or all of them, the oldest first; waits for their numbers."""
        while len(self._queue) > (0 if everything else self.behind):
            note, numbers, event = self._queue.popleft()
            if event is not None:
                event.synchronize()
            yield note, numbers.tolist()
