"""Which row comes next: a shuffle without state.

Sample number i of a run is row `Sampler.rows(i, 1)`: a pure function of (number of rows, seed, i). Nothing needs to be
saved but a step number, and any number of ranks sees the same global batch.

Each epoch is its own permutation of the rows: a Feistel network (a bijection whatever its round function) over the
smallest 2^(2k) that holds the rows, applied again to whatever falls outside ("cycle walking"; Black and Rogaway 2002).
A change of anything here changes the order of every run: old runs could not be resumed. A test holds golden values.
"""

from dataclasses import dataclass

import numpy as np

ROUNDS = 8
CHOICE = -1  # in place of an epoch: the permutation that says which rows are in a subset
# SplitMix64's increment and multipliers (Steele, Lea, Flood 2014): an integer hash with good avalanche.
_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLY = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Sampler:
    """A shuffle of `num_rows` rows, another one in each epoch, keyed by `seed`."""

    num_rows: int
    seed: int

    def __post_init__(self) -> None:
        if not 1 <= self.num_rows < 1 << 62:
            raise ValueError(
                f"num_rows = {self.num_rows}: wanted 1 to 2^62 rows. Build a dataset that holds some."
            )

    def rows(self, first: int, count: int) -> np.ndarray:
        """Row numbers, int64 [count], of the samples first, first + 1, ...; epoch = sample // num_rows."""
        if first < 0 or count < 0:
            raise ValueError(
                f"first = {first}, count = {count}: wanted both >= 0. Samples are numbered from 0."
            )
        result = np.empty(count, np.int64)
        done = 0
        while done < count:
            epoch, inside = divmod(first + done, self.num_rows)
            take = min(count - done, self.num_rows - inside)
            positions = np.arange(inside, inside + take, dtype=np.uint64)
            result[done : done + take] = _permute(positions, self.num_rows, self.seed, epoch)
            done += take
        return result

    def rows_for(
        self, step: int, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> np.ndarray:
        """This rank's slice, int64 [batch_size / world_size], of the global batch of `step` (steps count from 0).

        The slices of all ranks, in order, are the same global batch for any world size.
        """
        return self.rows(*rank_share(step, batch_size, rank, world_size))


@dataclass(frozen=True)
class SubsetSampler:
    """A shuffle of `count` of `num_rows` rows, another one in each epoch, keyed by `seed`.

    The rows are the first `count` of one permutation of all that is keyed by `seed`, so a larger count holds the
    rows of every smaller one.
    """

    num_rows: int
    count: int
    seed: int

    def __post_init__(self) -> None:
        if not 1 <= self.count <= self.num_rows:
            raise ValueError(
                f"count = {self.count} of {self.num_rows} rows: wanted at least one, and no more than there are. "
                "Choose fewer, or build a larger dataset."
            )

    def rows(self, first: int, count: int) -> np.ndarray:
        """Row numbers, int64 [count], of the samples first, first + 1, ...; epoch = sample // self.count."""
        places = Sampler(self.count, self.seed).rows(first, count)
        return _permute(places.astype(np.uint64), self.num_rows, self.seed, CHOICE)

    def rows_for(
        self, step: int, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> np.ndarray:
        """This rank's slice, int64 [batch_size / world_size], of the global batch of `step`, as in `Sampler`."""
        return self.rows(*rank_share(step, batch_size, rank, world_size))


def rank_share(step: int, batch_size: int, rank: int, world_size: int) -> tuple[int, int]:
    """(first sample, how many) of this rank in the global batch of `step`; ValueError where it does not divide."""
    if batch_size < 1 or world_size < 1 or batch_size % world_size or not 0 <= rank < world_size:
        raise ValueError(
            f"batch_size = {batch_size}, rank = {rank}, world_size = {world_size}: wanted a batch that divides "
            f"evenly among the ranks, and 0 <= rank < world_size. Choose a batch size that is a multiple of "
            f"{max(world_size, 1)}."
        )
    share = batch_size // world_size
    return step * batch_size + rank * share, share


def _permute(positions: np.ndarray, size: int, seed: int, epoch: int) -> np.ndarray:
    """Where each position (uint64 [n], all < size) goes under the permutation of (seed, epoch)."""
    # At least 2^4 places; with 8 rounds even 3 or 4 rows come in every order equally often (tests).
    half_bits = max(2, ((size - 1).bit_length() + 1) // 2)
    keys = _round_keys(seed, epoch)
    result = _feistel(positions, half_bits, keys)
    outside = np.flatnonzero(result >= np.uint64(size))
    while outside.size:
        result[outside] = _feistel(result[outside], half_bits, keys)
        outside = outside[result[outside] >= np.uint64(size)]
    return result.astype(np.int64)


def _feistel(values: np.ndarray, half_bits: int, keys: list[int]) -> np.ndarray:
    """One pass of the network over uint64 values below 2^(2 half_bits)."""
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right + np.uint64(key)) & mask)
    return (left << shift) | right


def _mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser on uint64 values (arithmetic wraps at 2^64 on purpose)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(_MULTIPLY[0])
    values = (values ^ (values >> np.uint64(27))) * np.uint64(_MULTIPLY[1])
    return values ^ (values >> np.uint64(31))


def _round_keys(seed: int, epoch: int) -> list[int]:
    """ROUNDS keys for one epoch: hashes of (seed, epoch, round), as Python ints below 2^64."""
    state = _mix_int(_mix_int(seed & _MASK) ^ (epoch & _MASK))
    return [_mix_int((state + number * _GOLDEN) & _MASK) for number in range(1, ROUNDS + 1)]


def _mix_int(value: int) -> int:
    """SplitMix64's step on one Python int."""
    value = (value + _GOLDEN) & _MASK
    value = ((value ^ (value >> 30)) * _MULTIPLY[0]) & _MASK
    value = ((value ^ (value >> 27)) * _MULTIPLY[1]) & _MASK
    return value ^ (value >> 31)
