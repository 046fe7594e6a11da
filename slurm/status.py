"""The study as a table: what each run's files, and the jobs that are alive, say about it."""

import json
import socket
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from launch.config import CONFIG_FILE, RunConfig
from launch.folder import FAILED_FILE
from launch.results import METRICS_FILE, read_progress
from slurm.ledger import CANCELLED, STOPPED, Submission, held, live_runs, submissions

UNDER_WAY = ("running", "waiting")
RETRIES = 3  # a file that is being written at this moment may not be readable


@dataclass(frozen=True)
class RunStatus:
    """One row of the table."""

    run_id: str
    params: int  # N, non-embedding
    state: str  # finished, running, waiting, stopped, failed, not begun, damaged
    step: int
    steps: int
    loss: float | None = None  # of the last step's batch
    tokens_per_second: float | None = None
    eta_seconds: float | None = None
    cause: str | None = None
    log: str | None = None


def look(
    runs: Sequence[RunConfig], study_folder: Path, before: Mapping[str, RunStatus] | None = None
) -> list[RunStatus]:
    """The state of every run now; if Slurm does not answer, as far as the files tell.

    Runs that were finished `before` are not looked at again.
    """
    past = submissions(study_folder)
    try:
        live = live_runs(past)
    except OSError as error:
        print(f"{error} Until then its jobs are taken to be alive.", file=sys.stderr)
        live = live_runs(past, ask_slurm=False)
    newest: dict[str, Submission] = {}
    for submission in past:  # oldest first
        newest.update(dict.fromkeys(submission.run_ids, submission))
    statuses = []
    for run in runs:
        run_id = run.run_id  # hashes the configuration: once
        known = (before or {}).get(run_id)
        if known is None or known.state != "finished":
            known = _status(run, run_id, study_folder, newest.get(run_id), live)
        statuses.append(known)
    return statuses


def _status(
    run: RunConfig,
    run_id: str,
    study_folder: Path,
    newest: Submission | None,
    live: dict[str, Submission],
) -> RunStatus:
    """What is known of one run, its `newest` submission, and `ledger.live_runs`."""
    folder = study_folder / run_id
    log = newest.log(run_id) if newest else None
    base: dict[str, Any] = {
        "run_id": run_id,
        "params": run.shape.params_non_embedding,
        "steps": run.train_steps,
        "log": str(log) if log else None,
    }
    holder = held(folder)
    try:
        finished, rows = _read(folder)
    except ValueError as error:
        state = "running" if holder else "damaged"
        return RunStatus(**base, state=state, step=0, cause=None if holder else str(error))
    base |= _progress(rows, run)
    if finished:
        return RunStatus(**base | {"eta_seconds": 0.0}, state="finished")
    if holder:
        return RunStatus(**base, state="running")
    base["eta_seconds"] = None
    failure = _failure(folder)
    if failure and (run_id not in live or failure[1] >= live[run_id].time):
        return RunStatus(**base, state="failed", cause=failure[0])
    if run_id in live:
        return RunStatus(**base, state="waiting")
    begun = (folder / CONFIG_FILE).exists() or (folder / METRICS_FILE).exists()
    cause = _end_of_job(newest, log) if newest else None
    state = "failed" if cause else "stopped" if begun else "not begun"
    return RunStatus(**base, state=state, cause=cause)


def _read(folder: Path) -> tuple[bool, np.ndarray]:
    """Whether the run is finished, and its last rows. Raises `ValueError` if that stays unreadable."""
    for attempt in range(RETRIES):
        try:
            return read_progress(folder)
        except (ValueError, KeyError, OSError) as error:
            if attempt == RETRIES - 1:
                raise ValueError(str(error)) from error
            time.sleep(0.1 * 2**attempt)
    raise AssertionError("unreachable")


def _progress(rows: np.ndarray, run: RunConfig) -> dict[str, Any]:
    if not len(rows):
        return {"step": 0}
    seconds = float(np.median(rows["seconds"]))
    step = int(rows["step"][-1])
    return {
        "step": step,
        "loss": float(rows["loss"][-1]),
        "tokens_per_second": run.tokens_per_step / seconds if seconds > 0 else None,
        "eta_seconds": (run.train_steps - step) * seconds,
    }


def _failure(folder: Path) -> tuple[str, float] | None:
    """The error that ended the run's last attempt, and when."""
    try:
        fields = json.loads((folder / FAILED_FILE).read_text())
        return str(fields["error"]), datetime.fromisoformat(fields["time"]).timestamp()
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        return f"{folder / FAILED_FILE} is not readable ({error})", time.time()


def _end_of_job(submission: Submission, log: Path | None) -> str | None:
    """Why a run is not finished although its job is over; None if the job was asked to stop."""
    statuses = submission.statuses
    if STOPPED in statuses or (submission.folder / CANCELLED).exists():
        return None
    if len(statuses) < len(submission.tasks):
        if submission.executor == "local" and submission.host != socket.gethostname():
            return (
                f"its job was started on {submission.host}: only there is it seen whether it lives"
            )
        return "its job ended without a word: killed from outside, or out of memory"
    lines = log.read_text(errors="replace").split("\n") if log else []
    said = [line for line in lines if line.strip() and not line.startswith("submitit ")]
    return said[-1][:500] if said else f"its job exited with status {max(statuses)}"


# --- how it looks ---


def as_json(statuses: Sequence[RunStatus]) -> str:
    return json.dumps([asdict(status) for status in statuses], indent=2)


def as_table(statuses: Sequence[RunStatus]) -> Table:
    """For rich; the causes are not in it: they are long (`causes`)."""
    table = Table(box=None, pad_edge=False)
    table.add_column("run", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for name in ("N", "step", "loss", "tokens/s", "left"):
        table.add_column(name, justify="right", no_wrap=True)
    for status in statuses:
        table.add_row(
            status.run_id,
            status.state,
            f"{status.params:.3g}",
            f"{status.step:,}/{status.steps:,}",
            _or_dash(status.loss, ".4f"),
            _or_dash(status.tokens_per_second, ",.0f"),
            duration(status.eta_seconds) if status.state == "running" else "",
        )
    return table


def causes(statuses: Sequence[RunStatus]) -> list[str]:
    """One line for each thing that kept runs from finishing: the runs, what, and where to look."""
    grouped: dict[tuple[str, str, str | None], list[str]] = defaultdict(list)
    for status in statuses:
        if status.cause:
            grouped[status.state, status.cause, status.log].append(status.run_id)
    return [
        f"{state}: {', '.join(run_ids)}: {cause}" + (f" (log: {log})" if log else "")
        for (state, cause, log), run_ids in grouped.items()
    ]


def duration(seconds: float | None) -> str:
    """65 -> '1:05', 3700 -> '1:01:40'."""
    if seconds is None:
        return "-"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
