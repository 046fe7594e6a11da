"""Rows of tokens out of shards, in any order: `TokenDataset(folder, "train").rows(indices)`.

A row is seq_length tokens. Where documents are not packed, one document is one row; where they are, every shard is one
stream of tokens and its rows are consecutive cuts of it. Either way row r of a shard starts at token r * seq_length, so
tokens are found by arithmetic; only the *kinds* of a row need the .idx, and that by binary search.

Opening reads the manifest and the files' sizes and nothing else, so a dataset of any size opens at once. Shards are
mapped when first touched, and at most `MAX_OPEN` stay mapped. What `rows` returns is always a copy: a view into a map
that is closed later would be read after its memory is gone.
"""

import bisect
import hashlib
import mmap
import resource
import struct
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.domain import Domain, domain
from data_prep.manifest import Manifest, check_domain, load_manifest
from data_prep.shards import IndexHeader, read_header

# A map keeps its file open, and a shard is two files: stay well under the limit on open files.
MAX_OPEN = max(8, min(1024, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))
# From this many rows of one shard on, searching for all at once beats Python's bisect (measured, benchmarks/loader.py).
_VECTORISE_FROM = 12
_INT64 = struct.Struct("<q")


@dataclass(frozen=True)
class RowBatch:
    """`tokens` [B, S] in the shards' own integer type, `kinds` [B, S] uint8 (the mode of each token); both copies."""

    tokens: np.ndarray
    kinds: np.ndarray


@dataclass(frozen=True)
class _Shard:
    """A shard that may not be open: where it is and what its files must be."""

    prefix: Path
    rows: int
    tokens: int
    bin_bytes: int
    idx_bytes: int


@dataclass(frozen=True)
class _Mapped:
    """An open shard: tokens [rows, S] and, where a row has several kinds, the .idx arrays (views into the maps)."""

    prefix: Path
    tokens: np.ndarray
    pointers: np.ndarray
    modes: np.ndarray
    buffer: mmap.mmap | None
    pointers_at: int


class TokenDataset:
    """One split of a dataset folder, or a foreign `PREFIX` of PREFIX.bin and PREFIX.idx (then `domain` is needed).

    `identity` is a hex digest of the shards' hashes: what a run records and refuses to change.
    """

    def __init__(self, path: Path | str, split: str, domain: str | None = None) -> None:
        self.split = split
        path = Path(path)
        if path.is_dir() or not _file(path, ".idx").exists():
            self.domain, self._shards, self.identity = _open_folder(path, split, domain)
            self._dtype = self.domain.dtype
        else:
            self.domain, shard, self.identity, self._dtype = _open_prefix(path, domain)
            self._shards = (shard,)
        self._starts = np.cumsum([0, *(shard.rows for shard in self._shards)], dtype=np.int64)
        self._several_kinds = len(self.domain.kinds) > 1
        self._check_ids = np.iinfo(self._dtype).min < 0 or np.iinfo(self._dtype).max >= self.domain.vocab_size
        self._open: OrderedDict[int, _Mapped] = OrderedDict()
        self.num_rows = int(self._starts[-1])
        self.num_tokens = self.num_rows * self.domain.seq_length
        if not self.num_rows:
            raise ValueError(
                f"{path}: split {split!r} holds no full row of {self.domain.seq_length} tokens; wanted at least one. "
                f"Build it from more raw data, or choose other --fractions."
            )

    def rows(self, indices: np.ndarray) -> RowBatch:
        """The rows numbered `indices` (int64 [B], any order, repeats allowed)."""
        indices = np.asarray(indices, np.int64)
        if indices.ndim != 1 or (indices.size and not 0 <= indices.min() <= indices.max() < self.num_rows):
            raise ValueError(
                f"rows {indices!r} of split {self.split!r}: wanted a one-dimensional array of numbers from 0 to "
                f"{self.num_rows - 1}. Ask for rows that exist."
            )
        tokens = np.empty((len(indices), self.domain.seq_length), self._dtype)
        kinds = np.zeros(tokens.shape, np.uint8)
        for number, where in self._by_shard(indices):
            mapped = self._mapped(number)
            local = indices[where] - self._starts[number]
            tokens[where] = mapped.tokens[local]
            if self._several_kinds:
                kinds[where] = _kinds(mapped, local, len(self.domain.kinds))
            if self._check_ids:
                _check_ids(mapped.prefix, tokens[where], self.domain)
        return RowBatch(tokens, kinds)

    def _by_shard(self, indices: np.ndarray) -> list[tuple[int, np.ndarray | slice]]:
        """(shard number, positions in `indices` that lie in it) for every shard that is touched."""
        if len(self._shards) == 1:
            return [(0, slice(None))] if indices.size else []
        numbers = np.searchsorted(self._starts, indices, side="right") - 1
        order = np.argsort(numbers, kind="stable")
        cuts = np.flatnonzero(np.diff(numbers[order])) + 1
        groups = np.split(order, cuts) if indices.size else []
        return [(int(numbers[group[0]]), group) for group in groups]

    def _mapped(self, number: int) -> _Mapped:
        """Shard `number`, mapped; the least recently used one is let go when too many are open."""
        mapped = self._open.get(number)
        if mapped is None:
            mapped = _map(self._shards[number], self.domain, self._dtype)
            self._open[number] = mapped
            if len(self._open) > MAX_OPEN:
                self._open.popitem(last=False)
        else:
            self._open.move_to_end(number)
        return mapped


def _file(prefix: Path, ending: str) -> Path:
    return prefix.with_name(prefix.name + ending)


def _open_folder(path: Path, split: str, name: str | None) -> tuple[Domain, tuple[_Shard, ...], str]:
    """Domain, shards and identity of one split of a dataset folder."""
    if not path.is_dir():
        raise ValueError(
            f"{path}: does not exist; wanted a dataset folder, or the PREFIX of a .bin/.idx pair. "
            f"Build one: python -m data_prep build DOMAIN --raw PATH --out {path}"
        )
    manifest = load_manifest(path)
    here = domain(manifest.domain)
    check_domain(path, manifest, here)
    if name not in (None, here.name):
        raise ValueError(f"{path}: holds domain {here.name!r}; wanted {name!r}. Point at a dataset of that domain.")
    if split not in manifest.splits:
        raise ValueError(
            f"{path}: split {split!r} is not there; wanted one of {', '.join(manifest.splits)}. "
            f"Build it: python -m data_prep build {here.name} --split {split} --raw PATH --out {path}"
        )
    return here, _folder_shards(path, split, manifest), manifest.identity(split)


def _folder_shards(path: Path, split: str, manifest: Manifest) -> tuple[_Shard, ...]:
    """The shards of one split, the sizes of their files checked against the manifest."""
    shards = tuple(
        _Shard(path / each.file, each.rows, each.tokens, each.bin_bytes, each.idx_bytes)
        for each in manifest.splits[split]
    )
    for shard in shards:
        check_size(_file(shard.prefix, ".bin"), shard.bin_bytes, "the manifest")
        check_size(_file(shard.prefix, ".idx"), shard.idx_bytes, "the manifest")
    return shards


def check_size(path: Path, wanted: int, whose: str) -> None:
    """ValueError if `path` is missing or not `wanted` bytes long, as `whose` word has it."""
    size = path.stat().st_size if path.is_file() else None
    if size != wanted:
        found = "is missing" if size is None else f"has {size} bytes"
        raise ValueError(
            f"{path}: {found}; wanted {wanted} bytes, says {whose}. The file is cut off, damaged or of another build: "
            f"copy it again, or delete the folder and build again."
        )


def _open_prefix(path: Path, name: str | None) -> tuple[Domain, _Shard, str, np.dtype]:
    """A .bin/.idx pair without a manifest, its domain given by the caller."""
    if name is None:
        raise ValueError(
            f"{path}: a bare .bin/.idx pair, domain not given; wanted the name of its domain. "
            f"Pass domain=..., one that `python -m data_prep list` shows."
        )
    here, bin_path, idx_path = domain(name), _file(path, ".bin"), _file(path, ".idx")
    header = read_header(idx_path)
    if not bin_path.is_file():
        check_size(bin_path, 0, f"{idx_path.name} beside it (or more)")
    size = bin_path.stat().st_size
    tokens = size // header.dtype.itemsize
    if not header.has_modes and len(here.kinds) > 1:
        raise ValueError(
            f"{idx_path}: has no modes; wanted one for each sequence, since domain {name} has the kinds "
            f"{', '.join(kind.kind for kind in here.kinds)}. Write it with modes (multimodal=True)."
        )
    rows = tokens // here.seq_length if here.packed else header.documents
    shard = _Shard(path, rows, tokens, size, idx_path.stat().st_size)
    if rows:
        _check_ends(shard, here, header, idx_path.read_bytes() if shard.idx_bytes < 1 << 16 else None)
    return here, shard, _sampled_digest(bin_path, idx_path), header.dtype


def _sampled_digest(*paths: Path) -> str:
    """A digest of sizes, heads and tails: a foreign file has no recorded hash, and reading all of it may take hours."""
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        with path.open("rb") as stream:
            digest.update(f"{size} ".encode() + stream.read(1 << 20))
            stream.seek(max(0, size - (1 << 20)))
            digest.update(stream.read())
    return digest.hexdigest()


def _map(shard: _Shard, here: Domain, dtype: np.dtype) -> _Mapped:
    """Map a shard's files after checking that the two still belong together."""
    bin_path, idx_path = _file(shard.prefix, ".bin"), _file(shard.prefix, ".idx")
    check_size(bin_path, shard.bin_bytes, "the dataset as it was opened")
    header = read_header(idx_path)
    if header.dtype != dtype:
        raise ValueError(
            f"{idx_path}: tokens are {header.dtype.name}; wanted {dtype.name} for domain {here.name}. "
            f"The file is of another build: delete the folder and build again."
        )
    raw = _map_file(idx_path)
    _check_ends(shard, here, header, raw)
    stored = np.frombuffer(_map_file(bin_path), dtype, count=shard.rows * here.seq_length)
    tokens = stored.reshape(shard.rows, here.seq_length)
    if len(here.kinds) == 1:
        nothing = np.empty(0, np.int64)
        return _Mapped(shard.prefix, tokens, nothing, nothing, None, 0)
    pointers = np.frombuffer(raw, "<i8", count=header.sequences, offset=header.pointers_at)
    modes = np.frombuffer(raw, "<i1", count=header.sequences, offset=header.modes_at)
    return _Mapped(shard.prefix, tokens, pointers, modes, raw, header.pointers_at)


def _map_file(path: Path) -> mmap.mmap:
    with path.open("rb") as stream:
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    # Rows come in random order: without this the kernel reads 128 KiB around every one of them.
    mapped.madvise(mmap.MADV_RANDOM)
    return mapped


def _check_ends(shard: _Shard, here: Domain, header: IndexHeader, raw: mmap.mmap | bytes | None) -> None:
    """Do the first and last entries of the .idx describe this .bin? Reads a few bytes, whatever the size."""
    idx_path = _file(shard.prefix, ".idx")
    raw = _map_file(idx_path) if raw is None else raw
    first = _INT64.unpack_from(raw, header.pointers_at)[0]
    last = _INT64.unpack_from(raw, header.pointers_at + 8 * (header.sequences - 1))[0]
    length = struct.unpack_from("<i", raw, header.pointers_at - 4)[0]
    end = last + length * header.dtype.itemsize
    wanted_rows = shard.tokens // here.seq_length if here.packed else header.documents
    whole = here.packed or shard.tokens == header.documents * here.seq_length
    if first != 0 or end != shard.bin_bytes or not whole or shard.rows > wanted_rows:
        raise ValueError(
            f"{idx_path}: sequences from byte {first} to {end}, {header.documents} documents; wanted 0 to "
            f"{shard.bin_bytes} (the .bin) and {'any number of' if here.packed else shard.tokens // here.seq_length} "
            f"documents for domain {here.name} (rows of {here.seq_length}). The pair does not belong together, or to "
            f"this domain: copy both files again, or build again."
        )


def _check_ids(prefix: Path, tokens: np.ndarray, here: Domain) -> None:
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= here.vocab_size:
        raise ValueError(
            f"{_file(prefix, '.bin')}: token ids from {low} to {high}; wanted 0 to {here.vocab_size - 1} "
            f"(domain {here.name}). The file belongs to another domain or is damaged: check or rebuild it."
        )


def _kinds(mapped: _Mapped, rows: np.ndarray, num_kinds: int) -> np.ndarray:
    """The kind of every token, uint8 [n, S], of rows (int64 [n]) of one shard."""
    length = mapped.tokens.shape[1]
    item = mapped.tokens.itemsize
    row_start = rows * length
    first, last = _sequences_of(mapped, row_start * item, (row_start + length - 1) * item, length)
    counts = last - first + 1
    # Every row's sequences one after another: numbers first, first + 1, ..., last of row 0, then of row 1, ...
    ends = np.cumsum(counts)
    flat = np.arange(ends[-1]) + np.repeat(first - (ends - counts), counts)
    begin = np.maximum(mapped.pointers[flat] // item, np.repeat(row_start, counts))
    stop = np.empty_like(begin)
    stop[:-1] = begin[1:]
    stop[ends - 1] = row_start + length
    modes = mapped.modes[flat]
    if (stop < begin).any() or modes.min() < 0 or modes.max() >= num_kinds:
        raise ValueError(
            f"{_file(mapped.prefix, '.idx')}: pointers that go back or modes from {modes.min()} to {modes.max()}; "
            f"wanted rising pointers and modes 0 to {num_kinds - 1}. The file is damaged: run `python -m data_prep "
            f"check` on the folder, then copy or build it again."
        )
    return np.repeat(modes, stop - begin).astype(np.uint8).reshape(len(rows), length)


def _sequences_of(
    mapped: _Mapped, first_byte: np.ndarray, last_byte: np.ndarray, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers (int64 [n] each) of the sequences that hold the first and the last byte asked for."""
    find = _bisect if len(first_byte) < _VECTORISE_FROM else _search
    count = len(mapped.pointers)
    first = find(mapped, first_byte, np.zeros_like(first_byte), np.full_like(first_byte, count))
    # A row touches at most `length` sequences, unless some are empty: then search them all.
    last = find(mapped, last_byte, first, np.minimum(first + length + 1, count))
    if (last - first >= length).any():
        last = find(mapped, last_byte, first, np.full_like(first, count))
    return first, last


def _search(mapped: _Mapped, targets: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The last sequence in [low, high) whose pointer is <= target, for all targets at once.

    np.searchsorted would first copy the whole array, because it is not aligned in the file; this touches only the
    pointers that it compares with.
    """
    for _ in range(int((high - low).max()).bit_length()):
        middle = (low + high) >> 1
        before = mapped.pointers[middle] <= targets
        low, high = np.where(before, middle, low), np.where(before, high, middle)
    return low


def _bisect(mapped: _Mapped, targets: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """As `_search`, one target at a time: quicker for a few."""
    buffer, base = mapped.buffer, mapped.pointers_at

    def pointer(number: int) -> int:
        return int(_INT64.unpack_from(buffer, base + 8 * number)[0])  # type: ignore[arg-type]

    wanted = zip(targets.tolist(), low.tolist(), high.tolist(), strict=True)
    found = [bisect.bisect_right(range(h), t, lo=l, key=pointer) - 1 for t, l, h in wanted]  # noqa: E741
    return np.maximum(np.array(found, np.int64), low)
