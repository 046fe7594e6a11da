"""`submit --wait`: shows a study's progress until no job of it is left, from files alone.

On a terminal a live table, elsewhere one line per event. A job that died is noticed within
seconds, and nothing is restarted blindly: the same command again continues.
"""

import signal
import time
from contextlib import AbstractContextManager, nullcontext
from types import FrameType
from typing import Any

from rich.console import Console
from rich.live import Live

from slurm.ledger import end, live_runs, submissions
from slurm.status import UNDER_WAY, RunStatus, as_table, duration, look
from slurm.submit import Round, Target, say, start_missing

LOCAL_POLL_SECONDS = 1.0
SLURM_POLL_SECONDS = 15.0  # squeue asks the controller, which everybody shares
QUARTERS = 4  # without a terminal, a run speaks up at each quarter


def wait(of: Target, found: Round) -> tuple[list[RunStatus], bool]:
    """Block until every run is finished or has no job; the last look, and whether Ctrl-C ended it.

    Runs that were elsewhere get a job if they turn out to need one; none is started twice.
    """
    tried = frozenset(found.started)
    with _Interrupt(of) as interrupt:
        while True:
            statuses = _watch(of)
            if interrupt.count or not found.elsewhere:
                return statuses, interrupt.count > 0
            found = start_missing(of, tried)
            if not found.started and not found.elsewhere:
                return statuses, False
            if found.started:
                say(f"{len(found.started)} runs are still to do after another job: starting them")
            tried |= frozenset(found.started)


def _watch(of: Target) -> list[RunStatus]:
    """Until no run has a job or a holder."""
    seconds = LOCAL_POLL_SECONDS if of.cluster.executor == "local" else SLURM_POLL_SECONDS
    console = Console(stderr=True)
    live: AbstractContextManager[Any] = (
        Live(console=console, auto_refresh=False) if console.is_terminal else nullcontext()
    )
    before: dict[str, RunStatus] = {}
    with live as table:
        while True:
            statuses = look(of.runs, of.folder, before)
            if table is None:
                for line in events(before, statuses):
                    say(line)
            else:
                table.update(as_table(statuses), refresh=True)
            before = {status.run_id: status for status in statuses}
            if not any(status.state in UNDER_WAY for status in statuses):
                return statuses
            time.sleep(seconds)


def events(before: dict[str, RunStatus], now: list[RunStatus]) -> list[str]:
    """What happened between two looks, one line each."""
    lines = []
    for status in now:
        old = before.get(status.run_id)
        if old is None and status.state not in ("running", "failed"):
            continue
        if old is None or old.state != status.state:
            lines.append(f"{status.run_id}: {status.state}{_detail(status)}")
        elif status.state == "running" and _quarter(old) != _quarter(status):
            lines.append(f"{status.run_id}: {_progress(status)}")
    return lines


def _detail(status: RunStatus) -> str:
    if status.cause:
        return f": {status.cause}"
    return f" ({_progress(status)})" if status.loss is not None else ""


def _progress(status: RunStatus) -> str:
    text = f"step {status.step:,} of {status.steps:,}"
    if status.loss is not None:
        text += f", loss {status.loss:.4f}"
    if status.state == "running" and status.tokens_per_second is not None:
        text += f", {status.tokens_per_second:,.0f} tokens/s"
        text += f", {duration(status.eta_seconds)} left"
    return text


def _quarter(status: RunStatus) -> int:
    return QUARTERS * status.step // status.steps


class _Interrupt:
    """Ctrl-C. Local jobs are asked to stop at their next step, and waited for; Slurm's go on.

    A second Ctrl-C leaves at once.
    """

    def __init__(self, of: Target) -> None:
        self.count = 0
        self._of = of

    def __enter__(self) -> "_Interrupt":
        self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1
        if self.count > 1 or self._of.cluster.executor == "slurm":
            raise KeyboardInterrupt
        say("stopping the jobs at their next step, with a checkpoint (Ctrl-C again: do not wait)")
        for submission in live_runs(submissions(self._of.folder)).values():
            end(submission)
