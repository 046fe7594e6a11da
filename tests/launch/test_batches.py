"""What a step is trained on, and what an evaluation reads: functions of the index alone."""

import numpy as np
import pytest
import torch

from data_prep.dataset import TokenDataset
from data_prep.sampler import Sampler
from launch.batches import TrainingBatches, evaluation_rows, open_dataset
from tests.launch.small import BATCH, config

CPU = torch.device("cpu")


def test_evaluations_read_the_same_rows_whatever_the_seed_of_the_run(pictures):
    dataset = TokenDataset(pictures, "valid")
    rows = evaluation_rows(dataset, 8)
    assert rows.tolist() == sorted(Sampler(dataset.num_rows, 0).rows(0, 8).tolist())
    assert len(set(rows.tolist())) == 8
    everything = evaluation_rows(dataset, 10_000)
    assert everything.tolist() == list(range(dataset.num_rows)), "all, where there are fewer"


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_the_ranks_share_the_batch_that_one_rank_would_have(world_size, pictures):
    run = config(seeds=[3])
    dataset = open_dataset(pictures, "train", run)
    for step in (0, 1, 100):  # the last one beyond the first epoch
        wanted = dataset.rows(Sampler(dataset.num_rows, 3).rows(step * BATCH, BATCH)).tokens
        parts = [
            TrainingBatches(dataset, run, rank, world_size).at(step, CPU).tokens
            for rank in range(world_size)
        ]
        np.testing.assert_array_equal(torch.cat(parts), wanted)


def test_the_first_epoch_sees_every_row_once(pictures):
    run = config()
    dataset = open_dataset(pictures, "train", run)
    batches = TrainingBatches(dataset, run, 0, 1)
    steps = -(-dataset.num_rows // BATCH)  # the last of them may begin the next epoch
    seen = torch.cat([batches.at(step, CPU).tokens for step in range(steps)])[: dataset.num_rows]
    every = dataset.rows(np.arange(dataset.num_rows)).tokens
    assert sorted(map(tuple, seen.tolist())) == sorted(map(tuple, every.tolist()))


def test_answers_alone_count_in_mathematics(mathematics):
    run = config(domain="mathematics", budget={"tokens": 6.0 * BATCH * 512})
    dataset = open_dataset(mathematics, "train", run)
    batch = TrainingBatches(dataset, run, 0, 1).at(0, CPU)
    assert torch.equal(batch.counted, batch.kinds == 1)
    assert batch.count == (batch.kinds == 1).sum() > 0
    text = bytes(batch.tokens[batch.counted].to(torch.uint8).tolist()).decode()
    assert set(text) <= set("0123456789\n"), "answers are numbers here"
    part = batch.rows(slice(1, 3))
    assert torch.equal(part.tokens, batch.tokens[1:3])
    assert torch.equal(part.counted, batch.counted[1:3])


def test_every_token_of_a_picture_counts(pictures):
    run = config()
    batch = TrainingBatches(open_dataset(pictures, "train", run), run, 0, 1).at(0, CPU)
    assert batch.counted is None
    assert batch.count == BATCH * 192
    assert batch.tokens.dtype == torch.int64


def test_a_run_on_few_tokens_meets_these_rows_again_and_again(pictures):
    run = config(data={"unique_tokens": 10 * 192 + 5})
    dataset = open_dataset(pictures, "train", run)
    batches = TrainingBatches(dataset, run, 0, 1)
    rows = torch.cat([batches.at(step, CPU).tokens for step in range(5)])  # 20 rows: two epochs
    first, second = ({tuple(row) for row in part.tolist()} for part in (rows[:10], rows[10:]))
    assert first == second
    assert len(first) == 10
    for tokens in (191, 192 * (dataset.num_rows + 1)):
        with pytest.raises(
            ValueError, match=rf"data.unique_tokens = {tokens:,} are .* wanted 1 to"
        ):
            TrainingBatches(dataset, config(data={"unique_tokens": tokens}), 0, 1)
