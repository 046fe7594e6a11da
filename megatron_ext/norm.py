"""LayerNorm for rows that may be split over tensor-parallel ranks, which megatron-core refuses with
PyTorch's norm; its own needs CUDA kernels."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from megatron_ext.sequence_parallel import shared


class Norm(nn.LayerNorm):
    """`torch.nn.LayerNorm`, in the signature of megatron-core's layer spec."""

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__(hidden_size, eps)
        self.sequence_parallel = config.sequence_parallel

    def forward(self, input: Tensor) -> Tensor:
        """[S on this rank, B, hidden_size]"""
        if not self.sequence_parallel:
            return super().forward(input)
        gain, bias = shared(self.weight), shared(self.bias)
        return F.layer_norm(input, self.normalized_shape, gain, bias, self.eps)
