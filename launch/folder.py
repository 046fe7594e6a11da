"""The folder of one run, results/STUDY/RUN_ID, and what its files say. No torch.

config.json    the resolved configuration
metrics.h5     what was measured (`launch.results`)
checkpoints/   step-<n>/ (`launch.checkpoint`)
run.lock       locked while a process trains the run; holds its process id and host
failed.json    why the last attempt failed; absent otherwise
"""

import contextlib
import datetime
import fcntl
import hashlib
import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from data_prep.locks import NO_LOCKS
from launch.config import RunConfig, refuse_other_config
from launch.datasets import open_split
from launch.results import METRICS_FILE, DamagedFile, is_finished, read_origin

LOCK_FILE = "run.lock"
TRIES = 10  # in a second, for a lock
FAILED_FILE = "failed.json"


def run_folder(results: Path, run: RunConfig) -> Path:
    return results / run.study / run.run_id


def data_identity(run: RunConfig, data: Path) -> str:
    """A hex digest of what a run reads: the training split and every split it is evaluated on.

    Reads manifests alone. Raises `ValueError` where a split is missing or of another domain.
    """
    splits = ["train", *run.evaluation.splits]
    identities = [f"{split}:{open_split(run, data, split).identity}" for split in splits]
    return hashlib.sha256("\n".join(identities).encode()).hexdigest()


def finished_on(run: RunConfig, folder: Path, data: Path) -> bool:
    """Whether the run in `folder` has finished, on this data.

    Raises `ValueError` naming both sides where the folder holds another configuration, or a
    finished run that was trained on other data.
    """
    refuse_other_config(run, folder)
    try:
        if not is_finished(folder):
            return False
        fields, provenance = read_origin(folder)
    except DamagedFile:
        return False  # the run goes on from its newest checkpoint, which holds a copy
    recorded = RunConfig.model_validate_json(json.dumps(fields))
    if recorded.digest != run.digest:
        raise ValueError(
            f"{folder / METRICS_FILE}: measured by run {recorded.run_id}; wanted {run.run_id}, as the folder "
            "says. A file was copied here from another run: remove this folder and run it again."
        )
    refuse_other_data(folder, provenance[-1]["data_identity"], data_identity(run, data))
    return True


def refuse_other_data(folder: Path, there: str, here: str) -> None:
    """Raise `ValueError` where a run began on data `there` and is now given data `here`."""
    if there != here:
        raise ValueError(
            f"{folder}: this run was trained on data {there[:12]} and is now given data {here[:12]}; "
            "a run continues only on the data it began with. Give that dataset, or other --results."
        )


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run's lock; the system frees it when the process ends, however it ends.

    Raises `ValueError` naming the process that holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("a+") as file:
        _take(file, folder)
        yield
        file.truncate(0)


def _take(file: IO[str], folder: Path) -> None:
    """`slurm status` tries a lock for a moment to see whether it is held: so try again before refusing."""
    for attempt in range(TRIES):
        try:
            flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB, folder)
            break
        except BlockingIOError:
            if attempt < TRIES - 1:
                time.sleep(1 / TRIES)
    else:
        file.seek(0)
        raise ValueError(
            f"{folder}: another process trains this run (process and host: {file.read().strip()}); "
            "wanted to train it alone. Wait for that process, or stop it."
        )
    file.truncate(0)
    file.write(f"{os.getpid()} {platform.node()}\n")
    file.flush()


def flock(file: IO[str], mode: int, folder: Path) -> None:
    """`fcntl.flock` on a file of that folder. Raises `ValueError` where the file system has no locks."""
    try:
        fcntl.flock(file, mode)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        raise ValueError(
            f"{folder}: its file system has no locks (flock: {error.strerror}); wanted one that keeps two processes "
            "from doing the same work. Use a folder on another disk, or have this one mounted with flock (Lustre: "
            "-o flock; NFS: with its lock service)."
        ) from None


def record_failure(folder: Path, error: Exception) -> None:
    """Leave the reason in the run folder, for `slurm status` and the report."""
    record = {
        "error": f"{type(error).__name__}: {error}",
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "process": f"{os.getpid()} {platform.node()}",
    }
    temporary = folder / f".{FAILED_FILE}.tmp"
    with contextlib.suppress(
        OSError
    ):  # a full disk is often the failure itself: then there is none
        temporary.write_text(json.dumps(record, indent=2) + "\n")
        temporary.replace(folder / FAILED_FILE)
        return
    temporary.unlink(missing_ok=True)
