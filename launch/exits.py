"""How our processes end: with which status, and with whom. No torch."""

import ctypes
import os
import signal

from launch.stopping import STOP_SIGNALS

DONE, FAILED, BAD_INPUT, STOPPED, LOST = 0, 1, 2, 3, 4
"""Exit statuses of every command that trains: all done; an error that would come again; bad arguments or input;
stopped early by a signal, with a checkpoint; a hang or a lost process, after which to start again."""

EXPLAINED = (ValueError, OSError, FloatingPointError, MemoryError)
"""Errors whose words are made for people. Any other is told with its traceback."""

PR_SET_PDEATHSIG = 1


def status_of(error: BaseException) -> int:
    """The status of a run that `error` ended."""
    return BAD_INPUT if isinstance(error, ValueError) else FAILED


def end_with(parent: int) -> None:
    """This process ends when the process `parent`, which started it, does; and by any signal that asks it to stop.

    For a process that has nothing to save yet: `launch.run` takes the signals over. They end it even while
    C++ code runs, where Python's own handlers would wait.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(LOST)  # it ended before we asked to be told
