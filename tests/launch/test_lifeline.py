"""Hangs and lost ranks end a run on all ranks, within a minute, with one message that says why."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.exits import FAILED, LOST
from launch.folder import FAILED_FILE, run_folder
from launch.lifeline import BEAT_SECONDS
from tests.launch.small import config, exit_status, start_ranks, study, wait_for, write_study

ROOT = Path(__file__).parents[2]

HANG = """
import time
from launch.engine import start_process
from launch.lifeline import Lifeline

def stuck():
    time.sleep(600)

start_process()
with Lifeline("the run", 0.03, lambda error: print("recorded:", error, flush=True)) as lifeline:
    for _ in range(3):
        lifeline.step()
    stuck()
"""


def test_a_step_that_takes_too_long_ends_the_process_with_its_stacks():
    done = subprocess.run(
        [sys.executable, "-c", HANG], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == LOST, done.stderr
    assert "in stuck" in done.stderr, "the stack of the main thread"
    assert "the run: rank 0 on " in done.stderr
    assert "hangs: its stacks are above. All ranks end; the run continues from" in done.stderr
    assert "recorded: the run: rank 0" in done.stdout


SUSPENDED = """
import time
from launch import lifeline
from launch.engine import start_process
from launch.lifeline import Lifeline

lifeline.BEAT_SECONDS = 0.2
start_process()
with Lifeline("the run", 0.05, lambda error: None) as watched:  # 3 seconds
    watched.step()
    print("begun", flush=True)
    time.sleep(1)
    watched.step()
    time.sleep(1)
print("done", flush=True)
"""


def test_a_process_that_was_suspended_goes_on():
    """Slurm suspends jobs for others, and continues them: no step took long."""
    process = subprocess.Popen(
        [sys.executable, "-c", SUSPENDED],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(5)  # longer than the limit
    process.send_signal(signal.SIGCONT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "done\n"), err


BEHIND = """
import time
import torch
from launch import lifeline
from launch.engine import start_process
from launch.lifeline import Lifeline

lifeline.BEAT_SECONDS = 0.5
start_process()

def stuck():
    time.sleep(600)

with Lifeline("the run", 0.1, lambda error: None) as watched:
    watched.step()
    if torch.distributed.get_rank() == 1:
        stuck()
    torch.distributed.barrier()
"""


def test_every_rank_shows_where_it_is_when_one_hangs():
    status, said = two_ranks(BEHIND)
    assert status == [LOST, LOST], said
    assert "in barrier" in said[0]
    assert "in stuck" in said[1]
    assert "in stuck" not in said[0]
    assert "".join(said).count("hangs: its stacks are above") == 1


OWN = """
import time
import torch
from launch import lifeline
from launch.engine import start_process
from launch.lifeline import Lifeline

lifeline.BEAT_SECONDS, lifeline.SILENCE_SECONDS = 0.2, 4.0
start_process()

with Lifeline("the run", 10.0, lambda error: print("recorded:", error, flush=True)) as watched:
    watched.step()
    if torch.distributed.get_rank() == 1:
        raise RuntimeError("CUDA out of memory, say")
    torch.distributed.barrier()
"""


def test_an_error_of_one_rank_that_nothing_explains_is_told_to_the_others():
    status, said = two_ranks(OWN)
    assert status == [FAILED, 1], said
    assert "recorded: the run: rank 1 failed: RuntimeError: CUDA out of memory, say" in said[0]
    assert "CUDA out of memory" in said[1]


def two_ranks(program: str) -> tuple[list[int], list[str]]:
    """Exit statuses, and all that each said."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    where = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-u", "-c", program],
            cwd=ROOT,
            env={**os.environ, **where, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in "01"
    ]
    said = [rank.communicate(timeout=120)[0] for rank in ranks]
    return [rank.returncode for rank in ranks], said


@pytest.mark.parametrize(
    ("rank", "how"),
    [
        (0, signal.SIGKILL),
        (1, signal.SIGKILL),
        pytest.param(0, signal.SIGSTOP, marks=pytest.mark.long),
        pytest.param(1, signal.SIGSTOP, marks=pytest.mark.long),
    ],
)
def test_a_lost_rank_ends_the_others_and_is_named_once(rank, how, pictures, tmp_path):
    """Killed, it closes its connections; stopped, it is as silent as a node that has gone. Rank 0 takes along the store
    by which the others agree on who says it."""
    tables = {"batch": {"train_batch_size": 3}}
    run = config(4000, **tables)
    path = write_study(tmp_path / "s.toml", study(4000, **tables))
    command = ["run", path, "--data", pictures, "--results", tmp_path]
    ranks = start_ranks(command, tmp_path / "log", 3)
    folder = run_folder(tmp_path, run)
    wait_for(lambda: "step " in text(tmp_path), "the first steps")
    time.sleep(2 * BEAT_SECONDS)  # the ranks have told each other that they live
    began = time.monotonic()
    os.kill(ranks[rank].pid, how)
    for other in {0, 1, 2} - {rank}:
        assert exit_status(ranks[other]) == LOST, text(tmp_path)
    assert time.monotonic() - began < 60  # the promise; half of it is silence
    assert text(tmp_path).count(f"{run.run_id}: rank {rank} died: ") == 1, text(tmp_path)
    assert text(tmp_path).count("All ranks end; the run continues from") == 1, text(tmp_path)
    assert "Traceback" not in text(tmp_path)
    assert run.run_id in json.loads((folder / FAILED_FILE).read_text())["error"]
    with contextlib.suppress(ProcessLookupError):
        os.kill(ranks[rank].pid, signal.SIGCONT)
    assert exit_status(ranks[rank]) in (LOST, -signal.SIGKILL)


def text(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.glob("log.*"))
