"""The .idx file of a shard, as `data_prep/shards.py` describes it: its header, its arrays, and whether they are right.

Nothing in it says what its pieces mean: that is for the domain to say, which every check here is given.
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.domain import Domain

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
# Megatron's dtype codes; the float codes (6, 7) are no token ids.
DTYPES: dict[int, np.dtype] = {
    code: np.dtype(name)
    for code, name in ((1, "<u1"), (2, "<i1"), (3, "<i2"), (4, "<i4"), (5, "<i8"), (8, "<u2"))
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
# Entries looked at in one go: bounds the memory, whatever the size of an index.
_BLOCK = 1 << 22


@dataclass(frozen=True)
class IndexHeader:
    """The fixed part of an .idx file, with where its arrays lie (byte offsets)."""

    dtype: np.dtype
    sequences: int
    documents: int
    has_modes: bool

    @property
    def pointers_at(self) -> int:
        """Where the int64 [sequences] byte offsets start."""
        return HEADER.size + 4 * self.sequences

    @property
    def documents_at(self) -> int:
        """Where the int64 [documents + 1] sequence numbers start."""
        return HEADER.size + 12 * self.sequences

    @property
    def modes_at(self) -> int:
        """Where the int8 [sequences] kinds start, if there are any."""
        return self.documents_at + 8 * (self.documents + 1)


def read_header(path: Path) -> IndexHeader:
    """The header of an .idx file, its size checked; ValueError names the file and what is wrong with it."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        raw = stream.read(HEADER.size)
    if len(raw) < HEADER.size or raw[: len(MAGIC)] != MAGIC:
        raise ValueError(
            f"{path}: starts with {raw[:9]!r} and is {size} bytes long; wanted the header of a Megatron index "
            f"({MAGIC!r}). Point at the PREFIX of a .bin/.idx pair, or build the dataset again."
        )
    _, version, code, sequences, entries = HEADER.unpack(raw)
    if version != 1 or code not in DTYPES:
        raise ValueError(
            f"{path}: version {version}, dtype code {code}; wanted version 1 and an integer dtype "
            f"({', '.join(f'{c} {d.name}' for c, d in DTYPES.items())}). Write the shard again in that form."
        )
    base = HEADER.size + 12 * sequences + 8 * entries
    if entries < 1 or size not in (base, base + sequences):
        raise ValueError(
            f"{path}: {size} bytes, but {sequences} sequences and {entries} document entries make {base} bytes, or "
            f"{base + sequences} with modes. The file is cut off or damaged: copy or build it again."
        )
    return IndexHeader(
        DTYPES[code], sequences, entries - 1, size == base + sequences and sequences > 0
    )


@dataclass(frozen=True)
class ShardIndex:
    """A mapped .idx file: views into the map, which lives as long as they do.

    `lengths` int32 [N] in tokens, `pointers` int64 [N] in bytes, `documents` int64 [M + 1]: the first sequence of each
    and the end, `modes` int8 [N], or [0] where the file has none.
    """

    path: Path
    header: IndexHeader
    lengths: np.ndarray
    pointers: np.ndarray
    documents: np.ndarray
    modes: np.ndarray
    buffer: mmap.mmap


def map_index(path: Path) -> ShardIndex:
    """The arrays of an .idx file without reading them; ValueError if its header or size is wrong."""
    header = read_header(path)
    with path.open("rb") as stream:
        raw = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    count = header.sequences
    return ShardIndex(
        path,
        header,
        np.frombuffer(raw, "<i4", count, HEADER.size),
        np.frombuffer(raw, "<i8", count, header.pointers_at),
        np.frombuffer(raw, "<i8", header.documents + 1, header.documents_at),
        np.frombuffer(raw, "<i1", count if header.has_modes else 0, header.modes_at),
        raw,
    )


def check_index(index: ShardIndex, here: Domain, bin_bytes: int) -> None:
    """ValueError unless the arrays agree with each other, with a .bin of `bin_bytes`, and with the rows of `here`."""
    _check_pointers(index, bin_bytes)
    _check_documents(index)
    if index.header.has_modes:
        for block in _blocks(index.modes):
            low, high = int(block.min()), int(block.max())
            good, most = 0 <= low <= high < len(here.kinds), len(here.kinds) - 1
            require(index.path, good, f"modes {low} to {high}", f"0 to {most}, as {here.name} has")
    elif len(here.kinds) > 1:
        require(index.path, False, "no modes", f"the kind of each sequence for domain {here.name}")
    if not here.packed:
        _check_rows(index, here)


def require(path: Path, good: bool, found: str, wanted: str) -> None:
    """ValueError with what was found and wanted, unless all is `good`."""
    if not good:
        raise ValueError(
            f"{path}: {found}; wanted {wanted}. The shard is damaged, or of another domain: copy it again, or build "
            f"again."
        )


def _blocks(values: np.ndarray) -> list[np.ndarray]:
    return [values[start : start + _BLOCK] for start in range(0, len(values), _BLOCK)]


def _check_pointers(index: ShardIndex, bin_bytes: int) -> None:
    """Sequences follow one another without a gap and fill the .bin."""
    item, place = index.header.dtype.itemsize, 0
    for lengths, pointers in zip(_blocks(index.lengths), _blocks(index.pointers), strict=True):
        sizes = lengths.astype(np.int64) * item
        good = bool((lengths > 0).all())
        require(index.path, good, "a sequence without tokens", "at least one token each")
        ends = place + np.cumsum(sizes)
        good = bool((pointers == ends - sizes).all())
        wanted = "their running sum"
        require(index.path, good, "pointers that do not follow the lengths", wanted)
        place = int(ends[-1])
    require(index.path, place == bin_bytes, f"{place} bytes", f"{bin_bytes}, the size of the .bin")


def _check_documents(index: ShardIndex) -> None:
    before, count = -1, index.header.sequences
    for block in _blocks(index.documents):
        rising = block[0] > before and bool((np.diff(block) > 0).all())
        require(index.path, rising, "document starts that do not rise", f"0 up to {count}")
        before = int(block[-1])
    good = index.documents[0] == 0 and before == count
    require(index.path, bool(good), "documents that are not all sequences", f"0 up to {count}")


def _check_rows(index: ShardIndex, here: Domain) -> None:
    """Every document is one row: it begins where the row does. Needs right pointers and documents."""
    row, first = here.seq_length * index.header.dtype.itemsize, 0
    for block in _blocks(index.documents[:-1]):
        wrong = np.flatnonzero(index.pointers[block] != (first + np.arange(len(block))) * row)
        if wrong.size:
            number = first + int(wrong[0])
            raise _not_a_row(index, here, max(0, number - 1))
        first += len(block)
    if int(index.lengths[index.documents[-2] :].sum() if first else 0) not in (0, here.seq_length):
        raise _not_a_row(index, here, first - 1)


def _not_a_row(index: ShardIndex, here: Domain, number: int) -> ValueError:
    """Of the documents, `number` is the first whose length is none of a row."""
    parts = index.lengths[index.documents[number] : index.documents[number + 1]]
    return ValueError(
        f"{index.path}: document {number} has {int(parts.sum())} tokens; wanted {here.seq_length}, one row of domain "
        f"{here.name}, in each. The shard is damaged, or of another domain: copy it again, or build again."
    )
