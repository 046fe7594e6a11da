"""Study -> jobs: submits what is missing, and nothing twice.

A run is left alone if it is finished, if a living job has it, or if any process holds its lock. The
rest gets devices (`resources`), is packed into jobs (`placement`), and is handed to submitit (`launcher`)
with the code and the configurations as they are now (`freeze`). The same command again, after whatever
happened, does what is then left.
"""

import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from launch.config import RunConfig
from slurm.alive import Live, end, live_tasks, refuse_moved, without_stillborn
from slurm.freeze import freeze_code, freeze_runs
from slurm.later import LATER, Made, missing, open_for, start_later, wanted
from slurm.launcher import Order, launch, refuse_without_slurm
from slurm.ledger import EVALUATE, TRAIN, Submission, submissions, submit_lock
from slurm.machine import this_machine
from slurm.placement import PackedJob, local_slots, place_here, place_on_slurm
from slurm.prepare import Underway, prepare
from slurm.resources import Shape
from slurm.start import waited_for
from slurm.status import UNDER_WAY, look
from slurm.target import (
    STUDY_FILE,
    Target,
    refuse_beyond_partition,
    refuse_other_study,
    unfinished,
)

LONGEST_ARRAY = 1000  # tasks: Slurm's own limit, unless its administrator raised it


@dataclass(frozen=True)
class Round:
    """What one look at the study led to."""

    started: tuple[str, ...]
    elsewhere: tuple[str, ...]  # unfinished, but in a living job or locked by a process
    jobs: int  # that were started
    said: tuple[str, ...] = ()  # one line for each submission


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
        stages = wanted(of)
        if not packed:
            stages = missing(of, submissions(of.folder), [each.submission for each in live])
        said = _start(of, packed, stages, live) if packed or stages else []
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


@dataclass(frozen=True)
class Before:
    """What an array of training jobs waits for."""

    data: Underway | None  # to end well
    starts: Mapping[
        Submission, str
    ]  # see `waited_for`: each run then sees whether its own is finished
    ahead: str  # Slurm's id of an array that has its place among those that may run at a time

    @property
    def built(self) -> tuple[str, ...]:
        """The folder of the data's check, if it is under way."""
        return (str(self.data.submission.folder),) if self.data else ()

    @property
    def started(self) -> tuple[str, ...]:
        return tuple(str(each.folder) for each in self.starts)

    @property
    def dependency(self) -> str | None:
        """As sbatch wants it."""
        ok = [self.data.job] if self.data and self.data.job else []
        over = [job for job in (*self.starts.values(), self.ahead) if job]
        waits = [
            f"{kind}:{':'.join(ids)}" for kind, ids in (("afterok", ok), ("afterany", over)) if ids
        ]
        return ",".join(waits) or None


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


def orders_of(
    of: Target, groups: Sequence[Sequence[PackedJob]], code: Path, taken: int = 0
) -> list[Order]:
    """What each array of training jobs asks of Slurm, where so many of the jobs at a time are `taken` already."""
    free = (of.cluster.concurrent_jobs or 1) - taken
    limits = shared_limit([len(group) for group in groups], free)
    return [
        Order(of.cluster, TRAIN, group[0].shape, code, group[0].environment, parallelism)
        for group, parallelism in zip(groups, limits, strict=True)
    ]


def places_taken(live: Sequence[Live]) -> list[str]:
    """For each of the jobs at a time that training which was submitted before may take: Slurm's id of that array."""
    tasks = Counter(each.submission for each in live if each.submission.stage == TRAIN)
    jobs = {each.submission: each.job for each in live}
    return [
        jobs[submission]
        for submission, number in tasks.items()
        for _ in range(min(number, submission.parallelism))
    ]


def shared_limit(lengths: Sequence[int], limit: int) -> list[int]:
    """How many tasks of each array may run at a time: in proportion to their lengths, together `limit`.

    One each comes first: where there are more arrays than that, the later ones wait for earlier ones. Then each
    further place goes to the array with most tasks for each of its places (D'Hondt's method).
    """
    places = [1] * len(lengths)
    for _ in range(min(limit, sum(lengths)) - len(lengths)):
        places[max(range(len(lengths)), key=lambda at: lengths[at] / places[at])] += 1
    return places


def _start(
    of: Target, packed: Sequence[PackedJob], stages: Sequence[str], live: Sequence[Live]
) -> list[str]:
    """What was started, in words."""
    code = freeze_code(of.folder)
    said = [f"code and configurations are kept in {code.parent.parent}"]
    made: list[Made] = []
    if packed:
        made = _train_all(of, packed, code, said, places_taken(live))
    # What was to come after the training that still lives comes after all of it now.
    replaced = LATER if packed else stages
    for submission in {each.submission for each in live if each.submission.stage in replaced}:
        end(submission)
    others = {each.submission: each.job for each in live if each.submission.stage == TRAIN}
    if EVALUATE not in stages:
        others |= {each.submission: each.job for each in live if each.submission.stage == EVALUATE}
    made += [Made(submission, job) for submission, job in others.items()]
    try:
        return said + start_later(of, stages, made, code)
    except ValueError as error:
        raise ValueError(
            f"{error} What follows training is not under way: the same command again starts it."
        ) from None


def _train_all(
    of: Target, packed: Sequence[PackedJob], code: Path, said: list[str], taken: Sequence[str]
) -> list[Made]:
    """Data where it is to be built, then training; `taken`: see `places_taken`."""
    runs = [each.run for job in packed for each in job.runs]
    starts = waited_for(of.results, runs, of.cluster.executor)
    data = prepare(of.build, of.cluster, of.folder) if of.build else None
    if starts:
        names = ", ".join(Made(*each).name for each in starts.items())
        said.append(f"training waits for the studies that it starts from {names}")
    if of.build and data:
        name = Made(data.submission, data.job).name
        said.append(f"data: {of.build.parts} parts and their check {name}")
    made: list[Made] = []
    groups = arrays(packed, of.cluster.executor)
    free = (of.cluster.concurrent_jobs or 1) - len(taken)
    orders = orders_of(of, groups, code, len(taken))
    for index, (group, order) in enumerate(zip(groups, orders, strict=True)):
        line = [*taken, *(each.job for each in made)]
        ahead = line[index - free] if index >= free else ""
        made.append(_train(of, group, order, Before(data, starts, ahead)))
        said.append(f"training: {_sizes(group)} {made[-1].name}")
    return made


def _sizes(group: Sequence[PackedJob]) -> str:
    shape = group[0].shape
    number = f"{len(group)} jobs" if len(group) > 1 else "a job"
    gpus = f", {shape.gpus} GPUs" if shape.gpus else ""
    return f"{number} of {sum(len(job.runs) for job in group)} runs, {shape.ranks} ranks{gpus}"


def _train(of: Target, group: Sequence[PackedJob], order: Order, before: Before) -> Made:
    from slurm.job import Job  # brings submitit

    if of.cluster.executor == "slurm":
        order = replace(order, dependency=before.dependency)
    after = (*before.built, *before.started)
    submission = open_for(of, order, [job.run_ids for job in group], after)
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
    if of.cluster.executor == "local":
        from slurm.stages import After

        folder = str(submission.folder)
        for folders, only_if_well in ((before.started, False), (before.built, True)):
            if folders:
                jobs = [After(folder, job, folders, only_if_well) for job in jobs]
    return Made(submission, launch(submission, order, jobs))


def say(line: str) -> None:
    """Messages go to stderr; results go to stdout."""
    print(line, file=sys.stderr, flush=True)
