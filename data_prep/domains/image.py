"""Pictures as pixels: image-8x8, image-16x16, image-32x32.

A row is one picture: its centre square, R x R, in raster order, red, green and blue of each pixel in turn, 3 R^2 values
of 0 to 255 (Henighan et al. 2020, section 2 and Table 1).
"""

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path

import numpy as np

from data_prep.domain import Block, Domain, Notes, Piece, Refusal, Shown, TokenRange
from data_prep.folders import PassedOver
from data_prep.raw_files import Entry
from data_prep.watch import Watch

RAW = (
    "a folder of pictures, a .tar (class/x.jpg or webdataset key.jpg), a folder of .tar files, or META.tsv:PHOTOS "
    "(YFCC100M's table and the folder or tars of its photographs)"
)
PATIENCE = 120.0
# 2^20 small pictures a shard (200 MB at 8x8, 3.2 GB at 32x32), or about 170,000 photographs: 600 shards for 10^8.
CHUNKS_PER_SHARD = 256
CODEC = ""
DEDUPLICATE = True
# One piece of work: so many pictures, or files of so many bytes, whichever comes first; less than a second.
_PIECE, _PIECE_BYTES = 4096, 1 << 26
# Copied for each picture: a quarter less time than to make a new one.
_EMPTY_DIGEST = blake2b(digest_size=16)


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


def plan(
    domain: Domain, raw: str, rows: int | None, listing: Path, passed_over: PassedOver | None = None
) -> Iterator[Piece]:
    """Write what there is below `raw` to `listing`, one line an item, and cut it into pieces of byte ranges."""
    from data_prep.listing import cut_listing, some
    from data_prep.pictures import EXTENSIONS
    from data_prep.raw_files import list_items, listed
    from data_prep.yfcc import list_photos, split_raw

    if rows is not None:
        raise ValueError(
            f"--rows {rows}: pictures are all taken; wanted no --rows for {domain.name}. Leave it out."
        )
    joined = split_raw(raw)
    entries = (
        list_photos(*joined, listing.parent, passed_over)
        if joined
        else list_items(Path(raw), EXTENSIONS, passed_over)
    )
    return some(
        cut_listing(map(listed, entries), listing, _PIECE, _PIECE_BYTES),
        f"{raw}: holds no pictures; wanted files or tar members ending in {' '.join(sorted(EXTENSIONS))}. "
        f"Give --raw the folder or tar that holds them.",
    )


def read(
    domain: Domain, piece: Piece, seed: int, codec: Path | None, watch: Watch | None = None
) -> Iterator[Block | Refusal]:
    """Decode the pictures of one piece; `seed` is not needed."""
    return read_pixels(piece, domain.grid[0][1], watch or Watch())


def read_pixels(piece: Piece, side: int, watch: Watch) -> Iterator[Block | Refusal]:
    """The pictures of one piece in blocks of [n, 3 * side^2] pixel values, and what is refused."""
    from data_prep.listing import read_lines
    from data_prep.raw_files import from_lines

    yield from pixels_of(from_lines(read_lines(piece)), side, watch)


def pixels_of(listed: list[Entry], side: int, watch: Watch) -> Iterator[Block | Refusal]:
    """The same of pictures that are listed already. The split goes by the file's bytes, so that the same picture is in
    the same split at every size."""
    from data_prep.pictures import MAX_BYTES, decode_many
    from data_prep.raw_files import read_batches

    entries = _begun(listed, watch) if watch.careful else listed
    for found, unreadable in read_batches(entries, MAX_BYTES, watch.careful):
        for entry, error in unreadable:
            yield Refusal(entry.key, str(error), entry.damaged)
        squares, refused = decode_many([data for _, data in found], side)
        for place, error in refused.items():
            yield Refusal(found[place][0].key, str(error))
        if refused:
            good = [place for place in range(len(found)) if place not in refused]
            found, squares = [found[place] for place in good], squares[good]
        if found:
            keys = tuple(entry.key for entry, _ in found)
            contents = tuple(_digest(data) for _, data in found)
            yield Block(0, squares.reshape(len(found), -1), keys, contents)


def _digest(data: bytes) -> bytes:
    own = _EMPTY_DIGEST.copy()
    own.update(data)
    return own.digest()


def _begun(entries: Iterable[Entry], watch: Watch) -> Iterator[Entry]:
    """The same entries, each said to be next; one that must not be read any more with the reason. The first time they
    are decoded in batches, in which none would be the one to blame."""
    for entry in entries:
        try:
            watch.begin(entry.key)
        except ValueError as error:
            entry = entry._replace(reason=str(error))
        yield entry


def render(domain: Domain, tokens: np.ndarray, kinds: np.ndarray, codec: Path | None) -> Shown:
    """One row back as a picture, uint8 [R, R, 3]."""
    side = domain.grid[0][1]
    return Shown(picture=tokens.reshape(side, side, 3).astype(np.uint8))


def notes(domain: Domain, raw: str, codec: Path | None) -> Notes:
    """What decides the pixels, to the last bit: libjpeg-turbo is part of simplejpeg and of Pillow."""
    return Notes({name: version(name) for name in ("simplejpeg", "pillow", "numpy")})
