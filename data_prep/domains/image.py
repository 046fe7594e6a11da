"""Pictures as pixels: image-8x8, image-16x16, image-32x32.

A row is one picture: its centre square, R x R, in raster order, red, green and blue of each pixel in turn, 3 R^2 values
of 0 to 255 (Henighan et al. 2020, section 2 and Table 1).
"""

import hashlib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO

import numpy as np

from data_prep.domain import Document, Domain, Item, Notes, Piece, Refusal, TokenRange

RAW = "a folder of pictures, a .tar (class/x.jpg or webdataset key.jpg), or a folder of .tar files"
PATIENCE = 120.0
# 2^20 pictures a shard: 200 MB at 8x8, 3.2 GB at 32x32; a hundred shards for 10^8 pictures.
CHUNKS_PER_SHARD = 1024
# Pictures in one piece of work: about a second of photographs at 340 to 1,100 a second and core.
_PIECE = 1024


def _image_domain(side: int) -> Domain:
    return Domain(
        name=f"image-{side}x{side}",
        summary=f"pictures shrunk to {side} x {side} pixels, one colour value a token",
        seq_length=3 * side * side,
        vocab_size=256,
        kinds=(TokenRange("pixel", 0, 256),),
        packed=False,
        grid=(("row", side), ("column", side), ("colour", 3)),
    )


DOMAINS = tuple(_image_domain(side) for side in (8, 16, 32))


def plan(domain: Domain, raw: str, rows: int | None, listing: Path) -> list[Piece]:
    """Write what there is below `raw` to `listing`, one line an item, and cut it into pieces of byte ranges."""
    from data_prep.pictures import EXTENSIONS
    from data_prep.raw_files import list_items

    if rows is not None:
        raise ValueError(
            f"--rows {rows}: pictures are all taken; wanted no --rows for {domain.name}. Leave it out."
        )
    pieces: list[Piece] = []
    start = offset = 0
    damage: list[Refusal] = []
    with listing.open("wb") as stream:
        for count, entry in enumerate(list_items(Path(raw), EXTENSIONS), start=1):
            offset += stream.write(entry.line())
            if entry.damaged:
                damage.append(Refusal(entry.key, entry.reason, damaged=True))
            if count % _PIECE == 0:
                pieces.append(Piece(str(listing), start, offset, tuple(damage)))
                start, damage = offset, []
    if offset == 0:
        raise ValueError(
            f"{raw}: holds no pictures; wanted files or tar members ending in {' '.join(sorted(EXTENSIONS))}. "
            f"Give --raw the folder or tar that holds them."
        )
    if start != offset:
        pieces.append(Piece(str(listing), start, offset, tuple(damage)))
    return pieces


def read(domain: Domain, piece: Piece, seed: int) -> Iterator[Item | Refusal]:
    """Decode the pictures of one piece; `seed` is not needed. The split goes by the file's bytes, so that the same
    picture is in the same split at every size."""
    from data_prep.pictures import MAX_BYTES, decode
    from data_prep.raw_files import close_all, from_line, read_entry

    side = domain.grid[0][1]
    opened: dict[str, BinaryIO] = {}
    with open(piece.source, "rb") as stream:
        stream.seek(piece.start)
        while stream.tell() < piece.stop:
            entry = from_line(stream.readline())
            try:
                data = read_entry(entry, MAX_BYTES, opened)
                tokens = decode(data, side).reshape(-1)
            except ValueError as error:
                yield Refusal(entry.key, str(error), entry.damaged)
                continue
            yield Item(
                Document(entry.key, ((0, tokens),)), hashlib.blake2b(data, digest_size=16).digest()
            )
    close_all(opened)


def render(domain: Domain, tokens: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """One row back as a picture, uint8 [R, R, 3]."""
    side = domain.grid[0][1]
    return tokens.reshape(side, side, 3).astype(np.uint8)


def notes(domain: Domain, raw: str) -> Notes:
    """Pillow's version decides the pixels, to the last bit of a JPEG."""
    return Notes({"pillow": version("pillow"), "numpy": version("numpy")})
