"""`prepare`: a dataset built by an array of jobs, each a part of it, and one job that checks the whole.

OUT/jobs/KEY/   the submissions, as of a study;  OUT/code/KEY/   the code that they run
"""

import contextlib
import io
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_prep.arguments import parser as data_prep_parser
from data_prep.domain import domain
from data_prep.manifest import load_manifest
from slurm import queue
from slurm.alive import live_tasks, refuse_moved, without_stillborn
from slurm.cluster import Cluster
from slurm.freeze import freeze_code
from slurm.launcher import Order, launch
from slurm.ledger import (
    CANCELLED,
    CHECK,
    DATA,
    Submission,
    open_submission,
    refuse_pattern,
    submissions,
    submit_lock,
    want,
)
from slurm.machine import this_machine
from slurm.placement import local_slots
from slurm.resources import Shape

MANIFEST = "manifest.json"
Commands = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Build:
    """What to build, and in how many parts."""

    domain: str
    raw: str
    out: Path
    parts: int
    options: str = ""  # more words for `data_prep build`

    def __post_init__(self) -> None:
        domain(self.domain)  # raises for one that is not known
        refuse_pattern("the folder of the data", self.out)
        _refuse_parts(self.parts, queue.LONGEST_ARRAY)
        path = self.raw.partition(":")[0]
        if path != "generator" and not Path(path).exists():
            raise ValueError(
                f"--raw {self.raw}: no such file or folder; wanted the raw data of {self.domain}. Check the "
                "path, or see `python -m data_prep list`."
            )
        _refuse_words(self)

    @property
    def finished(self) -> bool:
        return (self.out / MANIFEST).exists()

    def command(self, part: int) -> tuple[str, ...]:
        """The words after `python -m` that build one part, counted from 1. Paths are whole ones: jobs
        run in another folder."""
        raw = ":".join(_whole(each) for each in self.raw.split(":"))
        words = ["data_prep", "build", self.domain, "--raw", raw, "--out", str(self.out)]
        options = (_whole(word) for word in shlex.split(self.options))
        return (*words, "--part", f"{part}/{self.parts}", *options)


@dataclass(frozen=True)
class Underway:
    """The last job of a build, which others may wait for."""

    submission: Submission
    job: str  # Slurm's id
    started: bool  # now, and not before


def prepare(build: Build, cluster: Cluster, who: Path) -> Underway:
    """Start a build, unless it is under way. `who` wants it: a study's folder, or `build.out` of a person."""
    with submit_lock(build.out):
        living = without_stillborn(live_tasks(submissions(build.out)))
        refuse_moved(living)
        for live in living:
            _refuse_other_executor(build, live.submission, cluster)
            _refuse_cancelled(build, live.submission)
            if live.submission.stage == CHECK:
                want(live.submission, who)
                return Underway(live.submission, live.job, started=False)
        started = _start(build, cluster)
        want(started.submission, who)
        return started


def already_built(folder: Path, name: str) -> str:
    """What is said of a dataset that is there. Raises `ValueError` where it is not of the domain `name`."""
    manifest = load_manifest(folder)
    if manifest.domain != name:
        raise ValueError(
            f"{folder}: holds a dataset of {manifest.domain}; wanted {name}, or nothing there yet. Give another folder."
        )
    commands = "; ".join(each.command for each in manifest.builds)
    return (
        f"{folder}: already built, by: {commands}. It is taken as it is: --raw, --parts and --build change nothing "
        "of it"
    )


def orders(cluster: Cluster, code: Path) -> tuple[Order, Order]:
    """What the parts ask of Slurm, and what the check does."""
    parts = Order(cluster, DATA, Shape(), code, parallelism=cluster.concurrent_jobs or 1)
    return parts, Order(cluster, CHECK, Shape(), code)


def _refuse_parts(parts: int, most: int) -> None:
    if not 1 <= parts <= most:
        raise ValueError(
            f"--parts {parts}: wanted 1 to {most}, the longest array that Slurm takes. Give "
            "as many as jobs may run at a time."
        )


def _refuse_words(build: Build) -> None:
    """Raise `ValueError` for words that `data_prep build` does not know, before a job meets them."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            data_prep_parser().parse_args(build.command(1)[1:])
        return
    except SystemExit:
        why = said.getvalue().strip().rpartition("error: ")[2].splitlines()[-1]
    except ValueError as error:  # of shlex: a quotation without an end
        why = str(error)
    raise ValueError(
        f"--build={build.options!r}: {why}; wanted words that `data_prep build` takes. Its --help lists them."
    ) from None


def _refuse_other_executor(build: Build, there: Submission, cluster: Cluster) -> None:
    if there.executor != cluster.executor:
        raise ValueError(
            f"{build.out}: is being built by jobs with executor = '{there.executor}' on {there.host}; wanted "
            f"the same executor ('{cluster.executor}' now), so that one can wait for the other. Wait for it "
            "to end, then run the same command again."
        )


def _refuse_cancelled(build: Build, there: Submission) -> None:
    if (there.folder / CANCELLED).exists():
        raise ValueError(
            f"{build.out}: the jobs that build it were cancelled and are ending ({there.name}); wanted none of them "
            "left. Wait a moment, then run the same command again."
        )


def _start(build: Build, cluster: Cluster) -> Underway:
    from slurm.stages import Stage  # brings submitit

    order, last = orders(cluster, freeze_code(build.out))
    parts = [(build.command(part),) for part in range(1, build.parts + 1)]
    if cluster.executor == "local":
        made = [_launch_here(build, order, job) for job in _shares(parts, cluster)]
        ids = []
    else:
        _refuse_parts(build.parts, queue.longest_array())
        names = [(f"part {part} of {build.parts}",) for part in range(1, build.parts + 1)]
        array = _open(build, order, names)
        stages = [Stage(str(array.folder), commands) for commands in parts]
        made, ids = [array], [launch(array, order, stages)]
    return _start_check(build, last, made, ids)


def _start_check(
    build: Build, order: Order, made: Sequence[Submission], ids: Sequence[str]
) -> Underway:
    """The last job: a part that finds all others done has finished the dataset; then read all of it."""
    from slurm.stages import After, Stage

    after = tuple(str(each.folder) for each in made)
    dependency = f"afterany:{':'.join(ids)}" if ids else None
    order = replace(order, dependency=dependency)
    last = _open(build, order, [(f"check of {build.out.name}",)], after=after)
    commands = (build.command(1), ("data_prep", "check", str(build.out)))
    job: Callable[[], int] = Stage(str(last.folder), commands, after)
    if order.cluster.executor == "local":
        job = After(str(last.folder), job, after, only_if_well=False)
    return Underway(last, launch(last, order, [job]), started=True)


def _shares(parts: Sequence[Commands], cluster: Cluster) -> list[Commands]:
    """The parts that each process of this machine does, one after another."""
    number = min(len(parts), len(local_slots(cluster, this_machine())))
    return [
        tuple(command for part in parts[slot::number] for command in part) for slot in range(number)
    ]


def _launch_here(build: Build, order: Order, commands: Commands) -> Submission:
    from slurm.stages import Stage

    names = (f"part {words[words.index('--part') + 1]}" for words in commands)
    made = _open(build, order, [tuple(names)])
    launch(made, order, [Stage(str(made.folder), commands)])
    return made


def _open(
    build: Build, order: Order, tasks: Sequence[tuple[str, ...]], after: tuple[str, ...] = ()
) -> Submission:
    return open_submission(
        build.out,
        build.out.name,
        order.cluster.executor,
        tasks,
        stage=order.stage,
        after=after,
        code=order.code.name,
        slurm=order.slurm,
    )


def _whole(word: str) -> str:
    """A path that is there, from the root; anything else as it is."""
    return str(Path(word).resolve()) if word and Path(word).exists() else word
