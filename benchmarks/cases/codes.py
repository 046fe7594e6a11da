"""Which entry of a codebook is nearest: `VectorQuantize` of vector-quantize-pytorch against our look-up.

1,024 entries of 64 dimensions and the vectors of 64 pictures of 16 x 16; one thread each.
"""

from pathlib import Path

import torch
from vector_quantize_pytorch import VectorQuantize

from benchmarks.cases import Case
from data_prep.codebook import WIDTH, Lookup, threads

_ENTRIES, _VECTORS = 1024, 64 * 256


def cases(scratch: Path) -> list[Case]:
    """One case: the look-up of some random vectors."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(_VECTORS, WIDTH, generator=generator)
    peer = VectorQuantize(dim=WIDTH, codebook_size=_ENTRIES).eval()
    lookup = Lookup(peer.codebook.detach().clone())

    def theirs() -> int:
        with threads(1), torch.inference_mode():
            return peer(vectors[None])[1].numel()

    def ours() -> int:
        with threads(1), torch.inference_mode():
            return lookup(vectors).numel()

    return [Case("nearest of 1,024 entries", "codes", 2.0, theirs, ours)]
