"""Our short way through the linear layers gives megatron-core's own numbers."""

import copy

import pytest
import torch

from megatron_ext.linear import ColumnLinear, ColumnParallelLinear, RowLinear, RowParallelLinear
from megatron_ext.model import TransformerConfig
from megatron_ext.parallel import parallel_state

SINGLE = 2.0**-24
# The stock row layer warns about a default of its own.
pytestmark = pytest.mark.filterwarnings("ignore:Warning. tp_group is None:DeprecationWarning")
STOCK = {ColumnLinear: ColumnParallelLinear, RowLinear: RowParallelLinear}


def layer(kind, inputs, outputs, skip_bias_add):
    config = TransformerConfig(
        num_layers=1, hidden_size=8, num_attention_heads=1, use_cpu_initialization=True,
        gradient_accumulation_fusion=False, cuda_graph_scope=[],
    )  # fmt: skip
    only_row = {"input_is_parallel": True} if issubclass(kind, RowParallelLinear) else {}
    torch.manual_seed(0)
    made = kind(
        inputs, outputs, config=config, init_method=torch.nn.init.normal_, bias=True,
        skip_bias_add=skip_bias_add, tp_group=parallel_state.get_tensor_model_parallel_group(),
        **only_row,
    )  # fmt: skip
    with torch.no_grad():
        made.bias.normal_()
    return made


@pytest.mark.parametrize("skip_bias_add", [False, True])
@pytest.mark.parametrize("kind", STOCK)
@pytest.mark.parametrize("sizes", [(8, 24), (32, 5), (1, 1)])
def test_forward_and_backward_equal_the_stock_layer(kind, sizes, skip_bias_add, groups):
    ours, stock = (layer(each, *sizes, skip_bias_add) for each in (kind, STOCK[kind]))
    assert ours.state_dict().keys() == stock.state_dict().keys()
    torch.testing.assert_close(ours.weight, stock.weight, rtol=0, atol=0)
    stock.load_state_dict(copy.deepcopy(ours.state_dict()))
    inputs = torch.randn(7, 3, sizes[0])
    results = []
    for each in (ours, stock):
        given = inputs.clone().requires_grad_()
        output, left = each(given)
        total = output if left is None else output + left
        (total * torch.linspace(-1, 1, total.numel()).view_as(total)).sum().backward()
        results.append((total, given.grad, each.weight.grad, each.bias.grad))
    # Sums of `in` products and a bias, of `out` products, and of 21 rows: n u of the magnitudes.
    terms = (sizes[0] + 1, sizes[1], 21, 21)
    for one, other, count in zip(*results, terms, strict=True):
        largest = inputs.abs().max() * ours.weight.abs().max().clamp(min=1) * count
        assert (one - other).abs().max() <= 2 * count * SINGLE * largest


def test_the_bias_is_in_the_output_once(groups):
    for kind in STOCK:
        each = layer(kind, 4, 6, skip_bias_add=True)
        output, left = each(torch.zeros(2, 1, 4))
        assert left is None
        assert torch.equal(output, each.bias.expand(2, 1, 6))
