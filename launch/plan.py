"""What a study will train, how, and what it costs, before anything costs money. No torch."""

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
STEP_BYTES = 128  # of one step in metrics.h5
POSITION_BYTES = 12  # of one token's place at one evaluation there


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
    every = run.checkpoint.keep_every
    kept = (
        run.checkpoint.keep_last + len(run.keep_steps) + (run.train_steps // every if every else 0)
    )
    measured = STEP_BYTES * run.train_steps
    measured += (
        POSITION_BYTES
        * run.shape.row_length
        * len(run.evaluation.splits)
        * len(run.evaluation_steps())
    )
    state = STATE_BYTES[run.precision] * run.shape.params_total
    return (kept + 1) * (state + measured) + measured


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
