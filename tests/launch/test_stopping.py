"""A signal is remembered until the run has been saved, and then handed on."""

import os
import signal

import pytest

from launch.stopping import STOP_SIGNALS, StopSignal


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_is_remembered_and_the_old_handlers_come_back(number):
    before = [signal.getsignal(each) for each in STOP_SIGNALS]
    with StopSignal() as stop:
        assert (stop.number, stop.name) == (0, "no signal")
        send(number)
        assert (stop.number, stop.name) == (number, signal.Signals(number).name)
    assert [signal.getsignal(each) for each in STOP_SIGNALS] == before


def test_a_signal_during_the_agreement_is_not_lost():
    """The ranks agree on what each had received when asked; a later one counts at the next step."""
    with StopSignal() as stop:
        asked = stop.number
        send(signal.SIGTERM)
        stop.agree(asked)
        assert stop.number == signal.SIGTERM


def test_what_another_rank_received_stops_this_one():
    with StopSignal() as stop:
        stop.agree(signal.SIGUSR2)
        assert stop.name == "SIGUSR2"


def test_the_kept_handler_is_called_when_all_is_saved():
    received = []
    kept = signal.signal(signal.SIGUSR2, lambda number, frame: received.append(number))
    try:
        with StopSignal() as stop:
            send(signal.SIGUSR2)
            assert received == []
        stop.hand_over()
        assert received == [signal.SIGUSR2]
        with StopSignal() as stop:
            pass
        stop.hand_over()
        assert received == [signal.SIGUSR2], "no signal, nothing to hand over"
    finally:
        signal.signal(signal.SIGUSR2, kept)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_system_s_own_handlers_are_not_called(number):
    """Ending by exit status is for `run_all`; Python's handler would raise KeyboardInterrupt."""
    with StopSignal() as stop:
        send(number)
    stop.hand_over()
