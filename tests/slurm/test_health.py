"""Which node is bad, from what the ranks of the check have left; and the check itself, on real ranks."""

import json
import os
import signal
import subprocess
import sys

import pytest

from slurm.health import DONE, READY, STARTED, judge
from slurm.step import LocalStep
from tests.slurm.conftest import ROOT

NODES = ("n1", "n2", "n3")


def leave(folder, stages, messages=None):
    for rank, stage in enumerate(stages):
        if stage:
            record = {"node": "", "stage": stage, "message": (messages or {}).get(rank, "")}
            (folder / f"{rank}.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("stages", "messages", "bad"),
    [
        ([DONE] * 6, {}, []),
        ([READY, READY, READY, STARTED, READY, READY], {}, [("n2", "no answer in time: started")]),
        ([READY] * 4 + [None, READY], {}, [("n3", "no answer in time: not started")]),
        ([READY, READY, DONE, DONE, DONE, DONE], {}, [("n1", "its part of the all-reduce")]),
        ([READY] * 6, {}, [("", "between n1, n2, n3 did not end in time")]),
        (
            [READY] * 6,
            {2: "1 GPUs are visible; wanted 2", 0: "RuntimeError: Connection closed by peer"},
            [("n2", "1 GPUs are visible; wanted 2")],
        ),
    ],
)
def test_the_bad_node_is_named(tmp_path, stages, messages, bad):
    leave(tmp_path, stages, messages)
    found = judge(tmp_path, NODES, 2)
    assert [each.node for each in found] == [node for node, _ in bad]
    for each, (_, words) in zip(found, bad, strict=True):
        assert words in each.message


def test_a_file_cut_short_counts_as_none(tmp_path):
    leave(tmp_path, [DONE, DONE])
    (tmp_path / "1.json").write_text('{"node"')
    assert [each.node for each in judge(tmp_path, ("n1", "n2"), 1)] == ["n2"]


@pytest.fixture
def step(tmp_path, monkeypatch):
    """Two ranks of the check, on this machine."""
    monkeypatch.chdir(ROOT)
    log = tmp_path / "log"
    started = LocalStep(["slurm.health", str(tmp_path), "2"], log, os.getpid(), ranks=2)
    yield started
    started.kill()
    started.wait(lambda: False, lambda: True)


def test_two_ranks_that_work(tmp_path, step):
    ended = step.wait(lambda: False, lambda: False, 120.0)
    assert ended.status == 0, (tmp_path / "log").read_text()
    assert judge(tmp_path, ("here",), 2) == []


def test_too_little_memory(tmp_path):
    variables = os.environ | {"SLURM_MEM_PER_NODE": str(10**9), "SLURMD_NODENAME": "n7"}
    command = [sys.executable, "-m", "slurm.health", str(tmp_path), "1"]
    done = subprocess.run(
        command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    (bad,) = judge(tmp_path, ("n7",), 1)
    assert "GiB of memory are left; Slurm promised" in bad.message


def test_a_rank_that_stands_still(tmp_path, step):
    os.kill(step.processes[1].pid, signal.SIGSTOP)
    while not (tmp_path / "0.json").exists() or "ready" not in (tmp_path / "0.json").read_text():
        assert step.poll() is None
    ended = step.wait(lambda: False, lambda: False, 1.0)
    assert ended.status == -signal.SIGKILL
    assert [each.node for each in judge(tmp_path, ("a", "b"), 1)] == ["b"]
