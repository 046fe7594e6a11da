"""Items with equal content are written once: the first in the order of the raw data stays.

Each shard in the making leaves two files beside it: `.contents.npy`, the 16-byte digests of its documents in rising
order with their numbers, and `.keys.z`, their names. When all shards of a split are there, `find_duplicates` meets the
sorted digests range by range, so that memory stays flat for any number of documents, `list_duplicates` names what is
found, and `place` puts each shard into the dataset: as it is where it holds no duplicate, else copied without them.
"""

import bisect
import contextlib
import json
import mmap
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TextIO

import numpy as np

from data_prep.domain import domain
from data_prep.files import beside, replacing, sync_path, write_file
from data_prep.manifest import ShardRecord, record_of
from data_prep.shard_index import map_index
from data_prep.shards import ShardWriter
from data_prep.watch import Watch

_ENTRY = np.dtype([("high", "<u8"), ("low", "<u8"), ("document", "<u4")])
# Document `document` of shard `shard` has the content of document `first_document` of shard `first_shard`.
DUPLICATE = np.dtype([(n, "<u4") for n in ("shard", "document", "first_shard", "first_document")])
# Documents compared at a time: about 150 MB.
_TOGETHER = 1 << 22
# Digests that a split's sample holds, about: 8 MB.
_SAMPLE = 1 << 20
_LARGEST = (1 << 64) - 1
# Tokens copied at a time.
_COPIED = 1 << 24


@dataclass(frozen=True)
class Placement:
    """One shard to be put into the dataset folder without the documents numbered `dropped` (uint32); picklable, for a
    worker."""

    merged: Path
    final: Path
    domain: str
    record: ShardRecord
    dropped: np.ndarray

    def __str__(self) -> str:
        return f"shard {self.final.name}"


def save_contents(prefix: Path, contents: np.ndarray, keys: Iterable[bytes]) -> None:
    """Keep the digests [documents, 2] and keys (each ended by a zero byte, in blocks) of the shard at `prefix`."""
    entries = np.empty(len(contents), _ENTRY)
    entries["high"], entries["low"] = contents[:, 0], contents[:, 1]
    entries["document"] = np.arange(len(contents))
    # Equal digests stay in the order of the documents.
    entries = entries[np.lexsort((entries["document"], entries["low"], entries["high"]))]
    packed = zlib.compressobj(1)
    with replacing(beside(prefix, ".keys.z")) as stream:
        for block in keys:
            stream.write(packed.compress(block))
        stream.write(packed.flush())
    write_file(beside(prefix, ".contents.npy"), entries.tobytes())


def load_keys(prefix: Path) -> list[str]:
    """The keys of the shard's documents, in order."""
    keys = zlib.decompress(beside(prefix, ".keys.z").read_bytes())
    return [key.decode("utf-8", "backslashreplace") for key in keys.split(b"\0")[:-1]]


def find_duplicates(prefixes: dict[int, Path]) -> Iterator[np.ndarray]:
    """Every document of these shards (number -> prefix) whose content an earlier one has: arrays of `DUPLICATE`."""
    paths = {number: beside(prefix, ".contents.npy") for number, prefix in prefixes.items()}
    sizes = {number: path.stat().st_size // _ENTRY.itemsize for number, path in paths.items()}
    total = sum(sizes.values())
    ranges = max(1, -(-total // _TOGETHER))
    # Digests are uniform, so ranges of their first number hold about equally many.
    bounds = [(1 << 64) * index // ranges for index in range(ranges + 1)]
    starts = dict.fromkeys(paths, 0)
    for bound in bounds[1:]:
        parts, shards = [], []
        for number, path in paths.items():
            start, stop = starts[number], sizes[number]
            if start == stop:
                continue
            entries = np.memmap(
                path, _ENTRY, "r"
            )  # one file open at a time, however many there are
            if bound < 1 << 64:
                stop = _first_from(entries, bound)
            parts.append(np.array(entries[start:stop]))
            del entries
            shards.append(np.full(stop - start, number, np.int64))
            starts[number] = stop
        if parts:
            yield _repeated(np.concatenate(parts), np.concatenate(shards))


def _first_from(entries: np.ndarray, bound: int) -> int:
    """The number of the first entry whose digest begins with `bound` or more. np.searchsorted would first copy the
    whole column, as it is not aligned."""
    high = entries["high"]
    return bisect.bisect_left(range(len(high)), bound, key=lambda number: int(high[number]))


def _repeated(entries: np.ndarray, shards: np.ndarray) -> np.ndarray:
    order = np.lexsort((entries["document"], shards, entries["low"], entries["high"]))
    entries, shards = entries[order], shards[order]
    same = (entries["high"][1:] == entries["high"][:-1]) & (
        entries["low"][1:] == entries["low"][:-1]
    )
    # The first of a run of equal ones is the last position that does not equal the one before it.
    firsts = np.maximum.accumulate(
        np.where(np.concatenate([[True], ~same]), np.arange(len(entries)), 0)
    )
    positions = np.flatnonzero(same) + 1
    found = np.empty(len(positions), DUPLICATE)
    found["shard"], found["document"] = shards[positions], entries["document"][positions]
    first = firsts[positions]
    found["first_shard"], found["first_document"] = shards[first], entries["document"][first]
    return found


def list_duplicates(prefixes: dict[int, Path], ledger: TextIO) -> dict[int, np.ndarray]:
    """Write a line for each duplicate of these shards, in the order of the raw data; shard -> the numbers of its
    documents that are duplicates, uint32, rising.

    Memory: some tens of bytes a duplicate, and the keys of one shard. The names of the first ones lie on disk.
    """
    found = np.concatenate([np.empty(0, DUPLICATE), *find_duplicates(prefixes)])
    found = found[np.lexsort((found["document"], found["shard"]))]
    if not len(found):
        return {}
    dropped = {}
    with tempfile.TemporaryFile(dir=next(iter(prefixes.values())).parent) as file:
        places = _write_firsts(found, prefixes, file)
        file.flush()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as names:
            for shard, chosen in _by_shard(found["shard"], np.arange(len(found))):
                keys = load_keys(prefixes[shard])
                dropped[shard] = found["document"][chosen]
                for document, place in zip(dropped[shard], places[chosen].tolist(), strict=True):
                    first = names[place : names.find(b"\0", place)].decode()
                    reason = f"a duplicate of {first}"
                    line = {"key": keys[document], "reason": reason, "duplicate": True}
                    ledger.write(json.dumps(line) + "\n")
    return dropped


def _write_firsts(found: np.ndarray, prefixes: dict[int, Path], file: BinaryIO) -> np.ndarray:
    """Write the key of each duplicate's first document, ended by a zero byte; where each begins, int64 [duplicates].

    In the order of the first ones, so that the keys of a shard are read once.
    """
    places = np.empty(len(found), np.int64)
    order = np.lexsort((found["first_document"], found["first_shard"]))
    for shard, chosen in _by_shard(found["first_shard"][order], order):
        keys = load_keys(prefixes[shard])
        for position in chosen:
            places[position] = file.tell()
            file.write(keys[found["first_document"][position]].encode() + b"\0")
    return places


def _by_shard(shards: np.ndarray, positions: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(shard, the positions that belong to it) for each of the rising `shards`."""
    numbers, starts = np.unique(shards, return_index=True)
    yield from zip(numbers.tolist(), np.split(positions, starts[1:]), strict=True)


def place(task: Placement, watch: Watch) -> ShardRecord | None:
    """Put one shard into the dataset folder; its record, or None if nothing but duplicates was in it."""
    if len(task.dropped):
        return _copy_without(task, watch)
    # The index comes last: a pair that is there is whole.
    for ending in (".bin", ".idx"):
        _link(beside(task.merged, ending), beside(task.final, ending))
    sync_path(task.final.parent)
    return task.record


def _copy_without(task: Placement, watch: Watch) -> ShardRecord | None:
    """The documents that are not dropped, block by block."""
    here = domain(task.domain)
    if len(task.dropped) == task.record.documents:
        return None
    index = map_index(beside(task.merged, ".idx"))
    lengths, modes = index.lengths.astype(np.int64), index.modes.astype(np.int64)
    starts = index.documents
    kept = np.ones(task.record.documents, bool)
    kept[task.dropped] = False
    parts = np.diff(starts)
    ends = np.cumsum(np.add.reduceat(lengths, starts[:-1]))  # tokens up to the end of each document
    tokens = np.memmap(beside(task.merged, ".bin"), here.dtype, "r")
    with ShardWriter(task.final, here) as writer:
        done = 0
        while done < len(parts):
            begin = int(ends[done - 1]) if done else 0
            stop = max(done + 1, int(np.searchsorted(ends, begin + _COPIED, side="right")))
            chosen = kept[done:stop]
            sequences = slice(starts[done], starts[stop])
            of_sequence = np.repeat(chosen, parts[done:stop])
            of_token = np.repeat(of_sequence, lengths[sequences])
            if chosen.any():
                writer.add_block(
                    tokens[begin : ends[stop - 1]][of_token], lengths[sequences][of_sequence],
                    modes[sequences][of_sequence], parts[done:stop][chosen],
                )  # fmt: skip
            watch.beat(stop - done)
            done = stop
    return record_of(writer.summary, here)


def _link(source: Path, target: Path) -> None:
    """`target` becomes `source`, without copying where the file system can; whole or not at all."""
    temporary = beside(target, ".tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:  # no hard links here
        try:
            shutil.copyfile(source, temporary)
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    os.replace(temporary, target)
    # os.replace does nothing, and leaves the temporary name, where both are the same file already.
    temporary.unlink(missing_ok=True)


# --- between the builds of one dataset


def keep_sample(folder: Path, split: str, prefixes: list[Path]) -> None:
    """Leave a sample of a split's digests in the dataset, so that a later build of another split can be compared.

    It holds the digests below a bound, about `_SAMPLE` of them: all where there are no more. As digests are hashes, of
    any two splits the same share of what they have in common is in both samples (Broder 1997, "On the resemblance and
    containment of documents")."""
    paths = [beside(prefix, ".contents.npy") for prefix in prefixes]
    total = sum(path.stat().st_size // _ENTRY.itemsize for path in paths)
    bound = min(_LARGEST, (1 << 64) * _SAMPLE // max(1, total))
    found = [np.array([bound], np.uint64)]
    for path in paths:
        if path.stat().st_size:
            entries = np.memmap(path, _ENTRY, "r")
            found.append(np.array(entries["high"][: _first_from(entries, bound)]))
    write_file(_sample_path(folder, split), np.concatenate(found).astype("<u8").tobytes())


def shared_documents(folder: Path, split: str, others: Sequence[str]) -> dict[str, int]:
    """Other split -> about how many different documents of `split` it holds too; only where there are some."""
    shared = {}
    mine = np.fromfile(_sample_path(folder, split), "<u8")
    for other in others:
        path = _sample_path(folder, other)
        if path.is_file():
            theirs = np.fromfile(path, "<u8")
            bound = min(mine[0], theirs[0])
            common = np.intersect1d(mine[1:], theirs[1:])
            count = int((common < bound).sum())
            if count:
                shared[other] = round(count * _LARGEST / int(bound))
    return shared


def _sample_path(folder: Path, split: str) -> Path:
    return folder / f"{split}.digests"
