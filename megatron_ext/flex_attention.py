"""The local band on a GPU by PyTorch's FlexAttention: its cost is that of the blocks of keys that a block of queries
meets at all. It is compiled, for which a machine needs Triton and a C compiler; `usable` says whether this one has
what it takes, by trying.

Shape suffixes: S sequence, B batch, H heads on this rank, D channels of a head.
"""

import functools
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

MOST_SHAPES = 4096  # compiled in one process
FEWEST_CHANNELS = 16  # of a head, in its kernels; what is added is zero and changes no product
Attend = Callable[..., Tensor]


def flex_local_attention(
    query_SBHD: Tensor,
    key_SBHD: Tensor,
    value_SBHD: Tensor,
    window: int,
    scale: float,
    attend: Attend | None = None,
) -> Tensor:
    """Query q meets key k where 0 <= q - k < window; returns [S, B, H * D].

    `attend`: FlexAttention as it is, instead of the compiled one (on a CPU it has no backward pass).
    """
    length, batch, heads, channels = query_SBHD.shape
    padding = (0, max(0, FEWEST_CHANNELS - channels))
    query, key, value = (
        F.pad(x, padding).permute(1, 2, 0, 3) for x in (query_SBHD, key_SBHD, value_SBHD)
    )
    band = local_band(length, window, query_SBHD.device)
    context_BHSD = (attend or compiled())(query, key, value, block_mask=band, scale=scale)
    return context_BHSD[..., :channels].permute(2, 0, 1, 3).reshape(length, batch, heads * channels)


@functools.cache
def local_band(length: int, window: int, device: torch.device) -> BlockMask:
    """The blocks of a band, the same for every row and head."""

    def met(_: Tensor, __: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query - key < window)

    return create_block_mask(met, None, None, length, length, device=str(device))


@functools.cache
def compiled() -> Attend:
    """FlexAttention, compiled for each shape that it meets. Beyond a limit torch would quietly run it uncompiled, with
    the whole matrix of scores; the runs of a study, in one process, have some shapes each."""
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, MOST_SHAPES)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, MOST_SHAPES)
    return torch.compile(flex_attention, dynamic=False)


def usable(query_SBHD: Tensor, reference: Attend) -> bool:
    """Whether the compiled kernels run where `query_SBHD` is, and agree with `reference`, backward too.

    Tried once in each process for each data type and number of channels, on a band of odd length. `reference` takes
    what `flex_local_attention` takes.
    """
    if query_SBHD.device.type != "cuda":
        return False
    return _agrees(query_SBHD.device, query_SBHD.dtype, query_SBHD.shape[-1], reference)


@functools.cache
def _agrees(device: torch.device, dtype: torch.dtype, channels: int, reference: Attend) -> bool:
    generator = torch.Generator().manual_seed(0)
    length, window = 387, 96
    shape = (length, 1, 2, channels)
    drawn = [torch.randn(shape, generator=generator).to(device, dtype) for _ in range(4)]
    try:
        found = _with_gradients(flex_local_attention, drawn, window)
    except (
        Exception
    ) as error:  # Triton, its compiler, a driver: whatever it is, there is another way
        return _not_used(f"does not run: {type(error).__name__}: {str(error).strip()[:200]}")
    wanted = _with_gradients(reference, drawn, window)
    # bf16 and TF32 keep 8 and 11 bits; sums of some hundred products lose two more, relative to the largest.
    bits = 2.0**-6 if dtype == torch.bfloat16 else 2.0**-8
    pairs = zip(found, wanted, strict=True)
    agrees = all((a - b).abs().max() <= bits * b.abs().max() for a, b in pairs)
    return agrees or _not_used("gives other numbers than our blocks")


def _not_used(why: str) -> bool:
    """Say it once, for the other way costs time and memory."""
    warnings.warn(f"FlexAttention {why}. Local layers run as blocks instead.", stacklevel=1)
    return False


def _with_gradients(attend: Attend, drawn: list[Tensor], window: int) -> list[Tensor]:
    """The output, and the gradients of query, key and value."""
    inputs = [each.clone().requires_grad_() for each in drawn[:3]]
    with torch.enable_grad():
        output = attend(*inputs, window, inputs[0].shape[-1] ** -0.5)
        gradients = torch.autograd.grad(output, inputs, drawn[3].reshape(output.shape))
    return [output.detach(), *gradients]
