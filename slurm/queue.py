"""Slurm's own commands: what is queued, what a partition allows, ending jobs. No accounting is asked.

Each raises `OSError` with Slurm's words where Slurm does not answer.
"""

import os
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

PATIENCE_SECONDS = 60  # a controller under load answers late
SETTINGS = ("SQUEUE_", "SBATCH_", "SCANCEL_", "SINFO_", "SLURM_")
# Which Slurm is meant, and the right to ask it
KEPT = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT")
ENDLESS = ("infinite", "UNLIMITED", "n/a")
_GPUS = re.compile(r"gpu(?::([^:,()]+))?:(\d+)")
LONGEST_ARRAY = 1000  # tasks: Slurm's own limit, unless its administrator changed it


@dataclass(frozen=True)
class Queued:
    """One job (a task of an array) that Slurm has not ended."""

    job: str  # 17 or 17_3
    state: str  # PENDING, RUNNING, COMPLETING, ...
    reason: str  # why it waits; Slurm's word


@dataclass(frozen=True)
class Nodes:
    """Nodes of a partition that are alike, and what each of them has."""

    number: int
    gpus: int
    cpus: int
    memory_gb: float
    features: frozenset[str] = frozenset()
    of_type: Mapping[str, int] = field(
        default_factory=dict
    )  # GPUs by Slurm's name of their type, if it has one


@dataclass(frozen=True)
class Partition:
    """How long a job of a partition may take, and the kinds of its nodes."""

    name: str
    default: bool
    minutes: float  # infinite where there is no limit
    kinds: tuple[Nodes, ...]

    @property
    def nodes(self) -> int:
        return sum(each.number for each in self.kinds)

    @property
    def features(self) -> frozenset[str]:
        """Of any of its nodes."""
        return frozenset().union(*(each.features for each in self.kinds))


def forget_settings() -> None:
    """Leave out what a person has set for their own use of Slurm: SQUEUE_STATES would hide jobs that live, and
    SBATCH_JOB_NAME the name by which ours are known. Also what the job has set that a person may be in: sbatch
    would pass its SLURM_MEM_PER_CPU on, and srun ends where another key says the memory too."""
    for name in [name for name in os.environ if name.startswith(SETTINGS) and name not in KEPT]:
        del os.environ[name]


def queue(users: Collection[str]) -> dict[tuple[str, str], Queued]:
    """The jobs of these users by (job name, index in the array or N/A).

    Of others than oneself there may be none to see: `hides_others`.
    """
    whose = f"--user={','.join(sorted(users))}"
    answer = _ask(
        ["squeue", whose, "--all", "--array", "--noheader", "--format=%j|%K|%i|%T|%r"],
        "the list of your jobs. Try again when Slurm answers.",
    )
    found = {}
    for line in answer.splitlines():
        fields = line.strip().rsplit("|", 4)
        if len(fields) == 5:  # what a site prints before the list is not a job
            name, index, job, state, reason = fields
            found[name, index] = Queued(job, state, reason)
    return found


def hides_others() -> bool:
    """Whether Slurm is set up not to show the jobs of other users."""
    private = _setting("PrivateData", "whether it shows the jobs of others.")
    return private is not None and "jobs" in private.split(",")


def cluster_name() -> str:
    """The name of the Slurm that answers here; empty where it has none."""
    return _cluster_name(*(os.environ.get(name, "") for name in KEPT))


@cache
def _cluster_name(*_: str) -> str:
    return _setting("ClusterName", "which cluster this is.") or ""


def longest_array() -> int:
    """The most tasks of an array: what this Slurm takes, and never more than Slurm takes by itself."""
    most = _setting("MaxArraySize", "how long an array may be.")
    return max(1, min(int(most or LONGEST_ARRAY), LONGEST_ARRAY))


def _setting(name: str, wanted: str) -> str | None:
    """How this Slurm is set up; None where it does not say."""
    answer = _ask(["scontrol", "show", "config"], f"{wanted} Try again when Slurm answers.")
    found = re.search(rf"^{name}\s*=\s*(\S+)", answer, re.M)
    return found[1] if found else None


def cancel(name: str) -> None:
    """Ask the jobs of this name to stop at their next step; those that wait never begin.

    The steps of a running one get SIGTERM: they save and end in their own time.
    """
    for options in (["--state=PENDING"], ["--signal=TERM"]):
        _ask(["scancel", *options, "--name", name], "to end these jobs.")


def remove(name: str) -> None:
    """End the jobs of this name at once."""
    _ask(["scancel", "--name", name], "to end these jobs.")


def partitions() -> list[Partition]:
    """Every partition that jobs can be sent to, hidden ones too: those who may use one need not see it listed."""
    answer = _ask(
        ["sinfo", "--all", "--exact", "--noheader", "--format=%P|%l|%D|%G|%c|%m|%f"],
        "the partitions. Try again when Slurm answers.",
    )
    limits: dict[str, str] = {}
    kinds: dict[str, list[Nodes]] = defaultdict(list)
    for line in answer.splitlines():
        fields = line.strip().split("|")
        if len(fields) == 7:  # nodes that differ have a line each
            name, limits[name], number, gpus, cpus, memory, features = fields
            has = frozenset(features.split(",")) - {"(null)", ""}
            own = Nodes(
                int(number), gpus_of(gpus), int(cpus), int(memory) / 1024, has, gpu_types(gpus)
            )
            kinds[name].append(own)
    return [
        Partition(name.rstrip("*"), name.endswith("*"), _minutes(limit), tuple(kinds[name]))
        for name, limit in limits.items()
    ]


def would_start(script: str) -> str:
    """What `sbatch --test-only` says about a script: when it would start, or why never."""
    command = ["sbatch", "--test-only"]
    try:
        done = subprocess.run(
            command,
            input=script,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {PATIENCE_SECONDS} seconds"
    return " ".join((done.stderr or done.stdout).split())


def gpus_of(resources: str) -> int:
    """The GPUs in sinfo's list of what a node has: `gpu:a100:4(S:0-1),nvme:1`."""
    return sum(int(count) for _, count in _GPUS.findall(resources))


def gpu_types(resources: str) -> dict[str, int]:
    """The same by type, without those that have none."""
    return {name: int(count) for name, count in _GPUS.findall(resources) if name}


def _minutes(limit: str) -> float:
    """`1-02:30:00`, `4:00:00` or `30:00` in minutes."""
    if limit in ENDLESS:
        return float("inf")
    days, _, clock = limit.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    hours, minutes, seconds = [0] * (3 - len(parts)) + parts
    return 24 * 60 * int(days or 0) + 60 * hours + minutes + seconds / 60


def _ask(command: Sequence[str], wanted: str) -> str:
    """Its standard output."""
    words = " ".join(command)
    if shutil.which(command[0]) is None:
        raise OSError(
            f"{command[0]}: not found; wanted {wanted} Run this on a machine of the cluster."
        )
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise OSError(
            f"{words}: no answer in {PATIENCE_SECONDS} seconds; wanted {wanted} Is the controller "
            "up? `scontrol ping` tells."
        ) from None
    if done.returncode:
        said = "; ".join(line.strip() for line in done.stderr.splitlines() if line.strip())
        raise OSError(f"{words}: {said}; wanted {wanted}")
    return done.stdout
