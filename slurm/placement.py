"""Which runs share a job: the runs still to do and a `Cluster` -> packed jobs.

A process pays about ten seconds of imports before its first step, so runs that take seconds share
one. There are as many jobs as may run at a time, filled longest first, so that they end together.
"""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from launch.config import RunConfig
from slurm.cluster import Cluster

# Seconds of a run ~ steps x (overhead + overhead per layer) + FLOPs / rate. Measured on one thread
# with 1,920 tokens a step, N from 768 to 1.2e6: within 16%. Only ratios matter, to balance jobs.
SECONDS_PER_STEP = 0.004
SECONDS_PER_STEP_AND_LAYER = 0.0125
FLOPS_PER_SECOND = 9e10

CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Machine:
    """What this machine lends to local jobs."""

    cores: int
    memory_gb: float
    gpus: tuple[str, ...]  # as in CUDA_VISIBLE_DEVICES


@dataclass(frozen=True)
class PackedJob:
    """Runs that one process does one after another, and the variables it starts with."""

    run_ids: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]


def place(runs: Sequence[RunConfig], cluster: Cluster, slots: Sequence[str]) -> list[PackedJob]:
    """One job per slot, or fewer if there are fewer runs; `slots` names each slot's GPU, or ''."""
    threads = str(cluster.cpus_per_task)
    jobs = []
    for gpu, packed in zip(slots, pack(runs, len(slots)), strict=False):
        environment = [("OMP_NUM_THREADS", threads)]
        if cluster.executor == "local":
            environment.append(("CUDA_VISIBLE_DEVICES", gpu))
        jobs.append(PackedJob(tuple(run.run_id for run in packed), tuple(environment)))
    return jobs


def local_slots(cluster: Cluster, machine: Machine) -> list[str]:
    """The jobs this machine runs at a time: one per GPU if it has any, else one per core."""
    gpus = machine.gpus[: cluster.gpus_per_node]
    number = len(gpus) or machine.cores // cluster.cpus_per_task
    number = min(number, int(machine.memory_gb / cluster.memory_gb))
    number = max(1, min(number, cluster.concurrent_jobs or number))
    return list(gpus[:number]) or [""] * number


def pack(runs: Sequence[RunConfig], bins: int) -> list[tuple[RunConfig, ...]]:
    """At most `bins` groups of about equal length, longest first (Graham 1969: at most 4/3 of the
    best); a group does its smaller runs first. A run that starts from another's checkpoint (its
    trunk) is in the trunk's group, after it."""
    chains = sorted(_chains(runs), key=_chain_seconds, reverse=True)
    groups: list[list[tuple[RunConfig, ...]]] = [[] for _ in range(min(bins, len(chains)))]
    loads = [0.0] * len(groups)
    for chain in chains:
        least = loads.index(min(loads))
        groups[least].append(chain)
        loads[least] += _chain_seconds(chain)
    return [tuple(run for chain in reversed(group) for run in chain) for group in groups]


def estimated_seconds(run: RunConfig) -> float:
    """How long a run takes compared with others; the part it shares with its trunk is free."""
    done = run.trunk.step / run.train_steps if run.trunk else 0.0
    step = SECONDS_PER_STEP + run.shape.num_layers * SECONDS_PER_STEP_AND_LAYER
    whole = run.train_steps * step + run.flops_exact / FLOPS_PER_SECOND
    return whole * (1 - done)


def _chains(runs: Sequence[RunConfig]) -> list[tuple[RunConfig, ...]]:
    """A trunk followed by its branches; every other run is a chain of its own."""
    chains: dict[str, list[RunConfig]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.trunk is not None):
        chains[run.trunk.run_id if run.trunk else run.run_id].append(run)
    return [tuple(chain) for chain in chains.values()]


def _chain_seconds(chain: tuple[RunConfig, ...]) -> float:
    return sum(estimated_seconds(run) for run in chain)


# --- what this machine has ---


def this_machine() -> Machine:
    """Cores and memory that this process may use, GPUs that it may see."""
    cores = min(len(os.sched_getaffinity(0)), _cgroup_cores())
    return Machine(cores=max(1, cores), memory_gb=_memory_gb(), gpus=_gpus(os.environ))


def _memory_gb() -> float:
    meminfo = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(meminfo["MemAvailable"].split()[0]) / 2**20  # the file counts in KiB
    limit = _first_word(CGROUP / "memory.max")
    return min(available, int(limit) / 2**30) if limit.isdigit() else available


def _cgroup_cores() -> int:
    """The cores of a container's quota; a container sees all cores of its host."""
    quota = _first_word(CGROUP / "cpu.max")
    if not quota.isdigit():
        return os.cpu_count() or 1
    period = int((CGROUP / "cpu.max").read_text().split()[1])
    return max(1, int(quota) // period)


def _first_word(path: Path) -> str:
    try:
        return path.read_text().split()[0]
    except (OSError, IndexError):
        return ""


def _gpus(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The CUDA devices, without importing torch; none if the installed torch is a CPU build."""
    try:
        if version("torch").endswith("+cpu"):
            return ()
    except PackageNotFoundError:
        return ()
    present = tuple(str(index) for index, _ in enumerate(sorted(Path("/dev").glob("nvidia[0-9]*"))))
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if not present or visible is None:
        return present
    return tuple(name for name in visible.split(",") if name and name != "-1")
