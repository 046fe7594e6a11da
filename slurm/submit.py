"""Study -> jobs: submits what is missing, and nothing twice.

A run is left alone if it is finished, if a living job has it, or if any process holds its lock.
The rest is packed into jobs (`placement`) and handed to submitit (`job`). The same command again,
after whatever happened, does what is then left.
"""

import hashlib
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.config import CONFIG_FILE, RunConfig
from launch.folder import data_identity, finished_on, run_folder
from launch.study import expand, load_study
from slurm.cluster import Cluster, load_cluster
from slurm.ledger import (
    Submission,
    clear_stillborn,
    held,
    live_runs,
    open_submission,
    submissions,
    submit_lock,
)
from slurm.placement import PackedJob, estimated_seconds, local_slots, place, this_machine
from slurm.status import UNDER_WAY, look

STUDY_FILE = "study.toml"


@dataclass(frozen=True)
class Target:
    """One study on one cluster: what `submit` was asked for."""

    study_file: Path
    name: str
    runs: tuple[RunConfig, ...]
    cluster: Cluster
    data: Path
    results: Path

    @property
    def folder(self) -> Path:
        return self.results / self.name


@dataclass(frozen=True)
class Round:
    """What one look at the study led to."""

    started: tuple[str, ...]
    elsewhere: tuple[str, ...]  # unfinished, but in a living job or locked by a process
    jobs: int  # that were started


def target(study_file: Path, cluster: str, data: Path, results: Path) -> Target:
    """Read everything that a person wrote. Raises `ValueError` for what is wrong with it."""
    study = load_study(study_file)
    runs = expand(study, study_file)
    if not data.is_dir():
        raise ValueError(
            f"--data {data}: no such folder; wanted the {study.domain} dataset of this study. Build "
            f"it with: python -m data_prep build {study.domain} --raw PATH --out {data}"
        )
    data_identity(runs[0], data)  # a missing split is better refused here than in the jobs
    return Target(
        study_file, study.name, runs, load_cluster(cluster), data.resolve(), results.resolve()
    )


def unfinished(of: Target) -> list[RunConfig]:
    """The runs that are not finished.

    Raises `ValueError` for one that was trained on other data.
    """
    left = []
    for run in of.runs:
        try:
            if finished_on(run, run_folder(of.results, run), of.data):
                continue
        except ValueError:
            if held(run_folder(of.results, run)) is None:
                raise
        left.append(run)
    return left


def start_missing(of: Target, tried: frozenset[str] = frozenset()) -> Round:
    """Start jobs for every run that needs one and was not `tried`. Safe to call at any time."""
    refuse_other_study(of)
    with submit_lock(of.folder):
        _keep_study(of)
        past = submissions(of.folder)
        clear_stillborn(past)
        left = unfinished(of)
        states = {status.run_id: status.state for status in look(left, of.folder)}
        elsewhere = [run_id for run_id, state in states.items() if state in UNDER_WAY]
        taken = {*elsewhere, *tried}
        free = [run for run in left if run.run_id not in taken]
        busy = {submission.name for submission in live_runs(past).values()}
        packed = plan(of, free, busy=len(busy))
        _start(of, packed)
    return Round(tuple(run.run_id for run in free), tuple(elsewhere), len(packed))


def plan(of: Target, runs: Sequence[RunConfig], busy: int = 0) -> list[PackedJob]:
    """The jobs for these runs; `busy` jobs of this study are already running here."""
    if of.cluster.executor == "local":
        slots = local_slots(of.cluster, this_machine())
        slots = slots[busy:] or slots[-1:]
    else:
        slots = [""] * (of.cluster.concurrent_jobs or 1)
    return place(runs, of.cluster, slots)


def describe(of: Target, packed: Sequence[PackedJob]) -> list[str]:
    """The jobs in words, for --dry-run."""
    seconds = {run.run_id: estimated_seconds(run) for run in of.runs}
    total = sum(seconds[run_id] for job in packed for run_id in job.run_ids) or 1.0
    lines = []
    for number, job in enumerate(packed, start=1):
        share = sum(seconds[run_id] for run_id in job.run_ids) / total
        variables = " ".join(f"{name}={value}" for name, value in job.environment)
        lines.append(f"job {number} of {len(packed)}: {share:.0%} of the work, {variables}")
        lines += [f"    {run_id}" for run_id in job.run_ids]
    return lines


# --- the study's folder ---


def refuse_other_study(of: Target) -> None:
    """A results folder holds one study. More runs may join it; runs that began may not leave it."""
    mine = {run.run_id for run in of.runs}
    begun = {path.parent.name for path in of.folder.glob(f"*/{CONFIG_FILE}")}
    foreign = sorted(begun - mine)
    if not foreign:
        return
    there, here = _digest(of.folder / STUDY_FILE), _digest(of.study_file)
    raise ValueError(
        f"{of.study_file}: study '{of.name}' has begun in {of.folder} with {len(foreign)} runs that "
        f"are not in this file, for example {foreign[0]} (study file there: sha256 {there}, this "
        f"one: {here}); wanted a file that has all of them, and maybe more. Give the changed study "
        "another name, or move that folder away."
    )


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path.exists() else "(none)"


def _keep_study(of: Target) -> None:
    """Jobs read this copy, so that editing the original changes nothing that is queued."""
    temporary = of.folder / f".{STUDY_FILE}"
    shutil.copyfile(of.study_file, temporary)
    temporary.replace(of.folder / STUDY_FILE)


# --- submitit ---


def _start(of: Target, packed: Sequence[PackedJob]) -> None:
    """Local jobs are submissions of their own; Slurm's are the tasks of one array."""
    if of.cluster.executor == "local":
        for job in packed:
            _submit_together(of, [job])
    elif packed:
        _submit_together(of, packed)


def _submit_together(of: Target, packed: Sequence[PackedJob]) -> None:
    import submitit  # here, so that a study with nothing to do does not pay for it

    from slurm.job import Job

    if of.cluster.executor == "slurm" and shutil.which("sbatch") is None:
        raise ValueError(
            "executor = 'slurm' in the cluster file, but sbatch is not on this machine; wanted a "
            "login node of a Slurm cluster. Submit there, or use --cluster local."
        )
    tasks = [job.run_ids for job in packed]
    submission = open_submission(of.folder, of.name, of.cluster.executor, tasks)
    # submitit lets a job requeue itself three times; a long run meets its time limit far more often.
    executor = submitit.AutoExecutor(
        submission.folder, cluster=of.cluster.executor, slurm_max_num_timeout=1_000_000
    )
    executor.update_parameters(**_parameters(of.cluster, submission, packed[0].environment))
    study = str(of.folder / STUDY_FILE)
    jobs = [Job(study, str(of.data), str(of.results), run_ids) for run_ids in tasks]
    try:
        executor.submit_array(jobs)
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        shutil.rmtree(submission.folder, ignore_errors=True)
        raise ValueError(
            f"sbatch refused the jobs: {error}; wanted values that this cluster knows. Correct the "
            "cluster file."
        ) from None
    if of.cluster.executor == "local":
        _await_visible(submission)


def _await_visible(submission: Submission) -> None:
    """Until the job can be seen: a process that was just started has no command line for a moment
    (seen on a busy machine), and would be taken for dead."""
    for _ in range(200):
        if live_runs([submission]):
            return
        time.sleep(0.01)


def _parameters(
    cluster: Cluster, submission: Submission, environment: Sequence[tuple[str, str]]
) -> dict[str, object]:
    """submitit's words for what the cluster file says; variables are set before Python starts."""
    setup = [*cluster.setup, *(f"export {name}={value}" for name, value in environment)]
    common: dict[str, object] = {
        "name": submission.name,
        "timeout_min": cluster.max_minutes,
        "stderr_to_stdout": True,
    }
    if cluster.executor == "local":
        # A closed terminal or a Ctrl-C there must not end jobs, nor may they keep a pipe open
        # that `submit` writes to. submitit joins these lines with && before its own command.
        log = shlex.quote(str(submission.folder / "controller.log"))
        detach = ["trap '' HUP INT", f"exec </dev/null >>{log} 2>&1"]
        return common | {"local_setup": detach + setup}
    return common | {
        "cpus_per_task": cluster.cpus_per_task,
        "mem_gb": cluster.memory_gb,
        "gpus_per_node": cluster.gpus_per_node or None,
        "slurm_partition": cluster.partition,
        "slurm_account": cluster.account,
        "slurm_qos": cluster.qos,
        "slurm_setup": setup,
        "slurm_array_parallelism": cluster.concurrent_jobs,
        "slurm_additional_parameters": dict(cluster.sbatch) or None,
    }


def say(line: str) -> None:
    """Messages go to stderr; results go to stdout."""
    print(line, file=sys.stderr, flush=True)
