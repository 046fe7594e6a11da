"""Documents of text: .txt and .jsonl, plain or as .gz or .zst, and folders of these, as streams.

- A .jsonl file has a document in the field "text" of every line; lines of nothing but spaces hold none.
- A .txt file is one document. A larger one than `PART` is cut behind the first newline after so many bytes, again and
  again, and each part is a document of its own: so a corpus in one file can be divided among splits.

Plain files are cut into stretches that workers read alone, at the beginning of lines; compressed ones are one stretch.
"""

import codecs
import gzip
import io
import json
import os
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import zstandard

from data_prep.domain import Piece, Refusal
from data_prep.folders import PassedOver, walk
from data_prep.listing import Listed, cut_listing, read_lines
from data_prep.watch import Watch

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

PART = 1 << 16
# Books of several MB in one line exist. What is longer is skipped without being held in memory.
LONGEST = 1 << 24
_STRETCH = 1 << 22
# Files in one piece of work, where they are small.
_MOST_FILES = 1024
FIELD = "text"
# A block of zstd can grow 4 bytes to 128 KiB: so much input at a time cannot fill the memory.
_BITE = 1 << 8
_ENDINGS = tuple(kind + packed for kind in (".txt", ".jsonl") for packed in ("", ".gz", ".zst"))
_COPY = "copy it again"
_BOM = codecs.BOM_UTF8


@dataclass(frozen=True)
class Stretch:
    """Bytes [start, stop) of a file, which begin with line `line` (from 1); `reason`: it cannot be read."""

    file: str
    name: str
    start: int
    stop: int
    line: int = 1
    reason: str = ""
    damaged: bool = False

    @property
    def compressed(self) -> bool:
        """Whether the bytes are .gz or .zst, which cannot be entered in the middle."""
        return self.file.lower().endswith((".gz", ".zst"))


@dataclass(frozen=True)
class Text:
    """One document: where it begins (file, and line where that says more) and what it says."""

    key: str
    text: str


def plan_documents(
    raw: Path, listing: Path, passed_over: PassedOver | None = None
) -> Iterator[Piece]:
    """Write the stretches below `raw` to `listing`, one line each, and cut that into pieces of about 4 MiB of text."""
    found = map(_listed, stretches(raw, passed_over))
    return cut_listing(found, listing, _MOST_FILES, _STRETCH)


def _listed(stretch: Stretch) -> Listed:
    damage = (Refusal(stretch.name, stretch.reason, damaged=True),) if stretch.damaged else ()
    size = stretch.stop - stretch.start
    return Listed(json.dumps(astuple(stretch)).encode() + b"\n", size, damage)


def read_piece(piece: Piece, watch: Watch | None = None) -> Iterator[Text | Refusal]:
    """The documents of one piece of `plan_documents`, and what is none, with its reason. `watch` hears of each before
    it is given away: what becomes of it is its doing."""
    for line in read_lines(piece).splitlines():
        yield from read_stretch(Stretch(*json.loads(line)), watch)


# --- which files there are


def stretches(raw: Path, passed_over: PassedOver | None = None) -> Iterator[Stretch]:
    """Every file below `raw`, sorted, in stretches; ValueError if there is none. Other files are counted."""
    passed_over = PassedOver() if passed_over is None else passed_over
    found = False
    for stretch in _of_folder(raw, passed_over) if raw.is_dir() else _one_file(raw):
        found = True
        yield stretch
    if not found:
        raise ValueError(
            f"{raw}: holds no text; wanted files ending in {' '.join(_ENDINGS)}. "
            f"Give --raw one of them, or a folder that holds some."
        )


def _one_file(path: Path) -> Iterator[Stretch]:
    if path.is_file() and _wanted(path.name):
        yield from _cut(str(path.resolve()), path.name)
        return
    found = "is another kind of file" if path.exists() else "does not exist"
    raise ValueError(
        f"{path}: {found}; wanted a file ending in {' '.join(_ENDINGS)}, or a folder of them. "
        f"Give --raw such a path."
    )


def _wanted(name: str) -> bool:
    return name.lower().endswith(_ENDINGS)


def _of_folder(raw: Path, passed_over: PassedOver) -> Iterator[Stretch]:
    for found in walk(str(raw), f"{raw.name}/", _wanted, passed_over):
        if found.reason:
            yield Stretch(found.path, found.key, 0, 0, reason=found.reason)
        else:
            yield from _cut(found.path, found.key)


def _cut(path: str, name: str) -> Iterator[Stretch]:
    """One file in stretches of about 4 MiB that begin with lines; their numbers cost a look at every byte."""
    size = os.stat(path).st_size
    whole = Stretch(path, name, 0, size)
    if not size:
        reason = (
            f"an empty file is no compressed file: {_COPY}" if whole.compressed else "empty file"
        )
        yield Stretch(path, name, 0, 0, reason=reason, damaged=whole.compressed)
    elif whole.compressed or size <= _STRETCH:
        yield whole
    else:
        yield from _cut_plain(path, name)


def _cut_plain(path: str, name: str) -> Iterator[Stretch]:
    start, line, offset = 0, 1, 0
    with open(path, "rb") as stream:
        while block := stream.read(_STRETCH):
            last = block.rfind(b"\n") + 1
            if last:
                stop = offset + last
                yield Stretch(path, name, start, stop, line)
                start, line = stop, line + block.count(b"\n")
            offset += len(block)
    if start < offset:
        yield Stretch(path, name, start, offset, line)


# --- the documents of one stretch


def read_stretch(stretch: Stretch, watch: Watch | None = None) -> Iterator[Text | Refusal]:
    """The documents of one stretch, in order. Damage ends it: what was read before counts."""
    watch = watch or Watch()
    if stretch.reason:
        yield Refusal(stretch.name, stretch.reason, stretch.damaged)
        return
    lines = stretch.file.lower().endswith((".jsonl", ".jsonl.gz", ".jsonl.zst"))
    try:
        with _open(stretch) as stream:
            for line, block in _blocks(stream, stretch, 0 if lines else PART, watch):
                if lines and block.isspace():
                    continue
                key = f"{stretch.name}, line {line}"
                try:
                    watch.begin(key)
                    # Some editors mark the beginning of a file as UTF-8; it is no part of the text.
                    text = _decode(block.removeprefix(_BOM) if line == 1 else block, line)
                    yield Text(key, _check(_field(text) if lines else text))
                except (ValueError, RecursionError) as error:
                    yield Refusal(key, str(error))
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        yield Refusal(stretch.name, f"damaged or cut off ({error}): {_COPY}", damaged=True)
    except OSError as error:
        yield Refusal(stretch.name, f"cannot be read: {error.strerror}", damaged=True)


@contextmanager
def _open(stretch: Stretch) -> Iterator[BinaryIO]:
    # O_NONBLOCK: a pipe put in a file's place since the plan must not hang us.
    handle = os.open(stretch.file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(handle, "rb") as stream:
        if stretch.file.lower().endswith(".gz"):
            yield io.BufferedReader(gzip.GzipFile(fileobj=stream), 1 << 17)
        elif stretch.file.lower().endswith(".zst"):
            yield io.BufferedReader(_Zstandard(stream), 1 << 17)
        else:
            stream.seek(stretch.start)
            yield stream


def _blocks(
    stream: BinaryIO, stretch: Stretch, least: int, watch: Watch
) -> Iterator[tuple[int, bytes]]:
    """(number of the first line, bytes) of blocks of whole lines: the fewest lines that hold `least` bytes, one at
    least. Of a block longer than LONGEST only the beginning, LONGEST + 1 bytes."""
    line = stretch.line
    left = sys.maxsize if stretch.compressed else stretch.stop - stretch.start
    while left > 0:
        block = stream.read(min(least, left))
        if not block.endswith(b"\n"):
            block += stream.readline(LONGEST + 1 - len(block))
        if not block:
            # A compressed file that ends with a whole part of itself, or is empty, looks whole from inside.
            if os.stat(stretch.file).st_size < stretch.stop:
                raise EOFError("it has become shorter since it was listed")
            return
        yield line, block
        line += block.count(b"\n")
        left -= len(block)
        if len(block) > LONGEST and not block.endswith(b"\n"):
            line += 1
            left -= _skip_line(stream, watch)


def _skip_line(stream: BinaryIO, watch: Watch) -> int:
    """Go behind the next newline; how many bytes that was."""
    skipped = 0
    while rest := stream.readline(1 << 20):
        watch.beat(0)
        skipped += len(rest)
        if rest.endswith(b"\n"):
            break
    return skipped


def _decode(block: bytes, line: int) -> str:
    """The text of a block that begins with line `line`; ValueError says what is wrong in which line."""
    if len(block) > LONGEST:
        raise ValueError(f"longer than {LONGEST} bytes")
    if b"\0" in block:
        at = line + block.count(b"\n", 0, block.index(0))
        raise ValueError(f"NUL byte in line {at}")
    try:
        return block.decode()
    except UnicodeDecodeError as error:
        at = line + block.count(b"\n", 0, error.start)
        raise ValueError(f"not UTF-8: byte {block[error.start]:#04x} in line {at}") from None


def _field(line: str) -> str:
    """The document in one line of JSON; ValueError says why there is none."""
    try:
        found = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"not JSON: {error.msg.removesuffix(' at')} at character {error.pos + 1}"
        ) from None
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError(f"JSON that is no object but a {type(found).__name__}")
    if FIELD not in found:
        there = ", ".join(str(name)[:40] for name in list(found)[:8]) or "none"
        raise ValueError(f'no field "{FIELD}"; there are: {there}')
    if not isinstance(found[FIELD], str):
        raise ValueError(f'field "{FIELD}" is no text but a {type(found[FIELD]).__name__}')
    return found[FIELD]


def _check(text: str) -> str:
    """The same text; ValueError if it is none that a tokenizer should see."""
    if not text or text.isspace():
        raise ValueError("empty document")
    if "\0" in text:
        raise ValueError("holds a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("half a surrogate pair: no valid Unicode") from None
    return text


class _Zstandard(io.RawIOBase):
    """The bytes of a .zst file as a stream; EOFError where its last frame has no end (zstandard's own is silent)."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._input = b""
        self._output = memoryview(b"")

    def readable(self) -> bool:
        """Always: for BufferedReader."""
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Fill `buffer` as far as one bite goes; 0 at the end."""
        target = memoryview(buffer)
        while not self._output:
            self._input = self._input or self._stream.read(_BITE)
            if not self._input:
                if self._frame is not None:
                    raise EOFError("the last frame has no end")
                return 0
            self._decompress()
        size = min(len(target), len(self._output))
        target[:size] = self._output[:size]
        self._output = self._output[size:]
        return size

    def _decompress(self) -> None:
        if self._frame is None:
            self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._output = memoryview(self._frame.decompress(self._input))
        self._input = b""
        if self._frame.eof:
            self._input, self._frame = self._frame.unused_data, None
