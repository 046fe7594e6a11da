"""The core attention that we swap into megatron-core's layer spec.

Megatron-core's own `DotProductAttention` asks for a CUDA device even on a CPU, and it materialises
the whole score matrix. Ours calls PyTorch's fused kernel (flash attention), or, for the few
channels per head of the papers' small models on a CPU, the kernel of `cpu_attention`.

Shape suffixes: S sequence, B batch, H heads on this rank, D channels of a head.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_ext.cpu_attention import CpuCausal

# Up to this many channels per head our kernel beats PyTorch's on a CPU (measured).
CPU_KERNEL_MAX_CHANNELS = 12


class CausalAttention(torch.nn.Module):
    """Dense causal attention; the other arguments are those of megatron-core's signature."""

    def __init__(self, config: Any, *_: Any, softmax_scale: float | None = None, **__: Any) -> None:
        super().__init__()
        self.scale = softmax_scale or config.kv_channels**-0.5

    def forward(
        self, query_SBHD: Tensor, key_SBHD: Tensor, value_SBHD: Tensor, *_: Any, **__: Any
    ) -> Tensor:
        """Attend; returns [S, B, H * D]."""
        length, batch, heads, channels = query_SBHD.shape
        if _cpu_kernel_is_faster(query_SBHD):
            return CpuCausal.apply(query_SBHD, key_SBHD, value_SBHD, self.scale)
        query, key, value = (x.permute(1, 2, 0, 3) for x in (query_SBHD, key_SBHD, value_SBHD))
        context_BHSD = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=self.scale
        )
        return context_BHSD.permute(2, 0, 1, 3).reshape(length, batch, heads * channels)


def _cpu_kernel_is_faster(query_SBHD: Tensor) -> bool:
    return (
        query_SBHD.device.type == "cpu"
        and query_SBHD.dtype == torch.float32
        and query_SBHD.shape[-1] <= CPU_KERNEL_MAX_CHANNELS
    )
