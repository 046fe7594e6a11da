"""What this machine lends to local jobs: cores, memory, GPUs. Read without torch."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Machine:
    """What this machine lends to local jobs."""

    cores: int
    memory_gb: float
    gpus: tuple[str, ...]  # as in CUDA_VISIBLE_DEVICES


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
