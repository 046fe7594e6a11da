"""A small real study, and `python -m slurm` as a person starts it: a process of its own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from launch.config import RunConfig
from launch.study import expand, load_study
from slurm.playground import PACKAGES, Playground, missing_programs
from slurm.playground import playground as started_playground
from slurm.status import RunStatus, look

ROOT = Path(__file__).parents[2]
RUNG = "[[ladder]]\nnum_layers = {}\nhidden_size = {}\n"
STUDY = """
name = "tiny"
question = "Does the study survive?"
domain = "image-8x8"
precision = "fp32"
{ladder}
[budget]
tokens = {tokens}
[batch]
train_batch_size = 4
[optimizer]
learning_rate = 0.003
[evaluation]
rows = 4
points_per_decade = 2
"""


def write_study(
    path: Path, sizes: tuple[tuple[int, int], ...] = ((1, 16), (1, 32)), tokens: float = 1e5
) -> Path:
    """A study file of these (num_layers, hidden_size)."""
    ladder = "".join(RUNG.format(*size) for size in sizes)
    path.write_text(STUDY.format(ladder=ladder, tokens=tokens))
    return path


def runs_of(study: Path) -> tuple[RunConfig, ...]:
    return expand(load_study(study), study)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_study(tmp_path / "tiny.toml")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """image-8x8 of 100 pictures of noise."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    (folder / "raw").mkdir()
    for index in range(100):
        pixels = random.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "raw" / f"{index}.png")
    words = ["build", "image-8x8", "--raw", str(folder / "raw"), "--out", str(folder / "image-8x8")]
    command = [sys.executable, "-m", "data_prep", *words, "--fractions", "0.8,0.1,0.1"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder / "image-8x8"


@pytest.fixture(scope="session")
def playground() -> Iterator[Playground]:
    """A private Slurm of two nodes; skipped where Slurm's programs are not installed."""
    if missing := missing_programs():
        pytest.skip(f"not installed: {', '.join(missing)} (Debian: {PACKAGES})")
    with started_playground() as opened:
        yield opened


class Terminal:
    """Types `python -m slurm ...` about one study; kills what it started when the test is over."""

    def __init__(self, study: Path, data: Path, results: Path) -> None:
        self.study, self.data, self.results = study, data, results
        self.started: list[subprocess.Popen[str]] = []

    @property
    def folder(self) -> Path:
        return self.results / "tiny"

    def words(self, command: str, *more: str) -> list[str]:
        words = [sys.executable, "-m", "slurm", command, str(self.study), *more]
        if command == "submit":
            words += ["--cluster", "local", "--data", str(self.data), "--no-report"]
        return [*words, "--results", str(self.results)]

    def start(self, command: str, *more: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            self.words(command, *more),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def run(self, command: str, *more: str, timeout: float = 240) -> "Answer":
        return self.finish(self.start(command, *more), timeout)

    def finish(self, process: "subprocess.Popen[str]", timeout: float = 240) -> "Answer":
        out, err = process.communicate(timeout=timeout)
        return Answer(process.returncode, out, err)

    def statuses(self) -> dict[str, RunStatus]:
        return {each.run_id: each for each in look(runs_of(self.study), self.folder).runs}

    def until(self, holds: Callable[[list[RunStatus]], bool], seconds: float = 180) -> None:
        """Wait until the states of the runs are as wanted."""
        end = time.monotonic() + seconds
        while not holds(list(self.statuses().values())):
            assert time.monotonic() < end, self.describe()
            time.sleep(0.2)

    def trainers(self) -> list[int]:
        """The processes that train this study."""
        found = []
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                line = entry.read_bytes().decode(errors="replace")
            except OSError:
                continue
            if "submitit.core._submit" in line and str(self.folder) in line:
                found.append(int(entry.parent.name))
        return found

    def describe(self) -> str:
        logs = [path.read_text()[-2000:] for path in self.folder.glob("jobs/*/*.out")]
        return "\n".join([str(self.statuses()), *logs])

    def close(self) -> None:
        for process in self.started:
            process.kill()
            process.communicate()
        for pid in self.trainers():
            os.kill(pid, signal.SIGKILL)


class Answer:
    """How a command ended."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err

    def __repr__(self) -> str:
        return f"exit status {self.status}\n{self.out}\n{self.err}"


@pytest.fixture
def terminal(study: Path, data: Path, tmp_path: Path):
    opened = Terminal(study, data, tmp_path / "results")
    yield opened
    opened.close()
