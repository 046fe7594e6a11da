"""How often the system has killed a process of this job to win memory: the kernel's own count."""

import contextlib
import re
from pathlib import Path

PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


def memory_kills(proc: Path = PROC, cgroup: Path = CGROUP) -> int:
    """The count of this job's control group, or of the machine where the group has none; 0 if neither.

    With Slurm the group is the job's, JOB/step_batch being ours: version 2 counts the other steps with it.
    """
    with contextlib.suppress(OSError):
        for line in (proc / "self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            group = Path(re.sub(r"(/job_\d+)/.*", r"\1", path)).relative_to("/")
            if controllers == "":
                count = _count(cgroup / group / "memory.events")
            elif "memory" in controllers.split(","):
                count = _count(cgroup / "memory" / group / "memory.oom_control")
            else:
                continue
            if count is not None:
                return count
    return _count(proc / "vmstat") or 0


def _count(path: Path) -> int | None:
    """The line `oom_kill N` of one of the kernel's files."""
    with contextlib.suppress(OSError):
        if found := re.search(r"^oom_kill (\d+)$", path.read_text(), re.M):
            return int(found[1])
    return None
