"""What a job is to train, and how far each run is, from its files."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from launch.checkpoint_files import newest_step
from launch.config import RunConfig
from launch.folder import FAILED_FILE, finished_on, run_folder
from slurm.freeze import frozen_runs


@dataclass(frozen=True)
class Work:
    """What a job is to train, and what of it is on disk."""

    submission: Path  # its folder
    name: str  # the job's, in file names: 17, or 17_3 in an array
    data: Path
    results: Path
    run_ids: tuple[str, ...]
    at_a_time: int = 1  # runs on one device

    @cached_property
    def runs(self) -> dict[str, RunConfig]:
        return dict(zip(self.run_ids, frozen_runs(self.submission, self.run_ids), strict=True))

    def folder(self, run_id: str) -> Path:
        return run_folder(self.results, self.runs[run_id])

    def finished(self, run_id: str) -> bool:
        try:
            return finished_on(self.runs[run_id], self.folder(run_id), self.data)
        except ValueError:
            return False  # the rank that tries it says what is wrong

    def saved(self, run_id: str) -> int:
        """The steps of its newest checkpoint."""
        return newest_step(self.folder(run_id))

    def failure(self, run_id: str, since: float) -> str | None:
        """What the run recorded as its error since then."""
        path = self.folder(run_id) / FAILED_FILE
        try:
            # A file system may round its times down to whole seconds.
            return (
                str(json.loads(path.read_text())["error"])
                if path.stat().st_mtime >= since - 1
                else None
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None
