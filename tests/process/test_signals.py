"""Signals: noted, reported, handed on; second Ctrl-C stops at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from fsseg.process.signals import SIGNALS, Preempted, Signals, is_foreign, shield_worker


@pytest.fixture(autouse=True)
def _default_handlers() -> Iterator[None]:
    before = {n: signal.getsignal(n) for n in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGUSR2, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR2, 140)])
def test_a_signal_is_noted_and_ends_the_process_when_handed_over(number: int, status: int) -> None:
    with Signals() as signals:
        assert signals.reason() is None
        send(number)
        assert signals.reason() == f"signal {signal.Signals(number).name}"
    with pytest.raises(SystemExit) as caught:
        signals.hand_over()
    assert caught.value.code == status


def test_former_handlers_come_back() -> None:
    before = [signal.getsignal(n) for n in SIGNALS]
    with Signals():
        assert [signal.getsignal(n) for n in SIGNALS] != before
    assert [signal.getsignal(n) for n in SIGNALS] == before


def test_a_second_interrupt_stops_at_once() -> None:
    with Signals() as signals:
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        assert signals.received == signal.SIGINT


def test_the_former_handler_is_called_and_may_end_the_process_itself() -> None:
    seen: list[Any] = []

    def requeue(number: int, frame: Any) -> None:
        seen.append(number)
        raise SystemExit(-1)

    signal.signal(signal.SIGUSR2, requeue)
    with Signals() as signals:
        send(signal.SIGUSR2)
        assert seen == []
    with pytest.raises(SystemExit) as caught:
        signals.hand_over()
    assert (seen, caught.value.code) == ([signal.SIGUSR2], -1)


def test_a_former_handler_that_ignores_the_signal_does_not_keep_the_stopped_run(monkeypatch: Any) -> None:
    """submitit passes over TERM. A later rank leaves without a fault, lest SLURM end the first one."""
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    with Signals() as signals:
        send(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        signals.hand_over()
    assert caught.value.code == 143
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as caught:
        signals.hand_over()
    assert caught.value.code == 0


def test_the_warning_before_the_limit_outranks_the_rest() -> None:
    with Signals() as signals:
        send(signal.SIGTERM)
        send(signal.SIGUSR2)
        send(signal.SIGTERM)
        assert signals.received == signal.SIGUSR2


def test_a_run_that_ends_all_the_same_leaves_only_where_nobody_listened() -> None:
    with Signals() as signals:
        signals.leave_if_asked()
        send(signal.SIGINT)
    with pytest.raises(SystemExit) as caught:
        signals.leave_if_asked()
    assert caught.value.code == 130
    signal.signal(signal.SIGUSR2, lambda number, frame: None)
    with Signals() as signals:
        send(signal.SIGUSR2)
    signals.leave_if_asked()  # no requeue of a finished cell


def test_while_preparing_a_signal_interrupts() -> None:
    with Signals() as signals:
        with pytest.raises(Preempted, match="SIGTERM"), signals.at_once():
            send(signal.SIGTERM)
        with pytest.raises(Preempted, match="SIGTERM"), signals.at_once():  # one that came before
            raise AssertionError("went on")


def test_an_ignored_signal_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Signals() as signals:
        send(signal.SIGINT)
        assert signals.reason() is None


def test_outside_the_main_thread_nothing_is_changed() -> None:
    before = signal.getsignal(signal.SIGTERM)
    inside: list[Any] = []

    def work() -> None:
        with Signals():
            inside.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before]


def test_a_forked_process_notes_nothing() -> None:
    with Signals() as signals:
        child = os.fork()
        if child == 0:
            send(signal.SIGTERM)
            os._exit(0 if signals.received is None else 1)
        assert os.waitpid(child, 0)[1] == 0


def test_a_loading_process_outlives_the_signals_of_the_job() -> None:
    child = os.fork()
    if child == 0:
        shield_worker()
        for number in SIGNALS:
            send(number)
        os._exit(0 if signal.alarm(0) > 0 else 1)  # TERM has set the alarm
    assert os.waitpid(child, 0)[1] == 0


def test_defaults_are_nobodys_function() -> None:
    assert not is_foreign(signal.SIG_DFL)
    assert not is_foreign(signal.default_int_handler)
    assert not is_foreign(None)
    assert is_foreign(lambda number, frame: None)
