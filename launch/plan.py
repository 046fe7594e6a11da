"""What a study will train, before anything costs money. No torch."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from data_prep.blend import Blend
from launch.config import RunConfig
from launch.datasets import Dataset, open_split

# Weights, gradients and the two moments of Adam; with bf16, weights and gradients are half as
# large and fp32 master weights are added: 16 bytes either way (Rajbhandari et al. 2020, section 3).
STATE_BYTES_PER_PARAMETER = 16


def print_plan(runs: Sequence[RunConfig], data: Path | None) -> None:
    """Print a table of the runs and their sums to stdout."""
    dataset = None if data is None else open_split(runs[0], data, "train")
    columns = ["run", "N", "with head", "total", "tokens", "steps", "6ND", "exact FLOPs", "peak LR"]
    columns += ["ZeRO", "model state"] + (["epochs"] if dataset else [])
    table = Table(*columns, box=None, pad_edge=False)
    for run in runs:
        row = [
            run.run_id,
            f"{run.shape.params_non_embedding:.3g}",
            f"{run.shape.params_non_embedding_and_head:.3g}",
            f"{run.shape.params_total:.3g}",
            f"{run.tokens:.3g}",
            f"{run.train_steps}",
            f"{run.flops:.2e}",
            f"{run.flops_exact:.2e}",
            f"{run.peak_learning_rate:.3g}",
            f"{run.parallel.zero_stage}",
            _bytes(run.shape.params_total * STATE_BYTES_PER_PARAMETER),
        ]
        table.add_row(*row, *([_epochs(dataset, run)] if dataset else []))
    # Wide enough for every column: a table that is piped must not be cut at 80.
    Console(width=220, soft_wrap=True).print(table)
    print(
        f"{len(runs)} runs, {sum(run.tokens for run in runs):.3g} tokens, "
        f"{sum(run.flops for run in runs):.2e} FLOPs (6ND), "
        f"{sum(run.flops_exact for run in runs):.2e} exact"
    )


def _epochs(dataset: Dataset, run: RunConfig) -> str:
    """How often the run goes through its data; of a blend, through each dataset."""
    if isinstance(dataset, Blend):
        samples = run.tokens // run.shape.seq_length
        return " / ".join(f"{epochs:.2f}" for epochs in dataset.sampler.epochs(samples))
    return f"{run.tokens / dataset.num_tokens:.2f}"


def _bytes(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
