"""Several datasets as one, each met in proportion to its weight: a shuffle without state, as in `data_prep/sampler.py`.

Sample number i of a run is row `BlendSampler.rows(i, 1)` of the datasets laid end to end: a pure function of (sizes,
weights, seed, i). Which dataset it comes from repeats in a cycle, because weights are fractions: 0.7, 0.2 and 0.1 make
a cycle of ten. Within it, the k-th turn of a dataset of share w lies in the window [floor((k-1) / w), ceil(k / w) - 1],
and of all whose window has begun the one that ends first has its turn. So after any number of samples no dataset is a
whole turn ahead or behind: |count - w n| < 1 ("P-fair", Baruah, Cohen, Plaxton, Varvel 1996; Tijdeman 1980 for the
bound). The rows of each dataset come in the order of its own `Sampler`; one that is used up begins its next epoch.
"""

import hashlib
import heapq
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from data_prep.dataset import RowBatch, TokenDataset
from data_prep.sampler import Sampler, rank_share

# The longest cycle, in samples: five decimals of weights that add up to 1. Longer ones would only cost memory.
MAX_CYCLE = 100_000


class BlendSampler:
    """The order of a blend of datasets with `sizes` rows each. `shares` are the exact fractions of all samples."""

    def __init__(
        self, sizes: Sequence[int], weights: Sequence[float | Fraction], seed: int
    ) -> None:
        self.shares = _shares(weights, len(sizes))
        self.num_rows = sum(sizes)
        self._samplers = [Sampler(size, seed) for size in sizes]
        self._starts = np.cumsum([0, *sizes], dtype=np.int64)
        cycle = math.lcm(*(share.denominator for share in self.shares))
        if cycle > MAX_CYCLE:
            near = _round(self.shares)
            raise ValueError(
                f"weights {_listed(weights)}: repeat only after {cycle} samples; wanted at most {MAX_CYCLE}. Give "
                f"fewer digits, for instance {_listed(near)}."
            )
        self._turns = np.array([int(share * cycle) for share in self.shares], np.int64)
        self._cycle = _cycle(self._turns.tolist())
        # How many turns its dataset has had before each place of the cycle.
        self._before = np.empty(cycle, np.int64)
        for number, turns in enumerate(self._turns):
            self._before[self._cycle == number] = np.arange(turns)

    def rows(self, first: int, count: int) -> np.ndarray:
        """Row numbers, int64 [count], of the samples first, first + 1, ...; dataset d's rows begin at the sum of the
        sizes before it."""
        if first < 0 or count < 0:
            raise ValueError(
                f"first = {first}, count = {count}: wanted both >= 0. Samples are numbered from 0."
            )
        rounds, places = np.divmod(
            np.arange(first, first + count, dtype=np.int64), len(self._cycle)
        )
        datasets = self._cycle[places]
        turns = rounds * self._turns[datasets] + self._before[places]
        result = np.empty(count, np.int64)
        for number in np.unique(datasets):
            # Samples in a row are turns in a row of each dataset.
            own = np.flatnonzero(datasets == number)
            found = self._samplers[number].rows(int(turns[own[0]]), len(own))
            result[own] = self._starts[number] + found
        return result

    def rows_for(
        self, step: int, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> np.ndarray:
        """This rank's slice, int64 [batch_size / world_size], of the global batch of `step`, as in `Sampler`."""
        return self.rows(*rank_share(step, batch_size, rank, world_size))

    def counts(self, samples: int) -> np.ndarray:
        """How many of the first `samples` samples come from each dataset, int64 [datasets]."""
        rounds, rest = divmod(samples, len(self._cycle))
        return rounds * self._turns + np.bincount(
            self._cycle[:rest], minlength=len(self._turns)
        ).astype(np.int64)

    def distinct_rows(self, count: int) -> np.ndarray:
        """Row numbers, int64, sorted, of about `count` samples of which no row comes twice: for evaluation, where
        repeats would make the standard error too small. Each dataset gives the rows of its first turns among `count`
        samples, or all that it has: then there are fewer, and the others weigh more."""
        taken = np.minimum(self.counts(count), np.diff(self._starts))
        rows = [
            start + sampler.rows(0, int(own))
            for start, sampler, own in zip(self._starts, self._samplers, taken, strict=False)
        ]
        return np.sort(np.concatenate(rows))

    def epochs(self, samples: int) -> tuple[float, ...]:
        """How often each dataset has been gone through after `samples` samples: 2.5 is halfway into the third time."""
        return tuple((self.counts(samples) / np.diff(self._starts)).tolist())


class Blend:
    """Datasets of one domain, read as one: `rows(sampler.rows(first, count))`. Looks like a `TokenDataset`.

    Its rows are those of the datasets laid end to end; `sampler` meets them by weight. `identity` is a digest of the
    datasets' identities and exact weights.
    """

    def __init__(
        self, datasets: Sequence[TokenDataset], weights: Sequence[float], seed: int
    ) -> None:
        _check_alike(datasets)
        self.datasets = tuple(datasets)
        self.sampler = BlendSampler([each.num_rows for each in datasets], weights, seed)
        self.domain, self.split = datasets[0].domain, datasets[0].split
        self.classes, self.codec = datasets[0].classes, datasets[0].codec
        self.num_rows = self.sampler.num_rows
        self.num_tokens = self.num_rows * self.domain.seq_length
        self._starts = np.cumsum([0, *(each.num_rows for each in datasets)], dtype=np.int64)
        parts = [
            f"{each.identity} {share}"
            for each, share in zip(datasets, self.sampler.shares, strict=True)
        ]
        self.identity = hashlib.sha256("\n".join(["blend", *parts]).encode()).hexdigest()

    def rows(self, indices: np.ndarray) -> RowBatch:
        """The rows numbered `indices` (int64 [B], any order, repeats allowed) of all datasets laid end to end."""
        indices = np.asarray(indices, np.int64)
        if indices.ndim != 1 or (
            indices.size and not 0 <= indices.min() <= indices.max() < self.num_rows
        ):
            raise ValueError(
                f"rows {indices!r} of a blend: wanted a one-dimensional array of numbers from 0 to "
                f"{self.num_rows - 1}. Ask for rows that exist."
            )
        numbers = np.searchsorted(self._starts, indices, side="right") - 1
        found = [
            (numbers == number, self.datasets[number].rows(indices[numbers == number] - start))
            for number, start in enumerate(self._starts[:-1])
        ]
        shape = (len(indices), self.domain.seq_length)
        tokens = np.empty(shape, np.result_type(*(batch.tokens.dtype for _, batch in found)))
        kinds = np.empty(shape, np.uint8)
        for own, batch in found:
            tokens[own], kinds[own] = batch.tokens, batch.kinds
        return RowBatch(tokens, kinds)


def _check_alike(datasets: Sequence[TokenDataset]) -> None:
    if not datasets:
        raise ValueError("a blend of 0 datasets: wanted at least one. Name the datasets to blend.")
    first = datasets[0]
    for number, each in enumerate(datasets):
        if (each.domain, each.split) != (first.domain, first.split):
            raise ValueError(
                f"dataset {number} of a blend: is split {each.split!r} of domain {each.domain.name}; wanted "
                f"{first.split!r} of {first.domain.name}, as dataset 0 is. Blend datasets of one domain only."
            )
        if each.codec != first.codec:
            raise ValueError(
                f"dataset {number} of a blend: its tokenizer or codebook has sha256 {each.codec[:16] or 'unknown'}; "
                f"wanted {first.codec[:16] or 'unknown'}, as dataset 0 has: equal ids must mean the same. Build both "
                f"with one file."
            )
        if each.classes != first.classes:
            raise ValueError(
                f"dataset {number} of a blend: has {len(each.classes)} classes, others or in another order than the "
                f"{len(first.classes)} of dataset 0; wanted the same in each: equal numbers must mean the same. Build "
                f"each from folders of the same names."
            )


def _shares(weights: Sequence[float | Fraction], datasets: int) -> tuple[Fraction, ...]:
    """The weights as exact fractions that add up to 1; 0.1 means a tenth, not the binary number next to it."""
    if len(weights) != datasets:
        raise ValueError(
            f"{len(weights)} weights for {datasets} datasets: wanted one for each. Give as many weights as datasets."
        )
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise ValueError(
            f"weights {_listed(weights)}: wanted finite numbers above 0. Leave out a dataset that shall not be used."
        )
    exact = [Fraction(str(weight)) for weight in weights]
    return tuple(weight / sum(exact) for weight in exact)


def _round(shares: Sequence[Fraction]) -> list[int]:
    """Whole numbers near the shares whose sum, so their cycle, is at most MAX_CYCLE."""
    spare = MAX_CYCLE - len(shares)
    return [1 + int(share * spare) for share in shares]


def _listed(weights: Sequence[float | Fraction]) -> str:
    shown = ", ".join(str(weight) for weight in weights[:8])
    return f"[{shown}, ...]" if len(weights) > 8 else f"[{shown}]"


def _cycle(turns: list[int]) -> np.ndarray:
    """Which dataset has its turn at each place of the cycle, int32 [sum(turns)]: earliest end of a window first."""
    length = sum(turns)
    begins: list[list[tuple[int, int]]] = [[] for _ in range(length)]
    for number, own in enumerate(turns):
        for turn in range(own):
            begins[turn * length // own].append((-(-(turn + 1) * length // own) - 1, number))
    ready: list[tuple[int, int]] = []
    places = np.empty(length, np.int32)
    for place in range(length):
        for window in begins[place]:
            heapq.heappush(ready, window)
        end, places[place] = heapq.heappop(ready)
        assert end >= place, "a dataset's turn came too late"
    return places
