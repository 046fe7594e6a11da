"""The unit of work of a build: one piece of raw input -> one file of tokens, already divided among the splits.

A chunk file (.npz) holds for each split its tokens, the length and kind of every sequence and the number of sequences
of every document, and the refused items as JSON lines. It appears by rename, so a chunk that is there is whole, and a
build that was killed continues behind it. `merge` turns the chunks of one shard into the shard of each split.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.domain import Document, Domain, Item, Piece, Refusal, domain, family
from data_prep.manifest import ShardRecord
from data_prep.shards import ShardWriter, write_file
from data_prep.workers import Beat

_FIELDS = ("tokens", "lengths", "modes", "parts")


@dataclass(frozen=True)
class Chunk:
    """Everything that a worker needs to make one chunk file; picklable. `fractions`: (split, share) of the items."""

    path: Path
    domain: str
    piece: Piece
    seed: str
    fractions: tuple[tuple[str, float], ...]

    def __str__(self) -> str:
        place = f"{self.path.parent.name}/{self.path.stem}"
        return f"chunk {place} ({self.piece.source}, {self.piece.start} to {self.piece.stop})"


@dataclass
class _Gathered:
    """The documents of one split so far."""

    tokens: list[np.ndarray] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    modes: list[int] = field(default_factory=list)
    parts: list[int] = field(default_factory=list)

    def add(self, document: Document) -> None:
        self.parts.append(len(document.parts))
        for mode, tokens in document.parts:
            self.tokens.append(tokens)
            self.lengths.append(tokens.size)
            self.modes.append(mode)


def split_of(content: bytes, fractions: tuple[tuple[str, float], ...]) -> str:
    """The split of an item, from nothing but its content: equal items share one, and adding items moves none."""
    digest = hashlib.blake2b(content, digest_size=8, person=b"split").digest()
    place = int.from_bytes(digest, "big") / 2**64
    for split, share in fractions[:-1]:
        if place < share:
            return split
        place -= share
    return fractions[-1][0]


def make_chunk(chunk: Chunk, attempt: int, beat: Beat) -> tuple[int, int]:
    """Worker's side: read, divide, save. Returns (documents, refused items)."""
    here = domain(chunk.domain)
    gathered = {split: _Gathered() for split, _ in chunk.fractions}
    refused: list[str] = []
    written = 0
    # A problem that hangs or crashes its worker must not come again at the next attempt.
    seed = int.from_bytes(hashlib.sha256(f"{chunk.seed} {attempt}".encode()).digest()[:8], "big")
    for found in family(chunk.domain).read(here, chunk.piece, seed):
        beat(1)
        if isinstance(found, Refusal):
            line = {"key": found.key, "reason": found.reason}
            refused.append(json.dumps(line | ({"damaged": True} if found.damaged else {})))
        else:
            assert isinstance(found, Item)
            gathered[split_of(found.content, chunk.fractions)].add(found.document)
            written += 1
    arrays = {"refused": np.frombuffer("\n".join(refused).encode(), np.uint8)}
    for split, documents in gathered.items():
        tokens = np.concatenate([np.empty(0, here.dtype), *documents.tokens]).astype(
            here.dtype, casting="same_kind"
        )
        counts = (
            np.array(each, np.int64)
            for each in (documents.lengths, documents.modes, documents.parts)
        )
        arrays |= {
            f"{split}.{name}": values
            for name, values in zip(_FIELDS, (tokens, *counts), strict=True)
        }
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    write_file(chunk.path, buffer.getvalue())
    return written, len(refused)


def refusals(path: Path) -> list[dict[str, Any]]:
    """The refused items of one chunk file: key, reason, and `damaged` where true."""
    with _load(path) as arrays:
        return [json.loads(line) for line in arrays["refused"].tobytes().decode().splitlines()]


def merge(
    folder: Path,
    number: int,
    here: Domain,
    splits: tuple[str, ...],
    paths: list[Path],
    rows: int | None,
) -> dict[str, ShardRecord]:
    """Chunk files, in order, -> `<split>-<number>` .bin/.idx for every split that has a document.

    `rows` caps the rows of all splits together, at the cost of the first one: generated data has exactly as many as
    were asked for.
    """
    records = {}
    left = rows
    for split in reversed(splits):
        limit = left if split == splits[0] else None
        prefix = folder / f"{split}-{number:05d}"
        record = _merge_split(prefix, here, split, paths, limit)
        if record is not None:
            records[split] = record
            left = None if left is None else left - record.rows
    return records


def _merge_split(
    prefix: Path, here: Domain, split: str, paths: list[Path], rows: int | None
) -> ShardRecord | None:
    blocks = _blocks(split, paths, None if rows is None else rows * here.seq_length)
    first = next(blocks, None)
    if first is None:
        return None
    with ShardWriter(prefix, here) as writer:
        writer.add_block(*first)
        for block in blocks:
            writer.add_block(*block)
    summary = writer.summary
    full = summary.tokens // here.seq_length
    return ShardRecord(
        **vars(summary), rows=full, dropped_tokens=summary.tokens - full * here.seq_length
    )


def _blocks(
    split: str, paths: list[Path], wanted: int | None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """(tokens, lengths, modes, parts) of each chunk that has some; stops with the document that reaches `wanted`
    tokens."""
    for path in paths:
        if wanted is not None and wanted <= 0:
            return
        with _load(path) as arrays:
            tokens, lengths, modes, parts = (arrays[f"{split}.{name}"] for name in _FIELDS)
        if wanted is not None:
            sequence_ends, document_ends = np.cumsum(lengths), np.cumsum(parts)
            enough = (
                int(np.searchsorted(sequence_ends[document_ends - 1], wanted)) + 1
                if len(parts)
                else 0
            )
            parts = parts[:enough]
            lengths, modes = lengths[: parts.sum()], modes[: parts.sum()]
            tokens = tokens[: lengths.sum()]
            wanted -= tokens.size
        if tokens.size:
            yield tokens, lengths, modes, parts


def _load(path: Path) -> "np.lib.npyio.NpzFile":
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path}: {error}; wanted a finished chunk of this build. The disk may have lost it: delete this file and "
            f"run the same command again."
        ) from None
