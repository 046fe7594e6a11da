"""Where a number came from: commit, versions, host, command line. Written into every run file."""

import datetime
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "deepspeed", "megatron-core", "numpy", "h5py", "submitit")


def provenance(**more: Any) -> dict[str, Any]:
    """The record of one start of a run; `more` adds what only the caller knows."""
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "command": shlex.join(sys.argv),
        "host": platform.node(),
        "processor": _processor(),
        "python": platform.python_version(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "versions": {name: _version(name) for name in PACKAGES},
        **more,
    }


def _commit() -> str | None:
    """The commit of the code that runs, "+changes" if it was edited; None outside a repository."""
    here = Path(__file__).parent
    frozen = here.parent / "COMMIT"  # `slurm submit` runs a copy of the code
    if frozen.exists():
        return frozen.read_text().strip() or None
    try:
        commit, changes = (
            subprocess.run(
                ["git", "-C", str(here), *arguments],
                capture_output=True,
                text=True,
                check=True,
                timeout=10,
            ).stdout.strip()
            for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+changes" if changes else "")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
