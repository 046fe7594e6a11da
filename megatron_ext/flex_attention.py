"""The local band on a GPU by PyTorch's FlexAttention: its cost is that of the blocks of keys that a block of queries
meets at all. It is compiled, for which a machine needs Triton and a C compiler; `usable` says whether this one has
what it takes, by trying.

Shape suffixes: S sequence, B batch, H heads on this rank, D channels of a head.
"""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

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
    """FlexAttention, compiled for each shape that it meets: a run has one."""
    return torch.compile(flex_attention, dynamic=False)


def usable(device: torch.device, reference: Attend) -> bool:
    """Whether the compiled kernels run on `device` and agree with `reference`, backward too.

    Tried once in each process and for each kind of device, on a band of odd length. `reference` takes
    what `flex_local_attention` takes.
    """
    if device.type != "cuda":
        return False
    return _agrees(device, reference)


@functools.cache
def _agrees(device: torch.device, reference: Attend) -> bool:
    generator = torch.Generator().manual_seed(0)
    length, window, channels = 387, 96, 16
    shape = (length, 1, 2, channels)
    drawn = [torch.randn(shape, generator=generator).to(device) for _ in range(4)]
    try:
        found = _with_gradients(flex_local_attention, drawn, window)
    except Exception:  # Triton, its compiler, a driver: whatever it is, there is another way
        return False
    wanted = _with_gradients(reference, drawn, window)
    # Products of TF32 have 10 bits behind the point; sums of some hundred of them lose a few more.
    return all(
        torch.allclose(a, b, rtol=2**-6, atol=2**-6) for a, b in zip(found, wanted, strict=True)
    )


def _with_gradients(attend: Attend, drawn: list[Tensor], window: int) -> list[Tensor]:
    """The output, and the gradients of query, key and value."""
    inputs = [each.clone().requires_grad_() for each in drawn[:3]]
    with torch.enable_grad():
        output = attend(*inputs, window, inputs[0].shape[-1] ** -0.5)
        gradients = torch.autograd.grad(output, inputs, drawn[3].reshape(output.shape))
    return [output.detach(), *gradients]
