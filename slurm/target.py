"""`Target`: one study on one cluster, and all that can be refused before anything starts."""

import hashlib
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from launch.config import CONFIG_FILE, RunConfig
from launch.folder import data_identity, finished_on, run_folder
from launch.study import Study, expand, load_study
from slurm import features, queue
from slurm.alive import Live, by_run
from slurm.cluster import Cluster, load_cluster
from slurm.evaluation import refuse_evaluation
from slurm.ledger import TRAIN, held, refuse_pattern
from slurm.prepare import MANIFEST, Build
from slurm.resources import Shape

STUDY_FILE = "study.toml"
MINUTES = "minutes for a job"


@dataclass(frozen=True)
class Target:
    """What `submit` was asked for."""

    study_file: Path
    name: str
    runs: tuple[RunConfig, ...]
    cluster: Cluster
    data: Path
    results: Path
    build: Build | None = None  # of the data, where it is not there yet
    ranks: int | None = None  # devices of each run; None: the planner's choice
    max_gpu_hours: float | None = None
    evaluate: tuple[Path, ...] = ()  # datasets beside `data`
    information: bool = False  # and of pairs, what one part tells of the other
    every_checkpoint: bool = False  # not each run's newest alone
    report: bool = True

    @property
    def folder(self) -> Path:
        return self.results / self.name


@dataclass(frozen=True)
class Wishes:
    """The options of `submit` that have a default."""

    raw: str | None = None
    parts: int = 4
    build: str = ""
    ranks: int | None = None
    max_gpu_hours: float | None = None
    evaluate: tuple[Path, ...] = ()
    information: bool = False
    every_checkpoint: bool = False
    report: bool = True

    def __post_init__(self) -> None:
        if self.ranks is not None and self.ranks < 1:
            raise ValueError(
                f"--ranks {self.ranks}: wanted at least 1. Leave it out for the planner's choice."
            )
        hours = self.max_gpu_hours
        if hours is not None and not 0 <= hours < math.inf:  # said so that NaN is refused
            raise ValueError(
                f"--max-gpu-hours {hours}: wanted a number from 0. Leave it out for no limit."
            )
        for option in ("information", "every_checkpoint"):
            if getattr(self, option) and not self.evaluate:
                raise ValueError(
                    f"--{option.replace('_', '-')}: no dataset to find it on; wanted it with --evaluate. Name one: "
                    "--evaluate DIR."
                )


def target(
    study_file: Path, cluster: str, data: Path, results: Path, wishes: Wishes | None = None
) -> Target:
    """Read everything that a person wrote. Raises `ValueError` for what is wrong with it."""
    wishes = wishes or Wishes()
    refuse_pattern("--results", results.resolve())
    study = load_study(study_file)
    runs = expand(study, study_file)
    build = None if (data / MANIFEST).exists() else _build(study, data, wishes)
    if build is None:
        _refuse_without_data(study, data)
        data_identity(runs[0], data)  # a missing split is better refused here than in the jobs
    where = load_cluster(cluster)
    if wishes.evaluate:
        refuse_evaluation(runs, where, wishes.evaluate, study_file, information=wishes.information)
    return Target(
        study_file=study_file,
        name=study.name,
        runs=runs,
        cluster=where,
        data=data.resolve(),
        results=results.resolve(),
        build=build,
        ranks=wishes.ranks,
        max_gpu_hours=wishes.max_gpu_hours,
        evaluate=tuple(path.resolve() for path in wishes.evaluate),
        information=wishes.information,
        every_checkpoint=wishes.every_checkpoint,
        report=wishes.report,
    )


def _build(study: Study, data: Path, wishes: Wishes) -> Build | None:
    if wishes.raw is None:
        return None
    if study.blend:
        raise ValueError(
            f"--raw {wishes.raw}: the study blends {len(study.blend)} datasets; wanted --raw only for a study "
            "of one. Build each with `slurm prepare`, then submit without --raw."
        )
    return Build(study.domain, wishes.raw, data.resolve(), wishes.parts, wishes.build)


def _refuse_without_data(study: Study, data: Path) -> None:
    if not data.is_dir():
        raise ValueError(
            f"--data {data}: no such folder; wanted the {study.domain} dataset of this study. Build "
            f"it with: python -m data_prep build {study.domain} --raw PATH --out {data}"
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


def refuse_other_study(of: Target, live: Sequence[Live] = ()) -> None:
    """A results folder holds one study. More runs may join it; runs that began or are queued may not leave it."""
    mine = {run.run_id for run in of.runs}
    begun = {path.parent.name for path in of.folder.glob(f"*/{CONFIG_FILE}")} - mine
    training = [each for each in live if each.submission.stage == TRAIN]
    foreign = sorted(begun | (by_run(training).keys() - mine))
    if not foreign:
        return
    there, here = _digest(of.folder / STUDY_FILE), _digest(of.study_file)
    state = "has begun" if begun else "is queued"
    advice = "move that folder away" if begun else "end those jobs with cancel first"
    raise ValueError(
        f"{of.study_file}: study '{of.name}' {state} in {of.folder} with {len(foreign)} runs that "
        f"are not in this file, for example {foreign[0]} (study file there: sha256 {there}, this "
        f"one: {here}); wanted a file that has all of them, and maybe more. Give the changed study "
        f"another name, or {advice}."
    )


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path.exists() else "(none)"


def refuse_beyond_partition(cluster: Cluster, shapes: Collection[Shape] = ()) -> None:
    """Raise `ValueError` for what no node or partition of this Slurm can give: it would queue for ever.

    `shapes`: of the jobs that train. A job of one device is always tried, and one without in `cpu_partition`.
    """
    if cluster.executor == "local":
        return
    there = {each.name: each for each in queue.partitions()}
    for key in ("partition", "cpu_partition"):
        name = getattr(cluster, key)
        if name is not None and name not in there:
            raise ValueError(
                f"{key} = '{name}': this Slurm has no such partition; wanted one of {', '.join(there)}. "
                "Correct the cluster file."
            )
    default = next((each for each in there.values() if each.default), None)
    mine = there[cluster.partition] if cluster.partition else default
    if mine is None:
        raise ValueError(
            f"partition is not given, and this Slurm has no default; wanted one of {', '.join(there)}. "
            "Name one in the cluster file."
        )
    if cluster.constraint:
        mine = _with_features(cluster.constraint, mine, there.values())
    if cluster.gpu_type:
        mine = _with_gpus(cluster.gpu_type, mine)
    gpus, most = cluster.gpus_per_node or 0, max(each.gpus for each in mine.kinds)
    _refuse_more("max_nodes", cluster.nodes, mine, mine.nodes, "nodes")
    _refuse_more("gpus_per_node", gpus, mine, most, "GPUs on a node")
    _refuse_more("max_minutes", cluster.max_minutes, mine, mine.minutes, MINUTES)
    for shape in sorted({Shape(gpus_per_node=min(gpus, 1)), *shapes}):
        _refuse_shape(cluster, shape, mine)
    if cluster.cpu_partition:
        other = there[cluster.cpu_partition]
        key = "cpu_max_minutes" if cluster.cpu_max_minutes else "max_minutes"
        _refuse_more(key, cluster.cpu_minutes, other, other.minutes, MINUTES)
        _refuse_shape(cluster, Shape(), other)


def _with_features(
    constraint: str, mine: queue.Partition, every: Collection[queue.Partition]
) -> queue.Partition:
    """The partition without the nodes that `constraint` leaves out.

    Raises `ValueError` for a feature that no node of this Slurm has, as Slurm itself does, and for features that those
    of the partition do not have together.
    """
    known = frozenset().union(*(each.features for each in every))
    unknown = [name for name in features.names(constraint) if name not in known]
    fitting = tuple(each for each in mine.kinds if features.fits(constraint, each.features))
    if not unknown and fitting and features.met(constraint, mine.features):
        return replace(mine, kinds=fitting)
    if unknown:
        found = f"no node of this Slurm has the feature {', '.join(unknown)}"
    else:
        found = f"no nodes of partition '{mine.name}' have these features"
    sorts = sorted({"&".join(sorted(each.features)) for each in mine.kinds} - {""})
    there = (
        f"features that nodes of '{mine.name}' have: {', '.join(sorts)}"
        if sorts
        else (f"none, for the nodes of '{mine.name}' have no features")
    )
    raise ValueError(
        f"constraint = '{constraint}': {found}; wanted {there}. Correct the cluster file, or leave constraint out."
    )


def _with_gpus(kind: str, mine: queue.Partition) -> queue.Partition:
    """The partition with the GPUs of this type alone. Raises `ValueError` where no node has any."""
    kinds = tuple(
        replace(each, gpus=each.of_type[kind]) for each in mine.kinds if kind in each.of_type
    )
    if not kinds:
        types = sorted({name for each in mine.kinds for name in each.of_type})
        there = ", ".join(types) or "no type, for Slurm has no names for those of this partition"
        raise ValueError(
            f"gpu_type = '{kind}': no node of partition '{mine.name}' has such GPUs; wanted one of these: {there}. "
            "Correct the cluster file, or leave gpu_type out."
        )
    return replace(mine, kinds=kinds)


def _refuse_shape(cluster: Cluster, shape: Shape, there: queue.Partition) -> None:
    """Each kind of nodes is judged by itself: what a job asks of a node must be there together."""
    tasks = shape.tasks_per_node
    asked = (
        ("gpus_per_node", shape.gpus_per_node, 1, "gpus", "GPUs"),
        ("cpus_per_task", cluster.cpus_per_task, tasks, "cpus", "CPUs"),
        ("memory_gb", cluster.memory_gb, tasks, "memory_gb", "GB of memory"),
    )
    fitting, such = there.kinds, ""
    for key, value, times, field, unit in asked:
        most = max(getattr(kind, field) for kind in fitting)
        _refuse_more(key, value, there, most, f"{unit} on a node{such}", times)
        left = tuple(kind for kind in fitting if getattr(kind, field) >= value * times)
        if left != fitting:
            such += f"{' and' if such else ' with'} {value * times:g} {unit}"
        fitting = left
    nodes = sum(kind.number for kind in fitting)
    _refuse_more("max_nodes", shape.nodes, there, nodes, f"nodes{such}")


def _refuse_more(
    key: str, value: float, there: queue.Partition, most: float, what: str, times: int = 1
) -> None:
    """Raise `ValueError` where a key's value, for so many tasks on a node, is more than there is."""
    if value * times > most:
        tasks = f" x {times} tasks on a node" if times > 1 else ""
        raise ValueError(
            f"{key} = {value:g}{tasks}: partition '{there.name}' has at most {most:g} {what}; wanted no more "
            "than that: Slurm would refuse the jobs, or never start them. Correct the cluster file."
        )
