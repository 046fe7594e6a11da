"""Why a job is over although its run is not finished, from what it left."""

import socket
from collections.abc import Callable
from pathlib import Path

from launch.exits import STOPPED
from slurm.ledger import CANCELLED, Submission, read_submission
from slurm.traces import SETUP_FAILED, Trace, failures, last_lines

LINES = 3  # of a log that may name the cause
NO_ROOM = ("No space left on device", "Disk quota exceeded", "Read-only file system")
TOLD = 3  # of the jobs before it that failed
KILLED = "its job ended without a word: killed from outside, or out of memory"


def failed_before(folder: str) -> list[str]:
    """What went wrong in the submission of that folder, a line for each of its jobs."""
    path = Path(folder)
    return list(failures(read_submission(path))) if path.exists() else []


def why_ended(
    run_id: str,
    submission: Submission,
    trace: Trace,
    before: Callable[[str], list[str]],
) -> str | None:
    """In words; None if the job was asked to stop. `before`: `failed_before`, or what remembers its answers."""
    if (submission.folder / CANCELLED).exists():
        return None
    if trace.outcome is None:
        return _why_killed(submission, trace, before)
    mine = trace.outcome.get("runs", {}).get(run_id)
    if mine and mine["cause"] and mine["state"] == "failed":
        return f"{mine['cause']}: {mine['message']}"
    if trace.outcome["status"] == STOPPED:
        return None
    said = last_lines(trace.log, 1)
    return said[0] if said else f"its job exited with status {trace.outcome['status']}"


def _why_killed(submission: Submission, trace: Trace, before: Callable[[str], list[str]]) -> str:
    if submission.executor == "local" and submission.host != socket.gethostname():
        return f"its job was started on {submission.host}: only there is it seen whether it lives"
    for line in last_lines(trace.log, LINES):
        if any(words in line for words in NO_ROOM):
            return f"{line}; wanted room in {submission.folder.parents[1]}. Make some, then submit again to continue."
        if line.startswith(SETUP_FAILED) or line.startswith("slurmstepd: error:"):
            return line
    if trace.log is None and submission.executor == "slurm":
        failed = [line for folder in submission.after for line in before(folder)]
        if failed:
            more = f"; and {len(failed) - TOLD} more" if len(failed) > TOLD else ""
            return f"not started: {'; '.join(failed[:TOLD])}{more}"
        return (
            f"its job left no log in {submission.folder}: it was removed from the queue, or its node does "
            "not see this folder; wanted --results on a file system that all nodes share"
        )
    return KILLED
