"""What the files of a run say about it: every state, every cause, in words and as JSON."""

import fcntl
import json
import os
import re
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime

import pytest

from launch.config import save_config
from launch.results import COUNT_NAMES, ResultWriter
from slurm.__main__ import main
from slurm.ledger import STOPPED, held, live_runs, open_submission, submissions
from slurm.status import as_json, causes, duration, look
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
    return look([run], folder)[0]


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


def test_a_lock_that_nobody_holds(run, folder):
    lock = folder / run.run_id / "run.lock"
    lock.parent.mkdir(parents=True)
    for text in ("", f"{os.getpid()} {socket.gethostname()}", "99999999 elsewhere", "rubbish"):
        lock.write_text(text)
        assert held(lock.parent) is None
    with lock.open("r+") as file:  # looking does not keep it
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_job_that_was_killed(run, folder):
    trained(run, folder, 3)
    submission = open_submission(folder, "tiny", "local", [(run.run_id,)])
    (submission.folder / "123_0_log.out").write_text("submitit INFO\n")
    status = only(run, folder)
    assert status.state == "failed"
    assert status.cause == "its job ended without a word: killed from outside, or out of memory"
    assert status.log == str(submission.folder / "123_0_log.out")
    assert causes([status]) == [f"failed: {run.run_id}: {status.cause} (log: {status.log})"]


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
        assert live_runs(submissions(folder)) == {run.run_id: submission}
        assert only(run, folder).state == "waiting"
        failed(run, folder, time.time() + 1)
        assert only(run, folder).state == "failed"
        process.kill()
    assert live_runs(submissions(folder)) == {}


def test_reading_a_log_is_not_a_job(run, folder):
    submission = open_submission(folder, "tiny", "local", [(run.run_id,)])
    reader = [sys.executable, "-c", "import time; time.sleep(60)", f"{submission.folder}/log.out"]
    with subprocess.Popen(reader) as process:
        assert live_runs(submissions(folder)) == {}
        process.kill()


def test_a_damaged_record_is_named(folder):
    path = folder / "jobs" / "20260101-000000-abcdef" / "submission.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"tasks": [')
    with pytest.raises(ValueError, match=r"submission.json: not the record of a submission"):
        submissions(folder)


def test_json_is_for_programs(run, folder):
    trained(run, folder, 3, finish=True)
    (row,) = json.loads(as_json(look([run], folder)))
    assert row["state"] == "finished"
    assert row["steps"] == run.train_steps
    assert row["params"] == run.shape.params_non_embedding


def test_the_table_on_stdout(study, run, folder, capsys):
    trained(run, folder, 3, finish=True)
    assert main(["status", str(study), "--results", str(folder.parent)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.match(rf"{run.run_id} +finished +768 +3/{run.train_steps} +4.9700", lines[1])
    assert "not begun" in lines[2]


def test_status_of_five_hundred_runs_is_quick(run, folder):
    trained(run, folder, 3)
    runs = [run.model_copy(update={"seed": seed}) for seed in range(500)]
    for each in runs[1:]:
        (folder / each.run_id).symlink_to(folder / run.run_id)
    began = time.process_time()  # not the clock on the wall: other tests may be running
    assert len(look(runs, folder)) == 500
    assert time.process_time() - began < 2


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
