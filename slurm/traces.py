"""What the jobs of a submission leave in its folder. JOB is Slurm's id (17, or 17_3 in an array) or a process id.

JOB.outcome.json     when it is over for good: {"status": exit status of `launch run`,
                     "runs": {run id: {"state", "cause", "message"}}}
JOB.attempts.json    a list, one entry for each start: {"number", "nodes", "cause", "message", ...}
JOB.attempt-N.log    what that attempt said
JOB_0_log.out        what was said around the attempts
controller.log       of a local job: what its shell said
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from slurm.attempts import ATTEMPTS_SUFFIX
from slurm.ledger import OUTCOME_SUFFIX, Submission

CONTROLLER_LOG = "controller.log"
SETUP_FAILED = "setup: this line failed:"  # before one of the cluster file, in a log
TAIL_BYTES = 8192
LINE_LENGTH = 500
_NAME = re.compile(
    r"\d+(?:_(\d+))?(\.outcome\.json|\.attempts\.json|\.attempt-(\d+)\.log|_0_log\.out)"
)

_NOISE = re.compile(r"submitit |srun: error: .*: Exited with exit code")


@dataclass
class Trace:
    """What one task has left."""

    outcome_path: Path | None = None
    attempts_path: Path | None = None
    logs: list[tuple[int, Path]] = field(default_factory=list)  # by attempt; 0: around them

    @cached_property
    def outcome(self) -> dict[str, Any] | None:
        """None while it is not over for good, and for one that was killed."""
        return _json(self.outcome_path) if self.outcome_path else None

    @cached_property
    def attempts(self) -> list[dict[str, Any]]:
        return _json(self.attempts_path) if self.attempts_path else []

    @property
    def log(self) -> Path | None:
        """Of the newest attempt."""
        return max(self.logs)[1] if self.logs else None


def traces(submission: Submission) -> dict[int, Trace]:
    """What each task has left, by its index; the folder is listed once."""
    found: dict[int, Trace] = {index: Trace() for index in range(len(submission.tasks))}
    for path in submission.folder.iterdir():
        match = _NAME.fullmatch(path.name)
        if match is None or int(match[1] or 0) not in found:
            continue
        trace = found[int(match[1] or 0)]
        if match[2] == OUTCOME_SUFFIX:
            trace.outcome_path = path
        elif match[2] == ATTEMPTS_SUFFIX:
            trace.attempts_path = path
        else:
            trace.logs.append((int(match[3] or 0), path))
    if submission.executor == "local" and not found[0].logs:
        found[0].logs = [(0, path) for path in submission.folder.glob(CONTROLLER_LOG)]
    return found


def failures(submission: Submission) -> Iterator[str]:
    """One line for each task that did not end well, with its log."""
    for index, trace in traces(submission).items():
        status = trace.outcome["status"] if trace.outcome else None
        if status != 0:
            what = ", ".join(submission.tasks[index][:3])
            how = "ended without a word" if status is None else f"exit status {status}"
            said = last_lines(trace.log, 1)
            yield f"{what}: {how}{''.join(f': {line}' for line in said)} (log: {trace.log or 'none'})"


def last_lines(log: Path | None, number: int) -> list[str]:
    """The last lines of a log that say something: not submitit's own, nor srun's about an exit status."""
    if log is None:
        return []
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    said = [line for line in lines if line.strip() and not _NOISE.match(line)]
    return [line.strip()[:LINE_LENGTH] for line in said[-number:]]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(
            f"{path}: not readable ({error}); wanted what a job wrote there. Remove this file: its runs "
            "then count as killed, and the next submit goes on with them."
        ) from None
