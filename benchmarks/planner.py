"""The planner's predicted memory against what training really takes.

    python -m benchmarks.planner [--case PART]

Each case trains three steps in fresh processes, after two of a tiny model that load every library. On a
GPU `torch.cuda.max_memory_allocated` of the last step is compared. On a CPU it is two numbers:

    alive      bytes of all tensors at once, counted by PyTorch's profiler at every allocation: what
               `max_memory_allocated` would say
    resident   the process's resident set above what it was before, with glibc told to return free
               blocks of 1 MiB and more. As it trains, the engine has glibc keep them, which is
               faster and takes more: the last column

Prints a table. Bar: within 10%.
"""

import argparse
import ctypes
import gc
import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.synthetic import batch_of, run_of
from launch.activations import Share
from launch.config import Parallel, RunConfig
from launch.engine import Engine, start_process
from launch.memory import Memory, memory_of
from megatron_ext.shape import Family, shape_of

STEPS = 3
BAR = 0.10
M_MMAP_THRESHOLD, RETURNED = -3, 2**20  # of glibc's mallopt


@dataclass(frozen=True)
class Case:
    layers: int
    width: int
    length: int
    rows: int
    precision: str = "fp32"
    vocabulary: int = 256
    window: int = 0
    family: Family = "kaplan"
    ranks: int = 1
    heads: int | None = None
    parallel: Parallel = Parallel()
    dropout: float = 0.0
    noise: bool = False  # the gradient noise scale is measured, as every sixteenth step does


def case_of(*sizes: int, **more: object) -> Case:
    """Sizes as in `Case`; what else is given goes to it, or to `Parallel`."""
    names = {name for name in Case.__dataclass_fields__ if name in more}
    parallel = Parallel(**{name: more[name] for name in more if name not in names})
    return Case(*sizes, **{name: more[name] for name in names}, parallel=parallel)


# layers, width, sequence, rows
CPU_CASES = {
    "19 M, fp32": case_of(6, 512, 256, 4),
    "19 M, bf16": case_of(6, 512, 256, 4, precision="bf16"),
    "57 M, fp32": case_of(8, 768, 128, 2),
    "19 M, bf16, 4 micro-batches": case_of(
        6, 512, 256, 8, precision="bf16", train_micro_batch_size_per_gpu=2
    ),
    "5 M, fp32, large batch": case_of(6, 256, 512, 16),
    "5 M, fp32, activation checkpointing": case_of(6, 256, 512, 16, activation_checkpointing=True),
    "7 M, fp32, vocabulary 8,192": case_of(4, 256, 512, 8, vocabulary=8192),
    "3 M, fp32, sparse, window 48": case_of(4, 256, 768, 8, window=48),
    "19 M, fp32, noise scale": case_of(6, 512, 256, 4, noise=True),
    "19 M, bf16, ZeRO 1, noise scale": case_of(
        6, 512, 256, 4, precision="bf16", zero_stage=1, noise=True
    ),
    "19 M, bf16, 4 micro-batches, noise scale": case_of(
        6, 512, 256, 8, precision="bf16", train_micro_batch_size_per_gpu=2, noise=True
    ),
    "5 M, fp32, dropout": case_of(6, 256, 512, 16, dropout=0.1),
    "5 M, bf16, dropout": case_of(6, 256, 512, 16, precision="bf16", dropout=0.1),
    "5 M, fp32, dropout, activation checkpointing": case_of(
        6, 256, 512, 16, dropout=0.1, activation_checkpointing=True
    ),
    "3 M, fp32, sparse, window 48, dropout": case_of(4, 256, 768, 8, window=48, dropout=0.1),
    "19 M, bf16, ZeRO 1": case_of(6, 512, 256, 4, precision="bf16", zero_stage=1),
    "19 M, bf16, ZeRO 2": case_of(6, 512, 256, 4, precision="bf16", zero_stage=2),
    "19 M, bf16, ZeRO 3": case_of(6, 512, 256, 4, precision="bf16", zero_stage=3),
    "19 M, fp32, ZeRO 2": case_of(6, 512, 256, 4, zero_stage=2),
    "19 M, bf16, ZeRO 2, offload": case_of(
        6, 512, 256, 4, precision="bf16", zero_stage=2, offload_optimizer=True
    ),
    "19 M, bf16, ZeRO 1, 2 ranks": case_of(6, 512, 256, 4, precision="bf16", zero_stage=1, ranks=2),
    "19 M, bf16, ZeRO 2, 2 ranks": case_of(6, 512, 256, 4, precision="bf16", zero_stage=2, ranks=2),
    "19 M, bf16, ZeRO 3, 2 ranks": case_of(6, 512, 256, 4, precision="bf16", zero_stage=3, ranks=2),
    "19 M, fp32, TP 2": case_of(6, 512, 256, 4, ranks=2, tensor_model_parallel_size=2),
    "19 M, fp32, TP 2, sequence parallel": case_of(
        6, 512, 256, 4, ranks=2, tensor_model_parallel_size=2, sequence_parallel=True
    ),
}
_GPT = {"precision": "bf16", "vocabulary": 50_257}
GPU_CASES = {
    "125 M, fp32": case_of(12, 768, 1024, 4, vocabulary=50_257),
    "125 M, bf16": case_of(12, 768, 1024, 8, **_GPT),
    "350 M, bf16, ZeRO 1": case_of(24, 1024, 2048, 8, **_GPT, zero_stage=1),
    "350 M, bf16, ZeRO 1, activation checkpointing": case_of(
        24, 1024, 2048, 16, **_GPT, zero_stage=1, activation_checkpointing=True
    ),
    "760 M, bf16, ZeRO 2, 4 micro-batches": case_of(
        24, 1536, 2048, 16, **_GPT, zero_stage=2, train_micro_batch_size_per_gpu=4
    ),
    "1.3 B, bf16, ZeRO 1": case_of(24, 2048, 2048, 4, **_GPT, heads=16, zero_stage=1),
    "1.3 B, bf16, ZeRO 3": case_of(24, 2048, 2048, 8, **_GPT, heads=16, zero_stage=3),
    "3 B, bf16, ZeRO 2, offload": case_of(
        32, 2560, 2048, 4, **_GPT, heads=32, zero_stage=2, offload_optimizer=True
    ),
    "pictures, bf16, sparse, window 96": case_of(
        24, 512, 3072, 16, precision="bf16", window=96, zero_stage=1
    ),
}
TINY = case_of(2, 32, 64, 4)


def cases() -> dict[str, Case]:
    return GPU_CASES if torch.cuda.is_available() else CPU_CASES


def config_of(case: Case) -> RunConfig:
    """A run of three steps."""
    shape = shape_of(
        case.family,
        num_layers=case.layers,
        hidden_size=case.width,
        seq_length=case.length,
        vocab_size=case.vocabulary,
        num_attention_heads=case.heads,
        attention_window=case.window,
    )
    share = case.rows // (case.ranks // case.parallel.tensor_model_parallel_size)
    asked = case.parallel.train_micro_batch_size_per_gpu
    parallel = case.parallel.model_copy(update={"train_micro_batch_size_per_gpu": asked or share})
    run = run_of(
        shape, case.rows, case.precision, steps=STEPS, family=case.family, parallel=parallel
    )
    model = run.model.model_copy(update={"dropout": case.dropout})
    return run.model_copy(update={"model": model})


def predicted(case: Case, *, on_gpu: bool, whole_buckets: bool) -> Memory:
    config = config_of(case)
    data_parallel = case.ranks // case.parallel.tensor_model_parallel_size
    micro_batch = config.parallel.train_micro_batch_size_per_gpu or 1
    share = Share(
        shape=config.shape,
        precision=config.precision,
        parallel=config.parallel,
        micro_batch=micro_batch,
        micro_batches=case.rows // data_parallel // micro_batch,
        data_parallel=data_parallel,
        on_gpu=on_gpu,
        dropout=case.dropout > 0,
    )
    return memory_of(share, whole_buckets=whole_buckets)


# --- measuring, in a process of its own


def train(case: Case, device: torch.device) -> None:
    """Three steps; the engine is gone afterwards."""
    config = config_of(case)
    engine = Engine(config, device)
    batch = batch_of(config, device, data_parallel=engine.world_size)
    for _ in range(STEPS):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        engine.train_step(batch, 1e-3, measure_noise=case.noise)
    engine.close()


def alive(case: Case, device: torch.device) -> float:
    """The most bytes of CPU tensors at once, by the profiler's record of every allocation."""
    gc.collect()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        train(case, device)
    events = profiler.profiler.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    most = now = 0
    for _, change in sorted(changes, key=lambda each: each[0]):
        now += change
        most = max(most, now)
    return float(most)


def resident(name: str) -> float:
    """`VmRSS` now, or `VmHWM`: the largest since it was reset. Bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def measure(case: Case, what: str) -> float:
    device = start_process()
    # The base has every library loaded: the same kind of optimizer, on something small.
    own = {"precision": case.precision, "ranks": case.ranks, "parallel": case.parallel}
    train(replace(TINY, **own, dropout=case.dropout), device)
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        train(case, device)
        return torch.cuda.max_memory_allocated() - before
    if what == "alive":
        return alive(case, device)
    if what == "resident":
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, RETURNED)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from what is resident now
    train(case, device)
    return resident("VmHWM") - before


def in_fresh_processes(name: str, case: Case, what: str) -> float:
    """All ranks of a case; the first one's number."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.planner", "--one", name, "--measure", what]
    ranks = []
    for rank in range(case.ranks):
        environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": case.ranks}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        ranks.append(
            subprocess.Popen(
                command,
                env=os.environ | {key: str(value) for key, value in environment.items()},
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    outputs = [process.communicate()[0] for process in ranks]
    if any(process.returncode for process in ranks):
        raise RuntimeError(f"{name}: a rank ended with an error, printed above")
    return json.loads(outputs[0].splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", help="only cases whose name holds this")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--measure", default="alive", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        torch.set_num_threads(1)
        print(json.dumps(measure(cases()[options.one], options.measure)))
        return
    on_gpu = torch.cuda.is_available()
    measured = "predicted | allocated" if on_gpu else "predicted | alive | predicted | resident"
    print(f"| case | peak at | {measured} |" + ("" if on_gpu else " resident as trained |"))
    print("|---|---|" + "---:|" * (2 if on_gpu else 5))
    for name, case in cases().items():
        if options.case is None or options.case in name:
            print("| " + " | ".join(row(name, case, on_gpu)) + " |", flush=True)


def row(name: str, case: Case, on_gpu: bool) -> list[str]:
    """Of the table, in MB. Several ranks share pages, so their resident sets say nothing."""
    first = "allocated" if on_gpu else "alive"
    cells = [name, predicted(case, on_gpu=on_gpu, whole_buckets=True).moment]
    cells += compared(name, case, first, on_gpu=on_gpu, whole_buckets=True)
    if on_gpu:
        return cells
    if case.ranks > 1:
        return cells + ["-"] * 3
    cells += compared(name, case, "resident", on_gpu=False, whole_buckets=False)
    return [*cells, f"{in_fresh_processes(name, case, 'as trained') / 1e6:,.0f}"]


def compared(name: str, case: Case, what: str, *, on_gpu: bool, whole_buckets: bool) -> list[str]:
    expected = predicted(case, on_gpu=on_gpu, whole_buckets=whole_buckets)
    total = expected.peak + (0 if on_gpu else expected.host)  # a CPU is its own host
    found = in_fresh_processes(name, case, what)
    error = total / found - 1
    mark = "" if abs(error) <= BAR else " **over**"
    return [f"{total / 1e6:,.0f}", f"{found / 1e6:,.0f} ({error:+.1%}{mark})"]


if __name__ == "__main__":
    main()
