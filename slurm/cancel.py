"""Ending a study's jobs: what runs stops at its next step, with a checkpoint; what waits never begins."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slurm.alive import Live, end, live_tasks
from slurm.ledger import Submission, forget, submissions, submissions_before, wanted_by


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
    live = _end([*mine, *past])
    said = [
        f"the build of {out} goes on: {', '.join(map(str, others))} waits for it"
        for out, others in kept.items()
    ]
    return Cancelled(live, tuple(said))


def cancel_build(out: Path) -> Cancelled:
    """Ask the jobs of a build that `prepare` started to stop. It goes on while a study waits for it, but then for
    that alone: it ends with the last such study."""
    past = submissions(out)
    if not past:
        raise ValueError(
            f"--out {out}: no job was ever started to build this dataset; wanted the folder that `prepare` was given. "
            "Check the path."
        )
    for each in past:
        forget(each, out)
    others = {who for each in past for who in wanted_by(each) if _waits(who, each)}
    if others:
        names = ", ".join(map(str, sorted(others)))
        return Cancelled(
            (), (f"the build goes on: {names} waits for it. Cancel that study first.",)
        )
    return Cancelled(_end(past), ())


def _end(past: Sequence[Submission]) -> tuple[Live, ...]:
    """Those that were alive. What comes last is ended first, or it would begin when the others end."""
    live = live_tasks(past)
    for submission in sorted({each.submission for each in live}, key=lambda each: -each.time):
        end(submission)
    return tuple(live)


def _dataset(submission: Submission) -> Path:
    """The dataset that a submission builds."""
    return submission.folder.parents[1]


def _waits(who: Path, build: Submission) -> bool:
    """Whether jobs of a study come after this one; `prepare` typed by hand waits for its own dataset."""
    return any(
        who == _dataset(build) or build.started_as in each.submission.after
        for each in live_tasks(submissions(who))
    )
