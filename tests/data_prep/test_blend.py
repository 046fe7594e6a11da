"""Blends: exact proportions after any number of samples, an order that is a pure function, epochs, clear refusals."""

import math
import os
import random
from fractions import Fraction

import numpy as np
import pytest

import data_prep.dataset
from data_prep.blend import MAX_CYCLE, Blend, BlendSampler
from data_prep.dataset import TokenDataset
from data_prep.domain import domain
from data_prep.sampler import Sampler
from data_prep.shards import ShardWriter


def pictures(prefix, rows: int, seed: int, name: str = "image-8x8") -> TokenDataset:
    """A small dataset of random pictures, another one for each seed."""
    here = domain(name)
    tokens = np.random.default_rng(seed).integers(0, 256, rows * here.seq_length, dtype=np.uint8)
    ones = np.ones(rows, np.int64)
    with ShardWriter(prefix, here) as writer:
        writer.add_block(tokens, ones * here.seq_length, ones * 0, ones)
    return TokenDataset(prefix, "train", domain=name)


def datasets_of(sampler: BlendSampler, sizes, first: int, count: int) -> np.ndarray:
    return np.searchsorted(np.cumsum(sizes), sampler.rows(first, count), side="right")


def random_weights(number: int) -> list[int]:
    draw = random.Random(number)
    most = draw.choice([3, 30, 3000])
    return [draw.randint(1, most) for _ in range(draw.randint(1, 12))]


@pytest.mark.parametrize(
    "weights",
    [[0.7, 0.2, 0.1], [1], [1, 1, 1], [0.5, *[0.005] * 100], [9997, 1, 1, 1], [2001, 1000, 1000, 1]]
    + [random_weights(number) for number in range(40)],
)
def test_after_any_number_of_samples_each_dataset_is_within_one_of_its_share(weights):
    sizes = [10**6] * len(weights)
    sampler = BlendSampler(sizes, weights, 0)
    samples = min(2 * sum(map(Fraction, map(str, weights))).numerator + 10, 20_000)
    met = datasets_of(sampler, sizes, 0, samples)
    counts = np.cumsum(met[:, None] == np.arange(len(weights)), axis=0)
    shares = [Fraction(str(weight)) / sum(map(Fraction, map(str, weights))) for weight in weights]
    assert sampler.shares == tuple(shares)
    scale = math.lcm(*(share.denominator for share in shares))
    # In whole numbers: exact, whatever the weights.
    wanted = np.arange(1, samples + 1)[:, None] * np.array([int(s * scale) for s in shares])
    assert np.abs(counts * scale - wanted).max() < scale
    for some in (0, 1, samples // 2, samples):
        expected = counts[some - 1] if some else np.zeros(len(weights))
        assert np.array_equal(sampler.counts(some), expected)


def test_batches_are_the_same_however_they_are_cut():
    sizes = [7, 40, 3]
    sampler = BlendSampler(sizes, [0.3, 0.6, 0.1], 5)
    whole = sampler.rows(0, 400)
    again = BlendSampler(sizes, [3, 6, 1], 5)
    for cut in (1, 3, 64, 399):
        pieces = [again.rows(start, min(cut, 400 - start)) for start in range(0, 400, cut)]
        assert np.array_equal(np.concatenate(pieces), whole)
    assert np.array_equal(again.rows(217, 1), whole[217:218])
    for world_size in (1, 2, 8):
        shares = [again.rows_for(3, 16, rank, world_size) for rank in range(world_size)]
        assert np.array_equal(np.concatenate(shares), whole[48:64])
    assert not np.array_equal(BlendSampler(sizes, [3, 6, 1], 6).rows(0, 400), whole)


def test_a_sample_far_away_costs_no_walk():
    """10^15 samples in: walking there would never end. Both sides of it agree with each other."""
    sampler = BlendSampler([1000, 50], [0.9, 0.1], 1)
    far = 10**15
    assert np.array_equal(sampler.rows(far, 100)[37:], sampler.rows(far + 37, 63))
    assert sampler.counts(far).tolist() == [9 * far // 10, far // 10]


def test_each_dataset_comes_in_its_own_samplers_order_epoch_after_epoch():
    sizes, weights = [11, 200], [0.75, 0.25]
    sampler = BlendSampler(sizes, weights, 9)
    rows = sampler.rows(0, 400)
    small, large = rows[rows < 11], rows[rows >= 11] - 11
    assert np.array_equal(small, Sampler(11, 9).rows(0, 300))
    assert np.array_equal(large, Sampler(200, 9).rows(0, 100))
    assert sampler.epochs(400) == (300 / 11, 0.5)
    for epoch in range(27):
        assert sorted(small[11 * epoch : 11 * epoch + 11]) == list(range(11))


def test_a_blend_reads_the_rows_of_its_datasets(tmp_path):
    parts = [pictures(tmp_path / f"p{number}", 5 + number, number) for number in range(3)]
    blend = Blend(parts, [0.5, 0.25, 0.25], 3)
    assert (blend.num_rows, blend.num_tokens) == (18, 18 * 192)
    everything = np.concatenate([each.rows(np.arange(each.num_rows)).tokens for each in parts])
    order = blend.sampler.rows(0, 50)
    batch = blend.rows(order)
    assert np.array_equal(batch.tokens, everything[order])
    assert batch.tokens.dtype == np.uint8
    assert batch.kinds.shape == (50, 192)
    assert blend.rows(np.empty(0, np.int64)).tokens.shape == (0, 192)


def test_the_identity_depends_on_the_data_and_the_weights(tmp_path):
    one, two = (pictures(tmp_path / f"p{number}", 5, number) for number in range(2))
    identity = Blend([one, two], [1, 3], 0).identity
    assert identity == Blend([one, two], [0.25, 0.75], 7).identity
    assert identity != Blend([one, two], [1, 1], 0).identity
    assert identity != Blend([two, one], [1, 3], 0).identity
    assert identity != one.identity


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ([1], r"1 weights for 2 datasets: wanted one for each"),
        ([1, 0], r"weights \[1, 0\]: wanted finite numbers above 0\. Leave out"),
        ([1, -2], "wanted finite numbers above 0"),
        ([1, math.nan], "wanted finite numbers above 0"),
        ([1, math.inf], "wanted finite numbers above 0"),
        ([1, math.pi], r"repeat only after \d+ samples; wanted at most 100000\. Give fewer digits, for instance"),
    ],
)  # fmt: skip
def test_bad_weights_are_refused(weights, said):
    with pytest.raises(ValueError, match=said):
        BlendSampler([4, 4], weights, 0)


def test_the_weights_that_a_refusal_suggests_are_accepted():
    with pytest.raises(ValueError, match="for instance") as caught:
        BlendSampler([4] * 3, [1 / 3, 1 / 7, 1e-9], 0)
    suggested = [int(word) for word in str(caught.value).split("[")[-1].split("]")[0].split(", ")]
    shares = BlendSampler([4] * 3, suggested, 0).shares
    assert sum(suggested) <= MAX_CYCLE
    assert float(shares[0] / shares[1]) == pytest.approx(7 / 3, rel=3 / min(suggested[:2]))


def test_what_does_not_belong_together_is_refused(tmp_path):
    eight = pictures(tmp_path / "a", 5, 0)
    sixteen = pictures(tmp_path / "b", 5, 0, "image-16x16")
    with pytest.raises(
        ValueError, match="dataset 1 of a blend: is split 'train' of domain image-16x16; wanted"
    ):
        Blend([eight, sixteen], [1, 1], 0)  # fmt: skip
    with pytest.raises(ValueError, match="a blend of 0 datasets: wanted at least one"):
        Blend([], [], 0)


def test_datasets_of_another_tokenizer_are_refused(tmp_path):
    """Equal ids would mean other words."""
    one, two = (pictures(tmp_path / f"p{number}", 5, number) for number in range(2))
    one.codec, two.codec = "a" * 64, "b" * 64
    with pytest.raises(ValueError, match="has sha256 bbbbbbbbbbbbbbbb; wanted aaaaaaaaaaaaaaaa"):
        Blend([one, two], [1, 1], 0)


def test_rows_that_do_not_exist_are_refused(tmp_path):
    blend = Blend([pictures(tmp_path / "a", 5, 0)], [1], 0)
    with pytest.raises(
        ValueError, match="of a blend: wanted a one-dimensional array of numbers from 0 to 4"
    ):
        blend.rows(np.array([5]))  # fmt: skip
    with pytest.raises(ValueError, match="first = -1, count = 2: wanted both >= 0"):
        blend.sampler.rows(-1, 2)
    with pytest.raises(
        ValueError, match="batch_size = 5, rank = 0, world_size = 2: wanted a batch"
    ):
        blend.sampler.rows_for(0, 5, 0, 2)  # fmt: skip


def test_rows_for_evaluation_come_once_each():
    """A dataset of 5 rows and half of the weight: its rows would come 10 times each among 100 samples."""
    sampler = BlendSampler([5, 1000], [0.5, 0.5], seed=0)
    assert len(set(sampler.rows(0, 100).tolist())) < 100
    rows = sampler.distinct_rows(100)
    assert len(set(rows.tolist())) == len(rows) == 55
    assert (rows < 5).sum() == 5
    assert set(rows.tolist()) == set(sampler.rows(0, 100).tolist()), "the same rows, each once"
    large = BlendSampler([500, 1000], [0.5, 0.5], seed=0)
    assert large.distinct_rows(100).tolist() == sorted(large.rows(0, 100).tolist())


def test_datasets_of_a_blend_share_the_files_that_may_be_open(tmp_path, monkeypatch):
    monkeypatch.setattr(data_prep.dataset, "MAX_FILES", 4)
    datasets = [pictures(tmp_path / f"d{number}", 5, number) for number in range(9)]
    before = len(os.listdir("/proc/self/fd"))
    tokens = Blend(datasets, [1] * 9, 0).rows(np.arange(45)).tokens
    assert len(os.listdir("/proc/self/fd")) <= before + 4
    alone = [each.rows(np.arange(5)).tokens for each in datasets]
    assert np.array_equal(tokens, np.concatenate(alone))
