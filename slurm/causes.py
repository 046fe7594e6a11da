"""Why an attempt ended, and what to do then. Pure functions: nothing here touches a job.

An attempt whose run has got on since the one before may always be repeated. One that has not is repeated
in place, then once more on other nodes, and then given up. What would come again is never repeated.
"""

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum

from launch.exits import BAD_INPUT, FAILED, LOST, STOPPED
from launch.stopping import STOP_SIGNALS
from slurm.attempts import Attempt
from slurm.step import Ended

CRASHES = 3  # in a row, without a new checkpoint
INTERRUPTIONS = 10  # the same, of those that are nobody's fault

_MEMORY = re.compile(
    r"out ?of ?memory|can't allocate memory|MemoryError|Cannot allocate memory", re.I
)
_ENDED_BY_SLURM = re.compile(r"CANCELLED AT \S+ DUE TO (JOB REQUEUE|PREEMPTION|TIME LIMIT)")
_HARDWARE = re.compile(  # and a node that has lost its hold on the shared file system
    r"uncorrectable ECC|ECC error|GPU is lost|fallen off the bus|NVLink|hardware error|"
    r"CUDA error: (?:unknown error|unspecified launch failure)|ncclSystemError|ncclRemoteError|"
    r"Input/output error|Stale file handle|Transport endpoint is not connected|Remote I/O error",
    re.I,
)
_DIED = re.compile(r"rank (\d+) died")
_REFUSED = re.compile(  # in srun's words: it asked for more than its job has
    r"only allocated|node configuration|more processors|memory required|generic resource|trackable resource|"
    r"mutually exclusive",
    re.I,
)


class Cause(StrEnum):
    """Why an attempt ended."""

    DONE = "done"
    STOPPED = "time limit or preemption"
    CANCELLED = "cancelled"
    NODE = "node failure"
    STEP = "its ranks could not be started"
    BUSY = "in other hands"
    KILLED = "killed"
    HANG = "hang"
    MEMORY = "out of memory"
    FAILED = "failed"
    NO_PROGRESS = "no progress"


class Action(Enum):
    """What to do about a run whose attempt has ended."""

    AGAIN = "again, here"
    REQUEUE = "again, as a job of its own turn"
    GIVE_UP = "give up"


@dataclass(frozen=True)
class Finding:
    """Why one attempt ended; `node`: the node that it is laid to."""

    cause: Cause
    message: str
    node: str | None = None


@dataclass(frozen=True)
class Decision:
    """What to do, without which nodes, and why if it is to give up."""

    action: Action
    exclude: tuple[str, ...] = ()
    finding: Finding | None = None


def find(ended: Ended, failure: str | None, memory_event: bool) -> Finding:
    """From how the ranks ended, what the run has recorded as its error, and the system's own count."""
    first = ended.ends[0] if ended.ends else None
    node = first.node if first else None
    said = failure or (first.words if first else f"exit status {ended.status}")
    killed = first is not None and first.status == -signal.SIGKILL
    if ended.out_of_memory or (memory_event and killed) or _MEMORY.search(failure or ""):
        said = failure or f"{said}; {ended.out_of_memory or 'the system was out of memory'}"
        advice = "Raise memory_gb, or use more ranks, a higher ZeRO stage or a smaller micro-batch"
        return Finding(Cause.MEMORY, f"{said}. {advice}.", node)
    if ended.lost:
        return Finding(Cause.NODE, ended.lost, _named(ended.lost))
    if _HARDWARE.search(failure or ""):
        return Finding(Cause.NODE, said, node)
    if ended.unstarted and ended.status and first is None and not failure:
        return _not_started(ended.unstarted)
    if first is None:
        if ended.status == 0:
            return Finding(Cause.FAILED, "its ranks ended well, but the run is not finished")
        last = f"; its last line: {ended.said}" if ended.said else ""
        return Finding(
            Cause.KILLED,
            f"srun ended with status {ended.status} and told nothing of the ranks{last}",
        )
    if first.status == STOPPED or -first.status in STOP_SIGNALS:
        return Finding(Cause.STOPPED, "stopped by a signal")
    if first.status == LOST:
        return Finding(Cause.HANG, said, node)
    if first.status < 0:
        return Finding(Cause.KILLED, first.words, node)
    if first.status not in (FAILED, BAD_INPUT):
        return Finding(Cause.KILLED, said, node)
    return Finding(Cause.FAILED, said, node)


def cut_short(said: Sequence[str]) -> Finding:
    """Why an attempt ended that could not tell it itself, from the last lines of its log."""
    for line in said:
        if ended := _ENDED_BY_SLURM.search(line):
            how = f"ended by Slurm ({ended[1].lower()}) before it could tell how it stopped"
            return Finding(Cause.STOPPED, how)
    return Finding(Cause.NODE, "ended without a word: its node failed, or everything was killed")


def is_preempted(said: Sequence[str]) -> bool:
    """Whether Slurm says at the end of a log that it ended the job for another one."""
    found = (_ENDED_BY_SLURM.search(line) for line in said)
    return any(match is not None and match[1] == "PREEMPTION" for match in found)


def decide(history: Sequence[Attempt]) -> Decision:
    """What to do after the last of these attempts of one job."""
    last = history[-1]
    cause = Cause(last.cause or Cause.NODE)
    row = _without_progress(history)
    if cause in (Cause.MEMORY, Cause.FAILED):
        return Decision(Action.GIVE_UP, finding=Finding(cause, last.message))
    crashes = [each for each in row if each.cause in (Cause.KILLED, Cause.HANG)]
    if len(row) >= INTERRUPTIONS or len(crashes) >= CRASHES:
        count = len(crashes) if len(crashes) >= CRASHES else len(row)
        message = f"{count} attempts in a row saved no new step; the last: {last.message}"
        return Decision(Action.GIVE_UP, finding=Finding(Cause.NO_PROGRESS, message))
    if cause == Cause.NODE:
        return Decision(Action.REQUEUE, exclude=(last.node,) if last.node else ())
    if cause in (Cause.STOPPED, Cause.BUSY, Cause.STEP):
        return Decision(Action.REQUEUE)
    if len(crashes) < 2:
        return Decision(Action.AGAIN)
    twice = last.node is not None and all(attempt.node == last.node for attempt in crashes)
    return Decision(Action.REQUEUE, exclude=(last.node,) if twice and last.node else ())


def _without_progress(history: Sequence[Attempt]) -> list[Attempt]:
    """The last attempts, oldest first, of the same run, since one that saved a new step."""
    row: list[Attempt] = []
    for number in range(len(history) - 1, -1, -1):
        attempt = history[number]
        before = history[number - 1].saved if number else 0
        if attempt.blamed != history[-1].blamed or attempt.saved > before:
            break
        row.insert(0, attempt)
    return row


def _not_started(said: str) -> Finding:
    """No rank ran. What the job has not been given it will not be given the next time; a controller that was
    away, or a job that was just ended, says nothing about the request."""
    if _REFUSED.search(said):
        advice = "Correct tasks, CPUs, memory or GPUs in the cluster file"
        return Finding(Cause.FAILED, f"{said}. {advice}.")
    return Finding(Cause.STEP, said)


def node_of_lost(said: str, nodes: Sequence[str], ranks: int) -> str | None:
    """The node of the rank that died, in a hang as `launch.lifeline` tells it; None where nobody knows.

    The ranks that say so, and those that wait for each other, are on nodes where all is well.
    """
    if len(nodes) == 1:
        return nodes[0]
    lost = _DIED.search(said)
    return nodes[int(lost[1]) * len(nodes) // ranks] if lost else None  # srun fills node after node


def _named(lost: str) -> str | None:
    """The node in Slurm's words about one."""
    match = re.search(r"(?:node failure|failed) on (?:node )?([\w.-]*\w)", lost, re.I)
    return match[1] if match else None
