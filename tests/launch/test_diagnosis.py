"""Spikes, and the gradient noise scale against gradients that are known."""

import numpy as np
import pytest
import torch

from launch.batches import Batch
from launch.diagnosis import noise_scale, spike_places, usual_noise
from launch.engine import Engine, start_process
from launch.results import NOISE_COLUMNS, STEP_SECONDS
from launch.verify import Case, run_of
from megatron_ext.model import build_model
from tests.launch.small import config, train_alone

CPU = torch.device("cpu")


def test_spikes_are_jumps_and_not_the_noise_of_small_batches():
    draw = np.random.default_rng(0)
    steps = np.arange(70_000)  # more than one stretch of work
    losses = 2 + 3 / np.sqrt(1 + steps) + 0.1 * draw.standard_t(10, len(steps))
    assert len(spike_places(losses)) == 0
    for place in (64, 1_000, 65_599, 65_600, 69_999):
        spiked = losses.copy()
        spiked[place] += 30 if place == 64 else 3  # the first losses fall fast
        assert spike_places(spiked).tolist() == [place]
    broken = losses.copy()
    broken[[5, 500]] = np.nan, np.inf
    assert spike_places(broken).tolist() == [5, 500]
    assert len(spike_places(losses[:10])) == 0
    assert len(spike_places(np.empty(0))) == 0


def test_a_flat_window_makes_no_spike_of_any_rise():
    """Its median absolute deviation is 0; the run's own noise elsewhere, or the resolution of fp32, is the measure."""
    draw = np.random.default_rng(0)
    losses = 2 + 0.01 * draw.normal(size=1000)
    losses[400:500] = 2.0
    risen = losses.copy()
    risen[480] = 2.05  # five usual deviations
    assert len(spike_places(risen)) == 0
    risen[480] = 2.5
    assert spike_places(risen).tolist() == [480]
    flat = np.full(200, 2.0)
    flat[150] = np.nextafter(np.float32(2), np.float32(3))
    assert len(spike_places(flat)) == 0, "one unit in the last place"
    flat[150] = 2.001
    assert spike_places(flat).tolist() == [150]
    assert len(spike_places(np.zeros(200))) == 0


def test_usual_noise_is_that_of_a_step_and_not_the_trend():
    draw = np.random.default_rng(0)
    steps = np.arange(20_000)
    losses = 3 - 1e-5 * steps + 0.1 * draw.normal(size=len(steps))
    # The median of n absolute differences has a relative error of about 1.2 / sqrt(n): five of them.
    assert usual_noise(losses) == pytest.approx(0.1, rel=5 * 1.2 / np.sqrt(len(steps)))
    assert usual_noise(losses[:1]) == 0
    assert usual_noise(np.array([1.0, np.nan, np.inf])) == 0


def test_a_planted_noise_scale_is_found():
    """Gradients of single rows are G plus noise of covariance S / 50 in each of 50 directions."""
    draw = np.random.default_rng(0)
    truth, rows, steps = draw.normal(size=50), 64, 4000
    noise = 3.0
    measured = np.zeros(steps, NOISE_COLUMNS)
    for row in measured:
        gradients = truth + noise * draw.normal(size=(rows, 50))
        row["batch_small"], row["batch_big"] = 4, rows
        row["square_small"] = (gradients[:4].mean(0) ** 2).sum()
        row["square_big"] = (gradients.mean(0) ** 2).sum()
    wanted = 50 * noise**2 / (truth @ truth)
    # |G_small|^2 has a standard deviation of 12% of S at most, so its mean over 4,000 steps 0.2%.
    assert noise_scale(measured) == pytest.approx(wanted, rel=0.02)
    assert np.isnan(noise_scale(measured[:0]))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_the_small_batch_is_the_first_micro_batch(stage, masked):
    """Its squared norm is that of plain autograd on the mean loss of these rows."""
    device = start_process()
    run = run_of(Case(1, 1, False, stage, "fp32"))
    engine = Engine(run, device)
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, run.shape.vocab_size, (16, run.shape.seq_length), generator=draw)
    counted = torch.rand(tokens.shape, generator=draw) < 0.3 if masked else None
    batch = Batch(tokens, torch.zeros_like(tokens, dtype=torch.uint8), counted)
    result = engine.train_step(batch, 1e-3, measure_noise=True)
    assert engine.train_step(batch, 1e-3).small_square is None
    engine.close()
    small = run.parallel.train_micro_batch_size_per_gpu
    assert result.small_batch == small < len(tokens)

    model = build_model(run.shape, seed=run.seed, init_std=run.model.init_std, device=CPU)
    model(tokens[:small], None if counted is None else counted[:small]).mean().backward()
    wanted = sum((p.grad.double() ** 2).sum().item() for p in model.parameters())
    # Sums of up to 4 x 192 x 64 products in another order: their number times the rounding unit.
    assert result.small_square == pytest.approx(wanted, rel=small * 192 * 64 * 2.0**-24)


@pytest.mark.parametrize(
    ("stage", "precision"), [(0, "fp32"), (0, "bf16"), (2, "bf16"), (3, "fp32")]
)
def test_where_one_micro_batch_is_all_its_half_is_measured(stage, precision):
    """It adds nothing to the step; under ZeRO 3, whose ranks hold parts, there is no measurement."""
    device = start_process()
    run = run_of(Case(1, 1, False, stage, precision))
    alone = run.parallel.model_copy(update={"train_micro_batch_size_per_gpu": 16})
    run = run.model_copy(update={"parallel": alone})
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, run.shape.vocab_size, (16, run.shape.seq_length), generator=draw)
    counted = torch.rand(tokens.shape, generator=draw) < 0.3
    batch = Batch(tokens, torch.zeros_like(tokens, dtype=torch.uint8), counted)
    steps = {}
    for measured in (True, False):
        engine = Engine(run, device)
        steps[measured] = [engine.train_step(batch, 1e-3, measure_noise=measured) for _ in range(2)]
        engine.close()
    told = [[(each.loss, each.grad_norm) for each in results] for results in steps.values()]
    assert told[0] == told[1]
    if stage == 3:
        assert steps[True][0].small_square is None
        return
    assert steps[True][0].small_batch == 8
    model = build_model(run.shape, seed=run.seed, init_std=run.model.init_std, device=CPU)
    model(tokens[:8], counted[:8]).mean().backward()
    wanted = sum((p.grad.double() ** 2).sum().item() for p in model.parameters())
    # fp32: as above; bf16 rounds each number by 2^-9, and a square twice, through some twenty operations
    rounding = 2 * 8 * 192 * 64 * 2.0**-24 if precision == "fp32" else 20 * 2 * 2.0**-9
    assert steps[True][0].small_square == pytest.approx(wanted, rel=rounding)


def test_a_run_records_it(pictures, tmp_path):
    run = config(40, parallel={"train_micro_batch_size_per_gpu": 1})
    result = train_alone(run, pictures, tmp_path)
    assert result.noise["step"].tolist() == [1, 17, 33]
    assert set(result.noise["batch_small"]) == {1}
    seconds = np.percentile(result.train["seconds"], (50, 95, 99))
    assert [result.speed[name] for name in STEP_SECONDS] == pytest.approx(seconds)
    assert set(result.noise["batch_big"]) == {4}
    at = result.noise["step"] - 1
    np.testing.assert_allclose(result.noise["square_big"], result.train["grad_norm"][at] ** 2)
    assert (result.noise["square_small"] > result.noise["square_big"]).all(), "noise adds to a norm"
    whole = train_alone(config(40), pictures, tmp_path / "whole")
    assert whole.noise["step"].tolist() == [1, 17, 33]
    assert set(whole.noise["batch_small"]) == {2}, "one micro-batch is all: its half"
    assert (whole.noise["square_small"] > whole.noise["square_big"]).all()
