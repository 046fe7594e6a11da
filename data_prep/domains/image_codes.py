"""Pictures as codes: image-codes-16x16 and image-codes-32x32.

A row is one picture, shrunk to 64 x 64 and written as the codes that a trained VQ-VAE gives it (`--codebook FILE`), in
raster order: 256 of 4,096, or 1,024 of 1,024 (Henighan et al. 2020, section 2 and Table 2).
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from data_prep.domain import Block, Domain, Notes, Piece, Refusal, Shown, TokenRange
from data_prep.domains import image
from data_prep.folders import PassedOver
from data_prep.watch import Watch

RAW = image.RAW
# The first batch waits for torch to be imported.
PATIENCE = 240.0
# 2^20 pictures a shard, as for pixels: 512 MB or 2 GB.
CHUNKS_PER_SHARD = image.CHUNKS_PER_SHARD
CODEC = "codebook"
DEDUPLICATE = True


def _codes_domain(side: int, entries: int) -> Domain:
    return Domain(
        name=f"image-codes-{side}x{side}",
        summary=f"pictures of 64 x 64 pixels as {side} x {side} codes of a trained codebook of {entries} entries",
        seq_length=side * side,
        vocab_size=entries,
        kinds=(TokenRange("code", 0, entries),),
        packed=False,
        grid=(("row", side), ("column", side)),
    )


DOMAINS = (_codes_domain(16, 4096), _codes_domain(32, 1024))


def check_codec(domain: Domain, codec: Path) -> None:
    """ValueError if the file is no codebook of this domain's shape."""
    from data_prep.codebook import check_fit

    check_fit(codec, domain.grid[0][1], domain.vocab_size)


def plan(
    domain: Domain, raw: str, rows: int | None, listing: Path, passed_over: PassedOver | None = None
) -> Iterator[Piece]:
    """As for pixels: the same pictures."""
    return image.plan(domain, raw, rows, listing, passed_over)


def read(
    domain: Domain, piece: Piece, seed: int, codec: Path | None, watch: Watch | None = None
) -> Iterator[Block | Refusal]:
    """Encode the pictures of one piece; `seed` is not needed. Splits go by the file's bytes, as for pixels."""
    from data_prep.codebook import SIDE, Codebook

    assert codec is not None
    codebook = Codebook.load(codec)
    for found in image.read_pixels(piece, SIDE, watch or Watch()):
        if isinstance(found, Block):
            pictures = found.tokens.reshape(-1, SIDE, SIDE, 3)
            codes = codebook.encode(pictures).reshape(len(pictures), -1)
            found = replace(found, tokens=codes)
        yield found


def render(domain: Domain, tokens: np.ndarray, kinds: np.ndarray, codec: Path | None) -> Shown:
    """One row back as the picture that the codes stand for, uint8 [64, 64, 3]."""
    from data_prep.codebook import Codebook

    assert codec is not None
    side = domain.grid[0][1]
    return Shown(picture=Codebook.load(codec).decode(tokens.reshape(1, side, side))[0])


def notes(domain: Domain, raw: str, codec: Path | None) -> Notes:
    """What decides the pixels and what decides the codes."""
    from data_prep.codebook import versions

    return Notes(image.notes(domain, raw, None).versions | versions())
