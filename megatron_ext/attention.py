"""The core attention that we swap into megatron-core's layer spec.

Megatron-core's own `DotProductAttention` asks for a CUDA device even on a CPU, and it materialises
the score matrix. This one calls PyTorch's fused kernel, which is flash attention on a GPU.

Shape suffixes: S sequence, B batch, H heads on this rank, D channels of a head.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class CausalAttention(torch.nn.Module):
    """Dense causal attention; every argument but the configuration is for the stock signature."""

    def __init__(self, config: Any, *_: Any, softmax_scale: float | None = None, **__: Any) -> None:
        super().__init__()
        self.scale = softmax_scale or config.kv_channels**-0.5

    def forward(
        self, query_SBHD: Tensor, key_SBHD: Tensor, value_SBHD: Tensor, *_: Any, **__: Any
    ) -> Tensor:
        """Attend; returns [S, B, H * D]."""
        seq_length, batch, heads, channels = query_SBHD.shape
        query, key, value = (x.permute(1, 2, 0, 3) for x in (query_SBHD, key_SBHD, value_SBHD))
        context_BHSD = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=self.scale
        )
        return context_BHSD.permute(2, 0, 1, 3).reshape(seq_length, batch, heads * channels)
