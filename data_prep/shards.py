"""The two files of a shard: Megatron's indexed format, written whole or not at all.

    PREFIX.bin   the token ids of all sequences back to back; no header, no padding
    PREFIX.idx   header (34 bytes): magic "MMIDIDX\\0\\0", version uint64 = 1, dtype code uint8,
                 N sequences uint64, M = documents + 1 uint64; then the arrays
                 lengths int32 [N], pointers int64 [N] (byte offsets in .bin), documents int64 [M] (first sequence of
                 each document, then N), modes int8 [N] (the kind of each sequence; foreign files may lack them)

All little-endian; the int64 arrays are not aligned. The layout is megatron-core 0.16.1's
`megatron/core/datasets/indexed_dataset.py`, so Megatron-LM, NeMo and GPT-NeoX read these files.
"""

import hashlib
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from data_prep.domain import Document, Domain

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
# Megatron's dtype codes; the float codes (6, 7) are no token ids.
DTYPES: dict[int, np.dtype] = {
    code: np.dtype(name)
    for code, name in ((1, "<u1"), (2, "<i1"), (3, "<i2"), (4, "<i4"), (5, "<i8"), (8, "<u2"))
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
_MAX_LENGTH = (1 << 31) - 1


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
class ShardSummary:
    """What the manifest keeps of one written shard; sizes in bytes."""

    file: str
    sequences: int
    documents: int
    tokens: int
    bin_bytes: int
    idx_bytes: int
    bin_sha256: str
    idx_sha256: str


class ShardWriter:
    """Writes one shard: `with ShardWriter(prefix, domain) as writer: writer.add(document)`.

    Both files get temporary names and are renamed, the .idx last, when the block ends well; when it raises, nothing is
    left. Token ids are checked against their kind's range. `summary` holds counts and hashes afterwards.
    """

    summary: ShardSummary

    def __init__(self, prefix: Path, domain: Domain) -> None:
        self._prefix, self._domain = prefix, domain
        self._bin_temporary = prefix.with_name(prefix.name + ".bin.tmp")
        self._idx_temporary = prefix.with_name(prefix.name + ".idx.tmp")
        self._lengths: list[np.ndarray] = []
        self._modes: list[np.ndarray] = []
        self._documents: list[np.ndarray] = []
        self._sequences = self._tokens = self._document_count = 0
        self._hash = hashlib.sha256()
        self._stream: BinaryIO

    def __enter__(self) -> "ShardWriter":
        self._stream = self._bin_temporary.open("wb")
        return self

    def add(self, document: Document) -> None:
        """Append one document; its arrays may have any integer dtype."""
        tokens = np.concatenate([np.asarray(part).ravel() for _, part in document.parts])
        lengths = np.array([np.asarray(part).size for _, part in document.parts], np.int64)
        modes = np.array([mode for mode, _ in document.parts], np.int64)
        self.add_block(tokens, lengths, modes, np.array([len(document.parts)], np.int64))

    def add_block(
        self, tokens: np.ndarray, lengths: np.ndarray, modes: np.ndarray, parts: np.ndarray
    ) -> None:
        """Append many documents at once: all their tokens in a row, the length and mode of each sequence [N], and the
        number of sequences in each document [documents]."""
        _check_block(self._prefix, self._domain, tokens, lengths, modes, parts)
        data = (
            np.ascontiguousarray(tokens, self._domain.dtype).data.cast("B") if tokens.size else b""
        )
        self._stream.write(data)
        self._hash.update(data)
        self._lengths.append(lengths.astype("<i4"))
        self._modes.append(modes.astype("<i1"))
        self._documents.append(self._sequences + np.cumsum(parts, dtype="<i8") - parts)
        self._sequences += len(lengths)
        self._document_count += len(parts)
        self._tokens += int(tokens.size)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._commit()
        finally:
            self._stream.close()
            self._bin_temporary.unlink(missing_ok=True)
            self._idx_temporary.unlink(missing_ok=True)

    def _commit(self) -> None:
        index = self._index_bytes()
        _sync(self._stream)
        with self._idx_temporary.open("wb") as stream:
            stream.write(index)
            _sync(stream)
        bin_path, idx_path = (
            self._prefix.with_name(self._prefix.name + end) for end in (".bin", ".idx")
        )
        # An old .idx must never stand beside a new .bin, so it goes first and the new one comes last.
        idx_path.unlink(missing_ok=True)
        os.replace(self._bin_temporary, bin_path)
        os.replace(self._idx_temporary, idx_path)
        sync_folder(self._prefix.parent)
        self.summary = ShardSummary(
            file=self._prefix.name, sequences=self._sequences, documents=self._document_count, tokens=self._tokens,
            bin_bytes=self._tokens * self._domain.dtype.itemsize, idx_bytes=len(index),
            bin_sha256=self._hash.hexdigest(), idx_sha256=hashlib.sha256(index).hexdigest(),
        )  # fmt: skip

    def _index_bytes(self) -> bytes:
        lengths = np.concatenate([np.empty(0, "<i4"), *self._lengths])
        ends = np.cumsum(lengths, dtype="<i8")
        pointers = (ends - lengths) * self._domain.dtype.itemsize
        documents = np.concatenate([*self._documents, np.array([self._sequences], "<i8")]).astype(
            "<i8"
        )
        modes = np.concatenate([np.empty(0, "<i1"), *self._modes])
        header = HEADER.pack(MAGIC, 1, CODES[self._domain.dtype], len(lengths), len(documents))
        return b"".join(
            [header, lengths.tobytes(), pointers.tobytes(), documents.tobytes(), modes.tobytes()]
        )


def _check_block(
    prefix: Path,
    domain: Domain,
    tokens: np.ndarray,
    lengths: np.ndarray,
    modes: np.ndarray,
    parts: np.ndarray,
) -> None:
    """Refuse what a reader could not tell from good data: ids out of range, sums that do not add up."""
    if not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(
            f"{prefix}: token ids of type {tokens.dtype}; wanted integers. Convert them before writing."
        )
    if lengths.sum() != tokens.size or len(lengths) != len(modes) or parts.sum() != len(lengths):
        raise ValueError(
            f"{prefix}: {len(lengths)} lengths that sum to {lengths.sum()}, {len(modes)} modes, documents of "
            f"{parts.sum()} sequences, {tokens.size} tokens; wanted sums that agree. Give one length and mode a part."
        )
    if lengths.size and (lengths.min() < 1 or lengths.max() > _MAX_LENGTH or parts.min() < 1):
        raise ValueError(
            f"{prefix}: a sequence of {lengths.min()} to {lengths.max()} tokens; wanted 1 to {_MAX_LENGTH} and at "
            f"least one sequence a document. Leave empty parts out."
        )
    for mode in np.unique(modes):
        if not 0 <= mode < len(domain.kinds):
            raise ValueError(
                f"{prefix}: mode {mode}; wanted 0 to {len(domain.kinds) - 1} "
                f"({', '.join(kind.kind for kind in domain.kinds)}). Use the kinds of domain {domain.name}."
            )
        kind = domain.kinds[mode]
        # One kind: every token is of it, and no mask as large as the data is needed.
        own = tokens if len(domain.kinds) == 1 else tokens[np.repeat(modes == mode, lengths)]
        if int(own.min()) < kind.start or int(own.max()) >= kind.stop:
            raise ValueError(
                f"{prefix}: {kind.kind} ids from {own.min()} to {own.max()}; wanted {kind.start} to {kind.stop - 1} "
                f"(domain {domain.name}). The tokens do not belong to this domain."
            )


def write_file(path: Path, data: bytes) -> None:
    """Write a small file so that it appears whole or not at all, even when the machine dies."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            _sync(stream)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def _sync(stream: BinaryIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
