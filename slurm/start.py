"""The studies whose weights a study begins with (`[start]`): trained already, or under way and waited for.

Here only the names of folders and whether runs are finished are looked at: which of several runs serves best is found
by the run itself (`launch.start`), for that brings torch.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from launch.config import CONFIG_FILE, RunConfig
from launch.results import is_finished
from slurm.alive import live_tasks
from slurm.ledger import TRAIN, Submission, submissions


def waited_for(results: Path, runs: Sequence[RunConfig], executor: str) -> dict[Submission, str]:
    """The training of other studies that some of these runs start from, and Slurm's ids of it ('' of local jobs).

    Raises `ValueError` where no run to start from is finished, nor under way: it would not come by waiting.
    """
    found: dict[Submission, str] = {}
    lacking: dict[str, RunConfig] = {}
    for run in runs:
        if run.start and not _trained(results / run.start.study, run):
            lacking.setdefault(run.start.study, run)
    for study, run in lacking.items():
        live = live_tasks(submissions(results / study))
        training = {each.submission: each.job for each in live if each.submission.stage == TRAIN}
        if not training:
            raise ValueError(
                f"{run.run_id}: [start]: no run of study '{study}' with the sizes of {run.shape.name} is finished "
                f"in {results / study}, and no job trains that study; wanted its weights. Submit it first, with "
                "the same --results, and then this one, which waits for it."
            )
        other = next((each for each in training if each.executor != executor), None)
        if other:
            raise ValueError(
                f"{run.run_id}: [start]: study '{study}' is being trained by jobs with executor = "
                f"'{other.executor}'; wanted the same executor ('{executor}' now), so that one can wait for the "
                "other. Wait for it to end, then run the same command again."
            )
        found |= training
    return found


def _trained(study_folder: Path, run: RunConfig) -> bool:
    """Whether a run of that study with the sizes of this one is finished."""
    for path in study_folder.glob(f"*-{run.shape.name}-*/{CONFIG_FILE}"):
        with suppress(ValueError):  # being written at this moment, or damaged
            if is_finished(path.parent):
                return True
    return False
