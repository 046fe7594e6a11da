"""What a study will train, before anything costs money. No torch."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from launch.config import RunConfig
from launch.datasets import open_split

# Weights, gradients and the two moments of Adam; with bf16, weights and gradients are half as
# large and fp32 master weights are added: 16 bytes either way (Rajbhandari et al. 2020, section 3).
STATE_BYTES_PER_PARAMETER = 16


def print_plan(runs: Sequence[RunConfig], data: Path | None) -> None:
    """Print a table of the runs and their sums to stdout."""
    available = None
    if data is not None:
        available = open_split(runs[0], data, "train").num_tokens
    columns = ["run", "N", "with head", "total", "tokens", "steps", "6ND", "exact FLOPs", "peak LR"]
    columns += ["ZeRO", "model state"] + (["epochs"] if available else [])
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
        table.add_row(*row, *([f"{run.tokens / available:.2f}"] if available else []))
    # Wide enough for every column: a table that is piped must not be cut at 80.
    Console(width=220, soft_wrap=True).print(table)
    print(
        f"{len(runs)} runs, {sum(run.tokens for run in runs):.3g} tokens, "
        f"{sum(run.flops for run in runs):.2e} FLOPs (6ND), "
        f"{sum(run.flops_exact for run in runs):.2e} exact"
    )


def _bytes(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
