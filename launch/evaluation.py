"""The loss on held-out rows: in all, by kind of token, by position.

Every rank takes every world-size-th batch; the sums are added over ranks before any mean is taken,
so the result does not depend on how many ranks there are beyond rounding in float64.
"""

from typing import Any

import numpy as np
import torch

from launch.batches import evaluation_batch
from launch.datasets import Dataset
from launch.engine import Engine
from megatron_ext.loss import LossSums
from megatron_ext.parallel import data_parallel_rank


def evaluate(engine: Engine, dataset: Dataset, rows: np.ndarray) -> LossSums:
    """Sum the loss of `rows` (row numbers) over all ranks. Collective."""
    domain = dataset.domain
    sums = LossSums.zeros(len(rows), len(domain.kinds), domain.seq_length, engine.device)
    size, rank = engine.micro_batch, data_parallel_rank()
    for start in range(rank * size, len(rows), engine.world_size * size):
        where = slice(start, min(start + size, len(rows)))
        batch = evaluation_batch(dataset, rows[where], engine.device)
        losses = engine.losses(batch)
        counted = (
            torch.ones_like(losses, dtype=torch.bool) if batch.counted is None else batch.counted
        )
        sums.add(where, losses, batch.kinds, counted)
    engine.add_over_ranks(sums.tensors())
    return sums


def evaluation_table(sums: LossSums, dataset: Dataset, **progress: Any) -> list[dict]:
    """Rows for /eval: the objective first, then each kind of token that occurs.

    `progress` fills the columns step, tokens, flops and flops_exact.
    """
    loss, error = sums.mean()
    common = {**progress, "split": dataset.split, "num_rows": len(sums.count_R)}
    table = [
        {
            **common,
            "kind": "loss",
            "loss": loss,
            "standard_error": error,
            "num_tokens": int(sums.count_R.sum()),
        }
    ]
    for kind, total, count in zip(
        dataset.domain.kinds, sums.kind_sum.tolist(), sums.kind_count.tolist(), strict=True
    ):
        if count and len(dataset.domain.kinds) > 1:
            table.append(
                {
                    **common,
                    "kind": kind.kind,
                    "loss": total / count,
                    "standard_error": float("nan"),  # kept for the objective alone
                    "num_tokens": int(count),
                }
            )
    return table


def position_means(sums: LossSums) -> tuple[np.ndarray, np.ndarray]:
    """Mean loss and number of counted tokens at each position [seq_length]; NaN where none is."""
    count = sums.position_count_S.cpu().numpy()
    total = sums.position_sum_S.cpu().numpy()
    mean = np.full(len(count), np.nan)
    np.divide(total, count, out=mean, where=count > 0)
    return mean, count.astype(np.int64)
