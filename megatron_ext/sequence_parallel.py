"""Rows split by position over the tensor-parallel ranks, where the layers are not split.

Korthikanti et al. 2022 (section 4.2.2): what is the same on all ranks without it (norms, residuals)
is then held once, in parts. Megatron-core has these steps for CUDA's memory alone; here they run on
any device. Each is the other's gradient:

    gather            [S / ranks, ...] -> [S, ...]     gradient: reduce_scatter
    reduce_scatter    [S, ...] -> [S / ranks, ...], summed over ranks     gradient: gather
    scatter           this rank's [S / ranks, ...] of what all ranks hold     gradient: gather

`shared` marks a parameter that every rank holds whole and applies to its own positions alone: its
gradient is the sum over the ranks. Megatron-core sums such gradients after the backward pass; in it,
DeepSpeed meets whole gradients however it spreads them.
"""

from typing import Any

import torch
import torch.distributed
from torch import Tensor

from megatron_ext.parallel import tensor_parallel_group, tensor_parallel_rank, tensor_parallel_size
from megatron_ext.quiet import quiet

with quiet():
    from megatron.core.tensor_parallel.mappings import copy_to_tensor_model_parallel_region


def gather(part: Tensor) -> Tensor:
    """All positions, from the parts of all ranks."""
    return _Gather.apply(part)


def reduce_scatter(whole: Tensor) -> Tensor:
    """This rank's positions of the sum over all ranks."""
    return _ReduceScatter.apply(whole)


def scatter(whole: Tensor) -> Tensor:
    """This rank's positions of what every rank holds."""
    return _Scatter.apply(whole)


def shared(parameter: Tensor) -> Tensor:
    """The same values; the gradient is summed over the ranks."""
    return copy_to_tensor_model_parallel_region(parameter)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        return _gathered(part)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _reduced(grad)


class _ReduceScatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, whole: Tensor) -> Tensor:
        return _reduced(whole)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _gathered(grad)


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, whole: Tensor) -> Tensor:
        return whole.chunk(tensor_parallel_size())[tensor_parallel_rank()].clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _gathered(grad)


def _gathered(part: Tensor) -> Tensor:
    whole = part.new_empty((len(part) * tensor_parallel_size(), *part.shape[1:]))
    torch.distributed.all_gather_into_tensor(
        whole, part.contiguous(), group=tensor_parallel_group()
    )
    return whole


def _reduced(whole: Tensor) -> Tensor:
    part = whole.new_empty((len(whole) // tensor_parallel_size(), *whole.shape[1:]))
    torch.distributed.reduce_scatter_tensor(part, whole.contiguous(), group=tensor_parallel_group())
    return part
