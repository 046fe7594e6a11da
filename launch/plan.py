"""What a study will train, how, and what it costs, before anything costs money. No torch."""

import math
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from data_prep.blend import Blend
from launch.config import RunConfig
from launch.datasets import Dataset, open_split
from launch.devices import GPUS, Device
from launch.planner import GPUS_PER_NODE, Plan, choose

DEVICE = GPUS["h100"]  # that a plan is for if nobody says
COLUMNS = (
    "run", "N", "with head", "total", "tokens", "steps", "6ND", "exact FLOPs", "peak LR", "disk",
)  # fmt: skip
CHOSEN = ("TP", "ZeRO", "micro-batch", "accumulate", "recompute", "memory", "hours")
# Of one parameter in a checkpoint: weights, moments, and in bf16 or with ZeRO the master weights.
STATE_BYTES = {"bf16": 14, "fp32": 16}
# Of metrics.h5, which grows by chunks: what a row takes, and how many rows a chunk has at the most (`launch.results`,
# and what h5py chooses for tables of two dimensions). docs/planning.md: how near it comes.
EMPTY_BYTES = 24_000  # configuration, provenance, indices
SPLIT_BYTES = 16_000  # the steps of a split's evaluations, and indices
STEP_BYTES, STEPS_TOGETHER = 128, 512  # with the gradient noise scale
KIND_BYTES, KINDS_TOGETHER = 96, 512  # one kind of token at one evaluation
MOST_KINDS = 5  # the loss, and up to four kinds of token
POSITION_BYTES = 12  # one token's place at one evaluation
EVALUATIONS_TOGETHER, WIDE = 64, 256  # in rows of at least so many tokens; in shorter ones more
# In a checkpoint beside its numbers: names and headers of tensors. Measured: 22 kB with a layer, 130 kB with 8.
FILES_BYTES, LAYER_BYTES = 10_000, 16_000


def print_plan(
    runs: Sequence[RunConfig],
    data: Path | None,
    device: Device = DEVICE,
    gpus: int = 1,
    gpus_per_node: int = GPUS_PER_NODE,
) -> None:
    """Print a table of the runs and their sums to stdout.

    Raises `ValueError` after the table where a run fits no strategy; it names every such run.
    """
    dataset = None if data is None else open_split(runs[0], data, "train")
    hours = "GPU-hours" if device.is_gpu else "CPU-hours"
    columns = [*COLUMNS, *CHOSEN[:-1], hours] + (["epochs"] if dataset else [])
    table = Table(*columns, box=None, pad_edge=False)
    refusals, total = [], 0.0
    for run in runs:
        try:
            plan = choose(run, device, gpus, gpus_per_node)
            total += plan.device_hours(run.train_steps)
        except ValueError as error:
            plan = None
            refusals.append(str(error))
        row = [*_counts(run), *_strategy(run, plan)]
        table.add_row(*row, *([_epochs(dataset, run)] if dataset else []))
    # Wide enough for every column: a table that is piped must not be cut at 80.
    Console(width=280, soft_wrap=True).print(table)
    print(
        f"{len(runs)} runs, {sum(run.tokens for run in runs):.3g} tokens, "
        f"{sum(run.flops for run in runs):.2e} FLOPs (6ND), "
        f"{sum(run.flops_exact for run in runs):.2e} exact, "
        f"up to {_gigabytes(sum(disk_bytes(run) for run in runs))} of disk, "
        f"{total:.3g} {hours} on {gpus} {device.name}"
    )
    for start in dict.fromkeys(run.start for run in runs):
        if start is not None:
            begun = sum(run.start == start for run in runs)
            variant = f", variant '{start.variant}'" if start.variant else ""
            print(
                f"{begun} of {len(runs)} runs start from the weights of the run of their sizes in study "
                f"'{start.study}'{variant}, below the same --results: train that first"
            )
    if refusals:
        raise ValueError("\n".join(dict.fromkeys(refusals)))


def disk_bytes(run: RunConfig) -> float:
    """Of a run's folder at its largest: the checkpoints that are kept, one that is being written, and `metrics.h5`,
    of which each checkpoint holds a copy."""
    state = STATE_BYTES[run.precision] * run.shape.params_total
    state += FILES_BYTES + LAYER_BYTES * run.shape.num_layers
    measured = measured_bytes(run)
    return (kept_checkpoints(run) + 1) * (state + measured) + measured


def kept_checkpoints(run: RunConfig) -> int:
    """How many a run leaves, at the most."""
    every = run.checkpoint.keep_every
    along = run.train_steps // every if every else 0
    return run.checkpoint.keep_last + len(run.keep_steps) + along


def measured_bytes(run: RunConfig) -> float:
    """Of `metrics.h5` at the most. It grows by whole chunks (HDF5), so the first row takes as much as many."""
    splits, evaluations = len(run.evaluation.splits), len(run.evaluation_steps())
    width = run.shape.row_length
    steps = STEP_BYTES * _whole(run.train_steps, STEPS_TOGETHER)
    kinds = KIND_BYTES * _whole(MOST_KINDS * splits * evaluations, KINDS_TOGETHER)
    together = EVALUATIONS_TOGETHER * math.ceil(WIDE / width)
    positions = POSITION_BYTES * width * splits * _whole(evaluations, together)
    return EMPTY_BYTES + SPLIT_BYTES * splits + steps + kinds + positions


def _whole(rows: int, together: int) -> int:
    """So many rows in chunks of `together`."""
    return math.ceil(rows / together) * together


def _counts(run: RunConfig) -> list[str]:
    return [
        run.run_id,
        f"{run.shape.params_non_embedding:.3g}",
        f"{run.shape.params_non_embedding_and_head:.3g}",
        f"{run.shape.params_total:.3g}",
        f"{run.tokens:.3g}",
        f"{run.train_steps}",
        f"{run.flops:.2e}",
        f"{run.flops_exact:.2e}",
        f"{run.peak_learning_rate:.3g}",
        _gigabytes(disk_bytes(run)),
    ]


def _strategy(run: RunConfig, plan: Plan | None) -> list[str]:
    if plan is None:
        return ["-"] * len(CHOSEN)
    parallel = plan.parallel
    offload = "+offload" if parallel.offload_optimizer else ""
    return [
        f"{parallel.tensor_model_parallel_size}" + ("+SP" if parallel.sequence_parallel else ""),
        f"{parallel.zero_stage}{offload}",
        f"{parallel.train_micro_batch_size_per_gpu}",
        f"{plan.micro_batches}",
        "yes" if parallel.activation_checkpointing else "no",
        _gigabytes(plan.bytes),
        f"{plan.device_hours(run.train_steps):.3g}",
    ]


def _epochs(dataset: Dataset, run: RunConfig) -> str:
    """How often the run goes through its data; of a blend, through each dataset."""
    if isinstance(dataset, Blend):
        samples = run.tokens // run.shape.seq_length
        return " / ".join(f"{epochs:.2f}" for epochs in dataset.sampler.epochs(samples))
    return f"{run.tokens / (run.data.unique_tokens or dataset.num_tokens):.2f}"


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.3g}GB"
