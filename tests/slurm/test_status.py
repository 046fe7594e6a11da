"""What the files of a run say about it: every state, every cause, in words and as JSON."""

import errno
import fcntl
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from data_prep.locks import NO_LOCKS
from launch.config import save_config
from launch.exits import STOPPED
from launch.folder import locked
from launch.results import COUNT_NAMES, ResultWriter
from slurm import endings, queue
from slurm import status as module
from slurm.__main__ import main
from slurm.alive import by_run, live_tasks
from slurm.ledger import DATA, held, leave_outcome, open_submission, submissions
from slurm.status import StudyStatus, as_json, look
from slurm.table import causes, duration
from slurm.traces import failures, traces
from slurm.watch import events
from tests.slurm.conftest import runs_of


@pytest.fixture
def run(study):
    return runs_of(study)[0]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "results" / "tiny"


def trained(run, folder, steps, finish=False):
    """A run folder after so many steps."""
    save_config(run, folder / run.run_id)
    with ResultWriter(
        folder / run.run_id,
        config={},
        provenance={},
        counts=dict.fromkeys(COUNT_NAMES, 1.0),
        seq_length=run.shape.seq_length,
    ) as writer:
        for step in range(1, steps + 1):
            done = {"step": step, "tokens": step, "samples": step, "flops": 1, "flops_exact": 1}
            writer.train(**done, loss=5 - step / 100, learning_rate=0.1, grad_norm=1, seconds=0.5)
        if finish:
            writer.finish()


def only(run, folder):
    return look([run], folder).runs[0]


def failed(run, folder, when):
    stamp = datetime.fromtimestamp(when, UTC).isoformat()
    record = {"error": "FloatingPointError: loss is nan", "time": stamp}
    (folder / run.run_id / "failed.json").write_text(json.dumps(record))


def test_not_begun(run, folder):
    status = only(run, folder)
    assert (status.state, status.step, status.loss) == ("not begun", 0, None)


def test_finished(run, folder):
    trained(run, folder, 3, finish=True)
    status = only(run, folder)
    assert (status.state, status.step, status.eta_seconds) == ("finished", 3, 0.0)
    assert status.loss == pytest.approx(4.97)
    assert status.tokens_per_second == pytest.approx(run.tokens_per_step / 0.5)


def test_stopped_by_hand(run, folder):
    trained(run, folder, 3)
    assert only(run, folder).state == "stopped"
    assert only(run, folder).eta_seconds is None


def test_damaged(run, folder):
    trained(run, folder, 3)
    (folder / run.run_id / "metrics.h5").write_bytes(b"not this")
    status = only(run, folder)
    assert status.state == "damaged"
    assert "not readable as HDF5" in status.cause


def test_failed_with_its_cause(run, folder):
    trained(run, folder, 3)
    failed(run, folder, time.time())
    assert only(run, folder).state == "failed"
    assert only(run, folder).cause == "FloatingPointError: loss is nan"
    (folder / run.run_id / "failed.json").write_text("{")
    assert "failed.json is not readable" in only(run, folder).cause


def test_running_while_the_lock_is_held(run, folder):
    trained(run, folder, 3)
    lock = folder / run.run_id / "run.lock"
    program = (
        "import fcntl, os, socket, sys, time\n"
        "file = open(sys.argv[1], 'a+')\n"
        "fcntl.flock(file, fcntl.LOCK_EX)\n"
        "file.write(f'{os.getpid()} {socket.gethostname()}'); file.flush()\n"
        "print('ready', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(lock)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "ready\n"
        assert only(run, folder).state == "running"
        assert held(lock.parent) == f"process {holder.pid} on {socket.gethostname()}"
        (folder / run.run_id / "metrics.h5").write_bytes(b"being written")
        assert only(run, folder).state == "running"
        holder.kill()
    assert held(lock.parent) is None


def test_whoever_may_only_read_sees_who_trains():
    """A colleague looks at a study whose folder they may not write to."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        with locked(folder):
            (folder / "run.lock").chmod(0o444)
            me = os.geteuid()
            if me == 0:
                os.seteuid(65534)  # root may write everywhere
            try:
                found = held(folder)
            finally:
                os.seteuid(me)
    assert found == f"process {os.getpid()} on {socket.gethostname()}"


def test_a_lock_that_nobody_holds(run, folder):
    lock = folder / run.run_id / "run.lock"
    lock.parent.mkdir(parents=True)
    for text in ("", f"{os.getpid()} {socket.gethostname()}", "99999999 elsewhere", "rubbish"):
        lock.write_text(text)
        assert held(lock.parent) is None
    with lock.open("r+") as file:  # looking does not keep it
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("number", NO_LOCKS)
def test_a_lock_that_cannot_be_asked(run, folder, monkeypatch, number):
    """Its holder may live: nothing else may train the run."""
    lock = folder / run.run_id / "run.lock"
    lock.parent.mkdir(parents=True)
    lock.write_text("17 elsewhere")

    def flock(_file, _mode):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    assert held(lock.parent) == "process 17 on elsewhere"
    assert only(run, folder).state == "running"


def test_a_job_that_was_killed(run, folder):
    trained(run, folder, 3)
    submission = open_submission(folder, "tiny", "local", [(run.run_id,)])
    (submission.folder / "123_0_log.out").write_text("submitit INFO\n")
    status = only(run, folder)
    assert status.state == "failed"
    assert status.cause == "its job ended without a word: killed from outside, or out of memory"
    assert status.log == str(submission.folder / "123_0_log.out")
    assert causes(StudyStatus([status], [])) == [
        f"failed: {run.run_id}: {status.cause} (log: {status.log})"
    ]


@pytest.mark.parametrize("begun", [True, False])
def test_a_job_that_was_asked_to_stop(run, folder, begun):
    if begun:
        trained(run, folder, 3)
    submission = open_submission(folder, "tiny", "local", [(run.run_id,)])
    (submission.folder / "123.outcome.json").write_text(json.dumps({"status": STOPPED}))
    status = only(run, folder)
    assert (status.state, status.cause) == ("stopped" if begun else "not begun", None)


def test_a_job_that_refused_its_input(run, folder):
    submission = open_submission(folder, "tiny", "local", [(run.run_id,)])
    (submission.folder / "123.outcome.json").write_text(json.dumps({"status": 2}))
    assert only(run, folder).cause == "its job exited with status 2"
    log = submission.folder / "123_0_log.out"
    log.write_text("error: data: shard 3 is cut off\nsubmitit INFO (now) - Job completed\n")
    assert only(run, folder).cause == "error: data: shard 3 is cut off"


def test_what_the_outcome_says_of_each_run(run, folder):
    """A job that went on after one of its runs was given up."""
    other = run.model_copy(update={"seed": 1})
    submission = open_submission(folder, "tiny", "slurm", [(run.run_id, other.run_id)])
    said = {"state": "failed", "cause": "out of memory", "message": "rank 0 on n1"}
    runs = {run.run_id: said, other.run_id: {"state": "stopped", "cause": None, "message": ""}}
    leave_outcome(submission.folder, "17", {"status": 1, "runs": runs})
    attempts = [{"number": 1, "cause": "node failure"}, {"number": 2, "cause": "out of memory"}]
    (submission.folder / "17.attempts.json").write_text(json.dumps(attempts))
    for number in (1, 2):
        (submission.folder / f"17.attempt-{number}.log").write_text(f"hello {number}\nthe end\n")
    status = only(run, folder)
    assert (status.state, status.cause) == ("failed", "out of memory: rank 0 on n1")
    assert status.attempts == 2
    assert status.log == str(submission.folder / "17.attempt-2.log")
    assert causes(StudyStatus([status], [])) == [
        f"failed: {run.run_id}: out of memory: rank 0 on n1 (log: {status.log})",
        "    | hello 2",
        "    | the end",
    ]


def test_the_tasks_of_an_array_have_their_own_traces(run, folder):
    runs = [run.model_copy(update={"seed": seed}) for seed in range(12)]
    submission = open_submission(folder, "tiny", "slurm", [(each.run_id,) for each in runs])
    for index in (1, 11):
        leave_outcome(submission.folder, f"17_{index}", {"status": 1})
        (submission.folder / f"17_{index}_0_log.out").write_text(f"task {index} failed\n")
    found = traces(submission)
    assert [index for index, trace in found.items() if trace.outcome] == [1, 11]
    assert found[11].log == submission.folder / "17_11_0_log.out"
    live = {each.task for each in live_tasks([submission], ask_slurm=False)}
    assert live == set(range(12)) - {1, 11}
    assert [line.partition(":")[0] for line in failures(submission)][1] == runs[1].run_id


def test_a_damaged_outcome_is_named(run, folder):
    submission = open_submission(folder, "tiny", "slurm", [(run.run_id,)])
    (submission.folder / "17.outcome.json").write_text('{"stat')
    with pytest.raises(
        ValueError, match=r"17.outcome.json: not readable .*; wanted what a job wrote"
    ):
        only(run, folder)


def test_a_job_that_left_no_log(run, folder, monkeypatch):
    """The node does not see the folder, or the job was removed from the queue."""
    submission = open_submission(folder, "tiny", "slurm", [(run.run_id,)])
    monkeypatch.setattr(queue, "queue", lambda users: {})
    cause = only(run, folder).cause
    assert cause.startswith(
        f"its job left no log in {submission.folder}: it was removed from the queue"
    )
    assert "wanted --results on a file system that all nodes share" in cause


def test_jobs_that_were_not_started_because_others_failed(run, folder, monkeypatch):
    """What failed before is read once, however many wait for it, and of many only the first are told."""
    runs = [run.model_copy(update={"seed": seed}) for seed in range(9)]
    first = open_submission(
        folder, "tiny", "slurm", [(f"part {n} of 5",) for n in range(5)], stage=DATA
    )
    runs_after = [(each.run_id,) for each in runs]
    open_submission(folder, "tiny", "slurm", runs_after, after=(str(first.folder),))
    monkeypatch.setattr(queue, "queue", lambda users: {})
    read, failures = [], endings.failures
    monkeypatch.setattr(endings, "failures", lambda each: read.append(each.name) or failures(each))
    causes = {each.cause for each in look(runs, folder).runs}
    assert causes == {
        "not started: "
        + "; ".join(f"part {n} of 5: ended without a word (log: none)" for n in range(3))
        + "; and 2 more"
    }
    assert read == [first.name]


def test_a_job_that_slurm_ended(run, folder, monkeypatch):
    submission = open_submission(folder, "tiny", "slurm", [(run.run_id,)])
    monkeypatch.setattr(queue, "queue", lambda users: {})
    said = "slurmstepd: error: *** JOB 17 ON n1 CANCELLED AT 2030-01-01 DUE TO NODE FAILURE ***"
    (submission.folder / "17_0_log.out").write_text(f"hello\n{said}\n")
    assert only(run, folder).cause == said


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_job_that_could_write_nothing_any_more(run, folder, number):
    """Not even how it ended; what is left is the end of its log."""
    submission = open_submission(folder, "tiny", "local", [(run.run_id,)])
    said = str(OSError(number, os.strerror(number), "step-3"))
    (submission.folder / "17_0_log.out").write_text(f"Traceback\nOSError: {said}\n")
    cause = only(run, folder).cause
    assert cause == (
        f"OSError: {said}; wanted room in {folder}. Make some, then submit again to continue."
    )


def test_why_a_run_waits(run, folder, monkeypatch):
    other = run.model_copy(update={"seed": 1})
    submission = open_submission(folder, "tiny", "slurm", [(run.run_id, other.run_id)])
    known = queue.Queued("17", "PENDING", "Priority")
    monkeypatch.setattr(queue, "queue", lambda users: {(submission.name, "N/A"): known})
    assert (only(run, folder).state, only(run, folder).reason) == ("waiting", "Priority")
    known = queue.Queued("17", "RUNNING", "None")
    assert only(run, folder).reason == "its job has others first"


@pytest.mark.parametrize("reason", ["JobHeldUser", "job requeued in held state"])
def test_a_run_that_waits_for_an_operator(run, folder, monkeypatch, reason):
    """Slurm holds its job, and the job has said until when. One that somebody else holds says nothing."""
    submission = open_submission(folder, "tiny", "slurm", [(run.run_id,)])
    known = queue.Queued("17", "PENDING", reason)
    monkeypatch.setattr(queue, "queue", lambda users: {(submission.name, "N/A"): known})
    assert (only(run, folder).reason, only(run, folder).cause) == (reason, None)
    said = "n1: 0 GPUs are visible. Have n1 repaired, then: scontrol release 17"
    attempts = submission.folder / "17.attempts.json"
    attempts.write_text(json.dumps([{"number": 1, "held": said}]))
    status = only(run, folder)
    assert (status.state, status.reason, status.cause) == ("waiting", "for an operator", said)
    assert causes(StudyStatus([status], [])) == [f"waiting: {run.run_id}: {said}"]
    known = queue.Queued("17", "PENDING", "Resources")  # released
    assert (only(run, folder).reason, only(run, folder).cause) == ("Resources", None)


def test_stages_are_those_of_the_newest_training(run, folder):
    """A build or a report of before, failed or not, says nothing about what is trained now."""
    data, tasks = folder.parent / "data", [(run.run_id,)]

    def made(where, stage, *before):
        after = tuple(str(each.folder) for each in before)
        submission = open_submission(where, "tiny", "local", tasks, stage=stage, after=after)
        leave_outcome(submission.folder, "17", {"status": 1})
        return submission

    def stages():
        return [stage.stage for stage in look([run], folder).stages]

    check = made(data, "check", made(data, "data"))
    assert [stage.stage for stage in look((), data).stages] == ["data", "check"]
    first = made(folder, "train", check)
    made(folder, "report", first)
    assert stages() == ["data", "check", "report"]
    second = made(folder, "train")
    assert stages() == []
    made(folder, "evaluation", second)
    assert stages() == ["evaluation"]


def test_an_id_that_comes_again_is_another_job(run, folder, monkeypatch):
    """Slurm was set up anew and counts from 1 again: the job of that id is somebody else's."""
    open_submission(folder, "tiny", "slurm", [(run.run_id,)])
    known = queue.Queued("17", "RUNNING", "None")
    monkeypatch.setattr(queue, "queue", lambda users: {("somebody-else", "N/A"): known})
    assert live_tasks(submissions(folder)) == []
    assert only(run, folder).state == "failed"


def test_a_job_of_another_machine(run, folder):
    submission = open_submission(folder, "tiny", "local", [(run.run_id,)])
    path = submission.folder / "submission.json"
    path.write_text(path.read_text().replace(socket.gethostname(), "elsewhere"))
    assert "its job was started on elsewhere" in only(run, folder).cause


def test_an_old_failure_does_not_count_against_a_new_job(run, folder):
    trained(run, folder, 3)
    failed(run, folder, time.time() - 100)
    submission = open_submission(folder, "tiny", "local", [(run.run_id,)])
    program = "import time; print('ready', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", program, "submitit.local._local", str(submission.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        assert by_run(live_tasks(submissions(folder)))[run.run_id].submission == submission
        assert only(run, folder).state == "waiting"
        failed(run, folder, time.time() + 1)
        assert only(run, folder).state == "waiting", "its job may start it again"
        attempts = [{"number": 1, "given_up": {run.run_id: ["failed", "why"]}}]
        (submission.folder / "17_0.attempts.json").write_text(json.dumps(attempts))
        assert only(run, folder).state == "failed"
        process.kill()
    assert live_tasks(submissions(folder)) == []


def test_reading_a_log_is_not_a_job(run, folder):
    submission = open_submission(folder, "tiny", "local", [(run.run_id,)])
    reader = [sys.executable, "-c", "import time; time.sleep(60)", f"{submission.folder}/log.out"]
    with subprocess.Popen(reader) as process:
        assert live_tasks(submissions(folder)) == []
        process.kill()


def test_a_damaged_record_is_named(folder):
    path = folder / "jobs" / "20260101-000000-abcdef" / "submission.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"tasks": [')
    with pytest.raises(ValueError, match=r"submission.json: not the record of a submission"):
        submissions(folder)


def test_json_is_for_programs(run, folder):
    trained(run, folder, 3, finish=True)
    answer = json.loads(as_json(look([run], folder)))
    assert (answer["stages"], answer["slurm"]) == ([], None)
    (row,) = answer["runs"]
    assert row["state"] == "finished"
    assert row["steps"] == run.train_steps
    assert row["params"] == run.shape.params_non_embedding


def test_the_table_on_stdout(study, run, folder, capsys):
    trained(run, folder, 3, finish=True)
    assert main(["status", str(study), "--results", str(folder.parent)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.match(rf"{run.run_id} +finished +768 +3/{run.train_steps} +4.9700", lines[1])
    assert "not begun" in lines[2]


def test_status_of_many_runs_asks_slurm_once_and_lists_each_folder_once(run, folder, monkeypatch):
    """What it costs grows with the runs alone; `benchmarks.slurm_submit` measures it."""
    runs = [run.model_copy(update={"seed": seed}) for seed in range(20)]
    for first in range(0, 20, 5):
        tasks = [(each.run_id,) for each in runs[first : first + 5]]
        open_submission(folder, "tiny", "slurm", tasks)
    asked, listed = [], []
    monkeypatch.setattr(queue, "queue", lambda users: asked.append(1) or {})
    traced = module.traces
    monkeypatch.setattr(module, "traces", lambda each: listed.append(each.name) or traced(each))
    assert len(look(runs, folder).runs) == 20
    assert len(asked) == 1
    assert sorted(listed) == sorted(each.name for each in submissions(folder))


def test_duration():
    assert [duration(x) for x in (None, 5, 65, 3700)] == ["-", "0:05", "1:05", "1:01:40"]


def test_events_say_what_changed(run, folder):
    trained(run, folder, 30)
    stopped = only(run, folder)
    assert events({}, [stopped]) == []
    assert events({run.run_id: stopped}, [stopped]) == []
    waiting = type(stopped)(run.run_id, 768, "waiting", 0, run.train_steps)
    line = f"{run.run_id}: stopped (step 30 of {run.train_steps}, loss 4.7000)"
    assert events({run.run_id: waiting}, [stopped]) == [line]
