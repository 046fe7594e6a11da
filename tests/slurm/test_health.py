"""Which node is bad, from what the ranks of the check have left; and the check itself, on real ranks."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from slurm import health
from slurm.causes import Cause
from slurm.health import DONE, READY, STARTED, verdict
from slurm.step import Ended, LocalStep, ended
from tests.slurm.conftest import ROOT

NODES = ("n1", "n2", "n3")


def leave(folder, stages, messages=None):
    for rank, stage in enumerate(stages):
        if stage:
            record = {"node": "", "stage": stage, "message": (messages or {}).get(rank, "")}
            (folder / f"{rank}.json").write_text(json.dumps(record))


NO_TIME = Ended(137, timed_out=True)


@pytest.mark.parametrize(
    ("stages", "messages", "bad"),
    [
        ([READY, READY, READY, STARTED, READY, READY], {}, [("n2", "no answer in time: started")]),
        ([READY] * 4 + [None, READY], {}, [("n3", "no answer in time: not started")]),
        ([STARTED] * 4 + [None] * 2, {}, [("n3", "no answer in time: not started")]),
        ([READY, READY, DONE, DONE, DONE, DONE], {}, [("n1", "its part of the all-reduce")]),
        ([READY] * 6, {}, [("", "between n1, n2, n3 did not end in time (check_seconds = 300 ")]),
        (
            [READY] * 5 + [STARTED],
            {5: "/peer/data cannot be read here (ESTALE)"},
            [("n3", "/peer/data cannot be read here (ESTALE)")],
        ),
        (
            [READY] * 6,
            {2: "1 GPUs are visible; wanted 2", 0: "RuntimeError: Connection closed by peer"},
            [("n2", "1 GPUs are visible; wanted 2")],
        ),
    ],
)
def test_the_bad_node_is_named(tmp_path, stages, messages, bad):
    leave(tmp_path, stages, messages)
    finding, without = verdict(tmp_path, NODES, 2, NO_TIME, 300.0)
    assert finding.cause == Cause.NODE
    assert list(without) == [node for node, _ in bad if node]
    for node, words in bad:
        assert f"{node or 'no node'}: " in finding.message
        assert words in finding.message


def test_all_are_well(tmp_path):
    leave(tmp_path, [DONE] * 6)
    assert verdict(tmp_path, NODES, 2, Ended(1), 300.0) == (None, ())


@pytest.mark.parametrize("stages", [[None] * 6, [STARTED] * 6])
def test_no_node_is_named_where_none_got_further_than_the_others(tmp_path, stages):
    """The step did not come about, or a file system that all share is slow: it is tried again, and not for ever."""
    leave(tmp_path, stages)
    finding, without = verdict(tmp_path, NODES, 2, NO_TIME, 300.0)
    assert (finding.cause, finding.node, without) == (Cause.STEP, None, ())
    assert "no node of n1, n2, n3 got through in time" in finding.message


def test_one_node_alone_that_began_and_did_not_end(tmp_path):
    """Its own part waits for nobody."""
    leave(tmp_path, [STARTED] * 2)
    assert verdict(tmp_path, ("n1",), 2, NO_TIME, 300.0)[1] == ("n1",)
    (tmp_path / "0.json").unlink()
    (tmp_path / "1.json").unlink()
    assert verdict(tmp_path, ("n1",), 2, NO_TIME, 300.0)[1] == ()


@pytest.mark.parametrize(
    ("said", "cause", "node"),
    [
        ("srun: error: Unable to create step for job 7: Requested nodes are busy", "STEP", None),
        ("srun: error: n2: task 2: Segmentation fault", "KILLED", "n2"),
        ("srun: error: n2: task 2: Exited with exit code 1", "STEP", None),
        ("srun: error: Node failure on n3", "NODE", "n3"),
    ],
)
def test_a_step_that_ends_before_its_time_leaves_no_node_out(tmp_path, said, cause, node):
    """Ranks that never began, or were waiting, say nothing about their nodes: only srun's words may."""
    leave(tmp_path, [READY, STARTED, None, None, None, None])
    finding, without = verdict(tmp_path, NODES, 2, ended(1, [said]), 300.0)
    assert (finding.cause, finding.node, without) == (Cause[cause], node, ())


def test_a_file_cut_short_counts_as_none(tmp_path):
    leave(tmp_path, [DONE, DONE])
    (tmp_path / "1.json").write_text('{"node"')
    assert verdict(tmp_path, ("n1", "n2"), 1, NO_TIME, 300.0)[1] == ("n2",)


@pytest.fixture
def step(tmp_path, monkeypatch):
    """Two ranks of the check, on this machine."""
    monkeypatch.chdir(ROOT)
    log = tmp_path / "log"
    started = LocalStep(["slurm.health", str(tmp_path), "2", str(ROOT)], log, os.getpid(), ranks=2)
    yield started
    started.kill()
    started.wait(lambda: False, lambda: True)


def test_two_ranks_that_work(tmp_path, step):
    found = step.wait(lambda: False, lambda: False, 120.0)
    assert (found.status, found.timed_out) == (0, False), (tmp_path / "log").read_text()
    assert verdict(tmp_path, ("here",), 2, found, 300.0) == (None, ())


def test_too_little_memory(tmp_path):
    variables = os.environ | {"SLURM_MEM_PER_NODE": str(10**9), "SLURMD_NODENAME": "n7"}
    command = [sys.executable, "-m", "slurm.health", str(tmp_path), "1", str(ROOT)]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, check=False)
    assert done.returncode == 1
    finding, without = verdict(tmp_path, ("n7",), 1, Ended(1), 300.0)
    assert "n7: " in finding.message
    assert "GiB of memory are left; Slurm promised" in finding.message
    assert without == ("n7",)


def test_the_system_may_keep_some_of_the_memory(monkeypatch):
    """A node of which all is asked has a little less: MemAvailable counts what the job's own processes take."""
    monkeypatch.setenv("SLURM_MEM_PER_NODE", str(100 * 1024))
    monkeypatch.delenv("SLURM_GPUS_ON_NODE", raising=False)
    for left, well in ((99.0, True), (91.0, True), (89.0, False)):
        monkeypatch.setattr(health, "available_gb", lambda left=left: left)
        assert (health._try_node(1, ROOT) == "") == well


def test_scratch_is_made_on_each_node(tmp_path, monkeypatch):
    """The set-up lines of the cluster file run on the first node only; a node that cannot have it is bad."""
    monkeypatch.delenv("SLURM_GPUS_ON_NODE", raising=False)
    scratch = tmp_path / "scratch" / "of" / "mine"
    monkeypatch.setenv("TMPDIR", str(scratch))
    assert health._try_node(1, ROOT) == ""
    assert scratch.is_dir()
    monkeypatch.setenv("TMPDIR", "/proc/scratch")
    with pytest.raises(FileNotFoundError, match="/proc/scratch"):
        health._try_node(1, ROOT)


def test_the_data_must_be_seen_on_each_node(tmp_path, monkeypatch):
    """An empty folder is where a file system was to be mounted."""
    monkeypatch.delenv("SLURM_GPUS_ON_NODE", raising=False)
    assert health._try_node(1, tmp_path) == (
        f"{tmp_path} is empty here; wanted the dataset: is its file system mounted?"
    )
    missing = tmp_path / "data"
    assert health._try_node(1, missing) == f"{missing} cannot be read here (ENOENT)"
    missing.mkdir()
    (missing / "manifest.json").touch()
    assert health._try_node(1, missing) == ""


def test_a_rank_that_stands_still(tmp_path, step):
    os.kill(step.processes[1].pid, signal.SIGSTOP)
    deadline = time.monotonic() + 120
    while not (tmp_path / "0.json").exists() or "ready" not in (tmp_path / "0.json").read_text():
        assert step.poll() is None
        assert time.monotonic() < deadline, (tmp_path / "log").read_text()
        time.sleep(0.1)
    found = step.wait(lambda: False, lambda: False, 1.0)
    assert found.timed_out
    assert verdict(tmp_path, ("a", "b"), 1, found, 300.0)[1] == ("b",)
