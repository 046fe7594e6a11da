"""Has a job's ranks start, finds out why they ended, and has them start again, here or after a requeue.

It runs on the job's first node, beside the ranks: nothing that happens to one of them takes the one
along that decides, and nothing on a login node has to stay alive. What it knows is in files, so that a
requeue goes on where it was. What is decided when is in `slurm.causes`.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from launch.exits import BAD_INPUT, FAILED, STOPPED
from launch.folder import record_failure
from slurm.allocation import ELSEWHERE, HERE, OUT_OF_TIME, OVER, Allocation
from slurm.attempts import Attempt, Attempts
from slurm.causes import (
    Action,
    Cause,
    Decision,
    Finding,
    cut_short,
    decide,
    find,
    is_preempted,
    node_of_lost,
)
from slurm.health import verdict
from slurm.ledger import CANCELLED, held
from slurm.memory_kills import memory_kills
from slurm.step import Ended
from slurm.traces import last_lines
from slurm.work import Work

LINES = 100  # at the end of a log, in which Slurm may have said why it ended an attempt
LOCK_SECONDS = 120.0  # for a predecessor on a node that Slurm has given up to let go of its runs


class Supervisor:
    """One life of a job: from its start, or a requeue, to its end or the next requeue."""

    def __init__(
        self, work: Work, allocation: Allocation, signal_received: Callable[[], int], seconds: float
    ) -> None:
        """`seconds`: for the check of the nodes."""
        self._work, self._allocation, self._seconds = work, allocation, seconds
        self._signal_received = signal_received
        self._attempts = Attempts(work.submission, work.name, allocation.restart)
        self._finished: set[str] = set()

    def work(self) -> bool:
        """Whether the job is over for good; if not, it is to have another life."""
        self._take_over()
        while self._left():
            if self._asked_to_stop():
                return self._stopped()
            self._wait_for_locks()
            attempt = self._bad_nodes() or self._attempt()
            if self._attempts.superseded:
                say("Slurm has started this job anew elsewhere: this one ends")
                return False
            if attempt.cause == Cause.DONE:
                continue
            if attempt.cause in (Cause.FAILED, Cause.MEMORY):
                self._again(attempt)  # without it
                continue
            if attempt.cause in (Cause.STOPPED, Cause.CANCELLED) and self._asked_to_stop():
                return self._stopped()
            if (state := self._state()) != HERE:
                say(f"for Slurm this job is {state}")
                return state != ELSEWHERE
            if not self._again(attempt):
                return self._requeue(self._attempts.all[-1])
        return True

    def outcome(self) -> dict[str, Any]:
        """How it stands with each run, and the exit status that follows from it."""
        given_up = self._given_up()
        runs: dict[str, dict[str, str | None]] = {}
        for run_id in self._work.run_ids:
            if self._is_finished(run_id):
                runs[run_id] = {"state": "finished", "cause": None, "message": ""}
            elif run_id in given_up:
                cause, message = given_up[run_id]
                runs[run_id] = {"state": "failed", "cause": cause, "message": message}
            else:
                runs[run_id] = {"state": "stopped", "cause": Cause.STOPPED, "message": ""}
        states = {run["state"] for run in runs.values()}
        status = FAILED if "failed" in states else STOPPED if "stopped" in states else 0
        return {"status": status, "runs": runs}

    # --- what is left to do

    def _left(self) -> list[str]:
        """The runs that are neither finished nor given up, in order."""
        given_up = self._given_up()
        return [
            run_id
            for run_id in self._work.run_ids
            if run_id not in given_up and not self._is_finished(run_id)
        ]

    def _is_finished(self, run_id: str) -> bool:
        if run_id not in self._finished and self._work.finished(run_id):
            self._finished.add(run_id)
        return run_id in self._finished

    def _given_up(self) -> dict[str, Sequence[str]]:
        return {run_id: why for each in self._attempts.all for run_id, why in each.given_up.items()}

    def _saved(self) -> int:
        runs = self._work.runs
        return sum(
            runs[each].train_steps if self._is_finished(each) else self._work.saved(each)
            for each in runs
        )

    def _asked_to_stop(self) -> bool:
        return self._signal_received() != 0 or self._cancelled

    @property
    def _cancelled(self) -> bool:
        return (self._work.submission / CANCELLED).exists()

    def _take_over(self) -> None:
        """Close what a life that was cut short left open."""
        last = self._attempts.all[-1] if self._attempts.all else None
        left = self._left()
        if last and last.ended is None and left:
            log = self._work.submission / last.log
            found = cut_short(last_lines(log, LINES) if log.exists() else ())
            self._attempts.end(
                cause=found.cause, message=found.message, blamed=left[0], saved=self._saved()
            )
            decision = decide(self._attempts.all)  # a run may take its node along every time
            if decision.action == Action.GIVE_UP and decision.finding:
                self._give_up(left[0], decision.finding)

    def _wait_for_locks(self) -> None:
        """Slurm may have given up a node where all is well: what is left there has to let go first."""
        deadline, told = time.monotonic() + LOCK_SECONDS, ""
        while time.monotonic() < deadline and not self._asked_to_stop():
            holders = (held(self._work.folder(each)) for each in self._left())
            holder = next(filter(None, holders), None)
            if holder is None:
                return
            if holder != told:
                say(f"waiting for {holder}, which trains a run of this job")
            told = holder
            time.sleep(2.0)

    # --- an attempt

    def _attempt(self) -> Attempt:
        left = self._left()
        attempt = self._attempts.begin(left, self._allocation.nodes)
        where = f"{self._allocation.ranks} ranks of {', '.join(attempt.nodes)}"
        say(f"attempt {attempt.number}: {len(left)} runs on {where} (log: {attempt.log})")
        work = self._work
        words = ["slurm.rank", str(work.submission), str(work.data), str(work.results)]
        words += [str(work.at_a_time), *left]
        kills = memory_kills()
        step = self._allocation.start(words, work.submission / attempt.log, attempt.number)
        ended = step.wait(self._asked_to_stop, self._superseded)
        if self._attempts.superseded:
            return attempt
        return self._explain(attempt, ended, memory_kills() > kills)

    def _superseded(self) -> bool:
        return self._attempts.superseded

    def _explain(self, attempt: Attempt, ended: Ended, memory_event: bool) -> Attempt:
        """Why it ended. A run that failed by itself before the one under way is given up."""
        left = self._left()
        if not left:
            return self._attempts.end(cause=Cause.DONE, saved=self._saved())
        failures = {run_id: self._work.failure(run_id, attempt.began) for run_id in left}
        status = ended.ends[0].status if ended.ends else ended.status
        quiet = [run_id for run_id in left if failures[run_id] is None]
        # One process goes on after a run that failed, and says at its end that there was one.
        alone = status in (FAILED, BAD_INPUT) or not quiet
        blamed = (
            next((run_id for run_id in left if failures[run_id]), left[0]) if alone else quiet[0]
        )
        finding = find(ended, failures[blamed], memory_event)
        holder = held(self._work.folder(blamed)) if not failures[blamed] else None
        if finding.cause == Cause.FAILED and holder:
            finding = Finding(Cause.BUSY, f"{blamed} is trained by {holder}")
        if finding.cause == Cause.HANG:
            finding = replace(
                finding, node=node_of_lost(finding.message, attempt.nodes, self._allocation.ranks)
            )
        if finding.cause == Cause.STOPPED and self._cancelled:
            finding = Finding(Cause.CANCELLED, "cancelled")
        for run_id in left:
            if run_id != blamed and (failure := failures[run_id]):
                self._give_up(run_id, find(Ended(FAILED), failure, False))
        say(f"attempt {attempt.number}: {finding.cause}: {finding.message}")
        return self._attempts.end(
            cause=finding.cause,
            message=finding.message,
            node=finding.node,
            blamed=blamed,
            saved=self._saved(),
        )

    def _bad_nodes(self) -> Attempt | None:
        """The nodes are tried first; if any is bad, an attempt that ended before it began."""
        ranks, nodes = self._allocation.ranks, self._allocation.nodes
        if ranks == 1 and not os.environ.get("SLURM_GPUS_ON_NODE"):
            return None  # one process on a CPU has nobody to wait for
        number = len(self._attempts.all) + 1
        folder = self._work.submission / f"{self._work.name}.health-{number}"
        folder.mkdir(exist_ok=True)
        for path in folder.iterdir():
            path.unlink()  # of a life that was cut short
        words = ["slurm.health", str(folder), str(ranks // len(nodes)), str(self._work.data)]
        step = self._allocation.start(words, folder.with_name(f"{folder.name}.log"), 1000 + number)
        ended = step.wait(
            lambda: False, lambda: self._asked_to_stop() or self._superseded(), self._seconds
        )
        if self._asked_to_stop() or ended.status == 0:
            return None
        finding, bad = verdict(folder, nodes, ranks // len(nodes), ended, self._seconds)
        if finding is None:
            return None
        say(f"{finding.cause}: {finding.message}")
        self._attempts.begin(self._left(), nodes)
        return self._attempts.end(
            cause=finding.cause,
            message=finding.message,
            node=finding.node,
            exclude=bad,
            blamed=self._left()[0],
            saved=self._saved(),
        )

    # --- what follows

    def _again(self, attempt: Attempt) -> bool:
        """Whether to go on here; else the job is to be requeued."""
        decision = decide(self._attempts.all)
        if decision.action == Action.GIVE_UP and decision.finding:
            self._give_up(attempt.blamed or self._left()[0], decision.finding)
            return True
        if decision.action == Action.REQUEUE and self._allocation.can_requeue:
            self._attempts.end(ended=attempt.ended, **self._without(attempt, decision))
            return False
        return True

    def _without(self, attempt: Attempt, decision: Decision) -> dict[str, object]:
        """The nodes that the requeued job does without; or, where too few others fit it, why it is held.

        It is held only for nodes that failed the check before training. One that Slurm has lost gets no job until it
        is back, which Slurm sees to; one on which ranks were killed is tried again, as often as `decide` allows.
        """
        exclude = (*attempt.exclude, *decision.exclude)
        if not exclude or self._allocation.can_do_without(exclude):
            return {"exclude": exclude}
        names = ", ".join(exclude)
        if not attempt.exclude:
            say(f"{names} not left out: without, this partition has too few nodes that fit the job")
            return {}
        held = (
            f"{attempt.message}; without {names} this partition has too few nodes that fit the job. Have {names} "
            f"repaired, then: {self._allocation.release}"
        )
        return {"exclude": (), "held": held}

    def _give_up(self, run_id: str, finding: Finding) -> None:
        say(f"{run_id}: given up: {finding.cause}: {finding.message}")
        last, folder = self._attempts.all[-1], self._work.folder(run_id)
        # Who holds its lock trains it well: only this job gives it up.
        if self._work.failure(run_id, last.began) is None and held(folder) is None:
            record_failure(folder, RuntimeError(f"{finding.cause}: {finding.message}"))
        given_up = last.given_up | {run_id: (finding.cause, finding.message)}
        self._attempts.end(ended=last.ended or time.time(), given_up=given_up)

    def _stopped(self) -> bool:
        """After a signal: whether that was the end."""
        if self._cancelled:
            return True
        if not self._allocation.can_requeue:
            return self._signal_received() != signal.SIGUSR2
        state = self._state()
        if state == OVER and self._preempted():
            say("Slurm has cancelled this job for another one, and has it started anew")
            state = HERE
        return self._requeue() if state in (HERE, OUT_OF_TIME) else state != ELSEWHERE

    def _state(self) -> str:
        """As `Allocation.state`; HERE where Slurm does not answer: the requeue that follows is refused in words."""
        try:
            return self._allocation.state()
        except OSError as error:
            say(f"not known how Slurm means this job to go on: {error}")
            return HERE

    def _preempted(self) -> bool:
        """Whether the last attempt was ended in favour of another job: with PreemptMode=CANCEL that is told in the
        log of the ranks alone."""
        last = self._attempts.all[-1] if self._attempts.all else None
        log = self._work.submission / last.log if last else None
        return log is not None and log.exists() and is_preempted(last_lines(log, LINES))

    def _requeue(self, after: Attempt | None = None) -> bool:
        """Whether the job is over, because Slurm refuses to start it anew."""
        try:
            if after and after.held:
                say(f"waits for an operator: {after.held}")
                self._allocation.hold()
            else:
                self._allocation.requeue(after.exclude if after else ())
        except OSError as error:
            say(f"not requeued: {error}. Submit the study again to continue.")
            return True
        return False


def say(line: str) -> None:
    """Into the job's own log."""
    print(f"job: {line}", file=sys.stderr, flush=True)
