"""The loss on held-out rows: in all, by kind of token, by position, by document.

Every rank takes every world-size-th batch; the sums are added over ranks before any mean is taken,
so the result does not depend on how many ranks there are beyond rounding in float64.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data_prep.dataset import TokenDataset
from data_prep.domain import Domain
from launch.batches import Batch, evaluation_batch
from launch.datasets import Dataset
from megatron_ext.loss import LossSums
from megatron_ext.parallel import data_parallel_rank

PERCENTILES = (1, 5, 20, 50, 80, 95, 99)  # Henighan et al. 2020, Figure 10


class Model(Protocol):
    """What can be evaluated: a training engine, or a trained model alone."""

    device: torch.device
    world_size: int
    micro_batch: int

    def losses(self, batch: Batch) -> Tensor:
        """The loss of every token [B, S], in nats."""

    def add_over_ranks(self, tensors: tuple[Tensor, ...]) -> None:
        """Sum each tensor over the data-parallel ranks, in place."""


class Sums(Protocol):
    """What the losses of an evaluation are added up in; `megatron_ext.loss.LossSums` is one."""

    def add(self, rows: slice, losses_BS: Tensor, kinds_BS: Tensor, counted_BS: Tensor) -> None:
        """Add a batch: loss, kind and mask of every token of the evaluation's rows `rows`."""

    def tensors(self) -> tuple[Tensor, ...]:
        """What is to be added over ranks."""


@dataclass(frozen=True)
class DocumentSums:
    """Sums over the documents that lie whole in an evaluated row: loss and number of counted tokens, float64 [n].

    `row` is the place of the row in the evaluation, sorted; the document is its tokens `start` to `stop`.
    """

    row: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    loss_sum: Tensor
    count: Tensor

    @staticmethod
    def of(dataset: TokenDataset, rows: np.ndarray, device: torch.device) -> "DocumentSums":
        """No loss yet."""
        row, start, stop = dataset.documents(rows)
        sums = (torch.zeros(len(row), dtype=torch.float64, device=device) for _ in range(2))
        return DocumentSums(row, start, stop, *sums)

    @staticmethod
    def of_rows(sums: LossSums, length: int) -> "DocumentSums":
        """Where each row is one document: what has been added up already."""
        row = np.arange(len(sums.count_R))
        begin = np.zeros_like(row)
        return DocumentSums(row, begin, begin + length, sums.loss_sum_R, sums.count_R)

    def add(self, rows: slice, losses_BS: Tensor, kinds_BS: Tensor, counted_BS: Tensor) -> None:
        """Add a batch; see `Sums`."""
        own = slice(*np.searchsorted(self.row, (rows.start, rows.stop)).tolist())
        row, start, stop = (
            torch.from_numpy(each[own]).to(losses_BS.device)
            for each in (self.row - rows.start, self.start, self.stop)
        )
        for total, values in (
            (self.loss_sum, losses_BS.double() * counted_BS),
            (self.count, counted_BS.double()),
        ):
            so_far = F.pad(values.cumsum(1), (1, 0))
            total[own] += so_far[row, stop] - so_far[row, start]

    def tensors(self) -> tuple[Tensor, ...]:
        return self.loss_sum, self.count


def evaluate(model: Model, dataset: Dataset, rows: np.ndarray, *beside: Sums) -> LossSums:
    """Sum the loss of `rows` (row numbers) over all ranks, in all and in each of `beside`. Collective."""
    domain = dataset.domain
    sums = LossSums.zeros(len(rows), len(domain.kinds), domain.seq_length, model.device)
    size, rank = model.micro_batch, data_parallel_rank()
    for start in range(0, len(rows), model.world_size * size):
        first = min(start + rank * size, len(rows))
        where = slice(first, min(first + size, len(rows)))
        idle = where.start == where.stop
        batch = evaluation_batch(dataset, rows[:1] if idle else rows[where], model.device)
        losses = model.losses(batch)  # under ZeRO 3 all ranks together, those without rows too
        if idle:
            continue
        counted = (
            torch.ones_like(losses, dtype=torch.bool) if batch.counted is None else batch.counted
        )
        for each in (sums, *beside):
            each.add(where, losses, batch.kinds, counted)
    for each in (sums, *beside):
        model.add_over_ranks(each.tensors())
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
        if count and len(dataset.domain.kinds) > 1 and kind.kind not in dataset.domain.only_read:
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
    return _ratio(sums.position_sum_S.cpu().numpy(), count), count.astype(np.int64)


def folded_means(sums: LossSums, domain: Domain) -> dict[str, np.ndarray]:
    """The loss by position as the domain's grid has it: "pixel" [rows, columns], the mean over
    colours and frames; "frame" [frames], over what is in a frame. Nothing for plain positions."""
    axes = [axis for axis, _ in domain.grid]
    sizes = [size for _, size in domain.grid]
    folded = {}
    for name, kept in (("pixel", ("row", "column")), ("frame", ("frame",))):
        if set(kept) <= set(axes):
            others = tuple(number for number, axis in enumerate(axes) if axis not in kept)
            total, count = (
                each.cpu().numpy().reshape(sizes).sum(others)
                for each in (sums.position_sum_S, sums.position_count_S)
            )
            folded[name] = _ratio(total, count)
    return folded


def percentiles(loss_sum: np.ndarray, count: np.ndarray) -> np.ndarray:
    """`PERCENTILES` of the mean losses of documents that have a counted token; NaN without any."""
    known = count > 0
    if not known.any():
        return np.full(len(PERCENTILES), np.nan)
    return np.percentile(loss_sum[known] / count[known], PERCENTILES)


def improvements(
    before: tuple[np.ndarray, np.ndarray], after: tuple[np.ndarray, np.ndarray]
) -> dict[str, np.ndarray]:
    """How much less each document's mean loss is after than before, `difference` in nats per token
    and `ratio` before / after (Henighan et al. 2020, Figure 20); NaN for one without a counted token.

    Each argument: loss sums and counts of the same documents.
    """
    first, last = (_ratio(total, count) for total, count in (before, after))
    return {"difference": first - last, "ratio": _ratio(first, last)}


def _ratio(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    mean = np.full(np.shape(count), np.nan)
    np.divide(total, count, out=mean, where=np.asarray(count) > 0)
    return mean
