"""Rows of tokens out of shards, in any order: `TokenDataset(folder, "train").rows(indices)`.

A row is seq_length tokens. Where documents are not packed, one document is one row; where they are, every shard is one
stream of tokens and its rows are consecutive cuts of it. Either way row r of a shard starts at token r * seq_length, so
tokens are found by arithmetic; only the *kinds* of a row need the .idx, and that by binary search.

Opening reads the manifest and the files' sizes and nothing else, so a dataset of any size opens at once. Shards are
opened when first touched (`data_prep/shard_reader.py`), and at most `MAX_FILES` files of all datasets stay open.
"""

import hashlib
import itertools
import resource
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.classes import classes_of
from data_prep.domain import Domain, domain
from data_prep.files import beside
from data_prep.manifest import Manifest, check_domain, load_manifest
from data_prep.shard_index import check_index, map_index
from data_prep.shard_reader import (
    OpenShard,
    Shard,
    check_pair,
    check_size,
    find_prefix,
    whole_documents,
)

# Half of the files that a process may have open are left to others.
MAX_FILES = min(8192, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)


class _OpenShards:
    """What is open in this process, the least recently used first: the datasets of a blend share one limit."""

    def __init__(self) -> None:
        self._shards: OrderedDict[tuple[int, int], OpenShard] = OrderedDict()
        self._files = 0

    def find(self, key: tuple[int, int]) -> OpenShard | None:
        """The shard (dataset, number) if it is open."""
        found = self._shards.get(key)
        if found is not None:
            self._shards.move_to_end(key)
        return found

    def keep(self, key: tuple[int, int], shard: OpenShard) -> None:
        """Keep a shard open, and let others go if too many files are."""
        self._shards[key] = shard
        self._files += shard.files
        while self._files > MAX_FILES and len(self._shards) > 1:
            self._files -= self._shards.popitem(last=False)[1].files

    def close(self, dataset: int) -> None:
        """Let go of the shards of a dataset that is no more."""
        for key in [key for key in self._shards if key[0] == dataset]:
            self._files -= self._shards.pop(key).files


_open = _OpenShards()
_numbers = itertools.count()


@dataclass(frozen=True)
class RowBatch:
    """`tokens` [B, S] in the shards' own integer type, `kinds` [B, S] uint8 (the mode of each token); both copies."""

    tokens: np.ndarray
    kinds: np.ndarray


def meaning(codec: str, classes: Sequence[str]) -> str:
    """A hex digest of what, beside the domain, decides what an id means: the tokenizer's or codebook's sha256, and the
    names of classes. "" where there is nothing, or nothing is known."""
    told = [codec, *classes] if codec or classes else []
    return hashlib.sha256("\n".join(told).encode()).hexdigest() if told else ""


class TokenDataset:
    """One split of a dataset folder, or a foreign `PREFIX` of PREFIX.bin and PREFIX.idx (then `domain` is needed).

    `identity` is a hex digest of the shards' hashes: what a run records and refuses to change. `codec` is the sha256 of
    the tokenizer or codebook that made the tokens; "" where there is none, or none is known. `classes` are the names of
    the classes of labelled pictures, in the order of their numbers; () where there are none, or none are known.
    """

    def __init__(self, path: Path | str, split: str, domain: str | None = None) -> None:
        self.split = split
        path = Path(path)
        if not find_prefix(path, domain):
            self.domain, self._shards, manifest = _open_folder(path, split, domain)
            self.identity = manifest.identity(split)
            self.codec = manifest.codec.sha256 if manifest.codec else ""
            self.classes = tuple(each.name for each in manifest.classes)
            self._dtype = self.domain.dtype
        else:
            assert domain is not None
            self.domain, shard, self.identity, self._dtype = _open_prefix(path, domain)
            self._shards, self.codec, self.classes = (shard,), "", ()
        self._starts = np.cumsum([0, *(shard.rows for shard in self._shards)], dtype=np.int64)
        self._several_kinds = len(self.domain.kinds) > 1
        self._check_ids = (
            np.iinfo(self._dtype).min < 0 or np.iinfo(self._dtype).max >= self.domain.vocab_size
        )
        self._number = next(_numbers)
        weakref.finalize(self, _open.close, self._number).atexit = False
        self._checked: set[int] = set()
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
        # As unsigned numbers negative ones are huge: one comparison for both ends.
        if indices.ndim != 1 or (indices.size and indices.view(np.uint64).max() >= self.num_rows):
            raise ValueError(
                f"rows {indices!r} of split {self.split!r}: wanted a one-dimensional array of numbers from 0 to "
                f"{self.num_rows - 1}. Ask for rows that exist."
            )
        tokens = np.empty((len(indices), self.domain.seq_length), self._dtype)
        shards = self._by_shard(indices)
        several = self._several_kinds
        kinds = (np.empty if several else np.zeros)(tokens.shape, np.uint8)
        for number, where in shards:
            opened = self._opened(number)
            local = indices[where] - self._starts[number]
            opened.read(local, where, tokens)
            if self._check_ids:
                _check_ids(self._shards[number].prefix, tokens[where], self.domain)
            if self.classes:
                _check_classes(self._shards[number].prefix, tokens[where], len(self.classes))
            if several and len(shards) == 1:
                return RowBatch(tokens, opened.kinds(local))  # nothing to put together
            if several:
                kinds[where] = opened.kinds(local)
        return RowBatch(tokens, kinds)

    def documents(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The documents that lie whole in one of the rows numbered `indices` (int64 [B]): the place of the row in
        `indices`, where in the row each begins and where it ends, int64 [documents] each, in the order of the rows."""
        if not self.domain.packed:
            begin = np.zeros(len(indices), np.int64)
            return np.arange(len(indices)), begin, begin + self.domain.seq_length
        found = [(np.empty(0, np.int64),) * 3]
        for number, where in self._by_shard(indices):
            local = indices[where] - self._starts[number]
            length, item = self.domain.seq_length, self._dtype.itemsize
            which, start, stop = whole_documents(self._shards[number], local, length, item)
            found.append((np.arange(len(indices))[where][which], start, stop))
        rows, starts, stops = (np.concatenate(each) for each in zip(*found, strict=True))
        order = np.argsort(rows, kind="stable")
        return rows[order], starts[order], stops[order]

    def _by_shard(self, indices: np.ndarray) -> list[tuple[int, np.ndarray | slice]]:
        """(shard number, positions in `indices` that lie in it) for every shard that is touched."""
        if len(self._shards) == 1:
            return [(0, slice(None))] if indices.size else []
        if not indices.size:
            return []
        numbers = np.searchsorted(self._starts, indices, side="right") - 1
        order = np.argsort(numbers, kind="stable")
        ordered = numbers[order]
        cuts = [0, *(np.flatnonzero(ordered[1:] != ordered[:-1]) + 1).tolist(), len(order)]
        return [
            (int(ordered[start]), order[start:stop])
            for start, stop in zip(cuts, cuts[1:], strict=False)
        ]

    def _opened(self, number: int) -> OpenShard:
        """Shard `number`, open; the least recently used one is let go when too many are."""
        key = self._number, number
        opened = _open.find(key)
        if opened is not None:
            return opened
        shard = self._shards[number]
        if number not in self._checked:
            check_pair(shard, self.domain, self._dtype)
            self._checked.add(number)
        opened = OpenShard(shard, self.domain, self._dtype)
        _open.keep(key, opened)
        return opened


def _open_folder(
    path: Path, split: str, name: str | None
) -> tuple[Domain, tuple[Shard, ...], Manifest]:
    """Domain and shards of one split of a dataset folder, and its manifest."""
    if not path.is_dir():
        raise ValueError(
            f"{path}: does not exist; wanted a dataset folder, or the PREFIX of a .bin/.idx pair. "
            f"Build one: python -m data_prep build DOMAIN --raw PATH --out {path}"
        )
    manifest = load_manifest(path)
    here = domain(manifest.domain)
    check_domain(path, manifest, here, name)
    if split not in manifest.splits:
        raise ValueError(
            f"{path}: split {split!r} is not there; wanted one of {', '.join(manifest.splits)}. "
            f"Build it: python -m data_prep build {here.name} --split {split} --raw PATH --out {path}"
        )
    return here, folder_shards(path, split, manifest), manifest


def folder_shards(path: Path, split: str, manifest: Manifest) -> tuple[Shard, ...]:
    """The shards of one split; ValueError unless the sizes of their files are those of the manifest."""
    shards = tuple(
        Shard(path / each.file, each.rows, each.tokens, each.bin_bytes, each.idx_bytes)
        for each in manifest.splits[split]
    )
    for shard in shards:
        check_size(beside(shard.prefix, ".bin"), shard.bin_bytes, "the manifest")
        check_size(beside(shard.prefix, ".idx"), shard.idx_bytes, "the manifest")
    return shards


def _open_prefix(path: Path, name: str) -> tuple[Domain, Shard, str, np.dtype]:
    """A .bin/.idx pair without a manifest, its domain given by the caller."""
    here, bin_path, idx_path = domain(name), beside(path, ".bin"), beside(path, ".idx")
    index = map_index(idx_path)
    if not bin_path.is_file():
        check_size(bin_path, 0, f"{idx_path.name} beside it (or more)")
    size = bin_path.stat().st_size
    tokens = size // index.header.dtype.itemsize
    shard = Shard(path, tokens // here.seq_length, tokens, size, idx_path.stat().st_size)
    check_pair(shard, here, index.header.dtype)
    # Whoever wrote it had other rules: all of the index is read once, so that no row is of another length or kind.
    check_index(index, here, size)
    return here, shard, _sampled_digest(bin_path, idx_path), index.header.dtype


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


def _check_classes(prefix: Path, tokens: np.ndarray, classes: int) -> None:
    highest = int(classes_of(tokens).max())
    if highest >= classes:
        raise ValueError(
            f"{beside(prefix, '.bin')}: a picture of class {highest}; wanted 0 to {classes - 1}, of which the manifest "
            f"has the names. The file is damaged: check or rebuild the dataset."
        )


def _check_ids(prefix: Path, tokens: np.ndarray, here: Domain) -> None:
    # As unsigned numbers negative ones are too large.
    if int(tokens.view(f"<u{tokens.itemsize}").max()) >= here.vocab_size:
        low, high = tokens.min(), tokens.max()
        raise ValueError(
            f"{beside(prefix, '.bin')}: token ids from {low} to {high}; wanted 0 to {here.vocab_size - 1} "
            f"(domain {here.name}). The file belongs to another domain or is damaged: check or rebuild it."
        )
