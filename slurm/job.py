"""`Job`: what one submitted job does; small, so that submitit can pickle, run and requeue it."""

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import submitit

from launch.exits import FAILED
from launch.stopping import STOP_SIGNALS
from slurm.allocation import Here, OnSlurm
from slurm.ledger import leave_outcome, take_back_outcome
from slurm.supervisor import Supervisor
from slurm.work import Work


@dataclass(frozen=True)
class Job:
    """Runs of one study, one after another, on `ranks` ranks. This process trains nothing itself."""

    study: str
    data: str
    results: str
    run_ids: tuple[str, ...]
    ranks: int = 1
    runs_per_gpu: int = 1  # at a time, where there is one rank and its runs are tiny
    check_seconds: float = 300.0  # for the nodes to show that they work, before each attempt

    def __call__(self) -> int:
        """The exit status of `launch run`; also left as a file for those who watch. Once it is over the process ends
        with it, so that Slurm's own accounting tells a failure."""
        local = os.environ.get("SUBMITIT_EXECUTOR") == "local"
        if local:
            os.setsid()  # Ctrl-C at the terminal of `submit` is for `submit`, which passes it on
        signals = Signals()
        folder, name = Path(os.environ["SUBMITIT_FOLDER"]), submitit.JobEnvironment().job_id
        take_back_outcome(folder, name)
        try:
            allocation = Here(self.ranks) if local else OnSlurm()
            where = Path(self.data), Path(self.results)
            work = Work(folder, name, *where, self.run_ids, self.runs_per_gpu)
            supervisor = Supervisor(work, allocation, signals.received, self.check_seconds)
            over = supervisor.work()
        except Exception:
            leave_outcome(folder, name, {"status": FAILED, "runs": {}})  # the log says why
            raise
        outcome = supervisor.outcome()
        if over:
            leave_outcome(folder, name, outcome)
            if outcome["status"]:
                sys.exit(outcome["status"])
        elif local:
            signals.hand_over()  # to submitit, which starts this job anew
        return outcome["status"]

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """What to run after a requeue: the same; finished runs are skipped, the rest resumes."""
        return submitit.helpers.DelayedSubmission(self)


class Signals:
    """Remembers the last signal that asked for a stop; submitit's handlers would requeue at once."""

    def __init__(self) -> None:
        self._number = 0
        self._kept: dict[int, Any] = {
            number: signal.signal(number, self._remember) for number in STOP_SIGNALS
        }

    def received(self) -> int:
        """Its number, 0 if none came."""
        return self._number

    def hand_over(self) -> None:
        """Call submitit's handler of the time limit, now that everything is saved."""
        self._kept[signal.SIGUSR2](signal.SIGUSR2, None)

    def _remember(self, number: int, _: FrameType | None) -> None:
        self._number = number
