"""Whole studies on a real Slurm, by the commands that a person types."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launch.results import read_result
from slurm.causes import Cause
from slurm.cluster import load_cluster
from slurm.freeze import freeze_code
from slurm.launcher import Order, launch
from slurm.ledger import DATA, REPORT, TRAIN, open_submission, submissions
from slurm.resources import Shape
from slurm.stages import Stage
from tests.slurm.conftest import ROOT
from tests.slurm.trial import Trial, losses, trained, write_study

pytestmark = pytest.mark.slurm
SHORT = 2e4


class Shell:
    """Types `python -m slurm ...` about one study, in a folder with the code."""

    def __init__(
        self, playground, study: Path, data: Path, results: Path, code: Path = ROOT
    ) -> None:
        self.playground, self.study, self.code = playground, study, code
        self.data, self.results = data, results
        self.trial = Trial(playground, study, data, results)

    def start(self, command: str, *more: str) -> subprocess.Popen[str]:
        words = [command, str(self.study), "--results", str(self.results), *more]
        if command == "submit":
            words += ["--cluster", str(self.playground.cluster_file), "--data", str(self.data)]
        return subprocess.Popen(
            [sys.executable, "-m", "slurm", *words],
            cwd=self.code,
            env=self.playground.environment | {"PYTHONPATH": str(self.code)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, command: str, *more: str) -> tuple[int, str]:
        """Exit status, and all that was printed."""
        return ended(self.start(command, *more))

    def submit(self, *more: str) -> str:
        """Submit, and let the trial watch the first array."""
        status, said = self.run("submit", *more)
        assert status == 0, said
        self.trial.submission = next(
            each for each in submissions(self.trial.folder) if each.stage == TRAIN
        )
        (name,) = {
            path.name.split("_")[0] for path in self.trial.submission.folder.glob("*_submitted.pkl")
        }
        self.trial.job = name
        return said

    def until_all_is_over(self) -> None:
        self.trial.until(
            lambda: not self.playground.run("squeue", "-h", "-o", "%i").strip(), seconds=600
        )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, err = process.communicate(timeout=600)
    return process.returncode, out + err


@pytest.fixture
def shell(playground, data, tmp_path, monkeypatch):
    """`open(sizes, tokens)` writes a study and opens a shell for it."""
    monkeypatch.setenv("SLURM_CONF", str(playground.conf))
    opened = []

    def open_shell(sizes=(16,), tokens=SHORT, code=ROOT):
        study = write_study(tmp_path / "tiny.toml", sizes, tokens)
        opened.append(Shell(playground, study, data, tmp_path / "results", code))
        return opened[-1]

    yield open_shell
    for each in opened:
        playground.run("scancel", "--user", str(os.getuid()))
        each.trial.close()


def test_twelve_rungs_with_fits_and_a_report(shell, playground, data, tmp_path):
    """All is done when the jobs are, with nobody watching: two sbatch calls, two jobs at a time."""
    twelve = shell(sizes=tuple(range(16, 16 + 8 * 12, 8)))
    twelve.submit()
    twelve.until_all_is_over()
    past = submissions(twelve.trial.folder)
    assert sorted(each.stage for each in past) == [REPORT, TRAIN]
    assert sorted(map(len, (each.tasks for each in past))) == [1, 2]
    assert (twelve.trial.folder / "report.html").exists(), twelve.trial.describe()
    alone = trained(twelve.study, data, tmp_path / "alone")
    assert len(alone) == 12
    assert losses(twelve.study, twelve.results) == alone
    status, said = twelve.run("submit")
    assert (status, said) == (0, "12 of 12 runs are finished: nothing to do\n")


def test_two_submits_at_once(shell, tmp_path, data):
    """From two shells: each run gets one job."""
    one = shell(sizes=(16, 24))
    both = [one.start("submit", "--no-report") for _ in range(2)]
    answers = [ended(each) for each in both]
    assert [status for status, _ in answers] == [0, 0], answers
    one.until_all_is_over()
    for run in one.trial.runs:
        assert len(read_result(one.trial.folder / run.run_id).provenance) == 1
    assert len(submissions(one.trial.folder)) == 1
    assert one.trial.losses() == trained(one.study, data, tmp_path / "alone")


def test_a_failing_rung_among_good_ones(shell, tmp_path, data):
    """It is named, the report is made of the rest, and says so; later the rest of the work is one run."""
    three = shell(sizes=(16, 24, 32))
    bad, *good = three.trial.runs
    (three.trial.folder / bad.run_id).mkdir(parents=True)
    obstacle = three.trial.folder / bad.run_id / "checkpoints"
    obstacle.write_text("a file where a folder should be")
    three.submit()
    three.until_all_is_over()
    states = {
        run_id: run
        for task in range(len(three.trial.submission.tasks))
        for run_id, run in three.trial.outcome(task)["runs"].items()
    }
    assert states[bad.run_id]["state"] == "failed"
    assert states[bad.run_id]["cause"] == Cause.FAILED
    assert [states[run.run_id]["state"] for run in good] == ["finished"] * 2
    assert (three.trial.folder / "report.html").exists(), three.trial.describe()
    report = next(each for each in submissions(three.trial.folder) if each.stage == REPORT)
    told = "\n".join(path.read_text() for path in report.folder.glob("*_log.out"))
    assert bad.run_id in told
    status, said = three.run("status")
    assert bad.run_id in said
    assert "failed" in said
    obstacle.unlink()
    three.run("submit")
    three.until_all_is_over()
    assert three.trial.losses() == trained(three.study, data, tmp_path / "alone")


def test_a_stage_at_its_time_limit_while_the_controller_is_away(playground, tmp_path, monkeypatch):
    """A build or an evaluation asks until it is requeued: if it ended here, what waits for it would be cancelled."""
    monkeypatch.setenv("SLURM_CONF", str(playground.conf))
    begun = tmp_path / "begun"
    first_alone = "import pathlib, time; p = pathlib.Path({!r}); f = p.exists(); p.touch(); f or time.sleep(600)"
    made = open_submission(tmp_path / "set", "set", "slurm", [("part 1 of 1",)], stage=DATA)
    order = Order(
        load_cluster(str(playground.cluster_file)), DATA, Shape(), freeze_code(tmp_path / "set")
    )
    stage = Stage(
        str(made.folder), (("timeit", "-n", "1", "-r", "1", first_alone.format(str(begun))),)
    )
    job = launch(made, order, [stage])
    log = made.folder / f"{job}_0_log.out"
    playground.until(begun.exists, "its command")
    playground.kill("slurmctld", signal.SIGTERM)  # which saves that the job has begun
    (pid,) = pids_of(str(made.folder))
    os.kill(pid, signal.SIGUSR2)
    playground.until(lambda: "asking again" in log.read_text(), "its question")
    playground.start_controller()
    outcome = made.folder / f"{job}.outcome.json"
    playground.until(outcome.exists, "its end")
    assert json.loads(outcome.read_text()) == {"status": 0}, log.read_text()
    playground.until(playground.idle, "its nodes")


def pids_of(folder: str) -> list[int]:
    """submitit's process in a job whose folder this is: not srun, nor the shell around it."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().decode(errors="replace").split("\0")
            if folder in words and "submitit.core._submit" in words and "python" in words[0]:
                found.append(int(path.parent.name))
    return found
