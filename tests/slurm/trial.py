"""Real training on the private Slurm: a small study, whose jobs a test may disturb, and what it leaves."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from launch.checkpoint_files import newest_step
from launch.config import RunConfig
from launch.results import read_result
from slurm.attempts import ATTEMPTS_SUFFIX, Attempt, read
from slurm.cluster import Cluster, load_cluster
from slurm.freeze import freeze_code, freeze_runs
from slurm.job import Job
from slurm.launcher import Order, launch
from slurm.ledger import OUTCOME_SUFFIX, TRAIN, Submission, open_submission
from slurm.playground import Playground
from slurm.resources import Shape
from tests.slurm.conftest import ROOT, RUNG, STUDY, runs_of

ONE = Shape()
PATIENCE, POLL_SECONDS = 400.0, 0.1
CHECKPOINT = """
[checkpoint]
interval_minutes = {}
"""


def write_study(
    path: Path,
    sizes: tuple[int, ...] = (16,),
    tokens: float = 3e5,
    interval: float = 0.01,
    more: str = "",
) -> Path:
    """A study file of one-layer models of these hidden sizes."""
    ladder = "".join(RUNG.format(1, size) for size in sizes)
    path.write_text(STUDY.format(ladder=ladder, tokens=tokens) + CHECKPOINT.format(interval) + more)
    return path


def trained(study: Path, data: Path, results: Path) -> dict[str, list[float]]:
    """The losses of a study that one process trains undisturbed, by run id."""
    words = ["run", str(study), "--data", str(data), "--results", str(results)]
    command = [sys.executable, "-m", "launch", *words]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=3600, check=False
    )
    assert done.returncode == 0, done.stderr
    return losses(study, results)


def losses(study: Path, results: Path) -> dict[str, list[float]]:
    """Every step's loss, by run id."""
    folder = results / "tiny"
    return {
        run.run_id: read_result(folder / run.run_id).train["loss"].tolist()
        for run in runs_of(study)
    }


def _heard(pid: int, number: int) -> bool:
    """Whether a process that is stopped has been sent a signal; true as well once it has gone on and ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True
    pending = re.search(r"^ShdPnd:\s*(\w+)", status, re.M)
    return pending is None or bool(int(pending[1], 16) >> number - 1 & 1)


class Trial:
    """Jobs of one study on the playground."""

    def __init__(self, playground: Playground, study: Path, data: Path, results: Path) -> None:
        self.playground, self.study, self.data, self.results = playground, study, data, results
        self.runs = runs_of(study)
        self.submission: Submission | None = None

    @property
    def folder(self) -> Path:
        return self.results / "tiny"

    def submit(
        self,
        shape: Shape = ONE,
        groups: list[list[RunConfig]] | None = None,
        root: Path = ROOT,
        **more: object,
    ) -> Submission:
        """One array: a task for each group of runs, by default one for all; `root`: of the code;
        `more`: fields of `Job` and of the cluster file."""
        fields = {each.name for each in dataclasses.fields(Job)}
        of_job = {name: value for name, value in more.items() if name in fields}
        of_cluster = {name: value for name, value in more.items() if name not in fields}
        groups = groups or [list(self.runs)]
        tasks = [tuple(run.run_id for run in group) for group in groups]
        self.folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.study, self.folder / "study.toml")
        code = freeze_code(self.folder, root)
        self.submission = open_submission(self.folder, "tiny", "slurm", tasks, stage=TRAIN)
        freeze_runs(self.submission.folder, self.runs)
        jobs = [
            Job(
                str(self.folder / "study.toml"),
                str(self.data),
                str(self.results),
                task,
                shape.ranks,
                **of_job,
            )
            for task in tasks
        ]
        environment = (("OMP_NUM_THREADS", "1"),)
        order = Order(self.cluster(**of_cluster), TRAIN, shape, code, environment, len(tasks))
        self.job = launch(self.submission, order, jobs)
        return self.submission

    def cluster(self, **fields: object) -> Cluster:
        return load_cluster(str(self.playground.cluster_file)).model_copy(update=fields)

    # --- what is going on

    def saved(self, run: RunConfig | None = None) -> int:
        """The number of the newest checkpoint's step."""
        return newest_step(self.folder / (run or self.runs[0]).run_id)

    def until(self, holds: Callable[[], object], seconds: float = PATIENCE) -> None:
        """Wait for something; tell all there is to tell if it does not come in so many seconds of a machine that has a
        core for each process that wants one."""
        left = seconds
        while not holds():
            assert left > 0, self.describe()
            time.sleep(POLL_SECONDS)
            wanted = os.getloadavg()[0] / (os.cpu_count() or 1)
            left -= POLL_SECONDS / max(1.0, wanted)

    def until_saved(self, beyond: int = 0) -> int:
        """Wait for a newer checkpoint; its step."""
        self.until(lambda: self.saved() > beyond)
        return self.saved()

    def left(self, suffix: str, task: int = 0) -> Path:
        """The file of this kind that a job leaves."""
        assert self.submission is not None
        index = f"_{task}" if len(self.submission.tasks) > 1 else ""
        return self.submission.folder / f"{self.job}{index}{suffix}"

    def minutes(self) -> int:
        """Whole minutes that the job has been running."""
        answer = self.playground.run("squeue", "-h", "-j", self.job, "-O", "TimeUsed:20").strip()
        return int(answer.split(":")[0]) if answer.count(":") == 1 else 0

    def set_time_limit(self, minutes: int) -> None:
        self.playground.run("scontrol", "update", f"JobId={self.job}", f"TimeLimit={minutes}")

    def outcome(self, task: int = 0) -> dict:
        """How a job ended, once it has."""
        path = self.left(OUTCOME_SUFFIX, task)
        self.until(path.exists)
        return json.loads(path.read_text())

    def attempts(self, task: int = 0) -> list[Attempt]:
        return read(self.left(ATTEMPTS_SUFFIX, task))

    def causes(self, task: int = 0) -> list[str | None]:
        return [attempt.cause for attempt in self.attempts(task)]

    def losses(self) -> dict[str, list[float]]:
        return losses(self.study, self.results)

    def processes(self, *words: str, node: str | None = None) -> list[int]:
        """This trial's processes with these words on their command line, on that node."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                line = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                variables = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            ours = any(str(self.folder) in word for word in line)
            there = node is None or f"SLURMD_NODENAME={node}" in variables
            if ours and there and set(words) <= set(line) and "srun" not in line[0]:
                found.append(int(entry.name))
        return found

    def ranks(self, node: str | None = None) -> list[int]:
        return self.processes("slurm.rank", node=node)

    def kill(self, pids: list[int], number: int = signal.SIGKILL) -> None:
        assert pids, self.describe()
        for pid in pids:
            os.kill(pid, number)

    def pause(self, beyond: int = 0) -> int:
        """Stop the only rank as soon as it has saved a step beyond that one: it is not finished before a test has
        done what it does next. Its process id. Whatever Slurm ends it with lets it go on first."""
        self.until_saved(beyond)
        (rank,) = self.ranks()
        os.kill(rank, signal.SIGSTOP)
        return rank

    def resume(self, rank: int, number: int) -> None:
        """Let it go on once it has been sent that signal; Slurm may have done both."""
        self.until(lambda: _heard(rank, number))
        with contextlib.suppress(ProcessLookupError):
            os.kill(rank, signal.SIGCONT)

    def describe(self) -> str:
        lines = []
        with contextlib.suppress(RuntimeError):  # the controller may be what a test has stopped
            lines = [self.playground.run("squeue", "-a")]
        return "\n".join([*lines, self.describe_files()])

    def describe_files(self) -> str:
        """The ends of everything that the jobs have written."""
        texts = self._texts() if self.submission else []
        return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in texts)

    def _texts(self) -> list[Path]:
        assert self.submission is not None
        folder = self.submission.folder
        return sorted([*folder.glob("*.out"), *folder.glob("*.log"), *folder.glob("*.json")])

    def close(self) -> None:
        """End what is left, so that the next test finds the nodes free."""
        if self.submission:
            self.playground.run("scancel", "--name", self.submission.name)
        self.playground.until(
            lambda: not self.playground.run("squeue", "-h", "-o", "%i").strip(),
            "the end of all jobs",
        )
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
