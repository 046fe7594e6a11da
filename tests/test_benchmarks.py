"""The benchmarks that are for a GPU, or take long, run to their end with tiny shapes on a CPU."""

import importlib
import re

import pytest

COMMANDS = {
    "gpu_mfu": (["--steps", "2"], r"\| tiny, dense \| [\d,]+ \| TP 1, ZeRO \d, .* \| - \|"),
    "packing": (
        ["--at-a-time", "1", "2", "--seconds", "0.2", "--rounds", "1", "--case", "12 k"],
        r"\| 12 k parameters, 192 tokens \| [\d,]+ \| [\d,]+ \| \d+\.\d\dx \|",
    ),
    "checkpoint": (
        ["--layers", "1", "--width", "16", "--rounds", "1"],
        r"\| checkpoint there \| [\d.]+ \([\d.]+-[\d.]+\) \| 1\.3 \|",
    ),
    "train_step": (
        ["--case", "mathematics L2 H32", "--rounds", "1", "--seconds", "0.1"],
        r"\| mathematics L2 H32 \| 6,144 \|",
    ),
    "generation": (
        ["--case", "12 k", "--rounds", "1", "--questions", "8"],
        r"\| 12 k parameters \| [\d,]+ \| [\d,]+ \| [\d.]+ \([\d.]+-[\d.]+\) \| 5x \|",
    ),
    "sparse_step": (
        ["--case", "16x16", "--rounds", "1", "--seconds", "0.1"],
        r"\| image-16x16 L4 H64 \|",
    ),
    "slurm_repeat": (
        ["--times", "2", "--at-once", "2", "tests/slurm/test_queue.py::test_the_queue"],
        r"test_the_queue +2 +0 +\d+ +\d+\n",
    ),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_it_runs_to_its_end(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words, row = COMMANDS[name]
    importlib.import_module(f"benchmarks.{name}").main(words)
    assert re.search(row, capsys.readouterr().out)
