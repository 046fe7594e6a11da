"""Real processes, real training: submit, kill anything, submit again, and all of it is done."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from launch.results import read_result
from slurm.ledger import held
from tests.slurm.conftest import Terminal, runs_of, write_study


def starts(terminal: Terminal) -> dict[str, int]:
    """How often each run was started."""
    return {
        run.run_id: len(read_result(terminal.folder / run.run_id).provenance)
        for run in runs_of(terminal.study)
    }


def losses(terminal: Terminal) -> dict[str, list[float]]:
    return {
        run.run_id: read_result(terminal.folder / run.run_id).train["loss"].tolist()
        for run in runs_of(terminal.study)
    }


def running(states) -> bool:
    """All are under way, with some steps on disk."""
    return all(status.state == "running" and status.step > 5 for status in states)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, data) -> dict[str, list[float]]:
    """The losses of the study when nothing happens to it; also: from nothing to done, and again."""
    folder = tmp_path_factory.mktemp("undisturbed")
    terminal = Terminal(write_study(folder / "tiny.toml", tokens=LONG), data, folder / "results")
    done = terminal.run("submit", "--wait")
    assert done.status == 0, done
    assert done.out.count("finished") == 2
    assert "2 runs: 0 finished, 2 started now" in done.err
    for run in runs_of(terminal.study):
        assert f"{run.run_id}: finished (step {run.train_steps:,} of" in done.err
        assert read_result(terminal.folder / run.run_id).provenance[-1]["threads"] == "1"
    again = terminal.run("submit", "--wait")
    assert (again.status, again.err) == (0, "")
    assert again.out == "2 of 2 runs are finished: nothing to do\n"
    assert set(starts(terminal).values()) == {1}
    return losses(terminal)


# Tokens for some fifty seconds of training: late in a whole session the testing process has been seen
# to wake twenty seconds late from a sleep of 0.2, and must find the runs still at work then.
LONG = 4e6


@pytest.fixture
def study(tmp_path):
    return write_study(tmp_path / "tiny.toml", tokens=LONG)


@pytest.mark.long  # late in a whole session it wakes too late, see LONG
def test_killed_jobs_then_ctrl_c_then_cancel_then_done(terminal, undisturbed):
    """Each time the same command continues, and the losses are those of an undisturbed study."""
    waiting = terminal.start("submit", "--wait")
    terminal.until(running)
    for pid in terminal.trainers():
        os.kill(pid, signal.SIGKILL)
    answer = terminal.finish(waiting)  # it does not wait for what will never come
    assert answer.status == 1
    assert "its job ended without a word: killed from outside, or out of memory" in answer.out
    assert "_log.out)" in answer.out
    assert "continue with: python -m slurm submit" in answer.err

    waiting = terminal.start("submit", "--wait")
    terminal.until(running)
    waiting.send_signal(signal.SIGINT)
    answer = terminal.finish(waiting)
    assert answer.status == 130
    assert "stopping the jobs at their next step, with a checkpoint" in answer.err
    assert {status.state for status in terminal.statuses().values()} == {"stopped"}
    assert "0 jobs asked" in terminal.run("cancel").out

    started = terminal.run("submit")  # does not wait; its jobs are cancelled while they import
    assert started.status == 0
    assert "watch: python -m slurm status" in started.err
    assert "2 jobs asked to stop" in terminal.run("cancel").out
    terminal.until(lambda now: {status.state for status in now} == {"stopped"})
    assert terminal.run("status").out.count("stopped") == 2

    assert terminal.run("submit", "--wait").status == 0
    # Not the first: it was killed before it had a checkpoint, and left nothing to continue.
    assert set(starts(terminal).values()) == {2}
    assert losses(terminal) == undisturbed


@pytest.mark.long  # late in a whole session it wakes too late, see LONG
def test_a_killed_submit_is_taken_over_and_a_job_out_of_time_requeues(terminal, undisturbed):
    """Its jobs live on; two others at once find them, start nothing, and wait for them.

    SIGUSR2 is what Slurm sends before the time limit: a checkpoint, then the same job again.
    """
    first = terminal.start("submit", "--wait")
    terminal.until(lambda _: len(terminal.trainers()) == 2)
    first.kill()
    others = [terminal.start("submit", "--wait") for _ in range(2)]
    terminal.until(running)
    for pid in terminal.trainers():
        os.kill(pid, signal.SIGUSR2)
    for answer in [terminal.finish(other) for other in others]:
        assert answer.status == 0, answer
        assert "0 started now in 0 jobs, 2 under way" in answer.err
    assert len(list(terminal.folder.glob("jobs/*"))) == 2
    assert set(starts(terminal).values()) == {2}
    assert losses(terminal) == undisturbed


def test_two_submits_at_once_start_each_run_once(terminal, data):
    write_study(terminal.study, tokens=2e4)
    both = [terminal.start("submit", "--wait") for _ in range(2)]
    answers = [terminal.finish(each) for each in both]
    assert [answer.status for answer in answers] == [0, 0], answers
    assert set(starts(terminal).values()) == {1}


def test_a_failing_run_does_not_stop_the_others(terminal, data):
    """Three runs in two jobs; one of a packed pair cannot write its checkpoints."""
    write_study(terminal.study, ((1, 16), (1, 32), (1, 48)), tokens=2e4)
    bad, *good = runs_of(terminal.study)
    (terminal.folder / bad.run_id).mkdir(parents=True)
    (terminal.folder / bad.run_id / "checkpoints").write_text("a file where a folder should be")
    answer = terminal.run("submit", "--wait")
    assert answer.status == 1, answer
    states = {run_id: status.state for run_id, status in terminal.statuses().items()}
    assert states == {bad.run_id: "failed"} | {run.run_id: "finished" for run in good}
    cause = json.loads((terminal.folder / bad.run_id / "failed.json").read_text())["error"]
    assert f"failed: {bad.run_id}: {cause} (log: " in answer.out
    assert "continue with: " in answer.err
    (terminal.folder / bad.run_id / "checkpoints").unlink()
    again = terminal.run("submit", "--wait")
    assert again.status == 0, again
    assert "2 finished, 1 started now in 1 jobs" in again.err


def test_a_run_that_somebody_trains_by_hand_is_waited_for(terminal, data):
    """`launch run` without `slurm`: its lock is respected, and what it leaves undone is done."""
    write_study(terminal.study, ((1, 16),), tokens=LONG / 4)
    (run,) = runs_of(terminal.study)
    words = ["run", str(terminal.study), "--data", str(data), "--results", str(terminal.results)]
    by_hand = subprocess.Popen([sys.executable, "-m", "launch", *words], stderr=subprocess.DEVNULL)
    terminal.started.append(by_hand)
    terminal.until(running)
    by_hand.send_signal(signal.SIGSTOP)  # so that it is not finished before it is killed
    assert held(terminal.folder / run.run_id) is not None
    waiting = terminal.start("submit", "--wait")
    assert "0 started now in 0 jobs, 1 under way" in waiting.stderr.readline()
    assert terminal.trainers() == []
    by_hand.kill()
    answer = terminal.finish(waiting)
    assert answer.status == 0, answer
    assert "1 runs are still to do after another job: starting them" in answer.err
    assert starts(terminal) == {run.run_id: 1}  # by hand it left nothing to continue


@pytest.mark.long
def test_killed_at_random_moments(terminal, undisturbed):
    """`submit` alone or with its jobs, twelve times at moments that nobody chose."""
    moments = random.Random(0)
    for _ in range(12):
        waiting = terminal.start("submit", "--wait")
        time.sleep(moments.uniform(0.3, 15))
        waiting.kill()
        if moments.random() < 0.6:
            for pid in terminal.trainers():
                os.kill(pid, signal.SIGKILL)
    answers = [terminal.run("submit", "--wait") for _ in range(2)]
    assert 0 in [answer.status for answer in answers], answers
    assert losses(terminal) == undisturbed
