"""The study as it is now: what each run's files, its job and Slurm say about it."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from launch.config import CONFIG_FILE, RunConfig
from launch.folder import FAILED_FILE
from launch.results import METRICS_FILE, read_progress
from slurm.alive import Live, Traces, by_run, live_tasks
from slurm.endings import failed_before, why_ended
from slurm.ledger import (
    CHECK,
    EVALUATE,
    REPORT,
    TRAIN,
    Submission,
    held,
    newest_round,
    submissions,
    submissions_before,
)
from slurm.traces import Trace, last_lines, traces

UNDER_WAY = frozenset({"running", "waiting"})
RETRIES = 3  # a file that is being written at this moment may not be readable
LOG_LINES = 3


@dataclass(frozen=True)
class RunStatus:
    """One row of the table."""

    run_id: str
    params: int  # N, non-embedding
    state: str  # finished, running, waiting, stopped, failed, not begun, damaged
    step: int
    steps: int
    loss: float | None = None  # of the last step's batch
    tokens_per_second: float | None = None  # the median of the last steps
    eta_seconds: float | None = None
    attempts: int = 0  # of its newest job
    reason: str | None = None  # why it waits; Slurm's word
    cause: str | None = None  # why it failed, or what an operator has to do
    log: str | None = None
    log_lines: tuple[str, ...] = ()  # the last ones, of a run that failed


@dataclass(frozen=True)
class StageStatus:
    """A job that is not training: a part of the data, its check, the report."""

    stage: str
    name: str
    state: str  # finished, running, waiting, stopped, failed
    reason: str | None = None
    cause: str | None = None
    log: str | None = None


@dataclass(frozen=True)
class StudyStatus:
    runs: list[RunStatus]
    stages: list[StageStatus]
    slurm: str | None = None  # why Slurm did not answer, in its words

    @property
    def states(self) -> set[str]:
        """Of all runs and stages."""
        return {run.state for run in self.runs} | {stage.state for stage in self.stages}


@dataclass(frozen=True)
class _Jobs:
    """The submissions of a study, read once."""

    past: list[Submission]  # oldest first
    left: Traces
    live: list[Live]
    by_run: dict[str, Live]
    newest: dict[str, tuple[Submission, Trace]]  # by run
    silent: str | None  # why Slurm did not answer
    failed_before: Callable[[str], list[str]]  # by the folder of a submission, read once


def look(
    runs: Sequence[RunConfig],
    study_folder: Path,
    before: Mapping[str, RunStatus] | None = None,
    live: list[Live] | None = None,
) -> StudyStatus:
    """The state of every run and stage now; if Slurm does not answer, as far as the files tell.

    Runs that were finished `before` are not looked at again. `live`: the living jobs, if known.
    """
    jobs = _read_jobs(study_folder, live)
    statuses = []
    for run in runs:
        run_id = run.run_id  # hashes the configuration: once
        known = (before or {}).get(run_id)
        if known is None or known.state != "finished":
            known = _status(run, run_id, study_folder, jobs)
        statuses.append(known)
    return StudyStatus(statuses, _stages(jobs), jobs.silent)


def _read_jobs(study_folder: Path, live: list[Live] | None) -> _Jobs:
    past, silent = submissions(study_folder), None
    past = [*submissions_before(past), *past]
    left = {each.name: traces(each) for each in past}
    if live is None:
        try:
            live = live_tasks(past, left)
        except OSError as error:
            silent = f"{error} Until then its jobs are taken to be alive."
            live = live_tasks(past, left, ask_slurm=False)
    newest = {
        run_id: (each, left[each.name][task])
        for each in past
        if each.stage == TRAIN
        for task, run_ids in enumerate(each.tasks)
        for run_id in run_ids
    }
    training = by_run([each for each in live if each.submission.stage == TRAIN])
    return _Jobs(past, left, live, training, newest, silent, cache(failed_before))


# --- runs ---


def _status(run: RunConfig, run_id: str, study_folder: Path, jobs: _Jobs) -> RunStatus:
    folder = study_folder / run_id
    submission, trace = jobs.newest.get(run_id, (None, None))
    log = trace.log if trace else None
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
    base["attempts"] = len(trace.attempts) if trace else 0
    if holder:
        return RunStatus(**base, state="running")
    base["eta_seconds"] = None
    live = jobs.by_run.get(run_id)
    failure = _failure(folder)
    # A living job starts a run again after most failures: it has failed when the job gave it up.
    given_up = trace is not None and any(
        run_id in each.get("given_up", ()) for each in trace.attempts
    )
    if failure and (live is None or given_up):
        return RunStatus(**base, state="failed", cause=failure[0], log_lines=_tail(log))
    if live:
        to_do = _to_do(live, trace)
        return RunStatus(**base, state="waiting", reason=_reason(live, to_do), cause=to_do)
    begun = (folder / CONFIG_FILE).exists() or (folder / METRICS_FILE).exists()
    cause = (
        why_ended(run_id, submission, trace, jobs.failed_before) if submission and trace else None
    )
    state = "failed" if cause else "stopped" if begun else "not begun"
    return RunStatus(**base, state=state, cause=cause, log_lines=_tail(log) if cause else ())


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
    seconds = median(rows["seconds"].tolist())  # of so few, numpy's own takes ten times as long
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


def _to_do(live: Live, trace: Trace | None) -> str | None:
    """What an operator has to do before Slurm may start the job again, if that is what it waits for."""
    waits = live.queued is not None and "held" in live.queued.reason.lower()
    return (trace.attempts[-1].get("held") or None) if waits and trace and trace.attempts else None


def _reason(live: Live, to_do: str | None) -> str | None:
    """Why a run with a living job does not train."""
    if to_do:
        return "for an operator"
    if live.queued is None:
        return None
    if live.queued.state == "PENDING":
        return live.queued.reason
    return "starting" if len(live.submission.tasks[live.task]) == 1 else "its job has others first"


def _tail(log: Path | None) -> tuple[str, ...]:
    return tuple(last_lines(log, LOG_LINES))


# --- other stages ---


def _stages(jobs: _Jobs) -> list[StageStatus]:
    live = {(each.submission.name, each.task): each for each in jobs.live}
    return [
        _stage(jobs, each, task, live.get((each.name, task)))
        for each in _shown(jobs.past)
        for task in range(len(each.tasks))
    ]


def _shown(past: Sequence[Submission]) -> list[Submission]:
    """What belongs to the newest training: the data that it waits for, and what comes after it. Before any
    training, the newest build."""
    newest = next((each for each in reversed(past) if each.stage == TRAIN), None)
    checks = [each for each in past if each.stage == CHECK]
    if newest:
        checks = [each for each in checks if str(each.folder) in newest.after]
    built = [each for each in past if checks and str(each.folder) in checks[-1].after]
    since = [each for each in past if newest and each.time >= newest.time]
    later = [each for stage in (EVALUATE, REPORT) for each in newest_round(since, stage)]
    return [*built, *checks[-1:], *later]


def _stage(jobs: _Jobs, submission: Submission, task: int, live: Live | None) -> StageStatus:
    trace = jobs.left[submission.name][task]
    base: dict[str, Any] = {
        "stage": submission.stage,
        "name": ", ".join(submission.tasks[task]),
        "log": str(trace.log) if trace.log else None,
    }
    if live:
        waits = live.queued.state == "PENDING" if live.queued else submission.after
        reason = live.queued.reason if live.queued and waits else None
        return StageStatus(**base, state="waiting" if waits else "running", reason=reason)
    if trace.outcome and trace.outcome["status"] == 0:
        return StageStatus(**base, state="finished")
    cause = why_ended("", submission, trace, jobs.failed_before)
    return StageStatus(**base, state="failed" if cause else "stopped", cause=cause)


def as_json(status: StudyStatus) -> str:
    return json.dumps(asdict(status), indent=2)
