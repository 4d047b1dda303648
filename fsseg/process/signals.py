"""USR2, TERM, HUP and INT: a run stops at its next step, saves, and then calls the handler that was there before.

Used by `fsseg.run`. A handler only notes the signal; the loops check the note at every step. submitit requeues the job
in its own handler of USR2, so that handler is called last, after everything is saved.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FrameType, TracebackType
from typing import Any

log = logging.getLogger("fsseg")

SIGNALS = tuple(getattr(signal, name) for name in ("SIGUSR2", "SIGTERM", "SIGHUP", "SIGINT") if hasattr(signal, name))


@contextlib.contextmanager
def exiting_on(names: Iterable[str]) -> Iterator[None]:
    """In the block these signals raise SystemExit, with the status that a shell gives them; then as they were before.

    Outside the main thread, where Python allows no handlers, nothing changes.
    """
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
        before = {number: signal.signal(number, _exit) for number in numbers}
    try:
        yield
    finally:
        _put_back(before)


def _exit(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _put_back(handlers: Mapping[int, Any]) -> None:
    """The handlers of before; None is one that Python did not set."""
    for number, handler in handlers.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


class Preempted(Exception):
    """The run was asked to stop; the state of training is saved, and the next start continues from there."""


class Pruned(Exception):
    """A search ended the run early; the state of training is saved, and a start by hand continues from there."""


class Signals:
    """In the block `with Signals() as signals:` these signals are noted; after it the former handlers are back.

    Outside the main thread, where Python allows no handlers, nothing is noted. A signal that the process was started
    to ignore stays ignored (a shell starts background jobs without INT, nohup its command without HUP).
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}
        self._at_once = False
        self._pid = os.getpid()

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                previous = signal.getsignal(number)
                if previous is not signal.SIG_IGN:
                    signal.signal(number, self._note)
                    self._previous[number] = previous
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _put_back(self._previous)

    def reason(self) -> str | None:
        """Why the run should stop, or None."""
        return None if self.received is None else f"signal {signal.Signals(self.received).name}"

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """In this block a signal raises `Preempted` at once: while preparing there is nothing to save."""
        if (reason := self.reason()) is not None:
            raise Preempted(reason)
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def hand_over(self) -> None:
        """Call the former handler after everything is saved and the claim is released; without one, end the process.

        Raises:
            SystemExit: 128 + signal, if there is no former handler, or it returns (submitit's does on TERM). This is no
                `Exception`, so neither Hydra nor submitit takes it for a result. It also ends a basic-launcher sweep.
        """
        if self.received is None:  # another process of the run had the signal
            sys.exit(128 + signal.SIGTERM)
        previous = self._previous.get(self.received)
        if previous is not None and is_foreign(previous):
            previous(self.received, None)
            if int(os.environ.get("RANK", "0")) > 0:
                sys.exit(0)  # rank 0 of submitit requeues; a non-zero exit status here would end it before that
        sys.exit(128 + self.received)

    def leave_if_asked(self) -> None:
        """End the process after a run that finished although a signal came, unless the signal has a former handler."""
        if self.received is not None and not is_foreign(self._previous.get(self.received)):
            sys.exit(128 + self.received)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            return  # a forked process that loads data: the run ends it
        if number == signal.SIGINT and self.received is not None:
            raise KeyboardInterrupt
        first = self.received is None
        self.received = number if first or number == signal.SIGUSR2 else self.received
        if self._at_once:
            self._at_once = False
            raise Preempted(str(self.reason()))
        if first:
            more = "; press Ctrl-C again to stop at once" if number == signal.SIGINT else ""
            # not through logging, whose locks the interrupted code may hold
            with contextlib.suppress(OSError):  # the terminal may be gone: that is what HUP says
                os.write(2, f"\n{self.reason()}: stopping after this step{more}\n".encode())


def is_foreign(handler: Any) -> bool:
    """Whether a handler was set by other code: neither the default of the system nor Python's KeyboardInterrupt."""
    return callable(handler) and handler is not signal.default_int_handler and not isinstance(handler, signal.Handlers)


def shield_worker() -> None:
    """Let a process that loads data survive a signal to the whole job, so that the run can still save.

    SLURM signals every process of a step. TERM, with which the run itself may end a worker, takes effect 30 s later.
    """
    late: Callable[[int, FrameType | None], Any] = lambda number, frame: signal.alarm(30)  # noqa: E731
    for number in SIGNALS:
        signal.signal(number, late if number == signal.SIGTERM else signal.SIG_IGN)
