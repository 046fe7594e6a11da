"""A table of pictures and captions (.tsv): its columns, cut into pieces by bytes, the lines of one piece.

Tab-separated, no quoting, the names of the columns in the first line. Pieces are cut at lines, near places that are
known beforehand, so little needs to be read to cut a table of any size.
"""

import difflib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from data_prep.domain import Piece, Refusal

IMAGE, CAPTION = "image", "caption"
# A longer line is refused and never held in memory.
LONGEST_LINE = 1 << 17
# About as many lines as one piece of other raw data has pictures.
_PIECE_BYTES = 1 << 15


def plan_table(path: Path) -> Iterator[Piece]:
    """Byte ranges of the lines below the header; ValueError if a column is missing or there is no line."""
    if not path.is_file():
        found = "is no file" if path.exists() else "does not exist"
        raise ValueError(
            f"{path}: {found}; wanted a .tsv with the columns {IMAGE} and {CAPTION}. Check the path in --raw."
        )
    with path.open("rb") as stream:
        _columns(path, stream)
        start = stream.tell()
    size = path.stat().st_size
    if start >= size:
        raise ValueError(
            f"{path}: holds {size} bytes and no line below its header; wanted pairs. Give --raw a table that has some."
        )
    cuts = itertools.chain([start], _cuts(path, start, size), [size])
    return (Piece(str(path), begin, end) for begin, end in itertools.pairwise(cuts))


def _cuts(path: Path, start: int, size: int) -> Iterator[int]:
    """Where the first line behind each multiple of `_PIECE_BYTES` begins; a line that is longer is in one piece."""
    last = start
    with path.open("rb") as stream:
        for border in range(start + _PIECE_BYTES, size, _PIECE_BYTES):
            if border <= last:
                continue
            # The byte before tells whether a line begins right at the border.
            stream.seek(border - 1)
            _skip_line(stream)
            last = stream.tell()
            if last < size:
                yield last


def table_rows(piece: Piece) -> Iterator[tuple[str, bytes, bytes] | Refusal]:
    """(key, image, caption) of every line in the piece, or why it is none; empty lines are passed over."""
    path = Path(piece.source)
    with path.open("rb") as stream:
        image, caption, width = _columns(path, stream)
        if os.fstat(stream.fileno()).st_size < piece.stop:
            reason = "has become shorter since it was listed: copy it again"
            yield Refusal(path.name, reason, damaged=True)
            return
        stream.seek(piece.start)
        while (offset := stream.tell()) < piece.stop and (line := stream.readline(LONGEST_LINE)):
            key = f"{path.name}, byte {offset}"
            if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
                yield Refusal(key, f"a line of {LONGEST_LINE} bytes or more")
                return  # longer than a piece should be, so it is the last one in this
            fields = line.rstrip(b"\r\n").split(b"\t")
            if len(fields) == width:
                yield key, fields[image], fields[caption]
            elif fields != [b""]:
                yield Refusal(key, f"{len(fields)} columns; the header has {width}")


def _skip_line(stream: IO[bytes]) -> None:
    """Go on to the next line."""
    size = 1 << 12  # few lines are longer; those that are may be of gigabytes
    while block := stream.read(size):
        end = block.find(b"\n") + 1
        if end:
            stream.seek(end - len(block), os.SEEK_CUR)
            return
        size = min(2 * size, 1 << 20)


def _columns(path: Path, stream: IO[bytes]) -> tuple[int, int, int]:
    """Where the two columns are and how many there are; leaves `stream` behind the header."""
    header = stream.readline(LONGEST_LINE).decode("utf-8-sig", "replace")
    names = header.rstrip("\r\n").split("\t")
    for wanted in (IMAGE, CAPTION):
        if names.count(wanted) != 1:
            near = difflib.get_close_matches(wanted, set(names) - {IMAGE, CAPTION}, 1, 0.5)
            hint = f"rename column {near[0]!r}" if near else "name them in its first line"
            shown = ", ".join(repr(name[:40]) for name in names[:8])
            raise ValueError(
                f"{path}: its first line names the columns {shown}; wanted one {IMAGE!r} and one {CAPTION!r}, and "
                f"there are {names.count(wanted)} called {wanted!r}. Separate them by tabs and {hint}."
            )
    return names.index(IMAGE), names.index(CAPTION), len(names)
