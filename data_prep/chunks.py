"""The unit of work of a build: one piece of raw input -> one file of tokens, already divided among the splits.

A chunk file (.npz) holds blocks: for each split its tokens, the length and kind of every sequence, the number of
sequences of every document and its content digest and key, the number of raw items that gave a document, and the
refused ones as JSON lines. It appears by rename, so a chunk that is there is whole, and a build that was killed
continues behind it. `merge` turns the chunks of one shard into the shard of each split.
"""

import bisect
import hashlib
import itertools
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.domain import Block, Domain, Item, Piece, Refusal, domain, family
from data_prep.duplicates import save_contents
from data_prep.files import replacing
from data_prep.manifest import ShardRecord, record_of
from data_prep.shards import ShardWriter
from data_prep.watch import Watch

_FIELDS = ("tokens", "lengths", "modes", "parts")
# A block of a chunk file is full with so many tokens or items; most chunks are one block.
_BLOCK_TOKENS, _BLOCK_ITEMS = 1 << 24, 1 << 17


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
        count, parts = len(chosen), block.parts
        self.tokens.append(block.tokens[chosen].ravel())
        self.lengths += [length for _, length in parts] * count
        self.modes += [mode for mode, _ in parts] * count
        self.parts += [len(parts)] * count
        self.contents += [block.contents[index] for index in chosen]
        self.keys += [block.keys[index] for index in chosen]


def splits_of(contents: Sequence[bytes], fractions: tuple[tuple[str, float], ...]) -> np.ndarray:
    """The number of the split of each item [items], from nothing but its content: equal items share one, and adding
    items moves none. Contents are hashes of 16 bytes, so they are uniform already."""
    first = np.frombuffer(b"".join(contents), ">u8").reshape(-1, 2)[:, 0]
    ends = np.cumsum([share for _, share in fractions])[:-1]
    return np.searchsorted(ends, first / 2.0**64, side="right")


def split_of(content: bytes, fractions: tuple[tuple[str, float], ...]) -> int:
    """The same of one item, at a fraction of the cost of numpy's calls."""
    ends = list(itertools.accumulate(share for _, share in fractions))[:-1]
    return bisect.bisect_right(ends, int.from_bytes(content[:8], "big") / 2.0**64)


def make_chunk(chunk: Chunk, watch: Watch) -> tuple[int, int]:
    """Worker's side: read, divide, save. Returns (documents, refused items)."""
    here, module = domain(chunk.domain), family(chunk.domain)
    seed = int.from_bytes(hashlib.sha256(chunk.seed.encode()).digest()[:8], "big")
    splits = tuple(split for split, _ in chunk.fractions)
    with replacing(chunk.path) as stream, zipfile.ZipFile(stream, "w") as archive:
        out = _Output(archive, here, splits, module.DEDUPLICATE)
        for found in module.read(here, chunk.piece, seed, chunk.codec, watch):
            if isinstance(found, Block):
                watch.beat(len(found.keys))
                for split, chosen in _divide(found, chunk.fractions):
                    out.add_block(split, found, chosen)
                continue
            watch.beat(1)
            if isinstance(found, Refusal):
                out.refuse(found)
            else:
                out.add(splits[split_of(found.group or found.content, chunk.fractions)], found)
        watch.end()
        out.flush()
    return out.documents, out.refused


class _Output:
    """A chunk file in the making. What is gathered goes to disk in blocks, so that a piece of any size, such as a
    compressed file, needs no more memory than one of them."""

    def __init__(
        self, archive: zipfile.ZipFile, here: Domain, splits: tuple[str, ...], deduplicate: bool
    ) -> None:
        self._archive, self._here, self._deduplicate = archive, here, deduplicate
        self._splits = splits
        self.documents = self.refused = self._blocks = 0
        self._begin_block()

    def _begin_block(self) -> None:
        self._gathered = {split: _Gathered() for split in self._splits}
        self._refused: list[str] = []
        self._tokens = self._items = self._usable = 0

    def add(self, split: str, item: Item) -> None:
        self._gathered[split].add(item)
        self._usable += not item.continues
        self._count(1, sum(tokens.size for _, tokens in item.document.parts))

    def add_block(self, split: str, block: Block, chosen: np.ndarray) -> None:
        self._gathered[split].add_block(block, chosen)
        self._usable += len(chosen)
        self._count(len(chosen), len(chosen) * block.tokens.shape[1])

    def _count(self, documents: int, tokens: int) -> None:
        self.documents += documents
        self._items, self._tokens = self._items + documents, self._tokens + tokens
        self._flush_if_full()

    def refuse(self, found: Refusal) -> None:
        line = {"key": found.key, "reason": found.reason}
        marks = {name: True for name in ("damaged", "partial") if getattr(found, name)}
        self._refused.append(json.dumps(line | marks))
        self.refused += not found.partial
        self._items += 1
        self._flush_if_full()

    def _flush_if_full(self) -> None:
        if self._tokens >= _BLOCK_TOKENS or self._items >= _BLOCK_ITEMS:
            self.flush()

    def flush(self) -> None:
        arrays: dict[str, np.ndarray] = {
            "refused": np.frombuffer("\n".join(self._refused).encode(), np.uint8),
            "usable": np.array(self._usable, np.int64),
        }
        for split, documents in self._gathered.items():
            arrays |= _arrays(split, documents, self._here, self._deduplicate)
        for name, values in arrays.items():
            member = f"{self._blocks}.{name}.npy"
            with self._archive.open(member, "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, values, allow_pickle=False)
        self._blocks += 1
        self._begin_block()


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
    """The refused items of one chunk file: key, reason, and `damaged` or `partial` where true."""
    with _load(path) as arrays:
        blocks = [arrays[f"{number}.refused"].tobytes() for number in _blocks_of(arrays)]
    return [json.loads(line) for block in blocks for line in block.decode().splitlines()]


def count_usable(path: Path) -> int:
    """How many raw items of one chunk file gave a document: a video of 64 clips is one."""
    with _load(path) as arrays:
        return sum(int(arrays[f"{number}.usable"]) for number in _blocks_of(arrays))


def merge(
    folder: Path,
    number: int,
    here: Domain,
    splits: tuple[str, ...],
    paths: list[Path],
    rows: int | None,
    beat: Callable[[int], None] = lambda items: None,
) -> dict[str, ShardRecord]:
    """Chunk files, in order, -> `<split>-<number>` .bin/.idx for every split that has a document.

    `rows` caps the rows of all splits together, at the cost of the first one: generated data has exactly as many as
    were asked for. Where duplicates are looked for, contents and keys are kept beside (`data_prep/duplicates.py`).
    `beat(0)` is called for every block.
    """
    records = {}
    left = rows
    for split in reversed(splits):
        limit = left if split == splits[0] else None
        prefix = folder / f"{split}-{number:05d}"
        record = _merge_split(prefix, here, split, paths, limit, beat)
        if record is not None:
            records[split] = record
            left = None if left is None else left - record.rows
            if family(here.name).DEDUPLICATE:
                save_contents(prefix, _contents(split, paths), _keys(split, paths))
    return records


def _contents(split: str, paths: list[Path]) -> np.ndarray:
    """The content digest of every document, uint64 [documents, 2]."""
    digests = [each.view("<u8").reshape(-1, 2) for each in _field(f"{split}.contents", paths)]
    return np.concatenate(digests)


def _keys(split: str, paths: list[Path]) -> Iterator[bytes]:
    """Their keys, each ended by a zero byte, block by block: of many short documents they are most of what there is."""
    for keys, contents in zip(
        _field(f"{split}.keys", paths), _field(f"{split}.contents", paths), strict=True
    ):
        if contents.size:
            yield keys.tobytes() + b"\0"


def _field(name: str, paths: list[Path]) -> Iterator[np.ndarray]:
    for path in paths:
        with _load(path) as arrays:
            for number in _blocks_of(arrays):
                yield arrays[f"{number}.{name}"]


def _merge_split(
    prefix: Path,
    here: Domain,
    split: str,
    paths: list[Path],
    rows: int | None,
    beat: Callable[[int], None],
) -> ShardRecord | None:
    blocks = _blocks(split, paths, None if rows is None else rows * here.seq_length)
    first = next(blocks, None)
    if first is None:
        return None
    with ShardWriter(prefix, here) as writer:
        writer.add_block(*first)
        for block in blocks:
            writer.add_block(*block)
            beat(0)
    return record_of(writer.summary, here)


def _blocks(
    split: str, paths: list[Path], wanted: int | None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """(tokens, lengths, modes, parts) of each block that has some; stops with the document that reaches `wanted`
    tokens."""
    for tokens, lengths, modes, parts in _all_blocks(split, paths):
        if wanted is not None:
            if wanted <= 0:
                return
            sequence_ends, document_ends = np.cumsum(lengths), np.cumsum(parts)
            ends = sequence_ends[document_ends - 1]
            enough = int(np.searchsorted(ends, wanted)) + 1 if len(parts) else 0
            parts = parts[:enough]
            lengths, modes = lengths[: parts.sum()], modes[: parts.sum()]
            tokens = tokens[: lengths.sum()]
            wanted -= tokens.size
        if tokens.size:
            yield tokens, lengths, modes, parts


def _all_blocks(
    split: str, paths: list[Path]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    for path in paths:
        with _load(path) as arrays:
            for number in _blocks_of(arrays):
                tokens, *counts = (arrays[f"{number}.{split}.{name}"] for name in _FIELDS)
                yield tokens, counts[0], counts[1], counts[2]


def _blocks_of(arrays: "np.lib.npyio.NpzFile") -> range:
    return range(sum(name.endswith(".refused") for name in arrays.files))


@contextmanager
def _load(path: Path) -> Iterator["np.lib.npyio.NpzFile"]:
    """The arrays of a chunk file; ValueError if it is damaged, where it is opened or where one of them is read."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            yield arrays
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{path}: {error}; wanted a finished chunk of this build. The disk may have lost it: delete this file and "
            f"run the same command again."
        ) from None
