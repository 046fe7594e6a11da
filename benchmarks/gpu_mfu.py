"""Model FLOPs utilisation of one GPU: GPT shapes in bf16 at sequence 2,048, spread as the planner says.

    python -m benchmarks.gpu_mfu [--case PART] [--steps N] [--rows N] [--device h100|h200|a100]

Trains the real engine on random tokens; the loss counts every token. Prints for each shape the strategy, the
median step, tokens/s, MFU (exact model FLOPs over the vendor's dense bf16 peak; what activation checkpointing
computes again is not counted), and the largest memory allocated beside the predicted one. Under torchrun
all ranks train together. Bar: 40% at 1.3 B on an H100 or H200 (published bests there: 42% at 1 B, 44% at 3 B,
46% at 7 B). Without a GPU only tiny shapes are run, to see that it works: no MFU.
"""

import argparse
import time

import numpy as np
import torch
import torch.distributed

from benchmarks.synthetic import batch_of, run_of
from launch.config import Parallel, RunConfig
from launch.console import first_rank
from launch.devices import DEVICES, GPUS, Device, measured_cpu
from launch.engine import Engine, start_process
from launch.planner import choose, described
from launch.process import gpu_of, gpus_per_node
from launch.speed import speed
from megatron_ext.shape import ModelShape, shape_of

VOCABULARY = 50_257
ROWS = 64  # of a step: a quarter of a million tokens at sequence 4,096, half of that at 2,048
WARM_UP = 3  # steps in which kernels are chosen and memory is taken


def gpt(layers: int, width: int, heads: int, length: int, vocabulary: int) -> ModelShape:
    return shape_of(
        "kaplan",
        num_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        seq_length=length,
        vocab_size=vocabulary,
    )


# layers, width, heads (Brown et al. 2020, table 2.1)
GPU_CASES = {
    "760 M": gpt(24, 1536, 16, 2048, VOCABULARY),
    "1.3 B": gpt(24, 2048, 16, 2048, VOCABULARY),
    "3 B": gpt(32, 2560, 32, 2048, VOCABULARY),
    "7 B": gpt(32, 4096, 32, 2048, VOCABULARY),
}
CPU_CASES = {
    "tiny, dense": gpt(2, 32, 2, 64, 257),
    "tiny, one layer": gpt(1, 16, 1, 32, 64),
}


def step_seconds(run: RunConfig, device: torch.device, steps: int) -> tuple[np.ndarray, float]:
    """Wall time of each step [steps], and the most bytes allocated (0 on a CPU)."""
    engine = Engine(run, device)
    batch = batch_of(run, device, data_parallel=engine.world_size)
    times = []
    for step in range(WARM_UP + steps):
        if step == WARM_UP and device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        engine.train_step(batch, 1e-4)  # ends with the loss in Python: the device is done
        times.append(time.perf_counter() - began)
    engine.close()
    most = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    return np.array(times[WARM_UP:]), float(most)


def row(name: str, shape: ModelShape, options: argparse.Namespace, here: torch.device) -> str:
    ranks = torch.distributed.get_world_size()
    profile = _profile(options.device, here)
    rows = options.rows or (ROWS if profile.is_gpu else 4)
    open_run = run_of(shape, rows, "bf16", parallel=Parallel())
    try:
        plan = choose(open_run, profile, ranks, gpus_per_node() or ranks)
    except ValueError as refusal:
        return f"| {name} | does not fit: {refusal} |"
    run = open_run.model_copy(update={"parallel": plan.parallel})
    seconds, most = step_seconds(run, here, options.steps)
    fast = speed(seconds, run, ranks, profile if here.type == "cuda" else None)
    utilisation = "-" if fast.mfu is None else f"{fast.mfu:.1%}"
    return (
        f"| {name} | {shape.params_total:,} | {described(plan)}, {plan.micro_batches} micro-batches "
        f"| {np.median(seconds):.3g} | {fast.tokens:,.0f} | {utilisation} "
        f"| {most / 1e9:.1f} | {plan.memory.peak / 1e9:.1f} |"
    )


def _profile(name: str | None, here: torch.device) -> Device:
    """The device as asked for, as found, or (not known to us) as an H100."""
    if here.type == "cpu":
        return measured_cpu()
    return GPUS[name] if name else gpu_of(here) or GPUS["h100"]


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", help="only cases whose name holds this")
    parser.add_argument("--steps", type=int, default=10, help="measured, after three others")
    parser.add_argument("--rows", type=int, help=f"of a step; default {ROWS}")
    parser.add_argument("--device", choices=DEVICES[:-1], help="whose peak; default: as found")
    options = parser.parse_args(words)
    here = start_process()
    cases = GPU_CASES if here.type == "cuda" else CPU_CASES
    if first_rank():
        what = torch.cuda.get_device_name(here) if here.type == "cuda" else "CPU"
        print(f"{torch.distributed.get_world_size()} x {what}, torch {torch.__version__}, bf16\n")
        print(
            "| case | parameters | strategy | step, s | tokens/s | MFU | allocated, GB | predicted, GB |"
        )
        print("|---|---:|---|---:|---:|---:|---:|---:|")
    for name, shape in cases.items():
        if options.case is None or options.case in name:
            line = row(name, shape, options, here)
            if first_rank():
                print(line, flush=True)


if __name__ == "__main__":
    main()
