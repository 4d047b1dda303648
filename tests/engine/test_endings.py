"""The table of endings: what each exception means for the records and for the caller."""

from __future__ import annotations

import errno
import signal
from pathlib import Path

import pytest

from fsseg.cell.models import State
from fsseg.engine.endings import Ending, ending_of
from fsseg.errors import UserError
from fsseg.process.files import ClaimLost
from fsseg.process.signals import Preempted, Signals

HERE = Path("outputs/x")


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


def ending(error: BaseException, received: int | None = None) -> Ending:
    signals = Signals()
    signals.received = received
    try:
        raise error
    except BaseException as caught:
        return ending_of(caught, HERE, signals)


def test_a_signal_saves_and_copies_and_a_second_interrupt_only_saves() -> None:
    stopped = ending(Preempted("signal SIGTERM"), signal.SIGTERM)
    assert (stopped.state, stopped.reason, stopped.error) == (State.PREEMPTED, "signal SIGTERM", None)
    assert (stopped.copied, stopped.recorded, stopped.note) == (True, True, "")
    at_once = ending(KeyboardInterrupt(), signal.SIGINT)
    assert (at_once.state, at_once.error, at_once.copied) == (State.PREEMPTED, None, False)


def test_an_interrupt_outside_the_main_thread_is_for_whoever_started_it() -> None:
    error = KeyboardInterrupt()
    assert ending(error).error is error


@pytest.mark.parametrize("kind", [RuntimeError, OSError, KeyError, ConnectionResetError])
def test_a_loader_that_the_signal_hit_too_is_no_failure(kind: type[Exception]) -> None:
    error = kind("Caught an error in DataLoader worker process 0")
    assert ending(error, signal.SIGTERM).state == State.PREEMPTED
    assert ending(error).state == State.FAILED


def test_a_lost_claim_leaves_no_record() -> None:
    error = ClaimLost("taken over")
    assert ending(error) == Ending(State.RUNNING, "taken over", error, recorded=False)


def test_a_users_fault_fails_with_its_words_and_both_in_the_log() -> None:
    error = UserError("no image", "mend it")
    failed = ending(error)
    assert (failed.state, failed.reason, failed.error) == (State.FAILED, "no image", error)
    assert failed.note.startswith("error: no image\n  -> mend it\nTraceback")


def test_any_other_fault_fails_with_its_traceback() -> None:
    error = ZeroDivisionError("by zero")
    failed = ending(error)
    assert (failed.state, failed.reason, failed.error) == (State.FAILED, "ZeroDivisionError: by zero", error)
    assert failed.note.startswith("Traceback")
    assert not failed.copied


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "outputs/x/metrics.csv"), "outputs/x: cannot be written"),
        (OSError(errno.EROFS, "Read-only file system", "/elsewhere/cache"), "/elsewhere/cache: cannot be used"),
        (
            OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore"),
            "out of GPU memory: CUDA out of memory.",
        ),
    ],
)
def test_what_the_machine_lacks_is_told_in_two_lines(error: Exception, words: str) -> None:
    failed = ending(error)
    assert failed.state == State.FAILED
    assert isinstance(failed.error, UserError)
    assert failed.error.what.startswith(words)
    assert failed.error.fix
