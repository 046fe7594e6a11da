"""The file of a video: its bytes, also inside of a tar, which container it is, and whether it ends where that says."""

import io
import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from data_prep.raw_files import Entry

# Of an mp4, looked at to see where it ends; a fragmented one has some for every second.
_MOST_BOXES = 100_000


class Window(io.RawIOBase):
    """`size` bytes at `offset` of an open file, as a file of its own: a video inside a tar is read where it lies."""

    def __init__(
        self, handle: int, offset: int, size: int, beat: Callable[[int], None] = lambda items: None
    ) -> None:
        self._handle, self._offset, self._size, self._at = handle, offset, size, 0
        self._beat = beat

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = (0, self._at, self._size)[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        self._beat(0)
        view = memoryview(buffer).cast("B")
        wanted = max(0, min(len(view), self._size - self._at))
        data = os.pread(self._handle, wanted, self._offset + self._at)
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


@contextmanager
def open_entry(entry: Entry, beat: Callable[[int], None] = lambda items: None) -> Iterator[Window]:
    """The bytes of one raw item as a file; ValueError if it may not or cannot be read. Every read calls `beat(0)`."""
    if entry.reason:
        raise ValueError(entry.reason)
    if not entry.size:
        raise ValueError("empty file")
    try:
        # O_NONBLOCK: a pipe put in a file's place since the listing must not hang us.
        handle = os.open(entry.file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("not a plain file (device, socket or pipe)")
        if found.st_size < entry.offset + entry.size:
            raise ValueError(f"cut off: {found.st_size - entry.offset} bytes of {entry.size}")
        yield Window(handle, entry.offset, entry.size, beat)
    finally:
        os.close(handle)


def container_of(stream: io.RawIOBase) -> tuple[str, list[str]]:
    """FFmpeg's name of the container that the first bytes show, and damage: whether the file ends before it does."""
    size = stream.seek(0, os.SEEK_END)
    head = _at(stream, 0, 64)
    if not head:
        raise ValueError("empty file")
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"):
        form, end = "mov", _mp4_end(stream, size)
    elif head[:4] == b"\x1a\x45\xdf\xa3":
        form, end = "matroska", _matroska_end(stream)
    elif head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        form, end = "avi", 8 + int.from_bytes(head[4:8], "little")
    else:
        raise ValueError(f"no mp4, mov, mkv, webm or avi: starts with {head[:12]!r}")
    stream.seek(0)
    return form, [f"{size} bytes of {end}"] if end > size else []


def _at(stream: io.RawIOBase, place: int, size: int) -> bytes:
    stream.seek(place)
    return stream.read(size) or b""


def _mp4_end(stream: io.RawIOBase, size: int) -> int:
    """Where the last box ends: size uint32 and type, then its 64-bit size if the first is 1 (ISO 14496-12, 4.2)."""
    place = 0
    for _ in range(_MOST_BOXES):
        if place + 16 > size:
            break
        length, _, long = struct.unpack(">I4sQ", _at(stream, place, 16))
        length = long if length == 1 else length
        if length < 8:  # 0: to the end of the file; anything else is for the demuxer to judge
            break
        place += length
    return place


def _matroska_end(stream: io.RawIOBase) -> int:
    """Where the Segment ends, which follows the EBML header (RFC 8794, 9599); 0 where it does not say."""
    place = 4
    for last in (False, True):
        head = _at(stream, place, 8)
        width = 9 - head[0].bit_length() if head and head[0] else 9
        if len(head) < width:
            return 0
        value = int.from_bytes(head[:width], "big") & ((1 << 7 * width) - 1)
        place += width
        if value == (1 << 7 * width) - 1:  # live streams: unknown
            return 0
        place += value + (0 if last else 4)
    return place
