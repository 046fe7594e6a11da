"""The band of FlexAttention: forward on a CPU, where it has no backward pass; both on a GPU, compiled."""

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from megatron_ext.attention import blocked_local_attention, local_attention
from megatron_ext.flex_attention import flex_local_attention, usable

SINGLE = 2.0**-24  # unit round-off
# Not compiled, it makes the whole matrix of scores, and says so.
UNCOMPILED = "ignore:flex_attention called without torch.compile"


@pytest.mark.filterwarnings(UNCOMPILED)
@pytest.mark.parametrize("window", [1, 5, 24, 129, 500])
@pytest.mark.parametrize(("length", "channels"), [(1, 4), (130, 4), (193, 20), (384, 16)])
def test_the_band_is_that_of_the_blocks(length, channels, window):
    """Both are sums of at most S products of weights that add up to 1: see `test_attention.compare`."""
    torch.manual_seed(length + window)
    query, key, value = (torch.randn(length, 2, 3, channels) for _ in range(3))
    scale = channels**-0.5
    found = flex_local_attention(query, key, value, window, scale, attend=flex_attention)
    wanted = blocked_local_attention(query, key, value, window, scale)
    bound = 2 * (min(length, 2 * window) + channels + 16) * SINGLE * value.abs().max()
    assert found.shape == (length, 2, 3 * channels)
    assert (found - wanted).abs().max() <= bound


def test_a_cpu_goes_another_way():
    assert not usable(torch.zeros(4, 1, 1, 16), blocked_local_attention)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("channels", [4, 16, 64])
def test_forward_and_backward_on_a_gpu(channels):
    """In bf16 (8 bits) against the formula's blocks in float64."""
    device = torch.device("cuda")
    torch.manual_seed(channels)
    drawn = [
        torch.randn(387, 2, 3, channels, device=device, dtype=torch.bfloat16) for _ in range(4)
    ]
    assert usable(drawn[0], blocked_local_attention), "FlexAttention does not compile here"
    results = []
    for way, dtype in ((local_attention, torch.bfloat16), (blocked_local_attention, torch.float64)):
        inputs = [each.to(dtype).detach().requires_grad_() for each in drawn[:3]]
        output = way(*inputs, 96, channels**-0.5)
        output.backward(drawn[3].to(dtype).reshape(output.shape))
        results.append([output.detach(), *(each.grad for each in inputs)])
    for found, wanted in zip(*results, strict=True):
        assert (found.double() - wanted).abs().max() <= 2.0**-8 * 4 * wanted.abs().max()
