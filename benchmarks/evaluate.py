"""Evaluating many checkpoints of one shape, beside plain forward passes: `python -m benchmarks.evaluate`.

Trains a moment, makes copies of the checkpoint, and evaluates them all in this process with `launch.evaluate`, files
verified, read and written. The peer does nothing but call the same model on the same number of tokens, batches in
memory, half of them before it and half behind it. Prints a Markdown table: tokens per second of CPU time (of wall time
on a GPU) of each, median of the rounds, and their ratio; and what one process for each checkpoint pays for its start.
The default is the bar's own case, 100 checkpoints: some minutes of a core, some 100 MB of disk.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from data_prep.__main__ import main as data_prep
from data_prep.dataset import TokenDataset
from launch.batches import evaluation_batch
from launch.config import RunConfig
from launch.engine import start_process
from launch.evaluate import evaluate_all
from launch.folder import run_folder
from launch.run import run_all
from launch.strict import validate
from launch.study import Study, expand
from launch.trained_model import TrainedModel

SHAPE = (2, 32)  # layers, width


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoints", type=int, default=100)
    parser.add_argument("--rows", type=int, default=4000, help="of 32 tokens, for each checkpoint")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="evaluate-") as scratch:
        data = Path(scratch) / "data"
        rows = str(options.rows)
        build = [
            "build",
            "known-entropy",
            "--raw",
            "generator",
            "--out",
            str(data),
            "--workers",
            "1",
        ]
        for split in ("train", "valid"):
            assert data_prep([*build, "--rows", rows, "--split", split]) == 0
        print(
            "| shape | N | plain forward passes, tokens/s | ours, tokens/s | ratio | "
            "start of a process, s |\n|---|---:|---:|---:|---:|---:|"
        )
        print(_line(*SHAPE, data, Path(scratch), options), flush=True)


def _line(layers: int, width: int, data: Path, scratch: Path, options: argparse.Namespace) -> str:
    config = _config(layers, width)
    results = scratch / config.run_id
    assert run_all([config], data, results) == 0
    trained = run_folder(results, config)
    copies = [results / "copies" / f"run-{number:03}" for number in range(options.checkpoints)]
    for copy in copies:
        shutil.copytree(trained, copy)
    plain, ours = [], []
    for _ in range(options.rounds):
        before = _plain(config, data, len(copies) // 2)
        began = _clock()
        evaluate_all(copies, data, "valid", None, None)
        ours.append(_clock() - began)
        plain.append(before + _plain(config, data, len(copies) - len(copies) // 2))
    tokens = options.rows * config.shape.seq_length * len(copies)
    rates = [tokens / statistics.median(seconds) for seconds in (plain, ours)]
    return (
        f"| {config.shape.name} | {config.shape.params_non_embedding:,} | {rates[0]:,.0f} | {rates[1]:,.0f} "
        f"| {rates[1] / rates[0]:.2f} | {_start_up(trained, data):.1f} |"
    )


def _plain(config: RunConfig, data: Path, times: int) -> float:
    """Seconds that the model's forward passes alone take, over all rows so many times."""
    model = TrainedModel(config, start_process())
    dataset = TokenDataset(data, "valid")
    rows = np.arange(dataset.num_rows)
    batches = [
        evaluation_batch(dataset, rows[start : start + model.micro_batch], model.device).tokens
        for start in range(0, len(rows), model.micro_batch)
    ]
    with torch.no_grad():
        model.model(batches[0])
        began = _clock()
        for _ in range(times):
            for tokens in batches:
                model.model(tokens)
        return _clock() - began


def _clock() -> float:
    """Seconds: CPU time where the CPU does the work, so that other programs do not count."""
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def _start_up(trained: Path, data: Path) -> float:
    """Seconds of a process that evaluates one row."""
    command = [sys.executable, "-m", "launch", "evaluate", trained, "--data", data, "--rows", "1"]
    began = time.perf_counter()
    subprocess.run([str(each) for each in command], check=True, capture_output=True)
    return time.perf_counter() - began


def _config(layers: int, width: int) -> RunConfig:
    study = {
        "name": "evaluate",
        "question": "How fast?",
        "domain": "known-entropy",
        "precision": "fp32",
        "ladder": [{"num_layers": layers, "hidden_size": width}],
        "budget": {"tokens": 4096.0},
        "batch": {"train_batch_size": 32},
        "optimizer": {"learning_rate": 1e-3},
        "schedule": {"kind": "linear", "warmup_steps": 1},
        "evaluation": {"rows": 8, "points_per_decade": 1},
        "model": {"family": "kaplan"},
    }
    (config,) = expand(validate(Study, study, "study.toml"), "study.toml")
    return config


if __name__ == "__main__":
    main()
