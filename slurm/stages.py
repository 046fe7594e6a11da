"""What is done before and after training: jobs that run other commands of ours, and wait for others.

    data build (an array of parts) -> check -> training -> evaluation (an array) -> report

On Slurm the order is sbatch's `--dependency`; here a job that has to wait does so itself (`After`).
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import submitit

from launch.checkpoint_files import steps_of
from launch.exits import FAILED, STOPPED
from launch.stopping import STOP_SIGNALS
from slurm.alive import live_tasks
from slurm.allocation import OnSlurm
from slurm.ledger import (
    CANCELLED,
    EVERY_CHECKPOINT,
    EVERY_RUN,
    Submission,
    leave_outcome,
    read_submission,
    take_back_outcome,
)
from slurm.step import python
from slurm.traces import failures

POLL_SECONDS = 1.0
GRACE_SECONDS = 5.0


@dataclass(frozen=True)
class Stage:
    """Commands of ours, `python -m ...`, one after another until one fails."""

    submission: str  # its folder
    commands: tuple[tuple[str, ...], ...]
    after: tuple[str, ...] = ()  # folders of the submissions before it: what failed there is told
    runs: tuple[str, ...] = ()  # folders of those that EVERY_RUN and EVERY_CHECKPOINT stand for

    def __call__(self) -> int:
        """0; or the process ends with the exit status of the command that failed."""
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        if os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
            signal.signal(signal.SIGUSR2, _go_on_later)
        take_back_outcome(Path(self.submission), submitit.JobEnvironment().job_id)
        if _cancelled(self.submission):  # while Slurm was starting it: the signal met no job yet
            return _leave(self.submission, STOPPED)
        try:
            for folder in self.after:
                for line in failures(read_submission(Path(folder))):
                    print(f"before this: {line}", file=sys.stderr, flush=True)
            statuses = (_run(words) for words in self._commands())
            status = next((status for status in statuses if status), 0)
        except KeyboardInterrupt:
            if not _stays_stopped(self.submission):
                sys.exit(STOPPED)
            status = STOPPED
        return _leave(self.submission, status)

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """What to run after a requeue: the same, which goes on from what is there."""
        return submitit.helpers.DelayedSubmission(self)

    def _commands(self) -> Iterator[list[str]]:
        """Those that have something to work on."""
        for words in self.commands:
            steps = {folder: [str(each) for each in steps_of(Path(folder))] for folder in self.runs}
            found = {
                EVERY_RUN: [folder for folder in self.runs if steps[folder]],
                EVERY_CHECKPOINT: [each for folder in self.runs for each in steps[folder]],
            }
            if found.keys() & set(words) and not found[EVERY_RUN]:
                print(f"{' '.join(words)}: no run has a checkpoint", file=sys.stderr, flush=True)
                continue
            yield [each for word in words for each in found.get(word, [word])]


@dataclass(frozen=True)
class After:
    """A job of this machine that begins when other submissions have ended."""

    submission: str
    job: Callable[[], int]
    after: tuple[str, ...]
    only_if_well: bool

    def __call__(self) -> int:
        # submitit's handler ignores SIGTERM; until the job takes over there is nothing to save.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            self._wait()
        except KeyboardInterrupt:
            return _leave(self.submission, STOPPED)
        if _cancelled(self.submission):
            return _leave(self.submission, STOPPED)
        failed = [line for each in self._before() for line in failures(each)]
        if failed and self.only_if_well:
            print(f"not started: {'; '.join(failed)}", file=sys.stderr, flush=True)
            return _leave(self.submission, FAILED)
        return self.job()

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        return submitit.helpers.DelayedSubmission(self)

    def _wait(self) -> None:
        while live_tasks(self._before()):
            time.sleep(POLL_SECONDS)

    def _before(self) -> list[Submission]:
        return [read_submission(Path(folder)) for folder in self.after]


def _go_on_later(_number: int, _frame: FrameType | None) -> None:
    """Before the time limit. As submitit's own handler, which asks Slurm once: a controller that is being restarted
    would end the job, and all that waits for it to end well."""
    OnSlurm().requeue(())
    sys.exit(STOPPED)


def _stays_stopped(folder: str) -> bool:
    """Whether a job that was told to stop is over. One that Slurm preempts or requeues is not, and must leave no
    outcome, which would say so; one that was ended by hand leaves none either, and is submitted again."""
    here = os.environ.get("SUBMITIT_EXECUTOR") == "local"
    return here or _cancelled(folder)


def _cancelled(folder: str) -> bool:
    return (Path(folder) / CANCELLED).exists()


def _leave(folder: str, status: int) -> int:
    """The end of a job: for us as a file, for Slurm and what depends on the job as its exit status."""
    leave_outcome(Path(folder), submitit.JobEnvironment().job_id, {"status": status})
    if status:
        sys.exit(status)
    return status


def _run(words: Sequence[str]) -> int:
    """The exit status of one command; it ends with us."""
    start = (
        python() if words[0] == "launch" else [sys.executable, "-m"]
    )  # models may want a container
    child = subprocess.Popen([*start, *words], stdin=subprocess.DEVNULL)
    try:
        status = child.wait()
        if (
            status == STOPPED or -status in STOP_SIGNALS
        ):  # meant for both of us: ours may come a little later
            time.sleep(GRACE_SECONDS)
        return status
    finally:
        child.terminate()
        child.wait()
