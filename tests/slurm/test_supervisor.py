"""What a job decides before it starts anything."""

import pytest

from launch.folder import FAILED_FILE, locked
from slurm.allocation import ELSEWHERE, HERE, OUT_OF_TIME, OVER, Here
from slurm.attempts import Attempts
from slurm.causes import INTERRUPTIONS, Cause
from slurm.freeze import freeze_runs
from slurm.supervisor import Supervisor
from slurm.work import Work
from tests.slurm.conftest import runs_of, write_study


@pytest.fixture
def job(tmp_path):
    """Job 17 of one run: what it is to train, and its attempts."""
    (run, *_) = runs_of(write_study(tmp_path / "tiny.toml"))
    folder = tmp_path / "job"
    folder.mkdir()
    freeze_runs(folder, [run])
    work = Work(folder, "17", tmp_path / "data", tmp_path / "results", (run.run_id,))
    return work, Attempts(folder, "17", 0)


@pytest.mark.parametrize("lives", [INTERRUPTIONS - 1, INTERRUPTIONS])
def test_a_run_that_takes_its_node_along_every_time_is_given_up(lives, job):
    """Each life was cut short before it could say why it ended."""
    work, attempts = job
    (run_id,) = work.run_ids
    for life in range(lives):
        attempts.begin([run_id], ["n1"])
        if life < lives - 1:
            attempts.end(cause=Cause.NODE, message="its node failed", blamed=run_id)
    supervisor = Supervisor(work, Here(1), lambda: 15, 1.0)  # told to stop: it starts nothing
    supervisor.work()
    assert len(supervisor._attempts.all) == lives
    outcome = supervisor.outcome()["runs"][run_id]
    if lives < INTERRUPTIONS:
        assert outcome["state"] == "stopped"
    else:
        assert (outcome["state"], outcome["cause"]) == ("failed", Cause.NO_PROGRESS)
        assert "10 attempts in a row saved no new step" in outcome["message"]


@pytest.mark.parametrize(
    ("said", "cause", "words"),
    [
        (
            "0: slurmstepd-n1: error: *** STEP 3.1 ON n1 CANCELLED AT 2026-11-23T12:30:17 DUE TO JOB REQUEUE ***\n"
            "0: x: stopped by SIGUSR2, saved; run it again to continue\n",
            Cause.STOPPED,
            "ended by Slurm (job requeue) before it could tell how it stopped",
        ),
        (
            "slurmstepd: error: *** STEP 3.1 ON n1 CANCELLED AT 2026-11-23T12:30:17 DUE TO NODE FAILURE, SEE\n",
            Cause.NODE,
            "ended without a word",
        ),
        ("x: step 3/52\n", Cause.NODE, "ended without a word"),
        (None, Cause.NODE, "ended without a word: its node failed, or everything was killed"),
    ],
)
def test_a_life_that_was_cut_short(job, said, cause, words):
    """Slurm waits KillWait seconds and no longer: what it said in the log is what is known."""
    work, attempts = job
    attempt = attempts.begin(work.run_ids, ["n1"])
    if said is not None:
        (work.submission / attempt.log).write_text(said)
    supervisor = Supervisor(work, Here(1), lambda: 15, 1.0)  # told to stop: it starts nothing
    supervisor.work()
    (attempt,) = supervisor._attempts.all
    assert attempt.cause == cause
    assert attempt.message.startswith(words)


class Ended(Here):
    """A job of Slurm's that was told to stop, and what Slurm says of it then."""

    can_requeue = True

    def __init__(self, state) -> None:
        super().__init__(1)
        self.answer, self.requeues = state, 0

    def state(self) -> str:
        if isinstance(self.answer, OSError):
            raise self.answer
        return self.answer

    def requeue(self, exclude) -> None:
        self.requeues += 1


NO_ANSWER = OSError("scontrol: Unable to contact slurm controller")
PREEMPTED = (
    "slurmstepd: error: *** STEP 3.1 ON n1 CANCELLED AT 2026-11-23T12:30:17 DUE TO PREEMPTION ***\n"
)


@pytest.mark.parametrize(
    ("state", "said", "requeues"),
    [
        (HERE, "", 1),
        (OUT_OF_TIME, "", 1),
        (ELSEWHERE, "", 0),
        (OVER, "", 0),
        (OVER, PREEMPTED, 1),
        (NO_ANSWER, "", 1),
    ],
)
def test_a_job_that_was_told_to_stop(job, state, said, requeues):
    """Whether it has itself started anew, by what Slurm makes of it."""
    work, attempts = job
    (work.submission / attempts.begin(work.run_ids, ["n1"]).log).write_text(said)
    attempts.end(cause=Cause.STOPPED, blamed=work.run_ids[0])
    allocation = Ended(state)
    over = Supervisor(work, allocation, lambda: 15, 1.0).work()
    assert (allocation.requeues, over) == (requeues, not requeues and state == OVER)


def test_a_run_that_another_process_trains_is_not_called_failed(job):
    """This job gives it up all the same."""
    work, attempts = job
    (run_id,) = work.run_ids
    for _ in range(INTERRUPTIONS):
        attempts.begin([run_id], ["n1"])
        attempts.end(cause=Cause.BUSY, message="in other hands", blamed=run_id)
    supervisor = Supervisor(work, Here(1), lambda: 0, 1.0)
    with locked(work.folder(run_id)):
        assert supervisor._again(supervisor._attempts.all[-1])
    assert supervisor.outcome()["runs"][run_id]["state"] == "failed"
    assert not (work.folder(run_id) / FAILED_FILE).exists()


class LastNodes(Here):
    """A job of Slurm's whose partition has no other node that fits."""

    can_requeue = True
    release = "scontrol release 17"

    def __init__(self) -> None:
        super().__init__(1)
        self.asked = []

    def can_do_without(self, exclude) -> bool:
        return False

    def requeue(self, exclude) -> None:
        self.asked.append(("requeue", exclude))

    def hold(self) -> None:
        self.asked.append(("hold",))


@pytest.fixture
def last_nodes(tmp_path):
    """`after(...)`: what is asked of Slurm after an attempt that ended so, and the attempt as it is recorded then."""
    runs = runs_of(write_study(tmp_path / "tiny.toml"))
    run_ids = tuple(run.run_id for run in runs)
    folder = tmp_path / "job"
    folder.mkdir()
    freeze_runs(folder, runs)

    def after(**ended):
        allocation = LastNodes()
        work = Work(folder, "17", tmp_path / "data", tmp_path / "results", run_ids)
        supervisor = Supervisor(work, allocation, lambda: 0, 1.0)
        supervisor._attempts.begin(run_ids, ["n1"])
        attempt = supervisor._attempts.end(cause=Cause.NODE, blamed=run_ids[0], **ended)
        assert not supervisor._again(attempt)
        assert not supervisor._requeue(supervisor._attempts.all[-1])
        assert supervisor._left() == list(run_ids)  # no run is given up
        return allocation.asked, supervisor._attempts.all[-1]

    return after


def test_a_job_that_needs_its_bad_node_waits_for_an_operator(last_nodes, capsys):
    """Requeued without that node it would wait for ever, requeued with it fail at once."""
    asked, attempt = last_nodes(message="n1: 0 GPUs are visible", exclude=("n1",))
    assert asked == [("hold",)]
    assert attempt.exclude == ()
    assert attempt.held == (
        "n1: 0 GPUs are visible; without n1 this partition has too few nodes that fit the job. Have n1 "
        "repaired, then: scontrol release 17"
    )
    assert f"job: waits for an operator: {attempt.held}\n" in capsys.readouterr().err


def test_a_job_that_needs_the_node_that_slurm_has_lost_is_requeued(last_nodes, capsys):
    """Slurm gives that node no job until it is back."""
    asked, attempt = last_nodes(message="srun: error: Node failure on n1", node="n1")
    assert asked == [("requeue", ())]
    assert (attempt.held, attempt.exclude) == ("", ())
    assert "job: n1 not left out: without, this partition has too few" in capsys.readouterr().err
