"""What was submitted, kept as files.

    results/STUDY/jobs/KEY/     one per submission: submission.json, runs.json, submitit's files and logs

`submission.json` is written before anything starts, and its KEY is in the name of Slurm's jobs. So there
are no process or job ids to go stale, and a `submit` killed at any moment leaves nothing that the next
one cannot find. `slurm.alive` says which of it is alive, `slurm.traces` what it has left.
"""

import fcntl
import hashlib
import json
import os
import pwd
import secrets
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from data_prep.locks import NO_LOCKS
from launch.folder import LOCK_FILE, flock

JOBS = "jobs"
RECORD = "submission.json"
SUBMIT_LOCK = "submit.lock"
WANTED = "wanted"  # in a build's folder: who waits for it
CANCELLED = "cancelled"  # in a submission's folder: its jobs are to end before they begin
OUTCOME_SUFFIX = ".outcome.json"  # see slurm.traces
# In a command: the folders of the runs that have a checkpoint by then, and all their checkpoints.
EVERY_RUN, EVERY_CHECKPOINT = "{every run}", "{every checkpoint}"
TRAIN, DATA, CHECK, EVALUATE, REPORT = "train", "data", "check", "evaluation", "report"


@dataclass(frozen=True)
class Submission:
    """Jobs that were started together: one (local) or the tasks of an array (Slurm)."""

    folder: Path
    name: str
    executor: str
    host: str
    time: float  # seconds since 1970
    tasks: tuple[tuple[str, ...], ...]  # run ids of each; of another stage, what it is about
    stage: str = TRAIN
    nodes: int = 1  # of one task of the array
    tasks_per_node: int = 1
    parallelism: int = 1  # tasks of it that may run at a time
    after: tuple[str, ...] = ()  # folders of the submissions that have to end first
    code: str = ""  # the folder of the code that it runs
    origin: str = ""  # where `folder` was then
    user: str = ""  # who made it; empty in records of before this was kept
    slurm: str = ""  # the name of the Slurm that has it; empty locally, and in such records

    @property
    def started_as(self) -> str:
        """Its folder as its jobs know it."""
        return self.origin or str(self.folder)

    @property
    def moved(self) -> bool:
        return self.started_as != str(self.folder)

    @property
    def cancelled(self) -> bool:
        return (self.folder / CANCELLED).exists()

    @property
    def of_another(self) -> bool:
        """Whether another user made it: Slurm lets nobody else end its jobs."""
        return self.user not in ("", me())


@cache
def me() -> str:
    """The user that this process runs as, as Slurm knows them; the number where it has no name here."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def open_submission(
    study_folder: Path,
    study: str,
    executor: str,
    tasks: Sequence[tuple[str, ...]],
    **more: Any,
) -> Submission:
    """Record what is about to start, in a new folder of its own; `more`: fields of `Submission`."""
    now = time.time()
    key = f"{time.strftime('%Y%m%d-%H%M%S', time.localtime(now))}-{secrets.token_hex(3)}"
    folder = study_folder / JOBS / key
    folder.mkdir(parents=True)
    submission = Submission(
        folder=folder,
        name=f"{study}-{key}",
        executor=executor,
        host=socket.gethostname(),
        time=now,
        tasks=tuple(tasks),
        origin=str(folder),
        user=me(),
        **more,
    )
    record = {name: value for name, value in asdict(submission).items() if name != "folder"}
    write_whole(folder / RECORD, json.dumps(record))
    return submission


def submissions(study_folder: Path) -> list[Submission]:
    """All that were ever made, oldest first. Raises `ValueError` for a record that is damaged."""
    return sorted(
        (read_submission(path.parent) for path in (study_folder / JOBS).glob(f"*/{RECORD}")),
        key=lambda submission: submission.time,
    )


def read_submission(folder: Path) -> Submission:
    """The record in a submission's folder."""
    path = folder / RECORD
    try:
        fields: dict[str, Any] = json.loads(path.read_text())
        fields["tasks"] = tuple(tuple(task) for task in fields["tasks"])
        fields["after"] = tuple(fields.get("after", ()))
        return Submission(folder=folder.absolute(), **fields)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: not the record of a submission ({error}); wanted what `slurm submit` wrote "
            "there. See that none of its jobs is running, then remove this folder."
        ) from None


def submissions_before(past: Sequence[Submission]) -> list[Submission]:
    """The submissions of other folders that build the data which the newest ones wait for."""
    found: dict[str, Submission] = {}
    open_folders = [folder for each in past for folder in each.after]
    known = {str(each.folder) for each in past} | {each.started_as for each in past}
    while open_folders:
        folder = open_folders.pop()
        if folder not in known and Path(folder).exists():
            known.add(folder)
            before = read_submission(Path(folder))
            if before.stage in (DATA, CHECK):  # not the training of another study, which is its own
                found[folder] = before
                open_folders.extend(before.after)
    return sorted(found.values(), key=lambda each: each.time)


def leave_outcome(folder: Path, job: str, outcome: dict[str, Any]) -> None:
    """Say that a job is over for good, and how: {"status": ..., ...}."""
    write_whole(folder / f"{job}{OUTCOME_SUFFIX}", json.dumps(outcome))


def take_back_outcome(folder: Path, job: str) -> None:
    """A job that was over lives again: an operator had Slurm start it anew."""
    (folder / f"{job}{OUTCOME_SUFFIX}").unlink(missing_ok=True)


def write_whole(path: Path, content: str) -> None:
    """By rename: a reader finds all of it, or what was there before."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(content)
    temporary.replace(path)


def newest_round(past: Sequence[Submission], stage: str) -> list[Submission]:
    """The submissions of a stage that were started together last: `X 1 of 3` to `X 3 of 3`, or one alone.

    Oldest first, as `past`.
    """
    made = [each for each in past if each.stage == stage]
    number = _of_how_many(made[-1]) if made else ""
    newest = {each.tasks[0][0]: each for each in made if _of_how_many(each) == number}
    return list(newest.values())


def _of_how_many(submission: Submission) -> str:
    return submission.tasks[0][0].partition(" of ")[2]


def want(build: Submission, who: Path) -> None:
    """Note that a study (its folder), or `prepare` typed by hand (the dataset's own), wants this build."""
    path = _wish(build, who)
    path.parent.mkdir(exist_ok=True)
    write_whole(path, str(who))


def forget(build: Submission, who: Path) -> None:
    """Note that it no longer does."""
    _wish(build, who).unlink(missing_ok=True)


def _wish(build: Submission, who: Path) -> Path:
    return build.folder / WANTED / hashlib.sha256(str(who).encode()).hexdigest()[:16]


def wanted_by(build: Submission) -> list[Path]:
    """Who did."""
    return [
        Path(path.read_text())
        for path in sorted((build.folder / WANTED).glob("*"))
        if not path.name.startswith(".")
    ]


def refuse_pattern(option: str, folder: Path) -> None:
    """Raise `ValueError` for a folder that Slurm would read otherwise: `%j` in a log's name is a job's id, a backslash
    goes away and takes the meaning of every `%` along, a line break ends the line of a script."""
    named = {
        "%": "a %, which Slurm replaces",
        "\\": "a backslash, which Slurm removes",
        "\n": "a line break, which sbatch cannot read",
    }
    has = [words for character, words in named.items() if character in str(folder)]
    if has:
        raise ValueError(
            f"{option} {str(folder)!r}: has {' and '.join(has)} in the names of logs; wanted a path without. Use "
            "another folder."
        )


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
        with path.open() as file:  # for reading alone: those who may not write here may look, too
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return f"process {pid} on {host}"
    except OSError as error:
        # A lock service that does not answer now may have answered that process.
        return f"process {pid} on {host}" if error.errno in NO_LOCKS else None
    except ValueError:
        return None
    return None


@contextmanager
def submit_lock(study_folder: Path) -> Iterator[None]:
    """One `submit` at a time decides about a study; a second one waits here for a few seconds.

    Raises `ValueError` where the file system has no locks, and gives errors of the disk the folder's name.
    """
    try:
        study_folder.mkdir(parents=True, exist_ok=True)
        with (study_folder / SUBMIT_LOCK).open("w") as file:
            flock(file, fcntl.LOCK_EX, study_folder)
            yield
    except OSError as error:
        raise located(error, study_folder) from None


def located(error: OSError, folder: Path) -> OSError:
    """An error that names a path: where writing a file fails, and not opening it, the system's own has none."""
    if error.errno is None or error.filename is not None:
        return error
    return OSError(error.errno, error.strerror, str(folder))
