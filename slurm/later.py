"""What follows training: every run evaluated on other datasets, by an array of jobs; then fits and report.

Both begin when all before them has ended, however it did, and are made from what is there. Whether one is
still to do is seen from what its newest jobs left: it counts if it ended well after the newest training began.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from launch.devices import GPUS
from slurm.evaluation import evaluation_seconds
from slurm.launcher import Order, launch
from slurm.ledger import (
    EVALUATE,
    EVERY_CHECKPOINT,
    EVERY_RUN,
    REPORT,
    TRAIN,
    Submission,
    newest_round,
    open_submission,
)
from slurm.machine import this_machine
from slurm.placement import local_slots, pack, threads
from slurm.resources import JOB_SECONDS, Shape
from slurm.target import STUDY_FILE, Target
from slurm.traces import failures

LATER = (EVALUATE, REPORT)


@dataclass(frozen=True)
class Made:
    """A submission that others may wait for."""

    submission: Submission
    job: str  # Slurm's id of it

    @property
    def name(self) -> str:
        """For people."""
        where = "Slurm job" if self.submission.executor == "slurm" else "process"
        return f"({where} {self.job}, jobs/{self.submission.folder.name})"


@dataclass(frozen=True)
class Share:
    """Runs that one job evaluates, and the variables that it starts with."""

    run_ids: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]


def wanted(of: Target) -> tuple[str, ...]:
    """The stages after training that were asked for."""
    return ((EVALUATE,) if of.evaluate else ()) + ((REPORT,) if of.report else ())


def missing(
    of: Target, past: Sequence[Submission], alive: Sequence[Submission] = ()
) -> tuple[str, ...]:
    """Those of them that are to be started: not done since the newest training, nor `alive`.

    None where nothing was ever submitted: who trains by hand writes the report by hand.
    """
    newest = max((each.time for each in past if each.stage == TRAIN), default=None)
    if newest is None:
        return ()
    for index, stage in enumerate(wanted(of)):
        made = newest_round([each for each in past if each.time >= newest], stage)
        right = bool(made) and made[-1].tasks[0][1:] == _about(of, stage)
        if not right or any(each not in alive and any(failures(each)) for each in made):
            return wanted(of)[index:]  # a report says what was evaluated
    return ()


def start_later(of: Target, stages: Sequence[str], before: Sequence[Made], code: Path) -> list[str]:
    """Start these stages after the submissions `before`; what was started, in words."""
    said, made = [], list(before)
    if EVALUATE in stages:
        evaluations = _evaluation(of, before, code)
        made += evaluations
        jobs = sum(len(each.submission.tasks) for each in evaluations)
        said.append(f"evaluation after it: {jobs} jobs {evaluations[0].name}")
    if REPORT in stages:
        said.append(f"fits and report at the end {_report(of, made, code).name}")
    return said


def orders(of: Target, stages: Sequence[str], code: Path) -> list[tuple[Order, int]]:
    """What each of these stages asks of Slurm, and of how many jobs it is."""
    return [
        (_order(of, stage, code), len(shares(of)) if stage == EVALUATE else 1) for stage in stages
    ]


def gpu_hours(of: Target, stages: Sequence[str]) -> float:
    """At the most, of these stages: what is evaluated already is passed over. 0 where no GPU is named."""
    if EVALUATE not in stages or not (of.cluster.gpu and of.cluster.gpus_per_node):
        return 0.0
    wishes = {"information": of.information, "every": of.every_checkpoint}
    gpu = GPUS[of.cluster.gpu]
    seconds = sum(evaluation_seconds(run, gpu, of.evaluate, **wishes) for run in of.runs)
    return (seconds + JOB_SECONDS * len(shares(of))) / 3600


def shares(of: Target) -> list[Share]:
    """The runs of each job that evaluates: as many jobs as may run at a time, alike in parameters."""
    cluster, fixed = of.cluster, threads(of.cluster)
    if cluster.executor == "local":
        slots = local_slots(cluster, this_machine())
        places = [(*fixed, ("CUDA_VISIBLE_DEVICES", gpus)) for gpus in slots]
    else:
        places = [fixed] * (cluster.concurrent_jobs or 1)
    groups = pack(of.runs, len(places), lambda run: float(run.shape.params_total))
    return [
        Share(tuple(sorted(run.run_id for run in group)), place)
        for group, place in zip(groups, places, strict=False)
    ]


def _about(of: Target, stage: str) -> tuple[str, ...]:
    """What its jobs are known by beside their names: the datasets, and what is asked of them."""
    every = (EVERY_CHECKPOINT,) if of.every_checkpoint else ()
    return (*map(str, of.evaluate), *_more(of), *every) if stage == EVALUATE else ()


def _more(of: Target) -> tuple[str, ...]:
    """Further words for `launch evaluate`."""
    return ("--information",) if of.information else ()


def _order(of: Target, stage: str, code: Path) -> Order:
    cluster = of.cluster
    gpus = 1 if cluster.gpus_per_node and stage == EVALUATE else 0
    limit = (cluster.concurrent_jobs or 1) if stage == EVALUATE else 1
    shape = Shape(gpus_per_node=gpus)
    return Order(cluster, stage, shape, code, threads(cluster), parallelism=limit)


def _evaluation(of: Target, before: Sequence[Made], code: Path) -> list[Made]:
    """Every run that has a checkpoint, or every checkpoint, on datasets beside its own."""
    from slurm.stages import Stage

    which = EVERY_CHECKPOINT if of.every_checkpoint else EVERY_RUN
    commands = tuple(
        ("launch", "evaluate", which, "--data", str(data), "--missing", *_more(of))
        for data in of.evaluate
    )
    order, parts = _order(of, EVALUATE, code), shares(of)
    names = [
        (f"evaluation {number} of {len(parts)}", *_about(of, EVALUATE))
        for number in range(1, len(parts) + 1)
    ]
    runs = [tuple(str(of.folder / run_id) for run_id in part.run_ids) for part in parts]
    if of.cluster.executor == "slurm":
        stages = [Stage("", commands, runs=folders) for folders in runs]
        return [_launch(of, order, names, before, stages)]
    return [
        _launch(
            of,
            replace(order, environment=part.environment),
            [name],
            before,
            [Stage("", commands, runs=folders)],
        )
        for part, name, folders in zip(parts, names, runs, strict=True)
    ]


def _report(of: Target, before: Sequence[Made], code: Path) -> Made:
    """Fits and report from whatever is there; first what became of each run, for those who read the log."""
    from slurm.stages import Stage

    study, folder = str(of.folder / STUDY_FILE), str(of.folder)
    commands = (
        ("slurm", "status", study, "--results", str(of.results)),
        ("analysis", "report", folder, "--out", folder),
    )
    return _launch(of, _order(of, REPORT, code), [(REPORT,)], before, [Stage("", commands)])


def _launch(
    of: Target,
    order: Order,
    names: Sequence[tuple[str, ...]],
    before: Sequence[Made],
    stages: Sequence[Callable[[], int]],
) -> Made:
    """Jobs that run commands when others have ended, however they did."""
    from slurm.stages import After

    after = tuple(str(each.submission.folder) for each in before)
    if of.cluster.executor == "slurm":
        ids = ":".join(each.job for each in before if each.job)
        order = replace(order, dependency=f"afterany:{ids}" if ids else None)
    submission = open_for(of, order, names, after)
    folder = str(submission.folder)
    jobs: list[Callable[[], int]] = [
        replace(stage, submission=folder, after=after)  # type: ignore[type-var]
        for stage in stages
    ]
    if of.cluster.executor == "local":
        jobs = [After(folder, job, after, only_if_well=False) for job in jobs]
    return Made(submission, launch(submission, order, jobs))


def open_for(
    of: Target, order: Order, tasks: Sequence[tuple[str, ...]], after: tuple[str, ...]
) -> Submission:
    """The record of jobs of this study."""
    return open_submission(
        of.folder,
        of.name,
        of.cluster.executor,
        tasks,
        stage=order.stage,
        nodes=order.shape.nodes,
        tasks_per_node=order.shape.tasks_per_node,
        parallelism=order.parallelism,
        after=after,
        code=order.code.name,
        slurm=order.slurm,
    )
