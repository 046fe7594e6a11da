"""Data build -> check -> training -> report, without Slurm and on a real one; and what the last are told
when something before them fails."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.exits import STOPPED
from slurm.alive import live_tasks
from slurm.cluster import load_cluster
from slurm.launcher import Order, _local_setup, launch
from slurm.ledger import (
    CANCELLED,
    CHECK,
    DATA,
    EVALUATE,
    EVERY_CHECKPOINT,
    EVERY_RUN,
    REPORT,
    TRAIN,
    open_submission,
    submissions,
    submissions_before,
)
from slurm.playground import Playground
from slurm.resources import Shape
from slurm.stages import Stage
from slurm.status import StudyStatus, look
from tests.slurm.conftest import ROOT, runs_of, write_study

SIZES = ((1, 16), (1, 32), (1, 48))


class Shell:
    """`python -m slurm ...` in a folder, on a cluster."""

    def __init__(self, folder: Path, cluster: str, environment: dict[str, str]) -> None:
        self.folder, self.cluster = folder, cluster
        self.environment = os.environ | environment
        self.study = write_study(folder / "tiny.toml", SIZES, tokens=2e4)
        self.results = folder / "results"

    @property
    def study_folder(self) -> Path:
        return self.results / "tiny"

    def run(self, command: str, *more: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "slurm", command, str(self.study), *more]
        words += ["--cluster", self.cluster] if command == "submit" else []
        return subprocess.run(
            [*words, "--results", str(self.results)],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=400,
        )

    def status(self) -> StudyStatus:
        return look(runs_of(self.study), self.study_folder)

    def close(self) -> None:
        self.run("cancel")


@pytest.fixture
def here(tmp_path):
    shell = Shell(tmp_path, "local", {})
    yield shell
    shell.close()


@pytest.fixture
def on_slurm(tmp_path, playground: Playground, monkeypatch):
    for name, value in playground.environment.items():
        monkeypatch.setenv(name, value)
    shell = Shell(tmp_path, str(playground.cluster_file), dict(playground.environment))
    yield shell
    shell.close()


@pytest.fixture
def pictures(data) -> str:
    """The raw pictures that the session's dataset was built from."""
    return str(data.parent / "raw")


def whole_study(shell: Shell, pictures: str, *more: str) -> None:
    """One rung of three cannot be trained; the report is made from the rest, and says so."""
    bad, *good = runs_of(shell.study)
    (shell.study_folder / bad.run_id).mkdir(parents=True)
    (shell.study_folder / bad.run_id / "checkpoints").write_text("a file where a folder should be")
    built = shell.folder / "data"
    build = ["--raw", pictures, "--build", "--fractions 0.8,0.1,0.1", "--parts", "2"]
    done = shell.run("submit", "--data", str(built), *build, *more, "--wait")
    assert done.returncode == 1, done
    assert "3 started now in" in done.stderr

    status = shell.status()
    states = {run.run_id: run.state for run in status.runs}
    assert states == {bad.run_id: "failed"} | {run.run_id: "finished" for run in good}, done
    assert [stage.state for stage in status.stages] == ["finished"] * len(status.stages), done
    order = [DATA, CHECK, *([EVALUATE] if more else []), REPORT]
    assert list(dict.fromkeys(stage.stage for stage in status.stages)) == order
    assert (shell.study_folder / "report.html").exists()
    assert "2 runs used" in done.stdout  # what the report says at its end

    log = Path(next(stage.log for stage in status.stages if stage.stage == REPORT)).read_text()
    (cause,) = (run.cause for run in status.runs if run.cause)
    assert f"failed: {bad.run_id}: {cause} (log: " in done.stdout
    assert f"failed: {bad.run_id}: {cause} (log: " in log
    assert f"before this: {bad.run_id}" in log
    codes = {each.code for each in submissions(shell.study_folder)}
    assert [path.name for path in (shell.study_folder / "code").iterdir()] == list(codes)
    assert live_tasks(submissions(shell.study_folder)) == []


def test_a_whole_study_here(here, pictures):
    whole_study(here, pictures)


@pytest.mark.slurm
def test_a_whole_study_on_slurm(on_slurm, pictures, data):
    """And, after training, the loss of each run on another dataset."""
    whole_study(on_slurm, pictures, "--evaluate", str(data))
    _, *good = runs_of(on_slurm.study)
    found = {path.parents[1].name for path in on_slurm.study_folder.glob("*/evaluations/*.h5")}
    assert found == {run.run_id for run in good}


def data_that_cannot_be_built(shell: Shell, pictures: str) -> None:
    """No run begins, and each says why."""
    more = ["--raw", pictures, "--build", "--fractions 0.8,0.1", "--parts", "2"]
    done = shell.run("submit", "--data", str(shell.folder / "data"), *more, "--no-report", "--wait")
    assert done.returncode == 1, done
    status = shell.status()
    assert {run.state for run in status.runs} == {"failed"}
    for run in status.runs:
        assert run.cause.startswith("not started: check of data: exit status 2: "), run
        assert "--fractions 0.8,0.1: wanted three numbers" in run.cause
    assert {stage.state for stage in status.stages} == {"failed"}


def test_data_that_cannot_be_built_here(here, pictures):
    data_that_cannot_be_built(here, pictures)


@pytest.mark.slurm
def test_data_that_cannot_be_built_on_slurm(on_slurm, pictures):
    data_that_cannot_be_built(on_slurm, pictures)


def a_setup_line_that_fails(shell: Shell, data: Path, text: str) -> None:
    """The job ends before Python starts, and the log that says so is named."""
    cluster = shell.folder / "cluster.toml"
    cluster.write_text(
        text.replace("concurrent_jobs", 'setup = ["export A=1", "false"]\nconcurrent_jobs')
    )
    shell.cluster = str(cluster)
    done = shell.run("submit", "--data", str(data), "--no-report", "--wait")
    assert done.returncode == 1, done
    for run in shell.status().runs:
        assert (run.state, run.cause) == ("failed", "setup: this line failed: false")
        assert "setup: this line failed: false" in Path(run.log).read_text()
        assert f"(log: {run.log})" in done.stdout


def test_a_setup_line_that_fails_here(here, data):
    text = 'executor = "local"\ncpus_per_task = 1\nmemory_gb = 1.0\nmax_minutes = 5\n'
    a_setup_line_that_fails(here, data, f"{text}concurrent_jobs = 2\n")


@pytest.mark.slurm
def test_a_setup_line_that_fails_on_slurm(on_slurm, data, playground):
    a_setup_line_that_fails(on_slurm, data, playground.cluster_file.read_text())


@pytest.mark.slurm
def test_what_waits_on_slurm(on_slurm, data, playground):
    """Two submits start each run once; status says why they wait, also where Slurm is silent; cancel."""
    cluster = on_slurm.folder / "cluster.toml"
    cluster.write_text(playground.cluster_file.read_text() + "[sbatch]\nhold = true\n")
    on_slurm.cluster = str(cluster)  # Slurm takes the jobs, and starts none
    both = [on_slurm.run("submit", "--data", str(data)) for _ in range(2)]
    assert [each.returncode for each in both] == [0, 0], both
    assert "3 started now" in both[0].stderr
    assert "0 started now in 0 jobs, 3 under way" in both[1].stderr
    status = on_slurm.status()
    assert {(run.state, run.reason) for run in status.runs} == {("waiting", "JobHeldUser")}
    (report,) = status.stages
    # Of two things that a job waits for, Slurm names the one that it looked at last.
    assert report.stage == REPORT
    assert report.reason in {"Dependency", "JobHeldUser"}
    stages = [each.stage for each in submissions(on_slurm.study_folder)]
    assert sorted(stages) == sorted([TRAIN, REPORT])

    playground.kill("slurmctld", signal.SIGTERM)  # it writes down what it knows: not so with -9
    status = on_slurm.status()
    assert "wanted the list of your jobs" in status.slurm
    assert {run.state for run in status.runs} == {"waiting"}
    assert on_slurm.run("submit", "--data", str(data)).returncode == 2
    playground.start_controller()
    playground.until(lambda: playground.answers("squeue"), "slurmctld")

    done = on_slurm.run("cancel")
    assert "jobs asked to stop" in done.stdout, done
    assert {run.state for run in on_slurm.status().runs} == {"not begun"}
    assert "3 started now" in on_slurm.run("submit", "--data", str(data)).stderr
    on_slurm.run("cancel")
    past = submissions(on_slurm.study_folder)
    assert live_tasks([*submissions_before(past), *past]) == []


STANDING = """
import pathlib, sys, time
marker = pathlib.Path(sys.argv[1])
if not marker.exists():
    marker.touch()
    time.sleep(120)
"""


@pytest.fixture
def standing(tmp_path, monkeypatch):
    """`python -m standing MARKER` stands still the first time, and ends at once the next."""
    (tmp_path / "standing.py").write_text(STANDING)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    return ("standing", str(tmp_path / "marker"))


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_stage_that_slurm_stops_is_not_over(standing, tmp_path, cancelled):
    """Preempted or requeued it begins again, and an outcome would say that it does not; cancelled it is over."""
    program = (
        "import sys\nfrom slurm.stages import Stage\nStage(sys.argv[1], (tuple(sys.argv[2:]),))()\n"
    )
    variables = {
        "SUBMITIT_EXECUTOR": "slurm",
        "SLURM_JOB_ID": "17",
        "SUBMITIT_FOLDER": str(tmp_path),
    }
    command = [sys.executable, "-c", program, str(tmp_path), *standing]
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | variables) as process:
        deadline = time.monotonic() + 60
        while not Path(standing[1]).exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        if cancelled:
            (tmp_path / CANCELLED).touch()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == STOPPED
    assert (tmp_path / "17.outcome.json").exists() == cancelled


def test_a_stage_that_was_cancelled_before_it_began(tmp_path, monkeypatch):
    """Slurm may start a job while it is being cancelled: none of its commands runs."""
    for name, value in (("SUBMITIT_EXECUTOR", "slurm"), ("SLURM_JOB_ID", "17")):
        monkeypatch.setenv(name, value)
    marker = tmp_path / "marker"
    before = signal.getsignal(signal.SIGTERM)
    (tmp_path / CANCELLED).touch()
    try:
        with pytest.raises(SystemExit) as ended:
            Stage(str(tmp_path), (("standing", str(marker)),))()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == STOPPED
    assert json.loads((tmp_path / "17.outcome.json").read_text()) == {"status": STOPPED}


@pytest.mark.slurm
@pytest.mark.long
def test_a_stage_requeued_on_slurm(standing, playground, tmp_path, monkeypatch):
    """It is alive all the time, and runs again."""
    monkeypatch.setenv("SLURM_CONF", str(playground.conf))
    order = Order(load_cluster(str(playground.cluster_file)), REPORT, Shape(), ROOT)
    made = open_submission(tmp_path / "x", "x", "slurm", [("report",)], stage=REPORT)
    job = launch(made, order, [Stage(str(made.folder), (standing,))])
    playground.until(Path(standing[1]).exists, "its first life")
    playground.run("scontrol", "requeue", job)
    lived = []

    def over() -> bool:
        lived.append(bool(live_tasks([made])))
        return (made.folder / f"{job}.outcome.json").exists()

    playground.until(over, "its second life", 200)
    assert all(lived[:-1])
    assert json.loads((made.folder / f"{job}.outcome.json").read_text()) == {"status": 0}


def test_runs_without_a_checkpoint_are_not_evaluated(tmp_path, capfd):
    """The command gets those that have one; where none has, it is left out."""
    (tmp_path / "b" / "checkpoints" / "step-3").mkdir(parents=True)
    runs = tuple(str(tmp_path / name) for name in "ab")
    some = Stage("", (("launch", "evaluate", EVERY_RUN, "--data", "D"),), runs=runs)
    assert list(some._commands()) == [["launch", "evaluate", runs[1], "--data", "D"]]
    (tmp_path / "b" / "checkpoints" / "step-12").mkdir()
    every = Stage("", (("launch", "evaluate", EVERY_CHECKPOINT, "--data", "D"),), runs=runs)
    steps = [f"{runs[1]}/checkpoints/step-{step}" for step in (3, 12)]
    assert list(every._commands()) == [["launch", "evaluate", *steps, "--data", "D"]]
    none = Stage("", (("launch", "evaluate", EVERY_RUN), ("slurm",)), runs=runs[:1])
    assert list(none._commands()) == [["slurm"]]
    assert "launch evaluate {every run}: no run has a checkpoint" in capfd.readouterr().err


def test_a_local_job_may_begin_anew_more_than_six_times(tmp_path):
    """submitit's own controller would end it without a word; ours runs in its place."""
    made = open_submission(tmp_path, "x", "local", [("a",)])
    lives = tmp_path / "lives"
    program = f"echo life >>{lives}; test $(wc -l <{lives}) -ge 9 || exit 144"
    variables = {
        "SUBMITIT_LOCAL_NTASKS": "1",
        "SUBMITIT_LOCAL_COMMAND": shlex.join(["sh", "-c", program]),
        "SUBMITIT_LOCAL_TIMEOUT_S": "60",
        "SUBMITIT_LOCAL_SIGNAL_DELAY_S": "1",
        "SUBMITIT_STDERR_TO_STDOUT": "1",
        "SUBMITIT_LOCAL_WITH_SHELL": "1",
    }
    order = Order(load_cluster("local"), REPORT, Shape(), ROOT)
    lines = [*_local_setup(made, order), f"touch {tmp_path}/never"]
    shell = ["sh", "-c", " && ".join(lines)]
    subprocess.run(shell, env=os.environ | variables, timeout=120, check=True)
    assert lives.read_text() == "life\n" * 9
    assert not (tmp_path / "never").exists()
