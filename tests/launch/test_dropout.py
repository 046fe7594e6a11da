"""Dropout: masks that follow from (seed, step, rank, micro-batch), whatever is computed again or resumed."""

import pytest
import torch

from launch.engine import Engine, start_process
from megatron_ext.attention import dense_attention, local_attention, strided_attention
from megatron_ext.model import build_model
from tests.launch.small import assert_same_bits, config, train_alone, train_until

CPU = torch.device("cpu")
DROPOUT = {"model": {"dropout": 0.2}}


def model_of(run, **changes):
    model = build_model(
        run.shape,
        seed=0,
        init_std=0.02,
        device=CPU,
        dropout=run.model.dropout,
        **changes,
    )
    return model.train()


def tokens(run, rows: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, run.shape.vocab_size, (rows, run.shape.seq_length), generator=generator)


@pytest.fixture(autouse=True, scope="module")
def _process():
    start_process()


def gradients(model, rows: torch.Tensor, key: tuple[int, ...]) -> list[torch.Tensor]:
    model.zero_grad()
    model.masks.begin(*key)
    loss = model(rows).mean()
    torch.manual_seed(99)  # what others draw between the two passes changes nothing
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters())]


@pytest.mark.parametrize("attention", ["dense", "sparse"])
def test_masks_follow_from_the_key_alone(attention):
    run = config(model={"dropout": 0.2, "attention": attention})
    model, rows = model_of(run), tokens(run)
    first = gradients(model, rows, (0, 5, 0, 0))
    torch.rand(7)
    again = gradients(model, rows, (0, 5, 0, 0))
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    for other in ((1, 5, 0, 0), (0, 6, 0, 0), (0, 5, 1, 0), (0, 5, 0, 4)):
        assert gradients(model, rows, other)[0] != first[0], "seed, step, rank, micro-batch"


@pytest.mark.parametrize("attention", ["dense", "sparse"])
def test_layers_that_are_computed_again_draw_the_same_masks(attention):
    run = config(model={"dropout": 0.2, "attention": attention})
    rows = tokens(run)
    kept = gradients(model_of(run), rows, (0, 1, 2, 3))
    again = gradients(model_of(run, recompute=True), rows, (0, 1, 2, 3))
    assert all(torch.equal(*pair) for pair in zip(kept, again, strict=True))


def test_an_evaluation_drops_nothing():
    run = config(**DROPOUT)
    plain = model_of(config())
    dropping = model_of(run).eval()
    assert torch.equal(dropping(tokens(run)), plain.eval()(tokens(run)))
    assert model_of(config()).masks is None


def test_every_place_and_every_layer_drops_its_share():
    """Of ones: 0.2 become zero and the others 1 / 0.8, at the embeddings and both residual branches."""
    run = config(**DROPOUT)
    model, seen = model_of(run), []
    original = torch.nn.functional.dropout

    def noted(x, p=0.5, training=True, inplace=False):
        ones = original(torch.ones_like(x), p, training, inplace)
        seen.append(ones)
        return x * ones

    model.masks.begin(0)
    torch.nn.functional.dropout = noted
    try:
        model(tokens(run))
    finally:
        torch.nn.functional.dropout = original
    assert len(seen) == 1 + 2 * run.shape.num_layers
    for number, mask in enumerate(seen):
        # 192 x 3 x 32 draws: the share is within five standard deviations, 5 sqrt(0.16 / 18432)
        assert (mask == 0).double().mean().item() == pytest.approx(0.2, abs=0.0148)
        assert all(not torch.equal(mask, other) for other in seen[number + 1 :])


@pytest.mark.parametrize("length", [12, 17])
def test_attention_drops_probabilities_on_average_to_the_same(length):
    """Values of one, so that each query's context is the sum of what is left of its probabilities."""
    torch.manual_seed(0)
    query, key = torch.randn(2, length, 400, 4, 8)
    value = torch.ones(length, 400, 4, 8)
    for attend in (
        lambda dropout: dense_attention(query, key, value, 0.3, dropout),
        lambda dropout: local_attention(query, key, value, 4, 0.3, dropout),
        lambda dropout: strided_attention(query, key, value, 4, 0.3, dropout),
    ):
        assert attend(0.0).sub(1).abs().max() < 1e-5
        left = attend(0.25).view(length, 400, 4, 8)[..., 0]
        # The first query has one key: kept as 4/3 or dropped
        assert set(left[0].flatten().mul(3).round().tolist()) == {0.0, 4.0}
        # 1,600 rows and heads, each at most a standard deviation of sqrt(1/3): five of the mean's
        assert (left.mean((1, 2)) - 1).abs().max() < 5 * (1 / 3 / 1600) ** 0.5


@pytest.mark.parametrize("parallel", [{}, {"activation_checkpointing": True, "zero_stage": 2}])
def test_a_stopped_run_goes_on_with_the_same_masks(parallel, pictures, tmp_path):
    run = config(8, **DROPOUT, parallel={"train_micro_batch_size_per_gpu": 2, **parallel})
    whole = train_alone(run, pictures, tmp_path / "whole")
    assert not train_until(run, pictures, tmp_path / "stopped", step=3)
    assert_same_bits(train_alone(run, pictures, tmp_path / "stopped"), whole)


def test_training_with_dropout_is_another_run_and_steps_differ(pictures, tmp_path):
    run = config(**DROPOUT)
    assert run.run_id != config().run_id
    engine = Engine(run, start_process())
    from launch.batches import TrainingBatches, open_dataset

    batch = TrainingBatches(open_dataset(pictures, "train", run), run, 0, 1).at(0, engine.device)
    losses = [engine.train_step(batch, 0.0, step=step).loss for step in (0, 0, 1)]
    engine.close()
    assert losses[0] == losses[1] != losses[2], "the rate is zero: masks alone change"
