"""The core attention that we swap into megatron-core's layer spec.

Megatron-core's own `DotProductAttention` asks for a CUDA device even on a CPU, and it materialises
the whole score matrix. On a GPU, ours calls PyTorch's fused kernel (flash attention). On a CPU in
float32, long rows with the few channels per head (4 to 20) of the papers' small models go block by
block through batched matrix products, with the probabilities kept for the backward pass. A whole
training step gains 8% from it at 4 to 8 channels per head, and nothing at 16 (`docs/benchmarks.md`).

Shape suffixes: S sequence, B batch, H heads on this rank, D channels of a head, N = B * H.
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

QUERY_BLOCK = 64
# Where the blocks beat the fused kernel on a CPU (measured): from this length, up to this many
# channels, and while the kept probabilities of one layer stay small.
BLOCKWISE_MIN_LENGTH = 384
BLOCKWISE_MAX_CHANNELS = 32
BLOCKWISE_MAX_BYTES = 32 * 2**20


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
        if _blockwise_is_faster(query_SBHD):
            return BlockwiseCausal.apply(query_SBHD, key_SBHD, value_SBHD, self.scale)
        query, key, value = (x.permute(1, 2, 0, 3) for x in (query_SBHD, key_SBHD, value_SBHD))
        context_BHSD = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=self.scale
        )
        return context_BHSD.permute(2, 0, 1, 3).reshape(length, batch, heads * channels)


def _blockwise_is_faster(query_SBHD: Tensor) -> bool:
    length, batch, heads, channels = query_SBHD.shape
    kept_bytes = batch * heads * length * length * query_SBHD.element_size() // 2
    return (
        query_SBHD.device.type == "cpu"
        and query_SBHD.dtype == torch.float32
        and length >= BLOCKWISE_MIN_LENGTH
        and channels <= BLOCKWISE_MAX_CHANNELS
        and kept_bytes <= BLOCKWISE_MAX_BYTES
    )


class BlockwiseCausal(torch.autograd.Function):
    """softmax(scale q k^T + causal mask) v; a block of queries meets only the keys it may see.

    Keys, and gradients of keys and values, are kept as [N, D, S]: the batched products are then
    wide where the channels are few.
    """

    @staticmethod
    def forward(
        ctx: Any, query_SBHD: Tensor, key_SBHD: Tensor, value_SBHD: Tensor, scale: float
    ) -> Tensor:
        length, batch, heads, channels = query_SBHD.shape
        flat = (length, batch * heads, channels)
        queries = _row_blocks((query_SBHD * scale).view(flat))
        key_NDS = key_SBHD.reshape(flat).permute(1, 2, 0).contiguous()
        value_NSD = value_SBHD.reshape(flat).transpose(0, 1).contiguous()
        context_SND = query_SBHD.new_empty(flat)
        kept = []
        for start, query in zip(range(0, length, QUERY_BLOCK), queries, strict=True):
            end = start + query.shape[1]
            scores = torch.bmm(query, key_NDS[:, :, :end])
            scores[:, :, start:] += _future(query.shape[1], scores.dtype)
            probabilities = torch.softmax(scores, -1)
            context_SND[start:end] = torch.bmm(probabilities, value_NSD[:, :end]).transpose(0, 1)
            kept.append(probabilities)
        ctx.save_for_backward(context_SND, key_NDS, value_NSD, *queries, *kept)
        ctx.scale, ctx.shape = scale, query_SBHD.shape
        return context_SND.view(length, batch, heads * channels)

    @staticmethod
    def backward(ctx: Any, grad_context: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        context_SND, key_NDS, value_NSD, *blocks = ctx.saved_tensors
        queries, kept = blocks[: len(blocks) // 2], blocks[len(blocks) // 2 :]
        grad_SND = grad_context.reshape(context_SND.shape)
        grads = _row_blocks(grad_SND)
        # d scores = P * (dP - sum(dO * O)) (Dao et al. 2022, section 3.1)
        deltas = _row_blocks((grad_SND * context_SND).sum(-1, keepdim=True))
        key_NSD = key_NDS.transpose(1, 2).contiguous()
        value_NDS = value_NSD.transpose(1, 2).contiguous()
        grad_query_SND = torch.empty_like(context_SND)
        grad_key_NDS, grad_value_NDS = torch.zeros_like(key_NDS), torch.zeros_like(key_NDS)
        end = 0
        for query, probabilities, grad, delta in zip(queries, kept, grads, deltas, strict=True):
            start, end = end, end + query.shape[1]
            grad_value_NDS[:, :, :end] += torch.bmm(grad.mT, probabilities)
            grad_scores = torch.bmm(grad, value_NDS[:, :, :end]).sub_(delta).mul_(probabilities)
            grad_query_SND[start:end] = torch.bmm(grad_scores, key_NSD[:, :end]).transpose(0, 1)
            grad_key_NDS[:, :, :end] += torch.bmm(query.mT, grad_scores)
        grad_key, grad_value = (
            x.permute(2, 0, 1).reshape(ctx.shape) for x in (grad_key_NDS, grad_value_NDS)
        )
        return grad_query_SND.mul_(ctx.scale).view(ctx.shape), grad_key, grad_value, None


def _row_blocks(x_SND: Tensor) -> list[Tensor]:
    """[N, QUERY_BLOCK, D] pieces, each contiguous; the last may be shorter."""
    return [x.transpose(0, 1).contiguous() for x in x_SND.split(QUERY_BLOCK)]


@functools.lru_cache(maxsize=16)
def _future(size: int, dtype: torch.dtype) -> Tensor:
    """[size, size]: minus infinity above the diagonal, 0 elsewhere."""
    return torch.full((size, size), float("-inf"), dtype=dtype).triu(1)
