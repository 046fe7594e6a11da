"""Slurm's own commands: what is queued, what a partition allows, ending jobs. No accounting is asked.

Each raises `OSError` with Slurm's words where Slurm does not answer.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

PATIENCE_SECONDS = 60  # a controller under load answers late
SETTINGS = ("SQUEUE_", "SBATCH_", "SCANCEL_", "SINFO_")
ENDLESS = ("infinite", "UNLIMITED", "n/a")


@dataclass(frozen=True)
class Queued:
    """One job (a task of an array) that Slurm has not ended."""

    job: str  # 17 or 17_3
    state: str  # PENDING, RUNNING, COMPLETING, ...
    reason: str  # why it waits; Slurm's word


@dataclass(frozen=True)
class Partition:
    """What the largest node of a partition has, and how long a job may take."""

    name: str
    default: bool
    minutes: float  # infinite where there is no limit
    nodes: int
    gpus: int
    cpus: int
    memory_gb: float


def forget_settings() -> None:
    """Leave out what a person has set for their own use of Slurm: SQUEUE_STATES would hide jobs that live, and
    SBATCH_JOB_NAME the name by which ours are known."""
    for name in [name for name in os.environ if name.startswith(SETTINGS)]:
        del os.environ[name]


def queue() -> dict[tuple[str, str], Queued]:
    """This user's jobs by (job name, index in the array or N/A)."""
    answer = _ask(
        ["squeue", "--me", "--all", "--array", "--noheader", "--format=%j|%K|%i|%T|%r"],
        "the list of your jobs. Try again when Slurm answers.",
    )
    found = {}
    for line in answer.splitlines():
        name, index, job, state, reason = line.strip().rsplit("|", 4)
        found[name, index] = Queued(job, state, reason)
    return found


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
    """Every partition that jobs can be sent to."""
    answer = _ask(
        ["sinfo", "--noheader", "--format=%P|%l|%D|%G|%c|%m"],
        "the partitions. Try again when Slurm answers.",
    )
    found: dict[str, Partition] = {}
    for line in answer.splitlines():
        each = _partition(line.strip())
        before = found.get(each.name)
        found[each.name] = _larger(before, each) if before else each
    return list(found.values())


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


def _partition(line: str) -> Partition:
    """One line of sinfo: `gpu*|4:00:00|2|gpu:a100:4(S:0-1)|64|512000`; a `+` says "or more"."""
    name, limit, nodes, gpus, cpus, memory = line.split("|")
    return Partition(
        name=name.rstrip("*"),
        default=name.endswith("*"),
        minutes=_minutes(limit),
        nodes=int(nodes),
        gpus=gpus_of(gpus),
        cpus=int(cpus.rstrip("+")),
        memory_gb=int(memory.rstrip("+")) / 1024,
    )


def gpus_of(resources: str) -> int:
    """The GPUs in sinfo's list of what a node has: `gpu:a100:4(S:0-1),nvme:1`."""
    return sum(int(count) for count in re.findall(r"gpu(?::[^:,()]+)?:(\d+)", resources))


def _larger(a: Partition, b: Partition) -> Partition:
    """Nodes that differ have a line each."""
    return Partition(
        a.name,
        a.default,
        max(a.minutes, b.minutes),
        a.nodes + b.nodes,
        max(a.gpus, b.gpus),
        max(a.cpus, b.cpus),
        max(a.memory_gb, b.memory_gb),
    )


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
