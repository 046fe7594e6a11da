"""Cross-entropy in nats, and what an evaluation sums."""

import math

import numpy as np
import pytest
import torch

from megatron_ext.loss import LossSums, token_losses

DOUBLE = 2.0**-53


def test_the_loss_is_in_nats():
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))
    found = token_losses(logits, torch.tensor([0, 2]))
    # log, exp and a sum of three numbers: a few units of 2^-24 of order 1.
    assert found.tolist() == pytest.approx([math.log(2), -math.log(0.8)], abs=8 * 2.0**-24)
    equal = token_losses(torch.zeros(1, 256), torch.tensor([17]))
    assert equal.item() == pytest.approx(math.log(256), rel=8 * 2.0**-24)


def test_the_loss_is_computed_in_float32_whatever_comes_in():
    torch.manual_seed(0)
    logits, targets = torch.randn(50, 30).bfloat16(), torch.randint(30, (50,))
    found = token_losses(logits, targets)
    assert found.dtype == torch.float32
    exact = -torch.log_softmax(logits.double(), -1)[torch.arange(50), targets]
    assert (found - exact).abs().max() <= (30 + 8) * 2.0**-24 * exact.max()


@pytest.fixture
def evaluation():
    """10 rows of 6 tokens of 3 kinds; kinds 1 and 2 count; row 4 counts nothing."""
    draw = torch.Generator().manual_seed(0)
    losses = torch.rand(10, 6, generator=draw) * 5
    kinds = torch.randint(0, 3, (10, 6), generator=draw, dtype=torch.uint8)
    kinds[4] = 0
    kinds[:, 3] = 0  # nothing counts at position 3
    return losses, kinds, kinds > 0


def summed(losses, kinds, counted, parts):
    sums = LossSums.zeros(len(losses), 4, losses.shape[1], torch.device("cpu"))
    start = 0
    for size in parts:
        rows = slice(start, start + size)
        sums.add(rows, losses[rows], kinds[rows], counted[rows])
        start += size
    return sums


def test_mean_and_standard_error_are_those_of_the_formula(evaluation):
    losses, kinds, counted = (each.numpy() for each in evaluation)
    mean, error = summed(*evaluation, [10]).mean()
    wanted = losses[counted].astype(float).mean()
    # Cochran 1977, eq. 6.13, for a ratio of sums over rows; row 4 holds no unit and is left out.
    per_row = [
        (losses[row][counted[row]].astype(float).sum(), counted[row].sum())
        for row in range(10)
        if row != 4
    ]
    totals, counts = np.array(per_row).T
    variance = ((totals - wanted * counts) ** 2).sum() / 8 * 9 / counts.sum() ** 2
    assert mean == pytest.approx(wanted, rel=100 * DOUBLE)
    assert error == pytest.approx(math.sqrt(variance), rel=1000 * DOUBLE)


def test_the_standard_error_is_that_of_independent_rows():
    """Equal counts: the textbook error of a mean, s / sqrt(R)."""
    losses = torch.tensor([[1.0, 3.0], [2.0, 2.0], [4.0, 6.0], [0.0, 1.0]])
    kinds = torch.zeros(4, 2, dtype=torch.uint8)
    mean, error = summed(losses, kinds, kinds == 0, [4]).mean()
    rows = np.array([2.0, 2.0, 5.0, 0.5])
    assert mean == pytest.approx(rows.mean(), rel=10 * DOUBLE)
    assert error == pytest.approx(rows.std(ddof=1) / 2, rel=100 * DOUBLE)


def test_the_standard_error_predicts_the_scatter():
    """Over 2000 draws of 50 rows with correlated tokens, the error has the right size.

    A standard deviation from 2000 draws is known to 1 / sqrt(4000) = 1.6%; five of those is 8%, and
    the estimate itself is biased by about 1 / (4 x 50) = 0.5%.
    """
    draw = torch.Generator().manual_seed(1)
    offsets = torch.randn(2000, 50, 1, generator=draw)
    losses = (offsets + torch.randn(2000, 50, 8, generator=draw)).double()
    counted = torch.rand(2000, 50, 8, generator=draw) < 0.5
    kinds = torch.zeros(50, 8, dtype=torch.uint8)
    means, errors = zip(
        *(summed(losses[each], kinds, counted[each], [50]).mean() for each in range(2000)),
        strict=True,
    )
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(means), rel=0.085)


def test_kinds_count_every_token_and_positions_the_counted(evaluation):
    losses, kinds, counted = evaluation
    sums = summed(*evaluation, [10])
    for kind in range(4):
        of_kind = losses[kinds == kind].double()
        assert sums.kind_count[kind] == len(of_kind)
        assert sums.kind_sum[kind].item() == pytest.approx(of_kind.sum().item(), rel=60 * DOUBLE)
    for place in range(6):
        here = losses[:, place][counted[:, place]].double()
        assert sums.position_count_S[place] == len(here)
        assert sums.position_sum_S[place].item() == pytest.approx(
            here.sum().item(), rel=60 * DOUBLE
        )
    assert sums.position_count_S[3] == 0
    assert sums.kind_count[3] == 0


@pytest.mark.parametrize("parts", [[1] * 10, [3, 3, 3, 1], [7, 3]])
def test_parts_and_ranks_add_up(parts, evaluation):
    whole, pieces = summed(*evaluation, [10]), summed(*evaluation, parts)
    for one, other in zip(whole.tensors(), pieces.tensors(), strict=True):
        torch.testing.assert_close(one, other, rtol=100 * DOUBLE, atol=0)
    assert all(tensor.dtype == torch.float64 for tensor in whole.tensors())


def test_fewer_than_two_rows_have_no_error():
    for rows in (1, 3):
        losses = torch.ones(rows, 2)
        counted = torch.zeros(rows, 2, dtype=torch.bool)
        counted[0] = True
        mean, error = summed(
            losses, torch.zeros(rows, 2, dtype=torch.uint8), counted, [rows]
        ).mean()
        assert mean == 1.0
        assert math.isnan(error)
