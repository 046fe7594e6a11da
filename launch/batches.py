"""From a dataset and an order to the batches of one rank, as torch tensors.

The order is a pure function of (seed, step): resuming needs no state, and any number of ranks sees
the same global batches.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data_prep.blend import Blend, BlendSampler
from data_prep.dataset import RowBatch
from data_prep.sampler import Sampler, SubsetSampler
from launch.config import RunConfig
from launch.datasets import Dataset, open_split

# Evaluations read the same rows in every run of every study, whatever the run's seed.
EVALUATION_SEED = 0


@dataclass(frozen=True)
class Batch:
    """B rows: `tokens` [B, S] int64, `kinds` [B, S] uint8, `counted` [B, S] bool (in the loss).

    `counted` is None where every token of the domain counts.
    """

    tokens: Tensor
    kinds: Tensor
    counted: Tensor | None

    def rows(self, where: slice) -> "Batch":
        counted = None if self.counted is None else self.counted[where]
        return Batch(self.tokens[where], self.kinds[where], counted)

    @property
    def count(self) -> Tensor:
        """How many tokens count, as a tensor on the batch's device."""
        if self.counted is None:
            return torch.tensor(self.tokens.numel(), device=self.tokens.device)
        return self.counted.sum()


def open_dataset(data: Path, split: str, config: RunConfig) -> Dataset:
    """Open a split for a run. Raises `ValueError` where it is another domain's or cannot serve."""
    dataset = open_split(config, data, split)
    found = (dataset.domain.name, dataset.domain.seq_length, dataset.domain.vocab_size)
    wanted = (config.domain, config.shape.seq_length, config.shape.vocab_size)
    if found != wanted:
        raise ValueError(
            f"{data}: holds domain {found[0]} (rows of {found[1]} tokens, vocabulary {found[2]}); "
            f"wanted {wanted[0]} ({wanted[1]}, {wanted[2]}), which run {config.run_id} trains on. "
            "Give the folder of that dataset, or another study."
        )
    return dataset


class TrainingBatches:
    """The training rows of one rank, by step."""

    def __init__(self, dataset: Dataset, config: RunConfig, rank: int, world_size: int) -> None:
        self._dataset = dataset
        self._sampler: Sampler | BlendSampler | SubsetSampler
        unique = config.data.unique_tokens
        self._sampler = _subset(dataset, config, unique) if unique else _order(dataset, config.seed)
        self._batch_size = config.batch.train_batch_size
        self._rank, self._world_size = rank, world_size

    def at(self, step: int, device: torch.device) -> Batch:
        """This rank's share of the global batch of `step` (0 for the first)."""
        rows = self._sampler.rows_for(step, self._batch_size, self._rank, self._world_size)
        return _as_torch(self._dataset, rows, device)


def _order(dataset: Dataset, seed: int) -> Sampler | BlendSampler:
    if isinstance(dataset, Blend):
        sizes = [each.num_rows for each in dataset.datasets]
        return BlendSampler(sizes, dataset.sampler.shares, seed)
    return Sampler(dataset.num_rows, seed)


def _subset(dataset: Dataset, config: RunConfig, unique_tokens: int) -> SubsetSampler:
    rows = unique_tokens // config.shape.seq_length
    if not 1 <= rows <= dataset.num_rows:
        raise ValueError(
            f"{config.run_id}: data.unique_tokens = {unique_tokens:,} are {rows:,} rows of "
            f"{config.shape.seq_length} tokens; wanted 1 to {dataset.num_rows:,}, which the training split "
            "holds. Change data.unique_tokens, or build a larger dataset."
        )
    return SubsetSampler(dataset.num_rows, rows, config.seed)


def evaluation_rows(dataset: Dataset, count: int) -> np.ndarray:
    """A fixed random choice of `count` rows (all, if there are fewer), sorted.

    Of a blend by its weights; where a small dataset has no more rows, there are fewer than `count`.
    """
    order = _order(dataset, EVALUATION_SEED)
    if isinstance(order, BlendSampler):
        return np.sort(order.distinct_rows(count))
    return np.sort(order.rows(0, min(count, dataset.num_rows)))


def evaluation_batch(dataset: Dataset, rows: np.ndarray, device: torch.device) -> Batch:
    return _as_torch(dataset, rows, device)


def _as_torch(dataset: Dataset, rows: np.ndarray, device: torch.device) -> Batch:
    batch: RowBatch = dataset.rows(rows)
    in_loss = np.array([kind.in_loss for kind in dataset.domain.kinds])
    return Batch(
        tokens=torch.from_numpy(batch.tokens.astype(np.int64)).to(device),
        kinds=torch.from_numpy(batch.kinds).to(device),
        counted=None if in_loss.all() else torch.from_numpy(in_loss[batch.kinds]).to(device),
    )
