"""A stop request is noted once, and handlers are never left behind."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from pgm_fast.train.signals import StopRequest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_noted_and_the_second_acts_as_before(number):
    received = []
    previous = signal.signal(number, lambda *_: received.append(number))
    try:
        with StopRequest() as stop:
            assert stop.signal is None
            os.kill(os.getpid(), number)
            assert stop.signal == signal.Signals(number).name
            assert received == []
            os.kill(os.getpid(), number)
            assert received == [number]
    finally:
        signal.signal(number, previous)


@pytest.mark.parametrize("fails", [False, True])
def test_handlers_are_restored_at_the_end_of_the_block(fails):
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    try:
        with StopRequest():
            assert signal.getsignal(signal.SIGTERM) is not before[0]
            if fails:
                raise ValueError
    except ValueError:
        pass
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before


def test_outside_of_the_main_thread_no_handler_is_installed():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work():
        with StopRequest() as stop:
            seen.append((stop.signal, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(None, before)]
