import itertools

import numpy as np
import pytest

from data_prep.sampler import Sampler, SubsetSampler

GOLDEN_10 = [9, 7, 1, 4, 2, 5, 3, 8, 0, 6, 0, 6, 9, 4, 5, 3, 1, 2, 7, 8]
GOLDEN_MILLION = [364000, 841327, 579437, 916848, 634926, 958822, 662305, 719399]
GOLDEN_TRILLION = [747104872901, 95172163383, 746772155712]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 16, 17, 97, 255, 256, 257, 1000, 4096, 65537])
def test_every_epoch_is_a_permutation(size):
    sampler = Sampler(size, seed=3)
    for epoch in range(3):
        assert sorted(sampler.rows(epoch * size, size)) == list(range(size))


def test_large_sizes_stay_in_range_and_do_not_repeat():
    rows = Sampler(10**8, seed=1).rows(12345, 200_000)
    assert rows.min() >= 0
    assert rows.max() < 10**8
    assert len(np.unique(rows)) == len(rows)


def test_pure_function_of_the_index():
    sampler = Sampler(100, seed=5)
    whole = sampler.rows(0, 350)
    assert np.array_equal(whole[90:310], sampler.rows(90, 220)), "a range that crosses epochs"
    assert [int(sampler.rows(i, 1)[0]) for i in range(0, 350, 7)] == whole[::7].tolist()


def test_epochs_and_seeds_differ():
    orders = [
        tuple(Sampler(50, seed).rows(epoch * 50, 50)) for seed in range(4) for epoch in range(4)
    ]
    assert len(set(orders)) == len(orders)


def test_the_same_global_batch_for_any_number_of_ranks():
    sampler = Sampler(1000, seed=0)
    whole = sampler.rows_for(step=7, batch_size=12)
    assert np.array_equal(whole, sampler.rows(84, 12))
    for world_size in (2, 3, 4, 12):
        parts = [sampler.rows_for(7, 12, rank, world_size) for rank in range(world_size)]
        assert np.array_equal(np.concatenate(parts), whole)


def test_all_orders_of_four_rows_are_equally_likely():
    """Chi-squared over the 24 orders of 4 rows: 23 degrees of freedom, 99.99% below 58."""
    counts = dict.fromkeys(itertools.permutations(range(4)), 0)
    draws = 2400
    for seed in range(draws):
        counts[tuple(Sampler(4, seed).rows(0, 4).tolist())] += 1
    expected = draws / 24
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 58


def test_where_a_row_lands_is_uniform():
    """Over seeds, sample 0 of 1000 rows falls evenly into 10 bins (chi-squared, 9 degrees of freedom, 99.99%: 33.7)."""
    found = np.array([Sampler(1000, seed).rows(0, 1)[0] for seed in range(4000)])
    counts = np.bincount(found // 100, minlength=10)
    assert ((counts - 400) ** 2 / 400).sum() < 33.7


def test_neighbours_are_unrelated():
    rows = Sampler(100_003, seed=2).rows(0, 100_003).astype(float)
    assert abs(np.corrcoef(rows[:-1], rows[1:])[0, 1]) < 0.02


def test_golden_values():
    """If this fails, every run ever started can no longer be resumed or repeated: do not edit the numbers, undo the
    change of the sampler."""
    assert Sampler(10, seed=0).rows(0, 20).tolist() == GOLDEN_10
    assert Sampler(1_000_000, seed=42).rows(999_996, 8).tolist() == GOLDEN_MILLION
    assert Sampler(10**12, seed=-1).rows(5, 3).tolist() == GOLDEN_TRILLION


@pytest.mark.parametrize("size", [0, -1])
def test_no_rows_is_refused(size):
    with pytest.raises(ValueError, match=f"num_rows = {size}: wanted 1 to"):
        Sampler(size, 0)


def test_negative_index_is_refused():
    with pytest.raises(ValueError, match="first = -1, count = 2: wanted both >= 0"):
        Sampler(5, 0).rows(-1, 2)


@pytest.mark.parametrize(("batch", "rank", "world"), [(10, 0, 3), (4, 2, 2), (0, 0, 1), (4, -1, 2)])
def test_uneven_batch_or_bad_rank_is_refused(batch, rank, world):
    with pytest.raises(
        ValueError,
        match=f"batch_size = {batch}, rank = {rank}, world_size = {world}: wanted a batch",
    ):
        Sampler(5, 0).rows_for(0, batch, rank, world)


@pytest.mark.parametrize(("size", "count"), [(1, 1), (10, 10), (1000, 37), (10**12, 5)])
def test_a_subset_is_met_whole_in_every_epoch_and_nothing_else(size, count):
    order = SubsetSampler(size, count, seed=3)
    epochs = order.rows(0, 4 * count).reshape(4, count)
    chosen = set(epochs[0].tolist())
    assert len(chosen) == count
    assert all(0 <= row < size for row in chosen)
    assert all(set(epoch.tolist()) == chosen for epoch in epochs)
    if count > 3:
        assert len({tuple(epoch.tolist()) for epoch in epochs}) == 4, "in another order each time"


def test_subsets_are_nested_and_of_their_seed():
    def chosen(count: int, seed: int) -> set[int]:
        return set(SubsetSampler(10_000, count, seed).rows(0, count).tolist())

    assert chosen(10, 0) < chosen(100, 0) < chosen(5000, 0)
    # Two random choices of 5000 of 10,000 share 2500 +- 25 (hypergeometric): within 5 of these.
    assert abs(len(chosen(5000, 0) & chosen(5000, 1)) - 2500) < 125


def test_ranks_share_the_batches_of_a_subset():
    order = SubsetSampler(1000, 30, seed=1)
    whole = order.rows_for(7, 8)
    parts = [order.rows_for(7, 8, rank, 4) for rank in range(4)]
    assert np.concatenate(parts).tolist() == whole.tolist() == order.rows(56, 8).tolist()


@pytest.mark.parametrize("count", [0, 11])
def test_a_subset_that_is_none_is_refused(count):
    with pytest.raises(ValueError, match=f"count = {count} of 10 rows: wanted at least one"):
        SubsetSampler(10, count, 0)
