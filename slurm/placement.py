"""Which runs share a job: the runs still to do and a `Cluster` -> packed jobs.

A job pays `JOB_SECONDS` before its first step, so runs that take seconds share one.
There are as many jobs as may run at a time, filled longest first, so that they end together; on Slurm
more, where these would not end within a job's time. Jobs of several ranks do not share.
"""

import heapq
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from launch.config import RunConfig
from slurm.cluster import Cluster
from slurm.machine import Machine
from slurm.resources import JOB_SECONDS, Assigned, Shape, assign, estimated_seconds

TINY = 1e7  # parameters, of a run that leaves most of a GPU idle


@dataclass(frozen=True)
class PackedJob:
    """Runs that one job does one after another (tiny ones side by side), and the variables it starts with."""

    runs: tuple[Assigned, ...]
    environment: tuple[tuple[str, str], ...]
    at_a_time: int = 1  # on one GPU

    @property
    def run_ids(self) -> tuple[str, ...]:
        return tuple(each.run.run_id for each in self.runs)

    @property
    def shape(self) -> Shape:
        return self.runs[0].shape

    @property
    def seconds(self) -> float:
        """From its start. Runs side by side are taken to be as fast as alone; the longest, and what starts from it, is
        the least that they take together."""
        of_run = {each.run.run_id: each.seconds for each in self.runs}
        of_chain = [
            sum(of_run[run.run_id] for run in chain)
            for chain in chains([each.run for each in self.runs])
        ]
        return JOB_SECONDS + max(*of_chain, sum(of_chain) / self.at_a_time)

    @property
    def gpu_hours(self) -> float:
        return self.seconds * self.shape.gpus / 3600


def nothing_saved(_: RunConfig) -> int:
    """The steps of a run that has not begun."""
    return 0


def place_here(
    runs: Sequence[RunConfig],
    cluster: Cluster,
    slots: Sequence[str],
    ranks: int = 1,
    saved: Callable[[RunConfig], int] = nothing_saved,
) -> list[PackedJob]:
    """One job per slot, or fewer if there are fewer runs; `slots` names each slot's GPUs, or ''; `saved`: the steps in
    a run's newest checkpoint."""
    jobs = []
    groups = pack(runs, len(slots), lambda run: estimated_seconds(run, saved(run)))
    for gpus, packed in zip(slots, groups, strict=False):
        environment = (*threads(cluster), ("CUDA_VISIBLE_DEVICES", gpus))
        side_by_side = min(_at_a_time(run, cluster, ranks) for run in packed) if gpus else 1
        assigned = tuple(assign(run, cluster, ranks, saved(run)) for run in packed)
        jobs.append(PackedJob(assigned, environment, side_by_side))
    return jobs


def place_on_slurm(
    runs: Sequence[RunConfig],
    cluster: Cluster,
    ranks: int | None = None,
    saved: Callable[[RunConfig], int] = nothing_saved,
) -> list[PackedJob]:
    """Jobs of equal shape side by side: each group of them is an array; `saved`: as of `place_here`."""
    groups: dict[tuple[Shape, int], list[Assigned]] = defaultdict(list)
    for chain in chains(runs):
        first = max(chain, key=lambda run: run.tokens)  # all on the devices of the longest
        number = assign(first, cluster, ranks).shape.ranks
        for run in chain:
            assigned = assign(run, cluster, number, saved(run))
            groups[assigned.shape, _at_a_time(run, cluster, number)].append(assigned)
    return [
        PackedJob(packed, threads(cluster), at_a_time)
        for (shape, at_a_time), group in sorted(groups.items(), key=lambda each: each[0])
        for packed in _share(group, cluster, at_a_time)
    ]


def _share(
    group: Sequence[Assigned], cluster: Cluster, at_a_time: int
) -> list[tuple[Assigned, ...]]:
    by_id = {each.run.run_id: each for each in group}
    runs = [each.run for each in group]
    seconds = sum(each.seconds for each in group) / at_a_time
    limit = 60 * cluster.max_minutes - JOB_SECONDS
    bins = max(cluster.concurrent_jobs or 1, math.ceil(seconds / limit))
    bins = bins if group[0].shape.ranks == 1 else len(runs)
    packed = pack(runs, bins, lambda run: by_id[run.run_id].seconds)
    return [tuple(by_id[run.run_id] for run in job) for job in packed]


def _at_a_time(run: RunConfig, cluster: Cluster, ranks: int) -> int:
    """How many such runs share a GPU."""
    tiny = run.shape.params_total < TINY and ranks == 1 and cluster.gpu is not None
    return cluster.runs_per_gpu if tiny else 1


def threads(cluster: Cluster) -> tuple[tuple[str, str], ...]:
    """Variables that have to be there before torch is imported."""
    return (("OMP_NUM_THREADS", str(cluster.cpus_per_task)),)


def local_slots(cluster: Cluster, machine: Machine, ranks: int = 1) -> list[str]:
    """The jobs of so many ranks that this machine runs at a time: one rank per GPU if it has any, else
    per core; each with the names of its GPUs."""
    gpus = machine.gpus[: cluster.gpus_per_node]
    number = len(gpus) or machine.cores // cluster.cpus_per_task
    number = min(number, int(machine.memory_gb / cluster.memory_gb)) // ranks
    number = max(1, min(number, cluster.concurrent_jobs or number))
    return [",".join(gpus[ranks * slot : ranks * (slot + 1)]) for slot in range(number)]


def pack(
    runs: Sequence[RunConfig], bins: int, seconds: Callable[[RunConfig], float] = estimated_seconds
) -> list[tuple[RunConfig, ...]]:
    """At most `bins` groups of about equal length, longest first (Graham 1969: at most 4/3 of the
    best); a group does its smaller runs first. A run that starts from another's checkpoint (its
    trunk) is in the trunk's group, after it."""
    timed = [(sum(map(seconds, chain)), chain) for chain in chains(runs)]
    timed.sort(key=lambda each: each[0], reverse=True)
    groups: list[list[tuple[RunConfig, ...]]] = [[] for _ in range(min(bins, len(timed)))]
    loads = [(0.0, index) for index in range(len(groups))]  # a heap: the least loaded first
    for length, chain in timed:
        load, index = heapq.heappop(loads)
        groups[index].append(chain)
        heapq.heappush(loads, (load + length, index))
    return [tuple(run for chain in reversed(group) for run in chain) for group in groups]


def chains(runs: Sequence[RunConfig]) -> list[tuple[RunConfig, ...]]:
    """A trunk followed by its branches; every other run is a chain of its own."""
    found: dict[str, list[RunConfig]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.trunk is not None):
        found[run.trunk.run_id if run.trunk else run.run_id].append(run)
    return [tuple(chain) for chain in found.values()]
