"""One run spread over two nodes of a real Slurm: the same losses as in one process, and when disturbed
the same to the last bit."""

import signal

import numpy as np
import pytest

from launch.verify import LARGEST, STEPS
from slurm.causes import Cause
from slurm.resources import Shape
from slurm.status import look
from tests.slurm.trial import Trial, trained, write_study

pytestmark = pytest.mark.slurm

TWO_BY_TWO = Shape(nodes=2, tasks_per_node=2)
SPREAD = "[parallel]\ntensor_model_parallel_size = 2\n"
SIZES, TOKENS = (64,), 4e4


@pytest.fixture
def trial(playground, data, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", str(playground.conf))
    study = write_study(tmp_path / "tiny.toml", SIZES, TOKENS, more=SPREAD)
    opened = Trial(playground, study, data, tmp_path / "results")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def spread(playground, data, tmp_path_factory):
    """The losses on two nodes of two tasks each, undisturbed."""
    folder = tmp_path_factory.mktemp("spread")
    study = write_study(folder / "tiny.toml", SIZES, TOKENS, more=SPREAD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(playground.conf))
        trial = Trial(playground, study, data, folder / "results")
        trial.submit(TWO_BY_TWO)
        outcome = trial.outcome()
        assert outcome["status"] == 0, trial.describe()
        assert trial.causes() == [Cause.DONE]
        assert trial.attempts()[0].nodes == ("n1", "n2")
        losses = trial.losses()
        trial.close()
    return losses


def test_two_nodes_are_one_process_within_rounding(spread, data, tmp_path):
    """TP 2 x DP 2 adds the same numbers in another order, in fp32."""
    alone = trained(write_study(tmp_path / "tiny.toml", SIZES, TOKENS), data, tmp_path / "results")
    assert spread.keys() == alone.keys()
    for run_id, losses in spread.items():
        assert len(losses) == len(alone[run_id])
        # What `launch verify` allows in so many steps; each further one makes rounding errors grow.
        np.testing.assert_allclose(losses[:STEPS], alone[run_id][:STEPS], rtol=LARGEST["fp32"])


def pause(trial) -> list[int]:
    """Stop every rank once there is a checkpoint, so that the run is not finished before it is disturbed."""
    trial.until_saved()
    ranks = trial.ranks()
    trial.kill(ranks, signal.SIGSTOP)
    return ranks


@pytest.mark.long
def test_a_rank_of_the_other_node_killed(trial, spread):
    trial.submit(TWO_BY_TWO)
    pause(trial)
    trial.kill(trial.ranks("n2")[:1])
    assert trial.outcome()["status"] == 0, trial.describe()
    assert trial.losses() == spread
    first, second = trial.attempts()
    assert (first.cause, first.node, second.cause) == (Cause.KILLED, "n2", Cause.DONE)
    assert second.restart == 0


@pytest.mark.long
@pytest.mark.parametrize("how", ["scontrol requeue", "USR2"])
def test_all_ranks_stop_at_one_step(trial, spread, how):
    """The save is collective: no rank may be a step ahead."""
    trial.submit(TWO_BY_TWO)
    ranks = pause(trial)
    if how == "USR2":
        trial.playground.run("scancel", "--signal=USR2", trial.job)
        for rank in ranks:
            trial.resume(rank, signal.SIGUSR2)
    else:
        trial.playground.run("scontrol", "requeue", trial.job)
    assert trial.outcome()["status"] == 0, trial.describe()
    assert trial.losses() == spread
    assert trial.causes() == [Cause.STOPPED, Cause.DONE]


@pytest.mark.long
def test_the_other_node_crashes(trial, spread):
    """It comes back, and the job goes on there."""
    trial.submit(TWO_BY_TWO)
    pause(trial)
    trial.playground.crash("n2")
    trial.until(lambda: trial.attempts()[0].ended)
    trial.playground.start_node("n2")
    assert trial.outcome()["status"] == 0, trial.describe()
    assert trial.losses() == spread
    assert trial.causes()[-1] == Cause.DONE


@pytest.mark.long
def test_a_job_that_needs_its_bad_node_waits_for_an_operator(trial, spread):
    """It is held, not lost: released, it goes on."""
    trial.submit(TWO_BY_TWO, check_seconds=60)
    trial.until(lambda: trial.processes("slurm.health", node="n2"))
    trial.kill(trial.processes("slurm.health", node="n2")[:1], signal.SIGSTOP)
    waits = ("squeue", "-h", "-j", trial.job, "-o", "%r")
    trial.until(lambda: "held" in trial.playground.run(*waits))
    (run,) = look(trial.runs, trial.folder).runs
    assert (run.state, run.reason) == ("waiting", "for an operator")
    assert run.cause.endswith(f"Have n2 repaired, then: scontrol release {trial.job}")
    trial.playground.run("scontrol", "release", trial.job)
    assert trial.outcome()["status"] == 0, trial.describe()
    assert trial.losses() == spread
    assert trial.causes() == [Cause.NODE, Cause.DONE]


@pytest.mark.long
def test_a_bad_node_is_named_and_excluded(trial):
    """A process of the check on one node stands still: the job goes to the other node."""
    trial.submit(Shape(nodes=1, tasks_per_node=2), check_seconds=60)
    trial.until(lambda: trial.processes("slurm.health"))
    node = next(each for each in ("n1", "n2") if trial.processes("slurm.health", node=each))
    trial.kill(trial.processes("slurm.health", node=node)[:1], signal.SIGSTOP)
    assert trial.outcome()["status"] == 0, trial.describe()
    first, *_, last = trial.attempts()
    assert (first.cause, first.exclude) == (Cause.NODE, (node,))
    assert f"the check before training: {node}: no answer in time" in first.message
    assert last.cause == Cause.DONE
    assert last.nodes != (node,)
