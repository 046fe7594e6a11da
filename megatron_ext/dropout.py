"""Dropout whose masks are a pure function of (key of the pass, layer, place, rank): nothing is saved to resume.

PyTorch's generator is seeded anew wherever masks are drawn: at the embeddings, and in each layer before the attention
probabilities and before what the layer adds to the residual stream. So computing a layer again for the backward pass
draws the same masks. Tensor-parallel ranks draw the same ones for what they all hold, others for what is split: the
heads, and positions with sequence parallelism.
"""

import hashlib
import struct

import torch

from megatron_ext.parallel import tensor_parallel_rank

EMBEDDINGS, ATTENTION, RESIDUAL = range(3)


class Masks:
    """Of one model; `share` of what meets a mask becomes zero."""

    def __init__(self, share: float) -> None:
        self.share = share
        self._key = b""

    def begin(self, *key: int) -> None:
        """The next forward pass and its backward pass draw by this key: whole numbers below 2^63."""
        self._key = struct.pack(f"<{len(key)}q", *key)

    def draw(self, layer: int, place: int, *, split: bool) -> None:
        """What PyTorch draws from here on are the masks of that place. `split`: each tensor-parallel rank its own."""
        rank = tensor_parallel_rank() if split else 0
        where = struct.pack("<3q", layer, place, rank)
        digest = hashlib.blake2b(self._key + where, digest_size=8).digest()
        torch.manual_seed(int.from_bytes(digest, "little"))
