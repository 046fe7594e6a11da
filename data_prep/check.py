"""Is a dataset folder what its manifest says? Every byte is read: sizes, hashes, pointers, modes, token ranges."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_prep.domain import Domain, domain
from data_prep.manifest import ShardRecord, check_domain, codec_path, load_manifest
from data_prep.shard_reader import check_size
from data_prep.shards import HEADER, IndexHeader, read_header

# Tokens looked at in one go: bounds the memory, whatever the size of a shard.
_BLOCK = 1 << 24


def check(folder: Path, tell: Callable[[int, int], None] = lambda done, total: None) -> str:
    """A sentence saying that all is well; ValueError names the first bad shard and what is wrong with it.

    `tell` hears how many shards of how many are done.
    """
    manifest = load_manifest(folder)
    here = domain(manifest.domain)
    check_domain(folder, manifest, here)
    codec_path(folder, manifest)
    records = [record for shards in manifest.splits.values() for record in shards]
    for done, record in enumerate(records):
        tell(done, len(records))
        check_shard(folder, record, here)
    tell(len(records), len(records))
    counts = ", ".join(f"{split} {manifest.rows(split)} rows" for split in manifest.splits)
    return f"{folder}: {here.name}, {len(records)} shards, {counts}: sizes, checksums, indices and token ids are right"


def check_shard(folder: Path, record: ShardRecord, here: Domain) -> None:
    """ValueError if one shard differs from its record in the manifest, or is no shard of `here`."""
    bin_path, idx_path = folder / f"{record.file}.bin", folder / f"{record.file}.idx"
    for path, size, digest in (
        (bin_path, record.bin_bytes, record.bin_sha256),
        (idx_path, record.idx_bytes, record.idx_sha256),
    ):
        check_size(path, size, "the manifest")
        _check_hash(path, digest)
    header = read_header(idx_path)
    lengths, modes, documents = _check_index(idx_path, header, record, here)
    _check_tokens(bin_path, header, np.cumsum(lengths), modes, here)
    if not here.packed:
        per_document = (
            np.add.reduceat(lengths, documents[:-1]) if len(documents) > 1 else lengths[:0]
        )
        _require(
            idx_path,
            bool((per_document == here.seq_length).all()),
            f"documents of {sorted(set(per_document.tolist()))[:3]} tokens",
            f"{here.seq_length} each",
        )


def _require(path: Path, good: bool, found: str, wanted: str) -> None:
    if not good:
        raise ValueError(
            f"{path}: {found}; wanted {wanted}. The shard is damaged: copy it again, or build again."
        )


def _check_hash(path: Path, wanted: str) -> None:
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    _require(
        path, found == wanted, f"sha256 {found[:16]}...", f"{wanted[:16]}..., says the manifest"
    )


def _check_index(
    path: Path, header: IndexHeader, record: ShardRecord, here: Domain
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lengths, modes and document starts of an .idx, after checking that they agree with each other and the record."""
    raw = path.read_bytes()
    count = header.sequences
    lengths = np.frombuffer(raw, "<i4", count, HEADER.size).astype(np.int64)
    pointers = np.frombuffer(raw, "<i8", count, header.pointers_at)
    documents = np.frombuffer(raw, "<i8", header.documents + 1, header.documents_at)
    found = (header.dtype.name, count, header.documents, header.has_modes)
    wanted = (here.dtype.name, record.sequences, record.documents, True)
    _require(path, found == wanted, f"dtype, sequences, documents, modes = {found}", str(wanted))
    modes = np.frombuffer(raw, "<i1", count, header.modes_at)
    _require(
        path, bool((lengths > 0).all()), "a sequence without tokens", "at least one token each"
    )
    expected = (np.cumsum(lengths) - lengths) * header.dtype.itemsize
    _require(
        path,
        bool((pointers == expected).all()),
        "pointers that do not follow the lengths",
        "their running sum",
    )
    total = int(lengths.sum())
    _require(path, total == record.tokens, f"{total} tokens", f"{record.tokens}, says the manifest")
    rising = documents[0] == 0 and documents[-1] == count and (np.diff(documents) > 0).all()
    _require(path, bool(rising), "document starts that do not rise", f"0 up to {count}")
    low, high = int(modes.min()), int(modes.max())
    _require(
        path,
        0 <= low <= high < len(here.kinds),
        f"modes {low} to {high}",
        f"0 to {len(here.kinds) - 1}",
    )
    return lengths, modes, documents


def _check_tokens(
    path: Path, header: IndexHeader, ends: np.ndarray, modes: np.ndarray, here: Domain
) -> None:
    """Does every token lie in the range of its kind? Block by block, each cut at the border of a sequence."""
    with path.open("rb") as stream:
        done = start = 0
        while done < len(ends):
            stop = max(done + 1, int(np.searchsorted(ends, start + _BLOCK, side="right")))
            tokens = np.fromfile(stream, header.dtype, int(ends[stop - 1]) - start)
            lengths = np.diff(ends[done:stop], prepend=start)
            kinds = np.repeat(modes[done:stop], lengths)
            for mode, kind in enumerate(here.kinds):
                own = tokens[kinds == mode]
                good = not own.size or kind.start <= int(own.min()) <= int(own.max()) < kind.stop
                _require(
                    path,
                    good,
                    f"{kind.kind} ids outside their range",
                    f"{kind.start} to {kind.stop - 1}",
                )
            start, done = int(ends[stop - 1]), stop
