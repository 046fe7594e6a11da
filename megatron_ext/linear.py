"""Megatron-core's parallel linear layers, with the short way for a model that is not split.

With one tensor-parallel rank there is nothing to communicate, and the bias can be added inside the
matrix product. Megatron-core adds it in a pass of its own, which on small models costs as much as
the product. With more ranks the stock layers run.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from megatron_ext.quiet import quiet

with quiet():
    from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear


class ColumnLinear(ColumnParallelLinear):
    """Split by output channels."""

    def forward(self, input_: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """[S, B, in] -> [S, B, out], and the bias if it is still to be added."""
        if self.tp_group.size() > 1:
            return super().forward(input_, *args, **kwargs)
        return F.linear(input_, self.weight, self.bias), None


class RowLinear(RowParallelLinear):
    """Split by input channels."""

    def forward(self, input_: Tensor) -> tuple[Tensor, Tensor | None]:
        """[S, B, in] -> [S, B, out], and the bias if it is still to be added."""
        if self.tp_group.size() > 1:
            return super().forward(input_)
        return F.linear(input_, self.weight, self.bias), None
