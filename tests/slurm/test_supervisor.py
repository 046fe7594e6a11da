"""What a job decides before it starts anything."""

import pytest

from slurm.allocation import Here
from slurm.attempts import Attempts
from slurm.causes import INTERRUPTIONS, Cause
from slurm.freeze import freeze_runs
from slurm.supervisor import Supervisor, Work
from tests.slurm.conftest import runs_of, write_study


@pytest.mark.parametrize("lives", [INTERRUPTIONS - 1, INTERRUPTIONS])
def test_a_run_that_takes_its_node_along_every_time_is_given_up(lives, tmp_path):
    """Each life was cut short before it could say why it ended."""
    study = write_study(tmp_path / "tiny.toml")
    (run, *_) = runs_of(study)
    folder = tmp_path / "job"
    folder.mkdir()
    freeze_runs(folder, [run])
    attempts = Attempts(folder, "17", 0)
    for life in range(lives):
        attempts.begin([run.run_id], ["n1"])
        if life < lives - 1:
            attempts.end(cause=Cause.NODE, message="its node failed", blamed=run.run_id)
    work = Work(folder, "17", tmp_path / "data", tmp_path / "results", (run.run_id,))
    supervisor = Supervisor(work, Here(1), lambda: 15, 1.0)  # told to stop: it starts nothing
    supervisor.work()
    assert len(supervisor._attempts.all) == lives
    outcome = supervisor.outcome()["runs"][run.run_id]
    if lives < INTERRUPTIONS:
        assert outcome["state"] == "stopped"
    else:
        assert (outcome["state"], outcome["cause"]) == ("failed", Cause.NO_PROGRESS)
        assert "10 attempts in a row saved no new step" in outcome["message"]


class LastNodes(Here):
    """A job of Slurm's whose partition has no other node that fits."""

    can_requeue = True

    def can_do_without(self, exclude) -> bool:
        return False


def test_a_job_that_could_never_start_again_ends_and_says_why(tmp_path):
    """Requeued without its bad node it would wait for ever; its other runs are given up too."""
    runs = runs_of(write_study(tmp_path / "tiny.toml"))
    run_ids = tuple(run.run_id for run in runs)
    folder = tmp_path / "job"
    folder.mkdir()
    freeze_runs(folder, runs)
    work = Work(folder, "17", tmp_path / "data", tmp_path / "results", run_ids)
    supervisor = Supervisor(work, LastNodes(1), lambda: 0, 1.0)
    supervisor._attempts.begin(run_ids, ["n1"])
    bad = supervisor._attempts.end(
        cause=Cause.NODE, message="n1: 0 GPUs are visible", exclude=("n1",), blamed=run_ids[0]
    )
    assert supervisor._again(bad)
    assert supervisor._left() == []
    for run in supervisor.outcome()["runs"].values():
        assert (run["state"], run["cause"]) == ("failed", Cause.NODE)
        assert (
            "n1: 0 GPUs are visible; without n1 this partition has too few nodes" in run["message"]
        )
