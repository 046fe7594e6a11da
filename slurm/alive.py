"""Which submitted jobs are alive, and ending them.

A local job is alive while a process of this machine has its folder on its command line; a Slurm job
while `squeue` knows its name, which no other job ever had: an id that comes again, after Slurm was set
up anew, fools nobody.
"""

import os
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from slurm import queue
from slurm.ledger import CANCELLED, Submission, me
from slurm.traces import Trace, traces

Processes = dict[int, tuple[str, ...]]
Queue = dict[tuple[str, str], queue.Queued]  # by the name of the job and the task
Traces = dict[str, dict[int, Trace]]  # by the name of the submission, then by task


@dataclass(frozen=True)
class Live:
    """One task that runs or waits for its turn."""

    submission: Submission
    task: int
    queued: queue.Queued | None = None  # what Slurm says; None of a local job

    @property
    def job(self) -> str:
        """Slurm's id of the whole array; empty of a local job."""
        return self.queued.job.split("_")[0] if self.queued else ""


def live_tasks(
    past: Sequence[Submission], left: Traces | None = None, *, ask_slurm: bool = True
) -> list[Live]:
    """The tasks that are alive; `left`: what they have left, if the caller has read it.

    Without asking Slurm, its jobs count as alive until they have left an outcome. Raises `OSError`
    with Slurm's words if it does not answer.
    """
    left = left or {each.name: traces(each) for each in past}
    open_tasks = [
        (each, task)
        for each in past
        for task, trace in left[each.name].items()
        if trace.outcome_path is None  # one that has left it may still be exiting
    ]
    with_open = {each.name: each for each, _ in open_tasks}.values()
    of_slurm = [each for each in with_open if each.executor == "slurm"]
    queued = _queued(of_slurm) if of_slurm and ask_slurm else {}
    processes = _processes() if len(of_slurm) < len(with_open) else {}
    running = {each.name for each in with_open if _of(each, processes)}
    found = []
    for each, task in open_tasks:
        known = queued.get((each.name, str(task))) or queued.get((each.name, "N/A"))
        assumed = each.executor == "slurm" and not ask_slurm
        if known or assumed or each.name in running:
            found.append(Live(each, task, known))
    return found


def _queued(submitted: Sequence[Submission]) -> Queue:
    """What Slurm has of these. Raises `OSError` if it does not answer, hides from us whether they are alive, or is
    another one."""
    _refuse_other_slurm(submitted)
    found = queue.queue({each.user or me() for each in submitted})
    seen = {name for name, _ in found}
    unseen = [each for each in submitted if each.of_another and each.name not in seen]
    if unseen and queue.hides_others():
        first = min(unseen, key=lambda each: each.time)
        raise OSError(
            f"{first.folder}: was submitted by {first.user}, and this Slurm does not show the jobs of others "
            "(PrivateData); wanted to see whether they live, for no run may be trained twice. Let "
            f"{first.user} type this command; if none of these jobs is queued any more, remove this folder."
        )
    return found


def _refuse_other_slurm(submitted: Sequence[Submission]) -> None:
    """What one Slurm has, another does not know: it would seem to be over, and be started again."""
    named = [each for each in submitted if each.slurm]
    elsewhere = next((each for each in named if each.slurm != queue.cluster_name()), None)
    if elsewhere:
        raise OSError(
            f"{elsewhere.folder}: was submitted to the Slurm '{elsewhere.slurm}', and the one that answers here is "
            f"'{queue.cluster_name()}'; wanted to ask the same one, for no run may be trained twice. Type this on a "
            f"machine of '{elsewhere.slurm}'; if it is gone for good, remove this folder."
        )


def by_run(live: Sequence[Live]) -> dict[str, Live]:
    """The runs whose job is alive."""
    return {run_id: each for each in live for run_id in each.submission.tasks[each.task]}


def end(submission: Submission) -> None:
    """Ask its jobs to stop at the next step, with a checkpoint.

    Where that cannot be noted in their folder, jobs of Slurm would take it for a preemption: they are then ended by
    Slurm, and have its KillWait seconds for a save.
    """
    try:
        (submission.folder / CANCELLED).touch()  # for a job that is not ready for signals yet, too
    except OSError:
        if submission.executor == "slurm":
            queue.remove(submission.name)
            return
    if submission.executor == "slurm":
        queue.cancel(submission.name)
        return
    for pid, words in _of(submission, _processes()).items():
        if "submitit.core._submit" in words:  # the job itself, not those that watch it
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)


def without_stillborn(live: Sequence[Live]) -> list[Live]:
    """`live` after jobs that a killed `submit` left without work are ended; call it with the submit lock.

    Submitit starts a job, then hands it its work as a file; the job waits a minute for that file.
    """
    for submission in {each.submission for each in live}:
        if len(list(submission.folder.glob("*_submitted.pkl"))) >= len(submission.tasks):
            continue
        live = [each for each in live if each.submission != submission]
        if submission.executor == "slurm":
            queue.remove(submission.name)
        for pid in _of(submission, _processes()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    return list(live)


def refuse_moved(live: Sequence[Live]) -> None:
    """Raise `ValueError` where living jobs know this results folder by another path."""
    moved = [each.submission for each in live if each.submission.moved]
    if moved:
        was, now = (Path(path).parents[1] for path in (moved[0].origin, moved[0].folder))
        raise ValueError(
            f"{now}: was moved from {was} while {len(moved)} of its jobs are queued or running, and these "
            f"write to {was}; wanted the folder where it was when they were submitted. Move it back, or "
            "end them with cancel and submit again."
        )


def refuse_cancelled(ending: Sequence[Submission]) -> None:
    """Raise `ValueError` while jobs that were cancelled are not over: what they leave undone is not known yet."""
    if ending:
        raise ValueError(
            f"{ending[0].folder}: its jobs were cancelled and are ending; wanted none of them left. Wait a moment, "
            "then run the same command again; what still waits in the queue is ended by another cancel."
        )


def refuse_of_another(live: Sequence[Live]) -> None:
    """Raise `ValueError` where another user's jobs of this study live: what follows them could not be replaced."""
    theirs = [each.submission for each in live if each.submission.of_another]
    if theirs:
        user = theirs[0].user
        raise ValueError(
            f"{theirs[0].folder.parents[1]}: {len(theirs)} jobs of this study are queued or running that {user} "
            f"submitted, and nobody else can end or replace them; wanted one user at a time. Let {user} type this "
            "command, or wait until they have ended."
        )


def _of(submission: Submission, processes: Processes) -> Processes:
    """The processes of a local submission, if it is of this machine.

    Each ends with the folder: submitit's controller, the job itself, and the shell around them.
    """
    if submission.executor != "local" or submission.host != socket.gethostname():
        return {}
    return {
        pid: words
        for pid, words in processes.items()
        if words[-1].rstrip("'").endswith(submission.started_as)
        and any("submitit." in word or word == "slurm.controller" for word in words)
    }


def _processes() -> Processes:
    """The command lines of all processes of this machine; a zombie has none."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                line = (entry / "cmdline").read_bytes().decode(errors="replace")
                found[int(entry.name)] = tuple(line.rstrip("\0").split("\0"))
    return found
