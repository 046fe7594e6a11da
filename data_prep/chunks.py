"""The unit of work of a build: one piece of raw input -> one file of tokens, already divided among the splits.

A chunk file (.npz) holds for each split its tokens, the length and kind of every sequence, the number of sequences of
every document and its content digest and key, and the refused items as JSON lines. It appears by rename, so a chunk
that is there is whole, and a build that was killed continues behind it. `merge` turns the chunks of one shard into the
shard of each split.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.domain import Block, Domain, Item, Piece, Refusal, domain, family
from data_prep.duplicates import save_contents
from data_prep.manifest import ShardRecord, record_of
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
    codec: Path | None = None

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
    contents: list[bytes] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)

    def add(self, item: Item) -> None:
        self.parts.append(len(item.document.parts))
        for mode, tokens in item.document.parts:
            self.tokens.append(tokens)
            self.lengths.append(tokens.size)
            self.modes.append(mode)
        self.contents.append(item.content)
        self.keys.append(item.document.key)

    def add_block(self, block: Block, chosen: np.ndarray) -> None:
        count, length = len(chosen), block.tokens.shape[1]
        self.tokens.append(block.tokens[chosen].ravel())
        self.lengths += [length] * count
        self.modes += [block.mode] * count
        self.parts += [1] * count
        self.contents += [block.contents[index] for index in chosen]
        self.keys += [block.keys[index] for index in chosen]


def splits_of(contents: Sequence[bytes], fractions: tuple[tuple[str, float], ...]) -> np.ndarray:
    """The number of the split of each item [items], from nothing but its content: equal items share one, and adding
    items moves none. Contents are hashes of 16 bytes, so they are uniform already."""
    first = np.frombuffer(b"".join(contents), ">u8").reshape(-1, 2)[:, 0]
    ends = np.cumsum([share for _, share in fractions])[:-1]
    return np.searchsorted(ends, first / 2.0**64, side="right")


def make_chunk(chunk: Chunk, attempt: int, beat: Beat) -> tuple[int, int]:
    """Worker's side: read, divide, save. Returns (documents, refused items)."""
    here, module = domain(chunk.domain), family(chunk.domain)
    gathered = {split: _Gathered() for split, _ in chunk.fractions}
    refused: list[str] = []
    # A problem that hangs or crashes its worker must not come again at the next attempt.
    seed = int.from_bytes(hashlib.sha256(f"{chunk.seed} {attempt}".encode()).digest()[:8], "big")
    for found in module.read(here, chunk.piece, seed, chunk.codec):
        if isinstance(found, Block):
            beat(len(found.keys))
            for split, chosen in _divide(found, chunk.fractions):
                gathered[split].add_block(found, chosen)
            continue
        beat(1)
        if isinstance(found, Refusal):
            line = {"key": found.key, "reason": found.reason}
            refused.append(json.dumps(line | ({"damaged": True} if found.damaged else {})))
        else:
            (number,) = splits_of([found.group or found.content], chunk.fractions)
            gathered[chunk.fractions[number][0]].add(found)
    arrays = {"refused": np.frombuffer("\n".join(refused).encode(), np.uint8)}
    for split, documents in gathered.items():
        arrays |= _arrays(split, documents, here, module.DEDUPLICATE)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    write_file(chunk.path, buffer.getvalue())
    return sum(len(documents.parts) for documents in gathered.values()), len(refused)


def _divide(
    block: Block, fractions: tuple[tuple[str, float], ...]
) -> Iterator[tuple[str, np.ndarray]]:
    """(split, its positions in the block) of every split that gets some."""
    numbers = splits_of(block.contents, fractions)
    for number, (split, _) in enumerate(fractions):
        chosen = np.flatnonzero(numbers == number)
        if chosen.size:
            yield split, chosen


def _arrays(
    split: str, documents: _Gathered, here: Domain, deduplicate: bool
) -> dict[str, np.ndarray]:
    tokens = np.concatenate([np.empty(0, here.dtype), *documents.tokens]).astype(
        here.dtype, casting="same_kind"
    )
    counts = (
        np.array(each, np.int64) for each in (documents.lengths, documents.modes, documents.parts)
    )
    arrays = {
        f"{split}.{name}": values for name, values in zip(_FIELDS, (tokens, *counts), strict=True)
    }
    if deduplicate:
        arrays[f"{split}.contents"] = np.frombuffer(b"".join(documents.contents), np.uint8)
        keys = "\0".join(documents.keys).encode("utf-8", "surrogateescape")
        arrays[f"{split}.keys"] = np.frombuffer(keys, np.uint8)
    return arrays


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
    were asked for. Where duplicates are looked for, contents and keys are kept beside (`data_prep/duplicates.py`).
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
            if family(here.name).DEDUPLICATE:
                save_contents(prefix, *_contents(split, paths))
    return records


def _contents(split: str, paths: list[Path]) -> tuple[np.ndarray, bytes]:
    """The content digest of every document, uint64 [documents, 2], and their keys, each ended by a zero byte."""
    contents, keys = [], []
    for path in paths:
        with _load(path) as arrays:
            digests = arrays[f"{split}.contents"].tobytes()
            contents.append(np.frombuffer(digests, "<u8").reshape(-1, 2))
            if digests:
                keys.append(arrays[f"{split}.keys"].tobytes() + b"\0")
    return np.concatenate(contents), b"".join(keys)


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
    return record_of(writer.summary, here)


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
