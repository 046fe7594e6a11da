"""What Slurm's commands print, read; as Slurm 22.05 and 23.11 print it."""

import os

import pytest

from slurm import queue


@pytest.fixture
def answers(monkeypatch):
    def answer(text):
        monkeypatch.setattr(queue, "_ask", lambda command, wanted: text)

    return answer


def test_the_queue(answers):
    answers("a-1|0|17_0|PENDING|Resources\na-1|1|17_1|RUNNING|None\nb-2|N/A|18|PENDING|Priority\n")
    found = queue.queue({"me"})
    assert found["a-1", "0"] == queue.Queued("17_0", "PENDING", "Resources")
    assert found["a-1", "1"].state == "RUNNING"
    assert set(found) == {("a-1", "0"), ("a-1", "1"), ("b-2", "N/A")}


def test_lines_that_are_no_jobs(answers):
    """What a site prints first, and what a line break in the name of somebody's job makes of it."""
    answers(
        "Down on Friday | see the wiki\n\nodd\nname|N/A|5|RUNNING|None\na-1|0|17_0|PENDING|None\n"
    )
    assert set(queue.queue({"me"})) == {("name", "N/A"), ("a-1", "0")}


@pytest.mark.parametrize(
    ("private", "hidden"),
    [("none", False), ("accounts,jobs,usage", True), ("cloud,nodes", False), ("jobs", True)],
)
def test_whether_the_jobs_of_others_are_shown(answers, private, hidden):
    answers(
        f"Configuration data as of now\nPrivateData             = {private}\nPropagate = jobs\n"
    )
    assert queue.hides_others() == hidden


@pytest.mark.parametrize(
    ("limit", "minutes"),
    [("4:00:00", 240), ("1-02:30:00", 1590), ("30:00", 30), ("infinite", float("inf"))],
)
def test_partitions(answers, limit, minutes):
    """Nodes that differ have a line each, and stay apart."""
    answers(
        "Down on Friday\n"
        f"gpu*|{limit}|2|gpu:a100:4(S:0-1)|64|512000|a100,big\n"
        f"gpu*|{limit}|1|gpu:h100:8,nvme:1|96|1024000|h100\n"
        "cpu|infinite|10|(null)|128|256000|(null)\n"
    )
    gpu, cpu = queue.partitions()
    big, new = frozenset({"a100", "big"}), frozenset({"h100"})
    kinds = (
        queue.Nodes(2, 4, 64, 500, big, {"a100": 4}),
        queue.Nodes(1, 8, 96, 1000, new, {"h100": 8}),
    )
    assert gpu == queue.Partition("gpu", True, minutes, kinds)
    assert (gpu.nodes, cpu.nodes) == (3, 10)
    assert (gpu.features, cpu.features) == (big | new, frozenset())
    assert (cpu.default, cpu.kinds[0].gpus, cpu.minutes) == (False, 0, float("inf"))


def test_what_a_person_has_set_for_slurm_does_not_count(monkeypatch):
    """Nor what the job has set that `submit` is typed in; but which Slurm is meant does."""
    others = ("SQUEUE_STATES", "SBATCH_JOB_NAME", "SCANCEL_INTERACTIVE", "SINFO_PARTITION")
    outer = ("SLURM_JOB_ID", "SLURM_MEM_PER_CPU", "SLURM_CPU_BIND", "SLURM_GPUS_ON_NODE")
    for name in (*others, *outer, *queue.KEPT):
        monkeypatch.setenv(name, "x")
    queue.forget_settings()
    assert {name for name in os.environ if name.startswith(queue.SETTINGS)} == set(queue.KEPT)


def test_sbatch_that_does_not_answer(tmp_path, monkeypatch):
    (tmp_path / "sbatch").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(queue, "PATIENCE_SECONDS", 0.5)
    assert queue.would_start("#!/bin/sh\n") == "no answer in 0.5 seconds"
