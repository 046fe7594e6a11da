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
from data_prep.domain import Domain, family
from data_prep.sampler import Sampler, SubsetSampler
from launch.config import Blanked, RunConfig
from launch.datasets import Dataset, open_split

# Of so many samples in a row a share is blanked exactly; `_OTHER` sets their choice apart from the order of the rows.
BLANKING_BLOCK = 10_000
_OTHER = 1 << 32
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

    @property
    def counted_kinds(self) -> Tensor:
        """The kind of each counted token [K] int64, in the order of the model's losses: by position, then by row."""
        kinds = self.kinds.T.flatten().long()
        return kinds if self.counted is None else kinds[self.counted.T.flatten()]


def open_dataset(data: Path, split: str, config: RunConfig) -> Dataset:
    """Open a split for a run. Raises `ValueError` where it is another domain's or cannot serve."""
    dataset = open_split(config, data, split)
    found = (dataset.domain.name, dataset.domain.seq_length, dataset.domain.vocab_size)
    wanted = (config.domain, config.shape.row_length, config.shape.vocab_size)
    if found != wanted:
        raise ValueError(
            f"{data}: holds domain {found[0]} (rows of {found[1]} tokens, vocabulary {found[2]}); "
            f"wanted {wanted[0]} ({wanted[1]}, {wanted[2]}), which run {config.run_id} trains on. "
            "Give the folder of that dataset, or another study."
        )
    refuse_other_classes(dataset, data, config)
    return dataset


def refuse_other_classes(dataset: Dataset, data: Path, config: RunConfig) -> None:
    """Raise `ValueError` where a dataset of labelled pictures has another number of classes than the model of `config`,
    or does not say."""
    if dataset.domain.labelled and len(dataset.classes) != config.shape.classes:
        found = f"{len(dataset.classes)} classes" if dataset.classes else "no names of its classes"
        raise ValueError(
            f"{data}: holds {found}; wanted model.classes = {config.shape.classes}, as {config.run_id} has. Correct "
            "model.classes in the study, or give the folder of a dataset of so many."
        )


class TrainingBatches:
    """The training rows of one rank, by step."""

    def __init__(self, dataset: Dataset, config: RunConfig, rank: int, world_size: int) -> None:
        self._dataset = dataset
        self._sampler: Sampler | BlendSampler | SubsetSampler
        unique = config.data.unique_tokens
        self._sampler = _subset(dataset, config, unique) if unique else _order(dataset, config.seed)
        self._blanked = config.data.blanked
        self._blanking = Sampler(BLANKING_BLOCK, config.seed + _OTHER)
        self._share = (config.batch.train_batch_size, rank, world_size)

    def at(self, step: int, device: torch.device) -> Batch:
        """This rank's share of the global batch of `step` (0 for the first)."""
        rows = self._dataset.rows(self._sampler.rows_for(step, *self._share))
        if self._blanked:
            rows = self._with_blanks(rows, self._blanked, step)
        return _as_torch(rows, self._dataset.domain, device)

    def _with_blanks(self, rows: RowBatch, blanked: Blanked, step: int) -> RowBatch:
        """Which samples are blanked is a pure function of (seed, sample), as the order is."""
        chosen = self._blanking.rows_for(step, *self._share) < blanked.share * BLANKING_BLOCK
        the_domain = self._dataset.domain
        tokens, kinds = family(the_domain.name).blank(
            the_domain, rows.tokens, rows.kinds, blanked.part
        )
        return RowBatch(
            np.where(chosen[:, None], tokens, rows.tokens),
            np.where(chosen[:, None], kinds, rows.kinds),
        )


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
    return _as_torch(dataset.rows(rows), dataset.domain, device)


def _as_torch(batch: RowBatch, the_domain: Domain, device: torch.device) -> Batch:
    in_loss = np.array([kind.in_loss for kind in the_domain.kinds])
    return Batch(
        tokens=torch.from_numpy(batch.tokens.astype(np.int64)).to(device),
        kinds=torch.from_numpy(batch.kinds).to(device),
        counted=None if in_loss.all() else torch.from_numpy(in_loss[batch.kinds]).to(device),
    )
