"""Training on a real Slurm, disturbed in every way we know; each time the losses are those of an
undisturbed run, to the last bit, and what was submitted is told."""

import contextlib
import os
import random
import re
import shutil
import signal
import time
from itertools import accumulate

import pytest

from launch.exits import STOPPED
from launch.results import read_result
from slurm.__main__ import main
from slurm.causes import Cause
from slurm.freeze import PACKAGES
from slurm.ledger import CANCELLED
from slurm.playground import playground as started
from tests.slurm.conftest import ROOT, runs_of
from tests.slurm.trial import PATIENCE, Trial, trained, write_study

pytestmark = pytest.mark.slurm
# Enough for ten lives, each of which saves once or twice before a test stops it.
TOKENS, INTERVAL = 8e5, 0.002


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, data):
    """The losses of the study when nothing happens to it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    study = write_study(folder / "tiny.toml", tokens=TOKENS, interval=INTERVAL)
    return trained(study, data, folder / "results")


@pytest.fixture
def trial(playground, data, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", str(playground.conf))
    study = write_study(tmp_path / "tiny.toml", tokens=TOKENS, interval=INTERVAL)
    opened = Trial(playground, study, data, tmp_path / "results")
    yield opened
    opened.close()


def finished(trial, undisturbed) -> None:
    """The job ended well, with the losses of a run that nothing happened to."""
    outcome = trial.outcome()
    assert outcome["status"] == 0, trial.describe()
    assert {run["state"] for run in outcome["runs"].values()} == {"finished"}
    assert trial.losses() == undisturbed


# --- faults: each stops the run once it has saved a new step, and tells the cause that is to be found


def rank_killed(trial) -> Cause:
    trial.kill([trial.pause(trial.saved())])
    return Cause.KILLED


def killed_while_it_saves(trial) -> Cause:
    """A checkpoint that was not finished is as if it had never been begun."""
    rank = trial.pause(trial.saved())
    checkpoints = trial.folder / trial.runs[0].run_id / "checkpoints"
    deadline = time.monotonic() + PATIENCE
    while all(re.fullmatch(r"step-\d+", path.name) for path in checkpoints.iterdir()):
        assert time.monotonic() < deadline, trial.describe()
        os.kill(rank, signal.SIGCONT)
        time.sleep(0.002)
        os.kill(rank, signal.SIGSTOP)
    trial.kill([rank])
    return Cause.KILLED


def requeued(trial) -> Cause:
    trial.pause(trial.saved())
    trial.playground.run("scontrol", "requeue", trial.job)
    return Cause.STOPPED


def told_to_save(trial) -> Cause:
    rank = trial.pause(trial.saved())
    trial.playground.run("scancel", "--signal=USR2", trial.job)
    trial.resume(rank, signal.SIGUSR2)
    return Cause.STOPPED


def out_of_time(trial) -> Cause:
    """The limit is lowered under the running job, so that Slurm gives notice when it looks next."""
    rank = trial.pause(trial.saved())
    trial.set_time_limit(trial.minutes() + 2)
    trial.resume(rank, signal.SIGUSR2)
    trial.set_time_limit(60)
    return Cause.STOPPED


def controller_restarted(trial) -> Cause:
    """Training does not need it; a requeue waits until it answers again."""
    rank = trial.pause(trial.saved())
    trial.playground.kill("slurmctld")
    os.kill(rank, signal.SIGUSR2)
    os.kill(rank, signal.SIGCONT)
    trial.until(lambda: "asking again" in trial.describe_files())
    trial.playground.start_controller()
    return Cause.STOPPED


def daemon_killed(trial) -> Cause:
    """Slurm gives up a node on which the rank lives on: the job starts elsewhere, and the old one gives way."""
    trial.pause(trial.saved())
    trial.playground.kill(trial.attempts()[-1].nodes[0])
    return Cause.NODE


def node_crashed(trial) -> Cause:
    """slurmd and all that runs there are gone at once."""
    trial.pause(trial.saved())
    trial.playground.crash(trial.attempts()[-1].nodes[0])
    return Cause.NODE


FAULTS = [
    killed_while_it_saves, requeued, told_to_save, out_of_time, out_of_time, out_of_time,
    controller_restarted, daemon_killed,
]  # fmt: skip


def saves_lost(trial, saved: int) -> float:
    """How many saves were due in the steps that a life has recorded and that are in no checkpoint: a fraction for steps
    after the last of them."""
    train = read_result(trial.folder / trial.runs[0].run_id).train
    due, elapsed, left = 0, 0.0, train["seconds"][train["step"] > saved]
    for seconds in left:
        elapsed += seconds
        if elapsed >= 60 * INTERVAL:
            due, elapsed = due + 1, 0.0
    return due + (0.5 if elapsed else 0.0)


def survives(trial, undisturbed, faults, **more) -> None:
    """Each of the faults is met in a life of its own, found out, and survived."""
    trial.submit(notice_seconds=120, **more)
    expected = []
    for number, fault in enumerate(faults):
        expected.append(fault(trial))
        trial.until(lambda number=number: trial.attempts()[number].ended)
        lost = saves_lost(trial, trial.attempts()[number].saved)  # before the next life goes on
        if expected[-1] == Cause.STOPPED:
            assert lost == 0, trial.describe()  # it had notice
        # One is being written, and the next waits for it.
        assert lost <= 2, trial.describe()
        trial.until(lambda number=number: len(trial.attempts()) > number + 1)
        attempt = trial.attempts()[number]
        resumed = f"continues after step {attempt.saved} "
        log = trial.submission.folder / trial.attempts()[number + 1].log
        trial.until(lambda log=log, resumed=resumed: log.exists() and resumed in log.read_text())
        assert attempt.cause == expected[-1], trial.describe()
        if attempt.cause == Cause.KILLED:
            assert f"rank 0 on {attempt.nodes[0]}: killed by SIGKILL" in attempt.message
        if attempt.cause == Cause.NODE:
            assert trial.attempts()[number + 1].nodes != attempt.nodes
            trial.playground.start_node(attempt.nodes[0])
    finished(trial, undisturbed)
    assert trial.causes() == [*expected, Cause.DONE]
    requeues = accumulate((cause != Cause.KILLED for cause in expected), initial=0)
    assert [attempt.restart for attempt in trial.attempts()] == list(requeues)
    steps = [attempt.saved for attempt in trial.attempts()]
    assert steps == sorted(set(steps))  # each life got on
    trial.playground.until(trial.playground.idle, "its nodes")


@pytest.fixture
def checkout(tmp_path):
    """A copy of the code, to be edited."""
    folder = tmp_path / "checkout"
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, folder / package, ignore=ignored)
    return folder


def edited_before(checkout, fault):
    """The same fault, after the checkout was broken: each life runs the code of the submission."""

    def edit(trial) -> Cause:
        for path in (checkout / "launch" / "train.py", checkout / "slurm" / "rank.py"):
            path.write_text("raise SystemExit('edited')\n")
        return fault(trial)

    return edit


def test_every_fault_in_one_run(trial, undisturbed, checkout):
    survives(trial, undisturbed, [edited_before(checkout, rank_killed), *FAULTS], root=checkout)


@pytest.mark.long
def test_edited_then_requeued(trial, undisturbed, checkout):
    survives(trial, undisturbed, [edited_before(checkout, requeued)], root=checkout)


@pytest.mark.long
@pytest.mark.parametrize("fault", [rank_killed, *dict.fromkeys(FAULTS), node_crashed])
def test_one_fault(trial, undisturbed, fault):
    survives(trial, undisturbed, [fault])


@pytest.mark.long
def test_twenty_faults_in_one_run(trial, data, tmp_path):
    """Each of them five times, in an order that nobody chose."""
    for study in (trial.study, tmp_path / "undisturbed.toml"):
        write_study(study, tokens=3 * TOKENS, interval=INTERVAL)
    trial.runs = runs_of(trial.study)
    faults = [rank_killed, requeued, told_to_save, node_crashed] * 5
    random.Random(0).shuffle(faults)
    alone = trained(tmp_path / "undisturbed.toml", data, tmp_path / "undisturbed")
    survives(trial, alone, faults)


@pytest.mark.long
def test_one_task_of_an_array(trial, data, tmp_path):
    """Slurm's number of one of them is that of the whole array: only the one that is meant is requeued."""
    trial.study = write_study(tmp_path / "two.toml", (16, 24))
    trial.runs = runs_of(trial.study)
    trial.submit(groups=[[run] for run in trial.runs])
    trial.until(lambda: trial.saved(trial.runs[1]))
    (rank,) = trial.processes("slurm.rank", trial.runs[1].run_id)
    trial.kill([rank], signal.SIGSTOP)
    trial.playground.run("scancel", "--signal=USR2", f"{trial.job}_1")
    trial.resume(rank, signal.SIGUSR2)
    assert [trial.outcome(task)["status"] for task in (0, 1)] == [0, 0], trial.describe()
    assert trial.causes(0) == [Cause.DONE]
    assert trial.causes(1) == [Cause.STOPPED, Cause.DONE]
    assert trial.losses() == trained(trial.study, data, tmp_path / "alone")


@pytest.mark.long
def test_the_time_limit_without_notice(trial, undisturbed):
    """Slurm itself would end the job as timed out: it saves while it is being ended, and is requeued."""
    trial.submit()
    trial.pause()
    trial.until(lambda: trial.minutes() >= 1)
    trial.set_time_limit(1)
    trial.until(lambda: trial.attempts()[0].ended)
    with contextlib.suppress(RuntimeError):  # the next life may be over before this is asked for
        trial.set_time_limit(60)
    finished(trial, undisturbed)
    assert trial.causes() == [Cause.STOPPED, Cause.DONE]


@pytest.mark.long
@pytest.mark.parametrize("mode", ["REQUEUE", "CANCEL"])
def test_a_preemption(trial, undisturbed, mode):
    """A job of more weight takes both nodes: Slurm requeues this one, which saves first; or Slurm ends it, and it has
    itself requeued."""
    change = ("scontrol", "update", "PartitionName=main")
    trial.playground.run(*change, f"PreemptMode={mode}")
    try:
        trial.submit()
        trial.pause()
        dear = ["--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null"]
        trial.playground.run("sbatch", *dear, "--wrap", "sleep 3")
        finished(trial, undisturbed)
    finally:
        trial.playground.run(*change, "PreemptMode=REQUEUE")
    itself = "Slurm has cancelled this job for another one" in trial.describe_files()
    assert itself == (mode == "CANCEL")
    assert trial.causes() == [Cause.STOPPED, Cause.DONE]


@pytest.mark.long
def test_requeued_after_its_end(trial, undisturbed):
    """By an operator: it says again that all is done, and trains nothing."""
    trial.submit()
    finished(trial, undisturbed)
    attempts = trial.attempts()
    trial.playground.until(trial.playground.idle, "its nodes")
    trial.playground.run("scontrol", "requeue", trial.job)
    log = trial.left("_0_log.out")
    trial.until(lambda: trial.left(".restart").read_text() == "1")  # the new life has begun
    finished(trial, undisturbed)
    assert trial.attempts() == attempts, log.read_text()


def test_without_accounting(data, tmp_path, monkeypatch, undisturbed, capsys):
    """What is needed is in files and in the queue."""
    with started(nodes=1, accounting=False) as bare:
        monkeypatch.setenv("SLURM_CONF", str(bare.conf))
        study = write_study(tmp_path / "tiny.toml", tokens=TOKENS, interval=INTERVAL)
        trial = Trial(bare, study, data, tmp_path / "results")
        survives(trial, undisturbed, [rank_killed])
        assert main(["status", str(study), "--results", str(trial.results)]) == 0
        assert "1 runs: 1 finished" in capsys.readouterr().out


def test_out_of_memory_is_not_tried_again(trial):
    """Slurm kills a rank that takes more than its job asked for."""
    trial.submit(memory_gb=0.2)
    outcome = trial.outcome()
    assert outcome["status"] == 1
    (run,) = outcome["runs"].values()
    assert run["cause"] == Cause.MEMORY
    assert "Raise memory_gb" in run["message"]
    assert trial.causes() == [Cause.MEMORY]
    words = ("sacct", "-X", "-n", "-P", "-o", "State", "-j", trial.job)
    trial.until(lambda: trial.playground.run(*words).strip() == "FAILED")  # not COMPLETED


@pytest.mark.long
def test_cancelled(trial, undisturbed):
    """It saves, ends, and is not requeued; what is submitted then goes on from there."""
    trial.submit()
    rank = trial.pause()
    (trial.submission.folder / CANCELLED).touch()
    trial.resume(rank, signal.SIGUSR2)
    outcome = trial.outcome()
    assert outcome["status"] == STOPPED
    assert trial.causes() == [Cause.CANCELLED]
    saved = trial.saved()
    assert saved > 0
    trial.submit()
    finished(trial, undisturbed)
    assert f"continues after step {saved} " in trial.describe_files()
