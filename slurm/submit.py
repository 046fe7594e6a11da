"""Study -> jobs: submits what is missing, and nothing twice.

A run is left alone if it is finished, if a living job has it, or if any process holds its lock. The
rest gets devices (`resources`), is packed into jobs (`placement`), and is handed to submitit (`launcher`)
with the code and the configurations as they are now (`freeze`). The same command again, after whatever
happened, does what is then left.
"""

import shutil
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from launch.config import RunConfig
from slurm.alive import Live, end, live_tasks, refuse_moved, without_stillborn
from slurm.freeze import freeze_code, freeze_runs
from slurm.launcher import Order, launch, refuse_without_slurm
from slurm.ledger import (
    EVALUATE,
    REPORT,
    TRAIN,
    Submission,
    open_submission,
    submissions,
    submit_lock,
)
from slurm.machine import this_machine
from slurm.placement import PackedJob, local_slots, place_here, place_on_slurm, threads
from slurm.prepare import Underway, prepare
from slurm.resources import Shape
from slurm.status import UNDER_WAY, look
from slurm.target import (
    STUDY_FILE,
    Target,
    refuse_beyond_partition,
    refuse_other_study,
    unfinished,
)

LATER = (EVALUATE, REPORT)
LONGEST_ARRAY = 1000  # tasks: Slurm's own limit, unless its administrator raised it


@dataclass(frozen=True)
class Round:
    """What one look at the study led to."""

    started: tuple[str, ...]
    elsewhere: tuple[str, ...]  # unfinished, but in a living job or locked by a process
    jobs: int  # that were started
    said: tuple[str, ...] = ()  # one line for each submission


@dataclass(frozen=True)
class Made:
    """A submission that others may wait for."""

    submission: Submission
    job: str  # Slurm's id of it


def start_missing(of: Target, tried: frozenset[str] = frozenset()) -> Round:
    """Start jobs for every run that needs one and was not `tried`. Safe to call at any time."""
    refuse_other_study(of)
    if of.cluster.executor == "slurm":
        refuse_without_slurm()
        refuse_beyond_partition(of.cluster)
    with submit_lock(of.folder):
        _keep_study(of)
        live = without_stillborn(live_tasks(submissions(of.folder)))
        refuse_moved(live)
        left = unfinished(of)
        states = {each.run_id: each.state for each in look(left, of.folder, live=live).runs}
        elsewhere = [run_id for run_id, state in states.items() if state in UNDER_WAY]
        taken = {*elsewhere, *tried}
        free = [run for run in left if run.run_id not in taken]
        training = {each.submission for each in live if each.submission.stage == TRAIN}
        packed = plan(of, free, busy=len(training))
        refuse_dear(of, packed)
        said = _start(of, packed, live) if packed else []
    started = tuple(run.run_id for run in free)
    return Round(started, tuple(elsewhere), len(packed), tuple(said))


def plan(of: Target, runs: Sequence[RunConfig], busy: int = 0) -> list[PackedJob]:
    """The jobs for these runs; `busy` jobs of this study are already running here."""
    if of.cluster.executor == "slurm":
        return place_on_slurm(runs, of.cluster, of.ranks)
    ranks = of.ranks or of.runs[0].parallel.tensor_model_parallel_size
    slots = local_slots(of.cluster, this_machine(), ranks)
    return place_here(runs, of.cluster, slots[busy:] or slots[-1:], ranks)


def refuse_dear(of: Target, packed: Sequence[PackedJob]) -> None:
    """Raise `ValueError` where the jobs would take more GPU-hours than was allowed."""
    hours = sum(job.gpu_hours for job in packed)
    if of.max_gpu_hours is not None and hours > of.max_gpu_hours:
        dearest = max(
            (each for job in packed for each in job.runs), key=lambda each: each.gpu_hours
        )
        raise ValueError(
            f"{of.name}: {hours:.3g} GPU-hours are expected, the most of one run {dearest.gpu_hours:.3g} "
            f"({dearest.run.run_id}); wanted at most --max-gpu-hours {of.max_gpu_hours:g}. Nothing was "
            "started. Lower the budget of the study, or allow more."
        )


def _keep_study(of: Target) -> None:
    """For those who look later; jobs read `runs.json`."""
    temporary = of.folder / f".{STUDY_FILE}"
    shutil.copyfile(of.study_file, temporary)
    temporary.replace(of.folder / STUDY_FILE)


# --- starting ---


def arrays(packed: Sequence[PackedJob], executor: str) -> list[list[PackedJob]]:
    """The jobs of each submission: local ones are alone, Slurm's of one shape are an array."""
    if executor == "local":
        return [[job] for job in packed]
    groups: dict[Shape, list[PackedJob]] = defaultdict(list)
    for job in packed:
        groups[job.shape].append(job)
    return [
        group[first : first + LONGEST_ARRAY]
        for group in groups.values()
        for first in range(0, len(group), LONGEST_ARRAY)
    ]


def order_of(of: Target, group: Sequence[PackedJob], everything: int, code: Path) -> Order:
    """Arrays share the jobs that may run at a time in proportion to their lengths."""
    limit = of.cluster.concurrent_jobs or 1
    return Order(
        cluster=of.cluster,
        stage=TRAIN,
        shape=group[0].shape,
        code=code,
        environment=group[0].environment,
        parallelism=max(1, round(limit * len(group) / everything)),
    )


def _start(of: Target, packed: Sequence[PackedJob], live: Sequence[Live]) -> list[str]:
    """What was started, in words."""
    code = freeze_code(of.folder)
    said = [f"code and configurations are kept in {code.parent.parent}"]
    data = prepare(of.build, of.cluster) if of.build else None
    if of.build and data:
        said.append(
            f"data: {of.build.parts} parts and their check {_name(data.submission, data.job)}"
        )
    made = []
    for group in arrays(packed, of.cluster.executor):
        made.append(_train(of, group, order_of(of, group, len(packed), code), data))
        said.append(f"training: {_sizes(group)} {_name(made[-1].submission, made[-1].job)}")
    # What was to come after the training that still lives comes after all of it now.
    for submission in {each.submission for each in live if each.submission.stage in LATER}:
        end(submission)
    others = {each.submission: each.job for each in live if each.submission.stage == TRAIN}
    made += [Made(submission, job) for submission, job in others.items()]
    if of.evaluate:
        made = [*made, _evaluation(of, made, code)]
        said.append(f"evaluation after it {_name(made[-1].submission, made[-1].job)}")
    if of.report:
        last = _report(of, made, code)
        said.append(f"fits and report at the end {_name(last.submission, last.job)}")
    return said


def _sizes(group: Sequence[PackedJob]) -> str:
    shape = group[0].shape
    number = f"{len(group)} jobs" if len(group) > 1 else "a job"
    gpus = f", {shape.gpus} GPUs" if shape.gpus else ""
    return f"{number} of {sum(len(job.runs) for job in group)} runs, {shape.ranks} ranks{gpus}"


def _name(submission: Submission, job: str) -> str:
    where = f"Slurm job {job}" if submission.executor == "slurm" else f"process {job}"
    return f"({where}, jobs/{submission.folder.name})"


def _train(of: Target, group: Sequence[PackedJob], order: Order, data: Underway | None) -> Made:
    from slurm.job import Job  # brings submitit

    after = (str(data.submission.folder),) if data else ()
    if data and data.job:
        order = replace(order, dependency=f"afterok:{data.job}")
    submission = _open(of, order, [job.run_ids for job in group], after)
    freeze_runs(submission.folder, [each.run for job in group for each in job.runs])
    jobs: list[Callable[[], int]] = [
        Job(
            study=str(of.folder / STUDY_FILE),
            data=str(of.data),
            results=str(of.results),
            run_ids=job.run_ids,
            ranks=job.shape.ranks,
            runs_per_gpu=job.at_a_time,
        )
        for job in group
    ]
    if after and of.cluster.executor == "local":
        from slurm.stages import After

        jobs = [After(str(submission.folder), job, after, only_if_well=True) for job in jobs]
    return Made(submission, launch(submission, order, jobs))


def _evaluation(of: Target, before: Sequence[Made], code: Path) -> Made:
    """Every run that has a checkpoint, on datasets beside its own."""
    from slurm.stages import EVERY_RUN

    runs = str(of.folder / EVERY_RUN)
    commands = [("launch", "evaluate", runs, "--data", str(data)) for data in of.evaluate]
    shape = Shape(gpus_per_node=1 if of.cluster.gpus_per_node else 0)
    return _later(of, Order(of.cluster, EVALUATE, shape, code), commands, before)


def _report(of: Target, before: Sequence[Made], code: Path) -> Made:
    """Fits and report from whatever is there; first what became of each run, for those who read the log."""
    study, folder = str(of.folder / STUDY_FILE), str(of.folder)
    commands = [
        ("slurm", "status", study, "--results", str(of.results)),
        ("analysis", "report", folder, "--out", folder),
    ]
    return _later(of, Order(of.cluster, REPORT, Shape(), code), commands, before)


def _later(
    of: Target, order: Order, commands: Sequence[tuple[str, ...]], before: Sequence[Made]
) -> Made:
    """A job that runs commands when others have ended, however they did."""
    from slurm.stages import After, Stage

    after = tuple(str(each.submission.folder) for each in before)
    if of.cluster.executor == "slurm":
        ids = ":".join(each.job for each in before if each.job)
        order = replace(order, dependency=f"afterany:{ids}" if ids else None)
    order = replace(order, environment=threads(of.cluster))
    submission = _open(of, order, [(order.stage,)], after)
    job: Callable[[], int] = Stage(str(submission.folder), tuple(commands), after)
    if of.cluster.executor == "local":
        job = After(str(submission.folder), job, after, only_if_well=False)
    return Made(submission, launch(submission, order, [job]))


def _open(
    of: Target, order: Order, tasks: Sequence[tuple[str, ...]], after: tuple[str, ...]
) -> Submission:
    return open_submission(
        of.folder,
        of.name,
        of.cluster.executor,
        tasks,
        stage=order.stage,
        nodes=order.shape.nodes,
        tasks_per_node=order.shape.tasks_per_node,
        after=after,
        code=order.code.name,
    )


def say(line: str) -> None:
    """Messages go to stderr; results go to stdout."""
    print(line, file=sys.stderr, flush=True)
