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
    found = queue.queue()
    assert found["a-1", "0"] == queue.Queued("17_0", "PENDING", "Resources")
    assert found["a-1", "1"].state == "RUNNING"
    assert set(found) == {("a-1", "0"), ("a-1", "1"), ("b-2", "N/A")}


@pytest.mark.parametrize(
    ("limit", "minutes"),
    [("4:00:00", 240), ("1-02:30:00", 1590), ("30:00", 30), ("infinite", float("inf"))],
)
def test_partitions(answers, limit, minutes):
    answers(
        f"gpu*|{limit}|2|gpu:a100:4(S:0-1)|64|512000+\n"
        f"gpu*|{limit}|1|gpu:h100:8,nvme:1|96|1024000\n"
        "cpu|infinite|10|(null)|128|256000\n"
    )
    gpu, cpu = queue.partitions()
    assert gpu == queue.Partition("gpu", True, minutes, 3, 8, 96, 1000)
    assert (cpu.default, cpu.gpus, cpu.minutes) == (False, 0, float("inf"))


def test_what_a_person_has_set_for_slurm_does_not_count(monkeypatch):
    for name in ("SQUEUE_STATES", "SBATCH_JOB_NAME", "SCANCEL_INTERACTIVE", "SINFO_PARTITION"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("SLURM_CONF", "kept")
    queue.forget_settings()
    assert not [name for name in os.environ if name.startswith(queue.SETTINGS)]
    assert os.environ["SLURM_CONF"] == "kept"


def test_sbatch_that_does_not_answer(tmp_path, monkeypatch):
    (tmp_path / "sbatch").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(queue, "PATIENCE_SECONDS", 0.5)
    assert queue.would_start("#!/bin/sh\n") == "no answer in 0.5 seconds"
