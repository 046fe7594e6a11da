"""The two files of a shard: Megatron's indexed format, written whole or not at all.

    PREFIX.bin   the token ids of all sequences back to back; no header, no padding
    PREFIX.idx   header (34 bytes): magic "MMIDIDX\\0\\0", version uint64 = 1, dtype code uint8,
                 N sequences uint64, M = documents + 1 uint64; then the arrays
                 lengths int32 [N], pointers int64 [N] (byte offsets in .bin), documents int64 [M] (first sequence of
                 each document, then N), modes int8 [N] (the kind of each sequence; foreign files may lack them)

All little-endian; the int64 arrays are not aligned. The layout is megatron-core 0.16.1's
`megatron/core/datasets/indexed_dataset.py`, so Megatron-LM, NeMo and GPT-NeoX read these files.
"""

import contextlib
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from data_prep.domain import Domain
from data_prep.files import beside, sync, sync_path, temporary_name
from data_prep.shard_index import CODES, HEADER, MAGIC

_MAX_LENGTH = (1 << 31) - 1


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
    """Writes one shard: `with ShardWriter(prefix, domain) as writer: writer.add_block(...)`.

    Both files get temporary names and are renamed, the .idx last, when the block ends well; when it raises, nothing is
    left. Token ids are checked against their kind's range. `summary` holds counts and hashes afterwards.
    """

    summary: ShardSummary

    def __init__(self, prefix: Path, domain: Domain) -> None:
        self._prefix, self._domain = prefix, domain
        self._bin_temporary = temporary_name(beside(prefix, ".bin"))
        self._idx_temporary = temporary_name(beside(prefix, ".idx"))
        self._lengths: list[np.ndarray] = []
        self._modes: list[np.ndarray] = []
        self._documents: list[np.ndarray] = []
        self._sequences = self._tokens = self._document_count = 0
        self._hash = hashlib.sha256()
        self._stream: BinaryIO

    def __enter__(self) -> "ShardWriter":
        self._stream = self._bin_temporary.open("wb")
        return self

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
            # After a failure it writes what is left, and on a full disk fails again: the first error is to be told.
            with contextlib.suppress(OSError):
                self._stream.close()
            self._bin_temporary.unlink(missing_ok=True)
            self._idx_temporary.unlink(missing_ok=True)

    def _commit(self) -> None:
        index = self._index_bytes()
        sync(self._stream)
        with self._idx_temporary.open("wb") as stream:
            stream.write(index)
            sync(stream)
        bin_path, idx_path = (beside(self._prefix, end) for end in (".bin", ".idx"))
        # An old .idx must never stand beside a new .bin, so it goes first and the new one comes last.
        idx_path.unlink(missing_ok=True)
        os.replace(self._bin_temporary, bin_path)
        os.replace(self._idx_temporary, idx_path)
        sync_path(self._prefix.parent)
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
