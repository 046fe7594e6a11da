"""What was submitted, kept as files, and which of it is alive.

    results/STUDY/jobs/KEY/     one per submission: submission.json and submitit's files and logs

`submission.json` is written before anything starts. A local job is alive while a process of this
machine has its folder on its command line; a Slurm job while `squeue` knows its name, which is
`STUDY-KEY`. So there are no process ids to go stale, and a `submit` killed at any moment leaves
nothing that the next one cannot find.
"""

import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launch.folder import LOCK_FILE

JOBS = "jobs"
RECORD = "submission.json"
SUBMIT_LOCK = "submit.lock"
CANCELLED = "cancelled"  # in a submission's folder: its jobs are to end before they begin
OUTCOME_SUFFIX = ".outcome.json"  # JOB_ID.outcome.json: {"status": exit status of `launch run`}
FAILED = 1  # exit status of `launch run` when a run failed
STOPPED = 3  # `launch run` stopped early, with a checkpoint
Processes = dict[int, tuple[str, ...]]


@dataclass(frozen=True)
class Submission:
    """Jobs that were started together: one (local) or the tasks of an array (Slurm)."""

    folder: Path
    name: str
    executor: str
    host: str
    time: float  # seconds since 1970
    tasks: tuple[tuple[str, ...], ...]  # run ids of each

    @property
    def run_ids(self) -> frozenset[str]:
        return frozenset(run_id for task in self.tasks for run_id in task)

    @property
    def statuses(self) -> list[int]:
        """Exit statuses of the jobs that ended in order; a killed one leaves none."""
        paths = sorted(self.folder.glob(f"*{OUTCOME_SUFFIX}"))
        return [json.loads(path.read_text())["status"] for path in paths]

    def log(self, run_id: str) -> Path | None:
        """The log of the job that has this run."""
        task = next(index for index, run_ids in enumerate(self.tasks) if run_id in run_ids)
        pattern = f"*_{task}_0_log.out" if len(self.tasks) > 1 else "*_log.out"
        return next(iter(sorted(self.folder.glob(pattern))), None)


def open_submission(
    study_folder: Path, study: str, executor: str, tasks: Sequence[tuple[str, ...]]
) -> Submission:
    """Record what is about to start, in a new folder of its own."""
    now = time.time()
    key = f"{time.strftime('%Y%m%d-%H%M%S', time.localtime(now))}-{secrets.token_hex(3)}"
    folder = study_folder / JOBS / key
    folder.mkdir(parents=True)
    submission = Submission(
        folder, f"{study}-{key}", executor, socket.gethostname(), now, tuple(tasks)
    )
    record = {name: value for name, value in asdict(submission).items() if name != "folder"}
    temporary = folder / f".{RECORD}"
    temporary.write_text(json.dumps(record))
    temporary.replace(folder / RECORD)
    return submission


def submissions(study_folder: Path) -> list[Submission]:
    """All that were ever made, oldest first. Raises `ValueError` for a record that is damaged."""
    return sorted(
        (_read(path) for path in (study_folder / JOBS).glob(f"*/{RECORD}")),
        key=lambda submission: submission.time,
    )


def _read(path: Path) -> Submission:
    try:
        fields: dict[str, Any] = json.loads(path.read_text())
        fields["tasks"] = tuple(tuple(task) for task in fields["tasks"])
        return Submission(folder=path.parent.absolute(), **fields)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: not the record of a submission ({error}); wanted what `slurm submit` wrote "
            "there. See that none of its jobs is running, then remove this folder."
        ) from None


def live_runs(
    all_submissions: Sequence[Submission], *, ask_slurm: bool = True
) -> dict[str, Submission]:
    """The runs whose job is running or waiting for its turn, and that job's submission.

    Without asking Slurm, its jobs count as alive until they have left an outcome. Raises `OSError`
    with Slurm's words if it does not answer.
    """
    processes = _processes()
    on_slurm = [each for each in all_submissions if each.executor == "slurm"]
    if ask_slurm:
        queue = _queue() if on_slurm else set()
    else:
        queue = {(each.name, "N/A") for each in on_slurm if len(each.statuses) < len(each.tasks)}
    live = {}
    for submission in all_submissions:
        local = (
            submission.executor == "local" and not submission.statuses
        )  # it may still be exiting
        here = local and bool(_of(submission, processes))
        for index, run_ids in enumerate(submission.tasks):
            if here or {(submission.name, str(index)), (submission.name, "N/A")} & queue:
                live.update(dict.fromkeys(run_ids, submission))
    return live


def end(submission: Submission) -> None:
    """Ask its jobs to stop at the next step, with a checkpoint."""
    (submission.folder / CANCELLED).touch()  # for a job that is not ready for signals yet
    if submission.executor == "slurm":
        _scancel(submission.name)
        return
    for pid, words in _of(submission, _processes()).items():
        if "submitit.core._submit" in words:  # the process that trains, not those that watch it
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)


def _scancel(name: str) -> None:
    try:
        subprocess.run(["scancel", "--name", name], check=True, capture_output=True, text=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        words = getattr(error, "stderr", None) or error
        raise OSError(
            f"scancel --name {name}: {words}; wanted to end these jobs. Run this on a machine of "
            "the cluster."
        ) from None


def clear_stillborn(all_submissions: Sequence[Submission]) -> None:
    """Kill local jobs that a killed `submit` left without work; call this with the submit lock.

    Submitit starts a process, then hands it its work as a file; the process waits a minute for it.
    """
    processes = _processes()
    for submission in all_submissions:
        if submission.executor == "local" and not list(submission.folder.glob("*_submitted.pkl")):
            for pid in _of(submission, processes):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _of(submission: Submission, processes: Processes) -> Processes:
    """The processes of a local submission, if it is of this machine.

    Each ends with the folder: submitit's controller, the job itself, and the shell around them.
    """
    folder = str(submission.folder)
    if submission.host != socket.gethostname():
        return {}
    return {
        pid: words
        for pid, words in processes.items()
        if words[-1].rstrip("'").endswith(folder) and any("submitit." in word for word in words)
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


def _queue() -> set[tuple[str, str]]:
    """(job name, index in the array or N/A) of this user's jobs that Slurm has not ended.

    Raises `OSError` with Slurm's words.
    """
    if shutil.which("squeue") is None:
        raise OSError(
            "squeue: not found; wanted it to ask about this study's Slurm jobs. Run this on a "
            "machine of the cluster."
        )
    command = ["squeue", "--me", "--array", "--noheader", "--format=%j|%K"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if answer.returncode:
        raise OSError(
            f"squeue: {answer.stderr.strip()}; wanted the list of your jobs. Try again when Slurm "
            "answers."
        )
    rows = (line.strip().rsplit("|", 1) for line in answer.stdout.splitlines() if "|" in line)
    return {(name, index) for name, index in rows}


# --- locks ---


def held(run_folder: Path) -> str | None:
    """Who holds the run's lock, as 'process PID on HOST'; None if nobody does.

    Only a lock whose holder seems to live is tried: trying takes it for a moment.
    """
    path = run_folder / LOCK_FILE
    try:
        pid, host = path.read_text().split()
        if host == socket.gethostname() and not Path(f"/proc/{int(pid)}").exists():
            return None
        with path.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return f"process {pid} on {host}"
    except (OSError, ValueError):
        return None
    return None


@contextmanager
def submit_lock(study_folder: Path) -> Iterator[None]:
    """One `submit` at a time decides about a study; a second one waits here for a few seconds."""
    study_folder.mkdir(parents=True, exist_ok=True)
    with (study_folder / SUBMIT_LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
