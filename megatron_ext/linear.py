"""Megatron-core's parallel linear layers, with the short way for a model that is not split.

With one tensor-parallel rank there is nothing to communicate, and the bias can be added inside the
matrix product. Megatron-core adds it in a pass of its own, which on small models costs as much as
the product. With more ranks the stock layer that is split by output channels runs where there is CUDA:
it overlaps its communication with products, in buffers that only CUDA has.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from megatron_ext.quiet import quiet
from megatron_ext.sequence_parallel import gather, reduce_scatter, shared

with quiet():
    from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
    from megatron.core.tensor_parallel.mappings import (
        copy_to_tensor_model_parallel_region,
        reduce_from_tensor_model_parallel_region,
    )


class ColumnLinear(ColumnParallelLinear):
    """Split by output channels."""

    def forward(self, input_: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """[S, B, in] -> [S, B, out on this rank], and the bias if it is still to be added."""
        if self.tp_group.size() > 1:
            if input_.device.type == "cuda":
                return super().forward(input_, *args, **kwargs)
            input_ = to_all_ranks(input_, self.sequence_parallel)
        return F.linear(input_, self.weight, self.bias), None


class RowLinear(RowParallelLinear):
    """Split by input channels."""

    def forward(self, input_: Tensor) -> tuple[Tensor, Tensor | None]:
        """[S, B, in on this rank] -> [S, B, out], and the bias if it is still to be added."""
        if self.tp_group.size() == 1:
            return F.linear(input_, self.weight, self.bias), None
        partial = F.linear(input_, self.weight)
        if not self.sequence_parallel:
            return reduce_from_tensor_model_parallel_region(partial), self.bias
        return reduce_scatter(partial), shared(self.bias)


def to_all_ranks(input_: Tensor, sequence_parallel: bool) -> Tensor:
    """What every rank of a split layer reads: all positions [S, B, D]; gradients are summed over ranks.

    With sequence parallelism a rank holds S / ranks positions, and gets its part of the gradient.
    """
    return gather(input_) if sequence_parallel else copy_to_tensor_model_parallel_region(input_)
