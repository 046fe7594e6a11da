"""Both ways through our core attention, against the formula written out in float64."""

from types import SimpleNamespace

import pytest
import torch

from megatron_ext import attention
from megatron_ext.attention import BlockwiseCausal, CausalAttention

SINGLE = 2.0**-24  # unit round-off


def naive(query, key, value, scale):
    """softmax(scale q k^T, over the past) v, in the inputs' own precision. [S, B, H, D] each."""
    length = len(query)
    scores = torch.einsum("sbhd,tbhd->bhst", query, key) * scale
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    weights = torch.softmax(scores.masked_fill(future, float("-inf")), -1)
    return torch.einsum("bhst,tbhd->sbhd", weights, value).reshape(length, query.shape[1], -1)


def inputs(length, batch, heads, channels, dtype=torch.float32):
    torch.manual_seed(length + channels)
    made = (torch.randn(length, batch, heads, channels).to(dtype) for _ in range(3))
    return [each.requires_grad_() for each in made]


def module(channels):
    return CausalAttention(SimpleNamespace(kv_channels=channels))


def blockwise(query, key, value):
    return BlockwiseCausal.apply(query, key, value, query.shape[-1] ** -0.5)


def forward(query, key, value):
    return module(query.shape[-1])(query, key, value)


def compare(way, sizes, dtype, unit):
    """Forward and backward within rounding of the same in float64.

    Each output is a sum of at most S products of weights (adding up to 1) and values, the weights
    come from dots of D products: relative error (S + D + c) u of magnitudes at most max |value|.
    The backward pass chains two such sums. c = 16 stands for the exponential and the divisions.
    """
    tensors = inputs(*sizes, dtype)
    exact = [each.detach().double().requires_grad_() for each in tensors]
    length, channels = sizes[0], sizes[-1]
    found, wanted = way(*tensors), naive(*exact, channels**-0.5)
    assert found.shape == (length, sizes[1], sizes[2] * channels)
    assert found.dtype == dtype
    grow = (length + channels + 16) * unit
    largest = max(each.abs().max().item() for each in tensors)
    assert (found.double() - wanted).abs().max() <= grow * largest
    torch.manual_seed(1)
    upstream = torch.randn_like(found)
    found.backward(upstream)
    wanted.backward(upstream.double())
    for ours, reference in zip(tensors, exact, strict=True):
        size = max(reference.grad.abs().max().item(), 1.0)
        assert (ours.grad.double() - reference.grad).abs().max() <= 2 * grow * size * largest


@pytest.mark.parametrize("channels", [4, 8, 16, 20, 64])
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 128, 193])
def test_blocks_equal_the_formula(length, channels):
    compare(blockwise, (length, 2, 3, channels), torch.float32, SINGLE)


@pytest.mark.parametrize("channels", [4, 16, 20, 64])
@pytest.mark.parametrize("length", [1, 64, 193, 385, 512])
def test_whatever_way_the_module_takes_equals_the_formula(length, channels):
    compare(forward, (length, 2, 2, channels), torch.float32, SINGLE)


@pytest.mark.parametrize("length", [64, 193, 512])
def test_bfloat16_equals_the_formula_at_its_precision(length):
    """The kernel adds in float32 and rounds what it keeps and gives to 2^-9: a few times in a row.

    `compare` multiplies its unit by (S + D + 16); eight such roundings stand in for that here.
    """
    compare(forward, (length, 2, 2, 16), torch.bfloat16, 8 * 2.0**-9 / (length + 16 + 16))


def test_double_precision_follows_the_same_code():
    """In float64 both ways agree with the formula to its round-off: no float32 is hidden inside."""
    for way in (blockwise, forward):
        compare(way, (193, 2, 2, 8), torch.float64, 2.0**-53)


def test_each_way_is_taken_where_it_should_be(monkeypatch):
    taken = []
    apply = BlockwiseCausal.apply
    monkeypatch.setattr(
        attention, "BlockwiseCausal",
        SimpleNamespace(apply=lambda *args: taken.append(args[0].shape) or apply(*args)),
    )  # fmt: skip
    limit = attention.BLOCKWISE_MIN_LENGTH
    forward(*inputs(limit, 1, 2, 16))
    assert len(taken) == 1
    forward(*inputs(limit - 1, 1, 2, 16))  # short rows
    forward(*inputs(limit, 1, 2, attention.BLOCKWISE_MAX_CHANNELS + 1))  # wide heads
    forward(*inputs(limit, 1, 2, 16, torch.bfloat16))
    # Too much memory to keep: batch x heads x S^2 x 4 bytes / 2 beyond the limit.
    batch = 2 * attention.BLOCKWISE_MAX_BYTES // (4 * limit**2) + 1
    forward(*inputs(limit, batch, 1, 4))
    assert len(taken) == 1


@pytest.mark.parametrize("way", [blockwise, forward])
@pytest.mark.parametrize("length", [70, 400])
def test_the_future_does_not_reach_the_past(way, length):
    query, key, value = (each.detach() for each in inputs(length, 2, 2, 8))
    before = way(query, key, value)
    for position in (1, length // 2, 64, length - 1):
        changed_key, changed_value = key.clone(), value.clone()
        changed_key[position:] += 3.0
        changed_value[position:] -= 5.0
        after = way(query, changed_key, changed_value)
        assert torch.equal(after[:position], before[:position])
        assert not torch.equal(after[position], before[position])


@pytest.mark.parametrize("way", [blockwise, forward])
def test_rows_and_heads_do_not_mix(way):
    query, key, value = (each.detach() for each in inputs(100, 3, 2, 8))
    whole = way(query, key, value).view(100, 3, 2, 8)
    for row in range(3):
        for head in range(2):
            only = (slice(None), slice(row, row + 1), slice(head, head + 1))
            alone = way(query[only], key[only], value[only]).view(100, 8)
            # Batched products may take another order of sums: (S + D + 16) u, as above.
            assert (whole[:, row, head] - alone).abs().max() <= 124 * SINGLE * value.abs().max()


def test_inputs_as_megatron_core_hands_them_over():
    """Views into one interleaved tensor, as the fused query-key-value projection gives."""
    torch.manual_seed(0)
    mixed = torch.randn(400, 2, 2, 3 * 8, requires_grad=True)
    wanted = torch.randn(400, 2, 16)
    grads = []
    for way in (forward, lambda q, k, v: naive(q, k, v, 8**-0.5)):
        mixed.grad = None
        (way(*mixed.split(8, dim=-1)) * wanted).sum().backward()
        grads.append(mixed.grad.clone())
    # Two float32 ways, each within 2 (S + D + 16) u of the exact one.
    assert (grads[0] - grads[1]).abs().max() <= 4 * 424 * SINGLE * grads[1].abs().max()


def test_the_scale_can_be_given():
    query, key, value = (each.detach() for each in inputs(64, 1, 1, 4))
    given = CausalAttention(SimpleNamespace(kv_channels=4), 1, softmax_scale=0.125)(
        query, key, value
    )
    wanted = naive(query.double(), key.double(), value.double(), 0.125)
    assert (given - wanted).abs().max() <= 84 * SINGLE * value.abs().max()
