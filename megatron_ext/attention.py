"""The core attention that we swap into megatron-core's layer spec: dense, locally banded, strided.

Megatron-core's own `DotProductAttention` asks for a CUDA device even on a CPU, and it materialises
the whole score matrix. Ours calls PyTorch's fused kernels, or, for the few channels per head of the
papers' small models on a CPU, the kernel of `cpu_attention`; that one knows no dropout, with which PyTorch's run.

The sparse patterns are those of Child et al. 2019 (section 4.2), which Henighan et al. 2020 use for
pictures and video; w is the window and the stride:

    local     query q meets key k where 0 <= q - k < w
    strided   query q meets key k where k <= q and (q - k) is a multiple of w

Neither needs a mask over all pairs. Positions that are multiples of w apart meet nobody else, so
strided attention is dense causal attention on rows cut into w interleaved ones, exactly; and a
block of w queries meets the keys of its own block and of the one before alone.

Shape suffixes: S sequence, B batch, H heads on this rank, D channels of a head, W window, N blocks.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_ext.cpu_attention import CpuCausal
from megatron_ext.dropout import ATTENTION, RESIDUAL, Masks
from megatron_ext.shape import ModelShape

# Up to this many channels per head our kernel beats PyTorch's on a CPU (measured). In a band it does
# half the work: PyTorch's computes both blocks whole.
CPU_KERNEL_MAX_CHANNELS = 12
CPU_KERNEL_MAX_CHANNELS_LOCAL = 32


class CausalAttention(torch.nn.Module):
    """The pattern of one layer; `layer_number` counts from 1, as in megatron-core's signature."""

    def __init__(
        self,
        config: Any,
        layer_number: int,
        *_: Any,
        shape: ModelShape,
        masks: Masks | None = None,
        softmax_scale: float | None = None,
        **__: Any,
    ) -> None:
        super().__init__()
        self.scale = softmax_scale or config.kv_channels**-0.5
        self.pattern, self.window = shape.attention_of(layer_number - 1), shape.attention_window
        self.layer, self.masks, self.positions_split = layer_number, masks, config.sequence_parallel

    def forward(
        self, query_SBHD: Tensor, key_SBHD: Tensor, value_SBHD: Tensor, *_: Any, **__: Any
    ) -> Tensor:
        """Attend; returns [S, B, H * D]. With dropout, what the layer draws after this are its residual masks."""
        inputs = (query_SBHD, key_SBHD, value_SBHD)
        if self.masks is None or not self.training:
            return self._attend(inputs, 0.0)
        self.masks.draw(self.layer, ATTENTION, split=True)
        context = self._attend(inputs, self.masks.share)
        self.masks.draw(self.layer, RESIDUAL, split=self.positions_split)
        return context

    def _attend(self, inputs: tuple[Tensor, Tensor, Tensor], dropout: float) -> Tensor:
        if self.pattern == "local" and self.window < len(inputs[0]):
            return local_attention(*inputs, self.window, self.scale, dropout)
        if self.pattern == "strided":
            return strided_attention(*inputs, self.window, self.scale, dropout)
        return dense_attention(*inputs, self.scale, dropout)


def dense_attention(
    query_SBHD: Tensor, key_SBHD: Tensor, value_SBHD: Tensor, scale: float, dropout: float = 0.0
) -> Tensor:
    """Every query meets itself and the whole past; returns [S, B, H * D]."""
    length, batch, heads, channels = query_SBHD.shape
    if not dropout and _for_cpu_kernel(query_SBHD, CPU_KERNEL_MAX_CHANNELS):
        return CpuCausal.apply(query_SBHD, key_SBHD, value_SBHD, scale, length)
    query, key, value = (x.permute(1, 2, 0, 3) for x in (query_SBHD, key_SBHD, value_SBHD))
    context_BHSD = F.scaled_dot_product_attention(
        query, key, value, dropout_p=dropout, is_causal=True, scale=scale
    )
    return context_BHSD.permute(2, 0, 1, 3).reshape(length, batch, heads * channels)


def strided_attention(
    query_SBHD: Tensor,
    key_SBHD: Tensor,
    value_SBHD: Tensor,
    window: int,
    scale: float,
    dropout: float = 0.0,
) -> Tensor:
    """Dense attention among the positions of equal remainder by `window`: as many rows of a batch."""
    length, batch, heads, channels = query_SBHD.shape
    rows = -(-length // window)
    # What is added lies behind every true position of its row, so no true query meets it.
    padding = (0, 0, 0, 0, 0, 0, 0, rows * window - length)
    query, key, value = (
        F.pad(x, padding).reshape(rows, window * batch, heads, channels)
        for x in (query_SBHD, key_SBHD, value_SBHD)
    )
    context = dense_attention(query, key, value, scale, dropout)
    return context.reshape(rows * window, batch, heads * channels)[:length]


def local_attention(
    query_SBHD: Tensor,
    key_SBHD: Tensor,
    value_SBHD: Tensor,
    window: int,
    scale: float,
    dropout: float = 0.0,
) -> Tensor:
    """Query q meets key k where 0 <= q - k < window, by the quickest way that this device has."""
    if not dropout and _for_cpu_kernel(query_SBHD, CPU_KERNEL_MAX_CHANNELS_LOCAL):
        return CpuCausal.apply(query_SBHD, key_SBHD, value_SBHD, scale, window)
    if not dropout and query_SBHD.device.type == "cuda":
        from megatron_ext import flex_attention  # compiles: nothing that a CPU should load

        if flex_attention.usable(query_SBHD, blocked_local_attention):
            return flex_attention.flex_local_attention(
                query_SBHD, key_SBHD, value_SBHD, window, scale
            )
    return blocked_local_attention(query_SBHD, key_SBHD, value_SBHD, window, scale, dropout)


def blocked_local_attention(
    query_SBHD: Tensor,
    key_SBHD: Tensor,
    value_SBHD: Tensor,
    window: int,
    scale: float,
    dropout: float = 0.0,
) -> Tensor:
    """The same on any device: each block of `window` queries meets its own keys and those of the block before."""
    length, batch, heads, channels = query_SBHD.shape
    blocks = -(-length // window)
    padding = (0, 0, 0, 0, 0, 0, 0, blocks * window - length)
    query, key, value = (
        F.pad(x, padding).view(blocks, window, batch, heads, channels).permute(0, 2, 3, 1, 4)
        for x in (query_SBHD, key_SBHD, value_SBHD)
    )  # [N, B, H, W, D]
    key, value = (torch.cat((x.roll(1, 0), x), dim=3) for x in (key, value))  # [N, B, H, 2W, D]
    met = _local_mask(blocks, window, query.device)
    context_NBHWD = F.scaled_dot_product_attention(
        query, key, value, attn_mask=met, dropout_p=dropout, scale=scale
    )
    context = context_NBHWD.permute(0, 3, 1, 2, 4).reshape(blocks * window, batch, -1)
    return context[:length]


def _local_mask(blocks: int, window: int, device: torch.device) -> Tensor:
    """Which of the keys of (block before, own block) a query of a block meets: bool [N, 1, 1, W, 2W]."""
    query = torch.arange(window, device=device)[:, None] + window
    key = torch.arange(2 * window, device=device)
    band = (query - window < key) & (key <= query)
    met = band.expand(blocks, window, 2 * window).clone()
    met[0, :, :window] = False  # before the first block there is nothing
    return met[:, None, None]


def _for_cpu_kernel(query_SBHD: Tensor, most_channels: int) -> bool:
    on_cpu, channels = query_SBHD.device.type == "cpu", query_SBHD.shape[-1]
    return on_cpu and query_SBHD.dtype == torch.float32 and channels <= most_channels
