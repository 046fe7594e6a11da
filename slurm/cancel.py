"""Ending a study's jobs: what runs stops at its next step, with a checkpoint; what waits never begins."""

from dataclasses import dataclass
from pathlib import Path

from slurm.alive import Live, end, live_tasks
from slurm.ledger import Submission, submissions, submissions_before, wanted_by


@dataclass(frozen=True)
class Cancelled:
    """What was done."""

    live: tuple[Live, ...]  # the tasks that were asked to stop
    kept: tuple[str, ...]  # builds that go on, and for whom, in words


def cancel(study_folder: Path) -> Cancelled:
    """Ask all jobs of a study to stop. A build of its data goes on while somebody else waits for it."""
    past = submissions(study_folder)
    before = submissions_before(past)
    kept = {}
    for each in before:
        others = [who for who in wanted_by(each) if who != study_folder and _waits(who, each)]
        if others:
            kept[_dataset(each)] = others
    mine = [each for each in before if _dataset(each) not in kept]
    live = live_tasks([*mine, *past])
    for submission in {each.submission for each in live}:
        end(submission)
    said = [
        f"the build of {out} goes on: {', '.join(map(str, others))} waits for it"
        for out, others in kept.items()
    ]
    return Cancelled(tuple(live), tuple(said))


def _dataset(submission: Submission) -> Path:
    """The dataset that a submission builds."""
    return submission.folder.parents[1]


def _waits(who: Path, build: Submission) -> bool:
    """Whether jobs of a study come after this one; `prepare` typed by hand waits for its own dataset."""
    return any(
        who == _dataset(build) or build.started_as in each.submission.after
        for each in live_tasks(submissions(who))
    )
