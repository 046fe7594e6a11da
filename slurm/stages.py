"""What is done before and after training: jobs that run other commands of ours, and wait for others.

    data build (an array of parts) -> check -> training -> report

On Slurm the order is sbatch's `--dependency`; here a job that has to wait does so itself (`After`).
"""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import submitit

from launch.exits import FAILED, STOPPED
from slurm.alive import live_tasks
from slurm.ledger import CANCELLED, Submission, leave_outcome, read_submission
from slurm.step import python
from slurm.traces import failures

EVERY_RUN = "{every run}"  # below a study's folder: the folders of all runs that have a checkpoint
POLL_SECONDS = 1.0
GRACE_SECONDS = 5.0


@dataclass(frozen=True)
class Stage:
    """Commands of ours, `python -m ...`, one after another until one fails."""

    submission: str  # its folder
    commands: tuple[tuple[str, ...], ...]
    after: tuple[str, ...] = ()  # folders of the submissions before it: what failed there is told

    def __call__(self) -> int:
        """0; or the process ends with the exit status of the command that failed."""
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            for folder in self.after:
                for line in failures(read_submission(Path(folder))):
                    print(f"before this: {line}", file=sys.stderr, flush=True)
            statuses = (_run(words) for words in self.commands)
            status = next((status for status in statuses if status), 0)
        except KeyboardInterrupt:
            status = STOPPED
        return _leave(self.submission, status)

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """What to run after a requeue: the same, which goes on from what is there."""
        return submitit.helpers.DelayedSubmission(self)


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
        if (Path(self.submission) / CANCELLED).exists():
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


def _leave(folder: str, status: int) -> int:
    """The end of a job: for us as a file, for Slurm and what depends on the job as its exit status."""
    leave_outcome(Path(folder), submitit.JobEnvironment().job_id, {"status": status})
    if status:
        sys.exit(status)
    return status


def _run(words: Sequence[str]) -> int:
    """The exit status of one command; it ends with us."""
    words = [each for word in words for each in _expanded(word)]
    start = (
        python() if words[0] == "launch" else [sys.executable, "-m"]
    )  # models may want a container
    child = subprocess.Popen([*start, *words], stdin=subprocess.DEVNULL)
    try:
        status = child.wait()
        if status == -signal.SIGUSR2:  # the time is up for both of us: our own handler requeues
            time.sleep(GRACE_SECONDS)
        return status
    finally:
        child.terminate()
        child.wait()


def _expanded(word: str) -> list[str]:
    path = Path(word)
    if path.name != EVERY_RUN:
        return [word]
    return sorted({str(step.parents[1]) for step in path.parent.glob("*/checkpoints/step-*")})
