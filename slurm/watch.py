"""`submit --wait` and `status --watch`: a study's progress until no job of it is left, from files alone.

On a terminal a live table, elsewhere one line per event. A job that died is noticed within
seconds, and nothing is restarted blindly: the same command again continues.
"""

import signal
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.live import Live

from launch.config import RunConfig
from slurm.cancel import cancel
from slurm.status import UNDER_WAY, RunStatus, StudyStatus, look
from slurm.submit import Round, say, start_missing
from slurm.table import as_table, duration
from slurm.target import Target

LOCAL_POLL_SECONDS = 1.0
SLURM_POLL_SECONDS = 10.0  # squeue asks the controller, which everybody shares
QUARTERS = 4  # without a terminal, a run speaks up at each quarter


def wait(of: Target, found: Round) -> tuple[StudyStatus, bool]:
    """Block until every run is finished or has no job; the last look, and whether Ctrl-C ended it.

    Runs that were elsewhere get a job if they turn out to need one; none is started twice.
    """
    tried = frozenset(found.started)
    seconds = LOCAL_POLL_SECONDS if of.cluster.executor == "local" else SLURM_POLL_SECONDS
    with _Interrupt(of) as interrupt:
        while True:
            status = watch(of.runs, of.folder, seconds)
            if interrupt.count or not found.elsewhere:
                return status, interrupt.count > 0
            found = start_missing(of, tried)
            if not found.said and not found.elsewhere:
                return status, False
            if found.started:
                say(f"{len(found.started)} runs are still to do after another job: starting them")
            tried |= frozenset(found.started)


def watch(
    runs: Sequence[RunConfig], study_folder: Path, seconds: float = SLURM_POLL_SECONDS
) -> StudyStatus:
    """Show the study until no run or stage has a job or a holder; the last look."""
    console = Console(stderr=True)
    live: AbstractContextManager[Any] = (
        Live(console=console, auto_refresh=False) if console.is_terminal else nullcontext()
    )
    before: dict[str, RunStatus] = {}
    said = None
    with live as table:
        while True:
            status = look(runs, study_folder, before)
            if status.slurm not in (None, said):
                say(str(status.slurm))
            said = status.slurm
            if table is None:
                for line in events(before, status.runs):
                    say(line)
            else:
                table.update(as_table(status), refresh=True)
            before = {run.run_id: run for run in status.runs}
            if not status.states & UNDER_WAY:
                return status
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
        for line in cancel(self._of.folder).kept:
            say(line)
