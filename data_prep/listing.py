"""The listing of a build: a file with a line for each raw item, in order, cut into the pieces that workers do alone."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from data_prep.domain import Piece, Refusal


class Listed(NamedTuple):
    """What stays together in one piece: its lines in the listing, its bytes of raw data, and what is wrong with it if
    that is already seen."""

    lines: bytes
    size: int
    damage: tuple[Refusal, ...] = ()


def cut_listing(
    items: Iterable[Listed], listing: Path, most_items: int, most_bytes: float
) -> Iterator[Piece]:
    """Write the lines of all `items` to `listing`; pieces end with the item that reaches `most_items` or `most_bytes`.
    No items make no pieces. The lines of a piece that is given away are in the file."""
    start = offset = count = size = 0
    damage: list[Refusal] = []
    with listing.open("wb") as stream:
        write = stream.write
        for lines, more, damaged in items:
            offset += write(lines)
            count, size = count + 1, size + more
            if damaged:
                damage += damaged
            if count == most_items or size >= most_bytes:
                stream.flush()
                yield Piece(str(listing), start, offset, tuple(damage))
                start, count, size, damage = offset, 0, 0, []
    if start != offset:
        yield Piece(str(listing), start, offset, tuple(damage))


def some(pieces: Iterator[Piece], otherwise: str) -> Iterator[Piece]:
    """The same pieces; ValueError that says `otherwise` if there is none."""
    first = next(pieces, None)
    if first is None:
        raise ValueError(otherwise)
    yield first
    yield from pieces


def read_lines(piece: Piece) -> bytes:
    """The lines of one piece of a listing; ValueError if they are not all there."""
    wanted = piece.stop - piece.start
    with open(piece.source, "rb") as stream:
        stream.seek(piece.start)
        lines = stream.read(wanted)
    if len(lines) != wanted or not lines.endswith(b"\n"):
        raise ValueError(
            f"{piece.source}: {len(lines)} bytes from byte {piece.start} on; wanted {wanted}, the list of one "
            f"piece's items. This file has been changed: delete the folder of the build and run the same command again."
        )
    return lines
