"""What cannot fit is refused before the first step; memory that runs out all the same is one sentence."""

import json
import multiprocessing
import os
import resource
import sys
from pathlib import Path

import pytest
import torch

from launch import devices
from launch.engine import start_process
from launch.folder import run_folder
from launch.out_of_memory import in_words, refuse_what_cannot_fit
from launch.results import METRICS_FILE
from launch.run import run_all
from slurm.causes import Cause, find
from slurm.step import End, Ended
from tests.launch.small import config, exit_status, study, write_study

CPU = torch.device("cpu")


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Sets how many bytes this machine's container may have, as the kernel would say it."""
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(devices, "CGROUP_LIMIT", limit)
    return lambda count: limit.write_text(f"{count}\n")


def test_a_run_that_cannot_fit_is_refused_before_its_first_step(machine, pictures, tmp_path, capfd):
    machine(10**6)
    run = config(4)
    assert run_all([run], pictures, tmp_path) == 2
    said = capfd.readouterr().err
    assert f"{run.run_id}: FAILED: {run.run_id}: cannot fit: needs at least 0.0" in said
    assert "wanted at most the 0.001 GB that are there. Raise parallel.tensor_model" in said
    assert "`launch plan` says what fits" in said
    assert "Traceback" not in said
    folder = run_folder(tmp_path, run)
    assert not (folder / METRICS_FILE).exists(), "nothing was trained"
    assert "cannot fit" in json.loads((folder / "failed.json").read_text())["error"]
    machine(10**9)
    assert run_all([run], pictures, tmp_path) == 0


def test_what_a_change_makes_fit_is_not_refused(machine):
    start_process()
    machine(4 * 10**8)  # of 590, 47 and 135 MB
    big = {"batch": {"train_batch_size": 64}, "ladder": [{"num_layers": 12, "hidden_size": 128}]}
    for parallel, fits in (
        ({"train_micro_batch_size_per_gpu": 64}, False),
        ({"train_micro_batch_size_per_gpu": 4}, True),
        ({"train_micro_batch_size_per_gpu": 64, "activation_checkpointing": True}, True),
    ):
        run = config(64, **big, parallel=parallel)  # four steps of 64 rows
        if fits:
            refuse_what_cannot_fit(run, CPU)
        else:
            with pytest.raises(ValueError, match="cannot fit: needs at least"):
                refuse_what_cannot_fit(run, CPU)


def test_neighbours_share_the_memory_of_their_machine(machine, monkeypatch):
    start_process()
    run = config(ladder=[{"num_layers": 4, "hidden_size": 128}])
    machine(2 * 10**7)
    refuse_what_cannot_fit(run, CPU)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    with pytest.raises(ValueError, match="of this machine's memory for 8 ranks"):
        refuse_what_cannot_fit(run, CPU)


OF_CUDA = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.20 GiB is "
    "free. Process 7 has 77.89 GiB memory in use."
)


def test_the_words_of_each_allocator():
    start_process()
    run = config()
    cuda = str(in_words(torch.OutOfMemoryError(OF_CUDA), run, torch.device("cuda", 0)))
    assert cuda.startswith(
        f"{run.run_id}: rank 0 ran out of memory: 2.50 GiB wanted on cuda:0, which has 79.10 GiB, "
        "1.20 GiB of them free. Raise parallel.tensor_model_parallel_size or "
    )
    with pytest.raises(RuntimeError) as cpu:
        torch.empty(2**60, dtype=torch.uint8)
    assert "ran out of memory: 1.15e+09 GB wanted on the host, which has " in str(
        in_words(cpu.value, run, CPU)
    )
    assert "more wanted on the host" in str(in_words(MemoryError(), run, CPU))
    assert in_words(RuntimeError("the weather"), run, CPU) is None


def _with_little_memory(words: list[str], log: str, more: int) -> None:
    """`python -m launch WORDS` in a process that the kernel gives `more` bytes beside what it has."""
    from launch.__main__ import main

    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    sys.exit(main(words))


def test_memory_that_runs_out_is_one_sentence_and_no_reason_to_start_again(pictures, tmp_path):
    """A real one: the kernel refuses what the backward pass of a batch of 128 rows asks for."""
    tables = {
        "batch": {"train_batch_size": 128},
        "parallel": {"train_micro_batch_size_per_gpu": 128},
        "ladder": [{"num_layers": 12, "hidden_size": 128}],
    }
    path = write_study(tmp_path / "s.toml", study(128, **tables))
    words = ["run", str(path), "--data", str(pictures), "--results", str(tmp_path)]
    process = multiprocessing.get_context("forkserver").Process(
        target=_with_little_memory, args=(words, str(tmp_path / "log"), 6 * 10**8)
    )
    process.start()
    status = exit_status(process)
    said = (tmp_path / "log").read_text()
    assert status == 1, said
    run = config(128, **tables)
    assert said.count("rank 0 ran out of memory: ") == 1, said
    assert "Traceback" not in said
    failure = json.loads((run_folder(tmp_path, run) / "failed.json").read_text())["error"]
    finding = find(Ended(1, (End("n1", "0", 1),)), failure, memory_event=False)
    assert finding.cause == Cause.MEMORY, "which is given up, never repeated"
