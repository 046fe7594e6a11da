"""Training on a real Slurm, disturbed in every way we know; each time the losses are those of an
undisturbed run, to the last bit, and what was submitted is told."""

import random
import re
import signal
import time

import pytest

from launch.exits import STOPPED
from slurm.causes import Cause
from slurm.ledger import CANCELLED
from tests.slurm.conftest import runs_of
from tests.slurm.trial import PATIENCE, Trial, trained, write_study

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, data):
    """The losses of the study when nothing happens to it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return trained(write_study(folder / "tiny.toml"), data, folder / "results")


@pytest.fixture
def trial(playground, data, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", str(playground.conf))
    opened = Trial(playground, write_study(tmp_path / "tiny.toml"), data, tmp_path / "results")
    yield opened
    opened.close()


def finished(trial, undisturbed) -> None:
    """The job ended well, with the losses of a run that nothing happened to."""
    outcome = trial.outcome()
    assert outcome["status"] == 0, trial.describe()
    assert {run["state"] for run in outcome["runs"].values()} == {"finished"}
    assert trial.losses() == undisturbed


def test_a_rank_killed(trial, undisturbed):
    """It starts again in place, from the newest checkpoint."""
    trial.submit()
    trial.until_saved()
    trial.kill(trial.ranks())
    finished(trial, undisturbed)
    assert trial.causes() == [Cause.KILLED, Cause.DONE]
    assert "rank 0 on n1: killed by SIGKILL" in trial.attempts()[0].message


def test_scontrol_requeue(trial, undisturbed):
    """Slurm asks the ranks to stop: they save, and nothing is lost."""
    trial.submit()
    saved = trial.until_saved()
    trial.playground.run("scontrol", "requeue", trial.job)
    finished(trial, undisturbed)
    first, second = trial.attempts()
    assert (first.cause, second.cause) == (Cause.STOPPED, Cause.DONE)
    assert (first.restart, second.restart) == (0, 1)
    assert first.saved >= saved


@pytest.mark.parametrize("number", ["USR2", pytest.param("TERM", marks=pytest.mark.long)])
def test_a_signal_to_the_ranks(trial, undisturbed, number):
    """As Slurm sends before a time limit, or before a preemption: the job requeues itself."""
    trial.submit()
    trial.until_saved()
    trial.playground.run("scancel", f"--signal={number}", trial.job)
    finished(trial, undisturbed)
    assert trial.causes() == [Cause.STOPPED, Cause.DONE]


@pytest.mark.long
def test_one_task_of_an_array(trial, data, tmp_path):
    """Slurm's number of one of them is that of the whole array: only the one that is meant is requeued."""
    trial.study = write_study(tmp_path / "two.toml", (16, 24))
    trial.runs = runs_of(trial.study)
    trial.submit(groups=[[run] for run in trial.runs])
    trial.until(lambda: all(trial.saved(run) for run in trial.runs))
    trial.playground.run("scancel", "--signal=USR2", f"{trial.job}_1")
    assert [trial.outcome(task)["status"] for task in (0, 1)] == [0, 0], trial.describe()
    assert trial.causes(0) == [Cause.DONE]
    assert trial.causes(1) == [Cause.STOPPED, Cause.DONE]
    assert trial.losses() == trained(trial.study, data, tmp_path / "alone")


@pytest.mark.long
def test_the_time_limit_three_times(trial, undisturbed):
    """The limit is lowered under the running job, so that Slurm gives notice at once."""
    trial.submit(notice_seconds=120)
    saved = 0
    for life in (1, 2, 3):
        trial.until_saved(saved)
        trial.set_time_limit(trial.minutes() + 2)
        trial.until(lambda life=life: trial.attempts()[life - 1].ended)
        saved = trial.attempts()[-1].saved
        trial.set_time_limit(60)
    finished(trial, undisturbed)
    assert trial.causes() == [Cause.STOPPED] * 3 + [Cause.DONE]
    assert [attempt.restart for attempt in trial.attempts()] == [0, 1, 2, 3]
    steps = [attempt.saved for attempt in trial.attempts()]
    assert steps == sorted(set(steps))  # each life got on


@pytest.mark.long
def test_the_time_limit_without_notice(trial, undisturbed):
    """Slurm itself would end the job as timed out: it saves while it is being ended, and is requeued."""
    trial.submit()
    trial.until_saved()
    trial.kill(trial.ranks(), signal.SIGSTOP)  # so that it is not finished before
    trial.until(lambda: trial.minutes() >= 1)
    trial.set_time_limit(1)
    trial.until(lambda: trial.attempts()[0].ended)
    trial.set_time_limit(60)
    finished(trial, undisturbed)
    assert trial.causes() == [Cause.STOPPED, Cause.DONE]


@pytest.mark.long
def test_a_preemption(trial, undisturbed):
    """A job of more weight takes both nodes: Slurm requeues this one, which saves first."""
    trial.submit()
    trial.until_saved()
    dear = ["--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null"]
    trial.playground.run("sbatch", *dear, "--wrap", "sleep 3")
    finished(trial, undisturbed)
    assert trial.causes() == [Cause.STOPPED, Cause.DONE]


@pytest.mark.long
def test_slurmd_killed(trial, undisturbed):
    """Slurm gives up a node on which the rank lives on: the job starts elsewhere, and the old one gives way."""

    def lose(node: str) -> None:
        trial.playground.kill(node)
        (rank,) = trial.ranks()
        trial.kill([rank], signal.SIGSTOP)  # so that it is not finished before

    goes_on_elsewhere(trial, undisturbed, lose)


@pytest.mark.long
def test_a_node_crashes(trial, undisturbed):
    """slurmd and all that runs there are gone at once."""
    goes_on_elsewhere(trial, undisturbed, trial.playground.crash)


def goes_on_elsewhere(trial, undisturbed, lose) -> None:
    """`lose` takes the node that the job began on."""
    trial.submit()
    trial.until_saved()
    (node,) = trial.attempts()[0].nodes
    lose(node)
    try:
        finished(trial, undisturbed)
    finally:
        trial.playground.start_node(node)
        trial.playground.until(trial.playground.idle, "its nodes")
    assert trial.causes() == [Cause.NODE, Cause.DONE]
    assert trial.attempts()[1].nodes != (node,)


@pytest.mark.long
def test_killed_while_it_saves(trial, undisturbed):
    """A checkpoint that was not finished is as if it had never been begun."""
    trial.submit()
    trial.until_saved()
    checkpoints = trial.folder / trial.runs[0].run_id / "checkpoints"
    whole = re.compile(r"step-\d+")
    deadline = time.monotonic() + PATIENCE
    while all(whole.fullmatch(path.name) for path in checkpoints.iterdir()):
        assert time.monotonic() < deadline, trial.describe()
    trial.kill(trial.ranks())
    finished(trial, undisturbed)
    assert trial.causes() == [Cause.KILLED, Cause.DONE]


@pytest.mark.long
def test_slurmctld_restarted(trial, undisturbed):
    """Training does not need it; a requeue waits until it answers again."""
    trial.submit()
    trial.until_saved()
    trial.playground.kill("slurmctld")
    trial.kill(trial.ranks(), signal.SIGUSR2)
    trial.until(lambda: trial.attempts()[0].ended)
    trial.until(lambda: "asking again" in trial.describe_files())
    trial.playground.start_controller()
    finished(trial, undisturbed)
    assert trial.causes() == [Cause.STOPPED, Cause.DONE]
    assert trial.attempts()[1].restart == 1


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
    trial.until_saved()
    (trial.submission.folder / CANCELLED).touch()
    outcome = trial.outcome()
    assert outcome["status"] == STOPPED
    assert trial.causes() == [Cause.CANCELLED]
    saved = trial.saved()
    assert saved > 0
    trial.submit()
    finished(trial, undisturbed)
    assert f"continues after step {saved} " in trial.describe_files()


@pytest.mark.long
def test_twenty_faults_in_one_run(trial, data, tmp_path):
    """Each of them five times, in an order that nobody chose."""
    for study in (trial.study, tmp_path / "undisturbed.toml"):
        write_study(study, tokens=6e6)
    trial.runs = runs_of(trial.study)
    faults = [rank_killed, requeued, told_of_the_time_limit, node_crashed] * 5
    random.Random(0).shuffle(faults)
    trial.submit()
    expected = []
    for number, fault in enumerate(faults):
        trial.until_saved(trial.saved())
        expected.append(fault(trial))
        trial.until(lambda number=number: len(trial.attempts()) > number + 1)
        assert trial.attempts()[number].cause == expected[-1], trial.describe()
    finished(trial, trained(tmp_path / "undisturbed.toml", data, tmp_path / "undisturbed"))
    assert trial.causes() == [*expected, Cause.DONE]


def rank_killed(trial) -> Cause:
    trial.kill(trial.ranks())
    return Cause.KILLED


def requeued(trial) -> Cause:
    trial.playground.run("scontrol", "requeue", trial.job)
    return Cause.STOPPED


def told_of_the_time_limit(trial) -> Cause:
    trial.playground.run("scancel", "--signal=USR2", trial.job)
    return Cause.STOPPED


def node_crashed(trial) -> Cause:
    (node,) = trial.attempts()[-1].nodes
    trial.playground.crash(node)
    number = len(trial.attempts())
    trial.until(lambda: len(trial.attempts()) > number)
    trial.playground.start_node(node)
    return Cause.NODE
