"""Is a dataset folder what its manifest says? Every byte is read: sizes, hashes, pointers, modes, token ranges.

Also of a bare PREFIX.bin/.idx that others wrote: all but the hashes, which nobody has recorded.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_prep.domain import Domain, domain
from data_prep.files import beside
from data_prep.manifest import ShardRecord, check_domain, codec_path, load_manifest
from data_prep.shard_index import ShardIndex, check_index, map_index, require
from data_prep.shard_reader import check_dtype, check_size, find_prefix

# Tokens looked at in one go: bounds the memory, whatever the size of a shard.
_BLOCK = 1 << 24


def check(
    path: Path,
    tell: Callable[[int, int], None] = lambda done, total: None,
    name: str | None = None,
) -> str:
    """A sentence saying that all is well; ValueError names the first bad shard and what is wrong with it.

    `path` is a dataset folder, or the PREFIX of a .bin/.idx pair of the domain called `name`. `tell` hears how many
    shards of how many are done.
    """
    if find_prefix(path, name):
        assert name is not None
        return _check_prefix(path, domain(name))
    manifest = load_manifest(path)
    here = domain(manifest.domain)
    check_domain(path, manifest, here, name)
    codec_path(path, manifest)
    records = [record for shards in manifest.splits.values() for record in shards]
    for done, record in enumerate(records):
        tell(done, len(records))
        check_shard(path, record, here)
    tell(len(records), len(records))
    counts = ", ".join(f"{split} {manifest.rows(split)} rows" for split in manifest.splits)
    return f"{path}: {here.name}, {len(records)} shards, {counts}: sizes, checksums, indices and token ids are right"


def check_shard(folder: Path, record: ShardRecord, here: Domain) -> None:
    """ValueError if one shard differs from its record in the manifest, or is no shard of `here`."""
    bin_path, idx_path = folder / f"{record.file}.bin", folder / f"{record.file}.idx"
    for path, size, digest in (
        (bin_path, record.bin_bytes, record.bin_sha256),
        (idx_path, record.idx_bytes, record.idx_sha256),
    ):
        check_size(path, size, "the manifest")
        _check_hash(path, digest)
    index = map_index(idx_path)
    header = index.header
    found = (header.dtype.name, header.sequences, header.documents, header.has_modes)
    wanted = (here.dtype.name, record.sequences, record.documents, True)
    require(idx_path, found == wanted, f"dtype, sequences, documents, modes = {found}", str(wanted))
    _check_contents(bin_path, index, here)
    tokens = record.bin_bytes // header.dtype.itemsize
    require(bin_path, tokens == record.tokens, f"{tokens} tokens", f"{record.tokens}, it says")


def _check_prefix(prefix: Path, here: Domain) -> str:
    bin_path, index = beside(prefix, ".bin"), map_index(beside(prefix, ".idx"))
    check_dtype(index.path, index.header, here, index.header.dtype)
    _check_contents(bin_path, index, here)
    documents, tokens = index.header.documents, int(index.lengths.sum(dtype=np.int64))
    return f"{prefix}: {here.name}, {documents} documents, {tokens} tokens: sizes, index and token ids are right"


def _check_contents(bin_path: Path, index: ShardIndex, here: Domain) -> None:
    size = bin_path.stat().st_size if bin_path.is_file() else 0
    check_index(index, here, size)
    _check_tokens(bin_path, index, here)


def _check_hash(path: Path, wanted: str) -> None:
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    require(
        path, found == wanted, f"sha256 {found[:16]}...", f"{wanted[:16]}..., says the manifest"
    )


def _check_tokens(path: Path, index: ShardIndex, here: Domain) -> None:
    """Does every token lie in the range of its kind? Block by block, each cut at the border of a sequence."""
    item = index.header.dtype.itemsize
    with path.open("rb") as stream:
        done, count = 0, index.header.sequences
        while done < count:
            start = int(index.pointers[done])
            # Only the pointers that are compared with are touched.
            near = index.pointers[done : done + _BLOCK]
            stop = done + max(1, int(np.searchsorted(near, start + _BLOCK * item)))
            lengths = index.lengths[done:stop].astype(np.int64)
            tokens = np.fromfile(stream, index.header.dtype, int(lengths.sum()))
            if len(here.kinds) == 1:
                _check_range(path, tokens, here, 0)
            else:
                kinds = np.repeat(index.modes[done:stop], lengths)
                for mode in range(len(here.kinds)):
                    _check_range(path, tokens[kinds == mode], here, mode)
            done = stop


def _check_range(path: Path, own: np.ndarray, here: Domain, mode: int) -> None:
    kind = here.kinds[mode]
    good = not own.size or kind.start <= int(own.min()) <= int(own.max()) < kind.stop
    require(path, good, f"{kind.kind} ids outside their range", f"{kind.start} to {kind.stop - 1}")
