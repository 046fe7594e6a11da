"""A signal on any rank becomes an agreed stop of all ranks at the same step.

A checkpoint is a collective act: without the agreement two ranks saved at different steps
(measured: 57 and 56). submitit's own handler requeues the job and exits, so it is kept and called
last, once the checkpoint is on disk.
"""

import signal
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)  # NCCL may catch SIGUSR1


class StopSignal:
    """Remembers that a stop was asked for. A context manager: the old handlers come back after."""

    def __init__(self) -> None:
        self._received = 0
        self._kept: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        for number in STOP_SIGNALS:
            self._kept[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._kept.items():
            signal.signal(number, handler)

    @property
    def number(self) -> int:
        """The signal that asked for a stop, 0 if none did."""
        return self._received

    def agree(self, number: int) -> None:
        """Take over what the ranks agreed on: the largest of their numbers.

        A 0 changes nothing: a signal may have come since this rank gave its own.
        """
        if number:
            self._received = number

    @property
    def name(self) -> str:
        return signal.Signals(self._received).name if self._received else "no signal"

    def hand_over(self) -> None:
        """Call the handler that was there before us, now that everything is saved."""
        handler = self._kept.get(self._received)
        if callable(handler) and handler is not signal.default_int_handler:
            handler(self._received, None)

    def _remember(self, number: int, _: FrameType | None) -> None:
        self._received = number
