"""One open shard: its rows of tokens, and the kind of every token.

Rows are read in one of two ways. A few rows of a shard come by `pread`: with thousands of shards nearly every row is in
another one, and mapping a file to read 192 bytes costs more than reading them. From `MAP_FROM` rows of one shard on it
is mapped and rows are gathered in one go. Both make copies: a view into a map that is closed later would be read
after its memory is gone.

The .idx is read only where a row has several kinds, through a map, by binary search.
"""

import bisect
import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.domain import Domain
from data_prep.files import beside
from data_prep.shard_index import IndexHeader, ShardIndex, map_index, read_header

# From so many rows of one shard on, a map beats `pread` and searching for all at once beats bisect (measured with
# benchmarks/loader.py).
MAP_FROM = 12
_INT64 = struct.Struct("<q")


@dataclass(frozen=True)
class Shard:
    """A shard that may not be open: where it is and what its files must be."""

    prefix: Path
    rows: int
    tokens: int
    bin_bytes: int
    idx_bytes: int


class OpenShard:
    """A shard with open files: at most two handles, let go with the object. Call `check_pair` before the first time."""

    def __init__(self, shard: Shard, here: Domain, dtype: np.dtype) -> None:
        self._shard, self._length, self._dtype = shard, here.seq_length, dtype
        self._num_kinds, self._packed = len(here.kinds), here.packed
        self._handle = _open(f"{shard.prefix}.bin", shard.bin_bytes)
        self._map: np.ndarray | None = None
        self.files = 1 if self._num_kinds == 1 else 2
        if self._num_kinds > 1:
            self._index = _map_index(shard)

    def __del__(self) -> None:
        if getattr(self, "_handle", -1) >= 0:
            os.close(self._handle)

    def read(self, rows: np.ndarray, where: np.ndarray | slice, out: np.ndarray) -> None:
        """Copy rows (int64 [n]) of this shard to `out[where]`, out being [B, S] of the stored dtype."""
        if self._map is None and len(rows) >= MAP_FROM:
            stored = np.frombuffer(
                _map_handle(self._handle), self._dtype, count=self._shard.rows * self._length
            )
            self._map = stored.reshape(self._shard.rows, self._length)
            os.close(self._handle)
            self._handle = -1
        if self._map is not None:
            if isinstance(where, slice):
                # The rows exist; "clip" only lets `take` write straight into `out`.
                self._map.take(rows, axis=0, out=out, mode="clip")
            else:
                out[where] = self._map.take(rows, axis=0)
            return
        size = self._length * self._dtype.itemsize
        places = range(len(rows)) if isinstance(where, slice) else where.tolist()
        for place, row in zip(places, rows.tolist(), strict=True):
            if os.preadv(self._handle, [out[place]], row * size) != size:
                check_size(
                    beside(self._shard.prefix, ".bin"),
                    self._shard.bin_bytes,
                    "the dataset as it was opened",
                )

    def kinds(self, rows: np.ndarray) -> np.ndarray:
        """The kind of every token, uint8 [n, S], of rows (int64 [n]) of this shard."""
        if self._num_kinds == 1:
            return np.zeros((len(rows), self._length), np.uint8)
        item = self._dtype.itemsize
        if not self._packed:
            return _kinds_of_documents(self._index, rows, self._length, item, self._num_kinds)
        ends = rows * self._length * item, (rows * self._length + self._length - 1) * item
        spans = _sequences_of(self._index, *ends, self._length)
        return _kinds(self._index, rows, *spans, self._length, item, self._num_kinds)


def whole_documents(
    shard: Shard, rows: np.ndarray, length: int, item: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The documents that lie whole in one of these rows (int64 [n]) of a packed shard: which of the rows, where in it
    each begins and where it ends, int64 [documents] each. Reads the .idx; `item` is the size of a token in bytes."""
    index = _map_index(shard)
    firsts = index.documents[:-1]
    bounds = np.append(index.pointers[firsts[firsts < len(index.pointers)]] // item, shard.tokens)
    if len(bounds) != len(index.documents) or (np.diff(bounds) <= 0).any():
        raise ValueError(
            f"{index.path}: documents that do not follow one another; wanted each to begin behind the one before. The "
            f"file is damaged: run `python -m data_prep check` on the folder, then copy or build it again."
        )
    first = np.searchsorted(bounds, rows * length)
    last = np.searchsorted(bounds, (rows + 1) * length, side="right") - 1
    counts = np.maximum(last - first, 0)
    which = np.repeat(np.arange(len(rows)), counts)
    flat = np.arange(len(which)) + np.repeat(first - (np.cumsum(counts) - counts), counts)
    offset = rows[which] * length
    return which, bounds[flat] - offset, bounds[flat + 1] - offset


def find_prefix(path: Path, name: str | None) -> bool:
    """Is `path` the PREFIX of a .bin/.idx pair, and no folder? Then ValueError unless its domain's `name` is given."""
    if path.is_dir() or not beside(path, ".idx").is_file():
        return False
    if name is None:
        raise ValueError(
            f"{path}: a bare .bin/.idx pair, domain not given; wanted the name of its domain. "
            f"Add --domain NAME (from Python: domain=NAME), one that `python -m data_prep list` shows."
        )
    return True


def check_size(path: Path, wanted: int, whose: str) -> None:
    """ValueError if `path` is missing or not `wanted` bytes long, as `whose` word has it."""
    size = path.stat().st_size if path.is_file() else None
    if size != wanted:
        found = "is missing" if size is None else f"has {size} bytes"
        raise ValueError(
            f"{path}: {found}; wanted {wanted} bytes, says {whose}. The file is cut off, damaged or of another build: "
            f"copy it again, or delete the folder and build again."
        )


def _open(path: str, size: int) -> int:
    """A handle of a file that is `size` bytes long."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    if os.fstat(handle).st_size != size:
        os.close(handle)
        check_size(Path(path), size, "the dataset as it was opened")
    return handle


def _map_handle(handle: int) -> mmap.mmap:
    mapped = mmap.mmap(handle, 0, access=mmap.ACCESS_READ)
    # Rows come in random order: without this the kernel reads 128 KiB around every one of them.
    mapped.madvise(mmap.MADV_RANDOM)
    return mapped


def _map_index(shard: Shard) -> ShardIndex:
    path = beside(shard.prefix, ".idx")
    check_size(path, shard.idx_bytes, "the dataset as it was opened")
    index = map_index(path)
    index.buffer.madvise(mmap.MADV_RANDOM)
    return index


def check_pair(shard: Shard, here: Domain, dtype: np.dtype) -> None:
    """Do the first and last entries of the .idx describe this .bin? Reads a few bytes, whatever the size."""
    idx_path = beside(shard.prefix, ".idx")
    check_size(beside(shard.prefix, ".bin"), shard.bin_bytes, "the dataset as it was opened")
    header = read_header(idx_path)
    check_dtype(idx_path, header, here, dtype)
    first, last, length = _ends(idx_path, header)
    end = last + length * header.dtype.itemsize
    whole = here.packed or shard.tokens == header.documents * here.seq_length
    if first != 0 or end != shard.bin_bytes or not whole:
        documents = "any number of" if here.packed else shard.tokens // here.seq_length
        raise ValueError(
            f"{idx_path}: sequences from byte {first} to {end}, {header.documents} documents; wanted 0 to "
            f"{shard.bin_bytes} (the .bin) and {documents} documents for domain {here.name} (rows of "
            f"{here.seq_length}). The pair does not belong together, or to this domain: copy both files again, or "
            f"build again."
        )


def check_dtype(path: Path, header: IndexHeader, here: Domain, dtype: np.dtype) -> None:
    """ValueError unless tokens are stored as `dtype`, with modes where the domain has several kinds."""
    if header.dtype != dtype or (not header.has_modes and len(here.kinds) > 1):
        raise ValueError(
            f"{path}: tokens are {header.dtype.name}, {'with' if header.has_modes else 'without'} modes; wanted "
            f"{dtype.name} with modes for domain {here.name}. The file is of another build, or was written for text "
            f"only (multimodal=False): write or build it again."
        )


def _ends(idx_path: Path, header: IndexHeader) -> tuple[int, int, int]:
    """First pointer, last pointer (bytes), last length (tokens); zeros if there is no sequence."""
    if not header.sequences:
        return 0, 0, 0
    with idx_path.open("rb") as stream:
        handle = stream.fileno()
        first = os.pread(handle, 8, header.pointers_at)
        last = os.pread(handle, 8, header.documents_at - 8)
        length = os.pread(handle, 4, header.pointers_at - 4)
    return _INT64.unpack(first)[0], _INT64.unpack(last)[0], struct.unpack("<i", length)[0]


def _kinds(
    index: ShardIndex,
    rows: np.ndarray,
    first: np.ndarray,
    last: np.ndarray,
    length: int,
    item: int,
    num_kinds: int,
) -> np.ndarray:
    """The kind of every token, uint8 [n, length], of rows that begin in sequence `first` and end in `last` (int64 [n]);
    `item` is the size of a token in bytes."""
    row_start = rows * length
    flat, ends, counts = _numbers(first, last - first + 1)
    begin = np.maximum(index.pointers[flat] // item, np.repeat(row_start, counts))
    stop = np.empty_like(begin)
    stop[:-1] = begin[1:]
    stop[ends - 1] = row_start + length
    return _spread(index, flat, stop - begin, num_kinds).reshape(len(rows), length)


def _kinds_of_documents(
    index: ShardIndex, rows: np.ndarray, length: int, item: int, num_kinds: int
) -> np.ndarray:
    """The same of rows that are whole documents: the .idx says where those begin."""
    first, stop = index.documents[rows], index.documents[rows + 1]
    counts = stop - first
    # As unsigned numbers negative ones are too large.
    inside = first.view(np.uint64).max() < stop.max() <= len(index.pointers) and counts.min() > 0
    if inside and (index.pointers[first] == rows * (length * item)).all():
        flat, ends, counts = _numbers(first, counts)
        lengths = index.lengths[flat]
        if (np.add.reduceat(lengths, ends - counts) == length).all():
            return _spread(index, flat, lengths, num_kinds).reshape(len(rows), length)
    raise ValueError(
        f"{index.path}: documents that do not begin where rows do; wanted one document of {length * item} bytes for "
        f"each row. The file is damaged or of another domain: run `python -m data_prep check` on the folder, then "
        f"copy or build it again."
    )


def _numbers(first: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The numbers first, first + 1, ... of row 0, `counts` of them, then those of row 1, ...; where each row's end; the
    counts."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1]) + np.repeat(first - (ends - counts), counts), ends, counts


def _spread(
    index: ShardIndex, sequences: np.ndarray, lengths: np.ndarray, num_kinds: int
) -> np.ndarray:
    """The kind of each of these sequences as often as `lengths` says."""
    modes = index.modes[sequences].view(np.uint8)  # negative ones are too large
    if lengths.min() < 0 or modes.max() >= num_kinds:
        signed = modes.view(np.int8)
        raise ValueError(
            f"{index.path}: pointers that go back or modes from {signed.min()} to {signed.max()}; "
            f"wanted rising pointers and modes 0 to {num_kinds - 1}. The file is damaged: run `python -m data_prep "
            f"check` on the folder, then copy or build it again."
        )
    return np.repeat(modes, lengths)


def _sequences_of(
    index: ShardIndex, first_byte: np.ndarray, last_byte: np.ndarray, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers (int64 [n] each) of the sequences that hold the first and the last byte asked for."""
    count = len(index.pointers)
    if len(first_byte) < MAP_FROM:
        pairs = zip(first_byte.tolist(), last_byte.tolist(), strict=True)
        found = np.array([_bisect(index, low, high, length, count) for low, high in pairs])
        return found[:, 0], found[:, 1]
    first = _search(index, first_byte, np.zeros_like(first_byte), np.full_like(first_byte, count))
    # A row touches at most `length` sequences, unless some are empty: then search them all.
    last = _search(index, last_byte, first, np.minimum(first + length + 1, count))
    if (last - first >= length).any():
        last = _search(index, last_byte, first, np.full_like(first, count))
    return first, last


def _search(
    index: ShardIndex, targets: np.ndarray, low: np.ndarray, high: np.ndarray
) -> np.ndarray:
    """The last sequence in [low, high) whose pointer is <= target, for all targets at once.

    np.searchsorted would first copy the whole array, because it is not aligned in the file; this touches only the
    pointers that it compares with.
    """
    for _ in range(int((high - low).max()).bit_length()):
        middle = (low + high) >> 1
        before = index.pointers[middle] <= targets
        low, high = np.where(before, middle, low), np.where(before, high, middle)
    return low


def _bisect(
    index: ShardIndex, first_byte: int, last_byte: int, length: int, count: int
) -> tuple[int, int]:
    """First and last sequence of one row: quicker for a few rows than `_search`."""
    unpack, buffer, base = _INT64.unpack_from, index.buffer, index.header.pointers_at
    first = max(
        0,
        bisect.bisect_right(range(count), first_byte, key=lambda n: unpack(buffer, base + 8 * n)[0])
        - 1,
    )
    # A row touches at most `length` sequences, unless some are empty: then search them all.
    near = index.pointers[first : first + length + 1].copy()
    last = first + int(near.searchsorted(last_byte, side="right")) - 1
    if last - first >= length:
        last = (
            bisect.bisect_right(
                range(count), last_byte, key=lambda n: unpack(buffer, base + 8 * n)[0]
            )
            - 1
        )
    return first, max(first, last)
