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

from launch.checkpoint_files import newest_step
from launch.config import RunConfig
from launch.console import sentence
from launch.folder import run_folder
from slurm import queue
from slurm.alive import (
    Live,
    end,
    live_tasks,
    refuse_cancelled,
    refuse_moved,
    refuse_of_another,
    without_stillborn,
)
from slurm.freeze import freeze_code, freeze_runs
from slurm.later import LATER, Made, gpu_hours, missing, open_for, start_later, wanted
from slurm.launcher import Order, launch, refuse_without_slurm
from slurm.ledger import EVALUATE, TRAIN, Submission, located, submissions, submit_lock
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


@dataclass(frozen=True)
class Round:
    """What one look at the study led to."""

    started: tuple[str, ...]
    elsewhere: tuple[str, ...]  # unfinished, but in a living job or locked by a process
    jobs: int  # that were started
    said: tuple[str, ...] = ()  # one line for each submission


@dataclass(frozen=True)
class Needed:
    """What is left to do, and nobody is doing."""

    runs: tuple[str, ...]  # their ids
    elsewhere: tuple[str, ...]  # see `Round`
    packed: list[PackedJob]
    stages: tuple[str, ...]  # after training

    @property
    def nothing(self) -> bool:
        return not self.packed and not self.stages


def start_missing(of: Target, tried: frozenset[str] = frozenset()) -> Round:
    """Start jobs for every run that needs one and was not `tried`. Safe to call at any time."""
    if of.cluster.executor == "slurm":
        refuse_without_slurm()
    with submit_lock(of.folder):
        live = without_stillborn(live_tasks(submissions(of.folder)))
        refuse_moved(live)
        found = needed(of, live, tried)
        said = []
        if not found.nothing:
            refuse_of_another(live)
            refuse_beyond_partition(of.cluster, {job.shape for job in found.packed})
            refuse_dear(of, found.packed, found.stages)
            _keep_study(of)
            said = _start(of, found.packed, found.stages, live)
    return Round(found.runs, found.elsewhere, len(found.packed), tuple(said))


def needed(of: Target, live: Sequence[Live], tried: frozenset[str] = frozenset()) -> Needed:
    """The jobs for the runs that were not `tried` and have none among the `live`, and the stages to start."""
    alive = list({each.submission.name: each.submission for each in live}.values())
    ending = [each for each in alive if each.cancelled]
    refuse_cancelled([each for each in ending if each.stage == TRAIN])
    refuse_other_study(of, live)
    left = unfinished(of)
    states = {each.run_id: each.state for each in look(left, of.folder, live=list(live)).runs}
    elsewhere = tuple(run_id for run_id, state in states.items() if state in UNDER_WAY)
    taken = {*elsewhere, *tried}
    free = [run for run in left if run.run_id not in taken]
    packed = plan(of, free, busy=sum(each.stage == TRAIN for each in alive))
    stages = wanted(of)
    if not packed:
        going_on = [each for each in alive if each not in ending]
        stages = missing(of, submissions(of.folder), going_on)
        refuse_cancelled(ending if stages else ())
    return Needed(tuple(run.run_id for run in free), elsewhere, packed, stages)


def plan(of: Target, runs: Sequence[RunConfig], busy: int = 0) -> list[PackedJob]:
    """The jobs for these runs; `busy` jobs of this study are already running here."""

    def saved(run: RunConfig) -> int:
        return newest_step(run_folder(of.results, run))

    if of.cluster.executor == "slurm":
        return place_on_slurm(runs, of.cluster, of.ranks, saved)
    ranks = of.ranks or of.runs[0].parallel.tensor_model_parallel_size
    slots = local_slots(of.cluster, this_machine(), ranks)
    return place_here(runs, of.cluster, slots[busy:] or slots[-1:], ranks, saved)


def refuse_dear(of: Target, packed: Sequence[PackedJob], stages: Sequence[str] = ()) -> None:
    """Raise `ValueError` where the jobs, and these stages after them, would take more GPU-hours than was allowed."""
    evaluation = gpu_hours(of, stages)
    hours = sum(job.gpu_hours for job in packed) + evaluation
    if of.max_gpu_hours is not None and hours > of.max_gpu_hours:
        runs = [each for job in packed for each in job.runs]
        dearest = max(runs, key=lambda each: each.gpu_hours, default=None)
        most = (
            f", the most of one run {dearest.gpu_hours:.3g} ({dearest.run.run_id})"
            if dearest
            else ""
        )
        most += f", of evaluation {evaluation:.3g}" if evaluation else ""
        raise ValueError(
            f"{of.name}: {hours:.3g} GPU-hours are expected{most}; wanted at most --max-gpu-hours "
            f"{of.max_gpu_hours:g}. Nothing was started. Lower the budget of the study, or allow more."
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


def arrays(packed: Sequence[PackedJob], longest: int) -> list[list[PackedJob]]:
    """The jobs of each submission: those of one shape are an array of Slurm's, of at most so many tasks."""
    groups: dict[Shape, list[PackedJob]] = defaultdict(list)
    for job in packed:
        groups[job.shape].append(job)
    return [
        group[first : first + longest]
        for group in groups.values()
        for first in range(0, len(group), longest)
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
    said: list[str] = []
    try:
        made = _train_all(of, packed, code, said, places_taken(live)) if packed else []
        # What was to come after the training that still lives comes after all of it now.
        replaced = LATER if packed else stages
        for submission in {each.submission for each in live if each.submission.stage in replaced}:
            end(submission)
        others = {each.submission: each.job for each in live if each.submission.stage == TRAIN}
        if EVALUATE not in stages:
            others |= {
                each.submission: each.job for each in live if each.submission.stage == EVALUATE
            }
        made += [Made(submission, job) for submission, job in others.items()]
        said += start_later(of, stages, made, code)
    except (ValueError, OSError) as error:
        if packed and not said:
            raise
        raise _half_started(of, error, said) from None
    return [f"code and configurations are kept in {code.parent.parent}", *said]


def _half_started(of: Target, error: ValueError | OSError, said: Sequence[str]) -> ValueError:
    """What stopped a submission, and what of it was started by then."""
    words = sentence(located(error, of.folder) if isinstance(error, OSError) else error)
    before = f" Before that were started, and go on: {'; '.join(said)}." if said else ""
    return ValueError(
        f"{words}{before} What follows training is not under way: the same command again starts it."
    )


def _train_all(
    of: Target, packed: Sequence[PackedJob], code: Path, said: list[str], taken: Sequence[str]
) -> list[Made]:
    """Data where it is to be built, then training; `taken`: see `places_taken`."""
    runs = [each.run for job in packed for each in job.runs]
    starts = waited_for(of.results, runs, of.cluster.executor)
    data = prepare(of.build, of.cluster, of.folder) if of.build else None
    if of.build and data:
        name = Made(data.submission, data.job).name
        said.append(f"data: {of.build.parts} parts and their check {name}")
    made: list[Made] = []
    alone = of.cluster.executor == "local"
    groups = [[job] for job in packed] if alone else arrays(packed, queue.longest_array())
    free = (of.cluster.concurrent_jobs or 1) - len(taken)
    orders = orders_of(of, groups, code, len(taken))
    for index, (group, order) in enumerate(zip(groups, orders, strict=True)):
        line = [*taken, *(each.job for each in made)]
        ahead = line[index - free] if index >= free else ""
        made.append(_train(of, group, order, Before(data, starts, ahead)))
        said.append(f"training: {_sizes(group)} {made[-1].name}")
    if starts:
        names = ", ".join(Made(*each).name for each in starts.items())
        said.append(f"training waits for the studies that it starts from {names}")
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
            check_seconds=of.cluster.check_seconds,
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
