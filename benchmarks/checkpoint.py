"""A checkpoint against `dd`: how long training waits for it, and until it is on the disk.

    python -m benchmarks.checkpoint [--layers N] [--width N] [--rounds N] [--folder DIR]

Saves a model with Adam's state (default: 400 M parameters, 4.8 GB) while training goes on, and has `dd`
write as many bytes, synchronised at the end; the two alternate. Bars: the checkpoint is there within 1.3
times of dd's time, and training waits a quarter of that at most.
"""

import argparse
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.synthetic import batch_of, run_of
from launch.checkpoint import Saver
from launch.checkpoint_files import CHECKPOINTS
from launch.engine import Engine, start_process
from launch.results import METRICS_FILE
from megatron_ext.shape import shape_of

BLOCK = 2**24


def checkpoint_seconds(engine: Engine, folder: Path, step: int) -> tuple[float, float]:
    """Until training goes on, and until the checkpoint is there."""
    began = time.perf_counter()
    with Saver(engine, folder, "data") as saver:
        saver.begin(step)
        waited = time.perf_counter() - began
        while saver.under_way:
            time.sleep(0.01)
        back = time.perf_counter()
        saver.finish()
        there = time.perf_counter()
    return waited + there - back, there - began


def dd_seconds(folder: Path, size: int) -> float:
    file = folder / "dd"
    command = ["dd", "if=/dev/zero", f"of={file}", f"bs={BLOCK}", "conv=fsync"]
    began = time.perf_counter()
    subprocess.run(
        [*command, f"count={size}", "iflag=count_bytes"], check=True, capture_output=True
    )
    seconds = time.perf_counter() - began
    file.unlink()
    return seconds


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: here")
    options = parser.parse_args(words)
    device = start_process()
    shape = shape_of(
        "kaplan",
        num_layers=options.layers,
        hidden_size=options.width,
        seq_length=128,
        vocab_size=256,
    )
    run = run_of(shape, 1, "fp32")
    engine = Engine(run, device)
    engine.train_step(batch_of(run, device), 1e-3)
    waits, checkpoints, copies = [], [], []
    with tempfile.TemporaryDirectory(dir=options.folder or Path.cwd()) as name:
        folder = Path(name)
        (folder / METRICS_FILE).write_bytes(b"what was measured")
        for step in range(1, options.rounds + 1):
            waited, seconds = checkpoint_seconds(engine, folder, step)
            files = list((folder / CHECKPOINTS / f"step-{step}").iterdir())
            size = sum(file.stat().st_size for file in files)
            copies.append(dd_seconds(folder, size))
            waits.append(waited / copies[-1])
            checkpoints.append(seconds / copies[-1])
    engine.close()
    print(
        f"{shape.params_total:,} parameters, {size / 1e9:.2f} GB, {options.rounds} rounds, "
        f"{torch.get_num_threads()} threads\n"
    )
    print("| | of dd's time (spread) | bar |")
    print("|---|---:|---:|")
    for words, ratios, bar in (
        ("checkpoint there", checkpoints, "1.3"),
        ("training waited", waits, "0.33"),
    ):
        print(
            f"| {words} | {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) | {bar} |"
        )
    print(f"\ndd: {size / 1e9 / statistics.median(copies):.2f} GB/s")


if __name__ == "__main__":
    main()
